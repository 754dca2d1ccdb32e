"""Reviews: the order of decisions, leases, what a verdict records, and agreement between reviewers."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.build import CALLER, NOON, about, booted, by_model, decision_row, rows
from thor_policy.core import records
from thor_policy.core.errors import JournalError, RequestError
from thor_policy.core.requests import Annotations, Json
from thor_policy.journal import events, review_queries
from thor_policy.journal.reader import Reader, Record
from thor_policy.journal.verification.verify import verify
from thor_policy.journal.writer import Journal
from thor_policy.review import agreement, ranking
from thor_policy.review import queue as review_queue
from thor_policy.review.session import LEASE_S, Session

LABELS = ["allow", "require_mfa", "require_attestation", "deny"]
#: Kappas as scikit-learn and statsmodels give them; the file names their versions.
KNOWN = json.loads((Path(__file__).parents[1] / "data" / "kappas.json").read_text(encoding="utf-8"))


def review(decision_id: str, reviewer: str | None, seq: int, **changes: Any) -> dict[str, Json]:
    """A row of the table of reviews, on a decision whose served outcome was deny."""
    fields = {
        "id": f"r{seq}",
        "seq": seq,
        "timestamp": f"2026-07-01T12:00:{seq:02}.000000Z",
        "decision_id": decision_id,
        "reviewer": reviewer,
        "verdict": "accept",
        "outcome": "deny",
        "decision": None,
        "reasoning": None,
        "blind": 0,
        "adjudicates": 0,
        "sampled": 0,
        "withdraws": None,
    }
    return fields | changes


def allowed(decision_id: str, reviewer: str, seq: int, **changes: Any) -> dict[str, Json]:
    """A verdict that the outcome should have been allow."""
    return review(decision_id, reviewer, seq, verdict="correct_decision", decision="allow", **changes)


# ---------------------------------------------------------------- kappa


@pytest.mark.parametrize("case", KNOWN["cohen"], ids=lambda case: f"{len(case['pairs'])} pairs")
def test_cohens_kappa_and_its_variance_equal_those_of_reference_libraries(case: Any) -> None:
    pairs = [(LABELS[int(a)], LABELS[int(b)]) for a, b in case["pairs"]]
    kappa = agreement.cohen(pairs)
    assert kappa.value == pytest.approx(case["kappa"], abs=1e-9)
    assert kappa.high is not None
    assert kappa.low is not None
    if kappa.low > -1:
        sd = (case["kappa"] - kappa.low) / 1.959963984540054
        assert sd**2 == pytest.approx(case["variance"], abs=1e-9)
    assert kappa.low <= case["kappa"] <= kappa.high


@pytest.mark.parametrize("case", KNOWN["fleiss"], ids=lambda case: f"{len(case['labels'])} decisions")
def test_fleiss_kappa_equals_that_of_reference_libraries(case: Any) -> None:
    kappa = agreement.fleiss([[LABELS[int(label)] for label in row] for row in case["labels"]])
    assert kappa.value == pytest.approx(case["kappa"], abs=1e-9)
    assert kappa.low is not None
    assert kappa.low <= case["kappa"] <= (kappa.high or 0)


def test_the_jackknife_of_fleiss_kappa_equals_leaving_out_each_decision() -> None:
    rows = [[LABELS[int(label)] for label in row] for row in KNOWN["fleiss"][4]["labels"]]
    whole = agreement.fleiss(rows)
    ones = [agreement.fleiss(rows[:i] + rows[i + 1 :]).value or 0.0 for i in range(len(rows))]
    mean = sum(ones) / len(ones)
    variance = (len(ones) - 1) / len(ones) * sum((value - mean) ** 2 for value in ones)
    assert whole.value is not None
    assert whole.low == pytest.approx(max(-1.0, whole.value - 1.959963984540054 * math.sqrt(variance)))


@pytest.mark.parametrize("kappa", [agreement.cohen, agreement.fleiss])
def test_kappa_is_undefined_where_all_labels_are_the_same(kappa: Any) -> None:
    assert (kappa([]).value, kappa([]).count) == (None, 0)
    result = kappa([("deny", "deny")] * 5)
    assert (result.value, result.low, result.agreement, result.count) == (None, None, 1.0, 5)


@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=40))
def test_kappa_lies_in_its_interval_and_is_symmetric(pairs: list[tuple[str, str]]) -> None:
    result, turned = agreement.cohen(pairs), agreement.cohen([(b, a) for a, b in pairs])
    assert (result.value is None) == (turned.value is None)
    if result.value is not None:
        assert result.value == pytest.approx(turned.value)
        assert -1 <= (result.low or 0) <= result.value <= (result.high or 0) <= 1
    many = agreement.fleiss(pairs)
    assert many.value is None or -1 - 1e-9 <= many.value <= 1 + 1e-9


@given(st.integers(0, 500), st.integers(0, 500))
def test_a_share_lies_in_its_interval(hits: int, misses: int) -> None:
    proportion = agreement.proportion(hits, hits + misses)
    if proportion.share is not None:
        assert 0 <= (proportion.low or 0) <= proportion.share + 1e-12
        assert proportion.share - 1e-12 <= (proportion.high or 0) <= 1


def test_wilsons_interval() -> None:
    proportion = agreement.proportion(8, 10)  # as in Wilson's paper and any textbook
    assert (proportion.low, proportion.high) == (
        pytest.approx(0.490162, abs=1e-6),
        pytest.approx(0.943318, abs=1e-6),
    )


# ---------------------------------------------------------------- standing verdicts


def test_the_newest_verdict_of_each_reviewer_stands() -> None:
    rows = [review("d", "kim", 1), review("d", "bo", 2), allowed("d", "kim", 3)]
    assert [(rating.reviewer, rating.right) for rating in agreement.standing(rows)] == [
        ("bo", "deny"),
        ("kim", "allow"),
    ]


def test_after_a_withdrawal_the_earlier_verdict_stands_again() -> None:
    rows = [review("d", "kim", 1), allowed("d", "kim", 2)]
    rows.append(review("d", "kim", 3, verdict="withdrawn", withdraws="r2"))
    assert [rating.id for rating in agreement.standing(rows)] == ["r1"]
    rows.append(review("d", "kim", 4, verdict="withdrawn", withdraws="r1"))
    assert agreement.standing(rows) == []


@pytest.mark.parametrize("other", [{"reviewer": "bo"}, {"decision_id": "e"}])
def test_only_its_own_reviewer_can_withdraw_a_verdict(other: dict[str, str]) -> None:
    rows = [review("d", "kim", 1), review("d", "kim", 2, verdict="withdrawn", withdraws="r1") | other]
    assert [rating.id for rating in agreement.standing(rows)] == ["r1"]


def test_verdicts_of_erased_reviewers_count_as_different_people() -> None:
    rows = [review("d", None, 1), review("d", None, 2)]
    assert len(agreement.standing(rows)) == 2
    assert agreement.report(rows).people == ()


# ---------------------------------------------------------------- the report


def test_agreement_counts_only_independent_verdicts() -> None:
    seen = [review("d1", "kim", 1), review("d1", "bo", 2)]
    blind = [review("d2", "kim", 3), allowed("d2", "bo", 4, blind=1)]
    settled = [review("d2", "ada", 5, adjudicates=1)]
    report = agreement.report(seen + blind + settled)
    ((pair,),) = (report.pairs,)
    assert (pair.reviewers, pair.kappa.count, pair.kappa.agreement) == (("bo", "kim"), 1, 0.0)
    assert (report.raters, report.fleiss.count) == (2, 1)
    assert (report.reviews, report.decisions, report.not_independent) == (5, 2, 2)
    assert [
        (reviewer.reviewer, reviewer.agrees.hits, reviewer.agrees.count) for reviewer in report.people
    ] == [
        ("ada", 0, 0),
        ("bo", 0, 1),
        ("kim", 0, 1),
    ]


def test_a_disagreement_is_open_until_settled_and_again_after_a_new_verdict() -> None:
    rows = [review("d", "kim", 1), allowed("d", "bo", 2, blind=1)]
    assert agreement.report(rows).disagreements == 1
    rows.append(allowed("d", "ada", 3, adjudicates=1))
    report = agreement.report(rows)
    assert (report.disagreements, report.adjudicated) == (0, 1)
    assert report.outcomes_right_all.hits == 0
    rows.append(review("d", "kim", 4))
    assert agreement.report(rows).disagreements == 1


def test_a_reviewer_who_settles_their_own_disagreement_still_disagreed() -> None:
    rows = [review("d", "kim", 1), allowed("d", "bo", 2, blind=1), allowed("d", "kim", 3, adjudicates=1)]
    report = agreement.report(rows)
    assert (report.disagreements, report.outcomes_right_all.hits) == (0, 0)
    assert [(pair.kappa.count, pair.kappa.agreement) for pair in report.pairs] == [(1, 0.0)]


def test_a_correction_without_an_outcome_is_a_label_of_its_own() -> None:
    rows = [review("d", "kim", 1, verdict="correct_decision"), review("d", "bo", 2, blind=1)]
    assert agreement.report(rows).disagreements == 1


def test_the_estimate_uses_only_the_random_sample() -> None:
    rows = [review("d1", "kim", 1, sampled=1), allowed("d2", "kim", 2), allowed("d3", "kim", 3)]
    report = agreement.report(rows)
    assert (report.outcomes_right.hits, report.outcomes_right.count) == (1, 1)
    assert (report.outcomes_right_all.hits, report.outcomes_right_all.count) == (1, 3)


# ---------------------------------------------------------------- the order


def decided(number: int, **changes: Any) -> dict[str, Json]:
    """A row of the table of decisions."""
    row: dict[str, Json] = {
        "decision_id": f"d{number}",
        "risk_level": "medium",
        "tier": "model",
        "reason_code": None,
        "label": "allow",
        "probabilities": {"allow": 0.9, "deny": 0.1},
        "situation": {"subject": {"id": "alice"}, "action": {"name": "deploy"}, "context": {"n": number}},
    }
    return row | changes


def ids(picks: list[ranking.Pick]) -> list[str]:
    return [pick.decision_id for pick in picks]


def ranked(*rows: dict[str, Json], **options: Any) -> list[str]:
    return ids(ranking.queue(rows, **{"random_share": 0.0} | options))


def test_the_more_uncertain_decision_comes_first() -> None:
    sure, split = decided(1), decided(2, probabilities={"allow": 0.5, "deny": 0.5})
    assert ranked(sure, split) == ["d2", "d1"]


def test_a_doubt_comes_before_the_most_uncertain_decision_and_says_what_did_not_count() -> None:
    split = decided(1, probabilities={"allow": 0.49, "deny": 0.51})
    doubt = decided(2, reason_code="doubt", label="deny", probabilities={"allow": 0.1, "deny": 0.9})
    assert ranked(split, doubt) == ["d2", "d1"]
    (pick,) = ranking.queue([doubt], reviewed=[doubt], random_share=0.0)
    assert pick.why == "the model's answer deny did not count; uncertainty 1.00 x risk medium x novelty 0.00"


def test_the_decision_with_the_higher_risk_comes_first() -> None:
    rows = [decided(number, risk_level=risk) for number, risk in enumerate(["low", "critical", "medium"])]
    assert ranked(*rows) == ["d1", "d2", "d0"]


def test_the_decision_least_like_reviewed_ones_comes_first() -> None:
    new = decided(2, situation={"action": {"name": "rotate"}, "context": {"what": "signing keys"}})
    assert ranked(decided(1), new, reviewed=[decided(0)]) == ["d2", "d1"]


def test_the_id_of_the_subject_does_not_count_as_novelty() -> None:
    bob = decided(1, situation=decided(1)["situation"] | {"subject": {"id": "bob"}})
    assert ranking.novelty(ranking.words(bob), [ranking.words(decided(1))]) == 0.0


def test_the_score_is_the_product_of_the_documented_formula() -> None:
    row = decided(1, risk_level="high", probabilities={"allow": 0.5, "deny": 0.5})
    (pick,) = ranking.queue([row], reviewed=[row], random_share=0.0)
    assert pick.score == pytest.approx(1.0 * 0.75 * 0.1)
    assert pick.why == "uncertainty 1.00 x risk high x novelty 0.00"


@pytest.mark.parametrize(
    ("probabilities", "tier", "expected"),
    [
        ({}, "rule", 0.0),
        ({}, "fallback", 1.0),
        ({"a": 1.0, "b": 0.0}, "model", 0.0),
        ({"a": 0.5, "b": 0.5}, "model", 1.0),
    ],
)
def test_uncertainty_is_the_normalised_entropy_and_0_for_rules(
    probabilities: dict[str, float], tier: str, expected: float
) -> None:
    assert ranking.uncertainty(probabilities, tier) == pytest.approx(expected)


def test_decisions_assigned_to_the_reviewer_come_first() -> None:
    rows = [decided(number, risk_level="critical") for number in range(20)] + [decided(99, risk_level="low")]
    first = ranking.queue(rows, mine=frozenset({"d99"}))[0]
    assert first.decision_id == "d99"
    assert first.why.startswith("assigned to you; ")


def test_the_random_sample_has_every_fifth_place_and_depends_on_ids_only() -> None:
    rows = [decided(number) for number in range(300)]
    picks = ranking.queue(rows)
    drawn = {pick.decision_id for pick in picks if pick.sampled}
    assert drawn == {row["decision_id"] for row in rows if ranking.drawn(row["decision_id"], "sample", 0.2)}
    assert 30 <= len(drawn) <= 90
    assert all(pick.sampled for pick in picks[4:100:5])
    assert sorted(ids(picks)) == sorted(row["decision_id"] for row in rows)
    in_turn = [pick.decision_id for pick in picks if pick.sampled]
    harmless = [row | {"risk_level": "low"} for row in rows]
    assert [pick.decision_id for pick in ranking.queue(harmless[::-1]) if pick.sampled] == in_turn


def test_blind_second_verdicts_are_spread_through_the_queue() -> None:
    picks = ranking.queue([decided(n) for n in range(40)], again=[decided(n) for n in range(100, 104)])
    assert [place for place, pick in enumerate(picks, 1) if pick.blind] == [3, 13, 23, 33]


@given(st.lists(st.integers(0, 10_000), unique=True, max_size=60), st.floats(0, 1), st.integers(0, 10))
def test_a_queue_holds_each_decision_exactly_once(numbers: list[int], share: float, again: int) -> None:
    rows = [decided(number) for number in numbers]
    picks = ranking.queue(rows, again=[decided(-1 - n) for n in range(again)], random_share=share)
    assert sorted(ids(picks)) == sorted(
        [r["decision_id"] for r in rows] + [f"d{-1 - n}" for n in range(again)]
    )


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_the_words_of_any_question_are_bounded(situation: Json) -> None:
    assert len(ranking.words(decided(1, situation=situation))) <= ranking.MOST_WORDS


# ---------------------------------------------------------------- sessions


class Office:
    """A journal with decisions, reviewers who work on it at the same time, and a clock of its own."""

    def __init__(self, path: Path) -> None:
        self.path, self.now_s = path, 0.0
        self.journal = Journal(path, synchronous="OFF", now=lambda: booted(self.now_s)())
        self.reader = Reader(path)
        self._numbers = itertools.count(1)

    def close(self) -> None:
        self.reader.close()
        self.journal.close()

    def decide(self, *names: str, **changes: Any) -> None:
        for name in names:
            assert (
                self.journal.commit(events.decision_event(by_model(id=name, **changes))).result().error
                is None
            )

    def keep(self, record: records.Record) -> str:
        record_id = f"k{next(self._numbers)}"
        event = events.record_event(record, record_id=record_id, at=NOON + self.now_s, caller=CALLER)
        fate = self.journal.commit(event).result()
        if fate.error is not None:
            raise RequestError(fate.error, fate.message or "")
        return record_id

    def picks(self, reviewer: str, **options: Any) -> list[ranking.Pick]:
        chosen = {"random_share": 0.0, "second_share": 0.0, "by": "newest"} | options
        return review_queue.picks(self.reader, reviewer, now=booted(self.now_s)(), **chosen)

    def session(self, reviewer: str, **options: Any) -> Session:
        picks = self.picks(reviewer, **options)
        return Session(
            picks, review_queue.JournalQueue(self.reader, self.keep), reviewer, clock=lambda: self.now_s
        )

    def reader_rows(self, decision_id: str) -> list[Record]:
        return review_queries.reviews_of(self.reader, [decision_id])

    def reviews(self) -> list[tuple[Any, ...]]:
        return rows(
            self.path,
            "SELECT reviewer, decision_id, verdict, decision, reasoning, blind, adjudicates, sampled "
            "FROM reviews ORDER BY seq",
        )


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path / "journal.db")
    office.decide("d3", "d2", "d1")  # so that the newest first is d1, d2, d3
    yield office
    office.close()
    assert verify(office.path).ok


def shown(session: Session) -> str | None:
    return session.item.decision_id if session.item is not None else None


def test_each_verdict_is_recorded_before_the_next_decision_is_shown(office: Office) -> None:
    kim = office.session("kim")
    kim.open()
    assert shown(kim) == "d1"
    kim.judge("accept")
    assert (shown(kim), len(office.reviews())) == ("d2", 1)
    kim.judge("correct_both", decision="allow", reasoning="he may")
    kim.skip()
    assert (shown(kim), kim.count("judged"), kim.count("skipped")) == (None, 2, 1)
    assert office.reviews() == [
        ("kim", "d1", "accept", None, None, 0, 0, 0),
        ("kim", "d2", "correct_both", "allow", "he may", 0, 0, 0),
    ]
    with pytest.raises(RequestError, match="no decision is shown"):
        kim.judge("accept")


def test_the_queue_of_doubts_has_only_unreviewed_doubts(office: Office) -> None:
    office.decide("d4", outcome="allow", allow=True, reason_code="doubt")
    office.decide("d5", outcome="allow", allow=True, reason_code="doubt")
    assert ids(office.picks("kim", queue="doubts", by="priority", random_share=1.0)) == ["d5", "d4"]
    office.keep(records.Review(decision_id="d5", reviewer="bo", verdict="accept"))
    assert ids(office.picks("kim", queue="doubts", second_share=1.0)) == ["d4"]


def test_two_reviewers_never_see_the_same_decision(office: Office) -> None:
    kim, bo = office.session("kim"), office.session("bo")
    kim.open()
    bo.open()
    assert (shown(kim), shown(bo)) == ("d1", "d2")
    kim.judge("accept")
    assert shown(kim) == "d3"
    bo.judge("accept")
    assert (shown(bo), bo.passed_over) == (None, 2)  # d1 was kim's, d3 is


def test_a_decision_that_another_reviewer_judged_meanwhile_is_passed_over(office: Office) -> None:
    kim, bo = office.session("kim"), office.session("bo")
    bo.open()
    bo.judge("accept")
    bo.close()
    kim.open()
    assert (shown(kim), kim.passed_over) == ("d2", 1)
    taken = rows(office.path, "SELECT decision_id FROM assignments WHERE reviewer = 'kim'")
    assert taken == [("d2",)], "nothing is recorded for what is not shown"


def test_a_verdict_recorded_just_before_the_lease_is_noticed(office: Office) -> None:
    judged_by_bo = records.Review(decision_id="d1", reviewer="bo", verdict="accept")

    def keep(record: records.Record) -> str:
        if isinstance(record, records.Assignment) and record.decision_id == "d1" and record.type == "lease":
            office.keep(judged_by_bo)
        return office.keep(record)

    kim = Session(office.picks("kim"), review_queue.JournalQueue(office.reader, keep), "kim")
    kim.open()
    assert (shown(kim), kim.passed_over) == ("d2", 1)
    assert rows(office.path, "SELECT decision_id, type FROM assignments ORDER BY seq") == [
        ("d1", "lease"),
        ("d1", "release"),
        ("d2", "lease"),
    ]


def test_a_skipped_decision_is_free_at_once(office: Office) -> None:
    kim, bo = office.session("kim"), office.session("bo")
    kim.open()
    kim.skip()
    bo.open()
    assert shown(bo) == "d1"


def test_a_verdict_after_the_lease_expired_and_was_taken_is_refused(office: Office) -> None:
    kim = office.session("kim")
    kim.open()
    office.now_s = LEASE_S + 1
    bo = office.session("bo")
    bo.open()
    assert shown(bo) == "d1"
    with pytest.raises(RequestError, match="another reviewer took it"):
        kim.judge("accept")
    assert office.reviews() == []
    with pytest.raises(RequestError, match="no decision is shown"):
        kim.judge("accept")
    kim.open()
    assert shown(kim) == "d2"


def test_an_expired_lease_that_another_reviewer_holds_needs_no_release(office: Office) -> None:
    kim, bo = office.session("kim"), office.session("bo")
    kim.open()
    office.now_s = LEASE_S + 1
    bo.open()
    kim.skip()
    assert (shown(bo), shown(kim)) == ("d1", "d2")


def test_a_late_verdict_is_recorded_if_no_other_reviewer_took_the_decision(office: Office) -> None:
    kim = office.session("kim")
    kim.open()
    office.now_s = LEASE_S + 1
    kim.judge("accept")
    assert len(office.reviews()) == 1


def test_a_journal_error_leaves_the_session_unchanged(office: Office) -> None:
    kim = office.session("kim")
    kim.open()
    office.journal.close()
    with pytest.raises(JournalError):
        kim.judge("accept")
    assert (shown(kim), kim.done) == ("d1", [])
    kim.close()  # the lease will run out by itself


@pytest.mark.parametrize("expected", [(), ("deny",), ("allow",)])
def test_undo_appends_a_record_and_restores_the_row_of_the_decision(
    office: Office, expected: tuple[str, ...]
) -> None:
    office.decide("d0", annotations=Annotations(expected=expected))
    before = decision_row(office.path, "d0")
    kim = office.session("kim")
    kim.open()
    kim.judge("correct_decision", decision="allow")
    assert decision_row(office.path, "d0")["reviewed"] == 1
    undone = kim.undo()
    assert undone is not None
    assert (undone.verdict, shown(kim), kim.count("judged")) == ("correct_decision", "d0", 0)
    after = decision_row(office.path, "d0")
    assert after | {"reviewed_seq": None} == before
    assert [row[2] for row in office.reviews()] == ["correct_decision", "withdrawn"]
    assert agreement.standing(office.reader_rows("d0")) == []
    assert kim.undo() is None


def test_a_correction_names_another_outcome_than_the_one_that_was_served(office: Office) -> None:
    kim = office.session("kim")
    kim.open()
    with pytest.raises(RequestError, match="deny was served; accept it, or name another"):
        kim.judge("correct_decision", decision="deny")
    assert (shown(kim), office.reviews()) == ("d1", [])


def test_undo_goes_back_step_by_step(office: Office) -> None:
    kim = office.session("kim")
    kim.open()
    kim.judge("accept")
    kim.skip()
    kim.delegate("bo")
    assert [(kim.undo(), shown(kim))[1] for _ in range(3)] == ["d3", "d2", "d1"]
    assert kim.done == []
    assert rows(office.path, "SELECT type FROM assignments WHERE type LIKE '%assign' ORDER BY seq") == [
        ("assign",),
        ("unassign",),
    ]


def test_undo_restores_the_verdict_of_another_reviewer(office: Office) -> None:
    bo = office.session("bo")
    bo.open()
    bo.judge("correct_decision", decision="allow")
    bo.close()
    kim = office.session("kim", queue="all")
    kim.open()
    assert [rating.reviewer for rating in kim.item.ratings] == ["bo"]  # type: ignore[union-attr]
    kim.judge("accept")
    assert decision_row(office.path, "d1")["decision_correct"] == 1
    kim.undo()
    row = decision_row(office.path, "d1")
    assert (row["reviewed"], row["review_decision"], row["decision_correct"]) == (1, "allow", 0)


def test_back_shows_what_was_judged_and_a_new_verdict_replaces_it(office: Office) -> None:
    kim = office.session("kim")
    kim.open()
    kim.judge("accept")
    kim.back()
    assert shown(kim) == "d1"
    assert [rating.verdict for rating in kim.item.ratings] == ["accept"]  # type: ignore[union-attr]
    kim.judge("correct_decision", decision="allow")
    (rating,) = agreement.standing(office.reader_rows("d1"))
    assert (rating.right, shown(kim)) == ("allow", "d2")
    kim.back()
    kim.back()
    kim.back()
    assert shown(kim) == "d1"


def test_search_finds_a_decision_by_any_of_its_words_and_wraps_around(office: Office) -> None:
    office.decide("d0", evaluation=about(details="Vacuum the BASEMENT"))
    kim = office.session("kim")
    kim.open(2)
    assert kim.find("basement") is not None
    assert shown(kim) == "d0"
    assert kim.find("attic") is None
    assert shown(kim) == "d0"


# ---------------------------------------------------------------- queues


def test_an_assigned_decision_is_offered_to_its_reviewer_first_and_to_nobody_else(office: Office) -> None:
    office.keep(records.Assignment(decision_id="d3", reviewer="kim", type="assign", given_by="bo"))
    assert ids(office.picks("kim", by="priority"))[0] == "d3"
    assert ids(office.picks("kim", queue="mine", by="priority")) == ["d3"]
    assert ids(office.picks("bo")) == ["d1", "d2"]
    office.keep(records.Assignment(decision_id="d3", reviewer="kim", type="unassign"))
    assert ids(office.picks("bo")) == ["d1", "d2", "d3"]


def test_a_decision_under_review_comes_first_until_a_review_is_recorded_after_that(office: Office) -> None:
    office.keep(records.Review(decision_id="d2", reviewer="kim", verdict="accept"))
    assert ids(office.picks("kim")) == ["d1", "d3"]
    for name in ("d3", "d2"):
        office.keep(records.TraceState(decision_id=name, status="under_review", because="its precedent fell"))
    assert ids(office.picks("kim", queue="under_review")) == ["d2", "d3"]
    for order in ("newest", "priority"):
        assert ids(office.picks("kim", by=order, second_share=1.0)) == ["d2", "d3", "d1"]
    kim = office.session("kim")
    kim.open()
    kim.judge("accept")
    assert shown(kim) == "d3"
    kim.close()
    assert ids(office.picks("kim")) == ["d3", "d1"]
    assert ids(office.picks("bo", queue="under_review")) == ["d3"]
    assert "d2" not in ids(office.picks("bo", queue="mine"))


def test_delegation_assigns_the_decision_to_another_reviewer(office: Office) -> None:
    kim = office.session("kim")
    kim.open()
    kim.delegate("bo")
    assert ids(office.picks("bo", queue="mine")) == ["d1"]
    assert "d1" not in ids(office.picks("kim"))


def test_a_leased_decision_is_not_offered_to_others(office: Office) -> None:
    kim = office.session("kim")
    kim.open()
    assert ids(office.picks("bo")) == ["d2", "d3"]
    assert ids(office.picks("kim")) == ["d1", "d2", "d3"]


def test_a_second_verdict_is_blind_and_by_another_reviewer(office: Office) -> None:
    kim = office.session("kim")
    kim.open()
    kim.judge("correct_decision", decision="allow")
    kim.close()
    assert ids(office.picks("kim", by="priority", second_share=1.0)) == ["d2", "d3"]
    bo = office.session("bo", by="priority", second_share=1.0)
    place = ids(bo.picks).index("d1")
    bo.open(place)
    assert bo.item is not None
    assert (bo.item.ratings, bo.item.hidden) == ((), 1)
    bo.judge("accept")
    assert office.reviews()[-1] == ("bo", "d1", "accept", None, None, 1, 0, 0)
    assert "d1" not in ids(office.picks("ada", by="priority", second_share=1.0))
    assert "d1" in ids(office.picks("ada", by="priority", second_share=1.0, verdicts=3))
    assert "d1" not in ids(office.picks("bo", by="priority", second_share=1.0, verdicts=3))
    assert "d1" not in ids(office.picks("ada", by="priority", second_share=0.0, verdicts=3))


def test_a_disagreement_is_settled_by_an_adjudicating_verdict(office: Office) -> None:
    for name, right in (("kim", "allow"), ("bo", None)):
        office.keep(
            records.Review(
                decision_id="d1",
                reviewer=name,
                verdict="correct_decision" if right else "accept",
                decision=right,
                blind=right is None,
            )
        )
    assert [(pick.decision_id, pick.why) for pick in office.picks("ada", queue="disagreements")] == [
        ("d1", "kim says allow; bo says deny")
    ]
    ada = office.session("ada", queue="disagreements")
    ada.open()
    assert len(ada.item.ratings) == 2  # type: ignore[union-attr]
    ada.judge("correct_decision", decision="allow")
    assert office.picks("ada", queue="disagreements") == []
    assert decision_row(office.path, "d1")["review_decision"] == "allow"
    assert office.reviews()[-1][6] == 1


def test_the_queue_of_wrong_decisions_and_the_filters(office: Office) -> None:
    office.keep(
        records.Review(decision_id="d2", reviewer="kim", verdict="correct_decision", decision="allow")
    )
    assert ids(office.picks("bo", queue="incorrect")) == ["d2"]
    assert ids(office.picks("bo", queue="all")) == ["d1", "d2", "d3"]
    assert ids(office.picks("bo", risk="low")) == []
    assert ids(office.picks("bo", actor="alice")) == ["d1", "d3"]


def test_a_verdict_on_a_sampled_decision_is_marked_as_sampled(office: Office) -> None:
    kim = office.session("kim", by="priority", random_share=1.0)
    kim.open()
    kim.judge("accept")
    assert office.reviews()[0][7] == 1


# ---------------------------------------------------------------- any steps of two reviewers

STEPS = st.sampled_from(["accept", "correct_decision", "skip", "undo", "back", "late"])


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 1), STEPS), max_size=25))
def test_after_any_steps_of_two_reviewers_the_rows_match_the_standing_verdicts(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str]]
) -> None:
    office = Office(tmp_path_factory.mktemp("any") / "journal.db")
    office.decide("d4", "d3", "d2", "d1", annotations=Annotations(expected=("allow",)))
    people = [office.session("kim"), office.session("bo")]
    for person in people:
        person.open()
    for who, step in steps:
        person, other = people[who], people[1 - who]
        if step == "undo":
            person.undo()
        elif step == "back":
            person.back()
        elif step == "late":
            office.now_s += LEASE_S + 1
            person.open()
        elif person.item is not None:
            try:
                if step == "skip":
                    person.skip()
                else:
                    right = "allow" if step == "correct_decision" else None
                    person.judge("correct_decision" if right else "accept", decision=right)
            except RequestError as error:
                assert error.code == "conflict"  # noqa: PT017
        late = office.now_s - min(person._leased_s, other._leased_s) >= LEASE_S
        assert shown(person) is None or shown(person) != shown(other) or late
    for name in ("d1", "d2", "d3", "d4"):
        standing = agreement.standing(office.reader_rows(name))
        row = decision_row(office.path, name)
        assert row["reviewed"] == bool(standing)
        assert row["decision_correct"] == (standing[-1].accepts_outcome if standing else 0)
        assert row["review_decision"] == (standing[-1].decision if standing else None)
    office.close()
    assert verify(office.path).ok
