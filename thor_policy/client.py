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
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypedDict, TypeVar, Unpack

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from thor_policy import trace, wire
from thor_policy.core import Json
from thor_policy.errors import ConfigError, Unreachable
from thor_policy.identity import Held, held

#: Added to a deadline before the client gives up: the daemon answers at the deadline, not before.
GRACE_MS = 1_000
#: Replies above this are not taken from the socket.
MAX_REPLY_BYTES = 16 * 1024 * 1024
#: How long a daemon elsewhere may take to accept a connection and our key, in seconds.
_CONNECT_S = 5.0
#: What can come of that.
_CONNECTED = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_CONNECT_RETRIED
)


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
    question: Json,
    explain: str,
    deadline_ms: int | None,
    annotations: dict[str, Json] | None,
    idempotency_key: str | None,
    pack: str | None,
) -> _Request:
    fields = wire.question_fields(question) | {"explain": explain} | _once(idempotency_key)
    if deadline_ms is not None:
        fields["deadline_ms"] = deadline_ms
    if annotations:
        fields["annotations"] = annotations
    if pack is not None:
        fields["pack"] = pack
    return _Request("evaluate", fields, deadline_ms + GRACE_MS if deadline_ms else None)


def _kept(record: trace.Record, idempotency_key: str | None) -> _Request:
    return _Request(wire.OP_OF[type(record)], {"record": record} | _once(idempotency_key))


def _once(idempotency_key: str | None) -> dict[str, Json]:
    return {} if idempotency_key is None else {"idempotency_key": idempotency_key}


def _id_of(answer: dict[str, Json]) -> str:
    record_id: str = answer["recorded"]["id"]
    return record_id


def _upkeep(upkeep: trace.Upkeep, timeout_ms: int) -> _Request:
    return _Request("upkeep", {"record": upkeep}, timeout_ms)


def _control(control: trace.Control, timeout_ms: int) -> _Request:
    return _Request("control", {"record": control}, timeout_ms)


def _signal(agent: str, symbol: str, signal: str, told: Tracked) -> trace.Reported:
    return trace.Reported(type="signal", agent=agent, entity=symbol, outcome=signal, **told)


def _risk(agent: str, symbol: str, outcome: str, told: Tracked) -> trace.Reported:
    return trace.Reported(type="risk", agent=agent, entity=symbol, outcome=outcome, **told)


def _new_ids() -> Iterator[str]:
    return (f"{os.getpid()}-{number}" for number in itertools.count(1))


