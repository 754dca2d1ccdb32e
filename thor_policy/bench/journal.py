"""What the journal costs: events written per second, look-ups as it grows, verification, decisions beside it.

Owns the `journal` benchmark. Invariant: events are written through the journal that a daemon uses, with all
tables and indexes, and read through the reader that commands use. Main thread.
"""

from __future__ import annotations

import gc
import random
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import Struct, structs

from thor_policy.bench.figures import Advance, Announce, Fact, Rate, Ratio, Report, Series, ratio
from thor_policy.bench.runs import questions_for_model
from thor_policy.config import Config
from thor_policy.core.decisions import Decision, ModelInfo, Scored, Timings
from thor_policy.core.ids import new_id
from thor_policy.core.requests import Caller, Entity, Evaluation, Request
from thor_policy.core.results import Committed
from thor_policy.daemon import loading
from thor_policy.daemon.engine_thread import EngineThread
from thor_policy.journal import events, statistics
from thor_policy.journal.events import Event
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.journal.writer import Journal
from thor_policy.policy.decider import Policy
from thor_policy.policy.pack import Pack
from thor_policy.telemetry.machine import machine

#: Events in one transaction, and events that are built before they are written.
BATCH, CHUNK = 64, 20_000
#: The decisions span so many days and come from so many actors on so many entities (Zipf's law).
DAYS, ACTORS, ENTITIES = 30, 200, 80
#: How often each look-up is timed; the report has the median.
LOOKUPS = 30
#: Decisions of the model in a block; blocks with and without the journal alternate.
BLOCK = 8


