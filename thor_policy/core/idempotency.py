"""The mark by which an event says which idempotency key it answers.

Owns the text of a mark, and the digests in it. Invariant: a mark begins with the digest of caller and key,
by which the journal's index finds it; `Mark.parse` undoes `str`. Without the secret of a `DigestKey` nobody
can tell what a mark stands for, and callers who ask the same get different marks. Pure; any thread.
"""

from __future__ import annotations

import hashlib
import hmac

import msgspec
from msgspec import Struct

from thor_policy.core.requests import Caller, Json

#: Length of a digest: an HMAC-SHA256 in hex.
DIGEST_CHARS = 64


class Mark(Struct, frozen=True):
    """`digest` stands for caller and key, `content` for what the request asks."""

    digest: str
    content: str

    def __str__(self) -> str:
        return f"{self.digest}-{self.content}"

    @classmethod
    def parse(cls, text: str) -> Mark:
        """The mark in a recorded event."""
        digest, _, content = text.partition("-")
        return cls(digest, content)


class DigestKey:
    """The key of all digests of one journal. `secret` is never on the chain."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def mark(self, caller: Caller, key: str, content: str) -> Mark:
        """The mark of a request with the idempotency key `key`; `content` is the sha256 of what it asks.

        A caller is its user or its CURVE key, not its process: a client may have been restarted in between.
        The digest of the content depends on caller and key, so that nobody can find out what another caller
        asked by asking the same.
        """
        digest = self._digest("key", caller.transport, caller.uid, caller.key, key)
        return Mark(digest, self._digest("content", digest, content))

    def of_value(self, source: str, element: str, value: Json) -> str:
        """What stands for a value of a source that is not recorded: equal values have equal digests."""
        return self._digest("value", source, element, msgspec.json.encode(value, order="deterministic").hex())

    def of_content(self, content: bytes) -> str:
        """What stands for the question that an approval is bound to."""
        return self._digest("approval", hashlib.sha256(content).hexdigest())

    def _digest(self, *parts: str | int | None) -> str:
        return hmac.new(self._secret, msgspec.json.encode(parts), hashlib.sha256).hexdigest()
