"""A made work history: two weeks of goals, decisions and actions, recorded at known times."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.build import NOON, by_rule, record, sent
from thor_policy.core import records
from thor_policy.core.decisions import Decision
from thor_policy.journal.events import Event
from thor_policy.journal.reader import Reader
from thor_policy.trace.trace_graph import newest
from thor_policy.trace.work_graph import GraphView, whole

DAY_S = 86_400
#: When the pulse of the history is taken.
NOW = NOON + 14 * DAY_S
#: The id of the recorded decision of the history.
TRACE = "018f-decided"
#: Titles that end a string, an element, a line or a label in some format.
HOSTILE = {
    "quote": '"]; evil [label="x',
    "backslash": "ends in a backslash \\",
    "backslash and quote": 'a\\"b\\\\"',
    "escapes of labels": "\\N \\G \\l \\n",
    "line ends": "a\nevil --> b\r\nc\u2028d",
    "comment": "/* // # %% end",
    "element": "</data></node><node id='evil'/>",
    "entities": "&amp;lt;&quot;&#34;&lt;#quot;#34;",
    "brackets": "])}>[({/\\|",
    "control": "\x00\x1b[31m\x07\x85\ufffe",
    "directions": "\u202eevil\u2066",
    "formula": "=cmd|' /C calc'!A0",
    "comma": 'a,b";c',
    "html": "<b>bold</b><script>alert(1)</script>",
    "cdata": "]]><![CDATA[",
    "surrogate pair": "\U0001f600 é 漢字",
}


def node(id: str, type: str, day: float = 0, **fields: Any) -> Event:
    """A node with its id as its title, recorded so many days after noon."""
    made = records.Node(type=type, title=fields.pop("title", id), **fields)  # type: ignore[arg-type]
    return sent(made, record_id=id, at=NOON + day * DAY_S)


def link(source: str, type: str, target: str, day: float = 0, **fields: Any) -> Event:
    """An edge between two ids."""
    edge = records.Edge(source=source, type=type, target=target, **fields)  # type: ignore[arg-type]
    return sent(edge, at=NOON + day * DAY_S)


def history() -> list[Decision | Event]:
    """Goals `ship`, `speed`, `docs`, `old`, `given-up`, `again`; see each line for what becomes of it."""
    return [
        node("ship", "goal", 0, session="s1", agent="coder", confidence=90),
        node("fast-path", "option", 0, session="s1"),
        node("slow-path", "option", 0, session="s1"),
        node("use-fast", "decision", 1, session="s1", agent="coder", confidence=70),
        node("write", "action", 2, session="s1"),
        node("worked", "outcome", 8, session="s2"),
        link("ship", "leads_to", "fast-path", 0, rationale="it is quick"),
        link("ship", "rejected", "slow-path", 0),
        link("fast-path", "leads_to", "use-fast", 1),
        link("use-fast", "leads_to", "write", 2),
        link("write", "leads_to", "worked", 8),
        # without a decision or an action, and nothing new for 14 days
        node("speed", "goal", 0, confidence=30),
        node("is-slow", "observation", 0, session="s2"),
        link("speed", "leads_to", "is-slow", 0),
        # a recorded decision whose outcome is pending, and a replaced action
        node("docs", "goal", 9, session="s2"),
        by_rule(id=TRACE, at=NOON + 10 * DAY_S),
        link("docs", "leads_to", TRACE, 10),
        sent(records.Outcome(decision_id=TRACE, status="PENDING"), at=NOON + 11 * DAY_S),
        node("outline", "action", 9),
        link(TRACE, "leads_to", "outline", 10),
        node("outline-2", "action", 12, session="s2"),
        link("outline-2", "supersedes", "outline", 12),
        # a guess without an outcome, superseded goals and one that was given up
        node("guess", "decision", 13, confidence=49),
        node("sure", "decision", 13, confidence=50, status="abandoned"),
        node("old", "goal", 1),
        node("again", "goal", 12),
        link("again", "supersedes", "old", 12),
        node("given-up", "goal", 3, status="abandoned", confidence=10),
        # its only decision is abandoned
        link("again", "leads_to", "sure", 13),
        # no work: it is in no figure of the work but the confidence
        node("env:production", "entity", 0),
    ]


def recorded_history(path: Path) -> Path:
    record(path, *history())
    return path


def hostile_graph(path: Path) -> GraphView:
    """A chain of nodes with the hostile titles, in a new journal."""
    titled = [node(name, "goal", title=title, session=title, agent=title) for name, title in HOSTILE.items()]
    links = [
        link(first, "leads_to", second, rationale=HOSTILE[first], weight=0.5) for first, second in chain()
    ]
    record(path, *titled, *links)
    with Reader(path) as reader:
        return whole(reader)


def chain() -> list[tuple[str, str]]:
    """The links of `hostile_graph`."""
    return list(pairwise(HOSTILE))


def graph_of_traces(path: Path) -> GraphView:
    """A decision with an approval, data, an outcome, a precedent and a successor, in a new journal."""
    made = [by_rule(id=f"decided-{number}", at=NOON + number) for number in range(3)]
    record(
        path,
        *made,
        sent(records.Approval(decision_id="decided-1", approver="Ines", role="lead")),
        sent(records.Consultation(decision_id="decided-1", system="crm", entity="tier", value="gold")),
        sent(records.Outcome(decision_id="decided-1", status="SUCCESS", value=1.0)),
        link("decided-1", "CITES", "decided-0", similarity=0.9, how="person"),
        sent(
            records.TraceState(decision_id="decided-1", status="superseded", by="decided-2", because="newer")
        ),
        node("alert", "event"),
        link("decided-1", "TRIGGERED_BY", "alert"),
    )
    with Reader(path) as reader:
        return newest(reader)
