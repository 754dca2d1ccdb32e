"""The page of `compliance --format html`, written row by row.

Owns its markup. Invariant: the page is self-contained (its security policy forbids scripts and the network),
and every text of the journal is escaped. Pure but for the writing. Main thread.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TextIO

from thor_policy.core.escape import visible
from thor_policy.core.requests import Json
from thor_policy.journal.reader import Record

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Compliance: decisions of the type {type}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 24px auto; max-width: 1400px; padding: 0 20px; overflow-wrap: anywhere;
  font: 14px/1.45 system-ui, "Noto Sans", "DejaVu Sans", sans-serif; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ border: 1px solid #8886; padding: 6px 8px; text-align: left; vertical-align: top; }}
th {{ position: sticky; top: 0; background: Canvas; }}
dt {{ font-weight: 600; }} dd {{ margin: 0 0 6px; }}
small {{ opacity: .75; }}
</style>
</head>
<body>
<h1>Decisions of the type {type}</h1>
<p>Recorded from {since} until {until}, newest first.</p>
<table>
<thead><tr><th>time</th><th>decision</th><th>policy in force</th><th>approvals</th><th>recorded by</th>
<th>later fate</th></tr></thead>
<tbody>
"""


def begin(to: TextIO, *, type: str, since: str, until: str) -> None:
    """Write what stands above the rows."""
    to.write(_HEAD.format(type=_text(type), since=_text(since), until=_text(until)))


def row(to: TextIO, record: Record) -> None:
    """Write one row."""
    policy = record["policy"]
    what = [
        f"<b>{_text(record['outcome'])}</b>",
        *([f"instead of {_text(record['lifted'])}"] if record["lifted"] else []),
        *([f"on {_text(record['entity'])}"] if record["entity"] else []),
        f"<small>{_text(record['actor'] or '(erased)')}, {_text(record['id'])}</small>",
    ]
    in_force = [] if policy is None else [_policy(policy)]
    people = [_line(_approval(approval)) for approval in record["approvals"]]
    fate = [_line(_state(state)) for state in record["states"]]
    cells = ([_text(record["at"])], what, in_force, people, [_text(record["recorded_by"] or "-")], fate)
    to.write("<tr>" + "".join(f"<td>{'<br>'.join(cell)}</td>" for cell in cells) + "</tr>\n")


def end(to: TextIO, facts: Mapping[str, Json]) -> None:
    """Write what stands below the rows."""
    to.write("</tbody>\n</table>\n<h2>Statement</h2>\n<dl>\n")
    for name, value in facts.items():
        to.write(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>\n")
    to.write("</dl>\n</body>\n</html>\n")


def _policy(policy: Mapping[str, Json]) -> str:
    name = _text(f"{policy['name']} {policy['version']}")
    first, last = policy["effective_from"], policy["effective_to"]
    in_force = f", active {_text(first)} to {_text(last or 'now')}" if first else ""
    return f"{name}{in_force}<br><small>{_text(policy['sha256'])}</small>"


def _approval(approval: Mapping[str, Json]) -> list[str]:
    named = {"as": approval["role"], "by": approval["channel"], "evidence": approval["evidence"]}
    return [
        f"{approval['verdict']}: {approval['approver'] or '(erased)'}",
        *(f"{name} {value}" for name, value in named.items() if value),
        str(approval["at"]),
        f"recorded by {approval['recorded_by'] or '-'}",
    ]


def _state(state: Mapping[str, Json]) -> list[str]:
    named = {"by": state["by"], "because": state["because"], "recorded by": state["recorded_by"]}
    return [
        str(state["status"]),
        str(state["at"]),
        *(f"{name} {value}" for name, value in named.items() if value),
    ]


def _line(parts: list[str]) -> str:
    return ", ".join(map(_text, parts))


def _text(value: Json) -> str:
    return html.escape(visible(str(value)))
