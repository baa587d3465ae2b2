"""What a repository says about its model, and what its files may not make us do."""

import json
import pickle
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from embedkit.loading import _bundled, hub, models
from tests.conftest import picture

MINILM = "bundled/all-MiniLM-L6-v2"
ON_HUB = "sentence-transformers/all-MiniLM-L6-v2"


def load(folder, **settings):
    return models.load(folder, kind="text", **settings)


def states(model, processor, text="the kettle boils"):
    with torch.no_grad():
        return model(**processor([text], return_tensors="pt")).last_hidden_state


def change(folder, file="config.json", **values) -> None:
    """Set values in a JSON file; None takes one out."""
    path = folder / file
    found = json.loads(path.read_text()) if path.exists() else {}
    found |= values
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def change_weights(folder, function) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(function(weights), folder / "model.safetensors", metadata={"format": "pt"})


def list_modules(folder, *modules) -> None:
    listed = [{"idx": n, "name": str(n), "path": path, "type": kind}
              for n, (kind, path) in enumerate(modules)]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(listed))


@pytest.fixture
def copied(tiny, tmp_path):
    """Give a copy of a tiny BERT's folder, to change."""
    return Path(shutil.copytree(tiny("bert"), tmp_path / "model"))


OLD = "sentence_transformers.models."
BODY, POOL = (f"{OLD}Transformer", ""), (f"{OLD}Pooling", "1_Pooling")
NORM = f"{OLD}Normalize", "2_Normalize"


# What is wrong with a folder


def layers(number):
    return lambda folder: change(folder, num_hidden_layers=number)


def nan(folder):
    def spoil(weights):
        weights["encoder.layer.1.output.dense.weight"][3, 2] = float("nan")
        return weights

    change_weights(folder, spoil)


def index(name, real="model.safetensors"):
    def spoil(folder):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder / real, target)
        weights = load_file(target)
        file = folder / "model.safetensors.index.json"
        file.write_text(json.dumps({"weight_map": dict.fromkeys(weights, name)}))

    return spoil


def deep(folder):
    (folder / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)


def text(content):
    return lambda folder: (folder / "config.json").write_bytes(content)


def modules_file(content):
    return lambda folder: (folder / "modules.json").write_text(content)


def modules(*listed):
    return lambda folder: list_modules(folder, *listed)


