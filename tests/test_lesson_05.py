"""Lesson 05: what the committed run says of its time and of the four ways."""

import re
from pathlib import Path

import nbformat
import pytest

PATH = Path(__file__).parents[1] / "notebooks" / "05_four_ways.ipynb"
CODE = [cell for cell in nbformat.read(PATH, as_version=4).cells if cell.cell_type == "code"]


def outputs(beginning):
    """Give what the one cell with a line of this beginning printed, and its table."""
    (cell,) = [c for c in CODE if re.search(rf"^{re.escape(beginning)}", c.source, re.MULTILINE)]
    text = "".join(each.get("text", "") for each in cell.outputs)
    return text, "".join(each["data"]["text/plain"] for each in cell.outputs if "data" in each)


@pytest.fixture(scope="module")
def table():
    """The last table, whose columns pandas prints in two blocks: numbers by row name."""
    found = {}
    for line in outputs('print(f"skip-gram, on words:')[1].split("\n"):
        name = re.match(r"[A-Za-z-]+(?: [A-Za-z-]+)?(?=  )", line)
        if name:
            found.setdefault(name[0], []).extend(map(float, re.findall(r"(?<= )[\d.]+", line)))
    return found


def test_all_training_together_stays_under_110_seconds(table):
    printed = outputs('print(f"skip-gram, on words:')[0]
    minutes = float(re.search(r"words: ([\d.]+) minutes", printed)[1])
    minutes += sum(numbers[0] for numbers in table.values())
    assert 0 < minutes * 60 + 3 * 3 < 110  # each of the three is rounded to a tenth of a minute


def test_the_pre_trained_way_beats_raw_pixels_in_clutter(table):
    assert table["pre-trained ViT"][-2] > table["raw pixels"][-2]  # test
    assert table["pre-trained ViT"][-1] > table["raw pixels"][-1]  # drifted


def test_every_way_has_its_place_in_the_table(table):
    ways = ["raw pixels", "untrained network", "autoencoder", "GAN", "pre-trained ViT"]
    assert list(table) == ways
    # minutes, weights, dimensions, three columns in grey; in clutter two more
    assert [len(table[way]) for way in ways] == [8, 6, 6, 6, 8]


def test_the_gan_shows_its_images_at_several_moments():
    (cell,) = [c for c in CODE if "for epoch in range(EPOCHS + 1)" in c.source]
    assert len(re.search(r"epoch in \(([^)]*)\)", cell.source)[1].split(",")) >= 4
    (shown,) = [c for c in CODE if c.source == "show(samples)"]
    assert "image/png" in shown.outputs[0]["data"]
