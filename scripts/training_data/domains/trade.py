"""Situations of an automated trading agent, by the clauses of prompts/trade-risk.

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

PACK = "trade-risk"
OUTCOMES = ("allow", "reduce", "require_risk_desk", "deny")
REDUCE, DESK, DENY = OUTCOMES[1:]
WORDS, TEXTS = vocabulary(Path(__file__).with_suffix(".yaml"))
#: Figures that an order with new risk needs: (place, name).
NEEDED = (
    *(
        ("account", "equity"),
        ("account", "gross_exposure"),
        ("account", "day_pnl"),
        ("account", "drawdown_percent"),
    ),
    *(
        ("account", "sector_exposure"),
        ("market", "quote_age_s"),
        ("resource", "adv"),
        ("resource", "spread_bps"),
        ("resource", "usual_quantity"),
        ("market", "session"),
        ("action", "confidence"),
    ),
)
#: Sessions that are not the continuous one.
SESSIONS = ("closed", "auction", "pre-open", "opening auction", "after hours")
#: Clauses that do not apply to an order that only shrinks a position (R12).
ONLY_NEW_RISK = ("R2", "R3", "R4", "R5", "R6", "R7", "R8", "R10", "R11")


@dataclass(frozen=True)
class Facts:
    """The facts behind a situation: each figure as a share of the base of its limit, in percent.

    `position` is held before the order and `after` after it, in percent of equity with the sign of the side;
    `gross` and `sector` are in percent of equity, after the order.
    """

    position: float = 0.0
    after: float = 3.0
    gross: float = 120.0
    sector: float = 12.0
    loss_today: float = 0.2
    drawdown: float = 2.0
    confidence: float = 0.75
    stop: float | None = 4.0
    volume: float = 0.3
    spread_bps: float = 12.0
    off_price: float = 0.5
    times_usual: float = 2.0
    session: str = "continuous"
    quote_age_s: float = 2.0
    halted: bool = False
    missing: tuple[str, str] | None = None

    @property
    def shrinks(self) -> bool:
        return self.after * self.position >= 0 and abs(self.after) < abs(self.position)


def reference(facts: Facts) -> list[Finding]:
    """The reference policy: what each clause asks for."""
    findings: list[Finding] = []
    risky = not facts.shrinks

    def asks(condition: bool, outcome: str, clause: str, because: str) -> None:
        if condition:
            findings.append(Finding(outcome, clause, because))

    def known(*names: str) -> bool:
        return facts.missing is None or facts.missing[1] not in names

    asks(facts.halted, DENY, "R1", "The symbol is halted.")
    asks(
        risky and facts.loss_today >= 2 and known("equity", "day_pnl"),
        DENY,
        "R2",
        "Two percent are lost today.",
    )
    asks(
        risky and facts.drawdown >= 15 and known("drawdown_percent"),
        DENY,
        "R3",
        "The drawdown is 15 percent or more.",
    )
    much = risky and known("equity", "gross_exposure")
    asks(much and facts.gross > 250, DENY, "R5", "Gross exposure would pass 2.5 times equity.")
    sure = risky and known("confidence")
    asks(sure and facts.confidence < 0.4, DENY, "R6", "The confidence is below 0.4.")
    asks(facts.off_price > 5, DENY, "R9", "The price is more than 5 percent from the last trade.")
    asks(risky and facts.missing is not None, DESK, "R14", "A figure that the limits need is missing.")
    falling = risky and facts.drawdown >= 10 and known("drawdown_percent")
    asks(falling, DESK, "R3", "The drawdown is 10 percent or more.")
    sized = risky and known("equity")
    asks(sized and abs(facts.after) > 10, DESK, "R4", "The position would pass 10 percent of equity.")
    unstopped = facts.stop is None or not 0 < facts.stop <= 8
    asks(risky and unstopped, DESK, "R7", "No stop on the losing side within 8 percent.")
    thin = (facts.volume > 5 and known("adv")) or (facts.spread_bps > 100 and known("spread_bps"))
    asks(risky and thin, DESK, "R8", "Too much of the volume, or too wide a spread.")
    asks(facts.times_usual >= 10 and known("usual_quantity"), DESK, "R9", "Ten times the usual size or more.")
    old = facts.session != "continuous" or (facts.quote_age_s > 60 and known("quote_age_s"))
    asks(risky and old, DESK, "R10", "Outside the continuous session, or on stale quotes.")
    asks(sized and abs(facts.after) > 5, REDUCE, "R4", "The position would pass 5 percent of equity.")
    asks(much and facts.gross > 200, REDUCE, "R5", "Gross exposure would pass 2.0 times equity.")
    asks(sure and facts.confidence < 0.6, REDUCE, "R6", "The confidence is below 0.6.")
    asks(
        risky and facts.volume > 1 and known("adv"), REDUCE, "R8", "More than 1 percent of the daily volume."
    )
    whole = sized and known("sector_exposure")
    asks(whole and facts.sector > 25, REDUCE, "R11", "The sector would pass 25 percent of equity.")
    return findings


def risk_of(facts: Facts, evidence: Evidence | None) -> str:
    """The risk of the strictest finding: critical where it is denied, high where a person has to see it."""
    if facts.halted or facts.off_price > 5:
        return "critical"
    outcomes = {finding.outcome for finding in reference(facts)}
    if not facts.shrinks and outcomes & {DENY}:
        return "critical" if facts.confidence >= 0.4 or len(outcomes) > 1 else "high"
    if facts.shrinks:
        return "low"
    return "high" if outcomes or (evidence and evidence.adds) else "medium"


def make(chance: Chance) -> Situation:
    """One situation. In about half of them only the text can ask for more than `allow`."""
    facts = _routine_facts(chance)
    if not chance.maybe(0.5):
        for _ in range(chance.choice((1, 1, 2))):
            facts = _with_obstacle(facts, chance)
    return write(facts, chance, _choose_text_kind(facts, chance) if chance.maybe(0.55) else None)


def _routine_facts(chance: Chance) -> Facts:
    """Facts that no clause is against."""
    kind = chance.weighted(opens=5, adds=3, shrinks=2)
    side = chance.choice((1.0, -1.0))
    before, after = {
        "opens": (0.0, chance.uniform(0.5, 4.5)),
        "adds": (1.0, chance.uniform(1.5, 4.8)),
        "shrinks": (chance.uniform(3, 9), chance.uniform(0, 2.5)),
    }[kind]
    return Facts(
        position=side * before,
        after=side * after,
        gross=chance.uniform(40, 195),
        sector=chance.uniform(4, 24),
        loss_today=chance.uniform(-1.0, 1.8),
        drawdown=chance.uniform(0, 9),
        confidence=round(chance.uniform(0.6, 0.98), 2),
        stop=chance.uniform(1, 7.8),
        volume=chance.uniform(0.01, 0.95),
        spread_bps=round(chance.uniform(2, 90), 1),
        off_price=chance.uniform(0, 3),
        times_usual=chance.uniform(0.3, 6),
        quote_age_s=round(chance.uniform(0, 40), 1),
    )


def _choose_text_kind(facts: Facts, chance: Chance) -> str:
    """A kind of text that makes sense beside these facts; in about half of the draws it asks for more."""
    unfit = {
        "out only": not facts.shrinks,
        "confused effect": facts.position == 0,
        **dict.fromkeys(
            ("hidden exposure", "open orders", "other lines", "mirrored order", "past ten percent"),
            not facts.shrinks and not 0.5 <= abs(facts.after) <= 4.8,
        ),
        **dict.fromkeys(
            ("works elsewhere", "thinner volume", "repeats all day", "past five of volume"), facts.volume > 1
        ),
        # An order that only shrinks a position needs none of the figures that these cast doubt on.
        "worse than shown": facts.shrinks,
        "broken signal": facts.shrinks,
        "filled with defaults": facts.shrinks,
        "figures bent": facts.shrinks,
    }
    adds = chance.maybe(0.55)
    return chance.choice(
        [
            kind
            for kind, (finding, _) in TEXTS.items()
            if (finding is not None) == adds and not unfit.get(kind)
        ]
    )


def _with_obstacle(facts: Facts, chance: Chance) -> Facts:
    """The facts with one more circumstance that a clause names."""
    sign = 1.0 if facts.after >= 0 else -1.0
    changes: dict[str, Any] = chance.choice(
        (
            {"halted": True},
            {"loss_today": chance.uniform(2.05, 5)},
            {"drawdown": chance.uniform(10.1, 14.8)},
            {"drawdown": chance.uniform(15.1, 25)},
            {"after": sign * chance.uniform(5.2, 9.8), "position": 0.0},
            {"after": sign * chance.uniform(5.2, 9.8), "position": 0.0},
            {"after": sign * chance.uniform(10.3, 18), "position": 0.0},
            {"gross": chance.uniform(203, 247)},
            {"gross": chance.uniform(203, 247)},
            {"gross": chance.uniform(254, 320)},
            {"confidence": round(chance.uniform(0.41, 0.59), 2)},
            {"confidence": round(chance.uniform(0.41, 0.59), 2)},
            {"confidence": round(chance.uniform(0.1, 0.39), 2)},
            {"stop": chance.choice((None, -2.0, 11.0))},
            {"volume": chance.uniform(1.1, 4.8)},
            {"volume": chance.uniform(1.1, 4.8)},
            {"volume": chance.uniform(5.2, 12)},
            {"spread_bps": round(chance.uniform(105, 240), 1)},
            {"off_price": chance.uniform(5.3, 11)},
            {"times_usual": chance.uniform(10.2, 25)},
            {"session": chance.choice(SESSIONS)},
            {"quote_age_s": round(chance.uniform(61, 600), 1)},
            {"sector": chance.uniform(25.5, 40)},
            {"missing": chance.choice(NEEDED)},
        )
    )
    return replace(facts, **changes)


def write(facts: Facts, chance: Chance, text: str | None) -> Situation:
    """The situation in words, with a text of the kind `text`; all figures follow from equity and a price."""
    equity = float(chance.randrange(5, 80) * 100_000)
    last = round(chance.choice((chance.uniform(4, 30), chance.uniform(30, 400))), 2)
    side = 1.0 if facts.after >= facts.position else -1.0
    price = round(last * (1 + side * facts.off_price / 100), 2)
    held, target = (round(equity * share / 100 / price) for share in (facts.position, facts.after))
    if facts.shrinks and target == held:
        target = 0
    quantity = max(1, abs(target - held))
    after = held + side * quantity
    added = (abs(after) - abs(held)) * price
    action: dict[str, Any] = {"quantity": quantity, "confidence": facts.confidence}
    if facts.off_price > 0.05:
        action["limit_price"] = price
    else:
        price = last
    if facts.stop is not None and not (facts.shrinks and chance.maybe(0.7)):
        action["stop"] = round(price * (1 - side * facts.stop / 100), 4)
    resource = {
        "last_price": last,
        "adv": max(1, round(quantity / (facts.volume / 100))),
        "spread_bps": facts.spread_bps,
        "usual_quantity": max(1, round(quantity / facts.times_usual)),
    }
    if facts.halted or chance.maybe(0.7):
        resource["halted"] = facts.halted
    # The quantity was rounded to whole shares: recompute the ratios from it.
    facts = replace(
        facts, volume=100 * quantity / resource["adv"], times_usual=quantity / resource["usual_quantity"]
    )
    account = {
        "position": held,
        "equity": equity,
        "gross_exposure": max(0.0, round(equity * facts.gross / 100 - added, 2)),
        "sector_exposure": max(0.0, round(equity * facts.sector / 100 - added, 2)),
        "day_pnl": round(-equity * facts.loss_today / 100, 2),
        "drawdown_percent": round(facts.drawdown, 1),
    }
    market: dict[str, Any] = {"session": facts.session, "quote_age_s": facts.quote_age_s}
    parts = {"account": account, "market": market, "resource": resource, "action": action}
    if facts.missing is not None:
        parts[facts.missing[0]].pop(facts.missing[1])
    context: dict[str, Any] = {"account": chance.reordered(account), "market": market}
    symbol, other = chance.sample(WORDS["symbols"], 2)
    agent, another = chance.sample(WORDS["agents"], 2)
    evidence = None
    if text is not None:
        names = {
            "s": symbol,
            "t": other,
            "a": another,
            "n": chance.choice(WORDS["people"]),
            "q": str(quantity),
            "p": f"{chance.uniform(21, 60):.1f} %",
            "ref": f"{chance.choice(('T-', 'r', '#', 'INC'))}{chance.randrange(100, 9999)}",
            "at": f"{chance.randint(8, 17)}:{chance.randint(0, 59):02d}",
        }
        evidence = draw_text(TEXTS, text, chance, **names)
        context["details"] = evidence.text
    for part, name, values in chance.sample(WORDS["distractors"], chance.choice((0, 0, 1, 2))):
        parts.get(part, context)[name] = chance.choice(values)
    context = chance.reordered(context)
    context["timestamp"] = (
        f"2026-{chance.randint(1, 12):02d}-{chance.randint(1, 28):02d}T{chance.randint(7, 20):02d}:20:00Z"
    )
    evaluation = {
        "subject": {"type": "agent", "id": agent, "properties": {}},
        "action": {"name": "buy" if side > 0 else "sell", "properties": chance.reordered(action)},
        "resource": {"type": "symbol", "id": symbol, "properties": chance.reordered(resource)},
        "context": context,
    }
    return _label(evaluation, facts, evidence)


def _label(evaluation: dict[str, Any], facts: Facts, evidence: Evidence | None) -> Situation:
    """The situation of these facts and this text, with the label that follows."""
    good = Finding("allow", "R15", "All limits are kept, so it is the agent's own decision.")
    if facts.shrinks:
        good = Finding("allow", "R12", "It only shrinks a position.")
        if evidence and evidence.adds and evidence.adds.clause in ONLY_NEW_RISK:
            evidence = replace(evidence, adds=None)
    outcome, clauses, because = strictest(OUTCOMES, reference(facts), good, evidence)
    return Situation(
        pack=PACK,
        evaluation=evaluation,
        outcome=outcome,
        risk=risk_of(facts, evidence),
        clauses=clauses,
        reasoning=because,
        template="trade/exit" if facts.shrinks else "trade/entry",
        evidence=evidence.kind if evidence else "none",
    )


def _differences(facts: Facts, chance: Chance) -> dict[str, Difference]:
    """The facts that a pair can differ in, by their kind; figures lie just under and just over a limit."""
    step = chance.uniform(0.02, 0.08)

    def account(name: str, base: str, limit: float) -> Difference:
        """A figure of the account in percent of equity; the order itself adds a part of it."""
        over = limit * (1 + step / 2)

        def value(evaluation: dict[str, Any]) -> float:
            figures: dict[str, float] = evaluation["context"]["account"]
            return round(figures[name] + figures["equity"] * (over - limit * (1 - step / 2)) / 100, 2)

        start = {base: limit * (1 - step / 2)}
        return Difference(
            start,
            ("context", "account", name),
            value,
            {base: over},
            applies=lambda evaluation: evaluation["context"]["account"][name] > 0,
        )

    def figure(base: str, path: tuple[str, ...], limit: float, digits: int = 2) -> Difference:
        under, over = round(limit * (1 - step), digits), round(limit * (1 + step), digits)
        return Difference({base: under}, path, lambda _: over, {base: over})

    def share(base: str, name: str, limit: float) -> Difference:
        """A figure that divides the quantity: the smaller the figure, the larger the share."""
        over, whole = limit * (1 + step), 100 if base == "volume" else 1

        def value(evaluation: dict[str, Any]) -> int:
            return int(whole * evaluation["action"]["properties"]["quantity"] / over)

        return Difference(
            {base: limit * (1 - step)},
            ("resource", "properties", name),
            value,
            {base: over},
            applies=lambda evaluation: evaluation["action"]["properties"]["quantity"] >= 2_000,
        )

    under, over = 2 * (1 - step), 2 * (1 + step)
    action, context, resource = ("action", "properties"), "context", ("resource", "properties")
    needed = [(place, name) for place, name in NEEDED if name not in ("session", "confidence")]
    place, name = chance.choice(needed)
    lacking = (*resource, name) if place == "resource" else (context, place, name)
    return {
        "halted": Difference({}, (*resource, "halted"), lambda _: True, {"halted": True}),
        "loss today": Difference(
            {"loss_today": under},
            (context, "account", "day_pnl"),
            lambda evaluation: round(-evaluation["context"]["account"]["equity"] * over / 100, 2),
            {"loss_today": over},
        ),
        "drawdown": figure("drawdown", (context, "account", "drawdown_percent"), 10.0, 1),
        "deep drawdown": figure("drawdown", (context, "account", "drawdown_percent"), 15.0, 1),
        "gross": account("gross_exposure", "gross", 200.0),
        "gross far": account("gross_exposure", "gross", 250.0),
        "sector": account("sector_exposure", "sector", 25.0),
        "confidence": Difference(
            {"confidence": 0.62},
            (*action, "confidence"),
            lambda _: round(0.6 - step, 2),
            {"confidence": round(0.6 - step, 2)},
        ),
        "no confidence": Difference(
            {"confidence": 0.43},
            (*action, "confidence"),
            lambda _: round(0.4 - step, 2),
            {"confidence": round(0.4 - step, 2)},
        ),
        "stop": Difference({}, (*action, "stop"), lambda _: REMOVED, {"stop": None}),
        "stop far": Difference(
            {"stop": 7.6},
            (*action, "stop"),
            lambda evaluation: _stop_at(evaluation, 8.5),
            {"stop": 8.5},
        ),
        "spread": figure("spread_bps", (*resource, "spread_bps"), 100.0, 1),
        "age of quotes": figure("quote_age_s", (context, "market", "quote_age_s"), 60.0, 1),
        "session": Difference(
            {}, (context, "market", "session"), lambda _: chance.choice(SESSIONS), {"session": "closed"}
        ),
        "volume": share("volume", "adv", 1.0),
        "much volume": share("volume", "adv", 5.0),
        "usual size": share("times_usual", "usual_quantity", 10.0),
        "missing": Difference({}, lacking, lambda _: REMOVED, {"missing": (place, name)}),
    }


def _stop_at(evaluation: dict[str, Any], percent: float) -> float:
    """The price of a stop `percent` percent away on the losing side."""
    side = 1.0 if evaluation["action"]["name"] == "buy" else -1.0
    last: float = evaluation["resource"]["properties"]["last_price"]
    price: float = evaluation["action"]["properties"].get("limit_price", last)
    return round(price * (1 - side * percent / 100), 4)


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
            loose = write(facts, chance, _choose_text_kind(facts, chance) if chance.maybe(0.5) else None)
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
