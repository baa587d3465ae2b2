"""What all encoders share: a model, its layers, its settings, and one forward pass."""

import copy
import os
import re
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from embedkit.encoders import _packing as packing
from embedkit.encoders._inputs import OnError
from embedkit.loading import models
from embedkit.pooling import Pooling
from embedkit.words import Vectors

Combine = Literal["mean", "concat"]
Model = str | os.PathLike[str] | PreTrainedModel

# The cosine to float32 that `dtype="auto"` has to keep.
_SAME_DIRECTION = 0.9995

# The process that loaded torch: one that is forked from it has none of torch's threads.
_LOADED_IN = os.getpid()
# How many threads read a model at the moment, and which of its parts were in training before.
_readers: WeakKeyDictionary[PreTrainedModel, tuple[int, list[torch.nn.Module]]] = (
    WeakKeyDictionary()
)
_readers_lock = threading.Lock()


class Encoder(ABC):
    """What all encoders share: the model, its layers, its settings."""

    _takes: str  # the model's main input
    _tower: str  # the half of a two-tower model that reads it
    _columns: tuple[str, ...]  # where to look in a batch of a data set

    def __new__(cls, model: Model, **settings: Any) -> "Encoder":
        """Keep the arguments, so that an encoder made from a name pickles as its settings."""
        encoder = super().__new__(cls)
        encoder._made_from = (model, settings)
        return encoder

    _made_from: tuple[Model, dict[str, Any]]
    dim: int
    """Length of a vector."""

    def __init__(
        self,
        model: Model,
        *,
        processor: Any = None,
        layers: int | Sequence[int] = -1,
        combine: Combine = "mean",
        final_norm: bool = True,
        device: str | torch.device | None = None,
        dtype: str = "float32",
        normalize: bool = False,
        revision: str | None = None,
    ) -> None:
        _work_alone_after_fork()
        self._process = os.getpid()
        self._parts = 1  # into which a batch is cut, since memory did not suffice for all of it
        if combine not in ("mean", "concat"):
            raise ValueError(f"{self._says(combine=combine)}: unknown; choose from mean, concat")
        self._layers = [layers] if isinstance(layers, int | np.integer) else list(layers)
        if not self._layers or not all(isinstance(i, int | np.integer) for i in self._layers):
            raise ValueError(f"{self._says(layers=layers)}: give a layer number or a list of them")
        self._combine, self._normalize = combine, normalize
        self._final_norm = final_norm
        self._last_only = self._layers == [-1] and final_norm
        self._auto = dtype == "auto" and isinstance(model, str | os.PathLike)
        if isinstance(model, str | os.PathLike):
            dtype = "float32" if self._auto else dtype
            where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            self.model = models.load_model(model, dtype=dtype, device=where, revision=revision)
        elif not isinstance(model, PreTrainedModel):
            raise TypeError(
                f"{type(self).__name__}: model is a {type(model).__name__}; give a bundled name, "
                "a folder, a Hub id, or a loaded PreTrainedModel"
            )
        elif processor is None:
            raise ValueError(
                f"{type(self).__name__}: a loaded {type(model).__name__} needs its tokenizer or "
                "image processor too; pass it as `processor=`"
            )
        else:  # It stays the caller's, with its own dtype; it moves only when told to.
            self.model = model
            if device is not None:
                model.to(torch.device(device))  # type: ignore[arg-type]
        self._body = self._without_head(self.model)
        if self._body.main_input_name != self._takes:
            raise ValueError(
                f"{type(self).__name__}: {type(self._body).__name__} takes "
                f"{self._body.main_input_name}, not {self._takes}; use the encoder for that input"
            )
        if processor is None:
            processor = self._load_processor(model, revision)
        self.processor = processor

    def _without_head(self, model: PreTrainedModel) -> PreTrainedModel:
        """Take the part that gives hidden states: no task head, no decoder, one tower of two."""
        if model.config.is_encoder_decoder:
            return model.get_encoder()
        base: Any = model.base_model
        return getattr(base, self._tower, base)

    @abstractmethod
    def _load_processor(self, name: Any, revision: str | None) -> Any:
        """Load the tokenizer or image processor that belongs to the model."""

    @abstractmethod
    def encode(
        self,
        inputs: Any,
        *,
        batch_size: int | None = None,
        progress: bool | None = None,
        on_error: OnError = "raise",
    ) -> Any:
        """Turn inputs into vectors, in order."""

    @abstractmethod
    def _probe(self) -> Vectors:
        """Embed a fixed example."""

    def _settle(self) -> None:
        """Learn how long a vector is and, with ``dtype="auto"``, choose the arithmetic."""
        exact = self._probe()
        self.dim = exact.shape[1]
        if not self._auto:
            return
        chosen, why = "float32", f"bfloat16 is no quicker on this {self.device.type}"
        if models.bfloat16_pays(self.device):
            full, body = self.model, self._body
            self.model = copy.deepcopy(full).to(torch.bfloat16)  # type: ignore[arg-type]
            self._body = self._without_head(self.model)
            pair = torch.from_numpy(exact), torch.from_numpy(self._probe())
            cosine = float(torch.cosine_similarity(*pair, dim=1).min())
            if cosine >= _SAME_DIRECTION:
                chosen, why = "bfloat16", "quicker here, and the vectors keep their direction"
            else:
                self.model, self._body = full, body
                why = f"bfloat16 would turn this model's vectors (cosine {cosine:.4f} to float32)"
        model, settings = self._made_from
        # Whoever unpickles this encoder, on whatever machine, gets the same vectors.
        self._made_from = model, {**settings, "dtype": chosen}
        warnings.warn(f"dtype='auto' took {chosen}: {why}", stacklevel=3)

    def _room_for(self, rows: int, out: NDArray[Any] | None) -> NDArray[Any]:
        """Make room for the vectors, or check that what was given is."""
        if out is None:
            return np.empty((rows, self.dim), np.float32)
        fits = isinstance(out, np.ndarray) and np.issubdtype(out.dtype, np.floating)
        if not fits or out.shape != (rows, self.dim) or not out.flags.writeable:
            raise ValueError(
                f"out is {getattr(out, 'dtype', type(out).__name__)} {np.shape(out)}; the vectors "
                f"need an array of floats, shape {(rows, self.dim)}, that can be written to"
            )
        return out

    def _embed_rows(self, rows: Any, on_error: OnError) -> Any:
        """Give one embedding per row of a data set's column; the engine shows its own progress."""
        return self.encode(rows, progress=False, on_error=on_error)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.model.device

    def __repr__(self) -> str:
        """Show where the vectors come from."""
        model = self._made_from[0]
        name = type(model).__name__ if isinstance(model, PreTrainedModel) else os.fspath(model)
        return f"{type(self).__name__}({name!r}, dim={self.dim}, device={str(self.device)!r})"

    def _says(self, **setting: Any) -> str:
        """Begin an error about one setting: ``TextEncoder(pooling='clss')``."""
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in setting.items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle settings where there is a name to load from, and everything where there is not."""
        model, settings = self._made_from
        if isinstance(model, PreTrainedModel):
            return _restore, (type(self), self.__dict__)
        # A folder's file sizes and times go along to be hashed: new weights, new fingerprint.
        return _rebuild, (type(self), os.fspath(model), settings, models.fingerprint(model))

    def __call__(self, batch: Any, *, on_error: OnError = "raise") -> Any:
        """Add an ``embedding`` column to a batch, for `Dataset.map` and for Ray Data.

        ``Dataset.map(encoder, batched=True)`` runs it on one machine. Ray Data makes encoders of
        its own, one per worker, from the class:
        ``map_batches(TextEncoder, fn_constructor_kwargs={"model": …})``.

        Parameters
        ----------
        batch : mapping of str to sequence, pyarrow.Table or DataFrame
            Columns of a data set.
        on_error : {"raise", "skip"}
            As in `encode`; `map` hands it over with ``fn_kwargs={"on_error": "skip"}``. Rows are
            counted from the start of each batch.

        Returns
        -------
        dict, pyarrow.Table or DataFrame, as given
            The batch and ``embedding``: one vector per row, or for `WordEncoder` one array
            (words, dim) per row. Inside ``Dataset.map`` the new column alone, which `map` adds.
            In a table, in a DataFrame and in Ray Data it is an Arrow array of vectors of a fixed
            size, float32.

        Raises
        ------
        KeyError
            If the batch has no column that this encoder reads.
        """
        # Imported here: only those who give whole batches need it.
        from embedkit.encoders import _arrow as arrow

        names = arrow.column_names(batch)
        column = next((name for name in self._columns if name in names), None)
        if column is None:
            raise KeyError(
                f"{type(self).__name__}: the batch has columns {', '.join(names)}, none of them "
                f"{' or '.join(self._columns)}; rename one (load_data does it with `columns=`)"
            )
        vectors = self._embed_rows(self._column(batch, column), on_error)
        return arrow.with_embedding(batch, vectors, self.dim)

    def _column(self, batch: Any, column: str) -> Any:
        """Take a column out of what an engine hands over."""
        from embedkit.encoders import _arrow as arrow

        return arrow.rows(batch[column])

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """No dropout and no gradients while reading; a model in training is put back as it was."""
        if self._process != os.getpid():
            raise RuntimeError(
                f"{type(self).__name__}: this process was forked from the one that loaded the "
                "model, and would wait for its threads for ever; make the encoder in this process, "
                "or start processes with the method 'spawn'"
            )
        with _readers_lock:  # other threads may be reading, and through other encoders
            count, training = _readers.get(self.model, (0, []))
            training = training or [part for part in self.model.modules() if part.training]
            _readers[self.model] = count + 1, training
            for part in training:
                part.training = False
        try:
            with torch.inference_mode():
                yield
        finally:
            with _readers_lock:
                count, training = _readers.pop(self.model)
                if count > 1:
                    _readers[self.model] = count - 1, training
                else:
                    for part in training:
                        part.training = True

    def _in_parts(
        self, rows: Any, run: Callable[[Any], Any], *, stacklevel: int
    ) -> Iterator[tuple[Any, Any]]:
        """Run rows as one batch or, where memory is too small for it, in parts; say so once."""
        size, start = -(-len(rows) // self._parts), 0
        while start < len(rows):
            part = rows[start : start + size]
            try:
                result = run(part)
            except RuntimeError as error:
                if len(part) == 1 or not _is_out_of_memory(error):
                    raise
                result = None
            # Not in the handler: there the error still holds on to the batch.
            if result is not None:
                yield part, result
                start += len(part)
                continue
            if self._parts == 1:
                warnings.warn(
                    f"{self.device} has too little memory for a batch of {len(part)}; going on "
                    "with half of it and, where need be, less. The vectors are the same",
                    stacklevel=stacklevel + 1,
                )
            self._parts *= 2
            size = -(-len(part) // 2)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _hidden(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Run the model and combine the layers asked for; (batch, tokens, dim) in float32."""
        mask = inputs.get("attention_mask")
        noted: list[tuple[Tensor, Tensor]] = []
        with ExitStack() as hooks:
            hooks.enter_context(packing.packed(self._body, mask))
            for norm in [] if self._final_norm else _norms_outside_layers(self._body):
                note = norm.register_forward_hook(lambda _, given, out: noted.append((*given, out)))
                hooks.callback(note.remove)
            outputs = self._body(**inputs, output_hidden_states=not self._last_only)
        last = outputs.last_hidden_state
        if self._last_only:
            return _as_tokens(last)
        states = list(outputs.hidden_states)
        for given, out in noted:  # some models report their last state after its norm
            if out.data_ptr() == last.data_ptr():
                states[-1] = given.reshape(last.shape)
        for layer in self._layers:
            if not -len(states) <= layer < len(states):
                raise ValueError(
                    f"{self._says(layers=layer)}: {type(self._body).__name__} has hidden states "
                    f"0 (the embedding output) to {len(states) - 1}"
                )
        chosen = [_as_tokens(states[layer]) for layer in self._layers]
        if mask is not None:
            chosen = [packing.unpacked(state, mask) for state in chosen]
        try:
            return torch.stack(chosen).mean(0) if self._combine == "mean" else torch.cat(chosen, -1)
        except RuntimeError as error:
            raise ValueError(
                f"{self._says(layers=self._layers, combine=self._combine)}: these layers differ in "
                f"shape, (tokens, dim) = {[tuple(state.shape[1:]) for state in chosen]}; choose "
                "layers of one shape"
            ) from error

    def _pool(self, pool: Callable[..., Tensor], hidden: Tensor, mask: Tensor) -> Vectors:
        """Apply a pooling function, check what it returns, and leave the device."""
        with torch.inference_mode():  # a pooling function may hold weights of its own
            vectors = pool(hidden, mask)
        if not isinstance(vectors, Tensor) or vectors.ndim != 2 or len(vectors) != len(hidden):
            got = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
            raise ValueError(
                f"{type(self).__name__}: the pooling function made {got} of hidden states "
                f"{tuple(hidden.shape)}; it has to return a tensor (batch, dim)"
            )
        return self._finish(vectors)

    def _finish(self, vectors: Tensor) -> Vectors:
        if self._normalize:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        return vectors.float().cpu().numpy()

    def _pooling_function(self, given: str | Pooling, known: Mapping[str, Pooling]) -> Pooling:
        if callable(given):
            return given
        if given not in known:
            raise ValueError(
                f"{self._says(pooling=given)}: unknown pooling; choose from {', '.join(known)}, "
                "or pass a function"
            )
        return known[given]


