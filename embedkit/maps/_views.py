"""What `explore` computes: maps of one space or several, and how far to trust them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import KDTree
from sklearn.neighbors import KNeighborsClassifier

from embedkit import evaluate
from embedkit._checks import check_table
from embedkit.maps._rows import Rows
from embedkit.maps.projection import project

LARGE = 5000  # UMAP is fitted on so many rows at most
_MEASURED = 2000  # rows drawn for the numbers
_K = 5


class View(NamedTuple):
    """What decides a map: which vectors, which method, and UMAP's settings."""

    vectors: str
    method: str
    n_neighbors: int = 0
    min_dist: float = 0.0
    metric: str = ""


@dataclass
class Maps:
    """Vectors by name, each of shape (n, dim), and the maps made of them.

    `rows` says which row of the data each of the n points stands for; `left_out` counts those
    that have none.
    """

    vectors: dict[str, NDArray[np.float32]]
    known: dict[View, NDArray[np.float32]]
    rows: NDArray[np.intp]
    left_out: int = 0

    def points(self, view: View) -> NDArray[np.float32]:
        """Compute a map, or remember it."""
        if view not in self.known:
            vectors = self.vectors[view.vectors]
            if view.method == "PCA":
                points = project(vectors, method="pca")
            else:
                names = "n_neighbors", "min_dist", "metric"
                settings: dict[str, Any] = {name: getattr(view, name) for name in names}
                settings["sample"] = LARGE if len(vectors) > LARGE else None
                points = project(vectors, progress=False, **settings)
            self.known[view] = points
        return self.known[view]

    def nearest(
        self, view: View, chosen: NDArray[np.intp], count: int
    ) -> list[tuple[int, float, int]]:
        """List what lies nearest to the mean of some points, those left out.

        Returns
        -------
        list of (point, distance, rank)
            The cosine distance in the full space, and the neighbour's rank on the map.
        """
        vectors, points = self.vectors[view.vectors], self.points(view)
        mean = vectors[chosen].mean(axis=0)
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(mean)
        distance = 1 - vectors @ mean / np.where(lengths == 0, 1, lengths)
        on_map = KDTree(points[chosen]).query(points)[0]
        others = np.setdiff1d(np.arange(len(vectors)), chosen)
        nearest = others[np.argsort(distance[others], kind="stable")[:count]]
        ranks = 1 + np.searchsorted(np.sort(on_map[others]), on_map[nearest])
        return [(int(p), float(distance[p]), int(r)) for p, r in zip(nearest, ranks, strict=True)]

    def trust(self, view: View, classes: NDArray[np.intp]) -> str:
        """Say in HTML how far a map can be trusted.

        Parameters
        ----------
        view : View
        classes : array of int, shape (n,)
            The class of each row, -1 for none.
        """
        full, points = self.vectors[view.vectors], self.points(view)
        rows = np.random.default_rng(0).permutation(len(full))[:_MEASURED]
        lines = [f"Trustworthiness needs more than {2 * _K} rows."]
        if len(rows) > 2 * _K:
            trust = evaluate.trustworthiness(full, points, k=_K, sample=_MEASURED)
            lines = [f"trustworthiness <b>{trust:.2f}</b> (1 is perfect, 0.5 is chance)"]
        named = rows[classes[rows] >= 0]
        if not 2 <= len(np.unique(classes[named])) <= len(named) / _K:
            lines.append(f"For {_K}-NN accuracy, color by a column of two classes or more.")
        else:
            for space, table, metric in (
                ("in the full space", full, "cosine"),
                ("on the map", points, "euclidean"),
            ):
                knn = KNeighborsClassifier(_K, metric=metric, algorithm="brute")
                # Scored on None, each row is named by its nearest others.
                right = knn.fit(table[named], classes[named]).score(None, classes[named])
                lines.append(f"{_K}-NN accuracy {space} <b>{right:.2f}</b>")
        if len(full) > len(rows):
            lines.append(f"Measured on {len(rows)} rows drawn at random.")
        if view.method == "UMAP" and len(full) > LARGE:
            lines.append(f"UMAP was fitted on {LARGE} rows, and the others placed on its map.")
        if self.left_out:
            lines.append(f"{self.left_out} rows hold NaN and are left out.")
        return "<br>".join(["<b>How far to trust this map</b>", *lines])


def gather(vectors: Mapping[Any, Any], points: Any, data: Rows) -> Maps:
    """Check vectors, and maps given with them, against the rows they belong to.

    Raises
    ------
    ValueError
        If lengths or shapes don't fit, or no row is finite.
    """
    given = points if isinstance(points, Mapping) else {next(iter(vectors), ""): points}
    tables, maps = (
        {
            str(name): check_table(
                getattr(each, "vectors", each), f"explore: {kind} of {name!r}", dtype=np.float32,
                holes=True,
            )
            for name, each in tables.items() if each is not None or kind == "vectors"
        }
        for kind, tables in {"vectors": vectors, "points": given}.items()
    )  # fmt: skip
    for name, table in maps.items():
        if name not in tables or table.shape[1] != 2:
            raise ValueError(
                f"explore: points of {name!r} have shape {table.shape}; give (n, 2), for any of "
                f"{', '.join(tables)}"
            )
    finite = np.ones(len(data), bool)
    for name, table in [*tables.items(), *maps.items()]:
        if len(table) != len(data):
            raise ValueError(
                f"explore: {name!r} has {len(table)} rows, but there are {len(data)} "
                f"{'words' if data.words else 'rows of data'}; give one for each"
            )
        finite &= np.isfinite(table).all(axis=1)
    kept = np.flatnonzero(finite if tables else [])
    if not len(kept):
        raise ValueError("explore: vectors has no row of finite numbers; give at least one")
    known = {View(name, "as given"): table[kept] for name, table in maps.items()}
    tables = {name: table[kept] for name, table in tables.items()}
    return Maps(tables, known, kept, len(data) - len(kept))


def framed(
    points: NDArray[np.float32], old: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Turn and mirror a map onto the old one, and scale it to the frame, from -0.95 to 0.95.

    Without this, the same map drawn upside down would look like a different one.

    References
    ----------
    Schönemann (1966), "A generalized solution of the orthogonal Procrustes problem".
    """
    points = points - points.mean(axis=0)
    if old is not None:
        points = points @ orthogonal_procrustes(points, old - old.mean(axis=0))[0]
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - (low + high) / 2) * (1.9 / ((high - low).max() or 1))
