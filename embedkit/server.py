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
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from embedkit.encoders.text import TextEncoder

# OpenAI's limits for one request, and a bound on what is read before they can be checked.
MAX_INPUTS = 2048
MAX_TOKENS = 300_000
_MAX_BYTES = 16 * 2**20
# Requests that wait are read together, up to so many texts.
_TOGETHER = 2048


class _Refusal(Exception):
    """An error in OpenAI's shape."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        kind = "server_error" if status >= 500 else "invalid_request_error"
        self.error = {"message": message, "type": kind, "param": param, "code": code}


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
        ended = False
        while not ended:
            waiting = [self._jobs.get()]
            while (
                not self._jobs.empty() and sum(len(job.texts) for job in waiting if job) < _TOGETHER
            ):
                waiting.append(self._jobs.get())
            ended = None in waiting
            # What was cancelled, as at the end of the server, cannot be given an answer.
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
                    400,
                    f"input {row} has {length} tokens and the model reads {longest}; shorten it",
                    param="input",
                    code="context_length_exceeded",
                )
        if sum(lengths) > MAX_TOKENS:
            raise _Refusal(
                400,
                f"the inputs have {sum(lengths)} tokens and a request may hold {MAX_TOKENS}; "
                "send them in several requests",
                param="input",
                code="max_tokens_per_request",
            )
        return sum(lengths)


class _Endpoint:
    """The routes, and what they share: the model, its name, and who may ask."""

    def __init__(self, encoder: TextEncoder, name: str, api_key: str | None) -> None:
        self.reader = _Reader(encoder)
        self._dim, self._name, self._api_key = encoder.dim, name, api_key
        self._card = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "you"}

    def app(self) -> Starlette:
        """Give the routes to a web framework, and every error OpenAI's shape."""
        return Starlette(
            routes=[
                Route("/v1/embeddings", self.embeddings, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/v1/models/{name:path}", self.model),
            ],
            exception_handlers={
                _Refusal: lambda _, refusal: JSONResponse({"error": refusal.error}, refusal.status),
                HTTPException: lambda request, error: JSONResponse(
                    {
                        "error": _Refusal(
                            error.status_code,
                            f"{request.method} {request.url.path}: {error.detail}",
                        ).error
                    },
                    error.status_code,
                    error.headers,
                ),
            },
        )

    async def models(self, request: Request) -> Response:
        """List the one model."""
        self._admit(request)
        return JSONResponse({"object": "list", "data": [self._card]})

    async def model(self, request: Request) -> Response:
        """Describe the one model."""
        self._admit(request)
        self._check_model(request.path_params["name"])
        return JSONResponse(self._card)

    async def embeddings(self, request: Request) -> Response:
        """Turn texts into vectors of length 1."""
        self._admit(request)
        asked = await _body(request)
        self._check_model(asked.get("model"))
        texts = _texts(asked.get("input"))
        dimensions = self._dimensions(asked.get("dimensions"))
        form = asked.get("encoding_format") or "float"
        if form not in ("float", "base64"):
            raise _Refusal(
                400,
                f"encoding_format is {_shown(form)}; choose from float, base64",
                param="encoding_format",
            )
        try:
            answer = await asyncio.wrap_future(self.reader.read(texts))
        except _Refusal:
            raise
        except ValueError as error:  # the encoder's word on a text that it cannot read
            raise _Refusal(400, str(error), param="input") from error
        except Exception as error:
            raise _Refusal(500, f"the model failed: {error}") from error
        vectors = answer.vectors[:, :dimensions]
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode()
                if form == "base64"
                else vector.tolist(),
            }
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens}
        return JSONResponse({"object": "list", "data": data, "model": self._name, "usage": usage})

    def _admit(self, request: Request) -> None:
        """Refuse who does not hold the key, in a time that says nothing about it."""
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._api_key and not hmac.compare_digest(given.encode(), self._api_key.encode()):
            raise _Refusal(
                401,
                "the API key is missing or not the one this server was started with",
                code="invalid_api_key",
            )

    def _check_model(self, name: Any) -> None:
        if name is None:
            raise _Refusal(400, f"no model is named; this server has {self._name}", param="model")
        if name != self._name:
            raise _Refusal(
                404,
                f"there is no model {_shown(name)}; this server has {self._name}",
                param="model",
                code="model_not_found",
            )

    def _dimensions(self, asked: Any) -> int:
        if asked is None:
            return self._dim
        if type(asked) is not int or not 1 <= asked <= self._dim:
            raise _Refusal(
                400,
                f"dimensions is {_shown(asked)}; give a whole number from 1 to {self._dim}",
                param="dimensions",
            )
        return asked


async def _body(request: Request) -> dict[str, Any]:
    """Read a JSON object, up to a size."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BYTES:
            raise _Refusal(413, f"the request is larger than {_MAX_BYTES // 2**20} MiB; split it")
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _Refusal(400, "the body of the request is no JSON") from error
    if not isinstance(asked, dict):
        raise _Refusal(400, "the body of the request has to be a JSON object")
    return asked


def _texts(given: Any) -> list[str]:
    """Make a list of texts of the request's input, or refuse it."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise _Refusal(400, "input has to be a text, or a list of at least one text", param="input")
    if len(texts) > MAX_INPUTS:
        raise _Refusal(
            400,
            f"input has {len(texts)} texts and a request may hold {MAX_INPUTS}; "
            "send them in several requests",
            param="input",
        )
    for row, text in enumerate(texts):
        if isinstance(text, int | list):
            raise _Refusal(
                400,
                "input holds token numbers, and this server reads text only, for its model has "
                "another vocabulary than OpenAI's; send strings",
                param="input",
            )
        if not isinstance(text, str):
            raise _Refusal(400, f"input {row} is {_shown(text)}, not a text", param="input")
        if not text:
            raise _Refusal(400, f"input {row} is an empty text; leave it out", param="input")
        if any("\ud800" <= sign <= "\udfff" for sign in text):
            raise _Refusal(400, f"input {row} holds half a character", param="input")
    return texts


def _shown(value: Any) -> str:
    """Show what was sent, shortly."""
    return json.dumps(value)[:60]


def _served(model: str | os.PathLike[str] | TextEncoder) -> tuple[TextEncoder, str]:
    """Give an encoder and the name it is served under, which is no path of this machine."""
    encoder = model if isinstance(model, TextEncoder) else TextEncoder(model, pooling="mean")
    made_from = encoder._made_from[0]
    if not isinstance(made_from, str | os.PathLike):
        return encoder, type(made_from).__name__
    name = os.fspath(made_from)
    return encoder, Path(name).resolve().name if Path(name).is_dir() else name


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(
            f"cannot listen on {host}, port {port} ({error.strerror}); choose another port, or 0 "
            "for a free one"
        ) from error


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
    encoder, name = _served(model)
    listening = _listen("127.0.0.1", port)
    endpoint = _Endpoint(encoder, name, api_key)
    # No logging set-up of its own: this process belongs to somebody else.
    config = uvicorn.Config(
        endpoint.app(),
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()
        endpoint.reader.stop()
        listening.close()


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
    try:
        listening = _listen(args.host, args.port)
        encoder, name = _served(args.model)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    endpoint = _Endpoint(encoder, name, args.api_key)
    host = f"[{args.host}]" if ":" in args.host else args.host
    print(f"{name} at http://{host}:{listening.getsockname()[1]}/v1", flush=True)
    config = uvicorn.Config(endpoint.app(), lifespan="off", timeout_graceful_shutdown=5)
    with suppress(KeyboardInterrupt):  # the usual way to end it is no error
        uvicorn.Server(config).run([listening])


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    main()
