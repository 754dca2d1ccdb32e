"""A journal that an earlier commit wrote is opened, migrated, verified and served, and keeps every event."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.build import by_rule, record, rows, signing
from tests.journals import COMMITS, unpack
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.errors import JournalError
from thor_policy.daemon.service import serving
from thor_policy.fleet.batches import JournalSource
from thor_policy.journal import schema
from thor_policy.journal.maintenance.rebuild import rebuild
from thor_policy.journal.reader import Reader
from thor_policy.journal.storage import EVENT_COLUMNS
from thor_policy.journal.verification.verify import verify
from thor_policy.journal.writer import Journal
from thor_policy.testing import load_stub_engine

QUESTION = {
    "subject": {"type": "user", "id": "ivo"},
    "action": {"name": "read"},
    "resource": {"type": "env", "id": "production"},
}


@pytest.fixture(params=COMMITS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The journal of an earlier commit, as it lies in a state directory."""
    return unpack(request.param, tmp_path / "state")


def chain_of(path: Path) -> list[tuple[Any, ...]]:
    return rows(path, f"SELECT {EVENT_COLUMNS} FROM events ORDER BY seq")


def decisions_of(path: Path, columns: str) -> list[tuple[Any, ...]]:
    return rows(path, f"SELECT {columns} FROM decisions ORDER BY seq")


def test_the_files_are_earlier_than_this_version(path: Path) -> None:
    applied = [name for (name,) in rows(path, "SELECT name FROM _sqlite_migrations")]
    assert 0 < len(applied) < len(schema.migrations.names)


def test_before_the_migration_a_shipper_says_what_to_do(path: Path) -> None:
    with pytest.raises(JournalError, match=r"an earlier version wrote .*; start the daemon"):
        JournalSource(path, "thor-1", path.parent / "checkpoints")


def test_a_writer_migrates_it_and_changes_no_event_and_no_row(path: Path) -> None:
    names = ", ".join(
        f'"{name}"' for (name,) in rows(path, "SELECT name FROM pragma_table_info('decisions')")
    )
    events, decisions = chain_of(path), decisions_of(path, names)
    assert len(decisions) > 2
    Journal(path).close()
    assert chain_of(path)[: len(events)] == events
    assert decisions_of(path, names) == decisions
    with Reader(path) as reader:
        assert reader.is_current()
    verdict = verify(path)
    assert (verdict.ok, verdict.complete) == (True, True)
    assert verdict.checkpoint_seq == len(events)


def test_the_chain_goes_on_and_is_signed_beside_the_old_checkpoints(path: Path) -> None:
    before = len(chain_of(path))
    record(path, by_rule(id="later"), checkpoints=signing(path))
    verdict = verify(path)
    assert verdict.ok
    assert verdict.checkpoint_seq > before


def test_what_was_erased_stays_erased(path: Path) -> None:
    Journal(path).close()
    erased = rows(path, "SELECT actor, situation FROM decisions JOIN erasures USING (seq)")
    assert erased
    assert "alice" not in str(erased)


def test_it_is_rebuilt_from_its_events(path: Path, tmp_path: Path) -> None:
    Journal(path).close()
    copy = tmp_path / "copy.db"
    rebuild(path, copy)
    assert decisions_of(copy, "*") == decisions_of(path, "*")


@pytest.mark.parametrize("commit", COMMITS)
def test_a_daemon_serves_it_and_answers_go_on_behind_its_events(commit: str, config: Config) -> None:
    state = config.state_dir / "earlier"
    path = unpack(commit, state)
    before = chain_of(path)
    served = replace(config, state_dir=state, checkpoint_dir=state / "checkpoints")
    with serving(served, load_engine=load_stub_engine), Client(config.endpoint) as client:
        reply = client.evaluate(QUESTION)
    assert chain_of(path)[: len(before)] == before
    with Reader(path) as reader:
        assert reader.trace(reply["context"]["decision_id"])["decision"]["seq"] > len(before)
        earlier = rows(path, "SELECT decision_id FROM decisions ORDER BY seq LIMIT 1")[0][0]
        assert reader.trace(earlier)["decision"]["seq"] <= len(before)
    assert verify(path).ok
