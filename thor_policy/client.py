"""The Python clients: ask a daemon, and have it keep records, with a timeout on everything.

Owns a socket and its correlation ids, and what both clients say and understand. Invariant: each call returns
the reply to that call or raises; a reply that comes after its timeout is dropped. A `Client` has one call in
flight and belongs to one thread; an `AsyncClient` has as many as are awaited and belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple, TypedDict, TypeVar, Unpack

import zmq
import zmq.asyncio

from thor_policy import trace, wire
from thor_policy.core import Json
from thor_policy.errors import Unreachable

#: Added to a deadline before the client gives up: the daemon answers at the deadline, not before.
GRACE_MS = 1_000
#: Replies above this are not taken from the socket.
MAX_REPLY_BYTES = 16 * 1024 * 1024


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


AnySocket = TypeVar("AnySocket", bound="zmq.Socket[Any]")


class _Request(NamedTuple):
    """What is asked, before it has an id: both clients send it as it is."""

    op: str
    fields: dict[str, Json]
    #: How long to wait for the reply; None: as long as the client waits for anything.
    timeout_ms: int | None = None


_STATUS, _METRICS = _Request("status", {}), _Request("metrics", {})


def _evaluation(
    question: Json, explain: str, deadline_ms: int | None, annotations: dict[str, Json] | None
) -> _Request:
    fields = wire.question_fields(question) | {"explain": explain}
    if deadline_ms is not None:
        fields["deadline_ms"] = deadline_ms
    if annotations:
        fields["annotations"] = annotations
    return _Request("evaluate", fields, deadline_ms + GRACE_MS if deadline_ms else None)


def _kept(record: trace.Record) -> _Request:
    return _Request(wire.OP_OF[type(record)], {"record": record})


def _id_of(answer: dict[str, Json]) -> str:
    record_id: str = answer["recorded"]["id"]
    return record_id


def _upkeep(upkeep: trace.Upkeep, timeout_ms: int) -> _Request:
    return _Request("upkeep", {"record": upkeep}, timeout_ms)


def _signal(agent: str, symbol: str, signal: str, told: Tracked) -> trace.Reported:
    return trace.Reported(type="signal", agent=agent, entity=symbol, outcome=signal, **told)


def _risk(agent: str, symbol: str, outcome: str, told: Tracked) -> trace.Reported:
    return trace.Reported(type="risk", agent=agent, entity=symbol, outcome=outcome, **told)


def _new_ids() -> Iterator[str]:
    return (f"{os.getpid()}-{number}" for number in itertools.count(1))


def _listens(endpoint: str) -> bool:
    """True when somebody listens at an ipc endpoint; answers at once."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(endpoint.removeprefix("ipc://"))
        except BlockingIOError:  # whoever listens has much to do
            return True
        except OSError:
            return False
    return True


def _connected(opened: AnySocket, endpoint: str) -> AnySocket:
    """A new socket, on its way to the daemon. Raises Unreachable if there is none."""
    opened.set(zmq.LINGER, 0)
    opened.set(zmq.MAXMSGSIZE, MAX_REPLY_BYTES)
    if not _listens(endpoint):
        opened.close()
        raise Unreachable(f"no daemon listens at {endpoint}; start one: thorpolicy serve")
    opened.connect(endpoint)
    return opened


def _silent(endpoint: str, timeout_ms: int) -> Unreachable:
    return Unreachable(f"the daemon at {endpoint} gave no reply within {timeout_ms} ms")


