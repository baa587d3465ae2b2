"""Ray: encoders as they are on its workers, and the job that ends whatever is killed."""

import contextlib
import importlib.util
import io
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Before Ray is imported: no report to its makers, no port open to other machines, no file at home.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

import duckdb
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

import embedkit as ek
from tests.conftest import picture, sentence

ray = pytest.importorskip("ray", reason="needs the extra `ray`")
BlockAccessor = pytest.importorskip("ray.data.block").BlockAccessor
pytestmark = pytest.mark.slow  # the cluster alone takes seconds to start
SCRIPT = Path(__file__).parents[1] / "examples" / "embed_on_ray.py"
REAL = "bundled/all-MiniLM-L6-v2"  # it takes long enough to be disturbed
ROWS, BLOCK = 600, 20


@pytest.fixture(scope="module")
def cluster():
    """Start Ray on this machine, for all tests; leave no file behind."""
    # Ray's sockets need a shorter path than pytest's own folders, and those of macOS, give.
    folder = tempfile.mkdtemp(dir="/tmp" if sys.platform == "darwin" else None)
    threads = os.environ.pop("OMP_NUM_THREADS", None)  # where it is set, Ray leaves it alone
    for last in (False, False, True):
        try:
            ray.init(
                num_cpus=3,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="error",
                _temp_dir=folder,
            )
            break
        except Exception as error:  # on a busy machine Ray gives up on itself too soon
            ray.shutdown()
            if last or "timed out" not in str(error):
                raise
    os.environ |= {"OMP_NUM_THREADS": threads} if threads else {}
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def texts():
    generator = np.random.default_rng(5)
    return [sentence(int(n), generator) for n in generator.integers(1, 40, ROWS)]


@pytest.fixture
def table(texts, tmp_path):
    path = tmp_path / "in.parquet"
    ids = [f"row {number}" for number in range(ROWS)]
    pq.write_table(pa.table({"name": ids, "body": texts, "other": range(ROWS)}), path)
    return path


# The encoder as it is


