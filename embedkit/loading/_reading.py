"""What transformers reads from a folder, checked; and what it raises, in one sentence."""

import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForTextEncoding,
    AutoTokenizer,
    PreTrainedModel,
    TimmWrapperImageProcessor,
)
from transformers.utils import logging

from embedkit.loading import _files as files

_one_load_at_a_time = threading.Lock()


def read_model(
    name: str, folder: Path, dtype: torch.dtype, options: Mapping[str, Any]
) -> PreTrainedModel:
    """Load a whole model from a folder, and refuse one that is not what its files say."""
    with explained(name):
        config = files.read_json(folder / "config.json")
        tensors = files.tensor_names([folder / each for each in files.weight_files(folder)])
        files.check_sizes(config, len(tensors))
    if "pretrained_cfg" in config and not (find_spec("timm") and find_spec("torchvision")):
        raise OSError(
            f"{name}: it is a model of timm, which needs the packages timm and torchvision; "
            "install both (pip install timm torchvision)"
        )
    options = dict(options)
    if "pretrained_cfg" in config:
        settings: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
        # Newer timm notes here how many classes the head has, and transformers sets it to none.
        given = settings.model_args or {}
        settings.model_args = {key: given[key] for key in given if key != "num_classes"}
        options["config"] = settings
    encoder_alone = config.get("model_type") in ("t5", "mt5", "umt5") and not any(
        name.startswith("decoder.") for name in tensors
    )
    kind = AutoModelForTextEncoding if encoder_alone else AutoModel
    with quiet(), explained(name):
        model, info = kind.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,  # by default it asks, and a yes would run it
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
        _check_weights(model, info)
    return model


def _check_weights(model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    """Refuse weights that are missing, left over or not finite."""
    # A pooler comes after the hidden states, so nothing is lost where a repository has none.
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if missing:
        raise files.Refusal(
            f"{len(missing)} of its tensors are missing ({missing[0]}, …) and would be random; use "
            "a repository that holds the whole model"
        )

    lists = {
        name: len(module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
    }

    def is_another_layer(name: str) -> bool:
        return any(
            int(found[1]) >= lists.get(name[: found.start()], math.inf)
            for found in re.finditer(r"\.(\d+)(?=\.)", name)
        )

    prefix = f"{model.base_model_prefix}."
    extra = [key for key in info["unexpected_keys"] if is_another_layer(key.removeprefix(prefix))]
    if extra:
        raise files.Refusal(
            f"it holds more layers than its config.json says ({min(extra)}, …), and without them "
            "the vectors differ; correct its config.json, or use another repository"
        )
    for name, values in model.named_parameters():
        if not torch.isfinite(values).all():
            raise files.Refusal(f"its {name} holds NaN or infinite values; download it again")


def check_vocabulary(tokenizer: Any, rows: int | None) -> None:
    """Refuse a tokenizer whose ids run past the rows of the model's table of tokens."""
    size = getattr(tokenizer, "vocab_size", None)
    if isinstance(rows, int) and isinstance(size, int) and size > rows:
        raise files.Refusal(
            f"its tokenizer knows {size} tokens, and its table of tokens has {rows} rows; they do "
            "not belong together"
        )


def read_processor(name: str, folder: Path, kind: Literal["text", "image"]) -> Any:
    """Load the tokenizer or the image processor that lies in a folder."""
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    with quiet(), explained(name, "tokenizer" if kind == "text" else "image processor"):
        if kind == "text":
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
            # Where the files are missing, transformers makes one that knows no word.
            if set(tokenizer.get_vocab()) <= {*tokenizer.all_special_tokens, "▁"}:
                raise ValueError("its files are missing, so it has no vocabulary")
            return tokenizer
        if "pretrained_cfg" in files.read_json(folder / "config.json"):
            return TimmWrapperImageProcessor.from_pretrained(folder, **options)
        return AutoImageProcessor.from_pretrained(folder, backend="pil", **options)


@contextmanager
def explained(name: str, part: str = "model") -> Iterator[None]:
    """Turn what is raised while a model loads into a sentence: the cause and the next step."""
    try:
        yield
    except files.Refusal as error:
        raise ValueError(f"{name}: {error}") from error
    except Exception as error:  # a broken configuration makes the libraries raise all kinds
        reason = " ".join(str(error).split())[:300] or "no reason given"
        if "trust_remote_code" in str(error):
            cause = "it needs code of its own, which embedkit does not run; choose another model"
        elif part != "model":
            cause = f"it has no {part} that loads; pass one as `processor=` ({reason})"
        else:
            cause = f"the model does not load ({type(error).__name__}: {reason})"
        raise OSError(f"{name}: {cause}") from error


@contextmanager
def quiet() -> Iterator[None]:
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
