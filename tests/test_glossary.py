"""The glossary: its entries, and that each lesson links a term where it first says it."""

import re
from pathlib import Path

import pytest

from kit.glossary import Term, links, prose, terms, unexplained

HOME = Path(__file__).parents[1] / "notebooks"
LESSONS = sorted(HOME.glob("[0-9]*.ipynb"))
TEXT = (HOME / "GLOSSARY.md").read_text(encoding="utf-8")


TERMS = terms(TEXT)


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
    linked = links(prose(path))
    assert {anchor for anchor, _ in linked} <= {term.anchor for term in TERMS}
    missing = unexplained(path, TERMS)
    assert not missing, "\n".join(["link these where they are first said:", *missing])


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.anchor)
def test_the_lessons_an_entry_names_link_it(term):
    for name in term.lessons:
        if (HOME / name).exists():
            assert term.anchor in dict(links(prose(HOME / name))), f"{name} never says {term.name}"
