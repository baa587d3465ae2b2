"""The Hub, for real, on the loopback: everything it serves, every way it fails, and it gone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as tf
from safetensors.torch import save_file

import embedkit as ek
from embedkit.loading import models
from tests.hub import Hub, commit
from tests.test_loading import adapter, change, list_modules

ROOT = Path(__file__).parents[1]
# In a process of its own, because huggingface_hub reads its settings when it is imported.
ASK = """
import json, sys, time, warnings
import numpy as np
import embedkit as ek
from embedkit.loading import models
ek.TextEncoder, ek.load_data  # imported before the clock runs
results = {}
for key, (kind, name, settings) in json.loads(sys.argv[1]).items():
    start = time.time()
    try:
        if kind == "load_data":
            data = ek.load_data(name, **settings)
            results[key] = {"rows": data["text"][:], "labels": data[:].get("label")}
        elif kind == "load":
            loaded = models.load(name, kind="text", **settings)
            ids = loaded.processor(["the kettle boils"], return_tensors="pt")
            state = loaded.model(**ids).last_hidden_state
            vectors = [[float(value) for value in state[0, 0]]]
            results[key] = {"vectors": vectors, "commit": loaded.commit,
                            "pooling": loaded.published.pooling,
                            "dense": len(loaded.published.dense),
                            "fingerprint": models.fingerprint(name, **{k: v for k, v in
                            settings.items() if k == "revision"})}
        else:
            encoder = getattr(ek, kind)(name, **settings)
            image = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
            given = [image] if kind == "ImageEncoder" else ["the kettle boils"]
            found = encoder.encode(given)
            results[key] = {"vectors": getattr(found, "vectors", found).tolist()}
    except Exception as error:
        results[key] = {"error": type(error).__name__, "message": str(error)}
    results[key]["seconds"] = time.time() - start
print(json.dumps(results))
"""
TEXT, IMAGE, WORD, DATA = "TextEncoder", "ImageEncoder", "WordEncoder", "load_data"
LOAD = "load"
pytestmark = pytest.mark.slow


def ask(url, home, wanted, **env):
    """Load things in a new process that takes `url` for the Hub; give results or errors."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    clean |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    clean |= {"NO_PROXY": "*", "PYTHONPATH": str(ROOT), "DISABLE_SAFETENSORS_CONVERSION": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(wanted)],
        env=clean | env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


WANTED = {
    "text": (TEXT, "me/bert", {}),
    "image": (IMAGE, "me/vit", {}),
    "ner": (WORD, "me/bert", {}),
    "revision": (TEXT, "me/bert", {"revision": "v0"}),
    "commit": (TEXT, "me/bert", {"revision": commit("me/bert", "v0")}),
    "sharded": (TEXT, "me/sharded", {}),
    "cut download": (TEXT, "me/cut", {}),
    "data": (DATA, "me/data", {}),
    "data revision": (DATA, "me/data", {"revision": "v0"}),
    "401": (TEXT, "me/secret", {}),
    "401 data": (DATA, "me/secretdata", {}),
    "403 gated": (TEXT, "me/gated", {}),
    "403 gated data": (DATA, "me/gateddata", {}),
    "404": (TEXT, "me/brt", {}),
    "404 data": (DATA, "me/dta", {}),
    "404 revision": (DATA, "me/data", {"revision": "v9"}),
    "429": (TEXT, "me/busy", {}),
    "429 data": (DATA, "me/busydata", {}),
    "500": (TEXT, "me/ill", {}),
    "500 data": (DATA, "me/illdata", {}),
    "corrupt": (TEXT, "me/corrupt", {}),
    "empty data": (DATA, "me/emptydata", {}),
    "script": (DATA, "me/script", {}),
    "script's copy": (DATA, "me/script", {"revision": "refs/convert/parquet"}),
    "part": (DATA, "me/parts", {"config": "b", "split": "test"}),
    "no part": (DATA, "me/parts", {}),
    "unknown part": (DATA, "me/parts", {"config": "c"}),
    "addresses": (DATA, "me/addresses", {}),
    "token data": (DATA, "me/privatedata", {"token": "hf_right"}),
    "wrong token data": (DATA, "me/privatedata", {"token": "hf_wrong"}),
    "token": (LOAD, "me/private", {"token": "hf_right"}),
    "wrong token": (LOAD, "me/private", {"token": "hf_wrong"}),
    "adapter": (LOAD, "me/adapter", {}),
    "adapter of v0": (LOAD, "me/adapter0", {}),
    "adapter of a folder": (LOAD, "me/adapter1", {}),
    "sentence": (LOAD, "me/sentence", {}),
    "503 weights": (LOAD, "me/weightless", {}),
    "pickled part": (LOAD, "me/bin", {}),
}
AGAIN = ("text", "image", "ner", "revision", "sharded", "cut download", "data", "data revision")
AGAIN += ("script's copy", "part", "adapter", "adapter of v0", "sentence")


