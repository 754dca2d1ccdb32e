"""The split: which cases serve for training, for choosing weights, and for the figures of an adapter.

Owns the split and the mix of a training set. Invariant: whether a case is held back depends on its domain and
on the name of its template or its kind of evidence alone, so no run can train on a case that measures another
run. Pure but for the files that are read.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from thor_policy.config import data_path
from thor_policy.core.requests import Evaluation
from thor_policy.learning.training.samples import AT, Case
from thor_policy.policy import pack_files, yaml_text
from thor_policy.policy.pack import Pack
from thor_policy.suites import leaks, suite_files
from training_data.domains import DOMAINS
from training_data.situations import Chance, Situation

WRITTEN = Path(__file__).parent / "written"
#: One in so many templates, kinds of evidence and blocks of written situations is held back for figures, and
#: another one for choosing weights.
TEMPLATES_HELD, KINDS_HELD, WRITTEN_HELD = 7, 6, 6
#: Written situations in a block. A block is never split: its situations are contrasts of each other.
BLOCK = 6

#: Packs whose situations are written from jobs. Each job has its own words, so it counts as a template.
WITH_JOBS = ("agent-tools", "device-operations", "team-governance")

#: What a case serves for: training, choosing weights while training, or figures of transfer to new phrasings
#: or new kinds.
Part = Literal["train", "check", "templates", "kinds"]


def place_of(text: str, of: int) -> int:
    """A number below `of`, from a digest of the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % of


def part_of(situation: Situation, ways: Sequence[str]) -> Part | None:
    """What a generated situation serves for; None: for nothing, because it belongs to two parts.

    A template is the job that the situation was written with, or a phrasing of its free text (`ways`).
    """
    pack, evidence = situation.pack, situation.evidence
    kind = place_of(f"{pack}: kind {evidence}", KINDS_HELD) if evidence != "none" else KINDS_HELD
    templates = [f"way {way}" for way in ways]
    if pack in WITH_JOBS:
        templates.append(f"template {situation.template}")
    template = min((place_of(f"{pack}: {name}", TEMPLATES_HELD) for name in templates), default=2)
    if kind > 1 and template > 1:
        return "train"
    if kind == 0 or template == 0:
        return None if kind <= 1 and template <= 1 else "kinds" if kind == 0 else "templates"
    return "check"


def case_of(situation: Situation, source: str) -> Case:
    """The situation as a case for training or for figures; `source` says where it comes from."""
    return Case(
        pack=situation.pack,
        evaluation=situation.evaluation,
        outcome=situation.outcome,
        clauses=situation.clauses,
        reasoning=situation.reasoning,
        source=source,
        group=f"{situation.template}; {situation.evidence}",
        at=_seconds(situation.evaluation.get("context", {}).get("timestamp")),
    )


def _seconds(timestamp: str | None) -> float:
    """Unix time of an ISO 8601 timestamp; `AT` where it is missing or malformed."""
    try:
        return datetime.fromisoformat(timestamp or "").astimezone(UTC).timestamp()
    except ValueError:
        return AT


