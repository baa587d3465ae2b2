"""What pages, slides and exercises need to know of a lesson."""

import base64
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import nbformat
from nbformat import NotebookNode


@dataclass
class Lesson:
    """A notebook with its outputs, and where these come from."""

    name: str
    notebook: NotebookNode
    seconds: float | None = None  # how long it ran on this machine; None if its outputs were kept
    ended: datetime | None = None  # when it ran here, or failed to
    failure: str = ""  # which cell stopped the run, and how
    map_page: Path | None = None  # an interactive map that the lesson saved, as one HTML file

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

    @property
    def goals(self) -> list[str]:
        """What a reader will be able to do afterwards, in Markdown without links."""
        for cell in self.notebook.cells:
            if cell.source.startswith("## What you will learn"):
                return re.findall(r"^\d+\. (.+)$", plain(cell.source), flags=re.MULTILINE)
        return []

    @property
    def code(self) -> str:
        """All code, cell after cell."""
        return "\n".join(cell.source for cell in self.notebook.cells if cell.cell_type == "code")

    def thumbnail(self) -> tuple[bytes, str] | None:
        """Find the figure of the cell tagged ``thumbnail``, and its alternative text."""
        for cell in self.notebook.cells:
            if "thumbnail" in cell.metadata.get("tags", []):
                for output in cell.outputs:
                    png = output.get("data", {}).get("image/png")
                    if png:
                        return base64.b64decode(png), cell.metadata.get("alt", "")
        return None


def kept(path: Path) -> Lesson:
    """Take a lesson with the outputs it has."""
    return Lesson(path.stem, nbformat.read(path, as_version=4))


def shown(cell: NotebookNode) -> str:
    """Give a text with its attached pictures in it, as data of their own."""
    text = cell.source
    for name, kinds in cell.get("attachments", {}).items():
        text = text.replace(f"attachment:{name}", f"data:image/png;base64,{kinds['image/png']}")
    return text


def plain(text: str) -> str:
    """Leave out badges and, of links, all but their words."""
    text = re.sub(r"^\[!\[.*$", "", text, flags=re.MULTILINE).strip()
    return re.sub(r"(?<!!)\[((?:`[^`]*`|[^\[\]])+)\]\([^)]+\)", r"\1", text)
