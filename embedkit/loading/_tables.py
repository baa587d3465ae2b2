"""Columns as the lessons want them: labels and tags as numbers with names, paths as images."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Audio, ClassLabel, Dataset, Image, LargeList, List, Value, Video
from pyarrow import compute

from embedkit.loading._files import lies_in

_STRINGS = Value("string"), Value("large_string")  # pandas 3 writes the latter
_INTEGERS = [Value(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)]
_FLOATS = [Value(f"float{bits}") for bits in (16, 32, 64)]  # of whole numbers with gaps


def with_label_names(
    table: Dataset, column: str, everywhere: Callable[[str], Sequence[Sequence[Any]]], about: str
) -> Dataset:
    """Give labels numbers, the same in all splits; leave out rows that have none, and say so.

    -1 stands for no label, as on the Hub, unless the labels are -1 and 1.
    """
    feature = table.features.get(column)
    labels = list(table[column][:]) if column in table.column_names else []
    if isinstance(feature, ClassLabel):
        names = feature.names
        numbers = [None if label in (None, -1) else label for label in labels]
    elif feature in (*_STRINGS, *_INTEGERS, *_FLOATS, Value("bool")):
        known = {label for labels in everywhere(column) for label in labels} - {None}
        if feature in _FLOATS and not all(label.is_integer() for label in known):
            return table  # amounts
        if known != {-1, 1} and feature not in _STRINGS:
            known.discard(-1)
        ordered = sorted(known)
        names = [str(int(each) if isinstance(each, float) else each) for each in ordered]
        number = {label: n for n, label in enumerate(ordered)}
        numbers = [number.get(label) for label in labels]
    else:
        return table
    if numbers != labels or not isinstance(feature, ClassLabel):
        table = _with_column(table, column, numbers, ClassLabel(names=names))
    kept = [row for row, number in enumerate(numbers) if number is not None]
    if len(kept) == len(numbers):
        return table
    if not kept:
        raise ValueError(
            f"{about}: no row has a label; choose another split, or keep the rows by renaming the "
            f"column: columns={{{column!r}: 'unlabeled'}}"
        )
    lacking = [row for row, number in enumerate(numbers) if number is None]
    warnings.warn(
        f"{about}: {len(lacking)} of {len(numbers)} rows have no label (-1 or nothing) and are "
        f"left out: rows {', '.join(map(str, lacking[:10]))}{', …' * (len(lacking) > 10)}",
        stacklevel=3,
    )
    return table.select(kept)


def with_tag_names(
    table: Dataset, column: str, everywhere: Callable[[str], Sequence[Sequence[Any]]]
) -> Dataset:
    """Give tags that are strings numbers, the same in all splits; ``O`` is 0."""
    if table.features.get(column) not in [List(value) for value in _STRINGS]:
        return table
    known = {tag for rows in everywhere(column) for tags in rows for tag in tags}
    names = ["O", *sorted(known - {"O"})]
    return table.cast_column(column, List(ClassLabel(names=names)))


def with_images(table: Dataset, column: str, folder: Path | None) -> Dataset:
    """Turn a column of paths or bytes into images; a relative path starts at the data's folder."""
    feature = table.features.get(column)
    if feature in _STRINGS:
        paths = [path and os.path.join(folder or "", path) for path in table[column][:]]
        table = _with_column(table, column, paths, Value("string"))
    if feature in (*_STRINGS, Value("binary"), Value("large_binary")):
        table = table.cast_column(column, Image())
    return table


def check_image_paths(table: Dataset, folders: Sequence[Path], about: str) -> None:
    """Refuse images, and other media, that would be read from outside the folders of the data."""
    roots = [folder.resolve() for folder in folders]
    for column, feature in table.features.items():
        for stored in _files_in(table.data.column(column), feature):
            without_bytes = compute.is_null(compute.struct_field(stored, "bytes"))
            paths = compute.struct_field(stored, "path").filter(without_bytes).drop_null()
            for path in paths.unique().to_pylist():
                if not lies_in(path, roots):
                    raise ValueError(
                        f"{about}: the column {column!r} names the file {path!r}, outside the "
                        "data's own folder; put it there, or allow it with outside=True"
                    )


def _files_in(stored: Any, feature: Any) -> Iterator[Any]:
    """Find what may name files in a column: in itself, in its lists, in its parts."""
    if isinstance(feature, Audio | Image | Video):
        yield stored
    elif isinstance(feature, LargeList | List):
        yield from _files_in(compute.list_flatten(stored), feature.feature)
    elif isinstance(feature, dict):
        for name, part in feature.items():
            yield from _files_in(compute.struct_field(stored, name), part)


def _with_column(table: Dataset, column: str, values: Sequence[Any], feature: Any) -> Dataset:
    """Put other values in a column's place."""
    order, apart = table.column_names, f"{column}, new"
    table = table.add_column(apart, values, feature=feature).remove_columns(column)
    return table.rename_column(apart, column).select_columns(order)
