"""`hook`: gate an AI agent's tool calls: answer an event, install, try, serve and report."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config
from thor_policy.core.errors import ConfigError
from thor_policy.hook import main as program

F = TypeVar("F", bound=Callable[..., Any])

_AGENT = click.option("--agent", required=True, type=click.Choice(program.AGENTS), help="The agent.")
_PACK = click.option(
    "--pack", default=program.PACK, show_default=True, metavar="NAME", help="The resident pack that decides."
)
_DEADLINE = click.option(
    "--deadline-ms",
    default=program.DEADLINE_MS,
    show_default=True,
    type=click.IntRange(program.MIN_DEADLINE_MS, program.MAX_DEADLINE_MS),
    help="Deadline of a run in milliseconds; then the call is blocked.",
)
_STATE = click.option(
    "--state",
    default="",
    metavar="DIR",
    help="Directory of what hooks keep between events. Default: in the runtime directory of the user.",
)
_PRINCIPAL = click.option(
    "--principal", default="", metavar="ADDRESS", help="Mail address of the person the agent works for."
)
_OBSERVE = click.option("--observe", is_flag=True, help="Record each decision, and let every call pass.")
_MAY_APPROVE = click.option(
    "--may-approve",
    is_flag=True,
    help="Answer `allow` where the agent has it, which skips the person's own prompt.",
)


def _settings(command: F) -> F:
    """Add the options that install writes into the command of an event."""
    for option in reversed((_PACK, _DEADLINE, _STATE, _PRINCIPAL, _OBSERVE, _MAY_APPROVE)):
        command = option(command)
    return command


def _place(command: F) -> F:
    """Add the options that choose a settings file; the command gets its `path`."""
    for option in (
        click.option("--file", "file", type=click.Path(path_type=Path), help="This settings file instead."),
        click.option(
            "--project/--user",
            help="The settings of the project in this directory, or of the user (default).",
        ),
        _AGENT,
    ):
        command = option(command)
    return command


def _path_of(agent: str, project: bool, file: Path | None) -> Path:
    from thor_policy.hook import installation

    scope: installation.Scope = "project" if project else "user"
    return file or installation.settings_file(agent, scope, home=Path.home(), project=Path.cwd())


@click.group(invoke_without_command=True)
@configured("endpoint")
@click.option(
    "--agent", type=click.Choice(program.AGENTS), help="The agent whose event is on standard input."
)
@click.option("--event", default="", metavar="NAME", help="The event, where it does not name itself.")
@_settings
@click.option("--agent-version", default="", metavar="X.Y.Z", help="Version of the agent, recorded.")
@click.pass_context
def hook(
    ctx: click.Context,
    config: Config,
    agent: str | None,
    event: str,
    pack: str,
    deadline_ms: int,
    state: str,
    principal: str,
    observe: bool,
    may_approve: bool,
    agent_version: str,
) -> None:
    """Ask about a tool call of an AI agent, and answer in the agent's own words.

    Reads the event on standard input. Whatever fails, the call is blocked. `hook install` writes a command
    that does the same and starts in a third of the time.

    \b Exit status: 0 answered; 2 blocked, the reason is on standard error.
    """
    if ctx.invoked_subcommand is not None:
        return
    if agent is None:
        raise click.UsageError(f"give --agent: one of {', '.join(program.AGENTS)}; or a command of `hook`")
    arguments = ["--agent", agent, "--endpoint", config.endpoint, "--pack", pack]
    arguments += ["--deadline-ms", str(deadline_ms)]
    for name, value in (
        ("--event", event),
        ("--state", state),
        ("--principal", principal),
        ("--agent-version", agent_version),
    ):
        arguments += [name, value] if value else []
    arguments += ["--observe"] * observe + ["--may-approve"] * may_approve
    program.run(arguments)


@hook.command()
@configured("endpoint")
@_place
@_settings
@click.option(
    "--agent-version", metavar="X.Y.Z", help="Version of the agent, if its program cannot be asked."
)
@click.option("--dry-run", is_flag=True, help="Show the change, and make none.")
def install(
    config: Config,
    agent: str,
    project: bool,
    file: Path | None,
    pack: str,
    deadline_ms: int,
    state: str,
    principal: str,
    observe: bool,
    may_approve: bool,
    agent_version: str | None,
    dry_run: bool,
) -> None:
    """Add the hooks to an agent's settings, with its switches that block when a hook fails.

    Shows the change, keeps the old file beside the new one, and keeps what others wrote.

    \b
    Exit status: 0 installed; 2 the agent's version cannot fail closed, or the file cannot be changed.
    """
    from thor_policy.hook import installation

    version = installation.checked_version(agent, agent_version)
    wanted = installation.Wanted(
        endpoint=config.endpoint,
        pack=pack,
        deadline_ms=deadline_ms,
        state=state,
        principal=principal,
        observe=observe,
        may_approve=may_approve,
    )
    change = installation.install(agent, _path_of(agent, project, file), wanted, version)
    _make(change, dry_run)
    render.line(f"fails closed by: {installation.agent_of(agent).CONTRACT}")
    for note in installation.agent_of(agent).NOTES:
        render.line(f"note: {note}")


@hook.command()
@_place
@click.option("--dry-run", is_flag=True, help="Show the change, and make none.")
def uninstall(agent: str, project: bool, file: Path | None, dry_run: bool) -> None:
    """Remove the hooks from an agent's settings, and nothing else."""
    from thor_policy.hook import installation

    _make(installation.uninstall(agent, _path_of(agent, project, file)), dry_run)


