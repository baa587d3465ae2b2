"""What it takes to encode much: written in place, opened late, stored as it is, in a fit dtype."""

import threading
import time
import warnings

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

import embedkit as ek
from embedkit.encoders import _tensors as tensors
from embedkit.encoders import image as image_encoder
from embedkit.loading import models
from tests.conftest import picture, sentence


def texts(count: int = 40) -> list[str]:
    generator = np.random.default_rng(3)
    return [sentence(int(n), generator) for n in generator.integers(1, 60, count)]


# Into a given array


@pytest.mark.slow
def test_vectors_are_written_into_a_memmap(tiny, tmp_path):
    encoder = ek.TextEncoder(tiny("bert"))
    out = np.memmap(tmp_path / "vectors", np.float32, "w+", shape=(40, encoder.dim))
    assert encoder.encode(texts(), out=out) is out
    out.flush()
    kept = np.memmap(tmp_path / "vectors", np.float32, "r", shape=(40, encoder.dim))
    np.testing.assert_array_equal(kept, encoder.encode(texts()))


def test_images_and_words_are_written_into_a_given_array(tiny):
    images = ek.ImageEncoder(tiny("vit"))
    pictures = [picture(i) for i in range(5)]
    out = np.zeros((5, images.dim), np.float16)
    assert images.encode(pictures, out=out) is out
    np.testing.assert_allclose(out, images.encode(pictures), atol=1e-2)

    words = ek.WordEncoder(tiny("bert"))
    with pytest.warns(UserWarning, match="leaves nothing"):
        expected = words.encode(["the kettle \u200b boils"] * 2).vectors
    out = np.zeros((8, words.dim), np.float32)
    with pytest.warns(UserWarning, match="leaves nothing of 2 of 8"):
        found = words.encode(["the kettle \u200b boils"] * 2, out=out)
    assert found.vectors is out
    np.testing.assert_array_equal(out, expected)
    assert np.isnan(out[[2, 6]]).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda dim: np.zeros((39, dim), np.float32),
        lambda dim: np.zeros((40, dim + 1), np.float32),
        lambda dim: np.zeros((40, dim), np.int64),
        lambda dim: np.broadcast_to(np.zeros(dim, np.float32), (40, dim)),
        lambda dim: [[0.0] * dim] * 40,
    ],
)
def test_an_array_that_does_not_fit_is_refused(tiny, make):
    encoder = ek.TextEncoder(tiny("bert"))
    with pytest.raises(ValueError, match=r"out is .*need an array of floats, shape \(40, 32\)"):
        encoder.encode(texts(), out=make(encoder.dim))


# Data sets


@pytest.mark.slow
def test_map_stores_vectors_of_a_fixed_size(tiny):
    data = Dataset.from_dict({"text": texts(), "n": list(range(40))})
    encoder = ek.TextEncoder(tiny("bert"))
    mapped = data.map(encoder, batched=True, batch_size=16, remove_columns=["n"])
    assert mapped.column_names == ["text", "embedding"]
    assert mapped.data.schema.field("embedding").type == pa.list_(pa.float32(), encoder.dim)
    found = mapped.with_format("numpy")["embedding"][:]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, encoder.encode(texts()), rtol=0, atol=1e-5)

    words = ek.WordEncoder(tiny("bert"))
    rows = Dataset.from_dict({"tokens": [["the", "kettle"], ["boils"], []]})
    mapped = rows.map(words, batched=True)
    fixed = pa.list_(pa.float32(), words.dim)
    assert mapped.data.schema.field("embedding").type == pa.list_(fixed)
    assert [len(row) for row in mapped["embedding"]] == [2, 1, 0]
    flat = np.concatenate([row for row in mapped["embedding"] if row])
    np.testing.assert_allclose(flat, words.encode(rows["tokens"]).vectors, rtol=0, atol=1e-5)


def test_a_function_around_an_encoder_gets_numbers(tiny):
    encoder = ek.TextEncoder(tiny("bert"))
    data = Dataset.from_dict({"text": texts()})
    mapped = data.map(
        lambda batch: {"length": np.linalg.norm(encoder(batch)["embedding"], axis=1)},
        batched=True,
    )
    lengths = np.linalg.norm(encoder.encode(texts()), axis=1)
    np.testing.assert_allclose(mapped["length"], lengths, rtol=1e-5)


def test_a_column_is_read_piece_by_piece(tiny, monkeypatch):
    monkeypatch.setattr("embedkit.encoders.text.CHUNK", 7)
    encoder = ek.TextEncoder(tiny("bert"))
    data = Dataset.from_dict({"text": texts()})
    column, read = data["text"], []
    kind = type(column)
    plain = kind.__getitem__
    monkeypatch.setattr(kind, "__getitem__", lambda self, key: read.append(key) or plain(self, key))
    found = encoder.encode(column)
    assert all(isinstance(key, slice) and key.stop - key.start == 7 for key in read)
    np.testing.assert_allclose(found, encoder.encode(texts()), rtol=0, atol=1e-5)


# Images


