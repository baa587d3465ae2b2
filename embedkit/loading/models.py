"""A name in, a loaded model and its preprocessor out; or one sentence on why not.

A name is one of the bundled ones, a folder, or the id of a repository on the Hugging Face Hub.
"""

import json
import os
import threading
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from embedkit.loading import _bundled as bundled
from embedkit.loading import hub

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SETTINGS = ("*.json", "*.txt", "*.model", "*.codes", "*.tiktoken", "*.jinja")
_one_load_at_a_time = threading.Lock()


def load_model(
    name: str | os.PathLike[str], *, dtype: str, device: torch.device, revision: str | None = None
) -> PreTrainedModel:
    """Load a pre-trained model without its task head, ready to be read from.

    Only safetensors are opened and no code from the repository is run.

    Parameters
    ----------
    name : str or path
        A bundled name, a folder, or a Hub id.
    dtype : {"float32", "bfloat16", "float16"}
        The type of the weights and of the arithmetic.
    device : torch.device
        Where it runs.
    revision : str, optional
        A branch, tag or commit on the Hub.

    Returns
    -------
    PreTrainedModel
        In evaluation mode, with gradients off.

    Raises
    ------
    OSError
        If the model cannot be had; the message says why and what to do.
    ValueError
        If a bundled name or the dtype does not exist, or weights are missing or altered.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: unknown; choose from {', '.join(DTYPES)}, auto")
    folder = _folder(name, revision, weights=True)
    with _quiet(), _explained(name):
        model, info = AutoModel.from_pretrained(
            folder,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            trust_remote_code=False,  # by default it asks, and a yes would run it
            local_files_only=True,
            output_loading_info=True,
        )
    # A pooler sits behind the hidden states, so that many repositories go without is no loss.
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if missing:
        raise ValueError(
            f"{name}: the weights of {len(missing)} layers are missing ({missing[0]}, …) and would "
            "be random; use a repository that holds the whole model"
        )
    return model.to(device).eval().requires_grad_(False)


def load_tokenizer(name: str | os.PathLike[str], *, revision: str | None = None) -> Any:
    """Load the tokenizer that belongs to a model.

    Parameters
    ----------
    name : str or path
        A bundled name, a folder, or a Hub id.
    revision : str, optional
        A branch, tag or commit on the Hub.

    Returns
    -------
    PreTrainedTokenizerBase

    Raises
    ------
    OSError
        If the tokenizer cannot be had; the message says why and what to do.
    """
    folder = _folder(name, revision)
    with _quiet(), _explained(name, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        # Where the files are missing, transformers makes one that knows no word.
        if set(tokenizer.get_vocab()) <= {*tokenizer.all_special_tokens, "▁"}:
            raise ValueError("its files are missing, so it has no vocabulary")
        return tokenizer


def load_image_processor(name: str | os.PathLike[str], *, revision: str | None = None) -> Any:
    """Load the image processor that belongs to a model: it resizes, scales and normalises.

    Parameters
    ----------
    name : str or path
        A bundled name, a folder, or a Hub id.
    revision : str, optional
        A branch, tag or commit on the Hub.

    Returns
    -------
    BaseImageProcessor
        The Pillow one, so that the pixels are the same whether torchvision is installed or not.

    Raises
    ------
    OSError
        If the processor cannot be had; the message says why and what to do.
    """
    folder = _folder(name, revision)
    with _quiet(), _explained(name, "image processor"):
        return AutoImageProcessor.from_pretrained(
            folder, backend="pil", trust_remote_code=False, local_files_only=True
        )


def fingerprint(name: str | os.PathLike[str]) -> tuple[tuple[str, int, int], ...]:
    """List a folder's weight files with sizes and modification times, to notice when they change.

    Parameters
    ----------
    name : str or path
        A bundled name, a folder, or a Hub id.

    Returns
    -------
    tuple of (file name, bytes, nanoseconds)
        Empty for anything but a folder: a Hub id is told apart by its revision.
    """
    if not Path(name).is_dir():
        return ()
    patterns = "*.safetensors", "*.safetensors.index.json"
    files = sorted(path for pattern in patterns for path in Path(name).glob(pattern))
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)


def bfloat16_pays(device: torch.device) -> bool:
    """Say whether bfloat16 is clearly quicker than float32 on a device.

    On a CPU a small matrix product is timed in both: there are processors that have the
    instructions and are slower with them.

    Parameters
    ----------
    device : torch.device
        Where a model runs.

    Returns
    -------
    bool
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        rows, weights = torch.ones(256, 768, dtype=dtype), torch.ones(768, 768, dtype=dtype)
        torch.nn.functional.linear(rows, weights)
        timer = timeit.Timer(lambda: torch.nn.functional.linear(rows, weights))  # noqa: B023
        seconds[dtype] = min(timer.repeat(repeat=5, number=1))
    return seconds[torch.bfloat16] < 0.8 * seconds[torch.float32]


