"""The journal's file and the disk under it: the lock, opening, free space, and damaged files.

Owns the state directory while the process lives (by an flock), the settings of the connection, and the
ballast file. Invariant: a damaged file is renamed and kept; it is never overwritten and never written to.
Called by the journal's thread, and before it starts.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Collection
from contextlib import ExitStack, closing, suppress
from functools import lru_cache
from pathlib import Path

from msgspec import Struct, structs

from thor_policy.core.errors import AlreadyRunning, JournalError
from thor_policy.journal import chain, schema
from thor_policy.security import files

log = logging.getLogger(__name__)

#: How long a transaction waits for a lock, which no other process should hold.
BUSY_TIMEOUT_MS = 5_000
#: Pages that a commit may leave in the write-ahead log before SQLite copies them back (64 MiB of 4 KiB).
CHECKPOINT_PAGES = 16_000
#: SQLite's page cache, in KiB. Four times as much gave no more events a second.
PAGE_CACHE_KIB = 8_192
#: Number of newest events whose hashes are checked when a file is opened for writing.
TAIL_EVENTS = 100
#: Free space below which a disk error counts as a full disk, because SQLite does not always say so.
NO_ROOM_BYTES = 2**20
#: The kernel's answer about the disk is used for this time: each look lets other threads go first.
_RECENT_NS = 10_000_000
#: Suffixes of the database file and of the files that SQLite keeps beside it.
SIDE_FILES = ("", "-wal", "-shm")

#: Columns of an event in the order of `chain.Row`.
EVENT_COLUMNS = "seq, at, boot_id, mono_ns, kind, subject_id, body, private_digest, prev_hash, hash"


class Place(Struct, frozen=True):
    """Which files a journal is: device and inode of its directory, its database and its write-ahead log."""

    directory: tuple[int, int]
    database: tuple[int, int] | None
    wal: tuple[int, int] | None

    @classmethod
    def of(cls, path: Path) -> Place:
        """The files that the names stand for now, None for one that is missing. Raises OSError."""
        directory, database, wal = _names(path)
        at = os.stat(directory)  # noqa: PTH116  a third of the time of pathlib, before each commit
        return cls((at.st_dev, at.st_ino), _identity(database), _identity(wal))

    def difference(self, path: Path, *, with_wal: bool = True) -> str | None:
        """Which of the names of the journal at `path` no longer stands for its file; None if each does."""
        try:
            now = Place.of(path)
        except OSError as error:
            return f"{error.filename} cannot be reached ({error.strerror})"
        if now.directory != self.directory:
            return f"{path.parent} is another directory"
        if now.database != self.database:
            return f"{path} is {'another file' if now.database else 'gone'}"
        if with_wal and now.wal != self.wal:
            return f"{path}-wal is {'another file' if now.wal else 'gone'}"
        return None


class Opened(Struct, frozen=True, kw_only=True):
    """A journal file ready to be written.

    `seq` and `head` are those of the newest event (0 and GENESIS before the first). `first` is the hash of
    event 1, which names the chain. `aside` is the new path of a damaged file, `why` the damage.
    """

    connection: sqlite3.Connection
    place: Place
    seq: int
    head: bytes
    first: bytes
    aside: Path | None = None
    why: str | None = None


def take_lock(path: Path) -> int:
    """Take the lock beside the journal; returns its descriptor. Raises AlreadyRunning, JournalError."""
    file = path.with_suffix(".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        files.check_directory(path.parent)
    except ValueError as error:
        raise JournalError(f"the state directory {path.parent} {error}") from error
    except OSError as error:
        raise JournalError(f"cannot write in the state directory {path.parent}: {error.strerror}") from error
    try:
        lock = files.open_own(file, os.O_RDWR | os.O_CREAT, 0o640)
    except (OSError, ValueError) as error:
        raise JournalError(f"the lock {file} {files.reason(error)}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        os.close(lock)
        raise AlreadyRunning(
            f"the state directory {path.parent} is in use by process {holder or 'unknown'}; "
            "stop it, or choose another with --state-dir"
        ) from error
    with suppress(OSError):  # the process id is a courtesy; a full disk must not prevent the lock
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def open_for_writing(path: Path, synchronous: str, disk_space: DiskSpace) -> Opened:
    """Open the journal, or create it. A damaged one is renamed, and a new one begins in its place.

    On a full disk the ballast is released to make room. Raises JournalError where a new file would not help:
    wrong permissions, a missing directory, a file of a newer version or from before 0.1.0.
    """
    try:
        return _open(path, synchronous)
    except JournalError as error:
        if not disk_space.is_full():
            raise
        if disk_space.release():
            return open_for_writing(path, synchronous, disk_space)
        raise JournalError(f"{error}; the disk is full: free space on it") from error
    except _Damaged as error:
        aside = _rename_damaged(path)
        log.critical(
            "%s is damaged (%s); it is kept as %s, and a new journal begins", path, error, aside.name
        )
        opened = _open(path, synchronous)
        return structs.replace(opened, aside=aside, why=str(error))


def reopen(path: Path, synchronous: str) -> Opened:
    """Open the file again after a disk error. Raises JournalError if it cannot be read to its end."""
    try:
        return _open(path, synchronous)
    except _Damaged as error:
        raise JournalError(f"{path} is damaged: {error}") from error


class _Damaged(Exception):
    """The content of the file is not that of a journal."""


def _open(path: Path, synchronous: str) -> Opened:
    with ExitStack() as undo:
        try:
            before = _checked(path)
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            undo.callback(connection.close)
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            schema.refuse_earlier(connection, path)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            connection.execute(f"PRAGMA cache_size = -{PAGE_CACHE_KIB}")
            connection.execute("PRAGMA secure_delete = ON")  # overwrite what is erased
            schema.migrate(connection)
            place = Place.of(path)
            if place.database != before:
                raise JournalError(f"{path} was exchanged while it was opened; start again")
            seq, head = _check_tail(connection)
            first = connection.execute("SELECT hash FROM events WHERE seq = 1").fetchone()
            if first is None:  # archived
                first = connection.execute("SELECT chain FROM archives LIMIT 1").fetchone()
                first = first and (bytes.fromhex(first[0]),)
        except sqlite3.DatabaseError as error:
            if _is_damage(error):
                raise _Damaged(str(error)) from error
            raise JournalError(f"{path} cannot be used as a journal: {error}") from error
        except OSError as error:
            raise JournalError(f"{path} cannot be used as a journal: {error}") from error
        undo.pop_all()
    first_hash = first[0] if first else b""
    return Opened(connection=connection, place=place, seq=seq, head=head, first=first_hash)


def check_files(path: Path, *, owners: Collection[int] = ()) -> None:
    """Check the database file and those beside it, which SQLite opens by their names. Raises JournalError."""
    for ending in (*SIDE_FILES, "-journal"):
        file = path.with_name(path.name + ending)
        try:
            files.check(file, owners=owners)
        except (OSError, ValueError) as error:
            raise JournalError(f"{file} {files.reason(error)}") from error


def _checked(path: Path) -> tuple[int, int] | None:
    """Make the database file if it is missing; device and inode of a file that may be used."""
    if not os.path.lexists(path):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640))
    check_files(path)
    try:
        files.set_mode(path, 0o640)  # before SQLite gives the log beside it the same mode
    except ValueError as error:
        raise JournalError(f"{path} {error}") from error
    return Place.of(path).database


@lru_cache
def _names(path: Path) -> tuple[str, str, str]:
    return str(path.parent), str(path), f"{path}-wal"


def _identity(name: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(name)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _check_tail(connection: sqlite3.Connection) -> tuple[int, bytes]:
    """Sequence number and hash of the newest event. Raises _Damaged if the newest events are not sound."""
    with closing(connection.cursor()) as cursor:
        connection.text_factory = bytes
        rows = cursor.execute(
            f"SELECT {EVENT_COLUMNS} FROM events ORDER BY seq DESC LIMIT {TAIL_EVENTS}"
        ).fetchall()
        connection.text_factory = str
    for row in map(chain.Row._make, rows):
        if chain.hash_of(row.prev_hash, *row[:8]) != row.hash:
            raise _Damaged(f"the content of event {row.seq} does not match its hash")
    return (rows[0][0], rows[0][9]) if rows else (0, chain.GENESIS)


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """True for an error of the file's content, which only another file can cure."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    missing = "no such table" in str(error) or "no such column" in str(error)
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or missing


