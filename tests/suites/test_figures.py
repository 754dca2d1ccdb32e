"""What a run shows: figures by scenario, comparisons that chance cannot make, baselines that fail closed."""

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
from thor_policy.suites import baselines, verdicts
from thor_policy.suites.comparison import Comparison, compare
from thor_policy.suites.figures import figures, flips, pass_k
from thor_policy.suites.intervals import rate
from thor_policy.suites.run_files import Item, Run, Tokens, how_wrong, item, load, plain, worst
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


def test_an_item_keeps_what_figures_need_and_nothing_of_the_question() -> None:
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
    )


def test_an_item_of_a_scenario_that_was_not_answered() -> None:
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


def test_a_run_is_read_back_as_it_was_and_shown_figures_are_not(tmp_path: Path) -> None:
    run = run_of(answered("Q1"), answered("Q2", "allow"), error("Q3"))
    shown = plain(run, summary=figures(run))
    assert list(shown)[-1] == "results"
    assert shown["summary"]["decided"]["hits"] == 1
    shown["summary"]["decided"]["hits"] = 99
    path = tmp_path / "run.json"
    path.write_bytes(msgspec.json.encode(shown))
    assert load(path) == run


@pytest.mark.parametrize(
    ("content", "told"),
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
def test_what_is_no_run_is_refused_by_file(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(SuiteError) as refusal:
        load(path)
    assert str(refusal.value).startswith(f"{path}: {told}")


def test_a_run_that_is_not_there_is_refused_by_file(tmp_path: Path) -> None:
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
    found = rate(hits, of)
    assert found.share == hits / of
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_a_rate_of_nothing_says_nothing() -> None:
    found = rate(0, 0)
    assert (found.share, found.low, found.high) == (None, 0.0, 1.0)


@given(st.integers(1, 400).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))))
def test_an_interval_holds_its_share(pair: tuple[int, int]) -> None:
    found = rate(*pair)
    assert found.share is not None
    assert -1e-12 <= found.low <= found.share + 1e-12
    assert found.share - 1e-12 <= found.high <= 1 + 1e-12


MIXED = run_of(
    answered("Q1", "deny"),  # the model tightened, rightly
    answered("Q2", "allow"),  # the model was wrong, and too loose
    answered("Q3", "deny", wanted="allow"),  # too strict
    answered("Q4", "deny", label=None, floor="deny", tier="rule", probabilities={}, tokens=None),
    answered("Q5", "mfa", wanted="allow|mfa", difficulty="hard", tags=("night", "critical")),
    error("Q6", difficulty="attack"),
    skipped("Q7"),
)


def test_counts_of_a_run() -> None:
    found = figures(MIXED)
    assert (found.scenarios, found.not_skipped) == (7, 6)
    assert (found.passed, found.failed, found.errors, found.skipped) == (3, 2, 1, 1)
    assert not found.ok
    assert (found.passing.hits, found.passing.of) == (3, 6)


def test_rules_and_model_are_told_apart_and_compared_on_the_same_questions() -> None:
    found = figures(MIXED)
    assert (found.decided.hits, found.decided.of) == (3, 6)
    assert (found.rules.hits, found.rules.of) == (3, 6)  # Q3, Q4, Q5
    assert (found.model.hits, found.model.of) == (2, 4)  # Q1, Q5 of those that it was asked
    assert (found.rules_where_asked.hits, found.rules_where_asked.of) == (2, 4)  # Q3, Q5


def test_always_answering_the_commonest_label_is_a_baseline_of_each_pack() -> None:
    assert figures(MIXED).majority.hits == 4  # deny, right for Q1, Q2, Q4, Q6
    other = [answered("Q8", "allow", wanted="allow", pack="other"), answered("Q9", "deny", pack="other")]
    both = replace(MIXED, results=(*MIXED.results, *other))
    assert (figures(both).majority.hits, figures(both).majority.of) == (5, 8)


def test_balanced_accuracy_weighs_every_outcome_alike() -> None:
    items = [answered(f"Q{n}", "deny") for n in range(9)] + [answered("Q9", "deny", wanted="allow")]
    found = figures(run_of(*items))
    assert found.decided.share == 0.9
    assert (found.balanced_accuracy, found.classes) == (0.5, 2)


def test_too_loose_and_too_strict_are_counted_apart() -> None:
    found = figures(MIXED)
    assert (found.too_loose.hits, found.too_strict.hits) == (1, 1)


