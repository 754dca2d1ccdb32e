"""The messages of protocol version 1, as typed values.

Owns the operations, what each carries, and the HTTP status of each error code. Invariant: a message has
passed every check that needs no daemon. Pure; any thread.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from thor_policy.core import records
from thor_policy.core.errors import ErrorCode, RequestError
from thor_policy.core.requests import Annotations, Evaluation, Explain

PROTOCOL_VERSION = 1
#: The HTTP status that AuthZEN gives an error of each code.
HTTP_STATUS: dict[ErrorCode, int] = {
    "bad_request": 400,
    "version_mismatch": 400,
    "unauthorized": 403,
    "not_found": 404,
    "conflict": 409,
    "too_large": 413,
    "busy": 429,
    "expired": 504,
    "unavailable": 503,
    "disk_full": 507,
    "shutting_down": 503,
    "internal": 500,
}
#: The operations that hand over a record, and what each carries.
RECORDS: dict[str, type[records.Record]] = {
    "record": records.Reported,
    "context": records.Consulted,
    "outcome": records.Happened,
    "review": records.Review,
    "assign": records.Assignment,
    "approve": records.Approval,
    "node": records.Node,
    "link": records.Edge,
}
OP_OF = {noun: op for op, noun in RECORDS.items()}
OPS = ("evaluate", "status", "metrics", *RECORDS, "upkeep", "control")


class Idempotency(Struct, frozen=True, kw_only=True):
    """Which request this is in its caller's words, and the sha256 of what it asks, in hex."""

    key: str
    content: str


class Evaluate(Struct, frozen=True, kw_only=True):
    """A question as it came in. `deadline_ms` is None when the request states none."""

    id: str
    evaluation: Evaluation
    explain: Explain
    deadline_ms: int | None
    pack: str | None
    annotations: Annotations
    idempotency: Idempotency | None = None


#: When a batch may stop early (AuthZEN evaluations semantics).
Semantic = Literal["execute_all", "deny_on_first_deny", "permit_on_first_permit"]


class EvaluateMany(Struct, frozen=True, kw_only=True):
    """A batch as it came in: `items` in order, a malformed one as the error it gets for an answer."""

    id: str
    items: tuple[Evaluate | RequestError, ...]
    semantic: Semantic


class Inquire(Struct, frozen=True, kw_only=True):
    """A question about the daemon itself, answered without the model."""

    id: str
    op: Literal["status", "metrics"]


class Keep(Struct, frozen=True, kw_only=True):
    """A record to be kept, as it came in. `deadline_ms` is None when the request states none."""

    id: str
    record: records.Record
    deadline_ms: int | None
    idempotency: Idempotency | None = None


class Tend(Struct, frozen=True, kw_only=True):
    """Long work on the journal that is asked for."""

    id: str
    upkeep: records.Upkeep


class Steer(Struct, frozen=True, kw_only=True):
    """A change of what judges that is asked for."""

    id: str
    control: records.Control


Message: TypeAlias = Evaluate | EvaluateMany | Inquire | Keep | Tend | Steer


def op_of(message: Message) -> str:
    """The operation that a message asks for."""
    if isinstance(message, Keep):
        return OP_OF[type(message.record)]
    if isinstance(message, Inquire):
        return message.op
    if isinstance(message, Steer):
        return "control"
    return "upkeep" if isinstance(message, Tend) else "evaluate"
