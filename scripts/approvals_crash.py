"""Kill daemons while approvals are requested, given and used, and check that none is used twice or lost.

Owns the command of scripts/approvals-crash, the daemon and the clients that it starts, and their folder. The
clients are processes of other users: two services ask, request and ask again, each at two connections; two
persons approve. Each writes what the daemon acknowledged to it. Each round runs `thorpolicy serve` on the
same state directory, and ends it with SIGKILL at a random moment. Invariant: afterwards the journal holds
every acknowledged request, verdict and allow, no approval lifted two decisions, and each one that lifted a
decision had both verdicts before. The next daemon says the same.

A kill loses what the process held, and nothing that the kernel holds: this test says nothing about a loss of
power.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from thor_policy.client.blocking import Client
from thor_policy.core.errors import JournalError, RequestError, ThorPolicyError
from thor_policy.core.records import ApprovalQuery
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify

#: The users: two services, and two persons with the roles of the two steps.
SERVICES, PERSONS = (61001, 61002), {61003: "kim", 61004: "lee"}
#: The latest kill after the daemon is ready, and how long a daemon may take to start or answer, in seconds.
MOST_S, PATIENCE_S = 0.8, 60
#: Rounds between two verifications of the whole chain, and tasks that each next daemon is asked about.
VERIFY_EACH, ASKED = 20, 20

PACK = """\
name: deploys
version: "1"
description: Deploys to production need two people.
model: never
default: deny
outcomes:
  - label: allow
  - label: require_attestation
    lifted_by: {steps: [{role: manager}, {role: security}]}
  - label: deny
"""
RULES = """\
- {id: deploy, when: 'given("context.change", "") != ""', outcome: require_attestation, because: Two look.}
"""

#: A client of another user: it prints a line for each acknowledgement, and goes on over any kill.
CLIENT = """
import json, os, sys, time, zmq
endpoint, uid, part = sys.argv[1:]
os.setgroups([]); os.setgid(int(uid)); os.setuid(int(uid))
context = zmq.Context()
numbers = iter(range(10 ** 9))

class Line:
    def __init__(self):
        self.socket = context.socket(zmq.DEALER)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.RECONNECT_IVL, 5)
        self.socket.set(zmq.RECONNECT_IVL_MAX, 50)
        self.socket.connect(endpoint)

    def send(self, op, **members):
        self.id = str(next(numbers))
        self.socket.send(json.dumps({"v": 1, "id": self.id, "op": op} | members).encode())

    def reply(self):
        until = time.monotonic() + 0.5
        while (left := until - time.monotonic()) > 0 and self.socket.poll(int(left * 1000) + 1):
            reply = json.loads(self.socket.recv())
            if reply.get("id") == self.id:
                return reply
        return {"error": {"code": "silent"}}

    def call(self, op, **members):
        self.send(op, **members)
        return self.reply()

def note(*what):
    print(json.dumps(what), flush=True)

def code_of(reply):
    error = reply.get("error")
    return None if error is None else error.get("reason_code") or error["code"]

def ask(line, change, task=None):
    more = {} if task is None else {"approval": {"id": task}}
    line.send("evaluate", request={
        "subject": {"type": "user", "id": "zoe"}, "action": {"name": "deploy"},
        "resource": {"type": "service", "id": "billing"}, "context": {"change": change} | more})

one, other = Line(), Line()
waiting = {}
while True:
    if part == "service":
        change = f"{uid}-{next(numbers)}"
        ask(one, change)
        reply = one.reply()
        if code_of(reply) is None and len(waiting) < 12:
            decision = reply["context"]["decision_id"]
            reply = one.call("request_approval", record={"decision_id": decision})
            if code_of(reply) is None:
                task = reply["recorded"]["task"]["id"]
                waiting[task] = change
                note("request", task)
        for task, change in list(waiting.items()):
            ask(one, change, task)
            ask(other, change, task)
            for reply in (one.reply(), other.reply()):
                if code_of(reply) is not None:
                    note("refused", code_of(reply))
                    continue
                context = reply["context"]
                if reply["decision"]:
                    note("allow", task, context["decision_id"])
                    waiting.pop(task, None)
                else:
                    note("refused", context["approval"]["reason_code"])
                    if context["approval"]["reason_code"] != "approval_pending":
                        waiting.pop(task, None)
    else:
        reply = one.call("approvals", record={"states": ["pending", "partial"], "limit": 100})
        for task in reply.get("tasks", ()):
            if task["missing"][0][0] != part:
                continue
            reply = one.call("approve", record={"task": task["id"]})
            if code_of(reply) is None:
                note("verdict", task["id"], reply["recorded"]["id"])
            else:
                note("refused", code_of(reply))
