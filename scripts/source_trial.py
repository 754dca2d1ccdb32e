#!/usr/bin/env python
"""What sources cost: decisions with and without them side by side, and beside a source that hangs.

One daemon with the stub engine serves two packs of the same rule: `with` reads a table, `without` reads what
the caller asserts. Pairs of questions are asked in turn, in random order, so that both see the same machine.
Then the same is measured while other clients ask a source that never answers. Usage: scripts/source_trial.py
[PAIRS]
"""

from __future__ import annotations

import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.errors import ThorPolicyError
from thor_policy.core.records import Control
from thor_policy.daemon.service import serving
from thor_policy.testing import load_stub_engine

HEAD = """name: {name}
version: "1"
description: Trial of sources.
model: never
default: deny
outcomes: [{{label: allow}}, {{label: deny}}]
"""
TABLE = """sources:
  accounts:
    of: subject
    attributes: {tier: {type: string}, limit: {type: number}}
    table: {path: accounts.csv}
"""
HUNG = """sources:
  nobody:
    of: subject
    timeout_ms: 60000
    attributes: {{tier: {{type: string}}}}
    http: {{url: "http://127.0.0.1:{port}/{{id}}"}}
"""
RULE = "- {{id: gold, when: '{when}', outcome: allow, final: true, because: Gold.}}\n"
ROWS = 10_000
#: Clients that ask the source that hangs.
HANGING = 4


def write_pack(folder: Path, name: str, when: str, more: str = "") -> Path:
    """A pack of one rule."""
    pack = folder / name
    pack.mkdir()
    (pack / "pack.yaml").write_text(HEAD.format(name=name) + more)
    (pack / "rules.yaml").write_text(RULE.format(when=when))
    return pack


def question(number: int) -> dict[str, Any]:
    return {
        "subject": {"type": "user", "id": f"u{number % ROWS}", "properties": {"tier": "gold", "limit": 20}},
        "action": {"name": "buy"},
        "resource": {"type": "doc", "id": "guide"},
    }


def ask(client: Client, pack: str, number: int) -> float:
    """The time of one decision, in milliseconds."""
    started_ns = time.perf_counter_ns()
    reply = client.evaluate(question(number), pack=pack, explain="none")
    took_ms = (time.perf_counter_ns() - started_ns) / 1e6
    if not reply["decision"]:
        raise SystemExit(f"{pack}: {reply}")
    return took_ms


def pairs(client: Client, number: int) -> list[tuple[float, float]]:
    """Times without and with a source, in pairs of random order."""
    order = random.Random(1)
    times = []
    for at in range(number):
        packs = ["without", "with"]
        order.shuffle(packs)
        took = {pack: ask(client, pack, at) for pack in packs}
        times.append((took["without"], took["with"]))
    return times


@contextmanager
def hanging(config: Config) -> Iterator[None]:
    """Clients that wait for a source which accepts connections and never answers."""
    ends = threading.Event()

    def wait() -> None:
        with Client(config.endpoint, timeout_ms=2_000) as client:
            while not ends.is_set():
                try:
                    client.evaluate(question(0), pack="hung", deadline_ms=1_000)
                except ThorPolicyError:
                    continue

    threads = [threading.Thread(target=wait, daemon=True) for _ in range(HANGING)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ends.set()
        for thread in threads:
            thread.join()


def show(title: str, times: list[tuple[float, float]]) -> None:
    without, with_source = (sorted(column) for column in zip(*times, strict=True))
    differences = sorted(b - a for a, b in times)
    print(
        f"{title:<26} without {statistics.median(without):6.3f} ms  "
        f"with {statistics.median(with_source):6.3f} ms"
        f"  paired difference: median {statistics.median(differences):6.3f} ms,"
        f" 90 % {differences[int(len(differences) * 0.9)]:6.3f} ms"
    )


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
    with tempfile.TemporaryDirectory(prefix="tp-") as name, socket.create_server(("127.0.0.1", 0)) as silent:
        folder = Path(name)
        asserted = 'subject.properties.tier == "gold" && subject.properties.limit >= 10'
        offered = 'sources.accounts.tier == "gold" && sources.accounts.limit >= 10.0'
        active = write_pack(folder, "without", asserted)
        table = write_pack(folder, "with", offered, TABLE)
        rows = "".join(f"u{row},gold,20\n" for row in range(ROWS))
        (table / "accounts.csv").write_text(f"id,tier,limit\n{rows}")
        hung = write_pack(
            folder, "hung", 'sources.nobody.tier == "gold"', HUNG.format(port=silent.getsockname()[1])
        )
        config = Config(state_dir=folder, endpoint=f"ipc://{folder}/s", pack=str(active), log_level="error")
        with serving(config, load_engine=load_stub_engine), Client(config.endpoint) as client:
            for pack in (table, hung):
                client.control(Control(task="load", pack=str(pack)))
            pairs(client, min(200, number))
            show(f"{number} pairs", pairs(client, number))
            with hanging(config):
                show("beside a source that hangs", pairs(client, number))
            show("and after it", pairs(client, number))
            for source in client.status().sources:
                print(source.name, source.counters, f"mean {source.mean_ms} ms")


if __name__ == "__main__":
    main()
