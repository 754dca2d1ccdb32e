"""What is done to a journal now and then: archive old events, erase a person, build the tables anew.

Owns these long operations. Invariant: each reads on a connection of its own, changes the journal only by
events and short tasks on the journal's thread, and can be cut off anywhere and begun again. One at a time,
on a thread that may wait (a command's, or the daemon's clerk).
"""

from __future__ import annotations

import logging
import re
import sqlite3
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from msgspec import Struct, to_builtins

from thor_policy.core import Json
from thor_policy.errors import JournalError
from thor_policy.journal import archive, chain, events, projections, recall, schema
from thor_policy.journal.archive import SEGMENT_EVENTS, Part
from thor_policy.journal.events import Event
from thor_policy.journal.placing import Placed, Rewrite
from thor_policy.journal.reader import instant, read_only_uri
from thor_policy.journal.storage import BUSY_TIMEOUT_MS, SIDE_FILES
from thor_policy.journal.writer import WAL_WAIT_MS, Journal
from thor_policy.notify import Pulse
from thor_policy.trace import Upkeep

log = logging.getLogger(__name__)

#: Events in one step on the journal's thread.
STEP = 500
#: What stands in place of an erased name.
ERASED = "[erased]"
#: Members of a private part below which keys and numbers are not ours.
FREE = frozenset({"properties", "context", "facts", "metadata", "value"})
#: Columns all of which is like that.
FREE_COLUMNS = frozenset({"metadata", "answer"})
#: How long a short step on the journal's thread may take, in seconds.
PATIENCE_S = 300
#: How often an erasure asks for an empty write-ahead log while a reader needs it, and the pause between.
LOG_TRIES, LOG_PAUSE_S = 20, 0.25
#: Steps of SQLite's machine between two signs of life of a file that is written anew: some milliseconds.
BEAT_STEPS = 10_000

T = TypeVar("T")
Progress = Callable[[int], None]
Found = Iterator[tuple[chain.Row, Part | None]]


# ---------------------------------------------------------------- archive


def archive_before(
    journal: Journal, before: str, *, progress: Progress = lambda _: None
) -> list[archive.Segment]:
    """Move the events before a time (RFC 3339) into compressed segments; the newest event always stays.

    So do the first one whose idempotency key is still remembered, and what came after it.

    `progress` gets the number of events moved. Raises JournalError if the time is none, the disk refuses, or
    the events do not make a chain.
    """
    until = instant(before, "before") or ""
    made: list[archive.Segment] = []
    with closing(_connect(journal.path)) as connection:
        done, head = _tidy(journal, connection)
        last = _last_before(connection, done, until)
        keyed = recall.first_since(connection, time.time() - recall.WINDOW_S)
        last = last if keyed is None else min(last, keyed - 1)
        moved = 0
        for first in range(done + 1, last + 1, SEGMENT_EVENTS):
            segment = _archive_one(journal, connection, first, min(first + SEGMENT_EVENTS - 1, last), head)
            head = bytes.fromhex(segment.head)
            _trim(journal, segment.last_seq)
            made.append(segment)
            moved += segment.events
            progress(moved)
    return made


def _tidy(journal: Journal, connection: sqlite3.Connection) -> tuple[int, bytes]:
    """Finish what was cut off; returns number and hash of the last archived event."""
    archive.sweep(connection, journal.path, journal.chain)
    (low,) = connection.execute("SELECT coalesce(min(seq), 0) FROM events").fetchone()
    done, head = 0, chain.GENESIS
    for segment in archive.segments(connection, journal.path):
        if segment.last_seq >= low:
            if not archive.is_there(segment):  # a copy of the journal, which has its events back
                break
            _trim(journal, segment.last_seq)
        done, head = segment.last_seq, bytes.fromhex(segment.head)
    return done, head


def _last_before(connection: sqlite3.Connection, done: int, until: str) -> int:
    """The last event of those that are older than `until` and that no younger event precedes."""
    (newest,) = connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()
    seq = done
    while rows := connection.execute(
        "SELECT seq, at FROM events WHERE seq > ? AND seq < ? ORDER BY seq LIMIT 5000", (seq, newest)
    ).fetchall():
        for number, at in rows:
            if at >= until:
                return seq
            seq = int(number)
    return seq


def _archive_one(
    journal: Journal, connection: sqlite3.Connection, first: int, last: int, head: bytes
) -> archive.Segment:
    """Put events `first` to `last` in a file, and say so on the chain; `head` is the hash before them."""
    path = archive.directory(journal.path) / archive.file_name(journal.chain, first, last)
    end = archive.write_segment(path, _sound(archive.live_events(connection, first, last), first, last, head))
    body: dict[str, Json] = {
        "file": path.name,
        "first_seq": first,
        "last_seq": last,
        "events": last - first + 1,
        "head": end.hash.hex(),
        "chain": journal.chain,
    }
    _commit(journal, Event(kind="archived", subject_id=path.name, at=time.time(), body=body))
    return archive.Segment(
        path=path, first_seq=first, last_seq=last, events=last - first + 1, head=end.hash.hex()
    )