@pytest.mark.slow
def test_files_are_opened_a_few_at_a_time_and_in_threads(tiny, tmp_path, monkeypatch):
    paths = []
    for number in range(200):
        paths.append(tmp_path / f"{number}.png")
        picture(number).save(paths[-1])
    encoder = ek.ImageEncoder(tiny("vit"))
    opened, embedded, ahead, threads = 0, 0, [], set()
    plain_open, plain_embed = image_encoder.to_rgb, encoder._embed

    def counted_open(image, row):
        nonlocal opened
        opened += 1
        threads.add(threading.current_thread().name)
        return plain_open(image, row)

    def counted_embed(pixels):
        nonlocal embedded
        ahead.append(opened - embedded)
        embedded += len(pixels)
        return plain_embed(pixels)

    monkeypatch.setattr(image_encoder, "to_rgb", counted_open)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    encoder._embed = counted_embed
    found = encoder.encode(paths, batch_size=8)
    assert max(ahead) <= 8 + 2 * tensors._AHEAD + 2
    assert threading.current_thread().name not in threads
    del encoder._embed
    np.testing.assert_allclose(
        found, encoder.encode([picture(i) for i in range(200)]), rtol=0, atol=1e-5
    )


def test_a_bad_file_stops_the_work_and_is_named(tiny, tmp_path):
    good = tmp_path / "good.png"
    picture(0).save(good)
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    with pytest.raises(ValueError, match="image 30 is no image file"):
        ek.ImageEncoder(tiny("vit")).encode([good] * 30 + [bad] + [good] * 200)
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]


def test_images_of_many_sizes_keep_their_order(tiny):
    """Where the processor keeps an image's size, batches are of images of one size."""
    encoder = ek.ImageEncoder(tiny("resnet"))
    encoder.processor.do_resize = False
    pictures = [picture(i, size=(32 + 16 * (i % 3), 32)) for i in range(9)]
    alone = np.concatenate([encoder.encode([image]) for image in pictures])
    np.testing.assert_allclose(encoder.encode(pictures), alone, rtol=0, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(pictures, batch_size=2), alone, rtol=0, atol=1e-5)


def test_map_reads_stored_images_without_decoding_all_at_once(tiny, tmp_path, monkeypatch):
    paths = []
    for number in range(4):
        paths.append(str(tmp_path / f"{number}.png"))
        picture(number).save(paths[-1])
    encoder = ek.ImageEncoder(tiny("vit"))
    expected = encoder.encode([Image.open(path) for path in paths])
    features = Features({"image": ImageFeature(), "n": Value("int64")})
    by_path = Dataset.from_dict({"image": paths, "n": range(4)}, features=features)
    by_bytes = Dataset.from_dict({"image": [Image.open(path) for path in paths]})
    monkeypatch.setattr(ImageFeature, "decode_example", None)  # a call would fail
    for data in (by_path, by_bytes):
        found = data.map(encoder, batched=True).data.column("embedding").to_pylist()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


# Arithmetic


@pytest.mark.slow
def test_auto_takes_bfloat16_where_it_pays(tiny, monkeypatch):
    monkeypatch.setattr(models, "bfloat16_pays", lambda device: True)
    exact = ek.TextEncoder("bundled/all-MiniLM-L6-v2")
    with pytest.warns(UserWarning, match="dtype='auto' took bfloat16"):
        encoder = ek.TextEncoder("bundled/all-MiniLM-L6-v2", dtype="auto")
    assert encoder.model.dtype == torch.bfloat16
    left, right = encoder.encode(texts()), exact.encode(texts())
    assert left.dtype == np.float32
    product = np.sum(left * right, 1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    assert product.min() >= 0.9995
    with warnings.catch_warnings():  # a copy keeps the choice, and is silent about it
        warnings.simplefilter("error")
        kind, *arguments = encoder.__reduce__()
        again = kind(*arguments[0])
    assert again.model.dtype == torch.bfloat16


def test_auto_stays_with_float32_where_bfloat16_does_not_pay(tiny, monkeypatch):
    monkeypatch.setattr(models, "bfloat16_pays", lambda device: False)
    with pytest.warns(UserWarning, match="took float32: bfloat16 is no quicker"):
        encoder = ek.TextEncoder(tiny("bert"), dtype="auto")
    assert encoder.model.dtype == torch.float32


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_auto_stays_with_float32_where_bfloat16_turns_the_vectors(tiny, monkeypatch, kind):
    monkeypatch.setattr(models, "bfloat16_pays", lambda device: True)
    monkeypatch.setattr("embedkit.encoders._trying._SAME_DIRECTION", 1.1)
    make = ek.ImageEncoder if kind == "vit" else ek.WordEncoder
    with pytest.warns(UserWarning, match=r"took float32: bfloat16 would turn .* \(cosine 0\.9"):
        encoder = make(tiny(kind), dtype="auto")
    assert encoder.model.dtype == torch.float32
    exact = make(tiny(kind))
    inputs = [picture(1)] if kind == "vit" else ["the kettle boils"]
    found, expected = encoder.encode(inputs), exact.encode(inputs)
    if kind == "bert":
        found, expected = found.vectors, expected.vectors
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("slow", [torch.float32, torch.bfloat16])
def test_whether_bfloat16_pays_is_measured_on_a_cpu(monkeypatch, slow):
    def held_up(rows, weights):  # without the product, which may be slow in bfloat16 anyway
        time.sleep(0.02 if rows.dtype == slow else 0)
        return rows

    monkeypatch.setattr(torch.nn.functional, "linear", held_up)
    assert models.bfloat16_pays(torch.device("cpu")) == (slow == torch.float32)
    assert not models.bfloat16_pays(torch.device("meta"))
