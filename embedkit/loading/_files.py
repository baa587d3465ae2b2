"""What a folder may make us read: files of its own, of the kind expected, of the size announced."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from safetensors import safe_open

_MANY_LAYERS, _MANY_OF_ANYTHING = 1000, 10_000_000  # a model with so many is built in seconds


class Refusal(ValueError):
    """Why a folder's files are not read; the reader is told it with the folder's name in front."""


def inside(folder: Path, name: Any) -> Path:
    """Give the path of a file that a repository names; it has to lie in the repository's folder."""
    parts = PureWindowsPath(str(name))  # knows both kinds of slashes, and drives
    if not isinstance(name, str) or parts.anchor or ".." in parts.parts or "://" in name:
        raise Refusal(f"it names {name!r}, which is no file in its own folder")
    return folder / name


def lies_in(path: str, folders: Iterable[Path]) -> bool:
    """Say whether a path leads into one of these folders, links followed."""
    real = os.path.realpath(path)
    return "://" not in path and any(Path(real).is_relative_to(folder) for folder in folders)


def read_json(file: Path, kind: type = dict) -> Any:
    """Read an object (or a list) from a JSON file, or say in one sentence why it cannot be."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Refusal(f"its {file.name} cannot be read ({error})") from error
    if not isinstance(found, kind):
        raise Refusal(f"its {file.name} holds a {type(found).__name__}, not a {kind.__name__}")
    return found


def weight_files(folder: Path) -> list[str]:
    """Name the safetensors files that hold a model: one, or the parts that its index lists."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return ["model.safetensors"]
    parts = read_json(index).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise Refusal(f"its {index.name} lists no weights")
    for name in parts.values():
        if not str(name).endswith(".safetensors") or len(PureWindowsPath(str(name)).parts) != 1:
            raise Refusal(
                f"its {index.name} names {name!r}; only *.safetensors in the same folder are opened"
            )
    return sorted({*parts.values()})


def base_of(folder: Path) -> tuple[str, str | None]:
    """Read which model an adapter belongs to, and which revision of it."""
    config = read_json(folder / "adapter_config.json")
    name = config.get("base_model_name_or_path")
    if config.get("peft_type") != "LORA" or not isinstance(name, str) or not name:
        raise Refusal(
            f"it is an adapter of type {config.get('peft_type')} for {name}; embedkit merges "
            "adapters of type LORA that name their base model"
        )
    return name, config.get("revision")


def tensor_names(files: list[Path]) -> set[str]:
    """Read the names of the tensors from the headers of safetensors files."""
    names: set[str] = set()
    for file in files:
        with safe_open(file, "pt") as tensors:
            names.update(tensors.keys())
    return names


def check_sizes(config: Mapping[str, Any], tensors: int) -> None:
    """Refuse a configuration whose model would take forever to build, before it is built."""
    for key, value in _numbers(config):
        layers = any(part in key for part in ("layer", "depth", "block", "stage"))
        most = max(tensors, _MANY_LAYERS) if layers else _MANY_OF_ANYTHING
        if value > most and (layers or key.startswith(("num_", "n_"))):
            raise Refusal(
                f"its config.json says {key} = {value}, and its weights are {tensors} tensors; "
                "they do not belong together"
            )


def _numbers(config: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Go through the whole numbers of a configuration, with the key that each stands under."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            yield from _numbers(value, str(name))
    elif isinstance(config, list):
        for value in config:
            yield from _numbers(value, key)
    elif isinstance(config, int):
        yield key, config
