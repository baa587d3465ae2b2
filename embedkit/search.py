"""Search among vectors: the nearest ones, and how good a search is."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import ndcg_score
from sklearn.preprocessing import normalize

from embedkit._checks import check_count, check_dimensions, check_table

Metric = Literal["cosine", "euclidean"]
METRICS = get_args(Metric)
CELLS = 2**24  # of a table of distances, at a time: 64 MB in single precision


def nearest(
    vectors: Any, queries: Any = None, *, k: int = 5, metric: Metric = "cosine"
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Find the `k` vectors nearest to each query: exact, in blocks, in little memory.

    Use it to search, and to ask what lies near a point in the full space.

    Parameters
    ----------
    vectors : array of float, shape (n, dim)
        What is searched.
    queries : array of float, shape (m, dim), optional
        By default each of the vectors is a query, and is not found itself.
    k : int, default=5
        How many to find.
    metric : {"cosine", "euclidean"}, default="cosine"
        What near means.

    Returns
    -------
    rows : array of int, shape (m, k)
        Row numbers in `vectors`, the nearest first.
    distances : array of float32, shape (m, k)
        The cosine distance is 1 - cosine, from 0 to 2; a vector of zeros is at distance 1.

    Raises
    ------
    ValueError
        If dimensions differ, values are not finite, or `k` is larger than the number of rows.

    Examples
    --------
    >>> rows, distances = nearest([[1, 0], [0, 1], [1, 1]], [[2, 0.1]], k=2)
    >>> rows.tolist()
    [[0, 2]]
    """
    if metric not in METRICS:
        raise ValueError(f"nearest(metric={metric!r}): choose from {', '.join(METRICS)}")
    table = check_table(vectors, "nearest: vectors", dtype=np.float32)
    others = table if queries is None else check_table(queries, "queries", dtype=np.float32)
    check_dimensions(table, others, "nearest: vectors", "queries")
    check_count("nearest", "k", k, most=len(table) - (queries is None))
    if metric == "cosine":
        table, others = normalize(table), normalize(others)
    else:  # centred, because single precision is finest near zero
        middle = table.mean(axis=0)
        table, others = table - middle, others - middle
    squares = (table * table).sum(axis=1)
    rows = np.empty((len(others), k), np.intp)
    distances = np.empty((len(others), k), np.float32)
    step = max(1, CELLS // len(table))
    for start in range(0, len(others), step):
        block = others[start : start + step]
        far = block @ table.T
        far *= -2 if metric == "euclidean" else -1
        far += squares if metric == "euclidean" else 1
        if queries is None:
            far[np.arange(len(block)), np.arange(start, start + len(block))] = np.inf
        found = np.sort(np.argpartition(far, k - 1, axis=1)[:, :k], axis=1)
        near = np.take_along_axis(far, found, axis=1)
        if metric == "euclidean":  # the formula above loses digits where points lie close
            near = np.linalg.norm(table[found] - block[:, None], axis=2)
        order = np.argsort(near, axis=1, kind="stable")
        rows[start : start + step] = np.take_along_axis(found, order, axis=1)
        distances[start : start + step] = np.take_along_axis(near, order, axis=1).clip(min=0)
    return rows, distances


def retrieval(found: Any, relevant: Sequence[Any], *, k: int = 10) -> dict[str, float]:
    """Measure a search by the rows that it should have found.

    Use it on the rows of `nearest`, or of any other search.

    Parameters
    ----------
    found : array of int, shape (m, k) or wider
        Row numbers for each of m queries, the best first.
    relevant : sequence of m sequences of int
        The row numbers that each query should find; at least one.
    k : int, default=10
        How many of the rows found are looked at.

    Returns
    -------
    dict
        ``{"recall": …, "ndcg": …}``, each from 0 to 1, the mean over the queries. Recall is the
        share of the relevant rows that are among the first k; nDCG also asks how far in front.

    Raises
    ------
    ValueError
        If lengths do not match, a query has no relevant row, or a row is found twice.

    References
    ----------
    Järvelin and Kekäläinen (2002), "Cumulated gain-based evaluation of IR techniques".

    Examples
    --------
    >>> retrieval([[4, 7, 1]], [[4, 9]], k=3)["recall"]
    0.5
    """
    rows = check_table(found, "retrieval: found", dtype=np.int64)
    if (rows != np.asarray(found)).any():
        raise ValueError("retrieval: found holds fractions; give row numbers, as `nearest` does")
    wanted = [set(each) for each in relevant]
    check_count("retrieval", "k", k, most=rows.shape[1])
    if not len(rows) == len(wanted) > 0 or not all(wanted):
        raise ValueError(
            f"retrieval: {len(rows)} queries and {len(wanted)} lists of relevant rows; give one "
            "list for each query, with at least one row in it"
        )
    if any(len(set(row)) < len(row) for row in rows.tolist()):
        raise ValueError("retrieval: found holds a row twice for one query")
    recalls, gains = [], []
    for row, right in zip(rows[:, :k].tolist(), wanted, strict=True):
        hits = [each in right for each in row]
        recalls.append(sum(hits) / len(right))
        # Relevant rows that were not found count in the ideal order.
        truth = [*hits, *[True] * (len(right) - sum(hits)), False]
        gains.append(ndcg_score([truth], [range(len(truth), 0, -1)], k=k, ignore_ties=True))
    return {"recall": float(np.mean(recalls)), "ndcg": float(np.mean(gains))}
