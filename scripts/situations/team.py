"""Situations of an engineering team, by the clauses of prompts/team-governance.

Owns their facts, words and reference policy. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from situations import Chance, Evidence, Finding, Situation, judged, said, words

PACK = "team-governance"
OUTCOMES = ("allow", "require_mfa", "require_attestation", "deny")
MFA, ATTEST, DENY = OUTCOMES[1:]

WORDS, TEXTS = words("team")
#: What reads, and so needs no trust and no approval.
READS = ("read", "secret")
#: What the kind needs of the lowest trust score.
NEED = {"privileged": 0.8, "override": 0.8, "tampering": 0.8}
#: Texts that add nothing to any action.
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
#: Texts near those that add something, with a word that turns the meaning: they add nothing either.
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
#: Texts about who asks and why: they add something to whatever is more than a read.
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
#: Texts that add something to whatever changes something.
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
#: Texts that add something to an access to data.
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
#: Which kinds of text make sense beside which kinds of action.
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
        # hardly anything else in text asks for MFA
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
    return found


def need(facts: Facts) -> float:
    """The trust that the action needs."""
    return NEED.get(facts.kind, 0.7 if facts.production else 0.5)


#: Texts that tell a fact which no field holds. The clauses then judge the facts with it.
TELLS: dict[str, dict[str, Any]] = {
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


#: Texts that ask for MFA: with it done already a reader might want more than R12 says.
ASKS_MFA = tuple(text for text, so in TELLS.items() if so.get("kind") in ("secret", "export"))


def told(facts: Facts, text: str | None) -> Facts:
    """The facts as they are by what the text tells."""
    so = replace(facts, **TELLS.get(text or "", {}))
    if so.margin is None:
        return so
    return replace(so, margin=round(facts.margin + need(facts) - need(so), 2))


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
    text = _text(kind, chance)
    return written(replace(facts, mfa=facts.mfa and text not in ASKS_MFA), chance, text)


def _text(kind: str, chance: Chance) -> str | None:
    """No text, one that adds nothing, or one that adds something, where there is such a one."""
    adding = [text for text in FITS[kind] if text not in HARMLESS]
    how = chance.weighted(none=0.45, harmless=0.25, adding=0.3)
    if how == "none":
        return None
    if how == "adding" and adding:
        return chance.choice(adding)
    near = kind in ("change", "deletion", "rotation") and chance.maybe(0.5)
    return chance.choice(REASSURING if near else HARMLESS)


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
    if resource_type not in ("user", "account", "team", "group") and chance.maybe(0.4):
        resource_id += chance.choice(("-eu", "-2", "-north", "-b", "-7"))
    subject: dict[str, Any] = {"type": "user", "id": names[0]}
    if facts.automation:
        subject = {"type": chance.choice(("service", "bot")), "id": chance.choice(WORDS["machines"])}
    properties: dict[str, Any] = {"role": chance.choice(WORDS["admin_roles" if facts.admin else "roles"])}
    if not facts.admin and chance.maybe(0.05):
        del properties["role"]
    if facts.margin is not None:
        lowest = round(min(1.0, need(facts) + facts.margin), 2)
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
        more = {
            "t": f"{chance.choice(WORDS['trackers'])}-{chance.randrange(10, 9999)}",
            "n": names[2],
            "m": chance.choice(WORDS["people"]),
            "x": str(chance.randrange(2, 60)),
            "h": f"{chance.randrange(7, 20):02d}:{chance.randrange(60):02d}",
            "d": chance.choice(WORDS["days"]),
        }
        evidence = said(TEXTS, text, chance, **more)
        place = "recent_history" if text == "unusual" else "details"
        if place == "details" and chance.maybe(0.15):
            place = "team_context"
        context[place] = [evidence.text] if place == "recent_history" else evidence.text
    for name in chance.sample(sorted(WORDS["distractors"]), chance.choice((0, 0, 1, 2))):
        context[name] = chance.choice(WORDS["distractors"][name])  # no field shows them
    if chance.maybe(0.3):
        context = _shuffled(context, chance)
        subject["properties"] = _shuffled(properties, chance)
    evaluation = {
        "subject": subject,
        "action": {"name": action, "properties": {}},
        "resource": {"type": resource_type, "id": resource_id, "properties": {}},
        "context": context,
    }
    return _labelled(facts, evaluation, evidence, f"{facts.kind}/{number}")


def _labelled(
    facts: Facts, evaluation: dict[str, Any], evidence: Evidence | None, template: str
) -> Situation:
    text = evidence.kind if evidence else None
    good = Finding("allow", "R15", "Trust meets the need and nothing stands in the way.")
    if facts.automation:
        good = Finding("allow", "R13", "This is routine work of automation.")
    found = reference(facts)
    if text in TELLS:
        found += reference(told(facts, text))
    outcome, clauses, because = judged(OUTCOMES, found, good, evidence)
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


def _shuffled(one: dict[str, Any], chance: Chance) -> dict[str, Any]:
    names = list(one)
    chance.shuffle(names)
    return {name: one[name] for name in names}


def pairs(chance: Chance) -> Iterator[tuple[str, Situation, Situation]]:
    """Without end: the kind of a fact, and two situations that differ in it alone, the looser one first."""
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
#: What a pair is about: the kinds of action, the leaf, and its two values with what they mean.
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
#: Facts that loosen where they hold.
_LOOSENING = ("admin", "incident", "mfa")


def _pair(fact: str, chance: Chance) -> tuple[Situation, Situation]:
    """Two situations with the same words; whether the labels differ depends on the rest."""
    text = chance.choice(HARMLESS) if chance.maybe(0.4) else None
    margin = round(chance.uniform(0.0, 0.15), 2)
    if fact in ("trust", "trust far below"):
        kind = chance.choice(("change", "rotation", "export", "privileged"))
        least = margin = round(chance.uniform(0.0, 0.06) - (0.1 if fact != "trust" else 0.0), 2)
        facts = Facts(kind, kind != "privileged" and chance.maybe(0.5), admin=True, mfa=True, margin=margin)
        one = written(facts, chance, text)
        scores = one.evaluation["subject"]["properties"]["trust"]
        name = min(scores, key=scores.__getitem__)
        less = round(least - chance.uniform(0.03, 0.09), 2)
        path = ("subject", "properties", "trust", name)
        value = round(scores[name] - least + less, 2)
        return one, _changed(one, path, value, replace(facts, margin=less))
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
    loose_facts = replace(facts, **{field: field in _LOOSENING})
    strict_facts = replace(facts, **{field: field not in _LOOSENING})
    if fact == "environment":
        strict_facts = replace(strict_facts, margin=round(margin - 0.2, 2))
    if fact == "hours":
        loose_values, strict_values = (_time(chance, False),), (_time(chance, True),)
    one = written(loose_facts, chance, text)
    kind_of_target = WORDS["words"][kind][int(one.template.split("/")[1])][2]
    if fact == "environment" and "{e}" in kind_of_target:
        return one, one
    loose = _changed(one, path, chance.choice(loose_values), loose_facts)
    return loose, _changed(loose, path, chance.choice(strict_values), strict_facts)


def _changed(one: Situation, path: tuple[str, ...], value: Any, facts: Facts) -> Situation:
    """The same situation with another value of one leaf, and the label for its facts."""
    evaluation = deepcopy(one.evaluation)
    *folders, leaf = path
    place = evaluation
    for folder in folders:
        place = place.setdefault(folder, {})
    place[leaf] = value
    evidence = None if one.evidence == "none" else Evidence(one.evidence, "", TEXTS[one.evidence][0])
    return _labelled(facts, evaluation, evidence, one.template)


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
