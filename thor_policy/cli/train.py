"""`train`: an adapter from what reviewers corrected."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import click
import msgspec

from thor_policy import catalog
from thor_policy.catalog.files import companion_of
from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config, data_path
from thor_policy.core.errors import TrainingError
from thor_policy.daemon import loading
from thor_policy.daemon.loading import find_adapter
from thor_policy.journal.reader import Reader
from thor_policy.learning import export
from thor_policy.learning.training import dataset
from thor_policy.learning.training.samples import Case
from thor_policy.learning.training.settings import Settings
from thor_policy.policy.decider import Policy
from thor_policy.policy.pack import Pack
from thor_policy.suites import runner
from thor_policy.suites.comparison import Comparison, compare
from thor_policy.suites.run_files import Run

#: How an adapter is called until it was judged.
CANDIDATE = "candidate"
#: How much of the way from the adapter in use to what was learned is tried, until the suites let it pass.
#: Between two sets of weights of one training lies what keeps more of the first than the last does.
SHARES = (1.0, 0.5, 0.25)


@click.command()
@configured("state_dir", "pack", "model", "models_dir")
@click.argument(
    "directory",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to; a run that was cut goes on there.",
)
@click.option("--name", default="corrected", show_default=True, help="What the adapter is called.")
@click.option(
    "--before",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    multiple=True,
    help="Cases to keep in mind, JSON lines; default: those that the model's own adapter was trained on.",
)
@click.option("--anew", is_flag=True, help="Start from random weights, not from the adapter of the settings.")
@click.option("--epochs", type=click.FloatRange(0.1, 100), default=2.0, show_default=True, help="Passes.")
@click.option(
    "--rank",
    type=click.IntRange(1, 256),
    help=f"Of an adapter that starts anew.  [default: {Settings().rank}]",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the order and the first weights.")
@click.option("--threads", type=click.IntRange(0), default=0, show_default=True, help="0: as many as cores.")
@as_json
@click.pass_context
def train(
    ctx: click.Context,
    config: Config,
    directory: Path,
    name: str,
    before: tuple[Path, ...],
    anew: bool,
    epochs: float,
    rank: int | None,
    seed: int,
    threads: int,
    as_json: bool,
) -> None:
    """Train an adapter from corrections, and judge it before it may be activated.

    Needs 50 corrections and the extra [train]; uses a GPU where there is one. It goes on from the adapter of
    the settings, and is held against it, on the suites of the pack and on corrections that it did not learn.
    Where these speak against it, half of the way from there to what was learned is tried, then a quarter.

    \b
    Exit status: 0 it is better or as good: DIR/NAME.gguf may be activated;
    1 it is refused, with reasons: only DIR/NAME-candidate.gguf is there.
    """
    pack, model = loading.load_pack(config), catalog.resolve(config.model, config.models_dir)
    with Reader(config.journal_path) as reader, render.counting("reviews read") as progress:
        gathered = export.gather(reader, pack, progress=progress)
    export.refuse_too_few(gathered, pack, export.LEAST, "training")
    files = before or _shipped(config)
    known = [case for path in files for case in dataset.read(path, (pack.info.name,))]
    lesson = dataset.lesson(gathered.corrections, pack, known, seed=seed)
    try:
        from thor_policy.learning.training.build import make
    except ImportError as error:
        raise TrainingError(f"{error.name} is not installed: pip install 'thor-policy[train]'") from error
    in_use = None if anew else find_adapter(config.adapter, config.adapter_scale, config, model.name)
    if in_use and rank:
        raise click.UsageError(f"--rank needs --anew: what goes on from {in_use.adapter.name} has its rank")
    rank = rank or Settings().rank
    settings = Settings(rank=rank, alpha=2 * rank, epochs=epochs, seed=seed)
    # First, so that what cannot be asked is told before the long part.
    now = _examined(config, pack, lesson.held_out, "now")
    tried: list[tuple[float, list[str]]] = []
    for share in SHARES if in_use else SHARES[:1]:
        with render.training() as (advance, checked):
            made = make(
                model,
                {pack.info.name: pack},
                lesson.train,
                lesson.held_out,
                settings,
                name=f"{name}-{CANDIDATE}",
                folder=directory,
                start=in_use.path if in_use else None,
                share=share,
                threads=threads,
                notes=(f"{lesson.corrections} corrections, {lesson.replayed} cases of before",),
                announce=lambda told: render.line(told, stderr=True),
                advance=advance,
                checked=checked,
            )
        candidate = directory / f"{made.adapter}.gguf"
        by_candidate = replace(config, adapter=str(candidate), adapter_scale=1.0)
        after = _examined(by_candidate, pack, lesson.held_out, f"of the candidate, {share:.0%} of the way")
        reasons, told = _compared(now, after, len(lesson.held_out))
        tried.append((share, reasons))
        if not reasons:
            break
    final = directory / f"{name}.gguf"
    if not reasons:
        candidate.replace(final)
    told |= {"adapter": str(candidate if reasons else final), "of the way": f"{made.share:.0%}"}
    if as_json:
        render.as_json(
            told
            | {
                "refused": reasons,
                "tried": [{"of_the_way": share, "refused": found} for share, found in tried],
                "card": msgspec.to_builtins(made),
            }
        )
    else:
        render.pairs(told)
        for share, found in tried:
            for reason in found:
                render.line(f"refused at {share:.0%} of the way: {reason}")
        if not reasons:
            render.line(f"to judge with it: thorpolicy adapters activate {final}")
    ctx.exit(1 if reasons else 0)


def _shipped(config: Config) -> tuple[Path, ...]:
    """The cases that the model's own adapter was trained on, if they are there."""
    own = companion_of(config.model)
    path = data_path("models") / "adapters" / f"{own}.cases.jsonl.gz"
    return (path,) if own and path.is_file() else ()


