"""Measure embedkit beside what a reader would use instead.

``python benchmarks/bench.py`` runs the parts that take minutes, ``bench.py scale ray`` those that
are named. Each part runs its candidates in turn, several rounds of them, so that what else the
machine does falls on all, and writes the medians as ratios to `benchmarks/results/`.
"""

import argparse
import gc
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import endpoint
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
    pipeline,
)
from transformers.utils import logging as transformers_logging

import embedkit as ek
from embedkit.encoders import _packing as packing
from embedkit.loading import _bundled as bundled
from embedkit.loading import models

MINILM = "bundled/all-MiniLM-L6-v2"
LIMIT = 512  # tokens that every candidate reads
FAR_SLOWER = 3  # times the quickest
Candidates = dict[str, Callable[[], np.ndarray]]


# What is measured, and how


def interleaved(candidates: Candidates, rounds: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Time all candidates in turn, `rounds` times over after a round to warm up; in seconds.

    One that is `FAR_SLOWER` in the first of these rounds is left out of the others.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    results: dict[str, Any] = {}
    at_work = [*candidates]
    for turn in range(rounds + 1):
        for name in at_work:
            gc.collect()
            start = time.perf_counter()
            results[name] = candidates[name]()
            _synchronise()
            if turn:
                seconds[name].append(time.perf_counter() - start)
        print(f"  round {turn} of {rounds} done", file=sys.stderr)
        if turn == 1:
            quickest = min(taken[0] for taken in seconds.values())
            at_work = [name for name in at_work if seconds[name][0] <= FAR_SLOWER * quickest]
    return {name: statistics.median(times) for name, times in seconds.items()}, results


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def cosine(vectors: np.ndarray, exact: np.ndarray) -> float:
    """Give the smallest cosine between two sets of vectors, row by row."""
    products = np.sum(vectors.astype(np.float64) * exact, axis=1)
    return float((products / np.linalg.norm(vectors, axis=1) / np.linalg.norm(exact, axis=1)).min())


def peak_flops(dtype: torch.dtype, device: str, width: int = 768) -> float:
    """Give the machine's rate for a matrix product of a layer's shape, operations a second."""
    rows = torch.randn(2048, width, device=device).to(dtype)
    weights = torch.randn(4 * width, width, device=device).to(dtype)
    times = []
    for _ in range(30):
        start = time.perf_counter()
        torch.nn.functional.linear(rows, weights)
        _synchronise()
        times.append(time.perf_counter() - start)
    return 2 * rows.numel() * len(weights) / statistics.median(times)


def operations(model: Any, lengths: np.ndarray) -> float:
    """Count the operations one pass over sequences of these lengths cannot do without."""
    layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "pooler" not in name
    ]
    weights = sum(layer.weight.numel() for layer in layers)
    attention = 4 * model.config.hidden_size * model.config.num_hidden_layers * (lengths**2).sum()
    return float(2 * weights * lengths.sum() + attention)


def processor() -> tuple[str, list[str]]:
    """Name the processor, and which of the instructions that matter here it has."""
    name, flags = platform.processor() or platform.machine(), []
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":")[1].strip() for line in lines if "model name" in line), name)
        known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
        present = {flag for line in lines if line.startswith("flags") for flag in line.split()}
        flags = [flag for flag in known if flag in present]
    return name, flags


def machine(device: str) -> str:
    """Describe the machine and the versions in a few lines."""
    name, flags = processor()
    packages = ("torch", "transformers", "sentence-transformers", "onnxruntime", "openvino", "ray")
    versions = [
        f"{package} {version(package)}" for package in packages if find_spec(_module(package))
    ]
    gpu = "" if device == "cpu" else f"; {torch.cuda.get_device_name(device)}"
    return (
        f"{name}, {torch.get_num_threads()} threads ({', '.join(flags)}){gpu}; "
        f"{platform.system()}, Python {platform.python_version()}; {', '.join(versions)}."
    )


def _module(package: str) -> str:
    return package.replace("-", "_")


