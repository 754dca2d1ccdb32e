"""Situations of accounts payable, by the clauses of prompts/invoice-exception.

Owns their facts, words and reference policy. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from situations import Chance, Finding, Situation, judged, said, words

PACK = "invoice-exception"
OUTCOMES = ("allow", "require_second_approval", "hold", "deny")
SECOND, HOLD, DENY = OUTCOMES[1:]
WORDS, TEXTS = words("invoice")


@dataclass(frozen=True)
class Facts:
    """What is so, before it is written down. Amounts in the currency of the invoice."""

    amount: float | None
    ordered: float | None
    contract: bool = False
    receipt: str | None = "full"
    earlier: str = "others"  # none, others, twin, same, unknown
    bank: str = "same"  # changed, confirmed
    others: float = 0.0
    own: bool = False
    other_payee: bool = False
    other_currency: bool = False
    sums_wrong: bool = False

    @property
    def above(self) -> float:
        return round(self.amount - self.ordered, 2) if self.ordered and self.amount else 0.0

    @property
    def above_percent(self) -> float:
        return 100 * self.above / self.ordered if self.ordered else 0.0


def reference(facts: Facts) -> list[Finding]:
    """What the clauses ask for, read one by one."""
    found: list[Finding] = []
    amount = facts.amount or 0.0
    free = facts.ordered is None and not facts.contract

    def asks(condition: bool, outcome: str, clause: str, because: str) -> None:
        if condition:
            found.append(Finding(outcome, clause, because))

    asks(facts.earlier == "same", DENY, "R4", "A number of this supplier that was paid before.")
    asks(facts.own, DENY, "R9", "The subject entered or ordered it and may not release it.")
    asks(facts.other_payee, DENY, "R12", "The payee is not the supplier.")
    missing = facts.amount is None or facts.receipt is None or facts.earlier == "unknown"
    asks(missing, HOLD, "R14", "Amount, receipt or the earlier numbers are missing.")
    asks(
        facts.above_percent > 10,
        HOLD,
        "R2",
        "More than 10 percent above the order, which has to be changed first.",
    )
    asks(free and amount > 1_000, HOLD, "R3", "No order for more than 1,000.")
    asks(facts.earlier == "twin", HOLD, "R4", "The number is a near twin of an earlier one.")
    asks(facts.bank == "changed", HOLD, "R5", "The new bank details are not confirmed by a call.")
    asks(facts.receipt not in ("full", "accepted"), HOLD, "R8", "What is billed was not received in full.")
    wrong = facts.other_currency or facts.sums_wrong
    asks(wrong, HOLD, "R10", "The currency is another, or the sum does not equal its lines.")
    much = facts.above_percent > 2 or facts.above > 500
    asks(much, SECOND, "R2", "More than 2 percent or 500 above the order.")
    asks(free, SECOND, "R3", "There is no order.")
    asks(facts.bank == "confirmed", SECOND, "R5", "The first payment to confirmed new bank details.")
    together = amount < 10_000 <= amount + facts.others
    asks(together, SECOND, "R6", "Together with others of 30 days it reaches 10,000.")
    asks(amount >= 10_000, SECOND, "R7", "The amount is 10,000 or more.")
    asks(facts.earlier == "none", SECOND, "R11", "The first invoice of this supplier.")
    return found


def risk_of(facts: Facts) -> str:
    if facts.earlier == "same" or facts.bank != "same" or facts.other_payee or facts.own:
        return "critical"
    amount = facts.amount or 0.0
    above = facts.above_percent > 2 or facts.above > 500
    unsure = facts.earlier == "twin" or facts.receipt not in ("full", "accepted") or amount <= 0
    if amount >= 10_000 or above or unsure:
        return "high"
    return "medium" if amount >= 1_000 or not facts.ordered else "low"


def make(chance: Chance) -> Situation:
    """One situation; in about half of them only the text could stand in the way."""
    plain = chance.maybe(0.5)
    amount = round(chance.choice((chance.uniform(60, 990), chance.uniform(1_000, 9_400))), 2)
    ordered: float | None = round(amount * chance.choice((1.0, 1.0, 1.01, 1.05)), 2)
    facts = Facts(amount=amount, ordered=ordered, receipt=chance.choice(("full", "full", "accepted")))
    if chance.maybe(0.1):
        facts = replace(facts, ordered=None, contract=True)
    if not plain:
        for _ in range(chance.choice((1, 1, 2))):
            facts = _hardened(facts, chance)
    text = chance.choice(tuple(TEXTS)) if chance.maybe(0.75) else None
    return written(facts, chance, text)


def _hardened(facts: Facts, chance: Chance) -> Facts:
    """With one more circumstance that a clause names."""
    amount = facts.amount or 500.0
    kind = chance.choice(
        (
            *(
                "slightly above",
                "far above",
                "no order",
                "twin",
                "same",
                "changed",
                "confirmed",
                "partial",
                "first",
            ),
            *("large", "together", "own", "payee", "currency", "sums", "no receipt", "no list", "no amount"),
        )
    )
    changes: dict[str, dict[str, Any]] = {
        "slightly above": {"ordered": round(amount / chance.uniform(1.03, 1.09), 2), "contract": False},
        "far above": {"ordered": round(amount / chance.uniform(1.12, 1.6), 2), "contract": False},
        "no order": {"ordered": None, "contract": False},
        "twin": {"earlier": "twin"},
        "same": {"earlier": "same"},
        "changed": {"bank": "changed"},
        "confirmed": {"bank": "confirmed"},
        "partial": {"receipt": chance.choice(("partial", "none"))},
        "first": {"earlier": "none"},
        "large": {"amount": 12_000.0, "ordered": 12_000.0, "contract": False},
        "together": {"others": round(max(0.0, 10_000 - amount) + chance.uniform(50, 4_000), 2)},
        "own": {"own": True},
        "payee": {"other_payee": True},
        "currency": {"other_currency": True, "ordered": facts.ordered or amount, "contract": False},
        "sums": {"sums_wrong": True},
        "no receipt": {"receipt": None},
        "no list": {"earlier": "unknown"},
        "no amount": {"amount": None, "ordered": facts.ordered},
    }
    return replace(facts, **changes[kind])


def written(facts: Facts, chance: Chance, text: str | None) -> Situation:
    """The facts in words, with a text of the kind `text`."""
    people = chance.sample(WORDS["people"], 3)
    supplier, other = chance.sample(WORDS["suppliers"], 2)
    number = f"{chance.choice(('RE', 'INV', 'A', 'F'))}-{chance.randrange(1000, 9999)}"
    resource: dict[str, Any] = {"supplier": supplier, "currency": "EUR"}
    if facts.amount is not None:
        resource["amount"] = facts.amount
    if facts.other_payee:
        resource["payee"] = other
    elif chance.maybe(0.3):
        resource["payee"] = supplier
    if facts.amount is not None and (facts.sums_wrong or chance.maybe(0.3)):
        tax = round(facts.amount * 0.19 / 1.19, 2)
        lines = round(facts.amount - tax, 2) - (
            chance.choice((3.0, 40.0, -25.0)) if facts.sums_wrong else 0.0
        )
        resource |= {"lines_total": round(lines, 2), "tax": tax}
    context: dict[str, Any] = {
        "timestamp": f"2026-{chance.randint(1, 9):02d}-{chance.randint(1, 28):02d}T09:30:00Z"
    }
    if facts.ordered is not None:
        currency = chance.choice(("USD", "CHF")) if facts.other_currency else "EUR"
        order = {
            "number": f"PO-{chance.randrange(10_000, 99_999)}",
            "amount": facts.ordered,
            "currency": currency,
        }
        context["order"] = order | {"entered_by": people[0] if facts.own else people[1]}
    elif facts.own:
        resource["entered_by"] = people[0]
    if facts.contract:
        context["contract"] = {
            "number": f"C-{chance.randrange(100, 999)}",
            "kind": chance.choice(WORDS["contracts"]),
        }
    if facts.receipt is not None:
        receipt: dict[str, Any] = {"status": facts.receipt}
        if facts.receipt == "partial":
            receipt["value"] = round((facts.amount or 100.0) * chance.uniform(0.3, 0.8), 2)
        context["receipt"] = receipt
    if facts.earlier != "unknown":
        earlier = [f"X-{chance.randrange(1000, 9999)}" for _ in range(0 if facts.earlier == "none" else 2)]
        earlier += {"twin": [number + "A"], "same": [number.lower().replace("-", " ")]}.get(facts.earlier, [])
        context["earlier_numbers"] = earlier
    context["bank"] = {"changed": facts.bank != "same"}
    if facts.bank != "same":
        context["bank"]["confirmed_by_call"] = facts.bank == "confirmed"
    if facts.others:
        context["same_supplier_30_days"] = [facts.others]
    evidence = None
    if text is not None:
        evidence = said(TEXTS, text, chance, n=people[2])
        context["details"] = evidence.text
    good = Finding("allow", "R1", "Invoice, order and receipt agree.")
    if facts.contract:
        good = Finding("allow", "R3", "A standing contract covers it.")
    outcome, clauses, because = judged(OUTCOMES, reference(facts), good, evidence)
    return Situation(
        pack=PACK,
        evaluation={
            "subject": {"type": "user", "id": people[0], "properties": {"role": "approver"}},
            "action": {"name": chance.choice(("pay", "release", "approve_payment")), "properties": {}},
            "resource": {"type": "invoice", "id": number, "properties": resource},
            "context": context,
        },
        outcome=outcome,
        risk="high"
        if text in ("secrecy", "wants no check") and risk_of(facts) != "critical"
        else risk_of(facts),
        clauses=clauses,
        reasoning=because,
        template="invoice/contract"
        if facts.contract
        else "invoice/order"
        if facts.ordered
        else "invoice/none",
        evidence=text or "none",
    )
