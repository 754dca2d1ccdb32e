"""Entry point of `thorpolicy`: the list of commands, and the handler that turns errors into exit statuses.

Owns the exit statuses: 0 done, 1 a check failed, 2 wrong use, setting or state, 3 no daemon answered,
4 the daemon refused the request, 5 the disk is full and `on_full` is halt, 6 a thread of the daemon hung.
Invariant: a command's module is imported only when that command runs, so no command pays for the imports of
another. Main thread.
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
from thor_policy.core.errors import ConfigError, RequestError, ThorPolicyError
from thor_policy.core.escape import paragraph
from thor_policy.telemetry import logs

log = logging.getLogger(__name__)

#: Every command, with its module in `thor_policy.cli`.
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
            _report(error)
            ctx.exit(error.exit_code)
        except BrokenPipeError:
            raise
        except OSError as error:  # a path that no file can have, or that this user may not use
            name = f"{error.filename!s:.64}: " if error.filename else ""
            cause = ConfigError(f"{name}{error.strerror or error}; correct the path, or its permissions")
            _report(cause)
            ctx.exit(cause.exit_code)
        except click.ClickException as error:
            setattr(error, "message", paragraph(error.message))  # noqa: B010  click declares it final
            raise


def _report(error: ThorPolicyError) -> None:
    if logs.structured():
        log.error("%s", error, extra=logs.fields(exit_status=error.exit_code))
    else:
        code = f"{error.code}: " if isinstance(error, RequestError) else ""
        click.echo(f"thorpolicy: {code}{paragraph(str(error))}", err=True)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="thorpolicy")
def cli() -> None:
    """A policy-decision daemon that runs on the device it protects.

    \b
    Exit status: 0 done; 1 a check failed; 2 wrong use, setting or state;
    3 no daemon answered; 4 the daemon refused the request;
    5 the disk is full and on_full is halt; 6 a thread of the daemon hung.
    """


def main() -> None:
    """Run the command line; the console script `thorpolicy`."""
    try:
        cli.main(prog_name="thorpolicy")
    except BrokenPipeError:  # the reader closed the pipe
        sys.stderr.close()
    except SystemExit as end:
        if threading.active_count() > 1:
            _exit_without_joining(end.code if isinstance(end.code, int) else 1)
        raise


def _exit_without_joining(status: int) -> None:
    """End the process at once; a thread that is still alive hangs in a disk operation, or decodes.

    A normal exit would wait for the first, and unload llama.cpp while the second still uses it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
