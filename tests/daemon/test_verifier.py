"""The background verifier: which damage it reports, when it has its turn, and what it leaves alone."""

from __future__ import annotations

import gzip
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.build import (
    EXPLAINED,
    NOON,
    WAIT_S,
    booted,
    by_model,
    by_rule,
    erasing,
    note,
    record,
    rows,
    sent,
    writing,
)
from thor_policy.cli.main import cli
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.records import Maintenance
from thor_policy.core.requests import Caller, Json
from thor_policy.core.results import JobDone
from thor_policy.core.status import JournalStatus
from thor_policy.daemon import verifier as module
from thor_policy.daemon.maintenance_thread import MaintenanceThread
from thor_policy.daemon.service import serving
from thor_policy.daemon.verifier import MOST_POSTPONED, PAGE, REST_EVENTS, Verifier
from thor_policy.journal import events
from thor_policy.journal.idempotency import KEY_WINDOW_S
from thor_policy.journal.maintenance.archive import archive_before
from thor_policy.journal.verification.verify import verify
from thor_policy.journal.writer import Journal
from thor_policy.testing import load_stub_engine

S = 10**9


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of some hundred events, the first 100 archived, one private part erased."""
    path = tmp_path / "journal.db"
    decisions = [by_model(id=f"d{number}") for number in range(100)]
    record(path, *(by_rule() for _ in range(100)), note(), now=booted(5))
    with Journal(path, synchronous="OFF", now=booted(5 + KEY_WINDOW_S)) as journal:
        archive_before(journal, "9999-01-01")
    more = [events.explanation_event(decision.id, EXPLAINED, NOON) for decision in decisions[:20]]
    outcome = sent(records.Outcome(decision_id="d3", status="SUCCESS"))
    record(path, *decisions, *more, outcome)
    record(path, erasing(path, 105))
    assert verify(path).ok
    return path


def checking(path: Path, **changes: Any) -> Verifier:
    return Verifier(path, **{"events_per_s": 200, "now_ns": 0} | changes)


def round_of(verifier: Verifier, now_ns: int = 0) -> int:
    """Turns until a round has ended, each when it is due; returns the time then."""
    ended = verifier.counters.total()
    for _ in range(10_000):
        wait_s = verifier.wait_s(now_ns)
        assert wait_s is not None
        now_ns += int(wait_s * S)
        verifier.turn(now_ns)
        if verifier.counters.total() > ended:
            return now_ns
    raise AssertionError("the round did not end")


# ---------------------------------------------------------------- damage


def flip_a_byte_of_the_file(path: Path) -> None:
    """As a disk does that loses a bit: in the text of an event in the middle of the file."""
    ((body,),) = rows(path, "SELECT substr(body, 1, 60) FROM events WHERE seq = 150")
    content = path.read_bytes()
    place = content.index(body.encode()) + 40
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])


def change_the_archive(path: Path) -> None:
    (segment,) = (path.parent / "archive").glob("*.gz")
    lines = gzip.decompress(segment.read_bytes()).splitlines(keepends=True)
    lines[50] = lines[50].replace(b"freeze", b"thawed")
    segment.write_bytes(gzip.compress(b"".join(lines)))


def remove_the_archive(path: Path) -> None:
    (segment,) = (path.parent / "archive").glob("*.gz")
    segment.unlink()


def sql(statement: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with writing(path) as db:
            assert db.execute(statement).rowcount > 0

    damage.__name__ = statement.replace(" ", "_")
    return damage


DAMAGES = [
    flip_a_byte_of_the_file,
    change_the_archive,
    remove_the_archive,
    sql("UPDATE events SET body = replace(body, 'deny', 'allow') WHERE seq = 150"),
    sql("UPDATE events SET hash = zeroblob(32) WHERE seq = 150"),
    sql("UPDATE events SET prev_hash = zeroblob(32) WHERE seq = 150"),
    sql("UPDATE events SET at = '1970-01-01T00:00:00.000000Z' WHERE seq = 150"),
    sql("DELETE FROM events WHERE seq = 150"),
    sql("UPDATE decisions SET decision = 'allow' WHERE seq = 150"),
    sql("DELETE FROM decisions WHERE seq = 150"),
    sql("UPDATE decisions SET outcome_status = 'FAILURE' WHERE decision_id = 'd3'"),
    sql("UPDATE private SET value = replace(value, 'alice', 'bob') WHERE seq = 150"),
    sql("DELETE FROM private WHERE seq = 150"),
    sql("INSERT INTO gaps VALUES (9999, '2026', 'planted', '{}')"),
    sql("DELETE FROM erasures"),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damage_that_happens_while_the_daemon_runs_is_reported_once(
    path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    verifier = checking(path)
    now_ns = round_of(verifier)
    assert (verifier.damage, verifier.counters["verify_rounds"]) == (None, 1)
    newest = verifier.verified_seq
    assert newest == verify(path).events
    damage(path)
    expected = verify(path)
    assert not expected.ok
    with caplog.at_level(logging.WARNING):
        now_ns = round_of(verifier, now_ns)
        assert verifier.damage == expected.problem
        assert verifier.verified_seq < newest or expected.bad_seq is None
        round_of(verifier, now_ns)
    assert [record.message for record in caplog.records] == [
        f"the journal is damaged: {expected.problem}; run `thorpolicy log verify`"
    ]
    assert verifier.counters == {"verify_rounds": 1, "verify_damaged": 2, "verify_failed": 0}


def test_a_damage_is_forgotten_when_a_whole_round_finds_none(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (segment,) = (path.parent / "archive").glob("*.gz")
    aside = segment.rename(segment.with_name("aside"))
    verifier = checking(path)
    now_ns = round_of(verifier)
    assert verifier.damage is not None
    aside.rename(segment)
    with caplog.at_level(logging.WARNING):
        round_of(verifier, now_ns)
    assert verifier.damage is None
    assert caplog.records[-1].message.endswith("no damage")


def test_a_file_that_is_gone_is_counted_and_the_next_round_tries_again(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    verifier = checking(path)
    aside = path.rename(path.with_name("aside"))
    with caplog.at_level(logging.WARNING):
        now_ns = round_of(verifier)
    assert verifier.counters["verify_failed"] == 1
    assert "could not be verified" in caplog.text
    aside.rename(path)
    round_of(verifier, now_ns)
    assert (verifier.counters["verify_rounds"], verifier.damage) == (1, None)


# ---------------------------------------------------------------- turns


def test_a_turn_checks_a_page_and_leaves_nothing_open(path: Path) -> None:
    verifier = checking(path)
    with writing(path) as db:
        db.execute("PRAGMA busy_timeout = 0")
        checked = []
        for turn in range(5):
            verifier.turn(turn)
            checked.append(verifier.verified_seq)
            db.execute("UPDATE _sqlite_migrations SET applied_at = applied_at || '.'")
            assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
    assert checked[0] == PAGE
    assert all(later - earlier <= PAGE for earlier, later in pairwise(checked))
    verifier.close()


def test_the_pace_is_that_of_the_setting_with_a_rest_after_each_round(path: Path) -> None:
    verifier = checking(path, events_per_s=200)
    assert verifier.wait_s(0) == PAGE / 200
    assert checking(path, events_per_s=0).wait_s(0) is None
    now_ns = round_of(verifier)
    pages = verify(path).events / PAGE
    assert pages * PAGE / 200 <= now_ns / S <= (pages + 5) * PAGE / 200
    assert verifier.wait_s(now_ns) == REST_EVENTS / 200
    assert verifier.wait_s(now_ns + 10**15) == 0


def test_a_busy_daemon_postpones_a_turn_but_not_for_ever(path: Path) -> None:
    verifier = checking(path, busy=lambda: True)
    for _ in range(MOST_POSTPONED):
        verifier.turn(0)
    assert verifier.verified_seq == 0
    verifier.turn(0)
    assert verifier.verified_seq == PAGE
    verifier.close()


def test_a_round_begins_anew_after_the_writer_opened_the_file_again(path: Path) -> None:
    """After an error of the disk the file may have fewer events than before, and then others."""
    before = shutil.copy(path, path.with_name("before"))
    record(path, *(note() for _ in range(100)))
    opened = 0
    verifier = checking(path, changes=lambda: opened)
    for _ in range(5):
        verifier.turn(0)
    events = verify(Path(before)).events
    Path(before).replace(path)
    opened = 1
    round_of(verifier)
    assert (verifier.damage, verifier.verified_seq) == (None, events)


def test_verification_goes_on_beside_a_writer_that_never_rests(path: Path) -> None:
    verifier = checking(path)
    with Journal(path, synchronous="OFF") as journal:
        now_ns = 0
        for number in range(12):
            decision = by_model(id=f"w{number}")
            journal.decided(decision)
            journal.explained(decision.id, EXPLAINED, NOON)
            journal.append(sent(records.Outcome(decision_id="d3", status="PENDING")))
            journal.run(lambda _: None).result()
            now_ns = round_of(verifier, now_ns)
    assert verifier.counters == {"verify_rounds": 12, "verify_damaged": 0, "verify_failed": 0}


# ---------------------------------------------------------------- on the maintenance thread


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with Journal(path, synchronous="OFF", now=booted(5 + 2 * KEY_WINDOW_S)) as journal:
        yield journal


def test_an_archive_or_an_erasure_during_a_round_is_no_damage(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REST_EVENTS", PAGE)
    answered, rounds = threading.Semaphore(0), 0
    answers: list[Any] = []

    def collect(_: int, done: JobDone) -> None:
        answers.append(done.answer)
        answered.release()

    verifier = Verifier(journal.path, events_per_s=1_000_000, now_ns=0)
    thread = MaintenanceThread(journal, collect, verifier=verifier)
    caller = Caller(transport="ipc", uid=1000, gid=1000, pid=42)
    try:
        for job in (
            Maintenance(task="archive", before="9999-01-01"),
            Maintenance(task="erase", actor="alice"),
        ):
            thread.submit(0, job, caller)
            assert answered.acquire(timeout=WAIT_S)
            rounds = verifier.counters["verify_rounds"]
            deadline = time.monotonic() + WAIT_S
            while verifier.counters["verify_rounds"] < rounds + 2:
                assert time.monotonic() < deadline
    finally:
        assert thread.stop(WAIT_S)
    assert [set(answer) for answer in answers] == [{"done"}, {"done"}]
    assert (verifier.damage, verifier.counters["verify_damaged"]) == (None, 0)


# ---------------------------------------------------------------- in a daemon

QUESTION: dict[str, Json] = {
    "subject": {"type": "user", "id": "alice"},
    "action": {"name": "deploy"},
    "resource": {"type": "env", "id": "production"},
}


def wait_for(client: Client, reached: Callable[[JournalStatus], Any]) -> JournalStatus:
    """The journal's status once it has reached something."""
    deadline = time.monotonic() + WAIT_S
    while not reached(journal := client.status().journal):
        assert time.monotonic() < deadline, journal
    return journal


