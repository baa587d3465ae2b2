"""Gather the exercises of all lessons in one notebook, with their checks and a score.

Each lesson's code up to its exercises stands in one cell, so that the notebook needs no other file.
"""

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from kit.lesson import Lesson, plain

OPENING = """# Test yourself

*The exercises of all lessons on one sheet, without the answers.*

Each lesson begins with a folded cell that prepares what its exercises need. It runs the lesson's
code, which takes a minute or two. Then come the exercises, each with its check. The last cell
counts. Lessons give the same names to their own things: to go back to one, prepare it again."""

# The names are none that a lesson uses.
SCORE = """from IPython.core.magic import register_cell_magic
from IPython.utils.capture import capture_output

SCORE_SHEET = dict.fromkeys(EXERCISE_NAMES, False)


@register_cell_magic
def check(name, cell):
    '''Run a check, and note whether it says Right.'''
    with capture_output() as said:
        get_ipython().run_cell(cell)
    said.show()
    SCORE_SHEET[name] = "Right:" in said.stdout"""

COUNT = """print(sum(SCORE_SHEET.values()), "of", len(SCORE_SHEET), "right")
still_open = [name for name, is_right in SCORE_SHEET.items() if not is_right]
print("still open:", ", ".join(still_open) or "none")"""


def gather(lessons: list[Lesson]) -> NotebookNode:
    """Make one notebook of the exercises of all lessons."""
    cells, names = [], []
    for lesson in lessons:
        number, count = lesson.name[:2], 0
        before, during = split(lesson.notebook)
        cells += [new_markdown_cell(f"# {number} {lesson.title}"), prepare(before)]
        for cell in during:
            tags = cell.metadata.get("tags", [])
            if "exercise" in tags:
                count += 1
                names.append(f"{number}.{count}")
            if cell.cell_type == "code":
                asks = f"%%check {names[-1]}\n" if "check" in tags else ""
                cells.append(new_code_cell(asks + cell.source))
            elif "solution" not in tags:
                text = plain(cell.source)
                cells.append(new_markdown_cell(text[max(text.find("### "), 0) :]))
    opening = [new_markdown_cell(OPENING), new_code_cell(f"EXERCISE_NAMES = {names}\n{SCORE}")]
    closing = [new_markdown_cell("# Score"), new_code_cell(COUNT)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    sheet = new_notebook(cells=[*opening, *cells, *closing], metadata={"kernelspec": kernel})
    for position, cell in enumerate(sheet.cells):
        cell.id = f"cell-{position}"  # the same sheet each time
    nbformat.validate(sheet)
    return sheet


def split(notebook: NotebookNode) -> tuple[list[NotebookNode], list[NotebookNode]]:
    """Cut a lesson: the code before its exercises, and the cells of the exercises."""
    cells = notebook.cells
    tagged = [i for i, cell in enumerate(cells) if "exercise" in cell.metadata.get("tags", [])]
    first = tagged[0] - 1  # the text that sets the task
    after = (i for i, cell in enumerate(cells) if i > tagged[-1] and cell.source.startswith("## "))
    return [cell for cell in cells[:first] if cell.cell_type == "code"], cells[first : next(after)]


def prepare(code: list[NotebookNode]) -> NotebookNode:
    """Make one folded cell of a lesson's code, which says nothing."""
    source = "\n\n".join(["%%capture", *(cell.source for cell in code)])
    return new_code_cell(source, metadata={"jupyter": {"source_hidden": True}})
