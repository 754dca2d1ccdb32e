"""Situations of accounts payable, by the clauses of prompts/invoice-exception.

Owns their facts, words, reference policy, and pairs that differ in one fact.
Pure, except that the words are read on import.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training_data.pairs import REMOVED, Difference, with_difference
from training_data.situations import Chance, Evidence, Finding, Situation, draw_text, strictest, vocabulary

PACK = "invoice-exception"
OUTCOMES = ("allow", "require_second_approval", "hold", "deny")
SECOND, HOLD, DENY = OUTCOMES[1:]
WORDS, TEXTS = vocabulary(Path(__file__).with_suffix(".yaml"))
#: Texts about a call that confirmed new bank details.
CALLS = ("doubtful call", "planted number")


@dataclass(frozen=True)
class Facts:
    """The facts behind a situation. Amounts in the currency of the invoice."""

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
    """The reference policy: what each clause asks for."""
    findings: list[Finding] = []
    amount = facts.amount or 0.0
    free = facts.ordered is None and not facts.contract

    def asks(condition: bool, outcome: str, clause: str, because: str) -> None:
        if condition:
            findings.append(Finding(outcome, clause, because))

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
    return findings


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
    """One situation. In about half of them only the text can ask for more than `allow`."""
    plain = chance.maybe(0.5)
    facts = _routine_facts(chance)
    if not plain:
        for _ in range(chance.choice((1, 1, 2))):
            facts = _with_obstacle(facts, chance)
    text = _choose_text_kind(facts, chance) if chance.maybe(0.55) else None
    if text in CALLS:
        facts = replace(facts, bank="confirmed")
    return write(facts, chance, text)


def _routine_facts(chance: Chance) -> Facts:
    """Facts that no clause is against."""
    amount = round(chance.choice((chance.uniform(60, 990), chance.uniform(1_000, 9_400))), 2)
    if chance.maybe(0.4):
        amount = float(chance.choice((round(amount), round(amount, -1))))
    ordered: float | None = round(amount * chance.choice((1.0, 1.0, 1.01, 1.05)), 2)
    facts = Facts(amount=amount, ordered=ordered, receipt=chance.choice(("full", "full", "accepted")))
    return replace(facts, ordered=None, contract=True) if chance.maybe(0.1) else facts


def _choose_text_kind(facts: Facts, chance: Chance) -> str:
    """A kind of text that makes sense beside these facts; in about half of the draws it asks for more."""
    amount, adds = facts.amount or 0.0, chance.maybe(0.5)
    unfit = {
        "split": facts.ordered is None,
        "order is lower": facts.ordered is None,
        "deposit before": facts.ordered is None,
        "order used up": facts.ordered is None or amount <= 1_000,
        "unkeyed rebate": facts.ordered is None or facts.above > 0,
        "padded order": facts.ordered is None or facts.above != 0,
        "mistyped order": facts.ordered is None,
        "shared by departments": facts.ordered is None,
        "order is void": facts.ordered is None or amount <= 1_000,
        "small order void": facts.ordered is None or not 0 < amount <= 1_000,
        "small order lapsed": facts.ordered is None or not 0 < amount <= 1_000,
        "contract ended": not facts.contract or amount <= 1_000,
        "limit dodged": amount >= 10_000,
        "explained difference": facts.ordered is None or facts.ordered == amount,
        "old account change": facts.bank != "same",
        "doubtful call": facts.bank == "changed",
        "planted number": facts.bank == "changed",
        "silent master edit": facts.bank == "confirmed",
        "negated danger": facts.bank != "same",
        "if ever": facts.bank != "same",
        "never came about": facts.bank != "same",
        "we changed bank": facts.bank != "same",
        "new supplier": facts.earlier in ("same", "twin"),
        "successor firm": facts.earlier in ("same", "twin"),
        "namesake numbers": facts.earlier != "others",
        "only trial entries": facts.earlier != "others",
        "separate things": facts.earlier == "none",
        "month before was paid": facts.earlier == "none",
    }
    return chance.choice(
        [
            kind
            for kind, (finding, _) in TEXTS.items()
            if (finding is not None) == adds and not unfit.get(kind)
        ]
    )


def _with_obstacle(facts: Facts, chance: Chance) -> Facts:
    """The facts with one more circumstance that a clause names."""
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


def write(facts: Facts, chance: Chance, text: str | None) -> Situation:
    """The situation in words, with a text of the kind `text`."""
    people = chance.sample(WORDS["people"], 4)
    supplier, other = chance.sample(WORDS["suppliers"], 2)
    number = _number(chance)
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
    context: dict[str, Any] = {}
    if facts.ordered is not None:
        currency = chance.choice(("USD", "CHF", "GBP")) if facts.other_currency else "EUR"
        order = {"number": _order_number(chance), "amount": facts.ordered, "currency": currency}
        if facts.own or chance.maybe(0.85):
            order["entered_by"] = people[0] if facts.own else people[1]
        context["order"] = order
    elif facts.own:
        resource["entered_by"] = people[0]
    if facts.contract:
        context["contract"] = {
            "number": f"{chance.choice(('C-', 'V', 'CTR/'))}{chance.randrange(100, 999)}",
            "kind": chance.choice(WORDS["contracts"]),
        }
    if facts.receipt is not None:
        receipt: dict[str, Any] = {"status": facts.receipt}
        if facts.receipt == "partial":
            receipt["value"] = round((facts.amount or 100.0) * chance.uniform(0.3, 0.8), 2)
        context["receipt"] = receipt
    if facts.earlier != "unknown":
        known = 0 if facts.earlier == "none" else chance.choice((1, 2, 2, 3))
        earlier = [f"X-{chance.randrange(1000, 9999)}" for _ in range(known)]
        same = chance.choice((number, number.lower().replace("-", " "), number.replace("-", ".")))
        earlier += {"twin": [number + chance.choice("ABX")], "same": [same]}.get(facts.earlier, [])
        context["earlier_numbers"] = earlier
    if facts.bank != "same" or chance.maybe(0.8):
        context["bank"] = {"changed": facts.bank != "same"}
    if facts.bank != "same":
        context["bank"]["confirmed_by_call"] = facts.bank == "confirmed"
    if facts.others:
        context["same_supplier_30_days"] = [facts.others]
    evidence = None
    if text is not None:
        amount = facts.amount or 100.0
        names = {
            "n": people[2],
            "m": people[3],
            "s": supplier,
            "other": other,
            "item": chance.choice(WORDS["items"]),
            "ref": _order_number(chance),
            "day": f"{chance.randint(1, 28)} {chance.choice(('March', 'April', 'May', 'September'))}",
            "amt": f"{amount:,.2f}",
            "part": f"{round(amount * chance.uniform(0.05, 0.2), 2):,.2f}",
            "rest": f"{round(max(0.0, 10_000 - amount) + chance.choice((150, 480, 1_200, 3_000)), -1):,.0f}",
        }
        evidence = draw_text(TEXTS, text, chance, **names)
        context["details"] = evidence.text
    for part, name, values in chance.sample(WORDS["distractors"], chance.choice((0, 0, 1, 2, 3))):
        (resource if part == "resource" else context)[name] = chance.choice(values)
    context = chance.reordered(context)
    context["timestamp"] = (
        f"2026-{chance.randint(1, 9):02d}-{chance.randint(1, 28):02d}T{chance.randint(6, 19):02d}:30:00Z"
    )
    evaluation = {
        "subject": {"type": "user", "id": people[0], "properties": {"role": chance.choice(WORDS["roles"])}},
        "action": {"name": chance.choice(WORDS["actions"]), "properties": {}},
        "resource": {"type": "invoice", "id": number, "properties": chance.reordered(resource)},
        "context": context,
    }
    return _label(evaluation, facts, evidence)


def _label(evaluation: dict[str, Any], facts: Facts, evidence: Evidence | None) -> Situation:
    """The situation of these facts and this text, with the label that follows."""
    good = Finding("allow", "R1", "Invoice, order and receipt agree.")
    if facts.contract:
        good = Finding("allow", "R3", "A standing contract covers it.")
    outcome, clauses, because = strictest(OUTCOMES, reference(facts), good, evidence)
    risk = risk_of(facts)
    if evidence and evidence.adds and evidence.adds.clause == "R13" and risk != "critical":
        risk = "high"
    template = "contract" if facts.contract else "order" if facts.ordered else "none"
    return Situation(
        pack=PACK,
        evaluation=evaluation,
        outcome=outcome,
        risk=risk,
        clauses=clauses,
        reasoning=because,
        template=f"invoice/{template}",
        evidence=evidence.kind if evidence else "none",
    )


def _number(chance: Chance) -> str:
    """The number of an invoice, in one of the formats of suppliers; it ends in a digit."""
    count = chance.randrange(1000, 9999)
    return chance.choice(
        (
            f"{chance.choice(('RE', 'INV', 'A', 'F', 'VK'))}-{count}",
            f"2026-{count}",
            f"{count}-{chance.randint(10, 99)}",
            f"R{count}",
        )
    )


def _order_number(chance: Chance) -> str:
    return chance.choice(("PO-", "B", "45000", "ORD/", "26-")) + str(chance.randrange(10_000, 99_999))


def _differences(facts: Facts, chance: Chance) -> dict[str, Difference]:
    """The facts that a pair can differ in, by their kind; amounts lie just under and just over a limit."""
    amount = facts.amount or 500.0
    little, order = chance.uniform(1, 60), ("context", "order")
    free = {"ordered": None, "contract": False}
    standing = {"ordered": None, "contract": True}
    ordered = {"ordered": facts.ordered or amount, "contract": False}

    def at_most(percent: float) -> float:
        return round(amount / (1 + percent / 100), 2)

    def above(kind: str, under: float, over: float) -> Difference:
        start = {"ordered": at_most(under), "contract": False}
        return Difference(start, (*order, "amount"), lambda _: at_most(over), {kind: at_most(over)})

    def amounts(start: dict[str, Any], limit: float) -> Difference:
        under, over = round(limit - little, 2), round(limit + little, 2)
        return Difference(
            start | {"amount": under},
            ("resource", "properties", "amount"),
            lambda _: over,
            {"amount": over},
            applies=lambda evaluation: "lines_total" not in evaluation["resource"]["properties"],
        )

    others = round(10_000 - amount + little, 2)
    properties, context = ("resource", "properties"), "context"
    return {
        "above order": above("ordered", 1.8, 2.2),
        "far above order": above("ordered", 9.7, 10.4),
        "large": amounts(standing, 10_000.0),
        "small without order": amounts(free, 1_000.0),
        "others of 30 days": Difference(
            ordered | {"others": round(others - 2 * little, 2)},
            (context, "same_supplier_30_days", 0),
            lambda _: others,
            {"others": others},
        ),
        "receipt": Difference(
            ordered,
            (context, "receipt", "status"),
            lambda _: chance.choice(("none", "partial")),
            {"receipt": "none"},
        ),
        "receipt unknown": Difference(
            ordered, (context, "receipt", "status"), lambda _: REMOVED, {"receipt": None}
        ),
        "bank": Difference({}, (context, "bank", "changed"), lambda _: True, {"bank": "changed"}),
        "call": Difference(
            {"bank": "confirmed"},
            (context, "bank", "confirmed_by_call"),
            lambda _: False,
            {"bank": "changed"},
        ),
        "twin": Difference(
            {},
            (context, "earlier_numbers", 0),
            lambda evaluation: evaluation["resource"]["id"] + "A",
            {"earlier": "twin"},
        ),
        "number paid before": Difference(
            {},
            (context, "earlier_numbers", 0),
            lambda evaluation: evaluation["resource"]["id"].lower(),
            {"earlier": "same"},
        ),
        "first": Difference(
            {},
            (context, "earlier_numbers", 0),
            lambda _: REMOVED,
            {"earlier": "none"},
            applies=lambda evaluation: len(evaluation["context"]["earlier_numbers"]) == 1,
        ),
        "payee": Difference(
            {}, (*properties, "payee"), lambda _: chance.choice(WORDS["payees"]), {"other_payee": True}
        ),
        "own": Difference(
            ordered,
            (context, "order", "entered_by"),
            lambda evaluation: evaluation["subject"]["id"],
            {"own": True},
        ),
        "currency": Difference(
            ordered,
            (context, "order", "currency"),
            lambda _: chance.choice(("USD", "CHF")),
            {"other_currency": True},
        ),
        "sums": Difference(
            {},
            (*properties, "lines_total"),
            lambda evaluation: round(evaluation["resource"]["properties"]["lines_total"] - little, 2),
            {"sums_wrong": True},
        ),
        "order": Difference(ordered, (context, "order", "number"), lambda _: REMOVED, free),
        "contract": Difference(
            standing, (context, "contract", "kind"), lambda _: chance.choice(("maintenance", "frame")), free
        ),
    }


def pairs(chance: Chance) -> Iterator[tuple[str, Situation, Situation]]:
    """Pairs that differ in one fact and in their outcome: the kind of the fact, the looser, the stricter one.

    Each kind of fact comes at most once, with its own facts, names and text; about half of the pairs have a
    text.
    """
    kinds = list(_differences(_routine_facts(chance), chance))
    for kind in chance.sample(kinds, len(kinds)):
        for _ in range(40):
            facts = _routine_facts(chance)
            difference = _differences(facts, chance)[kind]
            facts = replace(facts, **difference.loose)
            text = _choose_text_kind(facts, chance) if chance.maybe(0.5) else None
            loose = write(facts, chance, None if text in CALLS else text)
            evaluation = with_difference(loose.evaluation, difference)
            if evaluation is None:
                continue
            evidence = None
            if loose.evidence != "none":
                adds = TEXTS[loose.evidence][0]
                evidence = Evidence(loose.evidence, evaluation["context"]["details"], adds)
            strict = _label(evaluation, replace(facts, **difference.strict), evidence)
            if OUTCOMES.index(strict.outcome) > OUTCOMES.index(loose.outcome):
                yield kind, loose, strict
                break
