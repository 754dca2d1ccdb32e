"""A person, or an agent, is erased from the journal and its archives.

Owns the erasure, and the proof of it: every table and file is searched for the name. Invariant: events
stay, their private parts go, and an event says which; cut off anywhere, it is finished when it is begun
again. One at a time, on a thread that may wait.
"""

from __future__ import annotations

import logging
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
from thor_policy.journal import chain, events, projections, segments
from thor_policy.journal.events import Event
from thor_policy.journal.maintenance.archive import tidy
from thor_policy.journal.maintenance.tasks import STEP, Found, Progress, commit, connect, readable, result_of
from thor_policy.journal.rewrites import Rewrite
from thor_policy.journal.segments import Part
from thor_policy.journal.storage import BUSY_TIMEOUT_MS, SIDE_FILES
from thor_policy.journal.writer import WAL_WAIT_MS, Journal
from thor_policy.telemetry.watchdog import Pulse

log = logging.getLogger(__name__)

#: What stands in place of an erased name.
ERASED = "[erased]"
#: Members of a private part below which keys and numbers are not ours.
FREE = frozenset({"properties", "context", "facts", "metadata", "value"})
#: Columns all of which is like that.
FREE_COLUMNS = frozenset({"metadata", "answer"})
#: How often an erasure asks for an empty write-ahead log while a reader needs it, and the pause between.
LOG_TRIES, LOG_PAUSE_S = 20, 0.25
#: Steps of SQLite's machine between two signs of life of a file that is written anew: some milliseconds.
BEAT_STEPS = 10_000


