"""The explorer in a JupyterLab in a browser that has no WebGL."""

import nbformat
import pytest
from lab import Lesson, jupyterlab
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import sync_playwright
from test_lessons_in_lab import BROWSER, pytestmark  # noqa: F401
from test_pages import barriers

CODE = """
import numpy as np
import embedkit as ek

points = np.random.default_rng(0).normal(size=(60, 2))
data = {"text": [f"text {row}" for row in range(60)], "label": list("abc") * 20}
explorer = ek.explore(points, data, points=points)
explorer
"""
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    cells = [new_code_cell(CODE.strip()), new_code_cell("")]
    notebook = new_notebook(cells=cells, metadata={"kernelspec": KERNEL})
    (home / "notebooks").mkdir()
    nbformat.write(notebook, home / "notebooks" / "a.ipynb")
    with jupyterlab(home / "notebooks", home, home / "log") as address:
        yield f"{address}/doc/tree/a.ipynb"


def test_the_map_is_a_still_picture_by_itself(home):
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-3d-apis"]
        browser = playwright.chromium.launch(executable_path=BROWSER, args=flags)
        lesson = Lesson(browser.new_page(viewport={"width": 1280, "height": 1500}), home)
        lesson.start()
        why = lesson.page.get_by_text("Where the browser has none")
        why.wait_for()
        image = lesson.page.locator(".jupyter-widgets img.widget-image")
        assert image.evaluate("image => image.complete && image.naturalWidth") > 500
        assert lesson.page.get_by_label("picture").is_checked()
        lesson.type("find", "text 7")
        assert "1 row" in lesson.wait_for_text("answer", "contain")
        assert lesson.run("print(*explorer.selection['text'])") == "text 7"
        browser.close()


def test_with_webgl_no_picture_comes_and_nobody_is_shut_out(home):
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader"]
        flags += ["--enable-unsafe-swiftshader"]
        browser = playwright.chromium.launch(executable_path=BROWSER, args=flags)
        lesson = Lesson(browser.new_page(viewport={"width": 1280, "height": 1500}), home)
        lesson.start()
        lesson.ready()
        lesson.page.wait_for_timeout(7000)
        assert lesson.run("print(explorer._scatter.dom_element_id != '')") == "True"
        assert not lesson.page.get_by_label("picture").is_checked()
        assert not barriers(lesson.page, ".jp-OutputArea-output .jupyter-widgets")
        browser.close()
