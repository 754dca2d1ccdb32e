"""Views of the graph of work: timeline, pulse, context and export; tables of its items.

Owns these commands of `thorpolicy graph`, and how an item is printed. Main thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from msgspec import to_builtins

from thor_policy import catalog
from thor_policy.cli import render
from thor_policy.cli.journal_reader import open_current
from thor_policy.cli.new_file import new_file
from thor_policy.cli.options import as_json, configured, finite
from thor_policy.config import Config
from thor_policy.core.errors import ThorPolicyError
from thor_policy.journal import work_queries
from thor_policy.journal.reader import ENDING_CHARS, Record
from thor_policy.trace import timeline, trace_graph, work_graph
from thor_policy.trace.analytics import Share
from thor_policy.trace.analytics import analytics as take_analytics
from thor_policy.trace.context import LEAST_TOKENS, TOKENS
from thor_policy.trace.context import context as make_context
from thor_policy.trace.formats import FORMATS
from thor_policy.trace.pulse import STALE_DAYS
from thor_policy.trace.pulse import pulse as take_pulse

#: Rows that `pulse` prints of each list; `--json` has all.
_MOST_ROWS = 10

_COLUMNS = ("time", "type", "title", "state", "%", "session", "id")


@click.command("timeline")
@configured("state_dir")
@click.option("--session", metavar="NAME", help="What was recorded in this session, in order of recording.")
@click.option(
    "--goal", metavar="ID", help="What this goal leads to: breadth first, then in order of recording."
)
@click.option(
    "-n", "--limit", default=100, show_default=True, type=click.IntRange(1, 10_000), help="Most items."
)
@as_json
def timeline_(config: Config, session: str | None, goal: str | None, limit: int, as_json: bool) -> None:
    """Show the nodes and recorded decisions of a session, or what belongs to a goal."""
    if (session is None) == (goal is None):
        raise click.UsageError("give --session NAME or --goal ID")
    with open_current(config) as reader:
        if session is not None:
            read = timeline.by_session(reader, session, limit=limit)
        else:
            read = timeline.by_goal(reader, work_queries.resolve(reader, goal or ""), limit=limit)
    if as_json:
        render.as_json(to_builtins(read))
        return
    columns = ("depth", "by") if goal is not None else ()
    rows = [(*((entry.depth, entry.via) if columns else ()), *_row(entry.item)) for entry in read.entries]
    _table((*columns, *_COLUMNS), rows)
    if read.cut:
        render.line(f"more items are left out: -n {limit}")


@click.command()
@configured("state_dir")
@click.option(
    "--stale-days",
    default=STALE_DAYS,
    show_default=True,
    type=click.FloatRange(0, 36_500),
    callback=finite,
    help="Days without anything new after which a goal is stale.",
)
@as_json
def pulse(config: Config, stale_days: float, as_json: bool) -> None:
    """Show the state of the work: goals, decisions, what is missing, doubtful or stale."""
    with open_current(config) as reader:
        read = take_pulse(reader, now=time.time(), stale_days=stale_days)
    if as_json:
        render.as_json(to_builtins(read))
        return
    render.line(read.summary)
    for title, items in (
        ("active goals", read.goals),
        ("recent decisions", read.decisions),
        ("goals without a decision or an action", read.uncovered),
        ("decisions without an outcome", read.open),
        ("confidence below 50 %", read.doubtful),
        (f"goals with nothing new for {stale_days:g} days", read.stale),
    ):
        if items:
            render.line(f"{title}:")
            _table(_COLUMNS, [_row(item) for item in items[:_MOST_ROWS]])
        if len(items) > _MOST_ROWS:
            render.line(f"and {len(items) - _MOST_ROWS} more: --json lists them")
    if read.cut:
        render.line("more goals or decisions were not looked at")


@click.command()
@configured("state_dir", "model", "models_dir")
@click.option("--session", metavar="NAME", help="Also show the newest items of this session.")
@click.option(
    "--tokens",
    default=TOKENS,
    show_default=True,
    type=click.IntRange(LEAST_TOKENS, 1_000_000),
    help="Most tokens of the text. The tokenizer of the model counts them; if its file is not there, an "
    "estimate that is meant to be too high.",
)
@as_json
def context(config: Config, session: str | None, tokens: int, as_json: bool) -> None:
    """Print goals, decisions and a session as Markdown for an agent, cut at a number of tokens."""
    count, by = _counter(config)
    with open_current(config) as reader:
        made = make_context(reader, session=session, budget=tokens, count=count)
    if as_json:
        render.as_json(to_builtins(made) | {"counted_by": by})
    else:
        render.lines(made.text.rstrip("\n"))
        render.line(f"{made.tokens:,} tokens, counted by {by}", stderr=True)


@click.command()
@configured("state_dir")
@as_json
def analytics(config: Config, as_json: bool) -> None:
    """Show how the newest 1,000 decisions of the work turned out, by agent, by type and by month."""
    with open_current(config) as reader:
        read = take_analytics(reader)
    if as_json:
        render.as_json(to_builtins(read))
        return
    judged = "no decision has both" if read.brier is None else f"{read.brier:.3f} of {read.judged:,}"
    render.pairs(
        {
            "decisions": f"{read.decisions:,}{', the newest; there are more' if read.cut else ''}",
            **{name: _share(value) for name, value in read.quality.items()},
            "confidence against success (Brier)": judged,
        }
    )
    for name, groups in (("agent", read.by_agent), ("type", read.by_type)):
        if groups:
            rows = [(group.name, group.decisions, _share(group.success)) for group in groups[:_MOST_ROWS]]
            render.table((name, "decisions", "successful"), rows, clipped=(0,))
    if read.confidence:
        months = [
            (period.month, period.sample, f"{period.mean:.0f} %", _margin(period.margin))
            for period in read.confidence
        ]
        render.table(("month", "decisions", "confidence", "+-"), months)


@click.command("export")
@configured("state_dir")
@click.option(
    "--format",
    "format_",
    type=click.Choice(list(FORMATS)),
    default="mermaid",
    show_default=True,
    help="The format. csv has the nodes, csv-edges the links: both in the form that Neo4j imports.",
)
@click.option(
    "--of",
    type=click.Choice(["work", "traces"]),
    default="work",
    show_default=True,
    help="The graph of work, or recorded decisions with what they rest on.",
)
@click.option("--around", metavar="ID", help="Export only what is near this node or recorded decision.")
@click.option(
    "--depth",
    default=2,
    show_default=True,
    type=click.IntRange(0, 100),
    help="Edges from --around, in either direction.",
)
@click.option(
    "--decisions",
    default=trace_graph.DECISIONS,
    show_default=True,
    type=click.IntRange(1, 5_000),
    help="Of traces: the newest decisions, so many.",
)
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write (mode 0600); it must not exist. Default: standard output.",
)
def export(
    config: Config,
    format_: str,
    of: str,
    around: str | None,
    depth: int,
    decisions: int,
    output: Path | None,
) -> None:
    """Export the graph of work or of traces, whole or around a node, for another program or a browser."""
    with open_current(config) as reader:
        near = None if around is None else work_queries.resolve(reader, around)
        if of == "work":
            read = work_graph.whole(reader) if near is None else work_graph.around(reader, near, depth=depth)
        elif near is None:
            read = trace_graph.newest(reader, decisions=decisions)
        else:
            read = trace_graph.around(reader, near, depth=depth)
    document = FORMATS[format_](read)
    with new_file(output) as to:
        to.write(document)


# ---------------------------------------------------------------- shared parts


def _share(share: Share) -> str:
    """`67 % of 12 (39 to 86 %)`, with the interval at 95 %."""
    if share.share is None or share.low is None or share.high is None:
        return "none of 0"
    return f"{share.share:.0%} of {share.sample:,} ({share.low:.0%} to {share.high:.0%})"


def _margin(margin: float | None) -> str | None:
    return None if margin is None else f"{margin:.0f}"


def _counter(config: Config) -> tuple[Callable[[str], int] | None, str]:
    """What counts tokens, and its name: the tokenizer of the model, if its file is there."""
    from thor_policy.engine.native import Vocabulary  # takes 0.2 s to import

    try:
        model = catalog.resolve(config.model, config.models_dir)
        tokenizer = Vocabulary(model.path, vocab_only=True)
    except ThorPolicyError:
        return None, "an estimate"
    return lambda text: len(tokenizer.tokenise(text)), f"the tokenizer of {model.name}"


def show_items(items: Sequence[Record], *, as_json: bool) -> None:
    if as_json:
        render.as_json(list(items))
    else:
        _table(_COLUMNS, [_row(item) for item in items])


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    clipped = [columns.index(name) for name in ("title", "session", "type")]
    render.table(columns, rows, gap=1, clipped=clipped)


def _row(item: Record) -> tuple[Any, ...]:
    return (
        item["at"][:16].replace("T", " "),
        item["type"],
        title_of(item),
        item["status"],
        item["confidence"],
        item["session"],
        item["id"][-ENDING_CHARS:],
    )


def title_of(item: Record) -> str:
    return "(erased)" if item["title"] is None else str(item["title"])
