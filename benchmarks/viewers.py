"""Seconds to the first picture: embedkit's maps beside what else draws 20,000 points with texts.

``python benchmarks/viewers.py --atlas PYTHON --datamapplot PYTHON --npm FOLDER`` takes the other
viewers from environments of their own, as they cannot be installed together, and the files that
datamapplot asks the network for from ``FOLDER/node_modules``. Every viewer gets the same table of
points, texts and groups. A picture is there when a hundredth of the page has a color. Viewers take
turns; the table, in Markdown, has medians. Nothing of it leaves this machine: what a page asks of
others is refused, and named.

A second table has embedkit's explorer alone, with 100,000 texts and with 2,000 images: when the
picture is there, how many frames a second the page draws while the map is dragged, and how long
the panel takes to show what stands behind the point under the pointer.
"""

import argparse
import io
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlparse

import nbformat
import numpy as np
import pandas as pd
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image
from playwright.sync_api import Error, Page, Route, sync_playwright

import embedkit as ek

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "browser"))
from lab import Lesson, jupyterlab

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
WAIT = 120  # seconds
IN_LAB = {
    "embedkit, explorer": """
import embedkit as ek
ek.explore  # what it needs is imported here
points = frame[["x", "y"]].to_numpy()
""",
    "jupyter-scatter, its demo": """
import jscatter
""",
}
SHOW = {
    "embedkit, explorer": "ek.explore(points, frame, points=points)",
    "jupyter-scatter, its demo": "jscatter.plot(data=frame, x='x', y='y', color_by='label')",
}
DATAMAPPLOT = """
import sys
import datamapplot, pandas as pd
frame = pd.read_parquet(sys.argv[1])
plot = datamapplot.create_interactive_plot(
    frame[["x", "y"]].to_numpy(), frame["label"].to_numpy(), hover_text=frame["text"].tolist(),
    enable_search=True, font_family="sans-serif",
)
plot.save(sys.argv[2])
"""


def made_up(rows: int) -> pd.DataFrame:
    """Draw groups of points, each point with a text like a review."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 12, rows)
    points = draw.normal(size=(12, 2))[labels] * 6 + draw.normal(size=(rows, 2))
    words = " ".join(ek.load_data("bundled/reviews", split="train")["text"]).split()
    texts = [" ".join(draw.choice(words, draw.integers(8, 40))) for _ in range(rows)]
    names = [f"group {label}" for label in labels]
    return pd.DataFrame({"x": points[:, 0], "y": points[:, 1], "text": texts, "label": names})


class Browser:
    """Chromium, which reaches this machine only and counts what else pages ask for."""

    def __init__(self, browser: object, npm: Path | None) -> None:
        self._browser, self._npm = browser, npm
        self.outside: set[str] = set()

    @contextmanager
    def page(self) -> Iterator[Page]:
        """Open an empty page, in a context of its own."""
        self.outside = set()
        context = self._browser.new_context(viewport={"width": 1280, "height": 900})
        context.route(
            lambda url: urlparse(url).hostname not in ("127.0.0.1", None, ""), self._other
        )
        yield context.new_page()
        context.close()

    def _other(self, route: Route) -> None:
        url = urlparse(route.request.url)
        self.outside.add(url.hostname)
        name, _, path = url.path.lstrip("/").partition("/")
        file = self._npm and self._npm / "node_modules" / name.partition("@")[0] / path
        if url.hostname == "unpkg.com" and file and file.is_file():
            route.fulfill(path=file)
        else:
            route.abort()


def until_drawn(page: Page, start: float) -> float:
    """Give the seconds from `start` until a hundredth of the page has a color."""
    while True:
        with suppress(Error):  # a page that is still being opened cannot be photographed
            pixels = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"), int)
            if (np.ptp(pixels, axis=-1) > 60).mean() > 0.01:
                return time.perf_counter() - start
        if time.perf_counter() > start + WAIT:
            raise TimeoutError(f"no picture after {WAIT} s")
        page.wait_for_timeout(50)


@contextmanager
def shown(before: str, code: str, browser: Browser, home: Path) -> Iterator[tuple[Page, float]]:
    """Run code in JupyterLab, then what shows a map; give the page and when that was started."""
    folder = Path(tempfile.mkdtemp(dir=home))
    cells = [new_code_cell(f"{before.strip()}\nprint('ready')"), new_code_cell("")]
    (folder / "notebooks").mkdir()
    notebook = new_notebook(cells=cells, metadata={"kernelspec": KERNEL})
    nbformat.write(notebook, folder / "notebooks" / "a.ipynb")
    with (
        jupyterlab(folder / "notebooks", folder, folder / "log") as address,
        browser.page() as page,
    ):
        lesson = Lesson(page, f"{address}/doc/tree/a.ipynb")
        lesson.start()
        page.locator(".jp-OutputArea-output", has_text="ready").wait_for(timeout=WAIT * 1000)
        page.locator(".jp-CodeCell").last.evaluate("cell => cell.scrollIntoView()")
        start = time.perf_counter()
        page.evaluate(
            """code => {
                const notebook = window.jupyterapp.shell.currentWidget.content;
                notebook.activeCellIndex = notebook.widgets.length - 1;
                notebook.activeCell.model.sharedModel.setSource(code);
                window.jupyterapp.commands.execute('notebook:run-cell');
            }""",
            code,
        )
        yield page, start


LARGE = {
    "100,000 texts, PCA": """
