"""Write the site: the lessons as pages, the texts beside them, the API reference, and the search.

Every page works when opened as a file, and asks for nothing but its neighbours.
"""

import base64
import html
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from string import Template

import pdoc.doc
import pdoc.render
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter

import embedkit

KIT = Path(__file__).resolve().parent
PAGE = Template((KIT / "page.html").read_text(encoding="utf-8"))
MODULES = ("embedkit", "embedkit.evaluate", "embedkit.pooling")

CARD = Template("""<li>
<a href="$name.html"><img src="$name.png" alt="$alt"></a>
<div><h2><a href="$name.html">$title</a></h2><p>$promise</p>$ran</div>
</li>
""")


@dataclass
class Lesson:
    """An executed notebook and what the index says of it."""

    name: str
    notebook: NotebookNode
    seconds: float | None = None  # how long it ran just now; None if its outputs were kept

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


class Site:
    """A folder of pages, and what the search knows of them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.sections: list[dict[str, str]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def lesson(self, lesson: Lesson) -> None:
        """Write a lesson and the figure that stands for it."""
        self._write(f"{lesson.name}.html", lesson.title, notebook_html(lesson.notebook))
        (self.folder / f"{lesson.name}.png").write_bytes(lesson.thumbnail()[0])

    def text(self, path: Path) -> None:
        """Write a Markdown file as a page."""
        # Links lead to headings as GitHub names them, in small letters.
        source = path.read_text(encoding="utf-8")
        body = re.sub(r'id="[^"]+"', lambda found: found.group().lower(), markdown2html(source))
        if "<h2" not in body:  # no level may be skipped
            body = re.sub(r"(</?h)3\b", r"\g<1>2", body)
        heading = re.search(r"^# +(.+)$", source, flags=re.MULTILINE)
        self._write(f"{path.stem}.html", heading[1] if heading else path.stem, body)

    def index(self, lessons: list[Lesson]) -> None:
        """Write the page that leads to the others."""
        cards = "".join(
            CARD.substitute(
                name=lesson.name,
                alt=html.escape(lesson.thumbnail()[1]),
                title=html.escape(lesson.title),
                promise=html.escape(lesson.promise),
                ran=f'<p class="time">ran in {lesson.seconds:.0f} s</p>' if lesson.seconds else "",
            )
            for lesson in lessons
        )
        body = (
            "<h1>embedkit</h1><p>What is an embedding, how do you get one from your model, and "
            f"what does it look like?</p><ul class='lessons'>{cards}</ul>"
        )
        self._write("index.html", "embedkit: lessons on embeddings", body)

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

    def finish(self, lessons: list[Lesson], home: Path) -> None:
        """Write what stands beside the lessons in their folder, and what leads to all of it."""
        for path in sorted(home.glob("*.md")):
            self.text(path)
        self.index(lessons)
        self.reference()
        for folder in (home / "images", home / "figures"):
            if folder.is_dir():
                shutil.copytree(folder, self.folder / folder.name, dirs_exist_ok=True)
        shutil.copy(KIT / "site.js", self.folder)
        styles = [(KIT / "site.css").read_text(encoding="utf-8"), code_colours()]
        (self.folder / "site.css").write_text("\n".join(styles), encoding="utf-8")
        index = f"window.searchIndex = {json.dumps(self.sections, ensure_ascii=False)};\n"
        (self.folder / "search-index.js").write_text(index, encoding="utf-8")

    def _write(self, name: str, title: str, body: str) -> None:
        """Write a page, in which links between files lead to their pages."""
        body = re.sub(r'<a class="anchor-link".*?</a>', "", body)
        body = re.sub(r'href="([\w/]+)\.(?:ipynb|md)(#[^"]*)?"', r'href="\1.html\2"', body)
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        root = "../" * name.count("/")
        page = PAGE.substitute(title=html.escape(title), root=root, body=body)
        path.write_text(page, encoding="utf-8")
        self.sections += sections(name, title, body)


def notebook_html(notebook: NotebookNode) -> str:
    """Make the inside of a page of a notebook, without what would come from elsewhere."""
    body, _ = HTMLExporter(template_name="basic").from_notebook_node(notebook)
    body = body.replace("<th></th>", "<td></td>")  # a heading that heads nothing
    return re.sub(r'<img [^>]*src="https?:[^>]*>', _alternative, body)


def _alternative(image: re.Match[str]) -> str:
    found = re.search(r'alt="([^"]*)"', image.group())
    return found.group(1) if found else ""


def plain(text: str) -> str:
    """Leave out badges and, of links, all but their words."""
    text = re.sub(r"^\[!\[.*$", "", text, flags=re.MULTILINE).strip()
    return re.sub(r"(?<!!)\[((?:`[^`]*`|[^\[\]])+)\]\([^)]+\)", r"\1", text)


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


def code_colours() -> str:
    """Give the colours of code, of which none is faint on its ground, light or dark."""
    both = {"": "xcode", "[data-theme=dark] ": "monokai"}
    code = ":is(.highlight, .codehilite, .signature)"
    styles = [
        HtmlFormatter(style=style, nobackground=True).get_style_defs(where + code)
        for where, style in both.items()
    ]
    return "\n".join(styles)
