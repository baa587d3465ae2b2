"""The local endpoint under wrong use, attack and load: it answers in one shape, and goes on."""

import contextlib
import json
import logging
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openai
import psutil
import pytest
import uvicorn
from test_server import Recording, command, post

import embedkit as ek
from embedkit import server as module
from embedkit._endpoint import fingerprint_of

ROOT = Path(__file__).parents[1]
GOOD = ["a kettle", "the river"]


@pytest.fixture(scope="module")
def encoder(tiny):
    encoder = Recording(tiny("short_bert"), pooling="mean", normalize=True)
    encoder.encode(["a"])
    return encoder


@pytest.fixture(scope="module")
def url(encoder):
    with ek.serve(encoder) as url:
        yield url


@pytest.fixture(scope="module")
def name(url):
    return post(f"{url}/models", None, method="GET")[1]["data"][0]["id"]


def port_of(url):
    return int(re.search(r":(\d+)/", url).group(1))


def raw(url, request, *, patience=15):
    """Send bytes; give all that comes back until the other side closes."""
    with socket.create_connection(("127.0.0.1", port_of(url)), timeout=patience) as wire:
        wire.sendall(request)
        answer = b""
        while piece := wire.recv(65536):
            answer += piece
    return answer


def request_for(body, *lines, path="/v1/embeddings"):
    """Write a request by hand; what is given takes the place of the usual headers."""
    named = {line.partition(":")[0].lower() for line in lines}
    usual = ["Host: localhost", "Content-Type: application/json", "Connection: close"]
    usual += [f"Content-Length: {len(body)}"]
    lines = [*lines, *(line for line in usual if line.partition(":")[0].lower() not in named)]
    return "\r\n".join([f"POST {path} HTTP/1.1", *lines, "", ""]).encode() + body


def status_and_error(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


def works(url, name, encoder):
    """Say whether the vectors are right after all."""
    body = json.dumps({"model": name, "input": GOOD}).encode()
    status, answer = post(f"{url}/embeddings", body)
    vectors = [item["embedding"] for item in answer["data"]]
    return status == 200 and np.allclose(vectors, encoder.encode(GOOD), atol=1e-5)


# Let in: who may ask

ELSEWHERE = {
    "a name that leads here": "Host: evil.example",
    "such a name with the port": "Host: evil.example:8000",
    "a name that begins like ours": "Host: localhost.evil.example",
    "a name that ends like ours": "Host: evil-localhost",
    "a name before ours": "Host: evil.example@localhost",
    "another number of this machine": "Host: 127.0.0.2",
    "no name": "Host:",
    "a page": "Origin: http://evil.example",
    "a page without a place": "Origin: null",
    "a page on a name like ours": "Origin: http://127.0.0.1.evil.example",
    "an extension": "Origin: chrome-extension://localhost",
}


@pytest.mark.bad_input("request from elsewhere")
@pytest.mark.parametrize("line", ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_request_that_comes_from_elsewhere_is_refused(url, name, line):
    body = json.dumps({"model": name, "input": "a"}).encode()
    status, error = status_and_error(raw(url, request_for(body, line)))
    assert status == 403 and "names another place than this machine" in error["message"]


@pytest.mark.parametrize(
    "line",
    ["Host: LOCALHOST", "Host: 127.0.0.1:1", "Host: [::1]:80", "Origin: http://localhost:8888"],
)
def test_a_request_that_names_this_machine_is_answered(url, name, line):
    body = json.dumps({"model": name, "input": "a"}).encode()
    assert raw(url, request_for(body, line)).startswith(b"HTTP/1.1 200")


KEYS = {
    "no key": (),
    "another key": ("Authorization: Bearer other",),
    "the key without Bearer": ("Authorization: the-key",),
    "the key as a password": ("Authorization: Basic the-key",),
    "the key and more": ("Authorization: Bearer the-key ",),
    "the key twice": ("Authorization: Bearer the-key, Bearer the-key",),
}


@pytest.mark.slow
@pytest.mark.bad_input("key")
@pytest.mark.parametrize("lines", list(KEYS.values())[:4], ids=list(KEYS)[:4])
@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/embeddings/", "/nothing"])
def test_the_key_is_asked_for_before_anything_else(encoder, lines, path):
    with ek.serve(encoder, api_key="the-key") as url:
        status, error = status_and_error(raw(url, request_for(b"{", *lines, path=path)))
    assert (status, error["code"]) == (401, "invalid_api_key")


@pytest.mark.bad_input("key")
@pytest.mark.parametrize("key", ["", " ", "two words", "schlüssel", "a\nb", 7])
def test_a_key_that_asks_for_nothing_is_refused(encoder, key):
    with pytest.raises(ValueError, match="the key is empty, or holds a sign"):
        ek.serve(encoder, api_key=key).__enter__()


@pytest.mark.slow
@pytest.mark.bad_input("key")
def test_the_command_refuses_an_empty_key(tiny):
    with command("--model", tiny("bert"), "--port", "0", EMBEDKIT_API_KEY="") as server:
        _, log = server.communicate(timeout=120)
    assert server.returncode == 1 and "the key is empty" in log and "Traceback" not in log


@pytest.mark.bad_input("request")
@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "", "text/json"]
)
def test_only_json_is_taken(url, name, kind):
    """What a page can send to any host without being asked is not JSON."""
    body = json.dumps({"model": name, "input": "a"}).encode()
    status, error = status_and_error(raw(url, request_for(body, f"Content-Type: {kind}")))
    assert status == 415 and "application/json" in error["message"]


