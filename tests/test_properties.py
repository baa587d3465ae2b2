"""What holds for any input: company, order, padding, pickling, alignment and windows."""

import functools
import pickle

import numpy as np
import pytest
import torch
import transformers as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import embedkit as ek
from tests.conftest import WORDS

# Words of the vocabulary, and whatever else people write; no half characters, which are refused.
ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
TEXTS = st.lists(st.one_of(st.lists(st.sampled_from(WORDS), max_size=20).map(" ".join), ANY))
SOME = TEXTS.map(lambda texts: [*texts[:8], "the kettle"])
SENTENCES = st.lists(
    st.lists(st.sampled_from([*WORDS, "kettles", "gr33n", "unread"]), min_size=1, max_size=30),
    min_size=1,
    max_size=4,
)
few = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,  # the same in every run
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def encoder(tiny):
    return functools.cache(lambda name, pooling: ek.TextEncoder(tiny(name), pooling=pooling))


def same(found, expected) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@few
@given(texts=SOME, size=st.integers(1, 9), pooling=st.sampled_from(["cls", "mean", "max", "last"]))
def test_batches_change_nothing(encoder, texts, size, pooling):
    bert = encoder("bert", pooling)
    same(bert.encode(texts, batch_size=size), bert.encode(texts))


@pytest.mark.slow
@few
@given(texts=SOME, order=st.randoms(use_true_random=False))
def test_order_changes_nothing(encoder, texts, order):
    rows = list(range(len(texts)))
    order.shuffle(rows)
    found = encoder("bert", "mean").encode([texts[row] for row in rows])
    same(found, encoder("bert", "mean").encode(texts)[rows])


@pytest.mark.slow
@few
@given(left=SOME, right=SOME)
def test_two_lists_are_the_sum_of_their_parts(encoder, left, right):
    bert = encoder("bert", "mean")
    same(bert.encode(left + right), np.concatenate([bert.encode(left), bert.encode(right)]))


@pytest.mark.slow
@few
@given(texts=SOME, side=st.sampled_from(["left", "right"]))
def test_the_padding_side_changes_nothing(encoder, texts, side):
    bert = encoder("bert", "last")
    expected = bert.encode(texts)
    before, bert.processor.padding_side = bert.processor.padding_side, side
    try:
        same(bert.encode(texts, batch_size=4), expected)
    finally:
        bert.processor.padding_side = before


@pytest.mark.slow
@settings(few, max_examples=8)
@given(texts=SOME, pooling=st.sampled_from(["cls", "mean"]), normalize=st.booleans())
def test_a_pickled_encoder_gives_the_same(tiny, texts, pooling, normalize):
    bert = ek.TextEncoder(tiny("bert"), pooling=pooling, normalize=normalize)
    again = pickle.loads(pickle.dumps(bert))
    np.testing.assert_array_equal(again.encode(texts), bert.encode(texts))


@pytest.fixture(scope="module")
def reference(tiny):
    """Read each sentence alone, token by token, the slow way."""
    tokenizer = tf.AutoTokenizer.from_pretrained(tiny("bert"))
    model = tf.AutoModel.from_pretrained(tiny("bert")).eval()

    def read(sentences, subwords):
        rows = []
        for words in sentences:
            ids, owner = [tokenizer.cls_token_id], [None]
            for number, word in enumerate(words):  # each word tokenised by itself
                pieces = tokenizer(word, add_special_tokens=False)["input_ids"]
                ids, owner = ids + pieces, owner + [number] * len(pieces)
            with torch.no_grad():
                state = model(torch.tensor([[*ids, tokenizer.sep_token_id]])).last_hidden_state[0]
            for number in range(len(words)):
                own = torch.stack([state[i] for i, each in enumerate(owner) if each == number])
                rows.append({"first": own[0], "last": own[-1], "mean": own.mean(0)}[subwords])
        return torch.stack(rows).numpy()

    return read


@pytest.mark.slow
@few
@given(sentences=SENTENCES, subwords=st.sampled_from(["first", "mean", "last"]))
def test_words_are_aligned_as_a_slow_reader_aligns_them(tiny, reference, sentences, subwords):
    words = ek.WordEncoder(tiny("bert"), subwords=subwords)
    found = words.encode(sentences)
    same(found.vectors, reference(sentences, subwords))
    assert found.word == [word for sentence in sentences for word in sentence]


@pytest.mark.slow
@few
@given(sentences=SENTENCES, max_length=st.integers(8, 40))
def test_windows_lose_no_word_and_change_none_that_fits(tiny, sentences, max_length):
    whole = ek.WordEncoder(tiny("bert"))
    windowed = ek.WordEncoder(tiny("bert"), max_length=max_length)
    expected, found = whole.encode(sentences), windowed.encode(sentences)
    assert found.word == expected.word and np.isfinite(found.vectors).all()
    tokens = [len(states) for states in whole.token_states(sentences)]
    fits = np.array([count <= max_length for count in tokens])[found.sentence]
    same(found.vectors[fits], expected.vectors[fits])
