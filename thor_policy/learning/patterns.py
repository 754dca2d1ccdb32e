"""Patterns: groups of similar corrections and exceptions, and rules that would answer them.

Owns the search for systematic errors. Invariant: a proposed rule passes the pack's lint, its condition holds
in every case behind it, and its effect on past decisions was counted by evaluating it; nothing is put in
force. Read-only on the journal; any thread.

Past decisions are evaluated with rules alone: the model's part is what was recorded. A rule can only tighten,
or answer with the loosest outcome before the model is asked. A pattern that needs anything else is reported
without a proposal, with the reason.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from thor_policy.core.errors import PackError
from thor_policy.journal import statistics
from thor_policy.journal.reader import Reader, Record
from thor_policy.learning import similarity
from thor_policy.learning.cases import MOST_DECISIONS as MOST_DECISIONS
from thor_policy.learning.cases import PLAIN, Case, Value, case_of, newest_rows
from thor_policy.learning.corrections import Rate, is_corrected, rates_of, trend_of
from thor_policy.learning.exceptions import (
    CounterExample,
    Exceptions,
    by_reason,
    case_features,
    gather,
    nearest,
    reason_words,
)
from thor_policy.policy.lint import lint_pack
from thor_policy.policy.pack import Pack
from thor_policy.policy.pack_files import as_yaml
from thor_policy.policy.rule_specs import Rule

#: Least cases of a pattern that is reported, and by default of one that gets a proposed rule.
SHOWN_FROM, PROPOSED_FROM = 3, 15
#: Cases that share at least this part of their facts and words are similar.
ALIKE = 0.5
#: Most conditions of a proposed rule.
MOST_CONDITIONS = 4
#: A proposed rule may change other decisions against their review up to this share of the cases behind it,
#: and other decisions at all up to this share of all others.
FEW_OTHERS = 0.25
#: What a journal cannot show; printed with every result.
CANNOT_SEE = (
    "errors in decisions that nobody reviewed: they count as right",
    "what a model would have answered under a proposed rule: its recorded answer counts",
    "facts of erased cases, and masked values",
    "reasons: what cases have in common need not be why reviewers corrected them",
    "facts of exceptions that name no decision taken here",
)
#: Decisions that the rarity of a condition is measured on.
_SAMPLE = 2_000

Kind = Literal["correction", "exception", "accepted"]
#: Who gave the outcome of the cases, in the reason of a proposed rule.
_WHO: dict[Kind, str] = {
    "correction": "Reviewers answered",
    "exception": "Exceptions were made to",
    "accepted": "People at the agent answered",
}


class Proposal(Struct, frozen=True, kw_only=True):
    """A rule that would have answered these cases, as text for the pack's rules.yaml.

    `changes` counts the past decisions that it would change, by change. Of those, `agree` match their review,
    `against` contradict it, and `unreviewed` have none; `loosened` are allowed now and were not, all others
    got stricter.
    """

    rule: str
    changes: dict[str, int]
    loosened: int
    tightened: int
    agree: int
    against: int
    unreviewed: int
    warnings: tuple[str, ...] = ()


class Pattern(Struct, frozen=True, kw_only=True):
    """Similar cases with the same change.

    `common` are conditions that hold in all of them, the rarest in other decisions first. `reasons` are words
    that every stated reason has. `why_not` says why there is no proposal. `counter_examples` are the nearest
    decisions that the proposed outcome would be wrong for; only a pattern that may get a proposal has them.
    """

    kind: Kind
    change: str
    cases: tuple[str, ...]
    first: str
    last: str
    common: tuple[str, ...]
    proposal: Proposal | None = None
    why_not: str | None = None
    reasons: tuple[str, ...] = ()
    counter_examples: tuple[CounterExample, ...] = ()


class Patterns(Struct, frozen=True, kw_only=True):
    """All patterns in `looked_at` decisions; `complete` is False if older decisions were not read."""

    looked_at: int
    complete: bool
    reviewed: int
    corrected: int
    patterns: tuple[Pattern, ...]
    rates: dict[str, tuple[Rate, ...]]
    trend: tuple[tuple[str, int, int], ...]
    #: Exceptions that are left out: their callers have no role that lets them count.
    claimed: int
    #: Exceptions that are left out because a later decision overturned them.
    overturned: int = 0
    cannot_see: tuple[str, ...] = CANNOT_SEE


def find(
    reader: Reader,
    pack: Pack,
    *,
    since: str | None = None,
    proposed_from: int = PROPOSED_FROM,
    progress: Callable[[int], None] = lambda _: None,
) -> Patterns:
    """Patterns in the decisions since a time (RFC 3339), by the rules of `pack`. Raises JournalError.

    `proposed_from` is the least number of cases that get a proposed rule. `progress` is called with the
    number of decisions evaluated so far.
    """
    rows, lifted, complete = newest_rows(reader, since)
    reviewed = [row for row in rows if row["reviewed"] and row["tier"] in ("model", "cache", "rule")]
    cases: dict[str, Case] = {}
    evaluated = 0
    for row in rows:
        if (case := case_of(reader, row, pack)) is not None:
            cases[case.decision_id] = case
        progress(evaluated := evaluated + 1)
    patterns: list[Pattern] = []
    exceptions = gather(reader, (*rows, *lifted), cases, pack)
    corrections = [case for case in cases.values() if case.reviewed and case.right != case.outcome]
    pairs: tuple[tuple[Kind, list[Case]], ...] = (
        ("correction", corrections),
        ("exception", exceptions.cases),
    )
    for kind, wrong in pairs:
        for similar in _similar(wrong, by_reasons=kind == "exception"):
            patterns.append(_pattern(kind, similar, cases, pack, proposed_from))
            progress(evaluated := evaluated + len(cases) * (len(similar) >= proposed_from))
    patterns += _of_unresolved(exceptions)
    return Patterns(
        looked_at=len(rows),
        complete=complete,
        reviewed=len(reviewed),
        corrected=sum(is_corrected(row) for row in reviewed),
        patterns=tuple(sorted(patterns, key=lambda pattern: (-len(pattern.cases), pattern.cases))),
        rates={
            "actor type": rates_of(
                reviewed, lambda row: [row["actor"].partition(":")[0]] if row["actor"] else []
            ),
            "clause": rates_of(reviewed, lambda row: row["clauses"] or []),
            "model": rates_of(reviewed, lambda row: [row["model_name"]] if row["model_name"] else []),
        },
        trend=trend_of(reviewed),
        claimed=statistics.claims(reader, since=since)["exceptions"],
        overturned=exceptions.overturned,
    )


def of_accepted(
    reader: Reader,
    pack: Pack,
    accepted: Collection[str],
    rows: Sequence[Record],
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[Pattern, ...]:
    """Patterns in decisions that people let pass though the pack did not, among `rows` by the same pack.

    `accepted` are their ids. A proposed rule answers with the loosest outcome, and was evaluated on all rows.
    """
    cases: dict[str, Case] = {}
    for number, row in enumerate(rows, 1):
        if (case := case_of(reader, row, pack)) is not None:
            cases[case.decision_id] = case
        progress(number)
    let_pass = [
        replace(case, right=pack.loosest, reviewed=True)
        for case in cases.values()
        if case.decision_id in accepted and not (case.reviewed and case.right != pack.loosest)
    ]
    similar = [
        _pattern("accepted", group, cases, pack, PROPOSED_FROM)
        for group in _similar(let_pass, by_reasons=False)
    ]
    return tuple(sorted(similar, key=lambda pattern: (-len(pattern.cases), pattern.cases)))


# ---------------------------------------------------------------- patterns


def _of_unresolved(exceptions: Exceptions) -> list[Pattern]:
    """Patterns of the exceptions whose facts are not known, by their words."""
    patterns, unresolved = [], exceptions.unresolved
    for group in similarity.groups([features for _, features in unresolved], ALIKE):
        if len(group) < SHOWN_FROM:
            continue
        common = frozenset.intersection(*(unresolved[index][1] for index in group))
        of_group = sorted((unresolved[index][0] for index in group), key=lambda row: row["seq"])
        outcomes = sorted({unresolved[index][0]["decision"] for index in group})
        patterns.append(
            Pattern(
                kind="exception",
                change=" or ".join(outcomes),
                cases=tuple(row["decision_id"] for row in of_group),
                first=of_group[0]["timestamp"],
                last=of_group[-1]["timestamp"],
                common=tuple(sorted(common)),
                why_not="none names exactly one decision taken here that it changes, so no facts are known",
            )
        )
    return patterns


def _similar(wrong: Sequence[Case], *, by_reasons: bool) -> Iterable[list[Case]]:
    """Groups of cases with the same change and similar facts and words, the largest of a change first."""
    by_change: defaultdict[tuple[str, str], list[Case]] = defaultdict(list)
    for case in sorted(wrong, key=lambda case: case.seq):
        by_change[case.outcome, case.right].append(case)
    for changed in by_change.values():
        for group in similarity.groups([case_features(case) for case in changed], ALIKE):
            alike = [changed[index] for index in group]
            for similar in by_reason(alike) if by_reasons else [alike]:
                if len(similar) >= SHOWN_FROM:
                    yield similar


def _pattern(
    kind: Kind, similar: Sequence[Case], cases: Mapping[str, Case], pack: Pack, proposed_from: int
) -> Pattern:
    """The pattern of these cases, with a proposed rule from `proposed_from` cases on."""
    conditions = _conditions(similar)
    proposal: Proposal | None = None
    why_not: str | None = f"a rule is proposed from {proposed_from} cases on"
    counter_examples: tuple[CounterExample, ...] = ()
    if len(similar) >= proposed_from:
        others = _others(similar, cases, pack)
        proposal, why_not = _proposal(kind, similar, conditions, others, cases, pack)
        counter_examples = tuple(
            CounterExample(
                decision_id=case.decision_id,
                right=case.right,
                reviewed=case.reviewed,
                similarity=round(likeness, 3),
                differs=tuple(condition.text for condition in conditions if not condition.holds(case)),
            )
            for case, likeness in nearest(similar, others)
        )
    sample = list(islice(cases.values(), _SAMPLE))
    conditions.sort(key=lambda condition: (sum(map(condition.holds, sample)), condition.text))
    stated = [words for case in similar if (words := reason_words(case.reason))]
    return Pattern(
        kind=kind,
        change=f"{similar[0].outcome} -> {similar[0].right}",
        cases=tuple(case.decision_id for case in similar),
        first=similar[0].at,
        last=similar[-1].at,
        common=tuple(condition.text for condition in conditions),
        proposal=proposal,
        why_not=why_not,
        reasons=tuple(sorted(frozenset.intersection(*stated))) if stated else (),
        counter_examples=counter_examples,
    )


def _others(similar: Sequence[Case], cases: Mapping[str, Case], pack: Pack) -> list[Case]:
    """The other decisions that the outcome of these cases would be wrong for."""
    behind, wanted = {case.decision_id for case in similar}, similar[0].right
    tightens = pack.book.stricter(similar[0].outcome, wanted) == wanted

    def would_change(case: Case) -> bool:
        return (pack.book.stricter(case.right, wanted) if tightens else wanted) != case.right

    return [case for case in cases.values() if case.decision_id not in behind and would_change(case)]


class _Condition(Struct, frozen=True, kw_only=True):
    """A condition in CEL (`text`) on one expression: its value is `equal`, or lies from `low` to `high`."""

    text: str
    expression: str
    equal: Value | None = None
    low: float = -math.inf
    high: float = math.inf

    def holds(self, case: Case) -> bool:
        value = case.values.get(self.expression)
        if self.equal is not None:
            return type(value) is type(self.equal) and value == self.equal
        return isinstance(value, int | float) and self.low <= value <= self.high


def _conditions(similar: Sequence[Case]) -> list[_Condition]:
    """Every condition in CEL that holds in all of these cases."""
    conditions: list[_Condition] = []
    for expression in similar[0].values:
        values = [case.values.get(expression) for case in similar]
        kinds = {type(value) for value in values}
        if kinds <= {bool} and len(set(values)) == 1:
            sign = "" if values[0] else "!"
            conditions.append(_Condition(text=f"{sign}{expression}", expression=expression, equal=values[0]))
        elif kinds == {str} and len(set(values)) == 1 and PLAIN.fullmatch(str(values[0])):
            text = f"{expression} == {json.dumps(values[0])}"
            conditions.append(_Condition(text=text, expression=expression, equal=values[0]))
        elif kinds == {int} or kinds == {float}:
            numbers = [value for value in values if isinstance(value, int | float)]
            whole = kinds == {int}
            low, high = min(numbers), max(numbers)
            if not whole:  # two decimals, rounded outwards: bounds that a person could have written
                low, high = math.floor(low * 100) / 100, math.ceil(high * 100) / 100
            conditions.append(_Condition(text=f"{expression} >= {low}", expression=expression, low=low))
            conditions.append(_Condition(text=f"{expression} <= {high}", expression=expression, high=high))
    return conditions


def _proposal(
    kind: Kind,
    similar: Sequence[Case],
    conditions: Sequence[_Condition],
    others: Sequence[Case],
    cases: Mapping[str, Case],
    pack: Pack,
) -> tuple[Proposal | None, str | None]:
    """A rule for these cases and its effect; or None and the reason."""
    right = similar[0].right
    tightens = pack.book.stricter(similar[0].outcome, right) == right
    if not tightens and right != pack.loosest:
        return None, f"no rule can loosen an answer to {right}: rules set a floor, or answer {pack.loosest}"
    if not tightens and (stricter := Counter(name for case in similar for name in case.floor.rules)):
        names = ", ".join(f"{name} in {count}" for name, count in stricter.most_common(3))
        return None, f"rules demand more ({names}): change those"
    if tightens and all(
        pack.book.stricter(case.floor.outcome, right) == case.floor.outcome for case in similar
    ):
        return None, "the rules of today demand it already"
    if not others:
        return None, "there are no other decisions to distinguish these cases from"
    chosen, against, left = _distinguishing(conditions, others, most=int(FEW_OTHERS * len(others)))
    if against > FEW_OTHERS * len(similar) or left > FEW_OTHERS * len(others):
        return None, (
            f"what they have in common also fits {left} of {len(others)} other decisions; {against} of "
            "which reviewers wanted otherwise"
        )
    when = " && ".join(condition.text for condition in chosen)
    rule = Rule(
        id=f"proposed-{hashlib.sha256(f'{when} {right}'.encode()).hexdigest()[:8]}",
        when=when,
        outcome=right,
        because=f"{_WHO[kind]} {right} in {len(similar)} cases of this kind.",
        clause=_clause(similar, pack),
        final=not tightens,
    )
    return _with_effect(rule, {**cases, **{case.decision_id: case for case in similar}}, pack)


def _distinguishing(
    conditions: Sequence[_Condition], others: Sequence[Case], *, most: int
) -> tuple[list[_Condition], int, int]:
    """Few conditions that hold in few `others`; how many reviewed others still fit, and how many others.

    Each step adds the condition that fits the fewest reviewed others, then the fewest others. It ends when no
    reviewed other fits and at most `most` others do.
    """
    chosen: list[_Condition] = []
    left, against = list(others), sum(case.reviewed for case in others)
    while (against or len(left) > most) and len(chosen) < MOST_CONDITIONS:
        ranked = []
        for condition in conditions:
            fits = [case.reviewed for case in left if condition.holds(case)]
            ranked.append((sum(fits), len(fits), len(condition.text), condition.text, condition))
        best = min(ranked, key=lambda entry: entry[:4], default=None)
        if best is None or best[:2] == (against, len(left)):
            break
        chosen.append(best[4])
        against, left = best[0], [case for case in left if best[4].holds(case)]
    return chosen, against, len(left)


def _clause(similar: Sequence[Case], pack: Pack) -> str | None:
    """The clause that most reviewers name; else the clause that most of the decisions cite."""
    named = Counter(
        clause
        for clause in pack.clauses
        for case in similar
        if re.search(rf"\b{re.escape(clause)}\b", case.reason)
    )
    cited = Counter(clause for case in similar for clause in case.clauses if clause in pack.clauses)
    most = (named or cited).most_common(1)
    return most[0][0] if most else None


def _with_effect(rule: Rule, cases: Mapping[str, Case], pack: Pack) -> tuple[Proposal | None, str | None]:
    """The rule and its effect on `cases`; or None and the reason why the pack cannot take it."""
    try:
        revised = pack.revised(rules=(*pack.book.rules, rule))
    except PackError as error:
        return None, f"the rule that fits cannot be used: {error}"
    known = {(finding.where, finding.message) for finding in lint_pack(pack)}
    new = [finding for finding in lint_pack(revised) if (finding.where, finding.message) not in known]
    if error_found := next((finding for finding in new if finding.level == "error"), None):
        return (
            None,
            f"lint refuses the rule that fits, {rule.when}: {error_found.where}: {error_found.message}",
        )
    changes: Counter[str] = Counter()
    loosened = 0
    verdicts: Counter[str] = Counter()
    for case in cases.values():
        received_at = datetime.fromisoformat(case.at).timestamp()
        floor = revised.book.apply(
            case.evaluation, received_at, sources=case.sources, precedents=case.precedents
        )
        if rule.id not in floor.rules:
            continue
        after = pack.book.stricter(case.outcome, rule.outcome) if not rule.final else rule.outcome
        if after != case.outcome and (not rule.final or floor.final):
            changes[f"{case.outcome} -> {after}"] += 1
            loosened += pack.book.stricter(case.outcome, after) == case.outcome
            verdicts["agree" if after == case.right else "against" if case.reviewed else "unreviewed"] += 1
    if not changes:
        return (
            None,
            f"the rule that fits, {rule.when}, would change nothing: facts or rules fail on the cases",
        )
    return Proposal(
        rule=as_yaml([rule]),
        changes=dict(changes.most_common()),
        loosened=loosened,
        tightened=changes.total() - loosened,
        agree=verdicts["agree"],
        against=verdicts["against"],
        unreviewed=verdicts["unreviewed"],
        warnings=tuple(f"{finding.where}: {finding.message}" for finding in new),
    ), None
