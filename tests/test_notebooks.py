"""The lessons: their form, and that they run, exercises and solutions included."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from nbformat.v4 import new_code_cell

from kit.execution import set_parameters

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.ipynb"))
TEMPLATE = ("01", "02", "03", "04")  # the lessons on the fourteen-section template
EXERCISES = {"00": 1}  # five minutes leave time for one; elsewhere there are three
# Where a rented machine is told by its cloud what it is. Ray asks there as it starts, even with its
# reports to its makers switched off, and no setting ends it; the lesson says so.
CLOUD = {"169.254.169.254", "metadata.google.internal"}
# What a reader in a hurry sets. With what stands in the lessons, `make run` executes them.
LIGHTER = {
    "01_image_classification": {"ROWS": 300},
    "02_sentiment": {"ROWS": 300},
    "03_sentiment_openai": {"ROWS": 200},
    "04_named_entities": {"ROWS": 400},
    "05_four_ways": {"ROWS": 400},
    "06_layers_and_pooling": {"ROWS": 400},
    "07_fine_tuning": {"ROWS": 300, "SEEDS": range(2)},
}


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook, tag=None):
    return [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and (tag is None or tag in cell.metadata.get("tags", []))
    ]


def solutions(notebook):
    """Take the code out of the solutions' <details>, in order."""
    text = [c.source for c in notebook.cells if "solution" in c.metadata.get("tags", [])]
    found = [re.search(r"<details>.*```python\n(.*?)```.*</details>", t, re.DOTALL) for t in text]
    assert all(found), "a solution holds no ```python block inside <details>"
    return [match.group(1) for match in found]


def printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


parametrize = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_the_lessons_are_there():
    assert {path.stem[:2] for path in NOTEBOOKS} >= {f"{number:02d}" for number in range(12)}


@parametrize
def test_lesson_is_committed_with_clean_outputs(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert path.stat().st_size < 1_000_000
    assert "widgets" not in notebook.metadata
    for cell in code_cells(notebook):
        assert cell.execution_count, f"not run: {cell.source[:60]}"
        for output in cell.outputs:
            assert output.output_type != "error", output.get("evalue")
            assert output.get("name") != "stderr", output.get("text")
            assert not any("widget" in kind for kind in output.get("data", {}))


@parametrize
def test_cells_are_short_and_figures_have_a_text(path):
    notebook, lines_in_all = read(path), 0
    for cell in code_cells(notebook):
        lines = [line for line in cell.source.split("\n") if line.strip()]
        assert len(lines) <= 12, cell.source[:60]
        lines_in_all += len(lines)
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            assert len(cell.metadata.get("alt", "")) > 20, cell.source[:60]
    assert len(code_cells(notebook, "thumbnail")) == 1
    assert len(code_cells(notebook, "parameters")) == 1
    assert lines_in_all <= (150 if path.stem[:2] in TEMPLATE else 220)
    assert len(notebook.cells) <= 75


@parametrize
def test_lesson_follows_the_template(path):
    notebook = read(path)
    first = notebook.cells[0].source
    assert "colab-badge" in first
    assert re.search(r"^# .+\n\n\*[^*]+\*$", first, re.MULTILINE), "title, then promise"
    headings = re.findall(
        r"^## (.+)$", "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown"), re.M
    )
    if path.stem[:2] in TEMPLATE:
        assert headings[2] == "The data"
    if path.stem[:2] not in EXERCISES:
        assert headings[-4] == "Exercises"
    assert headings[:2] == ["What you will learn", "Set-up"]
    assert headings[-3:] == ["Three questions", "What you have learned", "Troubleshooting"]
    assert all(
        "allclose" not in cell.source
        or "assert" in cell.source
        or "check" in cell.metadata.get("tags", [])
        for cell in code_cells(notebook)
    )
    assert "parameters" not in notebook.cells[0].metadata.get("tags", [])


@parametrize
def test_three_questions_hide_their_answers(path):
    (quiz,) = [c.source for c in read(path).cells if "quiz" in c.metadata.get("tags", [])]
    asked = re.findall(r"^\*\*(\d)\.\*\* .+\?", quiz, re.MULTILINE)
    hidden = re.findall(r"<summary>Answer</summary>\n\n(.+)\n\n</details>", quiz)
    assert asked == ["1", "2", "3"] and len(hidden) == 3


@parametrize
def test_drawn_figures_are_there_and_have_a_text(path):
    for text, to in re.findall(
        r"(?<!\[)!\[([^\]]*)\]\(([^)]+)\)", path.read_text(encoding="utf-8")
    ):
        assert len(text) > 20, to
        assert to.startswith("attachment:"), to  # test_kit holds them to the files


