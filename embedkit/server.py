"""A small server of one's own that speaks OpenAI's embeddings API.

``with serve(model) as url:`` in a notebook, ``python -m embedkit.server --model …`` in a terminal.
It is there to learn and to test with, on one machine. To serve many people take vLLM or Hugging
Face's Text Embeddings Inference, which speak the same API.
"""

import argparse
import asyncio
import base64
import hmac
import ipaddress
import json
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import uvicorn
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from embedkit.encoders.api import MAX_INPUTS, MAX_TOKENS, api_text_fault
from embedkit.encoders.text import TextEncoder

# The most that is read of a request, before OpenAI's limits can be checked.
_MAX_BYTES = 16 * 2**20
# Requests that wait are read together, up to this number of texts.
_TOGETHER = 2048


class _Refusal(Exception):
    """An error in OpenAI's shape."""

    def __init__(
        self, message: str, status: int = 400, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        kind = "server_error" if status >= 500 else "invalid_request_error"
        error = {"message": message, "type": kind, "param": param, "code": code}
        self.response = JSONResponse({"error": error}, status)


class _Answer(NamedTuple):
    vectors: NDArray[np.float32]
    tokens: int


class _Job(NamedTuple):
    texts: list[str]
    answer: "Future[_Answer]"


class _Reader:
    """The thread that owns the model. What arrives while it reads goes into its next call."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        # A daemon, so that a kernel which is shut down does not wait for it.
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def read(self, texts: list[str]) -> "Future[_Answer]":
        """Put texts in the queue."""
        answer: Future[_Answer] = Future()
        self._jobs.put(_Job(texts, answer))
        return answer

    def stop(self) -> None:
        """Finish what is in the queue, and end."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        waiting: list[_Job | None] = []
        while None not in waiting:
            waiting = [self._jobs.get()]
            while (
                not self._jobs.empty() and sum(len(job.texts) for job in waiting if job) < _TOGETHER
            ):
                waiting.append(self._jobs.get())
            # A job that was cancelled, as at the end of the server, cannot be given an answer.
            self._answer(
                [job for job in waiting if job and job.answer.set_running_or_notify_cancel()]
            )

    def _answer(self, jobs: list[_Job]) -> None:
        """Read the texts of several requests in one call; a fault is told to its own request."""
        counted: list[tuple[_Job, int]] = []
        for job in jobs:
            try:
                counted.append((job, self._count(job.texts)))
            except Exception as error:
                job.answer.set_exception(error)
        try:
            texts = [text for job, _ in counted for text in job.texts]
            vectors = self._encoder.encode(texts, progress=False)
        except Exception as error:
            if len(counted) == 1:
                counted[0][0].answer.set_exception(error)
            else:
                for job, _ in counted:
                    self._answer([job])
            return
        start = 0
        for job, tokens in counted:
            stop = start + len(job.texts)
            job.answer.set_result(_Answer(vectors[start:stop], tokens))
            start = stop

    def _count(self, texts: list[str]) -> int:
        """Count tokens, special ones included, and refuse what the model would have to cut."""
        longest = self._encoder.max_length
        lengths = [len(ids) for ids in self._encoder.processor(texts, verbose=False)["input_ids"]]
        for row, length in enumerate(lengths):
            if length > longest:
                raise _Refusal(
                    f"input {row} has {length} tokens and the model reads {longest}; shorten it",
                    param="input",
                    code="context_length_exceeded",
                )
        if sum(lengths) > MAX_TOKENS:
            raise _Refusal(
                f"the inputs have {sum(lengths)} tokens and a request may hold {MAX_TOKENS}; "
                "send them in several requests",
                param="input",
                code="max_tokens_per_request",
            )
        return sum(lengths)


class _Endpoint:
    """The application: one model, its name, and the key that a request has to hold."""

    def __init__(self, encoder: TextEncoder, name: str, api_key: str | None) -> None:
        self.reader = _Reader(encoder)
        self._dim, self._name, self._api_key = encoder.dim, name, api_key
        self._card = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "you"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; every error has OpenAI's shape."""
        request = Request(scope, receive)
        try:
            self._check_key(request)
            response = JSONResponse(await self._answer(request))
        except _Refusal as refusal:
            response = refusal.response
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> dict[str, Any]:
        """Find what a path and a method ask for."""
        path, method = request.url.path, request.method
        if path == "/v1/embeddings":
            if method == "POST":
                return await self._embeddings(request)
        elif path != "/v1/models" and not path.startswith("/v1/models/"):
            raise _Refusal(f"{method} {path}: Not Found", 404)
        elif method in ("GET", "HEAD"):
            if path == "/v1/models":
                return {"object": "list", "data": [self._card]}
            self._check_model(path.removeprefix("/v1/models/"))
            return self._card
        raise _Refusal(f"{method} {path}: Method Not Allowed", 405)

    async def _embeddings(self, request: Request) -> dict[str, Any]:
        """Turn texts into vectors of length 1."""
        asked = await _body(request)
        self._check_model(asked.get("model"))
        texts = _texts(asked.get("input"))
        dim = asked.get("dimensions")
        if dim is not None and (type(dim) is not int or not 1 <= dim <= self._dim):
            raise _Refusal(
                f"dimensions is {_short(dim)}; give a whole number from 1 to {self._dim}",
                param="dimensions",
            )
        form = asked.get("encoding_format") or "float"
        if form not in ("float", "base64"):
            raise _Refusal(
                f"encoding_format is {_short(form)}; choose from float, base64",
                param="encoding_format",
            )
        try:
            answer = await asyncio.wrap_future(self.reader.read(texts))
        except _Refusal:
            raise
        except ValueError as error:  # the encoder's word on a text that it cannot read
            raise _Refusal(str(error), param="input") from error
        except Exception as error:
            raise _Refusal(f"the model failed: {error}", 500) from error
        vectors = answer.vectors[:, :dim]
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = (vectors / np.maximum(lengths, np.finfo(np.float32).tiny)).astype("<f4")
        encode = (lambda v: base64.b64encode(v).decode()) if form == "base64" else np.ndarray.tolist
        data = [
            {"object": "embedding", "index": index, "embedding": encode(vector)}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens}
        return {"object": "list", "data": data, "model": self._name, "usage": usage}

    def _check_key(self, request: Request) -> None:
        """Refuse a request without the key, in a time that says nothing about it."""
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._api_key and not hmac.compare_digest(given.encode(), self._api_key.encode()):
            raise _Refusal(
                "the API key is missing or not the one this server was started with",
                401,
                code="invalid_api_key",
            )

    def _check_model(self, name: Any) -> None:
        if name is None:
            raise _Refusal(f"no model is named; this server has {self._name}", param="model")
        if name != self._name:
            raise _Refusal(
                f"there is no model {_short(name)}; this server has {self._name}",
                404,
                param="model",
                code="model_not_found",
            )


async def _body(request: Request) -> dict[str, Any]:
    """Read a JSON object, up to a size."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BYTES:
            raise _Refusal(f"the request is larger than {_MAX_BYTES // 2**20} MiB; split it", 413)
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _Refusal("the body of the request is no JSON") from error
    if not isinstance(asked, dict):
        raise _Refusal("the body of the request has to be a JSON object")
    return asked


def _texts(given: Any) -> list[str]:
    """Make a list of texts of the request's input, or refuse it."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise _Refusal("input has to be a text, or a list of at least one text", param="input")
    if len(texts) > MAX_INPUTS:
        raise _Refusal(
            f"input has {len(texts)} texts and a request may hold {MAX_INPUTS}; "
            "send them in several requests",
            param="input",
        )
    for row, text in enumerate(texts):
        if isinstance(text, int | list):
            raise _Refusal(
                "input holds token numbers, and this server reads text only, because its model "
                "has a different vocabulary from OpenAI's; send strings",
                param="input",
            )
        if fault := api_text_fault(text, f"input {row}"):
            raise _Refusal(str(fault), param="input")
    return texts


def _short(value: Any) -> str:
    """Show the beginning of what was sent."""
    return json.dumps(value)[:60]


def _name_of(model: str | os.PathLike[str] | TextEncoder) -> str:
    """Name a model without a path of this machine."""
    if isinstance(model, TextEncoder):
        made_from = model.__reduce__()[1][1]  # a name or, around a loaded model, all it holds
        model = made_from if isinstance(made_from, str) else type(model.model).__name__
    name = os.fspath(model)
    return Path(name).resolve().name if Path(name).is_dir() else name


@contextmanager
def serve(
    model: str | os.PathLike[str] | TextEncoder, *, port: int = 0, api_key: str | None = None
) -> Iterator[str]:
    """Serve a model on this machine, for as long as the ``with`` block lasts.

    Use it to try what talks to OpenAI's embeddings API, without a key and without a network. It
    listens on the loopback, so no other machine can reach it. Its limits, its errors and its
    ``/v1/embeddings`` and ``/v1/models`` are OpenAI's; it reads text only, no token numbers.

    Parameters
    ----------
    model : str, path or TextEncoder
        A bundled name, a folder or a Hub id, which is read with ``pooling="mean"``; or an encoder
        of yours, as it is. Every vector is scaled to length 1, as OpenAI's are.
    port : int
        Where to listen; 0 takes a port that is free.
    api_key : str, optional
        Asked of everyone who connects.

    Yields
    ------
    str
        The URL to give to a client as ``base_url``.

    Raises
    ------
    OSError
        If the model cannot be had, or the port is taken.

    Examples
    --------
    >>> from openai import OpenAI
    >>> with serve("bundled/all-MiniLM-L6-v2") as url:
    ...     client = OpenAI(base_url=url, api_key="none")
    ...     answer = client.embeddings.create(model="bundled/all-MiniLM-L6-v2", input="a kettle")
    ...     client.close()
    >>> len(answer.data[0].embedding)
    384
    """
    # No logging set-up of its own: this process belongs to somebody else.
    quiet = {"log_config": None, "log_level": "warning", "access_log": False}
    with _running(model, "127.0.0.1", port, api_key, **quiet) as url:
        yield url


@contextmanager
def _running(
    model: str | os.PathLike[str] | TextEncoder,
    host: str,
    port: int,
    api_key: str | None,
    **settings: Any,
) -> Iterator[str]:
    """Serve at an address, from a thread of its own."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(
            f"cannot listen on {host}, port {port} ({error.strerror}); choose another port, or 0 "
            "for a free one"
        ) from error
    with listening:
        encoder = model if isinstance(model, TextEncoder) else TextEncoder(model, pooling="mean")
        endpoint = _Endpoint(encoder, _name_of(model), api_key)
        config = uvicorn.Config(
            endpoint, lifespan="off", ws="none", timeout_graceful_shutdown=5, **settings
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise RuntimeError(f"the server at {host}, port {port} did not start")
                time.sleep(0.005)
            shown = f"[{host}]" if ":" in host else host
            yield f"http://{shown}:{listening.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()
            endpoint.reader.stop()


def main() -> None:
    """Serve from the command line until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m embedkit.server", description=__doc__)
    parser.add_argument("--model", required=True, help="a bundled name, a folder, or a Hub id")
    parser.add_argument("--host", default="127.0.0.1", help="by default this machine alone")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument(
        "--api-key",
        default=os.environ.get("EMBEDKIT_API_KEY"),
        help="asked of clients; better set as EMBEDKIT_API_KEY, which no list of processes shows",
    )
    args = parser.parse_args()
    if not _is_loopback(args.host) and not args.api_key:
        parser.error(
            f"--host {args.host} lets other machines in; that needs --api-key, or leave --host out"
        )
    # The usual ways to end it are no errors.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        try:
            with _running(args.model, args.host, args.port, args.api_key) as url:
                print(f"{_name_of(args.model)} at {url}", flush=True)
                threading.Event().wait()
        except (OSError, ValueError) as error:
            parser.exit(1, f"{error}\n")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    main()
