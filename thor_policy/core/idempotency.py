"""The mark by which an event says which idempotency key it answers.

Owns the text of a mark, and the digest in it. Invariant: a mark begins with the digest of caller and key,
by which the journal's index finds it; `Mark.parse` undoes `str`. Pure; any thread.
"""

from __future__ import annotations

import hashlib

import msgspec
from msgspec import Struct

from thor_policy.core.requests import Caller

#: Length of a digest: a sha256 in hex.
DIGEST_CHARS = 64


class Mark(Struct, frozen=True):
    """`digest` is that of caller and key (`digest_of`), `content` the digest of what the request asks."""

    digest: str
    content: str

    def __str__(self) -> str:
        return f"{self.digest}-{self.content}"

    @classmethod
    def parse(cls, text: str) -> Mark:
        """The mark in a recorded event."""
        digest, _, content = text.partition("-")
        return cls(digest, content)


def digest_of(caller: Caller, key: str) -> str:
    """The digest that stands for a key in the journal, different for each caller: `DIGEST_CHARS` hex digits.

    A caller is its user or its CURVE key, not its process: a client may have been restarted in between.
    """
    identity = msgspec.json.encode([caller.transport, caller.uid, caller.key, key])
    return hashlib.sha256(identity).hexdigest()
