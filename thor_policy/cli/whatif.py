"""`whatif`: decide past requests again by another pack, model or adapter, and tell what would change."""

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

#: Rows of a list; the rest is told as a number.
_MOST_ROWS = 15


@click.command()
@configured("state_dir", "endpoint", "key", "pack", "model", "models_dir", "adapter", "adapter_scale")
@click.option(
    "--since",
    default="7d",
    show_default=True,
    metavar="TIME|AGE",
    help="From this RFC 3339 time on, or so long ago: 7d, 12h, 30m.",
)
@click.option("--until", metavar="TIME|AGE", help="Only before this.")
@click.option("-n", "--limit", metavar="N", type=click.IntRange(1), help="At most so many, the newest.")
@click.option("--actor", help="Only this actor: user:alice, agent:trader, or a user's bare id.")
@click.option("--action", help="Only this action.")
@click.option(
    "--instead-of",
    metavar="NAME",
    help="Only decisions of the pack of this name; by default of that of --pack.",
)
@click.option("--resume", is_flag=True, help="Go on with the newest run of the same pack, model and adapter.")
@click.option("--dry-run", is_flag=True, help="Only tell; record nothing.")
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
    """Decide past requests again by another pack, model or adapter, and tell what would change.

    Loads a model of its own, at the lowest priority, and rests while a daemon has requests in flight.

    \b
    Exit status: 0 nothing got looser; 1 something did;
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


def _show(found: Summary, flips: Sequence[Counterfactual]) -> None:
    render.line(
        f"{found.compared:,} compared: {found.same:,} the same, {found.loosened:,} loosened, "
        f"{found.tightened:,} tightened"
    )
    if found.compared:
        balance = found.balance
        render.table(
            ("", "share", "95 % interval"),
            [
                ("loosened", *_shares(found.loosened_share)),
                ("all that changed", *_shares(found.flipped)),
                (
                    "loosened less tightened",
                    f"{100 * balance.difference:+.1f} %",
                    f"{100 * balance.low:+.1f} to {100 * balance.high:+.1f} %, p = {balance.p_value:.2g}",
                ),
            ],
        )
        took_s, model_s = found.took_ms / 1e3, found.score_ms / 1e3
        render.line(f"cost: {took_s:.1f} s, of it model {model_s:.1f} s; {found.mean_ms:.0f} ms a decision")
    if found.skipped:
        render.line("")
        render.table(("not compared", "decisions"), [(_WORDS[name], n) for name, n in found.skipped.items()])
    if not flips:
        return
    render.line("")
    render.table(
        ("then", "now", "", "decisions"),
        [(one.then, one.now, one.direction, one.count) for one in found.changes],
        clipped=(0, 1),
    )
    by = (("judged then by", found.by_judge), ("actor", found.by_actor), ("clause", found.by_clause))
    for name, groups in by:
        _show_groups(name, groups)
    loosened = [one for one in flips if one.direction == "loosened"]
    if loosened:
        render.line("")
        render.table(
            ("loosened", "actor", "then", "now", "id"),
            [
                (
                    one.at[:16].replace("T", " "),
                    one.actor or "(erased)",
                    one.then.outcome,
                    one.now.outcome,
                    one.decision_id[-ENDING_CHARS:],
                )
                for one in loosened[:_MOST_ROWS]
            ],
            clipped=(1, 2, 3),
        )
        _show_rest(len(loosened))


def _show_groups(name: str, groups: Sequence[Group]) -> None:
    changed = [one for one in groups if one.loosened or one.tightened]
    render.line("")
    render.table(
        (name, "compared", "loosened", "tightened"),
        [(one.value or "none", one.compared, one.loosened, one.tightened) for one in changed[:_MOST_ROWS]],
        clipped=(0,),
    )
    _show_rest(len(changed))


def _show_rest(count: int) -> None:
    if count > _MOST_ROWS:
        render.line(f"and {count - _MOST_ROWS} more: --json tells all")


def _shares(one: Rate) -> tuple[str, str]:
    return f"{100 * (one.share or 0):.1f} %", f"{100 * one.low:.1f} to {100 * one.high:.1f} %"


#: What each reason is called.
_WORDS: dict[Reason, str] = {
    "decision_report": "decided elsewhere",
    "erased": "erased, or a name in it",
    "missing": "its private part is missing",
    "masked": "a value was not recorded (masked)",
    "another_pack": "another pack decided",
    "unknown_outcome": "the pack does not know the outcome",
    "no_answer_then": "the model gave no answer then",
    "no_answer_now": "the model gave no answer now",
    "too_large": "too large for the model",
}