@pytest.mark.bad_input("request")
def test_a_slash_too_many_leads_nowhere(url):
    answer = raw(url, request_for(b"{}", path="/v1/embeddings/"))
    assert status_and_error(answer)[0] == 404 and b"location" not in answer.lower()


@pytest.mark.bad_input("setting")
@pytest.mark.parametrize("port", [70000, -1, 2.5, "80", True])
def test_a_port_that_is_none(encoder, port):
    with pytest.raises(ValueError, match=r"port=.*: give a whole number up to 65535"):
        ek.serve(encoder, port=port).__enter__()


# Bounds before work


def peak_while(url, body):
    """Answer and the most memory this process has had meanwhile, in MiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = post(f"{url}/embeddings", body)
    return answer, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


@pytest.mark.fault("too much")
@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in KiB on Linux alone")
@pytest.mark.parametrize("text", [" " * 7_000_000, "a" * 7_000_000, "a " * 3_500_000])
def test_a_text_of_megabytes_is_refused_unread(url, name, encoder, text):
    encoder.calls.clear()
    begun = time.perf_counter()
    body = json.dumps({"model": name, "input": ["a", text]}).encode()
    (status, error), memory = peak_while(url, body)
    assert (status, error["code"]) == (400, "context_length_exceeded")
    assert "input 1 has 7000000 letters and the model reads 16 tokens" in error["message"]
    assert not encoder.calls and memory < 100 and time.perf_counter() - begun < 5


@pytest.mark.slow
@pytest.mark.fault("too much")
def test_a_length_that_is_too_large_is_refused_before_the_body(url):
    answer = raw(url, request_for(b"", "Content-Length: 99999999999"))
    status, error = status_and_error(answer)
    assert status == 413 and "larger than 8 MiB" in error["message"]


@pytest.mark.fault("too much")
@pytest.mark.parametrize("body", [b'{"input": [' + b"{}," * 400_000 + b"{}]}", b"[" * 8_000_000])
def test_a_body_that_would_unfold_is_not_parsed(url, body):
    (status, error), memory = peak_while(url, body)
    assert status == 400 and "more brackets than texts can have" in error["message"]
    assert memory < 60


# Hangs


class Panics:
    """A tokenizer that ends as one in Rust does: with what is no Exception."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __call__(self, texts, **settings):
        if any("panic" in text for text in texts):
            raise BaseException("called `Result::unwrap()` on an `Err` value")
        return self._tokenizer(texts, **settings)

    def __getattr__(self, name):
        if name == "_tokenizer":
            raise AttributeError(name)
        return getattr(self._tokenizer, name)


