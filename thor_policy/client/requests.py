"""The requests that both clients send, one function for each operation.

Owns the fields of each request and the form of its id. Invariant: no input or output. Pure; any thread.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import NamedTuple, TypedDict

from msgspec import convert

from thor_policy.core import records
from thor_policy.core.recall import Similar, SimilarQuery
from thor_policy.core.requests import Json
from thor_policy.core.sources import Push
from thor_policy.protocol.requests import question_fields

#: Milliseconds that a client waits beyond a request's deadline: the daemon may reply only at the deadline.
GRACE_MS = 1_000


class Tracked(TypedDict, total=False):
    """Optional fields of `records.DecisionReport` for a decision that an agent made with its own model."""

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
    """A request without its id."""

    op: str
    fields: dict[str, Json]
    #: Milliseconds to wait for the reply; None: the client's own timeout.
    timeout_ms: int | None = None


STATUS, METRICS = ClientRequest("status", {}), ClientRequest("metrics", {})


def evaluate_request(
    question: Json,
    explain: str,
    deadline_ms: int | None,
    annotations: dict[str, Json] | None,
    idempotency_key: str | None,
    pack: str | None,
    enrich: str = "auto",
    traceparent: str | None = None,
) -> ClientRequest:
    fields = question_fields(question) | {"explain": explain} | _idempotency_field(idempotency_key)
    if deadline_ms is not None:
        fields["deadline_ms"] = deadline_ms
    if annotations:
        fields["annotations"] = annotations
    if pack is not None:
        fields["pack"] = pack
    if enrich != "auto":
        fields["enrich"] = enrich
    if traceparent is not None:
        fields["traceparent"] = traceparent
    return ClientRequest("evaluate", fields, deadline_ms + GRACE_MS if deadline_ms else None)


def record_request(record: records.Record, idempotency_key: str | None) -> ClientRequest:
    return ClientRequest(
        records.OP_OF[type(record)], {"record": record} | _idempotency_field(idempotency_key)
    )


def _idempotency_field(idempotency_key: str | None) -> dict[str, Json]:
    return {} if idempotency_key is None else {"idempotency_key": idempotency_key}


def record_id_of(reply: dict[str, Json]) -> str:
    record_id: str = reply["recorded"]["id"]
    return record_id


def approvals_request(query: records.ApprovalQuery) -> ClientRequest:
    return ClientRequest("approvals", {"record": query})


def similar_request(query: SimilarQuery) -> ClientRequest:
    return ClientRequest("similar", {"record": query})


def similar_of(reply: dict[str, Json]) -> Similar:
    return convert(reply["similar"], Similar)


def task_of(reply: dict[str, Json]) -> dict[str, Json]:
    task: dict[str, Json] = reply["recorded"]["task"]
    return task


def tasks_of(reply: dict[str, Json]) -> list[dict[str, Json]]:
    return [reply["task"]] if "task" in reply else list(reply["tasks"])


def maintenance_request(task: records.Maintenance, timeout_ms: int) -> ClientRequest:
    return ClientRequest("maintenance", {"record": task}, timeout_ms)


def push_request(push: Push) -> ClientRequest:
    return ClientRequest("push", {"record": push})


def control_request(control: records.Control, timeout_ms: int) -> ClientRequest:
    return ClientRequest("control", {"record": control}, timeout_ms)


def signal_report(agent: str, symbol: str, signal: str, fields: Tracked) -> records.DecisionReport:
    return records.DecisionReport(type="signal", agent=agent, entity=symbol, outcome=signal, **fields)


def risk_report(agent: str, symbol: str, outcome: str, fields: Tracked) -> records.DecisionReport:
    return records.DecisionReport(type="risk", agent=agent, entity=symbol, outcome=outcome, **fields)


def new_request_ids() -> Iterator[str]:
    return (f"{os.getpid()}-{number}" for number in itertools.count(1))
