"""Wrong input, and the sentence that tells a learner what to do about it."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import steady

import embedkit as ek
from tests.conftest import picture

ROWS = np.random.default_rng(0).normal(size=(20, 4))
LABELS = [0, 1] * 10
WITH_NAN = np.where(np.arange(20)[:, None] == 3, np.nan, ROWS)
KNN, PROBE = ek.evaluate.knn_accuracy, ek.evaluate.linear_probe
SILHOUETTE, TRUST = ek.evaluate.silhouette, ek.evaluate.trustworthiness
DRIFT, MAJORITY = ek.evaluate.drift, ek.evaluate.majority_baseline


@pytest.mark.bad_input("texts")
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("one text", "takes a list of texts, and got a single one; wrap it in a list"),
        (b"one text", "wrap it in a list"),
        (None, "and got None"),
        (7, "column of texts, and got a int"),
        ({"text": ["a"]}, "datasets column of texts, and got a dict"),
        ({"a", "b"}, "and got a set"),
        (pd.DataFrame({"text": ["a"]}), "pandas Series or datasets column"),
        (np.array("a"), "column of texts, and got a ndarray"),
        (["a", None, "b"], "text 1 is None; it has to be a str"),
        (["a", "b", 3.5], "text 2 is a float ('3.5')"),
        (pd.Series(["a", float("nan")]), "text 1 is a float ('nan')"),
        (["a", b"b"], "text 1 is a bytes"),
        (["a", ["b", "c"]], "text 1 is a list"),
    ],
    ids=steady,
)
def test_texts_that_are_none(tiny, inputs, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        ek.TextEncoder(tiny("bert")).encode(inputs)


@pytest.mark.bad_input("words")
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("one sentence", "takes a list of sentences, and got a single one"),
        (None, "and got None"),
        (["a", None], "sentence 1 is None; it has to be a str or a list of words"),
        ([7], "sentence 0 is a int ('7')"),
        ([["a"], ["b", None]], "sentence 1, word 1 is None; it has to be a str"),
        ([["a", 3]], "sentence 0, word 1 is a int ('3'); it has to be a str"),
    ],
    ids=steady,
)
def test_sentences_that_are_none(tiny, inputs, message):
    encoder = ek.WordEncoder(tiny("bert"))
    with pytest.raises(TypeError, match=re.escape(message)):
        encoder.encode(inputs)
    with pytest.raises(TypeError, match=re.escape(message.replace("of sentences", "of texts"))):
        encoder.token_states(inputs)


@pytest.mark.bad_input("settings")
@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"pooling": "clss"}, ValueError, "TextEncoder(pooling='clss'): unknown pooling; choose"),
        ({"pooling": "patch_mean"}, ValueError, "choose from cls, last, max, mean, or pass a fun"),
        ({"pooling": lambda h, m: h}, ValueError, "it has to return a tensor (batch, dim)"),
        ({"pooling": lambda h, m: 0}, ValueError, "the pooling function made int"),
        ({"dtype": "float64"}, ValueError, "choose from float32, bfloat16, float16"),
        ({"combine": "sum"}, ValueError, "choose from mean, concat"),
        ({"layers": []}, ValueError, "give a layer number or a list of layer numbers"),
        ({"layers": [0.5]}, ValueError, "give a layer number or a list of layer numbers"),
        ({"layers": 3}, ValueError, "has hidden states 0 (the embedding output) to 2"),
        ({"layers": [0, -4]}, ValueError, "has hidden states 0 (the embedding output) to 2"),
        ({"max_length": 2}, ValueError, "give a number from 3 to 512"),
        ({"max_length": 513}, ValueError, "give a number from 3 to 512"),
        ({"device": "toaster"}, RuntimeError, "toaster"),
        ({"poling": "cls"}, TypeError, "poling"),
    ],
    ids=steady,
)
def test_settings_that_do_not_exist(tiny, settings, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        ek.TextEncoder(tiny("bert"), **settings)


def test_words_and_images_have_settings_of_their_own(tiny):
    with pytest.raises(ValueError, match="choose from first, last, mean"):
        ek.WordEncoder(tiny("bert"), subwords="middle")
    with pytest.raises(TypeError, match="pooling"):
        ek.WordEncoder(tiny("bert"), pooling="cls")
    with pytest.raises(ValueError, match="choose from cls, max, mean, patch_mean"):
        ek.ImageEncoder(tiny("vit"), pooling="last")
    with pytest.raises(ValueError, match=r"subwords='middle': unknown"):
        ek.pooling.words(torch.zeros(1, 1, 1), torch.zeros(1, 1), subwords="middle")


@pytest.mark.parametrize("texts", [["a"], []])
@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "8"])
def test_batch_sizes_that_are_none(tiny, batch_size, texts):
    message = "give a whole number of 1 or more, or None"
    with pytest.raises(ValueError, match=message):
        ek.TextEncoder(tiny("bert")).encode(texts, batch_size=batch_size)
    with pytest.raises(ValueError, match=message):
        ek.WordEncoder(tiny("bert")).encode(texts, batch_size=batch_size)
    with pytest.raises(ValueError, match=message):
        ek.ImageEncoder(tiny("vit")).encode([picture(0)], batch_size=batch_size)


@pytest.mark.parametrize(
    ("vectors", "settings", "message"),
    [
        (ROWS, {"method": "tsne"}, "choose from umap, pca"),
        (
            ROWS,
            {"method": "pca", "sample": 0},
            "project(sample=0): give a whole number of 1 or more",
        ),
        (ROWS[:3], {}, "UMAP needs at least 4 rows and got 3; use method='pca', or more rows"),
        (ROWS, {"sample": 3}, "UMAP needs at least 4 rows and got 3"),
        (ROWS, {"n_neighbors": 1}, "project(n_neighbors=1): give a whole number of 2 or more"),
    ],
)
def test_settings_of_a_map_that_do_not_exist(vectors, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ek.project(vectors, **settings)


@pytest.mark.parametrize("method", ["umap", "pca"])
@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (ROWS[0], "array (n, dim) of numbers. Expected 2D array, got 1D"),
        (ROWS[None], "array (n, dim) of numbers. Found array with dim 3"),
        ([["a", "b"]], "array (n, dim) of numbers"),
        ([[1, 2], [3]], "array (n, dim) of numbers"),
        (WITH_NAN, "1 of 20 rows hold NaN or infinite values (the first: row 3); leave them"),
        (np.where(np.isnan(WITH_NAN), np.inf, ROWS), "the first: row 3"),
    ],
)
def test_vectors_that_no_map_can_be_drawn_of(vectors, message, method):
    with pytest.raises(ValueError, match=re.escape(message)):
        ek.project(vectors, method=method)


@pytest.mark.parametrize(
    ("points", "settings", "message"),
    [
        (ROWS, {}, "points: give points (n, 2), and not (20, 4); use project first"),
        (ROWS[:, 0], {}, "Expected 2D array, got 1D array"),
        (ROWS[:, :2], {"labels": LABELS[:-1]}, "20 points but 19 labels"),
    ],
)
def test_figures_that_cannot_be_drawn(points, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ek.plot(points, **settings)


@pytest.mark.parametrize(
    ("score", "arguments", "message"),
    [
        (KNN, (ROWS, LABELS[:9], ROWS, LABELS), "train: 20 vectors but 9 labels"),
        (KNN, (ROWS, LABELS, ROWS[:5], LABELS), "test: 5 vectors but 20 labels"),
        (
            KNN,
            (ROWS[:3], LABELS[:3], ROWS, LABELS),
            "knn_predict(k=5): give a whole number from 1 to 3",
        ),
        (
            KNN,
            (ROWS[:0], [], ROWS, LABELS),
            "train: 0 vectors but 0 labels; give one for each, and at least one",
        ),
        (KNN, (WITH_NAN, LABELS, ROWS, LABELS), "train: 1 of 20 rows hold NaN"),
        (PROBE, (ROWS, LABELS, WITH_NAN, LABELS), "test: 1 of 20 rows hold NaN"),
        (PROBE, (ROWS, [0] * 20, ROWS, LABELS), "needs two classes or more"),
        (PROBE, (ROWS, [0] * 18 + [1] * 2, ROWS, LABELS), "each at least three times"),
        (PROBE, (ROWS[0], LABELS, ROWS, LABELS), "train: give an array (n, dim)"),
        (PROBE, ([["a"]] * 20, LABELS, ROWS, LABELS), "array (n, dim) of numbers"),
        (SILHOUETTE, (ROWS, [0] * 20), "got 1 classes in 20 rows"),
        (SILHOUETTE, (ROWS, list(range(20))), "got 20 classes in 20 rows"),
        (SILHOUETTE, (ROWS, LABELS[1:]), "20 vectors but 19 labels"),
        (TRUST, (ROWS, ROWS[:5, :2]), "20 vectors but 5 points"),
        (
            TRUST,
            (ROWS[:10], ROWS[:10, :2]),
            "trustworthiness(k=5): give a whole number from 1 to 4",
        ),
        (TRUST, (WITH_NAN, ROWS[:, :2]), "vectors: 1 of 20 rows hold NaN"),
        (TRUST, (ROWS, WITH_NAN[:, :2]), "points: 1 of 20 rows hold NaN"),
        (DRIFT, (ROWS, ROWS[:0]), "needs at least one row on both sides"),
        (DRIFT, (ROWS, ROWS[:, :3]), "reference has 4 dimensions and production has 3"),
        (DRIFT, (ROWS, WITH_NAN), "production: 1 of 20 rows hold NaN"),
        (MAJORITY, ([], [1]), "needs at least one label on both sides"),
    ],
)
def test_numbers_that_cannot_be_had(score, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        score(*arguments)


def test_drift_needs_a_shuffle():
    with pytest.raises(
        ValueError, match=r"drift\(permutations=0\): give a whole number of 1 or more"
    ):
        DRIFT(ROWS, ROWS, permutations=0)


def test_a_name_that_the_package_does_not_have():
    with pytest.raises(AttributeError, match="no attribute 'encode'"):
        ek.encode  # noqa: B018
    assert set(ek.__all__) <= set(dir(ek))
