"""The maintenance tasks of a journal, by name.

Owns the choice of the function that runs a task. Invariant: one task at a time, on a thread that may wait:
that of a command, or the maintenance thread of the daemon.
"""

from __future__ import annotations

import time
from functools import partial

from msgspec import to_builtins

from thor_policy.core.errors import JournalError
from thor_policy.core.records import Maintenance
from thor_policy.core.requests import Json
from thor_policy.journal import events, shipping
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
    return {"checkpoint": result_of(journal.checkpoint())}


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
