"""Every architecture of the installed transformers: its vectors are right, or it is refused.

What is right, the plain model says, one input at a time; none of embedkit's code has a part in it.
``ARCHITECTURES=write python -m pytest tests/test_architectures.py`` writes the page about it.
"""

import inspect
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from torch import nn

import embedkit as ek
from tests.architectures import SIDE, model_classes, model_types, tiny_model, tokenizer_of
from tests.conftest import _pixels, picture, sentence

PAGE = Path(__file__).parents[1] / "notebooks" / "ARCHITECTURES.md"
GENERATOR = np.random.default_rng(0)
TEXTS = [sentence(words, GENERATOR) for words in (4, 13, 1, 4)]
PICTURES = [picture(seed, size=(40 + 30 * seed, 100 - 20 * seed)) for seed in range(3)]
# These are saved and loaded by the name of their folder; the others are handed over as they are.
FROM_A_FOLDER = {
    "bert", "camembert", "clip", "convnext", "dinov3_vit", "distilbert", "electra", "gpt2",
    "modernbert", "mpnet", "qwen3", "roberta", "siglip", "t5", "vit", "xlm-roberta",
}  # fmt: skip
# The others take longer than `make check` has.
QUICK = {"bert", "clip", "dinov3_vit", "fnet", "gpt2", "llava", "modernbert", "t5", "vit_mae"}

Pooled = dict[str, np.ndarray]
tried: dict[str, list["Finding"]] = {}
not_built: dict[str, str] = {}


@dataclass
class Finding:
    """What one encoder makes of one architecture."""

    model_type: str
    class_name: str
    encoder: str
    right: list[str] = field(default_factory=list)  # poolings that give the plain model's vectors
    refused: dict[str, str] = field(default_factory=dict)  # pooling → the sentence that refuses it
    wrong: dict[str, str] = field(default_factory=dict)  # pooling → how far off
    unclear: dict[str, str] = field(default_factory=dict)  # pooling → an error for developers
    auto: str = ""  # which pooling it is where none is named
    batching: str = ""

    @property
    def verdict(self) -> str:
        return next(v for v in ("wrong", "unclear", "right", "refused") if getattr(self, v))


# What the plain model gives


def _part(model: nn.Module, tower: str) -> nn.Module:
    """Take what reads this input: one tower of two, or the encoder of an encoder and a decoder."""
    if model.config.is_encoder_decoder:
        return model.get_encoder()
    return getattr(model, tower, model)


