"""PostgreSQL as a sink, and the connection to it.

Owns the connection's rules and the calls of the four functions that a device may call. Invariant: whatever
the settings say, a connection to another machine verifies the server's certificate and name; the store
itself checks every chain (`sql/0002_receive.sql`), in the transaction that stores the events. psycopg is
imported here only. The thread of the shipper or of a command.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import psycopg
from psycopg import conninfo
from psycopg.types.json import Jsonb, set_json_dumps

from thor_policy.core.errors import ConfigError
from thor_policy.core.requests import Json
from thor_policy.fleet.batches import Batch, Left
from thor_policy.fleet.shipper import Forked, Position, SinkError
from thor_policy.journal.checkpoints import Checkpoint

#: Seconds until a connection attempt fails, and milliseconds until a statement of the shipper does.
CONNECT_S, STATEMENT_MS = 5, 60_000
#: Modes in which libpq does not verify certificate and name.
_LAX_MODES = frozenset({"disable", "allow", "prefer", "require", "verify-ca"})

_RECEIVE = (
    "SELECT status, seq, head FROM thorpolicy.receive(%b, %b, %b::bigint[], "
    "%b::bytea[], %b::bytea[], %b::bigint[], " + "%b::bytea[], " * 8 + "%b)"
)

set_json_dumps(msgspec.json.encode)


def parameters(url: str) -> dict[str, Any]:
    """The connection's parameters. Raises ConfigError for a password in it, or for less than verify-full.

    A server on this machine (a socket, or a loopback address) needs no TLS.
    """
    try:
        given: dict[str, Any] = dict(conninfo.conninfo_to_dict(url))
    except psycopg.ProgrammingError as error:
        raise ConfigError(
            f"fleet_url is no PostgreSQL address ({str(error).strip()}); it must look like "
            "postgresql://thor_7@fleet.example:5432/fleet"
        ) from error
    if "password" in given and not _is_local(given):
        raise ConfigError(
            "fleet_url holds a password, which other users could read; remove it, and put it into the file "
            "that PGPASSFILE names"
        )
    if not _is_local(given):
        mode = given.setdefault("sslmode", "verify-full")
        if mode in _LAX_MODES:
            raise ConfigError(
                f"fleet_url has sslmode={mode}, which does not verify who the server is; remove it (the "
                "default is verify-full, with sslrootcert=system), or tunnel to a loopback address"
            )
        given.setdefault("sslrootcert", "system")
    return given | {
        "connect_timeout": given.get("connect_timeout", CONNECT_S),
        "application_name": "thorpolicy",
    }


def _is_local(given: dict[str, Any]) -> bool:
    places = [
        place for name in ("host", "hostaddr") if given.get(name) for place in str(given[name]).split(",")
    ]
    return all(place.startswith(("/", "@", "127.")) or place in ("localhost", "::1", "") for place in places)


def connect(url: str, **options: Any) -> psycopg.Connection[Any]:
    """A connection in autocommit mode. Raises ConfigError, SinkError."""
    given = parameters(url)
    try:
        return psycopg.connect(**given, autocommit=True, **options)
    except psycopg.Error as error:
        raise SinkError(f"the store cannot be reached: {_reason(error)}") from error


@contextmanager
def failing() -> Iterator[None]:
    """Turns an error of PostgreSQL inside into a SinkError."""
    try:
        yield
    except psycopg.Error as error:
        raise SinkError(f"the store failed: {_reason(error)}") from error


def _reason(error: psycopg.Error) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    hint = error.diag.message_hint
    return lines[0] + (f" ({hint})" if hint else "")


class PostgresSink:
    """The store at `url`. It connects when it is first needed, and again after a failure."""

    name = "postgres"
    keeps_rows = True

    def __init__(self, url: str) -> None:
        parameters(url)
        self._url = url
        self._connection: psycopg.Connection[Any] | None = None

    def position(self, device: str, journal: bytes) -> Position:
        seq, head, signed = self._call(
            "SELECT seq, head, signed FROM thorpolicy.position_of(%s, %s)", device, journal
        )
        return Position(seq=seq, head=head, signed=signed)

    def write(self, batch: Batch) -> Position:
        columns = _columns(batch)
        status, seq, head = self._call(
            _RECEIVE,
            batch.device,
            batch.journal,
            *columns,
            Jsonb(batch.rows | {"left": [_left(left) for left in batch.left]}),
        )
        if status in ("fork", "broken"):
            what = "has another event with this number" if status == "fork" else "finds a wrong hash"
            raise Forked(
                f"the store {what}, near event {seq + 1} of {batch.device}: it stored an alarm and no event; "
                "see docs/how-to/run-a-fleet.md"
            )
        return Position(seq=seq, head=head)

    def keep(self, device: str, checkpoint: Checkpoint) -> None:
        (status,) = self._call(
            "SELECT thorpolicy.keep_checkpoint(%s, %s, %s, %s, %s, %s, %s)",
            device,
            bytes.fromhex(checkpoint.chain),
            checkpoint.seq,
            bytes.fromhex(checkpoint.head),
            checkpoint.at,
            checkpoint.key,
            checkpoint.signature,
        )
        if status == "fork":
            raise Forked(f"the checkpoint of event {checkpoint.seq} signs another hash than the store has")

    def report(self, device: str, journal: bytes, kind: str, seq: int, got: bytes | None) -> None:
        self._call("SELECT thorpolicy.report(%s, %s, %s, %s, %s)", device, journal, kind, seq, got)

    def idle(self) -> Position | None:
        return None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _call(self, statement: str, *values: Any) -> tuple[Any, ...]:
        """The row of one statement, which is a transaction of its own."""
        try:
            with failing():
                if self._connection is None or self._connection.closed:
                    options = f"-c statement_timeout={STATEMENT_MS} -c idle_session_timeout=0"
                    self._connection = connect(self._url, options=options)
                row = self._connection.execute(statement.encode(), values).fetchone()
        except SinkError:
            self.close()
            raise
        if row is None:
            raise SinkError("the store gave no answer")
        return tuple(row)


def _columns(batch: Batch) -> Sequence[list[Any]]:
    """The events column by column, as `receive` takes them."""
    rows = [row for row, _ in batch.events]
    parts = [part for _, part in batch.events]
    return (
        [row.seq for row in rows],
        [row.at for row in rows],
        [row.boot_id for row in rows],
        [row.mono_ns for row in rows],
        [row.kind for row in rows],
        [row.subject_id for row in rows],
        [row.body for row in rows],
        [row.private_digest for row in rows],
        [row.prev_hash for row in rows],
        [row.hash for row in rows],
        [part[0] if part else None for part in parts],
        [part[1] if part else None for part in parts],
    )


def _left(left: Left) -> dict[str, Json]:
    return {"seq": left.seq, "salt": left.salt.hex(), "value": left.value.decode(), "row": left.row}
