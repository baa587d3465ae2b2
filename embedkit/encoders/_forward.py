"""One forward pass: which part of a model is read, in which mode, and which layers come out."""

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from transformers import MODEL_MAPPING, PreTrainedModel

from embedkit.encoders import _packing as packing
from embedkit.encoders._machine import is_out_of_memory

Combine = Literal["mean", "concat"]

# How many threads read a model at the moment, and which of its parts were in training before.
_readers: WeakKeyDictionary[torch.nn.Module, tuple[int, list[torch.nn.Module]]] = (
    WeakKeyDictionary()
)
_readers_lock = threading.Lock()


def body_of(model: PreTrainedModel, tower: str) -> Any:
    """Give the part with the hidden states: no task head, no decoder, one tower of two.

    Parameters
    ----------
    model : PreTrainedModel
    tower : str
        The attribute under which a model of two towers holds the one to read.
    """
    if model.config.is_encoder_decoder:
        return model.get_encoder()
    # `base_model` alone will not do: in a DINOv3 it is an inner part of the base model.
    base: Any = MODEL_MAPPING.get(type(model.config), ())
    whole = model if isinstance(model, base) else model.base_model
    return getattr(whole, tower, whole)


@contextmanager
def reading(model: torch.nn.Module) -> Iterator[None]:
    """Switch dropout and gradients off; a model in training is put back as it was."""
    with _readers_lock:  # other threads may be reading, and through other encoders
        count, training = _readers.get(model, (0, []))
        training = training or [part for part in model.modules() if part.training]
        _readers[model] = count + 1, training
        for part in training:
            part.training = False
    try:
        with torch.inference_mode():
            yield
    finally:
        with _readers_lock:
            count, training = _readers.pop(model)
            if count > 1:
                _readers[model] = count - 1, training
            else:
                for part in training:
                    part.training = True


def call(owner: str, model: Callable[..., Any], inputs: Mapping[str, Any], **options: Any) -> Any:
    """Run a model, or say in one sentence that it cannot read these inputs.

    Some models need more than one kind of input, and some cannot read the shortest texts; the error
    that they raise then comes from somewhere inside.
    """
    try:
        return model(**inputs, **options)
    except Exception as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        given = ", ".join(
            f"{name} {tuple(each.shape)}"
            for name, each in inputs.items()
            if isinstance(each, Tensor)
        )
        raise ValueError(
            f"{owner}: {type(getattr(model, '__self__', model)).__name__} does not run on {given} "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); choose another model"
        ) from error


class Layers:
    """The hidden states that are read, and how several become one.

    Parameters
    ----------
    owner : str
        The encoder's name, with which errors begin.
    layers : int or sequence of int
        0 is the embedding output; ``-1`` alone is ``last_hidden_state``.
    combine : {"mean", "concat"}
    final_norm : bool
        False takes the last state before the model's final norm.
    """

    def __init__(
        self, owner: str, layers: int | Sequence[int], combine: Combine, final_norm: bool
    ) -> None:
        self._owner, self._combine, self._final_norm = owner, combine, final_norm
        if combine not in ("mean", "concat"):
            raise ValueError(f"{owner}(combine={combine!r}): unknown; choose from mean, concat")
        self._numbers = [layers] if isinstance(layers, int | np.integer) else list(layers)
        if not self._numbers or not all(isinstance(i, int | np.integer) for i in self._numbers):
            raise ValueError(
                f"{owner}(layers={layers!r}): give a layer number or a list of layer numbers"
            )
        self.last_only = self._numbers == [-1] and final_norm

    def read(
        self, body: Any, inputs: Mapping[str, Any], as_tokens: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Run the model and combine the layers that were asked for.

        Parameters
        ----------
        body : PreTrainedModel
            What `body_of` gave.
        inputs : mapping
            The model's arguments.
        as_tokens : callable
            Gives a state the shape (batch, tokens, dim).

        Returns
        -------
        Tensor, shape (batch, tokens, dim), float32
        """
        seen: list[tuple[Tensor, Tensor]] = []  # what each norm was given and what it made

        def note(module: torch.nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
            seen.append((given[0], made))

        with ExitStack() as hooks:
            unpacked = hooks.enter_context(packing.packed(body, inputs.get("attention_mask")))
            for norm in [] if self._final_norm else _norms_outside_layers(body):
                hooks.callback(norm.register_forward_hook(note).remove)
            outputs = call(self._owner, body, inputs, output_hidden_states=not self.last_only)
        last = getattr(outputs, "last_hidden_state", None)
        if last is None:
            raise ValueError(
                f"{self._owner}: {type(body).__name__} gives no last_hidden_state to pool; "
                "choose another model"
            )
        if self.last_only:
            return as_tokens(last)
        states = list(outputs.hidden_states or [])
        for given, made in seen:  # some models report their last state after its norm
            if states and made.data_ptr() == last.data_ptr():
                states[-1] = given.reshape(last.shape)
        for layer in self._numbers:
            if not -len(states) <= layer < len(states):
                raise ValueError(
                    f"{self._owner}(layers={layer}): {type(body).__name__} has hidden states "
                    f"0 (the embedding output) to {len(states) - 1}"
                )
        chosen = [unpacked(as_tokens(states[layer])) for layer in self._numbers]
        if len({state.shape[:2] for state in chosen}) > 1 or (
            self._combine == "mean" and len({state.shape[2] for state in chosen}) > 1
        ):
            raise ValueError(
                f"{self._owner}(layers={self._numbers}, combine={self._combine!r}): these layers "
                f"differ in shape, (tokens, dim) = {[tuple(state.shape[1:]) for state in chosen]}; "
                "choose layers of one shape"
            )
        return torch.stack(chosen).mean(0) if self._combine == "mean" else torch.cat(chosen, -1)


def _norms_outside_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """List the norms that belong to no layer; one of them may be the last thing a model does."""
    return [
        module
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower() and not re.search(r"\.\d+\.", name)
    ]
