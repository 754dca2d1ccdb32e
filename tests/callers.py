"""Clients of other users: processes that become another uid, as the kernel then reports it to the daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from thor_policy.core.errors import RequestError
from thor_policy.core.requests import Json

#: For tests in which a process, a file or a folder is that of another user.
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")

#: Becomes another user, sends each line of its input as a request, and prints the replies.
_CLIENT = """
import os, sys, zmq
endpoint, uid = sys.argv[1:]
os.setgroups([])
os.setgid(int(uid))
os.setuid(int(uid))
with zmq.Context() as context, context.socket(zmq.REQ) as opened:
    opened.set(zmq.LINGER, 0)
    opened.set(zmq.RCVTIMEO, 20_000)
    opened.connect(endpoint)
    for line in sys.stdin.buffer:
        opened.send(line.rstrip(b"\\n"))
        print(opened.recv().decode(), flush=True)
"""


class OtherCaller:
    """A client with the kernel's identity of another user."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def send(self, op: str, **members: Json) -> dict[str, Json]:
        """The reply to a request. Raises RequestError if it is an error reply."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        frame = json.dumps({"v": 1, "id": "c", "op": op} | members)
        self._process.stdin.write(f"{frame}\n".encode())
        self._process.stdin.flush()
        reply: dict[str, Any] = json.loads(self._process.stdout.readline())
        if error := reply.get("error"):
            raise RequestError(error["code"], error["message"], reason_code=error.get("reason_code"))
        return reply

    def ask(self, question: Json) -> dict[str, Json]:
        return self.send("evaluate", request=question)

    def request(self, decision_id: str, **members: Json) -> dict[str, Json]:
        record = {"decision_id": decision_id} | members
        task: dict[str, Json] = self.send("request_approval", record=record)["recorded"]["task"]
        return task

    def change(self, op: str, task: str, **members: Json) -> dict[str, Json]:
        changed: dict[str, Json] = self.send(op, record={"task": task} | members)["recorded"]["task"]
        return changed


def replies_to(endpoint: str, uid: int, *frames: bytes) -> list[dict[str, Json]]:
    """The replies to frames that a process of the user `uid` sends. Only root can start one."""
    done = subprocess.run(
        [sys.executable, "-c", _CLIENT, endpoint, str(uid)],
        input=b"\n".join(frames),
        capture_output=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@contextmanager
def other_caller(endpoint: str, uid: int) -> Iterator[OtherCaller]:
    """A client of the user `uid`. Only root can have one."""
    command = [sys.executable, "-c", _CLIENT, endpoint, str(uid)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield OtherCaller(process)
        finally:
            process.kill()
