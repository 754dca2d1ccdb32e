"""`packs promote` and `improve`: the gate that a pack passes before it decides, and the next pack."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from thor_policy.cli import completion, render
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config
from thor_policy.core.requests import Json

if TYPE_CHECKING:
    from thor_policy.learning.promotion.report import Promotion, Terms

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
    from thor_policy.learning.promotion import promote

    with _terms(gate) as (terms, rest):
        done = promote.promote(config, named, terms, best=best, dry_run=dry_run, **rest)
    if as_json:
        render.as_json(plain(done))
    else:
        show(done)
    ctx.exit(0 if done.chosen else 1)


@click.command()
@gate_options
@click.argument(
    "folder",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where packs are kept; the proposal goes to DIR/NAME-VERSION.",
)
@click.option("--promote", "in_force", is_flag=True, help="Record it, and activate it if it passes.")
@as_json
@click.pass_context
def improve(
    ctx: click.Context, /, config: Config, folder: Path, in_force: bool, as_json: bool, **gate: Any
) -> None:
    """Propose the next pack: reviewers' corrections as its examples, and through the gate.

    It is the active pack with another version and other examples, written to a directory of its own, and
    signed if --key is given. Needs 50 corrections. Run it as the daemon's user, who has to read it.

    \b
    Exit status: 0 it passes; 1 it is refused, and why;
    2 there are too few corrections, or nothing to swap in.
    """
    from thor_policy.learning.promotion import improve

    with _terms(gate) as (terms, rest):
        done = improve.improve(config, folder, terms, in_force=in_force, **rest)
    if as_json:
        told = msgspec.to_builtins(done)
        render.as_json(told | {"promotion": plain(done.promotion)})
    else:
        render.pairs(
            {
                "proposed": f"{done.pack.name} {done.pack.version} in {done.path}",
                "corrections": done.corrections,
                "new examples": ", ".join(done.corrected),
                "examples that stay": ", ".join(done.kept) or "none",
            }
        )
        render.line("")
        show(done.promotion)
    ctx.exit(0 if done.promotion.chosen else 1)


@click.command()
@configured("state_dir")
@click.option(
    "--public-key",
    "public_keys",
    multiple=True,
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Check signatures with this key (PEM); may be given again.",
)
@click.option("-n", "--limit", default=20, show_default=True, metavar="N", type=click.IntRange(1))
@as_json
@click.pass_context
def promotions(
    ctx: click.Context, config: Config, public_keys: tuple[Path, ...], limit: int, as_json: bool
) -> None:
    """Which packs were promoted or refused, newest first; exit status 1 if a signature counts for nothing."""
    from thor_policy.daemon import journal_access
    from thor_policy.learning.promotion.promote import recorded

    with journal_access.open_reader(config) as reader:
        rows = recorded(reader, public_keys, limit=limit)
    if as_json:
        render.as_json([row | {"report": msgspec.json.decode(row["report"])} for row in rows])
    else:
        render.table(
            ("time", "pack", "version", "result", "asked by", "signed by"),
            [
                (
                    row["timestamp"][:16].replace("T", " "),
                    row["name"],
                    row["version"],
                    "passed" if row["passed"] else "failed",
                    "-" if row["by_uid"] is None else f"uid {row['by_uid']}",
                    row["key"],
                )
                for row in rows
            ],
            clipped=(1, 2),
        )
        for row in rows:
            if row["problem"]:
                _wrapped(f"{row['name']} {row['version']} of {row['timestamp']}: {row['problem']}")
    ctx.exit(1 if any(row["problem"] for row in rows) else 0)


@contextmanager
def _terms(gate: Mapping[str, Any]) -> Iterator[tuple[Terms, dict[str, Any]]]:
    """The values of `gate_options` as the gate takes them, at the lowest priority for the block."""
    from thor_policy.learning import counterfactual_run
    from thor_policy.learning.promotion.report import Terms

    now = time.time()
    terms = Terms(
        since=counterfactual_run.moment(gate["since"], "since", now) or "",
        past=gate["past"],
        reviewed=gate["reviewed"],
        variants=gate["variants"],
        seed=gate["seed"],
        accepted=gate["accepted"],
    )
    announce = partial(render.line, stderr=True)
    with counterfactual_run.on_idle_time():
        yield terms, {"now": now, "suites": gate["suites"], "key": gate["key_file"], "announce": announce}


def plain(done: Promotion) -> dict[str, Json]:
    """What came of it as JSON values, with the verdicts."""
    told: dict[str, Json] = msgspec.to_builtins(done)
    return told | {"reports": [report.plain() for report in done.reports]}


def show(done: Promotion) -> None:
    """Every check of every pack, every reason against one, and what came of it."""
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
