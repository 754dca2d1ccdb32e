"""`graph`: the graph of work. Add and link nodes, list them, and show what is done, missing and stale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_args

import click

from thor_policy.cli import graph_records, graph_views, render
from thor_policy.cli.graph_views import show_items, title_of
from thor_policy.cli.journal_reader import open_current
from thor_policy.cli.options import as_json, configured, finite, is_given
from thor_policy.config import Config
from thor_policy.core import graph as vocabulary
from thor_policy.core import records, strict_json
from thor_policy.core.requests import Json
from thor_policy.journal import work_queries
from thor_policy.journal.reader import ENDING_CHARS

F = TypeVar("F", bound=Callable[..., Any])

_NODE_TYPES = [name for name, node in vocabulary.NODES.items() if "node" in node.ops]
_EDGE_TYPES = [name for name, edge in vocabulary.EDGES.items() if "edge" in edge.ops]
_LIMIT = click.option(
    "-n", "--limit", default=20, show_default=True, type=click.IntRange(1, 10_000), help="Most items."
)
_ID_HELP = "The id of a node or of a recorded decision, or at least its last 8 characters."
_ID = click.argument("id_or_end", metavar="ID", help=_ID_HELP)
_FIELDS = (
    click.option("--description", metavar="TEXT", help="What it is about, in full."),
    click.option(
        "--status",
        type=click.Choice(get_args(vocabulary.WorkStatus)),
        default="active",
        show_default=True,
        help="What it is now.",
    ),
    click.option(
        "--confidence", type=click.IntRange(0, 100), metavar="PERCENT", help="How sure you are, 0 to 100."
    ),
    click.option("--session", metavar="NAME", help="The session of work that it belongs to."),
    click.option("--agent", metavar="NAME", help="The agent or the person whose work it is."),
    click.option("--meta", "metadata", metavar="JSON", help="More about it: an object of JSON."),
)


def _fields(command: F) -> F:
    for option in reversed(_FIELDS):
        command = option(command)
    return command


@click.group()
def graph() -> None:
    """Keep the graph of work: goals, options, decisions, actions, outcomes and the links between them."""


@graph.command()
@configured("state_dir", "endpoint", "key")
@click.argument("type_", metavar="TYPE", type=click.Choice(_NODE_TYPES), help=", ".join(_NODE_TYPES))
@click.argument("title", metavar="TITLE", help="What it is, in a line.")
@_fields
@as_json
def add(config: Config, type_: vocabulary.NodeType, title: str, as_json: bool, **fields: Any) -> None:
    """Record a node."""
    _show_recorded(_submit(config, _node(type_, title, **fields)), type_, as_json=as_json)


@graph.command()
@configured("state_dir", "endpoint", "key")
@click.argument("source", metavar="SOURCE", help=_ID_HELP)
@click.argument("type_", metavar="TYPE", type=click.Choice(_EDGE_TYPES), help=", ".join(_EDGE_TYPES))
@click.argument("target", metavar="TARGET", help=_ID_HELP)
@click.option("--weight", type=float, callback=finite, help="How much the link counts.")
@click.option("--rationale", metavar="TEXT", help="Why the link is there.")
@as_json
def link(
    config: Config,
    source: str,
    type_: vocabulary.EdgeType,
    target: str,
    weight: float | None,
    rationale: str | None,
    as_json: bool,
) -> None:
    """Record a link from SOURCE to TARGET."""
    with open_current(config) as reader:
        source, target = (work_queries.resolve(reader, id) for id in (source, target))
    edge = records.Edge(source=source, target=target, type=type_, weight=weight, rationale=rationale)
    _show_recorded(_submit(config, edge), type_, as_json=as_json)


@graph.command()
@configured("state_dir", "endpoint", "key")
@_ID
@click.option("--by", metavar="ID", help="The node that takes its place, if it is recorded already.")
@click.option("--title", metavar="TITLE", help="Record a new node with this title, which takes its place.")
@click.option("--rationale", metavar="TEXT", help="Why.")
@_fields
@as_json
def supersede(
    config: Config,
    id_or_end: str,
    by: str | None,
    title: str | None,
    rationale: str | None,
    as_json: bool,
    **fields: Any,
) -> None:
    """Let a node take the place of an older one of the same type, which is then shown as superseded.

    Node and link are recorded in one transaction, or neither is.
    """
    if (by is None) == (title is None):
        raise click.UsageError("give --by ID or --title TITLE: what takes its place")
    with open_current(config) as reader:
        id = work_queries.resolve(reader, id_or_end)
        with reader.snapshot() as connection:
            older = work_queries.items(connection, [id])[id]
        by = by and work_queries.resolve(reader, by)
    if older["recorded"]:
        raise click.UsageError(f"{id} is a recorded decision; use `thorpolicy trace supersede`")
    if by is None:
        by = _submit(config, _node(older["type"], title or "", supersedes=id, rationale=rationale, **fields))
    elif any(is_given(click.get_current_context(), name) for name in fields):
        raise click.UsageError(
            "--by names a node that is recorded already; leave out what describes a new one"
        )
    else:
        _submit(config, records.Edge(source=by, target=id, type="supersedes", rationale=rationale))
    if as_json:
        render.as_json({"id": by, "supersedes": id})
    else:
        render.line(f"{id} is superseded by {by}")


@graph.command("list")
@configured("state_dir")
@click.option("--type", "type_", type=click.Choice(_NODE_TYPES), help="Only nodes of this type.")
@click.option(
    "--status", type=click.Choice(get_args(vocabulary.WorkStatus)), help="Only nodes in this state."
)
@click.option("--session", metavar="NAME", help="Only nodes of this session.")
@click.option("--agent", metavar="NAME", help="Only nodes of this agent or person.")
@click.option("--since", metavar="TIME", help="Only nodes recorded from this RFC 3339 wall time on.")
@click.option("--until", metavar="TIME", help="Only nodes recorded before this RFC 3339 wall time.")
@_LIMIT
@as_json
def list_(config: Config, type_: vocabulary.NodeType | None, as_json: bool, **filters: Any) -> None:
    """List nodes, newest first."""
    with open_current(config) as reader:
        show_items(work_queries.nodes(reader, type=type_, **filters), as_json=as_json)


@graph.command()
@configured("state_dir")
@_LIMIT
@as_json
def goals(config: Config, limit: int, as_json: bool) -> None:
    """List the active goals, newest first."""
    with open_current(config) as reader:
        show_items(work_queries.nodes(reader, type="goal", status="active", limit=limit), as_json=as_json)


@graph.command()
@configured("state_dir")
@_LIMIT
@as_json
def recent(config: Config, limit: int, as_json: bool) -> None:
    """List the newest nodes of work, whatever their type."""
    with open_current(config) as reader, reader.snapshot() as connection:
        show_items(work_queries.newest(connection, limit)[::-1], as_json=as_json)


@graph.command()
@configured("state_dir")
@_ID
@as_json
def show(config: Config, id_or_end: str, as_json: bool) -> None:
    """Show a node or a recorded decision, with the links from it and to it."""
    with open_current(config) as reader:
        id = work_queries.resolve(reader, id_or_end)
        with reader.snapshot() as connection:
            item = work_queries.items(connection, [id])[id]
            links = [*work_queries.links_from(connection, [id]), *work_queries.links_to(connection, [id])]
            ends = [link["target"] if link["source"] == id else link["source"] for link in links]
            far = work_queries.items(connection, ends)
    if as_json:
        render.as_json(item | {"links": links})
        return
    for name, value in item.items():
        if value not in (None, {}, 0) and name not in ("seq", "recorded"):
            render.line(f"{name:14}{value}")
    for edge, end in zip(links, ends, strict=True):
        other = far.get(end, {"type": "unknown", "title": None})
        arrow = f"{edge['type']} ->" if edge["source"] == id else f"<- {edge['type']}"
        why = "" if edge["rationale"] is None else f": {edge['rationale']}"
        render.line(f"{arrow} {other['type']} {title_of(other)} ({end[-ENDING_CHARS:]}){why}")


graph.add_command(graph_views.timeline_)
graph.add_command(graph_views.pulse)
graph.add_command(graph_views.context)
graph.add_command(graph_views.export)
graph.add_command(graph_views.analytics)
for command in (graph_records.import_, graph_records.import_git, graph_records.new, graph_records.templates):
    graph.add_command(command)

# ---------------------------------------------------------------- shared parts


def _node(type_: vocabulary.NodeType, title: str, *, metadata: str | None, **fields: Any) -> records.Node:
    """The record of a node. Raises UsageError if `metadata` is no object of JSON."""
    more: Json = {}
    if metadata is not None:
        try:
            more = strict_json.decode(metadata)
        except strict_json.JsonError as error:
            raise click.UsageError(f"--meta: {error}") from error
        if not isinstance(more, dict):
            raise click.UsageError("--meta: must be an object of JSON, such as '{\"ticket\": 7}'")
    return records.Node(type=type_, title=title, metadata=more, **fields)


def _submit(config: Config, record: records.Record) -> str:
    from thor_policy.daemon import journal_access  # takes 0.1 s to import

    return journal_access.submit_record(config, record)


def _show_recorded(id: str, what: str, *, as_json: bool) -> None:
    if as_json:
        render.as_json({"id": id, "type": what})
    else:
        render.line(f"{what} recorded as {id}")
