"""Do everything to a daemon that a bad day does, while honest clients ask it and keep ledgers.

Owns the command of scripts/chaos, the daemon, the clients, the hostile processes (those of scripts/hostile)
and their folder. The faults come in turn, in a random order, until the time is over:

- the process is killed, or stopped and continued;
- the disk is full, fails, or is slow; the wall clock steps (`chaos_shim.c`, in front of the C library);
- saved prefix states, the write-ahead log and a checkpoint are damaged, in a copy of the state directory as
  a crash would leave it, on which a second daemon starts;
- each kind of hostile client attacks.

Invariant: a ledger holds each decision that the daemon acknowledged. At the end each of them is in the
journal with the same outcome, and the journal verifies. No reply was below the floor of its question. Each
question was answered within its deadline, unless it was sent to a daemon that was dead or stopped.
"""

from __future__ import annotations

import argparse
import errno
import json
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hostile
import zmq
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from thor_policy.config import Config
from thor_policy.core.errors import JournalError, ThorPolicyError
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify

#: Honest clients, the pause of each between two questions in seconds, and one in so many asks the model.
CLIENTS, PAUSE_S, MODEL_EACH = 3, 0.05, 8
#: Deadline of a question, and how much later its reply may be read, in milliseconds.
DEADLINE_MS, GRACE_MS = 5_000, 250
#: How long a daemon may take to start and to stop, in seconds.
START_S, STOP_S = 60, 30
#: Seconds between two faults.
QUIET_S = 1.0
#: How much slower a slow sync is, in milliseconds.
SLOW_MS = 400
#: The steps of the clock, in seconds; None: to 1970.
STEPS: dict[str, int | None] = {"+25 h": 25 * 3_600, "-1 h": -3_600, "1970": None}

PACK = {
    "pack.yaml": "name: chaos\nversion: '1'\ndescription: Rules alone.\nmodel: never\ndefault: allow\n"
    "outcomes: [{label: allow}, {label: require_mfa}, {label: require_attestation}, {label: deny}]\n",
    "rules.yaml": "- {id: owners, when: 'action.name == \"grant_admin\"', outcome: deny, because: No.}\n",
}

#: A daemon that acknowledges before the commit, to see the run fail.
SERVE_HASTY = """
from functools import partial
from thor_policy import testing
from thor_policy.daemon import service
from thor_policy.cli.main import main
stub = {"load_engine": testing.load_stub_engine, "open_journal": testing.open_hasty_journal}
service.open_service = partial(service.open_service, **stub)
main()
"""


class Failure(Exception):
    """The run failed: a daemon did not start, or a tool is missing."""


# ---------------------------------------------------------------- the daemon


class Faults:
    """The fault that is in force in a daemon with the shim: see chaos_shim.c."""

    _FORM = struct.Struct("=iiq")

    def __init__(self, folder: Path, state_dir: Path) -> None:
        shim = folder / "shim.so"
        source = Path(__file__).with_name("chaos_shim.c")
        compiler = shutil.which("cc")
        if compiler is None:
            raise Failure("there is no C compiler: sudo apt-get install build-essential")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", shim, source, "-ldl"], check=True)
        path = folder / "fault"
        path.write_bytes(bytes(self._FORM.size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), self._FORM.size)
        self.environment = {"LD_PRELOAD": str(shim), "CHAOS_FILE": str(path), "CHAOS_DIR": f"{state_dir}/"}

    def set(self, *, error: int = 0, sync_ms: int = 0, shift_s: int = 0) -> None:
        # not `pack_into`, which fills with zeros first: the daemon reads at any moment
        self._map[: self._FORM.size] = self._FORM.pack(error, sync_ms, shift_s)