"""
SERVE = "from thor_policy.cli.main import main; main()"


class Failure(Exception):
    """The test could not run: a daemon did not start or did not answer."""


class Clients:
    """The processes of the clients, and the ledgers of what was acknowledged to them."""

    def __init__(self, endpoint: str, stack: ExitStack) -> None:
        self.requests: set[str] = set()
        self.verdicts: dict[str, str] = {}
        self.allows: list[tuple[str, str]] = []
        self.refused: Counter[str] = Counter()
        self._lock = threading.Lock()
        parts = dict.fromkeys(SERVICES, "service") | dict(zip(PERSONS, ("manager", "security"), strict=True))
        for uid, part in parts.items():
            command = [sys.executable, "-c", CLIENT, endpoint, str(uid), part]
            client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            stack.callback(client.wait)
            stack.callback(client.kill)
            threading.Thread(target=self._read, args=(client,), daemon=True).start()

    def _read(self, client: subprocess.Popen[str]) -> None:
        assert client.stdout is not None
        for line in client.stdout:
            try:
                kind, *what = json.loads(line)
            except ValueError:  # the last line of a client that was ended
                return
            with self._lock:
                if kind == "request":
                    self.requests.add(what[0])
                elif kind == "verdict":
                    self.verdicts[what[1]] = what[0]
                elif kind == "allow":
                    self.allows.append((what[0], what[1]))
                else:
                    self.refused[what[0]] += 1

    def ledger(self) -> tuple[set[str], dict[str, str], list[tuple[str, str]]]:
        """What is acknowledged so far: requests, verdicts with their tasks, and allows."""
        with self._lock:
            return set(self.requests), dict(self.verdicts), list(self.allows)


class CrashTest:
    """All rounds, and their results."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._random = random.Random(seed)
        self._folder = folder
        self._endpoint = f"ipc://{folder}/policy.sock"
        self.journal = folder / "state" / "policy_decisions.db"
        self.clients: Clients | None = None
        self.rounds = 0
        self.used_twice = self.lost = self.unfounded = self.invalid = self.told_otherwise = 0
        #: What was wrong, one sentence each.
        self.problems: list[str] = []
        folder.chmod(0o755)
        pack = folder / "deploys"
        pack.mkdir()
        (pack / "pack.yaml").write_text(PACK)
        (pack / "rules.yaml").write_text(RULES)
        persons = dict(zip(PERSONS.items(), ("manager", "security"), strict=True))
        values: dict[str, Any] = {
            "state_dir": str(folder / "state"),
            "endpoint": self._endpoint,
            "pack": str(pack),
            "socket_mode": 0o666,
            "roles": ["local=ask", *(f"uid:{uid}=approve" for uid in PERSONS)],
            "people": [f"uid:{uid}={name};{role}" for (uid, name), role in persons.items()],
        }
        self._settings = folder / "settings.toml"
        self._settings.write_text(
            "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
        )

    def run(self, rounds: int, *, progress: bool) -> None:
        with ExitStack() as stack:
            for number in range(1, rounds + 1):
                self._round(stack, number == rounds)
                if progress and (number % 10 == 0 or number == rounds):
                    self._print_progress(number, rounds)

    def _round(self, stack: ExitStack, is_last: bool) -> None:
        command = [sys.executable, "-c", SERVE, "serve", "--config", str(self._settings)]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as daemon:
            try:
                self._wait_until_ready(daemon)
                self._compare_with_daemon()
                if self.clients is None:
                    self.clients = Clients(self._endpoint, stack)
                    self._wait_for_an_allow()
                time.sleep(self._random.uniform(0, MOST_S))
            finally:
                daemon.kill()
                daemon.communicate()
        self.rounds += 1
        self._check(whole=is_last or self.rounds % VERIFY_EACH == 0)

    def _wait_until_ready(self, daemon: subprocess.Popen[str]) -> None:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            with Client(self._endpoint, timeout_ms=1_000) as client, suppress(ThorPolicyError):
                if client.status().state == "serving":
                    return
            if daemon.poll() is not None:
                assert daemon.stderr is not None
                reason = (daemon.stderr.read().strip().splitlines() or ["it printed no error"])[-1]
                raise Failure(f"a daemon ended with status {daemon.returncode} before it was ready: {reason}")
            time.sleep(0.01)
        raise Failure(f"a daemon was not ready within {PATIENCE_S} s")

    def _wait_for_an_allow(self) -> None:
        """The clients take a moment to start; afterwards they go on over every kill."""
        assert self.clients is not None
        until = time.monotonic() + PATIENCE_S
        while not self.clients.ledger()[2]:
            if time.monotonic() > until:
                raise Failure(f"no approval lifted a decision within {PATIENCE_S} s")
            time.sleep(0.01)

    # ------------------------------------------------------------ the checks

    def _check(self, *, whole: bool) -> None:
        """Compare the ledgers with what a killed daemon left in its journal."""
        assert self.clients is not None
        requests, verdicts, allows = self.clients.ledger()
        where = f"round {self.rounds}"
        with Reader(self.journal) as reader, reader.snapshot() as connection:
            known = {id_ for (id_,) in connection.execute("SELECT id FROM approval_requests")}
            given = dict(connection.execute("SELECT id, task FROM approvals WHERE verdict = 'approved'"))
            used = connection.execute(
                "SELECT approval_task, decision_id FROM decisions WHERE approval_task IS NOT NULL"
            ).fetchall()
            unfounded = connection.execute(
                "SELECT d.decision_id FROM decisions d WHERE d.approval_task IS NOT NULL AND (SELECT "
                "count(DISTINCT a.approver) FROM approvals a WHERE a.task = d.approval_task AND a.verdict = "
                "'approved' AND a.seq < d.seq) < 2"
            ).fetchall()
        counts = Counter(task for task, _ in used) + Counter()
        seen = Counter(task for task, _ in set(allows))
        twice = {task for task, number in counts.items() if number > 1} | {
            task for task, number in seen.items() if number > 1
        }
        missing = [
            *(requests - known),
            *(id_ for id_, task in verdicts.items() if given.get(id_) != task),
            *(decision for task, decision in set(allows) if (task, decision) not in set(used)),
        ]
        self.used_twice, self.unfounded, self.lost = len(twice), len(unfounded), len(missing)
        if twice:
            self.problems.append(f"{where}: {min(twice)} and {len(twice) - 1} others lifted two decisions")
        if unfounded:
            self.problems.append(f"{where}: {unfounded[0][0]} was allowed without both verdicts")
        if missing:
            self.problems.append(f"{where}: {len(missing)} acknowledged are missing, such as {min(missing)}")
        if whole:
            try:
                verdict = verify(self.journal)
                wrong = None if verdict.ok else str(verdict.problem or verdict.incomplete)
            except JournalError as error:
                wrong = str(error)
            if wrong is not None:
                self.invalid += 1
                self.problems.append(f"{where}: {wrong}")

    def _compare_with_daemon(self) -> None:
        """Ask a new daemon about tasks of which something was acknowledged by the daemons before it."""
        if self.clients is None:
            return
        requests, verdicts, allows = self.clients.ledger()
        given, used = Counter(verdicts.values()), {task for task, _ in allows}
        some = self._random.sample(sorted(requests), min(ASKED, len(requests)))
        with Client(self._endpoint, timeout_ms=PATIENCE_S * 1_000) as client:
            for id_ in some:
                try:
                    (task,) = client.approvals(ApprovalQuery(id=id_))
                    right = len(task["verdicts"]) >= given[id_] and bool(task["used_by"]) >= (id_ in used)
                except RequestError:
                    right = False
                if not right:
                    self.told_otherwise += 1
                    self.problems.append(f"round {self.rounds + 1}: the daemon says otherwise of {id_}")

    def _print_progress(self, number: int, rounds: int) -> None:
        assert self.clients is not None
        requests, verdicts, allows = self.clients.ledger()
        print(
            f"round {number} of {rounds}: {len(requests)} requests, {len(verdicts)} verdicts and "
            f"{len(allows)} allows acknowledged; {self.used_twice} used twice, {self.lost} missing",
            file=sys.stderr,
        )

    @property
    def figures(self) -> dict[str, Any]:
        assert self.clients is not None
        requests, verdicts, allows = self.clients.ledger()
        return {
            "rounds": self.rounds,
            "acknowledged": {"request": len(requests), "verdict": len(verdicts), "allow": len(allows)},
            "used_twice": self.used_twice,
            "missing": self.lost,
            "without_both_verdicts": self.unfounded,
            "told_otherwise": self.told_otherwise,
            "invalid_chains": self.invalid,
            "refused": dict(self.clients.refused),
            "problems": self.problems,
        }

    @property
    def passed(self) -> bool:
        return not self.problems and min(self.figures["acknowledged"].values()) > 0


def main(arguments: list[str] | None = None) -> int:
    """Run the rounds; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="approvals-crash",
        description="Kill daemons while approvals are requested, given and used, and check that none is used "
        "twice and none that was acknowledged is lost. Needs root and no model. Status 0: no violation.",
    )
    parser.add_argument("--rounds", type=int, default=200, help="daemons to kill; default: %(default)s")
    parser.add_argument("--seed", type=int, help="random seed of the moments; default: a new one each time")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, without progress")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if os.geteuid() != 0:
        raise Failure("the approvers are processes of other users, which only root can start; use sudo")
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix="tp-approvals-"))
    test, start_s = CrashTest(folder, seed), time.monotonic()
    try:
        test.run(options.rounds, progress=not options.json)
    finally:
        if not test.problems:
            shutil.rmtree(folder)
    figures = test.figures | {"seed": seed, "took_s": round(time.monotonic() - start_s, 1)}
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            if name != "problems":
                print(f"{name.replace('_', ' '):<22}{value}")
        for problem in test.problems[:5]:
            print(problem)
    return 0 if test.passed else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Failure, ThorPolicyError) as error:
        sys.exit(f"approvals-crash: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
