"""The colors of classes and of amounts, the same in figures and in the explorer."""

from html import escape
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex, to_rgb

# Okabe and Ito (2008), "Color Universal Design"; yellow last, as it is faint on white.
PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#000000",
    "#F0E442",
)
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*", "<", ">", "p")
# Of whole numbers, more different ones than this are taken for amounts, not for classes.
_MOST_CLASSES = 24
UNKNOWN = "#999999"
# Darker, then lighter shades follow where the palette ends; black has none.
_HUES = np.array([to_rgb(color) for color in PALETTE if color != "#000000"])
COLORS = (*PALETTE, *map(to_hex, 0.55 * _HUES), *map(to_hex, 0.5 + 0.5 * _HUES))


def coloring(values: pd.Series) -> tuple[np.ndarray, list[str], str, np.ndarray | None]:
    """Choose colors for a column.

    Returns
    -------
    codes, colors, legend, classes
        Per row, which of the colors; the colors; a legend as HTML; and per row the number of its
        class, -1 for none, or None where the values are amounts.
    """
    if pd.api.types.is_float_dtype(values):
        values = values.where(np.isfinite(values.astype(float)))
    known = values.notna().to_numpy()
    colors, codes = [UNKNOWN], np.zeros(len(values), int)
    if are_amounts([each for each in values[known] if not isinstance(each, bool)]):
        amounts = values[known].to_numpy(float)
        low, high = amounts.min(), amounts.max()
        codes[known] = 1 + np.round(254 * (amounts - low) / ((high - low) or 1))
        colors += [to_hex(each) for each in colormaps["cividis"](np.linspace(0, 1, 255))]
        bar = f"background: linear-gradient(to right, {', '.join(colors[1::50])})"
        bar = f"<span style='display: inline-block; width: 12em; height: 0.8em; {bar}'></span>"
        legend = [f"{low:.4g} {bar} {high:.4g}"]
        return codes, colors, _legend(legend, (~known).sum()), None
    counts = values[known].value_counts()
    common = counts[counts > 0].index[: len(COLORS)]
    if isinstance(values.dtype, pd.CategoricalDtype):
        common = [each for each in values.cat.categories if each in common]
    else:
        common = sorted(common, key=lambda each: (str(type(each)), each))
    for number, name in enumerate(common, start=1):
        codes[(values == name).to_numpy()] = number
    colors += COLORS[: len(common)]
    legend = [
        f"<span style='color: {color}'>●</span> {escape(cut(str(name), 40))} ({counts[name]})"
        for name, color in zip(common, colors[1:], strict=True)
    ]
    # Rare values share the grey of the unknown, but not their class.
    classes = np.where(known, pd.factorize(values)[0], -1)
    return codes, colors, _legend(legend, (codes == 0).sum()), classes


def _legend(entries: list[str], others: int) -> str:
    if others:
        entries = [*entries, f"<span style='color: {UNKNOWN}'>●</span> others, or none ({others})"]
    spaced = "</span> <span style='white-space: nowrap; margin-right: 0.8em'>".join(entries)
    return f"<span style='white-space: nowrap; margin-right: 0.8em'>{spaced}</span>"


def are_amounts(values: list[Any]) -> bool:
    """Tell amounts, which get a color scale, from classes, which get a legend."""
    if not values or not all(isinstance(value, int | float | np.number) for value in values):
        return False
    if any(isinstance(value, float | np.floating) and value != int(value) for value in values):
        return True
    return len(set(values)) > _MOST_CLASSES


def cut(text: str, letters: int) -> str:
    """Shorten a text."""
    return text if len(text) <= letters else f"{text[:letters]}…"
