"""The explorer without a browser: what it shows, what it selects, and how it fails.

What a reader sees and touches is in tests/browser.
"""

import asyncio
import io
import re
import socket
import struct
import zlib
from html.parser import HTMLParser

import ipywidgets
import numpy as np
import pandas as pd
import pytest
from conftest import picture
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from sklearn.neighbors import NearestNeighbors

import embedkit as ek
from embedkit import evaluate
from embedkit.maps import _controls, _rows, explorer
from embedkit.maps._colors import PALETTE, UNKNOWN, coloring
from embedkit.maps._views import LARGE, Maps, View, framed
from embedkit.words import WordVectors

NASTY = '<script>alert(1)</script> <img src=x onerror=alert(1)> **bold** $x^2$ & "it\'s" `code`'


@pytest.fixture(autouse=True)
def no_page(monkeypatch):
    """Wait for no points to travel: nobody is watching."""
    monkeypatch.setattr(_controls, "TRAVEL", 0.01)


def blobs(n=40, dim=8, classes=2, seed=0):
    """Draw vectors round as many centres as there are classes, and their labels."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = generator.normal(scale=4, size=(classes, dim))
    return (centres[labels] + generator.normal(size=(n, dim))).astype(np.float32), labels


class Reader(HTMLParser):
    """Take HTML apart as a browser does: its tags, and the text one reads."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = set(), ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        assert not [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data):
        self.text += data


def shown(widget, place):
    """Give what a reader sees in one of the panels."""
    return Reader(widget._text[place].value).text


def control(widget, name):
    """Find a control by what stands beside it."""
    (found,) = [each for each in everything(widget) if getattr(each, "description", "") == name]
    return found