def _make(change: Any, dry_run: bool) -> None:
    from thor_policy.hook import installation

    if change.nothing:
        render.line(f"{change.path}: nothing to change")
        return
    render.lines(change.diff().rstrip("\n"))
    if dry_run:
        render.line("nothing was changed (--dry-run)")
    elif backup := installation.apply(change, now=time.time()):
        render.line(f"changed; the old file is {backup}")
    else:
        render.line("written")


@hook.command()
@_place
@_STATE
@as_json
@click.pass_context
def status(
    ctx: click.Context, agent: str, project: bool, file: Path | None, state: str, as_json: bool
) -> None:
    """Show whether the hooks of an agent are installed, and what is wrong with them.

    \b
    Exit status: 0 installed as they must be; 1 missing, or with a problem.
    """
    from thor_policy.hook import installation

    installed = installation.status(agent, _path_of(agent, project, file))
    losses = installation.losses(state, os.environ)
    problems = installed.problems or (() if installed.installed else ("not installed",))
    if as_json:
        render.as_json(
            {
                "agent": agent,
                "file": str(installed.path),
                "installed": installed.installed,
                "problems": list(problems),
                "losses": losses,
            }
        )
    else:
        render.pairs(
            {
                "agent": agent,
                "file": str(installed.path),
                "installed": "yes" if installed.installed else "no",
                "problems": "\n".join(problems) or "none",
                "not recorded": f"{losses} outcomes and observed calls",
            }
        )
    ctx.exit(1 if problems else 0)


@hook.command()
@_AGENT
@as_json
@click.pass_context
def test(ctx: click.Context, agent: str, as_json: bool) -> None:
    """Run the hook of an agent against every fault, as the agent runs it, and show whether each blocks.

    \b
    Exit status: 0 every fault blocks; 1 some fault does not.
    """
    from thor_policy.hook import trial

    faults = trial.MATRIX + trial.FURTHER
    tried = []
    with render.progress(len(faults), "faults") as advance:
        for done in trial.try_all(agent):
            tried.append(done)
            advance()
    if as_json:
        render.as_json(
            [{"fault": done.fault, "blocked": done.blocked} | done.ran._asdict() for done in tried]
        )
    else:
        render.table(
            ("fault", "blocks", "status", "reason"),
            [
                (
                    done.fault.replace("_", " "),
                    "yes" if done.blocked else "NO",
                    done.ran.status,
                    (done.ran.stderr.strip().splitlines() or [""])[-1].removeprefix("thor-policy: "),
                )
                for done in tried
            ],
            clipped=(3,),
        )
        render.line(f"{agent}: {sum(done.blocked for done in tried)} of {len(tried)} faults block")
    ctx.exit(0 if all(done.blocked for done in tried) else 1)


