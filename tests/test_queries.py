"""The bundled queries: what they hold, how they were judged, and whose words they share."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer
from sklearn.metrics import cohen_kappa_score

import embedkit as ek

DATA = Path(__file__).parents[1] / "data"
# What is left of "don't" and its like once the apostrophe splits them.
STUMPS = "ll|ve|don|doesn|didn|isn|aren|wasn|weren|won|wouldn|couldn|shouldn|haven|hasn"
STOP_WORDS = ENGLISH_STOP_WORDS | set(STUMPS.split("|"))
COLUMNS = ["text", "product", "wording", "criterion", "relevant"]


@pytest.fixture(scope="module")
def recipe():
    """Import the recipe that packs the texts."""
    spec = importlib.util.spec_from_file_location("pack", DATA / "recipes" / "pack_texts.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reviews():
    return list(ek.load_data("bundled/reviews", split="train"))


@pytest.fixture(scope="module")
def queries():
    return list(ek.load_data("bundled/reviews", split="queries"))


def content_words(text: str) -> set[str]:
    """Give the first four letters of each content word without its ending.

    This joins too much rather than too little: "broke" and "broken", and "charge" and "charred".
    """
    words = set(re.findall(r"[a-z]{2,}", text.lower())) - STOP_WORDS
    stems = set()
    for word in words:
        stem = re.sub(r"(?:ing|ed|es|ly|er|s|y|e)$", "", word)
        stem = re.sub(r"([^aeiou])\1$", r"\1", stem if len(stem) > 2 else word)  # runn, run
        stems.add(stem[:4])
    return stems


def share_without_a_common_word(query, reviews) -> float:
    """Measure which share of a query's relevant reviews have no content word in common with it."""
    own = content_words(query["text"])
    texts = [reviews[row]["text"] for row in query["relevant"]]
    return np.mean([not own & content_words(text) for text in texts])


def test_content_words_join_the_forms_of_a_word():
    assert content_words("It's broken") == content_words("the BROKE one") == {"brok"}
    assert content_words("running") == content_words("runs, and don't") == {"run"}
    assert content_words("batteries") == content_words("a battery") == {"batt"}


def test_queries_have_relevant_rows_of_their_product(queries, reviews):
    assert list(queries[0]) == COLUMNS
    assert len(queries) >= 60
    assert len({query["text"].lower() for query in queries}) == len(queries)
    products = {review["product"] for review in reviews}
    assert {query["product"] for query in queries} == {"any", *products}
    for query in queries:
        rows = query["relevant"]
        assert 3 <= len(rows) <= 30 and rows == sorted(set(rows))
        assert rows[0] >= 0 and rows[-1] < len(reviews)
        if query["product"] != "any":
            assert {reviews[row]["product"] for row in rows} == {query["product"]}


def test_packed_queries_equal_their_source(recipe, queries):
    rows = recipe.read_reviews(DATA / "recipes" / "reviews.tsv")
    train = recipe.split_reviews(rows)["train"]
    assert queries == recipe.read_queries(DATA / "recipes" / "queries.txt", train)


@pytest.mark.parametrize(
    ("openings", "message"),
    [
        ("A b\nA c\nB", "0 reviews open with 'B'"),
        ("A b\nA c\nA", "3 reviews open with 'A'"),
        ("A b\nA c", "needs 3 to 30 relevant reviews, none twice"),
        ("A b\nA c\nA d\nA d", "needs 3 to 30 relevant reviews, none twice"),
    ],
)
def test_the_recipe_refuses_judgements_it_cannot_place(recipe, tmp_path, openings, message):
    source = tmp_path / "queries.txt"
    source.write_text(f"any\tsame\tletters\tIt is about letters.\n{openings}\n")
    reviews = [{"text": text} for text in ("A b.", "A c.", "A d.")]
    with pytest.raises(ValueError, match=message):
        recipe.read_queries(source, reviews)


def test_at_least_half_of_the_queries_share_no_word_with_most_relevant_reviews(queries, reviews):
    shares = np.array([share_without_a_common_word(query, reviews) for query in queries])
    other = shares > 0.5
    assert other.mean() >= 0.5
    assert ["other" if each else "same" for each in other] == [
        query["wording"] for query in queries
    ]
    card = (DATA / "reviews" / "README.md").read_text(encoding="utf-8")
    assert f"{other.sum()} of the {len(queries)} queries" in card
    assert other.mean() <= 0.75  # so that word search gets its chance


def test_the_second_judgement_agrees_as_the_card_says(recipe, queries, reviews):
    relevant = {query["text"]: set(query["relevant"]) for query in queries}
    first, second = [], []
    source = (DATA / "recipes" / "queries_again.txt").read_text(encoding="utf-8")
    blocks = [block.splitlines() for block in source.strip().split("\n\n")]
    for text, *lines in blocks:
        rows = [recipe.find_review(line.split("\t")[1], reviews) for line in lines]
        assert relevant[text] <= set(rows)
        first += [row in relevant[text] for row in rows]
        second += [line.startswith("yes\t") for line in lines]
    kappa = cohen_kappa_score(first, second)
    assert kappa >= 0.8
    card = " ".join((DATA / "reviews" / "README.md").read_text(encoding="utf-8").split())
    apart = sum(a != b for a, b in zip(first, second, strict=True))
    assert f"{len(blocks)} queries drawn at random" in card
    assert f"{apart} of {len(first)} pairs" in card
    assert f"kappa is {kappa:.2f}" in card


@pytest.mark.slow
def test_word_search_finds_its_own_words_and_embeddings_find_others(queries, reviews):
    texts = [review["text"] for review in reviews]
    asked = [query["text"] for query in queries]
    words = TfidfVectorizer(sublinear_tf=True, stop_words="english").fit(texts)
    encoder = ek.TextEncoder("bundled/all-MiniLM-L6-v2", pooling="mean", normalize=True)
    recall = {}
    for name, encode in {"words": words.transform, "vectors": encoder.encode}.items():
        scores = encode(asked) @ encode(texts).T
        scores = scores if isinstance(scores, np.ndarray) else scores.toarray()
        nearest = np.argsort(-scores, axis=1, kind="stable")[:, :10]
        found = [
            np.isin(query["relevant"], rows[own[rows] > 0]).mean()
            for query, rows, own in zip(queries, nearest, scores, strict=True)
        ]
        for wording in ("same", "other"):
            pairs = zip(queries, found, strict=True)
            recall[name, wording] = np.mean([r for q, r in pairs if q["wording"] == wording])
    assert recall["words", "other"] < 0.15 < recall["vectors", "other"] < 0.6
    assert 0.3 < recall["words", "same"] < 0.9
    assert recall["vectors", "other"] >= 2 * recall["words", "other"]
