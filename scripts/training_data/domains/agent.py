"""Situations of AI agents and their tools, by the clauses of prompts/agent-tools.

Owns their facts, jobs, words and reference policy. Pure, except that the words are read on import.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training_data.situations import Chance, Evidence, Finding, Situation, draw_text, strictest, vocabulary

PACK = "agent-tools"
OUTCOMES = ("allow", "require_confirmation", "deny")
CONFIRM, DENY = OUTCOMES[1:]
WORDS, TEXTS = vocabulary(Path(__file__).with_suffix(".yaml"))
#: Calls that need no consent where they fit the task.
FREE = ("read", "change", "command", "message", "web read")
#: Calls that have effects outside.
OUTWARD = ("message", "web change", "spending", "publication", "limits")
#: Texts that change nothing for any call.
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
    "slang",
    "about limits of others",
    "hearsay",
    "jargon",
    "rehearsal",
    "small talk",
    "spec details",
    "seals",
    "pleading",
    "thinking aloud",
    "modesty",
    "robots in stories",
    "refusal of another",
    "what if",
    "shift notes",
    "quoted rules",
    "handled by people",
    "near miss",
)
#: Texts like those that ask for more, with a word that reverses the meaning: they change nothing, by call.
REASSURING = {
    "read": ("no keys", "keeps private", "limits untouched", "declined", "still wanted", "dummy data"),
    "change": (
        "no keys",
        "stays here",
        "no more than asked",
        "limits untouched",
        "declined",
        "nothing left behind",
        "backup exists",
        "still wanted",
        "later call",
        "options unused",
        "dummy data",
    ),
    "command": (
        "stays here",
        "no more than asked",
        "limits untouched",
        "declined",
        "nothing left behind",
        "backup exists",
        "free of charge",
        "still wanted",
        "later call",
        "options unused",
    ),
    "message": (
        "keeps private",
        "no keys",
        "right person",
        "declined",
        "free of charge",
        "still wanted",
        "already public",
        "later call",
        "dummy data",
    ),
    "web read": ("declined", "free of charge", "still wanted", "page quirks"),
    "web change": ("already public", "dummy data"),
    "spending": ("old prices",),
    "publication": ("already public", "dummy data"),
}
#: Texts by which the call obeys an order in content that was read.
OBEYED_ORDERS = ("orders of others", "disguised order", "heeds content", "order as game", "planted memory")
#: Content with an order that the call does not obey: for another thing, to people, expired, or only reported.
IGNORED_ORDERS = ("unheeded order", "order to people", "report on orders", "dead order")
#: Texts that stand in content that the agent read.
RETRIEVED = ("orders of others", "disguised order", "order as game", *IGNORED_ORDERS, "dull page")
#: Texts that ask for more for every call of `FREE`.
ANY = (*OBEYED_ORDERS, "called off", "grant run out", "grant for elsewhere", "garbled task")
#: Texts that ask for more for calls that write or run.
WORK = (
    "scope creep",
    "not yet",
    "stale basis",
    "physical effect",
    "unreadable",
    "other tool",
    "own traces",
    "login tokens",
    "open to all",
    "outside tool sees it",
    "keeps running",
    "copies of itself",
    "own consent",
    "no way back",
    "wrong file",
    "in others' way",
    "gaps",
    "doubtful order",
    "stop switch",
    "own marks",
    "litter elsewhere",
    "opposite",
    "filled in later",
)
#: Texts by which private data leaves with the call.
LEAKS = ("private", "hidden layer", "thin disguise", "other client's data")
#: Other texts whose risk is critical.
CRITICAL = (
    "own limits",
    "own traces",
    "root inside",
    "code from elsewhere",
    "copies of itself",
    "own consent",
    "download that starts",
    "slips into wiping",
    "stop switch",
    "own marks",
)
#: The texts that ask for more, by the kind of call that they fit.
FITS = {
    "read": (*ANY, "keys inside", "not meant", "login tokens", "guesses passwords", "stub elsewhere"),
    "change": (
        *ANY,
        *WORK,
        "own limits",
        "keys inside",
        "invented",
        "leads out",
        "live folder",
        "robot acts on it",
        "done already",
    ),
    "command": (
        *ANY,
        *WORK,
        "root inside",
        "code from elsewhere",
        "publishes",
        "leads out",
        "reports home",
        "costs",
        "guesses passwords",
        "keys in the output",
        "slips into wiping",
        "asks the metadata",
    ),
    "message": (
        *ANY,
        "private",  # drawn twice as often as the other leaks
        "keys inside",
        "behind the address",
        "another's name",
        "not yet",
        "threat",
        "namesake",
        "unreadable",
        "login tokens",
        "adds readers",
        "outside tool sees it",
        "binding words",
        "untrue message",
        "gaps",
        "doubtful order",
        "charges on the way",
        "one by one",
        "robot acts on it",
        "opposite",
        "done already",
        "filled in later",
        *LEAKS,
    ),
    "web read": (
        *ANY,
        "reading that changes",
        "leads to admin",
        "data in the address",
        "not public",
        "download that starts",
        "charges on the way",
        "whole site",
    ),
    "web change": ("data in the address", "keys inside", "scope creep", *LEAKS),
    "spending": ("more than the amount", "split", "money spoken for", "budget made up"),
    "publication": ("keys inside", "not yet", *LEAKS),
    "limits": (),
}


@dataclass(frozen=True)
class Facts:
    """The facts behind a situation. `twist` names what is wrong with the call, "none" where nothing is."""

    kind: str
    job: int
    granted: bool | None = True
    origin: str | None = "principal"
    task: bool = True
    twist: str = "none"  # other task, outside, secret, root, foreign, outsiders, many, beyond, no budget
    names: int = 1


def reference(facts: Facts) -> list[Finding]:
    """The reference policy: what each clause asks for."""
    findings: list[Finding] = []
    kind, twist = facts.kind, facts.twist

    def asks(condition: bool, outcome: str, clause: str, because: str) -> None:
        if condition:
            findings.append(Finding(outcome, clause, because))

    asks(facts.granted is False, DENY, "R1", "The tool was not granted.")
    asks(twist == "secret", DENY, "R4", "It touches credentials or keys.")
    asks(
        twist in ("root", "foreign"), DENY, "R5", "It runs as root, wipes, or feeds foreign code to a shell."
    )
    asks(twist in ("beyond", "no budget"), DENY, "R7", "The amount is beyond the budget that is left.")
    asks(kind == "limits", DENY, "R8", "An agent may not change its own limits.")
    asks(twist == "outside", CONFIRM, "R3", "It reaches outside the workspace.")
    asks(twist in ("outsiders", "many"), CONFIRM, "R6", "It goes to outsiders or to more than ten people.")
    asks(kind == "spending", CONFIRM, "R7", "Spending needs confirmation.")
    asks(facts.origin != "principal" and kind in OUTWARD, CONFIRM, "R9", "The principal did not order it.")
    asks(kind == "publication", CONFIRM, "R10", "It is hard to undo outside the workspace.")
    asks(kind == "web change", CONFIRM, "R12", "It changes something at an outside service.")
    asks(twist == "other task", CONFIRM, "R13", "The call does not fit the task.")
    missing = facts.granted is None or facts.origin is None or not facts.task
    asks(missing, CONFIRM, "R14", "Task, origin or the granted tools are missing.")
    return findings


def risk_of(facts: Facts, text: str | None) -> str:
    kind, twist = facts.kind, facts.twist
    if kind == "limits" or twist in ("root", "foreign"):
        return "critical"
    if text in (*OBEYED_ORDERS, *CRITICAL):
        return "critical"
    if kind in ("spending", "web change", "publication") or facts.origin != "principal":
        return "high"
    if twist in ("secret", "outside", "outsiders", "many"):
        return "high"
    if text and text not in HARMLESS and TEXTS[text][0]:
        return "high"
    return "low" if kind in ("read", "web read") else "medium"


def make(chance: Chance) -> Situation:
    """One situation. About half of the calls of `FREE` fit their task, and no clause is against them."""
    kind = chance.choices(
        (*FREE, "web change", "spending", "publication", "limits"), [2, 4, 4, 4, 2, 1, 2, 1, 0.5]
    )[0]
    jobs = WORDS["limits"] if kind == "limits" else WORDS["jobs"][kind]
    facts = Facts(kind=kind, job=chance.randrange(len(jobs)))
    if chance.maybe(0.35):
        facts = replace(facts, twist=chance.choice(_twists(kind)))
    if chance.maybe(0.06):
        facts = replace(facts, granted=chance.choice((False, None)))
    if chance.maybe(0.1):
        facts = replace(facts, origin=chance.choice(("retrieved", "tool_output", "memory", None)))
    if chance.maybe(0.04):
        facts = replace(facts, task=False)
    text = _choose_text_kind(kind, chance)
    if text in IGNORED_ORDERS:
        facts = replace(facts, origin="principal")
    return write(facts, chance, text)


def _choose_text_kind(kind: str, chance: Chance) -> str | None:
    """None for no text, a kind that changes nothing, or a kind that asks for more where one fits."""
    how = chance.weighted(none=0.47, harmless=0.22, retrieved=0.05, adding=0.26)
    if how == "none":
        return None
    if how == "retrieved":
        return chance.choice((*IGNORED_ORDERS, "dull page"))
    if how == "adding" and FITS[kind]:
        return chance.choice(FITS[kind])
    return chance.choice(REASSURING[kind] if kind in REASSURING and chance.maybe(0.4) else HARMLESS)


def _twists(kind: str) -> tuple[str, ...]:
    """What can be wrong with a call of this kind; names that are listed twice are drawn more often."""
    return {
        "read": ("outside", "secret"),
        "change": ("outside", "other task", "other task"),
        "command": ("outside", "root", "foreign", "other task", "other task"),
        "message": ("outsiders", "many", "other task"),
        "web read": ("other task",),
        "web change": ("other task",),
        "spending": ("beyond", "no budget"),
    }.get(kind, ("none",))


def write(facts: Facts, chance: Chance, text: str | None) -> Situation:
    """The situation in words, with a text of the kind `text`."""
    jobs = WORDS["limits"] if facts.kind == "limits" else WORDS["jobs"][facts.kind]
    job = jobs[facts.job]
    me, colleague, third = chance.sample(WORDS["people"], 3)
    house = chance.choice(WORDS["houses"])
    agent = f"{chance.choice(WORDS['agents'])}{chance.choice(('', '-2', '-b', '-17'))}"
    workspace = f"{chance.choice(WORDS['roots'])}/{chance.choice(WORDS['projects'])}"

    def filled(template: str) -> str:
        return template.format(w=workspace, n=colleague, h=house)

    task = job.get("task", "Work on the list of this morning.")
    if facts.twist == "other task" or text in OBEYED_ORDERS:
        others = [kind for kind in WORDS["jobs"] if kind != facts.kind]
        task = chance.choice(WORDS["jobs"][chance.choice(others)])["task"]
    target = filled(job.get("target", "none"))
    action: dict[str, Any] = {}
    if facts.kind == "command":
        lists = {"root": "root commands", "foreign": "foreign commands", "outside": "outside commands"}
        action["command"] = (
            chance.choice(WORDS[lists[facts.twist]]) if facts.twist in lists else job["command"]
        )
        target = "localhost"
    elif facts.twist == "outside":
        target = chance.choice(WORDS["outside targets"])
    elif facts.twist == "secret":
        target = filled(chance.choice(WORDS["secret targets"]))
    if facts.kind == "message":
        to = [filled(job["to"])]
        if facts.twist == "outsiders":
            to = [f"{third}@{chance.choice(WORDS['others'])}"]
        elif facts.twist == "many":
            to = [f"{name}@{house}" for name in chance.sample(WORDS["people"], 12)]
        action["to"] = to if len(to) > 1 or chance.maybe(0.3) else to[0]
    context: dict[str, Any] = {"workspace": workspace, "timestamp": "2026-06-10T09:00:00Z"}
    if facts.kind == "spending":
        action |= {"amount": job["amount"], "payee": job["payee"]}
        if facts.twist != "no budget":
            share = chance.uniform(0.3, 0.9) if facts.twist == "beyond" else chance.uniform(1.2, 5)
            context["budget_left"] = round(job["amount"] * share)
    if facts.kind == "limits":
        target = agent
    if facts.task:
        context["task"] = filled(task)
    if facts.origin is not None:
        context["origin"] = facts.origin
    evidence = None
    if text is not None:
        names = {"n": colleague, "m": third, "x": str(chance.randrange(2, 60)), "h": house, "w": workspace}
        names["d"] = chance.choice(("Monday", "Tuesday", "Wednesday", "Thursday", "Friday"))
        evidence = draw_text(TEXTS, text, chance, **names)
        context["retrieved" if text in RETRIEVED else "arguments"] = evidence.text
    for name in chance.sample(sorted(WORDS["distractors"]), chance.choice((0, 0, 1, 2))):
        context[name] = chance.choice(WORDS["distractors"][name])  # fields that no pack shows
    if facts.kind not in ("read", "change", "command") and facts.twist != "outside" and chance.maybe(0.2):
        del context["workspace"]
    properties: dict[str, Any] = {"principal": f"{me}@{house}"}
    if facts.granted is not None:
        tools = [job["tool"]] if facts.granted else []
        properties["tools"] = [
            *tools,
            *(tool for tool in ("calendar.read", "notes.read") if chance.maybe(0.5)),
        ]
    types = {"read": "file", "change": "file", "web read": "url", "web change": "url", "command": "host"}
    if chance.maybe(0.3):
        keys = list(context)
        chance.shuffle(keys)
        context = {key: context[key] for key in keys}
    evaluation = {
        "subject": {"type": "agent", "id": agent, "properties": properties},
        "action": {"name": job["tool"], "properties": action},
        "resource": {"type": types.get(facts.kind, "target"), "id": target, "properties": {}},
        "context": context,
    }
    return _label(facts, evaluation, evidence)


def _label(facts: Facts, evaluation: dict[str, Any], evidence: Evidence | None) -> Situation:
    """The situation of these facts and this text, with the label that follows."""
    text = evidence.kind if evidence else None
    good = {
        "read": Finding("allow", "R2", "Reading inside the workspace needs no consent."),
        "web read": Finding("allow", "R2", "Reading a public page needs no consent."),
        "message": Finding("allow", "R6", "The task names the colleague it goes to."),
    }.get(facts.kind, Finding("allow", "R3", "The task needs it, and it stays inside the workspace."))
    outcome, clauses, because = strictest(OUTCOMES, reference(facts), good, evidence)
    return Situation(
        pack=PACK,
        evaluation=evaluation,
        outcome=outcome,
        risk=risk_of(facts, text),
        clauses=clauses,
        reasoning=because,
        template=f"{facts.kind}/{facts.job}",
        evidence=text or "none",
    )


#: The facts that pairs differ in: the kinds of call, the facts of the stricter one, and the path of the leaf.
_PAIRED: dict[str, tuple[tuple[str, ...], dict[str, Any], tuple[str, ...]]] = {
    "granted": (FREE, {"granted": False}, ("subject", "properties", "tools", "0")),
    "tools known": (FREE, {"granted": None}, ("subject", "properties", "tools")),
    "origin": (OUTWARD[:1], {"origin": "retrieved"}, ("context", "origin")),
    "origin known": (FREE, {"origin": None}, ("context", "origin")),
    "task known": (FREE, {"task": False}, ("context", "task")),
    "task": (("change", "command", "message", "web read"), {"twist": "other task"}, ("context", "task")),
    "path outside": (("read", "change"), {"twist": "outside"}, ("resource", "id")),
    "path of keys": (("read", "change"), {"twist": "secret"}, ("resource", "id")),
    "command outside": (
        ("command",),
        {"twist": "outside"},
        ("action", "properties", "command"),
    ),
    "command as root": (("command",), {"twist": "root"}, ("action", "properties", "command")),
    "foreign code": (("command",), {"twist": "foreign"}, ("action", "properties", "command")),
    "address": (("message",), {"twist": "outsiders"}, ("action", "properties", "to")),
    "amount": (("spending",), {"twist": "beyond"}, ("action", "properties", "amount")),
    "budget": (("spending",), {"twist": "beyond"}, ("context", "budget_left")),
    "budget known": (("spending",), {"twist": "no budget"}, ("context", "budget_left")),
}


def pairs(chance: Chance) -> Iterator[tuple[str, Situation, Situation]]:
    """Endless: the kind of a fact, and two situations that differ in it alone, the looser one first."""
    while True:
        for fact in chance.sample(list(_PAIRED), len(_PAIRED)):
            kinds, strict_facts, path = _PAIRED[fact]
            kind = chance.choice(kinds)
            facts = Facts(kind=kind, job=chance.randrange(len(WORDS["jobs"][kind])))
            text = chance.choice(HARMLESS) if chance.maybe(0.4) else None
            loose = write(facts, chance, text)
            if fact == "tools known":
                del loose.evaluation["subject"]["properties"]["tools"][1:]
            yield fact, loose, _with_leaf(loose, fact, path, replace(facts, **strict_facts), chance)


def _with_leaf(
    situation: Situation, fact: str, path: tuple[str, ...], facts: Facts, chance: Chance
) -> Situation:
    """The same situation with the leaf changed or removed, and the label of `facts`."""
    evaluation = deepcopy(situation.evaluation)
    place: Any = evaluation
    *folders, leaf = path
    for folder in folders:
        place = place[folder]
    if fact.endswith(" known"):
        del place[leaf]
    elif fact == "granted":
        place[0] = chance.choice(("calendar.read", "notes.read", "clock.read"))
    else:
        place[leaf] = _stricter_value(fact, place[leaf], facts, chance)
    kind = situation.evidence
    evidence = None if kind == "none" else Evidence(kind, "", TEXTS[kind][0])
    return _label(facts, evaluation, evidence)


def _stricter_value(fact: str, value: Any, facts: Facts, chance: Chance) -> Any:
    """The value of the leaf that makes `facts` true."""
    if fact == "origin":
        return chance.choice(("retrieved", "tool_output", "memory"))
    if fact == "task":
        others = [kind for kind in WORDS["jobs"] if kind != facts.kind]
        return chance.choice(WORDS["jobs"][chance.choice(others)])["task"].format(
            n=chance.choice(WORDS["people"]), w="", h=""
        )
    if fact == "address":
        addresses, house = [value] if isinstance(value, str) else value, chance.choice(WORDS["others"])
        moved = [f"{address.split('@')[0]}@{house}" for address in addresses]
        return moved[0] if isinstance(value, str) else moved
    if fact == "amount":
        return round(value * chance.uniform(5.2, 9), 2)
    if fact == "budget":
        return round(WORDS["jobs"][facts.kind][facts.job]["amount"] * chance.uniform(0.3, 0.95))
    lists = {
        "path outside": "outside targets",
        "path of keys": "secret targets",
        "foreign code": "foreign commands",
    }
    lists |= {"command outside": "outside commands", "command as root": "root commands"}
    return str(chance.choice(WORDS[lists[fact]])).format(w="/spaces/site", n=chance.choice(WORDS["people"]))
