"""What people give by mistake, one row each: the right result, or one clear error."""

import io
import re
import zlib

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from datasets import Image as ImageFeature
from matplotlib import pyplot as plt
from PIL import Image
from scipy.sparse import csr_matrix

import embedkit as ek
from tests.conftest import picture

ROWS = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
POINTS, LABELS = ROWS[:, :2], [0, 1] * 10
HOLED = np.where(np.arange(20)[:, None] == 3, np.nan, ROWS)
TABLE = {"text": [f"row {n}" for n in range(20)], "label": LABELS}


def rows(*cases):
    """Make parameters of (id, given, answer): a pattern of the error, or a check of the result."""
    return [pytest.param(*case[1:], id=case[0]) for case in cases]


def answer(call, given, expected):
    """Hold a call to what it should do with a wrong input."""
    if callable(expected):
        result = call(given)
        assert expected(result), result
        return
    with pytest.raises((ValueError, TypeError), match=expected) as caught:
        call(given)
    assert type(caught.value) in (ValueError, TypeError), type(caught.value)  # and no kin
    assert len(str(caught.value)) < 400


def finite(vectors) -> bool:
    return bool(np.isfinite(getattr(vectors, "vectors", vectors)).all())


@pytest.fixture(scope="module")
def texts_of(tiny):
    encoder = ek.TextEncoder(tiny("bert"), pooling="mean")
    return lambda given: encoder.encode(given, progress=False)


@pytest.mark.bad_input("texts")
@pytest.mark.filterwarnings("ignore:.*cut there")
@pytest.mark.parametrize(
    ("given", "expected"),
    rows(
        ("None", None, "got None"),
        ("a number", 3, "got a int"),
        ("a bare string", "a kettle", "wrap it in a list"),
        ("bytes", b"a kettle", "wrap it in a list"),
        ("a dict", TABLE, "got a dict"),
        ("a data set for a column", Dataset.from_dict(TABLE), "got a Dataset"),
        ("None in the list", ["a", None], r"text 1 is None"),
        ("NaN in the list", ["a", np.nan], r"text 1 is a float"),
        ("bytes in the list", ["a", b"b"], "text 1 is a bytes"),
        ("a nested list", [["a"], ["b"]], "text 0 is a list"),
        ("a two-dimensional array", np.array([["a", "b"]]), "text 0 is a ndarray"),
        ("a lone surrogate", ["a", "b\ud800"], r"text 1 has half a character at position 1"),
        ("an empty string", ["", "a"], finite),
        ("white space", [" \n\t", "a"], finite),
        ("NUL", ["a\0b", "a"], finite),
        ("zero-width text", ["\u200b\u200d", "a"], finite),
        ("right-to-left text", ["\u202eمرحبا", "שלום"], finite),
        ("a million characters", ["a" * 1_000_000, "b"], finite),
        ("a misaligned index", pd.Series(["a", "b"], index=[7, 7]), lambda v: v.shape == (2, 32)),
    ),
)
def test_texts(texts_of, given, expected):
    answer(texts_of, given, expected)


@pytest.fixture(scope="module")
def words_of(tiny):
    encoder = ek.WordEncoder(tiny("bert"))
    return lambda given: encoder.encode(given, progress=False)


@pytest.mark.bad_input("words")
@pytest.mark.filterwarnings("ignore:the tokenizer leaves nothing")
@pytest.mark.parametrize(
    ("given", "expected"),
    rows(
        ("None", None, "got None"),
        ("a bare string", "a kettle", "wrap it in a list"),
        ("a number for a sentence", [["a"], 3], "sentence 1 is a int"),
        ("NaN for a word", [["a", np.nan]], "sentence 0, word 1 is a float"),
        ("a list for a word", [["a", ["b"]]], "sentence 0, word 1 is a list"),
        ("a lone surrogate", ["a b\udfff"], "word 1 has half a character"),
        ("no words", [[], "", " "], lambda f: len(f) == 0),
        ("zero-width words", [["a", "\u200b", "b"]], lambda f: f.word == ["a", "\u200b", "b"]),
        ("words with blanks", [["New York", "b"]], lambda f: len(f) == 2 and finite(f)),
        ("a word longer than the model", [["ab" * 5000, "b"]], lambda f: len(f) == 2 and finite(f)),
    ),
)
def test_words(words_of, given, expected):
    answer(words_of, given, expected)


