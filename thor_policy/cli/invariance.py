"""`invariance`: suites asked again in other words and with texts that ask for an allow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import click
import msgspec

from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config
from thor_policy.suites import runner
from thor_policy.suites.invariance import KINDS, Compared, Figures, Kind
from thor_policy.suites.invariance import figures as figures_of


@click.command()
@configured()
@click.argument(
    "files",
    nargs=-1,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Suite files; those that ship for the pack if none is given.",
)
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(get_args(Kind)),
    help="Only variants of this kind; may be given again.",
)
@click.option("--sample", default=100, show_default=True, metavar="N", help="How many variants are asked.")
@click.option("--seed", default=0, show_default=True, metavar="N", help="Draws the sample; the same again.")
@click.option("--full", is_flag=True, help="Every variant; hours with a model.")
@as_json
@click.pass_context
def invariance(
    ctx: click.Context,
    config: Config,
    files: tuple[Path, ...],
    kinds: tuple[Kind, ...],
    sample: int,
    seed: int,
    full: bool,
    as_json: bool,
) -> None:
    """Ask variants of scenarios and report answers that changed.

    A variant differs in nothing that should matter: order of members, unknown members, irrelevant context,
    synonyms, ways to write a number, a text that asks for an allow. Exit status 1: some answer got looser.
    """
    suites = runner.find([str(path) for path in files])
    varied = runner.vary(
        config,
        suites,
        kinds or KINDS,
        count=None if full else sample,
        seed=seed,
        asking=lambda count, where: render.progress(count, f"asking {where}"),
        announce=lambda told: render.line(told, stderr=True),
    )
    compared = varied.compared
    figures = figures_of(compared)
    if as_json:
        changed = [one for one in compared if one.flipped or one.refused]
        told = {"variants": varied.variants, "asked": len(compared), "seed": varied.seed}
        render.as_json(told | msgspec.to_builtins({"figures": figures, "changed": changed}))
    else:
        _show(compared, figures)
        which = "all" if full else f"seed {seed}"
        render.line(f"\n{len(compared)} of {varied.variants} variants, {which}, {varied.where}")
    ctx.exit(1 if any(one.loosened_by or one.below_floor for one in compared) else 0)


def _show(compared: Sequence[Compared], figures: tuple[Figures, ...]) -> None:
    for one in compared:
        if one.loosened_by or one.below_floor:
            variant = one.variant
            what = f"{variant.detail or variant.kind} in {variant.place or 'the whole'}"
            by = f"loosened by the {one.loosened_by}" if one.loosened_by else "below the floor"
            render.line(f"{variant.scenario} {what}: {one.before} became {one.after}, {by}")
            if variant.text:
                render.line(f"    {variant.text!a}")
    render.table(
        ("variants", "asked", "refused", "flips", "by rules", "by model", "below floor"),
        [
            (f.name, f.asked, f.refused, f.flips, f.loosened_by_rules, f.loosened_by_model, f.below_floor)
            for f in figures
        ],
    )
