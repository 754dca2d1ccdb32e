"""The same question, the same bits: asked in random order while everything else goes on.

Owns the `determinism` measurement. Invariant: each answer is compared with the one that the same question
got at first, with nothing else under way. Main thread.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from thor_policy.bench.children import own_place
from thor_policy.bench.figures import Report, Series
from thor_policy.bench.runs import for_the_model
from thor_policy.config import Config
from thor_policy.core.decisions import Decision, Scored
from thor_policy.core.engine import all_steps
from thor_policy.core.errors import EngineError
from thor_policy.core.requests import Caller, Evaluation, Request
from thor_policy.daemon import loading
from thor_policy.engine.llama import NEVER_NS
from thor_policy.engine.native import build_name, device_memory
from thor_policy.policy.decider import Policy
from thor_policy.policy.pack import Pack
from thor_policy.telemetry.machine import machine

#: Questions that are asked again and again.
DIFFERENT = 40
#: How often another pack is asked before a question.
OTHERS = 0.1
#: Explanations under way at once, if the settings allow as many.
EXPLAINED = 2

Advance = Callable[[], None]


@dataclass
class _Differing:
    """How many answers were not the first one to their question; how far a probability was off at most."""

    labels: int = 0
    logits: int = 0
    probabilities: int = 0
    largest: float = 0.0

    def count(self, told: Scored, before: Scored) -> None:
        self.labels += told.label != before.label
        self.logits += told.logits != before.logits
        self.probabilities += told.probabilities != before.probabilities
        pairs = zip(told.probabilities.values(), before.probabilities.values(), strict=True)
        self.largest = max(self.largest, *(abs(one - two) for one, two in pairs))


def determinism(
    config: Config, evaluations: Sequence[Evaluation], *, requests: int, other: Pack, advance: Advance
) -> Report:
    """Ask `requests` questions in random order: explanations run, the pack `other` is asked between them, and
    half-way everything is loaded anew.

    `advance` is called for each request and each of the `DIFFERENT` first answers. Raises EngineError.
    """
    pack, at = loading.load_pack(config), time.time()
    order = random.Random(0)  # noqa: S311  (an order, not a secret)
    asked = for_the_model(pack, evaluations)
    asked = order.sample(asked, min(DIFFERENT, len(asked)))
    if not asked:
        raise EngineError(f"{pack.info.name}: rules alone answer every question, so the model has none")
    first: list[Scored] = []
    series: list[float] = []
    differing, explained, device = _Differing(), 0, ""
    with own_place(config) as place:
        for half in (requests // 2, requests - requests // 2):
            with _opened(place, pack, other, at) as policy:
                while len(first) < len(asked):
                    first.append(_scored(_decided(policy, asked[len(first)], at)))
                    advance()
                for _ in range(half):
                    number = order.randrange(len(asked))
                    if order.random() < OTHERS:
                        _decided(policy, asked[number], at, of=other)
                    free = policy.engine.explaining < min(EXPLAINED, config.parallel_explanations)
                    told = _scored(_decided(policy, asked[number], at, ticket=len(series) if free else None))
                    series.append(told.score_ms)
                    differing.count(told, first[number])
                    explained += len(policy.step())
                    advance()
                device = policy.engine.model.device
    return Report(
        name="determinism",
        machine=", ".join((machine(), *(one.device for one in device_memory()))),
        versions={"engine": build_name(), "model": config.model},
        questions=len(asked),
        rounds=1,
        series=(Series(name=f"score, on the {device}", ms=tuple(series)),),
        facts={
            "requests": requests,
            "labels_differing": differing.labels,
            "logits_differing": differing.logits,
            "probabilities_differing": differing.probabilities,
            "largest_difference_of_a_probability": differing.largest,
            "explanations": explained,
        },
    )


def _decided(
    policy: Policy, evaluation: Evaluation, at: float, *, of: Pack | None = None, ticket: int | None = None
) -> Decision:
    """The decision of the pack `of`, or of the active one; with a ticket its explanation begins as well."""
    request = Request(
        ticket=ticket or 0,
        evaluation=evaluation,
        caller=Caller(transport="inproc"),
        received_at=at,
        received_ns=0,
        deadline_ns=NEVER_NS,
        explain="none" if ticket is None else "inline",
        pack=of.info.sha256 if of else None,
    )
    return policy.decide(request)


def _scored(decision: Decision) -> Scored:
    if decision.scored is None:
        raise EngineError(f"the model gave no answer: {decision.reason_code or decision.tier}")
    return decision.scored


@contextlib.contextmanager
def _opened(place: Config, pack: Pack, other: Pack, at: float) -> Iterator[Policy]:
    """The engine of the settings with both packs resident; the adapter of the settings judges by both."""
    with contextlib.closing(loading.load_engine(place)) as engine:
        adapter = loading.adopt_adapter(place, engine)
        policy = Policy(engine, pack, adapter=adapter)
        resident = all_steps(policy.loading(other, adapter, at))
        policy.set_residents(policy.residents.with_candidate(resident))
        yield policy
        policy.abandon()
