"""Decisions as they are recorded, sent to pages that are open.

Owns the thread that waits for the daemon's events, and the stream of one page. Invariant: an event only wakes
the streams; what they send is read from the journal by `seq`, so nothing is lost or sent twice, whatever
became of the event, and a page that comes back names the last `seq` that it has. The event loop's thread, and
a thread that waits.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial

from starlette.responses import Response, StreamingResponse

from thor_policy.client.events import Events
from thor_policy.core.errors import ThorPolicyError
from thor_policy.gateway.auth import Unauthenticated
from thor_policy.gateway.limits import values_of
from thor_policy.gateway.problems import Problem
from thor_policy.journal.reader import Reader, Record
from thor_policy.web import templates
from thor_policy.web.visits import READERS, Visit

#: Seconds after which the streams look for new decisions without an event.
WAIT_S = 0.5
#: Decisions that one look reads, wakes between two signs of life, and streams at once: of all, of a session.
_PAGE, _QUIET, _MOST, _MOST_OF_SESSION = 50, 30, 64, 6


class Live:
    """Wakes the streams whenever the daemon published a decision. `closing` says that the process ends."""

    def __init__(self, events_endpoint: str, closing: Callable[[], bool]) -> None:
        self._endpoint = events_endpoint
        self._closing = closing
        self._stop = threading.Event()
        self._turn = asyncio.Event()
        self._thread: threading.Thread | None = None
        self._streams = 0

    def start(self) -> None:
        """Begin to wait for events. On the event loop's thread."""
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._watch, args=(loop,), name="events", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        with Events(self._endpoint, "decision") as events:
            while not self._stop.is_set():
                events.wait(WAIT_S)
                loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._turn.set()
        self._turn = asyncio.Event()

    async def stream(self, visit: Visit, still_valid: Callable[[], object]) -> Response:
        """The decisions after `seq` as server-sent events, until the page or the session is closed.

        `still_valid` raises Unauthenticated when the session's token is not valid any more.
        """
        await visit.need(*READERS)
        last = values_of(visit.scope, b"last-event-id")
        seq = _seq(last[0].decode("latin-1") if last else visit.query.get("after", ""))
        session = visit.session
        if self._streams >= _MOST or session.streams >= _MOST_OF_SESSION:
            raise Problem(503, "busy", "too many pages are open; close one")

        async def body() -> AsyncIterator[bytes]:
            nonlocal seq
            self._streams += 1
            session.streams += 1
            quiet = 0
            try:
                yield b"retry: 1000\n\n"
                while not self._closing():
                    still_valid()
                    turn = self._turn
                    rows = await visit.parts.read(partial(Reader.newer_than, seq=seq, limit=_PAGE))
                    for row in rows:
                        seq = row["seq"]
                        yield _event(row)
                    quiet = 0 if rows else quiet + 1
                    if quiet == _QUIET:
                        quiet = 0
                        yield b": \n\n"
                    if len(rows) < _PAGE:
                        await turn.wait()
            except (ThorPolicyError, Unauthenticated):
                return  # the page connects again, and gets the reason
            finally:
                self._streams -= 1
                session.streams -= 1

        return StreamingResponse(body(), headers=templates.HEADERS, media_type="text/event-stream")


def _seq(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise Problem(400, "bad_request", "after: must be a sequence number of the journal")
    return int(text)


def _event(row: Record) -> bytes:
    lines = templates.render("_row.html", row=row, new=True).split("\n")
    data = "".join(f"data: {line}\n" for line in lines if line.strip())
    return f"id: {row['seq']}\nevent: decision\n{data}\n".encode()
