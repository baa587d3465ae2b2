"""Execute the lessons and make web pages of them.

``python notebooks/build.py`` writes ``build/site/index.html``; the committed notebooks stay as they
are. ``--in-place`` keeps the outputs in ``notebooks/`` instead, which is how they get there.
"""

import argparse
import base64
import html
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from string import Template

import nbformat
import papermill
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from pygments.formatters import HtmlFormatter

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build"
CHATTER = re.compile(r"%\||^\[[\d:, -]+ [A-Z] \d+ \d+\] \w+\.cc:")
WIDGET = "application/vnd.jupyter.widget-view+json"

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")

CARD = Template("""<li>
<a href="$name.html"><img src="$name.png" alt="$alt"></a>
<div><h2><a href="$name.html">$title</a></h2><p>$promise</p><p class="time">ran in $time</p></div>
</li>
""")

STYLE = HtmlFormatter(style="default").get_style_defs(".highlight") + "\n"
STYLE += (HERE / "page.css").read_text(encoding="utf-8")


@dataclass
class Lesson:
    """An executed notebook and what the index says of it."""

    name: str
    notebook: NotebookNode
    seconds: float

    @property
    def title(self) -> str:
        """The first heading."""
        return self._first_cell(r"^# +(.+)$", self.name)

    @property
    def promise(self) -> str:
        """The sentence in italics under it."""
        return self._first_cell(r"^\*([^*].+)\*$", "")

    def _first_cell(self, pattern: str, default: str) -> str:
        found = re.search(pattern, self.notebook.cells[0].source, flags=re.MULTILINE)
        return found.group(1).strip() if found else default

    def thumbnail(self) -> tuple[bytes, str]:
        """Find the figure of the cell tagged ``thumbnail``, and its alternative text."""
        for cell in self.notebook.cells:
            if "thumbnail" in cell.metadata.get("tags", []):
                for output in cell.outputs:
                    png = output.get("data", {}).get("image/png")
                    if png:
                        return base64.b64decode(png), cell.metadata.get("alt", "")
        raise ValueError(f"{self.name}: no cell tagged 'thumbnail' has drawn a figure")


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
        alt = cell.metadata.get("alt")
        cell.metadata = NotebookNode({"tags": tags} if tags else {})
        if alt:
            cell.metadata["alt"] = alt
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


def write_page(lesson: Lesson, site: Path) -> None:
    """Write a lesson as a page that needs nothing from elsewhere."""
    body, _ = HTMLExporter(template_name="basic").from_notebook_node(lesson.notebook)
    body = re.sub(r'<img [^>]*src="https?:[^>]*>', _alternative, body)
    _write(site / f"{lesson.name}.html", lesson.title, body)
    (site / f"{lesson.name}.png").write_bytes(lesson.thumbnail()[0])


def write_glossary(site: Path) -> None:
    """Write the words that the lessons explain as a page of their own."""
    source = (HERE / "GLOSSARY.md").read_text(encoding="utf-8")
    # Links lead to headings as GitHub names them, in small letters.
    body = re.sub(r'id="[^"]+"', lambda found: found.group().lower(), markdown2html(source))
    _write(site / "GLOSSARY.html", "Glossary", body)


def _write(path: Path, title: str, body: str) -> None:
    """Write a page of the site, in which links between files lead to their pages."""
    body = re.sub(r'href="(\w+)\.(?:ipynb|md)(#[^"]*)?"', r'href="\1.html\2"', body)
    home = '<p><a href="index.html">All lessons</a> · <a href="GLOSSARY.html">Glossary</a></p>'
    page = PAGE.substitute(title=html.escape(title), style=STYLE, body=home + body)
    path.write_text(page, encoding="utf-8")


def _alternative(image: re.Match[str]) -> str:
    found = re.search(r'alt="([^"]*)"', image.group())
    return found.group(1) if found else ""


def write_index(lessons: list[Lesson], site: Path) -> None:
    """Write the page that leads to the others."""
    cards = "".join(
        CARD.substitute(
            name=lesson.name,
            alt=html.escape(lesson.thumbnail()[1]),
            title=html.escape(lesson.title),
            promise=html.escape(lesson.promise),
            time=f"{lesson.seconds:.0f} s",
        )
        for lesson in lessons
    )
    body = (
        "<h1>embedkit</h1><p>What is an embedding, how do you get one from your model, and what "
        f"does it look like?</p><ul class='lessons'>{cards}</ul>"
        '<p>The words they use stand in the <a href="GLOSSARY.html">glossary</a>.</p>'
    )
    page = PAGE.substitute(title="embedkit: lessons on embeddings", style=STYLE, body=body)
    (site / "index.html").write_text(page, encoding="utf-8")


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
    parser.add_argument("--in-place", action="store_true", help="keep the outputs in notebooks/")
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
    if args.in_place and args.parameters:
        parser.error("--in-place keeps the outputs of the defaults; leave -p out")
    site = BUILD / "site"
    for folder in (site, HERE / "thumbnails"):
        folder.mkdir(parents=True, exist_ok=True)
    lessons, failures = [], []
    for path in paths:
        print(f"{path.stem} …", end=" ", flush=True)
        try:
            lesson = execute(path, parameters)
        except PapermillExecutionError as error:
            failures.append(describe(path, error))
            print("failed")
            continue
        print(f"{lesson.seconds:.0f} s", flush=True)
        lessons.append(lesson)
        if args.in_place:
            nbformat.write(lesson.notebook, path)
            (HERE / "thumbnails" / f"{path.stem}.png").write_bytes(lesson.thumbnail()[0])
        else:
            write_page(lesson, site)
    if not args.in_place:
        write_index(lessons, site)
        write_glossary(site)
        print(f"Open {(site / 'index.html').relative_to(HERE.parent)} in a browser.")
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
