"""Build journals of many nodes of work, and time what reads the graph of work there.

Owns the command of scripts/work-bench and its folders. The nodes are events of the usual kind on a valid
chain, written through the batches of the journal in large transactions. The newest 200 goals have 500 parts
each, the worst case of the pulse. Invariant: each figure is that of a reader which was opened for it,
as a command does; nothing is synced, and the folder is removed at the end.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trace_bench import BEGIN_AT, CALLER, PACK, _time_ms, write

from thor_policy.core import records
from thor_policy.core.ids import new_id
from thor_policy.journal import events, work_queries
from thor_policy.journal.events import Event
from thor_policy.journal.reader import Reader
from thor_policy.journal.writer import Journal
from thor_policy.trace import timeline, work_graph
from thor_policy.trace.context import context
from thor_policy.trace.pulse import pulse

#: Goals with many parts, and how many; of the other nodes each so many is superseded by the next of its type.
GOALS, PARTS, SUPERSEDED_EVERY = 200, 500, 10
#: Nodes of one session, in order of recording.
OF_SESSION = 200
#: The types of the other nodes, in turn.
TYPES = ("goal", "option", "decision", "action", "observation")
#: How often each call is timed, the goal of each in milliseconds, and how much ten times the nodes may cost.
REPEATS, GOAL_MS, MOST_GROWTH = 15, 200, 2.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nodes", type=int, default=200_000, help="how many nodes (default: 200000)")
    parser.add_argument("--folder", type=Path, help="where to make the temporary folder")
    options = parser.parse_args()
    figures = []
    for count in (options.nodes // 10, options.nodes):
        with tempfile.TemporaryDirectory(prefix="tp-work-", dir=options.folder) as folder:
            path = Path(folder) / "policy_decisions.db"
            ids = build(path, count)
            figures.append(measure(path, ids))
    missed = 0
    for name, (less, more) in {name: (figures[0][name], figures[1][name]) for name in figures[0]}.items():
        growth = more[2] / less[2]
        fails = more[0] >= GOAL_MS or (growth > MOST_GROWTH and more[2] >= 2)  # a growth below 2 ms is noise
        missed += fails
        print(
            f"{name}: median {less[0]:.2f} ms, then {more[0]:.2f} ms, slowest {more[1]:.2f} ms; of processor "
            f"time {less[2]:.2f} ms, then {more[2]:.2f} ms: {growth:.1f} times (goal {GOAL_MS} ms, "
            f"{MOST_GROWTH:g} times{', missed' if fails else ''})"
        )
    return int(missed > 0)


def build(path: Path, count: int) -> dict[str, str]:
    """Write the journal; returns ids by what they are."""
    with Journal(path, synchronous="OFF") as journal:
        journal.commit(events.pack_activated(PACK, BEGIN_AT)).result()
    ids: dict[str, str] = {}
    started = time.monotonic()
    write(path, work(count, ids))
    seconds = time.monotonic() - started
    print(f"built: {count:,} nodes and their links, {count / seconds:,.0f} nodes a second", flush=True)
    return ids


def work(count: int, ids: dict[str, str]) -> Iterator[Event]:
    """Nodes and links: goals with options, decisions and actions; then the goals with many parts."""
    made = 0

    def node(type: str, **fields: Any) -> tuple[str, Event]:
        nonlocal made
        made += 1
        record = records.Node(
            type=type,  # type: ignore[arg-type]
            title=f"{type} {made}",
            confidence=made % 101,
            session=f"s{made // OF_SESSION}",
            agent=f"agent-{made % 20}",
            **fields,
        )
        id = new_id()
        return id, events.record_event(record, record_id=id, at=BEGIN_AT + made, caller=CALLER)

    def link(source: str, type: str, target: str) -> Event:
        edge = records.Edge(source=source, target=target, type=type)  # type: ignore[arg-type]
        return events.record_event(edge, record_id=new_id(), at=BEGIN_AT + made, caller=CALLER)

    last: dict[str, str] = {}
    while made < count:
        type = TYPES[made % len(TYPES)]
        id, event = node(type)
        yield event
        if type != "goal" and "goal" in last:
            yield link(last["goal"], "leads_to", id)
        if made % SUPERSEDED_EVERY < len(TYPES) and type in last and made % 2:
            yield link(id, "supersedes", last[type])
        last[type] = id
        if made == count // 3:
            ids["middle"] = id
    for _ in range(GOALS):
        goal, event = node("goal")
        yield event
        ids["goal"] = goal
        for _ in range(PARTS):
            part, event = node("option")
            yield event
            yield link(goal, "leads_to", part)
    ids["session"] = f"s{made // OF_SESSION - 1}"


def measure(path: Path, ids: dict[str, str]) -> dict[str, tuple[float, float, float]]:
    """The median and the slowest of each call, and the median of its processor time, in milliseconds."""

    def with_reader(call: Callable[[Reader], Any]) -> Callable[[], Any]:
        def timed() -> Any:
            with Reader(path) as reader:
                return call(reader)

        return timed

    calls: dict[str, Callable[[Reader], Any]] = {
        "list of superseded nodes": lambda reader: work_queries.nodes(reader, status="superseded"),
        "list of active goals": lambda reader: work_queries.nodes(reader, type="goal", status="active"),
        "list of an agent": lambda reader: work_queries.nodes(reader, agent="agent-7"),
        "node by the end of its id": lambda reader: work_queries.resolve(reader, ids["middle"][-12:]),
        f"pulse, {GOALS} goals of {PARTS} parts": lambda reader: pulse(reader, now=BEGIN_AT + 1e9),
        "timeline of a goal": lambda reader: timeline.by_goal(reader, ids["goal"], limit=100),
        "timeline of a session": lambda reader: timeline.by_session(reader, ids["session"], limit=100),
        "context": lambda reader: context(reader, session=ids["session"]),
        "graph around a goal": lambda reader: work_graph.around(reader, ids["goal"], depth=2),
    }
    figures = {}
    for name, call in calls.items():
        timed = [_time_ms(with_reader(call)) for _ in range(REPEATS)]
        times_ms, processor_ms = zip(*timed, strict=True)
        figures[name] = (statistics.median(times_ms), max(times_ms), statistics.median(processor_ms))
    return figures


if __name__ == "__main__":
    sys.exit(main())
