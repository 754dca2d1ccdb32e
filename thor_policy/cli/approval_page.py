"""A task of approvals as a page, as a row of a table and as a line: the words that people read.

Owns what is shown of a task, as replies describe it (`protocol.replies.task_item`). Invariant: text from a
request reaches a terminal only through `visible`. Time is an argument, in Unix seconds. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

from rich.cells import cell_len

from thor_policy.cli.page_text import Line, cut, fields, fit, headline, question_text, style_of
from thor_policy.core.escape import visible

#: A task as a reply describes it.
Item: TypeAlias = Mapping[str, Any]
#: Characters of the end of an id, as tables show it.
ENDING_CHARS = 8

#: The columns of a list, and those that are shortened where it is too wide. `urgency` is left out where every
#: task is normal.
_COLUMNS = ("age", "state", "urgency", "outcome", "subject", "action", "resource", "missing", "id")
_CLIPPED = frozenset({"outcome", "subject", "action", "resource", "missing"})
#: What an approval is bound to, besides the paths of its pack.
_ALWAYS_BOUND = ("subject", "action", "resource", "caller")
#: The words of each unit of time, and its seconds.
_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60))


class Table(NamedTuple):
    """Tasks as a table: names of columns, rows, and the indexes of columns that may be shortened."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    clipped: Sequence[int]


def table(tasks: Sequence[Item], now: float) -> Table:
    """The tasks as a table."""
    all_normal = all(task["urgency"] == "normal" for task in tasks)
    columns = [name for name in _COLUMNS if name != "urgency" or not all_normal]
    cells = [_cells(task, now) for task in tasks]
    return Table(
        columns,
        [[row[name] for name in columns] for row in cells],
        [index for index, name in enumerate(columns) if name in _CLIPPED],
    )


def _cells(task: Item, now: float) -> dict[str, Any]:
    return {
        "age": duration(now - _seconds(task["requested_at"])),
        "state": task["status"],
        "urgency": "" if task["urgency"] == "normal" else task["urgency"],
        "outcome": task["outcome"],
        "subject": task["subject"] or "(erased)",
        "action": task["action"],
        "resource": task["resource"] or "(erased)",
        "missing": missing(task) or None,
        "id": task["id"][-ENDING_CHARS:],
    }


def line(task: Item) -> str:
    """A task in one line, for logs and pipes."""
    urgency = "" if task["urgency"] == "normal" else f"  {task['urgency'].upper()}"
    needs = f"  missing: {missing(task)}" if missing(task) else ""
    about = f"{task['subject'] or '(erased)'} {task['action'] or '-'} {task['resource'] or '(erased)'}"
    return visible(f"{task['id']}  {task['status']}{urgency}  {task['outcome']}  {about}{needs}")


def result(task: Item) -> str:
    """What has become of a task, in one line."""
    state, end = task["status"], task["id"][-ENDING_CHARS:]
    if missing(task):
        return visible(f"{end} is {state}; missing: {missing(task)}")
    if "approval" in task:
        return visible(
            f"{end} is approved until {task['expires_at']}; "
            f'the caller asks again, with "approval": {{"id": "{task["id"]}"}} in context'
        )
    return visible(f"{end} is {state}")


def missing(task: Item) -> str:
    """The approvals that a task still needs; empty if it needs none."""
    return "; or ".join(", then ".join(chain) for chain in task["missing"] if chain)


def page(
    task: Item, *, now: float, width: int = 80, full: bool = False, with_ids: bool = False
) -> list[Line]:
    """One task. `full` shows long values in full, `with_ids` the whole ids of task and decision."""
    about = "  ".join(visible(task[name] or "(erased)") for name in ("subject", "action", "resource"))
    ago = f"{duration(now - _seconds(task['requested_at']))} ago"
    top = headline(about, f"{ago}  {fit(visible(task['id'][-ENDING_CHARS:]), ENDING_CHARS)}", width)
    parts = [
        top,
        _outcome(task, width),
        [],
        *(fields("about", about, width) if about not in top[0][1] else []),
        *(fields("question", question_text(task["question"], full), width) if "question" in task else []),
        *fields("reason", cut(task["reason"] or "(none)", full), width, "reasoning"),
        *fields("requested", _requested(task), width),
        *fields("missing", visible(missing(task)), width, "name"),
    ]
    for verdict in task["verdicts"]:
        parts += fields("verdict", _verdict(verdict, full), width)
    if task["expires_at"] is not None:
        left = duration(_seconds(task["expires_at"]) - now)
        parts += fields("expires", f"in {left}, {visible(task['expires_at'])}", width)
    parts += fields("binds", cut(", ".join((*_ALWAYS_BOUND, *task["binds"])), full), width)
    parts += fields("lifted", visible(", ".join(task["used_by"])), width)
    if with_ids:
        parts += fields("task", visible(task["id"]), width)
        parts += fields("decision", visible(task["evaluation_id"]), width)
    return parts


def duration(seconds: float) -> str:
    """A time in its largest unit: `45s`, `3min`, `2h`, `5d`; never below 0."""
    for unit, size in _UNITS:
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"


def _outcome(task: Item, width: int) -> Line:
    urgency = "" if task["urgency"] == "normal" else f" {visible(task['urgency']).upper()}  "
    outcome = fit(visible(task["outcome"]).upper(), width // 2)
    pack = task["pack"]
    rest = f"   {task['status']} · pack {pack['name']} {pack['version']}"
    return [
        ("error", urgency),
        (style_of(task["outcome"]), f" {outcome}"),
        ("", fit(visible(rest), max(4, width - 1 - len(urgency) - cell_len(outcome)))),
    ]


def _requested(task: Item) -> str:
    return f"{visible(task['requested_at'][:19]).replace('T', ' ')} by {visible(task['requested_by'] or '?')}"


def _verdict(verdict: Item, full: bool) -> str:
    who = [*verdict["roles"], *(f"group {name}" for name in verdict["groups"])]
    text = f"{visible(verdict['approver'] or '(erased)')}: {verdict['verdict']}"
    if who:
        text += f" as {visible(', '.join(who))}"
    if verdict["at"]:
        text += f", {visible(verdict['at'][:19]).replace('T', ' ')}"
    if "channel" in verdict:
        text += (
            f"; by {visible(verdict['channel'])}, recorded by {visible(verdict.get('recorded_by') or '?')}"
        )
    if "evidence" in verdict:
        text += f": “{cut(verdict['evidence'], full)}”"
    return text


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()
