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
from typing import Any, TypeAlias

import msgspec
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp

from thor_policy.core.requests import Json
from thor_policy.core.searches import Target
from thor_policy.gateway import authzen, problems, tracing
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

_JSON = b"application/json"
_encode = msgspec.json.Encoder().encode
#: Most characters of an Idempotency-Key: as in a request of the daemon.
_MAX_KEY = 256


class Incoming:
    """One HTTP request that passed the checks of its head, and who makes it."""

    __slots__ = ("_max_bytes", "_receive", "daemon", "path", "principal", "scope")

    def __init__(
        self, scope: Scope, receive: Receive, principal: Principal, daemon: Daemon, max_bytes: int
    ) -> None:
        self.scope, self._receive, self.principal, self.daemon = scope, receive, principal, daemon
        self._max_bytes = max_bytes
        self.path: dict[str, str] = scope.get("path_params", {})

    async def body(self) -> dict[str, Json]:
        """The JSON object in the body. Raises Problem."""
        check_type(self.scope)
        return authzen.decoded(await read_body(self.scope, self._receive, self._max_bytes))

    async def call(self, op: str, **fields: Json) -> dict[str, Json]:
        """The daemon's reply to a request of this principal. Raises Problem."""
        return await self.daemon.call(self.principal, op, **fields)

    def tracked(self) -> dict[str, Json]:
        """The fields of a question that its headers give: idempotency key, and the trace it belongs to."""
        fields = self.idempotency()
        if (parent := tracing.continued(self.scope)) is not None:
            fields["annotations"] = {"tags": [f"{tracing.TAG}{parent.decode()}"]}
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


#: Answers a request: the status, and what becomes JSON.
Endpoint: TypeAlias = Callable[[Incoming], Awaitable[tuple[int, Json]]]


async def evaluation(request: Incoming) -> tuple[int, Json]:
    """POST /access/v1/evaluation"""
    fields = authzen.question(await request.body())
    reply = await request.call("evaluate", **fields, **request.tracked())
    return 200, authzen.decision(reply)


async def evaluations(request: Incoming) -> tuple[int, Json]:
    """POST /access/v1/evaluations"""
    fields = authzen.batch(await request.body())
    reply = await request.call("evaluate", **fields, **request.tracked())
    if "evaluations" in reply:
        return 200, {"evaluations": reply["evaluations"]}
    return 200, authzen.decision(reply)


def search_for(target: Target) -> Endpoint:
    """POST /access/v1/search/TARGET"""

    async def search(request: Incoming) -> tuple[int, Json]:
        reply = await request.call("search", **authzen.search(await request.body(), target))
        return 200, authzen.results(reply)

    return search


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

    def application(self, more: Sequence[BaseRoute] = ()) -> ASGIApp:
        """The ASGI application; `more` are routes beside those of the API."""
        return _Door(self, Router([*self._routes(), *more], redirect_slashes=False, lifespan=self._lifespan))

    def endpoint(self, endpoint: Endpoint, *, public: bool = False) -> Callable[..., Any]:
        """An ASGI endpoint: who asks is known, and a Problem becomes its reply. `public` needs nobody."""

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                principal = Principal() if public else self.authenticator.of_request(scope)
                request = Incoming(scope, receive, principal, self.daemon, self.max_bytes)
                status, value = await endpoint(request)
                await _send(send, status, _JSON, _encode(value))
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
            get(authzen.METADATA, self._metadata),
            get(authzen.METADATA + "/{tenant}", self._metadata),
        ]

    async def _metadata(self, request: Incoming) -> tuple[int, Json]:
        endpoints = {
            "access_evaluation_endpoint": authzen.EVALUATION,
            "access_evaluations_endpoint": authzen.EVALUATIONS,
            **{f"search_{target}_endpoint": path for target, path in authzen.SEARCH.items()},
        }
        return 200, authzen.metadata(self.base_url, request.path.get("tenant"), endpoints)

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
