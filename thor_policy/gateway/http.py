"""The gateway as an ASGI application: what passes, who asks, which endpoint answers.

Owns the routes, the order of the checks and what every reply has. Invariant: every request gets exactly one
reply, with its X-Request-ID; a request that is refused before its endpoint never reaches the daemon; any
unexpected error is a 500 without text of the request. The event loop's thread.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeAlias

import msgspec
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp

from thor_policy.core.errors import RequestError, ThorPolicyError
from thor_policy.core.requests import Json
from thor_policy.core.searches import Target
from thor_policy.gateway import access_requests, authzen, openapi, problems, tracing
from thor_policy.gateway.auth import Authenticator, Principal, Unauthenticated
from thor_policy.gateway.daemon import Daemon
from thor_policy.gateway.limits import (
    Doorway,
    Message,
    Receive,
    Scope,
    Send,
    check_type,
    read_body,
    values_of,
)
from thor_policy.gateway.problems import PROBLEM_JSON, Problem
from thor_policy.telemetry import logs

log = logging.getLogger(__name__)

_JSON, _TEXT = b"application/json", b"text/plain; charset=utf-8"
_encode = msgspec.json.Encoder().encode
#: Most characters of an Idempotency-Key: as in a request of the daemon.
_MAX_KEY = 256


class Incoming:
    """One HTTP request that passed the checks of its head, and who makes it."""

    __slots__ = ("_gateway", "_receive", "path", "principal", "scope")

    def __init__(self, scope: Scope, receive: Receive, principal: Principal, gateway: Gateway) -> None:
        self.scope, self._receive, self.principal, self._gateway = scope, receive, principal, gateway
        self.path: dict[str, str] = scope.get("path_params", {})

    async def body(self) -> dict[str, Json]:
        """The JSON object in the body. Raises Problem."""
        check_type(self.scope)
        return authzen.decoded(await read_body(self.scope, self._receive, self._gateway.max_bytes))

    async def optional_body(self) -> dict[str, Json]:
        """The JSON object in the body; empty if there is no body. Raises Problem."""
        content = await read_body(self.scope, self._receive, self._gateway.max_bytes)
        if not content:
            return {}
        check_type(self.scope)
        return authzen.decoded(content)

    async def call(self, op: str, **fields: Json) -> dict[str, Json]:
        """The daemon's reply to a request of this principal. Raises Problem."""
        return await self._gateway.daemon.call(self.principal, op, **fields)

    async def change_task(self, op: str, **fields: Json) -> dict[str, Json]:
        """The reply to an operation on tasks of approvals. Raises Problem, in the profile's words."""
        try:
            return await self._gateway.daemon.call_or_error(self.principal, op, **fields)
        except RequestError as error:
            raise access_requests.problem_of(error) from error
        except ThorPolicyError as error:
            raise problems.of_error(error) from error

    def decision(self, reply: dict[str, Json]) -> dict[str, Json]:
        """The AuthZEN decision in a reply of the daemon."""
        context = access_requests.with_endpoint(reply["context"], self._gateway.base_url)
        return {"decision": reply["decision"], "context": context}

    def task(self, task: dict[str, Json], status: int) -> Reply:
        """The reply that says how a task is."""
        value = access_requests.task_reply(task, self._gateway.base_url)
        location = value["task"]["status_endpoint"].encode()
        return Reply(status, value, ((b"location", location),) if status != 200 else ())

    def tracked(self) -> dict[str, Json]:
        """The fields of a question that its headers give: idempotency key, and the trace it belongs to."""
        fields = self.idempotency()
        if (parent := tracing.continued(self.scope)) is not None:
            fields["traceparent"] = parent
        return fields

    def idempotency(self) -> dict[str, Json]:
        """The field of the header Idempotency-Key. Raises Problem."""
        keys = values_of(self.scope, b"idempotency-key")
        if not keys:
            return {}
        if len(keys) > 1 or not 0 < len(keys[0]) <= _MAX_KEY:
            detail = f"Idempotency-Key: must be there at most one time, with 1 to {_MAX_KEY} characters"
            raise Problem(400, "bad_request", detail)
        return {"idempotency_key": keys[0].decode("latin-1")}


