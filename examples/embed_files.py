"""What `embed_on_ray.py` keeps: files at any address, a manifest of what is done, and a lock.

An output is a folder, on a disk or in an object store::

    job.json    what makes the vectors: model, pooling and other settings; never two kinds
    vectors/    parts: Parquet files with an id, its vector and a hash of the content
    rejected/   Parquet files with an id and a reason, for rows that have no vector
    manifest/   which parts count, and which input files are finished
    lock.json   who writes here now

No rename is taken to be atomic, and no list to be complete: a part counts once the manifest names
it, with its size. Names of parts follow from what they hold, so that a worker that is left over
from an earlier run writes the same once more, and nothing else.
"""

import hashlib
import json
import os
import posixpath
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pyarrow as pa
import pyarrow.fs as pafs

PART = r"[0-9a-f]{16}-[0-9a-f]{8}-\d{12}\.parquet"
SEGMENT = r"\d{8}-[0-9a-f]{8}\.jsonl"
OURS = re.compile(rf"(job|lock|summary)\.json|(vectors|rejected)/{PART}|manifest/{SEGMENT}")
BEAT = 10  # seconds between two signs of life
STALE = 120  # seconds without one after which a lock may be taken
Record = dict[str, Any]


class Place:
    """A file or a folder: on a disk, or at an address such as ``s3://…``.

    Parameters
    ----------
    name : str
        A path, or any address that Arrow or fsspec knows.
    """

    def __init__(self, name: str) -> None:
        # Links and `..` are followed, so that two names of one folder are seen to be one.
        uri = name if "://" in name else Path(name).resolve().as_uri()
        self.name = without_secrets(name)
        try:
            self.files, path = pafs.FileSystem.from_uri(uri)
        except (pa.ArrowInvalid, ValueError) as error:
            try:
                import fsspec

                remote, path = fsspec.core.url_to_fs(uri)
            except (ImportError, ValueError):
                sys.exit(f"{self.name}: no such address can be opened ({error})")
            self.files = pafs.PyFileSystem(pafs.FSSpecHandler(remote))
        self.path = posixpath.normpath(path)
        self.on_disk = isinstance(self.files, pafs.LocalFileSystem)

    def overlaps(self, other: "Place") -> bool:
        """Say whether one of two places is the other, or lies in it."""
        pair = f"{self.path}/", f"{other.path}/"
        return self.files.type_name == other.files.type_name and (
            pair[0].startswith(pair[1]) or pair[1].startswith(pair[0])
        )

    def at(self, name: str) -> str:
        """Give the path of a file in the folder, for Arrow."""
        return posixpath.join(self.path, name) if name else self.path

    def list(self) -> dict[str, pafs.FileInfo]:
        """List all files in the folder and below, by their names from here on; a file is "."."""
        selector = pafs.FileSelector(self.path, recursive=True, allow_not_found=True)
        itself = self.files.get_file_info(self.path)
        alone = itself.type == pafs.FileType.File
        found = [itself] if alone else self.files.get_file_info(selector)
        return {
            posixpath.relpath(info.path, self.path): info
            for info in sorted(found, key=lambda info: info.path)
            if info.type == pafs.FileType.File
        }

    def read(self, name: str) -> bytes | None:
        """Give what a file holds; None if there is no such file."""
        try:
            with self.files.open_input_stream(self.at(name)) as file:
                return file.read()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes | pa.Buffer) -> None:
        """Write a whole file. On a disk, readers never see a half of it."""
        path = self.at(name)
        draft = posixpath.join(posixpath.dirname(path), f".{uuid.uuid4().hex}.draft")
        with self.files.open_output_stream(draft if self.on_disk else path) as file:
            file.write(content)
        if self.on_disk:
            self.files.move(draft, path)

    def delete(self, names: Iterable[str]) -> None:
        """Delete files, whether they are there or not."""
        for name in names:
            try:
                self.files.delete_file(self.at(name))
            except FileNotFoundError:
                continue


