"""Put a daemon under mixed load, account for every request, and measure how memory, files and threads grow.

Owns the command of scripts/mixed-load, the daemon that it starts, the threads of the clients, and their
folder. Each client sends one request after another, drawn by weight:

- questions for rules, for the model and for the cache; explained, in batches, and with too short deadlines;
- records of all kinds, also about decisions that do not exist; status, metrics and maintenance;
- malformed and too large requests, and requests whose client leaves before the reply.

Meanwhile an operator activates another pack every minute (the same rules, another digest). A busy service
sends requests that need no model, so that SQLite's page cache (8 MiB) is full while the daemon warms up. One
thread reads the journal, and `/proc` is sampled each second. Invariant: at the end each request had one
reply, or its client had left; every acknowledged id is in the journal; and the journal verifies.

A slope is the Theil-Sen slope of all samples after the first fifth, with its 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import zmq
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy.stats import theilslopes

from thor_policy.client.blocking import Client
from thor_policy.config import Config, data_path
from thor_policy.core import records
from thor_policy.core.errors import JournalError, RequestError, ThorPolicyError, Unreachable
from thor_policy.core.requests import Json
from thor_policy.journal import statistics
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.policy import pack_files

#: Clients that send one request after another.
CLIENTS = 8
#: The pause of the busy service between two requests, in seconds.
BUSY_PAUSE_S = 0.02
#: How long the daemon may take to start and to stop, in seconds.
START_S, STOP_S = 180, 60
#: How long a client waits for a reply, in milliseconds: much longer than any deadline.
PATIENCE_MS = 120_000
#: The first samples, as a share, are warm-up: caches fill, and the allocator reaches its size.
WARM_SHARE = 0.2
#: Flat is a growth in an hour below this share of the level, or an interval that begins at zero or below.
FLAT_SHARE_PER_H = 0.02
#: How often the operator activates the other pack, in seconds.
SWAP_S = 60
#: A run shorter than this, in minutes, gives no verdict on slopes.
MIN_MINUTES = 5
#: Deadline of a question, in milliseconds.
DEADLINE_MS = 20_000
#: Entries of the daemon's score cache: few, so that it is full after the warm-up.
CACHE_SIZE = 500

#: One in so many samples goes into the JSON: [seconds, MiB, open files, threads].
SAMPLES_EACH = 10

SERVE = "from thor_policy.cli.main import main; main()"
#: A daemon with the stub engine, for a short run without a model.
SERVE_STUB = """
import sys
from pathlib import Path
from thor_policy import testing
from thor_policy.daemon import service
from thor_policy.config import Config, data_path
config = Config(state_dir=Path(sys.argv[1]), endpoint=sys.argv[2], cache_size=int(sys.argv[3]))
with service.open_service(config, load_engine=testing.load_stub_engine) as server:
    server.run()
"""


class Failure(Exception):
    """The run failed: the daemon did not start, or it died."""


@contextmanager
def running_daemon(config: Config, *, stub: bool, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon that answers. It is killed at the end of the block."""
    place = ["--state-dir", str(config.state_dir), "--endpoint", config.endpoint]
    command = [sys.executable, "-c", SERVE, "serve", *place]
    if stub:
        command = [sys.executable, "-c", SERVE_STUB, str(config.state_dir), config.endpoint, str(CACHE_SIZE)]
    with log.open("wb") as output:
        environment = os.environ | {"THOR_POLICY_CACHE_SIZE": str(CACHE_SIZE)}
        daemon = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            _wait_until_it_answers(daemon, config.endpoint, log)
            yield daemon
        finally:
            daemon.kill()
            daemon.wait()


def _wait_until_it_answers(daemon: subprocess.Popen[bytes], endpoint: str, log: Path) -> None:
    until = time.monotonic() + START_S
    with Client(endpoint, timeout_ms=1_000) as client:
        while time.monotonic() < until and daemon.poll() is None:
            with suppress(Unreachable):
                client.status()
                return
            time.sleep(0.1)
    raise Failure(f"the daemon did not start; the end of its log: {log.read_text()[-500:]}")


# ---------------------------------------------------------------- what clients do


