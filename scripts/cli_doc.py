"""The reference page of the command line, as Markdown, made from the click commands themselves.

Owns docs/reference/cli.md. Invariant: every command, argument and option is on the page, with the text of
`--help`.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator

import click

from thor_policy import config
from thor_policy.cli.main import cli

#: Width of a line, in characters.
WIDTH = 100

HEAD = """\
# Commands

Written by `scripts/cli-doc`. The commands are in `.venv/bin`; `. .venv/bin/activate` puts them on
your path. `thorpolicy COMMAND --help` prints the same texts. Every command that reads takes
`--json`. Control characters and line ends of data are printed as escapes such as `\\x1b`; JSON has
escapes of its own, and decodes to the exact values. Options that are settings are listed in one
line, and described in [settings](settings.md); `--config FILE` names a TOML file of settings.

| exit status | meaning |
|---|---|
| 0 | done |
| 1 | a check failed: a scenario, a digest, the chain |
| 2 | wrong use, setting or state |
| 3 | no daemon answered |
| 4 | the daemon refused the request |
| 5 | the disk is full, and `on_full` is `halt` |
| 6 | a thread of the daemon hung |
"""


def document() -> str:
    """The whole page."""
    root = cli.make_context("thorpolicy", ["--help"], resilient_parsing=True)
    blocks = [HEAD]
    for name in cli.list_commands(root):
        command = cli.get_command(root, name)
        if command is not None:
            blocks.extend(_sections(command, root, name, level=2))
    return "\n".join(blocks)


def _sections(command: click.Command, parent: click.Context, name: str, *, level: int) -> Iterator[str]:
    """The section of a command, then those of its subcommands."""
    context = click.Context(command, info_name=name, parent=parent)
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield f"{'#' * level} {context.command_path}\n\n```\n{_wrapped(usage, hanging='    ')}\n```\n"
    yield f"{_help(command)}\n"
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            subcommand = command.get_command(context, child)
            if subcommand is not None:
                yield from _sections(subcommand, context, child, level=level + 1)
        return
    settings = ", ".join(f"`{item.opts[0]}`" for item in command.params if _is_setting(item))
    if settings:
        yield _wrapped(f"Settings: {settings}.") + "\n"
    lines = [_parameter(item, context) for item in command.params if not _is_setting(item)]
    if shown := [line for line in lines if line]:
        yield "\n".join(shown) + "\n"


def _is_setting(parameter: click.Parameter) -> bool:
    """Whether an option is a setting or --config. A command may have another option with a setting's name."""
    if parameter.name == "config_file":
        return True
    texts = {setting.name: setting.metadata["help"] for setting in config.settings()}
    return parameter.name in texts and getattr(parameter, "help", None) == texts[parameter.name]


def _help(command: click.Command) -> str:
    """The help text; a paragraph that click prints as it stands becomes a block of text."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    return "\n\n".join(
        f"```\n{paragraph.removeprefix(chr(8)).strip()}\n```"
        if paragraph.startswith("\b")
        else _wrapped(paragraph)
        for paragraph in paragraphs
    )


def _parameter(parameter: click.Parameter, context: click.Context) -> str:
    """An item of the list of arguments and options; empty for one without help, such as --help."""
    if isinstance(parameter, click.Option):
        row = parameter.get_help_record(context)
    else:
        row = (parameter.make_metavar(context), getattr(parameter, "help", None) or "")
    if row is None:
        return ""
    name, text = (" ".join(part.split()) for part in row)
    return _wrapped(f"- `{name}`: {text}", hanging="  ")


def _wrapped(text: str, hanging: str = "") -> str:
    return textwrap.fill(
        " ".join(text.split()),
        WIDTH,
        subsequent_indent=hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )


if __name__ == "__main__":
    print(document(), end="")
