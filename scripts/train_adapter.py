"""The second half of scripts/train-adapter: the adapter that ships, from generated and written situations.

Owns the command and what the training set is made of. Invariant: what is trained on depends on the
arguments alone, and no case of it is one that the figures are taken from (`training_cases` says which
those are).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import msgspec
from training_cases import DOMAINS, check_set, training_set

from thor_policy import catalog
from thor_policy.cli import render
from thor_policy.config import Config, data_path
from thor_policy.core.errors import ThorPolicyError
from thor_policy.core.requests import Evaluation
from thor_policy.learning.training.build import make
from thor_policy.learning.training.samples import Case
from thor_policy.learning.training.settings import Settings
from thor_policy.policy import pack_files
from thor_policy.suites import leaks, suite_files

#: Generated cases of each pack that weights are chosen by.
CHECKED = 24


def without_leaks(cases: list[Case]) -> tuple[list[Case], str]:
    """The cases without those that are too similar to a scenario of a suite, and how many those were."""
    evaluations = [msgspec.convert(case.evaluation, Evaluation) for case in cases]
    given_away: set[str] = set()
    for path in suite_files.available(data_path("scenarios")):
        one = suite_files.load(path)
        known = [
            (str(number), evaluations[number]) for number, case in enumerate(cases) if case.pack == one.pack
        ]
        while found := leaks.among(one.scenarios, known):
            given_away |= {leak.example for leak in found}
            known = [(name, evaluation) for name, evaluation in known if name not in given_away]
    kept = [case for number, case in enumerate(cases) if str(number) not in given_away]
    return kept, f"{len(given_away)} left out as too similar to a scenario of a suite"


def main() -> int:
    config = Config()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=config.model, help="a name of the catalog, or a GGUF file")
    parser.add_argument("--models-dir", type=Path, default=config.models_dir)
    parser.add_argument("--out", type=Path, required=True, help="the folder that is written, or gone on from")
    parser.add_argument("--name", default="smollm2-135m-judge")
    parser.add_argument("--count", type=int, default=1_200, help="generated situations of each pack")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=float, default=Settings().epochs)
    parser.add_argument("--stop-after", type=int, default=0, help="end at this step; 0: at the last")
    parser.add_argument("--rank", type=int, default=Settings().rank)
    parser.add_argument("--rate", type=float, default=Settings().learning_rate)
    parser.add_argument("--dropout", type=float, default=Settings().dropout, help="of the adapter's inputs")
    parser.add_argument("--start", help="an adapter that is gone on from, of its rank; none: random weights")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are cores")
    told = parser.parse_args()
    settings = Settings(
        rank=told.rank,
        alpha=2 * told.rank,
        dropout=told.dropout,
        learning_rate=told.rate,
        epochs=told.epochs,
        stop_after=told.stop_after,
        seed=told.seed,
    )
    loaded = {name: pack_files.load(pack_files.find(name, data_path("prompts"))) for name in DOMAINS}
    train, notes = training_set(loaded, told.count, told.seed)
    train, leaked = without_leaks(train)
    held_out = check_set(CHECKED, told.seed + 1)
    began = time.monotonic()
    with render.training() as (advance, checked):
        try:
            made = make(
                catalog.resolve(told.model, told.models_dir),
                loaded,
                train,
                held_out,
                settings,
                name=told.name,
                folder=told.out,
                start=catalog.resolve_adapter(told.start, told.models_dir).path if told.start else None,
                threads=told.threads,
                notes=(*notes, leaked),
                announce=lambda said: render.line(said, stderr=True),
                advance=advance,
                checked=checked,
            )
        except ThorPolicyError as error:
            print(f"train-adapter: {error}", file=sys.stderr)
            return error.exit_code
    print(
        json.dumps(
            {"adapter": made.adapter, "sha256": made.sha256, "minutes": (time.monotonic() - began) / 60}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