def generated(pack: str, count: int, seed: int, part: Part) -> list[Case]:
    """`count` generated cases of one part, at most an equal share of each outcome.

    There are fewer where 400 x `count` draws do not give enough.
    """
    domain = DOMAINS[pack]
    chance, counts = Chance(seed), Counter[str]()
    cases: list[Case] = []
    most = -(-count // len(domain.OUTCOMES))
    for _ in range(400 * count):
        chance.ways.clear()
        situation = domain.make(chance)
        if part_of(situation, chance.ways) == part and counts[situation.outcome] < most:
            counts[situation.outcome] += 1
            cases.append(case_of(situation, f"generated {pack} {seed}"))
        if len(cases) == count:
            break
    return cases


def written(pack: str, part: Literal["train", "check", "held"]) -> list[Case]:
    """The written cases of a pack that serve for `part`."""
    path, cases = WRITTEN / f"{pack}.yaml", []
    for entry in yaml_text.parse(path.read_text(encoding="utf-8"), list[Any], path):
        block = int(entry["id"][1:]) // BLOCK
        place = place_of(f"{pack}: written {block}", WRITTEN_HELD)
        if part != ("held" if place == 0 else "check" if place == 1 else "train"):
            continue
        cases.append(
            Case(
                pack=pack,
                evaluation=entry["evaluation"],
                outcome=entry["outcome"],
                clauses=tuple(entry["clauses"]),
                reasoning=entry["rationale"],
                source=f"written {pack} {entry['id']}",
                group=entry["kind"],
                at=_seconds(entry["evaluation"].get("context", {}).get("timestamp")),
            )
        )
    return cases


#: The mix of the generated part of a training set. `read`: text asks for more than the rules; `text`: there
#: is text, and the rules are right; `bare`: no text; `pairs`: two cases that differ in one fact. Without this
#: mix text matters in only one case of six, and an adapter learns to repeat the rules.
SHARES = {"read": 0.30, "text": 0.35, "bare": 0.25, "pairs": 0.10}
#: How often a written case is repeated beside the generated ones: each is an idea of its own.
WRITTEN_REPEATS = 3


def composed(pack: Pack, count: int, seed: int) -> Iterator[Case]:
    """About `count` generated cases to train with, mixed by `SHARES`.

    Among cases whose text asks for more, each kind of text is about equally frequent; among the others, each
    outcome.
    """
    name, domain = pack.info.name, DOMAINS[pack.info.name]
    chance, source = Chance(seed), f"generated {pack.info.name} {seed}"
    adding = sum(adds is not None for adds, _ in domain.TEXTS.values())
    left = {share: int(count * SHARES[share]) for share in ("read", "text", "bare")}
    most = {share: -(-left[share] // len(domain.OUTCOMES)) for share in ("text", "bare")}
    most["read"] = -(-2 * left["read"] // adding)
    counts = Counter[tuple[str, str]]()
    for _ in range(400 * count):
        chance.ways.clear()
        situation = domain.make(chance)
        if part_of(situation, chance.ways) != "train":
            continue
        case = case_of(situation, source)
        floor = pack.book.apply(msgspec.convert(case.evaluation, Evaluation), case.at)
        share = "text" if floor.outcome == situation.outcome else "read"
        if situation.evidence == "none":
            share = "bare"
        group = (share, situation.evidence if share == "read" else situation.outcome)
        if left[share] and counts[group] < most[share]:
            left[share] -= 1
            counts[group] += 1
            yield case
        if not any(left.values()):
            break
    pairs_left = int(count * SHARES["pairs"]) // 2
    for _ in range(100):
        chance.ways.clear()
        for _, *sides in domain.pairs(chance):
            if pairs_left and all(part_of(side, chance.ways) == "train" for side in sides):
                pairs_left -= 1
                yield from (case_of(side, f"pair {name} {seed}") for side in sides)
            if not pairs_left:
                return
            chance.ways.clear()


def judged_packs() -> dict[str, Pack]:
    """The shipped packs that ask a model, by name: an adapter is trained for them and measured on them."""
    packs = (pack_files.load(pack_files.find(name, data_path("prompts"))) for name in DOMAINS)
    return {pack.info.name: pack for pack in packs if not pack.rules_only}


def training_set(packs: Mapping[str, Pack], count: int, seed: int) -> tuple[list[Case], tuple[str, ...]]:
    """The training set, with a note on each pack. Written cases that are held back are not in it."""
    cases: list[Case] = []
    notes = []
    for name in packs:
        by_generator = list(composed(packs[name], count, seed))
        by_hand = written(name, "train")
        cases += by_generator + by_hand * WRITTEN_REPEATS
        counts = Counter(case.outcome for case in by_generator + by_hand)
        outcomes = ", ".join(f"{outcome} {number}" for outcome, number in sorted(counts.items()))
        notes.append(
            f"{name}: {len(by_generator)} generated, {len(by_hand)} written (each {WRITTEN_REPEATS} times): "
            f"{outcomes}"
        )
    return cases, tuple(notes)


def check_set(packs: Iterable[str], count: int, seed: int) -> list[Case]:
    """Cases to choose weights by while training: `count` generated ones of each pack, and written ones."""
    return [
        case for pack in packs for case in (*generated(pack, count, seed, "check"), *written(pack, "check"))
    ]


def without_leaks(cases: list[Case]) -> tuple[list[Case], str]:
    """The cases that are not too similar to a scenario of a shipped suite, and a note on the rest."""
    evaluations = [msgspec.convert(case.evaluation, Evaluation) for case in cases]
    leaking: set[str] = set()
    for path in suite_files.available(data_path("scenarios")):
        suite = suite_files.load(path)
        examples = [
            (str(number), evaluations[number]) for number, case in enumerate(cases) if case.pack == suite.pack
        ]
        while matches := leaks.among(suite.scenarios, examples):
            leaking |= {leak.example for leak in matches}
            examples = [(name, evaluation) for name, evaluation in examples if name not in leaking]
    clean = [case for number, case in enumerate(cases) if str(number) not in leaking]
    return clean, f"{len(leaking)} left out as too similar to a scenario of a suite"
