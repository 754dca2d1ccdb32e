"""The writer of the journal: it commits before it acknowledges, is bounded, and records its losses."""

from __future__ import annotations

import logging
import os
import queue
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.build import (
    ASKED,
    CALLER,
    EXPLAINED,
    NOON,
    WAIT_S,
    Fates,
    about,
    by_model,
    by_rule,
    note,
    one_of_each,
    record,
    row,
    rows,
    sent,
    signing,
    stalled,
    writing,
)
from thor_policy.core import records
from thor_policy.core.decisions import Floor
from thor_policy.core.errors import AlreadyRunning, JournalError
from thor_policy.core.precedents import Precedent
from thor_policy.core.requests import Json
from thor_policy.core.results import Committed
from thor_policy.journal import chain, checkpoints, events, writer
from thor_policy.journal.events import Event
from thor_policy.journal.storage import DiskSpace
from thor_policy.journal.verification.verify import verify
from thor_policy.journal.writer import MAX_BATCH, Journal
from thor_policy.telemetry import clocks
from thor_policy.testing import HastyJournal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def fates() -> Fates:
    return Fates()


@pytest.fixture
def journal(path: Path, fates: Fates) -> Iterator[Journal]:
    with Journal(path, on_committed=fates) as journal:
        yield journal


def kinds(path: Path) -> list[str]:
    return [kind for (kind,) in rows(path, "SELECT kind FROM events ORDER BY seq")]


# ---------------------------------------------------------------- recorded, then acknowledged


def test_a_decision_is_acknowledged_only_after_its_commit(path: Path) -> None:
    seen: queue.SimpleQueue[tuple[list[Committed], list[Any], list[Any]]] = queue.SimpleQueue()

    def look(batch: list[Committed]) -> None:
        stored = rows(path, "SELECT seq FROM events ORDER BY seq")
        shown = rows(path, "SELECT decision_id, reasoning FROM decisions ORDER BY seq")
        seen.put((batch, stored, shown))

    decision = by_model()
    with Journal(path, on_committed=look) as journal:
        journal.decided(decision, ticket=7)
        (fate,), stored, shown = seen.get(timeout=WAIT_S)
        assert (fate.ticket, fate.kind, fate.seq, fate.error) == (7, "decision", 1, None)
        assert stored == [(1,)]
        assert shown == [(decision.id, None)]

        journal.explained(decision.id, EXPLAINED, NOON + 1, ticket=7)
        (fate,), stored, shown = seen.get(timeout=WAIT_S)
        assert (fate.ticket, fate.kind, fate.seq, fate.error) == (7, "explanation", 2, None)
        assert stored == [(1,), (2,)]
        assert shown == [(decision.id, EXPLAINED.reasoning)]


def test_no_event_is_acknowledged_while_the_commit_is_blocked(
    path: Path, journal: Journal, fates: Fates
) -> None:
    with stalled(path):
        journal.decided(by_model(), ticket=1)
        assert fates.silent
        assert rows(path, "SELECT count(*) FROM events") == [(0,)]
    (fate,) = fates.wait(1)
    assert fate.seq == 1
    assert fate.commit_ms > 0


def test_a_hasty_journal_acknowledges_before_the_commit(path: Path, fates: Fates) -> None:
    """The counter-example: the tests above would fail with it."""
    with HastyJournal(path, on_committed=fates) as journal:
        with stalled(path):
            journal.decided(by_model(), ticket=1)
            (fate,) = fates.wait(1)
            assert (fate.ticket, fate.error) == (1, None)
            assert rows(path, "SELECT count(*) FROM events") == [(0,)]
        journal.decided(by_model(), ticket=2)
    assert [fate.ticket for fate in fates.wait(1)] == [2]
    assert rows(path, "SELECT count(*) FROM events") == [(2,)]


def test_append_never_waits_for_the_disk(path: Path, journal: Journal, fates: Fates) -> None:
    """Otherwise this test would hang, because the disk is released only after the last append."""
    with stalled(path):
        for number in range(600):
            journal.append(note(str(number)))
        assert fates.silent
        assert journal.counters["committed"] == 0
        assert journal.waiting >= 600 - 2 * MAX_BATCH
    committed = fates.wait(600)
    assert [fate.seq for fate in committed] == list(range(1, 601))
    assert rows(path, "SELECT body FROM events ORDER BY seq") == [
        (f'{{"text":"{number}"}}',) for number in range(600)
    ]
    assert journal.batches <= 4
    assert verify(path).ok


def test_events_that_arrive_during_a_commit_are_the_next_batch(journal: Journal, fates: Fates) -> None:
    with fates.one_batch(journal):
        for number in range(100):
            journal.append(note(ticket=number))
    assert [fate.ticket for fate in fates.batch()] == list(range(100))
    assert (journal.batches, journal.counters["committed"], journal.seq) == (2, 101, 101)


def test_a_batch_has_at_most_max_batch_events(journal: Journal, fates: Fates) -> None:
    with fates.one_batch(journal):
        for _ in range(MAX_BATCH + 1):
            journal.append(note())
    assert len(fates.batch()) == MAX_BATCH
    assert len(fates.batch()) == 1


def test_the_size_of_a_batch_is_an_argument_of_the_journal(path: Path, fates: Fates) -> None:
    with Journal(path, on_committed=fates, max_batch=3) as journal:
        with fates.one_batch(journal):
            for _ in range(7):
                journal.append(note())
        assert [len(fates.batch()) for _ in range(3)] == [3, 3, 1]


