"""Patterns: what corrections and exceptions have in common, and rules that would settle them.

Owns the search for systematic errors. Invariant: a proposed rule is one that the pack's lint takes, whose
condition holds in every case behind it, and whose effect on past decisions was counted by evaluating it;
nothing is put in force. Read-only on the journal; any thread.

Past decisions are weighed with rules alone: the model's part is what was recorded then. A rule can only
tighten, or answer with the loosest outcome before the model is asked; what needs anything else is told as
a pattern without a proposal, with the reason.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from thor_policy.core.decisions import Floor
from thor_policy.core.errors import PackError
from thor_policy.core.requests import Evaluation, Json
from thor_policy.journal.reader import Reader, Record
from thor_policy.learning import similarity
from thor_policy.learning.corrections import Rate, is_corrected, rates_of, trend_of
from thor_policy.policy.lint import lint_pack
from thor_policy.policy.pack import Pack
from thor_policy.policy.pack_files import as_yaml
from thor_policy.policy.rules import Rule

#: Decisions looked at, the newest ones: each costs an evaluation of all rules.
MOST_DECISIONS = 20_000
#: Cases from which on a pattern is shown, and from which on a rule is proposed.
SHOWN_FROM, PROPOSED_FROM = 3, 15
#: Cases that have so much of their facts and words in common are of one kind.
ALIKE = 0.5
#: Conditions that a proposed rule has at most.
MOST_CONDITIONS = 4
#: Decisions that reviewers wanted otherwise and that a proposed rule may change, as a share of the cases
#: behind it; and other decisions that it may change, as a share of all others.
FEW_OTHERS = 0.25
#: What nobody can see in a journal, told with every result.
CANNOT_SEE = (
    "decisions that nobody reviewed: they count as right",
    "what a model would have answered under a proposed rule: its part is what was recorded",
    "facts of cases that were erased, and values that were masked",
    "why: what cases have in common need not be the reason that reviewers had",
    "facts of exceptions that name no decision taken here",
)
#: Texts that a condition may quote.
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.:/@+-]{0,39}")
#: An expression that takes the time of receipt.
_CLOCK = re.compile(r"\bnow\b")
_PAGE = 1_000
#: Decisions that say how rare a condition is.
_SAMPLE = 2_000

Kind = Literal["correction", "exception"]
Value: TypeAlias = bool | int | float | str


class Case(Struct, frozen=True, kw_only=True):
    """A decision as patterns see it.

    `outcome` is what was decided, `right` what it should have been as far as anybody said. `values` are the
    facts and plain parts of the request, by the CEL expression that gives them.
    """

    decision_id: str
    at: str
    outcome: str
    right: str
    reviewed: bool
    evaluation: Evaluation
    floor: Floor
    values: dict[str, Value]
    words: frozenset[str]
    clauses: tuple[str, ...] = ()
    reason: str = ""


class Proposal(Struct, frozen=True, kw_only=True):
    """A rule that would have answered these cases, as the pack's rules.yaml has it.

    `changes` counts past decisions that it would change, by direction; `agree` of them reviewers wanted so,
    `against` they wanted otherwise, and the rest nobody looked at.
    """

    rule: str
    changes: dict[str, int]
    agree: int
    against: int
    unreviewed: int
    warnings: tuple[str, ...] = ()


class Pattern(Struct, frozen=True, kw_only=True):
    """Cases of one kind. `common` holds in all of them, what is rare elsewhere first; `why_not` says
    why there is no proposal.
    """

    kind: Kind
    change: str
    cases: tuple[str, ...]
    first: str
    last: str
    common: tuple[str, ...]
    proposal: Proposal | None = None
    why_not: str | None = None


class Found(Struct, frozen=True, kw_only=True):
    """All that was found in `looked_at` decisions; `complete` is False where older ones were left aside."""

    looked_at: int
    complete: bool
    reviewed: int
    corrected: int
    patterns: tuple[Pattern, ...]
    rates: dict[str, tuple[Rate, ...]]
    trend: tuple[tuple[str, int, int], ...]
    cannot_see: tuple[str, ...] = CANNOT_SEE


def find(
    reader: Reader,
    pack: Pack,
    *,
    since: str | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Found:
    """Patterns in the decisions since a time, weighed by `pack`. Raises JournalError.

    `progress` hears how many decisions were weighed so far.
    """
    rows, complete = _rows(reader, since)
    reviewed = [row for row in rows if row["reviewed"] and row["tier"] in ("model", "cache", "rule")]
    cases: dict[str, Case] = {}
    weighed = 0
    for row in rows:
        if (case := _case(row, pack)) is not None:
            cases[case.decision_id] = case
        progress(weighed := weighed + 1)
    patterns: list[Pattern] = []
    exceptions, strange = _exceptions(reader, rows, cases, pack)
    corrections = [case for case in cases.values() if case.reviewed and case.right != case.outcome]
    pairs: tuple[tuple[Kind, list[Case]], ...] = (("correction", corrections), ("exception", exceptions))
    for kind, wrong in pairs:
        for alike in _alike(wrong):
            patterns.append(_pattern(kind, alike, cases, pack))
            progress(weighed := weighed + len(cases) * (len(alike) >= PROPOSED_FROM))
    return Found(
        looked_at=len(rows),
        complete=complete,
        reviewed=len(reviewed),
        corrected=sum(is_corrected(row) for row in reviewed),
        patterns=tuple(sorted((*patterns, *strange), key=lambda one: (-len(one.cases), one.cases))),
        rates={
            "actor type": rates_of(
                reviewed, lambda row: [row["actor"].partition(":")[0]] if row["actor"] else []
            ),
            "clause": rates_of(reviewed, lambda row: row["clauses"] or []),
            "model": rates_of(reviewed, lambda row: [row["model_name"]] if row["model_name"] else []),
        },
        trend=trend_of(reviewed),
    )


# ---------------------------------------------------------------- reading


def _rows(reader: Reader, since: str | None) -> tuple[list[Record], bool]:
    """The newest decisions, and whether these are all."""
    rows: list[Record] = []
    before = None
    while len(rows) < MOST_DECISIONS:
        page = reader.decisions(limit=_PAGE, before=before, since=since)
        rows += page
        if len(page) < _PAGE:
            return rows, True
        before = page[-1]["decision_id"]
    return rows, False


def _case(row: Record, pack: Pack) -> Case | None:
    """A decision that this pack took here and that is not erased; None for any other.

    An outcome that the pack does not have any more, or never had, cannot be weighed against others.
    """
    ours = (row["prompt_version"] or "").startswith(f"{pack.info.name}@")
    right = row["review_decision"] if is_corrected(row) else row["decision"]
    if not ours or row["situation"] is None or row["tier"] not in ("model", "cache", "rule"):
        return None
    if not {row["decision"], right} <= set(pack.labels):
        return None
    evaluation = msgspec.convert(row["situation"], Evaluation)
    floor = pack.book.apply(evaluation, datetime.fromisoformat(row["timestamp"]).timestamp())
    values, words = _seen(evaluation, floor, pack)
    return Case(
        decision_id=row["decision_id"],
        at=row["timestamp"],
        outcome=row["decision"],
        right=right,
        reviewed=bool(row["reviewed"]),
        evaluation=evaluation,
        floor=floor,
        values=values,
        words=words,
        clauses=tuple(row["clauses"] or ()),
        reason=row["review_reasoning"] or "",
    )


def _seen(evaluation: Evaluation, floor: Floor, pack: Pack) -> tuple[dict[str, Value], frozenset[str]]:
    """Facts and plain values by their CEL expression, and the words of longer texts.

    Who asked is no value: a rule about one person is not what cases of many have in common. Nor is a number
    made of the clock, which grows whatever is asked.
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
        if _PLAIN.fullmatch(value):
            values[f'given("{field.value}", "")'] = value
        words.update(value.lower().split())
    return values, frozenset(words)


