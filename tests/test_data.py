"""The bundled data, measured; and `load_data`, which gives all data the same columns."""

import importlib.util
import io
import re
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, List
from PIL import Image

import embedkit as ek
from embedkit import evaluate
from tests.conftest import picture

DATA = Path(__file__).parents[1] / "data"
SPLITS = {
    "digits": ("train", "test", "drifted"),
    "reviews": ("train", "test", "foreign"),
    "entities": ("train", "test", "drifted"),
}
COLUMNS = {
    "digits": ["image", "label"],
    "reviews": ["text", "label", "product"],
    "entities": ["tokens", "ner_tags"],
}
MENTION = ("PER", "ORG", "LOC", "MISC")


@pytest.fixture(scope="module")
def splits():
    """Give every bundled split by "name/split"."""
    return {
        f"{name}/{split}": ek.load_data(f"bundled/{name}", split=split)
        for name, all_splits in SPLITS.items()
        for split in all_splits
    }


@pytest.fixture(scope="module")
def recipe():
    """Import the recipe that packs the texts."""
    spec = importlib.util.spec_from_file_location("pack", DATA / "recipes" / "pack_texts.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_bundled_columns_and_names(splits):
    for key, data in splits.items():
        assert data.column_names == COLUMNS[key.partition("/")[0]]
        assert len(data) > 100
    assert splits["digits/test"].features["label"].names == [str(digit) for digit in range(10)]
    assert splits["reviews/test"].features["label"].names == ["negative", "neutral", "positive"]
    tags = splits["entities/test"].features["ner_tags"].feature.names
    assert sorted(tags) == sorted(["O", *(f"{p}-{kind}" for p in "BI" for kind in MENTION)])


def test_there_is_a_card_and_there_are_no_other_splits():
    for name, known in SPLITS.items():
        files = {path.stem for path in (DATA / name).glob("*.parquet")}
        # The queries that search the reviews are held by tests of their own.
        assert files - {"queries"} == set(known)
        assert (DATA / name / "README.md").is_file()


@pytest.mark.slow
def test_train_and_test_share_nothing(splits):
    def keys(name, split):
        data = splits[f"{name}/{split}"]
        if name == "digits":
            return [image.tobytes() for image in data["image"]]
        if name == "reviews":
            return [text.lower() for text in data["text"]]
        return [" ".join(tokens) for tokens in data["tokens"]]

    for name, names in SPLITS.items():
        drawn = [key for split in names for key in keys(name, split)]
        assert len(set(drawn)) == len(drawn), name


# Reviews


@pytest.fixture(scope="module")
def reviews(splits):
    return {split: splits[f"reviews/{split}"].to_pandas() for split in SPLITS["reviews"]}


def test_reviews_are_many_balanced_and_of_a_readable_length(reviews):
    english = pd.concat([reviews["train"], reviews["test"]])
    assert len(english) >= 900
    assert len(reviews["foreign"]) >= 150
    for part in (english, *reviews.values()):
        shares = part["label"].value_counts(normalize=True)
        assert len(shares) == 3
        assert shares.max() - shares.min() < 0.05
        lengths = part["text"].str.split().str.len()
        assert lengths.between(5, 80).all()
    assert english["product"].nunique() >= 12
    assert set(reviews["train"]["product"]) == set(reviews["test"]["product"])


def test_reviews_are_no_copies_of_one_another(reviews):
    texts = [text for part in reviews.values() for text in part["text"]]
    openings = Counter(tuple(re.findall(r"\w+", text.lower())[:4]) for text in texts)
    assert max(openings.values()) <= 6
    holders = defaultdict(list)
    sizes = []
    for row, text in enumerate(texts):
        words = re.findall(r"\w+(?:['’]\w+)*", text.lower())
        grams = set(zip(words, words[1:], words[2:], strict=False))
        sizes.append(len(grams))
        for gram in grams:
            holders[gram].append(row)
    shared = Counter(pair for rows in holders.values() for pair in combinations(rows, 2))
    copies = [
        (texts[a], texts[b])
        for (a, b), count in shared.items()
        if min(sizes[a], sizes[b]) > 3 and count > min(sizes[a], sizes[b]) / 2
    ]
    assert copies == []


@pytest.mark.slow
def test_the_recipe_refuses_copies_and_openings(recipe, reviews):
    texts = [text for part in reviews.values() for text in part["text"]]
    assert recipe.check_reviews(texts) == []
    long = "the kettle boils fast and pours well over any cup"
    assert "near copies" in recipe.check_reviews([long, long + " indeed"])[0]
    alike = [f"I bought this kettle {a} {a}1 {a}2 {a}3" for a in "abcdefg"]
    assert recipe.check_reviews(alike) == ["7 texts open with 'i bought this kettle'"]
    assert "3 words" in recipe.check_reviews(["far too short"])[0]


@pytest.mark.parametrize("split", SPLITS["reviews"])
def test_packed_reviews_equal_their_source(recipe, splits, split):
    rows = recipe.read_reviews(DATA / "recipes" / "reviews.tsv")
    parts = recipe.split_reviews(rows)
    parts["foreign"] = recipe.read_reviews(DATA / "recipes" / "reviews_foreign.tsv")
    packed = splits[f"reviews/{split}"]
    names = packed.features["label"].names
    assert [{**row, "label": names[row["label"]]} for row in packed] == parts[split]


@pytest.mark.slow
def test_reviews_are_neither_trivial_nor_hopeless(splits):
    train, test = splits["reviews/train"], splits["reviews/test"]
    encoder = ek.TextEncoder("bundled/all-MiniLM-L6-v2", pooling="mean")
    vectors = [encoder.encode(part["text"]) for part in (train, test)]
    task = vectors[0], train["label"], vectors[1], test["label"]
    majority = evaluate.majority_baseline(train["label"], test["label"])
    assert 0.55 <= evaluate.linear_probe(*task) <= 0.95
    assert evaluate.knn_accuracy(*task) >= majority + 0.10


# Entities


def mentions(data) -> list[tuple[int, str, str]]:
    """List (sentence, surface, type) of every mention, and fail where the tags are not BIO."""
    names = data.features["ner_tags"].feature.names
    found = []
    for row, (tokens, numbers) in enumerate(zip(data["tokens"], data["ner_tags"], strict=True)):
        assert len(tokens) == len(numbers) > 0
        before = "O"
        for token, number in zip(tokens, numbers, strict=True):
            tag = names[number]
            if tag.startswith("I-"):
                assert before[2:] == tag[2:], f"row {row}: {tag} after {before}"
                found[-1] = (row, f"{found[-1][1]} {token}", tag[2:])
            elif tag != "O":
                found.append((row, token, tag[2:]))
            before = tag
    return found


@pytest.fixture(scope="module")
def marked(splits):
    return {split: mentions(splits[f"entities/{split}"]) for split in SPLITS["entities"]}


def test_entities_are_many_and_of_four_types(splits, marked):
    assert sum(len(splits[f"entities/{split}"]) for split in marked) >= 400
    assert sum(map(len, marked.values())) >= 1000
    for split in ("train", "test"):
        counts = Counter(kind for _, _, kind in marked[split])
        assert min(counts[kind] for kind in MENTION) >= 20


def test_places_are_rare_where_entities_drifted(marked):
    share = {
        split: np.mean([kind == "LOC" for _, _, kind in found]) for split, found in marked.items()
    }
    assert share["drifted"] < 0.1 < 0.2 < min(share["train"], share["test"])


def test_names_that_stand_for_several_things(marked):
    kinds = defaultdict(set)
    for found in marked.values():
        for _, surface, kind in found:
            kinds[surface].add(kind)
    ambiguous = {surface for surface, of in kinds.items() if len(of) > 1}
    sentences = {
        (split, row)
        for split, found in marked.items()
        for row, surface, _ in found
        if surface in ambiguous
    }
    assert len(sentences) >= 60


def test_the_encoder_finds_the_same_mentions(tiny, splits, marked):
    data = splits["entities/test"].select(range(30))
    found = ek.WordEncoder(tiny("bert")).encode(data["tokens"]).entities(data["ner_tags"])
    expected = [each for each in marked["test"] if each[0] < 30]
    assert list(zip(found.sentence, found.word, found.label, strict=True)) == expected


@pytest.mark.parametrize("split", SPLITS["entities"])
def test_packed_entities_equal_their_source(recipe, splits, split):
    packed = splits[f"entities/{split}"]
    names = packed.features["ner_tags"].feature.names
    source = recipe.read_entities(DATA / "recipes" / f"entities_{split}.txt")
    assert [
        {"tokens": row["tokens"], "ner_tags": [names[tag] for tag in row["ner_tags"]]}
        for row in packed
    ] == source


# Digits


@pytest.mark.parametrize("split", SPLITS["digits"])
def test_digits_are_small_color_pngs(splits, split):
    assert all(image.size == (64, 64) for image in splits[f"digits/{split}"]["image"])
    table = pyarrow.parquet.read_table(DATA / "digits" / f"{split}.parquet")
    for cell in table["image"].to_pylist():
        image = Image.open(io.BytesIO(cell["bytes"]))
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64))
    counts = Counter(splits[f"digits/{split}"]["label"])
    assert len(counts) == 10 and max(counts.values()) < 1.5 * min(counts.values())


