"""The second half of scripts/mixed-load: one daemon, everything that clients do to it, and what it grows by.

Owns the daemon that it starts, the clients' threads and the folder that they work in. Each client sends
one request after another, drawn by weight: questions that rules answer, that the model answers, that were
asked before, with explanations and in batches, with deadlines that cannot be kept; records of all kinds;
requests that are malformed, too large or for nobody; maintenance; and clients that leave before their reply.
Meanwhile an operator has another pack judge every minute (the same rules, another digest), a busy service
sends what needs no model (so that SQLite's page cache, 8 MiB, is full while the daemon warms up), others
read the journal, and `/proc` is read each second. At the end each request must have had one reply (or its
client must have left), every acknowledged id must be in the journal, and the journal must verify.

A slope is that of Theil and Sen over all samples after the first fifth, with its 95 % interval.
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
#: How long the busy service rests between two requests, in seconds.
BUSY_PAUSE_S = 0.02
#: How long the daemon may take to come up or to stop, in seconds.
START_S, STOP_S = 180, 60
#: How long a client waits for a reply: much longer than any deadline.
PATIENCE_MS = 120_000
#: The share of samples that belongs to warming up: caches fill, the allocator finds its size.
WARM_SHARE = 0.2
#: What counts as flat: growth in an hour below this share of the level, or an interval that holds zero.
FLAT_SHARE_PER_H = 0.02
#: How often the operator has the other pack judge, in seconds.
SWAP_S = 60
#: Below so many minutes a slope says nothing.
LEAST_MIN = 5
#: Deadline of a question, in milliseconds.
DEADLINE_MS = 20_000
#: Scores that the daemon keeps: few, so that the cache is full while it warms up.
CACHE_SIZE = 500

#: Of the samples, one in so many is told in the JSON: seconds, MiB, open files, threads.
SAMPLE_SHOWN_S = 10

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
    """The run could not be done: the daemon did not come up, or died."""


@contextmanager
def daemon_of(config: Config, *, stub: bool, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon that answers; it is dead after the block."""
    place = ["--state-dir", str(config.state_dir), "--endpoint", config.endpoint]
    command = [sys.executable, "-c", SERVE, "serve", *place]
    if stub:
        command = [sys.executable, "-c", SERVE_STUB, str(config.state_dir), config.endpoint, str(CACHE_SIZE)]
    with log.open("wb") as told:
        environment = os.environ | {"THOR_POLICY_CACHE_SIZE": str(CACHE_SIZE)}
        daemon = subprocess.Popen(command, stdout=told, stderr=told, env=environment)
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
    raise Failure(f"the daemon did not come up: {log.read_text()[-500:]}")


# ---------------------------------------------------------------- what clients do


