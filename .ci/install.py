"""Set up the project: make a virtual environment and install what a command needs.

``python .ci/install.py lessons`` is what ``make run`` calls first; it works on Windows too. A few
lines go to the screen, the rest to ``build/setup.log``, whose end is shown if something fails.
"""

from __future__ import annotations  # so that an old Python reads on and says that it is too old

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
LOG = ROOT / "build" / "setup.log"
LESSONS = ["lab", "bundled", "openai", "server", "ray"]
PARTS = {
    "lessons": LESSONS,
    "slides": [*LESSONS, "slides"],
    "tests": [*LESSONS, "slides", "dev"],
    "bench": [*LESSONS, "bench"],
}
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# uv does not read pip's settings. This is where it looks for the same things.
UV_NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
}


def run(*command: str | Path, **settings: dict[str, str]) -> bool:
    """Run a command, with what it says in the log; tell whether it succeeded."""
    with LOG.open("a", encoding="utf-8") as log:
        log.write(f"\n$ {' '.join(map(str, command))}\n")
        log.flush()
        done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=False, **settings)
    return done.returncode == 0


def fail(what: str) -> None:
    """Show the end of the log, say what failed, and stop."""
    lines = LOG.read_text(encoding="utf-8", errors="replace").splitlines()
    print(*lines[-25:], sep="\n")
    sys.exit(f"Set-up failed: {what}. All it said is in {LOG.relative_to(ROOT)}.")


def make_environment() -> Path:
    """Make the virtual environment, or take the one that is there; give its interpreter.

    A set-up that was cut off leaves a mark, and maybe half a package. The next one starts afresh.
    """
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    unfinished = VENV / ".unfinished"
    is_sound = not unfinished.exists() and python.exists()
    if not (is_sound and run(python, "-m", "pip", "--version")):
        if sys.version_info < (3, 11):
            sys.exit(
                f"embedkit needs Python 3.11 or newer; {sys.executable} is "
                f"{sys.version.split()[0]}. Name another one: PYTHON=python3.12 make run"
            )
        if not run(sys.executable, "-m", "venv", "--clear", VENV):
            fail(f"{sys.executable} could not make a virtual environment")
    unfinished.touch()
    return python


def pip_settings(python: Path) -> dict[str, str]:
    """Read pip's settings, from its files and from PIP_… in the environment."""
    listed = subprocess.run(
        [python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, str] = {}
    for section in ("global", "install", ":env:"):  # the later ones override
        for name, value in re.findall(rf"^{section}\.([\w-]+)=(.+)$", listed, re.MULTILINE):
            found[name] = str(ast.literal_eval(value))
    if found.get("no-index", "").lower() in ("0", "false", "no", "off"):
        del found["no-index"]
    return found


def uv_environment(settings: dict[str, str]) -> dict[str, str]:
    """Hand pip's settings on to uv, except those that uv has been told already."""
    env = dict(os.environ)
    for name, uv_name in UV_NAMES.items():
        if settings.get(name):
            values = settings[name].split()
            env.setdefault(uv_name, ("," if name == "find-links" else " ").join(values))
    if sys.dont_write_bytecode:  # else each process would compile PyTorch anew, for seconds
        env.setdefault("UV_COMPILE_BYTECODE", "1")
    if "extra-index-url" in settings:  # pip takes the best version of all indexes, uv the first
        env.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    return env


def wants_cpu_build(settings: dict[str, str]) -> bool:
    """Tell whether PyTorch's CPU build is wanted here and can be had; say what is taken, and why.

    The package index carries CUDA with PyTorch for Linux: gigabytes that serve an NVIDIA GPU only.
    """
    has_gpu = shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists()
    if sys.platform != "linux" or has_gpu or "no-index" in settings:
        return False
    try:
        with urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=5):
            print("No NVIDIA GPU here: PyTorch's CPU build is taken, without CUDA.")
            return True
    except OSError:
        print("No NVIDIA GPU here, but PyTorch's own index does not answer: its build for Linux is")
        print("taken from where pip finds packages. If that is PyPI, it brings gigabytes of CUDA.")
        return False


def pip(python: Path, verb: str, *needs: str, cpu: bool = False) -> bool:
    """Have pip install or collect packages, of the versions that were tested."""
    index = ["--extra-index-url", CPU_INDEX] if cpu else []
    options = ["--disable-pip-version-check", "-c", "constraints.txt", *index]
    return run(python, "-m", "pip", verb, *options, *needs)


def install(python: Path, needs: list[str], settings: dict[str, str], cpu: bool) -> None:
    """Install the needs with uv; with pip where uv cannot."""
    uv = [python, "-m", "uv", "pip", "install", "--python", python, "-c", "constraints.txt"]
    for file in settings.get("constraint", "").split():
        uv += ["-c", file]
    uv += ["--torch-backend", "cpu"] if cpu else []
    uv += ["--no-index"] if "no-index" in settings else []
    if pip(python, "install", "uv") and run(*uv, *needs, env=uv_environment(settings)):
        return
    print("uv cannot do it here; pip goes on, and takes some minutes.")
    if not pip(python, "install", *needs, cpu=cpu):
        fail("neither uv nor pip could install the packages")


def describe(python: Path) -> str:
    """Say how many packages there are, and which PyTorch."""
    code = (
        "from importlib.metadata import distributions, version as v; "
        "print(len({d.name for d in distributions()}), v('torch'))"
    )
    shown = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    count, torch = shown.split()
    return f"{count} packages, PyTorch {torch}"


def main() -> None:
    """Read the command line and set up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS, help="what the environment is for")
    parser.add_argument("--wheels", metavar="FOLDER", help="collect all packages there, too")
    args = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    begun = time.monotonic()
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("", encoding="utf-8")
    print(f"Setting up .venv; the first time takes minutes. Details: {LOG.relative_to(ROOT)}")
    python = make_environment()
    settings = pip_settings(python)
    cpu = wants_cpu_build(settings)
    project = f".[{','.join(PARTS[args.part])}]"
    install(python, ["-e", project], settings, cpu)
    if args.wheels:
        # With what builds the project, so that a folder of its source installs from there as well.
        needs = [project, "hatchling", "editables", "pip", "uv"]
        if not pip(python, "wheel", "-w", args.wheels, *needs, cpu=cpu):
            fail("pip could not collect the packages")
    (VENV / ".unfinished").unlink()
    for name, extras in PARTS.items():
        if set(extras) <= set(PARTS[args.part]):
            (VENV / f".{name}").touch()
    print(f"Set up in {time.monotonic() - begun:.0f} s: {describe(python)}.")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nSet-up was cut off. The next one starts afresh.")
