"""Decision semantics: the strictest of rules, model and abstention, and a closed failure for the rest."""

from __future__ import annotations

import copy
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.build import write_pack, write_rules_only_pack
from thor_policy.core.decisions import Adapter, Scored, level_of
from thor_policy.core.engine import all_steps
from thor_policy.core.errors import DeadlineExceeded, EngineError, PackError, RequestError
from thor_policy.core.precedents import Precedent
from thor_policy.core.records import Calibration
from thor_policy.core.requests import Action, Caller, Entity, Evaluation, Request
from thor_policy.core.results import Explained
from thor_policy.engine.absent import NoEngine
from thor_policy.policy import pack_files
from thor_policy.policy.calibration import contextual, mean
from thor_policy.policy.decider import NOT_SHOWN, Policy
from thor_policy.policy.pack import Pack
from thor_policy.policy.score_cache import ScoreCache
from thor_policy.testing import StubEngine

NEVER = 2**62
LABELS = ("allow", "require_mfa", "deny")

PACK = """
name: small
version: "1"
description: Three outcomes and a rule for each way to answer.
outcomes: [{label: allow}, {label: require_mfa, obligations: [{id: mfa, type: step-up}]}, {label: deny}]
classifications: [routine, odd]
fields: [{name: who, value: subject.id}, {name: does, value: action.name}]
risk: 'action.name == "grave" ? "high" : "low"'
limits: {abstain: {outcome: require_mfa, below: {high: 0.95}}}
"""
RULES = """
- {id: banned, when: 'action.name == "banned"', outcome: deny, clause: R1, because: It is banned.}
- {id: step, when: 'action.name == "step"', outcome: require_mfa, clause: R2, because: It needs MFA.}
- {id: free, when: 'action.name == "free"', outcome: allow, final: true, clause: R1, because: It is free.}
- {id: broken, when: 'action.name == "broken" && context.missing == 1', outcome: require_mfa,
   clause: R2, because: never read}
"""
EXAMPLE = """
- {id: X1, evaluation: {subject: {type: user, id: a}, action: {name: look}, resource: {type: doc, id: d}},
   outcome: allow, classification: routine, risk: low, clauses: [R1], reasoning: Fine.}
"""


