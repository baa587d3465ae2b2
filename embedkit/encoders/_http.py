"""How `OpenAIEncoder` talks to a server: limits on size and time, and no redirects.

Imported when an encoder is made, because OpenAI's package takes a second.
"""

import base64
import getpass
import os
import random
import sys
import threading
import time
from contextlib import closing, suppress
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import openai
from numpy.typing import NDArray

# The client insists on a key, where a server on this machine needs none.
_NO_KEY = "none"
# OpenAI's client tries again twice; a limit of requests per minute needs more patience.
_RETRIES = 6
# All tries of a request together take this many timeouts at most.
_PATIENCE = 3
# The longest vector, and the most bytes for one of its numbers, that an answer is expected to hold.
_DIM, _NUMBER = 8192, 32
_MAX_ANSWER = 256 * 2**20
_limit: ContextVar[int] = ContextVar("limit", default=2**20)
# What a server says of a model that makes its vectors what they are.
_DESCRIPTION = ("id", "owned_by", "root", "pooling", "normalized", "commit", "fingerprint")
_HINTS: dict[int | None, str] = {
    401: "check OPENAI_API_KEY",
    404: "check the model's name, and that base_url ends in /v1",
    429: "too many requests, or no credit left",
}


class AnswerTooLargeError(Exception):
    """The server sends more than vectors can need; trying again would not help."""


class _Client(openai.DefaultHttpxClient):
    """An HTTP client that reads an answer up to a size and for a time, and follows no redirect."""

    # Its requests and answers are those of httpx or of httpx2, as OpenAI's package has it.
    def send(self, request: Any, **settings: Any) -> Any:
        """Send a request, and read all of its answer."""
        # Compressed, a small answer could unfold to any size.
        request.headers["Accept-Encoding"] = "identity"
        settings |= {"stream": True, "follow_redirects": False}
        seconds, limit = request.extensions.get("timeout", {}).get("read"), _limit.get()
        end = time.monotonic() + (seconds or float("inf"))
        answer: Any = super().send(request, **settings)
        with closing(answer):
            if answer.headers.get("Content-Encoding", "identity") != "identity":
                raise AnswerTooLargeError("the answer is compressed, which was not asked for")
            size, pieces = 0, []
            if int(answer.headers.get("Content-Length", 0)) > limit:
                size = limit + 1
            for piece in () if size else answer.iter_raw():
                pieces.append(piece)
                size += len(piece)
                if size > limit:
                    break
                if time.monotonic() > end:
                    raise TimeoutError(f"the answer had not ended after {seconds} seconds")
        if size > limit:
            raise AnswerTooLargeError(
                f"the answer is larger than the {limit:,} bytes that its vectors can need; with "
                "longer vectors than usual, ask for fewer at a time (`batch_size`)"
            )
        return type(answer)(
            answer.status_code,
            headers=answer.headers,
            content=b"".join(pieces),
            extensions=answer.extensions,
            request=request,
        )


