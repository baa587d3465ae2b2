"""Encoders: load a model once, then turn inputs into vectors.

One class a use case, because the vector has to represent what the task asks about:
a whole image (`ImageEncoder`), a whole text (`TextEncoder`), one word (`WordEncoder`).
"""

import copy
import functools
import inspect
import os
import re
import tempfile
import threading
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedModel

from embedkit import models, packing, pooling
from embedkit.batching import MAX_TOKENS, batches, best_window, windows
from embedkit.images import to_rgb
from embedkit.inputs import Faults, OnError, chunks, listed, sentences
from embedkit.inputs import text_fault as fault_of
from embedkit.pooling import Pooling, Subwords
from embedkit.words import Vectors, WordVectors

Combine = Literal["mean", "concat"]
Model = str | os.PathLike[str] | PreTrainedModel

Spans = NDArray[np.intp]  # (n, 2): where sequences start and stop among tokens laid end to end

# Texts tokenised and sorted at a time: enough to sort well, few enough to keep memory flat.
_CHUNK = 4096
# And letters, so that Ctrl-C need not wait long for the tokenizer.
_LETTERS = 500_000
# Texts the tokenizer gets at once: it makes a few lists for each, and the more of them are alive,
# the more often Python's garbage collector goes through all objects of the process.
_AT_ONCE = 256
# On a GPU, small batches would leave most of it idle.
_TOKENS_ON_GPU = 32_768
# Read once by every new encoder, to learn the length of its vectors.
_EXAMPLE = "The old kettle in the kitchen boils slowly, but nobody in Paris has read the novel yet."
# Pixels per batch of images, for the same reason as a limit on tokens.
_PIXELS = 500_000
# Pixels of a scaled image that are no longer believed to be meant.
_MOST_PIXELS = 50_000_000
# Images prepared ahead of the model, for each thread that prepares them.
_AHEAD = 16
# The cosine to float32 that `dtype="auto"` has to keep.
_SAME_DIRECTION = 0.9995
# The parameters that hold what a vision model puts in front of the patches.
_SPECIAL_IMAGE_TOKENS = ("cls_token", "class_embedding", "distillation_token", "register_tokens")
# For the lengths a tokenizer gives when it knows of no limit.
_NO_LIMIT = 1_000_000

# The process that loaded torch: one that is forked from it has none of torch's threads.
_LOADED_IN = os.getpid()
# How many threads read a model at the moment, and which of its parts were in training before.
_readers: WeakKeyDictionary[PreTrainedModel, tuple[int, list[torch.nn.Module]]] = (
    WeakKeyDictionary()
)
_readers_lock = threading.Lock()


class _Encoder(ABC):
    """What all encoders share: the model, its layers, its settings."""

    _takes: str  # the model's main input
    _tower: str  # the half of a two-tower model that reads it
    _columns: tuple[str, ...]  # where to look in a batch of a data set

    def __new__(cls, model: Model, **settings: Any) -> "_Encoder":
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
        from embedkit import arrow

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
        from embedkit import arrow

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