def without_secrets(name: str) -> str:
    """Leave out of an address what may hold a key."""
    if "://" not in name:
        return name
    parts = urlsplit(name)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def part_name(file: str, stamp: str, step: int, start: int) -> str:
    """Name the part of a range of an input file."""
    whose = hashlib.blake2b(file.encode(), digest_size=8).hexdigest()
    when = hashlib.blake2b(f"{stamp} {step}".encode(), digest_size=4).hexdigest()
    return f"{whose}-{when}-{start:012}.parquet"


def open_output(out: Place) -> tuple[dict[str, pafs.FileInfo], Record]:
    """List an output and read what makes its vectors; stop at a file that is not the job's."""
    found = {name: info for name, info in out.list().items() if posixpath.basename(name)[0] != "."}
    content = out.read("job.json")
    try:
        made_by = json.loads(content)["embedkit"] if content else {}
    except (ValueError, KeyError, TypeError):
        stop_at(out, "job.json")
    for name in found:
        if not OURS.fullmatch(name) or (not made_by and name.startswith(("vectors/", "rejected/"))):
            stop_at(out, name)
    return found, made_by


def stop_at(out: Place, name: str) -> None:
    """Stop, because a file may be somebody's."""
    sys.exit(
        f"{out.name}/{name} was not written by this job: name another folder, or move the file away"
    )


class Manifest:
    """Which ranges of which input files are done, and by which parts.

    It is kept as segments: files of JSON lines, each written once and ended by the number of its
    lines, so that a half is seen to be one. A line is the record of a part, or says that a file is
    finished; all that was there of it before, of other content or in other steps, then counts no
    more.
    """

    def __init__(self, out: Place, run: str, found: Iterable[str]) -> None:
        self.out, self.run = out, run
        self.parts: dict[str, dict[str, Record]] = {}
        self.finished: dict[str, Record] = {}
        self._waiting: list[Record] = []
        self._superseded: list[Record] = []
        self._segments = sorted(name for name in found if name.startswith("manifest/"))
        for name in self._segments:
            for line in self._lines(name):
                self._apply(line)

    def _lines(self, name: str) -> Iterator[Record]:
        lines = (self.out.read(name) or b"").splitlines()
        try:
            if json.loads(lines.pop())["lines"] != len(lines):
                raise ValueError
        except (IndexError, KeyError, TypeError, ValueError):
            print(f"{self.out.name}/{name} is not whole, and left out", flush=True)
            return iter(())
        return map(json.loads, lines)

    def _apply(self, line: Record) -> None:
        if "snapshot" in line:
            self.parts, self.finished = {}, {}
        elif "part" in line:
            if not re.fullmatch(PART, line["part"]):  # it is deleted by this name one day
                sys.exit(f"{self.out.name}: the manifest names {line['part']!r}, which is no part")
            self.parts.setdefault(line["file"], {})[line["part"]] = line
        elif "forget" in line:
            self._superseded += self.parts.pop(line["forget"], {}).values()
            self.finished.pop(line["forget"], None)
        else:
            self.finished[line["file"]] = line
            all_parts = self.parts.get(line["file"], {})
            current = {name: part for name, part in all_parts.items() if _same_kind(part, line)}
            self._superseded += [part for name, part in all_parts.items() if name not in current]
            self.parts[line["file"]] = current

    def keep_what_is_there(self, found: dict[str, pafs.FileInfo]) -> int:
        """Forget parts that are gone or have another size; give their number."""
        lost = 0
        for file, parts in self.parts.items():
            for name, part in [*parts.items()]:
                info = found.get(f"vectors/{name}")
                if (info.size if info else 0) != part["bytes"]:
                    del parts[name]
                    self.finished.pop(file, None)
                    lost += 1
        return lost

    def add(self, line: Record) -> None:
        """Note the record of a part, a finished file, or one to forget."""
        self._apply(line)
        self._waiting.append(line)

    def commit(self) -> None:
        """Write what was noted; only then delete parts that count no more."""
        if self._waiting:
            self._write(self._waiting)
            self._waiting = []
        old, self._superseded = self._superseded, []
        for part in old:
            self.out.delete([f"vectors/{part['part']}"] if part["rows"] else [])
            self.out.delete([f"rejected/{part['part']}"] if part["rejected"] else [])

    def compact(self) -> None:
        """Write all in one segment, and delete those before it."""
        before = self._segments
        parts = [part for each in self.parts.values() for part in each.values()]
        self._write([{"snapshot": True}, *parts, *self.finished.values()])
        self.out.delete(before)
        self._segments = self._segments[-1:]

    def _write(self, lines: list[Record]) -> None:
        last = posixpath.basename(self._segments[-1]) if self._segments else "0"
        name = f"manifest/{int(last.partition('-')[0]) + 1:08}-{self.run}.jsonl"
        text = "".join(f"{json.dumps(line)}\n" for line in [*lines, {"lines": len(lines)}])
        self.out.write(name, text.encode())
        self._segments = [*self._segments, name]

    def named(self) -> set[str]:
        """List the files that count."""
        every = [part for parts in self.parts.values() for part in parts.values()]
        return {f"vectors/{part['part']}" for part in every if part["rows"]} | {
            f"rejected/{part['part']}" for part in every if part["rejected"]
        }

    def sum(self, what: str) -> int:
        """Add up a number of all parts."""
        return sum(part[what] for parts in self.parts.values() for part in parts.values())


