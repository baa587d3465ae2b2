"""Write the site: the lessons as pages, the texts beside them, the API reference, and the search.

Every page works when opened as a file, and asks for nothing but its neighbours.
"""

import functools
import html
import json
import os
import re
import shutil
from pathlib import Path
from string import Template

import pdoc.doc
import pdoc.render
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter

import embedkit
from kit.lesson import Lesson

KIT = Path(__file__).resolve().parent
PAGE = Template((KIT / "page.html").read_text(encoding="utf-8"))
INDEX = Template((KIT / "index.html").read_text(encoding="utf-8"))
MODULES = ("embedkit", "embedkit.evaluate", "embedkit.pooling")

CARD = Template("""<li class="card">
<a class="map" href="$name.html" tabindex="-1" aria-hidden="true">$figure</a>
<h3><a href="$name.html"><span class="number">$number</span> $title</a></h3>
<p>$promise</p>
<ul class="goals">$goals</ul>
<p class="time">$time</p>
</li>
""")

MAP = Template("""<section class="live">
<h2 id="the-map-to-explore">The map, to explore</h2>
<iframe src="$name" title="Interactive map of this lesson" loading="lazy"></iframe>
<p><a href="$name">The map on a page of its own</a></p>
</section>
""")


class Site:
    """A folder of pages: a page for each lesson, and what leads to it.

    Parameters
    ----------
    folder : Path
        Where the site is written.
    lessons : list of Lesson
        In the order in which they are read.
    home : Path
        The folder of the lessons, whose texts and figures the site shows, too.
    """

    def __init__(self, folder: Path, lessons: list[Lesson], home: Path):
        self.folder, self.home = folder, home
        self.lessons = {lesson.name: lesson for lesson in lessons}
        self.sections: dict[str, list[dict[str, str]]] = {}  # what the search knows, by page
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def index(self) -> Path:
        """The page to open."""
        return self.folder / "index.html"

    def write(self) -> None:
        """Write all pages but the reference."""
        for folder in (self.home / "images", self.home / "figures"):
            if folder.is_dir():
                shutil.copytree(folder, self.folder / folder.name, dirs_exist_ok=True)
        shutil.copy(KIT / "site.js", self.folder)
        styles = [(KIT / "site.css").read_text(encoding="utf-8"), code_colors()]
        (self.folder / "site.css").write_text("\n".join(styles), encoding="utf-8")
        for lesson in self.lessons.values():
            self._write_lesson(lesson)
        for path in sorted(self.home.glob("*.md")):
            self._write_text(path)
        self._write_index()

    def replace(self, lesson: Lesson) -> None:
        """Write a lesson again, now that it was executed."""
        self.lessons[lesson.name] = lesson
        self._write_lesson(lesson)
        self._write_index()

    def reference(self) -> None:
        """Write the public names of embedkit, from their docstrings."""
        for name in embedkit.__all__:
            getattr(embedkit, name)  # imported on first use; pdoc sees only what is imported
        pdoc.render.configure(
            docformat="numpy", show_source=False, search=False, template_directory=KIT / "api"
        )
        modules = {name: pdoc.doc.Module.from_name(name) for name in MODULES}
        for name, module in modules.items():
            body = pdoc.render.html_module(module, modules)
            body = re.sub(r'<h6 id="[\w-]+">(.*?)</h6>', r'<p class="part">\1</p>', body)
            self._write(f"api/{name.replace('.', '/')}.html", name, body)
        self._write_search()

    def _write_lesson(self, lesson: Lesson) -> None:
        """Write a lesson, the figure that stands for it, and the map it saved."""
        body = notebook_html(lesson.notebook)
        figure = lesson.thumbnail()
        if figure:
            (self.folder / f"{lesson.name}.png").write_bytes(figure[0])
        if lesson.map_page:
            name = f"{lesson.name}_map.html"
            shutil.copy(lesson.map_page, self.folder / name)
            body += MAP.substitute(name=name)
        body = f'<p class="origin">{origin(lesson)}</p>{body}{self._neighbours(lesson)}'
        self._write(f"{lesson.name}.html", lesson.title, body, contents=True)

    def _neighbours(self, lesson: Lesson) -> str:
        """Make the links to the lesson before and the one after."""
        order = list(self.lessons.values())
        at = list(self.lessons).index(lesson.name)
        near = {"prev": order[:at][-1:], "next": order[at + 1 :][:1]}
        labels = {"prev": "Previous", "next": "Next"}
        links = [
            f'<a rel="{rel}" href="{each.name}.html">'
            f"<span>{labels[rel]}</span> {html.escape(each.title)}</a>"
            for rel, found in near.items()
            for each in found
        ]
        return f'<nav class="turn" aria-label="Other lessons">{"".join(links)}</nav>'

    def _write_text(self, path: Path) -> None:
        """Write a Markdown file as a page."""
        # Links lead to headings as GitHub names them, in small letters.
        source = path.read_text(encoding="utf-8")
        body = re.sub(r'id="[^"]+"', lambda found: found.group().lower(), markdown2html(source))
        if "<h2" not in body:  # no level may be skipped
            body = re.sub(r"(</?h)3\b", r"\g<1>2", body)
        heading = re.search(r"^# +(.+)$", source, flags=re.MULTILINE)
        self._write(f"{path.stem}.html", heading[1] if heading else path.stem, body, contents=True)

    def _write_index(self) -> None:
        """Write the page that leads to the others, and what the search knows."""
        minutes = reading_minutes(self.home.parent / "README.md")
        cards = {"start": "", "recipes": "", "behind": ""}
        for lesson in self.lessons.values():
            part = "start" if lesson.name < "01" else "recipes" if lesson.name < "05" else "behind"
            cards[part] += card(lesson, minutes.get(lesson.name))
        self._write("index.html", "embedkit: lessons on embeddings", INDEX.substitute(cards))
        self._write_search()

    def _write(self, name: str, title: str, body: str, contents: bool = False) -> None:
        """Write a page, in which links between files lead to their pages."""
        body = re.sub(r'<a class="anchor-link".*?</a>', "", body)
        body = re.sub(r'href="([\w/]+)\.(?:ipynb|md)(#[^"]*)?"', r'href="\1.html\2"', body)
        page = PAGE.substitute(
            title=html.escape(title),
            root="../" * name.count("/"),
            contents=table_of_contents(body) if contents else "",
            body=body,
        )
        put(self.folder / name, page)
        self.sections[name] = sections(name, title, body)

    def _write_search(self) -> None:
        known = [section for page in self.sections.values() for section in page]
        index = f"window.searchIndex = {json.dumps(known, ensure_ascii=False)};\n"
        put(self.folder / "search-index.js", index)


