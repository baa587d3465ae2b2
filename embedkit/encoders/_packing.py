"""Packing: sequences laid end to end go through a model as one, and no padding is computed.

In a transformer's layers only attention looks at more than one token at a time, so only attention
has to know where a sequence ends. The model is called with a padded batch: hooks lay the sequences
end to end before its first layer, and put their states back behind its last.

Only a model that was loaded here is packed. A model that the caller loaded stays as it is.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

varlen_attn: Callable[..., Any] | None = None
with suppress(ImportError):  # torch 2.10 and later have it
    from torch.nn.attention.varlen import varlen_attn

_NAME = "embedkit_packed"
# Architectures that were tried, and the module that holds their layers.
_LAYERS = {
    "bert": "encoder",
    "camembert": "encoder",
    "distilbert": "transformer",
    "electra": "encoder",
    "roberta": "encoder",
    "xlm-roberta": "encoder",
}


class _Packing(NamedTuple):
    """Where the sequences of a batch lie once packed."""

    mask: Tensor  # bool, shape (batch, tokens)
    runs: list[tuple[int, int, int]]  # of equal length: (first token, sequences, tokens in each)
    ends: Tensor  # int32, shape (batch + 1,): 0, and where each sequence ends
    longest: int

    def unpack(self, states: Tensor) -> Tensor:
        """Put states (1, real tokens, dim) in their places, (batch, tokens, dim); or leave them."""
        if states.shape[:2] == self.mask.shape:  # never packed, as the embedding output
            return states
        padded = states.new_zeros(*self.mask.shape, states.shape[-1])
        padded[self.mask] = states[0]
        return padded


# None outside of `packed`, so that other calls of the model compute what they always did.
_current: ContextVar[_Packing | None] = ContextVar("_current", default=None)


def allow(model: PreTrainedModel) -> None:
    """Let a model run packed, where its architecture is known to give the same states.

    Parameters
    ----------
    model : PreTrainedModel
        Without a task head.
    """
    config = model.config
    layers = _LAYERS.get(config.model_type)
    causal = getattr(config, "is_decoder", False)
    if layers and not causal and config._attn_implementation == "sdpa":
        config._attn_implementation = _NAME
        model.get_submodule(layers).register_forward_pre_hook(_pack, with_kwargs=True)
        model.get_submodule(layers).register_forward_hook(_unpack)


@contextmanager
def packed(model: PreTrainedModel, mask: Tensor | None) -> Iterator[Callable[[Tensor], Tensor]]:
    """Run the batch with this mask packed, if the model is allowed to.

    Parameters
    ----------
    model : PreTrainedModel
        A model that `allow` may have seen.
    mask : Tensor, shape (batch, tokens), or None
        1 where a token is real, 0 where it is padding, on the right.

    Yields
    ------
    callable
        It gives the states between the layers the shape (batch, tokens, dim), if they are packed.
    """
    if mask is None or model.config._attn_implementation != _NAME:
        yield lambda states: states
        return
    lengths = mask.sum(dim=1).cpu().numpy()
    ends = np.concatenate([[0], np.cumsum(lengths)])
    changes = np.flatnonzero(np.diff(lengths, prepend=0, append=0))
    runs = [
        (int(ends[row]), int(until - row), int(lengths[row]))
        for row, until in itertools.pairwise(changes)
    ]
    on_device = torch.from_numpy(ends.astype(np.int32)).to(mask.device)
    packing = _Packing(mask.bool(), runs, on_device, int(lengths.max()))
    token = _current.set(packing)
    try:
        yield packing.unpack
    finally:
        _current.reset(token)


def _pack(module: torch.nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
    packing = _current.get()
    if packing is None:
        return None
    if args:
        return (args[0][packing.mask][None], *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": kwargs["hidden_states"][packing.mask][None]}


def _unpack(module: torch.nn.Module, args: Any, output: Any) -> Any:
    packing = _current.get()
    if packing is not None:
        output.last_hidden_state = packing.unpack(output.last_hidden_state)
    return output


def _mask(**options: Any) -> Tensor | None:
    """Make no mask for packed sequences: `_attention` keeps them apart."""
    return sdpa_mask(**options) if _current.get() is None else None


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend within each sequence; query, key and value have shape (1, heads, tokens, head dim)."""
    packing = _current.get()
    if packing is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    if varlen_attn is not None and query.is_cuda and query.dtype != torch.float32:
        ends, longest = packing.ends, packing.longest
        # It scales by 1 / sqrt(head dim) by itself, as all the models above do.
        return varlen_attn(query, key, value, ends, ends, longest, longest)[None], None
    out = torch.empty_like(query)
    for start, count, length in packing.runs:
        tokens = slice(start, start + count * length)
        # Sequences of one length are a batch as they lie.
        alike = (
            states[tokens].unflatten(0, (count, length)).transpose(1, 2)
            for states in (query, key, value)
        )
        seen = scaled_dot_product_attention(*alike, scale=scaling)  # type: ignore[misc]
        out[tokens] = seen.transpose(1, 2).flatten(0, 1)
    return out[None], None


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, _mask)
