"""`OpenAIEncoder`, against real HTTP servers: good ones, and one that misbehaves on purpose."""

import itertools
import os
import pickle
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from datasets.fingerprint import Hasher
from openai import AsyncOpenAI, OpenAI
from wire import DIM, Reply, Wire, encoded, good, refusal, vector_of

import embedkit as ek
from embedkit.encoders.api import OpenAIEncoder

ROOT = Path(__file__).parents[1]
TEXTS = [f"text {number}" for number in range(100)]
# Put together here, so that this file does not look as if it held one.
KEY = "sk-" + "proj" + "0123456789abcdef" * 2
LIKE_A_KEY = re.compile(rb"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{16,}")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    """No key and no address from outside."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def right(texts):
    return np.stack([vector_of(text) for text in texts])


def impatient(wire, **settings):
    """A client that does not wait long."""
    return OpenAI(base_url=wire.url, api_key=KEY, **{"timeout": 1, "max_retries": 2, **settings})


# What is asked for


@pytest.mark.slow
def test_vectors_come_in_order_and_a_few_requests_at_a_time():
    def later_is_quicker(number, texts):
        return good(texts)._replace(delay=0.3 - 0.02 * min(number, 10))

    with Wire(later_is_quicker) as wire:
        encoder = OpenAIEncoder("m", base_url=wire.url, max_concurrency=3)
        vectors = encoder.encode(TEXTS, batch_size=10)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, right(TEXTS))
    assert [len(texts) for texts in wire.asked] == [10] * 10
    assert wire.most_at_once == 3
    assert encoder.usage == {"requests": 10, "texts": 100, "tokens": 100, "cached": 0}
    assert encoder.dim == DIM


@pytest.mark.slow
def test_requests_are_filled_to_the_limits_of_the_api():
    short = [f"{number}" for number in range(5000)]
    long = [f"{number} " + "word " * 4000 for number in range(100)]  # about 5000 tokens each
    with Wire() as wire:
        OpenAIEncoder("m", base_url=wire.url, max_concurrency=1).encode(short + long)
    assert [len(texts) for texts in wire.asked[:2]] == [2048, 2048]
    assert all(sum(map(len, texts)) / 4 <= 300_000 for texts in wire.asked)
    assert len(wire.asked) == 4
    assert wire.texts == short + long


def test_a_text_that_comes_twice_is_sent_once():
    with Wire() as wire:
        vectors = OpenAIEncoder("m", base_url=wire.url).encode(["b", "a", "b", "b"])
    assert wire.texts == ["b", "a"]
    np.testing.assert_array_equal(vectors, right(["b", "a", "b", "b"]))


@pytest.mark.parametrize("as_sent", [good, lambda texts: encoded(good(texts))])
def test_numbers_and_base64_are_both_read(as_sent):
    with Wire(lambda _, texts: as_sent(texts)) as wire:
        vectors = OpenAIEncoder("m", base_url=wire.url).encode(TEXTS)
    assert {body["encoding_format"] for body in wire.bodies} == {"base64"}
    np.testing.assert_array_equal(vectors, right(TEXTS))


def test_any_sequence_of_texts_will_do():
    expected = right(["b", "a"])
    data = Dataset.from_dict({"text": ["b", "a"]})
    with Wire() as wire:
        encoder = OpenAIEncoder("m", base_url=wire.url)
        sequences = (("b", "a"), np.array(["b", "a"]), pd.Series(["b", "a"], index=[7, 3]))
        for texts in (*sequences, data["text"]):
            np.testing.assert_array_equal(encoder.encode(texts), expected)
        mapped = data.map(encoder, batched=True).with_format("numpy")
    np.testing.assert_array_equal(mapped["embedding"][:], expected)


def test_no_text_asks_for_nothing():
    with Wire() as wire:
        assert OpenAIEncoder("m", base_url=wire.url).encode([]).shape == (0, 0)
        assert OpenAIEncoder("m", base_url=wire.url, dimensions=5).encode([]).shape == (0, 5)
    assert wire.asked == []


def test_what_is_no_text_is_named_before_anything_is_sent():
    with Wire() as wire:
        encoder = OpenAIEncoder("m", base_url=wire.url)
        with pytest.raises(TypeError, match="wrap it in a list"):
            encoder.encode("a single text")
        for wrong in (None, {"a"}, {"text": ["a"]}, pd.DataFrame({"text": ["a"]}), 3):
            with pytest.raises(TypeError, match="takes a list, tuple, array"):
                encoder.encode(wrong)
        with pytest.raises(TypeError, match="text 1 is a float"):
            encoder.encode(["a", float("nan")])
        with pytest.raises(ValueError, match="text 2 is empty"):
            encoder.encode(["a", "b", ""])
        with pytest.raises(ValueError, match="text 0 has half a character at position 1"):
            encoder.encode(["a\ud800"])
        with pytest.raises(ValueError, match="batch_size=0"):
            encoder.encode(["a"], batch_size=0)
        with pytest.raises(KeyError, match="columns review, none of them text"):
            encoder({"review": ["a"]})
    assert wire.asked == []


def test_settings_that_are_not_valid():
    for setting in ({"dimensions": 0}, {"dimensions": 2.5}, {"max_concurrency": 0}):
        ((name, value),) = setting.items()
        with pytest.raises(ValueError, match=f"{name}={value}: give a whole number of 1 or more"):
            OpenAIEncoder("m", **setting)
    client = OpenAI(api_key=KEY)
    with pytest.raises(ValueError, match="give one of them"):
        OpenAIEncoder("m", client=client, base_url="http://localhost/v1")
    with pytest.raises(TypeError, match=r"client is a AsyncOpenAI; give an openai\.OpenAI"):
        OpenAIEncoder("m", client=AsyncOpenAI(api_key=KEY))


# Faults: it recovers


def once(reply, times=1):
    """Misbehave at first, then be good."""

    def answer(number, texts):
        wrong = reply(texts) if callable(reply) else reply
        return wrong if number < times else good(texts)

    return answer


def shuffled(number, texts):
    reply = good(texts)
    np.random.default_rng(number).shuffle(reply.body["data"])
    return reply


RECOVERS = {
    "429 with Retry-After": (once(refusal(429, **{"Retry-After": "2"})), 2),
    "500 twice, then 200": (once(refusal(500), times=2), 0),
    "cut in mid-body": (once(lambda texts: good(texts)._replace(cut=True)), 0),
    "shuffled index": (shuffled, 0),
    "too slow at first": (once(lambda texts: good(texts)._replace(delay=2)), 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECOVERS)
def test_it_recovers(name):
    answer, seconds = RECOVERS[name]
    with Wire(answer) as wire, impatient(wire) as client:
        begun = time.monotonic()
        vectors = OpenAIEncoder("m", client=client).encode(TEXTS)
        assert time.monotonic() - begun >= seconds
    np.testing.assert_array_equal(vectors, right(TEXTS))
    assert set(wire.texts) == set(TEXTS)


@pytest.mark.slow
def test_a_client_of_ours_waits_out_a_limit_of_requests():
    """Its own client gives up after two retries, which a limit per minute outlasts."""
    busy = once(refusal(429, **{"Retry-After": "0.05"}), times=5)
    with Wire(busy) as wire:
        vectors = OpenAIEncoder("m", base_url=wire.url).encode(TEXTS)
    np.testing.assert_array_equal(vectors, right(TEXTS))


# Faults: one clear error, and what was paid for is kept


def at_row_37(change):
    """Be good but for one text."""

    def answer(number, texts):
        reply = good(texts)
        for item, text in zip(reply.body["data"], texts, strict=True):
            if text == "text 37":
                item["embedding"] = change(item["embedding"])
        return reply

    return answer


def if_asked_for_row_37(wrong):
    """Misbehave where one text is in the request."""
    return lambda number, texts: wrong(texts) if "text 37" in texts else good(texts)


def from_the_third(reply):
    return lambda number, texts: reply if number >= 2 else good(texts)


FAILS = {
    "400 for a bad row": (
        if_asked_for_row_37(lambda _: refusal(400, "'$.input' is invalid")),
        r"row 37 of 100: status 400: '\$.input' is invalid",
    ),
    "a vector too short": (at_row_37(lambda v: v[:-1]), "row 37 of 100: .* 7 numbers where 8"),
    "NaN": (at_row_37(lambda v: [float("nan"), *v[1:]]), "row 37 of 100: .* NaN or infinity"),
    "null": (at_row_37(lambda v: [None, *v[1:]]), "row 37 of 100: .* NaN or infinity"),
    "infinity": (at_row_37(lambda v: [1e300, *v[1:]]), "row 37 of 100: .* NaN or infinity"),
    "401": (from_the_third(refusal(401)), "rows 40-59 of 100: status 401: no; check OPENAI_API"),
    "429": (from_the_third(refusal(429)), "rows 40-59 of 100: status 429: no; too many requests"),
    "500": (from_the_third(refusal(500)), "rows 40-59 of 100: status 500: no"),
    "slow": (
        from_the_third(Reply(delay=6)),
        r"rows 40-59 of 100: 127.0.0.1:\d+ gave no answer within the client's timeout",
    ),
    "cut": (
        from_the_third(Reply(body="x" * 99, cut=True)),
        r"rows 40-59 of 100: the connection to 127.0.0.1:\d+ failed \(.+\)",
    ),
    "half of a JSON": (from_the_third(Reply(body=b'{"data": [{"ind')), "rows 40-59 of 100: .+"),
    "a page": (
        from_the_third(Reply(body=b"<html>hello", headers={"Content-Type": "text/html"})),
        "rows 40-59 of 100: .* check that base_url ends in /v1",
    ),
    "one too few": (
        if_asked_for_row_37(lambda texts: good(texts[:-1])),
        "rows 20-39 of 100: .* not one embedding for each of the 20 texts",
    ),
    "one number twice": (
        if_asked_for_row_37(lambda texts: good(["text 20", *texts[1:-1]])),
        "rows 20-39 of 100: .* not one embedding for each of the 20 texts",
    ),
    "broken base64": (at_row_37(lambda _: "abc"), "rows 20-39 of 100: .* not one embedding"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["on disk", "in memory"])
@pytest.mark.parametrize("name", FAILS)
def test_it_fails_with_one_clear_error_and_loses_nothing(name, kept, tmp_path):
    answer, message = FAILS[name]
    seconds = 3 if name == "slow" else 60
    with Wire(answer) as wire, impatient(wire, timeout=seconds, max_retries=0) as client:
        encoder = OpenAIEncoder(
            "m", client=client, max_concurrency=1, cache=tmp_path if kept == "on disk" else None
        )
        with pytest.raises(RuntimeError, match=message) as caught:
            encoder.encode(TEXTS, batch_size=20)
        assert str(caught.value).startswith("OpenAIEncoder('m'): no vectors for row")
        held = int(re.search(r"What came \((\d+) vectors\) is kept", str(caught.value)).group(1))
        # All that the server gave and that was fit for use is kept.
        paid = encoder.usage["texts"] - (name in ("a vector too short", "NaN", "null", "infinity"))
        assert held == paid > 0
        assert KEY not in str(caught.value)
        wire.answer, before = lambda _, texts: good(texts), len(wire.texts)
        np.testing.assert_array_equal(encoder.encode(TEXTS, batch_size=20), right(TEXTS))
    again = wire.texts[before:]
    assert len(again) == len(TEXTS) - held
    assert "text 37" in again or "text 40" in again


def test_a_vector_of_the_wrong_length_does_not_set_the_measure_by_coming_first():
    def first_is_short(number, texts):
        reply = good(texts)
        reply.body["data"][0]["embedding"].pop()
        return reply

    with Wire(first_is_short) as wire:
        encoder = OpenAIEncoder("m", base_url=wire.url)
        with pytest.raises(RuntimeError, match="row 0 of 100: the server gave 7 numbers where 8"):
            encoder.encode(TEXTS)


def test_a_model_that_has_changed_its_length_is_told_from_a_fault(tmp_path):
    with Wire() as wire:
        OpenAIEncoder("m", base_url=wire.url, cache=tmp_path).encode(["a"])
        wire.answer = at_row_37(lambda v: [*v, 0.5])
        changed = OpenAIEncoder("m", base_url=wire.url, cache=tmp_path)
        with pytest.raises(RuntimeError, match=r"9 numbers where 8 .* hold another model's"):
            changed.encode(["a", "text 37"])


@pytest.mark.slow
def test_a_server_that_takes_fewer_texts_gets_fewer():
    def small(number, texts):
        return refusal(413, "at most 32 inputs") if len(texts) > 32 else good(texts)

    with Wire(small) as wire:
        vectors = OpenAIEncoder("m", base_url=wire.url).encode(TEXTS)
    np.testing.assert_array_equal(vectors, right(TEXTS))


def test_a_setting_that_the_server_refuses_is_not_tried_for_every_text():
    said = "dimensions is not supported"
    with Wire(lambda *_: refusal(400, said)) as wire, pytest.raises(RuntimeError, match=said):
        OpenAIEncoder("m", base_url=wire.url, dimensions=4).encode(TEXTS)
    assert len(wire.asked) <= 8


def test_nobody_answers():
    with Wire() as wire:
        pass
    failed = pytest.raises(RuntimeError, match=r"row 0 of 1: the connection to .+ failed")
    with impatient(wire, max_retries=0) as client, failed:
        OpenAIEncoder("m", client=client).encode(["a"])


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_under_way():
    """The answers that are being waited for are paid for."""

    def press(number, texts):
        if number == 3:
            signal.raise_signal(signal.SIGINT)
        return good(texts)._replace(delay=0.2)

    with Wire(press) as wire:
        encoder = OpenAIEncoder("m", base_url=wire.url, max_concurrency=2)
        with pytest.raises(KeyboardInterrupt):
            encoder.encode(TEXTS, batch_size=5)
        seen = list(wire.texts)
        assert 15 <= len(seen) < 100
        np.testing.assert_array_equal(encoder.encode(TEXTS, batch_size=5), right(TEXTS))
    assert sorted(wire.texts) == sorted(TEXTS)  # none twice


# The cache


@pytest.mark.slow
def test_a_second_run_asks_for_nothing_and_needs_no_key(tmp_path):
    with Wire() as wire:
        first = OpenAIEncoder("m", base_url=wire.url, cache=tmp_path / "new" / "folder")
        first.encode(TEXTS)
        second = OpenAIEncoder("m", base_url=wire.url, cache=tmp_path / "new/folder")
        np.testing.assert_array_equal(second.encode(TEXTS[::-1]), right(TEXTS[::-1]))
        assert second.usage == {"requests": 0, "texts": 0, "tokens": 0, "cached": 100}
        assert second.dim == DIM
        longer = OpenAIEncoder("m", base_url=wire.url, cache=tmp_path / "new/folder")
        longer.encode([*TEXTS, "new"])
    assert wire.texts == [*TEXTS, "new"]


@pytest.mark.slow
def test_model_dimensions_and_text_are_told_apart(tmp_path):
    def cut(number, texts):
        reply = good(texts)
        for item in reply.body["data"]:
            item["embedding"] = item["embedding"][: wire.bodies[number].get("dimensions")]
        return reply

    with Wire(cut) as wire:
        for model, dimensions in [*itertools.product("mn", (None, 4, 6))] * 2:
            encoder = OpenAIEncoder(model, base_url=wire.url, dimensions=dimensions, cache=tmp_path)
            vectors = encoder.encode(["a", "b"])
            np.testing.assert_array_equal(vectors, right(["a", "b"])[:, :dimensions])
    assert len(wire.asked) == 6


def test_a_damaged_vector_is_asked_for_again_and_a_damaged_file_is_named(tmp_path):
    with Wire() as wire:
        OpenAIEncoder("m", base_url=wire.url, cache=tmp_path).encode(TEXTS)
        with sqlite3.connect(tmp_path / "embeddings.sqlite") as database:
            rows = database.execute("SELECT key, vector FROM vectors").fetchall()
            nan = np.full(DIM, np.nan, np.float32).tobytes()
            for row, damaged in enumerate((b"", b"abc", rows[0][1][:8], nan), start=5):
                change = "UPDATE vectors SET vector = ? WHERE key = ?"
                database.execute(change, (damaged, rows[row][0]))
        database.close()
        encoder = OpenAIEncoder("m", base_url=wire.url, cache=tmp_path)
        np.testing.assert_array_equal(encoder.encode(TEXTS), right(TEXTS))
        assert encoder.usage["texts"] == 4
        (tmp_path / "embeddings.sqlite").write_bytes(b"not a database at all" * 100)
        with pytest.raises(OSError, match=r"embeddings\.sqlite cannot be used .*remove the file"):
            encoder.encode(TEXTS)


RUN = """
import sys
import numpy as np
from embedkit.encoders.api import OpenAIEncoder
url, cache, first, last = sys.argv[1:]
texts = [f"text {number}" for number in range(int(first), int(last))]
vectors = OpenAIEncoder("m", base_url=url, cache=cache).encode(texts, batch_size=50)
sys.stdout.buffer.write(vectors.tobytes())
"""


def run(wire, cache, first, last):
    command = [sys.executable, "-c", RUN, wire.url, str(cache), str(first), str(last)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows knows no SIGKILL")
def test_killed_half_way_the_next_run_asks_only_for_what_is_missing(tmp_path):
    texts = [f"text {number}" for number in range(2000)]
    half_way = threading.Event()

    def slowly(number, texts):
        if number == 20:
            half_way.set()
        return good(texts)._replace(delay=0.02 if number < 20 else 0.1)

    with Wire(slowly) as wire:
        with run(wire, tmp_path, 0, 2000) as killed:
            assert half_way.wait(60)
            killed.send_signal(signal.SIGKILL)
        assert killed.returncode == -signal.SIGKILL
        time.sleep(0.3)  # what was under way has been answered to nobody
        first = set(wire.texts)
        assert 800 <= len(first) <= 1300
        asked = len(wire.texts)
        with run(wire, tmp_path, 0, 2000) as again:
            vectors = np.frombuffer(again.stdout.read(), np.float32).reshape(2000, DIM)
        assert again.returncode == 0
        np.testing.assert_array_equal(vectors, right(texts))
        second = wire.texts[asked:]
        # Never answered, or on its way at the kill: at most four requests of fifty.
        assert set(texts) - first <= set(second)
        assert len(set(second) & first) <= 4 * 50
        assert len(second) == len(set(second))
        asked = len(wire.texts)
        with run(wire, tmp_path, 0, 2000) as third:
            third.stdout.read()
        assert len(wire.texts) == asked


@pytest.mark.slow
def test_processes_share_a_cache(tmp_path):
    with Wire() as wire:
        running = [run(wire, tmp_path, 300 * i, 300 * i + 600) for i in range(3)]
        for number, process in enumerate(running):
            with process:
                vectors = np.frombuffer(process.stdout.read(), np.float32).reshape(600, DIM)
            assert process.returncode == 0
            texts = [f"text {i}" for i in range(300 * number, 300 * number + 600)]
            np.testing.assert_array_equal(vectors, right(texts))
        asked = len(wire.texts)
        texts = [f"text {number}" for number in range(1200)]
        OpenAIEncoder("m", base_url=wire.url, cache=tmp_path).encode(texts)
        assert len(wire.texts) == asked


# Tokens


def test_tokens_are_estimated_and_called_an_estimate(tmp_path, monkeypatch):
    import tiktoken.load

    def download(*_):
        raise AssertionError("a vocabulary would have been downloaded")

    monkeypatch.setattr(tiktoken.load, "read_file", download)
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    for folder in (str(tmp_path), ""):
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", folder)
        for model in ("text-embedding-3-small", "another"):
            count = OpenAIEncoder(model).count_tokens(["a" * 400, "b" * 401, "茶"])
            assert count == (100 + 101 + 1, True)
            assert count.is_estimate


def test_tokens_are_counted_where_the_vocabulary_is_at_hand(monkeypatch):
    import tiktoken

    bytes_only = tiktoken.Encoding(
        "cl100k_base",
        pat_str=r"\w+|\W+",
        mergeable_ranks={bytes([byte]): byte for byte in range(256)},
        special_tokens={"<|endoftext|>": 256},
    )
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {"cl100k_base": bytes_only})
    texts = ["tea", "<|endoftext|>"]
    assert OpenAIEncoder().count_tokens(texts) == (3 + 13, False)
    assert OpenAIEncoder("not-of-openai").count_tokens(texts).is_estimate


# The key


def test_where_the_key_comes_from(monkeypatch):
    with pytest.raises(ValueError, match="no API key; set the environment variable OPENAI_API_KEY"):
        OpenAIEncoder("m", base_url="http://a.invalid/v1").encode(["a"])
    with Wire() as wire:
        OpenAIEncoder("m", base_url=wire.url).encode(["a"])  # a server on this machine
        monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
        OpenAIEncoder("m", base_url=wire.url).encode(["a"])
        monkeypatch.setenv("OPENAI_BASE_URL", wire.url)
        OpenAIEncoder("m").encode(["a"])
    assert wire.keys == ["Bearer none", f"Bearer {KEY}", f"Bearer {KEY}"]
    for wrong in ("sk- two", "sk-ü"):
        monkeypatch.setenv("OPENAI_API_KEY", wrong)
        with pytest.raises(ValueError, match="holds a blank or a sign") as caught:
            OpenAIEncoder("m", base_url="http://a.invalid/v1").encode(["a"])
        assert wrong not in str(caught.value)


@pytest.mark.slow
def test_a_notebook_that_runs_by_itself_is_told_where_the_key_goes():
    code = (
        "from embedkit.encoders.api import OpenAIEncoder\n"
        "OpenAIEncoder('m', base_url='http://a.invalid/v1').encode(['a'])"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    with pytest.raises(nbclient.exceptions.CellExecutionError) as caught:
        nbclient.NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    assert caught.value.ename == "ValueError"
    assert "set the environment variable OPENAI_API_KEY" in caught.value.evalue


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal of Unix")
def test_a_person_at_a_terminal_is_asked_and_the_key_is_not_shown():
    with Wire() as wire:
        # By a name that is not known to be this machine's.
        url = wire.url.replace("127.0.0.1", "127.1")
        code = (
            "from embedkit.encoders.api import OpenAIEncoder\n"
            f"encoder = OpenAIEncoder('m', base_url={url!r})\n"
            "print(encoder.encode(['a']).shape, encoder)"
        )
        terminal, end = os.openpty()
        command = [sys.executable, "-c", code]
        process = subprocess.Popen(
            command, stdin=end, stdout=end, stderr=end, start_new_session=True, cwd=ROOT
        )
        os.close(end)
        shown = b""
        while b"API key" not in shown:
            shown += os.read(terminal, 1000)
        time.sleep(0.2)  # until the echo is off
        os.write(terminal, KEY.encode() + b"\n")
        try:
            while chunk := os.read(terminal, 1000):
                shown += chunk
        except OSError:  # how Linux says that the other end is closed
            pass
        assert process.wait(60) == 0
        os.close(terminal)
    assert b"(1, 8)" in shown
    assert KEY.encode() not in shown
    assert wire.keys == [f"Bearer {KEY}"]


def test_the_key_is_in_nothing_that_is_shown_or_kept(tmp_path, monkeypatch, caplog, capfd):
    """Not in a repr, an error (even if the server says it), a pickle, the cache or a log."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level("DEBUG")

    def tells(number, texts):
        said = f"Incorrect API key provided: {KEY}" + "." * 295 + KEY
        return refusal(401, said) if "text 37" in texts else good(texts)

    kept = []
    with Wire(tells) as wire:
        encoder = OpenAIEncoder("m", base_url=wire.url, cache=tmp_path)
        encoder.encode(TEXTS[:10])
        with pytest.raises(RuntimeError, match=r"Incorrect API key provided: \[key\]") as caught:
            encoder.encode(TEXTS)
        address = wire.url.replace("http://", f"http://user:{KEY}@")
        hidden = OpenAIEncoder("m", base_url=address)
        print(encoder, hidden, encoder.usage, repr(caught.value), sep="\n")
        kept += [pickle.dumps(encoder), pickle.dumps(caught.value)]
    assert f"Bearer {KEY}" in wire.keys  # it was used
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    shown = capfd.readouterr()
    kept += [shown.out.encode(), shown.err.encode(), caplog.text.encode()]
    kept += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) == 6 and shown.out and caplog.text
    for each in kept:
        assert KEY.encode() not in each and not LIKE_A_KEY.search(each)
    assert b"text 5" not in kept[-1]  # nor are the texts


