"""What encoders promise: the right vector, whatever the company, the container or the process."""

import os
import pickle
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as tf
from datasets import Dataset
from datasets.fingerprint import Hasher

import embedkit as ek
from embedkit.loading import _bundled as bundled
from tests.conftest import picture, sentence

MINILM = "bundled/all-MiniLM-L6-v2"
SHORT = ["the kettle boils", "a very bad novel", "unread", "in paris jordan runs quickly"]


def close(ours, theirs, atol=1e-5) -> None:
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


def forward(folder, texts, **options):
    """Run the texts through a plain model, each alone, and give the outputs."""
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    model = tf.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return [model(**tokenizer([text], return_tensors="pt"), **options) for text in texts]


def image_outputs(folder, images, **options):
    processor = tf.AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = tf.AutoModel.from_pretrained(folder).eval()
    model = getattr(model, "vision_model", model)
    with torch.no_grad():
        return model(**processor(images, return_tensors="pt"), **options)


# A vector depends on its input alone


def assert_company_is_nothing(encoder, texts, sizes) -> None:
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    close(encoder.encode(texts), alone)
    for size in sizes:
        close(encoder.encode(texts, batch_size=size), alone)
    order = np.random.default_rng(1).permutation(len(texts))
    close(encoder.encode([texts[i] for i in order]), alone[order])


@pytest.mark.slow
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "last"])
def test_a_vector_does_not_depend_on_its_neighbours(tiny, texts, pooling, side):
    encoder = ek.TextEncoder(tiny("bert"), pooling=pooling)
    encoder.processor.padding_side = side
    assert_company_is_nothing(encoder, texts, (1, 7, 64))


@pytest.mark.slow
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("name", "pooling"),
    [("bert", "cls"), ("bert", "mean"), ("bert", "max"), ("bert", "last"), ("gpt2", "last"),
     ("gpt2", "mean"), ("t5", "mean"), ("roberta", "cls")],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*cut there")
def test_a_vector_does_not_depend_on_a_few_neighbours(tiny, texts, name, pooling, side):
    encoder = ek.TextEncoder(tiny(name), pooling=pooling)
    encoder.processor.padding_side = side
    assert_company_is_nothing(encoder, texts[:25], (1, 7))


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "last"])
def test_a_vector_of_minilm_does_not_depend_on_its_neighbours(texts, pooling):
    encoder = ek.TextEncoder(MINILM, pooling=pooling, max_length=128)
    few = [" ".join(text.split()[: 1 + 4 * i]) for i, text in enumerate(texts[:20])]
    assert_company_is_nothing(encoder, few, (1, 7))


def test_padding_side_changes_nothing(tiny, texts):
    vectors = []
    for side in ("left", "right"):
        encoder = ek.TextEncoder(tiny("bert"), pooling="mean")
        encoder.processor.padding_side = side
        vectors.append(encoder.encode(texts[:10]))
    close(*vectors)


def test_an_image_does_not_depend_on_its_neighbours(tiny, images):
    encoder = ek.ImageEncoder(tiny("vit"))
    alone = np.concatenate([encoder.encode([image]) for image in images])
    close(encoder.encode(images), alone)
    close(encoder.encode(images, batch_size=4), alone)
    close(encoder.encode(images[::-1], batch_size=1), alone[::-1])


def test_order_is_kept_across_lengths(tiny):
    texts = ["the " * n for n in (5, 1, 300, 2, 40)]
    by_hand = [out.last_hidden_state[0, -1] for out in forward(tiny("bert"), texts)]
    close(ek.TextEncoder(tiny("bert"), pooling="last").encode(texts), torch.stack(by_hand))


# Pooling, layers, and what becomes of them


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_poolings_against_by_hand(tiny, name):
    states = [out.last_hidden_state[0] for out in forward(tiny(name), SHORT)]
    by_hand = {
        "cls": [state[0] for state in states],
        "mean": [state.mean(0) for state in states],
        "max": [state.amax(0) for state in states],
        "last": [state[-1] for state in states],
    }
    for pooling, vectors in by_hand.items():
        close(ek.TextEncoder(tiny(name), pooling=pooling).encode(SHORT), torch.stack(vectors))


