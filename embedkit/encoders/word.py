"""One vector per word, or per named entity."""

import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer

from embedkit import pooling
from embedkit.encoders._base import Model, progress_bar
from embedkit.encoders._batches import best_window, windows
from embedkit.encoders._inputs import Faults, OnError, chunks, listed, sentences
from embedkit.encoders._tokens import CHUNK, LETTERS, TokenEncoder, framed
from embedkit.pooling import Subwords
from embedkit.words import Vectors, WordVectors


class WordEncoder(TokenEncoder):
    """One vector per word, each as its sentence makes it mean.

    Parameters
    ----------
    model : str, path or PreTrainedModel
        A bundled name (``"bundled/all-MiniLM-L6-v2"``), a folder, a Hub id, or a loaded model.
    subwords : {"first", "mean", "last"}
        Which of a word's tokens speak for it.
    processor : tokenizer, optional
        Needed with a loaded model; otherwise the model's own. It has to be a fast one.
    max_length : int, optional
        Tokens the model reads at a time, special ones included; by default all it can. A longer
        sentence is read in overlapping windows, and each word is taken from the window in which
        it sees most context.
    layers : int or sequence of int
        Which hidden states; 0 is the embedding output. ``-1`` alone is ``last_hidden_state``.
    combine : {"mean", "concat"}
        What becomes of several layers.
    final_norm : bool
        False takes the last state before the model's final norm, where it has one.
    device : str or torch.device, optional
        By default a CUDA device where there is one, else the CPU.
    dtype : {"float32", "bfloat16", "float16", "auto"}
        Of weights and arithmetic. ``"auto"`` is the quicker of float32 and bfloat16 on this
        machine, as long as the vectors keep their direction (cosine of 0.9995 and more); it says
        which. A loaded model keeps its own.
    normalize : bool
        Scale every vector to length 1.
    revision : str, optional
        A branch, tag or commit on the Hub.

    Raises
    ------
    OSError
        If the model cannot be had; the message says why and what to do.
    ValueError
        If a setting is unknown, or the model cannot give it.

    Examples
    --------
    >>> encoder = WordEncoder("bundled/all-MiniLM-L6-v2")
    >>> words = encoder.encode(["Paris sings", "in Paris"])
    >>> words.word, words.vectors.shape
    (['Paris', 'sings', 'in', 'Paris'], (4, 384))
    """

    _columns = ("tokens", "text")

    def __init__(
        self,
        model: Model,
        *,
        subwords: Subwords = "first",
        processor: Any = None,
        **settings: Any,
    ) -> None:
        if subwords not in ("first", "mean", "last"):
            raise ValueError(
                f"{self._says(subwords=subwords)}: unknown; choose from first, last, mean"
            )
        super().__init__(model, processor=processor, **settings)
        if not self.processor.is_fast:
            raise ValueError(
                f"WordEncoder: {type(self.processor).__name__} is no fast tokenizer, and only "
                "those tell which word a token comes from; choose a model that has one"
            )
        self._subwords = subwords
        self._word_tokenizer = _with_prefix_space(self.processor)
        self._settle()

    def _probe(self) -> Vectors:
        batches = self._states(self._example, self._example_spans)
        return np.concatenate([self._finish(hidden[mask.bool()]) for _, hidden, mask in batches])

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
        on_error : {"raise", "skip"}
            What becomes of a sentence or a word that is no text: it stops the work, or it has one
            row of NaN, whose `word` is empty, and one warning lists all that do.

        Returns
        -------
        WordVectors
            One row per word, in reading order. A word of which the tokenizer leaves nothing
            (zero-width characters) has a row of NaN, and one warning says how many there are.

        Raises
        ------
        TypeError
            If a sentence or a word is no text; the message names it.
        ValueError
            If `out` does not fit.
        """
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
        faults.warn(len(read_as), stacklevel=2)
        lost = lost[~np.isin(sentence[lost], list(faults.rows))]
        if len(lost):
            where = f"sentence {sentence[lost[0]]}, word {position[lost[0]]}"
            warnings.warn(
                f"the tokenizer leaves nothing of {len(lost)} of {len(out)} words (the first: "
                f"{where}); their vectors are NaN",
                stacklevel=2,
            )
        flat = [word for words in read_as for word in words]
        return WordVectors(out, sentence, position, flat)

    def token_states(self, texts: Any, *, progress: bool | None = None) -> list[Vectors]:
        """Give the hidden state of every token, special tokens and sub-words included.

        Parameters
        ----------
        texts : sequence of texts
            Strings, tokenised as they are, or lists of words.
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
        texts = list(listed(texts, "texts", single=(str, bytes)))
        words = sentences(texts, Faults("raise"))
        out: list[Any] = [None] * len(texts)
        cut = 0
        with progress_bar(len(texts), "text", progress) as bar:
            # Lists of words are tokenised as in `encode`, strings as the tokenizer does by itself.
            for as_they_are in (True, False):
                chosen = [
                    row for row, text in enumerate(texts) if isinstance(text, str) is as_they_are
                ]
                if not chosen:
                    continue
                _, tokens, spans = self._tokenize(
                    [texts[row] if as_they_are else words[row] for row in chosen],
                    self.processor if as_they_are else self._word_tokenizer,
                )
                cut += int((spans[:, 1] - spans[:, 0] > self._room).sum())
                for rows, hidden, mask in self._states(tokens, self._cut(spans)):
                    for row, states, count in zip(rows, hidden, mask.sum(dim=1), strict=True):
                        out[chosen[row]] = self._finish(states[:count]).copy()
                    bar.update(len(rows))
        self._warn_cut(cut, len(texts))
        return out

    def _embed_rows(self, rows: Any, on_error: OnError) -> list[Vectors]:
        found = self.encode(rows, progress=False, on_error=on_error)
        counts = np.bincount(found.sentence, minlength=len(rows))
        ends = np.cumsum(counts)
        return [found.vectors[end - count : end] for count, end in zip(counts, ends, strict=True)]

    def _vectors(
        self, sentences: list[list[str]], offsets: NDArray[np.intp], batch_size: int | None
    ) -> Iterator[tuple[NDArray[np.intp], Vectors]]:
        """Yield word numbers, counted over all sentences, and their vectors."""
        encodings, tokens, texts = self._tokenize(sentences, self._word_tokenizer)
        words = np.concatenate(
            [offsets[i] + np.array(each.word_ids, np.intp) for i, each in enumerate(encodings)]
        )
        # Which span each token's state is taken from: where spans overlap, the best for its word.
        source = np.empty_like(tokens)
        spans: list[tuple[int, int]] = []
        for start, stop in texts.tolist():
            pieces = windows(stop - start, self._room) if start < stop else []
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
            ids = framed(words, all_spans[rows], before, after, -1)
            chosen = framed(source, all_spans[rows], before, after, -1) == rows[:, None]
            ids = np.where(chosen, ids, -1)
            vectors = pooling.words(
                hidden, torch.from_numpy(ids).to(hidden.device), subwords=self._subwords
            )
            yield np.unique(ids[ids >= 0]), self._finish(vectors)


def _with_prefix_space(tokenizer: Any) -> Any:
    """Have a GPT-style tokenizer read each word as it stands in running text, after a space."""
    if getattr(tokenizer, "add_prefix_space", True):
        return tokenizer
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder, add_prefix_space=True)
