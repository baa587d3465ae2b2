"""A name in; a loaded model, its preprocessor and what its authors published out.

A name is one of the bundled ones, a folder, or the id of a repository on the Hugging Face Hub. A
folder or repository holds a model, or a LoRA adapter that is merged into the model it was made for.
"""

import os
import timeit
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from embedkit.loading import _bundled as bundled
from embedkit.loading import _files as files
from embedkit.loading import _published as published
from embedkit.loading import _reading as reading
from embedkit.loading import hub
from embedkit.loading._published import Published

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SETTINGS = ("*.json", "*.txt", "*.model", "*.codes", "*.tiktoken", "*.jinja")
_OURS = ("dtype", "local_files_only", "output_loading_info", "revision", "token", "use_safetensors")


@dataclass(frozen=True)
class Loaded:
    """What a name stands for.

    Attributes
    ----------
    model : PreTrainedModel
        Without its task head, in evaluation mode, with gradients off.
    processor : PreTrainedTokenizerBase or BaseImageProcessor
        What prepares its inputs.
    published : Published
        What its authors say about using it.
    commit : str, optional
        Of a repository on the Hub; None for a folder.
    """

    model: PreTrainedModel
    processor: Any
    published: Published
    commit: str | None


@dataclass(frozen=True)
class _Place:
    """Where the files of a model are."""

    name: str
    root: Path
    commit: str | None = None

    @property
    def body(self) -> Path:
        """The folder of the model itself: the root, or one that ``modules.json`` names."""
        return self.root / published.modules(self.root)[0][1]

    @property
    def is_adapter(self) -> bool:
        """Whether it holds an adapter instead of a whole model."""
        return (self.body / "adapter_config.json").is_file()


