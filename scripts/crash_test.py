"""Kill daemons under load at random moments, and check that no acknowledged decision or record is lost.

Owns the command of scripts/crash-test, every daemon that it starts, and their folder. Each round starts a
daemon with the stub engine on a state directory, sends it questions and records from several clients, and
ends it with SIGKILL. The kill falls at a random moment under load, while the daemon opens its journal, or
while another process holds the journal's lock, so that no commit can complete. Invariant: afterwards the
journal holds every acknowledged decision and record, those of earlier rounds too, and its chain is valid. A
state directory serves several rounds; each begins with what the last kill left.

A kill loses what the process held, and nothing that the kernel holds. So this test says nothing about a loss
of power: `synchronous=FULL` and the disk are responsible for that.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import zmq

from thor_policy.config import Config
from thor_policy.core.errors import JournalError, ThorPolicyError
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify

#: The number of clients, and of requests that each has pending.
CLIENTS, DEPTH = 6, 12
#: Rounds on one state directory; then a fresh one keeps verification cheap. Not a multiple of the number of
#: moments, so that each of them also comes first on a fresh directory.
ROUNDS_EACH = 9
#: The latest kill, in replies and in seconds of load.
MOST_REPLIES, MOST_S = 500, 0.4
#: How long a daemon may take to start or to answer, in seconds.
PATIENCE_S = 60
#: After so long without a frame, in milliseconds, everything that a killed daemon sent has been read.
SILENCE_MS = 50
#: The moments of the kills, in turn.
MOMENTS = ("under load", "under load", "at a standstill", "under load", "while it starts")
#: By kind of acknowledgement, the table and column that must hold its id.
TABLES = {"decision": "decisions.decision_id", "outcome": "outcomes.id", "review": "reviews.id"}

#: The daemon. It checkpoints the write-ahead log often, so that kills fall into checkpoints too.
SERVE = """
import sys
from pathlib import Path
from thor_policy import testing
from thor_policy.daemon import loading, service
from thor_policy.config import Config
from thor_policy.journal import storage
storage.CHECKPOINT_PAGES = 100
config = Config(
    state_dir=Path(sys.argv[1]), endpoint=sys.argv[2], checkpoint_events=60, ballast_mb=1, min_free_mb=1
)
journal = testing.open_hasty_journal if sys.argv[3] == "hasty" else loading.open_journal
with service.open_service(config, load_engine=testing.load_stub_engine, open_journal=journal) as server:
    server.run(ready=lambda: print("ready", flush=True))
