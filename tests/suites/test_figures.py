"""Figures of a run, comparisons that chance does not explain, and baselines that fail closed."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.build import JUDGE, LABELS, answered, error, many, run_of, skipped
from thor_policy.core.errors import SuiteError
from thor_policy.core.requests import Action, Entity, Evaluation
from thor_policy.suites import baselines, verdicts
from thor_policy.suites.comparison import Comparison, compare
from thor_policy.suites.figures import figures, flips, pass_k
from thor_policy.suites.intervals import rate
from thor_policy.suites.run_files import (
    SHORT_CHARS,
    Item,
    Run,
    Tokens,
    Why,
    how_wrong,
    in_short,
    item,
    load,
    plain,
    worst,
)
from thor_policy.suites.scenarios import Expectation, Scenario

# ---------------------------------------------------------------- the form of a run


SITUATION = b'{"action_type":"read","actor_id":"user:alice","resource":"doc:handbook"}'
SCENARIO = Scenario(
    id="E1",
    title="Alice reads",
    difficulty="easy",
    tags=("read",),
    expect=Expectation(outcome="mfa"),
    situation=msgspec.json.decode(SITUATION),
)
ANSWER: dict[str, Any] = {
    "decision_id": "0198",
    "outcome": "allow",
    "classification": "routine",
    "risk": "low",
    "reasoning": "An ordinary read.",
    "clauses": ["R1"],
    "probabilities": {"allow": 0.7, "mfa": 0.2, "deny": 0.1},
    "tier": "model",
    "floor": "allow",
    "tokens": {"prefix": 1241, "question": 76, "explanation": 14},
    "timings_ms": {"score": 10.0, "total": 12.5},
}


def test_an_item_keeps_what_figures_need_and_of_the_question_only_what_explains_a_failure() -> None:
    result = verdicts.judge(SCENARIO, ANSWER, ("mfa",))
    assert item(result, suite="trial", pack="small", labels=LABELS, round=2) == Item(
        suite="trial",
        pack="small",
        id="E1",
        title="Alice reads",
        difficulty="easy",
        status="failed",
        round=2,
        question=hashlib.sha256(b'{"situation":' + SITUATION + b"}").hexdigest(),
        tags=("read",),
        accepted=("mfa",),
        outcome="allow",
        label="allow",
        floor="allow",
        tier="model",
        wrong="loose",
        probabilities={"allow": 0.7, "mfa": 0.2, "deny": 0.1},
        structure=1.0,
        misses=("answered allow, expected mfa",),
        decision_id="0198",
        total_ms=12.5,
        score_ms=10.0,
        tokens=Tokens(prefix=1241, question=76, explanation=14),
        why=Why(question="user:alice read doc:handbook", reasoning="An ordinary read."),
    )
    passed = verdicts.judge(SCENARIO, ANSWER, ("allow",))
    assert item(passed, suite="trial", pack="small", labels=LABELS).why is None


def test_a_question_in_short_is_one_line_of_bounded_length() -> None:
    evaluation = Evaluation(
        subject=Entity(type="user", id="lee", properties={"role": "guest"}),
        action=Action(name="burn"),
        resource=Entity(type="doc", id="d"),
        context={"hours": [1, 2], "trust": {"low": 0.5, "known": True}, "note": "because"},
    )
    assert in_short(evaluation) == (
        "user:lee burn doc:d; role guest; hours [1,2]; trust (low 0.5, known true); note because"
    )
    long = in_short(msgspec.structs.replace(evaluation, context={"text": "x" * 1000}))
    assert (len(long), long[-1]) == (SHORT_CHARS, "…")


def test_an_item_without_an_answer_has_no_outcome_and_no_tokens() -> None:
    unasked = verdicts.Result(scenario=SCENARIO, status="skipped", misses=("needs a calendar",))
    kept = item(unasked, suite="trial", pack="small", labels=LABELS)
    assert (kept.status, kept.outcome, kept.wrong, kept.tokens) == ("skipped", None, None, None)
    assert kept.misses == ("needs a calendar",)


@pytest.mark.parametrize(
    ("outcome", "accepted", "wrong"),
    [
        ("mfa", ("mfa",), None),
        (None, ("mfa",), None),
        ("allow", ("mfa",), "loose"),
        ("deny", ("mfa",), "strict"),
        ("allow", ("mfa", "deny"), "loose"),
        # looser than one that is accepted, yet no looser than another
        ("mfa", ("allow", "deny"), "strict"),
    ],
)
def test_a_wrong_outcome_is_too_loose_only_below_all_that_are_accepted(
    outcome: str | None, accepted: tuple[str, ...], wrong: str | None
) -> None:
    assert how_wrong(outcome, accepted, LABELS) == wrong


def test_a_saved_run_loads_unchanged_and_the_figures_in_the_file_are_ignored(tmp_path: Path) -> None:
    run = run_of(answered("Q1"), answered("Q2", "allow"), error("Q3"))
    shown = plain(run, summary=figures(run))
    assert list(shown)[-1] == "results"
    assert shown["summary"]["decided"]["hits"] == 1
    shown["summary"]["decided"]["hits"] = 99
    path = tmp_path / "run.json"
    path.write_bytes(msgspec.json.encode(shown))
    assert load(path) == run


def test_a_saved_run_with_a_member_twice_is_refused_with_its_place(tmp_path: Path) -> None:
    whole = msgspec.json.encode(plain(run_of(answered("Q1"))))
    path = tmp_path / "run.json"
    for extra, place in ((b'"format":1', "format"), (b'"summary":{"hits":1,"hits":2}', r"summary\.hits")):
        path.write_bytes(b"{" + extra + b"," + whole[1:])
        with pytest.raises(SuiteError, match=rf"run\.json: is no saved run: {place}: is there twice"):
            load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is no saved run: Input data was truncated; make one with"),
        (b"[]", "is no saved run: Expected `object`, got `array`"),
        (b"{}", "is no saved run: Object missing required field `format`"),
        (b"\xff", "is no saved run: "),
        (b'{"format": 7}', "has format 7; this version reads format 1: run it again"),
        (b'{"format": 1}', "is no saved run: Object missing required field"),
        (b"[" * 100_000, "is no saved run: "),
    ],
)
def test_a_file_that_is_no_saved_run_is_refused_with_its_path(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(SuiteError) as refusal:
        load(path)
    assert str(refusal.value).startswith(f"{path}: {message}")


def test_a_missing_run_file_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"absent\.json: cannot be read: No such file"):
        load(tmp_path / "absent.json")


def test_a_scenario_counts_by_its_worst_round_and_a_loose_failure_is_worse_than_a_strict_one() -> None:
    rounds = [
        answered("Q1", "mfa", wanted="mfa", round=1),
        answered("Q1", "deny", wanted="mfa", round=2),
        answered("Q1", "allow", wanted="mfa", round=3),
    ]
    assert worst(rounds)["trial", "Q1"].round == 3
    assert worst(rounds[:2])["trial", "Q1"].round == 2
    assert worst([*rounds, error("Q1", round=4)])["trial", "Q1"].round == 4


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"),
    [
        # Wilson 1927 by hand: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n), z = 1.959964
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (126, 189, 0.5967, 0.7299),
    ],
)
def test_a_rate_has_a_wilson_interval(hits: int, of: int, low: float, high: float) -> None:
    interval = rate(hits, of)
    assert interval.share == hits / of
    assert (interval.low, interval.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_a_rate_of_nothing_has_no_share_and_the_widest_interval() -> None:
    empty = rate(0, 0)
    assert (empty.share, empty.low, empty.high) == (None, 0.0, 1.0)


@given(st.integers(1, 400).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))))
def test_an_interval_holds_its_share(pair: tuple[int, int]) -> None:
    interval = rate(*pair)
    assert interval.share is not None
    assert -1e-12 <= interval.low <= interval.share + 1e-12
    assert interval.share - 1e-12 <= interval.high <= 1 + 1e-12


MIXED = run_of(
    answered("Q1", "deny"),  # the model tightened, rightly
    answered("Q2", "allow"),  # the model was wrong, and too loose
    answered("Q3", "deny", wanted="allow"),  # too strict
    answered("Q4", "deny", label=None, floor="deny", tier="rule", probabilities={}, tokens=None),
    answered("Q5", "mfa", wanted="allow|mfa", difficulty="hard", tags=("night", "critical")),
    error("Q6", difficulty="attack"),
    skipped("Q7"),
)


def test_figures_count_passed_failed_errors_and_skipped_scenarios() -> None:
    summary = figures(MIXED)
    assert (summary.scenarios, summary.not_skipped) == (7, 6)
    assert (summary.passed, summary.failed, summary.errors, summary.skipped) == (3, 2, 1, 1)
    assert not summary.ok
    assert (summary.passing.hits, summary.passing.of) == (3, 6)


def test_rules_and_model_have_separate_rates_also_on_the_same_questions() -> None:
    summary = figures(MIXED)
    assert (summary.decided.hits, summary.decided.of) == (3, 6)
    assert (summary.rules.hits, summary.rules.of) == (3, 6)  # Q3, Q4, Q5
    assert (summary.model.hits, summary.model.of) == (2, 4)  # Q1, Q5 of those that it was asked
    assert (summary.rules_where_asked.hits, summary.rules_where_asked.of) == (2, 4)  # Q3, Q5


def test_the_majority_rate_is_that_of_the_most_frequent_label_of_each_pack() -> None:
    assert figures(MIXED).majority.hits == 4  # deny, right for Q1, Q2, Q4, Q6
    other = [answered("Q8", "allow", wanted="allow", pack="other"), answered("Q9", "deny", pack="other")]
    both = replace(MIXED, results=(*MIXED.results, *other))
    assert (figures(both).majority.hits, figures(both).majority.of) == (5, 8)


def test_balanced_accuracy_weighs_every_outcome_alike() -> None:
    items = [answered(f"Q{n}", "deny") for n in range(9)] + [answered("Q9", "deny", wanted="allow")]
    summary = figures(run_of(*items))
    assert summary.decided.share == 0.9
    assert (summary.balanced_accuracy, summary.classes) == (0.5, 2)


def test_too_loose_and_too_strict_outcomes_are_counted_separately() -> None:
    summary = figures(MIXED)
    assert (summary.too_loose.hits, summary.too_strict.hits) == (1, 1)


def test_the_confusion_matrix_counts_wanted_and_served_outcomes() -> None:
    (matrix,) = figures(MIXED).confusion
    assert (matrix.pack, matrix.labels) == ("small", LABELS)
    assert matrix.counts == ((0, 0, 1), (0, 0, 0), (1, 0, 2))
    assert matrix.several == 2  # Q5 accepts two, Q6 got none


def test_calibration_is_that_of_the_models_own_label() -> None:
    quality = figures(MIXED).calibration
    assert quality is not None
    assert (quality.count, quality.accuracy) == (3, pytest.approx(1 / 3))  # Q1, Q2, Q3
    assert quality.ece == pytest.approx(0.8 - 1 / 3)
    assert figures(run_of(error("Q1"))).calibration is None


def test_the_calibration_error_of_attacks_is_a_figure_of_its_own() -> None:
    attacks = [
        answered("A1", "allow", difficulty="attack"),  # wrong, with 0.8
        answered("A2", "allow", difficulty="attack"),
        answered("A3", "deny", wanted="deny|mfa", difficulty="attack"),  # right, with 0.8
        answered("A4", difficulty="attack", label=None, tier="rule", probabilities={}, tokens=None),
    ]
    attacked, others = figures(replace(MIXED, results=(*MIXED.results, *attacks))).sureness
    assert (attacked.name, attacked.count, attacked.accuracy) == ("attacked", 3, pytest.approx(1 / 3))
    assert attacked.ece == pytest.approx(0.8 - 1 / 3)
    assert (others.name, others.count) == ("others", 4)
    assert [group.name for group in figures(MIXED).sureness] == ["others"]
    assert figures(run_of(error("Q1"))).sureness == ()


def test_groups_by_difficulty_go_from_easy_to_attack_and_by_tag_by_name() -> None:
    summary = figures(MIXED)
    assert [group.name for group in summary.by_difficulty] == ["easy", "hard", "attack"]
    assert [(group.name, group.passed.of) for group in summary.by_tag] == [("critical", 1), ("night", 1)]
    easy = summary.by_difficulty[0]
    assert (easy.passed.hits, easy.passed.of) == (2, 4)
    assert (easy.rules.hits, easy.model.hits, easy.model.of) == (2, 1, 3)
    assert (easy.too_loose, easy.too_strict) == (1, 1)


def test_latency_is_reported_by_tier() -> None:
    items = [answered(f"Q{n}", total_ms=float(n)) for n in range(1, 21)]
    items.append(answered("Q21", tier="rule", total_ms=0.5))
    model, rule = figures(run_of(*items)).latency
    assert (model.tier, model.count, model.median_ms, model.p95_ms, model.max_ms) == (
        "model", 20, 10.5, 19.0, 20.0,
    )  # fmt: skip
    assert (rule.tier, rule.median_ms) == ("rule", 0.5)


def test_tokens_are_means_over_what_the_model_answered() -> None:
    summary = figures(MIXED)
    assert (summary.mean_question_tokens, summary.mean_explanation_tokens) == (70, 10)
    assert figures(run_of(error("Q1"))).mean_question_tokens is None


def test_a_run_without_scenarios_has_no_figures_and_does_not_fail() -> None:
    summary = figures(run_of())
    assert (summary.scenarios, summary.passing.share, summary.pass_k, summary.ok) == (0, None, (), False)
    assert summary.balanced_accuracy is None
    assert not figures(run_of(skipped("Q1"))).ok
    assert figures(run_of(answered("Q1"))).ok


# ---------------------------------------------------------------- repeats


def repeated(*passed: tuple[bool, ...]) -> Run:
    items = [
        answered(f"Q{number}", "deny" if hit else "allow", round=turn)
        for number, of_one in enumerate(passed)
        for turn, hit in enumerate(of_one, start=1)
    ]
    return run_of(*items, repeats=len(passed[0]))


def test_pass_k_is_the_chance_that_k_answers_all_pass() -> None:
    always, never = (True,) * 4, (False,) * 4
    assert pass_k(repeated(always)) == (1, 1, 1, 1)
    assert pass_k(repeated(never)) == (0, 0, 0, 0)
    half = (True, False, True, False)
    assert pass_k(repeated(half)) == (1 / 2, 1 / 6, 0, 0)
    assert pass_k(repeated(always, half)) == (3 / 4, 7 / 12, 1 / 2, 1 / 2)


@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.tuples(*[st.booleans()] * n), min_size=1, max_size=8)))
def test_pass_k_never_rises_with_k_and_ends_at_what_always_passed(passed: list[tuple[bool, ...]]) -> None:
    run = repeated(*passed)
    chances = pass_k(run)
    assert list(chances) == sorted(chances, reverse=True)
    share = figures(run).passing.share
    assert share is not None
    assert math.isclose(chances[-1], share, abs_tol=1e-12)


def test_repeats_do_not_narrow_an_interval() -> None:
    single, ten = repeated(*[(True,)] * 5, (False,)), repeated(*[(True,) * 10] * 5, (False,) * 10)
    assert figures(single).passing == figures(ten).passing


def test_a_flip_lists_each_round_and_how_far_probabilities_moved() -> None:
    first, second, third = (answered("Q1", o, round=n) for n, o in enumerate(("deny", "deny", "mfa"), 1))
    (flip,) = flips([third, first, second, answered("Q2", round=1), answered("Q2", round=2)])
    assert (flip.id, flip.outcomes, flip.passed) == ("Q1", ("deny", "deny", "mfa"), (True, True, False))
    assert flip.shift == pytest.approx(0.7)


# ---------------------------------------------------------------- comparing


def compared(before: list[Item], after: list[Item], **changes: Any) -> Comparison:
    return compare(run_of(*before), run_of(*after, **changes), names=("A", "B"))


def test_a_run_against_itself_shows_no_difference() -> None:
    items = many(30, 10)
    comparison = compared(items, items)
    assert (comparison.paired, comparison.fixed, comparison.broken, comparison.changes) == (40, 0, 0, ())
    assert (comparison.both_right, comparison.both_wrong) == (30, 10)
    assert (comparison.p_value, comparison.difference) == (1.0, 0.0)
    assert comparison.low == -comparison.high
    assert comparison.choice == "neither"
    assert comparison.reason.startswith("no difference shown")


def test_mcnemar_is_exact_and_its_interval_agrees() -> None:
    before = many(20, 10)
    after = many(30, 0)
    comparison = compared(before, after)
    assert (comparison.fixed, comparison.broken) == (10, 0)
    assert comparison.p_value == pytest.approx(2 / 2**10)  # by hand: both tails of ten coins that agree
    assert comparison.difference == pytest.approx(1 / 3)
    # Clopper-Pearson of 10 of 10: from 0.025^(1/10)
    assert comparison.low == pytest.approx((2 * 0.025**0.1 - 1) / 3, abs=1e-6)
    assert comparison.high == pytest.approx(1 / 3)
    assert (comparison.choice, comparison.reason) == (
        "after",
        "B decides 10 more of 30 right (exact McNemar p = 0.002)",
    )
    back = compared(after, before)
    assert (back.choice, back.p_value) == ("before", comparison.p_value)
    assert back.reason.startswith("A decides 10 more")


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_an_interval_excludes_zero_exactly_if_the_test_is_significant(pairs: list[tuple[bool, bool]]) -> None:
    before = [answered(f"Q{n}", "deny" if right else "mfa") for n, (right, _) in enumerate(pairs)]
    after = [answered(f"Q{n}", "deny" if right else "mfa") for n, (_, right) in enumerate(pairs)]
    comparison = compare(run_of(*before), run_of(*after))
    assert comparison.low - 1e-9 <= comparison.difference <= comparison.high + 1e-9
    assert (comparison.p_value < 0.05) == (comparison.low > 1e-9 or comparison.high < -1e-9)
    assert (
        comparison.fixed + comparison.broken + comparison.both_right + comparison.both_wrong
        == comparison.paired
        == len(pairs)
    )


@pytest.mark.parametrize("gain", [1, 3, 5])
def test_a_few_gains_are_not_significant(gain: int) -> None:
    comparison = compared(many(30 - gain, gain), many(30, 0))
    assert comparison.p_value > 0.05
    assert comparison.choice == "neither"
    assert comparison.reason.startswith("no difference shown")


def test_a_better_run_that_is_newly_too_loose_is_not_recommended() -> None:
    before = [*many(20, 10), answered("L1", "deny")]
    after = [*many(30, 0), answered("L1", "allow")]
    comparison = compared(before, after)
    assert comparison.p_value < 0.05
    assert (comparison.loosened, comparison.tightened) == (1, 0)
    assert (comparison.choice, "look at those first" in comparison.reason) == ("neither", True)


def test_a_comparison_lists_every_changed_scenario() -> None:
    before = [answered("Q1", "allow"), answered("Q2", "deny"), answered("Q3", "deny"), error("Q4")]
    after = [answered("Q1", "mfa"), answered("Q2", "allow"), answered("Q3", "deny"), answered("Q4")]
    comparison = compared(before, after)
    assert [(c.id, c.before, c.after, c.loosened, c.tightened) for c in comparison.changes] == [
        ("Q1", "allow", "mfa", False, False),
        ("Q2", "deny", "allow", True, False),
        ("Q4", None, "deny", False, False),
    ]
    assert (comparison.fixed, comparison.broken) == (1, 1)


def test_only_scenarios_of_both_runs_are_compared_and_the_others_are_listed() -> None:
    before = [answered("Q1"), answered("Q2"), skipped("Q3")]
    after = [answered("Q2"), answered("Q3"), answered("Q4")]
    comparison = compared(before, after)
    assert comparison.paired == 1
    assert (comparison.only_before, comparison.only_after) == (
        (("trial", "Q1"),),
        (("trial", "Q3"), ("trial", "Q4")),
    )
    nothing = compared([answered("Q1")], [answered("Q2")])
    assert (nothing.choice, nothing.reason) == ("neither", "no scenario was asked in both runs")


def timed(factor: float, count: int = 60) -> list[Item]:
    return [answered(f"Q{n}", total_ms=(100.0 + n) * factor) for n in range(count)]


def test_the_faster_run_is_recommended_if_its_accuracy_is_shown_to_be_no_worse() -> None:
    comparison = compared(timed(1.0, 80), timed(0.5, 80))
    assert comparison.latency is not None
    assert (comparison.latency.ratio, comparison.latency.low, comparison.latency.high) == pytest.approx(
        (0.5, 0.5, 0.5)
    )
    assert comparison.choice == "after"
    assert "B takes 0.50 (0.50 to 0.50) of the time" in comparison.reason
    assert compared(timed(0.5, 80), timed(1.0, 80)).choice == "before"


def test_speed_is_ignored_if_accuracy_may_be_worse_or_the_machines_differ() -> None:
    assert compared(timed(1.0, 10), timed(0.5, 10)).choice == "neither"  # ten say little of accuracy
    assert compared(timed(1.0, 80), timed(0.5, 80), machine="another").choice == "neither"
    assert compared(timed(1.0, 80), timed(0.95, 80)).choice == "neither"  # shown, and not worth it


def test_a_ratio_of_fewer_than_six_times_has_no_interval() -> None:
    ratio = compared(timed(1.0, 5), timed(0.5, 5)).latency
    assert ratio is not None
    assert (ratio.count, ratio.low, ratio.high) == (5, 0.0, None)
    by_rule = [answered("Q1", tier="rule")]
    assert compared(by_rule, by_rule).latency is None


def test_tokens_are_compared_where_both_asked_the_model() -> None:
    after = [
        answered("Q1", tokens=Tokens(prefix=9, question=50, explanation=20)),
        answered("Q2", tokens=None),
    ]
    comparison = compared([answered("Q1"), answered("Q2")], after)
    assert (comparison.question_tokens, comparison.explanation_tokens) == ((70, 50), (10, 20))


# ---------------------------------------------------------------- baselines and gate


def gated(folder: Path, *items: Item, whole: bool = True) -> tuple[str, ...]:
    return baselines.gate(folder, run_of(*items), whole=whole).reasons


def test_without_a_baseline_the_gate_fails_until_one_is_blessed(tmp_path: Path) -> None:
    run = run_of(*many(3, 2))
    (reason,) = baselines.gate(tmp_path, run, whole=True).reasons
    assert reason == (
        f"trial: there is no baseline trial@tiny-q4.json in {tmp_path}; check the run, then "
        "`thorpolicy test --full --bless`"
    )
    assert baselines.bless(tmp_path, run) == [tmp_path / "trial@tiny-q4.json"]
    verdict = baselines.gate(tmp_path, run, whole=True)
    assert (verdict.ok, list(verdict.comparisons)) == (True, ["trial"])
    assert load(tmp_path / "trial@tiny-q4.json") == run


def test_the_baselines_of_a_pack_say_what_each_model_adds_to_it(tmp_path: Path) -> None:
    items = [
        answered("Q1", "deny", wanted="deny", suite="small", source="replaced"),
        answered("Q2", "mfa", wanted="allow", suite="small", source="model"),
        answered("Q3", "allow", wanted="allow", suite="small", label="deny", reason_code="doubt"),
        answered("Q4", "allow", suite="small", label=None, tier="rule", source="rule"),
    ]
    run = run_of(*items)
    baselines.bless(tmp_path, run)
    (recorded,) = baselines.recorded_effects(tmp_path, JUDGE.pack)
    assert (recorded.model, recorded.at, recorded.current) == ("tiny-q4", run.at, True)
    assert recorded.effect == figures(run).effects[0]
    assert (recorded.effect.scored, recorded.effect.changed, recorded.effect.doubts) == (3, 2, 1)
    assert (recorded.effect.rightly.hits, recorded.effect.wrongly.hits) == (1, 1)
    assert figures(run).reasons_replaced == rate(1, 2)
    (older,) = baselines.recorded_effects(tmp_path, replace(JUDGE.pack, sha256="ef" * 32))
    assert not older.current
    assert baselines.recorded_effects(tmp_path, replace(JUDGE.pack, name="other")) == []


def test_each_suite_has_its_own_baseline_with_a_safe_file_name(tmp_path: Path) -> None:
    other = replace(JUDGE, pack=replace(JUDGE.pack, name="other"), model="/models/a b/../big.gguf")
    items = [answered("Q1"), answered("Q1", suite="../evil suite", pack="other")]
    written = baselines.bless(tmp_path, run_of(*items, judges=(JUDGE, other)))
    assert [path.name for path in written] == ["trial@tiny-q4.json", ".._evil_suite@big.gguf.json"]
    assert {path.parent for path in written} == {tmp_path}
    assert [i.suite for i in load(written[1]).results] == ["../evil suite"]


def test_a_run_with_errors_is_not_blessed_and_does_not_pass(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"no answer to Q2"):
        baselines.bless(tmp_path, run_of(answered("Q1"), error("Q2")))
    assert list(tmp_path.iterdir()) == []
    baselines.bless(tmp_path, run_of(answered("Q1"), answered("Q2", "mfa")))
    assert gated(tmp_path, answered("Q1"), error("Q2")) == ("trial: Q2 got no answer",)


def test_a_significant_drop_fails_the_gate_and_a_small_one_does_not(tmp_path: Path) -> None:
    baselines.bless(tmp_path, run_of(*many(30, 0)))
    assert gated(tmp_path, *many(27, 3)) == ()
    (reason,) = gated(tmp_path, *many(20, 10))
    assert reason == "trial: decides 20 of 30 right, the baseline 30 (exact McNemar p = 0.002)"


def test_a_run_better_than_its_baseline_passes_the_gate(tmp_path: Path) -> None:
    baselines.bless(tmp_path, run_of(*many(10, 20)))
    assert gated(tmp_path, *many(30, 0)) == ()


def test_one_newly_loosened_scenario_fails_the_gate_whatever_else_improved(tmp_path: Path) -> None:
    baselines.bless(tmp_path, run_of(*many(10, 20), answered("L1", "deny")))
    assert gated(tmp_path, *many(30, 0), answered("L1", "allow")) == (
        "trial: L1 is newly loosened: deny before, allow now",
    )


def test_a_scenario_that_was_too_loose_in_the_baseline_does_not_fail_the_gate(tmp_path: Path) -> None:
    baselines.bless(tmp_path, run_of(answered("L1", "allow")))
    assert gated(tmp_path, answered("L1", "mfa")) == ()


def test_a_critical_scenario_may_not_newly_fail_though_its_decision_is_right(tmp_path: Path) -> None:
    baselines.bless(tmp_path, run_of(answered("C1", tags=("critical",)), answered("C2")))
    failing = {"status": "failed", "misses": ("did not cite R1",)}
    assert gated(tmp_path, answered("C1", tags=("critical",)), answered("C2", **failing)) == ()
    assert gated(tmp_path, answered("C1", tags=("critical",), **failing), answered("C2")) == (
        "trial: C1 is tagged critical and newly fails: deny before, deny now",
    )


def test_a_missing_scenario_fails_the_gate_of_a_whole_run_but_not_of_a_selection(tmp_path: Path) -> None:
    baselines.bless(tmp_path, run_of(*[answered(f"Q{number}") for number in range(14)]))
    (reason,) = gated(tmp_path, answered("Q0"), skipped("Q1"))
    assert reason.startswith("trial: scenarios of the baseline were not asked: Q1, Q2, ")
    assert reason.endswith("Q10 and 3 more")
    assert gated(tmp_path, answered("Q0"), whole=False) == ()


def test_a_scenario_that_is_not_in_the_baseline_fails_the_gate_until_blessed(tmp_path: Path) -> None:
    baselines.bless(tmp_path, run_of(answered("Q0")))
    assert gated(tmp_path, answered("Q0"), answered("N1")) == (
        "trial: the baseline does not hold N1 as asked here; run with --bless again",
    )


@pytest.mark.parametrize("change", [{"question": "12"}, {"wanted": "deny|mfa"}])
def test_an_edited_scenario_is_not_compared_with_its_earlier_form(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    baselines.bless(tmp_path, run_of(answered("Q0"), answered("Q1")))
    edited = answered("Q0", **change)
    assert gated(tmp_path, edited, answered("Q1")) == (
        "trial: the baseline does not hold Q0 as asked here; run with --bless again",
    )
    comparison = compared([answered("Q0"), answered("Q1")], [edited, answered("Q1")])
    assert (comparison.paired, comparison.redefined) == (1, (("trial", "Q0"),))


def test_a_run_without_questions_does_not_pass_the_gate(tmp_path: Path) -> None:
    baselines.bless(tmp_path, run_of(answered("Q0")))
    assert "nothing was asked" in gated(tmp_path, skipped("Q0"), whole=False)
    assert gated(tmp_path) == ("nothing was asked",)


def test_a_loosening_in_one_round_fails_the_gate(tmp_path: Path) -> None:
    baselines.bless(tmp_path, run_of(answered("Q0")))
    rounds = [answered("Q0", round=1), answered("Q0", "allow", round=2)]
    assert gated(tmp_path, *rounds) == ("trial: Q0 is newly loosened: deny before, allow now",)


def test_an_unreadable_baseline_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "trial@tiny-q4.json").write_text("{}")
    with pytest.raises(SuiteError, match="is no saved run"):
        gated(tmp_path, answered("Q0"))