class Erasure(Struct, frozen=True, kw_only=True):
    """What an erasure did.

    `own` private parts of the actor's decisions, and of what hangs on them, are gone; `mentions` of others
    lost the name, and what was derived from it. `left` names tables and files that still hold the name;
    `parts` tables and files where the same letters are part of other words, which stay.
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
    progress: Progress = lambda _: None,
) -> Erasure:
    """Erase an actor (`user:alice`, or a user's bare id) from the journal and its archives.

    The chain keeps its events; their private parts go, and an `erased` event says which, and who wanted it: a
    user, or the name of a key. `progress` gets the number of events looked at. Raises JournalError.
    """
    by: dict[str, Json] = {"by_uid": by_uid} | ({} if by_key is None else {"by_key": by_key})
    kind, colon, told = actor.partition(":")
    kind, told = (kind, told) if colon and kind and told else ("user", actor)
    if not told.strip():
        raise JournalError("actor: must not be empty; give it as `user:alice`")
    name = _Name(told)
    looked = archived = 0
    with closing(connect(journal.path)) as connection:
        seen, _ = tidy(journal, connection)
        old = [one for one in segments.segments(connection, journal.path) if one.last_seq <= seen]
        hunt = _Hunt(kind, name, _erased_decisions(connection))
        for segment in old:
            with readable(segment.path), segments.reading(segment.path) as lines:
                found = [one for row, part in lines if (one := hunt.judge(row, part, archived=True))]
            _record(journal, found, by)
            if found:
                _rewrite_segment(segment, {one.seq: one.private for one in found})
            archived, looked = archived + len(found), looked + segment.events
            progress(looked)
        for _ in range(2):  # the second time for what came in meanwhile
            (newest,) = connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()
            live = segments.live_events(connection, seen + 1, newest)
            while page := list(islice(live, STEP)):
                _record(journal, [one for row, part in page if (one := hunt.judge(row, part))], by)
                looked += len(page)
                progress(looked)
            seen = newest
        left, parts = _what_is_left(journal, connection, [segment.path for segment in old], name)
    return Erasure(own=hunt.own, mentions=hunt.mentions, archived=archived, left=left, parts=parts)


def _erased_decisions(connection: sqlite3.Connection) -> dict[str, int]:
    """Decisions of which nothing is left, and the event that erased them."""
    rows = connection.execute(
        "SELECT d.decision_id, e.by_seq FROM erasures e JOIN decisions d ON d.seq = e.seq "
        "WHERE length(e.digest) = 0"
    )
    return dict(rows.fetchall())


class _Name:
    """A name as it may stand in texts, in any case and composition, where it is no part of a longer word."""

    def __init__(self, name: str) -> None:
        self._name = name
        forms = {name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))}
        either = forms | {_in_json(form) for form in forms}
        self._needles = {form.lower() for form in either}
        #: What a file that holds the name has in it, ASCII letters in lower case.
        self.bytes = {form.encode().lower() for form in either}
        # the letter of an escape (`\n`) is no part of the word behind it
        self._word = re.compile(
            rf"(?:(?<!\w)|(?<=\\[abfnrtv]))(?:{'|'.join(map(re.escape, either))})(?!\w)", re.IGNORECASE
        )

    def occurs(self, text: str) -> bool:
        """True if the letters are there at all."""
        low = text.lower()
        return any(needle in low for needle in self._needles)

    def stands_in(self, column: str, text: str | None) -> bool:
        """True if it is in a text of that column, but for the keys of our own records."""
        if text is None or not self.occurs(text):
            return False
        if column in _JSON_COLUMNS:
            value = events.decode(text)
            return bool(self.clean(value, free=column in FREE_COLUMNS) != value)
        return self._word.search(text) is not None

    def clean(self, value: Json, *, free: bool = False) -> Json:
        """Without the name in any text; where keys are not ours also without it as a key or a number."""
        if isinstance(value, str):
            return self._word.sub(ERASED, value)
        if isinstance(value, list):
            return [self.clean(one, free=free) for one in value]
        if isinstance(value, dict):
            return {
                self._word.sub(ERASED, key) if free else key: self.clean(one, free=free or key in FREE)
                for key, one in value.items()
            }
        numbered = free and type(value) is int and str(value) == self._name
        return ERASED if numbered else value

    def is_actor(self, type_: str, kind: str, private: dict[str, Json]) -> bool:
        """True if an event of that kind is a decision of, or for, the one who is called so."""
        if kind == "decision":
            subject = private["evaluation"]["subject"]
            return bool(subject["type"] == type_ and subject["id"] == self._name)
        return kind == "decision_report" and private.get("agent") == self._name


_JSON_COLUMNS = projections.JSON_COLUMNS | {"body", "private"}


class _Hunt:
    """Finds what has to go, event by event in their order.

    `erased` are decisions that were erased before, by the event that did it: what hung on them then goes
    too, for that erasure may have been cut off.
    """

    def __init__(self, kind: str, name: _Name, erased: Mapping[str, int]) -> None:
        self._kind, self._name = kind, name
        self._decisions = dict(erased)
        self.own = self.mentions = 0

    def judge(self, row: chain.Row, part: Part | None, *, archived: bool = False) -> Rewrite | None:
        """What becomes of an event; None if it has nothing to do with the actor."""
        if part is None:
            return None
        kind, subject_id, at = row.kind.decode(), row.subject_id.decode(), row.at.decode()
        text = part[1].decode()
        private: tuple[bytes, str] | None = None
        if row.seq < self._decisions.get(subject_id, 0):
            self.own += 1
        elif not self._name.occurs(text):
            return None
        elif self._name.is_actor(self._kind, kind, told := events.decode(text)):
            self._decisions[subject_id] = sys.maxsize
            self.own += 1
        elif (cleaned := self._name.clean(told)) != told:
            self.mentions += 1
            left = _without_derived(kind, cleaned)
            private = chain.seal(left)[0], left.decode()
        else:
            return None
        body, rest = projections.read(kind, row.body, private[1].encode() if private else None)
        projection = projections.project(kind, row.seq, at, subject_id, body, rest)
        return Rewrite(
            seq=row.seq,
            kind=kind,
            subject_id=subject_id,
            private=private,
            projection=projection,
            archived=archived,
        )


def _without_derived(kind: str, private: dict[str, Json]) -> bytes:
    """A private part that lost the name, without what was computed from what held it."""
    if kind == "decision":
        for derived in ("facts", "errors", "suffix_tokens"):
            private.pop(derived, None)
    return events.encode(private)


def _record(journal: Journal, found: list[Rewrite], by: dict[str, Json]) -> None:
    """Have the journal say what was erased, and do it, in one transaction for each step."""
    for start in range(0, len(found), STEP):
        chosen = tuple(found[start : start + STEP])
        parts = {str(one.seq): one.digest.hex() for one in chosen}
        body: dict[str, Json] = {"parts": parts, **by}
        commit(journal, Event(kind="erased", subject_id="erased", at=time.time(), body=body, rewrites=chosen))


def _rewrite_segment(segment: segments.Segment, left: dict[int, tuple[bytes, str] | None]) -> None:
    with readable(segment.path), segments.reading(segment.path) as lines:
        segments.write_segment(segment.path, _replaced(lines, left))


def _replaced(lines: Found, left: dict[int, tuple[bytes, str] | None]) -> Found:
    for row, part in lines:
        if row.seq in left:
            kept = left[row.seq]
            part = None if kept is None else (kept[0], kept[1].encode())
        yield row, part


def _what_is_left(
    journal: Journal, connection: sqlite3.Connection, old: list[Path], name: _Name
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Look for the name in every table and file; write the file anew if only its free space has it."""
    _empty_the_log(journal)
    tables, parts = _tables_with(connection, name)
    files = _files_with(_own_files(journal.path), name)
    if files and not tables:
        log.info("remains of erased rows may lie in free space; the file is written anew")
        result_of(journal.run(partial(_write_anew, journal.pulse)), patience_s=None)
        _empty_the_log(journal)
        if not parts:  # all that there is is in the tables now: side by side, two values can spell a name
            parts = _files_with(_own_files(journal.path), name)
        files = []
    archives, parts_of_archives = _archives_with(old, name)
    others = _files_with(_other_files(journal.path, set(old)), name)
    return (*tables, *files, *archives, *others), (*parts, *parts_of_archives)


def _write_anew(pulse: Pulse, connection: sqlite3.Connection) -> None:
    """VACUUM, however long it takes: whoever watches the journal sees that it gets on."""
    connection.set_progress_handler(pulse.beat, BEAT_STEPS)
    try:
        connection.execute("VACUUM")
    finally:
        connection.set_progress_handler(None, 0)


def _empty_the_log(journal: Journal) -> None:
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
    raise JournalError("a reader keeps erased values in the write-ahead log; end it, then erase again")


def _tables_with(connection: sqlite3.Connection, name: _Name) -> tuple[list[str], list[str]]:
    """Tables whose text has the name; and those where it is only a part of other words, or a key of ours."""
    whole, parts = [], []
    connection.create_function("occurs", 1, name.occurs)
    names = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY rootpage")
    for (table,) in names.fetchall():
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})") if row[2] == "TEXT"]
        if not columns:
            continue
        text = " || char(10) || ".join(f"coalesce({column}, '')" for column in columns)
        called = ["private" if (table, column) == ("private", "value") else column for column in columns]
        rows = connection.execute(f"SELECT {', '.join(columns)} FROM {table} WHERE occurs({text})")
        found = [any(map(name.stands_in, called, row)) for row in rows]
        if any(found):
            whole.append(f"table {table}")
        elif found:
            parts.append(f"table {table}")
    schema_rows = connection.execute("SELECT name || ' ' || coalesce(sql, '') FROM sqlite_schema").fetchall()
    if name.occurs("\n".join(["SQLite format 3", *(one for (one,) in schema_rows)])):
        parts.append("schema")
    return whole, parts