def _exceptions(
    reader: Reader, rows: Sequence[Record], cases: Mapping[str, Case], pack: Pack
) -> tuple[list[Case], list[Pattern]]:
    """Exceptions that name a decision taken here, as cases of it; the rest as patterns of their words."""
    named: dict[str, Case] = {}
    strange: list[tuple[Record, frozenset[str]]] = []
    for row in rows:
        if not row["is_exception"]:
            continue
        told = reader.trace(row["decision_id"])["event"]["body"].get("precedents", [])
        about = [cases[one] for one in told if one in cases]
        if len(about) == 1 and row["decision"] in pack.labels and row["decision"] != about[0].outcome:
            named[about[0].decision_id] = replace(about[0], right=row["decision"], reviewed=True)
        elif row["situation"] is not None:
            strange.append((row, _features_of_report(row)))
    patterns = []
    for group in similarity.groups([features for _, features in strange], ALIKE):
        if len(group) < SHOWN_FROM:
            continue
        common = frozenset.intersection(*(strange[index][1] for index in group))
        times = sorted(strange[index][0]["timestamp"] for index in group)
        outcomes = sorted({strange[index][0]["decision"] for index in group})
        patterns.append(
            Pattern(
                kind="exception",
                change=" or ".join(outcomes),
                cases=tuple(sorted(strange[index][0]["decision_id"] for index in group)),
                first=times[0],
                last=times[-1],
                common=tuple(sorted(common)),
                why_not="they name no single decision taken here that they change, so no facts are known",
            )
        )
    return list(named.values()), patterns