class Tally:
    """Counts of the requests of all clients and of their results. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.sent: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        #: Acknowledged ids, by the `table.column` that must hold them.
        self.acknowledged: dict[str, set[str]] = {}
        self.problems: list[str] = []

    def send(self, kind: str) -> None:
        with self._lock:
            self.sent[kind] += 1

    def end(self, result: str) -> None:
        with self._lock:
            self.ended[result] += 1

    def acknowledge(self, column: str, id: str) -> None:
        with self._lock:
            self.acknowledged.setdefault(column, set()).add(id)

    def complain(self, problem: str) -> None:
        with self._lock:
            self.problems.append(problem)


class User:
    """One client. It sends random requests and checks the replies."""

    def __init__(self, config: Config, tally: Tally, seed: int) -> None:
        self._config, self._tally, self._random = config, tally, random.Random(seed)
        self._client = Client(config.endpoint, timeout_ms=PATIENCE_MS)
        self._decisions: list[str] = []
        self._nodes: list[str] = []
        self._kinds: dict[str, tuple[int, Callable[[], str]]] = {
            "by rule": (20, self._by_rule),
            "new to the model": (6, self._by_model),
            "asked before": (20, self._asked_before),
            "explained inline": (1, lambda: self._by_model("inline")),
            "explained later": (1, lambda: self._by_model("later")),
            "batch": (4, self._batch),
            "no time left": (4, self._no_time),
            "report": (8, self._report),
            "outcome, review, approval": (12, self._about_a_decision),
            "consultation": (4, self._consultation),
            "node, edge": (4, self._graph),
            "about nothing": (2, self._about_nothing),
            "malformed": (4, self._malformed),
            "too large": (1, self._too_large),
            "status, metrics": (8, self._inquire),
            "maintenance": (1, self._upkeep),
            "left early": (2, self._leave_early),
        }

    def run(self, until: float, *, busy: bool = False) -> None:
        """Send until the time `until`. `busy`: only requests that need no model, with a pause before each."""
        kinds = [name for name in self._kinds if not busy or name in ("by rule", "report", "node, edge")]
        names, weights = kinds, [self._kinds[name][0] for name in kinds]
        with self._client:
            while time.monotonic() < until:
                if busy:
                    time.sleep(BUSY_PAUSE_S)
                (name,) = self._random.choices(names, weights)
                self._tally.send(name)
                try:
                    result = self._kinds[name][1]()
                except RequestError as error:
                    result = f"refused: {error.code}"
                except Unreachable as error:
                    result = "no reply"
                    self._tally.complain(f"{name}: {error}")
                self._tally.end(result)

    # ------------------------------------------------------------ questions

    def _by_rule(self) -> str:
        return self._ask(self._situation("grant_admin", "role:owner", role="member"))

    def _by_model(self, explain: str = "none") -> str:
        text = f"Release {self._random.randrange(10**6)}, rehearsed twice."
        return self._ask(self._situation("deploy", "env:production", details=text), explain=explain)

    def _asked_before(self) -> str:
        text = f"Release {self._random.randrange(8)}, the usual one."
        return self._ask(self._situation("deploy", "env:staging", details=text))

    def _no_time(self) -> str:
        text = f"Hurry {self._random.randrange(10**6)}."
        return self._ask(self._situation("deploy", "env:production", details=text), deadline_ms=1)

    def _ask(self, question: Json, *, explain: str = "none", deadline_ms: int = DEADLINE_MS) -> str:
        reply = self._client.evaluate(question, explain=explain, deadline_ms=deadline_ms)
        return self._decided(reply["context"])

    def _decided(self, context: dict[str, Json]) -> str:
        self._tally.acknowledge("decisions.decision_id", context["decision_id"])
        self._decisions = [*self._decisions[-50:], context["decision_id"]]
        return f"decided: {context['tier']}"

    def _batch(self) -> str:
        read = {"name": "read", "properties": {}}
        shared = {
            "subject": {
                "type": "user",
                "id": f"u{self._random.randrange(40)}",
                "properties": {"role": "member"},
            },
            "resource": {"type": "repo", "id": "handbook", "properties": {}},
        }
        items = [{"action": read}, {"action": {"name": "grant_admin", "properties": {}}}, {"action": read}]
        reply = self._client.call(
            "evaluate", {"request": shared, "evaluations": items, "deadline_ms": DEADLINE_MS}
        )
        for item in reply["evaluations"]:
            if "error" not in item["context"]:
                self._decided(item["context"])
        return "answered: batch"

    def _situation(self, action: str, resource: str, *, role: str = "developer", **more: Json) -> Json:
        return {
            "actor_id": f"user:u{self._random.randrange(40)}",
            "actor_role": role,
            "t3_tensor": {"competence": 0.8, "reliability": 0.7, "integrity": 0.8},
            "action_type": action,
            "resource": resource,
            "timestamp": "2026-03-04T13:05:00Z",
            **more,
        }

    # ------------------------------------------------------------ records

    def _record(self, column: str, record: records.Record) -> str:
        record_id = self._client.record(record)
        self._tally.acknowledge(column, record_id)
        if column == "decisions.decision_id":
            self._decisions = [*self._decisions[-50:], record_id]
        return "recorded"

    def _report(self) -> str:
        agent, symbol = f"trader{self._random.randrange(5)}", f"S{self._random.randrange(30)}"
        report = records.DecisionReport(
            type="signal", agent=agent, entity=symbol, outcome="BUY", prompt="Why? " * 40
        )
        return self._record("decisions.decision_id", report)

    def _about_a_decision(self) -> str:
        if not self._decisions:
            return self._report()
        decision_id = self._random.choice(self._decisions)
        column, record = self._random.choice(
            (
                (
                    "outcomes.id",
                    records.Outcome(decision_id=decision_id, status="SUCCESS", value=self._random.random()),
                ),
                ("reviews.id", records.Review(decision_id=decision_id, reviewer="kim", verdict="accept")),
                ("approvals.id", records.Approval(decision_id=decision_id, approver="bo", channel="email")),
            )
        )
        return self._record(column, record)

    def _consultation(self) -> str:
        session = f"s{self._random.randrange(100)}"
        consultation = records.Consultation(system="crm", session=session, entity="acme", value={"open": 3})
        return self._record("consultations.id", consultation)

    def _graph(self) -> str:
        if len(self._nodes) < 2 or self._random.random() < 0.5:
            node_id = self._client.node(records.Node(type="goal", title="Less downtime"))
            self._nodes = [*self._nodes[-20:], node_id]
            self._tally.acknowledge("nodes.id", node_id)
            return "recorded"
        source, target = self._random.sample(self._nodes, 2)
        return self._record("edges.id", records.Edge(source=source, target=target, type="leads_to"))

    # ------------------------------------------------------------ errors, and the rest

    def _about_nothing(self) -> str:
        return self._record("outcomes.id", records.Outcome(decision_id="no-such-decision", status="SUCCESS"))

    def _malformed(self) -> str:
        frame = self._random.choice((b"{", b"[]", b'{"v": 7}', b'{"v": 1, "op": "dance"}', b"\xff\xfe", b""))
        return self._raw(frame)

    def _too_large(self) -> str:
        return self._raw(b'{"v": 1, "request": "' + b"x" * 100_000 + b'"}')

    def _raw(self, frame: bytes) -> str:
        with self._socket() as client:
            client.send(frame)
            if not client.poll(PATIENCE_MS):
                self._tally.complain(f"no reply to {frame[:20]!r}")
                return "no reply"
            reply = json.loads(client.recv())
        return f"refused: {reply['error']['code']}"

    def _leave_early(self) -> str:
        frame = {"v": 1, "deadline_ms": DEADLINE_MS, "situation": self._situation("read", "repo:handbook")}
        with self._socket() as client:
            client.send(json.dumps(frame).encode())
            client.poll(self._random.randrange(3))
        return "left"

    @contextmanager
    def _socket(self) -> Iterator[zmq.Socket[bytes]]:
        with zmq.Context() as context, context.socket(zmq.DEALER) as client:
            client.set(zmq.LINGER, 200)
            client.connect(self._config.endpoint)
            yield client

    def _inquire(self) -> str:
        if self._random.random() < 0.5:
            self._client.status()
        else:
            self._client.call("metrics", {})
        return "answered: status, metrics"

    def _upkeep(self) -> str:
        self._client.maintenance(records.Maintenance(task="checkpoint"))
        return "done: maintenance"


def read_journal(config: Config, until: float, tally: Tally) -> None:
    """Read the journal as people do: a page, statistics, and one decision with everything about it."""
    while time.monotonic() < until:
        try:
            with Reader(config.journal_path) as reader:
                page = reader.decisions(limit=20)
                statistics.statistics(reader)
                if page:
                    reader.trace(page[-1]["decision_id"])
        except JournalError as error:
            tally.complain(f"reading the journal: {error}")
        time.sleep(2)


def operate(config: Config, folders: list[Path], until: float, tally: Tally) -> None:
    """Activate the packs in turn, beginning with the second one."""
    with Client(config.endpoint, timeout_ms=PATIENCE_MS) as client:
        turn = 0
        while time.monotonic() < until:
            turn += 1
            folder = folders[turn % len(folders)]
            tally.send("another pack")
            try:
                client.control(records.Control(task="activate", pack=str(folder)))
                tally.end("done: another pack")
            except (RequestError, Unreachable) as error:
                tally.end("refused: another pack")
                tally.complain(f"activating {folder.name}: {error}")
            due = min(until, time.monotonic() + SWAP_S)
            while time.monotonic() < due:
                time.sleep(0.2)


def two_packs(config: Config, folder: Path) -> list[Path]:
    """The pack of the settings, and a copy of it with another version."""
    own = pack_files.find(config.pack, data_path("prompts"))
    copy = folder / "packs" / own.name
    shutil.copytree(own, copy)
    manifest = (copy / "pack.yaml").read_text(encoding="utf-8")
    (copy / "pack.yaml").write_text(manifest.replace("version: ", "version: 9.", 1), encoding="utf-8")
    return [own, copy]


# ---------------------------------------------------------------- how the daemon grows


class Gauge:
    """Samples of the daemon's resident memory, open files and threads, once a second."""

    def __init__(self, pid: int) -> None:
        self._proc = Path(f"/proc/{pid}")
        self.samples: list[tuple[float, float, int, int]] = []  # seconds, MiB, files, threads

    def sample(self, at_s: float) -> None:
        rss_pages = int((self._proc / "statm").read_text().split()[1])
        mib = rss_pages * os.sysconf("SC_PAGESIZE") / 2**20
        files, threads = (len(list((self._proc / name).iterdir())) for name in ("fd", "task"))
        self.samples.append((at_s, mib, files, threads))

    def slopes(self) -> dict[str, dict[str, float | bool]]:
        """For each figure its median, its growth in an hour with the interval, and whether it is flat."""
        samples = self.samples[int(len(self.samples) * WARM_SHARE) :]
        samples = samples[:: max(1, len(samples) // 1_000)]  # the method compares all pairs
        slopes: dict[str, dict[str, float | bool]] = {}
        for column, name in enumerate(("memory_mib", "open_files", "threads"), start=1):
            hours, values = [row[0] / 3_600 for row in samples], [float(row[column]) for row in samples]
            slope, _, low, high = theilslopes(values, hours) if len(samples) > 1 else (0.0,) * 4
            level = sorted(values)[len(values) // 2] if values else 0.0
            slopes[name] = {
                "level": level,
                "per_hour": float(slope),
                "low": float(low),
                "high": float(high),
                "flat": bool(low <= 0 or slope <= FLAT_SHARE_PER_H * level),
            }
        return slopes


# ---------------------------------------------------------------- one run


def run(minutes: float, *, stub: bool, seed: int, folder: Path, advance: Callable[[float], None]) -> Json:
    """Load a daemon for so many minutes; returns the figures."""
    config = Config(state_dir=folder / "state", endpoint=f"ipc://{folder}/p.sock")
    config.state_dir.mkdir()
    tally = Tally()
    with running_daemon(config, stub=stub, log=folder / "daemon.log") as daemon:
        gauge, start_s = Gauge(daemon.pid), time.monotonic()
        until = start_s + minutes * 60
        users = [User(config, tally, seed * 1_000 + number) for number in range(CLIENTS)]
        threads = [threading.Thread(target=user.run, args=(until,)) for user in users]
        busy = User(config, tally, seed * 1_000 + CLIENTS)
        threads.append(threading.Thread(target=busy.run, args=(until,), kwargs={"busy": True}))
        threads.append(threading.Thread(target=read_journal, args=(config, until, tally)))
        threads.append(
            threading.Thread(target=operate, args=(config, two_packs(config, folder), until, tally))
        )
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            if daemon.poll() is not None:
                raise Failure(
                    f"the daemon died; the end of its log: {(folder / 'daemon.log').read_text()[-500:]}"
                )
            gauge.sample(time.monotonic() - start_s)
            advance(min(1.0, (time.monotonic() - start_s) / (minutes * 60)))
            time.sleep(1.0 if minutes >= 1 else 0.1)
        with Client(config.endpoint) as client:
            status = client.status()
        daemon.send_signal(signal.SIGTERM)
        exit_status = daemon.wait(STOP_S)
    verdict = verify(config.journal_path)
    slopes = gauge.slopes()
    answered = sum(tally.ended.values())
    problems = list(tally.problems)
    problems += [f"{sum(tally.sent.values()) - answered} requests have no result"] * (
        answered != sum(tally.sent.values())
    )
    missing = _missing(config, tally)
    problems += [f"acknowledged, but not in the journal: {id}" for id in missing[:5]]
    problems += [f"the daemon ended with status {exit_status}"] * (exit_status != 0)
    problems += [f"the journal: {verdict.problem or verdict.incomplete}"] * (not verdict.ok)
    problems += [f"{count} events were lost" for count in [status.journal.counters.get("lost", 0)] if count]
    problems += [f"{status.engine.counters['internal_errors']} errors in the engine thread"] * (
        status.engine.counters["internal_errors"] > 0
    )
    if minutes >= MIN_MINUTES:
        problems += [f"{name} grows" for name, slope in slopes.items() if not slope["flat"]]
    return {
        "minutes": minutes,
        "engine": "stub" if stub else status.model.name,
        "sent": dict(tally.sent.most_common()),
        "ended": dict(tally.ended.most_common()),
        "acknowledged": {column: len(ids) for column, ids in sorted(tally.acknowledged.items())},
        "missing": len(missing),
        "events": verdict.events,
        "slopes": slopes,
        "samples": [list(sample) for sample in gauge.samples[::SAMPLES_EACH]],
        "daemon": {"server": status.counters, "journal": status.journal.counters},
        "problems": problems,
    }


def _missing(config: Config, tally: Tally) -> list[str]:
    """Acknowledged ids that the journal does not have."""
    missing = []
    with Reader(config.journal_path) as reader, reader.snapshot() as connection:
        for name, ids in tally.acknowledged.items():
            table, column = name.split(".")
            journaled = {id for (id,) in connection.execute(f"SELECT {column} FROM {table}")}  # noqa: S608
            missing += sorted(ids - journaled)
    return missing


def show(figures: Json) -> None:
    """Print the figures as tables."""
    console = Console(width=80)
    table = Table("requests", "sent", box=None, title=f"{figures['minutes']:g} min, {figures['engine']}")
    for name, count in figures["sent"].items():
        table.add_row(name, f"{count:,}")
    console.print(table)
    table = Table("results", "", box=None)
    for name, count in figures["ended"].items():
        table.add_row(name, f"{count:,}")
    console.print(table)
    table = Table("daemon", "median", "growth in an hour", "95 %", "", box=None)
    for name, slope in figures["slopes"].items():
        interval = f"{slope['low']:+.2f} to {slope['high']:+.2f}"
        verdict = "flat" if slope["flat"] else "grows" if figures["minutes"] >= MIN_MINUTES else "too short"
        table.add_row(name, f"{slope['level']:.1f}", f"{slope['per_hour']:+.2f}", interval, verdict)
    console.print(table)
    acknowledged = sum(figures["acknowledged"].values())
    console.print(
        f"{acknowledged:,} acknowledged, {figures['missing']} missing; {figures['events']:,} events verified"
    )
    console.print(f"the daemon's counters: {figures['daemon']['server']}", soft_wrap=True)
    for problem in figures["problems"]:
        console.print(f"problem: {problem}", markup=False)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="mixed-load",
        description="Put a daemon under mixed load. Status 0: every request is accounted for, nothing "
        "acknowledged is missing, and memory, open files and threads stay flat; 1: there are problems; "
        "2: the run failed.",
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="length of the run; default: %(default)s")
    parser.add_argument(
        "--stub", action="store_true", help="use an engine without a model, which answers at once"
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="random seed of the requests; default: %(default)s"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, without progress")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="tp-load-") as folder,
        Progress(console=Console(stderr=True), transient=True, disable=options.json) as progress,
    ):
        task = progress.add_task("under load", total=1.0)
        try:
            figures = run(
                options.minutes,
                stub=options.stub,
                seed=options.seed,
                folder=Path(folder),
                advance=lambda done: progress.update(task, completed=done),
            )
        except (Failure, ThorPolicyError) as error:
            print(f"mixed-load: {error}", file=sys.stderr)
            return 2
    if options.json:
        print(json.dumps(figures, indent=1))
    else:
        show(figures)
    return 1 if figures["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
