"""Data for the lessons: bundled, from a folder, or from the Hugging Face Hub, as one kind of table.

The columns are always called ``image`` and ``label``, ``text`` and ``label``, or ``tokens`` and
``ner_tags``, so that a lesson runs on other data by changing one name.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet
from datasets import Dataset, DatasetBuilder, load_dataset_builder
from datasets.config import HF_DATASETS_CACHE
from datasets.naming import camelcase_to_snakecase
from datasets.packaged_modules.cache.cache import Cache
from datasets.packaged_modules.csv.csv import Csv
from huggingface_hub import constants
from huggingface_hub.repocard import metadata_load

from embedkit.loading import _files as files
from embedkit.loading import _tables as tables
from embedkit.loading import hub
from embedkit.loading._bundled import FOLDER

_CARD = ("README.md", ".gitattributes")  # each repository has the second, if not the first
_PARQUET = (
    "it is a Python script, and scripts are no longer run. Take a copy in Parquet: "
    "revision='refs/convert/parquet' is one that the Hub makes of many, and others have their own "
    "name ('lukasgarbas/conll-03' of CoNLL-2003, 'manu/wnut_17' of WNUT-17)"
)


def load_data(
    name: str | os.PathLike[str],
    split: str = "train",
    *,
    columns: Mapping[str, str] | None = None,
    config: str | None = None,
    rows: int | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    outside: bool = False,
) -> Dataset:
    """Load one split of a data set, under the column names the lessons use.

    Parameters
    ----------
    name : str or path
        ``"bundled/digits"``, ``"bundled/reviews"``, ``"bundled/entities"``, the path of a folder
        of data files, or the id of a data set on the Hub.
    split : str, default="train"
        Bundled: ``train`` and ``test``, and ``drifted`` (digits, entities) or ``foreign``
        (reviews). Elsewhere: what the data set has, slices like ``"train[:500]"`` included.
    columns : mapping of str to str, optional
        What the data set calls a column, and what it is to be called:
        ``{"img": "image", "fine_label": "label"}``.
    config : str, optional
        Which part of a data set that has several: ``"emotion"`` of ``tweet_eval``.
    rows : int, optional
        How many rows to draw, at random but the same each time; the classes are not balanced. By
        default all of them, in their order.
    revision : str, optional
        A branch, tag or commit on the Hub.
    token : str or bool, optional
        For private and gated data; by default the one that `hf auth login` keeps.
    outside : bool, default=False
        Whether a folder may name files that lie outside of it, or addresses on the web.

    Returns
    -------
    datasets.Dataset
        Labels and tags are numbers whose names are in ``.features``, the same in all splits;
        images decode to PIL. Rows without a label (-1, or nothing) are left out, with a warning.

    Raises
    ------
    TypeError
        If `name`, `split`, `columns` or `rows` has the wrong type.
    ValueError
        If there is no such bundled data set, split, or column; if the data would read files
        outside their folder; if no row has a label.
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
    if rows is not None and (not isinstance(rows, int) or rows < 1):
        raise TypeError(f"load_data(rows={rows!r}): give a whole number of 1 or more, or None")
    name, folder = os.fspath(name), None
    about = f"load_data({name!r}, split={split!r})"
    read: Callable[..., Any]  # of one split, or of all
    if name.startswith("bundled/"):
        read = partial(_bundled, name)
        table = read(split)
    else:
        folder, copy = _find(name, config, revision, token, outside)
        try:
            builder = copy or _prepare(str(folder or name), config, revision, token, outside)
            read = builder.as_dataset
            table = read(split)
        except files.Refusal as error:
            raise ValueError(f"{about}: {error}") from error
        except Exception as error:  # the readers of files raise all kinds
            raise OSError(f"{about}: {_reason(error)}") from error
    table = _renamed(table, columns or {}, name)
    before = {new: old for old, new in (columns or {}).items()}

    def everywhere(column: str) -> list[Any]:
        old = before.get(column, column)
        return [each[old][:] for each in read().values() if old in each.column_names]

    table = tables.with_label_names(table, "label", everywhere, about)
    table = tables.with_tag_names(table, "ner_tags", everywhere)
    table = tables.with_images(table, "image", folder)
    if not (outside or name.startswith("bundled/")):
        own = [folder] if folder else [Path(HF_DATASETS_CACHE), Path(constants.HF_HUB_CACHE)]
        tables.check_image_paths(table, own, about)
    if rows is not None and rows < len(table):
        table = table.shuffle(seed=0).select(range(rows))
    return table


def _renamed(table: Dataset, columns: Mapping[str, str], name: str) -> Dataset:
    """Rename columns, and say which there are."""
    for old in columns:
        if old not in table.column_names:
            raise ValueError(
                f"load_data(columns=…): {name} has no column {old!r}; it has "
                f"{', '.join(table.column_names)}"
            )
    names = [columns.get(each, each) for each in table.column_names]
    twice = sorted({each for each in names if names.count(each) > 1})
    if twice:
        raise ValueError(
            f"load_data(columns=…): {name} would have two columns {twice[0]!r}; rename the other"
        )
    return table.rename_columns(dict(columns))


