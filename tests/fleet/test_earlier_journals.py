"""The journal of an earlier commit is shipped whole: to the store, which verifies it, and to segments."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.build import by_rule, record, rows
from tests.journals import COMMITS, unpack
from tests.stores import ship
from thor_policy.fleet.segments import Limits, SegmentSink, check_segments
from thor_policy.fleet.store import Store
from thor_policy.fleet.verification import verify
from thor_policy.journal.checkpoints import read_directory


@pytest.mark.parametrize("commit", COMMITS)
def test_the_journal_of_an_earlier_commit_is_shipped_and_verified_by_the_store(
    commit: str, tmp_path: Path, store: Store, store_url: str
) -> None:
    path = unpack(commit, tmp_path / "state")
    record(path, by_rule(id="later"))  # the first writer migrates it
    (events,) = rows(path, "SELECT count(*) FROM events")[0]
    assert ship(path, store_url, most=7) == events
    keys = read_directory(path.parent / "checkpoints").public_keys
    (verified,) = verify(store, keys=keys)
    assert (verified.ok, verified.events, verified.unproven) == (True, events, 0)
    assert verified.erased > 0
    assert (verified.signed or 0) > 0
    assert store.ask("SELECT * FROM without_rows") == []
    assert store.ask("SELECT count(*) FROM decisions") == [
        {"count": rows(path, "SELECT count(*) FROM decisions")[0][0]}
    ]


@pytest.mark.parametrize("commit", COMMITS)
def test_the_journal_of_an_earlier_commit_is_shipped_to_segments(commit: str, tmp_path: Path) -> None:
    path = unpack(commit, tmp_path / "state")
    record(path, by_rule(id="later"))
    sink = SegmentSink(tmp_path / "segments", Limits(events=5, seconds=60), clock=lambda: 0.0)
    (events,) = rows(path, "SELECT count(*) FROM events")[0]
    assert ship(path, sink, most=5) == events
    sink.flush()
    assert [(row["events"], row["problem"]) for row in check_segments(tmp_path / "segments")] == [
        (events, None)
    ]
