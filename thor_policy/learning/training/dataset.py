"""The training set of a device: reviewers' corrections, and earlier cases so that it forgets nothing.

Owns how both are mixed. Invariant: a held-out correction has no near-duplicate among the trained ones, and a
lesson depends on the journal, the files and the seed alone. Pure, except for reading files.
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from thor_policy.core import strict_json
from thor_policy.core.errors import TrainingError
from thor_policy.core.requests import NEVER_NS, Caller, Evaluation, Request
from thor_policy.learning.export import Correction, split
from thor_policy.learning.training.samples import Case
from thor_policy.policy.decider import Policy
from thor_policy.policy.pack import Example, Pack

#: How often each correction is repeated; an earlier case is there once.
REPEATS = 4
#: Earlier cases for each correction, and the fewest earlier cases in all.
REPLAYED, LEAST_REPLAYED = 4, 200


class Lesson(Struct, frozen=True, kw_only=True):
    """The cases to train, and the held-out cases that choose the weights.

    `train` has `corrections` corrections, each `REPEATS` times, and `replayed` earlier cases.
    """

    train: tuple[Case, ...]
    held_out: tuple[Case, ...]
    corrections: int
    replayed: int


def read(path: Path, packs: Sequence[str]) -> list[Case]:
    """The cases of these packs in a file of JSON lines, compressed or not. Raises TrainingError."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            cases = [strict_json.decode_as(line, Case) for line in file]
    except (OSError, EOFError, msgspec.DecodeError, ValueError) as error:
        raise TrainingError(f"{path} holds no cases: {error}") from error
    return [case for case in cases if case.pack in packs]


def lesson(corrections: Sequence[Correction], pack: Pack, before: Sequence[Case], *, seed: int) -> Lesson:
    """A mixture: each correction `REPEATS` times, and a sample of the cases `before`.

    Without earlier cases, the pack's examples are used.
    """
    _, test = split(corrections)
    cases = [_from_correction(correction, pack) for correction in corrections]
    known = list(before) or [_from_example(example, pack) for example in pack.examples]
    count = max(LEAST_REPLAYED, REPLAYED * (len(cases) - len(test)))
    replayed = random.Random(seed).sample(known, min(count, len(known)))  # noqa: S311  an order, no secret
    train = [case for number, case in enumerate(cases) if number not in test]
    return Lesson(
        train=(*train * REPEATS, *replayed),
        held_out=tuple(cases[number] for number in sorted(test)),
        corrections=len(train),
        replayed=len(replayed),
    )


def outcomes(
    policy: Policy, cases: Sequence[Case], *, advance: Callable[[], None] = lambda: None
) -> list[str]:
    """The outcome that a policy decides for each case, at the case's time; `advance` is called after each."""
    decided = []
    for case in cases:
        request = Request(
            ticket=0,
            evaluation=msgspec.convert(case.evaluation, Evaluation),
            caller=Caller(transport="inproc"),
            received_at=case.at,
            received_ns=0,
            deadline_ns=NEVER_NS,
        )
        decided.append(policy.decide(request).outcome)
        advance()
    return decided


def _from_correction(correction: Correction, pack: Pack) -> Case:
    return Case(
        pack=pack.info.name,
        evaluation=msgspec.to_builtins(correction.evaluation),
        outcome=correction.outcome,
        clauses=correction.clauses,
        reasoning=correction.reasoning or "",
        source=f"correction {correction.provenance.decision_id}",
        at=correction.received_at,
    )


def _from_example(example: Example, pack: Pack) -> Case:
    return Case(
        pack=pack.info.name,
        evaluation=msgspec.to_builtins(example.evaluation),
        outcome=example.outcome,
        clauses=example.clauses,
        reasoning=example.reasoning,
        source=f"example {example.id}",
        at=example.at,
    )
