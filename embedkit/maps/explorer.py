"""The map comes alive: hover, lasso, color, find, and travel from one map to another.

The scatter is jupyter-scatter's, the controls round it are ipywidgets.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets as widgets
import jscatter
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgba
from numpy.typing import ArrayLike, NDArray

from embedkit.maps._colors import coloring
from embedkit.maps._rows import Rows, read
from embedkit.maps._views import LARGE, Maps, View, framed, gather
from embedkit.words import WordVectors

_SHOWN, _NEAREST, _NEAR = 24, 8, 24
_TRAVEL = 1.0  # seconds
_PLAYING = "playing" if hasattr(widgets.Play, "playing") else "_playing"  # before ipywidgets 8
_HELP = {
    "vectors": "The points travel to another map.",
    "color": "The column that gives the colors.",
    "map": "UMAP keeps neighbours, PCA the spread.",
    "n_neighbors": "Few show detail, many the whole.",
    "min_dist": "How close points may lie.",
    "metric": "What UMAP takes for near.",
    "find": "Enter selects the rows that contain this.",
}


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
        columns = [("none", None), *((str(name), name) for name in rows.scalars())]
        n = len(maps.rows)
        methods = ["as given"] * bool(maps.known) + ["UMAP"] * (n > 3) + ["PCA"]
        color = color or ("label" if "label" in rows.scalars() else None)
        slider = {"continuous_update": False}
        self._controls = {
            "vectors": widgets.Dropdown(options=list(maps.vectors)),
            "color": widgets.Dropdown(options=columns, value=color),
            "map": widgets.Dropdown(options=methods),
            "n_neighbors": widgets.IntSlider(
                value=15, min=2, max=max(15, min(200, n - 1)), **slider
            ),
            "min_dist": widgets.FloatSlider(value=0.1, min=0, max=1, step=0.05, **slider),
            "metric": widgets.Dropdown(options=["cosine", "euclidean", "manhattan", "correlation"]),
            "find": widgets.Text(placeholder="text", **slider),
        }
        if not maps.known and n > LARGE:
            self._controls["map"].value = "PCA"  # UMAP would take minutes
        self._regex = widgets.Checkbox(description="regular expression", indent=False)
        names = "status", "legend", "hover", "trust", "selection"
        self._text = {name: widgets.HTML().add_class(f"ek-{name}") for name in names}
        scatter = jscatter.Scatter(
            x=np.zeros(n), y=np.zeros(n), x_scale=(-1, 1), y_scale=(-1, 1), axes=False,
            reticle=False, height=height, size=float(np.clip(120 / n**0.5, 2, 6)),
            opacity_unselected=0.15, transition_points_duration=int(1000 * _TRAVEL),
        )  # fmt: skip
        self._scatter = scatter.show(["pan_zoom", "lasso", "full_screen", "reset"])
        # Where all points are one, the page would look for labels in no space, without end.
        self._scatter.x_domain = self._scatter.y_domain = [-1, 1]
        self._view = self._wanted()
        self._points = framed(maps.points(self._view))
        self._draw(travel=False)
        self._set("trust", maps.trust(self._view, self._classes))
        self._set("hover", "Point at the map to see what is there.")
        self._selected()
        for name, control in self._controls.items():
            control.observe(self._find if name == "find" else self._changed, "value")
        self._regex.observe(self._find, "value")
        self._scatter.observe(self._hovered, "hovering")
        self._scatter.observe(self._selected, "selection")
        super().__init__(self._arranged())

    def _arranged(self) -> list[widgets.Widget]:
        """Lay out the controls above, the map beside what it says, the selection below."""
        for name, control in self._controls.items():
            control.description, control.layout.width = name, "100%"
            control.style.description_width = "6.5em"
        boxes = {
            name: widgets.VBox(
                [control, widgets.HTML(f"<small style='opacity: 0.7'>{_HELP[name]}</small>")],
                layout={"flex": "1 1 30%", "max_width": "330px", "margin": "0 1em 0 0"},
            )
            for name, control in self._controls.items()
        }
        find = widgets.HBox([boxes.pop("find"), self._regex, self._text["status"], self._clock])
        if len(self._maps.vectors) == 1:
            del boxes["vectors"]
        text = self._text
        left = widgets.VBox([self._scatter, text["legend"]])
        left.layout = {"flex": "1 1 400px", "min_width": "0"}
        right = widgets.VBox([text["trust"], text["hover"]])
        right.layout = {"flex": "0 0 250px", "margin": "0 0 0 1em"}
        controls = widgets.HBox(list(boxes.values()), layout={"flex_flow": "row wrap"})
        return [controls, find, widgets.HBox([left, right]), text["selection"]]

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

    def _changed(self, change: Any) -> None:
        """See to a control without holding up other cells."""
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
        while (asked := (self._wanted(), self._controls["color"].value)) != done:
            done, view, travel = asked, asked[0], asked[0] != self._view
            try:
                self._set("status", f"Computing: {view.method}, {escape(view.vectors)} …")
                points = await asyncio.to_thread(self._maps.points, view)
                if view != self._wanted():
                    continue
                if travel:
                    self._view, self._points = view, framed(points, self._points)
                self._draw(travel)
                self._selected()
                self._set("trust", await asyncio.to_thread(self._maps.trust, view, self._classes))
                self._set("status", "")
                await self._arrived(travel)
            except Exception as error:  # in a callback nobody would see it
                self._set("status", f"This could not be computed: {escape(str(error))}")

    async def _arrived(self, travel: bool) -> None:
        """Let the page's own clock run: while points travel, it takes no others."""
        self._clock.value, self._clock.interval = 0, int(1000 * _TRAVEL * (1.5 if travel else 0.2))
        setattr(self._clock, _PLAYING, True)
        for _ in range(40):  # and where there is no page, no clock runs
            await asyncio.sleep(_TRAVEL / 8)
            if not getattr(self._clock, _PLAYING):
                break
        setattr(self._clock, _PLAYING, False)

    def _draw(self, travel: bool) -> None:
        """Send places and colors to the page, together."""
        name, frame = self._controls["color"].value, self._rows.frame
        column = pd.Series(None, frame.index, dtype=object) if name is None else frame[name]
        meaning = coloring(column.iloc[self._maps.rows])
        (codes, colors), self._classes = meaning.colors(), meaning.classes
        self._set("legend", meaning.legend() if name is not None else "")
        with self._scatter.hold_sync():
            self._scatter.transition_points = travel
            self._scatter.color_by, self._scatter.color_scale = "valueA", "categorical"
            self._scatter.color_domain = {str(code): code for code in range(len(colors))}
            self._scatter.color = self._scatter.color_selected = [to_rgba(c) for c in colors]
            self._scatter.points = np.column_stack([self._points, codes, np.zeros_like(codes)])

    def _hovered(self, change: Any = None) -> None:
        """Show the row under the pointer; it stays when the pointer leaves."""
        point = self._scatter.hovering
        if point is None:
            return
        row = int(self._maps.rows[point])
        facts = self._rows.facts(row, [self._controls["color"].value, "label", *self._hover])
        self._set("hover", f"<p>{self._rows.preview(row, 160, 600)}</p>{'<br>'.join(facts)}")

    def _selected(self, change: Any = None) -> None:
        """Show what is selected, and what is nearest to it in the full space."""
        chosen, name = self._chosen(), self._controls["color"].value
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

    def _find(self, change: Any = None) -> None:
        """Select the rows that contain what was typed."""
        wanted = self._controls["find"].value
        try:
            found = self._rows.find(wanted, self._regex.value) if wanted else []
        except re.error as error:
            self._set("status", f"“{escape(wanted)}” is no regular expression: {error}")
            return
        self.select(found)
        self._set("status", wanted and f"{len(found)} rows contain “{escape(wanted)}”.")
