"""What the authors of a model say in its repository about using it, as sentence-transformers does.

``modules.json`` lists what follows on the model: pooling, dense layers, normalization.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from embedkit.loading._files import Refusal, inside, read_json

_MODELS = ("Transformer", "CLIPModel")
_POOLINGS = {"lasttoken": "last", "cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max"}
_ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")


@dataclass(frozen=True)
class Published:
    """What a model's authors say in its repository about using it.

    Attributes
    ----------
    pooling : str, optional
        ``"cls"``, ``"mean"``, ``"max"``, ``"last"``, or another name where the authors pool in a
        way of their own; None if they say nothing.
    normalize : bool
        Whether vectors are scaled to length 1.
    max_length : int, optional
        How many tokens are read; None if they say nothing.
    prompts : mapping of str to str
        What to put before a text, by the use it is for.
    default_prompt : str, optional
        Which of `prompts` is used where none is named.
    include_prompt : bool
        Whether the prompt's tokens are pooled with the others.
    lower_case : bool
        Whether texts are put into lower case first.
    dense : tuple of torch.nn.Module
        Layers that follow on the pooling, in order.
    """

    pooling: str | None = None
    normalize: bool = False
    max_length: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    include_prompt: bool = True
    lower_case: bool = False
    dense: tuple[nn.Module, ...] = ()

    def as_read(self, text: str) -> str:
        """Give a text as the model was trained to read it."""
        return text.lower() if self.lower_case else text


def modules(root: Path) -> list[tuple[str, str]]:
    """List kind and folder of a repository's modules; without a list, the model alone."""
    if not (root / "modules.json").is_file():
        return [("Transformer", "")]
    listed = read_json(root / "modules.json", list)
    try:
        found = [(str(each["type"]).rpartition(".")[2], str(each["path"])) for each in listed]
    except (TypeError, KeyError) as error:
        raise Refusal("its modules.json is no list of modules with type and path") from error
    for _, path in found:
        inside(root, path)
    kinds = [kind for kind, _ in found if kind != "Dropout"]  # which is for training alone
    known = [*_MODELS, "Pooling", "Dense", "Normalize"]
    unknown = [kind for kind in kinds if kind not in known]
    # One model, one pooling, then dense layers, then normalization.
    places = [0 if kind in _MODELS else known.index(kind) for kind in kinds if kind in known]
    if unknown or places != sorted(places) or places[:1] != [0] or places.count(0) > 1:
        raise Refusal(
            f"its modules.json lists {', '.join(kinds) or 'nothing'}; embedkit applies a "
            "Transformer, then Pooling, Dense and Normalize. Choose another model, or give its "
            "Transformer's folder"
        )
    return found


def weights_behind(root: Path) -> list[str]:
    """Name the files with weights that follow on the pooling."""
    return [f"{path}/model.safetensors" for kind, path in modules(root) if kind == "Dense"]


def read(root: Path) -> Published:
    """Read what a repository says."""
    parts = modules(root)
    body = root / parts[0][1]
    said: dict[str, Any] = {}
    lengths = [*sorted(body.glob("sentence_*_config.json"))]
    if lengths:
        found = read_json(lengths[0])
        said["max_length"] = found.get("max_seq_length")
        said["lower_case"] = bool(found.get("do_lower_case"))
    if (root / "config_sentence_transformers.json").is_file():
        found = read_json(root / "config_sentence_transformers.json")
        said["prompts"] = dict(found.get("prompts") or {})
        said["default_prompt"] = found.get("default_prompt_name")
    for kind, path in parts:
        if kind == "Pooling":
            found = read_json(root / path / "config.json")
            said["pooling"] = _pooling(found)
            said["include_prompt"] = bool(found.get("include_prompt", True))
    said["normalize"] = any(kind == "Normalize" for kind, _ in parts)
    said["dense"] = tuple(_dense(root / path) for kind, path in parts if kind == "Dense")
    return Published(**said)


def _pooling(config: Mapping[str, Any]) -> str:
    """Name the pooling; several at once are joined by a plus."""
    modes = config.get("pooling_mode") or [
        key.removeprefix("pooling_mode_")
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value is True
    ]
    modes = [modes] if isinstance(modes, str) else modes
    return "+".join(_POOLINGS.get(str(mode), str(mode)) for mode in modes) or "mean"


def _dense(folder: Path) -> nn.Module:
    """Build one dense layer from its safetensors."""
    config = read_json(folder / "config.json")
    if not (folder / "model.safetensors").is_file():
        raise Refusal(
            f"its layer {folder.name} has no safetensors weights; pickled weights can run code "
            "when opened, so choose another model"
        )
    weights = load_file(folder / "model.safetensors")
    activation = str(config.get("activation_function", "torch.nn.Tanh"))
    name = activation.rpartition(".")[2]
    reads = config.get("module_input_name") or "sentence_embedding"
    if name not in _ACTIVATIONS or not activation.startswith("torch.nn.") or "token" in reads:
        raise Refusal(
            f"its layer {folder.name} applies {activation} to {reads}; embedkit applies "
            f"{', '.join(_ACTIVATIONS)} to the pooled vector"
        )
    weight = weights.get("linear.weight")
    if weight is None or weight.ndim != 2 or {*weights} - {"linear.weight", "linear.bias"}:
        raise Refusal(f"its layer {folder.name} holds {', '.join(weights)}, not one dense layer")
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias="linear.bias" in weights)
    layer = nn.Sequential(linear, getattr(nn, name)())
    layer.load_state_dict({key.replace("linear", "0"): value for key, value in weights.items()})
    if not all(torch.isfinite(value).all() for value in weights.values()):
        raise Refusal(f"its layer {folder.name} holds NaN or infinite weights")
    return layer.float().eval().requires_grad_(False)
