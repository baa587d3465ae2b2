"""Draw the figures of ideas that no cell of a lesson shows.

``python notebooks/kit/figures.py`` writes ``notebooks/figures/*.png`` and puts each into the
lessons that show it. A lesson carries its pictures as attachments, because Colab opens the notebook
alone, without the folder beside it.
"""

import base64
import re
from pathlib import Path

import matplotlib as mpl
import nbformat
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from nbformat import NotebookNode

import embedkit as ek
from embedkit.maps.plotting import MARKERS, PALETTE

HOME = Path(__file__).resolve().parents[1]
FIGURES = HOME / "figures"
TAKEN, LEFT, WORD = "#E69F00", "#e9edf1", "#56B4E9"
STYLE = {
    "savefig.dpi": 110,
    "font.size": 11,
    "axes.titlesize": 12,
    "hatch.linewidth": 0.8,
}


def block(ax: Axes, x: float, tokens: list[str], taken: dict[int, str], rows: int = 4) -> None:
    """Draw the state of one input, a column per token, in front of another input's."""
    for depth in (1, 0):
        for column in range(len(tokens)):
            colour = taken.get(column, LEFT)
            hatch = "" if colour == LEFT else "//"
            for row in range(rows):
                at = x + column + 0.35 * depth, row + 0.35 * depth
                ax.add_patch(Rectangle(at, 1, 1, fc=colour, ec="black", lw=0.6, hatch=hatch))
    for column, token in enumerate(tokens):
        ax.text(x + column + 0.5, -0.25, token, rotation=90, va="top", ha="center", fontsize=10)


def arrow(ax: Axes, start: float, end: float, text: str) -> None:
    """Draw an arrow to the right, with what it does above it."""
    ax.annotate("", (end, 2.2), (start, 2.2), arrowprops={"arrowstyle": "-|>", "lw": 1.5})
    ax.text((start + end) / 2, 2.5, text, ha="center", va="bottom", fontsize=10)


def pooling() -> None:
    """Show what is taken of a (batch, tokens, hidden) block for each of the three tasks."""
    patches = ["[CLS]", "patch 0", "patch 1", "patch 2", "patch 3"]
    words = ["[CLS]", "st", "##ow", "##bridge", "sleeps", "[SEP]"]
    every = dict.fromkeys(range(5), TAKEN)
    tasks = [
        ("an image: one vector for the whole", patches, every, "mean of\nall tokens", ["image"]),
        ("a text: one vector for the whole", words, {0: TAKEN}, "the first\ntoken", ["text"]),
        (
            "named entities: one vector per word",
            words,
            {1: TAKEN, 2: TAKEN, 3: TAKEN, 4: WORD},
            "mean of each\nword's tokens",
            ["Stowbridge", "sleeps"],
        ),
    ]
    _, axes = plt.subplots(3, 1, figsize=(7, 9.6), layout="constrained")
    for ax, (title, tokens, taken, how, found) in zip(axes, tasks, strict=True):
        block(ax, 0, tokens, taken)
        arrow(ax, len(tokens) + 0.8, 10, how)
        colours = [TAKEN, WORD]
        block(ax, 10.4, found, {i: colours[i] for i in range(len(found))})
        ax.text(-0.3, 2, "hidden", rotation=90, va="center", ha="right", fontsize=10)
        ax.text(0.2, 4.5, "batch", ha="right", fontsize=10)
        ax.set(title=title, xlim=(-1, 13.2), ylim=(-2.6, 4.8), aspect="equal")
        ax.axis("off")


