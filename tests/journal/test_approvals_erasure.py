"""Erasure of people who approve, record consents, or are asked about: no name is left, no step stays done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.build import ASKED, NOON, Fates, record, rows
from tests.tasks import ANN, KIM, LEE, cancelled, given, lift, liftable, lifted, requested
from thor_policy.core import records
from thor_policy.core.approvals import Moment, Person, Task
from thor_policy.core.decisions import Decision
from thor_policy.core.requests import Entity
from thor_policy.journal import approval_tasks
from thor_policy.journal.events import Event
from thor_policy.journal.maintenance.archive import archive_before
from thor_policy.journal.maintenance.erase import Erasure, erase
from thor_policy.journal.maintenance.rebuild import rebuild_in_place
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.journal.writer import Journal
from thor_policy.telemetry import clocks

KIM_LEE = Person(name="Kim Lée", roles=("manager",), aliases=("uid:61002", "61002"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def erased(path: Path, *actors: str) -> list[Erasure]:
    with Journal(path, synchronous="OFF") as journal:
        return [erase(journal, actor) for actor in actors]


def task_of(path: Path, task: str = "task-1") -> Task:
    with Reader(path) as reader, reader.snapshot() as connection:
        task_then = approval_tasks.find(connection, task)
    assert task_then is not None
    return task_then


def refusal_of(path: Path, what: Decision | Event) -> str | None:
    """The code with which the journal refuses an event."""
    fates = Fates()
    with Journal(path, on_committed=fates, synchronous="OFF") as journal:
        if isinstance(what, Decision):
            journal.decided(what)
        else:
            journal.append(what)
        (fate,) = fates.wait(1)
    return fate.error


def status_of(path: Path) -> str:
    boot_id, ns = clocks.now()
    return task_of(path).state(Moment(boot_id, ns, NOON + 10))


def holders(path: Path, name: str) -> list[str]:
    """The tables in which any text has the name, in any case."""
    holding = []
    for (table,) in rows(path, "SELECT name FROM sqlite_schema WHERE type = 'table'"):
        texts = [str(value) for row in rows(path, f"SELECT * FROM {table}") for value in row]
        if any(name.casefold() in text.casefold() for text in texts):
            holding.append(table)
    return holding


def consent(name: str = "kim") -> records.Consent:
    return records.Consent(approver=name, channel="email", evidence="the mail of Kim, who is on leave")


CHANGES: dict[str, Sequence[Event]] = {
    "an approver": [given(KIM)],
    "an approver who comments": [given(KIM, comment="Kim says yes")],
    "a person who denies": [given(KIM, denies=True, comment="Kim says no")],
    "the second approver": [given(replace(KIM, name="otto")), given(replace(LEE, name="kim"))],
    "a person whose consent is recorded": [given(KIM, recorder=ANN, consent=consent())],
    "a recorder": [
        given(replace(KIM, name="otto"), recorder=replace(ANN, name="kim"), consent=consent("otto"))
    ],
    "a mention in a comment": [given(replace(KIM, name="otto"), comment="as kim wished")],
    "a mention in the reason of an end": [cancelled(reason="kim is ill")],
}


@pytest.mark.parametrize("archived", [False, True], ids=["in the database", "in an archive"])
@pytest.mark.parametrize("case", CHANGES)
def test_no_table_and_no_file_holds_the_name_of_a_person(path: Path, case: str, archived: bool) -> None:
    denied = liftable()
    record(path, denied)
    record(path, requested(denied, reason="kim asked for it"), *CHANGES[case])
    if archived:
        record(path, liftable(at=NOON + 100))
        with Journal(path, synchronous="OFF") as journal:
            archive_before(journal, "2026-07-01T12:01:00Z")
    (erasure,) = erased(path, "user:kim")
    assert (erasure.left, holders(path, "kim")) == ((), [])
    assert verify(path).ok
    with Journal(path, synchronous="OFF") as journal:
        rebuild_in_place(journal)
    assert (holders(path, "kim"), verify(path).ok) == ([], True)


@pytest.mark.parametrize(
    ("given_before", "before", "missing"),
    [
        ([given(KIM)], "partial", ["manager", "security"]),
        ([given(KIM), given(LEE)], "approved", ["manager", "security"]),
        ([given(KIM, recorder=ANN, consent=consent())], "partial", ["manager", "security"]),
        ([given(replace(KIM, name="Kim Lee")), given(LEE)], "approved", ["manager", "security"]),
    ],
    ids=["the first", "of a whole chain", "by mail", "with a part of the name"],
)
def test_the_approval_of_an_erased_person_no_longer_counts(
    path: Path, given_before: list[Event], before: str, missing: list[str]
) -> None:
    denied = liftable()
    record(path, denied)
    record(path, requested(denied), *given_before)
    assert status_of(path) == before
    erased(path, "user:kim")
    assert status_of(path) == "partial"
    assert task_of(path).missing() == [missing]
    assert refusal_of(path, lifted()) == "conflict"


def test_another_person_can_take_the_step_of_an_erased_one(path: Path) -> None:
    denied = liftable()
    record(path, denied)
    record(path, requested(denied), given(KIM))
    erased(path, "user:kim")
    record(path, given(Person(name="eve", roles=("manager",), aliases=("uid:61009", "61009"))), given(LEE))
    assert status_of(path) == "approved"


def test_two_erased_people_are_not_the_same_person_and_none_of_them_counts(path: Path) -> None:
    denied = liftable()
    record(path, denied)
    record(path, requested(denied), given(KIM), given(LEE))
    erased(path, "user:kim", "user:lee")
    task = task_of(path)
    assert [verdict.name for verdict in task.verdicts] == [None, None]
    assert task.missing() == [["manager", "security"]]


def test_the_erasure_of_the_second_approver_leaves_the_first_step_done(path: Path) -> None:
    denied = liftable()
    record(path, denied)
    record(path, requested(denied), given(KIM), given(LEE))
    erased(path, "user:lee")
    assert task_of(path).missing() == [["security"]]


def test_a_task_that_an_erased_person_denied_stays_denied(path: Path) -> None:
    denied = liftable()
    record(path, denied)
    record(path, requested(denied), given(KIM, denies=True))
    erased(path, "user:kim")
    assert status_of(path) == "denied"


def test_a_consent_stands_without_the_name_of_its_recorder(path: Path) -> None:
    denied = liftable()
    record(path, denied)
    record(path, requested(denied), given(KIM, recorder=ANN, consent=consent()))
    (erasure,) = erased(path, "user:ann")
    (verdict,) = task_of(path).verdicts
    assert (verdict.name, verdict.channel) == ("kim", "email")
    assert erasure.left == ()
    assert task_of(path).missing() == [["security"]]


def test_a_name_of_two_words_and_of_other_letters_is_erased(path: Path) -> None:
    denied = liftable()
    record(path, denied)
    record(path, requested(denied), given(KIM_LEE))
    (erasure,) = erased(path, "user:kim le\N{COMBINING ACUTE ACCENT}e")
    assert (erasure.left, holders(path, "kim lée")) == ((), [])
    assert task_of(path).missing() == [["manager", "security"]]


def test_the_erasure_of_the_subject_leaves_no_approval_and_nobody_who_may_give_one(path: Path) -> None:
    denied = liftable()
    record(path, denied)
    record(path, requested(denied, reason="alice needs it"), given(KIM, comment="for alice"))
    (erasure,) = erased(path, "user:alice")
    assert (erasure.left, holders(path, "alice"), verify(path).ok) == ((), [], True)
    assert task_of(path).subject is None
    assert task_of(path).missing() == [["manager", "security"]]
    assert refusal_of(path, given(replace(KIM, name="eve"))) == "unauthorized"


def test_a_subject_of_another_type_that_lost_its_name_may_be_anybody(path: Path) -> None:
    denied = liftable(evaluation=replace(ASKED, subject=Entity(type="robot", id="kim")))
    record(path, denied)
    record(path, requested(denied))
    erased(path, "user:kim")
    assert holders(path, "kim") == []
    assert refusal_of(path, given(replace(KIM, name="eve"))) == "unauthorized"


def test_a_lifted_decision_keeps_its_outcome_and_its_task_without_the_names(path: Path) -> None:
    _, allowed = lift(path)
    erasures = erased(path, "user:kim", "user:lee")
    assert [erasure.left for erasure in erasures] == [(), ()]
    assert verify(path).ok
    with Reader(path) as reader:
        row = reader.get(allowed.id)
    assert row is not None
    assert (row["decision"], row["approval_task"], row["lifted"]) == (
        "allow",
        "task-1",
        "require_attestation",
    )
    assert task_of(path).used_by == (allowed.id,)


def test_the_requester_of_a_task_is_recorded_as_a_number(path: Path) -> None:
    denied = liftable()
    record(path, denied)
    record(path, requested(denied))
    assert task_of(path).requested_by == "uid:1000"
    (erasure,) = erased(path, "user:alice")
    assert erasure.left == ()
    assert task_of(path).requested_by == "uid:1000"
