"""Cases to train and to judge an adapter with: generated ones, written ones, and what is held back of them.

Owns the split. Invariant: which case is held back depends on its domain and on the name of its template or
its kind of evidence alone, so no run can train on what another was judged by. Pure but for the files read.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml

sys.path.insert(0, str(Path(__file__).parent))

from situations import Chance, Situation, agent, device, discount, invoice, team, trade

from thor_policy.training.samples import AT, Case

#: The domains that have a generator, by the name of their pack.
DOMAINS: dict[str, Any] = {one.PACK: one for one in (agent, device, discount, invoice, team, trade)}
WRITTEN = Path(__file__).parent / "situations" / "written"
#: One of so many templates, kinds of evidence and written situations is held back.
TEMPLATES_HELD, KINDS_HELD, WRITTEN_HELD = 7, 6, 6

#: What a case may serve for: training, or one of the questions of transfer.
Part = Literal["train", "templates", "kinds"]


def _falls(text: str, one_of: int) -> bool:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % one_of == 0


def kind_is_held(pack: str, kind: str) -> bool:
    """True for a kind of evidence that no training sees."""
    return kind != "none" and _falls(f"{pack}: kind {kind}", KINDS_HELD)


def template_is_held(pack: str, template: str) -> bool:
    """True for a template that no training sees."""
    return _falls(f"{pack}: template {template}", TEMPLATES_HELD)


def part_of(one: Situation) -> Part | None:
    """What a generated situation serves for; None: nothing, for both are held back."""
    kind, template = kind_is_held(one.pack, one.evidence), template_is_held(one.pack, one.template)
    if kind and template:
        return None
    return "kinds" if kind else "templates" if template else "train"


def case_of(one: Situation, source: str) -> Case:
    at = one.evaluation.get("context", {}).get("timestamp")
    return Case(
        pack=one.pack,
        evaluation=one.evaluation,
        outcome=one.outcome,
        clauses=one.clauses,
        reasoning=one.reasoning,
        source=source,
        group=f"{one.template}; {one.evidence}",
        at=_seconds(at),
    )


def _seconds(at: str | None) -> float:
    try:
        return datetime.fromisoformat(at or "").astimezone(UTC).timestamp()
    except ValueError:
        return AT


def generated(pack: str, count: int, seed: int, part: Part) -> list[Case]:
    """`count` generated cases of one part, as many of each outcome as it gives."""
    domain = DOMAINS[pack]
    chance, found, had = Chance(seed), [], Counter[str]()
    most = -(-count // len(domain.OUTCOMES))
    for _ in range(400 * count):
        one = domain.make(chance)
        if part_of(one) == part and had[one.outcome] < most:
            had[one.outcome] += 1
            found.append(case_of(one, f"generated {pack} {seed}"))
        if len(found) == count:
            break
    return found


def written(pack: str) -> Iterator[tuple[Case, bool]]:
    """Each written case of a domain, and whether it is held back."""
    path = WRITTEN / f"{pack}.yaml"
    if not path.is_file():
        return
    for one in yaml.safe_load(path.read_text(encoding="utf-8")):
        case = Case(
            pack=pack,
            evaluation=one["evaluation"],
            outcome=one["outcome"],
            clauses=tuple(one["clauses"]),
            reasoning=one["rationale"],
            source=f"written {pack} {one['id']}",
            group=one["kind"],
            at=_seconds(one["evaluation"].get("context", {}).get("timestamp")),
        )
        yield case, _falls(f"{pack}: written {one['id']}", WRITTEN_HELD)


#: How often a written case is repeated beside the generated ones: each is another idea.
WRITTEN_REPEATS = 3


def training_set(count: int, seed: int) -> tuple[list[Case], tuple[str, ...]]:
    """`count` generated cases of each domain, the written ones that are not held back, and what they are."""
    cases: list[Case] = []
    notes = []
    for pack in DOMAINS:
        made = generated(pack, count, seed, "train")
        by_hand = [case for case, held in written(pack) if not held]
        cases += made + by_hand * WRITTEN_REPEATS
        outcomes = Counter(case.outcome for case in made + by_hand)
        told = ", ".join(f"{outcome} {had}" for outcome, had in sorted(outcomes.items()))
        notes.append(
            f"{pack}: {len(made)} generated, {len(by_hand)} written (each {WRITTEN_REPEATS} times): {told}"
        )
    return cases, tuple(notes)