@pytest.mark.slow
def test_drifted_digits_are_those_of_test(splits):
    test, drifted = splits["digits/test"], splits["digits/drifted"]
    assert list(test["label"]) == list(drifted["label"])
    pairs = zip(test["image"], drifted["image"], strict=True)
    grey = [[np.asarray(image.convert("L"), float) for image in pair] for pair in pairs]
    assert np.mean([b.mean() for _, b in grey]) < 0.9 * np.mean([a.mean() for a, _ in grey])
    own = [abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for a, b in grey]
    turned = grey[1:] + grey[:1]
    others = [
        abs(np.corrcoef(a.ravel(), b.ravel())[0, 1])
        for (a, _), (_, b) in zip(grey, turned, strict=True)
    ]
    assert np.median(own) > np.median(others) + 0.2


GLYPHS = DATA / "vit-glyphs"


@pytest.mark.slow
def test_vit_glyphs_reads_digits_that_pixels_do_not_tell(splits):
    train, test = splits["digits/train"], splits["digits/test"]
    encoder = ek.ImageEncoder("bundled/vit-glyphs")
    vectors = [encoder.encode(part["image"]) for part in (train, test)]
    pixels = [np.stack([np.ravel(image) for image in part["image"]]) for part in (train, test)]
    score, raw = (
        evaluate.knn_accuracy(rows[0], train["label"], rows[1], test["label"])
        for rows in (vectors, pixels)
    )
    assert score >= 0.90
    assert score >= raw + 0.30


