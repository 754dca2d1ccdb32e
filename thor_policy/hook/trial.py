"""The installed command against every fault, as an agent runs it: a shell, standard input, an exit status.

Owns the faults, and the judgement whether an output blocks by the contract of each agent. Invariant: a run
is a child process of its own, and the daemon of a fault is a socket of this process, which answers what the
fault says. Main thread, and a thread for each such socket.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from thor_policy.hook.calls import Object
from thor_policy.hook.installation import ENTRY, Wanted, command_of

#: The events that are sent in a trial: the gate of each agent, with a harmless call.
SAMPLES: dict[str, tuple[str, Object]] = {
    "claude": ("PreToolUse", {
        "session_id": "trial", "transcript_path": "", "cwd": "/srv/project", "permission_mode": "default",
        "hook_event_name": "PreToolUse", "tool_name": "Bash", "tool_input": {"command": "ls"},
        "tool_use_id": "toolu_trial"}),
    "codex": ("PreToolUse", {
        "session_id": "trial", "transcript_path": "", "cwd": "/srv/project", "hook_event_name": "PreToolUse",
        "turn_id": "1", "model": "m", "tool_name": "Bash", "tool_input": {"command": "ls"},
        "tool_use_id": "call_trial"}),
    "gemini": ("BeforeTool", {
        "session_id": "trial", "transcript_path": "", "cwd": "/srv/project", "hook_event_name": "BeforeTool",
        "timestamp": "2026-11-29T10:00:00Z", "tool_name": "run_shell_command",
        "tool_input": {"command": "ls"}}),
    "cursor": ("beforeShellExecution", {
        "conversation_id": "trial", "generation_id": "1", "hook_event_name": "beforeShellExecution",
        "command": "ls", "cwd": "/srv/project", "workspace_roots": ["/srv/project"]}),
    "copilot": ("preToolUse", {
        "sessionId": "trial", "timestamp": 1764410400000, "cwd": "/srv/project", "toolName": "bash",
        "toolArgs": {"command": "ls"}}),
}  # fmt: skip
#: The deadline of a run where the daemon does not answer.
_SHORT_MS = 400
#: Longest wait for a run; far more than it takes.
_WAIT_S = 60.0
_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06ROUTER"


class Ran(NamedTuple):
    """What a run printed, and its exit status."""

    stdout: str
    stderr: str
    status: int


class Tried(NamedTuple):
    """A fault that was tried on an agent, and whether the call was blocked."""

    agent: str
    fault: str
    blocked: bool
    ran: Ran


def blocks(agent: str, ran: Ran) -> bool:
    """True if the agent blocks the call by what it gets, without any switch of its settings file."""
    try:
        printed = json.loads(ran.stdout) if ran.stdout.strip() else {}
    except ValueError:
        printed = {}
    if not isinstance(printed, dict):
        printed = {}
    if agent in ("claude", "codex"):
        inner = printed.get("hookSpecificOutput", {})
        denies = isinstance(inner, dict) and inner.get("permissionDecision") == "deny"
    elif agent == "gemini":
        denies = printed.get("decision") in ("deny", "block")
    elif agent == "cursor":
        denies = printed.get("permission") == "deny"
    else:
        denies = printed.get("permissionDecision") == "deny"
    if ran.status == 0:
        return denies
    # Gemini CLI reads the text first: without any, status 2 lets the tool run.
    return ran.status == 2 and (agent != "gemini" or bool(ran.stdout.strip() or ran.stderr.strip()))


def run(command: str, data: bytes, *, limit: Callable[[], None] | None = None, then: int = 0) -> Ran:
    """Run a command as an agent does; `then` is a signal that the program gets as soon as it waits for a
    reply.
    """
    with subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=limit,
    ) as process:
        if then:
            _signal_child(process, data, then)
            data = b""  # it was sent
        with contextlib.suppress(BrokenPipeError):
            stdout, stderr = process.communicate(data or None, timeout=_WAIT_S)
    return Ran(stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace"), process.returncode)


def _signal_child(process: subprocess.Popen[bytes], data: bytes, number: int) -> None:
    """Send the event, wait until the program has connected, and send it a signal."""
    assert process.stdin is not None  # noqa: S101  it was opened as a pipe
    process.stdin.write(data)
    process.stdin.close()
    process.stdin = None
    if not _Peer.connected.wait(_WAIT_S):
        raise TimeoutError(f"the hook did not connect within {_WAIT_S} s")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
    os.kill(int(children[0]), number)


class _Peer:
    """A socket that answers as a fault says: nothing, a handshake alone, garbage, an error of the daemon."""

    #: Set when a client sent its greeting to any peer.
    connected = threading.Event()

    def __init__(self, path: Path, reply: bytes | None, *, greets: bool) -> None:
        self._reply, self._greets = reply, greets
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for opened in self._open:
            opened.close()

    def _serve(self) -> None:
        while True:
            try:
                opened, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(opened)
            with contextlib.suppress(OSError):
                opened.settimeout(_WAIT_S)
                opened.recv(64, socket.MSG_WAITALL)
                _Peer.connected.set()
                if self._greets:
                    self._answer(opened)

    def _answer(self, opened: socket.socket) -> None:
        opened.sendall(_GREETING + bytes([4, len(_READY)]) + _READY)
        head = opened.recv(2, socket.MSG_WAITALL)
        opened.recv(head[1], socket.MSG_WAITALL)
        head = opened.recv(9, socket.MSG_WAITALL)
        request = json.loads(opened.recv(int.from_bytes(head[1:], "big"), socket.MSG_WAITALL))
        if self._reply is not None:
            reply = self._reply.replace(b"@ID@", json.dumps(request["id"]).encode())
            opened.sendall(b"\2" + len(reply).to_bytes(8, "big") + reply)


@contextlib.contextmanager
def peer(folder: Path, reply: bytes | None = None, *, greets: bool = True) -> Iterator[str]:
    """The endpoint of a socket that answers every request with `reply`, or not at all."""
    path = folder / "peer.sock"
    _Peer.connected.clear()
    opened = _Peer(path, reply, greets=greets)
    try:
        yield f"ipc://{path}"
    finally:
        opened.close()
        path.unlink()


# ---------------------------------------------------------------- the faults


class Trial:
    """The faults of the matrix, for an agent; `folder` is short enough for a socket."""

    def __init__(self, agent: str, folder: Path) -> None:
        self.agent, self._folder = agent, folder
        self.event, self._sample = SAMPLES[agent]
        self.data = json.dumps(self._sample).encode()

    def command(self, endpoint: str, deadline_ms: int = 8_000, program: Path = ENTRY) -> str:
        """The command that install writes for this agent."""
        wanted = Wanted(endpoint=endpoint, deadline_ms=deadline_ms, state=str(self._folder / "state"))
        return command_of(self.agent, self.event, wanted, "", program=program)

    def no_daemon(self) -> Ran:
        return run(self.command(f"ipc://{self._folder}/nobody.sock"), self.data)

    def daemon_hung(self) -> Ran:
        with peer(self._folder, greets=False) as endpoint:
            return run(self.command(endpoint, _SHORT_MS), self.data)

    def deadline(self) -> Ran:
        with peer(self._folder) as endpoint:
            return run(self.command(endpoint, _SHORT_MS), self.data)

    def killed(self) -> Ran:
        with peer(self._folder) as endpoint:
            return run(self.command(endpoint), self.data, then=signal.SIGKILL)

    def terminated(self) -> Ran:
        with peer(self._folder) as endpoint:
            return run(self.command(endpoint), self.data, then=signal.SIGTERM)

    def garbage_reply(self) -> Ran:
        with peer(self._folder, b'{"v":1,"id":@ID@,"decision":"true","context":[]}') as endpoint:
            return run(self.command(endpoint), self.data)

    def disk_full(self) -> Ran:
        error = b'{"v":1,"id":@ID@,"error":{"code":"disk_full","message":"the disk is full"}}'
        with peer(self._folder, error) as endpoint:
            return run(self.command(endpoint), self.data)

    def own_disk_full(self) -> Ran:
        """The decision allows, and the hook cannot keep its id: no file may grow."""
        allow = b'{"v":1,"id":@ID@,"decision":true,"context":{"decision_id":"d","outcome":"allow"}}'

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

        with peer(self._folder, allow) as endpoint:
            return run(self.command(endpoint), self.data, limit=limit)

    def bad_config(self) -> Ran:
        return run(self.command("tcp://127.0.0.1:1"), self.data)

    def missing_program(self) -> Ran:
        return run(
            self.command("ipc:///nobody.sock", program=self._folder / "gone" / "hook" / "entry.py"), self.data
        )

    def not_json(self) -> Ran:
        return run(self.command("ipc:///nobody.sock"), b'{"session_id": ')

    def not_utf8(self) -> Ran:
        return run(self.command("ipc:///nobody.sock"), self.data.replace(b'"ls"', b'"\xff\xfe"'))

    def member_twice(self) -> Ran:
        return run(self.command("ipc:///nobody.sock"), self.data[:-1] + b', "cwd": "/"}')

    def members_missing(self) -> Ran:
        return run(self.command("ipc:///nobody.sock"), b"{}")

    def unknown_event(self) -> Ran:
        name = json.dumps(self.event).encode()
        command = self.command("ipc:///nobody.sock").replace(
            f"--event {self.event}", "--event beforeAnything"
        )
        return run(command, self.data.replace(name, b'"beforeAnything"'))

    def giant(self) -> Ran:
        return run(
            self.command("ipc:///nobody.sock"), self.data.replace(b'"ls"', b'"' + b"x" * 9_000_000 + b'"')
        )


#: The eight faults of the matrix, and after them what else is tried.
MATRIX = (
    "no_daemon", "daemon_hung", "killed", "deadline", "garbage_reply", "disk_full", "bad_config",
    "missing_program",
)  # fmt: skip
FURTHER = (
    "terminated", "own_disk_full", "not_json", "not_utf8", "member_twice", "members_missing", "unknown_event",
    "giant",
)  # fmt: skip


def try_all(agent: str, faults: tuple[str, ...] = MATRIX + FURTHER) -> Iterator[Tried]:
    """Try these faults on an agent, one after the other."""
    with tempfile.TemporaryDirectory(prefix="tp-") as folder:
        trial = Trial(agent, Path(folder))
        for fault in faults:
            ran: Ran = getattr(trial, fault)()
            yield Tried(agent, fault, blocks(agent, ran), ran)
