"""Time decisions that an approval lifts beside equal decisions that need none, in pairs, on a real daemon.

Owns the command of scripts/approvals-cost, the daemon and the approvers that it starts, and their folder. A
daemon with the stub engine gets requests, which two processes of other users approve. Then it decides pairs:
a question with its approval, which is used by it, and a question that a rule allows. With `--after-restart`
another daemon decides the pairs, so that it must read each task from the journal. Invariant: both of a pair
are allowed and committed before their reply, the order in a pair is drawn, and nothing else runs meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from thor_policy.client.blocking import Client
from thor_policy.core import records
from thor_policy.core.requests import Json

#: The goal for the median of the differences, in milliseconds.
GOAL_MS = 0.3
#: Pairs before those that count, and pairs whose approvals are given at a time.
WARM_UP, AT_A_TIME = 50, 100
#: The approvers: users, names and roles.
PERSONS = ((61003, "kim", "manager"), (61004, "lee", "security"))
PACK = """\
name: deploys
version: "1"
description: Deploys to production need two people.
model: never
default: deny
outcomes:
  - label: allow
  - label: require_attestation
    lifted_by: {steps: [{role: manager}, {role: security}], holds_s: 86400}
  - label: deny
"""
RULES = """\
- {id: deploy, when: 'action.name == "deploy" && context.change != ""', outcome: require_attestation,
   because: Two people look.}
- {id: read, when: 'action.name == "read" && context.change != ""', outcome: allow, final: true,
   because: Free.}
"""
SERVE = """
import sys
from pathlib import Path
from thor_policy.config import Config
from thor_policy.daemon.service import open_service
from thor_policy.testing import load_stub_engine
state_dir, endpoint, pack, synchronous, *people = sys.argv[1:]
config = Config(
    state_dir=Path(state_dir), endpoint=endpoint, pack=pack, synchronous=synchronous, people=tuple(people),
    socket_mode=0o666, roles=("local=approve",), cache_size=0,
)
with open_service(config, load_engine=load_stub_engine) as server:
    server.run(ready=lambda: print("ready", flush=True))
"""
#: Becomes another user, and approves each task whose id it reads.
APPROVE = """
import json, os, sys, zmq
endpoint, uid = sys.argv[1:]
os.setgroups([]); os.setgid(int(uid)); os.setuid(int(uid))
for line in sys.stdin:
    with zmq.Context() as context, context.socket(zmq.REQ) as opened:
        opened.set(zmq.LINGER, 0)
        opened.connect(endpoint)
        for task in json.loads(line):
            opened.send(json.dumps({"v": 1, "id": "a", "op": "approve", "record": {"task": task}}).encode())
            reply = json.loads(opened.recv())
            assert "error" not in reply, reply
    print("done", flush=True)
"""


@contextmanager
def process(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that is killed at the end of the block."""
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


