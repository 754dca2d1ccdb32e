"""Events as they are stored: a body on the chain, and beside it a private part, which can be erased.

Owns the shape of every stored event. Invariant: names of people, and text that people or models wrote, are in
the private part only, so erasing that part erases them. A body holds decisions and numbers. Pure; any thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct, to_builtins
from msgspec.structs import replace

from thor_policy.core import records
from thor_policy.core.approvals import Person, State
from thor_policy.core.canary import Breach, Canary, Cause
from thor_policy.core.decisions import (
    Adapter,
    ConfidenceLevel,
    Decision,
    Explanation,
    Fault,
    Floor,
    Governing,
    ModelInfo,
    Note,
    Obligation,
    PackInfo,
    Source,
    Tier,
    Timings,
    Traits,
    Trial,
    identity_of,
)
from thor_policy.core.enrichment import Enrichment, Trigger
from thor_policy.core.ids import new_id
from thor_policy.core.lifting import Offer, Use
from thor_policy.core.precedents import Precedent
from thor_policy.core.records import Calibration
from thor_policy.core.requests import Annotations, Caller, Claimed, Evaluation, Json, Risk
from thor_policy.core.searches import Search
from thor_policy.core.sources import Consulted, Described
from thor_policy.journal.rewrites import Rewrite


class Bounds(Struct, frozen=True, kw_only=True, gc=False):
    """Most open tasks of approvals: of one caller, for one subject, in all."""

    of_caller: int
    of_subject: int
    in_all: int


#: A body or a private part: a struct of this module, or plain JSON values.
Part: TypeAlias = Struct | dict[str, Json]

#: The replacement of a value that is not recorded.
MASK = "[masked]"
#: Decimals of the probabilities of a decision with such a value.
MASKED_DIGITS = 2

encode = msgspec.json.Encoder().encode
decode = msgspec.json.decode


class Event(Struct, frozen=True, kw_only=True, gc=False):
    """Something that happened, before it has a place in the chain. `at` is Unix time in seconds.

    `subject_id` names what the event is about: the id of a decision, a digest, or the event's own id.
    `ticket` and `sender` (`Caller.who`) are returned with the event's fate. `unless_own`: the `claimed` in
    the body is to be left out if the caller made the decision that the event is about. `rewrites` are what an
    `erased` event does to earlier events. `along` are events that are recorded in the same transaction, after
    it; if one of them is refused, so is the event. `person` is who gives a verdict, `recorder` who records
    it, and `bounds` limit the open tasks. The event itself stores none of them.
    """

    kind: str
    subject_id: str
    at: float
    body: Part
    private: Part | None = None
    ticket: int | None = None
    sender: str | None = None
    unless_own: bool = False
    rewrites: tuple[Rewrite, ...] = ()
    along: tuple[Event, ...] = ()
    person: Person | None = None
    recorder: Person | None = None
    bounds: Bounds | None = None


# ---------------------------------------------------------------- decisions


class FloorBody(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The floor that the rules set. Facts and errors are left out, because they quote the request."""

    outcome: str
    final: bool = False
    rules: tuple[str, ...] = ()
    clauses: tuple[str, ...] = ()
    because: str | None = None
    also_because: tuple[str, ...] = ()
    classification: str | None = None


