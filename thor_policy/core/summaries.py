"""Context summaries: 50 to 200 words about a decision, made from recorded values by a template.

Owns the names that a template can use, and the text. Invariant: the text depends on the record and the
template alone, so the same record gives the same bytes; every value in it is one that the journal holds.
Pure; any thread.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from thor_policy.core.requests import Json

#: Least and most words of a summary.
LEAST_WORDS, MOST_WORDS = 50, 200
#: Most words of one value, so that none takes the place of the others.
VALUE_WORDS = 20
#: Most characters of a template, and of one word.
MOST_TEMPLATE_CHARS, MOST_WORD_CHARS = 2_000, 64
#: In place of a value that the record does not have.
ABSENT = "not recorded"

#: What a template can say: `{name}`.
NAMES: dict[str, str] = {
    "id": "the decision's id",
    "type": "the type of the decision",
    "actor": "the subject, or who decided",
    "action": "the action",
    "entity": "the resource, or what the decision is about",
    "details": "`details` of the context",
    "facts": "the facts of the pack",
    "rules": "the rules that matched",
    "outcome": "the outcome",
    "floor": "the outcome that the rules demand",
    "reasoning": "the reasons",
    "who": "what decided: rules, a model, a person, ..",
    "confidence": "the confidence and its level",
    "risk": "the risk",
    "urgency": "normal, urgent or emergency",
    "flags": "exception, judgment call",
    "pack": "the pack, its version and digest",
    "consulted": "the data that was consulted",
    "approvals": "approvals, with who gave them",
    "result": "how it turned out",
    "made": "when it was made",
    "recorded": "when it was recorded",
    "missing": "what the trace lacks",
}
_SLOT = re.compile(r"\{([^{}]*)\}")

#: The template of a type without one of its own. Its sentences also fill up shorter summaries.
DEFAULT = (
    "A decision of the type {type} was made on {made} and recorded on {recorded}. "
    "Actor: {actor}. Action: {action}. About: {entity}. Details: {details}. Facts: {facts}. "
    "Decided by {who}; the outcome is {outcome}, the least that the rules demand is {floor}. "
    "Rules that matched: {rules}. Reasons: {reasoning}. "
    "Confidence: {confidence}. Risk: {risk}. Urgency: {urgency}. Flags: {flags}. "
    "Policy version: {pack}. Data consulted: {consulted}. Approvals: {approvals}. Result: {result}. "
    "Missing from the trace: {missing}."
)
_WHO = {
    "rule": "the rules alone",
    "model": "a model above the rules",
    "cache": "an earlier score of a model, above the rules",
    "fallback": "nobody, because the evaluation failed",
    "human": "a person",
    "agent": "an agent",
    "committee": "a committee",
    "system": "another system",
}


def fault_of_template(template: str) -> str | None:
    """What is wrong with a template; None if nothing is."""
    if len(template) > MOST_TEMPLATE_CHARS:
        return f"has {len(template)} characters; the limit is {MOST_TEMPLATE_CHARS}"
    for name in _SLOT.findall(template):
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"; did you mean {{{near[0]}}}?" if near else f"; there are {', '.join(NAMES)}"
            return f"there is no value {{{name}}}{hint}"
    if set(_SLOT.sub("", template)) & {"{", "}"}:
        return "has a brace that belongs to no {name}"
    return None


def summary(trace: Mapping[str, Json], template: str | None = None) -> str:
    """The summary of a decision with all records about it (`journal.reader.Reader.trace`).

    A template that gives fewer than 50 words is followed by sentences of the default one.
    """
    values = _values(trace)

    def fill(text: str) -> str:
        return _SLOT.sub(lambda slot: values.get(slot[1], ABSENT), text)

    words = fill(template or DEFAULT).split()
    if len(words) < LEAST_WORDS:
        used = set(_SLOT.findall(template or DEFAULT))
        for sentence in DEFAULT.split(". "):
            if not used & set(_SLOT.findall(sentence)):
                words += fill(sentence.rstrip(".") + ".").split()
        if len(words) < LEAST_WORDS:
            words += fill(DEFAULT).split()
    if len(words) > MOST_WORDS:
        words = [*words[: MOST_WORDS - 1], "..."]
    return " ".join(
        word if len(word) <= MOST_WORD_CHARS else f"{word[: MOST_WORD_CHARS - 3]}..." for word in words
    )


def _values(trace: Mapping[str, Json]) -> dict[str, str]:
    """What a template can say of a trace, by name; every text is one line of at most `VALUE_WORDS` words."""
    row = trace["decision"]
    event = trace.get("event") or {}
    body, private = event.get("body") or {}, event.get("private") or {}
    question = private.get("evaluation") or {}
    supplied = _supplied(trace)

    def of(name: str) -> Json:
        return row.get(name) if row.get(name) is not None else supplied.get(name)

    confidence = of("confidence")
    level = of("confidence_level")
    flags = [
        text
        for name, text in (("is_exception", "exception"), ("judgment_call", "judgment call"))
        if row.get(name)
    ]
    reasons = of("reasoning")
    if reasons is None and private:
        reasons = (body.get("floor") or {}).get("because")
    rows: dict[str, Json] = {
        "id": row["decision_id"],
        "type": row["decision_type"],
        "actor": of("actor"),
        "action": row["action"] or (None if question else row["decision_type"]),
        "entity": of("entity"),
        "details": (question.get("context") or private.get("context") or {}).get("details"),
        "facts": _pairs(private.get("facts")),
        "rules": ", ".join((body.get("floor") or {}).get("rules") or ()) or "none",
        "outcome": f"{row['decision']} (lifted from {row['lifted']})"
        if row.get("lifted")
        else row["decision"],
        "floor": row["floor"],
        "reasoning": reasons,
        "who": _WHO.get(row["tier"], row["tier"]),
        "confidence": (level or "no level")
        if confidence is None
        else f"{confidence:.2f} ({level or 'uncalibrated'})",
        "risk": of("risk_level") or supplied.get("risk"),
        "urgency": row.get("urgency") or "normal",
        "flags": ", ".join(flags) or "none",
        "pack": row["prompt_version"],
        "consulted": _listed(_consulted(trace, body, private)),
        "approvals": _listed(_approval(each) for each in trace.get("approvals") or ()),
        "result": _result(trace),
        "made": _to_the_second(of("timestamp_decision") or row["timestamp"]),
        "recorded": _to_the_second(row["timestamp"]),
        "missing": ", ".join(row.get("lacks") or ()) or "nothing",
    }
    return {name: _line(value) for name, value in rows.items()}


def _supplied(trace: Mapping[str, Json]) -> dict[str, Json]:
    """What later records supplied, the newest first."""
    supplied: dict[str, Json] = {}
    for each in trace.get("supplements") or ():
        if not each.get("claimed"):
            supplied |= each.get("supplied") or {}
    return supplied


def _consulted(
    trace: Mapping[str, Json], body: Mapping[str, Json], private: Mapping[str, Json]
) -> Iterator[str]:
    """What the pack's sources said, whose values are in the private part, and what was recorded later."""
    values = private.get("consulted") or {}
    for each in body.get("consulted") or ():
        name = each.get("element")
        value = (values.get(each["source"]) or {}).get(name) if name else None
        yield _read_from(each["system"], name or each.get("error") or "no entry", value, each.get("fresh_at"))
    for each in trace.get("consultations") or ():
        yield _read_from(each.get("system"), each.get("entity"), each.get("answer"), each.get("fresh_at"))