def _rebuild(kind: type[Encoder], model: str, settings: dict[str, Any], _: Any) -> Encoder:
    return kind(model, **settings)


def _restore(kind: type[Encoder], state: dict[str, Any]) -> Encoder:
    _work_alone_after_fork()
    encoder = object.__new__(kind)
    encoder.__dict__.update(state, _process=os.getpid())
    return encoder


def _work_alone_after_fork() -> None:
    """Have torch wait for no helpers in a process that was forked without them."""
    if os.getpid() != _LOADED_IN:
        torch.set_num_threads(1)


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Tell an exhausted memory, which CUDA, MPS and CPU each report in their own way."""
    signs = "out of memory", "DefaultCPUAllocator"
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)


def _norms_outside_layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """List the norms that belong to no layer; one of them may be the last thing a model does."""
    return [
        module
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower() and not re.search(r"\.\d+\.", name)
    ]


def _as_tokens(state: Tensor) -> Tensor:
    """Give a CNN's map (batch, channels, height, width) the shape (batch, places, channels)."""
    return (state.flatten(2).transpose(1, 2) if state.ndim == 4 else state).float()


@contextmanager
def progress_bar(total: int, unit: str, show: bool | None) -> Iterator[Any]:
    """Show a bar: always, never, or (None) once the work has taken two seconds."""
    with tqdm(
        total=total,
        unit=unit,
        disable=show is False,
        delay=2 if show is None else 0,
        leave=bool(show),
    ) as bar:
        yield bar
