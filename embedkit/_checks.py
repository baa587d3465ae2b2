"""Checks of what functions are given: vectors, points, labels and counts."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.utils import check_array


def check_table(
    values: Any, name: str, *, dtype: type = np.float64, sparse: bool = False, holes: bool = False
) -> Any:
    """Make a table of numbers (n, dim), or say what is wrong with it.

    With `holes` a row may hold NaN; with `sparse` a sparse matrix comes back as CSR.
    """
    try:
        with np.errstate(over="ignore"):  # what becomes infinite is refused below
            table = check_array(
                values, accept_sparse="csr" if sparse else False, dtype=dtype,
                ensure_all_finite=False, ensure_min_samples=0, ensure_min_features=0,
            )  # fmt: skip
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(":")
        raise ValueError(f"{name}: give an array (n, dim) of numbers. {reason}") from error
    if table.shape[0] and not table.shape[1]:
        raise ValueError(f"{name}: give an array (n, dim), with dim above 0; got {table.shape}")
    # A value that float32 cannot hold is not from an embedding, and its square would overflow too.
    largest: Any = np.abs(table).max(axis=1) if table.shape[0] else np.zeros(0)
    largest = np.ravel(largest.toarray() if issparse(largest) else largest)
    rows = np.flatnonzero(~(largest <= np.finfo(np.float32).max))
    if len(rows) and not holes:
        raise ValueError(
            f"{name}: {len(rows)} of {table.shape[0]} rows hold NaN or infinite values (the first: "
            f"row {rows[0]}); leave them out"
        )
    return table


def check_points(points: Any, name: str) -> NDArray[np.float64]:
    """Make a table of points (n, 2), or say what is wrong with it."""
    table = check_table(points, name)
    if table.shape[1] != 2:
        raise ValueError(f"{name}: give points (n, 2), and not {table.shape}; use project first")
    return table


def check_count(call: str, name: str, value: Any, least: int = 1, most: int | None = None) -> None:
    """Refuse anything but a whole number from `least` to `most`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        limits = f"from {least} to {most}" if most is not None else f"of {least} or more"
        raise ValueError(f"{call}({name}={value!r}): give a whole number {limits}")


def check_labelled(values: Any, labels: Any, name: str) -> tuple[Any, NDArray[Any]]:
    """Check vectors and their classes against each other."""
    table, classes = check_table(values, name, sparse=True), check_classes(labels, name)
    if not table.shape[0] == len(classes) > 0:
        raise ValueError(
            f"{name}: {table.shape[0]} vectors but {len(classes)} labels; give one for each, and "
            "at least one"
        )
    return table, classes


def check_pair(
    train: Any, train_labels: Any, test: Any, test_labels: Any
) -> tuple[Any, NDArray[Any], Any, NDArray[Any]]:
    """Check training and test rows, and that one can be compared with the other."""
    train, train_labels = check_labelled(train, train_labels, "train")
    test, test_labels = check_labelled(test, test_labels, "test")
    check_dimensions(train, test, "train", "test")
    check_alike(train_labels, test_labels)
    return train, train_labels, test, test_labels


def check_dimensions(one: Any, other: Any, name: str, other_name: str) -> None:
    """Refuse two tables whose vectors differ in length, as those of two encoders do."""
    if one.shape[1] != other.shape[1]:
        raise ValueError(
            f"{name} has {one.shape[1]} dimensions and {other_name} has {other.shape[1]}; embed "
            "both with the same encoder"
        )


def check_labels(labels: Any, name: str) -> list[Any]:
    """List labels, of which some may be missing, or say what is wrong with them."""
    if isinstance(labels, str | bytes) or not hasattr(labels, "__iter__"):
        raise TypeError(f"{name}: give a sequence of labels, one for each row; got {labels!r}")
    values = list(labels)
    if not all(np.isscalar(value) or value is None for value in values):
        raise ValueError(f"{name}: give one label for each row, as a number or a string")
    return values


def check_classes(labels: Any, name: str) -> NDArray[Any]:
    """Make an array of classes, one a row, or say what is wrong with them."""
    values = check_labels(labels, name)
    without = [row for row, value in enumerate(values) if value is None or value != value]
    if without:
        raise ValueError(
            f"{name}: {len(without)} of {len(values)} rows have no label (the first: row "
            f"{without[0]}); leave them out"
        )
    classes = np.asarray(values)
    if classes.dtype.kind == "f" and (classes % 1).any():
        raise ValueError(f"{name}: labels like {values[0]} are amounts; give classes")
    return classes


def check_alike(train: NDArray[Any], test: NDArray[Any]) -> None:
    """Refuse names on one side and numbers on the other, which are never equal."""
    if len(train) and len(test) and (train.dtype.kind == "U") != (test.dtype.kind == "U"):
        raise ValueError(
            f"the labels are like {train.tolist()[0]!r} in train and {test.tolist()[0]!r} in test; "
            "give both as names or both as numbers"
        )
