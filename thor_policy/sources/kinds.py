"""The source that a pack describes, of whichever kind, as the operator wants it reached.

Owns the settings of the operator over a pack's sources. Invariant: an override changes where and how a source
is reached, never what it describes, which attributes it has, or whether it is required. Opening a source
reads nothing. Any thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from thor_policy.config import SOURCE_OVERRIDE
from thor_policy.core.errors import ConfigError
from thor_policy.core.requests import Evaluation
from thor_policy.core.sources import Consulted
from thor_policy.policy.source_specs import SourceSpec, fault_of_url
from thor_policy.sources.pushed import PushedSource, PushedValues
from thor_policy.sources.source import Source, SourceError, entries_of, failure_of
from thor_policy.sources.sqlite import SqliteSource
from thor_policy.sources.table import TableSource


class Reach(Struct, frozen=True, kw_only=True):
    """How the operator wants sources reached: the settings `sources` and `source_hosts`."""

    overrides: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()

    def of(self, name: str) -> dict[str, str]:
        """The overrides of one source, by field."""
        matches = (SOURCE_OVERRIDE.fullmatch(entry) for entry in self.overrides)
        return {match[2]: match[3] for match in matches if match and match[1] == name}


def overridden(name: str, spec: SourceSpec, reach: Reach) -> SourceSpec:
    """The source with the operator's path, URL and timeout. Raises ConfigError for one that does not fit."""
    fields = reach.of(name)
    if "timeout_ms" in fields:
        if not fields["timeout_ms"].isdigit() or not 1 <= int(fields["timeout_ms"]) <= 60_000:
            raise ConfigError(f"sources: {name}.timeout_ms must be a whole number from 1 to 60000")
        spec = replace(spec, timeout_ms=int(fields["timeout_ms"]))
    if "path" in fields:
        if spec.table is not None:
            spec = replace(spec, table=replace(spec.table, path=fields["path"]))
        elif spec.sqlite is not None:
            spec = replace(spec, sqlite=replace(spec.sqlite, path=fields["path"]))
        else:
            raise ConfigError(f"sources: {name}.path is set, but {name} is a {spec.kind} source; remove it")
    if "url" in fields:
        if spec.http is None:
            raise ConfigError(f"sources: {name}.url is set, but {name} is a {spec.kind} source; remove it")
        if problem := fault_of_url(fields["url"]):
            raise ConfigError(f"sources: {name}.url {problem}")
        spec = replace(spec, http=replace(spec.http, url=fields["url"]))
    return spec


def consult(
    specs: Mapping[str, SourceSpec], evaluation: Evaluation, *, folder: Path, reach: Reach
) -> tuple[Consulted, ...]:
    """What the sources say of one question, one after another: for commands, without a daemon.

    Nothing was pushed here, so pushed sources fail. Raises ConfigError.
    """
    entries: list[Consulted] = []
    for name, declared in specs.items():
        spec = overridden(name, declared, reach)
        entity = evaluation.subject if spec.of == "subject" else evaluation.resource
        if spec.describes(evaluation):
            entries += look_up(name, spec, entity.type, entity.id, folder=folder, reach=reach)
    return tuple(entries)


def look_up(
    name: str, spec: SourceSpec, type: str, id: str, *, folder: Path, reach: Reach
) -> tuple[Consulted, ...]:
    """What one `overridden` source says of an entity. Raises ConfigError."""
    started_ns = time.monotonic_ns()
    with closing(open_source(name, spec, folder=folder, reach=reach, pushed=PushedValues(0, 0))) as source:
        try:
            answer = source.look_up(type, id, started_ns + spec.timeout_ms * 1_000_000)
        except SourceError as error:
            return (failure_of(name, spec, str(error), _since(started_ns)),)
    return entries_of(name, spec, answer, _since(started_ns))


def _since(started_ns: int) -> float:
    return round((time.monotonic_ns() - started_ns) / 1e6, 3)


def open_source(
    name: str,
    spec: SourceSpec,
    *,
    folder: Path,
    reach: Reach,
    pushed: PushedValues,
    environ: Mapping[str, str] = os.environ,
) -> Source:
    """The source of an `overridden` spec; relative paths begin at `folder`. Raises ConfigError."""
    if spec.table is not None:
        return TableSource(spec, spec.table, folder / spec.table.path)
    if spec.sqlite is not None:
        return SqliteSource(spec, spec.sqlite, folder / spec.sqlite.path)
    if spec.http is not None:
        from thor_policy.engine.http import read_key  # imports httpx, needed only here
        from thor_policy.sources.http import HttpSource

        key = read_key(reach.of(name).get("key", ""), environ, setting=f"sources ({name}.key)")
        return HttpSource(spec, spec.http, hosts=reach.hosts, key=key)
    assert spec.pushed is not None  # noqa: S101  a pack with a source of no kind is not loaded
    return PushedSource(name, spec, spec.pushed, pushed, time.monotonic_ns)