def test_confusion_counts_wanted_against_served() -> None:
    (found,) = figures(MIXED).confusion
    assert (found.pack, found.labels) == ("small", LABELS)
    assert found.counts == ((0, 0, 1), (0, 0, 0), (1, 0, 2))
    assert found.several == 2  # Q5 accepts two, Q6 got none


def test_calibration_is_that_of_the_models_own_label() -> None:
    found = figures(MIXED).calibration
    assert found is not None
    assert (found.count, found.accuracy) == (3, pytest.approx(1 / 3))  # Q1, Q2, Q3
    assert found.ece == pytest.approx(0.8 - 1 / 3)
    assert figures(run_of(error("Q1"))).calibration is None


def test_groups_by_difficulty_go_from_easy_to_attack_and_by_tag_by_name() -> None:
    found = figures(MIXED)
    assert [group.name for group in found.by_difficulty] == ["easy", "hard", "attack"]
    assert [(group.name, group.passed.of) for group in found.by_tag] == [("critical", 1), ("night", 1)]
    easy = found.by_difficulty[0]
    assert (easy.passed.hits, easy.passed.of) == (2, 4)
    assert (easy.rules.hits, easy.model.hits, easy.model.of) == (2, 1, 3)
    assert (easy.too_loose, easy.too_strict) == (1, 1)


def test_time_is_told_by_who_answered() -> None:
    items = [answered(f"Q{n}", total_ms=float(n)) for n in range(1, 21)]
    items.append(answered("Q21", tier="rule", total_ms=0.5))
    model, rule = figures(run_of(*items)).latency
    assert (model.tier, model.count, model.median_ms, model.p95_ms, model.max_ms) == (
        "model", 20, 10.5, 19.0, 20.0,
    )  # fmt: skip
    assert (rule.tier, rule.median_ms) == ("rule", 0.5)


def test_tokens_are_means_over_what_the_model_answered() -> None:
    found = figures(MIXED)
    assert (found.mean_question_tokens, found.mean_explanation_tokens) == (70, 10)
    assert figures(run_of(error("Q1"))).mean_question_tokens is None


def test_nothing_asked_gives_no_figures_and_no_failure() -> None:
    found = figures(run_of())
    assert (found.scenarios, found.passing.share, found.pass_k, found.ok) == (0, None, (), False)
    assert found.balanced_accuracy is None
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
    found = pass_k(run)
    assert list(found) == sorted(found, reverse=True)
    share = figures(run).passing.share
    assert share is not None
    assert math.isclose(found[-1], share, abs_tol=1e-12)


def test_repeats_do_not_narrow_an_interval() -> None:
    once, ten = repeated(*[(True,)] * 5, (False,)), repeated(*[(True,) * 10] * 5, (False,) * 10)
    assert figures(once).passing == figures(ten).passing


def test_a_flip_tells_each_round_and_how_far_probabilities_moved() -> None:
    first, second, third = (answered("Q1", o, round=n) for n, o in enumerate(("deny", "deny", "mfa"), 1))
    (found,) = flips([third, first, second, answered("Q2", round=1), answered("Q2", round=2)])
    assert (found.id, found.outcomes, found.passed) == ("Q1", ("deny", "deny", "mfa"), (True, True, False))
    assert found.shift == pytest.approx(0.7)


# ---------------------------------------------------------------- comparing


def compared(before: list[Item], after: list[Item], **changes: Any) -> Comparison:
    return compare(run_of(*before), run_of(*after, **changes), names=("A", "B"))


def test_a_run_against_itself_shows_no_difference() -> None:
    items = many(30, 10)
    found = compared(items, items)
    assert (found.paired, found.fixed, found.broken, found.changes) == (40, 0, 0, ())
    assert (found.both_right, found.both_wrong) == (30, 10)
    assert (found.p_value, found.difference) == (1.0, 0.0)
    assert found.low == -found.high
    assert found.choice == "neither"
    assert found.reason.startswith("no difference shown")


