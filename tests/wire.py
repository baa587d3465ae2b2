"""An embeddings API on the loopback that misbehaves when told to."""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import numpy as np

DIM = 8


class Reply(NamedTuple):
    """What goes back over the wire."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = {}  # noqa: RUF012
    delay: float = 0
    cut: bool = False


def vector_of(text: str) -> np.ndarray:
    """Give a vector that depends on its text alone."""
    digest = hashlib.sha256(text.encode()).digest()
    return np.frombuffer(digest, "<u4").astype(np.float32) / 2**32


def good(texts: list[str]) -> Reply:
    """Answer as the API does."""
    data = [
        {"object": "embedding", "index": i, "embedding": vector_of(text).tolist()}
        for i, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
    return Reply(body={"object": "list", "data": data, "model": "m", "usage": usage})


def refusal(status: int, message: str = "no", **headers: str) -> Reply:
    """Refuse as the API does."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return Reply(status, {"error": error}, headers)


def encoded(reply: Reply) -> Reply:
    """Write the vectors as base64."""
    for item in reply.body["data"]:
        raw = np.asarray(item["embedding"], "<f4").tobytes()
        item["embedding"] = base64.b64encode(raw).decode()
    return reply


class Wire:
    """Serve while in a ``with`` block; `answer` makes a reply of a request's number and texts."""

    def __init__(self, answer: Callable[[int, list[str]], Reply] | None = None) -> None:
        wire = self
        self.answer = answer or (lambda number, texts: good(texts))
        self.asked: list[list[str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        # What it says of its models, or how it answers when it is asked; each question is counted.
        self.models: list[dict[str, Any]] | Reply = refusal(404)
        self.asked_models = 0
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with wire._lock:
                    number = len(wire.asked)
                    wire.asked.append(body["input"])
                    wire.bodies.append(body)
                    wire.keys.append(self.headers["Authorization"])
                    wire.at_once += 1
                    wire.most_at_once = max(wire.most_at_once, wire.at_once)
                try:
                    self._reply(wire.answer(number, body["input"]))
                finally:
                    with wire._lock:
                        wire.at_once -= 1

            def do_GET(self) -> None:
                wire.asked_models += 1
                cards = wire.models
                self._reply(cards if isinstance(cards, Reply) else Reply(body={"data": cards}))

            def _reply(self, reply: Reply) -> None:
                time.sleep(reply.delay)
                raw = (
                    reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                )
                self.send_response(reply.status)
                headers = {"Content-Type": "application/json", **reply.headers}
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw[: len(raw) // 2] if reply.cut else raw)
                self.close_connection |= reply.cut

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """Say nothing of a client that has hung up."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> "Wire":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def texts(self) -> list[str]:
        """All texts that were asked for, in the order of the requests."""
        return [text for texts in self.asked for text in texts]
