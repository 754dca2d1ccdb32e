"""Approvals: when a chain is complete, who may give which verdict, when a task ends, and what it lifts."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from thor_policy.core.approvals import Moment, Person, Task, Verdict, is_complete, problem_of, refusal_of
from thor_policy.core.decisions import PackInfo
from thor_policy.core.lifting import ApprovalStep, Chain, LiftedBy, Offer, Party

PACK = PackInfo(name="deploys", version="1", sha256="a" * 64)
NEWER = PackInfo(name="deploys", version="2", sha256="b" * 64)
#: Unix time of every beginning; nothing depends on which.
T = 1_790_000_000.0
MANAGER, SECURITY = ApprovalStep(role="manager"), ApprovalStep(role="security")


def at(seconds: float, boot: str = "a", wall: float | None = None, *, back: bool = False) -> Moment:
    """So many seconds after boot and beginning."""
    return Moment(boot, round(seconds * 1e9), T + (seconds if wall is None else wall), back)


def lifted_by(*steps: ApprovalStep, **changes: Any) -> LiftedBy:
    return LiftedBy(**({"steps": steps or (MANAGER, SECURITY)} | changes))


def verdict(name: str | None, *roles: str, groups: tuple[str, ...] = (), **changes: Any) -> Verdict:
    fields: dict[str, Any] = {"name": name, "approves": True, "roles": roles, "moment": at(10)}
    return Verdict(**(fields | {"groups": groups} | changes))


def task(*verdicts: Verdict, **changes: Any) -> Task:
    spec = changes.pop("spec", lifted_by())
    fields: dict[str, Any] = {
        "id": "t",
        "decision_id": "d",
        "outcome": "ask",
        "pack": PACK,
        "offer": Offer(lifted_by=spec, binds=("context.change",), digest="question"),
        "who": "uid:1",
        "requested_by": "uid:1",
        "requested": at(0),
        "requested_at": "2026-01-01T00:00:00Z",
        "subject": "user:zoe",
        "verdicts": verdicts,
    }
    return Task(**(fields | changes))


KIM, LEE = verdict("kim", "manager"), verdict("lee", "security")


def complete(spec: LiftedBy, *verdicts: Verdict, urgency: Any = "normal") -> bool:
    return is_complete(spec.chains(urgency), verdicts, spec)


# ---------------------------------------------------------------- chains


def test_steps_are_complete_when_each_was_taken_in_its_order() -> None:
    assert complete(lifted_by(), KIM, LEE)
    assert not complete(lifted_by(), KIM)
    assert not complete(lifted_by(), LEE, KIM)
    assert complete(lifted_by(), LEE, KIM, verdict("mo", "security"))


def test_nothing_is_complete_without_verdicts_or_without_steps() -> None:
    assert not complete(lifted_by())
    assert not complete(LiftedBy(), KIM, LEE)
    assert not complete(LiftedBy(any_of=((),)), KIM, LEE)


def test_of_several_chains_one_is_enough() -> None:
    spec = LiftedBy(any_of=((MANAGER, SECURITY), (ApprovalStep(role="director"),)))
    assert complete(spec, KIM, LEE)
    assert complete(spec, verdict("di", "director"))
    assert not complete(spec, KIM)


def test_verdicts_of_two_chains_do_not_add_up() -> None:
    spec = LiftedBy(any_of=((MANAGER, SECURITY), (ApprovalStep(role="director"), SECURITY)))
    assert not complete(spec, KIM, verdict("di", "director"))


def test_a_quorum_needs_so_many_persons() -> None:
    spec = lifted_by(ApprovalStep(group="board", quorum=3))
    members = [verdict(name, groups=("board",)) for name in ("a", "b", "c")]
    assert not complete(spec, *members[:2])
    assert complete(spec, *members)
    assert not complete(spec, members[0], members[1], members[1])
    assert not complete(spec, members[0], members[1], replace(members[0], name="Ａ"))


def test_a_step_with_role_and_group_needs_both() -> None:
    spec = lifted_by(ApprovalStep(role="manager", group="board"))
    assert not complete(spec, KIM)
    assert not complete(spec, verdict("kim", groups=("board",)))
    assert complete(spec, verdict("kim", "manager", groups=("board",)))


def test_a_step_that_names_nobody_admits_nobody() -> None:
    assert not complete(lifted_by(ApprovalStep()), KIM)


@pytest.mark.parametrize(
    "other", ["kim", "KIM", "ｋｉｍ", "k i m", "ki\u00adm", "kim\ufe0f", "k\u034fim", "kim\u3164"]
)
def test_a_person_counts_for_one_step_in_any_spelling(other: str) -> None:
    both = verdict(other, "security")
    assert not complete(lifted_by(), KIM, both)
    assert "approved it before" in (problem_of(task(KIM), both) or "")


def test_whoever_records_a_consent_gives_no_verdict_of_its_own() -> None:
    spec = lifted_by(consents=("email",))
    recorded = verdict("lee", "security", channel="email", recorded_by="Kim")
    assert complete(spec, verdict("mo", "manager"), recorded)
    assert not complete(spec, KIM, recorded)
    assert "recorded a consent" in (problem_of(task(KIM, spec=spec), recorded) or "")
    two = lifted_by(SECURITY, MANAGER, consents=("email",))
    assert "recorded a consent" in (problem_of(task(recorded, spec=two), KIM) or "")


def test_a_rejection_an_erased_name_and_a_channel_that_the_pack_does_not_list_count_for_no_step() -> None:
    for bad in (
        replace(KIM, approves=False),
        replace(KIM, name=None),
        replace(KIM, channel="email"),
    ):
        assert not complete(lifted_by(), bad, LEE)
    assert complete(lifted_by(consents=("email",)), replace(KIM, channel="email"), LEE)
    assert not complete(lifted_by(consents=("email",)), replace(KIM, channel="verbal"), LEE)


@pytest.mark.parametrize(
    ("excluded", "barred"),
    [
        (("subject", "caller"), {"subject", "caller"}),
        ("subject", {"subject"}),
        ("caller", {"caller"}),
        ((), set[str]()),
    ],
)
def test_a_step_keeps_out_whom_the_pack_says(excluded: Any, barred: set[str]) -> None:
    spec = lifted_by(ApprovalStep(role="manager", excluded=excluded))
    parties: tuple[Party, ...] = ("subject", "caller")
    for party in parties:
        assert complete(spec, replace(KIM, parties=(party,))) is (party not in barred)


def test_break_glass_is_one_more_chain_of_an_emergency_only() -> None:
    spec = lifted_by(break_glass=ApprovalStep(group="rescue"))
    rescuer = verdict("bo", groups=("rescue",))
    assert not complete(spec, rescuer)
    assert not complete(spec, rescuer, urgency="urgent")
    assert complete(spec, rescuer, urgency="emergency")
    assert complete(spec, KIM, LEE, urgency="emergency")
    assert not complete(lifted_by(), rescuer, urgency="emergency")


# ---------------------------------------------------------------- who may say what


def test_a_problem_says_why_a_person_may_not_approve() -> None:
    assert problem_of(task(), KIM) is None
    assert problem_of(task(KIM), LEE) is None
    assert "an earlier step comes first: manager, then security" in (problem_of(task(), LEE) or "")
    assert "may take no step that is left" in (problem_of(task(), verdict("mo", "cook")) or "")
    assert "may take no step that is left: security" in (
        problem_of(task(KIM), verdict("mo", "manager")) or ""
    )
    assert "is the subject of the question" in (problem_of(task(), replace(KIM, parties=("subject",))) or "")
    both = replace(KIM, parties=("subject", "caller"))
    assert "the subject and the caller" in (problem_of(task(), both) or "")
    assert "is not known" in (problem_of(task(), replace(KIM, name=None)) or "")
    assert "counts those by: none" in (problem_of(task(), replace(KIM, channel="email")) or "")


def test_whoever_may_not_approve_may_not_reject_either() -> None:
    assert problem_of(task(), replace(KIM, approves=False)) is None
    assert problem_of(task(), replace(LEE, approves=False)) is not None
    assert problem_of(task(), replace(KIM, approves=False, parties=("subject",))) is not None


def test_what_is_missing_is_named_for_each_chain() -> None:
    spec = LiftedBy(any_of=((ApprovalStep(group="board", quorum=3),), (MANAGER, SECURITY)))
    assert task(spec=spec).missing() == [["3 x the group board"], ["manager", "security"]]
    first = task(verdict("a", "manager", groups=("board",)), spec=spec)
    assert first.missing() == [["2 x the group board"], ["security"]]


PERSON = Person(name="Kim Doe", roles=("manager",), aliases=("uid:1002", "1002", "kdoe"))


@pytest.mark.parametrize(
    "name",
    [
        *(
            "Kim Doe",
            "user:Kim Doe",
            "kim doe",
            "KIM DOE",
            "Ｋｉｍ Doe",
            "KimDoe",
            "kim\u00a0doe",
            "ki\u200bm doe",
        ),
        *("kdoe", "user:kdoe", "user:KDOE", "uid:1002", "user:1002", "1002", "employee:kdoe", "kdoe\ufe0f"),
        *("kd\u034foe", "\u2066kdoe\u2069", "kdoe\u3164", "\uff4b\uff44\uff4f\uff45"),
    ],
)
def test_a_person_is_known_by_all_names_in_any_spelling(name: str) -> None:
    assert PERSON.is_called(name)


@pytest.mark.parametrize("name", ["", ":", "user:", "kim", "kdoe2", "user:doe", "10022", "uid:100"])
def test_another_name_is_another_person(name: str) -> None:
    assert not PERSON.is_called(name)


# ---------------------------------------------------------------- moments


def test_within_a_boot_the_clock_of_the_boot_alone_counts() -> None:
    for wall in (-1e6, 0, 99, 1e6):
        assert not at(0).is_past(100, at(99.9, wall=wall))
        assert at(0).is_past(100, at(100, wall=wall))
    assert not at(0).is_past(100, at(50, back=True))


def test_over_a_boot_the_wall_clock_counts_and_one_that_went_back_is_not_believed() -> None:
    assert not at(0).is_past(100, at(5, "b", wall=99))
    assert at(0).is_past(100, at(5, "b", wall=100))
    assert at(0).is_past(100, at(5, "b", wall=-1))
    assert at(0).is_past(100, at(5, "b", wall=50, back=True))


def test_an_archived_event_has_its_wall_time_alone() -> None:
    archived = Moment("", 0, T)
    assert not archived.is_past(100, at(1e6, wall=50))
    assert archived.is_past(100, at(0, wall=100))


# ---------------------------------------------------------------- states


def test_a_task_goes_from_pending_over_partial_to_approved_and_expires() -> None:
    assert task().state(at(1)) == "pending"
    assert task(KIM).state(at(11)) == "partial"
    assert task(KIM, LEE).state(at(11)) == "approved"
    assert task(KIM, LEE).state(at(10 + 3_599)) == "approved"
    assert task(KIM, LEE).state(at(10 + 3_600)) == "expired"
    assert task().state(at(86_399)) == "pending"
    assert task().state(at(86_400)) == "expired"
    assert task(KIM).state(at(86_400)) == "expired"


def test_an_approval_holds_from_the_moment_at_which_its_chain_was_complete() -> None:
    late = task(KIM, replace(LEE, moment=at(50_000)))
    assert late.granted == at(50_000)
    assert late.state(at(53_599)) == "approved"
    more = replace(late, verdicts=(*late.verdicts, replace(verdict("mo", "security"), moment=at(53_000))))
    assert more.granted == at(50_000)


def test_a_rejection_ends_a_task_whatever_else_was_said() -> None:
    assert task(replace(KIM, approves=False)).state(at(1)) == "denied"
    assert task(KIM, LEE, verdict("mo", "security", approves=False)).state(at(11)) == "denied"


def test_what_ended_a_task_stays_its_end() -> None:
    for ended in ("cancelled", "expired"):
        assert task(KIM, LEE, ended=ended).state(at(11)) == ended
        assert task(ended=ended).state(at(1)) == ended


def test_the_seconds_that_are_left_never_fall_below_zero() -> None:
    assert task().expires_in_s(at(400)) == 86_000
    assert task(KIM, LEE).expires_in_s(at(110)) == 3_500
    assert task(KIM, LEE).expires_in_s(at(5, "b", wall=110)) == 3_500
    assert task(KIM, LEE).expires_in_s(at(5, "b", wall=-1)) == 0
    assert task().expires_in_s(at(1e6)) == 0


def test_an_approval_for_one_decision_is_spent_by_it_and_one_until_a_time_is_not() -> None:
    assert task(KIM, LEE, used_by=("d2",)).is_spent
    assert not task(KIM, LEE).is_spent
    assert not task(KIM, LEE, used_by=("d2",), spec=lifted_by(uses="until")).is_spent


# ---------------------------------------------------------------- what lifts


def refused(the_task: Task | None, **changes: Any) -> str | None:
    fields: dict[str, Any] = {
        "digest": "question",
        "who": "uid:1",
        "stricter": False,
        "pack": PACK,
        "offer_now": lifted_by(),
        "binds_now": ("context.change",),
        "now": at(20),
    }
    return refusal_of(the_task, **(fields | changes))


def test_an_approved_task_lifts_its_question() -> None:
    assert refused(task(KIM, LEE)) is None


def test_each_refusal_has_its_code() -> None:
    assert refused(None) == "approval_unknown"
    assert refused(task(KIM, LEE), digest="another") == "approval_mismatch"
    assert refused(task(KIM, LEE), digest=None) == "approval_mismatch"
    assert refused(task(KIM, LEE), who="uid:2") == "approval_mismatch"
    assert (
        refused(task(KIM, LEE), pack=PackInfo(name="x", version="1", sha256="a" * 64)) == "approval_mismatch"
    )
    assert refused(task(replace(KIM, approves=False))) == "approval_denied"
    assert refused(task(ended="cancelled")) == "approval_denied"
    assert refused(task()) == refused(task(KIM)) == "approval_pending"
    assert refused(task(KIM, LEE, used_by=("d2",))) == "approval_used"
    assert refused(task(KIM, LEE), now=at(4_000)) == "approval_expired"
    assert refused(task(KIM, LEE, ended="expired")) == "approval_expired"
    assert refused(task(KIM, LEE), stricter=True) == "approval_insufficient"


def test_a_used_approval_is_used_also_when_it_has_expired() -> None:
    assert refused(task(KIM, LEE, used_by=("d2",)), now=at(1e6)) == "approval_used"


def chains_of(*steps: ApprovalStep) -> tuple[Chain, ...]:
    return (steps,)


@pytest.mark.parametrize(
    ("now", "binds", "code"),
    [
        (lifted_by(), ("context.change",), None),
        (lifted_by(MANAGER), (), None),
        (lifted_by(holds_s=60), ("context.change",), None),
        (None, (), "approval_insufficient"),
        (lifted_by(), ("context.change", "context.more"), "approval_insufficient"),
        (lifted_by(MANAGER, SECURITY, MANAGER), (), "approval_insufficient"),
        (lifted_by(SECURITY, MANAGER), (), "approval_insufficient"),
        (lifted_by(ApprovalStep(role="manager", quorum=2)), (), "approval_insufficient"),
        (lifted_by(holds_s=9), ("context.change",), "approval_insufficient"),
    ],
)
def test_another_version_of_the_pack_must_still_accept_what_was_given(
    now: LiftedBy | None, binds: tuple[str, ...], code: str | None
) -> None:
    assert refused(task(KIM, LEE), pack=NEWER, offer_now=now, binds_now=binds) == code
    assert refused(task(KIM, LEE), offer_now=now, binds_now=binds) is None, "the version that offered it"


def test_another_version_that_lets_an_approval_lift_one_decision_counts_the_uses_before_it() -> None:
    used = task(KIM, LEE, used_by=("d2",), spec=lifted_by(uses="until"))
    assert refused(used) is None
    assert refused(used, pack=NEWER, offer_now=lifted_by(uses="until")) is None
    assert refused(used, pack=NEWER, offer_now=lifted_by()) == "approval_used"


def test_another_version_counts_who_the_approvers_were_and_how_they_consented() -> None:
    spec = lifted_by(ApprovalStep(role="manager", excluded=()), consents=("email",))
    own = task(replace(KIM, parties=("subject",)), spec=spec)
    by_mail = task(replace(KIM, channel="email"), spec=spec)
    assert refused(own) is refused(by_mail) is None
    assert refused(own, pack=NEWER, offer_now=lifted_by(MANAGER)) == "approval_insufficient"
    assert refused(by_mail, pack=NEWER, offer_now=lifted_by(MANAGER)) == "approval_insufficient"
