"""`replay`: take recorded decisions again, and compare them with their records."""

from __future__ import annotations

import click
import msgspec

from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config
from thor_policy.journal.reader import ENDING_CHARS
from thor_policy.learning.replay import Replayed, replay_recorded


@click.command()
@configured("state_dir", "pack", "model", "models_dir", "adapter", "adapter_scale")
@click.argument(
    "decision_ids", nargs=-1, metavar="[ID]...", help="Ids as in `log`; the last characters suffice."
)
@click.option(
    "--random", "sample", metavar="N", type=click.IntRange(1), help="N random decisions (of --since)."
)
@click.option("--since", help="All decisions from this RFC 3339 time on.")
@as_json
@click.pass_context
def replay(
    ctx: click.Context,
    config: Config,
    decision_ids: tuple[str, ...],
    sample: int | None,
    since: str | None,
    as_json: bool,
) -> None:
    """Take recorded decisions again, and compare rules, question, tokens, logits and outcome.

    Loads a model of its own beside the daemon's, and writes nothing to the journal.

    \b
    Exit status: 0 all identical (with a model on a server: the same labels);
    1 some decision diverged; 2 some decision was refused, with the reason.
    """
    if bool(decision_ids) == bool(sample or since):
        raise click.UsageError("give either decision ids, or --random N and --since TIME")
    replays = replay_recorded(
        config,
        decision_ids=decision_ids,
        sample=sample,
        since=since,
        progress=lambda total: render.progress(total, "replaying", first="loading the model"),
    )
    if as_json:
        decisions = msgspec.to_builtins(replays.decisions)
        render.as_json({"counts": replays.counts, "exact": replays.exact, "decisions": decisions})
    else:
        for replayed in replays.decisions:
            if replayed.verdict != "identical" or decision_ids:
                title = f"{replayed.decision_id[-ENDING_CHARS:]}  {replayed.verdict}"
                render.pairs(_rows(replayed), title=title)
        counts = [f"{count} {verdict}" for verdict, count in replays.counts.items()]
        render.line(", ".join(counts) or "no decision")
    ctx.exit(1 if replays.differing else 2 if replays.counts["refused"] else 0)


def _rows(replayed: Replayed) -> dict[str, object]:
    rows = {
        name: value
        for name, value in msgspec.to_builtins(replayed).items()
        if value is not None and name not in ("decision_id", "verdict")
    }
    if replayed.step is not None:
        rows |= {"recorded": replayed.recorded, "now": replayed.now}
    return rows
