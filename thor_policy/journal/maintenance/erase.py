"""Erasure of a person, or of an agent, from the journal and its archives.

Owns the erasure, and the check of it: every table and file is searched for the name. Invariant: events stay,
their private parts are deleted, and an `erased` event says which; the next run finishes an interrupted one.
One maintenance task at a time, on a thread that may wait.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import sys
import time
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

from msgspec import Struct

from thor_policy.core.errors import JournalError
from thor_policy.core.requests import Json
from thor_policy.journal import chain, events, projections, segments, shipping, summaries
from thor_policy.journal.events import Event
from thor_policy.journal.maintenance.archive import finish_interrupted
from thor_policy.journal.maintenance.tasks import (
    STEP,
    Progress,
    StoredEvents,
    commit,
    connect,
    readable,
    result_of,
)
from thor_policy.journal.rewrites import ERASED, Rewrite
from thor_policy.journal.segments import Part
from thor_policy.journal.storage import BUSY_TIMEOUT_MS, SIDE_FILES
from thor_policy.journal.writer import WAL_WAIT_MS, Journal
from thor_policy.security import files
from thor_policy.telemetry.watchdog import Pulse

log = logging.getLogger(__name__)

#: Members of a private part below which keys and numbers are from the client, not from this program.
FREE = frozenset({"properties", "context", "facts", "metadata", "value", "values", "consulted"})
#: Columns in which all keys and numbers are from the client.
FREE_COLUMNS = frozenset({"metadata", "answer", "supplied"})
#: How often an erasure tries to truncate the write-ahead log while a reader needs it, and the pause.
LOG_TRIES, LOG_PAUSE_S = 20, 0.25
#: Instructions of SQLite's virtual machine between two beats during VACUUM: some milliseconds.
BEAT_STEPS = 10_000


class Erasure(Struct, frozen=True, kw_only=True):
    """The result of an erasure.

    `own`: deleted private parts of the actor's decisions and of records about them. `mentions`: private parts
    of others, which lost the name and what was computed from it. `archived`: how many of both were in
    archives. `left`: tables and files that still contain the name. `parts`: tables and files with the same
    letters inside other words, which stay.
    """

    own: int
    mentions: int
    archived: int
    left: tuple[str, ...]
    parts: tuple[str, ...]


def erase(
    journal: Journal,
    actor: str,
    *,
    by_uid: int | None = None,
    by_key: str | None = None,
    unshipped: bool = False,
    progress: Progress = lambda _: None,
) -> Erasure:
    """Erase an actor (`user:alice`, or a user's bare id) from the journal and its archives.

    The chain keeps its events. Their private parts are deleted, and an `erased` event says which, and who
    requested it: a user, or the name of a key. `progress` gets the number of events checked. Raises
    JournalError, also if a sink lacks an event of the actor so far; `unshipped` erases even then.
    """
    by: dict[str, Json] = {"by_uid": by_uid} | ({} if by_key is None else {"by_key": by_key})
    kind, colon, id_ = actor.partition(":")
    kind, id_ = (kind, id_) if colon and kind and id_ else ("user", actor)
    if not id_.strip():
        raise JournalError("actor: must not be empty; give it as `user:alice`")
    name = _Name(id_)
    checked = archived = 0
    with closing(connect(journal.path)) as connection:
        last, _ = finish_interrupted(journal, connection)
        archives = [
            segment for segment in segments.segments(connection, journal.path) if segment.last_seq <= last
        ]
        if not unshipped:
            _refuse_unshipped(connection, kind, name)
        search = _Search(kind, name, _erased_decisions(connection))
        for segment in archives:
            with readable(segment.path), segments.reading(segment.path) as stored:
                rewrites = [
                    rewrite
                    for row, part in stored
                    if (rewrite := search.rewrite_of(row, part, archived=True))
                ]
            _record(journal, rewrites, by)
            if rewrites:
                _rewrite_segment(segment, {rewrite.seq: rewrite.private for rewrite in rewrites})
            archived, checked = archived + len(rewrites), checked + segment.events
            progress(checked)
        for _ in range(2):  # the second time for events that arrived meanwhile
            (newest,) = connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()
            live = segments.live_events(connection, last + 1, newest)
            while page := list(islice(live, STEP)):
                rewrites = [rewrite for row, part in page if (rewrite := search.rewrite_of(row, part))]
                _record(journal, rewrites, by)
                checked += len(page)
                progress(checked)
            last = newest
        left, parts = _find_remains(journal, connection, [segment.path for segment in archives], name)
    return Erasure(own=search.own, mentions=search.mentions, archived=archived, left=left, parts=parts)


def _refuse_unshipped(connection: sqlite3.Connection, kind: str, name: _Name) -> None:
    """Raise JournalError if a sink has not acknowledged an event that the erasure would change."""
    slowest = shipping.slowest(connection)
    if slowest is None:
        return
    (newest,) = connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()
    own = connection.execute("SELECT decision_id FROM decisions WHERE actor = ?", (f"{kind}:{name.text}",))
    search = _Search(kind, name, {decision_id: sys.maxsize for (decision_id,) in own})
    for row, part in segments.live_events(connection, slowest.acknowledged + 1, newest):
        if search.rewrite_of(row, part) is not None:
            raise JournalError(
                f"event {row.seq} names the actor, and the sink {slowest.sink} has not acknowledged it: "
                "let `thorpolicy ship` catch up, or erase it unshipped with --unshipped"
            )


def _erased_decisions(connection: sqlite3.Connection) -> dict[str, int]:
    """Decisions that were erased completely, each with the event that erased it."""
    rows = connection.execute(
        "SELECT d.decision_id, e.by_seq FROM erasures e JOIN decisions d ON d.seq = e.seq "
        "WHERE length(e.digest) = 0"
    )
    return dict(rows.fetchall())


class _Name:
    """A name as it may occur in texts: in any case and Unicode composition, not inside a longer word."""

    def __init__(self, name: str) -> None:
        self.text = self._name = name
        forms = {name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))}
        either = forms | {_in_json(form) for form in forms}
        self._needles = {form.lower() for form in either}
        #: The bytes of the name in a file, ASCII letters in lower case.
        self.bytes = {form.encode().lower() for form in either}
        # the letter of an escape (`\n`) does not belong to the word after it
        self._word = re.compile(
            rf"(?:(?<!\w)|(?<=\\[abfnrtv]))(?:{'|'.join(map(re.escape, either))})(?!\w)", re.IGNORECASE
        )

    def occurs(self, text: str) -> bool:
        """True if the text contains the letters of the name, even inside a word."""
        low = text.lower()
        return any(needle in low for needle in self._needles)

    def is_in(self, column: str, text: str | None) -> bool:
        """True if a text of that column contains the name, not counting keys that this program writes."""
        if text is None or not self.occurs(text):
            return False
        if column in _JSON_COLUMNS:
            value = events.decode(text)
            return bool(self.clean(value, free=column in FREE_COLUMNS) != value)
        return self._word.search(text) is not None

    def clean(self, value: Json, *, free: bool = False) -> Json:
        """`value` without the name in any text; `free`: also without it as a key or a number."""
        if isinstance(value, str):
            return self._word.sub(ERASED, value)
        if isinstance(value, list):
            return [self.clean(item, free=free) for item in value]
        if isinstance(value, dict):
            return {
                self._word.sub(ERASED, key) if free else key: self.clean(item, free=free or key in FREE)
                for key, item in value.items()
            }
        numbered = free and type(value) is int and str(value) == self._name
        return ERASED if numbered else value

    def is_actor(self, type_: str, kind: str, private: dict[str, Json]) -> bool:
        """True if an event of that kind is a decision for, or by, the actor with this name."""
        if kind == "decision":
            subject = private["evaluation"]["subject"]
            return bool(subject["type"] == type_ and subject["id"] == self._name)
        return kind == "decision_report" and private.get("agent") == self._name


_JSON_COLUMNS = projections.JSON_COLUMNS | {"body", "private"}


class _Search:
    """Finds what must be erased. It must get the events one by one, in their order.

    `erased` are decisions that were erased before, each with the event that erased it. Earlier records about
    them are erased too, because that erasure may have been interrupted.
    """

    def __init__(self, kind: str, name: _Name, erased: Mapping[str, int]) -> None:
        self._kind, self._name = kind, name
        self._decisions = dict(erased)
        self.own = self.mentions = 0

    def rewrite_of(self, row: chain.Row, part: Part | None, *, archived: bool = False) -> Rewrite | None:
        """The rewrite of an event; None if the event does not concern the actor."""
        if part is None:
            return None
        kind, subject_id, at = row.kind.decode(), row.subject_id.decode(), row.at.decode()
        text = part[1].decode()
        private: tuple[bytes, str] | None = None
        if row.seq < self._decisions.get(subject_id, 0):
            self.own += 1
        elif not self._name.occurs(text):
            return None
        elif self._name.is_actor(self._kind, kind, fields := events.decode(text)):
            self._decisions[subject_id] = sys.maxsize
            self.own += 1
        elif (cleaned := self._name.clean(fields)) != fields:
            self.mentions += 1
            left = _without_derived(kind, cleaned)
            private = chain.seal(left)[0], left.decode()
        else:
            return None
        body, remaining = projections.read(kind, row.body, private[1].encode() if private else None)
        projection = projections.project(kind, row.seq, at, subject_id, body, remaining)
        return Rewrite(
            seq=row.seq,
            kind=kind,
            subject_id=subject_id,
            private=private,
            projection=projection,
            archived=archived,
        )


def _without_derived(kind: str, private: dict[str, Json]) -> bytes:
    """A private part without the name, and without what was computed from values with the name."""
    if kind == "decision":
        for derived in ("facts", "errors", "suffix_tokens"):
            private.pop(derived, None)
    return events.encode(private)


def _record(journal: Journal, rewrites: list[Rewrite], by: dict[str, Json]) -> None:
    """Erase, and record it with an `erased` event, in one transaction for each step."""
    for start in range(0, len(rewrites), STEP):
        step = tuple(rewrites[start : start + STEP])
        parts = {str(rewrite.seq): rewrite.digest.hex() for rewrite in step}
        body: dict[str, Json] = {"parts": parts, **by}
        commit(journal, Event(kind="erased", subject_id="erased", at=time.time(), body=body, rewrites=step))


def _rewrite_segment(segment: segments.Segment, left: dict[int, tuple[bytes, str] | None]) -> None:
    with readable(segment.path), segments.reading(segment.path) as stored:
        segments.write_segment(segment.path, _replaced(stored, left))


def _replaced(stored: StoredEvents, left: dict[int, tuple[bytes, str] | None]) -> StoredEvents:
    for row, part in stored:
        if row.seq in left:
            private = left[row.seq]
            part = None if private is None else (private[0], private[1].encode())
        yield row, part


def _find_remains(
    journal: Journal, connection: sqlite3.Connection, archives: list[Path], name: _Name
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Search every table and file for the name; VACUUM the database if only its free space may have it."""
    result_of(journal.run(summaries.drop_remains), timeout_s=None)
    _truncate_wal(journal)
    tables, parts = _tables_with(connection, name)
    files = _files_with(_own_files(journal.path), name)
    if files and not tables:
        log.info("free space of the database may have remains of erased rows; VACUUM")
        result_of(journal.run(partial(_vacuum, journal.pulse)), timeout_s=None)
        _truncate_wal(journal)
        if not parts:  # the file has only the tables now, in which two adjacent values can spell a name
            parts = _files_with(_own_files(journal.path), name)
        files = []
    in_archives, parts_of_archives = _archives_with(archives, name)
    others = _files_with(_other_files(journal.path, set(archives)), name)
    return (*tables, *files, *in_archives, *others), (*parts, *parts_of_archives)


def _vacuum(pulse: Pulse, connection: sqlite3.Connection) -> None:
    """VACUUM, however long it takes; the pulse shows the watchdog that it makes progress."""
    connection.set_progress_handler(pulse.beat, BEAT_STEPS)
    try:
        connection.execute("VACUUM")
    finally:
        connection.set_progress_handler(None, 0)


def _truncate_wal(journal: Journal) -> None:
    """Truncate the write-ahead log. Raises JournalError if a reader keeps it."""

    def step(connection: sqlite3.Connection) -> int:
        connection.execute(f"PRAGMA busy_timeout = {WAL_WAIT_MS}")  # decisions wait meanwhile
        try:
            return int(connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])
        finally:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")

    for _ in range(LOG_TRIES):
        if result_of(journal.run(step)) == 0:
            return
        time.sleep(LOG_PAUSE_S)
    raise JournalError(
        "a reader keeps erased values in the write-ahead log; end that process, then erase again"
    )