def test_mcnemar_is_exact_and_its_interval_agrees() -> None:
    before = many(20, 10)
    after = many(30, 0)
    found = compared(before, after)
    assert (found.fixed, found.broken) == (10, 0)
    assert found.p_value == pytest.approx(2 / 2**10)  # by hand: both tails of ten coins that agree
    assert found.difference == pytest.approx(1 / 3)
    # Clopper-Pearson of 10 of 10: from 0.025^(1/10)
    assert found.low == pytest.approx((2 * 0.025**0.1 - 1) / 3, abs=1e-6)
    assert found.high == pytest.approx(1 / 3)
    assert (found.choice, found.reason) == (
        "after",
        "B decides 10 more of 30 right (exact McNemar p = 0.002)",
    )
    back = compared(after, before)
    assert (back.choice, back.p_value) == ("before", found.p_value)
    assert back.reason.startswith("A decides 10 more")


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_an_interval_without_zero_and_a_significant_test_are_one(pairs: list[tuple[bool, bool]]) -> None:
    before = [answered(f"Q{n}", "deny" if right else "mfa") for n, (right, _) in enumerate(pairs)]
    after = [answered(f"Q{n}", "deny" if right else "mfa") for n, (_, right) in enumerate(pairs)]
    found = compare(run_of(*before), run_of(*after))
    assert found.low - 1e-9 <= found.difference <= found.high + 1e-9
    assert (found.p_value < 0.05) == (found.low > 1e-9 or found.high < -1e-9)
    assert found.fixed + found.broken + found.both_right + found.both_wrong == found.paired == len(pairs)


@pytest.mark.parametrize("gain", [1, 3, 5])
def test_a_handful_of_gains_is_noise(gain: int) -> None:
    found = compared(many(30 - gain, gain), many(30, 0))
    assert found.p_value > 0.05
    assert found.choice == "neither"
    assert found.reason.startswith("no difference shown")


def test_who_is_better_but_newly_too_loose_is_not_recommended() -> None:
    before = [*many(20, 10), answered("L1", "deny")]
    after = [*many(30, 0), answered("L1", "allow")]
    found = compared(before, after)
    assert found.p_value < 0.05
    assert (found.loosened, found.tightened) == (1, 0)
    assert (found.choice, "look at those first" in found.reason) == ("neither", True)


def test_every_change_is_listed() -> None:
    before = [answered("Q1", "allow"), answered("Q2", "deny"), answered("Q3", "deny"), error("Q4")]
    after = [answered("Q1", "mfa"), answered("Q2", "allow"), answered("Q3", "deny"), answered("Q4")]
    found = compared(before, after)
    assert [(c.id, c.before, c.after, c.loosened, c.tightened) for c in found.changes] == [
        ("Q1", "allow", "mfa", False, False),
        ("Q2", "deny", "allow", True, False),
        ("Q4", None, "deny", False, False),
    ]
    assert (found.fixed, found.broken) == (1, 1)


def test_only_scenarios_that_both_asked_are_compared_and_the_others_named() -> None:
    before = [answered("Q1"), answered("Q2"), skipped("Q3")]
    after = [answered("Q2"), answered("Q3"), answered("Q4")]
    found = compared(before, after)
    assert found.paired == 1
    assert (found.only_before, found.only_after) == (
        (("trial", "Q1"),),
        (("trial", "Q3"), ("trial", "Q4")),
    )
    nothing = compared([answered("Q1")], [answered("Q2")])
    assert (nothing.choice, nothing.reason) == ("neither", "no scenario was asked in both runs")


def timed(factor: float, count: int = 60) -> list[Item]:
    return [answered(f"Q{n}", total_ms=(100.0 + n) * factor) for n in range(count)]


def test_speed_decides_where_accuracy_is_shown_to_be_no_worse() -> None:
    found = compared(timed(1.0, 80), timed(0.5, 80))
    assert found.latency is not None
    assert (found.latency.ratio, found.latency.low, found.latency.high) == pytest.approx((0.5, 0.5, 0.5))
    assert found.choice == "after"
    assert "B takes 0.50 (0.50 to 0.50) of the time" in found.reason
    assert compared(timed(0.5, 80), timed(1.0, 80)).choice == "before"


def test_speed_decides_nothing_where_accuracy_may_be_worse_or_the_machine_is_another() -> None:
    assert compared(timed(1.0, 10), timed(0.5, 10)).choice == "neither"  # ten say little of accuracy
    assert compared(timed(1.0, 80), timed(0.5, 80), machine="another").choice == "neither"
    assert compared(timed(1.0, 80), timed(0.95, 80)).choice == "neither"  # shown, and not worth it


def test_too_few_times_have_no_interval() -> None:
    found = compared(timed(1.0, 5), timed(0.5, 5)).latency
    assert found is not None
    assert (found.count, found.low, found.high) == (5, 0.0, None)
    by_rule = [answered("Q1", tier="rule")]
    assert compared(by_rule, by_rule).latency is None


def test_tokens_are_compared_where_both_asked_the_model() -> None:
    after = [
        answered("Q1", tokens=Tokens(prefix=9, question=50, explanation=20)),
        answered("Q2", tokens=None),
    ]
    found = compared([answered("Q1"), answered("Q2")], after)
    assert (found.question_tokens, found.explanation_tokens) == ((70, 50), (10, 20))


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
    found = baselines.gate(tmp_path, run, whole=True)
    assert (found.ok, list(found.comparisons)) == (True, ["trial"])
    assert load(tmp_path / "trial@tiny-q4.json") == run


