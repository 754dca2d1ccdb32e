"""What is stored: values into event bodies, and bodies into the tables people query.

Owns the JSON of event bodies and every projection. Invariant: a projection depends on the events (and
their private values) alone, so it can be rebuilt from them at any time. Pure but for the connection it is
handed; called by the journal thread, and by readers that rebuild.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Struct

from thor_policy.core import Decision, Explanation, Json, ModelInfo, PackInfo

_encoder = msgspec.json.Encoder()


class Event(Struct, frozen=True, kw_only=True):
    """Something that happened, before it has a place in the chain. `at` is Unix time in seconds."""

    kind: str
    subject_id: str
    at: float
    body: dict[str, Json]
    ticket: int | None = None


def decided(decision: Decision, ticket: int | None = None) -> Event:
    """The event of a decision: all that is needed to explain it and to derive it again."""
    scored, explanation = decision.scored, decision.explanation
    body: dict[str, Json] = {
        "decision_id": decision.id,
        "evaluation": msgspec.to_builtins(decision.evaluation),
        "caller": msgspec.to_builtins(decision.caller),
        "outcome": decision.outcome,
        "allow": decision.allow,
        "tier": decision.tier,
        "reason_code": decision.reason_code,
        "floor": msgspec.to_builtins(decision.floor),
        "label": decision.label,
        "confidence": decision.confidence,
        "probabilities": decision.probabilities,
        "risk": decision.risk,
        "pack": msgspec.to_builtins(decision.pack),
        "model": msgspec.to_builtins(decision.model),
        "obligations": msgspec.to_builtins(decision.obligations),
        "annotations": msgspec.to_builtins(decision.annotations),
        "timings": msgspec.to_builtins(decision.timings),
    }
    if scored:
        body["prompt"] = {
            "prefix_digest": scored.prefix_digest,
            "prefix_tokens": scored.prefix_tokens,
            "suffix_tokens": scored.suffix_tokens,
            "logits": scored.logits,
        }
    if explanation:
        body |= _explanation_body(explanation)
    return Event(kind="decision", subject_id=decision.id, at=decision.at, body=body, ticket=ticket)


def explained(decision_id: str, explanation: Explanation, at: float, ticket: int | None = None) -> Event:
    """The event of an explanation that was written after its decision."""
    body = {"decision_id": decision_id} | _explanation_body(explanation)
    return Event(kind="explanation", subject_id=decision_id, at=at, body=body, ticket=ticket)


def pack_activated(pack: PackInfo, at: float) -> Event:
    """From here on, this pack decides."""
    return Event(kind="pack_activated", subject_id=pack.sha256, at=at, body=msgspec.to_builtins(pack))


def model_loaded(model: ModelInfo, at: float) -> Event:
    """From here on, this model judges."""
    return Event(kind="model_loaded", subject_id=model.sha256, at=at, body=msgspec.to_builtins(model))


def _explanation_body(explanation: Explanation) -> dict[str, Json]:
    return {
        "classification": explanation.classification,
        "clauses": explanation.clauses,
        "reasoning": explanation.reasoning,
        "text": explanation.text,
        "truncated": explanation.truncated,
        "generated_tokens": explanation.generated_tokens,
        "explain_ms": explanation.explain_ms,
    }


# ---------------------------------------------------------------- erasable values


def split(body: dict[str, Json], pointers: Sequence[str]) -> tuple[dict[str, Json], dict[str, Json]]:
    """Take the values at JSON pointers out of a body: (what stays, {pointer: value})."""
    private: dict[str, Json] = {}
    kept = dict(body)
    for pointer in pointers:
        *parents, last = (part.replace("~1", "/").replace("~0", "~") for part in pointer[1:].split("/"))
        holder: Json = kept
        for parent in parents:
            child = holder.get(parent)
            if not isinstance(child, dict):
                break
            holder[parent] = holder = dict(child)
        else:
            if last in holder:
                private[pointer] = holder.pop(last)
    return kept, private


def join(body: dict[str, Json], private: dict[str, Json]) -> dict[str, Json]:
    """The inverse of `split`; changes `body`. What was taken last goes back first."""
    for pointer, value in reversed(private.items()):
        *parents, last = (part.replace("~1", "/").replace("~0", "~") for part in pointer[1:].split("/"))
        holder = body
        for parent in parents:
            holder = holder.setdefault(parent, {})
        holder[last] = value
    return body


def encode(value: Json) -> str:
    """JSON text as stored."""
    return _encoder.encode(value).decode()


def decode(text: str) -> Any:
    """The inverse of `encode`."""
    return msgspec.json.decode(text)


# ---------------------------------------------------------------- projections


class Inserts:
    """Rows on their way into the file, many to a statement.

    Each statement gives up the interpreter lock and waits for it again, which beside a busy engine thread
    costs more than the insertion. Rows of a table keep their order; `flush` before reading or updating.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._rows: dict[str, list[tuple[Any, ...]]] = {}

    def add(self, table: str, row: tuple[Any, ...]) -> None:
        """`table` is a name, with its columns in brackets if the row does not have them all."""
        self._rows.setdefault(table, []).append(row)

    def execute(self, sql: str, values: tuple[Any, ...]) -> None:
        """Run a statement that must see every row so far."""
        self.flush()
        self._connection.execute(sql, values)

    def flush(self) -> None:
        """Write what was added: the rows of a table in statements of 32, 16, 8, 4, 2 and 1."""
        for table, rows in self._rows.items():
            marks = f"({', '.join('?' * len(rows[0]))})"
            start = 0
            while start < len(rows):
                size = min(32, 1 << (len(rows) - start).bit_length() - 1)
                values = [value for row in rows[start : start + size] for value in row]
                self._connection.execute(f"INSERT INTO {table} VALUES {', '.join([marks] * size)}", values)
                start += size
        self._rows.clear()