def _sound(found: Found, first: int, last: int, head: bytes) -> Found:
    """The events `first` to `last`, as long as they make a chain that continues `head`."""
    more = "`thorpolicy log verify` says more"
    for row, part in found:
        if row.seq != first:
            raise JournalError(f"event {first} is missing; {more}")
        if row.prev_hash != head or chain.hash_of(row.prev_hash, *row[:8]) != row.hash:
            raise JournalError(f"event {row.seq} does not match its hash; {more}")
        first, head = row.seq + 1, row.hash
        yield row, part
    if first != last + 1:
        raise JournalError(f"event {first} is missing; {more}")


def _trim(journal: Journal, last: int) -> None:
    """Take archived events out of the database, some at a time."""

    def step(connection: sqlite3.Connection) -> int:
        with _transaction(connection):
            (first,) = connection.execute("SELECT min(seq) FROM events").fetchone()
            until = min((first or last) + STEP - 1, last)
            connection.execute("DELETE FROM private WHERE seq <= ?", (until,))
            return connection.execute("DELETE FROM events WHERE seq <= ?", (until,)).rowcount

    while _done(journal.run(step)):
        pass


# ---------------------------------------------------------------- erase


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
    with closing(_connect(journal.path)) as connection:
        seen, _ = _tidy(journal, connection)
        old = [one for one in archive.segments(connection, journal.path) if one.last_seq <= seen]
        hunt = _Hunt(kind, name, _erased_decisions(connection))
        for segment in old:
            with _readable(segment.path), archive.reading(segment.path) as lines:
                found = [one for row, part in lines if (one := hunt.judge(row, part, archived=True))]
            _record(journal, found, by)
            if found:
                _rewrite_segment(segment, {one.seq: one.private for one in found})
            archived, looked = archived + len(found), looked + segment.events
            progress(looked)
        for _ in range(2):  # the second time for what came in meanwhile
            (newest,) = connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()
            live = archive.live_events(connection, seen + 1, newest)
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
        return kind == "reported" and private.get("agent") == self._name


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
        chosen = found[start : start + STEP]
        parts = {str(one.seq): one.digest.hex() for one in chosen}
        body: dict[str, Json] = {"parts": parts, **by}
        _commit(journal, Event(kind="erased", subject_id="erased", at=time.time(), body=body, effect=chosen))


def _rewrite_segment(segment: archive.Segment, left: dict[int, tuple[bytes, str] | None]) -> None:
    with _readable(segment.path), archive.reading(segment.path) as lines:
        archive.write_segment(segment.path, _replaced(lines, left))


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
        _done(journal.run(partial(_write_anew, journal.pulse)), patience_s=None)
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
        if _done(journal.run(step)) == 0:
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
        with _readable(path), archive.reading(path) as lines:
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
    return sorted(beside | (set(archive.directory(journal).glob("*")) - archives))


def _files_with(paths: list[Path], name: _Name) -> list[str]:
    """Names of the files that hold the bytes of the name; archives are unpacked."""
    found = []
    for path in paths:
        if path.is_file():
            with _readable(path), _blocks(path) as blocks:
                if _holds(blocks, name.bytes):
                    found.append(path.name)
    return found


@contextmanager
def _blocks(path: Path) -> Iterator[Iterator[bytes]]:
    if path.suffix == ".gz":
        with archive.unpacked(path) as blocks:
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


# ---------------------------------------------------------------- rebuild


