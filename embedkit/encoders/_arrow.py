"""Batches as engines hand them over, and vectors as they store them.

`datasets` and Ray Data both keep their columns in Arrow. A column of vectors has a fixed size
there, float32, with no copy in between, and its shape stands in the file.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

Embeddings = NDArray[np.float32] | Sequence[NDArray[np.float32]]


def find_column(owner: str, batch: Any, wanted: Sequence[str]) -> str:
    """Give the first column wanted that a mapping, a `pyarrow.Table` or a DataFrame has."""
    names = list(batch.column_names if isinstance(batch, pa.Table) else batch)
    for name in wanted:
        if name in names:
            return name
    raise KeyError(
        f"{owner}: the batch has columns {', '.join(names)}, none of them {' or '.join(wanted)}; "
        "rename one (load_data does it with `columns=`)"
    )


def is_single_row(batch: Any, column: str, single: tuple[type, ...]) -> bool:
    """Say whether this is a row and not a batch, as `map` gives without ``batched=True``."""
    # `datasets` has a class for either; with a format set, it hands a plain dict over.
    plain = isinstance(batch, dict) and isinstance(batch[column], single)
    return plain or type(batch).__name__ == "LazyRow"


def with_embedding(batch: Any, vectors: Embeddings, dim: int) -> Any:
    """Add vectors to a batch as the column ``embedding``.

    Parameters
    ----------
    batch : mapping, pyarrow.Table or DataFrame
        What an engine hands over.
    vectors : array of float32, shape (n, dim), or list of arrays (words, dim)
        One vector, or one array of vectors, per row.
    dim : int
        Length of a vector.

    Returns
    -------
    dict, pyarrow.Table or DataFrame
        Of the batch's own kind. In ``Dataset.map`` the new column alone.
    """
    if isinstance(batch, dict) and not _in_ray():
        return {**batch, "embedding": vectors}
    if isinstance(batch, Mapping) and not isinstance(batch, dict):
        return {"embedding": ArrowColumn(vectors, dim)}
    array = fixed_size(vectors, dim)
    if isinstance(batch, pa.Table):
        others = [name for name in batch.column_names if name != "embedding"]
        return batch.select(others).append_column("embedding", array)
    if isinstance(batch, pd.DataFrame):
        kind = pd.ArrowDtype(array.type)
        return batch.assign(embedding=pd.Series(array, index=batch.index, dtype=kind))
    return {**batch, "embedding": array}


def fixed_size(vectors: Embeddings, dim: int) -> pa.Array:
    """Make an Arrow array of vectors of a fixed size, or of lists of them."""
    nested = not isinstance(vectors, np.ndarray)
    flat = np.concatenate([*vectors, np.empty((0, dim), np.float32)]) if nested else vectors
    array = pa.FixedSizeListArray.from_arrays(pa.array(np.ravel(flat), pa.float32()), dim)
    if not nested:
        return array
    ends = np.cumsum([0, *map(len, vectors)])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), array)


class ArrowColumn(list[Any]):
    """Vectors for ``Dataset.map`` to write.

    `datasets` asks a list for its Arrow array before it takes it apart. Without this one, it would
    write lists of any length, and lose that all vectors have the same.

    Parameters
    ----------
    vectors : array of float32, shape (n, dim), or list of arrays (words, dim)
        One vector, or one array of vectors, per row.
    dim : int
        Length of a vector.
    """

    def __init__(self, vectors: Embeddings, dim: int):
        self._array = fixed_size(vectors, dim)
        # What a reader's own function finds: NumPy takes memory views for rows, and `datasets`
        # leaves them alone, which it does not do with arrays.
        super().__init__(memoryview(row) for row in vectors)  # type: ignore[arg-type]

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.Array:
        """Give the Arrow array (Arrow's own protocol)."""
        return self._array if type is None else self._array.cast(type)


def is_image_storage(type: pa.DataType) -> bool:
    """Say whether a column holds image files as `datasets` stores them."""
    return pa.types.is_struct(type) and {field.name for field in type} == {"bytes", "path"}


def _in_ray() -> bool:
    """Say whether this runs in a worker of Ray, whose batches are plain dicts too."""
    ray = sys.modules.get("ray")
    return bool(ray and ray.is_initialized() and ray.get_runtime_context().get_task_id())
