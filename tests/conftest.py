"""Tiny random models, saved to folders with tokenizers and image processors of their own."""

import json
import os
import re
import shutil
import tempfile
import textwrap

# Before torch and its kin are imported: no test reaches out, and none opens a window.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models lose time on more
os.environ["MPLBACKEND"] = "agg"
# Named by the process, because pytest and the tests each import this file.
os.environ["HF_DATASETS_CACHE"] = f"{tempfile.gettempdir()}/embedkit-tests-{os.getpid()}"

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

tf.utils.logging.disable_progress_bar()
torch.backends.cudnn.allow_tf32 = False  # on a GPU convolutions would round to three digits

TEXT_OF_WORDS = """
the a in of to and is was not very good bad kettle novel film plot lamp bag phone coffee
paris london jordan amazon sings runs boils reads breaks arrived yesterday quickly slowly
red blue green warm cold bright heavy light river city bank station train winter summer
"""
WORDS = TEXT_OF_WORDS.split()
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**SIZES, "intermediate_size": 64, "initializer_range": 0.4}
VISION = {**TEXT, "image_size": 32, "patch_size": 8}
POSITIONS = 512


def steady(value: object) -> str:
    """Name a case the same in every process: without its place in memory, and a set in order."""
    value = sorted(value) if isinstance(value, set) else value
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def sentence(words: int, generator: np.random.Generator) -> str:
    """Draw a text of so many words; some of them the tokenizers have to split."""
    drawn = generator.choice([*WORDS, "kettles", "unread", "gr33n"], size=words)
    return " ".join(drawn)


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (40, 28)) -> Image.Image:
    """Draw an image of smooth noise, (width, height)."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)


def _word_piece(**settings: object) -> tf.PreTrainedTokenizerBase:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    signs = list(".,:;!?'’/@#&()-_=%+")
    pieces = [*letters, *(f"##{letter}" for letter in letters), *signs, "##s", "un", "##read"]
    vocab = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces, *WORDS])
    numbered = {piece: number for number, piece in enumerate(vocab)}
    return tf.BertTokenizer(vocab=numbered, model_max_length=POSITIONS, **settings)


def _byte_bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"],
        show_progress=False,
    )
    trained.train_from_iterator([" ".join(WORDS), *(f" {word}" for word in WORDS)], trainer)
    merges = json.loads(trained.to_str())["model"]["merges"]
    return trained.get_vocab(), [tuple(pair) for pair in merges]


def _unigram() -> list[tuple[str, float]]:
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    trained.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    pieces = json.loads(trained.to_str())["model"]["vocab"]
    return [(piece, score) for piece, score in pieces]


def _bert() -> tuple[nn.Module, object]:
    tokenizer = _word_piece()
    config = tf.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=POSITIONS, **TEXT)
    return tf.BertModel(config), tokenizer


def _short_bert() -> tuple[nn.Module, object]:
    """A BERT that reads 16 tokens."""
    tokenizer = _word_piece()
    tokenizer.model_max_length = 16
    config = tf.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=16, **TEXT)
    return tf.BertModel(config), tokenizer


def _bert_classifier() -> tuple[nn.Module, object]:
    tokenizer = _word_piece()
    config = tf.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=POSITIONS, **TEXT)
    return tf.BertForSequenceClassification(config), tokenizer


def _gpt2() -> tuple[nn.Module, object]:
    vocab, merges = _byte_bpe()
    tokenizer = tf.GPT2Tokenizer(vocab=vocab, merges=merges, model_max_length=POSITIONS)
    end = vocab["<|endoftext|>"]
    config = tf.GPT2Config(
        vocab_size=len(tokenizer), n_positions=POSITIONS, n_embd=32, n_layer=2, n_head=4,
        bos_token_id=end, eos_token_id=end, initializer_range=0.4,
    )  # fmt: skip
    return tf.GPT2Model(config), tokenizer


def _roberta() -> tuple[nn.Module, object]:
    """A RoBERTa of 34 positions: it reads 32 tokens, and its tokenizer doesn't know."""
    vocab, merges = _byte_bpe()
    tokenizer = tf.RobertaTokenizer(vocab=vocab, merges=merges)
    config = tf.RobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=34, pad_token_id=vocab["<pad>"], **TEXT
    )
    return tf.RobertaModel(config), tokenizer


def _t5() -> tuple[nn.Module, object]:
    tokenizer = tf.T5Tokenizer(vocab=_unigram(), extra_ids=0, model_max_length=POSITIONS)
    config = tf.T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        pad_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip
    return tf.T5ForConditionalGeneration(config), tokenizer


def _pixels(kind: str) -> object:
    """Make a processor that scales to 32 by 32 pixels and normalises."""
    return getattr(tf, f"{kind}ImageProcessorPil")(
        size={"height": 32, "width": 32},
        do_resize=True,
        do_center_crop=False,
        do_normalize=True,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def _vit() -> tuple[nn.Module, object]:
    return tf.ViTModel(tf.ViTConfig(**VISION)), _pixels("ViT")


def _deit() -> tuple[nn.Module, object]:
    return tf.DeiTModel(tf.DeiTConfig(**VISION)), _pixels("ViT")


def _dinov2_registers() -> tuple[nn.Module, object]:
    config = tf.Dinov2WithRegistersConfig(
        **SIZES, mlp_ratio=2, image_size=32, patch_size=8, num_register_tokens=3,
        initializer_range=0.4,
    )  # fmt: skip
    return tf.Dinov2WithRegistersModel(config), _pixels("ViT")


def _swin() -> tuple[nn.Module, object]:
    config = tf.SwinConfig(
        image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4
    )
    return tf.SwinModel(config), _pixels("ViT")


def _resnet() -> tuple[nn.Module, object]:
    config = tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    return tf.ResNetModel(config), _pixels("ViT")


def _convnext() -> tuple[nn.Module, object]:
    config = tf.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], image_size=32)
    return tf.ConvNextModel(config), _pixels("ViT")


