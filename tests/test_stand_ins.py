"""Lessons 01, 02 and 04 with other models and other data, in the shapes that readers bring.

The models have random weights and the data sets are made up; both come from a Hub on the loopback,
under names that look like those of the Hub. All lessons run in one kernel, one after another.
"""

import json
import os
import re
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import transformers as tf
from datasets import ClassLabel, Dataset, Features, Image
from nbformat.v4 import new_code_cell, new_notebook

from tests.architectures import tiny_model, tokenizers
from tests.conftest import _pixels, picture, sentence
from tests.hub import Hub

ROOT = Path(__file__).parents[1]
ROWS = 40
pytestmark = pytest.mark.slow


# Models


def text_model(folder, model_class, tokenizer, **changes):
    """Save a tiny model with its tokenizer, as its authors would."""
    tokenizer = tokenizers()[tokenizer]
    model = tiny_model(model_class.config_class.model_type, model_class, tokenizer)
    model.config.update(changes)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def vit_of_224(folder):
    torch.manual_seed(0)
    config = tf.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    tf.ViTModel(config).save_pretrained(folder)
    tf.ViTImageProcessorPil(size={"height": 224, "width": 224}).save_pretrained(folder)


def dinov3(folder):
    tiny_model("dinov3_vit", tf.DINOv3ViTModel, None).save_pretrained(folder)
    processor = _pixels("ViT")
    processor.size = {"height": 64, "width": 64}
    processor.save_pretrained(folder)


MODELS = {
    "me/vit-base-patch16-224": vit_of_224,
    "me/dinov3-vits16": dinov3,
    "me/bert-classifier": lambda folder: text_model(
        folder, tf.BertForSequenceClassification, "[CLS] text [SEP]"
    ),
    "me/modernbert": lambda folder: text_model(
        folder, tf.ModernBertModel, "<s> text </s>, generic"
    ),
    "me/gpt2": lambda folder: text_model(folder, tf.GPT2Model, "text"),
}


# Data sets


def texts(rows, generator):
    return [sentence(int(words), generator) for words in generator.integers(3, 12, rows)]


def csv(folder, labels, columns=("text", "label")):
    """Save texts and labels; `labels` gives those of each split."""
    generator = np.random.default_rng(0)
    for split, known in labels.items():
        folder.mkdir(parents=True, exist_ok=True)
        table = pd.DataFrame(
            {
                columns[0]: texts(ROWS, generator),
                columns[1]: [known[i % len(known)] for i in range(ROWS)],
            }
        )
        table.to_csv(folder / f"{split}.csv", index=False)


def configured(folder):
    """Save a data set with two configurations, as `tweet_eval` has them."""
    csv(folder / "emotion", {"train": ["joy", "anger", "fear"], "test": ["anger", "fear"]})
    csv(folder / "irony", {"train": [0, 1], "test": [0, 1]})
    names = "emotion", "irony"
    card = "\n".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train.csv\n"
        f"  - split: test\n    path: {name}/test.csv"
        for name in names
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{card}\n---\n")


def pictures(folder, columns=("image", "label")):
    """Save images in Parquet files, as CIFAR-10 is on the Hub: two splits, numbers with names."""
    folder.mkdir(parents=True)
    features = Features({columns[0]: Image(), columns[1]: ClassLabel(names=["cat", "dog", "owl"])})
    for split, seed in {"train": 0, "test": 1000}.items():
        images = [picture(seed + i, size=(32, 32)) for i in range(ROWS)]
        rows = {columns[0]: images, columns[1]: [i % 3 for i in range(ROWS)]}
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-0-of-1.parquet")


