"""Build a journal of many decisions, and time what reads traces there.

Owns the command of scripts/trace-bench and its folder. The decisions are events of the usual kind on a valid
chain, written through the batches of the journal in large transactions, so a million takes minutes. On top
come the records of one rich trace, and a chain of decisions each superseded by the next. Invariant: each
figure is that of a reader which was opened for it, as a command does; nothing is synced, and the folder is
removed at the end.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from thor_policy.cli.render import counting
from thor_policy.core import records
from thor_policy.core.decisions import Decision, Explanation, Floor, PackInfo, Timings, Traits
from thor_policy.core.ids import new_id
from thor_policy.core.requests import Action, Caller, Entity, Evaluation
from thor_policy.journal import events, trace_queries
from thor_policy.journal.batch import Placed, prepare
from thor_policy.journal.events import Event
from thor_policy.journal.maintenance.tasks import transaction
from thor_policy.journal.reader import Reader
from thor_policy.journal.writer import Journal
from thor_policy.telemetry import clocks
from thor_policy.trace.compliance import Report
from thor_policy.trace.impact import of_pack, of_precedent
from thor_policy.trace.reading import read_trace

#: Events in one transaction, and how often each look-up is timed.
BATCH, LOOKUPS = 2_000, 200
#: Actors and entities of the decisions (Zipf's law: the first entity has a fifth of all).
ACTORS, ENTITIES = 200, 80
#: Length of the chain of superseded decisions, and what cites and supports the rich trace.
CHAIN, CITING = 1_000, 500
#: Each of so many decisions is an exception with two approvals; rows of a page of a report.
EXCEPTION_EVERY, PAGE = 100, 100
#: The goals, in milliseconds.
GOALS_MS = {
    "trace ID": 10,
    "traces of an entity": 20,
    "supersede chain": 50,
    "compliance": 200,
    "impact": 200,
}

BEGIN_AT = 1.79e9
PACK = PackInfo(name="bench", version="1", sha256="b1" * 32)
CALLER = Caller(transport="ipc", uid=1000, gid=1000, pid=4242)
TEMPLATE = Decision(
    id="",
    at=BEGIN_AT,
    evaluation=Evaluation(
        subject=Entity(type="user", id="u", properties={"role": "engineer", "trust": {"competence": 0.9}}),
        action=Action(name="deploy"),
        resource=Entity(type="env", id="r"),
        context={"timestamp": "2026-07-01T12:00:00Z", "details": "the weekly release of the service"},
    ),
    caller=CALLER,
    outcome="deny",
    allow=False,
    tier="rule",
    floor=Floor(outcome="deny", final=True, rules=("freeze",), clauses=("R3",), because="the freeze is on"),
    risk="high",
    pack=PACK,
    model=None,
    explanation=Explanation(
        classification="freeze_violation", clauses=("R3",), reasoning="the freeze is on", text=""
    ),
    timings=Timings(queue_ms=0.1, rules_ms=0.4),
)
EXCEPTION = replace(TEMPLATE.floor, traits=Traits(type="exception", is_exception=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--decisions", type=int, default=20_000, help="how many decisions (default: 20000)")
    parser.add_argument("--folder", type=Path, help="where to make the temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tp-trace-", dir=options.folder) as folder:
        path = Path(folder) / "policy_decisions.db"
        ids = build(path, max(options.decisions, 2 * CHAIN))
        return measure(path, ids)


# ---------------------------------------------------------------- building


def build(path: Path, count: int) -> list[str]:
    """Write the journal; returns the ids of the last decisions: the chain, then the rich trace."""
    with Journal(path, synchronous="OFF") as journal:
        journal.commit(events.pack_activated(PACK, BEGIN_AT)).result()
    started = time.monotonic()
    ids = write(path, decisions(count))
    seconds = time.monotonic() - started
    size = path.stat().st_size
    print(f"built: {count:,} decisions, {count / seconds:,.0f} a second, {size / count:,.0f} bytes each")
    started = time.monotonic()
    with Journal(path, synchronous="OFF") as journal:
        fates = journal.commit_all(list(statements(ids))).result()
    if wrong := [fate.message for fate in fates if fate.error is not None]:
        raise SystemExit(f"{len(wrong)} records were refused: {wrong[0]}")
    print(f"stated: {len(fates):,} records, {len(fates) / (time.monotonic() - started):,.0f} a second")
    return ids


def decisions(count: int) -> Iterator[Event]:
    order = random.Random(0)
    actors = order.choices(range(ACTORS), [1 / (rank + 1) for rank in range(ACTORS)], k=8_192)
    entities = order.choices(range(ENTITIES), [1 / (rank + 1) for rank in range(ENTITIES)], k=8_192)
    evaluation = TEMPLATE.evaluation
    exceptions: list[str] = []  # each but the first cites an earlier one, so all rest on the first
    for number in range(count):
        evaluated = replace(
            evaluation,
            subject=replace(evaluation.subject, id=f"u{actors[number % 8_192]}"),
            resource=Entity(type="env", id=f"r{entities[number % 8_192]}"),
        )
        at = BEGIN_AT + number
        decision = replace(TEMPLATE, id=new_id(), at=at, evaluation=evaluated)
        if number % EXCEPTION_EVERY:
            yield events.decision_event(decision)
        else:
            yield events.decision_event(replace(decision, floor=EXCEPTION))
            yield from approvals(decision.id, at)
            if exceptions:
                cited = exceptions[len(exceptions) // 10]
                edge = records.Edge(source=decision.id, target=cited, type="CITES")
                yield events.record_event(edge, record_id=new_id(), at=at, caller=CALLER)
            exceptions.append(decision.id)


def approvals(decision_id: str, at: float) -> Iterator[Event]:
    """Two approvals of an exception."""
    for step, role in enumerate(("lead", "director"), start=1):
        approval = records.Approval(
            decision_id=decision_id,
            approver=f"p{step}",
            role=role,
            channel="email",
            evidence="T-1",
            step=step,
        )
        yield events.record_event(approval, record_id=new_id(), at=at, caller=CALLER)


def write(path: Path, source: Iterator[Event]) -> list[str]:
    """Write events through the journal's own batches; returns the subjects of the newest `CHAIN + 1`."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection, counting("events") as written:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -262144")
        seq, head = connection.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        newest: list[str] = []
        while page := list(islice(source, BATCH)):
            placed = Placed(seq, head, clocks.now)
            for event in page:
                placed.add(prepare(event, 0))
            with transaction(connection):
                placed.write(connection)
            seq, head = placed.seq, placed.head
            written(seq)
            newest = [*newest, *(event.subject_id for event in page if event.kind == "decision")]
            newest = newest[-CHAIN - 1 :]
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return newest


