"""What the encoders of texts and of words share: tokens in, batches of hidden states out."""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedkit.encoders._base import Encoder
from embedkit.encoders._batches import MAX_TOKENS, by_length
from embedkit.encoders._forward import call, reading
from embedkit.encoders._inputs import ranges, warn
from embedkit.loading.models import vocabulary_size

Spans = NDArray[np.intp]  # (n, 2): where sequences start and stop among tokens laid end to end

# Texts tokenized and sorted at a time: enough to sort well, few enough to keep memory flat.
CHUNK = 4096
# And letters, so that Ctrl-C need not wait long for the tokenizer.
LETTERS = 500_000
# Texts the tokenizer gets at once: it makes a few lists for each, and the more of them are alive,
# the more often Python's garbage collector goes through all objects of the process.
_AT_ONCE = 256
# On a GPU, small batches would leave most of it idle.
_TOKENS_ON_GPU = 32_768
# A sentence that every new encoder reads once, to try its model.
_EXAMPLE = "The old kettle in the kitchen boils slowly, but nobody in Paris has read the novel yet."
# Tokenizers that know of no limit give lengths above this.
_NO_LIMIT = 1_000_000


class TokenEncoder(Encoder):
    """The base of encoders whose inputs a tokenizer reads.

    It finds out what the tokenizer puts around a text and how much the model can read, fills
    batches by tokens, longest texts first, and yields hidden states. A subclass writes `encode`
    and `embed_example` on top of `_tokenize` and `_states`, and may override `poolings` and
    `default_pooling`.

    See Also
    --------
    embedkit.TextEncoder, embedkit.WordEncoder
    """

    kind, reads, unit = "text", ("input_ids",), "text"
    tower, features = "text_model", "get_text_features"
    pads = True

    max_length: int
    """How many tokens are read at a time, special ones included."""
    _length_asked: int | None = None
    _length_published: int | None = None

    def set_up(self) -> None:
        """Learn the frame around a text, the limits, and the inputs that the model takes."""
        # A processor for texts and images holds the tokenizer.
        self.processor = getattr(self.processor, "tokenizer", self.processor)
        # What the tokenizer puts before and after every text, seen on the first text it can read.
        for text in (_EXAMPLE, *self.processor.get_vocab()):
            bare = self.processor(text, add_special_tokens=False)["input_ids"]
            if bare:
                break
        whole = self.processor(text, return_token_type_ids=True)
        ids, types = whole["input_ids"], whole.get("token_type_ids")
        found = (i for i in range(len(ids)) if ids[i : i + len(bare)] == bare)
        start = next(found, None)
        if start is None:
            raise ValueError(
                f"{type(self).__name__}: the tokenizer reads {text[:30]!r} differently when it "
                "adds special tokens, so they cannot be told from the text; pass another one as "
                "`processor=`"
            )
        stop = start + len(bare)
        self._before, self._after = ids[:start], ids[stop:]
        types = types or [0] * len(ids)
        self._types = types[:start], types[start], types[stop:]
        self._example = np.array(bare, np.int64)
        self._set_length(_length_limit(self.body, self.processor))
        self._example_spans = self._cut(np.array([[0, (len(bare) + 1) // 2], [0, len(bare)]]))
        accepted = inspect.signature(self.body.forward).parameters
        told = {"attention_mask", *self.processor.model_input_names} & accepted.keys()
        self._keys = told & {"input_ids", "attention_mask", "token_type_ids"}
        # Decoders would keep gigabytes of keys and values, which are not used here.
        self._switches = {"use_cache": False} if "use_cache" in accepted else {}
        self._vocabulary = vocabulary_size(self.body)
        pad = self.processor.pad_token_id
        if pad is None or pad >= (self._vocabulary or _NO_LIMIT):
            # GPT-2 has none; the mask hides whatever stands there.
            pad = getattr(self.body.config, "pad_token_id", None) or 0
        self._pad = pad

    def _set_length(self, limit: int) -> None:
        """Decide how many tokens are read: the caller, the repository or the model says."""
        frame, asked = len(self._before) + len(self._after), self._length_asked
        if asked is not None and not frame < asked <= limit:
            raise ValueError(
                f"{type(self).__name__}(max_length={asked}): give a number from {frame + 1} to "
                f"{limit}, the model's own limit"
            )
        self.max_length = asked or min(self._length_published or limit, limit)
        self._room = self.max_length - frame

    def look(self) -> dict[str, Any]:
        """Find out whether the first token sees the others, and whether texts fill a fixed length.

        A model such as SigLIP reads its vector off the last place, whatever stands there, so it was
        trained on texts padded to full length, without a mask.
        """
        part, whole = self._example_spans[:1], self._example_spans[1:]
        inputs, _ = self._inputs(self._example, whole)
        changed = inputs["input_ids"].clone()
        last = changed.shape[1] - len(self._after) - 1
        changed[0, last] += 1 if changed[0, last] == 0 else -1
        nothing = np.array([[0, 0 if self._before + self._after else 1]])
        variants = [
            inputs,
            {**inputs, "input_ids": changed},
            self._inputs(self._example, part)[0],
            self._inputs(self._example, part, width=changed.shape[1])[0],
            self._inputs(self._example, nothing)[0],
        ]
        owner = type(self).__name__
        with reading(self.model):
            seen, other, alone, padded, _ = (call(owner, self.body, each) for each in variants)
        state = getattr(seen, "last_hidden_state", None)
        if state is None or state.shape[:2] != changed.shape:
            shape = None if state is None else tuple(state.shape)
            raise ValueError(
                f"{owner}: {type(self.body).__name__} gives a last hidden state of shape {shape} "
                f"for {changed.shape[1]} tokens, not one for each token; choose another model"
            )
        short, long = alone.last_hidden_state, padded.last_hidden_state
        vector, other_vector = (getattr(each, "pooler_output", None) for each in (alone, padded))
        fixed = (
            isinstance(vector, Tensor)
            and isinstance(other_vector, Tensor)
            and torch.allclose(short, long[:, : short.shape[1]], rtol=0, atol=1e-3)
            and not torch.allclose(vector, other_vector, rtol=0, atol=1e-3)
        )
        blind = torch.allclose(state[0, 0], other.last_hidden_state[0, 0], rtol=0, atol=1e-6)
        return {"causal": blind, "full_length": fixed}

    def _tokenize(self, texts: list[str]) -> tuple[list[Any], NDArray[np.int64], Spans]:
        """Tokenize texts without special tokens and without a limit.

        Returns what a fast tokenizer knows of each text, all tokens end to end, and each text's
        span of them.
        """
        encodings: list[Any] = []
        ids: list[NDArray[np.int64]] = []
        for start in range(0, len(texts), _AT_ONCE):
            encoded = self.processor(
                texts[start : start + _AT_ONCE],
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
            encodings += encoded.encodings or []
            ids += [np.array(text_ids, np.int64) for text_ids in encoded["input_ids"]]
        ends = np.cumsum([0, *map(len, ids)])
        tokens = np.concatenate(ids)
        highest = int(tokens.max(initial=0))
        if self._vocabulary is not None and highest >= self._vocabulary:
            row = next(row for row, text_ids in enumerate(ids) if highest in text_ids)
            raise ValueError(
                f"{type(self).__name__}: the tokenizer gives {texts[row][:30]!r} the token "
                f"{self.processor.convert_ids_to_tokens(highest)!r} ({highest}), and the model "
                f"knows {self._vocabulary} tokens; use the model's own tokenizer, or call its "
                "resize_token_embeddings and train it"
            )
        return encodings, tokens, np.stack([ends[:-1], ends[1:]], axis=1)

    def _cut(self, spans: Spans) -> Spans:
        """Cut each span to what the model can read at a time."""
        return np.minimum(spans, spans[:, :1] + self._room)

    def _inputs(
        self, tokens: NDArray[np.int64], spans: Spans, width: int = 0
    ) -> tuple[dict[str, Any], Tensor]:
        """Make the model's inputs of spans, and the mask (batch, tokens) of what is real."""
        full = self.facts is not None and self.facts["full_length"]
        width = self.max_length if full else width
        # Padding goes to the right: on the left it would shift the positions of a BERT.
        ids = framed(tokens, spans, self._before, self._after, self._pad, width)
        lengths = spans[:, 1] - spans[:, 0] + len(self._before) + len(self._after)
        mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
        arrays = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in self._keys:
            before, inside, after = self._types
            types = np.broadcast_to(inside, tokens.shape)
            arrays["token_type_ids"] = framed(types, spans, before, after, 0, width)
        tensors = {name: torch.from_numpy(each).to(self.device) for name, each in arrays.items()}
        keys = self._keys - ({"attention_mask"} if full else set())
        return {name: tensors[name] for name in keys} | self._switches, tensors["attention_mask"]

    def _states(
        self, tokens: NDArray[np.int64], spans: Spans, batch_size: int | None = None
    ) -> Iterator[tuple[NDArray[np.intp], Tensor, Tensor]]:
        """Run spans of tokens through the model, special tokens around each, the longest first.

        Yields a batch's indices into `spans`, its hidden states (batch, tokens, dim) and its
        attention mask (batch, tokens).
        """
        facts = self.facts or {}
        lengths = spans[:, 1] - spans[:, 0] + len(self._before) + len(self._after)
        if facts["full_length"]:
            lengths = np.full_like(lengths, self.max_length)
        limit = _TOKENS_ON_GPU if self.device.type == "cuda" else MAX_TOKENS

        def run(rows: NDArray[np.intp]) -> tuple[Tensor, Tensor]:
            inputs, mask = self._inputs(tokens, spans[rows])
            return self._hidden_or_features(inputs), mask

        for batch in by_length(
            lengths,
            max_tokens=limit,
            batch_size=batch_size,
            equal=facts.get("equal_lengths", False),
        ):
            for rows, (hidden, mask) in self._memory.in_parts(batch, run, self.device):
                yield rows, hidden, mask

    def _warn_cut(self, rows: Sequence[Any], total: int) -> None:
        if len(rows):
            warn(
                f"{len(rows)} of {total} texts are longer than the {self.max_length} tokens the "
                f"model reads, and were cut there ({ranges(rows)}); split them to keep all of it"
            )

    def _described(self) -> dict[str, str]:
        """List settings for the repr."""
        return {**super()._described(), "max_length": str(self.max_length)}


def framed(
    tokens: NDArray[Any],
    spans: Spans,
    before: list[int],
    after: list[int],
    fill: int,
    width: int = 0,
) -> NDArray[np.int64]:
    """Lay spans of tokens out as the rows of a batch, each between `before` and `after`.

    Returns an array (rows, tokens of the longest row, or `width` if that is more).
    """
    sizes = (spans[:, 1] - spans[:, 0])[:, None]
    width = max(int(sizes.max()) + len(before) + len(after), width)
    place = np.arange(width) - len(before)
    inside = (place >= 0) & (place < sizes)
    laid = np.full(inside.shape, fill, np.int64)
    laid[inside] = tokens[(spans[:, :1] + place)[inside]]
    laid[:, : len(before)] = before
    behind = len(before) + sizes + np.arange(len(after))
    np.put_along_axis(laid, behind, np.array([after], np.int64), axis=1)
    return laid


def real_states(
    batches: Iterable[tuple[NDArray[np.intp], Tensor, Tensor]],
) -> Iterator[tuple[int, Tensor]]:
    """Take batches apart: each row's index and its states (tokens, dim), without padding."""
    for rows, hidden, mask in batches:
        for row, states, count in zip(rows.tolist(), hidden, mask.sum(dim=1), strict=True):
            yield row, states[:count]


def _length_limit(model: Any, tokenizer: Any) -> int:
    """Say how many tokens the model can read, special tokens included."""
    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    for name, module in model.named_modules():
        # RoBERTa and similar models count positions from the one after the padding's.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None):
            limits.append(len(module.weight) - module.padding_idx - 1)
    known = [limit for limit in limits if limit and 0 < limit < _NO_LIMIT]
    return min(known, default=_NO_LIMIT)
