"""The job of lesson 09 without its cluster: one worker, in this process, does what many would."""

import contextlib
import io
import json
import logging
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

# Before Ray is imported: no report to its makers, no port open to other machines, no file at home.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import yaml

import embed_files
import embed_plan
import embedkit as ek
from embed_worker import Worker
from tests.conftest import picture
from tests.hub import Hub

pytest.importorskip("ray", reason="needs the extra `ray`")
embed_on_ray = pytest.importorskip("embed_on_ray", reason="needs the extra `ray`")
SCRIPT = Path(embed_on_ray.__file__)


@pytest.fixture(scope="session")
def s3():
    """Start an object store on this machine, with one bucket; give its file system."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    settings = {
        "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "a-secret-key",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        files, _ = pafs.FileSystem.from_uri("s3://bucket?allow_bucket_creation=true")
        files.create_dir("bucket")
        yield files
    server.stop()


def as_file(image):
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


class Job:
    """An input, an output, and runs that end when they should not."""

    def __init__(self, root, files, model, monkeypatch, capsys):
        self.root, self.files, self.model = root, files, model
        self.source, self.out = f"{root}/in", f"{root}/out"
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.stop = None  # after so many ranges
        self.started = False
        monkeypatch.setattr(embed_on_ray, "begin", self._begin)
        monkeypatch.setattr(embed_on_ray, "run_on_ray", self._work)

    def _begin(self, args):
        self.started = True

    def _work(self, args, plan, task, made_by):
        worker = Worker(task)
        embed_on_ray.agree(task, made_by, worker.load())
        for number, item in enumerate(plan.items):
            if number == self.stop:
                raise KeyboardInterrupt
            yield worker.do(item)

    def path(self, name=""):
        return f"{self.root}/{name}".removeprefix("s3://").removeprefix("memory:/")

    def put(self, name, ids, texts, **more):
        if not self.root.startswith("s3"):
            self.files.create_dir(self.path(f"in/{name}").rpartition("/")[0])
        table = pa.table({"id": ids, "text": texts, **more})
        pq.write_table(table, self.path(f"in/{name}"), filesystem=self.files)

    def run(self, *more, source=None, out=None):
        """Run to the end; give the summary."""
        said = self._call(*more, source=source, out=out)
        return json.loads(said.splitlines()[-1])

    def ends_early(self, *more, **paths):
        """Run, and give what it says where it stops."""
        with pytest.raises((SystemExit, KeyboardInterrupt)) as stopped:
            self._call(*more, **paths)
        heard = self.capsys.readouterr()
        return f"{stopped.value} {heard.out}{heard.err}"

    def _call(self, *more, source=None, out=None):
        command = [SCRIPT, source or self.source, out or self.out, "--model", self.model]
        command = [str(each) for each in [*command, "--batch-size", "4", *more]]
        self.monkeypatch.setattr(sys, "argv", command)
        embed_on_ray.main()
        return self.capsys.readouterr().out

    def read(self, folder):
        data = pads.dataset(self.path(f"out/{folder}"), filesystem=self.files, format="parquet")
        return data.to_table()

    def vectors(self):
        """Give all vectors by their ids; no id may be there twice."""
        table = self.read("vectors")
        ids = table["id"].to_pylist()
        assert len(ids) == len({*ids})
        return dict(zip(ids, table["embedding"].to_pylist(), strict=True))

    def listed(self, folder=""):
        selector = pafs.FileSelector(self.path(f"out/{folder}"), recursive=True)
        found = self.files.get_file_info(selector)
        return {each.path: each.mtime_ns for each in found if each.type == pafs.FileType.File}


@pytest.fixture
def job(tiny, tmp_path, monkeypatch, capsys):
    return Job(str(tmp_path), pafs.LocalFileSystem(), tiny("bert"), monkeypatch, capsys)


@pytest.fixture(params=["disk", "s3"])
def anywhere(request, tiny, tmp_path, monkeypatch, capsys):
    """Do the same on a disk and in an object store."""
    if request.param == "disk":
        return request.getfixturevalue("job")
    files, name = request.getfixturevalue("s3"), tmp_path.name.replace("_", "-")
    return Job(f"s3://bucket/{name}", files, tiny("bert"), monkeypatch, capsys)


def texts(count, what="kettle"):
    return [f"the {what} number {number}" for number in range(count)]


def check(job, expected):
    """Every id once, with the vector that `encode` gives."""
    found = job.vectors()
    assert found.keys() == expected.keys()
    wanted = ek.TextEncoder(job.model).encode([*expected.values()])
    np.testing.assert_allclose([found[id] for id in expected], wanted, rtol=0, atol=1e-5)


# What is done


@pytest.mark.slow
@pytest.mark.fault("job")
def test_a_run_that_ends_is_taken_up_and_bad_rows_are_put_aside(anywhere):
    first, second = texts(11), texts(6, "pot")
    anywhere.put("a.parquet", range(11), [*first[:3], None, *first[4:]])
    anywhere.put("more/b.parquet", range(11, 17), second)
    anywhere.stop = 2
    anywhere.ends_early()
    named = len(anywhere.listed("vectors"))
    anywhere.stop = None
    done = anywhere.run()
    assert named == 2 and done["embedded"] == 16 - 7
    assert (done["rows"], done["vectors"], done["rejected"], done["parts"]) == (17, 16, 1, 5)
    expected = dict(zip(range(17), first + second, strict=True))
    del expected[3]
    check(anywhere, expected)
    (bad,) = anywhere.read("rejected").to_pylist()
    assert bad == {"id": 3, "reason": "it is None; it has to be a str"}
    assert not [name for name in anywhere.listed() if name.endswith(("lock.json", ".draft"))]
    anywhere.monkeypatch.setattr(embed_on_ray, "begin", None)  # it needs no cluster any more
    assert anywhere.run()["embedded"] == 0


@pytest.mark.slow
def test_edited_rows_are_embedded_again_and_others_left_alone(anywhere):
    rows = texts(10)
    anywhere.put("a.parquet", range(10), rows)
    anywhere.put("b.parquet", range(10, 14), texts(4, "pot"))
    anywhere.run()
    before, parts = anywhere.vectors(), anywhere.listed("vectors")
    rows[6] = "another text by far, and longer"
    anywhere.put("a.parquet", [*range(10), 99], [*rows, "a row that is new"])
    done = anywhere.run()
    assert done["embedded"] == 2
    after = anywhere.vectors()
    changed = {id for id in before if after.pop(id) != before[id]}
    assert changed == {6} and {*after} == {99}
    check(anywhere, dict(zip([*range(10), 99], [*rows, "a row that is new"], strict=True))
          | dict(zip(range(10, 14), texts(4, "pot"), strict=True)))  # fmt: skip
    same = [name for name in parts if anywhere.listed("vectors").get(name) == parts[name]]
    assert len(same) == 1  # that of the file that did not change


@pytest.mark.slow
def test_other_ranges_embed_nothing_again(job):
    job.put("a.parquet", range(10), texts(10))
    job.stop = 2
    job.ends_early()
    before = job.vectors()
    job.stop = None
    done = job.run("--batch-size", "3")
    assert (done["embedded"], done["parts"], len(before)) == (2, 4, 8)
    after = job.vectors()
    assert {id: after[id] for id in before} == before
    check(job, dict(enumerate(texts(10))))
    # A file that is finished is left as it is.
    parts = job.listed("vectors")
    assert job.run("--batch-size", "5")["parts"] == 4 and job.listed("vectors") == parts


@pytest.mark.slow
def test_an_edited_bad_row_gets_its_vector(job):
    job.put("a.parquet", [1, 2], ["the kettle", None])
    assert job.run()["rejected"] == 1
    job.put("a.parquet", [1, 2], ["the kettle", "the pot, repaired"])
    done = job.run()
    assert (done["rejected"], done["embedded"]) == (0, 1)
    assert not job.listed("rejected")
    check(job, {1: "the kettle", 2: "the pot, repaired"})


@pytest.mark.slow
@pytest.mark.fault("job")
def test_only_what_the_manifest_names_counts(anywhere):
    anywhere.put("a.parquet", range(9), texts(9))
    anywhere.run()
    parts = sorted(anywhere.listed("vectors"))
    # One is lost, one is half, and a worker of an earlier run has left one that nobody asked for.
    with anywhere.files.open_input_stream(parts[1]) as file:
        content = file.read()
    anywhere.files.delete_file(parts[0])
    left_over = parts[1].replace(parts[1].rpartition("/")[2][:16], "0" * 16)
    for path, bytes_ in ((parts[1], content[:-9]), (left_over, content)):
        with anywhere.files.open_output_stream(path) as file:
            file.write(bytes_)
    # Half a segment, as an end in the middle would leave it on a disk without renaming.
    with anywhere.files.open_output_stream(
        anywhere.path("out/manifest/00000099-0badf00d.jsonl")
    ) as file:
        file.write(b'{"forget": "a.parquet", "file": "a.parquet"}\n')
    done = anywhere.run()
    assert done["embedded"] == 8  # of the two parts; the third is left alone
    assert sorted(anywhere.listed("vectors")) == parts
    check(anywhere, dict(enumerate(texts(9))))


def test_files_that_are_gone_are_not_forgotten_unasked(job):
    job.put("a.parquet", range(4), texts(4))
    job.put("b.parquet", range(4, 6), texts(2, "pot"))
    job.run()
    job.files.delete_file(job.path("in/b.parquet"))
    assert "1 files that were embedded are no longer in" in job.ends_early()
    assert len(job.vectors()) == 6
    assert job.run("--forget")["vectors"] == 4
    check(job, dict(enumerate(texts(4))))


def test_an_error_on_one_row_costs_that_row_alone(job, monkeypatch):
    """Some kinds of input make an encoder stop though it was told to skip."""
    encode = ek.TextEncoder.encode

    def stops(self, inputs, **options):
        if "the kettle number 2" in inputs.to_pylist():
            raise RuntimeError("cannot think of kettles")
        return encode(self, inputs, **options)

    monkeypatch.setattr(ek.TextEncoder, "encode", stops)
    job.put("a.parquet", range(4), texts(4))
    assert job.run()["rejected"] == 1
    assert job.read("rejected").to_pylist() == [{"id": 2, "reason": "cannot think of kettles"}]
    assert {*job.vectors()} == {0, 1, 3}
    # Where nothing works, it is not the rows.
    monkeypatch.setattr(ek.TextEncoder, "encode", lambda *_, **__: 1 / 0)
    job.put("b.parquet", range(4, 8), texts(4))
    with pytest.raises(ZeroDivisionError):
        job.run()


def test_images_and_a_file_that_is_none(tiny, job):
    pictures = [as_file(picture(number)) for number in range(3)]
    job.model = tiny("vit")
    files = [{"bytes": each, "path": None} for each in [*pictures[:2], b"no image", pictures[2]]]
    job.put("a.parquet", range(4), texts(4), image=files)
    done = job.run("--encoder", "image")
    assert (done["vectors"], done["rejected"], done["made_by"]["pooled"]) == (3, 1, "mean")
    (bad,) = job.read("rejected").to_pylist()
    assert bad["id"] == 2 and bad["reason"].startswith("it ")
    expected = ek.ImageEncoder(job.model).encode([picture(number) for number in range(3)])
    found = job.vectors()
    np.testing.assert_allclose([found[id] for id in (0, 1, 3)], expected, rtol=0, atol=1e-5)


@pytest.mark.bad_input("job")
def test_of_very_many_rows_each_range_looks_at_its_own_ids(job, monkeypatch):
    monkeypatch.setattr(embed_plan, "COMPARED", 0)
    job.put("a.parquet", pa.array([1, 2, 1, None]), texts(4))
    assert job.run()["vectors"] == 2
    reasons = {each["id"]: each["reason"] for each in job.read("rejected").to_pylist()}
    assert reasons == {1: "it has the id of a row before it", None: "it has no id"}


@pytest.mark.slow
def test_pooling_follows_the_model_and_the_output_says_so(job):
    job.put("a.parquet", range(2), texts(2))
    job.model = "bundled/all-MiniLM-L6-v2"  # whose authors took the mean, at length 1
    made_by = job.run()["made_by"]
    said = (made_by["pooling"], made_by["pooled"], made_by["normalized"])
    assert said == ("auto", "mean", True)
    (part,) = job.listed("vectors")
    assert json.loads(pq.read_schema(part).metadata[b"embedkit"]) == made_by
    check(job, dict(enumerate(texts(2))))


@pytest.mark.slow
def test_the_leader_holds_no_ids(job, monkeypatch):
    """Ten times the rows, and the memory of the plan hardly grows."""

    def peak(rows):
        ids = pa.array(np.arange(rows))
        job.put("a.parquet", ids, pa.array(["a"]).take(pa.array(np.zeros(rows, int))))
        source, out = embed_files.Place(job.source), embed_files.Place(job.out)
        monkeypatch.setattr(sys, "argv", ["x", job.source, job.out])
        args = type("args", (), {"id": "id", "column": "text", "batch_size": 10_000})
        tracemalloc.start()
        embed_plan.Plan(source, embed_files.Manifest(out, "0badf00d", ()), args)
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(1_000_000) < peak(100_000) + 200_000  # of one id, eight bytes would be 8 MB


# One run at a time


def dead_pid():
    return max(psutil.pids()) + 100_000


def lock(job, **what):
    now = time.time()
    found = {"run": "0badf00d", "host": socket.gethostname(), "pid": os.getpid()}
    found |= {"since": now - 500, "seen": now - 5, **what}
    Path(job.out).mkdir(exist_ok=True)
    (Path(job.out) / "lock.json").write_text(json.dumps(found))


@pytest.mark.fault("job")
@pytest.mark.parametrize("what", [{}, {"host": "elsewhere", "pid": 1}])
def test_a_second_run_refuses(job, what):
    job.put("a.parquet", range(4), texts(4))
    lock(job, **what)
    said = job.ends_early("--take-over")  # which takes from the dead alone
    assert f"process {what.get('pid', os.getpid())} on" in said and "Wait for it" in said
    assert not job.started and not job.listed("vectors")


@pytest.mark.slow
@pytest.mark.fault("job")
@pytest.mark.parametrize("what", [{"pid": dead_pid()}, {"host": "elsewhere", "seen": 1.0}])
def test_the_lock_of_a_dead_run_is_named_and_can_be_taken(job, what):
    job.put("a.parquet", range(4), texts(4))
    lock(job, **what)
    said = job.ends_early()
    assert "add --take-over" in said and f"on {what.get('host', socket.gethostname())}" in said
    assert not job.started
    assert job.run("--take-over")["vectors"] == 4
    assert not (Path(job.out) / "lock.json").exists()


@pytest.mark.slow
@pytest.mark.fault("job")
def test_who_loses_the_lock_stops(anywhere, monkeypatch):
    monkeypatch.setattr(embed_files, "BEAT", 0.5)
    anywhere.put("a.parquet", range(40), texts(40))
    work = anywhere._work

    def slowly(*given):
        for number, record in enumerate(work(*given)):
            if number == 2:
                out = embed_files.Place(anywhere.out)
                seen = {"run": "another", "host": "x", "pid": 1, "since": 0, "seen": time.time()}
                for _ in range(10):  # it may just be saying that it is alive
                    out.write("lock.json", json.dumps(seen).encode())
                    time.sleep(0.2)
            yield record

    monkeypatch.setattr(embed_on_ray, "run_on_ray", slowly)
    assert "taken this output over" in anywhere.ends_early()
    assert json.loads(embed_files.Place(anywhere.out).read("lock.json"))["run"] == "another"


def test_of_two_that_begin_together_on_a_disk_one_does(job, monkeypatch):
    out = embed_files.Place(job.out)
    Path(job.out).mkdir()
    locks = [embed_files.Lock(out, f"0000000{number}") for number in range(2)]
    monkeypatch.setattr(embed_files.Lock, "_read", lambda self: None)  # both see none
    with contextlib.suppress(SystemExit):
        locks[0].take(False)
    with pytest.raises(SystemExit, match="another run has just begun"):
        locks[1].take(False)


# Addresses and secrets


@pytest.mark.slow
def test_any_address_of_fsspec_will_do(tiny, tmp_path, monkeypatch, capsys):
    import fsspec

    files = pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem("memory")))
    job = Job(f"memory://{tmp_path.name}", files, tiny("bert"), monkeypatch, capsys)
    job.put("a.parquet", range(6), texts(6))
    job.run()
    check(job, dict(enumerate(texts(6))))


@pytest.mark.slow
@pytest.mark.fault("job")
def test_no_secret_is_shown_or_kept(s3, tiny, tmp_path, monkeypatch, capsys):
    job = Job("s3://bucket/secrets", s3, tiny("bert"), monkeypatch, capsys)
    job.put("a.parquet", range(2), texts(2))
    monkeypatch.setenv("HF_TOKEN", "hf_a-secret-token")
    tasks = []
    work = job._work

    def keep(args, plan, task, made_by):
        tasks.append(task)
        return work(args, plan, task, made_by)

    monkeypatch.setattr(embed_on_ray, "run_on_ray", keep)
    source, out = (each.replace("//", "//key:a-secret-key@") for each in (job.source, job.out))
    said = job._call(source=source, out=out) + repr(tasks)
    assert tasks[0].token == "hf_a-secret-token"  # and it was there
    assert "s3://bucket/secrets/out: 2 vectors" in said
    kept = b"".join(s3.open_input_stream(path).read() for path in job.listed())
    assert "secret-" not in said and b"secret-" not in kept


@pytest.mark.bad_input("job")
def test_an_address_that_nobody_knows_is_told_in_one_sentence(job):
    assert "no such address can be opened" in job.ends_early(source="gopher://a/b")


# What is refused before Ray starts


@pytest.mark.bad_input("job")
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"id": ["a", "a", "b"]}, "1 rows have the 'id' of another"),
        ({"id": ["a", None, "b"]}, "1 rows have no 'id'"),
        ({"named": ["a", "b", "c"]}, "has no column 'id'; choose from text, named"),
    ],
)
def test_ids_that_tell_nothing_apart_are_refused(job, tmp_path, change, complaint):
    pq.write_table(pa.table({"text": ["x", "y", "z"], **change}), tmp_path / "in.parquet")
    assert complaint in job.ends_early(source=tmp_path / "in.parquet")
    assert not job.started and not job.listed("vectors")


@pytest.mark.bad_input("job")
def test_ids_of_two_files_are_compared(job):
    job.put("a.parquet", range(4), texts(4))
    job.put("b.parquet", range(3, 6), texts(3))
    assert "1 rows have the 'id' of another" in job.ends_early()


@pytest.mark.bad_input("job")
@pytest.mark.parametrize(
    "changed",
    [("--pooling", "cls"), ("--layers", "1"), ("--store", "float16"), ("--dtype", "bfloat16")],
)
def test_vectors_of_two_kinds_do_not_mix(job, changed):
    job.put("a.parquet", range(4), texts(4))
    job.run()
    before, job.started = job.listed(), False
    name = {"--store": "stored"}.get(changed[0], changed[0].removeprefix("--"))
    assert f"holds vectors made with {name}" in job.ends_early(*changed)
    assert job.listed() == before and not job.started


@pytest.mark.bad_input("job")
def test_new_weights_in_the_folder_of_the_model_do_not_mix_with_old_ones(tiny, job, tmp_path):
    job.model = tmp_path / "model"
    shutil.copytree(tiny("bert"), job.model)
    job.put("a.parquet", range(4), texts(4))
    job.run()
    before = job.listed("vectors")
    weights = job.model / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    job.put("b.parquet", range(4, 8), texts(4))
    assert "holds vectors made with files" in job.ends_early()
    assert job.listed("vectors") == before


STRANGERS = {
    "a table": "vectors/table.parquet",
    "a table beside them": "table.parquet",
    "a text": "notes.txt",
    "a text among rows that were rejected": "rejected/notes.txt",
    "a folder": "chapter/one.txt",
    "a part, and nothing that says what made it": f"vectors/{0:016}-{0:08}-{0:012}.parquet",
    "settings of another program": "job.json",
}


@pytest.mark.bad_input("job")
@pytest.mark.parametrize("name", STRANGERS.values(), ids=STRANGERS)
def test_files_of_others_stay_as_they_are(job, name):
    job.put("a.parquet", range(4), texts(4))
    path = Path(job.out) / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"{}")
    said = job.ends_early()
    assert f"{name} was not written by this job" in said
    assert [*job.listed()] == [str(path)] and path.read_bytes() == b"{}"


@pytest.mark.bad_input("job")
@pytest.mark.parametrize("way", ["itself", "within", "around", "by ..", "by a link", "file"])
def test_nothing_is_written_beside_the_input(job, tmp_path, way):
    folder = tmp_path / "in"
    job.put("a.parquet", range(4), texts(4))
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    source = folder / "a.parquet" if way == "file" else folder
    out = {
        "itself": folder, "within": folder / "vectors", "around": tmp_path, "file": folder,
        "by ..": tmp_path / "other" / ".." / "in", "by a link": tmp_path / "link" / "vectors",
    }[way]  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    assert "is the input, holds it or lies in it" in job.ends_early(source=source, out=out)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.bad_input("job")
@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        (("--concurrency", "0"), "--concurrency: '0': give a whole number of 1 or more"),
        (("--concurrency", "two"), "--concurrency: 'two': give a whole number"),
        (("--concurrency", "4", "2"), "--concurrency: give one number, or the least and the most"),
        (("--concurrency", "1", "2", "3"), "--concurrency: give one number"),
        (("--batch-size", "-5"), "--batch-size: '-5': give a whole number"),
        (("--batch-size", "1.5"), "--batch-size: '1.5': give a whole number"),
        (("--num-cpus", "0"), "--num-cpus: '0': give a whole number"),
        (("--num-gpus", "-1"), "--num-gpus: '-1': give 0 or more"),
        (("--num-gpus", "nan"), "--num-gpus: 'nan': give 0 or more"),
        (("--price", "cheap"), "--price: 'cheap': give 0 or more"),
        (("--runtime-env", "none.json"), "'none.json' cannot be read as JSON"),
        (("--column", "boby"), "no column 'boby'; choose from id, text"),
        (("--id", "nmae"), "no column 'nmae'; choose from id, text"),
    ],
)
def test_a_wrong_setting_is_refused_before_ray_has_started(job, setting, complaint):
    job.put("a.parquet", range(4), texts(4))
    assert complaint in job.ends_early(*setting)
    assert not job.started and not Path(job.out, "job.json").exists()


# Files for clusters


@pytest.mark.parametrize("name", ["cluster.yaml", "rayjob.yaml"])
def test_files_for_clusters_say_what_the_job_understands(job, name):
    """Nothing here can start a cluster of several machines; their form at least is looked at."""
    text = SCRIPT.with_name(name).read_text(encoding="utf-8")
    found = yaml.safe_load(text)
    readme = SCRIPT.with_name("README.md").read_text(encoding="utf-8")
    if name == "rayjob.yaml":
        assert (found["apiVersion"], found["kind"]) == ("ray.io/v1", "RayJob")
        groups = found["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        assert all(each["template"]["spec"]["containers"] for each in groups)
        command = found["spec"]["entrypoint"]
    else:
        assert found["head_node_type"] in found["available_node_types"]
        command = re.search(r"ray exec examples/cluster.yaml '(.*)'", readme).group(1)
    assert command.split()[:2] == ["python", command.split()[1]]
    assert command.split()[1].endswith("embed_on_ray.py")
    # The job reads all of it, and stops at the pair of folders, which are one here.
    more = [each for each in command.split()[2:] if not each.startswith("s3://")]
    assert "is the input" in job.ends_early(*more, source=job.source, out=job.source)


@pytest.mark.slow
@pytest.mark.fault("job")
def test_two_workers_of_a_node_download_a_model_once_and_the_token_opens_it(tiny, tmp_path):
    """Both begin at the same time, with an empty cache; the second waits for the first."""
    code = (
        "import sys; from embed_worker import make_encoder, Secret\n"
        "_, made_of = make_encoder('TextEncoder', {'model': 'me/private'}, Secret(sys.argv[1]))\n"
        "print(made_of['revision'])"
    )
    with Hub({"me/private": {"main": Path(tiny("bert"))}}, tokens={"me/private": "hf_ours"}) as hub:
        drop = ("HF_", "PYTHON")
        env = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
        env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "NO_PROXY": "*"}
        env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "DISABLE_SAFETENSORS_CONVERSION": "1"}
        env["PYTHONPATH"] = os.pathsep.join(map(str, (SCRIPT.parent, SCRIPT.parents[1])))
        command = [sys.executable, "-c", code, "hf_ours"]
        both = [
            subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            for _ in range(2)
        ]
        said = [each.communicate(timeout=200)[0].decode() for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    asked = [each for each in hub.requests if each.startswith("GET") and "model.safet" in each]
    assert len(asked) == 1, asked
    assert len({each.splitlines()[-1] for each in said}) == 1  # one commit