def load(
    name: str | os.PathLike[str],
    *,
    kind: Literal["text", "image"],
    dtype: str = "float32",
    device: torch.device | None = None,
    processor: Any = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    attn_implementation: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> Loaded:
    """Load a pre-trained model without its task head, its preprocessor, and what its authors say.

    Only safetensors are opened and no code from the repository is run.

    Parameters
    ----------
    name : str or path
        A bundled name, a folder, or a Hub id.
    kind : {"text", "image"}
        Whether a tokenizer or an image processor belongs to it.
    dtype : {"float32", "bfloat16", "float16"}, default="float32"
        The type of the weights and of the arithmetic.
    device : torch.device, optional
        Where it runs; by default on the CPU.
    processor : tokenizer or image processor, optional
        Taken instead of the one in the repository.
    revision : str, optional
        A branch, tag or commit on the Hub.
    token : str or bool, optional
        For private and gated repositories; by default the one that `hf auth login` keeps.
    cache_dir : str or path, optional
        Where downloads are kept; by default where Hugging Face's libraries keep them.
    attn_implementation : str, optional
        How attention is computed: ``"eager"``, ``"sdpa"``, ``"flash_attention_2"``.
    model_kwargs : mapping, optional
        Passed on to ``AutoModel.from_pretrained``; ``trust_remote_code`` is refused.

    Returns
    -------
    Loaded

    Raises
    ------
    OSError
        If a model or its preprocessor cannot be had; the message says why and what to do.
    ValueError
        If a bundled name, a dtype or a setting does not exist, or weights are missing or altered.

    Examples
    --------
    >>> load("bundled/all-MiniLM-L6-v2", kind="text").published.pooling
    'mean'
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: unknown; choose from {', '.join(DTYPES)}, auto")
    options = dict(model_kwargs or {})
    if "trust_remote_code" in options:
        raise ValueError(
            f"{os.fspath(name)}: trust_remote_code would run the repository's code, which embedkit "
            "does not do; leave it out of model_kwargs"
        )
    if taken := sorted({*options} & {*_OURS}):
        raise ValueError(f"model_kwargs: {taken[0]} is set by embedkit; leave it out")
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    access = {"token": token, "cache_dir": cache_dir}
    place = _place(name, revision, weights=True, **access)
    base = _base(place, weights=True, **access)
    with reading.explained(place.name):
        said = published.read(place.root)
    model = reading.read_model(base.name, base.body, DTYPES[dtype], options)
    if place.is_adapter:
        from embedkit.loading import _adapters as adapters  # peft takes seconds to import

        with reading.quiet(), reading.explained(place.name):
            model = adapters.merged(model, place.body)
    if processor is None:
        processor = reading.read_processor(place.name, _prepares(place, base), kind)
        if kind == "text":
            with reading.explained(place.name):
                reading.check_vocabulary(processor, vocabulary_size(model))
    model = model.to(device or "cpu").eval().requires_grad_(False)  # type: ignore[arg-type]
    return Loaded(model, processor, said, place.commit)


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
    place = _place(name, revision)
    return reading.read_processor(place.name, _prepares(place), "text")


def load_image_processor(name: str | os.PathLike[str], *, revision: str | None = None) -> Any:
    """Load the image processor that belongs to a model: it resizes, scales and normalizes.

    Parameters
    ----------
    name : str or path
        A bundled name, a folder, or a Hub id.
    revision : str, optional
        A branch, tag or commit on the Hub.

    Returns
    -------
    BaseImageProcessor
        The Pillow one, so that the pixels are the same whether torchvision is installed or not;
        of a timm model, timm's.

    Raises
    ------
    OSError
        If the processor cannot be had; the message says why and what to do.
    """
    place = _place(name, revision)
    return reading.read_processor(place.name, _prepares(place), "image")


def absolute(name: str | os.PathLike[str]) -> str:
    """Make the name of a folder mean the same in any working folder; other names stay.

    Parameters
    ----------
    name : str or path
        A bundled name, a folder, or a Hub id.

    Returns
    -------
    str

    Examples
    --------
    >>> absolute("google/vit-base-patch16")
    'google/vit-base-patch16'
    """
    text = os.fspath(name)
    folder = Path(text).expanduser()
    return str(folder.absolute()) if text and folder.is_dir() else text


def fingerprint(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> tuple[Any, ...]:
    """Identify the state of a model, without loading it.

    Parameters
    ----------
    name : str or path
        A bundled name, a folder, or a Hub id.
    revision : str, optional
        A branch, tag or commit on the Hub.
    cache_dir : str or path, optional
        Where downloads are kept.

    Returns
    -------
    tuple
        Of a folder the files that matter, each with its size in bytes and its time of modification
        in nanoseconds, and those of an adapter's base; of a Hub id the commit in the cache. Empty
        for a bundled model, which comes with the package's version.
    """
    text = absolute(name)
    if text.startswith("bundled/"):
        return ()
    root = Path(text)
    if not root.is_dir():
        return hub.cached_commit(text, revision=revision, cache_dir=cache_dir)
    suffixes = {Path(pattern).suffix for pattern in _SETTINGS} | {".safetensors"}
    paths = sorted(path for path in [*root.glob("*"), *root.glob("*/*")] if path.suffix in suffixes)
    states = [(path, path.stat()) for path in paths if path.is_file()]
    found: tuple[Any, ...] = tuple(
        (path.relative_to(root).as_posix(), state.st_size, state.st_mtime_ns)
        for path, state in states
    )
    # An adapter lies in the folder itself, or in one that modules.json names.
    for config in (path for path, _ in states if path.name == "adapter_config.json"):
        base = files.read_json(config).get("base_model_name_or_path")
        found += fingerprint(base, cache_dir=cache_dir) if isinstance(base, str) else ()
    return found


def vocabulary_size(model: Any) -> int | None:
    """Count the tokens that a model has vectors for; None if it does not say.

    Parameters
    ----------
    model : Module

    Returns
    -------
    int or None
    """
    try:
        return getattr(model.get_input_embeddings(), "num_embeddings", None)
    except (RuntimeError, AttributeError):  # which of two towers has the table is not said
        return None


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


def _place(
    name: str | os.PathLike[str], revision: str | None, *, weights: bool = False, **access: Any
) -> _Place:
    """Find the folder a name stands for; what only the Hub has is brought into the cache."""
    text = absolute(name)
    is_bundled = text.startswith("bundled/")
    folder = bundled.model_folder(text) if is_bundled else Path(text)
    repository = bundled.MINILM_ON_HUB if is_bundled else text
    if folder and text and folder.is_dir():
        place = _Place(text, folder)
    elif Path(text).is_absolute() or text.startswith((".", "~")) or repository.count("/") > 1:
        raise OSError(
            f"{text}: no such folder; give a folder, a Hub id, or {' or '.join(bundled.NAMES)}"
        )
    else:
        place = _snapshot(text, repository, revision, weights, **access)
    with reading.explained(text):
        needed = _weights(place) if weights else []
        is_model = place.is_adapter or (place.body / "config.json").is_file()
    if not is_model:
        raise OSError(
            f"{text}: there is no config.json, so it is no transformers model; choose one that "
            "carries the tag 'transformers' on the Hub"
        )
    if lacking := [file for file in needed if not (place.root / file).is_file()]:
        raise OSError(
            f"{text}: it has no {lacking[0]}; only safetensors are opened, because pickled weights "
            "can run code: convert them (`hf.co/spaces/safetensors/convert`), or choose another "
            "model"
        )
    return place


def _snapshot(
    name: str, repository: str, revision: str | None, weights: bool, **access: Any
) -> _Place:
    """Bring a repository's settings into the cache and, once they name them, its weights."""
    access |= {"kind": "model", "instead": bundled.without_the_hub(name)}
    folder, _ = hub.snapshot(name, repository, _SETTINGS, revision=revision, **access)
    place = _Place(name, folder, commit=folder.name)
    if weights and folder.is_dir():
        with reading.explained(name):
            whole = place.body.relative_to(folder) / "model.safetensors"
            wanted = [*_weights(place), *([] if place.is_adapter else [whole.as_posix()])]
        # At the commit found before, though a branch may have moved on meanwhile.
        hub.snapshot(name, repository, wanted, revision=folder.name, **access)
    return place


def _weights(place: _Place) -> list[str]:
    """Name the files with weights, as seen from the root."""
    own = ["adapter_model.safetensors"] if place.is_adapter else files.weight_files(place.body)
    folder = place.body.relative_to(place.root)
    return [(folder / file).as_posix() for file in own] + published.weights_behind(place.root)


def _base(place: _Place, *, weights: bool = False, **access: Any) -> _Place:
    """Find the model that an adapter belongs to; any other model is its own base."""
    if not place.is_adapter:
        return place
    with reading.explained(place.name):
        name, revision = files.base_of(place.body)
        if place.commit and Path(name).expanduser().is_dir():
            raise files.Refusal(f"its base is the folder {name}; on the Hub it has to be a Hub id")
    if name == bundled.MINILM_ON_HUB and revision is None:
        name = bundled.NAMES[0]
    base = _place(name, revision, weights=weights, **access)
    if base.is_adapter:
        raise ValueError(f"{place.name}: its base {name} is an adapter, too; merge that one first")
    return base


def _prepares(place: _Place, base: _Place | None = None) -> Path:
    """Find the folder with the preprocessor: where an adapter has none, its base's."""
    own = "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"
    if not place.is_adapter or any((place.body / file).is_file() for file in own):
        return place.body
    return (base or _base(place)).body
