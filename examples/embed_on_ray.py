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
import signal
import sys
import time
import uuid
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Ray reads these when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no report to the makers of Ray
if not any(each.startswith("--address") for each in sys.argv):
    # Without a cluster to join, it listens to this machine alone, as it always does on Windows.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

import ray

import embed_files
import embed_plan
import embed_worker
from embed_files import Lock, Manifest, Place, Record, open_output
from embed_plan import Plan, Progress
from embed_worker import STORED, Secret, Task, Worker

ENCODERS = {"text": "TextEncoder", "image": "ImageEncoder"}
PATIENCE = 60  # seconds from one remark that no worker is ready to the next
DEATHS = 3  # of each worker in a row, on average, and nothing done meanwhile: then the job ends
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
            names = args.column, args.id, args.store
            task = Task(source, out, kind, settings, *names, wanted, token)
            begin(args)
            follow(run_on_ray(args, plan, task, made_by), plan, manifest, lock, progress)
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


def agree(task: Task, made_by: Record, made_of: Record) -> None:
    """Write down what the first worker's encoder is made of; stop if another's differs."""
    if not made_by:
        made_by |= task.wanted | made_of
        task.settings["revision"] = made_of["revision"]  # for those who come later
        task.out.write("job.json", json.dumps({"embedkit": made_by}, indent=1).encode())
    same(task.out, made_by, made_of)


def run_on_ray(
    args: argparse.Namespace, plan: Plan, task: Task, made_by: Record
) -> Iterator[Record]:
    """Hand ranges out to workers, and give their records as they come.

    A worker gets its first range when it has loaded the model. In the place of one that dies
    another is started, and what it had in hand is given to the next that is free. A worker ends
    when no variable holds it any more.
    """
    # Ray gives a worker as many threads as CPUs, through OMP_NUM_THREADS.
    options = {"num_cpus": args.num_cpus, "num_gpus": args.num_gpus}
    start = ray.remote(**options, scheduling_strategy="SPREAD")(Worker).remote
    waiting, most = deque(plan.items), min(args.concurrency[-1], len(plan.items))
    at_work: dict[Any, tuple[Any, Record | None]] = {}  # result -> worker, range (none: it loads)

    def hire() -> None:
        worker = start(task)
        at_work[worker.load.remote()] = worker, None

    for _ in range(min(args.concurrency[0], most)):
        hire()
    begun, deaths = False, 0
    while waiting or any(item is not None for _, item in at_work.values()):
        results, _ = ray.wait([*at_work], timeout=None if begun else PATIENCE)
        if not results:
            free = ray.available_resources()
            print(
                f"no worker is ready yet; each takes {args.num_cpus} CPUs and {args.num_gpus:g} "
                f"GPUs, and {free.get('CPU', 0):g} and {free.get('GPU', 0):g} are free now",
                flush=True,
            )
        for result in results:
            worker, item = at_work.pop(result)
            try:
                found = ray.get(result)
            except ray.exceptions.RayTaskError as error:
                sys.exit(f"a worker stopped: {type(error.cause).__name__}: {error.cause}")
            except ray.exceptions.RayError as error:
                deaths += 1
                if deaths >= DEATHS * (most if begun else 1):
                    reason = str(error).strip().splitlines()[0]
                    sys.exit(f"{deaths} workers died, one after the other; the last: {reason}")
                waiting.extend([] if item is None else [item])  # last, in case it is at fault
                hire()
                continue
            if item is None:
                begun = True
                agree(task, made_by, found)
                if waiting and len(at_work) + 1 < most:
                    hire()
            if waiting:
                following = waiting.popleft()
                at_work[worker.do.remote(following)] = worker, following
            if item is not None:
                deaths = 0
                yield found


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
