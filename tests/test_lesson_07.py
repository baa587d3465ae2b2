"""Lesson 07: its loop trains, its map compares like with like, and fine-tuning beats the probe."""

import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from torch.nn import functional as F

import embedkit as ek

PATH = Path(__file__).parents[1] / "notebooks" / "07_fine_tuning.ipynb"
CODE = [cell for cell in nbformat.read(PATH, as_version=4).cells if cell.cell_type == "code"]
DEFINED = ("EPOCHS", "import copy", "import embedkit", "def both_poolings", "class WithHead",
           "def logits_at_cls", "def share_of_rate", "def prepare", "def batches", "def step",
           "def one_epoch", "def judge", "def word_loss")  # fmt: skip


def cell(beginning):
    """Find the one cell that has a line with this beginning."""
    (found,) = [c for c in CODE if re.search(rf"^{re.escape(beginning)}", c.source, re.MULTILINE)]
    return found


def definitions(source):
    """Keep settings, imports and functions: what follows two blank lines runs in the lesson."""
    blocks = source.split("\n\n\n")
    kept = [b for b in blocks if re.match(r"(?:[A-Z]|import|from|def|class|logging)", b)]
    return "\n\n\n".join(kept)


@pytest.fixture(scope="module")
def lesson():
    """The lesson's own functions, around the bundled model."""
    names = {"published": ek.TextEncoder("bundled/all-MiniLM-L6-v2", device="cpu")}
    names["tokenizer"] = names["published"].processor
    for beginning in DEFINED:
        exec(definitions(cell(beginning).source), names)
    return names


@pytest.fixture
def both(lesson):
    torch.manual_seed(0)
    return lesson["WithHead"](3)


@pytest.fixture(scope="module")
def reviews():
    return ek.load_data("bundled/reviews", "train").shuffle(seed=0)


@pytest.mark.parametrize("steps", [10, 128, 1003])
def test_the_rate_rises_to_all_of_it_and_falls_to_nothing(lesson, steps):
    shares = np.array([lesson["share_of_rate"](step, steps) for step in range(steps + 1)])
    top = shares.argmax()
    assert abs(top - steps / 10) <= 1 and shares[top] == pytest.approx(1, abs=0.11)
    assert (np.diff(shares[: top + 1]) > 0).all() and (np.diff(shares[top + 1 :]) < 0).all()
    assert 0 < shares[0] <= 1.01 * max(10 / steps, 0) and shares[-1] == 0


def test_batches_hold_every_row_once_and_little_padding(lesson, reviews):
    texts = list(reviews["text"])
    found = lesson["batches"](texts, size=32)
    assert sorted(row for rows in found for row in rows) == list(range(len(texts)))
    assert max(map(len, found)) == 32
    lengths = np.array([len(text) for text in texts])

    def padded(many):
        return sum(lengths[rows].max() * len(rows) for rows in many)

    assert padded(found) < 0.7 * padded(np.split(np.arange(len(texts)), range(32, len(texts), 32)))
    assert found != lesson["batches"](texts, size=32)  # at random


def test_both_poolings_are_those_of_the_encoder(lesson, reviews):
    texts = reviews[:20]["text"]
    model, tokenizer = lesson["published"].model, lesson["tokenizer"]
    joined = ek.TextEncoder(model, processor=tokenizer, pooling=lesson["both_poolings"])
    halves = np.split(joined.encode(texts), 2, axis=1)
    for kind, half in zip(("cls", "mean"), halves, strict=True):
        one = ek.TextEncoder(model, processor=tokenizer, pooling=kind).encode(texts)
        assert np.allclose(half, one, atol=1e-5)


