"""What `OpenAIEncoder` needs to ask a server: HTTP, the key, the cache, and what was spent."""

import base64
import getpass
import os
import sqlite3
import statistics
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from openai import OpenAI

Vector = NDArray[np.float32]

# The client tries twice by itself; a limit of requests a minute needs more patience than that.
_RETRIES = 6
# Something about the texts is wrong: one of them, or their number.
_REFUSED = (400, 413, 422)
_HINTS: dict[int | None, str] = {
    401: "check OPENAI_API_KEY",
    404: "check the model's name, and that base_url ends in /v1",
    429: "too many requests, or no credit left",
}


class Server:
    """An embeddings API at an address, asked through OpenAI's client."""

    def __init__(self, url: str, client: "OpenAI | None") -> None:
        self.url = url
        # What a URL can hide before the host is not shown.
        self.name = urlsplit(url).netloc.rpartition("@")[2]
        self._client = client

    def connect(self) -> "OpenAI":
        """Give OpenAI's client, made when it is first needed; a missing key is an error then."""
        if self._client is None:
            import openai

            here = urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")
            self._client = openai.OpenAI(
                api_key=_api_key(needed=not here),
                base_url=self.url,
                max_retries=_RETRIES,
                # Whatever proxy leads to the network, this machine is reached without it.
                http_client=openai.DefaultHttpxClient(trust_env=False) if here else None,
            )
        return self._client

    def embed(self, texts: list[str], **settings: Any) -> tuple[list[Vector], int]:
        """Ask for the vectors of a few texts, and put them in order; count the tokens."""
        # Requested explicitly, base64 stays as it is; else the client makes lists of numbers of it.
        answer = self.connect().embeddings.create(input=texts, encoding_format="base64", **settings)
        try:
            found = {item.index: _decoded(item.embedding) for item in answer.data}
            ordered = [found[number] for number in range(len(texts))]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"the server's answer is not one embedding for each of the {len(texts)} texts; "
                "check that base_url ends in /v1 and that the model makes embeddings"
            ) from error
        return ordered, getattr(getattr(answer, "usage", None), "prompt_tokens", 0) or 0

    def explain(self, error: Exception) -> str:
        """Say in one line why a request failed, without the key."""
        import openai

        body = getattr(error, "body", None)
        if isinstance(error, openai.APITimeoutError):
            reason = f"{self.name} gave no answer within the client's timeout"
        elif isinstance(error, openai.APIConnectionError):
            reason = f"the connection to {self.name} failed ({error.__cause__})"
        elif isinstance(error, openai.APIStatusError):
            said = body.get("message") if isinstance(body, dict) else None
            reason = f"status {error.status_code}: {said or error.message}"
        else:
            reason = str(error) or type(error).__name__
        # The key is replaced before the rest is cut, or half of it might stay.
        reason = reason.replace(self.connect().api_key or "[key]", "[key]")
        hint = _HINTS.get(getattr(error, "status_code", None))
        return " ".join(reason.split())[:400] + (f"; {hint}" if hint else "")


class Account:
    """What all calls of one encoder share, and the lock around it.

    Attributes
    ----------
    dim : int or None
        Length of a vector, as soon as it is known.
    usage : dict of str to int
        Requests, texts, tokens; texts that were cached.
    kept : dict of bytes to array of float32, shape (dim,)
        What calls that failed had paid for.
    lock : threading.RLock
        Held while any of them is read or changed.
    """

    def __init__(self, dim: int | None) -> None:
        self.dim, self.lock = dim, threading.RLock()
        self.usage = {"requests": 0, "texts": 0, "tokens": 0, "cached": 0}
        self.kept: dict[bytes, Vector] = {}

    def problem(self, vector: Vector) -> str:
        """Say what is wrong with a vector; nothing, if it can be used."""
        if self.dim is not None and len(vector) != self.dim:
            return f"the server gave {len(vector)} numbers where {self.dim} belong"
        return "" if np.isfinite(vector).all() else "the server gave a vector with NaN or infinity"


