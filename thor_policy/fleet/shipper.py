"""The shipper: it reads the journal after the last event that a sink has, and hands batches to that sink.

Owns the loop, and what becomes of a sink's refusals. Invariant: where to go on is the sink's own answer,
which it commits together with the events, so a crash of either side loses and doubles nothing; the cursor
in the journal follows behind, and only says what may be archived or erased. While the sink takes a batch,
on a thread of its own, the next one is read; it is dropped unless the sink's answer is where it begins. So
it holds two batches at most. The shipper's process, main thread.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from thor_policy.core.errors import JournalError, ThorPolicyError
from thor_policy.core.records import Shipped
from thor_policy.fleet.batches import BATCH_BYTES, BATCH_EVENTS, Batch, JournalSource
from thor_policy.journal import chain
from thor_policy.journal.checkpoints import Checkpoint

log = logging.getLogger(__name__)

#: Seconds between two looks for new events, and between two notes of how far a sink is.
REST_S, NOTE_S = 0.2, 1.0
#: Seconds until a sink that failed is tried again: doubled from the first to the second.
RETRY_S, MOST_RETRY_S = 1.0, 60.0


class SinkError(ThorPolicyError):
    """A sink cannot be reached, or failed; it is tried again."""


class Forked(ThorPolicyError):
    """The sink has another event with the same number, or more events: a person must look."""

    exit_code = 1


class Position(Struct, frozen=True, kw_only=True):
    """How far a sink is: its newest event, that event's hash, and the newest event that a checkpoint signs.

    `acknowledged` is the newest event that it has for good; None: all of them.
    """

    seq: int
    head: bytes
    signed: int = 0
    acknowledged: int | None = None


class Sink(Protocol):
    """A place that events go to. Every call may raise SinkError.

    Calls come from several threads, one at a time. `keeps_rows`: it takes the rows of a batch too.
    """

    name: str
    keeps_rows: bool

    def position(self, device: str, journal: bytes) -> Position:
        """How far the sink is with a journal: seq 0 and GENESIS before its first event."""

    def write(self, batch: Batch) -> Position:
        """Take a batch, durably, or as much of it as the answer says. Raises Forked."""

    def keep(self, device: str, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint beside the events that it signs. Raises Forked."""

    def report(self, device: str, journal: bytes, kind: str, seq: int, got: bytes | None) -> None:
        """Store the alarm that the journal does not continue what the sink has."""

    def idle(self) -> Position | None:
        """Do what is due without new events; how far the sink is then, None: as before."""

    def close(self) -> None:
        """Release the sink."""


