"""Embed a Parquet file, or a folder of them, on a Ray cluster.

    python examples/embed_on_ray.py reviews.parquet out --id number
    python examples/embed_on_ray.py s3://bucket/texts s3://bucket/out --address auto --num-gpus 1

Without ``--address`` the cluster is this machine, and nothing leaves it. ``out/vectors`` then holds
Parquet files with an id and a vector of a fixed size, ``out/rejected`` the ids of rows that cannot
be embedded, with reasons. Run the same command again after whatever has ended it, or after a change
of the input: what is done, and has the same content, is left as it is.
"""

import argparse
import contextlib
import json
import math
import os
import re
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

# Ray reads these when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no report to the makers of Ray
if not any(each.startswith("--address") for each in sys.argv):
    # Without a cluster to join, it listens to this machine alone, as it always does on Windows.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

import ray
from ray.data import ActorPoolStrategy

import embed_files
import embed_plan
import embed_worker
from embed_files import Lock, Manifest, Place, Record, open_output
from embed_plan import Plan, Progress
from embed_worker import STORED, Secret, Task, Worker, look

ENCODERS = {"text": "TextEncoder", "image": "ImageEncoder"}
BLOCKS = 5_000  # Ray hands out at most about so many; of more ranges, several at a time
# Nodes of a cluster need embedkit, but not these files.
for module in (embed_files, embed_plan, embed_worker):
    ray.cloudpickle.register_pickle_by_value(module)


def embed(args: argparse.Namespace) -> Record:
    """Embed what is not embedded yet, and give a summary."""
    source, out = Place(args.input), Place(args.output)
    if source.overlaps(out):
        sys.exit(
            f"{out.name} is the input, holds it or lies in it; name another folder for the vectors"
        )
    kind = ENCODERS[args.encoder]
    settings = {name: getattr(args, name) for name in ("model", "pooling", "layers", "dtype")}
    wanted = {"encoder": kind, **settings, "column": args.column, "id": args.id}
    wanted["stored"] = args.store
    _, made_by = open_output(out)
    same(out, made_by, wanted)
    run = uuid.uuid4().hex[:8]
    for name in ("vectors", "rejected", "manifest") if out.on_disk else ():
        out.files.create_dir(out.at(name))
    lock = Lock(out, run)
    lock.take(args.take_over)
    try:
        found, made_by = open_output(out)
        same(out, made_by, wanted)
        manifest = Manifest(out, run, found)
        if lost := manifest.keep_what_is_there(found):
            print(f"{lost:,} parts are gone or not whole, and will be made again", flush=True)
        plan = Plan(source, manifest, args)
        forget(plan, out, args.forget)
        done = plan.total - plan.to_do
        print(f"{source.name}: {plan.total:,} rows, {done:,} of them done before", flush=True)
        progress = Progress(plan, args.price)
        for file in [file for file, starts in plan.left.items() if not starts]:
            plan.finish(file)
        if plan.items:
            plan.compare_ids(args.id)
            settings["revision"] = args.revision or made_by.get("revision")
            token = Secret(os.environ["HF_TOKEN"]) if os.environ.get("HF_TOKEN") else None
            begin(args)
            if not made_by:
                made_by = wanted | try_settings(args, kind, settings, token)
                out.write("job.json", json.dumps({"embedkit": made_by}, indent=1).encode())
            settings["revision"] = args.revision or made_by["revision"]
            names = args.column, args.id, args.store
            task = Task(source, out, kind, settings, *names, made_by, token)
            follow(run_on_ray(args, plan, task), plan, manifest, lock, progress)
        return end(plan, out, manifest, progress, made_by)
    finally:
        lock.release()


def same(out: Place, before: Record, now: Record) -> None:
    """Stop if vectors of two kinds would stand in one folder."""
    for name, value in now.items():
        if before and before.get(name) != value:
            sys.exit(
                f"{out.name} holds vectors made with {name} {before.get(name)!r}, and now it is "
                f"{value!r}: name another folder, or give the settings of before"
            )


