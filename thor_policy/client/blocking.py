"""The client that blocks.

Owns one socket and its correlation ids. Invariant: each call returns the reply to that call or raises; a
reply that comes after its timeout is dropped. Belongs to one thread, with one call in flight.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Unpack

import zmq
import zmq.asyncio

from thor_policy.client.connection import Connection
from thor_policy.client.requests import (
    METRICS,
    STATUS,
    ClientRequest,
    Tracked,
    control_request,
    evaluate_request,
    maintenance_request,
    new_request_ids,
    record_id_of,
    record_request,
    risk_report,
    signal_report,
)
from thor_policy.core import records
from thor_policy.core.errors import Unreachable
from thor_policy.core.requests import Json
from thor_policy.protocol.replies import decode_reply, encode_request


class Client:
    """A connection to the daemon at `endpoint`; it reconnects by itself.

    `timeout_ms` bounds calls that carry no deadline of their own. A tcp endpoint needs the file of a CURVE
    `key`; an ipc endpoint needs none, and ignores it. Raises ConfigError if the key cannot be used.
    """

    def __init__(self, endpoint: str, *, key: Path | None = None, timeout_ms: int = 30_000) -> None:
        self.endpoint = endpoint
        self._way = Connection.to(endpoint, key)
        self._timeout_ms = timeout_ms
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._ids = new_request_ids()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the socket; safe to call twice."""
        if not self._context.closed:
            self._context.destroy(linger=0)

    @property
    def remote(self) -> bool:
        """True for a daemon elsewhere, whose journal is not at hand."""
        return self._way.held is not None

    def alive(self) -> bool:
        """True when somebody listens at an ipc endpoint, or knows our key at a tcp endpoint; answers at once,
        or from far away within seconds.
        """
        try:
            if self.remote:
                self._connection()
            else:
                self._way.check()
        except Unreachable:
            return False
        return True

    def evaluate(
        self,
        question: Json,
        *,
        explain: str = "none",
        deadline_ms: int | None = None,
        annotations: dict[str, Json] | None = None,
        idempotency_key: str | None = None,
        pack: str | None = None,
    ) -> dict[str, Json]:
        """The reply to an AuthZEN evaluation or a flat situation (docs/reference/protocol.md).

        It is decided by the resident `pack` of that name, or else by the active one. With an
        `idempotency_key` it can be sent again after any error: there is one decision all the same.

        Raises RequestError if it is refused, Unreachable if no reply comes in time.
        """
        return self._do(evaluate_request(question, explain, deadline_ms, annotations, idempotency_key, pack))

    def status(self) -> dict[str, Json]:
        """What the daemon says of itself."""
        status: dict[str, Json] = self._do(STATUS)["status"]
        return status

    def metrics(self) -> dict[str, Json]:
        """What the daemon measures, by the name of the metric (docs/reference/metrics.md)."""
        metrics: dict[str, Json] = self._do(METRICS)["metrics"]
        return metrics

    # ------------------------------------------------------------ records: each returns its id once committed

    def decision_report(self, report: records.DecisionReport, *, idempotency_key: str | None = None) -> str:
        """Keep a decision that was made elsewhere; returns its decision id.

        Raises RequestError if it is refused (as all that follow do), Unreachable if no reply comes in time:
        then it may have been kept all the same.
        """
        return self.record(report, idempotency_key=idempotency_key)

    def consultation(self, consultation: records.Consultation) -> str:
        """Keep data that was gathered for a decision, or for a session whose decision comes later."""
        return self.record(consultation)

    def outcome(
        self, decision_id: str, status: records.Status, value: float | None = None, note: str | None = None
    ) -> str:
        """Keep how a decision turned out; `value` is a number such as profit or loss. The newest counts."""
        return self.record(records.Outcome(decision_id=decision_id, status=status, value=value, note=note))

    def review(self, review: records.Review) -> str:
        """Keep a person's verdict on a decision."""
        return self.record(review)

    def assignment(self, assignment: records.Assignment) -> str:
        """Keep who reviews a decision; a lease that somebody else has is a RequestError `conflict`."""
        return self.record(assignment)

    def approval(self, approval: records.Approval) -> str:
        """Keep a person's consent to a decision, or refusal of it."""
        return self.record(approval)

    def node(self, node: records.Node) -> str:
        """Keep a goal, option, action or the like of the graph of work; returns the id that edges name."""
        return self.record(node)

    def edge(self, edge: records.Edge) -> str:
        """Keep a link between two nodes or decisions."""
        return self.record(edge)

    def track_signal(self, *, agent: str, symbol: str, signal: str, **told: Unpack[Tracked]) -> str:
        """Keep what an agent made of a symbol (`BUY`, ..); returns its decision id."""
        return self.record(signal_report(agent, symbol, signal, told))

    def track_risk(self, *, agent: str, symbol: str, outcome: str, **told: Unpack[Tracked]) -> str:
        """Keep what an agent made of the risk of a symbol (`REDUCE`, ..); returns its decision id."""
        return self.record(risk_report(agent, symbol, outcome, told))

    def maintenance(self, task: records.Maintenance, *, timeout_ms: int = 3_600_000) -> dict[str, Json]:
        """Have long work done on the journal; for the daemon's own user and root. Returns what it did."""
        done: dict[str, Json] = self._do(maintenance_request(task, timeout_ms))["done"]
        return done

    def control(self, control: records.Control, *, timeout_ms: int = 3_600_000) -> dict[str, Json]:
        """Have it change what judges; for who has the role control. Returns what is so now."""
        done: dict[str, Json] = self._do(control_request(control, timeout_ms))["done"]
        return done

    def record(self, record: records.Record, *, idempotency_key: str | None = None) -> str:
        """Keep any of these records; one with the same key and the same content is kept once."""
        return record_id_of(self._do(record_request(record, idempotency_key)))

    # ------------------------------------------------------------ the round trip

    def call(self, op: str, fields: dict[str, Json], *, timeout_ms: int | None = None) -> dict[str, Json]:
        """One round trip of any operation."""
        return self._do(ClientRequest(op, fields, timeout_ms))

    def _do(self, request: ClientRequest) -> dict[str, Json]:
        frame = encode_request(next(self._ids), request.op, request.fields)
        return decode_reply(self._round_trip(frame, request.timeout_ms or self._timeout_ms)[-1])

    def _round_trip(self, frame: bytes, timeout_ms: int) -> Sequence[bytes]:
        connection = self._connection()
        connection.send(frame)
        if connection.poll(timeout_ms):
            return connection.recv_multipart()
        connection.close(linger=0)
        self._socket = None
        raise self._way.silence(timeout_ms)

    def _connection(self) -> zmq.Socket[bytes]:
        if self._socket is None:
            opened = self._way.prepare(self._context.socket(zmq.DEALER))
            try:
                self._way.connect(opened)
            except Unreachable:
                opened.close(linger=0)
                raise
            self._socket = opened
        return self._socket
