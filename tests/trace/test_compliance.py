"""Reports of compliance: which decisions they have, what each row says, and that no change goes unnoticed."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec import to_builtins
from msgspec.structs import replace

from tests.build import CALLER, NOON, PACK, by_model, by_rule, record, sent, signing, writing
from tests.tasks import ANN, KIM, LEE, given, liftable, lifted, requested
from thor_policy.core import records
from thor_policy.core.decisions import Decision, Traits
from thor_policy.core.errors import JournalError
from thor_policy.core.requests import Annotations, Caller, Json
from thor_policy.journal import events
from thor_policy.journal.checkpoints import read_directory
from thor_policy.journal.compliance_queries import MOST_RECORDS
from thor_policy.journal.events import timestamp
from thor_policy.journal.maintenance.archive import archive_before
from thor_policy.journal.maintenance.erase import erase
from thor_policy.journal.reader import Reader, Record
from thor_policy.journal.writer import Journal
from thor_policy.trace import compliance
from thor_policy.trace.compliance import Report, Seal, check, months_before

NOW = NOON + 1_000
DAY = 86_400


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "policy_decisions.db"


def exception(type_: str = "exception", *, by: Callable[..., Decision] = by_rule, **changes: Any) -> Decision:
    decision = by(**changes)
    traits = Traits(type=type_, is_exception=True)
    return replace(decision, floor=replace(decision.floor, traits=traits))


def report(path: Path, **changes: Any) -> tuple[list[Record], Seal]:
    """The rows of a report over all time, and its seal."""
    chosen: dict[str, Any] = {"type": "exception", "since": "2020-01-01", "until": None, "now": NOW}
    with Reader(path) as reader:
        made = Report(reader, **chosen | changes)
        rows = list(made)
        return rows, made.seal(path.parent / "checkpoints", path.parent / "checkpoint.key")


def stored(rows: list[Record], seal: Seal) -> bytes:
    return json.dumps({"rows": rows, **to_builtins(seal)}).encode()


def problem(path: Path, content: bytes) -> str | None:
    return check(content, read_directory(path.parent / "checkpoints").public_keys)[1]


# ---------------------------------------------------------------- which decisions


def test_a_report_has_the_decisions_of_its_type_newest_first(path: Path) -> None:
    wanted = [exception(at=NOON + number) for number in range(3)]
    record(path, by_rule(), wanted[0], exception("refund"), wanted[1], by_rule(), wanted[2])
    rows, _ = report(path, type="refund")
    assert [row["type"] for row in rows] == ["refund"]
    rows, _ = report(path)
    assert [row["id"] for row in rows if row["type"] == "exception"] == [each.id for each in wanted[::-1]]


def test_the_type_exception_has_each_decision_that_is_marked_as_one_and_each_only_once(path: Path) -> None:
    marked, of_type = exception("refund"), exception()
    plain = by_rule()
    unmarked = replace(plain, floor=replace(plain.floor, traits=Traits(type="exception")))
    record(path, marked, of_type, unmarked, by_rule())
    rows, _ = report(path)
    assert [(row["id"], row["is_exception"]) for row in rows] == [
        (unmarked.id, False),
        (of_type.id, True),
        (marked.id, True),
    ]


def test_a_report_of_a_common_type_is_possible_too(path: Path) -> None:
    usual = by_rule()
    record(path, usual, exception())
    assert [row["id"] for row in report(path, type="policy_application")[0]] == [usual.id]


def test_the_span_has_its_first_moment_and_not_its_last(path: Path) -> None:
    made = [exception(at=NOON + DAY * number) for number in range(4)]
    record(path, *made)
    rows, seal = report(path, since=timestamp(NOON + DAY), until=timestamp(NOON + 3 * DAY))
    assert [row["id"] for row in rows] == [made[2].id, made[1].id]
    assert seal.statement.since == timestamp(NOON + DAY)


def test_a_clock_that_was_set_back_hides_no_decision(path: Path) -> None:
    later, earlier = exception(at=NOON + DAY), exception(at=NOON)
    record(path, later, earlier)
    assert [row["id"] for row in report(path, until=timestamp(NOON + 1))[0]] == [earlier.id]
    assert [row["id"] for row in report(path, since=timestamp(NOON + 1), now=NOON + 2 * DAY)[0]] == [later.id]


def test_traces_in_quarantine_claims_and_tests_are_left_out_and_counted(path: Path) -> None:
    counted, held = exception(), exception()
    held = replace(held, floor=replace(held.floor, traits=Traits(type="exception", required=("outcome",))))
    of_test = exception(annotations=Annotations(scenario_id="S1"))
    claim = records.DecisionReport(agent="bot", outcome="granted", type="exception")
    record(path, held, counted, of_test, sent(claim, claimed=True))
    rows, seal = report(path)
    assert [row["id"] for row in rows] == [counted.id]
    assert seal.statement.left_out == {"quarantined": 1, "claims": 1, "tests": 1}
    assert (seal.statement.rows, seal.statement.more) == (1, False)


def test_pages_of_a_report_join_without_gap_and_say_whether_more_follows(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compliance, "PAGE", 2)
    made = [exception(at=NOON + number) for number in range(7)]
    record(path, *made)
    ids: list[str] = []
    before, more = None, True
    while more:
        rows, seal = report(path, limit=3, before=before)
        ids += [row["id"] for row in rows]
        before, more = rows[-1]["id"], seal.statement.more
    assert ids == [each.id for each in made[::-1]]
    assert report(path, limit=7)[1].statement.more is False


def test_what_is_recorded_while_a_report_is_read_is_not_in_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compliance, "PAGE", 1)
    old, new, later = exception(), exception(), exception()
    record(path, old, new)
    with Reader(path) as reader:
        rows = iter(Report(reader, type="exception", since="2020-01-01", until=None, now=NOW))
        first = next(rows)
        overturned = records.TraceState(decision_id=old.id, status="overturned", by=new.id, because="wrong")
        record(path, later, sent(overturned))
        assert [first["id"], *((row["id"], row["status"]) for row in rows)] == [new.id, (old.id, "active")]
    assert [(row["id"], row["status"]) for row in report(path)[0]][-1] == (old.id, "overturned")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"since": "soon"}, "since: 'soon'"),
        ({"until": "late"}, "until: 'late'"),
        ({"since": "2027-01-01", "until": "2026-01-01"}, "is not before until"),
        ({"limit": 0}, "limit: must be from 1"),
        ({"limit": 100_001}, "limit: must be from 1"),
        ({"before": "nothing"}, "there is no decision 'nothing'"),
    ],
)
def test_a_wrong_scope_is_refused_with_its_field(path: Path, changes: Any, message: str) -> None:
    record(path, exception())
    with pytest.raises(JournalError, match=message):
        report(path, **changes)


@pytest.mark.parametrize(
    ("at", "months", "since"),
    [
        ("2026-07-31T10:00:00+00:00", 24, "2024-07-31T10:00:00+00:00"),
        ("2026-03-31T10:00:00+00:00", 1, "2026-02-28T10:00:00+00:00"),
        ("2028-03-31T10:00:00+00:00", 1, "2028-02-29T10:00:00+00:00"),
        ("2028-02-29T10:00:00+00:00", 12, "2027-02-28T10:00:00+00:00"),
        ("2026-01-15T10:00:00+00:00", 1, "2025-12-15T10:00:00+00:00"),
        ("2026-12-31T10:00:00+00:00", 12, "2025-12-31T10:00:00+00:00"),
    ],
)
def test_months_are_those_of_the_calendar(at: str, months: int, since: str) -> None:
    assert months_before(datetime.fromisoformat(at).timestamp(), months) == since


def test_months_before_the_year_1_are_refused() -> None:
    with pytest.raises(JournalError, match="fewer months"):
        months_before(NOON, 12 * 2_026)


# ---------------------------------------------------------------- what a row says


def test_a_row_names_the_policy_in_force_with_its_digest_and_time(path: Path) -> None:
    newer = replace(PACK, version="1.3.0", sha256="d" * 64)
    made = exception(at=NOON + 1)
    record(
        path, events.pack_activated(PACK, NOON), made, events.pack_activated(newer, NOON + 5),
        exception(at=NOON + 6, pack=newer), exception(at=NOON + 7),
    )  # fmt: skip
    resident, active, row = report(path)[0]
    assert row["policy"] == {
        "name": "core",
        "version": "1.2.0",
        "sha256": PACK.sha256,
        "effective_from": timestamp(NOON),
        "effective_to": timestamp(NOON + 5),
    }
    assert (active["policy"]["effective_from"], active["policy"]["effective_to"]) == (
        timestamp(NOON + 5),
        None,
    )
    assert (resident["policy"]["version"], resident["policy"]["effective_from"]) == ("1.2.0", None)


def test_a_row_names_approvers_with_their_role_channel_evidence_and_recorder(path: Path) -> None:
    made = exception()
    first = records.Approval(
        decision_id=made.id, approver="ines", role="manager", channel="email", evidence="T-1"
    )
    second = records.Approval(decision_id=made.id, approver="otto", verdict="rejected", step=2)
    record(path, made, sent(first), sent(second, caller=Caller(transport="tcp", key="laptop")))
    ((row,), _) = report(path)
    shown = ("verdict", "approver", "role", "channel", "evidence", "step", "recorded_by")
    assert [tuple(approval[name] for name in shown) for approval in row["approvals"]] == [
        ("approved", "ines", "manager", "email", "T-1", 1, "uid:1000"),
        ("rejected", "otto", None, None, None, 2, "key:laptop"),
    ]
    assert row["recorded_by"] == CALLER.who


def test_a_decision_that_a_task_lifted_shows_the_approvers_of_that_task(path: Path) -> None:
    denied, allowed = liftable(), exception(by=lifted)
    record(path, denied)
    consent = records.Consent(approver="kim", channel="email", evidence="mail 7")
    record(path, requested(denied), given(KIM, recorder=ANN, consent=consent), given(LEE))
    record(path, allowed)
    ((row,), _) = report(path)
    assert (row["id"], row["lifted"]) == (allowed.id, "require_attestation")
    kim, lee = row["approvals"]
    assert (kim["approver"], kim["role"], kim["recorded_by"]) == ("kim", "manager", "ann")
    assert (kim["channel"], kim["evidence"], kim["task"]) == ("email", "mail 7", "task-1")
    assert (lee["approver"], lee["role"], lee["recorded_by"]) == ("lee", "security", "uid:61003")


def test_a_row_says_when_by_which_decision_and_by_whom_it_was_overturned(path: Path) -> None:
    old, newer, better = exception(), by_rule(), by_rule()
    record(path, old, newer, better)
    superseded = records.TraceState(decision_id=old.id, status="superseded", by=newer.id, because="newer")
    overturned = records.TraceState(decision_id=old.id, status="overturned", by=better.id, because="wrong")
    reviewer = Caller(transport="tcp", key="audit")
    record(path, sent(superseded, at=NOON + 1), sent(overturned, at=NOON + 2, caller=reviewer))
    ((row,), _) = report(path)
    assert row["status"] == "overturned"
    assert row["states"] == [
        {"status": "superseded", "at": timestamp(NOON + 1), "by": newer.id, "because": "newer",
         "recorded_by": "uid:1000"},
        {"status": "overturned", "at": timestamp(NOON + 2), "by": better.id, "because": "wrong",
         "recorded_by": "key:audit"},
    ]  # fmt: skip


def test_a_reported_decision_says_who_recorded_it_and_when_it_was_made(path: Path) -> None:
    made_at = "2026-06-01T09:00:00+02:00"
    reported = records.DecisionReport(
        agent="ines", made_by="human", outcome="granted", type="exception", timestamp_decision=made_at
    )
    record(path, sent(reported, caller=Caller(transport="tcp", key="crm")))
    ((row,), _) = report(path)
    assert (row["recorded_by"], row["actor"], row["decided_by"]) == ("key:crm", "human:ines", "human")
    assert (row["made_at"], row["at"], row["policy"]) == (
        "2026-06-01T07:00:00.000000Z",
        timestamp(NOON),
        None,
    )


def test_approvals_beyond_the_bound_are_counted(path: Path) -> None:
    made = exception()
    record(path, made, *(sent(records.Approval(decision_id=made.id, approver=f"p{n}")) for n in range(103)))
    ((row,), _) = report(path)
    assert (len(row["approvals"]), row["approvals_not_listed"]) == (MOST_RECORDS, 3)


def test_an_archive_changes_no_row_but_for_callers_over_tcp(path: Path) -> None:
    made = exception(at=NOON + 1)
    approval = records.Approval(decision_id=made.id, approver="ines")
    record(
        path, events.pack_activated(PACK, NOON), made, sent(approval),
        sent(approval, caller=Caller(transport="tcp", key="laptop")), by_rule(),
    )  # fmt: skip
    ((before,), _) = report(path)
    with Journal(path, synchronous="OFF") as journal:
        assert archive_before(journal, "2100-01-01T00:00:00Z")
    ((after,), seal) = report(path)
    assert [approval["recorded_by"] for approval in after["approvals"]] == ["uid:1000", None]
    before["approvals"][1]["recorded_by"] = None
    assert after == before
    assert len(seal.statement.chain) == 64


def test_erased_names_are_in_no_report(path: Path) -> None:
    made = exception()
    record(path, made, sent(records.Approval(decision_id=made.id, approver="ines", evidence="mail of ines")))
    with Journal(path, synchronous="OFF") as journal:
        assert erase(journal, "user:alice").left == ()
        assert erase(journal, "ines").left == ()
    ((row,), _) = report(path)
    assert "alice" not in str(row)
    assert "ines" not in str(row)
    assert (row["actor"], row["approvals"][0]["approver"], row["approvals"][0]["verdict"]) == (
        None,
        None,
        "approved",
    )


# ---------------------------------------------------------------- digest, signature, checkpoint


@pytest.fixture
def signed(path: Path) -> tuple[list[Record], Seal]:
    """A report whose journal has a key and a checkpoint."""
    made = [exception(), exception()]
    overturned = records.TraceState(
        decision_id=made[0].id, status="overturned", by=made[1].id, because="wrong"
    )
    record(path, *made, sent(overturned), checkpoints=signing(path))
    return report(path)


def test_a_signed_report_is_valid_and_names_the_checkpoint_that_covers_it(
    path: Path, signed: tuple[list[Record], Seal]
) -> None:
    rows, seal = signed
    assert problem(path, stored(rows, seal)) is None
    assert seal.statement.checkpoint is not None
    assert seal.statement.checkpoint.seq >= seal.statement.rows_until_event == 3
    (checkpoint,) = read_directory(path.parent / "checkpoints").checkpoints
    assert seal.statement.checkpoint.head == checkpoint.head


def test_a_row_that_no_checkpoint_covers_yet_is_not_said_to_be_covered(
    path: Path, signed: tuple[list[Record], Seal]
) -> None:
    record(path, exception())
    rows, seal = report(path)
    assert seal.statement.checkpoint is None
    assert problem(path, stored(rows, seal)) is None


def test_a_later_record_about_an_old_decision_must_be_covered_too(
    path: Path, signed: tuple[list[Record], Seal]
) -> None:
    decision_id = signed[0][-1]["id"]
    record(path, sent(records.Approval(decision_id=decision_id, approver="ines")))
    assert report(path)[1].statement.checkpoint is None


def test_a_checkpoint_of_another_history_ends_the_report(
    path: Path, signed: tuple[list[Record], Seal]
) -> None:
    seq = signed[1].statement.checkpoint.seq  # type: ignore[union-attr]
    with writing(path) as connection:
        connection.execute("UPDATE events SET hash = zeroblob(32) WHERE seq = ?", (seq,))
    with pytest.raises(JournalError, match="not the journal that was signed"):
        report(path)


def change(document: dict[str, Any], *place: str | int, value: Json) -> None:
    inner: Any = document
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value


#: What somebody could do to a report: a change of the decoded JSON, by name.
FORGERIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another outcome": lambda r: change(r, "rows", 0, "outcome", value="allow"),
    "another status": lambda r: change(r, "rows", 1, "status", value="active"),
    "an approver": lambda r: r["rows"][0]["approvals"].append({"approver": "ines"}),
    "a further member of a row": lambda r: change(r, "rows", 0, "note", value="fine"),
    "a row left out": lambda r: r["rows"].pop(),
    "a row left out and counted": lambda r: (r["rows"].pop(), change(r, "statement", "rows", value=1)),
    "a row twice": lambda r: r["rows"].append(r["rows"][0]),
    "rows in another order": lambda r: r["rows"].reverse(),
    "another type": lambda r: change(r, "statement", "type", value="refund"),
    "an earlier since": lambda r: change(r, "statement", "since", value="2000-01-01T00:00:00.000000Z"),
    "more denied": lambda r: change(r, "statement", "more", value=True),
    "less left out": lambda r: change(r, "statement", "left_out", value={}),
    "no checkpoint": lambda r: change(r, "statement", "checkpoint", value=None),
    "another chain": lambda r: change(r, "statement", "chain", value="0" * 64),
    "another digest": lambda r: change(r, "digest", value="0" * 64),
    "another signature": lambda r: change(r, "signature", value="0" * 128),
    "no signature": lambda r: change(r, "signature", value=None),
    "no key": lambda r: change(r, "key", value=None),
    "an unknown key": lambda r: change(r, "key", value="0" * 16),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_changed_report_is_not_valid(path: Path, signed: tuple[list[Record], Seal], forgery: str) -> None:
    document = json.loads(stored(*signed))
    FORGERIES[forgery](document)
    assert problem(path, json.dumps(document).encode()) is not None


def test_no_change_of_one_byte_is_valid(path: Path) -> None:
    record(path, exception(), checkpoints=signing(path))
    content = bytearray(stored(*report(path)))
    trusted = read_directory(path.parent / "checkpoints").public_keys
    assert check(bytes(content), trusted)[1] is None
    for place in range(len(content)):
        content[place] ^= 1
        with suppress(JournalError):
            assert check(bytes(content), trusted)[1] is not None, place
        content[place] ^= 1


def test_a_report_of_several_keys_trusts_only_the_given_ones(
    path: Path, signed: tuple[list[Record], Seal]
) -> None:
    assert "not among the trusted" in str(check(stored(*signed), {})[1])


def test_without_the_key_a_report_is_unsigned_and_none_is_made(path: Path) -> None:
    record(path, exception())
    rows, seal = report(path)
    assert (seal.key, seal.signature) == (None, None)
    assert "No such file" in str(seal.unsigned)
    assert not (path.parent / "checkpoint.key").exists()
    assert "it is not signed" in str(problem(path, stored(rows, seal)))


def test_a_key_that_others_can_read_signs_no_report(path: Path, signed: tuple[list[Record], Seal]) -> None:
    key = path.parent / "checkpoint.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    key.chmod(0o644)
    assert "chmod 600" in str(report(path)[1].unsigned)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"rows": 1}', b"\xff", b"[" * 100_000])
def test_what_is_no_report_is_an_error(content: bytes) -> None:
    with pytest.raises(JournalError, match="no report"):
        check(content, {})


def test_a_report_of_nothing_is_valid_too(path: Path) -> None:
    record(path, by_model(), checkpoints=signing(path))
    rows, seal = report(path)
    assert (rows, seal.statement.rows, seal.statement.checkpoint) == ([], 0, None)
    assert problem(path, stored(rows, seal)) is None


def test_a_journal_without_events_has_nothing_to_report(path: Path) -> None:
    Journal(path, synchronous="OFF").close()
    with pytest.raises(JournalError, match="no events"):
        report(path)
