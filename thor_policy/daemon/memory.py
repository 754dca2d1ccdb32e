"""The memory of the daemon's process: how much it holds, and giving back what is free.

Owns the calls of the C library's allocator. Invariant: they change no value, and where the library is not
glibc, nothing is given back. Any thread; giving back a gigabyte stops other allocations for 0.1 s.
"""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def resident_bytes() -> int:
    """The memory of this process, without the files that it maps."""
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text(encoding="ascii").split())
    return (resident - shared) * resource.getpagesize()


def give_back() -> None:
    """Give the system what was allocated and is free now."""
    if _trim is not None:
        _trim(0)
