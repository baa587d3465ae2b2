"""Lesson 09 and the page on scaling: one arithmetic, the same numbers."""

import re
from pathlib import Path

import nbformat
import numpy as np
import pytest

import embedkit as ek

HOME = Path(__file__).parents[1]
CELLS = [
    cell
    for cell in nbformat.read(HOME / "notebooks" / "09_scaling_out.ipynb", as_version=4).cells
    if cell.cell_type == "code"
]
CODE = [cell.source for cell in CELLS]
PAGE = (HOME / "benchmarks" / "SCALING.md").read_text(encoding="utf-8")
HOURS = {"min": 1 / 60, "h": 1, "days": 24}


def cell(start):
    (found,) = [source for source in CODE if source.startswith(start)]
    return found


@pytest.fixture(scope="module")
def lesson():
    """Run the lesson's estimate with what the page says was measured, on two cores."""
    names = {
        "np": np,
        "encoder": ek.TextEncoder("bundled/all-MiniLM-L6-v2", pooling="mean"),
        "rate": float(
            re.search(r"MiniLM-L6, float32 \| ([\d,]+) tokens", PAGE)[1].replace(",", "")
        ),
        "threads": 2,
        "tokenizing": float(re.search(r"tokenising \| ([\d.]+) million", PAGE)[1]) * 1e6,
    }
    # Of the cell that measures, what does not measure.
    counts = re.sub(
        r"^(start|tokenizing|encoder\.processor|print).*\n?", "", cell("skipped ="), flags=re.M
    )
    counts = counts.replace("torch.get_num_threads()", "threads")
    exec("\n".join([counts, cell("MACHINES ="), cell("def estimate")]), names)
    return names


@pytest.mark.slow
def test_lesson_and_page_count_the_same_parameters(lesson):
    said = re.search(r"([\d.]+) million\s+parameters for MiniLM-L6, (\d+) million", PAGE)
    assert f"{lesson['size'] / 1e6:.1f}" == said[1]
    assert lesson["MODELS"]["BERT-base"] == float(said[2]) * 1e6


@pytest.mark.parametrize(
    ("model", "page", "machine"),
    [
        ("this model", "MiniLM-L6 | two cores", "this machine"),
        ("this model", "MiniLM-L6 | 32 cores", "32 cores"),
        ("this model", "MiniLM-L6 | a small GPU, 8 cores", "a small GPU"),
        ("this model", "MiniLM-L6 | a large GPU, 16 cores", "a large GPU"),
        ("BERT-base", "BERT-base | a small GPU, 8 cores", "a small GPU"),
        ("BERT-base", "BERT-base | a large GPU, 16 cores", "a large GPU"),
    ],
)
def test_lesson_and_page_come_to_the_same_hours(lesson, model, page, machine):
    """On processors, the page takes another measured rate for BERT-base."""
    (line,) = re.findall(rf"\| {re.escape(page)} \| .*", PAGE)
    hours = re.findall(r"\| ([\d.]+) (min|h|days) ", line)
    for rows, (number, unit) in zip((10**7, 10**8, 10**9), hours, strict=True):
        found, _ = lesson["estimate"](rows, 30, model, machine)
        digits = len(number.partition(".")[2])
        assert f"{found / HOURS[unit]:.{digits}f}" == number, (rows, line)


def shown(start):
    """Give the text that a cell has printed or shown."""
    (outputs,) = [found.outputs for found in CELLS if found.source.startswith(start)]
    return "".join(o.get("text", "") or o.get("data", {}).get("text/plain", "") for o in outputs)


def test_the_text_says_of_the_job_what_came_out():
    """It was killed; half was left to do; one machine gained nothing; no vector is another."""
    assert "ended by itself: False" in shown("job, first")
    resumed = shown("files = sorted")
    assert "ended by itself: True" in resumed
    assert 200 < int(re.search(r"embedded: (\d+)", resumed)[1]) < 400
    times = shown("when, done = ")
    encode, job, waiting = map(float, re.findall(r" ([\d.]+)$", times, re.MULTILINE))
    assert encode < job and job / 2 < waiting < job
    proof = shown("done = pq.read_table")
    assert "400 ids, each once" in proof and float(proof.split()[-1]) < 1e-5
