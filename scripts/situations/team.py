"""Situations of an engineering team, by the clauses of prompts/team-governance.

Owns their facts, words and reference policy. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from situations import Chance, Finding, Situation, judged, said, words

PACK = "team-governance"
OUTCOMES = ("allow", "require_mfa", "require_attestation", "deny")
MFA, ATTEST, DENY = OUTCOMES[1:]

WORDS, TEXTS = words("team")
#: What the kind needs of the lowest trust score.
NEED = {"privileged": 0.8, "override": 0.8, "tampering": 0.8}
#: Which kinds of text make sense beside which kinds of action.
FITS = {
    "read": ("plain", "claims"),
    "change": ("plain", "claims", "freeze", "conflict", "unusual", "pending", "hides", "own gain"),
    "deletion": ("plain", "claims", "freeze", "conflict", "unusual", "pending", "hides"),
    "rotation": ("plain", "claims", "conflict", "unusual", "pending"),
    "secret": ("plain", "claims", "unusual", "conflict"),
    "export": ("plain", "claims", "unusual", "conflict"),
    "privileged": ("plain", "claims", "unusual", "conflict", "pending", "own gain"),
    "override": ("plain", "claims", "unusual"),
    "tampering": ("plain", "claims"),
}


@dataclass(frozen=True)
class Facts:
    """What is so, before it is written down. `margin` is the lowest trust score above the need, or None."""

    kind: str
    production: bool
    automation: bool = False
    admin: bool = False
    suspended: bool = False
    new_device: bool = False
    mfa: bool = False
    off_hours: bool = False
    incident: bool = False
    pending: bool = False
    margin: float | None = 0.15


def reference(facts: Facts) -> list[Finding]:
    """What the clauses ask for, read one by one."""
    kind, found = facts.kind, []

    def asks(condition: bool, outcome: str, clause: str, because: str) -> None:
        if condition:
            found.append(Finding(outcome, clause, because))

    high = kind in NEED
    change = kind not in ("read", "secret", "export")
    below = facts.margin is not None and facts.margin < 0 and kind != "read"
    asks(facts.suspended, DENY, "R1", "The account is suspended, so it may do nothing.")
    asks(kind == "tampering", DENY, "R2", "Nobody may alter, delete or disable audit records or logging.")
    asks(kind == "privileged" and not facts.admin, DENY, "R3", "The subject has no admin or owner role.")
    asks(below and (facts.margin or 0) < -0.1, DENY, "R6", "Trust is far below what this needs.")
    asks(below, ATTEST, "R6", "Trust is slightly below what this needs, so a second person has to attest.")
    unscored = facts.margin is None and (high or (facts.production and kind != "read"))
    asks(unscored, ATTEST, "R7", "Without a trust score a second person has to attest.")
    device = facts.new_device and (kind in ("privileged", "override", "rotation"))
    asks(device, MFA, "R8", "This comes from a new device, so MFA is needed.")
    deleting = kind == "deletion" and facts.production
    asks(deleting, ATTEST, "R9", "Deleting in production cannot be undone, so a second person has to attest.")
    late = facts.production and change and facts.off_hours and not facts.incident
    asks(late, ATTEST, "R10", "It is outside working hours and no incident is active.")
    asks(kind == "override" and not facts.incident, DENY, "R11", "An override needs an active incident.")
    asks(kind == "override", ATTEST, "R11", "An override in an incident needs a second person.")
    data = kind in ("secret", "export")
    asks(data and facts.automation, ATTEST, "R12", "Automation needs attestation for secrets and exports.")
    asks(data and not facts.automation and not facts.mfa, MFA, "R12", "Secrets and exports need MFA first.")
    asks(
        kind == "privileged" and facts.automation,
        ATTEST,
        "R13",
        "Privileged work is not routine for automation.",
    )
    asks(facts.pending and kind != "read", ATTEST, "R14", "The approval is still pending.")
    return found


def risk_of(facts: Facts) -> str:
    kind = facts.kind
    if facts.suspended or kind in ("tampering", "override"):
        return "critical"
    if facts.production and kind in ("privileged", "deletion"):
        return "critical"
    below = facts.margin is not None and facts.margin < 0
    if kind in ("privileged", "rotation", "export", "secret") or (
        kind != "read" and (facts.production or below)
    ):
        return "high"
    return "low" if kind == "read" else "medium"


def make(chance: Chance) -> Situation:
    """One situation; what text adds is as likely as what the facts say."""
    kind = chance.weighted(
        read=1,
        change=5,
        deletion=1,
        rotation=1.5,
        secret=1.5,
        export=1.5,
        privileged=1.5,
        override=0.7,
        tampering=0.5,
    )
    plain = chance.maybe(0.6)  # nothing but perhaps the text stands in the way
    facts = Facts(
        kind=kind,
        production=kind not in ("privileged",) and chance.maybe(0.5),
        automation=chance.maybe(0.2),
        admin=chance.maybe(0.8 if kind == "privileged" else 0.1),
        suspended=not plain and chance.maybe(0.06),
        new_device=chance.maybe(0.4 if kind in ("rotation", "privileged") else 0.05),
        mfa=chance.maybe(0.4),
        off_hours=not plain and chance.maybe(0.4),
        incident=(kind == "override" and chance.maybe(0.6)) or chance.maybe(0.05),
        pending=not plain and chance.maybe(0.2),
        margin=_margin(chance, plain),
    )
    kinds = FITS[kind]
    text = chance.choice(kinds) if chance.maybe(0.75) else None
    return written(facts, chance, text)


def _margin(chance: Chance, plain: bool) -> float | None:
    if not plain and chance.maybe(0.12):
        return None
    if not plain and chance.maybe(0.4):
        return -round(chance.uniform(0.01, 0.3), 2)
    return round(chance.uniform(0.0, 0.18), 2)


def written(facts: Facts, chance: Chance, text: str | None) -> Situation:
    """The facts in words, with a text of the kind `text`."""
    number = chance.randrange(len(WORDS["words"][facts.kind]))
    action, resource_type, resource_id = WORDS["words"][facts.kind][number]
    names = chance.sample(WORDS["people"], 3)
    environment = (
        chance.choice(("production", "prod")) if facts.production else chance.choice(("staging", "dev", "qa"))
    )
    resource_id = resource_id.format(e=environment, n=names[1])
    subject: dict[str, Any] = {"type": "user", "id": names[0]}
    if facts.automation:
        subject = {"type": chance.choice(("service", "bot")), "id": chance.choice(WORDS["machines"])}
    properties: dict[str, Any] = {"role": chance.choice(WORDS["admin_roles" if facts.admin else "roles"])}
    if facts.margin is not None:
        need = NEED.get(facts.kind, 0.7 if facts.production and environment not in resource_id else 0.5)
        need = 0.7 if facts.production and facts.kind not in NEED else need
        lowest = round(min(1.0, need + facts.margin), 2)
        scores = [lowest, *(round(chance.uniform(lowest, 1.0), 2) for _ in range(2))]
        chance.shuffle(scores)
        properties["trust"] = dict(zip(("competence", "reliability", "integrity"), scores, strict=True))
    identity: dict[str, Any] = {}
    if facts.suspended:
        identity["account"] = chance.choice(("suspended", "locked", "disabled"))
    elif chance.maybe(0.5):
        identity["account"] = "active"
    if facts.new_device:
        identity["device"] = chance.choice(("new", "first seen", "unrecognized"))
    elif chance.maybe(0.4):
        identity["device"] = "known"
    if facts.mfa:
        identity["mfa"] = True
    if identity:
        properties["identity"] = identity
    subject["properties"] = properties
    context: dict[str, Any] = {"timestamp": _time(chance, facts.off_hours)}
    if facts.production and environment not in resource_id:
        context["environment"] = environment
    if facts.incident:
        context["incident_status"] = chance.choice(("active", "ongoing", "declared"))
    if facts.pending:
        context |= chance.choice(({"approval_pending": True}, {"approval_status": "requested"}))
    evidence = None
    if text is not None:
        evidence = said(TEXTS, text, chance, t=f"OPS-{chance.randrange(100, 999)}", n=names[2])
        if text == "unusual":
            context["recent_history"] = [evidence.text]
        else:
            context["details"] = evidence.text
    if chance.maybe(0.2):
        context["request_number"] = chance.randrange(10**6)  # a distractor: no field shows it
    good = Finding("allow", "R15", "Trust meets the need and nothing stands in the way.")
    if facts.automation:
        good = Finding("allow", "R13", "This is routine work of automation.")
    outcome, clauses, because = judged(OUTCOMES, reference(facts), good, evidence)
    return Situation(
        pack=PACK,
        evaluation={
            "subject": subject,
            "action": {"name": action, "properties": {}},
            "resource": {"type": resource_type, "id": resource_id, "properties": {}},
            "context": context,
        },
        outcome=outcome,
        risk="high" if resource_type in ("db", "table") and risk_of(facts) == "medium" else risk_of(facts),
        clauses=clauses,
        reasoning=because,
        template=f"{facts.kind}/{number}",
        evidence=text or "none",
    )


def _time(chance: Chance, off_hours: bool) -> str:
    """A time in UTC; the second of March 2026 is a Monday."""
    week, minute, second = chance.randrange(8), chance.randrange(60), chance.randrange(60)
    if off_hours and chance.maybe(0.4):
        day, hour = chance.choice((5, 6)), chance.randrange(24)
    elif off_hours:
        day, hour = chance.randrange(5), chance.choice((0, 1, 2, 3, 4, 5, 6, 20, 21, 22, 23))
    else:
        day, hour = chance.randrange(5), chance.randrange(7, 20)
    days = 1 + 7 * week + day  # days after the first of March
    month, date = (3, days + 1) if days < 31 else (4, days - 30)
    if month == 4 and date > 30:
        month, date = 5, date - 30
    return f"2026-{month:02d}-{date:02d}T{hour:02d}:{minute:02d}:{second:02d}Z"