@pytest.mark.bad_input("tags")
@pytest.mark.parametrize(
    ("tags", "expected"),
    rows(
        ("too few", [["O"], ["O"]], "sentence 0 has 3 words but 1 tags"),
        ("sentences missing", [["O"] * 3], "2 sentences but tags for 1"),
        ("not BIO", [["X-PER", "O", "O"], ["O"]], "X-PER"),
        ("numbers without names", [[1, 0, 0], [0]], "names"),
        ("begins with I-", [["I-PER", "I-PER", "O"], ["I-LOC"]],
         lambda f: f.word == ["ada lovelace", "paris"] and f.label == ["PER", "LOC"]),
        ("overlapping types", [["B-PER", "I-LOC", "I-LOC"], ["O"]],
         lambda f: f.word == ["ada", "lovelace sings"] and f.label == ["PER", "LOC"]),
    ),
)  # fmt: skip
def test_tags(words_of, tags, expected):
    answer(words_of([["ada", "lovelace", "sings"], ["paris"]]).entities, tags, expected)


def encoded(image, kind="PNG", **settings) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(5), "JPEG", exif=exif, quality=95)


def bomb() -> bytes:
    """A PNG of a few hundred bytes that claims 20,000 by 20,000 pixels."""
    data = bytearray(encoded(Image.new("1", (8, 8))))
    data[16:24] = (20_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.fixture(scope="module")
def images_of(tiny):
    encoder = ek.ImageEncoder(tiny("vit"))
    return lambda given: encoder.encode(given, progress=False)


def like(images_of, image):
    """Say whether vectors are those of an image that needs no care."""
    return lambda vectors: np.abs(vectors[0] - images_of([image])[0]).max() < 0.15


@pytest.mark.bad_input("images")
@pytest.mark.parametrize(
    ("given", "expected"),
    rows(
        ("None", None, "got None"),
        ("a bare image", picture(0), "wrap it in a list"),
        ("None in the list", [picture(0), None], r"image 1 \(None\)"),
        ("a truncated JPEG", [encoded(picture(0, size=(300, 300)), "JPEG")[:1500]], "image 0"),
        ("a text file named .png", [b"I am not a picture."], "image 0 is no image file"),
        ("a missing file", ["no-such.png"], "image 0: there is no file"),
        ("a decompression bomb", [bomb()], r"image 0 would fill the memory .*MAX_IMAGE_PIXELS"),
        ("1 by 1", [Image.new("RGB", (1, 1), "red")], Image.new("RGB", (9, 9), "red")),
        ("3 pixels high", [Image.new("RGB", (9, 3), "red")], Image.new("RGB", (9, 9), "red")),
        ("40,000 by 2", [Image.new("RGB", (40_000, 2), "blue")], Image.new("RGB", (9, 9), "blue")),
        ("an animated GIF",
         [encoded(Image.new("RGB", (8, 8), "red"), "GIF", save_all=True,
                  append_images=[Image.new("RGB", (8, 8), "blue")])],
         Image.new("RGB", (9, 9), "red")),
        ("EXIF rotation", [turned()], picture(5).transpose(Image.Transpose.ROTATE_270)),
        ("16 bits", [Image.fromarray(np.full((8, 8), 51_400, np.uint16))],
         Image.new("RGB", (9, 9), (200, 200, 200))),
        ("32 bits", [Image.fromarray(np.full((8, 8), 90_000, np.int32))], "32 bits"),
        ("floats in a TIFF", [Image.fromarray(np.full((8, 8), 0.784, np.float32))],
         Image.new("RGB", (9, 9), (200, 200, 200))),
        ("CMYK", [encoded(picture(2).convert("CMYK"), "JPEG", quality=95)], picture(2)),
        ("floats beyond 1", [np.full((4, 4), 2.5)], "floats outside 0 to 1"),
        ("channels in front", [np.zeros((3, 32, 32), np.uint8)], r"shape \(3, 32, 32\)"),
        ("a number", [7], r"shape \(\)"),
    ),
)  # fmt: skip
def test_images(images_of, given, expected):
    is_image = isinstance(expected, Image.Image)
    answer(images_of, given, like(images_of, expected) if is_image else expected)


@pytest.mark.bad_input("images")
def test_a_thin_image_is_not_scaled_to_gigabytes(tiny):
    encoder = ek.ImageEncoder(tiny("vit"))
    encoder.processor.size = {"shortest_edge": 32}
    with pytest.raises(ValueError, match=r"image 0 is 400000 by 2 pixels.*crop it first"):
        encoder.encode([Image.new("L", (400_000, 2))])


@pytest.mark.bad_input("project")
@pytest.mark.parametrize(
    ("given", "settings", "expected"),
    rows(
        ("None", None, {}, "got scalar array"),
        ("one row", ROWS[:1], {}, "needs at least 4 rows and got 1"),
        ("all rows the same", np.ones((12, 4)), {}, finite),
        ("two identical rows", np.repeat(ROWS[:8], 2, axis=0), {}, finite),
        ("constant columns", np.c_[ROWS, np.ones(20)], {"method": "pca"}, finite),
        ("more neighbours than rows", ROWS, {"n_neighbors": 200}, finite),
        ("half a neighbour", ROWS, {"n_neighbors": 2.5}, "give a whole number"),
        ("NaN", HOLED, {}, "the first: row 3"),
        ("infinite", ROWS * np.inf, {}, "NaN or infinite"),
        ("complex", ROWS + 1j, {}, "Complex data"),
        ("no columns", np.zeros((20, 0)), {}, r"got \(20, 0\)"),
        ("words for vectors", [["a", "b"]] * 5, {}, "array .n, dim. of numbers"),
        ("an unknown metric", ROWS, {"metric": "cosinus"}, "metric"),
        ("a misaligned index", pd.DataFrame(ROWS, index=range(50, 70)), {"method": "pca"}, finite),
    ),
)
def test_project(given, settings, expected):
    answer(lambda vectors: ek.project(vectors, **settings), given, expected)


def legend(*expected):
    return lambda ax: [t.get_text() for t in ax.get_legend().get_texts()] == list(expected)


@pytest.mark.bad_input("plot")
@pytest.mark.parametrize(
    ("points", "settings", "expected"),
    rows(
        ("vectors for points", ROWS, {}, "use project first"),
        ("NaN", HOLED[:, :2], {}, "1 of 20 rows hold NaN or infinite values .the first: row 3"),
        ("ragged", [[1, 2], [3]], {}, "array .n, dim. of numbers"),
        ("too few labels", POINTS, {"labels": LABELS[:9]}, "20 points but 9 labels"),
        ("a bare string", POINTS[:3], {"labels": "abc"}, "got 'abc'"),
        ("lists for labels", POINTS, {"labels": [[1]] * 20}, "one label for each row"),
        ("too few names", POINTS, {"labels": LABELS, "names": ["a"]}, "label 1 has no name"),
        ("-1 for no label", POINTS, {"labels": [0, -1] * 10, "names": ["a", "b"]},
         legend("a (10)", "no label (10)")),
        ("floats for classes", POINTS, {"labels": [0.0, 1.0] * 10, "names": ["a", "b"]},
         legend("a (10)", "b (10)")),
        ("a misaligned index", POINTS, {"labels": pd.Series(LABELS, index=range(20, 0, -1))},
         legend("0 (10)", "1 (10)")),
    ),
)  # fmt: skip
def test_plot(points, settings, expected):
    answer(lambda xy: ek.plot(xy, **settings), points, expected)
    plt.close("all")


KNN, PROBE, DRIFT = ek.evaluate.knn_accuracy, ek.evaluate.linear_probe, ek.evaluate.drift


@pytest.mark.bad_input("evaluate")
@pytest.mark.parametrize(
    ("score", "given", "expected"),
    rows(
        ("lengths differ", KNN, (ROWS, LABELS[:9], ROWS, LABELS), "20 vectors but 9 labels"),
        ("dimensions differ", KNN, (ROWS, LABELS, POINTS, LABELS), "4 dimensions and test has 2"),
        ("dimensions differ, probe", PROBE, (ROWS, LABELS, POINTS, LABELS), "the same encoder"),
        ("NaN", PROBE, (HOLED, LABELS, ROWS, LABELS), "the first: row 3"),
        ("infinite values", PROBE, (ROWS * np.float64(1e200), LABELS, ROWS, LABELS), "infinite"),
        ("a label missing", KNN, (ROWS, [None, *LABELS[1:]], ROWS, LABELS), "1 of 20 rows have no"),
        ("NaN for a label", PROBE, (ROWS, [np.nan, *LABELS[1:]], ROWS, LABELS), "have no label"),
        ("amounts for labels", KNN, (ROWS, ROWS[:, 0], ROWS, LABELS), "are amounts"),
        ("a bare string", KNN, (ROWS[:3], "aab", ROWS[:3], "aab"), "got 'aab'"),
        ("names and numbers", KNN, (ROWS, LABELS, ROWS, ["0", "1"] * 10), "both as names or both"),
        ("one class", PROBE, (ROWS, [0] * 20, ROWS, LABELS), "two classes or more"),
        ("more neighbours than rows", KNN, (ROWS[:3], LABELS[:3], ROWS, LABELS), "from 1 to 3"),
        ("constant columns", PROBE, (np.ones((20, 2)), LABELS, np.ones((20, 2)), LABELS),
         lambda share: share == 0.5),
        ("one row", ek.evaluate.silhouette, (ROWS[:1], [0]), "got 1 classes in 1 rows"),
        ("a misaligned index", KNN, (pd.DataFrame(ROWS), pd.Series(LABELS, index=range(20, 0, -1)),
                                     ROWS, LABELS), lambda share: share == KNN(ROWS, LABELS, ROWS,
                                                                              LABELS)),
        ("equal sides", DRIFT, (ROWS, ROWS), lambda d: d["p_value"] == 1),
        ("an empty side", DRIFT, (ROWS, ROWS[:0]), "at least one row on both sides"),
        ("sparse", DRIFT, (csr_matrix(ROWS), ROWS), "Sparse data was passed"),
        ("complex", DRIFT, (ROWS + 1j, ROWS), "Complex data"),
    ),
)  # fmt: skip
def test_evaluate(score, given, expected):
    answer(lambda arguments: score(*arguments), given, expected)


@pytest.mark.bad_input("load_data")
@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    rows(
        ("None", None, {}, r"load_data\(None\): give a bundled name"),
        ("a number", 7, {}, r"load_data\(7\)"),
        ("an empty name", "", {}, r"load_data\(''\)"),
        ("no split", "bundled/reviews", {"split": None}, "give the name of one split"),
        ("an unknown split", "bundled/reviews", {"split": "dev"}, "choose from foreign, queries"),
        ("a way out of the folder", "bundled/../reviews", {}, "choose from bundled/digits"),
        ("another's split", "bundled/reviews", {"split": "../digits/test"}, "has no split"),
        ("a string for columns", "bundled/reviews", {"columns": "text"}, "give a dict"),
        ("two columns of a name", "bundled/reviews", {"columns": {"product": "text"}}, "two col"),
    ),
)
def test_load_data(name, settings, expected):
    answer(lambda given: ek.load_data(given, **settings), name, expected)


