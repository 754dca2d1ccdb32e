"""The second half of scripts/make-training-data: situations as JSON lines or as a scenario suite.

Owns the command and the two forms. Invariant: what is written depends on the arguments alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from situations import Chance, Situation, agent, device, discount, drawn, flat, invoice, team, trade

from thor_policy.config import data_path
from thor_policy.core.requests import Evaluation
from thor_policy.policy import pack_files

#: The domains that have a generator, by the name of their pack.
DOMAINS = {domain.PACK: domain for domain in (agent, device, discount, invoice, team, trade)}
#: The share that is written in the flat form of older services.
FLAT_SHARE = 0.3


def situations(pack_name: str, number: int, seed: int, *, only_judged: bool) -> Iterator[Situation]:
    """As many situations; `only_judged` leaves out those that the pack's rules settle without the model."""
    domain = DOMAINS[pack_name]
    book = pack_files.load(pack_files.find(pack_name, data_path("prompts"))).book

    def make(chance: Chance) -> Situation:
        while True:
            one = domain.make(chance)
            at = datetime.fromisoformat(one.evaluation["context"]["timestamp"]).astimezone(UTC).timestamp()
            floor = book.apply(msgspec.convert(one.evaluation, Evaluation), at)
            if not only_judged or not (floor.final or floor.outcome == domain.OUTCOMES[-1]):
                return one

    return drawn(make, number, seed, domain.OUTCOMES)


def as_suite(pack_name: str, found: Iterator[Situation], seed: int) -> str:
    """A scenario suite that expects the labels."""
    forms = Chance(seed)
    scenarios = []
    for number, one in zip(count(1), found, strict=False):
        asked = {"request": one.evaluation}
        if one.has_flat_form and forms.maybe(FLAT_SHARE):
            asked = {"situation": flat(one)}
        scenarios.append(
            {
                "id": f"G{number:05d}",
                "title": f"{one.template}, {one.evidence}",
                "difficulty": "medium",
                "tags": [one.template.split("/")[0], one.evidence],
                **asked,
                "expect": {"outcome": one.outcome, "risk": one.risk},
            }
        )
    suite = {
        "name": f"generated-{pack_name}-{seed}",
        "pack": pack_name,
        "description": f"{len(scenarios)} generated situations, seed {seed}.",
        "scenarios": scenarios,
    }
    return yaml.safe_dump(suite, sort_keys=False, allow_unicode=True, width=110)


def as_lines(found: Iterator[Situation]) -> str:
    """One JSON object a line, each with its label and what it was made of."""
    return "".join(json.dumps(msgspec.to_builtins(one), ensure_ascii=False) + "\n" for one in found)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pack", choices=sorted(DOMAINS), default=team.PACK)
    parser.add_argument("--count", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only-judged", action="store_true", help="leave out what rules settle without the model"
    )
    parser.add_argument("--suite", action="store_true", help="a scenario suite (YAML) instead of JSON lines")
    told: Any = parser.parse_args()
    found = situations(told.pack, told.count, told.seed, only_judged=told.only_judged)
    sys.stdout.write(as_suite(told.pack, found, told.seed) if told.suite else as_lines(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
