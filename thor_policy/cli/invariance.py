"""`invariance`: suites asked again in other words and with texts that ask for an allow."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import get_args

import click
import msgspec

from thor_policy import suite
from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured
from thor_policy.cli.suites import _asking, _daemon
from thor_policy.config import Config, data_path
from thor_policy.errors import SuiteError
from thor_policy.suite import invariance as room
from thor_policy.suite.invariance import Compared, Kind


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
    suites = [suite.load(path) for path in files or suite.available(data_path("scenarios"))]
    material = room.material(data_path("scenarios") / room.MATERIAL_DIR)
    with _daemon(config) as (client, where, pack):
        own = [one for one in suites if one.pack == pack.info.name]
        scenarios = [scenario for one in own for scenario in one.scenarios if scenario.skip is None]
        if not scenarios:
            raise SuiteError(f"no scenario to vary for the pack {pack.info.name}")
        every = list(
            chain.from_iterable(room.variants(each, material, kinds or room.KINDS) for each in scenarios)
        )
        drawn = every if full else room.sample(every, sample, seed)
        compared = []
        with render.progress(len(drawn), f"asking {where}") as advance:
            for one in room.compare(scenarios, drawn, _asking(client, config.max_deadline_ms), pack.labels):
                compared.append(one)
                advance()
    figures = room.figures(compared)
    if as_json:
        changed = [one for one in compared if one.flipped or one.refused]
        told = {"variants": len(every), "asked": len(drawn), "seed": None if full else seed}
        render.as_json(told | msgspec.to_builtins({"figures": figures, "changed": changed}))
    else:
        _show(compared, figures)
        render.line(f"\n{len(drawn)} of {len(every)} variants, {'all' if full else f'seed {seed}'}, {where}")
    ctx.exit(1 if any(one.loosened_by or one.below_floor for one in compared) else 0)


def _show(compared: list[Compared], figures: tuple[room.Figures, ...]) -> None:
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
