"""Checks of an encoder and of what it is given, in one table: `diagnose`."""

import copy
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from embedkit import pooling as pooling_functions
from embedkit.encoders._diagnosis import Check, Diagnosis, Verdict
from embedkit.encoders._forward import body_of
from embedkit.encoders._inputs import as_sequence
from embedkit.encoders._trying import difference
from embedkit.images import to_rgb
from embedkit.words import Vectors

# Of more inputs than this, so many are drawn.
_MOST = 256
# Two vectors of one input may differ by so much of their largest value: rounding.
_ROUNDING = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.02}
# What an image processor decides about the numbers that a model gets.
_PREPARATION = ("do_normalize", "do_rescale", "image_mean", "image_std", "rescale_factor")
_TEXTS = [
    "The kettle boils.",
    "A heavy rain fell over the harbour all night, and the last ferry stayed at its pier.",
    "Our train to Lisbon leaves at noon.",
    "She repaired the old radio with a spoon.",
    "Interest rates rose again, so fewer families could pay for a house of their own.",
    "Two goals in the final minute!",
    "The museum lends its drawings only to rooms that are kept cool, dark and dry.",
    "Mix flour, butter and salt; add water until the dough no longer sticks.",
    "Is this seat taken?",
    "A comet's tail always points away from the sun, whichever way the comet travels.",
    "The court adjourned without a verdict.",
    "He learned to whistle before he could read.",
]


def diagnose(encoder: Any, inputs: Any = None) -> Diagnosis:
    """Check an encoder, and what it makes of your inputs.

    Use it when a new model or new data come in, before you trust a map or a score. It says what
    was loaded and pooled, whether a vector depends on its input alone, what became of the inputs,
    and what the space looks like.

    Parameters
    ----------
    encoder : TextEncoder, WordEncoder, ImageEncoder or OpenAIEncoder
    inputs : sequence, optional
        What the encoder takes; of more than 256 inputs, 256 are drawn to be embedded. By default a
        few texts or pictures that embedkit brings, and then the last checks say little.

    Returns
    -------
    Diagnosis
        Shows itself as a table; ``.to_pandas()`` gives the same. ``["padding"]`` is one check.

    Raises
    ------
    ValueError
        If there are no inputs.

    Examples
    --------
    >>> from embedkit import TextEncoder
    >>> encoder = TextEncoder("bundled/all-MiniLM-L6-v2", pooling="mean")
    >>> found = diagnose(encoder, ["a kettle", "a novel", "a kettle", "чайник"])
    >>> found["alone or in a batch"].verdict, found["duplicates"].value
    ('ok', '1 of 4')
    """
    images = hasattr(encoder, "prepare")
    own = _pictures() if images else _TEXTS
    chosen = own if inputs is None else as_sequence(inputs, "inputs", single=(str, bytes))
    if not len(chosen):
        raise ValueError("diagnose: there are no inputs; give some, or leave the argument out")
    rows = np.arange(len(chosen))
    if len(rows) > _MOST:
        rows = np.sort(np.random.default_rng(0).choice(rows, _MOST, replace=False))
    sample = [chosen[int(row)] for row in rows]
    with warnings.catch_warnings():  # what encoders warn of is a check here
        warnings.simplefilter("ignore")
        vectors = _embed(encoder, sample)
        checks = [*_settings(encoder), *_stability(encoder, sample, vectors)]
        if hasattr(encoder, "max_length"):
            checks += _reading(encoder, sample)
        keys = [_key(each) for each in (sample if images else chosen)]
        checks += [*_inputs(keys), *_space(vectors, sample)]
    return Diagnosis(repr(encoder), checks)


def _check(
    name: str, value: str, advice: str, *, look: bool = False, wrong: bool = False, fine: str = ""
) -> Check:
    """Make a line; `advice` is for a fault, and `fine` for none."""
    verdict: Verdict = "wrong" if wrong else "look" if look else "ok"
    return Check(name, value, verdict, advice if look or wrong else fine or "Nothing to do.")