def rebuild(
    source: Path, target: Path, *, at: str | int | None = None, progress: Progress = lambda _: None
) -> int:
    """Write a new journal from the events of another, with every table made anew; returns the newest event.

    `at` ends it at an event's number or before a time (RFC 3339): the journal as it was then, but for what
    was erased since (a copy that ends before the erasure of what it holds does not verify: no event of its
    own tells of it). Archived events come back. Raises JournalError if `target` exists.
    """
    until = instant(at, "at") if isinstance(at, str) else None
    if target.exists():
        raise JournalError(f"{target} exists already; name a new file")
    if not source.is_file():
        raise JournalError(f"there is no journal at {source}")
    half = target.with_name(f".{target.name}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        _remove(half)
        with _readable(source):
            newest = _copy(source, half, until, at if isinstance(at, int) else None, progress)
        half.rename(target)
    except OSError as error:
        raise JournalError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        _remove(half)
    return newest


def _remove(path: Path) -> None:
    for ending in SIDE_FILES:
        path.with_name(path.name + ending).unlink(missing_ok=True)


def _copy(source: Path, target: Path, until: str | None, last: int | None, progress: Progress) -> int:
    target.touch(mode=0o640)
    with closing(_connect(source)) as reading, closing(sqlite3.connect(target, isolation_level=None)) as new:
        new.execute("PRAGMA journal_mode = WAL")
        schema.migrate(new)
        new.execute("PRAGMA synchronous = OFF")
        found = _until(archive.all_events(reading, source), until, last)
        newest = 0
        while page := list(islice(found, STEP)):
            placed = Placed(newest, page[0][0].prev_hash, b"")
            for row, part in page:
                placed.again(row, part)
            with _transaction(new):
                placed.write(new)
            newest = placed.seq
            progress(newest)
        new.executemany(
            "INSERT INTO erasures VALUES (?, ?, ?)",
            reading.execute("SELECT seq, by_seq, digest FROM erasures WHERE seq <= ?", (newest,)),
        )
        new.execute("PRAGMA synchronous = FULL")
        new.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return newest


def rebuild_in_place(journal: Journal, *, progress: Progress = lambda _: None) -> int:
    """Make every table of an open journal anew from its events, in one transaction; returns how many.

    Raises JournalError if an event cannot be read; then nothing has changed.
    """
    with closing(_connect(journal.path)) as reading:

        def task(connection: sqlite3.Connection) -> int:
            with _transaction(connection):
                for table in projections.TABLES:
                    connection.execute(f"DELETE FROM {table}")
                count = 0
                found = archive.all_events(reading, journal.path)
                while page := list(islice(found, STEP)):
                    placed = Placed(page[0][0].seq - 1, b"", b"")
                    for row, part in page:
                        placed.again(row, part, tables_only=True)
                    placed.write(connection)
                    count += len(page)
                    progress(count)
            return count

        with _readable(journal.path):
            return journal.run(task).result()


def _until(found: Found, until: str | None, last: int | None) -> Found:
    for row, part in found:
        if (until is not None and row.at.decode() >= until) or (last is not None and row.seq > last):
            return
        yield row, part


# ---------------------------------------------------------------- all of them


def tend(
    journal: Journal,
    upkeep: Upkeep,
    *,
    by_uid: int | None = None,
    by_key: str | None = None,
    progress: Progress = lambda _: None,
) -> dict[str, Json]:
    """Do what is asked for, and say what was done. Raises JournalError."""
    if upkeep.task == "erase":
        erasure = erase(journal, upkeep.actor or "", by_uid=by_uid, by_key=by_key, progress=progress)
        done: dict[str, Json] = to_builtins(erasure)
        return done
    if upkeep.task == "archive":
        made = archive_before(journal, upkeep.before or "", progress=progress)
        return {"archived": sum(one.events for one in made), "segments": [one.path.name for one in made]}
    if upkeep.task == "calibrate" and upkeep.calibration is not None:
        _commit(journal, events.calibrated(upkeep.calibration, time.time()))
        return {"calibration": upkeep.calibration.digest}
    if upkeep.task == "counterfactual" and upkeep.counterfactuals is not None:
        return _keep_counterfactuals(journal, events.redecided(upkeep.counterfactuals, time.time()))
    if upkeep.task == "promote" and upkeep.promotion is not None:
        event = events.promoted(upkeep.promotion, time.time(), by_uid=by_uid, by_key=by_key)
        _commit(journal, event)
        return {"promotion": upkeep.promotion.sha256}
    return {"checkpoint": _done(journal.checkpoint())}


def _keep_counterfactuals(journal: Journal, told: list[Event]) -> dict[str, Json]:
    """Record them, and say how many there are and which decisions are unknown here."""
    fates = _done(journal.commit_all(told))
    unknown = [event.subject_id for event, fate in zip(told, fates, strict=True) if fate.error == "not_found"]
    failed = [fate for fate in fates if fate.error not in (None, "not_found")]
    if failed:
        raise JournalError(f"the journal could not record it: {failed[0].message or failed[0].error}")
    return {"recorded": len(told) - len(unknown), "unknown": unknown}


def _commit(journal: Journal, event: Event) -> None:
    fate = _done(journal.commit(event))
    if fate.error is not None:
        raise JournalError(f"the journal could not record it: {fate.message or fate.error}")


def _done(future: Future[T], patience_s: float | None = PATIENCE_S) -> T:
    """The result of a step on the journal's thread (None: however long it takes). Raises JournalError."""
    try:
        return future.result(patience_s)
    except TimeoutError as error:
        raise JournalError(f"the journal did not come to it within {patience_s} s") from error
    except sqlite3.Error as error:
        raise JournalError(f"the journal failed: {error}") from error


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All that is written inside, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What cannot be read inside is a JournalError that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise JournalError(f"the file {error.filename} is missing; put it back, then begin again") from error
    except (sqlite3.Error, OSError, ValueError) as error:
        raise JournalError(f"{path} cannot be read: {error}") from error


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(read_only_uri(path), uri=True, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA busy_timeout = 5000")
    return connection
