"""Exceptions: what people decided otherwise than rules and model, and the decisions that they are about.

Owns which exceptions count as cases, and when their reasons are alike. Invariant: an exception that is a
claim or was overturned counts nowhere; one that names no decision taken here is known by its words alone.
Read-only on the journal; any thread.

An exception is a report with `is_exception` that names the decision among its precedents, or an emergency in
which people lifted the outcome: then the denial is the case. Where cases state reasons, those of one pattern
share words; a case without a reason belongs to the largest group.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from thor_policy.journal.reader import Reader, Record
from thor_policy.learning import similarity
from thor_policy.learning.cases import Case, Value
from thor_policy.policy.pack import Pack

#: Reasons that share at least this part of their words are alike. Two people word one reason differently.
REASONS_ALIKE = 0.3
#: Shortest word of a reason that counts, in characters: shorter ones are in every sentence.
_LEAST_CHARS = 4
_WORD = re.compile(r"\w+")


class Exceptions(Struct, frozen=True, kw_only=True):
    """The exceptions of a journal.

    `cases` are the decisions that they are about, with the outcome that people gave as `right`. `unresolved`
    are the others, with their features. `overturned` counts those that a later decision overturned.
    """

    cases: list[Case]
    unresolved: list[tuple[Record, frozenset[str]]]
    overturned: int


def gather(reader: Reader, rows: Sequence[Record], cases: Mapping[str, Case], pack: Pack) -> Exceptions:
    """The exceptions among `rows` (of `decisions`, newest first); the newest of a decision counts.

    Raises JournalError.
    """
    named: dict[str, Case] = {}
    unresolved: list[tuple[Record, frozenset[str]]] = []
    overturned = 0
    for row in rows:
        if not row["is_exception"]:
            continue
        if row["trace_status"] == "overturned":
            overturned += 1
            continue
        about, reason = _about(reader, row)
        known = [cases[decision_id] for decision_id in about if decision_id in cases]
        if len(known) == 1 and row["decision"] in pack.labels and row["decision"] != known[0].outcome:
            case = replace(known[0], right=row["decision"], reviewed=True, reason=reason)
            named.setdefault(case.decision_id, case)
        elif row["situation"] is not None:
            unresolved.append((row, _features(row)))
    return Exceptions(cases=list(named.values()), unresolved=unresolved, overturned=overturned)


def _about(reader: Reader, row: Record) -> tuple[list[str], str]:
    """The decisions that an exception is about, and its reason: of the report, or of the task's people."""
    trace = reader.trace(row["decision_id"])
    if row["approval_task"] is None:
        return trace["event"]["body"].get("precedents", []), row["reasoning"] or ""
    requests = [request for request in trace["approval_requests"] if request["id"] == row["approval_task"]]
    texts = [request["reason"] for request in requests] + [each["comment"] for each in trace["approvals"]]
    return [request["decision_id"] for request in requests], " ".join(filter(None, texts))


def _features(row: Record) -> frozenset[str]:
    """Type, outcome, plain context values and words of an exception whose facts are not known."""
    situation, features = row["situation"], {f"type={row['decision_type']}", f"outcome={row['decision']}"}
    context = situation.get("context") or {}
    features |= {f"context.{name}={value}" for name, value in context.items() if isinstance(value, Value)}
    text = f"{situation.get('prompt') or ''} {row['reasoning'] or ''}"
    return frozenset(features | set(text.lower().split()))


def by_reason(similar: Sequence[Case]) -> list[list[Case]]:
    """Cases in groups with reasons that are alike, the largest first, each in the order given."""
    stated = [case for case in similar if reason_words(case.reason)]
    words = [reason_words(case.reason) for case in stated]
    groups = [{stated[index].decision_id for index in group} for group in _linked(words)] or [set[str]()]
    groups[0] |= {case.decision_id for case in similar} - {case.decision_id for case in stated}
    return [[case for case in similar if case.decision_id in group] for group in groups]


def _linked(words: Sequence[frozenset[str]]) -> list[list[int]]:
    return similarity.groups(words, REASONS_ALIKE)


def reason_words(reason: str) -> frozenset[str]:
    """The words of a reason that tell it from another one, in lower case."""
    return frozenset(word for word in _WORD.findall(reason.lower()) if len(word) >= _LEAST_CHARS)


# ---------------------------------------------------------------- counter-examples


class CounterExample(Struct, frozen=True, kw_only=True):
    """A decision that is like the cases of a pattern, and that was rightly decided otherwise.

    `similarity` is the share of facts and words that it has in common with the most similar case. `reviewed`:
    a person wanted this outcome. `differs` are the conditions of the pattern that do not hold in it; if there
    are none, no rule on these facts can tell it from the cases.
    """

    decision_id: str
    right: str
    reviewed: bool
    similarity: float
    differs: tuple[str, ...]


#: Cases of a pattern that the others are compared with: each costs a comparison with every decision.
_COMPARED = 50


def nearest(similar: Sequence[Case], others: Sequence[Case], most: int = 2) -> list[tuple[Case, float]]:
    """The `others` that are most like one of the cases, those that people reviewed before equal ones."""
    features = [case_features(case) for case in similar[:_COMPARED]]
    ranked = []
    for case in others:
        own = case_features(case)
        likeness = max(similarity.alike(own, each) for each in features)
        ranked.append((-likeness, not case.reviewed, case.seq, case))
    ranked.sort(key=lambda entry: entry[:3])
    return [(case, -likeness) for likeness, _, _, case in ranked[:most]]


def case_features(case: Case) -> frozenset[str]:
    """The words of a case, and its values that are no fractions."""
    values = case.values.items()
    return case.words | {f"{name}={value}" for name, value in values if value and type(value) is not float}
