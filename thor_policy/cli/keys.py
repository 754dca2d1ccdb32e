"""`keys`: the CURVE keys of clients that connect over tcp.

Owns the commands; `security.curve_keys` owns the files.
"""

from __future__ import annotations

import time
from typing import get_args

import click
import msgspec

from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config
from thor_policy.core.requests import Role
from thor_policy.security.curve_keys import Keys


@click.group()
def keys() -> None:
    """Make, list and revoke the CURVE keys of clients that connect over tcp."""


@keys.command()
@configured("state_dir", "keys_dir")
@click.argument("name", required=False, help="Name of the client; recorded with each of its requests.")
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice(get_args(Role)),
    default=("ask",),
    show_default=True,
    help="A role of the client; repeat the option for several.",
)
@click.option("--server", is_flag=True, help="Make the server's own key pair if it is missing.")
def new(config: Config, name: str | None, roles: tuple[Role, ...], server: bool) -> None:
    """Make a client's key and print the path of its file. Give that file to the client and to nobody else.

    The first key also makes the server's own pair. A running daemon accepts a new key at once.
    """
    if (name is None) == (not server):
        raise click.UsageError("give either NAME or --server")
    store = Keys(config.keys_dir)
    path = store.new_server() if name is None else store.new(name, dict.fromkeys(roles), time.time())
    render.line(str(path))


@keys.command(name="list")
@configured("state_dir", "keys_dir")
@as_json
def list_keys(config: Config, as_json: bool) -> None:
    """List the client keys that the server knows, revoked ones included."""
    clients = Keys(config.keys_dir).clients()
    if as_json:
        render.as_json(msgspec.to_builtins(clients))
        return
    render.table(
        ("name", "roles", "made", "revoked"),
        [
            (client.name, " ".join(client.roles), client.made_at, client.revoked_at or "")
            for client in clients
        ],
    )


@keys.command()
@configured("state_dir", "keys_dir")
@click.argument("name", help="Name of a key of `keys list`.")
def revoke(config: Config, name: str) -> None:
    """Revoke a key. A running daemon stops answering its holder at once, on open connections too."""
    revoked = Keys(config.keys_dir).revoke(name, time.time())
    render.line(f"revoked {revoked.name} {revoked.public}")
