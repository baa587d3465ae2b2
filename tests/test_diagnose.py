"""`diagnose` finds the faults that are provoked here, and finds none where there is none."""

import html
import re

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image

import embedkit as ek
from tests.conftest import picture
from tests.wire import Wire, good

MINILM = "bundled/all-MiniLM-L6-v2"
TEXTS = ["the kettle boils", "a very bad novel in paris jordan runs", "london", "red river city"]


def text_encoder(tiny, name="bert", **settings):
    return ek.TextEncoder(tiny(name), **settings)


def changed(encoder, change):
    """Change a model's last norm, and with it all vectors."""
    norms = [m for m in encoder.model.modules() if isinstance(m, torch.nn.LayerNorm)]
    with torch.no_grad():
        change(norms[-1])
    return encoder


def plain_mean(hidden, mask):
    return hidden.mean(dim=1)


def last_place(hidden, mask):
    return hidden[:, -1]


def last_if_padded_right(hidden, mask):
    return hidden[torch.arange(len(hidden)), mask.sum(dim=1) - 1]


def with_dropout(hidden, mask):
    vectors = ek.pooling.mean(hidden, mask)  # encoders try a pooling with two inputs
    return torch.nn.functional.dropout(vectors, 0.5) if len(hidden) > 2 else vectors


def centered_in_its_batch(hidden, mask):
    vectors = ek.pooling.mean(hidden, mask)
    return vectors - vectors.mean(dim=0) if len(hidden) > 2 else vectors


def overflowing(hidden, mask):
    vectors = ek.pooling.mean(hidden, mask)
    vectors[(mask.sum(dim=1) == 3) & (len(hidden) > 2)] = float("inf")
    return vectors


def half_of_it_is_still(hidden, mask):
    vectors = ek.pooling.mean(hidden, mask)
    vectors[:, 16:] = 1
    return vectors


def one_is_loud(hidden, mask):
    vectors = ek.pooling.mean(hidden, mask)
    vectors[:, 3] *= 1000
    return vectors


def nothing(hidden, mask):
    return torch.zeros(len(hidden), 8)


def without_frame(encoder):
    encoder.processor.backend_tokenizer.post_processor = None
    return encoder


def shifted(norm):
    norm.bias += 300  # all vectors point the same way, and bfloat16 has few digits left for more


# Faults, and the check that finds each

