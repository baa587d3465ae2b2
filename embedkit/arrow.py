"""Vectors as `datasets` stores them: Arrow columns of a fixed size, with no copy in between."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class ArrowColumn(list[Any]):
    """Vectors for ``Dataset.map`` to write: float32, a fixed size each.

    `datasets` asks a list for its Arrow array before it takes it apart. Left to itself, it would
    write lists of any length, and forget that all vectors have the same.

    Parameters
    ----------
    vectors : array of float32, shape (n, dim), or list of arrays (words, dim)
        One vector, or one array of vectors, per row.
    dim : int
        Length of a vector.
    """

    def __init__(self, vectors: NDArray[np.float32] | Sequence[NDArray[np.float32]], dim: int):
        nested = not isinstance(vectors, np.ndarray)
        flat = (
            np.concatenate([*vectors, np.empty((0, dim), np.float32)])
            if nested
            else np.asarray(vectors)
        )
        array = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel(), pa.float32()), dim)
        if nested:
            ends = np.cumsum([0, *map(len, vectors)])
            array = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), array)
        self._array = array
        # What a reader's own function finds: NumPy takes memory views for rows, and `datasets`
        # leaves them alone, which it does not do with arrays.
        super().__init__(memoryview(row) for row in vectors)  # type: ignore[arg-type]

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.Array:
        """Give the Arrow array (Arrow's own protocol)."""
        return self._array if type is None else self._array.cast(type)


def is_image_storage(type: pa.DataType) -> bool:
    """Say whether a column holds image files as `datasets` stores them."""
    return pa.types.is_struct(type) and {field.name for field in type} == {"bytes", "path"}