@pytest.mark.slow
def test_by_name_alone_minilm_is_what_its_authors_published(published_texts):
    from sentence_transformers import SentenceTransformer  # it takes seconds

    folder = str(bundled.model_folder(MINILM))
    theirs = SentenceTransformer(folder, device="cpu").encode(published_texts, batch_size=8)
    encoder = ek.TextEncoder(MINILM)
    assert repr(encoder) == (
        "TextEncoder('bundled/all-MiniLM-L6-v2', dim=384, pooling='mean' (its repository), "
        "normalize=True, max_length=256, device='cpu')"
    )
    with pytest.warns(UserWarning, match="longer than the 256 tokens"):
        close(encoder.encode(published_texts), theirs)


@pytest.fixture(scope="module")
def published_texts():
    """Give 50 texts of 1 to 600 words."""
    generator = np.random.default_rng(0)
    lengths = generator.permutation(np.linspace(1, 600, 50).astype(int))
    return [sentence(int(length), generator) for length in lengths]


@pytest.mark.slow
def test_by_name_alone_short_texts_are_those_of_sentence_transformers():
    from sentence_transformers import SentenceTransformer  # it takes seconds

    theirs = SentenceTransformer(str(bundled.model_folder(MINILM)), device="cpu").encode(SHORT)
    close(ek.TextEncoder(MINILM).encode(SHORT), theirs)
    # A pooling that is named is taken alone.
    named = ek.TextEncoder(MINILM, pooling="mean")
    assert named.normalize is False and named.pooling_reason == ""
    close(named.encode(SHORT) / np.linalg.norm(named.encode(SHORT), axis=1, keepdims=True), theirs)


def test_combining_layers(tiny):
    states = [out.hidden_states for out in forward(tiny("bert"), SHORT, output_hidden_states=True)]
    mean = torch.stack([torch.stack(state[-2:]).mean(0)[0].mean(0) for state in states])
    close(ek.TextEncoder(tiny("bert"), pooling="mean", layers=[-2, -1]).encode(SHORT), mean)
    three = torch.stack([torch.cat(state, -1)[0].mean(0) for state in states])
    encoder = ek.TextEncoder(tiny("bert"), pooling="mean", layers=(0, 1, 2), combine="concat")
    assert encoder.dim == 96
    close(encoder.encode(SHORT), three)


def test_the_raw_state_of_a_vit_lacks_the_final_norm(tiny, images):
    out = image_outputs(tiny("vit"), images, output_hidden_states=True)
    normed = ek.ImageEncoder(tiny("vit")).encode(images)
    raw = ek.ImageEncoder(tiny("vit"), final_norm=False).encode(images)
    close(normed, out.last_hidden_state.mean(1))
    close(raw, out.hidden_states[-1].mean(1))
    assert np.abs(normed - raw).max() > 0.1


def test_the_raw_state_of_a_gpt2_lacks_the_final_norm(tiny):
    raw = ek.TextEncoder(tiny("gpt2"), pooling="last", final_norm=False).encode(SHORT)
    normed = ek.TextEncoder(tiny("gpt2"), pooling="last").encode(SHORT)
    assert np.abs(normed - raw).max() > 0.1
    norm = tf.AutoModel.from_pretrained(tiny("gpt2")).ln_f
    close(normed, norm(torch.from_numpy(raw)), atol=1e-4)


def test_normalize_gives_length_1(tiny):
    plain = ek.TextEncoder(tiny("bert")).encode(SHORT)
    unit = ek.TextEncoder(tiny("bert"), normalize=True).encode(SHORT)
    close(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True))


def test_a_pooling_function_of_ones_own(tiny):
    weights = torch.nn.Linear(32, 5)

    def pool(hidden, mask):
        assert mask.shape == hidden.shape[:2]
        return weights((hidden * mask.unsqueeze(-1)).sum(1))

    encoder = ek.TextEncoder(tiny("bert"), pooling=pool)
    assert encoder.dim == 5
    sums = torch.stack([out.last_hidden_state[0].sum(0) for out in forward(tiny("bert"), SHORT)])
    close(encoder.encode(SHORT), weights(sums), atol=1e-4)


