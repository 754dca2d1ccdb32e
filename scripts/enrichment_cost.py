"""Time decisions of a daemon that enriches all of them beside one that enriches none, in pairs of runs.

Owns the command of scripts/enrichment-cost, the daemons that it starts, and their folder. Each run of a pair
starts a daemon, asks the same questions, and stops it; the order in a pair is drawn. Two loads: `busy` asks
without a pause, so that enrichment has no turn; `paced` waits longer than the quiet time before each
question, so that an enrichment is being written whenever one comes. Invariant: only one daemon runs at a
time.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from thor_policy.client.blocking import Client
from thor_policy.core.requests import Json
from thor_policy.journal.statistics import percentiles

SERVE = """
import sys
from pathlib import Path
from thor_policy.config import Config
from thor_policy.daemon.service import open_service
state_dir, endpoint, mode = sys.argv[1:]
config = Config(
    state_dir=Path(state_dir), endpoint=endpoint, enrichment=mode, cache_size=0, drift_every_s=0,
    summaries_per_s=0, verify_events_per_s=0, enrichments_per_day=1_000_000, enrichment_day_s=86_400,
)
with open_service(config) as server:
    server.run(ready=lambda: print("ready", flush=True))
"""
#: Questions of each run before those that count, and the pauses of the paced load, in seconds.
WARM_UP, PAUSES_S = 5, (0.35, 0.65)


@contextmanager
def daemon(folder: Path, mode: str) -> Iterator[Client]:
    """A client of a daemon that has this mode of enrichment."""
    endpoint = f"ipc://{folder}/s"
    command = [sys.executable, "-c", SERVE, str(folder / mode), endpoint, mode]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as started:
        try:
            assert started.stdout is not None
            if not started.stdout.readline():
                sys.exit("enrichment-cost: the daemon ended before it was ready")
            with Client(endpoint, timeout_ms=60_000) as client:
                yield client
        finally:
            started.terminate()


def question(number: int) -> dict[str, Json]:
    return {
        "subject": {"type": "user", "id": "zoe", "properties": {"role": "developer"}},
        "action": {"name": "deploy"},
        "resource": {"type": "service", "id": "billing"},
        "context": {"details": f"the change number {number}"},
    }


def took_ms(client: Client, load: str, count: int, draw: random.Random) -> list[float]:
    """The time of each decision of a run, in milliseconds."""
    took = []
    for number in range(WARM_UP + count):
        if load == "paced" and number >= WARM_UP:
            time.sleep(draw.uniform(*PAUSES_S))
        begun_ns = time.perf_counter_ns()
        client.evaluate(question(number))
        if number >= WARM_UP:
            took.append((time.perf_counter_ns() - begun_ns) / 1e6)
    return took


def measure(load: str, pairs: int, count: int, seed: int, folder: Path) -> dict[str, Json]:
    """The figures of a load: of each mode, and of the differences within pairs."""
    draw = random.Random(seed)
    figures: dict[str, list[dict[str, float]]] = {"never": [], "always": []}
    counters: dict[str, int] = {}
    for _ in range(pairs):
        pauses = draw.random()
        for mode in draw.sample(["never", "always"], 2):
            with daemon(folder, mode) as client:
                took = took_ms(client, load, count, random.Random(pauses))
                figures[mode].append(percentiles(took) or {})
                status = client.status().enrichment
                assert status is not None
                for name, value in (status.counters | {"began": status.today}).items():
                    if mode == "always":
                        counters[name] = counters.get(name, 0) + value
    return {
        mode: {name: statistics.median(run[name] for run in runs) for name in ("p50", "p99")}
        for mode, runs in figures.items()
    } | {
        "difference": {
            name: statistics.median(
                always[name] - never[name]
                for never, always in zip(figures["never"], figures["always"], strict=True)
            )
            for name in ("p50", "p99")
        },
        "enriched": {name: value for name, value in counters.items() if value},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="enrichment-cost", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=5, help="pairs of runs of each load")
    parser.add_argument("--questions", type=int, default=200, help="questions of a run")
    parser.add_argument("--load", choices=["busy", "paced"], action="append", help="default: both")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="tp-") as folder:
        result = {
            load: measure(load, options.pairs, options.questions, options.seed, Path(folder))
            for load in options.load or ("busy", "paced")
        }
    if options.json:
        print(json.dumps(result))
        return
    for load, figures in result.items():
        print(f"{load}: medians of {options.pairs} runs of {options.questions} decisions, in ms")
        for name in ("never", "always", "difference"):
            print(f"  {name:<10}  p50 {figures[name]['p50']:8.2f}  p99 {figures[name]['p99']:8.2f}")
        print("  " + ", ".join(f"{name} {value}" for name, value in figures["enriched"].items()))


if __name__ == "__main__":
    main()
