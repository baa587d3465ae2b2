"""Numbers to put beside a picture, all computed in the full space.

A map can look separated where the vectors are not, and the other way round. Each function here
takes vectors and gives a number that does not depend on a map.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def knn_accuracy(
    train: Any, train_labels: Any, test: Any, test_labels: Any, *, k: int = 5
) -> float:
    """Let the `k` nearest training vectors name each test vector; say how often they are right.

    Use it to ask whether near means alike. Near is measured by the cosine, as on the maps.

    Parameters
    ----------
    train, test : array of float or sparse matrix, shapes (n, dim) and (m, dim)
        Vectors.
    train_labels, test_labels : sequence, lengths n and m
        Classes, as numbers or strings.
    k : int
        How many neighbours vote.

    Returns
    -------
    float
        Share of test vectors named right, 0 to 1. Compare it with `majority_baseline`.

    Raises
    ------
    ValueError
        If lengths do not match, values are not finite, or there are fewer than `k` training rows.

    Examples
    --------
    >>> knn_accuracy([[1, 0], [0, 1]], ["a", "b"], [[2, 0.1]], ["a"], k=1)
    1.0
    """
    from sklearn.neighbors import KNeighborsClassifier

    train, train_labels, test, test_labels = _pair(train, train_labels, test, test_labels)
    if not isinstance(k, int | np.integer) or not 1 <= k <= len(train_labels):
        raise ValueError(f"knn_accuracy(k={k}): give a number from 1 to {len(train_labels)}")
    classifier = KNeighborsClassifier(n_neighbors=k, metric="cosine", algorithm="brute")
    return float(classifier.fit(train, train_labels).score(test, test_labels))


def linear_probe(train: Any, train_labels: Any, test: Any, test_labels: Any) -> float:
    """Fit a logistic regression on frozen vectors, and count how often it is right on others.

    Use it to ask whether the classes can be told apart at all by a weighted sum of the dimensions.
    Its regularisation is chosen by cross-validation within the training rows.

    Parameters
    ----------
    train, test : array of float or sparse matrix, shapes (n, dim) and (m, dim)
        Vectors.
    train_labels, test_labels : sequence, lengths n and m
        Classes, as numbers or strings; each class at least three times in `train_labels`.

    Returns
    -------
    float
        Share of test vectors named right, 0 to 1. Compare it with `majority_baseline`.

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
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from threadpoolctl import threadpool_limits

    train, train_labels, test, test_labels = _pair(train, train_labels, test, test_labels)
    classes, counts = np.unique(train_labels, return_counts=True)
    if len(classes) < 2 or counts.min() < 3:
        raise ValueError(
            f"linear_probe: needs two classes or more, each at least three times in train_labels; "
            f"got {dict(zip(classes.tolist(), counts.tolist(), strict=True))}"
        )
    # One scale for all dimensions, so that a strength of regularisation means the same everywhere.
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
    """Say how often it is right to always answer the most frequent training class.

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
    train, test = _classes(train_labels, "train_labels"), _classes(test_labels, "test_labels")
    _check_alike(train, test)
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
    from sklearn.metrics import silhouette_score

    vectors, labels = _labelled(vectors, labels, "vectors")
    classes = len(np.unique(labels))
    if not 2 <= classes < len(labels):
        raise ValueError(
            f"silhouette: needs from 2 classes to one fewer than rows; got {classes} classes in "
            f"{len(labels)} rows"
        )
    return float(silhouette_score(vectors, labels, metric="cosine"))


def trustworthiness(vectors: Any, points: Any, *, k: int = 5) -> float:
    """Say how far a map can be trusted to show as neighbours what are neighbours in the full space.

    Parameters
    ----------
    vectors : array of float, shape (n, dim)
        The full space, measured by the cosine.
    points : array of float, shape (n, 2)
        The map.
    k : int
        Size of the neighbourhood; less than half of n.

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
    from sklearn import manifold

    vectors, points = _table(vectors, "vectors"), _table(points, "points")
    if len(vectors) != len(points):
        raise ValueError(f"trustworthiness: {len(vectors)} vectors but {len(points)} points")
    if not isinstance(k, int | np.integer) or not 1 <= k < len(vectors) / 2:
        raise ValueError(
            f"trustworthiness(k={k}): give a number from 1 to less than half of the "
            f"{len(vectors)} rows"
        )
    return float(manifold.trustworthiness(vectors, points, n_neighbors=k, metric="cosine"))


