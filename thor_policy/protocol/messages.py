"""The messages of protocol version 1, as typed values.

Owns the operations, what each carries, and the HTTP status of each error code. Invariant: a message has
passed every check that needs no daemon. Pure; any thread.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from thor_policy.core import records
from thor_policy.core.errors import ErrorCode, RequestError
from thor_policy.core.records import KIND_OF, RECORDS
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
#: Every operation; those of `RECORDS` hand over a record.
OPS = ("evaluate", "status", "metrics", *RECORDS, "maintenance", "control")


class Idempotency(Struct, frozen=True, kw_only=True):
    """Which request this is in its caller's words, and the sha256 of what it asks, in hex."""

    key: str
    content: str


class EvaluateRequest(Struct, frozen=True, kw_only=True):
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


class EvaluateBatchRequest(Struct, frozen=True, kw_only=True):
    """A batch as it came in: `items` in order, a malformed one as the error it gets for an answer."""

    id: str
    items: tuple[EvaluateRequest | RequestError, ...]
    semantic: Semantic


class StatusRequest(Struct, frozen=True, kw_only=True):
    """A question about the daemon itself, answered without the model."""

    id: str
    op: Literal["status", "metrics"]


class RecordRequest(Struct, frozen=True, kw_only=True):
    """A record to be kept, as it came in. `deadline_ms` is None when the request states none."""

    id: str
    record: records.Record
    deadline_ms: int | None
    idempotency: Idempotency | None = None


class MaintenanceRequest(Struct, frozen=True, kw_only=True):
    """Long work on the journal that is asked for."""

    id: str
    maintenance: records.Maintenance


class ControlRequest(Struct, frozen=True, kw_only=True):
    """A change of what judges that is asked for."""

    id: str
    control: records.Control


Message: TypeAlias = (
    EvaluateRequest
    | EvaluateBatchRequest
    | StatusRequest
    | RecordRequest
    | MaintenanceRequest
    | ControlRequest
)


def op_of(message: Message) -> str:
    """The operation that a message asks for."""
    if isinstance(message, RecordRequest):
        return KIND_OF[type(message.record)]
    if isinstance(message, StatusRequest):
        return message.op
    if isinstance(message, ControlRequest):
        return "control"
    return "maintenance" if isinstance(message, MaintenanceRequest) else "evaluate"
