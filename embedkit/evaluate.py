"""Numbers to put beside a picture, all computed in the full space.

A map can look separated where the vectors are not, and the other way round. Each function here
takes vectors and gives a number that does not depend on a map.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import silhouette_score
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits

from embedkit._checks import (
    check_alike,
    check_classes,
    check_count,
    check_dimensions,
    check_labelled,
    check_pair,
    check_table,
)
from embedkit.drift import drift
from embedkit.search import CELLS, nearest, retrieval

__all__ = [
    "drift",
    "knn_accuracy",
    "knn_predict",
    "linear_probe",
    "majority_baseline",
    "nearest",
    "retrieval",
    "silhouette",
    "trustworthiness",
]


# Functions that draw rows draw the same ones each time.
_SEED = 0


def knn_predict(train: Any, train_labels: Any, test: Any, *, k: int = 5) -> NDArray[Any]:
    """Name each test vector by a vote of its `k` nearest training vectors.

    Use it to label with few examples. Near is measured by the cosine, as on the maps.

    Parameters
    ----------
    train, test : array of float or sparse matrix, shapes (n, dim) and (m, dim)
        Vectors.
    train_labels : sequence, length n
        Classes, as numbers or strings.
    k : int, default=5
        How many neighbours vote.

    Returns
    -------
    array, shape (m,)
        Classes. Of several with as many votes, the first in order.

    Raises
    ------
    ValueError
        If lengths do not match, values are not finite, or there are fewer than `k` training rows.

    Examples
    --------
    >>> knn_predict([[1, 0], [0, 1]], ["a", "b"], [[2, 0.1]], k=1).tolist()
    ['a']
    """
    train, classes = check_labelled(train, train_labels, "train")
    test = check_table(test, "test", sparse=True)
    check_dimensions(train, test, "train", "test")
    check_count("knn_predict", "k", k, most=len(classes))
    classifier = KNeighborsClassifier(n_neighbors=k, metric="cosine", algorithm="brute")
    return classifier.fit(train, classes).predict(test)


def knn_accuracy(
    train: Any, train_labels: Any, test: Any, test_labels: Any, *, k: int = 5
) -> float:
    """Measure how often the `k` nearest training vectors name a test vector correctly.

    Use it to ask whether near means alike. Near is measured by the cosine, as on the maps.

    Parameters
    ----------
    train, test : array of float or sparse matrix, shapes (n, dim) and (m, dim)
        Vectors.
    train_labels, test_labels : sequence, lengths n and m
        Classes, as numbers or strings.
    k : int, default=5
        How many neighbours vote.

    Returns
    -------
    float
        Share of test vectors named correctly, 0 to 1. Compare it with `majority_baseline`.

    Raises
    ------
    ValueError
        If lengths do not match, values are not finite, or there are fewer than `k` training rows.

    Examples
    --------
    >>> knn_accuracy([[1, 0], [0, 1]], ["a", "b"], [[2, 0.1]], ["a"], k=1)
    1.0
    """
    train, train_labels, test, test_labels = check_pair(train, train_labels, test, test_labels)
    return float(np.mean(knn_predict(train, train_labels, test, k=k) == test_labels))


def linear_probe(train: Any, train_labels: Any, test: Any, test_labels: Any) -> float:
    """Fit a logistic regression on frozen vectors, and measure how often it is right on others.

    Use it to ask whether the classes can be told apart at all by a weighted sum of the dimensions.
    Its regularization is chosen by cross-validation within the training rows.

    Parameters
    ----------
    train, test : array of float or sparse matrix, shapes (n, dim) and (m, dim)
        Vectors.
    train_labels, test_labels : sequence, lengths n and m
        Classes, as numbers or strings; each class at least three times in `train_labels`.

    Returns
    -------
    float
        Share of test vectors named correctly, 0 to 1. Compare it with `majority_baseline`.

    Raises
    ------
    ValueError
        If lengths do not match, values are not finite, or a class has too few rows.

    References
    ----------
    Alain and Bengio (2016), "Understanding intermediate layers using linear classifier probes".

    Examples
    --------
    >>> vectors = np.array([[-1.0], [-2.0], [-3.0], [1.0], [2.0], [3.0]])
    >>> linear_probe(vectors, list("aaabbb"), [[-5.0], [5.0]], ["a", "b"])
    1.0
    """
    train, train_labels, test, test_labels = check_pair(train, train_labels, test, test_labels)
    classes, counts = np.unique(train_labels, return_counts=True)
    if len(classes) < 2 or counts.min() < 3:
        raise ValueError(
            f"linear_probe: needs two classes or more, each at least three times in train_labels; "
            f"got {dict(zip(classes.tolist(), counts.tolist(), strict=True))}"
        )
    # One scale for all dimensions, so that a strength of regularization means the same everywhere.
    squares = train.multiply(train) if hasattr(train, "multiply") else train * train
    scale = np.sqrt(squares.mean()) or 1.0
    search = GridSearchCV(
        LogisticRegression(max_iter=2000), {"C": [1e-3, 1e-2, 1e-1, 1.0]}, cv=3, n_jobs=1
    )
    # The solver multiplies small matrices many times; threads spend that time waiting for each
    # other, up to seventy times as much on a machine that does something else too.
    with threadpool_limits(1, user_api="blas"):
        return float(search.fit(train / scale, train_labels).score(test / scale, test_labels))


def majority_baseline(train_labels: Any, test_labels: Any) -> float:
    """Give the accuracy of always predicting the most frequent training class.

    Use it beside every accuracy: a classifier that does no better has learned nothing.

    Parameters
    ----------
    train_labels, test_labels : sequence
        Classes, as numbers or strings.

    Returns
    -------
    float
        Share of test labels that equal the most frequent training label, 0 to 1.

    Raises
    ------
    ValueError
        If there are no labels.

    Examples
    --------
    >>> majority_baseline(["a", "a", "b"], ["a", "b"])
    0.5
    """
    train = check_classes(train_labels, "train_labels")
    test = check_classes(test_labels, "test_labels")
    check_alike(train, test)
    if not len(train) or not len(test):
        raise ValueError("majority_baseline: needs at least one label on both sides")
    classes, counts = np.unique(train, return_counts=True)
    return float(np.mean(test == classes[counts.argmax()]))


def silhouette(vectors: Any, labels: Any) -> float:
    """Say how much nearer vectors lie to their own class than to the next one.

    Use it to ask whether the classes form clumps of their own.

    Parameters
    ----------
    vectors : array of float, shape (n, dim)
    labels : sequence, length n
        Classes, as numbers or strings.

    Returns
    -------
    float
        From -1 (in the wrong class) over 0 (on the border) to 1 (well apart), by the cosine.

    Raises
    ------
    ValueError
        If lengths do not match, values are not finite, or the number of classes is not between
        2 and n - 1.

    References
    ----------
    Rousseeuw (1987), "Silhouettes: a graphical aid to the interpretation and validation of cluster
    analysis".

    Examples
    --------
    >>> round(silhouette([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], list("aabb")), 1)
    1.0
    """
    vectors, labels = check_labelled(vectors, labels, "vectors")
    classes = len(np.unique(labels))
    if not 2 <= classes < len(labels):
        raise ValueError(
            f"silhouette: needs from 2 classes to one fewer than rows; got {classes} classes in "
            f"{len(labels)} rows"
        )
    return float(silhouette_score(vectors, labels, metric="cosine"))


def trustworthiness(vectors: Any, points: Any, *, k: int = 5, sample: int | None = 2000) -> float:
    """Say how far a map can be trusted to show as neighbours what are neighbours in the full space.

    Parameters
    ----------
    vectors : array of float, shape (n, dim)
        The full space, measured by the cosine.
    points : array of float, shape (n, 2)
        The map.
    k : int, default=5
        Size of the neighbourhood; less than half of n.
    sample : int or None, default=2000
        How many rows, drawn at random, are asked for their neighbours; each is compared with all
        rows. Beyond that the number is an estimate, good to about 0.01. None asks every row.

    Returns
    -------
    float
        From 0 to 1. A map drawn at random has about 0.5.

    Raises
    ------
    ValueError
        If lengths do not match, values are not finite, or `k` is too large.

    References
    ----------
    Venna and Kaski (2001), "Neighborhood preservation in nonlinear projection methods".

    Examples
    --------
    >>> line = np.array([[1.0, 0.0], [1.0, 0.2], [1.0, 0.5], [1.0, 1.0]])
    >>> trustworthiness(line, line, k=1)
    1.0
    """
    vectors, points = check_table(vectors, "vectors"), check_table(points, "points")
    n = len(vectors)
    if n != len(points):
        raise ValueError(f"trustworthiness: {n} vectors but {len(points)} points")
    check_count("trustworthiness", "k", k, most=(n - 1) // 2)
    asked = np.arange(n)
    if sample is not None:
        check_count("trustworthiness", "sample", sample)
        asked = np.random.default_rng(_SEED).permutation(n)[:sample]
    near = NearestNeighbors(n_neighbors=k).fit(points).kneighbors(return_distance=False)[asked]
    unit, too_far = normalize(vectors), 0
    step = max(1, CELLS // n)
    for start in range(0, len(asked), step):
        rows, neighbours = asked[start : start + step], near[start : start + step]
        alike = unit[rows] @ unit.T
        of_neighbours = np.take_along_axis(alike, neighbours, axis=1)
        alike[np.arange(len(rows)), rows] = -np.inf
        for column in of_neighbours.T:
            rank = 1 + (alike > column[:, None]).sum(axis=1)
            too_far += (rank - k).clip(min=0).sum()
    return float(1 - too_far * 2 / (len(asked) * k * (2 * n - 3 * k - 1)))