MORE_MODELS = "private", "adapter", "adapter0", "adapter1", "sentence", "weightless", "bin"
MORE_DATA = "script", "parts", "addresses", "privatedata"


def write_more(tiny, tmp):
    """Write repositories with something particular about each."""
    more = tmp / "more"
    for name in ("private", "sentence", "weightless", "bin"):
        shutil.copytree(tiny("bert"), more / name)
    for name, base, revision in (
        ("adapter", "me/bert", None),
        ("adapter0", "me/bert", "v0"),
        ("adapter1", tiny("bert"), None),
    ):
        of = tiny("short_bert" if revision else "bert")
        adapter(of, base, more / name, revision=revision)
    modules = ("x.Transformer", ""), ("x.Pooling", "pool"), ("x.Dense", "2_Dense")
    list_modules(more / "sentence", *modules)
    change(more / "sentence", "pool/config.json", pooling_mode="mean")
    change(more / "sentence", "2_Dense/config.json", activation_function="torch.nn.Tanh")
    save_file({"linear.weight": torch.ones(4, 32)}, more / "sentence/2_Dense/model.safetensors")
    (more / "sentence" / "onnx").mkdir()
    (more / "sentence" / "onnx" / "config.json").write_text("{}")
    shutil.move(more / "bin" / "model.safetensors", more / "bin" / "shard.bin")
    change(more / "bin", "model.safetensors.index.json", weight_map={"a": "shard.bin"})
    for name in (*MORE_DATA, "copy/default/train"):
        (more / name).mkdir(parents=True)
    (more / "script" / "script.py").write_text("raise SystemExit")
    pd.DataFrame({"text": ["a spoon"]}).to_parquet(more / "copy/default/train/0000.parquet")
    (more / "copy" / ".gitattributes").write_text("")
    configs = []
    for part, labels in {"a": "xy", "b": "xyz"}.items():
        for split in ("train", "test"):
            rows = labels if split == "train" else labels[-1]
            content = "".join(f"{part} {label},{label}\n" for label in rows)
            (more / "parts" / f"{part}-{split}.csv").write_text(f"text,label\n{content}")
        files = "".join(f"  - split: {s}\n    path: {part}-{s}.csv\n" for s in ("train", "test"))
        configs.append(f"- config_name: {part}\n  data_files:\n{files}")
    (more / "parts" / "README.md").write_text(f"---\nconfigs:\n{''.join(configs)}---\n")
    away = "---\nconfigs:\n- config_name: default\n  data_files: http://127.0.0.1:9/a.csv\n---\n"
    (more / "addresses" / "README.md").write_text(away)
    pd.DataFrame({"text": ["a secret"]}).to_csv(more / "privatedata" / "train.csv", index=False)
    return more


