"""The second half of scripts/learning-trial: one daemon, a reviewer who corrects it, `thorpolicy train`.

Owns the daemon in this process and the folder that it works in. What is corrected is of kinds of text
that no adapter of ours was trained on. Invariant: what is asked afterwards uses none of the sentences
that were corrected; half of it is of the same kinds, half of kinds that were known before, to see what is
forgotten.
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
#: Situations asked before it is given up that enough of them are decided wrong, for each correction wanted.
PATIENCE = 20
#: What is asked afterwards: the part, and the half of its sentences.
ASKED_AFTER: dict[str, tuple[Part, int | None]] = {
    "same kinds, other words": ("kinds", 1),
    "kinds known before": ("templates", None),
}


def drawn(pack: str, seed: int, part: Part, half: int | None) -> Iterator[Case]:
    """Situations of a part in which text asks for more than rules, of half of the sentences, or of all."""
    loaded = pack_files.load(pack_files.find(pack, data_path("prompts")))
    chance = Chance(seed)
    while True:
        chance.ways.clear()
        one = DOMAINS[pack].make(chance)
        if part_of(one, chance.ways) != part:
            continue
        if half is not None and any(place_of(way, 2) != half for way in chance.ways):
            continue
        case = case_of(one, f"{part} {pack} {seed}")
        floor = loaded.book.apply(msgspec.convert(case.evaluation, Evaluation), case.at)
        if floor.outcome != case.outcome or chance.maybe(0.2):  # and some where it does not
            yield case


def correct(config: Config, cases: Iterator[Case], wanted: int) -> int:
    """Ask until as many decisions were corrected; how many were asked."""
    corrected = 0
    with (
        service.serving(config),
        Client(config.endpoint) as client,
        render.progress(wanted, "decisions corrected") as advance,
    ):
        for asked, case in enumerate(islice(cases, PATIENCE * wanted), 1):
            told = client.evaluate(case.evaluation, deadline_ms=DEADLINE_MS)["context"]
            if told["outcome"] == case.outcome:
                continue
            client.review(
                records.Review(
                    decision_id=told["decision_id"],
                    reviewer="trial",
                    verdict="correct_both",
                    decision=case.outcome,
                    reasoning=case.reasoning,
                )
            )
            corrected += 1
            advance()
            if corrected == wanted:
                return asked
    raise ThorPolicyError(f"{corrected} of {PATIENCE * wanted} decisions were wrong; {wanted} are asked for")


def right(config: Config, cases: list[Case], what: str) -> int:
    """How many of the cases are decided as labelled."""
    with closing(loading.load_engine(config)) as engine:
        pack = loading.load_pack(config)
        policy = Policy(engine, pack, adapter=loading.adopt_adapter(config, engine))
        with render.progress(len(cases), what) as advance:
            decided = dataset.outcomes(policy, cases, advance=advance)
    return sum(one == case.outcome for one, case in zip(decided, cases, strict=True))


def run(config: Config, corrections: int, asked_after: int, seed: int) -> int:
    asked = correct(config, drawn(config.pack, seed, "kinds", 0), corrections)
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
    told = json.loads(done.stdout)
    after = replace(config, adapter=told["adapter"])
    rows = []
    for name, (part, half) in ASKED_AFTER.items():
        cases = list(islice(drawn(config.pack, seed + 1, part, half), asked_after))
        counts = [right(one, cases, f"{name}, {who}") for one, who in ((config, "now"), (after, "candidate"))]
        rows.append((name, *counts, len(cases)))
    render.line(f"{config.pack}: {corrections} of {asked} decisions corrected, all of kinds never learned")
    render.table(("decided right", "now", "candidate", "of"), rows)
    for name in told:
        if name.startswith(("held-out", "suites")):
            render.line(f"{name}: {told[name]}")
    for one in told["tried"]:
        reasons = [f"  {reason}" for reason in one["refused"]] or ["  it may be activated"]
        render.line("\n".join((f"{one['of_the_way']:.0%} of the way from the adapter in use:", *reasons)))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pack", choices=sorted(DOMAINS), default=team.PACK)
    parser.add_argument("--corrections", type=int, default=60)
    parser.add_argument("--asked-after", type=int, default=200, help="situations of each of two sorts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tp-learning-") as folder:
        config = Config(
            state_dir=Path(folder), endpoint=f"ipc://{folder}/p.sock", pack=told.pack, threads=told.threads
        )
        try:
            return run(config, told.corrections, told.asked_after, told.seed)
        except ThorPolicyError as error:
            print(f"learning-trial: {error}", file=sys.stderr)
            return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