def long_tokenizer(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab |= {f"more{n}": len(vocab) + n for n in range(50)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def dense(**config):
    def spoil(folder):
        list_modules(folder, BODY, POOL, (f"{OLD}Dense", "2_Dense"))
        change(folder, "1_Pooling/config.json", pooling_mode_mean_tokens=True)
        known = {"in_features": 32, "out_features": 4, "bias": False}
        change(folder, "2_Dense/config.json", **known, **config)
        if config.get("weights") != "pickle":
            save_file({"linear.weight": torch.ones(4, 32)}, folder / "2_Dense/model.safetensors")

    return spoil


SPOILED = {
    "fewer layers than weights": (layers(1), "it holds more layers than its config.json says"),
    "more layers than weights": (layers(3), r"16 of its tensors are missing \(encoder\.layer\.2"),
    "a million layers": (layers(1_000_000), "num_hidden_layers = 1000000, and its weights are"),
    "layers in words": (layers("two"), "the model does not load"),
    "no layer": (layers(0), "more layers than its config.json says"),
    "less than no layer": (layers(-1), "more layers than its config.json says"),
    "a billion labels": (lambda f: change(f, num_labels=10**9), "num_labels = 1000000000"),
    "NaN in a weight": (nan, r"encoder\.layer\.1\.output\.dense\.weight holds NaN"),
    "an index that names a pickle": (index("shard.bin"), r"names 'shard\.bin'; only \*\.safe"),
    "an index that leaves the folder": (
        index("../shard.safetensors"), r"names '\.\./shard\.safetensors'; only"),
    "an index into a folder": (index("sub/shard.safetensors"), "only .* in the same folder"),
    "no heads": (lambda f: change(f, num_attention_heads=0), "the model does not load"),
    "heads that do not divide": (lambda f: change(f, num_attention_heads=5), "does not load"),
    "an unknown activation": (lambda f: change(f, hidden_act="gelö"), "does not load .*gelö"),
    "wrong shapes": (lambda f: change(f, hidden_size=48), "the model does not load"),
    "a smaller table": (lambda f: change(f, vocab_size=20), "does not load"),
    "padding beyond the table": (lambda f: change(f, pad_token_id=9999), "does not load"),
    "no model type": (lambda f: change(f, model_type="berd"), "does not load"),
    "deep JSON": (deep, r"config\.json cannot be read"),
    "a list for a config": (text(b"[1]"), "holds a list, not a dict"),
    "a config that is no text": (text(b"\xff\xfe\x00"), r"config\.json cannot be read"),
    "an empty config": (text(b""), r"config\.json cannot be read"),
    "other weights named": (
        lambda f: change(f, transformers_weights="shard.bin"), "shard.bin"),
    "a tokenizer too large": (long_tokenizer, "its table of tokens has .* rows"),
    "modules outside": (modules((BODY[0], "../model")), r"names '\.\./model', which is no file"),
    "modules elsewhere": (modules((BODY[0], "/etc")), "names '/etc'"),
    "modules of Windows": (modules((BODY[0], "C:\\x")), "is no file in its own folder"),
    "modules on the web": (modules((BODY[0], "http://x.y/z")), "is no file in its own folder"),
    "modules that are no list": (modules_file("{}"), "holds a dict, not a list"),
    "modules without types": (modules_file('["a"]'), "no list of modules with type and path"),
    "no modules": (modules_file("[]"), r"modules\.json lists nothing"),
    "WordWeights": (modules(BODY, (f"{OLD}WordWeights", "1"), POOL), "Transformer, WordWeights, P"),
    "a CNN": (modules(BODY, (f"{OLD}CNN", "1_CNN"), POOL), "lists Transformer, CNN, Pooling"),
    "an LSTM": (modules(BODY, (f"{OLD}LSTM", "1_LSTM"), POOL), "lists Transformer, LSTM, Pooling"),
    "code of its own": (modules(BODY, ("mine.Special", "1")), "lists Transformer, Special"),
    "dense before pooling": (modules(BODY, (f"{OLD}Dense", "1"), POOL), "Transformer, Dense, Pool"),
    "two models": (modules(BODY, BODY, POOL), "lists Transformer, Transformer, Pooling"),
    "no pooling settings": (modules(BODY, POOL), r"config\.json cannot be read"),
    "a pickled dense layer": (dense(weights="pickle"), r"it has no 2_Dense/model\.safetensors"),
    "an activation of its own": (dense(activation_function="os.system"), "applies os.system"),
    "an unknown activation of torch": (
        dense(activation_function="torch.nn.modules.container.Sequential"), "embedkit applies Ide"),
    "dense on tokens": (dense(module_input_name="token_embeddings"), "to token_embeddings"),
}  # fmt: skip


@pytest.mark.fault("a spoiled model folder")
@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_folder_is_refused_in_a_sentence(copied, case):
    spoil, message = SPOILED[case]
    spoil(copied)
    start = time.monotonic()
    with pytest.raises((OSError, ValueError), match=message) as caught:
        load(copied)
    assert type(caught.value) in (OSError, ValueError)
    said = str(caught.value)
    assert (
        said.startswith(f"{copied}: ") and "\n" not in said and len(said) < 500 + len(str(copied))
    )
    assert time.monotonic() - start < 20


@pytest.mark.fault("supply chain")
def test_no_pickle_is_opened_whatever_names_it(copied):
    """Three places that could name one: the index, a dense layer, an adapter."""

    class Bomb:
        def __reduce__(self):
            return open, (str(copied / "was-run"), "w")

    dense(weights="pickle")(copied)
    for name in ("2_Dense/pytorch_model.bin", "pytorch_model.bin", "adapter_model.bin"):
        (copied / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(OSError, match="pickled weights can run code"):
        load(copied)
    shutil.rmtree(copied / "2_Dense")
    (copied / "modules.json").unlink()
    change(copied, "adapter_config.json", peft_type="LORA", base_model_name_or_path=MINILM)
    with pytest.raises(OSError, match=r"it has no adapter_model\.safetensors"):
        load(copied)
    assert not (copied / "was-run").exists()


# What a repository says


def test_a_repository_that_says_nothing(copied):
    assert load(copied).published == models.Published()


@pytest.mark.slow
def test_the_bundled_model_says_what_its_authors_meant():
    said = load(MINILM).published
    assert (said.pooling, said.normalize, said.max_length) == ("mean", True, 256)


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": ["cls", "mean"]}, "cls+mean"),
        ({"pooling_mode_weightedmean_tokens": True}, "weightedmean_tokens"),
    ],
)
def test_how_it_is_pooled(copied, config, pooling):
    list_modules(copied, BODY, POOL, NORM)
    change(copied, "1_Pooling/config.json", include_prompt=False, **config)
    change(copied, "sentence_bert_config.json", max_seq_length=128, do_lower_case=True)
    prompts = {"query": "query: ", "passage": "passage: "}
    change(
        copied, "config_sentence_transformers.json", prompts=prompts, default_prompt_name="query"
    )
    said = load(copied).published
    assert said.pooling == pooling and said.normalize and said.lower_case
    assert (said.max_length, said.include_prompt) == (128, False)
    assert (said.prompts, said.default_prompt) == (prompts, "query")


def test_the_model_may_lie_in_a_folder_that_modules_json_names(copied, tmp_path):
    expected = load(copied)
    root = tmp_path / "older"
    shutil.copytree(copied, root / "0_Transformer")
    change(root / "0_Transformer", "sentence_bert_config.json", max_seq_length=64)
    list_modules(root, (BODY[0], "0_Transformer"), ("x.Pooling", "my pooling"))
    change(root, "my pooling/config.json", pooling_mode="mean")
    found = load(root)
    assert (found.published.pooling, found.published.max_length) == ("mean", 64)
    assert torch.equal(
        states(found.model, found.processor), states(expected.model, found.processor)
    )


@pytest.mark.parametrize("activation", ["Tanh", "Identity", "GELU"])
def test_dense_layers_are_those_of_sentence_transformers(copied, tmp_path, activation):
    st = pytest.importorskip("sentence_transformers", reason="made by it, and compared with it")
    from sentence_transformers.sentence_transformer import modules as parts

    torch.manual_seed(0)
    body = parts.Transformer(str(copied))
    function = getattr(nn, activation)()
    behind = parts.Dense(32, 8, activation_function=function), parts.Normalize()
    known = st.SentenceTransformer(modules=[body, parts.Pooling(32, "mean"), *behind], device="cpu")
    known.save_pretrained(str(tmp_path / "saved"))
    found = load(tmp_path / "saved")
    texts = ["the kettle boils", "unread"]
    inputs = found.processor(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden, mask = found.model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        (layer,) = found.published.dense
        vectors = nn.functional.normalize(layer(pooled), dim=-1)
    assert found.published.normalize and found.published.pooling == "mean"
    np.testing.assert_allclose(vectors, known.encode(texts), atol=1e-6)


def test_a_model_of_two_towers_loads_with_its_tokenizer(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny("clip"), tmp_path / "model"))
    tf.AutoTokenizer.from_pretrained(tiny("bert")).save_pretrained(folder)
    assert load(folder).model.config.model_type == "clip"


# Encoders of T5 alone


@pytest.mark.parametrize("kind", ["T5", "MT5", "UMT5"])
def test_an_encoder_of_t5_alone_loads(tmp_path, kind):
    torch.manual_seed(0)
    config = getattr(tf, f"{kind}Config")(
        vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4
    )
    known = getattr(tf, f"{kind}EncoderModel")(config).eval()
    known.save_pretrained(tmp_path)
    found = load(tmp_path, processor=False).model
    ids = torch.tensor([[5, 7, 9, 1]])
    with torch.no_grad():
        expected = known(ids).last_hidden_state
        assert torch.equal(found.get_encoder()(ids).last_hidden_state, expected)


def test_a_t5_with_its_decoder_still_loads_whole(tiny):
    assert type(load(tiny("t5")).model).__name__ == "T5Model"


# Adapters


def adapter(base, name, folder, *, head=False, tokenizer=False, revision=None, **settings):
    """Save a random LoRA adapter on a base; give the model it makes."""
    torch.manual_seed(1)
    kind = tf.AutoModelForSequenceClassification if head else tf.AutoModel
    model = kind.from_pretrained(base).eval()
    task = {"task_type": "SEQ_CLS"} if head else {}
    config = LoraConfig(r=4, target_modules=["query", "value"], **task, **settings)
    adapted = get_peft_model(model, config)
    for each, values in adapted.named_parameters():
        if "lora_" in each:
            nn.init.normal_(values, std=0.3)
    adapted.save_pretrained(folder)
    change(folder, "adapter_config.json", base_model_name_or_path=name, revision=revision)
    if tokenizer:
        tf.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    model = adapted.base_model.model.eval()
    return model.bert if head else model


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"head": True}, {"tokenizer": True}, {"bias": "lora_only"}, {"use_rslora": True},
        {"use_dora": True}, {"rank_pattern": {"layer.1.attention.self.query": 2}},
        {"layers_to_transform": [1]},
    ],
    ids=str,
)  # fmt: skip
def test_an_adapter_is_merged_into_its_base(tiny, tmp_path, settings):
    known = adapter(tiny("bert"), tiny("bert"), tmp_path, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, plain = load(tmp_path), load(tiny("bert"))
    got = states(found.model, found.processor)
    assert type(found.model) is type(plain.model) is tf.BertModel
    torch.testing.assert_close(got, states(known, plain.processor), atol=1e-5, rtol=0)
    assert (got - states(plain.model, plain.processor)).abs().max() > 0.01
    assert found.published == models.Published()  # its base's authors did not mean this one
    assert not any(values.requires_grad for values in found.model.parameters())


@pytest.mark.slow
def test_an_adapter_on_minilm_takes_the_bundled_one(tmp_path):
    known = adapter(_bundled.model_folder(MINILM), ON_HUB, tmp_path)
    found = load(tmp_path)
    torch.testing.assert_close(
        states(found.model, found.processor), states(known, found.processor), atol=1e-5, rtol=1e-4
    )


@pytest.mark.bad_input("adapters")
@pytest.mark.parametrize(
    ("change_it", "message"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "an adapter of type PREFIX_TUNING"),
        ({"base_model_name_or_path": None}, "that name their base model"),
        ({"base_model_name_or_path": "./nowhere"}, "no such folder"),
        ({"base_model_name_or_path": "me/unseen"}, "HF_HUB_OFFLINE is set"),
        ({"target_modules": ["query"]}, "does not fit the base model"),
        ({"target_modules": ["query", "value", "key"]}, "does not fit the base model"),
        ({"target_modules": ["nothing"]}, "does not load"),
        ({"r": 8}, "does not load"),
        ({"r": 0}, "does not load"),
    ],
    ids=str,
)
def test_adapters_that_cannot_be_merged(tiny, tmp_path, change_it, message):
    adapter(tiny("bert"), tiny("bert"), tmp_path)
    change(tmp_path, "adapter_config.json", **change_it)
    with pytest.raises((OSError, ValueError), match=message) as caught:
        load(tmp_path)
    assert type(caught.value) in (OSError, ValueError) and "\n" not in str(caught.value)


