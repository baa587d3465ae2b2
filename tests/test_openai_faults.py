"""`OpenAIEncoder` against servers that lie, hang, redirect, and say what a terminal would obey."""

import itertools
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from openai import OpenAI
from wire import DIM, Reply, Wire, good, refusal, vector_of

import embedkit as ek
from embedkit.encoders.api import OpenAIEncoder

ROOT = Path(__file__).parents[1]
KEY = "sesame"
THREE = ["a", "b", "c"]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    """No key and no address from outside."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def right(texts):
    return np.stack([vector_of(text) for text in texts])


# Silently wrong: what arrives is compared with what was asked for


def changed(change):
    def answer(number, texts):
        reply = good(texts)
        change(reply.body)
        return reply

    return answer


def set_index(row, value):
    return changed(lambda body: body["data"][row].update(index=value))


LIES = {
    "four vectors for three texts": lambda _, texts: good([*texts, "d"]),
    "one vector and its number twice": changed(lambda body: body["data"].append(body["data"][0])),
    "a number twice": set_index(1, 0),
    "numbers from 1": lambda _, texts: Reply(body={"data": good(["x", *texts]).body["data"][1:]}),
    "a number below 0": set_index(2, -1),
    "a number as text": set_index(2, "2"),
    "a number that is not whole": set_index(2, 2.5),
    "no number": set_index(2, None),
    "a vector of vectors": changed(lambda body: body["data"][0].update(embedding=[[1.0], [2.0]])),
    "a vector of words": changed(lambda body: body["data"][0].update(embedding=["one", "two"])),
    "an empty vector": changed(lambda body: body["data"][0].update(embedding=[])),
    "a vector that is a table": changed(lambda body: body["data"][0].update(embedding={"a": 1})),
    "items that are none": lambda *_: Reply(body={"data": [1, 2, 3]}),
    "data that is text": lambda *_: Reply(body={"data": "abc"}),
    "a list": lambda *_: Reply(body=[1, 2, 3]),
    "a number alone": lambda *_: Reply(body=7),
    "null": lambda *_: Reply(body=None),
}


@pytest.mark.slow
@pytest.mark.fault("answer of a server")
@pytest.mark.parametrize("name", LIES)
def test_an_answer_to_another_question_is_refused(name):
    with Wire(LIES[name]) as wire:
        encoder = OpenAIEncoder("m", base_url=wire.url)
        with pytest.raises(RuntimeError, match="not one embedding for each of the 3 texts"):
            encoder.encode(THREE)
        assert len(wire.asked) == 1 and encoder.usage["texts"] == 0


USAGES = ["text", {"prompt_tokens": "3"}, {"prompt_tokens": -3}, {"prompt_tokens": 1e300}, [], None]


@pytest.mark.fault("answer of a server")
@pytest.mark.parametrize("usage", USAGES, ids=repr)
def test_a_usage_that_is_none_costs_no_vector(usage):
    with Wire(changed(lambda body: body.update(usage=usage))) as wire:
        encoder = OpenAIEncoder("m", base_url=wire.url)
        np.testing.assert_array_equal(encoder.encode(THREE), right(THREE))
    assert encoder.usage == {"requests": 1, "texts": 3, "tokens": 0, "cached": 0}


# Silently wrong: the cache tells servers apart


@pytest.mark.slow
def test_the_cache_knows_one_setting_of_a_model_from_another(tiny, tmp_path):
    """The same name, the same folder of the cache, another pooling."""
    found = {}
    for pooling in ("mean", "cls", "mean"):
        encoder = ek.TextEncoder(tiny("bert"), pooling=pooling, normalize=True)
        with ek.serve(encoder) as url:
            client = OpenAIEncoder(Path(tiny("bert")).name, base_url=url, cache=tmp_path)
            vectors = client.encode(["the kettle", "a"])
        np.testing.assert_allclose(vectors, encoder.encode(["the kettle", "a"]), atol=1e-5)
        found.setdefault(pooling, []).append(client.usage)
    assert found["cls"][0]["cached"] == 0
    # Another port, but the same model with the same settings: nothing is asked for again.
    assert [usage["cached"] for usage in found["mean"]] == [0, 2]


@pytest.mark.slow
def test_the_cache_knows_two_folders_of_one_name(tmp_path, tiny):
    import shutil

    vectors = []
    for number, kind in enumerate(("bert", "short_bert")):
        folder = tmp_path / str(number) / "model"
        shutil.copytree(tiny(kind), folder)
        with ek.serve(ek.TextEncoder(folder, pooling="mean")) as url:
            client = OpenAIEncoder("model", base_url=url, cache=tmp_path / "cache")
            vectors.append(client.encode(["the kettle"]))
        assert client.usage["cached"] == 0
    assert not np.allclose(*vectors)


def card(**more):
    return {"id": "m", "object": "model", "created": time.time_ns(), "owned_by": "x", **more}


@pytest.mark.slow
def test_the_cache_knows_a_model_that_was_exchanged_at_its_address(tmp_path):
    def cached():
        encoder = OpenAIEncoder("m", base_url=wire.url, cache=tmp_path)
        encoder.encode(THREE)
        return encoder.usage["cached"]

    with Wire() as wire:
        wire.models = [card(commit="one"), card(id="other", commit="two")]
        assert (cached(), cached()) == (0, 3)
        for said in (
            [card(commit="two")],
            [card(commit="one", pooling="cls")],
            [card(commit="one", fingerprint="f")],
            [card(id="n")],
        ):
            wire.models = said
            assert (cached(), cached()) == (0, 3)
        wire.models = [card(commit="one")]
        assert cached() == 3


STRANGE_CARDS = [
    refusal(404), refusal(500), refusal(401), Reply(body=b"<html>"), Reply(body=[1]),
    Reply(body={"data": "abc"}), Reply(body={"data": [{"no": "id"}]}), Reply(body={"data": None}),
    Reply(307, {}, {"Location": "http://127.0.0.1:1/"}),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.fault("answer of a server")
@pytest.mark.parametrize("reply", STRANGE_CARDS, ids=range(len(STRANGE_CARDS)))
def test_a_server_that_says_nothing_of_itself_is_known_by_its_address(reply, tmp_path):
    for _ in range(2):
        with Wire() as wire:  # each has a port of its own
            wire.models = reply
            for cached in (0, 3):
                encoder = OpenAIEncoder("m", base_url=wire.url, cache=tmp_path)
                np.testing.assert_array_equal(encoder.encode(THREE), right(THREE))
                assert encoder.usage["cached"] == cached


def test_a_server_is_asked_about_its_models_once_and_only_for_a_cache(tmp_path):
    with Wire() as wire:
        wire.models = [card()]
        encoder = OpenAIEncoder("m", base_url=wire.url)
        encoder.encode(THREE)
        assert wire.asked_models == 0
        encoder = OpenAIEncoder("m", base_url=wire.url, cache=tmp_path)
        threads = [threading.Thread(target=encoder.encode, args=([*THREE, f"{n}"],)) for n in "xyz"]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert wire.asked_models == 1


def test_a_cache_is_read_when_its_server_is_gone(tmp_path):
    with Wire() as wire:
        wire.models = [card(commit="one")]
        OpenAIEncoder("m", base_url=wire.url, cache=tmp_path).encode(THREE)
    encoder = OpenAIEncoder("m", base_url=wire.url, cache=tmp_path)
    np.testing.assert_array_equal(encoder.encode(THREE), right(THREE))
    assert encoder.usage["requests"] == 0


def test_a_cache_is_read_without_a_key(tmp_path, monkeypatch):
    with Wire() as wire:
        url = wire.url.replace("127.0.0.1", "127.1")  # a name not known to be this machine's
        monkeypatch.setenv("OPENAI_API_KEY", "a-key")
        OpenAIEncoder("m", base_url=url, cache=tmp_path).encode(THREE)
        monkeypatch.delenv("OPENAI_API_KEY")
        encoder = OpenAIEncoder("m", base_url=url, cache=tmp_path)
        np.testing.assert_array_equal(encoder.encode(THREE), right(THREE))


# Raw errors


@pytest.mark.fault("cache")
@pytest.mark.parametrize("value", ["text", 7, 2.5, b"", b"abc", b"\xff" * 4 * DIM], ids=repr)
def test_a_row_of_the_cache_of_the_wrong_kind_is_asked_for_again(value, tmp_path):
    with Wire() as wire:
        for cached in (0, 2):
            encoder = OpenAIEncoder("m", base_url=wire.url, cache=tmp_path)
            np.testing.assert_array_equal(encoder.encode(THREE), right(THREE))
            assert encoder.usage["cached"] == cached
            with sqlite3.connect(tmp_path / "embeddings.sqlite") as database:
                change = "UPDATE vectors SET vector = ? WHERE rowid = 2"
                database.execute(change, (value,))
            database.close()


def test_a_cache_in_the_home_folder(tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with Wire() as wire:
        OpenAIEncoder("m", base_url=wire.url, cache="~/x").encode(["a"])
    assert (tmp_path / "home/x/embeddings.sqlite").is_file() and not (tmp_path / "~").exists()


ADDRESSES = [
    "localhost:8000/v1", "http://", "http://localhost:70000/v1", "ftp://localhost/v1", "http://[::1",
    "http://localhost:port/v1", "file:///etc/passwd", "v1",
]  # fmt: skip


@pytest.mark.bad_input("setting")
@pytest.mark.parametrize("url", ADDRESSES)
def test_an_address_that_is_none(url):
    with pytest.raises(ValueError, match=r"base_url=.*: not an address; give one such as http"):
        OpenAIEncoder("m", base_url=url)


@pytest.mark.bad_input("setting")
@pytest.mark.parametrize("timeout", [0, -1, "60", None, float("nan"), True])
def test_a_timeout_that_is_none(timeout):
    with pytest.raises(ValueError, match=r"timeout=.*: give a number of seconds above 0"):
        OpenAIEncoder("m", timeout=timeout)


SAID = {
    "colors": "\x1b[31mred\x1b[0m", "a cleared screen": "\x1b[2J\x1b[H", "a title": "\x1b]0;x\x07",
    "one byte for it": "\x9b31m", "turned letters": "abc\u202etxt.exe", "isolates": "\u2066a\u2069",
    "a mark": "\u200f", "back": "secret\b\b\b", "a line of its own": "no\r\nTraceback (most recent",
    "lines of Unicode": "a\u2028b\u2029c", "nothing to see": "a\u200bb\ufeffc",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.fault("words of a server")
@pytest.mark.parametrize("name", SAID)
@pytest.mark.parametrize("where", ["message", "Location"])
def test_what_a_terminal_would_obey_is_not_shown(name, where):
    def answer(number, texts):
        if where == "message":
            return refusal(400, SAID[name])
        sign = SAID[name].replace("\r\n", "").encode().decode("latin-1")
        return Reply(307, {}, {"Location": f"http://127.0.0.1:1/{sign}"})

    with Wire(answer) as wire, pytest.raises(RuntimeError) as caught:
        OpenAIEncoder("m", base_url=wire.url).encode(["a"])
    assert "status" in str(caught.value) and str(caught.value).isprintable()


# Let in: the texts go to one server


@pytest.mark.slow
@pytest.mark.fault("redirect")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("whose", ["ours", "a client of one's own"])
def test_texts_do_not_follow_a_redirect(status, whose):
    with Wire() as thief:
        redirect = Reply(status, {}, {"Location": f"{thief.url}/embeddings"})
        with (
            Wire(lambda *_: redirect) as wire,
            OpenAI(base_url=wire.url, api_key="sesame") as client,
        ):
            own = {"base_url": wire.url} if whose == "ours" else {"client": client}
            with pytest.raises(RuntimeError, match=rf"status {status}.*take the texts along"):
                OpenAIEncoder("m", **own).encode(["a secret"])
            assert len(wire.asked) == 1
    assert not thief.asked and not thief.asked_models


# Hangs


@pytest.mark.slow
@pytest.mark.fault("slow server")
def test_a_hung_server_is_given_up_after_a_time():
    with Wire(lambda *_: Reply(delay=30)) as wire:
        encoder = OpenAIEncoder("m", base_url=wire.url, timeout=0.4)
        begun = time.monotonic()
        with pytest.raises(RuntimeError, match="gave no answer within the client's timeout"):
            encoder.encode(["a"])
        assert time.monotonic() - begun < 5
        assert 2 <= len(wire.asked) <= 4  # it was tried again, but not for ever


@pytest.mark.slow
@pytest.mark.fault("slow server")
def test_an_answer_that_drips_is_given_up():
    """Each byte comes in time; the answer does not."""
    import socketserver

    class Drips(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(65536)
            self.request.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n"
            )
            try:
                for _ in range(600):
                    self.request.sendall(b" ")
                    time.sleep(0.1)
            except OSError:
                return

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads, block_on_close = True, False

    with Server(("127.0.0.1", 0), Drips) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        begun = time.monotonic()
        with pytest.raises(RuntimeError, match=r"the answer had not ended after 0\.5 seconds"):
            OpenAIEncoder("m", base_url=url, timeout=0.5).encode(["a"])
        assert time.monotonic() - begun < 10
        server.shutdown()


@pytest.mark.fault("slow server")
def test_a_server_that_asks_for_too_much_patience_gets_none():
    with Wire(lambda *_: refusal(429, **{"Retry-After": "50"})) as wire:
        begun = time.monotonic()
        with pytest.raises(RuntimeError, match="status 429"):
            OpenAIEncoder("m", base_url=wire.url, timeout=2).encode(["a"])
    assert time.monotonic() - begun < 5 and len(wire.asked) == 1


@pytest.mark.slow
@pytest.mark.fault("slow server")
@pytest.mark.parametrize("asked", ["nan", "inf", "-1", "soon", "1e400"])
def test_a_retry_after_that_is_none_is_not_obeyed(asked):
    busy = itertools.chain([refusal(429, **{"Retry-After": asked})], itertools.repeat(None))
    with Wire(lambda _, texts: next(busy) or good(texts)) as wire:
        np.testing.assert_array_equal(
            OpenAIEncoder("m", base_url=wire.url).encode(THREE), right(THREE)
        )


HUNG = """
import sys
from embedkit.encoders.api import OpenAIEncoder
OpenAIEncoder("m", base_url=sys.argv[1]).encode([str(n) for n in range(40)], batch_size=5)
"""


@pytest.mark.slow
@pytest.mark.fault("slow server")
@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent as a signal of Unix")
@pytest.mark.parametrize("kind", ["no answer", "busy"])
def test_one_ctrl_c_ends_it(kind):
    reply = Reply(delay=120) if kind == "no answer" else refusal(429, **{"Retry-After": "55"})
    with Wire(lambda *_: reply) as wire:
        command = [sys.executable, "-c", HUNG, wire.url]
        with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=ROOT) as process:
            while not wire.asked:
                assert process.poll() is None
                time.sleep(0.05)
            time.sleep(0.5)
            begun = time.monotonic()
            process.send_signal(signal.SIGINT)
            process.wait(60)
            said = process.stderr.read().decode()
    assert time.monotonic() - begun < 12
    assert said.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.slow
def test_two_calls_at_once_share_the_account():
    with Wire(lambda _, texts: good(texts)._replace(delay=0.02)) as wire:
        encoder = OpenAIEncoder("m", base_url=wire.url)
        texts = [[f"{thread} {n}" for n in range(100)] for thread in range(4)]
        found = {}

        def work(number):
            found[number] = encoder.encode(texts[number], batch_size=5)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    for number in range(4):
        np.testing.assert_array_equal(found[number], right(texts[number]))
    assert encoder.usage == {"requests": 80, "texts": 400, "tokens": 400, "cached": 0}


def test_a_call_that_ends_well_leaves_anothers_vectors_alone():
    """What a failed call has paid for is kept until a call has asked for the same texts."""
    with Wire(lambda _, texts: refusal(400) if "bad" in texts else good(texts)) as wire:
        encoder = OpenAIEncoder("m", base_url=wire.url, max_concurrency=1)
        with pytest.raises(RuntimeError, match=r"What came \(3 vectors\)"):
            encoder.encode([*THREE, "bad"], batch_size=1)
        encoder.encode(["else"])
        asked = len(wire.texts)
        np.testing.assert_array_equal(encoder.encode(THREE), right(THREE))
        assert len(wire.texts) == asked


# Bounds


def zeros(number, texts):
    return Reply(body=b" " * 50_000_000)


def bomb(number, texts):
    packing = zlib.compressobj(9, wbits=31)
    pieces = [packing.compress(b"0," * 500_000) for _ in range(300)]
    return Reply(body=b"".join([*pieces, packing.flush()]), headers={"Content-Encoding": "gzip"})


@pytest.mark.slow
@pytest.mark.fault("answer of a server")
@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in KiB on Linux alone")
@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (zeros, "the answer is larger than the 1,310,720 bytes"),
        (bomb, "the answer is compressed, which was not asked for"),
        (lambda *_: refusal(400, "x" * 50_000_000), "the answer is larger than"),
    ],
    ids=["blanks", "gzip", "an error"],
)
def test_an_answer_that_is_too_large_is_not_read(reply, said):
    once = reply(0, ["a"])  # made before memory is looked at
    once = once._replace(
        body=once.body if isinstance(once.body, bytes) else json.dumps(once.body).encode()
    )
    with Wire(lambda *_: once) as wire:
        encoder = OpenAIEncoder("m", base_url=wire.url)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(RuntimeError, match=said):
            encoder.encode(["a"])
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60 * 1024
        assert len(wire.asked) == 1  # and not asked for again