class Server:
    """An embeddings API at an address, asked through OpenAI's client."""

    def __init__(self, url: str, client: openai.OpenAI | None, timeout: float) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            host = ""
        if not host or parts.scheme not in ("http", "https"):
            raise ValueError(
                f"base_url={url!r}: not an address; give one such as http://localhost:8000/v1, "
                "with a port up to 65535"
            )
        self.url, self.is_local = url, host in ("localhost", "127.0.0.1", "::1")
        self._timeout, self._client, self._is_own = timeout, client, client is None
        # A name or password that stands before the host is not shown.
        self.name = plain(parts.netloc.rpartition("@")[2])
        self.address = f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/')}"

    def connect(self) -> openai.OpenAI:
        """Give OpenAI's client, made when it is first needed; a missing key is an error then."""
        if self._client is None:
            self._client = openai.OpenAI(
                api_key=_api_key(needed=not self.is_local),
                base_url=self.url,
                timeout=self._timeout,
                max_retries=_RETRIES,
                # Whatever proxy leads to the network, this machine is reached without it.
                http_client=_Client(trust_env=not self.is_local),
            )
        return self._client

    def describe(self, model: str) -> tuple[str, dict[str, Any] | None]:
        """Say where a model is: the address, and what the server says of the model.

        An empty description means that the server says nothing of it; None, that it could not be
        asked.
        """
        if self._client is None and not self.is_local and not os.environ.get("OPENAI_API_KEY"):
            return self.address, None
        said: dict[str, Any] = {}
        try:
            client = self.connect().with_options(timeout=min(self._timeout, 10))
            cards: Any = client.get(
                "/models", cast_to=object, options={"max_retries": 0, "follow_redirects": False}
            )
            card: Any = next((each for each in cards["data"] if each["id"] == model), {})
            said = {name: str(card[name]) for name in _DESCRIPTION if name in card}
        except openai.APIConnectionError:
            return self.address, None
        except (openai.APIStatusError, LookupError, TypeError, ValueError, AttributeError):
            pass
        # A local server has a new port every time; its model is known by its fingerprint.
        return "here" if self.is_local and said.get("fingerprint") else self.address, said

    def embed(
        self, texts: list[str], dim: int | None, stop: threading.Event, **settings: Any
    ) -> tuple[list[NDArray[np.float32]], int]:
        """Ask for the vectors of a few texts, and put them in order; count the tokens.

        After a temporary error (a limit of requests, a fault of the server) it tries again, until
        `stop`.
        """
        client, begun = self.connect(), time.monotonic()
        _limit.set(min(2**20 + len(texts) * (dim or _DIM) * _NUMBER, _MAX_ANSWER))
        # Requested explicitly, base64 stays as it is; servers that do not know it send numbers.
        body = {"input": texts, "encoding_format": "base64", **settings}
        # Not even a client of the reader's own follows redirects: texts would travel along.
        options: Any = {"max_retries": 0, "follow_redirects": False}
        for attempt in range(client.max_retries + 1):
            try:
                answer = client.post("/embeddings", cast_to=object, body=body, options=options)
                break
            except openai.APIError as error:
                wait = min(0.5 * 2**attempt, 8) * random.uniform(0.75, 1)
                with suppress(AttributeError, LookupError, ValueError):
                    asked = float(error.response.headers["Retry-After"])  # type: ignore[attr-defined]
                    wait = asked if 0 <= asked <= 60 else wait
                spent = time.monotonic() - begun + wait
                too_late = self._is_own and spent > _PATIENCE * self._timeout
                last = attempt == client.max_retries
                if last or too_late or not _is_temporary(error) or stop.wait(wait):
                    raise
        return _read(answer, len(texts))

    def explain(self, error: Exception) -> str:
        """Say in one line why a request failed, without the key and without control characters."""
        body = getattr(error, "body", None)
        hint = _HINTS.get(getattr(error, "status_code", None))
        if isinstance(error.__cause__, AnswerTooLargeError):
            reason = f"{self.name}: {error.__cause__}"
        elif isinstance(error, openai.APITimeoutError):
            reason = f"{self.name} gave no answer within the client's timeout"
        elif isinstance(error, openai.APIConnectionError):
            reason = f"the connection to {self.name} failed ({error.__cause__})"
        elif isinstance(error, openai.APIStatusError):
            said = body.get("message") if isinstance(body, dict) else None
            reason = f"status {error.status_code}: {said or error.message}"
            if error.response.is_redirect:
                reason = f"status {error.status_code}: a redirect, which would take the texts along"
                hint = f"give the right address as base_url ({error.response.headers['Location']})"
        else:
            reason = str(error) or type(error).__name__
        # The key is replaced before the rest is cut, or half of it might stay.
        key = self.connect().api_key
        key = "[key]" if key in ("", _NO_KEY) else key
        said, hint = (plain(each.replace(key, "[key]"))[:400] for each in (reason, hint or ""))
        return f"{said}; {hint}" if hint else said


def plain(text: str) -> str:
    """Leave out what a terminal would obey: control characters, and marks of direction."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def _is_temporary(error: openai.APIError) -> bool:
    """Say whether the same request may be answered a little later."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code in (408, 409, 429) or error.status_code >= 500
    too_large = isinstance(error.__cause__, AnswerTooLargeError)
    return isinstance(error, openai.APIConnectionError) and not too_large


def _read(answer: Any, count: int) -> tuple[list[NDArray[np.float32]], int]:
    """Compare an answer with what was asked: each number from 0 on once, each with a vector."""
    try:
        found = {item["index"]: _decoded(item["embedding"]) for item in answer["data"]}
        if len(answer["data"]) != count or sorted(found) != list(range(count)):
            raise ValueError("other numbers than were asked for")
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"the server's answer is not one embedding for each of the {count} texts; "
            "check that base_url ends in /v1 and that the model makes embeddings"
        ) from error
    usage = answer.get("usage")
    tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else 0
    ordered = [found[number] for number in range(count)]
    return ordered, tokens if isinstance(tokens, int) and 0 <= tokens < 2**53 else 0


def _decoded(embedding: Any) -> NDArray[np.float32]:
    """Read a vector as base64 or, from servers that know only that, as numbers."""
    if isinstance(embedding, str):
        vector = np.frombuffer(base64.b64decode(embedding, validate=True), "<f4")
    else:
        with np.errstate(over="ignore"):  # what becomes infinite is refused later
            vector = np.asarray(embedding, np.float32)
    if vector.ndim != 1 or not len(vector):
        raise ValueError("not a vector")
    return vector


def _api_key(*, needed: bool) -> str:
    """Take the key from the environment, or ask a person for it; never show it."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key and not needed:
        return _NO_KEY
    if not key and _can_ask():
        try:
            key = getpass.getpass("API key (not shown, not kept): ").strip()
        except (EOFError, RuntimeError):  # a notebook that nobody attends has no input
            key = ""
    if not key:
        raise ValueError("there is no API key; set the environment variable OPENAI_API_KEY")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError("the API key holds a blank or a sign that no key has; copy it again")
    return key


def _can_ask() -> bool:
    """Say whether a person can answer: in a terminal or a notebook, not in a script."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel") or (sys.stdin is not None and sys.stdin.isatty())
