"""`whatif`: decide past requests again by another pack, model or adapter, and list what changes."""

from __future__ import annotations

import time
from collections.abc import Sequence

import click
import msgspec

from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config
from thor_policy.journal.reader import ENDING_CHARS
from thor_policy.learning.counterfactual import Counterfactual, Group, Reason, Summary
from thor_policy.learning.counterfactual_run import what_if
from thor_policy.suites.intervals import Rate

#: Rows of a list; further rows are only counted.
_MOST_ROWS = 15


@click.command()
@configured("state_dir", "endpoint", "key", "pack", "model", "models_dir", "adapter", "adapter_scale")
@click.option(
    "--since",
    default="7d",
    show_default=True,
    metavar="TIME|AGE",
    help="From this RFC 3339 time or age on: 7d, 12h, 30m.",
)
@click.option("--until", metavar="TIME|AGE", help="Only before this time or age.")
@click.option("-n", "--limit", metavar="N", type=click.IntRange(1), help="At most N decisions, the newest.")
@click.option("--actor", help="Only this actor: user:alice, agent:trader, or a user's bare id.")
@click.option("--action", help="Only this action.")
@click.option(
    "--instead-of",
    metavar="NAME",
    help="Only decisions by packs of this name.  [default: the name of --pack]",
)
@click.option("--resume", is_flag=True, help="Continue the newest run of the same pack, model and adapter.")
@click.option("--dry-run", is_flag=True, help="Record nothing.")
@as_json
@click.pass_context
def whatif(
    ctx: click.Context,
    config: Config,
    since: str,
    until: str | None,
    limit: int | None,
    actor: str | None,
    action: str | None,
    instead_of: str | None,
    resume: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Decide past requests again by another pack, model or adapter, and list what changes.

    Loads a model of its own at the lowest priority, and waits while the daemon has requests in flight.

    \b
    Exit status: 0 no decision got looser; 1 some decision did;
    2 there was nothing to compare.
    """
    done = what_if(
        config,
        since=since,
        until=until,
        limit=limit,
        actor=actor,
        action=action,
        instead_of=instead_of,
        resume=resume,
        dry_run=dry_run,
        now=time.time(),
        progress=render.redeciding,
    )
    if as_json:
        render.as_json(msgspec.to_builtins(done))
    else:
        _show(done.summary, done.flips)
        render.line(f"decided by {done.decided_by}")
    ctx.exit(1 if done.summary.loosened else 0 if done.summary.compared else 2)


def _show(summary: Summary, flips: Sequence[Counterfactual]) -> None:
    render.line(
        f"{summary.compared:,} compared: {summary.same:,} the same, {summary.loosened:,} loosened, "
        f"{summary.tightened:,} tightened"
    )
    if summary.compared:
        balance = summary.balance
        render.table(
            ("", "share", "95 % interval"),
            [
                ("loosened", *_percent(summary.loosened_share)),
                ("changed", *_percent(summary.flipped)),
                (
                    "loosened minus tightened",
                    f"{100 * balance.difference:+.1f} %",
                    f"{100 * balance.low:+.1f} to {100 * balance.high:+.1f} %, p = {balance.p_value:.2g}",
                ),
            ],
        )
        took_s, model_s = summary.took_ms / 1e3, summary.score_ms / 1e3
        render.line(f"time: {took_s:.1f} s, model {model_s:.1f} s of it; {summary.mean_ms:.0f} ms a decision")
    if summary.skipped:
        render.line("")
        rows = [(_REASONS[reason], count) for reason, count in summary.skipped.items()]
        render.table(("not compared", "decisions"), rows)
    if not flips:
        return
    render.line("")
    render.table(
        ("then", "now", "", "decisions"),
        [(change.then, change.now, change.direction, change.count) for change in summary.changes],
        clipped=(0, 1),
    )
    for name, groups in (
        ("decided then by", summary.by_judge),
        ("actor", summary.by_actor),
        ("clause", summary.by_clause),
    ):
        _show_groups(name, groups)
    loosened = [flip for flip in flips if flip.direction == "loosened"]
    if loosened:
        render.line("")
        render.table(
            ("loosened", "actor", "then", "now", "id"),
            [
                (
                    flip.at[:16].replace("T", " "),
                    flip.actor or "(erased)",
                    flip.then.outcome,
                    flip.now.outcome,
                    flip.decision_id[-ENDING_CHARS:],
                )
                for flip in loosened[:_MOST_ROWS]
            ],
            clipped=(1, 2, 3),
        )
        _show_remaining(len(loosened))


def _show_groups(name: str, groups: Sequence[Group]) -> None:
    changed = [group for group in groups if group.loosened or group.tightened]
    rows = [(group.value or "none", group.compared, group.loosened, group.tightened) for group in changed]
    render.line("")
    render.table((name, "compared", "loosened", "tightened"), rows[:_MOST_ROWS], clipped=(0,))
    _show_remaining(len(changed))


def _show_remaining(count: int) -> None:
    if count > _MOST_ROWS:
        render.line(f"and {count - _MOST_ROWS} more: --json lists all")


def _percent(rate: Rate) -> tuple[str, str]:
    return f"{100 * (rate.share or 0):.1f} %", f"{100 * rate.low:.1f} to {100 * rate.high:.1f} %"


#: How each reason is printed.
_REASONS: dict[Reason, str] = {
    "decision_report": "reported, not decided here",
    "erased": "erased, or a name in it was",
    "missing": "its private part is missing",
    "masked": "a value was masked",
    "another_pack": "another pack decided",
    "unknown_outcome": "the pack has no such outcome",
    "no_answer_then": "the model gave no answer then",
    "no_answer_now": "the model gave no answer now",
    "too_large": "too large for the model",
}
