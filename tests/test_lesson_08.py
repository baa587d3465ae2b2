"""Lesson 08: all three drifts are found, and silence is kept where there is none."""

import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

import embedkit as ek

PATH = Path(__file__).parents[1] / "notebooks" / "08_drift.ipynb"
CODE = [cell for cell in nbformat.read(PATH, as_version=4).cells if cell.cell_type == "code"]
STORIES = {"reviews": "foreign", "entities": "drifted", "digits": "drifted"}
METHODS = ("centroids", "classifier", "mmd", "reconstruction")
LEVEL = 0.01
parametrize = pytest.mark.parametrize("story", STORIES)
pytestmark = pytest.mark.slow  # it embeds rows of every bundled split


def cell(beginning):
    """Find the one cell that has a line with this beginning."""
    (found,) = [c for c in CODE if re.search(rf"^{re.escape(beginning)}", c.source, re.MULTILINE)]
    return found


@pytest.fixture(scope="module")
def mentions():
    encoder = ek.WordEncoder("bundled/all-MiniLM-L6-v2", subwords="mean", device="cpu")
    data = {s: ek.load_data("bundled/entities", s) for s in ("train", "test", "drifted")}
    found = {s: encoder.encode(d["tokens"]).entities(d["ner_tags"]) for s, d in data.items()}
    return dict(zip(("reference", "control", "production"), found.values(), strict=True))


@pytest.fixture(scope="module")
def lesson(mentions):
    """The lesson's own functions, and its vectors of at most 300 rows each."""
    names = {"np": np, "pd": pd, "ek": ek, "mentions": mentions}
    for name in ("per_sentence", "by_chance", "centroid_distance", "share_of_alarms"):
        source = cell(f"def {name}(").source
        exec(re.search(rf"def {name}\(.*?(?=^\S|\Z)", source, re.M | re.S)[0], names)
    texts = ek.TextEncoder("bundled/all-MiniLM-L6-v2", pooling="mean", device="cpu")
    images = ek.ImageEncoder("bundled/vit-glyphs", pooling="mean", device="cpu")
    vectors, data = {}, {}
    for story, last in STORIES.items():
        vectors[story], data[story] = {}, {}
        for kind, split in (("reference", "train"), ("control", "test"), ("production", last)):
            if story == "entities":
                vectors[story][kind] = names["per_sentence"](mentions[kind])
                data[story][kind] = vectors[story][kind]
            else:
                encoder, column = (texts, "text") if story == "reviews" else (images, "image")
                rows = ek.load_data(f"bundled/{story}", split).shuffle(seed=0)
                data[story][kind] = rows.select(range(min(300, len(rows))))
                vectors[story][kind] = encoder.encode(data[story][kind][column])
    names |= {"vectors": vectors, "data": data, "STORIES": STORIES}
    for beginning in ("WEEKS, BEGAN", "def simulate"):
        exec(cell(beginning).source, names)
    return names


@parametrize
@pytest.mark.parametrize("method", METHODS)
def test_the_drift_is_found_and_the_control_is_silent(lesson, story, method):
    each, given = lesson["vectors"][story], {"method": method, "permutations": 99}
    found = ek.evaluate.drift(each["reference"], each["production"], **given)["p_value"]
    # Which names occur has changed, not the directions in which they lie.
    missed = (story, method) == ("entities", "reconstruction")
    assert found > 0.05 if missed else found <= LEVEL
    assert ek.evaluate.drift(each["reference"], each["control"], **given)["p_value"] > LEVEL


@parametrize
def test_random_splits_of_one_source_raise_hardly_an_alarm(lesson, story):
    """Thirty splits at 0.05: more than five alarms would come once in three hundred times."""
    share = lesson["share_of_alarms"](story, "centroids", 40, 30, drifted=False)
    assert share <= 5 / 30


@parametrize
def test_windows_of_production_raise_alarms(lesson, story):
    assert lesson["share_of_alarms"](story, "centroids", 40, 5, drifted=True) >= 0.6


@parametrize
def test_the_lesson_shuffles_as_the_package_does(lesson, story):
    pair = lesson["vectors"][story]["reference"], lesson["vectors"][story]["control"]
    chance = lesson["by_chance"](*pair, 99)
    distance = lesson["centroid_distance"](*pair)
    result = ek.evaluate.drift(*pair, permutations=99)
    assert result["distance"] == pytest.approx(distance, abs=1e-4)
    by_hand = (1 + (chance >= distance).sum()) / 100
    assert by_hand == pytest.approx(result["p_value"], abs=0.2)  # other shuffles


