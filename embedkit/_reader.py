"""The thread that reads texts for the server, in turns, so that nobody waits for long."""

import threading
import time
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from starlette.responses import JSONResponse

from embedkit.encoders.api import MAX_TOKENS
from embedkit.encoders.text import TextEncoder

# What is tokenized at a time, and how long the model should read before others have their turn.
_LETTERS_AT_ONCE = 20_000
_SECONDS_AT_ONCE = 0.3
_FEWEST_TOKENS = 128


class Refusal(Exception):
    """An error in OpenAI's shape."""

    def __init__(
        self, message: str, status: int = 400, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        kind = "server_error" if status >= 500 else "invalid_request_error"
        error = {"message": message, "type": kind, "param": param, "code": code}
        self.response = JSONResponse({"error": error}, status)


def too_long(row: int, size: str, longest: int) -> Refusal:
    """Refuse a text that is longer than the model reads."""
    return Refusal(
        f"input {row} has {size} and the model reads {longest} tokens; shorten it",
        param="input",
        code="context_length_exceeded",
    )


class Answer(NamedTuple):
    """The vectors of a request's texts, (n, dim), and how many tokens these have."""

    vectors: NDArray[np.float32]
    tokens: int


class _Job:
    """The texts of one request: how long they are, as far as counted, and what is left to read."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self.answer: Future[Answer] = Future()
        self.lengths: list[int] = []
        self.left: list[int] = []
        self.vectors: NDArray[np.float32] | None = None

    def settle(self, result: "Answer | BaseException") -> None:
        """Give the answer, unless nobody waits for it any more."""
        with suppress(InvalidStateError):
            if isinstance(result, Answer):
                self.answer.set_result(result)
            elif isinstance(result, Exception):
                self.answer.set_exception(result)
            else:  # Rust's panic, which a waiting coroutine would pass on to its loop
                self.answer.set_exception(RuntimeError(str(result)))


class Reader:
    """The thread that owns the model.

    It reads in turns of a fraction of a second: in each, every request that waits has its share. So
    the texts of several requests are read together, a large request does not hold up a small one,
    and a request whose client has hung up is dropped.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        published = encoder.published  # the prompt it puts before every text has tokens too
        self._before = published.prompts.get(published.default_prompt or "", "")
        self._jobs: list[_Job] = []
        self._stopped = False
        self._changed = threading.Condition()
        self._tokens_at_once = 4096.0
        # A daemon, so that a kernel which is shut down does not wait for it.
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def read(self, texts: list[str]) -> "Future[Answer]":
        """Put texts in the queue; to cancel the future takes them out again."""
        job = _Job(texts)
        with self._changed:
            self._jobs.append(job)
            if self._stopped:
                job.settle(Refusal("the server is shutting down", 503))
            self._changed.notify()
        return job.answer

    def stop(self) -> None:
        """Tell everyone who waits that there will be no answer, and end."""
        with self._changed:
            self._stopped = True
            for job in self._jobs:
                job.settle(Refusal("the server is shutting down", 503))
            self._changed.notify()
        self._thread.join(10)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._jobs = [job for job in self._jobs if not job.answer.done()]
                while not self._jobs and not self._stopped:
                    self._changed.wait()
                if self._stopped:
                    return
                jobs = list(self._jobs)
            for job in jobs:
                try:
                    self._count(job, _LETTERS_AT_ONCE / len(jobs))
                except BaseException as error:  # a tokenizer's panic in Rust is no Exception
                    job.settle(error)
            self._take_turn([job for job in jobs if job.left and not job.answer.done()])

    def _count(self, job: _Job, most_letters: float) -> None:
        """Count the tokens of some more texts, and refuse what the model would have to cut."""
        start = stop = len(job.lengths)
        letters = 0
        while stop < len(job.texts) and letters < most_letters:
            letters += len(job.texts[stop])
            stop += 1
        if start == stop:
            return
        as_read = self._encoder.published.as_read
        texts = [as_read(self._before + text) for text in job.texts[start:stop]]
        ids = self._encoder.processor(texts, verbose=False)["input_ids"]
        job.lengths += map(len, ids)
        longest = self._encoder.max_length
        for row in range(start, stop):
            if job.lengths[row] > longest:
                raise too_long(row, f"{job.lengths[row]} tokens", longest)
        if sum(job.lengths) > MAX_TOKENS:
            raise Refusal(
                f"the inputs have more than the {MAX_TOKENS} tokens that a request may hold; "
                "send them in several requests",
                param="input",
                code="max_tokens_per_request",
            )
        if stop == len(job.texts):  # texts of one length are read together: less padding
            job.left = sorted(range(stop), key=job.lengths.__getitem__)
            job.vectors = np.empty((stop, self._encoder.dim), np.float32)

    def _take_turn(self, jobs: list[_Job]) -> None:
        """Read a share of each request."""
        shares = []
        for job in jobs:
            rows: list[int] = []
            room = self._tokens_at_once / len(jobs)
            while job.left and (not rows or job.lengths[job.left[-1]] <= room):
                rows.append(job.left.pop())
                room -= job.lengths[rows[-1]]
            shares.append((job, rows))
        if shares:
            self._read(shares)

    def _read(self, shares: list[tuple[_Job, list[int]]]) -> None:
        """Read texts of several requests in one call; an error goes to the request at fault."""
        begun = time.perf_counter()
        try:
            texts = [job.texts[row] for job, rows in shares for row in rows]
            vectors = self._encoder.encode(texts, progress=False)
            if not np.isfinite(vectors).all():
                raise RuntimeError("a vector has NaN or infinity; are the weights damaged?")
        except BaseException as error:
            if len(shares) == 1:
                shares[0][0].settle(error)
            else:
                for share in shares:
                    self._read([share])
            return
        tokens = sum(job.lengths[row] for job, rows in shares for row in rows)
        if tokens > self._tokens_at_once / 2:  # a small turn says little about the speed
            speed = tokens / (time.perf_counter() - begun)
            self._tokens_at_once = max(speed * _SECONDS_AT_ONCE, _FEWEST_TOKENS)
        for job, rows in shares:
            assert job.vectors is not None
            job.vectors[rows], vectors = vectors[: len(rows)], vectors[len(rows) :]
            if not job.left:
                job.settle(Answer(job.vectors, sum(job.lengths)))
