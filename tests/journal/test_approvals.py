"""Tasks in the journal: the last checks of its writer, what restarts and rebuilds find, what is erased."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.build import ASKED, CALLER, NOON, PACK, Fates, rows, undo_migrations, without_model, writing
from thor_policy.core import records
from thor_policy.core.approvals import Moment, Person, Task
from thor_policy.core.decisions import Decision
from thor_policy.core.lifting import ApprovalStep, LiftedBy, Offer, Use
from thor_policy.core.requests import Caller
from thor_policy.core.results import Committed
from thor_policy.journal import approval_tasks, events, schema
from thor_policy.journal.events import Bounds
from thor_policy.journal.maintenance.archive import archive_before
from thor_policy.journal.maintenance.erase import erase
from thor_policy.journal.maintenance.rebuild import rebuild, rebuild_in_place
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.journal.writer import Journal
from thor_policy.telemetry.clocks import Instant

SPEC = LiftedBy(steps=(ApprovalStep(role="manager"), ApprovalStep(role="security")))
KIM, LEE, ANN = (
    Person(name="kim", roles=("manager",), groups=("board",)),
    Person(name="lee", roles=("security",)),
    Person(name="ann", roles=("manager", "security")),
)


#: Whoever approves; `CALLER` asks and requests.
OTHER = Caller(transport="ipc", uid=2000, gid=2000, pid=1)


class Keeping:
    """A journal under clocks that a test sets, and what it answered."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.up, self.wall, self.boot = 100.0, NOON, "a"
        self.numbers = iter(range(1, 1_000))
        self.open()

    def open(self) -> None:
        self.fates = Fates()
        self.journal = Journal(
            self.path,
            on_committed=self.fates,
            synchronous="OFF",
            now=lambda: Instant(self.boot, round(self.up * 1e9)),
            wall=lambda: self.wall,
        )

    def restart(self) -> None:
        self.journal.close()
        self.open()

    def wait(self, seconds: float) -> None:
        self.up, self.wall = self.up + seconds, self.wall + seconds

    def decide(self, **changes: Any) -> Decision:
        offer = Offer(lifted_by=changes.pop("spec", SPEC), binds=("context.change",), digest="d" * 64)
        number = next(self.numbers)
        fields = {"id": f"decision-{number}", "at": self.wall, "outcome": "ask", "offer": offer}
        decision = without_model(**(fields | changes))
        self.journal.decided(decision, number)
        (fate,) = self.fates.wait(1)
        assert fate.error is None
        return decision

    def lift(self, task: str, **changes: Any) -> Committed:
        use = Use(task=task, lifts="ask")
        fields = {"id": f"lifted-{next(self.numbers)}", "at": self.wall, "outcome": "allow", "allow": True}
        self.journal.decided(without_model(**(fields | {"use": use} | changes)))
        return self.fates.wait(1)[0]

    def write(self, what: records.Record, **changes: Any) -> Committed:
        record_id = f"record-{next(self.numbers)}"
        fields: dict[str, Any] = {"record_id": record_id, "at": self.wall, "caller": CALLER}
        self.journal.write(what, **(fields | changes))
        return self.fates.wait(1)[0]

    def request(self, decision: Decision, **members: Any) -> Committed:
        changes = {name: members.pop(name) for name in ("caller", "bounds") if name in members}
        return self.write(records.ApprovalRequest(decision_id=decision.id, **members), **changes)

    def task(self, **changes: Any) -> str:
        fate = self.request(self.decide(**changes))
        assert fate.task is not None
        return fate.task.id

    def approve(self, task: str, person: Person | None, **members: Any) -> Committed:
        changes = {name: members.pop(name) for name in ("caller", "recorder") if name in members}
        changes = {"caller": OTHER} | changes
        return self.write(records.Approve(task=task, **members), person=person, **changes)

    def deny(self, task: str, person: Person) -> Committed:
        return self.write(records.Deny(task=task), person=person, caller=OTHER)

    def approved(self, **changes: Any) -> str:
        task = self.task(**changes)
        assert [self.approve(task, person).error for person in (KIM, LEE)] == [None, None]
        return task

    def find(self, task: str) -> Task | None:
        return self.journal.run(lambda connection: approval_tasks.find(connection, task)).result()

    def state(self, task: str) -> str:
        known = self.find(task)
        assert known is not None
        return known.state(self.journal.moment())

    def open_tasks(self) -> list[str]:
        return [task for (task,) in rows(self.path, "SELECT task FROM approvals_open ORDER BY seq")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "policy_decisions.db"


@pytest.fixture
def here(path: Path) -> Iterator[Keeping]:
    place = Keeping(path)
    yield place
    place.journal.close()


def why(fate: Committed) -> tuple[str | None, str | None]:
    return fate.error, fate.reason_code


# ---------------------------------------------------------------- the last checks


def test_a_use_is_recorded_with_its_decision_and_the_second_is_refused(here: Keeping) -> None:
    task = here.approved()
    assert here.lift(task).error is None
    assert why(here.lift(task)) == ("conflict", "approval_used")
    known = here.find(task)
    assert known is not None
    assert known.is_spent
    assert len(known.used_by) == 1


def test_of_two_uses_in_one_transaction_one_is_recorded(here: Keeping) -> None:
    task = here.approved()
    with here.fates.one_batch(here.journal):
        for number in (1, 2):
            use = Use(task=task, lifts="ask")
            here.journal.decided(without_model(id=f"at-once-{number}", outcome="allow", allow=True, use=use))
    assert [fate.reason_code for fate in here.fates.wait(2)] == [None, "approval_used"]


def test_a_use_after_an_end_in_the_same_transaction_is_refused(here: Keeping) -> None:
    task = here.approved()
    with here.fates.one_batch(here.journal):
        here.journal.write(records.Cancel(task=task), record_id="c", at=NOON, caller=CALLER)
        use = Use(task=task, lifts="ask")
        here.journal.decided(without_model(id="too-late", outcome="allow", allow=True, use=use))
    assert [fate.error for fate in here.fates.wait(2)] == [None, "conflict"]


def test_two_verdicts_in_one_transaction_are_not_one_step(here: Keeping) -> None:
    task = here.task()
    with here.fates.one_batch(here.journal):
        for number, person in enumerate((KIM, replace(KIM, name="mo"), LEE)):
            here.journal.write(
                records.Approve(task=task), record_id=f"v{number}", at=NOON, caller=OTHER, person=person
            )
    assert [fate.error for fate in here.fates.wait(3)] == [None, "unauthorized", None]


def test_a_task_that_is_not_approved_lifts_nothing(here: Keeping) -> None:
    pending, partial, denied, late = here.task(), here.task(), here.task(), here.approved()
    here.approve(partial, KIM)
    here.deny(denied, KIM)
    for task in (pending, partial, denied, "unknown"):
        assert why(here.lift(task)) == ("conflict", "approval_used")
    here.wait(3_600)
    assert here.lift(late).error == "conflict"


def test_a_decision_that_an_approval_did_not_lift_is_recorded_whatever_it_says(here: Keeping) -> None:
    use = Use(task="unknown", code="approval_unknown")
    assert here.decide(use=use).use == use


def test_a_verdict_of_nobody_or_about_nothing_is_refused(here: Keeping) -> None:
    assert why(here.approve(here.task(), None)) == ("unauthorized", "approval_insufficient")
    assert why(here.approve("unknown", KIM)) == ("not_found", "unknown_task")
    assert here.write(records.Cancel(task="unknown")).error == "not_found"


def test_a_refused_verdict_leaves_nothing(here: Keeping) -> None:
    task = here.task()
    before = here.journal.seq
    here.approve(task, LEE)
    assert here.journal.seq == before
    assert rows(here.path, "SELECT count(*) FROM approvals") == [(0,)]


def test_roles_and_groups_are_those_at_the_time(here: Keeping) -> None:
    task = here.task()
    here.approve(task, KIM)
    here.approve(task, replace(LEE, roles=("security", "lead")))
    known = here.find(task)
    assert known is not None
    assert [(verdict.name, verdict.roles, verdict.groups) for verdict in known.verdicts] == [
        ("kim", ("manager",), ("board",)),
        ("lee", ("security", "lead"), ()),
    ]


def test_names_and_comments_are_beside_the_chain(here: Keeping) -> None:
    consent = records.Consent(approver="kim", channel="email", evidence="mail 4711")
    task = here.task(spec=replace(SPEC, consents=("email",)))
    here.approve(task, KIM, consent=consent, recorder=ANN, comment="it is fine")
    ((body, private),) = rows(
        here.path,
        "SELECT e.body, p.value FROM events e JOIN private p ON p.seq = e.seq WHERE e.kind = 'approval'",
    )
    for text in ('"kim"', '"ann"', "4711", "fine", "manager", "board"):
        assert text not in body
        assert text in private
    assert '"channel":"email"' in body


@pytest.mark.parametrize(
    ("person", "sender"),
    [
        (replace(KIM, name="Alice"), None),
        (replace(KIM, aliases=("alice",)), None),
        (replace(KIM, aliases=("\uff21LICE",)), None),
        (replace(KIM, aliases=("uid:1000",)), None),
        (KIM, CALLER),
    ],
    ids=["its name", "its user name", "another spelling", "the caller's uid", "the caller itself"],
)
def test_subject_and_caller_of_the_question_may_not_approve(
    here: Keeping, person: Person, sender: Caller | None
) -> None:
    task = here.task()
    fate = here.approve(task, person, caller=sender or OTHER)
    assert why(fate) == ("unauthorized", "approval_insufficient")
    assert "of the question" in (fate.message or "")


def test_bounds_count_what_the_same_transaction_opens(here: Keeping) -> None:
    first, second, third = (here.decide() for _ in range(3))
    bounds = Bounds(of_caller=2, of_subject=10, in_all=10)
    with here.fates.one_batch(here.journal):
        for number, decision in enumerate((first, second, third)):
            record = records.ApprovalRequest(decision_id=decision.id)
            here.journal.write(record, record_id=f"q{number}", at=NOON, caller=CALLER, bounds=bounds)
    assert [fate.error for fate in here.fates.wait(3)] == [None, None, "busy"]


def test_two_requests_for_one_decision_in_one_transaction_are_one_task(here: Keeping) -> None:
    decision = here.decide()
    with here.fates.one_batch(here.journal):
        for number in (1, 2):
            record = records.ApprovalRequest(decision_id=decision.id)
            here.journal.write(record, record_id=f"q{number}", at=NOON, caller=CALLER)
    assert [fate.reason_code for fate in here.fates.wait(2)] == [None, "duplicate_request"]


# ---------------------------------------------------------------- clocks


def test_over_a_restart_in_the_same_boot_the_wall_clock_does_not_matter(here: Keeping) -> None:
    task = here.approved()
    here.up, here.wall = here.up + 3_599, NOON - 1e6
    here.restart()
    assert here.state(task) == "approved"
    here.up += 1
    assert here.state(task) == "expired"


def test_over_a_boot_the_wall_clock_counts(here: Keeping) -> None:
    task = here.approved()
    here.boot, here.up, here.wall = "b", 5.0, NOON + 3_000
    here.restart()
    assert here.state(task) == "approved"
    here.wait(600)
    assert here.state(task) == "expired"


def test_a_wall_clock_that_stands_before_the_newest_event_is_not_believed(here: Keeping) -> None:
    task = here.approved()
    here.wait(3_000)
    here.decide()
    here.boot, here.up, here.wall = "b", 5.0, NOON + 100
    here.restart()
    assert here.state(task) == "expired"


def test_a_wall_clock_that_is_set_back_while_the_daemon_runs_is_not_believed(here: Keeping) -> None:
    task = here.approved()
    here.boot, here.up, here.wall = "b", 5.0, NOON + 3_000
    here.restart()
    here.wait(300)
    here.wall -= 0.9  # a time server may do that
    assert here.state(task) == "approved"
    here.wall -= 0.2
    assert here.state(task) == "expired"
    here.restart()  # the journal was told nothing since
    assert here.state(task) == "approved"


def test_a_moment_names_both_clocks(here: Keeping) -> None:
    assert here.journal.moment() == Moment("a", 100 * 10**9, NOON)
    here.wall -= 2
    assert here.journal.moment().back


def test_what_has_expired_is_recorded_and_stays_so(here: Keeping) -> None:
    task = here.approved()
    end = events.approval_end(task, "decision-1", "expired", here.wall)
    here.journal.append(end)
    assert here.fates.wait(1)[0].error == "conflict"
    here.wait(3_600)
    here.journal.append(end)
    assert here.fates.wait(1)[0].error is None
    here.journal.append(end)
    assert here.fates.wait(1)[0].error == "conflict"
    here.up -= 3_600
    assert here.state(task) == "expired"
    assert here.lift(task).error == "conflict"


def test_an_archived_task_counts_by_its_wall_time(here: Keeping) -> None:
    task = here.approved()
    here.wait(1_000)
    here.decide()
    archive_before(here.journal, "2026-07-01T12:10:00Z")
    assert rows(here.path, "SELECT min(seq) > 3 FROM events") == [(1,)]
    assert here.state(task) == "approved"
    assert here.lift(task).error is None
    assert here.lift(task).error == "conflict"


def test_an_archived_decision_cannot_be_requested(here: Keeping) -> None:
    decision = here.decide()
    here.wait(1_000)
    here.decide()
    archive_before(here.journal, "2026-07-01T12:10:00Z")
    assert why(here.request(decision)) == ("conflict", "expired_denial")


def test_the_time_of_an_archived_task_runs_out(here: Keeping) -> None:
    task = here.approved()
    here.wait(1_000)
    here.decide()
    archive_before(here.journal, "2026-07-01T12:10:00Z")
    here.wait(2_601)
    assert here.state(task) == "expired"


# ---------------------------------------------------------------- open tasks, rebuilds, earlier versions


def ended_in_every_way(here: Keeping) -> tuple[list[str], list[str]]:
    """Tasks that are open, and others that are over."""
    pending, partial, approved = here.task(), here.task(), here.approved()
    here.approve(partial, KIM)
    until = here.approved(spec=replace(SPEC, uses="until"))
    assert here.lift(until).error is None
    used, denied, cancelled = here.approved(), here.task(), here.task()
    assert here.lift(used).error is None
    assert here.deny(denied, KIM).error is None
    assert here.write(records.Cancel(task=cancelled)).error is None
    return [pending, partial, approved, until], [used, denied, cancelled]


def test_only_tasks_that_can_still_lift_something_are_open(here: Keeping) -> None:
    still_open, _ = ended_in_every_way(here)
    assert here.open_tasks() == still_open


def tables(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    names = ("approval_requests", "approval_ends", "approvals", "approvals_open", "decisions", "trace_edges")
    return {name: sorted(rows(path, f"SELECT * FROM {name}"), key=repr) for name in names}


def test_a_rebuild_gives_the_same_tasks(here: Keeping, tmp_path: Path) -> None:
    ended_in_every_way(here)
    copy = tmp_path / "copy" / "policy_decisions.db"
    rebuild(here.path, copy)
    assert tables(copy) == tables(here.path)


def test_a_rebuild_in_place_repairs_the_list_of_open_tasks(here: Keeping) -> None:
    still_open, over = ended_in_every_way(here)
    before = tables(here.path)
    with writing(here.path) as connection:
        connection.execute("DELETE FROM approvals_open WHERE task = ?", (still_open[0],))
        connection.execute("INSERT INTO approvals_open VALUES (99999, ?, 'uid:1000')", (over[0],))
        connection.execute("INSERT INTO approvals_open VALUES (99998, 'planted', 'uid:1000')")
    rebuild_in_place(here.journal)
    assert tables(here.path) == before


def test_the_chain_is_valid_and_each_change_is_an_event(here: Keeping) -> None:
    ended_in_every_way(here)
    here.journal.close()
    assert verify(here.path).ok
    counts = dict(rows(here.path, "SELECT kind, count(*) FROM events GROUP BY kind"))
    assert (counts["approval_request"], counts["approval"], counts["approval_end"]) == (7, 8, 1)


def test_a_journal_of_the_version_before_takes_approvals(path: Path) -> None:
    place = Keeping(path)
    place.decide()
    old = records.Approval(decision_id="decision-1", approver="robin", role="lead", channel="mail")
    assert place.write(old).error is None
    place.journal.close()
    undo_migrations(path, "0015_approvals")
    with closing(sqlite3.connect(path)) as connection:
        assert [name for name in schema.pending(connection) if "approvals" in name]
    place.open()
    assert rows(path, "SELECT approver, role, task FROM approvals") == [("robin", "lead", None)]
    assert rows(path, "SELECT type, target FROM trace_edges WHERE type = 'APPROVED_BY'") == [
        ("APPROVED_BY", "robin")
    ]
    task = place.approved()
    assert place.lift(task).error is None
    place.journal.close()
    assert verify(path).ok


def test_a_lifted_decision_is_approved_and_countersigned(here: Keeping) -> None:
    task = here.approved()
    here.lift(task, id="the-allowed")
    edges = rows(here.path, "SELECT type, target FROM trace_edges WHERE source = 'the-allowed' ORDER BY type")
    assert ("APPROVED_BY", "kim") in edges
    assert ("COUNTERSIGNED_BY", "lee") in edges


# ---------------------------------------------------------------- erasure


def test_an_approver_that_was_erased_counts_for_no_step_any_more(here: Keeping) -> None:
    task, used = here.approved(), here.approved()
    here.lift(used)
    erase(here.journal, "user:lee")
    known, spent = here.find(task), here.find(used)
    assert known is not None
    assert spent is not None
    assert [verdict.name for verdict in known.verdicts] == ["kim", None]
    assert here.state(task) == "partial"
    assert here.lift(task).error == here.lift(used).error == "conflict"
    assert spent.is_spent


def test_a_rejection_by_somebody_who_was_erased_still_rejects(here: Keeping) -> None:
    task = here.task()
    here.deny(task, KIM)
    erase(here.journal, "user:kim")
    assert here.state(task) == "denied"


def test_after_the_subject_was_erased_nobody_can_be_told_from_it(here: Keeping) -> None:
    task = here.task()
    erase(here.journal, f"user:{ASKED.subject.id}")
    assert why(here.approve(task, KIM)) == ("unauthorized", "approval_insufficient")


def test_reason_and_comments_can_be_erased(here: Keeping) -> None:
    decision = here.decide()
    fate = here.request(decision, reason="because Lee said so")
    assert fate.task is not None
    here.approve(fate.task.id, KIM, comment="as lee wished")
    erasure = erase(here.journal, "user:lee")
    assert erasure.left == ()
    assert rows(here.path, "SELECT reason FROM approval_requests WHERE reason LIKE '%Lee said%'") == []
    assert rows(here.path, "SELECT comment FROM approvals WHERE comment LIKE '%lee%'") == []


def test_a_reader_lists_tasks_newest_first(here: Keeping) -> None:
    tasks = [here.task() for _ in range(3)]
    with Reader(here.path) as reader, reader.snapshot() as connection:
        assert [task.id for task in approval_tasks.newest(connection, 2)] == tasks[::-1][:2]
        assert [task.id for task in approval_tasks.open_tasks(connection)] == tasks
        assert [task.id for task in approval_tasks.tasks_about(connection, "decision-1")] == tasks[:1]
        assert approval_tasks.find(connection, "unknown") is None
    assert PACK.name == approvals_pack(here, tasks[0])


def approvals_pack(here: Keeping, task: str) -> str:
    known = here.find(task)
    assert known is not None
    return known.pack.name
