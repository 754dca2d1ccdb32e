"""A source that is a file of rows: YAML, CSV or JSON lines.

Owns the rows that count. Invariant: rows are replaced as a whole, by a file that was read completely and has
no fault; a broken, half-written or missing replacement leaves the old rows, and `problem` says why. A file
that changed a moment ago is left until it rests for `SETTLE_S`: it may be half-written at the end of a line.
Threads of its workers; one of them reads the file while the others use the old rows.
"""

from __future__ import annotations

import csv
import io
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from thor_policy.core import strict_json
from thor_policy.core.errors import PackError
from thor_policy.core.requests import Json
from thor_policy.policy import yaml_text
from thor_policy.policy.source_specs import SourceSpec, Table
from thor_policy.sources.source import Found, SourceError, at_time, found_in, listed

#: How long a changed file must rest before it is read, in seconds.
SETTLE_S = 0.2
#: Largest file that is read, in bytes.
MAX_BYTES = 64 << 20

#: What tells one content of a file from another without reading it.
_Mark: TypeAlias = tuple[int, int, int]
#: A row by type and id; the type is "" where the table has none.
_Rows: TypeAlias = dict[tuple[str, str], dict[str, Json]]


class _Content(NamedTuple):
    rows: _Rows
    mark: _Mark
    written_at: float


class TableSource:
    """The table of `spec` in the file at `path`; `clock` gives Unix seconds, to compare with its time."""

    def __init__(
        self, spec: SourceSpec, table: Table, path: Path, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._spec, self._table, self._path, self._clock = spec, table, path, clock
        self._text = path.suffix == ".csv"
        self._content: _Content | None = None
        self._refused: _Mark | None = None
        self._reading = threading.Lock()
        self.problem: str | None = None

    def look_up(self, type: str, id: str, deadline_ns: int) -> Found | None:
        content = self._current(deadline_ns)
        row = content.rows.get((type if self._table.type_key else "", id))
        if row is None:
            return None
        return found_in(self._spec, row, fresh_at=at_time(content.written_at), text=self._text)

    def listing(self, type: str, deadline_ns: int) -> list[str]:
        own = type if self._table.type_key else ""
        if not self._table.type_key and self._spec.types and type not in self._spec.types:
            return []
        return listed(id for row_type, id in self._current(deadline_ns).rows if row_type == own)

    def close(self) -> None:
        pass

    def _current(self, deadline_ns: int) -> _Content:
        """The rows that count now; they are read again if the file changed."""
        try:
            status = self._path.stat()
        except OSError as error:
            return self._kept(f"{self._path.name} cannot be read: {error.strerror}")
        mark = (status.st_ino, status.st_size, status.st_mtime_ns)
        content = self._content
        if content is not None and content.mark == mark:
            self.problem = None
            return content
        if content is not None and (self._refused == mark or self._is_moving(status.st_mtime)):
            return content
        wait_s = 0.0 if content is not None else max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9)
        if not self._reading.acquire(timeout=wait_s):
            return self._kept(f"{self._path.name} is still being read")
        try:
            return self._read_again(mark)
        finally:
            self._reading.release()

    def _is_moving(self, written_at: float) -> bool:
        return 0 <= self._clock() - written_at < SETTLE_S

    def _read_again(self, mark: _Mark) -> _Content:
        if self._content is not None and self._content.mark == mark:
            return self._content
        try:
            text, status = self._read()
            rows = self._rows_of(text)
        except (OSError, ValueError, PackError) as error:
            self._refused = mark
            reason = error.strerror if isinstance(error, OSError) else str(error)
            return self._kept(f"{self._path.name}: {reason}")
        result = (status.st_ino, status.st_size, status.st_mtime_ns)
        content = _Content(rows, result, status.st_mtime)
        self._content, self.problem, self._refused = content, None, None
        return content

    def _kept(self, problem: str) -> _Content:
        """The old rows, with what is wrong with the new ones. Raises SourceError if there are none."""
        content = self._content
        if content is None:
            self.problem = problem
            raise SourceError(problem)
        self.problem = f"{problem}; the rows of {at_time(content.written_at)} still count"
        return content

    def _read(self) -> tuple[str, os.stat_result]:
        """Text and status of the file; both belong to one moment. Raises OSError, ValueError."""
        with open(self._path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise ValueError("is no regular file")
            if before.st_size > MAX_BYTES:
                raise ValueError(f"has {before.st_size} bytes; the limit is {MAX_BYTES}")
            content = file.read(MAX_BYTES + 1)
            after = os.fstat(file.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise ValueError("changed while it was read")
        return content.decode("utf-8-sig"), after

    # ------------------------------------------------------------ what is in it

    def _rows_of(self, text: str) -> _Rows:
        """The rows by type and id. Raises ValueError that names the row, never its content."""
        read = {".csv": self._csv, ".jsonl": self._json_lines}.get(self._path.suffix, self._yaml)
        rows: _Rows = {}
        for place, row in read(text):
            id_of_row = _name(row.get(self._table.key))
            type_of_row = _name(row.get(self._table.type_key)) if self._table.type_key else ""
            if id_of_row is None or type_of_row is None:
                column = self._table.key if id_of_row is None else self._table.type_key
                raise ValueError(f"{place} has no {column}")
            if (type_of_row, id_of_row) in rows:
                raise ValueError(f"{place} has the {self._table.key} of an earlier row")
            rows[type_of_row, id_of_row] = row
        return rows

    def _csv(self, text: str) -> Iterator[tuple[str, dict[str, Json]]]:
        if text and not text.endswith(("\n", "\r")):
            raise ValueError("does not end with a line end, so it may be half-written")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, restkey="", restval=None)
        try:
            header = reader.fieldnames or ()
            needed = {self._table.key, *(filter(None, [self._table.type_key]))}
            needed |= {attribute.at or name for name, attribute in self._spec.attributes.items()}
            if missing := sorted(needed - set(header)):
                raise ValueError(f"has no column {missing[0]}")
            for row in reader:
                if "" in row or None in row.values():
                    raise ValueError(f"line {reader.line_num} does not have {len(header)} cells")
                yield f"line {reader.line_num}", row
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num}: {error}") from None

    def _json_lines(self, text: str) -> Iterator[tuple[str, dict[str, Json]]]:
        if text and not text.endswith("\n"):
            raise ValueError("does not end with a line end, so it may be half-written")
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    row = strict_json.decode(line)
                except strict_json.JsonError:
                    raise ValueError(f"line {number} is no JSON") from None
                yield f"line {number}", _as_row(row, f"line {number}")

    def _yaml(self, text: str) -> Iterator[tuple[str, dict[str, Json]]]:
        rows: Any = yaml_text.parse(text, Any, self._path.name)
        if isinstance(rows, dict):
            for number, (id_of_row, row) in enumerate(rows.items(), 1):
                yield f"row {number}", {self._table.key: id_of_row} | _as_row(row, f"row {number}")
        elif isinstance(rows, list):
            for number, row in enumerate(rows, 1):
                yield f"row {number}", _as_row(row, f"row {number}")
        else:
            raise ValueError("is neither a list of rows nor a map of rows by id")


def _as_row(row: Json, place: str) -> dict[str, Json]:
    if not isinstance(row, dict):
        raise ValueError(f"{place} is no map")
    return row


def _name(value: Json) -> str | None:
    """An id or a type as text; None if it is neither text nor a whole number."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if whole or (isinstance(value, str) and value) else None
