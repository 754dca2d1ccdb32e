"""OpenID AuthZEN 1.0 over HTTP: evaluation, evaluations, metadata.

Owns what of a body becomes a request of the daemon, the defaults of a batch, and the metadata. Invariant: the
daemon decides and records; nothing here makes an answer looser. A batch is one request of the daemon, so one
commit. Pure; any thread.
"""

from __future__ import annotations

from typing import get_args
from urllib.parse import urlsplit

from thor_policy.core import strict_json
from thor_policy.core.requests import Json
from thor_policy.core.searches import Target
from thor_policy.gateway.problems import Problem
from thor_policy.protocol.messages import Semantic

#: The members of a question.
MEMBERS = ("subject", "action", "resource", "context")
#: The members of each entity that it cannot be without.
REQUIRED = {"subject": ("type", "id"), "resource": ("type", "id"), "action": ("name",)}
EVALUATION, EVALUATIONS = "/access/v1/evaluation", "/access/v1/evaluations"
SEARCH: dict[Target, str] = {target: f"/access/v1/search/{target}" for target in get_args(Target)}
METADATA = "/.well-known/authzen-configuration"
#: The types of obligations that packs can attach to a decision.
OBLIGATIONS = ("step-up", "custom")


def decoded(body: bytes) -> dict[str, Json]:
    """The object in a body. Raises Problem 400."""
    if not body:
        raise Problem(400, "bad_request", "the body is empty; send a JSON object")
    try:
        value = strict_json.decode(body)
    except strict_json.JsonError as error:
        raise Problem(400, "bad_request", str(error) if error.place else f"the body {error}") from error
    if not isinstance(value, dict):
        raise Problem(400, "bad_request", "the body must be a JSON object")
    return value


def question(body: dict[str, Json]) -> dict[str, Json]:
    """The fields of the daemon's request for one question; unknown members are left out.

    The daemon checks what is in the members. Raises Problem 400.
    """
    return {"request": {name: body[name] for name in MEMBERS if name in body}}


def batch(body: dict[str, Json]) -> dict[str, Json]:
    """The fields of the daemon's request for a batch, or for one question if there is no batch.

    Raises Problem 400.
    """
    items = body.get("evaluations")
    options = body.get("options")
    if options is not None and not isinstance(options, dict):
        raise Problem(400, "bad_request", "options: must be an object")
    semantic = (options or {}).get("evaluations_semantic", "execute_all")
    if semantic not in get_args(Semantic):
        raise Problem(
            400,
            "bad_request",
            f"options.evaluations_semantic: must be one of {', '.join(get_args(Semantic))}",
        )
    if items is None or items == []:
        return question(body)
    if not isinstance(items, list):
        raise Problem(400, "bad_request", "evaluations: must be an array")
    defaults = {name: body[name] for name in MEMBERS if body.get(name) is not None}
    for name, default in defaults.items():
        if not isinstance(default, dict):
            raise Problem(400, "bad_request", f"{name}: must be an object")
    return {
        "evaluations": [_with_defaults(item, defaults) for item in items],
        "options": {"evaluations_semantic": semantic},
    }


def _with_defaults(item: Json, defaults: dict[str, Json]) -> Json:
    """An item of a batch, complete: an entity that it has replaces the default as a whole.

    An empty entity is the default; of another one, required members that are missing come from the default.
    """
    if not isinstance(item, dict):
        return item
    complete = dict(defaults)
    for name in MEMBERS:
        entity = item.get(name)
        if entity is None or (entity == {} and name in REQUIRED):
            continue
        default = defaults.get(name, {})
        if isinstance(entity, dict) and name in REQUIRED:
            missing = (part for part in REQUIRED[name] if part not in entity and part in default)
            entity = entity | {part: default[part] for part in missing}
        complete[name] = entity
    return complete


def search(body: dict[str, Json], target: Target) -> dict[str, Json]:
    """The fields of the daemon's request for a search; unknown members are left out."""
    fields: dict[str, Json] = {"target": target} | question(body)
    if body.get("page") is not None:
        fields["page"] = body["page"]
    return fields


def results(reply: dict[str, Json]) -> dict[str, Json]:
    """The AuthZEN results in the daemon's reply to a search."""
    return {"page": reply["page"], "results": reply["results"]}


def metadata(base_url: str, tenant: str | None, endpoints: dict[str, str]) -> dict[str, Json]:
    """What the gateway says of itself; `endpoints` are its paths by the member that names each.

    The identifier of a tenant is what its metadata were asked by: the path of the URL is that of the tenant.
    """
    parts = urlsplit(base_url)
    identifier = base_url if tenant is None else f"{parts.scheme}://{parts.netloc}/{tenant}"
    return {
        "policy_decision_point": identifier,
        **{name: f"{base_url}{path}" for name, path in endpoints.items()},
        "supported_obligations": list(OBLIGATIONS),
    }
