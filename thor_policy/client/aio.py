"""The client for asyncio.

Owns one socket and the calls that wait on it. Invariant: each call returns the reply to that call or
raises; a reply after the timeout is dropped; a call whose connection ends raises at once, as no reply can
come. Belongs to one event loop; many calls may wait at once.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Unpack

import zmq
import zmq.asyncio

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
from thor_policy.protocol.replies import decode_reply, decode_status, encode_request, reply_id


class _Waiting(NamedTuple):
    """A call of an `AsyncClient` that has no reply yet."""

    reply: asyncio.Future[bytes]
    frame_bytes: int


class AsyncClient:
    """A `Client` for one event loop: any number of calls may be awaited at once, over one socket.

    Each call does what the method of the same name of `Client` does. A call that is cancelled or times out
    ends only in the client: the daemon may still decide the request, or record what it sent.
    """

    def __init__(self, endpoint: str, *, key: Path | None = None, timeout_ms: int = 30_000) -> None:
        self.endpoint = endpoint
        self._path = Connection.to(endpoint, key)
        self._timeout_ms = timeout_ms
        self._opening = asyncio.Lock()
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._reader: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._waiting: dict[str, _Waiting] = {}
        self._ids = new_request_ids()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the socket; calls that still wait raise Unreachable. Safe to call twice."""
        if not self._context.closed:
            self._disconnect(f"the client of {self.endpoint} was closed")
            self._context.destroy(linger=0)

    async def alive(self) -> bool:
        try:
            await asyncio.to_thread(self._path.check)
        except Unreachable:
            return False
        return True

    async def evaluate(
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
        return await self._do(
            evaluate_request(
                question, explain, deadline_ms, annotations, idempotency_key, pack, enrich, traceparent
            )
        )

    async def status(self) -> Status:
        return decode_status(await self._do(STATUS))

    async def metrics(self) -> dict[str, Json]:
        metrics: dict[str, Json] = (await self._do(METRICS))["metrics"]
        return metrics

    async def decision_report(
        self, report: records.DecisionReport, *, idempotency_key: str | None = None
    ) -> str:
        return await self.record(report, idempotency_key=idempotency_key)

    async def consultation(self, consultation: records.Consultation) -> str:
        return await self.record(consultation)

    async def outcome(
        self, decision_id: str, status: records.Status, value: float | None = None, note: str | None = None
    ) -> str:
        return await self.record(
            records.Outcome(decision_id=decision_id, status=status, value=value, note=note)
        )

    async def review(self, review: records.Review) -> str:
        return await self.record(review)

    async def assignment(self, assignment: records.Assignment) -> str:
        return await self.record(assignment)

    async def approval(self, approval: records.Approval) -> str:
        return await self.record(approval)

    async def supplement(self, supplement: records.Supplement) -> str:
        """Record what a recorded decision lacks."""
        return await self.record(supplement)

    async def node(self, node: records.Node) -> str:
        return await self.record(node)

    async def edge(self, edge: records.Edge) -> str:
        return await self.record(edge)

    async def request_approval(
        self, request: records.ApprovalRequest, *, idempotency_key: str | None = None
    ) -> dict[str, Json]:
        return task_of(await self._do(record_request(request, idempotency_key)))

    async def change_approval(
        self,
        change: records.Approve | records.Deny | records.Cancel,
        *,
        idempotency_key: str | None = None,
    ) -> dict[str, Json]:
        return task_of(await self._do(record_request(change, idempotency_key)))

    async def approvals(self, query: records.ApprovalQuery | None = None) -> list[dict[str, Json]]:
        reply = await self._do(approvals_request(query or records.ApprovalQuery()))
        return tasks_of(reply)

    async def similar(self, query: SimilarQuery) -> Similar:
        return similar_of(await self._do(similar_request(query)))

    async def trace_state(self, status: records.TraceState) -> dict[str, Json]:
        recorded: dict[str, Json] = (await self._do(record_request(status, None)))["recorded"]
        return recorded

    async def supersede(self, decision_id: str, *, by: str, because: str) -> dict[str, Json]:
        return await self.trace_state(
            records.TraceState(decision_id=decision_id, status="superseded", by=by, because=because)
        )

    async def overturn(self, decision_id: str, *, by: str, because: str) -> dict[str, Json]:
        return await self.trace_state(
            records.TraceState(decision_id=decision_id, status="overturned", by=by, because=because)
        )

    async def track_signal(self, *, agent: str, symbol: str, signal: str, **fields: Unpack[Tracked]) -> str:
        return await self.record(signal_report(agent, symbol, signal, fields))

    async def track_risk(self, *, agent: str, symbol: str, outcome: str, **fields: Unpack[Tracked]) -> str:
        return await self.record(risk_report(agent, symbol, outcome, fields))

    async def maintenance(self, task: records.Maintenance, *, timeout_ms: int = 3_600_000) -> dict[str, Json]:
        done: dict[str, Json] = (await self._do(maintenance_request(task, timeout_ms)))["done"]
        return done

    async def push(self, push: Push) -> None:
        """Push values of an entity for a source; needs the role `push`. They end with the daemon."""
        await self._do(push_request(push))

    async def control(self, control: records.Control, *, timeout_ms: int = 3_600_000) -> dict[str, Json]:
        done: dict[str, Json] = (await self._do(control_request(control, timeout_ms)))["done"]
        return done

    async def record(self, record: records.Record, *, idempotency_key: str | None = None) -> str:
        return record_id_of(await self._do(record_request(record, idempotency_key)))

    async def call(
        self, op: str, fields: dict[str, Json], *, timeout_ms: int | None = None
    ) -> dict[str, Json]:
        return await self._do(ClientRequest(op, fields, timeout_ms))

    # ------------------------------------------------------------ many round trips at once

    async def _do(self, request: ClientRequest) -> dict[str, Json]:
        request_id, timeout_ms = next(self._ids), request.timeout_ms or self._timeout_ms
        frame = encode_request(request_id, request.op, request.fields)
        connection = await self._connection()
        reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = _Waiting(reply, len(frame))
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._send(connection, frame)
                return decode_reply(await reply)
        except TimeoutError:
            if not await self.alive():
                self._disconnect(f"the daemon at {self.endpoint} no longer listens")
            raise self._path.no_reply_error(timeout_ms) from None
        finally:
            self._waiting.pop(request_id, None)

    async def _send(self, connection: zmq.asyncio.Socket, frame: bytes) -> None:
        try:
            await connection.send(frame)
        except (zmq.ZMQError, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if not connection.closed or (task is not None and task.cancelling()):
                raise
            message = f"the connection to the daemon at {self.endpoint} ended"
            raise Unreachable(message) from error

    async def _connection(self) -> zmq.asyncio.Socket:
        async with self._opening:
            if self._socket is None:
                await asyncio.to_thread(self._path.check)
                opened = self._path.prepare(self._context.socket(zmq.DEALER))
                opened.set(zmq.IMMEDIATE, 1)  # a request is never queued for a daemon that starts later
                ends: zmq.asyncio.Socket = opened.get_monitor_socket(zmq.EVENT_DISCONNECTED)
                opened.connect(self.endpoint)
                self._socket = opened
                loop = asyncio.get_running_loop()
                self._reader = loop.create_task(self._read(opened))
                self._watcher = loop.create_task(self._watch(ends))
            return self._socket

    async def _watch(self, ends: zmq.asyncio.Socket) -> None:
        """Wait until the connection ends; then no waiting call can get its reply."""
        await ends.recv_multipart()
        self._watcher = None  # it is this task, which must not cancel itself
        self._disconnect(f"the connection to the daemon at {self.endpoint} ended")

    async def _read(self, connection: zmq.asyncio.Socket) -> None:
        while True:
            frame: bytes = (await connection.recv_multipart())[-1]
            request_id = reply_id(frame) or self._largest()
            waiting = self._waiting.pop(request_id, None)
            if waiting is not None and not waiting.reply.done():
                waiting.reply.set_result(frame)

    def _largest(self) -> str:
        """Id of the largest waiting request: a reply without an id is to a frame too large to decode."""
        return max(self._waiting, key=lambda request_id: self._waiting[request_id].frame_bytes, default="")

    def _disconnect(self, reason: str) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None
        if self._reader is not None and self._socket is not None:
            self._reader.cancel()
            self._socket.disable_monitor()
            self._socket.close(linger=0)
            self._reader = self._socket = None
        for waiting in self._waiting.values():
            if not waiting.reply.done():
                waiting.reply.set_exception(Unreachable(reason))
