"""Models and settings that people bring: right, or refused in one sentence."""

import inspect
import json
import os
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
import transformers as tf
from datasets import Dataset
from datasets.fingerprint import Hasher
from PIL import Image
from safetensors.torch import save_file

import embedkit as ek
from embedkit import encoders
from embedkit.encoders import _tensors as tensors
from tests.conftest import SIZES, TEXT, VISION, _byte_bpe, _pixels, _unigram, _word_piece, picture

SHORT = ["the kettle boils", "a very bad novel", "unread", "in paris jordan runs quickly " * 4]


def close(ours, theirs, atol=1e-5) -> None:
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else np.asarray(theirs)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


def shaken(model):
    """Move every parameter, so that no layer is at 0 or 1."""
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(autouse=True)
def _same_weights():
    torch.manual_seed(0)


# Signatures


@pytest.mark.parametrize("kind", [ek.ImageEncoder, ek.TextEncoder, ek.WordEncoder])
def test_a_signature_shows_every_parameter_and_its_default(kind):
    parameters = inspect.signature(kind).parameters
    assert not any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    assert {"layers", "device", "dtype", "normalize", "token", "model_kwargs"} <= set(parameters)
    documented = sections(kind.__doc__, "Parameters")
    assert set(documented) == set(parameters)
    for name, each in parameters.items():
        if each.default not in (None, inspect.Parameter.empty):
            shown = repr(each.default).replace("'", '"')
            assert f"default={shown}" in documented[name][0], name


def sections(text: str, title: str) -> dict[str, tuple[str, str]]:
    """Read a section of a docstring: name -> its type, and what is said of it."""
    body = inspect.cleandoc(text).split(f"{title}\n{'-' * len(title)}\n")[1]
    body = re.split(r"\n\n\w[\w ]*\n---", body)[0]
    entries = re.split(r"\n(?=\w)", body.strip())
    return {
        name: (line, said)
        for entry in entries
        for line, _, said in [entry.partition("\n")]
        for name in [line.partition(" : ")[0]]
    }


def test_what_encoders_share_is_said_in_the_same_words():
    texts, words, images = (
        sections(kind.__doc__, "Parameters")
        for kind in (ek.TextEncoder, ek.WordEncoder, ek.ImageEncoder)
    )
    shared = set(texts) & set(words) & set(images) - {"model", "processor", "normalize"}
    assert len(shared) == 11
    for name in shared:
        assert texts[name] == words[name] == images[name]