def test_readme_job_gives_the_vectors_of_encode(cluster, texts, tmp_path):
    pq.write_table(pa.table({"n": range(ROWS), "text": texts}), tmp_path / "texts.parquet")
    readme = SCRIPT.parents[1].joinpath("README.md").read_text(encoding="utf-8")
    job = re.search(r"## Many rows.*?```python\n(.*?)```", readme, re.DOTALL).group(1)
    for name in ("texts.parquet", "vectors"):  # the cluster has begun in another folder
        assert f'"{name}"' in job
        job = job.replace(f'"{name}"', repr(str(tmp_path / name)))
    exec(compile(job, "README.md", "exec"), {})
    found = pq.read_table(tmp_path / "vectors").sort_by("n")
    assert found["n"].to_pylist() == list(range(ROWS))
    assert found["embedding"].type == pa.list_(pa.float32(), 384)
    expected = ek.TextEncoder(REAL, pooling="mean").encode(texts)
    np.testing.assert_allclose(found["embedding"].to_pylist(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch_format", ["pandas", "pyarrow"])
def test_batches_of_other_formats_keep_their_format_and_rows(tiny, texts, batch_format):
    """What Ray hands over and takes back in each, without a cluster."""
    encoder = ek.TextEncoder(tiny("bert"), pooling="mean")
    block = pa.table({"text": texts[:9], "n": range(9), "embedding": range(9)})
    batch = BlockAccessor.for_block(block.slice(2)).to_batch_format(batch_format)
    found = BlockAccessor.batch_to_block(encoder(batch))
    found = BlockAccessor.for_block(found).to_arrow()
    assert found.column_names == ["text", "n", "embedding"] or batch_format == "pyarrow"
    assert found["n"].to_pylist() == list(range(2, 9))
    assert found["embedding"].type == pa.list_(pa.float32(), 32)
    vectors = np.array(found["embedding"].to_pylist())
    np.testing.assert_allclose(vectors, encoder.encode(texts[2:9]), rtol=0, atol=1e-5)


def test_words_are_lists_of_vectors_and_threads_as_many_as_granted(cluster, tiny):
    class Words(ek.WordEncoder):
        def __call__(self, batch):
            import torch

            threads = pa.array([torch.get_num_threads()] * len(batch))
            return super().__call__(batch).append_column("threads", threads)

    data = ray.data.from_items([{"tokens": ["the", "kettle"]}, {"tokens": ["boils"]}])
    found = data.map_batches(
        Words,
        fn_constructor_kwargs={"model": tiny("bert")},
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=2,
    )
    found = pa.concat_tables(ray.get(found.to_arrow_refs()))
    assert found["threads"].to_pylist() == [2, 2]
    assert found["embedding"].type == pa.list_(pa.list_(pa.float32(), 32))
    expected = ek.WordEncoder(tiny("bert")).encode(found["tokens"].to_pylist())
    flat = np.concatenate([np.array(row) for row in found["embedding"].to_pylist()])
    np.testing.assert_allclose(flat, expected.vectors, rtol=0, atol=1e-5)


def as_file(image):
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize("batch_format", ["numpy", "pandas", "pyarrow"])
def test_images_come_as_files_as_datasets_keeps_them_or_as_arrays(tiny, batch_format):
    pictures = [picture(number) for number in range(3)]
    encoder = ek.ImageEncoder(tiny("vit"))
    for column in (
        [as_file(each) for each in pictures],
        [{"bytes": as_file(each), "path": None} for each in pictures],
        np.stack([np.asarray(each) for each in pictures]),
    ):
        block = BlockAccessor.batch_to_arrow_block({"image": column})
        batch = BlockAccessor.for_block(block).to_batch_format(batch_format)
        found = encoder(batch)["embedding"]
        found = found.to_pylist() if batch_format == "pyarrow" else list(found)
        np.testing.assert_allclose(found, encoder.encode(pictures), rtol=0, atol=1e-5)


# The job


def start(table, out, model, cluster, *more):
    command = [sys.executable, SCRIPT, table, out, "--model", model, "--pooling", "mean"]
    command += ["--id", "name", "--column", "body", "--batch-size", str(BLOCK), *more]
    command += ["--address", cluster] if cluster else []
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture
def refused(monkeypatch, capsys):
    """Run the job in this process until it stops, which has to be before Ray starts."""
    spec = importlib.util.spec_from_file_location("embed_on_ray", SCRIPT)
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)

    def never(*_, **__):
        raise AssertionError("Ray was started")

    def run(table, out, model, *more):
        command = [SCRIPT, table, out, "--model", model, "--pooling", "mean"]
        command += ["--id", "name", "--column", "body", *more]
        monkeypatch.setattr(sys, "argv", [str(each) for each in command])
        monkeypatch.setattr(ray, "init", never)
        with pytest.raises(SystemExit) as stopped:
            job.main()
        assert stopped.value.code not in (0, None)
        return f"{stopped.value.code} {capsys.readouterr().err}"

    return run


def finish(job):
    said, _ = job.communicate(timeout=240)
    assert job.returncode == 0, said
    return said


def wait_for_parts(out, count, job):
    while len(parts := list(out.glob("*.parquet"))) < count:
        assert job.poll() is None, job.communicate()
        time.sleep(0.02)
    return parts


def workers_of(process):
    return [
        each
        for each in psutil.Process(process).children(recursive=True)
        if each.cmdline()[:1] and each.cmdline()[0].startswith("ray::MapWorker")
    ]


def check(out, encoder, texts):
    """Every id stands there once, with the vector that `encode` gives."""
    found = pads.dataset(out, format="parquet").to_table().to_pandas()
    assert sorted(found["name"]) == sorted(f"row {number}" for number in range(ROWS))
    found = found.set_index("name").loc[[f"row {number}" for number in range(ROWS)]]
    vectors = np.stack(found["embedding"])
    np.testing.assert_allclose(vectors, encoder.encode(texts), rtol=0, atol=1e-5)
    assert sorted(each.suffix for each in out.iterdir()) == [".parquet"] * len(list(out.iterdir()))


def test_a_killed_worker_changes_nothing(cluster, tiny, texts, table, tmp_path):
    out = tmp_path / "out"
    job = start(table, out, REAL, cluster)
    wait_for_parts(out, 2, job)
    killed = workers_of(os.getpid())
    killed[0].kill()
    done = len(list(out.glob("*.parquet")))
    assert done < ROWS // BLOCK, "it was over too soon to be disturbed"
    finish(job)
    check(out, ek.TextEncoder(REAL, pooling="mean"), texts)


def test_a_killed_job_is_taken_up_where_it_was(tiny, texts, table, tmp_path):
    """With a cluster of its own, which dies with it."""
    out, model = tmp_path / "out", REAL
    job = start(table, out, model, None)
    wait_for_parts(out, 2, job)
    left_over = psutil.Process(job.pid).children(recursive=True)
    # Two agents of Ray's look only now and then whether their cluster is still there.
    agents = [each for each in left_over if "Agent" in each.name()]
    job.kill()
    job.wait()
    _, alive = psutil.wait_procs([each for each in left_over if each not in agents], timeout=30)
    assert not alive
    for agent in agents:
        with contextlib.suppress(psutil.NoSuchProcess):
            agent.kill()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert 2 <= len(before) < ROWS // BLOCK
    half = out / "0badf00d-000000.parquet"  # as a run that did not rename would leave it
    half.write_bytes(next(iter(before)).read_bytes()[:-20])

    said = finish(start(table, out, model, None))
    assert f"{BLOCK * len(before)} of them done before" in said
    assert f"{half.name} is not whole" in said
    assert {path: path.stat().st_mtime_ns for path in before} == before
    half.with_name(f"{half.name}.unreadable").unlink()
    check(out, ek.TextEncoder(model, pooling="mean"), texts)

    said = finish(start(table, out, model, "127.0.0.1:1"))  # it needs no cluster any more
    assert f"{ROWS} of them done before" in said


def test_others_can_read_it(cluster, tiny, texts, table, tmp_path):
    out = tmp_path / "out"
    finish(
        start(
            table,
            out,
            tiny("bert"),
            cluster,
            "--store",
            "float16",
            "--layers",
            "1",
            "2",
            "--workers",
            "1",
        )
    )
    encoder = ek.TextEncoder(tiny("bert"), pooling="mean", layers=[1, 2])
    expected = dict(zip((f"row {n}" for n in range(ROWS)), encoder.encode(texts), strict=True))

    schema = pq.read_schema(next(out.glob("*.parquet")))
    assert schema.field("embedding").type == pa.list_(pa.float16(), 32)
    made_by = json.loads(schema.metadata[b"embedkit"])
    assert re.fullmatch("[0-9a-f]{64}", made_by.pop("files"))  # a digest of the model's folder
    assert made_by == {
        "encoder": "TextEncoder",
        "model": tiny("bert"),
        "revision": None,
        "pooling": "mean",
        "layers": [1, 2],
        "dtype": "float32",
        "column": "body",
        "stored": "float16",
    }
    files = str(out / "*.parquet")
    frame = pd.read_parquet(out)
    in_duckdb = duckdb.sql(f"select name, embedding from '{files}'").fetchall()
    data = load_dataset("parquet", data_files=files, split="train")
    for rows in (
        zip(frame["name"], frame["embedding"], strict=True),
        in_duckdb,
        ((row["name"], row["embedding"]) for row in data),
    ):
        found = dict(rows)
        assert found.keys() == expected.keys()
        for name, vector in found.items():
            np.testing.assert_allclose(vector, expected[name], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"name": ["a", "a", "b"]}, "1 rows have the 'name' of another"),
        ({"name": ["a", None, "b"]}, "1 rows have no 'name'"),
        ({"named": ["a", "b", "c"]}, "no column 'name' can be read"),
    ],
)
def test_ids_that_tell_nothing_apart_are_refused(refused, tiny, tmp_path, change, complaint):
    pq.write_table(pa.table({**change, "body": ["x", "y", "z"]}), tmp_path / "in.parquet")
    assert complaint in refused(tmp_path / "in.parquet", tmp_path / "out", tiny("bert"))