@pytest.mark.fault("broken model")
def test_a_tokenizer_that_panics_takes_nobody_along(tiny):
    encoder = ek.TextEncoder(tiny("bert"), pooling="mean", normalize=True)
    with ek.serve(encoder) as url:
        name = post(f"{url}/models", None, method="GET")[1]["data"][0]["id"]
        encoder.processor = Panics(encoder.processor)
        status, error = post(
            f"{url}/embeddings", json.dumps({"model": name, "input": "panic"}).encode()
        )
        assert status == 500 and "unwrap" in error["message"]
        assert works(url, name, encoder)


@pytest.mark.fault("broken model")
def test_a_model_that_gives_nan_says_so(tiny):
    import torch

    encoder = ek.TextEncoder(tiny("bert"), pooling="mean")
    with ek.serve(encoder) as url, torch.no_grad():
        name = post(f"{url}/models", None, method="GET")[1]["data"][0]["id"]
        encoder.model.embeddings.word_embeddings.weight[:] = float("nan")
        status, error = post(
            f"{url}/embeddings", json.dumps({"model": name, "input": "a"}).encode()
        )
    assert status == 500 and error["type"] == "server_error"
    assert "NaN or infinity" in error["message"]


def hold(encoder):
    """Keep the model busy until `encoder.go` is set."""
    encoder.calls.clear()
    encoder.go.clear()


@pytest.mark.slow
@pytest.mark.fault("client gone")
def test_what_nobody_waits_for_is_not_read(url, name, encoder):
    hold(encoder)
    body = json.dumps({"model": name, "input": ["the lamp"] * 500}).encode()
    with socket.create_connection(("127.0.0.1", port_of(url))) as first:
        first.sendall(request_for(json.dumps({"model": name, "input": "the bag"}).encode()))
        while not encoder.calls:
            time.sleep(0.01)
        gone = [socket.create_connection(("127.0.0.1", port_of(url))) for _ in range(5)]
        for each in gone:
            each.sendall(request_for(body))
        time.sleep(0.5)
        for each in gone:
            each.close()
        time.sleep(0.5)
        encoder.go.set()
        assert first.recv(1000).startswith(b"HTTP/1.1 200")
    assert works(url, name, encoder)
    assert not any("the lamp" in call for call in encoder.calls)


@pytest.mark.fault("client gone")
@pytest.mark.parametrize("share", [0.0, 0.5], ids=["before the body", "in the body"])
def test_a_client_gone_half_way_leaves_no_trace(url, name, encoder, share, caplog, capfd):
    body = json.dumps({"model": name, "input": "a"}).encode()
    whole = request_for(body)
    cut = len(whole) - len(body) + int(share * len(body))
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", port_of(url))) as wire:
            wire.sendall(whole[:cut])
            time.sleep(0.1)
    assert works(url, name, encoder)
    shown = capfd.readouterr()
    assert "Traceback" not in shown.out + shown.err + caplog.text


@pytest.mark.slow
@pytest.mark.fault("stalled client")
@pytest.mark.parametrize("sent", [b"", b"POST /v1/emb", request_for(b"{}")[:-20]])
def test_a_connection_that_stalls_is_closed(encoder, monkeypatch, sent):
    monkeypatch.setattr(module, "_SECONDS_TO_STALL", 0.5)
    with ek.serve(encoder) as url:
        begun = time.monotonic()
        with pytest.raises(ConnectionResetError):
            while raw(url, sent):
                pass
            raise ConnectionResetError  # closed, as it should be
    assert 0.3 < time.monotonic() - begun < 10


