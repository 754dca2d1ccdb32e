"""Situations of a sales team, by the clauses of prompts/discount-approval.

Owns their facts, words and reference policy. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from situations import Chance, Finding, Situation, judged, said, words

PACK = "discount-approval"
OUTCOMES = ("allow", "require_manager", "require_finance", "deny")
MANAGER, FINANCE, DENY = OUTCOMES[1:]

WORDS, TEXTS = words("discount")
#: What each role may give alone, in percent.
ROLES = {"rep": 10.0, "account executive": 10.0, "manager": 20.0, "sales manager": 20.0, "director": 30.0}
ACTIONS = ("give_discount", "grant_discount", "approve_quote", "apply_discount", "quote_price")


@dataclass(frozen=True)
class Facts:
    """What is so, before it is written down. Percents of the list price; `arr` in EUR a year."""

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
    """What the clauses ask for, read one by one."""
    found: list[Finding] = []
    total, some = facts.total, facts.total > 0

    def asks(condition: bool, outcome: str, clause: str, because: str) -> None:
        if condition:
            found.append(Finding(outcome, clause, because))

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
    return found


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
    """One situation; in about half of them only the text could stand in the way."""
    role = chance.choice(tuple(ROLES))
    plain = chance.maybe(0.55)
    limit = ROLES[role]
    share = chance.weighted(
        within=6, little_above=0 if plain else 2, far_above=0 if plain else 2, beyond=0 if plain else 1
    )
    whole = {
        "within": chance.randint(1, int(min(limit, 20))),
        "little_above": limit + chance.randint(1, 6),
        "far_above": chance.randint(21, 40),
        "beyond": chance.randint(41, 70),
    }[share]
    others: tuple[float, ...] = ()
    if whole > 4 and chance.maybe(0.2):  # the same, in two pieces
        piece = chance.randint(1, int(whole) // 2)
        whole, others = whole - piece, (float(piece),)
    facts = Facts(
        role=role,
        discount=float(whole),
        others=others,
        arr=chance.randrange(8, 190) * 1_000,
        term=chance.choice((12, 24, 36)),
        payment_days=chance.choice((14, 30, 45, 60)),
        offer=chance.choice((None, None, None, "on file")),
        severity=chance.choice((None, None, "3", "4")),
    )
    if not plain:
        facts = _hardened(facts, chance)
    text = chance.choice(tuple(TEXTS)) if chance.maybe(0.75) else None
    return written(facts, chance, text)


def _hardened(facts: Facts, chance: Chance) -> Facts:
    """With perhaps one more circumstance that a clause names."""
    kind = chance.weighted(
        nothing=2, missing=1, large=1, fixed=1, short=1, severe=1, claimed=1, late=1, overdue=1, months=1
    )
    if kind == "missing":
        return replace(facts, **chance.choice(({"role": None}, {"arr": None}, {"discount": None})))
    changes: dict[str, dict[str, Any]] = {
        "nothing": {},
        "large": {"arr": chance.randrange(200, 900) * 1_000},
        "fixed": {"fixed": chance.choice((48, 60))},
        "short": {"term": chance.choice((3, 6, 9))},
        "severe": {"severity": chance.choice(("1", "2", "sev1", "critical"))},
        "claimed": {"offer": "claimed"},
        "late": {"payment_days": chance.choice((75, 90, 120))},
        "overdue": {"overdue_days": chance.randint(3, 90)},
        "months": {"free_months": chance.choice((1, 2, 3))},
    }
    return replace(facts, **changes[kind])


def written(facts: Facts, chance: Chance, text: str | None) -> Situation:
    """The facts in words, with a text of the kind `text`."""
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
    month, day = chance.choice((1, 2, 4, 5, 7, 8, 10, 11)), chance.randint(1, 28)
    time = f"2026-{month:02d}-{day:02d}T{chance.randint(7, 18):02d}:{chance.randrange(60):02d}:00Z"
    context: dict[str, Any] = {"customer": chance.choice(WORDS["customers"]), "timestamp": time}
    if facts.severity is not None:
        context["open_incidents"] = [
            {"id": f"INC-{chance.randrange(1000, 9999)}", "severity": facts.severity}
        ]
    if facts.overdue_days or chance.maybe(0.3):
        context["overdue_days"] = facts.overdue_days
    if facts.offer is not None:
        context["competitor_offer"] = facts.offer
    evidence = None
    if text is not None:
        evidence = said(TEXTS, text, chance, n=chance.choice(WORDS["contacts"]))
        if text == "rival" and facts.offer == "on file":
            evidence = replace(evidence, adds=None)  # the written offer is there
        context["details"] = evidence.text
    properties = {} if facts.role is None else {"role": facts.role}
    good = Finding("allow", "R1", "The total is within the seller's own limit and nothing else is asked for.")
    outcome, clauses, because = judged(OUTCOMES, reference(facts), good, evidence)
    return Situation(
        pack=PACK,
        evaluation={
            "subject": {"type": "user", "id": chance.choice(WORDS["people"]), "properties": properties},
            "action": {"name": chance.choice(ACTIONS), "properties": action},
            "resource": {"type": "quote", "id": f"Q-{chance.randrange(2000, 9999)}", "properties": resource},
            "context": context,
        },
        outcome=outcome,
        risk=risk_of(facts, text),
        clauses=clauses,
        reasoning=because,
        template="discount/0",
        evidence=text or "none",
    )
