"""`OpenAIEncoder`: the same `encode`, done by a server that speaks OpenAI's embeddings API.

That is OpenAI itself, and also Ollama, vLLM, Text Embeddings Inference and the small server of
`embedkit.server`: only the address and the model's name change.
"""

import functools
import hashlib
import json
import os
import sqlite3
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embedkit.encoders._inputs import Faults, OnError, as_sequence, progress_bar, ranges, text_error
from embedkit.encoders._requests import Account, Run, open_cache, source_of, spans

if TYPE_CHECKING:
    from openai import OpenAI

# What OpenAI takes in one request.
MAX_INPUTS = 2048
MAX_TOKENS = 300_000
_OPENAI = "https://api.openai.com/v1"


class TokenCount(NamedTuple):
    """How many tokens some texts have, and whether that was counted or estimated."""

    tokens: int
    is_estimate: bool


class OpenAIEncoder:
    """One vector per text, from OpenAI's API or any other that works the same way.

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
        A client of your own, with its own timeout, retries or proxy. Its answers are not bounded in
        size, and such an encoder cannot be pickled.
    cache : str or path, optional
        A folder that keeps each vector, so that nothing is asked for twice. It holds digests of the
        texts, not the texts. Vectors are told apart by model, dimensions and server: its address,
        and what it says of the model in ``/v1/models``, which is asked for once.
    max_concurrency : int, default=4
        Requests on their way at a time.
    timeout : float, default=60
        Seconds that a server has for one answer. After a temporary error (a timeout, a limit of
        requests) it is asked again, for at most three times as long in all.

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
        timeout: float = 60,
    ) -> None:
        if find_spec("openai") is None:
            raise ImportError(
                "OpenAIEncoder needs the package openai, which the extra 'openai' brings; "
                "run `pip install openai`"
            )
        _check_count(dimensions=dimensions, max_concurrency=max_concurrency)
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
            raise ValueError(f"timeout={timeout!r}: give a number of seconds above 0")
        from openai import OpenAI

        from embedkit.encoders._http import Server

        if client is not None:
            if base_url is not None:
                raise ValueError("OpenAIEncoder: a client has its own base_url; give one of them")
            if not isinstance(client, OpenAI):
                raise TypeError(
                    f"OpenAIEncoder: client is a {type(client).__name__}; give an openai.OpenAI"
                )
            base_url = str(client.base_url)
        self.model = model
        self._dimensions, self._max_concurrency = dimensions, max_concurrency
        self._timeout, self._own_client = timeout, client
        self._cache = None if cache is None else str(Path(cache).expanduser().absolute())
        url = base_url or os.environ.get("OPENAI_BASE_URL") or _OPENAI
        self._server = Server(url, client, timeout)
        self._account = Account(dimensions)

    @property
    def dim(self) -> int | None:
        """Length of a vector; None until the first answer, unless `dimensions` says it."""
        return self._account.dim

    @property
    def usage(self) -> dict[str, int]:
        """What was spent so far: requests, texts and tokens; and texts that came from the cache.

        Only requests that were answered with vectors count; the server counts the tokens.
        """
        return dict(self._account.usage)

    def __repr__(self) -> str:
        """Show where the vectors come from."""
        return f"OpenAIEncoder({self.model!r}, dim={self.dim}, server={self._server.name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the settings: no key, no client, no vectors."""
        if self._own_client is not None:
            raise TypeError(
                "OpenAIEncoder: a client holds a key, so an encoder around one is not pickled; "
                "make the encoder from base_url, and the key comes from OPENAI_API_KEY"
            )
        settings: dict[str, Any] = {
            "dimensions": self._dimensions,
            "base_url": self._server.url,
            "cache": self._cache,
            "max_concurrency": self._max_concurrency,
            "timeout": self._timeout,
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

        column = arrow.find_column("OpenAIEncoder", batch, ["text"])
        embedding = self.encode(batch[column], on_error=on_error)
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
            If an input is not a text, or is empty; the message names it.

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
            What happens if an input is not a text, or is empty: nothing is sent, or it has NaN for
            a vector and one warning lists all that do. What a server refuses always raises.

        Returns
        -------
        array of float32, shape (n, dim)
            In the order of `inputs`; (0, dim) for none, or (0, 0) where `dim` is not known yet.

        Raises
        ------
        TypeError, ValueError
            If an input is not a text, or is empty; nothing was sent. Or if there is no key.
        RuntimeError
            If the server refused some texts or answered with something other than vectors. The
            message names their rows; all other vectors are kept.
        OSError
            If the cache cannot be used.
        """
        faults = Faults(on_error)
        texts = _checked(inputs, faults)
        _check_count(batch_size=batch_size)
        rows: dict[bytes, list[int]] = {}
        settings: dict[str, Any] = {"model": self.model}
        if self._dimensions is not None:
            settings["dimensions"] = self._dimensions
        with open_cache(self._cache) as database:
            source = self._source(database)
            for row, text in enumerate(texts):
                if row not in faults.rows:
                    # All that a vector depends on; the text itself is not kept.
                    depends = json.dumps([source, self.model, self._dimensions, text])
                    key = hashlib.sha256(depends.encode()).digest()
                    rows.setdefault(key, []).append(row)
            wanted = {key: texts[where[0]] for key, where in rows.items()}
            run = Run(wanted, self._server, self._account, database, settings)
            try:
                missing = run.recall()
                lengths, _ = self._lengths([wanted[key] for key in missing])
                cuts = spans(lengths, min(batch_size or MAX_INPUTS, MAX_INPUTS), MAX_TOKENS)
                if missing:
                    self._server.connect()
                with progress_bar(len(missing), "text", progress) as bar:
                    requests = [missing[start:stop] for start, stop in cuts]
                    run.ask_all(requests, self._max_concurrency, bar.update)
                if run.failures:
                    raise RuntimeError(self._report(run, rows, len(texts)))
            except BaseException:
                with self._account.lock:
                    self._account.kept |= run.vectors
                raise
        with self._account.lock:
            for key in rows:
                self._account.kept.pop(key, None)
        faults.warn(len(texts))
        vectors = np.full((len(texts), self.dim or 0), np.nan, np.float32)
        for key, where in rows.items():
            vectors[where] = run.vectors.pop(key)
        return vectors

    def _source(self, database: sqlite3.Connection | None) -> str:
        """Say in the cache's key which server it was; it is asked once."""
        with self._account.lock:
            if database is not None and self._account.source is None:
                self._account.source = source_of(self._server, self.model, database)
            return self._account.source or ""

    def _report(self, run: Run, rows: Mapping[bytes, list[int]], total: int) -> str:
        """Name the rows that failed and the first reason, and say what to do."""
        failed = sorted(row for keys, _ in run.failures for key in keys for row in rows[key])
        where = "in this encoder" if self._cache is None else "in the cache"
        kept = (
            f". What came ({len(run.vectors)} vectors) is kept {where}; call encode again and it "
            "asks for the rest only"
        )
        return (
            f"OpenAIEncoder({self.model!r}): no vectors for {ranges(failed)} of {total}: "
            f"{run.failures[0][1]}{kept if run.vectors else ''}"
        )


def _check_count(**settings: Any) -> None:
    """Refuse what is neither None nor a whole number of 1 or more."""
    for name, value in settings.items():
        if value is not None and (type(value) is not int or value < 1):
            raise ValueError(f"{name}={value!r}: give a whole number of 1 or more")


def api_text_fault(text: Any, name: str) -> TypeError | ValueError | None:
    """Say why an embeddings API does not take a text; None if it does."""
    fault = text_error(text, name)
    if fault is None and not text:
        return ValueError(f"{name} is empty, which the API refuses; leave it out")
    return fault


def _checked(inputs: Any, faults: Faults) -> list[Any]:
    """Make a list of texts, and find those that no API takes."""
    texts = list(as_sequence(inputs, "texts", single=(str, bytes)))
    for row, text in enumerate(texts):
        fault = api_text_fault(text, f"text {row}")
        if fault is not None:
            faults.add(row, fault)
    return texts


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
