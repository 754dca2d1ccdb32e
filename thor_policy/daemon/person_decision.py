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
from thor_policy.core.errors import JournalError, PackError, ThorPolicyError
from thor_policy.daemon.journal_access import submit_record
from thor_policy.daemon.loading import load_pack
from thor_policy.journal.reader import Reader
from thor_policy.policy.pack import Pack
from thor_policy.sources.kinds import Reach, look_up, overridden


class PersonDecision(Struct, frozen=True, kw_only=True):
    """A recorded decision of a person. `lacks` is what its trace lacks; None if the journal is elsewhere."""

    id: str
    approvals: tuple[str, ...] = ()
    consultations: tuple[str, ...] = ()
    lacks: tuple[str, ...] | None = None


class Known(Struct, frozen=True, kw_only=True):
    """What the system knows of a decision before a person makes it: the pack that governs it, and the data.

    `outcomes` and `types` are those of the pack; None if its files are not here, or state none. `consulted`
    is what its sources say of the entity, `failures` why others say nothing, by source.
    """

    pack: PackInfo
    outcomes: tuple[str, ...] | None = None
    types: tuple[str, ...] | None = None
    consulted: tuple[records.Consultation, ...] = ()
    failures: dict[str, str] = {}


def known_of(config: Config, entity: str | None) -> Known:
    """What is known of a decision about `entity` (`type:id`) that is made now.

    The pack is that of a running daemon, else that of the settings. Its sources are consulted here, where it
    is the same pack; pushed values are known to the daemon alone. Raises PackError, RequestError,
    Unreachable.
    """
    with Client(config.endpoint, key=config.key_file) as client:
        governing = client.status().pack if client.remote or client.alive() else None
    try:
        pack = load_pack(config)
    except PackError:
        if governing is None:
            raise
        return Known(pack=governing)
    if governing is not None and governing.sha256 != pack.info.sha256:
        return Known(pack=governing)
    consulted, failures = _consult(config, pack, entity)
    return Known(
        pack=pack.info,
        outcomes=pack.labels,
        types=pack.manifest.trace.all_types if pack.manifest.trace.types else None,
        consulted=consulted,
        failures=failures,
    )


def _consult(
    config: Config, pack: Pack, entity: str | None
) -> tuple[tuple[records.Consultation, ...], dict[str, str]]:
    """What the sources that describe resources say of an entity, and why others say nothing."""
    type_, colon, id_ = (entity or "").partition(":")
    reach, consulted, failures = Reach(overrides=config.sources, hosts=config.source_hosts), [], {}
    for name, stated in pack.manifest.sources.items() if colon else ():
        spec = overridden(name, stated, reach)
        if spec.of != "resource" or spec.pushed is not None or (spec.types and type_ not in spec.types):
            continue
        entries = look_up(name, spec, type_, id_, folder=pack.path, reach=reach)
        first = entries[0]
        if first.error is not None:
            failures[name] = first.error
            continue
        values = {entry.element: entry.value for entry in entries if entry.element is not None}
        consulted.append(
            records.Consultation(
                decision_id="-",
                system=first.system,
                entity=entity,
                value=values or None,
                took_ms=first.took_ms,
                fresh_at=first.fresh_at,
            )
        )
    return tuple(consulted), failures


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
