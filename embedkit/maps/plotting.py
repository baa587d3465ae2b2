"""Figures: points in, a matplotlib Axes out.

One size and one palette for all lessons. Colors are Okabe and Ito's, which color-blind readers
tell apart, and every class has a marker shape too.
"""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from embedkit.maps._colors import MARKERS, PALETTE, UNKNOWN, are_amounts

SIZE = (7.0, 4.5)  # inches


def plot(
    points: ArrayLike,
    labels: Any = None,
    *,
    names: Sequence[str] | None = None,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Draw a map of points, colored by label.

    Parameters
    ----------
    points : array of float, shape (n, 2)
        What `project` returned.
    labels : sequence, length n, optional
        Classes as numbers or strings: one color and one marker each, and a legend. Floats are
        amounts: a color scale. None and NaN are drawn grey.
    names : sequence of str, optional
        What numbered classes are called. A `datasets` column brings its names along.
    ax : Axes, optional
        Where to draw; by default a new figure.
    title : str, optional
        Of the plot.

    Returns
    -------
    matplotlib.axes.Axes
        Without ticks: a map's coordinates have no meaning.

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
    try:
        if np.iscomplexobj(points):
            raise TypeError("they are complex")
        xy = np.asarray(points, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"plot takes points (n, 2) of numbers: {error}") from error
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise ValueError(f"plot takes points (n, 2), and got shape {xy.shape}; use project first")
    nowhere = np.flatnonzero(~np.isfinite(xy).all(axis=1))
    if len(nowhere):
        raise ValueError(
            f"plot: {len(nowhere)} of {len(xy)} points are NaN or infinite (the first: row "
            f"{nowhere[0]}); leave them out, and their labels"
        )
    if ax is None:
        _, ax = plt.subplots(figsize=SIZE, layout="constrained")
    ax.set(xticks=[], yticks=[], title=title or "")
    # Many points are drawn small and thin, so that crowds stay readable.
    look: dict[str, Any] = {
        "s": float(np.clip(9000 / max(len(xy), 1), 4, 36)),
        "alpha": 0.8,
        "linewidths": 0,
    }
    if labels is None:
        ax.scatter(xy[:, 0], xy[:, 1], color=PALETTE[0], **look)
        return ax
    if isinstance(labels, str | bytes) or not hasattr(labels, "__iter__"):
        raise TypeError(f"plot: labels is {labels!r}; give a sequence, one label for each point")
    names = names if names is not None else _names(labels)
    values = list(labels)
    if not all(np.isscalar(value) or value is None for value in values):
        raise ValueError("plot: give one label for each point, as a number or a string")
    if names is not None:
        values = [_named(value, names) for value in values]
    if len(values) != len(xy):
        raise ValueError(f"plot: {len(xy)} points but {len(values)} labels")
    known = np.array([value is not None and value == value for value in values], dtype=bool)
    if are_amounts([value for value in values if value is not None and value == value]):
        amounts = np.array(
            [value for value, is_known in zip(values, known, strict=True) if is_known]
        )
        drawn = ax.scatter(xy[known, 0], xy[known, 1], c=amounts, cmap="cividis", **look)
        ax.figure.colorbar(drawn, ax=ax)
    else:
        _classes(ax, xy, values, known, look)
    if not known.all():
        label = f"no label ({(~known).sum()})"
        ax.scatter(
            xy[~known, 0], xy[~known, 1], color=UNKNOWN, marker=".", label=label, zorder=0, **look
        )
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, markerscale=1.5)
    return ax


def _classes(
    ax: Axes,
    xy: np.ndarray,
    values: list[Any],
    known: np.ndarray,
    look: dict[str, Any],
) -> None:
    """Draw each class in its own color and shape, with its count in the legend."""
    numbers = {value for value, is_known in zip(values, known, strict=True) if is_known}
    colors, shapes = cycle(PALETTE), cycle(MARKERS)
    for value in sorted(numbers, key=lambda value: (str(type(value)), value)):
        here = known & np.array([each == value for each in values], dtype=bool)
        ax.scatter(
            xy[here, 0],
            xy[here, 1],
            color=next(colors),
            marker=next(shapes),
            label=f"{value} ({here.sum()})",
            **look,
        )


def _names(labels: Any) -> list[str] | None:
    """Read the names of the classes off a `datasets` column, where it has them."""
    return getattr(getattr(labels, "features", None), "names", None)


def _named(value: Any, names: Sequence[str]) -> Any:
    """Give a numbered class its name; -1 is how `datasets` writes that there is none."""
    if value is None or isinstance(value, str) or value != value or value == -1:
        return None if value == -1 else value
    if value != int(value) or not 0 <= value < len(names):
        raise ValueError(
            f"plot: label {value!r} has no name among {len(names)} names; give one for each class"
        )
    return names[int(value)]
