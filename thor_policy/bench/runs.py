"""What thor-policy costs: `score` over a bare decode, a daemon over both, and its throughput.

Owns the `engine` and `daemon` benchmarks. Invariant: compared variants alternate on the same questions. Main
thread.
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

from thor_policy.bench.children import daemon as daemon_child
from thor_policy.bench.children import isolated_config
from thor_policy.bench.figures import Advance, Announce, Fact, Rate, Report, Series, ratio
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.errors import EngineError
from thor_policy.core.requests import NEVER_NS, Evaluation, Json
from thor_policy.daemon import loading
from thor_policy.engine.llama import LlamaEngine
from thor_policy.engine.native import build_name
from thor_policy.policy.pack import Pack
from thor_policy.telemetry.machine import machine

#: Timed requests that the score cache answers.
CACHE_HITS = 200

T = TypeVar("T")


def engine(
    config: Config, evaluations: Sequence[Evaluation], *, rounds: int, advance: Advance, announce: Announce
) -> Report:
    """`score` against one bare decode of the same tokens in the same stream."""
    pack = loading.load_pack(config)
    questions = [pack.question(e, pack.book.apply(e, time.time()).facts) for e in evaluations]
    floor: list[float] = []
    score: list[float] = []
    with contextlib.closing(loading.load_engine(config)) as llama:
        if not isinstance(llama, LlamaEngine):
            raise EngineError(
                "bench engine measures a model in this process only: unset engine_url, or run bench daemon"
            )
        llama.load(pack.prefix)
        order = random.Random(0)  # noqa: S311  (a shuffle, not a secret)
        for number, question in enumerate(shuffled(questions, rounds, order), start=1):
            measurements = [
                partial(_append, floor, llama.bare_decode_ms, pack, question),
                partial(_append, score, partial(_score_ms, llama), pack, question),
            ]
            order.shuffle(measurements)
            for measure in measurements:
                measure()
            advance()
            if number % len(questions) == 0:
                for name, ms in (("bare decode", floor), ("score", score)):
                    latest = tuple(ms[-len(questions) :])
                    announce(Series(name=f"{name}, round {number // len(questions)}", ms=latest))
    series = (Series(name="bare decode", ms=tuple(floor)), Series(name="score", ms=tuple(score)))
    ratios = (ratio(series[1], series[0], bound="at most 1.05, plus 1 ms"),)
    for figure in (*series, *ratios):
        announce(figure)
    return Report(
        name="engine",
        machine=machine(),
        versions={"engine": build_name(), "model": config.model},
        questions=len(questions),
        rounds=rounds,
        series=series,
        ratios=ratios,
    )


def daemon(
    config: Config, evaluations: Sequence[Evaluation], *, requests: int, advance: Advance, announce: Announce
) -> Report:
    """A daemon with the real model and one client; one with the stub engine, one client and 256 in flight."""
    pack = loading.load_pack(config)
    questions = questions_for_model(pack, evaluations)
    series: list[Series] = []
    facts: dict[str, float] = {}

    def add_series(name: str, ms: Sequence[float]) -> None:
        series.append(Series(name=name, ms=tuple(ms)))
        announce(series[-1])

    def add_fact(name: str, value: float) -> None:
        facts[name] = value
        announce(Fact(name=name, value=value))

    stages: dict[str, list[float]] = {}
    with (
        isolated_config(config) as isolated,
        daemon_child(isolated),
        Client(isolated.endpoint, timeout_ms=60_000) as client,
    ):
        for number in range(requests):
            context = client.evaluate(as_request(questions[number % len(questions)]))["context"]
            for stage, ms in context["timings_ms"].items():
                stages.setdefault(stage, []).append(ms)
            advance()
    for stage, stage_ms in stages.items():
        add_series(f"model: {stage}", stage_ms)
    rest = [t - s - c for t, s, c in zip(stages["total"], stages["score"], stages["commit"], strict=True)]
    add_series("model: total less score and commit", rest)
    with isolated_config(config) as isolated, daemon_child(replace(isolated, cache_size=len(questions))):
        frames = [_frame(question) for question in questions[:20]]
        _round_trips(isolated, frames, len(frames))  # fills the cache
        trips, commits = _round_trips(isolated, frames, CACHE_HITS)
    add_series("asked before: round trip", trips)
    add_fact("cache_hit_less_commit_p50_ms", _less_commit_ms(trips, commits))
    with isolated_config(config) as isolated, daemon_child(isolated, stub=True):
        frames = [_frame(evaluation) for evaluation in evaluations]
        trips, commits = _round_trips(isolated, frames, 1_000)
        add_series("stub: round trip", trips)
        add_series("stub: commit", commits)
        add_fact("stub_round_trip_less_commit_p50_ms", _less_commit_ms(trips, commits))
        rates = sorted(_pipelined_per_s(isolated, frames, total=5_000, window=256) for _ in range(3))
    rate = Rate(name="stub engine, 256 in flight, median of 3", per_s=rates[1], count=5_000)
    announce(rate)
    return Report(
        name="daemon",
        machine=machine(),
        versions={"engine": build_name(), "model": config.model},
        questions=len(questions),
        rounds=1,
        series=tuple(series),
        rates=(rate,),
        facts=facts,
    )


def questions_for_model(pack: Pack, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The evaluations that the pack's rules leave to the model."""
    return [evaluation for evaluation in evaluations if not pack.book.apply(evaluation, time.time()).final]