def _same_kind(part: Record, line: Record) -> bool:
    return (part["stamp"], part["step"]) == (line["stamp"], line["step"])


class Lock:
    """Lets one run at a time write to an output.

    It names its owner and says every few seconds that it is alive. On a disk it is created at
    once or not at all. An object store has no such thing that Arrow offers, so there it is written
    and, after a moment, read again: of two that begin together the last to write remains.
    """

    def __init__(self, out: Place, run: str) -> None:
        self.out, self.run, self.lost = out, run, False
        self.owner = {"run": run, "host": socket.gethostname(), "pid": os.getpid()}
        self.owner["since"] = time.time()
        self._end, self._thread = (
            threading.Event(),
            threading.Thread(target=self._beat, daemon=True),
        )

    def take(self, take_over: bool) -> None:
        """Take it, or stop and say who has it."""
        found = self._read()
        if found:
            who, stale = _describe(found, self.owner["host"])
            if not stale:
                sys.exit(f"{self.out.name}: {who}. Wait for it, or end it.")
            if not take_over:
                sys.exit(
                    f"{self.out.name}: {who}. It looks dead: add --take-over to go on in its place."
                )
            print(f"{who}. Taken over.", flush=True)
        elif self.out.on_disk:
            try:
                os.close(os.open(self.out.at("lock.json"), os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                sys.exit(f"{self.out.name}: another run has just begun to write there.")
        self._write()
        if found or not self.out.on_disk:
            time.sleep(1)
        if (self._read() or {}).get("run") != self.run:
            sys.exit(f"{self.out.name}: another run has just begun to write there.")
        self._thread.start()

    def release(self) -> None:
        """Let others write."""
        self._end.set()
        self._thread.join()
        if not self.lost:
            self.out.delete(["lock.json"])

    def _read(self) -> Record | None:
        content = self.out.read("lock.json")
        try:
            return json.loads(content) if content is not None else None
        except ValueError:  # on a disk, in the moment in which it is created
            when = self.out.files.get_file_info(self.out.at("lock.json")).mtime_ns or 0
            return {"run": "?", "host": "?", "pid": 0, "since": when / 1e9, "seen": when / 1e9}

    def _write(self) -> None:
        self.out.write("lock.json", json.dumps({**self.owner, "seen": time.time()}).encode())

    def _beat(self) -> None:
        while not self._end.wait(BEAT):
            if (self._read() or {}).get("run") != self.run:
                self.lost = True
                return
            self._write()


def _describe(found: Record, host: str) -> tuple[str, bool]:
    """Say who has a lock, and whether that run is dead."""
    silent = time.time() - found["seen"]
    dead = found["host"] == host and not psutil.pid_exists(found["pid"])
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found["since"]))
    who = (
        f"process {found['pid']} on {found['host']} has been writing there since {since}; its last "
        f"sign of life was {silent:.0f} seconds ago"
    )
    return (f"{who}, and it is no more" if dead else who), dead or silent > STALE