FAULTS = {
    "padding is averaged": (plain_mean, "padding", "look"),
    "the last place is padding": (last_place, "padding", "look"),
    "the last token, if padding is on the right": (last_if_padded_right, "padding", "look"),
    "the others of a batch": (centered_in_its_batch, "alone or in a batch", "wrong"),
    "random": (with_dropout, "again", "wrong"),
    "infinite": (overflowing, "not finite", "wrong"),
    "constant": (half_of_it_is_still, "constant dimensions", "look"),
    "one dimension decides": (one_is_loud, "largest dimension", "look"),
    "no direction": (nothing, "lengths", "wrong"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_pooling_at_fault_is_found(tiny, fault):
    pooling, name, verdict = FAULTS[fault]
    found = ek.diagnose(text_encoder(tiny, pooling=pooling), TEXTS)
    assert found[name].verdict == verdict, found
    assert found[name].advice.endswith(".")


@pytest.mark.slow
def test_which_side_of_padding_a_pooling_reads_is_said(tiny):
    found = ek.diagnose(text_encoder(tiny, pooling=last_if_padded_right), TEXTS)
    assert found["alone or in a batch"].verdict == "ok"
    assert found["padding"].value == "the pooling reads it on the left"
    found = ek.diagnose(text_encoder(tiny, pooling=plain_mean), TEXTS)
    assert found["alone or in a batch"].verdict == "ok"  # since no text is padded
    assert found["padding"].value == (
        "the pooling reads it on the right and left; texts of one length share a batch"
    )


def test_padding_that_is_read_where_there_is_padding_is_wrong(tiny):
    encoder = text_encoder(tiny, pooling=plain_mean)
    encoder.facts["equal_lengths"] = False  # as if it had not been noticed
    found = ek.diagnose(encoder, TEXTS)
    assert found["padding"].verdict == found["alone or in a batch"].verdict == "wrong"


@pytest.mark.slow
def test_a_model_that_lets_padding_in_is_pointed_at(tiny):
    config = tf.FNetConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=2, intermediate_size=64
    )
    tokenizer = text_encoder(tiny).processor
    found = ek.diagnose(ek.TextEncoder(tf.FNetModel(config), processor=tokenizer), TEXTS)
    assert found["alone or in a batch"].verdict == "ok"
    assert found["padding"].verdict == "look"
    assert found["padding"].value.startswith("left out; texts of one length")


@pytest.mark.parametrize("name", ["again", "alone or in a batch", "order", "padding", "tokens"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "last"])
def test_the_poolings_of_embedkit_pass(tiny, pooling, name):
    assert ek.diagnose(text_encoder(tiny, pooling=pooling), TEXTS)[name].verdict == "ok"


@pytest.mark.slow
def test_who_chose_the_pooling_is_said(tiny):
    chosen = ek.diagnose(text_encoder(tiny, pooling="mean"), TEXTS)["pooling"]
    assert (chosen.value, chosen.verdict) == ("mean (you chose it)", "ok")
    default = ek.diagnose(text_encoder(tiny), TEXTS)["pooling"]
    assert default.value.startswith("cls (") and default.verdict == "look"


@pytest.mark.slow
def test_what_the_repository_says_is_told_and_what_departs_from_it():
    minilm = ek.diagnose(ek.TextEncoder(MINILM))
    assert (minilm["pooling"].value, minilm["pooling"].verdict) == ("mean (its repository)", "ok")
    assert (minilm["normalize"].value, minilm["normalize"].verdict) == ("True", "ok")
    other = ek.diagnose(ek.TextEncoder(MINILM, pooling="cls"))
    assert (other["pooling"].value, other["pooling"].verdict) == ("cls (you chose it)", "look")
    assert "'mean'" in other["pooling"].advice
    assert other["normalize"].verdict == "look"


# Tokens


@pytest.mark.slow
def test_the_ends_of_an_example_are_shown_and_which_of_them_is_pooled(tiny):
    tokens = ek.diagnose(text_encoder(tiny, "roberta", pooling="last"), TEXTS)["tokens"]
    assert tokens.value.startswith("<s> ") and tokens.value.endswith("</s> (pooled: </s>)")
    tokens = ek.diagnose(text_encoder(tiny, pooling="cls"), TEXTS)["tokens"]
    assert tokens.value.endswith("[SEP] (pooled: [CLS])")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "lost"), [("t5", "</s>"), ("bert", "[SEP]"), ("bert", "[CLS]")])
def test_a_tokenizer_that_lost_its_special_tokens_is_found(tiny, name, lost):
    before = text_encoder(tiny, name, pooling="mean")
    assert ek.diagnose(before, TEXTS)["tokens"].verdict == "ok"
    tokenizer = without_frame(before).processor
    after = ek.TextEncoder(before.model, processor=tokenizer, pooling="mean")
    tokens = ek.diagnose(after, TEXTS)["tokens"]
    assert tokens.verdict == "wrong" and lost in tokens.advice


def test_a_causal_model_without_an_end_token_is_only_pointed_at(tiny):
    tokens = ek.diagnose(text_encoder(tiny, "gpt2", pooling="last"), TEXTS)["tokens"]
    assert tokens.verdict == "look" and "<|endoftext|>" in tokens.advice


@pytest.mark.slow
def test_another_script_is_unknown(tiny):
    russian = ["чайник кипит", "роман плох очень", "дождь идёт", "поезд"]
    found = ek.diagnose(text_encoder(tiny, pooling="mean"), russian)
    assert found["unknown tokens"].verdict == "wrong"
    assert found["unknown tokens"].value.startswith("100%")
    assert found["same vector"].value == "1 of 4"  # two texts of two unknown words each
    assert ek.diagnose(text_encoder(tiny, pooling="mean"), TEXTS)["unknown tokens"].verdict == "ok"


def test_a_script_that_falls_into_bytes_is_noticed(tiny):
    found = ek.diagnose(text_encoder(tiny, "gpt2", pooling="mean"), ["東京は雨です", "本を読む"])
    assert found["unknown tokens"].verdict == "look"