def _rename_damaged(path: Path) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    number = 0
    while (aside := path.with_name(f"{path.name}.damaged-{stamp}{f'-{number}' if number else ''}")).exists():
        number += 1
    for ending in SIDE_FILES:
        with suppress(FileNotFoundError):
            path.with_name(path.name + ending).rename(aside.with_name(aside.name + ending))
    return aside


# ---------------------------------------------------------------- disk space


class DiskSpace:
    """The free space of the disk, and a ballast file that is deleted when the disk is full.

    Below `min_free_mb` no new request should be admitted. The ballast's space lets admitted requests be
    recorded. The ballast is restored when there is room for it again.
    """

    def __init__(self, directory: Path, *, min_free_mb: int, ballast_mb: int) -> None:
        self._directory = directory
        self._ballast = directory / "ballast"
        self._min_free = min_free_mb * 2**20
        self._ballast_bytes = ballast_mb * 2**20
        self._warned = ""
        self._recent = (0, 0)

    def free_bytes(self) -> int:
        """Bytes that this process may still write. Raises OSError."""
        status = os.statvfs(self._directory)
        return status.f_bavail * status.f_frsize

    def recent_free_bytes(self, now_ns: int) -> int:
        """What `free_bytes` says; where that was enough, up to 10 ms before `now_ns` (monotonic). Any thread.

        Raises OSError.
        """
        read_ns, free = self._recent
        if free < self._min_free or not read_ns <= now_ns < read_ns + _RECENT_NS:
            free = self.free_bytes()
            self._recent = now_ns, free
        return free

    @property
    def min_free_bytes(self) -> int:
        """Free bytes below which no new request should be admitted."""
        return self._min_free

    def is_full(self) -> bool:
        """True if a disk error means that the disk is full."""
        try:
            return self.free_bytes() < NO_ROOM_BYTES
        except OSError:
            return False

    @property
    def has_ballast(self) -> bool:
        """True while the ballast file exists."""
        try:
            return files.check(self._ballast) is not None
        except (OSError, ValueError):  # a disk that fails, or a file that is not our ballast
            return False

    def release(self) -> bool:
        """Delete the ballast; False if there is none."""
        if not self.has_ballast:
            return False
        try:
            self._ballast.unlink()
        except OSError:
            return False
        log.error("the disk of %s is full; the ballast was deleted", self._directory)
        return True

    def restore(self) -> None:
        """Write the ballast again if it is missing and there is room for it twice."""
        if self._ballast_bytes == 0 or self.has_ballast:
            return
        try:
            if self.free_bytes() < self._min_free + 2 * self._ballast_bytes:
                return
            descriptor = os.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self._warn(error)
            return
        try:
            os.posix_fallocate(descriptor, 0, self._ballast_bytes)
        except OSError as error:
            self._warn(error)
            with suppress(OSError):
                self._ballast.unlink()
        finally:
            os.close(descriptor)

    def _warn(self, error: OSError) -> None:
        if str(error) != self._warned:
            self._warned = str(error)
            log.warning("the ballast %s cannot be written: %s", self._ballast, error.strerror)
