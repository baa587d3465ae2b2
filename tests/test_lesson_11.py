"""Lesson 11: each failure is caught by a number, and most of them by the diagnosis alone."""

import re
from pathlib import Path

import nbformat
import numpy as np
import pytest

pytestmark = pytest.mark.slow  # it executes cells of the lesson first
PATH = Path(__file__).parents[1] / "notebooks" / "11_what_goes_wrong.ipynb"
CODE = [cell for cell in nbformat.read(PATH, as_version=4).cells if cell.cell_type == "code"]
# What a number has to be, at least, for the code to be right; broken code stays below.
LINES = {
    "padding": 0.95, "pooling": 0.95, "first token": 0.99, "left padding": 0.95, "end token": 0.99,
    "half precision": 0.99, "cut": 0.99, "[UNK]": 0.99, "sub-words": 0.95, "processor": 0.95,
    "transparency": 0.99, "CLIP": 0.95, "two models": 0.95, "labels": 0.5, "two maps": 0.5,
}  # fmt: skip
AFTERWARDS = {"sub-words", "two models", "labels", "two maps"}  # made with right vectors
# Cells that run on tiny models, so that they can run here; the others need what they make.
LIVE = ("MODEL = ", "import copy", "def forward", "def record", "tokenizer = GPT2",
        "def first_token", "def by_count", "ended = ", "loud = ", "eye = ", 'size = {"hidden',
        "readers, numbers", "def on_white", "def verdict")  # fmt: skip


def cell(beginning):
    """Find the one cell that has a line with this beginning."""
    (found,) = [c for c in CODE if re.search(rf"^{re.escape(beginning)}", c.source, re.MULTILINE)]
    return found


def printed():
    """Read what the lesson printed: {failure: (broken, fixed, verdicts)}."""
    found = {}
    for each in CODE:
        failure = re.search(r"^record\(\s*\"([^\"]+)\"", each.source, re.MULTILINE)
        if failure:
            text = "".join(output.get("text", "") for output in each.outputs)
            numbers = re.search(r"broken (-?[\d.]+), fixed ([\d.]+)", text).groups()
            verdicts = re.findall(r"^(ok|look|wrong) +\w", text, re.MULTILINE)
            found[failure[1]] = (*map(float, numbers), verdicts)
    return found


PRINTED = printed()


@pytest.fixture(scope="module")
def lesson():
    """Run the cells that need tiny models alone."""
    names = {}
    steadiness = re.search(
        r"def steadiness\(.*?(?=^\S)", cell("def steadiness").source, re.M | re.S
    )
    for beginning in LIVE:
        source = cell(beginning).source
        if beginning == "eye = ":  # no more images than are looked at
            source = source.replace("[:150]", "[:40]")
        exec(source, names)
        if beginning == "def forward":
            exec(steadiness[0], names)
    return names


def test_there_are_fifteen():
    assert set(PRINTED) == set(LINES) and len(LINES) == 15


@pytest.mark.parametrize("failure", LINES)
def test_a_number_tells_broken_from_fixed(failure):
    broken, fixed, _ = PRINTED[failure]
    assert broken < LINES[failure] <= fixed


@pytest.mark.parametrize("failure", LINES)
def test_the_diagnosis_catches_what_is_in_the_vectors(failure):
    verdicts = PRINTED[failure][2]
    if failure in AFTERWARDS:
        assert not verdicts
    else:
        before, after = verdicts
        assert before in ("look", "wrong") and after == "ok"


def test_at_least_ten_are_caught_by_the_diagnosis_alone():
    shown = "".join(o.get("text", "") for o in cell("def verdict").outputs)
    count = int(re.search(r"by the diagnosis alone: (\d+)", shown)[1])
    assert count == len(LINES) - len(AFTERWARDS) >= 10


@pytest.mark.parametrize(
    "failure",
    ["first token", "left padding", "end token", "half precision", "transparency", "CLIP"],
)
def test_tiny_models_show_it_here_too(lesson, failure):
    _, broken, fixed, before, after = lesson["found"][failure]
    assert broken < LINES[failure] <= fixed
    assert before in ("look", "wrong") and after == "ok"


def test_the_check_of_the_exercises_tells_right_from_wrong(lesson, capsys):
    expected = np.eye(3, dtype=np.float32)
    tried = {
        "right": lambda rows: rows,
        "scaled": lambda rows: 2 * rows,
        "another order": lambda rows: rows[::-1].copy(),
        "too few": lambda rows: rows[:2],
        "stops": lambda rows: rows["no"],
        "nothing": lambda rows: None,
    }
    said = {}
    for name, extract in tried.items():
        lesson["verdict"](extract, expected, expected, "look again.")
        said[name] = capsys.readouterr().out
    assert [name for name in said if "Right:" in said[name]] == ["right"]
    assert all("Not yet: look again." in said[name] for name in tried if name != "right")
    assert "It stops with IndexError" in said["stops"]
