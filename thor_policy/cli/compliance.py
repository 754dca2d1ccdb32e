"""`compliance`: who approved each decision of a type, under which policy, and what became of it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import click
from msgspec import to_builtins

from thor_policy.cli import compliance_page, render
from thor_policy.cli.new_file import new_file
from thor_policy.cli.options import configured
from thor_policy.config import Config
from thor_policy.core.errors import ConfigError
from thor_policy.core.escape import in_json
from thor_policy.core.requests import Json
from thor_policy.journal.checkpoints import key_path, read_directory, trusted_keys
from thor_policy.journal.compliance_queries import EXCEPTION
from thor_policy.journal.reader import ENDING_CHARS, Record
from thor_policy.security import files
from thor_policy.trace import compliance as reports
from thor_policy.trace.compliance import MOST_BYTES, MOST_ROWS, Report, Seal

_CSV_COLUMNS = (
    *("id", "at", "made_at", "type", "is_exception", "outcome", "lifted", "actor", "action", "entity"),
    *("decided_by", "recorded_by", "policy", "policy_version", "policy_sha256", "policy_from", "policy_to"),
    *("approvers", "roles", "channels", "evidence", "approvals_recorded_by", "rejected_by", "status"),
    *("status_at", "status_by", "status_recorded_by"),
)


@click.command()
@configured("state_dir", "checkpoint_dir", "checkpoint_key")
@click.option(
    "--type",
    "type_",
    default=EXCEPTION,
    show_default=True,
    help="Type of the decisions; `exception` includes every decision marked as an exception.",
)
@click.option("--months", type=click.IntRange(1, 1_200), help="Months back from now. Default: 24.")
@click.option("--since", help="Only decisions recorded from this RFC 3339 wall time on.")
@click.option("--until", help="Only decisions recorded before this RFC 3339 wall time. Default: now.")
@click.option(
    "-n",
    "--limit",
    default=10_000,
    show_default=True,
    type=click.IntRange(1, MOST_ROWS),
    help="Most decisions; the report says if there are more.",
)
@click.option("--before", metavar="ID", help="Report decisions before this one: the next page.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "html", "json"]),
    default="table",
    show_default=True,
    help="Form of the report. Only `json` can be verified later.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write (mode 0600); it must not exist. Default: standard output.",
)
@click.option(
    "--verify",
    "stored",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Check digest and signature of this json report, and make none.",
)
@click.option(
    "--public-key",
    "keys",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="With --verify: trust only this key (PEM), not those in the checkpoint directory; may be repeated.",
)
@click.pass_context
def compliance(
    ctx: click.Context,
    config: Config,
    type_: str,
    months: int | None,
    since: str | None,
    until: str | None,
    limit: int,
    before: str | None,
    form: str,
    output: Path | None,
    stored: Path | None,
    keys: tuple[Path, ...],
) -> None:
    """Report each decision of a type: policy in force, approvers, evidence, later fate.

    The report has a digest, signed with the checkpoint key if you may read it.

    \b
    Traces in quarantine, claims and decisions of tests are left out and counted.
    The report holds names of people. A later `log erase` does not change it.
    --verify exits with 1 if the report was changed, or is not signed.
    """
    if stored is not None:
        ctx.exit(_verify(config, stored, keys))
    if keys:
        raise click.UsageError("--public-key needs --verify")
    if since is not None and months is not None:
        raise click.UsageError("give --since or --months, not both")
    if form == "table" and output is not None:
        raise click.UsageError("--output needs --format csv, html or json")
    from thor_policy.daemon import journal_access

    now = time.time()
    with journal_access.open_reader(config) as reader, new_file(output) as to:
        report = Report(
            reader,
            type=type_,
            since=since or reports.months_before(now, months or 24),
            until=until,
            now=now,
            limit=limit,
            before=None if before is None else reader.resolve(before),
        )
        _write(form, report, config, to)


def _write(form: str, report: Report, config: Config, to: TextIO) -> None:
    key = key_path(config.checkpoint_key, os.environ)
    if form == "table":
        rows = [_brief(row) for row in report]
        seal = report.seal(config.checkpoint_dir, key)
        columns = ("time", "outcome", "policy", "approved by", "state", "overturned by", "id")
        render.table(columns, rows, gap=1, clipped=(1, 2, 3, 5))
        render.pairs(_facts(seal))
    elif form == "csv":
        render.as_csv(_CSV_COLUMNS, map(_flat, report), to)
        for name, value in _facts(report.seal(config.checkpoint_dir, key)).items():
            render.line(f"{name}: {value}", stderr=True)
    elif form == "html":
        compliance_page.begin(to, type=report.scope.type, since=report.scope.since, until=report.scope.until)
        for row in report:
            compliance_page.row(to, row)
        compliance_page.end(to, _facts(report.seal(config.checkpoint_dir, key)))
    else:
        to.write('{"rows": [')
        between = "\n"
        for row in report:
            to.write(between + in_json(json.dumps(row, ensure_ascii=False)))
            between = ",\n"
        seal = report.seal(config.checkpoint_dir, key)
        members = json.dumps(to_builtins(seal), ensure_ascii=False, indent=1)
        to.write(f"\n],{in_json(members)[1:]}\n")


def _verify(config: Config, path: Path, keys: Sequence[Path]) -> int:
    """Check a stored report; the exit status."""
    try:
        content = files.read(path, max_bytes=MOST_BYTES)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} {files.reason(error)}") from error
    trusted = trusted_keys(keys) if keys else read_directory(config.checkpoint_dir).public_keys
    seal, problem = reports.check(content, trusted)
    verdict = {"report": "ok"} if problem is None else {"report": "wrong", "problem": problem}
    render.pairs(_facts(seal) | verdict)
    return int(problem is not None)


def _facts(seal: Seal) -> dict[str, Json]:
    """What a report says of itself, as names and values."""
    statement, covering = seal.statement, seal.statement.checkpoint
    left_out = ", ".join(f"{name} {count:,}" for name, count in statement.left_out.items() if count)
    more = "; there are more: give --before the last id" if statement.more else ""
    covered = "none covers the newest row yet; run `thorpolicy log checkpoint`"
    if covering is not None:
        covered = f"event {covering.seq:,} of {covering.at}, by the key {covering.key}"
    elif not statement.rows:
        covered = "there is no row to cover"
    return {
        "type": statement.type,
        "recorded": f"from {statement.since} until {statement.until}",
        "decisions": f"{statement.rows:,}{more}",
        "left out": left_out or "none",
        "journal": f"{statement.chain[:16]} at event {statement.newest_event:,}, {statement.made_at}",
        "checkpoint": covered,
        "digest": seal.digest,
        "signature": f"{seal.signature} by the key {seal.key}" if seal.key else f"none: {seal.unsigned}",
    }


def _brief(row: Record) -> tuple[Any, ...]:
    policy, states = row["policy"], row["states"]
    approvers = [
        f"{approval['approver'] or '(erased)'}{_of(approval['role'])}{_of(approval['channel'], ' by ')}"
        for approval in row["approvals"]
        if approval["verdict"] == "approved"
    ]
    return (
        row["at"][:16].replace("T", " "),
        row["outcome"],
        None if policy is None else f"{policy['name']} {policy['version']}",
        "; ".join(approvers) or None,
        row["status"],
        f"{(states[-1]['by'] or '-')[-ENDING_CHARS:]} {states[-1]['at'][:10]}" if states else None,
        row["id"][-ENDING_CHARS:],
    )


def _of(text: str | None, before: str = " as ") -> str:
    return f"{before}{text}" if text else ""


def _flat(row: Record) -> dict[str, Any]:
    """A row with one cell for each fact; facts of several approvals are lists in the same order."""
    policy = row["policy"] or {}
    approved = [approval for approval in row["approvals"] if approval["verdict"] == "approved"]
    state = row["states"][-1] if row["states"] else {}
    lists = {"approvers": "approver", "roles": "role", "channels": "channel", "evidence": "evidence"}
    return {
        **row,
        "policy": policy.get("name"),
        "policy_version": policy.get("version"),
        "policy_sha256": policy.get("sha256"),
        "policy_from": policy.get("effective_from"),
        "policy_to": policy.get("effective_to"),
        **{column: [approval[name] for approval in approved] for column, name in lists.items()},
        "approvals_recorded_by": [approval["recorded_by"] for approval in approved],
        "rejected_by": [
            approval["approver"] for approval in row["approvals"] if approval["verdict"] == "rejected"
        ],
        "status_at": state.get("at"),
        "status_by": state.get("by"),
        "status_recorded_by": state.get("recorded_by"),
    }