def _tables_with(connection: sqlite3.Connection, name: _Name) -> tuple[list[str], list[str]]:
    """Tables that contain the name; and tables with its letters only inside other words or our own keys."""
    whole, parts = [], []
    connection.create_function("occurs", 1, name.occurs)
    names = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY rootpage")
    for (table,) in names.fetchall():
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})") if row[2] == "TEXT"]
        if not columns:
            continue
        text = " || char(10) || ".join(f"coalesce({column}, '')" for column in columns)
        names_in_text = [
            "private" if (table, column) == ("private", "value") else column for column in columns
        ]
        rows = connection.execute(f"SELECT {', '.join(columns)} FROM {table} WHERE occurs({text})")
        matches = [any(map(name.is_in, names_in_text, row)) for row in rows]
        if any(matches):
            whole.append(f"table {table}")
        elif matches:
            parts.append(f"table {table}")
    schema_rows = connection.execute("SELECT name || ' ' || coalesce(sql, '') FROM sqlite_schema").fetchall()
    if name.occurs("\n".join(["SQLite format 3", *(text for (text,) in schema_rows)])):
        parts.append("schema")
    return whole, parts


def _archives_with(paths: list[Path], name: _Name) -> tuple[list[str], list[str]]:
    """The names of the archives that contain the name; and of those with its letters only inside words."""
    whole: list[str] = []
    parts: list[str] = []
    for file in _files_with(paths, name):
        path = next(path for path in paths if path.name == file)
        with readable(path), segments.reading(path) as stored:
            left = any(
                name.is_in("body", row.body.decode())
                or name.is_in("private", part[1].decode() if part else None)
                or name.is_in("subject_id", row.subject_id.decode())
                for row, part in stored
            )
        (whole if left else parts).append(file)
    return whole, parts


