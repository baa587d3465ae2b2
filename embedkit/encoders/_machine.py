"""The machine an encoder runs on: its device, its memory and its processes."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from embedkit.encoders._inputs import warn

Device = str | int | torch.device

# The process that loaded torch: a process that was forked from it has none of torch's threads.
_LOADED_IN = os.getpid()


def chosen_device(device: Device | None) -> torch.device:
    """Take the device that was asked for, or the quickest kind there is."""
    if device is None:
        has_mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    chosen = torch.device(f"cuda:{device}" if isinstance(device, int) else device)
    count = torch.cuda.device_count()
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise ValueError(
            f"device={device!r}: PyTorch sees {count} CUDA devices here; give 'cpu', or leave "
            "`device` out"
        )
    return chosen


def work_alone_after_fork() -> None:
    """Keep torch from waiting for threads that a forked process does not have."""
    if os.getpid() != _LOADED_IN:
        torch.set_num_threads(1)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Recognize exhausted memory, which CUDA, MPS and CPU each report in their own way."""
    signs = "out of memory", "DefaultCPUAllocator"
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)


class Memory:
    """How large a batch may be, learned from the batches that were too large for the memory."""

    def __init__(self) -> None:
        self._parts = 1

    def in_parts(
        self, rows: Any, run: Callable[[Any], Any], device: torch.device
    ) -> Iterator[tuple[Any, Any]]:
        """Run rows as one batch or, where memory is too small for it, in parts; say so once.

        Yields the rows of a part and what `run` made of them.
        """
        size, start = -(-len(rows) // self._parts), 0
        while start < len(rows):
            part = rows[start : start + size]
            try:
                result = run(part)
            except RuntimeError as error:
                if len(part) == 1 or not is_out_of_memory(error):
                    raise
            else:
                yield part, result
                start += len(part)
                continue
            # Not in the handler: there the error still holds on to the batch.
            if self._parts == 1:
                warn(
                    f"{device} has too little memory for a batch of {len(part)}; going on with "
                    "half of it and, where needed, less. The vectors are the same"
                )
            self._parts *= 2
            size = -(-len(part) // 2)
            if device.type == "cuda":
                torch.cuda.empty_cache()
