"""What may be given to an encoder, and what the caller is told meanwhile: warnings, a bar."""

import itertools
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm.auto import tqdm

from embedkit.images import describe

OnError = Literal["raise", "skip"]

# How many reasons a warning spells out; it lists the rows of all.
_REASONS = 20
_PACKAGE = str(Path(__file__).parents[1])


def warn(message: str) -> None:
    """Warn at the line that called the package: the first one outside it."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def progress_bar(total: int, unit: str, show: bool | None) -> Any:
    """Make a bar: shown always, never, or (None) once the work has taken two seconds."""
    delay = 2 if show is None else 0
    return tqdm(total=total, unit=unit, disable=show is False, delay=delay, leave=bool(show))


class Faults:
    """Rows that cannot be read: the first raises or, with ``"skip"``, one warning lists them all.

    Parameters
    ----------
    on_error : {"raise", "skip"}

    Attributes
    ----------
    rows : set of int
        The rows that were left out so far.
    """

    def __init__(self, on_error: OnError) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r}: unknown; choose from raise, skip")
        self._raises = on_error == "raise"
        self._reasons: list[str] = []
        self.rows: set[int] = set()

    def add(self, row: int, error: Exception) -> None:
        """Raise a row's error, or keep it for the warning."""
        if self._raises:
            raise error
        self.rows.add(row)
        self._reasons.append(str(error))

    def warn(self, total: int) -> None:
        """List what was left out, in one warning; do nothing if nothing was."""
        if not self.rows:
            return
        more = len(self._reasons) - _REASONS
        reasons = [*self._reasons[:_REASONS], *([f"and {more} more"] if more > 0 else [])]
        warn(
            f"{len(self.rows)} of {total} rows cannot be read and have NaN for a vector "
            f"({ranges(self.rows)}): {'; '.join(reasons)}"
        )


def as_sequence(inputs: Any, what: str, *, single: tuple[type, ...]) -> Sequence[Any]:
    """Make a sequence of a container that has an order, and refuse what has none.

    Parameters
    ----------
    inputs : list, tuple, array, Series, Arrow array, `datasets` column or iterator
    what : str
        What it holds, for the error: ``"texts"``.
    single : tuple of types
        A value of one of these is a single input and no container.

    Returns
    -------
    sequence
        A column of a data set as it is: it is read piece by piece and may exceed the memory.
    """
    if isinstance(inputs, single):
        raise TypeError(f"encode takes a list of {what}, and got a single one; wrap it in a list")
    table = hasattr(inputs, "columns") or hasattr(inputs, "column_names")
    unordered = isinstance(inputs, set | frozenset | Mapping)
    if not isinstance(inputs, Iterable) or table or unordered or getattr(inputs, "ndim", 1) == 0:
        raise TypeError(
            f"encode takes a list, tuple, array, pandas Series or datasets column of {what}, "
            f"and got {describe(inputs)}"
        )
    library = type(inputs).__module__.partition(".")[0]
    if library == "datasets":
        return inputs  # type: ignore[return-value]
    # Iterating over these two gives objects of their own in place of str and list.
    to_list = {"pyarrow": "to_pylist", "polars": "to_list"}.get(library)
    return getattr(inputs, to_list)() if to_list else list(inputs)


def text_error(text: Any, name: str) -> TypeError | ValueError | None:
    """Say why a text cannot be tokenized; None if it can be."""
    if not isinstance(text, str):
        return TypeError(f"{name} is {describe(text)}; it has to be a str")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return ValueError(
                f"{name} has half a character at position {error.start} (a lone surrogate); "
                "repair it with text.encode('utf-8', 'replace').decode()"
            )
    return None


def sentences(inputs: Any, faults: Faults) -> list[list[str]]:
    """Make lists of words of sentences; an empty word stands for what cannot be read."""
    found = []
    for row, sentence in enumerate(as_sequence(inputs, "sentences", single=(str, bytes))):
        if isinstance(sentence, str):
            words: list[Any] = sentence.split()
        elif isinstance(sentence, list | tuple) or getattr(sentence, "ndim", 0) == 1:
            words = list(sentence)
        else:
            reason = (
                f"sentence {row} is {describe(sentence)}; it has to be a str or a list of words"
            )
            faults.add(row, TypeError(reason))
            words = [""]
        for position, word in enumerate(words):
            error = text_error(word, f"sentence {row}, word {position}")
            if error is not None:
                faults.add(row, error)
                words[position] = ""
        found.append(words)
    return found


def chunks(texts: Sequence[Any], rows: int, letters: int) -> Iterator[tuple[int, list[Any]]]:
    """Yield the rows in pieces, each with the number of its first row.

    A tokenizer cannot be interrupted, so it gets little at a time: at most so many rows and, if
    there are several, about so many letters.
    """
    for start in range(0, len(texts), rows):
        piece = list(texts[start : start + rows])
        before = itertools.accumulate(len(str(text)) for text in piece)
        groups = itertools.groupby(zip(before, piece, strict=True), lambda each: each[0] // letters)
        for _, group in groups:
            part = [text for _, text in group]
            yield start, part
            start += len(part)


def ranges(rows: Iterable[Any]) -> str:
    """Write row numbers in short: ``rows 3, 7-9``."""
    groups: list[list[int]] = []
    for row in sorted({int(row) for row in rows}):
        if groups and row == groups[-1][1] + 1:
            groups[-1][1] = row
        else:
            groups.append([row, row])
    parts = [str(first) if first == last else f"{first}-{last}" for first, last in groups]
    more = [f"… ({len(parts) - _REASONS} more places)"] if len(parts) > _REASONS else []
    plural = "s" if len(groups) > 1 or (groups and groups[0][0] != groups[0][1]) else ""
    return f"row{plural} {', '.join(parts[:_REASONS] + more)}"


def warn_not_finite(vectors: np.ndarray[Any, Any], left_out: Iterable[int], dtype: Any) -> None:
    """Warn of vectors that hold NaN or infinity though their inputs could be read."""
    wrong = set(np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist()) - set(left_out)
    if wrong:
        warn(
            f"{len(wrong)} of {len(vectors)} vectors hold NaN or infinity ({ranges(wrong)}): the "
            f"model overflows on them in {str(dtype).removeprefix('torch.')}; use dtype='float32', "
            "or 'bfloat16' instead of 'float16'"
        )
