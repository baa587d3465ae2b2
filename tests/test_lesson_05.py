"""Lesson 05: what the committed run says of the four ways."""

import re
from pathlib import Path

import nbformat
import pytest

PATH = Path(__file__).parents[1] / "notebooks" / "05_four_ways.ipynb"
CODE = [cell for cell in nbformat.read(PATH, as_version=4).cells if cell.cell_type == "code"]
WAYS = ["raw pixels", "autoencoder", "denoising autoencoder", "untrained network", "GAN",
        "pre-trained ViT"]  # fmt: skip


def output(beginning):
    """Give the table of the one cell with a line of this beginning."""
    (cell,) = [c for c in CODE if re.search(rf"^{re.escape(beginning)}", c.source, re.MULTILINE)]
    return "".join(each["data"]["text/plain"] for each in cell.outputs if "data" in each)


@pytest.fixture(scope="module")
def table():
    """The last table, by row name: weights, seconds, dim; then 5-NN and probe, four times."""
    found = {}
    for line in output('add("pre-trained ViT"').split("\n")[1:]:
        name = re.match(r"[A-Za-z-]+(?: [A-Za-z]+)?(?=  )", line)
        found[name[0]] = [float(n) for n in re.findall(r"(?<= )\d+(?:\.\d+)?", line)]
    return found


def test_every_way_has_its_line(table):
    assert list(table) == WAYS
    assert {len(numbers) for numbers in table.values()} == {11}


def test_training_stays_short(table):
    assert 0 < sum(numbers[1] for numbers in table.values()) < 90


def test_what_a_training_was_told_to_ignore_it_ignores(table):
    """The fair rival beats the pixels where digits are moved; so does the pre-trained model."""
    moved = {way: numbers[7] for way, numbers in table.items()}
    assert moved["denoising autoencoder"] > moved["autoencoder"] + 0.1
    assert moved["denoising autoencoder"] > moved["raw pixels"] + 0.1
    assert moved["pre-trained ViT"] > moved["raw pixels"] + 0.1


def test_words_are_compared_with_counts_of_words():
    rows = output('print(f"most frequent label').split("\n")[1:]
    names = [re.match(r"\S+(?: \S+)*(?=  )", row)[0] for row in rows]
    assert names == ["random vectors, our words", "skip-gram, our words",
                     "pre-trained, our words", "pre-trained, all its words",
                     "word counts (TF-IDF)"]  # fmt: skip
    words = [int(re.search(r"  +(\d+) ", row)[1]) for row in rows]
    assert words[0] == words[1] >= words[2] and words[2] < words[4] < words[3]


def test_the_gan_shows_its_images_at_several_moments():
    (cell,) = [c for c in CODE if "for epoch in range(EPOCHS + 1)" in c.source]
    assert len(re.search(r"epoch in \(([^)]*)\)", cell.source)[1].split(",")) >= 4
    assert any("image/png" in output.get("data", {}) for output in cell.outputs)