@pytest.fixture(scope="module")
def hub(tiny, tmp_path_factory):
    """Ask a Hub for everything; ask again when it is ill, gone, and forbidden."""
    tmp = tmp_path_factory.mktemp("hub")
    tf.AutoModel.from_pretrained(tiny("bert")).save_pretrained(tmp / "shards", max_shard_size="9KB")
    for name in ("corrupt", "cut", "sharded"):
        shutil.copytree(tiny("bert"), tmp / name)
    settings = tf.AutoConfig.from_pretrained(tiny("bert"), vocab_size=200_000)
    # Over 20 MB, because a download is written, and can be taken up again, in pieces of 10 MB.
    tf.AutoModel.from_config(settings).save_pretrained(tmp / "cut")
    (tmp / "sharded" / "model.safetensors").unlink()
    shutil.copytree(tmp / "shards", tmp / "sharded", dirs_exist_ok=True)
    assert len(list((tmp / "sharded").glob("*.safetensors"))) > 2
    weights = tmp / "corrupt" / "model.safetensors"
    weights.write_bytes(b"\x00" * 9 + weights.read_bytes()[9:])
    for name, rows in {"data": ["a kettle", "a novel"], "old": ["a lamp"]}.items():
        (tmp / name).mkdir()
        pd.DataFrame({"text": rows}).to_csv(tmp / name / "train.csv", index=False)
        (tmp / name / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp / "empty").mkdir()
    (tmp / "empty" / "README.md").write_text("nothing")
    repositories = {
        "me/bert": {"main": Path(tiny("bert")), "v0": Path(tiny("short_bert"))},
        "me/vit": {"main": Path(tiny("vit"))},
        **{f"me/{name}": {"main": tmp / name} for name in ("corrupt", "cut", "sharded")},
        "datasets/me/data": {"main": tmp / "data", "v0": tmp / "old"},
        "datasets/me/emptydata": {"main": tmp / "empty"},
    }
    more = write_more(tiny, tmp)
    repositories |= {f"me/{name}": {"main": more / name} for name in MORE_MODELS}
    repositories |= {f"datasets/me/{name}": {"main": more / name} for name in MORE_DATA}
    repositories["datasets/me/script"]["refs/convert/parquet"] = more / "copy"
    weights = f"me/weightless/resolve/{commit('me/weightless', 'main')}/model.safetensors"
    statuses = {
        weights: 503,
        "me/secret": 401,
        "me/secretdata": 401,
        "me/busy": 429,
        "me/busydata": 429,
    }
    statuses |= {"me/ill": 500, "me/illdata": 500}
    gated = "me/gated", "datasets/me/gateddata"
    found = {}
    tokens = {"me/private": "hf_right", "me/privatedata": "hf_right"}
    with Hub(
        repositories, gated=gated, statuses=statuses, cut=("me/cut",), tokens=tokens
    ) as server:
        found["up"] = ask(server.url, tmp / "home", WANTED)
        again = {key: WANTED[key] for key in AGAIN}
        server.statuses = {key.removeprefix("datasets/"): 500 for key in repositories}
        found["ill"] = ask(server.url, tmp / "home", again)
    unseen = {"unseen": (TEXT, "me/other", {}), "unseen data": (DATA, "me/otherdata", {})}
    found["gone"] = ask(server.url, tmp / "home", again | unseen)
    found["offline"] = ask(server.url, tmp / "home", again | unseen, HF_HUB_OFFLINE="1")
    return found, server.requests, str(tmp / "cut"), more


@pytest.fixture(scope="module")
def expected(tiny, hub):
    """What the same things give from their folders."""
    grey = [np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)]
    text = ek.TextEncoder(tiny("bert")).encode(["the kettle boils"])
    return {
        "text": text,
        "sharded": text,
        "cut download": ek.TextEncoder(hub[2]).encode(["the kettle boils"]),
        "image": ek.ImageEncoder(tiny("vit")).encode(grey),
        "ner": ek.WordEncoder(tiny("bert")).encode(["the kettle boils"]).vectors,
        "revision": ek.TextEncoder(tiny("short_bert")).encode(["the kettle boils"]),
        "commit": ek.TextEncoder(tiny("short_bert")).encode(["the kettle boils"]),
        "data": ["a kettle", "a novel"],
        "data revision": ["a lamp"],
        "script's copy": ["a spoon"],
        "part": ["b z"],
        "token data": ["a secret"],
        "token": first_token(tiny("bert")),
        "adapter": first_token(hub[3] / "adapter", base=tiny("bert")),
        "adapter of v0": first_token(hub[3] / "adapter0", base=tiny("short_bert")),
        "sentence": first_token(tiny("bert")),
    }


def first_token(folder, base=None):
    """Load from a folder; an adapter on the folder of its base."""
    if base:
        change(folder, "adapter_config.json", base_model_name_or_path=base, revision=None)
    loaded = models.load(folder, kind="text")
    with torch.no_grad():
        ids = loaded.processor(["the kettle boils"], return_tensors="pt")
        return loaded.model(**ids).last_hidden_state[0, :1].numpy()


@pytest.mark.fault("the Hub serves")
@pytest.mark.parametrize("key", [*AGAIN, "commit", "token", "token data"])
def test_what_the_hub_serves(hub, expected, key):
    same(hub[0]["up"][key], expected[key])


@pytest.mark.fault("from the cache")
@pytest.mark.parametrize("state", ["ill", "gone", "offline"])
@pytest.mark.parametrize("key", AGAIN)
def test_what_was_loaded_once_loads_again_without_the_hub(hub, expected, key, state):
    same(hub[0][state][key], expected[key])
    assert hub[0][state][key]["seconds"] < 20


def same(result, expected) -> None:
    if "rows" in result:
        assert result["rows"] == expected
    else:
        assert "vectors" in result, result
        np.testing.assert_allclose(result["vectors"], expected, rtol=0, atol=1e-5)


