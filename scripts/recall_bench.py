"""Build a journal with vectors of situations, and measure the search for precedents there.

Owns the command of scripts/recall-bench and its folder. The situations are those of the shipped suites and
generated ones; as many are embedded as fit in a time, and the others get the vector of one of them, turned a
little, which makes near-ties. Questions are embedded situations that are in no journal. Invariant: recall is
measured against the cosine of every vector; the folder is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy
from msgspec.structs import replace

from thor_policy.cli.render import counting
from thor_policy.config import Config
from thor_policy.core.decisions import Decision, Floor, PackInfo, Timings
from thor_policy.core.ids import new_id
from thor_policy.core.recall import DIMENSIONS, Filters, SimilarQuery
from thor_policy.core.requests import Action, Caller, Entity, Evaluation
from thor_policy.core.situations import situation_of
from thor_policy.daemon.loading import load_embedder
from thor_policy.engine.embedder import QUICK_FILE, MiniLM
from thor_policy.journal import events
from thor_policy.journal.batch import Placed, prepare
from thor_policy.journal.events import Event
from thor_policy.journal.maintenance.tasks import transaction
from thor_policy.journal.reader import Reader
from thor_policy.journal.writer import Journal
from thor_policy.suites.suite_files import load
from thor_policy.telemetry import clocks
from thor_policy.trace.precedents import Recall
from training_data.domains import DOMAINS
from training_data.forms import situations

#: The goals: recall at 10, the 95th percentile in milliseconds, and how much a filter may cost.
GOAL_RECALL, GOAL_MS, GOAL_FILTER = 0.95, 20.0, 2.0
#: Questions that are timed, of which as many are compared with the exact search.
QUESTIONS, COMPARED = 100, 30
#: Events in one transaction.
BATCH = 5_000
#: How far a vector that is made from another is turned: the length of the noise beside it.
NOISE = 0.35
BEGIN_AT = 1.79e9
TEMPLATE = Decision(
    id="",
    at=BEGIN_AT,
    evaluation=Evaluation(
        subject=Entity(type="user", id="u"), action=Action(name="a"), resource=Entity(type="r", id="r")
    ),
    caller=Caller(transport="ipc", uid=1000, gid=1000, pid=4242),
    outcome="deny",
    allow=False,
    tier="rule",
    floor=Floor(outcome="deny", final=True, rules=("freeze",), clauses=("R3",), because="the freeze is on"),
    risk="high",
    pack=PackInfo(name="bench", version="1", sha256="b1" * 32),
    model=None,
    timings=Timings(queue_ms=0.1, rules_ms=0.4),
)


def real_questions() -> Iterator[Evaluation]:
    """Those of the shipped suites, then generated ones of every pack in turn, without end."""
    for path in sorted(Path("scenarios").glob("*.yaml")):
        for scenario in load(path).scenarios:
            yield scenario.evaluation()
    seed = 0
    while True:
        seed += 1
        for name in DOMAINS:
            for situation in situations(name, 500, seed, only_judged=False):
                yield msgspec.convert(situation.evaluation, Evaluation)


def embedded(cache: Path, embed_s: float, most: int) -> tuple[list[Evaluation], Any]:
    """Questions with their vectors: from the cache, or embedded within a time and then cached."""
    if cache.is_file():
        stored = numpy.load(cache)
        lines = bytes(stored["questions"]).decode().splitlines()
        return [msgspec.json.decode(line, type=Evaluation) for line in lines], stored["vectors"]
    embedder = MiniLM(Config().models_dir, QUICK_FILE)
    questions, vectors, seen = [], [], set()
    ends_at = time.monotonic() + embed_s
    for question in real_questions():
        text = situation_of(question)
        if text in seen:
            continue
        seen.add(text)
        questions.append(question)
        vectors.append(embedder.embed(text))
        if time.monotonic() > ends_at or len(questions) >= most:
            break
    order = random.Random(0).sample(range(len(questions)), len(questions))
    questions, made = [questions[at] for at in order], numpy.array([vectors[at] for at in order], "<f4")
    lines = b"\n".join(map(msgspec.json.encode, questions))
    numpy.savez(cache, questions=numpy.frombuffer(lines, numpy.uint8), vectors=made)
    return questions, made


# ---------------------------------------------------------------- building


def build(path: Path, count: int, questions: list[Evaluation], vectors: Any) -> None:
    """Write the journal with a vector and a summary for each decision."""
    with Journal(path, synchronous="OFF") as journal:
        journal.commit(events.pack_activated(TEMPLATE.pack, BEGIN_AT)).result()
    with closing(sqlite3.connect(path, isolation_level=None)) as db, counting("decisions built") as built:
        db.execute("PRAGMA synchronous = OFF")
        db.execute("PRAGMA cache_size = -200000")
        seq, head = db.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        draw, noise = random.Random(1), numpy.random.default_rng(1)
        number = 0
        while number < count:
            chosen = [
                (number + at) if number + at < len(questions) else draw.randrange(len(questions))
                for at in range(min(BATCH, count - number))
            ]
            page = vectors[chosen] + numpy.array(
                [[number + at >= len(questions)] for at in range(len(chosen))]
            ) * (NOISE / DIMENSIONS**0.5 * noise.standard_normal((len(chosen), DIMENSIONS)))
            page /= numpy.linalg.norm(page, axis=1, keepdims=True)
            batch = [decision(number + at, questions[which]) for at, which in enumerate(chosen)]
            placed = Placed(seq, head, clocks.now)
            for event in batch:
                placed.add(prepare(event, 0))
            with transaction(db):
                placed.write(db)
                rows = range(seq + 1, placed.seq + 1)
                texts = [situation_of(questions[which]) for which in chosen]
                stored = page.astype("<f2")
                db.executemany(
                    "INSERT INTO vectors (seq, embedder, vector) VALUES (?, 'all-MiniLM-L6-v2.int8', ?)",
                    [(row, stored[at].tobytes()) for at, row in enumerate(rows)],
                )
                db.executemany("INSERT INTO summaries VALUES (?, ?)", zip(rows, texts, strict=True))
                db.executemany(
                    "INSERT INTO summaries_words (rowid, text) VALUES (?, ?)", zip(rows, texts, strict=True)
                )
            seq, head = placed.seq, placed.head
            number += len(chosen)
            built(number)


def decision(number: int, question: Evaluation) -> Event:
    by_one = replace(question, subject=replace(question.subject, id=f"u{number % 1000}"))
    return events.decision_event(replace(TEMPLATE, id=new_id(), at=BEGIN_AT + number, evaluation=by_one))


# ---------------------------------------------------------------- measuring


def times_of(recall: Recall, questions: list[SimilarQuery]) -> list[float]:
    """Milliseconds of each search, sorted."""
    took = []
    for question in questions:
        begun_ns = time.perf_counter_ns()
        recall.search(question, now=BEGIN_AT + 1e7)
        took.append((time.perf_counter_ns() - begun_ns) / 1e6)
    return sorted(took)


def shown(times: list[float]) -> dict[str, float]:
    return {
        "p50_ms": round(statistics.median(times), 2),
        "p95_ms": round(times[int(0.95 * len(times))], 2),
        "max_ms": round(times[-1], 2),
    }


def measure(path: Path, questions: list[Evaluation], vectors: Any) -> dict[str, Any]:
    embedder = load_embedder(Config())
    with Reader(path) as reader:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begun = time.monotonic()
        recall = Recall(reader, embedder=embedder, most=10_000_000)
        recall.refresh()
        rebuild_s = time.monotonic() - begun
        index = recall.index
        assert index is not None
        figures: dict[str, Any] = {
            "decisions": len(index),
            "rebuild_s": round(rebuild_s, 1),
            "index_mb": index.size_bytes >> 20,
            "grown_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10,
            "load": [round(load, 1) for load in os.getloadavg()],
        }
        hits = steps = 0
        own, filtered, exact_ms = [], [], []
        of_one = Filters(actor="user:u7")
        for vector in vectors[:COMPARED]:
            begun_ns = time.perf_counter_ns()
            exact = index.exact(vector, Filters(), 10)
            exact_ms.append((time.perf_counter_ns() - begun_ns) / 1e6)
            near = dict(index.nearest(vector, Filters(), 100))
            hits += sum(seq in list(near)[:10] for seq, _ in exact)
            steps += 10
        for vector in vectors[:QUESTIONS]:
            for filters, into in ((Filters(), own), (of_one, filtered)):
                begun_ns = time.perf_counter_ns()
                index.nearest(vector, filters, 100)
                into.append((time.perf_counter_ns() - begun_ns) / 1e6)
        embed_ms = []
        for question in questions[:QUESTIONS]:
            begun_ns = time.perf_counter_ns()
            embedder.embed(situation_of(question))
            embed_ms.append((time.perf_counter_ns() - begun_ns) / 1e6)
        queries = [SimilarQuery(question=question) for question in questions[:QUESTIONS]]
        times_of(recall, queries[:20])
        figures |= {
            "recall_at_10": round(hits / steps, 4),
            "exact_p50_ms": round(statistics.median(exact_ms), 1),
            "embed": shown(sorted(embed_ms)),
            "index": shown(sorted(own)),
            "index_filter_0.1%": shown(sorted(filtered)),
            "search": shown(times_of(recall, queries)),
            "search_filter_0.1%": shown(
                times_of(recall, [replace(each, filters=of_one) for each in queries])
            ),
            "search_without_vectors": shown(times_of(Recall(reader), queries)),
        }
    return figures


def main(arguments: list[str] | None = None) -> int:
    """Build, measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="recall-bench",
        description=f"Measure the search for precedents. Status 0: recall at 10 is at least {GOAL_RECALL}, "
        f"the 95th percentile below {GOAL_MS:g} ms, and a filter costs at most {GOAL_FILTER:g} times.",
    )
    parser.add_argument("--decisions", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument(
        "--embed-s", type=float, default=120.0, help="seconds of embedding; default: %(default)s"
    )
    parser.add_argument("--cache", type=Path, help="keep the embedded situations in this file")
    parser.add_argument("--folder", type=Path, help="where to make the temporary folder")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="tp-recall-", dir=options.folder) as name:
        folder = Path(name)
        cache = options.cache or folder / "situations.npz"
        questions, vectors = embedded(cache, options.embed_s, options.decisions)
        held_out = min(QUESTIONS, len(questions) // 5)
        path = folder / "policy_decisions.db"
        build(path, options.decisions, questions[held_out:], vectors[held_out:])
        figures = {
            "embedded": len(questions),
            "journal_mb": path.stat().st_size >> 20,
            **measure(path, questions[:held_out], vectors[:held_out]),
        }
    print(json.dumps(figures, indent=1))
    good = (
        figures["recall_at_10"] >= GOAL_RECALL
        and figures["search"]["p95_ms"] < GOAL_MS
        and figures["search_filter_0.1%"]["p50_ms"] <= GOAL_FILTER * figures["search"]["p50_ms"]
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
