"""Read the glossary, and find what a lesson says before it explains it."""

import re
from pathlib import Path
from typing import NamedTuple

import nbformat

LESSON = re.compile(r"(?<=\]\()[\w-]+\.ipynb(?=\))|\b\d\d(?=, to come)")


class Term(NamedTuple):
    """An entry: its name, the forms it is found under, and the lessons that show it."""

    name: str
    forms: list[str]
    lessons: list[str]

    @property
    def anchor(self) -> str:
        """Where on the page it stands."""
        return slug(self.name)

    def mention(self, text: str) -> int | None:
        """Find where a text first says the term; a form in backticks has to stand in backticks."""
        words = [form for form in self.forms if not form.startswith("`")]
        code = [re.escape(form) for form in self.forms if form.startswith("`")]
        ending = r"(?:s|es)?" if not self.name.endswith("y") else ""
        pattern = "|".join(
            [rf"(?<![\w`-])(?:{'|'.join(map(re.escape, words))}){ending}(?![\w-])", *code]
        )
        others = re.sub(r"`[^`\n]*`", lambda m: m[0] if m[0] in self.forms else blank(m), text)
        found = re.search(pattern, others, re.IGNORECASE)
        return found.start() if found else None


def slug(heading: str) -> str:
    """Make the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def blank(match: re.Match[str]) -> str:
    """Put spaces in place of a match, so that what follows stays where it is."""
    return " " * len(match[0])


def terms(glossary: str) -> list[Term]:
    """Read the entries of the glossary."""
    found = []
    for entry in re.split(r"^### ", glossary, flags=re.MULTILINE)[1:]:
        name, _, rest = entry.partition("\n")
        also = re.search(r"^\*Also:\* (.+)\.$", rest, re.MULTILINE)
        forms = [name, *(also[1].split(", ") if also else [])]
        if name.endswith("y"):
            forms.append(name[:-1] + "ies")
        found.append(Term(name, forms, LESSON.findall(rest)))
    return found


def prose(path: Path) -> str:
    """Join a lesson's text without title, headings and code; places stay comparable."""
    cells = nbformat.read(path, as_version=4).cells[1:]
    text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    text = re.sub(r"^```.*?^```", blank, text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^#+ .*$", blank, text, flags=re.MULTILINE)


LINK = re.compile(r"\[((?:`[^`]*`|[^\[\]])*)\]\(([^)]+)\)")


def links(text: str) -> list[tuple[str, int]]:
    """List the anchors of the glossary that a text links, and where."""
    found = [(link[2], link.start()) for link in LINK.finditer(text)]
    return [(to.partition("#")[2], at) for to, at in found if to.startswith("GLOSSARY.md#")]


def unexplained(path: Path, entries: list[Term]) -> list[str]:
    """List the terms that a lesson says before it has linked them, each with its place."""
    text = prose(path)
    linked, plain = links(text), LINK.sub(blank, text)
    missing = []
    for term in entries:
        said = term.mention(plain)
        first = min((at for anchor, at in linked if anchor == term.anchor), default=len(text))
        if said is not None and first > said:
            here = " ".join(text[max(0, said - 30) : said + 50].split())
            missing.append(f"[{term.name}](GLOSSARY.md#{term.anchor}) at '…{here}…'")
    return missing
