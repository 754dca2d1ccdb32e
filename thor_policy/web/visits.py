"""One request of somebody who is known: its fields, its form, and what it may do.

Owns how a page asks the daemon and reads the journal. Invariant: nothing is read from the journal before the
daemon granted one of the roles that may read it, nothing is sent on for anybody but the session's principal,
and a form that changes anything carries the token of its own session. The event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qsl

from starlette.responses import RedirectResponse, Response

from thor_policy.core import records
from thor_policy.core.errors import JournalError, RequestError
from thor_policy.core.requests import Json, Role
from thor_policy.core.status import Status
from thor_policy.gateway.auth import Principal
from thor_policy.gateway.daemon import Daemon
from thor_policy.gateway.limits import Receive, Scope, check_type, read_body
from thor_policy.gateway.problems import Problem
from thor_policy.journal.reader import Reader
from thor_policy.protocol.replies import decode_status
from thor_policy.web import templates
from thor_policy.web.sessions import Session, is_its_form

T = TypeVar("T")

#: Whoever has one of these roles may read decisions, as with the terminal's commands.
READERS: tuple[Role, ...] = ("review", "control")
#: Bytes of a form, fields of a form or a query, and characters of a field.
MAX_FORM, MAX_FIELDS, MAX_FIELD = 64 << 10, 40, 8_192
#: Pages that read the journal at the same time.
_READING = 4


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the pages read: the journal, saved runs, suites; `reviewer` is the name of who has no token."""

    journal: Path
    events_endpoint: str
    results: Path
    scenarios: Path
    reviewer: str


class Parts:
    """What all pages share."""

    def __init__(self, daemon: Daemon, places: Places, counters: Counter[str]) -> None:
        self.daemon = daemon
        self.places = places
        self.counters = counters
        self._reading = asyncio.Semaphore(_READING)

    async def read(self, reading: Callable[[Reader], T]) -> T:
        """The result of reading the journal, on another thread. Raises JournalError."""

        def read() -> T:
            with self.open_reader() as reader:
                return reading(reader)

        async with self._reading:
            return await asyncio.to_thread(read)

    def open_reader(self, *, any_thread: bool = False) -> Reader:
        """A reader of the journal, which cannot write. Raises JournalError."""
        reader = Reader(self.places.journal, any_thread=any_thread)
        if not reader.is_current():
            reader.close()
            raise JournalError(
                f"{self.places.journal} is of an earlier version; start the daemon, which migrates it"
            )
        return reader


class Visit:
    """A request, and the session and principal that it is of."""

    def __init__(
        self, scope: Scope, receive: Receive, session: Session, principal: Principal, parts: Parts
    ) -> None:
        self.scope, self._receive = scope, receive
        self.session, self.principal, self.parts = session, principal, parts
        self.path: dict[str, str] = scope.get("path_params", {})
        self.query = _fields(scope["query_string"])

    @property
    def reviewer(self) -> str:
        """The name that reviews of this visitor have."""
        name = self.principal.name
        return self.parts.places.reviewer if name is None else name.partition(":")[2]

    def may(self, *roles: Role) -> bool:
        """Whether the visitor has one of these roles, by its token."""
        return any(self.principal.may(role) for role in roles)

    async def need(self, *roles: Role) -> None:
        """Refuse a visitor to whom the daemon grants none of these roles. Raises Problem."""
        wanted = tuple(role for role in roles if self.principal.may(role))
        if not wanted:
            self.parts.counters["refused_role"] += 1
            raise Problem(403, "unauthorized", f"this page needs the role {' or '.join(roles)}")
        if self.principal.name is not None:  # of any role that is granted, `status` is answered
            await self.parts.daemon.call(Principal(name=self.principal.name, roles=wanted), "status")

    async def read(self, reading: Callable[[Reader], T]) -> T:
        """The result of reading the journal, for a visitor who may. Raises Problem, JournalError."""
        await self.need(*READERS)
        return await self.parts.read(reading)

    async def call(self, op: str, **fields: Json) -> dict[str, Json]:
        """The daemon's reply to a request of this visitor. Raises Problem."""
        return await self.parts.daemon.call(self.principal, op, **fields)

    async def record(self, record: object) -> dict[str, Json]:
        """Send a record of this visitor. Raises RequestError, Unreachable."""
        op = records.OP_OF[type(record)]
        return await self.parts.daemon.call_or_error(self.principal, op, record=record)

    async def status(self) -> Status:
        """The daemon's status. Raises Problem."""
        reply = await self.call("status")
        try:
            return decode_status(reply)
        except RequestError as error:
            raise Problem(503, error.code, error.message) from error

    async def form(self) -> dict[str, str]:
        """The fields of a form of this session. Raises Problem."""
        form = await read_form(self.scope, self._receive)
        if not is_its_form(self.session, form.pop("csrf", "")):
            self.parts.counters["refused_csrf"] += 1
            raise Problem(403, "bad_form", "the form is not of this session; go back and load the page again")
        return form

    def page(self, template: str, *, status: int = 200, **values: object) -> Response:
        """A page for this visitor."""
        return templates.html(templates.render(template, visit=self, **values), status)


def go_to(path: str) -> Response:
    """The reply to a form that was accepted: what to load next."""
    return RedirectResponse(path, 303, templates.HEADERS)


async def read_form(scope: Scope, receive: Receive) -> dict[str, str]:
    """The fields of a form in a request's body. Raises Problem, ConnectionError if the client left."""
    check_type(scope, "application/x-www-form-urlencoded")
    return _fields(await read_body(scope, receive, MAX_FORM))


def _fields(text: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            text.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="replace"
        )
    except ValueError as error:
        raise Problem(400, "bad_request", f"at most {MAX_FIELDS} fields, in ASCII and escapes") from error
    if any(len(value) > MAX_FIELD for pair in pairs for value in pair):
        raise Problem(413, "too_large", f"a field has more than {MAX_FIELD} characters")
    return dict(pairs)