@pytest.mark.bad_input("adapters")
def test_an_adapter_of_a_different_model_or_of_itself(tiny, tmp_path):
    adapter(tiny("bert"), tiny("gpt2"), tmp_path / "a")
    with pytest.raises(OSError, match="does not load"):
        load(tmp_path / "a")
    adapter(tiny("bert"), str(tmp_path / "a"), tmp_path / "b")
    with pytest.raises(ValueError, match="is an adapter, too; merge that one first"):
        load(tmp_path / "b")
    weights = load_file(tmp_path / "b" / "adapter_model.safetensors")
    save_file({key: value / 0 for key, value in weights.items()},
              tmp_path / "b" / "adapter_model.safetensors")  # fmt: skip
    change(tmp_path / "b", "adapter_config.json", base_model_name_or_path=tiny("bert"))
    with pytest.raises(ValueError, match="adapter holds NaN"):
        load(tmp_path / "b")


# Settings, names and fingerprints


@pytest.mark.bad_input("settings")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trust_remote_code": True}, "would run the repository's code"),
        ({"trust_remote_code": False}, "leave it out of model_kwargs"),
        ({"use_safetensors": False}, "use_safetensors is set by embedkit"),
        ({"dtype": "float64"}, "dtype is set by embedkit"),
        ({"token": "hf_secret"}, "token is set by embedkit"),
    ],
    ids=str,
)
def test_settings_that_are_ours(tiny, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(tiny("bert"), model_kwargs=options)
    assert "hf_secret" not in str(caught.value)


def test_settings_of_from_pretrained_arrive(tiny):
    assert (
        load(tiny("bert"), attn_implementation="eager").model.config._attn_implementation == "eager"
    )
    assert load(
        tiny("bert"), model_kwargs={"output_attentions": True}
    ).model.config.output_attentions


def test_a_folder_has_one_name_in_every_working_folder(tiny, tmp_path, monkeypatch):
    home = tmp_path / "home"
    shutil.copytree(tiny("bert"), home / "model")
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    for name in ("model", "./model", "~/model", Path("model")):
        assert models.absolute(name) == str(home / "model")
        assert load(name, processor=False).model.config.hidden_size == 32
    for name in (MINILM, "me/model", "nowhere", ""):
        assert models.absolute(name) == name


def test_a_fingerprint_changes_with_every_file_that_matters(copied):
    list_modules(copied, BODY, POOL)
    change(copied, "1_Pooling/config.json", pooling_mode="mean")
    seen = {models.fingerprint(copied)}
    for file in ("model.safetensors", "config.json", "tokenizer.json", "1_Pooling/config.json"):
        path = copied / file
        path.write_bytes(path.read_bytes() + b" ")
        seen.add(models.fingerprint(copied))
    assert len(seen) == 5
    (copied / "README.md").write_text("more")
    assert models.fingerprint(copied) in seen
    assert models.fingerprint(MINILM) == ()


def test_a_fingerprint_of_an_adapter_has_its_base_in_it(tiny, tmp_path, copied):
    adapter(tiny("bert"), str(copied), tmp_path / "adapter")
    before = models.fingerprint(tmp_path / "adapter")
    (copied / "config.json").write_bytes((copied / "config.json").read_bytes() + b" ")
    assert models.fingerprint(tmp_path / "adapter") != before


def test_a_fingerprint_sees_the_base_of_an_adapter_that_a_list_of_modules_names(
    tiny, tmp_path, copied
):
    (tmp_path / "listed").mkdir()
    list_modules(tmp_path / "listed", (BODY[0], "0_Transformer"), POOL)
    adapter(tiny("bert"), str(copied), tmp_path / "listed" / "0_Transformer")
    before = models.fingerprint(tmp_path / "listed")
    (copied / "config.json").write_bytes((copied / "config.json").read_bytes() + b" ")
    assert models.fingerprint(tmp_path / "listed") != before


def test_a_fingerprint_of_a_hub_id_is_its_commit(monkeypatch, tmp_path):
    home = tmp_path / "models--me--model"
    seen = []
    for number in ("1", "2"):
        commit = number * 40
        (home / "snapshots" / commit).mkdir(parents=True)
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / "main").write_text(commit)
        seen.append(models.fingerprint("me/model", cache_dir=tmp_path))
    assert seen == [("1" * 40,), ("2" * 40,)]
    assert models.fingerprint("me/model", revision="v0", cache_dir=tmp_path) == ()
    assert hub.cached_commit("what is this?") == ()


def test_a_model_of_timm_is_timms_or_names_what_it_needs(tmp_path):
    """No build of torchvision fits the CPU's torch everywhere, so both answers are right."""
    try:
        import timm
        import torchvision  # noqa: F401
    except ImportError:
        change(tmp_path, architecture="resnet18", pretrained_cfg={"input_size": [3, 32, 32]})
        save_file({"conv1.weight": torch.ones(1)}, tmp_path / "model.safetensors")
        with pytest.raises(OSError, match=r"a model of timm, which needs the packages timm and t"):
            models.load(tmp_path, kind="image")
        return
    model = timm.create_model("test_vit").eval()
    timm.models._hub.save_for_hf(model, str(tmp_path), safe_serialization=True)
    found = models.load(tmp_path, kind="image")
    prepare = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    with torch.no_grad():
        got = found.model(**found.processor([picture(0)], return_tensors="pt")).last_hidden_state
        torch.testing.assert_close(got, model.forward_features(prepare(picture(0))[None]))
