"""Embed a Parquet file, or a folder of them, on a Ray cluster.

    python examples/embed_on_ray.py reviews.parquet vectors --id number --pooling mean
    python examples/embed_on_ray.py s3://bucket/texts s3://bucket/vectors --address auto --gpus 1

Without ``--address`` the cluster is this machine, and nothing leaves it. The output is a folder of
Parquet files with two columns: the id, and a vector of a fixed size. Run the same command again
after whatever has ended it: rows whose ids stand in the output are left out.
"""

import argparse
import json
import os
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
DRAFTS = "_unfinished"  # who reads a folder of Parquet passes over names that begin so
STORED = {"float32": pa.float32(), "float16": pa.float16()}


class Folder:
    """Parquet files in a folder, on a disk or at an address such as ``s3://…``."""

    def __init__(self, name: str) -> None:
        uri = name if "://" in name else Path(name).absolute().as_uri()
        self.name, (self.files, self.path) = name, pafs.FileSystem.from_uri(uri)

    def parts(self) -> list[str]:
        """List the files that are whole, and put aside those that are not."""
        found = self.files.get_file_info(pafs.FileSelector(self.path, allow_not_found=True))
        whole = []
        for path in sorted(info.path for info in found if info.path.endswith(".parquet")):
            try:
                pq.read_schema(path, filesystem=self.files)
                whole.append(path)
            except pa.ArrowInvalid:
                self.files.move(path, f"{path}.unreadable")
                print(f"{path} is not whole: put aside as {Path(path).name}.unreadable")
        return whole

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


def revision_of(kind: str, settings: dict[str, Any]) -> str | None:
    """Make an encoder as a worker will, and say which commit of the Hub it is from."""
    return getattr(getattr(ek, kind)(**settings).model.config, "_commit_hash", None)


def same(before: dict[str, Any], now: dict[str, Any], where: str) -> None:
    """Stop if vectors of two kinds would stand in one folder."""
    for name, value in now.items():
        if before.get(name) != value:
            sys.exit(
                f"{where} holds vectors made with {name} {before.get(name)!r}, and now it is "
                f"{value!r}: name another folder, or give the settings of before"
            )


def embed(args: argparse.Namespace) -> None:
    """Embed the rows that are not embedded yet."""
    source, out = Folder(args.input), Folder(args.output)
    if source.path == out.path:
        sys.exit(f"{args.output} is the input; name another folder for the vectors")
    ids = source.ids(source.path, args.id)
    # From here on no run before this one can finish a file.
    if out.files.get_file_info(f"{out.path}/{DRAFTS}").type == pafs.FileType.Directory:
        out.files.delete_dir(f"{out.path}/{DRAFTS}")
    parts = out.parts()
    done = out.ids(parts, args.id).cast(ids.type) if parts else ids[:0]
    left = pc.sum(pc.invert(pc.is_in(ids, value_set=done))).as_py() or 0
    print(f"{args.input}: {len(ids):,} rows, {len(ids) - left:,} of them done before", flush=True)

    kind = ENCODERS[args.encoder]
    settings = {"model": args.model, "layers": args.layers, "dtype": args.dtype}
    settings["pooling"] = args.pooling or {"text": "cls", "image": "mean"}[args.encoder]
    made_by = {"encoder": kind, "column": args.column, **settings, "stored": args.store}
    found = pq.read_schema(parts[0], filesystem=out.files).metadata if parts else None
    before = json.loads((found or {}).get(b"embedkit", "{}"))
    if parts:
        same(before, made_by, args.output)
    if left:
        settings["revision"] = args.revision or before.get("revision")
        settings["revision"] = start(args, kind, settings)
        if before:
            same(before, {"revision": settings["revision"]}, args.output)
        run(
            args,
            source,
            done,
            kind,
            settings,
            PartFiles(out, args.id, args.store, made_by | settings),
        )
    parts = out.parts()
    written = out.ids(parts, args.id)
    missing = len(ids) - pc.sum(pc.is_in(ids, value_set=written.cast(ids.type))).as_py()
    if missing:
        sys.exit(f"{args.output}: {missing:,} rows of {args.input} are missing")
    print(f"{args.output}: {len(written):,} vectors in {len(parts):,} files, each id once")


def start(args: argparse.Namespace, kind: str, settings: dict[str, Any]) -> str | None:
    """Join a cluster or start one, and try the settings on one of its workers."""
    if args.address:
        ray.init(address=args.address)
    else:
        start_here(args)
    trial = ray.remote(num_cpus=args.cpus, num_gpus=args.gpus, max_retries=0)(revision_of)
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
    add("--batch-size", type=int, default=10_000, help="rows a worker takes, and rows of a file")
    add("--workers", type=int, default=2, help="each loads the model once")
    add("--cpus", type=int, default=1, help="of each worker: its threads")
    add("--gpus", type=float, default=0, help="of each worker; 0.5 lets two share one")
    add("--address", help="of a running cluster: 'auto' on one of its machines")
    args = parser.parse_args()
    args.column = args.column or args.encoder
    embed(args)


if __name__ == "__main__":
    main()