def everything(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from everything(child)


def hover(widget, point):
    widget._scatter.hovering = point
    return shown(widget, "hover")


@pytest.fixture
def small():
    """Forty rows of two classes on a PCA map."""
    vectors, labels = blobs()
    data = {"text": [f"text {i}" for i in range(40)], "label": [["cat", "dog"][i] for i in labels]}
    return ek.explore(vectors, data, points=ek.project(vectors, method="pca"))


def test_it_is_a_widget_that_shows_the_map_in_the_colors_of_the_classes(small):
    assert isinstance(small, ek.Explorer) and isinstance(small, ipywidgets.VBox)
    assert small._scatter.points.shape == (40, 4)
    np.testing.assert_allclose(small._scatter.points[:, :2], small.points)
    colors = np.array(small._scatter.color)[small._scatter.points[:, 2].astype(int)]
    wanted = [explorer.to_rgba(PALETTE[i % 2]) for i in range(40)]
    np.testing.assert_allclose(colors, wanted)
    assert shown(small, "legend").split() == ["●", "cat", "(20)", "●", "dog", "(20)"]


def test_what_is_selected_can_be_read_and_set(small):
    assert len(small.selection) == 0
    small.select([7, 3])
    assert small.selection.index.tolist() == [3, 7]
    assert small.selection["text"].tolist() == ["text 3", "text 7"]
    assert shown(small, "selection").startswith("2 selected: dog (2).")
    small._scatter.selection = np.array([5], np.uint32)  # as the page does
    assert small.selection["text"].tolist() == ["text 5"]
    small.select(small.selection["label"].reindex(range(40)).notna())
    assert small.selection.index.tolist() == [5]
    small.select([])
    assert len(small.selection) == 0
    assert "Click a point" in shown(small, "selection")


@pytest.mark.parametrize("rows", [[40], [-1], [0.5], ["text 3"], [[1]], [True, False]])
def test_rows_that_do_not_exist_cannot_be_selected(small, rows):
    with pytest.raises(ValueError, match=r"row numbers from 0 to 39, or one truth value"):
        small.select(rows)


@pytest.mark.slow
def test_a_large_selection_shows_the_first_few(small):
    small.select(range(40))
    text = shown(small, "selection")
    assert "The first 24 are shown." in text
    assert text.count("text ") == 24


def test_neighbours_are_those_of_the_full_space_and_the_map_is_compared():
    vectors, labels = blobs(n=60, classes=3)
    random_map = np.random.default_rng(1).normal(size=(60, 2))
    maps = Maps({"v": vectors}, {View("v", "as given"): random_map}, np.arange(60))
    search = NearestNeighbors(n_neighbors=6, metric="cosine").fit(vectors)
    far, rows = search.kneighbors(vectors[[17]])
    found = maps.nearest(View("v", "as given"), np.array([17]), 5)
    assert [point for point, _, _ in found] == rows[0, 1:].tolist()
    np.testing.assert_allclose([each[1] for each in found], far[0, 1:], atol=1e-5)
    on_map = np.linalg.norm(random_map - random_map[17], axis=1).argsort().tolist()
    assert [rank for _, _, rank in found] == [on_map.index(point) for point, _, _ in found]
    widget = ek.explore(vectors, {"label": labels, "text": list(map(str, range(60)))})
    widget.select([17])
    nearest = shown(widget, "selection").split("Nearest in the full space")[1]
    assert f"{far[0, 1]:.2f}, no. " in nearest and "on the map: near" in nearest


def test_neighbours_of_several_points_lie_outside_of_them():
    vectors, _ = blobs(n=30)
    maps = Maps({"v": vectors}, {}, np.arange(30))
    chosen = np.arange(0, 30, 2)
    found = [point for point, _, _ in maps.nearest(View("v", "PCA"), chosen, 8)]
    assert len(found) == 8 and not set(found) & set(chosen.tolist())
    assert maps.nearest(View("v", "PCA"), np.arange(30), 8) == []


def test_find_selects_by_text_and_by_regular_expression(small):
    control(small, "find").value = "TEXT 1"
    assert small.selection.index.tolist() == [1, *range(10, 20)]
    assert "11 rows contain “TEXT 1”" in shown(small, "answer")
    control(small, "find").value = "1.$"
    assert len(small.selection) == 0
    control(small, "regular expression").value = True
    assert small.selection.index.tolist() == list(range(10, 20))
    control(small, "find").value = "(1"
    assert "“(1” is no regular expression" in shown(small, "answer")
    assert small.selection.index.tolist() == list(range(10, 20))


def test_the_row_under_the_pointer_is_shown_with_the_columns_asked_for():
    vectors, labels = blobs()
    data = {"text": [f"text {i}" for i in range(40)], "label": labels, "stars": labels * 2.5}
    widget = ek.explore(vectors, data, hover="stars", points=vectors[:, :2])
    assert "Point at the map" in shown(widget, "hover")
    text = hover(widget, 3)
    assert all(each in text for each in ("text 3", "label: 1", "stars: 2.5", "row 3"))
    widget._scatter.hovering = None  # the pointer leaves
    assert shown(widget, "hover") == text


@pytest.mark.slow
def test_images_become_small_thumbnails_made_only_when_looked_at():
    rows = [picture(seed, size=(900, 700)) for seed in range(5)]
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    data = Dataset.from_dict({"image": rows, "label": [0, 1, 0, 1, 0]}, features=features)
    broken = [{"bytes": b"no image", "path": None}]
    data = data.cast_column("image", Image(decode=False))
    data = Dataset.from_dict(
        {"image": data[:4]["image"] + broken, "label": data["label"]}, features=features
    )
    vectors, _ = blobs(n=5)
    widget = ek.explore(vectors, data, points=vectors[:, :2])  # opens: nothing was decoded
    hover(widget, 1)
    html = widget._text["hover"].value
    assert "<img src='data:image/jpeg;base64," in html and len(html) < 20_000
    assert shown(widget, "hover").startswith("label: b")
    assert "cannot" in hover(widget, 4)
    widget.select(range(4))
    assert widget._text["selection"].value.count("<img ") == 4  # the neighbour is none
    assert len(widget._text["selection"].value) < 30_000
    assert widget.selection.columns.tolist() == ["label"]
    assert widget.selection["label"].tolist() == ["a", "b", "a", "b"]


def test_arrays_are_images_too():
    vectors, _ = blobs(n=5)
    frame = pd.DataFrame(
        {"drawing": [np.full((8, 8), i / 5) for i in range(5)], "word": list("abcde")}
    )
    for data in (frame, {name: list(frame[name]) for name in frame}):
        widget = ek.explore(vectors, data, color="word", points=vectors[:, :2])
        assert "word: c" in hover(widget, 2)
        assert "<img " in widget._text["hover"].value
        assert widget.selection.columns.tolist() == ["word"]


@pytest.fixture
def mentions():
    sentences = [["Jordan", "plays", "for", "the", "Bulls"], ["The", "river", "Jordan", "<b>"]]
    vectors = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    words = WordVectors(
        vectors,
        sentence=np.array([0, 0, 1]),
        position=np.array([0, 3, 2]),
        word=["Jordan", "the Bulls", "Jordan"],
        label=["PER", "ORG", "LOC"],
        start=np.array([0, 3, 2]),
        end=np.array([1, 5, 3]),
    )
    return words, sentences


@pytest.mark.parametrize("kind", ["list", "column", "texts", "dataset"])
def test_words_are_marked_in_their_sentence(mentions, kind):
    words, sentences = mentions
    data = {
        "list": sentences,
        "column": {"tokens": sentences, "topic": ["sport", "land"]},
        "texts": [" ".join(each) for each in sentences],
        "dataset": Dataset.from_dict({"tokens": sentences, "topic": ["sport", "land"]}),
    }[kind]
    widget = ek.explore(words, data)
    assert "Jordan plays for the Bulls" in " ".join(hover(widget, 1).split())
    assert "<mark>the Bulls</mark>" in widget._text["hover"].value
    assert "label: LOC" in hover(widget, 2) and "The river Jordan <b>" in shown(widget, "hover")
    control(widget, "find").value = "jordan"
    assert widget.selection["label"].tolist() == ["PER", "LOC"]
    if kind in ("column", "dataset"):
        assert widget.selection["topic"].tolist() == ["sport", "land"]


def test_a_long_sentence_is_cut_and_keeps_its_word():
    sentences = [[*["before"] * 500, "HERE", *["after"] * 500]]
    n = 1001
    words = WordVectors(
        np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32),
        sentence=np.zeros(n, int),
        position=np.arange(n),
        word=sentences[0],
    )
    widget = ek.explore(words, sentences, points=words.vectors[:, :2])
    text = hover(widget, 500)
    assert "HERE" in text and len(text) < 1200


