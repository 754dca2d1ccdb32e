"""Measure what precedents beside the question do to the answers of the model on the shipped suites.

Owns the command of scripts/precedents-trial. Each scenario that the rules leave to the model is decided
twice, without precedents and with three: the most similar of generated situations, each with its right
outcome, as if a person had confirmed it. Invariant: no suite holds a precedent; both decisions have the same
floor.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from dataclasses import replace as with_settings
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy
from msgspec import structs

from thor_policy.config import Config, data_path
from thor_policy.core.precedents import Precedent
from thor_policy.core.requests import NEVER_NS, Caller, Evaluation, Request
from thor_policy.core.situations import situation_of
from thor_policy.daemon.loading import open_engine
from thor_policy.engine.embedder import QUICK_FILE, MiniLM
from thor_policy.policy import pack_files
from thor_policy.policy.decider import Policy
from thor_policy.policy.pack import Pack
from thor_policy.policy.precedent_specs import PrecedentsSpec
from thor_policy.policy.prompt_text import show
from thor_policy.suites.suite_files import load
from thor_policy.trace.precedents import MOST_LINE_CHARS
from training_data.domains import DOMAINS
from training_data.forms import situations

#: The receipt time of every question: the one of examples.
AT = 1_767_279_600.0
K = 3


def precedents_of(question: Evaluation, past: list[tuple[str, str]], vectors: Any, embedder: MiniLM) -> Any:
    """The most similar situations of the past, as a daemon shows them."""
    cosines = vectors @ embedder.embed(situation_of(question))
    return tuple(
        Precedent(
            id=str(at),
            outcome=past[at][1],
            how="similarity",
            similarity=float(cosines[at]),
            line=f"similar case: {past[at][1]}, confirmed by a person: {show(past[at][0], MOST_LINE_CHARS)}",
        )
        for at in numpy.argsort(-cosines)[:K]
    )


def with_precedents(pack: Pack) -> Pack:
    """The pack with a section `precedents`, and all else equal."""
    changed = copy.copy(pack)
    changed.manifest = structs.replace(pack.manifest, precedents=PrecedentsSpec(k=K))
    return changed


def measure(name: str, config: Config, embedder: MiniLM, options: argparse.Namespace) -> dict[str, Any]:
    """The right answers of one suite: of the rules, of the model without and with precedents, of a vote."""
    pack = with_precedents(pack_files.load(pack_files.find(name, data_path("prompts")), config.pack_keys))
    past = [
        (situation_of(msgspec.convert(each.evaluation, Evaluation)), each.outcome)
        for each in situations(name, options.history, 1, only_judged=True)
    ]
    vectors = numpy.array([embedder.embed(text) for text, _ in past])
    engine, adapter = open_engine(config, pack)
    counts = dict.fromkeys(("scenarios", "rules", "without", "with", "changed", "looser", "vote"), 0)
    similarity = 0.0
    try:
        policy = Policy(engine, pack, adapter=adapter)
        judged = (
            scenario
            for scenario in load(Path("scenarios") / f"{name}.yaml").scenarios
            if not scenario.sources and not pack.book.apply(scenario.evaluation(), AT).final
        )
        for scenario in islice(judged, options.scenarios):
            question, right = scenario.evaluation(), scenario.expect.accepted(pack.labels)
            past_cases = precedents_of(question, past, vectors, embedder)
            request = Request(
                ticket=0,
                evaluation=question,
                caller=Caller(transport="inproc"),
                received_at=AT,
                received_ns=0,
                deadline_ns=NEVER_NS,
            )
            without = policy.decide(request)
            beside = policy.decide(structs.replace(request, precedents=past_cases))
            outcomes = [each.outcome for each in past_cases]
            vote = max(outcomes, key=lambda outcome: (outcomes.count(outcome), pack.labels.index(outcome)))
            rank = pack.labels.index
            counts["scenarios"] += 1
            counts["rules"] += without.floor.outcome in right
            counts["without"] += without.outcome in right
            counts["with"] += beside.outcome in right
            counts["changed"] += without.outcome != beside.outcome
            counts["looser"] += rank(beside.outcome) < rank(without.outcome)
            counts["vote"] += max(vote, without.floor.outcome, key=rank) in right
            similarity += past_cases[0].similarity or 0.0
    finally:
        engine.close()
    mean = round(similarity / max(1, counts["scenarios"]), 3)
    return {"pack": name, **counts, "mean_similarity": mean, "adapter": adapter is not None}


def main(arguments: list[str] | None = None) -> int:
    """Measure every pack that asks a model, and print the figures."""
    parser = argparse.ArgumentParser(prog="precedents-trial", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--history", type=int, default=200, help="situations of each pack; default: %(default)s"
    )
    parser.add_argument("--scenarios", type=int, default=40, help="most of each suite; default: %(default)s")
    parser.add_argument("--adapter", default="auto", help="the setting adapter; default: %(default)s")
    options = parser.parse_args(arguments)
    config = with_settings(Config(), adapter=options.adapter)
    embedder = MiniLM(config.models_dir, QUICK_FILE)
    for name in DOMAINS:
        pack = pack_files.load(pack_files.find(name, data_path("prompts")))
        if not pack.rules_only and (Path("scenarios") / f"{name}.yaml").is_file():
            print(json.dumps(measure(name, config, embedder, options)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
