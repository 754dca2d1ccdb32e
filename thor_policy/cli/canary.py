"""`canary`: put a pack, a model or an adapter on trial with a share of the callers.

Owns the commands; the daemon decides who belongs to the share, and rolls back by itself. Main thread.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import click
import msgspec

from thor_policy.cli import completion, render
from thor_policy.cli.journal_reader import open_current
from thor_policy.cli.options import F, absolute_if_path, as_json, configured, finite
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.canary import Breach, Canary, Terms
from thor_policy.core.records import CanaryChange, Candidate, Control
from thor_policy.core.requests import Json
from thor_policy.core.status import ArmStatus, CanaryStatus
from thor_policy.journal import canary_queries
from thor_policy.journal.reader import ENDING_CHARS

_TERMS = Terms()
_SHARE = click.FloatRange(0, 1, min_open=True)


def _limit(option: str, help: str) -> Callable[[F], F]:
    """The option of a term that is a share, with the default of `Terms`."""
    default = getattr(_TERMS, option.removeprefix("--").replace("-", "_"))
    share = click.FloatRange(0, 1)
    return click.option(option, type=share, callback=finite, default=default, show_default=True, help=help)


@click.group()
def canary() -> None:
    """Let a candidate decide for a share of the callers; one that is looser is rolled back by itself."""


@canary.command()
@configured("endpoint", "key", "state_dir")
@click.option(
    "--pack",
    "packs",
    multiple=True,
    metavar="NAME|DIR",
    help="Candidate pack: a resident or shipped pack, or a directory; repeatable with --choose.",
    shell_complete=completion.packs,
)
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="NAME|PATH|none",
    help="Candidate adapter; repeatable with --choose.",
    shell_complete=completion.adapters,
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME|PATH",
    help="Candidate model, loaded beside that of the daemon; repeatable with --choose.",
    shell_complete=completion.FOR_SETTINGS.get("model"),
)
@click.option("--scale", type=float, callback=finite, default=1.0, show_default=True, help="Its weight.")
@click.option(
    "--share", type=_SHARE, callback=finite, required=True, help="Share of the callers: 0.1 is a tenth."
)
@click.option("--choose", is_flag=True, help="Of several candidates, take the one with the best record.")
@click.option(
    "--least",
    type=click.IntRange(10, 1_000_000),
    default=_TERMS.least,
    show_default=True,
    help="Fewest decisions, or results of each arm, that are judged.",
)
@_limit("--looser", "Share of decisions in which its rules may ask for less than the active pack's.")
@_limit("--loosened", "Share of looser answers among those that differ from the active pack's model.")
@_limit("--success-drop", "How much lower its success rate may be than that of the others.")
@_limit("--fallback-rise", "How much higher its share of decisions without an answer may be.")
@click.option(
    "--latency-ratio",
    type=click.FloatRange(0, 1_000),
    callback=finite,
    default=_TERMS.latency_ratio,
    show_default=True,
    help="How many times as long its decisions may take; 0: any time.",
)
@as_json
def start(
    config: Config,
    packs: tuple[str, ...],
    adapters: tuple[str, ...],
    models: tuple[str, ...],
    scale: float,
    share: float,
    choose: bool,
    as_json: bool,
    **limits: Any,
) -> None:
    """Let a candidate decide for a share of the callers.

    Who belongs to the share does not change while the canary runs. The answer is never looser than the floor
    of the active pack. With several packs, models or adapters, each combination is a candidate.
    """
    change = CanaryChange(
        change="start",
        candidates=_candidates(packs, adapters, models, scale),
        choose=choose,
        share=share,
        terms=Terms(**limits),
    )
    _change(config, change, as_json)


@canary.command(name="share")
@configured("endpoint", "key", "state_dir")
@click.argument("share", type=_SHARE, callback=finite, metavar="SHARE", help="Share of the callers.")
@as_json
def resize(config: Config, share: float, as_json: bool) -> None:
    """Change the share. A larger one keeps everybody that the smaller one had."""
    _change(config, CanaryChange(change="share", share=share), as_json)


@canary.command()
@configured("endpoint", "key", "state_dir")
@as_json
def stop(config: Config, as_json: bool) -> None:
    """End the canary: the active pack decides for everybody, and the candidate is unloaded."""
    _change(config, CanaryChange(change="stop"), as_json)


@canary.command()
@configured("endpoint", "key", "state_dir")
@as_json
def promote(config: Config, as_json: bool) -> None:
    """End the canary, and make its candidate the active pack and adapter.

    The gate of `packs promote` is not asked. The settings stay as they are.
    """
    _change(config, CanaryChange(change="promote"), as_json)


@canary.command()
@configured("endpoint", "key", "state_dir")
@as_json
@click.pass_context
def status(ctx: click.Context, config: Config, as_json: bool) -> None:
    """Show the newest canary and the figures of both arms. Exit status 1 if it was rolled back or failed."""
    with Client(config.endpoint, key=config.key_file) as client:
        newest = client.status().canary
    if as_json:
        render.as_json(msgspec.to_builtins(newest))
    elif newest is None:
        render.line("there was no canary")
    else:
        _show(newest)
    ctx.exit(1 if newest is not None and newest.state in ("rolled_back", "failed") else 0)


@canary.command(name="list")
@configured("state_dir")
@click.option("-n", "--limit", default=20, show_default=True, type=click.IntRange(1, 10_000))
@as_json
def list_canaries(config: Config, limit: int, as_json: bool) -> None:
    """List canaries of the journal, newest first, with the figures that ended them."""
    with open_current(config) as reader, reader.snapshot() as connection:
        known = canary_queries.newest_first(connection, limit)
    if as_json:
        render.as_json(msgspec.to_builtins(list(canary_queries.as_rows(known))))
        return
    render.table(
        ("started", "ended", "state", "share", "candidate", "figures", "id"),
        [
            (
                each.started[5:16].replace("T", " "),
                (each.ended or "")[5:16].replace("T", " "),
                each.cause or "running",
                f"{each.canary.share:g}",
                _candidate(each.canary),
                _figures(each.breach) if each.breach else each.reason,
                each.canary.id[-ENDING_CHARS:],
            )
            for each in known
        ],
        gap=1,
        clipped=(4, 5),
    )


def _candidate(canary: Canary) -> str:
    """`core 1.3.0, model.gguf, tuned`: what a canary puts on trial."""
    adapter = canary.adapter.name if canary.adapter else None
    pack = f"{canary.pack.name} {canary.pack.version}"
    return ", ".join(part for part in (pack, canary.model, adapter) if part is not None)


def _candidates(
    packs: tuple[str, ...], adapters: tuple[str, ...], models: tuple[str, ...], scale: float
) -> tuple[Candidate, ...]:
    """Each combination of what is named; what is not named is that of the active pack."""
    return tuple(
        Candidate(
            pack=pack and absolute_if_path(pack, marker="pack.yaml"),
            model=model and absolute_if_path(model),
            adapter=adapter and absolute_if_path(adapter),
            scale=scale,
        )
        for pack, model, adapter in itertools.product(
            packs or (None,), models or (None,), adapters or (None,)
        )
        if (pack, model, adapter) != (None, None, None)
    )


def _change(config: Config, change: CanaryChange, as_json: bool) -> None:
    with (
        Client(config.endpoint, key=config.key_file) as client,
        render.working(f"waiting for the daemon: canary {change.change}"),
    ):
        done: dict[str, Json] = client.control(Control(task="canary", canary=change))
    if as_json:
        render.as_json(done)
        return
    if why := done["canary"].get("why"):
        render.line(why)
    render.residents(done["packs"])


def _show(newest: CanaryStatus) -> None:
    pack = newest.pack
    render.pairs(
        {
            "canary": newest.id,
            "state": newest.state,
            "pack": f"{pack.name} {pack.version} ({pack.sha256[:12]})",
            "model": newest.model,
            "adapter": newest.adapter,
            "share": f"{newest.share:g}",
            "started": newest.started,
            "ended": newest.ended,
            "figures": _figures(newest.breach) if newest.breach else None,
            "reason": newest.reason,
        }
    )
    render.line("")
    render.table(
        ("arm", "decisions", "looser", "no answer", "compared", "looser", "stricter", "success", "time"),
        [_row("canary", newest.canary), _row("control", newest.control)],
    )


def _row(name: str, arm: ArmStatus) -> tuple[Any, ...]:
    return (
        name,
        arm.decisions,
        arm.looser,
        arm.unanswered,
        arm.compared,
        arm.loosened,
        arm.tightened,
        f"{arm.hits} of {arm.results}" if arm.results else None,
        f"{arm.mean_ms:g} ms" if arm.mean_ms is not None else None,
    )


def _figures(breach: Breach) -> str:
    """`looser 0.4 (0.28 to 0.53, more than 0) of 50`."""
    against = f" and {breach.control_sample}" if breach.control_sample else ""
    return (
        f"{breach.condition} {breach.value:.3g} ({breach.low:.3g} to {breach.high:.3g}; "
        f"limit {breach.threshold:g}) of {breach.sample}{against}"
    )
