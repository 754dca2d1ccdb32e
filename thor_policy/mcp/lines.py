"""Lines of a stream, with a limit: what is longer is skipped and counted, never held in memory.

Owns the cutting of what was read into lines. Invariant: it holds at most `limit` bytes. Belongs to one
thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

#: Bytes of one read.
READ_BYTES = 65_536


class TooLong:
    """Stands for a line beyond the limit."""


TOO_LONG: Final = TooLong()


class LineCutter:
    """Cuts pieces of a stream into lines of at most `limit` bytes, without their ends."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._begun = bytearray()
        self._skipping = False

    def lines(self, piece: bytes) -> Iterator[bytes | TooLong]:
        """The lines that a piece completes; blank ones are left out."""
        *ended, rest = piece.split(b"\n")
        for part in ended:
            self._add(part)
            line, skipped = bytes(self._begun), self._skipping
            self._begun.clear()
            self._skipping = False
            if skipped:
                yield TOO_LONG
            elif line.strip():
                yield line
        self._add(rest)

    def _add(self, part: bytes) -> None:
        if self._skipping or len(self._begun) + len(part) > self._limit:
            self._skipping = True
            self._begun.clear()
        else:
            self._begun += part


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of it. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