def part(path, **made_by):
    """Write a part as the job does."""
    table = pa.table({"name": ["row 1"], "embedding": [[0.0] * 32]})
    pq.write_table(table.replace_schema_metadata({"embedkit": json.dumps(made_by)}), path)


def made_with(folder, **changed):
    settings = {"encoder": "TextEncoder", "column": "body", "model": folder, "layers": -1}
    return {**settings, "dtype": "float32", "pooling": "mean", "stored": "float32", **changed}


@pytest.mark.bad_input("job")
@pytest.mark.parametrize("changed", [{"pooling": "cls"}, {"model": "other"}, {"layers": [1]}])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_vectors_of_two_kinds_do_not_mix(refused, tiny, table, tmp_path, changed, place):
    """Every part is looked at."""
    out = tmp_path / "out"
    out.mkdir()
    for number in range(3):
        kind = made_with(tiny("bert"), **(changed if number == place else {}))
        part(out / f"0badf00d-00000{number}.parquet", **kind)
    said = refused(table, out, tiny("bert"))
    assert f"0badf00d-00000{place}.parquet holds vectors made with" in said


@pytest.mark.bad_input("job")
def test_new_weights_in_the_folder_of_the_model_do_not_mix_with_old_ones(
    cluster, tiny, table, tmp_path
):
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(tiny("bert"), model)
    finish(start(table, out, model, cluster, "--workers", "1"))
    parts = sorted(out.glob("*.parquet"))
    parts[0].unlink()  # so that there is something left to do
    weights = model / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    job = start(table, out, model, cluster, "--workers", "1")
    said, _ = job.communicate(timeout=240)
    assert job.returncode == 1 and "holds vectors made with files" in said
    assert sorted(out.glob("*.parquet")) == parts[1:]


