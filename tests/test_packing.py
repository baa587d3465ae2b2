"""Packing only changes the speed: the vectors are those of the padded way."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import transformers as tf

import embedkit as ek
from embedkit.encoders import _packing as packing
from tests.conftest import POSITIONS, TEXT, _word_piece, sentence

PACKED = {
    "bert": tf.BertModel,
    "camembert": tf.CamembertModel,
    "distilbert": tf.DistilBertModel,
    "electra": tf.ElectraModel,
    "roberta": tf.RobertaModel,
    "xlm-roberta": tf.XLMRobertaModel,
}
PADDED = {"mpnet": tf.MPNetModel, "deberta-v2": tf.DebertaV2Model}


def texts() -> list[str]:
    generator = np.random.default_rng(5)
    lengths = [1, 1, 1, 2, 7, 7, 40, 90, 150, 3, 3]
    return ["", "[PAD] kettle", *(sentence(length, generator) for length in lengths)]


def assert_same(found: np.ndarray, right: np.ndarray) -> None:
    """Compare to 1e-5 of the largest value: sums are rounded differently in another batch."""
    np.testing.assert_allclose(found, right, rtol=0, atol=1e-5 * np.abs(right).max())


def model_and_tokenizer(kind: str, attention: str) -> tuple[tf.PreTrainedModel, object]:
    tokenizer = _word_piece()
    sizes = {**TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": POSITIONS + 2}
    if kind == "distilbert":
        sizes |= {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}
    torch.manual_seed(1)
    config = tf.AutoConfig.for_model(kind, pad_token_id=tokenizer.pad_token_id, **sizes)
    attention = attention if kind in PACKED else "eager"
    model = {**PACKED, **PADDED}[kind](config).eval()
    model.set_attn_implementation(attention)
    return model, tokenizer


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Give the folder of a model: only what is loaded by name is packed."""
    made = {}

    def save(kind: str) -> str:
        if kind not in made:
            model, tokenizer = model_and_tokenizer(kind, "sdpa")
            made[kind] = str(tmp_path_factory.mktemp(kind))
            model.save_pretrained(made[kind])
            tokenizer.save_pretrained(made[kind])
        return made[kind]

    return save


def calls(encoder, run) -> list[int]:
    """Run something, and count the rows that reach the first layer in each call of the model."""
    seen: list[int] = []
    layers = packing._LAYERS.get(encoder.model.config.model_type, "encoder")
    first = next(iter(next(iter(encoder.model.get_submodule(layers).children()))))
    handle = first.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(args[0] if args else kwargs["hidden_states"])),
        with_kwargs=True,
    )
    run()
    handle.remove()
    return seen


def test_the_architectures_claimed_are_the_ones_tried():
    assert set(PACKED) == set(packing._LAYERS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*PACKED, *PADDED])
@pytest.mark.parametrize("layers", [-1, [0, 1, -1]])
def test_packed_vectors_are_those_of_the_padded_way(folder, kind, layers):
    plain, tokenizer = model_and_tokenizer(kind, "eager")
    for pooling in ("cls", "mean", "max", "last"):
        settings = {"pooling": pooling, "layers": layers, "processor": tokenizer}
        encoder = ek.TextEncoder(folder(kind), **settings)
        padded = ek.TextEncoder(plain, **settings)
        found = encoder.encode(texts())
        assert_same(found, padded.encode(texts()))
        alone = np.concatenate([padded.encode([text]) for text in texts()])
        assert_same(found, alone)
    words = ek.WordEncoder(folder(kind), layers=layers, processor=tokenizer).encode(texts())
    by_padding = ek.WordEncoder(plain, layers=layers, processor=tokenizer).encode(texts())
    assert words.word == by_padding.word
    assert_same(words.vectors, by_padding.vectors)


@pytest.mark.parametrize("kind", PACKED)
def test_these_architectures_do_run_packed(folder, kind):
    encoder = ek.TextEncoder(folder(kind))
    assert max(calls(encoder, lambda: encoder.encode(texts()))) == 1
    plain = ek.TextEncoder(folder(kind), attn_implementation="eager")
    assert max(calls(plain, lambda: plain.encode(texts()))) > 1


def test_a_model_that_the_caller_loaded_is_left_as_it_is():
    model, tokenizer = model_and_tokenizer("bert", "sdpa")
    encoder = ek.TextEncoder(model, processor=tokenizer)
    assert max(calls(encoder, lambda: encoder.encode(texts()))) > 1
    assert model.config._attn_implementation == "sdpa"
    hooks = [(part._forward_hooks, part._forward_pre_hooks) for part in model.modules()]
    assert not any(before or after for before, after in hooks)


@pytest.mark.slow
def test_other_calls_of_a_packed_model_compute_what_they_always_did(folder):
    encoder = ek.TextEncoder(folder("bert"))
    untouched, tokenizer = tf.BertModel.from_pretrained(folder("bert")), encoder.processor
    untouched.to(encoder.device)
    encoder.encode(texts())
    batch = tokenizer(texts(), padding=True, return_tensors="pt").to(encoder.device)
    with torch.no_grad():
        ours = encoder.model(**batch, output_hidden_states=True)
        theirs = untouched(**batch, output_hidden_states=True)
    for state, other in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(state, other)
    # Asked for another attention later, the model is read padded, and gives the same.
    before = encoder.encode(texts())
    encoder.model.set_attn_implementation("eager")
    assert max(calls(encoder, lambda: encoder.encode(texts()))) > 1
    assert_same(encoder.encode(texts()), before)


@pytest.mark.slow
def test_threads_do_not_see_each_others_packing(folder):
    encoder = ek.TextEncoder(folder("bert"), pooling="mean")
    shares = [texts()[i:] for i in range(8)]
    expected = [encoder.encode(share) for share in shares]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for found, right in zip(pool.map(encoder.encode, shares), expected, strict=True):
                assert_same(found, right)


def test_a_pickled_encoder_packs_too(folder):
    encoder = ek.TextEncoder(folder("bert"))
    again = pickle.loads(pickle.dumps(encoder))
    assert max(calls(again, lambda: again.encode(texts()))) == 1
    np.testing.assert_allclose(again.encode(texts()), encoder.encode(texts()), rtol=0, atol=1e-5)


def test_a_decoder_is_left_alone():
    model, _ = model_and_tokenizer("bert", "sdpa")
    model.config.is_decoder = True
    packing.allow(model)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.skipif(
    packing.varlen_attn is None or not torch.cuda.is_available(),
    reason="varlen attention needs a CUDA device and torch 2.10",
)
def test_varlen_attention_on_a_gpu_keeps_the_direction(folder):
    exact = ek.TextEncoder(folder("bert"), pooling="mean").encode(texts())
    encoder = ek.TextEncoder(folder("bert"), pooling="mean", device="cuda", dtype="bfloat16")
    found = encoder.encode(texts())
    cosine = (
        np.sum(exact * found, 1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(found, axis=1)
    )
    assert cosine.min() > 0.99