def _features_of_report(row: Record) -> frozenset[str]:
    """What a reported exception says of itself: its type, its plain context, and words."""
    situation, features = row["situation"], {f"type={row['decision_type']}", f"outcome={row['decision']}"}
    context = situation.get("context") or {}
    features |= {f"context.{name}={value}" for name, value in context.items() if isinstance(value, Value)}
    text = f"{situation.get('prompt') or ''} {row['reasoning'] or ''}"
    return frozenset(features | set(text.lower().split()))


# ---------------------------------------------------------------- patterns


def _alike(wrong: Sequence[Case]) -> Iterable[list[Case]]:
    """Cases that were changed alike and have facts and words in common, many together first."""
    by_change: defaultdict[tuple[str, str], list[Case]] = defaultdict(list)
    for case in sorted(wrong, key=lambda case: case.decision_id):
        by_change[case.outcome, case.right].append(case)
    for changed in by_change.values():
        features = [
            case.words
            | {f"{name}={value}" for name, value in case.values.items() if value and type(value) is not float}
            for case in changed
        ]
        for group in similarity.groups(features, ALIKE):
            if len(group) >= SHOWN_FROM:
                yield [changed[index] for index in group]


def _pattern(kind: Kind, alike: Sequence[Case], cases: Mapping[str, Case], pack: Pack) -> Pattern:
    conditions = _conditions(alike)
    proposal: Proposal | None = None
    why_not: str | None = f"a rule is proposed from {PROPOSED_FROM} cases on"
    if len(alike) >= PROPOSED_FROM:
        proposal, why_not = _proposal(alike, conditions, cases, pack)
    times, sample = sorted(case.at for case in alike), list(islice(cases.values(), _SAMPLE))
    conditions.sort(key=lambda one: (sum(map(one.holds, sample)), one.text))
    return Pattern(
        kind=kind,
        change=f"{alike[0].outcome} -> {alike[0].right}",
        cases=tuple(case.decision_id for case in alike),
        first=times[0],
        last=times[-1],
        common=tuple(condition.text for condition in conditions),
        proposal=proposal,
        why_not=why_not,
    )


class _Condition(Struct, frozen=True, kw_only=True):
    """`text` in CEL; `low` and `high` bound a number, otherwise the value is `equal`."""

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


def _conditions(alike: Sequence[Case]) -> list[_Condition]:
    """Everything that holds in all of these cases and can be said in CEL."""
    found: list[_Condition] = []
    for expression in alike[0].values:
        values = [case.values.get(expression) for case in alike]
        kinds = {type(value) for value in values}
        if kinds <= {bool} and len(set(values)) == 1:
            sign = "" if values[0] else "!"
            found.append(_Condition(text=f"{sign}{expression}", expression=expression, equal=values[0]))
        elif kinds == {str} and len(set(values)) == 1 and _PLAIN.fullmatch(str(values[0])):
            text = f"{expression} == {json.dumps(values[0])}"
            found.append(_Condition(text=text, expression=expression, equal=values[0]))
        elif kinds == {int} or kinds == {float}:
            numbers = [value for value in values if isinstance(value, int | float)]
            whole = kinds == {int}
            low, high = min(numbers), max(numbers)
            if not whole:  # bounds that look like somebody's choice, and still hold
                low, high = math.floor(low * 100) / 100, math.ceil(high * 100) / 100
            found.append(_Condition(text=f"{expression} >= {low}", expression=expression, low=low))
            found.append(_Condition(text=f"{expression} <= {high}", expression=expression, high=high))
    return found


