"""`fleet verify`: every chain of a store, checked again from its stored bytes.

Owns that check. Invariant: it trusts nothing that a device or the store's own functions computed: hashes,
digests of private parts and every row of the tables are computed again here, and checkpoints are checked with
the keys that the caller names. A journal is read in one snapshot, so devices may ship meanwhile. Memory holds
one page, and the checkpoints of one journal. The main thread of a command.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct

from thor_policy.core.requests import Json
from thor_policy.fleet.batches import Stored
from thor_policy.fleet.store import Store
from thor_policy.fleet.stored_rows import Checked, StoredRows
from thor_policy.journal import chain, checkpoints
from thor_policy.journal.checkpoints import Checkpoint
from thor_policy.security.signatures import PublicKeys

_EVENTS = """
SELECT e.seq, e.at, e.boot_id, e.mono_ns, e.kind, e.subject_id, e.body, e.private_digest, e.prev_hash, e.hash,
    {part}, x.digest AS left_digest
FROM thorpolicy.events e
{join}
LEFT JOIN LATERAL (SELECT digest FROM thorpolicy.erasures x WHERE x.journal = e.journal AND x.seq = e.seq
    ORDER BY by_seq DESC LIMIT 1) x ON true
WHERE e.journal = %(journal)s ORDER BY e.seq
"""
#: Events whose rows are compared together.
PAGE = 1_000


class Verified(Struct, frozen=True, kw_only=True):
    """What became of the check of one journal. `problem` is the first that was met; None: none.

    `unproven` private parts are missing without an erasure that says so; `signed` is the newest event that a
    valid checkpoint covers, None where no key was named.
    """

    device: str
    chain: str
    events: int
    head: str
    erased: int
    unproven: int
    alarms: int
    signed: int | None
    problem: str | None

    @property
    def ok(self) -> bool:
        """True if nothing is wrong and no alarm is stored."""
        return self.problem is None and not self.alarms


def verify(
    store: Store,
    *,
    device: str | None = None,
    keys: PublicKeys | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Verified]:
    """Check each journal of the store, or those of one device. `progress` gets the number of events so far.

    Needs the right to read `private`; without it private parts and the rows of tables are not checked.
    """
    readable = store.ask("SELECT has_table_privilege('thorpolicy.private', 'SELECT') AS readable")[0][
        "readable"
    ]
    journals = store.ask(
        "SELECT journal FROM journals "
        "WHERE %(device)s::text IS NULL OR device = %(device)s::text ORDER BY device, journal",
        {"device": device},
    )
    done: list[Verified] = []
    checked = 0
    for journal in journals:
        with store.snapshot():
            verified = _verify(store, journal["journal"], keys, readable, partial(_add, progress, checked))
        checked += verified.events
        done.append(verified)
    return done


def _add(progress: Callable[[int], None], so_far: int, count: int) -> None:
    progress(so_far + count)


def _verify(
    store: Store,
    number: Json,
    keys: PublicKeys | None,
    readable: bool,
    progress: Callable[[int], None],
) -> Verified:
    (journal,) = store.ask("SELECT * FROM journals WHERE journal = %(journal)s", {"journal": number})
    question = _EVENTS.format(
        part="p.salt, p.value" if readable else "NULL::bytea AS salt, NULL::bytea AS value",
        join="LEFT JOIN thorpolicy.private p ON p.journal = e.journal AND p.seq = e.seq" if readable else "",
    )
    stored = list(
        store.pages(
            "SELECT seq, head, at, key, signature FROM checkpoints WHERE journal = %(journal)s ORDER BY seq",
            {"journal": number},
        )
    )
    heads = {int(each["seq"]): bytes(each["head"]) for each in stored}
    head, seq, erased, unproven, problem = chain.GENESIS, 0, 0, 0, None
    tables, page = StoredRows(store, int(number)), list[Checked]()
    for row in store.pages(question, {"journal": number}):
        event, part = _stored(row)
        fault, state = _fault(event, part, row["left_digest"], seq, head)
        problem = problem or fault
        if readable and problem is None:
            page.append(Checked(event=(event, part), erased=state == "erased"))
            if len(page) == PAGE:
                problem, page = tables.problem(page), []
        if (signed := heads.get(row["seq"])) is not None and signed != row["hash"]:
            problem = problem or f"event {row['seq']} does not match its checkpoint"
        seq, head = row["seq"], bytes(row["hash"])
        erased, unproven = erased + (state == "erased"), unproven + (state == "missing")
        if seq % 2_000 == 0:
            progress(seq)
    if page:
        problem = problem or tables.problem(page)
    if (seq, head) != (journal["seq"], journal["head"]):
        problem = problem or f"the events end at {seq}, and the store says that it received {journal['seq']}"
    if readable:
        problem = problem or tables.end(seq)
    name = journal["chain"].hex()
    return Verified(
        device=journal["device"],
        chain=name,
        events=seq,
        head=head.hex(),
        erased=erased,
        unproven=unproven,
        alarms=_alarms(store, journal),
        signed=None if keys is None else _signed(stored, name, keys),
        problem=problem,
    )


def _alarms(store: Store, journal: dict[str, Any]) -> int:
    question = "SELECT count(*) AS alarms FROM alarms WHERE device = %(device)s AND chain = %(chain)s"
    return int(store.ask(question, {"device": journal["device"], "chain": journal["chain"]})[0]["alarms"])


def _stored(row: dict[str, Any]) -> Stored:
    """An event as the store has it, with its private part."""
    event = chain.Row(
        row["seq"],
        row["at"].encode(),
        row["boot_id"].encode(),
        row["mono_ns"],
        row["kind"].encode(),
        bytes(row["subject_id"]),
        bytes(row["body"]),
        bytes(row["private_digest"]),
        bytes(row["prev_hash"]),
        bytes(row["hash"]),
    )
    return event, None if row["value"] is None else (bytes(row["salt"]), bytes(row["value"]))


def _fault(
    event: chain.Row, part: tuple[bytes, bytes] | None, left: bytes | None, seq: int, head: bytes
) -> tuple[str | None, str]:
    """What is wrong with an event, and the state of its private part: whole, erased or missing.

    `left` is the digest of what an erasure left; None: nothing was erased.
    """
    if event.seq != seq + 1:
        return f"event {seq + 1} is missing", "whole"
    if event.prev_hash != head or chain.hash_of(event.prev_hash, *event[:8]) != event.hash:
        return f"event {event.seq} does not match its hash", "whole"
    digest = event.private_digest if left is None else bytes(left)
    if part is not None and chain.sealed_digest(*part) != digest:
        return f"the private part of event {event.seq} does not match its digest", "whole"
    if left is not None:
        return None, "erased"
    return None, "whole" if part or not event.private_digest else "missing"


def _signed(stored: Sequence[dict[str, Json]], name: str, keys: PublicKeys) -> int:
    """The newest event that a checkpoint with one of these keys covers; 0: none."""
    covered = 0
    for each in stored:
        plain = {**each, "head": bytes(each["head"]).hex(), "chain": name}
        checkpoint = msgspec.convert(plain, Checkpoint)
        if checkpoints.check(checkpoint, keys) is None:
            covered = max(covered, checkpoint.seq)
    return covered
