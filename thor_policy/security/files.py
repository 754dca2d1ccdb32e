"""Small files that must be safe: keys, signatures, checkpoints.

Owns how such a file is read, and how a file and its name are written to disk. Invariant: a file is complete
and on disk when its name appears; reading never blocks on a pipe or a device, and never reads more than a
limit. It waits for the disk: any thread but the main and the engine thread.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

#: Largest file that is read by default, in bytes.
MAX_BYTES = 65_536


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
