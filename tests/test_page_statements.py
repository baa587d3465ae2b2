"""The statements of the page, each recomputed with plain transformers and torch.

The page is "How to Generate Your Own Embedding"; mission/README.md numbers what it says.
Statements 2 and 16 are prose.
"""

import numpy as np
import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

import embedkit as ek
from embedkit.loading import _bundled as bundled
from tests.conftest import picture

MINILM = "bundled/all-MiniLM-L6-v2"
TEXTS = [
    "the kettle boils",
    "jordan arrived in paris yesterday and was not very slowly on the train to london",
    "bad",
    "unread novels",
]
IMAGES = [picture(0), picture(1, "L"), picture(2, "RGBA", (64, 64))]


def agree(ours, theirs) -> None:
    theirs = theirs.numpy() if isinstance(theirs, torch.Tensor) else theirs
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.fixture(params=["tiny", MINILM])
def text_model(request, tiny) -> str:
    """Give a BERT by name: a tiny random one, then the real one."""
    return tiny("bert") if request.param == "tiny" else request.param


def plain(name):
    """Load a text model without a line of embedkit, but for the place of the bundled one."""
    folder = bundled.model_folder(name) if name.startswith("bundled/") else name
    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(
        folder, dtype=torch.float32
    ).eval()


def outputs(name, texts, **options):
    tokenizer, model = plain(name)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        return batch, model(**batch, **options)


@pytest.mark.slow
def test_statement_01_one_hidden_layer_or_many(text_model):
    """Embeddings are activations of one or many hidden layers."""
    _, out = outputs(text_model, TEXTS, output_hidden_states=True)
    states = out.hidden_states
    for layer in (0, 1, -2):
        one = ek.TextEncoder(text_model, pooling="cls", layers=layer).encode(TEXTS)
        agree(one, states[layer][:, 0])
    many = ek.TextEncoder(text_model, pooling="cls", layers=[-2, -1]).encode(TEXTS)
    agree(many, (states[-2] + states[-1])[:, 0] / 2)
    both = ek.TextEncoder(text_model, pooling="cls", layers=[0, -1], combine="concat")
    joined = both.encode(TEXTS)
    agree(joined, torch.cat([states[0], states[-1]], dim=-1)[:, 0])


def test_statement_03_the_first_token_of_gpt_sees_only_itself(tiny):
    """BERT or GPT-x: in a causal model `[:, 0, :]` is one vector for all texts that begin alike."""
    alike = ["the kettle boils", "the novel was very bad", "the river"]
    tokenizer = AutoTokenizer.from_pretrained(tiny("gpt2"))
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModel.from_pretrained(tiny("gpt2")).eval()
    batch = tokenizer(alike, padding=True, return_tensors="pt")
    assert len(set(batch["input_ids"][:, 0].tolist())) == 1
    with torch.no_grad():
        state = model(**batch).last_hidden_state
    agree(state[1:, 0], state[:1, 0].expand(2, -1))

    first = ek.TextEncoder(tiny("gpt2"), pooling=lambda hidden, mask: hidden[:, 0]).encode(alike)
    agree(first, state[:, 0])
    last = ek.TextEncoder(tiny("gpt2"), pooling="last").encode(alike)
    ends = batch["attention_mask"].sum(1) - 1
    agree(last, state[torch.arange(3), ends])
    assert min(np.abs(last[a] - last[b]).max() for a, b in ((0, 1), (0, 2), (1, 2))) > 0.1


@pytest.mark.slow
def test_statement_03_the_first_token_of_bert_sees_all(text_model):
    """BERT or GPT-x: BERT's first token is the same, its vector is not."""
    first = ek.TextEncoder(text_model, pooling="cls").encode(TEXTS)
    assert np.abs(first[0] - first[1]).max() > 0.1


