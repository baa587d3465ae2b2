"""Random requests against the local endpoint: valid, broken, huge, hung up, half open, unread.

``python benchmarks/fuzz_server.py --seconds 1800`` starts a server in a process of its own, lets
eight clients do what they like with it (each draws from its own seed), and asks it for the vector
of a short text about once a second. It prints a table, and ends with status 1 if such a text
waited longer than ``--longest``, if a vector was wrong, if the log has a traceback, or if the
server did not end. Everything stays on 127.0.0.1.
"""

import argparse
import collections
import contextlib
import http.client
import json
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import embedkit as ek

WORDS = ["the", "kettle", "novel", "bag", "sings", "café", "茶", "\u202e", "42", ",", "!"]
CHECKED = ["a kettle", "the novel is good", "la lampe", "茶 and coffee", "river " * 40]


class Fuzzer:
    """Eight hands on one server; `counts` says what they did and what came back."""

    def __init__(self, port: int, model: str) -> None:
        self.port, self.model = port, model
        self.counts: collections.Counter[str] = collections.Counter()
        self.stop = threading.Event()

    def client(self, seed: int) -> None:
        """Do one random thing after the other."""
        draw, held = random.Random(seed), []
        kinds: list[Callable[[random.Random], object]] = [
            self.valid, self.valid, self.valid, self.many, self.huge, self.broken, self.garbage,
            self.hung_up, self.half_open, self.unread,
        ]  # fmt: skip
        while not self.stop.is_set():
            kind = draw.choice(kinds)
            try:
                result = kind(draw)
            except (OSError, http.client.HTTPException) as error:
                result = type(error).__name__
            if isinstance(result, socket.socket):
                held.append(result)
                result = "held"
            self.counts[f"{kind.__name__}: {result}"] += 1
            while len(held) > 4:  # no more than forty sockets of all clients together
                held.pop(0).close()
            time.sleep(draw.uniform(0, 0.05))
        for each in held:
            each.close()

    def _post(self, body: bytes, seconds: float = 5, **headers: str) -> int:
        """Send a body; give up (and hang up) after some seconds."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        with contextlib.closing(connection):
            headers = {"Content-Type": "application/json", **headers}
            connection.request("POST", "/v1/embeddings", body, headers)
            answer = connection.getresponse()
            said = json.loads(answer.read())
            if answer.status == 200:
                assert [each["index"] for each in said["data"]] == list(range(len(said["data"])))
            else:
                assert set(said["error"]) == {"message", "type", "param", "code"}, said
            return answer.status

    def _body(self, texts: list[str], **more: object) -> bytes:
        return json.dumps({"model": self.model, "input": texts, **more}).encode()

    def _text(self, draw: random.Random, most: int = 20) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, most))) + "."

    def valid(self, draw: random.Random) -> int:
        """Ask for a short text, as any client would."""
        return self._post(self._body([self._text(draw)]), 60)

    def many(self, draw: random.Random) -> int:
        """Ask for more, with more or less patience."""
        form = draw.choice(["float", "base64"])
        texts = [self._text(draw, 60) for _ in range(draw.randint(2, 100))]
        return self._post(self._body(texts, encoding_format=form), draw.choice([1, 5, 60]))

    def huge(self, draw: random.Random) -> int:
        """Too much in one way or another, or just all that is allowed."""
        count = draw.randint(0, 5)
        if count == 0:
            return self._post(self._body(["a " * draw.randint(10**5, 4 * 10**6)]))
        if count == 1:
            return self._post(self._body([" " * 7_000_000, "a"]))
        if count == 2:
            return self._post(b'{"input": [' + b"{}," * 2_000_000 + b"{}]}")
        if count == 3:
            return self._post(b"[" * draw.randint(1000, 8_000_000))
        if count == 4:
            return self._post(b" " * 2**20, **{"Content-Length": str(10**12)})
        return self._post(self._body([self._text(draw, 200) for _ in range(2048)]), 3)

    def broken(self, draw: random.Random) -> int:
        """Take a valid request and change a few bytes, the values, or the headers."""
        body = bytearray(self._body([self._text(draw)]))
        for _ in range(draw.randint(0, 5)):
            body[draw.randrange(len(body))] = draw.randrange(256)
        value = draw.choice([None, 0, -1, 1e308, "", [], {}, [""], ["\ud800"], [[1]], [1], True])
        changed = {draw.choice(["model", "input", "dimensions", "encoding_format"]): value}
        name, header = draw.choice([
            ("Host", "evil.example"), ("Origin", "http://evil.example"),
            ("Content-Type", "text/plain"),
            ("Authorization", "x" * draw.randint(1, 60_000)), ("Expect", "100-continue"),
            ("Connection", draw.choice(["close", "upgrade", "keep-alive"])),
        ])  # fmt: skip
        whole = draw.choice([bytes(body), self._body(["a"], **changed), self._body(["a"])])
        return self._post(whole, **({name: header} if draw.random() < 0.5 else {}))

    def _connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=5)

    def _head(self, length: int) -> bytes:
        return (
            "POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {length}\r\n\r\n"
        ).encode()

    def garbage(self, draw: random.Random) -> str:
        """Send what is no HTTP, or a strange kind of it."""
        with self._connect() as wire:
            wire.sendall(
                draw.choice([
                    draw.randbytes(draw.randint(1, 100_000)),
                    b"GET / HTTP/9.9\r\n\r\n",
                    b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
                    b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked"
                    b"\r\n\r\nfffffffff\r\n",
                    self._head(5) + b"12345" + self._head(2) + b"{}" + self._head(99),
                    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                ])
            )  # fmt: skip
            wire.shutdown(socket.SHUT_WR)
            return "answered" if wire.recv(100) else "closed"

    def hung_up(self, draw: random.Random) -> str:
        """Ask for something, and do not wait for the answer."""
        body = self._body([self._text(draw, 200) for _ in range(draw.choice([1, 10, 500]))])
        with self._connect() as wire:
            wire.sendall(self._head(len(body)) + body[: draw.choice([len(body), len(body) // 2])])
            time.sleep(draw.choice([0, 0.05, 0.5]))
        return "gone"

    def half_open(self, draw: random.Random) -> socket.socket:
        """Begin a request and let it be."""
        wire, whole = self._connect(), self._head(1000) + b'{"input":'
        wire.sendall(whole[: draw.randint(0, len(whole))])
        return wire

    def unread(self, draw: random.Random) -> socket.socket:
        """Ask for a large answer and never read it."""
        wire, body = self._connect(), self._body(["a"] * 1000)
        wire.sendall(self._head(len(body)) + body)
        return wire


def ask(port: int, model: str, text: str) -> tuple[np.ndarray, float]:
    """Ask for one vector as any client would; say how long it took."""
    begun = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    with contextlib.closing(connection):
        body = json.dumps({"model": model, "input": text})
        connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
    return np.array(answer["data"][0]["embedding"]), time.perf_counter() - begun


def resident(pid: int) -> float:
    """Give the memory of a process now, in MiB (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) / 1024


