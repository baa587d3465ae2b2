"""Encoders: load a model once, then turn inputs into vectors.

One class a use case, because the vector has to represent what the task asks about:
a whole image (`ImageEncoder`), a whole text (`TextEncoder`), one word (`WordEncoder`).
"""

import functools
import inspect
import os
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedModel

from embedkit import models, pooling
from embedkit.batching import batches, best_window, windows
from embedkit.images import shown, to_rgb
from embedkit.pooling import Pooling, Subwords
from embedkit.words import Vectors, WordVectors

Combine = Literal["mean", "concat"]
Model = str | os.PathLike[str] | PreTrainedModel

# Texts tokenised and sorted at a time: enough to sort well, few enough to keep memory flat.
_CHUNK = 16_384
_IMAGE_BATCH = 32
# The parameters that hold what a vision model puts in front of the patches.
_SPECIAL_IMAGE_TOKENS = ("cls_token", "class_embedding", "distillation_token", "register_tokens")
# For the lengths a tokenizer gives when it knows of no limit.
_NO_LIMIT = 1_000_000


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
        if combine not in ("mean", "concat"):
            raise ValueError(f"{self._says(combine=combine)}: unknown; choose from mean, concat")
        self._layers = [layers] if isinstance(layers, int | np.integer) else list(layers)
        if not self._layers or not all(isinstance(i, int | np.integer) for i in self._layers):
            raise ValueError(f"{self._says(layers=layers)}: give a layer number or a list of them")
        self._combine, self._normalize = combine, normalize
        self._last_only = self._layers == [-1] and final_norm
        if isinstance(model, str | os.PathLike):
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
        if not final_norm:
            # Language models report their last state after its norm unless told otherwise.
            self._body.config.tie_last_hidden_states = False
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
        self, inputs: Any, *, batch_size: int | None = None, progress: bool | None = None
    ) -> Any:
        """Turn inputs into vectors, in order."""

    def _embed_rows(self, rows: Any) -> Any:
        """Give one embedding per row of a data set's column."""
        return self.encode(rows)

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

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Add an ``embedding`` column to a batch, for ``Dataset.map(encoder, batched=True)``.

        Parameters
        ----------
        batch : mapping of str to sequence
            Columns of a data set.

        Returns
        -------
        dict
            The batch and ``embedding``: one vector per row, or for `WordEncoder` one array
            (words, dim) per row. Inside ``Dataset.map`` the new column alone, which `map` adds.

        Raises
        ------
        KeyError
            If the batch has no column that this encoder reads.
        """
        column = next((name for name in self._columns if name in batch), None)
        if column is None:
            raise KeyError(
                f"{type(self).__name__}: the batch has columns {', '.join(batch)}, none of them "
                f"{' or '.join(self._columns)}; rename one (load_data does it with `columns=`)"
            )
        embedding = self._embed_rows(batch[column])
        return {**(batch if isinstance(batch, dict) else {}), "embedding": embedding}

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """No dropout and no gradients while reading; a model in training is put back as it was."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            if training:
                self.model.train()

    def _hidden(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Run the model and combine the layers asked for; (batch, tokens, dim) in float32."""
        inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        outputs = self._body(**inputs, output_hidden_states=not self._last_only)
        if self._last_only:
            return _as_tokens(outputs.last_hidden_state)
        states = outputs.hidden_states
        for layer in self._layers:
            if not -len(states) <= layer < len(states):
                raise ValueError(
                    f"{self._says(layers=layer)}: {type(self._body).__name__} has hidden states "
                    f"0 (the embedding output) to {len(states) - 1}"
                )
        chosen = [_as_tokens(states[layer]) for layer in self._layers]
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
        False takes the last state before the model's final norm, where it has one. For GPT-style
        models this needs a transformers that knows `tie_last_hidden_states` (5.15 does not).
    device : str or torch.device, optional
        By default a CUDA device where there is one, else the CPU.
    dtype : {"float32", "bfloat16", "float16"}
        Of weights and arithmetic. A loaded model keeps its own.
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
        self.dim = self._embed([_GREY]).shape[1]

    def _load_processor(self, name: Any, revision: str | None) -> Any:
        return models.load_image_processor(name, revision=revision)

    def _poolings(self) -> dict[str, Pooling]:
        """List what this model's output allows."""
        with self._reading():
            is_map = self._body(**self._pixels([_GREY])).last_hidden_state.ndim == 4
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
        self, inputs: Any, *, batch_size: int | None = None, progress: bool | None = None
    ) -> Vectors:
        """Turn images into vectors.

        Parameters
        ----------
        inputs : sequence of images
            A list, tuple, array, pandas Series or `datasets` column of PIL images (any mode),
            paths, or arrays (height, width) or (height, width, channels): integers from 0 to 255,
            floats from 0 to 1, or 16 bits. Files are opened when their batch comes up.
        batch_size : int, optional
            Images per batch.
        progress : bool, optional
            Show a progress bar; by default, if the work takes over two seconds.

        Returns
        -------
        array of float32, shape (n, dim)
            In the order of `inputs`; (0, dim) for none.

        Raises
        ------
        TypeError, ValueError
            If an input is no image; the message names it.
        """
        images = _listed(inputs, "images", single=(Image.Image, str, bytes, os.PathLike))
        if isinstance(inputs, np.ndarray) and inputs.ndim == 3 and inputs.shape[-1] in (3, 4):
            raise ValueError(
                f"encode takes a list of images, and an array {inputs.shape} looks like a single "
                "one; wrap it in a list"
            )
        out = np.empty((len(images), self.dim), np.float32)
        with _progress(len(images), "image", progress) as bar:
            size = _IMAGE_BATCH if batch_size is None else batch_size
            for rows in batches(np.ones(len(images)), batch_size=size):
                out[rows] = self._embed([to_rgb(images[row], row) for row in rows])
                bar.update(len(rows))
        return out

    def _embed(self, images: list[Image.Image]) -> Vectors:
        """Embed one batch of RGB images."""
        with self._reading():
            hidden = self._hidden(self._pixels(images))
            mask = torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device)
            return self._pool(self._pooling, hidden, mask)

    def _pixels(self, images: list[Image.Image]) -> dict[str, Tensor]:
        """Let the processor resize, scale and normalise."""
        pixels = self.processor(images=images, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels.to(self.device, self.model.dtype)}


