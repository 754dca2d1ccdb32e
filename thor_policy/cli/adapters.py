"""`adapters`: the LoRA adapters of the catalog, and the one that a running daemon uses.

Owns the two commands that list adapters and change the adapter of a daemon. Main thread.
"""

from __future__ import annotations

import click
import msgspec

from thor_policy import catalog
from thor_policy.cli import completion, render
from thor_policy.cli.options import absolute_if_path, as_json, configured, finite
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core import records


@click.group()
def adapters() -> None:
    """List LoRA adapters, and change the adapter of a running daemon."""


@adapters.command(name="list")
@configured("models_dir")
@as_json
def list_adapters(config: Config, as_json: bool) -> None:
    """List the adapters of the catalog, and which of them are present."""
    rows = [row for row in catalog.listing(config.models_dir) if row.model.base is not None]
    if as_json:
        render.as_json(msgspec.to_builtins(rows, enc_hook=str))
        return
    if not rows:
        render.line("the catalog has no adapter; `adapters activate` also takes the path of a GGUF file")
        return
    render.table(
        ("adapter", "for", "licence", "file"),
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
    help="A name that `adapters list` prints, or a GGUF file; auto: the model's own; none: no adapter.",
    shell_complete=completion.adapters,
)
@click.option(
    "--scale", type=float, callback=finite, default=1.0, show_default=True, help="Weight of the adapter."
)
@as_json
def activate(config: Config, adapter: str, scale: float, as_json: bool) -> None:
    """Decide with this adapter from now on; the daemon loads every resident pack again."""
    with Client(config.endpoint, key=config.key_file) as client:
        result = client.control(
            records.Control(task="adapter", adapter=absolute_if_path(adapter), scale=scale)
        )
    if as_json:
        render.as_json(result)
    else:
        render.residents(result["packs"])
