"""What a worker of `embed_on_ray.py` does: read a range of a file, embed it, write a part."""

import hashlib
import json
import os
import re
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

import embedkit as ek
from embed_files import Place, Record, part_name

STORED = {"float32": pa.float32(), "float16": pa.float16()}
# The files of a model's folder that its vectors depend on.
FILES = (".safetensors", ".json", ".txt", ".model")
COUNTED = 200  # rows of a range whose tokens are counted, for an estimate


class Secret(str):
    """A text that does not show itself."""

    def __repr__(self) -> str:
        """Show nothing."""
        return "***"


@dataclass
class Task:
    """What all workers have to know.

    Attributes
    ----------
    source, out : Place
    kind : str
        The class of the encoder.
    settings : dict
        What it is made with.
    column, id, stored : str
    wanted : dict
        What was asked for; with what the encoder is made of, it stands in each part.
    token : Secret, optional
        Of the Hub.
    """

    source: Place
    out: Place
    kind: str
    settings: dict[str, Any]
    column: str
    id: str
    stored: str
    wanted: Record
    token: Secret | None = None


def make_encoder(kind: str, settings: dict[str, Any], token: str | None) -> tuple[Any, Record]:
    """Make an encoder; say by which weights, and how it pools.

    Of the Hub, the weights are a commit, and are downloaded once per node: those who come second
    wait for the files in the Hub's cache. Of a folder, they are a digest.
    """
    if token:
        os.environ["HF_TOKEN"] = str(token)
    encoder = getattr(ek, kind)(**settings)
    digest, folder = hashlib.sha256(), Path(settings["model"])
    paths = [path for path in folder.rglob("*") if path.suffix in FILES] if folder.is_dir() else []
    for path in sorted(paths):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + content)
    return encoder, {
        "revision": encoder.commit,
        "files": digest.hexdigest() if paths else None,
        "pooled": encoder.pooling,
        "normalized": encoder.normalize,
    }


