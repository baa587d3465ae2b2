"""Make slides of the lessons: reveal.js decks for a projector, which need no network.

A cell is on a slide if its metadata say so: ``"slideshow": {"slide_type": "slide"}``, which is what
JupyterLab's property inspector writes; ``"fragment"`` joins the slide before, at the next key. Of a
text, the slide shows the question; else the figure, the list or table, or the first paragraph. Of
code, it shows the output and the one line that contains what ``"slideshow": {"line": …}`` says. The
whole text goes to the speaker's notes (key S).
"""

import html
import importlib.util
import re
import shutil
import sys
from pathlib import Path
from string import Template

from nbconvert.filters import markdown2html
from nbformat import NotebookNode
from nbformat.v4 import new_notebook

from kit.lesson import Lesson, plain, shown
from kit.pages import KIT, code_colors, exporter

DECK = Template((KIT / "deck.html").read_text(encoding="utf-8"))
REVEAL = ("reset.css", "reveal.css", "reveal.js", "plugin/notes.js")


def deck(lesson: Lesson) -> str:
    """Make the page of a lesson's slides."""
    heading, slides = lesson.title, []
    for cell in lesson.notebook.cells:
        settings, body, notes = cell.metadata.get("slideshow", {}), "", ""
        above = heading
        if cell.cell_type == "markdown":
            above, text = gist(shown(cell), heading)
            heading = (re.findall(r"^#+ (.+)$", cell.source, flags=re.MULTILINE) or [heading])[-1]
            body = markdown2html(text)
            notes = f'<aside class="notes">{markdown2html(plain(shown(cell)))}</aside>'
        elif settings:
            body = output(cell, settings.get("line"))
        if settings.get("slide_type") == "slide":
            level = "h2" if slides else "h1"
            above = re.sub(r"^(\d+)\.", r"\1\\.", plain(above))  # a number, no list
            title = f"<{level}>{markdown2html(above).strip()[3:-4]}</{level}>"
            slides.append(f"{title}{body}{notes}")
        elif settings.get("slide_type") == "fragment":
            slides[-1] += f'<div class="fragment">{body}</div>{notes}'
    slides = [f"<section>{each}</section>" for each in slides]
    return DECK.substitute(title=html.escape(lesson.title), slides="\n".join(slides))


def gist(text: str, heading: str) -> tuple[str, str]:
    """Pick what a slide shows of a text, and the heading it stands under."""
    parts: list[tuple[str, list[str]]] = [(heading, [])]
    for block in plain(text).split("\n\n"):
        if block.startswith("#"):
            parts.append((block.lstrip("# "), []))
        else:
            parts[-1][1].append(block)
    for wanted in (r"\*\*Predict\*\*.*", r"^!\[.*", r"^(?:[-*|>] |\d\. ).*", r"^.*"):
        for heading, blocks in parts:
            found = [re.search(wanted, block, flags=re.DOTALL) for block in blocks]
            if any(found):
                shown = [match[0] for match in found if match]
                return heading, "\n\n".join(shown if wanted != r"^.*" else shown[:1])
    return parts[-1][0], ""


def output(cell: NotebookNode, line: str | None) -> str:
    """Make HTML of a cell's outputs and, if asked for, of the one line that contains a text."""
    found = [each.strip() for each in cell.source.split("\n") if line and line in each]
    if line and len(found) != 1:
        raise ValueError(f"{len(found)} lines, not one, contain {line!r}:\n{cell.source}")
    one = NotebookNode({**cell, "source": "".join(found)})
    figures = [each for each in cell.outputs if "image/png" in each.get("data", {})]
    one.outputs = figures or cell.outputs
    body, _ = exporter(exclude_input=not line).from_notebook_node(new_notebook(cells=[one]))
    return body.replace("<th></th>", "<td></td>")


def write_decks(lessons: list[Lesson], folder: Path) -> None:
    """Write a deck for each lesson, the page that leads to them, and what they share."""
    reveal = importlib.util.find_spec("pyreveal")
    if reveal is None:
        sys.exit("slides need reveal.js: install the extra `slides`, as `make slides` does")
    source = Path(reveal.submodule_search_locations[0]) / "revealjs" / "dist"
    folder.mkdir(parents=True, exist_ok=True)
    for part in REVEAL:
        shutil.copy(source / part, folder)
    style = (KIT / "deck.css").read_text(encoding="utf-8") + code_colors()
    (folder / "deck.css").write_text(style, encoding="utf-8")
    for lesson in lessons:
        (folder / f"{lesson.name}.html").write_text(deck(lesson), encoding="utf-8")
    links = "".join(
        f'<li><a href="{lesson.name}.html">{html.escape(lesson.title)}</a></li>'
        for lesson in lessons
    )
    keys = "<p>Arrow keys turn the slides, S shows the notes, O all slides, F fills the screen.</p>"
    slides = f"<section><h1>embedkit</h1><ul>{links}</ul>{keys}</section>"
    page = DECK.substitute(title="embedkit: slides", slides=slides)
    (folder / "index.html").write_text(page, encoding="utf-8")
