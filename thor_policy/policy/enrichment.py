"""What is enriched and how: triggers, the steps of the text, and what of it holds.

Owns the wording of the enrichment. Invariant: every text is bounded, on one line, and free of numbers and
names that are in neither question nor policy; what is not is left out, and the quality note says so. The
prompt is the pack's own, with the question as the model read it; only the lines below are fixed. Pure; any
thread.
"""

from __future__ import annotations

from collections.abc import Collection

from thor_policy.core.decisions import MEDIUM_FROM, Decision, ModelInfo
from thor_policy.core.engine import Fixed, FreeText, OneOf, Step, WrittenExplanation
from thor_policy.core.enrichment import Enrichment, Mode, Trigger
from thor_policy.core.requests import Enrich
from thor_policy.policy import reasons
from thor_policy.policy.pack import Pack
from thor_policy.policy.tightening import DOUBT, LOW_CONFIDENCE

#: Most tokens of each text. All of them, with the lines between, fit behind a question of usual length.
MOST_TOKENS = 40
#: Longest text in characters: a token may be long.
MOST_CHARS = 400
#: The instruction, behind the answer that was given.
INSTRUCTION = "\n\nFor people who look at this decision later, one sentence each.\nWhat could go wrong:"
_ALTERNATIVE, _AGAINST, _RATIONALE = "\nNext best outcome:", "\nWhy not:", "\nWhy this outcome:"
#: The names of the steps, and what the quality note calls their texts.
_TEXTS = {"risk": "risk", "alternatives": "alternatives", "rationale": "rationale"}


def triggers_of(decision: Decision) -> tuple[Trigger, ...]:
    """Why a decision should be enriched; empty: it is a routine one."""
    traits, floor = decision.floor.traits, decision.floor
    lifted = decision.use is not None and decision.use.lifts is not None
    unsure = decision.confidence is not None and decision.confidence < MEDIUM_FROM
    holds: dict[Trigger, bool] = {
        "exception": traits.is_exception or traits.type == "exception",
        "approval": lifted or traits.type == "approval",
        "synthesis": traits.type == "synthesis",
        "low_confidence": unsure or decision.reason_code == LOW_CONFIDENCE,
        "disagreement": decision.reason_code == DOUBT
        or (decision.label is not None and bool(floor.rules) and decision.label != floor.outcome),
    }
    return tuple(trigger for trigger, is_so in holds.items() if is_so)


def why(decision: Decision, wish: Enrich, mode: Mode, on: Collection[str]) -> tuple[Trigger, ...]:
    """Why a decision is enriched, by the mode, the triggers in `on` and its caller's wish; empty: it is not.

    What the mode `never` excludes, no caller can have.
    """
    if mode == "never" or wish == "never":
        return ()
    triggers = tuple(trigger for trigger in triggers_of(decision) if trigger in on)
    if wish == "always":
        return (*triggers, "asked")
    return triggers or (("always",) if mode == "always" else ())


def steps(pack: Pack, decision: Decision) -> tuple[Step, ...]:
    """The steps of an answer after `outcome:`: the decision as it was given, then the enrichment."""
    floor, outcome = decision.floor, decision.judged
    given = f" {outcome}"
    if floor.classification:
        given += f"\nclass: {floor.classification}"
    if floor.clauses:
        given += f"\nclauses: {', '.join(floor.clauses)}"
    if reason := reasons.settled(pack, decision) or floor.because:
        given += f"\nbecause: {reason}"
    others = tuple(f" {label}" for label in pack.labels if label != outcome)
    return (
        Fixed(text=given + INSTRUCTION),
        FreeText(name="risk", max_tokens=MOST_TOKENS),
        Fixed(text=_ALTERNATIVE),
        OneOf(name="alternative", options=others),
        Fixed(text=_AGAINST),
        FreeText(name="alternatives", max_tokens=MOST_TOKENS),
        Fixed(text=_RATIONALE),
        FreeText(name="rationale", max_tokens=MOST_TOKENS),
    )


def result(
    pack: Pack,
    decision: Decision,
    written: WrittenExplanation,
    *,
    model: ModelInfo,
    because: tuple[Trigger, ...],
    device_ms: float,
) -> Enrichment | None:
    """The enrichment, from what the model wrote; None if it was cut off, or nothing of it holds."""
    if written.truncated:
        return None
    texts, notes = {}, [_confidence(decision)]
    for name, called in _TEXTS.items():
        text = " ".join(written.values.get(name, ()))[:MOST_CHARS].strip()
        fault = _fault_of(pack, decision, text)
        texts[name] = "" if fault else text
        if fault:
            notes.append(f"{called} left out: {_FAULTS[fault]}")
    if not any(texts.values()):
        return None
    return Enrichment(
        why=because,
        risk=texts["risk"],
        alternative=next(iter(written.values.get("alternative", ())), None),
        alternatives=texts["alternatives"],
        rationale=texts["rationale"],
        quality="; ".join(notes),
        model=model,
        generated_tokens=written.generated_tokens,
        device_ms=round(device_ms, 3),
        took_ms=round(written.explain_ms, 3),
    )


def _fault_of(pack: Pack, decision: Decision, text: str) -> str | None:
    if any(line.strip(" :\n").casefold() in text.casefold() for line in _LINES):
        return "echo"
    return reasons.invented(pack, decision.evaluation, decision.floor, text)


#: The fixed lines that a text of a small model repeats.
_LINES = (*INSTRUCTION.strip().splitlines(), _ALTERNATIVE, _AGAINST, _RATIONALE)
_FAULTS = {
    "echo": "it repeats its instruction",
    "empty": "the model wrote nothing",
    "number": "it has a number that is in neither question nor policy",
    "name": "it has a name that is in neither question nor policy",
}


def _confidence(decision: Decision) -> str:
    if decision.confidence is None:
        return "the rules decided; the model was not asked"
    level = decision.confidence_level or "uncalibrated"
    return f"the model's confidence was {decision.confidence:.2f} ({level})"