def table(header: list[str], rows: list[list[str]]) -> str:
    """Lay out a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write(part: str, text: str, args: argparse.Namespace) -> None:
    """Keep a part's result, headed by the machine it was measured on."""
    path = result(part, ".md", args)
    path.write_text(f"{machine(args.device)}\n\n{text}", encoding="utf-8")
    print(text)


def result(part: str, ending: str, args: argparse.Namespace) -> Path:
    """Name the file of a result after what it was measured on: those of several stand together."""
    args.results.mkdir(exist_ok=True)
    if args.device == "cpu":
        name, flags = processor()
        name = " ".join([name.replace("(R)", "").replace(" Processor", ""), *flags[-1:]])
    else:
        name = torch.cuda.get_device_name(args.device)
    return args.results / ("-".join([part, *re.findall(r"[a-z0-9]+", name.lower())]) + ending)


# Material


def some_texts(count: int, source: Path | None) -> list[str]:
    """Give texts of long-tailed length: those of a file, a line each, or made-up ones."""
    generator = np.random.default_rng(0)
    if source:
        lines = source.read_text(encoding="utf-8").splitlines()
        words = " ".join(line.split("\t")[0] for line in lines).split()
    else:
        words = " ".join(ek.load_data("bundled/reviews", split="train")["text"]).split()
    lengths = np.exp(generator.normal(np.log(25), 0.8, count)).clip(1, 300).astype(int)
    starts = generator.integers(0, max(1, len(words) - 300), count)
    return [" ".join(words[at : at + n]) for at, n in zip(starts, lengths, strict=True)]


def a_distilbert(folder: Path) -> str:
    """Save a model of DistilBERT's size with random weights; speed does not depend on them."""
    torch.manual_seed(0)
    DistilBertModel(DistilBertConfig()).save_pretrained(folder)
    models.load_tokenizer(MINILM).save_pretrained(folder)
    return str(folder)


def some_short_texts(count: int, source: Path | None) -> Any:
    """Give a data set of texts of about a dozen words, each another, numbered ``n``."""
    from datasets import Dataset

    short = [" ".join(text.split()[:12]) for text in some_texts(2000, source)]
    # No two alike, and as many tokens at every count: numbers of six digits, mixed.
    numbers = (number * 7919 % 1_000_003 for number in range(count))
    texts = [f"{n:06d} {short[i % len(short)]}" for i, n in enumerate(numbers)]
    return Dataset.from_dict({"n": range(count), "text": texts})


def a_tiny_bert(folder: Path) -> str:
    """Save a BERT so small that everything around it takes the time."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(intermediate_size=64, **sizes)).save_pretrained(folder)
    models.load_tokenizer(MINILM).save_pretrained(folder)
    return str(folder)


def a_vit(folder: Path, size: int, patch: int, **config: int) -> str:
    """Save a ViT with random weights, and its image processor."""
    torch.manual_seed(0)
    ViTModel(ViTConfig(image_size=size, patch_size=patch, **config)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": size, "width": size}).save_pretrained(folder)
    return str(folder)


def photographs(folder: Path, count: int, smallest: int, largest: int) -> list[str]:
    """Save JPEGs of smooth noise, their longer side between two sizes in pixels."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    paths = []
    for number in range(count):
        side = int(generator.integers(smallest, largest + 1))
        noise = generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
        paths.append(str(folder / f"{number}.jpg"))
        image.save(paths[-1], quality=90)
    return paths


# Text