class Worker:
    """Embeds ranges of files; holds an encoder, and the row groups that it read last."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._read: tuple[Any, pa.Table] | None = None

    def load(self) -> Record:
        """Make the encoder; say what it is made of."""
        self.encoder, made_of = make_encoder(self.task.kind, self.task.settings, self.task.token)
        self.made_by = self.task.wanted | made_of
        return made_of

    def do(self, item: Record) -> Record:
        """Embed what is new in a range of rows, write all of it as a part, and describe that."""
        begun, rows = time.perf_counter(), self.read(item)
        ids, content = rows[self.task.id].combine_chunks(), rows[self.task.column]
        hashes = pa.array([hash_of(value) for value in content.to_pylist()], pa.uint64())
        kept, places = self.done_before(item, ids, hashes)
        new = np.setdiff1d(np.arange(len(rows)), places)
        reasons = wrong_ids(ids, new)
        good = np.array([row for row in new if row not in reasons], dtype=np.int64)
        vectors, bad = self.embed(content, good)
        reasons |= bad
        made = np.array([row for row in good if row not in bad], dtype=np.int64)
        table = self.table(ids.take(made), vectors, hashes.take(made))
        table = pa.concat_tables([kept.cast(table.schema), table])
        table = table.take(np.argsort(np.concatenate([places, made]), kind="stable"))
        name = part_name(item["file"], item["stamp"], item["step"], item["start"])
        record = {key: item[key] for key in ("file", "stamp", "step", "start")}
        record |= {"part": name, "rows": len(table), "rejected": len(reasons), "bytes": 0}
        if len(table):
            record["bytes"] = self.write(f"vectors/{name}", table)
        if reasons:
            rejected = {self.task.id: ids.take([*reasons]), "reason": [*reasons.values()]}
            self.write(f"rejected/{name}", pa.table(rejected))
        seconds = time.perf_counter() - begun
        return record | {"embedded": len(made), "seconds": seconds} | self.tokens(content, made)

    def read(self, item: Record) -> pa.Table:
        """Read a range of rows; of row groups larger than that, keep the last ones."""
        columns = [*dict.fromkeys([self.task.id, self.task.column])]
        with pq.ParquetFile(
            self.task.source.at(item["at"]), filesystem=self.task.source.files
        ) as f:
            sizes = [f.metadata.row_group(n).num_rows for n in range(f.num_row_groups)]
            ends = np.cumsum(sizes)
            first, last = np.searchsorted(ends, [item["start"], item["stop"] - 1], side="right")
            key = item["file"], item["stamp"], int(first), int(last)
            if self._read is None or self._read[0] != key:
                groups = f.read_row_groups(range(first, last + 1), columns=columns)
                self._read = key, groups
        begin = int(ends[first] - sizes[first])
        return self._read[1].slice(item["start"] - begin, item["stop"] - item["start"])

    def done_before(self, item: Record, ids: pa.Array, hashes: pa.Array) -> tuple[pa.Table, Any]:
        """Take what older parts of this file have of these rows: the same id, the same content."""
        if not item["old"]:
            return self.table(ids[:0], np.empty((0, self.encoder.dim)), hashes[:0]), np.arange(0)
        out = self.task.out
        paths = [out.at(f"vectors/{name}") for name in item["old"]]
        old = pads.dataset(paths, filesystem=out.files, format="parquet").to_table()
        old = old.filter(pc.is_in(old[self.task.id], value_set=ids))
        content = dict(zip(ids.to_pylist(), enumerate(hashes.to_pylist()), strict=True))
        where = {
            content[id][0]: row
            for row, (id, hash) in enumerate(
                zip(old[self.task.id].to_pylist(), old["content"].to_pylist(), strict=True)
            )
            if content[id][1] == hash
        }
        places = np.array([*where], dtype=np.int64)
        return old.take(np.array([*where.values()], dtype=np.int64)), places

    def embed(self, content: pa.ChunkedArray, rows: Any) -> tuple[Any, dict[int, str]]:
        """Embed rows of a column; give the vectors of those that can be read, and reasons."""
        if not len(rows):
            return np.empty((0, self.encoder.dim), np.float32), {}
        try:
            vectors = self.encode(content.take(rows), "skip")
        except Exception as error:
            # An input that the encoder does not know how to skip: look for it by halves.
            if len(rows) == 1:
                return np.empty((0, self.encoder.dim), np.float32), {int(rows[0]): told(error)}
            halves = [self.embed(content, half) for half in np.array_split(rows, 2)]
            bad = halves[0][1] | halves[1][1]
            if len(bad) == len(rows):
                raise  # it is not the rows
            return np.concatenate([vectors for vectors, _ in halves]), bad
        read = np.isfinite(vectors).all(axis=1)
        return vectors[read], {int(row): self.reason(content, row) for row in rows[~read]}

    def encode(self, column: pa.ChunkedArray, on_error: str) -> Any:
        """Give the vectors of a column."""
        batch = pa.table({self.encoder.columns[0]: column})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = self.encoder(batch, on_error=on_error)["embedding"].combine_chunks()
        return found.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)

    def reason(self, content: pa.ChunkedArray, row: int) -> str:
        """Say why a row has no vector."""
        try:
            self.encode(content.take(pa.array([row])), "raise")
        except Exception as error:
            return told(error)
        return "its vector holds NaN or infinity"

    def table(self, ids: pa.Array, vectors: Any, hashes: pa.Array) -> pa.Table:
        """Make the table of a part."""
        values = pc.cast(pa.array(np.ravel(vectors), pa.float32()), STORED[self.task.stored])
        embedding = pa.FixedSizeListArray.from_arrays(values, self.encoder.dim)
        return pa.table({self.task.id: ids, "embedding": embedding, "content": hashes})

    def write(self, name: str, table: pa.Table) -> int:
        """Write a table; give its size in bytes."""
        made_by, buffer = json.dumps(self.made_by), pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata({"embedkit": made_by}), buffer)
        content = buffer.getvalue()
        self.task.out.write(name, content)
        return content.size

    def tokens(self, content: pa.ChunkedArray, made: Any) -> Record:
        """Estimate the tokens of what was embedded, from some of it."""
        if self.task.kind != "TextEncoder" or not len(made):
            return {"tokens": 0}
        some = content.take(made[:: max(1, len(made) // COUNTED)]).to_pylist()
        counted = sum(map(len, self.encoder.processor(some, verbose=False)["input_ids"]))
        return {"tokens": round(counted / len(some) * len(made))}


def hash_of(value: Any) -> int:
    """Give a number that follows from the content of a row."""
    if isinstance(value, dict) and {"bytes", "path"} == {*value}:  # an image of `datasets`
        value = value["bytes"] if value["bytes"] is not None else value["path"]
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogatepass")
    if not isinstance(value, bytes):
        value = repr(value).encode()
    return int.from_bytes(hashlib.blake2b(value, digest_size=8).digest(), "little")


def wrong_ids(ids: pa.Array, rows: Any) -> dict[int, str]:
    """List rows whose id does not tell them apart from others of their range."""
    seen, wrong = set(), {}
    for row, id in enumerate(ids.to_pylist()):
        if id is None:
            wrong[row] = "it has no id"
        elif id in seen:
            wrong[row] = "it has the id of a row before it"
        seen.add(id)
    return {int(row): wrong[row] for row in rows if row in wrong}


def told(error: Exception) -> str:
    """Make a reason of an error; encoders count rows from the start of what they are given."""
    return re.sub(r"^(text|image|row) 0\b", "it", str(error)) or type(error).__name__
