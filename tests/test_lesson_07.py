"""Lesson 07: its loop trains the upper layers alone, and its comparisons are like with like."""

import copy
import os
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from torch.nn import functional as F

import embedkit as ek

pytestmark = pytest.mark.slow  # it executes cells of the lesson first
PATH = Path(__file__).parents[1] / "notebooks" / "07_fine_tuning.ipynb"
CODE = [cell for cell in nbformat.read(PATH, as_version=4).cells if cell.cell_type == "code"]
READ = ("MODEL =", "import copy", "from sklearn", "data = {", "reader = ")
DEFINED = ("def read_upper", "def embed", "class Classifier", "def share_of_rate", "lengths = ",
           "def train(", "def label_loss", "def fit", "def make_pairs", "def info_nce",
           "def add_lora", "def train_near")  # fmt: skip


def cell(beginning):
    """Find the one cell that has a line with this beginning."""
    (found,) = [c for c in CODE if re.search(rf"^{re.escape(beginning)}", c.source, re.MULTILINE)]
    return found


def definitions(source):
    """Keep functions, and what they need: what follows two blank lines runs in the lesson."""
    blocks = source.split("\n\n\n")
    return "\n\n\n".join(b for b in blocks if re.match(r"(?:@|def|class|lengths)", b))


@pytest.fixture(scope="module")
def lesson():
    """The lesson's own functions, around the bundled model and some of the reviews."""
    names = {"os": os}  # its set-up cell imports it
    for beginning in READ:
        source = cell(beginning).source
        exec(re.sub(r"^ROWS = \d+", "ROWS = 160", source, flags=re.MULTILINE), names)
    for beginning in DEFINED:
        exec(definitions(cell(beginning).source), names)
    return names


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.mark.parametrize("steps", [10, 96, 1003])
def test_the_rate_rises_to_all_of_it_and_falls_to_nothing(lesson, steps):
    shares = np.array([lesson["share_of_rate"](step, steps) for step in range(steps + 1)])
    top = shares.argmax()
    assert abs(top - steps / 10) <= 1 and shares[top] == pytest.approx(1, abs=0.11)
    assert (np.diff(shares[: top + 1]) > 0).all() and (np.diff(shares[top + 1 :]) < 0).all()
    assert 0 < shares[0] <= 1.01 * max(10 / steps, 0) and shares[-1] == 0


def test_batches_hold_every_row_once_and_little_padding(lesson):
    rows, lengths = np.arange(len(lesson["lengths"])), lesson["lengths"]
    found = lesson["batches"](rows, size=16)
    assert sorted(np.concatenate(found).tolist()) == rows.tolist()
    assert max(map(len, found)) == 16

    def padded(many):
        return sum(lengths[part].max() * len(part) for part in many)

    assert padded(found) < 0.8 * padded(np.split(rows, range(16, len(rows), 16)))
    again = lesson["batches"](rows, size=16)
    assert [part.tolist() for part in found] != [part.tolist() for part in again]  # at random


def test_the_stored_states_lead_to_the_vectors_of_the_whole_model(lesson):
    upper = lesson["model"].encoder.layer[lesson["FROZEN"] :]
    vectors = lesson["embed"](upper)
    encoder = ek.TextEncoder(lesson["MODEL"], pooling="mean", normalize=False, device="cpu")
    for split, data in lesson["data"].items():
        assert np.allclose(vectors[split], encoder.encode(data["text"]), atol=1e-4)


def test_a_training_changes_head_and_upper_attention_and_nothing_else(lesson):
    model, rows = lesson["model"], np.arange(24)
    before = copy.deepcopy(model.state_dict())
    both = lesson["Classifier"]()
    untrained = copy.deepcopy(both.state_dict())
    first = lesson["judge"](both, rows)
    assert not both.training  # to judge is to use
    settings = lesson["prepare"](both, 5e-4, steps=45)
    for _ in range(15):
        losses = lesson["train"](both, lesson["label_loss"], lesson["batches"](rows), *settings)
    assert both.training and len(losses) == 3
    assert lesson["judge"](both, rows) < 0.7 * first
    for name, weights in both.state_dict().items():
        if name.endswith("weight"):
            learned = "head" in name or "attention" in name
            assert ((weights - untrained[name]).abs().max() > 1e-5) == learned, name
    assert all(torch.equal(weights, before[name]) for name, weights in model.state_dict().items())


