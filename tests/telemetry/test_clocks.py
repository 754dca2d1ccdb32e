"""Clocks: which one measures elapsed time, and what counts as a step of the wall clock."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from thor_policy.telemetry import clocks
from thor_policy.telemetry.clocks import StepWatch

S = 10**9


def test_elapsed_time_is_that_since_the_boot_in_any_process() -> None:
    first = clocks.now()
    code = "from thor_policy.telemetry import clocks; print(*clocks.now())"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    boot_id, ns = run.stdout.split()
    last = clocks.now()
    assert first.boot_id == boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert first.ns < int(ns) < last.ns
    assert last.ns >= time.monotonic_ns() - S, "the seconds in suspension count"


def test_without_a_boot_id_nothing_of_another_process_is_comparable(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*_: object, **__: object) -> str:
        raise PermissionError

    monkeypatch.setattr(Path, "read_text", unreadable)
    ids = []
    for _ in range(2):
        clocks.boot_id.cache_clear()
        ids.append(clocks.boot_id())
        assert clocks.boot_id() == ids[-1]
    clocks.boot_id.cache_clear()
    assert len(set(ids)) == 2


def test_the_offset_is_wall_time_minus_boot_time() -> None:
    expected = time.time_ns() - clocks.boot_ns()
    assert abs(clocks.wall_offset_ns() - expected) < S


@pytest.mark.parametrize(
    ("offsets", "steps"),
    [
        ([0, 0, 0], []),
        ([0, S, 2 * S, S], []),  # slewed
        ([0, S + 1], [1.000000001]),
        ([0, -S - 1, -S - 1], [-1.000000001]),
        ([0, 90_000 * S, 90_000 * S, 0], [90_000.0, -90_000.0]),
        ([1_782_907_200 * S, 0], [-1_782_907_200.0]),  # to 1970
    ],
)
def test_each_step_of_more_than_a_second_is_logged_and_counted_once(
    offsets: list[int], steps: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    counters: Counter[str] = Counter()
    watch = StepWatch(counters, offsets[0])
    with caplog.at_level(logging.WARNING):
        turns = [watch.turn(offset) for offset in offsets[1:]]
    assert [step for step in turns if step] == steps
    assert counters["clock_steps"] == len(steps)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        f"the wall clock stepped by {step:+.1f} s" for step in steps
    ]
