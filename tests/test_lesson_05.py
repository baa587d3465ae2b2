"""Lesson 05: what the committed run says of the four ways."""

import re
from html import unescape
from pathlib import Path

import nbformat
import pytest

PATH = Path(__file__).parents[1] / "notebooks" / "05_four_ways.ipynb"
CODE = [cell for cell in nbformat.read(PATH, as_version=4).cells if cell.cell_type == "code"]
WAYS = ["raw pixels", "autoencoder", "denoising autoencoder", "untrained network", "GAN",
        "pre-trained ViT"]  # fmt: skip


def cell_with(text):
    """Give the one cell that holds a text."""
    (found,) = [cell for cell in CODE if text in cell.source]
    return found


@pytest.fixture(scope="module")
def table():
    """The one table, by name: what it learned from, seconds, dim, and each test's two numbers."""
    (shown,) = cell_with('set_index(["data", "way"])').outputs
    found = {}
    for row in re.findall(r"<tr>(.*?)</tr>", shown["data"]["text/html"], re.DOTALL)[1:]:
        way = unescape(re.findall(r"<th>(.*?)</th>", row)[-1])
        source, seconds, dim, *tests = re.findall(r"<td>(.*?)</td>", row)
        pairs = [[float(n) for n in re.findall(r"\d\.\d\d", each)] for each in tests]
        found[way] = (source, int(seconds), int(dim), *pairs)
    return found


def test_every_way_has_its_line(table):
    digits = {way: line for way, line in table.items() if way in WAYS}
    assert list(digits) == WAYS
    for source, _, dim, *tests in digits.values():
        assert source and dim
        assert [len(pair) for pair in tests] == [2, 2, 2], "5-NN and probe, on each test"


def test_training_stays_short(table):
    assert 0 < sum(line[1] for line in table.values()) < 90


def test_what_a_training_was_told_to_ignore_it_ignores(table):
    """The fair rival beats the pixels where digits are moved or in clutter; so does the ViT."""
    for test in (4, 5):
        nearest = {way: line[test][0] for way, line in table.items() if way in WAYS}
        for way in ("denoising autoencoder", "pre-trained ViT"):
            assert nearest[way] > nearest["raw pixels"] + 0.05
            assert nearest[way] > nearest["autoencoder"] + 0.05


def test_the_rival_learned_the_clutter_of_the_same_digits():
    """Row by row, the cluttered images show the plain ones: the lesson splits as the recipe did."""
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    import embedkit as ek

    given = re.search(r"train_size=.*random_state=0", cell_with("load_digits(return_X_y").source)[0]
    assert given == "train_size=1000, test_size=400, stratify=digits, random_state=0"
    digits = load_digits().target
    parts = train_test_split(
        np.arange(len(digits)), train_size=1000, test_size=400, stratify=digits, random_state=0
    )
    for split, rows in zip(("train", "test"), parts, strict=True):
        assert ek.load_data("bundled/digits", split=split)["label"] == digits[rows].tolist()


def test_the_words_change_one_thing_at_a_time(table):
    names = [way for way in table if way.endswith(" words")]
    kinds = [re.fullmatch(r"(.+), (\d+) words", name).groups() for name in names]
    assert [kind for kind, _ in kinds] == ["random", "skip-gram", "pre-trained, cut",
                                           "pre-trained", "pre-trained", "TF-IDF"]  # fmt: skip
    words = [int(count) for _, count in kinds]
    assert words[0] == words[1] >= words[2] == words[3] < words[5] < words[4]
    dims = [table[name][2] for name in names]
    assert dims[0] == dims[1] == dims[2] < dims[3] == dims[4]


def test_the_gan_shows_its_images_at_several_moments():
    cell = cell_with("for epoch in range(1, EPOCHS + 1)")
    assert len(re.search(r"epoch in \(([^)]*)\)", cell.source)[1].split(",")) >= 4
    assert any("image/png" in output.get("data", {}) for output in cell.outputs)


def test_the_loss_of_words_is_drawn_from_zero_and_beside_guessing():
    source = cell_with("curves.plot").source
    assert '"guessing": 6 * np.log(2)' in source and "ylim=(0, " in source
