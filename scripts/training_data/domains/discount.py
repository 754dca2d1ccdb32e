"""Situations of a sales team, by the clauses of prompts/discount-approval.

Owns their facts, words, reference policy, and pairs that differ in one fact.
Pure, except that the words are read on import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training_data.situations import Chance, Evidence, Finding, Situation, draw_text, strictest, vocabulary

PACK = "discount-approval"
OUTCOMES = ("allow", "require_manager", "require_finance", "deny")
MANAGER, FINANCE, DENY = OUTCOMES[1:]

WORDS, TEXTS = vocabulary(Path(__file__).with_suffix(".yaml"))
#: Texts that change nothing.
NEUTRAL = tuple(kind for kind, (adds, _) in TEXTS.items() if adds is None)
#: Texts that add percents to the total.
COUNTED = ("extras for free", "other rebates", "credits and trade-ins", "costs we carry")
#: Texts that add free months to the total.
MONTHS = ("months for free",)
#: Texts that contradict a written offer of a competitor on file.
UNWRITTEN = ("others' price", "price from the net", "nobody else in the race", "auction screen")
#: Texts that can ask for more.
ASKING = tuple(kind for kind, (adds, _) in TEXTS.items() if adds is not None)
#: The highest total discount that each role may give alone, in percent.
ROLES = {
    "rep": 10.0,
    "sales rep": 10.0,
    "account executive": 10.0,
    "manager": 20.0,
    "sales manager": 20.0,
    "director": 30.0,
    "sales director": 30.0,
}
ACTIONS = ("give_discount", "grant_discount", "approve_quote", "apply_discount", "quote_price", "set_price")
QUOTES = ("Q", "OFF", "AN", "S26", "QT")


@dataclass(frozen=True)
class Facts:
    """The facts behind a situation. Discounts in percent of the list price, `arr` in EUR a year.

    `term` and `fixed` are in months.
    """

    role: str | None
    discount: float | None
    others: tuple[float, ...] = ()
    free_months: int = 0
    credit: float = 0.0
    arr: int | None = 60_000
    term: int | None = 12
    fixed: int | None = None
    payment_days: int | None = 30
    overdue_days: int = 0
    severity: str | None = None
    offer: str | None = None

    @property
    def total(self) -> float:
        """All that the customer saves, in percent of the price of the term."""
        months = 100.0 * self.free_months / self.term if self.term else 0.0
        return round(
            (self.discount if self.discount is not None else -1.0) + sum(self.others) + self.credit + months,
            4,
        )

    @property
    def limit(self) -> float:
        return ROLES.get(self.role or "", 0.0)

    @property
    def complete(self) -> bool:
        return None not in (self.role, self.discount, self.arr, self.term)

    @property
    def severe(self) -> bool:
        return self.severity in ("1", "2", "sev1", "critical")


def reference(facts: Facts) -> list[Finding]:
    """The reference policy: what each clause asks for."""
    findings: list[Finding] = []
    total, some = facts.total, facts.total > 0

    def asks(condition: bool, outcome: str, clause: str, because: str) -> None:
        if condition:
            findings.append(Finding(outcome, clause, because))

    asks(total > 40, DENY, "R3", "Together that is above 40 percent, which nobody may give.")
    asks(
        not facts.complete,
        FINANCE,
        "R13",
        "Role, discount, term or yearly value is missing, so finance decides.",
    )
    asks(total > facts.limit and total > 20, FINANCE, "R2", "Above the own limit and above 20 percent.")
    asks(total > facts.limit, MANAGER, "R2", "Above the seller's own limit.")
    asks((facts.arr or 0) >= 200_000 and some, FINANCE, "R5", "The yearly value is 200,000 or more.")
    asks((facts.fixed or 0) > 36 and some, FINANCE, "R6", "The price would be fixed beyond 36 months.")
    asks(facts.term is not None and facts.term < 12 and some, MANAGER, "R6", "The term is below 12 months.")
    asks(facts.severe and some, MANAGER, "R7", "A severe incident of the customer is open.")
    asks(
        facts.offer == "claimed" and some,
        MANAGER,
        "R9",
        "There is no written offer of the competitor on file.",
    )
    asks((facts.payment_days or 0) > 60, FINANCE, "R11", "Payment is later than 60 days.")
    asks(facts.overdue_days > 0 and some, FINANCE, "R11", "The customer has overdue invoices.")
    return findings


def risk_of(facts: Facts, text: str | None) -> str:
    if facts.total > 40 or text == "beside":
        return "critical"
    missing = None in (facts.discount, facts.arr, facts.term)
    if facts.total > 20 or (facts.arr or 0) >= 200_000 or missing or facts.overdue_days > 0:
        return "high"
    short = facts.term is not None and facts.term < 12
    claimed = facts.offer is not None or text == "rival"
    if facts.total > 10 or facts.total > facts.limit or facts.severe or short or claimed:
        return "medium"
    return "low"


def make(chance: Chance) -> Situation:
    """One situation. In about half of them only the text can ask for more than `allow`."""
    routine = chance.maybe(0.55)
    facts = _routine_facts(chance, within=routine)
    if not routine:
        facts = _with_obstacle(facts, chance)
    evidence, counted = _text(chance, matters=0.7 if routine else 0.3)
    facts = _without_contradiction(facts, evidence)
    return _situation(facts, _evaluation(facts, chance), evidence, counted)


def _routine_facts(chance: Chance, *, within: bool) -> Facts:
    """Facts of a common deal; with `within`, the discount is within the seller's own limit."""
    role = chance.choice(tuple(ROLES))
    limit = ROLES[role]
    share = "within" if within else chance.weighted(within=6, little_above=2, far_above=2, beyond=1)
    whole = {
        "within": chance.randint(1, int(limit)),
        "little_above": limit + chance.randint(1, 6),
        "far_above": chance.randint(21, 40),
        "beyond": chance.randint(41, 70),
    }[share]
    others: tuple[float, ...] = ()
    if whole > 4 and chance.maybe(0.2):  # the same total, in two pieces
        piece = chance.randint(1, int(whole) // 2)
        whole, others = whole - piece, (float(piece),)
    return Facts(
        role=role,
        discount=float(whole),
        others=others,
        arr=chance.randrange(80, 1_990) * 100,
        term=chance.choice((12, 12, 18, 24, 36)),
        payment_days=chance.choice((None, 14, 30, 45, 60)),
        offer=chance.choice((None, None, None, "on file")),
        severity=chance.choice((None, None, "3", "4", "low")),
    )


def _with_obstacle(facts: Facts, chance: Chance) -> Facts:
    """The facts with at most one more circumstance that a clause names."""
    kind = chance.weighted(
        nothing=2, missing=1, large=1, fixed=1, short=1, severe=1, claimed=1, late=1, overdue=1, months=1
    )
    if kind == "missing":
        missing: dict[str, Any] = {chance.choice(("role", "arr", "discount", "term")): None}
        return replace(facts, **missing)
    changes: dict[str, dict[str, Any]] = {
        "nothing": {},
        "large": {"arr": chance.randrange(200, 900) * 1_000},
        "fixed": {"fixed": chance.choice((37, 48, 60))},
        "short": {"term": chance.choice((1, 3, 6, 9, 11))},
        "severe": {"severity": chance.choice(("1", "2", "sev1", "critical"))},
        "claimed": {"offer": "claimed"},
        "late": {"payment_days": chance.choice((61, 75, 90, 120))},
        "overdue": {"overdue_days": chance.randint(1, 90)},
        "months": {"free_months": chance.choice((1, 2, 3))},
    }
    return replace(facts, **changes[kind])


def _text(chance: Chance, *, matters: float) -> tuple[Evidence | None, int]:
    """Free text in 60 % of the draws, and the percents or free months that it adds to the total (0: none).

    The share `matters` of the texts can ask for more.
    """
    if chance.maybe(0.4):
        return None, 0
    kind = chance.choice(ASKING if chance.maybe(matters) else NEUTRAL)
    percents, digit = chance.randint(3, 30), chance.randrange(2, 9)
    evidence = draw_text(
        TEXTS,
        kind,
        chance,
        n=chance.choice(WORDS["contacts"]),
        c=chance.choice(WORDS["customers"]),
        k=str(digit),
        p=str(percents),
    )
    return evidence, percents if kind in COUNTED else digit if kind in MONTHS else 0


def _without_contradiction(facts: Facts, evidence: Evidence | None) -> Facts:
    """The facts without a written offer on file, where the text says that there is none."""
    unwritten = evidence is not None and evidence.kind in UNWRITTEN and facts.offer == "on file"
    return replace(facts, offer=None) if unwritten else facts


def _weigh(evidence: Evidence, counted: int, facts: Facts) -> Evidence:
    """The evidence with the finding that it adds beside these facts."""
    if evidence.kind == "rival" and facts.offer == "on file":
        return replace(evidence, adds=None)  # the written offer is there
    if not counted or evidence.adds is None:
        return evidence
    percents = float(counted)
    if evidence.kind in MONTHS:
        percents = round(100.0 * counted / facts.term, 1) if facts.term else 0.0
    total, limit = facts.total + percents, facts.limit
    if facts.discount is None or total <= limit:
        return replace(evidence, adds=None)
    outcome = DENY if total > 40 else FINANCE if total > 20 else MANAGER
    because = f"With the {percents:g} percent of the text it is {total:g} percent."
    return replace(evidence, adds=Finding(outcome, "R4", because))


def _evaluation(facts: Facts, chance: Chance) -> dict[str, Any]:
    """The facts as an evaluation, without free text."""
    action: dict[str, Any] = {}
    if facts.discount is not None:
        action["discount_percent"] = int(facts.discount) if chance.maybe(0.7) else facts.discount
    if facts.others:
        action["other_discounts"] = list(facts.others)
    if facts.free_months:
        action["free_months"] = facts.free_months
    resource: dict[str, Any] = {}
    for name, value in (
        *(("arr", facts.arr), ("term_months", facts.term), ("price_fixed_months", facts.fixed)),
        ("payment_days", facts.payment_days),
    ):
        if value is not None:
            resource[name] = value
    month, day = chance.randint(1, 12), chance.randint(1, 28)
    time = f"2026-{month:02d}-{day:02d}T{chance.randint(7, 18):02d}:{chance.randrange(60):02d}:00Z"
    context: dict[str, Any] = {"timestamp": time}
    if chance.maybe(0.85):
        context["customer"] = chance.choice(WORDS["customers"])
    if facts.severity is not None:
        incident = {"id": f"INC-{chance.randrange(1000, 9999)}", "severity": facts.severity}
        context["open_incidents"] = [incident]
    elif chance.maybe(0.2):
        context["open_incidents"] = []
    if facts.overdue_days or chance.maybe(0.3):
        context["overdue_days"] = facts.overdue_days
    if facts.offer is not None:
        context["competitor_offer"] = facts.offer
    for place in (action, resource, context):
        if chance.maybe(0.2):
            name = chance.choice(sorted(WORDS["distractors"]))
            place[name] = chance.choice(WORDS["distractors"][name])
    quote = f"{chance.choice(QUOTES)}-{chance.randrange(200, 9999)}"
    properties = {} if facts.role is None else {"role": facts.role}
    return {
        "subject": {"type": "user", "id": chance.choice(WORDS["people"]), "properties": properties},
        "action": {"name": chance.choice(ACTIONS), "properties": chance.reordered(action)},
        "resource": {"type": "quote", "id": quote, "properties": chance.reordered(resource)},
        "context": chance.reordered(context),
    }


def _situation(
    facts: Facts, evaluation: dict[str, Any], evidence: Evidence | None, counted: int
) -> Situation:
    """The situation of these facts and this text, with the label that follows."""
    kind = None
    if evidence is not None:
        evaluation["context"]["details"] = evidence.text
        kind, evidence = evidence.kind, _weigh(evidence, counted, facts)
    good = Finding("allow", "R1", "The total is within the seller's own limit and nothing else is asked for.")
    outcome, clauses, because = strictest(OUTCOMES, reference(facts), good, evidence)
    return Situation(
        pack=PACK,
        evaluation=evaluation,
        outcome=outcome,
        risk=risk_of(facts, kind),
        clauses=clauses,
        reasoning=because,
        template="discount/0",
        evidence=kind or "none",
    )


@dataclass(frozen=True)
class _Contrast:
    """One fact that a pair differs in: the facts of both sides, and the path of the leaf."""

    loose: dict[str, Any]
    strict: dict[str, Any]
    path: tuple[str, ...]
    #: The leaf of the stricter situation, from that of the looser one (None: no leaf).
    value: Callable[[Any], Any]


def _contrasts(chance: Chance) -> dict[str, _Contrast]:
    """The facts that pairs differ in; many values are just over or just under a limit."""
    role = chance.choice(("rep", "sales rep", "account executive"))
    above = chance.choice((10.5, 11, 12, 14))
    lower = chance.choice((*("rep", "sales rep"), *("", "intern", "partner"), None))
    long, short, late = chance.choice((37, 48, 60)), chance.choice((3, 6, 9, 11)), chance.choice((61, 75, 90))
    large, overdue = chance.randrange(2_000, 2_100) * 100, chance.randint(1, 30)
    severity = chance.choice(("1", "2", "sev1", "critical"))
    small, deal, terms = {"discount": 5.0, "others": ()}, ("action", "properties"), ("resource", "properties")
    percent = (*deal, "discount_percent")
    return {
        "above a rep's limit": _Contrast(
            {"role": role, "discount": 10.0, "others": ()},
            {"discount": float(above)},
            percent,
            lambda _: above,
        ),
        "above a manager's limit": _Contrast(
            {"role": "manager", "discount": 20.0, "others": ()}, {"discount": 21.0}, percent, lambda _: 21
        ),
        "above a director's limit": _Contrast(
            {"role": "director", "discount": 30.0, "others": ()}, {"discount": 31.0}, percent, lambda _: 31
        ),
        "above the ceiling": _Contrast(
            {"discount": 40.0, "others": ()}, {"discount": 41.0}, percent, lambda _: 41
        ),
        "discount missing": _Contrast(small, {"discount": None}, percent, lambda _: None),
        "lower role": _Contrast(
            {"role": "manager", "discount": float(chance.randint(11, 20)), "others": ()},
            {"role": lower if lower in ROLES else None},
            ("subject", "properties", "role"),
            lambda _: lower,
        ),
        "more free months": _Contrast(
            {"role": role, "discount": 1.0, "others": (), "term": 12, "free_months": 1},
            {"free_months": 2},
            (*deal, "free_months"),
            lambda _: 2,
        ),
        "another discount": _Contrast(
            {"role": role, "discount": 6.0, "others": (2.0,)},
            {"others": (7.0,)},
            (*deal, "other_discounts"),
            lambda _: [7.0],
        ),
        "large deal": _Contrast(
            {"arr": chance.randrange(1_900, 2_000) * 100}, {"arr": large}, (*terms, "arr"), lambda _: large
        ),
        "arr missing": _Contrast({}, {"arr": None}, (*terms, "arr"), lambda _: None),
        "short term": _Contrast({"term": 12}, {"term": short}, (*terms, "term_months"), lambda _: short),
        "long price": _Contrast(
            {"fixed": chance.choice((12, 24, 36))},
            {"fixed": long},
            (*terms, "price_fixed_months"),
            lambda _: long,
        ),
        "late payment": _Contrast(
            {"payment_days": chance.choice((30, 45, 60))},
            {"payment_days": late},
            (*terms, "payment_days"),
            lambda _: late,
        ),
        "overdue": _Contrast({}, {"overdue_days": overdue}, ("context", "overdue_days"), lambda _: overdue),
        "severe incident": _Contrast(
            {"severity": chance.choice(("3", "4", "low"))},
            {"severity": severity},
            ("context", "open_incidents"),
            lambda incidents: [incidents[0] | {"severity": severity}],
        ),
        "offer only claimed": _Contrast(
            {"offer": "on file"}, {"offer": "claimed"}, ("context", "competitor_offer"), lambda _: "claimed"
        ),
    }


def pairs(chance: Chance) -> Iterator[tuple[str, Situation, Situation]]:
    """For each kind of fact two situations that differ in it alone, the looser one first."""
    contrasts = _contrasts(chance)
    for name in chance.sample(list(contrasts), len(contrasts)):
        contrast = contrasts[name]
        evidence, counted = _text(chance, matters=0.4)
        routine = _routine_facts(chance, within=True)
        facts = _without_contradiction(replace(routine, **contrast.loose), evidence)
        stricter_facts = replace(facts, **contrast.strict)
        evaluation = _evaluation(facts, chance)
        changed = deepcopy(evaluation)
        *folders, leaf = contrast.path
        place = changed
        for folder in folders:
            place = place[folder]
        value = contrast.value(place.get(leaf))
        if value is None:
            del place[leaf]
        else:
            place[leaf] = value
        loose = _situation(facts, evaluation, evidence, counted)
        strict = _situation(stricter_facts, changed, evidence, counted)
        # A text may ask for as much as the fact, or count only beside the leaf that was removed.
        if OUTCOMES.index(loose.outcome) < OUTCOMES.index(strict.outcome):
            yield name, loose, strict