def _clip() -> tuple[nn.Module, object]:
    text = {**TEXT, "vocab_size": 50, "projection_dim": 16}
    vision = {**VISION, "projection_dim": 16}
    config = tf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    return tf.CLIPModel(config), _pixels("ViT")


def _siglip() -> tuple[nn.Module, object]:
    config = tf.SiglipConfig(text_config={**TEXT, "vocab_size": 50}, vision_config=VISION)
    return tf.SiglipModel(config), _pixels("ViT")


BUILDERS: dict[str, Callable[[], tuple[nn.Module, object]]] = {
    "bert": _bert,
    "short_bert": _short_bert,
    "bert_classifier": _bert_classifier,
    "gpt2": _gpt2,
    "roberta": _roberta,
    "t5": _t5,
    "vit": _vit,
    "deit": _deit,
    "dinov2_registers": _dinov2_registers,
    "swin": _swin,
    "resnet": _resnet,
    "convnext": _convnext,
    "clip": _clip,
    "siglip": _siglip,
}


def pytest_unconfigure() -> None:
    """Throw the tests' own cache away."""
    shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


# What was done to it on purpose, and how it went: (sort, what) → names of the tests
_tried: dict[tuple[str, str], list[str]] = {}
_lost: list[str] = []
_architectures: list[str] = []  # how each went: right, refused, wrong, unclear


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """Count the faults that were survived and the wrong inputs that were answered."""
    report = yield
    name = item.callspec.id if hasattr(item, "callspec") else item.name
    for sort in ("fault", "bad_input"):
        mark = item.get_closest_marker(sort)
        if mark and (report.failed or report.when == "call"):
            report.user_properties.append((sort, [mark.args[0], name]))
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count what was tried, in the one process that gets the reports of all workers."""
    for sort, found in report.user_properties:
        if sort == "architecture" and report.when == "call":
            _architectures.append(found)
        if sort not in ("fault", "bad_input"):
            continue
        if report.failed:
            _lost.append(report.nodeid)
        elif report.when == "call" and report.passed:
            _tried.setdefault((sort, found[0]), []).append(found[1])


# What takes longest begins first, so that no worker is left alone with it at the end.
LONGEST = (
    "09_scaling_out", "07_fine_tuning", "test_ray", "test_lessons_in_lab", "test_architectures",
    "test_pages", "test_lesson_", "test_hub", "test_saved_maps", "test_server_faults",
    "test_encoders", "test_stand_ins",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files that take longest first; each is run by one worker, whose fixtures it shares."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: min((place[n] for n in LONGEST if n in item.nodeid), default=99))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what was tried, by kind, and the sum."""
    _print_faults(terminalreporter)
    if _architectures:
        right, refused = _architectures.count("right"), _architectures.count("refused")
        wrong = len(_architectures) - right - refused
        terminalreporter.write_line(
            f"architectures: {right} right, {refused} refused, {wrong} wrong"
        )


def _print_faults(terminalreporter: Any) -> None:
    if not _tried and not _lost:
        return
    terminalreporter.section("faults and wrong inputs, tried on purpose")
    counts = {"fault": 0, "bad_input": 0}
    for (sort, what), names in sorted(_tried.items()):
        counts[sort] += len(names)
        shown = ", ".join(name.removeprefix("test_").replace("_", " ") for name in names)
        line = f"{len(names):4} {what}: {shown}"
        terminalreporter.write_line(textwrap.fill(line, 100, subsequent_indent=" " * 7))
    for name in _lost:
        terminalreporter.write_line(f"lost {name}", red=True)
    terminalreporter.write_line(
        f"faults: {counts['fault']} survived, inputs: {counts['bad_input']} answered, "
        f"{len(_lost)} lost"
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Give the folder of a tiny random model by name, built when first asked for."""
    built: dict[str, str] = {}

    def folder(name: str) -> str:
        if name not in built:
            torch.manual_seed(0)
            model, processor = BUILDERS[name]()
            for parameter in model.parameters():  # no layer starts at 0 or 1: all of them matter
                if parameter.ndim == 1 or name in ("swin", "resnet", "convnext", "clip", "siglip"):
                    parameter.data += 0.1 * torch.randn_like(parameter)
            path: Path = tmp_path_factory.mktemp(name)
            model.eval().save_pretrained(path)
            processor.save_pretrained(path)
            built[name] = str(path)
        return built[name]

    return folder


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Give 70 texts of 1 to 400 words, in no order of length."""
    generator = np.random.default_rng(0)
    lengths = generator.permutation(np.linspace(1, 400, 70).astype(int))
    return [sentence(int(length), generator) for length in lengths]


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    """Give six RGB images of different sizes."""
    return [picture(seed, size=(32 + 4 * seed, 40 - 3 * seed)) for seed in range(6)]


@pytest.fixture(scope="session")
def lessons() -> list:
    """Give the lessons with the outputs that are kept in them."""
    from kit.lesson import kept

    paths = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.ipynb"))
    return [kept(path) for path in paths]


@pytest.fixture(scope="session")
def site(lessons: list, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of the site."""
    from kit.pages import Site

    home = Path(__file__).parents[1] / "notebooks"
    made = Site(tmp_path_factory.mktemp("site"), lessons, home)
    made.write()
    made.reference()
    return made.folder


@pytest.fixture(scope="session")
def decks(lessons: list, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of the slides."""
    from kit.slides import write_decks

    folder = tmp_path_factory.mktemp("slides")
    write_decks(lessons, folder)
    return folder
