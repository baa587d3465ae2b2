"""A tiny random model of every architecture in transformers, made from its configuration class."""

import dataclasses
import functools
import inspect
import re
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from tests.conftest import _byte_bpe, _unigram, _word_piece

SIDE = 64  # of the square of pixels that a model of images gets
# A model with more parameters than this has a size that no rule below has shrunk.
MOST_PARAMETERS = 2_000_000

# What a whole number in a configuration becomes, by the field's name: the first rule that matches.
_NUMBERS = {
    r"num_channels|.*_token_id|.*_token_index|.*_groups|num_hidden_groups": None,
    r"(.*_)?vocab_size(_.*)?": 0,  # the tokenizer's
    r"qk_rope_head_dim|rotary_dim": 4,
    r".*head_dim|d_kv|d_head|.*_head_size|attention_head_size": 8,
    r".*_lora_rank": 16,
    r".*key_value_heads|num_kv_heads|n_head_kv|kv_n_heads": 4,
    r"n_heads?|num_heads|.*_heads": 4,
    r"(.*_)?hidden_size|d_model|n_embd|embed_dim|.*embedding_size|(.*_)?hidden_dim|embedding_dim"
    r"|dim|emb_dim|d_embed|projection_dim|out_hidden_size|output_dim|.*_projection_dim": 32,
    r".*intermediate_size|.*ffn_dim|d_ff|n_inner|d_inner|ffn_hidden_size|feed_forward_size"
    r"|dim_feedforward|.*feedforward_dim|mlp_dim|.*intermediate_dim": 64,
    r"(.*_)?layers|n_layers?|(.*_)?depth|n_layer": 2,
    r"(.*_)?num_(local_)?experts|n_routed_experts|.*num_experts": 4,
    r"index_topk": 128,
    r".*experts_per_tok(en)?|.*top_?k|moe_k|num_selected_experts": 2,
    r"max_position_embeddings|n_positions|(.*_)?max_seq_len(gth)?|max_source_positions"
    r"|max_2d_position_embeddings|context_length|max_target_positions|seq_length": 128,
    r"sliding_window(_size)?|attention_window|local_attention|(.*_)?chunk_size|block_size": 8,
    r"(.*_)?image_size|input_size|img_size|crop_size": 64,
    r"(.*_)?patch_size": 16,
    r"num_query_tokens|num_queries|num_latents|codebook_size": 8,
    r".*state_size|.*d_state": 8,
}
# And what a list of them becomes, given its length.
_LISTS = {
    r"depths|num_layers|layers|num_blocks": lambda n: [1] * n,
    r"hidden_sizes|embed_dims?|.*_hidden_sizes|dims|widths": lambda n: [
        16 * (i + 1) for i in range(n)
    ],
    r"num_heads|num_attention_heads": lambda n: [2] * n,
    r"image_size|input_size": lambda n: [64] * n,
}


# Where a rule does not do: fields of the configuration, by model type. `None` for a sub-config.
def _rope(**more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, **more}}


