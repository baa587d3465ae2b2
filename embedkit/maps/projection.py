"""Projection: many dimensions in, a map of two out.

A map is for looking. It keeps who is near whom and gives up nearly everything else: distances
between clusters, their sizes and their density mean little. Put a number from `evaluate` beside it.
"""

import sys
import threading
import warnings
from contextlib import suppress
from functools import cache
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from embedkit._checks import check_count, check_table
from embedkit.search import METRICS, Metric, nearest

Method = Literal["umap", "pca"]
METHODS = get_args(Method)

# With fewer rows than this UMAP has no neighbourhoods to keep.
_FEWEST = 4
# Up to so many rows all pairs are looked at, which is exact: 8 s of one core for 384 numbers.
# UMAP's own search takes 2 s there, after a minute that compiles it once, and 10 s in each later
# process. Of other metrics the pairs take longer.
_ALL_PAIRS = 20_000
_ALL_PAIRS_SLOW = 10_000
_SLOW_METRICS = ("manhattan", "correlation")
_PLACED_BY = 5  # fitted neighbours
# UMAP's compiled code may end the process when two threads run it at once.
_ONE_AT_A_TIME = threading.Lock()


def project(
    vectors: Any,
    *,
    method: Method = "umap",
    n_neighbors: int = 15,
    min_dist: float = 0.1,
    metric: str = "cosine",
    seed: int | None = 0,
    sample: int | None = None,
    progress: bool = True,
) -> NDArray[np.float32]:
    """Draw a map: two coordinates per vector.

    Parameters
    ----------
    vectors : array of float, shape (n, dim)
        Embeddings.
    method : {"umap", "pca"}, default="umap"
        UMAP keeps neighbourhoods; PCA keeps the two directions of largest variance and is linear.
    n_neighbors : int, default=15
        UMAP: how many neighbours make a neighbourhood. Few show detail, many the whole. With fewer
        rows than that, all are taken.
    min_dist : float, default=0.1
        UMAP: how close points may lie on the map.
    metric : str, default="cosine"
        UMAP: the distance between vectors.
    seed : int or None, default=0
        The same seed gives the same map on the same machine. None uses all cores, and gives
        a different map each time.
    sample : int, optional
        Fit on this many rows, drawn with the seed. Each other row is placed at the mean of its
        five nearest fitted rows in the full space, weighted by 1 / distance². Use it where the
        map of all rows takes too long.
    progress : bool, default=True
        Show a bar where UMAP takes more than two seconds.

    Returns
    -------
    array of float32, shape (n, 2)
        In the order of `vectors`.

    Raises
    ------
    ValueError
        If `vectors` is not a table of finite numbers, has too few rows for UMAP, or a setting is
        unknown.

    References
    ----------
    McInnes, Healy and Melville (2018), "UMAP: Uniform Manifold Approximation and Projection".

    Examples
    --------
    >>> project(np.eye(5), method="pca").shape
    (5, 2)
    """
    vectors = check_table(vectors, "project: vectors", dtype=np.float32)
    if method not in METHODS:
        raise ValueError(f"project(method={method!r}): unknown; choose from {', '.join(METHODS)}")
    check_count("project", "n_neighbors", n_neighbors, least=2)
    fitted = np.arange(len(vectors))
    if sample is not None:
        check_count("project", "sample", sample)
        fitted = np.sort(np.random.default_rng(seed).permutation(len(vectors))[:sample])
    if len(vectors) == 0:
        return np.zeros((0, 2), np.float32)
    if method == "pca":
        return _pca(vectors, fitted)
    if len(fitted) < _FEWEST:
        raise ValueError(
            f"project: UMAP needs at least {_FEWEST} rows and got {len(fitted)}; "
            "use method='pca', or more rows"
        )
    n_neighbors = min(n_neighbors, len(fitted) - 1)
    chosen = vectors[fitted]
    neighbors: Any = (None, None, None)
    most = {**dict.fromkeys(METRICS, _ALL_PAIRS), **dict.fromkeys(_SLOW_METRICS, _ALL_PAIRS_SLOW)}
    if len(fitted) <= most.get(metric, 0):
        rows, far = _find(chosen, None, n_neighbors - 1, metric)
        itself = np.arange(len(chosen))[:, None]
        neighbors = np.hstack([itself, rows]), np.pad(far, [(0, 0), (1, 0)]), None
    mapper = _umap()(
        n_neighbors=n_neighbors,
        min_dist=min_dist,
        metric=metric,
        random_state=seed,
        # With a seed UMAP works on one core, and warns unless told that this is meant.
        n_jobs=1 if seed is not None else -1,
        precomputed_knn=neighbors,
        # The spectral start needs more rows than dimensions to spare.
        init="spectral" if len(fitted) > 10 else "random",
        tqdm_kwds={"disable": not progress, "delay": 2, "leave": False, "desc": "UMAP"},
    )
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        # Vectors may lie in several unconnected clusters: then it falls back to another start.
        warnings.filterwarnings("ignore", message="Graph is not fully connected")
        warnings.filterwarnings("ignore", message="Spectral initialisation failed")
        # Two functions of the search for neighbours compile anew in each process: seconds.
        warnings.filterwarnings("ignore", message="Cannot cache compiled function")
        # With the neighbours given UMAP cannot place other rows; that is done below.
        warnings.filterwarnings("ignore", message="precomputed_knn")
        points = mapper.fit_transform(chosen)
    out = np.empty((len(vectors), 2), np.float32)
    out[fitted] = points
    others = np.setdiff1d(np.arange(len(vectors)), fitted)
    if len(others):
        rows, far = _find(chosen, vectors[others], min(_PLACED_BY, len(chosen)), metric)
        weights = 1 / np.maximum(far, 1e-6) ** 2
        weights /= weights.sum(axis=1, keepdims=True)
        out[others] = (points[rows] * weights[:, :, None]).sum(axis=1)
    return out


