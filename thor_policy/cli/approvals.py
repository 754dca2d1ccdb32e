"""`approvals`: list, show, request, give, refuse and cancel approvals, through the daemon."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import get_args

import click

from thor_policy.cli import approval_page, page_text, render
from thor_policy.cli.approval_page import ENDING_CHARS, Item
from thor_policy.cli.options import as_json, configured
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.approvals import OPEN_STATES, State
from thor_policy.core.errors import RequestError
from thor_policy.core.requests import Urgency

#: Every state, and the most tasks of one reply.
_STATES: tuple[State, ...] = get_args(State)
_MOST = 200
#: How often `--watch` reads the tasks, in seconds, if no event says that one has changed.
_WATCH_S = 1.0

_settings = configured("endpoint", "key", "state_dir")
_ID = click.argument(
    "task_id",
    metavar="ID",
    help=f"The id of a task, or at least its last {ENDING_CHARS} characters: then one of the newest "
    f"{_MOST} tasks that you may see.",
)
_COMMENT = click.option("--comment", metavar="TEXT", help="A comment, recorded with the verdict.")


@click.group()
def approvals() -> None:
    """List, request, give and refuse approvals: what lifts an outcome that approvals can lift.

    All commands go through the daemon. You see the tasks that you requested or asked for, and all of them
    with the role approve, review or control.
    """


@approvals.command("list")
@_settings
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(_STATES),
    help="Show only tasks in this state; may be given again. Default: pending and partial.",
)
@click.option("--all", "every", is_flag=True, help="Show tasks in every state.")
@click.option(
    "-n",
    "--limit",
    default=100,
    show_default=True,
    type=click.IntRange(1, _MOST),
    help="Most tasks to list.",
)
@click.option(
    "--watch",
    is_flag=True,
    help="Keep the list current, until Ctrl-C. Without a terminal, or with --json, print a line for each "
    "task that is new or has changed.",
)
@as_json
def list_(
    config: Config, states: tuple[State, ...], every: bool, limit: int, watch: bool, as_json: bool
) -> None:
    """List tasks, newest first, with the approvals that each still needs."""
    if states and every:
        raise click.UsageError("give --state or --all, not both")
    query = records.ApprovalQuery(states=_STATES if every else states or OPEN_STATES, limit=limit)
    with _client(config) as client:
        if watch:
            with suppress(KeyboardInterrupt):
                _watch(config, client, query, as_json=as_json)
            return
        tasks = client.approvals(query)
    if as_json:
        render.as_json(tasks)
    elif tasks:
        _show_table(render.table, tasks)
    else:
        render.line("no task is " + " or ".join(query.states))


@approvals.command()
@_settings
@_ID
@as_json
def show(config: Config, task_id: str, as_json: bool) -> None:
    """Show a task: the question, its reason, the verdicts so far, what is missing, when it expires."""
    with _client(config) as client:
        task = _find(client, task_id)
    if as_json:
        render.as_json(task)
        return
    width = render.console().width
    page = approval_page.page(task, now=time.time(), width=width, full=True, with_ids=True)
    for line in page_text.as_text(page):
        click.echo(line)


@approvals.command()
@_settings
@click.argument("decision_id", metavar="DECISION_ID", help="The decision, as its reply names it.")
@click.option("--reason", metavar="TEXT", help="Why it should be allowed, for those who approve.")
@click.option(
    "--urgency",
    type=click.Choice(get_args(Urgency)),
    default="normal",
    show_default=True,
    help="How soon it is needed. An emergency may be approved by the break-glass group of the pack, and is "
    "reviewed later.",
)
@as_json
def request(config: Config, decision_id: str, reason: str | None, urgency: Urgency, as_json: bool) -> None:
    """Request the approvals that lift a decision. Only the caller that asked the question may."""
    record = records.ApprovalRequest(decision_id=decision_id, reason=reason, urgency=urgency)
    with _client(config) as client:
        task = client.request_approval(record)
    if as_json:
        render.as_json(task)
    else:
        render.line(f"requested as {task['id']}")
        render.line(approval_page.result(task))


@approvals.command()
@_settings
@_ID
@_COMMENT
@click.option(
    "--consent-of",
    metavar="NAME",
    help="Record the consent that this person gave elsewhere; needs the role recorder.",
)
@click.option("--channel", metavar="CHANNEL", help="Where it was given: email, verbal, messaging, committee.")
@click.option("--evidence", metavar="TEXT", help="Where the evidence of it is.")
@as_json
def approve(
    config: Config,
    task_id: str,
    comment: str | None,
    consent_of: str | None,
    channel: str | None,
    evidence: str | None,
    as_json: bool,
) -> None:
    """Approve a task, as the person that the daemon's setting `people` makes of you."""
    consent = None
    if consent_of is not None:
        if channel is None:
            raise click.UsageError("--consent-of needs --channel: where the consent was given")
        consent = records.Consent(approver=consent_of, channel=channel, evidence=evidence)
    elif channel is not None or evidence is not None:
        raise click.UsageError("--channel and --evidence need --consent-of: whose consent it is")
    with _client(config) as client:
        task = _find(client, task_id)["id"]
        _show(
            client.change_approval(records.Approve(task=task, comment=comment, consent=consent)),
            as_json=as_json,
        )


