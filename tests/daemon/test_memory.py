"""The memory of the process: what is freed and given back is resident no longer."""

from __future__ import annotations

from thor_policy.daemon import memory


def test_what_was_freed_between_what_stays_is_given_back() -> None:
    """The allocator keeps it otherwise: what lies behind it is in use."""
    size_bytes = 100_000  # below what is mapped by itself
    parts = [b"x" * size_bytes for _ in range(800)]
    full = memory.resident_bytes()
    del parts[:-1]
    memory.give_back()
    assert full - memory.resident_bytes() > 60_000_000
