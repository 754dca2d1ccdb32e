"""The maintenance thread: exactly one answer to each task, also to a task that fails or is refused."""

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

#: No test waits longer than this for anything, in seconds.
WAIT_S = 60.0
CALLER = Caller(transport="ipc", uid=1000, gid=1000, pid=42)
ERASE = Maintenance(task="erase", actor="alice")
CHECKPOINT = Maintenance(task="checkpoint")

Answers = queue.SimpleQueue[tuple[int, "dict[str, Json] | RequestError"]]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.db", synchronous="OFF") as journal:
        private = {"agent": "alice"}
        body = {"id": "r1", "outcome": "BUY", "caller": {"transport": "ipc", "uid": 7}}
        journal.commit(
            Event(kind="decision_report", subject_id="r1", at=0.0, body=body, private=private)
        ).result(WAIT_S)
        yield journal


@contextmanager
def running(journal: Journal) -> Iterator[tuple[MaintenanceThread, Answers]]:
    answers: Answers = queue.SimpleQueue()

    def collect(ticket: int, done: JobDone) -> None:
        answers.put((ticket, done.answer))

    maintenance_thread = MaintenanceThread(journal, collect)
    try:
        yield maintenance_thread, answers
    finally:
        assert maintenance_thread.stop(WAIT_S)


def refusal(answer: dict[str, Json] | RequestError) -> RequestError:
    assert isinstance(answer, RequestError)
    return answer


def test_each_task_gets_one_answer_in_order_of_submission(journal: Journal) -> None:
    with running(journal) as (maintenance_thread, answers):
        for ticket, maintenance in enumerate(
            (CHECKPOINT, ERASE, ERASE, Maintenance(task="archive", before="1960-01-01"))
        ):
            maintenance_thread.submit(ticket, maintenance, CALLER)
        received = [answers.get(timeout=WAIT_S) for _ in range(4)]
    assert answers.empty()
    erased = {"own": 1, "mentions": 0, "archived": 0, "left": (), "parts": ()}
    assert received == [
        (0, {"done": {"checkpoint": 0}}),
        (1, {"done": erased}),
        (2, {"done": erased | {"own": 0}}),
        (3, {"done": {"archived": 0, "segments": [], "waits_for": None}}),
    ]


def test_an_erasure_is_recorded_with_the_uid_of_the_caller(journal: Journal) -> None:
    with running(journal) as (maintenance_thread, answers):
        maintenance_thread.submit(1, ERASE, CALLER)
        answers.get(timeout=WAIT_S)
    with closing(sqlite3.connect(journal.path)) as connection:
        rows = connection.execute("SELECT json_extract(body, '$.by_uid') FROM events WHERE kind = 'erased'")
        assert rows.fetchall() == [(1000,)]


def test_a_task_that_the_journal_rejects_gets_its_message_and_the_next_task_runs(journal: Journal) -> None:
    with running(journal) as (maintenance_thread, answers):
        maintenance_thread.submit(1, Maintenance(task="archive", before="yesterday"), CALLER)
        maintenance_thread.submit(2, CHECKPOINT, CALLER)
        ticket, answer = answers.get(timeout=WAIT_S)
        assert answers.get(timeout=WAIT_S) == (2, {"done": {"checkpoint": 0}})
    error = refusal(answer)
    assert (ticket, error.code) == (1, "unavailable")
    assert maintenance_thread.counters == {"done": 1, "failed": 1, "refused": 0}
    assert error.message.startswith("before: 'yesterday'")


def test_an_unexpected_error_is_answered_as_internal_and_logged_with_its_traceback(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    malformed = Maintenance(task="archive", before=7)  # type: ignore[arg-type]
    with running(journal) as (maintenance_thread, answers):
        maintenance_thread.submit(1, malformed, CALLER)
        maintenance_thread.submit(2, CHECKPOINT, CALLER)
        ticket, answer = answers.get(timeout=WAIT_S)
        assert answers.get(timeout=WAIT_S)[0] == 2
    error = refusal(answer)
    assert (ticket, error.code, error.message) == (1, "internal", "archive failed; the daemon's log says why")
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert caplog.records[0].exc_info


def test_a_stop_finishes_the_running_task_and_refuses_waiting_and_later_tasks(journal: Journal) -> None:
    begun, gate = threading.Event(), threading.Event()

    def hold(_: sqlite3.Connection) -> None:
        begun.set()
        assert gate.wait(WAIT_S)

    with running(journal) as (maintenance_thread, answers):
        journal.run(hold)
        assert begun.wait(WAIT_S)
        maintenance_thread.submit(1, CHECKPOINT, CALLER)
        while not journal.waiting:  # until the task runs, and waits for the journal thread
            pass
        maintenance_thread.submit(2, CHECKPOINT, CALLER)
        assert not maintenance_thread.stop(0)
        maintenance_thread.submit(3, CHECKPOINT, CALLER)
        late, refused_at_once = answers.get(timeout=WAIT_S)
        assert answers.empty()
        gate.set()
        assert maintenance_thread.stop(WAIT_S)
    assert (late, refusal(refused_at_once).code) == (3, "shutting_down")
    assert answers.get(timeout=WAIT_S) == (1, {"done": {"checkpoint": 0}})
    ticket, answer = answers.get(timeout=WAIT_S)
    assert (ticket, refusal(answer).code) == (2, "shutting_down")
    assert answers.empty()
    assert maintenance_thread.counters == {"done": 1, "failed": 0, "refused": 2}


def test_an_idle_maintenance_thread_stops_at_once_and_may_be_stopped_twice(journal: Journal) -> None:
    with running(journal) as (maintenance_thread, answers):
        assert maintenance_thread.stop(WAIT_S)
    assert answers.empty()
