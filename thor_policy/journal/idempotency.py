"""The look-up of what was recorded for an idempotency key, on the chain itself.

Owns the form in which an event stores a key, and the way back from an event to an answer. Invariant: what a
look-up returns was committed, and every event younger than the window is in the database, because it is not
archived before. The window is measured by `journal.elapsed`, so a step of the wall clock forgets no key.
The key is stored as a digest, the first member of the body, where a partial index finds it.
`find_recorded` is for the journal's thread, `first_remembered` for any thread.
"""

from __future__ import annotations

import sqlite3
import time
from datetime import datetime

import msgspec

from thor_policy.core.approvals import Moment
from thor_policy.core.decisions import Decision, Explanation, Floor, ModelInfo, Scored
from thor_policy.core.idempotency import DIGEST_CHARS, Mark
from thor_policy.core.requests import Action, Entity, Evaluation
from thor_policy.core.results import PriorRecord
from thor_policy.journal import approval_tasks, events
from thor_policy.journal.elapsed import first_within
from thor_policy.journal.events import (
    DecisionBody,
    DecisionPrivate,
    ExplanationBody,
    ExplanationPrivate,
    ModelName,
)
from thor_policy.telemetry.clocks import Instant

#: How long a key is remembered, in seconds of `journal.elapsed`.
KEY_WINDOW_S = 86_400
#: How the body of an event with a key begins; the text of its `Mark` follows.
KEYED = '{"idempotency":"'
#: The condition of the index in migration 0005. A query must repeat it to use the index.
IS_KEYED = f"substr(body, 1, {len(KEYED)}) = '{KEYED}'"
KEY_DIGEST = f"substr(body, {len(KEYED) + 1}, {DIGEST_CHARS})"

_bodies = msgspec.json.Decoder(DecisionBody)
_privates = msgspec.json.Decoder(DecisionPrivate)


def find_recorded(connection: sqlite3.Connection, digest: str, now: Instant) -> PriorRecord | None:
    """What was committed for a key that is remembered; None if nothing was.

    `digest` is that of caller and key (64 hex digits). Raises sqlite3.Error, msgspec.MsgspecError.
    """
    row = connection.execute(
        f"SELECT e.seq, e.kind, e.subject_id, e.at, e.body, p.value FROM events e "
        f"LEFT JOIN private p ON p.seq = e.seq WHERE {IS_KEYED} AND {KEY_DIGEST} = ? "
        "ORDER BY e.seq DESC LIMIT 1",
        (digest,),
    ).fetchone()
    if row is None or row[0] < first_within(connection, KEY_WINDOW_S, now):
        return None
    seq, kind, subject_id, at, body, private = row
    decision, fields = None, events.decode(body)
    if kind == "decision":
        decision = _decision(connection, subject_id, at, body, private)
    content = Mark.parse(fields["idempotency"]).content
    record_id = fields.get("id", subject_id)
    task = None
    if kind.startswith("approval") and (kind == "approval_request" or "task" in fields):
        task = approval_tasks.find(connection, fields.get("task", record_id))
    return PriorRecord(
        content=content,
        kind=kind,
        id=record_id,
        seq=seq,
        decision=decision,
        task=task,
        moment=None if task is None else Moment(*now, time.time()),
    )


def first_remembered(connection: sqlite3.Connection, now: Instant) -> int | None:
    """Sequence number of the first event with a key that is remembered; None if there is none."""
    (seq,) = connection.execute(
        f"SELECT min(seq) FROM events WHERE {IS_KEYED} AND seq >= ?",
        (first_within(connection, KEY_WINDOW_S, now),),
    ).fetchone()
    return None if seq is None else int(seq)


