"""`make run`: pages that need nothing from elsewhere, and failures that say where."""

import importlib.util
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).parents[1]

FIRST = """[![Open in Colab](https://example.org/badge.svg)](https://example.org)

# A lesson

*It promises <little>.*"""
DRAW = "from matplotlib import pyplot as plt\nplt.plot([1, 2]);"


@pytest.fixture
def build(tmp_path, monkeypatch):
    """The build script, at work in an empty folder."""
    spec = importlib.util.spec_from_file_location("build", ROOT / "notebooks" / "build.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "build", module)
    spec.loader.exec_module(module)
    monkeypatch.delenv("MPLBACKEND", raising=False)
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "BUILD", tmp_path / "build")
    (tmp_path / "GLOSSARY.md").write_text("# Glossary\n\n### CLS\n\nA token. [01](01_one.ipynb)\n")
    return module


def write(path, *extra):
    figure = new_code_cell(DRAW, metadata={"tags": ["thumbnail"], "alt": "A line that goes up."})
    parameters = new_code_cell("MODEL = 'default'", metadata={"tags": ["parameters"]})
    cells = [new_markdown_cell(FIRST), parameters, figure, *extra]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


def run(build, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["build.py", *arguments])
    build.main()


def test_pages_stand_alone_and_the_index_leads_to_them(build, tmp_path, monkeypatch, capsys):
    shown = new_code_cell("print('model:', MODEL, ROWS + 1)")
    link = new_markdown_cell("See [another](02_other.ipynb) and [`[CLS]`](GLOSSARY.md#cls).")
    write(tmp_path / "01_one.ipynb", shown, link)
    before = (tmp_path / "01_one.ipynb").read_bytes()
    run(build, monkeypatch, "--only", "01_one", "-p", "MODEL", "mine", "-p", "ROWS", "6")
    site = tmp_path / "build" / "site"
    page, index = (site / "01_one.html").read_text(), (site / "index.html").read_text()
    assert "model: mine 7" in page
    assert 'alt="A line that goes up."' in page and 'href="02_other.html"' in page
    glossary = (site / "GLOSSARY.html").read_text()
    assert 'href="GLOSSARY.html#cls"' in page and 'href="GLOSSARY.html"' in index
    assert 'id="cls"' in glossary and 'href="01_one.html"' in glossary
    assert not re.search(r'(src|href)="https?://(?!example\.org")', page + index + glossary)
    assert not re.search(r"<(script|link|iframe)", page + index)
    assert 'href="01_one.html"' in index and "A lesson" in index and "&lt;little&gt;" in index
    assert (site / "01_one.png").stat().st_size > 1000
    assert (tmp_path / "01_one.ipynb").read_bytes() == before
    assert re.search(r"01_one … \d+ s", capsys.readouterr().out)


def test_a_failing_cell_names_itself_and_the_others_still_run(build, tmp_path, monkeypatch):
    write(tmp_path / "01_bad.ipynb", new_code_cell("value = {}\nvalue['missing']"))
    write(tmp_path / "02_good.ipynb")
    with pytest.raises(SystemExit) as stopped:
        run(build, monkeypatch)
    message = str(stopped.value)
    assert "01_bad.ipynb" in message and "value = {}" in message
    assert "KeyError" in message and "missing" in message
    assert (tmp_path / "build" / "site" / "02_good.html").exists()


def test_in_place_keeps_outputs_and_drops_what_differs_by_machine(build, tmp_path, monkeypatch):
    write(tmp_path / "01_one.ipynb")
    run(build, monkeypatch, "--in-place")
    notebook = nbformat.read(tmp_path / "01_one.ipynb", as_version=4)
    assert "image/png" in notebook.cells[2].outputs[-1].data
    assert notebook.cells[2].metadata == {"tags": ["thumbnail"], "alt": "A line that goes up."}
    assert set(notebook.metadata) == {"kernelspec"}


def test_an_unknown_lesson_lists_those_there_are(build, tmp_path, monkeypatch, capsys):
    write(tmp_path / "01_one.ipynb")
    with pytest.raises(SystemExit):
        run(build, monkeypatch, "--only", "07_none")
    assert "choose from 01_one" in capsys.readouterr().err
