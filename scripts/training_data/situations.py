"""Labelled situations: for calibration, and for training and measuring adapters.

Owns what all domains share: the types, the random draws, and how a label follows from findings. Invariants: a
situation is a function of its domain and seed. Its label comes from a reference policy that reads the
clauses, never from the rules of the pack, and from a person's judgment of what the text adds. Text can only
make a label stricter: that is the last clause of every pack. Pure but for the words of a domain, which are
read from a file.

A domain draws facts, writes them as an evaluation in words that it draws, and adds at most one piece of free
text, the evidence. Templates and kinds of evidence have names, so that a split can hold some of them back.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from thor_policy.policy import yaml_text


@dataclass(frozen=True)
class Finding:
    """The outcome that one clause asks for, and the reason in one sentence."""

    outcome: str
    clause: str
    because: str


@dataclass(frozen=True)
class Evidence:
    """A piece of free text of one kind, and the finding that it adds (None: text that changes nothing)."""

    kind: str
    text: str
    adds: Finding | None = None


@dataclass(frozen=True)
class Situation:
    """An evaluation with its label. `template` and `evidence` name the words that it was written with."""

    pack: str
    evaluation: dict[str, Any]
    outcome: str
    risk: str
    clauses: tuple[str, ...]
    reasoning: str
    template: str
    evidence: str = "none"

    @property
    def has_flat_form(self) -> bool:
        """Whether the flat form of older services can hold all properties of the evaluation."""
        subject = self.evaluation["subject"].get("properties", {})
        others = (self.evaluation[part].get("properties") for part in ("action", "resource"))
        return subject.keys() <= {"role", "trust", "identity"} and not any(others)


class Chance(random.Random):
    """A seeded source of random draws. `ways` lists the phrasings drawn so far, as `kind: phrasing`."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.ways: list[str] = []

    def maybe(self, share: float) -> bool:
        """True with the probability `share`."""
        return self.random() < share

    def weighted(self, **weights: float) -> str:
        """One of the names, drawn by its weight."""
        return self.choices(list(weights), list(weights.values()))[0]

    def reordered(self, members: Mapping[str, Any]) -> dict[str, Any]:
        """The same members in a random order."""
        return dict(self.sample(list(members.items()), len(members)))


#: Kinds of free text: the finding that each adds, and its phrasings.
Texts = dict[str, tuple[Finding | None, tuple[str, ...]]]


class Domain(Protocol):
    """A module that generates the situations of one pack. `OUTCOMES` run from loosest to strictest."""

    PACK: str

    @property
    def OUTCOMES(self) -> tuple[str, ...]: ...  # noqa: N802  a constant of a module

    @property
    def TEXTS(self) -> Texts: ...  # noqa: N802  a constant of a module

    def make(self, chance: Chance) -> Situation:
        """One situation."""

    def pairs(self, chance: Chance) -> Iterator[tuple[str, Situation, Situation]]:
        """Pairs that differ in one fact: the kind of the fact, the looser situation, the stricter one."""


def vocabulary(path: Path) -> tuple[dict[str, Any], Texts]:
    """The names and words of a domain, and its kinds of free text, from a YAML file."""
    content = yaml_text.parse(path.read_text(encoding="utf-8"), dict[str, Any], path)
    texts: Texts = {}
    for kind, entry in content.pop("texts").items():
        adds = Finding(**entry["adds"], because=entry["because"]) if "adds" in entry else None
        texts[kind] = adds, tuple(entry["ways"])
    return content, texts


def draw_text(texts: Texts, kind: str, chance: Chance, **names: str) -> Evidence:
    """A text of the kind `kind`, in one of its phrasings, with `names` filled in."""
    adds, ways = texts[kind]
    way = chance.choice(ways)
    chance.ways.append(f"{kind}: {way}")
    return Evidence(kind, way.format(**names), adds)


def strictest(
    order: Sequence[str], findings: Sequence[Finding], otherwise: Finding, evidence: Evidence | None
) -> tuple[str, tuple[str, ...], str]:
    """The strictest outcome of all findings, up to three clauses that ask for it, and the last one's reason.

    `order` lists the outcomes from the loosest to the strictest; `otherwise` counts where nothing was found.
    """
    counted = [*findings, *([evidence.adds] if evidence and evidence.adds else [])] or [otherwise]
    outcome = max((finding.outcome for finding in counted), key=order.index)
    asking = [finding for finding in counted if finding.outcome == outcome]
    clauses = tuple(dict.fromkeys(finding.clause for finding in asking))[:3]
    return outcome, clauses, asking[-1].because


def draw_balanced(
    make: Callable[[Chance], Situation], count: int, seed: int, order: Sequence[str]
) -> Iterator[Situation]:
    """`count` situations, equally many of each outcome, in a random order.

    Raises ValueError where `make` gives too few of an outcome in 200 x `count` draws.
    """
    missing = {
        outcome: count // len(order) + (number < count % len(order)) for number, outcome in enumerate(order)
    }
    chance, drawn, tries = Chance(seed), [], 0
    while any(missing.values()):
        tries += 1
        if tries > 200 * count:
            raise ValueError(
                f"the generator gives too few of {[outcome for outcome, left in missing.items() if left]}"
            )
        situation = make(chance)
        if missing[situation.outcome]:
            missing[situation.outcome] -= 1
            drawn.append(situation)
    chance.shuffle(drawn)
    yield from drawn


def flat_form(situation: Situation) -> dict[str, Any]:
    """The evaluation in the flat form of older services. Requires `situation.has_flat_form`."""
    evaluation = situation.evaluation
    subject, resource = evaluation["subject"], evaluation["resource"]
    properties = subject.get("properties", {})
    fields: dict[str, Any] = {"actor_id": f"{subject['type']}:{subject['id']}"}
    for key, name in (("role", "actor_role"), ("trust", "t3_tensor"), ("identity", "identity_metrics")):
        if key in properties:
            fields[name] = properties[key]
    fields |= {
        "action_type": evaluation["action"]["name"],
        "resource": f"{resource['type']}:{resource['id']}",
    }
    context: dict[str, Any] = evaluation.get("context", {})
    return fields | context