@pytest.mark.slow
def test_nothing_of_the_project_looks_like_a_key():
    """Notebooks with their outputs, caches and logs beside them, code, and all else."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:  # an unpacked source archive
        files = [path for path in ROOT.rglob("*") if ".venv" not in path.parts]
    else:
        files = [ROOT / name for name in listed.stdout.split("\n") if not name.startswith(".venv")]
    looked = [path for path in files if path.is_file() and path.suffix != ".safetensors"]
    assert {"02_sentiment.ipynb", "api.py"} <= {path.name for path in looked}
    found = {path.name: LIKE_A_KEY.findall(path.read_bytes()) for path in looked}
    assert not {name: keys for name, keys in found.items() if keys}
    assert LIKE_A_KEY.search(KEY.encode())


# Settings travel, keys do not


def test_it_pickles_as_its_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Wire() as wire:
        encoder = OpenAIEncoder("m", base_url=wire.url, cache=tmp_path, max_concurrency=2)
        before = Hasher.hash(encoder)
        encoder.encode(TEXTS)
        assert Hasher.hash(encoder) == before
        again = pickle.loads(pickle.dumps(encoder))
        np.testing.assert_array_equal(again.encode(TEXTS), right(TEXTS))
        assert again.usage["cached"] == 100
        assert Hasher.hash(OpenAIEncoder("m", base_url=wire.url, dimensions=2)) != before
        with impatient(wire) as client, pytest.raises(TypeError, match="make the encoder from"):
            pickle.dumps(OpenAIEncoder("m", client=client))


def test_this_machine_is_reached_without_a_proxy(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with Wire() as wire:
        assert OpenAIEncoder("m", base_url=wire.url).encode(["a"]).shape == (1, DIM)


def test_the_package_is_imported_without_torch():
    code = (
        "import sys, embedkit; embedkit.OpenAIEncoder; print({'torch', 'openai'} & {*sys.modules})"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert shown.stdout.strip() == "set()"
    assert ek.OpenAIEncoder is OpenAIEncoder