class Run:
    """One call of `encode`: the texts by key, the vectors so far, and what failed."""

    def __init__(
        self,
        texts: Mapping[bytes, str],
        server: Server,
        account: Account,
        database: sqlite3.Connection | None,
        settings: Mapping[str, Any],
    ) -> None:
        self._texts, self._server, self._account = texts, server, account
        self._database, self._settings = database, settings
        self.vectors: dict[bytes, Vector] = {}
        self.failures: list[tuple[Sequence[bytes], str]] = []

    def recall(self) -> list[bytes]:
        """Take what an earlier call has paid for; return the keys of what is missing."""
        with self._account.lock:
            for key in self._texts:
                vector = self._account.kept.get(key)
                if vector is None and self._database is not None:
                    vector = _stored(self._database, key)
                if vector is not None and not self._account.problem(vector):
                    self._account.dim = len(vector)
                    self.vectors[key] = vector
            self._account.usage["cached"] += len(self.vectors)
        return [key for key in self._texts if key not in self.vectors]

    def ask(self, keys: list[bytes]) -> int:
        """Make one request and keep the vectors; return the number of texts it was for.

        A server refuses a request whole, because of one text or of their sum. Halves of it find
        the text, or pass.
        """
        if self.failures:  # what is under way is paid for, but nothing more
            return 0
        try:
            texts = [self._texts[key] for key in keys]
            vectors, tokens = self._server.embed(texts, **self._settings)
        except Exception as error:
            if len(keys) > 1 and getattr(error, "status_code", None) in _REFUSED:
                half = len(keys) // 2
                return self.ask(keys[:half]) + self.ask(keys[half:])
            self.failures.append((keys, self._server.explain(error)))
            return 0
        account = self._account
        with account.lock:
            for what, count in (("requests", 1), ("texts", len(keys)), ("tokens", tokens)):
                account.usage[what] += count
            if account.dim is None:  # most vectors decide, so that a single wrong one is found
                account.dim = statistics.mode(len(vector) for vector in vectors)
            good = {}
            for key, vector in zip(keys, vectors, strict=True):
                if problem := account.problem(vector):
                    doubt = "; does the cache hold another model's?" if self._database else ""
                    self.failures.append(([key], problem + doubt))
                else:
                    good[key] = vector
            self.vectors |= good
            if self._database is not None:
                with self._database:  # committed, so that even SIGKILL leaves it in the cache
                    self._database.executemany(
                        "INSERT OR REPLACE INTO vectors VALUES (?, ?)",
                        ((key, vector.astype("<f4").tobytes()) for key, vector in good.items()),
                    )
        return len(keys)


def spans(lengths: Sequence[int], most_inputs: int, most_tokens: int) -> list[tuple[int, int]]:
    """Fill requests in order; a text that is too long for any has one of its own.

    Over the wire nothing is padded, so texts stay in order, which makes an error clear.
    """
    found, start, tokens = [], 0, 0
    for row, length in enumerate(lengths):
        if row > start and (row - start == most_inputs or tokens + length > most_tokens):
            found.append((start, row))
            start, tokens = row, 0
        tokens += length
    return [*found, (start, len(lengths))] if lengths else []


@contextmanager
def open_cache(folder: str | None) -> Iterator[sqlite3.Connection | None]:
    """Open the cache: SQLite, whose files outlive a killed process and may be shared."""
    if folder is None:
        yield None
        return
    file = Path(folder) / "embeddings.sqlite"
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Many threads use it, one at a time; it waits for other processes.
        with closing(sqlite3.connect(file, timeout=60, check_same_thread=False)) as database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL)"
            )
            yield database
    except sqlite3.Error as error:
        raise OSError(
            f"the cache {file} cannot be used ({error}); free the disk if it is full, remove the "
            "file if it is damaged, or give another folder"
        ) from error


def _stored(database: sqlite3.Connection, key: bytes) -> Vector | None:
    """Read a vector from the cache; None if it is not there, or damaged."""
    row = database.execute("SELECT vector FROM vectors WHERE key = ?", (key,)).fetchone()
    if row is None or not row[0] or len(row[0]) % 4:
        return None
    return np.frombuffer(row[0], "<f4")


def _decoded(embedding: Any) -> Vector:
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
        return "none"  # the client insists on one
    if not key and _can_ask():
        try:
            key = getpass.getpass("API key (not shown, not kept): ").strip()
        except (EOFError, RuntimeError):  # a notebook that runs by itself has no input
            key = ""
    if not key:
        raise ValueError("there is no API key; set the environment variable OPENAI_API_KEY")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError("the API key holds a blank or a sign that no key has; copy it again")
    return key


def _can_ask() -> bool:
    """Tell a terminal or a notebook, where a person can answer, from a script that runs alone."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel") or (sys.stdin is not None and sys.stdin.isatty())