def as_request(evaluation: Evaluation) -> Json:
    """An evaluation as a client sends it."""
    return msgspec.to_builtins(evaluation)


def _frame(evaluation: Evaluation) -> bytes:
    return json.dumps({"v": 1, "id": "b", "request": as_request(evaluation)}).encode()


def shuffled(items: Sequence[T], rounds: int, order: random.Random) -> Iterator[T]:
    """Every item `rounds` times, one round after the other, each round in a new random order."""
    for _ in range(rounds):
        round_items = list(items)
        order.shuffle(round_items)
        yield from round_items


def _append(into: list[float], measure: Callable[[str, str], float], pack: Pack, question: str) -> None:
    into.append(measure(pack.info.sha256, question))


def _score_ms(llama: LlamaEngine, pack_sha256: str, question: str) -> float:
    started_ns = time.monotonic_ns()
    llama.score(pack_sha256, question, NEVER_NS)
    return (time.monotonic_ns() - started_ns) / 1e6


@contextlib.contextmanager
def _dealer(config: Config) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.set(zmq.LINGER, 0)
        dealer.set(zmq.RCVTIMEO, 60_000)
        dealer.connect(config.endpoint)
        yield dealer


def _round_trips(config: Config, frames: Sequence[bytes], total: int) -> tuple[list[float], list[float]]:
    """Round trips of one client, and the commit within each, in ms."""
    trips, commits = [], []
    with _dealer(config) as dealer:
        for number in range(total):
            started_ns = time.monotonic_ns()
            dealer.send(frames[number % len(frames)])
            reply = dealer.recv()
            trips.append((time.monotonic_ns() - started_ns) / 1e6)
            commits.append(json.loads(reply)["context"]["timings_ms"]["commit"])
    return trips, commits


def _less_commit_ms(trips: Sequence[float], commits: Sequence[float]) -> float:
    """Median of round trip less commit, in ms."""
    return statistics.median(trip - commit for trip, commit in zip(trips, commits, strict=True))


def _pipelined_per_s(config: Config, frames: Sequence[bytes], *, total: int, window: int) -> float:
    """Decisions per second with `window` in flight."""
    with _dealer(config) as dealer:
        sent = received = 0
        started = time.monotonic()
        while received < total:
            while sent < total and sent - received < window:
                dealer.send(frames[sent % len(frames)])
                sent += 1
            dealer.recv()
            received += 1
        return total / (time.monotonic() - started)