@hook.command()
@configured("endpoint")
@click.option("--agent", default="claude", type=click.Choice(["claude"]), help="The agent that posts events.")
@click.option("--host", default="127.0.0.1", show_default=True, help="An address of loopback.")
@click.option("--port", default=8_765, show_default=True, type=click.IntRange(1, 65_535), help="The port.")
@click.option(
    "--token-file",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of mode 0600 with the token that requests carry (Authorization: Bearer ..).",
)
@_settings
def serve(
    config: Config,
    agent: str,
    host: str,
    port: int,
    token_file: Path,
    pack: str,
    deadline_ms: int,
    state: str,
    principal: str,
    observe: bool,
    may_approve: bool,
) -> None:
    """Answer hooks over HTTP, on this machine only. Needs the extra [http].

    Claude Code posts events where a hook has the type http; other agents do not, or let the tool run when the
    server is gone.
    """
    try:
        from thor_policy.hook import server
    except ImportError as error:
        raise ConfigError(
            f"{error.name} is not installed: this command needs the extra [http] of thor-policy"
        ) from error
    options = program.Options(
        agent=agent,
        endpoint=config.endpoint,
        pack=pack,
        deadline_ms=deadline_ms,
        state=state,
        principal=principal,
        observe=observe,
        may_approve=may_approve,
    )
    token = server.token_in(token_file)
    render.line(f"hooks are served at http://{host}:{port}/v1/hooks/{agent}", stderr=True)
    server.serve(options, token, host, port)


@hook.command()
@configured("state_dir")
@click.option(
    "--pack",
    default=program.PACK,
    show_default=True,
    metavar="NAME|DIR",
    help="The pack that proposals are for.",
)
@click.option(
    "--since", default="7d", show_default=True, metavar="TIME|AGE", help="From this time or age on."
)
@as_json
def report(config: Config, pack: str, since: str, as_json: bool) -> None:
    """Report what hooks asked: prompts saved and asked, would-be blocks, false blocks, proposed rules.

    Rules are proposed from calls that people accepted, or that ran while hooks only observed. Each was
    evaluated on all decisions of the time, and none is put in force.
    """
    from thor_policy.cli.patterns import show_pattern
    from thor_policy.daemon import journal_access, loading
    from thor_policy.learning import hook_report
    from thor_policy.learning.counterfactual_run import moment

    now = time.time()
    with journal_access.open_reader(config) as reader, render.counting("decisions evaluated") as progress:
        done = hook_report.report(
            reader,
            loading.load_pack(dataclasses.replace(config, pack=pack)),
            since=moment(since, "since", now) or since,
            progress=progress,
        )
    if as_json:
        render.as_json(msgspec.to_builtins(done))
        return
    render.line(
        f"{done.prompts_saved:,} calls were allowed without a question, "
        f"{done.prompts_asked:,} were or would have been asked about"
    )
    if not done.complete:
        render.line("older decisions were not read")
    if done.agents:
        render.table(
            ("agent", "calls", "allow", "ask", "deny", "observed", "would block", "accepted", "false"),
            [
                (
                    figures.agent,
                    figures.calls,
                    figures.allowed,
                    figures.questions,
                    figures.denied,
                    figures.observed,
                    figures.would_block,
                    figures.accepted,
                    figures.false_blocks,
                )
                for figures in done.agents
            ],
        )
    if done.false_blocks:
        render.line("")
        render.table(
            ("false block", "agent", "tool", "outcome", "clauses"),
            [
                (block.decision_id[-8:], block.agent, block.tool, block.outcome, ", ".join(block.rules))
                for block in done.false_blocks[:15]
            ],
            clipped=(2, 3),
        )
    for number, pattern in enumerate(done.proposals, 1):
        show_pattern(number, pattern)
