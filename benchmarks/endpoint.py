"""What the wire costs: the same texts through the local endpoint, and through TextEncoder directly.

``python benchmarks/endpoint.py`` prints a table in Markdown. The endpoint runs in a process of its
own, as a server does, and the two take turns, so that neither has the quieter machine.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time

import numpy as np

import embedkit as ek


def short_texts(count: int) -> list[str]:
    """Draw texts of 5 to 30 words, all different."""
    words = ["the", "kettle", "novel", "lamp", "river", "bag", "sings", "runs", "very", "warm"]
    generator = np.random.default_rng(0)
    lengths = generator.integers(5, 31, count)
    return [f"{i} " + " ".join(generator.choice(words, length)) for i, length in enumerate(lengths)]


def resident(pid: int) -> float:
    """Give the memory of a process now, in MiB (Linux)."""
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1)) / 1024


def peak(pid: int) -> float:
    """Give the most memory a process has had so far, in MiB (Linux)."""
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(r"VmHWM:\s+(\d+)", status.read()).group(1)) / 1024


def measure(model: str, count: int, rounds: int) -> str:
    """Time both ways in turn, and write a table."""
    texts = short_texts(count)
    direct = ek.TextEncoder(model, pooling="mean", normalize=True)
    command = [sys.executable, "-m", "embedkit.server", "--model", model, "--port", "0"]
    seconds: dict[str, list[float]] = {"TextEncoder": [], "endpoint": []}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        url = re.search(r"http\S+", server.stdout.readline()).group()
        for each in (direct, ek.OpenAIEncoder(model, base_url=url)):
            each.encode(texts[:500], progress=False)  # warm
        memory = []
        for _ in range(rounds):
            begun = time.perf_counter()
            expected = direct.encode(texts, progress=False)
            seconds["TextEncoder"].append(time.perf_counter() - begun)
            encoder = ek.OpenAIEncoder(model, base_url=url)
            begun = time.perf_counter()
            vectors = encoder.encode(texts, progress=False)
            seconds["endpoint"].append(time.perf_counter() - begun)
            assert np.allclose(vectors, expected, atol=1e-5)
            memory.append(resident(server.pid))
        top = peak(server.pid)
    finally:
        server.terminate()
        server.wait()
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    return "\n".join([
        f"{count:,} texts of 5 to 30 words, {rounds} rounds, {model}",
        "",
        "| way | seconds (median) | ratio (median) | ratio (each round) |",
        "| --- | --- | --- | --- |",
        f"| TextEncoder | {statistics.median(seconds['TextEncoder']):.1f} | 1 | |",
        f"| local endpoint | {statistics.median(seconds['endpoint']):.1f} "
        f"| {statistics.median(ratios):.2f} | {each} |",
        "",
        f"The server's memory after each round, MiB: {', '.join(f'{m:.0f}' for m in memory)} "
        f"(at most {top:.0f}).",
        "",
    ])  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled/all-MiniLM-L6-v2")
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(measure(args.model, args.texts, args.rounds))


if __name__ == "__main__":
    main()