def _folder(name: str | os.PathLike[str], revision: str | None, *, weights: bool = False) -> Path:
    """Find the folder a name stands for; what only the Hub has is brought into the cache."""
    text = os.fspath(name)
    repository = bundled.MINILM_ON_HUB if text.startswith("bundled/") else text
    folder = bundled.model_folder(text) if text.startswith("bundled/") else Path(text)
    if folder and text and folder.is_dir():
        return folder
    if Path(text).is_absolute() or text.startswith((".", "~")) or repository.count("/") > 1:
        raise OSError(
            f"{text}: no such folder; give a folder, a Hub id, or {' or '.join(bundled.NAMES)}"
        )
    options: dict[str, Any] = {"kind": "model", "instead": bundled.without_the_hub(text)}
    folder, _ = hub.snapshot(text, repository, _SETTINGS, revision=revision, **options)
    if not (folder / "config.json").is_file():
        raise OSError(
            f"{text}: the repository has no config.json, so it is no transformers model; choose "
            "one that carries the tag 'transformers'"
        )
    if weights:
        files = ["model.safetensors"]
        if (index := folder / "model.safetensors.index.json").is_file():
            files += {*json.loads(index.read_text())["weight_map"].values()}
        # At the commit found before, though a branch may have moved on meanwhile.
        folder, _ = hub.snapshot(text, repository, files, revision=folder.name, **options)
    return folder


@contextmanager
def _explained(name: str | os.PathLike[str], part: str = "model") -> Iterator[None]:
    """Turn what transformers raises into a sentence that names the cause and the next step."""
    try:
        yield
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        if "trust_remote_code" in reason:
            cause = "it needs code of its own, which embedkit does not run; choose another model"
        elif part == "model" and "safetensors" in reason:
            cause = (
                "it has no safetensors weights; pickled weights can run code when opened, so "
                "convert them (`hf.co/spaces/safetensors/convert`) or choose another model"
            )
        elif part != "model":
            cause = f"it has no {part} that loads; pass one as `processor=` ({reason[:200]})"
        else:
            cause = f"the {part} does not load ({reason[:300]})"
        raise OSError(f"{os.fspath(name)}: {cause}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' report and progress bar of this thread's loading out of the notebook.

    What other threads report and show meanwhile goes on, and no setting of the reader's changes.
    """
    thread = threading.get_ident()

    def bar(make: Callable[..., Any], given: Any, options: dict[str, Any]) -> Any:
        return (logging.EmptyTqdm if threading.get_ident() == thread else make)(*given, **options)

    def elsewhere(record: Any) -> bool:
        return record.thread != thread

    handlers = [*logging.get_logger("transformers").handlers]
    with _one_load_at_a_time:
        before = logging.set_tqdm_hook(bar)
        for handler in handlers:
            handler.addFilter(elsewhere)
        try:
            yield
        finally:
            logging.set_tqdm_hook(before)
            for handler in handlers:
                handler.removeFilter(elsewhere)
