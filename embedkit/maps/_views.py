"""What `explore` computes: maps of one space or several, and how far to trust them."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import KDTree
from sklearn.cluster import HDBSCAN
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.neighbors import KNeighborsClassifier

from embedkit import evaluate
from embedkit._checks import check_table
from embedkit.maps._density import density, levels
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
                settings = {name: getattr(view, name) for name in View._fields[2:]}
                points = project(vectors, sample=LARGE, progress=False, **settings)
            self.known[view] = points
        return self.known[view]

    def clusters(self, view: View, rows: Rows, name: str | None) -> list[str]:
        """Name the cluster of each point, empty for none; clusters of the map, not of the vectors.

        A cluster is called by the words that are frequent in it and rare elsewhere, or, where
        there are no texts, by the commonest value of a column.

        References
        ----------
        Campello, Moulavi and Sander (2013), "Density-based clustering based on hierarchical
        density estimates"; Grootendorst (2022), "BERTopic", on class-based TF-IDF.
        """
        points = self.points(view)
        least = max(5, len(points) // 50)
        found = HDBSCAN(min_cluster_size=min(least, len(points)), copy=True).fit_predict(points)
        numbers = range(found.max() + 1)
        members = [self.rows[found == number] for number in numbers]
        names = [""] * len(members)
        if rows.text or rows.words:
            texts = [" ".join(rows.plain(int(row), 1000) for row in each) for each in members]
            words = CountVectorizer(stop_words="english", token_pattern=r"(?u)\b[^\W\d_]{3,}\b")
            with suppress(ValueError):  # nothing but stop words
                counts = words.fit_transform(texts).toarray()
                share = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
                weights = share * np.log(1 + counts.sum(axis=1).mean() / counts.sum(axis=0))
                vocabulary = words.get_feature_names_out()
                best = np.argsort(-weights, axis=1, kind="stable")[:, :3]
                names = [
                    ", ".join(vocabulary[row[weight[row] > 0]])
                    for row, weight in zip(best, weights, strict=True)
                ]
        elif name is not None:
            columns = [rows.frame[name].iloc[each] for each in members]
            names = [str(column.mode().iloc[0]) if column.count() else "" for column in columns]
        names = [each or f"cluster {number}" for number, each in enumerate(names, start=1)]
        return [names[number] if number >= 0 else "" for number in found]

    def shared(self, one: str, other: str, count: int = 10) -> NDArray[np.intp]:
        """Count for each point the neighbours that it has in both of two spaces."""
        count = min(count, len(self.rows) - 1)
        if count < 1:
            return np.zeros(len(self.rows), np.intp)
        near = [evaluate.nearest(self.vectors[name], k=count)[0] for name in (one, other)]
        both = np.sort(np.concatenate(near, axis=1), axis=1)
        return (both[:, 1:] == both[:, :-1]).sum(axis=1)

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
    tables = {str(name): _table(each, f"vectors of {name!r}") for name, each in vectors.items()}
    given = {name: each for name, each in given.items() if each is not None}
    maps = {str(name): _table(each, f"points of {name!r}") for name, each in given.items()}
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


def _table(given: Any, what: str) -> NDArray[np.float32]:
    """Make a table of an array or of the vectors of words, in which a row may hold NaN."""
    values = getattr(given, "vectors", given)
    return check_table(values, f"explore: {what}", dtype=np.float32, holes=True)


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


def contours(points: NDArray[np.float32]) -> list[Any]:
    """Draw lines round the densest parts of a framed map: 30, 60 and 90 % of the points."""
    x, y, grid = density(points, np.array([[-1.2, 1.2], [-1.2, 1.2]]), bins=96, width=3.0)
    lines = contour_generator(x, y, grid)
    return [line for level in levels(grid, (0.9, 0.6, 0.3)) for line in lines.lines(level)]
