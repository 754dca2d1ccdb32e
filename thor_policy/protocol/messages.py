"""The messages of protocol version 1, as typed values.

Owns the operations, the content of each, and the HTTP status of each error code. Invariant: a message has
passed every check that does not need the daemon. Pure; any thread.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, get_args

from msgspec import Meta, Struct

from thor_policy.core import records
from thor_policy.core.errors import ErrorCode, RequestError
from thor_policy.core.recall import SimilarQuery
from thor_policy.core.records import OP_OF, RECORDS
from thor_policy.core.requests import Annotations, Enrich, Evaluation, Explain, Role
from thor_policy.core.searches import Search
from thor_policy.core.sources import Push

PROTOCOL_VERSION = 1
#: For whom a request can be relayed: the holder of a bearer token, or of a certificate.
BEHALF = r"^(token|cert):[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"
#: The HTTP status of each error code, as in AuthZEN.
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
#: Every operation; those of `RECORDS` send a record.
OPS = (
    "evaluate",
    "search",
    "status",
    "metrics",
    *RECORDS,
    "approvals",
    "similar",
    "push",
    "maintenance",
    "control",
)


class Behalf(Struct, frozen=True, kw_only=True):
    """Whose request a caller with the role `relay` sends, and the roles of that one: the member `as`."""

    name: Annotated[str, Meta(pattern=BEHALF)]
    roles: Annotated[tuple[Role, ...], Meta(max_length=len(get_args(Role)))]


class Idempotency(Struct, frozen=True, kw_only=True):
    """The caller's key of a request, and the sha256 of the request's content, in hex: never recorded."""

    key: str
    content: str


class EvaluateRequest(Struct, frozen=True, kw_only=True):
    """A question as received. `deadline_ms` is None if the request has none."""

    id: str
    evaluation: Evaluation
    explain: Explain
    deadline_ms: int | None
    pack: str | None
    annotations: Annotations
    idempotency: Idempotency | None = None
    enrich: Enrich = "auto"


#: When a batch may stop early (AuthZEN evaluations semantics).
Semantic = Literal["execute_all", "deny_on_first_deny", "permit_on_first_permit"]


class EvaluateBatchRequest(Struct, frozen=True, kw_only=True):
    """A batch as received: `items` in order; a malformed item is the error that it is answered with."""

    id: str
    items: tuple[EvaluateRequest | RequestError, ...]
    semantic: Semantic


class StatusRequest(Struct, frozen=True, kw_only=True):
    """A request for the daemon's status or metrics."""

    id: str
    op: Literal["status", "metrics"]


class RecordRequest(Struct, frozen=True, kw_only=True):
    """A record as received. `deadline_ms` is None if the request has none."""

    id: str
    record: records.Record
    deadline_ms: int | None
    idempotency: Idempotency | None = None


class ApprovalsRequest(Struct, frozen=True, kw_only=True):
    """A request for tasks of approvals."""

    id: str
    query: records.ApprovalQuery


class SimilarRequest(Struct, frozen=True, kw_only=True):
    """A request for precedents."""

    id: str
    query: SimilarQuery


class SearchRequest(Struct, frozen=True, kw_only=True):
    """A search by the rules of `pack` (None: of the active one)."""

    id: str
    search: Search
    pack: str | None


class MaintenanceRequest(Struct, frozen=True, kw_only=True):
    """A request for long work on the journal."""

    id: str
    maintenance: records.Maintenance


class ControlRequest(Struct, frozen=True, kw_only=True):
    """A request to change the packs or the adapter."""

    id: str
    control: records.Control


class PushRequest(Struct, frozen=True, kw_only=True):
    """Values for a pushed source."""

    id: str
    push: Push


Message: TypeAlias = (
    EvaluateRequest
    | EvaluateBatchRequest
    | StatusRequest
    | RecordRequest
    | ApprovalsRequest
    | SimilarRequest
    | SearchRequest
    | PushRequest
    | MaintenanceRequest
    | ControlRequest
)


def op_of(message: Message) -> str:
    """The operation of a message."""
    if isinstance(message, RecordRequest):
        return OP_OF[type(message.record)]
    if isinstance(message, StatusRequest):
        return message.op
    if isinstance(message, PushRequest):
        return "push"
    if isinstance(message, ApprovalsRequest):
        return "approvals"
    if isinstance(message, SimilarRequest):
        return "similar"
    if isinstance(message, SearchRequest):
        return "search"
    if isinstance(message, ControlRequest):
        return "control"
    return "maintenance" if isinstance(message, MaintenanceRequest) else "evaluate"
