"""What `WordEncoder` promises: every word exactly one row, and the right one."""

import warnings
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as tf
from datasets import ClassLabel, Dataset, Features, List, Value
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

import embedkit as ek
from embedkit.encoders._batches import best_window, windows
from embedkit.loading import _bundled as bundled
from tests.conftest import TEXT, _byte_bpe

MINILM = "bundled/all-MiniLM-L6-v2"
SENTENCES = [
    ["the", "kettles", "unread", "jordan"],
    ["paris"],
    ["yesterday", "gr33n", "amazon", "arrived", "in", "paris"],
]
ODD = [
    ["see", "https://example.org/a?b=c&d=%20e#f", "now"],
    ["good", "👍🏽", "👩‍👩‍👧", "bad"],
    ["東京", "は", "大きい", "paris"],
    ["state-of-the-art", "it's", "...", "3,000.50", "a@b.co", "#tag"],
    ["ÅNGSTRÖM", "naïve", "ﬁn", "e\u0301te\u0301"],
]


def close(ours, theirs, atol=1e-5) -> None:
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


def plain(name, **settings):
    folder = bundled.model_folder(name) if name.startswith("bundled/") else name
    tokenizer = tf.AutoTokenizer.from_pretrained(folder, **settings)
    return tokenizer, tf.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()


def words_by_hand(name, sentences, subwords, **settings) -> np.ndarray:
    """Read every sentence alone, and average or choose its tokens by `word_ids()`."""
    tokenizer, model = plain(name, **settings)
    rows = []
    for sentence in sentences:
        encoded = tokenizer(sentence, is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            state = model(**encoded).last_hidden_state[0].numpy()
        for word in range(len(sentence)):
            own = state[[i for i, at in enumerate(encoded.word_ids(0)) if at == word]]
            rows.append({"first": own[0], "last": own[-1], "mean": own.mean(0)}[subwords])
    return np.array(rows)


@pytest.mark.parametrize("subwords", ["first", "mean", "last"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "roberta", MINILM])
def test_words_against_word_ids_by_hand(tiny, name, subwords):
    settings = {"add_prefix_space": True} if name in ("gpt2", "roberta") else {}
    name = name if name == MINILM else tiny(name)
    found = ek.WordEncoder(name, subwords=subwords).encode(SENTENCES).vectors
    close(found, words_by_hand(name, SENTENCES, subwords, **settings))


def test_a_gpt_reads_the_first_word_after_a_space_too(tiny):
    encoder = ek.WordEncoder(tiny("gpt2"))
    alone = encoder.encode([["kettle"]]).vectors[0]
    tokenizer, model = plain(tiny("gpt2"))
    with torch.no_grad():
        state = model(**tokenizer(" kettle", return_tensors="pt")).last_hidden_state[0]
    close(alone, state[0])
    assert not encoder.processor.add_prefix_space  # the reader's tokenizer is left as it was


def generic_byte_level():
    """Make a byte-level tokenizer of no class of its own, as ModernBERT's."""
    vocab, merges = _byte_bpe()
    trained = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trained.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(token, vocab[token]) for token in ("<s>", "</s>")]
    )
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=trained, cls_token="<s>", sep_token="</s>", pad_token="<pad>",
        model_max_length=64,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["gpt2", "roberta", "t5", "modernbert"])
