"""What a score makes of the floor: floor, label, abstention; and a doubt where the floor stands."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy.core.requests import RISKS, Risk
from thor_policy.policy.pack import Abstention, Limits
from thor_policy.policy.tightening import DOUBT, LOW_CONFIDENCE, doubt_of, served

LABELS = ("allow", "require_mfa", "require_attestation", "deny")
#: A model that is sure that an allow is too loose, and not by how much.
SPLIT = {"allow": 0.04, "require_mfa": 0.31, "require_attestation": 0.31, "deny": 0.34}
LEANING = {"allow": 0.3, "require_mfa": 0.1, "require_attestation": 0.0, "deny": 0.6}


def outcome(
    probabilities: dict[str, float], limits: Limits, floor: str = "allow", risk: Risk = "high"
) -> tuple[str, str | None]:
    label = max(probabilities, key=probabilities.__getitem__)
    return served(LABELS, limits, floor, risk, label, probabilities)


def test_without_a_threshold_every_stricter_label_counts() -> None:
    assert outcome(LEANING, Limits()) == ("deny", None)


def test_below_the_threshold_the_floor_stands_and_the_doubt_is_named() -> None:
    assert outcome(LEANING, Limits(tighten_at=0.71)) == ("allow", DOUBT)
    assert outcome(LEANING, Limits(tighten_at=0.69)) == ("deny", None)


def test_a_doubt_that_equals_the_threshold_counts() -> None:
    halves = {"allow": 0.5, "require_mfa": 0.0, "require_attestation": 0.0, "deny": 0.5}
    assert served(LABELS, Limits(tighten_at=0.5), "allow", "low", "deny", halves) == ("deny", None)


def test_the_doubt_is_the_sum_over_all_outcomes_stricter_than_the_floor() -> None:
    assert doubt_of(LABELS, "allow", SPLIT) == pytest.approx(0.96)
    assert doubt_of(LABELS, "require_attestation", SPLIT) == pytest.approx(0.34)
    assert doubt_of(LABELS, "deny", SPLIT) == 0.0
    assert outcome(SPLIT, Limits(tighten_at=0.95)) == ("deny", None)


def test_belief_in_an_outcome_looser_than_the_floor_is_no_doubt() -> None:
    assert outcome(LEANING, Limits(tighten_at=0.65), floor="require_mfa") == ("require_mfa", DOUBT)


def test_each_risk_has_a_threshold_of_its_own_and_a_risk_without_one_has_none() -> None:
    limits = Limits(tighten_at={"low": 0.95, "high": 0.9, "critical": 0.6})
    outcomes = {risk: outcome(LEANING, limits, risk=risk) for risk in RISKS}
    assert outcomes == {
        "low": ("allow", DOUBT),
        "medium": ("deny", None),
        "high": ("allow", DOUBT),
        "critical": ("deny", None),
    }


def test_a_label_that_agrees_with_the_floor_is_no_doubt_however_unsure() -> None:
    unsure = {"allow": 0.3, "require_mfa": 0.25, "require_attestation": 0.25, "deny": 0.2}
    assert outcome(unsure, Limits(tighten_at=0.6)) == ("allow", None)


def test_an_allow_that_stands_in_spite_of_a_doubt_can_still_be_an_abstention() -> None:
    limits = Limits(tighten_at=0.9, abstain=Abstention(outcome="require_mfa", below={"high": 0.5}))
    assert outcome(LEANING, limits) == ("require_mfa", LOW_CONFIDENCE)
    assert outcome(LEANING, limits, risk="low") == ("allow", DOUBT)


def test_a_label_that_counts_leaves_nothing_to_abstain_from() -> None:
    limits = Limits(tighten_at=0.6, abstain=Abstention(outcome="require_mfa", below={"high": 1.0}))
    assert outcome(LEANING, limits) == ("deny", None)


def test_abstention_never_applies_to_a_floor_above_the_loosest_outcome() -> None:
    limits = Limits(tighten_at=0.9, abstain=Abstention(outcome="deny", below={"high": 1.0}))
    assert outcome(LEANING, limits, floor="require_mfa") == ("require_mfa", DOUBT)


_SHARES = st.lists(st.floats(0.001, 1), min_size=4, max_size=4)


@given(
    _SHARES,
    st.sampled_from(LABELS),
    st.sampled_from(RISKS),
    st.floats(0, 1),
    st.floats(0, 1),
    st.none() | st.floats(0, 1),
)
def test_no_outcome_is_looser_than_the_floor_and_a_higher_threshold_never_makes_one_stricter(
    weights: list[float], floor: str, risk: Risk, first: float, second: float, below: float | None
) -> None:
    probabilities = {
        label: weight / math.fsum(weights) for label, weight in zip(LABELS, weights, strict=True)
    }
    abstain = None if below is None else Abstention(outcome="require_mfa", below={risk: below})
    low, high = sorted((first, second))
    outcomes = [
        outcome(probabilities, Limits(tighten_at=at, abstain=abstain), floor, risk) for at in (low, high)
    ]
    ranks = [LABELS.index(label) for label, _ in outcomes]
    assert LABELS.index(floor) <= ranks[1] <= ranks[0]


@given(_SHARES, st.sampled_from(LABELS), st.none() | st.floats(0, 1))
def test_without_a_threshold_the_outcome_is_the_strictest_of_floor_label_and_abstention(
    weights: list[float], floor: str, below: float | None
) -> None:
    probabilities = {
        label: weight / math.fsum(weights) for label, weight in zip(LABELS, weights, strict=True)
    }
    abstain = None if below is None else Abstention(outcome="require_mfa", below={"high": below})
    label = max(probabilities, key=probabilities.__getitem__)
    strictest = max(floor, label, key=LABELS.index)
    if abstain and strictest == "allow" and probabilities["allow"] < (below or 0.0):
        strictest = "require_mfa"
    assert outcome(probabilities, Limits(abstain=abstain), floor)[0] == strictest