@pytest.mark.slow
def test_statement_03_then_fine_tuned_on_a_task(text_model, tmp_path):
    """Published, then fine-tuned: the trained model is saved, and its vectors are the new ones."""
    torch.manual_seed(0)
    tokenizer, model = plain(text_model)
    before = ek.TextEncoder(text_model, pooling="cls").encode(TEXTS)
    head = torch.nn.Linear(before.shape[1], 2)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    labels = torch.tensor([0, 0, 1, 1])
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=1e-3)
    losses = []
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(
            head(model(**batch).last_hidden_state[:, 0]), labels
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    with torch.no_grad():
        state = model(**batch).last_hidden_state
    agree(ek.TextEncoder(model, processor=tokenizer).encode(TEXTS), state[:, 0])

    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    after = ek.TextEncoder(str(tmp_path)).encode(TEXTS)
    agree(after, state[:, 0])
    assert np.abs(after - before).max() > 0.01
    # What was published has not changed.
    agree(ek.TextEncoder(text_model, pooling="cls").encode(TEXTS), before)


@pytest.mark.slow
def test_statement_04_one_vector_per_use_case(tiny, text_model):
    """The vector represents the input according to the use case: image, text, or word."""
    assert ek.ImageEncoder(tiny("vit")).encode(IMAGES).shape == (3, 32)
    texts = ek.TextEncoder(text_model)
    assert texts.encode(TEXTS).shape == (4, texts.dim)
    words = ek.WordEncoder(text_model).encode(TEXTS)
    assert words.vectors.shape == (sum(len(text.split()) for text in TEXTS), texts.dim)


@pytest.mark.slow
def test_statement_05_the_last_hidden_state_of_the_base_model(tiny, text_model):
    """The output has to contain hidden states, and the page uses the last layer."""
    batch, out = outputs(text_model, TEXTS)
    encoder = ek.TextEncoder(text_model, pooling="cls")
    agree(encoder.encode(TEXTS), out.last_hidden_state[:, 0])

    folder = tiny("bert_classifier")
    classifier = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        assert not hasattr(classifier(**batch), "last_hidden_state")
        states = classifier(**batch, output_hidden_states=True).hidden_states
    around = ek.TextEncoder(classifier, processor=tokenizer)
    agree(around.encode(TEXTS), states[-1][:, 0])
    agree(ek.TextEncoder(folder).encode(TEXTS), states[-1][:, 0])


@pytest.mark.parametrize("training", [True, False])
def test_statement_06_no_gradients(tiny, training):
    """`torch.no_grad()`: nothing is being trained; and a model in training stays in training."""
    folder = tiny("bert")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    model.train(training)
    seen = []

    def pool(hidden, mask):
        seen.append((hidden.requires_grad, hidden.grad_fn, torch.is_grad_enabled()))
        return hidden[:, 0]

    encoder = ek.TextEncoder(model, processor=tokenizer, pooling=pool)
    once, again = encoder.encode(TEXTS), encoder.encode(TEXTS)
    assert seen and all(entry == (False, None, False) for entry in seen)
    np.testing.assert_array_equal(once, again)  # no dropout
    assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())  # the caller's still
    assert torch.is_grad_enabled()

    loaded = ek.TextEncoder(folder).model
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.fixture
def image_state(tiny):
    """Compute a ViT's last hidden state as the page does."""
    processor = AutoImageProcessor.from_pretrained(tiny("vit"), backend="pil")
    model = AutoModel.from_pretrained(tiny("vit")).eval()
    batch = {"image": IMAGES}
    inputs = processor([x.convert("RGB") for x in batch["image"]], return_tensors="pt").to("cpu")
    with torch.no_grad():
        return model(**inputs).last_hidden_state


def test_statement_07_the_image_processor_gets_rgb(tiny, image_state):
    """The processor gets `[x.convert("RGB") for x in batch["image"]]`."""
    encoder = ek.ImageEncoder(tiny("vit"))
    agree(encoder.encode(IMAGES), image_state.mean(1))
    agree(encoder({"image": IMAGES})["embedding"], image_state.mean(1))


