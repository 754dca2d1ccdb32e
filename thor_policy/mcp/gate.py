"""The decision on one message of a client: which questions it is, what the daemon says, and what is answered.

Owns the choice of the mapping, what the proxy itself says of a message (`context.mcp`), and the error of
each refusal. Invariant: a message passes only if the daemon allowed every question about it and none of the
answers demands something that a proxy cannot do; whatever goes wrong is a refusal. Belongs to one thread,
as its client.

Mappings, the first that there is: the operator's for the tool, then the default of the method. A mapping
that the server declares asks further questions. It never takes the place of the default, unless the
operator says so: the server would choose how it is judged.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

from msgspec import Struct

from thor_policy.client.blocking import Client
from thor_policy.core import records, strict_json
from thor_policy.core.errors import ConfigError, PackError, RequestError, ThorPolicyError
from thor_policy.core.requests import Json
from thor_policy.mcp import methods
from thor_policy.mcp.mapping import Template
from thor_policy.mcp.messages import DENIED, INTERNAL_ERROR, INVALID_PARAMS, Request, canonical
from thor_policy.mcp.tools import Listing, Tool
from thor_policy.policy import yaml_text
from thor_policy.policy.mapped_values import MappingError

#: What a mapping that a server declares does: ask further questions, replace the default one, or nothing.
ServerMappings: TypeAlias = Literal["also", "replace", "ignore"]
#: Longest text of an argument that rules can read, and most members and items of the arguments they can read.
MAX_TEXT_CHARS, MAX_PARTS, MAX_ARGUMENT_DEPTH = 2_048, 256, 3
#: Questions that were denied and can be lifted, which are remembered.
_MAX_REMEMBERED = 256
#: Longest text that a client says of itself, in characters.
_MAX_CLAIM_CHARS = 128
#: The daemon's codes for a question that is none, as opposed to a daemon that cannot answer now.
_BAD_QUESTION = ("bad_request", "too_large", "not_found", "unauthorized", "version_mismatch")


class Pinned(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The operator's file: `tools` has a mapping for each name, or `deny`; `others` is for the rest."""

    tools: dict[str, Json] = {}
    others: Literal["ask", "deny"] = "ask"


class Pins:
    """The operator's mappings, checked."""

    def __init__(self, pinned: Pinned, where: str) -> None:
        self.others_denied = pinned.others == "deny"
        self.templates: dict[str, Template | None] = {}
        for name, mapping in pinned.tools.items():
            try:
                self.templates[name] = None if mapping == "deny" else Template(mapping)
            except MappingError as error:
                raise ConfigError(f"{where}: tools.{name}: {error}") from error

    @classmethod
    def read(cls, path: Path | None) -> Pins:
        """The mappings of a file in YAML. Raises ConfigError."""
        if path is None:
            return cls(Pinned(), "")
        try:
            return cls(yaml_text.parse(path.read_text(encoding="utf-8"), Pinned, path), str(path))
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"{path}: cannot be read: {error}") from error
        except PackError as error:
            raise ConfigError(str(error)) from error


class Refusal(Struct, frozen=True, kw_only=True):
    """Why a message does not pass: the error that answers it."""

    code: int
    message: str
    data: Json = None


class Passed(Struct, frozen=True, kw_only=True):
    """A message passes: the ids of the decisions that allowed it; none where nothing was asked."""

    decisions: tuple[str, ...] = ()


class Peer(Struct, frozen=True, kw_only=True):
    """Who talks through the proxy. `subject`, `agent` and `server` are the operator's words.

    `client` is a claim.
    """

    subject: str
    server: str
    session: str
    agent: str | None = None
    client: str | None = None

    @property
    def token(self) -> dict[str, Json]:
        """What a token would say: over stdio there is none, so the operator vouches for it."""
        token: dict[str, Json] = {"sub": self.subject, "aud": self.server}
        return token if self.agent is None else token | {"client_id": self.agent}


