"""How a command reads and changes the journal: through the running daemon, or directly where none runs.

Owns that choice, and the wait for another process that holds the journal. Invariant: what a daemon would
refuse is refused here too. Called by commands on their main thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.decisions import Governing
from thor_policy.core.errors import AlreadyRunning, JournalError, RequestError, Unreachable
from thor_policy.core.ids import new_id
from thor_policy.core.requests import Caller, Json
from thor_policy.daemon.loading import load_pack, open_journal
from thor_policy.journal import events
from thor_policy.journal.maintenance.dispatch import run_maintenance
from thor_policy.journal.reader import Reader
from thor_policy.journal.writer import Journal
from thor_policy.protocol.replies import encode_request, more_of, recorded_item
from thor_policy.protocol.requests import decode_request

#: How long a command waits for another process that holds the journal, and between two tries, in seconds.
LOCK_WAIT_S, _LOCK_STEP_S = 3.0, 0.02

#: How long a daemon may take to report its status, in milliseconds.
STATUS_MS = 5_000


def open_reader(config: Config) -> Reader:
    """A reader of the journal; a file of an earlier version is migrated first.

    Raises JournalError, and AlreadyRunning while a daemon of the earlier version runs.
    """
    reader = Reader(config.journal_path)
    if reader.is_current():
        return reader
    reader.close()
    open_journal(config, lambda _: None).close()
    return Reader(config.journal_path)


def submit_record(config: Config, record: records.Record) -> str:
    """Record something, through the daemon where one runs, otherwise directly; returns the record's id.

    Waits up to `LOCK_WAIT_S` for another command that holds the journal.
    Raises RequestError, Unreachable, JournalError, AlreadyRunning.
    """
    return str(_submitted(config, record)["id"])


def submit_trace_state(config: Config, status: records.TraceState) -> dict[str, Json]:
    """Change the state of a trace, as `submit_record` does; returns what `Client.trace_state` returns."""
    return _submitted(config, status)


def submit_trace_states(config: Config, states: Sequence[records.TraceState]) -> int:
    """Change the states of several traces, one record each; returns how many were changed.

    A state that the trace cannot get any more is no error. Raises what `submit_record` raises.
    """
    changed = 0
    for fate in _all_submitted(config, states):
        if not isinstance(fate, RequestError):
            changed += 1
        elif fate.code != "conflict":
            raise fate
    return changed


def _submitted(config: Config, record: records.Record) -> dict[str, Json]:
    """The member `recorded` of the reply to a record."""
    (fate,) = _all_submitted(config, [record])
    if isinstance(fate, RequestError):
        raise fate
    return fate


def _all_submitted(
    config: Config, to_record: Sequence[records.Record]
) -> list[dict[str, Json] | RequestError]:
    """The member `recorded` of the reply to each record, or why it was refused."""
    until = time.monotonic() + LOCK_WAIT_S
    while True:
        with Client(config.endpoint, key=config.key_file) as client:
            if client.remote or client.alive():
                return [_call(client, record) for record in to_record]
        try:
            return _record_directly(config, to_record)
        except AlreadyRunning:
            if time.monotonic() >= until:
                raise
            time.sleep(_LOCK_STEP_S)


def _call(client: Client, record: records.Record) -> dict[str, Json] | RequestError:
    try:
        reply = client.call(records.OP_OF[type(record)], {"record": record})
    except RequestError as error:
        return error
    recorded: dict[str, Json] = reply["recorded"]
    return recorded


def _record_directly(
    config: Config, to_record: Sequence[records.Record]
) -> list[dict[str, Json] | RequestError]:
    for record in to_record:
        _check(config, records.OP_OF[type(record)], record)
    governing = [
        load_pack(config).governing(record.type) if isinstance(record, records.DecisionReport) else None
        for record in to_record
    ]
    with open_journal(config, lambda _: None) as journal:
        return [
            _commit(config, journal, record, pack) for record, pack in zip(to_record, governing, strict=True)
        ]


def _commit(
    config: Config, journal: Journal, record: records.Record, governing: Governing | None
) -> dict[str, Json] | RequestError:
    record_id, at = new_id(), time.time()
    us = Caller(transport="inproc", uid=os.geteuid(), gid=os.getegid(), pid=os.getpid())
    event = events.record_event(
        record, record_id=record_id, at=at, caller=us, masked=config.masked, governing=governing
    )
    edges = events.citations(record, record_id=record_id, at=at, caller=us)
    commit = journal.commit_all([event, *edges]).result()[0]
    if commit.error is not None:
        return RequestError(commit.error, commit.message or "the journal could not record it")
    kind = records.KIND_OF[type(record)]
    recorded: dict[str, Json] = recorded_item(record_id, kind, commit.seq, more_of(commit))["recorded"]
    return recorded


def _check(config: Config, op: str, record: records.Record | records.Maintenance) -> None:
    """Raise the RequestError with which a daemon would refuse a record."""
    frame = encode_request("", op, {"record": record})
    decode_request(frame, max_bytes=config.max_request_bytes, max_deadline_ms=1)


def maintain(
    config: Config, maintenance: records.Maintenance, *, progress: Callable[[int], None] = lambda _: None
) -> dict[str, Json]:
    """Do long work on the journal, through the daemon where one runs, otherwise directly.

    Returns what was done. `progress` is called only where no daemon does the work. Raises RequestError,
    Unreachable, JournalError.
    """
    with Client(config.endpoint, key=config.key_file) as client:
        if client.remote or client.alive():
            return client.maintenance(maintenance)
    if not config.journal_path.is_file():
        raise JournalError(f"there is no journal at {config.journal_path}; `thorpolicy serve` makes one")
    _check(config, "maintenance", maintenance)
    with open_journal(config, lambda _: None) as journal:
        return run_maintenance(journal, maintenance, by_uid=os.geteuid(), progress=progress)


def record_counterfactuals(config: Config, counterfactuals: records.Counterfactuals) -> None:
    """Record what past decisions would have been, as `maintain` does.

    Raises JournalError too if the daemon does not know a decision: then it keeps another journal.
    """
    done = maintain(config, records.Maintenance(task="counterfactual", counterfactuals=counterfactuals))
    if unknown := done["unknown"]:
        raise JournalError(
            f"{len(unknown)} of {len(counterfactuals.results)} decisions of {config.journal_path} are "
            f"unknown to the daemon at {config.endpoint}, which keeps another journal; name its state_dir"
        )


@contextmanager
def daemon_busy(config: Config) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether a daemon at the endpoint has requests in flight.

    A daemon that does not answer in time counts as busy. Raises RequestError if the caller may not ask.
    """
    with Client(config.endpoint, key=config.key_file, timeout_ms=STATUS_MS) as client:

        def busy() -> bool:
            try:
                return client.alive() and client.status().in_flight > 0
            except Unreachable:
                return True

        yield busy
