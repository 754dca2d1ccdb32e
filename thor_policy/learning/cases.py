"""Past decisions as cases: what each was, what it should have been, and what a rule could say of it.

Owns what the search for patterns knows of a decision. Invariant: a value is a fact or a plain part of the
request, by its CEL expression; nothing of it names a person or grows with the clock. Read-only on the
journal; any thread.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import TypeAlias

import msgspec
from msgspec import Struct

from thor_policy.core.decisions import Floor
from thor_policy.core.precedents import Precedent
from thor_policy.core.requests import Evaluation, Json
from thor_policy.core.sources import Consulted
from thor_policy.journal.events import consulted_of, precedents_of
from thor_policy.journal.reader import Reader, Record
from thor_policy.learning.corrections import is_corrected
from thor_policy.policy.pack import Pack

#: Most decisions that are read, the newest ones: each costs an evaluation of all rules.
MOST_DECISIONS = 20_000
#: A text that a condition may quote.
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.:/@+-]{0,39}")
#: An expression that uses a time.
_CLOCK = re.compile(r"\bnow\b|\bstated_times\b|\bcontext\.time(stamp)?\b")
_PAGE = 1_000

Value: TypeAlias = bool | int | float | str


class Case(Struct, frozen=True, kw_only=True):
    """A decision as the search sees it.

    `outcome` is what was decided, `right` the corrected outcome, or `outcome` again if nobody corrected it.
    `values` are the facts and plain parts of the request, by their CEL expression.
    """

    decision_id: str
    seq: int
    at: str
    outcome: str
    right: str
    reviewed: bool
    evaluation: Evaluation
    sources: tuple[Consulted, ...] = ()
    precedents: tuple[Precedent, ...] = ()
    floor: Floor
    values: dict[str, Value]
    words: frozenset[str]
    clauses: tuple[str, ...] = ()
    reason: str = ""


def newest_rows(reader: Reader, since: str | None) -> tuple[list[Record], list[Record], bool]:
    """The newest decisions that no approval lifted, exceptions that one lifted, and whether these are all."""
    rows: list[Record] = []
    lifted: list[Record] = []
    before = None
    while len(rows) < MOST_DECISIONS:
        page = reader.decisions(limit=_PAGE, before=before, since=since, counted=True)
        rows += [row for row in page if row["approval_task"] is None]
        lifted += [row for row in page if row["approval_task"] is not None and row["is_exception"]]
        if len(page) < _PAGE:
            return rows, lifted, True
        before = page[-1]["decision_id"]
    return rows, lifted, False


def _recorded(reader: Reader, row: Record, pack: Pack) -> tuple[tuple[Consulted, ...], tuple[Precedent, ...]]:
    """What sources said for a decision, and its precedents; nothing for a pack that has neither."""
    if not pack.manifest.sources and pack.manifest.precedents is None:
        return (), ()
    event = reader.trace(row["decision_id"])["event"]
    body, private = event["body"], event["private"] or {}
    return consulted_of(body, private), precedents_of(body, private)


def case_of(reader: Reader, row: Record, pack: Pack) -> Case | None:
    """The case of a decision that this pack took here and that is not erased; None for any other.

    None too if the pack does not have the outcome: its order then says nothing.
    """
    ours = (row["prompt_version"] or "").startswith(f"{pack.info.name}@")
    right = row["review_decision"] if is_corrected(row) else row["decision"]
    if not ours or row["situation"] is None or row["tier"] not in ("model", "cache", "rule"):
        return None
    if not {row["decision"], right} <= set(pack.labels):
        return None
    evaluation = msgspec.convert(row["situation"], Evaluation)
    received_at = datetime.fromisoformat(row["timestamp"]).timestamp()
    sources, precedents = _recorded(reader, row, pack)
    floor = pack.book.apply(evaluation, received_at, sources=sources, precedents=precedents)
    values, words = _features(evaluation, floor, pack)
    return Case(
        decision_id=row["decision_id"],
        seq=row["seq"],
        at=row["timestamp"],
        outcome=row["decision"],
        right=right,
        reviewed=bool(row["reviewed"]),
        evaluation=evaluation,
        sources=sources,
        precedents=precedents,
        floor=floor,
        values=values,
        words=words,
        clauses=tuple(row["clauses"] or ()),
        reason=row["review_reasoning"] or "",
    )


def _features(evaluation: Evaluation, floor: Floor, pack: Pack) -> tuple[dict[str, Value], frozenset[str]]:
    """Facts and plain values by their CEL expression, and the words of the pack's text fields.

    The subject's id is no value: a rule must not be about one person. Nor is a number that uses a time: it
    grows with time, whatever the request.
    """
    values: dict[str, Value] = {
        "subject.type": evaluation.subject.type,
        "action.name": evaluation.action.name,
        "resource.type": evaluation.resource.type,
        "resource.id": evaluation.resource.id,
        **{
            name: value
            for name, value in floor.facts.items()
            if isinstance(value, bool | str) or not _CLOCK.search(pack.manifest.facts[name])
        },
    }
    request, words = msgspec.to_builtins(evaluation), set[str]()
    for field in pack.manifest.fields:
        value: Json = request
        for part in field.value.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if field.value in values or field.value == "subject.id" or not isinstance(value, str):
            continue
        if PLAIN.fullmatch(value):
            values[f'given("{field.value}", "")'] = value
        words.update(value.lower().split())
    return values, frozenset(words)