@pytest.mark.slow
def test_the_base_class_needs_no_torch_until_it_is_asked_for():
    code = (
        "import sys, embedkit.encoders, embedkit.encoders.api; print('torch' in sys.modules); "
        "print(embedkit.encoders.Encoder.__name__)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "Encoder"]
    with pytest.raises(AttributeError, match="no attribute 'Encodr'"):
        _ = encoders.Encodr


# A name alone


@pytest.mark.slow
def test_gpt2_takes_the_last_token_and_says_so(tiny):
    encoder = ek.TextEncoder(tiny("gpt2"))
    assert "pooling='last' (only the last token sees the whole text)" in repr(encoder)
    close(encoder.encode(SHORT), ek.TextEncoder(tiny("gpt2"), pooling="last").encode(SHORT))
    assert "pooling='mean' (the model has no [CLS])" in repr(ek.TextEncoder(tiny("t5")))
    assert "pooling='cls' (default)" in repr(ek.TextEncoder(tiny("bert")))
    assert "pooling='mean' (default)" in repr(ek.ImageEncoder(tiny("vit")))


@pytest.fixture
def published(tiny, tmp_path):
    """Make a repository of sentence-transformers with a dense layer, prompts and lower case."""

    def make(*, include_prompt=True, mode="mean", normalize=True):
        model = tf.AutoModel.from_pretrained(tiny("bert"))
        tokenizer = tf.AutoTokenizer.from_pretrained(tiny("bert"))
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        parts = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense")]
        parts += [("Normalize", "3_Normalize")] if normalize else []
        files = {
            "modules.json": [
                {"idx": i, "name": str(i), "path": path,
                 "type": f"sentence_transformers.models.{kind}"}
                for i, (kind, path) in enumerate(parts)
            ],
            "sentence_bert_config.json": {"max_seq_length": 24, "do_lower_case": True},
            "config_sentence_transformers.json": {
                "prompts": {"query": "the query ", "document": ""},
                "default_prompt_name": None,
            },
            "1_Pooling/config.json": {
                "word_embedding_dimension": 32, f"pooling_mode_{mode}": True,
                "include_prompt": include_prompt,
                **{f"pooling_mode_{other}": False for other in
                   {"cls_token", "mean_tokens", "max_tokens"} - {mode}},
            },
            "2_Dense/config.json": {
                "in_features": 32, "out_features": 20, "bias": True,
                "activation_function": "torch.nn.modules.activation.Tanh",
            },
        }  # fmt: skip
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(json.dumps(content))
        weights = {"linear.weight": torch.randn(20, 32) / 5, "linear.bias": torch.randn(20)}
        save_file(weights, tmp_path / "2_Dense" / "model.safetensors")
        return str(tmp_path)

    return make


@pytest.mark.parametrize("include_prompt", [True, False])
def test_what_a_repository_publishes_is_what_sentence_transformers_gives(published, include_prompt):
    from sentence_transformers import SentenceTransformer  # it takes seconds

    folder = published(include_prompt=include_prompt, mode="mean_tokens")
    theirs, encoder = SentenceTransformer(folder, device="cpu"), ek.TextEncoder(folder)
    assert (encoder.dim, encoder.max_length, encoder.normalize) == (20, 24, True)
    texts = [*SHORT[:3], "The KETTLE boils in PARIS"]
    close(encoder.encode(texts), theirs.encode(texts))
    named = theirs.encode(texts, prompt_name="query")
    close(encoder.encode(texts, prompt="query"), named)
    close(encoder.encode(texts, prompt="the query "), named)
    close(encoder.encode(texts, prompt="document"), theirs.encode(texts))
    assert np.abs(named - theirs.encode(texts)).max() > 0.01
    with pytest.raises(ValueError, match=r"no prompt of that name.*has query, document; or give"):
        encoder.encode(texts, prompt="qeury")
    data = Dataset.from_dict({"text": texts})
    mapped = data.map(encoder, batched=True, fn_kwargs={"prompt": "query"})
    close(np.array(mapped["embedding"], np.float32), named)


def test_a_default_prompt_is_used_until_another_is_asked_for(published):
    folder = published(mode="mean_tokens")
    config = Path(folder) / "config_sentence_transformers.json"
    said = json.loads(config.read_text()) | {"default_prompt_name": "query"}
    config.write_text(json.dumps(said))
    encoder = ek.TextEncoder(folder)
    close(encoder.encode(SHORT), encoder.encode(SHORT, prompt="query"))
    assert np.abs(encoder.encode(SHORT) - encoder.encode(SHORT, prompt="")).max() > 0.01


@pytest.mark.slow
def test_a_cut_vector_is_scaled_again_where_the_model_scales(published):
    folder = published(mode="mean_tokens")
    whole, cut = ek.TextEncoder(folder), ek.TextEncoder(folder, dim=8)
    assert cut.dim == 8
    first = whole.encode(SHORT)[:, :8]
    close(cut.encode(SHORT), first / np.linalg.norm(first, axis=1, keepdims=True))
    close(ek.TextEncoder(folder, dim=8, pooling="cls").encode(SHORT),
          ek.TextEncoder(folder, pooling="cls").encode(SHORT)[:, :8])  # fmt: skip
    with pytest.raises(ValueError, match=r"dim=21\): give a number from 1 to 20"):
        ek.TextEncoder(folder, dim=21)
    with pytest.raises(ValueError, match=r"dim=0\): give a whole number of 1 or more"):
        ek.TextEncoder(folder, dim=0)


def test_a_named_pooling_is_taken_alone_and_other_settings_override(published):
    folder = published(mode="mean_tokens")
    plain = ek.TextEncoder(folder, pooling="mean")
    assert (plain.dim, plain.normalize, plain.pooling_reason) == (32, False, "")
    assert ek.TextEncoder(folder, normalize=False).normalize is False
    assert ek.TextEncoder(folder, max_length=512).max_length == 512


# Probe, don't list

TRIED = {
    "fnet": (tf.FNetModel, tf.FNetConfig, {}),
    "convbert": (tf.ConvBertModel, tf.ConvBertConfig, {"embedding_size": 32}),
    "mobilebert": (
        tf.MobileBertModel, tf.MobileBertConfig,
        {"embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    ),
    "nystromformer": (tf.NystromformerModel, tf.NystromformerConfig, {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", TRIED)
@pytest.mark.filterwarnings("ignore")
def test_where_padding_changes_vectors_only_equal_lengths_share_a_batch(kind):
    model_class, config_class, more = TRIED[kind]
    tokenizer = _word_piece()
    model = shaken(model_class(config_class(**TEXT, **more, vocab_size=len(tokenizer))))
    encoder = ek.TextEncoder(model, processor=tokenizer, pooling="mean")
    assert encoder.facts["equal_lengths"]
    by_hand = []
    for text in SHORT:
        inputs = tokenizer(text, return_tensors="pt")
        accepted = inspect.signature(model.forward).parameters
        with torch.no_grad():
            state = model(**{k: v for k, v in inputs.items() if k in accepted}).last_hidden_state
        by_hand.append(state[0].mean(0).numpy())
    for size in (None, 1, 3):
        close(encoder.encode(SHORT, batch_size=size), by_hand)
    assert not ek.TextEncoder(
        shaken(tf.BertModel(tf.BertConfig(**TEXT, vocab_size=len(tokenizer)))), processor=tokenizer
    ).facts["equal_lengths"]


def test_a_pooling_that_forgets_the_mask_reads_equal_lengths(tiny):
    encoder = ek.TextEncoder(tiny("bert"), pooling=lambda hidden, mask: hidden.mean(1))
    close(encoder.encode(SHORT), ek.TextEncoder(tiny("bert"), pooling="mean").encode(SHORT))


def test_a_model_that_masks_at_random_is_refused():
    model = shaken(tf.ViTMAEModel(tf.ViTMAEConfig(**VISION, mask_ratio=0.5)))
    with pytest.raises(ValueError, match=r"ImageEncoder: ViTMAEModel gives the same input another"):
        ek.ImageEncoder(model, processor=_pixels("ViT"))


def test_a_model_without_finite_vectors_is_refused_and_a_vector_is_never_nan_in_silence(tiny):
    model = tf.AutoModel.from_pretrained(tiny("bert"))
    tokenizer = tf.AutoTokenizer.from_pretrained(tiny("bert"))
    encoder = ek.TextEncoder(model, processor=tokenizer)
    row = tokenizer.convert_tokens_to_ids("jordan")
    model.embeddings.word_embeddings.weight.data[row] = float("inf")
    with pytest.warns(UserWarning, match=r"1 of 4 vectors hold NaN or infinity \(row 3\)"):
        encoder.encode(SHORT)
    words = ek.WordEncoder(model, processor=tokenizer)
    with pytest.warns(UserWarning, match=r"hold NaN or infinity \(rows 3-4\)"):
        words.encode(["the kettle boils", "jordan sings"])
    model.embeddings.LayerNorm.weight.data[:] = float("nan")
    with pytest.raises(ValueError, match="TextEncoder: the vectors of BertModel hold NaN or infin"):
        ek.TextEncoder(model, processor=tokenizer)


def test_a_funnel_cannot_read_the_shortest_texts_and_is_refused():
    tokenizer = _word_piece()
    config = tf.FunnelConfig(
        vocab_size=len(tokenizer), block_sizes=[1, 1, 1], d_model=32, n_head=4, d_head=8, d_inner=64
    )
    with pytest.raises(ValueError, match=r"TextEncoder: FunnelModel does not run on .* \(1, 2\)"):
        ek.TextEncoder(tf.FunnelModel(config).eval(), processor=tokenizer)


def test_what_was_learned_travels_with_the_pickle(tiny, monkeypatch):
    encoder = ek.TextEncoder(tiny("bert"), pooling="mean")
    monkeypatch.setattr(ek.TextEncoder, "embed_example", None)  # a call would fail
    monkeypatch.setattr(ek.TextEncoder, "look", None)
    again = pickle.loads(pickle.dumps(encoder))
    assert again.facts == encoder.facts
    np.testing.assert_array_equal(again.encode(SHORT), encoder.encode(SHORT))


# Vision


def dinov3_vit():
    config = tf.DINOv3ViTConfig(
        **SIZES, intermediate_size=64, image_size=32, patch_size=8, num_register_tokens=4,
        initializer_range=0.4,
    )  # fmt: skip
    return tf.DINOv3ViTModel(config), 5


def dinov3_convnext():
    config = tf.DINOv3ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    return tf.DINOv3ConvNextModel(config), 1


def beit():
    return tf.BeitModel(tf.BeitConfig(**VISION, use_absolute_position_embeddings=True)), 1


def yolos():
    return tf.YolosModel(tf.YolosConfig(**{**VISION, "image_size": [32, 32]},
                                        num_detection_tokens=7)), 1  # fmt: skip


def pvt():
    config = tf.PvtConfig(
        image_size=32, hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, num_attention_heads=[1] * 4
    )
    return tf.PvtModel(config), 1


@pytest.mark.parametrize("make", [dinov3_vit, dinov3_convnext, beit, yolos, pvt])
def test_patches_are_told_from_special_tokens_by_trying(make, images):
    model, special = make()
    shaken(model)
    processor = _pixels("ViT")
    with torch.no_grad():
        state = model(**processor(images, return_tensors="pt")).last_hidden_state
    patches = state[:, special : special + 16] if make is yolos else state[:, special:]
    for pooling, by_hand in (
        ("auto", state.mean(1)), ("mean", state.mean(1)), ("patch_mean", patches.mean(1)),
        ("cls", state[:, 0]), ("max", state.amax(1)),
    ):  # fmt: skip
        encoder = ek.ImageEncoder(model, processor=processor, pooling=pooling)
        close(encoder.encode(images), by_hand)


def test_a_head_around_a_model_gives_the_model(images):
    model = shaken(tf.ViTForImageClassification(tf.ViTConfig(**VISION)))
    processor = _pixels("ViT")
    with torch.no_grad():
        state = model.vit(**processor(images, return_tensors="pt")).last_hidden_state
    close(ek.ImageEncoder(model, processor=processor).encode(images), state.mean(1))


@pytest.mark.parametrize("name", ["resnet", "convnext", "swin", "vit"])
def test_images_in_bfloat16(tiny, images, name):
    exact = ek.ImageEncoder(tiny(name)).encode(images)
    rough = ek.ImageEncoder(tiny(name), dtype="bfloat16").encode(images)
    cosine = (exact * rough).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rough, axis=1)
    assert cosine.min() > 0.99


@pytest.mark.parametrize(
    ("architecture", "special"),
    [("vit_tiny_patch16_224", 1), ("resnet10t", None), ("swin_tiny_patch4_window7_224", None)],
)
def test_models_of_timm(architecture, special, images, tmp_path):
    timm = pytest.importorskip("timm")
    sizes = {
        "vit_tiny_patch16_224": {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 4},
        "swin_tiny_patch4_window7_224": {
            "img_size": 64, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4
        },
    }.get(architecture, {})  # fmt: skip
    plain = timm.create_model(architecture, num_classes=0, **sizes).eval()
    side = 64 if "swin" in architecture else 32
    config = tf.TimmWrapperConfig(
        architecture=architecture, num_labels=0, model_args=sizes,
        pretrained_cfg={"input_size": [3, side, side], "mean": [0.5] * 3, "std": [0.5] * 3,
                        "interpolation": "bicubic", "crop_pct": 1.0},
    )  # fmt: skip
    model = tf.TimmWrapperModel(config).eval()
    model.timm_model.load_state_dict(plain.state_dict())
    processor = tf.TimmWrapperImageProcessor(config.pretrained_cfg, architecture=architecture)
    with torch.no_grad():
        pixels = torch.stack([processor.val_transforms(image) for image in images])
        state = plain.forward_features(pixels)
    if state.ndim == 4:  # a CNN has its channels second, timm's Swin has them last
        state = state.flatten(1, 2) if "swin" in architecture else state.flatten(2).transpose(1, 2)
    close(ek.ImageEncoder(model, processor=processor).encode(images), state.mean(1), atol=2e-5)
    patches = ek.ImageEncoder(model, processor=processor, pooling="patch_mean").encode(images)
    close(patches, state[:, special or 0 :].mean(1), atol=2e-5)


@pytest.mark.slow
def test_photographs_of_many_shapes_wait_in_bounds(tiny, monkeypatch):
    encoder = ek.ImageEncoder(tiny("resnet"))
    encoder.processor.do_resize = False
    pictures = [picture(i, size=(32 + i, 32)) for i in range(40)]
    alone = np.concatenate([encoder.encode([image]) for image in pictures])
    monkeypatch.setattr(tensors, "_WAITING", 20_000)
    batches, embed = [], encoder._embed
    encoder._embed = lambda prepared: batches.append(len(prepared)) or embed(prepared)
    starts = []
    plain_size = tensors._size
    monkeypatch.setattr(
        tensors, "_size", lambda each: starts.append(sum(batches)) or plain_size(each)
    )
    close(encoder.encode(pictures), alone)
    waiting = [row + 1 - done for row, done in enumerate(starts)]
    assert max(waiting) <= 20_000 // (3 * 32 * 32) + 2  # none waited for the end


# Two towers


def towers(kind):
    text = {**TEXT, "vocab_size": 400, "max_position_embeddings": 40, "projection_dim": 16}
    vision = {**VISION, "projection_dim": 16}
    if kind == "clip":
        vocab, merges = _byte_bpe()
        tokenizer = tf.RobertaTokenizer(vocab=vocab, merges=merges, model_max_length=40)
        ids = {"bos_token_id": 0, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 1}
        config = tf.CLIPConfig(text_config={**text, **ids}, vision_config=vision, projection_dim=16)
        return shaken(tf.CLIPModel(config)), tokenizer
    tokenizer = tf.T5Tokenizer(
        vocab=_unigram(), extra_ids=0, model_max_length=40, model_input_names=["input_ids"]
    )
    config = tf.SiglipConfig(
        text_config={**text, "hidden_act": "gelu", "pad_token_id": 0}, vision_config=VISION
    )
    return shaken(tf.SiglipModel(config)), tokenizer


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("normalize", [False, True])
def test_projected_vectors_share_a_space(kind, normalize, images):
    model, tokenizer = towers(kind)
    processor = _pixels("ViT")
    padding = {"padding": "max_length", "max_length": 40} if kind == "siglip" else {}
    with torch.no_grad():
        texts = torch.cat([
            model.get_text_features(**tokenizer(text, return_tensors="pt", **padding)).pooler_output
            for text in SHORT[:3]
        ])  # fmt: skip
        seen = model.get_image_features(**processor(images, return_tensors="pt")).pooler_output
    settings = {"pooling": "projected", "normalize": normalize}
    reader = ek.TextEncoder(model, processor=tokenizer, **settings)
    seer = ek.ImageEncoder(model, processor=processor, **settings)
    assert reader.dim == seer.dim == (16 if kind == "clip" else 32)
    if normalize:
        texts, seen = (torch.nn.functional.normalize(each, dim=1) for each in (texts, seen))
    close(reader.encode(SHORT[:3]), texts)
    close(seer.encode(images), seen)
    with pytest.raises(ValueError, match="the projection reads the last layer"):
        ek.ImageEncoder(model, processor=processor, pooling="projected", layers=1)


def test_siglip_reads_texts_padded_to_full_length(images):
    model, tokenizer = towers("siglip")
    encoder = ek.TextEncoder(model, processor=tokenizer, pooling="mean")
    assert encoder.facts["full_length"]
    by_hand = []
    for text in SHORT[:3]:
        inputs = tokenizer(text, padding="max_length", max_length=40, return_tensors="pt")
        with torch.no_grad():
            state = model.text_model(inputs["input_ids"]).last_hidden_state[0]
        by_hand.append(state[: len(tokenizer(text)["input_ids"])].mean(0).numpy())
    close(encoder.encode(SHORT[:3]), by_hand)
    words = ek.WordEncoder(model, processor=tokenizer).encode(SHORT[:3])
    assert np.isfinite(words.vectors).all()
    clip, roberta = towers("clip")
    assert not ek.TextEncoder(clip, processor=roberta).facts["full_length"]


def test_only_models_of_two_towers_project(tiny):
    for make, name in ((ek.TextEncoder, "bert"), (ek.ImageEncoder, "vit")):
        with pytest.raises(
            ValueError, match=r"pooling='projected'\): unknown pooling; choose from"
        ):
            make(tiny(name), pooling="projected")


# Text


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "bert"])
def test_no_model_keeps_keys_and_values(tiny, name):
    if name == "qwen3":
        vocab, merges = _byte_bpe()
        tokenizer = tf.GPT2Tokenizer(vocab=vocab, merges=merges, model_max_length=64)
        config = tf.Qwen3Config(**TEXT, vocab_size=400, num_key_value_heads=2, head_dim=8)
        encoder = ek.TextEncoder(tf.Qwen3Model(config).eval(), processor=tokenizer)
    else:
        encoder = ek.TextEncoder(tiny(name))
    kept = []
    encoder.body.register_forward_hook(
        lambda _, args, out: kept.append(getattr(out, "past_key_values", None))
    )
    encoder.encode(SHORT)
    assert kept and not any(kept)


def test_tokens_that_the_model_does_not_know_are_named(tiny):
    tokenizer = tf.AutoTokenizer.from_pretrained(tiny("bert"))
    tokenizer.add_tokens(["kettledrum"])
    model = tf.AutoModel.from_pretrained(tiny("bert"))
    encoder = ek.TextEncoder(model, processor=tokenizer)
    close(encoder.encode(SHORT), ek.TextEncoder(tiny("bert")).encode(SHORT))
    with pytest.raises(ValueError, match=r"'a kettledrum' the token 'kettledrum' \(\d+\), and the"):
        encoder.encode(["a kettle", "a kettledrum"])


def test_a_pad_token_that_the_model_does_not_know_is_not_looked_up(tiny):
    tokenizer = tf.AutoTokenizer.from_pretrained(tiny("gpt2"))
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    model = tf.AutoModel.from_pretrained(tiny("gpt2"))
    encoder = ek.TextEncoder(model, processor=tokenizer)
    close(encoder.encode(SHORT), ek.TextEncoder(tiny("gpt2")).encode(SHORT))


def test_special_tokens_that_change_the_text_are_refused(tiny):
    class Odd(tf.BertTokenizer):
        def __call__(self, text, **settings):
            encoded = super().__call__(text, **settings)
            if settings.get("add_special_tokens", True) and isinstance(text, str):
                encoded["input_ids"] = encoded["input_ids"][::-1]
            return encoded

    tokenizer = Odd.from_pretrained(tiny("bert"))
    model = tf.AutoModel.from_pretrained(tiny("bert"))
    with pytest.raises(ValueError, match="differently when it adds special tokens"):
        ek.TextEncoder(model, processor=tokenizer)


def test_the_rows_that_were_cut_are_listed(tiny):
    encoder = ek.TextEncoder(tiny("short_bert"))
    texts = ["the " * 40, "a", "the " * 40, "the " * 40, "b"]
    with pytest.warns(UserWarning, match=r"3 of 5 texts .* cut there \(rows 0, 2-3\)"):
        encoder.encode(texts)


# Containers


@pytest.mark.slow
def test_more_containers(tiny):
    encoder, words = ek.TextEncoder(tiny("bert")), ek.WordEncoder(tiny("bert"))
    expected = encoder.encode(SHORT)
    for inputs in (
        pa.array(SHORT), pa.chunked_array([SHORT[:1], SHORT[1:]]), pl.Series(SHORT),
        (text for text in SHORT), iter(SHORT), [np.str_(text) for text in SHORT],
        dict.fromkeys(SHORT).keys(),
    ):  # fmt: skip
        np.testing.assert_array_equal(encoder.encode(inputs), expected)
    sentences = [["the", "kettle"], ["boils"]]
    expected = words.encode(sentences).vectors
    arrays = [np.array(each) for each in sentences]
    for inputs in (pa.array(sentences), pl.Series(sentences), arrays, iter(sentences)):
        np.testing.assert_array_equal(words.encode(inputs).vectors, expected)
    with pytest.raises(TypeError, match="text 1 is None"):
        encoder.encode(pa.array(["a", None]))


def test_map_without_batched_says_what_is_meant(tiny, images):
    data = Dataset.from_dict({"text": SHORT, "tokens": [text.split() for text in SHORT]})
    pictures = Dataset.from_dict({"image": images})
    for encoder, rows in (
        (ek.TextEncoder(tiny("bert")), data), (ek.WordEncoder(tiny("bert")), data),
        (ek.ImageEncoder(tiny("vit")), pictures),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=r"call map\(encoder, batched=True\)"):
            rows.map(encoder)
    with pytest.raises(TypeError, match=r"call map\(encoder, batched=True\)"):
        ek.TextEncoder(tiny("bert"))({"text": "a kettle"})


# Where a model is, and where it runs


def test_a_relative_folder_stays_the_same_folder(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(tiny("bert")).parent)
    name = Path(tiny("bert")).name
    encoder = ek.TextEncoder(name)
    data, expected = pickle.dumps(encoder), encoder.encode(SHORT)
    assert encoder.name == tiny("bert") and repr(encoder).startswith(
        f"TextEncoder('{tiny('bert')}'"
    )
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(pickle.loads(data).encode(SHORT), expected)
    monkeypatch.setenv("HOME", str(Path(tiny("bert")).parent))
    assert ek.TextEncoder(f"~/{name}").name == tiny("bert")


@pytest.mark.slow
def test_pickles_hold_neither_process_nor_token(tiny):
    model = tf.AutoModel.from_pretrained(tiny("bert"))
    tokenizer = tf.AutoTokenizer.from_pretrained(tiny("bert"))
    encoder = ek.TextEncoder(model, processor=tokenizer)
    before = Hasher.hash(encoder)
    encoder._process, encoder._memory._parts = os.getpid() + 1, 4
    assert Hasher.hash(encoder) == before
    again = pickle.loads(pickle.dumps(encoder))
    assert (again._process, again._memory._parts) == (os.getpid(), 1)
    secret = ek.TextEncoder(tiny("bert"), token="hf_secret")
    assert b"hf_secret" not in pickle.dumps(secret) and "hf_secret" not in repr(secret)


def test_a_copy_reads_the_commit_that_the_first_one_read(tiny):
    encoder = ek.TextEncoder(tiny("bert"), revision="main")
    before = Hasher.hash(encoder)
    encoder.commit = "0" * 40  # as of a Hub id whose branch has moved on since
    assert Hasher.hash(encoder) != before
    _, (_, _, settings, *_) = encoder.__reduce__()
    assert settings["revision"] == encoder.commit


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("device", [0, "cuda:7"])
def test_a_device_that_is_not_there_is_an_error(tiny, device):
    with pytest.raises(ValueError, match=r"PyTorch sees \d CUDA devices here"):
        ek.TextEncoder(tiny("bert"), device=device)


def test_attention_and_other_arguments_reach_the_model(tiny):
    encoder = ek.TextEncoder(tiny("bert"), attn_implementation="eager")
    assert encoder.model.config._attn_implementation == "eager"
    sized = ek.TextEncoder(tiny("bert"), model_kwargs={"output_attentions": True})
    assert sized.model.config.output_attentions
    close(encoder.encode(SHORT), sized.encode(SHORT))


def test_a_model_is_read_by_several_threads(tiny):
    encoder, found = ek.TextEncoder(tiny("bert")), {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: encoder.encode(SHORT[: i + 1])}))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        close(found[i], encoder.encode(SHORT)[: i + 1])


def test_one_array_that_looks_like_an_image_is_named(tiny):
    with pytest.raises(TypeError, match="wrap it in a list"):
        ek.ImageEncoder(tiny("vit")).encode(Image.new("RGB", (8, 8)))
