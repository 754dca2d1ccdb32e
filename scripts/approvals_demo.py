"""Show an approval from the denial to the allowed action, with the pack deploy-approval.

Owns the command of scripts/approvals-demo, after its set-up, and the daemon that it asks. As root the two
people who approve are other users of this machine: each verdict is sent by a process that became that user,
so the kernel says who it is. Otherwise they hold CURVE keys and connect over tcp on loopback.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from thor_policy.cli import render
from thor_policy.client.blocking import Client
from thor_policy.core import records
from thor_policy.core.errors import ThorPolicyError
from thor_policy.core.requests import Json
from thor_policy.journal.verification.verify import verify
from thor_policy.security.curve_keys import Keys

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"
PACK = EXAMPLES / "deploy-approval"
QUESTION: dict[str, Json] = json.loads(
    (EXAMPLES / "deploy-approval-question.json").read_text(encoding="utf-8")
)
#: Who approves, in this order: name, role in the pack, and a uid, which needs no account.
APPROVERS = (("kim", "manager", 61002), ("lee", "security", 61003))
#: Longest time until the daemon answers, in seconds.
START_S = 60

_THORPOLICY = (sys.executable, "-c", "from thor_policy.cli.main import main; main()")
#: Becomes another user and approves a task; the arguments are endpoint, uid and task.
_APPROVE_AS = """
import os, sys, zmq.backend
from thor_policy.client.blocking import Client
from thor_policy.core.records import Approve
endpoint, uid, task = sys.argv[1:]
os.setgroups([])
os.setgid(int(uid))
os.setuid(int(uid))
with Client(endpoint) as client:
    print(client.change_approval(Approve(task=task))["status"])
"""


class Approvers:
    """The two people who approve: users of this machine, or holders of keys. `settings` name them."""

    def __init__(self, state_dir: Path, endpoint: str, *, with_keys: bool) -> None:
        self._endpoint = endpoint
        self._files: dict[str, Path] = {}
        if with_keys:
            keys = Keys(state_dir / "keys")
            self._files = {name: keys.new(name, ("approve",), time.time()) for name, _, _ in APPROVERS}
            self._tcp = f"tcp://127.0.0.1:{_free_port()}"
            people = [f"key:{name}={name};{role}" for name, role, _ in APPROVERS]
            self.settings: dict[str, Json] = {"people": people, "tcp_endpoint": self._tcp}
        else:
            people = [f"uid:{uid}={name};{role}" for name, role, uid in APPROVERS]
            roles = ["local=ask", *(f"uid:{uid}=approve" for _, _, uid in APPROVERS)]
            self.settings = {"people": people, "roles": roles, "socket_mode": 0o666}

    def approve(self, name: str, uid: int, task: str) -> tuple[str, str]:
        """Approve a task as one of them; returns who the daemon sees, and the status of the task then."""
        if name in self._files:
            with Client(self._tcp, key=self._files[name]) as client:
                return f"key:{name}", client.change_approval(records.Approve(task=task))["status"]
        command = [sys.executable, "-c", _APPROVE_AS, self._endpoint, str(uid), task]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"approvals-demo: uid {uid} could not approve: {done.stderr}")
        return f"uid:{uid}", done.stdout.strip()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(*, with_keys: bool) -> int:
    """Run the demonstration; returns the exit status."""
    with tempfile.TemporaryDirectory(prefix="thor-policy-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # other users reach the socket
        state_dir, endpoint = folder / "state", f"ipc://{folder}/policy.sock"
        approvers = Approvers(state_dir, endpoint, with_keys=with_keys)
        settings = approvers.settings | {"state_dir": str(state_dir), "endpoint": endpoint, "pack": str(PACK)}
        config = folder / "settings.toml"
        config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
        render.line("== starting a daemon with the pack deploy-approval")
        with (folder / "log").open("wb") as log:
            daemon = subprocess.Popen([*_THORPOLICY, "serve", "--config", str(config)], stderr=log)
        try:
            with Client(endpoint) as client:
                _wait_until_ready(client, daemon, folder / "log")
                denied, allowed = _run(client, approvers)
        finally:
            daemon.send_signal(signal.SIGTERM)
            status = daemon.wait(timeout=30)
        for title, decision_id in (("denied", denied), ("allowed", allowed)):
            render.line("")
            render.line(f"== thorpolicy trace {decision_id}   (the {title} decision)")
            trace = [*_THORPOLICY, "trace", decision_id, "--config", str(config)]
            sys.stdout.flush()
            status = status or subprocess.run(trace, check=False).returncode
        verdict = verify(state_dir / "policy_decisions.db")
        render.line("")
        render.line(f"== stopped with status {status}; {verdict.events} events verified: {verdict.ok}")
        return 0 if status == 0 and verdict.ok else 1


def _run(client: Client, approvers: Approvers) -> tuple[str, str]:
    """From the denial to the allow and the next denial; returns the ids of the first two decisions."""
    denied = _ask(client, "asks")
    offer = denied["access_request"]
    steps = " or ".join(", then ".join(chain) for chain in offer["template"]["approvers"])
    render.line(f"   can be lifted by: {steps}; can be requested until {offer['expires_at']}")
    request = records.ApprovalRequest(decision_id=offer["evaluation_id"], reason="release 7.3")
    task = client.request_approval(request)
    render.line(f"== requests the approvals: task {task['id']} is {task['status']}")
    for name, role, uid in APPROVERS:
        who, status = approvers.approve(name, uid, task["id"])
        render.line(f"== {name} ({who}, {role}) approves: the task is {status}")
    (approved,) = client.approvals(records.ApprovalQuery(id=task["id"]))
    again = QUESTION | {"context": QUESTION["context"] | {"approval": approved["approval"]}}
    allowed = _ask(client, "asks again with the approval", again)
    _ask(client, "asks a third time with the same approval", again)
    return str(denied["decision_id"]), str(allowed["decision_id"])


def _ask(client: Client, how: str, question: Json = QUESTION) -> dict[str, Json]:
    reply = client.evaluate(question)
    context: dict[str, Json] = reply["context"]
    approval = context.get("approval") or {}
    reason = approval.get("reason_code") or approval.get("lifted")
    render.line(f"== {how}")
    render.line(f"   decision {json.dumps(reply['decision'])}, outcome {context['outcome']}")
    if reason is not None:
        render.line(f"   approval: {'refused' if 'reason_code' in approval else 'lifted'} {reason}")
    return context


def _wait_until_ready(client: Client, daemon: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not client.alive():
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"approvals-demo: the daemon did not start:\n{log.read_text(errors='replace')}")
        time.sleep(0.05)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="approvals-demo", description="Show an approval, end to end.")
    parser.add_argument("--keys", action="store_true", help="approve with CURVE keys, also as root")
    try:
        sys.exit(main(with_keys=parser.parse_args().keys or os.geteuid() != 0))
    except ThorPolicyError as error:
        sys.exit(f"approvals-demo: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
