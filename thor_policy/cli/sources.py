"""`sources`: the sources of a pack, and what one of them says of an entity.

Owns the commands; `sources.kinds` looks up. No daemon is asked, so pushed values are not known here.
"""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import click
import msgspec

from thor_policy.cli import render
from thor_policy.cli.options import as_json, configured
from thor_policy.config import Config, data_path
from thor_policy.core.errors import ConfigError
from thor_policy.policy import pack_files
from thor_policy.policy.source_specs import SourceSpec
from thor_policy.sources.kinds import Reach, look_up, open_source, overridden
from thor_policy.sources.pushed import PushedValues


@click.group()
def sources() -> None:
    """List the sources of a pack, and look entities up in them."""


@sources.command(name="list")
@configured("pack")
@as_json
def list_sources(config: Config, as_json: bool) -> None:
    """List the sources of the pack, as the settings want them reached."""
    specs, _ = _of_pack(config)
    if as_json:
        render.as_json({name: msgspec.to_builtins(spec) for name, spec in specs.items()})
        return
    render.table(
        ("source", "kind", "of", "types", "required", "place", "attributes"),
        [
            (
                name,
                spec.kind,
                spec.of,
                ", ".join(spec.types) or "any",
                "yes" if spec.required else "no",
                _place(spec),
                ", ".join(spec.attributes),
            )
            for name, spec in specs.items()
        ],
        clipped=(5, 6),
    )


@sources.command()
@configured("pack")
@click.argument("name", help="Name of the source.")
@click.option("--type", "type_", default="user", show_default=True, help="Type of the subject or resource.")
@click.option("--id", "id_", required=True, help="Its id.")
@as_json
@click.pass_context
def test(ctx: click.Context, config: Config, name: str, type_: str, id_: str, as_json: bool) -> None:
    """Look one entity up, as the daemon would.

    Exit status 1 if the source gives no answer.
    """
    spec, folder = _source(config, name)
    entries = look_up(name, spec, type_, id_, folder=folder, reach=_reach(config))
    if as_json:
        render.as_json(msgspec.to_builtins(entries))
    else:
        for entry in entries:
            element = entry.element or "answer"
            value = entry.error or (entry.value if entry.element else "no entry")
            shown = {element: value, "took_ms": entry.took_ms, "fresh_at": entry.fresh_at}
            shown |= {"quality": entry.quality}
            render.pairs({key: value for key, value in shown.items() if value is not None})
    ctx.exit(1 if any(entry.error for entry in entries) else 0)


@sources.command()
@configured("pack")
@click.argument("name", help="Name of the source.")
@click.option("--type", "type_", default="user", show_default=True, help="Type of the entities.")
@as_json
def ids(config: Config, name: str, type_: str, as_json: bool) -> None:
    """List the ids of all entities of a type that a source knows."""
    spec, folder = _source(config, name)
    opened = open_source(name, spec, folder=folder, reach=_reach(config), pushed=PushedValues(0, 0))
    with closing(opened) as source:
        listing = source.listing(type_, time.monotonic_ns() + spec.timeout_ms * 1_000_000)
    if as_json:
        render.as_json(listing)
    else:
        for id_ in listing:
            render.line(id_)


def _of_pack(config: Config) -> tuple[dict[str, SourceSpec], Path]:
    """The sources of the pack in the settings, as they are reached, and the pack's directory."""
    pack = pack_files.load(pack_files.find(config.pack, data_path("prompts")))
    specs = pack.manifest.sources
    return {name: overridden(name, spec, _reach(config)) for name, spec in specs.items()}, pack.path


def _source(config: Config, name: str) -> tuple[SourceSpec, Path]:
    specs, folder = _of_pack(config)
    if name not in specs:
        raise ConfigError(f"the pack has no source {name!r}; it has {', '.join(specs) or 'none'}")
    return specs[name], folder


def _reach(config: Config) -> Reach:
    return Reach(overrides=config.sources, hosts=config.source_hosts)


def _place(spec: SourceSpec) -> str:
    """Where the values come from."""
    if spec.http is not None:
        return spec.http.url
    file = spec.table or spec.sqlite
    return file.path if file is not None else "pushed"
