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
from click.shell_completion import CompletionItem

from thor_policy import __version__
from thor_policy.core.errors import ConfigError, RequestError, ThorPolicyError
from thor_policy.core.escape import paragraph
from thor_policy.telemetry import logs

log = logging.getLogger(__name__)

#: Every command: its module in `thor_policy.cli`, and the first lines of its help, so that `--help` and the
#: completion of names import no module. The test of the command line compares them with the docstrings.
COMMANDS = {
    "serve": ("daemon", "Run the daemon until SIGTERM or Ctrl-C; a second signal forces the end."),
    "ask": ("daemon", "Ask a running daemon one question."),
    "status": ("daemon", "Show the state of a running daemon: packs, model, threads, journal, counters."),
    "alerts": ("alerts", "List alerts of success rates, volume and drift, newest first."),
    "canary": (
        "canary",
        "Let a candidate decide for a share of the callers; one that is looser is rolled back by itself.",
    ),
    "metrics": (
        "daemon",
        "Show what a running daemon measures: times, outcomes, confidence and every counter.",
    ),
    "test": ("suites", "Run scenario suites, each against its pack, and record each decision."),
    "compare": ("suites", "Compare two runs, scenario by scenario, and recommend a side if one is better."),
    "invariance": ("invariance", "Ask variants of scenarios and report answers that changed."),
    "log": ("journal", "List recorded decisions, newest first. The commands check and maintain the journal."),
    "trace": (
        "trace",
        "Show why a decision was made and what became of it; supersede or overturn it.",
    ),
    "graph": (
        "graph",
        "Keep the graph of work: goals, options, decisions, actions, outcomes and the links between them.",
    ),
    "compliance": (
        "compliance",
        "Report each decision of a type: policy in force, approvers, evidence, later fate.",
    ),
    "similar": (
        "similar",
        "List past decisions that are similar to a decision, a question or a text, and what they share.",
    ),
    "decide": ("decide", "Record a decision that you made, under the pack that governs it."),
    "stats": (
        "stats",
        "Count recorded decisions: outcomes, accuracy, confidence, latency, decisions by hour.",
    ),
    "replay": (
        "replay",
        "Take recorded decisions again, and compare rules, question, tokens, logits and outcome.",
    ),
    "receipt": (
        "receipts",
        "Make a signed receipt of one decision, which a third party can check without this device.",
    ),
    "verify-receipt": (
        "receipts",
        "Check a receipt offline: signature, place in the chain, checkpoint.",
    ),
    "whatif": (
        "whatif",
        "Decide past requests again by another pack, model or adapter, and list what changes.",
    ),
    "review": ("review", "Review decisions: one key for each verdict, recorded at once."),
    "approvals": (
        "approvals",
        "List, request, give and refuse approvals: what lifts an outcome that approvals can lift.",
    ),
    "calibrate": (
        "calibrate",
        "Fit a temperature to judged decisions of the pack and model, and put it in force.",
    ),
    "tune": (
        "tune",
        "Choose the band of confidence that asks at most so often and allows at most so much wrongly.",
    ),
    "export": ("export", "Export reviewers' corrections: few-shot examples, training lines, a report."),
    "improve": (
        "promotion",
        "Propose the next pack, with reviewers' corrections as examples, and send it through the gate.",
    ),
    "patterns": ("patterns", "Group similar corrections and exceptions, and propose rules for them."),
    "train": ("train", "Train an adapter from corrections, and judge it before it may be activated."),
    "hook": ("hook", "Ask about a tool call of an AI agent, and answer in the agent's own words."),
    "models": ("models", "List, fetch and check model files."),
    "packs": (
        "packs",
        "List, show, check and render policy packs; load and activate them in a running daemon.",
    ),
    "sources": ("sources", "List the sources of a pack, and look entities up in them."),
    "adapters": ("adapters", "List LoRA adapters, and change the adapter of a running daemon."),
    "mcp": ("mcp", "Gate the tool calls of an MCP server, or ask the daemon as a tool of an agent."),
    "keys": ("keys", "Make, list and revoke the CURVE keys of clients that connect over tcp."),
    "gateway": (
        "gateway",
        "Serve OpenID AuthZEN over HTTP until SIGTERM or Ctrl-C, as a client of a running daemon.",
    ),
    "ship": ("fleet", "Ship the journal to a fleet's store, or to sealed files for another shipper."),
    "fleet": ("fleet", "Make a fleet's store, and ask it: devices, chains, similar decisions, exceptions."),
    "web": ("web", "Serve pages for people until SIGTERM or Ctrl-C: decisions, approvals, reviews, figures."),
    "tokens": ("tokens", "Make, list and revoke bearer tokens of clients that ask over HTTP."),
    "bench": (
        "bench",
        "Measure on this machine: medians, and ratios within one run with paired 95 % intervals.",
    ),
    "doctor": (
        "doctor",
        "Check device, engine, model, pack, disk, SQLite and daemon; exit status 1 if a check says missing.",
    ),
    "completion": (
        "completion",
        'Print a completion script. Use it with: eval "$(thorpolicy completion bash)".',
    ),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"thor_policy.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        limit = formatter.width - 6 - max(map(len, COMMANDS))
        with formatter.section("Commands"):
            formatter.write_dl([(name, _summary(name, limit)) for name in COMMANDS])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [name for name in COMMANDS if name.startswith(incomplete)]
        items = [CompletionItem(name, help=_summary(name)) for name in names]
        return [*items, *click.Command.shell_complete(self, ctx, incomplete)]

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
        text = "\n".join([str(error), *getattr(error, "__notes__", ())])
        click.echo(f"thorpolicy: {code}{paragraph(text)}", err=True)


def _summary(name: str, limit: int = 45) -> str:
    """The first lines of a command's help within `limit` characters, as click shortens them."""
    return click.Command(name, help=COMMANDS[name][1]).get_short_help_str(limit)


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
