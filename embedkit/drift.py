"""Has the data moved? Tests of one set of vectors against another."""

from typing import Any

import numpy as np

from embedkit._checks import check_count, check_dimensions, check_table


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
    permutations : int, default=199
        How many shuffles. The smallest p-value is 1 / (permutations + 1).
    seed : int, default=0
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
    reference = check_table(reference, "drift: reference")
    production = check_table(production, "drift: production")
    check_dimensions(reference, production, "drift: reference", "production")
    check_count("drift", "permutations", permutations)
    if not len(reference) or not len(production):
        raise ValueError("drift: needs at least one row on both sides")
    rows = np.concatenate([reference, production])
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