class ImageEncoder(_Encoder):
    """One vector per image.

    Parameters
    ----------
    model : str, path or PreTrainedModel
        A bundled name (``"bundled/vit-glyphs"``), a folder, a Hub id, or a loaded model. Of CLIP
        and SigLIP the vision tower is taken.
    processor : image processor, optional
        Needed with a loaded model; otherwise the model's own.
    pooling : {"mean", "patch_mean", "cls", "max"} or function
        How the tokens of an image become one vector. ``"mean"`` averages all of them, the class
        token of a ViT included; ``"patch_mean"`` leaves special tokens out. A function takes
        ``(hidden, mask)`` and returns (batch, dim); a CNN's map reaches it as
        (batch, height · width, channels).
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
    >>> encoder = ImageEncoder("bundled/vit-glyphs")
    >>> encoder.encode([Image.new("L", (28, 28))]).shape == (1, encoder.dim)
    True
    """

    _takes, _tower, _columns = "pixel_values", "vision_model", ("image",)

    def __init__(
        self,
        model: Model,
        *,
        pooling: str | Pooling = "mean",
        processor: Any = None,
        **settings: Any,
    ) -> None:
        super().__init__(model, processor=processor, **settings)
        # A processor for texts and images holds the one for images.
        self.processor = getattr(self.processor, "image_processor", self.processor)
        self._pooling = self._pooling_function(pooling, self._poolings())
        self._settle()

    def _probe(self) -> Vectors:
        ramp = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
        return self._embed([self._pixels(Image.fromarray(ramp))])

    def _load_processor(self, name: Any, revision: str | None) -> Any:
        return models.load_image_processor(name, revision=revision)

    def _poolings(self) -> dict[str, Pooling]:
        """List what this model's output allows."""
        with self._reading():
            grey = self._pixels(Image.new("RGB", (64, 64), "grey")).to(self.device)
            is_map = self._body(grey[None]).last_hidden_state.ndim == 4
        special = {
            name.rpartition(".")[-1]: parameter.shape[1] if parameter.ndim == 3 else 1
            for name, parameter in self._body.named_parameters()
            if name.endswith(_SPECIAL_IMAGE_TOKENS) and not is_map
        }
        patch_mean = functools.partial(pooling.patch_mean, special=sum(special.values()))
        known: dict[str, Pooling] = {
            "max": pooling.max,
            "mean": pooling.mean,
            "patch_mean": patch_mean,
        }
        return (
            {"cls": pooling.cls, **known} if special.keys() & _SPECIAL_IMAGE_TOKENS[:2] else known
        )

    def encode(
        self,
        inputs: Any,
        *,
        batch_size: int | None = None,
        progress: bool | None = None,
        out: NDArray[Any] | None = None,
        on_error: OnError = "raise",
    ) -> Vectors:
        """Turn images into vectors.

        Parameters
        ----------
        inputs : sequence of images
            A list, tuple, array, pandas Series or `datasets` column of PIL images (any mode),
            paths, or arrays (height, width) or (height, width, channels): integers from 0 to 255,
            floats from 0 to 1, or 16 bits. Files are opened shortly before their turn.
        batch_size : int, optional
            Images per batch; by default batches are filled by pixels. The vectors are the same.
        progress : bool, optional
            Show a progress bar; by default, if the work takes over two seconds.
        out : array of float, shape (n, dim), optional
            Where to write the vectors, as into an `np.memmap` for more than memory holds.
        on_error : {"raise", "skip"}
            What becomes of an input that is no image: it stops the work, or it has NaN for a
            vector and one warning lists all that do.

        Returns
        -------
        array of float32, shape (n, dim)
            In the order of `inputs`; (0, dim) for none. With `out`, that array.

        Raises
        ------
        TypeError, ValueError
            If an input is no image; the message names it. If `out` does not fit.
        """
        faults = Faults(on_error)
        images = listed(inputs, "images", single=(Image.Image, str, bytes, os.PathLike))
        if isinstance(inputs, np.ndarray) and inputs.ndim == 3 and inputs.shape[-1] in (3, 4):
            raise ValueError(
                f"encode takes a list of images, and an array {inputs.shape} looks like a single "
                "one; wrap it in a list"
            )
        next(batches([], batch_size=batch_size), None)  # refuses a batch size that is none
        out = self._room_for(len(images), out)
        waiting: dict[torch.Size, dict[int, Tensor]] = {}  # per shape: row -> pixels
        # Closed at once when interrupted, and its threads with it.
        with (
            closing(self._prepared(images)) as prepared,
            _progress(len(images), "image", progress) as bar,
        ):

            def embed(rows: dict[int, Tensor]) -> None:
                for part, vectors in self._in_parts(
                    list(rows), lambda part: self._embed([rows[row] for row in part]), stacklevel=3
                ):
                    out[part] = vectors
                    bar.update(len(part))
                rows.clear()

            for row, ready in prepared:
                try:
                    pixels = ready.result()
                except ValueError as error:
                    faults.add(row, error)
                    out[row] = np.nan
                    bar.update()
                    continue
                alike = waiting.setdefault(pixels.shape, {})
                alike[row] = pixels
                if len(alike) >= (batch_size or max(1, _PIXELS // pixels[0].numel())):
                    embed(alike)
            for alike in waiting.values():
                if alike:
                    embed(alike)
        faults.warn(len(images), stacklevel=2)
        return out

    def _column(self, batch: Any, column: str) -> Any:
        """Take the files as they are stored: decoded, a batch of photographs fills the memory."""
        from embedkit.arrow import is_image_storage

        stored = getattr(batch, "pa_table", {column: None})[column]
        if stored is None or not is_image_storage(stored.type):
            return super()._column(batch, column)
        files = stored.to_pylist()
        # What lies elsewhere, or in an archive, is for `datasets` to fetch.
        away = any(file and not file["bytes"] and "://" in (file["path"] or "") for file in files)
        return batch[column] if away else files

    def _prepared(self, images: Sequence[Any]) -> Generator[tuple[int, Future[Tensor]]]:
        """Open and preprocess images in threads, a little ahead of the model, in order."""
        # As many as the model may use, which on a shared machine or in Ray is not all there are.
        workers = torch.get_num_threads()
        ahead: deque[Future[Tensor]] = deque()
        pool = ThreadPoolExecutor(workers)
        try:
            for row in range(len(images)):
                ahead.append(pool.submit(self._prepare, images, row))
                if len(ahead) > _AHEAD * workers:
                    yield row + 1 - len(ahead), ahead.popleft()
            while ahead:
                yield len(images) - len(ahead), ahead.popleft()
        finally:
            pool.shutdown(cancel_futures=True)

    def _prepare(self, images: Sequence[Any], row: int) -> Tensor:
        try:
            image = images[row]
        except Exception as error:  # a lazy column opens the file, and readers raise all kinds
            raise ValueError(f"image {row} cannot be read: {error}") from error
        image = to_rgb(image, row)
        # Many processors scale the shorter side, and a long thin image would fill the memory.
        edge = getattr(self.processor, "size", {}).get("shortest_edge")
        if edge and edge * edge * max(image.size) / min(image.size) > _MOST_PIXELS:
            raise ValueError(
                f"image {row} is {image.width} by {image.height} pixels, and this model's "
                f"processor would scale its shorter side to {edge}; crop it first"
            )
        return self._pixels(image)

    def _pixels(self, image: Image.Image) -> Tensor:
        """Let the processor resize, scale and normalise one RGB image."""
        # Told, because an image of height 1 or 3 looks like one with its channels in front.
        return self.processor(
            images=[image], input_data_format="channels_last", return_tensors="pt"
        )["pixel_values"][0]

    def _embed(self, pixels: list[Tensor]) -> Vectors:
        """Embed one batch of images of one size."""
        batch = torch.stack(pixels).to(self.device, self.model.dtype)
        with self._reading():
            hidden = self._hidden({"pixel_values": batch})
            mask = torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device)
            return self._pool(self._pooling, hidden, mask)


class _TokenEncoder(_Encoder):
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
            ids = _framed(tokens, spans[rows], self._before, self._after, pad)
            mask = (np.arange(ids.shape[1]) < lengths[rows, None]).astype(np.int64)
            inputs = {"input_ids": ids, "attention_mask": mask}
            if "token_type_ids" in self._keys:
                inside = np.broadcast_to(type_inside, tokens.shape)
                framed = _framed(inside, spans[rows], types_before, types_after, 0)
                inputs["token_type_ids"] = framed
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


class TextEncoder(_TokenEncoder):
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
        for start in range(0, len(texts), _CHUNK):
            for row, text in enumerate(texts[start : start + _CHUNK], start):
                fault = fault_of(text, f"text {row}")
                if fault is not None:
                    faults.add(row, fault)
        out = self._room_for(len(texts), out)
        cut = 0
        with _progress(len(texts), "text", progress) as bar:
            for start, chunk in chunks(texts, _CHUNK, _LETTERS):
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


class WordEncoder(_TokenEncoder):
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
        with _progress(len(out), "word", progress) as bar:
            for start, chunk in chunks(read_as, _CHUNK, _LETTERS):
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
        with _progress(len(texts), "text", progress) as bar:
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
            ids = _framed(words, all_spans[rows], before, after, -1)
            chosen = _framed(source, all_spans[rows], before, after, -1) == rows[:, None]
            ids = np.where(chosen, ids, -1)
            vectors = pooling.words(
                hidden, torch.from_numpy(ids).to(hidden.device), subwords=self._subwords
            )
            yield np.unique(ids[ids >= 0]), self._finish(vectors)


def _framed(
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


def _rebuild(kind: type[_Encoder], model: str, settings: dict[str, Any], _: Any) -> _Encoder:
    return kind(model, **settings)


def _restore(kind: type[_Encoder], state: dict[str, Any]) -> _Encoder:
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


def _length_limit(model: PreTrainedModel, tokenizer: Any) -> int:
    """Say how many tokens the model can read, special tokens included."""
    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from behind the padding's.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None):
            limits.append(module.num_embeddings - module.padding_idx - 1)
    known = [limit for limit in limits if limit and 0 < limit < _NO_LIMIT]
    return min(known, default=_NO_LIMIT)


def _with_prefix_space(tokenizer: Any) -> Any:
    """Have a GPT-style tokenizer read each word as it stands in running text, after a space."""
    if getattr(tokenizer, "add_prefix_space", True):
        return tokenizer
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder, add_prefix_space=True)


@contextmanager
def _progress(total: int, unit: str, show: bool | None) -> Iterator[Any]:
    """Show a bar: always, never, or (None) once the work has taken two seconds."""
    with tqdm(
        total=total,
        unit=unit,
        disable=show is False,
        delay=2 if show is None else 0,
        leave=bool(show),
    ) as bar:
        yield bar