def test_data_is_shown_as_typed_everywhere():
    vectors, _ = blobs(n=12)
    data = pd.DataFrame({"text": [f"{NASTY} {i}" for i in range(12)], NASTY: [NASTY] * 12})
    data["label"] = [f"{NASTY}{i % 2}" for i in range(12)]
    widget = ek.explore({NASTY: vectors, "b": vectors[:, :3]}, data, hover=[NASTY])
    hover(widget, 1)
    widget.select([0, 1, 2])
    control(widget, "find").value = NASTY
    assert len(widget.selection) == 12
    plain = {"div", "span", "b", "br", "p", "small", "i", "mark"}
    for place in ("hover", "selection", "legend", "answer"):
        read = Reader(widget._text[place].value)
        assert NASTY[:40] in read.text, place
        assert read.tags <= plain, place
    assert f"{NASTY}: {NASTY}" in shown(widget, "hover")
    control(widget, "regular expression").value = True
    control(widget, "find").value = "<script>("
    assert (
        "<script>(" in shown(widget, "answer")
        and "script" not in Reader(widget._text["answer"].value).tags
    )


def test_numbers_say_what_evaluate_says():
    vectors, labels = blobs(n=60, classes=3)
    points = ek.project(vectors, method="pca")
    text = shown(ek.explore(vectors, {"label": labels}, points=points), "trust")
    assert f"trustworthiness {evaluate.trustworthiness(vectors, points):.2f}" in text
    for table, metric, where in (
        (vectors, "cosine", "in the full space"),
        (points, "euclidean", "on the map"),
    ):
        near = NearestNeighbors(n_neighbors=6, metric=metric).fit(table).kneighbors(table)[1][:, 1:]
        votes = np.array([np.bincount(labels[row], minlength=3).argmax() for row in near])
        assert f"5-NN accuracy {where} {(votes == labels).mean():.2f}" in text


@pytest.mark.slow
def test_numbers_follow_the_color():
    vectors, labels = blobs(n=60, classes=3)
    data = {
        "label": labels,
        "noise": np.random.default_rng(0).integers(0, 2, 60),
        "size": vectors[:, 0],
    }
    widget = ek.explore(vectors, data, points=vectors[:, :2])
    before = shown(widget, "trust")
    control(widget, "color").value = "noise"
    after = shown(widget, "trust")
    assert "5-NN accuracy" in before and "5-NN accuracy" in after and before != after
    assert shown(widget, "legend").split() == [
        "●",
        "0",
        f"({(data['noise'] == 0).sum()})",
        "●",
        "1",
        f"({data['noise'].sum()})",
    ]
    control(widget, "color").value = "size"
    assert "a column of two classes or more" in shown(widget, "trust")
    assert f"{vectors[:, 0].min():.4g}" in shown(widget, "legend")
    control(widget, "color").value = None
    assert shown(widget, "legend") == ""
    assert len(set(widget._scatter.points[:, 2])) == 1


