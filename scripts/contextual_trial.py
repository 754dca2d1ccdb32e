"""Measure contextual calibration: the model's bias on questions without content, divided out.

Owns the commands of scripts/contextual-trial. `score` lets the model score each case and each question
without content one time, and writes a line for each to a file; `report` reads only that file. Invariant: no
case is in a prompt, and none served for training or for choosing limits. The suites are reported apart, and
their attacks apart again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from rich.console import Console
from rich.progress import track
from rich.table import Table

from thor_policy import catalog
from thor_policy.config import Config, data_path
from thor_policy.core.decisions import Adapter
from thor_policy.core.errors import ThorPolicyError
from thor_policy.core.requests import Evaluation, Risk
from thor_policy.learning.training.samples import Case
from thor_policy.policy import calibration, pack_files
from thor_policy.policy.pack import Pack
from thor_policy.policy.tightening import served
from thor_policy.suites.intervals import paired, rate
from training_data.cases import generated, judged_packs, written
from training_data.domains import DOMAINS
from training_data.figures import Judge, best, open_engine, suites

#: The cases that the adapter was trained on: a scenario like one of them is left out.
TRAINED = Path(__file__).resolve().parent.parent / "models/adapters/smollm2-135m-judge.cases.jsonl.gz"
Probabilities: TypeAlias = dict[str, float]


class Line(Struct, frozen=True, kw_only=True):
    """A case that the model was asked. `prior` has the mean over the questions without content.

    `source` is `held out`, `suite` or `attack`; `judge` is `base` or the adapter's name.
    """

    pack: str
    judge: str
    source: str
    right: str
    floor: str
    risk: Risk
    probabilities: Probabilities
    prior: Probabilities


@dataclass(frozen=True)
class Way:
    """One way to use the prior: whether label and doubt come from it, and whether the abstention does."""

    name: str
    outcome: bool
    abstention: bool


WAYS = (Way("plain", False, False), Way("confidence", False, True), Way("outcome", True, True))


def cases(pack: str, packs: dict[str, Pack], count: int, seed: int) -> Iterator[tuple[str, Case]]:
    """`count` generated cases in words or of kinds that were never learned, the written ones, the suite."""
    half = count // 2
    held = (*generated(pack, half, seed, "templates"), *generated(pack, count - half, seed, "kinds"))
    for case in (*held, *written(pack, "held")):
        yield "held out", case
    for case, difficulty, _ in suites({pack: packs[pack]}, TRAINED)[0]:
        yield ("attack" if difficulty == "attack" else "suite"), case


def priors(judge: Judge, pack: Pack, adapter: Adapter | None) -> dict[str | None, Probabilities]:
    """The mean probabilities of the questions without content; under an adapter for each floor."""
    floors: tuple[str | None, ...] = pack.labels if adapter and adapter.rendering == "brief" else (None,)
    return {
        floor: calibration.mean([judge.answer(pack, text) for text in pack.content_free(floor)])
        for floor in floors
    }


def score(config: Config, names: Sequence[str], count: int, seed: int, out: Path, threads: int) -> None:
    """Append a line for each case that the rules leave to the model, without and with the adapter."""
    packs = {name: pack_files.load(pack_files.find(name, data_path("prompts"))) for name in names}
    file = catalog.resolve_adapter(catalog.companion_of(config.model) or "", config.models_dir)
    adapted = Adapter(name=file.name, sha256=file.sha256, rendering=file.rendering)
    engine = open_engine(config, len(packs), threads)
    engine.adopt(adapted, file.path)
    for adapter in (adapted, None):
        judge = Judge(engine, packs, adapter)
        for name, pack in packs.items():
            prior = priors(judge, pack, adapter)
            chosen = list(cases(name, packs, count, seed))
            with out.open("ab") as stream:
                for source, case in track(chosen, name, console=Console(stderr=True), transient=True):
                    floor = pack.book.apply(msgspec.convert(case.evaluation, Evaluation), case.at)
                    if floor.final:
                        continue
                    line = Line(
                        pack=name,
                        judge=adapter.name if adapter else "base",
                        source=source,
                        right=case.outcome,
                        floor=floor.outcome,
                        risk=floor.risk,
                        probabilities=judge.probabilities(case),
                        prior=prior.get(floor.outcome) or prior[None],
                    )
                    stream.write(msgspec.json.encode(line) + b"\n")
        judge.unload()
    engine.close()


# ---------------------------------------------------------------- the report


def calibrated(line: Line) -> Probabilities:
    return calibration.contextual(line.probabilities, line.prior)


def outcome_of(pack: Pack, line: Line, way: Way) -> str:
    """The outcome that is served in this way; the floor of the line binds it in each."""
    limits, ready = pack.manifest.limits, calibrated(line)
    judged = ready if way.outcome else line.probabilities
    outcome, code = served(
        pack.labels, replace(limits, abstain=None), line.floor, line.risk, best(judged), judged
    )
    if limits.abstain and outcome == pack.loosest and code is None:
        confidence = (ready if way.abstention else line.probabilities)[outcome]
        if confidence < limits.abstain.below.get(line.risk, 0.0):
            return limits.abstain.outcome
    return outcome


def report(file: Path, console: Console) -> None:
    """Print accuracy and calibration error of label and outcome, without and with the prior."""
    lines = [msgspec.json.decode(line, type=Line) for line in file.read_bytes().splitlines()]
    packs = judged_packs()
    for judge in dict.fromkeys(line.judge for line in lines):
        of_judge = [line for line in lines if line.judge == judge]
        table = Table(
            "cases", "the model's label", "right", "95 %", "ECE", "95 %", "Brier", box=None, title=judge
        )
        for source in dict.fromkeys(line.source for line in of_judge):
            group = [line for line in of_judge if line.source == source]
            _add_labels(table, source, group)
        console.print(table)
        table = Table("cases", "served", "right", "too loose", "too strict", "against plain", box=None)
        for source in dict.fromkeys(line.source for line in of_judge):
            group = [line for line in of_judge if line.source == source]
            _add_outcomes(table, packs, source, group)
        console.print(table)


def _add_labels(table: Table, source: str, group: Sequence[Line]) -> None:
    # of the plain label its plain probability, of the plain label the contextual one, of the contextual label
    chosen: tuple[tuple[str, Callable[[Line], str], Callable[[Line], Probabilities]], ...] = (
        ("plain", lambda line: best(line.probabilities), lambda line: line.probabilities),
        ("confidence alone", lambda line: best(line.probabilities), calibrated),
        ("contextual", lambda line: best(calibrated(line)), calibrated),
    )
    right: dict[str, list[bool]] = {}
    for name, label, probabilities in chosen:
        tops = [(probabilities(line)[label(line)], label(line) == line.right) for line in group]
        quality = calibration.quality([(probabilities(line), line.right) for line in group])
        sure = calibration.sureness(name, tops)
        assert sure is not None
        right[name] = [hit for _, hit in tops]
        share = rate(sum(right[name]), len(group))
        table.add_row(
            f"{source} {len(group)}",
            name,
            f"{share.hits} ({100 * (share.share or 0):.0f} %)",
            f"{100 * share.low:.0f} to {100 * share.high:.0f} %",
            f"{sure.ece:.3f}",
            f"{sure.low:.3f} to {sure.high:.3f}",
            f"{quality.brier:.3f}",
        )
    gained = sum(b and not a for a, b in zip(right["plain"], right["contextual"], strict=True))
    lost = sum(a and not b for a, b in zip(right["plain"], right["contextual"], strict=True))
    table.add_row("", f"gained {gained}, lost {lost}", *_difference(gained, lost, len(group)))


def _add_outcomes(table: Table, packs: dict[str, Pack], source: str, group: Sequence[Line]) -> None:
    plain = [outcome_of(packs[line.pack], line, WAYS[0]) for line in group]
    for way in WAYS:
        outcomes = [outcome_of(packs[line.pack], line, way) for line in group]
        ranks = [
            (packs[line.pack].labels.index(outcome), packs[line.pack].labels.index(line.right))
            for line, outcome in zip(group, outcomes, strict=True)
        ]
        pairs = list(zip(group, plain, outcomes, strict=True))
        gained = sum(now == line.right != before for line, before, now in pairs)
        lost = sum(before == line.right != now for line, before, now in pairs)
        table.add_row(
            f"{source} {len(group)}",
            way.name,
            str(sum(served == right for served, right in ranks)),
            str(sum(served < right for served, right in ranks)),
            str(sum(served > right for served, right in ranks)),
            f"+{gained} -{lost}; {' '.join(_difference(gained, lost, len(group)))}",
        )
    floors = [
        (packs[line.pack].labels.index(line.floor), packs[line.pack].labels.index(line.right))
        for line in group
    ]
    table.add_row(
        f"{source} {len(group)}",
        "rules alone",
        str(sum(floor == right for floor, right in floors)),
        str(sum(floor < right for floor, right in floors)),
        str(sum(floor > right for floor, right in floors)),
    )


def _difference(gained: int, lost: int, pairs: int) -> tuple[str, str]:
    gain = paired(gained, lost, pairs)
    return f"{100 * gain.difference:+.1f} points", f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="contextual-trial", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    scoring = commands.add_parser("score", help="let the model score every case one time")
    scoring.add_argument("file", type=Path, help="JSON lines are appended to it")
    scoring.add_argument("--pack", action="append", choices=sorted(DOMAINS), help="default: all")
    scoring.add_argument("--count", type=int, default=100, help="generated situations; default: %(default)s")
    scoring.add_argument("--seed", type=int, default=2021, help="random seed; default: %(default)s")
    scoring.add_argument("--threads", type=int, default=0, help="threads; 0: one for each core")
    reporting = commands.add_parser("report", help="print accuracy and calibration error, with intervals")
    reporting.add_argument("file", type=Path, help="a file of `score`")
    options = parser.parse_args()
    try:
        if options.command == "score":
            names = options.pack or list(judged_packs())
            score(Config(), names, options.count, options.seed, options.file, options.threads)
        else:
            report(options.file, Console(width=130))
    except ThorPolicyError as error:
        print(f"contextual-trial: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
