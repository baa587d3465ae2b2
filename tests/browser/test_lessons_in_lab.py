"""The lessons' explorers, in a real JupyterLab, in a real browser, touched by a mouse.

The three lessons compute side by side while the first is being read. With SCREENSHOTS set to a
folder, each test keeps a picture of its explorer there.
"""

import json
import os
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
from lab import Lesson, explorer_part, jupyterlab
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
NAMES = {
    "images": "01_image_classification",
    "texts": "02_sentiment",
    "words": "04_named_entities",
}
FEW = 150  # rows of each split: the explorer is tried here, and pictures of it show all
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
# WebGL without a graphics card; without a sandbox, as a container runs as root.
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]

pytestmark = [
    pytest.mark.slow,
    # On the machines that decide over a change a missing browser is a fault, not a reason.
    pytest.mark.skipif(
        BROWSER is None and not os.environ.get("CI"), reason="needs Chromium, which is not here"
    ),
]


@pytest.fixture(scope="module")
def lessons(tmp_path_factory):
    """Give the three lessons, opened and computing, and what went wrong in the browser."""
    folder, home = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("home")
    for name in NAMES.values():
        rows = None if os.environ.get("SCREENSHOTS") else FEW
        part = explorer_part(ROOT / "notebooks" / f"{name}.ipynb", rows)
        nbformat.write(part, folder / f"{name}.ipynb")
    faults = []
    with jupyterlab(folder, home, home / "log") as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        local = re.compile(rf"({re.escape(address)}|ws{re.escape(address[4:])})(/|$)|data:|blob:")

        def watch_request(request):
            if not local.match(request.url):
                faults.append(f"left the loopback: {request.url}")

        def watch_page(page):
            page.on("pageerror", watch_error)
            page.on("websocket", watch_request)

        def watch_error(error):
            # The map's own word for two draws at once, on a machine that draws slowly.
            if "Ignoring draw call" not in str(error):
                faults.append(f"page error: {error}")

        def watch_console(message):
            if message.type == "error":
                faults.append(f"console: {message.text}")

        opened = {}
        for kind, name in NAMES.items():
            # A context each: in one, pages share JupyterLab's workspace and slow each other.
            context = browser.new_context(viewport={"width": 1250, "height": 1900})
            context.on("request", watch_request)
            context.on("page", watch_page)
            context.on("console", watch_console)
            opened[kind] = Lesson(context.new_page(), f"{address}/doc/tree/{name}.ipynb")
        for lesson in opened.values():
            lesson.start()
        yield opened, faults
        browser.close()


@pytest.fixture(autouse=True)
def no_faults(lessons):
    """Hold every test to it: no error in the console, no request off the loopback."""
    yield
    assert lessons[1] == []


def photograph(lesson, number):
    """Keep a picture of the explorer, where asked to."""
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        lesson.drawn()
        explorer = lesson.page.locator(".jp-OutputArea-output .jupyter-widgets").first
        explorer.screenshot(path=Path(folder) / f"explorer_{number}.png")


def hover_a_lonely_point(lesson):
    """Point at the dot that has most room about it; give its number and what is shown."""
    points = np.array(lesson.points())
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    loneliest = int(np.argmax(np.sort(apart, axis=1)[:, 1]))
    return loneliest, lesson.hover(*points[loneliest], re.compile(rf"row {loneliest}$"))


def lasso_one_side(lesson):
    """Draw round all dots right of the widest gap; give which these are."""
    points = np.array(lesson.points())
    x = np.sort(points[:, 0])
    widest = int(np.argmax(np.where(np.abs(x[:-1]) < 0.6, np.diff(x), 0)))
    edge = (x[widest] + x[widest + 1]) / 2
    before = lesson.text("selection")
    lesson.lasso([(edge, -0.99), (0.99, -0.99), (0.99, 0.99), (edge, 0.99)])
    lesson.wait_for_other("selection", before)
    return np.flatnonzero(points[:, 0] > edge).tolist()