def _read_from(system: str | None, what: str | None, value: Json, fresh_at: str | None) -> str:
    known = "" if value is None else f" = {_shown(value)}"
    fresh = f" as of {fresh_at}" if fresh_at else ""
    return f"{' '.join(filter(None, (system, what)))}{known}{fresh}"


def _approval(row: Mapping[str, Json]) -> str:
    by = row.get("approver") or "(erased)"
    role = f" ({row['role']})" if row.get("role") else ""
    channel = f" by {row['channel']}" if row.get("channel") else ""
    recorder = f", recorded by {row['recorded_by']}" if row.get("recorded_by") else ""
    return f"{row['verdict']} by {by}{role}{channel}{recorder}"


def _result(trace: Mapping[str, Json]) -> str:
    counted = [row for row in trace.get("outcomes") or () if not row.get("claimed")]
    if not counted:
        return "none yet"
    newest = counted[-1]
    parts = [newest["status"]]
    parts += [f"value {newest['value']}"] if newest.get("value") is not None else []
    parts += [str(newest["note"])] if newest.get("note") else []
    return ", ".join(parts)


def _to_the_second(time: str) -> str:
    """A time without its fraction, which nobody looks for and which would be a word of its own."""
    head, dot, fraction = time.partition(".")
    return f"{head}{fraction.lstrip('0123456789')}" if dot else time


def _pairs(facts: Mapping[str, Json] | None) -> str | None:
    return ", ".join(f"{name} {_shown(value)}" for name, value in facts.items()) if facts else None


def _shown(value: Json) -> str:
    """A text as it is, and any other value as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _listed(texts: Iterator[str] | Sequence[str]) -> str:
    return "; ".join(texts) or "none"


def _line(value: Json) -> str:
    """A value as one line: no control character, at most `VALUE_WORDS` words, no full stop at its end."""
    if value is None or value == "":
        return ABSENT
    words = str(value).split()
    text = " ".join(words[:VALUE_WORDS]) + (" ..." if len(words) > VALUE_WORDS else "")
    shown = "".join(char if char.isprintable() else "\ufffd" for char in text)
    return shown.rstrip(".") if not shown.endswith("...") else shown
