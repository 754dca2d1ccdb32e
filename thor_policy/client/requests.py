"""What both clients send: one request for each operation.

Owns the fields of each request and how its id is made. Invariant: no input or output. Pure; any thread.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import NamedTuple, TypedDict

from thor_policy.core import records
from thor_policy.core.requests import Json
from thor_policy.protocol.requests import question_fields

#: Added to a deadline before the client gives up: the daemon answers at the deadline, not before.
GRACE_MS = 1_000


class Tracked(TypedDict, total=False):
    """What an agent may tell of a decision it made with a model of its own (fields of `trace.Reported`)."""

    prompt: str | None
    response: str | None
    model: str | None
    input_tokens: int | None
    output_tokens: int | None
    latency_ms: float | None
    confidence: float | None
    context: dict[str, Json]
    session: str | None


class ClientRequest(NamedTuple):
    """What is asked, before it has an id: both clients send it as it is."""

    op: str
    fields: dict[str, Json]
    #: How long to wait for the reply; None: as long as the client waits for anything.
    timeout_ms: int | None = None


STATUS, METRICS = ClientRequest("status", {}), ClientRequest("metrics", {})


def evaluate_request(
    question: Json,
    explain: str,
    deadline_ms: int | None,
    annotations: dict[str, Json] | None,
    idempotency_key: str | None,
    pack: str | None,
) -> ClientRequest:
    fields = question_fields(question) | {"explain": explain} | _once(idempotency_key)
    if deadline_ms is not None:
        fields["deadline_ms"] = deadline_ms
    if annotations:
        fields["annotations"] = annotations
    if pack is not None:
        fields["pack"] = pack
    return ClientRequest("evaluate", fields, deadline_ms + GRACE_MS if deadline_ms else None)


def record_request(record: records.Record, idempotency_key: str | None) -> ClientRequest:
    return ClientRequest(records.KIND_OF[type(record)], {"record": record} | _once(idempotency_key))


def _once(idempotency_key: str | None) -> dict[str, Json]:
    return {} if idempotency_key is None else {"idempotency_key": idempotency_key}


def record_id_of(answer: dict[str, Json]) -> str:
    record_id: str = answer["recorded"]["id"]
    return record_id


def maintenance_request(task: records.Maintenance, timeout_ms: int) -> ClientRequest:
    return ClientRequest("maintenance", {"record": task}, timeout_ms)


def control_request(control: records.Control, timeout_ms: int) -> ClientRequest:
    return ClientRequest("control", {"record": control}, timeout_ms)


def signal_report(agent: str, symbol: str, signal: str, told: Tracked) -> records.DecisionReport:
    return records.DecisionReport(type="signal", agent=agent, entity=symbol, outcome=signal, **told)


def risk_report(agent: str, symbol: str, outcome: str, told: Tracked) -> records.DecisionReport:
    return records.DecisionReport(type="risk", agent=agent, entity=symbol, outcome=outcome, **told)


def new_request_ids() -> Iterator[str]:
    return (f"{os.getpid()}-{number}" for number in itertools.count(1))
