"""The clerk: one answer to each piece of work, whatever becomes of it."""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from thor_policy.core.errors import RequestError
from thor_policy.core.records import Maintenance
from thor_policy.core.requests import Caller, Json
from thor_policy.core.results import JobDone
from thor_policy.daemon.maintenance_thread import MaintenanceThread
from thor_policy.journal.events import Event
from thor_policy.journal.writer import Journal

#: How long a test waits for what must come; far more than it takes.
WAIT_S = 60.0
CALLER = Caller(transport="ipc", uid=1000, gid=1000, pid=42)
ERASE = Maintenance(task="erase", actor="alice")
CHECKPOINT = Maintenance(task="checkpoint")

Answers = queue.SimpleQueue[tuple[int, "dict[str, Json] | RequestError"]]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.db", synchronous="OFF") as journal:
        private = {"agent": "alice"}
        body = {"id": "r1", "outcome": "BUY", "caller": {"uid": 7}}
        journal.commit(
            Event(kind="decision_report", subject_id="r1", at=0.0, body=body, private=private)
        ).result(WAIT_S)
        yield journal


@contextmanager
def working(journal: Journal) -> Iterator[tuple[MaintenanceThread, Answers]]:
    answers: Answers = queue.SimpleQueue()

    def tell(ticket: int, tended: JobDone) -> None:
        answers.put((ticket, tended.answer))

    clerk = MaintenanceThread(journal, tell)
    try:
        yield clerk, answers
    finally:
        assert clerk.stop(WAIT_S)


def refusal(answer: dict[str, Json] | RequestError) -> RequestError:
    assert isinstance(answer, RequestError)
    return answer


def test_each_piece_of_work_has_one_answer_in_order(journal: Journal) -> None:
    with working(journal) as (clerk, answers):
        for ticket, maintenance in enumerate(
            (CHECKPOINT, ERASE, ERASE, Maintenance(task="archive", before="1960-01-01"))
        ):
            clerk.submit(ticket, maintenance, CALLER)
        told = [answers.get(timeout=WAIT_S) for _ in range(4)]
    assert answers.empty()
    erased = {"own": 1, "mentions": 0, "archived": 0, "left": (), "parts": ()}
    assert told == [
        (0, {"done": {"checkpoint": 0}}),
        (1, {"done": erased}),
        (2, {"done": erased | {"own": 0}}),
        (3, {"done": {"archived": 0, "segments": []}}),
    ]


def test_an_erasure_is_recorded_with_who_asked_for_it(journal: Journal) -> None:
    with working(journal) as (clerk, answers):
        clerk.submit(1, ERASE, CALLER)
        answers.get(timeout=WAIT_S)
    with closing(sqlite3.connect(journal.path)) as connection:
        rows = connection.execute("SELECT json_extract(body, '$.by_uid') FROM events WHERE kind = 'erased'")
        assert rows.fetchall() == [(1000,)]


def test_what_the_journal_cannot_do_is_refused_in_its_words_and_the_next_is_done(journal: Journal) -> None:
    with working(journal) as (clerk, answers):
        clerk.submit(1, Maintenance(task="archive", before="yesterday"), CALLER)
        clerk.submit(2, CHECKPOINT, CALLER)
        ticket, answer = answers.get(timeout=WAIT_S)
        assert answers.get(timeout=WAIT_S) == (2, {"done": {"checkpoint": 0}})
    error = refusal(answer)
    assert (ticket, error.code) == (1, "unavailable")
    assert clerk.counters == {"done": 1, "failed": 1, "refused": 0}
    assert error.message.startswith("before: 'yesterday'")


def test_what_no_code_foresaw_is_an_answer_too_and_the_log_has_it(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    nothing_knows_this = Maintenance(task="archive", before=7)  # type: ignore[arg-type]
    with working(journal) as (clerk, answers):
        clerk.submit(1, nothing_knows_this, CALLER)
        clerk.submit(2, CHECKPOINT, CALLER)
        ticket, answer = answers.get(timeout=WAIT_S)
        assert answers.get(timeout=WAIT_S)[0] == 2
    error = refusal(answer)
    assert (ticket, error.code, error.message) == (1, "internal", "archive failed; the daemon's log says why")
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert caplog.records[0].exc_info


def test_a_stop_finishes_what_runs_and_refuses_what_waits_or_comes_later(journal: Journal) -> None:
    begun, gate = threading.Event(), threading.Event()

    def hold(_: sqlite3.Connection) -> None:
        begun.set()
        assert gate.wait(WAIT_S)

    with working(journal) as (clerk, answers):
        journal.run(hold)
        assert begun.wait(WAIT_S)
        clerk.submit(1, CHECKPOINT, CALLER)
        while not journal.waiting:  # until it runs, and waits for the journal's thread
            pass
        clerk.submit(2, CHECKPOINT, CALLER)
        assert not clerk.stop(0)
        clerk.submit(3, CHECKPOINT, CALLER)
        late, refused_at_once = answers.get(timeout=WAIT_S)
        assert answers.empty()
        gate.set()
        assert clerk.stop(WAIT_S)
    assert (late, refusal(refused_at_once).code) == (3, "shutting_down")
    assert answers.get(timeout=WAIT_S) == (1, {"done": {"checkpoint": 0}})
    ticket, answer = answers.get(timeout=WAIT_S)
    assert (ticket, refusal(answer).code) == (2, "shutting_down")
    assert answers.empty()
    assert clerk.counters == {"done": 1, "failed": 0, "refused": 2}


def test_a_clerk_without_work_stops_at_once_and_may_be_stopped_twice(journal: Journal) -> None:
    with working(journal) as (clerk, answers):
        assert clerk.stop(WAIT_S)
    assert answers.empty()
