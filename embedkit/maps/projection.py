"""Projection: many dimensions in, a map of two out.

A map is for looking. It keeps who is near whom and gives up nearly everything else: distances
between clusters, their sizes and their density mean little. Put a number from `evaluate` beside it.
"""

import threading
import warnings
from contextlib import suppress
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from embedkit._checks import check_count, check_table

Method = Literal["umap", "pca"]
METHODS = get_args(Method)

# With fewer rows than this UMAP has no neighbourhoods to keep.
_FEWEST = 4
# Up to so many rows, looking at all pairs is quicker than compiling UMAP's own search for
# neighbours, and exact.
_ALL_PAIRS = 10_000
_METRICS_FOR_PAIRS = ("cosine", "euclidean", "manhattan")
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
    method : {"umap", "pca"}
        UMAP keeps neighbourhoods; PCA keeps the two directions of largest variance and is linear.
    n_neighbors : int
        UMAP: how many neighbours make a neighbourhood. Few show detail, many the whole. With fewer
        rows than that, all are taken.
    min_dist : float
        UMAP: how close points may lie on the map.
    metric : str
        UMAP: the distance between vectors.
    seed : int or None
        The same seed gives the same map on the same machine. None is faster and differs each time.
    sample : int, optional
        Fit on this many rows, drawn with the seed, and place the others on that map.
    progress : bool
        Show a bar where UMAP takes more than two seconds.

    Returns
    -------
    array of float32, shape (n, 2)
        In the order of `vectors`.

    Raises
    ------
    ValueError
        If `vectors` is no table of finite numbers, has too few rows for UMAP, or a setting is
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
    neighbors = None
    if len(fitted) == len(vectors) <= _ALL_PAIRS and metric in _METRICS_FOR_PAIRS:
        neighbors = _nearest(vectors, n_neighbors, metric)
    mapper = _umap()(
        n_neighbors=n_neighbors,
        min_dist=min_dist,
        metric=metric,
        random_state=seed,
        # With a seed UMAP works on one core, and warns unless told that this is meant.
        n_jobs=1 if seed is not None else -1,
        precomputed_knn=neighbors or (None, None, None),
        # The spectral start needs more rows than dimensions to spare.
        init="spectral" if len(fitted) > 10 else "random",
        tqdm_kwds={"disable": not progress, "delay": 2, "leave": False, "desc": "UMAP"},
    )
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        # Vectors in several unconnected clusters are no fault: it falls back to another start.
        warnings.filterwarnings("ignore", message="Graph is not fully connected")
        warnings.filterwarnings("ignore", message="Spectral initialisation failed")
        # With the neighbours given it could not place other rows, and there are none.
        warnings.filterwarnings("ignore", message="precomputed_knn")
        points = mapper.fit_transform(vectors[fitted])
    if len(fitted) == len(vectors):
        return points.astype(np.float32)
    out = np.empty((len(vectors), 2), np.float32)
    others = np.setdiff1d(np.arange(len(vectors)), fitted)
    with _ONE_AT_A_TIME:
        out[fitted], out[others] = points, mapper.transform(vectors[others])
    return out


def _umap() -> type:
    """Import UMAP, and have numba keep on disk what it compiles: seconds, in every process."""
    from numba.core.dispatcher import Dispatcher
    from umap import UMAP, layouts, umap_

    for function in (*vars(umap_).values(), *vars(layouts).values()):
        if isinstance(function, Dispatcher):
            with suppress(RuntimeError):  # nowhere to write: then it compiles each time, as ever
                function.enable_caching()
    return UMAP


def _nearest(
    vectors: NDArray[np.float32], count: int, metric: str
) -> tuple[NDArray[np.intp], NDArray[np.float32], None]:
    """Find each row's nearest rows, itself among them, in the form UMAP takes."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=count, metric=metric, algorithm="brute").fit(vectors)
    distances, rows = search.kneighbors(vectors)
    return rows, distances.astype(np.float32), None


def _pca(vectors: NDArray[np.float32], fitted: NDArray[np.intp]) -> NDArray[np.float32]:
    """Project on the first two principal components; missing ones are zero."""
    from sklearn.decomposition import PCA

    out = np.zeros((len(vectors), 2), np.float32)
    count = min(2, len(fitted), vectors.shape[1])
    if len(fitted) > 1:  # a single row has no direction of variance
        pca = PCA(n_components=count, svd_solver="full" if len(fitted) < 500 else "auto")
        with np.errstate(invalid="ignore"):  # rows that are all the same have no variance to share
            pca.set_params(random_state=0).fit(vectors[fitted])
        out[:, :count] = pca.transform(vectors)
    return out