def text_candidates(folder: str, texts: list[str], device: str) -> Candidates:
    """List ways to a mean vector per text, all reading up to `LIMIT` tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = LIMIT
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval().to(device)

    def by_hand(batch_size: int, masked: bool, padding: str | bool = True) -> np.ndarray:
        vectors = []
        for start in range(0, len(texts), batch_size):
            batch = tokenizer(
                texts[start : start + batch_size],
                padding=padding, truncation=True, max_length=LIMIT, return_tensors="pt",
            ).to(device)  # fmt: skip
            with torch.no_grad():
                hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None] if masked else torch.ones_like(hidden)
            vectors.append(((hidden * mask).sum(1) / mask.sum(1)).cpu().numpy())
        return np.concatenate(vectors)

    def through_pipeline(batch_size: int | None) -> np.ndarray:
        extract = pipeline(
            "feature-extraction", model=model, tokenizer=tokenizer, device=device,
            tokenize_kwargs={"truncation": True, "max_length": LIMIT},
        )  # fmt: skip
        states = extract(texts, batch_size=batch_size, return_tensors=True)
        return np.stack([state[0].mean(0).float().cpu().numpy() for state in states])

    def padded(encoder: ek.TextEncoder) -> np.ndarray:
        encoder.model.config._attn_implementation = "sdpa"
        vectors = encoder.encode(texts, progress=False)
        encoder.model.config._attn_implementation = packing._NAME
        return vectors

    candidates: Candidates = {}
    for dtype in ("float32", "bfloat16"):
        encoder = ek.TextEncoder(
            folder, pooling="mean", max_length=LIMIT, dtype=dtype, device=device
        )
        short = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
        candidates[f"embedkit {short}"] = lambda e=encoder: e.encode(texts, progress=False)
        candidates[f"embedkit {short}, padded"] = lambda e=encoder: padded(e)
        if find_spec("sentence_transformers"):
            from sentence_transformers import SentenceTransformer
            from sentence_transformers.models import Pooling, Transformer

            module = Transformer(
                folder, max_seq_length=LIMIT, model_kwargs={"dtype": encoder.model.dtype}
            )
            pool = Pooling(module.get_word_embedding_dimension(), pooling_mode="mean")
            other = SentenceTransformer(modules=[module, pool], device=device)
            for size in (32,) if device == "cpu" else (32, 256):  # 32 is its default
                label = f"sentence-transformers {short}" + (f", {size} a batch" * (size > 32))
                candidates[label] = lambda o=other, n=size: o.encode(
                    texts, batch_size=n, show_progress_bar=False
                )
    candidates["by hand, 32 rows in file order"] = lambda: by_hand(32, masked=True)
    candidates["the SDK's way: 100 rows, no mask"] = lambda: by_hand(100, masked=False)
    candidates[f"100 rows padded to {LIMIT}"] = lambda: by_hand(100, True, "max_length")
    candidates["pipeline"] = lambda: through_pipeline(None)
    candidates["pipeline, batch_size=32"] = lambda: through_pipeline(32)
    if device == "cpu":
        candidates |= compiled_candidates(model, tokenizer, texts)
    return candidates


def compiled_candidates(model: Any, tokenizer: Any, texts: list[str]) -> Candidates:
    """List runtimes outside of torch, where they are installed; 32 rows, sorted by length."""
    example = dict(tokenizer(texts[:2], padding=True, return_tensors="pt"))
    example = {name: example[name] for name in ("input_ids", "attention_mask")}

    class States(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask)[0]

    def batched(run: Callable[[dict[str, np.ndarray]], np.ndarray]) -> np.ndarray:
        encoded = tokenizer(texts, truncation=True, max_length=LIMIT)["input_ids"]
        order = np.argsort([-len(ids) for ids in encoded], kind="stable")
        out = np.empty((len(texts), model.config.hidden_size), np.float32)
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            batch = tokenizer.pad(
                {"input_ids": [encoded[row] for row in rows]}, return_tensors="np"
            )
            hidden = run({name: batch[name].astype(np.int64) for name in example})
            mask = batch["attention_mask"][..., None]
            out[rows] = (hidden * mask).sum(1) / mask.sum(1)
        return out

    candidates: Candidates = {}
    if find_spec("onnxruntime") and find_spec("onnxscript"):
        import onnxruntime

        path = Path(tempfile.mkdtemp()) / "model.onnx"
        dynamic = {
            name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in example
        }
        torch.onnx.export(
            States().eval(), tuple(example.values()), path, input_names=list(example),
            dynamic_shapes=dynamic, dynamo=True, verbose=False,
        )  # fmt: skip
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        candidates["ONNX Runtime fp32"] = lambda: batched(lambda batch: session.run(None, batch)[0])
    if find_spec("openvino"):
        import openvino

        converted = openvino.convert_model(States().eval(), example_input=example)
        for short, precision in {"fp32": "f32", "bf16": "bf16"}.items():
            settings = {
                "INFERENCE_PRECISION_HINT": precision,
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            }
            ready = openvino.compile_model(converted, "CPU", settings)
            candidates[f"OpenVINO {short}"] = lambda r=ready: batched(lambda batch: r(batch)[0])
    return candidates


def text(args: argparse.Namespace) -> None:
    """Compare ways to one vector per text, on MiniLM and on a model of DistilBERT's size."""
    parts, speeds = [], {}
    with tempfile.TemporaryDirectory() as folder:
        minilm = str(bundled.model_folder(MINILM) or MINILM)
        for name, source in {"MiniLM-L6": minilm, "DistilBERT": a_distilbert(Path(folder))}.items():
            print(name, file=sys.stderr)
            # A model four times as slow gets a quarter of the texts, where that is slow.
            few = 4 if name == "DistilBERT" and args.device == "cpu" else 1
            texts = some_texts(max(1, args.count // few), args.texts)
            candidates = text_candidates(source, texts, args.device)
            seconds, vectors = interleaved(candidates, args.rounds)
            encoder = ek.TextEncoder(source, device=args.device)
            tokens = encoder.processor(texts, truncation=True, max_length=LIMIT)["input_ids"]
            lengths = np.array([len(ids) for ids in tokens])
            work = operations(encoder.model, lengths)
            base = seconds.get("sentence-transformers fp32", seconds["embedkit fp32"])
            exact = vectors["by hand, 32 rows in file order"]
            speeds[name] = {label: base / taken for label, taken in seconds.items()}
            rows = []
            for label, taken in seconds.items():
                half = torch.bfloat16 if "bf16" in label else torch.float32
                share = work / taken / peak_flops(half, args.device)
                rows.append([
                    label, f"{base / taken:.2f}", f"{lengths.sum() / taken:,.0f}", f"{share:.0%}",
                    f"{cosine(vectors[label], exact):.4f}",
                    f"{np.abs(vectors[label] - exact).max():.0e}",
                ])  # fmt: skip
            header = [
                "", "speed", "tokens/s", "share of the peak", "cosine, min", "difference, max",
            ]  # fmt: skip
            parts.append(
                f"**{name}**, {len(texts):,} texts, {lengths.sum():,} tokens (median "
                f"{np.median(lengths):.0f}, longest {lengths.max()}), medians of {args.rounds} "
                f"rounds (one round of what is {FAR_SLOWER} times slower than the quickest); speed "
                f"1 is sentence-transformers in float32, cosine and difference are to the by-hand "
                f"vectors.\n\n{table(header, rows)}"
            )
    write("text", "\n".join(parts), args)
    draw(speeds, result("text", ".png", args))


def draw(speeds: dict[str, dict[str, float]], path: Path) -> None:
    """Draw the speeds as bars, embedkit's set apart by color and hatch."""
    figure, axes = plt.subplots(1, len(speeds), figsize=(11, 5), layout="constrained")
    for ax, (name, speed) in zip(np.atleast_1d(axes), speeds.items(), strict=True):
        labels = sorted(speed, key=lambda label: speed[label])
        ours = [label.startswith("embedkit") for label in labels]
        bars = ax.barh(labels, [speed[label] for label in labels])
        for bar, own in zip(bars, ours, strict=True):
            bar.set(facecolor="#0072B2" if own else "#BBBBBB", hatch="//" if own else "")
            bar.set_edgecolor("white")
        ax.axvline(1, color="black", linewidth=0.8)
        ax.bar_label(bars, fmt="%.2f", padding=4, bbox={"fc": "white", "ec": "none", "pad": 0.5})
        ax.set(title=name, xlabel="speed; sentence-transformers fp32 is 1")
        ax.spines[["top", "right"]].set_visible(False)
        ax.margins(x=0.12)
    figure.savefig(path, dpi=110)
    plt.close(figure)


# Words


def words(args: argparse.Namespace) -> None:
    """Compare a vector per word with a vector per text on the same sentences."""
    sentences = some_texts(args.sentences, args.texts)
    text_encoder = ek.TextEncoder(MINILM, device=args.device)
    word_encoder = ek.WordEncoder(MINILM, device=args.device)
    candidates: Candidates = {
        "TextEncoder": lambda: text_encoder.encode(sentences, progress=False),
        "WordEncoder": lambda: word_encoder.encode(sentences, progress=False).vectors,
    }
    seconds, _ = interleaved(candidates, args.rounds)
    rows = [[name, f"{taken / seconds['TextEncoder']:.2f}"] for name, taken in seconds.items()]
    write("words", f"{len(sentences):,} sentences.\n\n{table(['', 'time'], rows)}", args)


# Images


def images(args: argparse.Namespace) -> None:
    """Compare with the pipeline where the model takes the time, and where decoding does."""
    parts = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = a_vit(folder / "base", 224, 16)
        small = {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4}
        tiny = a_vit(folder / "tiny", 64, 8, intermediate_size=512, **small)
        few, many = args.images, 2 * args.images
        cases = {
            "ViT-base at 224, JPEGs of 300 pixels": (
                base, photographs(folder / "small", few, 300, 300),
            ),
            "a ViT of 1.2 million parameters at 64, JPEGs of 500 to 4,000 pixels": (
                tiny, photographs(folder / "large", many, 500, 4000),
            ),
        }  # fmt: skip
        for title, (source, paths) in cases.items():
            print(title, file=sys.stderr)
            candidates: Candidates = {}
            for short, dtype in {"fp32": "float32", "bf16": "bfloat16"}.items():
                encoder = ek.ImageEncoder(source, dtype=dtype, device=args.device)
                candidates[f"embedkit {short}"] = lambda e=encoder, p=paths: e.encode(
                    p, progress=False
                )
            extract = pipeline(
                "image-feature-extraction", model=source, device=args.device,
                image_processor=models.load_image_processor(source), batch_size=32,
            )  # fmt: skip

            def through_pipeline(extract: Any = extract, paths: list[str] = paths) -> np.ndarray:
                states = extract(paths, return_tensors=True)
                return np.stack([state[0].mean(0).float().cpu().numpy() for state in states])

            candidates["pipeline, batch_size=32"] = through_pipeline
            seconds, vectors = interleaved(candidates, args.rounds)
            exact = vectors["pipeline, batch_size=32"]
            rows = [
                [
                    label, f"{seconds['pipeline, batch_size=32'] / taken:.2f}",
                    f"{len(paths) / taken:.1f}", f"{cosine(vectors[label], exact):.4f}",
                ]
                for label, taken in seconds.items()
            ]  # fmt: skip
            header = ["", "speed", "images/s", "cosine, min"]
            parts.append(f"**{title}**, {len(paths)} images.\n\n{table(header, rows)}")
    write("images", "\n".join(parts), args)


# Many rows

SCALE = """
import os, sys, threading, time
import numpy as np
import embedkit as ek
from datasets import Dataset, disable_progress_bars, load_dataset

way, count, model, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
disable_progress_bars()

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

peak, done = 0.0, threading.Event()
def watch():
    global peak
    while not done.wait(0.05):
        peak = max(peak, anonymous())

encoder = ek.TextEncoder(model, pooling="mean")
data = Dataset.from_parquet(f"{folder}/{count}.parquet", cache_dir=f"{folder}/cache")
encoder.encode(data["text"][:1000], progress=False)  # warms up
threading.Thread(target=watch, daemon=True).start()
start = time.perf_counter()
if way == "memmap":
    out = np.memmap(f"{folder}/out", np.float32, "w+", shape=(count, encoder.dim))
    encoder.encode(data["text"], out=out, progress=False)
else:
    data.map(encoder, batched=True, load_from_cache_file=False)
taken = time.perf_counter() - start
done.set()
print(taken, peak)
"""


def scale(args: argparse.Namespace) -> None:
    """Watch time per text and memory grow, or not, with the number of texts; a tiny model."""
    ways = {"memmap": "encode into a memmap", "map": "Dataset.map"}
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = a_tiny_bert(Path(folder) / "model")
        for count in args.scale:
            some_short_texts(count, args.texts).to_parquet(f"{folder}/{count}.parquet")
        for turn in range(args.rounds):
            for way in ways:
                for count in args.scale:
                    command = [sys.executable, "-c", SCALE, way, str(count), str(model), folder]
                    ran = subprocess.run(command, check=True, capture_output=True, text=True)
                    taken, peak = map(float, ran.stdout.split()[-2:])
                    found.setdefault((way, count), []).append((taken / count, peak))
            print(f"  round {turn + 1} of {args.rounds} done", file=sys.stderr)
    rows = []
    for (way, count), runs in found.items():
        taken, peak = map(statistics.median, zip(*runs, strict=True))
        base, lowest = map(statistics.median, zip(*found[way, args.scale[0]], strict=True))
        rows.append([
            ways[way], f"{count:,}", f"{taken / base:.2f}", f"{peak:,.0f}",
            f"{peak - lowest:+,.0f}",
        ])  # fmt: skip
    header = ["", "texts", "time per text", "peak anonymous memory, MB", "to the first"]
    about = f"A tiny model; each run a process of its own, medians of {args.rounds} rounds."
    write("scale", f"{about}\n\n{table(header, rows)}", args)


def overhead(args: argparse.Namespace) -> None:
    """Measure what `Dataset.map` adds to `encode`."""
    from datasets import Dataset, disable_caching, disable_progress_bars

    disable_progress_bars()
    disable_caching()
    encoder = ek.TextEncoder(MINILM, pooling="mean", device=args.device)
    rows = []
    for count in (2, args.count):
        texts = some_texts(count, args.texts)
        data = Dataset.from_dict({"text": texts})
        candidates: Candidates = {
            "encode": lambda t=texts: encoder.encode(t, progress=False),
            "map": lambda d=data: np.array(
                d.map(encoder, batched=True).with_format("numpy")["embedding"]
            ),
        }
        seconds, _ = interleaved(candidates, args.rounds if count > 2 else 20)
        added = seconds["map"] - seconds["encode"]
        rows.append([
            f"{count:,}", f"{seconds['encode'] / seconds['map']:.2f}", f"{1000 * added:.0f}"
        ])  # fmt: skip
    header = ["texts", "speed of map; encode is 1", "added, ms"]
    write("map", table(header, rows), args)


# Ray


class Observed(ek.TextEncoder):
    """An encoder that notes, for each batch, when it began and ended and what memory it held."""

    def __call__(self, batch: Any) -> Any:
        """Add ``begun`` and ``ended`` in seconds, and ``memory`` in MB."""
        import pyarrow as pa

        begun = time.time()
        batch = super().__call__(batch)
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        memory = int(status.split("RssAnon:")[1].split()[0]) / 1024
        for name, value in {"begun": begun, "ended": time.time(), "memory": memory}.items():
            batch = batch.append_column(name, pa.array([value] * len(batch)))
        return batch


def on_ray(path: Path, model: str, workers: int, threads: int, block: int) -> dict[str, Any]:
    """Embed a file on the cluster; from the first batch to the last, in seconds."""
    import pyarrow.parquet as pq
    import ray

    start = time.time()
    with tempfile.TemporaryDirectory() as out:
        data = ray.data.read_parquet(str(path)).repartition(target_num_rows_per_block=block)
        data.map_batches(
            Observed,
            fn_constructor_kwargs={"model": model, "pooling": "mean"},
            batch_size=block,
            batch_format="pyarrow",
            num_cpus=threads,
            compute=ray.data.ActorPoolStrategy(size=workers),
        ).write_parquet(out)
        found = pq.read_table(out).sort_by("n").to_pandas()
    return {
        "seconds": found["ended"].max() - found["begun"].min(),
        "before": found["begun"].min() - start,
        "memory": found["memory"].max(),
        "vectors": np.stack(found["embedding"]),
    }


def with_ray(args: argparse.Namespace) -> None:
    """Compare `encode` and `map` with workers of Ray, and watch what a worker holds."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    import ray
    from datasets import Dataset, disable_caching, disable_progress_bars

    disable_progress_bars()
    disable_caching()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ray.init(
            num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="error",
            _temp_dir=name,
        )  # fmt: skip
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.wait_for_min_actors_s = 600  # so that all workers begin together
        texts = some_texts(args.count, args.texts)
        data = Dataset.from_dict({"n": range(len(texts)), "text": texts})
        data.to_parquet(folder / "texts.parquet")
        encoder = ek.TextEncoder(MINILM, pooling="mean")

        def timed(run: Callable[[], Any]) -> dict[str, Any]:
            start = time.perf_counter()
            vectors = run()
            return {"seconds": time.perf_counter() - start, "before": 0, "vectors": vectors}

        def spread(workers: int, threads: int) -> dict[str, Any]:
            return on_ray(folder / "texts.parquet", MINILM, workers, threads, args.block)

        candidates = {
            "encode, 2 threads": lambda: timed(lambda: encoder.encode(texts, progress=False)),
            "Dataset.map, 2 threads": lambda: timed(
                lambda: data.map(encoder, batched=True).with_format("numpy")["embedding"][:]
            ),
            "Ray, 1 worker of 2 threads": lambda: spread(1, 2),
            "Ray, 2 workers of 1 thread": lambda: spread(2, 1),
        }
        runs: dict[str, list[dict[str, Any]]] = {label: [] for label in candidates}
        for turn in range(args.rounds + 1):
            for label, run in candidates.items():
                runs[label].append(run())
                print(f"  round {turn}, {label}: {runs[label][-1]['seconds']:.1f}", file=sys.stderr)
        exact = runs["encode, 2 threads"][0]["vectors"]
        median = {
            (label, what): statistics.median(each[what] for each in each_run[1:])
            for label, each_run in runs.items()
            for what in ("seconds", "before")
        }
        base = median["encode, 2 threads", "seconds"]
        speeds = [
            [
                label, f"{median[label, 'seconds'] / base:.2f}",
                f"{median[label, 'before'] / base:.2f}",
                f"{max(np.abs(each['vectors'] - exact).max() for each in each_run):.0e}",
            ]
            for label, each_run in runs.items()
        ]  # fmt: skip

        rows = []
        tiny = a_tiny_bert(folder / "model")
        for count in args.scale[-2:]:
            some_short_texts(count, args.texts).to_parquet(folder / "many.parquet")
            found = on_ray(folder / "many.parquet", tiny, 2, 1, 10_000)
            rows.append([f"{count:,}", f"{found['memory']:,.0f}"])
            print(rows[-1], file=sys.stderr)
        ray.shutdown()
    speed = table(["", "time", "before the first batch", "difference, max"], speeds)
    write(
        "ray",
        f"{len(texts):,} texts, MiniLM, blocks of {args.block} rows, medians of {args.rounds} "
        "rounds; time 1 is `encode`. Ray's time runs from its first batch to its last. What comes "
        "before, the start of the workers and their loading of the model, has a column of its own, "
        "in the same unit; the start of the cluster is not counted.\n\n"
        f"{speed}\nWhat a worker holds, at most, after a batch: two workers, a tiny model, blocks "
        "of 10,000 rows.\n\n"
        f"{table(['rows', 'anonymous memory, MB'], rows)}",
        args,
    )


# Maps of many


def made_up(count: int) -> np.ndarray:
    """Draw vectors of 384 numbers in 40 clusters that overlap, on a surface of 16 dimensions."""
    generator = np.random.default_rng(0)
    centres = 1.5 * generator.normal(size=(40, 16))
    inner = centres[generator.integers(0, 40, count)] + generator.normal(size=(count, 16))
    return (inner @ generator.normal(size=(16, 384))).astype(np.float32)


def large(args: argparse.Namespace) -> None:
    """See what a map of many rows takes, in time and trust, fitted on all of them or on some."""
    ek.project(made_up(500), sample=100, progress=False)  # compiles, and so does the next
    ek.project(made_up(41_000), progress=False)
    rows = []
    for count, samples in (
        (12_000, (None, 3_000, 1_200)), (50_000, (None, 10_000, 5_000)), (200_000, (10_000, 5_000))
    ):  # fmt: skip
        vectors, base = made_up(count), 0.0
        for fitted in samples:
            start = time.process_time()
            points = ek.project(vectors, sample=fitted, progress=False)
            taken = time.process_time() - start
            base = base or taken
            trust = ek.evaluate.trustworthiness(vectors, points)
            some = f"{fitted:,}" if fitted else "all"
            rows.append([f"{count:,}", some, f"{taken:.0f}", f"{taken / base:.2f}", f"{trust:.3f}"])
            print(rows[-1], file=sys.stderr)
    header = ["rows", "fitted", "processor, s", "time against the first", "trustworthiness"]
    about = (
        "Made-up vectors of 384 numbers; one fit each, on one core, after others that compiled. "
        "Trustworthiness of 500 rows among all."
    )
    write("large", f"{about}\n\n{table(header, rows)}", args)


# The first map

FIRST_MAP = """
import sys, time
import numpy as np
import embedkit as ek
vectors = np.random.default_rng(0).normal(size=(int(sys.argv[1]), 384)).astype(np.float32)
for _ in range(2):
    start = time.perf_counter()
    ek.project(vectors)
    print(time.perf_counter() - start)
"""


def umap(args: argparse.Namespace) -> None:
    """Time the first and the second map in a process, with an empty and with a filled cache."""
    rows = []
    for count in (500, 5000):
        with tempfile.TemporaryDirectory() as cache:
            for state in ("empty", "filled"):
                found = subprocess.run(
                    [sys.executable, "-c", FIRST_MAP, str(count)],
                    check=True, capture_output=True, text=True,
                    env={**os.environ, "NUMBA_CACHE_DIR": cache},
                )  # fmt: skip
                first, second = map(float, found.stdout.split()[-2:])
                rows.append([f"{count:,}", state, f"{first:.1f}", f"{second:.1f}"])
    header = ["vectors", "compiler's cache", "first map, s", "second map, s"]
    write("umap", table(header, rows), args)


# Through the endpoint


def over_http(args: argparse.Namespace) -> None:
    """See what the local endpoint costs beside a direct call."""
    write("endpoint", endpoint.measure(MINILM, 3 * args.count, args.rounds), args)


QUICK = {
    "text": text,
    "words": words,
    "images": images,
    "map": overhead,
    "endpoint": over_http,
    "umap": umap,
}
PARTS = {**QUICK, "scale": scale, "ray": with_ray, "large": large}


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "parts", nargs="*", help=f"of {', '.join(PARTS)}; without any, {', '.join(QUICK)}"
    )
    parser.add_argument("--texts", type=Path, help="a text file, one text a line, for real lengths")
    parser.add_argument("--count", type=int, default=96, help="texts")
    parser.add_argument("--sentences", type=int, default=1000, help="sentences for the words")
    parser.add_argument("--images", type=int, default=32, help="images for the large model")
    parser.add_argument("--scale", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--block", type=int, default=200, help="rows of a block for Ray")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for part in args.parts or QUICK:
        print(f"{part} …", file=sys.stderr)
        PARTS[part](args)


if __name__ == "__main__":
    main()