class ModelName(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The model and adapter that judged. The `model_loaded` event with this digest has the details."""

    name: str
    sha256: str
    quantisation: str
    adapter: Adapter | None = None

    @property
    def name_and_version(self) -> tuple[str, str]:
        """Name and version as the tables show them, adapter included."""
        return _name_and_version(self)


@lru_cache(maxsize=64)  # few models judge many decisions, and each decision needs this
def _name_and_version(model: ModelName) -> tuple[str, str]:
    name = f"{model.name}+{model.adapter.name}" if model.adapter else model.name
    return name, f"{model.quantisation}+{identity_of(model.sha256, model.adapter)[:12]}"


class Prompt(Struct, frozen=True, kw_only=True, gc=False):
    """What is needed to repeat the scoring, together with the private suffix tokens."""

    prefix_digest: str
    prefix_tokens: int
    logits: tuple[float, ...]


class ExplanationBody(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The part of an explanation that is not free text. The free text is private."""

    classification: str | None = None
    clauses: tuple[str, ...] = ()
    truncated: bool = False
    generated_tokens: int = 0
    explain_ms: float = 0.0
    source: Source = "rule"
    fault: Fault | None = None


class ConsultedBody(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A value that a source gave for a decision (`core.sources.Consulted`); the value itself is private.

    `digest` stands for a value that is masked.
    """

    source: str
    of: Described
    system: str
    element: str | None = None
    digest: str | None = None
    took_ms: float = 0.0
    fresh_at: str | None = None
    quality: float | None = None
    cached: bool = False
    error: str | None = None


class PrecedentBody(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A precedent of a decision (`core.precedents.Precedent`); its line is private."""

    id: str
    outcome: str
    how: str
    similarity: float | None = None


class TrialBody(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The arm of a canary that a decision belongs to (`core.decisions.Trial`)."""

    id: str
    arm: Literal["canary", "control"]
    note: Note | None = None
    own: str | None = None
    bound: FloorBody | None = None


class DecisionColumns(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The fields of a `decision` event's body that the table `decisions` shows.

    `idempotency` must be the first field, because `recall` looks for it at the start of the body.
    """

    idempotency: str | None = None
    outcome: str
    allow: bool
    tier: Tier
    risk: Risk
    subject_type: str
    action: str
    resource_type: str
    caller: Caller
    floor: FloorBody
    pack: PackInfo
    timings: Timings
    model: ModelName | None = None
    reason_code: str | None = None
    label: str | None = None
    confidence: float | None = None
    probabilities: dict[str, float] = {}
    explanation: ExplanationBody | None = None
    annotations: Annotations | None = None
    original: str | None = None
    temperature: float = 1.0
    prior: dict[str, float] = {}
    traits: Traits | None = None
    confidence_level: ConfidenceLevel | None = None
    judgment_call: bool = False
    consulted: tuple[ConsultedBody, ...] = ()
    offer: Offer | None = None
    use: Use | None = None
    stepped_up: bool = False
    precedents: tuple[PrecedentBody, ...] = ()
    precedents_note: str | None = None
    trial: TrialBody | None = None


class DecisionBody(DecisionColumns, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Body of a `decision` event. Its subject is the decision's id."""

    prompt: Prompt | None = None
    obligations: tuple[Obligation, ...] = ()


class ShadowBody(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Body of a `shadowed` event. Its subject is the served decision, `served` that decision's outcome."""

    served: str
    outcome: str
    tier: Tier
    floor: str
    pack: PackInfo
    rules: tuple[str, ...] = ()
    model: ModelName | None = None
    reason_code: str | None = None
    label: str | None = None
    confidence: float | None = None
    probabilities: dict[str, float] = {}
    temperature: float = 1.0
    prior: dict[str, float] = {}
    score_ms: float = 0.0


class CounterfactualBody(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Body of a `counterfactual` event. Its subject is the id of a past decision, `served` its outcome.

    `pack` and `model` are those of the `run` that decided it again. A rule may have decided without the
    model.
    """

    run: str
    served: str
    outcome: str
    direction: records.Direction
    tier: Tier
    floor: str
    pack: PackInfo
    model: ModelName
    label: str | None = None
    confidence: float | None = None
    clauses: tuple[str, ...] = ()
    reason_code: str | None = None
    temperature: float = 1.0
    score_ms: float = 0.0
    took_ms: float = 0.0


class EnrichmentBody(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Body of an `enrichment` event. Its subject is the id of the decision; its texts are private."""

    why: tuple[Trigger, ...]
    quality: str
    model: ModelName
    alternative: str | None = None
    generated_tokens: int = 0
    device_ms: float = 0.0
    took_ms: float = 0.0


class EnrichmentPrivate(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Private part of an `enrichment` event: what the model wrote."""

    risk: str = ""
    alternatives: str = ""
    rationale: str = ""


class PrivateColumns(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The fields of a `decision` event's private part that the table `decisions` shows."""

    evaluation: Evaluation
    reasoning: str | None = None
    text: str | None = None


class DecisionPrivate(PrivateColumns, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Private part of a `decision` event.

    `facts` that are false, zero or empty are left out. So is `reasoning` where it equals the floor's
    `because`. `masked` are the JSON pointers whose values were not recorded. Then facts, errors, times,
    suffix tokens and logits are not recorded either, and probabilities are rounded, because they are computed
    from those values. `consulted` are the values of sources, by source and attribute. `precedents` are
    the lines of the precedents, in the order of the body.
    """

    facts: dict[str, Json] = {}
    errors: dict[str, str] = {}
    time_used: dict[str, str] | None = None
    suffix_tokens: tuple[int, ...] = ()
    masked: tuple[str, ...] = ()
    consulted: dict[str, dict[str, Json]] = {}
    precedents: tuple[str, ...] = ()


class ExplanationPrivate(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Private part of an `explanation` event."""

    reasoning: str | None = None
    text: str | None = None


#: What most decisions have; it is not recorded.
_NO_NOTES, _USUAL = Annotations(), Traits()

#: Makes the digest of a value that is not recorded: of its source, its name and itself.
Digest: TypeAlias = Callable[[str, str, Json], str]


def decision_event(
    decision: Decision,
    ticket: int | None = None,
    *,
    masked: Sequence[str] = (),
    digest: Digest | None = None,
) -> Event:
    """The event of a decision: all that is needed to explain it and to derive it again.

    Values of the evaluation and of sources at the JSON pointers `masked` are not recorded; `digest` makes
    what stands for a value of a source.
    """
    scored, floor, model, explanation = (
        decision.scored,
        decision.floor,
        decision.model,
        decision.explanation,
    )
    evaluation = decision.evaluation
    body = DecisionBody(
        idempotency=decision.idempotency,
        outcome=decision.outcome,
        allow=decision.allow,
        tier=decision.tier,
        risk=decision.risk,
        subject_type=evaluation.subject.type,
        action=evaluation.action.name,
        resource_type=evaluation.resource.type,
        caller=decision.caller,
        floor=_floor_body(floor),
        pack=decision.pack,
        timings=decision.timings,
        model=_name_of(model) if model else None,
        reason_code=decision.reason_code,
        label=decision.label,
        confidence=decision.confidence,
        probabilities=decision.probabilities,
        prompt=Prompt(
            prefix_digest=scored.prefix_digest, prefix_tokens=scored.prefix_tokens, logits=scored.logits
        )
        if scored
        else None,
        explanation=_explanation_body(explanation) if explanation else None,
        obligations=decision.obligations,
        annotations=None if decision.annotations == _NO_NOTES else decision.annotations,
        original=decision.original,
        temperature=decision.temperature,
        prior=decision.prior,
        consulted=tuple(_consulted(decision.sources, masked, digest)) if decision.sources else (),
        traits=None if floor.traits == _USUAL else floor.traits,
        confidence_level=decision.confidence_level,
        judgment_call=_is_judgment_call(decision),
        offer=decision.offer,
        use=decision.use,
        stepped_up=decision.stepped_up,
        precedents=tuple(
            PrecedentBody(id=each.id, outcome=each.outcome, how=each.how, similarity=each.similarity)
            for each in decision.precedents
        ),
        precedents_note=decision.precedents_note,
        trial=None if decision.trial is None else _trial_body(decision.trial),
    )
    private = DecisionPrivate(
        evaluation=evaluation,
        consulted=_values(decision.sources) if decision.sources else {},
        precedents=tuple(each.line for each in decision.precedents),
        facts={name: value for name, value in floor.facts.items() if value},
        errors=floor.errors,
        time_used=floor.time_used,
        suffix_tokens=scored.suffix_tokens if scored else (),
        reasoning=explanation.reasoning if explanation and explanation.reasoning != floor.because else None,
        text=(explanation.text or None) if explanation else None,
    )
    if masked:
        private = _masked(private, masked)
        if private.masked:
            body = _coarse(body)
    return Event(
        kind="decision",
        subject_id=decision.id,
        at=decision.at,
        body=body,
        private=private,
        ticket=ticket,
        sender=decision.caller.who,
    )


def _floor_body(floor: Floor) -> FloorBody:
    return FloorBody(
        outcome=floor.outcome,
        final=floor.final,
        rules=floor.rules,
        clauses=floor.clauses,
        because=floor.because,
        also_because=floor.also_because,
        classification=floor.classification,
    )


def _trial_body(trial: Trial) -> TrialBody:
    bound = None if trial.bound is None else _floor_body(trial.bound)
    return TrialBody(id=trial.id, arm=trial.arm, note=trial.note, own=trial.own, bound=bound)


def trial_of(body: Json) -> Trial | None:
    """What a recorded decision says of a canary, from the body of its event as it is read."""
    return msgspec.convert(body.get("trial"), Trial | None)


def _is_judgment_call(decision: Decision) -> bool:
    """What the pack says; by default, whether a model decided above the floor without high confidence."""
    stated = decision.floor.traits.judgment_call
    return stated if stated is not None else bool(decision.label) and decision.confidence_level != "high"


def _name_of(model: ModelInfo) -> ModelName:
    return ModelName(
        name=model.name, sha256=model.sha256, quantisation=model.quantisation, adapter=model.adapter
    )


def shadow_event(served: Decision, shadow: Decision, at: float) -> Event:
    """The event of a shadow pack's decision beside `served`; no client gets it. `at` is Unix time."""
    model = shadow.model
    body = ShadowBody(
        served=served.outcome,
        outcome=shadow.outcome,
        tier=shadow.tier,
        floor=shadow.floor.outcome,
        rules=shadow.floor.rules,
        pack=shadow.pack,
        model=_name_of(model) if model else None,
        reason_code=shadow.reason_code,
        label=shadow.label,
        confidence=shadow.confidence,
        probabilities=shadow.probabilities,
        temperature=shadow.temperature,
        prior=shadow.prior,
        score_ms=shadow.timings.score_ms,
    )
    return Event(kind="shadowed", subject_id=served.id, at=at, body=body)


def counterfactual_events(run: records.Counterfactuals, at: float) -> list[Event]:
    """The events of past decisions that were decided again: one for each result, at Unix time `at`."""
    pack = PackInfo(name=run.pack.name, version=run.pack.version, sha256=run.pack.sha256)
    adapter = Adapter(**to_builtins(run.model.adapter)) if run.model.adapter else None
    model = ModelName(
        name=run.model.name,
        sha256=run.model.sha256,
        quantisation=run.model.quantisation,
        adapter=adapter,
    )
    return [
        Event(
            kind="counterfactual",
            subject_id=result.decision_id,
            at=at,
            body=CounterfactualBody(
                run=run.run,
                served=result.served,
                outcome=result.outcome,
                direction=result.direction,
                tier=result.tier,
                floor=result.floor,
                pack=pack,
                model=model,
                label=result.label,
                confidence=result.confidence,
                clauses=result.clauses,
                reason_code=result.reason_code,
                temperature=run.temperature,
                score_ms=result.score_ms,
                took_ms=result.took_ms,
            ),
        )
        for result in run.results
    ]


def _consulted(
    entries: Sequence[Consulted], masked: Sequence[str], digest: Digest | None
) -> Iterator[ConsultedBody]:
    for entry in entries:
        hidden = entry.element is not None and _hides(masked, entry)
        yield ConsultedBody(
            source=entry.source,
            of=entry.of,
            system=entry.system,
            element=entry.element,
            digest=digest(entry.source, entry.element, entry.value)
            if hidden and digest is not None and entry.element is not None
            else entry.digest,
            took_ms=entry.took_ms,
            fresh_at=entry.fresh_at,
            quality=entry.quality,
            cached=entry.cached,
            error=entry.error,
        )


def _hides(masked: Sequence[str], entry: Consulted) -> bool:
    """True if a pointer names the value, or a part of it."""
    own = f"/sources/{entry.source}/{entry.element}"
    return any(pointer == own or pointer.startswith(f"{own}/") for pointer in masked)


def _values(entries: Sequence[Consulted]) -> dict[str, dict[str, Json]]:
    """The values by source and attribute; a source without any is left out."""
    values: dict[str, dict[str, Json]] = {}
    for entry in entries:
        if entry.element is not None:
            values.setdefault(entry.source, {})[entry.element] = entry.value
    return values


def consulted_of(body: Json, private: Json) -> tuple[Consulted, ...]:
    """What sources said for a recorded decision, from the parts of its event as they are read."""
    values = private.get("consulted", {})
    return tuple(
        Consulted(**entry, value=values.get(entry["source"], {}).get(entry.get("element")))
        for entry in body.get("consulted", ())
    )


def precedents_of(body: Json, private: Json) -> tuple[Precedent, ...]:
    """The precedents of a recorded decision, from the parts of its event as they are read."""
    lines = private.get("precedents", ())
    return tuple(
        Precedent(**entry, line=line) for entry, line in zip(body.get("precedents", ()), lines, strict=False)
    )


def _masked(private: DecisionPrivate, pointers: Sequence[str]) -> DecisionPrivate:
    values = msgspec.to_builtins(private.evaluation)
    if private.consulted:
        values["sources"] = private.consulted
    plain, hidden = mask(values, pointers)
    if not hidden:
        return private
    consulted = plain.pop("sources", {})
    return replace(
        private,
        evaluation=msgspec.convert(plain, Evaluation),
        consulted=consulted,
        facts={},
        errors={},
        time_used=None,
        suffix_tokens=(),
        masked=tuple(hidden),
    )


def has_masked(decision: Decision, pointers: Sequence[str]) -> bool:
    """True if the decision has a value at one of these JSON pointers, so that it is not recorded."""
    values = msgspec.to_builtins(decision.evaluation) | {"sources": _values(decision.sources)}
    return bool(mask(values, pointers)[1])


def _coarse(body: DecisionBody) -> DecisionBody:
    """The body without the exact numbers of the model, which show to its holders what it read."""
    return replace(
        body,
        prompt=None,
        confidence=None if body.confidence is None else round(body.confidence, MASKED_DIGITS),
        probabilities={label: round(p, MASKED_DIGITS) for label, p in body.probabilities.items()},
    )


def mask(value: Json, pointers: Sequence[str]) -> tuple[Json, list[str]]:
    """`value` with `MASK` at every JSON pointer (RFC 6901) that exists in it, and those pointers."""
    hidden = []
    for pointer in pointers:
        *parents, last = (part.replace("~1", "/").replace("~0", "~") for part in pointer[1:].split("/"))
        new = holder = dict(value) if isinstance(value, dict) else value
        for parent in parents:
            child = holder.get(parent) if isinstance(holder, dict) else None
            if not isinstance(child, dict):
                break
            holder[parent] = holder = dict(child)
        else:
            if isinstance(holder, dict) and last in holder:
                holder[last] = MASK
                value = new
                hidden.append(pointer)
    return value, hidden


def explanation_event(
    decision_id: str,
    explanation: Explanation,
    at: float,
    ticket: int | None = None,
    *,
    sender: str | None = None,
) -> Event:
    """The event of an explanation that was written after its decision."""
    return Event(
        kind="explanation",
        subject_id=decision_id,
        at=at,
        body=_explanation_body(explanation),
        private=ExplanationPrivate(reasoning=explanation.reasoning, text=explanation.text),
        ticket=ticket,
        sender=sender,
    )


def enrichment_event(decision_id: str, enrichment: Enrichment, at: float) -> Event:
    """The event of an enrichment that was written on idle time."""
    body = EnrichmentBody(
        why=enrichment.why,
        quality=enrichment.quality,
        model=_name_of(enrichment.model),
        alternative=enrichment.alternative,
        generated_tokens=enrichment.generated_tokens,
        device_ms=enrichment.device_ms,
        took_ms=enrichment.took_ms,
    )
    private = EnrichmentPrivate(
        risk=enrichment.risk, alternatives=enrichment.alternatives, rationale=enrichment.rationale
    )
    return Event(kind="enrichment", subject_id=decision_id, at=at, body=body, private=private)


def _explanation_body(explanation: Explanation) -> ExplanationBody:
    return ExplanationBody(
        classification=explanation.classification,
        clauses=explanation.clauses,
        truncated=explanation.truncated,
        generated_tokens=explanation.generated_tokens,
        explain_ms=explanation.explain_ms,
        source=explanation.source,
        fault=explanation.fault,
    )


# ---------------------------------------------------------------- records of clients

#: Kinds about a decision that must be recorded already (a consultation may come before its decision).
ABOUT_DECISION = frozenset(
    {
        *("explanation", "review", "assignment", "outcome", "approval", "consultation", "shadowed"),
        *("counterfactual", "supplement", "trace_state", "approval_request", "approval_end"),
        "enrichment",
    }
)


def record_event(
    record: records.Record,
    *,
    record_id: str,
    at: float,
    caller: Caller,
    ticket: int | None = None,
    masked: Sequence[str] = (),
    idempotency: str | None = None,
    claimed: Claimed = "no",
    governing: Governing | None = None,
    person: Person | None = None,
    recorder: Person | None = None,
    bounds: Bounds | None = None,
) -> Event:
    """The event of a record that a client sent. Its subject is the record's `decision_id`, else `record_id`.

    `person`, `recorder` and `bounds` are those of `Event`.
    `governing` is the pack that governs a reported decision. A report without `agent` is of its caller.
    Values at the JSON pointers `masked` are not recorded. `idempotency` comes first in the body, because
    `recall` looks for it there.
    """
    kind = records.KIND_OF[type(record)]
    private_names = records.PRIVATE_FIELDS[type(record)]
    body: dict[str, Json] = {} if idempotency is None else {"idempotency": idempotency}
    body |= {"id": record_id, "caller": msgspec.to_builtins(caller)}
    if claimed != "no":
        body["claimed"] = True
    if governing is not None:
        body["pack"] = to_builtins(governing.pack)
        if governing.required:
            body["required"] = governing.required
    if isinstance(record, records.DecisionReport) and record.agent is None:
        record = replace(record, agent=caller.who or f"pid:{caller.pid}")
    if isinstance(record, records.Supplement):
        body["names"] = sorted(record.values)
    if isinstance(record, records.Approve | records.Deny):
        body["verdict"] = "approved" if isinstance(record, records.Approve) else "rejected"
    along: tuple[Event, ...] = ()
    if isinstance(record, records.Node):
        if record.supersedes is not None:
            edge = records.Edge(
                source=record_id,
                target=record.supersedes,
                type="supersedes",
                rationale=record.rationale,
            )
            along = (record_event(edge, record_id=new_id(), at=at, caller=caller, masked=masked),)
        record = replace(record, supersedes=None, rationale=None)
    private: dict[str, Json] = {}
    about = getattr(record, "decision_id", None)
    for name in record.__struct_fields__:  # msgspec's `fields` evaluates every annotation: 0.8 ms
        value = getattr(record, name)
        if isinstance(value, float) and not math.isfinite(value):
            value = None  # JSON has no such number
        if name == "urgency" and value == "normal":
            continue
        if name != "decision_id" and value not in (None, {}, ()):
            plain = to_builtins(value) if isinstance(value, Struct) else value
            (private if name in private_names else body)[name] = plain
    private, hidden = mask(private, masked)
    if hidden:
        private["masked"] = hidden
    return Event(
        kind=kind,
        subject_id=about or record_id,
        at=at,
        body=body,
        private=private or None,
        ticket=ticket,
        sender=caller.who,
        unless_own=claimed == "unless_own",
        along=along,
        person=person,
        recorder=recorder,
        bounds=bounds,
    )


def approval_end(task: str, decision_id: str, state: State, at: float) -> Event:
    """The end of a task that nobody asked for: it expired."""
    body: dict[str, Json] = {"id": new_id(), "task": task, "status": state}
    return Event(kind="approval_end", subject_id=decision_id, at=at, body=body)


def citations_of(decision: Decision) -> list[Event]:
    """The edges from a decision to the precedents beside its question; nobody waits for their fates."""
    return [
        record_event(
            records.Edge(
                source=decision.id,
                target=each.id,
                type="CITES",
                similarity=None if each.similarity is None else min(1.0, max(0.0, each.similarity)),
                how=each.how,
                favourable=each.outcome == decision.outcome,
            ),
            record_id=new_id(),
            at=decision.at,
            caller=decision.caller,
        )
        for each in decision.precedents
    ]


def citations(record: records.Record, *, record_id: str, at: float, caller: Caller) -> list[Event]:
    """The edges from a reported decision to the precedents that it names; nobody waits for their fates."""
    if not isinstance(record, records.DecisionReport):
        return []
    return [
        record_event(
            records.Edge(source=record_id, target=precedent, type="CITES", how="reported"),
            record_id=new_id(),
            at=at,
            caller=caller,
        )
        for precedent in dict.fromkeys(record.precedents)
    ]


def search_event(
    search_id: str,
    search: Search,
    *,
    caller: Caller,
    pack: PackInfo,
    at: float,
    question: str,
    tried: int,
    listed: int,
    more: bool,
    ticket: int,
) -> Event:
    """A page of a search: `tried` candidates, of which it lists `listed`.

    `question` is the keyed digest of the search. No id of it is recorded, so there is nothing to erase.
    """
    evaluation = search.evaluation
    body: dict[str, Json] = {
        "id": search_id,
        "caller": to_builtins(caller),
        "target": search.target,
        "question": question,
        "pack": to_builtins(pack),
        "tried": tried,
        "listed": listed,
        "more": more,
    }
    if search.target != "action":
        body["action"] = evaluation.action.name
    return Event(kind="search", subject_id=search_id, at=at, body=body, ticket=ticket, sender=caller.who)


class _WithCaller(Struct, frozen=True):
    caller: Caller


def who_sent(body: Part | str) -> str | None:
    """`Caller.who` of an event's body, as it is or as it is stored."""
    if isinstance(body, str):
        return decode(body, type=_WithCaller).caller.who
    if isinstance(body, DecisionColumns):
        return body.caller.who
    return msgspec.convert(body, _WithCaller).caller.who


# ---------------------------------------------------------------- events of the daemon itself


def pack_activated(pack: PackInfo, at: float) -> Event:
    """From this event on, this pack is the active pack."""
    return Event(kind="pack_activated", subject_id=pack.sha256, at=at, body=pack)


def pack_loaded(pack: PackInfo, at: float) -> Event:
    """From this event on, this pack decides requests that name it."""
    return Event(kind="pack_loaded", subject_id=pack.sha256, at=at, body=pack)


def pack_shadowed(pack: PackInfo | None, at: float) -> Event:
    """From this event on, this pack is the shadow pack; None: no pack is."""
    return Event(
        kind="pack_shadowed",
        subject_id=pack.sha256 if pack else "none",
        at=at,
        body={} if pack is None else to_builtins(pack),
    )


def pack_unloaded(pack: PackInfo, at: float) -> Event:
    """From this event on, this pack decides nothing."""
    return Event(kind="pack_unloaded", subject_id=pack.sha256, at=at, body=pack)


def adapter_activated(adapter: Adapter | None, model_sha256: str, at: float) -> Event:
    """From this event on, the active pack uses this adapter on that model; None: no adapter."""
    named = {} if adapter is None else to_builtins(adapter)
    return Event(
        kind="adapter_activated",
        subject_id=identity_of(model_sha256, adapter),
        at=at,
        body=named | {"model_sha256": model_sha256},
    )


def model_loaded(model: ModelInfo, at: float) -> Event:
    """From this event on, this model judges."""
    return Event(kind="model_loaded", subject_id=model.sha256, at=at, body=model)


def calibration_event(calibration: Calibration, at: float) -> Event:
    """From this event on, this calibration scales the confidence of its pack on its model."""
    return Event(kind="calibration", subject_id=calibration.digest, at=at, body=to_builtins(calibration))


def promotion_event(
    promotion: records.Promotion, at: float, *, by_uid: int | None, by_key: str | None
) -> Event:
    """A pack passed or failed the promotion gate; `by_uid` or `by_key` requested it."""
    body = {name: value for name, value in to_builtins(promotion).items() if value is not None}
    by = {"by_uid": by_uid} | ({} if by_key is None else {"by_key": by_key})
    return Event(kind="promotion", subject_id=promotion.sha256, at=at, body=body | by)


def drift_event(
    *, golden: str, before: str, now: str, shift: float, pack: PackInfo, model: ModelInfo, at: float
) -> Event:
    """The model's answer to a golden question has changed. A `shift` that is not finite is stored as null.

    `model_sha256` is the digest of the weights that judge, adapter and scale included.
    """
    body = {
        "golden": golden,
        "label_before": before,
        "label": now,
        "shift": shift if math.isfinite(shift) else None,
        "pack_sha256": pack.sha256,
        "model_sha256": model.identity,
    }
    return Event(kind="drift", subject_id=pack.sha256, at=at, body=body)


def alert_event(
    id: str,
    *,
    kind: str,
    state: str,
    of: str | None,
    name: str | None,
    figures: dict[str, Json],
    at: float,
) -> Event:
    """An alert was raised or cleared; both have the same `id`. The name of an agent is private."""
    body: dict[str, Json] = {"id": id, "state": state, "kind": kind, **figures}
    if of is not None:
        body["of"] = of
    private = {"name": name} if of == "agent" and name is not None else None
    if name is not None and private is None:
        body["name"] = name
    return Event(kind="alert", subject_id=id, at=at, body=body, private=private)


def canary_started(canary: Canary, at: float, *, by: Caller, choice: Sequence[dict[str, Json]] = ()) -> Event:
    """From this event on, the candidate of the canary decides for its share of the callers.

    `choice` has the record of each candidate that it was chosen from.
    """
    body: dict[str, Json] = {"id": canary.id, "state": "started", "share": canary.share}
    body |= {"spec": to_builtins(canary)} | ({"choice": list(choice)} if choice else {}) | _by(by)
    return Event(kind="canary", subject_id=canary.id, at=at, body=body)


def canary_resized(canary_id: str, share: float, at: float, *, by: Caller) -> Event:
    """From this event on, the canary has this share of the callers."""
    body: dict[str, Json] = {"id": canary_id, "state": "resized", "share": share}
    return Event(kind="canary", subject_id=canary_id, at=at, body=body | _by(by))


def canary_ended(
    canary_id: str,
    cause: Cause,
    at: float,
    *,
    by: Caller | None = None,
    breach: Breach | None = None,
    reason: str | None = None,
) -> Event:
    """From this event on, the candidate decides nothing more; if it was promoted, it decides everything.

    `breach` are the figures for which it was rolled back, `reason` why it failed.
    """
    body: dict[str, Json] = {"id": canary_id, "state": "ended", "cause": cause}
    body |= {} if breach is None else to_builtins(breach)
    body |= {} if reason is None else {"reason": reason}
    return Event(kind="canary", subject_id=canary_id, at=at, body=body | (_by(by) if by else {}))


def _by(caller: Caller) -> dict[str, Json]:
    return {"by_uid": caller.uid} | ({} if caller.key is None else {"by_key": caller.key})


def checkpoint_event(key: str, at: float) -> Event:
    """A checkpoint file signs the chain up to and including this event. `key` is the id of the key."""
    return Event(kind="checkpoint", subject_id=key, at=at, body={"key": key})


def rekeyed_event(at: float, *, by_uid: int | None, by_key: str | None) -> Event:
    """The key of the digests was replaced: those of earlier events mean nothing any more."""
    by = {"by_uid": by_uid} | ({} if by_key is None else {"by_key": by_key})
    return Event(kind="rekeyed", subject_id="rekeyed", at=at, body=by)


def gap_event(reason: str, at: float, **lost: Json) -> Event:
    """Events that should be here are missing; `lost` says which."""
    return Event(kind="gap", subject_id="gap", at=at, body={"reason": reason, **lost})


# ---------------------------------------------------------------- text forms


def timestamp(at: float) -> str:
    """Unix seconds as RFC 3339 in UTC, microseconds; sorts as text."""
    seconds, micros = divmod(round(at * 1_000_000), 1_000_000)
    return f"{_to_the_second(seconds)}.{micros:06d}Z"


def in_utc(text: str | None) -> str | None:
    """An RFC 3339 time in the form of `timestamp`; None for None."""
    return None if text is None else timestamp(datetime.fromisoformat(text).timestamp())


@lru_cache(maxsize=4)
def _to_the_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
