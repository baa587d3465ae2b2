"""Lesson 06: what it pools by hand, cell by cell, is what the encoders give."""

import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

import embedkit as ek

PATH = Path(__file__).parents[1] / "notebooks" / "06_layers_and_pooling.ipynb"
CODE = [cell for cell in nbformat.read(PATH, as_version=4).cells if cell.cell_type == "code"]
MODEL = "bundled/all-MiniLM-L6-v2"


def cell(beginning):
    """Find the one cell that has a line with this beginning."""
    (found,) = [c for c in CODE if re.search(rf"^{re.escape(beginning)}", c.source, re.MULTILINE)]
    return found


@pytest.fixture(scope="module")
def lesson():
    """The lesson's own functions, around the bundled model."""
    encoder = ek.TextEncoder(MODEL, device="cpu")
    names = {"np": np, "torch": torch, "tokenizer": encoder.processor, "model": encoder.model}
    for beginning in ("def all_states", "POOLINGS = {"):
        exec(cell(beginning).source, names)
    exec(cell("def pool_all").source.partition("\n\n\n")[0], names)
    return names


@pytest.fixture(scope="module")
def rows():
    return {split: ek.load_data("bundled/reviews", split).select(range(60)) for split in SPLITS}


SPLITS = ("train", "test")


@pytest.fixture(scope="module")
def pooled(lesson, rows):
    states = {split: lesson["all_states"](list(data["text"])) for split, data in rows.items()}
    return lesson["pool_all"](states, lesson["POOLINGS"])


@pytest.mark.parametrize("layer", [0, 2, 3, 6])
@pytest.mark.parametrize("kind", ["cls", "mean", "max", "last"])
def test_a_cell_of_the_heat_map_is_what_the_encoder_gives(lesson, rows, pooled, kind, layer):
    encoder = ek.TextEncoder(
        lesson["model"], processor=lesson["tokenizer"], pooling=kind, layers=layer
    )
    ours = [pooled[kind][split][layer] for split in SPLITS]
    theirs = [encoder.encode(rows[split]["text"]) for split in SPLITS]
    for by_hand, vectors in zip(ours, theirs, strict=True):
        assert np.allclose(by_hand, vectors, atol=1e-4)
    if layer > 0:  # before the first layer the special tokens are the same in every text
        labels = [rows[split]["label"] for split in SPLITS]
        scores = [
            ek.evaluate.knn_accuracy(train, labels[0], test, labels[1])
            for train, test in (ours, theirs)
        ]
        assert scores[0] == scores[1]


def test_the_model_has_one_state_more_than_layers(pooled):
    assert {each["test"].shape for each in pooled.values()} == {(7, 60, 384)}


def printed_table(beginning):
    """Read a printed table: a row of numbers for each name."""
    outputs = cell(beginning).outputs
    (text,) = [each.data["text/plain"] for each in outputs if "data" in each]
    return {line.split()[0]: list(map(float, line.split()[1:])) for line in text.split("\n")[1:]}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "layer"), [("mean", 3), ("max", 5)])
def test_the_committed_heat_map_of_the_reviews_is_the_encoders(kind, layer):
    found = printed_table('tables = {"reviews"')[kind][layer]
    encoder = ek.TextEncoder(MODEL, pooling=kind, layers=layer)
    data = [ek.load_data("bundled/reviews", split).shuffle(seed=0) for split in SPLITS]
    data = [each.select(range(500)) for each in data]
    vectors = [encoder.encode(each["text"]) for each in data]
    score = ek.evaluate.knn_accuracy(vectors[0], data[0]["label"], vectors[1], data[1]["label"])
    assert found == pytest.approx(score, abs=0.012)  # two digits, and other processors round else


@pytest.mark.slow
def test_the_committed_heat_map_of_the_entities_is_the_encoders():
    found = printed_table('pooled["entities"]')["last"][4]
    encoder = ek.WordEncoder(MODEL, subwords="last", layers=4)
    mentions = []
    for split in SPLITS:
        data = ek.load_data("bundled/entities", split)
        mentions.append(encoder.encode(data["tokens"]).entities(data["ner_tags"]))
    train, test = mentions
    score = ek.evaluate.knn_accuracy(train.vectors, train.label, test.vectors, test.label)
    assert found == pytest.approx(score, abs=0.012)
