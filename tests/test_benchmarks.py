"""The benchmark runs, and writes down what it measured and on what."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "benchmarks" / "bench.py"


@pytest.mark.slow
def test_parts_run_and_write_tables(tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("the kettle boils\nnobody reads the novel\n" * 200, encoding="utf-8")
    sizes = ["--count", "20", "--sentences", "20", "--rounds", "1"]
    command = [sys.executable, BENCH, "words", "map", *sizes, "--texts", texts]
    subprocess.run([*command, "--results", tmp_path], check=True, capture_output=True)
    for part, rows in {"words": 2, "map": 2}.items():
        (result,) = tmp_path.glob(f"{part}-*.md")  # named after the processor
        machine, *_, table = result.read_text(encoding="utf-8").split("\n\n")
        assert "threads" in machine and "torch 2." in machine
        assert "/" not in machine, "no path of a machine"
        assert table.count("\n") == rows + 2


@pytest.mark.slow
def test_what_is_far_slower_is_timed_once(monkeypatch):
    monkeypatch.syspath_prepend(BENCH.parent)
    import bench

    waits, runs = {"quick": 0.2, "as quick": 0.2, "slow": 1.5}, []
    ways = {
        name: lambda n=name, s=seconds: (runs.append(n), time.sleep(s))
        for name, seconds in waits.items()
    }
    found, _ = bench.interleaved(ways, rounds=2)
    assert [runs.count(name) for name in waits] == [3, 3, 2]  # with the round to warm up
    assert found["slow"] > 3 * found["quick"] > 0


@pytest.mark.slow
def test_an_unknown_part_is_named():
    run = subprocess.run([sys.executable, BENCH, "txt"], capture_output=True, text=True)
    assert run.returncode == 2
    assert "unknown: txt; choose from text, words, images" in run.stderr
