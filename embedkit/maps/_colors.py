"""The colors of classes and of amounts, the same in figures, the explorer and saved maps."""

from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex
from numpy.typing import NDArray

# The first ten are Petroff's (2021, "Accessible Color Sequences for Data Visualization"), in the
# order that keeps the first few apart for color-blind readers. The others were found greedily, by
# the method of Glasbey et al. (2007): each is as far as can be from all before it, from white and
# from the grey of the unknown, in the OKLab space, as seen with and without red or green cones,
# and no darker than can be told from a dark page.
PALETTE = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
    "#1030f8", "#703850", "#e098f8", "#18f888", "#d848b0",
    "#005880", "#386828", "#8860f8", "#a00078", "#28d0a8",
)  # fmt: skip
UNKNOWN = "#dedede"
AMOUNTS = "cividis"
# More different whole numbers than this are taken for amounts, not for classes.
_MOST_CLASSES = 24


@dataclass(frozen=True)
class Coloring:
    """What a column says of each of its rows: a class, or an amount.

    Attributes
    ----------
    classes : array of int, shape (n,)
        The number of each row's class, -1 for none.
    names : list of str
        What the classes are called, in order.
    amounts : array of float, shape (n,), or None
        NaN for none. None where the values are classes.
    """

    classes: NDArray[np.intp]
    names: list[str]
    amounts: NDArray[np.float64] | None = None

    @property
    def counts(self) -> NDArray[np.intp]:
        """Count the rows of each class."""
        return np.bincount(self.classes[self.classes >= 0], minlength=len(self.names))

    @property
    def limits(self) -> tuple[float, float]:
        """Give the lowest and the highest amount."""
        assert self.amounts is not None
        return float(np.nanmin(self.amounts)), float(np.nanmax(self.amounts))

    @property
    def shown(self) -> NDArray[np.intp]:
        """List the classes that have a color of their own: the most frequent ones, in order."""
        return np.sort(np.argsort(-self.counts, kind="stable")[: len(PALETTE)])

    def colors(self) -> tuple[NDArray[np.intp], list[str]]:
        """Give each row the number of its color, 0 for the grey of the others; and the colors."""
        if self.amounts is not None:
            low, high = self.limits
            share = (self.amounts - low) / ((high - low) or 1)
            codes = np.where(np.isnan(share), 0, 1 + np.round(254 * share)).astype(np.intp)
            return codes, [UNKNOWN, *map(to_hex, colormaps[AMOUNTS](np.linspace(0, 1, 255)))]
        codes = np.zeros(len(self.names) + 1, np.intp)  # the last one stands for no class, -1
        codes[self.shown] = 1 + np.arange(len(self.shown))
        return codes[self.classes], [UNKNOWN, *PALETTE[: len(self.shown)]]

    def entries(self) -> list[tuple[int, str, int]]:
        """List the classes in the legend: the number of the color, the name, how many rows."""
        named = [(i, self.names[n], int(self.counts[n])) for i, n in enumerate(self.shown, 1)]
        others = int((self.colors()[0] == 0).sum())
        return [*named, (0, "others, or none", others)] if others else named

    def legend(self) -> str:
        """Write what the colors mean, as HTML."""
        _, colors = self.colors()
        entries = [
            f"<span style='color: {colors[code]}'>●</span> {escape(cut(name, 40))} ({count})"
            for code, name, count in self.entries()
        ]
        if self.amounts is not None:
            bar = f"background: linear-gradient(to right, {', '.join(colors[1::50])})"
            bar = f"<span style='display: inline-block; width: 12em; height: 0.8em; {bar}'></span>"
            entries.insert(0, f"{self.limits[0]:.4g} {bar} {self.limits[1]:.4g}")
        style = "white-space: nowrap; margin-right: 0.8em"
        return " ".join(f"<span style='{style}'>{entry}</span>" for entry in entries)


def coloring(values: pd.Series) -> Coloring:
    """Tell whether a column holds classes, which get a legend, or amounts, which get a scale."""
    known = values.notna().to_numpy()
    given, classes = values[known].tolist(), np.full(len(values), -1, np.intp)
    if _are_amounts(given):
        amounts = np.full(len(values), np.nan)
        amounts[known] = given
        return Coloring(classes, [], np.where(np.isfinite(amounts), amounts, np.nan))
    found = dict.fromkeys(given)
    order = getattr(values.dtype, "categories", None)
    if order is None:
        order = sorted(found, key=lambda each: (str(type(each)), each))
    numbers = {name: number for number, name in enumerate(name for name in order if name in found)}
    classes[known] = [numbers[each] for each in given]
    return Coloring(classes, list(map(str, numbers)))


def _are_amounts(values: list[Any]) -> bool:
    """Tell amounts from classes: numbers with a fraction, or many different ones."""
    kinds = {type(value) for value in values}
    if bool in kinds or not all(issubclass(kind, int | float | np.number) for kind in kinds):
        return False
    different = {value for value in values if np.isfinite(value)}
    fraction = any(value != int(value) for value in different)
    return bool(different) and (fraction or len(different) > _MOST_CLASSES)


def cut(text: str, letters: int) -> str:
    """Shorten a text."""
    return text if len(text) <= letters else f"{text[:letters]}…"
