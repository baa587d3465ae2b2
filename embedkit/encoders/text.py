"""One vector per text."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from embedkit import pooling
from embedkit.encoders._base import Model, progress_bar
from embedkit.encoders._inputs import Faults, OnError, chunks, listed, text_fault
from embedkit.encoders._tokens import CHUNK, LETTERS, Spans, TokenEncoder
from embedkit.pooling import Pooling
from embedkit.words import Vectors


class TextEncoder(TokenEncoder):
    """One vector per text.

    Parameters
    ----------
    model : str, path or PreTrainedModel
        A bundled name (``"bundled/all-MiniLM-L6-v2"``), a folder, a Hub id, or a loaded model. Of
        T5 and its kin the encoder is taken, of CLIP the text tower.
    pooling : {"cls", "last", "max", "mean"} or function
        How the tokens of a text become one vector. A function takes ``(hidden, mask)`` and returns
        (batch, dim).
    processor : tokenizer, optional
        Needed with a loaded model; otherwise the model's own.
    max_length : int, optional
        Tokens read of a text, special ones included; by default all the model can. What is longer
        is cut there, with one warning that says how many texts were.
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
    >>> encoder = TextEncoder("bundled/all-MiniLM-L6-v2", pooling="mean")
    >>> encoder.encode(["a kettle", "a novel"]).shape
    (2, 384)
    """

    _columns = ("text",)

    def __init__(
        self,
        model: Model,
        *,
        pooling: str | Pooling = "cls",
        processor: Any = None,
        **settings: Any,
    ) -> None:
        super().__init__(model, processor=processor, **settings)
        self._pooling = self._pooling_function(pooling, self._poolings())
        self._settle()

    def _probe(self) -> Vectors:
        batches = self._vectors(self._example, self._example_spans)
        return np.concatenate([vectors for _, vectors in batches])

    def _poolings(self) -> dict[str, Pooling]:
        """List what this model allows: a ``[CLS]`` has to stand first, and to see the rest."""
        known: dict[str, Pooling] = {
            "last": pooling.last,
            "max": pooling.max,
            "mean": pooling.mean,
        }
        cls_id = self.processor.cls_token_id
        if cls_id is None or self._before[:1] != [cls_id]:
            return known
        with self._reading():
            pair = torch.tensor([[cls_id, 1], [cls_id, 2]], device=self.device)
            first = self._body(input_ids=pair).last_hidden_state[:, 0].float()
        # In a causal model the first token is blind to the second, whatever that is.
        blind = torch.allclose(first[0], first[1], rtol=0, atol=1e-6)
        return known if blind else {"cls": pooling.cls, **known}

    def encode(
        self,
        inputs: Any,
        *,
        batch_size: int | None = None,
        progress: bool | None = None,
        out: NDArray[Any] | None = None,
        on_error: OnError = "raise",
    ) -> Vectors:
        """Turn texts into vectors.

        Parameters
        ----------
        inputs : sequence of str
            A list, tuple, array, pandas Series or `datasets` column. An empty string has the
            vector of the model's special tokens alone.
        batch_size : int, optional
            Texts per batch; by default batches are filled by tokens. The vectors are the same.
        progress : bool, optional
            Show a progress bar; by default, if the work takes over two seconds.
        out : array of float, shape (n, dim), optional
            Where to write the vectors, as into an `np.memmap` for more than memory holds.
        on_error : {"raise", "skip"}
            What becomes of an input that is no text: it stops the work before it begins, or it
            has NaN for a vector and one warning lists all that do.

        Returns
        -------
        array of float32, shape (n, dim)
            In the order of `inputs`; (0, dim) for none. With `out`, that array.

        Raises
        ------
        TypeError
            If an input is no text; the message names it.
        ValueError
            If a text holds half a character, if one is empty and the model has no special tokens
            to read instead, or if `out` does not fit.
        """
        faults = Faults(on_error)
        texts = listed(inputs, "texts", single=(str, bytes))
        for start in range(0, len(texts), CHUNK):
            for row, text in enumerate(texts[start : start + CHUNK], start):
                fault = text_fault(text, f"text {row}")
                if fault is not None:
                    faults.add(row, fault)
        out = self._room_for(len(texts), out)
        cut = 0
        with progress_bar(len(texts), "text", progress) as bar:
            for start, chunk in chunks(texts, CHUNK, LETTERS):
                known = [row for row in range(len(chunk)) if start + row not in faults.rows]
                out[start : start + len(chunk)] = np.nan
                bar.update(len(chunk) - len(known))
                if not known:
                    continue
                tokens, spans = self._tokenize([chunk[row] for row in known])[1:]
                at, lengths = start + np.array(known), spans[:, 1] - spans[:, 0]
                if not self._before + self._after:
                    for row in at[lengths == 0]:
                        reason = (
                            f"text {row} ({chunk[row - start][:20]!r}) has no tokens, and this "
                            "model adds no special ones, so it has nothing to read; leave it out"
                        )
                        faults.add(int(row), ValueError(reason))
                    at, spans = at[lengths > 0], spans[lengths > 0]
                cut += int((lengths > self._room).sum())
                for rows, vectors in self._vectors(tokens, spans, batch_size):
                    out[at[rows]] = vectors
                    bar.update(len(rows))
        self._warn_cut(cut, len(texts))
        faults.warn(len(texts), stacklevel=2)
        return out

    def _vectors(
        self, tokens: NDArray[np.int64], spans: Spans, batch_size: int | None = None
    ) -> Iterator[tuple[NDArray[np.intp], Vectors]]:
        """Yield rows and their vectors, batch by batch."""
        for rows, hidden, mask in self._states(tokens, self._cut(spans), batch_size):
            yield rows, self._pool(self._pooling, hidden, mask)
