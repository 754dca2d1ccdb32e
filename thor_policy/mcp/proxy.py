"""`thorpolicy mcp proxy`: a policy enforcement point before any stdio server of the Model Context Protocol.

Owns the server's process, the lines in both directions, and what is in flight. Invariant: a client's
request reaches the server only behind a decision that allows it, and in one reading; a response reaches the
client only if its request went to the server. What cannot be read is dropped and counted, and answered
where it has an id.

Three threads. The main thread reads the client, decides one message after the other, and alone writes to the
server, so that the order stays. Another reads the server and learns its tools. Both write to the client. The
third records the outcomes of calls (`outcomes`), and nothing waits for it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import subprocess
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence

from msgspec import Struct
from msgspec.structs import replace

from thor_policy.core import records, strict_json
from thor_policy.core.errors import ConfigError
from thor_policy.core.requests import Json
from thor_policy.mcp import messages, methods, outcomes
from thor_policy.mcp.gate import Gate, Passed, Peer, Refusal, claim_of
from thor_policy.mcp.lines import READ_BYTES, LineCutter, TooLong, write_all
from thor_policy.mcp.messages import (
    DENIED,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    Fault,
    Id,
    Notification,
    Request,
    Response,
)
from thor_policy.mcp.outcomes import Ended, Recorder
from thor_policy.mcp.tools import MAX_PAGES, Listing

#: Requests that wait for the server's answer.
MAX_IN_FLIGHT = 1_024
#: Seconds that the server has to end after its input is closed, and then after SIGTERM.
_END_S, _TERMINATE_S = 5.0, 2.0
#: Seconds in which outcomes that wait are recorded at the end.
_RECORD_S = 2.0


class Settings(Struct, frozen=True, kw_only=True):
    """How a proxy behaves.

    `max_line_bytes` bounds a line of either side. `list_s` are the seconds that it waits for a listing, or
    for the answer to `initialize`. `hides` leaves out of listings what a rule denies by its name alone.
    """

    max_line_bytes: int = 4 * 1024 * 1024
    list_s: float = 10.0
    hides: bool = False


class _Waiting(Struct, frozen=True):
    """A request that went to the server: its method, and the decisions that allowed it."""

    method: str
    decisions: tuple[str, ...]


class _Ended(Exception):
    """A signal asks the proxy to end."""


class Proxy:
    """Stands between a client (two file descriptors) and the server that `command` starts.

    `gate` belongs to the main thread; `open_gate` makes another one for the thread that reads the server.
    `note` gets a line for the operator, from both threads. `recorder` gets the outcome of each call, after
    the client got its answer.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        gate: Gate,
        open_gate: Callable[[], Gate],
        peer: Peer,
        settings: Settings,
        note: Callable[[str], None],
        recorder: Recorder,
        client_in: int = 0,
        client_out: int = 1,
    ) -> None:
        self._command = command
        self._gate = gate
        self._open_gate = open_gate
        self._peer = peer
        self._settings = settings
        self._note = note
        self._recorder = recorder
        self._client_in, self._client_out = client_in, client_out
        self._lock = threading.Lock()
        self._output = threading.Lock()
        self._in_flight: dict[Id, _Waiting] = {}
        self._of_server: set[Id] = set()
        self._own: dict[Id, queue.SimpleQueue[Response | None]] = {}
        self._to_server: deque[bytes] = deque()
        self._woken, self._wake = os.pipe()
        self._version: str | None = None
        self._agreed = threading.Event()
        self._listing = Listing()
        self._server_ended = False
        self._hiding_gate: Gate | None = None
        #: What became of the messages, for the last note and for tests.
        self.counts: Counter[str] = Counter()

    def run(self) -> int:
        """Serve until either side ends; 0 if the client ended, 1 if the server did. Raises ConfigError."""
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        try:
            self._process = subprocess.Popen(
                self._command, stdin=theirs_in, stdout=theirs_out, start_new_session=True
            )
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self._command[0]}: cannot be started: {error}") from error
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        reader = threading.Thread(target=self._read_server, name="server", daemon=True)
        reader.start()
        status = 0
        try:
            with _ending_by_signals():
                self._read_client()
        except _Ended:
            pass
        except BrokenPipeError:
            self._note("a side closed its pipe")
        finally:
            status = 1 if self._server_ended else 0
            self._end_server()
            reader.join(_TERMINATE_S)
            self._answer_all("the server ended before it answered", "FAILURE" if status else "PENDING")
            self._recorder.close(_RECORD_S)
            self._note(self._summary())
        return status

    # ------------------------------------------------------------ the client's side, on the main thread

    def _read_client(self) -> None:
        cutter = LineCutter(self._settings.max_line_bytes)
        while not self._server_ended:
            ready, _, _ = select.select([self._client_in, self._woken], [], [])
            if self._woken in ready:
                os.read(self._woken, READ_BYTES)
                while self._to_server:
                    self._write_server(self._to_server.popleft())
            if self._client_in in ready:
                piece = os.read(self._client_in, READ_BYTES)
                for line in cutter.lines(piece or b"\n"):
                    self._from_client(line)
                if not piece:
                    return

    def _from_client(self, line: bytes | TooLong) -> None:
        if isinstance(line, TooLong):
            limit = self._settings.max_line_bytes
            message: messages.Message = Fault(
                code=INVALID_REQUEST, message=f"the line has more than {limit} bytes"
            )
            forwarded = b""
        else:
            message, forwarded = messages.from_client(line)
        if isinstance(message, Fault):
            self._count("invalid")
            self._write_client(messages.error_line(message.id, message.code, message.message))
        elif isinstance(message, Request):
            self._request(message, forwarded)
        elif isinstance(message, Notification):
            self._notification(message, forwarded)
        elif message.id in self._of_server:
            self._of_server.discard(message.id)
            self._write_server(forwarded)
        else:
            self._count("dropped")
            self._note("a response of the client to no request of the server was dropped")

    def _request(self, request: Request, forwarded: bytes) -> None:
        answer = self._busy(request.id) or self._judged(request)
        if isinstance(answer, Refusal):
            self._count("denied" if answer.code == DENIED else "refused")
            self._write_client(messages.error_line(request.id, answer.code, answer.message, answer.data))
            return
        self._count("forwarded")
        with self._lock:
            self._in_flight[request.id] = _Waiting(request.method, answer.decisions)
        self._write_server(forwarded)

    def _busy(self, id_: Id) -> Refusal | None:
        with self._lock:
            if id_ in self._in_flight:
                return Refusal(code=INVALID_REQUEST, message="a request with this id waits for its answer")
            if len(self._in_flight) >= MAX_IN_FLIGHT:
                message = f"{MAX_IN_FLIGHT} requests wait for the server; send this one again later"
                return Refusal(code=INTERNAL_ERROR, message=message)
        return None

    def _judged(self, request: Request) -> Refusal | Passed:
        version = methods.version_of(request.params) or self._agreed_version()
        if claim := claim_of(request.params):
            self._peer = replace(self._peer, client=claim)
        if request.method == "tools/call":
            name = request.params.get("name")
            if not self._listing.is_current or not isinstance(name, str) or self._listing.get(name) is None:
                self._list_tools(request.params.get("_meta"))
        return self._gate.judge(request, version, self._peer, self._listing)

    def _agreed_version(self) -> str | None:
        """The version that the server agreed to; a client may send on before it has the answer."""
        with self._lock:
            waiting = self._in_flight.values()
            under_way = self._version is None and any(each.method == "initialize" for each in waiting)
        if under_way:
            self._agreed.wait(self._settings.list_s)
        return self._version

    def _notification(self, message: Notification, forwarded: bytes) -> None:
        if not message.method.startswith("notifications/"):
            self._count("dropped")
            self._note(f"a request without an id was dropped: {message.method!r:.80}")
            return
        if message.method == "notifications/cancelled":
            waiting = None
            with self._lock, contextlib.suppress(TypeError):
                waiting = self._in_flight.pop(message.params.get("requestId", ""), None)
            if waiting is not None:
                self._record(waiting, Ended("PENDING", why="the client cancelled the call"))
        self._write_server(forwarded)

    def _list_tools(self, meta: Json) -> None:
        """Ask the server for its tools; the other thread learns what it says. Waits at most `list_s`."""
        params: dict[str, Json] = {}
        if isinstance(meta, dict):
            kept = {name: value for name, value in meta.items() if name != "progressToken"}
            params = {"_meta": kept} if kept else {}
        until = time.monotonic() + self._settings.list_s
        for _ in range(MAX_PAGES):
            id_, answers = f"thor-policy-{uuid.uuid4()}", queue.SimpleQueue[Response | None]()
            self._own[id_] = answers
            try:
                self._write_server(messages.request_line(id_, "tools/list", params))
                response = answers.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                self._note(f"the server did not list its tools within {self._settings.list_s:g} s")
                return
            finally:
                self._own.pop(id_, None)
            if response is None or response.is_error or not isinstance(response.result, dict):
                return
            cursor = response.result.get("nextCursor")
            if not isinstance(cursor, str):
                return
            params = params | {"cursor": cursor}

    # ------------------------------------------------------------ the server's side, on its thread

    def _read_server(self) -> None:
        cutter = LineCutter(self._settings.max_line_bytes)
        try:
            while piece := os.read(self._from, READ_BYTES):
                for line in cutter.lines(piece):
                    self._from_server(line)
        except OSError as error:
            self._note(f"the client cannot be written to: {error.strerror}")
        finally:
            self._server_ended = True
            self._agreed.set()
            for answers in list(self._own.values()):
                answers.put(None)
            os.write(self._wake, b"!")

    def _from_server(self, line: bytes | TooLong) -> None:
        if isinstance(line, TooLong):
            self._count("dropped")
            self._note(
                f"a line of the server with more than {self._settings.max_line_bytes} bytes was dropped"
            )
            with self._lock:
                waiting = list(self._in_flight)
            if len(waiting) == 1:  # whose answer it was is known
                self._answer_all("the server's answer is longer than the proxy forwards", "PENDING")
            return
        message = messages.from_server(line)
        if isinstance(message, Response):
            self._response(message, line)
        elif isinstance(message, Request):
            if message.method in methods.FROM_SERVER and len(self._of_server) < MAX_IN_FLIGHT:
                self._of_server.add(message.id)
                self._write_client(line + b"\n")
                return
            self._drop(f"the server's request {message.method!r:.80} was refused")
            refusal = messages.error_line(message.id, METHOD_NOT_FOUND, "the proxy forwards no such request")
            self._to_server.append(refusal)
            os.write(self._wake, b"!")
        elif isinstance(message, Notification) and message.method.startswith("notifications/"):
            if message.method == "notifications/tools/list_changed":
                self._listing.is_current = False
            self._write_client(line + b"\n")
        else:
            self._drop(f"a line of the server was dropped: {getattr(message, 'message', 'no notification')}")

    def _response(self, response: Response, line: bytes) -> None:
        id_ = response.id
        if id_ is not None and (answers := self._own.get(id_)) is not None:
            self._learn(response)
            answers.put(response)
            return
        with self._lock:
            waiting = None if id_ is None else self._in_flight.pop(id_, None)
            method = waiting.method if waiting is not None else None
            if method == "initialize":
                result = response.result if isinstance(response.result, dict) else {}
                version = result.get("protocolVersion", "")
                self._version = None if response.is_error else str(version)
                self._agreed.set()
        if waiting is None or id_ is None:
            self._drop("a response of the server to no request was dropped")
            return
        if method == "tools/list" and not response.is_error:
            self._learn(response)
            if self._settings.hides:
                line = self._without_hidden(id_, response.result)
        self._write_client(line.rstrip(b"\n") + b"\n")
        self._record(waiting, outcomes.ended(response))

    def _learn(self, response: Response) -> None:
        if response.is_error:
            return
        for text in self._listing.learn(response.result):
            self._note(text)
        if isinstance(response.result, dict) and not isinstance(response.result.get("nextCursor"), str):
            self._listing.is_current = True

    def _without_hidden(self, id_: Id, result: Json) -> bytes:
        """The answer to tools/list without the tools that could never be called."""
        self._hiding_gate = self._hiding_gate or self._open_gate()
        tools = result.get("tools") if isinstance(result, dict) else None
        if not isinstance(tools, list):
            return messages.error_line(id_, INTERNAL_ERROR, "the answer to tools/list has no list of tools")
        version = self._version or methods.STATELESS
        shown = [
            tool
            for tool in tools
            if isinstance(tool, dict)
            and not self._hiding_gate.never_allows(str(tool.get("name")), version, self._peer, self._listing)
        ]
        self.counts["hidden"] += len(tools) - len(shown)
        try:
            return strict_json.encode({"jsonrpc": "2.0", "id": id_, "result": result | {"tools": shown}})
        except strict_json.JsonError as error:
            return messages.error_line(
                id_, INTERNAL_ERROR, f"the answer to tools/list is no strict JSON: {error}"
            )

    # ------------------------------------------------------------ both

    def _answer_all(self, reason: str, status: records.Status) -> None:
        with self._lock:
            waiting = dict(self._in_flight)
            self._in_flight.clear()
        with contextlib.suppress(OSError):
            for id_ in waiting:
                self._write_client(messages.error_line(id_, INTERNAL_ERROR, reason))
        for each in waiting.values():
            self._record(each, Ended(status, why=reason))

    def _record(self, waiting: _Waiting, end: Ended) -> None:
        """Offer the outcome of a call; other requests act on nothing."""
        if waiting.method == "tools/call":
            self._recorder.offer(waiting.decisions, end)

    def _drop(self, reason: str) -> None:
        self._count("dropped")
        self._note(reason)

    def _count(self, name: str) -> None:
        with self._lock:
            self.counts[name] += 1

    def _write_client(self, line: bytes) -> None:
        with self._output:
            write_all(self._client_out, line)

    def _write_server(self, line: bytes) -> None:
        write_all(self._to, line)

    def _end_server(self) -> None:
        """Close the server's input and wait; then SIGTERM, then SIGKILL, to all of its processes."""
        process = self._process
        os.close(self._to)
        for seconds, sent in ((_END_S, signal.SIGTERM), (_TERMINATE_S, signal.SIGKILL)):
            try:
                process.wait(0.0 if self._server_ended and sent is signal.SIGTERM else seconds)
                break
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, sent)
        process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # what it started and left behind

    def _summary(self) -> str:
        names = ("forwarded", "denied", "refused", "invalid", "dropped", "hidden")
        counts = ", ".join(f"{self.counts[name]} {name}" for name in names if self.counts[name])
        recorded, lost = self._recorder.recorded, self._recorder.lost
        kept = (
            f"; outcomes: {recorded} recorded" + (f", {lost} lost" if lost else "")
            if recorded or lost
            else ""
        )
        return f"ended: {counts or 'no request'}{kept}; tools {self._listing.sha256[:12]}"


@contextlib.contextmanager
def _ending_by_signals() -> Iterator[None]:
    def end(_number: int, _frame: object) -> None:
        raise _Ended

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
