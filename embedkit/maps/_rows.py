"""What stands behind a point of a map: its row in the data, as a table, a thumbnail or a text.

What comes from data is text to be read, never markup: each value passes `escape` on its way into
the HTML made here.
"""

import base64
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import regex
from datasets import Array2D, Array3D, ClassLabel, Dataset, Image
from numpy.typing import NDArray
from PIL.Image import Image as Picture

from embedkit.images import to_rgb as to_picture
from embedkit.maps._colors import cut
from embedkit.words import WordVectors

_PATIENCE = 2  # seconds for a search


@dataclass
class Rows:
    """The data behind the points, row by row.

    Attributes
    ----------
    frame : DataFrame
        Every column but images; labels by name.
    pictures : sequence or None
        The column of images, read one by one: a map of many images opens as fast as one of few.
    text : str or None
        The column of texts.
    words : bool
        Whether a row is a word, or a mention, in the sentence ``frame["tokens"]``.
    """

    frame: pd.DataFrame
    pictures: Any = None
    text: str | None = None
    words: bool = False
    _searched: list[str] | None = None

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.frame)

    def scalars(self) -> list[str]:
        """List the columns that hold one number, string or truth value per row."""
        first = {name: self.frame[name].dropna().head(1) for name in self.frame}
        return [name for name, each in first.items() if all(map(pd.api.types.is_scalar, each))]

    def require(self, names: Sequence[str], among: Sequence[Any], what: str) -> None:
        """Raise ValueError for a name that is not among some columns."""
        for name in names:
            if name not in among:
                known = ", ".join(map(str, among)) or "none"
                raise ValueError(f"{what}={name!r}: choose a column from {known}")

    def numbers(self, rows: Any) -> NDArray[np.intp]:
        """Check row numbers, or turn one truth value for each row into them."""
        wanted = np.asarray(rows, dtype=None if len(np.shape(rows)) else object)
        values = pd.Series(wanted.ravel(), dtype=object)
        # Truth values may come as objects, with None or NA where nothing is known: not chosen.
        known = values[values.notna()]
        if len(known) and all(isinstance(value, bool | np.bool_) for value in known):
            if wanted.shape == (len(self),):
                return np.flatnonzero(values.fillna(False).astype(bool))
        elif wanted.ndim == 1 and np.isin(wanted, range(len(self))).all():
            return wanted.astype(np.intp)
        raise ValueError(
            f"select: give row numbers from 0 to {len(self) - 1}, or one truth value for each row"
        )

    def find(self, pattern: str, is_regex: bool = False) -> list[int]:
        """List the rows whose word, text or values contain a pattern, in any case.

        Raises
        ------
        ValueError
            If it is not a regular expression, or takes longer than `_PATIENCE` seconds.
        """
        if self._searched is None:
            names = ["word"] if self.words else [self.text] if self.text else self.scalars()
            columns = [self.frame[name] for name in names]
            texts = [["" if pd.isna(each) else str(each) for each in column] for column in columns]
            self._searched = ["\n".join(row) for row in zip(*texts, strict=True)]
        try:
            wanted = regex.compile(pattern if is_regex else regex.escape(pattern), regex.IGNORECASE)
            end = time.monotonic() + _PATIENCE
            return [
                row
                for row, text in enumerate(self._searched)
                if wanted.search(text, timeout=max(end - time.monotonic(), 0.001))
            ]
        except TimeoutError as error:
            raise ValueError(
                f"“{pattern}” takes longer than {_PATIENCE} seconds to find; a repeat inside a "
                "repeat does that"
            ) from error
        except (regex.error, OverflowError, MemoryError, RecursionError) as error:
            raise ValueError(f"“{pattern}” is no regular expression: {error}") from error

    def preview(self, row: int, size: int, letters: int) -> str:
        """Show a row as HTML: its image at most `size` pixels wide, its text in so many letters."""
        parts = []
        if self.pictures is not None:
            try:
                style = f"height: {size}px; image-rendering: pixelated"
                parts.append(
                    f"<img src='{_thumbnail(self.pictures, row, size)}' alt='image {row}' "
                    f"style='display: block; max-width: none; {style}'>"
                )
            except (OSError, ValueError) as error:
                parts.append(f"<i>{escape(str(error))}</i>")
        if self.words or self.text:
            before, here, after = map(escape, self._parts(row, letters))
            here = f"<mark>{here}</mark>" if here else ""
            parts.append(f"<span style='white-space: pre-wrap'>{before}{here}{after}</span>")
        return "".join(parts)

    def _parts(self, row: int, letters: int) -> tuple[str, str, str]:
        """Give what stands before a word, the word, and what stands after it; or the text."""
        if not self.words:
            return cut(str(self.frame[self.text].iloc[row]), letters), "", ""
        at = self.frame.iloc[row]
        start = at.get("start", at["position"])
        end = at.get("end", start + 1)
        tokens = [str(each) for each in at["tokens"]]
        before, here, after = map(" ".join, (tokens[:start], tokens[start:end], tokens[end:]))
        # The word stays, whatever is cut.
        before = before if len(before) < letters / 2 else f"…{before[-letters // 2 :]}"
        return f"{before} ", here, f" {cut(after, letters)}"

    def plain(self, row: int, letters: int) -> str:
        """Write the text of a row, a word of it in brackets."""
        before, here, after = self._parts(row, letters)
        return f"{before}[{here}]{after}".strip() if self.words else before

    def thumbnail(self, row: int, size: int) -> str:
        """Make the small image of a row as a data URI, empty where there is none."""
        try:
            return _thumbnail(self.pictures, row, size)
        except (OSError, ValueError):
            return ""

    def facts(self, row: int, names: Sequence[str | None]) -> list[str]:
        """Write each of these columns that exists as a line of HTML; and the row's number."""
        values = {name: self.frame[name].iloc[row] for name in names if name in self.frame}
        lines = [f"<b>{escape(str(n))}</b>: {escape(cut(str(v), 200))}" for n, v in values.items()]
        return [*lines, f"<small>row {row}</small>"]

    def counts(self, rows: Any, name: str) -> str:
        """Write how often the values of a column occur in some rows, the frequent ones."""
        counts = self.frame[name].iloc[rows].value_counts().head(12)
        return ", ".join(f"{escape(cut(str(n), 40))} ({c})" for n, c in counts.items() if c)

    def cards(self, entries: Sequence[tuple[int, str]], name: str | None) -> str:
        """Lay out previews of rows side by side as HTML, each with its value and a note."""
        tiles = self.pictures is not None
        html = []
        for row, note in entries:
            value = "" if name is None else escape(cut(str(self.frame[name].iloc[row]), 40))
            preview, note = self.preview(int(row), 72, 160), f"<small>{note}</small>"
            if tiles:
                html.append(f"<div style='max-width: 8em'>{preview}<b>{value}</b> {note}</div>")
            else:
                html.append(f"<div style='flex-basis: 100%'><b>{value}</b> {preview} {note}</div>")
        style = "display: flex; flex-wrap: wrap; gap: 0.3em 0.8em; margin: 0.3em 0 0.8em"
        return f"<div style='{style}'>{''.join(html)}</div>"


