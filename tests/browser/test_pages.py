"""All pages and slides in a real browser: nothing fails, leaves the machine, or shuts anyone out.

The pages are made of the outputs kept in the notebooks, so nothing is computed here.
"""

import os
import re
import shutil

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None and "CI" not in os.environ, reason="needs Chromium; CI has to have it"
    ),
]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Without a sandbox, as a container runs as root.
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


def watched(browser, **settings):
    """Open a page that notes what goes wrong in it."""
    page, faults = browser.new_page(**settings), []  # in a browser, or in a context of one

    def watch_request(request):
        if not request.url.startswith(("file:", "data:", "blob:")):
            faults.append(f"left the machine: {request.url}")

    page.on("request", watch_request)
    page.on("requestfailed", lambda request: faults.append(f"not there: {request.url}"))
    page.on("pageerror", lambda error: faults.append(f"page error: {error}"))
    page.on("console", lambda m: faults.append(f"console: {m.text}") if m.type == "error" else None)
    return page, faults


# A lesson has thousands of pieces of text in few colors: of all in sight that have the same color,
# size and ground, the contrast of one is measured. Only what axe finds is handed over.
BARRIERS = """async (within) => {
  const grounds = new Map(), kinds = new Set();
  for (const each of document.querySelectorAll("body, body *")) {
    const css = getComputedStyle(each);
    const ground = [grounds.get(each.parentElement), css.backgroundColor, css.backgroundImage,
                    css.opacity, css.position].join();
    const kind = [ground, css.color, css.fontSize, css.fontWeight, css.textShadow].join();
    const text = [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    grounds.set(each, ground);
    const first = text && each.checkVisibility() && each.closest(within) && !kinds.has(kind);
    if (first) kinds.add(kind);
    each.toggleAttribute("data-first", first);
  }
  axe.configure({rules: [{id: "color-contrast", selector: "[data-first]"}]});
  // Not "preload": that asks for the style sheet once more, which a page opened as a file may not.
  const found = await axe.run(within, {preload: false, resultTypes: ["violations"]});
  return found.violations.map(({id, nodes}) => `${id}: ${nodes[0].html.slice(0, 200)}`);
}"""


def barriers(page, within="html"):
    """Ask axe what on a page, or in a part of it, would shut someone out."""
    from axe_playwright_python.base import AXE_SCRIPT

    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE_SCRIPT)
    return page.evaluate(BARRIERS, within)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_sound_and_open_to_all(site, browser, scheme):
    """On dark ground one lesson is asked for all: they have the same colors."""
    page, faults = watched(browser, color_scheme=scheme)
    for path in sorted(site.rglob("*.html")):
        if scheme == "dark" and re.match(r"\d", path.stem) and path.stem != "02_sentiment":
            continue
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        assert not barriers(page), path.name
        assert not faults, path.name
        for window in (390, 1920, 1280):  # a phone, a projector, a laptop
            page.set_viewport_size({"width": window, "height": 720})
            width = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert width <= 0, f"{path.name} is {width} pixels wider than a window of {window}"
    page.close()


def test_the_search_leads_to_a_section(site, browser):
    page, faults = watched(browser)
    page.goto((site / "index.html").as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.get_by_label("Search").fill("patch_mean")
    page.wait_for_function("document.getElementById('found').children.length > 2")
    assert page.locator("#count").inner_text().endswith("found")
    page.get_by_label("Search").fill("anisotropic")
    page.locator("#found a", has_text="Glossary: anisotropy").click()
    assert page.url.endswith("GLOSSARY.html#anisotropy")
    page.get_by_label("Search").fill("no-such-word")
    page.wait_for_function("document.getElementById('count').textContent === '0 found'")
    assert not faults
    page.close()


def test_code_is_copied_without_its_answers(site, browser):
    context = browser.new_context()
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page, faults = watched(context)
    page.goto((site / "02_sentiment.html").as_uri())
    block = page.locator(".highlight", has_text="by_hand_first = last_hidden_state").first
    block.hover()
    block.get_by_role("button", name="Copy").click()
    block.get_by_role("button", name="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("by_hand_first = last_hidden_state[:, 0, :]") and "Copy" not in copied
    page.goto((site / "api" / "embedkit.html").as_uri())
    page.locator(".codehilite", has_text=">>> import embedkit as ek").first.hover()
    page.get_by_role("button", name="Copy").first.click()
    page.get_by_role("button", name="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("import embedkit as ek\n") and "(3, 384)" not in copied
    assert not faults
    context.close()


def test_contents_stand_at_the_side_and_say_where_one_reads(site, browser):
    page, faults = watched(browser, viewport={"width": 1280, "height": 720})
    page.goto((site / "02_sentiment.html").as_uri())
    contents = page.locator("details.contents")
    side, text = contents.bounding_box(), page.locator("main").bounding_box()
    assert side["x"] + side["width"] <= text["x"]
    contents.get_by_text("The numbers").click()
    page.wait_for_function("document.querySelector('.contents [aria-current]') !== null")
    assert contents.locator("[aria-current]").all_inner_texts() == ["The numbers"]
    assert page.url.endswith("#The-numbers")
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("!document.querySelector('.contents').open")
    assert contents.bounding_box()["height"] < 60
    page.locator("a[rel=next]").click()
    assert page.url.endswith("03_sentiment_openai.html")
    page.locator("a[rel=prev]").click()
    assert page.url.endswith("02_sentiment.html")
    assert not faults
    page.close()


def test_the_button_changes_the_ground_and_paper_stays_white(site, browser):
    page, faults = watched(browser, color_scheme="light")
    page.goto((site / "GLOSSARY.html").as_uri())
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_role("button", name="Light or dark").focus()
    page.keyboard.press("Enter")
    assert page.evaluate(ground) != light
    page.reload()
    assert page.evaluate(ground) != light  # it is remembered
    page.emulate_media(media="print")
    assert page.evaluate(ground) == light
    assert not page.locator("header").is_visible()
    assert not page.locator(".contents").is_visible()
    page.goto((site / "02_sentiment.html").as_uri())  # code is not printed in the colors of night
    name = "getComputedStyle(document.querySelector('.highlight .n')).color"
    on_paper = page.evaluate(name)
    page.emulate_media(media="screen")
    assert page.evaluate(name) != on_paper
    assert not faults
    page.close()


CUT = """() => {
  const parts = document.querySelectorAll("section.present :not(aside, aside *)");
  const boxes = [...parts].map((part) => part.getBoundingClientRect());
  return boxes.filter((box) => box.right > innerWidth || box.bottom > innerHeight).length;
}"""
STEP = "document.querySelectorAll('section.present .fragment').forEach(() => Reveal.next())"


def test_no_slide_is_cut_off_or_shuts_anyone_out(decks, browser):
    page, faults = watched(browser, viewport={"width": 1280, "height": 720})
    for path in sorted(decks.glob("*.html")):
        page.goto(path.as_uri())
        count = page.evaluate("Reveal.getTotalSlides()")
        assert count >= (1 if path.stem == "index" else 8), path.name
        for number in range(count):
            page.evaluate(f"Reveal.slide({number})")
            page.evaluate(STEP)
            assert page.evaluate("Reveal.getIndices().h") == number
            assert page.evaluate(CUT) == 0, f"{path.name}, slide {number + 1} is cut off"
            within = "section.present" if number else "html"  # all that is round the slides, once
            assert not barriers(page, within), f"{path.name}, slide {number + 1}"
        assert not faults, path.name
    page.close()
