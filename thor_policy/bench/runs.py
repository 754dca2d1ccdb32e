"""What ours costs: `score` over a bare decode, a daemon over both, and how many it serves.

Owns the `engine` and `daemon` measurements. Invariant: what is compared alternates on the same questions.
Main thread.
"""

from __future__ import annotations

import contextlib
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import msgspec
import zmq

from thor_policy import catalog
from thor_policy.bench.children import bare_model, own_place
from thor_policy.bench.children import daemon as daemon_child
from thor_policy.bench.figures import Rate, Report, Series, ratio
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.errors import EngineError
from thor_policy.core.requests import Evaluation, Json
from thor_policy.daemon import loading
from thor_policy.engine.llama import NEVER_NS, LlamaEngine
from thor_policy.engine.native import build_name
from thor_policy.policy.pack import Pack
from thor_policy.telemetry.machine import machine

#: Questions that were asked before, whose answers are timed.
HITS = 200

Advance = Callable[[], None]
T = TypeVar("T")


def engine(config: Config, evaluations: Sequence[Evaluation], *, rounds: int, advance: Advance) -> Report:
    """`score` against one bare decode of the same tokens in the same stream."""
    pack = loading.load_pack(config)
    questions = [pack.question(e, pack.book.apply(e, time.time()).facts) for e in evaluations]
    floor: list[float] = []
    score: list[float] = []
    with contextlib.closing(loading.load_engine(config)) as running:
        if not isinstance(running, LlamaEngine):
            raise EngineError("the floor can be measured for an engine in this process only")
        running.load(pack.prefix)
        order = random.Random(0)  # noqa: S311  (a shuffle, not a secret)
        for question in shuffled(questions, rounds, order):
            ways = [
                partial(_append, floor, running.bare_decode_ms, pack, question),
                partial(_append, score, partial(_scored_ms, running), pack, question),
            ]
            order.shuffle(ways)
            for way in ways:
                way()
            advance()
    series = (Series(name="bare decode", ms=tuple(floor)), Series(name="score", ms=tuple(score)))
    ratios = (ratio(series[1], series[0], bound="at most 1.05, plus 1 ms"),)
    return Report(
        name="engine",
        machine=machine(),
        versions={"engine": build_name(), "model": config.model},
        questions=len(questions),
        rounds=rounds,
        series=series,
        ratios=ratios,
    )


def daemon(config: Config, evaluations: Sequence[Evaluation], *, requests: int, advance: Advance) -> Report:
    """A daemon with the real model and one client; one with the stub engine, one client and 256 in flight."""
    pack = loading.load_pack(config)
    asked = for_the_model(pack, evaluations)
    facts: dict[str, float] = {}
    stages: dict[str, list[float]] = {}
    with own_place(config) as place, daemon_child(place) as child:
        with Client(place.endpoint, timeout_ms=60_000) as client:
            for number in range(requests):
                answer = client.evaluate(plain(asked[number % len(asked)]))["context"]
                for stage, ms in answer["timings_ms"].items():
                    stages.setdefault(stage, []).append(ms)
                advance()
        facts["rss_mb_daemon"] = child.rss_mb
    facts |= _start(config)
    rest = [t - s - c for t, s, c in zip(stages["total"], stages["score"], stages["commit"], strict=True)]
    series = [Series(name=f"model: {stage}", ms=tuple(ms)) for stage, ms in stages.items()]
    series.append(Series(name="model: total less score and commit", ms=tuple(rest)))
    with own_place(config) as place, daemon_child(replace(place, cache_size=len(asked))):
        again = [json.dumps({"v": 1, "id": "b", "request": plain(one)}).encode() for one in asked[:20]]
        _one_client(place, again, len(again))
        trips, commits = _one_client(place, again, HITS)
        series.append(Series(name="asked before: round trip", ms=tuple(trips)))
        facts["cache_hit_less_commit_p50_ms"] = _less_commit_ms(trips, commits)
    with own_place(config) as place, daemon_child(place, stub=True):
        frames = [json.dumps({"v": 1, "id": "b", "request": plain(e)}).encode() for e in evaluations]
        trips, commits = _one_client(place, frames, 1_000)
        series.append(Series(name="stub: round trip", ms=tuple(trips)))
        series.append(Series(name="stub: commit", ms=tuple(commits)))
        facts["stub_round_trip_less_commit_p50_ms"] = _less_commit_ms(trips, commits)
        rates = sorted(_pipelined(place, frames, total=5_000, window=256) for _ in range(3))
    rate = Rate(name="stub engine, 256 in flight, median of 3", per_s=rates[1], count=5_000)
    return Report(
        name="daemon",
        machine=machine(),
        versions={"engine": build_name(), "model": config.model},
        questions=len(asked),
        rounds=1,
        series=tuple(series),
        rates=(rate,),
        facts=facts,
    )


