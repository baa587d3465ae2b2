"""The glossary: its entries, and that each lesson links a term where it first says it."""

import re
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest

HOME = Path(__file__).parents[1] / "notebooks"
LESSONS = sorted(HOME.glob("[0-9]*.ipynb"))
TEXT = (HOME / "GLOSSARY.md").read_text(encoding="utf-8")


LESSON = re.compile(r"(?<=\]\()[\w-]+\.ipynb(?=\))|\b\d\d(?=, to come)")


class Term(NamedTuple):
    name: str
    forms: list[str]
    lessons: list[str]

    @property
    def anchor(self) -> str:
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


def blank(match: re.Match) -> str:
    return " " * len(match[0])


def terms() -> list[Term]:
    found = []
    for entry in re.split(r"^### ", TEXT, flags=re.MULTILINE)[1:]:
        name, _, rest = entry.partition("\n")
        also = re.search(r"^\*Also:\* (.+)\.$", rest, re.MULTILINE)
        forms = [name, *(also[1].split(", ") if also else [])]
        if name.endswith("y"):
            forms.append(name[:-1] + "ies")
        found.append(Term(name, forms, LESSON.findall(rest)))
    return found


TERMS = terms()


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


def test_entries_are_in_order_and_lead_somewhere():
    names = [term.name for term in TERMS]
    assert len(names) > 35
    assert names == sorted(set(names), key=str.lower)
    anchors = {term.anchor for term in TERMS}
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors
    for term in TERMS:
        assert term.lessons, f"{term.name}: name the lesson that shows it"


def test_a_mention_is_found_and_code_is_none():
    token = Term("token", ["token", "`[CLS]`"], [])
    assert token.mention("Tokens first") == 0
    assert token.mention("`tokens`, tokenizer, sub-token") is None
    assert token.mention("a `[CLS]`") == 2
    assert Term("entity", ["entity", "entities"], []).mention("two entities") == 4
    assert links("[`[CLS]`](GLOSSARY.md#cls) and [x](y.md)") == [("cls", 0)]


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_links_each_term_where_it_first_says_it(path):
    text = prose(path)
    linked = links(text)
    assert {anchor for anchor, _ in linked} <= {term.anchor for term in TERMS}
    plain = LINK.sub(blank, text)
    missing = []
    for term in TERMS:
        said = term.mention(plain)
        first = min((at for anchor, at in linked if anchor == term.anchor), default=len(text))
        if said is not None and first > said:
            here = " ".join(text[max(0, said - 30) : said + 50].split())
            missing.append(f"[{term.name}](GLOSSARY.md#{term.anchor}) at '…{here}…'")
    assert not missing, "\n".join(["link these where they are first said:", *missing])


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.anchor)
def test_the_lessons_an_entry_names_link_it(term):
    for name in term.lessons:
        if (HOME / name).exists():
            assert term.anchor in dict(links(prose(HOME / name))), f"{name} never says {term.name}"
