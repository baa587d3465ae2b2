"""One HTML file that holds a map, and needs neither a kernel nor a network.

Bokeh draws the points. The page around them is `page.html`.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from bokeh.embed import file_html
from bokeh.models import BooleanFilter, CDSView, ColumnDataSource, HoverTool
from bokeh.plotting import figure
from bokeh.resources import INLINE
from jinja2 import Template
from numpy.typing import ArrayLike, NDArray

from embedkit import evaluate
from embedkit._checks import check_count, check_points, check_table
from embedkit.maps._colors import UNKNOWN, coloring, cut
from embedkit.maps._rows import Rows, read, whole
from embedkit.words import WordVectors

_THUMBNAIL = 64  # pixels
_LETTERS = 1000  # of a value; what is longer is cut


def save_map(
    path: str | os.PathLike[str],
    points: ArrayLike,
    data: Any,
    *,
    vectors: Any = None,
    color: str | None = None,
    title: str = "A map of embeddings",
    caption: str = "",
    k: int = 8,
) -> Path:
    """Write a map to one HTML file that opens in any browser, without a kernel or a network.

    Use it to send a map on. Point at a dot to see its text or image, color by any column, search,
    hide classes, draw round dots with the lasso to list them, click one to see its neighbours.

    Parameters
    ----------
    path : str or path
        The file to write, such as ``"map.html"``.
    points : array of float, shape (n, 2)
        What `project` returned.
    data : datasets.Dataset, DataFrame, or dict of columns, with n rows
        What the points stand for, as in `explore`. Images become thumbnails. Everything in it is
        written to the file, where anyone can read it.
    vectors : array of float, shape (n, dim), or WordVectors, optional
        The vectors behind the map. With them the page says how far the map can be trusted, and
        knows the neighbours of each point in the full space. They are not written to the file.
    color : str, optional
        The column that gives the colors at first; by default ``label``, where there is one.
    title, caption : str
        What stands above the map.
    k : int, default=8
        How many neighbours each point keeps.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If lengths differ, values are not finite, or a column is unknown.

    Examples
    --------
    >>> import tempfile
    >>> path = save_map(f"{tempfile.mkdtemp()}/map.html", np.eye(3)[:, :2], {"text": list("abc")})
    >>> path.name, path.stat().st_size > 10_000
    ('map.html', True)
    """
    rows = read(data, vectors if isinstance(vectors, WordVectors) else None)
    xy = check_points(points, "save_map: points")
    table = None
    if vectors is not None:
        table = check_table(getattr(vectors, "vectors", vectors), "save_map: vectors")
    for name, each in {"points": xy, "vectors": table}.items():
        if each is not None and len(each) != len(rows):
            raise ValueError(
                f"save_map: {len(each)} {name}, but data has {len(rows)} rows; give one for each"
            )
    rows.require([] if color is None else [color], among=rows.scalars(), what="color")
    check_count("save_map", "k", k)
    kept = np.arange(len(rows))
    return write(path, rows, kept, xy, table, color=color, title=title, caption=caption, k=k)


def write(
    path: str | os.PathLike[str],
    rows: Rows,
    kept: NDArray[np.intp],
    xy: NDArray[np.floating],
    vectors: NDArray[np.floating] | None,
    *,
    color: str | None,
    title: str,
    caption: str,
    k: int = 8,
    selected: Sequence[int] = (),
) -> Path:
    """Write the page of checked rows, of which `kept` have a point each."""
    columns = {str(name): _describe(rows.frame[name].iloc[kept]) for name in rows.scalars()}
    text = (rows.text or "sentence") if rows.words or rows.text else None
    if text is not None:  # whole texts stand in the table too, where the column has no color
        texts = [rows.plain(int(row), _LETTERS) for row in kept]
        columns.setdefault(text, {})["values"] = texts
    nothing = pd.Series([None] * len(kept), dtype=object)
    columns[""] = _describe(nothing) | {"values": [""] * len(kept), "colors": ["#3f90da"]}
    default = "label" if "label" in columns else ""
    page = {
        "columns": columns,
        "color": default if color is None else str(color),
        "text": text,
        "rows": kept.tolist(),
        "neighbours": None,
    }
    trust = "How far this map can be trusted was not measured: it was saved without its vectors."
    if vectors is not None and len(kept) > 1:
        near, far = evaluate.nearest(vectors, k=min(k, len(kept) - 1))
        page |= {"neighbours": near.tolist(), "distances": np.round(far, 3).tolist()}
        trust = f"{len(kept)} points are too few to say how far their map can be trusted."
        if len(kept) > 10:
            share = evaluate.trustworthiness(vectors, xy)
            trust = (
                f"Trustworthiness {share:.2f}: how far neighbours on the map are neighbours in the "
                f"full space of {vectors.shape[1]} dimensions; 1 is perfect, 0.5 is chance."
            )
    plot = _draw(rows, kept, xy, selected)
    html = file_html(
        plot,
        INLINE,
        whole(title),
        template=Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8")),
        template_variables={
            # As a script it would end at the first </script> of the data.
            "rows": json.dumps(page).replace("<", "\\u003c"),
            "caption": whole(caption), "trust": trust, "count": len(kept),
        },
    )  # fmt: skip
    path = Path(path)
    path.write_text(html, encoding="utf-8")
    return path


def _describe(values: pd.Series) -> dict[str, Any]:
    """Write down what a column says of each point, and in which colors."""
    found = coloring(values)
    codes, colors = found.colors()
    return {
        "values": [cut(str(value), _LETTERS) for value in values],
        "codes": codes.tolist(),
        "colors": colors,
        "limits": None if found.amounts is None else found.limits,
        "entries": found.entries(),
    }


def _draw(
    rows: Rows, kept: NDArray[np.intp], xy: NDArray[np.floating], selected: Sequence[int]
) -> Any:
    """Draw the points with Bokeh; colors come with the page."""
    grey = [UNKNOWN] * len(kept)
    table: dict[str, Any] = {"x": xy[:, 0], "y": xy[:, 1], "row": kept, "color": grey}
    tip = "<small>row @row</small>"
    if rows.words or rows.text:
        table["text"] = [""] * len(kept)  # the page fills it in, so that texts are written once
        tip = f"<div style='max-width: 22em; white-space: pre-wrap'>@text</div>{tip}"
    if rows.pictures is not None:
        table["image"] = [rows.thumbnail(int(row), _THUMBNAIL) for row in kept]
        style = f"display: block; height: {_THUMBNAIL}px; image-rendering: pixelated"
        tip = f"<img src='@image' alt='' style='{style}'>{tip}"
    points = ColumnDataSource(table, name="points")
    points.selected.indices = list(map(int, selected))
    rings = ColumnDataSource({"x": [], "y": []}, name="rings")
    view = CDSView(filter=BooleanFilter(booleans=[True] * len(kept), name="shown"))
    plot = figure(
        height=560, sizing_mode="stretch_width", match_aspect=True, output_backend="webgl",
        tools="pan,wheel_zoom,box_zoom,lasso_select,tap,reset", active_scroll="wheel_zoom",
        background_fill_color=None, border_fill_color=None, outline_line_color=None,
    )  # fmt: skip
    plot.axis.visible = plot.grid.visible = False
    plot.toolbar.logo = None
    dots = plot.scatter(
        "x", "y", source=points, view=view, color="color", line_color=None, fill_alpha=0.8,
        nonselection_fill_alpha=0.12, size=float(np.clip(240 / max(len(kept), 1) ** 0.5, 4, 10)),
    )  # fmt: skip
    plot.scatter(
        "x", "y", source=rings, size=15, fill_color=None, line_color="#d81b60", line_width=2
    )
    plot.add_tools(
        HoverTool(renderers=[dots], tooltips=f"<div>{tip}</div>", point_policy="snap_to_data")
    )
    return plot
