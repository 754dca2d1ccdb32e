"""Compare the decisions a second of a daemon that sends spans with one that sends none, in pairs.

Owns the command of scripts/tracing-cost, two daemons, a receiver of OTLP in a process of its own, and their
folder. The pack has rules alone, so a decision costs little and a span much beside it. In each pair both
daemons, one after the other in an order that is drawn, answer equal questions. Invariant: only one is asked
at a time; ratios are of neighbouring runs, so that other work of the machine changes them little.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from thor_policy.client.aio import AsyncClient
from thor_policy.client.blocking import Client
from thor_policy.core.requests import Evaluation, Json
from thor_policy.suites.suite_files import load

ROOT = Path(__file__).resolve().parents[1]
RECEIVE = """
import signal, sys
sys.path.insert(0, sys.argv[1])
from tests.otlp_receiver import receiving
with receiving() as receiver:
    print(receiver.url, flush=True)
    signal.pause()
"""
SERVE = """
import sys
from pathlib import Path
from thor_policy.config import Config
from thor_policy.daemon.service import open_service
state_dir, endpoint, collector = sys.argv[1:]
config = Config(
    state_dir=Path(state_dir), endpoint=endpoint, otel_endpoint=collector, pack="agent-tools", cache_size=0,
    drift_every_s=0, summaries_per_s=0, verify_events_per_s=0,
)
with open_service(config) as server:
    server.run(ready=lambda: print("ready", flush=True))
"""
#: Questions that are in flight together, and those before a run that do not count.
IN_FLIGHT, WARM_UP = 16, 200


@contextmanager
def process(program: str, *arguments: str) -> Iterator[tuple[str, int]]:
    """A program that runs for the length of the block; gives its first line and its process id."""
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as started:
        try:
            assert started.stdout is not None
            line = started.stdout.readline().strip()
            if not line:
                sys.exit("tracing-cost: a process ended before it was ready")
            yield line, started.pid
        finally:
            started.terminate()


async def ask(endpoint: str, questions: Sequence[Evaluation], count: int) -> None:
    """Ask so many questions, some of them together."""
    numbers = iter(range(count))
    async with AsyncClient(endpoint) as client:

        async def worker() -> None:
            for number in numbers:
                await client.evaluate(questions[number % len(questions)])

        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))


def processor_s(pid: int) -> float:
    """Processor time of a process so far, in seconds."""
    user, system = map(int, Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[11:13])
    return (user + system) / os.sysconf("SC_CLK_TCK")


def rate(endpoint: str, questions: Sequence[Evaluation], count: int) -> float:
    """Decisions a second."""
    asyncio.run(ask(endpoint, questions, WARM_UP))
    begun = time.perf_counter()
    asyncio.run(ask(endpoint, questions, count))
    return count / (time.perf_counter() - begun)


def measure(pairs: int, count: int, seed: int, folder: Path) -> dict[str, Json]:
    """The figures of both daemons, and what became of the spans."""
    draw = random.Random(seed)
    questions = [
        scenario.evaluation() for scenario in load(ROOT / "scenarios" / "agent-tools.yaml").scenarios
    ]
    rates: dict[str, list[float]] = {"off": [], "on": []}
    pids: dict[str, int] = {}
    with ExitStack() as running:
        collector, _ = running.enter_context(process(RECEIVE, str(ROOT)))
        endpoints = {name: f"ipc://{folder}/{name}.sock" for name in rates}
        for name, endpoint in endpoints.items():
            _, pids[name] = running.enter_context(
                process(SERVE, str(folder / name), endpoint, collector if name == "on" else "")
            )
        spent = {name: processor_s(pid) for name, pid in pids.items()}
        for _ in range(pairs):
            for name in draw.sample(["off", "on"], 2):
                rates[name].append(rate(endpoints[name], questions, count))
        with Client(endpoints["on"], timeout_ms=60_000) as client:
            spent = {name: processor_s(pid) - spent[name] for name, pid in pids.items()}
            counters = {key: value for key, value in client.status().counters.items() if "spans" in key}
    ratios = sorted(on / off for off, on in zip(rates["off"], rates["on"], strict=True))
    return {
        "decisions_per_s": {name: round(statistics.median(values), 1) for name, values in rates.items()},
        "ratio": {
            "median": round(statistics.median(ratios), 3),
            "low": round(ratios[0], 3),
            "high": round(ratios[-1], 3),
        },
        "processor_ms": {
            name: round(1000 * each / (pairs * (WARM_UP + count)), 3) for name, each in spent.items()
        },
        "spans": counters,
        "load": round(os.getloadavg()[0], 1),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="tracing-cost", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=9, help="pairs of runs (default: 9)")
    parser.add_argument("--questions", type=int, default=3_000, help="questions of a run (default: 3,000)")
    parser.add_argument("--seed", type=int, default=1, help="of the order in pairs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="tp-") as folder:
        result = measure(options.pairs, options.questions, options.seed, Path(folder))
    if options.json:
        print(json.dumps(result))
        return
    per_s, ratio = result["decisions_per_s"], result["ratio"]
    print(f"decisions a second without spans {per_s['off']:,.0f}, with {per_s['on']:,.0f} (medians)")
    print(f"ratio of {options.pairs} pairs: {ratio['median']} ({ratio['low']} to {ratio['high']})")
    print(f"processor time of the daemon for a decision, in ms: {result['processor_ms']}")
    print(f"spans: {result['spans']}; load average {result['load']}")


if __name__ == "__main__":
    main()
