"""`train`: an adapter from what reviewers corrected."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click
import msgspec

from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config
from thor_policy.learning.training import judge
from thor_policy.learning.training.settings import Settings


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
    done = judge.train(
        config,
        directory,
        name=name,
        before=before,
        anew=anew,
        epochs=epochs,
        rank=rank,
        seed=seed,
        threads=threads,
        announce=partial(render.line, stderr=True),
        display=render,
    )
    figures: dict[str, object] = {
        **done.figures,
        "adapter": str(done.adapter),
        "of the way": f"{done.card.share:.0%}",
    }
    if as_json:
        trials, card = msgspec.to_builtins((done.trials, done.card))
        render.as_json(figures | {"refused": done.refused, "tried": trials, "card": card})
    else:
        render.pairs(figures)
        for trial in done.trials:
            for reason in trial.refused:
                render.line(f"refused at {trial.of_the_way:.0%} of the way: {reason}")
        if not done.refused:
            render.line(f"to judge with it: thorpolicy adapters activate {done.adapter}")
    ctx.exit(1 if done.refused else 0)
