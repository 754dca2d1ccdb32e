"""The hash chain, which reveals a changed, swapped or missing event.

Owns the definition of an event's hash: sha256 over the previous hash and every stored column. Invariant: two
different rows never give the same bytes, because an integer takes eight bytes and a text has its length in
front. The functions work on stored bytes, so a row with invalid text is a wrong row, not an error. Pure; any
thread.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from typing import NamedTuple

#: The `prev_hash` of the first event.
GENESIS = bytes(32)
#: Bytes of salt in front of a private value, so that its digest reveals nothing about it.
SALT_BYTES = 16

_NUMBERS_AND_LENGTHS = struct.Struct(">qq6I")


class Row(NamedTuple):
    """One stored event: its columns, in order. `at` is RFC 3339 in UTC, `mono_ns` is monotonic nanoseconds.

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
    """The sha256 that chains an event to the event before it (32 bytes)."""
    head = _NUMBERS_AND_LENGTHS.pack(
        seq, mono_ns, len(at), len(boot_id), len(kind), len(subject_id), len(body), len(private_digest)
    )
    return hashlib.sha256(
        b"".join((prev_hash, head, at, boot_id, kind, subject_id, body, private_digest))
    ).digest()


def seal(value: bytes) -> tuple[bytes, bytes]:
    """A new salt for a private value, and the digest that goes on the chain (32 bytes)."""
    salt = secrets.token_bytes(SALT_BYTES)
    return salt, sealed_digest(salt, value)


def sealed_digest(salt: bytes, value: bytes) -> bytes:
    """The sha256 of salt and value."""
    return hashlib.sha256(salt + value).digest()
