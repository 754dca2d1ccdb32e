"""Pages of decisions: live, search, and one with its trace.

Owns the filters that a page has. Invariant: a page has at most `MOST` decisions, whatever the query says. The
event loop's thread; reading happens on others.
"""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from thor_policy.core.errors import JournalError
from thor_policy.core.requests import RISKS
from thor_policy.gateway.problems import Problem
from thor_policy.journal.reader import Reader, Record
from thor_policy.trace.reading import Trace, read_trace
from thor_policy.web import drawing
from thor_policy.web.visits import READERS, Visit, go_to

#: Decisions of one page, and edges of the chains of one decision.
MOST, _MOST_DEPTH = 50, 6
#: Filters of `Reader.decisions` that are texts.
TEXTS = ("actor", "entity", "outcome", "tier", "type", "session", "since", "until", "reason_code")
#: Filters with a list to choose from.
CHOICES: dict[str, tuple[str, ...]] = {
    "risk": RISKS,
    "status": ("SUCCESS", "FAILURE", "PENDING"),
    "trace_status": ("active", "under_review", "superseded", "overturned"),
}
#: Filters that are yes or no.
FLAGS = ("reviewed", "correct", "tests")


async def live(visit: Visit) -> Response:
    """The newest decisions, and those to come. Who may not read them begins at the approvals."""
    if not visit.may(*READERS):
        return go_to("/approvals")

    def read(reader: Reader) -> tuple[list[Record], int]:
        return reader.decisions(limit=MOST), reader.newest_seq()

    rows, seq = await visit.read(read)
    after = max([0, *(row["seq"] for row in rows)]) or seq
    return visit.page("live.html", rows=rows, after=after)


async def search(visit: Visit) -> Response:
    """Decisions by words and filters, newest first; of an htmx request the results alone."""
    filters, words = _filters(visit.query), visit.query.get("words", "").strip()
    rows, problem = [], ""
    try:
        rows = await visit.read(lambda reader: _found_in(reader, words, filters, visit.query.get("before")))
    except JournalError as error:
        problem = str(error)
    more = len(rows) > MOST
    rows = rows[:MOST]
    query = {name: value for name, value in visit.query.items() if value and name != "before"}
    part = any(name == b"hx-request" for name, _ in visit.scope["headers"])
    return visit.page(
        "_results.html" if part else "decisions.html",
        status=400 if problem and not part else 200,
        rows=rows,
        problem=problem,
        query=query,
        older={**query, "before": rows[-1]["decision_id"]} if more else None,
        texts=TEXTS,
        choices=CHOICES,
        flags=FLAGS,
    )


def _filters(query: dict[str, str]) -> dict[str, Any]:
    filters: dict[str, Any] = {name: query[name] for name in (*TEXTS, *CHOICES) if query.get(name)}
    for name in FLAGS:
        if (value := query.get(name)) in ("yes", "no"):
            filters[name] = value == "yes"
    return filters


def _found_in(reader: Reader, words: str, filters: dict[str, Any], before: str | None) -> list[Record]:
    """One more than a page. Words are those of the summaries; with them, filters choose among the matches."""
    if not words:
        return reader.decisions(limit=MOST + 1, before=before or None, **filters)
    matching = [row["decision_id"] for row in reader.search(words.split()[:20], limit=1_000)]
    if not filters and before is None:
        return [row for id in matching[: MOST + 1] if (row := reader.get(id)) is not None]
    kept: list[Record] = []
    wanted, last = set(matching), before or None
    while len(kept) <= MOST and wanted:
        page = reader.decisions(limit=500, before=last, **filters)
        kept += [row for row in page if row["decision_id"] in wanted]
        wanted -= {row["decision_id"] for row in page}
        if len(page) < 500:
            break
        last = page[-1]["decision_id"]
    return kept[: MOST + 1]


async def decision(visit: Visit) -> Response:
    """One decision: why it was made, what it rests on, and what became of it."""
    try:
        depth = min(_MOST_DEPTH, max(0, int(visit.query.get("depth") or "2")))
    except ValueError:
        raise Problem(400, "bad_request", f"depth: must be a number from 0 to {_MOST_DEPTH}") from None
    at = visit.query.get("at") or None

    def read(reader: Reader) -> tuple[Record, Trace] | None:
        row = reader.get(visit.path["id"][:256])
        if row is None:
            return None
        return row, read_trace(reader, row["decision_id"], at=at, depth=depth)

    try:
        read_rows = await visit.read(read)
    except JournalError as error:
        if at is None:
            raise
        raise Problem(400, "bad_request", str(error)) from error
    if read_rows is None:
        raise Problem(404, "not_found", "there is no such decision in the journal")
    row, trace = read_rows
    probabilities = drawing.bars({name: round(share * 1_000) for name, share in row["probabilities"].items()})
    return visit.page(
        "decision.html",
        row=row,
        trace=trace,
        graph=drawing.graph(trace),
        probabilities=probabilities,
        depth=depth,
    )
