"""Ray: encoders as they are on its workers, and the job that ends whatever is killed.

`test_job` tries what the job does without a cluster.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace

import duckdb
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

import embedkit as ek
from tests.conftest import picture, sentence
from tests.test_job import SCRIPT, as_file, s3  # noqa: F401 - it also keeps Ray to this machine

ray = pytest.importorskip("ray", reason="needs the extra `ray`")
embed_on_ray = pytest.importorskip("embed_on_ray", reason="needs the extra `ray`")
BlockAccessor = pytest.importorskip("ray.data.block").BlockAccessor
pytestmark = pytest.mark.slow  # the cluster alone takes seconds to start
REAL = "bundled/all-MiniLM-L6-v2"  # it takes long enough to be disturbed
ROWS, BLOCK = 600, 20


@pytest.fixture(scope="module")
def cluster(s3):  # noqa: F811 - so that its workers know the object store
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


def start(source, out, model, cluster, *more):
    command = [sys.executable, SCRIPT, source, out, "--model", model]
    command += ["--id", "name", "--column", "body", "--batch-size", str(BLOCK), *more]
    command += ["--address", cluster] if cluster else []
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(job):
    """Wait for the end; give what was said, and the summary."""
    said, _ = job.communicate(timeout=240)
    assert job.returncode == 0, said
    return said, json.loads(said.splitlines()[-1])


def wait_for_parts(list_parts, count, job):
    while len(list_parts()) < count:
        assert job.poll() is None, job.communicate()
        time.sleep(0.02)


def workers_of(process):
    return [
        each
        for each in psutil.Process(process).children(recursive=True)
        if each.cmdline()[:1] and each.cmdline()[0].startswith("ray::Worker")
    ]


def put(texts, path, files=None):
    ids = [f"row {number}" for number in range(len(texts))]
    pq.write_table(pa.table({"name": ids, "body": texts}), path, filesystem=files)


@pytest.mark.fault("job")
def test_three_deaths_lose_no_row_and_double_none(cluster, texts, s3):  # noqa: F811
    """To an object store, with bad rows among them: a worker, then the job, twice."""
    rows, dice = [*texts], np.random.default_rng(int(time.time()))
    bad = {int(row) for row in dice.choice(ROWS, 7, replace=False)}
    for row in bad:
        rows[row] = None
    s3.create_dir("bucket/many/in")
    for number in range(3):  # files
        ids = [f"row {row}" for row in range(number, ROWS, 3)]
        table = pa.table({"name": ids, "body": rows[number::3]})
        pq.write_table(table, f"bucket/many/in/{number}.parquet", filesystem=s3)

    def parts():
        found = s3.get_file_info(pafs.FileSelector("bucket/many/out/vectors", allow_not_found=True))
        return [info.path for info in found if info.path.endswith(".parquet")]

    paths = "s3://bucket/many/in", "s3://bucket/many/out"
    job = start(*paths, REAL, cluster)
    while s3.get_file_info("bucket/many/out/lock.json").type != pafs.FileType.File:
        assert job.poll() is None, job.communicate()
        time.sleep(0.02)
    second = start(*paths, REAL, cluster)  # at the same time
    said, _ = second.communicate(timeout=60)
    assert second.returncode == 1 and "has been writing there since" in said
    wait_for_parts(parts, dice.integers(2, 6), job)
    workers_of(os.getpid())[0].kill()
    for some in (8, 14):
        wait_for_parts(parts, some + dice.integers(0, 4), job)
        assert len(parts()) < ROWS // BLOCK, "it was over too soon to be disturbed"
        job.kill()
        job.wait()
        job = start(*paths, REAL, cluster, "--take-over")
    said, summary = finish(job)
    assert "and it is no more. Taken over." in said
    assert 0 < summary["embedded"] < ROWS - BLOCK
    assert (summary["vectors"], summary["rejected"]) == (ROWS - len(bad), len(bad))

    found = pads.dataset("bucket/many/out/vectors", filesystem=s3).to_table().to_pandas()
    good = [row for row in range(ROWS) if row not in bad]
    assert sorted(found["name"]) == sorted(f"row {row}" for row in good)
    vectors = np.stack(found.set_index("name").loc[[f"row {row}" for row in good]]["embedding"])
    expected = ek.TextEncoder(REAL).encode([texts[row] for row in good])
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)
    rejected = pads.dataset("bucket/many/out/rejected", filesystem=s3).to_table().to_pylist()
    assert {each["name"] for each in rejected} == {f"row {row}" for row in bad}
    assert {each["reason"] for each in rejected} == {"it is None; it has to be a str"}


@pytest.mark.fault("job")
def test_with_a_cluster_of_its_own_others_can_read_it(tiny, texts, tmp_path):
    """It may grow by itself, and is given the token of the Hub, of which nothing is heard."""
    put(texts, tmp_path / "in.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_a-secret-token")
        more = ["--store", "float16", "--layers", "1", "2", "--pooling", "mean"]
        out = tmp_path / "out"
        job = start(
            tmp_path / "in.parquet", out, tiny("bert"), None, *more, "--concurrency", "1", "2"
        )
        said, summary = finish(job)
    assert "a-secret" not in said
    assert summary["vectors"] == ROWS and summary["tokens_per_second"] > 0
    encoder = ek.TextEncoder(tiny("bert"), pooling="mean", layers=[1, 2])
    expected = dict(zip((f"row {n}" for n in range(ROWS)), encoder.encode(texts), strict=True))

    schema = pq.read_schema(next((out / "vectors").glob("*.parquet")))
    assert schema.field("embedding").type == pa.list_(pa.float16(), 32)
    made_by = json.loads(schema.metadata[b"embedkit"])
    assert re.fullmatch("[0-9a-f]{64}", made_by.pop("files"))  # a digest of the model's folder
    assert made_by == {
        "encoder": "TextEncoder",
        "model": tiny("bert"),
        "revision": None,
        "pooling": "mean",
        "pooled": "mean",
        "normalized": False,
        "layers": [1, 2],
        "dtype": "float32",
        "column": "body",
        "id": "name",
        "stored": "float16",
    }
    files = str(out / "vectors" / "*.parquet")
    frame = pd.read_parquet(out / "vectors")
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


def hand_out(worker, items, monkeypatch, at_most=1, num_cpus=1):
    """Hand ranges to workers of another kind, without an encoder."""
    monkeypatch.setattr(embed_on_ray, "Worker", worker)
    monkeypatch.setattr(embed_on_ray, "agree", lambda *_: None)
    args = Namespace(concurrency=[1, at_most], num_cpus=num_cpus, num_gpus=0)
    return embed_on_ray.run_on_ray(args, Namespace(items=items), None, {})


@pytest.mark.fault("job")
@pytest.mark.parametrize(("deadly", "deaths", "survive"), [("model", 3, []), (0, 6, [1, 2, 3, 4])])
def test_what_kills_every_worker_ends_the_job(cluster, monkeypatch, deadly, deaths, survive):
    """The model, or one range; the others are done before."""

    class Fragile:
        def __init__(self, task):
            pass

        def load(self):
            self.do("model")

        def do(self, item):
            if item == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            return item

    done = []
    with pytest.raises(SystemExit, match=f"^{deaths} workers died, one after the other; the last"):
        for record in hand_out(Fragile, [0, 1, 2, 3, 4], monkeypatch, at_most=2):
            done.append(record)
    assert sorted(done) == survive


@pytest.mark.fault("job")
def test_while_no_worker_is_ready_it_says_what_is_free(cluster, monkeypatch, capsys):
    class Slow:
        def __init__(self, task):
            pass

        def load(self):
            time.sleep(3)

        def do(self, item):
            return item

    monkeypatch.setattr(embed_on_ray, "PATIENCE", 0.5)
    assert [*hand_out(Slow, ["a range"], monkeypatch, num_cpus=2)] == ["a range"]
    pattern = r"no worker is ready yet; each takes 2 CPUs and 0 GPUs, and \d and 0 are free now"
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(re.fullmatch(pattern, line) for line in lines)


def test_a_wrong_setting_is_told_in_one_sentence(cluster, tiny, texts, tmp_path):
    put(texts, tmp_path / "in.parquet")
    job = start(
        tmp_path / "in.parquet", tmp_path / "out", tiny("bert"), cluster, "--pooling", "meen"
    )
    said, _ = job.communicate(timeout=120)
    assert job.returncode == 1 and "a worker stopped: ValueError: " in said
    assert said.rstrip().endswith(
        "unknown pooling; choose from cls, last, max, mean, or pass a function"
    )
    assert not (tmp_path / "out" / "lock.json").exists()


@pytest.mark.fault("job")
def test_an_error_that_is_no_rows_fault_is_told_in_one_sentence(cluster, tiny, texts, tmp_path):
    """The file of the model is another than the one that made what is there."""
    put(texts[:40], tmp_path / "in.parquet")
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(tiny("bert"), model)
    finish(start(tmp_path / "in.parquet", out, model, cluster, "--concurrency", "1"))
    parts = sorted((out / "vectors").iterdir())
    parts[0].unlink()  # so that there is something left to do
    weights = model / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    job = start(tmp_path / "in.parquet", out, model, cluster, "--concurrency", "1")
    said, _ = job.communicate(timeout=240)
    assert job.returncode == 1
    assert "holds vectors made with files" in said and "Traceback" not in said
    assert sorted((out / "vectors").iterdir()) == parts[1:]
