"""Shared by tests of a fleet: addresses of a store, shippers of a journal, journals that were rewritten."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from thor_policy.fleet.batches import JournalSource
from thor_policy.fleet.postgres import PostgresSink
from thor_policy.fleet.shipper import Shipper, Sink, drain
from thor_policy.journal import chain


def as_role(url: str, role: str) -> str:
    """The address of the same database for another login."""
    return url.replace("://postgres:", f"://{role}:", 1)


def ship(path: Path, to: str | Sink, device: str = "thor-1", **limits: int) -> int:
    """Ship what is recorded at `path`, as a new process would; returns how many events."""
    sink = PostgresSink(to) if isinstance(to, str) else to
    source = JournalSource(path, device, path.parent / "checkpoints")
    try:
        return drain(Shipper(source, sink, **limits))
    finally:
        source.close()
        if isinstance(to, str):
            sink.close()


def restamp(connection: sqlite3.Connection) -> None:
    """Compute the hash of every event again, as somebody who rewrites a journal would."""
    connection.text_factory = bytes
    stored = connection.execute("SELECT * FROM events ORDER BY seq").fetchall()
    connection.text_factory = str
    head = chain.GENESIS
    for row in map(chain.Row._make, stored):
        link = chain.hash_of(head, *row[:8])
        connection.execute("UPDATE events SET prev_hash = ?, hash = ? WHERE seq = ?", (head, link, row.seq))
        head = link