@parametrize
def test_no_row_does_two_jobs(story):
    """With numbers in place of vectors: of what the lesson deals out, nothing comes twice."""
    splits = ("train", "test", STORIES[story])
    tables = [ek.load_data(f"bundled/{story}", split) for split in splits]
    sizes = [sum(map(any, d["ner_tags"])) if story == "entities" else len(d) for d in tables]
    parts = np.split(np.arange(sum(sizes))[:, None], np.cumsum(sizes)[:2])
    kinds = ("reference", "control", "production")
    names = {"np": np, "pd": pd, "vectors": {story: dict(zip(kinds, parts, strict=True))}}
    for beginning in ("WEEKS, BEGAN", "def simulate"):
        exec(cell(beginning).source, names)
    reference, limits, log = names["simulate"](story)
    assert len(log) == names["WEEKS"] * 7 * names["A_DAY"][story]
    assert (log["new"] == (log["row"] >= sizes[0] + sizes[1])).all()
    jobs = [set(reference[:, 0]), set(limits[:, 0]), set(log["row"])]
    assert len(set.union(*jobs)) == sum(map(len, jobs))
    assert len(limits) >= 7 * names["A_DAY"][story]  # a week's number of rows
    assert not log.duplicated(["week", "row"]).any()
    quiet = log[log["day"] < names["BEGAN"]]
    assert not quiet["new"].any() and not quiet[quiet["week"] < 5].duplicated("row").any()


def test_mentions_of_one_sentence_are_not_drawn_one_by_one(mentions):
    """Why the lesson has a row per sentence: with a row per mention, alarms go off for nothing."""
    found = mentions["reference"]
    generator, p_values = np.random.default_rng(0), []
    for seed in range(20):
        half = generator.permutation(np.unique(found.sentence))[::2]
        first = np.isin(found.sentence, half)
        sides = found.vectors[first], found.vectors[~first]
        result = ek.evaluate.drift(*sides, permutations=99, seed=seed)
        p_values.append(result["p_value"])
    assert np.mean(np.array(p_values) <= LEVEL) > 0.1


def printed(beginning):
    """Give the lines of text that the lesson's cell keeps."""
    outputs = cell(beginning).outputs
    texts = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs]
    return "\n".join(texts).split("\n")


def test_the_committed_rate_of_false_alarms_is_the_level():
    """Two hundred splits at 0.05: ten alarms are expected, four to sixteen are usual."""
    lines = printed("share = {}")
    assert lines[0].split() == list(METHODS)
    (rates,) = [line.split()[-4:] for line in lines if line.startswith("no drift")]
    assert all(0.02 <= float(rate) <= 0.08 for rate in rates)
    assert len(lines) == 1 + 1 + 3 * len(STORIES)  # and the power, for three windows each


def test_what_the_lesson_says_of_its_weeks_is_in_its_outputs():
    """A weak drift goes by unnoticed for long, and the day it began is found within two weeks."""
    silent = dict(line.split() for line in printed("ratio = {}") if line.split()[0] in STORIES)
    assert float(silent["reviews"]) < 0.1
    assert max(float(silent["entities"]), float(silent["digits"])) > 0.3
    (found,) = [line for line in printed("total = {}") if line.startswith("days from")]
    days = [int(day) for day in re.findall(r"-?\d+", found)]
    assert len(days) == 3 and max(map(abs, days)) <= 14


def test_the_special_offers_are_a_drift_that_does_not_hurt():
    lines = [line.rsplit(maxsplit=6) for line in printed("harm = {}")]
    table = {line[0].strip(): [float(x) for x in line[1:]] for line in lines[1:]}
    assert set(table) == {*STORIES, "special offers"}
    assert all(row[1] <= LEVEL for row in table.values())
    assert table["special offers"][-1] < 0.05 < min(table[story][-1] for story in STORIES)
    auc, lost = (sorted(STORIES, key=lambda story: table[story][i]) for i in (2, 5))
    assert auc != lost  # the size of a drift is not the size of the harm