class Tally:
    """What became of the requests of all clients."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.sent: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        #: Acknowledged ids, by the table and column that must hold them.
        self.acknowledged: dict[str, set[str]] = {}
        self.unexplained: list[str] = []

    def send(self, kind: str) -> None:
        with self._lock:
            self.sent[kind] += 1

    def end(self, fate: str) -> None:
        with self._lock:
            self.ended[fate] += 1

    def acknowledge(self, place: str, acknowledged: str) -> None:
        with self._lock:
            self.acknowledged.setdefault(place, set()).add(acknowledged)

    def complain(self, problem: str) -> None:
        with self._lock:
            self.unexplained.append(problem)


class User:
    """One client: sends what chance says, and checks what comes back."""

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
        """Send until then; `busy`: one thing after another that needs no model."""
        kinds = [name for name in self._kinds if not busy or name in ("by rule", "report", "node, edge")]
        names, weights = kinds, [self._kinds[name][0] for name in kinds]
        with self._client:
            while time.monotonic() < until:
                if busy:
                    time.sleep(BUSY_PAUSE_S)
                (name,) = self._random.choices(names, weights)
                self._tally.send(name)
                try:
                    fate = self._kinds[name][1]()
                except RequestError as error:
                    fate = f"refused: {error.code}"
                except Unreachable as error:
                    fate = "no reply"
                    self._tally.complain(f"{name}: {error}")
                self._tally.end(fate)

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
        one = {
            "subject": {
                "type": "user",
                "id": f"u{self._random.randrange(40)}",
                "properties": {"role": "member"},
            },
            "resource": {"type": "repo", "id": "handbook", "properties": {}},
        }
        many = [{"action": read}, {"action": {"name": "grant_admin", "properties": {}}}, {"action": read}]
        reply = self._client.call(
            "evaluate", {"request": one, "evaluations": many, "deadline_ms": DEADLINE_MS}
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

    def _keep(self, place: str, record: records.Record) -> str:
        record_id = self._client.record(record)
        self._tally.acknowledge(place, record_id)
        if place == "decisions.decision_id":
            self._decisions = [*self._decisions[-50:], record_id]
        return "recorded"

    def _report(self) -> str:
        agent, symbol = f"trader{self._random.randrange(5)}", f"S{self._random.randrange(30)}"
        reported = records.DecisionReport(
            type="signal", agent=agent, entity=symbol, outcome="BUY", prompt="Why? " * 40
        )
        return self._keep("decisions.decision_id", reported)

    def _about_a_decision(self) -> str:
        if not self._decisions:
            return self._report()
        about = self._random.choice(self._decisions)
        place, record = self._random.choice(
            (
                (
                    "outcomes.id",
                    records.Outcome(decision_id=about, status="SUCCESS", value=self._random.random()),
                ),
                ("reviews.id", records.Review(decision_id=about, reviewer="kim", verdict="accept")),
                ("approvals.id", records.Approval(decision_id=about, approver="bo", channel="email")),
            )
        )
        return self._keep(place, record)

    def _consultation(self) -> str:
        session = f"s{self._random.randrange(100)}"
        consulted = records.Consultation(system="crm", session=session, entity="acme", value={"open": 3})
        return self._keep("consultations.id", consulted)

    def _graph(self) -> str:
        if len(self._nodes) < 2 or self._random.random() < 0.5:
            node_id = self._client.node(records.Node(type="goal", title="Less downtime"))
            self._nodes = [*self._nodes[-20:], node_id]
            self._tally.acknowledge("nodes.id", node_id)
            return "recorded"
        source, target = self._random.sample(self._nodes, 2)
        return self._keep("edges.id", records.Edge(source=source, target=target, type="leads_to"))

    # ------------------------------------------------------------ what goes wrong, and the rest

    def _about_nothing(self) -> str:
        return self._keep("outcomes.id", records.Outcome(decision_id="no-such-decision", status="SUCCESS"))

    def _malformed(self) -> str:
        frame = self._random.choice((b"{", b"[]", b'{"v": 7}', b'{"v": 1, "op": "dance"}', b"\xff\xfe", b""))
        return self._raw(frame)

    def _too_large(self) -> str:
        return self._raw(b'{"v": 1, "request": "' + b"x" * 200_000 + b'"}')

    def _raw(self, frame: bytes) -> str:
        with self._socket() as one:
            one.send(frame)
            if not one.poll(PATIENCE_MS):
                self._tally.complain(f"no reply to {frame[:20]!r}")
                return "no reply"
            reply = json.loads(one.recv())
        return f"refused: {reply['error']['code']}"

    def _leave_early(self) -> str:
        frame = {"v": 1, "deadline_ms": DEADLINE_MS, "situation": self._situation("read", "repo:handbook")}
        with self._socket() as one:
            one.send(json.dumps(frame).encode())
            one.poll(self._random.randrange(3))
        return "left"

    @contextmanager
    def _socket(self) -> Iterator[zmq.Socket[bytes]]:
        with zmq.Context() as context, context.socket(zmq.DEALER) as one:
            one.set(zmq.LINGER, 200)
            one.connect(self._config.endpoint)
            yield one

    def _inquire(self) -> str:
        if self._random.random() < 0.5:
            self._client.status()
        else:
            self._client.call("metrics", {})
        return "told"

    def _upkeep(self) -> str:
        self._client.maintenance(records.Maintenance(task="checkpoint"))
        return "done: maintenance"


def read_journal(config: Config, until: float, tally: Tally) -> None:
    """What people do meanwhile: pages, statistics, one decision with all that hangs on it."""
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
    """Have the packs judge in turn, the first of `folders` last."""
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
    """The pack of the settings, and a copy of another version."""
    own = pack_files.find(config.pack, data_path("prompts"))
    copy = folder / "packs" / own.name
    shutil.copytree(own, copy)
    manifest = (copy / "pack.yaml").read_text(encoding="utf-8")
    (copy / "pack.yaml").write_text(manifest.replace("version: ", "version: 9.", 1), encoding="utf-8")
    return [own, copy]


# ---------------------------------------------------------------- what the daemon grows by


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
        """Of each figure: its median, its growth in an hour with the interval, and whether it is flat."""
        kept = self.samples[int(len(self.samples) * WARM_SHARE) :]
        kept = kept[:: max(1, len(kept) // 1_000)]  # the method compares each with each
        found: dict[str, dict[str, float | bool]] = {}
        for column, name in enumerate(("memory_mib", "open_files", "threads"), start=1):
            hours, values = [one[0] / 3_600 for one in kept], [float(one[column]) for one in kept]
            slope, _, low, high = theilslopes(values, hours) if len(kept) > 1 else (0.0,) * 4
            level = sorted(values)[len(values) // 2] if values else 0.0
            found[name] = {
                "level": level,
                "per_hour": float(slope),
                "low": float(low),
                "high": float(high),
                "flat": bool(low <= 0 or slope <= FLAT_SHARE_PER_H * level),
            }
        return found


# ---------------------------------------------------------------- one run


def run(minutes: float, *, stub: bool, seed: int, folder: Path, advance: Callable[[float], None]) -> Json:
    """Load a daemon for so long; returns the figures."""
    config = Config(state_dir=folder / "state", endpoint=f"ipc://{folder}/p.sock")
    config.state_dir.mkdir()
    tally = Tally()
    with daemon_of(config, stub=stub, log=folder / "daemon.log") as daemon:
        gauge, began = Gauge(daemon.pid), time.monotonic()
        until = began + minutes * 60
        users = [User(config, tally, seed * 1_000 + number) for number in range(CLIENTS)]
        threads = [threading.Thread(target=one.run, args=(until,)) for one in users]
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
                raise Failure(f"the daemon died: {(folder / 'daemon.log').read_text()[-500:]}")
            gauge.sample(time.monotonic() - began)
            advance(min(1.0, (time.monotonic() - began) / (minutes * 60)))
            time.sleep(1.0 if minutes >= 1 else 0.1)
        with Client(config.endpoint) as client:
            status = client.status()
        daemon.send_signal(signal.SIGTERM)
        ended = daemon.wait(STOP_S)
    verdict = verify(config.journal_path)
    slopes = gauge.slopes()
    answered = sum(tally.ended.values())
    problems = list(tally.unexplained)
    problems += [f"{sum(tally.sent.values()) - answered} requests have no fate"] * (
        answered != sum(tally.sent.values())
    )
    missing = _missing(config, tally)
    problems += [f"acknowledged, but not in the journal: {one}" for one in missing[:5]]
    problems += [f"the daemon ended with status {ended}"] * (ended != 0)
    problems += [f"the journal: {verdict.problem or verdict.incomplete}"] * (not verdict.ok)
    problems += [f"{count} events were lost" for count in [status.journal.counters.get("lost", 0)] if count]
    problems += [f"{status['engine']['internal_errors']} errors in the engine thread"] * (
        status.engine.counters["internal_errors"] > 0
    )
    if minutes >= LEAST_MIN:
        problems += [f"{name} grows" for name, slope in slopes.items() if not slope["flat"]]
    return {
        "minutes": minutes,
        "engine": "stub" if stub else status.model.name,
        "sent": dict(tally.sent.most_common()),
        "ended": dict(tally.ended.most_common()),
        "acknowledged": {place: len(ids) for place, ids in sorted(tally.acknowledged.items())},
        "missing": len(missing),
        "events": verdict.events,
        "slopes": slopes,
        "samples": [list(one) for one in gauge.samples[::SAMPLE_SHOWN_S]],
        "daemon": {"server": status.counters, "journal": status.journal.counters},
        "problems": problems,
    }


def _missing(config: Config, tally: Tally) -> list[str]:
    """Acknowledged ids that the journal does not have."""
    missing = []
    with Reader(config.journal_path) as reader, reader.snapshot() as connection:
        for place, ids in tally.acknowledged.items():
            table, column = place.split(".")
            there = {one for (one,) in connection.execute(f"SELECT {column} FROM {table}")}  # noqa: S608
            missing += sorted(ids - there)
    return missing


def show(figures: Json) -> None:
    console = Console(width=80)
    table = Table("requests", "sent", box=None, title=f"{figures['minutes']:g} min, {figures['engine']}")
    for name, count in figures["sent"].items():
        table.add_row(name, f"{count:,}")
    console.print(table)
    table = Table("what became of them", "", box=None)
    for name, count in figures["ended"].items():
        table.add_row(name, f"{count:,}")
    console.print(table)
    table = Table("daemon", "median", "growth in an hour", "95 %", "", box=None)
    for name, slope in figures["slopes"].items():
        interval = f"{slope['low']:+.2f} to {slope['high']:+.2f}"
        verdict = "flat" if slope["flat"] else "grows" if figures["minutes"] >= LEAST_MIN else "too short"
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
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--stub", action="store_true", help="an engine that answers at once, no model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    told = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="tp-load-") as folder,
        Progress(console=Console(stderr=True), transient=True, disable=told.json) as progress,
    ):
        task = progress.add_task("under load", total=1.0)
        try:
            figures = run(
                told.minutes,
                stub=told.stub,
                seed=told.seed,
                folder=Path(folder),
                advance=lambda done: progress.update(task, completed=done),
            )
        except (Failure, ThorPolicyError) as error:
            print(f"mixed-load: {error}", file=sys.stderr)
            return 2
    if told.json:
        print(json.dumps(figures, indent=1))
    else:
        show(figures)
    return 1 if figures["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