def test_a_color_change_leaves_the_points_where_they_are(small):
    before = small.points.copy()
    control(small, "color").value = "text"
    np.testing.assert_array_equal(small.points, before)
    assert small._scatter.transition_points is False
    assert len(set(small._scatter.points[:, 2])) == len(PALETTE) + 1
    assert f"others, or none ({40 - len(PALETTE)})" in shown(small, "legend")


def test_colors_tell_classes_amounts_and_the_unknown_apart():
    found = coloring(pd.Series(["b", "a", None, "b"]))
    codes, colors = found.colors()
    assert [colors[code] for code in codes] == [PALETTE[1], PALETTE[0], UNKNOWN, PALETTE[1]]
    assert found.classes.tolist() == [1, 0, -1, 1] and found.amounts is None
    assert "others, or none (1)" in Reader(found.legend()).text
    found = coloring(pd.Series([0.5, np.nan, 2.5, np.inf, 1.5]))
    codes, colors = found.colors()
    assert (found.classes == -1).all() and found.limits == (0.5, 2.5)
    assert codes.tolist() == [1, 0, 255, 0, 128] and len(set(colors)) > 200
    found = coloring(pd.Series([True, False, True]))
    assert found.names == ["False", "True"] and found.counts.tolist() == [1, 2]
    assert coloring(pd.Series([None, np.nan])).colors()[0].tolist() == [0, 0]


def test_an_order_of_classes_is_that_of_the_names_in_the_data():
    features = Features(
        {"label": ClassLabel(names=["zero", "one", "never"]), "text": Value("string")}
    )
    data = Dataset.from_dict({"label": [1, 0, 1, 0, -1], "text": list("abcde")}, features=features)
    vectors, _ = blobs(n=5)
    widget = ek.explore(vectors, data, points=vectors[:, :2])
    assert shown(widget, "legend").split()[:6] == ["●", "zero", "(2)", "●", "one", "(2)"]


@pytest.mark.slow
def test_the_points_travel_to_the_map_of_other_vectors():
    travelled = []
    vectors, labels = blobs(n=50, classes=3)
    turned = ek.project(vectors, method="pca") @ np.array([[0.0, 2.0], [2.0, 0.0]]) + 7
    other = vectors[:, ::-1].copy()
    given = {"a": ek.project(vectors, method="pca"), "b": turned}
    widget = ek.explore(
        {"a": vectors, "b": other, "c": vectors**2}, {"label": labels}, points=given
    )
    before = widget.points.copy()
    widget.select([4, 5])
    widget._scatter.observe(lambda change: travelled.append(change["new"]), "transition_points")
    control(widget, "vectors").value = "b"
    assert travelled == [True]
    np.testing.assert_allclose(widget.points, before, atol=1e-5)  # the same map, laid over itself
    control(widget, "vectors").value = "c"  # no map was given: it is computed
    assert np.abs(widget.points - before).max() > 0.1
    assert widget.selection.index.tolist() == [4, 5]
    control(widget, "color").value = None
    assert travelled == [True, False]


def test_framed_turns_mirrors_and_scales():
    generator = np.random.default_rng(0)
    old = framed(generator.normal(size=(30, 2)) * [3, 1])
    for mirror in (1, -1):
        angle = generator.uniform(0, 6)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        np.testing.assert_allclose(framed(old @ turn * [1, mirror] * 9 + 3, old), old, atol=1e-6)
    assert np.abs(old).max() == pytest.approx(0.95)
    np.testing.assert_array_equal(framed(np.ones((4, 2))), np.zeros((4, 2)))


@pytest.mark.slow
def test_umap_settings_make_another_map_and_a_known_one_comes_back(small):
    control(small, "map").value = "UMAP"
    first = small._maps.points(small._view)
    control(small, "n_neighbors").value = 3
    second = small._maps.points(small._view)
    assert np.abs(first - second).max() > 0.1
    control(small, "n_neighbors").value = 15
    assert small._maps.points(small._view) is first
    control(small, "map").value = "PCA"
    assert control(small, "n_neighbors").disabled and control(small, "metric").disabled
    control(small, "map").value = "UMAP"
    assert not control(small, "n_neighbors").disabled


