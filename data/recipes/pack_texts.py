"""Check the texts written for this project and pack them as Parquet: reviews, queries, entities.

Run it after editing the sources beside it::

    python data/recipes/pack_texts.py

`reviews.tsv` and `reviews_foreign.tsv` hold a label, a product and a text per line. `queries.txt`
holds a block per query: its product, its wording, its text and what makes a review relevant, then
the opening of each relevant review, one a line. The files `entities_*.txt` hold a sentence per
line, with mentions marked as ``[Lisbon|LOC]``.
"""

import random
import re
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, List, Value

HERE = Path(__file__).parent
DATA = HERE.parent
SENTIMENTS = ["negative", "neutral", "positive"]
TYPES = ["PER", "ORG", "LOC", "MISC"]
TAGS = ["O", *(f"{prefix}-{kind}" for kind in TYPES for prefix in "BI")]
TEST_SHARE = 0.3

MENTION = re.compile(r"\[([^\[\]|]+)\|(\w+)\]")
# A word with its inner hyphens, apostrophes, dots and commas; the 's after a name; or a sign.
TOKEN = re.compile(r"['’]s\b|\w+(?:[-'’.,]\w+)*|[^\w\s]")


def trigrams(text: str) -> set[tuple[str, ...]]:
    """List the word trigrams of a text, in lower case and without punctuation."""
    words = re.findall(r"\w+(?:['’]\w+)*", text.lower())
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def check_reviews(texts: list[str]) -> list[str]:
    """Say where texts are copies of one another, open alike, or have the wrong length."""
    faults = []
    opening = Counter(" ".join(re.findall(r"\w+", text.lower())[:4]) for text in texts)
    faults += [
        f"{count} texts open with {words!r}" for words, count in opening.items() if count > 6
    ]
    grams = [trigrams(text) for text in texts]
    holders = defaultdict(list)
    for number, own in enumerate(grams):
        for gram in own:
            holders[gram].append(number)
    shared = Counter(pair for numbers in holders.values() for pair in combinations(numbers, 2))
    for (a, b), count in shared.items():
        shorter = min(len(grams[a]), len(grams[b]))
        if shorter > 3 and count > shorter / 2:
            faults.append(f"near copies: {texts[a]!r} and {texts[b]!r}")
    for text in texts:
        if not 5 <= len(text.split()) <= 80:
            faults.append(f"{len(text.split())} words: {text!r}")
    return faults


def read_reviews(path: Path) -> list[dict[str, str]]:
    """Read label, product and text, one row a line."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        label, product, text = line.split("\t")
        rows.append({"text": text.strip(), "label": label, "product": product})
    return rows


def split_reviews(rows: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """Part the reviews into train and test, the same share of every label and product."""
    draw = random.Random(0)
    cells = defaultdict(list)
    for row in rows:
        cells[row["label"], row["product"]].append(row)
    splits: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for cell in cells.values():
        draw.shuffle(cell)
        cut = round(TEST_SHARE * len(cell))
        splits["test"] += cell[:cut]
        splits["train"] += cell[cut:]
    for split in splits.values():
        draw.shuffle(split)
    return splits


def find_review(opening: str, reviews: list[dict[str, str]]) -> int:
    """Find the row of the only review that opens with these words."""
    found = [row for row, review in enumerate(reviews) if review["text"].startswith(opening)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} reviews open with {opening!r}; copy more words of the one")
    return found[0]


def read_queries(path: Path, reviews: list[dict[str, str]]) -> list[dict[str, str | list[int]]]:
    """Read each query with the rows of the reviews that were judged relevant to it."""
    queries: list[dict[str, str | list[int]]] = []
    for block in path.read_text(encoding="utf-8").strip().split("\n\n"):
        head, *openings = block.splitlines()
        product, wording, text, criterion = head.split("\t")
        relevant = sorted({find_review(opening, reviews) for opening in openings})
        if not 3 <= len(relevant) == len(openings) <= 30:
            raise ValueError(f"{path.name}: {text!r} needs 3 to 30 relevant reviews, none twice")
        row = {"text": text, "product": product, "wording": wording, "criterion": criterion}
        queries.append({**row, "relevant": relevant})
    return queries


def read_entities(path: Path) -> list[dict[str, list[str]]]:
    """Read marked sentences as words and BIO tags."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        tokens: list[str] = []
        tags: list[str] = []
        # `split` on two groups gives: text, surface, type, text, surface, type, ..., text.
        pieces = MENTION.split(line)
        for i in range(0, len(pieces), 3):
            words = TOKEN.findall(pieces[i])
            tokens += words
            tags += ["O"] * len(words)
            if i + 2 < len(pieces):
                words, kind = pieces[i + 1].split(), pieces[i + 2]
                tokens += words
                tags += [f"B-{kind}", *[f"I-{kind}"] * (len(words) - 1)]
        wrong = set(tags) - set(TAGS)
        if wrong or set("[]|") & set("".join(tokens)):
            raise ValueError(f"{path.name}: {line!r} is not marked as [surface|TYPE]")
        rows.append({"tokens": tokens, "ner_tags": tags})
    return rows


def main() -> None:
    """Check everything, then write everything."""
    reviews = read_reviews(HERE / "reviews.tsv")
    foreign = read_reviews(HERE / "reviews_foreign.tsv")
    faults = check_reviews([row["text"] for row in reviews + foreign])
    if faults:
        raise SystemExit("\n".join(faults))
    splits = {**split_reviews(reviews), "foreign": foreign}
    features = Features(
        {
            "text": Value("string"),
            "label": ClassLabel(names=SENTIMENTS),
            "product": Value("string"),
        }
    )
    for split, rows in splits.items():
        Dataset.from_list(rows, features=features).to_parquet(DATA / "reviews" / f"{split}.parquet")
        print(f"reviews/{split}: {len(rows)} texts")
    features = Features(
        {
            **dict.fromkeys(["text", "product", "wording", "criterion"], Value("string")),
            "relevant": List(Value("int32")),
        }
    )
    queries = read_queries(HERE / "queries.txt", splits["train"])
    Dataset.from_list(queries, features=features).to_parquet(DATA / "reviews" / "queries.parquet")
    print(f"reviews/queries: {len(queries)} queries")
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=TAGS))})
    for split in ("train", "test", "drifted"):
        rows = read_entities(HERE / f"entities_{split}.txt")
        encoded = [
            {"tokens": row["tokens"], "ner_tags": [TAGS.index(tag) for tag in row["ner_tags"]]}
            for row in rows
        ]
        table = Dataset.from_list(encoded, features=features)
        table.to_parquet(DATA / "entities" / f"{split}.parquet")
        mentions = sum(tag.startswith("B-") for row in rows for tag in row["ner_tags"])
        print(f"entities/{split}: {len(rows)} sentences, {mentions} mentions")


if __name__ == "__main__":
    main()