class Gate:
    """Asks the daemon about messages. `pack` is the resident pack that decides; None: the active one."""

    def __init__(
        self,
        client: Client,
        *,
        pins: Pins,
        pack: str | None = None,
        deadline_ms: int = 5_000,
        server_mappings: ServerMappings = "also",
        refuses_changed: bool = True,
        acting_only: bool = False,
    ) -> None:
        self._client = client
        self._pins = pins
        self._pack = pack
        self._deadline_ms = deadline_ms
        self._server_mappings = server_mappings
        self._refuses_changed = refuses_changed
        self._acting_only = acting_only
        self._defaults: dict[str, Template] = {}
        self._liftable: OrderedDict[bytes, str] = OrderedDict()

    def judge(self, request: Request, version: str | None, peer: Peer, listing: Listing) -> Refusal | Passed:
        """Why a client's request does not pass, or which decisions let it pass."""
        if request.method in methods.PASSED:
            return Passed()
        default = methods.table(version).get(request.method)
        if default is None:
            return Refusal(code=DENIED, message=_unknown(request.method, version))
        if self._acting_only and request.method not in methods.ACTING:
            return Passed()
        name = request.params.get("name")
        tool = listing.get(name) if request.method == "tools/call" and isinstance(name, str) else None
        allowed: list[str] = []
        try:
            templates, origin = self._templates(request, default, tool, listing)
            about = _about(request, version, peer, tool, listing) | {"mapping": origin}
            for template in templates:
                for question in template.questions(request.params, peer.token):
                    question["context"] = question["context"] | {"mcp": about}
                    answer = self._ask(question)
                    if isinstance(answer, Refusal):
                        return answer
                    allowed.append(answer)
        except MappingError as error:
            return Refusal(code=INVALID_PARAMS, message=f"mapping error: {error}")
        except _Denied as denied:
            return Refusal(code=DENIED, message=f"denied: {denied}")
        return Passed(decisions=tuple(allowed))

    def never_allows(self, tool: str, version: str | None, peer: Peer, listing: Listing) -> bool:
        """True if a rule denies the tool by its name alone, and nothing lifts that."""
        request = Request(id=0, method="tools/call", params={"name": tool})
        refusal = self.judge(request, version, peer, listing)
        if isinstance(refusal, Passed) or refusal.code != DENIED:
            return False
        data = refusal.data or {}
        return data.get("tier", "rule") == "rule" and "access_request" not in data

    # ------------------------------------------------------------ which questions

    def _templates(
        self, request: Request, default: Json, tool: Tool | None, listing: Listing
    ) -> tuple[list[Template], str]:
        method = request.method
        if method not in self._defaults:
            self._defaults[method] = Template(default)
        usual = self._defaults[method]
        if method != "tools/call":
            return [usual], "default"
        name = request.params.get("name")
        if tool is None or not isinstance(name, str):
            raise MappingError("params.name is no tool that the server lists")
        if listing.changed(name) and self._refuses_changed:
            raise _Denied(
                f"the tool {name!r} has changed since it was first listed; restart the proxy to accept it"
            )
        _check_arguments(request.params.get("arguments", {}), tool)
        if name in self._pins.templates:
            pinned = self._pins.templates[name]
            if pinned is None:
                raise _Denied(f"the operator's mapping denies the tool {name!r}")
            return [pinned], "operator"
        if self._pins.others_denied:
            raise _Denied(f"the operator's mapping does not have the tool {name!r}")
        if self._server_mappings == "ignore":
            return [usual], "default"
        if tool.fault is not None:
            raise MappingError(tool.fault)
        if tool.mapping is None:
            return [usual], "default"
        return ([tool.mapping] if self._server_mappings == "replace" else [usual, tool.mapping]), "server"

    # ------------------------------------------------------------ what the daemon says

    def _ask(self, question: dict[str, Json]) -> Refusal | str:
        """Why the daemon does not allow a question, or the id of the decision that allows it."""
        key = hashlib.sha256(canonical(question)).digest()
        try:
            if key in self._liftable and (approval := self._approval_of(self._liftable[key])):
                question["context"]["approval"] = approval
            reply = self._client.evaluate(
                question, explain="inline", deadline_ms=self._deadline_ms, pack=self._pack
            )
            return self._read(reply, key)
        except RequestError as error:
            if error.code in _BAD_QUESTION:
                message = f"mapping error: the daemon refuses the question: {error.code}: {error.message}"
                return Refusal(code=INVALID_PARAMS, message=message)
            return Refusal(code=INTERNAL_ERROR, message=f"no decision: {error.code}: {error.message}")
        except (ThorPolicyError, strict_json.JsonError, KeyError, TypeError, AttributeError) as error:
            return Refusal(code=INTERNAL_ERROR, message=f"no decision: {error}")

    def _approval_of(self, decision_id: str) -> Json:
        tasks = self._client.approvals(records.ApprovalQuery(states=("approved",), limit=200))
        approvals = [task.get("approval") for task in tasks if task["evaluation_id"] == decision_id]
        return next(iter(approvals), None)

    def _read(self, reply: Mapping[str, Json], key: bytes) -> Refusal | str:
        context = reply["context"]
        if reply["decision"] is True:
            if not context["obligations"]:
                self._liftable.pop(key, None)
                return str(context["decision_id"])
            reason = f"the outcome {context['outcome']} has obligations, which a proxy cannot see to"
        else:
            reason = context.get("reasoning") or f"the outcome is {context['outcome']}"
        shown = (
            "decision_id",
            "outcome",
            "tier",
            "risk",
            "clauses",
            "rules",
            "reason_code",
            "access_request",
        )
        data = {name: context[name] for name in shown if context.get(name) is not None} | {"reason": reason}
        message = f"denied: {reason} (decision {context['decision_id']})"
        if "access_request" in context:
            self._remember(key, context["decision_id"])
            data["approval"] = f"thorpolicy approvals request {context['decision_id']}"
            message += (
                f". To get it approved: {data['approval']}; when it is approved, send the same request again."
            )
        return Refusal(code=DENIED, message=message, data=data)

    def _remember(self, key: bytes, decision_id: str) -> None:
        """The first denial of a question stays: people may have been asked to lift that one."""
        if key not in self._liftable:
            self._liftable[key] = decision_id
            if len(self._liftable) > _MAX_REMEMBERED:
                self._liftable.popitem(last=False)


