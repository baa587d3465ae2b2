"""`make run`: pages that need nothing from elsewhere, and failures that say where."""

import importlib.util
import json
import re
import sys
from html import unescape
from pathlib import Path
from urllib.parse import unquote

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


def test_kept_outputs_make_the_same_pages_and_nothing_runs(build, tmp_path, monkeypatch):
    write(tmp_path / "01_one.ipynb", new_code_cell("print('drawn in', __name__)"))
    run(build, monkeypatch, "--in-place")
    notebook = nbformat.read(tmp_path / "01_one.ipynb", as_version=4)
    notebook.cells[-1].outputs[0].text = "kept and not run"
    nbformat.write(notebook, tmp_path / "01_one.ipynb")
    run(build, monkeypatch, "--kept")
    site = tmp_path / "build" / "site"
    assert "kept and not run" in (site / "01_one.html").read_text()
    assert "ran in" not in (site / "index.html").read_text()
    with pytest.raises(SystemExit):
        run(build, monkeypatch, "--kept", "-p", "MODEL", "mine")


def targets(page):
    """List where a page leads, and from where it takes what it shows."""
    return re.findall(r'(?:href|src)="([^"]+)"', page.read_text())


def test_every_link_of_the_site_leads_somewhere(site):
    pages = sorted(site.rglob("*.html"))
    names = {
        page: {unescape(name) for name in re.findall(r'\bid="([^"]+)"', page.read_text())}
        for page in pages
    }
    internal, missing = 0, []
    for page in pages:
        for target in targets(page):
            if re.match(r"https?:|data:", target):
                continue
            internal += 1
            file, _, anchor = target.partition("#")
            there = (page.parent / file).resolve() if file else page
            if not there.exists() or (anchor and unquote(anchor) not in names[there]):
                missing.append(f"{page.relative_to(site)}: {target}")
    assert internal > 500
    assert not missing, "\n".join(missing)


def test_the_search_knows_lessons_glossary_and_reference(site):
    script = (site / "search-index.js").read_text()
    found = json.loads(script.removeprefix("window.searchIndex = ").rstrip().rstrip(";"))
    urls = {each["url"] for each in found}
    assert {"GLOSSARY.html#anisotropy", "api/embedkit.html#TextEncoder.encode"} <= urls
    assert any(url.startswith("02_sentiment.html#Pooling") for url in urls)
    assert all(each["title"] and each["text"] for each in found)
    titles = {each["title"] for each in found}
    assert "TextEncoder.encode" in titles and not any("<" in title for title in titles)


def test_the_reference_has_every_public_name(site):
    import embedkit

    reference = (site / "api" / "embedkit.html").read_text()
    for name in embedkit.__all__:
        assert f'id="{name}"' in reference or (site / "api" / "embedkit" / f"{name}.html").exists()
    assert "(batch, dim)" in reference and "<h6" not in reference
