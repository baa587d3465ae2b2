"""Execute lessons, several side by side where cores and memory allow."""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import datetime
from pathlib import Path

import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from kit.lesson import Lesson, kept

LONGEST = "07_fine_tuning"  # begun first, so that no core is left idle at the end
LESSON_BYTES = 3e9  # the most that a lesson held when measured was 2 GB
CHATTER = re.compile(r"%\||^\[[\d:, -]+ [A-Z] \d+ \d+\] \w+\.cc:")
WIDGET = "application/vnd.jupyter.widget-view+json"


def side_by_side(count: int) -> int:
    """Say how many of the lessons run at a time: one a core, and memory for each."""
    room = int(psutil.virtual_memory().available / LESSON_BYTES)
    return max(1, min(cores(), room, count))


def cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_all(
    paths: list[Path],
    parameters: dict[str, str | int],
    folder: Path,
    meanwhile: Callable[[], None] = lambda: None,
) -> Iterator[Lesson]:
    """Execute the lessons, and give each as it ends; one that failed says where.

    Ray's own processes give up where they start slowly, so a lesson that uses it runs by itself,
    after the others. ``meanwhile`` is done while the first of them run.
    """
    alone = [path for path in paths if re.search(r"^import ray$", kept(path).code, re.MULTILINE)]
    together = [path for path in paths if path not in alone]
    together.sort(key=lambda path: path.stem != LONGEST)
    workers = side_by_side(len(together))
    threads = max(1, cores() // workers)
    with ThreadPoolExecutor(workers) as pool:
        try:
            jobs = [pool.submit(run, path, parameters, folder, threads) for path in together]
            meanwhile()
            for job in as_completed(jobs):
                yield job.result()
            for path in alone:
                yield pool.submit(run, path, parameters, folder).result()
        except BaseException:  # such as Ctrl-C: what still runs is not waited for
            pool.shutdown(wait=False, cancel_futures=True)
            for process in psutil.Process().children(recursive=True):
                process.kill()
            raise


def run(
    path: Path, parameters: dict[str, str | int], folder: Path, threads: int | None = None
) -> Lesson:
    """Execute a lesson; if it fails, give it with the outputs that are kept, and say why."""
    begun, lesson = time.perf_counter(), kept(path)
    try:
        executed = execute(path, parameters, folder, threads)
    except LessonError as error:
        lesson.failure = str(error)
    else:
        lesson.notebook, lesson.seconds = executed, time.perf_counter() - begun
        saved = path.with_name(f"{path.stem}_map.html")
        if saved.exists():
            lesson.map_page = Path(shutil.move(saved, folder / saved.name))
    lesson.ended = datetime.now()
    return lesson


class LessonError(Exception):
    """A lesson stopped before its end: which cell, and how."""


def execute(
    path: Path, parameters: dict[str, str | int], folder: Path, threads: int | None = None
) -> NotebookNode:
    """Run a notebook from top to bottom, in its own folder and a fresh kernel.

    Beside the executed notebook there is a log of what its processes printed.
    """
    notebook, at = set_parameters(nbformat.read(path, as_version=4), parameters), 0

    def note(cell: NotebookNode, cell_index: int) -> None:
        nonlocal at
        at = cell_index

    env = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    if threads:  # several kernels with threads for all cores get into each other's way
        env.setdefault("OMP_NUM_THREADS", str(threads))
    folder.mkdir(parents=True, exist_ok=True)
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_start=note,
    )
    with (folder / f"{path.stem}.log").open("w", encoding="utf-8") as log:
        try:
            client.execute(env=env, stdout=log, stderr=log)
        except (CellExecutionError, DeadKernelError) as error:
            raise LessonError(describe(path, notebook.cells[at], at, error)) from error
        finally:
            nbformat.write(notebook, folder / path.name)
    return clean(notebook)


def set_parameters(notebook: NotebookNode, parameters: dict[str, str | int]) -> NotebookNode:
    """Put a cell behind the one tagged ``parameters``, which overrides what that one sets."""
    if parameters:
        source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
        tagged = ["parameters" in cell.metadata.get("tags", []) for cell in notebook.cells]
        notebook.cells.insert(tagged.index(True) + 1, new_code_cell(source))
    return notebook


def describe(path: Path, cell: NotebookNode, number: int, error: Exception) -> str:
    """Say which cell of which notebook failed, and how."""
    first_line = next(iter(cell.source.strip().splitlines()), "")
    how = f"{error.ename}: {error.evalue}" if isinstance(error, CellExecutionError) else error
    return f"{path.name}, cell {number + 1} ({first_line}): {how}"


def clean(notebook: NotebookNode) -> NotebookNode:
    """Keep code, text and outputs; drop times, widget state and what differs by machine."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = NotebookNode(kernelspec=NotebookNode(kernel))
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        kept_too = {key: cell.metadata[key] for key in ("alt", "slideshow") if key in cell.metadata}
        cell.metadata = NotebookNode({"tags": tags} if tags else {}, **kept_too)
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if not _is_chatter(each)]
    return notebook


def _is_chatter(output: NotebookNode) -> bool:
    """Tell bars, which say nothing once their work is done, from what a reader wants to keep.

    The log of Ray's core goes with them: it holds times and process numbers, and cannot be turned
    off.
    """
    return WIDGET in output.get("data", {}) or (
        output.get("name") == "stderr" and bool(CHATTER.search(output.get("text", "")))
    )
