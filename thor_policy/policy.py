"""How a question becomes a decision: rules, then the model, then the strictest of all.

Owns the decision semantics. Invariant: the outcome is never looser than the floor, and every failure ends
in the strictest outcome with a reason. Called by the engine thread only; it reads no clock but the
monotonic one, for timings and deadlines.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import uuid_utils

from thor_policy.core import (
    Decision,
    Engine,
    Explanation,
    Floor,
    Request,
    Scored,
    Tier,
    Timings,
    Written,
)
from thor_policy.errors import DeadlineExceeded, EngineError, RequestError
from thor_policy.packs import Pack

#: How long an explanation that nobody waits for may take, in seconds.
EXPLAIN_LATER_S = 120


@dataclass(frozen=True)
class Explained:
    """An explanation that is ready to be recorded with decision `decision_id`."""

    ticket: int
    decision_id: str
    explanation: Explanation


@dataclass(frozen=True)
class Unexplained:
    """An explanation that could not be given before its deadline."""

    ticket: int


def new_id() -> str:
    """An id for a decision or a record: unique, and sorted by the time it was made."""
    return str(uuid_utils.uuid7())


class Policy:
    """One pack judged by one engine."""

    def __init__(self, engine: Engine, pack: Pack, *, max_explanations: int = 64) -> None:
        self.engine = engine
        self.pack = pack
        self._max_explanations = max_explanations
        self.loaded = engine.load(pack.prefix)
        self._explaining: dict[int, Decision] = {}

    def decide(self, request: Request) -> Decision:
        """The decision on an admitted request; starts its explanation if one is wanted and needed.

        Raises RequestError `expired` when the deadline passed in the queue, `too_large` when the question
        does not fit the model's context.
        """
        started_ns = time.monotonic_ns()
        if started_ns >= request.deadline_ns:
            raise RequestError("expired", "the deadline passed while the request waited for the model")
        floor = self.pack.book.apply(request.evaluation, request.received_at)
        rules_done_ns = time.monotonic_ns()
        scored: Scored | None = None
        reason_code: str | None = None
        tier: Tier = "rule"
        outcome = floor.outcome
        if not floor.final:
            try:
                question = self.pack.question(request.evaluation, floor.facts)
                scored = self.engine.score(self.pack.info.sha256, question, request.deadline_ns)
                tier = "model"
                outcome, reason_code = self._strictest(floor, scored)
            except DeadlineExceeded:
                tier, outcome, reason_code = "fallback", self.pack.strictest, "deadline_exceeded"
            except EngineError:
                tier, outcome, reason_code = "fallback", self.pack.strictest, "engine_failed"
        decision = Decision(
            id=new_id(),
            at=request.received_at,
            evaluation=request.evaluation,
            caller=request.caller,
            outcome=outcome,
            allow=outcome == self.pack.loosest,
            tier=tier,
            floor=floor,
            risk=floor.risk,
            pack=self.pack.info,
            model=self.engine.model if tier == "model" else None,
            reason_code=reason_code,
            label=scored.label if scored else None,
            confidence=scored.probabilities[outcome] if scored else None,
            probabilities=scored.probabilities if scored else {},
            scored=scored,
            explanation=None if tier == "model" else _without_model(floor, tier, outcome),
            obligations=self.pack.obligations[outcome],
            annotations=request.annotations,
            timings=Timings(
                queue_ms=(started_ns - request.received_ns) / 1e6,
                rules_ms=(rules_done_ns - started_ns) / 1e6,
                score_ms=scored.score_ms if scored else 0.0,
            ),
        )
        if scored and request.explain != "none" and len(self._explaining) < self._max_explanations:
            self._begin_explanation(request, decision, scored)
        return decision

    def is_explaining(self, ticket: int) -> bool:
        """True while an explanation for `ticket` runs or waits."""
        return ticket in self._explaining

    def step(self) -> list[Explained | Unexplained]:
        """Advance the running explanations by one decode; returns those that ended."""
        return [self._ended(written) for written in self.engine.step()]

    def abandon(self) -> list[Unexplained]:
        """Give up every running explanation, for the engine failed."""
        self.engine.give_up()
        left = [Unexplained(ticket) for ticket in self._explaining]
        self._explaining.clear()
        return left

    def _strictest(self, floor: Floor, scored: Scored) -> tuple[str, str | None]:
        """Outcome and, where the model was too unsure of an allow, the reason."""
        outcome = self.pack.book.stricter(floor.outcome, self.pack.default_floor, scored.label)
        abstain = self.pack.manifest.limits.abstain
        unsure = abstain and scored.probabilities[outcome] < abstain.below.get(floor.risk, 0.0)
        if abstain and unsure and outcome == self.pack.loosest:
            return abstain.outcome, "low_confidence"
        return outcome, None

    def _begin_explanation(self, request: Request, decision: Decision, scored: Scored) -> None:
        steps = self.pack.explanation_steps(decision.outcome, decision.floor)
        self._explaining[request.ticket] = decision
        later_ns = time.monotonic_ns() + EXPLAIN_LATER_S * 10**9
        deadline_ns = request.deadline_ns if request.explain == "inline" else later_ns
        self.engine.explain(request.ticket, self.pack.info.sha256, scored, steps, deadline_ns)

    def _ended(self, written: Written) -> Explained | Unexplained:
        decision = self._explaining.pop(written.ticket, None)
        if decision is None or (written.truncated and not written.text):
            return Unexplained(written.ticket)
        floor = decision.floor
        by_rules = floor.settles(decision.outcome)
        explanation = Explanation(
            classification=next(iter(written.values.get("classification", ())), None),
            clauses=tuple(dict.fromkeys((*floor.clauses, *written.values.get("clauses", ())))),
            reasoning=(floor.because or "") if by_rules else " ".join(written.values.get("reasoning", ())),
            text=written.text,
            truncated=written.truncated,
            generated_tokens=written.generated_tokens,
            explain_ms=written.explain_ms,
        )
        return Explained(written.ticket, decision.id, explanation)


def _without_model(floor: Floor, tier: Tier, outcome: str) -> Explanation:
    """The reason for an answer that took no model: the rules' own words, or what failed."""
    if tier == "rule":
        reasoning = floor.because or ""
    else:
        reasoning = f"The model gave no answer, so the answer is {outcome}."
    text = f"outcome: {outcome}\nclass: {floor.classification or 'none'}\nclauses: "
    text += f"{', '.join(floor.clauses) or 'none'}\nbecause: {reasoning}"
    return Explanation(
        classification=floor.classification, clauses=floor.clauses, reasoning=reasoning, text=text
    )