@pytest.mark.slow
@pytest.mark.fault("stalled client")
def test_a_body_that_does_not_come_is_told(encoder, monkeypatch):
    monkeypatch.setattr("embedkit._endpoint._SECONDS_TO_ARRIVE", 0.5)
    with ek.serve(encoder) as url:
        status, error = status_and_error(raw(url, request_for(b"{", "Content-Length: 9")))
    assert status == 408 and "did not arrive in time" in error["message"]


def ports_of_the_other_side():
    """List where the connections of this process lead to."""
    return [each.raddr.port for each in psutil.Process().net_connections() if each.raddr]


@pytest.mark.slow
@pytest.mark.fault("stalled client")
def test_an_answer_that_nobody_reads_is_given_up(tiny, monkeypatch):
    monkeypatch.setattr(module, "_SECONDS_TO_STALL", 2)
    encoder = ek.TextEncoder(tiny("bert"), pooling="mean")
    with ek.serve(encoder) as url:
        name = post(f"{url}/models", None, method="GET")[1]["data"][0]["id"]
        wire = socket.socket()
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.connect(("127.0.0.1", port_of(url)))
        body = json.dumps({"model": name, "input": [f"a {n}" for n in range(2048)]}).encode()
        with wire:
            # More answers than are buffered.
            wire.sendall(request_for(body, "Connection: keep-alive") * 8)
            wire.settimeout(30)
            end, mine = time.monotonic() + 120, wire.getsockname()[1]
            # The server has an end of this connection until it gives it up.
            for has_one in (True, False):
                while has_one != (mine in ports_of_the_other_side()):
                    assert time.monotonic() < end, "it waits for its reader"
                    time.sleep(0.1)
            got = b""
            with contextlib.suppress(ConnectionResetError):
                while piece := wire.recv(65536):
                    got += piece
        assert 0 < len(got) < 7 * 1_500_000
        assert works(url, name, ek.TextEncoder(tiny("bert"), pooling="mean", normalize=True))


@pytest.mark.slow
@pytest.mark.fault("too many")
def test_one_connection_too_many_is_closed_and_the_others_stay(encoder, name, monkeypatch):
    monkeypatch.setattr(module, "_MAX_CONNECTIONS", 5)
    with ek.serve(encoder) as url, contextlib.ExitStack() as stack:
        open_ones = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port_of(url))))
            for _ in range(5)
        ]
        time.sleep(0.2)
        with pytest.raises(OSError):
            raw(url, request_for(b"{}"))
            raise ConnectionResetError
        open_ones.pop().close()
        time.sleep(0.2)
        assert works(url, name, encoder)


LIMITED = """
import resource, socket, sys, time
import embedkit as ek
encoder = ek.TextEncoder(sys.argv[1], pooling="mean")
with ek.serve(encoder) as url:
    port = int(url.split(":")[2].split("/")[0])
    used = len(__import__("os").listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 12, used + 12))
    held = []
    try:
        while len(held) < 60:
            wire = socket.socket()
            held.append(wire)
            wire.connect(("127.0.0.1", port))
    except OSError:
        pass
    time.sleep(4)
    for wire in held:
        wire.close()
    time.sleep(2)
    import urllib.request
    print(urllib.request.urlopen(url + "/models").status)
"""


@pytest.mark.slow
@pytest.mark.fault("too many")
@pytest.mark.skipif(sys.platform != "linux", reason="counts its files in /proc")
def test_at_the_limit_of_files_the_log_does_not_grow(tiny):
    code = [sys.executable, "-c", LIMITED, tiny("bert")]
    ran = subprocess.run(code, capture_output=True, text=True, cwd=ROOT, timeout=240)
    assert ran.stdout.strip() == "200", ran.stderr
    assert len(ran.stderr) < 2000


