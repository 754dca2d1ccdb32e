"""The file of the key of the digests on the chain.

Owns `policy_decisions.key` beside the database: 32 random bytes in hex, of mode 0600. Invariant: a key that
other users can access is not used. The key is in no event, table or archive. Whoever has only those cannot
tell what a digest stands for. Once the key is replaced, nobody can. It waits for the disk: at the start, and
on the thread of a maintenance task.
"""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

from thor_policy.core.errors import JournalError
from thor_policy.core.idempotency import DigestKey
from thor_policy.security import files
from thor_policy.security.signatures import exposed

_KEY = re.compile(rb"[0-9a-f]{64}\n")


def path_of(journal: Path) -> Path:
    """The key file of the journal at a path."""
    return journal.with_suffix(".key")


def open_key(journal: Path) -> DigestKey:
    """The key of the journal at a path; a missing file is made. Raises JournalError."""
    path = path_of(journal)
    try:
        try:
            return _read(path)
        except FileNotFoundError:
            with suppress(FileExistsError):  # another process made it first: use that one
                files.place(path, _new(), 0o600)
            return _read(path)
    except (OSError, ValueError) as error:
        raise JournalError(f"the key {path} {files.reason(error)}") from error


def replace_key(journal: Path) -> DigestKey:
    """Replace the key of the journal at a path, so that all digests so far mean nothing.

    Raises JournalError.
    """
    path = path_of(journal)
    try:
        files.place(path, _new(), 0o600, over=True)
        return _read(path)
    except (OSError, ValueError) as error:
        raise JournalError(f"the key {path} {files.reason(error)}") from error


def _new() -> bytes:
    return f"{secrets.token_hex(32)}\n".encode()


def _read(path: Path) -> DigestKey:
    content = files.read(
        path, os.O_NOFOLLOW, check=lambda status: exposed(status.st_uid, status.st_mode, os.geteuid())
    )
    if not _KEY.fullmatch(content):
        raise ValueError("is no key of digests (64 hex digits); move it away to have one made")
    return DigestKey(bytes.fromhex(content.decode()))
