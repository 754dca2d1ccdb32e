"""The pages as an ASGI application: what passes, who visits, which page answers.

Owns the routes, the order of the checks, the cookie, log in and log out. Invariant: a request that is refused
before its page reaches neither the daemon nor the journal; what changes anything is a POST from a page of
this origin with the token of its session; any unexpected error is a 500 without text of the request. The
event loop's thread.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http.cookies import CookieError, SimpleCookie
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp

from thor_policy.core.errors import JournalError, ThorPolicyError
from thor_policy.gateway.auth import Authenticator, Unauthenticated
from thor_policy.gateway.daemon import Daemon
from thor_policy.gateway.limits import Doorway, Message, Receive, Scope, Send, values_of
from thor_policy.gateway.problems import Problem, of_error
from thor_policy.gateway.serving import Settings
from thor_policy.telemetry import logs
from thor_policy.web import approvals, decisions, reports, templates
from thor_policy.web.live import Live
from thor_policy.web.reviews import Reviews
from thor_policy.web.sessions import LIFE_S, Session, Sessions
from thor_policy.web.visits import Parts, Places, Visit, go_to, read_form

log = logging.getLogger(__name__)

Endpoint = Callable[[Visit], Awaitable[Response]]
#: The files of this package that a browser may load, and their types.
_STATIC = {
    "style.css": "text/css; charset=utf-8",
    "pages.js": "text/javascript; charset=utf-8",
    "htmx.min.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


class Web:
    """The parts of the pages, and the application over them. `closing` says that the process ends."""

    def __init__(
        self, settings: Settings, places: Places, counters: Counter[str], *, closing: Callable[[], bool]
    ) -> None:
        self._settings = settings
        self._counters = counters
        self._parts = Parts(Daemon(settings.endpoint, settings.key, counters), places, counters)
        self._sessions = Sessions(Authenticator(settings.tokens, counters), counters)
        self._doorway = Doorway(
            settings.address,
            settings.port,
            tls=settings.tls_cert is not None,
            public_url=settings.public_url,
            counters=counters,
        )
        self._secure = settings.base_url.startswith("https:")
        #: Cookies know no ports: pages of two daemons on one machine must not share one.
        self._cookie = f"{'__Host-' if self._secure else ''}thor_policy_{settings.port}"
        self._live = Live(places.events_endpoint, closing)
        self._reviews = Reviews()
        self._limit = logs.Limit()

    def application(self) -> ASGIApp:
        """The ASGI application."""
        router = Router(self._routes(), redirect_slashes=False, lifespan=self._lifespan)

        async def door(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                await self._answer(router, scope, receive, send)
            else:
                await router(scope, receive, send)

        return door

    def _routes(self) -> list[BaseRoute]:
        def get(path: str, endpoint: Endpoint) -> Route:
            return Route(path, _Raw(self._page(endpoint)), methods=["GET"])

        def post(path: str, endpoint: Endpoint) -> Route:
            return Route(path, _Raw(self._page(endpoint)), methods=["POST"])

        return [
            Route("/static/{name}", _Raw(_static), methods=["GET"]),
            Route("/login", _Raw(self._login_page), methods=["GET"]),
            Route("/login", _Raw(self._log_in), methods=["POST"]),
            post("/logout", self._log_out),
            get("/", decisions.live),
            get("/live/events", self._stream),
            get("/decisions", decisions.search),
            get("/decisions/{id}", decisions.decision),
            get("/approvals", approvals.tasks),
            get("/approvals/{id}", approvals.task),
            post("/approvals/{id}", approvals.judge),
            get("/review", self._reviews.page),
            get("/review/figures", self._reviews.figures),
            post("/review/begin", self._reviews.begin),
            post("/review/step", self._reviews.step),
            get("/suites", reports.suites),
            get("/suites/report", reports.report),
            get("/packs", reports.packs),
            get("/packs/{sha256}", reports.pack),
            get("/pulse", reports.pulse),
            get("/statistics", reports.statistics),
            get("/health", reports.health),
        ]

    @asynccontextmanager
    async def _lifespan(self, _app: Any) -> AsyncIterator[None]:
        self._live.start()
        try:
            yield
        finally:
            await self._live.stop()
            await self._sessions.close()
            await self._parts.daemon.close()

    # ------------------------------------------------------------ what every request passes

    async def _answer(self, router: Router, scope: Scope, receive: Receive, send: Send) -> None:
        self._counters["requests"] += 1
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            self._doorway.check(scope)
            if scope["method"] == "POST" and not values_of(scope, b"origin"):
                self._counters["refused_origin"] += 1
                raise Problem(403, "cross_origin", "a form is accepted from the pages themselves only")
            scope["app"] = self  # then the router raises where no route or method matches
            await router(scope, receive, sending)
            return
        except ConnectionError:
            self._counters["clients_left"] += 1
            return
        except Problem as error:
            problem = error
        except JournalError as error:
            problem = Problem(503, "unavailable", str(error))
        except ThorPolicyError as error:
            problem = of_error(error)
        except HTTPException as error:
            problem = Problem(error.status_code, "not_found", "there is no such page")
        except Exception:
            problem = self._fault()
        if not started:
            await _problem(problem)(scope, receive, send)

    def _fault(self) -> Problem:
        self._counters["faults"] += 1
        if (unlogged := self._limit.admit(time.monotonic_ns())) is not None:
            log.exception(
                "a page failed with an unexpected error", extra=logs.fields(unlogged=unlogged or None)
            )
        return Problem(500, "internal", "the page failed; the log of `thorpolicy web` says why")

    def _page(self, endpoint: Endpoint) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """An ASGI endpoint: who visits is known. A visitor without a session goes to the log-in page."""

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            now = time.monotonic()
            session, cookie = self._sessions.of_cookie(_cookie_in(scope, self._cookie), now), None
            if session is None and not self._sessions.required and scope["method"] == "GET":
                cookie, session = await self._sessions.begin(None, now)
            try:
                if session is None:
                    self._counters["unauthenticated_missing"] += 1
                    raise Unauthenticated("missing", "log in with a token")
                principal = self._sessions.principal(session)
            except Unauthenticated as refusal:
                await self._unknown(refusal)(scope, receive, send)
                return
            session.used = now
            response = await endpoint(Visit(scope, receive, session, principal, self._parts))
            if cookie is not None:
                self._give_cookie(response, cookie)
            await response(scope, receive, send)

        return answer

    def _unknown(self, refusal: Unauthenticated) -> Response:
        message = "" if refusal.reason == "missing" else refusal.message
        response = templates.html(templates.render("login.html", problem=message), 401)
        response.headers["www-authenticate"] = 'Bearer realm="thor-policy"'
        return response

    # ------------------------------------------------------------ log in, log out

    async def _login_page(self, scope: Scope, receive: Receive, send: Send) -> None:
        await templates.html(templates.render("login.html", problem=""))(scope, receive, send)

    async def _log_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        form = await read_form(scope, receive)
        try:
            cookie, _ = await self._sessions.begin(form.get("token", "").strip(), time.monotonic())
        except Unauthenticated as refusal:
            await self._unknown(refusal)(scope, receive, send)
            return
        await self._sessions.end(_cookie_in(scope, self._cookie))
        response = go_to("/")
        self._give_cookie(response, cookie)
        await response(scope, receive, send)

    async def _log_out(self, visit: Visit) -> Response:
        await visit.form()
        await self._sessions.end(_cookie_in(visit.scope, self._cookie))
        response = go_to("/login")
        response.delete_cookie(self._cookie, path="/", secure=self._secure, httponly=True, samesite="strict")
        return response

    def _give_cookie(self, response: Response, cookie: str) -> None:
        response.set_cookie(
            self._cookie,
            cookie,
            max_age=LIFE_S,
            path="/",
            secure=self._secure,
            httponly=True,
            samesite="strict",
        )

    async def _stream(self, visit: Visit) -> Response:
        session: Session = visit.session

        def still_valid() -> None:
            now = time.monotonic()
            if self._sessions.of_cookie(_cookie_in(visit.scope, self._cookie), now) is not session:
                raise Unauthenticated("missing", "the session is over")
            self._sessions.principal(session)

        return await self._live.stream(visit, still_valid)


class _Raw:
    """An endpoint that Starlette calls as ASGI."""

    def __init__(self, answer: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(scope, receive, send)


async def _static(scope: Scope, receive: Receive, send: Send) -> None:
    name = scope["path_params"]["name"]
    if name not in _STATIC:
        raise Problem(404, "not_found", "there is no such file")
    headers = templates.HEADERS | {"cache-control": "no-cache"}
    path = templates.HERE / "static" / name
    await FileResponse(path, headers=headers, media_type=_STATIC[name])(scope, receive, send)


def _problem(problem: Problem) -> Response:
    response = templates.html(templates.render("problem.html", problem=problem), problem.status)
    for name, value in problem.headers:
        response.headers[name.decode()] = value.decode()
    return response


def _cookie_in(scope: Scope, name: str) -> str | None:
    """The value of a cookie; None if it is missing or there several times."""
    values = values_of(scope, b"cookie")
    if len(values) != 1 or len(values[0]) > 4_096:
        return None
    try:
        cookie: SimpleCookie = SimpleCookie(values[0].decode("latin-1"))
    except CookieError:
        return None
    return cookie[name].value if name in cookie else None