"""


class Failure(Exception):
    """The test could not run: a daemon did not start or did not answer."""


@contextmanager
def running_daemon(config: Config, *, hasty: bool) -> Iterator[subprocess.Popen[str]]:
    """A daemon that may not listen yet. It is killed at the end of the block."""
    arguments = [str(config.state_dir), config.endpoint, "hasty" if hasty else "honest"]
    daemon = subprocess.Popen(
        [sys.executable, "-c", SERVE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield daemon
    finally:
        daemon.kill()
        daemon.communicate()


def wait_until_ready(daemon: subprocess.Popen[str]) -> None:
    """Wait until the daemon prints that it is ready. Raises Failure if it ends before."""
    assert daemon.stdout is not None
    if not daemon.stdout.readline():
        errors = daemon.communicate()[1].strip().splitlines()
        reason = errors[-1] if errors else "it printed no error"
        raise Failure(f"a daemon ended with status {daemon.returncode} before it was ready: {reason}")


class Clients:
    """Sockets with many pending requests. `acknowledged` collects kind and id of each acknowledgement."""

    def __init__(self, endpoint: str, moment: random.Random, acknowledged: set[tuple[str, str]]) -> None:
        self.acknowledged = acknowledged
        self.replies = 0
        self.refused: Counter[str] = Counter()
        self._random = moment
        self._numbers = count(1)
        self._decisions: list[str] = []
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._pending: dict[zmq.Socket[bytes], int] = {}
        for _ in range(CLIENTS):
            client = self._context.socket(zmq.DEALER)
            client.set(zmq.LINGER, 0)
            client.set(zmq.RECONNECT_IVL, -1)
            client.connect(endpoint)
            self._poller.register(client, zmq.POLLIN)
            self._pending[client] = 0

    def close(self) -> None:
        self._context.destroy(linger=0)

    @property
    def pending(self) -> int:
        return sum(self._pending.values())

    def send(self) -> None:
        """Send until every client has `DEPTH` pending requests."""
        for client, pending in self._pending.items():
            for _ in range(DEPTH - pending):
                client.send(json.dumps(self._request()).encode())
            self._pending[client] = DEPTH

    def read(self, timeout_ms: int) -> bool:
        """Read the replies that arrive within the timeout. False: there were none."""
        ready = self._poller.poll(timeout_ms)
        for client, _ in ready:
            self._pending[client] -= 1
            self._note(json.loads(client.recv()))
        return bool(ready)

    def run(self, enough: Callable[[], bool], *, sending: bool = True, until: float | None = None) -> None:
        """Send and read until `enough()`, or until the time `until`.

        Raises Failure where `until` is None and `PATIENCE_S` pass without enough.
        """
        limit = until or time.monotonic() + PATIENCE_S
        while not enough():
            if sending:
                self.send()
            left_s = limit - time.monotonic()
            if left_s <= 0:
                if until is not None:
                    return
                raise Failure(
                    f"a daemon gave no reply within {PATIENCE_S} s; {self.pending} requests are pending"
                )
            self.read(min(int(left_s * 1000) + 1, 100))

    def _request(self) -> dict[str, Any]:
        number, chance = next(self._numbers), self._random.random()
        head = {"v": 1, "id": str(number)}
        if self._decisions and chance < 0.2:
            record = {"decision_id": self._random.choice(self._decisions), "status": "SUCCESS"}
            return head | {"op": "outcome", "record": record | {"value": number, "note": "sold at noon"}}
        if self._decisions and chance < 0.4:
            record = {"decision_id": self._random.choice(self._decisions), "verdict": "accept"}
            return head | {"op": "review", "record": record | {"reviewer": "mara"}}
        trust = {"competence": 0.9, "reliability": 0.9, "integrity": 0.9}
        situation = {
            "actor_id": f"user:u{number}",
            "actor_role": "engineer",
            "t3_tensor": trust,
            "action_type": "deploy" if number % 2 else "read",
            "resource": "env:production" if number % 2 else "doc:guide",
            "details": "x" * self._random.randrange(1_000),
            "timestamp": "2026-05-13T10:00:00Z",
        }
        return head | {"situation": situation, "explain": "inline" if chance > 0.9 else "none"}

    def _note(self, reply: dict[str, Any]) -> None:
        self.replies += 1
        if "error" in reply:
            self.refused[reply["error"]["code"]] += 1
        elif "recorded" in reply:
            self.acknowledged.add((reply["recorded"]["kind"], reply["recorded"]["id"]))
        else:
            self._decisions.append(reply["context"]["decision_id"])
            self.acknowledged.add(("decision", self._decisions[-1]))


class CrashTest:
    """All rounds, and their results."""

    def __init__(self, folder: Path, *, hasty: bool, seed: int) -> None:
        self._folder = folder
        self._hasty = hasty
        self._random = random.Random(seed)
        self._number = 0
        self._config = Config()
        self._acknowledged: set[tuple[str, str]] = set()
        self.rounds: Counter[str] = Counter()
        self.acknowledged: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()
        self.invalid = 0
        #: What was wrong, one sentence each.
        self.problems: list[str] = []

    def round(self) -> None:
        """One round: start, load, kill, check."""
        if self._number % ROUNDS_EACH == 0:
            self._acknowledged = set()
            state_dir = self._folder / f"s{self._number // ROUNDS_EACH}"
            self._config = Config(state_dir=state_dir, endpoint=f"ipc://{self._folder}/policy.sock")
        moment = MOMENTS[self._number % len(MOMENTS)]
        self._number += 1
        with ExitStack() as stack:
            daemon = stack.enter_context(running_daemon(self._config, hasty=self._hasty))
            if moment == "while it starts":
                self._kill_at_start(daemon)
            else:
                wait_until_ready(daemon)
                before = Counter(kind for kind, _ in self._acknowledged)
                clients = stack.enter_context(
                    closing(Clients(self._config.endpoint, self._random, self._acknowledged))
                )
                if moment == "at a standstill":
                    self._kill_at_a_standstill(daemon, clients)
                else:
                    self._kill_under_load(daemon, clients)
                self.acknowledged += Counter(kind for kind, _ in self._acknowledged) - before
                self.refused += clients.refused
        self.rounds[moment] += 1
        self._check(moment)
        if self._number % ROUNDS_EACH == 0 and not self.problems:
            shutil.rmtree(self._config.state_dir)

    # ------------------------------------------------------------ the kills

    def _kill(self, daemon: subprocess.Popen[str], clients: Clients) -> None:
        """Kill the daemon, then read what it had sent."""
        daemon.kill()
        daemon.wait()
        while clients.read(SILENCE_MS):
            pass

    def _kill_under_load(self, daemon: subprocess.Popen[str], clients: Clients) -> None:
        if self._random.random() < 0.5:
            enough = self._random.randint(1, MOST_REPLIES)
            clients.run(lambda: clients.replies >= enough)
        else:
            clients.run(lambda: False, until=time.monotonic() + self._random.uniform(0, MOST_S))
        self._kill(daemon, clients)

    def _kill_at_a_standstill(self, daemon: subprocess.Popen[str], clients: Clients) -> None:
        """Kill the daemon while no commit can complete: an acknowledgement that comes now is a false one."""
        enough = self._random.randint(1, MOST_REPLIES // 4)
        clients.run(lambda: clients.replies >= enough)
        clients.run(lambda: not clients.pending, sending=False)
        with closing(sqlite3.connect(self._config.journal_path, isolation_level=None)) as lock:
            lock.execute("BEGIN IMMEDIATE")
            replies = clients.replies
            until = time.monotonic() + self._random.uniform(0.1, MOST_S)
            clients.run(lambda: clients.replies > replies, until=until)
            self._kill(daemon, clients)

    def _kill_at_start(self, daemon: subprocess.Popen[str]) -> None:
        """Kill the daemon after it took its state directory; before that there is nothing to lose."""
        lock = self._config.journal_path.with_suffix(".lock")
        limit = time.monotonic() + PATIENCE_S
        while not (lock.exists() and lock.read_text(encoding="ascii").strip() == str(daemon.pid)):
            if daemon.poll() is not None or time.monotonic() > limit:
                wait_until_ready(daemon)
                raise Failure(f"a daemon did not lock its state directory within {PATIENCE_S} s")
        time.sleep(self._random.uniform(0, 0.03))
        daemon.kill()
        daemon.wait()

    # ------------------------------------------------------------ the check

    def _check(self, moment: str) -> None:
        """Compare the journal with the acknowledgements, and verify it."""
        where = f"round {self._number} ({moment}, {self._config.state_dir})"
        if aside := sorted(self._config.state_dir.glob("*.damaged-*")):
            self.invalid += 1
            self.problems.append(f"{where}: the daemon set its journal aside as damaged: {aside[0].name}")
        try:
            verdict = verify(self._config.journal_path)
            lost = self._acknowledged - self._journaled()
        except JournalError as error:
            if self._acknowledged:
                self.invalid += 1
                self.problems.append(f"{where}: {error}")
            return  # killed before there was a journal; the next round creates it
        if not verdict.ok:
            self.invalid += 1
            self.problems.append(f"{where}: {verdict.problem or verdict.incomplete}")
        if lost:
            self.missing.update(kind for kind, _ in lost)
            self.problems.append(f"{where}: {len(lost)} acknowledged ids are missing, such as {min(lost)}")
            self._acknowledged -= lost

    def _journaled(self) -> set[tuple[str, str]]:
        """Kind and id of everything that the journal holds."""
        with Reader(self._config.journal_path) as reader, reader.snapshot() as connection:
            return {
                (kind, id)
                for kind, column in TABLES.items()
                for (id,) in connection.execute(f"SELECT {column} FROM {column.split('.')[0]}")  # noqa: S608
            }

    @property
    def passed(self) -> bool:
        """There were acknowledgements, none is missing, and there are no problems."""
        return not self.problems and bool(self.acknowledged)


def main(arguments: list[str] | None = None) -> int:
    """Run the rounds; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="crash-test",
        description="Kill daemons at random moments, and check that no acknowledged decision or record is "
        "lost. Needs no model. Status 0: nothing is lost, and every chain is valid.",
    )
    parser.add_argument(
        "--rounds", type=int, default=200, help="number of daemons to kill; default: %(default)s"
    )
    parser.add_argument(
        "--hasty", action="store_true", help="acknowledge before the commit, to see the test fail"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=None,
        help="random seed of requests and moments; default: a new one each time",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, without progress")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix="tp-crash-"))
    test, start_s = CrashTest(folder, hasty=options.hasty, seed=seed), time.monotonic()
    try:
        for number in range(1, options.rounds + 1):
            test.round()
            if not options.json and (number % 10 == 0 or number == options.rounds):
                print(
                    f"round {number} of {options.rounds}: {test.acknowledged.total()} acknowledged, "
                    f"{test.missing.total()} missing, {test.invalid} invalid chains",
                    file=sys.stderr,
                )
    finally:
        if options.hasty or not test.problems:
            shutil.rmtree(folder)
    report(test, seed, time.monotonic() - start_s, as_json=options.json)
    return 0 if test.passed else 1


def report(test: CrashTest, seed: int, took_s: float, *, as_json: bool) -> None:
    """Print the figures."""
    if as_json:
        figures = {
            "rounds": test.rounds.total(),
            "kills": test.rounds,
            "acknowledged": test.acknowledged,
            "missing": test.missing.total(),
            "invalid_chains": test.invalid,
            "refused": test.refused,
            "seed": seed,
            "took_s": round(took_s, 1),
            "problems": test.problems,
        }
        print(json.dumps(figures))
        return
    kills = ", ".join(f"{number} {moment}" for moment, number in test.rounds.items())
    kinds = ", ".join(f"{number} {kind}s" for kind, number in test.acknowledged.items())
    print(f"rounds          {test.rounds.total()} ({kills}), seed {seed}, {took_s:.0f} s")
    print(f"acknowledged    {test.acknowledged.total()} ({kinds or 'nothing'})")
    print(f"refused         {test.refused.total()} {dict(test.refused) or ''}")
    print(f"missing         {test.missing.total()}")
    print(f"invalid chains  {test.invalid}")
    for problem in test.problems[:5]:
        print(problem)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Failure, ThorPolicyError) as error:
        sys.exit(f"crash-test: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
