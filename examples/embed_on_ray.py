"""Embed a Parquet file, or a folder of them, on a Ray cluster.

    python examples/embed_on_ray.py reviews.parquet vectors --id number --pooling mean
    python examples/embed_on_ray.py s3://bucket/texts s3://bucket/vectors --address auto --gpus 1

Without ``--address`` the cluster is this machine, and nothing leaves it. The output is a folder of
Parquet files with two columns: the id, and a vector of a fixed size. Run the same command again
after whatever has ended it: rows whose ids stand in the output are left out.
"""

import argparse
import hashlib
import json
import os
import posixpath
import re
import sys
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Ray reads both when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no report to the makers of Ray
if not any(each.startswith("--address") for each in sys.argv):
    # Without a cluster to join, it listens to this machine alone, as it always does on Windows.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy, Datasink
from ray.data.block import BlockAccessor

import embedkit as ek

ENCODERS = {"text": "TextEncoder", "image": "ImageEncoder"}
DRAFTS = "_unfinished"  # readers of a folder of Parquet pass over names that begin so
# What this job calls its files: by a run and a task, and drafts by a run and a number.
PART, DRAFT = re.compile(r"[0-9a-f]{8}-\d{6}\.parquet"), re.compile(r"[0-9a-f]{8}/[0-9a-f]{32}")
# The files of a model's folder that its vectors depend on.
FILES = (".safetensors", ".json", ".txt", ".model")
STORED = {"float32": pa.float32(), "float16": pa.float16()}


class Folder:
    """Parquet files in a folder, on a disk or at an address such as ``s3://…``."""

    def __init__(self, name: str) -> None:
        # Links and `..` are followed, so that two names of one folder are seen to be one.
        uri = name if "://" in name else Path(name).resolve().as_uri()
        self.name, (self.files, self.path) = name, pafs.FileSystem.from_uri(uri)
        self.path = posixpath.normpath(self.path)

    def overlaps(self, other: "Folder") -> bool:
        """Say whether one of two folders is the other, or lies in it."""
        pair = f"{self.path}/", f"{other.path}/"
        return self.files.type_name == other.files.type_name and (
            pair[0].startswith(pair[1]) or pair[1].startswith(pair[0])
        )

    def contents(self, path: str = "") -> list[str]:
        """List the files of a folder, and of those in it if it has a name."""
        where = pafs.FileSelector(
            posixpath.join(self.path, path), recursive=bool(path), allow_not_found=True
        )
        files = self.files.get_file_info(where)
        return sorted(info.path for info in files if info.type == pafs.FileType.File)

    def parts(self) -> dict[str, dict[str, Any]]:
        """List the files that are whole, each with what it was made by; stop at a stranger's."""
        whole = {}
        for path in self.contents():
            if not path.endswith(".parquet"):
                continue
            try:
                found = pq.read_schema(path, filesystem=self.files).metadata or {}
            except pa.ArrowInvalid:
                if not PART.fullmatch(posixpath.basename(path)):
                    self._stop_at(path)
                continue
            if b"embedkit" not in found:
                self._stop_at(path)
            whole[path] = json.loads(found[b"embedkit"])
        for path in self.contents(DRAFTS):
            if not DRAFT.fullmatch(path.removeprefix(f"{self.path}/{DRAFTS}/")):
                self._stop_at(path)
        return whole

    def clean(self) -> None:
        """Throw drafts away, and put aside parts that are not whole; call `parts` before."""
        if self.files.get_file_info(f"{self.path}/{DRAFTS}").type == pafs.FileType.Directory:
            self.files.delete_dir(f"{self.path}/{DRAFTS}")
        for path in {*self.contents()} - {*self.parts()}:
            if path.endswith(".parquet"):
                self.files.move(path, f"{path}.unreadable")
                print(f"{path} is not whole: put aside as {Path(path).name}.unreadable")

    def _stop_at(self, path: str) -> None:
        sys.exit(f"{path} was not written by this job: name another folder, or move the file away")

    def ids(self, paths: str | list[str], column: str) -> pa.Array:
        """Read the ids, and stop if they cannot tell rows apart."""
        try:
            data = pads.dataset(paths, filesystem=self.files, format="parquet")
            ids = data.to_table(columns=[column])[column].combine_chunks()
        except (OSError, pa.ArrowInvalid) as error:
            sys.exit(f"{self.name}: no column {column!r} can be read from it ({error})")
        if ids.null_count:
            sys.exit(f"{self.name}: {ids.null_count:,} rows have no {column!r}; each needs one")
        if twice := len(ids) - len(ids.unique()):
            sys.exit(
                f"{self.name}: {twice:,} rows have the {column!r} of another; each needs its own"
            )
        return ids


