"""Labelled situations that a generator makes up: for calibration, and to train adapters with.

Owns what all domains share. Invariant: a situation is a function of its domain and seed; its label comes from
a reference policy of its own that reads the clauses, never from the rules of the pack, and from a reader's
judgment of what the text adds. Text only ever tightens: that is the last clause of every pack. Pure.

A domain draws facts, writes them as an evaluation in words of its choice, and adds at most one piece of
evidence in free text. Templates and kinds of evidence have names, so that a test can hold some back.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Finding:
    """What one clause asks for, and why, in a sentence of a judge."""

    outcome: str
    clause: str
    because: str


@dataclass(frozen=True)
class Evidence:
    """A piece of free text of one kind, and what it adds (None: nothing, for text grants nothing)."""

    kind: str
    text: str
    adds: Finding | None = None


@dataclass(frozen=True)
class Situation:
    """An evaluation with its label. `template` and `evidence` name what it was written with."""

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
        """Whether the form of older services has a place for all of its properties."""
        subject = self.evaluation["subject"].get("properties", {})
        others = (self.evaluation[part].get("properties") for part in ("action", "resource"))
        return subject.keys() <= {"role", "trust", "identity"} and not any(others)


class Chance(random.Random):
    """Chance with a seed, and the draws that domains make of it; `ways` are those of texts drawn so far."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.ways: list[str] = []

    def maybe(self, share: float) -> bool:
        return self.random() < share

    def weighted(self, **weights: float) -> str:
        return self.choices(list(weights), list(weights.values()))[0]


#: Kinds of free text: what each adds, and ways to say it.
Texts = dict[str, tuple[Finding | None, tuple[str, ...]]]


def words(domain: str) -> tuple[dict[str, Any], Texts]:
    """Names and words of a domain, and its kinds of free text, from the YAML file beside its module."""
    told = yaml.safe_load(Path(__file__).with_name(f"{domain}.yaml").read_text(encoding="utf-8"))
    texts: Texts = {}
    for kind, one in told.pop("texts").items():
        adds = Finding(**one["adds"], because=one["because"]) if "adds" in one else None
        texts[kind] = adds, tuple(one["ways"])
    return told, texts


def said(texts: Texts, kind: str, chance: Chance, **names: str) -> Evidence:
    """A text of that kind, in one of its ways."""
    adds, ways = texts[kind]
    way = chance.choice(ways)
    chance.ways.append(f"{kind}: {way}")
    return Evidence(kind, way.format(**names), adds)


def judged(
    order: Sequence[str], findings: Sequence[Finding], otherwise: Finding, evidence: Evidence | None
) -> tuple[str, tuple[str, ...], str]:
    """Outcome, clauses and reason: the strictest finding counts; those that ask for the same are cited."""
    found = [*findings, *([evidence.adds] if evidence and evidence.adds else [])]
    found = found or [otherwise]
    outcome = max((one.outcome for one in found), key=order.index)
    asking = [one for one in found if one.outcome == outcome]
    clauses = tuple(dict.fromkeys(one.clause for one in asking))[:3]
    return outcome, clauses, asking[-1].because


def drawn(
    make: Callable[[Chance], Situation], count: int, seed: int, order: Sequence[str]
) -> Iterator[Situation]:
    """`count` situations with as many of each outcome as `make` gives, in an order of chance."""
    wanted = {
        outcome: count // len(order) + (number < count % len(order)) for number, outcome in enumerate(order)
    }
    chance, found, tried = Chance(seed), [], 0
    while any(wanted.values()):
        tried += 1
        if tried > 200 * count:
            raise ValueError(
                f"the generator gives too few of {[name for name, left in wanted.items() if left]}"
            )
        one = make(chance)
        if wanted[one.outcome]:
            wanted[one.outcome] -= 1
            found.append(one)
    chance.shuffle(found)
    yield from found


def flat(one: Situation) -> dict[str, Any]:
    """The evaluation in the flat form that older services send, for one that has it."""
    evaluation = one.evaluation
    subject, resource = evaluation["subject"], evaluation["resource"]
    properties = subject.get("properties", {})
    told: dict[str, Any] = {"actor_id": f"{subject['type']}:{subject['id']}"}
    for key, name in (("role", "actor_role"), ("trust", "t3_tensor"), ("identity", "identity_metrics")):
        if key in properties:
            told[name] = properties[key]
    told |= {"action_type": evaluation["action"]["name"], "resource": f"{resource['type']}:{resource['id']}"}
    return told | evaluation.get("context", {})


__all__ = ["Chance", "Evidence", "Finding", "Situation", "drawn", "flat", "judged", "said", "words"]