def test_bfloat16_comes_close_and_out_as_float32(tiny):
    exact = ek.TextEncoder(tiny("bert"), pooling="mean").encode(SHORT)
    encoder = ek.TextEncoder(tiny("bert"), pooling="mean", dtype="bfloat16")
    assert encoder.model.dtype == torch.bfloat16
    rough = encoder.encode(SHORT)
    assert rough.dtype == np.float32
    cosine = (exact * rough).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rough, axis=1)
    assert cosine.min() > 0.99


# Kinds of models


def test_a_loaded_model_with_its_processor(tiny, images):
    model = tf.AutoModel.from_pretrained(tiny("bert"))
    tokenizer = tf.AutoTokenizer.from_pretrained(tiny("bert"))
    encoder = ek.TextEncoder(model, processor=tokenizer)
    assert encoder.model is model
    assert encoder.processor is tokenizer
    close(encoder.encode(SHORT), ek.TextEncoder(tiny("bert")).encode(SHORT))

    model = tf.AutoModel.from_pretrained(tiny("vit"))
    processor = tf.AutoImageProcessor.from_pretrained(tiny("vit"), backend="pil")
    encoder = ek.ImageEncoder(model, processor=processor)
    close(encoder.encode(images), ek.ImageEncoder(tiny("vit")).encode(images))


def test_a_model_with_a_task_head_gives_its_body(tiny):
    model = tf.AutoModelForSequenceClassification.from_pretrained(tiny("bert_classifier"))
    tokenizer = tf.AutoTokenizer.from_pretrained(tiny("bert_classifier"))
    around = ek.TextEncoder(model, processor=tokenizer)
    close(around.encode(SHORT), ek.TextEncoder(tiny("bert_classifier")).encode(SHORT))


def test_t5_gives_its_encoder(tiny):
    model = tf.T5EncoderModel.from_pretrained(tiny("t5")).eval()
    tokenizer = tf.AutoTokenizer.from_pretrained(tiny("t5"))
    with torch.no_grad():
        states = [model(**tokenizer([t], return_tensors="pt")).last_hidden_state for t in SHORT]
    by_hand = torch.stack([state[0].mean(0) for state in states])
    close(ek.TextEncoder(tiny("t5"), pooling="mean").encode(SHORT), by_hand)


def test_gpt2_takes_the_last_real_token(tiny):
    by_hand = [out.last_hidden_state[0, -1] for out in forward(tiny("gpt2"), SHORT)]
    close(ek.TextEncoder(tiny("gpt2"), pooling="last").encode(SHORT), torch.stack(by_hand))


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_cls_is_refused_where_there_is_none(tiny, name):
    with pytest.raises(ValueError, match=r"choose from last, max, mean"):
        ek.TextEncoder(tiny(name), pooling="cls")


def test_cls_is_refused_in_a_causal_model_that_puts_one_first(tiny):
    # The first token is blind to the rest, whatever it is called.
    model = tf.AutoModel.from_pretrained(tiny("gpt2"))
    tokenizer = tf.AutoTokenizer.from_pretrained(tiny("bert"))
    assert tokenizer("a")["input_ids"][0] == tokenizer.cls_token_id
    with pytest.raises(ValueError, match=r"choose from last, max, mean"):
        ek.TextEncoder(model, processor=tokenizer, pooling="cls")