def _bundled(name: str, split: str | None = None) -> Any:
    """Read a bundled split into memory, or a dict of all splits."""
    found = {path.parent.name: path.parent for path in sorted(FOLDER.glob("*/*.parquet"))}
    folder = found.get(name.removeprefix("bundled/"))
    if folder is None:
        known = ", ".join(f"bundled/{each}" for each in found)
        raise ValueError(f"{name}: no such bundled data set; choose from {known}")
    splits = {path.stem: path for path in sorted(folder.glob("*.parquet"))}
    if split is None:
        return {each: _bundled(name, each) for each in splits}
    if split not in splits:
        raise ValueError(f"{name} has no split {split!r}; choose from {', '.join(splits)}")
    # Straight from the file: no copy in a cache, no progress bar. The features are in the schema.
    return Dataset(pyarrow.parquet.read_table(splits[split]))


def _find(
    name: str, config: str | None, revision: str | None, token: str | bool | None, outside: bool
) -> tuple[Path | None, Cache | None]:
    """Find a folder, or ask the Hub; if it is gone, give what was prepared before."""
    about = f"load_data({name!r})"
    folder, copy = Path(name).expanduser(), None
    if folder.is_dir():
        folder = card = folder.resolve()
        if re.search(r"[*?\[\]]", str(folder)):
            raise ValueError(
                f"{about}: {folder} has one of * ? [ ] in its path, which would be read as a "
                "pattern of names; rename the folder"
            )
    elif folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise OSError(f"{about}: no such folder; give a folder, a Hub id, or bundled/…")
    else:
        instead = "bundled/digits, bundled/reviews or bundled/entities, which work offline"
        card, answered = hub.snapshot(
            about, name, _CARD, kind="dataset", instead=instead, revision=revision, token=token
        )
        copy = None if answered else _copy(name, config, card.name)
    said = metadata_load(card / "README.md") if (card / "README.md").is_file() else None
    if "://" in json.dumps((said or {}).get("configs"), default=str) and not outside:
        raise ValueError(
            f"{about}: its README.md names addresses on the web as data; allow them with "
            "outside=True"
        )
    return (folder if folder.is_dir() else None), copy


def _prepare(
    name: str, config: str | None, revision: str | None, token: str | bool | None, outside: bool
) -> DatasetBuilder:
    """Have `datasets` read the files of a data set, and hold it to the data's own folder."""
    options: dict[str, Any] = {"revision": revision, "token": token}
    builder = load_dataset_builder(name, config, **options)
    if isinstance(builder, Csv):  # pandas would take the texts "NA", "None" and "null" for gaps
        options |= {"keep_default_na": False, "na_values": [""]}
        builder = load_dataset_builder(name, config, **options)
    own = f"hf://datasets/{name}@"
    named = [str(file) for part in (builder.config.data_files or {}).values() for file in part]
    for file in [] if outside else named:
        if not (file.startswith(own) or files.lies_in(file, [Path(name)])):
            raise files.Refusal(
                f"it names the file {file}, outside its own folder; put it there, or allow it with "
                "outside=True"
            )
    builder.download_and_prepare()
    if isinstance(builder, Csv) and "__index_level_0__" in (builder.info.features or {}):
        raise files.Refusal(
            "its rows have more fields than its header has names, so the columns would be shifted; "
            "put texts with commas in quotes, and take commas off the ends of lines"
        )
    return builder


def _copy(name: str, config: str | None, commit: str) -> Cache:
    """Take what `datasets` prepared of this commit before, without its many tries to ask again."""
    *owner, own = name.split("/")
    home = Path(HF_DATASETS_CACHE) / "___".join([*owner, camelcase_to_snakecase(own)])
    found = {}
    for path in sorted(home.glob(f"*/*/{commit}"), key=lambda path: len(path.parts[-3])):
        known = json.loads((path / "dataset_info.json").read_text(encoding="utf-8"))["config_name"]
        if config in (None, known):
            found[known] = path  # the longer name has our settings in it
    if len(found) != 1:
        raise OSError(
            f"load_data({name!r}, config={config!r}): the Hub cannot be asked, and of what was "
            f"loaded before there is {', '.join(found) or 'none of this commit'}; choose one with "
            "`config`, or try again later"
        )
    (path,) = found.values()
    part, version, _ = path.parts[-3:]
    return Cache(dataset_name=own, config_name=part, version=version, hash=commit, repo_id=name)


def _reason(error: BaseException) -> str:
    """Say what kept `datasets` from reading, and what to do."""
    deeper = error.__cause__ if "occurred while generating" in str(error) else None
    reason = " ".join(str(deeper or error).split())[:300].rstrip(".")
    if "scripts are no longer supported" in reason:
        return _PARQUET
    return f"{reason}. Check the name, split and (where the data set has several parts) `config`"