import numpy as np
import embedkit as ek
vectors = np.random.default_rng(0).normal(size=(100_000, 64)).astype(np.float32)
vectors[:, 0] += np.arange(100_000) % 12 * 2
data = {"text": [f"text {i}" for i in range(100_000)], "label": np.arange(100_000) % 12}
points = ek.project(vectors, method="pca")
ek.explore
""",
    "2,000 images": """
import numpy as np
import embedkit as ek
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pillow
draw = np.random.default_rng(0)
images = [Pillow.fromarray(draw.integers(0, 255, (224, 224, 3), np.uint8)) for _ in range(2000)]
data = {"image": images, "label": [str(i % 12) for i in range(2000)]}
data = Dataset.from_dict(data, Features(image=Image(), label=Value("string")))
vectors = draw.normal(size=(2000, 64)).astype(np.float32)
points = ek.project(vectors, method="pca")
ek.explore
""",
}
COUNT_FRAMES = """() => {
    window.frames_drawn = 0;
    const count = () => {window.frames_drawn += 1; requestAnimationFrame(count)};
    requestAnimationFrame(count);
}"""


def touched(before: str, browser: Browser, home: Path) -> tuple[float, float, float]:
    """Open the explorer in JupyterLab, drag its map, point at it."""
    with shown(before, "ek.explore(vectors, data, points=points)", browser, home) as (page, start):
        seconds = until_drawn(page, start)
        page.wait_for_selector(".ek-trust b", timeout=WAIT * 1000)
        box = page.locator(".jp-OutputArea canvas").first.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.evaluate(COUNT_FRAMES)
        page.mouse.move(x, y)
        page.mouse.down()
        began = time.perf_counter()
        while time.perf_counter() < began + 3:
            away = 60 * np.sin(4 * (time.perf_counter() - began))
            page.mouse.move(x + away, y + away)
        frames = page.evaluate("window.frames_drawn") / (time.perf_counter() - began)
        page.mouse.move(x, y)
        page.mouse.up()
        panel = page.locator(".ek-hover", has_text="row ")
        began = time.perf_counter()
        while not panel.count():  # the pointer goes on until it is over a point
            x += 2
            page.mouse.move(x, y)
            page.wait_for_timeout(20)
            if time.perf_counter() > began + WAIT:
                raise TimeoutError("no point under the pointer")
        return seconds, frames, time.perf_counter() - began


def in_lab(name: str, browser: Browser, table: Path, home: Path) -> tuple[float, float, str]:
    """Show a viewer's widget in JupyterLab; imports come before the clock starts."""
    read = f"import pandas as pd\nframe = pd.read_parquet({str(table)!r})\n"
    with shown(read + IN_LAB[name], SHOW[name], browser, home) as (page, start):
        return 0, until_drawn(page, start), ""


