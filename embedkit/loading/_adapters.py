"""LoRA adapters: small matrices that, added to the weights of a base model, make a new model.

Hu et al. (2021), "LoRA: Low-Rank Adaptation of Large Language Models".
"""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, LoraModel, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedModel

from embedkit.loading._files import Refusal, read_json

# What shapes the matrices. The other settings are about training, or would import other code.
_SETTINGS = (
    "alpha_pattern", "bias", "exclude_modules", "fan_in_fan_out", "layers_pattern",
    "layers_to_transform", "lora_alpha", "r", "rank_pattern", "target_modules", "use_dora",
    "use_rslora",
)  # fmt: skip


def merged(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Add an adapter to its base model."""
    weights = load_file(folder / "adapter_model.safetensors")
    if not all(torch.isfinite(value).all() for value in weights.values()):
        raise Refusal("its adapter holds NaN or infinite weights")
    config = read_json(folder / "adapter_config.json")
    settings: dict[str, Any] = {key: config[key] for key in _SETTINGS if key in config}
    adapted: Any = LoraModel(model, LoraConfig(**settings), "default")
    # Trained below a head, the base stands under its prefix: "bert.encoder.…".
    below = model.base_model_prefix
    start = "base_model.model." + (f"{below}." if not hasattr(model, below) else "")
    short = {
        key.removeprefix(start).removeprefix("base_model.model."): value
        for key, value in weights.items()
    }
    # What is no part of the base belongs to the head, and has no part in the hidden states.
    parts = {name for name, _ in model.named_children()}
    weights = {
        f"model.{key}": value for key, value in short.items() if key.partition(".")[0] in parts
    }
    result: Any = set_peft_model_state_dict(adapted, weights)
    lost = [key for key in result.missing_keys if "lora_" in key and "pooler" not in key]
    lost += result.unexpected_keys
    if lost or not weights:
        raise Refusal(
            f"its adapter does not fit the base model ({lost[0] if lost else 'no layer'} has no "
            "counterpart); it was made for a different model"
        )
    return adapted.merge_and_unload()
