"""When the chain is signed, and what a crash left unsigned.

Owns the rule (after so many events or so much time) and the newest event that was signed. Invariant: only a
committed `checkpoint` event is signed, so that a missing checkpoint file shows. Called by the journal's
thread, and before it starts.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from thor_policy.core.errors import JournalError
from thor_policy.journal import events
from thor_policy.journal.checkpoints import Signer, read_directory, store
from thor_policy.journal.events import Event

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoints:
    """When to sign the chain, with which key, and where the signed checkpoints are kept."""

    signer: Signer
    directory: Path
    every_events: int
    every_s: float


class SigningRule:
    """The rule for one journal; `counters` gets `checkpoints` and `checkpoints_failed`."""

    def __init__(self, checkpoints: Checkpoints, counters: Counter[str]) -> None:
        self._checkpoints = checkpoints
        self._counters = counters
        #: Newest event that a checkpoint covers.
        self.signed_seq = 0
        self._signed_s = time.monotonic()

    def is_due(self, seq: int) -> bool:
        """True if the chain, whose newest event is `seq`, should be signed now."""
        late = time.monotonic() - self._signed_s >= self._checkpoints.every_s
        new = seq - self.signed_seq
        return new != 0 and (late or new >= self._checkpoints.every_events)

    def event(self, at: float) -> Event:
        """The `checkpoint` event that is to be committed before `sign`; `at` is Unix time in seconds."""
        return events.checkpoint_event(self._checkpoints.signer.key, at)

    def sign(self, chain: str, seq: int, head: bytes, at: str) -> None:
        """Sign the chain up to the checkpoint event `seq`; a failure is counted and logged."""
        try:
            checkpoint = self._checkpoints.signer.sign(chain, seq, head.hex(), at)
            store(self._checkpoints.directory, checkpoint)
            self._counters["checkpoints"] += 1
        except JournalError as error:
            self._counters["checkpoints_failed"] += 1
            log.error("%s", error)

    def ended(self, seq: int) -> None:
        """Count events and time from here on; `seq` is the newest event."""
        self.signed_seq, self._signed_s = seq, time.monotonic()

    def sign_what_a_crash_left(self, connection: sqlite3.Connection, chain: str) -> None:
        """Sign the newest checkpoint event if a crash came between its commit and its file."""
        newest = connection.execute(
            "SELECT seq, at, hash FROM events WHERE seq = (SELECT max(seq) FROM checkpoints)"
        ).fetchone()
        if newest is None:
            return
        seq, at, head = newest
        self.signed_seq = seq
        signed = {
            (checkpoint.chain, checkpoint.seq)
            for checkpoint in read_directory(self._checkpoints.directory).checkpoints
        }
        if (chain, seq) not in signed:
            self.sign(chain, seq, head, at)
