"""What a figure promises: a legend that names, shapes that differ, no ticks, and no show."""

import matplotlib as mpl
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba

import embedkit as ek
from embedkit.maps.plotting import PALETTE

POINTS = np.random.default_rng(0).normal(size=(6, 2))


@pytest.fixture(autouse=True)
def no_show(monkeypatch):
    """Fail where a figure is shown; close what was drawn."""
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("plt.show was called"))
    yield
    plt.close("all")


def legend(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def colors(ax) -> list[tuple]:
    return [tuple(drawn.get_facecolor()[0][:3]) for drawn in ax.collections]


def markers(ax) -> list[bytes]:
    return [drawn.get_paths()[0].vertices.tobytes() for drawn in ax.collections]


def test_points_without_labels():
    ax = ek.plot(POINTS, title="A map")
    assert isinstance(ax, mpl.axes.Axes)
    assert ax.get_title() == "A map"
    assert ax.get_legend() is None
    np.testing.assert_allclose(ax.collections[0].get_offsets(), POINTS)


def test_no_ticks():
    ax = ek.plot(POINTS, labels=[1, 2, 3, 1, 2, 3])
    assert len(ax.get_xticks()) == len(ax.get_yticks()) == 0


def test_classes_have_names_counts_colors_and_shapes():
    ax = ek.plot(POINTS, labels=[1, 0, 2, 0, 0, 2], names=["no", "perhaps", "yes"])
    assert legend(ax) == ["no (3)", "perhaps (1)", "yes (2)"]
    assert len(set(colors(ax))) == len(set(markers(ax))) == 3
    np.testing.assert_allclose(ax.collections[0].get_offsets(), POINTS[[1, 3, 4]])
    np.testing.assert_allclose(ax.collections[2].get_offsets(), POINTS[[2, 5]])
    assert colors(ax)[0] == to_rgba(PALETTE[0])[:3]


@pytest.mark.parametrize("labels", [list("abacab"), np.array(list("abacab")), tuple("abacab")])
def test_classes_may_be_strings(labels):
    assert legend(ek.plot(POINTS, labels=labels)) == ["a (3)", "b (2)", "c (1)"]


def test_booleans_are_classes():
    ax = ek.plot(POINTS, labels=[True, False, True, True, False, True])
    assert legend(ax) == ["False (2)", "True (4)"]


def test_a_column_of_labels_brings_its_names():
    features = Features({"label": ClassLabel(names=["bad", "good"])})
    data = Dataset.from_dict({"label": [0, 1, 1, 0, 1, 1]}, features=features)
    assert legend(ek.plot(POINTS, labels=data["label"])) == ["bad (2)", "good (4)"]


def test_a_dozen_classes_are_told_apart_by_color_and_shape():
    points = np.random.default_rng(0).normal(size=(24, 2))
    ax = ek.plot(points, labels=list(range(12)) * 2)
    looks = list(zip(colors(ax), markers(ax), strict=True))
    assert len(set(looks)) == len(looks) == 12


def test_floats_are_amounts_with_a_color_bar():
    ax = ek.plot(POINTS, labels=[0.1, 0.5, 0.25, 0.9, 1.5, 2.0])
    assert ax.get_legend() is None
    assert len(ax.figure.axes) == 2
    np.testing.assert_allclose(ax.collections[0].get_array(), [0.1, 0.5, 0.25, 0.9, 1.5, 2.0])


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_points_without_a_label_are_grey(missing):
    ax = ek.plot(POINTS, labels=["a", missing, "b", missing, "a", "a"])
    assert legend(ax) == ["a (3)", "b (1)", "no label (2)"]
    grey = colors(ax)[-1]
    assert grey[0] == grey[1] == grey[2]
    np.testing.assert_allclose(ax.collections[-1].get_offsets(), POINTS[[1, 3]])
    amounts = ek.plot(POINTS, labels=[0.5, missing, 1.5, 2.5, missing, 0.1])
    assert legend(amounts) == ["no label (2)"]
    assert len(amounts.figure.axes) == 2


def test_an_axes_is_used_again():
    _, (left, right) = plt.subplots(1, 2)
    assert ek.plot(POINTS, ax=right, title="right") is right
    assert not left.collections and len(right.collections) == 1
    assert len(plt.get_fignums()) == 1


def test_the_legend_stands_outside():
    ax = ek.plot(POINTS, labels=list("abacab"))
    ax.figure.draw_without_rendering()
    assert ax.get_legend().get_window_extent().x0 >= ax.get_window_extent().x1


def test_points_are_left_as_they_were_and_lists_do():
    before = POINTS.copy()
    ek.plot(POINTS, labels=list("abacab"))
    np.testing.assert_array_equal(POINTS, before)
    ax = ek.plot(POINTS.tolist())
    np.testing.assert_allclose(ax.collections[0].get_offsets(), POINTS)


def test_no_points_make_an_empty_figure():
    assert isinstance(ek.plot(np.zeros((0, 2))), mpl.axes.Axes)
    assert isinstance(ek.plot(np.zeros((0, 2)), labels=[]), mpl.axes.Axes)
