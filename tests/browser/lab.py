"""A JupyterLab on the loopback, and a lesson open in it, in a real browser."""

import ast
import json
import os
import re
import socket
import subprocess
import symtable
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell
from playwright.sync_api import Locator, Page

# One page, all cells in it: those out of sight would else be taken out of the page.
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}
PATIENCE = 600_000  # milliseconds: the most that is waited for a busy machine


@contextmanager
def jupyterlab(folder: Path, home: Path, log: Path) -> Iterator[str]:
    """Serve a folder; give the address. Everything it writes goes to `home`."""
    for name, settings in SETTINGS.items():
        path = home / "settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "IPYTHONDIR": "ipython",
    }
    environment = {**os.environ, **{key: str(home / name) for key, name in places.items()}}
    environment.pop("MPLBACKEND", None)
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
        f"--port={port}", "--port-retries=0", "--IdentityProvider.token=", "--ServerApp.password=",
        "--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={folder}",
    ]  # fmt: skip
    with log.open("w") as out:
        server = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1800):
            assert server.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"{address}/api", timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def names(source: str) -> tuple[set[str], set[str]]:
    """Say which names a cell makes for later cells, and which it takes from earlier ones."""
    made, taken = set(), set()
    for statement in statements(ast.parse(source).body):
        top = symtable.symtable(ast.unparse(statement), "cell", "exec")
        tables = [top]
        while tables:
            table = tables.pop()
            tables += table.get_children()
            used = [each for each in table.get_symbols() if each.is_referenced()]
            taken |= {each.get_name() for each in used if table is top or each.is_global()} - made
        symbols = [each for each in top.get_symbols() if each.is_assigned() or each.is_imported()]
        made |= {each.get_name() for each in symbols}
    return made, taken


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Go through statements one by one, into loops and conditions too."""
    for each in body:
        if isinstance(each, ast.For):
            yield ast.Assign([each.target], each.iter, lineno=0)
            yield from statements(each.body)
        elif isinstance(each, ast.If | ast.While):
            yield ast.Expr(each.test)
            yield from statements([*each.body, *each.orelse])
        else:
            yield each


def explorer_part(lesson: Path, rows: int | None = None) -> NotebookNode:
    """Cut a lesson down to its explorer cells and the cells that these depend on, on few rows."""
    notebook = nbformat.read(lesson, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    first = next(i for i, cell in enumerate(cells) if "ek.explore(" in cell.source)
    kept, needed = [], set()
    for cell in reversed(cells[: first + 2]):
        if "%pip" in cell.source:
            continue
        made, taken = names(cell.source)
        if made & needed or len(kept) < 2:
            needed = (needed - made) | taken
            kept.insert(0, cell)
    notebook.cells = [*kept, new_code_cell("")]
    for cell in notebook.cells:
        cell.outputs, cell.execution_count = [], None
    if rows:
        kept[0].source, changed = re.subn(
            r"^ROWS = \d+", f"ROWS = {rows}", kept[0].source, flags=re.M
        )
        assert changed == 1, kept[0].source
    return notebook


class Lesson:
    """A notebook in the browser: run it, touch its explorer, read what it shows."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        page.set_default_timeout(PATIENCE)
        page.goto(url)

    def start(self) -> None:
        """Run all cells, without waiting for them."""
        self.page.wait_for_function(
            """() => {
                const panel = window.jupyterapp?.shell.currentWidget;
                return panel?.context?.isReady && panel.sessionContext.isReady
                    && panel.sessionContext.session?.kernel?.status == 'idle';
            }""",
            timeout=PATIENCE,
        )
        self.page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
        self.page.locator(".jp-InputPrompt", has_text=re.compile(r"\[[*\d]")).first.wait_for()

    def ready(self) -> None:
        """Wait until the map is drawn and all cells have run."""
        self.page.bring_to_front()
        self.page.wait_for_selector(".ek-trust b", timeout=PATIENCE)
        self.page.wait_for_function(
            "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]"
            ".every(prompt => !prompt.textContent.includes('*'))",
            timeout=PATIENCE,
        )
        self.map().scroll_into_view_if_needed()
        self.page.wait_for_timeout(500)  # the first frames

    def run(self, code: str) -> str:
        """Run code in the last cell and give what it prints."""
        self.page.evaluate(
            """code => {
                const notebook = window.jupyterapp.shell.currentWidget.content;
                notebook.activeCellIndex = notebook.widgets.length - 1;
                notebook.activeCell.model.sharedModel.setSource(code);
                return window.jupyterapp.commands.execute('notebook:run-cell');
            }""",
            code,
        )
        output = self.page.locator(".jp-CodeCell").last.locator(".jp-OutputArea-output")
        return output.inner_text(timeout=PATIENCE).strip()

    def text(self, place: str) -> str:
        """Read a panel of the explorer."""
        return self.page.locator(f".ek-{place}").inner_text()

    def wait_for_text(self, place: str, words: str | re.Pattern[str]) -> str:
        """Wait until a panel contains some words, and read it."""
        panel = self.page.locator(f".ek-{place}").filter(has_text=words)
        return panel.inner_text(timeout=PATIENCE)

    def wait_for_other(self, place: str, before: str) -> str:
        """Wait until a panel says something else than before, and read it."""
        self.page.wait_for_function(
            "([place, before]) => {const text = document.querySelector(`.ek-${place}`).innerText;"
            "return text && text != before}",
            arg=[place, before],
            timeout=PATIENCE,
        )
        return self.text(place)

    def map(self) -> Locator:
        """Find the canvas."""
        return self.page.locator(".jp-OutputArea canvas").first

    def drawn(self) -> bytes:
        """Photograph the map, when it has come to rest."""
        self.at(0, 0)
        self.page.mouse.move(2, 2)
        before, now = b"", self.map().screenshot()
        while now != before:
            self.page.wait_for_timeout(300)
            before, now = now, self.map().screenshot()
        return now

    def points(self) -> list[list[float]]:
        """Ask the kernel where the points are, in the frame from -1 to 1."""
        return json.loads(self.run("print(explorer.points.tolist())"))

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Say where a place of the frame is on the page, of which the map is now in sight."""
        self.map().evaluate("canvas => canvas.scrollIntoView({block: 'center'})")
        box = self.map().bounding_box()
        half = min(box["width"], box["height"]) / 2
        return box["x"] + box["width"] / 2 + x * half, box["y"] + box["height"] / 2 - y * half

    def hover(self, x: float, y: float, words: re.Pattern[str]) -> str:
        """Point at a place of the frame until the panel says what stands there, and read it."""
        panel = self.page.locator(".ek-hover").filter(has_text=words)
        deadline = time.monotonic() + PATIENCE / 1000
        while not panel.count():
            assert time.monotonic() < deadline, f"no {words.pattern!r} in {self.text('hover')!r}"
            # A frame that is drawn late swallows a move, and the page may still be scrolling.
            across, down = self.at(x, y)
            self.page.mouse.move(across - 9, down - 9)
            self.page.mouse.move(across, down, steps=5)
            self.page.wait_for_timeout(400)
        return panel.inner_text()

    def choose(self, control: str, option: str) -> None:
        """Choose from a menu of the explorer."""
        self.page.get_by_label(control, exact=True).select_option(option)

    def type(self, control: str, text: str) -> None:
        """Type into a field, or beside a slider, of the explorer."""
        slider = self.page.locator(".widget-hslider", has_text=control)
        field = (
            slider.locator(".widget-readout") if slider.count() else self.page.get_by_label(control)
        )
        field.click()
        self.page.keyboard.press("ControlOrMeta+a")
        self.page.keyboard.type(text)
        self.page.keyboard.press("Enter")

    def lasso(self, corners: list[tuple[float, float]]) -> None:
        """Draw round a polygon of the frame with the lasso."""
        self.page.get_by_title("Activate lasso selection").click()
        pixels = [self.at(*corner) for corner in [*corners, corners[0]]]
        self.page.mouse.move(*pixels[0])
        self.page.mouse.down()
        for pixel in pixels[1:]:
            self.page.mouse.move(*pixel, steps=4)
        self.page.mouse.up()
