"""Figures: points in, a matplotlib Axes out.

One size and one palette for all lessons. Every class has a color and a marker shape.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from IPython import get_ipython
from IPython.core.pylabtools import retina_figure
from matplotlib import patheffects
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from embedkit._checks import check_labels, check_points
from embedkit.maps._colors import AMOUNTS, PALETTE, UNKNOWN, Coloring, coloring, cut
from embedkit.maps._density import density, levels, limits_of

Kind = Literal["points", "density"]
KINDS = get_args(Kind)
SIZE = (7.0, 4.5)  # inches
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*", "<", ">", "p")
_OWN = 0.6  # a name is written where at least this share of the points is of its class
_SHARES = (0.9, 0.6, 0.3)  # of a class, inside the three contours of its density


class _CrispFigure(Figure):
    """A figure that a notebook shows at twice its density, for screens that have it."""


def plot(
    points: ArrayLike,
    labels: Any = None,
    *,
    names: Sequence[str] | None = None,
    kind: Kind = "points",
    legend: bool = True,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Draw a map of points, colored by label.

    Parameters
    ----------
    points : array of float, shape (n, 2)
        What `project` returned.
    labels : sequence, length n, optional
        Classes as numbers or strings: one color and one marker each, and a legend. Where a class
        lies together, its name is written there. Floats are amounts: a color scale. None and NaN
        are drawn grey.
    names : sequence of str, optional
        What numbered classes are called. A `datasets` column brings its names along.
    kind : {"points", "density"}, default="points"
        Density draws a small panel for each class: all points in grey, and contours that hold
        30, 60 and 90 % of the class. It shows overlap where points hide each other.
    legend : bool, default=True
        Whether to say beside the map what the colors mean.
    ax : Axes, optional
        Where to draw; by default a new figure.
    title : str, optional
        Of the plot.

    Returns
    -------
    matplotlib.axes.Axes
        Without ticks or frame: a map's coordinates have no meaning. The panels of a density are
        its ``child_axes``.

    Raises
    ------
    ValueError
        If `points` is not (n, 2), or labels and points differ in number.

    Examples
    --------
    >>> axes = plot([[0, 0], [1, 1]], labels=["a", "b"], title="Two points")
    >>> [text.get_text() for text in axes.get_legend().get_texts()]
    ['a (1)', 'b (1)']
    """
    xy = check_points(points, "plot: points")
    values = _read([""] * len(xy) if labels is None else labels, names)
    if len(values) != len(xy):
        raise ValueError(f"plot: {len(xy)} points but {len(values)} labels")
    if kind not in KINDS:
        raise ValueError(f"plot(kind={kind!r}): unknown; choose from {', '.join(KINDS)}")
    found = coloring(values)
    if kind == "density" and found.amounts is not None:
        raise ValueError("plot(kind='density') takes classes, and these labels are amounts")
    ax = ax or _new_axes()
    ax.set(xticks=[], yticks=[], title=title or "")
    ax.spines[:].set_visible(False)
    if kind == "density":
        _draw_panels(ax, xy, found)
        return ax
    # Many points are drawn small and thin, so that crowds stay readable.
    window = ax.get_window_extent()
    inches = window.width * window.height / ax.figure.dpi**2
    size = float(np.clip(400 * inches / max(len(xy), 1), 4, 36))
    # Snapped to whole pixels, the arms of a small plus would have no width.
    look: dict[str, Any] = {"s": size, "alpha": 0.8, "linewidths": 0, "snap": False}
    known, entries = found.classes >= 0, dict[str, Any]()
    if found.amounts is not None:
        known = np.isfinite(found.amounts)
        look_of_amounts = look | {"c": found.amounts[known], "cmap": AMOUNTS}
        drawn = ax.scatter(xy[known, 0], xy[known, 1], **look_of_amounts)
        if legend:
            ax.figure.colorbar(drawn, ax=ax)
    for number, (name, count) in enumerate(zip(found.names, found.counts, strict=True)):
        here = found.classes == number
        color, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
        drawn = ax.scatter(xy[here, 0], xy[here, 1], color=color, marker=marker, **look)
        entries[f"{name} ({count})"] = drawn
    if not known.all():
        look |= {"color": UNKNOWN, "marker": ".", "zorder": 0}
        drawn = ax.scatter(xy[~known, 0], xy[~known, 1], **look)
        entries[f"no label ({(~known).sum()})"] = drawn
    if len(found.names) > 1:
        _write_names(ax, xy, found)
    if legend and labels is not None and entries:
        # Given by hand, because matplotlib leaves out labels that begin with an underscore.
        beside: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
        written = ax.legend(list(entries.values()), list(entries), frameon=False, **beside)
        plt.setp(written.legend_handles, sizes=[40])
    return ax


