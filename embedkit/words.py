"""Word vectors with their places in the sentences, and the mentions that tags make of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

Vectors = NDArray[np.float32]


@dataclass(eq=False)
class WordVectors:
    """Vectors of words, or of the mentions made of them, in reading order.

    Attributes
    ----------
    vectors : array of float32, shape (n, dim)
    sentence : array of int, shape (n,)
        Which sentence.
    position : array of int, shape (n,)
        Which word of that sentence; of a mention, its first.
    word : list of str, length n
        The word; of a mention, its words joined by spaces.
    label, start, end : list of str, arrays of int, shape (n,); None for plain words
        A mention's type, its first word, and the word after its last.
    """

    vectors: Vectors
    sentence: NDArray[np.intp]
    position: NDArray[np.intp]
    word: list[str]
    label: list[str] | None = None
    start: NDArray[np.intp] | None = None
    end: NDArray[np.intp] | None = None

    def __len__(self) -> int:
        """Count the words or mentions."""
        return len(self.word)

    def to_pandas(self) -> "pd.DataFrame":
        """Make a table of everything but the vectors, one row per word or mention.

        Returns
        -------
        DataFrame
            Row i belongs to ``vectors[i]``.
        """
        import pandas as pd

        columns = ("sentence", "position", "word", "label", "start", "end")
        values = {name: getattr(self, name) for name in columns}
        return pd.DataFrame({name: value for name, value in values.items() if value is not None})

    def entities(self, tags: Any, names: Sequence[str] | None = None) -> "WordVectors":
        """Average the words of each mention that BIO tags mark.

        Parameters
        ----------
        tags : sequence of sequences of str or int
            One tag per word of each sentence: ``"B-PER"``, ``"I-PER"``, ``"O"``, or numbers that
            `names` spells out. A `datasets` column brings its names along.
        names : sequence of str, optional
            The tags that the numbers stand for.

        Returns
        -------
        WordVectors
            One row per mention, with `label`, `start` and `end`. An ``I-`` that continues nothing
            begins a mention, as in the CoNLL scorer. A word without a vector (NaN) is left out of
            the average.

        Raises
        ------
        ValueError
            If a sentence has more or fewer tags than words, or a tag is not BIO.
        """
        names = names if names is not None else _tag_names(tags)
        sizes = np.bincount(self.sentence, minlength=len(tags))
        if len(sizes) > len(tags):
            raise ValueError(f"{len(sizes)} sentences but tags for {len(tags)}; give one list each")
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        mentions = []
        for sentence, row in enumerate(tags):
            spelled = [_spell(tag, names) for tag in ([] if row is None else row)]
            unread = sizes[sentence] == 1 and not self.word[offsets[sentence]]
            if unread and not spelled:  # what `on_error="skip"` leaves of an unreadable sentence
                continue
            if len(spelled) != sizes[sentence]:
                raise ValueError(
                    f"sentence {sentence} has {sizes[sentence]} words but {len(spelled)} tags; "
                    "give one tag per word"
                )
            mentions += [(sentence, *span) for span in _bio_spans(spelled)]
        spans = [slice(offsets[row] + start, offsets[row] + end) for row, start, end, _ in mentions]
        vectors = [_mean_of_known(self.vectors[span]) for span in spans]
        columns = list(zip(*mentions, strict=True)) or [(), (), (), ()]
        starts = np.array(columns[1], np.intp)
        return WordVectors(
            vectors=np.array(vectors, np.float32).reshape(len(spans), self.vectors.shape[1]),
            sentence=np.array(columns[0], np.intp),
            position=starts,
            word=[" ".join(self.word[span]) for span in spans],
            label=list(columns[3]),
            start=starts,
            end=np.array(columns[2], np.intp),
        )


def _tag_names(tags: Any) -> list[str] | None:
    """Read the tags' names off a `datasets` column, where it has them."""
    feature = getattr(tags, "features", None)
    return getattr(getattr(feature, "feature", None), "names", None)


def _spell(tag: Any, names: Sequence[str] | None) -> str:
    """Give a tag its name, and check that it is a BIO tag."""
    if isinstance(tag, int | np.integer):
        if names is None or not 0 <= tag < len(names):
            raise ValueError(f"tag {tag} has no name; pass `names`, one for each number")
        tag = names[int(tag)]
    if not isinstance(tag, str) or (tag != "O" and tag[:2] not in ("B-", "I-")):
        raise ValueError(f"tag {tag!r} is not BIO; use 'O', 'B-…' or 'I-…'")
    return tag


def _bio_spans(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """Read (start, end, label) of every mention off BIO tags."""
    spans: list[tuple[int, int, str]] = []
    for position, tag in enumerate(tags):
        kind, label = tag[:1], tag[2:]
        if kind == "I" and spans and spans[-1][1:] == (position, label):
            spans[-1] = (spans[-1][0], position + 1, label)
        elif kind != "O":
            spans.append((position, position + 1, label))
    return spans


def _mean_of_known(vectors: Vectors) -> Vectors:
    """Average the rows that are not NaN; NaN where all are."""
    known = vectors[~np.isnan(vectors).any(axis=1)]
    return known.mean(axis=0) if len(known) else np.full(vectors.shape[1], np.nan, np.float32)