def _state(module: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """Run the plain model on one input: (tokens, dim), or an error."""
    names = inspect.signature(module.forward).parameters
    accepted = {name: value for name, value in inputs.items() if name in names}
    if "use_cache" in names:
        accepted["use_cache"] = False
    with torch.inference_mode():
        state = module(**accepted).last_hidden_state[0]
    if not torch.isfinite(state).all():
        raise ValueError("the plain model's vectors are not finite")
    return state.flatten(1).T if state.ndim == 3 else state


def _text_state(part: nn.Module, tokenizer: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """Run the plain model on one text: one state per token."""
    ids = inputs["input_ids"]
    tokens = ids.shape[1]
    if part.config.model_type.startswith("siglip"):  # trained on texts of full length, no mask
        missing = part.config.max_position_embeddings - tokens
        ids = nn.functional.pad(ids, (0, missing), value=tokenizer.pad_token_id)
        inputs = {"input_ids": ids}
    state = _state(part, inputs)
    if len(state) != ids.shape[1]:
        raise ValueError("the plain model gives another number of states than of tokens")
    return state[:tokens]


def _plain_texts(model: nn.Module, tokenizer: Any) -> Pooled:
    part = _part(model, "text_model")
    *states, again = (
        _text_state(part, tokenizer, tokenizer(text, return_tensors="pt"))
        for text in (*TEXTS, TEXTS[0])
    )
    if not torch.equal(states[0], again):
        raise ValueError("the plain model gives other vectors at every call")
    pooled = {
        "mean": torch.stack([state.mean(0) for state in states]),
        "last": torch.stack([state[-1] for state in states]),
    }
    first = torch.stack([state[0] for state in states])
    framed = tokenizer("a")["input_ids"][0] == tokenizer.cls_token_id
    if framed and first.std(0).max() > 1e-6:  # otherwise it is blind to what comes after it
        pooled["cls"] = first
    return {name: vectors.numpy() for name, vectors in pooled.items()}


def _plain_words(model: nn.Module, tokenizer: Any) -> Pooled:
    """Take the first token of every word, as it stands in running text: behind a space."""
    space = " " if "Ġ" in "".join(tokenizer.tokenize("a kettle")) else ""
    part = _part(model, "text_model")
    vectors = []
    for text in TEXTS:
        inputs = tokenizer(
            space + text,
            return_tensors="pt",
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        spans = inputs.pop("offset_mapping")[0].tolist()
        special = inputs.pop("special_tokens_mask")[0].tolist()
        state, start = _text_state(part, tokenizer, inputs), len(space)
        for word in text.split():
            end = start + len(word)
            # A space that is a token of its own belongs to the word behind it.
            first = next(
                i for i, (a, b) in enumerate(spans)
                if not special[i] and a < end and b > max(0, start - 1)
            )  # fmt: skip
            vectors.append(state[first])
            start = end + 1
    return {"first": torch.stack(vectors).numpy()}


def _plain_images(model: nn.Module, processor: Any) -> Pooled:
    part = _part(model, "vision_model")
    *states, again = (
        _state(part, processor(image, return_tensors="pt")) for image in (*PICTURES, PICTURES[0])
    )
    if not torch.equal(states[0], again):
        raise ValueError("the plain model gives other vectors at every call")
    patches = _patches(model, len(states[0]))
    pooled = {
        "mean": torch.stack([state.mean(0) for state in states]),
        "patch_mean": torch.stack([state[patches].mean(0) for state in states]),
    }
    if patches.start:
        pooled["cls"] = torch.stack([state[0] for state in states])
    return {name: vectors.numpy() for name, vectors in pooled.items()}


def _patches(model: nn.Module, tokens: int) -> slice:
    """Say which tokens are patches: a square of them, behind whatever stands before it."""
    config = getattr(model.config, "vision_config", model.config)
    if config.model_type in ("dinov3_convnext", "pvt"):  # one token, then a map
        return slice(1, None)
    size = getattr(config, "patch_size", None)
    size = size[0] if isinstance(size, (list, tuple)) else size
    count = (SIDE // size) ** 2 if isinstance(size, int) else tokens
    if config.model_type == "yolos":  # it appends the places for what it detects
        return slice(1, 1 + count)
    return slice(max(0, tokens - count), None)


# What embedkit gives


def _judge(
    finding: Finding,
    plain: Callable[[], Pooled],
    make: Callable[..., Any],
    encode: Callable[[Any, list[int]], np.ndarray],
    inputs: int,
    poolings: Iterable[str] = (),
) -> Finding:
    """Compare with the plain model: no pooling named, the inputs shuffled, and every pooling."""
    try:
        expected = plain()
    except Exception as error:
        expected, why = {}, _short(error)
    order = np.random.default_rng(1).permutation(inputs).tolist()
    for name in ("auto", *poolings):
        if name == finding.auto and finding.model_type not in FROM_A_FOLDER:
            finding.right.append(name)  # it is what was taken where none was named
            continue
        try:
            encoder = make() if name == "auto" else make(pooling=name)
        except Exception as error:
            refused = isinstance(error, (ValueError, TypeError, OSError)) and re.match(
                rf"(Text|Word|Image)Encoder\b|{finding.class_name}: |/\S+: .", str(error)
            )
            clear = refused and "\n" not in str(error) and len(str(error)) < 500
            (finding.refused if clear else finding.unclear)[name] = _short(error)
            continue
        try:
            with _Watch(encoder.body if finding.encoder == "TextEncoder" else None, finding):
                vectors = encode(encoder, list(range(inputs)))
            shuffled = encode(encoder, order) if name == "auto" else None
        except Exception as error:
            finding.unclear[name] = f"only when it encodes: {_short(error)}"
            continue
        known = [name] if name in expected else [*expected] if name == "auto" else []
        found = next((each for each in known if _close(vectors, expected[each])), None)
        if not expected:
            finding.wrong[name] = f"not refused, and the plain model cannot be read: {why}"
        elif found is None:
            off = [f"{np.abs(vectors - expected[each]).max():.1g} ({each})" for each in known]
            finding.wrong[name] = f"off by {', '.join(off)}" if off else "not a pooling of it"
        elif shuffled is not None and not _close(shuffled, vectors):
            finding.wrong[name] = "it changes with the order and the size of a batch"
        else:
            finding.right.append(name)
            finding.auto = found if name == "auto" else finding.auto
    return finding


class _Watch:
    """Note how inputs reach a module: padded, packed, in equal lengths, or one at a time."""

    def __init__(self, module: nn.Module | None, finding: Finding) -> None:
        self._module, self._finding = module, finding
        self._seen: set[str] = set()

    def __enter__(self) -> None:
        if self._module is not None:
            self._hook = self._module.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
        packed = "packed" in str(module.config._attn_implementation)
        if mask is not None and not mask.all():
            self._seen.add("packed" if packed else "padded")
        elif (ids[:, -1] == ids[:, -2]).all():  # no text of these ends with one word twice
            self._seen.add("full length")
        else:
            self._seen.add("equal lengths" if len(ids) > 1 else "one at a time")

    def __exit__(self, *_: object) -> None:
        if self._module is not None:
            self._hook.remove()
            ways = "packed", "padded", "full length", "equal lengths", "one at a time"
            found = next((way for way in ways if way in self._seen), "")
            self._finding.batching = self._finding.batching or found


def _close(vectors: np.ndarray, expected: np.ndarray) -> bool:
    """Compare to 1e-5 of the largest value: on some, float64 is as far from the plain float32."""
    same = vectors.shape == expected.shape
    atol = 1e-5 * max(1, np.abs(expected).max(initial=0))
    return same and np.allclose(vectors, expected, rtol=1e-4, atol=atol)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def examine(model_type: str, model_class: Any, folder: Path) -> list[Finding]:
    """Try every encoder that takes an input of the model's."""
    takes = inspect.signature(model_class.forward).parameters
    tokenizer = tokenizer_of(model_type)
    model = tiny_model(model_type, model_class, tokenizer)
    processor = _pixels("ViT")
    processor.size = {"height": SIDE, "width": SIDE}
    source: Any = model
    if model_type in FROM_A_FOLDER:
        source = str(folder)
        for part in (model, tokenizer, processor):
            part.save_pretrained(folder)
    findings = []

    def start(encoder: str) -> Finding:
        findings.append(Finding(model_type, model_class.__name__, encoder))
        return findings[-1]

    if "input_ids" in takes:
        _judge(
            start("TextEncoder"),
            lambda: _plain_texts(model, tokenizer),
            lambda **settings: ek.TextEncoder(source, processor=tokenizer, **settings),
            lambda encoder, order: encoder.encode([TEXTS[i] for i in order])[np.argsort(order)],
            len(TEXTS),
            ("mean", "last", "cls") if model_type in FROM_A_FOLDER else ("mean", "cls"),
        )
        _judge(
            start("WordEncoder"),
            lambda: _plain_words(model, tokenizer),
            lambda **settings: ek.WordEncoder(source, processor=tokenizer, **settings),
            _encode_words,
            len(TEXTS),
        )
    if "pixel_values" in takes:
        _judge(
            start("ImageEncoder"),
            lambda: _plain_images(model, processor),
            lambda **settings: ek.ImageEncoder(source, processor=processor, **settings),
            lambda encoder, order: encoder.encode([PICTURES[i] for i in order])[np.argsort(order)],
            len(PICTURES),
            ("mean", "patch_mean", "cls"),
        )
    return findings


def _encode_words(encoder: Any, order: list[int]) -> np.ndarray:
    words = encoder.encode([TEXTS[i].split() for i in order], batch_size=2)
    return words.vectors[np.lexsort((words.position, np.array(order)[words.sentence]))]


def _verdict(findings: list[Finding]) -> str:
    verdicts = {finding.verdict for finding in findings}
    return next(v for v in ("wrong", "unclear", "right", "refused") if v in verdicts)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model_type",
    [pytest.param(m, marks=() if m in QUICK else pytest.mark.slow) for m in model_types()],
)
def test_an_architecture_is_right_or_refused(model_type, tmp_path, record_property):
    warnings.simplefilter("ignore")
    findings: list[Finding] = []
    try:
        for number, model_class in enumerate(model_classes(model_type)):
            findings += examine(model_type, model_class, tmp_path / str(number))
    except Exception as error:  # how a tiny one is made is a matter of trying
        not_built[model_type] = _short(error)
        pytest.skip(f"not built: {_short(error)[:90]}")
    if not findings:
        pytest.skip("it reads neither texts nor images")
    tried[model_type] = findings
    record_property("architecture", _verdict(findings))
    faults = [finding for finding in findings if finding.verdict in ("wrong", "unclear")]
    if faults:
        pytest.fail("\n".join(map(str, faults)), pytrace=False)


# The page


def test_enough_architectures_are_tried() -> None:
    if len(tried) + len(not_built) < len(QUICK) + 50:
        pytest.skip("only a part of the architectures was asked for")
    assert len(tried) >= 250, not_built


def test_the_page_says_what_was_found() -> None:
    written = PAGE.read_text() if PAGE.exists() else ""
    if f"transformers {tf.__version__}" not in written and "ARCHITECTURES" not in os.environ:
        pytest.skip("the page is about another version of transformers")
    if len(tried) + len(not_built) < len(QUICK) + 50:
        pytest.skip("only a part of the architectures was asked for")
    page = _page()
    if os.environ.get("ARCHITECTURES") == "write":
        PAGE.write_text(page)
    assert PAGE.read_text() == page, "ARCHITECTURES=write makes it anew"


def _page() -> str:
    every = [finding for findings in tried.values() for finding in findings]
    right = sum(_verdict(findings) == "right" for findings in tried.values())
    lines = [
        "# Architectures",
        f"Of each of {len(tried)} architectures that transformers {tf.__version__} offers, a test "
        "makes a tiny model with random weights. It compares the vectors of a batch with those of "
        f"the plain model, one input at a time. {right} architectures give the same vectors; "
        f"{len(tried) - right} are refused when the encoder is made, with a sentence that says "
        "why. The test writes this page, and fails if a single vector differs.",
        "The name of an architecture is the `model_type` in a model's `config.json`. The "
        '*default* is what `pooling="auto"` takes if the model\'s repository does not name a '
        "pooling.",
        "## Texts: TextEncoder",
        "`mean`, `max` and `last` can be named for every model, and `cls` where it is the default.",
        *_table(every, "TextEncoder", ("default", "batches", "architectures")),
        "What the second column says:",
        "- *padded*: texts of different lengths share a batch, and a mask hides the padding.\n"
        "- *packed*: texts are laid end to end, so that nothing is padded. This is for models that "
        "are loaded by name.\n"
        "- *equal lengths*: padding would change the vectors of this architecture, so only texts "
        "of one length share a batch.\n"
        "- *full length*: the model was trained on texts that are padded to its limit, so each "
        "text is.",
        "## Words: WordEncoder",
        "The vector of a word is by default that of its first token, as the word stands in running "
        "text.",
        *_table(every, "WordEncoder", ("architectures",)),
        "## Images: ImageEncoder",
        *_table(every, "ImageEncoder", ("default", "can be named, too", "architectures")),
        "## Refused",
        "The sentence that a reader gets says more, and names the model's class.",
        *_refused(every),
        "## Not tried",
        "These need a package that embedkit does not install, or no tiny model of them can be made "
        f"from their configuration alone: {_names(not_built)}.",
    ]
    return "\n\n".join(lines) + "\n"


def _table(every: list[Finding], encoder: str, columns: tuple[str, ...]) -> list[str]:
    """Make rows of what is alike."""
    rows: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for each in every:
        if each.encoder == encoder and each.verdict == "right":
            others = [f"`{name}`" for name in each.right if name not in ("auto", each.auto)]
            default, named = f"`{each.auto}`", ", ".join(others)
            cells = {"default": default, "batches": each.batching, "can be named, too": named}
            rows[tuple(cells[name] for name in columns[:-1])].add(each.model_type)
    body = [f"| {' | '.join((*cells, _names(names)))} |" for cells, names in sorted(rows.items())]
    return ["\n".join([f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}", *body])]


def _refused(every: list[Finding]) -> list[str]:
    rows: dict[tuple[str, str], set[str]] = defaultdict(set)
    for each in every:
        if each.verdict == "refused" and each.encoder != "WordEncoder":  # as TextEncoder
            inputs = "images" if each.encoder == "ImageEncoder" else "texts"
            rows[inputs, _because(each.refused["auto"], inputs)].add(each.model_type)
    head = ["| of | because | architectures |", "| --- | --- | --- |"]
    body = [
        f"| {of} | {because} | {_names(names)} |" for (of, because), names in sorted(rows.items())
    ]
    return ["\n".join(head + body)]


def _because(sentence: str, inputs: str) -> str:
    """Say in short why a model is refused."""
    if "another vector" in sentence:
        return "the same input has another vector at each call"
    if "does not run" in sentence:
        return f"the model does not run on {inputs} alone"
    taken = re.search(r" takes (\w+), not", sentence)
    if taken and taken[1] != "None":
        return f"the model's main input is `{taken[1]}`"
    return "the model does not give one hidden state for each token or place"


def _names(model_types: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(model_types))