def test_events_of_many_threads_keep_the_order_of_each_thread(
    path: Path, journal: Journal, fates: Fates
) -> None:
    def append_all(name: int) -> None:
        for number in range(50):
            journal.append(note(subject_id=str(name), body={"number": number}, ticket=name))

    threads = [threading.Thread(target=append_all, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    committed = fates.wait(400)
    assert [fate.seq for fate in committed] == list(range(1, 401))
    for name in range(8):
        stored = rows(path, "SELECT seq, body FROM events WHERE subject_id = ? ORDER BY seq", str(name))
        assert [body for _, body in stored] == [f'{{"number":{number}}}' for number in range(50)]
        assert [seq for seq, _ in stored] == [fate.seq for fate in committed if fate.ticket == name]
    assert verify(path).ok


@pytest.mark.parametrize(("chosen", "level"), [({}, 2), ({"synchronous": "NORMAL"}, 1)])
def test_a_commit_is_synced_unless_the_operator_chose_otherwise(
    path: Path, chosen: dict[str, str], level: int
) -> None:
    with Journal(path, **chosen) as journal:
        set_to = journal.run(lambda db: db.execute("PRAGMA synchronous").fetchall())
        assert set_to.result(WAIT_S) == [(level,)]


def test_every_event_has_the_boot_and_the_time_since_it(path: Path) -> None:
    before_ns = clocks.boot_ns()
    record(path, note(at=NOON), note(at=NOON + 0.25))
    stored = rows(path, "SELECT seq, at, boot_id, mono_ns FROM events ORDER BY seq")
    assert [event[:2] for event in stored] == [
        (1, "2026-07-01T12:00:00.000000Z"),
        (2, "2026-07-01T12:00:00.250000Z"),
    ]
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    assert {event[2] for event in stored} == {boot_id}
    assert before_ns < stored[0][3] < stored[1][3] < clocks.boot_ns()


def test_reopening_continues_the_chain(path: Path, fates: Fates) -> None:
    record(path, by_model(), note())
    head = verify(path).head
    with Journal(path, on_committed=fates) as journal:
        assert journal.seq == 2
        journal.append(note())
        assert fates.wait(1)[0].seq == 3
        assert journal.seq == 3
        name = journal.chain
    assert rows(path, "SELECT lower(hex(prev_hash)) FROM events WHERE seq = 3") == [(head,)]
    assert rows(path, "SELECT lower(hex(hash)) FROM events WHERE seq = 1") == [(name,)]
    assert verify(path).ok


# ---------------------------------------------------------------- the end


def test_close_commits_what_was_appended_and_may_be_called_twice(path: Path, fates: Fates) -> None:
    journal = Journal(path, on_committed=fates)
    for number in range(1_000):
        journal.append(note(ticket=number))
    journal.close()
    assert not journal.alive
    assert [fate.ticket for fate in fates.wait(1_000)] == list(range(1_000))
    assert verify(path).events == 1_000
    journal.close()


def test_close_raises_if_the_journal_does_not_drain_in_time(
    path: Path, journal: Journal, fates: Fates
) -> None:
    with stalled(path):
        journal.append(note())
        with pytest.raises(JournalError, match=r"did not drain within 0\.01 s"):
            journal.close(timeout_s=0.01)
    assert fates.wait(1)[0].seq == 1
    journal.close()


def test_an_event_appended_after_close_gets_a_fate(path: Path, fates: Fates) -> None:
    journal = Journal(path, on_committed=fates)
    journal.close()
    journal.append(note(ticket=3))
    (fate,) = fates.wait(1)
    assert (fate.ticket, fate.seq, fate.error) == (3, 0, "shutting_down")
    assert journal.counters["lost"] == 1
    assert rows(path, "SELECT * FROM events") == []


def test_an_event_appended_while_the_journal_ends_gets_a_fate(path: Path, fates: Fates) -> None:
    journal = Journal(path, on_committed=fates)
    with fates.one_batch(journal):
        with pytest.raises(JournalError, match="did not drain"):
            journal.close(timeout_s=0.01)
        journal.append(note(ticket=2))  # after the END mark
        task = journal.run(lambda db: db.execute("SELECT 1").fetchall())
    (fate,) = fates.wait(1)
    assert (fate.ticket, fate.error) == (2, "shutting_down")
    with pytest.raises(JournalError, match="the journal is closed"):
        task.result(WAIT_S)
    journal.close()


# ---------------------------------------------------------------- tasks


def test_a_task_runs_on_the_writing_connection_after_the_events_appended_before(journal: Journal) -> None:
    for _ in range(5):
        journal.append(note())
    assert journal.run(lambda db: db.execute("SELECT count(*) FROM events").fetchall()).result(WAIT_S) == [
        (5,)
    ]


def test_the_error_of_a_task_goes_to_its_caller_only(journal: Journal, fates: Fates) -> None:
    failing = journal.run(lambda db: db.execute("SELECT * FROM nowhere"))
    journal.append(note())
    assert fates.wait(1)[0].seq == 1
    with pytest.raises(sqlite3.OperationalError, match="nowhere"):
        failing.result(WAIT_S)
    assert journal.alive


def test_a_task_for_a_closed_journal_fails_at_once(path: Path) -> None:
    journal = Journal(path)
    journal.close()
    with pytest.raises(JournalError, match="the journal is closed"):
        journal.run(lambda db: None).result(WAIT_S)


def test_commit_waits_for_the_fate_of_one_event(journal: Journal, path: Path) -> None:
    fate = journal.commit(note("waited for")).result(WAIT_S)
    assert (fate.seq, fate.error) == (1, None)
    assert rows(path, "SELECT body FROM events") == [('{"text":"waited for"}',)]


# ---------------------------------------------------------------- what cannot be recorded


def test_on_a_full_disk_no_event_is_acknowledged_and_the_chain_continues_afterwards(
    path: Path, journal: Journal, fates: Fates
) -> None:
    def allow_pages(count: int) -> None:
        """Limit the pages of the journal's own connection, while its thread is idle."""
        journal._connection.execute(f"PRAGMA max_page_count = {count}")

    journal.append(note("before"))
    fates.wait(1)
    ((pages,),) = rows(path, "PRAGMA page_count")
    with fates.one_batch(journal):
        allow_pages(pages + 3)
        journal.append(note("a small one", ticket=1))
        journal.decided(by_model(evaluation=about(details="x" * 100_000)), ticket=2)
        journal.append(note("another small one", ticket=3))
    assert [(fate.ticket, fate.seq, fate.error) for fate in fates.wait(3)] == [
        (1, 0, "disk_full"),
        (2, 0, "disk_full"),
        (3, 0, "disk_full"),
    ]
    assert (journal.counters["committed"], journal.counters["lost"], journal.seq) == (2, 3, 2)
    assert journal.alive
    assert rows(path, "SELECT count(*), (SELECT count(*) FROM decisions) FROM events") == [(2, 0)]
    assert verify(path).ok

    journal.decided(by_model(evaluation=about(details="x" * 100_000)), ticket=4)
    assert [(fate.ticket, fate.seq, fate.error) for fate in fates.wait(1)] == [(4, 4, None)]
    assert journal.failing is None
    gap = row(path, "gaps")
    assert gap["seq"] == 3
    assert events.decode(gap["lost"]) == {"note": 2, "decision": 1}
    verdict = verify(path)
    assert (verdict.ok, verdict.events, verdict.gaps) == (True, 4, 1)


def test_a_full_disk_uses_up_the_ballast_first(path: Path, fates: Fates) -> None:
    with Journal(path, on_committed=fates, ballast_mb=1) as journal:
        ballast = path.parent / "ballast"
        assert ballast.stat().st_size == 2**20
        journal.append(note())
        fates.wait(1)
        ((pages,),) = rows(path, "PRAGMA page_count")
        release = journal.disk_space.release

        def released() -> bool:
            """Deletes the ballast and allows more pages, as on a disk with more room."""
            journal._connection.execute("PRAGMA max_page_count = 1000000")
            return release()

        journal.disk_space.release = released  # type: ignore[method-assign]
        journal._connection.execute(f"PRAGMA max_page_count = {pages}")
        journal.decided(by_model(evaluation=about(details="x" * 100_000)))
        assert fates.wait(1)[0].error is None
        assert journal.counters["ballast_released"] == 1
        assert not ballast.exists()
    assert verify(path).ok


def test_the_ballast_is_restored_only_when_there_is_room_for_it_twice(tmp_path: Path) -> None:
    free_mb = shutil.disk_usage(tmp_path).free // 2**20
    crowded = DiskSpace(tmp_path, min_free_mb=free_mb * 2, ballast_mb=1)
    assert crowded.free_bytes() < crowded.min_free_bytes
    crowded.restore()
    assert not (tmp_path / "ballast").exists()
    assert not crowded.release()
    roomy = DiskSpace(tmp_path, min_free_mb=0, ballast_mb=1)
    assert roomy.free_bytes() > roomy.min_free_bytes == 0
    roomy.restore()
    assert (tmp_path / "ballast").stat().st_size == 2**20
    assert roomy.release()


KNOWN = by_model()


@pytest.mark.parametrize(
    "bad",
    [
        note(body={"value": object()}, ticket=0),
        note("lone surrogate \ud800", ticket=0),
        note(subject_id="\ud800", ticket=0),
        note(at=float("inf"), ticket=0),
        note(at=float("nan"), ticket=0),
        note(kind=None, ticket=0),
        Event(kind="node", subject_id="x", at=NOON, body={"not": "a node"}, ticket=0),
        events.decision_event(KNOWN, ticket=0),
    ],
    ids=["object", "body", "subject", "infinity", "nan", "null", "incomplete", "repeated"],
)
@pytest.mark.parametrize("place", [0, 3, 6])
def test_an_event_that_cannot_be_stored_fails_alone(
    path: Path, journal: Journal, fates: Fates, bad: Event, place: int
) -> None:
    journal.decided(KNOWN)
    fates.wait(1)
    batch = [events.decision_event(by_model(), ticket=number) for number in range(1, 7)]
    batch.insert(place, bad)
    with fates.one_batch(journal):
        for event in batch:
            journal.append(event)
    committed = fates.wait(7)
    assert [fate.error for fate in committed if fate.ticket == 0] == ["unavailable"]
    good = [fate for fate in committed if fate.ticket]
    assert [fate.ticket for fate in good] == [1, 2, 3, 4, 5, 6]
    assert {fate.error for fate in good} == {None}
    assert (journal.counters["lost"], journal.failing) == (1, None)
    journal.append(note("so that the loss is recorded"))
    fates.wait(1)
    assert rows(path, "SELECT lost FROM gaps") == [(events.encode({str(bad.kind): 1}).decode(),)]
    assert verify(path).ok


def test_a_loss_is_recorded_as_a_gap_even_before_a_checkpoint(path: Path, fates: Fates) -> None:
    with Journal(path, on_committed=fates, checkpoints=signing(path)) as journal:
        journal.append(note())
        journal.append(note("\ud800"))
        assert [fate.error for fate in fates.wait(2)] == ["unavailable", None]
        assert isinstance(journal.checkpoint().result(WAIT_S), int)
    assert set(kinds(path)) == {"note", "gap", "checkpoint"}
    assert verify(path).complete


def test_commit_returns_the_fate_of_its_own_event_after_a_gap(
    path: Path, journal: Journal, fates: Fates
) -> None:
    """Not the fate of the gap that is recorded in the same transaction."""
    journal.append(note("\ud800"))
    assert fates.wait(1)[0].error == "unavailable"
    fate = journal.commit(note(ticket=5)).result(WAIT_S)
    assert (fate.ticket, fate.kind, fate.seq) == (5, "note", 2)
    assert kinds(path) == ["gap", "note"]


def test_the_journal_survives_a_file_that_cannot_be_reopened(
    path: Path, journal: Journal, fates: Fates, tmp_path: Path
) -> None:
    with fates.one_batch(journal):
        journal._connection.execute("PRAGMA max_page_count = 1")
        journal.decided(by_model(evaluation=about(details="x" * 100_000)))
    assert fates.wait(1)[0].error == "disk_full"
    aside = tmp_path / "aside"
    path.rename(aside)
    path.mkdir()
    for number in range(3):
        journal.append(note(ticket=number))
        (fate,) = fates.wait(1)
        assert (fate.ticket, fate.error) == (number, "unavailable")
    assert journal.alive
    assert f"{path} is another file since the journal was opened" in str(journal.failing)
    path.rmdir()
    aside.rename(path)
    journal.append(note(ticket=3))
    assert [(fate.ticket, fate.error) for fate in fates.wait(1)] == [(3, None)]
    assert (journal.failing, kinds(path)) == (None, ["note", "gap", "note"])
    assert events.decode(row(path, "gaps")["lost"]) == {"decision": 1, "note": 3}


def test_an_idle_journal_recovers_by_itself(
    path: Path, fates: Fates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "IDLE_S", 0.001)
    with Journal(path, on_committed=fates) as journal:
        with fates.one_batch(journal):
            journal._connection.execute("PRAGMA max_page_count = 1")
            journal.decided(by_model(evaluation=about(details="x" * 100_000)))
        assert fates.wait(1)[0].error == "disk_full"
        until = time.monotonic() + WAIT_S
        while journal.failing and time.monotonic() < until:
            pass
        assert journal.failing is None
        assert journal.counters["reopened"] >= 1


# ---------------------------------------------------------------- records about decisions


@pytest.mark.parametrize(
    "late",
    [
        records.Outcome(decision_id="nobody", status="SUCCESS"),
        records.Review(decision_id="nobody", reviewer="kim", verdict="accept"),
        records.Approval(decision_id="nobody", approver="kim"),
        records.Consultation(decision_id="nobody", system="crm"),
    ],
    ids=lambda record: type(record).__name__,
)
def test_a_record_about_an_unknown_decision_is_refused(
    path: Path, journal: Journal, fates: Fates, late: records.Record
) -> None:
    journal.write(late, record_id="r1", at=NOON, caller=CALLER, ticket=4)
    (fate,) = fates.wait(1)
    assert (fate.ticket, fate.seq, fate.error) == (4, 0, "not_found")
    assert fate.message == "decision_id: there is no decision 'nobody'"
    assert (journal.counters["refused"], journal.counters["lost"]) == (1, 0)
    journal.append(note())
    fates.wait(1)
    assert kinds(path) == ["note"], "a refusal is no loss, and leaves no gap"


def test_an_explanation_of_an_unknown_decision_is_refused(journal: Journal, fates: Fates) -> None:
    journal.explained("nobody", EXPLAINED, NOON, ticket=4)
    (fate,) = fates.wait(1)
    assert (fate.ticket, fate.error) == (4, "not_found")


def test_a_consultation_may_come_before_its_decision(path: Path, journal: Journal, fates: Fates) -> None:
    early = records.Consultation(system="crm", session="s1", query="who?", value={"tier": "gold"})
    journal.write(early, record_id="c1", at=NOON, caller=CALLER)
    assert fates.wait(1)[0].error is None
    assert (row(path, "consultations")["decision_id"], row(path, "consultations")["session"]) == (None, "s1")


def test_a_record_may_follow_its_decision_in_the_same_batch(
    path: Path, journal: Journal, fates: Fates
) -> None:
    decision, reported = by_model(), sent(records.DecisionReport(agent="a", outcome="buy"), record_id="d2")
    with fates.one_batch(journal):
        journal.append(sent(records.Outcome(decision_id=decision.id, status="FAILURE")))
        journal.decided(decision)
        journal.append(sent(records.Outcome(decision_id=decision.id, status="SUCCESS", value=2.5)))
        journal.append(reported)
        journal.append(sent(records.Approval(decision_id="d2", approver="kim")))
    assert [fate.error for fate in fates.batch()] == ["not_found", None, None, None, None]
    assert row(path, "decisions", "decision_id = ?", decision.id)["outcome_status"] == "SUCCESS"
    assert verify(path).ok


# ---------------------------------------------------------------- masked values

SECRET = "hunter2-and-more"


def test_a_masked_value_is_in_no_file_of_the_journal(path: Path) -> None:
    """Nor are values computed from it: facts, errors and tokens of the prompt."""
    floor = Floor(
        outcome="allow",
        final=False,
        facts={"entered": SECRET},
        errors={"rule": f"cannot read {SECRET}"},
        time_used={"context.time": "2026-05-13T10:00:00Z"},
    )
    decision = by_model(
        id="d1",
        evaluation=about(password=SECRET, nested={"deep/er": SECRET}, kept="in sight"),
        floor=floor,
    )
    masked = ("/context/password", "/context/nested/deep~1er", "/context/absent")
    fates = Fates()
    with Journal(path, on_committed=fates, masked=masked) as journal:
        journal.decided(decision)
        journal.write(
            records.DecisionReport(agent="a", outcome="buy", context={"password": SECRET, "kept": 1}),
            record_id="d2",
            at=NOON,
            caller=CALLER,
        )
        committed = fates.wait(2)
        files = [file for file in path.parent.iterdir() if file.name.startswith(path.name)]
        assert {file.name for file in files} >= {"journal.db", "journal.db-wal"}
        for file in files:
            assert SECRET.encode() not in file.read_bytes()
            if file.name == "journal.db-wal":
                assert b"in sight" in file.read_bytes()
    assert SECRET.encode() not in path.read_bytes()
    assert [fate.error for fate in committed] == [None, None]
    private = events.decode(rows(path, "SELECT value FROM private WHERE seq = 1")[0][0])
    assert private["evaluation"]["context"] == {
        "password": events.MASK,
        "nested": {"deep/er": events.MASK},
        "kept": "in sight",
    }
    assert private["masked"] == ["/context/password", "/context/nested/deep~1er"]
    assert not {"facts", "errors", "time_used", "suffix_tokens"} & private.keys()
    assert row(path, "decisions", "decision_id = 'd1'")["decision"] == "deny"
    private = events.decode(rows(path, "SELECT value FROM private WHERE seq = 2")[0][0])
    assert (private["context"], private["masked"]) == (
        {"password": events.MASK, "kept": 1},
        ["/context/password"],
    )
    assert verify(path).ok


def test_a_pointer_that_matches_nothing_masks_nothing(path: Path) -> None:
    record(path, by_model(), masked=("/context/absent", "/context/details/deeper"))
    private = events.decode(rows(path, "SELECT value FROM private")[0][0])
    assert private["evaluation"]["context"] == ASKED.context
    assert (private["facts"], private["suffix_tokens"]) == ({"friday": True}, [17, 4, 99])
    assert "masked" not in private


def escaped(part: str) -> str:
    """One step of a JSON pointer."""
    return part.replace("~", "~0").replace("/", "~1")


def pointers_into(value: Json, to_here: str = "") -> Iterator[str]:
    """The JSON pointers of all values in nested objects."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield f"{to_here}/{escaped(name)}"
            yield from pointers_into(inner, f"{to_here}/{escaped(name)}")


def at(value: Json, pointer: str) -> Json:
    for part in pointer[1:].split("/"):
        value = value[part.replace("~1", "/").replace("~0", "~")]
    return value


names = st.text(st.sampled_from("ab~/01 é"), max_size=3)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(names, values, max_size=4), st.data())
def test_a_pointer_masks_its_value_and_no_other(value: dict[str, Json], data: st.DataObject) -> None:
    inside = sorted(set(pointers_into(value)))
    anywhere = st.lists(names, min_size=1, max_size=3).map(lambda n: "".join(f"/{escaped(p)}" for p in n))
    pointer = data.draw(st.sampled_from(inside) | anywhere if inside else anywhere)
    before = events.encode(value)
    shown, hidden = events.mask(value, [pointer])
    assert events.encode(value) == before, "what the caller holds stays as it is"
    if pointer not in inside:
        assert (shown, hidden) == (value, [])
        return
    assert hidden == [pointer]
    assert at(shown, pointer) == events.MASK
    for other in inside:
        if not (other + "/").startswith(pointer + "/") and not (pointer + "/").startswith(other + "/"):
            assert at(shown, other) == at(value, other)


def test_pointers_are_those_of_rfc_6901() -> None:
    value = {"a/b": {"m~n": 1, "~1": 2}, "": 3, "list": [{"x": 4}]}
    assert events.mask(value, ["/a~1b/m~0n", "/a~1b/~01", "/"]) == (
        {"a/b": {"m~n": events.MASK, "~1": events.MASK}, "": events.MASK, "list": [{"x": 4}]},
        ["/a~1b/m~0n", "/a~1b/~01", "/"],
    )
    for missing in ("/no", "/a~1b/no", "/a~1b/m~0n/deeper", "/list/0/x"):
        assert events.mask(value, [missing]) == (value, [])


# ---------------------------------------------------------------- private parts


def test_names_and_texts_are_in_the_private_part_only(path: Path) -> None:
    record(path, *one_of_each())
    bodies = "".join(body for (body,) in rows(path, "SELECT body FROM events"))
    for word in (
        "alice",
        "production",
        "trader",
        "ACME",
        "robin",
        "kim",
        "it is cheap",
        "sold",
        "Friday",
        "ship",
    ):
        assert word not in bodies
    private = "".join(value for (value,) in rows(path, "SELECT value FROM private"))
    for word in ("alice", "production", "trader", "ACME", "kim", "it is cheap", "sold", "Friday", "ship"):
        assert word in private


def test_equal_private_parts_have_different_digests(path: Path) -> None:
    record(path, note(private={"text": "secret"}), note(private={"text": "secret"}))
    salts = {salt for (salt,) in rows(path, "SELECT salt FROM private")}
    digests = {digest for (digest,) in rows(path, "SELECT private_digest FROM events")}
    assert (len(salts), len(digests)) == (2, 2)
    assert {len(salt) for salt in salts} == {chain.SALT_BYTES}
    for digest, salt, value in rows(
        path, "SELECT private_digest, salt, value FROM events JOIN private USING (seq)"
    ):
        assert chain.sealed_digest(salt, value.encode()) == digest


def test_the_event_of_a_decision_has_all_that_is_needed_to_derive_it(path: Path) -> None:
    record(path, by_model())
    ((text, private),) = rows(path, "SELECT body, value FROM events JOIN private USING (seq)")
    body, private_part = events.decode(text), events.decode(private)
    assert body["prompt"] == {
        "prefix_digest": "ab" * 32,
        "prefix_tokens": 1527,
        "logits": [1.5, 2.25, -3.0],
    }
    assert private_part["suffix_tokens"] == [17, 4, 99]
    assert private_part["evaluation"]["context"] == ASKED.context
    assert private_part["facts"] == {"friday": True}
    assert body["caller"]["uid"] == 1000
    assert body["probabilities"] == {"allow": 0.25, "deny": 0.75}


# ---------------------------------------------------------------- the chain

COLUMNS = st.tuples(
    st.binary(min_size=32, max_size=32),
    st.integers(1, 2**62),
    st.binary(max_size=8),
    st.binary(max_size=8),
    st.integers(0, 2**62),
    st.binary(max_size=8),
    st.binary(max_size=8),
    st.binary(max_size=8),
    st.binary(max_size=8),
)


def test_the_hash_of_an_event_is_the_same_in_every_version() -> None:
    link = chain.hash_of(
        chain.GENESIS, 1, b"2026-07-01T12:00:00.000000Z", b"b", 5, b"node", "é".encode(), b'{"a":1}', b"\x01"
    )
    assert link.hex() == "8389de1103bc81abc081a3cea881d68c6147bf4b912f71108600ea11d623266b"


@given(COLUMNS, st.data())
def test_the_hash_of_an_event_covers_every_column(columns: tuple[Any, ...], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(columns) - 1))
    other = data.draw(COLUMNS.filter(lambda drawn: drawn[place] != columns[place]))
    changed = (*columns[:place], other[place], *columns[place + 1 :])
    assert chain.hash_of(*changed) != chain.hash_of(*columns)


@given(COLUMNS, st.integers(0, 8))
@example((b"\0" * 32, 1, b"", b"", 0, b"a", b"b", b"", b""), 0)
def test_bytes_cannot_move_from_one_column_to_the_next(columns: tuple[Any, ...], cut: int) -> None:
    *others, kind, subject_id, body, digest = columns
    text = kind + subject_id
    moved = (*others, text[:cut], text[cut:], body, digest)
    assert (chain.hash_of(*moved) == chain.hash_of(*columns)) == (moved == columns)


def test_each_event_has_the_hash_of_the_event_before_it(path: Path) -> None:
    record(path, *one_of_each())
    head = chain.GENESIS
    for stored in rows(
        path,
        "SELECT seq, CAST(at AS BLOB), CAST(boot_id AS BLOB), mono_ns, CAST(kind AS BLOB), "
        "CAST(subject_id AS BLOB), CAST(body AS BLOB), private_digest, prev_hash, hash "
        "FROM events ORDER BY seq",
    ):
        event = chain.Row._make(stored)
        assert event.prev_hash == head
        assert event.hash == chain.hash_of(head, *event[:8])
        head = event.hash
    assert verify(path).head == head.hex()


# ---------------------------------------------------------------- times


def test_a_timestamp_is_rfc_3339_in_utc() -> None:
    assert events.timestamp(0) == "1970-01-01T00:00:00.000000Z"
    assert events.timestamp(NOON + 0.000001) == "2026-07-01T12:00:00.000001Z"


#: Microseconds since 1970, to the year 2200.
microseconds = st.integers(0, 7_258_118_400_000_000)


@given(microseconds, microseconds)
def test_timestamps_sort_as_text(first_us: int, second_us: int) -> None:
    first, second = events.timestamp(first_us / 1e6), events.timestamp(second_us / 1e6)
    for text in (first, second):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", text)
    assert (first < second) == (first_us < second_us)
    assert round(datetime.fromisoformat(first).timestamp() * 1e6) == first_us


# ---------------------------------------------------------------- checkpoints


def signed(path: Path) -> list[int]:
    """The events that checkpoint files sign."""
    return [
        checkpoint.seq for checkpoint in checkpoints.read_directory(path.parent / "checkpoints").checkpoints
    ]


def test_a_clean_stop_signs_a_checkpoint(path: Path) -> None:
    record(path, note(), note(), checkpoints=signing(path))
    assert (kinds(path), signed(path)) == (["note", "note", "checkpoint"], [3])
    verdict = verify(path)
    assert (verdict.complete, verdict.checkpoint_seq, verdict.events) == (True, 3, 3)


def test_a_stop_without_new_events_signs_no_checkpoint(path: Path) -> None:
    record(path, note(), checkpoints=signing(path))
    record(path, checkpoints=signing(path))
    assert (kinds(path), signed(path)) == (["note", "checkpoint"], [2])


def test_a_checkpoint_is_signed_after_so_many_events(path: Path) -> None:
    fates = Fates()
    with Journal(path, on_committed=fates, checkpoints=signing(path, every_events=3)) as journal:
        for _ in range(7):
            journal.append(note())
            fates.wait(1)
        assert journal.run(lambda db: None).result(WAIT_S) is None
        assert signed(path) == [4, 8]
        assert journal.counters["checkpoints"] == 2
    assert kinds(path) == [*["note"] * 3, "checkpoint", *["note"] * 3, "checkpoint", "note", "checkpoint"]
    assert verify(path).complete


def test_a_checkpoint_is_signed_after_some_time_without_further_events(
    path: Path, fates: Fates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "IDLE_S", 0.001)
    with Journal(path, on_committed=fates, checkpoints=signing(path, every_s=0.05)) as journal:
        journal.append(note())
        fates.wait(1)
        until = time.monotonic() + WAIT_S
        while not journal.counters["checkpoints"] and time.monotonic() < until:
            pass
        assert signed(path) == [2]
        assert journal.run(lambda db: db.execute("SELECT count(*) FROM events").fetchone()).result(
            WAIT_S
        ) == (2,), "and then no more, for nothing came"


def test_a_checkpoint_can_be_requested(path: Path, fates: Fates) -> None:
    with Journal(path, on_committed=fates, checkpoints=signing(path)) as journal:
        journal.append(note())
        assert journal.checkpoint().result(WAIT_S) == 2
        assert signed(path) == [2]
        assert journal.checkpoint().result(WAIT_S) == 2


def test_a_checkpoint_event_that_a_crash_left_unsigned_is_signed_at_the_next_start(path: Path) -> None:
    rule = signing(path)
    record(path, note(), note(), checkpoints=rule)
    (file,) = (path.parent / "checkpoints").glob("*.json")
    before = checkpoints.read_directory(file.parent).checkpoints
    file.unlink()  # its event was committed, but its file was not written
    with Journal(path, checkpoints=rule) as journal:
        assert signed(path) == [3]
        assert journal.counters["checkpoints"] == 1
    assert checkpoints.read_directory(file.parent).checkpoints == before
    assert kinds(path) == ["note", "note", "checkpoint"]


def test_a_checkpoint_that_cannot_be_stored_is_counted_and_the_journal_continues(
    path: Path, fates: Fates, caplog: pytest.LogCaptureFixture
) -> None:
    rule = signing(path)
    with Journal(path, on_committed=fates, checkpoints=rule) as journal:
        shutil.rmtree(rule.directory)
        rule.directory.write_text("in the way")
        journal.append(note())
        journal.checkpoint().result(WAIT_S)
        assert journal.counters["checkpoints_failed"] == 1
        journal.append(note())
        assert [fate.error for fate in fates.wait(2)] == [None, None]
    assert "cannot be used: Not a directory" in caplog.text


# ---------------------------------------------------------------- a slow reader


def test_a_long_reader_keeps_the_write_ahead_log_and_is_counted(
    path: Path, fates: Fates, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 400_000
    monkeypatch.setattr(writer, "WAL_LIMIT_BYTES", limit)
    monkeypatch.setattr(writer, "WAL_STEP_BYTES", limit)
    monkeypatch.setattr(writer, "WAL_WAIT_MS", 1)
    wal = path.with_name("journal.db-wal")

    def write() -> None:
        journal.append(note("x" * 50_000))
        assert fates.wait(1)[0].error is None
        assert journal.run(lambda db: None).result(WAIT_S) is None

    with Journal(path, on_committed=fates, synchronous="OFF") as journal:
        write()
        with writing(path) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM events").fetchall()
            while journal.counters["wal_blocked"] < 2:
                write()
                assert wal.stat().st_size < 4 * limit
            assert wal.stat().st_size > 2 * limit
            assert journal.failing is None
            reader.execute("ROLLBACK")
        blocked, sizes = journal.counters["wal_blocked"], []
        for _ in range(60):
            write()
            sizes.append(wal.stat().st_size)
        assert journal.counters["wal_blocked"] == blocked
        assert 0 in sizes, "the log begins anew"
        assert max(sizes[sizes.index(0) :]) < limit + 100_000
        waits = journal.run(lambda db: db.execute("PRAGMA busy_timeout").fetchone()).result(WAIT_S)
        assert waits == (writer.BUSY_TIMEOUT_MS,)
    assert verify(path).ok


# ---------------------------------------------------------------- opening


def test_a_second_journal_is_refused_with_the_process_that_holds_the_file(
    path: Path, journal: Journal
) -> None:
    with pytest.raises(AlreadyRunning, match=f"in use by process {os.getpid()};.*--state-dir"):
        Journal(path)
    assert journal.alive


def test_the_lock_is_free_when_its_holder_dies(path: Path) -> None:
    holder = (
        "import sys, pathlib\n"
        "from thor_policy.journal.writer import Journal\n"
        "journal = Journal(pathlib.Path(sys.argv[1]), on_committed=lambda _: None)\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", holder, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "open\n"
        with pytest.raises(AlreadyRunning, match=f"process {process.pid};"):
            Journal(path)
        process.kill()
        process.wait(WAIT_S)
    record(path, note())
    assert verify(path).ok


def test_only_owner_and_group_may_read_the_files_of_the_journal(path: Path, fates: Fates) -> None:
    with Journal(path, on_committed=fates, ballast_mb=1) as journal:
        journal.append(note())
        fates.wait(1)
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) & 0o027 for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(
        ["journal.db", "journal.db-wal", "journal.db-shm", "journal.key", "journal.lock", "ballast"], 0
    )


def test_a_journal_that_others_could_read_is_closed_to_them(path: Path) -> None:
    record(path, note())
    path.chmod(0o644)
    record(path, note())
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_file_of_a_newer_version_is_refused_and_left_alone(path: Path) -> None:
    record(path, note())
    with writing(path) as db:
        db.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) "
            "VALUES ('journal', '9999_from_the_future', '2099-01-01')"
        )
    before = path.read_bytes()
    with pytest.raises(JournalError, match=r"newer version \(it has 9999_from_the_future\); upgrade"):
        Journal(path)
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*.damaged-*"))
    with writing(path) as db:
        db.execute("DELETE FROM _sqlite_migrations WHERE name = '9999_from_the_future'")
    record(path, note())
    assert verify(path).events == 2


def no_database(path: Path) -> None:
    path.write_bytes(b"GGUF" + bytes(range(256)) * 64)


def damaged_pages(path: Path) -> None:
    record(path, *(by_model() for _ in range(20)))
    with path.open("r+b") as file:
        file.seek(4_096)
        file.write(b"\xa5" * (path.stat().st_size - 4_096))


def lost_root_page(path: Path) -> None:
    """The schema can be read, but the events cannot."""
    record(path, *(by_model() for _ in range(20)))
    ((root, page_size),) = rows(
        path,
        "SELECT rootpage, (SELECT page_size FROM pragma_page_size) FROM sqlite_schema WHERE name = 'events'",
    )
    with path.open("r+b") as file:
        file.seek((root - 1) * page_size)
        file.write(b"\xa5" * page_size)


def cut_short(path: Path) -> None:
    record(path, *(by_model() for _ in range(20)))
    os.truncate(path, 6_000)


def lost_table(path: Path) -> None:
    record(path, *(by_model() for _ in range(20)))
    with writing(path) as db:
        db.execute("DROP TABLE events")


def changed_tail(path: Path) -> None:
    record(path, *(by_model() for _ in range(20)))
    with writing(path) as db:
        db.execute("UPDATE events SET body = '{}' WHERE seq = 18")


@pytest.mark.parametrize(
    "damage", [no_database, damaged_pages, lost_root_page, cut_short, lost_table, changed_tail]
)
def test_a_damaged_file_is_renamed_and_a_new_journal_begins(
    path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(path)
    before = path.read_bytes()
    record(path, by_rule())
    (aside,) = path.parent.glob("journal.db.damaged-*[0-9Z]")
    assert aside.read_bytes() == before
    assert kinds(path) == ["gap", "decision"]
    reason = row(path, "gaps")["reason"]
    assert f"the journal was damaged and is kept as {aside.name}: " in reason
    assert events.decode(row(path, "gaps")["lost"]) == {"file": aside.name}
    (loud,) = [line for line in caplog.records if line.levelno >= logging.CRITICAL]
    assert aside.name in loud.getMessage()
    if damage is changed_tail:
        assert reason.endswith("the content of event 18 does not match its hash")
    assert verify(path).ok


@pytest.mark.parametrize("damage", ["its pages", "all of it"])
def test_the_write_ahead_log_of_a_damaged_file_is_renamed_with_it(
    path: Path, tmp_path: Path, damage: str
) -> None:
    """SQLite copies the log back if it can. If it cannot, the log is renamed too."""
    crashed = tmp_path / "crashed" / "journal.db"
    crashed.parent.mkdir()
    record(path, *(by_model() for _ in range(20)))
    fates = Fates()
    with Journal(path, on_committed=fates) as journal:
        journal.append(note("in the log alone"))
        fates.wait(1)
        for ending in ("", "-wal", "-shm"):
            shutil.copy(f"{path}{ending}", f"{crashed}{ending}")
    assert b"in the log alone" not in crashed.read_bytes()
    whole = crashed.read_bytes()
    crashed.write_bytes(
        whole[:4_096] + b"\xa5" * len(whole) if damage == "its pages" else b"no journal" * 999
    )
    record(crashed, note())
    aside = list(crashed.parent.glob("journal.db.damaged-*"))
    assert b"in the log alone" in b"".join(file.read_bytes() for file in aside)
    assert {file.name.partition("Z")[2] for file in aside} == (
        {""} if damage == "its pages" else {"", "-wal", "-shm"}
    )
    assert kinds(crashed) == ["gap", "note"]


def test_a_damaged_file_does_not_overwrite_an_earlier_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noon = time.gmtime(NOON)
    monkeypatch.setattr(time, "gmtime", lambda *_: noon)
    for number in range(3):
        path.write_bytes(b"no journal %d" % number * 1_000)
        record(path, note())
    aside = sorted(path.parent.glob("journal.db.damaged-*"))
    assert [file.name.rpartition("damaged-")[2] for file in aside] == [
        "20260701T120000Z",
        "20260701T120000Z-1",
        "20260701T120000Z-2",
    ]
    assert [file.read_bytes()[:12] for file in aside] == [b"no journal 0", b"no journal 1", b"no journal 2"]


def test_a_directory_in_place_of_the_journal_is_refused(path: Path) -> None:
    path.mkdir()
    with pytest.raises(JournalError, match="is a directory, where a regular file is needed"):
        Journal(path)
    assert path.is_dir()


def test_a_state_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(JournalError, match=f"cannot write in the state directory {tmp_path}/file"):
        Journal(tmp_path / "file" / "journal.db")


def test_a_missing_state_directory_is_made(tmp_path: Path) -> None:
    record(tmp_path / "var" / "lib" / "journal.db", note())
    assert verify(tmp_path / "var" / "lib" / "journal.db").ok


def test_a_failed_start_releases_the_lock(path: Path) -> None:
    path.mkdir()
    with pytest.raises(JournalError):
        Journal(path)
    path.rmdir()
    record(path, note())


def test_decisions_that_are_recorded_together_keep_the_edges_to_their_precedents(path: Path) -> None:
    cited = by_rule()
    precedent = Precedent(
        id=cited.id, outcome=cited.outcome, similarity=0.9, how="similarity", line="As before."
    )
    citing = replace(by_model(), precedents=(precedent,))
    with Journal(path) as journal:
        journal.decided(cited, ticket=1)
        journal.decided_together([(by_rule(), 2), (citing, 3)])
    assert rows(path, "SELECT source, target, type FROM edges") == [(citing.id, cited.id, "CITES")]