def _own_files(journal: Path) -> list[Path]:
    return [journal.with_name(journal.name + ending) for ending in SIDE_FILES]


def _other_files(journal: Path, archives: set[Path]) -> list[Path]:
    """Other files that may have the journal's content: damaged files, copies, archives of other chains."""
    beside = set(journal.parent.glob(f"{journal.name}*")) - set(_own_files(journal))
    return sorted(beside | (set(segments.directory(journal).glob("*")) - archives))


def _files_with(paths: list[Path], name: _Name) -> list[str]:
    """Names of the files that contain the bytes of the name; archives are decompressed.

    A link, or a file of others, is not read. It is listed, because it may have the name.
    """
    matches = []
    for path in paths:
        if path.is_file():
            try:
                files.check(path, owners=files.owners_beside(path))
            except ValueError:
                matches.append(path.name)
                continue
            with readable(path), _blocks(path) as blocks:
                if _contains(blocks, name.bytes):
                    matches.append(path.name)
    return matches


@contextmanager
def _blocks(path: Path) -> Iterator[Iterator[bytes]]:
    if path.suffix == ".gz":
        with segments.decompressed(path) as blocks:
            yield blocks
    else:
        with os.fdopen(files.open_own(path, os.O_RDONLY, owners=files.owners_beside(path)), "rb") as file:
            yield iter(lambda: file.read(2**22), b"")


def _contains(blocks: Iterator[bytes], needles: set[bytes]) -> bool:
    longest = max(map(len, needles))
    tail = b""
    for block in blocks:
        window = tail + block.lower()
        if any(needle in window for needle in needles):
            return True
        tail = window[-longest:]
    return False


def _in_json(name: str) -> str:
    return events.encode(name).decode()[1:-1]