@pytest.mark.bad_input("explore")
@pytest.mark.parametrize(
    ("vectors", "data", "settings", "expected"),
    rows(
        ("None", None, TABLE, {}, "give an array"),
        ("no data", ROWS, None, {}, "got NoneType"),
        ("lengths differ", ROWS[:5], TABLE, {}, "has 5 rows, but there are 20 rows of data"),
        ("NaN alone", ROWS * np.nan, TABLE, {}, "no row of finite numbers"),
        ("an unknown column", ROWS, TABLE, {"color": "color"}, "choose a column from text, label"),
        ("one row", ROWS[:1], {"text": ["a"]}, {}, lambda e: e.points.shape == (1, 2)),
        ("infinite values", np.where(HOLED == HOLED, HOLED, np.inf), TABLE, {"points": POINTS},
         lambda e: e.points.shape == (19, 2)),
        ("a misaligned index", ROWS, pd.DataFrame(TABLE, index=range(50, 70)), {"points": POINTS},
         lambda e: len(e.points) == 20),
    ),
)  # fmt: skip
def test_explore(vectors, data, settings, expected):
    answer(lambda given: ek.explore(given, data, **settings), vectors, expected)


# Skipping what is wrong


@pytest.mark.bad_input("skipped")
def test_texts_that_are_skipped_keep_their_rows_and_are_listed(tiny):
    encoder = ek.TextEncoder(tiny("bert"))
    given = ["a kettle", None, "b\ud800", "a novel", 7, "a lamp"]
    with pytest.warns(
        UserWarning, match=r"3 of 6 rows .*\(rows 1-2, 4\).*text 1 is None"
    ) as caught:
        found = encoder.encode(given, on_error="skip")
    assert len(caught) == 1 and caught[0].filename == __file__
    for part in ("text 2 has half a character", "text 4 is a int"):
        assert part in str(caught[0].message)
    good = [0, 3, 5]
    assert np.isnan(found).all(axis=1).tolist() == [row not in good for row in range(6)]
    expected = encoder.encode([given[row] for row in good])
    np.testing.assert_allclose(found[good], expected, rtol=0, atol=1e-5)


