"""`packs promote`: the gate that a pack passes before it decides."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from thor_policy.cli import completion, render
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config

if TYPE_CHECKING:
    from thor_policy.promotion import Promotion

F = TypeVar("F", bound=Callable[..., Any])

#: Columns of a terminal.
_WIDTH = 80
#: Settings that a gate needs.
_SETTINGS = ("state_dir", "endpoint", "pack", "model", "models_dir", "adapter", "adapter_scale")
#: What a gate looks at, and what becomes of it.
_OPTIONS = (
    click.option(
        "--since",
        default="7d",
        show_default=True,
        metavar="TIME|AGE",
        help="Past decisions from this RFC 3339 time on, or so long ago: 7d, 12h.",
    ),
    click.option(
        "--past",
        default=500,
        show_default=True,
        metavar="N",
        type=click.IntRange(1),
        help="At most so many of them, the newest.",
    ),
    click.option(
        "--reviewed",
        default=200,
        show_default=True,
        metavar="N",
        type=click.IntRange(0),
        help="At most so many reviewed decisions, the newest.",
    ),
    click.option(
        "--variants",
        default=50,
        show_default=True,
        metavar="N",
        type=click.IntRange(0),
        help="Variants of scenarios that are asked.",
    ),
    click.option("--seed", default=0, show_default=True, metavar="N", help="Draws the variants."),
    click.option(
        "--suite",
        "suites",
        multiple=True,
        metavar="NAME|FILE",
        help="Suites of this pack; those that ship if none is given. May be given again.",
    ),
    click.option(
        "--accept-loosened",
        "accepted",
        multiple=True,
        metavar="ID",
        help="A past decision that may be loosened; its end will do. May be given again.",
    ),
    click.option(
        "--key",
        "key_file",
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Ed25519 key (PEM) that signs the promotion; made if it is missing.",
    ),
)


def gate_options(command: F) -> F:
    """The settings and options of a command that sends a pack through the gate."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return configured(*_SETTINGS)(command)


@click.command()
@gate_options
@click.argument(
    "named",
    nargs=-1,
    required=True,
    metavar="NAME|DIR...",
    help="Packs of `packs list`, or directories.",
    shell_complete=completion.packs,
)
@click.option("--choose", "best", is_flag=True, help="Of several packs, the best of those that pass.")
@click.option("--dry-run", is_flag=True, help="Only tell; record nothing, activate nothing.")
@as_json
@click.pass_context
def promote(
    ctx: click.Context,
    /,
    config: Config,
    named: tuple[str, ...],
    best: bool,
    dry_run: bool,
    as_json: bool,
    **gate: Any,
) -> None:
    """Let a pack decide if nothing speaks against it: suites, reviews, past decisions.

    It is held against the active pack, with a model of its own beside the daemon's, at the lowest priority.
    What passes is recorded and activated in the daemon, if one runs; what is refused is recorded too.

    \b
    Exit status: 0 it decides from now on, or would; 1 it is refused, and why.
    """
    done = through_the_gate(config, named, best=best, dry_run=dry_run, **gate)
    show(done, as_json=as_json)
    ctx.exit(0 if done.chosen else 1)


def through_the_gate(
    config: Config, named: tuple[str, ...], *, dry_run: bool, best: bool = False, **told: Any
) -> Promotion:
    """What becomes of these packs, given the values of `gate_options`."""
    from thor_policy import whatif  # with all that the gate needs, half a second that other commands save
    from thor_policy.promotion import Terms, promote

    now = time.time()
    terms = Terms(
        since=whatif.moment(told["since"], "since", now) or "",
        past=told["past"],
        reviewed=told["reviewed"],
        variants=told["variants"],
        seed=told["seed"],
        accepted=told["accepted"],
    )
    with whatif.on_idle_time():
        return promote(
            config,
            named,
            terms,
            now=now,
            suites=told["suites"],
            best=best,
            key=told["key_file"],
            dry_run=dry_run,
            announce=partial(render.line, stderr=True),
        )


def show(done: Promotion, *, as_json: bool) -> None:
    """Every check of every pack, every reason against one, and what came of it."""
    if as_json:
        told = msgspec.to_builtins(done)
        told["reports"] = [report.plain() for report in done.reports]
        render.as_json(told)
        return
    for report in done.reports:
        info, against = report.pack, report.against
        render.line(f"{info.name} {info.version} ({info.sha256[:12]}) in the place of {against.version}")
        render.table(
            ("check", "result", "found", "allowed"),
            [
                (one.name, "passed" if one.passed else "failed", one.figure, one.limit)
                for one in report.checks
            ],
        )
        for one in report.checks:
            for reason in one.reasons:
                _wrapped(f"{one.name}: {reason}")
        render.line("")
    _wrapped(done.why)
    if done.activated and done.chosen:
        render.line(f"{done.chosen.name} {done.chosen.version} decides from now on")
    elif done.chosen:
        render.line("no daemon runs" if done.recorded else "nothing was recorded, nothing activated")
    if done.advice:
        _wrapped(done.advice)


def _wrapped(text: str) -> None:
    """A text in lines of 80 columns; what has no space in it, as paths, stays whole."""
    lines = textwrap.wrap(
        text, _WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    for line in lines:
        render.line(line)