def forget(plan: Plan, out: Place, agreed: bool) -> None:
    """Stop if input files are gone, or let their vectors go."""
    if plan.gone and not agreed:
        sys.exit(
            f"{len(plan.gone):,} files that were embedded are no longer in {plan.source.name}, "
            f"such as {plan.gone[0]}; their vectors stand in {out.name}. Add --forget to remove "
            "these, or name another folder."
        )
    for file in plan.gone:
        plan.manifest.add({"file": file, "forget": file})


def follow(
    records: Iterator[Record], plan: Plan, manifest: Manifest, lock: Lock, progress: Progress
) -> None:
    """Note what workers have done, as they do it."""
    committed = begun = time.monotonic()
    try:
        for record in records:
            if lock.lost:
                sys.exit("another run has taken this output over, and this one ends")
            file, start = record["file"], record["start"]
            progress.add(record, plan.size_of(file, start))
            manifest.add(record)
            plan.left[file].discard(start)
            if not plan.left[file]:
                plan.finish(file)
            # At first every second; in the end at most a hundredth of the work can be lost.
            if time.monotonic() - committed > max(1, (time.monotonic() - begun) / 100):
                manifest.commit()
                committed = time.monotonic()
    finally:
        if not lock.lost:
            manifest.commit()
    print(progress.line(), flush=True)


def end(plan: Plan, out: Place, manifest: Manifest, progress: Progress, made_by: Record) -> Record:
    """Write the manifest, remove what it does not name, and see whether all is there."""
    manifest.commit()
    manifest.compact()
    named = manifest.named()
    there = [name for name in out.list() if name.startswith(("vectors/", "rejected/"))]
    out.delete(name for name in there if name not in named)
    vectors, rejected = manifest.sum("rows"), manifest.sum("rejected")
    if missing := plan.total - vectors - rejected:
        sys.exit(f"{out.name}: {missing:,} rows of {plan.source.name} are missing")
    parts = sum(name.startswith("vectors/") for name in named)
    summary = {"input": plan.source.name, "output": out.name, "files": len(plan.at)}
    summary |= {"rows": plan.total, "vectors": vectors, "rejected": rejected, "parts": parts}
    summary |= {"embedded": progress.embedded, **progress.figures(), "made_by": made_by}
    out.write("summary.json", json.dumps(summary, indent=1).encode())
    print(
        f"{out.name}: {vectors:,} vectors in {parts:,} files, {rejected:,} rows rejected",
        flush=True,
    )
    return summary


def begin(args: argparse.Namespace) -> None:
    """Join a cluster or start one; where this machine is busy, Ray may give up too soon."""
    runtime = args.runtime_env
    if args.address:
        ray.init(address=args.address, runtime_env=runtime, log_to_driver=False)
        return
    for last in (False, False, True):
        try:
            ray.init(
                num_cpus=args.concurrency[-1] * args.num_cpus,
                num_gpus=math.ceil(args.concurrency[-1] * args.num_gpus),
                include_dashboard=False,
                runtime_env=runtime,
                log_to_driver=False,
            )
            return
        except Exception as error:  # Ray raises no kind of its own
            ray.shutdown()
            if last or "timed out" not in str(error):
                raise
            print(f"{error} Trying again.", flush=True)


def try_settings(
    args: argparse.Namespace, kind: str, settings: Record, token: Secret | None
) -> Record:
    """Make an encoder on a worker, and see what it is made of."""
    trial = ray.remote(num_cpus=args.num_cpus, num_gpus=args.num_gpus, max_retries=0)(look)
    try:
        return ray.get(trial.remote(kind, settings, token))
    except ray.exceptions.RayTaskError as error:
        sys.exit(f"{type(error.cause).__name__}: {error.cause}")


