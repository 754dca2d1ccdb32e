"""The second half of scripts/calibration-trial: one daemon, generated situations, `thorpolicy calibrate`.

Owns the daemon in this process and the folder that it works in. Each situation is asked once, with its
right outcome as an annotation; then the command fits a temperature and tells of the half that the fit did
not see, and some are asked again: their labels must be what they were, and their order too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from make_training_data import DOMAINS, situations
from rich.console import Console
from rich.progress import Progress
from situations import Situation, team

from thor_policy.client.blocking import Client
from thor_policy.config import Config, data_path
from thor_policy.core import records
from thor_policy.core.decisions import Adapter, identity_of
from thor_policy.core.errors import ThorPolicyError
from thor_policy.daemon import service
from thor_policy.journal.reader import Reader
from thor_policy.policy import calibration, pack_files
from thor_policy.policy.calibration import Judged

#: Situations that are asked again once the calibration is in force.
AGAIN = 25
DEADLINE_MS = 60_000


def ask(client: Client, number: int, one: Situation) -> dict[str, Any]:
    annotations = {"scenario_id": f"G{number:05d}", "expected": [one.outcome]}
    reply = client.evaluate(one.evaluation, deadline_ms=DEADLINE_MS, annotations=annotations)
    context: dict[str, Any] = reply["context"]
    return context


def order(context: dict[str, Any]) -> list[str]:
    """The labels, likeliest first."""
    return sorted(context["probabilities"], key=context["probabilities"].__getitem__, reverse=True)


def judged_by(config: Config, pack_sha256: str, model_sha256: str) -> list[Judged]:
    """Raw probabilities and right outcomes of what was asked, in order."""
    with Reader(config.journal_path) as reader:
        rows = reader.judged(pack_sha256, model_sha256, by="suites")
        return [
            (calibration.scaled(row["probabilities"], 1 / row["temperature"]), row["right"]) for row in rows
        ]


def run(config: Config, pack_name: str, number: int, seed: int) -> int:
    console = Console(width=80)
    found = list(situations(pack_name, number, seed, only_judged=True))
    with (
        service.serving(config),
        Client(config.endpoint) as client,
        Progress(console=Console(stderr=True)) as shown,
    ):
        before = [
            ask(client, place, one)
            for place, one in shown.track(list(enumerate(found)), description="asking")
        ]
        model = client.status().model
        pack = pack_files.load(pack_files.find(pack_name, data_path("prompts"))).info
        judge = identity_of(model["sha256"], Adapter(**model["adapter"]) if model["adapter"] else None)
        judged = judged_by(config, pack.sha256, judge)
        fitted = calibration.fit(judged[::2], pack_sha256=pack.sha256, model_sha256=judge)
        client.maintenance(records.Maintenance(task="calibrate", calibration=fitted))
        after = [ask(client, place, one) for place, one in enumerate(found[:AGAIN])]
    unseen = judged[1::2]  # the order is one of chance
    raw, scaled = calibration.quality(unseen), calibration.quality(unseen, fitted.temperature)
    counts = [sum(one.outcome == outcome for one in found) for outcome in DOMAINS[pack_name].OUTCOMES]
    console.print(f"{pack_name} on {model['name']}, {len(judged)} judged, temperature {fitted.temperature}")
    console.print(f"unseen half: {raw.count}; majority class {max(counts) / len(found):.3f}")
    for name in ("accuracy", "ece", "brier", "nll"):
        console.print(f"  {name:10} {getattr(raw, name):.4f} -> {getattr(scaled, name):.4f}")
    same = sum(order(one) == order(two) for one, two in zip(before, after, strict=False))
    console.print(f"asked again: {same} of {len(after)} with every label in its place")
    return 0 if same == len(after) and scaled.ece <= raw.ece else 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pack", choices=sorted(DOMAINS), default=team.PACK)
    parser.add_argument("--count", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tp-calibration-") as folder:
        config = Config(
            state_dir=Path(folder), endpoint=f"ipc://{folder}/p.sock", pack=told.pack, threads=told.threads
        )
        try:
            return run(replace(config, cache_size=0), told.pack, told.count, told.seed)
        except ThorPolicyError as error:
            print(f"calibration-trial: {error}", file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main())