def main() -> None:
    """Let the clients loose, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled/all-MiniLM-L6-v2")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=5, help="seconds a short text may wait")
    args = parser.parse_args()
    expected = ek.TextEncoder(args.model, pooling="mean", normalize=True).encode(CHECKED)
    command = [sys.executable, "-m", "embedkit.server", "--model", args.model, "--port", "0"]
    faults: list[str] = []
    waits: list[float] = []
    memory: list[float] = []
    with tempfile.NamedTemporaryFile("w+") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while not (said := re.search(r":(\d+)/v1\n", Path(log.name).read_text())):
                assert server.poll() is None, Path(log.name).read_text()
                time.sleep(0.1)
            port = int(said.group(1))
            for text in CHECKED:
                ask(port, args.model, text)  # warm
            fuzzer = Fuzzer(port, args.model)
            seeds = [1000 * args.seed + number for number in range(args.clients)]
            threads = [threading.Thread(target=fuzzer.client, args=(seed,)) for seed in seeds]
            for thread in threads:
                thread.start()
            end, row = time.monotonic() + args.seconds, 0
            while time.monotonic() < end:
                vector, wait = ask(port, args.model, CHECKED[row % 4])
                waits.append(wait)
                memory.append(resident(server.pid))
                if not np.allclose(vector, expected[row % 4], atol=1e-4):
                    faults.append(f"{CHECKED[row % 4]!r} had a wrong vector")
                row += 1
                time.sleep(1)
            fuzzer.stop.set()
            for thread in threads:
                thread.join(90)
            found = np.stack([ask(port, args.model, text)[0] for text in CHECKED])
            if not np.allclose(found, expected, atol=1e-4):
                faults.append("afterwards, a vector was wrong")
            time.sleep(1)
            memory.append(resident(server.pid))
            files = len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
        finally:
            server.terminate()
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                faults.append("the server did not end")
                server.kill()
        written = Path(log.name).read_text()
    if "Traceback" in written:
        faults.append("the log has a traceback:\n" + written[written.index("Traceback") :][:2000])
    if max(waits, default=0) > args.longest:
        faults.append(f"a short text waited {max(waits):.1f} s")
    print("| what was done: how it was answered | times |\n| --- | --- |")
    for what, count in sorted(fuzzer.counts.items()):
        print(f"| {what} | {count} |")
    print(
        f"\n{sum(fuzzer.counts.values())} requests in {args.seconds:.0f} s by {args.clients} "
        f"clients, seed {args.seed}. A short text, asked for {len(waits)} times meanwhile, waited "
        f"{np.median(waits):.2f} s (median), {max(waits):.2f} s at most. The server held "
        f"{memory[0]:.0f} MiB at first, {max(memory):.0f} at most, {memory[-1]:.0f} at the end, "
        f"and {files} files; its log has {len(written):,} letters."
    )
    tenths = [memory[len(memory) * part // 10] for part in range(10)]
    print(f"Memory in ten parts of the time, MiB: {', '.join(f'{m:.0f}' for m in tenths)}.")
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
