"""What the journal costs: events written a second, look-ups as it grows, verification, and a model beside
it.

Owns the `journal` measurement. Invariant: everything is written through the journal that a daemon uses,
with all tables and indexes, and read through the reader that commands use. Main thread.
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

from thor_policy.bench.figures import Rate, Ratio, Report, Series, ratio
from thor_policy.bench.runs import Advance, for_the_model
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

#: Events in one transaction, and events made ready before they are written.
BATCH, CHUNK = 64, 20_000
#: The decisions are spread over so many days, by so many actors on so many entities (Zipf's law).
DAYS, ACTORS, ENTITIES = 30, 200, 80
#: How often each look-up is timed; a median is told.
LOOKUPS = 30
#: Decisions by the model in a block, with and without the journal in turn.
BLOCK = 8


def journal(
    config: Config, evaluations: list[Evaluation], *, rows: int, blocks: int, advance: Advance
) -> Report:
    """Write `rows` decisions, look things up at a tenth of them and at all, verify; then ask the model."""
    pack = loading.load_pack(config)
    with tempfile.TemporaryDirectory(prefix="tp-bench-", dir=config.state_dir) as folder:
        path = Path(folder) / config.journal_path.name
        source = _decisions(pack, evaluations, rows)
        early, late = max(BATCH, rows // 10), rows
        seconds = [_write(path, source, early, config.synchronous, advance)]
        at_early = _lookups(path)
        seconds.append(_write(path, source, late - early, config.synchronous, advance))
        at_late = _lookups(path)
        floor_s = _floor(Path(folder) / "floor.db", path, min(rows, CHUNK), config.synchronous)
        size = path.stat().st_size
        started = time.monotonic()
        verdict = verify(path)
        verify_s = time.monotonic() - started
        assert verdict.ok, verdict  # noqa: S101  (a benchmark of a broken journal would mean nothing)
    facts = {
        "bytes_per_decision": size / rows,
        "events_per_s_over_bare_inserts": rows / sum(seconds) * floor_s / min(rows, CHUNK),
    }
    facts |= {f"growth of {name}": at_late[name].median_ms / at_early[name].median_ms for name in at_late}
    series = [structs.replace(one, name=f"{name}, {rows:,}") for name, one in at_late.items()]
    ratios: tuple[Ratio, ...] = ()
    if blocks:
        with_journal, without = _beside_the_model(config, pack, evaluations, blocks, advance)
        series += [with_journal, without]
        ratios = (ratio(without, with_journal, bound="at least 0.97 decisions/s"),)
    return Report(
        name="journal",
        machine=machine(),
        versions={"sqlite": sqlite3.sqlite_version, "synchronous": config.synchronous, "batch": str(BATCH)},
        questions=rows,
        rounds=1,
        series=tuple(series),
        ratios=ratios,
        rates=(
            Rate(
                name=f"decisions written, batches of {BATCH}, first tenth",
                per_s=early / seconds[0],
                count=early,
            ),
            Rate(name="decisions written, the rest", per_s=(late - early) / seconds[1], count=late - early),
            Rate(
                name="bare inserts of the same bytes",
                per_s=min(rows, CHUNK) / floor_s,
                count=min(rows, CHUNK),
            ),
            Rate(name="events verified", per_s=verdict.events / verify_s, count=verdict.events),
        ),
        facts=facts,
    )


# ---------------------------------------------------------------- writing


def _decisions(pack: Pack, evaluations: list[Evaluation], rows: int) -> Iterator[Event]:
    """Events of decisions as a model makes them, `rows` in all, spread over `DAYS`."""
    order = random.Random(0)  # noqa: S311  (a workload, not a secret)
    actors = order.choices(range(ACTORS), [1 / (rank + 1) for rank in range(ACTORS)], k=8_192)
    entities = order.choices(range(ENTITIES), [1 / (rank + 1) for rank in range(ENTITIES)], k=8_192)
    templates = [_template(pack, one) for one in evaluations]
    begin, step_s = 1.79e9 - DAYS * 86_400, DAYS * 86_400 / rows
    for number in range(rows):
        template = templates[number % len(templates)]
        asked, label = template.evaluation, order.choice(pack.labels)
        decision = structs.replace(
            template,
            id=new_id(),
            at=begin + number * step_s,
            outcome=label,
            label=label,
            allow=label == pack.loosest,
            evaluation=structs.replace(
                asked,
                subject=structs.replace(asked.subject, id=f"u{actors[number % 8_192]}"),
                resource=Entity(type=asked.resource.type, id=f"r{entities[number % 8_192]}"),
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
    """Seconds to write `count` events, not counting the time that making them up takes."""
    seconds, left = 0.0, count
    done = threading.Semaphore(0)
    waited_for = 0

    def committed(fates: list[Committed]) -> None:
        nonlocal waited_for
        waited_for -= len(fates)
        if waited_for == 0:
            done.release()

    with Journal(path, on_committed=committed, synchronous=synchronous, max_batch=BATCH) as journal:
        while left:
            chunk = [next(source) for _ in range(min(CHUNK, left))]
            waited_for = len(chunk)
            gc.collect()
            gc.freeze()  # the chunk is ours, not the journal's to look through
            started = time.monotonic()
            for event in chunk:
                journal.append(event)
            done.acquire()
            seconds += time.monotonic() - started
            gc.unfreeze()
            left -= len(chunk)
            advance()
    return seconds


def _floor(path: Path, journal: Path, count: int, synchronous: str) -> float:
    """Seconds to insert the same bytes in batches of the same size: one table, no chain, no index."""
    with closing(sqlite3.connect(journal)) as reading:
        rows = reading.execute(
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


def _lookups(path: Path) -> dict[str, Series]:
    with Reader(path) as reader:
        newest = reader.decisions(limit=1)[0]
        (middle,) = reader.newer_than(reader.newest_seq() // 2, 1)
        ids = [one["decision_id"] for one in reader.newer_than(reader.newest_seq() // 3, LOOKUPS)]
        day = datetime.fromisoformat(newest["timestamp"]).astimezone(UTC).timestamp() - 86_400
        since = events.timestamp(day)
        some = {
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
        found = {"get by id": _timed("get by id", [partial(reader.get, one) for one in ids])}
        for name, filters in some.items():
            for told, more in (("", {}), (", from the middle", {"before": middle["decision_id"]})):
                page = partial(reader.decisions, **filters, **more)
                found[f"page by {name}{told}"] = _timed(name, [page] * LOOKUPS)
        found["statistics of 24 h"] = _timed(
            "statistics", [partial(statistics.statistics, reader, since=since)] * (LOOKUPS // 3)
        )
    return found


def _timed(name: str, calls: list[Callable[[], Any]]) -> Series:
    took = []
    for call in calls:
        started_ns = time.monotonic_ns()
        call()
        took.append((time.monotonic_ns() - started_ns) / 1e6)
    return Series(name=name, ms=tuple(took))


# ---------------------------------------------------------------- beside the model


class _NoLog(Struct):
    """Decisions that are not recorded at all."""

    def decided(self, decision: Decision, ticket: int | None = None) -> None:
        pass

    def explained(self, *_: Any) -> None:
        pass


def _beside_the_model(
    config: Config, pack: Pack, evaluations: list[Evaluation], blocks: int, advance: Advance
) -> tuple[Series, Series]:
    """Milliseconds a decision in blocks of `BLOCK`, with the journal and without it, in turn."""
    asked = for_the_model(pack, evaluations)
    took: dict[str, list[float]] = {"journal": [], "no journal": []}
    order = random.Random(0)  # noqa: S311  (a shuffle, not a secret)
    with tempfile.TemporaryDirectory(prefix="tp-bench-", dir=config.state_dir) as folder:
        place = replace(config, state_dir=Path(folder), endpoint=f"ipc://{folder}/policy.sock")
        answered = threading.Semaphore(0)
        with Journal(place.journal_path, synchronous=config.synchronous) as kept:
            logs = {"journal": kept, "no journal": _NoLog()}
            log = _Switch(logs)
            worker = EngineThread(
                lambda: Policy(loading.load_engine(config), pack), log, lambda *_: answered.release()
            )
            worker.start()
            try:
                for number in range(-1, blocks):  # the first fills caches
                    chosen = [asked[(number * BLOCK + one) % len(asked)] for one in range(BLOCK)]
                    names = list(logs)
                    order.shuffle(names)
                    for name in names:
                        log.name = name
                        started = time.monotonic()
                        for one in chosen:
                            worker.submit(_request(one))
                        for _ in chosen:
                            answered.acquire()
                        if number >= 0:
                            took[name].append((time.monotonic() - started) * 1000 / BLOCK)
                    advance()
            finally:
                worker.stop(30)
    return tuple(Series(name=f"model, {name}", ms=tuple(ms)) for name, ms in took.items())  # type: ignore[return-value]


class _Switch:
    """Sends decisions to the log whose turn it is."""

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