class Reply(NamedTuple):
    """What an endpoint answers: the status, what becomes JSON (bytes: a text), and headers of its own."""

    status: int
    value: Json
    headers: tuple[tuple[bytes, bytes], ...] = ()


#: Answers a request. Raises Problem.
Endpoint: TypeAlias = Callable[[Incoming], Awaitable[Reply]]


async def evaluation(request: Incoming) -> Reply:
    """POST /access/v1/evaluation"""
    fields = authzen.question(await request.body())
    reply = await request.call("evaluate", **fields, **request.tracked())
    return Reply(200, request.decision(reply))


async def evaluations(request: Incoming) -> Reply:
    """POST /access/v1/evaluations"""
    fields = authzen.batch(await request.body())
    reply = await request.call("evaluate", **fields, **request.tracked())
    if "evaluations" in reply:
        return Reply(200, {"evaluations": [request.decision(item) for item in reply["evaluations"]]})
    return Reply(200, request.decision(reply))


def search_for(target: Target) -> Endpoint:
    """POST /access/v1/search/TARGET"""

    async def search(request: Incoming) -> Reply:
        reply = await request.call("search", **authzen.search(await request.body(), target))
        return Reply(200, authzen.results(reply))

    return search


async def request_access(request: Incoming) -> Reply:
    """POST /access/v1/requests"""
    record = access_requests.requested(await request.body())
    reply = await request.change_task("request_approval", record=record, **request.idempotency())
    return request.task(reply["recorded"]["task"], 202)


async def task_status(request: Incoming) -> Reply:
    """GET /access/v1/requests/TASK"""
    reply = await request.change_task("approvals", record={"id": request.path["task"]})
    return request.task(reply["task"], 200)


async def cancel_task(request: Incoming) -> Reply:
    """POST /access/v1/requests/TASK/cancel"""
    body = await request.optional_body()
    record: dict[str, Json] = {"task": request.path["task"]}
    for name in ("comment", "reason"):
        if isinstance(body.get(name), str) and body[name]:
            record["reason"] = body[name]
            break
    reply = await request.change_task("cancel", record=record)
    return request.task(reply["recorded"]["task"], 200)


