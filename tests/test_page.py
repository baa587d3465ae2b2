"""Saved maps without a browser: what is in the file, how large it is, and how it fails.

What a reader sees and touches is in tests/browser/test_saved_maps.py.
"""

import json
import re

import numpy as np
import pandas as pd
import pytest
from conftest import picture
from datasets import Dataset, Features, Image

import embedkit as ek
from embedkit import evaluate
from embedkit.words import WordVectors

POINTS = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
VECTORS = np.random.default_rng(1).normal(size=(30, 6)).astype(np.float32)
DATA = {
    "text": [f"text {i}" for i in range(30)],
    "label": [["cat", "dog"][i % 2] for i in range(30)],
}


def page_of(path):
    """Read what the page knows of the points."""
    html = path.read_text(encoding="utf-8")
    (rows,) = re.findall(
        r'<script type="application/json" id="rows">(.*?)</script>', html, re.DOTALL
    )
    return html, json.loads(rows)


def test_the_file_knows_texts_colors_and_neighbours(tmp_path):
    data = DATA | {"stars": np.linspace(0, 1, 30)}
    path = ek.save_map(tmp_path / "map.html", POINTS, data, vectors=VECTORS, title="A & B", k=4)
    html, page = page_of(path)
    assert path == tmp_path / "map.html"
    assert "<title>A &amp; B</title>" in html and "<h1>A &amp; B</h1>" in html
    assert page["columns"]["text"]["values"] == DATA["text"]
    label = page["columns"]["label"]
    assert label["entries"] == [[1, "cat", 15], [2, "dog", 15]]
    assert label["codes"] == [1, 2] * 15
    assert page["columns"]["stars"]["limits"] == [0, 1]
    assert page["color"] == "label"
    rows, far = evaluate.nearest(VECTORS, k=4)
    assert page["neighbours"] == rows.tolist()
    np.testing.assert_allclose(page["distances"], far, atol=1e-3)
    assert f"Trustworthiness {evaluate.trustworthiness(VECTORS, POINTS):.2f}" in html
    assert "0.123456" not in html and str(float(VECTORS[0, 0]))[:7] not in html  # no vector in it


@pytest.mark.slow
def test_without_vectors_the_page_says_that_nothing_was_measured(tmp_path):
    html, page = page_of(ek.save_map(tmp_path / "map.html", POINTS, DATA, color="text"))
    assert page["neighbours"] is None and "was not measured" in html
    assert page["color"] == "text" and len(page["columns"]["text"]["colors"]) == 21
    few, _ = page_of(
        ek.save_map(tmp_path / "few.html", POINTS[:3], ["a", "b", "c"], vectors=VECTORS[:3])
    )
    assert "too few to say" in few


@pytest.mark.slow
def test_a_thousand_thumbnails_are_no_more_than_eight_megabytes(tmp_path):
    features = Features({"image": Image()})
    images = [picture(seed, size=(300, 200)) for seed in range(50)] * 20
    data = Dataset.from_dict({"image": images}, features=features)
    points = np.random.default_rng(0).normal(size=(1000, 2))
    path = ek.save_map(tmp_path / "map.html", points, data)
    assert path.read_text(encoding="utf-8").count("data:image/jpeg;base64,") == 1000
    assert path.stat().st_size < 8e6


def test_no_script_of_the_data_is_one(tmp_path):
    nasty = "</script><script>alert(1)</script><!-- ]]> \ud800 \u2028"
    data = {"text": [nasty] * 30, nasty: [nasty] * 30}
    html, page = page_of(ek.save_map(tmp_path / "m.html", POINTS, data, title=nasty, caption=nasty))
    assert "<script>alert" not in html
    assert page["columns"]["text"]["values"][0] == nasty.replace("\ud800", "\ufffd")


def test_words_stand_in_brackets_in_their_sentence(tmp_path):
    words = WordVectors(
        VECTORS[:3],
        sentence=np.array([0, 0, 1]),
        position=np.array([0, 1, 0]),
        word=["Ada", "sings", "Rain"],
    )
    path = ek.save_map(tmp_path / "m.html", POINTS[:3], [["Ada", "sings"], ["Rain"]], vectors=words)
    _, page = page_of(path)
    assert page["columns"]["sentence"]["values"] == ["[Ada] sings", "Ada [sings]", "[Rain]"]
    assert page["columns"]["word"]["values"] == ["Ada", "sings", "Rain"]


@pytest.mark.slow
def test_the_explorer_saves_what_is_on_the_screen(tmp_path):
    vectors = VECTORS.copy()
    vectors[3] = np.nan
    explorer = ek.explore({"a": vectors, "b": vectors[:, :3]}, DATA, color="text")
    explorer.select([5, 7])
    path = explorer.save(tmp_path / "map.html", title="What I see")
    html, page = page_of(path)
    assert page["rows"] == [row for row in range(30) if row != 3]
    assert page["color"] == "text" and "<h1>What I see</h1>" in html
    kept = np.delete(vectors, 3, axis=0)
    assert page["neighbours"] == evaluate.nearest(kept, k=8)[0].tolist()
    assert re.search(r'"indices":\[4,6\]', html)  # the selection, counted without row 3
    explorer._controls["vectors"].value = "b"
    _, page = page_of(explorer.save(tmp_path / "other.html"))
    assert page["neighbours"] == evaluate.nearest(kept[:, :3], k=8)[0].tolist()


@pytest.mark.bad_input("save_map")
@pytest.mark.parametrize(
    ("points", "data", "settings", "message"),
    [
        (VECTORS, DATA, {}, r"points \(n, 2\), and not \(30, 6\); use project first"),
        (POINTS[:9], DATA, {}, "9 points, but data has 30 rows"),
        (POINTS, DATA, {"vectors": VECTORS[:4]}, "4 vectors, but data has 30 rows"),
        (POINTS, DATA, {"color": "lable"}, "choose a column from text, label"),
        (POINTS, DATA, {"k": 0}, r"save_map\(k=0\): give a whole number of 1 or more"),
        (POINTS * np.nan, DATA, {}, "30 of 30 rows hold NaN"),
        (POINTS, None, {}, "got NoneType"),
    ],
)
def test_maps_that_cannot_be_saved(points, data, settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ek.save_map(tmp_path / "map.html", points, data, **settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("data", [pd.DataFrame(DATA, index=range(50, 80)), Dataset.from_dict(DATA)])
def test_tables_of_any_kind_are_saved(data, tmp_path):
    _, page = page_of(ek.save_map(tmp_path / "map.html", POINTS, data))
    assert page["columns"]["text"]["values"] == DATA["text"]