def _archives_with(paths: list[Path], name: _Name) -> tuple[list[str], list[str]]:
    """The same of archives, by their names."""
    whole: list[str] = []
    parts: list[str] = []
    for file in _files_with(paths, name):
        path = next(path for path in paths if path.name == file)
        with readable(path), segments.reading(path) as lines:
            left = any(
                name.stands_in("body", row.body.decode())
                or name.stands_in("private", part[1].decode() if part else None)
                or name.stands_in("subject_id", row.subject_id.decode())
                for row, part in lines
            )
        (whole if left else parts).append(file)
    return whole, parts


def _own_files(journal: Path) -> list[Path]:
    return [journal.with_name(journal.name + ending) for ending in SIDE_FILES]


def _other_files(journal: Path, archives: set[Path]) -> list[Path]:
    """Files that are none of this journal and may hold what it held: damaged ones, copies, other archives."""
    beside = set(journal.parent.glob(f"{journal.name}*")) - set(_own_files(journal))
    return sorted(beside | (set(segments.directory(journal).glob("*")) - archives))


def _files_with(paths: list[Path], name: _Name) -> list[str]:
    """Names of the files that hold the bytes of the name; archives are unpacked."""
    found = []
    for path in paths:
        if path.is_file():
            with readable(path), _blocks(path) as blocks:
                if _holds(blocks, name.bytes):
                    found.append(path.name)
    return found


@contextmanager
def _blocks(path: Path) -> Iterator[Iterator[bytes]]:
    if path.suffix == ".gz":
        with segments.unpacked(path) as blocks:
            yield blocks
    else:
        with path.open("rb") as file:
            yield iter(lambda: file.read(2**22), b"")


def _holds(blocks: Iterator[bytes], needles: set[bytes]) -> bool:
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
