"""Lesson 08: all three drifts are found, and silence is kept where there is none."""

import re
from pathlib import Path

import nbformat
import numpy as np
import pytest

import embedkit as ek

PATH = Path(__file__).parents[1] / "notebooks" / "08_drift.ipynb"
STORIES = {"reviews": "foreign", "entities": "drifted", "digits": "drifted"}
LEVEL = 0.01
parametrize = pytest.mark.parametrize("story", STORIES)
pytestmark = pytest.mark.slow  # it embeds every bundled split


@pytest.fixture(scope="module")
def lesson():
    """The lesson's own functions."""
    names = {"np": np, "ek": ek}
    for name in ("per_sentence", "random_splits", "by_chance", "centroid_distance"):
        for cell in nbformat.read(PATH, as_version=4).cells:
            if cell.cell_type == "code" and re.search(rf"^def {name}\(", cell.source, re.MULTILINE):
                # Up to the end of the function: what follows needs the rest of the lesson.
                exec(re.search(rf"def {name}\(.*?(?=^\S|\Z)", cell.source, re.M | re.S)[0], names)
    return names


@pytest.fixture(scope="module")
def mentions():
    encoder = ek.WordEncoder("bundled/all-MiniLM-L6-v2", subwords="mean", device="cpu")
    data = {
        split: ek.load_data("bundled/entities", split) for split in ("train", "test", "drifted")
    }
    return {
        split: encoder.encode(table["tokens"]).entities(table["ner_tags"])
        for split, table in data.items()
    }


@pytest.fixture(scope="module")
def vectors(lesson, mentions):
    texts = ek.TextEncoder("bundled/all-MiniLM-L6-v2", pooling="mean", device="cpu")
    images = ek.ImageEncoder("bundled/vit-glyphs", device="cpu")
    found = {}
    for story, last in STORIES.items():
        for split in ("train", "test", last):
            if story == "entities":
                found[story, split] = lesson["per_sentence"](mentions[split])[1]
            else:
                encoder, column = (texts, "text") if story == "reviews" else (images, "image")
                data = ek.load_data(f"bundled/{story}", split)
                found[story, split] = encoder.encode(data[column])
    return found


@parametrize
def test_the_drift_is_found(vectors, story):
    result = ek.evaluate.drift(vectors[story, "train"], vectors[story, STORIES[story]])
    assert result["p_value"] < LEVEL


@parametrize
def test_the_control_raises_no_alarm(vectors, story):
    result = ek.evaluate.drift(vectors[story, "train"], vectors[story, "test"])
    assert result["p_value"] > LEVEL


@parametrize
def test_random_splits_of_one_source_raise_hardly_an_alarm(lesson, vectors, story):
    rows = np.concatenate([vectors[story, "train"], vectors[story, "test"]])
    p_values = lesson["random_splits"](rows, len(vectors[story, "train"]), splits=100)
    assert len(p_values) == 100
    assert (p_values < LEVEL).sum() <= 5
    assert 0.35 < p_values.mean() < 0.65  # by chance they are spread evenly from 0 to 1


@parametrize
def test_the_lesson_shuffles_as_the_package_does(lesson, vectors, story):
    pair = vectors[story, "train"], vectors[story, "test"]
    chance = lesson["by_chance"](*pair, 199)
    distance = lesson["centroid_distance"](*pair)
    result = ek.evaluate.drift(*pair)
    assert result["distance"] == pytest.approx(distance, abs=1e-4)
    by_hand = (1 + (chance >= distance).sum()) / 200
    assert by_hand == pytest.approx(result["p_value"], abs=0.15)  # other shuffles


def test_mentions_of_one_sentence_are_not_drawn_one_by_one(mentions):
    """Why the lesson has a row per sentence: with a row per mention, alarms go off for nothing."""
    found = mentions["train"]
    generator, p_values = np.random.default_rng(0), []
    for seed in range(40):
        half = generator.permutation(np.unique(found.sentence))[::2]
        first = np.isin(found.sentence, half)
        result = ek.evaluate.drift(found.vectors[first], found.vectors[~first], seed=seed)
        p_values.append(result["p_value"])
    assert np.mean(np.array(p_values) < LEVEL) > 0.1
