"""The machine an encoder runs on: its device, its memory, its processes, and a progress bar."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm.auto import tqdm

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


@contextmanager
def progress_bar(total: int, unit: str, show: bool | None) -> Iterator[Any]:
    """Show a bar: always, never, or (None) once the work has taken two seconds."""
    with tqdm(
        total=total,
        unit=unit,
        disable=show is False,
        delay=2 if show is None else 0,
        leave=bool(show),
    ) as bar:
        yield bar
