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
import transformers as tf

import embedkit as ek
from tests.hub import Hub, commit

ROOT = Path(__file__).parents[1]
# In a process of its own, because huggingface_hub reads its settings when it is imported.
ASK = """
import json, sys, time, warnings
import numpy as np
import embedkit as ek
ek.TextEncoder, ek.load_data  # imported before the clock runs
results = {}
for key, (kind, name, settings) in json.loads(sys.argv[1]).items():
    start = time.time()
    try:
        if kind == "load_data":
            results[key] = {"rows": [row["text"] for row in ek.load_data(name, **settings)]}
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
}
AGAIN = ("text", "image", "ner", "revision", "sharded", "cut download", "data", "data revision")


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
    statuses = {"me/secret": 401, "me/secretdata": 401, "me/busy": 429, "me/busydata": 429}
    statuses |= {"me/ill": 500, "me/illdata": 500}
    gated = "me/gated", "datasets/me/gateddata"
    found = {}
    with Hub(repositories, gated=gated, statuses=statuses, cut=("me/cut",)) as server:
        found["up"] = ask(server.url, tmp / "home", WANTED)
        again = {key: WANTED[key] for key in AGAIN}
        server.statuses = {key.removeprefix("datasets/"): 500 for key in repositories}
        found["ill"] = ask(server.url, tmp / "home", again)
    unseen = {"unseen": (TEXT, "me/other", {}), "unseen data": (DATA, "me/otherdata", {})}
    found["gone"] = ask(server.url, tmp / "home", again | unseen)
    found["offline"] = ask(server.url, tmp / "home", again | unseen, HF_HUB_OFFLINE="1")
    return found, server.requests, str(tmp / "cut")


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
    }


@pytest.mark.fault("the Hub serves")
@pytest.mark.parametrize("key", [*AGAIN, "commit"])
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
    ],
)
def test_each_refusal_names_the_repository_the_cause_and_the_next_step(hub, key, parts):
    result = hub[0]["up"][key]
    assert result.get("error") == "OSError", result
    for part in parts:
        assert part in result["message"], result["message"]
    assert result["seconds"] < 20


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