@pytest.mark.parametrize("name", ["swin", "resnet", "convnext", "siglip"])
def test_cls_is_refused_for_images_without_a_class_token(tiny, name):
    with pytest.raises(ValueError, match=r"choose from max, mean, patch_mean"):
        ek.ImageEncoder(tiny(name), pooling="cls")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "special"), [("vit", 1), ("deit", 2), ("dinov2_registers", 4), ("clip", 1),
                          ("siglip", 0), ("swin", 0)],
)  # fmt: skip
def test_patch_mean_leaves_every_special_token_out(tiny, images, name, special):
    state = image_outputs(tiny(name), images).last_hidden_state
    places = (32 // 8) ** 2
    assert state.shape[1] == places + special
    by_hand = state[:, special:].mean(1)
    close(ek.ImageEncoder(tiny(name), pooling="patch_mean").encode(images), by_hand)
    close(ek.ImageEncoder(tiny(name), pooling="mean").encode(images), state.mean(1))
    if name in ("vit", "deit", "dinov2_registers", "clip"):
        close(ek.ImageEncoder(tiny(name), pooling="cls").encode(images), state[:, 0])


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_of_two_towers_the_one_that_sees(tiny, images, name):
    model = tf.AutoModel.from_pretrained(tiny(name)).eval()
    processor = tf.AutoImageProcessor.from_pretrained(tiny(name), backend="pil")
    with torch.no_grad():
        state = model.vision_model(**processor(images, return_tensors="pt")).last_hidden_state
    close(ek.ImageEncoder(tiny(name)).encode(images), state.mean(1))
    close(ek.ImageEncoder(model, processor=processor).encode(images), state.mean(1))


@pytest.mark.parametrize(("name", "channels"), [("resnet", 16), ("convnext", 32)])
def test_the_map_of_a_cnn_is_averaged_over_its_places(tiny, images, name, channels):
    state = image_outputs(tiny(name), images).last_hidden_state
    assert state.shape[1] == channels and state.ndim == 4
    vectors = ek.ImageEncoder(tiny(name)).encode(images)
    assert vectors.shape == (len(images), channels)
    close(vectors, state.mean(dim=(2, 3)))
    seen = []
    ek.ImageEncoder(tiny(name), pooling=lambda h, m: (seen.append(h.shape), h[:, 0])[1])
    assert seen[-1] == (1, state.shape[2] * state.shape[3], channels)


@pytest.mark.parametrize("name", ["resnet", "convnext", "swin"])
def test_layers_of_different_shape_are_refused(tiny, name):
    with pytest.raises(ValueError, match=r"differ in shape.*choose layers of one shape"):
        ek.ImageEncoder(tiny(name), layers=[0, -1])


def test_a_roberta_reads_two_positions_less_than_it_has(tiny):
    encoder = ek.TextEncoder(tiny("roberta"), pooling="mean")
    assert encoder.max_length == 32
    with pytest.warns(UserWarning, match=r"1 of 1 texts are longer than the 32 tokens"):
        encoder.encode(["the kettle " * 100])
    with pytest.raises(ValueError, match="max_length=33"):
        ek.TextEncoder(tiny("roberta"), max_length=33)


# Lengths


def test_long_texts_are_cut_with_one_warning_that_counts(tiny):
    texts = ["the " * 30, "kettle", "paris " * 14, "red " * 15]
    encoder = ek.TextEncoder(tiny("short_bert"), pooling="mean")
    with pytest.warns(UserWarning, match=r"2 of 4 texts are longer than the 16 tokens") as caught:
        vectors = encoder.encode(texts)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        close(vectors, encoder.encode(["the " * 14, "kettle", "paris " * 14, "red " * 14]))


def test_max_length_counts_special_tokens(tiny):
    encoder = ek.TextEncoder(tiny("bert"), max_length=5)
    with pytest.warns(UserWarning, match=r"1 of 2 texts are longer than the 5 tokens"):
        cut = encoder.encode(["red blue green warm", "red blue green"])
    close(cut[:1], cut[1:])


def test_an_empty_text_has_the_vector_of_the_special_tokens(tiny):
    tokenizer = tf.AutoTokenizer.from_pretrained(tiny("bert"))
    model = tf.AutoModel.from_pretrained(tiny("bert")).eval()
    ids = torch.tensor([[tokenizer.cls_token_id, tokenizer.sep_token_id]])
    with torch.no_grad():
        by_hand = model(input_ids=ids).last_hidden_state.mean(1)
    encoder = ek.TextEncoder(tiny("bert"), pooling="mean")
    close(encoder.encode([""]), by_hand)
    close(encoder.encode(["", "a red lamp", " \n"])[[0, 2]], by_hand.repeat(2, 1))
    with pytest.raises(ValueError, match=r"text 1 \(''\) has no tokens"):
        ek.TextEncoder(tiny("gpt2"), pooling="last").encode(["a", ""])


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [3, 256])
def test_more_texts_than_are_sorted_or_tokenised_at_a_time(tiny, monkeypatch, at_once):
    for module in ("text", "word"):
        monkeypatch.setattr(f"embedkit.encoders.{module}.CHUNK", 7)
    monkeypatch.setattr("embedkit.encoders._tokens._AT_ONCE", at_once)
    generator = np.random.default_rng(0)
    texts = [sentence(int(n), generator) for n in generator.integers(1, 20, 30)]
    encoder = ek.TextEncoder(tiny("bert"))
    close(encoder.encode(texts), np.concatenate([encoder.encode([text]) for text in texts]))
    words = ek.WordEncoder(tiny("bert")).encode(texts)
    assert words.word == [word for text in texts for word in text.split()]
    alone = [ek.WordEncoder(tiny("bert")).encode([text]).vectors for text in (texts[0], texts[-1])]
    close(words.vectors[words.sentence == 0], alone[0])
    close(words.vectors[words.sentence == 29], alone[1])


