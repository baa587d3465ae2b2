"""What a map promises: a point per row, the same again with the same seed. Never where."""

import subprocess
import sys
import warnings

import numpy as np
import pytest

import embedkit as ek
from embedkit.maps import projection


@pytest.fixture(scope="module")
def blobs() -> np.ndarray:
    generator = np.random.default_rng(0)
    centres = 4 * np.eye(3, 8)
    return np.concatenate([centre + generator.normal(size=(20, 8)) for centre in centres])


def assert_map(points, n) -> None:
    assert points.shape == (n, 2)
    assert points.dtype == np.float32
    assert np.isfinite(points).all()


@pytest.mark.parametrize("method", ["umap", "pca"])
def test_a_point_per_row_and_the_same_again(blobs, method):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        points = ek.project(blobs, method=method)
    assert_map(points, 60)
    np.testing.assert_array_equal(points, ek.project(blobs, method=method))
    np.testing.assert_array_equal(points, ek.project(blobs.tolist(), method=method))


def test_another_seed_gives_another_map(blobs):
    assert np.abs(ek.project(blobs, seed=0) - ek.project(blobs, seed=1)).max() > 0.01


def test_neighbours_stay_neighbours(blobs):
    points = ek.project(blobs)
    assert ek.evaluate.trustworthiness(blobs, points) > 0.7
    labels = np.repeat([0, 1, 2], 20)
    middles = np.array([points[labels == label].mean(axis=0) for label in range(3)])
    nearest = np.linalg.norm(points[:, None] - middles, axis=-1).argmin(axis=1)
    assert np.mean(nearest == labels) > 0.9


def test_pca_against_the_singular_value_decomposition(blobs):
    points = ek.project(blobs, method="pca")
    centred = blobs - blobs.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    expected = u[:, :2] * s[:2]
    for axis in (0, 1):
        sign = np.sign(points[:, axis] @ expected[:, axis])
        np.testing.assert_allclose(sign * points[:, axis], expected[:, axis], atol=1e-4)


@pytest.mark.parametrize("rows", [4, 5, 8, 10, 11, 12])
def test_few_rows_make_a_map(blobs, rows):
    few = blobs[:: 60 // rows][:rows]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert_map(ek.project(few), rows)


@pytest.mark.parametrize("rows", [0, 1, 2, 3])
def test_pca_makes_a_map_of_any_number(blobs, rows):
    assert_map(ek.project(blobs[:rows], method="pca"), rows)


def test_no_rows_make_an_empty_map():
    assert_map(ek.project(np.zeros((0, 5))), 0)


def test_more_neighbours_than_rows_means_all(blobs):
    assert_map(ek.project(blobs[:20], n_neighbors=500), 20)


@pytest.mark.parametrize("method", ["umap", "pca"])
def test_a_sample_is_fitted_and_all_rows_are_placed(blobs, method):
    points = ek.project(blobs, method=method, sample=30)
    assert_map(points, 60)
    np.testing.assert_array_equal(points, ek.project(blobs, method=method, sample=30))
    full = ek.project(blobs, method=method, sample=1000)
    np.testing.assert_array_equal(full, ek.project(blobs, method=method))


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "manhattan"])
def test_rows_beside_the_sample_are_placed_among_their_nearest_fitted_rows(blobs, metric):
    vectors = np.concatenate([blobs, blobs])  # of each row a copy
    points = ek.project(vectors, sample=60, metric=metric)
    fitted = set(np.random.default_rng(0).permutation(120)[:60].tolist())
    copies = [row for row in range(120) if row not in fitted and (row + 60) % 120 in fitted]
    assert len(copies) > 10
    for row in copies:  # at distance 0 of a fitted row, and so at its place
        np.testing.assert_allclose(points[row], points[(row + 60) % 120], atol=1e-3)
    assert ek.evaluate.trustworthiness(vectors, points) > 0.8


def test_the_neighbours_that_umap_gets_are_exact_and_the_row_itself_is_first(blobs, monkeypatch):
    import umap

    given = []

    class Watched(umap.UMAP):
        def __init__(self, **settings):
            given.append(settings["precomputed_knn"])
            super().__init__(**settings)

    monkeypatch.setattr(projection, "_umap", lambda: Watched)
    ek.project(blobs, n_neighbors=6)
    rows, far, _ = given[0]
    unit = blobs / np.linalg.norm(blobs, axis=1, keepdims=True)
    expected = np.argsort(-(unit @ unit.T), axis=1)[:, :6]
    np.testing.assert_array_equal(rows, expected)
    assert (far[:, 0] == 0).all() and (np.diff(far, axis=1) >= 0).all()
    monkeypatch.setattr(projection, "_ALL_PAIRS", 50)
    ek.project(blobs, n_neighbors=6)
    assert given[1] == (None, None, None)  # beyond, UMAP searches by itself


def test_a_sample_sets_the_centre(blobs):
    whole = ek.project(blobs, method="pca")
    sampled = ek.project(blobs, method="pca", sample=10)
    np.testing.assert_allclose(whole.mean(0), 0, atol=1e-5)
    assert np.abs(sampled.mean(0)).max() > 1e-2


def test_equal_rows_and_constant_columns_make_a_map(blobs):
    twins = blobs.copy()
    twins[1] = twins[0]
    twins[:, 3] = 7.0
    for metric in ("cosine", "euclidean"):
        assert_map(ek.project(twins, metric=metric), 60)
    assert_map(ek.project(twins, method="pca"), 60)
    assert_map(ek.project(np.ones((20, 4))), 20)


def test_one_dimension_makes_a_map(blobs):
    points = ek.project(blobs[:, :1], method="pca")
    assert_map(points, 60)
    assert not points[:, 1].any()


@pytest.mark.slow
def test_a_missing_seed_is_allowed(blobs):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert_map(ek.project(blobs, seed=None), 60)


def test_the_vectors_are_left_as_they_were(blobs):
    before = blobs.copy()
    ek.project(blobs)
    ek.project(blobs, method="pca")
    np.testing.assert_array_equal(blobs, before)


COMPILED = """
import numpy as np
from embedkit.maps import projection
projection._umap()
from pynndescent import distances, pynndescent_, utils
state, rows = np.array([5**9, 7**8, 3**11]), np.eye(4, dtype=np.float32)
pynndescent_.init_random(2, rows, utils.make_heap(4, 2), distances.alternative_dot, state)
stats = pynndescent_.init_random.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""


@pytest.mark.slow
def test_what_the_search_for_neighbours_compiles_is_there_in_the_next_process():
    exec(COMPILED, {})
    run = [sys.executable, "-c", COMPILED]
    again = subprocess.run(run, check=True, capture_output=True, text=True)
    assert again.stdout.split() == ["1", "0"]