def test_cut_texts_are_counted_and_words_are_read_on(tiny):
    texts = ["red " * 40, "red", "a novel"]
    cut = ek.diagnose(text_encoder(tiny, "short_bert", pooling="mean"), texts)
    assert cut["longer than the model"].value == "1 of 3"
    assert cut["longer than the model"].verdict == "look"
    words = ek.diagnose(ek.WordEncoder(tiny("short_bert")), texts)
    assert words["longer than the model"].verdict == "ok"


# Arithmetic and space


@pytest.mark.slow
def test_half_precision_that_loses_the_vectors_is_found(tiny):
    exact = changed(text_encoder(tiny, pooling="mean"), shifted)
    half = ek.TextEncoder(exact.model.bfloat16(), processor=exact.processor, pooling="mean")
    assert ek.diagnose(half, TEXTS)["dtype"].verdict == "wrong"


def test_half_precision_that_does_not_matter_passes(tiny):
    found = ek.diagnose(text_encoder(tiny, pooling="mean", dtype="bfloat16"), TEXTS)["dtype"]
    assert found.verdict == "ok" and re.fullmatch(
        r"bfloat16, cosine (1\.000|0\.99\d) to float32", found.value
    )


@pytest.mark.slow
def test_vectors_that_all_point_one_way_are_noticed(tiny):
    minilm = ek.TextEncoder(MINILM, pooling="mean")
    found = ek.diagnose(minilm)["cosine of two"]
    assert found.verdict == "ok" and float(found.value.split()[0]) < 0.3
    narrow = changed(text_encoder(tiny, pooling="mean"), shifted)
    assert ek.diagnose(narrow, TEXTS)["cosine of two"].verdict == "wrong"


@pytest.mark.slow
def test_a_first_token_that_is_blind_gives_one_vector_to_all(tiny):
    encoder = text_encoder(tiny, "gpt2", pooling=ek.pooling.cls)
    found = ek.diagnose(encoder, ["the kettle boils", "the novel", "the river runs"])
    assert found["same vector"].value == "2 of 3" and found["same vector"].verdict == "wrong"


def test_empty_and_repeated_inputs_are_counted_in_all_of_them(tiny):
    texts = [f"kettle {number % 400}" for number in range(600)] + ["", "  "]
    found = ek.diagnose(text_encoder(tiny, pooling="mean"), texts)
    assert found["duplicates"].value == "200 of 602"
    assert found["empty inputs"].value == "2 of 602"
    assert found["not finite"].value == "0 of 256"  # so many are embedded


@pytest.mark.slow
def test_few_inputs_say_little_about_the_space(tiny):
    found = ek.diagnose(text_encoder(tiny, pooling="mean"), ["red", "blue"])
    assert found["space"].value == "2 vectors"
    with pytest.raises(ValueError, match="there are no inputs"):
        ek.diagnose(text_encoder(tiny, pooling="mean"), [])


# Other encoders


def test_words(tiny):
    found = ek.diagnose(
        ek.WordEncoder(tiny("bert")), [["the", "kettle"], ["a", "bad", "novel"], []]
    )
    assert "pooling" not in {check.name for check in found.checks}
    assert found["alone or in a batch"].verdict == "ok"
    assert found["tokens"].value.endswith("(pooled: words alone)")
    assert found["empty inputs"].value == "1 of 3"


@pytest.mark.slow
def test_images(tiny):
    images = [picture(seed) for seed in range(4)]
    images += [images[0].copy(), Image.new("RGB", (40, 28), "grey")]
    found = ek.diagnose(ek.ImageEncoder(tiny("vit"), pooling="mean"), images)
    assert found["empty inputs"].value == "1 of 6"
    assert found["duplicates"].value == "1 of 6"
    assert found["order"].verdict == "ok"
    random = ek.ImageEncoder(tiny("vit"), pooling=with_dropout)
    assert ek.diagnose(random)["again"].verdict == "wrong"


@pytest.mark.slow
def test_images_prepared_for_another_model_are_found(tiny):
    own = ek.ImageEncoder(tiny("vit"))
    assert ek.diagnose(own)["processor"].value == "the model's own"
    changed = type(own.processor)(**{**own.processor.to_dict(), "image_std": [0.2, 0.2, 0.2]})
    found = ek.diagnose(ek.ImageEncoder(tiny("vit"), processor=changed))["processor"]
    assert (found.verdict, found.value) == ("look", "another image_std")


