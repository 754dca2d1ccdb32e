"""Decisions that a person makes at the terminal: what the system knows, and the records that they become.

Owns the order of these records. Invariant: the kernel or a key says who decided, never the person; the
decision is recorded first, so what follows it and is refused is named with its id. Called by commands on
their main thread.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.decisions import PackInfo
from thor_policy.core.errors import JournalError, ThorPolicyError
from thor_policy.daemon.journal_access import submit_record
from thor_policy.daemon.loading import load_pack
from thor_policy.journal.reader import Reader


class PersonDecision(Struct, frozen=True, kw_only=True):
    """A recorded decision of a person. `lacks` is what its trace lacks; None if the journal is elsewhere."""

    id: str
    approvals: tuple[str, ...] = ()
    consultations: tuple[str, ...] = ()
    lacks: tuple[str, ...] | None = None


def governing_pack(config: Config) -> PackInfo:
    """The pack that governs a decision made now: that of a running daemon, else that of the settings.

    Raises PackError, RequestError, Unreachable.
    """
    with Client(config.endpoint, key=config.key_file) as client:
        if client.remote or client.alive():
            return client.status().pack
    return load_pack(config).info


def record_decision(
    config: Config,
    report: records.DecisionReport,
    *,
    consents: Sequence[records.Approval] = (),
    consulted: Sequence[records.Consultation] = (),
) -> PersonDecision:
    """Record a decision, then the consents to it and the data that were consulted, with its id.

    Raises what `submit_record` raises. If the decision is recorded then, a note says so.
    """
    decision_id = submit_record(config, report)
    try:
        approvals = [submit_record(config, _about(consent, decision_id)) for consent in consents]
        consultations = [submit_record(config, _about(data, decision_id)) for data in consulted]
    except ThorPolicyError as error:
        error.add_note(f"the decision itself is recorded as {decision_id}")
        raise
    return PersonDecision(
        id=decision_id,
        approvals=tuple(approvals),
        consultations=tuple(consultations),
        lacks=_lacks(config, decision_id),
    )


def _about(record: records.Record, decision_id: str) -> records.Record:
    return replace(record, decision_id=decision_id)


def _lacks(config: Config, decision_id: str) -> tuple[str, ...] | None:
    try:
        with Reader(config.journal_path) as reader:
            decision = reader.get(decision_id)
    except JournalError:
        return None
    return None if decision is None else tuple(decision["lacks"] or ())
