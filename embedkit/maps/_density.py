"""Where on a map many points lie: a smooth grid, and the levels that hold most of them."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter


def density(
    points: NDArray[np.floating], limits: NDArray[np.floating], bins: int = 64, width: float = 2.0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Count points in cells and smooth the counts.

    Parameters
    ----------
    points : array of float, shape (n, 2)
    limits : array of float, shape (2, 2)
        Lowest and highest x, lowest and highest y.
    bins : int, default=64
        Cells along each axis.
    width : float, default=2.0
        Standard deviation of the smoothing, in cells.

    Returns
    -------
    x, y, grid
        The middles of the cells, each of shape (bins,), and the share of the points in each cell,
        of shape (bins, bins), y first.
    """
    counts, x, y = np.histogram2d(points[:, 0], points[:, 1], bins=bins, range=limits.tolist())
    grid = gaussian_filter(counts.T / max(len(points), 1), width, mode="constant")
    return (x[1:] + x[:-1]) / 2, (y[1:] + y[:-1]) / 2, grid


def levels(grid: NDArray[np.float64], shares: tuple[float, ...]) -> list[float]:
    """Find the densities above which these shares of the points lie, lowest density first."""
    cells = np.sort(grid, axis=None)[::-1]
    held = np.cumsum(cells) / (cells.sum() or 1)
    found = cells[np.searchsorted(held, shares).clip(max=len(cells) - 1)]
    return np.unique(found[found > 0]).tolist()


def limits_of(points: NDArray[np.floating], margin: float = 0.08) -> NDArray[np.float64]:
    """Give a frame round all points, as lowest and highest x, lowest and highest y."""
    if not len(points):
        return np.array([[0.0, 1.0], [0.0, 1.0]])
    low, high = points.min(axis=0), points.max(axis=0)
    room = margin * np.where(high > low, high - low, 1)
    return np.column_stack([low - room, high + room])