def test_images_of_a_model_without_a_folder_are_not_compared(tiny):
    own = ek.ImageEncoder(tiny("vit"))
    alone = ek.ImageEncoder(type(own.model)(own.model.config), processor=own.processor)
    alone.model.name_or_path = ""
    assert "processor" not in {check.name for check in ek.diagnose(alone).checks}


@pytest.mark.slow
def test_a_model_of_two_towers_is_asked_for_the_space_they_share(tiny):
    for settings in ({}, {"pooling": "mean"}):
        found = ek.diagnose(ek.ImageEncoder(tiny("clip"), **settings))["pooling"]
        assert found.verdict == "look" and "'projected'" in found.advice
    shared = ek.diagnose(ek.ImageEncoder(tiny("clip"), pooling="projected"))
    assert shared["pooling"].verdict == "ok" and shared["normalize"].verdict == "look"
    scaled = ek.ImageEncoder(tiny("clip"), pooling="projected", normalize=True)
    assert ek.diagnose(scaled)["normalize"].verdict == "ok"
    assert "projected" not in ek.diagnose(ek.ImageEncoder(tiny("vit")))["pooling"].advice


@pytest.mark.slow
def test_a_service():
    with Wire() as wire:
        found = ek.diagnose(ek.OpenAIEncoder("m", base_url=wire.url), TEXTS)
    assert found["model"].value == "m"
    assert {found[name].verdict for name in ("again", "alone or in a batch", "order")} == {"ok"}


@pytest.mark.slow
def test_a_service_that_mixes_up_the_order_is_found():
    def reversed_order(number, texts):
        reply = good(texts)
        vectors = [item["embedding"] for item in reply.body["data"]]
        for item, vector in zip(reply.body["data"], reversed(vectors), strict=True):
            item["embedding"] = vector
        return reply

    with Wire(reversed_order) as wire:
        found = ek.diagnose(ek.OpenAIEncoder("m", base_url=wire.url), TEXTS)
    assert found["alone or in a batch"].verdict == "wrong"


# How it shows itself


@pytest.mark.slow
def test_it_shows_the_same_as_text_as_a_page_and_as_a_table(tiny):
    found = ek.diagnose(text_encoder(tiny, "roberta", pooling="last"), TEXTS)
    table = found.to_pandas()
    assert list(table.columns) == ["name", "value", "verdict", "advice"]
    text, page = repr(found), found._repr_html_()
    for name, value, verdict, advice in table.itertuples(index=False):
        assert f"{verdict:<6}{name:<23}{value}" in text
        assert advice.split()[0] in text
        for part in (name, value, verdict, advice):
            assert f">{html.escape(part)}</td>" in page
    assert max(map(len, text.splitlines()[1:])) <= 100
    assert text.splitlines()[0].startswith("TextEncoder(")


def test_nothing_of_a_text_or_a_name_becomes_part_of_the_page(tiny):
    def pooling(hidden, mask):
        return ek.pooling.mean(hidden, mask)

    pooling.__name__ = "<script>alert(1)</script>"
    page = ek.diagnose(text_encoder(tiny, "roberta", pooling=pooling), ["<b>red</b>"])._repr_html_()
    assert "<script" not in page and "<b" not in page and "<s>" not in page
    assert "&lt;script&gt;" in page and "&lt;s&gt;" in page


@pytest.mark.slow
def test_the_verdict_is_the_worst_of_all(tiny):
    assert ek.diagnose(text_encoder(tiny, pooling=with_dropout), TEXTS).verdict == "wrong"
    found = ek.diagnose(ek.TextEncoder(MINILM, pooling="mean"))
    assert "wrong" not in {check.verdict for check in found.checks}, found
    with pytest.raises(KeyError, match="there are model, "):
        found["colour"]


@pytest.mark.slow
def test_it_changes_nothing(tiny):
    encoder = text_encoder(tiny, pooling="mean", dtype="bfloat16")
    before = encoder.encode(TEXTS)
    state = torch.get_rng_state()
    ek.diagnose(encoder, TEXTS)
    assert encoder.model.dtype == torch.bfloat16
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(encoder.encode(TEXTS), before)