class Shipper:
    """Ships a journal to one sink. `note` records in the journal how far the sink is."""

    def __init__(
        self,
        source: JournalSource,
        sink: Sink,
        *,
        note: Callable[[Shipped], bool] = lambda _: True,
        most: int = BATCH_EVENTS,
        size: int = BATCH_BYTES,
    ) -> None:
        self.sink = sink
        self._source, self._note = source, note
        self._most, self._size = most, size
        self._at: Position | None = None
        self._ahead: Batch | None = None
        self._noted: tuple[int, str | None] | None = None
        #: Events and batches shipped, times that the sink failed.
        self.counters = Counter(events=0, batches=0, failed=0)

    @property
    def acknowledged(self) -> int:
        """The newest event that the sink has for good; 0 before it was asked."""
        if self._at is None:
            return 0
        return self._at.seq if self._at.acknowledged is None else self._at.acknowledged

    def step(self) -> int:
        """Ship one batch; returns how many events the sink took. Raises SinkError, Forked, JournalError."""
        name = self._source.chain()
        if name is None:
            return 0
        if self._at is None:
            self._at = self._agreed(name)
        batch = self._next(self._at)
        if batch is None:
            self._sign(self._at)
            at = self.sink.idle()
            self._at = self._at if at is None else replace(at, signed=self._at.signed)
            return 0
        before = self._at
        self._at = None  # after a failure the sink is asked again
        with ThreadPoolExecutor(1) as writer:
            writing = writer.submit(self.sink.write, batch)
            self._ahead = self._read_ahead(batch)
        at = writing.result()
        self._at = replace(at, signed=before.signed)
        self.counters["events"] += at.seq - before.seq
        self.counters["batches"] += 1
        return len(batch.events)

    def _next(self, at: Position) -> Batch | None:
        """The events after `at`, read ahead or now."""
        ahead, self._ahead = self._ahead, None
        first = None if ahead is None else ahead.events[0][0]
        if first is not None and (first.seq, first.prev_hash) == (at.seq + 1, at.head):
            return ahead
        return self._read(at.seq, at.head)

    def _read(self, seq: int, head: bytes) -> Batch | None:
        return self._source.batch(seq, head, most=self._most, size=self._size, with_rows=self.sink.keeps_rows)

    def _read_ahead(self, batch: Batch) -> Batch | None:
        try:
            return self._read(batch.last.seq, batch.last.hash)
        except JournalError:
            return None  # raised again when it is its turn

    def note(self, alarm: str | None = None) -> None:
        """Record in the journal how far the sink is, if that has changed."""
        state = (self.acknowledged, alarm)
        if state != self._noted and (self._at is not None or alarm is not None):
            seq = self.acknowledged if self._at else (self._noted[0] if self._noted else 0)
            if self._note(Shipped(sink=self.sink.name, seq=seq, alarm=alarm)):
                self._noted = state

    def sealed(self, at: Position | None) -> None:
        """The sink has more for good than its last answer said; None: it has not."""
        if at is not None and self._at is not None:
            self._at = replace(at, signed=self._at.signed)

    def lost(self) -> None:
        """The sink failed: ask it again how far it is."""
        self.counters["failed"] += 1
        self._at = self._ahead = None

    def _agreed(self, name: bytes) -> Position:
        """Where the sink is. Raises Forked where the journal does not have the sink's newest event."""
        device, at = self._source.device, self.sink.position(self._source.device, name)
        own = self._source.hash_at(at.seq)
        if own == at.head or at.seq == 0:
            return replace(at, head=at.head if at.seq else chain.GENESIS)
        kind = "rolled_back" if own is None else "fork"
        self.sink.report(device, name, kind, at.seq, own)
        raise Forked(
            f"the sink {self.sink.name} has event {at.seq} with the hash {at.head.hex()[:16]}, the journal "
            + ("ends before it" if own is None else f"has {own.hex()[:16]}")
            + ": was it restored or rewritten? Nothing was shipped; see docs/how-to/run-a-fleet.md"
        )

    def _sign(self, at: Position) -> None:
        """Hand over the checkpoints that the sink lacks."""
        for checkpoint in self._source.checkpoints(at.signed, at.seq):
            self.sink.keep(self._source.device, checkpoint)
            at = replace(at, signed=checkpoint.seq)
        self._at = at


def drain(shipper: Shipper) -> int:
    """Ship everything that is recorded now; returns how many events. Raises as `Shipper.step`."""
    shipped = 0
    while count := shipper.step():
        shipped += count
    return shipped


class Loop:
    """Ships to several sinks in turn until `wait` says stop: it waits for seconds, and returns True then.

    `clock` gives monotonic seconds. A sink that fails is left alone for a while; one that found a fork for
    good. The others go on.
    """

    def __init__(
        self, shippers: list[Shipper], *, wait: Callable[[float], bool], clock: Callable[[], float]
    ) -> None:
        self._turns = [_Turn(shipper) for shipper in shippers]
        self._wait, self._clock = wait, clock

    def run(self) -> None:
        """Ship until `wait` says stop. Raises Forked when no sink takes events any more."""
        while True:
            busy = [turn.take(self._clock()) for turn in self._turns]
            if all(turn.forked for turn in self._turns):
                raise Forked("; ".join(filter(None, (turn.forked for turn in self._turns))))
            if self._wait(0 if any(busy) else REST_S):
                return


class _Turn:
    """One sink of the loop."""

    def __init__(self, shipper: Shipper) -> None:
        self._shipper = shipper
        self.forked: str | None = None
        self._retry_s, self._due, self._note_due = RETRY_S, 0.0, 0.0

    def take(self, now: float) -> bool:
        """Ship one batch if it is due; True if more may be waiting."""
        if self.forked or now < self._due:
            return False
        try:
            count = self._shipper.step()
        except SinkError as error:
            self._shipper.lost()
            self._due, self._retry_s = now + self._retry_s, min(2 * self._retry_s, MOST_RETRY_S)
            log.warning(
                "the sink %s failed, again in %g s: %s", self._shipper.sink.name, self._due - now, error
            )
            return False
        except Forked as error:
            self.forked = str(error)
            log.error("%s", error)
            self._shipper.note(alarm=str(error)[:1024])
            return False
        self._retry_s = RETRY_S
        if now >= self._note_due:
            self._note_due = now + NOTE_S
            self._shipper.note()
        return count > 0
