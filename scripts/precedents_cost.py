"""Time decisions with three precedents beside equal decisions without, in pairs, on a real daemon.

Owns the command of scripts/precedents-cost, the daemon that it starts, and its folder. Two packs are
resident that differ in the section `precedents` alone; each question is decided by both, and no score is
cached. Invariant: both of a pair are committed before their reply, the order in a pair is drawn, and a pair
counts only if three precedents were found in time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from thor_policy.client.blocking import Client
from thor_policy.config import Config, data_path
from thor_policy.core import records
from thor_policy.daemon.service import load_engine, serving
from thor_policy.testing import load_stub_engine
from training_data.forms import situations

#: The goal for the median of the differences, in milliseconds.
GOAL_MS = 8.0
#: Pairs before those that count.
WARM_UP = 10
NAME = "trade-risk"
SECTION = "\nprecedents: {k: 3, budget_ms: 1000, least_similarity: 0.1, same: []}\n"


def pack_in(folder: Path, name: str, more: str) -> Path:
    """A copy of a shipped pack under another name, whose pack.yaml has `more` at its end."""
    shutil.copytree(data_path("prompts") / NAME, folder / name)
    manifest = folder / name / "pack.yaml"
    text = manifest.read_text().replace(f"name: {NAME}", f"name: {name}", 1)
    manifest.write_text(f"{text}\ncache: false\n{more}")
    return folder / name


def questions(count: int, seed: int) -> Iterator[dict[str, Any]]:
    for situation in situations(NAME, count, seed, only_judged=True):
        yield msgspec.to_builtins(situation.evaluation)


def pairs_of(client: Client, count: int, draw: random.Random) -> tuple[list[float], list[float], int]:
    """What each pair took with and without, in milliseconds, and how many had fewer than three precedents."""
    taken: dict[str, list[float]] = {"beside": [], "alone": []}
    short = 0
    for question in questions(count + WARM_UP, 2):
        took, reply = {}, {}
        for name in draw.sample(["beside", "alone"], 2):
            begun_ns = time.perf_counter_ns()
            reply[name] = client.evaluate(question, pack=name, deadline_ms=30_000)["context"]
            took[name] = (time.perf_counter_ns() - begun_ns) / 1e6
        if len(reply["beside"]["precedents"]) < 3:
            short += 1
            continue
        for name, value in took.items():
            taken[name].append(value)
    return taken["beside"][WARM_UP:], taken["alone"][WARM_UP:], short


def run(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    beside, alone = pack_in(folder, "beside", SECTION), pack_in(folder, "alone", "")
    load = load_stub_engine if options.model == "stub" else load_engine
    config = replace(
        Config(),
        state_dir=folder / "state",
        endpoint=f"ipc://{folder}/policy.sock",
        pack=str(alone),
        cache_size=0,
        rule_budget_ms=10_000,
    )
    with serving(config, load_engine=load_stub_engine), Client(config.endpoint) as client:
        for question in questions(options.history, 1):
            client.evaluate(question, deadline_ms=30_000)
    config = replace(config, pack=str(beside), embeddings_per_s=20)
    with serving(config, load_engine=load), Client(config.endpoint, timeout_ms=600_000) as client:
        client.control(records.Control(task="load", pack=str(alone)))
        while client.status().journal.counters["vectors_made"] < options.history:
            time.sleep(0.5)
        with_three, without, short = pairs_of(client, options.pairs, random.Random(1))
        recall = client.status().recall
    differences = [more - less for more, less in zip(with_three, without, strict=True)]
    return {
        "model": options.model,
        "history": options.history,
        "pairs": len(differences),
        "without_three": short,
        "with_ms": round(statistics.median(with_three), 2),
        "alone_ms": round(statistics.median(without), 2),
        "difference_ms": round(statistics.median(differences), 2),
        "look_up_mean_ms": None if recall is None else recall.mean_ms,
        "load": [round(load, 1) for load in os.getloadavg()],
    }


def main(arguments: list[str] | None = None) -> int:
    """Time the pairs; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="precedents-cost",
        description="Time decisions with three precedents beside equal ones without. Status 0: the median of "
        f"the differences is at most {GOAL_MS:g} ms.",
    )
    parser.add_argument("--pairs", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--history", type=int, default=1_000, help="past decisions; default: %(default)s")
    parser.add_argument("--model", choices=["stub", "embedded"], default="stub", help="default: %(default)s")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="tp-cost-") as folder:
        figures = run(Path(folder), options)
    print(json.dumps(figures, indent=1))
    return 0 if figures["difference_ms"] <= GOAL_MS else 1


if __name__ == "__main__":
    sys.exit(main())
