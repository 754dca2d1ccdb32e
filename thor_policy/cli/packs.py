"""`packs`: list, show, check, sign and render policy packs, and change which packs a daemon has resident.

Owns the commands; `policy.pack_files` reads packs, and the daemon's engine thread changes what is resident.
What authors need is in `pack_authoring`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from thor_policy.cli import completion, render
from thor_policy.cli import pack_authoring as authoring
from thor_policy.cli.options import absolute_if_path, as_json, configured, shipped_pack
from thor_policy.cli.promotion import promote, promotions
from thor_policy.client.blocking import Client
from thor_policy.config import Config, data_path
from thor_policy.core import records
from thor_policy.core.requests import Json
from thor_policy.policy import pack_files
from thor_policy.security import signatures

FC = TypeVar("FC", bound=Callable[..., Any])


def resident_pack(metavar: str) -> Callable[[FC], FC]:
    """The argument of commands that change the packs of a running daemon."""
    return click.argument(
        "pack",
        metavar=metavar,
        help="Name of a resident or shipped pack, or a pack's directory.",
        shell_complete=completion.packs,
    )


@click.group()
def packs() -> None:
    """List, show, check and render policy packs; load and activate them in a running daemon."""


@packs.command(name="list")
@as_json
def list_packs(as_json: bool) -> None:
    """List the packs that ship with this version."""
    loaded = [authoring.load(name) for name in pack_files.available(data_path("prompts"))]
    if as_json:
        render.as_json([msgspec.to_builtins(pack.info) for pack in loaded])
        return
    render.table(
        ("pack", "version", "clauses", "rules", "examples", "sha256"),
        [
            (
                pack.info.name,
                pack.info.version,
                len(pack.clauses),
                len(pack.book.rules),
                len(pack.examples),
                pack.info.sha256[:12],
            )
            for pack in loaded
        ],
    )


@packs.command()
@click.argument(
    "directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path), help="The pack's directory."
)
@click.option(
    "--key",
    "key_file",
    required=True,
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Ed25519 private key (PEM, mode 0600) that signs; `--new-key` makes one.",
)
@click.option("--new-key", is_flag=True, help="Make the key FILE, which must not exist, and FILE.pub.")
@as_json
def sign(directory: Path, key_file: Path, new_key: bool, as_json: bool) -> None:
    """Sign a pack: writes `pack.sig` into its directory.

    A daemon whose setting pack_keys lists the public key loads the pack, and refuses it after any change.
    """
    pack = authoring.load(f"{directory}/")
    key = signatures.Key.make(key_file) if new_key else signatures.Key.open(key_file)
    if new_key:
        render.line(f"made a new key: {key_file}; to check its signatures use {key_file}.pub", stderr=True)
    signed = signatures.sign_pack(pack.info, pack.path / pack_files.SIGNATURE, key)
    if as_json:
        render.as_json(msgspec.to_builtins(signed))
        return
    render.line(f"{signed.name} {signed.version} {signed.sha256} is signed by the key {signed.key}")


@packs.command()
@configured("pack_keys")
@shipped_pack
@as_json
def verify(config: Config, pack: str, as_json: bool) -> None:
    """Show which key of --pack-keys signed a pack. Exit status 2, with the reason, if none did."""
    loaded = authoring.load(pack)
    signed = signatures.check_pack(
        loaded.info, loaded.path / pack_files.SIGNATURE, map(Path, config.pack_keys)
    )
    if as_json:
        render.as_json(msgspec.to_builtins(signed))
        return
    render.line(f"{signed.name} {signed.version} {signed.sha256} is signed by the key {signed.key}")


@packs.command()
@configured("endpoint", "key", "state_dir")
@shipped_pack
@as_json
def load(config: Config, pack: str, as_json: bool) -> None:
    """Make a pack resident in the running daemon; it decides the requests that name it."""
    _control(config, records.Control(task="load", pack=_absolute(pack)), as_json)


@packs.command()
@configured("endpoint", "key", "state_dir")
@resident_pack("NAME|DIR")
@as_json
def activate(config: Config, pack: str, as_json: bool) -> None:
    """Make a pack the active one. It is loaded first if it is not resident.

    A resident pack can also be given as NAME@VERSION or by the first 12 digits of its sha256.
    """
    _control(config, records.Control(task="activate", pack=_absolute(pack)), as_json)


@packs.command()
@configured("endpoint", "key", "state_dir")
@resident_pack("NAME|DIR|none")
@as_json
def shadow(config: Config, pack: str, as_json: bool) -> None:
    """Make a pack the shadow: it answers the same questions, without effect. `none` ends that."""
    _control(config, records.Control(task="shadow", pack=_absolute(pack)), as_json)


@packs.command()
@configured("endpoint", "key", "state_dir")
@click.argument("pack", metavar="NAME", help="Name of a resident pack that is not the active one.")
@as_json
def unload(config: Config, pack: str, as_json: bool) -> None:
    """Remove a resident pack from memory."""
    _control(config, records.Control(task="unload", pack=pack), as_json)


@packs.command()
@configured("endpoint", "key", "state_dir")
@as_json
@click.pass_context
def reload(ctx: click.Context, config: Config, as_json: bool) -> None:
    """Reload every resident pack from its directory. Exit status 1 if one is refused."""
    done = _control(config, records.Control(task="reload"), as_json)
    ctx.exit(1 if done["refused"] else 0)


for command in (
    authoring.new,
    authoring.show,
    authoring.lint,
    authoring.try_pack,
    authoring.diff,
    authoring.render_prompt,
):
    packs.add_command(command)
packs.add_command(promote)
packs.add_command(promotions)


def _control(config: Config, control: records.Control, as_json: bool) -> dict[str, Json]:
    with (
        Client(config.endpoint, key=config.key_file) as client,
        render.working(f"waiting for the daemon: {control.task} {control.pack or 'packs'}"),
    ):
        done = client.control(control)
    if as_json:
        render.as_json(done)
        return done
    render.residents(done["packs"])
    for name in done.get("same_version", ()):
        render.line(
            f"warning: {name} has the version of the pack before it; give each change a version", stderr=True
        )
    for name, reason in done.get("refused", {}).items():
        render.line(f"refused: {name} stays as it is: {reason}", stderr=True)
    return done


def _absolute(name_or_dir: str) -> str:
    """A pack's name unchanged, its directory absolute: the daemon has another working directory."""
    return absolute_if_path(name_or_dir, marker="pack.yaml")