def run_on_ray(args: argparse.Namespace, plan: Plan, task: Task) -> Iterator[Record]:
    """Hand ranges out to workers, and give their records as they come."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    items = [{"item": json.dumps(item)} for item in plan.items]
    data = ray.data.from_items(items, override_num_blocks=min(len(items), BLOCKS)).map_batches(
        Worker,
        fn_constructor_args=(task,),
        batch_size=1,
        compute=ActorPoolStrategy(min_size=args.concurrency[0], max_size=args.concurrency[-1]),
        num_cpus=args.num_cpus,  # Ray gives the worker as many threads, through OMP_NUM_THREADS
        num_gpus=args.num_gpus,
    )
    try:
        for batch in data.iter_batches(batch_size=None, prefetch_batches=0):
            yield from map(json.loads, batch["record"])
    except ray.exceptions.RayError as error:
        # Ray keeps of the first cause no more than its place in the trace.
        causes = re.findall(r"^[\w.]*Error: .+", str(error), re.MULTILINE)
        causes = [cause for cause in causes if not cause.startswith("ray.")]
        sys.exit(f"a worker stopped: {causes[0] if causes else error}")


def at_least_1(given: str) -> int:
    """Read a whole number of the command line."""
    if not given.isascii() or not given.isdecimal() or int(given) < 1:
        raise argparse.ArgumentTypeError(f"{given!r}: give a whole number of 1 or more")
    return int(given)


def at_least_0(given: str) -> float:
    """Read a number of the command line."""
    with contextlib.suppress(ValueError):
        if 0 <= float(given) < float("inf"):
            return float(given)
    raise argparse.ArgumentTypeError(f"{given!r}: give 0 or more")


def json_file(given: str) -> Record:
    """Read a file of settings for Ray."""
    try:
        found = json.loads(Path(given).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{given!r} cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{given!r} holds no JSON object")
    return found


def main() -> None:
    """Read the command line and embed."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("input", help="a Parquet file or a folder of them: a path that all nodes see, or a URL")
    add("output", help="the folder to write to: a path that all nodes see, or a URL")
    add("--model", default="bundled/all-MiniLM-L6-v2", help="a bundled name, folder or Hub id")
    add("--encoder", choices=ENCODERS, default="text")
    add("--pooling", default="auto", help="by default what the model's authors say")
    add("--layers", type=int, nargs="+", default=-1, help="hidden states; several are averaged")
    add("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="arithmetic")
    add("--revision", help="a branch, tag or commit of the Hub")
    add("--store", choices=STORED, default="float32", help="as what the numbers are written")
    add("--column", help="the column to embed; by default 'text' or 'image'")
    add("--id", default="id", help="the column that tells rows apart")
    add("--batch-size", type=at_least_1, default=10_000, help="rows of a range, and of a part")
    add(
        "--concurrency",
        type=at_least_1,
        nargs="+",
        default=[2],
        metavar="N",
        help="how many workers, or at least and at most; each loads the model once",
    )
    add("--num-cpus", type=at_least_1, default=1, help="of each worker: its threads")
    add("--num-gpus", type=at_least_0, default=0, help="of each worker; 0.5 lets two share one")
    add("--address", help="of a running cluster: 'auto' on one of its machines")
    add("--runtime-env", type=json_file, help="a JSON file: what Ray sets up on each node")
    add("--price", type=at_least_0, help="dollars that all machines cost an hour, for an estimate")
    add("--take-over", action="store_true", help="go on in the place of a run that is dead")
    add("--forget", action="store_true", help="remove vectors of input files that are gone")
    args = parser.parse_args()
    if len(args.concurrency) > 2 or args.concurrency[0] > args.concurrency[-1]:
        parser.error("argument --concurrency: give one number, or the least and the most")
    args.column = args.column or args.encoder
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    print(json.dumps(embed(args)))


if __name__ == "__main__":
    main()