def _proposal(
    alike: Sequence[Case], conditions: Sequence[_Condition], cases: Mapping[str, Case], pack: Pack
) -> tuple[Proposal | None, str | None]:
    """A rule for these cases with what it would change; else why there is none."""
    right = alike[0].right
    tightens = pack.book.stricter(alike[0].outcome, right) == right
    if not tightens and right != pack.loosest:
        return None, f"no rule can loosen an answer to {right}: rules set a floor, or answer {pack.loosest}"
    if not tightens and (in_the_way := Counter(name for case in alike for name in case.floor.rules)):
        told = ", ".join(f"{name} in {count}" for name, count in in_the_way.most_common(3))
        return None, f"rules demand more ({told}): change those"
    if tightens and all(
        pack.book.stricter(case.floor.outcome, right) == case.floor.outcome for case in alike
    ):
        return None, "the rules of today say so already"
    behind = {case.decision_id for case in alike}

    def would_change(case: Case) -> bool:
        return (pack.book.stricter(case.right, right) if tightens else right) != case.right

    others = [case for case in cases.values() if case.decision_id not in behind and would_change(case)]
    if not others:
        return None, "there are no other decisions to tell these cases from"
    chosen, against, left = _told_apart(conditions, others, most=int(FEW_OTHERS * len(others)))
    if against > FEW_OTHERS * len(alike) or left > FEW_OTHERS * len(others):
        return None, (
            f"what they have in common fits {left} of {len(others)} other decisions too, {against} of which "
            "reviewers wanted otherwise"
        )
    when = " && ".join(condition.text for condition in chosen)
    rule = Rule(
        id=f"proposed-{hashlib.sha256(f'{when} {right}'.encode()).hexdigest()[:8]}",
        when=when,
        outcome=right,
        because=f"Reviewers answered {right} in {len(alike)} cases of this kind.",
        clause=_clause(alike, pack),
        final=not tightens,
    )
    return _weighed(rule, {**cases, **{case.decision_id: case for case in alike}}, pack)


def _told_apart(
    conditions: Sequence[_Condition], others: Sequence[Case], *, most: int
) -> tuple[list[_Condition], int, int]:
    """Few conditions that hold in few others; how many of them reviewers saw, and how many there are.

    First goes what tells the cases from decisions that reviewers wanted otherwise. Conditions are added until
    there is none of those, and no more than `most` others.
    """
    chosen: list[_Condition] = []
    left, against = list(others), sum(case.reviewed for case in others)
    while (against or len(left) > most) and len(chosen) < MOST_CONDITIONS:
        ranked = []
        for one in conditions:
            fits = [case.reviewed for case in left if one.holds(case)]
            ranked.append((sum(fits), len(fits), len(one.text), one.text, one))
        best = min(ranked, key=lambda entry: entry[:4], default=None)
        if best is None or best[:2] == (against, len(left)):
            break
        chosen.append(best[4])
        against, left = best[0], [case for case in left if best[4].holds(case)]
    return chosen, against, len(left)


def _clause(alike: Sequence[Case], pack: Pack) -> str | None:
    """The clause that most reviewers name; else the one that most of the decisions cite."""
    named = Counter(
        clause
        for clause in pack.clauses
        for case in alike
        if re.search(rf"\b{re.escape(clause)}\b", case.reason)
    )
    cited = Counter(clause for case in alike for clause in case.clauses if clause in pack.clauses)
    most = (named or cited).most_common(1)
    return most[0][0] if most else None


def _weighed(rule: Rule, cases: Mapping[str, Case], pack: Pack) -> tuple[Proposal | None, str | None]:
    """The rule with what it would have changed, if the pack can take it."""
    try:
        revised = pack.revised(rules=(*pack.book.rules, rule))
    except PackError as error:
        return None, f"the rule that fits cannot be used: {error}"
    known = {(one.where, one.message) for one in lint_pack(pack)}
    new = [one for one in lint_pack(revised) if (one.where, one.message) not in known]
    if refused := next((one for one in new if one.level == "error"), None):
        return (
            None,
            f"the rule that fits, {rule.when}, is against the pack: {refused.where}: {refused.message}",
        )
    changes: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    for case in cases.values():
        received_at = datetime.fromisoformat(case.at).timestamp()
        floor = revised.book.apply(case.evaluation, received_at)
        if rule.id not in floor.rules:
            continue
        after = pack.book.stricter(case.outcome, rule.outcome) if not rule.final else rule.outcome
        if after != case.outcome and (not rule.final or floor.final):
            changes[f"{case.outcome} -> {after}"] += 1
            verdicts["agree" if after == case.right else "against" if case.reviewed else "unreviewed"] += 1
    if not changes:
        return (
            None,
            f"the rule that fits, {rule.when}, would change nothing: facts or rules fail on the cases",
        )
    return Proposal(
        rule=as_yaml([rule]),
        changes=dict(changes.most_common()),
        agree=verdicts["agree"],
        against=verdicts["against"],
        unreviewed=verdicts["unreviewed"],
        warnings=tuple(f"{one.where}: {one.message}" for one in new),
    ), None
