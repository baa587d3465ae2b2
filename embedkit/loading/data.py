"""Data for the lessons: bundled, from a folder, or from the Hugging Face Hub, as one kind of table.

The columns are always called ``image`` and ``label``, ``text`` and ``label``, or ``tokens`` and
``ner_tags``, so that a lesson runs on other data by changing one name.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet
from datasets import ClassLabel, Dataset, Image, List, Value, load_dataset
from datasets.config import HF_DATASETS_CACHE
from datasets.naming import camelcase_to_snakecase
from datasets.packaged_modules.cache.cache import Cache

from embedkit.loading import hub
from embedkit.loading._bundled import FOLDER

_CARD = ("README.md", ".gitattributes")  # each repository has the second, if not the first


def load_data(
    name: str | os.PathLike[str],
    split: str = "train",
    *,
    columns: Mapping[str, str] | None = None,
    config: str | None = None,
    revision: str | None = None,
) -> Dataset:
    """Load one split of a data set, under the column names the lessons use.

    Parameters
    ----------
    name : str or path
        ``"bundled/digits"``, ``"bundled/reviews"``, ``"bundled/entities"``, the path of a folder
        of data files, or the id of a data set on the Hub.
    split : str
        Bundled: ``train`` and ``test``, and ``drifted`` (digits, entities) or ``foreign``
        (reviews). Elsewhere: what the data set has, slices like ``"train[:500]"`` included.
    columns : mapping of str to str, optional
        What the data set calls a column, and what it is to be called:
        ``{"img": "image", "fine_label": "label"}``.
    config : str, optional
        Which part of a Hub data set that has several.
    revision : str, optional
        A branch, tag or commit on the Hub.

    Returns
    -------
    datasets.Dataset
        Labels and tags are numbers whose names are in ``.features``; images decode to PIL.

    Raises
    ------
    TypeError
        If `name`, `split` or `columns` is of another kind.
    ValueError
        If there is no such bundled data set, split, or column.
    OSError
        If the data cannot be had; the message says why and what to do.

    Examples
    --------
    >>> data = load_data("bundled/reviews", split="test")
    >>> data.features["label"].names
    ['negative', 'neutral', 'positive']
    """
    if not isinstance(name, str | os.PathLike) or not os.fspath(name):
        raise TypeError(f"load_data({name!r}): give a bundled name, a folder, or a Hub id")
    if not isinstance(split, str):
        raise TypeError(f"load_data(split={split!r}): give the name of one split, such as 'train'")
    if not isinstance(columns or {}, Mapping):
        raise TypeError(f"load_data(columns={columns!r}): give a dict, old name to new")
    name = os.fspath(name)
    if name.startswith("bundled/"):
        table = _bundled(name, split)
    else:
        table = _read(name, split, config, revision)
    for old in columns or {}:
        if old not in table.column_names:
            raise ValueError(
                f"load_data(columns=…): {name} has no column {old!r}; it has "
                f"{', '.join(table.column_names)}"
            )
    renamed = [(columns or {}).get(each, each) for each in table.column_names]
    twice = sorted({each for each in renamed if renamed.count(each) > 1})
    if twice:
        raise ValueError(
            f"load_data(columns=…): {name} would have two columns {twice[0]!r}; rename the other"
        )
    table = table.rename_columns(dict(columns or {}))
    return _with_names(table)


def _bundled(name: str, split: str) -> Dataset:
    """Read a bundled split into memory."""
    files = {path.parent.name: path.parent for path in sorted(FOLDER.glob("*/*.parquet"))}
    folder = files.get(name.removeprefix("bundled/"))
    if folder is None:
        known = ", ".join(f"bundled/{each}" for each in files)
        raise ValueError(f"{name}: no such bundled data set; choose from {known}")
    splits = {path.stem: path for path in sorted(folder.glob("*.parquet"))}
    if split not in splits:
        raise ValueError(f"{name} has no split {split!r}; choose from {', '.join(splits)}")
    # Straight from the file: no copy in a cache, no progress bar. The features are in the schema.
    return Dataset(pyarrow.parquet.read_table(splits[split]))


def _read(name: str, split: str, config: str | None, revision: str | None) -> Dataset:
    """Read from a folder or the Hub, and say why where that fails."""
    about = f"load_data({name!r})"
    copy = None
    if not Path(name).exists():
        if Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise OSError(f"{about}: no such folder; give a folder, a Hub id, or bundled/…")
        instead = "bundled/digits, bundled/reviews or bundled/entities, which work offline"
        card, answered = hub.snapshot(
            about, name, _CARD, kind="dataset", instead=instead, revision=revision
        )
        copy = None if answered else _prepared(name, config, card.name)
    try:
        if copy is None:
            return load_dataset(name, config, split=split, revision=revision)
        return copy.as_dataset(split=split)
    except Exception as error:  # the readers of files raise all kinds
        reason = " ".join(str(error).split())[:300]
        raise OSError(
            f"load_data({name!r}, split={split!r}): {reason.rstrip('.')}. Check the name, split "
            "and (where the data set has several parts) `config`"
        ) from error


def _prepared(name: str, config: str | None, commit: str) -> Cache:
    """Take what `datasets` prepared of this commit before, without its many tries to ask again."""
    *owner, own = name.split("/")
    home = Path(HF_DATASETS_CACHE) / "___".join([*owner, camelcase_to_snakecase(own)])
    found = sorted(home.glob(f"{config or '*'}/*/{commit}"))
    if len(found) != 1:
        parts = ", ".join(path.parts[-3] for path in found) or "none of this commit"
        raise OSError(
            f"load_data({name!r}, config={config!r}): the Hub cannot be asked, and of what was "
            f"loaded before there is {parts}; choose one with `config`, or try again later"
        )
    part, version, _ = found[0].parts[-3:]
    return Cache(dataset_name=own, config_name=part, version=version, hash=commit, repo_id=name)


def _with_names(table: Dataset) -> Dataset:
    """Turn labels and tags given as strings into numbers with names, and paths into images."""
    features: dict[str, Any] = table.features
    strings = Value("string"), Value("large_string")  # pandas 3 writes the latter
    if features.get("label") in strings:
        table = table.class_encode_column("label")
    if features.get("ner_tags") in [List(value) for value in strings]:
        names = sorted({tag for row in table["ner_tags"] for tag in row})
        names = ["O", *(tag for tag in names if tag != "O")]
        table = table.cast_column("ner_tags", List(ClassLabel(names=names)))
    if features.get("image") == Value("large_string"):  # which older versions cannot decode
        table = table.cast_column("image", Value("string"))
    if features.get("image") in (*strings, Value("binary")):
        table = table.cast_column("image", Image())
    return table