def test_vit_glyphs_is_small_and_has_a_card():
    sizes = [path.stat().st_size for path in GLYPHS.rglob("*") if path.is_file()]
    assert 0 < sum(sizes) <= 8_000_000
    assert (GLYPHS / "README.md").is_file()


# load_data on other data


def test_a_folder_of_csv_with_columns_of_its_own(tmp_path):
    rows = pd.DataFrame({"review": ["fine", "bad", "fine too"], "stars": ["good", "bad", "good"]})
    rows.to_csv(tmp_path / "train.csv", index=False)
    data = ek.load_data(str(tmp_path), columns={"review": "text", "stars": "label"})
    assert data.column_names == ["text", "label"]
    assert data.features["label"] == ClassLabel(names=["bad", "good"])
    assert data[:] == {"text": ["fine", "bad", "fine too"], "label": [1, 0, 1]}


def test_string_tags_become_numbers_with_names(tmp_path):
    lines = [
        '{"words": ["Paris", "sings"], "tags": ["B-LOC", "O"]}',
        '{"words": ["Ada", "Lovelace"], "tags": ["B-PER", "I-PER"]}',
    ]
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    data = ek.load_data(str(tmp_path), "test", columns={"words": "tokens", "tags": "ner_tags"})
    assert data.features["ner_tags"] == List(ClassLabel(names=["O", "B-LOC", "B-PER", "I-PER"]))
    assert list(data["ner_tags"]) == [[1, 0], [2, 3]]


def test_a_folder_of_images(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / "train" / label).mkdir(parents=True)
        picture(len(label)).save(tmp_path / "train" / label / "1.png")
    data = ek.load_data(str(tmp_path))
    assert data.features["label"].names == ["cat", "dog"]
    assert isinstance(data[0]["image"], Image.Image)