@pytest.mark.slow
def test_a_map_is_computed_while_other_cells_run_and_the_last_wish_counts():
    vectors, labels = blobs(n=300, dim=20)

    async def notebook():
        widget = ek.explore(
            {"a": vectors, "b": vectors**2}, {"label": labels}, points=vectors[:, :2]
        )
        before, turns = widget.points.copy(), 0
        control(widget, "map").value = "UMAP"
        assert widget._task is not None and not widget._task.done()
        await asyncio.sleep(0)
        assert "Computing: UMAP, a" in shown(widget, "status")
        np.testing.assert_array_equal(widget.points, before)
        control(widget, "n_neighbors").value = 5
        control(widget, "vectors").value = "b"
        while not widget._task.done():
            turns += 1
            await asyncio.sleep(0.005)
        return widget, turns

    widget, turns = asyncio.run(notebook())
    assert widget._view == View("b", "UMAP", 5, 0.1, "cosine")
    assert View("a", "UMAP", 5, 0.1, "cosine") not in widget._maps.known
    assert shown(widget, "status") == ""
    assert turns > 20


@pytest.mark.slow
def test_many_rows_begin_with_pca():
    vectors, labels = blobs(n=LARGE + 1, dim=4)
    widget = ek.explore(vectors, {"label": labels})
    assert control(widget, "map").value == "PCA"
    assert "Measured on 2000 rows drawn at random." in shown(widget, "trust")


def test_rows_of_nan_are_left_out_and_counted():
    vectors, labels = blobs()
    vectors[[3, 8]] = np.nan
    widget = ek.explore(vectors, {"text": [f"text {i}" for i in range(40)], "label": labels})
    assert len(widget.points) == 38
    assert "2 rows hold NaN and are left out." in shown(widget, "trust")
    assert "text 4" in hover(widget, 3)
    widget.select([3, 4, 39])
    assert widget.selection["text"].tolist() == ["text 4", "text 39"]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 12])
def test_few_rows_make_a_map_too(n):
    vectors, labels = blobs(n=n)
    widget = ek.explore(vectors, {"text": list("abcdefghijkl")[:n], "label": labels})
    assert widget.points.shape == (n, 2) and np.isfinite(widget.points).all()
    widget.select([0])
    assert widget.selection["text"].tolist() == ["a"]
    assert ("UMAP" in control(widget, "map").options) == (n > 3)


def test_one_class_and_constant_vectors_are_said_not_raised():
    widget = ek.explore(np.ones((20, 4)), {"label": ["a"] * 20})
    assert "color by a column of two classes or more" in shown(widget, "trust")
    control(widget, "map").value = "PCA"
    assert shown(widget, "status") == ""
    assert np.isfinite(widget.points).all()
    widget.select([0])
    assert "Nearest in the full space" in shown(widget, "selection")


def test_what_cannot_be_computed_is_said_beside_the_map(small):
    small._maps.vectors["vectors"][5] = np.nan
    before = small.points.copy()
    control(small, "map").value = "PCA"
    assert "could not be computed" in shown(small, "status")
    assert "NaN" in shown(small, "status")
    np.testing.assert_array_equal(small.points, before)
    control(small, "map").value = "as given"


LABELS = {"label": [0, 1, 0, 1, 0]}
FIVE = np.eye(5)


@pytest.mark.parametrize(
    ("vectors", "data", "settings", "message"),
    [
        (FIVE[:4], LABELS, {}, "'vectors' has 4 rows, but there are 5 rows of data"),
        ({"a": FIVE, "b": FIVE[:3]}, LABELS, {}, "'b' has 3 rows, but there are 5"),
        ({}, LABELS, {}, "no row of finite numbers"),
        (np.full((5, 2), np.nan), LABELS, {}, "no row of finite numbers"),
        (np.ones(5), LABELS, {}, r"give an array \(n, dim\) of numbers. Expected 2D array, got 1D"),
        ([["a"]] * 5, LABELS, {}, "give an array .* of numbers"),
        (FIVE, {"label": [0, 1], "text": ["a"]}, {}, "differ in length: label 2, text 1"),
        (FIVE, LABELS, {"color": "lable"}, "color='lable'.*choose a column from label"),
        (FIVE, LABELS, {"hover": ["label", "x"]}, "hover='x'.*choose a column from label"),
        (FIVE, {"a": [[1]] * 5}, {"color": "a"}, "choose a column from none"),
        (FIVE, LABELS, {"points": FIVE}, r"points of 'vectors' have shape \(5, 5\)"),
        (FIVE, LABELS, {"points": FIVE[:4, :2]}, "'vectors' has 4 rows, but there are 5"),
        ({"a": FIVE}, LABELS, {"points": {"b": FIVE[:, :2]}}, "points of 'b'.*for any of a"),
        (FIVE, 5, {}, "datasets.Dataset, a DataFrame or a dict of columns, and got int"),
        (FIVE[:0], {"label": []}, {}, "no row of finite numbers"),
    ],
)  # fmt: skip
def test_wrong_input_gets_a_sentence(vectors, data, settings, message):
    with pytest.raises(ValueError, match=message):
        ek.explore(vectors, data, **settings)


