"""The hash chain: what makes a changed, swapped or missing event show.

Owns the definition of an event's hash: sha256 over the previous hash and every stored column, integers in
eight bytes and texts with their length in front, so that no two different rows give the same bytes. Works on
stored bytes, so that a row which is no valid text any more is still just a wrong row. Pure; any thread.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from typing import NamedTuple

#: What stands before the first event.
GENESIS = bytes(32)
#: Bytes of salt in front of a private value, so that its digest says nothing about it.
SALT_BYTES = 16

_NUMBERS_AND_LENGTHS = struct.Struct(">qq6I")


class Row(NamedTuple):
    """One stored event, its columns in order. `at` is RFC 3339 UTC, `mono_ns` monotonic nanoseconds.

    `private_digest` is the salted digest of the event's private value, empty if it has none.
    """

    seq: int
    at: bytes
    boot_id: bytes
    mono_ns: int
    kind: bytes
    subject_id: bytes
    body: bytes
    private_digest: bytes
    prev_hash: bytes
    hash: bytes


def hash_of(
    prev_hash: bytes,
    seq: int,
    at: bytes,
    boot_id: bytes,
    mono_ns: int,
    kind: bytes,
    subject_id: bytes,
    body: bytes,
    private_digest: bytes,
) -> bytes:
    """sha256 that chains an event to the one before it (32 bytes)."""
    head = _NUMBERS_AND_LENGTHS.pack(
        seq, mono_ns, len(at), len(boot_id), len(kind), len(subject_id), len(body), len(private_digest)
    )
    return hashlib.sha256(
        b"".join((prev_hash, head, at, boot_id, kind, subject_id, body, private_digest))
    ).digest()


def seal(value: bytes) -> tuple[bytes, bytes]:
    """A fresh salt for a private value, and the digest that goes on the chain (32 bytes)."""
    salt = secrets.token_bytes(SALT_BYTES)
    return salt, sealed_digest(salt, value)


def sealed_digest(salt: bytes, value: bytes) -> bytes:
    """sha256 of salt and value."""
    return hashlib.sha256(salt + value).digest()
