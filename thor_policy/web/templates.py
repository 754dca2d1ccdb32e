"""Templates of the pages: how values become text, and what every reply of a page has.

Owns the Jinja environment, its filters and the headers of a page. Invariant: every value is escaped and
passes `core.escape`, whatever a template does; no page runs a script or a style that is not a file of this
package, and none asks another host. Any thread.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import Response

from thor_policy.core.escape import in_html
from thor_policy.core.requests import Json

HERE = Path(__file__).parent
#: Characters of a value that a page shows, and rows of the members of an object.
MAX_SHOWN, MAX_MEMBERS = 2_000, 200
#: The policy of every page: files of this origin only.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with no-referrer a browser sends `Origin: null` with forms
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}


def shown(value: Json, most: int = MAX_SHOWN) -> str:
    """A value as text of at most `most` characters; strings as they are, other values as JSON."""
    if value is None:
        return "–"
    if value is True or value is False:
        return "yes" if value else "no"
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


def members(value: Json, depth: int = 4) -> list[tuple[str, str]]:
    """The members of an object by dotted name, with their values as text; at most `MAX_MEMBERS`."""
    rows: list[tuple[str, str]] = []
    for name, text in _members(value, "", depth):
        if len(rows) == MAX_MEMBERS:
            return [*rows, ("…", "more members are not shown")]
        rows.append((shown(name, 200), text))
    return rows


def _members(value: Json, prefix: str, depth: int) -> Iterator[tuple[str, str]]:
    if not isinstance(value, Mapping):
        if value is not None:
            yield prefix or "value", shown(value)
        return
    for name, member in value.items():
        place = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(member, Mapping) and depth > 1:
            yield from _members(member, place, depth - 1)
        else:
            yield place, shown(member)


def when(text: str | None) -> str:
    """A stored time to the second: `2026-07-01 12:00:00`."""
    return "–" if not text else text[:19].replace("T", " ")


def percent(share: float | None) -> str:
    """A share in per cent."""
    return "–" if share is None else f"{100 * share:.0f} %"


def number(value: float | None) -> str:
    """A number with thousands in groups; at most two decimals."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}".rstrip("0").rstrip(".")


def words(name: str) -> str:
    """A name of a member as words: `free_mb` becomes `free mb`."""
    return name.replace("_", " ")


def outcome_kind(outcome: str | None) -> str:
    """The class of an outcome's colour: allow, deny or between."""
    return outcome if outcome in ("allow", "deny") else "between"


def with_query(path: str, **values: Any) -> str:
    """A path with a query of the values that are there."""
    given = {name: value for name, value in values.items() if value not in (None, "")}
    return f"{path}?{urlencode(given)}" if given else path


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        finalize=in_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "shown": shown,
        "members": members,
        "when": when,
        "percent": percent,
        "number": number,
        "words": words,
        "kind": outcome_kind,
        "part": lambda text: quote(str(text), safe=""),
    }
    environment.globals |= {"with_query": with_query}
    return environment


_TEMPLATES = _environment()


def render(template: str, **values: Any) -> str:
    """A template with its values; lone surrogates are replaced."""
    text = _TEMPLATES.get_template(template).render(**values)
    return text.encode("utf-8", "replace").decode("utf-8")


def html(content: str, status: int = 200) -> Response:
    """A page as a response."""
    return Response(content, status, HEADERS, "text/html; charset=utf-8")


def with_own_style(page: str) -> Response:
    """A whole page of another part with one `<style>` of its own, which is allowed by its digest."""
    style = page.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    response = html(page.replace("<main>", '<main>\n<p class="small"><a href="/suites">Suites</a></p>', 1))
    response.headers["content-security-policy"] = _POLICY.replace(
        "style-src 'self'", f"style-src 'sha256-{digest}'"
    )
    return response
