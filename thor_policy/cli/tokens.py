"""`tokens`: who may ask over HTTP.

Owns the commands; `security.tokens` owns the file.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
import msgspec

from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config
from thor_policy.core.requests import Role
from thor_policy.security.tokens import Tokens

F = TypeVar("F", bound=Callable[..., Any])

#: The file of tokens, where none is given: in the state directory.
DEFAULT_NAME = "tokens.json"
ROLES = [role for role in get_args(Role) if role != "relay"]


def _tokens_file(command: F) -> F:
    return click.option(
        "--tokens",
        "tokens_file",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="File of the tokens, as the gateway reads it. Default: tokens.json in the state directory.",
    )(command)


def _store(config: Config, tokens_file: Path | None) -> Tokens:
    return Tokens(tokens_file or config.state_dir / DEFAULT_NAME)


@click.group()
def tokens() -> None:
    """Make, list and revoke bearer tokens of clients that ask over HTTP."""


@tokens.command()
@configured("state_dir")
@_tokens_file
@click.argument("name", help="Name of the client; recorded with each of its requests as token:NAME.")
@click.option(
    "--role",
    "roles",
    multiple=True,
    type=click.Choice(ROLES),
    default=("ask",),
    show_default=True,
    help="A role of the client; repeat the option for several. The daemon grants only those that the "
    "gateway has too.",
)
@click.option("--days", type=click.FloatRange(0, 36_500), help="Days until it expires. Default: never.")
@click.option(
    "--certificate",
    is_flag=True,
    help="Make no token, but give the roles to client certificates whose subject has the common name NAME.",
)
def new(
    config: Config,
    tokens_file: Path | None,
    name: str,
    roles: tuple[Role, ...],
    days: float | None,
    certificate: bool,
) -> None:
    """Make a token and print it, this one time. Give it to the client and to nobody else.

    The tokens file must belong to the user of the gateway: run this as that user. A running gateway accepts
    a new token at once.
    """
    now = time.time()
    expires_at = None if days is None else now + days * 86_400
    store = _store(config, tokens_file)
    if certificate:
        store.new_certificate(name, roles, now, expires_at=expires_at)
        render.line(f"client certificates with the common name {name} have the roles {' '.join(roles)}")
    else:
        render.line(store.new(name, roles, now, expires_at=expires_at))


@tokens.command(name="list")
@configured("state_dir")
@_tokens_file
@as_json
def list_tokens(config: Config, tokens_file: Path | None, as_json: bool) -> None:
    """List the tokens, revoked and expired ones included."""
    holders = _store(config, tokens_file).holders()
    if as_json:
        shown = [msgspec.to_builtins(holder) for holder in holders]
        render.as_json([{name: item[name] for name in item if name != "sha256"} for item in shown])
        return
    render.table(
        ("name", "roles", "made", "expires", "revoked"),
        [
            (
                holder.who,
                " ".join(holder.roles),
                holder.made_at,
                holder.expires_at or "",
                holder.revoked_at or "",
            )
            for holder in holders
        ],
    )


@tokens.command()
@configured("state_dir")
@_tokens_file
@click.argument("name", help="Name of a token of `tokens list`: alice, or cert:edge.")
def revoke(config: Config, tokens_file: Path | None, name: str) -> None:
    """Revoke a token. A running gateway refuses its holder at once."""
    revoked = _store(config, tokens_file).revoke(name, time.time())
    render.line(f"revoked {revoked.who}")
