"""What became of the calls that passed, recorded as outcomes of their decisions.

Owns the status and the note of an outcome, the queue before the daemon, and the count of losses. Invariant:
nothing waits for it. What the queue cannot take, or the daemon does not record, is lost and counted. Any
thread may offer; the thread `outcomes` alone uses the client.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal, NamedTuple, TypeAlias

from thor_policy.client.blocking import Client
from thor_policy.core import records
from thor_policy.core.errors import ThorPolicyError
from thor_policy.core.requests import Json
from thor_policy.hook.calls import MAX_OUTPUT_CHARS, printable
from thor_policy.mcp.messages import Response

#: What is recorded: the status and the beginning of the tool's text, the status alone, or nothing.
Recorded: TypeAlias = Literal["text", "status", "none"]
#: Outcomes that wait for the daemon.
MAX_WAITING = 1_024
#: Parts of a result whose text is looked at.
_MAX_PARTS = 64


class Ended(NamedTuple):
    """How a call ended: its status, what the tool printed, and what the proxy says of it otherwise."""

    status: records.Status
    text: str = ""
    why: str = ""

    def note(self, recorded: Recorded) -> str:
        """The note of the outcome: bounded, on one line, with what the tool printed in quotes."""
        if self.why:
            return self.why
        if recorded != "text":
            return "the tool answered"
        quoted = printable(self.text, MAX_OUTPUT_CHARS)
        return f'the tool printed "{quoted}"' if quoted else "the tool printed nothing"


def ended(response: Response) -> Ended:
    """How a call ended by the server's response to it.

    A result that is a task, or asks for more input, is none yet: the status is PENDING.
    """
    if response.is_error:
        return Ended("FAILURE", response.error_text)
    result = response.result if isinstance(response.result, dict) else {}
    kind = result.get("resultType", "complete")
    if isinstance(result.get("task"), dict) or kind != "complete":
        return Ended("PENDING", why="the server answered with no result yet")
    return Ended("FAILURE" if result.get("isError") is True else "SUCCESS", _text_of(result))


def _text_of(result: dict[str, Json]) -> str:
    """The beginning of the texts in a result; no more of them than a note can hold is joined."""
    content = result.get("content")
    texts: list[str] = []
    for part in content[:_MAX_PARTS] if isinstance(content, list) else ():
        text = part.get("text") if isinstance(part, dict) else None
        if isinstance(text, str):
            texts.append(text[: MAX_OUTPUT_CHARS + 1])
    return "\n".join(texts)[: MAX_OUTPUT_CHARS + 1]


class Recorder:
    """Records outcomes on a thread of its own. `open_client` is called there; the client is closed there.

    `recorded` and `lost` count outcomes; each decision that a call rests on gets one.
    """

    def __init__(self, open_client: Callable[[], Client], what: Recorded = "text") -> None:
        self._open_client, self._what = open_client, what
        self._waiting: queue.Queue[records.Outcome | None] = queue.Queue(MAX_WAITING)
        self._lock = threading.Lock()
        self._is_closed = False
        self._offered = 0
        self.recorded = 0
        self.lost = 0
        self._thread = threading.Thread(target=self._run, name="outcomes", daemon=True)
        if what != "none":
            self._thread.start()

    def offer(self, decisions: Sequence[str], end: Ended) -> None:
        """Take the outcome of a call that these decisions allowed. Any thread; never waits."""
        if self._what == "none":
            return
        note = end.note(self._what)
        for decision_id in decisions:
            self._count(offered=1)
            outcome = records.Outcome(decision_id=decision_id, status=end.status, note=note)
            try:
                self._waiting.put_nowait(outcome)
            except queue.Full:
                self._count(lost=1)

    def close(self, timeout_s: float) -> None:
        """Record what waits, for at most so many seconds; the rest is lost and counted."""
        if self._what == "none":
            return
        until = time.monotonic() + timeout_s
        with suppress(queue.Full):
            self._waiting.put(None, timeout=timeout_s)
            self._thread.join(max(0.0, until - time.monotonic()))
        with self._lock:
            self._is_closed = True
            self.lost = self._offered - self.recorded

    def _run(self) -> None:
        client: Client | None = None
        try:
            while (outcome := self._waiting.get()) is not None and not self._is_closed:
                try:
                    client = client or self._open_client()
                    client.record(outcome, idempotency_key=f"mcp-outcome-{outcome.decision_id}")
                except (ThorPolicyError, OSError):
                    self._count(lost=1)
                else:
                    self._count(recorded=1)
        finally:
            if client is not None:
                client.close()

    def _count(self, *, offered: int = 0, recorded: int = 0, lost: int = 0) -> None:
        with self._lock:
            if not self._is_closed:
                self._offered += offered
                self.recorded += recorded
                self.lost += lost
