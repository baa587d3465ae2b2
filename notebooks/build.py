"""Execute the lessons and make web pages of them.

``python notebooks/build.py`` writes ``build/site/index.html`` from the outputs that are kept in the
notebooks, then executes the lessons and replaces page by page; the notebooks stay as they are.
``--in-place`` executes them and keeps the outputs in ``notebooks/``, which is how they get there.
Without running anything, ``--kept`` makes the pages of the outputs that are kept, ``--slides``
makes slides of them, and ``--test-yourself`` gathers the exercises in one notebook.
"""

import argparse
import sys
import time
from pathlib import Path

import nbformat

from kit.execution import run_all, side_by_side
from kit.exercises import gather
from kit.lesson import Lesson, kept
from kit.pages import Site
from kit.slides import write_decks

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build"


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
    # A number on the command line is one in the lesson, too.
    args.parameters = {k: int(v) if v.isdecimal() else v for k, v in args.parameters}
    return args, paths


def execute(paths: list[Path], parameters: dict[str, str | int]) -> None:
    """Write the site with the outputs that are kept, then execute lessons and replace their pages.

    The reference is written while the first lessons run: it needs most of the packages.
    """
    site = Site(BUILD / "site", [kept(path) for path in sorted(HERE.glob("[0-9]*.ipynb"))], HERE)
    site.write()
    print(f"The site is there, with outputs kept in the lessons: {site.index.as_uri()}")
    together = side_by_side(len(paths))
    lessons = "1 lesson" if len(paths) == 1 else f"{len(paths)} lessons"
    at_a_time = f", {together} at a time" if together > 1 else ""
    print(f"Now {lessons} will run here{at_a_time}; each replaces its page when it is done.")
    begun, failures = time.perf_counter(), []
    for lesson in run_all(paths, parameters, BUILD / "executed", meanwhile=site.reference):
        site.replace(lesson)
        failures += report(lesson)
    print(f"Done after {(time.perf_counter() - begun) / 60:.1f} minutes: {site.index.as_uri()}")
    if failures:
        sys.exit("\n".join(failures))


def execute_in_place(paths: list[Path]) -> None:
    """Execute the lessons and write each with its outputs over its notebook."""
    failures = []
    for lesson in run_all(paths, {}, BUILD / "executed"):
        failures += report(lesson)
        if not lesson.failure:
            keep(lesson, HERE / f"{lesson.name}.ipynb")
    if failures:
        sys.exit("\n".join(failures))


def report(lesson: Lesson) -> list[str]:
    """Print how a lesson went; give what went wrong."""
    went = f"{lesson.seconds:.0f} s" if lesson.seconds is not None else "failed"
    print(f"  {lesson.name}: {went}")
    return [lesson.failure] if lesson.failure else []


def keep(lesson: Lesson, path: Path) -> None:
    """Write a lesson with its outputs over its notebook, and the figure that stands for it."""
    figure = lesson.thumbnail()
    if figure is None:
        raise ValueError(f"{lesson.name}: no cell tagged 'thumbnail' has drawn a figure")
    nbformat.write(lesson.notebook, path)
    thumbnails = path.parent / "thumbnails"
    thumbnails.mkdir(exist_ok=True)
    (thumbnails / f"{path.stem}.png").write_bytes(figure[0])


def main() -> None:
    """Read the command line and build."""
    args, paths = read_command()
    sys.stdout.reconfigure(line_buffering=True)
    if args.in_place:
        execute_in_place(paths)
    elif args.kept:
        site = Site(BUILD / "site", [kept(path) for path in paths], HERE)
        site.write()
        site.reference()
        print(f"Open {site.index.as_uri()} in a browser.")
    elif args.slides:
        write_decks([kept(path) for path in paths], BUILD / "slides")
        print(f"Open {(BUILD / 'slides' / 'index.html').as_uri()} in a browser.")
    elif args.test_yourself:
        BUILD.mkdir(exist_ok=True)
        nbformat.write(gather([kept(path) for path in paths]), BUILD / "test_yourself.ipynb")
        print("Open build/test_yourself.ipynb in JupyterLab.")
    else:
        execute(paths, args.parameters)


if __name__ == "__main__":
    main()
