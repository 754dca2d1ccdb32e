"""`mcp proxy`: gate the calls of a server of the Model Context Protocol; `mcp serve`: be one."""

from __future__ import annotations

import getpass
import os
import uuid
from pathlib import Path
from typing import get_args

import click

from thor_policy.cli.extras import needs_extra
from thor_policy.cli.options import configured
from thor_policy.config import Config
from thor_policy.core.escape import visible
from thor_policy.core.requests import Json
from thor_policy.mcp.gate import Gate, Peer, Pins, ServerMappings
from thor_policy.mcp.outcomes import Recorded, Recorder
from thor_policy.mcp.proxy import Proxy, Settings


@click.group()
def mcp() -> None:
    """Gate the tool calls of an MCP server, or ask the daemon as a tool of an agent."""


@mcp.command()
@configured("endpoint", "key", "state_dir")
@click.option(
    "--http",
    "address",
    metavar="ADDRESS:PORT",
    help="Serve at http://ADDRESS:PORT/mcp, a loopback address, in place of stdio. Needs --token-file.",
)
@click.option(
    "--token-file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File with the bearer token that clients over HTTP must send, readable by you alone.",
)
def serve(config: Config, address: str | None, token_file: Path | None) -> None:
    """Serve the daemon as tools of an agent: evaluate, explain, trace, request_approval, approvals.

    Advice gates nothing: an agent can act without asking. To gate it, use `mcp proxy`. Needs the extra [mcp].
    """
    if (address is None) != (token_file is None):
        raise click.UsageError("give --http and --token-file together, or none of them for stdio")
    with needs_extra("mcp", "mcp serve"):
        from thor_policy.mcp import http, server
    from thor_policy.cli.journal_reader import open_current
    from thor_policy.client.aio import AsyncClient
    from thor_policy.trace.reading import read_trace

    def trace_of(decision_id: str, depth: int) -> Json:
        with open_current(config) as reader:
            return read_trace(reader, reader.resolve(decision_id), depth=depth)

    is_here = config.key_file is None
    tools = server.build(
        lambda: AsyncClient(config.endpoint, key=config.key_file), trace_of if is_here else None
    )
    if address is None or token_file is None:
        tools.run("stdio")
        return
    host, _, port = address.rpartition(":")
    if not port.isdigit() or not 1 <= int(port) <= 65_535:
        raise click.UsageError(f"--http {address!r}: write ADDRESS:PORT, such as 127.0.0.1:7780")
    http.serve(tools, host.strip("[]"), int(port), http.read_token(token_file))


@mcp.command(context_settings={"ignore_unknown_options": True})
@configured("endpoint", "key", "state_dir", "mcp_subject")
@click.option("--pack", metavar="NAME", help="Resident pack that decides; the active one by default.")
@click.option(
    "--server-name",
    metavar="NAME",
    help="What rules call this server; the name of its program by default.",
)
@click.option("--agent", metavar="ID", help="What rules call the agent that is the client: context.agent.")
@click.option(
    "--mapping",
    "mapping_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Your own mappings of tools to questions (YAML); they go before those that the server declares.",
)
@click.option(
    "--server-mappings",
    type=click.Choice(get_args(ServerMappings)),
    default="also",
    show_default=True,
    help="What a mapping that the server declares does. also: its questions are asked too. replace: they are "
    "asked instead of the default, as the draft has it; for a server that you trust. ignore: nothing.",
)
@click.option(
    "--changed-tools",
    type=click.Choice(["refuse", "report"]),
    default="refuse",
    show_default=True,
    help="What becomes of calls of a tool that the server lists in another form than the first time.",
)
@click.option(
    "--acting-only",
    is_flag=True,
    help="Ask about calls, reads and prompts only; let initialize and listings pass unasked.",
)
@click.option(
    "--hide", "hides", is_flag=True, help="Leave out of tools/list what a rule denies by name alone."
)
@click.option(
    "--outcomes",
    "recorded",
    type=click.Choice(get_args(Recorded)),
    default="text",
    show_default=True,
    help="What is recorded as the outcome of a call. text: whether it worked, and the beginning of what the "
    "tool printed. status: whether it worked. none: nothing.",
)
@click.option(
    "--deadline-ms",
    default=5_000,
    show_default=True,
    type=click.IntRange(1, 600_000),
    help="Deadline of each decision, in milliseconds.",
)
@click.option(
    "--max-line-bytes",
    default=4 * 1024 * 1024,
    show_default=True,
    type=click.IntRange(1_024, 256 * 1024 * 1024),
    help="Longest line of either side, in bytes.",
)
@click.argument("command", metavar="-- COMMAND ...", nargs=-1, required=True, type=click.UNPROCESSED)
def proxy(
    config: Config,
    pack: str | None,
    server_name: str | None,
    agent: str | None,
    mapping_file: Path | None,
    server_mappings: ServerMappings,
    changed_tools: str,
    acting_only: bool,
    hides: bool,
    recorded: Recorded,
    deadline_ms: int,
    max_line_bytes: int,
    command: tuple[str, ...],
) -> None:
    """Start a stdio MCP server, and ask the daemon about each request before the server gets it.

    Put it before the server's command in the configuration of the agent. What is not allowed is answered
    with error -32001; what cannot be asked with -32602; without a daemon everything with -32603. Exit
    status 1 if the server ended first.
    """
    from thor_policy.client.blocking import Client

    pins = Pins.read(mapping_file)
    peer = Peer(
        subject=config.mcp_subject or getpass.getuser(),
        server=server_name or os.path.basename(command[0]),  # noqa: PTH119  it may be no path
        session=str(uuid.uuid4()),
        agent=agent,
    )

    def note(text: str) -> None:
        click.echo(f"thorpolicy mcp proxy: {visible(text)}", err=True)

    clients: list[Client] = []

    def open_gate() -> Gate:
        clients.append(Client(config.endpoint, key=config.key_file, timeout_ms=deadline_ms + 1_000))
        return Gate(
            clients[-1],
            pins=pins,
            pack=pack,
            deadline_ms=deadline_ms,
            server_mappings=server_mappings,
            refuses_changed=changed_tools == "refuse",
            acting_only=acting_only,
        )

    settings = Settings(max_line_bytes=max_line_bytes, hides=hides)
    try:
        status = Proxy(
            command,
            gate=open_gate(),
            open_gate=open_gate,
            peer=peer,
            settings=settings,
            note=note,
            recorder=Recorder(lambda: Client(config.endpoint, key=config.key_file), recorded),
        ).run()
    finally:
        for client in clients:
            client.close()
    click.get_current_context().exit(status)