@pytest.mark.fault("the Hub serves")
def test_a_cut_download_goes_on_where_it_broke_off(hub):
    weights = [line for line in hub[1] if "me/cut/" in line and "safetensors" in line]
    assert any("model.safetensors bytes=" in line and "bytes=0-" not in line for line in weights), (
        weights
    )


@pytest.mark.fault("the Hub refuses")
@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("401", ["me/secret: the Hub has no such repository, or it is private", "token", "log in"]),
        ("401 data", ["me/secretdata", "private", "token", "log in"]),
        ("403 gated", ["me/gated: the repository is gated; ask for access", "/me/gated"]),
        ("403 gated data", ["me/gateddata", "gated; ask for access", "/datasets/me/gateddata"]),
        ("404", ["me/brt: the Hub has no such repository", "check the spelling"]),
        ("404 data", ["me/dta", "the Hub has no such repository", "check the spelling"]),
        ("404 revision", ["me/data", "no revision 'v9'", "look up its branches"]),
        ("429", ["me/busy: the Hub answered with status 429", "too many requests", "bundled/"]),
        ("429 data", ["me/busydata", "status 429", "too many requests", "bundled/"]),
        ("500", ["me/ill: the Hub answered with status 500", "fault on its side", "bundled/"]),
        ("500 data", ["me/illdata", "status 500", "fault on its side", "bundled/"]),
        ("corrupt", ["me/corrupt: the model does not load"]),
        ("empty data", ["me/emptydata", "Check the name"]),
        ("script", ["me/script", "scripts are no longer run", "refs/convert/parquet", "conll-03"]),
        ("no part", ["me/parts", "'a', 'b'", "`config`"]),
        ("unknown part", ["me/parts", "'a', 'b'", "`config`"]),
        ("wrong token", ["me/private: the Hub has no such repository", "the token that was sent"]),
        ("wrong token data", ["me/privatedata", "the token that was sent is not valid"]),
        ("503 weights", ["me/weightless: the Hub answered with status 503", "fault on its side"]),
    ],
)
def test_each_refusal_names_the_repository_the_cause_and_the_next_step(hub, key, parts):
    result = hub[0]["up"][key]
    assert result.get("error") == "OSError", result
    for part in parts:
        assert part in result["message"], result["message"]
    assert "hf_" not in result["message"]  # no token is printed
    # One file may be a moment's fault, and huggingface_hub asks for it for half a minute.
    assert result["seconds"] < (60 if key == "503 weights" else 20)


@pytest.mark.fault("supply chain")
@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("addresses", "names addresses on the web as data"),
        ("pickled part", "names 'shard.bin'; only *.safetensors"),
        ("adapter of a folder", "on the Hub it has to be a Hub id"),
    ],
)
def test_what_a_repository_may_not_name(hub, key, message):
    result = hub[0]["up"][key]
    assert result.get("error") == "ValueError" and message in result["message"], result
    assert not [line for line in hub[1] if "shard.bin" in line and "/resolve/" in line]


@pytest.mark.fault("the Hub serves")
def test_what_a_repository_publishes_comes_with_it(hub):
    result = hub[0]["up"]["sentence"]
    assert (result["pooling"], result["dense"]) == ("mean", 1)
    at = commit("me/sentence", "main")
    assert (result["commit"], result["fingerprint"]) == (at, [at])
    assert not [line for line in hub[1] if "/resolve/" in line and "onnx" in line]


@pytest.mark.fault("the Hub serves")
@pytest.mark.parametrize("state", ["up", "ill", "gone", "offline"])
def test_labels_are_numbered_over_all_splits(hub, state):
    assert hub[0][state]["part"]["labels"] == [2]


@pytest.mark.fault("the Hub refuses")
@pytest.mark.parametrize("key", ["unseen", "unseen data"])
def test_without_the_hub_the_network_is_blamed_and_soon(hub, key):
    gone, offline = hub[0]["gone"][key], hub[0]["offline"][key]
    assert "the network failed, not the name" in gone["message"], gone
    assert "HF_HUB_OFFLINE is set" in offline["message"], offline
    assert gone["seconds"] < 10 and offline["seconds"] < 10


@pytest.mark.fault("the Hub refuses")
def test_a_hub_that_never_answers_is_given_up_on_for_data_too(tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        result = ask(url, tmp_path, {"data": (DATA, "me/data", {})}, HF_HUB_ETAG_TIMEOUT="3")
    assert "the network failed, not the name" in result["data"]["message"]
    assert result["data"]["seconds"] < 15