def _start(config: Config) -> dict[str, float]:
    """Seconds from a process's start to ready, medians of 3: bare model and context, and a warm daemon."""
    model = catalog.resolve(config.model, config.models_dir).path
    bare_s, warm_s, facts = [], [], {}
    with own_place(config) as place:
        with daemon_child(place):
            pass  # keeps the prefix state
        for _ in range(3):
            started = time.monotonic()
            with bare_model(config, model) as bare:
                bare_s.append(time.monotonic() - started)
                facts["rss_mb_bare_model_and_context"] = bare.rss_mb
            started = time.monotonic()
            with daemon_child(place):
                warm_s.append(time.monotonic() - started)
    facts["start_s_bare_model_and_context"] = statistics.median(bare_s)
    facts["start_s_daemon_warm"] = statistics.median(warm_s)
    return facts


def for_the_model(pack: Pack, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Those that rules alone do not settle."""
    return [one for one in evaluations if not pack.book.apply(one, time.time()).final]


def plain(evaluation: Evaluation) -> Json:
    """An evaluation as a client would send it."""
    return msgspec.to_builtins(evaluation)


def shuffled(items: Sequence[T], rounds: int, order: random.Random) -> Iterator[T]:
    """Every item once a round, each round in another order."""
    for _ in range(rounds):
        again = list(items)
        order.shuffle(again)
        yield from again


def _append(into: list[float], measure: Callable[[str, str], float], pack: Pack, question: str) -> None:
    into.append(measure(pack.info.sha256, question))


def _scored_ms(running: LlamaEngine, pack_sha256: str, question: str) -> float:
    started_ns = time.monotonic_ns()
    running.score(pack_sha256, question, NEVER_NS)
    return (time.monotonic_ns() - started_ns) / 1e6


@contextlib.contextmanager
def _dealer(place: Config) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as opened:
        opened.set(zmq.LINGER, 0)
        opened.set(zmq.RCVTIMEO, 60_000)
        opened.connect(place.endpoint)
        yield opened


def _one_client(place: Config, frames: Sequence[bytes], total: int) -> tuple[list[float], list[float]]:
    """Round trips of one client and the commits within them, in ms."""
    trips, commits = [], []
    with _dealer(place) as opened:
        for number in range(total):
            started_ns = time.monotonic_ns()
            opened.send(frames[number % len(frames)])
            reply = opened.recv()
            trips.append((time.monotonic_ns() - started_ns) / 1e6)
            commits.append(json.loads(reply)["context"]["timings_ms"]["commit"])
    return trips, commits


def _less_commit_ms(trips: Sequence[float], commits: Sequence[float]) -> float:
    """What a round trip takes beside its commit, in ms, median."""
    return statistics.median(trip - commit for trip, commit in zip(trips, commits, strict=True))


def _pipelined(place: Config, frames: Sequence[bytes], *, total: int, window: int) -> float:
    """Decisions per second with `window` in flight."""
    with _dealer(place) as opened:
        sent = got = 0
        started = time.monotonic()
        while got < total:
            while sent < total and sent - got < window:
                opened.send(frames[sent % len(frames)])
                sent += 1
            opened.recv()
            got += 1
        return total / (time.monotonic() - started)
