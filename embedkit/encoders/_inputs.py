"""What may be given to an encoder, and what becomes of a row that cannot be read."""

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from embedkit.images import shown

OnError = Literal["raise", "skip"]

# Reasons that a warning spells out; the rows are all named.
_REASONS = 20


class Faults:
    """Rows that cannot be read: the first one raises or, with ``"skip"``, all are listed at last.

    Parameters
    ----------
    on_error : {"raise", "skip"}

    Attributes
    ----------
    rows : set of int
        Those left out so far.
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

    def warn(self, total: int, *, stacklevel: int) -> None:
        """List what was left out, in one warning; say nothing if nothing was."""
        if not self.rows:
            return
        more = len(self._reasons) - _REASONS
        reasons = [*self._reasons[:_REASONS], *([f"and {more} more"] if more > 0 else [])]
        warnings.warn(
            f"{len(self.rows)} of {total} rows cannot be read and have NaN for a vector "
            f"({ranges(sorted(self.rows))}): {'; '.join(reasons)}",
            stacklevel=stacklevel + 1,
        )


def listed(inputs: Any, what: str, *, single: tuple[type, ...]) -> Sequence[Any]:
    """Make a sequence of what holds inputs in an order, and refuse what does not."""
    if isinstance(inputs, single):
        raise TypeError(f"encode takes a list of {what}, and got a single one; wrap it in a list")
    ordered = hasattr(inputs, "__len__") and hasattr(inputs, "__iter__")
    table = hasattr(inputs, "columns") or hasattr(inputs, "column_names")
    if not ordered or table or isinstance(inputs, set | frozenset | Mapping):
        raise TypeError(
            f"encode takes a list, tuple, array, pandas Series or datasets column of {what}, "
            f"and got {shown(inputs)}"
        )
    # A column of a data set is read piece by piece: it may be larger than memory.
    lazy = type(inputs).__module__.partition(".")[0] == "datasets"
    return inputs if lazy else list(inputs)


def text_fault(text: Any, name: str) -> TypeError | ValueError | None:
    """Say why a text cannot be tokenised; None if it can."""
    if not isinstance(text, str):
        return TypeError(f"{name} is {shown(text)}; it has to be a str")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return ValueError(
                f"{name} has half a character at position {error.start} (a lone surrogate); "
                "mend it with text.encode('utf-8', 'replace').decode()"
            )
    return None


def sentences(inputs: Any, faults: Faults) -> list[list[str]]:
    """Make lists of words of sentences; an empty word stands for what cannot be read."""
    found = []
    for row, sentence in enumerate(listed(inputs, "sentences", single=(str, bytes))):
        if isinstance(sentence, str):
            words: list[Any] = sentence.split()
        elif isinstance(sentence, list | tuple) or getattr(sentence, "ndim", 0) == 1:
            words = list(sentence)
        else:
            kind = shown(sentence)
            reason = f"sentence {row} is {kind}; it has to be a str or a list of words"
            faults.add(row, TypeError(reason))
            words = [""]
        for position, word in enumerate(words):
            fault = text_fault(word, f"sentence {row}, word {position}")
            if fault is not None:
                faults.add(row, fault)
                words[position] = ""
        found.append(words)
    return found


def chunks(texts: Sequence[Any], rows: int, letters: int) -> Iterator[tuple[int, list[Any]]]:
    """Yield the number of a first row, and it with the rows after it, not too many at a time.

    A tokenizer cannot be interrupted, so what it gets at once has to be little: at most so many
    rows and, if there are several, about so many letters.
    """
    for start in range(0, len(texts), rows):
        piece = list(texts[start : start + rows])
        before = itertools.accumulate(len(str(text)) for text in piece)
        groups = itertools.groupby(zip(before, piece, strict=True), lambda each: each[0] // letters)
        for _, group in groups:
            part = [text for _, text in group]
            yield start, part
            start += len(part)


def ranges(rows: list[int]) -> str:
    """Write row numbers shortly: ``rows 3, 7-9``."""
    groups: list[list[int]] = []
    for row in rows:
        if groups and row == groups[-1][1] + 1:
            groups[-1][1] = row
        else:
            groups.append([row, row])
    shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in groups)
    return f"row{'s' if len(rows) > 1 else ''} {shown}"
