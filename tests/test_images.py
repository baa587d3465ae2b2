"""What may be called an image: any mode, array, path or bytes; and what may not."""

import io

import numpy as np
import pytest
from conftest import steady
from PIL import Image

import embedkit as ek
from embedkit.images import to_rgb
from tests.conftest import picture

GREY = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)


def pixels(image) -> np.ndarray:
    rgb = to_rgb(image, 0)
    assert rgb.mode == "RGB"
    return np.asarray(rgb)


@pytest.fixture
def encoder(tiny):
    return ek.ImageEncoder(tiny("vit"))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "RGB", "HSV", "YCbCr"])
def test_any_mode_is_converted_as_the_page_does(encoder, mode):
    image = picture(0).convert(mode)
    np.testing.assert_array_equal(pixels(image), np.asarray(image.convert("RGB")))
    as_rgb = encoder.encode([image.convert("RGB")])
    np.testing.assert_array_equal(encoder.encode([image]), as_rgb)


def test_sixteen_bits_are_scaled_and_not_clipped():
    deep = GREY.astype(np.uint16) * 257
    expected = np.repeat(GREY[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(pixels(Image.fromarray(deep)), expected)
    np.testing.assert_array_equal(pixels(deep), expected)
    buffer = io.BytesIO()
    Image.fromarray(deep).save(buffer, "PNG")
    np.testing.assert_array_equal(pixels(buffer.getvalue()), expected)


def test_arrays_of_any_kind():
    color = np.stack([GREY, GREY[::-1], 255 - GREY], axis=2)
    alpha = np.concatenate([color, np.full((4, 6, 1), 255, np.uint8)], axis=2)
    grey = np.repeat(GREY[:, :, None], 3, axis=2)
    for array, expected in (
        (GREY, grey),
        (GREY[:, :, None], grey),
        (GREY.astype(np.int64), grey),
        (GREY / 255, grey),
        ((GREY / 255).astype(np.float32), grey),
        (color, color),
        (color.astype(np.float64) / 255, color),
        (color.astype(np.uint16) * 257, color),
        (alpha, color),
        (GREY > 100, np.where(grey > 100, 255, 0)),
        (GREY.tolist(), grey),
    ):
        np.testing.assert_array_equal(pixels(array), expected)


def test_paths_bytes_and_undecoded_images_are_opened(encoder, tmp_path):
    image = picture(3)
    path = tmp_path / "picture.png"
    image.save(path)
    data = path.read_bytes()
    same = [
        image,
        path,
        str(path),
        data,
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(path)},
    ]
    vectors = encoder.encode(same)
    np.testing.assert_allclose(vectors, vectors[:1].repeat(len(same), 0), rtol=0, atol=1e-6)


def test_photographs_are_turned_upright(tmp_path):
    image = picture(5)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    path = tmp_path / "turned.png"
    image.save(path, exif=exif)
    upright = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(pixels(path), upright)


def test_one_pixel_is_an_image(encoder):
    assert np.isfinite(encoder.encode([np.zeros((1, 1), np.uint8)])).all()


@pytest.fixture
def broken(tmp_path):
    """Give inputs that are no images, by name."""
    whole, text = tmp_path / "whole.png", tmp_path / "text.png"
    picture(0, size=(200, 200)).save(whole)
    text.write_text("I am not a picture.")
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:2000])
    return {"cut": cut, "text": text, "missing": tmp_path / "no.png", "folder": tmp_path}


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("cut", r"image 2 .*cannot be read"),
        ("text", r"image 2 is no image file that Pillow can read"),
        ("missing", r"image 2: there is no file .*no\.png"),
        ("folder", r"image 2 .*cannot be read"),
        (None, r"image 2 \(None\) cannot be read"),
        (7, r"image 2 .*shape \(\)"),
        (object(), r"image 2 .*cannot be read"),
        (b"", r"image 2 is no image file"),
        (np.zeros((3, 32, 32), np.uint8), r"image 2 .*shape \(3, 32, 32\)"),
        (np.zeros((2, 2)) + 7, r"image 2 .*floats outside 0 to 1"),
        (np.full((2, 2), np.nan), r"image 2 .*floats outside 0 to 1"),
        (np.full((2, 2), -1), r"image 2 .*integers outside 0 to 255"),
        (np.zeros((2, 2), complex), r"image 2 .*complex128"),
        (np.zeros((0, 5), np.uint8), r"image 2 .*shape \(0, 5\)"),
        ({"bytes": None, "path": None}, r"image 2 .*cannot be read"),
    ],
    ids=steady,
)
def test_what_is_no_image_is_named_by_its_row(encoder, broken, which, message):
    wrong = broken.get(which, which) if isinstance(which, str) else which
    with pytest.raises(ValueError, match=message):
        encoder.encode([picture(0), picture(1), wrong, picture(2)])


@pytest.mark.parametrize("single", [picture(0), "cat.png", b"...", np.zeros((8, 8, 3), np.uint8)])
def test_a_single_image_has_to_be_wrapped(encoder, single):
    with pytest.raises((TypeError, ValueError), match="single one; wrap it in a list"):
        encoder.encode(single)
