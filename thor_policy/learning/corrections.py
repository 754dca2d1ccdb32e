"""The analysis of corrections: figures, and one HTML page that shows them.

Owns the distributions and rates of corrections, and the page. The page shows names and texts of requests, so
Jinja escapes everything. Invariant: the page is one file that loads and runs nothing; its figures are those
of the JSON beside it. Read-only on the journal; any thread.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime

from jinja2 import Environment
from msgspec import Struct

from thor_policy.core.escape import in_html
from thor_policy.core.requests import Json
from thor_policy.journal import statistics
from thor_policy.journal.reader import Reader, Record
from thor_policy.suites.intervals import rate

#: Rows of a distribution; further values are only counted.
_MOST_ROWS = 30


class Change(Struct, frozen=True, kw_only=True):
    """One decision and its correction, without names of people."""

    decided: str
    corrected: str
    actor_type: str
    classification: str | None
    risk: str | None
    clauses: tuple[str, ...]
    model: str | None
    pack: str | None

    @property
    def pattern(self) -> str:
        """`allow -> deny`; `deny (reasoning)` where only the reasoning was corrected."""
        same = self.decided == self.corrected
        return f"{self.decided} (reasoning)" if same else f"{self.decided} -> {self.corrected}"


class Rate(Struct, frozen=True, kw_only=True):
    """How often reviewers corrected decisions with this value.

    `systematic`: more often than all reviewed decisions, beyond chance (the lower end of a 95 % Wilson
    interval lies above the share of all).
    """

    value: str
    reviewed: int
    corrected: int
    systematic: bool
    most_often: str | None


#: Tables of the page, and the values of a change that each table counts by.
_BY: dict[str, Callable[[Change], tuple[str | None, ...]]] = {
    "actor type": lambda change: (change.actor_type,),
    "clause": lambda change: change.clauses or (None,),
    "model": lambda change: (change.model,),
    "pack": lambda change: (change.pack,),
}


def analysis(reader: Reader, changes: Sequence[Change]) -> dict[str, Json]:
    """Distributions of corrections, corrections by value, and figures of the whole journal.

    `changes` are all corrections that count. Each row of a distribution is (value, count, share).
    """
    columns: dict[str, Callable[[Change], str | None]] = {
        "decided": lambda change: change.decided,
        "corrected to": lambda change: change.corrected,
        "classification": lambda change: change.classification,
        "risk": lambda change: change.risk,
        "change": lambda change: change.pattern,
    }
    return {
        "changes": len(changes),
        "distributions": {
            name: _distribution([value(change) for change in changes]) for name, value in columns.items()
        },
        "by": {name: _by(changes, values) for name, values in _BY.items()},
        "monitoring": {
            "volume and success by actor": statistics.breakdown(reader, "actor"),
            "latency by model, ms": statistics.latency(reader),
            "confidence against outcome": statistics.confidence(reader),
        },
    }


def _distribution(values: Sequence[str | None]) -> list[Json]:
    counts = Counter("unknown" if value is None else value for value in values)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = [[value, count, count / len(values)] for value, count in ordered[:_MOST_ROWS]]
    if rest := sum(count for _, count in ordered[_MOST_ROWS:]):
        rows.append([f"{len(ordered) - _MOST_ROWS} others", rest, rest / len(values)])
    return rows


def _by(changes: Sequence[Change], values: Callable[[Change], tuple[str | None, ...]]) -> list[Json]:
    """For each value the number of corrections, and the most frequent change."""
    patterns: dict[str, Counter[str]] = {}
    for change in changes:
        for value in values(change):
            patterns.setdefault("unknown" if value is None else value, Counter())[change.pattern] += 1
    ordered = sorted(patterns.items(), key=lambda item: (-item[1].total(), item[0]))
    return [
        {
            "value": value,
            "corrections": counts.total(),
            "most often": min(counts, key=lambda pattern: (-counts[pattern], pattern)),
        }
        for value, counts in ordered[:_MOST_ROWS]
    ]


# ---------------------------------------------------------------- rates


def is_corrected(row: Record) -> bool:
    """True if the newest review of a decision (a row of `decisions`) wants another outcome."""
    return row["review_decision"] is not None and row["review_decision"] != row["decision"]


def rates_of(reviewed: Sequence[Record], values: Callable[[Record], Sequence[str]]) -> tuple[Rate, ...]:
    """For each value how often its decisions were corrected, most often first."""
    overall = sum(map(is_corrected, reviewed)) / len(reviewed) if reviewed else 0.0
    rows_of: defaultdict[str, list[Record]] = defaultdict(list)
    for row in reviewed:
        for value in values(row):
            rows_of[value].append(row)
    rates = []
    for value, rows in rows_of.items():
        wrong = Counter(f"{row['decision']} -> {row['review_decision']}" for row in rows if is_corrected(row))
        rates.append(
            Rate(
                value=value,
                reviewed=len(rows),
                corrected=wrong.total(),
                systematic=wilson_low(wrong.total(), len(rows)) > overall,
                most_often=min(wrong, key=lambda change: (-wrong[change], change)) if wrong else None,
            )
        )
    return tuple(sorted(rates, key=lambda rate: (-rate.corrected, rate.value)))


def wilson_low(hits: int, trials: int) -> float:
    """The lower end of the 95 % Wilson interval of a share (Wilson 1927)."""
    return rate(hits, trials).low


def trend_of(reviewed: Sequence[Record]) -> tuple[tuple[str, int, int], ...]:
    """For each ISO week of decisions: how many were reviewed, and how many of those were corrected."""
    weeks: defaultdict[str, list[bool]] = defaultdict(list)
    for row in reviewed:
        year, week, _ = datetime.fromisoformat(row["timestamp"]).isocalendar()
        weeks[f"{year}-W{week:02}"].append(is_corrected(row))
    return tuple((week, len(wrong), sum(wrong)) for week, wrong in sorted(weeks.items()))


# ---------------------------------------------------------------- the page


def page(analysis: dict[str, Json]) -> str:
    """The analysis as one HTML page."""
    environment = Environment(autoescape=True, finalize=in_html, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_PAGE).render(analysis) + "\n"


_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Corrections of {{ pack.name }} {{ pack.version }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; } h3 { font-size: 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1rem; }
td, th { padding: .15rem .8rem .15rem 0; text-align: left; }
th { border-bottom: 1px solid #999; font-weight: 600; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.bar { display: inline-block; height: .7rem; background: #4a7a9c; } code { font-size: .85em; }
</style>
</head>
<body>
<h1>Corrections of {{ pack.name }} {{ pack.version }}</h1>
<p>Exported {{ made_at }}. {{ changes }} decisions were corrected, {{ export.corrections }} of them are here
({{ export.train }} for training, {{ export.test }} held out, {{ export.groups }} groups of near-duplicates,
the largest of {{ export.largest_group }}). Pack <code>{{ pack.sha256 }}</code>.</p>
{% if export.left_out %}
<table><tr><th>left out</th><th>reviews</th></tr>
{% for reason, count in export.left_out.items() %}
<tr><td>{{ reason }}</td><td class="n">{{ count }}</td></tr>
{% endfor %}
</table>
{% endif %}
<table><tr><th>file</th><th>lines</th><th>sha256</th></tr>
{% for name, lines in export.files.items() %}
<tr><td>{{ name }}</td><td class="n">{{ lines }}</td><td><code>{{ sha256[name] }}</code></td></tr>
{% endfor %}
</table>
<h2>Distributions</h2>
{% for name, rows in distributions.items() %}
<h3>{{ name }}</h3>
<table>
{% for value, count, share in rows %}
<tr><td>{{ value }}</td><td class="n">{{ count }}</td>
<td><span class="bar" style="width: {{ '%.1f' % (share * 200) }}px"></span>
{{ '%.0f' % (share * 100) }} %</td></tr>
{% endfor %}
</table>
{% endfor %}
<h2>Where corrections gather</h2>
{% for name, rows in by.items() %}
<table><tr><th>{{ name }}</th><th>corrections</th><th>most often</th></tr>
{% for row in rows %}
<tr><td>{{ row.value }}</td><td class="n">{{ row.corrections }}</td><td>{{ row["most often"] }}</td></tr>
{% endfor %}
</table>
{% endfor %}
<h2>The journal as a whole</h2>
{% for name, rows in monitoring.items() if rows %}
<h3>{{ name }}</h3>
<table><tr>{% for column in rows[0] %}<th>{{ column.replace("_", " ") }}</th>{% endfor %}</tr>
{% for row in rows %}
<tr>{% for cell in row.values() %}
<td class="n">{{ "-" if cell is none else "%.3g" % cell if cell is float else cell }}</td>
{% endfor %}</tr>
{% endfor %}
</table>
{% endfor %}
</body>
</html>
"""
