"""What `embed_on_ray.py` has to do, and how far it is."""

import argparse
import posixpath
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from embed_files import Manifest, Place, Record, part_name

COMPARED = 2_000_000  # up to so many rows, ids are compared over all files before anything starts


class Plan:
    """What is to be done: ranges of rows of the input files that are not finished.

    Attributes
    ----------
    items : list of dict
        One per range.
    stamps : dict of str to str
        Size and time of each input file; if they are as before, its rows are.
    rows : dict of str to int
        Of each input file.
    """

    def __init__(self, source: Place, manifest: Manifest, args: argparse.Namespace) -> None:
        found = source.list()
        # As readers of Parquet do, pass over names that begin with a line or a dot.
        others = re.compile(r"(^|/)[_.]|(?<!\.parquet)$")
        names = [name for name in found if name == "." or not others.search(name)]
        if not names:
            sys.exit(f"{source.name}: no Parquet file is there")
        self.source, self.manifest, self.step = source, manifest, args.batch_size
        self.at = {name if name != "." else posixpath.basename(source.path): name for name in names}
        self.stamps = {
            file: f"{found[name].size}-{found[name].mtime_ns}" for file, name in self.at.items()
        }
        self.rows: dict[str, int] = {}
        unread = []
        for file in self.at:
            done = manifest.finished.get(file)
            if done and done["stamp"] == self.stamps[file]:
                self.rows[file] = done["rows"]
            else:
                unread.append(file)
        self.gone = [file for file in manifest.parts if file not in self.at]
        with ThreadPoolExecutor(16) as pool:  # an object store takes its time for each
            self.rows |= zip(
                unread, pool.map(lambda file: self._count(file, args), unread), strict=True
            )
        self.left = {file: self._ranges(file) for file in unread}
        self.items = [
            self._item(file, start) for file in unread for start in sorted(self.left[file])
        ]
        self.total = sum(self.rows.values())
        self.to_do = sum(self.size_of(file, start) for file in unread for start in self.left[file])

    def _count(self, file: str, args: argparse.Namespace) -> int:
        """Read the end of a file: how many rows, and whether it has the columns."""
        path = self.source.at(self._under(file))
        try:
            with pq.ParquetFile(path, filesystem=self.source.files) as found:
                columns, rows = found.schema_arrow.names, found.metadata.num_rows
        except (OSError, pa.ArrowInvalid) as error:
            sys.exit(f"{self.source.name}: {file} cannot be read ({error})")
        for wanted in (args.id, args.column):
            if wanted not in columns:
                sys.exit(
                    f"{self.source.name}: {file} has no column {wanted!r}; choose from "
                    f"{', '.join(columns)}"
                )
        return rows

    def _under(self, file: str) -> str:
        return "" if self.at[file] == "." else file

    def size_of(self, file: str, start: int) -> int:
        """Count the rows of a range."""
        return min(self.step, self.rows[file] - start)

    def _ranges(self, file: str) -> set[int]:
        """Give the first rows of the ranges of a file that are not done."""
        parts, stamp = self.manifest.parts.get(file, {}), self.stamps[file]
        return {
            start
            for start in range(0, self.rows[file], self.step)
            if part_name(file, stamp, self.step, start) not in parts
        }

    def _item(self, file: str, start: int) -> Record:
        """Describe a range for a worker, with the older parts that may hold some of its rows."""
        stamp, stop = self.stamps[file], start + self.size_of(file, start)
        old = [
            name
            for name, part in self.manifest.parts.get(file, {}).items()
            if part["rows"]
            and (part["stamp"] != stamp or part["start"] < stop)
            and (part["stamp"] != stamp or part["start"] + part["step"] > start)
        ]
        item = {"file": file, "at": self._under(file), "stamp": stamp, "step": self.step}
        return {**item, "start": start, "stop": stop, "old": old}

    def finish(self, file: str) -> None:
        """Note that all of a file is done."""
        line = {"file": file, "stamp": self.stamps[file], "step": self.step}
        self.manifest.add({**line, "rows": self.rows[file]})

    def compare_ids(self, column: str) -> None:
        """Stop if ids cannot tell rows apart; of very many rows, each range is looked at alone."""
        if self.total > COMPARED:
            return
        paths = [self.source.at(self._under(file)) for file in self.at]
        data = pads.dataset(paths, filesystem=self.source.files, format="parquet")
        ids = data.to_table(columns=[column])[column]
        if ids.null_count:
            sys.exit(
                f"{self.source.name}: {ids.null_count:,} rows have no {column!r}; each needs one"
            )
        if twice := len(ids) - len(ids.unique()):
            sys.exit(
                f"{self.source.name}: {twice:,} rows have the {column!r} of another; each needs "
                "its own"
            )


class Progress:
    """Says now and then how far it is, how fast, and what it costs."""

    def __init__(self, plan: Plan, price: float | None) -> None:
        self.rows, self.total, self.price = plan.to_do, plan.total, price
        self.before = plan.total - plan.to_do
        self.begun = time.monotonic()
        self.first: float | None = None
        self.said = self.begun
        self.done = self.embedded = self.tokens = 0

    def add(self, record: Record, rows: int) -> None:
        """Count a part."""
        now = time.monotonic()
        self.first = self.first or now - record["seconds"]
        self.done += rows
        self.embedded += record["embedded"]
        self.tokens += record["tokens"]
        if now - self.said > 10:
            self.said = now
            print(self.line(), flush=True)

    def figures(self) -> Record:
        """Give rates since the first range began, and the cost since the start."""
        now = time.monotonic()
        working = max(now - (self.first or now), 1e-3)
        figures = {"seconds": round(now - self.begun, 1)}
        figures["rows_per_second"] = round(self.done / working, 1)
        figures["tokens_per_second"] = round(self.tokens / working)
        if self.price is not None:
            figures["dollars"] = round((now - self.begun) / 3600 * self.price, 4)
        return figures

    def line(self) -> str:
        """Put it into words."""
        now = self.figures()
        left = (self.rows - self.done) / max(now["rows_per_second"], 1e-9)
        words = [f"{self.before + self.done:,} of {self.total:,} rows"]
        words += [f"{now['rows_per_second']:,.0f} rows/s"]
        words += [f"about {now['tokens_per_second']:,} tokens/s"] if self.tokens else []
        words += [f"{left / 3600:.1f} h left" if left > 5400 else f"{left / 60:.1f} min left"]
        if self.price is not None:
            whole = now["dollars"] + left / 3600 * self.price
            words += [f"{now['dollars']:,.2f} $ so far, about {whole:,.2f} $ in all"]
        return " · ".join(words)
