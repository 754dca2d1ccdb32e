"""What the model adds to the rules and what it costs: each change counts one time."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from thor_policy.suites.intervals import rate
from thor_policy.suites.model_effect import Case, effect_of

LABELS = ("allow", "mfa", "deny")


def case(floor: str, outcome: str, *accepted: str, **changes: Any) -> Case:
    fields: dict[str, Any] = {"floor": floor, "outcome": outcome, "accepted": accepted, "scored": True}
    return Case(**fields | changes)


def test_changes_are_rightly_wrongly_or_neither() -> None:
    effect = effect_of(
        "small",
        LABELS,
        [
            case("allow", "deny", "deny"),
            case("allow", "mfa", "allow"),
            case("mfa", "deny", "mfa"),
            case("allow", "mfa", "deny"),
            case("allow", "allow", "allow", doubt=True),
            case("deny", "deny", "deny", scored=False),
        ],
    )
    assert (effect.questions, effect.scored, effect.changed, effect.doubts) == (6, 5, 4, 1)
    assert (effect.rightly, effect.wrongly) == (rate(1, 4), rate(2, 4))
    assert (effect.rules.right, effect.rules.strict, effect.rules.loose) == (rate(4, 6), 0, 2)
    assert (effect.served.right, effect.served.strict, effect.served.loose) == (rate(3, 6), 2, 1)
    assert effect.difference.difference == -1 / 6
    assert effect.costs


def test_of_several_accepted_outcomes_the_loosest_bounds_what_is_too_loose() -> None:
    effect = effect_of("small", LABELS, [case("allow", "mfa", "mfa", "deny")])
    assert (effect.rules.loose, effect.served.loose, effect.rightly.hits) == (1, 0, 1)


def test_without_a_change_nothing_is_added_and_nothing_costs() -> None:
    effect = effect_of("small", LABELS, [case("mfa", "mfa", "mfa")])
    assert (effect.rightly.of, effect.difference.difference, effect.costs) == (0, 0.0, False)


@given(st.lists(st.tuples(*[st.sampled_from(LABELS)] * 3)))
def test_right_strict_and_loose_are_all_cases_and_the_difference_is_that_of_the_right_ones(
    drawn: list[tuple[str, str, str]],
) -> None:
    cases = [case(floor, max(floor, label, key=LABELS.index), accepted) for floor, label, accepted in drawn]
    effect = effect_of("small", LABELS, cases) if cases else None
    if effect is None:
        return
    for outcomes in (effect.rules, effect.served):
        assert outcomes.right.hits + outcomes.strict + outcomes.loose == len(cases)
    gained = effect.rightly.hits - effect.wrongly.hits
    assert effect.served.right.hits - effect.rules.right.hits == gained
    assert effect.served.loose <= effect.rules.loose