def test_each_suite_has_a_baseline_of_its_own_and_names_are_fit_for_files(tmp_path: Path) -> None:
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


def test_a_significant_drop_fails_and_a_small_one_does_not(tmp_path: Path) -> None:
    baselines.bless(tmp_path, run_of(*many(30, 0)))
    assert gated(tmp_path, *many(27, 3)) == ()
    (reason,) = gated(tmp_path, *many(20, 10))
    assert reason == "trial: decides 20 of 30 right, the baseline 30 (exact McNemar p = 0.002)"


def test_a_gain_passes(tmp_path: Path) -> None:
    baselines.bless(tmp_path, run_of(*many(10, 20)))
    assert gated(tmp_path, *many(30, 0)) == ()


def test_one_newly_loosened_scenario_fails_whatever_else_was_gained(tmp_path: Path) -> None:
    baselines.bless(tmp_path, run_of(*many(10, 20), answered("L1", "deny")))
    assert gated(tmp_path, *many(30, 0), answered("L1", "allow")) == (
        "trial: L1 is newly loosened: deny before, allow now",
    )


def test_a_scenario_that_was_too_loose_before_may_stay_so(tmp_path: Path) -> None:
    baselines.bless(tmp_path, run_of(answered("L1", "allow")))
    assert gated(tmp_path, answered("L1", "mfa")) == ()


def test_a_critical_scenario_may_not_newly_fail_though_its_decision_is_right(tmp_path: Path) -> None:
    baselines.bless(tmp_path, run_of(answered("C1", tags=("critical",)), answered("C2")))
    failing = {"status": "failed", "misses": ("did not cite R1",)}
    assert gated(tmp_path, answered("C1", tags=("critical",)), answered("C2", **failing)) == ()
    assert gated(tmp_path, answered("C1", tags=("critical",), **failing), answered("C2")) == (
        "trial: C1 is tagged critical and newly fails: deny before, deny now",
    )


def test_a_scenario_that_was_dropped_or_skipped_fails_a_whole_run_but_not_a_selection(tmp_path: Path) -> None:
    baselines.bless(tmp_path, run_of(*[answered(f"Q{number}") for number in range(14)]))
    (reason,) = gated(tmp_path, answered("Q0"), skipped("Q1"))
    assert reason.startswith("trial: scenarios of the baseline were not asked: Q1, Q2, ")
    assert reason.endswith("Q10 and 3 more")
    assert gated(tmp_path, answered("Q0"), whole=False) == ()


def test_a_scenario_that_the_baseline_does_not_know_has_to_be_blessed(tmp_path: Path) -> None:
    baselines.bless(tmp_path, run_of(answered("Q0")))
    assert gated(tmp_path, answered("Q0"), answered("N1")) == (
        "trial: the baseline does not hold N1 as asked here; run with --bless again",
    )


@pytest.mark.parametrize("change", [{"question": "12"}, {"wanted": "deny|mfa"}])
def test_a_scenario_that_was_edited_is_another_one(tmp_path: Path, change: dict[str, Any]) -> None:
    baselines.bless(tmp_path, run_of(answered("Q0"), answered("Q1")))
    edited = answered("Q0", **change)
    assert gated(tmp_path, edited, answered("Q1")) == (
        "trial: the baseline does not hold Q0 as asked here; run with --bless again",
    )
    found = compared([answered("Q0"), answered("Q1")], [edited, answered("Q1")])
    assert (found.paired, found.redefined) == (1, (("trial", "Q0"),))


def test_nothing_asked_does_not_pass(tmp_path: Path) -> None:
    baselines.bless(tmp_path, run_of(answered("Q0")))
    assert "nothing was asked" in gated(tmp_path, skipped("Q0"), whole=False)
    assert gated(tmp_path) == ("nothing was asked",)


def test_a_flip_in_one_round_is_enough(tmp_path: Path) -> None:
    baselines.bless(tmp_path, run_of(answered("Q0")))
    rounds = [answered("Q0", round=1), answered("Q0", "allow", round=2)]
    assert gated(tmp_path, *rounds) == ("trial: Q0 is newly loosened: deny before, allow now",)


def test_a_baseline_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "trial@tiny-q4.json").write_text("{}")
    with pytest.raises(SuiteError, match="is no saved run"):
        gated(tmp_path, answered("Q0"))
