"""What all sources have in common: the seam, and how a document becomes attributes.

Owns `Source`, `Found` and the checks of what a source gives. Invariant: what `found_in` returns has only
attributes of their declared types and fits the limits; anything else is a SourceError that names the
attribute and never its value, because errors are recorded where nothing can be erased. Pure; any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from thor_policy.core import strict_json
from thor_policy.core.errors import ThorPolicyError
from thor_policy.core.requests import Json, is_time
from thor_policy.core.sources import Consulted
from thor_policy.policy.expressions import as_type
from thor_policy.policy.source_specs import SourceSpec

#: Most bytes, as JSON, of the attributes of one look-up: each decision records them.
MAX_VALUES_BYTES = 16_384
#: Most entities that a listing returns.
MAX_LISTED = 100_000


class SourceError(ThorPolicyError):
    """A source gave no answer, or none that counts."""


class Found(Struct, frozen=True, kw_only=True):
    """The attributes of an entity. `fresh_at`, RFC 3339, is when they were true; `quality` is from 0 to 1."""

    values: dict[str, Json]
    fresh_at: str | None = None
    quality: float | None = None
    cached: bool = False


class Source(Protocol):
    """A place that knows attributes of entities. Threads of its workers call it, several at once.

    `problem` says what is wrong with it though it still answers; None if nothing is.
    """

    @property
    def problem(self) -> str | None: ...

    def look_up(self, type: str, id: str, deadline_ns: int) -> Found | None:
        """The attributes of an entity; None if there is none.

        Raises SourceError, also if no answer came by `deadline_ns` (monotonic nanoseconds).
        """

    def listing(self, type: str, deadline_ns: int) -> list[str]:
        """The ids of all entities of a type, sorted, at most `MAX_LISTED`. Raises SourceError."""

    def close(self) -> None:
        """Release what it holds; no look-up runs any more, or none whose answer counts."""


def found_in(
    spec: SourceSpec, document: Json, *, fresh_at: str, cached: bool = False, text: bool = False
) -> Found:
    """The declared attributes in what a source gave; null is absent.

    `fresh_at` is the time of values that state none. `text`: every value is a text, as in a CSV file, and is
    read as its declared type. Raises SourceError.
    """
    values: dict[str, Json] = {}
    for name, attribute in spec.attributes.items():
        value = value_at(document, attribute.at or name)
        if text and isinstance(value, str):
            value = _read_text(name, value, attribute.type)
        if value is None:
            continue
        typed = as_type(value, attribute.type)
        if typed is None:
            raise SourceError(f"the attribute {name} is not of the type {attribute.type}")
        values[name] = typed
    try:
        strict_json.check(values)
        size = len(strict_json.encode(values))
    except strict_json.JsonError as error:
        raise SourceError(f"the attribute {error.place.partition('.')[0]} is no value of JSON") from None
    if size > MAX_VALUES_BYTES:
        raise SourceError(f"the attributes have {size} bytes; the limit is {MAX_VALUES_BYTES}")
    stated = (value_at(document, spec.fresh_at) if spec.fresh_at else None) or None
    if stated is not None and not (isinstance(stated, str) and len(stated) <= 64 and is_time(stated)):
        raise SourceError(f"{spec.fresh_at} is no RFC 3339 time")
    return Found(values=values, fresh_at=stated or fresh_at, quality=_quality(spec, document), cached=cached)


def _quality(spec: SourceSpec, document: Json) -> float | None:
    quality = value_at(document, spec.quality) if spec.quality else None
    if quality == "":
        return None
    if isinstance(quality, str):
        try:
            quality = float(quality)
        except ValueError:
            quality = -1
    if quality is None:
        return None
    if isinstance(quality, bool) or not isinstance(quality, int | float) or not 0 <= quality <= 1:
        raise SourceError(f"{spec.quality} is no number from 0 to 1")
    return float(quality)


def entries_of(name: str, spec: SourceSpec, answer: Found | None, took_ms: float) -> tuple[Consulted, ...]:
    """What is recorded of a look-up that did not fail: each value, or that there is none."""
    whole = Consulted(
        source=name,
        of=spec.of,
        system=spec.system or name,
        took_ms=took_ms,
        fresh_at=answer.fresh_at if answer else None,
        quality=answer.quality if answer else None,
        cached=answer is not None and answer.cached,
    )
    if answer is None or not answer.values:
        return (whole,)
    return tuple(replace(whole, element=element, value=value) for element, value in answer.values.items())


def failure_of(name: str, spec: SourceSpec, problem: str, took_ms: float) -> Consulted:
    """What is recorded of a look-up that failed."""
    return Consulted(source=name, of=spec.of, system=spec.system or name, took_ms=took_ms, error=problem)


def value_at(document: Json, path: str) -> Json:
    """The value at a dotted path of names and numbers of items; None if there is none."""
    value = document
    if isinstance(value, Mapping) and path in value:  # a column whose name has a dot
        return value[path]
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isascii() and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def _read_text(name: str, text: str, kind: str) -> Json:
    """A cell of text as its declared type; None for an empty cell."""
    if text == "":
        return None
    try:
        if kind == "int":
            return int(text) if text.isascii() else text
        if kind == "number":
            return float(text)
    except ValueError:
        raise SourceError(f"the attribute {name} is not of the type {kind}") from None
    if kind == "bool":
        return {"true": True, "false": False}.get(text.lower(), text)
    return text


def at_time(at: float) -> str:
    """Unix seconds as RFC 3339 in UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def listed(ids: Iterable[Json]) -> list[str]:
    """Sorted ids. Raises SourceError for too many, or one that is no text."""
    seen: set[str] = set()
    for entry in ids:
        if isinstance(entry, bool) or not isinstance(entry, str | int):
            raise SourceError("the listing holds something that is no id; ids are texts or whole numbers")
        seen.add(str(entry))
        if len(seen) > MAX_LISTED:
            raise SourceError(f"the listing has more than {MAX_LISTED} ids")
    return sorted(seen)