def read(data: Any, words: WordVectors | None = None) -> Rows:
    """Make a table of data, a row for each, or for each word of it."""
    if isinstance(data, Dataset):
        arrays = Image, Array2D, Array3D
        images = [name for name, each in data.features.items() if isinstance(each, arrays)]
        frame = data.with_format(None).remove_columns(images).to_pandas()
        frame = frame if len(frame.columns) else pd.DataFrame(index=range(len(data)))
        for name, feature in data.features.items():
            if isinstance(feature, ClassLabel):
                codes = pd.Series(frame[name]).fillna(-1).astype(int)
                frame[name] = pd.Categorical.from_codes(codes.where(codes >= 0, -1), feature.names)
        if images and isinstance(data.features[images[0]], Image):
            # Opened here, one by one: datasets would follow an address, and open a bomb.
            data = data.cast_column(images[0], Image(decode=False))
        pictures = data.with_format(None)[images[0]] if images else None
    else:
        if isinstance(data, list | tuple | np.ndarray):  # texts, or sentences as lists of words
            strings = all(isinstance(each, str) for each in data)
            data = {"text" if strings else "tokens": list(data)}
        if not isinstance(data, Mapping | pd.DataFrame):
            raise ValueError(
                f"explore takes data as a datasets.Dataset, a DataFrame or a dict of columns, and "
                f"got {type(data).__name__}"
            )
        if any(isinstance(each, Dataset) for each in dict(data).values()):
            raise ValueError(f"explore: data is a dict of splits; choose one of {', '.join(data)}")
        names = [whole(name) for name in data]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"explore: two columns are called {twice[0]!r}; rename one of them")
        try:
            columns = zip(names, data.items(), strict=True)
            frame = pd.DataFrame({name: [*map(whole, column)] for name, (_, column) in columns})
        except ValueError as error:
            sizes = ", ".join(f"{name} {len(column)}" for name, column in data.items())
            raise ValueError(f"explore: the columns of data differ in length: {sizes}") from error
        images = [name for name in frame if _is_picture(frame[name].dropna().head(1))]
        pictures = list(frame[images[0]]) if images else None
        frame = frame.drop(columns=images)
    if words is not None:
        return _of_words(frame, words)
    rows = Rows(frame, pictures)
    first = {name: frame[name].dropna().head(1).tolist() for name in rows.scalars()}
    texts = [name for name, each in first.items() if each and isinstance(each[0], str)]
    texts = [name for name in texts if not isinstance(frame[name].dtype, pd.CategoricalDtype)]
    if "text" in texts:
        rows.text = "text"
    elif texts and pictures is None:
        rows.text = max(texts, key=lambda name: frame[name].astype(str).str.len().mean())
    return rows