class Client:
    """A connection to the daemon at `endpoint`; it reconnects by itself.

    `timeout_ms` bounds calls that carry no deadline of their own.
    """

    def __init__(self, endpoint: str, *, timeout_ms: int = 30_000) -> None:
        self.endpoint = endpoint
        self._timeout_ms = timeout_ms
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._ids = _new_ids()

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

    def alive(self) -> bool:
        """True when somebody listens at an ipc endpoint; answers at once."""
        return _listens(self.endpoint)

    def evaluate(
        self,
        question: Json,
        *,
        explain: str = "none",
        deadline_ms: int | None = None,
        annotations: dict[str, Json] | None = None,
    ) -> dict[str, Json]:
        """The reply to an AuthZEN evaluation or a flat situation (docs/protocol.md).

        Raises RequestError if it is refused, Unreachable if no reply comes in time.
        """
        return self._do(_evaluation(question, explain, deadline_ms, annotations))

    def status(self) -> dict[str, Json]:
        """What the daemon says of itself."""
        status: dict[str, Json] = self._do(_STATUS)["status"]
        return status

    def metrics(self) -> dict[str, Json]:
        """What the daemon measures, by the name of the metric (docs/operating.md)."""
        metrics: dict[str, Json] = self._do(_METRICS)["metrics"]
        return metrics

    # ------------------------------------------------------------ records: each returns its id once committed

    def record(self, reported: trace.Reported) -> str:
        """Keep a decision that was made elsewhere; returns its decision id.

        Raises RequestError if it is refused (as all that follow do), Unreachable if no reply comes in time:
        then it may have been kept all the same.
        """
        return self.keep(reported)

    def context(self, consulted: trace.Consulted) -> str:
        """Keep data that was gathered for a decision, or for a session whose decision comes later."""
        return self.keep(consulted)

    def outcome(
        self, decision_id: str, status: trace.Status, value: float | None = None, note: str | None = None
    ) -> str:
        """Keep how a decision turned out; `value` is a number such as profit or loss. The newest counts."""
        return self.keep(trace.Happened(decision_id=decision_id, status=status, value=value, note=note))

    def review(self, review: trace.Review) -> str:
        """Keep a person's verdict on a decision."""
        return self.keep(review)

    def approve(self, approval: trace.Approval) -> str:
        """Keep a person's consent to a decision, or refusal of it."""
        return self.keep(approval)

    def node(self, node: trace.Node) -> str:
        """Keep a goal, option, action or the like of the graph of work; returns the id that edges name."""
        return self.keep(node)

    def link(self, edge: trace.Edge) -> str:
        """Keep a link between two nodes or decisions."""
        return self.keep(edge)

    def track_signal(self, *, agent: str, symbol: str, signal: str, **told: Unpack[Tracked]) -> str:
        """Keep what an agent made of a symbol (`BUY`, ..); returns its decision id."""
        return self.keep(_signal(agent, symbol, signal, told))

    def track_risk(self, *, agent: str, symbol: str, outcome: str, **told: Unpack[Tracked]) -> str:
        """Keep what an agent made of the risk of a symbol (`REDUCE`, ..); returns its decision id."""
        return self.keep(_risk(agent, symbol, outcome, told))

    def upkeep(self, upkeep: trace.Upkeep, *, timeout_ms: int = 3_600_000) -> dict[str, Json]:
        """Have long work done on the journal; for the daemon's own user and root. Returns what it did."""
        done: dict[str, Json] = self._do(_upkeep(upkeep, timeout_ms))["done"]
        return done

    def keep(self, record: trace.Record) -> str:
        """Keep any of these records."""
        return _id_of(self._do(_kept(record)))

    # ------------------------------------------------------------ the round trip

    def call(self, op: str, fields: dict[str, Json], *, timeout_ms: int | None = None) -> dict[str, Json]:
        """One round trip of any operation."""
        return self._do(_Request(op, fields, timeout_ms))

    def _do(self, request: _Request) -> dict[str, Json]:
        frame = wire.encode_request(next(self._ids), request.op, request.fields)
        return wire.decode_reply(self._round_trip(frame, request.timeout_ms or self._timeout_ms)[-1])

    def _round_trip(self, frame: bytes, timeout_ms: int) -> Sequence[bytes]:
        connection = self._connection()
        connection.send(frame)
        if connection.poll(timeout_ms):
            return connection.recv_multipart()
        connection.close(linger=0)
        self._socket = None
        raise _silent(self.endpoint, timeout_ms)

    def _connection(self) -> zmq.Socket[bytes]:
        if self._socket is None:
            self._socket = _connected(self._context.socket(zmq.DEALER), self.endpoint)
        return self._socket


class _Waiting(NamedTuple):
    """A call of an `AsyncClient` that has no reply yet."""

    reply: asyncio.Future[bytes]
    frame_bytes: int


