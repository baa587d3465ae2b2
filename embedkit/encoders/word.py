"""One vector per word, or per named entity."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from embedkit import pooling as pooling_functions
from embedkit.encoders._base import Dtype, Model
from embedkit.encoders._batches import best_window, check_batch_size, windows
from embedkit.encoders._forward import Combine
from embedkit.encoders._inputs import (
    Faults,
    OnError,
    as_sequence,
    chunks,
    progress_bar,
    sentences,
    warn,
    warn_not_finite,
)
from embedkit.encoders._machine import Device
from embedkit.encoders._tokens import CHUNK, LETTERS, TokenEncoder, framed, real_states
from embedkit.pooling import Pooling, Subwords
from embedkit.words import Vectors, WordVectors


class WordEncoder(TokenEncoder):
    """One vector per word, each as its sentence makes it mean.

    Parameters
    ----------
    model : str, path or PreTrainedModel
        A bundled name (``"bundled/all-MiniLM-L6-v2"``), a folder, a Hub id, or a loaded model.
    subwords : {"first", "mean", "last"}, default="first"
        Which of a word's tokens give its vector.
    processor : tokenizer, optional
        Needed with a loaded model; otherwise the model's own. It has to be a fast one.
    max_length : int, optional
        Tokens the model reads at a time, special ones included; by default all it can. A longer
        sentence is read in overlapping windows, and each word is taken from the window in which
        it sees most context.
    layers : int or sequence of int, default=-1
        Which hidden states; 0 is the embedding output. ``-1`` alone is ``last_hidden_state``.
    combine : {"mean", "concat"}, default="mean"
        What happens to several layers.
    final_norm : bool, default=True
        False takes the last state before the model's final norm, where it has one.
    dim : int, optional
        Keep only the first so many numbers of each vector, for models that were trained to be cut
        (Matryoshka).
    normalize : bool, optional
        Scale every vector to length 1. By default False.
    device : str, int or torch.device, optional
        By default a GPU where there is one, else the CPU. A number is that of a CUDA device.
    dtype : {"float32", "bfloat16", "float16", "auto"}, default="float32"
        Of weights and arithmetic. ``"auto"`` is the quicker of float32 and bfloat16 on this
        machine, as long as the vectors keep their direction (cosine of 0.9995 and more); it says
        which. A loaded model keeps its own.
    revision : str, optional
        A branch, tag or commit on the Hub.
    token : str or bool, optional
        For private repositories of the Hub; by default the one you are logged in with. It is not
        pickled.
    cache_dir : str or path, optional
        Where downloads are kept; by default the Hub's own cache.
    attn_implementation : str, optional
        How attention is computed, such as ``"eager"``; by default the quickest.
    model_kwargs : mapping, optional
        What else ``from_pretrained`` of the model takes.

    Attributes
    ----------
    model, body : PreTrainedModel
        The whole model, and the part of it that gives hidden states.
    processor : tokenizer
    dim : int
        Length of a vector.
    max_length : int
        Tokens read at a time.
    name, device, normalize, commit, facts
        What was loaded, and what was decided; see `embedkit.encoders.Encoder`.

    Raises
    ------
    OSError
        If the model cannot be loaded; the message says why and what to do.
    ValueError
        If a setting is unknown, or the model cannot give it.

    See Also
    --------
    TextEncoder : one vector per text.
    WordVectors : what comes out.

    Examples
    --------
    >>> encoder = WordEncoder("bundled/all-MiniLM-L6-v2")
    >>> words = encoder.encode(["Paris sings", "in Paris"])
    >>> words.word, words.vectors.shape
    (['Paris', 'sings', 'in', 'Paris'], (4, 384))
    """

    columns = ("tokens", "text")
    features = ""  # a projected vector stands for a whole text

    def __init__(
        self,
        model: Model,
        *,
        subwords: Subwords = "first",
        processor: Any = None,
        max_length: int | None = None,
        layers: int | Sequence[int] = -1,
        combine: Combine = "mean",
        final_norm: bool = True,
        dim: int | None = None,
        normalize: bool | None = None,
        device: Device | None = None,
        dtype: Dtype = "float32",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        attn_implementation: str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if subwords not in ("first", "mean", "last"):
            raise ValueError(
                f"WordEncoder(subwords={subwords!r}): unknown; choose from first, last, mean"
            )
        self._subwords, self._length_asked = subwords, max_length
        super().__init__(
            model, processor=processor, layers=layers, combine=combine, final_norm=final_norm,
            dim=dim, normalize=normalize, device=device, dtype=dtype, revision=revision,
            token=token, cache_dir=cache_dir, attn_implementation=attn_implementation,
            model_kwargs=model_kwargs,
        )  # fmt: skip

    def set_up(self) -> None:
        """Ask for a tokenizer that knows where in a text its tokens come from."""
        super().set_up()
        if not self.processor.is_fast:
            raise ValueError(
                f"WordEncoder: {type(self.processor).__name__} is no fast tokenizer, and only "
                "those tell which word a token comes from; choose a model that has one"
            )
        self._lead = _leading_space(self.processor)

    def _choose_pooling(self, given: str | Pooling, normalize: bool | None) -> None:
        """Pool nothing: what a repository says about whole texts does not hold for words."""
        self.normalize, self._projected = bool(normalize), False

    def embed_example(self, rows: Sequence[int]) -> list[Vectors]:
        """Embed the tokens of fixed texts as one batch."""
        batches = self._states(self._example, self._example_spans[list(rows)])
        found = {row: self._finished(states) for row, states in real_states(batches)}
        return [found[row] for row in range(len(rows))]

    def encode(
        self,
        inputs: Any,
        *,
        batch_size: int | None = None,
        progress: bool | None = None,
        out: NDArray[Any] | None = None,
        on_error: OnError = "raise",
    ) -> WordVectors:
        """Turn every word of every sentence into a vector.

        Parameters
        ----------
        inputs : sequence of sentences
            Each a list of words, or a string, which is split on white space.
        batch_size : int, optional
            Sentences (or windows of them) per batch; by default batches are filled by tokens.
        progress : bool, optional
            Show a progress bar; by default, if the work takes over two seconds.
        out : array of float, shape (words, dim), optional
            Where to write the vectors, as into an `np.memmap` for more than memory holds.
        on_error : {"raise", "skip"}, default="raise"
            What happens to a sentence or a word that is not text: it stops the work, or it has one
            row of NaN, whose `word` is empty, and one warning lists all that do.

        Returns
        -------
        WordVectors
            One row per word, in reading order. A word of which the tokenizer leaves nothing
            (zero-width characters) has a row of NaN, and one warning says how many there are.

        Raises
        ------
        TypeError
            If a sentence or a word is not text; the message names it.
        ValueError
            If `out` does not fit.
        """
        check_batch_size(batch_size)
        faults = Faults(on_error)
        read_as = sentences(inputs, faults)
        sizes = np.array([len(words) for words in read_as], np.intp)
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        out = self._room_for(int(offsets[-1]), out)
        read = np.zeros(len(out), bool)
        with progress_bar(len(out), "word", progress) as bar:
            for start, chunk in chunks(read_as, CHUNK, LETTERS):
                for words, vectors in self._vectors(chunk, offsets[start:], batch_size):
                    out[words] = vectors
                    read[words] = True
                    bar.update(len(words))
        lost = np.flatnonzero(~read)
        out[lost] = np.nan
        sentence = np.repeat(np.arange(len(read_as)), sizes)
        position = np.arange(len(sentence)) - offsets[sentence]
        faults.warn(len(read_as))
        warn_not_finite(out, lost, self.model.dtype)
        lost = lost[~np.isin(sentence[lost], list(faults.rows))]
        if len(lost):
            where = f"sentence {sentence[lost[0]]}, word {position[lost[0]]}"
            warn(
                f"the tokenizer leaves nothing of {len(lost)} of {len(out)} words (the first: "
                f"{where}); their vectors are NaN"
            )
        flat = [word for words in read_as for word in words]
        return WordVectors(out, sentence, position, flat)

    def token_states(self, texts: Any, *, progress: bool | None = None) -> list[Vectors]:
        """Give the hidden state of every token, special tokens and sub-words included.

        Parameters
        ----------
        texts : sequence of texts
            Strings, tokenized as they are, or lists of words.
        progress : bool, optional
            Show a progress bar; by default, if the work takes over two seconds.

        Returns
        -------
        list of array of float32, shape (tokens, dim)
            ``states[ex_index][token_index]`` is one token's vector. A text longer than the model
            is cut, with one warning that says how many were.

        Raises
        ------
        TypeError
            If a text is neither a string nor a list of words.
        """
        texts = as_sequence(texts, "texts", single=self.single)
        words = sentences(texts, Faults("raise"))
        # Strings are tokenized as they are, lists of words as in `encode`.
        given = [
            text if isinstance(text, str) else self._running_text(parts)
            for text, parts in zip(texts, words, strict=True)
        ]
        out: list[Vectors] = []
        cut: list[int] = []
        with progress_bar(len(given), "text", progress) as bar:
            for start, chunk in chunks(given, CHUNK, LETTERS):
                _, tokens, spans = self._tokenize(chunk)
                cut += (start + np.flatnonzero(spans[:, 1] - spans[:, 0] > self._room)).tolist()
                found = {}
                for row, states in real_states(self._states(tokens, self._cut(spans))):
                    found[row] = self._finished(states).copy()
                    bar.update()
                out += [found[row] for row in range(len(chunk))]
        self._warn_cut(cut, len(given))
        return out

    def _running_text(self, words: Sequence[str]) -> str:
        """Join words, so that the tokenizer sees the space before each, which many count in."""
        return self._lead + " ".join(filter(None, words))

    def _embed_rows(self, rows: Any, **options: Any) -> list[Vectors]:
        rows = as_sequence(rows, "sentences", single=self.single)
        found = self.encode(rows, progress=False, **options)
        counts = np.bincount(found.sentence, minlength=len(rows))
        ends = np.cumsum(counts)
        return [found.vectors[end - count : end] for count, end in zip(counts, ends, strict=True)]

    def _vectors(
        self, sentences: list[list[str]], offsets: NDArray[np.intp], batch_size: int | None
    ) -> Iterator[tuple[NDArray[np.intp], Vectors]]:
        """Yield word numbers, counted over all sentences, and their vectors."""
        encodings, tokens, texts = self._tokenize([self._running_text(each) for each in sentences])
        words = np.concatenate(
            [
                start + _word_of_each_token(encoding.offsets, sentence, len(self._lead))
                for start, encoding, sentence in zip(offsets, encodings, sentences, strict=False)
            ]
        )
        # Which span each token's state is taken from: where spans overlap, the best for its word.
        source = np.empty_like(tokens)
        spans: list[tuple[int, int]] = []
        for sentence, (start, stop) in zip(sentences, texts.tolist(), strict=True):
            pieces = windows(stop - start, self._room) if start < stop and any(sentence) else []
            source[start:stop] = len(spans)
            if len(pieces) > 1:
                _, first, of_token = np.unique(
                    words[start:stop], return_index=True, return_inverse=True
                )
                last = np.append(first[1:], stop - start) - 1
                source[start:stop] += best_window(first, last, pieces)[of_token]
            spans += [(start + begin, start + end) for begin, end in pieces]
        if not spans:  # zero-width characters alone
            return
        before, after = [-1] * len(self._before), [-1] * len(self._after)
        all_spans = np.array(spans)
        for rows, hidden, _ in self._states(tokens, all_spans, batch_size):
            ids, sources = (
                framed(each, all_spans[rows], before, after, -1, hidden.shape[1])
                for each in (words, source)
            )
            ids = np.where(sources == rows[:, None], ids, -1)
            vectors = pooling_functions.words(
                hidden, torch.from_numpy(ids).to(hidden.device), subwords=self._subwords
            )
            yield np.unique(ids[ids >= 0]), self._finished(vectors)

    def _described(self) -> dict[str, str]:
        """List settings for the repr."""
        return {
            "subwords": repr(self._subwords),
            "normalize": str(self.normalize),
            "max_length": str(self.max_length),
        }


def _leading_space(tokenizer: Any) -> str:
    """Give what has to stand before a text for its first word to be read like any later one.

    GPT-style tokenizers make other tokens of a word behind a space than of the word alone; no
    attribute of theirs tells, so their tokens are compared.
    """
    for lead in ("", " "):
        ids = tokenizer(f"{lead}kettle kettle", add_special_tokens=False)["input_ids"]
        half = len(ids) // 2
        if ids[:half] == ids[half:]:
            return lead
    return ""


def _word_of_each_token(
    offsets: list[tuple[int, int]], words: Sequence[str], lead: int = 0
) -> NDArray[np.intp]:
    """Say which word each token of a sentence comes from.

    A token that is only a space, or begins with one, belongs to the word behind that space.

    Parameters
    ----------
    offsets : list of (start, stop)
        The characters of each token in the words joined by spaces.
    words : sequence of str
        Empty ones are left out of the joined text.
    lead : int, default=0
        How many characters stand before the first word.

    Returns
    -------
    array of int, shape (tokens,)

    Examples
    --------
    >>> _word_of_each_token([(0, 2), (2, 3), (3, 7)], ["in", "", "Rome"])
    array([0, 2, 2])
    """
    lengths = np.array([len(word) for word in words], np.intp)
    read = np.flatnonzero(lengths)
    places = np.array(offsets, np.intp).reshape(-1, 2) - lead
    if not len(read):
        return np.zeros(len(places), np.intp)
    ends = np.cumsum(lengths[read] + 1) - 1
    last = np.maximum(places[:, 0], places[:, 1] - 1)
    return read[np.searchsorted(ends, last, side="right").clip(max=len(read) - 1)]
