"""What a figure promises: a legend that names, shapes that differ, no ticks, and no show."""

import matplotlib as mpl
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba

import embedkit as ek
from embedkit.maps._colors import PALETTE, UNKNOWN
from embedkit.maps._density import density, levels, limits_of

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


def test_no_ticks_and_no_frame():
    ax = ek.plot(POINTS, labels=[1, 2, 3, 1, 2, 3])
    assert len(ax.get_xticks()) == len(ax.get_yticks()) == 0
    assert not any(spine.get_visible() for spine in ax.spines.values())


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


def oklab(color, seen):
    """Place a color where distances are those the eye sees (Ottosson 2020)."""
    rgb = np.array(to_rgba(color)[:3])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    axes = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return axes @ np.cbrt(cones @ np.clip(seen @ linear, 0, 1))


# Without red cones, without green cones (Machado, Oliveira and Fernandes 2009).
RED_BLIND = np.array(
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
     [-0.003882, -0.048116, 1.051998]]
)  # fmt: skip
GREEN_BLIND = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
     [-0.011820, 0.042940, 0.968881]]
)  # fmt: skip


@pytest.mark.parametrize("seen", [np.eye(3), RED_BLIND, GREEN_BLIND], ids=["all", "red", "green"])
def test_twenty_classes_have_colors_that_every_eye_tells_apart(seen):
    places = np.array([oklab(color, seen) for color in (*PALETTE, "#ffffff")])
    apart = np.linalg.norm(places[:, None] - places, axis=-1)
    assert len(set(PALETTE)) == 20
    assert apart[np.triu_indices(21, 1)].min() > 0.06  # one can just see 0.02
    assert np.linalg.norm(places - oklab(UNKNOWN, seen), axis=-1).min() > 0.03


def test_more_classes_than_colors_are_told_apart_by_shape():
    points = np.random.default_rng(0).normal(size=(80, 2))
    ax = ek.plot(points, labels=list(range(24)) * 3 + [0] * 8)
    looks = list(zip(colors(ax), markers(ax), strict=True))
    assert len(set(looks)) == len(looks) == 24
    assert len(set(colors(ax))) == 20


def test_classes_stand_in_the_order_of_their_names():
    ax = ek.plot(POINTS, labels=[2, 1, 0, 2, 2, 2], names=["negative", "neutral", "better"])
    assert legend(ax) == ["negative (1)", "neutral (1)", "better (4)"]


def test_labels_that_begin_with_an_underscore_are_in_the_legend():
    ax = ek.plot(POINTS, labels=["_a", "_a", "b", "b", "_c", "_c"])
    assert legend(ax) == ["_a (2)", "_c (2)", "b (2)"]


def test_a_legend_can_be_left_out():
    assert ek.plot(POINTS, labels=list("abacab"), legend=False).get_legend() is None
    amounts = ek.plot(POINTS, labels=POINTS[:, 0], legend=False)
    assert len(amounts.figure.axes) == 1


@pytest.fixture
def islands():
    """Three classes that lie apart, and one that lies everywhere."""
    generator = np.random.default_rng(0)
    centres = np.array([[0, 0], [10, 0], [0, 10]])
    points = [centre + generator.normal(size=(50, 2)) for centre in centres]
    points.append(generator.uniform(-3, 13, size=(50, 2)))
    return np.concatenate(points), np.repeat(["west", "east", "north", "all"], 50)


def test_a_name_is_written_where_its_class_lies_and_nowhere_else(islands):
    points, labels = islands
    ax = ek.plot(points, labels=labels)
    ax.figure.draw_without_rendering()
    places = {text.get_text(): text.get_position() for text in ax.texts}
    assert set(places) == {"west", "east", "north"}
    for name, centre in (("west", [0, 0]), ("east", [10, 0]), ("north", [0, 10])):
        np.testing.assert_allclose(places[name], centre, atol=1)


def test_names_do_not_cover_each_other(islands):
    points, labels = islands
    flat = plt.figure(figsize=(6, 0.4)).add_subplot()
    ax = ek.plot(points, labels=labels, ax=flat)
    assert ax.texts
    boxes = [text.get_window_extent() for text in ax.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    long = np.array(["a name so long that it cannot stand in the map"])[np.zeros(200, int)]
    tiny = plt.figure(figsize=(1, 1)).add_subplot()
    assert not ek.plot(points, labels=np.where(labels == "west", long, labels), ax=tiny).texts


def test_a_density_has_a_panel_for_each_class(islands):
    points, labels = islands
    ax = ek.plot(points, labels=labels, kind="density", title="where")
    assert [panel.get_title() for panel in ax.child_axes] == [
        "all (50)",
        "east (50)",
        "north (50)",
        "west (50)",
    ]
    assert ax.get_title() == "where" and ax.get_legend() is None
    for panel in ax.child_axes:
        grey, contours = panel.collections
        np.testing.assert_allclose(grey.get_offsets(), points)
        assert len(contours.levels) == 4
    ax.figure.draw_without_rendering()
    with pytest.raises(ValueError, match="these labels are amounts"):
        ek.plot(points, labels=points[:, 0], kind="density")
    with pytest.raises(ValueError, match="unknown; choose from points, density"):
        ek.plot(points, kind="hexagons")


def test_contours_hold_the_share_of_the_points_that_they_say():
    points = np.random.default_rng(0).normal(size=(4000, 2))
    x, y, grid = density(points, limits_of(points))
    cells = np.searchsorted(x, points[:, 0]) - 1, np.searchsorted(y, points[:, 1]) - 1
    low, high = levels(grid, (0.9, 0.3))
    at = grid[np.clip(cells[1], 0, 63), np.clip(cells[0], 0, 63)]
    assert np.mean(at >= low) == pytest.approx(0.9, abs=0.03)
    assert np.mean(at >= high) == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("marker", range(11))
def test_small_points_are_seen_whatever_their_shape(marker):
    points = np.random.default_rng(0).normal(size=(600, 2))
    labels = [marker, *range(11)] + [marker] * 588
    ax = ek.plot(points, labels=labels, ax=plt.figure(figsize=(3, 3)).add_subplot(), legend=False)
    ax.figure.canvas.draw()
    drawn = np.asarray(ax.figure.canvas.buffer_rgba())[..., :3] / 255
    near = np.abs(drawn - to_rgba(PALETTE[marker])[:3]).max(axis=-1) < 0.25
    assert near.sum() > 500


def test_a_notebook_shows_a_figure_at_twice_its_density():
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    try:
        figure = ek.plot(POINTS).figure
        data, metadata = shell.display_formatter.format(figure)
        width = int.from_bytes(data["image/png"][16:20], "big")
        assert width == pytest.approx(2 * metadata["image/png"]["width"], abs=2)
        assert "image/png" not in shell.display_formatter.format(plt.figure())[0]
    finally:
        InteractiveShell.clear_instance()


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
