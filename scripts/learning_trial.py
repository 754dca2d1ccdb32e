"""Correct a daemon on kinds of text that it never learned, run `thorpolicy train`, and measure the candidate.

Owns the command of scripts/learning-trial, a daemon in this process, and its folder. The corrected situations
are of kinds of text that no adapter that ships was trained on. Invariant: the test situations share no
phrasing with the corrected ones. Half of them are of the same kinds, half of kinds known before, which shows
what is forgotten.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import msgspec

from thor_policy.cli import render
from thor_policy.client.blocking import Client
from thor_policy.config import Config, data_path
from thor_policy.core import records
from thor_policy.core.errors import ThorPolicyError
from thor_policy.core.requests import Evaluation
from thor_policy.daemon import loading, service
from thor_policy.learning.training import dataset
from thor_policy.learning.training.samples import Case
from thor_policy.policy import pack_files
from thor_policy.policy.decider import Policy
from training_data.cases import Part, case_of, part_of, place_of
from training_data.domains import DOMAINS, team
from training_data.situations import Chance

DEADLINE_MS = 60_000
#: Most situations to evaluate for each correction; the trial fails where too few of them are decided wrong.
TRIES = 20
#: The test situations, by name: their part, and the half of its phrasings (None: all).
TESTS: dict[str, tuple[Part, int | None]] = {
    "same kinds, other words": ("kinds", 1),
    "kinds known before": ("templates", None),
}


def draw(pack: str, seed: int, part: Part, half: int | None) -> Iterator[Case]:
    """Endless cases of a part, in the phrasings of one half; in most, text asks for more than the rules."""
    loaded = pack_files.load(pack_files.find(pack, data_path("prompts")))
    chance = Chance(seed)
    while True:
        chance.ways.clear()
        situation = DOMAINS[pack].make(chance)
        if part_of(situation, chance.ways) != part:
            continue
        if half is not None and any(place_of(way, 2) != half for way in chance.ways):
            continue
        case = case_of(situation, f"{part} {pack} {seed}")
        floor = loaded.book.apply(msgspec.convert(case.evaluation, Evaluation), case.at)
        if floor.outcome != case.outcome or chance.maybe(0.2):  # some where the rules are right
            yield case


def correct(config: Config, cases: Iterator[Case], corrections: int) -> int:
    """Evaluate cases until as many decisions were corrected. Returns the number evaluated."""
    corrected = 0
    with (
        service.serving(config),
        Client(config.endpoint) as client,
        render.progress(corrections, "decisions corrected") as advance,
    ):
        for number, case in enumerate(islice(cases, TRIES * corrections), 1):
            context = client.evaluate(case.evaluation, deadline_ms=DEADLINE_MS)["context"]
            if context["outcome"] == case.outcome:
                continue
            client.review(
                records.Review(
                    decision_id=context["decision_id"],
                    reviewer="trial",
                    verdict="correct_both",
                    decision=case.outcome,
                    reasoning=case.reasoning,
                )
            )
            corrected += 1
            advance()
            if corrected == corrections:
                return number
    raise ThorPolicyError(
        f"{corrected} of {TRIES * corrections} decisions were wrong, but --corrections asks for {corrections}"
    )


def count_right(config: Config, cases: list[Case], what: str) -> int:
    """The number of cases that are decided as labelled."""
    with closing(loading.load_engine(config)) as engine:
        pack = loading.load_pack(config)
        policy = Policy(engine, pack, adapter=loading.adopt_adapter(config, engine))
        with render.progress(len(cases), what) as advance:
            outcomes = dataset.outcomes(policy, cases, advance=advance)
    return sum(outcome == case.outcome for outcome, case in zip(outcomes, cases, strict=True))


def run(config: Config, corrections: int, tests: int, seed: int) -> int:
    """Run the trial and print its figures; returns the exit status."""
    evaluated = correct(config, draw(config.pack, seed, "kinds", 0), corrections)
    out = config.state_dir / "trained"
    command = [
        str(Path(sys.executable).with_name("thorpolicy")),
        "train",
        str(out),
        "--json",
        "--pack",
        config.pack,
    ]
    command += ["--state-dir", str(config.state_dir), "--threads", str(config.threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode not in (0, 1):
        return done.returncode
    card = json.loads(done.stdout)
    trained = replace(config, adapter=card["adapter"])
    rows = []
    for name, (part, half) in TESTS.items():
        cases = list(islice(draw(config.pack, seed + 1, part, half), tests))
        judges = ((config, "now"), (trained, "candidate"))
        counts = [count_right(judge, cases, f"{name}, {who}") for judge, who in judges]
        rows.append((name, *counts, len(cases)))
    render.line(
        f"{config.pack}: {corrections} of {evaluated} decisions corrected, all of kinds never learned"
    )
    render.table(("decided right", "now", "candidate", "of"), rows)
    for name in card:
        if name.startswith(("held-out", "suites")):
            render.line(f"{name}: {card[name]}")
    for attempt in card["tried"]:
        reasons = [f"  {reason}" for reason in attempt["refused"]] or ["  it may be activated"]
        render.line("\n".join((f"{attempt['of_the_way']:.0%} of the way from the adapter in use:", *reasons)))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="learning-trial",
        description="Correct a daemon on kinds of text that it never learned, train an adapter from the "
        "corrections, and measure it. Needs the model and the extra [train].",
    )
    parser.add_argument("--pack", choices=sorted(DOMAINS), default=team.PACK, help="default: %(default)s")
    parser.add_argument(
        "--corrections", type=int, default=60, help="decisions to correct; default: %(default)s"
    )
    parser.add_argument(
        "--asked-after",
        type=int,
        default=200,
        metavar="COUNT",
        help="test situations of each of the two sorts; default: %(default)s",
    )
    parser.add_argument("--seed", type=int, default=1, help="random seed; default: %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="threads of the engine; 0: one for each core")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tp-learning-") as folder:
        config = Config(
            state_dir=Path(folder),
            endpoint=f"ipc://{folder}/p.sock",
            pack=options.pack,
            threads=options.threads,
        )
        try:
            return run(config, options.corrections, options.asked_after, options.seed)
        except ThorPolicyError as error:
            print(f"learning-trial: {error}", file=sys.stderr)
            return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