def test_a_word_has_the_tokens_it_has_behind_a_space(tiny, kind):
    if kind == "modernbert":
        tokenizer = generic_byte_level()
        sizes = {**TEXT, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        config = tf.ModernBertConfig(**sizes, cls_token_id=0, sep_token_id=2)
        encoder = ek.WordEncoder(tf.ModernBertModel(config).eval(), processor=tokenizer)
    else:
        encoder = ek.WordEncoder(tiny(kind))
        tokenizer = encoder.processor
    seen = []
    encoder.body.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    encoder.encode([["kettle", "kettle", "unread", "paris"]])
    (ids,) = seen[-1]
    plain = tokenizer("x kettle kettle unread paris", add_special_tokens=False)["input_ids"]
    behind = plain[len(tokenizer("x", add_special_tokens=False)["input_ids"]) :]
    start = len(encoder.processor("")["input_ids"]) // 2 if kind != "t5" else 0
    assert ids[start : start + len(behind)] == behind  # each word as behind a space
    alone = tokenizer("kettle", add_special_tokens=False)["input_ids"]
    assert (ids[start : start + len(alone)] == alone) is (kind == "t5")
    words = ["kettle", "kettle", "unread", "paris"]
    found = encoder.encode([words]).vectors
    assert np.isfinite(found).all() and len(found) == 4


def test_every_word_has_one_row_in_reading_order(tiny):
    for name in (tiny("bert"), tiny("gpt2"), MINILM):
        found = ek.WordEncoder(name, subwords="mean").encode(ODD)
        assert found.word == [word for sentence in ODD for word in sentence]
        assert found.sentence.tolist() == [i for i, row in enumerate(ODD) for _ in row]
        assert found.position.tolist() == [i for row in ODD for i in range(len(row))]
        assert found.vectors.shape == (len(found), found.vectors.shape[1])
        assert np.isfinite(found.vectors).all()
    close(found.vectors, words_by_hand(MINILM, ODD, "mean"))


def test_strings_are_split_on_white_space(tiny):
    encoder = ek.WordEncoder(tiny("bert"))
    found = encoder.encode(["  the kettle,\tboils\n", "paris"])
    assert found.word == ["the", "kettle,", "boils", "paris"]
    close(found.vectors, encoder.encode([["the", "kettle,", "boils"], ["paris"]]).vectors)
    mixed = encoder.encode([("the", "kettle,", "boils"), "paris"])
    close(mixed.vectors, found.vectors)


def test_a_word_the_tokenizer_drops_keeps_its_row_as_nan():
    sentences = [["a", "\u200b", "cat"], ["", "sat"], ["on", "a", "mat"]]
    encoder = ek.WordEncoder(MINILM)
    with pytest.warns(UserWarning, match=r"2 of 8 words .*sentence 0, word 1.*NaN") as caught:
        found = encoder.encode(sentences)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    lost = np.isnan(found.vectors).all(axis=1)
    assert lost.tolist() == [False, True, False, True, False, False, False, False]
    assert np.isfinite(found.vectors[~lost]).all()
    assert found.word[1] == "\u200b"
    close(found.vectors[[0, 2]], encoder.encode([["a", "cat"]]).vectors)


def test_empty_sentences_are_counted_and_give_no_row(tiny):
    encoder = ek.WordEncoder(tiny("bert"))
    found = encoder.encode([[], "", ["paris"], "  ", ["the", "lamp"]])
    assert found.sentence.tolist() == [2, 4, 4]
    close(found.vectors[:1], encoder.encode([["paris"]]).vectors)
    assert encoder.encode([[], ""]).vectors.shape == (0, 32)
    assert [len(rows) for rows in encoder({"tokens": [[], ["paris"], []]})["embedding"]] == [
        0,
        1,
        0,
    ]


def test_a_batch_has_one_array_per_row_and_none_for_none(tiny):
    encoder = ek.WordEncoder(tiny("bert"))
    embedded = encoder({"tokens": [["paris"], [], ["the", "kettles"]]})["embedding"]
    assert [each.shape for each in embedded] == [(1, 32), (0, 32), (2, 32)]
    assert encoder({"tokens": []})["embedding"] == []


def test_a_word_does_not_depend_on_other_sentences(tiny):
    encoder = ek.WordEncoder(tiny("bert"))
    alone = np.concatenate([encoder.encode([sentence]).vectors for sentence in SENTENCES])
    for size in (None, 1, 2):
        close(encoder.encode(SENTENCES, batch_size=size).vectors, alone)


def test_words_get_their_layers_and_length(tiny):
    encoder = ek.WordEncoder(tiny("bert"), layers=[0, -1], combine="concat", normalize=True)
    vectors = encoder.encode(SENTENCES).vectors
    assert encoder.dim == vectors.shape[1] == 64
    close(np.linalg.norm(vectors, axis=1), np.ones(len(vectors)))


# Sentences longer than the model


def slow_reference(folder, words, size) -> list[list[np.ndarray]]:
    """Read every window apart; give each word's vectors in the windows that suit it best.

    Best is what holds most of the word and then shows most context on the poorer side. There are
    several where two windows tie.
    """
    tokenizer, model = plain(folder)
    encoded = tokenizer(words, is_split_into_words=True, add_special_tokens=False, verbose=False)
    ids, word_ids, room = encoded["input_ids"], encoded.word_ids(0), size - 2
    starts = [*range(0, len(ids) - room, room // 2), max(0, len(ids) - room)]
    states = []
    for start in starts:
        framed = [tokenizer.cls_token_id, *ids[start : start + room], tokenizer.sep_token_id]
        with torch.no_grad():
            states.append(model(input_ids=torch.tensor([framed])).last_hidden_state[0, 1:-1])
    rows = []
    for word in range(len(words)):
        own = [i for i, at in enumerate(word_ids) if at == word]
        goodness = [
            (
                sum(start <= i < start + room for i in own),
                min(own[0] - start, start + room - 1 - own[-1]),
            )
            for start in starts
        ]
        rows.append(
            [
                state[[i - start for i in own if start <= i < start + room]].mean(0).numpy()
                for start, state, good in zip(starts, states, goodness, strict=True)
                if good == max(goodness)
            ]
        )
    return rows


@pytest.mark.parametrize("length", [7, 14, 15, 20, 21, 22, 40, 100])
def test_each_word_is_read_where_it_sees_most_context(tiny, length):
    generator = np.random.default_rng(length)
    words = list(generator.choice(["paris", "the", "kettles", "gr33n", "unread", "a"], length))
    by_hand = slow_reference(tiny("short_bert"), words, 16)
    found = ek.WordEncoder(tiny("short_bert"), subwords="mean").encode([words]).vectors
    assert sum(len(vectors) == 1 for vectors in by_hand) > 0.7 * length  # few ties
    for word, vectors in enumerate(by_hand):
        distance = min(np.abs(found[word] - vector).max() for vector in vectors)
        assert distance < 1e-5, f"word {word} comes from another window"


def test_windows_cover_everything_and_overlap_by_half():
    for size in (1, 2, 3, 14, 15):
        for length in range(1, 80):
            spans = windows(length, size)
            assert spans[0][0] == 0 and spans[-1][1] == length
            assert all(stop - start == min(size, length) for start, stop in spans)
            steps = [b[0] - a[0] for a, b in pairwise(spans)]
            assert all(0 < step <= max(1, size // 2) for step in steps)


def test_the_best_window_is_the_best_of_all():
    generator = np.random.default_rng(0)
    for size in (2, 5, 14):
        spans = windows(60, size)
        first = generator.integers(0, 60, 50)
        last = np.minimum(first + generator.integers(0, size + 3, 50), 59)

        def goodness(a, b, span):
            start, stop = span
            return min(b + 1, stop) - max(a, start), min(a - start, stop - 1 - b)

        for a, b, number in zip(first, last, best_window(first, last, spans), strict=True):
            best = max(goodness(a, b, span) for span in spans)
            assert goodness(a, b, spans[number])[0] == best[0]  # no more of a word is lost
            if b - a < size:
                assert goodness(a, b, spans[number]) == best


def test_a_sentence_that_fits_is_read_whole(tiny):
    words = ["paris", "the", "kettle"] * 4 + ["red", "blue"]
    assert len(words) == 14  # and two special tokens make 16
    whole = ek.WordEncoder(tiny("short_bert")).encode([words]).vectors
    close(whole, words_by_hand(tiny("short_bert"), [words], "first"))


@pytest.mark.slow
def test_a_sentence_of_3000_words_loses_none(tiny):
    words = [f"paris{i}" if i % 7 == 0 else "kettles" for i in range(3000)]
    encoder = ek.WordEncoder(tiny("bert"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = encoder.encode([["the"], words, ["lamp"]])
    assert found.word == ["the", *words, "lamp"]
    assert np.isfinite(found.vectors).all()
    close(found.vectors[[0, -1]], encoder.encode([["the"], ["lamp"]]).vectors)


def test_a_word_longer_than_a_window_has_a_vector(tiny):
    for subwords in ("first", "mean", "last"):
        encoder = ek.WordEncoder(tiny("short_bert"), subwords=subwords)
        found = encoder.encode([["the", "x" * 60, "lamp"], ["y" * 99]])
        assert np.isfinite(found.vectors).all()


# The page's raw view


@pytest.mark.parametrize("name", ["bert", "gpt2", MINILM])
def test_token_states_are_the_whole_state(tiny, name):
    name = name if name == MINILM else tiny(name)
    texts = ["the kettles boil", "a", "unread novels in paris and london"]
    tokenizer, model = plain(name)
    states = ek.WordEncoder(name).token_states(texts)
    assert isinstance(states, list)
    for text, state in zip(texts, states, strict=True):
        with torch.no_grad():
            whole = model(**tokenizer([text], return_tensors="pt")).last_hidden_state[0]
        close(state, whole)
        assert state.dtype == np.float32


def test_token_states_of_lists_of_words_match_the_words(tiny):
    for name in ("bert", "gpt2"):
        encoder = ek.WordEncoder(tiny(name))
        states = encoder.token_states(SENTENCES)
        settings = {"add_prefix_space": True} if name == "gpt2" else {}
        tokenizer, _ = plain(tiny(name), **settings)
        vectors = encoder.encode(SENTENCES).vectors
        rows = []
        for sentence, state in zip(SENTENCES, states, strict=True):
            word_ids = tokenizer(sentence, is_split_into_words=True).word_ids(0)
            assert len(word_ids) == len(state)
            rows += [state[word_ids.index(word)] for word in range(len(sentence))]
        close(vectors, rows)


def test_token_states_are_cut_with_one_warning(tiny):
    encoder = ek.WordEncoder(tiny("short_bert"))
    with pytest.warns(UserWarning, match=r"1 of 2 texts are longer than the 16 tokens") as caught:
        states = encoder.token_states(["the " * 40, "a lamp"])
    assert len(caught) == 1
    assert [len(state) for state in states] == [16, 4]
    assert encoder.token_states([]) == []


# Mentions

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
MENTIONS = [
    # tags of one sentence, and the (start, end, label) they mark
    ("O B-PER I-PER O B-LOC", [(1, 3, "PER"), (4, 5, "LOC")]),
    ("I-PER I-PER O O O", [(0, 2, "PER")]),  # I- begins
    ("B-PER I-LOC O O O", [(0, 1, "PER"), (1, 2, "LOC")]),  # another type
    ("B-PER B-PER I-PER I-PER I-PER", [(0, 1, "PER"), (1, 5, "PER")]),
    ("O I-LOC O I-LOC O", [(1, 2, "LOC"), (3, 4, "LOC")]),
    ("O O O O O", []),
]


@pytest.fixture(scope="module")
def found(tiny):
    encoder = ek.WordEncoder(tiny("bert"))
    return encoder.encode([["paris", "jordan", "kettles", "in", "amazon"]] * len(MENTIONS))


def test_mentions_are_the_mean_of_their_words(found):
    tags = [row.split() for row, _ in MENTIONS]
    mentions = found.entities(tags)
    expected = [(i, *span) for i, (_, spans) in enumerate(MENTIONS) for span in spans]
    columns = (mentions.sentence, mentions.start, mentions.end, mentions.label)
    assert list(zip(*columns, strict=True)) == expected
    assert isinstance(mentions, ek.WordVectors) and len(mentions) == len(expected)
    np.testing.assert_array_equal(mentions.position, mentions.start)
    for row, (sentence, start, end, _) in enumerate(expected):
        own = slice(5 * sentence + start, 5 * sentence + end)
        close(mentions.vectors[row], found.vectors[own].mean(0))
        assert mentions.word[row] == " ".join(found.word[own])


def test_numbered_tags_need_names(found):
    spelled = [row.split() for row, _ in MENTIONS]
    numbers = [[TAGS.index(tag) for tag in row] for row in spelled]
    expected = found.entities(spelled)
    for tags in (numbers, [np.array(row) for row in numbers]):
        given = found.entities(tags, names=TAGS)
        assert given.label == expected.label
        close(given.vectors, expected.vectors, atol=0)
    with pytest.raises(ValueError, match=r"tag 0 has no name; pass `names`"):
        found.entities(numbers)


def test_a_column_of_tags_brings_its_names(found):
    spelled = [row.split() for row, _ in MENTIONS]
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=TAGS))})
    data = Dataset.from_dict(
        {
            "tokens": [found.word[:5]] * len(MENTIONS),
            "ner_tags": [[TAGS.index(tag) for tag in row] for row in spelled],
        },
        features=features,
    )
    assert found.entities(data["ner_tags"]).label == found.entities(spelled).label


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ([["O"] * 5] * 5 + [["O"] * 4], "sentence 5 has 5 words but 4 tags"),
        ([["O"] * 5] * 5, "6 sentences but tags for 5"),
        ([["O"] * 5] * 6 + [["O"]], "sentence 6 has 0 words but 1 tags"),
        ([["PER", *["O"] * 4]] * 6, "tag 'PER' is not BIO"),
        ([[None, *["O"] * 4]] * 6, "tag None is not BIO"),
    ],
)
def test_tags_that_do_not_fit_are_refused(found, tags, message):
    with pytest.raises(ValueError, match=message):
        found.entities(tags)


def test_trailing_empty_sentences_need_no_words(tiny):
    found = ek.WordEncoder(tiny("bert")).encode([["paris"], []])
    assert found.entities([["B-LOC"], []]).word == ["paris"]
    none = ek.WordEncoder(tiny("bert")).encode([[], []])
    assert none.entities([[], []]).vectors.shape == (0, 32)
    assert none.entities([[], []]).label == []


def test_a_mention_leaves_lost_words_out():
    with pytest.warns(UserWarning, match="1 of 3 words"):
        found = ek.WordEncoder(MINILM).encode([["New", "\u200b", "York"]])
    mention = found.entities([["B-LOC", "I-LOC", "I-LOC"]])
    close(mention.vectors[0], found.vectors[[0, 2]].mean(0))


def test_tables_of_words_and_of_mentions(found):
    table = found.to_pandas()
    assert isinstance(table, pd.DataFrame)
    assert list(table.columns) == ["sentence", "position", "word"]
    assert table["word"].tolist() == found.word
    mentions = found.entities([row.split() for row, _ in MENTIONS])
    table = mentions.to_pandas()
    assert list(table.columns) == ["sentence", "position", "word", "label", "start", "end"]
    assert len(table) == len(mentions.vectors)
    assert table["label"].tolist() == mentions.label
