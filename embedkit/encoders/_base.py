"""What all encoders share: a model, its settings, a test of the model, and data sets."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from embedkit import pooling as pooling_functions
from embedkit.encoders import _packing as packing
from embedkit.encoders._forward import Combine, Layers, body_of, call, reading
from embedkit.encoders._inputs import OnError
from embedkit.encoders._machine import Device, Memory, chosen_device, work_alone_after_fork
from embedkit.encoders._pickling import Pickled
from embedkit.encoders._trying import try_model
from embedkit.loading import models
from embedkit.pooling import Pooling
from embedkit.words import Vectors

Model = str | os.PathLike[str] | PreTrainedModel
Dtype = Literal["float32", "bfloat16", "float16", "auto"]


class Encoder(Pickled, ABC):
    """The base of every encoder: a model, its settings, and what was learned by trying it.

    Do not subclass it directly for a new use case, but one of its two children. `TensorEncoder`
    is for inputs that become tensors one at a time, such as images and sounds; `TokenEncoder` is
    for what a tokenizer reads. Each says what its subclasses provide. What holds for both:

    - A subclass names ``kind`` (what to load beside the model: "text" or "image"), ``reads`` (the
      names a model's main input may have), ``columns`` (where in a data set its inputs are),
      ``unit`` (what one input is called) and ``single`` (the types of one input). For models of
      two towers it may name ``tower``, the attribute of the right one, and ``features``, the
      method that gives vectors in the space that both towers share.
    - The constructor here does all the work, in this order: it loads, calls `set_up`, calls
      `look`, chooses the pooling, and tests the model with `embed_example`. A subclass with
      settings of its own keeps them first and then calls it; nothing has to be called after it.

    Parameters
    ----------
    model, pooling, processor, layers, combine, final_norm, dim, normalize, device, dtype, revision,
    token, cache_dir, attn_implementation, model_kwargs
        As in `TextEncoder`.

    Attributes
    ----------
    name : str
        What the model was made from: a bundled name, an absolute folder or a Hub id; of a loaded
        model, its class.
    model : PreTrainedModel
        The whole model.
    body : PreTrainedModel
        The part of it that gives hidden states.
    processor : tokenizer, image processor or feature extractor
    pooling : str or function
        What is pooled, and ``pooling_reason``, who decided it.
    normalize : bool
        Whether vectors are scaled to length 1.
    dim : int
        Length of a vector.
    published : embedkit.loading.models.Published
        What the model's authors say in its repository about using it.
    commit : str or None
        The commit of a Hub repository.
    facts : dict
        What was learned by trying the model; it is kept with the pickle.

    See Also
    --------
    embedkit.ImageEncoder, embedkit.TextEncoder, embedkit.WordEncoder
    """

    kind: Literal["text", "image"]
    reads: tuple[str, ...]
    columns: tuple[str, ...]
    unit: str = "input"
    single: tuple[type, ...] = (str, bytes)
    tower: str = ""
    features: str = ""
    # True where inputs of different lengths share a batch, the shorter ones padded.
    pads: bool = False

    model: PreTrainedModel
    dim: int

    def __init__(
        self,
        model: Model,
        *,
        pooling: str | Pooling = "auto",
        processor: Any = None,
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
        work_alone_after_fork()
        self._process, self._memory = os.getpid(), Memory()
        self._layers = Layers(type(self).__name__, layers, combine, final_norm)
        if dim is not None and (not isinstance(dim, int | np.integer) or dim < 1):
            raise ValueError(
                f"{type(self).__name__}(dim={dim!r}): give a whole number of 1 or more"
            )
        known = self.facts or {}
        self._auto = dtype == "auto" and not isinstance(model, PreTrainedModel)
        if isinstance(model, str | os.PathLike):
            self.name = self._given
            options: dict[str, Any] = {
                "kind": self.kind, "device": chosen_device(device), "revision": revision,
                "dtype": known.get("dtype", "float32") if dtype == "auto" else dtype,
                "token": token, "cache_dir": cache_dir, "model_kwargs": model_kwargs,
                "attn_implementation": attn_implementation,
            }  # fmt: skip
            try:
                loaded = models.load(self.name, processor=processor, **options)
            except OSError as error:
                if processor is None and " has no " in str(error):
                    # A model for other inputs has no such processor; that is the better reason.
                    self._body(models.load(self.name, processor=False, **options).model)
                raise
            self.model, processor = loaded.model, loaded.processor
            self.published, self.commit = loaded.published, loaded.commit
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
            self.name, self.model = type(model).__name__, model
            self.published, self.commit = models.Published(), None
            if device is not None:
                model.to(chosen_device(device))  # type: ignore[arg-type]
        self.body = self._body(self.model)
        if self.model is not model and attn_implementation is None:
            packing.allow(self.body)
        self.processor = processor
        self.set_up()
        if self.facts is None:
            self.facts = self.look()
        self._choose_pooling(pooling, normalize)
        self._dim_asked = dim
        if "dim" not in self.facts:
            self.facts |= try_model(self, choose_dtype=self._auto)
        self.dim = self.facts["dim"]
        if dim is not None and dim != self.dim:
            raise ValueError(
                f"{type(self).__name__}(dim={dim}): give a number from 1 to {self.dim}"
            )

    def _body(self, model: PreTrainedModel) -> Any:
        """Take the part of a model that gives hidden states, and check what it reads."""
        body = body_of(model, self.tower)
        main_input = getattr(body, "main_input_name", None)
        if main_input not in self.reads:
            raise ValueError(
                f"{type(self).__name__}: {type(body).__name__} takes {main_input}, not "
                f"{' or '.join(self.reads)}; use the encoder for that input"
            )
        return body

    def set_up(self) -> None:
        """Work out what later steps need of `model`, `body` and `processor`; by default nothing."""

    def look(self) -> dict[str, Any]:
        """Run the model once and return as facts what only that shows; by default nothing."""
        return {}

    def poolings(self) -> dict[str, Pooling]:
        """List the poolings that this model allows, by name; `facts` are known by then."""
        return {"max": pooling_functions.max, "mean": pooling_functions.mean}

    def default_pooling(self, allowed: Mapping[str, Pooling]) -> tuple[str, str]:
        """Choose a pooling where the repository names none: its name, and the reason."""
        return "mean", "default"

    @abstractmethod
    def embed_example(self, rows: Sequence[int]) -> list[Vectors]:
        """Embed fixed inputs as one batch: 0 is the shorter, 1 the longer.

        Returns
        -------
        list of array, shape (n, dim)
            One array for each row asked for, in order.
        """

    @abstractmethod
    def encode(
        self,
        inputs: Any,
        *,
        batch_size: int | None = None,
        progress: bool | None = None,
        out: NDArray[Any] | None = None,
        on_error: OnError = "raise",
    ) -> Any:
        """Turn inputs into vectors, in order."""

    def _choose_pooling(self, given: str | Pooling, normalize: bool | None) -> None:
        """Decide what is pooled, by the caller, the repository or the page, in this order."""
        allowed = dict(self.poolings())
        if self.features and hasattr(self.model, self.features):
            allowed["projected"] = _never_called
        self.pooling: str | Pooling = given
        self.pooling_reason = ""
        self._behind: tuple[torch.nn.Module, ...] = ()
        self.normalize = bool(normalize)
        if given == "auto":
            self.pooling, self.pooling_reason = self.default_pooling(allowed)
            if self.published.pooling:
                self.pooling, self.pooling_reason = self.published.pooling, "its repository"
                # Its authors may take the first token of a model that has no [CLS].
                named = getattr(pooling_functions, self.published.pooling, None)
                allowed.update({self.published.pooling: named} if named else {})
                self._behind = tuple(part.to(self.device) for part in self.published.dense)
                if normalize is None:
                    self.normalize = self.published.normalize
        if isinstance(self.pooling, str) and self.pooling not in allowed:
            whose = f" (as {self.pooling_reason} says)" if self.pooling_reason else ""
            raise ValueError(
                f"{type(self).__name__}(pooling={self.pooling!r}){whose}: unknown pooling; choose "
                f"from {', '.join(sorted(allowed))}, or pass a function"
            )
        self._projected = self.pooling == "projected"
        if self._projected and not self._layers.last_only:
            raise ValueError(
                f"{type(self).__name__}(pooling='projected'): the projection reads the last layer; "
                "leave out `layers` and `final_norm`"
            )
        self._pool: Pooling = (
            allowed[self.pooling] if isinstance(self.pooling, str) else self.pooling
        )

    def _hidden_or_features(self, inputs: Mapping[str, Any]) -> Tensor:
        """Run the model: hidden states (batch, tokens, dim) or projected vectors (batch, dim)."""
        if self._process != os.getpid():
            raise RuntimeError(
                f"{type(self).__name__}: this process was forked from the one that loaded the "
                "model, and would wait for its threads for ever; make the encoder in this process, "
                "or start processes with the method 'spawn'"
            )
        with reading(self.model):
            if self._projected:
                features = call(type(self).__name__, getattr(self.model, self.features), inputs)
                return getattr(features, "pooler_output", features)
            return self._layers.read(self.body, inputs, self._as_tokens)

    def _as_tokens(self, state: Tensor) -> Tensor:
        """Give a state the shape (batch, tokens, dim)."""
        return state.float()

    def _pooled(self, hidden: Tensor, mask: Tensor) -> Vectors:
        """Apply the pooling function, check what it returns, and leave the device."""
        with torch.inference_mode():  # a pooling function may hold weights of its own
            vectors = hidden if self._projected else self._pool(hidden, mask)
            if not isinstance(vectors, Tensor) or vectors.ndim != 2 or len(vectors) != len(hidden):
                is_tensor = isinstance(vectors, Tensor)
                got = tuple(vectors.shape) if is_tensor else type(vectors).__name__
                raise ValueError(
                    f"{type(self).__name__}: the pooling function made {got} of hidden states "
                    f"{tuple(hidden.shape)}; it has to return a tensor (batch, dim)"
                )
            for part in self._behind:
                vectors = part(vectors)
        return self._finished(vectors)

    def _finished(self, vectors: Tensor) -> Vectors:
        """Cut vectors to `dim`, scale them if that was asked for, and leave the device."""
        vectors = vectors[:, : self._dim_asked].float()
        if self.normalize:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        return vectors.cpu().numpy()

    def _room_for(self, rows: int, out: NDArray[Any] | None) -> NDArray[Any]:
        """Make room for the vectors, or check the array that was given."""
        if out is None:
            return np.empty((rows, self.dim), np.float32)
        fits = isinstance(out, np.ndarray) and np.issubdtype(out.dtype, np.floating)
        if not fits or out.shape != (rows, self.dim) or not out.flags.writeable:
            raise ValueError(
                f"out is {getattr(out, 'dtype', type(out).__name__)} {np.shape(out)}; the vectors "
                f"need an array of floats, shape {(rows, self.dim)}, that can be written to"
            )
        return out

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.model.device

    def __repr__(self) -> str:
        """Show where the vectors come from, and who decided how."""
        settings = "".join(f"{name}={value}, " for name, value in self._described().items())
        return (
            f"{type(self).__name__}({self.name!r}, dim={self.dim}, {settings}"
            f"device={str(self.device)!r})"
        )

    def _described(self) -> dict[str, str]:
        """List settings for the repr."""
        name = self.pooling
        name = repr(name) if isinstance(name, str) else getattr(name, "__name__", repr(name))
        reason = f" ({self.pooling_reason})" if self.pooling_reason else ""
        return {"pooling": f"{name}{reason}", "normalize": str(self.normalize)}

    def __call__(self, batch: Any, **options: Any) -> Any:
        """Add an ``embedding`` column to a batch, for `Dataset.map` and for Ray Data.

        ``Dataset.map(encoder, batched=True)`` runs it on one machine. Ray Data makes encoders of
        its own, one per worker, from the class:
        ``map_batches(TextEncoder, fn_constructor_kwargs={"model": …})``.

        Parameters
        ----------
        batch : mapping of str to sequence, pyarrow.Table or DataFrame
            Columns of a data set.
        **options
            Passed to `encode`; `map` hands them over with ``fn_kwargs={"on_error": "skip"}``. Rows
            are counted from the start of each batch.

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
        TypeError
            If it is a single row, because `map` was called without ``batched=True``.
        """
        # Imported here: only callers with whole batches need it.
        from embedkit.encoders import _arrow as arrow

        column = arrow.find_column(type(self).__name__, batch, self.columns)
        if arrow.is_single_row(batch, column, self.single):
            raise TypeError(
                f"{type(self).__name__} reads whole batches and got a single row; call "
                "map(encoder, batched=True)"
            )
        rows = self._column(batch, column)
        return arrow.with_embedding(batch, self._embed_rows(rows, **options), self.dim)

    def _column(self, batch: Any, column: str) -> Any:
        """Take a column out of what an engine hands over."""
        return batch[column]

    def _embed_rows(self, rows: Any, **options: Any) -> Any:
        """Give one embedding per row of a data set's column; the engine shows its own progress."""
        return self.encode(rows, progress=False, **options)


def _never_called(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden
