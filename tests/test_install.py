"""Setting up: what is handed on to uv, and what happens where it fails or is cut off."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / ".ci" / "install.py"


@pytest.fixture(scope="module")
def install():
    spec = importlib.util.spec_from_file_location("install", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of its own, for which no package can be found anywhere."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "install.py").write_text(SCRIPT.read_text(encoding="utf-8"))
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "none"\nversion = "1"\n')
    (tmp_path / "constraints.txt").write_text("")
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path


def set_up(project):
    return subprocess.run(
        [sys.executable, project / ".ci" / "install.py", "lessons"], capture_output=True, text=True
    )


def test_parts_name_extras_that_there_are(install):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert {name for part in install.PARTS.values() for name in part} == set(extras)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert set(re.findall(r"^[\w-]+: \$\(VENV\)/\.([\w-]+)$", makefile, re.M)) == set(install.PARTS)


@pytest.mark.slow
def test_uv_is_told_what_pip_is_told(install, monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_", "SSL_"))]:
        monkeypatch.delenv(name)
    file = tmp_path / "pip.conf"
    file.write_text(
        "[global]\nindex-url = https://one/simple\nfind-links = elsewhere\nno-index = false\n"
        "[install]\nextra-index-url = https://two/simple https://three/simple\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.setenv("PIP_FIND_LINKS", "wheels more-wheels")
    monkeypatch.setenv("PIP_CERT", "/etc/ours.pem")
    monkeypatch.setenv("UV_HTTP_TIMEOUT", "7")
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "180")
    settings = install.pip_settings(Path(sys.executable))
    assert "no-index" not in settings
    env = install.uv_environment(settings)
    assert env["UV_DEFAULT_INDEX"] == "https://one/simple"
    assert env["UV_INDEX"] == "https://two/simple https://three/simple"
    assert env["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert env["UV_FIND_LINKS"] == "wheels,more-wheels"
    assert env["SSL_CERT_FILE"] == "/etc/ours.pem"
    assert env["UV_HTTP_TIMEOUT"] == "7"  # what uv was told already stays


@pytest.mark.parametrize("is_set", [True, False])
def test_where_python_keeps_no_bytecode_uv_compiles(install, monkeypatch, is_set):
    """As pip does; elsewhere Python keeps what it compiles when it first imports."""
    monkeypatch.delenv("UV_COMPILE_BYTECODE", raising=False)
    monkeypatch.setattr(install.sys, "dont_write_bytecode", is_set)
    assert ("UV_COMPILE_BYTECODE" in install.uv_environment({})) == is_set


def test_the_cpu_build_is_for_linux_without_a_gpu(install, monkeypatch, capsys):
    asked = []

    def answer(url, timeout):
        asked.append(url)
        return open(os.devnull)

    def refuse(url, timeout):
        raise TimeoutError

    monkeypatch.setattr(install.sys, "platform", "linux")
    monkeypatch.setattr(install.shutil, "which", lambda name: None)
    monkeypatch.setattr(install.Path, "exists", lambda path: False)
    monkeypatch.setattr(install.urllib.request, "urlopen", answer)
    assert install.wants_cpu_build({}) and asked
    assert "CPU build is taken" in capsys.readouterr().out
    monkeypatch.setattr(install.urllib.request, "urlopen", refuse)
    assert not install.wants_cpu_build({})
    assert "gigabytes of CUDA" in capsys.readouterr().out
    del asked[:]
    monkeypatch.setattr(install.urllib.request, "urlopen", answer)
    assert not install.wants_cpu_build({"no-index": "1"})
    monkeypatch.setattr(install.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert not install.wants_cpu_build({})
    monkeypatch.setattr(install.sys, "platform", "darwin")
    assert not install.wants_cpu_build({}) and not asked


@pytest.mark.slow
@pytest.mark.fault("set-up")
def test_where_nothing_can_be_installed_the_end_of_the_log_says_why(project):
    done = set_up(project)
    assert done.returncode != 0
    assert "pip goes on" in done.stdout and "No matching distribution" in done.stdout
    assert "neither uv nor pip could" in done.stderr and "build/setup.log" in done.stderr
    assert len(done.stdout.splitlines()) < 40
    assert not (project / ".venv" / ".lessons").exists()


@pytest.mark.slow
@pytest.mark.fault("set-up")
def test_a_set_up_that_was_cut_off_starts_afresh(install, tmp_path, monkeypatch):
    monkeypatch.setattr(install, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(install, "LOG", tmp_path / "setup.log")
    install.make_environment()
    half = tmp_path / ".venv" / "half-a-package"
    half.touch()
    assert install.make_environment().exists() and not half.exists()
    (tmp_path / ".venv" / ".unfinished").unlink()  # as after one that came to its end
    half.touch()
    assert install.make_environment().exists() and half.exists()