# Containers


def test_any_container_of_texts(tiny):
    encoder = ek.TextEncoder(tiny("bert"))
    expected = encoder.encode(SHORT)
    for inputs in (
        tuple(SHORT),
        np.array(SHORT),
        np.array(SHORT, dtype=object),
        pd.Series(SHORT, index=[3, 1, 2, 0]),
        Dataset.from_dict({"text": SHORT})["text"],
    ):
        np.testing.assert_array_equal(encoder.encode(inputs), expected)


def test_any_container_of_images(tiny, images):
    encoder = ek.ImageEncoder(tiny("vit"))
    expected = encoder.encode(images)
    for inputs in (tuple(images), pd.Series(images), Dataset.from_dict({"image": images})["image"]):
        np.testing.assert_array_equal(encoder.encode(inputs), expected)
    same = [image.resize((32, 32)) for image in images]
    stacked = np.stack([np.asarray(image) for image in same])
    np.testing.assert_array_equal(encoder.encode(stacked), encoder.encode(same))


@pytest.mark.parametrize("empty", [[], (), np.array([]), pd.Series([], dtype=object)], ids=type)
def test_nothing_in_nothing_out(tiny, empty):
    assert ek.TextEncoder(tiny("bert")).encode(empty).shape == (0, 32)
    assert ek.ImageEncoder(tiny("vit")).encode(empty).shape == (0, 32)
    words = ek.WordEncoder(tiny("bert")).encode(empty)
    assert words.vectors.shape == (0, 32) and words.vectors.dtype == np.float32
    assert words.word == [] and len(words.sentence) == len(words.position) == 0


def test_vectors_are_float32_and_dim_is_their_length(tiny, images):
    for encoder, inputs in (
        (ek.TextEncoder(tiny("bert")), SHORT),
        (ek.ImageEncoder(tiny("resnet")), images),
    ):
        vectors = encoder.encode(inputs)
        assert vectors.dtype == np.float32
        assert vectors.shape == (len(inputs), encoder.dim)
        assert encoder.device == torch.device("cpu")
        assert f"dim={encoder.dim}" in repr(encoder)


# Pickling and data sets


@pytest.mark.slow
def test_an_encoder_from_a_name_pickles_small_and_comes_back_equal(tiny, images):
    encoder = ek.TextEncoder(tiny("bert"), pooling="mean", layers=[0, -1], normalize=True)
    data = pickle.dumps(encoder)
    assert len(data) < 2_000
    close(pickle.loads(data).encode(SHORT), encoder.encode(SHORT), atol=0)
    seer = ek.ImageEncoder(tiny("vit"), pooling="patch_mean")
    close(pickle.loads(pickle.dumps(seer)).encode(images), seer.encode(images), atol=0)
    reader = pickle.loads(pickle.dumps(ek.WordEncoder(tiny("bert"), subwords="mean")))
    expected = ek.WordEncoder(tiny("bert"), subwords="mean").encode(SHORT)
    close(reader.encode(SHORT).vectors, expected.vectors, atol=0)


def test_new_weights_in_a_folder_give_another_pickle(tiny, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny("bert"), folder)
    encoder = ek.TextEncoder(folder)
    before = Hasher.hash(encoder)
    assert before == Hasher.hash(ek.TextEncoder(folder))
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert before != Hasher.hash(ek.TextEncoder(folder))