def test_statement_08_the_shape_of_an_image_state(tiny, image_state):
    """The state's shape is (batch_size, num_image_tokens, hidden_size)."""
    shapes = []

    def pool(hidden, mask):
        shapes.append((tuple(hidden.shape), tuple(mask.shape)))
        return hidden[:, 0]

    ek.ImageEncoder(tiny("vit"), pooling=pool).encode(IMAGES)
    patches = (32 // 8) ** 2
    assert image_state.shape == (3, 1 + patches, 32)
    assert shapes[-1] == ((3, 1 + patches, 32), (3, 1 + patches))


def test_statement_09_the_mean_over_dimension_1(tiny, image_state):
    """`torch.mean(last_hidden_state, 1)` gives one vector per image, and is the default."""
    agree(ek.ImageEncoder(tiny("vit")).encode(IMAGES), torch.mean(image_state, 1).cpu().numpy())
    named = ek.ImageEncoder(tiny("vit"), pooling="mean").encode(IMAGES)
    agree(named, torch.mean(image_state, 1))


@pytest.mark.slow
def test_statement_10_the_model_gets_only_its_own_inputs(text_model):
    """The model gets the keys in `tokenizer.model_input_names`, on its device, and no others."""
    encoder = ek.TextEncoder(text_model, pooling="cls")
    given = []
    encoder.model.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs), with_kwargs=True
    )
    encoder({"text": TEXTS, "label": [0, 1, 2, 0]})
    assert given
    for kwargs in given:
        tensors = {key: value for key, value in kwargs.items() if isinstance(value, torch.Tensor)}
        assert set(tensors) == set(encoder.processor.model_input_names)
        assert {tensor.device for tensor in tensors.values()} == {encoder.device}

    tokenizer, model = plain(text_model)
    batch = {**tokenizer(TEXTS, padding=True), "label": [0, 1, 2, 0]}
    inputs = {
        k: torch.tensor(v).to(model.device)
        for k, v in batch.items()
        if k in tokenizer.model_input_names
    }
    with torch.no_grad():
        state = model(**inputs).last_hidden_state
    agree(encoder.encode(TEXTS), state[:, 0, :])


@pytest.mark.slow
def test_statement_11_the_shape_of_a_text_state(text_model):
    """The state's shape is (batch_size, num_tokens, hidden_size)."""
    batch, out = outputs(text_model, TEXTS)
    shapes = []

    def pool(hidden, mask):
        shapes.append((tuple(hidden.shape), tuple(mask.shape)))
        return hidden[:, 0]

    encoder = ek.TextEncoder(text_model, pooling=pool)
    encoder.encode(TEXTS)
    tokens = batch["input_ids"].shape
    assert tuple(out.last_hidden_state.shape) == (*tokens, encoder.dim)
    assert shapes[-1] == ((*tokens, encoder.dim), tuple(tokens))


@pytest.mark.slow
def test_statement_12_the_vector_of_cls_represents_the_text(text_model):
    """`last_hidden_state[:, 0, :]`, the vector of `[CLS]`, represents the text.

    It is the default, unless the model's repository says something else, as MiniLM's does.
    """
    batch, out = outputs(text_model, TEXTS)
    tokenizer, _ = plain(text_model)
    assert set(batch["input_ids"][:, 0].tolist()) == {tokenizer.cls_token_id}
    default = ek.TextEncoder(text_model)
    assert default.pooling == ("mean" if text_model == MINILM else "cls")
    if text_model != MINILM:
        agree(default.encode(TEXTS), out.last_hidden_state[:, 0, :])
    agree(ek.TextEncoder(text_model, pooling="cls").encode(TEXTS), out.last_hidden_state[:, 0, :])


@pytest.mark.slow
def test_statement_13_the_whole_state_is_kept(text_model):
    """For entities the whole state is kept."""
    batch, out = outputs(text_model, TEXTS)
    states = ek.WordEncoder(text_model).token_states(TEXTS)
    assert len(states) == len(TEXTS)
    for ex_index, count in enumerate(batch["attention_mask"].sum(1)):
        agree(states[ex_index], out.last_hidden_state[ex_index, :count])


@pytest.mark.slow
def test_statement_14_one_token_of_one_example(text_model):
    """`last_hidden_state[ex_index, token_index, :]` represents one token."""
    _, out = outputs(text_model, TEXTS)
    states = ek.WordEncoder(text_model).token_states(TEXTS)
    for ex_index, token_index in ((0, 1), (1, 5), (3, 2)):
        token_embedding = out.last_hidden_state[ex_index, token_index, :]
        agree(states[ex_index][token_index], token_embedding)


@pytest.mark.slow
def test_statement_15_token_index_counts_special_tokens_and_sub_words(text_model):
    """`token_index` counts the tokenizer's output; `word_ids()` leads from words to it."""
    text = "the kettles unread jordan"
    tokenizer, _ = plain(text_model)
    encoded = tokenizer(text)
    word_ids = encoded.word_ids(0)
    token_index = word_ids.index(3)
    assert token_index > 1 + 3  # [CLS] stands before, and "kettles" or "unread" is in pieces
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"][token_index]) == "jordan"
    encoder = ek.WordEncoder(text_model)
    states = encoder.token_states([text])
    assert len(states[0]) == len(encoded["input_ids"])
    agree(encoder.encode([text]).vectors[3], states[0][token_index])
