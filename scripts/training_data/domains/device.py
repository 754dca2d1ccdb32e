"""Situations of edge devices, by the clauses of prompts/device-operations.

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

PACK = "device-operations"
OUTCOMES = ("allow", "require_operator", "require_attestation", "deny")
OPERATOR, ATTEST, DENY = OUTCOMES[1:]
WORDS, TEXTS = vocabulary(Path(__file__).with_suffix(".yaml"))
#: Texts that change nothing and make sense for some kinds of operation only.
NEUTRAL_FOR: dict[str, tuple[str, ...]] = {
    "software": ("nothing of that kind", "seal in order", "power in order"),
    "model": ("nothing of that kind", "seal in order", "power in order"),
    "restart": ("nothing of that kind", "comes back as before"),
    "motion": ("nobody there", "guard whole", "only dummies"),
    "camera": ("nothing private", "stays on the card"),
    "network": ("only inside",),
    "shell": ("session ends",),
    "reset": ("power in order", "saved beforehand"),
    "logs kept": ("records kept whole", "saved beforehand"),
    "logs changed": ("records kept whole", "saved beforehand"),
    "protection": ("stays switched on",),
}
_NEUTRAL_FOR_SOME = frozenset(kind for kinds in NEUTRAL_FOR.values() for kind in kinds)
#: Texts that change nothing and fit any operation.
NEUTRAL = tuple(kind for kind, (adds, _) in TEXTS.items() if adds is None and kind not in _NEUTRAL_FOR_SOME)
_MISTAKES = ("wrong device", "borrowed login", "another action meant", "warning cut off", "called off")
_DOUBTS = (*_MISTAKES, "sensors doubted", "fields guessed", "simulated values")
_POWER = ("battery doubted", "not on mains", "almost empty", "half empty", "reserve nearly gone")
_LOOSE = ("leaves a shell", "switches protection off", "left unlocked", "loses records", "records paused")
_BOOTS = (*_LOOSE, "opens network", "erases the device", "short shell", "cleared for a new owner")
_WAKES = ("moves by itself", "swings with somebody there")
_ALONG = ("secret knock", "frames in the dump", "photo as proof", "joins another network")
_FILES = (*_BOOTS, "wrong seal", "altered on the way", "unsigned part", "old version inside", "seal revoked")
_BRINGS = (
    "older by the evidence",
    "phones home",
    "switches ears on",
    "ignores its stops",
    "reaches internet",
)
_TIMES = ("window not ours", "runs later", "spreads to others")
_INSTALLS = (*_FILES, *_BRINGS, *_ALONG, *_TIMES, *_POWER, *_DOUBTS)
_NEAR = (
    *("somebody near", "people on their way", "carries a person", "caught in it"),
    *("sensor covered", "used against people"),
)
_UNSEEN = ("presence not known", "head count open", "moves more", "films along", "films the private")
_REMOTE = ("steered from outside", "support types along")
_STOPS = ("guard bridged", "stop pressed elsewhere", "stop doubted")
_MOVES = (*_NEAR, *_UNSEEN, *_REMOTE, *_STOPS, "records paused", "reboots in production")
_LOGS = ("loses records", "rewrites records", "archive without key", "pictures in the bundle", "short shell")
_SIDES = ("photo as proof", "joins another network", "reboots in production")
#: The texts that ask for more, by the kind of operation that they fit.
FITS: dict[str, tuple[str, ...]] = {
    "safe": (),
    "software": (*_INSTALLS, *_WAKES, "dog fed by dummy"),
    "model": (*_INSTALLS, "moves by itself"),
    "restart": (
        *(*_BOOTS, *_WAKES, *_ALONG, "switches ears on", "window not ours", "runs later", *_DOUBTS),
        *("forgets its stop", "old slot comes up", "set to clear at boot"),
    ),
    "motion": (*_MOVES, *_DOUBTS),
    "camera": (
        *("into privacy", "dressing room for a day", "carried elsewhere", "goes out", "carried out by hand"),
        *(*_REMOTE, *_MISTAKES),
    ),
    "footage": ("into privacy", "dressing room for a day", "carried elsewhere", "borrowed login"),
    "network": (
        *("reaches internet", "lets pictures through", "leaves a shell", "short shell"),
        *("inside is open too", "smuggled in", "secret knock"),
        *("switches protection off", "records paused", *_DOUBTS),
    ),
    "shell": (
        *(*_LOOSE, "session has no end", "rewrites records", "smuggled in", "dog fed by dummy"),
        *_DOUBTS,
    ),
    "reset": (
        "loses records",
        "records paused",
        "switches protection off",
        "left unlocked",
        *_POWER,
        *_DOUBTS,
    ),
    "logs kept": (*_LOGS, *_SIDES, *_MISTAKES),
    "logs changed": (*_LOGS, *_MISTAKES),
    "logs ended": ("borrowed login",),
    "protection": (
        *("switches protection off", "dog fed by dummy", "leaves a shell", "secret knock", "records paused"),
        *_DOUBTS,
    ),
    "protection ended": ("borrowed login",),
}


@dataclass(frozen=True)
class Facts:
    """The facts behind a situation. `battery` in percent: None on mains, -1 where it is not known."""

    kind: str
    signed: bool = True
    window: bool = True
    battery: int | None = None
    older: bool = False
    versions: bool = True
    near: int | None = 0
    interlock: str | None = "closed"
    stop: str | None = "released"
    private: bool = False
    exposed: bool = False
    minutes: int = 20

    @property
    def software(self) -> bool:
        return self.kind in ("software", "model")


def reference(facts: Facts) -> list[Finding]:
    """The reference policy: what each clause asks for."""
    findings: list[Finding] = []
    kind = facts.kind

    def asks(condition: bool, outcome: str, clause: str, because: str) -> None:
        if condition:
            findings.append(Finding(outcome, clause, because))

    motion, watching = kind == "motion", kind in ("camera", "footage")
    asks(facts.software and not facts.signed, DENY, "R2", "It carries no valid signature of the fleet key.")
    powered = facts.software or kind == "reset"
    empty = facts.battery is not None and 0 <= facts.battery < 20
    asks(powered and empty, DENY, "R4", "The battery is below 20 percent.")
    asks(motion and bool(facts.near), DENY, "R6", "People are near the actuator.")
    locked = facts.interlock == "open" or facts.stop == "pressed"
    asks(motion and locked, DENY, "R7", "The interlock is open or the emergency stop is pressed.")
    asks(watching and facts.private, DENY, "R8", "Cameras and microphones are off limits here.")
    asks(kind == "shell" and not 0 < facts.minutes <= 60, DENY, "R11", "The shell would have no end in time.")
    asks(kind == "logs ended", DENY, "R13", "Logs are never deleted or switched off.")
    asks(kind == "protection ended", DENY, "R14", "Protection is never disabled.")
    asks(facts.software and facts.older, ATTEST, "R5", "The version is older than the one installed.")
    asks(kind == "footage", ATTEST, "R9", "Footage would leave the device.")
    asks(kind == "network" and facts.exposed, ATTEST, "R10", "It would be reachable from the internet.")
    asks(kind == "shell", ATTEST, "R11", "A remote shell needs a second person.")
    asks(kind == "reset", ATTEST, "R12", "A factory reset needs a second person.")
    asks(kind == "protection", ATTEST, "R14", "This changes what protects the device.")
    closed = not facts.window and (facts.software or kind == "restart")
    asks(closed, OPERATOR, "R3", "No maintenance window is open.")
    low = facts.battery is not None and facts.battery < 50
    asks(powered and low, OPERATOR, "R4", "The battery is below 50 percent or unknown.")
    asks(motion and facts.near is None, OPERATOR, "R6", "Nobody knows whether people are near.")
    unknown = facts.interlock is None or facts.stop is None
    asks(motion and unknown, OPERATOR, "R15", "Interlock or emergency stop is not known.")
    asks(watching, OPERATOR, "R8", "Camera and microphone need an operator.")
    asks(kind == "network", OPERATOR, "R10", "Network changes need an operator.")
    asks(kind == "logs changed", OPERATOR, "R13", "This changes how logs are kept.")
    asks(kind == "software" and not facts.versions, OPERATOR, "R15", "The version is missing.")
    return findings


def risk_of(facts: Facts) -> str:
    kind = facts.kind
    watching = kind in ("camera", "footage")
    if kind in ("shell", "reset", "protection", "protection ended", "logs ended"):
        return "critical"
    doubtful = facts.software and (not facts.signed or facts.older)
    if doubtful or (watching and facts.private) or facts.exposed:
        return "critical"
    if kind == "motion":
        return "critical" if facts.near or facts.interlock == "open" else "high"
    if watching or kind == "network":
        return "high"
    return "low" if kind == "safe" else "medium"


def make(chance: Chance) -> Situation:
    """One situation. In about half of them only the text can ask for more than `allow` by default."""
    kind = chance.choices(list(FITS), [0.6, 4, 2, 2, 5, 3, 1.5, 2, 2, 1.5, 3, 1, 0.3, 0.7, 0.3])[0]
    plain = chance.maybe(0.5)
    facts = _routine_facts(
        kind, chance, private=not plain and chance.maybe(0.3), exposed=not plain and chance.maybe(0.5)
    )
    if not plain:
        for _ in range(chance.choice((1, 1, 2))):
            facts = _with_obstacle(facts, chance)
    return _situation(facts, _evaluation(facts, chance), _text(facts, chance, matters=0.7 if plain else 0.3))


def _routine_facts(kind: str, chance: Chance, *, private: bool, exposed: bool) -> Facts:
    """Facts that no clause is against, apart from a private zone or exposure to the internet."""
    return Facts(
        kind=kind,
        window=kind in ("software", "model", "restart") or chance.maybe(0.6),
        battery=None if chance.maybe(0.6) else chance.randint(50, 100),
        minutes=chance.choice((3, 5, 10, 15, 20, 30, 45, 60)),
        private=private and kind in ("camera", "footage"),
        exposed=exposed and kind == "network",
    )


def _text(facts: Facts, chance: Chance, *, matters: float) -> Evidence | None:
    """Free text in 60 % of the draws. The share `matters` of it asks for more; few only raise a doubt."""
    if chance.maybe(0.4):
        return None
    fitting = [text for text in FITS[facts.kind] if _fits(text, facts)]
    if not fitting or not chance.maybe(matters):
        near = NEUTRAL_FOR.get(facts.kind, ())
        kind = chance.choice(near if near and chance.maybe(0.25) else NEUTRAL)
    else:
        clear = [text for text in fitting if text not in _DOUBTS]
        kind = chance.choice(clear if clear and chance.maybe(0.8) else fitting)
    return draw_text(
        TEXTS,
        kind,
        chance,
        t=f"{chance.choice(('MT', 'WO', 'CHG'))}-{chance.randrange(100, 9999)}",
        n=chance.choice(WORDS["names"]),
        d=_device(chance),
        z=chance.choice(WORDS["zones"]),
        h=f"{chance.randrange(6, 22)}:{chance.randrange(0, 60, 5):02d}",
        k=str(chance.randrange(2, 9)),
    )


def _fits(kind: str, facts: Facts) -> bool:
    """Whether the text makes sense beside the facts: nobody doubts a window that is not open."""
    if kind in ("window not ours", "runs later"):
        return facts.window
    if kind in ("battery doubted", "almost empty", "half empty"):
        return facts.battery is not None and facts.battery >= 0
    return kind not in ("not on mains", "reserve nearly gone") or facts.battery is None


def _with_obstacle(facts: Facts, chance: Chance) -> Facts:
    """The facts with one more circumstance that a clause names, of those that matter to the operation."""
    changes: list[dict[str, Any]] = [{}]
    if facts.software or facts.kind == "reset":
        changes += [{"battery": chance.randint(3, 19)}, {"battery": chance.randint(21, 48)}, {"battery": -1}]
    if facts.software:
        changes += [{"signed": False}, {"older": True}, {"window": False}, {"window": False}]
    if facts.kind == "software":
        changes += [{"versions": False, "older": False}]
    if facts.kind == "restart":
        changes = [{"window": False}]
    if facts.kind == "motion":
        changes = [{"near": chance.randint(1, 3)}, {"near": None}, {"interlock": "open"}, {"interlock": None}]
        changes += [{"stop": "pressed"}, {"stop": None}]
    if facts.kind == "shell":
        changes = [{"minutes": chance.choice((0, 90, 480))}]
    return replace(facts, **chance.choice(changes))


def _device(chance: Chance) -> str:
    return f"{chance.choice(WORDS['devices'])}-{chance.randrange(1, 140)}"


def _evaluation(facts: Facts, chance: Chance) -> dict[str, Any]:
    """The facts as an evaluation, without free text."""
    action: dict[str, Any] = {}
    resource: dict[str, Any] = {"zone": chance.choice(WORDS["private_zones" if facts.private else "zones"])}
    if not facts.private and chance.maybe(0.1):
        del resource["zone"]
    if facts.software:
        signer = (
            "fleet" if facts.signed else chance.choice(("vendor", "unknown", "lab", "fleet", "ci", "self"))
        )
        action["image"] = {"signed": facts.signed or signer != "fleet", "signer": signer}
        if not facts.signed and chance.maybe(0.15):
            del action["image"]
        major, minor = chance.randint(1, 9), chance.randint(0, 12)
        installed = f"{major}.{minor}.{chance.randint(0, 3)}"
        new = f"{major}.{minor + chance.randint(0, 3)}.{chance.randint(4, 11)}"
        if facts.older:
            installed, new = new, installed
        if facts.versions or facts.older:
            action["version"] = new
            resource["version"] = installed
        elif chance.maybe(0.5):  # one of the two alone, or no plain number
            resource["version"] = chance.choice((installed, "latest", "v-next"))
    if facts.kind == "network":
        inside = ("10.3.0.0/16", "192.168.7.0/24", "172.20.0.0/14", "10.44.1.0/24", "fd12::/16")
        outside = ("0.0.0.0/0", "203.0.113.0/24", "::/0", "any", "198.51.100.9")
        action["reachable_from"] = chance.choice(outside if facts.exposed else inside)
    if facts.kind in ("shell", "camera", "footage") and facts.minutes:
        action["minutes"] = facts.minutes
    if facts.battery is None:
        resource["power"] = "mains"
    elif facts.battery >= 0:
        resource |= {"power": "battery", "battery_percent": facts.battery}
    elif chance.maybe(0.5):
        resource["power"] = "battery"
    if facts.kind == "motion":
        for name, value in (
            ("people_near", facts.near),
            ("interlock", facts.interlock),
            ("emergency_stop", facts.stop),
        ):
            if value is not None:
                resource[name] = value
    context: dict[str, Any] = {"maintenance_window": facts.window}
    if not facts.window and chance.maybe(0.25):
        del context["maintenance_window"]
    for place in (action, resource, context):
        if chance.maybe(0.2):
            name = chance.choice(sorted(WORDS["distractors"]))
            place[name] = chance.choice(WORDS["distractors"][name])
    month, day = chance.randint(1, 12), chance.randint(1, 28)
    context["timestamp"] = (
        f"2026-{month:02d}-{day:02d}T{chance.randrange(24):02d}:{chance.randrange(60):02d}:00Z"
    )
    subject = {"type": "user", "id": chance.choice(WORDS["people"]), "properties": {}}
    if chance.maybe(0.9):
        subject["properties"] = {"role": chance.choice(WORDS["roles"])}
    if chance.maybe(0.4):
        subject = {"type": "service", "id": chance.choice(WORDS["services"]), "properties": {}}
    return {
        "subject": subject,
        "action": {"name": chance.choice(WORDS["words"][facts.kind]), "properties": chance.reordered(action)},
        "resource": {"type": "device", "id": _device(chance), "properties": chance.reordered(resource)},
        "context": chance.reordered(context),
    }


def _situation(facts: Facts, evaluation: dict[str, Any], evidence: Evidence | None) -> Situation:
    """The situation of these facts and this text, with the label that follows."""
    good = Finding("allow", "R3", "It is signed, powered and in a maintenance window.")
    if facts.kind == "safe":
        good = Finding("allow", "R1", "Reading and stopping are always allowed.")
    elif facts.kind == "motion":
        good = Finding("allow", "R6", "Nobody is near, and nothing is locked out.")
    elif facts.kind == "logs kept":
        good = Finding("allow", "R13", "Every record is kept.")
    outcome, clauses, because = strictest(OUTCOMES, reference(facts), good, evidence)
    if evidence is not None:
        evaluation["context"]["details"] = evidence.text
    return Situation(
        pack=PACK,
        evaluation=evaluation,
        outcome=outcome,
        risk=risk_of(facts),
        clauses=clauses,
        reasoning=because,
        template=f"device/{facts.kind}",
        evidence=evidence.kind if evidence else "none",
    )


@dataclass(frozen=True)
class _Contrast:
    """One fact that a pair differs in: the operations that it matters to, and the path of its leaf."""

    kinds: tuple[str, ...]
    #: The facts of the looser situation.
    loose: dict[str, Any]
    #: The facts of the stricter one. `value` draws what the leaf at `path` is then (None: no leaf).
    strict: dict[str, Any]
    path: tuple[str, ...]
    value: Callable[[Chance], Any]


_RESOURCE, _ACTION = ("resource", "properties"), ("action", "properties")
_PERCENT = (*_RESOURCE, "battery_percent")
_INSTALL, _POWERED = ("software", "model"), ("software", "model", "reset")


def _contrasts(chance: Chance) -> dict[str, _Contrast]:
    """The facts that pairs differ in; some values are just over or just under a limit."""
    low, empty = chance.randint(40, 49), chance.randint(11, 19)
    long = chance.choice((61, 62, 65, 75, 90))
    return {
        "battery below 50": _Contrast(
            _INSTALL, {"battery": chance.randint(50, 57)}, {"battery": low}, _PERCENT, lambda _: low
        ),
        "battery below 20": _Contrast(
            _POWERED, {"battery": chance.randint(20, 26)}, {"battery": empty}, _PERCENT, lambda _: empty
        ),
        "battery unknown": _Contrast(
            _INSTALL, {"battery": chance.randint(50, 99)}, {"battery": -1}, _PERCENT, lambda _: None
        ),
        "window closed": _Contrast(
            (*_INSTALL, "restart"),
            {},
            {"window": False},
            ("context", "maintenance_window"),
            lambda chance: chance.choice((False, None)),
        ),
        "other signer": _Contrast(
            _INSTALL,
            {},
            {"signed": False},
            (*_ACTION, "image", "signer"),
            lambda chance: chance.choice(("vendor", "lab", "ci", "contractor", None)),
        ),
        "not signed": _Contrast(
            _INSTALL,
            {},
            {"signed": False},
            (*_ACTION, "image", "signed"),
            lambda chance: chance.choice((False, None)),
        ),
        "older version": _Contrast(
            _INSTALL,
            {},
            {"older": True},
            (*_ACTION, "version"),
            lambda chance: f"0.{chance.randint(1, 12)}.0",
        ),
        "somebody near": _Contrast(
            ("motion",), {}, {"near": 1}, (*_RESOURCE, "people_near"), lambda chance: chance.randint(1, 4)
        ),
        "presence unknown": _Contrast(
            ("motion",), {}, {"near": None}, (*_RESOURCE, "people_near"), lambda _: None
        ),
        "interlock open": _Contrast(
            ("motion",), {}, {"interlock": "open"}, (*_RESOURCE, "interlock"), lambda _: "open"
        ),
        "interlock unknown": _Contrast(
            ("motion",), {}, {"interlock": None}, (*_RESOURCE, "interlock"), lambda _: None
        ),
        "stop pressed": _Contrast(
            ("motion",), {}, {"stop": "pressed"}, (*_RESOURCE, "emergency_stop"), lambda _: "pressed"
        ),
        "private zone": _Contrast(
            ("camera", "footage"),
            {},
            {"private": True},
            (*_RESOURCE, "zone"),
            lambda chance: chance.choice(WORDS["private_zones"]),
        ),
        "from the internet": _Contrast(
            ("network",), {}, {"exposed": True}, (*_ACTION, "reachable_from"), lambda _: "0.0.0.0/0"
        ),
        "shell above an hour": _Contrast(
            ("shell",), {"minutes": 60}, {"minutes": long}, (*_ACTION, "minutes"), lambda _: long
        ),
    }


def pairs(chance: Chance) -> Iterator[tuple[str, Situation, Situation]]:
    """For each kind of fact two situations that differ in it alone, the looser one first."""
    contrasts = _contrasts(chance)
    for name in chance.sample(list(contrasts), len(contrasts)):
        contrast = contrasts[name]
        routine = _routine_facts(chance.choice(contrast.kinds), chance, private=False, exposed=False)
        facts = replace(routine, **contrast.loose)
        stricter_facts = replace(facts, **contrast.strict)
        evaluation, evidence = _evaluation(facts, chance), _text(facts, chance, matters=0.4)
        *folders, leaf = contrast.path
        if leaf == "zone":
            evaluation["resource"]["properties"]["zone"] = chance.choice(WORDS["zones"])
        changed = deepcopy(evaluation)
        place = changed
        for folder in folders:
            place = place[folder]
        value = contrast.value(chance)
        if value is None:
            del place[leaf]
        else:
            place[leaf] = value
        loose = _situation(facts, evaluation, evidence)
        strict = _situation(stricter_facts, changed, evidence)
        if loose.outcome != strict.outcome:  # a text may ask for as much as the fact
            yield name, loose, strict
