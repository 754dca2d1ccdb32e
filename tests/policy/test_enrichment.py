"""Enrichment: which decisions get one, how the prompt is put, and what of the text is kept."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.build import MODEL, by_model, by_rule
from tests.tasks import lifted
from thor_policy.core.decisions import Decision, Floor, Traits
from thor_policy.core.engine import Fixed, FreeText, OneOf, WrittenExplanation
from thor_policy.core.enrichment import TRIGGERS, Enrichment
from thor_policy.policy import enrichment
from thor_policy.policy.pack import Pack


def sure(**changes: object) -> Decision:
    """A routine decision of the model."""
    return by_model(**{"confidence": 0.95, "outcome": "deny", "label": "deny"} | changes)


def floored(**changes: object) -> Floor:
    return Floor(**{"outcome": "allow", "final": False} | changes)  # type: ignore[arg-type]


class TestTriggers:
    @pytest.mark.parametrize(
        ("decision", "trigger"),
        [
            (sure(floor=floored(traits=Traits(is_exception=True))), "exception"),
            (sure(floor=floored(traits=Traits(type="exception"))), "exception"),
            (lifted(confidence=0.95, label="allow"), "approval"),
            (sure(floor=floored(traits=Traits(type="approval"))), "approval"),
            (sure(floor=floored(traits=Traits(type="synthesis"))), "synthesis"),
            (sure(confidence=0.69), "low_confidence"),
            (sure(reason_code="low_confidence"), "low_confidence"),
            (sure(floor=floored(rules=("r",))), "disagreement"),
            (sure(reason_code="doubt"), "disagreement"),
        ],
    )
    def test_a_decision_has_the_trigger_of_its_kind(self, decision: Decision, trigger: str) -> None:
        assert enrichment.triggers_of(decision) == (trigger,)

    @pytest.mark.parametrize("decision", [sure(), by_rule(), sure(floor=floored(outcome="deny"))])
    def test_a_routine_decision_has_no_trigger(self, decision: Decision) -> None:
        assert enrichment.triggers_of(decision) == ()

    def test_the_mode_hybrid_takes_decisions_with_a_chosen_trigger(self) -> None:
        unsure = sure(confidence=0.5)
        assert enrichment.why(unsure, "auto", "hybrid", TRIGGERS) == ("low_confidence",)
        assert enrichment.why(unsure, "auto", "hybrid", ("exception",)) == ()
        assert enrichment.why(sure(), "auto", "hybrid", TRIGGERS) == ()

    def test_the_mode_always_takes_every_decision_and_says_its_triggers(self) -> None:
        assert enrichment.why(sure(), "auto", "always", TRIGGERS) == ("always",)
        assert enrichment.why(sure(confidence=0.5), "auto", "always", TRIGGERS) == ("low_confidence",)

    def test_a_caller_may_want_one_or_none_but_not_where_the_settings_say_never(self) -> None:
        assert enrichment.why(sure(), "always", "hybrid", TRIGGERS) == ("asked",)
        assert enrichment.why(sure(confidence=0.5), "never", "always", TRIGGERS) == ()
        assert enrichment.why(sure(confidence=0.5), "always", "never", TRIGGERS) == ()


class TestSteps:
    def test_the_answer_as_it_was_given_comes_first_in_the_words_of_the_pack(
        self, shipped_pack: Pack
    ) -> None:
        floor = floored(
            outcome="deny", rules=("r",), clauses=("R3", "R4"), because="It is so.", classification="odd"
        )
        first = enrichment.steps(shipped_pack, sure(floor=floor))[0]
        assert isinstance(first, Fixed)
        assert first.text.startswith(
            " deny\nclass: odd\nclauses: R3, R4\nbecause: It is so.\n\nFor people who"
        )

    def test_the_alternative_is_one_of_the_other_outcomes(self, shipped_pack: Pack) -> None:
        steps = enrichment.steps(shipped_pack, sure())
        (choice,) = [step for step in steps if isinstance(step, OneOf)]
        assert choice.options == tuple(f" {label}" for label in shipped_pack.labels if label != "deny")

    def test_every_free_text_is_bounded(self, shipped_pack: Pack) -> None:
        texts = [step for step in enrichment.steps(shipped_pack, sure()) if isinstance(step, FreeText)]
        assert [text.name for text in texts] == ["risk", "alternatives", "rationale"]
        assert all(text.max_tokens <= enrichment.MOST_TOKENS for text in texts)


@dataclass
class Text:
    """What the model wrote; each test changes one part."""

    risk: str = "The release breaks."
    alternatives: str = "It is too loose."
    rationale: str = "It is a change."
    truncated: bool = False
    values: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def result(self, pack: Pack) -> Enrichment | None:
        values = {
            "risk": (self.risk,),
            "alternative": ("require_mfa",),
            "alternatives": (self.alternatives,),
            "rationale": (self.rationale,),
        }
        written = WrittenExplanation(
            ticket=-1, values=values, text="", truncated=self.truncated, generated_tokens=9, explain_ms=5.0
        )
        model, why = replace(MODEL), ("exception",)
        return enrichment.result(pack, sure(), written, model=model, because=why, device_ms=2.5)  # type: ignore[arg-type]


class TestResult:
    def test_the_result_has_the_texts_the_model_and_how_long_they_took(self, shipped_pack: Pack) -> None:
        result = Text().result(shipped_pack)
        assert result is not None
        assert (result.risk, result.alternative, result.rationale) == (
            *("The release breaks.", "require_mfa", "It is a change."),
        )
        assert (result.model, result.device_ms, result.took_ms) == (MODEL, 2.5, 5.0)
        assert result.quality == "the model's confidence was 0.95 (uncalibrated)"

    @pytest.mark.parametrize(
        ("text", "note"),
        [
            ("It costs 4711 euros.", "it has a number that is in neither question nor policy"),
            ("It went to Mallory.", "it has a name that is in neither question nor policy"),
            ("What could go wrong: nothing.", "it repeats its instruction"),
            (" ", "the model wrote nothing"),
        ],
    )
    def test_a_text_that_does_not_hold_is_left_out_and_the_quality_note_says_so(
        self, shipped_pack: Pack, text: str, note: str
    ) -> None:
        result = Text(risk=text).result(shipped_pack)
        assert result is not None
        assert (result.risk, result.rationale) == ("", "It is a change.")
        assert result.quality.endswith(f"; risk left out: {note}")

    def test_there_is_no_result_if_no_text_holds_or_it_was_cut_off(self, shipped_pack: Pack) -> None:
        assert Text(risk="", alternatives="", rationale="It costs 4711.").result(shipped_pack) is None
        assert Text(truncated=True).result(shipped_pack) is None

    @given(st.text(max_size=2_000))
    def test_a_text_is_of_bounded_length_whatever_the_model_writes(
        self, shipped_pack: Pack, text: str
    ) -> None:
        result = Text(risk=text).result(shipped_pack)
        assert result is not None
        assert len(result.risk) <= enrichment.MOST_CHARS