class _Span(NamedTuple):
    """What the model reads at a time: tokens `start` to `stop` of text number `text`."""

    text: int
    start: int
    stop: int


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
        # What the tokenizer puts before and after every text, seen on the first word it can read.
        for word in ("a", *self.processor.get_vocab()):
            bare = self.processor(word, add_special_tokens=False)["input_ids"]
            if bare:
                break
        whole = self.processor(word, return_token_type_ids=True)
        ids, types = whole["input_ids"], whole.get("token_type_ids")
        start = next(i for i in range(len(ids)) if ids[i : i + len(bare)] == bare)
        stop = start + len(bare)
        self._before, self._after = ids[:start], ids[stop:]
        types = types or [0] * len(ids)
        self._types = types[:start], types[start], types[stop:]
        self._example = bare[:1]
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
        self._keys = [key for key in self.processor.model_input_names if key in accepted]

    def _load_processor(self, name: Any, revision: str | None) -> Any:
        return models.load_tokenizer(name, revision=revision)

    def _tokenize(self, texts: list[Any], tokenizer: Any = None) -> Any:
        """Tokenise texts, or lists of words, without special tokens and without a limit."""
        return (tokenizer or self.processor)(
            texts,
            is_split_into_words=bool(texts) and not isinstance(texts[0], str),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )

    def _states(
        self, tokens: list[list[int]], spans: list[_Span], batch_size: int | None = None
    ) -> Iterator[tuple[NDArray[np.intp], Tensor, Tensor]]:
        """Run spans of tokens through the model, special tokens around each, the longest first.

        Yields a batch's indices into `spans`, its hidden states (batch, tokens, dim) and its
        attention mask (batch, tokens).
        """
        frame = len(self._before) + len(self._after)
        lengths = np.array([span.stop - span.start + frame for span in spans], np.intp)
        pad = self.processor.pad_token_id
        if pad is None:  # as with GPT-2; the mask hides whatever stands there
            pad = getattr(self._body.config, "pad_token_id", None) or 0
        types_before, type_inside, types_after = self._types
        for rows in batches(lengths, batch_size=batch_size):
            # Padding goes to the right: on the left it would shift the positions of a BERT.
            ids = np.full((len(rows), lengths[rows[0]]), pad, np.int64)
            types = np.zeros_like(ids)
            for row, text_ids, text_types in zip(rows, ids, types, strict=True):
                text, start, stop = spans[row]
                inside = tokens[text][start:stop]
                text_ids[: lengths[row]] = [*self._before, *inside, *self._after]
                kinds = [*types_before, *[type_inside] * len(inside), *types_after]
                text_types[: lengths[row]] = kinds
            mask = (np.arange(ids.shape[1]) < lengths[rows, None]).astype(np.int64)
            named = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
            inputs = {key: torch.from_numpy(named[key]) for key in self._keys if key in named}
            with self._reading():
                hidden = self._hidden(inputs)
            yield rows, hidden, torch.from_numpy(mask).to(hidden.device)

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
        False takes the last state before the model's final norm, where it has one. For GPT-style
        models this needs a transformers that knows `tie_last_hidden_states` (5.15 does not).
    device : str or torch.device, optional
        By default a CUDA device where there is one, else the CPU.
    dtype : {"float32", "bfloat16", "float16"}
        Of weights and arithmetic. A loaded model keeps its own.
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
        self.dim = next(self._vectors([self._example]))[1].shape[1]

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
        self, inputs: Any, *, batch_size: int | None = None, progress: bool | None = None
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

        Returns
        -------
        array of float32, shape (n, dim)
            In the order of `inputs`; (0, dim) for none.

        Raises
        ------
        TypeError
            If an input is no text; the message names it.
        ValueError
            If a text is empty and the model has no special tokens to read instead.
        """
        texts = _listed(inputs, "texts", single=(str, bytes))
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"text {row} is {shown(text)}; every text has to be a str")
        out = np.empty((len(texts), self.dim), np.float32)
        cut = 0
        with _progress(len(texts), "text", progress) as bar:
            for start in range(0, len(texts), _CHUNK):
                tokens = self._tokenize(texts[start : start + _CHUNK])["input_ids"]
                if not self._before + self._after and not all(tokens):
                    row = start + next(row for row, ids in enumerate(tokens) if not ids)
                    raise ValueError(
                        f"text {row} ({texts[row][:20]!r}) has no tokens, and this model adds no "
                        "special ones, so it has nothing to read; leave it out"
                    )
                cut += sum(len(ids) > self._room for ids in tokens)
                for rows, vectors in self._vectors(tokens, batch_size):
                    out[start + rows] = vectors
                    bar.update(len(rows))
        self._warn_cut(cut, len(texts))
        return out

    def _vectors(
        self, tokens: list[list[int]], batch_size: int | None = None
    ) -> Iterator[tuple[NDArray[np.intp], Vectors]]:
        """Yield rows and their vectors, batch by batch."""
        spans = [_Span(row, 0, min(len(ids), self._room)) for row, ids in enumerate(tokens)]
        for rows, hidden, mask in self._states(tokens, spans, batch_size):
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
        False takes the last state before the model's final norm, where it has one. For GPT-style
        models this needs a transformers that knows `tie_last_hidden_states` (5.15 does not).
    device : str or torch.device, optional
        By default a CUDA device where there is one, else the CPU.
    dtype : {"float32", "bfloat16", "float16"}
        Of weights and arithmetic. A loaded model keeps its own.
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
        span = _Span(0, 0, len(self._example))
        self.dim = next(self._states([self._example], [span]))[1].shape[-1]

    def encode(
        self, inputs: Any, *, batch_size: int | None = None, progress: bool | None = None
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

        Returns
        -------
        WordVectors
            One row per word, in reading order. A word of which the tokenizer leaves nothing
            (zero-width characters) has a row of NaN, and one warning says how many there are.

        Raises
        ------
        TypeError
            If a sentence or a word is no text; the message names it.
        """
        sentences = _sentences(inputs)
        sizes = np.array([len(words) for words in sentences], np.intp)
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        out = np.full((offsets[-1], self.dim), np.nan, np.float32)
        with _progress(len(out), "word", progress) as bar:
            for start in range(0, len(sentences), _CHUNK):
                chunk = sentences[start : start + _CHUNK]
                for words, vectors in self._vectors(chunk, offsets[start:], batch_size):
                    out[words] = vectors
                    bar.update(len(words))
        lost = np.flatnonzero(np.isnan(out).all(axis=1))
        sentence = np.repeat(np.arange(len(sentences)), sizes)
        position = np.arange(len(sentence)) - offsets[sentence]
        if len(lost):
            where = f"sentence {sentence[lost[0]]}, word {position[lost[0]]}"
            warnings.warn(
                f"the tokenizer leaves nothing of {len(lost)} of {len(out)} words (the first: "
                f"{where}); their vectors are NaN",
                stacklevel=2,
            )
        flat = [word for words in sentences for word in words]
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
        texts = _listed(texts, "texts", single=(str, bytes))
        # Lists of words are tokenised as in `encode`, strings as the tokenizer does by itself.
        tokens = [
            self._tokenize([text])["input_ids"][0]
            if isinstance(text, str)
            else self._tokenize([words], self._word_tokenizer)["input_ids"][0]
            for text, words in zip(texts, _sentences(texts), strict=True)
        ]
        out: list[Any] = [None] * len(texts)
        spans = [_Span(row, 0, min(len(ids), self._room)) for row, ids in enumerate(tokens)]
        with _progress(len(texts), "text", progress) as bar:
            for rows, hidden, mask in self._states(tokens, spans):
                for row, states, count in zip(rows, hidden, mask.sum(dim=1), strict=True):
                    out[row] = self._finish(states[:count]).copy()
                bar.update(len(rows))
        self._warn_cut(sum(len(ids) > self._room for ids in tokens), len(texts))
        return out

    def _embed_rows(self, rows: Any) -> list[Vectors]:
        found = self.encode(rows)
        counts = np.bincount(found.sentence, minlength=len(rows))
        ends = np.cumsum(counts)
        return [found.vectors[end - count : end] for count, end in zip(counts, ends, strict=True)]

    def _vectors(
        self, sentences: list[list[str]], offsets: NDArray[np.intp], batch_size: int | None
    ) -> Iterator[tuple[NDArray[np.intp], Vectors]]:
        """Yield word numbers, counted over all sentences, and their vectors."""
        encoded = self._tokenize(sentences, self._word_tokenizer)
        tokens = encoded["input_ids"]
        spans: list[_Span] = []
        word_ids: list[NDArray[np.intp]] = []  # per span: the word each of its tokens speaks for
        for i, ids in enumerate(tokens):
            words = offsets[i] + np.array(encoded.word_ids(i), np.intp)
            pieces = windows(len(ids), self._room) if ids else []
            spans += [_Span(i, start, stop) for start, stop in pieces]
            if len(pieces) > 1:
                _, first, of_token = np.unique(words, return_index=True, return_inverse=True)
                last = np.append(first[1:], len(words)) - 1
                chosen = best_window(first, last, pieces)[of_token]
                word_ids += [
                    np.where(chosen[start:stop] == number, words[start:stop], -1)
                    for number, (start, stop) in enumerate(pieces)
                ]
            elif pieces:
                word_ids.append(words)
        for rows, hidden, mask in self._states(tokens, spans, batch_size):
            ids = np.full(tuple(mask.shape), -1, np.int64)
            for line, row in zip(ids, rows, strict=True):
                line[len(self._before) :][: len(word_ids[row])] = word_ids[row]
            vectors = pooling.words(
                hidden, torch.from_numpy(ids).to(hidden.device), subwords=self._subwords
            )
            yield np.unique(ids[ids >= 0]), self._finish(vectors)


