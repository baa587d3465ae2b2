"""What may be given where vectors and classes are asked for."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def check_table(values: Any, name: str) -> NDArray[np.float64]:
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


def check_labelled(values: Any, labels: Any, name: str) -> tuple[Any, NDArray[Any]]:
    """Check vectors and their labels against each other."""
    table, classes = check_table(values, name), check_classes(labels, f"labels of {name}")
    if table.shape[0] != len(classes):
        raise ValueError(f"{name}: {table.shape[0]} vectors but {len(classes)} labels")
    if not len(classes):
        raise ValueError(f"{name}: needs at least one row")
    return table, classes


def check_pair(
    train: Any, train_labels: Any, test: Any, test_labels: Any
) -> tuple[Any, NDArray[Any], Any, NDArray[Any]]:
    """Check training and test rows, and that one can be compared with the other."""
    train, train_labels = check_labelled(train, train_labels, "train")
    test, test_labels = check_labelled(test, test_labels, "test")
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"train has {train.shape[1]} dimensions and test has {test.shape[1]}; embed both with "
            "the same encoder"
        )
    check_alike(train_labels, test_labels)
    return train, train_labels, test, test_labels


def check_classes(labels: Any, name: str) -> NDArray[Any]:
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


def check_alike(train: NDArray[Any], test: NDArray[Any]) -> None:
    """Refuse names on one side and numbers on the other, which are never equal."""
    if len(train) and len(test) and (train.dtype.kind == "U") != (test.dtype.kind == "U"):
        raise ValueError(
            f"the classes are {train[:1].tolist()[0]!r} and so on in train, and "
            f"{test[:1].tolist()[0]!r} in test; give both as names or both as numbers"
        )
