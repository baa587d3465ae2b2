"""Lesson 10: its functions do what the text says, and the text says what the outputs show."""

import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from sklearn import cluster
from sklearn.feature_extraction.text import TfidfVectorizer

import embedkit as ek

PATH = Path(__file__).parents[1] / "notebooks" / "10_what_for.ipynb"
CODE = [cell for cell in nbformat.read(PATH, as_version=4).cells if cell.cell_type == "code"]


def cell(beginning):
    """Find the one cell that has a line with this beginning."""
    (found,) = [c for c in CODE if re.search(rf"^{re.escape(beginning)}", c.source, re.MULTILINE)]
    return found


def function(name, **names):
    """Give a function of the lesson, with the names that it uses."""
    names = {"np": np, "pd": pd, "ek": ek, **names}
    source = cell(f"def {name}(").source
    exec(re.search(rf"def {name}\(.*?(?=^\S|\Z)", source, re.M | re.S)[0], names)
    return names[name]


def shown(beginning):
    """Give the text that a cell has printed or shown."""
    outputs = cell(beginning).outputs
    return "".join(o.get("text", "") or o.get("data", {}).get("text/plain", "") for o in outputs)


def ends(text):
    """Read the intervals in a text: pairs of numbers."""
    return [tuple(map(float, pair)) for pair in re.findall(r"([+-][\d.]+) to ([+-][\d.]+)", text)]


def test_fusion_gives_each_list_its_ranks_and_leaves_out_what_shares_no_word():
    rows = np.random.default_rng(0).permuted(np.tile(np.arange(80), (4, 1)), axis=1)[:, :50]
    ranked = {"MiniLM": rows[:2], "BM25": rows[2:]}
    points = np.ones((2, 50))
    points[1, 3:] = 0
    given = {"ranked": ranked, "points": points, "queries": range(2), "texts": range(80)}
    fuse = function("fuse", **given)
    for query, hits in ((0, 50), (1, 3)):
        total = np.zeros(80)
        for rank in range(50):
            total[ranked["MiniLM"][query, rank]] += 1 / (61 + rank)
            if rank < hits:
                total[ranked["BM25"][query, rank]] += 1 / (61 + rank)
        assert fuse()[query].tolist() == np.argsort(-total, kind="stable")[:10].tolist()
    assert fuse(0.0).tolist() == ranked["MiniLM"][:, :10].tolist()


def test_an_interval_holds_the_true_mean_as_often_as_it_says():
    """Of 200 samples about 190 are expected to; 172 or 199 would be strange."""
    interval, generator = function("interval"), np.random.default_rng(0)
    samples = generator.normal(0.3, 1, size=(200, 60))
    pairs = [ends(interval(sample))[0] for sample in samples]
    assert 172 <= sum(low <= 0.3 <= high for low, high in pairs) <= 199


@pytest.mark.parametrize("classes", [2, 12])
def test_flipping_makes_five_in_a_hundred_wrong_and_no_other(classes):
    labels = np.arange(400) % classes
    given = function("flip")(labels, 3)
    assert (given != labels).sum() == 20
    assert set(given) == set(labels) and (labels == np.arange(400) % classes).all()


def test_the_farthest_rows_come_from_every_group():
    generator = np.random.default_rng(0)
    space = np.repeat(np.eye(6), 20, axis=0) + generator.normal(0, 0.02, size=(120, 6))
    space /= np.linalg.norm(space, axis=1, keepdims=True)
    far_from_all = function("far_from_all", cluster=cluster)
    assert all(len({row // 20 for row in far_from_all(space, 6, seed)}) == 6 for seed in range(10))


@pytest.mark.slow
def test_marked_pairs_are_pairs_of_reviews_and_copies_are_no_copies_of_all():
    texts = list(ek.load_data("bundled/reviews", "train")["text"])
    names = {"asked": texts[:100]}
    exec(cell("SAME = ").source.split("\n\n")[0], names)
    pairs = [tuple(map(int, pair.split("-"))) for pair in names["SAME"].split()]
    assert len(set(pairs)) == len(pairs) > 10
    assert all(0 <= a < b < len(texts) for a, b in pairs)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True).fit(texts)
    exec(re.search(r"^copies = .+", cell("asked = ").source, re.MULTILINE)[0], names)
    copies = names["copies"]
    alike = (letters.transform(copies) @ letters.transform(texts[:100]).T).toarray()
    assert not set(copies) & set(texts)
    assert (alike.argmax(axis=1) == np.arange(100)).mean() > 0.97


def test_the_text_says_of_search_what_came_out():
    table = [line for line in shown("def interval(").split("\n") if " to " in line]
    first, second, third = (ends(line) for line in table)  # each: other words, same words, all
    assert all(low > 0 for low, _ in [first[0], first[2], *second])
    assert first[1][1] > 0
    assert third[1][0] < 0 < third[1][1]
    assert third[0][1] < 0 and third[2][1] < 0


def test_the_text_says_of_the_other_uses_what_came_out():
    found = re.findall(r"(\d+)% of the copies, (\d+) other pairs", shown("asked = "))
    (by_letters, others), (by_cosine, _) = (map(int, numbers) for numbers in found)
    assert by_letters >= 95 and others <= 3 and by_cosine < by_letters - 5
    line = r"^(k-means|HDBSCAN, \d dimensions) .+ (\d\.\d\d) to (\d\.\d\d)$"
    table = re.findall(line, shown("report = {}"), re.MULTILINE)
    agree = {name: (float(low), float(high)) for name, low, high in table}
    assert agree["HDBSCAN, 2 dimensions"][1] < agree["HDBSCAN, 5 dimensions"][0]
    assert agree["HDBSCAN, 5 dimensions"][1] < agree["k-means"][1] < 0.7
    assert all(low > 0 for low, _ in ends(shown("def at_random(")))
    wrong = [float(share) for share in re.findall(r"([\d.]+)% wrong", shown("if explorer"))]
    assert wrong[0] == 5.0 and wrong[1] < 2.5 and wrong[2] == 0
    half, best, binary = (ends(line)[0] for line in shown("exact, report").split("\n")[-3:])
    assert half[1] < 0 and binary[1] < 0 and best[0] < 0 < best[1]