def test_a_running_daemon_reports_a_row_that_was_changed_in_the_middle(
    config: Config, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V14: it was seen by `thorpolicy log verify` alone."""
    fast = replace(config, verify_events_per_s=100_000)
    with serving(fast, load_engine=load_stub_engine), Client(config.endpoint) as client:
        for _ in range(30):
            client.evaluate(QUESTION)
        journal = wait_for(
            client, lambda journal: journal.verified_seq >= 30 and journal.counters["verify_rounds"]
        )
        assert journal.damage is None
        with writing(config.journal_path) as db:
            db.execute("UPDATE events SET body = replace(body, '{', '{ ') WHERE seq = 15")
        journal = wait_for(client, lambda journal: journal.damage)
        assert journal.damage == "event 15: its content does not match its hash"
        assert journal.verified_seq == 14
        measured = client.metrics()
        names = ("thorpolicy_journal_damaged", "thorpolicy_journal_verified_seq")
        assert [measured[name]["samples"][0]["value"] for name in names] == [1, 14]
        assert client.evaluate(QUESTION)["context"]["outcome"], "it serves on"
        monkeypatch.setenv("THOR_POLICY_ENDPOINT", config.endpoint)
        monkeypatch.setenv("THOR_POLICY_STATE_DIR", str(config.state_dir))
        findings = json.loads(CliRunner().invoke(cli, ["doctor", "--json"]).stdout)
        (finding,) = (finding for finding in findings if finding["name"] == "daemon")
        assert finding["state"] == "warning"
        assert finding["detail"] == "the journal is damaged: event 15: its content does not match its hash"
    critical = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert len(critical) == 1
