"""The client that blocks.

Owns a socket for requests, one for status and metrics, and the request ids. Invariant: each call returns
the reply to that call or raises; a reply after the timeout is dropped. Belongs to one thread, with one call
in flight.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Unpack

import zmq

from thor_policy.client.connection import Connection
from thor_policy.client.requests import (
    METRICS,
    STATUS,
    ClientRequest,
    Tracked,
    approvals_request,
    control_request,
    evaluate_request,
    maintenance_request,
    new_request_ids,
    push_request,
    record_id_of,
    record_request,
    risk_report,
    signal_report,
    similar_of,
    similar_request,
    task_of,
    tasks_of,
)
from thor_policy.core import records
from thor_policy.core.errors import Unreachable
from thor_policy.core.recall import Similar, SimilarQuery
from thor_policy.core.requests import Json
from thor_policy.core.sources import Push
from thor_policy.core.status import Status
from thor_policy.protocol.replies import decode_reply, decode_status, encode_request


class Client:
    """A connection to the daemon at `endpoint`; it reconnects by itself.

    `timeout_ms` limits calls without a deadline of their own. A tcp endpoint needs `key`, the file of a CURVE
    key; an ipc endpoint ignores it. Raises ConfigError if the key cannot be used.
    """

    def __init__(self, endpoint: str, *, key: Path | None = None, timeout_ms: int = 30_000) -> None:
        self.endpoint = endpoint
        self._path = Connection.to(endpoint, key)
        self._timeout_ms = timeout_ms
        self._context = zmq.Context()
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        self._ids = new_request_ids()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; safe to call twice."""
        if not self._context.closed:
            self._context.destroy(linger=0)

    @property
    def remote(self) -> bool:
        """True for a tcp endpoint: the daemon's journal may be on another machine."""
        return self._path.key is not None

    def alive(self) -> bool:
        """True when a daemon listens at an ipc endpoint, or accepts our key at a tcp endpoint.

        Returns at once for ipc, within seconds for tcp.
        """
        try:
            if self.remote:
                self._connection(self._path)
            else:
                self._path.check()
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
        enrich: str = "auto",
        traceparent: str | None = None,
    ) -> dict[str, Json]:
        """The reply to an AuthZEN evaluation or a flat situation (docs/reference/protocol.md).

        The resident pack named by `pack` decides it; without `pack`, the active one. A request with an
        `idempotency_key` can be sent again after any error: the daemon makes one decision. `enrich` is
        `auto`, `never` or `always`: whether the decision is enriched on idle time.
        `traceparent` is the span of the caller that it belongs to (W3C Trace Context).

        Raises RequestError if the request is refused, Unreachable if no reply comes in time.
        """
        return self._do(
            evaluate_request(
                question, explain, deadline_ms, annotations, idempotency_key, pack, enrich, traceparent
            )
        )

    def status(self) -> Status:
        """The state of the daemon and its parts.

        Raises RequestError `version_mismatch` if it has other members than ours.
        """
        return decode_status(self._do(STATUS))

    def metrics(self) -> dict[str, Json]:
        """The metrics of the daemon, by name (docs/reference/metrics.md)."""
        metrics: dict[str, Json] = self._do(METRICS)["metrics"]
        return metrics

    # ------------------------------------------------------------ records: each returns its id when committed

    def decision_report(self, report: records.DecisionReport, *, idempotency_key: str | None = None) -> str:
        """Record a decision that another system made; returns its decision id.

        Like all methods below it raises RequestError if it is refused, and Unreachable if no reply comes in
        time; the record may exist then.
        """
        return self.record(report, idempotency_key=idempotency_key)

    def consultation(self, consultation: records.Consultation) -> str:
        """Record data that was gathered for a decision, or for a session whose decision comes later."""
        return self.record(consultation)

    def outcome(
        self, decision_id: str, status: records.Status, value: float | None = None, note: str | None = None
    ) -> str:
        """Record the outcome of a decision; `value` is a number such as profit. The newest one counts."""
        return self.record(records.Outcome(decision_id=decision_id, status=status, value=value, note=note))

    def review(self, review: records.Review) -> str:
        """Record a person's verdict on a decision."""
        return self.record(review)

    def assignment(self, assignment: records.Assignment) -> str:
        """Record who reviews a decision. Raises RequestError `conflict` if another reviewer has a lease."""
        return self.record(assignment)

    def approval(self, approval: records.Approval) -> str:
        """Record a person's approval or rejection of a decision."""
        return self.record(approval)

    def supplement(self, supplement: records.Supplement) -> str:
        """Record what a recorded decision lacks."""
        return self.record(supplement)

    def node(self, node: records.Node) -> str:
        """Record a node of the graph of work (goal, option, action ..); returns the id for edges."""
        return self.record(node)

    def edge(self, edge: records.Edge) -> str:
        """Record a link between two nodes or decisions."""
        return self.record(edge)

    def request_approval(
        self, request: records.ApprovalRequest, *, idempotency_key: str | None = None
    ) -> dict[str, Json]:
        """Request the approvals that lift a decision; returns the task. Raises RequestError."""
        return task_of(self._do(record_request(request, idempotency_key)))

    def change_approval(
        self,
        change: records.Approve | records.Deny | records.Cancel,
        *,
        idempotency_key: str | None = None,
    ) -> dict[str, Json]:
        """Approve, deny or cancel a task; returns it as it is then. Raises RequestError."""
        return task_of(self._do(record_request(change, idempotency_key)))

    def approvals(self, query: records.ApprovalQuery | None = None) -> list[dict[str, Json]]:
        """The tasks that this caller may see: its own, or all with the role approve, review or control."""
        reply = self._do(approvals_request(query or records.ApprovalQuery()))
        return tasks_of(reply)

    def similar(self, query: SimilarQuery) -> Similar:
        """The precedents of a decision, a question or a text; needs the role `review`."""
        return similar_of(self._do(similar_request(query)))

    def trace_state(self, status: records.TraceState) -> dict[str, Json]:
        """Change the state of a decision's trace; needs the role `review`.

        Returns the members `id` and `seq` of the record, and `cited_by`: the `count` and the `ids` of the
        decisions that cite this one. Raises RequestError `conflict` if it cannot get that state now.
        """
        recorded: dict[str, Json] = (self._do(record_request(status, None)))["recorded"]
        return recorded

    def supersede(self, decision_id: str, *, by: str, because: str) -> dict[str, Json]:
        """Let the decision `by` take the place of another, as `trace_state` does."""
        return self.trace_state(
            records.TraceState(decision_id=decision_id, status="superseded", by=by, because=because)
        )

    def overturn(self, decision_id: str, *, by: str, because: str) -> dict[str, Json]:
        """Let the decision `by` say that another was wrong, as `trace_state` does."""
        return self.trace_state(
            records.TraceState(decision_id=decision_id, status="overturned", by=by, because=because)
        )

    def track_signal(self, *, agent: str, symbol: str, signal: str, **fields: Unpack[Tracked]) -> str:
        """Record an agent's signal for a symbol (`BUY`, ..); returns its decision id."""
        return self.record(signal_report(agent, symbol, signal, fields))

    def track_risk(self, *, agent: str, symbol: str, outcome: str, **fields: Unpack[Tracked]) -> str:
        """Record an agent's risk decision for a symbol (`REDUCE`, ..); returns its decision id."""
        return self.record(risk_report(agent, symbol, outcome, fields))

    def maintenance(self, task: records.Maintenance, *, timeout_ms: int = 3_600_000) -> dict[str, Json]:
        """Have the daemon work on its journal; needs the role `control`. Returns the result."""
        done: dict[str, Json] = self._do(maintenance_request(task, timeout_ms))["done"]
        return done

    def push(self, push: Push) -> None:
        """Push values of an entity for a source; needs the role `push`. They end with the daemon."""
        self._do(push_request(push))

    def control(self, control: records.Control, *, timeout_ms: int = 3_600_000) -> dict[str, Json]:
        """Change the packs or the adapter of the daemon; needs the role `control`. Returns the new state."""
        done: dict[str, Json] = self._do(control_request(control, timeout_ms))["done"]
        return done

    def record(self, record: records.Record, *, idempotency_key: str | None = None) -> str:
        """Send any of these records; the same key with the same content is recorded once."""
        return record_id_of(self._do(record_request(record, idempotency_key)))

    # ------------------------------------------------------------ the round trip

    def call(self, op: str, fields: dict[str, Json], *, timeout_ms: int | None = None) -> dict[str, Json]:
        """Send any operation and return its reply."""
        return self._do(ClientRequest(op, fields, timeout_ms))

    def _do(self, request: ClientRequest) -> dict[str, Json]:
        frame = encode_request(next(self._ids), request.op, request.fields)
        path = self._path.control() if request.op in ("status", "metrics") else self._path
        return decode_reply(self._round_trip(path, frame, request.timeout_ms or self._timeout_ms)[-1])

    def _round_trip(self, path: Connection, frame: bytes, timeout_ms: int) -> Sequence[bytes]:
        connection = self._connection(path)
        connection.send(frame)
        if connection.poll(timeout_ms):
            return connection.recv_multipart()
        connection.close(linger=0)
        del self._sockets[path.endpoint]
        raise self._path.no_reply_error(timeout_ms)

    def _connection(self, path: Connection) -> zmq.Socket[bytes]:
        connection = self._sockets.get(path.endpoint)
        if connection is None:
            connection = path.prepare(self._context.socket(zmq.DEALER))
            try:
                path.connect(connection)
            except Unreachable:
                connection.close(linger=0)
                raise
            self._sockets[path.endpoint] = connection
        return connection