def test_paths_of_images_decode(tmp_path):
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    picture(0).save(folder / "images" / "a.png")
    names = ["images/a.png", str(folder / "images" / "a.png")]
    (folder / "train.csv").write_text("file\n" + "\n".join(names))
    data = ek.load_data(str(folder), columns={"file": "image"})
    assert [image.size for image in data["image"]] == [picture(0).size] * 2


@pytest.mark.parametrize(
    ("name", "settings", "kind", "message"),
    [
        ("bundled/movies", {}, ValueError, "choose from bundled/digits, bundled/entities, bun"),
        ("bundled/digits", {"split": "foreign"}, ValueError, "choose from drifted, test, train"),
        ("bundled/reviews", {"split": "test[:5]"}, ValueError, "has no split 'test[:5]'"),
        (
            "bundled/reviews",
            {"columns": {"stars": "label"}},
            ValueError,
            "has no column 'stars'; it has text, label, product",
        ),
        ("./no-such-folder", {}, OSError, "load_data('./no-such-folder'): no such folder"),
        ("me/unseen", {}, OSError, "HF_HUB_OFFLINE is set"),
        ("what is this?", {}, OSError, "neither a folder nor a Hub id"),
    ],
)
def test_data_that_cannot_be_had(name, settings, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        ek.load_data(name, **settings)


def test_a_split_that_a_folder_does_not_have(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,0\n")
    with pytest.raises(OSError, match=r"split='test'\).*Check the name, split"):
        ek.load_data(str(tmp_path), "test")


# What people's own data look like


def files(folder, **contents):
    """Write the files of a data set, by name without its ending."""
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / f"{name}.csv").write_text(content)
    return str(folder)


LABELS = {
    "strings": ("text,label\nx,c\ny,a\nz,b\n", "text,label\nx,c\ny,b\n", ["a", "b", "c"], [2, 1]),
    "0 and 1": ("text,label\nx,0\ny,1\n", "text,label\nx,1\ny,1\n", ["0", "1"], [1, 1]),
    "1 to 10": ("text,label\nx,10\ny,2\nz,1\n", "text,label\nx,10\n", ["1", "2", "10"], [2]),
    "-1 and 1": ("text,label\nx,-1\ny,1\n", "text,label\nx,1\ny,-1\n", ["-1", "1"], [1, 0]),
    "true and false": ("text,label\nx,true\ny,false\n", "text,label\nx,True\n",
                       ["False", "True"], [1]),
    "a gap beside": ("text,label\nx,0\ny,1\nz,\n", "text,label\nx,1\n", ["0", "1"], [1]),
    "only in test": ("text,label\nx,a\n", "text,label\nx,b\n", ["a", "b"], [1]),
}  # fmt: skip


@pytest.mark.bad_input("labels")
@pytest.mark.parametrize("case", LABELS)
def test_labels_have_one_number_in_all_splits(tmp_path, case):
    train, test, names, numbers = LABELS[case]
    folder = files(tmp_path / "data", train=train, test=test)
    data = ek.load_data(folder, "test")
    assert data.features["label"] == ClassLabel(names=names)
    assert data["label"][:] == numbers
    assert data.column_names == ["text", "label"]


@pytest.mark.slow
def test_labels_have_one_number_under_another_name_and_in_a_slice(tmp_path):
    folder = files(tmp_path / "data", train="kind,text\nb,x\na,y\nc,z\n", test="kind,text\nc,x\n")
    renamed = {"kind": "label"}
    assert ek.load_data(folder, "test", columns=renamed)["label"][:] == [2]
    assert ek.load_data(folder, "train[:1]", columns=renamed)["label"][:] == [1]
    assert ek.load_data(folder, "train", columns=renamed).column_names == ["label", "text"]
    bundled = {"label": "sentiment", "product": "label"}
    both = [ek.load_data("bundled/reviews", split, columns=bundled) for split in ("train", "test")]
    assert both[0].features["label"] == both[1].features["label"]


def test_amounts_stay_amounts(tmp_path):
    folder = files(tmp_path / "data", train="text,label\nx,0.5\ny,2\n")
    assert ek.load_data(folder)["label"][:] == [0.5, 2.0]


def test_tags_have_one_number_in_all_splits(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"tokens": ["a", "b"], "ner_tags": ["B-PER", "B-LOC"]}')
    (tmp_path / "test.jsonl").write_text('{"tokens": ["a", "b"], "ner_tags": ["B-PER", "O"]}')
    data = ek.load_data(tmp_path, "test")
    assert data.features["ner_tags"] == List(ClassLabel(names=["O", "B-LOC", "B-PER"]))
    assert data["ner_tags"][:] == [[2, 0]]


@pytest.mark.bad_input("labels")
@pytest.mark.parametrize(
    ("content", "kept"),
    [
        ("text,label\na,0\nb,-1\nc,1\nd,-1\n", ["a", "c"]),
        ("text,label\na,x\nb,\nc,y\nd,\n", ["a", "c"]),
        ("text,label\na,0\nb,\nc,1\nd,\n", ["a", "c"]),
    ],
)
def test_rows_without_a_label_are_left_out_with_one_warning(tmp_path, content, kept):
    folder = files(tmp_path / "data", train=content)
    with pytest.warns(
        UserWarning, match=r"2 of 4 rows have no label .*left out: rows 1, 3$"
    ) as found:
        data = ek.load_data(folder)
    assert data["text"][:] == kept and len(found) == 1 and found[0].filename == __file__
    assert data["label"][:] == [0, 1]


@pytest.mark.bad_input("labels")
def test_minus_one_under_a_class_label_and_in_every_row(tmp_path):
    names = datasets.Features(
        {"text": datasets.Value("string"), "label": ClassLabel(names=["a", "b"])}
    )
    for split, labels in {"train": [0, -1], "test": [-1, -1]}.items():
        table = datasets.Dataset.from_dict({"text": ["x", "y"], "label": labels}, features=names)
        table.to_parquet(tmp_path / f"{split}.parquet")
    with pytest.warns(UserWarning, match=r"1 of 2 rows have no label"):
        assert ek.load_data(tmp_path)["label"][:] == [0]
    with pytest.raises(ValueError, match=r"no row has a label; .*columns=\{'label': 'unlabeled'\}"):
        ek.load_data(tmp_path, "test")
    assert len(ek.load_data(tmp_path, "test", columns={"label": "unlabeled"})) == 2


@pytest.mark.bad_input("files")
def test_texts_that_pandas_takes_for_gaps_stay(tmp_path):
    texts = ["NA", "None", "null", "nan", "N/A", "#N/A"]
    content = "text,label\n" + "\n".join(f"{text},{n % 2}" for n, text in enumerate(texts))
    assert ek.load_data(files(tmp_path / "data", train=content))["text"][:] == texts


@pytest.mark.bad_input("files")
@pytest.mark.parametrize(
    "content",
    ["text,label\ngood film,pos,\nbad,neg,\n", "text,label\ngood, film,pos\nbad, one,neg\n",
     "text,label\ngood,pos,\nbad,neg\n"],
)  # fmt: skip
def test_shifted_columns_are_refused(tmp_path, content):
    with pytest.raises(ValueError, match=r"more fields than its header .* would be shifted"):
        ek.load_data(files(tmp_path / "data", train=content))


@pytest.mark.bad_input("files")
@pytest.mark.parametrize("name", ["reviews [old]", "q*", "what?", "a]b"])
def test_a_folder_whose_name_is_a_pattern(tmp_path, name):
    files(tmp_path / "reviews o", train="text\nof the neighbour\n")
    files(tmp_path / "quiet", train="text\nof the neighbour\n")
    with pytest.raises(ValueError, match=r"would be read as a pattern of names; rename the folder"):
        ek.load_data(files(tmp_path / name, train="text\nmy own\n"))


def test_a_folder_at_home_and_from_here(tmp_path, monkeypatch):
    files(tmp_path / "mine", train="text\na\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("mine", "./mine", "~/mine"):
        assert ek.load_data(name)["text"][:] == ["a"]


@pytest.mark.slow
def test_rows_are_drawn_at_random_and_alike(tmp_path):
    folder = files(tmp_path / "data", train="text\n" + "\n".join(f"t{n:03}" for n in range(100)))
    drawn = ek.load_data(folder, rows=30)["text"][:]
    assert len(set(drawn)) == 30 and drawn != sorted(drawn) and max(drawn) > "t080"
    assert ek.load_data(folder, rows=10)["text"][:] == drawn[:10]
    assert ek.load_data(folder, rows=100)["text"][:] == ek.load_data(folder)["text"][:]
    assert len(ek.load_data("bundled/reviews", "test", rows=7)) == 7


@pytest.mark.bad_input("load_data")
@pytest.mark.parametrize("rows", [0, -1, 2.5, "10"])
def test_rows_that_are_no_number(rows):
    with pytest.raises(TypeError, match=r"load_data\(rows=.*give a whole number"):
        ek.load_data("bundled/reviews", rows=rows)


def linked(folder, secret):
    (folder / "train.csv").symlink_to(secret)


def linked_folder(folder, secret):
    (folder / "data").symlink_to(secret.parent)


def named(value):
    def write(folder, secret):
        text = f"---\nconfigs:\n- config_name: default\n  data_files: {value}\n---\n"
        (folder / "README.md").write_text(text.replace("SECRET", str(secret)))
        (folder / "own.csv").write_text("text\nmine\n")

    return write


def image_column(path, *, struct):
    def write(folder, secret):
        picture(0).save(secret.parent / "secret.png")
        named = path.replace("SECRET", str(secret.parent / "secret.png"))
        column = [{"bytes": None, "path": named}] if struct else [named]
        table = datasets.Dataset.from_dict({"image": column})
        if struct:
            table = table.cast_column("image", datasets.Image())
            schema = table.features.arrow_schema
            table = pyarrow.table({"image": column}, schema=schema)
            pyarrow.parquet.write_table(table, folder / "train.parquet")
        else:
            table.to_parquet(folder / "train.parquet")

    return write


def nested_image(feature, nest):
    """Store an image by its path, in a list or in a part of a column."""

    def write(folder, secret):
        picture(0).save(secret.parent / "secret.png")
        stored = {"bytes": None, "path": str(secret.parent / "secret.png")}
        schema = datasets.Features(pictures=feature).arrow_schema
        table = pyarrow.table({"pictures": [nest(stored)]}, schema=schema)
        pyarrow.parquet.write_table(table, folder / "train.parquet")

    return write


def listed_image(folder, secret):
    picture(0).save(secret.parent / "secret.png")
    picture(1).save(folder / "own.png")
    (folder / "metadata.csv").write_text("file_name,label\nown.png,a\n../secret/secret.png,b\n")


OUTSIDE = {
    "a link": linked,
    "a linked folder": linked_folder,
    "a path upwards": named("../secret/secret.csv"),
    "an absolute path": named("SECRET"),
    "an address": named("http://127.0.0.1:9/secret.csv"),
    "an address of a cloud": named("s3://bucket/secret.csv"),
    "an image upwards": image_column("../secret/secret.png", struct=False),
    "an absolute image": image_column("SECRET", struct=False),
    "an image on the web": image_column("http://127.0.0.1:9/x.png", struct=False),
    "an image stored by its path": image_column("SECRET", struct=True),
    "an image in a list": nested_image(datasets.List(datasets.Image()), lambda each: [each]),
    "an image in a part": nested_image({"one": datasets.Image()}, lambda each: {"one": each}),
    "an image listed beside": listed_image,
}


@pytest.mark.fault("supply chain")
@pytest.mark.parametrize("case", OUTSIDE)
def test_a_data_folder_reads_nothing_outside_itself(tmp_path, case):
    folder, secret = tmp_path / "data", tmp_path / "secret" / "secret.csv"
    for each in (folder, secret.parent):
        each.mkdir()
    secret.write_text("text\nsecret\n")
    OUTSIDE[case](folder, secret)
    # The last two by `datasets`, which follows no linked folder and checks lists of images.
    refused = r"outside|README\.md names addresses|any data files|escape the dataset"
    with pytest.raises((ValueError, OSError), match=refused) as caught:
        ek.load_data(folder)
    assert "secret\n" not in str(caught.value)


def test_what_lies_outside_is_read_when_asked_for(tmp_path):
    folder, secret = tmp_path / "data", tmp_path / "secret" / "secret.csv"
    for each in (folder, secret.parent):
        each.mkdir()
    secret.write_text("text\nsecret\n")
    named("../secret/secret.csv")(folder, secret)
    assert ek.load_data(folder, outside=True)["text"][:] == ["secret"]