@approvals.command()
@_settings
@_ID
@_COMMENT
@as_json
def deny(config: Config, task_id: str, comment: str | None, as_json: bool) -> None:
    """Deny a task: it ends."""
    with _client(config) as client:
        task = _find(client, task_id)["id"]
        _show(client.change_approval(records.Deny(task=task, comment=comment)), as_json=as_json)


@approvals.command()
@_settings
@_ID
@click.option("--reason", metavar="TEXT", help="Why, recorded with the end of the task.")
@as_json
def cancel(config: Config, task_id: str, reason: str | None, as_json: bool) -> None:
    """Cancel a task that you requested: it ends."""
    with _client(config) as client:
        task = _find(client, task_id)["id"]
        _show(client.change_approval(records.Cancel(task=task, reason=reason)), as_json=as_json)


@approvals.command()
@_settings
def queue(config: Config) -> None:
    """Go through the open tasks on a full screen: one key for each verdict, recorded at once."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("queue needs a terminal; use `approvals list` and `approvals approve ID`")
    from thor_policy.cli.approval_screen import Queue, Screen  # takes 0.1 s to import

    with _client(config) as client:
        tasks = Queue(client)
        tasks.reload()
        Screen(tasks, time.time).run()


# ---------------------------------------------------------------- shared parts


def _client(config: Config) -> Client:
    return Client(config.endpoint, key=config.key_file)


def _show(task: Item, *, as_json: bool) -> None:
    if as_json:
        render.as_json(task)
    else:
        render.line(approval_page.result(task))


def _show_table(show: render.ShowTable, tasks: Sequence[Item]) -> None:
    columns, rows, clipped = approval_page.table(tasks, time.time())
    show(columns, rows, gap=1, clipped=clipped)


def _find(client: Client, id_or_end: str) -> Item:
    """The task with an id, or the only one of the newest whose id ends so.

    Raises RequestError, and UsageError where several end so.
    """
    try:
        (task,) = client.approvals(records.ApprovalQuery(id=id_or_end))
        return task
    except RequestError as error:
        if error.code != "not_found" or len(id_or_end) < ENDING_CHARS:
            raise
        unknown = error
    matching = {
        task["id"]
        for states in (OPEN_STATES, _STATES)
        for task in client.approvals(records.ApprovalQuery(states=states, limit=_MOST))
        if task["id"].endswith(id_or_end)
    }
    if not matching:
        raise unknown
    if len(matching) > 1:
        raise click.UsageError(f"several tasks end in {id_or_end!r}; give the whole id")
    (task,) = client.approvals(records.ApprovalQuery(id=matching.pop()))
    return task


# ---------------------------------------------------------------- --watch


def _watch(config: Config, client: Client, query: records.ApprovalQuery, *, as_json: bool) -> None:
    """Show the tasks again whenever one has changed, at least each second, until Ctrl-C."""
    from thor_policy.client.events import Events

    with Events(config.events_endpoint, "approval") as events:
        if as_json or not sys.stdout.isatty():
            known: dict[str, Item] = {}
            while True:
                for task in _changed(client, client.approvals(query), known):
                    if as_json:
                        render.as_json_line(task)
                    else:
                        click.echo(approval_page.line(task))
                        sys.stdout.flush()
                events.wait(_WATCH_S)
        with render.current_table() as update:
            while True:
                _show_table(update, client.approvals(query))
                events.wait(_WATCH_S)


def _changed(client: Client, tasks: Sequence[Item], known: dict[str, Item]) -> list[Item]:
    """The tasks that are new or differ from `known`, the oldest first, and those that are listed no more."""
    listed = {task["id"]: task for task in reversed(tasks)}
    gone = [
        task
        for id in known.keys() - listed.keys()
        for task in client.approvals(records.ApprovalQuery(id=id))
        if _differs(task, known[id])
    ]
    changed = [task for task in listed.values() if _differs(task, known.get(task["id"]))]
    known.clear()
    known.update(listed)
    return [*gone, *changed]


def _differs(task: Item, known: Item | None) -> bool:
    members = ("status", "verdicts", "used_by")
    return known is None or any(task[name] != known[name] for name in members)
