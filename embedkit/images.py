"""Images of any kind become RGB images; an error names what is not an image."""

import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError


def to_rgb(image: Any, row: int) -> Image.Image:
    """Open, turn upright and convert one image; an error names the row."""
    try:
        if isinstance(image, Mapping) and "bytes" in image:  # a `datasets` image, not decoded
            image = image["bytes"] or image["path"]
        if isinstance(image, bytes):
            image = Image.open(io.BytesIO(image))
        elif isinstance(image, str | os.PathLike):
            image = Image.open(image)
        elif not isinstance(image, Image.Image):
            image = _from_array(np.asarray(image))
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to white
            deep = np.asarray(image)
            if deep.min() < 0 or deep.max() > 65535:
                raise ValueError("32 bits; give it as an array of floats from 0 to 1")
            image = _from_array(deep.astype(np.uint16))
        elif image.mode == "F":  # floats, which it would clip to black
            image = _from_array(np.asarray(image))
        return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError(f"image {row} is no image file that Pillow can read: {error}") from error
    except FileNotFoundError as error:
        raise ValueError(f"image {row}: there is no file {error.filename}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"image {row} would fill the memory ({error}); if you trust it, raise "
            "PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except Exception as error:  # on broken files, Pillow's readers raise all kinds
        raise ValueError(f"image {row} ({describe(image)}) cannot be read: {error}") from error


def _from_array(array: NDArray[Any]) -> Image.Image:
    """Make an image of an array (height, width) or (height, width, channels)."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not array.size or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)):
        raise ValueError(
            f"an array of shape {array.shape}; give (height, width) or (height, width, 3 or 4)"
        )
    if array.dtype == np.uint16:
        array = array / 65535
    if array.dtype == bool or np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):  # written so that NaN fails too
            raise ValueError("floats outside 0 to 1; scale them, or give integers from 0 to 255")
        array = np.round(array * 255.0)
    elif not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"an array of {array.dtype}; give integers or floats")
    if array.min() < 0 or array.max() > 255:
        raise ValueError("integers outside 0 to 255")
    return Image.fromarray(array.astype(np.uint8))


def describe(value: Any) -> str:
    """Describe a wrong value in a few characters."""
    return "None" if value is None else f"a {type(value).__name__} ({str(value)[:30]!r})"