def subwords() -> None:
    """Show how tokens lead back to words, and three ways to make one vector of several."""
    tokens = ["[CLS]", "they", "left", "st", "##ow", "##bridge", "[SEP]"]
    word_ids = [None, 0, 1, 2, 2, 2, None]
    words = {"They": [1], "left": [2], "Stowbridge": [3, 4, 5]}
    _, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
    for column, (token, word_id) in enumerate(zip(tokens, word_ids, strict=True)):
        colour = LEFT if word_id is None else (TAKEN if word_id == 2 else WORD)
        hatch = "" if word_id is None else "//"
        ax.add_patch(Rectangle((column + 0.05, 1), 0.9, 0.6, fc=colour, ec="black", hatch=hatch))
        label = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        ax.text(column + 0.5, 1.3, token, ha="center", va="center", fontsize=10, bbox=label)
        ax.text(column + 0.5, 0.75, str(column), ha="center", fontsize=10)
        ax.text(column + 0.5, 0.4, str(word_id), ha="center", fontsize=10)
    for word, columns in words.items():
        middle = np.mean(columns) + 0.5
        for column in columns:
            ax.plot([column + 0.5, middle], [1.65, 2.3], color="black", lw=1)
        ax.text(middle, 2.4, word, ha="center", fontsize=11, weight="bold")
    for y, name in ((2.45, "words"), (1.25, "tokens"), (0.75, "token_index"), (0.4, "word_ids()")):
        ax.text(-0.15, y, name, ha="right", fontsize=10)
    ways = "one vector for Stowbridge: the first of its three, the last, or their mean"
    ax.text(3.5, -0.1, ways, ha="center", fontsize=10)
    ax.set(xlim=(-1.7, 7.1), ylim=(-0.3, 2.8))
    ax.axis("off")


def umap() -> None:
    """Show a plane beside two UMAP maps of it: neighbours are kept, sizes and gaps are not."""
    random = np.random.default_rng(0)
    centres, widths, count = np.array([[0, 0], [5, 0], [30, 8]]), (0.3, 2, 0.8), 60
    plane = np.concatenate(
        [random.normal(centre, w, (count, 2)) for centre, w in zip(centres, widths, strict=True)]
    ).astype(np.float32)
    group = np.repeat([0, 1, 2], count)
    row = count + 7
    near = np.argsort(np.linalg.norm(plane - plane[row], axis=1))[:6]
    maps = [ek.project(plane, metric="euclidean", seed=seed) for seed in (0, 1)]
    titles = ("the points themselves", "a UMAP map of them", "another, by another seed")
    _, axes = plt.subplots(1, 3, figsize=(10, 3.8), layout="constrained")
    for ax, points, title in zip(axes, [plane, *maps], titles, strict=True):
        for each in range(3):
            where = points[group == each].T
            ax.scatter(*where, s=14, color=PALETTE[each], marker=MARKERS[each], linewidths=0)
        ax.scatter(*points[near].T, s=80, facecolors="none", edgecolors="black", linewidths=1)
        ax.set(title=title, xticks=[], yticks=[], aspect="equal", adjustable="datalim")
    axes[0].set_xlabel("tight, wide, and far away")
    axes[1].set_xlabel("kept: the ringed neighbours")
    axes[2].set_xlabel("not kept: sizes, gaps, places")


def attach(notebook: NotebookNode) -> None:
    """Put each picture that a text shows as ``attachment:NAME`` into its cell."""
    for cell in notebook.cells:
        shown = re.findall(r"\]\(attachment:([\w.]+)\)", cell.source)
        if shown:
            files = {name: next(HOME.glob(f"*s/{name}")) for name in shown}  # figures, images
            cell.attachments = NotebookNode(
                {
                    name: NotebookNode({"image/png": base64.b64encode(file.read_bytes()).decode()})
                    for name, file in files.items()
                }
            )


def main() -> None:
    """Draw all figures, and put them into the lessons."""
    FIGURES.mkdir(exist_ok=True)
    with mpl.rc_context(STYLE):
        for draw in (pooling, subwords, umap):
            draw()
            # Without a version, so that the file changes only with the figure.
            plt.savefig(FIGURES / f"{draw.__name__}.png", metadata={"Software": None})
            plt.close()
    for path in sorted(HOME.glob("[0-9]*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        attach(notebook)
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
