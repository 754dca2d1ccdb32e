"""What differs between two packs: their parts, and what their rules answer to the questions of suites.

Owns the comparison. Invariant: no model is asked; an answer here is the floor, and whether it is final. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from thor_policy.policy.pack import Pack
from thor_policy.suites.scenarios import Scenario, floor_of

#: Receipt time of the questions: that of the examples of packs.
_AT = 1_767_279_600.0  # 2026-01-01 15:00 UTC, a Thursday


class Change(Struct, frozen=True, kw_only=True):
    """A part that only one pack has (the other side is None), or that differs."""

    kind: str
    name: str
    before: str | None
    after: str | None


class ChangedAnswer(Struct, frozen=True, kw_only=True):
    """A scenario that the rules of the two packs answer differently. `now` compares the two answers."""

    scenario: str
    title: str
    before: str
    after: str
    now: Literal["looser", "stricter", "other"]


def changes(before: Pack, after: Pack) -> Iterator[Change]:
    """The parts that differ: members of the manifest, facts, rules, clauses, examples, tables."""
    for kind, old, new in zip(_KINDS, _parts(before), _parts(after), strict=True):
        for name in dict.fromkeys((*old, *new)):
            if old.get(name) != new.get(name):
                yield Change(kind=kind, name=name, before=old.get(name), after=new.get(name))


def changed_answers(before: Pack, after: Pack, scenarios: Sequence[Scenario]) -> Iterator[ChangedAnswer]:
    """The scenarios whose answer by the rules changes."""
    for scenario in scenarios:
        old, new = floor_of(before, scenario, _AT), floor_of(after, scenario, _AT)
        if (old.outcome, old.final) != (new.outcome, new.final):
            yield ChangedAnswer(
                scenario=scenario.id,
                title=scenario.title,
                before=_answer(old.outcome, final=old.final),
                after=_answer(new.outcome, final=new.final),
                now=_direction(before, after, old.outcome, new.outcome),
            )


_KINDS = ("member", "fact", "rule", "clause", "example", "table")


def _parts(pack: Pack) -> tuple[Mapping[str, str], ...]:
    """The parts of a pack by kind and name, as text."""
    manifest: dict[str, Any] = msgspec.to_builtins(pack.manifest)
    facts = manifest.pop("facts")
    return (
        {name: _text(value) for name, value in manifest.items()} | {"system.md": pack.system},
        {name: _text(text) for name, text in facts.items()},
        {rule.id: _text(msgspec.to_builtins(rule)) for rule in pack.book.rules},
        pack.clauses,
        {example.id: _text(msgspec.to_builtins(example)) for example in pack.examples},
        {name: _text(table) for name, table in pack.data.items()},
    )


def _text(value: Any) -> str:
    if isinstance(value, str):
        return " ".join(value.split())
    return " ".join(msgspec.json.encode(value).decode().split())


def _answer(outcome: str, *, final: bool) -> str:
    return outcome if final else f"{outcome}, or stricter by the model"


def _direction(before: Pack, after: Pack, old: str, new: str) -> Literal["looser", "stricter", "other"]:
    labels = after.labels if new in after.labels and old in after.labels else before.labels
    if old == new or old not in labels or new not in labels:
        return "other"
    return "looser" if labels.index(new) < labels.index(old) else "stricter"
