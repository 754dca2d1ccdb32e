"""Small files that others rely on: read without falling into a trap, written whole and to stay.

Owns the ways to read a key, a signature or a checkpoint, and to have a file and its name on disk.
Invariant: a file is whole and on disk when its name appears, and reading waits for nothing: no pipe, no
device, no end that never comes. It waits for the disk: any thread but the main and the engine thread.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

#: Most bytes of a file that is read, unless told otherwise.
MAX_BYTES = 65_536


def read(
    path: Path,
    flags: int = 0,
    *,
    max_bytes: int = MAX_BYTES,
    trouble: Callable[[os.stat_result], str | None] = lambda _: None,
) -> bytes:
    """A regular file, if it is not too large. Raises OSError, and ValueError saying what is wrong with it.

    `flags` are added to those of `os.open`; `trouble` may find something in what the file is.
    """
    with open(path, "rb", opener=lambda name, mode: os.open(name, mode | flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("is no regular file")
        if found := trouble(status):
            raise ValueError(found)
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"has more than {max_bytes} bytes")
    return content


def reason(error: OSError | ValueError | RecursionError) -> str:
    """What is wrong with a file, to follow its name."""
    return f"cannot be used: {error.strerror}" if isinstance(error, OSError) else str(error)


def place(path: Path, content: bytes, mode: int, *, over: bool = False) -> None:
    """Make a file that is whole and on disk when its name appears.

    With `over` in the place of one that is there; without, that one stays. Raises OSError; FileExistsError if
    it is there and stays.
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
        sync(path.parent)  # also if the name was there: it may be as young as this


def rename(source: Path, target: Path) -> None:
    """Give a file that is on disk already its final name, so that the name outlives a power cut."""
    source.replace(target)
    sync(target.parent)


def sync(directory: Path) -> None:
    """Have the names in a directory on disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
