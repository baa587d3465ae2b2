"""What stands behind a point of a map: its row in the data, as a table, a thumbnail or a text.

What comes from data is text to be read, never markup: each value passes `escape` on its way into
the HTML made here.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from datasets import Array2D, Array3D, ClassLabel, Dataset, Image
from numpy.typing import NDArray
from PIL.Image import Image as Picture

from embedkit.images import to_rgb as to_picture
from embedkit.maps._colors import cut
from embedkit.words import WordVectors


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
                raise ValueError(f"explore({what}={name!r}): choose a column from {known}")

    def numbers(self, rows: Any) -> NDArray[Any]:
        """Check row numbers, or turn one truth value for each row into them."""
        wanted = np.asarray(rows)
        if wanted.dtype == bool:
            wanted = np.flatnonzero(wanted) if wanted.shape == (len(self),) else wanted[None]
        if wanted.ndim != 1 or not np.isin(wanted, range(len(self))).all():
            raise ValueError(
                f"select: give row numbers from 0 to {len(self) - 1}, or one truth value for each "
                "row"
            )
        return wanted

    def find(self, pattern: str, regex: bool = False) -> list[int]:
        """List the rows whose word, text or values contain a pattern, in any case.

        Raises
        ------
        re.error
            If it is no regular expression.
        """
        searched = self.frame[["word"] if self.words else [self.text] if self.text else []]
        if searched.empty:
            searched = self.frame[self.scalars()]
        wanted = re.compile(pattern if regex else re.escape(pattern), re.IGNORECASE)
        texts = searched.astype(str).agg("\n".join, axis=1)
        return [row for row, text in enumerate(texts) if wanted.search(text)]

    def preview(self, row: int, size: int, letters: int) -> str:
        """Show a row as HTML: its image at most `size` pixels wide, its text in so many letters."""
        parts = []
        if self.pictures is not None:
            parts.append(_thumbnail(self.pictures, row, size))
        if self.words:
            at = self.frame.iloc[row]
            start = at.get("start", at["position"])
            end = at.get("end", start + 1)
            before, here, after = (
                " ".join(map(str, at["tokens"][part]))
                for part in (slice(start), slice(start, end), slice(end, None))
            )
            # The word stays, whatever is cut.
            before = before if len(before) < letters / 2 else f"…{before[-letters // 2 :]}"
            marked = f"{escape(before)} <mark>{escape(here)}</mark> {escape(cut(after, letters))}"
            parts.append(f"<span style='white-space: pre-wrap'>{marked}</span>")
        elif self.text:
            text = escape(cut(str(self.frame[self.text].iloc[row]), letters))
            parts.append(f"<span style='white-space: pre-wrap'>{text}</span>")
        return "".join(parts)

    def facts(self, row: int, names: Sequence[str | None]) -> list[str]:
        """Write each of these columns, where there is one, as a line of HTML; and the row."""
        values = {name: self.frame[name].iloc[row] for name in names if name in self.frame}
        lines = [f"<b>{escape(str(n))}</b>: {escape(cut(str(v), 200))}" for n, v in values.items()]
        return [*lines, f"<small>row {row}</small>"]

    def counts(self, rows: Any, name: str) -> str:
        """Write how often the values of a column occur in some rows, the frequent ones."""
        counts = self.frame[name].iloc[rows].value_counts().head(12)
        return ", ".join(f"{escape(cut(str(n), 40))} ({c})" for n, c in counts.items() if c)

    def cards(self, entries: Sequence[tuple[int, str]], name: str | None) -> str:
        """Set previews of rows beside each other as HTML, each with its value and a note."""
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
        try:
            frame = pd.DataFrame({name: list(column) for name, column in data.items()})
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


def _is_picture(first: pd.Series) -> bool:
    """Tell images from what else a column may hold, by its first value."""
    arrays = [each for each in first if isinstance(each, np.ndarray)]
    return any(isinstance(each, Picture) for each in first) or any(a.ndim in (2, 3) for a in arrays)


def _thumbnail(pictures: Any, row: int, size: int) -> str:
    """Make a small image that carries its own bytes; or the reason why there is none."""
    try:
        image = pictures[row]
        small = to_picture(np.asarray(image) if isinstance(image, list) else image, row)
    except (OSError, ValueError) as error:
        return f"<i>{escape(str(error))}</i>"
    small.thumbnail((size, size))
    written = io.BytesIO()
    small.save(written, "JPEG", quality=88)
    code = base64.b64encode(written.getvalue()).decode()
    return (
        f"<img src='data:image/jpeg;base64,{code}' alt='image {row}' style='display: block; "
        f"max-width: none; height: {size}px; image-rendering: pixelated'>"
    )
