"""The hash chain: what makes a changed, swapped or missing event show.

Owns the definition of an event's hash: sha256 over the previous hash and every stored column, each with
its type and length in front, so that no two different rows give the same bytes. Pure; any thread.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import NamedTuple

#: What stands before the first event.
GENESIS = bytes(32)
#: Bytes of salt in front of an erasable value, so that its digest says nothing about it.
SALT_BYTES = 16


class Row(NamedTuple):
    """One stored event, its columns in order; `at` is RFC 3339 UTC, `mono_ns` monotonic nanoseconds."""

    seq: int
    at: str
    boot_id: str
    mono_ns: int
    kind: str
    subject_id: str
    body: str
    prev_hash: bytes
    hash: bytes


def hash_of(
    prev_hash: bytes, seq: int, at: str, boot_id: str, mono_ns: int, kind: str, subject_id: str, body: str
) -> bytes:
    """sha256 that chains an event to the one before it (32 bytes)."""
    parts = [prev_hash]
    for tag, value in (
        (b"i", seq),
        (b"t", at),
        (b"t", boot_id),
        (b"i", mono_ns),
        (b"t", kind),
        (b"t", subject_id),
        (b"t", body),
    ):
        raw = str(value).encode("utf-8", "surrogatepass")
        parts.append(tag + len(raw).to_bytes(8, "big"))
        parts.append(raw)
    return hashlib.sha256(b"".join(parts)).digest()


def seal(value: str) -> tuple[bytes, str]:
    """A fresh salt for an erasable value, and the digest that goes on the chain."""
    salt = secrets.token_bytes(SALT_BYTES)
    return salt, sealed_digest(salt, value)


def sealed_digest(salt: bytes, value: str) -> str:
    """sha256 of salt and value, in hex."""
    return hashlib.sha256(salt + value.encode("utf-8")).hexdigest()