def test_images(lessons):
    lesson = lessons[0]["images"]
    lesson.ready()
    start = lesson.drawn()

    row, preview = hover_a_lonely_point(lesson)
    label = lesson.run(f"print(names[test[{row}]['label']])")
    assert f"label: {label}" in preview
    image = lesson.page.locator(".ek-hover img")
    assert image.evaluate("image => image.complete && image.naturalWidth") == 64

    inside = lasso_one_side(lesson)
    assert 0 < len(inside) < len(lesson.points())
    text = lesson.text("selection")
    assert f"{len(inside)} selected" in text and "Nearest in the full space" in text
    shown = lesson.page.locator(".ek-selection img").count()
    assert shown == min(len(inside), 24) + 8
    assert json.loads(lesson.run("print(explorer.selection.index.tolist())")) == inside
    assert lesson.drawn() != start

    before, trust = lesson.points(), lesson.text("trust")
    lesson.choose("vectors", "raw pixels")
    lesson.wait_for_text("status", "Computing: UMAP, raw pixels")
    lesson.wait_for_other("trust", trust)
    assert np.abs(np.array(lesson.points()) - before).max() > 0.1
    assert json.loads(lesson.run("print(explorer.selection.index.tolist())")) == inside
    lesson.choose("vectors", "mean")
    lesson.wait_for_text("trust", trust.split("\n")[1])

    lesson.type("find", "4")
    lesson.wait_for_text("answer", "rows contain “4”")
    assert set(lesson.run("print(*explorer.selection['label'])").split()) == {"4"}
    photograph(lesson, "01")

    found = lesson.text("answer")
    plain = lesson.drawn()
    lesson.page.get_by_label("names").check()
    lesson.page.get_by_label("density").check()
    lesson.wait_for_text("clusters", "clusters of this map, not of the vectors")
    lesson.page.wait_for_timeout(1000)
    assert lesson.drawn() != plain
    assert lesson.text("answer") == found
    lesson.page.get_by_role("button", name="undo").click()
    lesson.wait_for_text("selection", f"{len(inside)} selected")
    lesson.choose("compare", "raw pixels")
    lesson.wait_for_text("legend", "both spaces share")
    assert lesson.page.locator(".jp-OutputArea canvas:visible").count() >= 2 * 2
    lesson.wait_for_text("selection", "Fewest neighbours shared first")
    photograph(lesson, "01_compare")
    saved = lesson.run("print(explorer.save('map.html'))")
    assert saved == "map.html"


def test_texts(lessons):
    lesson = lessons[0]["texts"]
    lesson.ready()
    start, trust = lesson.drawn(), lesson.text("trust")

    assert "positive" in lesson.text("legend")
    lesson.choose("color", "product")
    lesson.wait_for_text("legend", "kettle")
    assert "positive" not in lesson.text("legend")
    assert lesson.wait_for_other("trust", trust) != trust
    recolored = lesson.drawn()
    assert recolored != start

    before, trust = np.array(lesson.points()), lesson.text("trust")
    lesson.page.get_by_label("settings of UMAP").check()
    lesson.type("n_neighbors", "3")
    lesson.wait_for_text("status", "Computing")
    trust = lesson.wait_for_other("trust", trust)
    lesson.page.wait_for_timeout(1600)  # the points travel
    after = np.array(lesson.points())
    assert np.abs(after - before).max() > 0.1
    assert lesson.drawn() != recolored

    lesson.choose("vectors", "tuned [CLS]")
    lesson.wait_for_other("trust", trust)
    assert np.abs(np.array(lesson.points()) - after).max() > 0.1

    row, preview = hover_a_lonely_point(lesson)
    words = lesson.run(f"print(test[{row}]['text'])").split()
    assert " ".join(words)[:200] in " ".join(preview.split())

    inside = lasso_one_side(lesson)
    assert json.loads(lesson.run("print(explorer.selection.index.tolist())")) == inside

    lesson.choose("vectors", "MiniLM mean")
    lesson.type("n_neighbors", "15")
    lesson.type("find", r"\bnot\b")
    none = lesson.wait_for_text("answer", "0 rows contain")
    lesson.page.get_by_label("regular expression").check()
    found = re.match(r"\d+", lesson.wait_for_other("answer", none))
    texts = lesson.run("print(*explorer.selection['text'].str.lower(), sep='\\n')").split("\n")
    assert found and len(texts) == int(found.group()) > 3
    assert all(re.search(r"\bnot\b", text) for text in texts)
    photograph(lesson, "02")


def test_words(lessons):
    lesson = lessons[0]["words"]
    lesson.ready()
    assert all(kind in lesson.text("legend") for kind in ("PER", "LOC", "ORG", "MISC"))

    row, preview = hover_a_lonely_point(lesson)
    mark = lesson.page.locator(".ek-hover mark")
    assert mark.inner_text() == lesson.run(f"print(mentions['train'].word[{row}])")
    assert len(preview) > len(mark.inner_text())

    trust, before = lesson.text("trust"), np.array(lesson.points())
    lesson.choose("vectors", "tuned")
    trust = lesson.wait_for_other("trust", trust)
    assert np.abs(np.array(lesson.points()) - before).max() > 0.1

    lesson.type("find", "Jordan")
    lesson.wait_for_text("answer", "rows contain “Jordan”")
    found = set(lesson.run("print(*explorer.selection['word'], sep=',')").split(","))
    assert all("jordan" in name.lower() for name in found)
    marks = lesson.page.locator(".ek-selection mark").all_inner_texts()
    assert marks and "Jordan" in marks[0]
    photograph(lesson, "04")

    lesson.choose("vectors", "name alone")
    lesson.wait_for_other("trust", trust)

    lesson.choose("map", "PCA")
    lesson.wait_for_other("trust", lesson.text("trust"))
    inside = lasso_one_side(lesson)
    assert json.loads(lesson.run("print(explorer.selection.index.tolist())")) == inside