@cache
def _umap() -> type:
    """Import UMAP, and have numba keep on disk what it compiles: up to a minute, in each process.

    Most of it is pynndescent's, UMAP's search for neighbours. Its functions take a distance, which
    is a compiled function too; numba takes that of another process for the same if the two go by
    one name, and by default the name is drawn at random.
    """
    from numba.core.dispatcher import Dispatcher
    from umap import UMAP

    loaded = [m for name, m in sys.modules.items() if name.startswith(("umap.", "pynndescent."))]
    for module in loaded:
        for name, function in vars(module).items():
            if isinstance(function, Dispatcher) and function.py_func.__module__ == module.__name__:
                with suppress(RuntimeError):  # nowhere to write: then it compiles each time
                    function.enable_caching()
                with suppress(AttributeError, AssertionError):  # another numba; it has a name
                    function._set_uuid(f"{module.__name__}.{name}")  # type: ignore[attr-defined]
    return UMAP


def _find(
    vectors: NDArray[np.float32], queries: NDArray[np.float32] | None, count: int, metric: str
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Find the rows nearest to each query, or to each row itself, and how far they are."""
    if metric in METRICS:
        return nearest(vectors, queries, k=count, metric=cast(Metric, metric))
    search = NearestNeighbors(n_neighbors=count, metric=metric, algorithm="brute").fit(vectors)
    distances, rows = search.kneighbors(queries)
    return rows, distances.astype(np.float32)


def _pca(vectors: NDArray[np.float32], fitted: NDArray[np.intp]) -> NDArray[np.float32]:
    """Project on the first two principal components; missing ones are zero."""
    out = np.zeros((len(vectors), 2), np.float32)
    count = min(2, len(fitted), vectors.shape[1])
    if len(fitted) > 1:  # a single row has no direction of variance
        pca = PCA(n_components=count, svd_solver="full" if len(fitted) < 500 else "auto")
        with np.errstate(invalid="ignore"):  # rows that are all the same have no variance to share
            pca.set_params(random_state=0).fit(vectors[fitted])
        out[:, :count] = pca.transform(vectors)
    return out