@pytest.mark.bad_input("skipped")
def test_a_text_without_tokens_is_skipped_where_nothing_else_is_read(tiny):
    encoder = ek.TextEncoder(tiny("gpt2"), pooling="last")
    with pytest.warns(UserWarning, match=r"1 of 3 rows .*\(row 1\): text 1 \(''\) has no tokens"):
        found = encoder.encode(["a kettle", "", "a novel"], on_error="skip")
    np.testing.assert_allclose(found[[0, 2]], encoder.encode(["a kettle", "a novel"]), atol=1e-5)
    assert np.isnan(found[1]).all()


@pytest.mark.slow
@pytest.mark.bad_input("skipped")
def test_images_that_are_skipped_keep_their_rows_and_are_listed(tiny, tmp_path):
    encoder = ek.ImageEncoder(tiny("vit"))
    given = [picture(0), None, picture(1), b"no image", tmp_path / "no.png", picture(2)]
    with pytest.warns(UserWarning, match=r"3 of 6 rows .*\(rows 1, 3-4\).*there is no file"):
        found = encoder.encode(given, on_error="skip", batch_size=2)
    good = [0, 2, 5]
    assert np.isnan(found).all(axis=1).tolist() == [row not in good for row in range(6)]
    expected = encoder.encode([given[row] for row in good])
    np.testing.assert_allclose(found[good], expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.bad_input("skipped")
def test_words_that_are_skipped_keep_their_rows_and_are_listed(tiny):
    encoder = ek.WordEncoder(tiny("bert"))
    given = ["the kettle", None, ["in", 3, "paris"]]
    with pytest.warns(UserWarning, match=r"2 of 3 rows .*sentence 1 is None.*word 1 is a int"):
        found = encoder.encode(given, on_error="skip")
    assert found.sentence.tolist() == [0, 0, 1, 2, 2, 2]
    assert np.isnan(found.vectors).all(axis=1).tolist() == [False, False, True, False, True, False]
    tags = [["O", "O"], [], ["O", "O", "B-LOC"]]
    assert found.entities(tags).word == ["paris"]


@pytest.mark.bad_input("skipped")
def test_map_skips_when_told_to(tiny, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    picture(0).save(tmp_path / "good.png")
    files = [str(tmp_path / name) for name in ("good.png", "bad.png")]
    pictures = Dataset.from_dict({"image": files}).cast_column("image", ImageFeature())
    for encoder, data in (
        (ek.TextEncoder(tiny("bert")), Dataset.from_dict({"text": ["a", None]})),
        (ek.ImageEncoder(tiny("vit")), pictures),
    ):
        with pytest.raises((TypeError, ValueError), match=r"(text|image) 1 is"):
            data.map(encoder, batched=True)
        with pytest.warns(UserWarning, match=r"1 of 2 rows cannot be read"):
            mapped = data.map(encoder, batched=True, fn_kwargs={"on_error": "skip"})
        found = np.array(mapped.data.column("embedding").to_pylist())
        assert np.isnan(found).all(axis=1).tolist() == [False, True]
    with pytest.raises(ValueError, match="image 1 cannot be read"):
        encoder.encode(pictures["image"])


@pytest.mark.slow
@pytest.mark.bad_input("skipped")
def test_what_else_on_error_could_be():
    with pytest.raises(ValueError, match=re.escape("on_error='ignore': unknown; choose from")):
        ek.TextEncoder("bundled/all-MiniLM-L6-v2").encode(["a"], on_error="ignore")
