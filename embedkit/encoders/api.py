"""`OpenAIEncoder`: the same `encode`, done by a server that speaks OpenAI's embeddings API.

That is OpenAI itself, and also Ollama, vLLM, Text Embeddings Inference and the small server of
`embedkit.server`: only the address and the model's name change.
"""

import base64
import functools
import getpass
import hashlib
import json
import os
import sqlite3
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from embedkit.encoders._inputs import Faults, OnError, listed, ranges, text_fault

if TYPE_CHECKING:
    from openai import OpenAI

# What OpenAI takes in one request.
MAX_INPUTS = 2048
MAX_TOKENS = 300_000
_OPENAI = "https://api.openai.com/v1"
# The client tries twice by itself; a limit of requests a minute needs more patience than that.
_RETRIES = 6
# Something about the texts is wrong: one of them, or that there are so many.
_REFUSED = (400, 413, 422)
_HINTS: dict[int | None, str] = {
    401: "check OPENAI_API_KEY",
    404: "check the model's name, and that base_url ends in /v1",
    429: "too many requests, or no credit left",
}


class TokenCount(NamedTuple):
    """How many tokens some texts have, and whether that was counted or estimated."""

    tokens: int
    is_estimate: bool


class OpenAIEncoder:
    """One vector per text, from OpenAI's API or any other that works alike.

    Use it where the model cannot be had or is too large to run here. The texts leave this machine.

    Parameters
    ----------
    model : str
        What the server calls the model.
    dimensions : int, optional
        Ask for shorter vectors. Models trained for it (``text-embedding-3-…``) lose little.
    base_url : str, optional
        The server, such as ``"http://localhost:11434/v1"``; by default the environment variable
        ``OPENAI_BASE_URL``, else OpenAI. A server on this machine needs no key.
    client : openai.OpenAI, optional
        A client of your own, with its own timeout, retries or proxy. Such an encoder cannot be
        pickled.
    cache : str or path, optional
        A folder that keeps each vector under model, dimensions and text, so that nothing is asked
        for twice. It holds digests of the texts, not the texts. Take another folder for another
        server that calls a different model by the same name.
    max_concurrency : int
        Requests on their way at a time.

    Raises
    ------
    ImportError
        If the package `openai` is not installed.
    ValueError, TypeError
        If a setting is not valid.

    Notes
    -----
    The key comes from the environment variable ``OPENAI_API_KEY``, or is asked for without showing
    it. It is looked for when the first request is made, goes to `base_url` and nowhere else, and is
    no part of what is printed, pickled or cached.

    Examples
    --------
    >>> import embedkit as ek
    >>> with ek.serve("bundled/all-MiniLM-L6-v2") as url:
    ...     encoder = OpenAIEncoder("bundled/all-MiniLM-L6-v2", base_url=url)
    ...     encoder.encode(["a kettle", "a novel"]).shape
    (2, 384)
    """

    def __init__(
        self,
        model: str = "text-embedding-3-small",
        *,
        dimensions: int | None = None,
        base_url: str | None = None,
        client: "OpenAI | None" = None,
        cache: str | os.PathLike[str] | None = None,
        max_concurrency: int = 4,
    ) -> None:
        if find_spec("openai") is None:
            raise ImportError(
                "OpenAIEncoder needs the package openai, which the extra 'openai' brings; "
                "run `pip install openai`"
            )
        _check_count(dimensions=dimensions, max_concurrency=max_concurrency)
        if client is not None:
            from openai import OpenAI

            if base_url is not None:
                raise ValueError("OpenAIEncoder: a client has its own base_url; give one of them")
            if not isinstance(client, OpenAI):
                raise TypeError(
                    f"OpenAIEncoder: client is a {type(client).__name__}; give an openai.OpenAI"
                )
            base_url = str(client.base_url)
        self.model = model
        self._dimensions, self._max_concurrency = dimensions, max_concurrency
        self._base_url = base_url or os.environ.get("OPENAI_BASE_URL") or _OPENAI
        self._cache = None if cache is None else os.fspath(cache)
        self._own_client = client
        self._dim = dimensions
        self._usage = {"requests": 0, "texts": 0, "tokens": 0, "cached": 0}
        # What a run that failed had paid for, so that the next one need not pay again.
        self._kept: dict[bytes, NDArray[np.float32]] = {}

    @property
    def dim(self) -> int | None:
        """Length of a vector; None until the first answer, unless `dimensions` says it."""
        return self._dim

    @property
    def usage(self) -> dict[str, int]:
        """What was spent so far: requests, texts and tokens; and texts that came from the cache.

        Requests are those that were answered well, tokens what the server says it read.
        """
        return dict(self._usage)

    def __repr__(self) -> str:
        """Show where the vectors come from; an address without what a URL can hide in it."""
        return f"OpenAIEncoder({self.model!r}, dim={self.dim}, server={self._server!r})"

    @property
    def _server(self) -> str:
        return urlsplit(self._base_url).netloc.rpartition("@")[2]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the settings: no key, no client, no vectors."""
        if self._own_client is not None:
            raise TypeError(
                "OpenAIEncoder: a client holds a key, so an encoder around one is not pickled; "
                "make the encoder from base_url, and the key comes from OPENAI_API_KEY"
            )
        settings: dict[str, Any] = {
            "dimensions": self._dimensions,
            "base_url": self._base_url,
            "cache": self._cache,
            "max_concurrency": self._max_concurrency,
        }
        return functools.partial(OpenAIEncoder, self.model, **settings), ()

    def __call__(self, batch: Mapping[str, Any], *, on_error: OnError = "raise") -> dict[str, Any]:
        """Add an ``embedding`` column to a batch, for ``Dataset.map(encoder, batched=True)``.

        Parameters
        ----------
        batch : mapping of str to sequence
            Columns of a data set, ``text`` among them.
        on_error : {"raise", "skip"}
            As in `encode`; `map` hands it over with ``fn_kwargs={"on_error": "skip"}``. Rows are
            counted from the start of each batch.

        Returns
        -------
        dict
            The batch and ``embedding``, one vector per row. Inside ``Dataset.map`` the new column
            alone, which `map` adds.

        Raises
        ------
        KeyError
            If the batch has no column ``text``.
        """
        from embedkit.encoders import _arrow as arrow

        names = arrow.column_names(batch)
        if "text" not in names:
            raise KeyError(
                f"OpenAIEncoder: the batch has columns {', '.join(names)}, none of them text; "
                "rename one (load_data does it with `columns=`)"
            )
        embedding = self.encode(arrow.rows(batch["text"]), on_error=on_error)
        return arrow.with_embedding(batch, embedding, embedding.shape[1])

    def count_tokens(self, texts: Any) -> TokenCount:
        """Count tokens before spending anything; nothing is sent.

        Parameters
        ----------
        texts : sequence of str
            What `encode` would be given.

        Returns
        -------
        TokenCount
            ``tokens`` and ``is_estimate``. Counted with tiktoken where that is installed, knows
            the model, and has its vocabulary on this machine (it would download it, so it is not
            asked to). Else estimated: one token for every four bytes, which is about four letters
            of English; other languages need more, up to several times as many.

        Raises
        ------
        TypeError, ValueError
            If a text is none, or is empty; the message names it.

        Examples
        --------
        >>> OpenAIEncoder("some-model", base_url="http://localhost/v1").count_tokens(["a kettle"])
        TokenCount(tokens=2, is_estimate=True)
        """
        lengths, is_estimate = self._lengths(_checked(texts, Faults("raise")))
        return TokenCount(sum(lengths), is_estimate)

    def _lengths(self, texts: list[str]) -> tuple[list[int], bool]:
        vocabulary = _vocabulary(self.model)
        if vocabulary is not None:
            return [len(ids) for ids in vocabulary.encode_ordinary_batch(texts)], False
        return [-(-len(text.encode()) // 4) for text in texts], True

    def encode(
        self,
        inputs: Any,
        *,
        batch_size: int | None = None,
        progress: bool | None = None,
        on_error: OnError = "raise",
    ) -> NDArray[np.float32]:
        """Turn texts into vectors.

        A text that comes twice is sent once. After a failure, call again with the same texts:
        only what is missing is asked for.

        Parameters
        ----------
        inputs : sequence of str
            A list, tuple, array, pandas Series or `datasets` column.
        batch_size : int, optional
            Texts per request, for servers that take fewer than OpenAI; by default as many as
            OpenAI's limits of 2048 texts and 300,000 tokens allow.
        progress : bool, optional
            Show a progress bar; by default, if the work takes over two seconds.
        on_error : {"raise", "skip"}
            What becomes of an input that is no text, or an empty one: nothing is sent, or it has
            NaN for a vector and one warning lists all that do. What a server refuses always raises.

        Returns
        -------
        array of float32, shape (n, dim)
            In the order of `inputs`; (0, dim) for none, or (0, 0) where `dim` is not known yet.

        Raises
        ------
        TypeError, ValueError
            If a text is none, or is empty; nothing was sent. Or if there is no key.
        RuntimeError
            If the server refused some texts or answered with something else than vectors. The
            message names their rows; all other vectors are kept.
        OSError
            If the cache cannot be used.
        """
        faults = Faults(on_error)
        texts = _checked(inputs, faults)
        _check_count(batch_size=batch_size)
        rows: dict[bytes, list[int]] = {}
        for row, text in enumerate(texts):
            if row not in faults.rows:
                rows.setdefault(self._key(text), []).append(row)
        with _database(self._cache) as database:
            run = _Run(self, texts, rows, database)
            try:
                missing = run.recall()
                wanted = [texts[rows[key][0]] for key in missing]
                lengths, _ = self._lengths(wanted)
                spans = _spans(lengths, min(batch_size or MAX_INPUTS, MAX_INPUTS), MAX_TOKENS)
                requests = [missing[start:stop] for start, stop in spans]
                if requests:
                    self._client  # noqa: B018, a missing key is told here, and once
                bar = tqdm(
                    total=len(missing),
                    unit="text",
                    disable=progress is False,
                    delay=2 if progress is None else 0,
                    leave=bool(progress),
                )
                # Left early, by an error or by Ctrl-C, it still keeps the answers under way.
                with bar, ThreadPoolExecutor(self._max_concurrency) as pool:
                    for answered in pool.map(run.ask, requests):
                        bar.update(answered)
            except BaseException:
                self._kept = run.known()
                raise
        if run.failures:
            self._kept = run.known()
            raise RuntimeError(run.report())
        self._kept = {}
        faults.warn(len(texts), stacklevel=2)
        if not rows:
            return np.full((len(texts), self.dim or 0), np.nan, np.float32)
        return run.vectors

    def _key(self, text: str) -> bytes:
        """Name a vector by all it depends on, without keeping the text."""
        return hashlib.sha256(json.dumps([self.model, self._dimensions, text]).encode()).digest()

    @functools.cached_property
    def _client(self) -> "OpenAI":
        """The client, made when the first request is."""
        if self._own_client is not None:
            return self._own_client
        import openai

        here = urlsplit(self._base_url).hostname in ("localhost", "127.0.0.1", "::1")
        # Whatever proxy the world is reached through, this machine is reached without it.
        direct = openai.DefaultHttpxClient(trust_env=False) if here else None
        return openai.OpenAI(
            api_key=_api_key(needed=not here),
            base_url=self._base_url,
            max_retries=_RETRIES,
            http_client=direct,
        )

    def _request(self, texts: list[str]) -> tuple[list[NDArray[np.float32]], int]:
        """Ask for the vectors of a few texts, and put them in order; count the tokens."""
        shorter: dict[str, Any] = (
            {} if self._dimensions is None else {"dimensions": self._dimensions}
        )
        # Asked for by name, base64 comes as it is; else the client makes lists of numbers of it.
        answer = self._client.embeddings.create(
            model=self.model, input=texts, encoding_format="base64", **shorter
        )
        try:
            found = {item.index: _decoded(item.embedding) for item in answer.data}
            ordered = [found[number] for number in range(len(texts))]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"the server's answer is not one embedding for each of the {len(texts)} texts; "
                "check that base_url ends in /v1 and that the model makes embeddings"
            ) from error
        return ordered, getattr(getattr(answer, "usage", None), "prompt_tokens", 0) or 0

    def _reason(self, error: Exception) -> str:
        """Say in one line why a request failed, without the key."""
        import openai

        body = getattr(error, "body", None)
        said = body.get("message") if isinstance(body, dict) else None
        if isinstance(error, openai.APITimeoutError):
            reason = f"{self._server} gave no answer within the client's timeout"
        elif isinstance(error, openai.APIConnectionError):
            reason = f"the connection to {self._server} failed ({error.__cause__})"
        elif isinstance(error, openai.APIStatusError):
            reason = f"status {error.status_code}: {said or error.message}"
        else:
            reason = str(error) or type(error).__name__
        key = self._client.api_key
        # The key goes before the rest is cut, or half of it might stay.
        reason = reason.replace(key, "[key]") if key else reason
        hint = _HINTS.get(getattr(error, "status_code", None))
        return " ".join(reason.split())[:400] + (f"; {hint}" if hint else "")


class _Run:
    """One call of `encode`: what is known so far, what failed, and a lock around both."""

    def __init__(
        self,
        encoder: OpenAIEncoder,
        texts: list[str],
        rows: dict[bytes, list[int]],
        database: sqlite3.Connection | None,
    ) -> None:
        self._encoder, self._texts, self._rows, self._database = encoder, texts, rows, database
        self._lock = threading.Lock()
        self._done: set[bytes] = set()
        self.vectors: NDArray[np.float32] = np.empty((0, 0), np.float32)
        self.failures: list[tuple[Sequence[bytes], str]] = []

    def recall(self) -> list[bytes]:
        """Take what an earlier run has paid for; return the keys of what is missing."""
        for key in self._rows:
            vector = self._encoder._kept.get(key)
            if vector is None and self._database is not None:
                query = "SELECT vector FROM vectors WHERE key = ?"
                stored = self._database.execute(query, (key,)).fetchone()
                # A row of another length was damaged, or belongs to what once had this name.
                if stored is not None and stored[0] and len(stored[0]) % 4 == 0:
                    vector = np.frombuffer(stored[0], "<f4")
            if vector is not None and not self._fault(vector):
                self._place(key, vector)
        self._encoder._usage["cached"] += len(self._done)
        return [key for key in self._rows if key not in self._done]

    def ask(self, keys: list[bytes]) -> int:
        """Make one request and keep what it brings; say how many texts it was for.

        A server refuses a request whole, for one text or for their sum. Halves of it find the text,
        or pass.
        """
        if self.failures:  # what is under way is paid for, but nothing more
            return 0
        try:
            texts = [self._texts[self._rows[key][0]] for key in keys]
            vectors, tokens = self._encoder._request(texts)
        except Exception as error:
            if len(keys) > 1 and getattr(error, "status_code", None) in _REFUSED:
                half = len(keys) // 2
                return self.ask(keys[:half]) + self.ask(keys[half:])
            reason = self._encoder._reason(error)
            with self._lock:
                self.failures.append((keys, reason))
            return 0
        with self._lock:
            for what, count in (("requests", 1), ("texts", len(keys)), ("tokens", tokens)):
                self._encoder._usage[what] += count
            if self._encoder._dim is None:  # one row of a wrong length must not set the measure
                self._encoder._dim = statistics.mode(len(vector) for vector in vectors)
            good = []
            for key, vector in zip(keys, vectors, strict=True):
                fault = self._fault(vector)
                if fault:
                    self.failures.append(([key], fault))
                else:
                    self._place(key, vector)
                    good.append((key, vector.astype("<f4").tobytes()))
            if self._database is not None:
                with self._database:  # committed, so that even SIGKILL leaves it in the cache
                    self._database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", good)
        return len(keys)

    def _fault(self, vector: NDArray[np.float32]) -> str:
        """Say what is wrong with a vector; nothing, if it is fit for use."""
        dim = self._encoder._dim
        if dim is not None and len(vector) != dim:
            other = "; does the cache hold another model's?" if self._database else ""
            return f"the server gave {len(vector)} numbers where {dim} belong{other}"
        return "" if np.isfinite(vector).all() else "the server gave a vector with NaN or infinity"

    def _place(self, key: bytes, vector: NDArray[np.float32]) -> None:
        if not self._done:
            self._encoder._dim = len(vector)
            self.vectors = np.full((len(self._texts), len(vector)), np.nan, np.float32)
        self.vectors[self._rows[key]] = vector
        self._done.add(key)

    def known(self) -> dict[bytes, NDArray[np.float32]]:
        """Give all vectors that were had, by key."""
        return {key: self.vectors[self._rows[key][0]] for key in self._done}

    def report(self) -> str:
        """Name the rows that failed and the first reason, and say what to do."""
        rows = sorted(row for keys, _ in self.failures for key in keys for row in self._rows[key])
        where = "in the cache" if self._database is not None else "in this encoder"
        kept = (
            f". What came ({len(self._done)} vectors) is kept {where}; call encode again and it "
            "asks for the rest only"
        )
        return (
            f"OpenAIEncoder({self._encoder.model!r}): no vectors for {ranges(rows)} of "
            f"{len(self._texts)}: {self.failures[0][1]}{kept if self._done else ''}"
        )


def _check_count(**settings: Any) -> None:
    """Refuse what is neither None nor a whole number of 1 or more."""
    for name, value in settings.items():
        if value is not None and (type(value) is not int or value < 1):
            raise ValueError(f"{name}={value!r}: give a whole number of 1 or more")


def _checked(inputs: Any, faults: Faults) -> list[Any]:
    """Make a list of texts, and find those that no API takes."""
    texts = list(listed(inputs, "texts", single=(str, bytes)))
    for row, text in enumerate(texts):
        fault = text_fault(text, f"text {row}")
        if fault is None and not text:
            fault = ValueError(f"text {row} is empty, which the API refuses; leave it out")
        if fault is not None:
            faults.add(row, fault)
    return texts


def _spans(lengths: Sequence[int], most_inputs: int, most_tokens: int) -> list[tuple[int, int]]:
    """Fill requests in order; a text that is too long for any has one of its own.

    Not `batching.batches`: over the wire nothing is padded, and rows in order make an error clear.
    """
    spans, start, tokens = [], 0, 0
    for row, length in enumerate(lengths):
        if row > start and (row - start == most_inputs or tokens + length > most_tokens):
            spans.append((start, row))
            start, tokens = row, 0
        tokens += length
    return [*spans, (start, len(lengths))] if lengths else []


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


@contextmanager
def _database(folder: str | None) -> Iterator[sqlite3.Connection | None]:
    """Open the cache: SQLite, whose files outlive a killed process and may be shared."""
    if folder is None:
        yield None
        return
    file = Path(folder) / "embeddings.sqlite"
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Used by many threads, one at a time; other processes are waited for.
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


def _vocabulary(model: str) -> Any:
    """Give tiktoken's vocabulary for a model, or None where having it would take a download."""
    if find_spec("tiktoken") is None:
        return None
    import tiktoken
    from tiktoken import registry

    try:
        name = tiktoken.encoding_name_for_model(model)
    except KeyError:
        return None
    # tiktoken says nowhere what it has; this is where it keeps a download.
    folder = os.environ.get(
        "TIKTOKEN_CACHE_DIR",
        os.environ.get("DATA_GYM_CACHE_DIR", f"{tempfile.gettempdir()}/data-gym-cache"),
    )
    url = f"https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken"
    file = Path(folder) / hashlib.sha1(url.encode()).hexdigest()
    at_hand = name in registry.ENCODINGS or (folder and file.is_file())
    return tiktoken.get_encoding(name) if at_hand else None


def _api_key(*, needed: bool) -> str:
    """Take the key from the environment, or ask a person for it; never show it."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key and not needed:
        return "none"  # the client insists on one
    if not key and _someone_is_there():
        try:
            key = getpass.getpass("API key (not shown, not kept): ").strip()
        except (EOFError, RuntimeError):  # a notebook that runs by itself has no input
            key = ""
    if not key:
        raise ValueError("there is no API key; set the environment variable OPENAI_API_KEY")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError("the API key holds a blank or a sign that no key has; copy it again")
    return key


def _someone_is_there() -> bool:
    """Tell a terminal or a notebook, where one can ask, from a script that runs by itself."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel") or (sys.stdin is not None and sys.stdin.isatty())
