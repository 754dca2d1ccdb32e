"""Reading a trace: one decision with all that led to it and all that became of it, now or as known at a time.

Owns the assembly. Invariant: with `at`, nothing that was recorded at that time or later is in the result. Any
thread or process, on a reader of its own.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from thor_policy.core.approvals import Task
from thor_policy.core.errors import JournalError
from thor_policy.core.requests import Json
from thor_policy.journal import trace_queries
from thor_policy.journal.approval_tasks import tasks_about
from thor_policy.journal.reader import Reader, Record, instant
from thor_policy.trace.chains import MOST_DEPTH, chain
from thor_policy.trace.nodes import Link, Node, Step, brief, links

#: Most successors and citing decisions that a trace lists.
MOST_SUCCESSORS, MOST_CITING = 1_000, 1_000

_ANSWER = (
    *("outcome", "allow", "tier", "reason_code", "risk", "label", "confidence", "probabilities"),
    *("temperature", "prior", "stepped_up"),
)


class Trace(Struct, frozen=True, kw_only=True):
    """One decision and what hangs on it. `as_of` is the time that it is shown for; None: now.

    `question` is None if it was erased. `answer`, `explanation`, `floor` and `model` are as recorded. `links`
    are the edges from the decision. `cited_by` and `superseded_by` go on: the decisions that cite it, and
    those that took its place one after the other. `approval` is what an approval did for it, `requests` are
    the tasks that were to lift it, with what became of them. `states` are the changes of its status, oldest
    first. `counterfactuals` and `shadows` are what another pack or model would have answered; `enrichments`
    what the model wrote about it on idle time.
    """

    id: str
    seq: int
    at: str
    as_of: str | None
    type: str
    status: str
    actor: str | None
    action: str | None
    entity: str | None
    session: str | None
    flags: dict[str, Json]
    question: Json
    facts: dict[str, Json]
    answer: dict[str, Json]
    explanation: dict[str, Json]
    floor: dict[str, Json]
    model: dict[str, Json] | None
    obligations: list[Json]
    erased: bool
    lacks: tuple[str, ...]
    summary: str | None
    links: tuple[Link, ...]
    rejections: list[Record]
    approval: dict[str, Json] | None
    requests: list[dict[str, Json]]
    reviews: list[Record]
    counterfactuals: list[Record]
    shadows: list[Record]
    enrichments: list[Record]
    states: list[Record]
    superseded_by: tuple[Node, ...]
    cited_by: tuple[str, ...]
    causes: tuple[Step, ...] = ()
    consequences: tuple[Step, ...] = ()


def read_trace(reader: Reader, decision_id: str, *, at: str | None = None, depth: int = 0) -> Trace:
    """The trace of a decision, with chains of causes and consequences up to `depth` edges long.

    `at` is an RFC 3339 time: what was recorded then or later is left out. Raises JournalError if there is no
    such decision, if it was made later than `at`, or if `depth` is above `MOST_DEPTH`.
    """
    if not 0 <= depth <= MOST_DEPTH:
        raise JournalError(f"depth: must be from 0 to {MOST_DEPTH}")
    until = instant(at, "at") or trace_queries.EVER
    row, event = reader.recorded(decision_id)
    if row["timestamp"] >= until:
        raise JournalError(f"at: the decision was made at {row['timestamp']}, which is not before {until}")
    body, private = event["body"], event["private"] or {}
    explanation = _explanation(reader, row, event, until)
    consulted = _consulted(body, private)
    summary = reader.summary(decision_id) if at is None else None
    with reader.snapshot() as connection:
        about = {
            table: trace_queries.about(connection, table, decision_id, until)
            for table in ("reviews", "counterfactuals", "shadows", "trace_states", "enrichments")
        }
        approvals = trace_queries.approvals_of(connection, row, until)
        states = about["trace_states"]
        return Trace(
            id=decision_id,
            seq=row["seq"],
            at=row["timestamp"],
            as_of=None if at is None else until,
            type=row["decision_type"],
            status=states[-1]["status"] if states else "active",
            actor=row["actor"],
            action=row["action"],
            entity=row["entity"],
            session=row["session"],
            flags={name: row[name] for name in ("is_exception", "urgency", "judgment_call") if row.get(name)},
            question=private.get("evaluation") or _reported(private),
            facts=private.get("facts") or {},
            answer={name: body[name] for name in _ANSWER if body.get(name) is not None},
            explanation=explanation,
            floor=body.get("floor") or {},
            model=body.get("model") if isinstance(body.get("model"), dict) else _named(body.get("model")),
            obligations=body.get("obligations") or [],
            erased=event["private"] is None,
            lacks=tuple(row["lacks"] or ()) if at is None else (),
            summary=summary,
            links=tuple(links(connection, row, consulted, until)),
            rejections=[approval for approval in approvals if approval["verdict"] == "rejected"],
            approval=body.get("use"),
            requests=[_request(task) for task in tasks_about(connection, decision_id, until)],
            reviews=about["reviews"],
            counterfactuals=about["counterfactuals"],
            shadows=about["shadows"],
            enrichments=about["enrichments"],
            states=states,
            superseded_by=tuple(
                brief(successor)
                for successor in trace_queries.successors(
                    connection, decision_id, limit=MOST_SUCCESSORS, until=until
                )
            ),
            cited_by=tuple(trace_queries.citing(connection, decision_id, limit=MOST_CITING, until=until)),
            causes=tuple(chain(connection, decision_id, "causes", depth=depth, until=until)),
            consequences=tuple(chain(connection, decision_id, "consequences", depth=depth, until=until)),
        )


def _request(task: Task) -> dict[str, Json]:
    return {
        "id": task.id,
        "outcome": task.outcome,
        "requested_at": task.requested_at,
        "requested_by": task.requested_by,
        "reason": task.reason,
        "urgency": task.urgency,
        "status": task.recorded,
        "used_by": list(task.used_by),
    }


def _explanation(reader: Reader, row: Record, event: Record, until: str) -> dict[str, Json]:
    """The explanation as it was known: the later one, if it was recorded by then, else that of the event."""
    body, private = event["body"], event["private"] or {}
    named = body.get("explanation") or {}
    known: dict[str, Any] = {
        "classification": named.get("classification"),
        "reasoning": private.get("reasoning") or (body.get("floor") or {}).get("because"),
        "clauses": named.get("clauses"),
    }
    if row["explained_seq"] is not None and reader.recorded_at(row["explained_seq"]) < until:
        known = {name: row[name] for name in ("classification", "reasoning", "clauses")}
    return {name: value for name, value in known.items() if value}


def _consulted(body: dict[str, Json], private: dict[str, Json]) -> list[dict[str, Json]]:
    """What the daemon itself consulted, each entry with its value, which is private and may be erased."""
    values = private.get("consulted") or {}
    entries = body.get("consulted") or []
    return [entry | {"value": values.get(entry["source"], {}).get(entry.get("element"))} for entry in entries]


def _reported(private: dict[str, Json]) -> Json:
    """What the reporter of a decision says that it was asked."""
    return {name: private[name] for name in ("prompt", "context", "response") if name in private} or None


def _named(model: str | None) -> dict[str, Json] | None:
    return None if model is None else {"name": model}