_MROPE = _rope(mrope_section=[1, 1, 2])
_SWIN = {"depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "patch_size": 4, "embed_dim": 16}
_HYBRID = {"num_hidden_layers": 4}
_ONE_GROUP = {"n_group": 1, "topk_group": 1}
OVERRIDES: dict[str, dict[str, Any]] = {
    "align": {"vision_config": {"width_coefficient": 0.25, "depth_coefficient": 0.25}},
    "axk1": _ONE_GROUP,
    "bailing_hybrid": {**_HYBRID, **_ONE_GROUP},
    "bamba": {**_HYBRID, "attn_layer_indices": [1]},
    "bit": {"embedding_size": 32, "hidden_sizes": [32, 32, 64, 64], "num_groups": 8},
    "bridgetower": {"vision_config": {"hidden_size": 64}},
    "chameleon": {"vocabulary_map": {"<image>": 3}},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "convnext": {"patch_size": 4},
    "convnextv2": {"patch_size": 4},
    "cpmant": {"prompt_types": 2, "segment_types": 2},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dinov3_convnext": {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]},
    "donut-swin": _SWIN,
    "dots1": {"n_routed_experts": 4},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320},
    "esm": {"pad_token_id": 1, "vocab_size": 400, "mask_token_id": 4},
    "funnel": {"block_sizes": [1, 1, 1]},
    "gemma3n_text": {"num_hidden_layers": 10, "num_kv_shared_layers": 0},
    "glm46v": {"text_config": _MROPE},
    "glm4v": {"text_config": _MROPE},
    "glm4v_moe": {"text_config": _rope(mrope_section=[0, 1, 1])},
    "glm4v_moe_text": _rope(mrope_section=[0, 1, 1]),
    "glm4v_text": _MROPE,
    "glm_image": {"text_config": _MROPE},
    "glm_image_text": _MROPE,
    "glm_ocr": {"text_config": _MROPE},
    "glm_ocr_text": _MROPE,
    "glmga": {"text_config": _MROPE},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    "layoutlmv3": {"coordinate_size": 5, "shape_size": 6},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lilt": {"hidden_size": 48},
    "led": {"attention_window": 64},
    "longformer": {"attention_window": 64},
    "longcat_flash": {"head_dim": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "maskformer-swin": _SWIN,
    "mimo_v2_flash": _ONE_GROUP,
    "mobilenet_v1": {"depth_multiplier": 0.25},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "mobilevitv2": {"width_multiplier": 0.25},
    "nemotron_h": {"n_groups": 1},
    "paddleocr_vl": {"text_config": _MROPE},
    "qwen2_5_vl": {"text_config": _MROPE},
    "qwen2_5_vl_text": _MROPE,
    "qwen2_vl": {"text_config": _MROPE},
    "qwen2_vl_text": _MROPE,
    "radio": {"max_img_size": 64},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "axial_pos_shape": [8, 16],
        "axial_pos_embds_dim": [16, 16],
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
    },
    "swiftformer": {"patch_size": 4},
    "swin": _SWIN,
    "swin2sr": {**_SWIN, "patch_size": 8},
    "swinv2": {**_SWIN, "pretrained_window_sizes": [0, 0], "window_size": 8},
    "xmod": {"default_language": "en_XX"},
    "zamba": {**_HYBRID, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]},
    "zamba2": {**_HYBRID, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]},
}
for _name in ("qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "lfm2", "kimi_linear", "jamba"):
    OVERRIDES[_name] = _HYBRID


def model_types() -> list[str]:
    """List every model type that `AutoModel` opens."""
    return sorted(MODEL_MAPPING_NAMES)


def model_classes(model_type: str) -> list[Any]:
    """Give the classes with the hidden states of a model type, if they read texts or images."""
    names = MODEL_MAPPING_NAMES[model_type]
    classes = [getattr(tf, name) for name in ([names] if isinstance(names, str) else names)]
    reads = {"input_ids", "pixel_values"}
    return [each for each in classes if reads & inspect.signature(each.forward).parameters.keys()]


@functools.cache
def tokenizers() -> dict[str, Any]:
    """Make the kinds of tokenizers that there are, named by what they put around a text."""
    vocab, merges = _byte_bpe()
    generic = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    generic.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    generic.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", vocab["<s>"]), ("</s>", vocab["</s>"])]
    )
    return {
        "[CLS] text [SEP]": _word_piece(),
        "<s> text </s>": tf.RobertaTokenizer(vocab=vocab, merges=merges, model_max_length=512),
        "text </s>": tf.T5Tokenizer(vocab=_unigram(), extra_ids=0, model_max_length=512),
        "text </s>, no mask": tf.T5Tokenizer(
            vocab=_unigram(), extra_ids=0, model_max_length=512, model_input_names=["input_ids"]
        ),
        "text": tf.GPT2Tokenizer(vocab=vocab, merges=merges, model_max_length=512),
        # As ModernBERT's: not a class of its own, but a file of rules.
        "<s> text </s>, generic": tf.PreTrainedTokenizerFast(
            tokenizer_object=generic, cls_token="<s>", sep_token="</s>", pad_token="<pad>",
            bos_token="<s>", eos_token="</s>", mask_token="<mask>", model_max_length=512,
        ),
    }  # fmt: skip