def test_splits_and_foreign_sentences_get_a_sentence(mentions):
    splits = DatasetDict({"train": Dataset.from_dict(LABELS), "test": Dataset.from_dict(LABELS)})
    with pytest.raises(ValueError, match="choose one of train, test"):
        ek.explore(FIVE, splits)
    words, sentences = mentions
    with pytest.raises(ValueError, match="the words come from 2 sentences or more, and data has 1"):
        ek.explore(words, sentences[:1])
    with pytest.raises(ValueError, match="in a column 'tokens' or 'text'; it has label"):
        ek.explore(words, {"label": [0, 1]})


def test_the_text_of_a_row_is_the_column_called_text_or_the_longest():
    vectors, _ = blobs(n=3)
    widget = ek.explore(vectors, {"id": list("abc"), "review": ["a long review"] * 3})
    assert re.search("a long review.*row 1", hover(widget, 1), re.DOTALL)
    widget = ek.explore(vectors, ["first", "second", "third"])
    assert "second" in hover(widget, 1)


def test_masks_of_any_kind_select_what_is_true(small):
    label = small._rows.frame["label"]
    for mask in (
        (label == "dog").to_numpy().astype(object),
        (label == "dog").astype("boolean"),
        (label == "dog").astype("boolean").where(label != "cat"),  # NA in place of False
        (label == "dog").tolist(),
    ):
        small.select(mask)
        assert small.selection.index.tolist() == list(range(1, 40, 2))
    with pytest.raises(ValueError, match="one truth value for each row"):
        small.select([True, None, False])


def test_find_ends_whatever_is_typed(small, monkeypatch):
    monkeypatch.setattr(_rows, "_PATIENCE", 0.2)
    small._rows.frame["text"] = ["a" * 40 + "!"] * 40
    control(small, "regular expression").value = True
    small.select([3])
    control(small, "find").value = "(a|aa)+$"
    assert "“(a|aa)+$” takes longer than 0.2 seconds" in shown(small, "answer")
    assert small.selection.index.tolist() == [3]
    for pattern in ("a{1000000000000}", "<b>(", "(?P<", "\\"):
        control(small, "find").value = pattern
        assert f"“{pattern}” is no regular expression" in shown(small, "answer"), pattern
        assert Reader(small._text["answer"].value).tags <= {"div"}
    assert small.selection.index.tolist() == [3]


def test_find_in_a_column_where_a_value_is_missing():
    vectors, _ = blobs(n=4)
    data = pd.DataFrame({"text": ["good", None, "nan", "bad"]})
    widget = ek.explore(vectors, data, points=vectors[:, :2])
    control(widget, "find").value = "a"
    assert widget.selection.index.tolist() == [2, 3]
    widget = ek.explore(vectors, {"a": ["x", "y", None, "z"], "b": [1, 2, np.nan, 4]})
    control(widget, "find").value = "y"
    assert widget.selection.index.tolist() == [1]


def test_half_a_character_and_two_columns_of_a_name():
    vectors, _ = blobs(n=4)
    widget = ek.explore(vectors, {"text": ["a\ud800b", "c", "d", "e"]}, points=vectors[:, :2])
    assert "a\ufffdb" in hover(widget, 0)
    frame = pd.DataFrame([["a", "b"]] * 4, columns=["x", "x"])
    with pytest.raises(ValueError, match="two columns are called 'x'; rename one of them"):
        ek.explore(vectors, frame)


def test_a_filter_hides_rows_and_find_keeps_to_it():
    vectors, labels = blobs(n=40)
    data = {"text": [f"text {i}" for i in range(40)], "label": labels, "size": labels + 0.5}
    widget = ek.explore(vectors, data, points=vectors[:, :2])
    control(widget, "filter").value = "label"
    assert widget._scatter.filter is None  # no value is chosen yet
    control(widget, "only").value = (1,)
    assert widget._scatter.filter.tolist() == list(range(1, 40, 2))
    assert "20 rows are shown." in shown(widget, "answer")
    control(widget, "find").value = "text 1"
    assert widget.selection.index.tolist() == [1, 11, 13, 15, 17, 19]
    assert "6 rows contain" in shown(widget, "answer")
    control(widget, "filter").value = "size"
    control(widget, "only").value = (0, 1)
    assert widget._scatter.filter.tolist() == list(range(0, 40, 2))
    assert widget.selection.index.tolist() == [10, 12, 14, 16, 18]
    control(widget, "filter").value = None
    assert widget._scatter.filter is None and len(widget.selection) == 11