def journal(
    config: Config,
    evaluations: list[Evaluation],
    *,
    rows: int,
    blocks: int,
    advance: Advance,
    announce: Announce,
) -> Report:
    """Write `rows` decisions, time look-ups at a tenth of them and at all, verify; then ask the model."""
    pack = loading.load_pack(config)
    rates: list[Rate] = []

    def add_rate(name: str, count: int, seconds: float) -> None:
        rates.append(Rate(name=name, per_s=count / seconds, count=count))
        announce(rates[-1])

    with tempfile.TemporaryDirectory(prefix="tp-bench-", dir=config.state_dir) as folder:
        path = Path(folder) / config.journal_path.name
        source = _decisions(pack, evaluations, rows)
        early, late = max(BATCH, rows // 10), rows
        early_s = _write(path, source, early, config.synchronous, advance)
        add_rate(f"decisions written, batches of {BATCH}, first tenth", early, early_s)
        at_early = _lookups(path, early, announce)
        late_s = _write(path, source, late - early, config.synchronous, advance)
        add_rate("decisions written, the rest", late - early, late_s)
        at_late = _lookups(path, rows, announce)
        floor_count = min(rows, CHUNK)
        floor_s = _bare_insert_s(Path(folder) / "floor.db", path, floor_count, config.synchronous)
        add_rate("bare inserts of the same bytes", floor_count, floor_s)
        size = path.stat().st_size
        started = time.monotonic()
        verdict = verify(path)
        add_rate("events verified", verdict.events, time.monotonic() - started)
        assert verdict.ok, verdict  # noqa: S101  (a benchmark of a broken journal would mean nothing)
    facts = {
        "bytes_per_decision": size / rows,
        "events_per_s_over_bare_inserts": rows / (early_s + late_s) * floor_s / floor_count,
    }
    facts |= {f"growth of {name}": at_late[name].median_ms / at_early[name].median_ms for name in at_late}
    for name, value in facts.items():
        announce(Fact(name=name, value=value))
    series = list(at_late.values())
    ratios: tuple[Ratio, ...] = ()
    if blocks:
        with_journal, without = _beside_the_model(config, pack, evaluations, blocks, advance)
        series += [with_journal, without]
        ratios = (ratio(without, with_journal, bound="at least 0.97 decisions/s"),)
        for figure in (with_journal, without, *ratios):
            announce(figure)
    return Report(
        name="journal",
        machine=machine(),
        versions={"sqlite": sqlite3.sqlite_version, "synchronous": config.synchronous, "batch": str(BATCH)},
        questions=rows,
        rounds=1,
        series=tuple(series),
        ratios=ratios,
        rates=tuple(rates),
        facts=facts,
    )


# ---------------------------------------------------------------- writing


def _decisions(pack: Pack, evaluations: list[Evaluation], rows: int) -> Iterator[Event]:
    """`rows` events of decisions as a model makes them, spread over `DAYS`."""
    order = random.Random(0)  # noqa: S311  (a workload, not a secret)
    actors = order.choices(range(ACTORS), [1 / (rank + 1) for rank in range(ACTORS)], k=8_192)
    entities = order.choices(range(ENTITIES), [1 / (rank + 1) for rank in range(ENTITIES)], k=8_192)
    templates = [_template(pack, evaluation) for evaluation in evaluations]
    begin, step_s = 1.79e9 - DAYS * 86_400, DAYS * 86_400 / rows
    for number in range(rows):
        template = templates[number % len(templates)]
        evaluation, label = template.evaluation, order.choice(pack.labels)
        decision = structs.replace(
            template,
            id=new_id(),
            at=begin + number * step_s,
            outcome=label,
            label=label,
            allow=label == pack.loosest,
            evaluation=structs.replace(
                evaluation,
                subject=structs.replace(evaluation.subject, id=f"u{actors[number % 8_192]}"),
                resource=Entity(type=evaluation.resource.type, id=f"r{entities[number % 8_192]}"),
            ),
        )
        yield events.decision_event(decision)


def _template(pack: Pack, evaluation: Evaluation) -> Decision:
    floor = pack.book.apply(evaluation, time.time())
    share = {label: 1 / len(pack.labels) for label in pack.labels}
    scored = Scored(
        label=pack.loosest,
        probabilities=share,
        logits=tuple(23.07777404785 + n for n in range(len(pack.labels) + 1)),
        suffix_tokens=tuple(range(10_000, 10_076)),
        prefix_tokens=1_241,
        prefix_digest="b2" * 32,
        score_ms=245.6,
    )
    return Decision(
        id="",
        at=0.0,
        evaluation=evaluation,
        caller=Caller(transport="ipc", uid=1000, gid=1000, pid=4242),
        outcome=pack.loosest,
        allow=True,
        tier="model",
        floor=floor,
        risk=floor.risk,
        pack=pack.info,
        model=ModelInfo(
            name="smollm2-135m-instruct-q4_1",
            sha256="b1" * 32,
            quantisation="Q4_1",
            architecture="llama",
            parameters=134_515_008,
            build="bench",
            device="cpu",
        ),
        confidence=share[pack.loosest],
        probabilities=share,
        scored=scored,
        timings=Timings(queue_ms=0.12, rules_ms=0.37, score_ms=245.6),
    )


def _write(path: Path, source: Iterator[Event], count: int, synchronous: str, advance: Advance) -> float:
    """Seconds to write `count` events, without the time to build them."""
    seconds, left = 0.0, count
    all_committed = threading.Semaphore(0)
    uncommitted = 0

    def on_committed(results: list[Committed]) -> None:
        nonlocal uncommitted
        uncommitted -= len(results)
        if uncommitted == 0:
            all_committed.release()

    with Journal(path, on_committed=on_committed, synchronous=synchronous, max_batch=BATCH) as journal:
        while left:
            chunk = [next(source) for _ in range(min(CHUNK, left))]
            uncommitted = len(chunk)
            gc.collect()
            gc.freeze()  # so that no garbage collection in the timed part scans the chunk
            started = time.monotonic()
            for event in chunk:
                journal.append(event)
            all_committed.acquire()
            seconds += time.monotonic() - started
            gc.unfreeze()
            left -= len(chunk)
            advance()
    return seconds


def _bare_insert_s(path: Path, journal: Path, count: int, synchronous: str) -> float:
    """Seconds to insert the same bytes in batches of the same size: one table, no chain, no index."""
    with closing(sqlite3.connect(journal)) as connection:
        rows = connection.execute(
            "SELECT e.body, p.value, d.situation FROM events e JOIN private p ON p.seq = e.seq "
            "JOIN decisions d ON d.seq = e.seq LIMIT ?",
            (count,),
        ).fetchall()
    with closing(sqlite3.connect(path, isolation_level=None)) as bare:
        bare.execute("PRAGMA journal_mode = WAL")
        bare.execute(f"PRAGMA synchronous = {synchronous}")
        bare.execute("CREATE TABLE rows (seq INTEGER PRIMARY KEY, a TEXT, b TEXT, c TEXT)")
        started = time.monotonic()
        for start in range(0, len(rows), BATCH):
            bare.execute("BEGIN IMMEDIATE")
            bare.executemany("INSERT INTO rows (a, b, c) VALUES (?, ?, ?)", rows[start : start + BATCH])
            bare.execute("COMMIT")
        return time.monotonic() - started


# ---------------------------------------------------------------- reading


def _lookups(path: Path, rows: int, announce: Announce) -> dict[str, Series]:
    """Times of each look-up in a journal of `rows` decisions, by the name of the look-up."""
    by_name: dict[str, Series] = {}

    def add(name: str, calls: list[Callable[[], Any]]) -> None:
        by_name[name] = _timed(f"{name}, {rows:,}", calls)
        announce(by_name[name])

    with Reader(path) as reader:
        newest = reader.decisions(limit=1)[0]
        (middle,) = reader.newer_than(reader.newest_seq() // 2, 1)
        ids = [row["decision_id"] for row in reader.newer_than(reader.newest_seq() // 3, LOOKUPS)]
        day_before = datetime.fromisoformat(newest["timestamp"]).astimezone(UTC).timestamp() - 86_400
        since = events.timestamp(day_before)
        filters_by_name = {
            "time": {"since": since},
            "actor": {"actor": middle["actor"]},
            "entity": {"entity": middle["entity"]},
            "outcome": {"outcome": middle["decision"]},
            "tier": {"tier": "model"},
            "a tier that nothing has": {"tier": "fallback"},
            "risk": {"risk": middle["risk_level"]},
            "type": {"type": "policy_application"},
            "unreviewed": {"reviewed": False},
            "incorrect": {"correct": False},
        }
        add("get by id", [partial(reader.get, decision_id) for decision_id in ids])
        for name, filters in filters_by_name.items():
            for suffix, start in (("", {}), (", from the middle", {"before": middle["decision_id"]})):
                page = partial(reader.decisions, **filters, **start)
                add(f"page by {name}{suffix}", [page] * LOOKUPS)
        add(
            "statistics of 24 h",
            [partial(statistics.statistics, reader, since=since)] * (LOOKUPS // 3),
        )
    return by_name


def _timed(name: str, calls: list[Callable[[], Any]]) -> Series:
    times_ms = []
    for call in calls:
        started_ns = time.monotonic_ns()
        call()
        times_ms.append((time.monotonic_ns() - started_ns) / 1e6)
    return Series(name=name, ms=tuple(times_ms))


# ---------------------------------------------------------------- beside the model


class _NullLog(Struct):
    """A decision log that records nothing."""

    def decided(self, decision: Decision, ticket: int | None = None) -> None:
        pass

    def explained(self, *_: Any) -> None:
        pass


def _beside_the_model(
    config: Config, pack: Pack, evaluations: list[Evaluation], blocks: int, advance: Advance
) -> tuple[Series, Series]:
    """Milliseconds per decision in blocks of `BLOCK`; blocks with and without the journal alternate."""
    questions = questions_for_model(pack, evaluations)
    ms_by_log: dict[str, list[float]] = {"journal": [], "no journal": []}
    order = random.Random(0)  # noqa: S311  (a shuffle, not a secret)
    with tempfile.TemporaryDirectory(prefix="tp-bench-", dir=config.state_dir) as folder:
        isolated = replace(config, state_dir=Path(folder), endpoint=f"ipc://{folder}/policy.sock")
        answered = threading.Semaphore(0)
        with Journal(isolated.journal_path, synchronous=config.synchronous) as real:
            logs = {"journal": real, "no journal": _NullLog()}
            log = _SwitchedLog(logs)
            engine_thread = EngineThread(
                lambda: Policy(loading.load_engine(config), pack), log, lambda *_: answered.release()
            )
            policy = engine_thread.start()
            try:
                for number in range(-1, blocks):  # block -1 fills the caches and is not timed
                    start = number * BLOCK
                    block = [questions[(start + offset) % len(questions)] for offset in range(BLOCK)]
                    names = list(logs)
                    order.shuffle(names)
                    for name in names:
                        log.name = name
                        started = time.monotonic()
                        for evaluation in block:
                            engine_thread.submit(policy.assess(_request(evaluation)))
                        for _ in block:
                            answered.acquire()
                        if number >= 0:
                            ms_by_log[name].append((time.monotonic() - started) * 1000 / BLOCK)
                    advance()
            finally:
                engine_thread.stop(30)
    return tuple(Series(name=f"model, {name}", ms=tuple(ms)) for name, ms in ms_by_log.items())  # type: ignore[return-value]


class _SwitchedLog:
    """A decision log that passes decisions to the log called `name`."""

    def __init__(self, logs: dict[str, Any]) -> None:
        self._logs = logs
        self.name = "no journal"

    def decided(self, decision: Decision, ticket: int | None = None) -> None:
        self._logs[self.name].decided(decision)

    def explained(self, *_: Any) -> None:
        pass

    def shadowed(self, *_: Any) -> None:
        pass


def _request(evaluation: Evaluation) -> Request:
    now_ns = time.monotonic_ns()
    return Request(
        ticket=0,
        evaluation=evaluation,
        caller=Caller(transport="inproc"),
        received_at=time.time(),
        received_ns=now_ns,
        deadline_ns=now_ns + 600 * 10**9,
    )
