"""What a check of `thorpolicy doctor` reports.

Owns the type of a finding. Any thread.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class Finding(Struct, frozen=True, kw_only=True):
    """One check: `cure` is the command or step that mends a `warning` or `missing`."""

    name: str
    state: Literal["ok", "warning", "missing"]
    detail: str
    cure: str | None = None
