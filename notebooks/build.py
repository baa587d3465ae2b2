"""Execute the lessons and make web pages of them.

``python notebooks/build.py`` writes ``build/site/index.html``; the committed notebooks stay as they
are. ``--in-place`` keeps the outputs in ``notebooks/`` instead, which is how they get there.
Without running anything, ``--kept`` makes the pages of the outputs that are kept, ``--slides``
makes slides of them, and ``--test-yourself`` gathers the exercises in one notebook.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import papermill
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from kit.exercises import gather
from kit.pages import Lesson, Site
from kit.slides import write_decks

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build"
CHATTER = re.compile(r"%\||^\[[\d:, -]+ [A-Z] \d+ \d+\] \w+\.cc:")
WIDGET = "application/vnd.jupyter.widget-view+json"


def execute(path: Path, parameters: dict[str, str | int]) -> Lesson:
    """Run one notebook from top to bottom, in its own folder and a fresh kernel."""
    target = BUILD / "executed" / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    os.environ.pop("MPLBACKEND", None)  # set, it would keep the figures out of the notebook
    begun = time.perf_counter()
    papermill.execute_notebook(
        path,
        target,
        parameters,
        cwd=HERE,
        kernel_name="python3",
        progress_bar=False,
        # Else the kernel remarks, for each lesson, that it talks to this machine unencrypted.
        extra_arguments=["--log-level=ERROR"],
    )
    seconds = time.perf_counter() - begun
    return Lesson(path.stem, clean(nbformat.read(target, as_version=4)), seconds)


def clean(notebook: NotebookNode) -> NotebookNode:
    """Keep code, text and outputs; drop times, widget state and what differs by machine."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = NotebookNode(kernelspec=NotebookNode(kernel))
    for cell in notebook.cells:
        tags = [tag for tag in cell.metadata.get("tags", []) if tag != "papermill-error-cell-tag"]
        kept = {key: cell.metadata[key] for key in ("alt", "slideshow") if key in cell.metadata}
        cell.metadata = NotebookNode({"tags": tags} if tags else {}, **kept)
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


def kept(path: Path) -> Lesson:
    """Take a lesson with the outputs it has."""
    return Lesson(path.stem, nbformat.read(path, as_version=4))


def keep(lesson: Lesson, path: Path) -> None:
    """Write a lesson with its outputs over its notebook, and the figure that stands for it."""
    nbformat.write(lesson.notebook, path)
    thumbnails = path.parent / "thumbnails"
    thumbnails.mkdir(exist_ok=True)
    (thumbnails / f"{path.stem}.png").write_bytes(lesson.thumbnail()[0])


def describe(path: Path, error: PapermillExecutionError) -> str:
    """Say which cell of which notebook failed, and how."""
    first_line = next(iter(error.source.strip().splitlines()), "")
    return (
        f"{path.name}, cell {error.cell_index} ([{error.exec_count}] {first_line}): "
        f"{error.ename}: {error.evalue}"
    )


def read_command() -> tuple[argparse.Namespace, list[Path]]:
    """Read what is to be done, and with which lessons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", metavar="NAME", help="one lesson, such as 02_sentiment")
    parser.add_argument(
        "-p",
        dest="parameters",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="override a parameter of the lesson, such as MODEL or DATA",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--in-place", action="store_true", help="keep the outputs in notebooks/")
    how.add_argument("--kept", action="store_true", help="pages of the outputs kept there")
    how.add_argument("--slides", action="store_true", help="slides of the outputs kept there")
    how.add_argument("--test-yourself", action="store_true", help="the exercises, in one notebook")
    args = parser.parse_args()
    paths = sorted(HERE.glob("[0-9]*.ipynb"))
    if args.only:
        names = [path.stem for path in paths]
        if args.only.removesuffix(".ipynb") not in names:
            parser.error(f"no lesson {args.only!r}; choose from {', '.join(names)}")
        paths = [path for path in paths if path.stem == args.only.removesuffix(".ipynb")]
    if args.parameters and (args.in_place or args.kept or args.slides or args.test_yourself):
        parser.error("kept outputs are those of the defaults; leave -p out")
    return args, paths


def run_all(paths: list[Path], parameters: dict[str, str | int]) -> Iterator[Lesson | str]:
    """Execute the lessons one by one; for one that fails, say where."""
    for path in paths:
        print(f"{path.stem} …", end=" ", flush=True)
        try:
            lesson = execute(path, parameters)
        except PapermillExecutionError as error:
            print("failed")
            yield describe(path, error)
        else:
            print(f"{lesson.seconds:.0f} s", flush=True)
            yield lesson


def main() -> None:
    """Read the command line and build."""
    args, paths = read_command()
    if args.slides:
        write_decks([kept(path) for path in paths], BUILD / "slides")
        print("Open build/slides/index.html in a browser.")
    elif args.test_yourself:
        BUILD.mkdir(exist_ok=True)
        nbformat.write(gather([kept(path) for path in paths]), BUILD / "test_yourself.ipynb")
        print("Open build/test_yourself.ipynb in JupyterLab.")
    else:
        # A number on the command line is one in the lesson, too.
        parameters = {k: int(v) if v.isdecimal() else v for k, v in args.parameters}
        site = None if args.in_place else Site(BUILD / "site")
        lessons, failures = [], []
        for found in map(kept, paths) if args.kept else run_all(paths, parameters):
            if isinstance(found, str):
                failures.append(found)
                continue
            lessons.append(found)
            if site:
                site.lesson(found)
            else:
                keep(found, HERE / f"{found.name}.ipynb")
        if site:
            site.finish(lessons, HERE)
            print("Open build/site/index.html in a browser.")
        if failures:
            sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