def test_judge_counts_as_one_would_by_hand(lesson):
    both, rows = lesson["Classifier"](), np.arange(70)  # more than one batch of it
    loss = lesson["judge"](both, rows)
    vectors = torch.tensor(lesson["embed"](both.upper)["train"])
    expected = F.cross_entropy(both.head(vectors[rows]), torch.tensor(lesson["truth"][rows]))
    assert loss == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_training_is_judged_three_times_on_rows_it_does_not_learn(lesson, monkeypatch, epochs):
    learned, judged = [], []

    def judge(both, rows):
        judged.append(set(rows.tolist()))
        return 1.0

    def train(both, loss_of, batches, *settings):
        learned.extend(row for batch in batches for row in batch.tolist())
        both.head.weight.data += 1
        return [0.0] * len(batches)

    monkeypatch.setitem(lesson, "judge", judge)
    monkeypatch.setitem(lesson, "train", train)
    monkeypatch.setitem(lesson, "EPOCHS", epochs)
    history = lesson["fit"](0, looks=3)
    assert len(history) == 3 and judged[0] == judged[1] == judged[2]
    assert judged[0].isdisjoint(learned) and {learned.count(row) for row in learned} == {epochs}
    assert len(judged[0]) + len(set(learned)) == len(lesson["truth"])
    heads = [both.head.weight.mean().item() for *_, both in history]
    assert np.diff(heads) == pytest.approx(1, abs=1e-4)  # each as it was at its moment


@pytest.mark.parametrize("column", ["label", "product"])
def test_pairs_are_of_one_class_and_of_similar_length(lesson, column):
    of, lengths = lesson["labels"][column]["train"], lesson["lengths"]
    pairs = lesson["make_pairs"](of)
    assert len(np.unique(pairs)) == pairs.size > 0.8 * len(of)  # no row twice, and most rows
    assert (of[pairs[:, 0]] == of[pairs[:, 1]]).all()
    apart = np.abs(np.diff(lengths[pairs])).mean()
    assert apart < 0.6 * np.abs(np.diff(np.random.permutation(lengths))).mean()


def test_info_nce_is_what_one_would_compute_by_hand(lesson):
    upper = lesson["model"].encoder.layer[lesson["FROZEN"] :].eval()
    of = lesson["labels"]["label"]["train"]
    pairs = lesson["make_pairs"](of)[::6]
    vectors = lesson["embed"](upper)["train"]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    losses = []
    for row, (first, second) in enumerate(pairs):
        wrong = [other for other in pairs[:, 1] if of[other] != of[first]]
        scores = np.array([unit[first] @ unit[other] for other in (second, *wrong)]) / 0.05
        losses.append(np.log(np.exp(scores).sum()) - scores[0])
        assert 0 < len(wrong) < len(pairs) - 1, row  # some partners are false negatives
    with torch.no_grad():
        loss = lesson["info_nce"](upper, pairs, of)
    assert loss.item() == pytest.approx(np.mean(losses), abs=1e-4)


def test_an_adapter_is_trained_alone_and_loads_back_by_name(lesson, tmp_path):
    model = lesson["model"]
    before = copy.deepcopy(model.state_dict())
    adapted = lesson["train_near"]("label")
    trained = {name for name, weights in adapted.named_parameters() if weights.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    layers = {int(re.search(r"layer\.(\d+)\.", name)[1]) for name in trained}
    assert layers == set(range(lesson["FROZEN"], lesson["LAYERS"]))
    assert all(torch.equal(weights, before[name]) for name, weights in model.state_dict().items())

    upper = adapted.encoder.layer[lesson["FROZEN"] :]
    vectors = lesson["embed"](upper)["test"]
    adapted.save_pretrained(tmp_path)
    settings = {"pooling": "mean", "normalize": False, "device": "cpu"}
    texts = lesson["data"]["test"]["text"]
    loaded = ek.TextEncoder(str(tmp_path), **settings).encode(texts)
    assert np.allclose(loaded, vectors, atol=1e-4)
    assert not np.allclose(
        loaded, ek.TextEncoder(lesson["MODEL"], **settings).encode(texts), atol=1e-3
    )


def committed(beginning):
    """Read a printed table: a list of numbers for each row, as they stand."""
    (text,) = [o.data["text/plain"] for o in cell(beginning).outputs if "data" in o]
    return np.array(
        [[float(n) for n in re.findall(r"(?<= )\d+\.\d+", r)] for r in text.split("\n")[1:]]
    )


def test_in_the_committed_run_five_seeds_are_compared_with_the_rival():
    table = committed("def compare")
    tuned, rival, won, lost, p = table.T
    assert len(table) == 5 and len(set(rival)) == 1
    assert np.allclose((won - lost) / 503, tuned - rival, atol=2e-3)  # the rows of test
    published = committed("tuned = embed")[0, 1]  # a probe on its last layer
    assert (tuned > published + 0.05).all() and (p > 0).all() and (p <= 1).all()


def test_in_the_committed_run_neighbours_lose_more_of_the_product_than_the_probe_does():
    before, after = committed("tuned = embed")  # 5-NN and probe of the label, then of the product
    assert (after[:2] > before[:2] + 0.05).all() and (after[2:] < before[2:]).all()
    assert before[2] - after[2] > before[3] - after[3] + 0.1


def test_in_the_committed_run_the_pairs_decide_who_is_near():
    published, sentiment, product = committed("adapters = {")
    assert sentiment[0] > published[0] + 0.05 and product[2] > published[2] + 0.04  # 5-NN
    assert sentiment[2] < published[2] and product[0] < published[0]
