"""The memory of the daemon's process: how much it holds, and giving back what is free.

Owns the calls of the C library's allocator. Invariant: they change no value, and where the library is not
glibc, nothing is given back. Any thread but those that answer: giving back a
gigabyte stops other allocations for 0.1 s.
"""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path

#: Memory beyond that of a daemon at rest above which what is free is given back, in bytes, and how often at
#: most, in seconds.
_TRIM_BYTES, _TRIM_EVERY_S = 32 * 2**20, 5
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def resident_bytes() -> int:
    """The memory of this process, without the files that it maps."""
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text(encoding="ascii").split())
    return (resident - shared) * resource.getpagesize()


def give_back() -> None:
    """Give the system what was allocated and is free now."""
    if _trim is not None:
        _trim(0)


class MemoryKeeper:
    """Gives back what a flood left. The memory of the process now is that of a daemon at rest. One thread."""

    def __init__(self, now_ns: int) -> None:
        self._rest_bytes = resident_bytes()
        self._due_ns = now_ns

    def wait_s(self, now_ns: int) -> float:
        """Seconds until the next turn."""
        return max(0, self._due_ns - now_ns) / 1e9

    def turn(self, now_ns: int) -> None:
        """Give back what is free, if that may be much."""
        self._due_ns = now_ns + _TRIM_EVERY_S * 10**9
        if resident_bytes() - self._rest_bytes > _TRIM_BYTES:
            give_back()
