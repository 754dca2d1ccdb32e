"""Choose `limits.tighten_at` of the shipped packs on situations that no figure uses, and measure the choice.

Owns the commands of scripts/tighten-trial. `score` lets the model score each situation one time and writes
a line for each to a file. `choose` reads only that file, so it can be repeated at no cost. Invariant:
thresholds are chosen on cases of the part `check`, and measured on cases that served neither for training nor
for choosing. The suites are in neither.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Literal, TypeAlias

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
from thor_policy.core.requests import RISKS, Evaluation, Risk
from thor_policy.learning.training.samples import Case
from thor_policy.policy import pack_files
from thor_policy.policy.pack import Limits, Pack
from thor_policy.policy.tightening import DOUBT, served
from thor_policy.suites.intervals import Rate
from thor_policy.suites.model_effect import Case as Answer
from thor_policy.suites.model_effect import Effect, Outcomes, effect_of
from training_data.cases import generated, judged_packs, written
from training_data.domains import DOMAINS
from training_data.figures import Judge, best, open_engine

#: What a case serves for here: to choose thresholds, or to measure them.
Use = Literal["choose", "measure"]
#: Of the scored requests, the share whose text asks for more than the rules, as it is assumed in service. Of
#: the generated situations it is about 40 %, so a count of right outcomes would take too many tightenings.
ASKS_FOR_MORE = 0.2
#: The thresholds that are tried, one for all risks: the situations of one risk are too few to choose by.
TIGHTEN_AT = (0.0, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 1.0)
#: The values of `abstain.below` that are tried.
BELOW = (0.5, 0.2, 0.1, 0.05, 0.0)
#: A pair that is tried: `tighten_at` and `abstain.below`.
Pair: TypeAlias = tuple[float, float]
#: The columns of the report.
HEADS = ("cases", "limits", "rules", "served", "changed", "rightly", "wrongly", "doubts", "points", "gain")


class Line(Struct, frozen=True, kw_only=True):
    """A case with the floor and risk of the rules. `probabilities` is empty where the model is not asked."""

    pack: str
    pack_sha256: str
    judge: str
    use: Use
    source: str
    group: str
    right: str
    floor: str
    final: bool
    risk: Risk
    probabilities: dict[str, float]


def cases(pack: str, count: int, seed: int) -> Iterator[tuple[Use, Case]]:
    """`count` generated cases to choose by, as many to measure by, and the written ones of both parts."""
    for case in (*generated(pack, count, seed, "check"), *written(pack, "check")):
        yield "choose", case
    half = count // 2
    held_out = (*generated(pack, half, seed, "templates"), *generated(pack, count - half, seed, "kinds"))
    for case in (*held_out, *written(pack, "held")):
        yield "measure", case


def score(config: Config, names: Sequence[str], count: int, seed: int, out: Path, threads: int) -> None:
    """Append a line for each case to `out`; a pack whose lines are already there is left out."""
    packs = {name: pack_files.load(pack_files.find(name, data_path("prompts"))) for name in names}
    known = {(line.pack, line.pack_sha256) for line in read(out)} if out.exists() else set()
    packs = {name: pack for name, pack in packs.items() if (name, pack.info.sha256) not in known}
    file = catalog.resolve_adapter(catalog.companion_of(config.model) or "", config.models_dir)
    adapter = Adapter(name=file.name, sha256=file.sha256, rendering=file.rendering)
    engine = open_engine(config, len(packs), threads)
    engine.adopt(adapter, file.path)
    judge = Judge(engine, packs, adapter)
    for name, pack in packs.items():
        lines = [
            line_of(judge, pack, f"{engine.model.name}+{adapter.name}", use, case)
            for use, case in track(
                list(cases(name, count, seed)), name, console=Console(stderr=True), transient=True
            )
        ]
        with out.open("ab") as stream:
            stream.writelines(msgspec.json.encode(line) + b"\n" for line in lines)
    engine.close()


def line_of(judge: Judge, pack: Pack, judge_name: str, use: Use, case: Case) -> Line:
    """The line of one case; the model is asked where the rules leave the outcome open."""
    floor = pack.book.apply(msgspec.convert(case.evaluation, Evaluation), case.at)
    return Line(
        pack=case.pack,
        pack_sha256=pack.info.sha256,
        judge=judge_name,
        use=use,
        source=case.source,
        group=case.group,
        right=case.outcome,
        floor=floor.outcome,
        final=floor.final,
        risk=floor.risk,
        probabilities={} if floor.final else judge.probabilities(case),
    )


def read(path: Path) -> list[Line]:
    """All lines of a file of `score`."""
    return [msgspec.json.decode(line, type=Line) for line in path.read_bytes().splitlines()]


# ---------------------------------------------------------------- choosing


def limits_of(pack: Pack, tighten_at: float, below: float) -> Limits:
    """The limits of a pack with other thresholds; `below` for all risks of its `abstain`, if it has one."""
    abstain = pack.manifest.limits.abstain
    if abstain:
        abstain = replace(abstain, below=dict.fromkeys(abstain.below, below))
    return replace(pack.manifest.limits, tighten_at=tighten_at, abstain=abstain)


def answers(pack: Pack, lines: Sequence[Line], limits: Limits) -> list[Answer]:
    """The answer that these limits make of each scored line."""
    cases = []
    for line in lines:
        outcome, code = line.floor, None
        if line.probabilities:
            label = best(line.probabilities)
            outcome, code = served(pack.labels, limits, line.floor, line.risk, label, line.probabilities)
        cases.append(
            Answer(
                floor=line.floor,
                outcome=outcome,
                accepted=(line.right,),
                scored=bool(line.probabilities),
                doubt=code == DOUBT,
            )
        )
    return cases


def gain_of(cases: Sequence[Answer]) -> float:
    """Points that the model adds to the share of right outcomes, with `ASKS_FOR_MORE` of the questions.

    Of the questions that the model scored: the share of floors that are too loose and become right, minus the
    share of right floors that become wrong, each with its weight. Negative where the model costs.
    """

    def share(kind: Sequence[Answer], counts: Callable[[Answer], bool]) -> float:
        return sum(map(counts, kind)) / len(kind) if kind else 0.0

    loose = [case for case in cases if case.scored and case.floor not in case.accepted]
    right = [case for case in cases if case.scored and case.floor in case.accepted]
    gained = share(loose, lambda case: case.outcome in case.accepted)
    lost = share(right, lambda case: case.outcome not in case.accepted)
    return 100 * (ASKS_FOR_MORE * gained - (1 - ASKS_FOR_MORE) * lost)


def choose(pack: Pack, lines: Sequence[Line]) -> Pair:
    """The pair with the greatest gain; of several, the one that changes the fewest outcomes.

    No pair can be looser than the rules alone, because the model only tightens.
    """

    def merit(pair: Pair) -> tuple[float, ...]:
        cases = answers(pack, lines, limits_of(pack, *pair))
        return gain_of(cases), -sum(case.outcome != case.floor for case in cases), *pair

    return max(product(TIGHTEN_AT, BELOW), key=merit)


def report(file: Path, console: Console) -> None:
    """Choose for each pack of a file of `score`, and print what the choice adds and costs."""
    lines = read(file)
    names = dict.fromkeys(line.pack for line in lines)
    packs = {name: pack_files.load(pack_files.find(name, data_path("prompts"))) for name in names}
    parts_of: dict[str, dict[Use, list[Line]]] = {name: {"choose": [], "measure": []} for name in packs}
    for line in lines:
        parts_of[line.pack][line.use].append(line)
    for name, pack in packs.items():
        parts = parts_of[name]
        tighten_at, below = choose(pack, parts["choose"])
        abstain = f", abstain.below {below:g}" if pack.manifest.limits.abstain else ""
        console.print(f"\n{name}: tighten_at {tighten_at:g}{abstain}")
        table = Table(*HEADS, box=None)
        for use, part in parts.items():
            for title, limits in (
                ("none", limits_of(pack, 0.0, 0.0)),
                ("shipped", pack.manifest.limits),
                ("chosen", limits_of(pack, tighten_at, below)),
            ):
                cases = answers(pack, part, limits)
                effect = effect_of(name, pack.labels, cases)
                table.add_row(f"{use} {len(part)}", title, *_cells(effect), f"{gain_of(cases):+.1f}")
        console.print(table)
        by_risk = [
            f"{risk} {sum(line.risk == risk and bool(line.probabilities) for line in parts['choose'])}"
            for risk in RISKS
        ]
        console.print(f"scored cases to choose by, by risk: {', '.join(by_risk)}")


def _cells(effect: Effect) -> list[str]:
    def three(outcomes: Outcomes) -> str:
        return f"{outcomes.right.hits}/{outcomes.strict}/{outcomes.loose}"

    def share(part: Rate) -> str:
        return f"{part.hits} ({100 * part.low:.0f}-{100 * part.high:.0f} %)" if part.of else "0"

    gain = effect.difference
    return [
        three(effect.rules),
        three(effect.served),
        str(effect.changed),
        share(effect.rightly),
        share(effect.wrongly),
        str(effect.doubts),
        f"{100 * gain.difference:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="tighten-trial", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    scoring = commands.add_parser("score", help="let the model score every situation one time")
    scoring.add_argument("file", type=Path, help="JSON lines; a pack that it has is left out")
    scoring.add_argument("--pack", action="append", choices=sorted(DOMAINS), help="default: all")
    scoring.add_argument("--count", type=int, default=250, help="generated situations; default: %(default)s")
    scoring.add_argument("--seed", type=int, default=78, help="random seed; default: %(default)s")
    scoring.add_argument("--threads", type=int, default=0, help="threads; 0: one for each core")
    choosing = commands.add_parser("choose", help="choose thresholds, and print what they add and cost")
    choosing.add_argument("file", type=Path, help="a file of `score`")
    options = parser.parse_args()
    try:
        if options.command == "score":
            names = options.pack or list(judged_packs())
            score(Config(), names, options.count, options.seed, options.file, options.threads)
        else:
            report(options.file, Console(width=130))
    except ThorPolicyError as error:
        print(f"tighten-trial: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