def tokenizer_of(model_type: str) -> Any:
    """Choose the tokenizer of the kind that a model type was published with."""
    name = TOKENIZER_MAPPING_NAMES.get(model_type) or ""
    kinds = tokenizers()
    if model_type.startswith("siglip"):
        return kinds["text </s>, no mask"]
    if re.search("T5|Unigram", name):
        return kinds["text </s>"]
    if re.search("Roberta|Bart|CLIP|Longformer|LED|Mvp|Esm|Camembert|Luke|MPNet|Markup", name):
        return kinds["<s> text </s>"]
    if re.search("Bert|LayoutLM|Lxmert|Electra|Funnel|DPR|Tapas|Splinter", name):
        return kinds["[CLS] text [SEP]"]
    if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return kinds["<s> text </s>, generic"]
    return kinds["text"]


def tiny_model(model_type: str, model_class: Any, tokenizer: Any) -> nn.Module:
    """Build a model of tiny sizes and random weights; no layer is at 0 or 1."""
    config = _tiny_config(CONFIG_MAPPING[model_type], tokenizer, OVERRIDES.get(model_type, {}))
    if _is_large(config.to_dict()):
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in model_class(config).parameters())
        if size > MOST_PARAMETERS:
            raise MemoryError(f"it still has {size:,} parameters")
    torch.manual_seed(0)
    model = model_class(config).float().eval().requires_grad_(False)
    for parameter in model.parameters():
        spread = min(0.2, (parameter[0].numel() or 1) ** -0.5) if parameter.ndim > 1 else 0.1
        parameter += spread * torch.randn_like(parameter)
    return model


def _is_large(settings: Any, name: str = "") -> bool:
    """Say whether a configuration names a size that may make the model large."""
    if isinstance(settings, dict):
        return any(_is_large(value, str(key)) for key, value in settings.items())
    if isinstance(settings, (list, tuple)):
        return len(settings) > 24 or any(_is_large(value, name) for value in settings)
    counts = isinstance(settings, int) and not re.search("token|theta|index|position", name)
    return counts and settings > 420


def _tiny_config(config_class: Any, tokenizer: Any, overrides: dict[str, Any]) -> Any:
    settings: dict[str, Any] = {}
    parts = getattr(config_class, "sub_configs", {})
    ready = config_class() if parts else None
    for field in dataclasses.fields(config_class):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if field.name in overrides:
            continue
        if field.name in parts:
            part = getattr(ready, field.name)
            if part is not None:
                settings[field.name] = _tiny_config(type(part), tokenizer, {})
        elif field.name == "head_dim":
            settings[field.name] = 8
        elif isinstance(default, bool):
            continue
        elif isinstance(default, int) and default > 1:
            value = _matching(_NUMBERS, field.name)
            if value is not None:
                settings[field.name] = value or (len(tokenizer) if tokenizer else 32)
        elif isinstance(default, (list, tuple)) and default and isinstance(default[0], int):
            make = _matching(_LISTS, field.name)
            if make is not None:
                settings[field.name] = make(len(default))
    names = {field.name for field in dataclasses.fields(config_class)}
    for name in ("pad", "bos", "eos"):
        if tokenizer and f"{name}_token_id" in names:
            settings[f"{name}_token_id"] = getattr(tokenizer, f"{name}_token_id") or 0
    for name, value in overrides.items():
        if isinstance(value, dict) and name in parts:
            value = _tiny_config(type(getattr(ready, name)), tokenizer, value)
        settings[name] = value
    return config_class(**settings)


def _matching(rules: dict[str, Any], name: str) -> Any:
    return next((value for rule, value in rules.items() if re.fullmatch(rule, name)), None)
