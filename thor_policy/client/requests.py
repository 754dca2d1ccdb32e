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
from thor_policy.protocol.messages import OP_OF
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


class _Request(NamedTuple):
    """What is asked, before it has an id: both clients send it as it is."""

    op: str
    fields: dict[str, Json]
    #: How long to wait for the reply; None: as long as the client waits for anything.
    timeout_ms: int | None = None


_STATUS, _METRICS = _Request("status", {}), _Request("metrics", {})


def _evaluation(
    question: Json,
    explain: str,
    deadline_ms: int | None,
    annotations: dict[str, Json] | None,
    idempotency_key: str | None,
    pack: str | None,
) -> _Request:
    fields = question_fields(question) | {"explain": explain} | _once(idempotency_key)
    if deadline_ms is not None:
        fields["deadline_ms"] = deadline_ms
    if annotations:
        fields["annotations"] = annotations
    if pack is not None:
        fields["pack"] = pack
    return _Request("evaluate", fields, deadline_ms + GRACE_MS if deadline_ms else None)


def _kept(record: records.Record, idempotency_key: str | None) -> _Request:
    return _Request(OP_OF[type(record)], {"record": record} | _once(idempotency_key))


def _once(idempotency_key: str | None) -> dict[str, Json]:
    return {} if idempotency_key is None else {"idempotency_key": idempotency_key}


def _id_of(answer: dict[str, Json]) -> str:
    record_id: str = answer["recorded"]["id"]
    return record_id


def _upkeep(upkeep: records.Upkeep, timeout_ms: int) -> _Request:
    return _Request("upkeep", {"record": upkeep}, timeout_ms)


def _control(control: records.Control, timeout_ms: int) -> _Request:
    return _Request("control", {"record": control}, timeout_ms)


def _signal(agent: str, symbol: str, signal: str, told: Tracked) -> records.Reported:
    return records.Reported(type="signal", agent=agent, entity=symbol, outcome=signal, **told)


def _risk(agent: str, symbol: str, outcome: str, told: Tracked) -> records.Reported:
    return records.Reported(type="risk", agent=agent, entity=symbol, outcome=outcome, **told)


def _new_ids() -> Iterator[str]:
    return (f"{os.getpid()}-{number}" for number in itertools.count(1))