def statements(ids: list[str]) -> Iterator[Event]:
    """The records of the rich trace, and the states of the chain."""
    rich, at = ids[-1], time.time()

    def sent(record: records.Record) -> Event:
        return events.record_event(record, record_id=new_id(), at=at, caller=CALLER)

    for number in range(3):
        yield sent(records.Consultation(decision_id=rich, system="crm", entity="tier", value=number))
        yield sent(records.Approval(decision_id=rich, approver=f"p{number}", role="lead", step=number + 1))
        yield sent(records.Edge(source=rich, target=ids[number], type="CITES", similarity=0.9, how="bench"))
    yield sent(records.Outcome(decision_id=rich, status="SUCCESS", value=1.0))
    for decision_id in ids[:CITING]:
        yield sent(records.Edge(source=decision_id, target=rich, type="CITES"))
    for older, newer in pairwise(ids[:-1]):
        yield sent(records.TraceState(decision_id=older, status="superseded", by=newer, because="newer"))


# ---------------------------------------------------------------- measuring


def measure(path: Path, ids: list[str]) -> int:
    """Print each figure beside its goal; 1 if a median misses it."""
    with Reader(path) as reader:
        newest = reader.newest_seq()
        order = random.Random(1)
        seqs = [order.randrange(1, newest) for _ in range(LOOKUPS)]
        some = [row["decision_id"] for seq in seqs for row in reader.newer_than(seq, 1)]
        (first,) = reader.newer_than(0, 1)
        entities = [f"env:r{number}" for number in (0, 1, 5, ENTITIES - 1)]
    last = ids[-2]

    def with_reader(call: Callable[[Reader], Any]) -> Callable[[], Any]:
        def timed() -> Any:
            with Reader(path) as reader:
                return call(reader)

        return timed

    def chain(reader: Reader) -> None:
        with reader.snapshot() as connection:
            successors = trace_queries.successors(connection, ids[0], limit=CHAIN)
        if len(successors) != CHAIN - 1 or successors[-1]["id"] != last:
            raise SystemExit(f"the chain has {len(successors)} successors")

    def listed(entity: str, status: str | None = None) -> Callable[[Reader], Any]:
        return lambda reader: trace_queries.traces(reader, entity=entity, status=status)  # type: ignore[arg-type]

    def page(**scope: Any) -> Callable[[Reader], Any]:
        chosen = {"type": "exception", "since": "2020-01-01", "until": None, "limit": PAGE} | scope
        return lambda reader: list(Report(reader, now=time.time() + 1e9, **chosen))

    def impact_of(decision_id: str) -> Callable[[Reader], Any]:
        return lambda reader: of_precedent(reader, decision_id)

    middle = events.timestamp(BEGIN_AT + newest / 2)
    calls = {
        "trace ID": [with_reader(lambda reader, id=id: read_trace(reader, id, depth=1)) for id in some],
        "trace ID, cited by 500": [with_reader(lambda reader: read_trace(reader, ids[-1]))] * 50,
        "traces of an entity": [with_reader(listed(entity)) for entity in entities] * 50,
        "traces of an entity, superseded": [with_reader(listed("env:r0", "superseded"))] * 50,
        "supersede chain of 1,000": [with_reader(chain)] * 20,
        "trace ID before a chain of 1,000": [with_reader(lambda reader: read_trace(reader, ids[0]))] * 20,
        f"compliance, page of {PAGE}": [with_reader(page())] * 50,
        f"compliance, page of {PAGE} from the middle": [with_reader(page(until=middle))] * 50,
        "impact of a precedent, cited by 500": [with_reader(impact_of(ids[-1]))] * 50,
        "impact of the first exception": [with_reader(impact_of(first["decision_id"]))] * 20,
        "impact of a pack": [with_reader(lambda reader: of_pack(reader, "bench@1"))] * 20,
        f"compliance, page of {PAGE} of a common type": [with_reader(page(type="policy_application"))] * 20,
    }
    missed = 0
    for name, group in calls.items():
        timed = [_time_ms(call) for call in group]
        times_ms, processor_ms = (sorted(column) for column in zip(*timed, strict=True))
        goal = next((ms for goal_name, ms in GOALS_MS.items() if name.startswith(goal_name)), None)
        if "chain" in name:
            goal = GOALS_MS["supersede chain"]
        median, high = statistics.median(times_ms), times_ms[int(len(times_ms) * 0.99)]
        fails = goal is not None and median >= goal
        missed += fails
        print(
            f"{name}: median {median:.2f} ms, 99 % below {high:.2f} ms, slowest {times_ms[-1]:.2f} ms, "
            f"of processor time {processor_ms[-1]:.2f} ms (goal {goal} ms{', missed' if fails else ''})"
        )
    return int(missed > 0)


def _time_ms(call: Callable[[], Any]) -> tuple[float, float]:
    """Elapsed and processor time of a call; the second does not grow on a busy machine."""
    started_ns, processor_ns = time.monotonic_ns(), time.thread_time_ns()
    call()
    elapsed_ns = time.monotonic_ns() - started_ns
    return elapsed_ns / 1e6, (time.thread_time_ns() - processor_ns) / 1e6


if __name__ == "__main__":
    sys.exit(main())