def test_a_selection_can_be_taken_back(small):
    undo = control(small, "undo")
    assert undo.disabled
    small.select([1, 2])
    small.select([7])
    undo.click()
    assert small.selection.index.tolist() == [1, 2]
    undo.click()
    assert len(small.selection) == 0 and undo.disabled


@pytest.mark.slow
def test_no_answer_is_lost_while_a_map_is_computed():
    vectors, labels = blobs(n=300, dim=20)
    data = {"text": [f"text {i}" for i in range(300)], "label": labels}

    async def notebook():
        widget = ek.explore(vectors, data, points=vectors[:, :2])
        control(widget, "map").value = "UMAP"
        await asyncio.sleep(0)
        assert "Computing" in shown(widget, "status")
        control(widget, "find").value = "text 29"
        control(widget, "filter").value = "label"
        control(widget, "only").value = (1,)
        answer, chosen = shown(widget, "answer"), widget.selection.index.tolist()
        while not widget._task.done():
            await asyncio.sleep(0.01)
        return widget, answer, chosen

    widget, answer, chosen = asyncio.run(notebook())
    assert answer == "6 rows contain “text 29”." == shown(widget, "answer")
    assert chosen == [29, *range(291, 300, 2)] == widget.selection.index.tolist()
    assert shown(widget, "status") == "" and widget._view.method == "UMAP"
    assert f"{len(chosen)} selected" in shown(widget, "selection")
    assert len(widget._scatter.filter) == 150


@pytest.mark.slow
def test_two_spaces_side_by_side_share_selection_and_neighbours():
    vectors, labels = blobs(n=40, classes=4)
    mixed = vectors.copy()
    mixed[:10] = mixed[:10][::-1]  # for these rows another space
    maps = {"a": vectors[:, :2], "b": mixed[:, :2]}
    widget = ek.explore({"a": vectors, "b": mixed}, {"label": labels}, points=maps)
    control(widget, "compare").value = "b"
    near = [
        NearestNeighbors(n_neighbors=11, metric="cosine").fit(each) for each in (vectors, mixed)
    ]
    rows = [
        search.kneighbors(each)[1][:, 1:]
        for search, each in zip(near, (vectors, mixed), strict=True)
    ]
    expected = [len(set(a) & set(b)) for a, b in zip(*rows, strict=True)]
    assert widget._shared.tolist() == expected and len(set(expected)) > 2
    beside = widget._beside
    assert widget._side_by_side.children == (widget._scatter, beside)
    np.testing.assert_array_equal(beside.points[:, 2], widget._scatter.points[:, 2])
    first = np.argmin(expected)
    assert shown(widget, "selection").startswith(f"Fewest neighbours shared first{labels[first]}")
    beside.selection = np.array([3, 4], np.uint32)
    assert widget.selection.index.tolist() == [3, 4]
    beside.hovering = 5
    assert widget._scatter.hovering == 5 and "row 5" in shown(widget, "hover")
    assert "both spaces share" in shown(widget, "legend")
    control(widget, "compare").value = None
    assert widget._side_by_side.children == (widget._scatter,)
    assert "2 selected" in shown(widget, "selection")
    assert control(ek.explore(vectors, {"label": labels}), "color")  # one space has no such menu


@pytest.mark.slow
def test_clusters_of_the_map_are_called_by_their_words():
    vectors, labels = blobs(n=90, classes=3, seed=3)
    about = ["the kettle boils water", "a novel with a plot", "the train to the station"]
    data = {
        "text": [f"{about[label]} {i}" for i, label in enumerate(labels)],
        "label": labels,
    }
    widget = ek.explore(vectors, data, points=vectors[:, :2] * 5)
    control(widget, "names").value = True
    names = widget._maps.clusters(widget._view, widget._rows, "label")
    found = {name: {labels[i] for i, each in enumerate(names) if each == name} for name in names}
    found.pop("", None)
    assert len(found) == 3 and all(len(each) == 1 for each in found.values())
    for name, (label,) in found.items():
        assert set(name.split(", ")) <= set(about[label].split()), name
    placed = widget._scatter.label_placement
    assert set(placed.data["name"]) == set(found)
    assert "3 clusters of this map, not of the vectors" in shown(widget, "clusters")
    control(widget, "names").value = False
    assert widget._scatter.label_placement is None
    plain = ek.explore(vectors, {"label": labels}, points=vectors[:, :2] * 5)
    assert set(plain._maps.clusters(plain._view, plain._rows, "label")) - {""} == {"0", "1", "2"}