def _new_axes() -> Axes:
    shell = get_ipython()
    if shell is not None:
        shell.display_formatter.formatters["image/png"].for_type(_CrispFigure, retina_figure)
    return plt.subplots(figsize=SIZE, layout="constrained", FigureClass=_CrispFigure)[1]


def _read(labels: Any, names: Sequence[str] | None) -> pd.Series:
    """Make a column of labels, by name where there are names; a `datasets` column has its own."""
    values = check_labels(labels, "plot: labels")
    names = names if names is not None else getattr(getattr(labels, "features", 0), "names", None)
    if names is None:
        return pd.Series(values, dtype=object)
    for row, value in enumerate(values):
        if pd.isna(value) or isinstance(value, str):
            continue
        if value != int(value) or not -1 <= value < len(names):
            raise ValueError(
                f"plot: label {value!r} has no name among {len(names)} names; give one for each "
                "class"
            )
        # -1 is how `datasets` writes that there is none.
        values[row] = None if value == -1 else names[int(value)]
    order = dict.fromkeys([*names, *(value for value in values if not pd.isna(value))])
    return pd.Series(values, dtype=pd.CategoricalDtype([*order]))


def _write_names(ax: Axes, xy: NDArray[np.float64], found: Coloring) -> None:
    """Write the name of each class at its densest place, where it is alone and there is room."""
    limits = limits_of(xy)
    scaled = (xy - limits[:, 0]) / (limits[:, 1] - limits[:, 0])
    ax.autoscale_view()
    window, taken = ax.get_window_extent(), list[Any]()
    for number in found.shown[np.argsort(-found.counts[found.shown], kind="stable")]:
        own = scaled[found.classes == number]
        own = own[np.random.default_rng(0).permutation(len(own))[:1000]]
        if len(own) < 10:
            continue
        around = KDTree(own).query_ball_point(own, 0.06)
        densest = max(around, key=len)
        here = own[densest].mean(axis=0)
        near = found.classes[KDTree(scaled).query_ball_point(here, 0.06)]
        if len(densest) < len(own) / 10 or not len(near) or (near == number).mean() < _OWN:
            continue
        x, y = limits[:, 0] + here * (limits[:, 1] - limits[:, 0])
        text = ax.text(
            x, y, cut(found.names[number], 24), ha="center", va="center", fontsize=9,
            fontweight="bold", in_layout=False,
            path_effects=[patheffects.withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip
        box = text.get_window_extent().padded(2)
        inside = box.x0 > window.x0 and box.x1 < window.x1 and box.width < window.width / 3
        if not inside or any(box.overlaps(other) for other in taken):
            text.remove()
        else:
            taken.append(box)


def _draw_panels(ax: Axes, xy: NDArray[np.float64], found: Coloring) -> None:
    """Draw a small map for each class, the most frequent ones: contours before all points."""
    limits, count = limits_of(xy), max(len(found.shown), 1)
    columns = math.ceil(math.sqrt(1.6 * count))
    rows = math.ceil(count / columns)
    for place, number in enumerate(found.shown):
        row, column = divmod(place, columns)
        panel = ax.inset_axes(
            (column / columns, 1 - (row + 1) / rows, 0.94 / columns, 0.84 / rows),
            xticks=[], yticks=[], xlim=limits[0], ylim=limits[1],
        )  # fmt: skip
        panel.spines[:].set_visible(False)
        size = float(np.clip(2000 / len(xy), 1, 9))
        panel.scatter(xy[:, 0], xy[:, 1], s=size, color=UNKNOWN, linewidths=0)
        own = xy[found.classes == number]
        x, y, grid = density(own, limits)
        steps = levels(grid, _SHARES)
        shades = [to_rgba(PALETTE[number % len(PALETTE)], alpha) for alpha in (0.35, 0.6, 0.9)]
        panel.contourf(x, y, grid, levels=[*steps, grid.max() * 1.01], colors=shades)
        if found.names[number]:
            panel.set_title(f"{cut(found.names[number], 24)} ({len(own)})", fontsize=8, pad=2)