def _examined(config: Config, pack: Pack, held_out: Sequence[Case], who: str) -> tuple[int, Run | None]:
    """How many held-out corrections are decided right, and all scenarios of the pack, if it has some."""
    suites = [one for one in runner.find([]) if one.pack == pack.info.name]
    chosen = runner.choose(suites, full=True)
    total = len(held_out) + sum(len(one.scenarios) for one in chosen)
    with render.progress(total, f"corrections and scenarios asked {who}") as advance:
        with closing(loading.load_engine(config)) as engine:
            policy = Policy(engine, pack, adapter=loading.adopt_adapter(config, engine))
            decided = dataset.outcomes(policy, held_out, advance=advance)
        right = sum(one == case.outcome for one, case in zip(decided, held_out, strict=True))
        if not suites:
            return right, None
        told = runner.ask(
            config, chosen, selection="all scenarios", whom="process", advance=lambda _: advance()
        )
    return right, told


def _compared(
    now: tuple[int, Run | None], candidate: tuple[int, Run | None], held_out: int
) -> tuple[list[str], dict[str, object]]:
    """Why the candidate may not take over, and the figures: held-out corrections and suites."""
    told: dict[str, object] = {
        f"held-out corrections, {which}": f"{right} of {held_out} right"
        for which, (right, _) in (("now", now), ("candidate", candidate))
    }
    reasons = []
    if candidate[0] < now[0]:
        reasons.append(
            f"of {held_out} held-out corrections it decides {candidate[0]} right; {now[0]} are right now"
        )
    if now[1] is None or candidate[1] is None:
        return reasons, told | {"suites": "none for this pack"}
    found = compare(now[1], candidate[1], names=("now", "candidate"))
    told["suites, now"] = f"{found.decided_before.hits} of {found.paired} right"
    told["suites, candidate"] = f"{found.decided_after.hits} of {found.paired} right"
    return reasons + worse(found), told


def worse(found: Comparison) -> list[str]:
    """Scenarios that were right and would not be."""
    return [
        f"{one.suite} {one.id}: {one.before} now, {one.after} by the candidate"
        for one in found.changes
        if one.right_before and not one.right_after
    ]