class Gateway:
    """The parts that every request needs, and the application over them.

    `base_url` is the identifier of the gateway, without a slash at its end; `max_bytes` the largest body.
    """

    def __init__(
        self,
        daemon: Daemon,
        authenticator: Authenticator,
        doorway: Doorway,
        *,
        base_url: str,
        max_bytes: int,
        counters: Counter[str],
    ) -> None:
        self.daemon = daemon
        self.authenticator = authenticator
        self.doorway = doorway
        self.base_url = base_url
        self.max_bytes = max_bytes
        self.counters = counters
        self._limit = logs.Limit()
        self._document = openapi.document(base_url, with_tokens=authenticator.required)

    def application(self, more: Sequence[BaseRoute] = ()) -> ASGIApp:
        """The ASGI application; `more` are routes beside those of the API."""
        return _Door(self, Router([*self._routes(), *more], redirect_slashes=False, lifespan=self._lifespan))

    def endpoint(self, endpoint: Endpoint, *, public: bool = False) -> Callable[..., Any]:
        """An ASGI endpoint: who asks is known, and a Problem becomes its reply. `public` needs nobody."""

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                principal = Principal() if public else self.authenticator.of_request(scope)
                request = Incoming(scope, receive, principal, self)
                reply = await endpoint(request)
                if isinstance(reply.value, bytes):
                    await _send(send, reply.status, _TEXT, reply.value, reply.headers)
                else:
                    await _send(send, reply.status, _JSON, _encode(reply.value), reply.headers)
            except Unauthenticated as refusal:
                await send_problem(send, problems.unauthenticated(refusal.reason, refusal.message))
            except Problem as problem:
                self.counters[f"replies_{problem.status}"] += 1
                await send_problem(send, problem)
            except ConnectionError:
                self.counters["clients_left"] += 1

        return _Raw(answer)

    def fault(self) -> Problem:
        """Log the exception that is being handled; the reply that says so."""
        self.counters["faults"] += 1
        if (unlogged := self._limit.admit(time.monotonic_ns())) is not None:
            extra = logs.fields(unlogged=unlogged or None)
            log.exception("a request failed with an unexpected error", extra=extra)
        return Problem(500, "internal", "the request failed; the gateway's log says why", close=True)

    def _routes(self) -> list[BaseRoute]:
        def post(path: str, endpoint: Endpoint) -> Route:
            return Route(path, self.endpoint(endpoint), methods=["POST"])

        def get(path: str, endpoint: Endpoint) -> Route:
            return Route(path, self.endpoint(endpoint, public=True), methods=["GET"])

        return [
            post(authzen.EVALUATION, evaluation),
            post(authzen.EVALUATIONS, evaluations),
            *(post(path, search_for(target)) for target, path in authzen.SEARCH.items()),
            post(access_requests.REQUESTS, request_access),
            Route(access_requests.REQUESTS + "/{task}", self.endpoint(task_status), methods=["GET"]),
            post(access_requests.REQUESTS + "/{task}/cancel", cancel_task),
            get("/openapi.json", self._openapi),
            get("/healthz", self._health),
            Route("/metrics", self.endpoint(self._metrics), methods=["GET"]),
            get(authzen.METADATA, self._metadata),
            get(authzen.METADATA + "/{tenant:path}", self._metadata),
        ]

    async def _metadata(self, request: Incoming) -> Reply:
        endpoints = {
            "access_evaluation_endpoint": authzen.EVALUATION,
            "access_evaluations_endpoint": authzen.EVALUATIONS,
            **{f"search_{target}_endpoint": path for target, path in authzen.SEARCH.items()},
            "access_request_endpoint": access_requests.REQUESTS,
        }
        return Reply(200, authzen.metadata(self.base_url, request.path.get("tenant"), endpoints))

    async def _openapi(self, request: Incoming) -> Reply:
        return Reply(200, self._document)

    async def _health(self, request: Incoming) -> Reply:
        if not await self.daemon.alive():
            raise problems.away("the daemon is away")
        return Reply(200, b"ok")

    async def _metrics(self, request: Incoming) -> Reply:
        lines = [
            "# HELP thorpolicy_gateway_total What became of requests, by name.",
            "# TYPE thorpolicy_gateway_total counter",
            *(
                f'thorpolicy_gateway_total{{name="{name}"}} {count}'
                for name, count in sorted(self.counters.items())
            ),
        ]
        return Reply(200, "\n".join([*lines, ""]).encode())

    @asynccontextmanager
    async def _lifespan(self, _app: Any) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await self.daemon.close()


class _Raw:
    """An endpoint that Starlette calls as ASGI, without a Request of its own."""

    def __init__(self, answer: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(scope, receive, send)


class _Door:
    """What every HTTP request passes: X-Request-ID, host and origin; errors that nobody else answers."""

    def __init__(self, gateway: Gateway, inner: ASGIApp) -> None:
        self._gateway = gateway
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        self._gateway.counters["requests"] += 1
        echoed = tracing.echoed(scope["headers"])
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], *echoed]
            await send(message)

        try:
            self._gateway.doorway.check(scope)
            scope["app"] = self  # then the router raises where no route or method matches
            await self._inner(scope, receive, send_with_id)
        except Problem as problem:
            await send_problem(send_with_id, problem)
        except HTTPException as error:
            await send_problem(send_with_id, _unrouted(error))
        except Exception:
            fault = self._gateway.fault()
            if not started:
                await send_problem(send_with_id, fault)


def _unrouted(error: HTTPException) -> Problem:
    """The problem of a request that no route takes."""
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        detail = f"use {allowed}"
        return Problem(405, "bad_method", detail, headers=((b"allow", allowed.encode()),), close=True)
    return Problem(404, "not_found", "there is nothing here; see /openapi.json", close=True)


async def send_problem(send: Send, problem: Problem) -> None:
    """Reply with a problem."""
    await _send(send, problem.status, PROBLEM_JSON, problem.body(), problem.headers)


async def _send(
    send: Send, status: int, media_type: bytes, body: bytes, more: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    headers = [
        (b"content-type", media_type),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        *more,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
