"""What a class needs beside the lessons: slides, one sheet of exercises, figures, measures."""

import base64
import re
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from kit.exercises import gather
from kit.lesson import Lesson
from kit.slides import deck, gist

ROOT = Path(__file__).parents[1]
FIGURES = sorted((ROOT / "notebooks" / "figures").glob("*.png"))


def lesson(*cells, title="A lesson"):
    first = new_markdown_cell(f"[![A badge](https://x.org/b.svg)](https://x.org)\n\n# {title}")
    return Lesson("02_sentiment", new_notebook(cells=[first, *cells]))


def test_a_slide_shows_the_question_and_keeps_the_text_for_the_speaker():
    text = "A model reads.\n\n## The map\n\nLong prose.\n\nSo then. **Predict**: which *one*?"
    slide = {"slideshow": {"slide_type": "slide"}}
    shown = deck(lesson(new_markdown_cell(text, metadata=slide)))
    before, notes = shown.split('<aside class="notes">')
    assert "The map" in before and "which <em>one</em>?" in before
    assert "Long prose" not in before and "So then" not in before
    assert "Long prose" in notes and "A model reads" in notes
    numbered = deck(lesson(*[new_markdown_cell("## 2. Search\n\nIt finds.", metadata=slide)] * 2))
    assert "<h2>2. Search</h2>" in numbered


def test_gist_prefers_questions_then_lists_then_the_first_paragraph():
    assert gist("One.\n\nTwo.", "above") == ("above", "One.")
    assert gist("One.\n\n- [a](b.md)\n- c", "above") == ("above", "- a\n- c")
    assert gist("One.\n\n## New\n\n- a\n\n**Predict**: b?", "above") == ("New", "**Predict**: b?")


@pytest.mark.slow
def test_of_code_a_slide_shows_the_one_line_and_a_fragment_joins_it():
    code = new_code_cell("first = 1\nsecond = first + 1\nprint(second)")
    code.outputs = [nbformat.v4.new_output("stream", name="stdout", text="two\n")]
    code.metadata["slideshow"] = {"slide_type": "fragment", "line": "first + 1"}
    asked = new_markdown_cell("**Predict**: what?", metadata={"slideshow": {"slide_type": "slide"}})
    shown = deck(lesson(asked, code))
    assert shown.count("<section>") == 1
    assert re.search(r'class="fragment">.*second.*two', shown, re.DOTALL)
    assert "print" not in shown.split("<script")[0]
    code.metadata["slideshow"]["line"] = "first"
    with pytest.raises(ValueError, match="2 lines, not one, contain 'first'"):
        deck(lesson(asked, code))


def exercise(tag, source):
    return new_code_cell(source, metadata={"tags": [tag]})


@pytest.mark.slow
def test_the_sheet_prepares_hides_answers_and_counts(tmp_path):
    """Two lessons that use one name for two things; one exercise of each is solved."""
    cells = [
        new_code_cell("given = 2\nprint('noise')"),
        new_markdown_cell("Closing words.\n\n## Exercises\n\n### 1. Double (easy)\n\nDouble it."),
        exercise("exercise", "answer = None"),
        exercise("check", "print('Right: yes' if answer == 2 * given else 'Not yet: no')"),
        new_markdown_cell("<details>4</details>", metadata={"tags": ["solution"]}),
        new_markdown_cell("## What you have learned\n\n1. Much."),
        new_code_cell("raise SystemExit"),
    ]
    first, second = lesson(*cells), lesson(*cells)
    second.name = "03_other"
    second.notebook = nbformat.from_dict({**second.notebook})
    second.notebook.cells[1] = new_code_cell("given, right = 5, None\nprint('noise')")
    sheet = gather([first, second])
    text = nbformat.writes(sheet)
    assert "Closing words" not in text and "<details>" not in text and "Much" not in text
    solved = [cell for cell in sheet.cells if cell.source == "answer = None"]
    solved[0].source = "answer = 4"
    folded = [cell for cell in sheet.cells if cell.source.startswith("%%capture")]
    assert all(cell.metadata.jupyter.source_hidden for cell in folded)
    nbclient.NotebookClient(
        sheet, kernel_name="python3", timeout=60, resources={"metadata": {"path": tmp_path}}
    ).execute()
    printed = [
        "".join(output.get("text", "") for output in cell.outputs)
        for cell in sheet.cells
        if cell.cell_type == "code"
    ]
    assert printed[-1] == "1 of 2 right\nstill open: 03.1\n"
    assert "Right: yes\n" in printed and "Not yet: no\n" in printed
    assert "noise" not in "".join(printed)


def test_the_sheet_has_every_exercise_of_every_lesson(lessons):
    sheet = gather(lessons)
    exercises = sum(
        "exercise" in cell.metadata.get("tags", [])
        for each in lessons
        for cell in each.notebook.cells
    )
    checks = [cell.source for cell in sheet.cells if cell.source.startswith("%%check ")]
    names = [check.split("\n")[0].removeprefix("%%check ") for check in checks]
    assert len(checks) == len(set(names)) == exercises > 20
    assert str(names) in sheet.cells[1].source
    used = "\n".join(cell.source for each in lessons for cell in each.notebook.cells)
    assert "SCORE_SHEET" not in used and "EXERCISE_NAMES" not in used


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.stem)
def test_a_drawn_figure_is_drawn_and_used(path, lessons):
    assert f"def {path.stem}()" in (ROOT / "notebooks/kit/figures.py").read_text(encoding="utf-8")
    cells = [cell for each in lessons for cell in each.notebook.cells]
    assert any(path.name in cell.get("attachments", {}) for cell in cells)


def test_lessons_carry_their_pictures_which_are_those_in_the_folders(lessons):
    """Colab opens a notebook alone: a picture in a folder beside it would be missing there."""
    seen = 0
    for each in lessons:
        for cell in each.notebook.cells:
            pictures = re.findall(r"(?<!\[)!\[[^\]]*\]\(([^)]+)\)", cell.source)
            assert all(to.startswith("attachment:") for to in pictures), f"{each.name}: {pictures}"
            for name, kinds in cell.get("attachments", {}).items():
                (file,) = (ROOT / "notebooks").glob(f"*s/{name}")
                assert base64.b64decode(kinds["image/png"]) == file.read_bytes(), name
                seen += 1
    assert seen >= len(FIGURES) + 3  # the drawn ones, and the explorer of three lessons


def test_a_slide_shows_an_attached_picture():
    slide = {"slideshow": {"slide_type": "slide"}}
    cell = new_markdown_cell("## Look\n\n![A line.](attachment:a.png)", metadata=slide)
    cell["attachments"] = {"a.png": {"image/png": "QUJD"}}
    found = deck(lesson(cell))
    assert 'src="data:image/png;base64,QUJD"' in found and "attachment:" not in found


@pytest.mark.slow
def test_measures_say_one_row_a_lesson_and_no_term_unexplained(lessons):
    shown = subprocess.run(
        [sys.executable, ROOT / "notebooks" / "measures.py"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "words" in shown and "longest cell" in shown
    rows = [line.split() for line in shown.strip().split("\n")[1:]]
    assert [row[0] for row in rows] == [each.name for each in lessons]
    assert all(int(row[1]) > 500 and int(row[3]) <= 12 and row[-1] == "0" for row in rows)


def test_the_syllabus_names_every_lesson_and_exercise(lessons):
    text = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    for each in lessons:
        assert f"({each.name}.ipynb)" in text
        for number in (1, 2, 3):
            assert f"| {each.name[:2]}.{number} |" in text or each.name.startswith("00")
