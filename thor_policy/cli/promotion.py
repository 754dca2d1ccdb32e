"""`packs promote`, `packs promotions` and `improve`: a pack through the gate, and the next pack."""

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

#: Width of wrapped text, in columns.
_WIDTH = 80
#: Settings that a gate needs.
_SETTINGS = ("state_dir", "endpoint", "pack", "model", "models_dir", "adapter", "adapter_scale")
#: What the gate evaluates, and the key that signs its report.
_OPTIONS = (
    click.option(
        "--since",
        default="7d",
        show_default=True,
        metavar="TIME|AGE",
        help="Past decisions from this RFC 3339 time or age on: 7d, 12h.",
    ),
    click.option(
        "--past",
        default=500,
        show_default=True,
        metavar="N",
        type=click.IntRange(1),
        help="At most N past decisions, the newest.",
    ),
    click.option(
        "--reviewed",
        default=200,
        show_default=True,
        metavar="N",
        type=click.IntRange(0),
        help="At most N reviewed decisions, the newest.",
    ),
    click.option(
        "--variants",
        default=50,
        show_default=True,
        metavar="N",
        type=click.IntRange(0),
        help="Variants of scenarios to run.",
    ),
    click.option("--seed", default=0, show_default=True, metavar="N", help="Random seed for the variants."),
    click.option(
        "--suite",
        "suites",
        multiple=True,
        metavar="NAME|FILE",
        help="Suite for this pack; repeatable.  [default: the shipped suites]",
    ),
    click.option(
        "--accept-loosened",
        "accepted",
        multiple=True,
        metavar="ID",
        help="Past decision that may be loosened: its id, or the end of it; repeatable.",
    ),
    click.option(
        "--key",
        "key_file",
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Ed25519 private key (PEM) that signs the promotion; `packs sign --new-key` makes one.",
    ),
)


def gate_options(command: F) -> F:
    """Decorate a command with the settings and options of the gate."""
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
@click.option("--choose", "best", is_flag=True, help="Choose the best of several packs that pass.")
@click.option("--dry-run", is_flag=True, help="Record nothing, activate nothing.")
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
    """Activate a pack if it passes the gate: suites, reviews, past decisions.

    The gate compares it with the active pack. It loads a model of its own at the lowest priority. A pack that
    passes is recorded, and activated if a daemon runs; a refusal is recorded too.

    \b
    Exit status: 0 the pack passed; 1 it is refused, with the reasons.
    """
    from thor_policy.learning.promotion import promote

    with _terms(gate) as (terms, rest):
        promotion = promote.promote(config, named, terms, best=best, dry_run=dry_run, **rest)
    if as_json:
        render.as_json(plain(promotion))
    else:
        show(promotion)
    ctx.exit(0 if promotion.chosen else 1)


@click.command()
@gate_options
@click.argument(
    "folder",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory of packs; the proposal is written to DIR/NAME-VERSION.",
)
@click.option(
    "--promote", "in_force", is_flag=True, help="Record the result; activate the pack if it passes."
)
@as_json
@click.pass_context
def improve(
    ctx: click.Context, /, config: Config, folder: Path, in_force: bool, as_json: bool, **gate: Any
) -> None:
    """Propose the next pack, with reviewers' corrections as examples, and send it through the gate.

    It is the active pack with another version and other examples, written to a directory of its own, and
    signed if --key is given. Needs 50 corrections. Run it as the daemon's user, who must be able to read it.

    \b
    Exit status: 0 the pack passed; 1 it is refused, with the reasons;
    2 there are too few corrections, or they give no new example.
    """
    from thor_policy.learning.promotion import improve

    with _terms(gate) as (terms, rest):
        proposal = improve.improve(config, folder, terms, in_force=in_force, **rest)
    if as_json:
        fields = msgspec.to_builtins(proposal)
        render.as_json(fields | {"promotion": plain(proposal.promotion)})
    else:
        render.pairs(
            {
                "proposed": f"{proposal.pack.name} {proposal.pack.version} in {proposal.path}",
                "corrections": proposal.corrections,
                "new examples": ", ".join(proposal.corrected),
                "unchanged examples": ", ".join(proposal.kept) or "none",
            }
        )
        render.line("")
        show(proposal.promotion)
    ctx.exit(0 if proposal.promotion.chosen else 1)


@click.command()
@configured("state_dir")
@click.option(
    "--public-key",
    "public_keys",
    multiple=True,
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Check signatures with this key (PEM); repeatable.",
)
@click.option("-n", "--limit", default=20, show_default=True, metavar="N", type=click.IntRange(1))
@as_json
@click.pass_context
def promotions(
    ctx: click.Context, config: Config, public_keys: tuple[Path, ...], limit: int, as_json: bool
) -> None:
    """List packs that were promoted or refused, newest first; exit status 1 if a signature is bad."""
    from thor_policy.daemon import journal_access
    from thor_policy.learning.promotion.promote import recorded

    with journal_access.open_reader(config) as reader:
        rows = recorded(reader, public_keys, limit=limit)
    if as_json:
        render.as_json([row | {"report": msgspec.json.decode(row["report"])} for row in rows])
    else:
        render.table(
            ("time", "pack", "version", "result", "by", "signed by"),
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
                _print_wrapped(f"{row['name']} {row['version']} of {row['timestamp']}: {row['problem']}")
    ctx.exit(1 if any(row["problem"] for row in rows) else 0)


@contextmanager
def _terms(gate: Mapping[str, Any]) -> Iterator[tuple[Terms, dict[str, Any]]]:
    """The values of `gate_options` as terms and arguments; the block runs at the lowest priority."""
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
        yield (
            terms,
            {
                "now": now,
                "suites": gate["suites"],
                "key": gate["key_file"],
                "announce": announce,
                "display": render,
            },
        )


def plain(promotion: Promotion) -> dict[str, Json]:
    """The promotion as JSON values, with `passed` for each report and check."""
    fields: dict[str, Json] = msgspec.to_builtins(promotion)
    return fields | {"reports": [report.plain() for report in promotion.reports]}


def show(promotion: Promotion) -> None:
    """Print every check of every pack, every reason against a pack, and the result."""
    for report in promotion.reports:
        info, against = report.pack, report.against
        render.line(f"{info.name} {info.version} ({info.sha256[:12]}) in place of {against.version}")
        render.table(
            ("check", "result", "found", "allowed"),
            [
                (check.name, "passed" if check.passed else "failed", check.figure, check.limit)
                for check in report.checks
            ],
        )
        for check in report.checks:
            for reason in check.reasons:
                _print_wrapped(f"{check.name}: {reason}")
        render.line("")
    _print_wrapped(promotion.why)
    if promotion.activated and promotion.chosen:
        render.line(f"{promotion.chosen.name} {promotion.chosen.version} is active now")
    elif promotion.chosen:
        render.line("no daemon runs" if promotion.recorded else "nothing was recorded, nothing activated")
    if promotion.advice:
        _print_wrapped(promotion.advice)


def _print_wrapped(text: str) -> None:
    """Print a text in lines of 80 columns; words are not broken, so a path stays whole."""
    lines = textwrap.wrap(
        text, _WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    for line in lines:
        render.line(line)
