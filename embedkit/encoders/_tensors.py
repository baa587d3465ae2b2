"""Encoders of inputs that become tensors one at a time, as images and sounds do."""

from abc import abstractmethod
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedkit.encoders._base import Encoder
from embedkit.encoders._batches import by_shape, check_batch_size
from embedkit.encoders._inputs import Faults, OnError, as_sequence, progress_bar, warn_not_finite
from embedkit.words import Vectors

# Numbers per batch, for the same reason as a limit on tokens: 10 images of 224 by 224 pixels.
_NUMBERS = 3 * 512 * 1024
# Numbers that wait for a batch to fill: 200 MB. Photographs of many shapes fill none.
_WAITING = 50_000_000
# Inputs prepared ahead of the model, for each thread that prepares them.
_AHEAD = 16

Tensors = dict[str, Tensor]


class TensorEncoder(Encoder):
    """The base of encoders whose inputs become tensors one at a time.

    A subclass names what `Encoder` says and writes `prepare` and `examples`. By default a batch
    holds inputs of one shape, without padding. To pad inputs of different lengths, set ``pads =
    True`` and write `collate`; if the mask then counts something other than the hidden states (a
    mask of sound counts samples), write `token_mask` too. Each new encoder is tried: where padding
    changes its vectors, only inputs of one shape share a batch after all.

    See Also
    --------
    embedkit.ImageEncoder : the shortest example.
    """

    @abstractmethod
    def prepare(self, value: Any, row: int) -> Tensors:
        """Make the model's tensors of one input, without a dimension for the batch.

        It runs in threads. Raise a ValueError, with `row` in its message, for a faulty input.
        """

    @abstractmethod
    def examples(self) -> Sequence[Any]:
        """Give two inputs to try the model on, the shorter or smaller one first."""

    def collate(self, prepared: Sequence[Tensors]) -> Tensors:
        """Make a batch of what `prepare` gave for several inputs."""
        return {name: torch.stack([each[name] for each in prepared]) for name in prepared[0]}

    def token_mask(self, hidden: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Mark the hidden states (batch, tokens, dim) that are real: 1 or 0, (batch, tokens)."""
        return torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device)

    def embed_example(self, rows: Sequence[int]) -> list[Vectors]:
        """Embed fixed inputs as one batch."""
        examples = self.examples()
        vectors = self._embed([(row, self.prepare(examples[row], row)) for row in rows])
        return [vector[None] for vector in vectors]

    def encode(
        self,
        inputs: Any,
        *,
        batch_size: int | None = None,
        progress: bool | None = None,
        out: NDArray[Any] | None = None,
        on_error: OnError = "raise",
    ) -> Vectors:
        """Turn inputs into vectors.

        Parameters
        ----------
        inputs : sequence
            A list, tuple, array, Series, Arrow array, iterator or `datasets` column.
        batch_size : int, optional
            Inputs per batch; by default batches are filled by size. The vectors are the same.
        progress : bool, optional
            Show a progress bar; by default, if the work takes over two seconds.
        out : array of float, shape (n, dim), optional
            Where to write the vectors, as into an `np.memmap` for more than memory holds.
        on_error : {"raise", "skip"}, default="raise"
            What happens to an input that cannot be read: it stops the work, or it has NaN for a
            vector and one warning lists all that do.

        Returns
        -------
        array of float32, shape (n, dim)
            In the order of `inputs`; (0, dim) for none. With `out`, that array.
        """
        faults = Faults(on_error)
        values = as_sequence(inputs, f"{self.unit}s", single=self.single)
        check_batch_size(batch_size)
        out = self._room_for(len(values), out)
        with (
            # Closed at once when interrupted, and its threads with it.
            closing(_in_threads(self._prepared, values)) as prepared,
            progress_bar(len(values), self.unit, progress) as bar,
        ):
            readable = self._readable(prepared, faults)
            for batch in by_shape(
                readable, self._shape, _size, most=_NUMBERS, waiting=_WAITING, batch_size=batch_size
            ):
                parts = self._memory.in_parts(batch, self._embed, self.device)
                for part, vectors in parts:
                    out[[row for row, _ in part]] = vectors
                    bar.update(len(part))
            bar.update(len(faults.rows))
        out[list(faults.rows)] = np.nan
        faults.warn(len(values))
        warn_not_finite(out, faults.rows, self.model.dtype)
        return out

    def _prepared(self, values: Sequence[Any], row: int) -> Tensors:
        try:
            value = values[row]
        except Exception as error:  # a lazy column opens a file, and readers raise all kinds
            raise ValueError(f"{self.unit} {row} cannot be read: {error}") from error
        return self.prepare(value, row)

    def _readable(
        self, prepared: Iterator[tuple[int, Future[Tensors]]], faults: Faults
    ) -> Iterator[tuple[int, Tensors]]:
        """Leave out what cannot be read."""
        for row, future in prepared:
            try:
                yield row, future.result()
            except ValueError as error:
                faults.add(row, error)

    def _shape(self, tensors: Tensors) -> Any:
        """Give what two inputs have to have in common to share a batch."""
        together = self.pads and not (self.facts or {})["equal_lengths"]
        return () if together else tuple(tensor.shape for tensor in tensors.values())

    def _embed(self, prepared: Sequence[tuple[int, Tensors]]) -> Vectors:
        """Embed one batch of (row, tensors)."""
        inputs = self.to_model(self.collate([tensors for _, tensors in prepared]))
        hidden = self._hidden_or_features(inputs)
        return self._pooled(hidden, hidden if self._projected else self.token_mask(hidden, inputs))

    def to_model(self, inputs: Tensors) -> Tensors:
        """Move a batch to the model's device, and its floats to the model's type."""
        return {
            name: tensor.to(self.device, self.model.dtype if tensor.is_floating_point() else None)
            for name, tensor in inputs.items()
        }


def _size(tensors: Tensors) -> int:
    """Count the numbers of a prepared input."""
    return sum(tensor.numel() for tensor in tensors.values())


def _in_threads(prepare: Any, values: Sequence[Any]) -> Generator[tuple[int, Future[Tensors]]]:
    """Prepare inputs in threads, a little ahead of the model, in order."""
    # As many as the model may use, which on a shared machine or in Ray is not all there are.
    workers = torch.get_num_threads()
    ahead: deque[Future[Tensors]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for row in range(len(values)):
            ahead.append(pool.submit(prepare, values, row))
            if len(ahead) > _AHEAD * workers:
                yield row + 1 - len(ahead), ahead.popleft()
        while ahead:
            yield len(values) - len(ahead), ahead.popleft()
    finally:
        pool.shutdown(cancel_futures=True)
