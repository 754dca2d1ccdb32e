"""The Python client: ask a daemon, and have it keep records, with a timeout on everything.

Owns one socket and its correlation ids. Invariant: each call returns the reply to that call or raises; a
reply that comes after its timeout is dropped with the socket it came to. One client per thread.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Sequence
from types import TracebackType
from typing import TypedDict, Unpack

import zmq

from thor_policy import trace, wire
from thor_policy.core import Json
from thor_policy.errors import Unreachable

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


class Client:
    """A connection to the daemon at `endpoint`; it reconnects by itself.

    `timeout_ms` bounds calls that carry no deadline of their own.
    """

    def __init__(self, endpoint: str, *, timeout_ms: int = 30_000) -> None:
        self.endpoint = endpoint
        self._timeout_ms = timeout_ms
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._ids = (f"{os.getpid()}-{number}" for number in itertools.count(1))

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
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(self.endpoint.removeprefix("ipc://"))
            except OSError:
                return False
        return True

    def evaluate(
        self,
        question: Json,
        *,
        explain: str = "none",
        deadline_ms: int | None = None,
        annotations: dict[str, Json] | None = None,
        pack: str | None = None,
    ) -> dict[str, Json]:
        """The reply to an AuthZEN evaluation or a flat situation (docs/protocol.md).

        It is decided by the resident `pack` of that name, or else by the active one.

        Raises RequestError if it is refused, Unreachable if no reply comes in time.
        """
        fields = wire.question_fields(question) | {"explain": explain}
        if deadline_ms is not None:
            fields["deadline_ms"] = deadline_ms
        if annotations:
            fields["annotations"] = annotations
        if pack is not None:
            fields["pack"] = pack
        timeout_ms = deadline_ms + GRACE_MS if deadline_ms else self._timeout_ms
        return self.call("evaluate", fields, timeout_ms=timeout_ms)

    def status(self) -> dict[str, Json]:
        """What the daemon says of itself."""
        status: dict[str, Json] = self.call("status", {})["status"]
        return status

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
        happened = trace.Happened(decision_id=decision_id, status=status, value=value, note=note)
        return self.keep(happened)

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
        return self.record(trace.Reported(type="signal", agent=agent, entity=symbol, outcome=signal, **told))

    def track_risk(self, *, agent: str, symbol: str, outcome: str, **told: Unpack[Tracked]) -> str:
        """Keep what an agent made of the risk of a symbol (`REDUCE`, ..); returns its decision id."""
        return self.record(trace.Reported(type="risk", agent=agent, entity=symbol, outcome=outcome, **told))

    def upkeep(self, upkeep: trace.Upkeep, *, timeout_ms: int = 3_600_000) -> dict[str, Json]:
        """Have long work done on the journal; for the daemon's own user and root. Returns what it did."""
        done: dict[str, Json] = self.call("upkeep", {"record": upkeep}, timeout_ms=timeout_ms)["done"]
        return done

    def control(self, control: trace.Control, *, timeout_ms: int = 3_600_000) -> dict[str, Json]:
        """Have it changed what judges; for the daemon's own user and root. Returns what is so now."""
        done: dict[str, Json] = self.call("control", {"record": control}, timeout_ms=timeout_ms)["done"]
        return done

    def keep(self, record: trace.Record) -> str:
        """Keep any of these records."""
        record_id: str = self.call(wire.OP_OF[type(record)], {"record": record})["recorded"]["id"]
        return record_id

    # ------------------------------------------------------------ the round trip

    def call(self, op: str, fields: dict[str, Json], *, timeout_ms: int | None = None) -> dict[str, Json]:
        """One round trip of any operation."""
        request_id = next(self._ids)
        frames = self._round_trip(wire.encode_request(request_id, op, fields), timeout_ms or self._timeout_ms)
        return wire.decode_reply(frames[-1])

    def _round_trip(self, frame: bytes, timeout_ms: int) -> Sequence[bytes]:
        connection = self._connection()
        connection.send(frame)
        if connection.poll(timeout_ms):
            return connection.recv_multipart()
        connection.close(linger=0)
        self._socket = None
        raise Unreachable(f"the daemon at {self.endpoint} gave no reply within {timeout_ms} ms")

    def _connection(self) -> zmq.Socket[bytes]:
        if self._socket is None:
            if not self.alive():
                raise Unreachable(f"no daemon listens at {self.endpoint}; start one: thorpolicy serve")
            self._socket = self._context.socket(zmq.DEALER)
            self._socket.set(zmq.LINGER, 0)
            self._socket.set(zmq.MAXMSGSIZE, 16 * 1024 * 1024)
            self._socket.connect(self.endpoint)
        return self._socket