def wait_for(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    if not process.stdout.readline():
        sys.exit("approvals-cost: a process ended before it was ready")


def question(action: str, number: int) -> dict[str, Json]:
    return {
        "subject": {"type": "user", "id": "zoe"},
        "action": {"name": action},
        "resource": {"type": "service", "id": "billing"},
        "context": {"change": f"CHG-{number}"},
    }


def approved(client: Client, approvers: list[subprocess.Popen[str]], numbers: range) -> list[str]:
    """The ids of approved tasks, one for each of the questions of these numbers."""
    tasks = []
    for number in numbers:
        denied = client.evaluate(question("deploy", number))["context"]["decision_id"]
        tasks.append(client.request_approval(records.ApprovalRequest(decision_id=denied))["id"])
    for approver in approvers:
        assert approver.stdin is not None
        print(json.dumps(tasks), file=approver.stdin, flush=True)
        wait_for(approver)
    return tasks


@dataclass
class Pair:
    """What two decisions took, in milliseconds."""

    lifted: float
    plain: float


def time_pairs(client: Client, tasks: dict[int, str], draw: random.Random) -> list[Pair]:
    pairs = []
    for number, task in tasks.items():
        lifted, plain = question("deploy", number), question("read", number)
        lifted["context"]["approval"] = plain["context"]["note"] = {"id": task}
        took = {}
        for name in draw.sample(["lifted", "plain"], 2):
            begun_ns = time.perf_counter_ns()
            reply = client.evaluate(lifted if name == "lifted" else plain)
            took[name] = (time.perf_counter_ns() - begun_ns) / 1e6
            assert reply["decision"] is True, reply
            assert ("approval" in reply["context"]) is (name == "lifted")
        pairs.append(Pair(**took))
    return pairs


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": round(median, 4), "q1": round(low, 4), "q3": round(high, 4)}


def run(folder: Path, options: argparse.Namespace) -> list[Pair]:
    """Time all pairs, a part of them at a time."""
    folder.chmod(0o755)
    pack = folder / "deploys"
    pack.mkdir()
    (pack / "pack.yaml").write_text(PACK)
    (pack / "rules.yaml").write_text(RULES)
    endpoint = f"ipc://{folder}/policy.sock"
    people = [f"uid:{uid}={name};{role}" for uid, name, role in PERSONS]
    serve = (SERVE, str(folder / "state"), endpoint, str(pack), options.synchronous, *people)
    draw, pairs, total = random.Random(options.seed), list[Pair](), options.pairs + WARM_UP
    with ExitStack() as stack:
        approvers = [stack.enter_context(process(APPROVE, endpoint, str(uid))) for uid, _, _ in PERSONS]
        tasks: dict[int, str] = {}
        while len(pairs) < total:
            with process(*serve) as daemon, Client(endpoint) as client:
                wait_for(daemon)
                if tasks:
                    pairs += time_pairs(client, tasks, draw)
                    tasks = {}
                while len(pairs) < total and not tasks:
                    numbers = range(len(pairs), min(total, len(pairs) + AT_A_TIME))
                    tasks = dict(zip(numbers, approved(client, approvers, numbers), strict=True))
                    if not options.after_restart:
                        pairs += time_pairs(client, tasks, draw)
                        tasks = {}
    return pairs


def main(arguments: list[str] | None = None) -> int:
    """Time the pairs; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="approvals-cost",
        description="Time decisions that an approval lifts beside equal decisions that need none. Status 0: "
        f"the median of the differences is at most {GOAL_MS} ms.",
    )
    parser.add_argument("--pairs", type=int, default=1_000, help="default: %(default)s")
    parser.add_argument(
        "--synchronous", choices=["FULL", "NORMAL"], default="FULL", help="default: %(default)s"
    )
    parser.add_argument(
        "--after-restart", action="store_true", help="decide by a daemon that reads each task"
    )
    parser.add_argument("--seed", type=int, default=1, help="random seed of the order; default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(arguments)
    if options.pairs < 2:
        parser.error("--pairs must be at least 2")
    if os.geteuid() != 0:
        sys.exit("approvals-cost: the approvers are other users, which only root can become; use sudo")
    with tempfile.TemporaryDirectory(prefix="tp-cost-") as name:
        pairs = run(Path(name), options)[WARM_UP:]
    more = spread([pair.lifted - pair.plain for pair in pairs])
    figures = {
        "pairs": len(pairs),
        "synchronous": options.synchronous,
        "after_restart": options.after_restart,
        "with_approval_ms": spread([pair.lifted for pair in pairs]),
        "without_ms": spread([pair.plain for pair in pairs]),
        "difference_ms": more,
        "goal_ms": GOAL_MS,
    }
    if options.json:
        print(json.dumps(figures))
    else:
        for key, value in figures.items():
            print(f"{key.replace('_', ' '):<18}{value}")
    return 0 if more["median"] <= GOAL_MS else 1


if __name__ == "__main__":
    sys.exit(main())
