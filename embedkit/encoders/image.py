"""One vector per image."""

import functools
import inspect
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from embedkit import pooling as pooling_functions
from embedkit.encoders._base import Dtype, Model
from embedkit.encoders._forward import Combine, call, reading
from embedkit.encoders._inputs import OnError
from embedkit.encoders._machine import Device
from embedkit.encoders._tensors import TensorEncoder, Tensors
from embedkit.images import to_rgb
from embedkit.pooling import Pooling
from embedkit.words import Vectors

ImagePooling = Literal["auto", "cls", "max", "mean", "patch_mean", "projected"]

# A scaled image with more pixels than this is taken for a mistake.
_MOST_PIXELS = 50_000_000


class ImageEncoder(TensorEncoder):
    """One vector per image.

    Parameters
    ----------
    model : str, path or PreTrainedModel
        A bundled name (``"bundled/vit-glyphs"``), a folder, a Hub id, or a loaded model. Of CLIP
        and SigLIP the vision tower is taken.
    pooling : {"auto", "cls", "max", "mean", "patch_mean", "projected"} or function, default="auto"
        How the tokens of an image become one vector. ``"auto"`` is ``"mean"``: the average of all
        tokens, a ViT's class token included. ``"patch_mean"`` leaves special tokens out.
        ``"projected"`` is the vector in the space that CLIP and SigLIP share with texts. A function
        takes ``(hidden, mask)`` and returns (batch, dim); a CNN's map reaches it as
        (batch, height · width, channels).
    processor : image processor, optional
        Needed with a loaded model; otherwise the model's own.
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
        Scale every vector to length 1. By default False.
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
    processor : image processor
    dim : int
        Length of a vector.
    name, device, pooling, pooling_reason, normalize, published, commit, facts
        What was loaded, and what was decided; see `embedkit.encoders.Encoder`.

    Raises
    ------
    OSError
        If the model cannot be loaded; the message says why and what to do.
    ValueError
        If a setting is unknown, if the model cannot give it, or if the model gives the same image
        a different vector at each call.

    See Also
    --------
    TextEncoder, WordEncoder
    embedkit.pooling : the poolings as functions.

    Notes
    -----
    On a CUDA device PyTorch rounds convolutions to TF32: in a trial, numbers of up to 3.7 changed
    by 0.001. ``torch.backends.cudnn.allow_tf32 = False`` prevents it.

    Examples
    --------
    >>> encoder = ImageEncoder("bundled/vit-glyphs")
    >>> encoder.encode([Image.new("L", (28, 28))]).shape == (1, encoder.dim)
    True
    """

    kind, reads, columns, unit = "image", ("pixel_values",), ("image",), "image"
    single = (Image.Image, str, bytes, os.PathLike)
    tower, features = "vision_model", "get_image_features"

    def __init__(
        self,
        model: Model,
        *,
        pooling: ImagePooling | Pooling = "auto",
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
        super().__init__(
            model, pooling=pooling, processor=processor, layers=layers, combine=combine,
            final_norm=final_norm, dim=dim, normalize=normalize, device=device, dtype=dtype,
            revision=revision, token=token, cache_dir=cache_dir,
            attn_implementation=attn_implementation, model_kwargs=model_kwargs,
        )  # fmt: skip

    def set_up(self) -> None:
        """Take the processor of images out of one for texts and images."""
        self.processor = getattr(self.processor, "image_processor", self.processor)
        parameters = inspect.signature(self.processor.preprocess).parameters.values()
        takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
        takes_format = takes_any or any(each.name == "input_data_format" for each in parameters)
        # Told, because an image of height 1 or 3 looks like one with its channels in front.
        self._format = {"input_data_format": "channels_last"} if takes_format else {}

    def examples(self) -> list[Image.Image]:
        """Give two images of one size that differ everywhere."""
        ramp = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
        return [Image.fromarray(ramp), Image.fromarray(255 - ramp)]

    def look(self) -> dict[str, Any]:
        """Find out where a map has its channels, and which tokens are not patches."""
        pair = [self.prepare(image, row) for row, image in enumerate(self.examples())]
        inputs = self.to_model(self.collate(pair))
        with reading(self.model):
            try:
                outputs = call(type(self).__name__, self.body, inputs, output_hidden_states=True)
            except ValueError:  # some models of timm have no hidden states to give
                outputs = call(type(self).__name__, self.body, inputs)
        last = getattr(outputs, "last_hidden_state", None)
        states = getattr(outputs, "hidden_states", None) or ()
        states = [state for state in states if isinstance(state, Tensor)]
        state = last if self._layers.last_only or not states else states[-1]
        if not isinstance(state, Tensor) or state.ndim not in (3, 4) or len(state) != 2:
            shape = tuple(state.shape) if isinstance(state, Tensor) else state
            raise ValueError(
                f"ImageEncoder: {type(self.body).__name__} gives a last hidden state of shape "
                f"{shape} for two images; it has to be (images, tokens, dim) or a map for each; "
                "choose another model"
            )
        # A square image has a square map, so a third size belongs to the channels.
        _, height, width = state.shape[:3]
        channels_last = state.ndim == 4 and height == width != state.shape[3]
        return {"channels_last": channels_last, "special": _special_tokens(state, states)}

    def poolings(self) -> dict[str, Pooling]:
        """List what this model's output allows."""
        front, back = self.facts["special"]  # type: ignore[index]
        patch_mean = functools.partial(pooling_functions.patch_mean, special=front, behind=back)
        cls: dict[str, Pooling] = {"cls": pooling_functions.cls} if front else {}
        return {**cls, **super().poolings(), "patch_mean": patch_mean}

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
            A list, tuple, array, Series, iterator or `datasets` column of PIL images (any mode),
            paths, or arrays (height, width) or (height, width, channels): integers from 0 to 255,
            floats from 0 to 1, or 16 bits. Files are opened shortly before their turn.
        batch_size : int, optional
            Images per batch; by default batches are filled by pixels. The vectors are the same.
        progress : bool, optional
            Show a progress bar; by default, if the work takes over two seconds.
        out : array of float, shape (n, dim), optional
            Where to write the vectors, as into an `np.memmap` for more than memory holds.
        on_error : {"raise", "skip"}, default="raise"
            What happens to an input that is not an image: it stops the work, or it has NaN for a
            vector and one warning lists all that do.

        Returns
        -------
        array of float32, shape (n, dim)
            In the order of `inputs`; (0, dim) for none. With `out`, that array.

        Raises
        ------
        TypeError, ValueError
            If an input is not an image; the message names it. If `out` does not fit.
        """
        if isinstance(inputs, np.ndarray) and inputs.ndim == 3 and inputs.shape[-1] in (3, 4):
            raise ValueError(
                f"encode takes a list of images, and an array {inputs.shape} looks like a single "
                "one; wrap it in a list"
            )
        return super().encode(
            inputs, batch_size=batch_size, progress=progress, out=out, on_error=on_error
        )

    def prepare(self, value: Any, row: int) -> Tensors:
        """Open an image; let the processor resize, scale and normalize it."""
        image = to_rgb(value, row)
        # Many processors scale the shorter side, and a long thin image would fill the memory.
        edge = (getattr(self.processor, "size", None) or {}).get("shortest_edge")
        if edge and edge * edge * max(image.size) / min(image.size) > _MOST_PIXELS:
            raise ValueError(
                f"image {row} is {image.width} by {image.height} pixels, and this model's "
                f"processor would scale its shorter side to {edge}; crop it first"
            )
        made = self.processor(images=[image], return_tensors="pt", **self._format)
        return {"pixel_values": made["pixel_values"][0]}

    def _as_tokens(self, state: Tensor) -> Tensor:
        """Give a map, (batch, channels, h, w) or (batch, h, w, channels), the shape of tokens."""
        if state.ndim == 4:
            last = self.facts["channels_last"]  # type: ignore[index]
            # (batch, channels, h, w) -> (batch, h · w, channels)
            state = state.flatten(1, 2) if last else state.flatten(2).transpose(1, 2)
        return state.float()

    def _column(self, batch: Any, column: str) -> Any:
        """Take the files as they are stored: decoded, a batch of photographs fills the memory."""
        from embedkit.encoders._arrow import is_image_storage

        stored = getattr(batch, "pa_table", {column: None})[column]
        if stored is None or not is_image_storage(stored.type):
            return super()._column(batch, column)
        files = stored.to_pylist()
        # What lies elsewhere, or in an archive, is for `datasets` to fetch.
        away = any(file and not file["bytes"] and "://" in (file["path"] or "") for file in files)
        return batch[column] if away else files


def _special_tokens(state: Tensor, states: Sequence[Tensor]) -> tuple[int, int]:
    """Count the tokens before the first patch and behind the last, from a pair of images.

    Class tokens and registers come from the weights, so in the embedding output they are the same
    for every image.
    """
    tokens = state.shape[1]
    if state.ndim == 4:
        return 0, 0
    if states and states[0].ndim == 3 and states[0].shape[1] == tokens:
        one, other = states[0].float()
        same = torch.isclose(one, other, rtol=1e-4, atol=1e-5).all(dim=1).int()
        if same.all():  # the learned queries of a detector, and no patches
            return 0, 0
        return int(same.cumprod(0).sum()), int(same.flip(0).cumprod(0).sum())
    if states and states[-1].ndim == 4:  # a map and, before its places, what was pooled of it
        return tokens - states[-1][0].numel() // state.shape[2], 0
    return tokens - math.isqrt(tokens) ** 2, 0  # the patches of a square image form a square