def tagged(folder, columns=("tokens", "ner_tags")):
    """Save sentences with tags as strings, as files in the form of CoNLL give them."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    tags_of = {"paris": "B-LOC", "london": "B-LOC", "jordan": "B-PER", "amazon": "B-ORG"}
    for split in ("train", "test"):
        words = [
            [*text.split(), str(generator.choice([*tags_of])), "river"]
            for text in texts(ROWS, generator)
        ]
        tags = [[tags_of.get(word, "O") for word in row] for row in words]
        for row in tags:  # some names have a second word
            if row[-2] == "B-LOC":
                row[-1] = "I-LOC"
        Dataset.from_dict(dict(zip(columns, (words, tags), strict=True))).to_parquet(
            folder / f"{split}-0-of-1.parquet"
        )


DATA = {
    "me/two-classes": lambda folder: csv(folder, {"train": [0, 1], "test": [1, 0]}),
    "me/strings": lambda folder: csv(
        folder, {"train": ["a", "b", "c"], "test": ["b", "c"]}, columns=("sentence", "mood")
    ),
    "me/configured": configured,
    "me/pictures": pictures,
    "me/cifar": lambda folder: pictures(folder, columns=("img", "fine_label")),
    "me/conll": tagged,
    "me/wnut": lambda folder: tagged(folder, columns=("words", "tags")),
}


# Which lesson runs with what

RUNS = {
    "01 with a ViT of 224": {
        "lesson": "01", "MODEL": "me/vit-base-patch16-224", "DATA": "me/pictures",
    },
    "01 with a DINOv3, other columns": {
        "lesson": "01", "MODEL": "me/dinov3-vits16", "DATA": "me/cifar",
        "COLUMNS": {"img": "image", "fine_label": "label"},
    },
    "02 with a classifier, two classes": {
        "lesson": "02", "MODEL": "me/bert-classifier", "DATA": "me/two-classes",
    },
    "02 with a ModernBERT, strings, other columns": {
        "lesson": "02", "MODEL": "me/modernbert", "DATA": "me/strings",
        "COLUMNS": {"sentence": "text", "mood": "label"},
    },
    "02 with a GPT-2, a configuration": {
        "lesson": "02", "MODEL": "me/gpt2", "DATA": "me/configured", "CONFIG": "emotion",
    },
    "04 with a classifier, tags as strings": {
        "lesson": "04", "MODEL": "me/bert-classifier", "TUNED": "me/bert-classifier",
        "DATA": "me/conll",
    },
    "04 with a ModernBERT, other columns": {
        "lesson": "04", "MODEL": "me/modernbert", "DATA": "me/wnut",
        "COLUMNS": {"words": "tokens", "tags": "ner_tags"},
    },
    "04 with a GPT-2 and a ModernBERT": {
        "lesson": "04", "MODEL": "me/gpt2", "TUNED": "me/modernbert", "DATA": "me/conll",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """Serve the models and the data sets as repositories."""
    home = tmp_path_factory.mktemp("stand_ins")
    repositories = {}
    for made, prefix in ((MODELS, ""), (DATA, "datasets/")):
        for name, make in made.items():
            folder = home / f"{prefix}{name}"
            make(folder)
            repositories[f"{prefix}{name}"] = {"main": folder}
    with Hub(repositories) as hub:
        yield hub


@pytest.fixture(scope="module")
def executed(request, stand_ins, tmp_path_factory):
    """Run all lessons that are asked for in one kernel; give each run's cells."""
    asked = [
        item.callspec.params["run"]
        for item in request.session.items
        if "executed" in item.fixturenames
    ]
    cells, of_run = [], {run: [] for run in asked}
    for run in asked:
        if unknown_parameters(**RUNS[run]):
            continue
        of_run[run] = [new_code_cell("%reset -f"), *lesson_cells(**RUNS[run])]
        cells += of_run[run]
    home = tmp_path_factory.mktemp("home")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env = {
        **kept, "HF_ENDPOINT": stand_ins.url, "HF_HOME": str(home), "NO_PROXY": "*",
        "HF_HUB_DISABLE_TELEMETRY": "1", "DISABLE_SAFETENSORS_CONVERSION": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{kept.get('PYTHONPATH', '')}",
    }  # fmt: skip
    nbclient.NotebookClient(
        new_notebook(cells=cells),
        timeout=900,
        kernel_name="python3",
        allow_errors=True,
        resources={"metadata": {"path": str(ROOT / "notebooks")}},
    ).execute(env=env)
    return of_run


def unknown_parameters(lesson, **parameters):
    """Name the parameters that a lesson does not have, though the run sets them."""
    (path,) = (ROOT / "notebooks").glob(f"{lesson}_*.ipynb")
    cells = nbformat.read(path, as_version=4).cells
    sources = [c.source for c in cells if "parameters" in c.metadata.get("tags", [])]
    return parameters.keys() - set(re.findall(r"^([A-Z_]+) =", "\n".join(sources), re.MULTILINE))


def lesson_cells(lesson, **parameters):
    """Give a lesson's code, with parameters put behind the cell that names its own."""
    (path,) = (ROOT / "notebooks").glob(f"{lesson}_*.ipynb")
    cells = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        cells.append(new_code_cell(cell.source, metadata=cell.metadata))
        if "parameters" in cell.metadata.get("tags", []):
            known = set(re.findall(r"^([A-Z_]+) =", cell.source, re.MULTILINE))
            chosen = {**parameters, **({"ROWS": ROWS} if "ROWS" in known else {})}
            cells.append(new_code_cell("\n".join(f"{n} = {v!r}" for n, v in chosen.items())))
    return cells


@pytest.mark.parametrize("run", RUNS)
def test_a_lesson_runs_with_stand_ins(run, executed):
    assert not unknown_parameters(**RUNS[run])
    for cell in executed[run]:
        for output in cell.outputs:
            told = "\n".join(output.get("traceback", []))[-2000:]
            assert output.output_type != "error", f"{cell.source}\n{told}"


def test_the_data_sets_have_the_shapes_they_are_named_for(tmp_path):
    DATA["me/strings"](tmp_path / "strings")
    train, test = (pd.read_csv(tmp_path / "strings" / f"{s}.csv") for s in ("train", "test"))
    assert set(train["mood"]) == {"a", "b", "c"} and set(test["mood"]) == {"b", "c"}
    DATA["me/conll"](tmp_path / "conll")
    tags = pd.read_parquet(tmp_path / "conll" / "train-0-of-1.parquet")["ner_tags"]
    assert {"B-LOC", "I-LOC", "O"} <= {tag for row in tags for tag in row}
    MODELS["me/bert-classifier"](tmp_path / "bert")
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