def drift(
    reference: Any, production: Any, *, permutations: int = 199, seed: int = 0
) -> dict[str, float]:
    """Measure how far production data has moved, and whether chance alone could have done it.

    The distance is the Euclidean one between the centroids. Two samples of the same source have
    a distance too, so the rows are shuffled between the two sides many times: the p-value is the
    share of shuffles that come out at least as far apart.

    Parameters
    ----------
    reference, production : array of float, shapes (n, dim) and (m, dim)
        Vectors from before and from now.
    permutations : int
        How many shuffles. The smallest p-value is 1 / (permutations + 1).
    seed : int
        Of the shuffles.

    Returns
    -------
    dict
        ``{"distance": …, "p_value": …}``, both float.

    Raises
    ------
    ValueError
        If a side is empty, the dimensions differ, or values are not finite.

    References
    ----------
    Good (2005), "Permutation, Parametric and Bootstrap Tests of Hypotheses", chapter 3.

    Examples
    --------
    >>> result = drift(np.zeros((20, 2)), np.ones((20, 2)))
    >>> round(result["distance"], 3), result["p_value"]
    (1.414, 0.005)
    """
    reference, production = _table(reference, "reference"), _table(production, "production")
    if not len(reference) or not len(production):
        raise ValueError("drift: needs at least one row on both sides")
    if reference.shape[1] != production.shape[1]:
        raise ValueError(
            f"drift: {reference.shape[1]} dimensions on one side and {production.shape[1]} on the "
            "other; embed both with the same encoder"
        )
    if not isinstance(permutations, int | np.integer) or permutations < 1:
        raise ValueError(f"drift(permutations={permutations}): give 1 or more, a whole number")
    rows = np.concatenate([reference, production]).astype(np.float64)
    # A row's weight in (centroid of one side - centroid of the other).
    n, m = len(reference), len(production)
    weights = np.concatenate([np.full(n, 1 / n), np.full(m, -1 / m)])
    distance = float(np.linalg.norm(weights @ rows))
    generator = np.random.default_rng(seed)
    shuffled = [np.linalg.norm(generator.permutation(weights) @ rows) for _ in range(permutations)]
    # The sums run in another order each time, so equal is equal up to rounding.
    rounding = 1e-9 * distance + 1e-12 * np.abs(rows).max(initial=0)
    as_far = np.sum(np.array(shuffled) >= distance - rounding)
    return {"distance": distance, "p_value": float((1 + as_far) / (1 + permutations))}


def _table(values: Any, name: str) -> NDArray[np.float64]:
    """Make a finite table of numbers (n, dim), or say what is wrong with it."""
    from scipy.sparse import issparse

    if issparse(values):
        if not np.isfinite(values.tocsr().data).all():
            raise ValueError(f"{name} holds NaN or infinite values; leave those rows out")
        return values.tocsr()
    try:
        if np.iscomplexobj(values):
            raise TypeError("they are complex")
        table = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} has to be an array (n, dim) of numbers: {error}") from error
    if table.ndim != 2:
        raise ValueError(f"{name} has to be an array (n, dim), and has shape {table.shape}")
    # What float32 cannot hold is no embedding, and its square would not be finite either.
    wrong = np.flatnonzero(~(np.abs(table) <= np.finfo(np.float32).max).all(axis=1))
    if len(wrong):
        raise ValueError(
            f"{name}: {len(wrong)} of {len(table)} rows hold NaN or infinite values (the first: "
            f"row {wrong[0]}); leave them out"
        )
    return table


def _labelled(values: Any, labels: Any, name: str) -> tuple[Any, NDArray[Any]]:
    """Check vectors and their labels against each other."""
    table, classes = _table(values, name), _classes(labels, f"labels of {name}")
    if table.shape[0] != len(classes):
        raise ValueError(f"{name}: {table.shape[0]} vectors but {len(classes)} labels")
    if not len(classes):
        raise ValueError(f"{name}: needs at least one row")
    return table, classes


def _pair(
    train: Any, train_labels: Any, test: Any, test_labels: Any
) -> tuple[Any, NDArray[Any], Any, NDArray[Any]]:
    """Check training and test rows, and that one can be compared with the other."""
    train, train_labels = _labelled(train, train_labels, "train")
    test, test_labels = _labelled(test, test_labels, "test")
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"train has {train.shape[1]} dimensions and test has {test.shape[1]}; embed both with "
            "the same encoder"
        )
    _check_alike(train_labels, test_labels)
    return train, train_labels, test, test_labels


def _classes(labels: Any, name: str) -> NDArray[Any]:
    """Make an array of classes, one a row, or say what is wrong with them."""
    if isinstance(labels, str | bytes) or not hasattr(labels, "__iter__"):
        raise TypeError(f"{name}: give a sequence of classes, one for each row; got {labels!r}")
    values = list(labels)
    if not all(np.isscalar(value) or value is None for value in values):
        raise ValueError(f"{name}: give one class for each row, as a number or a string")
    without = [row for row, value in enumerate(values) if value is None or value != value]
    if without:
        raise ValueError(
            f"{name}: {len(without)} of {len(values)} rows have none (the first: row "
            f"{without[0]}); leave them out"
        )
    classes = np.asarray(values)
    if classes.dtype.kind == "f" and (classes % 1).any():
        raise ValueError(f"{name}: numbers like {values[0]} are amounts; give classes")
    return classes


def _check_alike(train: NDArray[Any], test: NDArray[Any]) -> None:
    """Refuse names on one side and numbers on the other, which are never equal."""
    if len(train) and len(test) and (train.dtype.kind == "U") != (test.dtype.kind == "U"):
        raise ValueError(
            f"the classes are {train[:1].tolist()[0]!r} and so on in train, and "
            f"{test[:1].tolist()[0]!r} in test; give both as names or both as numbers"
        )
