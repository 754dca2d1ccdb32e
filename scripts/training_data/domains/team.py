"""Situations of an engineering team, by the clauses of prompts/team-governance.

Owns their facts, words, reference policy, and pairs that differ in one fact.
Pure, except that the words are read on import.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training_data.situations import Chance, Evidence, Finding, Situation, draw_text, strictest, vocabulary

PACK = "team-governance"
OUTCOMES = ("allow", "require_mfa", "require_attestation", "deny")
MFA, ATTEST, DENY = OUTCOMES[1:]

WORDS, TEXTS = vocabulary(Path(__file__).with_suffix(".yaml"))
#: Actions that only read: they need no trust and no approval.
READS = ("read", "secret")
#: The lowest trust score that an action of the kind needs.
NEEDED_TRUST = {"privileged": 0.8, "override": 0.8, "tampering": 0.8}
#: Texts that change nothing for any action.
HARMLESS = (
    "plain",
    "claims",
    "alarming words",
    "past trouble",
    "quoted error",
    "foreign language",
    "joke",
    "pressure",
    "figures",
    "list",
    "slang",
    "praise",
    "quoted order",
    "hearsay",
    "homonyms",
    "drill",
    "small talk",
    "politeness",
    "long detail",
    "titles",
    "footer",
    "side question",
    "later on",
    "other hardware",
    "others' locks",
    "others' requests",
    "shift log",
    "if ever",
    "quoted rule",
    "idea rejected",
    "claimed safeguards",
    "zero counts",
    "phish reported",
)
#: Texts like those that ask for more, with a word that reverses the meaning: they change nothing.
REASSURING = (
    "freeze over",
    "hazard ruled out",
    "records kept",
    "no gain",
    "checked",
    "right target",
    "nothing leaves",
    "objection settled",
    "approval in hand",
    "exactly as asked",
    "open to all",
    "quick run",
    "made-up data",
    "nothing hangs on it",
    "real author",
    "caller checked",
)
#: Texts about the person and the reason: they ask for more for every action but a plain read.
PERSON = (
    "open objection",
    "secrecy",
    "garbled",
    "account in doubt",
    "never asked",
    "lock on the way",
    "run as locked",
    "agent strays",
    "unverified caller",
)
#: Texts that ask for more for actions that change something.
WORK = (
    *PERSON,
    "freeze",
    "conflict",
    "unusual",
    "pending",
    "approves oneself",
    "skipped check",
    "hazard",
    "trial on customers",
    "others' work",
    "stale basis",
    "coercion",
    "conflict of interest",
    "wrong addressee",
    "unknown origin",
    "unsure",
    "someone else",
    "audit settings",
    "approval gone",
    "more than asked",
    "must stay",
    "score fell",
    "fabricated trail",
    "recording paused",
    "wrong author",
    "records lost along",
    "namesake score",
    "silence as yes",
    "unfit approver",
)
#: Texts that ask for more for an access to data.
DATA = (
    *PERSON,
    "unusual",
    "conflict",
    "coercion",
    "someone else",
    "purpose",
    "fetched for others",
    *("unattended script",) * 2,
)
#: Texts by the kind of action that they fit; those that are listed often are drawn often.
FITS = {
    "read": HARMLESS,
    "change": (
        *HARMLESS,
        *WORK,
        "hides",
        "own gain",
        "real customers",
        *("late run", "runs into the night", "split up", "hidden deletion", "gain by detour"),
        *("cascading loss", "own rights prolonged"),
        *("unscored on live", "delayed live rollout", "wired to live"),
        # few other texts ask for MFA
        *("hidden secret", "hidden export", "secret exposed", "data to a tool", "tracker") * 4,
        *("share link", "debug dump", "test copy") * 4,
        *("hidden power", "new accounts", "members removed", "group nested", "goes around") * 2,
    ),
    "deletion": (
        *HARMLESS,
        *WORK,
        *("hides", "real customers", "late run", "runs into the night", "split up"),
        *("cascading loss", "unscored on live", "wired to live"),
    ),
    "rotation": (
        *HARMLESS,
        *WORK,
        *("unfamiliar device", "fresh enrolment", "device not listed") * 6,
        *("late run", "runs into the night", "unscored on live", "wired to live"),
    ),
    "secret": (*HARMLESS, *DATA),
    "export": (*HARMLESS, *DATA, "score fell", "namesake score"),
    "privileged": (
        *HARMLESS,
        "unusual",
        "conflict",
        "pending",
        "own gain",
        "conflict of interest",
        "coercion",
        "someone else",
        *PERSON,
        *("approval gone", "gain by detour", "score fell"),
        *("own rights prolonged", "namesake score", "silence as yes", "unfit approver"),
        *("role ended", "unattended script", "score void") * 2,
        *("unfamiliar device", "fresh enrolment", "device not listed") * 3,
    ),
    "override": (
        *HARMLESS,
        *("unusual", "incident over", "hides", "fabricated trail", "recording paused", "lock on the way"),
        *("run as locked", "wrong author", "records lost along"),
    ),
    "tampering": HARMLESS,
}


@dataclass(frozen=True)
class Facts:
    """The facts behind a situation. `margin` is the lowest trust score minus the needed; None: no score."""

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
    """The reference policy: what each clause asks for."""
    kind = facts.kind
    findings: list[Finding] = []

    def asks(condition: bool, outcome: str, clause: str, because: str) -> None:
        if condition:
            findings.append(Finding(outcome, clause, because))

    high = kind in NEEDED_TRUST
    change = kind not in ("read", "secret", "export")
    reads = kind in READS
    below = facts.margin is not None and facts.margin < 0 and not reads
    asks(facts.suspended, DENY, "R1", "The account is suspended, so it may do nothing.")
    asks(kind == "tampering", DENY, "R2", "Nobody may alter, delete or disable audit records or logging.")
    asks(kind == "privileged" and not facts.admin, DENY, "R3", "The subject has no admin or owner role.")
    asks(below and (facts.margin or 0) < -0.1, DENY, "R6", "Trust is far below what this needs.")
    asks(below, ATTEST, "R6", "Trust is slightly below what this needs, so a second person has to attest.")
    unscored = facts.margin is None and (high or (facts.production and not reads))
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
    asks(facts.pending and not reads, ATTEST, "R14", "The approval is still pending.")
    return findings


def needed_trust(facts: Facts) -> float:
    """The lowest trust score that the action needs."""
    return NEEDED_TRUST.get(facts.kind, 0.7 if facts.production else 0.5)


#: Texts that state a fact which no field holds. The clauses then judge the facts with it.
FACTS_IN_TEXT: dict[str, dict[str, Any]] = {
    "real customers": {"production": True},
    "late run": {"off_hours": True},
    "pending": {"pending": True},
    "someone else": {"suspended": True},
    "unfamiliar device": {"new_device": True},
    "hidden secret": {"kind": "secret"},
    "hidden export": {"kind": "export"},
    "hidden power": {"kind": "privileged"},
    "goes around": {"kind": "override"},
    "incident over": {"incident": False},
    "runs into the night": {"off_hours": True},
    "lock on the way": {"suspended": True},
    "role ended": {"admin": False},
    "unattended script": {"automation": True},
    "fresh enrolment": {"new_device": True},
    "secret exposed": {"kind": "secret"},
    "data to a tool": {"kind": "export"},
    "tracker": {"kind": "export"},
    "new accounts": {"kind": "privileged"},
    "members removed": {"kind": "privileged"},
    "group nested": {"kind": "privileged"},
    "unscored on live": {"production": True, "margin": None},
    "share link": {"kind": "export"},
    "debug dump": {"kind": "secret"},
    "test copy": {"kind": "export"},
    "device not listed": {"new_device": True},
    "delayed live rollout": {"production": True, "off_hours": True},
    "wired to live": {"production": True},
}


#: Texts that ask for MFA. None is drawn where MFA is done: a reader may then want more than R12 asks for.
ASKS_MFA = tuple(text for text, stated in FACTS_IN_TEXT.items() if stated.get("kind") in ("secret", "export"))


def with_text(facts: Facts, text: str | None) -> Facts:
    """The facts with the one that the text states."""
    stated = replace(facts, **FACTS_IN_TEXT.get(text or "", {}))
    if facts.margin is None or stated.margin is None:
        return stated
    return replace(stated, margin=round(facts.margin + needed_trust(facts) - needed_trust(stated), 2))


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
    """One situation. The text asks for more about as often as the facts do."""
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
    routine = chance.maybe(0.6)  # only the text can ask for more
    facts = Facts(
        kind=kind,
        production=kind not in ("privileged",) and chance.maybe(0.5),
        automation=chance.maybe(0.2),
        admin=chance.maybe(0.8 if kind == "privileged" else 0.1),
        suspended=not routine and chance.maybe(0.06),
        new_device=chance.maybe(0.4 if kind in ("rotation", "privileged") else 0.05),
        mfa=chance.maybe(0.4),
        off_hours=not routine and chance.maybe(0.4),
        incident=(kind == "override" and chance.maybe(0.6)) or chance.maybe(0.05),
        pending=not routine and chance.maybe(0.2),
        margin=_margin(chance, routine),
    )
    text = _choose_text_kind(kind, chance)
    return write(replace(facts, mfa=facts.mfa and text not in ASKS_MFA), chance, text)


def _choose_text_kind(kind: str, chance: Chance) -> str | None:
    """None for no text, a kind that changes nothing, or a kind that asks for more where one fits."""
    adding = [text for text in FITS[kind] if text not in HARMLESS]
    how = chance.weighted(none=0.45, harmless=0.25, adding=0.3)
    if how == "none":
        return None
    if how == "adding" and adding:
        return chance.choice(adding)
    near = kind in ("change", "deletion", "rotation") and chance.maybe(0.5)
    return chance.choice(REASSURING if near else HARMLESS)


def _margin(chance: Chance, routine: bool) -> float | None:
    """A margin of trust; with `routine` it is never negative and never None."""
    if not routine and chance.maybe(0.12):
        return None
    if not routine and chance.maybe(0.4):
        return -round(chance.uniform(0.01, 0.3), 2)
    return round(chance.uniform(0.0, 0.18), 2)


def write(facts: Facts, chance: Chance, text: str | None) -> Situation:
    """The situation in words, with a text of the kind `text`."""
    number = chance.randrange(len(WORDS["words"][facts.kind]))
    action, resource_type, resource_id = WORDS["words"][facts.kind][number]
    names = chance.sample(WORDS["people"], 3)
    environment = (
        chance.choice(("production", "prod")) if facts.production else chance.choice(("staging", "dev", "qa"))
    )
    resource_id = resource_id.format(e=environment, n=names[1])
    if resource_type not in ("user", "account", "team", "group") and chance.maybe(0.4):
        resource_id += chance.choice(("-eu", "-2", "-north", "-b", "-7"))
    subject: dict[str, Any] = {"type": "user", "id": names[0]}
    if facts.automation:
        subject = {"type": chance.choice(("service", "bot")), "id": chance.choice(WORDS["machines"])}
    properties: dict[str, Any] = {"role": chance.choice(WORDS["admin_roles" if facts.admin else "roles"])}
    if not facts.admin and chance.maybe(0.05):
        del properties["role"]
    if facts.margin is not None:
        lowest = round(min(1.0, needed_trust(facts) + facts.margin), 2)
        scores = [lowest, *(round(chance.uniform(lowest, 1.0), 2) for _ in range(2))]
        names_of = ["competence", "reliability", "integrity"]
        chance.shuffle(names_of)  # the first has the lowest score; the last may be missing
        trust = list(zip(names_of, scores, strict=True))[: 2 if chance.maybe(0.1) else 3]
        properties["trust"] = dict(sorted(trust) if chance.maybe(0.7) else trust)
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
        words = {
            "t": f"{chance.choice(WORDS['trackers'])}-{chance.randrange(10, 9999)}",
            "n": names[2],
            "m": chance.choice(WORDS["people"]),
            "x": str(chance.randrange(2, 60)),
            "h": f"{chance.randrange(7, 20):02d}:{chance.randrange(60):02d}",
            "d": chance.choice(WORDS["days"]),
        }
        evidence = draw_text(TEXTS, text, chance, **words)
        place = "recent_history" if text == "unusual" else "details"
        if place == "details" and chance.maybe(0.15):
            place = "team_context"
        context[place] = [evidence.text] if place == "recent_history" else evidence.text
    for name in chance.sample(sorted(WORDS["distractors"]), chance.choice((0, 0, 1, 2))):
        context[name] = chance.choice(WORDS["distractors"][name])  # fields that no pack shows
    if chance.maybe(0.3):
        context = _shuffled(context, chance)
        subject["properties"] = _shuffled(properties, chance)
    evaluation = {
        "subject": subject,
        "action": {"name": action, "properties": {}},
        "resource": {"type": resource_type, "id": resource_id, "properties": {}},
        "context": context,
    }
    return _label(facts, evaluation, evidence, f"{facts.kind}/{number}")


def _label(facts: Facts, evaluation: dict[str, Any], evidence: Evidence | None, template: str) -> Situation:
    """The situation of these facts and this text, with the label that follows."""
    text = evidence.kind if evidence else None
    good = Finding("allow", "R15", "Trust meets the need and nothing stands in the way.")
    if facts.automation:
        good = Finding("allow", "R13", "This is routine work of automation.")
    findings = reference(facts)
    if text in FACTS_IN_TEXT:
        findings += reference(with_text(facts, text))
    outcome, clauses, because = strictest(OUTCOMES, findings, good, evidence)
    risk = risk_of(facts)
    if risk == "medium" and evaluation["resource"]["type"] in ("db", "table"):
        risk = "high"
    return Situation(
        pack=PACK,
        evaluation=evaluation,
        outcome=outcome,
        risk=risk,
        clauses=clauses,
        reasoning=because,
        template=template,
        evidence=text or "none",
    )


def _shuffled(members: dict[str, Any], chance: Chance) -> dict[str, Any]:
    names = list(members)
    chance.shuffle(names)
    return {name: members[name] for name in names}


def pairs(chance: Chance) -> Iterator[tuple[str, Situation, Situation]]:
    """Endless: the kind of a fact, and two situations that differ in it alone, the looser one first."""
    while True:
        for fact in chance.sample(_PAIRED, len(_PAIRED)):
            loose, strict = _pair(fact, chance)
            if OUTCOMES.index(loose.outcome) < OUTCOMES.index(strict.outcome):
                yield fact, loose, strict


_PAIRED = (
    "account",
    "approval",
    "device",
    "environment",
    "hours",
    "incident",
    "mfa",
    "role",
    "trust",
    "trust far below",
    "user or machine",
)
#: The facts that pairs differ in: kinds of action, path of the leaf, field of `Facts`, looser and stricter
#: values.
_LEAVES: dict[str, tuple[tuple[str, ...], tuple[str, ...], str, tuple[Any, ...], tuple[Any, ...]]] = {
    "account": (
        ("read", "change", "rotation", "secret"),
        ("subject", "properties", "identity", "account"),
        "suspended",
        ("active", "enabled"),
        ("suspended", "locked", "disabled"),
    ),
    "approval": (
        ("change", "rotation", "deletion"),
        ("context", "approval_status"),
        "pending",
        ("approved", "granted"),
        ("requested", "pending", "in review"),
    ),
    "device": (
        ("rotation", "privileged"),
        ("subject", "properties", "identity", "device"),
        "new_device",
        ("known", "enrolled"),
        ("new", "first seen", "unrecognized"),
    ),
    "environment": (
        ("change",),
        ("context", "environment"),
        "production",
        ("staging", "dev", "qa"),
        ("production", "prod"),
    ),
    "hours": (("change", "rotation"), ("context", "timestamp"), "off_hours", (), ()),
    "incident": (
        ("override", "change"),
        ("context", "incident_status"),
        "incident",
        ("active", "ongoing", "declared"),
        ("resolved", "none", "closed"),
    ),
    "mfa": (
        ("secret", "export"),
        ("subject", "properties", "identity", "mfa"),
        "mfa",
        (True,),
        (False,),
    ),
    "role": (
        ("privileged",),
        ("subject", "properties", "role"),
        "admin",
        ("admin", "owner", "platform-admin"),
        ("developer", "senior engineer", "support", "project lead"),
    ),
    "user or machine": (
        ("secret", "export", "privileged"),
        ("subject", "type"),
        "automation",
        ("user",),
        ("service", "bot"),
    ),
}
#: Facts that make a situation looser where they are true.
_LOOSENING = ("admin", "incident", "mfa")


def _pair(fact: str, chance: Chance) -> tuple[Situation, Situation]:
    """Two situations that differ in `fact`; their labels may still be the same."""
    text = chance.choice(HARMLESS) if chance.maybe(0.4) else None
    margin = round(chance.uniform(0.0, 0.15), 2)
    if fact in ("trust", "trust far below"):
        kind = chance.choice(("change", "rotation", "export", "privileged"))
        margin = round(chance.uniform(0.0, 0.06) - (0.1 if fact != "trust" else 0.0), 2)
        facts = Facts(kind, kind != "privileged" and chance.maybe(0.5), admin=True, mfa=True, margin=margin)
        situation = write(facts, chance, text)
        scores = situation.evaluation["subject"]["properties"]["trust"]
        name = min(scores, key=scores.__getitem__)
        lower = round(margin - chance.uniform(0.03, 0.09), 2)
        leaf = ("subject", "properties", "trust", name)
        value = round(scores[name] - margin + lower, 2)
        return situation, _with_leaf(situation, leaf, value, replace(facts, margin=lower))
    kinds, path, field, loose_values, strict_values = _LEAVES[fact]
    kind = chance.choice(kinds)
    production = fact in ("hours", "incident") or (fact != "environment" and chance.maybe(0.5))
    facts = Facts(
        kind,
        production=production and kind != "privileged",
        admin=kind == "privileged" or chance.maybe(0.1),
        mfa=fact not in ("account", "approval") or chance.maybe(0.5),
        off_hours=fact == "incident",
        margin=margin,
    )
    loosening = field in _LOOSENING
    loose_fact: dict[str, Any] = {field: loosening}
    strict_fact: dict[str, Any] = {field: not loosening}
    loose_facts, strict_facts = replace(facts, **loose_fact), replace(facts, **strict_fact)
    if fact == "environment":
        strict_facts = replace(strict_facts, margin=round(margin - 0.2, 2))
    if fact == "hours":
        loose_values, strict_values = (_time(chance, False),), (_time(chance, True),)
    situation = write(loose_facts, chance, text)
    kind_of_target = WORDS["words"][kind][int(situation.template.split("/")[1])][2]
    if fact == "environment" and "{e}" in kind_of_target:
        return situation, situation
    loose = _with_leaf(situation, path, chance.choice(loose_values), loose_facts)
    return loose, _with_leaf(loose, path, chance.choice(strict_values), strict_facts)


def _with_leaf(situation: Situation, path: tuple[str, ...], value: Any, facts: Facts) -> Situation:
    """The same situation with another value of one leaf, and the label of `facts`."""
    evaluation = deepcopy(situation.evaluation)
    *folders, leaf = path
    place = evaluation
    for folder in folders:
        place = place.setdefault(folder, {})
    place[leaf] = value
    kind = situation.evidence
    evidence = None if kind == "none" else Evidence(kind, "", TEXTS[kind][0])
    return _label(facts, evaluation, evidence, situation.template)


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
