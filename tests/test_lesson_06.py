"""Lesson 06: what it cuts apart is what single encoders give, and its tests are the textbook's."""

import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from scipy.stats import binom

import embedkit as ek

pytestmark = pytest.mark.slow  # it executes cells of the lesson first
PATH = Path(__file__).parents[1] / "notebooks" / "06_layers_and_pooling.ipynb"
CODE = [cell for cell in nbformat.read(PATH, as_version=4).cells if cell.cell_type == "code"]
SPLITS = ("train", "test")
ROWS = 40


def cell(beginning):
    """Find the one cell that has a line with this beginning."""
    (found,) = [c for c in CODE if re.search(rf"^{re.escape(beginning)}", c.source, re.MULTILINE)]
    return found


@pytest.fixture(scope="module")
def lesson():
    """The lesson's own cells, run on a few rows of its data."""
    names = {}
    for beginning in ("MODEL = ", "import numpy", "def load", "encoder = ", "def every"):
        exec(cell(beginning).source.replace("ROWS = 1000", f"ROWS = {ROWS}"), names)
    for beginning in ("KINDS = ", "image_encoder = ", "layers, spaces", "def answers",
                      "def right_on_test"):  # fmt: skip
        exec(cell(beginning).source, names)
    return names


@pytest.mark.parametrize("layer", [0, 3, 6])
@pytest.mark.parametrize("kind", ["cls", "mean", "max", "last"])
def test_a_cell_of_the_reviews_is_what_an_encoder_gives(lesson, kind, layer):
    encoder = ek.TextEncoder(
        lesson["model"], processor=lesson["tokenizer"], pooling=kind, layers=layer
    )
    for split in SPLITS:
        vectors = encoder.encode(lesson["data"]["reviews"][split]["text"])
        assert np.allclose(lesson["spaces"]["reviews"][kind][split][layer], vectors, atol=1e-4)


@pytest.mark.parametrize("kind", ["cls", "max", "patch_mean"])
def test_a_cell_of_the_digits_is_what_an_encoder_gives(lesson, kind):
    model, processor = lesson["image_encoder"].model, lesson["image_encoder"].processor
    encoder = ek.ImageEncoder(model, processor=processor, pooling=kind, layers=4)
    vectors = encoder.encode(lesson["data"]["digits"]["test"]["image"])
    assert np.allclose(lesson["spaces"]["digits"][kind]["test"][4], vectors, atol=1e-4)


@pytest.mark.parametrize("kind", ["first", "last"])
def test_a_cell_of_the_entities_is_what_an_encoder_gives(lesson, kind):
    encoder = ek.WordEncoder(
        lesson["model"], processor=lesson["tokenizer"], subwords=kind, layers=5
    )
    data = lesson["data"]["entities"]["test"]
    mentions = encoder.encode(data["tokens"]).entities(data["ner_tags"])
    found = lesson["spaces"]["entities"][kind]["test"][5]
    assert np.allclose(found, mentions.vectors, atol=1e-4)
    assert list(lesson["labels"]["entities"]["test"]) == list(mentions.label)


def test_valid_rows_are_asked_of_the_others_only(lesson):
    """Random labels cannot be told: with the asked row among the known ones they could."""
    vectors = lesson["spaces"]["reviews"]["mean"]["train"][3]
    labels = {"train": np.random.default_rng(0).integers(0, 8, len(vectors))}
    saved, lesson["labels"] = lesson["labels"], {"random": labels}  # on_valid reads it there
    try:
        found = [lesson["on_valid"]("random", vectors, kind) for kind in ("5-NN", "probe")]
    finally:
        lesson["labels"] = saved
    assert max(found) < 0.5


def test_mcnemar_counts_the_rows_on_which_two_differ(lesson):
    first = np.array([True] * 14 + [False] * 6)
    second = np.array([True] * 6 + [False] * 12 + [True] * 2)
    found = lesson["compare"](first, second)
    assert (found["only first"], found["only second"]) == (8, 2)
    assert found["p"] == pytest.approx(2 * binom.cdf(2, 10, 0.5))


def test_the_committed_choice_is_reported_on_test_once():
    """On the bundled data a middle layer tells the sentiment better than the last, by the test."""
    (text,) = [o.data["text/plain"] for o in cell("report = {}").outputs if "data" in o]
    first = text.split("\n\n")[0]  # pandas prints a wide table in blocks
    rows = {line.split()[0]: line for line in first.split("\n")[1:] if line.strip()}
    assert list(rows) == ["reviews", "digits", "entities"]
    chosen, usual = map(float, re.findall(r" (0\.\d+)", rows["reviews"])[:2])
    layer = int(re.search(r"layer (\d)", rows["reviews"])[1])
    assert chosen > usual and 0 < layer < 6
