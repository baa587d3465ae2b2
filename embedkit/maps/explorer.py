"""A map to explore in a notebook: hover, lasso, color, find, and travel from one map to another.

The scatter is jupyter-scatter's, the controls around it are ipywidgets.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
from jscatter.annotations import Line
from jscatter.label_placement import LabelPlacement
from jscatter.label_placement.constants import INITIAL_TILE
from jscatter.label_placement.utils import to_js
from matplotlib.colors import to_rgba
from numpy.typing import ArrayLike, NDArray

from embedkit.maps import _controls
from embedkit.maps._colors import Coloring, coloring
from embedkit.maps._rows import Rows, read
from embedkit.maps._views import Maps, View, contours, framed, gather
from embedkit.maps.page import write
from embedkit.words import WordVectors

_SHOWN, _NEAREST, _NEAR = 24, 8, 24
_PLAYING = "playing" if hasattr(widgets.Play, "playing") else "_playing"  # before ipywidgets 8
_SHARED = 10  # neighbours that two spaces may share


def explore(
    vectors: Any,
    data: Any,
    *,
    color: str | None = None,
    hover: str | Sequence[str] | None = None,
    points: Any = None,
    height: int = 480,
) -> "Explorer":
    """Open a map to explore in a notebook: hover, lasso, recolor, find, change the vectors.

    Use it after `plot`, to see which rows the points are.

    Parameters
    ----------
    vectors : array of float, shape (n, dim), or WordVectors, or dict of either
        Embeddings. With a dict, such as ``{"CLS": …, "mean": …}``, a menu switches between them
        and the points travel to the new map. Rows of NaN are left out, and counted.
    data : datasets.Dataset, DataFrame, or dict of columns, with n rows
        What the vectors stand for. Images become thumbnails. For `WordVectors`: the sentences
        that were encoded, in a column ``tokens`` or ``text``, or as a list.
    color : str, optional
        The column that gives the colors; by default ``label``, where there is one.
    hover : str or sequence of str, optional
        More columns to show for the point under the pointer.
    points : array of float, shape (n, 2), or dict of such, optional
        Maps you have already, by the names in `vectors`. They are shown first.
    height : int
        Of the map, in pixels.

    Returns
    -------
    Explorer
        A widget. Its ``selection`` is a table of what is selected; its ``select`` selects.

    Raises
    ------
    ValueError
        If lengths differ, a column is unknown, or no row has a finite vector.

    Examples
    --------
    >>> explorer = explore(np.eye(5), {"text": list("abcde")}, points=np.eye(5)[:, :2])
    >>> explorer.select([1, 3])
    >>> explorer.selection["text"].tolist()
    ['b', 'd']
    """
    many = dict(vectors) if isinstance(vectors, Mapping) else {"vectors": vectors}
    words = next((each for each in many.values() if isinstance(each, WordVectors)), None)
    rows = read(data, words)
    hover = [hover] if isinstance(hover, str) else list(hover or ())
    rows.require(hover, among=list(rows.frame), what="hover")
    rows.require([] if color is None else [color], among=rows.scalars(), what="color")
    return Explorer(rows, gather(many, points, rows), color=color, hover=hover, height=height)


class Explorer(widgets.VBox):
    """A map with its controls; made by `explore`."""

    def __init__(
        self, rows: Rows, maps: Maps, *, color: str | None, hover: Sequence[str], height: int
    ) -> None:
        """Show the first map."""
        self._rows, self._maps, self._hover = rows, maps, hover
        self._task: asyncio.Task[None] | None = None
        self._clock = widgets.Play(max=1, layout={"display": "none"})
        self._past: list[NDArray[np.intp]] = [np.zeros(0, np.intp)]
        self._shared: NDArray[np.intp] | None = None
        color = color or ("label" if "label" in rows.scalars() else None)
        self._controls, self._switches = _controls.make_controls(rows, maps, color)
        self._undo = widgets.Button(description="undo", disabled=True)
        self._only = widgets.HBox()  # the values that the filter lets through
        self._picture = widgets.VBox()
        places = "status", "answer", "legend", "clusters", "hover", "trust", "selection"
        self._text = {name: widgets.HTML().add_class(f"ek-{name}") for name in places}
        self._scatter, self._beside = _controls.new_scatter(len(maps.rows), height), None
        self._side_by_side = widgets.HBox([self._scatter])
        self._view = self._wanted()
        self._points = framed(maps.points(self._view))
        self._draw(travel=False)
        self._set("trust", maps.trust(self._view, self._classes))
        self._set("hover", "Point at the map to see what is there.")
        self._show_selection()
        for name, control in self._controls.items():
            follow = {"find": self._find, "filter": self._choose_filter}.get(name, self._changed)
            control.observe(follow, "value")
        switched = {"regular expression": self._find, "picture": self._show_picture}
        for name in ("regular expression", "names", "density", "picture"):
            self._switches[name].observe(switched.get(name, self._changed), "value")
        self._undo.on_click(self._take_back)
        self._scatter.observe(self._hovered, "hovering")
        self._scatter.observe(self._selected, "selection")
        parts = {"undo": self._undo, "only": self._only, "clock": self._clock, **self._text}
        parts |= {"maps": self._side_by_side, "picture": self._picture}
        several = len(maps.vectors) > 1
        super().__init__(_controls.arrange(self._controls, self._switches, parts, several))
        _controls.show_picture_without_webgl(self, self._scatter, self._switches["picture"])

    @property
    def points(self) -> NDArray[np.float32]:
        """The map as drawn, shape (n, 2): scaled to the frame, turned onto the one before."""
        return self._points

    @property
    def selection(self) -> pd.DataFrame:
        """The rows selected, in order; the index counts the rows of data, or the words."""
        return self._rows.frame.iloc[self._maps.rows[self._chosen()]]

    def select(self, rows: ArrayLike) -> None:
        """Select rows by their numbers, or by one truth value for each row.

        Raises
        ------
        ValueError
            If there is no such row.
        """
        wanted = self._rows.numbers(rows)
        self._scatter.selection = np.flatnonzero(np.isin(self._maps.rows, wanted)).astype(np.uint32)

    def save(
        self, path: str | os.PathLike[str], *, title: str = "A map of embeddings", caption: str = ""
    ) -> Path:
        """Write the map on the screen to one HTML file that needs no kernel, as `save_map` does.

        The file has the map, the vectors' neighbours, the color and the selection of now.
        """
        return write(
            path, self._rows, self._maps.rows, self._points, self._maps.vectors[self._view.vectors],
            color=self._controls["color"].value, title=title, caption=caption,
            selected=self._chosen().tolist(),
        )  # fmt: skip

    def _chosen(self) -> NDArray[np.intp]:
        return np.sort(np.asarray(self._scatter.selection, dtype=np.intp))

    def _set(self, place: str, html: str) -> None:
        """Write HTML into a panel; the caller has escaped what is data."""
        style = "line-height: 1.4; overflow-wrap: anywhere"
        self._text[place].value = f"<div style='{style}'>{html}</div>" if html else ""

    def _wanted(self) -> View:
        """Read off the controls which map is asked for."""
        view = View(self._controls["vectors"].value, self._controls["map"].value)
        if view.method == "as given" and view not in self._maps.known:
            view = view._replace(method=self._controls["map"].options[1])
        settings = [self._controls[name] for name in View._fields[2:]]
        for control in settings:
            control.disabled = view.method != "UMAP"
        return View(*view[:2], *(c.value for c in settings)) if view.method == "UMAP" else view

    def _asked(self) -> tuple[Any, ...]:
        """Read off the controls everything that has to be computed and drawn."""
        shown = [self._controls[name].value for name in ("color", "compare")]
        return self._wanted(), *shown, *(self._switches[n].value for n in ("names", "density"))

    def _changed(self, change: Any) -> None:
        """React to a control without blocking other cells."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no notebook
            asyncio.run(self._follow())
        else:
            if self._task is None or self._task.done():
                self._task = loop.create_task(self._follow())

    async def _follow(self) -> None:
        """Do what the controls ask for, until they ask for nothing else."""
        done = None
        while (asked := self._asked()) != done:
            done, (view, color, other, names, density) = asked, asked
            travel = view != self._view
            try:
                self._set("status", f"Computing: {view.method}, {escape(view.vectors)} …")
                points = await asyncio.to_thread(self._maps.points, view)
                if view != self._wanted():
                    continue
                if travel:
                    self._view, self._points = view, framed(points, self._points)
                await self._set_beside(other)
                self._draw(travel)
                self._set("trust", await asyncio.to_thread(self._maps.trust, view, self._classes))
                await self._write_names(names, color)
                lines = contours(self._points) if density else []
                self._scatter.annotations = [Line(line.tolist()) for line in lines]
                self._show_selection()
                self._set("status", "")
                await self._arrived(travel)
            except Exception as error:  # raised in a task, it would not be seen
                self._set("status", f"This could not be computed: {escape(str(error))}")

    async def _set_beside(self, other: str | None) -> None:
        """Put a map of other vectors beside this one; color both by the neighbours they share."""
        self._shared = None
        if other is not None:
            beside = await asyncio.to_thread(self._maps.points, self._view._replace(vectors=other))
            self._beside_points = framed(beside, self._points)
            names = self._view.vectors, other, _SHARED
            self._shared = await asyncio.to_thread(self._maps.shared, *names)
            self._beside = self._beside or self._new_beside()

    def _new_beside(self) -> Any:
        """Make a second map that shares selection, filter and pointer with the first."""
        beside = _controls.new_scatter(len(self._maps.rows), self._scatter.height)
        for one, other in ((self._scatter, beside), (beside, self._scatter)):
            follow = partial(lambda to, change: setattr(to, change["name"], change["new"]), other)
            one.observe(follow, ["selection", "filter", "hovering"])
        beside.selection, beside.filter = self._scatter.selection, self._scatter.filter
        return beside

    async def _write_names(self, wanted: bool, color: str | None) -> None:
        """Write the names of the clusters on the map; the page asks for those in sight."""
        placed, labels, said = None, None, ""
        if wanted:
            args = self._view, self._rows, color
            table = pd.DataFrame(self._points.astype(float), columns=["x", "y"])
            table["name"] = await asyncio.to_thread(self._maps.clusters, *args)
            # Labels are placed by the number of a row in this table.
            table = table[table["name"] != ""].reset_index(drop=True)
            if len(table):
                placed = LabelPlacement(data=table, by="name", x="x", y="y")
                placed.compute()
                tiles = self._scatter.label_tiles or [INITIAL_TILE]
                labels = to_js(placed.get_labels_from_tiles(tiles))
            found = table["name"].value_counts()
            said = ", ".join(f"<b>{escape(name)}</b> ({count})" for name, count in found.items())
            said = f"{len(found)} clusters of this map, not of the vectors: {said}"
        self._set("clusters", said)
        self._scatter.label_placement, self._scatter.labels = placed, labels

    async def _arrived(self, travel: bool) -> None:
        """Let the page's own clock run: while points travel, it takes no others."""
        seconds = _controls.TRAVEL * (1.5 if travel else 0.2)
        self._clock.value, self._clock.interval = 0, int(1000 * seconds)
        setattr(self._clock, _PLAYING, True)
        for _ in range(40):  # without a page, no clock runs
            await asyncio.sleep(_controls.TRAVEL / 8)
            if not getattr(self._clock, _PLAYING):
                break
        setattr(self._clock, _PLAYING, False)

    def _column(self, name: str | None) -> pd.Series:
        """Give a column of the rows on the map."""
        frame = self._rows.frame
        column = pd.Series(None, frame.index, dtype=object) if name is None else frame[name]
        return column.iloc[self._maps.rows]

    def _draw(self, travel: bool) -> None:
        """Send places and colors to the page, together."""
        name = self._controls["color"].value
        meaning = coloring(self._column(name))
        self._meaning, self._classes = meaning, meaning.classes
        legend = meaning.legend() if name is not None else ""
        if self._shared is not None:
            meaning = Coloring(np.full_like(meaning.classes, -1), [], self._shared.astype(float))
            legend = f"of {_SHARED} neighbours, both spaces share {meaning.legend()}"
            self._place(self._beside, self._beside_points, meaning, travel=False)
        self._set("legend", legend)
        self._place(self._scatter, self._points, meaning, travel)
        # Only now, because a map that is being opened takes no other points.
        pair = [self._scatter] if self._shared is None else [self._scatter, self._beside]
        self._side_by_side.children = pair
        self._show_picture()

    def _show_picture(self, change: Any = None) -> None:
        """Draw the map as a still picture, where it is asked for."""
        self._picture.children = []
        if self._switches["picture"].value:
            self._picture.children = _controls.draw_picture(self._points, self._meaning)

    def _place(self, scatter: Any, points: NDArray[Any], meaning: Coloring, travel: bool) -> None:
        codes, colors = meaning.colors()
        with scatter.hold_sync():
            scatter.transition_points = travel
            scatter.color_by, scatter.color_scale = "valueA", "categorical"
            scatter.color_domain = {str(code): code for code in range(len(colors))}
            scatter.color = scatter.color_selected = [to_rgba(each) for each in colors]
            scatter.points = np.column_stack([points, codes, np.zeros_like(codes)])

    def _hovered(self, change: Any) -> None:
        """Show the row under the pointer; it stays when the pointer leaves."""
        point = change["new"]
        if point is None:
            return
        row = int(self._maps.rows[point])
        facts = self._rows.facts(row, [self._controls["color"].value, "label", *self._hover])
        self._set("hover", f"<p>{self._rows.preview(row, 160, 600)}</p>{'<br>'.join(facts)}")

    def _selected(self, change: Any = None) -> None:
        """Remember a selection, so that it can be taken back, and show it."""
        self._past = [*self._past[-20:], self._chosen()]
        self._undo.disabled = len(self._past) < 2
        self._show_selection()

    def _take_back(self, button: Any = None) -> None:
        """Select what was selected before."""
        if len(self._past) > 1:
            *self._past, before, _ = self._past
            self._scatter.selection = before.astype(np.uint32)

    def _show_selection(self) -> None:
        """Show what is selected, and what is nearest to it in the full space."""
        chosen, name = self._chosen(), self._controls["color"].value
        if self._shared is not None:
            order = chosen if len(chosen) else np.arange(len(self._maps.rows))
            order = order[np.argsort(self._shared[order], kind="stable")]
            cards = [(self._maps.rows[p], f"{self._shared[p]} shared") for p in order[:_SHOWN]]
            title = "<b>Fewest neighbours shared first</b>"
            self._set("selection", title + self._rows.cards(cards, name))
            return
        if not len(chosen):
            self._set("selection", "Click a point, or draw round several with the lasso.")
            return
        counts = f": {self._rows.counts(self._maps.rows[chosen], name)}" if name is not None else ""
        more = f" The first {_SHOWN} are shown." if len(chosen) > _SHOWN else ""
        near = []
        for point, far, rank in self._maps.nearest(self._view, chosen, _NEAREST):
            note = f"{far:.2f}, no. {rank} on the map: {'near' if rank <= _NEAR else 'far'}"
            near.append((self._maps.rows[point], note))
        self._set(
            "selection",
            f"<b>{len(chosen)} selected</b>{counts}.{more}"
            + self._rows.cards([(row, "") for row in self._maps.rows[chosen[:_SHOWN]]], name)
            + "<b>Nearest in the full space</b>, by cosine distance. The number after it ranks "
            f"them by distance on the map; up to no. {_NEAR} is near."
            + self._rows.cards(near, name),
        )

    def _choose_filter(self, change: Any) -> None:
        """Offer the values of a column, or the range of its amounts."""
        name = self._controls["filter"].value
        meaning = coloring(self._column(name))
        self._only.children = [] if name is None else [_controls.make_filter(meaning)]
        for each in self._only.children:
            each.observe(lambda change: self._filter(meaning), "value")
        self._filter(meaning)

    def _filter(self, meaning: Coloring) -> None:
        """Show only some rows, and find among them."""
        (only,) = self._only.children or (None,)
        if only is None or (meaning.amounts is None and not only.value):
            self._scatter.filter = None
        else:
            if meaning.amounts is None:
                kept = np.isin(meaning.classes, only.value)
            else:
                kept = (meaning.amounts >= only.value[0]) & (meaning.amounts <= only.value[1])
            self._scatter.filter = np.flatnonzero(kept).astype(np.uint32)
            self._set("answer", f"{kept.sum()} rows are shown.")
        if self._controls["find"].value:
            self._find()

    def _find(self, change: Any = None) -> None:
        """Select the rows that contain what was typed, among those that are shown."""
        wanted = self._controls["find"].value
        try:
            found = self._rows.find(wanted, self._switches["regular expression"].value)
        except ValueError as error:
            self._set("answer", escape(str(error)))
            return
        kept = self._scatter.filter
        if kept is not None:
            found = np.intersect1d(found, self._maps.rows[kept.astype(np.intp)]).tolist()
        found = found if wanted else []
        self.select(found)
        self._set("answer", wanted and f"{len(found)} rows contain “{escape(wanted)}”.")
