"""Whether the same question always gets the same bits, whatever else the engine does.

Owns the `determinism` benchmark. Invariant: each answer is compared with the first answer to the same
question, which was given while the engine did nothing else. Main thread.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from thor_policy.bench.children import isolated_config
from thor_policy.bench.figures import Advance, Announce, Fact, Report, Series
from thor_policy.bench.runs import questions_for_model
from thor_policy.config import Config
from thor_policy.core.decisions import Decision, ModelInfo, PackInfo, Scored
from thor_policy.core.engine import all_steps
from thor_policy.core.errors import EngineError
from thor_policy.core.requests import NEVER_NS, Caller, Evaluation, Request
from thor_policy.daemon import loading
from thor_policy.engine.native import build_name, device_memory
from thor_policy.policy.decider import Policy
from thor_policy.policy.pack import Pack
from thor_policy.telemetry.machine import machine

#: How many different questions are repeated.
DIFFERENT = 40
#: Probability that the other pack is asked before a question.
OTHER_PACK_SHARE = 0.1
#: Explanations that run at once, if the setting parallel_explanations allows as many.
EXPLAINED = 2


@dataclass
class _Differences:
    """How many answers differ from the first answer, and the largest difference of a probability."""

    labels: int = 0
    logits: int = 0
    probabilities: int = 0
    largest: float = 0.0

    def compare(self, scored: Scored, first: Scored) -> None:
        self.labels += scored.label != first.label
        self.logits += scored.logits != first.logits
        self.probabilities += scored.probabilities != first.probabilities
        pairs = zip(scored.probabilities.values(), first.probabilities.values(), strict=True)
        self.largest = max(self.largest, *(abs(probability - before) for probability, before in pairs))

    @property
    def facts(self) -> dict[str, float]:
        return {
            "labels_differing": self.labels,
            "logits_differing": self.logits,
            "probabilities_differing": self.probabilities,
            "largest_difference_of_a_probability": self.largest,
        }


def determinism(
    config: Config,
    evaluations: Sequence[Evaluation],
    *,
    requests: int,
    other: Pack,
    advance: Advance,
    announce: Announce,
    judged: Callable[[PackInfo, ModelInfo], None] = lambda pack, model: None,
) -> Report:
    """Ask `requests` questions in random order while explanations run and the pack `other` is asked too.

    The engine is loaded again half-way. `advance` is called for each request and for each of the first
    answers, of which there are `DIFFERENT` at most. `judged` gets the pack and the model that answered.
    Raises EngineError.
    """
    pack, at = loading.load_pack(config), time.time()
    order = random.Random(0)  # noqa: S311  (an order, not a secret)
    questions = questions_for_model(pack, evaluations)
    questions = order.sample(questions, min(DIFFERENT, len(questions)))
    if not questions:
        raise EngineError(
            f"the rules of the pack {pack.info.name} answer every question, so the model is never asked: "
            "choose another pack with --pack"
        )
    first: list[Scored] = []
    score_ms: list[float] = []
    differences, explained, device = _Differences(), 0, ""
    with isolated_config(config) as isolated:
        for half in (requests // 2, requests - requests // 2):
            with _open_policy(isolated, pack, other, at) as policy:
                while len(first) < len(questions):
                    first.append(_scored(_decide(policy, questions[len(first)], at)))
                    advance()
                for _ in range(half):
                    number = order.randrange(len(questions))
                    if order.random() < OTHER_PACK_SHARE:
                        _decide(policy, questions[number], at, pack=other)
                    free = policy.engine.explaining < min(EXPLAINED, config.parallel_explanations)
                    ticket = len(score_ms) if free else None
                    scored = _scored(_decide(policy, questions[number], at, ticket=ticket))
                    score_ms.append(scored.score_ms)
                    differences.compare(scored, first[number])
                    explained += len(policy.step())
                    advance()
                device = policy.engine.model.device
                judged(pack.info, policy.residents.active.model)
            if len(score_ms) < requests:
                for name, value in differences.facts.items():
                    announce(Fact(name=f"{name}, first half", value=value))
    series = Series(name=f"score, on the {device}", ms=tuple(score_ms))
    facts = {"requests": requests, **differences.facts, "explanations": explained}
    announce(series)
    for name, value in facts.items():
        announce(Fact(name=name, value=value))
    return Report(
        name="determinism",
        machine=", ".join((machine(), *(memory.device for memory in device_memory()))),
        versions={"engine": build_name(), "model": config.model},
        questions=len(questions),
        rounds=1,
        series=(series,),
        facts=facts,
    )


def _decide(
    policy: Policy, evaluation: Evaluation, at: float, *, pack: Pack | None = None, ticket: int | None = None
) -> Decision:
    """A decision of `pack`, or of the active pack if it is None; with a ticket its explanation begins too."""
    request = Request(
        ticket=ticket or 0,
        evaluation=evaluation,
        caller=Caller(transport="inproc"),
        received_at=at,
        received_ns=0,
        deadline_ns=NEVER_NS,
        explain="none" if ticket is None else "inline",
        pack=pack.info.sha256 if pack else None,
    )
    return policy.decide(request)


def _scored(decision: Decision) -> Scored:
    if decision.scored is None:
        raise EngineError(f"the model did not answer a question: {decision.reason_code or decision.tier}")
    return decision.scored


@contextlib.contextmanager
def _open_policy(config: Config, pack: Pack, other: Pack, at: float) -> Iterator[Policy]:
    """The engine of the settings with both packs resident, each under the adapter of the settings."""
    engine, adapter = loading.open_engine(config, pack, other)
    with contextlib.closing(engine):
        policy = Policy(engine, pack, adapter=adapter)
        resident = all_steps(policy.loading(other, adapter, at))
        policy.set_residents(policy.residents.with_candidate(resident))
        yield policy
        policy.abandon()
