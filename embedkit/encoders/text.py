"""One vector per text."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embedkit import pooling as pooling_functions
from embedkit.encoders._base import Dtype, Model
from embedkit.encoders._batches import check_batch_size
from embedkit.encoders._forward import Combine
from embedkit.encoders._inputs import (
    Faults,
    OnError,
    as_sequence,
    chunks,
    progress_bar,
    text_error,
    warn_not_finite,
)
from embedkit.encoders._machine import Device
from embedkit.encoders._tokens import CHUNK, LETTERS, Spans, TokenEncoder
from embedkit.pooling import Pooling
from embedkit.words import Vectors

TextPooling = Literal["auto", "cls", "last", "max", "mean", "projected"]


class TextEncoder(TokenEncoder):
    """One vector per text.

    Parameters
    ----------
    model : str, path or PreTrainedModel
        A bundled name (``"bundled/all-MiniLM-L6-v2"``), a folder, a Hub id, or a loaded model. Of
        T5 and similar models the encoder is taken, of CLIP and SigLIP the text tower.
    pooling : {"auto", "cls", "last", "max", "mean", "projected"} or function, default="auto"
        How the tokens of a text become one vector. ``"auto"`` is what the model's repository says,
        with the layers it puts behind the pooling; where it says nothing, ``"cls"`` if the model
        has a ``[CLS]`` that sees the text, else ``"last"`` for a causal model and ``"mean"`` for
        others. A pooling that is named is taken alone, without such layers. ``"projected"`` is the
        vector in the space that CLIP and SigLIP share with images. A function takes
        ``(hidden, mask)`` and returns (batch, dim).
    processor : tokenizer, optional
        Needed with a loaded model; otherwise the model's own.
    max_length : int, optional
        Tokens read of a text, special ones included; by default what the repository says, else
        all the model can. What is longer is cut there, with one warning that lists the rows.
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
        Scale every vector to length 1. By default what the repository says if it also decides the
        pooling, else False.
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
        Tokens read of a text.
    name, device, pooling, pooling_reason, normalize, published, commit, facts
        What was loaded, and what was decided; see `embedkit.encoders.Encoder`.

    Raises
    ------
    OSError
        If the model cannot be loaded; the message says why and what to do.
    ValueError
        If a setting is unknown, if the model cannot give it, or if the model gives the same text
        a different vector at each call.

    See Also
    --------
    WordEncoder : one vector per word.
    OpenAIEncoder : from a service.
    embedkit.pooling : the poolings as functions.

    Examples
    --------
    >>> encoder = TextEncoder("bundled/all-MiniLM-L6-v2", pooling="mean")
    >>> encoder.encode(["a kettle", "a novel"]).shape
    (2, 384)
    """

    columns = ("text",)

    def __init__(
        self,
        model: Model,
        *,
        pooling: TextPooling | Pooling = "auto",
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
        self._length_asked = max_length
        super().__init__(
            model, pooling=pooling, processor=processor, layers=layers, combine=combine,
            final_norm=final_norm, dim=dim, normalize=normalize, device=device, dtype=dtype,
            revision=revision, token=token, cache_dir=cache_dir,
            attn_implementation=attn_implementation, model_kwargs=model_kwargs,
        )  # fmt: skip

    def set_up(self) -> None:
        """Read no more of a text than the model's authors do."""
        self._length_published = self.published.max_length
        super().set_up()

    def poolings(self) -> dict[str, Pooling]:
        """List what this model allows: a ``[CLS]`` has to stand first, and to see the rest."""
        known = {**super().poolings(), "last": pooling_functions.last}
        cls_id = self.processor.cls_token_id
        has_cls = cls_id is not None and self._before[:1] == [cls_id]
        if has_cls and not self.facts["causal"]:  # type: ignore[index]
            known["cls"] = pooling_functions.cls
        return known

    def default_pooling(self, allowed: Mapping[str, Pooling]) -> tuple[str, str]:
        """Choose `[CLS]` where the model can give it, else what its architecture allows."""
        if "cls" in allowed:
            return "cls", "default"
        if self.facts["causal"]:  # type: ignore[index]
            return "last", "only the last token sees the whole text"
        return "mean", "the model has no [CLS]"

    def embed_example(self, rows: Sequence[int]) -> list[Vectors]:
        """Embed fixed texts as one batch."""
        found = [np.empty(0, np.float32)] * len(rows)
        for batch, vectors in self._vectors(self._example, self._example_spans[list(rows)]):
            for row, vector in zip(batch, vectors, strict=True):
                found[row] = vector[None]
        return found

    def encode(
        self,
        inputs: Any,
        *,
        prompt: str | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
        out: NDArray[Any] | None = None,
        on_error: OnError = "raise",
    ) -> Vectors:
        """Turn texts into vectors.

        Parameters
        ----------
        inputs : sequence of str
            A list, tuple, array, Series, Arrow array, iterator or `datasets` column. An empty
            string has the vector of the model's special tokens alone.
        prompt : str, optional
            What to put before every text: a name among ``published.prompts``, such as ``"query"``,
            or the text itself. By default the one that the repository names as default, if any;
            ``""`` is none.
        batch_size : int, optional
            Texts per batch; by default batches are filled by tokens. The vectors are the same.
        progress : bool, optional
            Show a progress bar; by default, if the work takes over two seconds.
        out : array of float, shape (n, dim), optional
            Where to write the vectors, as into an `np.memmap` for more than memory holds.
        on_error : {"raise", "skip"}, default="raise"
            What happens to an input that is not a text: it stops the work before it begins, or it
            has NaN for a vector and one warning lists all that do.

        Returns
        -------
        array of float32, shape (n, dim)
            In the order of `inputs`; (0, dim) for none. With `out`, that array.

        Raises
        ------
        TypeError
            If an input is not a text; the message names it.
        ValueError
            If a text holds half a character, if one is empty and the model has no special tokens
            to read instead, if the prompt is unknown, or if `out` does not fit.
        """
        check_batch_size(batch_size)
        faults = Faults(on_error)
        texts = as_sequence(inputs, "texts", single=self.single)
        for start in range(0, len(texts), CHUNK):
            for row, text in enumerate(texts[start : start + CHUNK], start):
                error = text_error(text, f"text {row}")
                if error is not None:
                    faults.add(row, error)
        before = self._prompt_text(prompt)
        # Some models are trained to read the prompt with the text, but to pool the text alone.
        hides = bool(before) and not self.published.include_prompt
        hidden = len(self._tokenize([self.published.as_read(before)])[1]) if hides else 0
        out = self._room_for(len(texts), out)
        cut: list[int] = []
        with progress_bar(len(texts), "text", progress) as bar:
            for start, chunk in chunks(texts, CHUNK, LETTERS):
                known = [row for row in range(len(chunk)) if start + row not in faults.rows]
                bar.update(len(chunk) - len(known))
                if not known:
                    continue
                read = [self.published.as_read(before + chunk[row]) for row in known]
                tokens, spans = self._tokenize(read)[1:]
                at, lengths = start + np.array(known), spans[:, 1] - spans[:, 0]
                if not self._before + self._after:
                    for row in at[lengths == 0].tolist():
                        reason = (
                            f"text {row} ({chunk[row - start][:20]!r}) has no tokens, and this "
                            "model adds no special ones, so it has nothing to read; leave it out"
                        )
                        faults.add(row, ValueError(reason))
                    at, spans, lengths = at[lengths > 0], spans[lengths > 0], lengths[lengths > 0]
                cut += at[lengths > self._room].tolist()
                for rows, vectors in self._vectors(tokens, spans, batch_size, hidden):
                    out[at[rows]] = vectors
                    bar.update(len(rows))
        out[list(faults.rows)] = np.nan
        self._warn_cut(cut, len(texts))
        faults.warn(len(texts))
        warn_not_finite(out, faults.rows, self.model.dtype)
        return out

    def _prompt_text(self, prompt: str | None) -> str:
        """Give the text of a prompt that is named, given as it is, or the repository's default."""
        prompts = self.published.prompts
        if prompt is None:
            return prompts.get(self.published.default_prompt or "", "")
        if prompt in prompts:
            return prompts[prompt]
        if not isinstance(prompt, str) or prompt.isidentifier():
            named = f"has {', '.join(prompts)}" if prompts else "names none"
            raise ValueError(
                f"encode(prompt={prompt!r}): no prompt of that name, the model's repository "
                f"{named}; or give the text itself, such as 'query: '"
            )
        return prompt

    def _vectors(
        self,
        tokens: NDArray[np.int64],
        spans: Spans,
        batch_size: int | None = None,
        hidden_tokens: int = 0,
    ) -> Iterator[tuple[NDArray[np.intp], Vectors]]:
        """Yield rows and their vectors, batch by batch."""
        for rows, hidden, mask in self._states(tokens, self._cut(spans), batch_size):
            if hidden_tokens:
                mask[:, : len(self._before) + hidden_tokens] = 0
            yield rows, self._pooled(hidden, mask)
