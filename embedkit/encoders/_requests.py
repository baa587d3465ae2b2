"""The requests of `OpenAIEncoder`: the vectors of a call, the cache, and what was spent."""

import sqlite3
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from embedkit.encoders._http import Server

Vector = NDArray[np.float32]

# Something about the texts is wrong: one of them, or their number.
_REFUSED = (400, 413, 422)
# How long Ctrl-C waits for the answers under way, which are paid for.
_GRACE = 2.0
_TABLES = """
CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS servers (name TEXT PRIMARY KEY, said TEXT NOT NULL);
"""


class Account:
    """What all calls of one encoder share, and the lock around it.

    Attributes
    ----------
    dim : int or None
        Length of a vector, as soon as it is known.
    usage : dict of str to int
        Requests, texts, tokens; texts that were cached.
    kept : dict of bytes to array of float32, shape (dim,)
        Vectors that failed calls had paid for.
    source : str or None
        What tells this server's vectors from other servers' in the cache, as soon as it is known.
    lock : threading.RLock
        Held while any of them is read or changed.
    """

    def __init__(self, dim: int | None) -> None:
        self.dim, self.lock = dim, threading.RLock()
        self.usage = {"requests": 0, "texts": 0, "tokens": 0, "cached": 0}
        self.kept: dict[bytes, Vector] = {}
        self.source: str | None = None

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
        server: "Server",
        account: Account,
        database: sqlite3.Connection | None,
        settings: Mapping[str, Any],
    ) -> None:
        self._texts, self._server, self._account = texts, server, account
        self._database, self._settings = database, settings
        self._stop, self._over = threading.Event(), False
        self._error: BaseException | None = None
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

    def ask_all(
        self, requests: Sequence[list[bytes]], at_once: int, progress: Callable[[int], Any]
    ) -> None:
        """Make requests, a few at a time, until all are answered or one has failed.

        Ctrl-C waits a moment for the answers under way. The threads do not keep a program from
        ending, as those of `concurrent.futures` would.
        """
        waiting = iter(requests)
        # Not `Thread.join`: once interrupted, that of Python 3.11 takes a running thread for ended.
        ended = [threading.Event() for _ in range(min(at_once, len(requests)))]

        def work(end: threading.Event) -> None:
            try:
                while not self._stop.is_set():
                    with self._account.lock:
                        keys = next(waiting, None)
                    if keys is None:
                        return
                    self._ask(keys)
                    progress(len(keys))
            except BaseException as error:
                self._error = error
                self._stop.set()
            finally:
                end.set()

        for end in ended:
            threading.Thread(target=work, args=(end,), daemon=True).start()
        try:
            for end in ended:
                while not end.wait(0.1):  # without a limit, Windows would not notice Ctrl-C
                    pass
        except BaseException:
            self._stop.set()
            latest = time.monotonic() + _GRACE
            for end in ended:
                end.wait(max(0, latest - time.monotonic()))
            raise
        finally:
            with self._account.lock:
                self._over = True
        if self._error is not None:
            raise self._error

    def _ask(self, keys: list[bytes]) -> None:
        """Make one request and keep the vectors.

        A server refuses a request whole, because of one text or of their sum. Halves of it find
        the text, or pass.
        """
        account = self._account
        if self._stop.is_set():
            return
        try:
            texts = [self._texts[key] for key in keys]
            vectors, tokens = self._server.embed(texts, account.dim, self._stop, **self._settings)
        except Exception as error:
            if len(keys) > 1 and getattr(error, "status_code", None) in _REFUSED:
                half = len(keys) // 2
                self._ask(keys[:half])
                self._ask(keys[half:])
                return
            self.failures.append((keys, self._server.explain(error)))
            self._stop.set()  # the answers under way are paid for, but nothing more is asked
            return
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
                    self._stop.set()
                else:
                    good[key] = vector
            if self._over:  # nobody waits for this answer any more, but it is paid for
                account.kept |= good
                return
            self.vectors |= good
            if self._database is not None:
                with self._database:  # committed, so that even SIGKILL leaves it in the cache
                    self._database.executemany(
                        "INSERT OR REPLACE INTO vectors VALUES (?, ?)",
                        ((key, vector.astype("<f4").tobytes()) for key, vector in good.items()),
                    )


def spans(lengths: Sequence[int], most_inputs: int, most_tokens: int) -> list[tuple[int, int]]:
    """Fill requests in order; a text that is too long for any gets one of its own.

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
            database.executescript(_TABLES)
            yield database
    except sqlite3.Error as error:
        raise OSError(
            f"the cache {file} cannot be used ({error}); free the disk if it is full, remove the "
            "file if it is damaged, or give another folder"
        ) from error


def source_of(server: "Server", model: str, database: sqlite3.Connection) -> str:
    """Identify a model among those of all servers, by its address and what the server says of it.

    A server that cannot be reached is taken for what it was when it last answered, so that a cache
    can be read without a network and without a key.
    """
    place, said = server.describe(model)
    name = repr((server.address, model))
    if said is None:
        query = "SELECT said FROM servers WHERE name = ?"
        found = database.execute(query, (name,)).fetchone()
        return found[0] if found and isinstance(found[0], str) else name
    source = repr((place, sorted(said.items())))
    with database:
        database.execute("INSERT OR REPLACE INTO servers VALUES (?, ?)", (name, source))
    return source


def _stored(database: sqlite3.Connection, key: bytes) -> Vector | None:
    """Read a vector from the cache; None if it is not there, or damaged."""
    row = database.execute("SELECT vector FROM vectors WHERE key = ?", (key,)).fetchone()
    if row is None or not isinstance(row[0], bytes) or not row[0] or len(row[0]) % 4:
        return None
    return np.frombuffer(row[0], "<f4")