def test_points_of_no_cluster_keep_no_name_from_being_placed():
    vectors, labels = blobs(n=90, classes=3, seed=3)
    points = vectors[:, :2] * 5
    points[:4] = [[40, 40], [-40, 40], [40, -40], [-40, -40]]  # far from all, and first
    widget = ek.explore(vectors, {"label": labels}, points=points)
    control(widget, "names").value = True
    assert "" in widget._maps.clusters(widget._view, widget._rows, "label")[:4]
    assert shown(widget, "status") == ""
    assert "clusters of this map" in shown(widget, "clusters")
    assert widget._scatter.label_placement is not None


@pytest.mark.slow
def test_density_is_drawn_as_lines(small):
    control(small, "density").value = True
    lines = small._scatter.annotations
    assert len(lines) >= 3
    assert all(np.abs(line.vertices).max() <= 1.2 for line in lines)
    ends = [np.subtract(line.vertices[0], line.vertices[-1]) for line in lines]
    np.testing.assert_allclose(ends, 0, atol=1e-9)  # closed: none is cut at the frame
    control(small, "density").value = False
    assert small._scatter.annotations == []


def png(width, height):
    """Write the head of an image of this size, with hardly any pixels behind it."""

    def chunk(kind, data):
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.slow
@pytest.mark.bad_input("images in the explorer")
@pytest.mark.parametrize(
    ("image", "said"),
    [
        ({"bytes": png(40_000, 40_000), "path": None}, "would fill the memory"),
        ({"bytes": b"abc", "path": None}, "no image file that Pillow can read"),
        ({"bytes": None, "path": "nowhere/x.png"}, "there is no file nowhere/x.png"),
        ({"bytes": None, "path": "{server}/x.png"}, "there is no file http://127.0.0.1"),
    ],
    ids=["a bomb", "no image", "gone", "an address"],
)
def test_an_image_of_a_dataset_that_cannot_be_shown_is_named(image, said, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        if image["path"]:
            address = f"http://127.0.0.1:{server.getsockname()[1]}"
            image = {**image, "path": image["path"].format(server=address)}
        written = io.BytesIO()
        picture(1).save(written, "PNG")
        rows = [{"bytes": written.getvalue(), "path": None}, image]
        data = Dataset.from_dict({"image": rows}).cast_column("image", Image())
        widget = ek.explore(np.eye(2), data, points=np.eye(2))
        widget.select([0, 1])
        widget._scatter.hovering = 1
        assert said in shown(widget, "hover") and "row 1" in shown(widget, "hover")
        assert widget._text["selection"].value.count("<img") >= 1  # the other is shown
        assert widget.save(tmp_path / "map.html").exists()
        with pytest.raises(TimeoutError):
            server.accept()  # nobody asked


@pytest.mark.fault("a browser without WebGL")
@pytest.mark.parametrize("answers", [True, False])
def test_a_map_that_stays_silent_in_a_page_is_drawn_as_a_picture(small, monkeypatch, answers):
    monkeypatch.setattr(_controls, "SILENCE", 0.05)
    switch, scatter = small._switches["picture"], small._scatter

    async def page():
        small._view_count = 1  # a page shows the explorer
        if answers:
            scatter.set_trait("dom_element_id", "here")
        await asyncio.sleep(0.2)
        assert switch.value is not answers
        scatter.set_trait("dom_element_id", "late")
        assert switch.value is False

    asyncio.run(page())
    assert not switch.value


@pytest.mark.slow
def test_a_still_picture_stands_in_where_there_is_no_webgl(small):
    small._switches["picture"].value = True
    sentence, image = small._picture.children
    assert "Where the browser has none" in Reader(sentence.value).text
    assert bytes(image.value).startswith(b"\x89PNG") and len(image.value) > 10_000
    control(small, "color").value = "text"  # more classes than colors: it follows, without them
    assert small._picture.children[1].value != image.value
    small._switches["picture"].value = False
    assert small._picture.children == ()
