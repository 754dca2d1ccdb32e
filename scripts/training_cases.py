"""Cases to train and to judge an adapter with: generated ones, written ones, and what is held back of them.

Owns the split. Invariant: which case is held back depends on its domain and on the name of its template or
its kind of evidence alone, so no run can train on what another was judged by. Pure but for the files read.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from situations import Chance, Situation, agent, device, discount, invoice, team, trade

from thor_policy.core.requests import Evaluation
from thor_policy.learning.training.samples import AT, Case
from thor_policy.policy.pack import Pack

#: The domains that have a generator, by the name of their pack.
DOMAINS: dict[str, Any] = {one.PACK: one for one in (agent, device, discount, invoice, team, trade)}
WRITTEN = Path(__file__).parent / "situations" / "written"
#: One of so many templates, kinds of evidence and written situations is held back, and one more to check by.
TEMPLATES_HELD, KINDS_HELD, WRITTEN_HELD = 7, 6, 6
#: Written situations that stay together, whichever part they serve for.
NEIGHBOURS = 6

#: Domains whose situations are written after jobs, each with words of its own.
OF_JOBS = ("agent-tools", "device-operations", "team-governance")

#: What a case may serve for: training, choosing weights while training, or one of two questions of transfer.
Part = Literal["train", "check", "templates", "kinds"]


def place_of(text: str, of: int) -> int:
    """A number below `of` that a text falls to."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % of


def part_of(one: Situation, ways: Sequence[str]) -> Part | None:
    """What a generated situation serves for; None: nothing, for it would be of two parts.

    A template is the job that it was written with, or a way to say a kind of text (`ways`).
    """
    kind = place_of(f"{one.pack}: kind {one.evidence}", KINDS_HELD) if one.evidence != "none" else KINDS_HELD
    templates = [f"way {way}" for way in ways]
    if one.pack in OF_JOBS:
        templates.append(f"template {one.template}")
    template = min((place_of(f"{one.pack}: {told}", TEMPLATES_HELD) for told in templates), default=2)
    if kind > 1 and template > 1:
        return "train"
    if kind == 0 or template == 0:
        return None if kind <= 1 and template <= 1 else "kinds" if kind == 0 else "templates"
    return "check"


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
        chance.ways.clear()
        one = domain.make(chance)
        if part_of(one, chance.ways) == part and had[one.outcome] < most:
            had[one.outcome] += 1
            found.append(case_of(one, f"generated {pack} {seed}"))
        if len(found) == count:
            break
    return found


def written(pack: str, part: Literal["train", "check", "held"]) -> list[Case]:
    """The written cases of a domain that serve for that."""
    path, found = WRITTEN / f"{pack}.yaml", []
    for one in yaml.safe_load(path.read_text(encoding="utf-8")):
        block = int(one["id"][1:]) // NEIGHBOURS  # neighbours are contrasts of each other
        place = place_of(f"{pack}: written {block}", WRITTEN_HELD)
        if part != ("held" if place == 0 else "check" if place == 1 else "train"):
            continue
        found.append(
            Case(
                pack=pack,
                evaluation=one["evaluation"],
                outcome=one["outcome"],
                clauses=tuple(one["clauses"]),
                reasoning=one["rationale"],
                source=f"written {pack} {one['id']}",
                group=one["kind"],
                at=_seconds(one["evaluation"].get("context", {}).get("timestamp")),
            )
        )
    return found


#: What the generated part of a training set is made of. `read`: text asks for more than the rules; `text`:
#: there is text, and what rules ask stands; `bare`: no text; `pairs`: two cases that differ in one fact.
#: Drawn as they come only one case in six has to be read, and an adapter learns to repeat the rules.
SHARES = {"read": 0.30, "text": 0.35, "bare": 0.25, "pairs": 0.10}
#: How often a written case is repeated beside the generated ones: each is another idea.
WRITTEN_REPEATS = 3


def composed(pack: Pack, count: int, seed: int) -> Iterator[Case]:
    """About `count` generated cases to train with, by `SHARES`.

    Kinds of text that ask for more are drawn about equally often, the outcomes of the others equally.
    """
    name, domain = pack.info.name, DOMAINS[pack.info.name]
    chance, source = Chance(seed), f"generated {pack.info.name} {seed}"
    adding = sum(adds is not None for adds, _ in domain.TEXTS.values())
    left = {what: int(count * SHARES[what]) for what in ("read", "text", "bare")}
    most = {what: -(-left[what] // len(domain.OUTCOMES)) for what in ("text", "bare")}
    most["read"] = -(-2 * left["read"] // adding)
    had = Counter[tuple[str, str]]()
    for _ in range(400 * count):
        chance.ways.clear()
        one = domain.make(chance)
        if part_of(one, chance.ways) != "train":
            continue
        case = case_of(one, source)
        floor = pack.book.apply(msgspec.convert(case.evaluation, Evaluation), case.at)
        what = "bare" if one.evidence == "none" else "text" if floor.outcome == one.outcome else "read"
        group = (what, one.evidence if what == "read" else one.outcome)
        if left[what] and had[group] < most[what]:
            left[what] -= 1
            had[group] += 1
            yield case
        if not any(left.values()):
            break
    wanted = int(count * SHARES["pairs"]) // 2
    for _ in range(100):
        chance.ways.clear()
        for _, *sides in domain.pairs(chance):
            if wanted and all(part_of(side, chance.ways) == "train" for side in sides):
                wanted -= 1
                yield from (case_of(side, f"pair {name} {seed}") for side in sides)
            if not wanted:
                return
            chance.ways.clear()


def training_set(packs: Mapping[str, Pack], count: int, seed: int) -> tuple[list[Case], tuple[str, ...]]:
    """`count` generated cases of each domain, the written ones that are not held back, and what they are."""
    cases: list[Case] = []
    notes = []
    for name in DOMAINS:
        made = list(composed(packs[name], count, seed))
        by_hand = written(name, "train")
        cases += made + by_hand * WRITTEN_REPEATS
        outcomes = Counter(case.outcome for case in made + by_hand)
        told = ", ".join(f"{outcome} {had}" for outcome, had in sorted(outcomes.items()))
        notes.append(
            f"{name}: {len(made)} generated, {len(by_hand)} written (each {WRITTEN_REPEATS} times): {told}"
        )
    return cases, tuple(notes)


def check_set(count: int, seed: int) -> list[Case]:
    """Cases to choose weights by while training: `count` generated ones of each domain, and written ones."""
    return [
        case for pack in DOMAINS for case in (*generated(pack, count, seed, "check"), *written(pack, "check"))
    ]
