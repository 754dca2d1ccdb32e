"""The section `sources` of pack.yaml: where attributes of a subject or resource come from.

Owns the types of the section and what is wrong with one. Invariant: a source names exactly one place, and
each attribute that rules may read has a declared type. Nothing here opens anything. Pure; any thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, TypeAlias
from urllib.parse import urlsplit

from msgspec import Meta, Struct
from msgspec.structs import replace

from thor_policy.core.requests import Evaluation, Json
from thor_policy.core.sources import Consulted, Described
from thor_policy.policy.expressions import MemberType
from thor_policy.policy.tokens import RESERVED

#: The kinds of places, by the member that describes each.
KINDS = ("table", "sqlite", "http", "pushed")
#: The name of a source or an attribute.
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
#: A dotted path into what a source gives: names of members, and numbers of items.
PATH = re.compile(r"[^.\s]+(?:\.[^.\s]+)*")
#: What a URL or query may contain of the entity.
_PARAMETER = re.compile(r"\{([^{}]*)\}")
_PARAMETERS = ("id", "type")

Path: TypeAlias = Annotated[str, Meta(min_length=1, max_length=4_096)]


class Attribute(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A value of a source: its type, and `at`, its dotted path in what the source gives; else its name."""

    type: MemberType
    at: str | None = None


class Table(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of rows: .yaml, .csv or .jsonl; a relative `path` begins at the pack's directory.

    `key` is the column of the entity's id, `type_key` that of its type; without it a row is of every type.
    """

    path: Path
    key: str = "id"
    type_key: str | None = None


class Sqlite(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A query with the parameters `:id` and `:type`, on a file that is opened read-only.

    The first row counts; its columns are the members. `listing` is a query whose first column has the ids.
    """

    path: Path
    query: Annotated[str, Meta(min_length=1)]
    listing: str | None = None


class Http(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A JSON endpoint: a URL with `{id}` and `{type}`, which are percent-escaped.

    A redirect is followed to the URL's own host and to `hosts`, over https only if the URL is https. An
    answer counts for `ttl_s` seconds and has at most `max_bytes` bytes. `listing` is the URL of a JSON list
    of ids.
    """

    url: Annotated[str, Meta(min_length=1, max_length=2_048)]
    hosts: tuple[str, ...] = ()
    ttl_s: Annotated[float, Meta(ge=0, le=86_400)] = 0.0
    max_bytes: Annotated[int, Meta(ge=1, le=4_194_304)] = 65_536
    listing: str | None = None


class Pushed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Values that programs with the role `push` send; none counts for longer than `max_ttl_s` seconds."""

    max_ttl_s: Annotated[float, Meta(gt=0, le=31_536_000)] = 3_600.0


class SourceSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A source: what it describes, its attributes, and one of `table`, `sqlite`, `http` and `pushed`.

    It describes the subject or the resource of a question (`of`), if its type is one of `types` (empty: any).
    `system` is what records call it (default: its name). If a `required` source fails, the answer is the
    strictest outcome; if another fails, its attributes are absent. `timeout_ms` bounds a look-up; `workers`
    is how many run at once. `fresh_at` and `quality` are dotted paths to what the source says of its values.
    """

    of: Described
    attributes: Annotated[dict[str, Attribute], Meta(min_length=1)]
    types: tuple[str, ...] = ()
    system: str | None = None
    required: bool = True
    timeout_ms: Annotated[int, Meta(ge=1, le=60_000)] = 250
    workers: Annotated[int, Meta(ge=1, le=16)] = 2
    fresh_at: str | None = None
    quality: str | None = None
    table: Table | None = None
    sqlite: Sqlite | None = None
    http: Http | None = None
    pushed: Pushed | None = None

    @property
    def kind(self) -> str:
        """`table`, `sqlite`, `http` or `pushed`."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    def describes(self, evaluation: Evaluation) -> bool:
        """True if the question's subject or resource is of a type that the source knows."""
        entity = evaluation.subject if self.of == "subject" else evaluation.resource
        return not self.types or entity.type in self.types


def stated(
    specs: Mapping[str, SourceSpec], values: Mapping[str, Mapping[str, Json]]
) -> tuple[Consulted, ...]:
    """Values that an example or a trial states, as if sources had said them."""
    entries = []
    for name, attributes in values.items():
        if name in specs:
            spec = specs[name]
            whole = Consulted(source=name, of=spec.of, system=spec.system or name)
            entries.append(whole)
            entries += [replace(whole, element=key, value=value) for key, value in attributes.items()]
    return tuple(entries)


def faults_of(name: str, spec: SourceSpec) -> Iterator[tuple[str, str]]:
    """What is wrong with a source: the place of each fault below it, and the message."""
    if not NAME.fullmatch(name) or name in RESERVED:
        yield (
            "",
            "the name must be lower case letters, digits and '_', begin with a letter, be no word of CEL",
        )
    places = [kind for kind in KINDS if getattr(spec, kind) is not None]
    if len(places) != 1:
        given = f"it has {' and '.join(places)}" if places else "it has none"
        yield "", f"must have exactly one of {', '.join(KINDS)}; {given}"
    for attribute, declared in spec.attributes.items():
        if not NAME.fullmatch(attribute) or attribute in RESERVED:
            message = (
                "the name must be lower case letters, digits and '_', begin with a letter, be no word of CEL"
            )
            yield f".attributes.{attribute}", message
        if declared.at is not None and not PATH.fullmatch(declared.at):
            yield f".attributes.{attribute}.at", f"{declared.at!r} must be a dotted path, as limits.discount"
    for member in ("fresh_at", "quality"):
        path = getattr(spec, member)
        if path is not None and not PATH.fullmatch(path):
            yield f".{member}", f"{path!r} must be a dotted path, as meta.updated_at"
    if spec.table is not None and not spec.table.path.endswith((".yaml", ".yml", ".csv", ".jsonl")):
        yield ".table.path", f"{spec.table.path!r} must end with .yaml, .yml, .csv or .jsonl"
    if spec.sqlite is not None and not re.search(r":id\b", spec.sqlite.query):
        yield ".sqlite.query", "must use the parameter :id, as in SELECT tier FROM accounts WHERE id = :id"
    if spec.http is not None:
        for member in ("url", "listing"):
            url = getattr(spec.http, member)
            if url is not None and (problem := fault_of_url(url, listing=member == "listing")):
                yield f".http.{member}", problem


def fault_of_url(url: str, *, listing: bool = False) -> str | None:
    """What is wrong with the URL of an endpoint; None if nothing is."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return "must be a URL, as https://host/users/{id}"
    if parts.username is not None or parts.password is not None:
        return "must not have a user or password; name the place of a key in the setting sources"
    if parts.scheme not in ("http", "https") or not host or parts.fragment:
        return "must be a URL, as https://host/users/{id}"
    if "{" in parts.netloc or "{" in parts.scheme:
        return "the host must not depend on the request; use {id} in the path or the query"
    unknown = [name for name in _PARAMETER.findall(url) if name not in _PARAMETERS]
    if unknown:
        return f"has the parameter {{{unknown[0]}}}; there are {{id}} and {{type}}"
    if not listing and "{id}" not in url:
        return "must use the parameter {id}, as in https://host/users/{id}"
    return None
