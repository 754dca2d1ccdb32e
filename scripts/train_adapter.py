"""Train the adapter that ships, from generated and written situations.

Owns the command of scripts/train-adapter. Invariant: the training set depends on the arguments alone, and no
case of it is one that figures are taken from (`training_data.cases` decides).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from thor_policy import catalog
from thor_policy.cli import render
from thor_policy.config import Config
from thor_policy.core.errors import ThorPolicyError
from thor_policy.learning.training.build import make
from thor_policy.learning.training.settings import Settings
from training_data.cases import check_set, judged_packs, training_set, without_leaks

#: Generated cases of each pack that weights are chosen by.
CHECK_CASES = 24


def parser_of(config: Config) -> argparse.ArgumentParser:
    defaults = Settings()
    parser = argparse.ArgumentParser(
        prog="train-adapter",
        description="Train the adapter that ships. Needs the extra [train]. To continue an interrupted run, "
        "repeat its command.",
    )
    add = parser.add_argument
    add("--model", default=config.model, help="a name from the catalog, or a GGUF file; default: %(default)s")
    add("--models-dir", type=Path, default=config.models_dir, help="folder of models; default: %(default)s")
    add("--out", type=Path, required=True, help="folder to write to, or to continue in")
    add("--name", default="smollm2-135m-judge", help="name of the adapter; default: %(default)s")
    add("--count", type=int, default=1_200, help="generated cases of each pack; default: %(default)s")
    add("--seed", type=int, default=1, help="random seed of cases, order and weights; default: %(default)s")
    add("--epochs", type=float, default=defaults.epochs, help="passes over the cases; default: %(default)s")
    add("--stop-after", type=int, default=0, metavar="STEP", help="end after this step; 0: train all steps")
    add("--rank", type=int, default=defaults.rank, help="rank of the adapter; default: %(default)s")
    add("--rate", type=float, default=defaults.learning_rate, help="learning rate; default: %(default)s")
    add("--dropout", type=float, default=defaults.dropout, help="dropout of its inputs; default: %(default)s")
    add(
        "--start",
        metavar="ADAPTER",
        help="start from this adapter, of the same rank, not from random weights",
    )
    add("--threads", type=int, default=0, help="threads to train with; 0: one for each core")
    return parser


def main() -> int:
    options = parser_of(Config()).parse_args()
    settings = Settings(
        rank=options.rank,
        alpha=2 * options.rank,
        dropout=options.dropout,
        learning_rate=options.rate,
        epochs=options.epochs,
        stop_after=options.stop_after,
        seed=options.seed,
    )
    packs = judged_packs()
    cases, notes = training_set(packs, options.count, options.seed)
    cases, leak_note = without_leaks(cases)
    held_out = check_set(packs, CHECK_CASES, options.seed + 1)
    start_s = time.monotonic()
    with render.training() as (advance, checked):
        try:
            start = catalog.resolve_adapter(options.start, options.models_dir).path if options.start else None
            made = make(
                catalog.resolve(options.model, options.models_dir),
                packs,
                cases,
                held_out,
                settings,
                name=options.name,
                folder=options.out,
                start=start,
                threads=options.threads,
                notes=(*notes, leak_note),
                announce=lambda message: render.line(message, stderr=True),
                advance=advance,
                checked=checked,
            )
        except ThorPolicyError as error:
            print(f"train-adapter: {error}", file=sys.stderr)
            return error.exit_code
    minutes = (time.monotonic() - start_s) / 60
    print(json.dumps({"adapter": made.adapter, "sha256": made.sha256, "minutes": minutes}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
