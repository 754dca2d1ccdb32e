"""Measure an adapter beside the base model, the rules alone and the majority class.

Owns the command of scripts/adapter-figures; the figures and the card come from `training_data.figures`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from thor_policy import catalog
from thor_policy.config import Config
from thor_policy.core.decisions import Adapter
from thor_policy.core.errors import ThorPolicyError
from training_data.figures import card, measure, show


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="adapter-figures",
        description="Measure an adapter beside the base model, the rules alone and the majority class, on "
        "cases that took no part in its training. Takes minutes.",
    )
    parser.add_argument(
        "adapter",
        nargs="?",
        default="",
        help="a name from the catalog, or a GGUF file; default: the adapter of the configured model",
    )
    parser.add_argument(
        "--count",
        type=int,
        default=600,
        help="generated situations in each of the two held-out parts; default: %(default)s",
    )
    parser.add_argument("--seed", type=int, default=77, help="random seed; default: %(default)s")
    parser.add_argument("--out", type=Path, help="write the figures to this file, as JSON")
    parser.add_argument(
        "--card",
        type=Path,
        help="write the model card to this file; needs the .json of the training beside the adapter",
    )
    options = parser.parse_args()
    config = Config()
    try:
        name = options.adapter or catalog.companion_of(config.model) or ""
        file = catalog.resolve_adapter(name, config.models_dir)
        adapter = Adapter(name=file.name, sha256=file.sha256, rendering=file.rendering)
        figures = measure(config, adapter, file.path, options.count, options.seed, Console(stderr=True))
    except ThorPolicyError as error:
        print(f"adapter-figures: {error}", file=sys.stderr)
        return error.exit_code
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if options.card:
        training = json.loads(file.path.with_suffix(".json").read_text(encoding="utf-8"))
        options.card.write_text(card(training, figures), encoding="utf-8")
    show(figures, Console(width=100))
    return 0


if __name__ == "__main__":
    sys.exit(main())