class PartFiles(Datasink):
    """One Parquet file per block, there under its name only once it is whole.

    A file is written as a draft, then renamed. Each run begins by throwing away the drafts of all
    runs before it, so that a worker left over from one of them can add nothing any more.
    """

    def __init__(self, folder: Folder, column: str, stored: str, made_by: dict[str, Any]) -> None:
        self.folder, self.column, self.stored = folder, column, STORED[stored]
        self.made_by = {"embedkit": json.dumps(made_by)}
        self.run = uuid.uuid4().hex[:8]
        self.drafts = f"{folder.path}/{DRAFTS}/{self.run}"

    def on_write_start(self, schema: Any = None) -> None:
        """Make room for the drafts, on the driver."""
        self.folder.files.create_dir(self.drafts)

    def write(self, blocks: Iterable[Any], ctx: Any) -> None:
        """Write blocks, on a worker; tried again, they overwrite what they wrote before."""
        tables = [BlockAccessor.for_block(block).to_arrow() for block in blocks]
        tables = [table for table in tables if len(table)]
        if not tables:
            return
        table = pa.concat_tables(tables)
        column = table["embedding"].combine_chunks()
        values = pc.cast(column.flatten(), self.stored)
        vectors = pa.FixedSizeListArray.from_arrays(values, column.type.list_size)
        table = pa.table({self.column: table[self.column], "embedding": vectors})
        draft = f"{self.drafts}/{uuid.uuid4().hex}"
        with self.folder.files.open_output_stream(draft) as file:
            pq.write_table(table.replace_schema_metadata(self.made_by), file)
        self.folder.files.move(draft, f"{self.folder.path}/{self.run}-{ctx.task_idx:06d}.parquet")

    def on_write_complete(self, write_result: Any) -> None:
        """Leave nothing but the parts."""
        self.folder.files.delete_dir(f"{self.folder.path}/{DRAFTS}")


def not_among(batch: pa.Table, column: str, done: ray.ObjectRef) -> pa.Table:
    """Leave out the rows that are done."""
    return batch.filter(pc.invert(pc.is_in(batch[column], value_set=ray.get(done))))


