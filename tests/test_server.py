"""The local endpoint: OpenAI's shapes, limits and errors, through OpenAI's own client."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openai
import pytest
import transformers as tf
from conftest import sentence

import embedkit as ek
from embedkit._reader import Reader
from embedkit.server import main

ROOT = Path(__file__).parents[1]
MODEL = "bundled/all-MiniLM-L6-v2"


class Recording(ek.TextEncoder):
    """A real encoder that notes what it is given, and can be made to wait."""

    def encode(self, inputs, **settings):
        if not hasattr(self, "calls"):
            self.calls, self.go = [], threading.Event()
            self.go.set()
        self.calls.append(list(inputs))
        assert self.go.wait(60)
        if "break" in inputs:
            raise RuntimeError("the model is broken")
        return super().encode(inputs, **settings)


@pytest.fixture(scope="module")
def encoder(tiny):
    """A small encoder; it reads 16 tokens."""
    encoder = Recording(tiny("short_bert"), pooling="mean", normalize=True)
    encoder.encode(["a"])
    return encoder


@pytest.fixture(scope="module")
def url(encoder):
    with ek.serve(encoder) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def name(client):
    return client.models.list().data[0].id


def vectors_of(answer):
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    return np.array([item.embedding for item in answer.data], np.float32)


def post(url, body, *, method="POST", **headers):
    """Send what no well-behaved client would; give status and error."""
    headers = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(url, body, headers, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)["error"]


# Right answers


@pytest.mark.slow
def test_vectors_are_those_of_the_encoder():
    """Through server and client, as numbers and as base64, long and short texts together."""
    generator = np.random.default_rng(0)
    texts = [sentence(int(words), generator) for words in generator.integers(1, 120, 40)]
    texts += ["naïve café, 茶!", "a"]
    expected = ek.TextEncoder(MODEL, pooling="mean", normalize=True).encode(texts)
    with ek.serve(MODEL) as url, openai.OpenAI(base_url=url, api_key="none") as client:
        for settings in ({}, {"encoding_format": "float"}):
            answer = client.embeddings.create(model=MODEL, input=texts, **settings)
            np.testing.assert_allclose(vectors_of(answer), expected, atol=1e-5)
        vectors = ek.OpenAIEncoder(MODEL, base_url=url).encode(texts)
        np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_a_single_text(client, name, encoder):
    answer = client.embeddings.create(model=name, input="a kettle")
    np.testing.assert_allclose(vectors_of(answer), encoder.encode(["a kettle"]), atol=1e-5)
    assert answer.model == name and answer.object == "list"
    assert answer.data[0].object == "embedding"
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 4  # [CLS] a kettle [SEP]


@pytest.mark.parametrize("dimensions", [1, 5, 32])
def test_dimensions_cuts_and_scales_to_length_1(client, name, encoder, dimensions):
    texts = ["a kettle", "the river"]
    answer = client.embeddings.create(model=name, input=texts, dimensions=dimensions)
    expected = encoder.encode(texts)[:, :dimensions]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors_of(answer), expected, atol=1e-5)
    vectors = ek.OpenAIEncoder(name, base_url=str(client.base_url), dimensions=dimensions)
    np.testing.assert_allclose(vectors.encode(texts), expected, atol=1e-5)


def test_an_encoder_of_ones_own_is_served_as_it_is(tiny):
    encoder = ek.TextEncoder(tiny("gpt2"), pooling="last")
    expected = encoder.encode(["a kettle", "the river"])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    with ek.serve(encoder) as url, openai.OpenAI(base_url=url, api_key="none") as client:
        name = client.models.list().data[0].id
        answer = client.embeddings.create(model=name, input=["a kettle", "the river"])
    np.testing.assert_allclose(vectors_of(answer), expected, atol=1e-5)
    assert name == Path(tiny("gpt2")).name  # no path of this machine


def test_the_name_of_a_loaded_model(tiny):
    by_folder = ek.TextEncoder(tiny("bert"))
    loaded = ek.TextEncoder(by_folder.model, processor=by_folder.processor)
    with ek.serve(loaded) as url, openai.OpenAI(base_url=url, api_key="none") as client:
        assert client.models.list().data[0].id == "BertModel"


def test_models(client, name):
    (only,) = client.models.list().data
    assert (only.id, only.object) == (name, "model")
    assert client.models.retrieve(name) == only
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.models.retrieve("another/model")


@pytest.mark.slow
def test_tokens_are_counted_as_the_model_reads_them(tiny, tmp_path):
    """One of a repository that lowers texts before it reads them."""
    folder = shutil.copytree(tiny("bert"), tmp_path / "model")
    cased = tf.AutoTokenizer.from_pretrained(folder, do_lower_case=False)
    cased.save_pretrained(folder)
    kind = "sentence_transformers.models.Transformer"
    modules = [{"idx": 0, "name": "0", "path": "", "type": kind}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": True}))
    assert len(cased("KETTLES")["input_ids"]) != len(cased("kettles")["input_ids"])
    with ek.serve(folder) as url, openai.OpenAI(base_url=url, api_key="none") as client:
        answer = client.embeddings.create(model=client.models.list().data[0].id, input="KETTLES")
    assert answer.usage.prompt_tokens == len(cased("kettles")["input_ids"])


# Wrong questions


@pytest.mark.parametrize(
    ("changed", "status", "param", "code", "message"),
    [
        ({"input": ""}, 400, "input", None, "input 0 is empty"),
        ({"input": ["a", ""]}, 400, "input", None, "input 1 is empty"),
        ({"input": []}, 400, "input", None, "at least one text"),
        ({"input": None}, 400, "input", None, "at least one text"),
        ({"input": ["a"] * 2049}, 400, "input", None, "2049 texts and a request may hold 2048"),
        ({"input": [1, 2]}, 400, "input", None, "token numbers"),
        ({"input": [[1, 2]]}, 400, "input", None, "token numbers"),
        ({"input": ["a", {}]}, 400, "input", None, "input 1 is a dict"),
        ({"input": ["a", "\ud800"]}, 400, "input", None, "input 1 has half a character"),
        (
            {"input": ["a", "a " * 15]},
            400,
            "input",
            "context_length_exceeded",
            "input 1 has 17 tokens and the model reads 16",
        ),
        ({"model": "other"}, 404, "model", "model_not_found", 'there is no model "other"'),
        ({"model": None}, 400, "model", None, "no model is named"),
        ({"dimensions": 0}, 400, "dimensions", None, "from 1 to 32"),
        ({"dimensions": 33}, 400, "dimensions", None, "from 1 to 32"),
        ({"dimensions": 2.5}, 400, "dimensions", None, "from 1 to 32"),
        ({"dimensions": True}, 400, "dimensions", None, "from 1 to 32"),
        ({"encoding_format": "hex"}, 400, "encoding_format", None, "choose from float, base64"),
        ({"encoding_format": ["float"]}, 400, "encoding_format", None, "choose from"),
    ],
)
def test_errors_have_the_shape_of_openai(url, name, changed, status, param, code, message):
    body = json.dumps({"model": name, "input": "a", **changed}).encode()
    found, error = post(f"{url}/embeddings", body)
    assert found == status
    assert set(error) == {"message", "type", "param", "code"}
    assert message in error["message"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b"[" * 100_000, b'"a"', b'{"a": 1e999']
)
def test_broken_json(url, body):
    status, error = post(f"{url}/embeddings", body)
    assert status == 400 and "JSON" in error["message"]


def test_too_much_is_refused_before_it_is_read_to_the_end(url):
    status, error = post(f"{url}/embeddings", b" " * (9 * 2**20))
    assert status == 413 and "larger than 8 MiB" in error["message"]


@pytest.mark.slow
def test_too_many_tokens_in_a_request():
    texts = ["a " * 200] * 1600
    with ek.serve(MODEL) as url:
        status, error = post(
            f"{url}/embeddings", json.dumps({"model": MODEL, "input": texts}).encode()
        )
    assert (status, error["code"]) == (400, "max_tokens_per_request")


def test_wrong_addresses(url):
    status, error = post(f"{url}/embedding", b"{}")
    assert status == 404 and "/v1/embedding: Not Found" in error["message"]
    status, error = post(f"{url}/embeddings", None, method="GET")
    assert status == 405 and error["type"] == "invalid_request_error"


def test_a_fault_of_the_model_is_a_fault_of_the_server(client, name):
    with pytest.raises(openai.InternalServerError, match="the model failed") as caught:
        client.embeddings.create(model=name, input=["break"])
    assert caught.value.body["type"] == "server_error"
    assert client.embeddings.create(model=name, input="a").data  # and it goes on


def test_a_key_is_asked_of_everyone(encoder):
    with ek.serve(encoder, api_key="the-key") as url:
        for key in ("the-kez", "the", "ключ", ""):
            header = {"Authorization": f"Bearer {key}".encode()}
            status, error = post(f"{url}/models", None, method="GET", **header)
            assert (status, error["code"]) == (401, "invalid_api_key")
            assert "the-key" not in error["message"]
        assert post(f"{url}/embeddings", b"{}")[0] == 401
        with openai.OpenAI(base_url=url, api_key="the-key") as client:
            (model,) = client.models.list().data
            assert client.embeddings.create(model=model.id, input="a").data


# Under load


@pytest.mark.slow
def test_requests_that_wait_are_read_together(client, name, encoder):
    texts = [f"the {word} lamp" for word in ("a", "red", "blue", "warm", "cold", "bright")]
    expected = encoder.encode(texts)
    encoder.calls.clear()
    encoder.go.clear()
    with ThreadPoolExecutor(10) as pool:
        ask = lambda text: client.embeddings.create(model=name, input=text)  # noqa: E731
        first = pool.submit(ask, "the bag")
        while not encoder.calls:  # the model is busy now
            time.sleep(0.01)
        answers = [pool.submit(ask, text) for text in texts]
        wrong = [pool.submit(ask, text) for text in ("a " * 15, "break")]
        time.sleep(0.5)
        encoder.go.set()
        assert first.result().data
        found = np.concatenate([vectors_of(answer.result()) for answer in answers])
        # One request's fault is not its neighbours'.
        assert isinstance(wrong[0].exception(), openai.BadRequestError)
        assert isinstance(wrong[1].exception(), openai.InternalServerError)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert encoder.calls[0] == ["the bag"]
    assert sorted(encoder.calls[1]) == sorted([*texts, "break"])


def test_who_hangs_up_does_no_harm(url, client, name, encoder):
    encoder.calls.clear()
    encoder.go.clear()
    body = json.dumps({"model": name, "input": "the bag"}).encode()
    host, port = re.search(r"//(.+):(\d+)/", url).groups()
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    for _ in range(3):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + body)
            time.sleep(0.1)
    encoder.go.set()
    assert client.embeddings.create(model=name, input="a kettle").data


def test_what_was_cancelled_is_not_read(encoder):
    reader = Reader(encoder)
    encoder.calls.clear()
    encoder.go.clear()
    first = reader.read(["the bag"])
    while not encoder.calls:
        time.sleep(0.01)
    assert reader.read(["the river"]).cancel()
    third = reader.read(["the lamp"])
    encoder.go.set()
    assert len(first.result(30).vectors) == len(third.result(30).vectors) == 1
    assert encoder.calls == [["the bag"], ["the lamp"]]
    reader.stop()


# Where it listens, and how it ends


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 has to be set up first")
def test_only_this_machine_can_reach_it(url):
    port = int(re.search(r"127\.0\.0\.1:(\d+)", url).group(1))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port)).close()


def test_it_ends_with_the_block(encoder):
    threads = set(threading.enumerate())
    with pytest.raises(KeyError), ek.serve(encoder) as url:
        assert post(f"{url}/embeddings", b"{")[0] == 400
        port = int(re.search(r":(\d+)/", url).group(1))
        with pytest.raises(OSError, match=f"port {port} .*choose another port"):
            ek.serve(encoder, port=port).__enter__()
        raise KeyError
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()
    assert set(threading.enumerate()) <= threads


def command(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "embedkit.server", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


@pytest.mark.slow
def test_the_command(tiny):
    key = "a-key-that-nobody-sees"
    with command("--model", tiny("bert"), "--port", "0", EMBEDKIT_API_KEY=key) as server:
        url = re.search(r"http\S+", server.stdout.readline()).group()
        assert url.startswith("http://127.0.0.1:")
        with openai.OpenAI(base_url=url, api_key=key) as client:
            name = client.models.list().data[0].id
            assert len(client.embeddings.create(model=name, input="a").data[0].embedding) == 32
        assert post(f"{url}/embeddings", b"{}")[0] == 401
        server.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
        out, log = server.communicate(timeout=30)
    assert "POST /v1/embeddings" in out + log
    assert key not in out + log
    assert "Traceback" not in log


@pytest.fixture
def stops(monkeypatch, capsys):
    """Run the command in this process; give its exit status and what it says."""

    def run(*arguments):
        monkeypatch.delenv("EMBEDKIT_API_KEY", raising=False)
        monkeypatch.setattr(sys, "argv", ["server", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code, " ".join(capsys.readouterr().err.split())

    return run


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_a_public_address_needs_a_key(stops, host):
    status, said = stops("--model", "no/model", "--host", host)
    assert status == 2
    assert "lets other machines in; that needs --api-key" in said


def test_the_command_says_in_a_line_what_is_wrong(stops, tiny):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, said = stops("--model", tiny("bert"), "--port", port)
    assert status == 1 and f"cannot listen on 127.0.0.1, port {port}" in said
    status, said = stops("--model", "bundled/nothing", "--port", "0")
    assert status == 1 and "no such bundled model" in said