class _Way(NamedTuple):
    """How to reach a daemon: `held` is the key for one elsewhere."""

    endpoint: str
    held: Held | None = None

    @classmethod
    def to(cls, endpoint: str, key: Path | None) -> _Way:
        """The way to an endpoint, with the key in a file if it is a tcp endpoint. Raises ConfigError."""
        if not endpoint.startswith("tcp://"):
            return cls(endpoint)
        if key is None:
            raise ConfigError(
                f"the endpoint {endpoint} needs a key: --key FILE, as `thorpolicy keys new` made it "
                "beside the daemon"
            )
        return cls(endpoint, held(key))

    def prepare(self, opened: AnySocket) -> AnySocket:
        """A new socket with our limits and our key."""
        opened.set(zmq.LINGER, 0)
        opened.set(zmq.MAXMSGSIZE, MAX_REPLY_BYTES)
        if self.held is not None:
            opened.set(zmq.CURVE_SERVERKEY, self.held.server.encode())
            opened.set(zmq.CURVE_PUBLICKEY, self.held.public.encode())
            opened.set(zmq.CURVE_SECRETKEY, self.held.secret.encode())
            opened.set(zmq.IPV6, int("[" in self.endpoint))
        return opened

    def connect(self, opened: zmq.Socket[bytes]) -> None:
        """Connect a prepared socket; over tcp, wait until our key counts. Raises Unreachable."""
        if self.held is not None:
            self._shake_hands(opened, self.held)
        else:
            self.check()
            opened.connect(self.endpoint)

    def check(self) -> None:
        """Whether there is a daemon; over tcp, one that knows our key. Raises Unreachable."""
        if self.held is not None:
            with zmq.Context() as context, self.prepare(context.socket(zmq.DEALER)) as opened:
                self._shake_hands(opened, self.held)
        elif not self._listens():
            raise Unreachable(f"no daemon listens at {self.endpoint}; start one: thorpolicy serve")

    def silence(self, timeout_ms: int) -> Unreachable:
        told = f"the daemon at {self.endpoint} gave no reply within {timeout_ms} ms"
        if self.held is not None:
            told += f"; it gives none once the key {self.held.name!r} is revoked"
        return Unreachable(told)

    def _listens(self) -> bool:
        """True when somebody listens at an ipc endpoint; answers at once."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            try:
                probe.connect(self.endpoint.removeprefix("ipc://"))
            except BlockingIOError:  # whoever listens has much to do
                return True
            except OSError:
                return False
        return True

    def _shake_hands(self, opened: zmq.Socket[bytes], ours: Held) -> None:
        monitor: zmq.Socket[bytes] = opened.get_monitor_socket(_CONNECTED)
        try:
            opened.connect(self.endpoint)
            if not monitor.poll(int(_CONNECT_S * 1_000)):
                raise Unreachable(f"no daemon answers at {self.endpoint} within {_CONNECT_S} s")
            event = parse_monitor_message(monitor.recv_multipart())["event"]
        except zmq.ZMQError as error:
            raise Unreachable(f"{self.endpoint} cannot be connected to: {error}") from error
        finally:
            opened.disable_monitor()
            monitor.close(linger=0)
        if event == zmq.EVENT_CONNECT_RETRIED:
            raise Unreachable(f"no daemon listens at {self.endpoint}; is its tcp_endpoint set?")
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            told = f"does not know the key {ours.name!r}, or it was revoked; `thorpolicy keys list` there"
            raise Unreachable(f"the daemon at {self.endpoint} {told}")
        if event != zmq.EVENT_HANDSHAKE_SUCCEEDED:
            told = f"is not the daemon that made the key {ours.name!r}: it cannot show that server key"
            raise Unreachable(f"what listens at {self.endpoint} {told}")


class Client:
    """A connection to the daemon at `endpoint`; it reconnects by itself.

    `timeout_ms` bounds calls that carry no deadline of their own. A tcp endpoint needs the file of a CURVE
    `key`; an ipc endpoint needs none, and ignores it. Raises ConfigError if the key cannot be used.
    """

    def __init__(self, endpoint: str, *, key: Path | None = None, timeout_ms: int = 30_000) -> None:
        self.endpoint = endpoint
        self._way = _Way.to(endpoint, key)
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
        """The reply to an AuthZEN evaluation or a flat situation (docs/protocol.md).

        It is decided by the resident `pack` of that name, or else by the active one. With an
        `idempotency_key` it can be sent again after any error: there is one decision all the same.

        Raises RequestError if it is refused, Unreachable if no reply comes in time.
        """
        return self._do(_evaluation(question, explain, deadline_ms, annotations, idempotency_key, pack))

    def status(self) -> dict[str, Json]:
        """What the daemon says of itself."""
        status: dict[str, Json] = self._do(_STATUS)["status"]
        return status

    def metrics(self) -> dict[str, Json]:
        """What the daemon measures, by the name of the metric (docs/operating.md)."""
        metrics: dict[str, Json] = self._do(_METRICS)["metrics"]
        return metrics

    # ------------------------------------------------------------ records: each returns its id once committed

    def record(self, reported: trace.Reported, *, idempotency_key: str | None = None) -> str:
        """Keep a decision that was made elsewhere; returns its decision id.

        Raises RequestError if it is refused (as all that follow do), Unreachable if no reply comes in time:
        then it may have been kept all the same.
        """
        return self.keep(reported, idempotency_key=idempotency_key)

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

    def assign(self, assignment: trace.Assignment) -> str:
        """Keep who reviews a decision; a lease that somebody else has is a RequestError `conflict`."""
        return self.keep(assignment)

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

    def control(self, control: trace.Control, *, timeout_ms: int = 3_600_000) -> dict[str, Json]:
        """Have it change what judges; for who has the role control. Returns what is so now."""
        done: dict[str, Json] = self._do(_control(control, timeout_ms))["done"]
        return done

    def keep(self, record: trace.Record, *, idempotency_key: str | None = None) -> str:
        """Keep any of these records; one with the same key and the same content is kept once."""
        return _id_of(self._do(_kept(record, idempotency_key)))

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


class _Waiting(NamedTuple):
    """A call of an `AsyncClient` that has no reply yet."""

    reply: asyncio.Future[bytes]
    frame_bytes: int


class AsyncClient:
    """A `Client` whose calls are awaited, as many at once as you like, over one socket; in one event loop.

    Each call means what the one of the same name of `Client` means. One that is cancelled, or that nobody
    answers in time, is forgotten here alone: the daemon may still decide it, or keep what it carried.
    """

    def __init__(self, endpoint: str, *, key: Path | None = None, timeout_ms: int = 30_000) -> None:
        self.endpoint = endpoint
        self._way = _Way.to(endpoint, key)
        self._timeout_ms = timeout_ms
        self._opening = asyncio.Lock()
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

    async def alive(self) -> bool:
        try:
            await asyncio.to_thread(self._way.check)
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
    ) -> dict[str, Json]:
        return await self._do(_evaluation(question, explain, deadline_ms, annotations, idempotency_key, pack))

    async def status(self) -> dict[str, Json]:
        status: dict[str, Json] = (await self._do(_STATUS))["status"]
        return status

    async def metrics(self) -> dict[str, Json]:
        metrics: dict[str, Json] = (await self._do(_METRICS))["metrics"]
        return metrics

    async def record(self, reported: trace.Reported, *, idempotency_key: str | None = None) -> str:
        return await self.keep(reported, idempotency_key=idempotency_key)

    async def context(self, consulted: trace.Consulted) -> str:
        return await self.keep(consulted)

    async def outcome(
        self, decision_id: str, status: trace.Status, value: float | None = None, note: str | None = None
    ) -> str:
        return await self.keep(trace.Happened(decision_id=decision_id, status=status, value=value, note=note))

    async def review(self, review: trace.Review) -> str:
        return await self.keep(review)

    async def assign(self, assignment: trace.Assignment) -> str:
        return await self.keep(assignment)

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

    async def control(self, control: trace.Control, *, timeout_ms: int = 3_600_000) -> dict[str, Json]:
        done: dict[str, Json] = (await self._do(_control(control, timeout_ms)))["done"]
        return done

    async def keep(self, record: trace.Record, *, idempotency_key: str | None = None) -> str:
        return _id_of(await self._do(_kept(record, idempotency_key)))

    async def call(
        self, op: str, fields: dict[str, Json], *, timeout_ms: int | None = None
    ) -> dict[str, Json]:
        return await self._do(_Request(op, fields, timeout_ms))

    # ------------------------------------------------------------ many round trips at once

    async def _do(self, request: _Request) -> dict[str, Json]:
        request_id, timeout_ms = next(self._ids), request.timeout_ms or self._timeout_ms
        frame = wire.encode_request(request_id, request.op, request.fields)
        connection = await self._connection()
        reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = _Waiting(reply, len(frame))
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await connection.send(frame)
                return wire.decode_reply(await reply)
        except TimeoutError:
            if not await self.alive():
                self._disconnect(f"no daemon listens at {self.endpoint} any more")
            raise self._way.silence(timeout_ms) from None
        finally:
            self._waiting.pop(request_id, None)

    async def _connection(self) -> zmq.asyncio.Socket:
        async with self._opening:
            if self._socket is None:
                await asyncio.to_thread(self._way.check)
                opened = self._way.prepare(self._context.socket(zmq.DEALER))
                opened.set(zmq.IMMEDIATE, 1)  # what nobody takes is not kept for whoever comes later
                opened.connect(self.endpoint)
                self._socket = opened
                self._reader = asyncio.get_running_loop().create_task(self._read(opened))
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