_GREY = Image.new("RGB", (64, 64), "grey")


def _rebuild(kind: type[_Encoder], model: str, settings: dict[str, Any], _: Any) -> _Encoder:
    return kind(model, **settings)


def _restore(kind: type[_Encoder], state: dict[str, Any]) -> _Encoder:
    encoder = object.__new__(kind)
    encoder.__dict__.update(state)
    return encoder


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


def _listed(inputs: Any, what: str, *, single: tuple[type, ...]) -> list[Any]:
    """Make a list of what holds inputs in an order, and refuse what does not."""
    if isinstance(inputs, single):
        raise TypeError(f"encode takes a list of {what}, and got a single one; wrap it in a list")
    if (
        inputs is None
        or isinstance(inputs, set | frozenset | Mapping)
        or hasattr(inputs, "columns")
    ):
        raise TypeError(
            f"encode takes a list, tuple, array, pandas Series or datasets column of {what}, "
            f"and got {shown(inputs)}"
        )
    if not hasattr(inputs, "__len__") or not hasattr(inputs, "__iter__"):
        raise TypeError(f"encode takes a list of {what}, and got {shown(inputs)}")
    return list(inputs)


def _sentences(inputs: Any) -> list[list[str]]:
    """Make lists of words of sentences, or say which one is none."""
    sentences = []
    for row, sentence in enumerate(_listed(inputs, "sentences", single=(str, bytes))):
        if isinstance(sentence, str):
            sentence = sentence.split()
        elif not isinstance(sentence, list | tuple | np.ndarray):
            raise TypeError(
                f"sentence {row} is {shown(sentence)}; it has to be a str or a list of words"
            )
        for position, word in enumerate(sentence):
            if not isinstance(word, str):
                raise TypeError(f"sentence {row}, word {position} is {shown(word)}, not a str")
        sentences.append(list(sentence))
    return sentences


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
