"""What a device learns from: corrections of reviewers, and cases of before so that it forgets nothing.

Owns how both are mixed. Invariant: a correction that is held out is alike to none that is learned, and
what a lesson says follows from the journal, the files and the seed alone. Pure but for the files read.
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from thor_policy.core.errors import TrainingError
from thor_policy.core.requests import Caller, Evaluation, Request
from thor_policy.learning.export import Correction, split
from thor_policy.learning.training.samples import Case
from thor_policy.policy.decider import Policy
from thor_policy.policy.pack import Pack

#: How often a correction is shown for one case of before.
REPEATS = 4
#: Cases of before for each correction, and the fewest in all: the rest of a mixture that forgets nothing.
REPLAYED, LEAST_REPLAYED = 4, 200
_NEVER_NS = 2**63 - 1


class Lesson(Struct, frozen=True, kw_only=True):
    """What is learned, what is held out to choose weights by, and how the mixture came about."""

    train: tuple[Case, ...]
    held_out: tuple[Case, ...]
    corrections: int
    replayed: int


def read(path: Path, packs: Sequence[str]) -> list[Case]:
    """The cases of these packs in a file of JSON lines, compressed or not. Raises TrainingError."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            found = [msgspec.json.decode(line, type=Case) for line in file]
    except (OSError, EOFError, msgspec.DecodeError) as error:
        raise TrainingError(f"{path} holds no cases that can be read: {error}") from error
    return [one for one in found if one.pack in packs]


def lesson(corrections: Sequence[Correction], pack: Pack, before: Sequence[Case], *, seed: int) -> Lesson:
    """A mixture: corrections, each several times, and a sample of what was learned before.

    Where there is no case of before, the pack's own examples stand in.
    """
    _, test = split(corrections)
    cases = [_case(one, pack) for one in corrections]
    known = list(before) or [_shown(pack, number) for number in range(len(pack.examples))]
    wanted = max(LEAST_REPLAYED, REPLAYED * (len(cases) - len(test)))
    replayed = random.Random(seed).sample(known, min(wanted, len(known)))  # noqa: S311  an order, no secret
    learned = [case for number, case in enumerate(cases) if number not in test]
    return Lesson(
        train=(*learned * REPEATS, *replayed),
        held_out=tuple(cases[number] for number in sorted(test)),
        corrections=len(learned),
        replayed=len(replayed),
    )


def outcomes(
    policy: Policy, cases: Sequence[Case], *, advance: Callable[[], None] = lambda: None
) -> list[str]:
    """What a policy decides on each case, as at the time of the case; `advance` hears of each."""
    found = []
    for case in cases:
        request = Request(
            ticket=0,
            evaluation=msgspec.convert(case.evaluation, Evaluation),
            caller=Caller(transport="inproc"),
            received_at=case.at,
            received_ns=0,
            deadline_ns=_NEVER_NS,
        )
        found.append(policy.decide(request).outcome)
        advance()
    return found


def _case(one: Correction, pack: Pack) -> Case:
    return Case(
        pack=pack.info.name,
        evaluation=msgspec.to_builtins(one.evaluation),
        outcome=one.outcome,
        clauses=one.clauses,
        reasoning=one.reasoning or "",
        source=f"correction {one.provenance.decision_id}",
        at=one.received_at,
    )


def _shown(pack: Pack, number: int) -> Case:
    one = pack.examples[number]
    return Case(
        pack=pack.info.name,
        evaluation=msgspec.to_builtins(one.evaluation),
        outcome=one.outcome,
        clauses=one.clauses,
        reasoning=one.reasoning,
        source=f"example {one.id}",
        at=one.at,
    )
