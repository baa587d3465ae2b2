"""Saved maps in a real browser, opened as files: touched by a mouse, with the network watched.

With SCREENSHOTS set to a folder, pictures of them are kept there.
"""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_pages import barriers

import embedkit as ek
from embedkit import evaluate

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
NASTY = (
    "</script><script>document.title='x'</script><img src=x onerror=\"document.title='x'\"> {{1}}"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None and "CI" not in os.environ, reason="needs Chromium; CI has to have it"
    ),
]


@pytest.fixture(scope="module")
def launch():
    """Start a browser, with more flags."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield lambda *flags: playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", *flags]
        )


@pytest.fixture(scope="module")
def browser(launch):
    opened = launch("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
    yield opened
    opened.close()


class Map:
    """A saved map in the browser."""

    lassoing = False

    def __init__(self, browser, path, **settings):
        settings = {"viewport": {"width": 1280, "height": 1000}, **settings}
        self.page, self.faults = browser.new_page(**settings), []
        self.page.on("request", self._watch)
        self.page.on("pageerror", lambda error: self.faults.append(f"page error: {error}"))
        self.page.on("console", lambda m: self.faults.append(m.text) if m.type == "error" else None)
        self.page.goto(Path(path).as_uri())
        self.page.wait_for_selector("html[data-ready]", timeout=120_000)
        self.page.wait_for_function("Bokeh.index.roots[0].is_idle", timeout=120_000)

    def _watch(self, request):
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.faults.append(f"left the machine: {request.url}")

    def at(self, point):
        """Say where on the page a point is."""
        return self.page.evaluate(
            """(point) => {
                const view = Bokeh.index.roots[0], data = Bokeh.documents[0]
                    .get_model_by_name("points").data;
                const box = view.canvas_view.el.getBoundingClientRect();
                return [box.x + view.frame.x_scale.compute(data.x[point]),
                        box.y + view.frame.y_scale.compute(data.y[point])];
            }""",
            point,
        )

    def drawn(self):
        self.page.mouse.move(2, 2)
        before, now = b"", self.page.locator("#map").screenshot()
        while now != before:
            self.page.wait_for_timeout(300)
            before, now = now, self.page.locator("#map").screenshot()
        return now

    def hover(self, point, words):
        """Point at a dot until the tip says what is awaited."""
        tip = self.page.locator(".bk-tooltip-content").filter(has_text=words)
        for _ in range(40):
            x, y = self.at(point)
            self.page.mouse.move(x - 5, y - 5)
            self.page.mouse.move(x, y, steps=4)
            self.page.wait_for_timeout(250)
            if tip.count():
                return tip
        raise AssertionError(f"no tip says {words!r}")

    def lasso(self, corners):
        """Draw round dots until some are selected: a busy machine loses a move of the mouse."""
        if not self.lassoing:  # a second click would put it away
            self.page.locator('.bk-OnOffButton[title^="Lasso"]').click()
            self.lassoing = True
        box = self.page.locator("#map").bounding_box()
        pixels = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
        for _ in range(5):
            self.page.mouse.move(*pixels[0])
            self.page.mouse.down()
            for pixel in pixels[1:]:
                self.page.mouse.move(*pixel, steps=4)
            self.page.mouse.up()
            for _ in range(20):
                self.page.wait_for_timeout(250)
                if self.selected():
                    return
        raise AssertionError("nothing was selected")

    def selected(self):
        return self.page.evaluate(
            "[...Bokeh.documents[0].get_model_by_name('points').selected.indices]"
        )

    def text(self, place):
        return self.page.locator(f"#{place}").inner_text()

    def barriers(self):
        self.page.mouse.move(2, 2)  # no tip is open
        self.page.wait_for_timeout(300)
        return barriers(self.page)

    def keep(self, name):
        folder = os.environ.get("SCREENSHOTS")
        if folder:
            self.page.screenshot(path=Path(folder) / f"saved_{name}.png", full_page=True)


def loneliest(points):
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    return int(np.argmax(np.sort(apart, axis=1)[:, 1]))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    data = ek.load_data("bundled/digits", split="test").select(range(200))
    vectors = ek.ImageEncoder("bundled/vit-glyphs").encode(data["image"])
    points = ek.project(vectors)
    path = tmp_path_factory.mktemp("maps") / "digits.html"
    ek.save_map(path, points, data, vectors=vectors, title="Digits", caption="By a small ViT.")
    return path, data, vectors, points


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    data = ek.load_data("bundled/reviews", split="test").select(range(240))
    encoder = ek.TextEncoder("bundled/all-MiniLM-L6-v2", pooling="mean")
    vectors = encoder.encode(data["text"])
    points = ek.project(vectors)
    path = tmp_path_factory.mktemp("maps") / "reviews.html"
    ek.save_map(path, points, data, vectors=vectors, title="Reviews")
    return path, data, vectors, points


def touch_everything(saved, data, vectors, points):
    """Hover, search, color, lasso, click, and hide: what every map has to do."""
    lonely = loneliest(points)
    saved.hover(lonely, f"row {lonely}")
    saved.page.mouse.click(*saved.at(lonely))
    saved.page.wait_for_function("document.getElementById('neighbours').innerText")
    assert saved.selected() == [lonely]
    rows, far = evaluate.nearest(vectors, k=8)
    cells = saved.page.locator("#neighbours tbody tr").all()
    assert [each.locator("button").inner_text() for each in cells] == list(map(str, rows[lonely]))
    assert cells[0].locator("td").first.inner_text() == f"{far[lonely, 0]:.2f}"
    rings = saved.page.evaluate("[...Bokeh.documents[0].get_model_by_name('rings').data.x]")
    np.testing.assert_allclose(rings, points[rows[lonely], 0], atol=1e-5)
    saved.keep(f"{data.features['label'].names[0]}_clicked")
    assert saved.barriers() == []

    saved.page.get_by_role("button", name="Clear the selection").click()
    assert saved.selected() == [] and "Click a point" in saved.text("selection")
    saved.lasso([(0.02, 0.02), (0.5, 0.02), (0.5, 0.98), (0.02, 0.98), (0.02, 0.02)])
    inside = saved.selected()
    x = np.array([saved.at(point)[0] for point in range(len(points))])
    box = saved.page.locator("#map").bounding_box()
    assert sorted(inside) == np.flatnonzero(x < box["x"] + box["width"] / 2).tolist()
    assert f"{len(inside)} selected" in saved.text("selection")
    assert saved.page.locator("#selection tbody tr").count() == min(len(inside), 100)

    names = data.features["label"].names
    saved.page.get_by_role("button", name="Clear the selection").click()
    before = saved.drawn()
    first = saved.page.locator("#legend button").first
    count = sum(label == 0 for label in data["label"])
    assert first.inner_text() == f"{names[0]} ({count})"
    first.click()
    assert first.get_attribute("aria-pressed") == "false"
    hidden = saved.drawn()
    assert hidden != before
    # What is hidden is neither pointed at nor caught.
    saved.lasso([(0.01, 0.01), (0.99, 0.01), (0.99, 0.99), (0.01, 0.99), (0.01, 0.01)])
    assert len(saved.selected()) == len(points) - count
    saved.page.locator("#legend button").first.click()
    saved.page.get_by_role("button", name="Clear the selection").click()
    assert saved.drawn() == before
    assert f"Trustworthiness {evaluate.trustworthiness(vectors, points):.2f}" in saved.text("trust")


def test_digits(digits, browser):
    path, data, vectors, points = digits
    saved = Map(browser, path)
    assert saved.page.title() == "Digits" and saved.page.locator("h1").inner_text() == "Digits"
    assert "By a small ViT." in saved.page.locator("header").inner_text()
    lonely = loneliest(points)
    image = saved.hover(lonely, f"row {lonely}").locator("img")
    assert image.evaluate("image => image.complete && image.naturalWidth") == 64
    touch_everything(saved, data, vectors, points)
    saved.page.get_by_label("Search", exact=True).fill("4")
    saved.page.wait_for_function("document.getElementById('status').innerText.includes('“4”')")
    found = saved.selected()
    names = data.features["label"].names
    assert found == [row for row, label in enumerate(data["label"]) if names[label] == "4"]
    assert saved.page.locator("#selection td img").count() == len(found)
    assert saved.faults == []
    saved.page.close()


def test_reviews(reviews, browser):
    path, data, vectors, points = reviews
    saved = Map(browser, path, color_scheme="dark")
    assert saved.page.evaluate("document.documentElement.dataset.theme") == "dark"
    lonely = loneliest(points)
    tip = saved.hover(lonely, f"row {lonely}").inner_text()
    assert " ".join(data["text"][lonely].split())[:150] in " ".join(tip.split())
    touch_everything(saved, data, vectors, points)

    before = saved.drawn()
    saved.page.locator("#color").select_option("product")
    assert saved.drawn() != before
    product = data["product"][0]
    assert product in saved.text("legend") and "positive" not in saved.text("legend")
    saved.page.get_by_label("Search", exact=True).fill("NOT ")
    saved.page.wait_for_function("document.getElementById('status').innerText.includes('NOT')")
    found = saved.selected()
    assert found and all("not " in data["text"][row].lower() for row in found)
    assert f"{len(found)} rows contain “NOT ”." in saved.text("status")
    saved.page.locator("#selection button").first.click()  # a row in the table, by keyboard too
    assert saved.selected() == [found[0]]

    dark = saved.page.evaluate("getComputedStyle(document.body).backgroundColor")
    saved.page.get_by_role("button", name="Light or dark").click()
    assert saved.page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    assert saved.barriers() == []
    saved.keep("reviews_light")
    assert saved.faults == []
    saved.page.close()


def test_data_is_shown_as_typed(browser, tmp_path):
    points = np.random.default_rng(0).normal(size=(12, 2))
    data = {"text": [f"{NASTY} {i}" for i in range(12)], NASTY: [NASTY] * 12}
    data["label"] = [f"{NASTY}{i % 2}" for i in range(12)]
    path = ek.save_map(
        tmp_path / "m.html", points, data, vectors=points, title=NASTY, caption=NASTY
    )
    saved = Map(browser, path)
    assert saved.page.title() == NASTY
    assert NASTY in saved.page.locator("header").inner_text()
    assert NASTY in saved.text("legend")
    lonely = loneliest(points)
    assert NASTY in saved.hover(lonely, f"row {lonely}").inner_text()
    saved.page.mouse.click(*saved.at(lonely))
    saved.page.wait_for_function("document.getElementById('neighbours').innerText")
    saved.page.get_by_label("Search", exact=True).fill(NASTY)
    saved.page.wait_for_function("document.getElementById('status').innerText")
    assert saved.text("status") == f"12 rows contain “{NASTY}”."
    assert saved.page.locator("#selection").inner_text().count(NASTY) == 36 + 1  # and a heading
    saved.page.locator("#color").select_option(NASTY)
    assert saved.page.locator("#selection img, #legend img, header img").count() == 0
    assert saved.page.title() == NASTY and saved.faults == []
    saved.page.close()


def test_twenty_thousand_texts_open_and_answer(browser, tmp_path):
    generator = np.random.default_rng(0)
    points = generator.normal(size=(20_000, 2)).astype(np.float32)
    words = np.array(
        ["good", "bad", "warm", "cold", "kettle", "lamp", "novel", "river", "quick", "slow"]
    )
    texts = [" ".join(row) for row in words[generator.integers(0, 10, (20_000, 20))]]
    path = ek.save_map(
        tmp_path / "m.html", points, {"text": texts, "label": generator.integers(0, 5, 20_000)}
    )
    assert path.stat().st_size < 12e6
    saved = Map(browser, path)
    seconds = saved.page.evaluate(
        """async () => {
            const points = Bokeh.documents[0].get_model_by_name("points");
            const start = performance.now();
            document.getElementById("search").value = "kettle lamp novel";
            document.getElementById("search").dispatchEvent(new Event("input"));
            while (!points.selected.indices.length) await new Promise(requestAnimationFrame);
            const search = performance.now() - start, range = Bokeh.index.roots[0].model.x_range;
            const frames = performance.now(), width = range.end - range.start;
            for (let step = 0; step < 20; step++) {
                range.setv({ start: range.start + width / 100, end: range.end + width / 100 });
                await new Promise(requestAnimationFrame);
            }
            return [search / 1000, (performance.now() - frames) / 20 / 1000];
        }"""
    )
    found = [row for row, text in enumerate(texts) if "kettle lamp novel" in text]
    assert saved.selected() == found
    assert "The first 100 are shown." in saved.text("selection")
    # Seconds to search, and for a frame while the map is moved; the tests' WebGL has no GPU.
    assert seconds[0] < 5 and seconds[1] < 3, seconds
    assert saved.faults == []
    saved.page.close()


def test_without_webgl_the_map_is_drawn_all_the_same(reviews, launch):
    path, data, _, points = reviews
    browser = launch("--disable-gpu", "--disable-3d-apis")
    saved = Map(browser, path)
    assert saved.page.evaluate("document.createElement('canvas').getContext('webgl2')") is None
    lonely = loneliest(points)
    assert data["text"][lonely][:20] in saved.hover(lonely, re.compile("row")).inner_text()
    with_points = saved.drawn()
    saved.page.locator("#legend button").first.click()
    assert saved.drawn() != with_points
    assert saved.faults == []
    browser.close()
