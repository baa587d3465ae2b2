"""One vector per image."""

import functools
import os
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from embedkit import pooling
from embedkit.encoders._base import Encoder, Model, progress_bar
from embedkit.encoders._batches import batches
from embedkit.encoders._inputs import Faults, OnError, listed
from embedkit.images import to_rgb
from embedkit.loading import models
from embedkit.pooling import Pooling
from embedkit.words import Vectors

# Pixels per batch of images, for the same reason as a limit on tokens.
_PIXELS = 500_000
# Pixels of a scaled image that are no longer believed to be meant.
_MOST_PIXELS = 50_000_000
# Images prepared ahead of the model, for each thread that prepares them.
_AHEAD = 16
# The parameters that hold what a vision model puts in front of the patches.
_SPECIAL_IMAGE_TOKENS = ("cls_token", "class_embedding", "distillation_token", "register_tokens")


class ImageEncoder(Encoder):
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
            progress_bar(len(images), "image", progress) as bar,
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
        from embedkit.encoders._arrow import is_image_storage

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
