"""`adapters`: which LoRA adapters there are, and with which of them a daemon judges."""

from __future__ import annotations

import click
import msgspec

from thor_policy import catalog
from thor_policy.cli import completion, render
from thor_policy.cli.options import absolute_if_path, as_json, configured
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core import records


@click.group()
def adapters() -> None:
    """List LoRA adapters, and judge with one in a running daemon."""


@adapters.command(name="list")
@configured("models_dir")
@as_json
def list_adapters(config: Config, as_json: bool) -> None:
    """The adapters of the catalog, and which are there."""
    rows = [row for row in catalog.listing(config.models_dir) if row.model.base is not None]
    if as_json:
        render.as_json(msgspec.to_builtins(rows, enc_hook=str))
        return
    if not rows:
        render.line("the catalog has no adapter; the path of a GGUF file works too")
        return
    render.table(
        ("adapter", "for", "licence", "here"),
        [
            (row.model.name, row.model.base, row.model.licence, "ok" if row.present else "missing")
            for row in rows
        ],
    )


@adapters.command()
@configured("endpoint", "key", "state_dir")
@click.argument(
    "adapter",
    metavar="NAME|PATH|auto|none",
    help="As `adapters list` shows it, or a GGUF file; auto: the one that goes with the model.",
    shell_complete=completion.adapters,
)
@click.option("--scale", type=float, default=1.0, show_default=True, help="How strongly it counts.")
@as_json
def activate(config: Config, adapter: str, scale: float, as_json: bool) -> None:
    """Judge with an adapter from now on, or with none; every resident pack is loaded anew."""
    with Client(config.endpoint, key=config.key_file) as client:
        done = client.control(records.Control(task="adapter", adapter=absolute_if_path(adapter), scale=scale))
    if as_json:
        render.as_json(done)
    else:
        render.residents(done["packs"])