def _decision(
    connection: sqlite3.Connection, decision_id: str, at: str, stored: str, private: str | None
) -> Decision:
    """The parts of a decision that a reply contains. Erased parts are empty."""
    body, private_part = _bodies.decode(stored), None if private is None else _privates.decode(private)
    floor = body.floor
    return Decision(
        id=decision_id,
        at=datetime.fromisoformat(at).timestamp(),
        evaluation=private_part.evaluation if private_part else _erased_evaluation(body),
        caller=body.caller,
        outcome=body.outcome,
        allow=body.allow,
        tier=body.tier,
        floor=Floor(
            outcome=floor.outcome,
            final=floor.final,
            rules=floor.rules,
            clauses=floor.clauses,
            because=floor.because,
            also_because=floor.also_because,
            classification=floor.classification,
            time_used=private_part.time_used if private_part else None,
        ),
        risk=body.risk,
        pack=body.pack,
        model=_model(connection, body.model) if body.model else None,
        reason_code=body.reason_code,
        label=body.label,
        confidence=body.confidence,
        probabilities=body.probabilities,
        scored=_scored(body, private_part),
        explanation=_explanation(connection, decision_id, body, private_part),
        obligations=body.obligations,
        timings=body.timings,
        original=body.original,
        temperature=body.temperature,
        prior=body.prior,
        idempotency=body.idempotency,
        offer=body.offer,
        use=body.use,
        stepped_up=body.stepped_up,
    )


def _scored(body: DecisionBody, private: DecisionPrivate | None) -> Scored | None:
    """The model's scores. The tokens of the question are empty if they were masked or erased."""
    if body.prompt is None or body.label is None:
        return None
    return Scored(
        label=body.label,
        probabilities=body.probabilities,
        logits=body.prompt.logits,
        suffix_tokens=private.suffix_tokens if private else (),
        prefix_tokens=body.prompt.prefix_tokens,
        prefix_digest=body.prompt.prefix_digest,
        score_ms=body.timings.score_ms,
    )


def _erased_evaluation(body: DecisionBody) -> Evaluation:
    return Evaluation(
        subject=Entity(type=body.subject_type, id=""),
        action=Action(name=body.action),
        resource=Entity(type=body.resource_type, id=""),
    )


def _explanation(
    connection: sqlite3.Connection, decision_id: str, body: DecisionBody, private: DecisionPrivate | None
) -> Explanation | None:
    if body.explanation is not None:
        words = (
            ExplanationPrivate(reasoning=private.reasoning or body.floor.because, text=private.text)
            if private
            else ExplanationPrivate()
        )
        return _joined(body.explanation, words)
    row = connection.execute(
        "SELECT e.body, p.value FROM events e LEFT JOIN private p ON p.seq = e.seq WHERE e.subject_id = ? "
        # the second condition on the kind is that of the index
        "AND e.kind = 'explanation' AND e.kind NOT IN ('decision', 'decision_report')",
        (decision_id,),
    ).fetchone()
    if row is None:
        return None
    words = ExplanationPrivate() if row[1] is None else msgspec.json.decode(row[1], type=ExplanationPrivate)
    return _joined(msgspec.json.decode(row[0], type=ExplanationBody), words)


def _joined(body: ExplanationBody, words: ExplanationPrivate) -> Explanation:
    return Explanation(
        classification=body.classification,
        clauses=body.clauses,
        reasoning=words.reasoning or "",
        text=words.text or "",
        truncated=body.truncated,
        generated_tokens=body.generated_tokens,
        explain_ms=body.explain_ms,
        source=body.source,
        fault=body.fault,
    )


def _model(connection: sqlite3.Connection, name: ModelName) -> ModelInfo:
    """The model that judged, from its `model_loaded` event, or from its row if that event is archived."""
    row = connection.execute(
        "SELECT body FROM events WHERE subject_id = ? AND kind = 'model_loaded' "
        "AND kind NOT IN ('decision', 'decision_report') ORDER BY seq DESC LIMIT 1",
        (name.sha256,),
    ).fetchone()
    if row is not None:
        loaded = msgspec.json.decode(row[0], type=ModelInfo)
        return msgspec.structs.replace(loaded, adapter=name.adapter)
    row = connection.execute(
        "SELECT architecture, parameters, build, device FROM models "
        "WHERE sha256 = ? ORDER BY seq DESC LIMIT 1",
        (name.sha256,),
    ).fetchone()
    architecture, parameters, build, device = row or ("", 0, "", "")
    return ModelInfo(
        name=name.name,
        sha256=name.sha256,
        quantisation=name.quantisation,
        architecture=architecture,
        parameters=parameters,
        build=build,
        device=device,
        exact=False,  # the row does not have it
        adapter=name.adapter,
    )