STRANGERS = {
    "a draft": "_unfinished/notes.txt",
    "a draft in a folder": "_unfinished/0badf00d/chapter",
    "a table": "table.parquet",
    "a broken table": "broken.parquet",
}


@pytest.mark.bad_input("job")
@pytest.mark.parametrize("name", STRANGERS.values(), ids=STRANGERS)
def test_files_of_others_stay_as_they_are(refused, tiny, table, tmp_path, name):
    out = tmp_path / "out"
    ours = out / "_unfinished" / "0badf00d" / ("0" * 32)
    for path in (ours, out / name):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
    if name == "table.parquet":
        pq.write_table(pa.table({"name": ["a"], "embedding": [[0.0]]}), out / name)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    said = refused(table, out, tiny("bert"))
    assert f"{name} was not written by this job" in said
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.bad_input("job")
@pytest.mark.parametrize("way", ["itself", "within", "around", "by ..", "by a link", "file"])
def test_nothing_is_written_beside_the_input(refused, tiny, table, tmp_path, way):
    folder = tmp_path / "texts"
    folder.mkdir()
    table.rename(folder / "in.parquet")
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    source = folder / "in.parquet" if way == "file" else folder
    out = {
        "itself": folder, "within": folder / "vectors", "around": tmp_path, "file": folder,
        "by ..": tmp_path / "other" / ".." / "texts", "by a link": tmp_path / "link" / "vectors",
    }[way]  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    assert "is the input, holds it or lies in it" in refused(source, out, tiny("bert"))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.bad_input("job")
@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        (("--workers", "0"), "--workers: '0': give a whole number of 1 or more"),
        (("--workers", "two"), "--workers: 'two': give a whole number"),
        (("--batch-size", "-5"), "--batch-size: '-5': give a whole number"),
        (("--batch-size", "1.5"), "--batch-size: '1.5': give a whole number"),
        (("--cpus", "0"), "--cpus: '0': give a whole number"),
        (("--gpus", "-1"), "--gpus: -1.0: give 0 or more"),
        (("--gpus", "nan"), "--gpus: nan: give 0 or more"),
        (("--column", "boby"), "no column 'boby'; choose from name, body, other"),
        (("--id", "nmae"), "no column 'nmae' can be read"),
    ],
)
def test_a_wrong_setting_is_refused_before_ray_has_started(
    refused, tiny, table, tmp_path, setting, complaint
):
    out = tmp_path / "out"
    ours = out / "_unfinished" / "0badf00d" / ("0" * 32)
    ours.parent.mkdir(parents=True)
    ours.write_bytes(b"a draft of before")
    assert complaint in refused(table, out, tiny("bert"), *setting)
    assert ours.exists()


def test_a_row_that_is_no_text_is_told_in_one_sentence(cluster, tiny, tmp_path):
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"name": ["a", "b"], "body": ["the kettle", None]}), path)
    job = start(path, tmp_path / "out", tiny("bert"), cluster, "--workers", "1")
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 1
    assert said.rstrip().endswith("text 1 is None; it has to be a str")


def test_a_wrong_setting_is_told_in_one_sentence(cluster, tiny, table, tmp_path):
    job = start(table, tmp_path / "out", tiny("bert"), cluster, "--pooling", "meen")
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 1
    assert said.rstrip().endswith(
        "unknown pooling; choose from cls, last, max, mean, or pass a function"
    )