def _of_words(frame: pd.DataFrame, words: WordVectors) -> Rows:
    """Give each word or mention its sentence, and what else is known of that."""
    if "tokens" not in frame and "text" in frame:
        frame = frame.assign(tokens=frame["text"].str.split())
    if "tokens" not in frame:
        raise ValueError(
            "explore: for words, data has to hold the sentences they were read from, in a column "
            f"'tokens' or 'text'; it has {', '.join(map(str, frame.columns)) or 'no column'}"
        )
    if len(words) and words.sentence.max() >= len(frame):
        raise ValueError(
            f"explore: the words come from {words.sentence.max() + 1} sentences or more, and data "
            f"has {len(frame)}; give the data that was encoded"
        )
    table = words.to_pandas()
    frame = frame.rename(columns={name: f"{name}_of_sentence" for name in table if name in frame})
    return Rows(table.join(frame, on="sentence"), words=True)


def whole(value: Any) -> Any:
    """Replace half characters, which cannot be written, in a string; other values stay."""
    return regex.sub("[\ud800-\udfff]", "\ufffd", value) if isinstance(value, str) else value


def _is_picture(first: pd.Series) -> bool:
    """Tell images from what else a column may hold, by its first value."""
    arrays = [each for each in first if isinstance(each, np.ndarray)]
    return any(isinstance(each, Picture) for each in first) or any(a.ndim in (2, 3) for a in arrays)


def _thumbnail(pictures: Any, row: int, size: int) -> str:
    """Make a small image that carries its own bytes, as a data URI."""
    image = pictures[row]
    small = to_picture(np.asarray(image) if isinstance(image, list) else image, row)
    small.thumbnail((size, size))
    written = io.BytesIO()
    small.save(written, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}"
