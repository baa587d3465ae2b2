"""Say how long the lessons are: words, code, terms, and, if asked, minutes and memory.

``--run`` executes each lesson in a process of its own and adds what it took on this machine.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
from tqdm.auto import tqdm

from kit.glossary import prose, terms, unexplained

HERE = Path(__file__).resolve().parent


def read(path: Path) -> dict[str, int]:
    """Count what a lesson asks of its reader."""
    cells = nbformat.read(path, as_version=4).cells
    code = [
        sum(bool(line.strip()) for line in cell.source.split("\n"))
        for cell in cells
        if cell.cell_type == "code"
    ]
    entries = terms((HERE / "GLOSSARY.md").read_text(encoding="utf-8"))
    return {
        "words": len(prose(path).split()),
        "code lines": sum(code),
        "longest cell": max(code),
        "terms before they are explained": len(unexplained(path, entries)),
    }


def run(path: Path) -> dict[str, float]:
    """Execute a lesson; give minutes and the most memory that one of its processes held."""
    code = (
        "import sys; from pathlib import Path; from kit.execution import execute; "
        "execute(Path(sys.argv[1]), {}, Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, path, HERE.parent / "build" / "executed"]
    begun = time.perf_counter()
    child = subprocess.Popen(command, cwd=HERE)
    _, status, usage = os.wait4(child.pid, 0)  # counts the kernel, which the child waited for
    if status:
        sys.exit(f"{path.name} failed")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    minutes = (time.perf_counter() - begun) / 60
    return {"minutes": round(minutes, 1), "peak GB": round(usage.ru_maxrss * unit / 1e9, 2)}


def main() -> None:
    """Print one row a lesson."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="store_true", help="execute them, too (not on Windows)")
    args = parser.parse_args()
    if args.run and not hasattr(os, "wait4"):
        parser.error("--run needs os.wait4, which Windows lacks; leave it out")
    rows = {}
    for path in tqdm(sorted(HERE.glob("[0-9]*.ipynb")), disable=not args.run, leave=False):
        rows[path.stem] = read(path) | (run(path) if args.run else {})
    print(pd.DataFrame.from_dict(rows, orient="index").to_string())


if __name__ == "__main__":
    main()