def opened(file: Path, made: float, browser: Browser) -> tuple[float, float, str]:
    """Open a file."""
    with browser.page() as page:
        start = time.perf_counter()
        page.goto(file.as_uri(), wait_until="commit")
        return made, until_drawn(page, start), f"{file.stat().st_size / 1e6:.1f}"


def embedkit_page(browser: Browser, table: Path, home: Path) -> tuple[float, float, str]:
    """Write a map and open it."""
    frame, file = pd.read_parquet(table), home / "embedkit.html"
    start = time.perf_counter()
    ek.save_map(file, frame[["x", "y"]].to_numpy(), frame)
    return opened(file, time.perf_counter() - start, browser)


def datamapplot_page(
    python: str, browser: Browser, table: Path, home: Path
) -> tuple[float, float, str]:
    """Have datamapplot write its page, in a process of its own, and open it."""
    file, start = home / "datamapplot.html", time.perf_counter()
    subprocess.run([python, "-c", DATAMAPPLOT, table, file], check=True, capture_output=True)
    return opened(file, time.perf_counter() - start, browser)


def atlas_server(
    python: str, browser: Browser, table: Path, home: Path
) -> tuple[float, float, str]:
    """Start embedding-atlas's server, and open its page as soon as it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.perf_counter()
    command = [
        str(Path(python).with_name("embedding-atlas")), str(table), "--text", "text", "--x", "x",
        "--y", "y", "--disable-projection", "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    with (home / "atlas.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if server.poll() is not None or time.perf_counter() > start + WAIT:
                    raise RuntimeError((home / "atlas.log").read_text()) from None
                time.sleep(0.05)
        made, start = time.perf_counter() - start, time.perf_counter()
        with browser.page() as page:
            page.goto(f"http://127.0.0.1:{port}/", wait_until="commit")
            return made, until_drawn(page, start), ""
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--atlas", help="a Python with embedding-atlas")
    parser.add_argument("--datamapplot", help="a Python with datamapplot")
    parser.add_argument("--npm", type=Path, help="where node_modules has deck.gl and apache-arrow")
    settings = parser.parse_args()
    viewers: dict[str, Callable[..., tuple[float, float, str]]] = {
        **{name: partial(in_lab, name) for name in SHOW},
        "embedkit, save_map": embedkit_page,
    }
    if settings.datamapplot:
        viewers["datamapplot"] = partial(datamapplot_page, settings.datamapplot)
    if settings.atlas:
        viewers["embedding-atlas"] = partial(atlas_server, settings.atlas)
    results: dict[str, list[tuple[float, float, str]]] = {name: [] for name in viewers}
    outside: dict[str, set[str]] = {name: set() for name in viewers}
    program = shutil.which("chromium") or shutil.which("chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        table = Path(folder) / "table.parquet"
        made_up(settings.rows).to_parquet(table)
        chromium = playwright.chromium.launch(executable_path=program, args=FLAGS)
        browser = Browser(chromium, settings.npm)
        for _ in range(settings.rounds):
            for name, view in viewers.items():
                results[name].append(view(browser, table, Path(folder)))
                print(name, results[name][-1], file=sys.stderr)
                outside[name] |= browser.outside
        large = {name: touched(code, browser, Path(folder)) for name, code in LARGE.items()}
        chromium.close()
    print("| viewer | until it can be opened, s | from there to the picture, s | MB | asks |")
    print("| --- | --- | --- | --- | --- |")
    for name, runs in results.items():
        made, drawn, size = zip(*runs, strict=True)
        asks = ", ".join(sorted(outside[name])) or "nobody"
        times = f"{statistics.median(made):.1f} | {statistics.median(drawn):.1f}"
        print(f"| {name} | {times} | {size[0] or '-'} | {asks} |")
    print("\n| explorer with | picture, s | frames a second, dragged | hover, s |")
    print("| --- | --- | --- | --- |")
    for name, (seconds, frames, hover) in large.items():
        print(f"| {name} | {seconds:.1f} | {frames:.0f} | {hover:.2f} |")


if __name__ == "__main__":
    main()