@parametrize
def test_exercises_come_with_a_check_and_a_solution(path):
    notebook = read(path)
    tags = [
        tag
        for cell in notebook.cells
        for tag in cell.metadata.get("tags", [])
        if tag in ("exercise", "check", "solution")
    ]
    assert tags == ["exercise", "check", "solution"] * EXERCISES.get(path.stem[:2], 3)


def with_solutions(path):
    """Read a lesson; put behind each solution its code, and the check once more."""
    notebook = read(path)
    answers, cells = iter(solutions(notebook)), []
    for cell in notebook.cells:
        cells.append(cell)
        if "check" in cell.metadata.get("tags", []):
            check = cell
        if "solution" in cell.metadata.get("tags", []):
            again = new_code_cell(check.source, metadata={"tags": ["check"]})
            cells += [new_code_cell(next(answers)), again]
    notebook.cells = cells
    return notebook


def run_closed(notebook, tried):
    """Execute a notebook without a network; the file `tried` names who asked for one."""
    nbclient.NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        resources={"metadata": {"path": NOTEBOOKS[0].parent}},
    ).execute(env=closed(tried))


@pytest.mark.slow
@pytest.mark.fault("lessons without a network")
@parametrize
def test_lesson_runs_and_its_checks_tell_wrong_from_right(path, tmp_path):
    """As it stands each check says Not yet; after the solution it says Right."""
    notebook, tried = with_solutions(path), tmp_path / "tried"
    set_parameters(notebook, LIGHTER.get(path.stem, {}))
    run_closed(notebook, tried)
    checks = code_cells(notebook, "check")
    for before, after in zip(checks[::2], checks[1::2], strict=True):
        assert "Not yet:" in printed(before) and "Right:" not in printed(before)
        assert "Right:" in printed(after) and "Not yet:" not in printed(after)
    asked = (
        {line.split()[-1] for line in tried.read_text().splitlines()} if tried.exists() else set()
    )
    assert asked <= (CLOUD if path.stem == "09_scaling_out" else set())


def closed(tried):
    """Make an environment in which processes talk to this machine alone, and tell what else."""
    # The figures are to go into the notebook. For the network, nothing but the sockets helps.
    left_out = {"MPLBACKEND", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"}
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    folder = str(Path(__file__).parent / "closed")
    return {**kept, "SOCKETS_TRIED": str(tried), "PYTHONPATH": folder}


def test_closed_sockets_are_closed(tmp_path):
    tried = tmp_path / "tried"
    code = (
        "import socket\n"
        "for host in ('127.0.0.1', '192.0.2.1'):\n"  # the latter is nobody's, by RFC 5737
        "    try: socket.create_connection((host, 9), timeout=1)\n"
        "    except OSError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=closed(tried)
    )
    assert "refused" in done.stdout and "lets nothing out" in done.stdout
    assert "192.0.2.1" in tried.read_text() and "127.0.0.1" not in tried.read_text()


@pytest.mark.slow
def test_two_variables_move_lesson_03_to_another_provider(tiny, monkeypatch):
    """A server that asks for a key takes the place of the one on this machine; no cell changes."""
    import embedkit as ek

    path = next(path for path in NOTEBOOKS if path.stem == "03_sentiment_openai")
    notebook = read(path)
    (parameters,) = code_cells(notebook, "parameters")
    parameters.source += f"\nROWS, API_MODEL = 60, {Path(tiny('bert')).name!r}"
    key = "a-key-that-no-output-shows"
    monkeypatch.delenv("MPLBACKEND", raising=False)
    with ek.serve(tiny("bert"), api_key=key) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        monkeypatch.setenv("OPENAI_API_KEY", key)
        nbclient.NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            resources={"metadata": {"path": path.parent}},
        ).execute()
    shown = nbformat.writes(notebook)
    assert "answers come from another provider" in shown
    assert "'train': (60, 32), 'test': (60, 32)" in shown  # the other server's vectors
    assert key not in shown


def test_lessons_lead_to_files_that_are_there():
    home = NOTEBOOKS[0].parent
    pages = [*NOTEBOOKS, home / "GLOSSARY.md"]
    text = {page: page.read_text(encoding="utf-8") for page in pages}
    links = {
        (page.name, to)
        for page in pages
        for to in re.findall(r"\]\(([\w-]+\.(?:ipynb|md))", text[page])
    }
    assert len(links) > 20
    assert not {(page, to) for page, to in links if not (home / to).exists()}
