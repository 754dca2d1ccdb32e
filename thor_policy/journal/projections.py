"""Projections: the rows of the tables that people query, computed from events.

Owns the rows of every table but `events` and `private`. Invariant: a row is a function of events alone (of
their bodies and of what is left of their private parts), so it can be computed again at any time. The writer,
`verify` and `rebuild` all call `project`. Pure; any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from thor_policy.core.decisions import ModelInfo, PackInfo, Traits, identity_of
from thor_policy.core.requests import Json
from thor_policy.journal import events
from thor_policy.journal.events import (
    CounterfactualBody,
    DecisionColumns,
    EnrichmentBody,
    EnrichmentPrivate,
    ExplanationBody,
    ExplanationPrivate,
    Part,
    PrivateColumns,
    ShadowBody,
)
from thor_policy.journal.rewrites import Projection, Row

#: Columns of `decisions`, in order. Other tools know the names of the first block.
# fmt: off
DECISION_COLUMNS = (
    "seq", "decision_id", "timestamp", "situation", "team_context", "model_name", "model_version",
    "prompt_version", "decision", "classification", "risk_level", "reasoning", "full_response",
    "expected_decision", "decision_correct", "reasoning_coverage", "reviewed", "review_decision",
    "review_reasoning", "review_timestamp", "scenario_id", "tags", "decision_type", "actor", "action",
    "entity", "session", "allow", "tier", "reason_code", "floor", "label", "confidence", "probabilities",
    "clauses", "is_exception", "input_tokens", "output_tokens", "caller_uid", "queue_ms", "rules_ms",
    "score_ms", "explain_ms", "latency_ms", "outcome_status", "outcome_value", "original_id",
    "temperature", "explained_seq", "reviewed_seq", "outcome_seq", "claimed", "timestamp_decision",
    "confidence_level", "urgency", "judgment_call", "required", "lacks", "trace_status", "status_seq",
    "approval_task", "lifted", "canary", "canary_arm", "canary_note",
)
# fmt: on
#: Index of each column of `decisions` in a row.
AT = {name: index for index, name in enumerate(DECISION_COLUMNS)}
#: Groups of columns of `decisions` that a later event changes together, by the column that names this event.
GROUPS: dict[str, tuple[str, ...]] = {
    "explained_seq": ("classification", "clauses", "reasoning", "full_response", "explain_ms"),
    "reviewed_seq": (
        "reviewed",
        "review_decision",
        "review_reasoning",
        "review_timestamp",
        "decision_correct",
    ),
    "outcome_seq": ("outcome_status", "outcome_value"),
    "status_seq": ("trace_status",),
}
#: The group that each kind of event changes. The subject of these events is a recorded decision.
GROUP_OF = {
    "explanation": "explained_seq",
    "review": "reviewed_seq",
    "outcome": "outcome_seq",
    "trace_state": "status_seq",
}
#: Columns that hold JSON, in any table.
JSON_COLUMNS = frozenset(
    {
        *("situation", "probabilities", "clauses", "tags", "metadata", "lost", "answer"),
        *("required", "lacks", "names", "supplied", "spec", "roles", "groups", "parties", "why", "choice"),
    }
)

#: Table of each kind of event that has its own row, with the columns after `seq` and `timestamp`.
_PLAIN: dict[str, tuple[str, tuple[str, ...]]] = {
    "consultation": (
        "consultations",
        (
            *("id", "decision_id", "session", "system", "entity", "query", "answer", "relevance"),
            *("took_ms", "fresh_at", "caller_uid"),
        ),
    ),
    "outcome": ("outcomes", ("id", "decision_id", "status", "value", "note", "caller_uid", "claimed")),
    "review": (
        "reviews",
        (
            *("id", "decision_id", "reviewer", "verdict", "decision", "reasoning", "caller_uid"),
            *("blind", "adjudicates", "sampled", "withdraws"),
        ),
    ),
    "assignment": (
        "assignments",
        ("id", "decision_id", "reviewer", "type", "given_by", "seconds", "caller_uid"),
    ),
    "approval": (
        "approvals",
        (
            *("id", "decision_id", "approver", "role", "channel", "verdict", "step", "evidence"),
            *("caller_uid", "task", "roles", "groups", "parties", "recorded_by", "comment"),
        ),
    ),
    "approval_request": (
        "approval_requests",
        ("id", "decision_id", "outcome", "urgency", "reason", "spec", "caller_uid"),
    ),
    "approval_end": ("approval_ends", ("id", "decision_id", "task", "status", "reason", "caller_uid")),
    "supplement": ("supplements", ("id", "decision_id", "names", "supplied", "caller_uid", "claimed")),
    "node": (
        "nodes",
        (
            *("id", "type", "title", "description", "status", "confidence", "session", "metadata"),
            *("caller_uid", "actor_type", "role", "agent"),
        ),
    ),
    "edge": (
        "edges",
        (
            *("id", "source", "target", "type", "weight", "rationale", "caller_uid"),
            *("similarity", "how", "favourable"),
        ),
    ),
    "trace_state": ("trace_states", ("id", "decision_id", "status", "by", "because", "caller_uid")),
    "pack_activated": ("packs", ("name", "version", "sha256")),
    "model_loaded": (
        "models",
        ("name", "sha256", "quantisation", "architecture", "parameters", "build", "device"),
    ),
    "calibration": ("calibrations", ("temperature", "pack_sha256", "model_sha256", "judged")),
    "promotion": (
        "promotions",
        (
            *("name", "version", "sha256", "against", "model_sha256", "passed", "report"),
            *("key", "signature", "by_uid"),
        ),
    ),
    "drift": ("drifts", ("golden", "label_before", "label", "shift", "pack_sha256", "model_sha256")),
    "adapter_activated": ("adapters", ("name", "sha256", "scale", "model_sha256")),
    "shadowed": (
        "shadows",
        (
            *("decision_id", "served", "decision", "agrees", "prompt_version", "model_name", "model_version"),
            *("tier", "reason_code", "floor", "label", "confidence", "probabilities", "temperature"),
            "score_ms",
        ),
    ),
    "counterfactual": (
        "counterfactuals",
        (
            *("run", "decision_id", "served", "decision", "direction", "prompt_version", "pack_sha256"),
            *("model_name", "model_version", "model_sha256", "tier", "reason_code", "floor", "label"),
            *("confidence", "clauses", "temperature", "score_ms", "took_ms"),
        ),
    ),
    "enrichment": (
        "enrichments",
        (
            *("decision_id", "why", "model_name", "model_version", "model_sha256", "risk", "alternative"),
            *("alternatives", "rationale", "quality", "generated_tokens", "device_ms", "took_ms"),
        ),
    ),
    "alert": (
        "alerts",
        ("id", "state", "kind", "of", "name", "value", "low", "high", "sample", "threshold"),
    ),
    "canary": (
        "canaries",
        (
            *("id", "state", "cause", "share", "spec", "choice", "condition", "value", "low", "high"),
            *("level", "sample", "control_sample", "threshold", "reason", "by_uid"),
        ),
    ),
    "checkpoint": ("checkpoints", ("key",)),
    "gap": ("gaps", ("reason", "lost")),
    "archived": ("archives", ("file", "first_seq", "last_seq", "events", "head", "chain")),
}
#: Every table of projections, and the kinds of event that make its rows.
TABLES: dict[str, tuple[str, ...]] = {"decisions": ("decision", "decision_report")} | {
    table: (kind,) for kind, (table, _) in _PLAIN.items()
}


def columns_of(table: str) -> tuple[str, ...]:
    """The columns of a table, in order."""
    if table == "decisions":
        return DECISION_COLUMNS
    return ("seq", "timestamp", *next(columns for name, columns in _PLAIN.values() if name == table))


def read(kind: str, body: bytes, private: bytes | None) -> tuple[Part, Part | None]:
    """The parts of a stored event that `project` needs. Raises msgspec.MsgspecError."""
    body_type, private_type = _TYPES.get(kind, (_OBJECT, _OBJECT))
    return body_type(body), None if private is None else private_type(private)


def project(kind: str, seq: int, at: str, subject_id: str, body: Any, private: Any) -> Projection:
    """The projection of one event. `private` is None if the event never had one, or if it was erased."""
    if isinstance(body, DecisionColumns):
        return Projection("decisions", _decision_row(seq, at, subject_id, body, private))
    if kind == "decision_report":
        return Projection("decisions", _report_row(seq, at, subject_id, body, private or {}))
    if isinstance(body, ExplanationBody):
        return Projection(changes=_explanation_changes(body, private))
    if isinstance(body, ShadowBody):
        return Projection("shadows", _shadow_row(seq, at, subject_id, body))
    if isinstance(body, CounterfactualBody):
        return Projection("counterfactuals", _counterfactual_row(seq, at, subject_id, body))
    if isinstance(body, EnrichmentBody):
        return Projection("enrichments", _enrichment_row(seq, at, subject_id, body, private))
    if kind not in _PLAIN:
        return Projection()
    table, columns = _PLAIN[kind]
    fields = (msgspec.to_builtins(body) if isinstance(body, msgspec.Struct) else body) | (private or {})
    if kind in events.ABOUT_DECISION:
        fields["decision_id"] = None if subject_id == fields["id"] else subject_id
        fields["answer"] = fields.get("value")  # the value of a consultation is any JSON, not a number
        fields["supplied"] = fields.get("values")
    elif kind == "gap":
        fields = {"reason": fields["reason"], "lost": {k: v for k, v in fields.items() if k != "reason"}}
    if caller := fields.get("caller"):
        fields["caller_uid"] = caller.get("uid")
    row = (seq, at, *[_cell(name, fields.get(name)) for name in columns])
    if kind not in _CHANGES or fields.get("claimed"):  # a claim changes nothing that is counted
        return Projection(table, row)
    return Projection(table, row, _CHANGES[kind](at, fields))


def _cell(name: str, value: Json) -> Any:
    if name in JSON_COLUMNS and value is not None:
        return _text(value)
    return int(value) if isinstance(value, bool) else value


def _text(value: Any) -> str:
    return events.encode(value).decode()


_OBJECT = msgspec.json.Decoder(dict[str, Any]).decode
_TYPES: dict[str, tuple[Callable[[bytes], Part], Callable[[bytes], Part]]] = {
    "decision": (msgspec.json.Decoder(DecisionColumns).decode, msgspec.json.Decoder(PrivateColumns).decode),
    "explanation": (
        msgspec.json.Decoder(ExplanationBody).decode,
        msgspec.json.Decoder(ExplanationPrivate).decode,
    ),
    "enrichment": (
        msgspec.json.Decoder(EnrichmentBody).decode,
        msgspec.json.Decoder(EnrichmentPrivate).decode,
    ),
    "shadowed": (msgspec.json.Decoder(ShadowBody).decode, _OBJECT),
    "counterfactual": (msgspec.json.Decoder(CounterfactualBody).decode, _OBJECT),
    "pack_activated": (msgspec.json.Decoder(PackInfo).decode, _OBJECT),
    "model_loaded": (msgspec.json.Decoder(ModelInfo).decode, _OBJECT),
}


# ---------------------------------------------------------------- decisions


_USUAL = Traits()


def _decision_row(seq: int, at: str, decision_id: str, body: DecisionColumns, private: Any) -> Row:
    situation = team_context = reasoning = text = actor = entity = None
    explanation, notes, timings, model, pack = (
        body.explanation,
        body.annotations,
        body.timings,
        body.model,
        body.pack,
    )
    if private is not None:
        evaluation = private.evaluation
        situation = _text(evaluation)
        team_context = evaluation.context.get("team_context")
        if not isinstance(team_context, str | None):
            team_context = _text(team_context)
        actor = f"{body.subject_type}:{evaluation.subject.id}"
        entity = f"{body.resource_type}:{evaluation.resource.id}"
        text = private.text
        if explanation:
            reasoning = private.reasoning or body.floor.because
    claimed = notes is not None and notes.claimed
    if claimed:  # no column shows them, since every column of annotations is counted somewhere
        notes = None
    expected = notes.expected if notes else ()
    in_emergency = body.use is not None and body.use.lifts is not None and body.use.urgency == "emergency"
    traits, required = body.traits or _USUAL, None
    if traits.required:
        has_data = any(entry.element is not None for entry in body.consulted)
        required = _required(traits.required, has_data=has_data)
    return (
        seq,
        decision_id,
        at,
        situation,
        team_context,
        *(model.name_and_version if model else (None, None)),
        version_of(pack),
        body.outcome,
        explanation.classification if explanation else None,
        body.risk,
        reasoning,
        text,
        "|".join(expected) or None,
        int(body.outcome in expected) if expected else None,
        None,
        0,
        None,
        None,
        None,
        notes.scenario_id if notes else None,
        _text(notes.tags) if notes else "[]",
        traits.type,
        actor,
        body.action,
        entity,
        None,
        int(body.allow),
        body.tier,
        body.reason_code,
        body.floor.outcome,
        body.label,
        body.confidence,
        _text(body.probabilities),
        _text(explanation.clauses if explanation else body.floor.clauses),
        int(traits.is_exception or in_emergency),
        None,
        None,
        body.caller.uid,
        timings.queue_ms,
        timings.rules_ms,
        timings.score_ms,
        explanation.explain_ms if explanation else None,
        timings.queue_ms + timings.rules_ms + timings.score_ms,
        None,
        None,
        body.original,
        body.temperature,
        None,
        None,
        None,
        "annotations" if claimed else None,
        None,  # it was made when it was received
        body.confidence_level,
        "emergency" if in_emergency else _urgency(traits.urgency),
        1 if body.judgment_call else None,
        required,
        required,
        "active",
        None,
        use.task if (use := body.use) is not None and use.lifts is not None else None,
        use.lifts if use is not None else None,
        *((trial.id, trial.arm, trial.note) if (trial := body.trial) is not None else _NO_TRIAL),
    )


#: The columns of a decision that no canary concerns.
_NO_TRIAL = (None, None, None)


def _required(names: Sequence[str], *, has_data: bool = False) -> str | None:
    """What a trace must have besides what its own event has, as JSON; None for nothing.

    `has_data`: a source of the pack gave a value for it.
    """
    left = [name for name in names if not (name == "source_data" and has_data)]
    return _text(left) if left else None


def _urgency(urgency: str | None) -> str | None:
    """The column `urgency`: null where nothing is urgent, as in most decisions."""
    return None if urgency == "normal" else urgency


@lru_cache(maxsize=64)
def version_of(pack: PackInfo) -> str:
    """The name, version and digest of a pack, as tables show them."""
    return f"{pack.name}@{pack.version}+{pack.sha256[:12]}"


def _shadow_row(seq: int, at: str, decision_id: str, body: ShadowBody) -> Row:
    return (
        seq,
        at,
        decision_id,
        body.served,
        body.outcome,
        int(body.served == body.outcome),
        version_of(body.pack),
        *(body.model.name_and_version if body.model else (None, None)),
        body.tier,
        body.reason_code,
        body.floor,
        body.label,
        body.confidence,
        _text(body.probabilities),
        body.temperature,
        body.score_ms,
    )


def _counterfactual_row(seq: int, at: str, decision_id: str, body: CounterfactualBody) -> Row:
    return (
        seq,
        at,
        body.run,
        decision_id,
        body.served,
        body.outcome,
        body.direction,
        version_of(body.pack),
        body.pack.sha256,
        *body.model.name_and_version,
        identity_of(body.model.sha256, body.model.adapter),
        body.tier,
        body.reason_code,
        body.floor,
        body.label,
        body.confidence,
        _text(body.clauses),
        body.temperature,
        body.score_ms,
        body.took_ms,
    )


def _enrichment_row(seq: int, at: str, decision_id: str, body: EnrichmentBody, private: Any) -> Row:
    model = body.model
    return (
        seq,
        at,
        decision_id,
        _text(body.why),
        *model.name_and_version,
        identity_of(model.sha256, model.adapter),
        private.risk if private else None,
        body.alternative,
        private.alternatives if private else None,
        private.rationale if private else None,
        body.quality,
        body.generated_tokens,
        body.device_ms,
        body.took_ms,
    )


def _report_row(seq: int, at: str, decision_id: str, body: Any, private: dict[str, Json]) -> Row:
    made_by, agent = body.get("made_by", "agent"), private.get("agent")
    situation = {name: private[name] for name in ("prompt", "context") if name in private}
    pack = msgspec.convert(body["pack"], PackInfo) if "pack" in body else None
    required = _required(body.get("required", ()))
    columns = {
        "seq": seq,
        "decision_id": decision_id,
        "timestamp": at,
        "situation": _text(situation) if private else None,
        "model_name": body.get("model"),
        "prompt_version": pack and version_of(pack),
        "decision": body["outcome"],
        "risk_level": body.get("risk"),
        "reasoning": private.get("reasoning"),
        "full_response": private.get("response"),
        "reviewed": 0,
        "tags": _text(body.get("tags", [])),
        "decision_type": body.get("type", "policy_application"),
        "actor": agent and f"{made_by}:{agent}",
        "entity": private.get("entity"),
        "session": body.get("session"),
        "tier": made_by,
        "confidence": body.get("confidence"),
        "probabilities": "{}",
        "clauses": "[]",
        "is_exception": int(body.get("is_exception", False)),
        "input_tokens": body.get("input_tokens"),
        "output_tokens": body.get("output_tokens"),
        "caller_uid": body["caller"].get("uid"),
        "latency_ms": body.get("latency_ms"),
        "claimed": "report" if body.get("claimed") else None,
        "timestamp_decision": events.in_utc(body.get("timestamp_decision")),
        "confidence_level": body.get("confidence_level"),
        "urgency": _urgency(body.get("urgency")),
        "judgment_call": 1 if body.get("judgment_call") else None,
        "required": required,
        "lacks": required,
        "trace_status": "active",
    }
    return tuple(map(columns.get, DECISION_COLUMNS))


def _explanation_changes(body: ExplanationBody, private: Any) -> Row:
    return (
        body.classification,
        _text(body.clauses),
        private.reasoning if private else None,
        private.text if private else None,
        body.explain_ms,
    )


def _review_changes(at: str, fields: dict[str, Json]) -> Row:
    verdict = fields["verdict"]
    if verdict == "withdrawn":
        verdict = fields.get("stands")
        if verdict is None:
            right = fields.get("right")
            return 0, None, None, None, None if right is None else int(right)
        fields = fields | {"reasoning": None}  # only the row of the review that stands has it
    right = verdict in ("accept", "correct_reasoning")
    return 1, fields.get("decision"), fields.get("reasoning"), at, int(right)


def _outcome_changes(at: str, fields: dict[str, Json]) -> Row:
    return fields["status"], fields.get("value")


def _status_changes(at: str, fields: dict[str, Json]) -> Row:
    return (fields["status"],)


_CHANGES: dict[str, Callable[[str, dict[str, Json]], Row]] = {
    "review": _review_changes,
    "outcome": _outcome_changes,
    "trace_state": _status_changes,
}
