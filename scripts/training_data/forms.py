"""Situations as JSON lines or as a scenario suite.

Owns the two forms and the draw behind them. Invariant: the text depends on the arguments alone. Reads packs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count

import msgspec

from thor_policy.config import data_path
from thor_policy.core.requests import Evaluation
from thor_policy.policy import pack_files, yaml_text
from training_data.domains import DOMAINS
from training_data.situations import Chance, Situation, draw_balanced, flat_form

#: The share of scenarios that is written in the flat form of older services, of those that have it.
FLAT_SHARE = 0.3


def situations(pack_name: str, number: int, seed: int, *, only_judged: bool) -> Iterator[Situation]:
    """`number` situations; `only_judged` leaves out those that the pack's rules settle without the model."""
    domain = DOMAINS[pack_name]
    book = pack_files.load(pack_files.find(pack_name, data_path("prompts"))).book

    def make(chance: Chance) -> Situation:
        while True:
            situation = domain.make(chance)
            timestamp = situation.evaluation["context"]["timestamp"]
            at = datetime.fromisoformat(timestamp).astimezone(UTC).timestamp()
            floor = book.apply(msgspec.convert(situation.evaluation, Evaluation), at)
            if not only_judged or not (floor.final or floor.outcome == domain.OUTCOMES[-1]):
                return situation

    return draw_balanced(make, number, seed, domain.OUTCOMES)


def as_suite(pack_name: str, generated: Iterator[Situation], seed: int) -> str:
    """A scenario suite that expects the labels, as YAML."""
    forms = Chance(seed)
    scenarios = []
    for number, situation in zip(count(1), generated, strict=False):
        question = {"request": situation.evaluation}
        if situation.has_flat_form and forms.maybe(FLAT_SHARE):
            question = {"situation": flat_form(situation)}
        scenarios.append(
            {
                "id": f"G{number:05d}",
                "title": f"{situation.template}, {situation.evidence}",
                "difficulty": "medium",
                "tags": [situation.template.split("/")[0], situation.evidence],
                **question,
                "expect": {"outcome": situation.outcome, "risk": situation.risk},
            }
        )
    suite = {
        "name": f"generated-{pack_name}-{seed}",
        "pack": pack_name,
        "description": f"{len(scenarios)} generated situations, seed {seed}.",
        "scenarios": scenarios,
    }
    return yaml_text.dump(suite)


def as_lines(generated: Iterator[Situation]) -> str:
    """One JSON object a line: a situation with its label and the names of its template and evidence."""
    return "".join(
        json.dumps(msgspec.to_builtins(situation), ensure_ascii=False) + "\n" for situation in generated
    )
