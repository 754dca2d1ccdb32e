"""The OpenAPI 3.1 document of the gateway, made from the types of its bodies.

Owns those types and the list of operations. Invariant: each path of the API is here, with every status that
it can give; a body that a type refuses is refused by the gateway too. Pure; any thread.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta, Struct

from thor_policy import __version__
from thor_policy.core.requests import Json
from thor_policy.gateway import access_requests, authzen
from thor_policy.protocol.messages import Semantic
from thor_policy.protocol.requests import MAX_EVALUATIONS, MAX_NAME_CHARS

Name: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
Properties: TypeAlias = dict[str, Any]


class Subject(Struct, frozen=True, kw_only=True):
    """Who wants to act."""

    type: Name
    id: Name
    properties: Properties = {}


class Resource(Struct, frozen=True, kw_only=True):
    """What is acted on."""

    type: Name
    id: Name
    properties: Properties = {}


class Action(Struct, frozen=True, kw_only=True):
    """What the subject wants to do."""

    name: Name
    properties: Properties = {}


class SearchedEntity(Struct, frozen=True, kw_only=True):
    """A type whose entities are searched for; an id is ignored."""

    type: Name
    properties: Properties = {}


class EvaluationRequest(Struct, frozen=True, kw_only=True):
    """May the subject do the action on the resource, in the context?"""

    subject: Subject
    action: Action
    resource: Resource
    context: Properties = {}


class Item(Struct, frozen=True, kw_only=True):
    """A question of a batch: what is missing is the default of the batch."""

    subject: Any = None
    action: Any = None
    resource: Any = None
    context: Any = None


class Options(Struct, frozen=True, kw_only=True):
    """When a batch ends early."""

    evaluations_semantic: Semantic = "execute_all"


class EvaluationsRequest(Struct, frozen=True, kw_only=True):
    """A batch with its defaults; without `evaluations` a single question."""

    evaluations: Annotated[list[Item], Meta(max_length=MAX_EVALUATIONS)] = []
    options: Options = Options()
    subject: Properties = {}
    action: Properties = {}
    resource: Properties = {}
    context: Properties = {}


class Decision(Struct, frozen=True, kw_only=True):
    """The decision, and why: `context` has outcome, reasons, obligations and digests."""

    decision: bool
    context: Properties


class Decisions(Struct, frozen=True, kw_only=True):
    """The decisions of a batch, in order."""

    evaluations: list[Decision]


class Page(Struct, frozen=True, kw_only=True):
    """Which part of the results; `token` is the `next_token` of the page before."""

    limit: Annotated[int, Meta(ge=0, le=2**31)] | None = None
    token: Annotated[str, Meta(max_length=4_096)] | None = None


class SubjectSearch(Struct, frozen=True, kw_only=True):
    """Which subjects of a type may do this?"""

    subject: SearchedEntity
    action: Action
    resource: Resource
    context: Properties = {}
    page: Page = Page()


class ResourceSearch(Struct, frozen=True, kw_only=True):
    """On which resources of a type may the subject do this?"""

    subject: Subject
    action: Action
    resource: SearchedEntity
    context: Properties = {}
    page: Page = Page()


class ActionSearch(Struct, frozen=True, kw_only=True):
    """Which actions may the subject do on the resource?"""

    subject: Subject
    resource: Resource
    context: Properties = {}
    page: Page = Page()


class FoundEntity(Struct, frozen=True, kw_only=True):
    """A subject or resource that would be allowed."""

    type: str
    id: str


class FoundAction(Struct, frozen=True, kw_only=True):
    """An action that would be allowed."""

    name: str


class NextPage(Struct, frozen=True, kw_only=True):
    """`next_token` is empty at the end."""

    next_token: str
    count: int


class Entities(Struct, frozen=True, kw_only=True):
    """One page of entities."""

    page: NextPage
    results: list[FoundEntity]


class Actions(Struct, frozen=True, kw_only=True):
    """One page of actions."""

    page: NextPage
    results: list[FoundAction]


class Denial(Struct, frozen=True, kw_only=True):
    """The denial that is to be lifted: `context.evaluation_id` of its decision."""

    evaluation_id: str


class AccessRequest(Struct, frozen=True, kw_only=True):
    """A request for the approvals that can lift a denial."""

    subject: Subject
    action: Action
    resource: Resource
    denial: Denial
    context: Properties = {}
    requested_access: Properties = {}


class Cancellation(Struct, frozen=True, kw_only=True):
    """Why a request is cancelled."""

    reason: str = ""
    comment: str = ""


class Task(Struct, frozen=True, kw_only=True):
    """A task of approvals."""

    id: str
    status: str
    status_endpoint: str
    links: dict[str, str]
    expires_at: str | None = None
    progress: Properties = {}


class TaskReply(Struct, frozen=True, kw_only=True):
    """A task; `result.approval` is what the question is asked again with, once it is approved."""

    task: Task
    result: Properties = {}


class Metadata(Struct, frozen=True, kw_only=True):
    """What the gateway says of itself."""

    policy_decision_point: str
    access_evaluation_endpoint: str
    access_evaluations_endpoint: str
    search_subject_endpoint: str
    search_resource_endpoint: str
    search_action_endpoint: str
    access_request_endpoint: str
    supported_obligations: list[str]


class ProblemDetails(Struct, frozen=True, kw_only=True):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str


class _Operation(Struct, frozen=True):
    """An operation: its id, what it is for, and the types of its bodies; `statuses` are those of success."""

    id: str
    summary: str
    body: Any
    reply: Any
    statuses: tuple[int, ...] = (200,)
    optional_body: bool = False


#: Every operation by path and method.
OPERATIONS: dict[tuple[str, str], _Operation] = {
    (authzen.EVALUATION, "post"): _Operation("evaluate", "Decide one question", EvaluationRequest, Decision),
    (authzen.EVALUATIONS, "post"): _Operation(
        "evaluateAll", "Decide a batch of questions", EvaluationsRequest, Decisions | Decision
    ),
    (authzen.SEARCH["subject"], "post"): _Operation(
        "searchSubjects", "List subjects", SubjectSearch, Entities
    ),
    (authzen.SEARCH["resource"], "post"): _Operation(
        "searchResources", "List resources", ResourceSearch, Entities
    ),
    (authzen.SEARCH["action"], "post"): _Operation("searchActions", "List actions", ActionSearch, Actions),
    (access_requests.REQUESTS, "post"): _Operation(
        "requestAccess", "Request approvals", AccessRequest, TaskReply, (202,)
    ),
    (access_requests.REQUESTS + "/{task}", "get"): _Operation("taskStatus", "How a task is", None, TaskReply),
    (access_requests.REQUESTS + "/{task}/cancel", "post"): _Operation(
        "cancelTask", "Cancel a task", Cancellation, TaskReply, optional_body=True
    ),
    (authzen.METADATA, "get"): _Operation("metadata", "What this gateway offers", None, Metadata),
    (authzen.METADATA + "/{tenant}", "get"): _Operation("metadataOf", "The same of a tenant", None, Metadata),
}
#: Statuses that any operation can give, with a problem as body.
PROBLEMS = (400, 401, 403, 404, 405, 408, 409, 410, 413, 415, 429, 500, 503, 504, 507)


def document(base_url: str, *, with_tokens: bool) -> dict[str, Json]:
    """The OpenAPI document of a gateway at `base_url`."""
    kinds = dict.fromkeys(
        kind
        for operation in OPERATIONS.values()
        for kind in (operation.body, *_members(operation.reply))
        if kind is not None
    )
    schemas, components = msgspec.json.schema_components(
        [*kinds, ProblemDetails], ref_template="#/components/schemas/{name}"
    )
    schema_of = dict(zip([*kinds, ProblemDetails], schemas, strict=True))
    paths: dict[str, dict[str, Json]] = {}
    for (path, method), operation in OPERATIONS.items():
        paths.setdefault(path, {})[method] = _described(path, operation, schema_of, with_tokens=with_tokens)
    described: dict[str, Json] = {
        "openapi": "3.1.0",
        "info": {
            "title": "thor-policy",
            "version": __version__,
            "summary": "OpenID AuthZEN 1.0 with searches and approvals",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": base_url}],
        "paths": paths,
        "components": {"schemas": components},
    }
    if with_tokens:
        described["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return described


def _members(kind: Any) -> tuple[Any, ...]:
    return getattr(kind, "__args__", None) or (kind,)


def _described(
    path: str, operation: _Operation, schema_of: dict[Any, Json], *, with_tokens: bool
) -> dict[str, Json]:
    schemas = [schema_of[kind] for kind in _members(operation.reply)]
    reply = schemas[0] if len(schemas) == 1 else {"oneOf": schemas}
    responses: dict[str, Json] = {
        str(status): {
            "description": "Done",
            "headers": {"X-Request-ID": {"schema": {"type": "string"}}},
            "content": {"application/json": {"schema": reply}},
        }
        for status in operation.statuses
    }
    for status in PROBLEMS:
        responses[str(status)] = {
            "description": "Refused",
            "content": {"application/problem+json": {"schema": schema_of[ProblemDetails]}},
        }
    described: dict[str, Json] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "responses": responses,
    }
    if operation.body is not None:
        described["requestBody"] = {
            "required": not operation.optional_body,
            "content": {"application/json": {"schema": schema_of[operation.body]}},
        }
    if "{" in path:
        name = path.partition("{")[2].partition("}")[0]
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        ]
    if with_tokens and not path.startswith(authzen.METADATA):
        described["security"] = [{"token": []}]
    return described
