"""The manual pages of the commands, made from the click commands themselves.

Owns the pages that the Debian package installs: thorpolicy.1, and one page for each command. Invariant: the
text is that of `--help`, and the date that of SOURCE_DATE_EPOCH.
"""

from __future__ import annotations

import datetime
import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from thor_policy import __version__
from thor_policy.cli.main import cli

_EXIT = (
    "0: done. 1: a check failed. 2: wrong use, setting or state. 3: no daemon answered. "
    "4: the daemon refused the request. 5: the disk is full. 6: a thread of the daemon hung."
)


def pages() -> dict[str, str]:
    """Each page by its file name, `thorpolicy-log-verify.1`."""
    root = cli.make_context("thorpolicy", ["--help"], resilient_parsing=True)
    listed: dict[str, str] = {}
    _add(listed, cli, root)
    for name in cli.list_commands(root):
        command = cli.get_command(root, name)
        if command is not None:
            _add(listed, command, click.Context(command, info_name=name, parent=root))
    return listed


def _add(listed: dict[str, str], command: click.Command, context: click.Context) -> None:
    name = context.command_path.replace(" ", "-")
    listed[f"{name}.1"] = "\n".join(_page(command, context, name)) + "\n"
    if isinstance(command, click.Group) and context.parent is not None:
        for child in command.list_commands(context):
            subcommand = command.get_command(context, child)
            if subcommand is not None:
                _add(listed, subcommand, click.Context(subcommand, info_name=child, parent=context))


def _page(command: click.Command, context: click.Context, name: str) -> Iterator[str]:
    moment = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    date = datetime.datetime.fromtimestamp(moment, datetime.UTC).date().isoformat()
    yield f'.TH "{name.upper()}" 1 "{date}" "thor-policy {__version__}" "thor-policy"'
    yield ".SH NAME"
    yield f"{_text(name)} \\- {_text(command.get_short_help_str(200))}"
    yield ".SH SYNOPSIS"
    yield f".B {_text(context.command_path)}"
    yield _text(" ".join(command.collect_usage_pieces(context)))
    yield ".SH DESCRIPTION"
    for number, paragraph in enumerate(inspect.cleandoc(command.help or "").split("\n\n")):
        if number:
            yield ".PP"
        if paragraph.startswith("\b"):
            yield from (".nf", *map(_text, paragraph.removeprefix("\b").strip().splitlines()), ".fi")
        else:
            yield _text(" ".join(paragraph.split()))
    rows = [_row(parameter, context) for parameter in command.get_params(context)]
    if any(rows):
        yield ".SH OPTIONS"
        for term, text in filter(None, rows):
            yield from (".TP", f".B {_text(term)}", _text(text) or "\\&")
    if isinstance(command, click.Group):
        yield ".SH COMMANDS"
        for child in command.list_commands(context):
            subcommand = command.get_command(context, child)
            if subcommand is not None:
                yield from (".TP", f".B {_text(child)}", _text(subcommand.get_short_help_str(200)) or "\\&")
    yield from (".SH EXIT STATUS", _text(_EXIT))
    if context.parent is not None:
        yield from (".SH SEE ALSO", ".BR thorpolicy (1)")


def _row(parameter: click.Parameter, context: click.Context) -> tuple[str, str] | None:
    if isinstance(parameter, click.Option):
        row = parameter.get_help_record(context)
    else:
        row = (parameter.make_metavar(context), getattr(parameter, "help", None) or "")
    return None if row is None else (" ".join(row[0].split()), " ".join(row[1].split()))


def _text(text: str) -> str:
    """A line of text: no character of it is a request or an escape of roff."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return f"\\&{escaped}" if escaped.startswith((".", "\\(aq")) else escaped


def main() -> None:
    """Write the pages into the folder that is named."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in pages().items():
        (folder / name).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