def put(path: Path, text: str) -> None:
    """Write a file at once, so that a page that is open meanwhile is never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def origin(lesson: Lesson) -> str:
    """Say, in HTML, where the outputs of a lesson come from."""
    when = lesson.ended and f"{lesson.ended.day} {lesson.ended:%B %Y at %H:%M}"
    if lesson.failure:
        failure = html.escape(lesson.failure)
        return f"<strong>A run on this machine failed</strong> on {when}: {failure}. {KEPT}."
    if lesson.seconds is not None:
        return f"Ran on this machine on {when}, in {lesson.seconds:.0f} s."
    return f"{KEPT}: it has not run on this machine."


KEPT = "The outputs below were kept with the lesson"


def card(lesson: Lesson, minutes: str | None) -> str:
    """Say on the index what a lesson is, what it leads to, and how long it takes."""
    figure = lesson.thumbnail()
    reading = f"{minutes} minutes to read and try" if minutes else ""
    ran = f"ran here in {lesson.seconds:.0f} s" if lesson.seconds is not None else ""
    return CARD.substitute(
        name=lesson.name,
        figure=f'<img src="{lesson.name}.png" alt="">' if figure else "",
        number=lesson.name[:2],
        title=html.escape(lesson.title),
        promise=html.escape(lesson.promise),
        goals="".join(f"<li>{markdown2html(goal).strip()[3:-4]}</li>" for goal in lesson.goals),
        time=" · ".join(part for part in (reading, ran) if part),
    )


def reading_minutes(readme: Path) -> dict[str, str]:
    """Read from the project's page how many minutes each lesson takes its reader."""
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    return dict(re.findall(r"\(notebooks/(\w+)\.ipynb\) \|[^|]*\| *(\d+) *\|", text))


def table_of_contents(body: str) -> str:
    """Make links to the headings of a page, which stand at its side where there is room."""
    found = re.findall(r'<h2[^>]* id="([^"]+)"[^>]*>(.*?)</h2>', body, flags=re.DOTALL)
    links = "".join(f'<li><a href="#{anchor}">{words(text)}</a></li>' for anchor, text in found)
    if not links:
        return ""
    return (
        '<details class="contents"><summary>On this page</summary>'
        f'<nav aria-label="On this page"><ol>{links}</ol></nav></details>'
    )


@functools.cache
def exporter(exclude_input: bool = False) -> HTMLExporter:
    """Make what turns notebooks into HTML; it takes a while to read its templates."""
    return HTMLExporter(template_name="basic", exclude_input=exclude_input)


def notebook_html(notebook: NotebookNode) -> str:
    """Make the inside of a page of a notebook, without what would come from elsewhere."""
    body, _ = exporter().from_notebook_node(notebook)
    body = body.replace("<th></th>", "<td></td>")  # a heading that heads nothing
    return re.sub(r'<img [^>]*src="https?:[^>]*>', _alternative, body)


def _alternative(image: re.Match[str]) -> str:
    found = re.search(r'alt="([^"]*)"', image.group())
    return found.group(1) if found else ""


def sections(name: str, title: str, body: str) -> list[dict[str, str]]:
    """Cut a page at its headings, for the search."""
    parts = re.split(r'(?=<h[1-3] id="|<section id="|<div id="[\w.]+" class="classattr")', body)
    found = []
    for part in parts:
        anchor = re.match(r'<\w+ id="([^"]+)"', part)
        heading = re.search(r"<h[1-6]([^>]*)>(.*?)</h[1-6]>", part, flags=re.DOTALL)
        text = words(part[heading.end() :] if heading else part)
        called = words(heading[2]) if heading else title
        if anchor and heading and "signature" in heading[1]:
            called = anchor[1]  # the name, without what it takes
        if text:
            url = f"{name}#{anchor[1]}" if anchor else name
            found.append({"url": url, "page": title, "title": called, "text": text})
    return found


def words(markup: str) -> str:
    """Leave out the tags."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", markup)).split())


def code_colors() -> str:
    """Give the colors of code, of which none is faint on its ground: light, dark, or paper."""
    code = ":is(.highlight, .codehilite, .signature)"
    light = HtmlFormatter(style="xcode", nobackground=True).get_style_defs(code)
    dark = HtmlFormatter(style="monokai", nobackground=True)
    dark_styles = dark.get_style_defs(f"[data-theme=dark] {code}")
    return f"{light}\n@media screen {{\n{dark_styles}\n}}\n"