def test_an_encoder_around_a_loaded_model_pickles_whole(tiny):
    model = tf.AutoModel.from_pretrained(tiny("bert"))
    tokenizer = tf.AutoTokenizer.from_pretrained(tiny("bert"))
    torch.manual_seed(1)
    model.embeddings.word_embeddings.weight.data += torch.randn(32)
    encoder = ek.TextEncoder(model, processor=tokenizer, pooling="mean")
    data = pickle.dumps(encoder)
    assert len(data) > sum(p.numel() for p in model.parameters()) * 4
    close(pickle.loads(data).encode(SHORT), encoder.encode(SHORT), atol=0)
    folder = ek.TextEncoder(tiny("bert"), pooling="mean")
    assert np.abs(folder.encode(SHORT) - encoder.encode(SHORT)).max() > 0.01


@pytest.mark.slow
def test_the_fingerprint_is_stable_and_tells_settings_apart(tiny):
    folder = tiny("bert")
    hashes = [Hasher.hash(ek.TextEncoder(folder, pooling=p)) for p in ("mean", "mean", "max")]
    assert hashes[0] == hashes[1] != hashes[2]
    used = ek.TextEncoder(folder, pooling="mean")
    used.encode(SHORT)
    assert Hasher.hash(used) == hashes[0]
    code = (
        "import embedkit as ek; from datasets.fingerprint import Hasher; "
        f"print(Hasher.hash(ek.TextEncoder({folder!r}, pooling='mean')))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == hashes[0]


def test_map_adds_an_embedding_column_of_texts(tiny):
    encoder = ek.TextEncoder(tiny("bert"))
    data = Dataset.from_dict({"text": SHORT, "label": [0, 1, 0, 1]})
    mapped = data.map(encoder, batched=True, batch_size=3)
    assert mapped.column_names == ["text", "label", "embedding"]
    close(mapped.with_format("numpy")[:]["embedding"], encoder.encode(SHORT))
    assert mapped[:]["label"] == [0, 1, 0, 1]


def test_map_adds_an_embedding_column_of_images(tiny, images):
    encoder = ek.ImageEncoder(tiny("vit"))
    mapped = Dataset.from_dict({"image": images}).map(encoder, batched=True, batch_size=4)
    assert mapped.column_names == ["image", "embedding"]
    close(
        mapped.with_format("numpy", columns=["embedding"])[:]["embedding"], encoder.encode(images)
    )


def test_map_adds_a_list_of_vectors_per_sentence(tiny):
    encoder = ek.WordEncoder(tiny("bert"))
    sentences = [["paris", "sings"], [], ["the", "kettle", "boils"]]
    mapped = Dataset.from_dict({"tokens": sentences}).map(encoder, batched=True)
    rows = mapped[:]["embedding"]
    assert [len(row) for row in rows] == [2, 0, 3]
    close(np.array(rows[2], np.float32), encoder.encode(sentences[2:]).vectors)


def test_a_batch_keeps_its_columns_and_needs_the_right_one(tiny):
    encoder = ek.TextEncoder(tiny("bert"))
    out = encoder({"text": np.array(SHORT), "label": [1, 2, 3, 4]})
    assert list(out) == ["text", "label", "embedding"]
    assert out["label"] == [1, 2, 3, 4]
    with pytest.raises(KeyError, match=r"columns review, label, none of them text"):
        encoder({"review": SHORT, "label": [1, 2, 3, 4]})


# Progress


def test_progress_is_shown_when_asked_for(tiny, images, capfd):
    ek.TextEncoder(tiny("bert")).encode(SHORT, progress=True)
    assert "4/4" in capfd.readouterr().err
    ek.ImageEncoder(tiny("vit")).encode(images, progress=True)
    assert "6/6" in capfd.readouterr().err
    words = sum(len(text.split()) for text in SHORT)
    ek.WordEncoder(tiny("bert")).encode(SHORT, batch_size=1, progress=True)
    assert f"{words}/{words}" in capfd.readouterr().err


@pytest.mark.parametrize("progress", [False, None])
def test_short_work_shows_no_progress(tiny, progress, capfd):
    encoder = ek.TextEncoder(tiny("bert"))
    capfd.readouterr()
    encoder.encode(SHORT, progress=progress)
    assert capfd.readouterr() == ("", "")


def test_a_loaded_encoder_says_nothing(tiny, capfd):
    ek.TextEncoder(tiny("bert"))
    ek.ImageEncoder(tiny("vit")).encode([picture(0, "L")])
    assert capfd.readouterr() == ("", "")