class Daemon:
    """`thorpolicy serve`, started again where it ended. `dead_s` are the times in which nobody can answer."""

    def __init__(self, folder: Path, options: argparse.Namespace, environment: dict[str, str]) -> None:
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
        self.config = Config(state_dir=folder / "state", endpoint=f"ipc://{folder}/p.sock")
        self._log = folder / "daemon.log"
        self._code = SERVE_HASTY if options.hasty else hostile.SERVE_STUB if options.stub else hostile.SERVE
        self._environment = os.environ | environment | {"THOR_POLICY_SOCKET_MODE": "0o666"}
        self._environment |= {"THOR_POLICY_MODEL": options.model, "THOR_POLICY_CHECKPOINT_EVENTS": "200"}
        if options.rules_only:
            pack = folder / "pack"
            pack.mkdir(exist_ok=True)
            for name, text in PACK.items():
                (pack / name).write_text(text, encoding="utf-8")
            self._environment["THOR_POLICY_PACK"] = str(pack)
        self.process: subprocess.Popen[bytes] | None = None
        #: How often it was started.
        self.starts = 0
        self.dead_s: list[list[float]] = []

    def start(self) -> None:
        """Start it; it may not answer yet."""
        place = ["--state-dir", str(self.config.state_dir), "--endpoint", self.config.endpoint]
        with self._log.open("ab") as output:
            command = [sys.executable, "-c", self._code, "serve", *place]
            self.starts += 1
            self.process = subprocess.Popen(command, stdout=output, stderr=output, env=self._environment)

    def answers(self, frame: bytes = b'{"v": 1, "op": "status"}') -> dict[str, Any] | None:
        """The reply to a request within a second; None where there is none."""
        if not self.config.socket_path.exists():
            return None
        with zmq.Context() as context, context.socket(zmq.DEALER) as asker:
            asker.set(zmq.LINGER, 0)
            asker.connect(self.config.endpoint)
            asker.send(frame)
            reply: dict[str, Any] | None = json.loads(asker.recv()) if asker.poll(1_000) else None
        return reply

    def wait_until_it_answers(self) -> None:
        until = time.monotonic() + START_S
        while time.monotonic() < until and self.process is not None and self.process.poll() is None:
            if self.answers() is not None:
                return
            time.sleep(0.05)
        raise Failure(f"a daemon did not start; the end of its log: {self.log()[-600:]}")

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> int:
        """Its exit status after SIGTERM; killed where it takes too long."""
        assert self.process is not None
        self.process.terminate()
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return -9

    @property
    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @contextmanager
    def dead(self) -> Iterator[None]:
        """For the length of the block nobody can answer."""
        interval = [time.monotonic(), float("inf")]
        self.dead_s.append(interval)
        try:
            yield
        finally:
            interval[1] = time.monotonic()

    def was_dead(self, from_s: float, to_s: float) -> bool:
        return any(start_s <= to_s and from_s <= end_s for start_s, end_s in self.dead_s)


# ---------------------------------------------------------------- the honest clients


