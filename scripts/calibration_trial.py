"""Calibrate a daemon on generated situations, and measure the half that the fit did not use.

Owns the command of scripts/calibration-trial, a daemon in this process, and its folder. Each situation is
evaluated once, with its right outcome as an annotation. A temperature is fitted on every second one and put
in force. Then some are evaluated again: the order of their labels must be the same.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from thor_policy.client.blocking import Client
from thor_policy.config import Config, data_path
from thor_policy.core import records
from thor_policy.core.decisions import identity_of
from thor_policy.core.errors import ThorPolicyError
from thor_policy.daemon import service
from thor_policy.journal.reader import Reader
from thor_policy.policy import calibration, pack_files
from thor_policy.policy.calibration import Judged
from training_data.domains import DOMAINS, team
from training_data.forms import situations
from training_data.situations import Situation

#: Situations that are evaluated again under the calibration.
REPEATED = 25
DEADLINE_MS = 60_000


def evaluate(client: Client, number: int, situation: Situation) -> dict[str, Any]:
    """The reply's context; the right outcome goes along as an annotation."""
    annotations = {"scenario_id": f"G{number:05d}", "expected": [situation.outcome]}
    reply = client.evaluate(situation.evaluation, deadline_ms=DEADLINE_MS, annotations=annotations)
    context: dict[str, Any] = reply["context"]
    return context


def order(context: dict[str, Any]) -> list[str]:
    """The labels, likeliest first."""
    return sorted(context["probabilities"], key=context["probabilities"].__getitem__, reverse=True)


def judged_by(config: Config, pack_sha256: str, model_sha256: str) -> list[Judged]:
    """Raw probabilities and the right outcome of each decision, in order."""
    with Reader(config.journal_path) as reader:
        rows = reader.judged(pack_sha256, model_sha256, by="suites")
        return [
            (calibration.scaled(row["probabilities"], 1 / row["temperature"]), row["right"]) for row in rows
        ]


def run(config: Config, pack_name: str, number: int, seed: int) -> int:
    """Run the trial and print its figures. Status 1: an order of labels changed, or the error grew."""
    console = Console(width=80)
    generated = list(situations(pack_name, number, seed, only_judged=True))
    with (
        service.serving(config),
        Client(config.endpoint) as client,
        Progress(console=Console(stderr=True)) as progress,
    ):
        before = [
            evaluate(client, place, situation)
            for place, situation in progress.track(list(enumerate(generated)), description="evaluating")
        ]
        model = client.status().model
        pack = pack_files.load(pack_files.find(pack_name, data_path("prompts"))).info
        judge = identity_of(model.sha256, model.adapter)
        judged = judged_by(config, pack.sha256, judge)
        fitted = calibration.fit(judged[::2], pack_sha256=pack.sha256, model_sha256=judge)
        client.maintenance(records.Maintenance(task="calibrate", calibration=fitted))
        after = [evaluate(client, place, situation) for place, situation in enumerate(generated[:REPEATED])]
    unseen = judged[1::2]  # the situations come in a random order
    raw, scaled = calibration.quality(unseen), calibration.quality(unseen, fitted.temperature)
    majority = max(Counter(situation.outcome for situation in generated).values()) / len(generated)
    model_name = model.name
    console.print(f"{pack_name} on {model_name}, {len(judged)} decisions, temperature {fitted.temperature}")
    console.print(f"unseen half: {raw.count}; majority class {majority:.3f}")
    for name in ("accuracy", "ece", "brier", "nll"):
        console.print(f"  {name:10} {getattr(raw, name):.4f} -> {getattr(scaled, name):.4f}")
    same = sum(order(first) == order(second) for first, second in zip(before, after, strict=False))
    console.print(f"evaluated again: {same} of {len(after)} with all labels in the same order")
    return 0 if same == len(after) and scaled.ece <= raw.ece else 1


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="calibration-trial",
        description="Calibrate a daemon on generated situations, and measure the half that the fit did not "
        "use. Needs the model. Status 0: every order of labels was kept, and the error did not grow.",
    )
    parser.add_argument("--pack", choices=sorted(DOMAINS), default=team.PACK, help="default: %(default)s")
    parser.add_argument("--count", type=int, default=1_000, help="number of situations; default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="random seed; default: %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="threads of the engine; 0: one for each core")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tp-calibration-") as folder:
        config = Config(
            state_dir=Path(folder),
            endpoint=f"ipc://{folder}/p.sock",
            pack=options.pack,
            threads=options.threads,
        )
        try:
            return run(replace(config, cache_size=0), options.pack, options.count, options.seed)
        except ThorPolicyError as error:
            print(f"calibration-trial: {error}", file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main())