def project(inserts: Inserts, kind: str, seq: int, at: str, body: dict[str, Json]) -> None:
    """Write what one event means for the tables people query.

    `body` has its private values joined in again, which puts them last: their order shows in JSON columns.
    """
    if kind == "decision":
        inserts.add(_DECISIONS, _decision_row(seq, at, body))
    elif kind == "explanation":
        inserts.execute(
            "UPDATE decisions SET classification = ?, clauses = ?, reasoning = ?, full_response = ?, "
            "explain_ms = ? WHERE decision_id = ?",
            (
                body["classification"],
                encode(body["clauses"]),
                body.get("reasoning"),
                body.get("text"),
                body["explain_ms"],
                body["decision_id"],
            ),
        )


def timestamp(at: float) -> str:
    """Unix seconds as RFC 3339 in UTC, microseconds; sorts as text."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


_DECISIONS = (
    "decisions (decision_id, seq, timestamp, situation, team_context, model_name, model_version, "
    "prompt_version, decision, classification, risk_level, reasoning, full_response, expected_decision, "
    "decision_correct, "
    "scenario_id, tags, allow, tier, reason_code, floor, label, confidence, probabilities, clauses, "
    "subject_type, subject_id, action, resource_type, resource_id, caller_uid, pack_name, pack_sha256, "
    "model_sha256, queue_ms, rules_ms, score_ms, explain_ms)"
)


def _decision_row(seq: int, at: str, body: dict[str, Json]) -> tuple[Any, ...]:
    evaluation, pack, model = body["evaluation"], body["pack"], body["model"] or {}
    subject, resource = evaluation["subject"], evaluation["resource"]
    annotations, timings, floor = body["annotations"], body["timings"], body["floor"]
    expected = annotations["expected"]
    team_context = evaluation.get("context", {}).get("team_context")
    if not isinstance(team_context, str | None):
        team_context = encode(team_context)
    return (
        body["decision_id"],
        seq,
        at,
        encode(evaluation),
        team_context,
        model.get("name"),
        model.get("quantisation"),
        f"{pack['name']}@{pack['version']}+{pack['sha256'][:12]}",
        body["outcome"],
        body.get("classification"),
        body["risk"],
        body.get("reasoning"),
        body.get("text"),
        "|".join(expected) or None,
        int(body["outcome"] in expected) if expected else None,
        annotations["scenario_id"],
        encode(annotations["tags"]),
        int(body["allow"]),
        body["tier"],
        body["reason_code"],
        floor["outcome"],
        body["label"],
        body["confidence"],
        encode(body["probabilities"]),
        encode(body.get("clauses", floor["clauses"])),
        subject["type"],
        subject.get("id", ""),
        evaluation["action"]["name"],
        resource["type"],
        resource["id"],
        body["caller"]["uid"],
        pack["name"],
        pack["sha256"],
        model.get("sha256"),
        timings["queue_ms"],
        timings["rules_ms"],
        timings["score_ms"],
        body.get("explain_ms"),
    )