class Ledger:
    """What the daemon acknowledged, and what it did wrong. Any thread."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._lock = threading.Lock()
        self.decided: dict[str, str] = {}
        self.results: Counter[str] = Counter()
        self.below_floor = 0
        self.problems: list[str] = []

    def take(self, reply: dict[str, Any] | None, kind: str, sent_s: float) -> None:
        """Enter the reply to a question; None: there was none within its deadline."""
        now_s = time.monotonic()
        with self._lock:
            if reply is None:
                self.results["no reply"] += 1
                if not self._daemon.was_dead(sent_s, now_s):
                    self.problems.append(f"a {kind} question got no reply within {DEADLINE_MS} ms")
            elif "error" in reply:
                code = reply["error"]["code"]
                self.results[code] += 1
                if code in ("internal", "bad_request", "unauthorized", "version_mismatch"):
                    self.problems.append(f"a {kind} question got {code}: {reply['error']['message'][:100]}")
            else:
                self._decided(reply, kind)

    def _decided(self, reply: dict[str, Any], kind: str) -> None:
        context = reply["context"]
        outcome, floor = context["outcome"], context["floor"]
        self.results["decided" if context["tier"] != "fallback" else "decided: fallback"] += 1
        self.decided[context["decision_id"]] = outcome
        labels = ("allow", "require_mfa", "require_attestation", "deny")
        least = "deny" if kind == "rule" else floor  # what the rules of the pack say, known to us
        if labels.index(outcome) < max(labels.index(floor), labels.index(least)):
            self.below_floor += 1
            self.problems.append(f"{outcome} is below the floor: {json.dumps(reply)[:200]}")
        if reply["decision"] != (outcome == "allow"):
            self.problems.append(f"decision is {reply['decision']} where the outcome is {outcome}")


def be_honest(number: int, daemon: Daemon, ledger: Ledger, end: threading.Event) -> None:
    """Ask one question after another, with a connection that ZeroMQ makes again where it broke."""
    chance, count = random.Random(number), 0
    with zmq.Context() as context:
        asker = _connected(context, daemon)
        while not end.wait(PAUSE_S):
            count += 1
            id, kind = f"{number}-{count}", "model" if count % MODEL_EACH == 0 else "rule"
            frame = (
                hostile.model_question(f"Release {chance.randrange(10**12)}.", id, DEADLINE_MS)
                if kind == "model"
                else hostile.rule_question(id, DEADLINE_MS)
            )
            sent_s = time.monotonic()
            asker.send(frame)
            reply = _reply_to(asker, id, sent_s, daemon, end)
            if reply is None:
                asker.close()
                asker = _connected(context, daemon)
                if end.is_set():
                    break
            ledger.take(reply, kind, sent_s)
            if reply is not None and (busy := reply.get("error", {}).get("retry_after_ms")):
                end.wait(min(busy, DEADLINE_MS) / 1_000)
        asker.close()


def _connected(context: zmq.Context[zmq.Socket[bytes]], daemon: Daemon) -> zmq.Socket[bytes]:
    asker = context.socket(zmq.DEALER)
    asker.set(zmq.LINGER, 0)
    asker.set(zmq.RECONNECT_IVL, 20)
    asker.connect(daemon.config.endpoint)
    return asker


def _reply_to(
    asker: zmq.Socket[bytes], id: str, sent_s: float, daemon: Daemon, end: threading.Event
) -> dict[str, Any] | None:
    """The reply within the deadline; None also where the daemon that got the request is no more."""
    starts = daemon.starts
    while (left_ms := int(DEADLINE_MS + GRACE_MS - (time.monotonic() - sent_s) * 1e3)) > 0:
        if asker.poll(min(left_ms, 100)):
            reply: dict[str, Any] = json.loads(asker.recv())
            if reply.get("id") == id:
                return reply
        elif end.is_set() or daemon.starts != starts:
            return None
    return None


# ---------------------------------------------------------------- the faults


@dataclass(frozen=True)
class Fault:
    """A fault: what must be so, how long until the next acknowledgement at most, and how it is done.

    `inject` returns when the fault is over, with what it saw, and the time of which recovery counts.
    """

    expected: str
    recovery_s: float
    inject: Callable[[], tuple[str, float]]


class Chaos:
    """All faults of one run, and their observations."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self._folder, self._options = folder, options
        self._random = random.Random(options.seed)
        self._shim = Faults(folder, folder / "main" / "state")
        self.daemon = Daemon(folder / "main", options, self._shim.environment)
        self.ledger = Ledger(self.daemon)
        self.rows: list[dict[str, Any]] = []
        self._copies = 0

    def faults(self) -> dict[str, Fault]:
        faults = {
            "kill": Fault("the next daemon answers; nothing is lost", START_S, self._kill),
            "stop": Fault("answers go on after SIGCONT", 5, self._stop),
            "full": Fault(
                "refused, or from the ballast; goes on by itself", 15, partial(self._disk, errno.ENOSPC)
            ),
            "eio": Fault("refused; goes on by itself", 15, partial(self._disk, errno.EIO)),
            "slow": Fault(f"answered, with syncs of {SLOW_MS} ms", 5, self._slow),
        }
        for name in STEPS:
            faults[f"clock {name}"] = Fault("answered all along", 3, partial(self._clock, name))
        faults["prefix"] = Fault("rebuilt and logged", START_S, self._prefix)
        faults["wal"] = Fault("the copy serves; what is missing was planted", START_S, self._wal)
        faults["checkpoint"] = Fault("the copy serves; verify names the file", START_S, self._checkpoint)
        for kind in hostile.kinds():
            faults[kind] = Fault("honest clients are answered", 5, partial(self._flood, kind))
        if self._options.rules_only or self._options.stub or self._options.hasty:
            del faults["prefix"]  # they save none
        return faults

    def inject(self, name: str, fault: Fault) -> None:
        """One fault, then the wait for the next acknowledgement."""
        results, problems = Counter(self.ledger.results), len(self.ledger.problems)
        own_problems = []
        observed, since_s = fault.inject()
        recovered_s = self._acknowledges(since_s, fault.recovery_s)
        if recovered_s is None:
            own_problems.append(f"no acknowledgement within {fault.recovery_s:g} s")
        if self.daemon.ended:
            own_problems.append(f"the daemon ended: {self.daemon.log()[-300:]}")
            with self.daemon.dead():
                self.daemon.start()
                self.daemon.wait_until_it_answers()
        if observed.startswith("problem: "):
            own_problems.append(observed.removeprefix("problem: "))
        during = self.ledger.results - results
        replies = ", ".join(f"{count} {result}" for result, count in during.most_common())
        self.rows.append(
            {
                "fault": name,
                "expected": fault.expected,
                "observed": "; ".join(filter(None, (observed, replies))),
                "recovery_ms": None if recovered_s is None else round(recovered_s * 1e3),
                "problems": [*own_problems, *self.ledger.problems[problems:]],
            }
        )

    def _acknowledges(self, since_s: float, patience_s: float) -> float | None:
        """Seconds from a time until a fresh client gets a decision; None: none in this time."""
        while time.monotonic() < since_s + patience_s:
            sent_s = time.monotonic()
            reply = self.daemon.answers(hostile.rule_question("probe", DEADLINE_MS))
            if reply is not None and "context" in reply:
                self.ledger.take(reply, "rule", sent_s)
                return time.monotonic() - since_s
            time.sleep(0.01)
        return None

    # ------------------------------------------------------------ the process

    def _kill(self) -> tuple[str, float]:
        time.sleep(self._random.uniform(0, 0.5))
        with self.daemon.dead():
            self.daemon.kill()
            since_s = time.monotonic()
            self.daemon.start()
            self.daemon.wait_until_it_answers()
        return "", since_s

    def _stop(self) -> tuple[str, float]:
        with self.daemon.dead():
            self.daemon.signal(signal.SIGSTOP)
            time.sleep(self._options.seconds)
            self.daemon.signal(signal.SIGCONT)
            since_s = time.monotonic()
        return "", since_s

    # ------------------------------------------------------------ disk and clock

    @contextmanager
    def _in_force(self, **fault: int) -> Iterator[None]:
        self._shim.set(**fault)
        try:
            time.sleep(self._options.seconds)
            yield
        finally:
            self._shim.set()

    def _disk(self, error: int) -> tuple[str, float]:
        with self._in_force(error=error):
            status = (self.daemon.answers() or {}).get("status", {})
        since_s = time.monotonic()
        return f"state {status.get('state', 'unknown')}", since_s

    def _slow(self) -> tuple[str, float]:
        with self._in_force(sync_ms=SLOW_MS):
            pass
        return "", time.monotonic()

    def _clock(self, step: str) -> tuple[str, float]:
        shift_s = STEPS[step]
        with self._in_force(shift_s=-int(time.time()) if shift_s is None else shift_s):
            served = self._acknowledges(time.monotonic(), DEADLINE_MS / 1_000)
        return "" if served is not None else "problem: nothing was acknowledged meanwhile", time.monotonic()

    # ------------------------------------------------------------ damage, in a copy

    @contextmanager
    def _copy(self) -> Iterator[tuple[Daemon, dict[str, str]]]:
        """A daemon, not started, on a copy of the state as a crash would leave it; and what that holds."""
        self._copies += 1
        copy = Daemon(self._folder / f"copy{self._copies}", self._options, {})
        with self.daemon.dead():  # stopped for the copy
            self.daemon.signal(signal.SIGSTOP)
            try:
                known = dict(self.ledger.decided)
                shutil.copytree(self.daemon.config.state_dir, copy.config.state_dir)
            finally:
                self.daemon.signal(signal.SIGCONT)
        try:
            yield copy, known
        finally:
            copy.kill()
            shutil.rmtree(self._folder / f"copy{self._copies}")

    def _flip(self, path: Path, count: int = 8) -> None:
        """Flip bits of some bytes."""
        size = path.stat().st_size
        with path.open("r+b") as file:
            for _ in range(count):
                at = self._random.randrange(size)
                file.seek(at)
                byte = file.read(1)[0]
                file.seek(at)
                file.write(bytes([byte ^ 1 << self._random.randrange(8)]))

    def _serves(self, copy: Daemon) -> None:
        copy.start()
        copy.wait_until_it_answers()
        reply = copy.answers(hostile.rule_question("copy", DEADLINE_MS))
        if reply is None or reply.get("context", {}).get("outcome") != "deny":
            raise Failure(f"the daemon on the damaged copy answered {reply}")

    def _prefix(self) -> tuple[str, float]:
        with self._copy() as (copy, _):
            states = sorted(copy.config.state_dir.rglob("*.state"))
            for path in states:
                self._flip(path)
            self._serves(copy)
            warned = copy.log().count("rebuilt")
        named = "" if warned else "problem: the log says nothing; "
        return f"{named}{len(states)} states damaged, {warned} rebuilt", time.monotonic()

    def _wal(self) -> tuple[str, float]:
        with self._copy() as (copy, known):
            log = copy.config.journal_path.with_name(copy.config.journal_path.name + "-wal")
            if not log.exists() or not log.stat().st_size:
                return "there was no write-ahead log", time.monotonic()
            self._flip(log)
            self._serves(copy)
            copy.stop()
            missing = len(known.keys() - _journaled(copy.config).keys())
            verdict = verify(copy.config.journal_path)
        finding = verdict.problem or verdict.incomplete
        aside = len(list(copy.config.state_dir.glob("*.damaged-*")))
        return (
            f"{missing} of {len(known)} missing, {aside} set aside; verify: {finding or 'ok'}",
            time.monotonic(),
        )

    def _checkpoint(self) -> tuple[str, float]:
        with self._copy() as (copy, _):
            files = sorted(copy.config.checkpoint_dir.glob("*-*.json"))
            if not files:
                return "there was no checkpoint", time.monotonic()
            os.truncate(files[-1], files[-1].stat().st_size // 2)
            self._serves(copy)
            copy.stop()
            verdict = verify(copy.config.journal_path)
        finding = verdict.problem or verdict.incomplete or ""
        named = "" if files[-1].name in finding else "problem: verify does not name the file; "
        return f"{named}{finding[:60] or 'ok'}", time.monotonic()

    # ------------------------------------------------------------ hostile clients

    def _flood(self, kind: str) -> tuple[str, float]:
        assert self.daemon.process is not None
        before_mib = hostile.memory_mib(self.daemon.process.pid)
        with ExitStack() as stack:
            place = ["--endpoint", self.daemon.config.endpoint, "--seconds", str(self._options.seconds)]
            attackers = [
                hostile.start(stack, kind, *place, "--seed", str(number))
                for number in range(hostile.PROCESSES)
            ]
            hostile.wait_until_ready(*attackers)
            hostile.attack(*attackers)
            peak_mib = before_mib
            while any(attacker.poll() is None for attacker in attackers):
                peak_mib = max(peak_mib, hostile.memory_mib(self.daemon.process.pid))
                if peak_mib > hostile.MOST_MIB:
                    return f"problem: memory {peak_mib:.0f} MiB; the flood was ended", time.monotonic()
                time.sleep(0.05)
            since_s = time.monotonic()
        return f"{before_mib:.0f} -> {peak_mib:.0f} MiB", since_s


def _journaled(config: Config) -> dict[str, str]:
    """The outcome of each decision in a journal."""
    with Reader(config.journal_path) as reader, reader.snapshot() as connection:
        return dict(connection.execute("SELECT decision_id, decision FROM decisions"))


# ---------------------------------------------------------------- the run


def run(options: argparse.Namespace, folder: Path, progress: Progress) -> dict[str, Any]:
    """Inject faults until the time is over; returns the figures."""
    folder.chmod(0o755)
    chaos = Chaos(folder, options)
    daemon, ledger, end = chaos.daemon, chaos.ledger, threading.Event()
    faults = chaos.faults()
    if options.faults:
        if unknown := set(options.faults.split(",")) - faults.keys():
            raise Failure(f"--faults: unknown {', '.join(sorted(unknown))}; known: {', '.join(faults)}")
        faults = {name: faults[name] for name in options.faults.split(",")}
    threads = [
        threading.Thread(target=be_honest, args=(number, daemon, ledger, end), daemon=True)
        for number in range(CLIENTS)
    ]
    start_s = time.monotonic()
    until_s = start_s + options.minutes * 60
    task = progress.add_task("chaos", total=options.minutes * 60)
    try:
        daemon.start()
        daemon.wait_until_it_answers()
        for thread in threads:
            thread.start()
        order = random.Random(options.seed)
        turn: list[str] = []
        while not chaos.rows or time.monotonic() < until_s:
            time.sleep(QUIET_S)
            turn = turn or order.sample(list(faults), len(faults))
            name = turn.pop()
            progress.update(task, description=name, completed=time.monotonic() - start_s)
            chaos.inject(name, faults[name])
            row = chaos.rows[-1]
            if not options.json:
                print(
                    f"{name}: {row['observed']}; {row['recovery_ms']} ms", *row["problems"], file=sys.stderr
                )
        time.sleep(QUIET_S)
        end.set()
        for thread in threads:
            thread.join()
        exit_status = daemon.stop()
    finally:
        end.set()
        daemon.kill()
    return figures_of(chaos, exit_status, time.monotonic() - start_s, options)


def figures_of(chaos: Chaos, exit_status: int, took_s: float, options: argparse.Namespace) -> dict[str, Any]:
    """Compare the ledger with the journal, and sum up."""
    ledger, config = chaos.ledger, chaos.daemon.config
    problems = list(ledger.problems)
    for row in chaos.rows:
        problems += [
            f"{row['fault']}: {problem}" for problem in row["problems"] if problem not in ledger.problems
        ]
    journaled = _journaled(config)
    missing = sorted(ledger.decided.keys() - journaled.keys())
    changed = [id for id, outcome in ledger.decided.items() if journaled.get(id, outcome) != outcome]
    problems += [f"acknowledged, and not in the journal: {id}" for id in missing[:5]]
    problems += [f"acknowledged with another outcome than the journal has: {id}" for id in changed[:5]]
    try:
        verdict = verify(config.journal_path)
        journal = verdict.problem or verdict.incomplete or "ok"
        problems += [f"the journal: {journal}"] * (not verdict.ok)
    except JournalError as error:
        journal = str(error)
        problems.append(f"the journal: {error}")
    problems += [f"the daemon ended with status {exit_status} at the end"] * (exit_status != 0)
    return {
        "minutes": options.minutes,
        "seed": options.seed,
        "took_s": round(took_s, 1),
        "engine": "rules only"
        if options.rules_only
        else "stub"
        if options.stub or options.hasty
        else options.model,
        "faults": chaos.rows,
        "results": dict(ledger.results.most_common()),
        "acknowledged": len(ledger.decided),
        "missing": len(missing),
        "changed": len(changed),
        "below_floor": ledger.below_floor,
        "journal": journal,
        "problems": problems,
    }


def show(figures: dict[str, Any]) -> None:
    """Print a table of 80 columns, the sums and the violations."""
    console = Console(width=80)
    table = Table(box=None, show_edge=False, pad_edge=False)
    for name, width in (("fault", 11), ("expected", 22), ("observed", 35), ("ms", 6)):
        table.add_column(name, width=width, overflow="fold", justify="right" if name == "ms" else "left")
    for row in figures["faults"]:
        recovery = "never" if row["recovery_ms"] is None else f"{row['recovery_ms']:,}"
        table.add_row(row["fault"], row["expected"], row["observed"], recovery)
    console.print(table)
    console.print("ms: from the end of the fault to the next decision for a new client")
    acknowledged, missing = figures["acknowledged"], figures["missing"]
    console.print(f"{figures['engine']}, seed {figures['seed']}, {figures['took_s']} s: {figures['results']}")
    console.print(
        f"{acknowledged:,} acknowledged, {missing} missing, {figures['changed']} changed, "
        f"{figures['below_floor']} below the floor; journal: {figures['journal']}"
    )
    for problem in figures["problems"]:
        console.print(f"violation: {problem}", markup=False, highlight=False)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="chaos",
        description="Inject faults into a daemon under honest load. Status 0: nothing acknowledged is "
        "missing, no answer is below its floor, and the daemon came back in time after each fault; 1: there "
        "are violations; 2: the run failed.",
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the run; default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="length of a fault that lasts; default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=1, help="random seed; default: %(default)s")
    parser.add_argument("--faults", help="only these, with commas between; default: all")
    parser.add_argument("--model", default="smollm2-135m-instruct-q4_1", help="model of the daemon")
    parser.add_argument("--rules-only", action="store_true", help="a pack without a model, for a higher rate")
    parser.add_argument("--stub", action="store_true", help="use an engine without a model")
    parser.add_argument(
        "--hasty", action="store_true", help="acknowledge before the commit, to see the run fail; a stub"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, without progress")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with (
        tempfile.TemporaryDirectory(prefix="tp-chaos-") as folder,
        Progress(console=Console(stderr=True), transient=True, disable=options.json) as progress,
    ):
        try:
            figures = run(options, Path(folder), progress)
        except (Failure, ThorPolicyError) as error:
            print(f"chaos: {error}", file=sys.stderr)
            return 2
    if options.json:
        print(json.dumps(figures, indent=1))
    else:
        show(figures)
    return 1 if figures["problems"] else 0


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