def test_an_epoch_changes_head_and_model_and_lowers_the_loss(lesson, reviews, both, tmp_path):
    rows = reviews.select(range(24))
    frozen = lesson["published"].encode(rows["text"])
    head = both.head[1].weight.detach().clone()
    before = lesson["judge"](both, rows)[0]
    settings = lesson["prepare"](both, steps=12)
    for _ in range(6):
        many = lesson["batches"](rows["text"], size=12)
        lesson["one_epoch"](both, lesson["review_loss"], rows, many, *settings)
    loss, accuracy = lesson["judge"](both, rows)
    assert loss < 0.7 * before and accuracy > 0.6
    assert not both.training  # to judge is to use

    encoder = ek.TextEncoder(both.model, processor=lesson["tokenizer"], device="cpu")
    vectors = encoder.encode(rows["text"])
    assert (both.head[1].weight - head).abs().max() > 1e-4
    assert np.abs(vectors - frozen).max() > 1e-2
    assert np.array_equal(lesson["published"].encode(rows["text"]), frozen)

    both.model.save_pretrained(tmp_path)
    lesson["tokenizer"].save_pretrained(tmp_path)
    assert [path.suffix for path in tmp_path.glob("model*")] == [".safetensors"]
    loaded = ek.TextEncoder(str(tmp_path), device="cpu")
    assert np.allclose(loaded.encode(rows["text"]), vectors, atol=1e-5)


def test_judge_counts_as_one_would_by_hand(lesson, reviews, both):
    rows = reviews.select(range(70))  # more than one batch of it
    loss, accuracy = lesson["judge"](both, rows)
    encoder = ek.TextEncoder(both.model, processor=lesson["tokenizer"], pooling="cls")
    logits = both.head(torch.tensor(encoder.encode(rows["text"])))
    labels = torch.tensor(list(rows["label"]))
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-4)
    assert accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item())


def test_a_word_is_judged_at_its_first_token(lesson):
    torch.manual_seed(0)
    data = ek.load_data("bundled/entities", "train")
    batch = data[:4]
    tagger = lesson["WithHead"](len(data.features["ner_tags"].feature.names)).eval()
    words = ek.WordEncoder(tagger.model, processor=lesson["tokenizer"], subwords="first")
    logits = tagger.head(torch.tensor(words.encode(batch["tokens"]).vectors))
    tags = torch.tensor([tag for sentence in batch["ner_tags"] for tag in sentence])
    with torch.no_grad():
        loss = lesson["word_loss"](tagger, batch)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, tags).item(), abs=1e-4)


def printed(beginning):
    return "".join(output.get("text", "") for output in cell(beginning).outputs)


def test_the_committed_run_beats_the_frozen_probe():
    line = printed("frozen = ")
    frozen, tuned, error = map(float, re.findall(r"\d\.\d+", line))
    assert tuned - frozen > 2 * error


def committed(beginning):
    """Read a printed table: a list of numbers for each row, as they stand."""
    (text,) = [o.data["text/plain"] for o in cell(beginning).outputs if "data" in o]
    return [list(map(float, re.findall(r"-?\d\.\d+", line))) for line in text.split("\n")[1:]]


def test_in_the_committed_run_each_training_raises_its_own_column():
    published, sentiment, names = np.array(committed("reviews = {"))
    assert sentiment[0] > published[0] and names[2] > published[2]
    assert sentiment[1] < published[1]  # and the product is forgotten


@pytest.mark.slow
def test_another_seed_beats_the_frozen_probe_too(lesson, reviews):
    torch.manual_seed(1)
    cut = reviews.train_test_split(0.15, stratify_by_column="label", seed=1)
    test = ek.load_data("bundled/reviews", "test")
    both, epochs = lesson["WithHead"](3), 2
    steps = lesson["EPOCHS"] * -(-len(cut["train"]) // 32)
    settings = lesson["prepare"](both, steps)
    for _ in range(epochs):
        rows = lesson["batches"](cut["train"]["text"])
        lesson["one_epoch"](both, lesson["review_loss"], cut["train"], rows, *settings)
    probes = []
    for kind in ("cls", "mean"):
        encoder = ek.TextEncoder("bundled/all-MiniLM-L6-v2", pooling=kind)
        vectors = [encoder.encode(data["text"]) for data in (reviews, test)]
        probe = ek.evaluate.linear_probe(vectors[0], reviews["label"], vectors[1], test["label"])
        probes.append(probe)
    assert lesson["judge"](both, test)[1] > max(probes) + 0.03
