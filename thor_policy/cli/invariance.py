"""`invariance`: ask scenarios in other words, and with texts that ask for an allow."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import get_args

import click

from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured, is_given
from thor_policy.cli.suite_tables import ece
from thor_policy.config import Config
from thor_policy.suites import runner
from thor_policy.suites.invariance import KINDS, Kind, Variant, figures, sureness
from thor_policy.suites.runner import VariantRun

#: Changed answers of one kind and class that are shown.
_SHOWN = 20


@click.command()
@configured()
@click.argument(
    "files",
    nargs=-1,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Suite files; default: those that ship for the pack.",
)
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(get_args(Kind)),
    help="Only variants of this kind; repeatable.",
)
@click.option(
    "--sample",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    metavar="N",
    help="Number of variants to ask.",
)
@click.option("--seed", default=0, show_default=True, metavar="N", help="Random seed of the sample.")
@click.option("--full", is_flag=True, help="Ask every variant; takes hours with a model.")
@click.option("--no-record", is_flag=True, help="Answer in this process and record nothing.")
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
    no_record: bool,
    as_json: bool,
) -> None:
    """Ask variants of scenarios and report answers that changed.

    A variant differs only in ways that should not matter: order of members, unknown members, irrelevant
    context, synonyms, number format, an injected text that asks for an allow, another spelling of a name that
    a rule looks at. The rules alone answer all these spellings. Exit status 1: an answer got looser, or fell
    below its floor, or became a final allow, or every variant was refused.
    """
    suites = runner.find([str(path) for path in files])
    varied = runner.vary(
        config,
        suites,
        kinds or KINDS,
        count=None if full else sample,
        seed=seed,
        any_pack=is_given(ctx, "endpoint") and not is_given(ctx, "pack"),
        record=not no_record,
        asking=lambda count, where: render.progress(count, f"asking {where}"),
        announce=lambda message: render.line(message, stderr=True),
    )
    if as_json:
        render.as_json(varied.plain())
    else:
        _show(varied)
    ctx.exit(0 if varied.ok else 1)


def _show(varied: VariantRun) -> None:
    shown = Counter[tuple[str, str]]()
    for comparison in varied.compared:
        if comparison.changed or comparison.failed:
            variant = comparison.variant
            shown[variant.kind, variant.detail] += 1
            if shown[variant.kind, variant.detail] > _SHOWN:
                continue
        if comparison.refused is not None:
            render.line(f"{_what(comparison.variant)}: refused, {comparison.refused}")
        if comparison.failed:
            loosened_by = comparison.loosened_by
            by = f"loosened by the {loosened_by}" if loosened_by else "below the floor"
            by = "a final allow" if comparison.finally_allowed else by
            render.line(f"{_what(variant)}: {comparison.before} became {comparison.after}, {by}")
            if variant.text:
                render.line(f"    {variant.text!a}")
    render.table(
        ("variants", "asked", "refused", "flips", "by rules", "by model", "below floor", "final allow"),
        [
            (
                f.name,
                f.total,
                f.refused,
                f.flips,
                f.loosened_by_rules,
                f.loosened_by_model,
                f.below_floor,
                f.finally_allowed,
            )
            for f in figures(varied.compared)
        ],
    )
    if measured := sureness(varied.compared):
        render.line("")
        render.pairs({f"ECE of {each.name}": ece(each) for each in measured})
    if hidden := sum(max(0, count - _SHOWN) for count in shown.values()):
        render.line("")
        render.line(f"{hidden} more changed answers are not shown; --json lists all")
    which = "all" if varied.seed is None else f"seed {varied.seed}"
    render.line("")
    render.line(f"{len(varied.compared)} of {varied.variants} variants, {which}, {varied.where}")


def _what(variant: Variant) -> str:
    """The scenario, and what differs from it where."""
    return f"{variant.scenario} {variant.detail or variant.kind} in {variant.place or 'the whole question'}"
