"""Execute the lessons and make web pages of them.

``python notebooks/build.py`` writes ``build/site/index.html``; the committed notebooks stay as they
are. ``--in-place`` keeps the outputs in ``notebooks/`` instead, which is how they get there.
Without running anything, ``--kept`` makes the pages of the outputs that are kept, ``--slides``
makes slides of them, and ``--test-yourself`` gathers the exercises in one notebook.
"""

import argparse
import os
import sys
import time
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
            cell.outputs = [each for each in cell.outputs if not _is_progress_bar(each)]
    return notebook


def _is_progress_bar(output: NotebookNode) -> bool:
    """Tell a bar, which says nothing once its work is done, from what a reader wants to keep."""
    return WIDGET in output.get("data", {}) or (
        output.get("name") == "stderr" and "%|" in output.get("text", "")
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


def main() -> None:
    """Read the command line and build."""
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
    # A number on the command line is one in the lesson, too.
    parameters = {
        name: int(value) if value.isdecimal() else value for name, value in args.parameters
    }
    executes = not (args.kept or args.slides or args.test_yourself)
    if parameters and (args.in_place or not executes):
        parser.error("kept outputs are those of the defaults; leave -p out")
    if args.slides or args.test_yourself:
        lessons = [kept(path) for path in paths]
        made = BUILD / ("slides/index.html" if args.slides else "test_yourself.ipynb")
        made.parent.mkdir(parents=True, exist_ok=True)
        if args.slides:
            write_decks(lessons, made.parent)
        else:
            nbformat.write(gather(lessons), made)
        print(f"Open {made.relative_to(BUILD.parent)}")
        return
    site = None if args.in_place else Site(BUILD / "site")
    lessons, failures = [], []
    for path in paths:
        if args.kept:
            lesson = kept(path)
        else:
            print(f"{path.stem} …", end=" ", flush=True)
            try:
                lesson = execute(path, parameters)
            except PapermillExecutionError as error:
                failures.append(describe(path, error))
                print("failed")
                continue
            print(f"{lesson.seconds:.0f} s", flush=True)
        lessons.append(lesson)
        if site:
            site.lesson(lesson)
        else:
            keep(lesson, path)
    if site:
        site.finish(lessons, HERE)
        print(f"Open {(site.folder / 'index.html').relative_to(BUILD.parent)} in a browser.")
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
