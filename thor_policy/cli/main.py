"""Entry point of `thorpolicy`: the commands, and what becomes of errors.

Owns the exit statuses: 0 done, 1 a check failed, 2 wrong use, setting or state, 3 no daemon answered,
4 the daemon refused the request, 5 the disk is full and `on_full` is halt, 6 a thread of the daemon never
came back. Commands are imported when they are called, so that none pays for another.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import threading
from typing import Any

import click

from thor_policy import __version__
from thor_policy.core.errors import RequestError, ThorPolicyError
from thor_policy.telemetry import logs

log = logging.getLogger(__name__)

#: Every command and the module in `thor_policy.cli` that holds it.
COMMANDS = {
    "serve": "daemon",
    "ask": "daemon",
    "status": "daemon",
    "metrics": "daemon",
    "test": "suites",
    "compare": "suites",
    "invariance": "invariance",
    "log": "journal",
    "stats": "journal",
    "replay": "replay",
    "whatif": "whatif",
    "review": "review",
    "calibrate": "calibrate",
    "export": "export",
    "improve": "promotion",
    "patterns": "patterns",
    "train": "train",
    "models": "models",
    "packs": "packs",
    "adapters": "adapters",
    "keys": "keys",
    "bench": "bench",
    "doctor": "doctor",
    "completion": "completion",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"thor_policy.cli.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ThorPolicyError as error:
            if logs.structured():
                log.error("%s", error, extra=logs.fields(exit_status=error.exit_code))
            else:
                code = f"{error.code}: " if isinstance(error, RequestError) else ""
                click.echo(f"thorpolicy: {code}{error}", err=True)
            ctx.exit(error.exit_code)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="thorpolicy")
def cli() -> None:
    """Policy decisions on the device they protect.

    \b
    Exit status: 0 done; 1 a check failed; 2 wrong use, setting or state;
    3 no daemon answered; 4 the daemon refused the request;
    5 the disk is full and on_full is halt; 6 a thread of the daemon
    never came back.
    """


def main() -> None:
    """Console script."""
    try:
        cli.main(prog_name="thorpolicy")
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stderr.close()
    except SystemExit as end:
        if threading.active_count() > 1:
            _leave_threads(end.code if isinstance(end.code, int) else 1)
        raise


def _leave_threads(status: int) -> None:
    """End at once: a thread that did not end in time hangs in the disk, or decodes.

    An orderly end would wait for the one, and take the library away from under the other.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
