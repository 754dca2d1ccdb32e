"""Ids of decisions and records.

Owns how an id is made. Invariant: ids are unique and sort by the time they were made. Any thread.
"""

from __future__ import annotations

import uuid_utils


def new_id() -> str:
    """An id for a decision or a record: unique, and sorted by the time it was made."""
    return str(uuid_utils.uuid7())