def _settings(encoder: Any) -> Iterator[Check]:
    """Say what was loaded, what is pooled, and who decided it."""
    if not hasattr(encoder, "body"):
        keep = "A service can change the model behind a name: keep the vectors you used."
        yield _check("model", str(encoder.model), "", fine=keep)
        return
    commit = f" at commit {encoder.commit[:10]}" if encoder.commit else ""
    keep = "Note it beside your results" + ("; `revision=` loads it again." if commit else ".")
    yield _check("model", f"{encoder.name}{commit}", "", fine=keep)
    published, pooling = encoder.published, getattr(encoder, "pooling", None)
    if pooling is not None:  # words have their own rule
        name = pooling if isinstance(pooling, str) else getattr(pooling, "__name__", repr(pooling))
        theirs, reason = published.pooling, encoder.pooling_reason
        advice = "The model's repository says nothing: compare poolings on your own data."
        if theirs:
            advice = f"The model's repository says {theirs!r}, which `pooling='auto'` takes."
        shares = bool(encoder.features) and hasattr(encoder.model, encoder.features)
        if shares:
            advice = "Only `pooling='projected'` lies in the space that texts and images share."
        yield _check(
            "pooling",
            f"{name} ({reason or 'you chose it'})",
            advice,
            look=theirs not in (None, pooling)
            or (theirs is None and bool(reason))
            or (shares and pooling != "projected"),
        )
    if published.normalize or pooling == "projected":
        yield _check(
            "normalize",
            str(encoder.normalize),
            "The model's authors scale its vectors to length 1: `normalize=True` does it.",
            look=not encoder.normalize,
        )
    file = Path(encoder.model.name_or_path) / "preprocessor_config.json"
    if hasattr(encoder, "prepare") and file.is_file():
        own = json.loads(file.read_text(encoding="utf-8"))
        given = json.loads(encoder.processor.to_json_string())
        other = [key for key in _PREPARATION if key in own and own[key] != given.get(key)]
        yield _check(
            "processor",
            f"another {', '.join(other)}" if other else "the model's own",
            "The model was trained on images prepared in another way: use its own processor.",
            look=bool(other),
        )


def _stability(encoder: Any, sample: list[Any], vectors: list[Vectors]) -> Iterator[Check]:
    """Test whether a vector depends on its input alone."""
    some, before = sample[:8], vectors[:8]
    dtype = str(getattr(encoder.model, "dtype", "")).removeprefix("torch.")
    tests: dict[str, tuple[Callable[[], list[Vectors]], str]] = {
        "again": (
            lambda: _embed(encoder, some),
            "Each call gives other vectors: something in the model or the pooling is random.",
        ),
        "alone or in a batch": (
            lambda: [_embed(encoder, [each])[0] for each in some],
            "A vector changes with the others of its batch: let your pooling read the mask.",
        ),
        "order": (
            lambda: _embed(encoder, some[::-1])[::-1],
            "Vectors change with the order of the inputs, or come back in another order.",
        ),
    }
    for name, (make, advice) in tests.items():
        off = max(map(difference, before, make()))
        fault = not off <= _ROUNDING.get(dtype, 0.01)
        yield _check(name, f"differs by {off:.1g} of the largest value", advice, wrong=fault)
    if not hasattr(encoder, "body"):
        return
    if hasattr(encoder, "max_length") and hasattr(encoder, "pooling"):
        yield _padding(encoder)
    if dtype == "float32":
        yield _check("dtype", dtype, "")
        return
    exact = object.__new__(type(encoder))
    vars(exact).update(vars(encoder), model=copy.deepcopy(encoder.model).float())
    exact.body = body_of(exact.model, encoder.tower)
    pair = [np.concatenate(each) for each in (_embed(exact, some), before)]
    # The mean is taken off: what all vectors share would hide that the rest is lost.
    same = float(_cosines(*(each - pair[0].mean(axis=0) for each in pair)).min())
    yield _check(
        "dtype",
        f"{dtype}, cosine {same:.3f} to float32",
        "Rounding turns the vectors: use dtype='float32'.",
        look=same < 0.99,
        wrong=same < 0.9,
    )


