"""`make run`: pages that need nothing from elsewhere, and failures that say where."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

pytestmark = pytest.mark.slow  # lessons are executed, or all pages are made
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
    write(tmp_path / "02_other.ipynb")
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
    other = (site / "02_other.html").read_text()
    assert "Ran on this machine on" in page and "were kept with the lesson" not in page
    assert "were kept with the lesson" in other and "Ran on this machine" not in other
    assert 'rel="next" href="02_other.html"' in page and 'rel="prev" href="01_one.html"' in other
    said = capsys.readouterr().out
    assert (site / "index.html").as_uri() in said and re.search(r"01_one: \d+ s", said)


def test_the_site_can_be_read_before_anything_runs(build, tmp_path, monkeypatch):
    """A lesson reads its own page while it runs."""
    read = "from pathlib import Path\npage = Path('build/site/01_one.html').read_text()"
    look = f"{read}\nprint('was', 'kept with' in page)"
    write(tmp_path / "01_one.ipynb", new_code_cell(look))
    run(build, monkeypatch)
    page = (tmp_path / "build" / "site" / "01_one.html").read_text()
    assert "was True" in page and "kept with the lesson" not in page


def test_a_failing_cell_names_itself_and_the_others_still_run(build, tmp_path, monkeypatch):
    write(tmp_path / "01_bad.ipynb", new_code_cell("value = {}\nvalue['missing']"))
    write(tmp_path / "02_dies.ipynb", new_code_cell("import os\nos._exit(3)"))
    write(tmp_path / "03_good.ipynb")
    with pytest.raises(SystemExit) as stopped:
        run(build, monkeypatch)
    message = str(stopped.value)
    assert re.search(r"01_bad.ipynb, cell 4 \(value = {}\): KeyError: 'missing'", message)
    assert "02_dies.ipynb, cell 4 (import os): Kernel died" in message
    site = tmp_path / "build" / "site"
    assert "Ran on this machine" in (site / "03_good.html").read_text()
    bad = (site / "01_bad.html").read_text()
    assert "A run on this machine failed" in bad and "KeyError" in bad


def test_lessons_run_side_by_side_and_one_with_ray_alone(tmp_path, monkeypatch):
    """Two wait for each other, so they can only run together; the other sees that both ended."""
    from kit import execution

    monkeypatch.setattr(execution, "cores", lambda: 4)
    monkeypatch.setattr(execution, "LESSON_BYTES", 1)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    meet = (
        "import os, time\nfrom pathlib import Path\n"
        "Path(f'here_{MODEL}').touch()\nuntil = time.time() + 60\n"
        "while len(list(Path('.').glob('here_*'))) < 2: assert time.time() < until\n"
        "Path(f'threads_{MODEL}').write_text(os.environ['OMP_NUM_THREADS'])"
    )
    for name in ("01_one", "02_two"):
        write(tmp_path / f"{name}.ipynb", new_code_cell(f"MODEL = {name!r}\n{meet}"))
    alone = (
        '"""\nimport ray\n"""\nimport os\nfrom pathlib import Path\n'
        "assert len(list(Path('.').glob('threads_*'))) == 2\nos.environ['OMP_NUM_THREADS']"
    )
    write(tmp_path / "00_ray.ipynb", new_code_cell(alone))
    paths = sorted(tmp_path.glob("*.ipynb"))
    found = {each.name: each for each in execution.run_all(paths, {}, tmp_path / "executed")}
    assert not found["01_one"].failure and not found["02_two"].failure
    assert (tmp_path / "threads_01_one").read_text() == "2"
    assert "KeyError: 'OMP_NUM_THREADS'" in found["00_ray"].failure  # it has all threads


def test_what_a_lesson_prints_beside_its_cells_goes_to_its_log(build, tmp_path, monkeypatch, capfd):
    write(tmp_path / "01_one.ipynb", new_code_cell("import os\nos.system('echo noise >&2')"))
    run(build, monkeypatch)
    assert "noise" not in "".join(capfd.readouterr())
    assert "noise" in (tmp_path / "build" / "executed" / "01_one.log").read_text()


def test_a_map_that_a_lesson_saves_stands_in_its_page(build, tmp_path, monkeypatch):
    write(tmp_path / "01_one.ipynb")
    save = "from pathlib import Path\nPath('02_two_map.html').write_text('a map')"
    write(tmp_path / "02_two.ipynb", new_code_cell(save))
    run(build, monkeypatch)
    site = tmp_path / "build" / "site"
    assert (site / "02_two_map.html").read_text() == "a map"
    assert '<iframe src="02_two_map.html"' in (site / "02_two.html").read_text()
    assert "<iframe" not in (site / "01_one.html").read_text()
    assert not (tmp_path / "02_two_map.html").exists()  # nothing is left beside the lessons


@pytest.mark.fault("interruptions")
@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C cannot be sent to one process there")
def test_ctrl_c_stops_soon_and_leaves_no_kernel(tmp_path):
    wait = "import os, time\nfrom pathlib import Path\nPath('pid').write_text(str(os.getpid()))"
    write(tmp_path / "01_one.ipynb", new_code_cell(f"{wait}\ntime.sleep(300)"))
    code = (
        "import sys; from pathlib import Path; from kit.execution import run_all; "
        "list(run_all([Path(sys.argv[1])], {}, Path('executed')))"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "01_one.ipynb"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "notebooks")},
        stderr=subprocess.DEVNULL,
    )
    until = time.time() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.time() < until
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=20) != 0
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


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
    assert "ran here" not in (site / "index.html").read_text()
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
