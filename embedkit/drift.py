"""Has the data moved? Tests of one set of vectors against another."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embedkit._checks import check_count, check_dimensions, check_table

Method = Literal["centroids", "classifier", "mmd", "reconstruction"]
Rows = NDArray[np.floating]
# A function of one weight per row (1 / n on one side, -1 / m on the other) that is large if the
# sides differ; and n and m, how many rows each side has when they are shuffled.
Statistic = tuple[Callable[[Rows], float], int, int]


def drift(
    reference: Any,
    production: Any,
    *,
    method: Method = "centroids",
    permutations: int = 199,
    seed: int = 0,
) -> dict[str, float]:
    """Measure how far production data has moved, and whether chance alone could have done it.

    Two samples of the same source differ too, so rows are shuffled between the two sides many
    times: the p-value is the share of arrangements, the true one included, that come out at
    least as far apart.

    Parameters
    ----------
    reference, production : array of float, shapes (n, dim) and (m, dim)
        Vectors from before and from now. Rows have to be drawn independently.
    method : {"centroids", "classifier", "mmd", "reconstruction"}, default="centroids"
        What is measured. ``"centroids"``: the Euclidean distance between the averages, which
        sees a shift of the whole. ``"classifier"``: the AUC of a logistic regression that tells
        the sides apart, trained on a half of the rows and measured on the other; 0.5 is
        guessing. ``"mmd"``: the maximum mean discrepancy with a Gaussian kernel as wide as the
        median distance, which also sees a change of spread. ``"reconstruction"``: how much more
        production loses than the reference when it is squeezed through the principal
        components of a half of the reference.
    permutations : int, default=199
        How many shuffles. The smallest p-value is 1 / (permutations + 1).
    seed : int, default=0
        Of the shuffles and the halves.

    Returns
    -------
    dict
        ``{"distance": …, "p_value": …}``, both float; the first is what `method` measures.

    Raises
    ------
    ValueError
        If a side is too small, the dimensions differ, values are not finite, or there is no
        such method.

    References
    ----------
    Good (2005), "Permutation, Parametric and Bootstrap Tests of Hypotheses", chapter 3; Gretton
    et al. (2012), "A Kernel Two-Sample Test"; Lopez-Paz and Oquab (2017), "Revisiting Classifier
    Two-Sample Tests".

    Examples
    --------
    >>> result = drift(np.zeros((20, 2)), np.ones((20, 2)))
    >>> round(result["distance"], 3), result["p_value"]
    (1.414, 0.005)
    """
    reference = check_table(reference, "drift: reference")
    production = check_table(production, "drift: production")
    check_dimensions(reference, production, "drift: reference", "production")
    check_count("drift", "permutations", permutations)
    if method not in _METHODS:
        raise ValueError(f"drift(method={method!r}): unknown; choose from {', '.join(_METHODS)}")
    least = 1 if method in ("centroids", "mmd") else 4  # the others cut sides into halves
    if min(len(reference), len(production)) < least:
        rows = "one row" if least == 1 else f"{least} rows"
        raise ValueError(f"drift(method={method!r}): needs at least {rows} on both sides")
    generator = np.random.default_rng(seed)
    statistic, n, m = _METHODS[method](reference, production, generator)
    weights = np.concatenate([np.full(n, 1 / n), np.full(m, -1 / m)])
    distance = statistic(weights)
    shuffled = [statistic(generator.permutation(weights)) for _ in range(permutations)]
    # Sums are taken in a different order each time, so equal distances may differ by rounding.
    rounding = 1e-9 * abs(distance) + 1e-12 * max(np.abs(reference).max(), np.abs(production).max())
    as_far = np.sum(np.array(shuffled) >= distance - rounding)
    return {"distance": distance, "p_value": float((1 + as_far) / (1 + permutations))}


def _centroids(reference: Rows, production: Rows, _: np.random.Generator) -> Statistic:
    rows = np.concatenate([reference, production])
    return lambda weights: float(np.linalg.norm(weights @ rows)), len(reference), len(production)


def _mmd(reference: Rows, production: Rows, _: np.random.Generator) -> Statistic:
    from sklearn.metrics import euclidean_distances

    squares = euclidean_distances(np.concatenate([reference, production]), squared=True)
    width = np.median(squares) or 1.0  # all rows may be equal
    kernel = np.exp(-squares / width)

    def statistic(weights: Rows) -> float:
        return float(np.sqrt(max(weights @ kernel @ weights, 0)))

    return statistic, len(reference), len(production)


def _classifier(reference: Rows, production: Rows, generator: np.random.Generator) -> Statistic:
    from scipy.stats import rankdata
    from sklearn.linear_model import LogisticRegression

    (learn, ask), (learn_new, ask_new) = (
        _halves(each, generator) for each in (reference, production)
    )
    scale = np.concatenate([learn, learn_new]).std() or 1.0
    sides = np.repeat([False, True], [len(learn), len(learn_new)])
    classifier = LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000)
    classifier.fit(np.concatenate([learn, learn_new]) / scale, sides)
    ranks = rankdata(classifier.decision_function(np.concatenate([ask, ask_new]) / scale))
    # The difference of the two sides' average ranks, on the scale of the AUC.
    return lambda weights: float(0.5 - weights @ ranks / len(ranks)), len(ask), len(ask_new)


def _reconstruction(reference: Rows, production: Rows, generator: np.random.Generator) -> Statistic:
    learn, ask = _halves(reference, generator)
    average, kept = learn.mean(axis=0), max(1, min(learn.shape) // 4)
    axes = np.linalg.svd(learn - average, full_matrices=False)[2][:kept]
    rows = np.concatenate([ask, production]) - average
    lost = np.linalg.norm(rows - rows @ axes.T @ axes, axis=1)
    return lambda weights: float(abs(weights @ lost)), len(ask), len(production)


def _halves(rows: Rows, generator: np.random.Generator) -> tuple[Rows, Rows]:
    """Cut rows in two at random."""
    order = generator.permutation(len(rows))
    return rows[order[: len(rows) // 2]], rows[order[len(rows) // 2 :]]


_METHODS: dict[str, Callable[[Rows, Rows, np.random.Generator], Statistic]] = {
    "centroids": _centroids,
    "classifier": _classifier,
    "mmd": _mmd,
    "reconstruction": _reconstruction,
}