def origin_of(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Make an encoder as a worker will; give its commit of the Hub, or a digest of its folder."""
    commit = getattr(ek, kind)(**settings).commit
    digest, folder = hashlib.sha256(), Path(settings["model"])
    paths = [path for path in folder.rglob("*") if path.suffix in FILES] if folder.is_dir() else []
    for path in sorted(paths):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + content)
    return {"revision": commit, "files": digest.hexdigest() if paths else None}


def same(parts: dict[str, dict[str, Any]], now: dict[str, Any]) -> None:
    """Stop if vectors of two kinds would stand in one folder."""
    for path, before in parts.items():
        for name, value in now.items():
            if before.get(name) != value:
                sys.exit(
                    f"{path} holds vectors made with {name} {before.get(name)!r}, and now it is "
                    f"{value!r}: name another folder, or give the settings of before"
                )


def embed(args: argparse.Namespace) -> None:
    """Embed the rows that are not embedded yet."""
    source, out = Folder(args.input), Folder(args.output)
    if source.overlaps(out):
        sys.exit(
            f"{args.output} is the input, holds it or lies in it; name another folder for the "
            "vectors"
        )
    ids = source.ids(source.path, args.id)
    columns = pads.dataset(source.path, filesystem=source.files, format="parquet").schema.names
    if args.column not in columns:
        sys.exit(f"{args.input}: no column {args.column!r}; choose from {', '.join(columns)}")
    kind = ENCODERS[args.encoder]
    settings = {"model": args.model, "layers": args.layers, "dtype": args.dtype}
    settings["pooling"] = args.pooling or {"text": "cls", "image": "mean"}[args.encoder]
    made_by = {"encoder": kind, "column": args.column, **settings, "stored": args.store}
    parts = out.parts()
    same(parts, made_by)
    # From here on no run before this one can finish a file.
    out.clean()
    parts = out.parts()
    same(parts, made_by)
    done = out.ids([*parts], args.id).cast(ids.type) if parts else ids[:0]
    left = pc.sum(pc.invert(pc.is_in(ids, value_set=done))).as_py() or 0
    print(f"{args.input}: {len(ids):,} rows, {len(ids) - left:,} of them done before", flush=True)

    if left:
        before = next(iter(parts.values()), {})
        settings["revision"] = args.revision or before.get("revision")
        origin = start(args, kind, settings)
        same(parts, origin)
        settings["revision"] = origin["revision"]
        sink = PartFiles(out, args.id, args.store, made_by | origin)
        run(args, source, done, kind, settings, sink)
    parts = out.parts()
    written = out.ids([*parts], args.id)
    missing = len(ids) - pc.sum(pc.is_in(ids, value_set=written.cast(ids.type))).as_py()
    if missing:
        sys.exit(f"{args.output}: {missing:,} rows of {args.input} are missing")
    print(f"{args.output}: {len(written):,} vectors in {len(parts):,} files, each id once")


def start(args: argparse.Namespace, kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Join a cluster or start one, and try the settings on one of its workers."""
    if args.address:
        ray.init(address=args.address)
    else:
        start_here(args)
    trial = ray.remote(num_cpus=args.cpus, num_gpus=args.gpus, max_retries=0)(origin_of)
    try:
        return ray.get(trial.remote(kind, settings))
    except ray.exceptions.RayTaskError as error:
        sys.exit(f"{type(error.cause).__name__}: {error.cause}")


def start_here(args: argparse.Namespace) -> None:
    """Start a cluster on this machine; where that is busy, Ray may give up on itself too soon."""
    for last in (False, False, True):
        try:
            # One CPU more than the workers take: for reading and writing.
            ray.init(
                num_cpus=args.workers * args.cpus + 1,
                num_gpus=int(args.workers * args.gpus),
                include_dashboard=False,
            )
            return
        except Exception as error:  # Ray raises no kind of its own
            ray.shutdown()
            if last or "timed out" not in str(error):
                raise
            print(f"{error} Trying again.", flush=True)


def run(
    args: argparse.Namespace,
    source: Folder,
    done: pa.Array,
    kind: str,
    settings: dict[str, Any],
    sink: PartFiles,
) -> None:
    """Read, embed and write, block by block."""
    data = ray.data.read_parquet(
        source.path, filesystem=source.files, columns=list({args.id, args.column})
    )
    if len(done):
        kwargs = {"column": args.id, "done": ray.put(done)}
        # A whole block at a time, because each call looks all ids up anew.
        data = data.map_batches(
            not_among, fn_kwargs=kwargs, batch_format="pyarrow", batch_size=None
        )
    if args.column != args.encoder:
        data = data.rename_columns({args.column: args.encoder})
    data = data.repartition(target_num_rows_per_block=args.batch_size)
    data = data.map_batches(
        getattr(ek, kind),
        fn_constructor_kwargs=settings,
        batch_format="pyarrow",
        batch_size=args.batch_size,
        compute=ActorPoolStrategy(size=args.workers),
        num_cpus=args.cpus,  # Ray gives the worker as many threads, through OMP_NUM_THREADS
        num_gpus=args.gpus,
    )
    try:
        data.write_datasink(sink)
    except ray.exceptions.RayTaskError as error:
        # Ray keeps of the first cause no more than its place in the trace.
        causes = re.findall(r"^[\w.]*Error: .+", str(error), re.MULTILINE)
        sys.exit(f"a worker stopped: {causes[0] if causes else error}")


def at_least_1(given: str) -> int:
    """Read a whole number of the command line."""
    if not given.isascii() or not given.isdecimal() or int(given) < 1:
        raise argparse.ArgumentTypeError(f"{given!r}: give a whole number of 1 or more")
    return int(given)


def main() -> None:
    """Read the command line and embed."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("input", help="a Parquet file or a folder of them; on a cluster, where all nodes see it")
    add("output", help="the folder to write to")
    add("--model", default="bundled/all-MiniLM-L6-v2", help="a bundled name, folder or Hub id")
    add("--encoder", choices=ENCODERS, default="text")
    add("--pooling", help="by default cls for texts, mean for images")
    add("--layers", type=int, nargs="+", default=-1, help="hidden states; several are averaged")
    add("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="arithmetic")
    add("--revision", help="a branch, tag or commit of the Hub")
    add("--store", choices=STORED, default="float32", help="as what the numbers are written")
    add("--column", help="the column to embed; by default 'text' or 'image'")
    add("--id", default="id", help="the column that tells rows apart")
    add(
        "--batch-size",
        type=at_least_1,
        default=10_000,
        help="rows a worker takes, and rows of a file",
    )
    add("--workers", type=at_least_1, default=2, help="each loads the model once")
    add("--cpus", type=at_least_1, default=1, help="of each worker: its threads")
    add("--gpus", type=float, default=0, help="of each worker; 0.5 lets two share one")
    add("--address", help="of a running cluster: 'auto' on one of its machines")
    args = parser.parse_args()
    if not 0 <= args.gpus < float("inf"):
        parser.error(f"argument --gpus: {args.gpus}: give 0 or more")
    args.column = args.column or args.encoder
    embed(args)


if __name__ == "__main__":
    main()