@pytest.mark.slow
@pytest.mark.fault("end")
def test_it_ends_quickly_under_load_and_tells_those_who_wait(encoder):
    def ask(url):
        return post(f"{url}/embeddings", json.dumps({"model": name, "input": ["a"] * 300}).encode())

    with ThreadPoolExecutor(8) as pool:
        with ek.serve(encoder) as url:
            name = post(f"{url}/models", None, method="GET")[1]["data"][0]["id"]
            hold(encoder)
            answers = [pool.submit(ask, url) for _ in range(8)]
            half = socket.create_connection(("127.0.0.1", port_of(url)))
            half.sendall(request_for(b"{}")[:-1])
            while not encoder.calls:
                time.sleep(0.01)
            time.sleep(0.5)
            threading.Timer(0.5, encoder.go.set).start()
            begun = time.monotonic()
        assert time.monotonic() - begun < 8
        half.close()
        for answer in answers:
            status, error = answer.result()
            assert status == 503 and "shutting down" in error["message"]
            assert error["type"] == "server_error"


@pytest.mark.fault("end")
def test_no_url_is_given_of_a_server_that_did_not_start(encoder, monkeypatch):
    def dies(self, sockets=None):
        logging.getLogger(__name__).debug("no port")

    monkeypatch.setattr(uvicorn.Server, "run", dies)
    with pytest.raises(RuntimeError, match="did not start"):
        ek.serve(encoder).__enter__()


@pytest.mark.slow
@pytest.mark.fault("load")
def test_a_short_text_does_not_wait_for_long_ones(tiny):
    """A large request is read in turns, and a short one has its turn between them."""
    encoder = ek.TextEncoder(tiny("bert"), pooling="mean")
    with ek.serve(encoder) as url, ThreadPoolExecutor(4) as pool:
        name = post(f"{url}/models", None, method="GET")[1]["data"][0]["id"]
        long = json.dumps({"model": name, "input": ["the kettle " * 60] * 2000}).encode()
        short = json.dumps({"model": name, "input": "a"}).encode()

        def wait(body):
            begun = time.perf_counter()
            assert post(f"{url}/embeddings", body)[0] == 200
            return time.perf_counter() - begun

        wait(short)
        slow = [pool.submit(wait, long) for _ in range(2)]
        time.sleep(1)
        assert not any(each.done() for each in slow), "it was over too soon"
        assert wait(short) < min(each.result() for each in slow) / 2


@pytest.mark.slow
@pytest.mark.fault("load")
@pytest.mark.skipif(sys.platform != "linux", reason="the script reads /proc")
def test_random_requests_from_eight_clients():
    """The short form of `benchmarks/fuzz_server.py`; busy machines wait longer."""
    script = ROOT / "benchmarks" / "fuzz_server.py"
    ran = subprocess.run(
        [sys.executable, script, "--seconds", "12", "--longest", "30", "--seed", "1"],
        capture_output=True, text=True, cwd=ROOT, timeout=500,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "valid: 200" in ran.stdout


# What it says of its model


@pytest.mark.slow
def test_the_card_says_what_the_vectors_depend_on(tiny, tmp_path):
    def card(**settings):
        with ek.serve(ek.TextEncoder(tiny("bert"), **settings)) as url:
            return post(f"{url}/models", None, method="GET")[1]["data"][0]

    mean, again, cls = card(pooling="mean"), card(pooling="mean"), card(pooling="cls")
    assert mean["fingerprint"] == again["fingerprint"] != cls["fingerprint"]
    assert mean["id"] == cls["id"] and mean["dim"] == 32 and mean["normalized"] is True
    with openai.OpenAI(base_url="http://127.0.0.1:1/v1", api_key="none") as client:
        assert client.models  # its type admits more than OpenAI's own entries


def test_a_pooling_that_cannot_be_named_is_like_no_other(tiny):
    encoder = ek.TextEncoder(tiny("bert"), pooling=lambda hidden, mask: hidden[:, 0])
    assert fingerprint_of(encoder) != fingerprint_of(encoder)
