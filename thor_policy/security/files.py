"""Files that must be safe: those of the state directory, keys, signatures, checkpoints.

Owns whom a file may belong to and who may change it, how a small file is read, and how a file and its name
are written to disk. Invariant: no link is followed to a file of the state directory, and none is used that
another user owns or can change (`flaw`); a file is complete and on disk when its name appears; reading never
blocks on a pipe or a device, and never reads more than a limit. It waits for the disk: any thread, the main
and the engine thread only while they start or load.

SQLite and llama.cpp open files by name and follow links. `check` looks at such a name just before they do.
Between both moments only a user who can write to the directory could exchange the file, and
`check_directory` allows only us and root to write there.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import BinaryIO

#: Largest file that is read by default, in bytes.
MAX_BYTES = 65_536
#: What a name can stand for, by the type in its mode.
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


# ---------------------------------------------------------------- whose it is


def flaw(status: os.stat_result, *, owners: Collection[int] = ()) -> str | None:
    """Why a file must not be used, with the cure, as text that follows its name; None if it may be.

    It must be a regular file of this process's user, of root or of one of `owners`, which no other user can
    change.
    """
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        return f"is {kind}, where a regular file is needed; move it away"
    return _flaw_of_owner(status, owners) or _flaw_of_mode(status)


def check(path: Path, *, owners: Collection[int] = ()) -> os.stat_result | None:
    """The status of a file that something else opens by its name; None if there is none.

    It opens nothing: closing a database file would drop the locks of SQLite in this process. Raises OSError,
    or ValueError with the flaw.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if problem := flaw(status, owners=owners):
        raise ValueError(problem)
    return status


def check_directory(path: Path) -> os.stat_result:
    """The status of a directory in which this process keeps files. Raises OSError, ValueError with the flaw.

    It must belong to this process's user or to root, and no other user may exchange files in it: only they
    can write there, or it is sticky as /tmp is. A link to it must be theirs too. The group may write if it is
    the private group of the owner, as it is under umask 002.
    """
    link, status = path.lstat(), path.stat()
    if problem := _flaw_of_owner(link, ()):
        raise ValueError(problem)
    if not stat.S_ISDIR(status.st_mode):
        raise ValueError("is no directory; move it away, or choose another directory")
    problem = _flaw_of_owner(status, ())
    if problem is None and not status.st_mode & stat.S_ISVTX and not _only_group_is_private(status):
        problem = _flaw_of_mode(status)
    if problem:
        raise ValueError(problem)
    return status


def owners_beside(path: Path) -> tuple[int, ...]:
    """The owner of the directory of a file: who reads a directory trusts its owner. Raises OSError."""
    return (path.parent.stat().st_uid,)


def open_own(path: Path, flags: int, mode: int = 0o600, *, owners: Collection[int] = ()) -> int:
    """Open a file without following a link; returns its descriptor.

    Raises OSError, or ValueError with the flaw: then nothing was changed.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO) and (problem := flaw(path.lstat())):
            raise ValueError(problem) from error
        raise
    if problem := flaw(os.fstat(descriptor), owners=owners):
        os.close(descriptor)
        raise ValueError(problem)
    return descriptor


def set_mode(path: Path, mode: int) -> None:
    """Set the mode of a file, not that of what a link leads to. Raises OSError, ValueError with the flaw."""
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)  # closing it drops no lock of SQLite
    try:
        status = os.fstat(descriptor)
        if problem := flaw(status):
            raise ValueError(problem)
        if stat.S_IMODE(status.st_mode) != mode:
            Path(f"/proc/self/fd/{descriptor}").chmod(mode)
    finally:
        os.close(descriptor)


def _flaw_of_owner(status: os.stat_result, owners: Collection[int]) -> str | None:
    me, owner = os.geteuid(), status.st_uid
    if owner in (me, 0, *owners):
        return None
    return (
        f"belongs to user {_user(owner)}, and this process runs as {_user(me)}; run this as that user, "
        f"run `chown {me}` on it, or move it away"
    )


def _flaw_of_mode(status: os.stat_result) -> str | None:
    if not status.st_mode & 0o022:
        return None
    mode = stat.S_IMODE(status.st_mode)
    return f"has mode {mode:04o}, so other users can change it; run `chmod go-w` on it"


def _only_group_is_private(status: os.stat_result) -> bool:
    """True if only the group can write beside the owner, and the owner alone is in that group."""
    if status.st_mode & 0o002 or status.st_uid == 0:
        return False
    try:
        user, group = pwd.getpwuid(status.st_uid), grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    return user.pw_gid == group.gr_gid and user.pw_name == group.gr_name and {*group.gr_mem} <= {user.pw_name}


def _user(uid: int) -> str:
    try:
        return f"{uid} ({pwd.getpwuid(uid).pw_name})"
    except KeyError:
        return str(uid)


# ---------------------------------------------------------------- reading and writing


def read_own(
    path: Path,
    *,
    max_bytes: int = MAX_BYTES,
    owners: Collection[int] = (),
    check: Callable[[os.stat_result], str | None] = lambda _: None,
) -> bytes:
    """As `read`, of a file that `open_own` may open."""
    with os.fdopen(open_own(path, os.O_RDONLY, owners=owners), "rb") as file:
        return _content(file, max_bytes, check)


def read(
    path: Path,
    flags: int = 0,
    *,
    max_bytes: int = MAX_BYTES,
    check: Callable[[os.stat_result], str | None] = lambda _: None,
) -> bytes:
    """Content of a regular file of at most `max_bytes`. Raises OSError, or ValueError with the problem.

    `flags` are added to those of `os.open`. `check` returns a problem of the file's status, or None.
    """
    with open(path, "rb", opener=lambda name, mode: os.open(name, mode | flags | os.O_NONBLOCK)) as file:
        return _content(file, max_bytes, check)


def _content(file: BinaryIO, max_bytes: int, check: Callable[[os.stat_result], str | None]) -> bytes:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("is no regular file")
    if problem := check(status):
        raise ValueError(problem)
    content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"has more than {max_bytes} bytes")
    return content


def reason(error: OSError | ValueError | RecursionError) -> str:
    """The problem with a file, as text that follows the file's name."""
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "is a symbolic link, where a regular file is needed; move it away"
    return f"cannot be used: {error.strerror}" if isinstance(error, OSError) else str(error)


def place(path: Path, content: bytes, mode: int, *, over: bool = False) -> None:
    """Make a file that is complete and on disk when its name appears.

    With `over` it replaces an existing file. Without `over` an existing file stays, and FileExistsError is
    raised. Raises OSError.
    """
    descriptor, new = tempfile.mkstemp(prefix=".", suffix=".new", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        if over:
            Path(new).replace(path)
        else:
            path.hardlink_to(new)  # a rename would overwrite
    finally:
        Path(new).unlink(missing_ok=True)
        sync(path.parent)  # also if the file existed: its name may not be on disk yet


def rename(source: Path, target: Path) -> None:
    """Give a file that is already on disk its final name, and have the name on disk too."""
    source.replace(target)
    sync(target.parent)


def sync(directory: Path) -> None:
    """Write the file names in a directory to disk (fsync)."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
