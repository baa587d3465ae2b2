"""What `embedkit.loading.models.load` gives, from its parts."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedkit.loading import models


@dataclass(frozen=True)
class Published:
    """What a model's authors say in its repository about using it."""

    pooling: str | None = None
    normalize: bool = False
    max_length: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    include_prompt: bool = True
    lower_case: bool = False
    dense: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Loaded:
    """A model, its processor, and what its repository says."""

    model: Any
    processor: Any
    published: Published
    commit: str | None


def load(
    name: str | os.PathLike[str],
    *,
    kind: str,
    dtype: str,
    device: Any,
    processor: Any = None,
    revision: str | None = None,
    **_: Any,
) -> Loaded:
    """Load a model and its processor."""
    model = models.load_model(name, dtype=dtype, device=device, revision=revision)
    if processor is None:
        part = models.load_tokenizer if kind == "text" else models.load_image_processor
        processor = part(name, revision=revision)
    return Loaded(model, processor, Published(), None)


def fingerprint(name: str, *, revision: str | None = None, cache_dir: Any = None) -> Any:
    """List what lies in a folder."""
    return models.fingerprint(name)


def absolute(name: str | os.PathLike[str]) -> str:
    """Make the name of a folder mean the same in any working folder."""
    text = os.fspath(name)
    folder = Path(text).expanduser()
    return str(folder.absolute()) if text and folder.is_dir() else text