def _padding(encoder: Any) -> Check:
    """Test whether the model and the pooling leave padding out, on whichever side it is."""
    pool = encoder.pooling
    pool = getattr(pooling_functions, pool, None) if isinstance(pool, str) else pool
    faults: list[str] = []
    if pool is not None:
        width = getattr(encoder.body.config, "hidden_size", encoder.dim)
        real = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(0))
        pad, ones = torch.full((2, 3, width), 9.0), torch.ones(2, 5, dtype=torch.long)
        zeros = torch.zeros(2, 3, dtype=torch.long)
        padded = {
            "right": (torch.cat([real, pad], 1), torch.cat([ones, zeros], 1)),
            "left": (torch.cat([pad, real], 1), torch.cat([zeros, ones], 1)),
        }
        try:
            alone = pool(real, ones)
            faults = [side for side, each in padded.items() if not _same(pool(*each), alone)]
        except (RuntimeError, IndexError) as error:
            advice = "Your pooling function does not take made-up states; test it with padding."
            return _check("padding", f"not tested: {error}"[:60], advice, look=True)
    value = f"the pooling reads it on the {' and '.join(faults)}" if faults else "left out"
    if encoder.facts.get("equal_lengths"):
        return _check(
            "padding",
            f"{value}; texts of one length share a batch",
            "Padding would change the vectors, so embedkit uses none; other libraries may.",
            look=True,
        )
    advice = "Your pooling function takes padding for text: let it read the mask."
    if faults == ["left"]:
        advice = "It is right here, since embedkit pads on the right; elsewhere it may not be."
    return _check("padding", value, advice, look=bool(faults), wrong="right" in faults)


def _reading(encoder: Any, sample: list[Any]) -> Iterator[Check]:
    """Look at what the tokenizer makes of the texts."""
    tokenizer, pooling = encoder.processor, getattr(encoder, "pooling", "words")
    texts = [each if isinstance(each, str) else " ".join(each) for each in sample]
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(texts[0])["input_ids"]) or [""]
    pooled = {"cls": tokens[0], "last": tokens[-1], "words": "words alone", "mean": "all"}
    shown = " ".join(tokens if len(tokens) < 8 else [*tokens[:3], "…", *tokens[-3:]])
    shown += f" (pooled: {pooled[pooling]})" if pooling in pooled else ""
    ends = sorted({tokenizer.eos_token, tokenizer.sep_token} - {None})
    missing = [] if not ends or tokens[-1] in ends else [" or ".join(ends)]
    missing += [tokenizer.cls_token] if tokenizer.cls_token not in (None, *tokens) else []
    causal = encoder.facts["causal"]
    yield _check(
        "tokens",
        shown,
        f"The tokenizer adds no {' and no '.join(missing)}: "
        + ("see the model's card whether it should." if causal else "the model misses it."),
        look=bool(missing),
        wrong=bool(missing) and not causal,
    )
    cut = sum(len(ids) > encoder.max_length for ids in tokenizer(texts, verbose=False)["input_ids"])
    if pooling == "words":
        advice = "Longer sentences are read in windows that overlap."
        yield _check("longer than the model", _of(cut, texts), "", fine=advice)
    else:
        advice = f"They are cut after {encoder.max_length} tokens: split them to keep all of it."
        yield _check("longer than the model", _of(cut, texts), advice, look=bool(cut))
    bare = [i for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] for i in ids]
    unknown = bare.count(tokenizer.unk_token_id) / max(1, len(bare))
    pieces = len(bare) / max(1, sum(len("".join(text.split())) for text in texts))
    yield _check(
        "unknown tokens",
        f"{unknown:.0%}, {pieces:.1f} tokens a letter",
        "The tokenizer does not know this language or script; choose a model that does.",
        look=unknown > 0.01 or pieces > 1.2,
        wrong=unknown > 0.2,
    )


