"""The maintenance tasks of a journal, by name.

Owns the choice of the function that runs a task. Invariant: one task at a time, on a thread that may wait:
that of a command, or the maintenance thread of the daemon.
"""

from __future__ import annotations

import time
from functools import partial

from msgspec import to_builtins

from thor_policy.core.errors import JournalError
from thor_policy.core.records import GraphImport, Maintenance, Record
from thor_policy.core.requests import Caller, Json
from thor_policy.journal import events, graph, shipping
from thor_policy.journal.digest_key import path_of
from thor_policy.journal.events import Event
from thor_policy.journal.maintenance.archive import archive_before, waits_for
from thor_policy.journal.maintenance.erase import erase
from thor_policy.journal.maintenance.tasks import Progress, commit, result_of
from thor_policy.journal.writer import Journal


def run_maintenance(
    journal: Journal,
    maintenance: Maintenance,
    *,
    by_uid: int | None = None,
    by_key: str | None = None,
    progress: Progress = lambda _: None,
) -> dict[str, Json]:
    """Run a task; returns its result as JSON values. Raises JournalError."""
    if maintenance.task == "erase":
        erasure = erase(
            journal,
            maintenance.actor or "",
            by_uid=by_uid,
            by_key=by_key,
            unshipped=maintenance.unshipped,
            progress=progress,
        )
        done: dict[str, Json] = to_builtins(erasure)
        return done
    if maintenance.task == "archive":
        before, unshipped = maintenance.before or "", maintenance.unshipped
        made = archive_before(journal, before, unshipped=unshipped, progress=progress)
        return {
            "waits_for": None if unshipped else waits_for(journal, before),
            "archived": sum(segment.events for segment in made),
            "segments": [segment.path.name for segment in made],
        }
    if maintenance.task == "rekey":
        journal.replace_digest_key()
        event = events.rekeyed_event(time.time(), by_uid=by_uid, by_key=by_key)
        commit(journal, event)
        return {"rekeyed": path_of(journal.path).name}
    if maintenance.task == "calibrate" and maintenance.calibration is not None:
        commit(journal, events.calibration_event(maintenance.calibration, time.time()))
        return {"calibration": maintenance.calibration.digest}
    if maintenance.task == "counterfactual" and maintenance.counterfactuals is not None:
        return _record_counterfactuals(
            journal, events.counterfactual_events(maintenance.counterfactuals, time.time())
        )
    if maintenance.task == "promote" and maintenance.promotion is not None:
        event = events.promotion_event(maintenance.promotion, time.time(), by_uid=by_uid, by_key=by_key)
        commit(journal, event)
        return {"promotion": maintenance.promotion.sha256}
    if maintenance.task == "shipped" and maintenance.shipped is not None:
        shipped, at = maintenance.shipped, events.timestamp(time.time())
        result_of(journal.run(partial(shipping.acknowledge, shipped=shipped, at=at)))
        return {"acknowledged": shipped.seq}
    if maintenance.task == "unship":
        return {"forgotten": result_of(journal.run(partial(shipping.forget, sink=maintenance.sink or "")))}
    if maintenance.task == "import_graph" and maintenance.graph is not None:
        caller = Caller(transport="inproc", uid=by_uid, key=by_key)
        return _import_graph(journal, maintenance.graph, caller)
    return {"checkpoint": result_of(journal.checkpoint())}


def _import_graph(journal: Journal, imported: GraphImport, caller: Caller) -> dict[str, Json]:
    """Record nodes and edges with their ids, but for ids that are known; returns which were refused."""
    nodes: dict[str, Record] = {kept.id: kept.node for kept in imported.nodes}
    edges: dict[str, Record] = {kept.id: kept.edge for kept in imported.edges}
    known_nodes, known_edges = result_of(
        journal.run(lambda connection: graph.known_ids(connection, list(nodes), list(edges)))
    )
    to_record = [
        *((id, node) for id, node in nodes.items() if id not in known_nodes),
        *((id, edge) for id, edge in edges.items() if id not in known_edges),
    ]
    fates = result_of(journal.commit_records(to_record, at=time.time(), caller=caller)) if to_record else []
    refused = [
        {"id": id, "message": fate.message or str(fate.error)}
        for (id, _), fate in zip(to_record, fates, strict=True)
        if fate.error is not None
    ]
    return {
        "recorded": len(to_record) - len(refused),
        "known": len(known_nodes) + len(known_edges),
        "refused": refused,
    }


def _record_counterfactuals(journal: Journal, results: list[Event]) -> dict[str, Json]:
    """Record results; returns how many were recorded, and the decisions that this journal does not have."""
    fates = result_of(journal.commit_all(results))
    unknown = [
        event.subject_id for event, fate in zip(results, fates, strict=True) if fate.error == "not_found"
    ]
    failed = [fate for fate in fates if fate.error not in (None, "not_found")]
    if failed:
        raise JournalError(
            f"the journal could not record the results: {failed[0].message or failed[0].error}"
        )
    return {"recorded": len(results) - len(unknown), "unknown": unknown}
