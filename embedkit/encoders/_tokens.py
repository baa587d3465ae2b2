"""What the encoders of texts and of words share: tokens in, batches of hidden states out."""

import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from embedkit.encoders import _packing as packing
from embedkit.encoders._base import Encoder, Model
from embedkit.encoders._batches import MAX_TOKENS, batches
from embedkit.loading import models

Spans = NDArray[np.intp]  # (n, 2): where sequences start and stop among tokens laid end to end

# Texts tokenised and sorted at a time: enough to sort well, few enough to keep memory flat.
CHUNK = 4096
# And letters, so that Ctrl-C need not wait long for the tokenizer.
LETTERS = 500_000
# Texts the tokenizer gets at once: it makes a few lists for each, and the more of them are alive,
# the more often Python's garbage collector goes through all objects of the process.
_AT_ONCE = 256
# On a GPU, small batches would leave most of it idle.
_TOKENS_ON_GPU = 32_768
# Read once by every new encoder, to learn the length of its vectors.
_EXAMPLE = "The old kettle in the kitchen boils slowly, but nobody in Paris has read the novel yet."
# For the lengths a tokenizer gives when it knows of no limit.
_NO_LIMIT = 1_000_000


class TokenEncoder(Encoder):
    """What the encoders of texts and of words share: tokens in, batches of hidden states out."""

    _takes, _tower = "input_ids", "text_model"

    def __init__(
        self,
        model: Model,
        *,
        processor: Any = None,
        max_length: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(model, processor=processor, **settings)
        # A processor for texts and images holds the tokenizer.
        self.processor = getattr(self.processor, "tokenizer", self.processor)
        # What the tokenizer puts before and after every text, seen on the first text it can read.
        for text in (_EXAMPLE, *self.processor.get_vocab()):
            bare = self.processor(text, add_special_tokens=False)["input_ids"]
            if bare:
                break
        whole = self.processor(text, return_token_type_ids=True)
        ids, types = whole["input_ids"], whole.get("token_type_ids")
        start = next(i for i in range(len(ids)) if ids[i : i + len(bare)] == bare)
        stop = start + len(bare)
        self._before, self._after = ids[:start], ids[stop:]
        types = types or [0] * len(ids)
        self._types = types[:start], types[start], types[stop:]
        self._example = np.array(bare, np.int64)
        limit = _length_limit(self._body, self.processor)
        frame = len(self._before) + len(self._after)
        if max_length is not None and not frame < max_length <= limit:
            raise ValueError(
                f"{self._says(max_length=max_length)}: give a number from {frame + 1} to {limit}, "
                "the model's own limit"
            )
        self.max_length = max_length or limit
        self._room = self.max_length - frame
        accepted = inspect.signature(self._body.forward).parameters
        told = {"attention_mask", *self.processor.model_input_names} & accepted.keys()
        self._keys = told & {"input_ids", "attention_mask", "token_type_ids"}
        packing.allow(self._body)
        self._example_spans = self._cut(np.array([[0, len(bare)], [0, (len(bare) + 1) // 2]]))

    def _load_processor(self, name: Any, revision: str | None) -> Any:
        return models.load_tokenizer(name, revision=revision)

    def _tokenize(
        self, texts: list[Any], tokenizer: Any = None
    ) -> tuple[list[Any], NDArray[np.int64], Spans]:
        """Tokenise texts, or lists of words, without special tokens and without a limit.

        Returns what a fast tokenizer knows of each text, all tokens end to end, and each text's
        span of them.
        """
        encodings: list[Any] = []
        ids: list[NDArray[np.int64]] = []
        for start in range(0, len(texts), _AT_ONCE):
            encoded = (tokenizer or self.processor)(
                texts[start : start + _AT_ONCE],
                is_split_into_words=not isinstance(texts[start], str),
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
            encodings += encoded.encodings or []
            ids += [np.array(text_ids, np.int64) for text_ids in encoded["input_ids"]]
        ends = np.cumsum([0, *map(len, ids)])
        return encodings, np.concatenate(ids), np.stack([ends[:-1], ends[1:]], axis=1)

    def _cut(self, spans: Spans) -> Spans:
        """Leave of each span what the model can read at a time."""
        return np.minimum(spans, spans[:, :1] + self._room)

    def _states(
        self, tokens: NDArray[np.int64], spans: Spans, batch_size: int | None = None
    ) -> Iterator[tuple[NDArray[np.intp], Tensor, Tensor]]:
        """Run spans of tokens through the model, special tokens around each, the longest first.

        Yields a batch's indices into `spans`, its hidden states (batch, tokens, dim) and its
        attention mask (batch, tokens).
        """
        lengths = spans[:, 1] - spans[:, 0] + len(self._before) + len(self._after)
        pad = self.processor.pad_token_id
        if pad is None:  # as with GPT-2; the mask hides whatever stands there
            pad = getattr(self._body.config, "pad_token_id", None) or 0
        types_before, type_inside, types_after = self._types
        limit = _TOKENS_ON_GPU if self.device.type == "cuda" else MAX_TOKENS

        def run(rows: NDArray[np.intp]) -> tuple[Tensor, Tensor]:
            # Padding goes to the right: on the left it would shift the positions of a BERT.
            ids = framed(tokens, spans[rows], self._before, self._after, pad)
            mask = (np.arange(ids.shape[1]) < lengths[rows, None]).astype(np.int64)
            inputs = {"input_ids": ids, "attention_mask": mask}
            if "token_type_ids" in self._keys:
                inside = np.broadcast_to(type_inside, tokens.shape)
                type_ids = framed(inside, spans[rows], types_before, types_after, 0)
                inputs["token_type_ids"] = type_ids
            on_device = {
                name: torch.from_numpy(array).to(self.device) for name, array in inputs.items()
            }
            with self._reading():
                hidden = self._hidden({name: on_device[name] for name in self._keys})
            return hidden, on_device["attention_mask"]

        for batch in batches(lengths, max_tokens=limit, batch_size=batch_size):
            for rows, (hidden, mask) in self._in_parts(batch, run, stacklevel=4):
                yield rows, hidden, mask

    def _warn_cut(self, count: int, total: int) -> None:
        if count:
            warnings.warn(
                f"{count} of {total} texts are longer than the {self.max_length} tokens the model "
                "reads, and were cut there; split them to keep all of it",
                stacklevel=3,
            )


def framed(
    tokens: NDArray[Any], spans: Spans, before: list[int], after: list[int], fill: int
) -> NDArray[np.int64]:
    """Lay spans of tokens out as the rows of a batch, each between `before` and `after`."""
    sizes = (spans[:, 1] - spans[:, 0])[:, None]
    place = np.arange(sizes.max() + len(before) + len(after)) - len(before)
    inside = (place >= 0) & (place < sizes)
    framed = np.full(inside.shape, fill, np.int64)
    framed[inside] = tokens[(spans[:, :1] + place)[inside]]
    framed[:, : len(before)] = before
    behind = len(before) + sizes + np.arange(len(after))
    np.put_along_axis(framed, behind, np.array([after], np.int64), axis=1)
    return framed


def _length_limit(model: PreTrainedModel, tokenizer: Any) -> int:
    """Say how many tokens the model can read, special tokens included."""
    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from behind the padding's.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None):
            limits.append(module.num_embeddings - module.padding_idx - 1)
    known = [limit for limit in limits if limit and 0 < limit < _NO_LIMIT]
    return min(known, default=_NO_LIMIT)