def _inputs(keys: list[Any]) -> Iterator[Check]:
    """Look at the inputs, without a model."""
    empty = sum(not (key.strip() if isinstance(key, str) else key) for key in keys)
    advice = "Leave them out: their vectors say nothing."
    yield _check("empty inputs", _of(empty, keys), advice, look=bool(empty))
    again = len(keys) - len(set(keys))
    advice = "They count double, and one in training and in test data makes scores too good."
    yield _check("duplicates", _of(again, keys), advice, look=bool(again))


def _space(parts: list[Vectors], sample: list[Any]) -> Iterator[Check]:
    """Look at the vectors together."""
    finite = np.asarray(np.isfinite(np.concatenate(parts)).all(axis=1))
    bad = int((~finite).sum())
    advice = "The input could not be read, or the arithmetic overflowed: try dtype='float32'."
    yield _check("not finite", _of(bad, finite), advice, wrong=bool(bad))
    different = list({_key(each): part for each, part in zip(sample, parts, strict=True)}.values())
    vectors = np.concatenate(different).astype(np.float64)
    vectors = vectors[np.isfinite(vectors).all(axis=1)]
    if len(vectors) < 3:
        yield _check("space", f"{len(vectors)} vectors", "", fine="Give more inputs to see it.")
        return
    twins = len(different) - len({part.round(5).tobytes() for part in different})
    advice = "Different inputs have one vector: what is pooled has not seen them."
    yield _check("same vector", _of(twins, different), advice, wrong=bool(twins))
    norms = np.linalg.norm(vectors, axis=1)
    advice = "A vector of zeros has no direction: leave that input out."
    value = f"{norms.min():.3g} to {norms.max():.3g}"
    yield _check("lengths", value, advice, wrong=not norms.all())
    cosine = float(_cosines(vectors, np.roll(vectors, 1, axis=0)).mean())
    advice = "Any two inputs look alike: subtract the mean vector, or choose another pooling."
    value = f"{cosine:.2f} on average"
    yield _check("cosine of two", value, advice, look=cosine > 0.5, wrong=cosine > 0.995)
    spread = vectors.var(axis=0)
    still = int((spread <= 1e-12 * spread.max()).sum())
    advice = "They tell no inputs apart; they may be left out."
    yield _check("constant dimensions", _of(still, spread), advice, look=bool(still))
    share = float(spread.max() / max(spread.sum(), 1e-12))
    advice = "One dimension decides every distance: standardize them."
    yield _check("largest dimension", f"{share:.0%} of all variance", advice, look=share > 0.5)


def _embed(encoder: Any, inputs: list[Any]) -> list[Vectors]:
    """Give one array (vectors, dim) per input: of words several, else one."""
    found = encoder.encode(inputs, progress=False, on_error="skip")
    if isinstance(found, np.ndarray):
        return [vector[None] for vector in found]
    ends = np.cumsum(np.bincount(found.sentence, minlength=len(inputs)))
    return np.split(found.vectors, ends[:-1])


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), atol=1e-4)


def _cosines(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    product = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return (one * other).sum(axis=1) / np.maximum(product, 1e-12)


def _of(count: int, all_of_them: Sequence[Any] | NDArray[Any]) -> str:
    return f"{count} of {len(all_of_them)}"


def _key(value: Any) -> Any:
    """Give what identifies an input; something empty for one without content."""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(word, str) for word in value):
        return tuple(value)
    try:
        image = to_rgb(value, 0)
    except (TypeError, ValueError):
        return repr(value)  # not readable; the check of the vectors says so
    return (image.size, image.tobytes()) if image.getcolors(1) is None else ()


def _pictures() -> list[Image.Image]:
    """Make a few pictures of smooth noise."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)
    return [Image.fromarray(each).resize((64, 64), Image.Resampling.BICUBIC) for each in noise]
