"""Batching by length, where all lengths are known at once, and by shape, as inputs arrive.

Padding is wasted work, so inputs of similar length go together, and a batch is filled by tokens and
not by rows. Nothing here changes a result: with a mask, a vector depends on its input alone.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

T = TypeVar("T")

# About what stays in a laptop's cache while it passes through a layer; larger batches are slower.
MAX_TOKENS = 2048


def check_batch_size(batch_size: int | None) -> None:
    """Refuse what is neither a positive whole number nor None."""
    if batch_size is not None and (not isinstance(batch_size, int | np.integer) or batch_size < 1):
        raise ValueError(f"batch_size={batch_size!r}: give a whole number of 1 or more, or None")


def by_length(
    lengths: ArrayLike,
    *,
    max_tokens: int = MAX_TOKENS,
    batch_size: int | None = None,
    equal: bool = False,
) -> Iterator[NDArray[np.intp]]:
    """Group inputs of similar length, the longest first.

    Longest first, because memory then peaks at once and not at the end.

    Parameters
    ----------
    lengths : array of int, shape (n,)
        Tokens per input.
    max_tokens : int, default=2048
        The most tokens a batch holds, padding included. An input longer than this is a batch of
        its own.
    batch_size : int, optional
        Rows per batch, which takes the place of `max_tokens`.
    equal : bool, default=False
        Put only inputs of the very same length together, for models that padding disturbs.

    Yields
    ------
    array of int, shape (rows,)
        Indices into `lengths`. Each input comes exactly once.

    Examples
    --------
    >>> [batch.tolist() for batch in by_length([3, 9, 4], max_tokens=10)]
    [[1], [2, 0]]
    """
    lengths = np.asarray(lengths, dtype=np.intp)
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        # The first of a sorted batch is its longest, so it sets the width of all.
        width = int(lengths[order[start]])
        stop = start + (batch_size or max(1, max_tokens // max(1, width)))
        if equal:
            stop = start + int((lengths[order[start:stop]] == width).sum())
        yield order[start:stop]
        start = stop


def by_shape(
    inputs: Iterable[tuple[int, T]],
    shape: Callable[[T], Hashable],
    size: Callable[[T], int],
    *,
    most: int,
    waiting: int,
    batch_size: int | None = None,
) -> Iterator[list[tuple[int, T]]]:
    """Group inputs of one shape as they arrive, and let only so much of them wait.

    Parameters
    ----------
    inputs : iterable of (row, input)
    shape : callable
        Inputs of which it gives the same value may share a batch.
    size : callable
        How many numbers an input holds.
    most : int
        The most numbers in a batch, unless a single input holds more.
    waiting : int
        The most numbers that wait in all groups together; then the largest group goes first.
    batch_size : int, optional
        Rows per batch, which takes the place of `most`.

    Yields
    ------
    list of (row, input)

    Examples
    --------
    >>> rows = enumerate(["ab", "c", "de", "fg"])
    >>> [[row for row, _ in batch] for batch in by_shape(rows, len, len, most=4, waiting=9)]
    [[0, 2], [1], [3]]
    """
    groups: dict[Hashable, list[tuple[int, T]]] = {}
    sums: dict[Hashable, int] = {}
    longest: dict[Hashable, int] = {}
    for row, each in inputs:
        key, numbers = shape(each), size(each)
        groups.setdefault(key, []).append((row, each))
        sums[key] = sums.get(key, 0) + numbers
        longest[key] = max(longest.get(key, 1), numbers)
        full = len(groups[key]) >= (batch_size or max(1, most // longest[key]))
        if full or sum(sums.values()) > waiting:
            key = key if full else max(sums, key=lambda each: sums[each])
            del sums[key], longest[key]
            yield groups.pop(key)
    yield from groups.values()


def windows(length: int, size: int) -> list[tuple[int, int]]:
    """Cover a sequence with windows that overlap by half.

    Use it for what is longer than a model can read: every place but the two ends then stands well
    inside some window, with context on both sides.

    Parameters
    ----------
    length : int
        Tokens in the sequence.
    size : int
        The most tokens a window holds.

    Returns
    -------
    list of (start, stop)
        In order. The last window is moved left to end with the sequence.

    Examples
    --------
    >>> windows(10, 4)
    [(0, 4), (2, 6), (4, 8), (6, 10)]
    >>> windows(3, 4)
    [(0, 3)]
    """
    if length <= size:
        return [(0, length)]
    step = max(1, size // 2)
    starts = [*range(0, length - size, step), length - size]
    return [(start, start + size) for start in starts]


def best_window(
    first: NDArray[np.intp], last: NDArray[np.intp], spans: list[tuple[int, int]]
) -> NDArray[np.intp]:
    """Choose for each word the window that holds most of it and, of these, shows most context.

    Parameters
    ----------
    first, last : array of int, shape (words,)
        Positions of each word's first and last token in the sequence.
    spans : list of (start, stop)
        What `windows` returned.

    Returns
    -------
    array of int, shape (words,)
        Indices into `spans`.

    Examples
    --------
    >>> best_window(np.array([0, 5]), np.array([0, 5]), windows(10, 4))
    array([0, 2])
    """
    spans_array = np.array(spans)
    starts, stops = spans_array[:, 0], spans_array[:, 1]
    # Only the few windows that start about half a window before the word can be its best.
    middle = (first + last) // 2 - (stops[0] - starts[0]) // 2
    nearest = np.searchsorted(starts, middle)[:, None] + np.arange(-2, 3)
    candidates = nearest.clip(0, len(spans) - 1)
    start, stop = starts[candidates], stops[candidates]
    first, last = first[:, None], last[:, None]
    # A word longer than a window is cut by every one it touches.
    held = np.minimum(last + 1, stop) - np.maximum(first, start)
    context = np.minimum(first - start, stop - 1 - last)
    best = np.lexsort((context, held), axis=1)[:, -1:]
    return np.take_along_axis(candidates, best, axis=1)[:, 0]