class _Denied(Exception):
    """The operator, or a change of the tool, denies a message; no question is needed."""


def _unknown(method: str, version: str | None) -> str:
    if version is None:
        return f"denied: {method!r:.80} before a protocol version is agreed on"
    if version not in methods.DEFAULTS:
        return (
            f"denied: the protocol version {version!r:.40} is not known; known: {', '.join(methods.VERSIONS)}"
        )
    return f"denied: {method!r:.80} is no method of protocol version {version}"


def _check_arguments(arguments: Json, tool: Tool) -> None:
    """Refuse a name that differs by case only from one of the schema: some parsers take it for that one."""
    if not isinstance(arguments, dict):
        raise MappingError("params.arguments must be an object")
    declared = {name.casefold(): name for name in tool.arguments}
    for name in arguments:
        meant = declared.get(name.casefold(), name)
        if meant != name and name not in tool.arguments:
            raise MappingError(f"the tool {tool.name!r} has the argument {meant!r:.80}, not {name!r:.80}")


def _about(
    request: Request, version: str | None, peer: Peer, tool: Tool | None, listing: Listing
) -> dict[str, Json]:
    """What the proxy says of a message: `context.mcp`. Arguments are there as far as rules can read them."""
    about: dict[str, Json] = {
        "server": peer.server,
        "session": peer.session,
        "method": request.method,
        "protocol_version": version,
    }
    if peer.client is not None:
        about["client_claims"] = peer.client
    if tool is not None:
        about |= {"tool": tool.name, "tool_sha256": tool.sha256, "tools_sha256": listing.sha256}
    if request.method in ("tools/call", "prompts/get"):
        arguments = request.params.get("arguments", {})
        about["arguments_sha256"] = _digest(arguments)
        about["arguments"], about["arguments_whole"] = _readable(arguments)
    return about


def _digest(value: Json) -> str:
    return hashlib.sha256(canonical(value)).hexdigest()


def _readable(arguments: Json) -> tuple[Json, bool]:
    """The arguments within the bounds of a question, with digests of the rest; and if they are whole."""
    parts = 0
    whole = True

    def bounded(value: Json, depth: int) -> Json:
        nonlocal parts, whole
        parts += 1
        if isinstance(value, str) and len(value) > MAX_TEXT_CHARS:
            whole = False
            return {"sha256": hashlib.sha256(value.encode()).hexdigest(), "chars": len(value)}
        if isinstance(value, dict | list) and (depth >= MAX_ARGUMENT_DEPTH or parts + len(value) > MAX_PARTS):
            whole = False
            return {"sha256": _digest(value), "parts": len(value)}
        if isinstance(value, dict):
            return {name: bounded(part, depth + 1) for name, part in value.items()}
        return [bounded(part, depth + 1) for part in value] if isinstance(value, list) else value

    return bounded(arguments, 0), whole


def claim_of(params: Mapping[str, Json]) -> str | None:
    """The name and version that a client states of itself, in `initialize` or in `_meta`."""
    meta = params.get("_meta")
    info = params.get("clientInfo") or (
        isinstance(meta, dict) and meta.get("io.modelcontextprotocol/clientInfo")
    )
    if not isinstance(info, dict):
        return None
    return f"{info.get('name')} {info.get('version')}"[:_MAX_CLAIM_CHARS]
