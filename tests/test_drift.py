"""Drift: each method sees what it should, keeps silent where nothing moved, and says its AUC."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from embedkit.evaluate import drift

METHODS = ("centroids", "classifier", "mmd", "reconstruction")
parametrize = pytest.mark.parametrize("method", METHODS)


def normal(seed, rows=120, dim=8):
    return np.random.default_rng(seed).normal(size=(rows, dim))


@parametrize
def test_a_shift_is_seen(method):
    assert drift(normal(0), normal(1) + 1, method=method)["p_value"] == 0.005


@pytest.mark.slow
@parametrize
def test_alarms_without_drift_are_as_rare_as_the_level_says(method):
    p_values = [
        drift(normal(s), normal(s + 999, 60), method=method, permutations=39, seed=s)["p_value"]
        for s in range(120)
    ]
    alarms = np.mean(np.array(p_values) <= 0.05)
    assert alarms <= 0.11  # 6 of 120 are expected; more than 13 happen once in 500 times
    assert 0.4 < np.mean(p_values) < 0.6


def test_a_change_of_spread_is_seen_by_those_that_can():
    wide = normal(1) * 2
    found = {method: drift(normal(0), wide, method=method)["p_value"] for method in METHODS}
    assert found["mmd"] < 0.01 and found["reconstruction"] < 0.01
    assert found["centroids"] > 0.05 and found["classifier"] > 0.05


def test_the_classifier_gives_the_auc_of_its_scores():
    """In one dimension the score is the value itself, whatever the classifier has learned."""
    reference, production = normal(0, dim=1), normal(1, dim=1) + 0.7
    found = drift(reference, production, method="classifier", permutations=1)["distance"]
    every = mannwhitneyu(production[:, 0], reference[:, 0]).statistic / 120**2
    assert found == pytest.approx(every, abs=0.12)  # of one half of the rows
    assert drift(reference, reference + 9, method="classifier")["distance"] == 1


def test_mmd_is_the_textbooks():
    reference, production = normal(0, 5, 2), normal(1, 7, 2)
    rows = np.concatenate([reference, production])
    squares = ((rows[:, None] - rows) ** 2).sum(axis=2)
    kernel = np.exp(-squares / np.median(squares))
    expected = kernel[:5, :5].mean() + kernel[5:, 5:].mean() - 2 * kernel[:5, 5:].mean()
    found = drift(reference, production, method="mmd", permutations=1)["distance"]
    assert found == pytest.approx(np.sqrt(expected))


@parametrize
def test_equal_rows_have_not_drifted(method):
    found = drift(np.ones((20, 3)), np.ones((20, 3)), method=method)
    assert found["p_value"] == 1


def test_what_cannot_be_done_is_said():
    with pytest.raises(ValueError, match="choose from centroids, classifier, mmd, reconstruction"):
        drift(normal(0), normal(1), method="ks")
    with pytest.raises(ValueError, match="needs at least 4 rows"):
        drift(normal(0), normal(1, 3), method="classifier")
