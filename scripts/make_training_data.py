"""Print labelled situations of one pack, as JSON lines or as a scenario suite.

The same arguments print the same bytes. Owns the command of scripts/make-training-data; the situations come
from `training_data`.
"""

from __future__ import annotations

import argparse
import sys

from training_data.domains import DOMAINS, team
from training_data.forms import as_lines, as_suite, situations


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make-training-data", description="Print labelled situations: the same for the same arguments."
    )
    parser.add_argument("--pack", choices=sorted(DOMAINS), default=team.PACK, help="default: %(default)s")
    parser.add_argument("--count", type=int, default=1_000, help="number of situations; default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="random seed; default: %(default)s")
    parser.add_argument(
        "--only-judged",
        action="store_true",
        help="leave out situations that the pack's rules settle without the model",
    )
    parser.add_argument("--suite", action="store_true", help="print a scenario suite (YAML), not JSON lines")
    options = parser.parse_args()
    generated = situations(options.pack, options.count, options.seed, only_judged=options.only_judged)
    text = as_suite(options.pack, generated, options.seed) if options.suite else as_lines(generated)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