class AsyncClient:
    """A `Client` whose calls are awaited, as many at once as you like, over one socket; in one event loop.

    Each call means what the one of the same name of `Client` means. One that is cancelled, or that nobody
    answers in time, is forgotten here alone: the daemon may still decide it, or keep what it carried.
    """

    def __init__(self, endpoint: str, *, timeout_ms: int = 30_000) -> None:
        self.endpoint = endpoint
        self._timeout_ms = timeout_ms
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._reader: asyncio.Task[None] | None = None
        self._waiting: dict[str, _Waiting] = {}
        self._ids = _new_ids()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Release the socket; calls that still wait raise Unreachable. Safe to call twice."""
        if not self._context.closed:
            self._disconnect(f"the client of {self.endpoint} was closed")
            self._context.destroy(linger=0)

    def alive(self) -> bool:
        """True when somebody listens at an ipc endpoint; answers at once."""
        return _listens(self.endpoint)

    async def evaluate(
        self,
        question: Json,
        *,
        explain: str = "none",
        deadline_ms: int | None = None,
        annotations: dict[str, Json] | None = None,
    ) -> dict[str, Json]:
        return await self._do(_evaluation(question, explain, deadline_ms, annotations))

    async def status(self) -> dict[str, Json]:
        status: dict[str, Json] = (await self._do(_STATUS))["status"]
        return status

    async def metrics(self) -> dict[str, Json]:
        metrics: dict[str, Json] = (await self._do(_METRICS))["metrics"]
        return metrics

    async def record(self, reported: trace.Reported) -> str:
        return await self.keep(reported)

    async def context(self, consulted: trace.Consulted) -> str:
        return await self.keep(consulted)

    async def outcome(
        self, decision_id: str, status: trace.Status, value: float | None = None, note: str | None = None
    ) -> str:
        return await self.keep(trace.Happened(decision_id=decision_id, status=status, value=value, note=note))

    async def review(self, review: trace.Review) -> str:
        return await self.keep(review)

    async def approve(self, approval: trace.Approval) -> str:
        return await self.keep(approval)

    async def node(self, node: trace.Node) -> str:
        return await self.keep(node)

    async def link(self, edge: trace.Edge) -> str:
        return await self.keep(edge)

    async def track_signal(self, *, agent: str, symbol: str, signal: str, **told: Unpack[Tracked]) -> str:
        return await self.keep(_signal(agent, symbol, signal, told))

    async def track_risk(self, *, agent: str, symbol: str, outcome: str, **told: Unpack[Tracked]) -> str:
        return await self.keep(_risk(agent, symbol, outcome, told))

    async def upkeep(self, upkeep: trace.Upkeep, *, timeout_ms: int = 3_600_000) -> dict[str, Json]:
        done: dict[str, Json] = (await self._do(_upkeep(upkeep, timeout_ms)))["done"]
        return done

    async def keep(self, record: trace.Record) -> str:
        return _id_of(await self._do(_kept(record)))

    async def call(
        self, op: str, fields: dict[str, Json], *, timeout_ms: int | None = None
    ) -> dict[str, Json]:
        return await self._do(_Request(op, fields, timeout_ms))

    # ------------------------------------------------------------ many round trips at once

    async def _do(self, request: _Request) -> dict[str, Json]:
        request_id, timeout_ms = next(self._ids), request.timeout_ms or self._timeout_ms
        frame = wire.encode_request(request_id, request.op, request.fields)
        connection = self._connection()
        reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = _Waiting(reply, len(frame))
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await connection.send(frame)
                return wire.decode_reply(await reply)
        except TimeoutError:
            if not self.alive():
                self._disconnect(f"no daemon listens at {self.endpoint} any more")
            raise _silent(self.endpoint, timeout_ms) from None
        finally:
            self._waiting.pop(request_id, None)

    def _connection(self) -> zmq.asyncio.Socket:
        if self._socket is None:
            opened = self._context.socket(zmq.DEALER)
            opened.set(zmq.IMMEDIATE, 1)  # what nobody takes is not kept for whoever comes later
            self._socket = _connected(opened, self.endpoint)
            self._reader = asyncio.get_running_loop().create_task(self._read(self._socket))
        return self._socket

    async def _read(self, connection: zmq.asyncio.Socket) -> None:
        while True:
            frame: bytes = (await connection.recv_multipart())[-1]
            request_id = wire.reply_id(frame) or self._largest()
            waiting = self._waiting.pop(request_id, None)
            if waiting is not None and not waiting.reply.done():
                waiting.reply.set_result(frame)

    def _largest(self) -> str:
        """Whose reply it is that names nobody: a frame too large to be read for its id."""
        return max(self._waiting, key=lambda one: self._waiting[one].frame_bytes, default="")

    def _disconnect(self, why: str) -> None:
        if self._reader is not None and self._socket is not None:
            self._reader.cancel()
            self._socket.close(linger=0)
            self._reader = self._socket = None
        for waiting in self._waiting.values():
            if not waiting.reply.done():
                waiting.reply.set_exception(Unreachable(why))
