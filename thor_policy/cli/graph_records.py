"""Commands of `graph` that record many nodes at a time: import, new, templates, import-git.

Owns these commands. Main thread.
"""

from __future__ import annotations

from pathlib import Path

import click
from msgspec import to_builtins

from thor_policy.cli import render
from thor_policy.cli.journal_reader import open_current
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config
from thor_policy.core.records import GraphImport, Maintenance
from thor_policy.core.requests import Json
from thor_policy.trace import git_history, graph_import, graph_templates

#: Problems that are printed; `--json` has all.
_MOST_SHOWN = 20
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Only say what would be recorded.")


@click.command("import")
@configured("state_dir", "endpoint", "key")
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
@_DRY_RUN
@as_json
@click.pass_context
def import_(context: click.Context, config: Config, file: Path, dry_run: bool, as_json: bool) -> None:
    """Record what `export --format json` wrote, with its ids; what is known stays as it is.

    Needs the role `control`. If an id is known with another content, nothing is recorded, and the exit status
    is 1.
    """
    context.exit(_record(config, graph_import.read_file(file), dry_run=dry_run, as_json=as_json))


@click.command("import-git")
@configured("state_dir", "endpoint", "key")
@click.argument(
    "repository", metavar="REPOSITORY", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--revision", default="HEAD", show_default=True, help="A branch, a tag or a range: v1..v2.")
@click.option(
    "--most",
    default=1_000,
    show_default=True,
    type=click.IntRange(1, git_history.MOST_COMMITS),
    help="Most commits, the newest.",
)
@_DRY_RUN
@as_json
@click.pass_context
def import_git(
    context: click.Context,
    config: Config,
    repository: Path,
    revision: str,
    most: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Record goals, options and decisions that commit messages state in their trailers.

    Trailers: Goal, Option, Rejected, Decision, Observation, Outcome, Revisit, each with a title; Confidence
    and Session. A commit that was imported is known again. Begin with --dry-run. Needs the role `control`.
    """
    read = git_history.history(repository, revision, most=most)
    if not as_json:
        render.line(f"{read.read:,} commits read, {read.counted:,} with trailers of the work")
        for problem in read.problems[:_MOST_SHOWN]:
            render.line(f"  left out: {problem}")
    members = graph_import.as_members(read.nodes, read.edges)
    context.exit(_record(config, members, dry_run=dry_run, as_json=as_json))


@click.command()
@configured("state_dir", "endpoint", "key")
@click.option("--template", required=True, metavar="NAME", help="What to begin with: see `graph templates`.")
@click.argument("title", metavar="TITLE", help="What the work is about, in a few words.")
@click.option("--session", metavar="NAME", help="The session of work that it belongs to.")
@click.option("--agent", metavar="NAME", help="The agent or the person whose work it is.")
@as_json
def new(
    config: Config, template: str, title: str, session: str | None, agent: str | None, as_json: bool
) -> None:
    """Record the nodes and links of a template, in one transaction. Needs the role `control`."""
    id, made = graph_templates.begun(template, title, session=session, agent=agent)
    done = _import(config, made)
    if as_json:
        render.as_json({"id": id, "nodes": [to_builtins(kept) for kept in made.nodes], **done})
    else:
        render.line(f"{len(made.nodes)} nodes and {len(made.edges)} links recorded; the first is {id}")


@click.command()
@as_json
def templates(as_json: bool) -> None:
    """List the templates of `graph new`."""
    known = graph_templates.templates()
    if as_json:
        render.as_json({name: to_builtins(template) for name, template in known.items()})
        return
    rows = [(name, len(template.nodes), template.description) for name, template in known.items()]
    render.table(("template", "nodes", "for"), rows)


# ---------------------------------------------------------------- shared parts


def _record(config: Config, members: dict[str, Json], *, dry_run: bool, as_json: bool) -> int:
    """Record what is new of a file, unless there is a problem; returns the exit status."""
    with open_current(config) as reader:
        plan = graph_import.plan(reader, members)
    problems = [to_builtins(problem) for problem in plan.problems]
    done = {"recorded": 0, "nodes": len(plan.nodes), "edges": len(plan.edges)}
    if not (problems or dry_run):
        most = config.max_request_bytes
        for page in graph_import.pages(plan.nodes, plan.edges, most):
            result = _import(config, page)
            done["recorded"] += result["recorded"]
            problems += [{"id": row["id"], "why": row["message"]} for row in result["refused"]]
    facts: dict[str, Json] = {**done, "known": plan.known, "left_out": plan.left_out, "problems": problems}
    if as_json:
        render.as_json(facts | {"dry_run": dry_run})
        return int(bool(problems))
    new = f"{len(plan.nodes):,} nodes and {len(plan.edges):,} links are new, {plan.known:,} are known"
    render.line(f"{new}; {plan.left_out:,} follow from recorded decisions and are left out")
    for problem in problems[:_MOST_SHOWN]:
        render.line(f"  {problem['id']}: {problem['why']}")
    if len(problems) > _MOST_SHOWN:
        render.line(f"  and {len(problems) - _MOST_SHOWN:,} more: --json lists them")
    render.line("nothing is recorded" if not done["recorded"] else f"{done['recorded']:,} are recorded")
    return int(bool(problems))


def _import(config: Config, page: GraphImport) -> dict[str, Json]:
    from thor_policy.daemon import journal_access  # takes 0.1 s to import

    return journal_access.maintain(config, Maintenance(task="import_graph", graph=page))
