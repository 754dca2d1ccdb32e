"""The shipper reads ahead while a sink takes a batch; whatever the sink answers, each event arrives once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.build import by_rule, record
from tests.stores import ship
from thor_policy.fleet.batches import Batch, JournalSource
from thor_policy.fleet.postgres import PostgresSink
from thor_policy.fleet.shipper import Position, Shipper, SinkError, drain
from thor_policy.fleet.store import Store
from thor_policy.fleet.verification import verify
from thor_policy.journal.maintenance.erase import erase
from thor_policy.journal.writer import Journal

EVENTS = 12


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal with some events."""
    path = tmp_path / "policy_decisions.db"
    record(path, *(by_rule() for _ in range(EVENTS)))
    return path


class Source(JournalSource):
    """Counts the batches that were read and not yet taken."""

    held = most_held = 0

    def batch(self, *arguments: Any, **options: Any) -> Batch | None:
        batch = super().batch(*arguments, **options)
        self.held += batch is not None
        self.most_held = max(self.held, self.most_held)
        return batch


@pytest.fixture
def source(path: Path) -> Iterator[Source]:
    """The journal as a shipper reads it."""
    source = Source(path, "thor-1", path.parent / "checkpoints")
    yield source
    source.close()


class Half(PostgresSink):
    """Takes the first event of each batch only."""

    def write(self, batch: Batch) -> Position:
        return super().write(replace(batch, events=batch.events[:1]))


class Cut(PostgresSink):
    """Its connection is cut before the second batch is sent, or after it was stored."""

    batches = 0

    def __init__(self, url: str, *, stored: bool) -> None:
        super().__init__(url)
        self._stored = stored

    def write(self, batch: Batch) -> Position:
        self.batches += 1
        if self.batches != 2:
            return super().write(batch)
        if self._stored:
            super().write(batch)
        self.close()
        raise SinkError("the connection was cut")


def check(store: Store) -> None:
    """The store has every event once, with its row, and the chain is whole."""
    (verified,) = verify(store)
    assert (verified.ok, verified.events) == (True, EVENTS)
    assert store.ask("SELECT count(*) FROM decisions") == [{"count": EVENTS}]


def test_what_was_read_ahead_is_dropped_when_a_sink_took_less_than_a_batch(
    source: Source, store: Store, store_url: str
) -> None:
    sink = Half(store_url)
    assert drain(Shipper(source, sink, most=4)) >= EVENTS
    sink.close()
    check(store)


@pytest.mark.parametrize("stored", [False, True])
def test_what_was_read_ahead_is_dropped_when_a_sink_failed(
    source: Source, store: Store, store_url: str, stored: bool
) -> None:
    sink = Cut(store_url, stored=stored)
    shipper = Shipper(source, sink, most=4)
    with pytest.raises(SinkError, match="was cut"):
        drain(shipper)
    shipper.lost()
    assert drain(shipper) == (EVENTS - 8 if stored else EVENTS - 4)
    sink.close()
    check(store)


def test_a_shipper_holds_two_batches_at_most(source: Source, store: Store, store_url: str) -> None:
    class Counting(PostgresSink):
        def write(self, batch: Batch) -> Position:
            at = super().write(batch)
            source.held -= 1
            return at

    sink = Counting(store_url)
    assert drain(Shipper(source, sink, most=1)) == EVENTS
    sink.close()
    assert (source.held, source.most_held) == (0, 2)
    check(store)


def test_an_erasure_reaches_a_store_that_got_the_event_from_a_batch_read_ahead(
    path: Path, source: Source, store: Store, store_url: str
) -> None:
    sink = PostgresSink(store_url)
    shipper = Shipper(source, sink, most=4)
    assert shipper.step() == 4  # the next four are read by now
    with Journal(path) as journal:
        erase(journal, "user:alice", unshipped=True)
    drain(shipper)
    sink.close()
    (verified,) = verify(store)
    assert (verified.ok, verified.erased, verified.unproven) == (True, EVENTS, 0)
    for table in ("private", "decisions"):
        as_text = "encode(t.value, 'escape')" if table == "private" else "t::text"
        assert store.ask(f"SELECT count(*) FROM {table} t WHERE {as_text} ILIKE '%alice%'")[0]["count"] == 0


def test_a_batch_reads_nothing_of_the_events_before_it(path: Path, store: Store, store_url: str) -> None:
    assert ship(path, store_url, most=1) == EVENTS
    while True:  # the server counts what a session did when it ends
        (read,) = store.ask(
            "SELECT sum(n_tup_ins) AS stored, sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) AS read "
            "FROM pg_stat_user_tables WHERE relname LIKE 'events_2%'"
        )
        if read["stored"] == EVENTS:
            break
    assert read["read"] <= 2 * EVENTS
