"""`keys`: who may ask over tcp."""

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
    """Make, list and revoke the CURVE keys of clients that ask over tcp."""


@keys.command()
@configured("state_dir", "keys_dir")
@click.argument("name", required=False, help="What to call the client; recorded with each of its requests.")
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice(get_args(Role)),
    default=("ask",),
    show_default=True,
    help="What the client may do; may be given several times.",
)
@click.option("--server", is_flag=True, help="Make the server's own pair, if there is none.")
def new(config: Config, name: str | None, roles: tuple[Role, ...], server: bool) -> None:
    """Make a client's key; the file that is printed goes to that client, and to nobody else.

    The server's own pair is made with the first key. A running daemon knows a new key at once.
    """
    if (name is None) == (not server):
        raise click.UsageError("give a NAME, or --server")
    made = Keys(config.keys_dir)
    path = made.new_server() if name is None else made.new(name, dict.fromkeys(roles), time.time())
    render.line(str(path))


@keys.command(name="list")
@configured("state_dir", "keys_dir")
@as_json
def list_keys(config: Config, as_json: bool) -> None:
    """The client keys that the server knows, and those that were revoked."""
    found = Keys(config.keys_dir).clients()
    if as_json:
        render.as_json(msgspec.to_builtins(found))
        return
    render.table(
        ("name", "roles", "made", "revoked"),
        [(one.name, " ".join(one.roles), one.made_at, one.revoked_at or "") for one in found],
    )


@keys.command()
@configured("state_dir", "keys_dir")
@click.argument("name", help="As `keys list` shows it.")
def revoke(config: Config, name: str) -> None:
    """Make a key count no more; a running daemon answers its holder no more, connected or not."""
    revoked = Keys(config.keys_dir).revoke(name, time.time())
    render.line(f"revoked {revoked.name} {revoked.public}")