class FailingEngine(StubEngine):
    """An engine whose scores fail with a given error."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def score(self, pack_sha256: str, question: str, deadline_ns: int) -> Scored:
        raise self._error


def limited(folder: Path, limits: str) -> Pack:
    """The pack with other limits, a flow mapping of YAML."""
    texts = {
        "pack.yaml": re.sub("limits: .*", f"limits: {limits}", PACK),
        "rules.yaml": RULES,
        "examples.yaml": EXAMPLE,
        "clauses.yaml": "R1: One.\nR2: Two.\n",
        "system.md": "Decide.\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    return pack_files.load(folder)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    return limited(tmp_path_factory.mktemp("small"), "{abstain: {outcome: require_mfa, below: {high: 0.95}}}")


@pytest.fixture
def policy(pack: Pack) -> Callable[..., Policy]:
    def with_label(label: str | None = "allow", error: Exception | None = None) -> Policy:
        return Policy(FailingEngine(error) if error else StubEngine(bias=label), pack)

    return with_label


def request(action: str = "look", **changes: Any) -> Request:
    evaluation = Evaluation(
        subject=Entity(type="user", id="alice"),
        action=Action(name=action),
        resource=Entity(type="doc", id="guide"),
    )
    values: dict[str, Any] = {
        "ticket": 1,
        "evaluation": evaluation,
        "caller": Caller(transport="inproc"),
        "received_at": 1.8e9,
        "received_ns": time.monotonic_ns(),
        "deadline_ns": NEVER,
    }
    return Request(**(values | changes))


class TestOutcome:
    @pytest.mark.parametrize("label", LABELS)
    @pytest.mark.parametrize(("action", "floor"), [("look", 0), ("step", 1)])
    def test_is_the_strictest_of_floor_and_label(
        self, policy: Callable[..., Policy], label: str, action: str, floor: int
    ) -> None:
        decision = policy(label).decide(request(action))
        assert decision.outcome == LABELS[max(floor, LABELS.index(label))]
        assert (decision.label, decision.floor.outcome) == (label, LABELS[floor])
        assert decision.tier == "model"
        assert decision.allow == (decision.outcome == "allow")

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        label=st.sampled_from(LABELS),
        action=st.sampled_from(["look", "step", "banned", "free", "broken", "grave"]) | st.text(min_size=1),
        subject=st.text(min_size=1),
    )
    def test_is_never_looser_than_the_floor(
        self, policy: Callable[..., Policy], label: str, action: str, subject: str
    ) -> None:
        evaluation = Evaluation(
            subject=Entity(type="user", id=subject),
            action=Action(name=action),
            resource=Entity(type="doc", id="guide"),
        )
        decision = policy(label).decide(request(evaluation=evaluation))
        assert LABELS.index(decision.outcome) >= LABELS.index(decision.floor.outcome)

    def test_a_floor_at_the_strictest_outcome_needs_no_model(self, policy: Callable[..., Policy]) -> None:
        decision = policy(error=EngineError("the model was called")).decide(request("banned"))
        assert (decision.outcome, decision.tier, decision.model) == ("deny", "rule", None)
        assert decision.explanation is not None
        assert decision.explanation.reasoning == "It is banned."
        assert decision.explanation.clauses == ("R1",)

    def test_a_final_allow_needs_no_model(self, policy: Callable[..., Policy]) -> None:
        decision = policy(error=EngineError("the model was called")).decide(request("free"))
        assert (decision.outcome, decision.tier, decision.confidence) == ("allow", "rule", None)

    def test_a_failing_rule_counts_as_matched_and_is_named(self, policy: Callable[..., Policy]) -> None:
        decision = policy("allow").decide(request("broken"))
        assert decision.outcome == "require_mfa"
        assert "broken" in decision.floor.errors
        assert "could not be evaluated" in (decision.floor.because or "")

    def test_an_allow_with_low_confidence_becomes_the_abstention_outcome(
        self, policy: Callable[..., Policy]
    ) -> None:
        decision = policy("allow").decide(request("grave"))
        assert decision.risk == "high"
        assert (decision.label, decision.outcome) == ("allow", "require_mfa")
        assert decision.reason_code == "low_confidence"
        assert not decision.allow

    def test_a_doubt_below_the_threshold_leaves_the_floor_and_is_counted(self, tmp_path: Path) -> None:
        decider = Policy(StubEngine(bias="deny"), limited(tmp_path, "{tighten_at: {low: 0.95}}"))
        decision = decider.decide(request("step"))
        assert (decision.outcome, decision.reason_code, decision.label) == ("require_mfa", "doubt", "deny")
        assert decision.confidence == decision.probabilities["require_mfa"]
        assert [duty.id for duty in decision.obligations] == ["mfa"]
        assert decider.decide(request("grave")).outcome == "deny"
        assert decider.counters["doubts"] == 1

    def test_a_doubt_is_measured_by_calibrated_probabilities(self, tmp_path: Path) -> None:
        pack, engine = limited(tmp_path, "{tighten_at: 0.85}"), StubEngine(bias="deny")
        flatter = Calibration(
            temperature=3.0, pack_sha256=pack.info.sha256, model_sha256=engine.model.sha256, judged=60
        )
        assert Policy(engine, pack).decide(request()).outcome == "deny"
        decision = Policy(engine, pack, calibration=flatter).decide(request())
        assert (decision.outcome, decision.reason_code, decision.allow) == ("allow", "doubt", True)

    def test_a_threshold_lets_no_failure_of_the_engine_through(self, tmp_path: Path) -> None:
        pack = limited(tmp_path, "{tighten_at: 1.0}")
        decision = Policy(FailingEngine(EngineError("lost")), pack).decide(request())
        assert (decision.outcome, decision.reason_code) == ("deny", "engine_failed")

    def test_confidence_is_the_probability_of_the_served_outcome(self, policy: Callable[..., Policy]) -> None:
        decision = policy("allow").decide(request("step"))
        assert decision.confidence == decision.probabilities["require_mfa"]

    def test_obligations_come_with_the_outcome(self, policy: Callable[..., Policy]) -> None:
        assert [duty.type for duty in policy("require_mfa").decide(request()).obligations] == ["step-up"]
        assert policy("allow").decide(request()).obligations == ()


class TestFailure:
    @pytest.mark.parametrize(
        ("error", "code"),
        [(EngineError("lost"), "engine_failed"), (DeadlineExceeded("late"), "deadline_exceeded")],
    )
    def test_ends_in_the_strictest_outcome_with_a_reason(
        self, policy: Callable[..., Policy], error: Exception, code: str
    ) -> None:
        decision = policy(error=error).decide(request())
        assert (decision.outcome, decision.tier, decision.reason_code) == ("deny", "fallback", code)
        assert not decision.allow
        assert decision.explanation is not None

    def test_a_request_whose_deadline_passed_is_refused_as_expired(
        self, policy: Callable[..., Policy]
    ) -> None:
        with pytest.raises(RequestError) as caught:
            policy().decide(request(deadline_ns=time.monotonic_ns()))
        assert caught.value.code == "expired"

    def test_a_question_that_does_not_fit_the_model_is_refused(self, policy: Callable[..., Policy]) -> None:
        error = RequestError("too_large", "too long")
        with pytest.raises(RequestError):
            policy(error=error).decide(request())


class TestPrecedentsWithoutRoom:
    """A question that only the lines of its precedents make too long is put without them."""

    LONG = tuple(
        Precedent(
            id=f"p{n}", outcome="deny", how="similarity", similarity=0.9, line=f"similar case: {'x' * 2_000}"
        )
        for n in range(3)
    )

    @staticmethod
    def policy(folder: Path, section: str, limits: str = "{}") -> Policy:
        limited(folder, f"{limits}\nprecedents: {section}")
        return Policy(StubEngine(), pack_files.load(folder))

    def test_the_answer_is_that_without_precedents_and_a_note_says_so(self, tmp_path: Path) -> None:
        policy = self.policy(tmp_path, "{k: 3}")
        alone = policy.decide(request())
        decision = policy.decide(request(precedents=self.LONG))
        assert (decision.outcome, decision.probabilities) == (alone.outcome, alone.probabilities)
        assert (decision.precedents, decision.precedents_note) == ((), NOT_SHOWN)

    def test_they_stay_where_rules_read_them(self, tmp_path: Path) -> None:
        decision = self.policy(tmp_path, "{k: 3, rules: true}").decide(request(precedents=self.LONG))
        assert (decision.precedents, decision.precedents_note) == (self.LONG, NOT_SHOWN)

    def test_a_replay_does_not_show_them_even_where_there_is_room(self, tmp_path: Path) -> None:
        policy = self.policy(tmp_path, "{k: 3, rules: true}")
        short = (replace(self.LONG[0], line="similar case: deny"),)
        alone, shown, replayed = (
            policy.decide(each).scored
            for each in (
                request(),
                request(precedents=short),
                request(precedents=short, precedents_note=NOT_SHOWN),
            )
        )
        assert alone is not None
        assert shown is not None
        assert replayed is not None
        assert replayed.suffix_tokens == alone.suffix_tokens != shown.suffix_tokens

    def test_with_room_they_are_shown(self, tmp_path: Path) -> None:
        decision = self.policy(tmp_path, "{k: 3}").decide(request(precedents=self.LONG[:1]))
        assert (decision.precedents, decision.precedents_note) == (self.LONG[:1], None)

    def test_a_question_that_is_too_long_by_itself_is_refused(self, tmp_path: Path) -> None:
        large = request(action="x" * 150, precedents=self.LONG)
        with pytest.raises(RequestError) as caught:
            self.policy(tmp_path, "{k: 3}", "{max_text_chars: 100}").decide(large)
        assert caught.value.code == "too_large"


class TestExplanation:
    def test_begins_only_if_the_request_asks_for_it(self, policy: Callable[..., Policy]) -> None:
        decider = policy("allow")
        decider.decide(request())
        assert decider.engine.explaining == 0
        decider.decide(request(explain="inline"))
        assert decider.engine.explaining == 1

    def test_of_the_rules_states_their_reason_and_clause(self, policy: Callable[..., Policy]) -> None:
        decider = policy("allow")
        decider.decide(request("step", explain="inline"))
        explained = finish(decider)
        assert explained.explanation.reasoning == "It needs MFA."
        assert explained.explanation.clauses == ("R2",)
        assert explained.explanation.text.startswith("require_mfa\nclass: ")
        assert (explained.explanation.source, explained.explanation.fault) == ("rule", None)

    def test_of_the_model_that_does_not_hold_is_replaced_by_that_of_the_rules(
        self, policy: Callable[..., Policy]
    ) -> None:
        decider = policy("deny")  # its stub writes no sentence
        decider.decide(request("step", explain="inline"))
        explanation = finish(decider).explanation
        assert (explanation.source, explanation.fault) == ("replaced", "empty")
        assert explanation.clauses == ("R2",)
        assert explanation.reasoning == (
            "It needs MFA. The model's answer is deny; its own reason did not hold and is not shown."
        )
        assert decider.counters["reasons_replaced"] == 1

    def test_of_an_abstention_says_that_the_model_is_not_sure(self, policy: Callable[..., Policy]) -> None:
        decider = policy("allow")
        decider.decide(request("grave", explain="inline"))
        explanation = finish(decider).explanation
        assert explanation.reasoning == (
            "The model is not sure enough of allow (probability 0.90), so the answer is require_mfa."
        )
        assert explanation.source == "rule"

    def test_of_a_doubt_is_that_of_the_rules_also_where_none_matched(self, tmp_path: Path) -> None:
        decider = Policy(StubEngine(bias="deny"), limited(tmp_path, "{tighten_at: 1.0}"))
        decider.decide(request(explain="inline"))
        explanation = finish(decider).explanation
        assert (explanation.reasoning, explanation.source) == ("No rule asks for more than allow.", "rule")

    def test_of_a_failure_is_that_of_the_daemon(self, policy: Callable[..., Policy]) -> None:
        explanation = policy(error=EngineError("lost")).decide(request()).explanation
        assert explanation is not None
        assert explanation.source == "failure"

    def test_of_the_model_cites_the_rules_that_set_the_floor_first(
        self, policy: Callable[..., Policy]
    ) -> None:
        decider = policy("deny")
        decider.decide(request("step", explain="inline"))
        explained = finish(decider)
        assert explained.explanation.clauses[0] == "R2"

    def test_abandon_names_every_ticket(self, policy: Callable[..., Policy]) -> None:
        decider = policy("allow")
        for ticket in (4, 5):
            decider.decide(request(explain="inline", ticket=ticket))
        assert [left.ticket for left in decider.abandon()] == [4, 5]


def finish(policy: Policy) -> Explained:
    while policy.engine.explaining:
        for ended in policy.step():
            assert isinstance(ended, Explained)
            return ended
    raise AssertionError("no explanation was running")


class CountingEngine(StubEngine):
    """An engine that counts its scores."""

    scores = 0

    def score(self, pack_sha256: str, question: str, deadline_ns: int) -> Scored:
        self.scores += 1
        return super().score(pack_sha256, question, deadline_ns)


class TestCache:
    def test_a_repeated_question_gets_its_score_from_the_cache_and_names_the_first_decision(
        self, pack: Pack
    ) -> None:
        engine = CountingEngine()
        policy = Policy(engine, pack, cache=ScoreCache(10, 60))
        first, again = policy.decide(request()), policy.decide(request(ticket=2))
        assert engine.scores == 1
        assert (first.tier, first.original) == ("model", None)
        assert (again.tier, again.original) == ("cache", first.id)
        assert again.id != first.id
        assert (again.outcome, again.probabilities, again.scored) == (
            first.outcome,
            first.probabilities,
            first.scored,
        )
        assert again.timings.score_ms == 0

    def test_rules_are_applied_to_each_request_whatever_the_cache_has(self, pack: Pack) -> None:
        policy = Policy(StubEngine(bias="allow"), pack, cache=ScoreCache(10, 60))
        evaluation = request().evaluation
        assert policy.decide(request()).outcome == "allow"
        broken = replace(evaluation, action=Action(name="broken"))
        assert policy.decide(request(evaluation=broken)).outcome == "require_mfa"
        assert policy.decide(request(evaluation=broken)).outcome == "require_mfa"

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_a_change_of_any_part_of_the_key_is_a_miss(self, data: st.DataObject, pack: Pack) -> None:
        """Pack, model, build, adapter and scale, and each text that the model would read."""
        names = st.text(
            st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cf")), min_size=1, max_size=8
        )
        cache = ScoreCache(10, 60)
        engine = CountingEngine()
        tuned = Adapter(name="tuned", sha256="a" * 64, scale=0.5)
        parts = ("subject", "action", "model", "build", "pack", "adapter", "scale", "no adapter")
        part = data.draw(st.sampled_from(parts))
        engine.adopt(tuned, Path("tuned.gguf"))
        Policy(engine, pack, adapter=tuned, cache=cache).decide(request())
        other, changed_request = CountingEngine(), request()
        adapter = {
            "adapter": replace(tuned, sha256="b" * 64),
            "scale": replace(tuned, scale=data.draw(st.floats(0.01, 10).filter(lambda scale: scale != 0.5))),
            "no adapter": None,
        }.get(part, tuned)
        if part == "subject":
            subject = Entity(type="user", id=data.draw(names.filter(lambda name: name.strip() != "alice")))
            changed_request = request(evaluation=replace(changed_request.evaluation, subject=subject))
        elif part == "action":
            action = Action(name=data.draw(names.filter(lambda name: name not in ("banned", "free", "look"))))
            changed_request = request(evaluation=replace(changed_request.evaluation, action=action))
        elif part in ("model", "build"):
            other.identity = replace(other.model, **{"sha256" if part == "model" else "build": "other"})
        changed = copy.copy(pack)
        if part == "pack":
            changed.info = replace(pack.info, sha256="f" * 64)
            changed._prefixes = (replace(pack.prefix, pack_sha256="f" * 64), pack.brief_prefix)
        if adapter is not None:
            other.adopt(adapter, Path("other.gguf"))
        decision = Policy(other, changed, adapter=adapter, cache=cache).decide(changed_request)
        assert (decision.tier, decision.original, other.scores) == ("model", None, 1)

    def test_a_cached_score_gets_the_calibration_that_is_in_force_now(self, pack: Pack) -> None:
        policy = Policy(StubEngine(), pack, cache=ScoreCache(10, 60))
        first = policy.decide(request())
        softer = Calibration(
            temperature=3.0, pack_sha256=pack.info.sha256, model_sha256=policy.engine.model.sha256, judged=60
        )
        policy.calibrate(softer)
        again = policy.decide(request())
        assert (again.tier, again.temperature, again.label) == ("cache", 3.0, first.label)
        assert max(again.probabilities.values()) < max(first.probabilities.values())

    def test_only_a_calibrated_confidence_has_a_level(self, pack: Pack) -> None:
        policy = Policy(StubEngine(), pack)
        assert policy.decide(request()).confidence_level is None
        calibration = Calibration(
            temperature=1.0, pack_sha256=pack.info.sha256, model_sha256=policy.engine.model.sha256, judged=60
        )
        policy.calibrate(calibration)
        decision = policy.decide(request())
        assert decision.confidence_level == level_of(decision.confidence, calibrated=True) is not None
        assert policy.decide(request("banned")).confidence_level is None
        policy.clear_calibrations()
        assert policy.decide(request()).confidence_level is None

    def test_a_pack_can_turn_the_cache_off(self, pack: Pack) -> None:
        bare = copy.copy(pack)
        bare.manifest = replace(pack.manifest, cache=False)
        policy = Policy(StubEngine(), bare, cache=ScoreCache(10, 60))
        assert [policy.decide(request()).tier for _ in range(2)] == ["model", "model"]

    def test_evicts_the_least_recently_used_score_and_expires_old_ones(self) -> None:
        scored = some_score()
        cache = ScoreCache(2, 60)
        for name in ("a", "b"):
            cache.put((name,), name, scored, now_ns=0)
        assert cache.get(("a",), 1) == ("a", scored)
        cache.put(("c",), "c", scored, now_ns=2)
        assert [cache.get((name,), 3) is None for name in ("a", "b", "c")] == [False, True, False]
        assert cache.get(("a",), 60 * 10**9) == ("a", scored)
        assert cache.get(("a",), 60 * 10**9 + 1) is None
        assert len(cache) == 1
        assert cache.counters == {"hits": 4, "misses": 2, "expired": 1, "evicted": 1}

    def test_a_cache_of_size_zero_keeps_nothing(self) -> None:
        cache = ScoreCache(0, 60)
        cache.put(("a",), "a", some_score(), now_ns=0)
        assert cache.get(("a",), 0) is None

    def test_a_failed_score_is_not_cached(self, pack: Pack) -> None:
        cache = ScoreCache(10, 60)
        assert (
            Policy(FailingEngine(EngineError("no")), pack, cache=cache).decide(request()).tier == "fallback"
        )
        assert len(cache) == 0


def some_score() -> Scored:
    return Scored(
        label="allow",
        probabilities={"allow": 1.0},
        logits=(1.0,),
        suffix_tokens=(1,),
        prefix_tokens=1,
        prefix_digest="d",
        score_ms=1.0,
    )


class TestCalibration:
    def test_scales_probabilities_and_never_the_label(self, pack: Pack) -> None:
        soft = Calibration(temperature=4.0, pack_sha256=pack.info.sha256, model_sha256="a" * 64, judged=60)
        plain = Policy(StubEngine(bias="allow"), pack).decide(request())
        scaled = Policy(StubEngine(bias="allow"), pack, calibration=soft).decide(request())
        assert (plain.label, plain.outcome, plain.temperature) == ("allow", "allow", 1.0)
        assert (scaled.label, scaled.outcome, scaled.temperature) == ("allow", "allow", 4.0)
        assert plain.confidence is not None
        assert scaled.confidence is not None
        assert scaled.confidence < plain.confidence
        assert scaled.scored is not None
        assert scaled.scored.probabilities == plain.probabilities

    def test_an_allow_with_low_calibrated_confidence_becomes_the_abstention_outcome(self, pack: Pack) -> None:
        sharp = Calibration(temperature=0.3, pack_sha256=pack.info.sha256, model_sha256="a" * 64, judged=60)
        unsure = Policy(StubEngine(bias="allow"), pack).decide(request("grave"))
        assert (unsure.outcome, unsure.reason_code) == ("require_mfa", "low_confidence")
        sure = Policy(StubEngine(bias="allow"), pack, calibration=sharp).decide(request("grave"))
        assert (sure.outcome, sure.reason_code) == ("allow", None)


class Asked(StubEngine):
    """A stub engine that keeps the questions which it scored."""

    def __init__(self, *, bias: str | None = None) -> None:
        super().__init__(bias=bias)
        self.questions: list[str] = []

    def score(self, key: str, question: str, deadline_ns: int) -> Scored:
        self.questions.append(question)
        return super().score(key, question, deadline_ns)


class TestContextualCalibration:
    FREE = ("who: N/A\ndoes: N/A", 'who: "[MASK]"\ndoes: "[MASK]"', 'who: ""\ndoes: ""')

    def test_questions_without_content_are_asked_when_the_pack_is_loaded_and_never_again(
        self, pack: Pack
    ) -> None:
        engine = Asked()
        policy = Policy(engine, pack, contextual=True)
        assert tuple(engine.questions) == self.FREE
        policy.decide(request())
        assert engine.questions[3:] == ["who: alice\ndoes: look"]
        assert policy.residents.active.prior == mean(
            [StubEngine.score(engine, pack.info.sha256, text, NEVER).probabilities for text in self.FREE]
        )

    def test_it_changes_the_confidence_and_neither_label_nor_probabilities(self, pack: Pack) -> None:
        plain = Policy(StubEngine(), pack).decide(request())
        policy = Policy(StubEngine(), pack, contextual=True)
        decision = policy.decide(request())
        assert (decision.label, decision.outcome, decision.probabilities, decision.temperature) == (
            plain.label,
            plain.outcome,
            plain.probabilities,
            1.0,
        )
        assert decision.prior == policy.residents.active.prior
        corrected = contextual(plain.probabilities, decision.prior)
        assert decision.confidence == corrected[decision.outcome] != plain.confidence
        assert decision.confidence_level is None, "nothing was reviewed, so it promises nothing"
        assert plain.prior == {}

    def test_a_model_that_always_says_the_same_is_no_evidence(self, pack: Pack) -> None:
        decision = Policy(StubEngine(bias="allow"), pack, contextual=True).decide(request())
        assert decision.confidence == pytest.approx(1 / 3)

    def test_an_abstention_reads_the_corrected_confidence(self, pack: Pack, tmp_path: Path) -> None:
        low = limited(tmp_path, "{abstain: {outcome: require_mfa, below: {low: 0.5}}}")
        assert Policy(StubEngine(bias="allow"), low).decide(request()).outcome == "allow"
        decision = Policy(StubEngine(bias="allow"), low, contextual=True).decide(request())
        assert (decision.outcome, decision.reason_code) == ("require_mfa", "low_confidence")
        assert decision.confidence == pytest.approx(1 / 3)

    def test_a_fitted_calibration_takes_its_place(self, pack: Pack) -> None:
        engine = StubEngine()
        fitted = Calibration(
            temperature=2.0, pack_sha256=pack.info.sha256, model_sha256=engine.model.sha256, judged=60
        )
        policy = Policy(engine, pack, contextual=True)
        policy.calibrate(fitted)
        decision = policy.decide(request())
        assert (decision.temperature, decision.prior) == (2.0, {})
        assert decision == replace(
            Policy(StubEngine(), pack, calibration=fitted).decide(request()),
            id=decision.id,
            timings=decision.timings,
        )

    def test_a_model_with_an_adapter_was_trained_and_gets_none(self, pack: Pack) -> None:
        engine, tuned = Asked(), Adapter(name="tuned", sha256="c" * 64)
        engine.adopt(tuned, Path())
        assert Policy(engine, pack, adapter=tuned, contextual=True).decide(request()).prior == {}
        assert len(engine.questions) == 1

    def test_decisions_of_rules_have_no_prior(self, pack: Pack) -> None:
        decision = Policy(StubEngine(), pack, contextual=True).decide(request("free"))
        assert (decision.tier, decision.prior, decision.confidence) == ("rule", {}, None)

    def test_a_cached_score_gets_the_same_confidence(self, pack: Pack) -> None:
        policy = Policy(StubEngine(), pack, cache=ScoreCache(10, 60), contextual=True)
        first, again = policy.decide(request()), policy.decide(request())
        assert again.tier == "cache"
        assert (again.confidence, again.prior) == (first.confidence, first.prior)

    def test_a_pack_that_is_loaded_later_gets_its_own_prior_in_steps(
        self, pack: Pack, tmp_path: Path
    ) -> None:
        engine = Asked()
        policy = Policy(engine, pack, contextual=True)
        other = pack_files.load(write_pack(tmp_path))
        steps = policy.loading(other, None, 0.0)
        before = len(engine.questions)
        most = 0
        try:
            while True:
                next(steps)
                most = max(most, len(engine.questions) - before)
                before = len(engine.questions)
        except StopIteration as end:
            resident = end.value
        assert most == 1, "a decision that waits goes before the next question"
        assert resident.prior.keys() == set(other.labels)

    def test_a_question_without_content_that_fails_leaves_no_prefix_behind(self, pack: Pack) -> None:
        for error in (EngineError("lost"), RequestError("too_large", "too long")):
            engine = FailingEngine(error)
            with pytest.raises(EngineError):
                Policy(engine, pack, contextual=True)
            with pytest.raises(EngineError, match="not loaded"):
                StubEngine.score(engine, pack.info.sha256, "x", NEVER)

    @given(
        st.sampled_from(LABELS),
        st.sampled_from(["look", "step", "banned", "grave", "free", "broken"]),
        st.text(),
    )
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_no_answer_is_looser_than_the_floor(self, pack: Pack, bias: str, action: str, who: str) -> None:
        evaluation = replace(request(action).evaluation, subject=Entity(type="user", id=who or "x"))
        for engine in (StubEngine(bias=bias), StubEngine()):
            decision = Policy(engine, pack, contextual=True).decide(request(action, evaluation=evaluation))
            assert LABELS.index(decision.outcome) >= LABELS.index(decision.floor.outcome)


class TestShadow:
    def test_shadow_decisions_neither_use_nor_fill_the_cache(self, pack: Pack, tmp_path: Path) -> None:
        policy = Policy(StubEngine(), pack, cache=ScoreCache(10, 60))
        other = pack_files.load(write_pack(tmp_path))
        resident = all_steps(policy.loading(other, None, 0.0))
        policy.set_residents(policy.residents.with_candidate(resident).with_shadow(resident))
        for _ in range(2):
            policy.decide(request())
        tiers = [shadow.tier for _, shadow in filter(None, (policy.decide_shadow(), policy.decide_shadow()))]
        assert tiers == ["model", "model"]
        policy.set_residents(policy.residents.with_active(resident))
        assert policy.decide(request()).tier == "model"

    def test_the_shadow_decides_only_requests_that_the_active_pack_decided(
        self, pack: Pack, tmp_path: Path
    ) -> None:
        policy = Policy(StubEngine(), pack)
        resident = all_steps(policy.loading(pack_files.load(write_pack(tmp_path)), None, 0.0))
        policy.set_residents(policy.residents.with_candidate(resident).with_shadow(resident))
        policy.decide(request(pack=resident.pack.info.sha256))
        assert policy.shadows_waiting == 0
        policy.decide(request())
        policy.set_residents(policy.residents.with_shadow(None))
        assert (policy.shadows_waiting, policy.decide_shadow(), policy.counters["shadows_dropped"]) == (
            1,
            None,
            1,
        )
        policy.decide(request())
        assert policy.shadows_waiting == 0

    def test_a_pack_that_fails_the_warm_up_is_unloaded(self, pack: Pack) -> None:
        engine = StubEngine()
        policy = Policy(engine, pack)
        bad = copy.copy(pack)
        bad.info = replace(pack.info, sha256="f" * 64)
        prefix = replace(pack.prefix, pack_sha256="f" * 64, labels=(" other", " labels"))
        bad._prefixes = (prefix, pack.brief_prefix)
        with pytest.raises(
            ValueError, match="not in tuple"
        ):  # its labels are not those that it orders by strictness
            all_steps(policy.loading(bad, None, 0.0))
        with pytest.raises(EngineError, match="not loaded"):
            engine.score("f" * 64, "", NEVER)


# ---------------------------------------------------------------- what rules could not read


class TestRuleErrors:
    def test_have_a_reason_code_a_counter_and_the_name_of_the_rule(self, pack: Pack) -> None:
        policy = Policy(StubEngine(bias="allow"), pack)
        decision = policy.decide(request("broken"))
        assert (decision.outcome, decision.reason_code) == ("require_mfa", "rule_error")
        assert list(decision.floor.errors) == ["broken"]
        assert policy.decide(request("look")).reason_code is None
        assert policy.counters["rule_errors"] == 1
        assert policy.failures_of("small") == {"broken": 1}
        assert policy.failures_of("other") == {}

    def test_are_logged_by_name_with_a_limit(self, pack: Pack, caplog: pytest.LogCaptureFixture) -> None:
        policy = Policy(StubEngine(), pack)
        for _ in range(200):
            policy.decide(request("broken"))
        logged = [record for record in caplog.records if "expressions of the pack" in record.message]
        assert 1 <= len(logged) < 50
        assert logged[0].message.endswith("small 1 failed: broken: (text at level debug)")
        caplog.clear()
        caplog.set_level(logging.DEBUG, "thor_policy")
        Policy(StubEngine(), pack).decide(request("broken"))
        assert "broken: Key not found" in caplog.records[0].getMessage()

    def test_a_failure_of_the_model_has_its_own_code(self, pack: Pack) -> None:
        policy = Policy(FailingEngine(EngineError("lost")), pack)
        decision = policy.decide(request("broken"))
        assert (decision.outcome, decision.reason_code) == ("deny", "engine_failed")


@pytest.fixture
def alone(tmp_path: Path) -> Pack:
    rules = "- {id: kim, when: 'context.who == \"kim\"', outcome: allow, because: It is Kim.}\n"
    needs = "requires: {outcome: require_mfa, members: {context.who: string}}\n"
    return pack_files.load(write_rules_only_pack(tmp_path, rules=rules, more=needs))


def asked_by(who: str | None) -> Request:
    context = {} if who is None else {"who": who}
    plain = request()
    return replace(plain, evaluation=replace(plain.evaluation, context=context))


class TestPackOfRulesAlone:
    def test_needs_no_model(self, alone: Pack) -> None:
        policy = Policy(NoEngine(), alone)
        policy.warm_up(0.0)
        for who, outcome, code in (
            ("kim", "allow", None),
            ("lee", "deny", None),
            (None, "require_mfa", "fields_missing"),
        ):
            decision = policy.decide(asked_by(who))
            assert (decision.outcome, decision.reason_code) == (outcome, code)
            assert (decision.tier, decision.model, decision.scored) == ("rule", None, None)
            assert decision.explanation is not None
            assert decision.explanation.reasoning
        assert policy.counters["fields_missing"] == 1

    def test_is_loaded_and_unloaded_beside_a_pack_with_a_model_and_never_scored(
        self, pack: Pack, alone: Pack
    ) -> None:
        engine = StubEngine()
        policy = Policy(engine, pack)
        resident = all_steps(policy.loading(alone, None, 0.0))
        policy.set_residents(policy.residents.with_candidate(resident))
        assert policy.decide(replace(asked_by("kim"), pack="alone")).outcome == "allow"
        with pytest.raises(EngineError, match="not loaded"):
            engine.score(resident.key, "", NEVER)
        policy.set_residents(policy.residents.without(resident))
        all_steps(policy.retiring(resident))

    def test_has_no_adapter_and_gives_the_next_pack_that_of_the_others(self, pack: Pack, alone: Pack) -> None:
        adapter = Adapter(name="tuned", sha256="a" * 64)
        engine = StubEngine()
        engine.adopt(adapter, Path("tuned.gguf"))
        policy = Policy(engine, pack, adapter=adapter)
        resident = all_steps(policy.loading(alone, None, 0.0))
        residents = policy.residents.with_candidate(resident).with_active(resident)
        assert resident.model.adapter is None
        assert residents.adapter_for(alone) is None
        assert residents.adapter_for(pack) == adapter

    def test_cannot_be_followed_by_a_pack_with_a_model_where_there_is_none(
        self, pack: Pack, alone: Pack
    ) -> None:
        policy = Policy(NoEngine(), alone)
        with pytest.raises(EngineError, match=r"this daemon has no model.*restart the daemon with that pack"):
            all_steps(policy.loading(pack, None, 0.0))

    def test_has_no_prompt(self, alone: Pack) -> None:
        with pytest.raises(PackError, match=r"alone is a pack of rules alone \(model: never\)"):
            _ = alone.prefix
