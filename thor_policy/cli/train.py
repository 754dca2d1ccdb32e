"""`train`: an adapter from reviewers' corrections."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click
import msgspec

from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured, finite
from thor_policy.config import Config
from thor_policy.learning.training import judge
from thor_policy.learning.training.settings import Settings


@click.command()
@configured("state_dir", "pack", "model", "models_dir")
@click.argument(
    "directory",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory to write; an interrupted run continues there.",
)
@click.option("--name", default="corrected", show_default=True, help="Name of the adapter.")
@click.option(
    "--before",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    multiple=True,
    help="Earlier cases to train again, JSON lines; repeatable.  [default: those of the model's own adapter]",
)
@click.option("--anew", is_flag=True, help="Start from random weights, not from the adapter of the settings.")
@click.option(
    "--epochs",
    type=click.FloatRange(0.1, 100),
    callback=finite,
    default=2.0,
    show_default=True,
    help="Passes over all cases.",
)
@click.option(
    "--rank",
    type=click.IntRange(1, 256),
    help=f"Rank of an adapter that starts from random weights.  [default: {Settings().rank}]",
)
@click.option(
    "--seed",
    type=int,
    default=1,
    show_default=True,
    help="Random seed for the order of cases and the initial weights.",
)
@click.option(
    "--threads",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="CPU threads; 0: as many as cores.",
)
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

    Needs 50 corrections and the extra [train]; uses a GPU where there is one. Training continues from the
    adapter of the settings. The result is compared with that adapter on the suites of the pack and on
    held-out corrections. If it is worse, half of the way from that adapter is judged, then a quarter.

    \b
    Exit status: 0 it is as good or better: DIR/NAME.gguf may be activated;
    1 it is refused, with the reasons: only DIR/NAME-candidate.gguf is written.
    """
    judgement = judge.train(
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
        **judgement.figures,
        "adapter": str(judgement.adapter),
        "of the way": f"{judgement.card.share:.0%}",
    }
    if as_json:
        trials, card = msgspec.to_builtins((judgement.trials, judgement.card))
        render.as_json(figures | {"refused": judgement.refused, "tried": trials, "card": card})
    else:
        render.pairs(figures)
        for trial in judgement.trials:
            for reason in trial.refused:
                render.line(f"refused at {trial.of_the_way:.0%} of the way: {reason}")
        if not judgement.refused:
            render.line(f"to decide with it: thorpolicy adapters activate {judgement.adapter}")
    ctx.exit(1 if judgement.refused else 0)
