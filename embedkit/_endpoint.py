"""The application that `embedkit.server` runs: who may ask, and what is read of a request."""

import asyncio
import base64
import hashlib
import hmac
import json
import pickle
import re
import time
import uuid
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from embedkit._reader import Answer, Reader, Refusal, too_long
from embedkit.encoders.api import MAX_INPUTS, MAX_TOKENS, api_text_fault
from embedkit.encoders.text import TextEncoder

# The most that is read of one request, and held of all, before OpenAI's limits can be checked.
_MAX_BYTES = 8 * 2**20
_MAX_HELD = 8 * _MAX_BYTES
# How long a request may take to arrive.
_SECONDS_TO_ARRIVE, _SECONDS_TO_REFUSE = 20, 2
# A text with more letters than this for each token that the model reads is not even tokenized.
_LETTERS_PER_TOKEN = 100
_MAX_LETTERS = 1_000_000


class Endpoint:
    """The application: it answers the requests of all clients to one model.

    Parameters
    ----------
    encoder : TextEncoder
    name : str
        What clients call the model.
    api_key : str or None
        Asked of every request, whatever it is for.
    hosts : set of str or None
        The names of this machine that a request may be sent to, so that no page in a browser can
        reach the server by a name of its own; None admits all.
    """

    def __init__(
        self, encoder: TextEncoder, name: str, api_key: str | None, hosts: set[str] | None
    ) -> None:
        self.reader = Reader(encoder)
        self._dim, self._name, self._api_key, self._hosts = encoder.dim, name, api_key, hosts
        self._longest, self._held = encoder.max_length, 0
        self._card = {
            "id": name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "you",
            "dim": encoder.dim,
            "pooling": getattr(encoder.pooling, "__name__", encoder.pooling),
            "normalized": True,
            "commit": encoder.commit,
            "fingerprint": fingerprint_of(encoder),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; every error has OpenAI's shape."""
        request = Request(scope, receive)
        try:
            self._admit(request)
            response = await self._answer(request)
        except Refusal as refusal:
            response = refusal.response
        except ClientDisconnect:
            return
        except asyncio.CancelledError:  # the server ends, and waits no longer
            response = Refusal("the server is shutting down", 503).response
        except Exception as error:
            response = Refusal(f"the server failed: {type(error).__name__}", 500).response
        await response(scope, receive, send)

    def _admit(self, request: Request) -> None:
        """Refuse a request from elsewhere, or without the key, before any more of it is read."""
        headers = request.headers
        for name in ("host", "origin") if self._hosts is not None else ():
            if name == "host" or name in headers:
                given = headers.get(name, "").lower()
                host = re.fullmatch(r"(?:https?://)?\[?([0-9a-f:]+|[\w.-]+?)\]?(?::\d+)?", given)
                if host is None or host[1] not in (self._hosts or ()):
                    raise Refusal(
                        f"the request's header {name} names another place than this machine; "
                        "ask http://127.0.0.1 or http://localhost",
                        403,
                    )
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if self._api_key is not None and not (
            # Compared in constant time, so that the time reveals nothing about the key.
            hmac.compare_digest(key.encode(), self._api_key.encode()) and scheme.lower() == "bearer"
        ):
            raise Refusal(
                "the API key is missing or not the one this server was started with; send the "
                "header Authorization: Bearer KEY",
                401,
                code="invalid_api_key",
            )

    async def _answer(self, request: Request) -> Response:
        """Find what a path and a method ask for."""
        path, method = request.url.path, request.method
        if path == "/v1/embeddings":
            if method == "POST":
                return await self._embeddings(request)
        elif path != "/v1/models" and not path.startswith("/v1/models/"):
            raise Refusal(f"{method} {path}: Not Found", 404)
        elif method in ("GET", "HEAD"):
            if path == "/v1/models":
                return JSONResponse({"object": "list", "data": [self._card]})
            self._check_model(path.removeprefix("/v1/models/"))
            return JSONResponse(self._card)
        raise Refusal(f"{method} {path}: Method Not Allowed", 405)

    async def _embeddings(self, request: Request) -> Response:
        """Turn texts into vectors of length 1."""
        asked = await self._body(request)
        self._check_model(asked.get("model"))
        texts = _texts(asked.get("input"), min(self._longest * _LETTERS_PER_TOKEN, _MAX_LETTERS))
        dim = asked.get("dimensions")
        if dim is not None and (type(dim) is not int or not 1 <= dim <= self._dim):
            raise Refusal(
                f"dimensions is {_short(dim)}; give a whole number from 1 to {self._dim}",
                param="dimensions",
            )
        form = asked.get("encoding_format") or "float"
        if form not in ("float", "base64"):
            raise Refusal(
                f"encoding_format is {_short(form)}; choose from float, base64",
                param="encoding_format",
            )
        answer = await self._read(request, texts)
        content = await asyncio.to_thread(_written, answer, dim, form, self._name)
        return Response(content, media_type="application/json")

    async def _body(self, request: Request) -> dict[str, Any]:
        """Read a JSON object, up to a size and for a time."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # others, any web page may send unasked
            raise Refusal("the header Content-Type has to be application/json", 415)
        too_large = Refusal(f"the request is larger than {_MAX_BYTES // 2**20} MiB; split it", 413)
        if int(request.headers.get("content-length", 0)) > _MAX_BYTES:
            # A client that is still sending would not see the answer.
            with suppress(TimeoutError):
                async with asyncio.timeout(_SECONDS_TO_REFUSE):
                    async for _ in request.stream():
                        pass
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(_SECONDS_TO_ARRIVE):
                async for chunk in request.stream():
                    body += chunk
                    self._held += len(chunk)
                    if len(body) > _MAX_BYTES:
                        raise too_large
                    if self._held > _MAX_HELD:
                        raise Refusal("too much arrives at the same time; try again", 503)
            if body.count(b"{") + body.count(b"[") > MAX_TOKENS:
                raise Refusal("the body of the request has more brackets than texts can have")
            asked = json.loads(body)
        except TimeoutError as error:
            raise Refusal("the request did not arrive in time", 408) from error
        except (ValueError, RecursionError) as error:
            raise Refusal("the body of the request is no JSON") from error
        finally:
            self._held -= len(body)
        if not isinstance(asked, dict):
            raise Refusal("the body of the request has to be a JSON object")
        return asked

    async def _read(self, request: Request, texts: list[str]) -> Answer:
        """Wait for the model, or until the client hangs up."""
        answer = asyncio.wrap_future(self.reader.read(texts))
        gone = asyncio.ensure_future(request.receive())  # after the body, only a hang-up can come
        try:
            waits: set[asyncio.Future[Any]] = {answer, gone}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ClientDisconnect
            return answer.result()
        except (Refusal, ClientDisconnect):
            raise
        except ValueError as error:  # the encoder says why it cannot read a text
            raise Refusal(str(error), param="input") from error
        except Exception as error:
            raise Refusal(f"the model failed: {error}", 500) from error
        finally:
            answer.cancel()
            gone.cancel()

    def _check_model(self, name: Any) -> None:
        if name is None:
            raise Refusal(f"no model is named; this server has {self._name}", param="model")
        if name != self._name:
            raise Refusal(
                f"there is no model {_short(name)}; this server has {self._name}",
                404,
                param="model",
                code="model_not_found",
            )


def fingerprint_of(encoder: TextEncoder) -> str:
    """Name what an encoder's vectors depend on: its settings and files or, loaded, its weights."""
    digest = hashlib.sha256()
    try:
        pickle.Pickler(SimpleNamespace(write=digest.update)).dump(encoder)
    except (pickle.PicklingError, TypeError, AttributeError):  # a pooling that is a lambda
        return uuid.uuid4().hex
    return digest.hexdigest()[:32]


def _texts(given: Any, most_letters: int) -> list[str]:
    """Make a list of texts of the request's input, or refuse it."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise Refusal("input has to be a text, or a list of at least one text", param="input")
    if len(texts) > MAX_INPUTS:
        raise Refusal(
            f"input has {len(texts)} texts and a request may hold {MAX_INPUTS}; "
            "send them in several requests",
            param="input",
        )
    for row, text in enumerate(texts):
        if isinstance(text, int | list):
            raise Refusal(
                "input holds token numbers, and this server reads text only, because its model "
                "has a different vocabulary from OpenAI's; send strings",
                param="input",
            )
        if fault := api_text_fault(text, f"input {row}"):
            raise Refusal(str(fault), param="input")
        if len(text) > most_letters:
            raise too_long(row, f"{len(text)} letters", most_letters // _LETTERS_PER_TOKEN)
    return texts


def _written(answer: Answer, dim: int | None, form: str, name: str) -> bytes:
    """Write the body of an answer, vector by vector, so that other requests are not held up."""
    vectors = answer.vectors[:, :dim]
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = (vectors / np.maximum(lengths, np.finfo(np.float32).tiny)).astype("<f4")
    encode = (lambda v: base64.b64encode(v).decode()) if form == "base64" else np.ndarray.tolist
    data = ",".join(
        json.dumps({"object": "embedding", "index": index, "embedding": encode(vector)})
        for index, vector in enumerate(vectors)
    )
    usage = {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens}
    rest = json.dumps({"object": "list", "model": name, "usage": usage})
    return f'{rest[:-1]}, "data": [{data}]}}'.encode()


def _short(value: Any) -> str:
    """Show the beginning of what was sent."""
    return json.dumps(value)[:60]
