"""Receipts: one decision as a signed document that a third party checks without the device.

Owns the form of a receipt, how it is made from the journal, and how it is checked. Invariant: a receipt says
nothing about the decision that does not follow from the event's stored bytes, so a change of either is
refused even if the device's own key signed it. Making reads the journal and never writes it. Any thread or
process with a reader of its own.

What a receipt proves, in this order: the key signed these members; the members follow from the event; the
event has this hash; the events after it (`links`) lead to the head that the checkpoint signs. Who kept a
checkpoint apart from the device needs no trust in what the device signed later. The hash of an event covers
its whole body, so `links` are the bodies of the events in between; names and texts are in none of them.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from thor_policy.core import strict_json
from thor_policy.core.errors import JournalError
from thor_policy.core.requests import Json
from thor_policy.journal import chain, checkpoints, events, segments
from thor_policy.journal.checkpoints import Checkpoint
from thor_policy.journal.reader import Reader, Record
from thor_policy.security import signed_json
from thor_policy.security.signatures import Digest, Key, KeyId, PublicKeys, Signature

#: A new form of receipt gets a new number.
FORM = "thor-policy receipt 1"
#: Events between decision and checkpoint: how many a receipt has by default, and at most.
LINKS, MOST_LINKS = 1_000, 20_000
#: Most bytes of all links, and of a file that is read.
MOST_LINK_BYTES, MOST_FILE_BYTES = 32 * 2**20, 64 * 2**20
#: Members of the body that a receipt repeats.
_DECIDED = (
    *("outcome", "allow", "tier", "risk", "floor", "pack", "model", "reason_code", "label", "confidence"),
    *("probabilities", "temperature", "prior", "obligations"),
)

#: Why there is no digest of the question. `integer`: canonical JSON cannot write one of its integers.
Lack = Literal["erased", "missing", "integer"]


class Link(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The stored columns of an event that its hash covers; `mono_ns` is a number in decimal digits."""

    at: str
    boot_id: str
    mono_ns: Annotated[str, Meta(pattern=r"^-?[0-9]{1,19}\Z")]
    kind: str
    subject_id: str
    body: str
    private_digest: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")]

    def hash_after(self, prev_hash: bytes, seq: int) -> bytes:
        """The hash of the event `seq` with these columns. Raises struct.error for a number beyond 64 bits."""
        return chain.hash_of(
            prev_hash,
            seq,
            self.at.encode(),
            self.boot_id.encode(),
            int(self.mono_ns),
            self.kind.encode(),
            self.subject_id.encode(),
            self.body.encode(),
            bytes.fromhex(self.private_digest),
        )


class Place(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the decision is: event `seq` of the chain whose first event has the hash `name`.

    `links` are the events after it up to the checkpoint; None with the reason in `no_links`.
    """

    name: Digest
    seq: Annotated[int, Meta(ge=1, le=2**53 - 1)]
    prev_hash: Digest
    hash: Digest
    event: Link
    links: Annotated[tuple[Link, ...], Meta(max_length=MOST_LINKS)] | None
    no_links: str | None


class Question(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The sha256 of the question in canonical JSON, as it is recorded: `[masked]` at the pointers `masked`.

    None with the reason in `lack`; `erased_by` is the event that erased it.
    """

    sha256: Digest | None
    lack: Lack | None
    erased_by: int | None
    masked: tuple[str, ...]


class Disclosed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The private part of the event, whose salted digest is on the chain: question, facts, texts."""

    salt: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
    value: str


class Receipt(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A signed receipt. `approval` is what an approval did for the decision (`core.lifting.Use`).

    `decision` has the members of the event's body that say what was decided, and by what.
    """

    form: Literal["thor-policy receipt 1"]
    decision_id: Annotated[str, Meta(min_length=1, max_length=256)]
    made_at: str
    decided_at: str
    question: Question
    decision: dict[str, Json]
    approval: dict[str, Json] | None
    chain: Place
    checkpoint: Checkpoint | None
    disclosed: Disclosed | None
    key: KeyId
    signature: Signature


class Checked(Struct, frozen=True, kw_only=True):
    """The result of a check. `problem` is the first thing that is wrong.

    `in_chain` is True if the links lead to a valid checkpoint, and None with the reason in `not_shown` if the
    receipt does not show that. `question` is True if the digest of the question follows from the chain.
    """

    receipt: Receipt
    problem: str | None = None
    in_chain: bool | None = None
    not_shown: str | None = None
    question: bool | None = None


# ---------------------------------------------------------------- making


def make(
    reader: Reader,
    decision_id: str,
    *,
    key: Key,
    checkpoint_dir: Path,
    made_at: str,
    links: int = LINKS,
    disclose: bool = False,
) -> dict[str, Json]:
    """The signed receipt of a decision that this daemon made, with at most so many `links`.

    `disclose` adds the private part of the event: question, facts, texts. Raises JournalError if there is no
    such decision, if it was reported from elsewhere, or if its question is to be disclosed and is gone.
    """
    row = reader.get(decision_id)
    if row is None:
        raise JournalError(f"there is no decision {decision_id[:64]!r} in {reader.path}")
    stored, part = _event(reader, row["seq"]) or (None, None)
    if stored is None or stored.kind != b"decision":
        raise JournalError(
            f"{decision_id} was reported from elsewhere; a receipt is of a decision that the daemon made"
        )
    body = events.decode(stored.body)
    erased_by = reader.erasure(stored.seq)
    name = _name_of(reader)
    checkpoint = checkpoints.covering(checkpoint_dir, name, stored.seq)
    between, no_links = _links(reader, stored, checkpoint, links)
    disclosed = None
    if disclose:
        if part is None or erased_by is not None:
            raise JournalError(f"the question of {decision_id} was erased; leave out --with-question")
        disclosed = Disclosed(salt=part[0].hex(), value=part[1].decode())
    members = {
        "decision_id": decision_id,
        "made_at": made_at,
        "decided_at": stored.at.decode(),
        "question": _question(part, erased_by),
        "decision": _decided(body),
        "approval": body.get("use"),
        "chain": Place(
            name=name,
            seq=stored.seq,
            prev_hash=stored.prev_hash.hex(),
            hash=stored.hash.hex(),
            event=_link(stored),
            links=between,
            no_links=no_links,
        ),
        "checkpoint": checkpoint,
        "disclosed": disclosed,
    }
    try:
        return signed_json.sign(FORM, events.decode(events.encode(members)), key)
    except strict_json.JsonError as error:
        raise JournalError(f"the receipt of {decision_id} {error}") from error


def _event(reader: Reader, seq: int) -> tuple[chain.Row, segments.Part | None] | None:
    with closing(_events(reader, seq, seq)) as stored:
        return next(stored, None)


def _name_of(reader: Reader) -> str:
    """The hash of event 1, which names the chain; empty if that event is gone."""
    first = _event(reader, 1)
    return "" if first is None else first[0].hash.hex()


def _events(
    reader: Reader, first: int, last: int
) -> Generator[tuple[chain.Row, segments.Part | None], None, None]:
    """Events with their private parts, from the archives and the database."""
    with reader.snapshot() as connection:
        for segment in segments.segments(connection, reader.path):
            if first <= last and segment.first_seq <= first <= segment.last_seq:
                with segments.reading(segment.path) as archived:
                    for row, part in archived:
                        if first <= row.seq <= last:
                            yield row, part
                first = segment.last_seq + 1
        yield from segments.live_events(connection, first, last)


def _links(
    reader: Reader, stored: chain.Row, checkpoint: Checkpoint | None, most: int
) -> tuple[tuple[Link, ...] | None, str | None]:
    """The events from the decision to the checkpoint, or None and why not."""
    if checkpoint is None:
        return None, "no checkpoint covers the decision yet"
    count = checkpoint.seq - stored.seq
    if count > most:
        return None, f"{count} events lie between the decision and the checkpoint; the limit is {most}"
    between: list[Link] = []
    size = 0
    with closing(_events(reader, stored.seq + 1, checkpoint.seq)) as rows:
        for row, _ in rows:
            between.append(_link(row))
            size += len(row.body)
            if size > MOST_LINK_BYTES:
                return None, f"the events up to the checkpoint have more than {MOST_LINK_BYTES} bytes"
    return tuple(between), None


def _link(row: chain.Row) -> Link:
    return Link(
        at=row.at.decode(),
        boot_id=row.boot_id.decode(),
        mono_ns=str(row.mono_ns),
        kind=row.kind.decode(),
        subject_id=row.subject_id.decode(),
        body=row.body.decode(),
        private_digest=row.private_digest.hex(),
    )


def _decided(body: Record) -> Record:
    return {name: body[name] for name in _DECIDED if name in body}


def _question(part: segments.Part | None, erased_by: int | None) -> Question:
    """The question by the private part of its event."""
    blank = Question(sha256=None, lack=None, erased_by=erased_by, masked=())
    if erased_by is not None:
        return msgspec.structs.replace(blank, lack="erased")
    if part is None:
        return msgspec.structs.replace(blank, lack="missing")
    private = events.decode(part[1])
    masked = tuple(private.get("masked", ()))
    try:
        digest = signed_json.digest(private["evaluation"])
    except strict_json.JsonError:
        return msgspec.structs.replace(blank, lack="integer", masked=masked)
    return msgspec.structs.replace(blank, sha256=digest, masked=masked)


# ---------------------------------------------------------------- checking


def check(content: bytes, trusted: PublicKeys, held: Sequence[Checkpoint] = ()) -> Checked:
    """Check a receipt by itself, with the public keys of the device and checkpoints that somebody `held`.

    Raises JournalError if the text is no receipt.
    """
    try:
        document = strict_json.decode(content)
        receipt = msgspec.convert(document, Receipt)
        if signed_json.digest(document) != signed_json.digest(msgspec.to_builtins(receipt)):
            raise ValueError("it has members that no receipt has")
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        raise JournalError(f"this is no receipt: {error}") from error
    if problem := signed_json.problem(FORM, document, trusted) or _event_problem(receipt):
        return Checked(receipt=receipt, problem=problem)
    question, problem = _question_problem(receipt)
    if problem is None:
        problem = _checkpoint_problem(receipt, trusted, held)
    if problem is not None:
        return Checked(receipt=receipt, problem=problem)
    links = receipt.chain.links
    if links is None or receipt.checkpoint is None:
        why = receipt.chain.no_links or "it has no links"
        return Checked(receipt=receipt, not_shown=why, question=question)
    problem = _chain_problem(receipt, links, [receipt.checkpoint, *held])
    return Checked(receipt=receipt, problem=problem, in_chain=problem is None, question=question)


def _event_problem(receipt: Receipt) -> str | None:
    """Whether the members follow from the stored event, and the hash from its columns."""
    place = receipt.chain
    stored = place.event
    if _hash(stored, bytes.fromhex(place.prev_hash), place.seq) != place.hash:
        return "its event does not have the hash that it gives"
    if (stored.kind, stored.subject_id, stored.at) != ("decision", receipt.decision_id, receipt.decided_at):
        return "its event is not the decision that it names"
    if place.seq == 1 and place.hash != place.name:
        return "its event is the first of another chain"
    if (place.links is None) != (place.no_links is not None) or (place.links and receipt.checkpoint is None):
        return "what it says of its links contradicts itself"
    try:
        body: Any = strict_json.decode(stored.body)
        follows = signed_json.canonical([_decided(body), body.get("use")])
        same = follows == signed_json.canonical([receipt.decision, receipt.approval])
    except (ValueError, AttributeError):
        same = False
    return None if same else "what it says of the decision is not what the event says"


def _question_problem(receipt: Receipt) -> tuple[bool | None, str | None]:
    """Whether the digest of the question follows from the chain (None: not shown), and what is wrong."""
    stated, disclosed = receipt.question, receipt.disclosed
    lacks, erased = stated.lack is not None, stated.lack == "erased"
    if (stated.sha256 is None) != lacks or (stated.erased_by is not None) != erased:
        return None, "what it says of the question contradicts itself"
    if disclosed is None:
        return None, None
    salt, value = bytes.fromhex(disclosed.salt), disclosed.value.encode()
    if chain.sealed_digest(salt, value).hex() != receipt.chain.event.private_digest:
        return None, "the private part that it shows is not the one on the chain"
    if _question((salt, value), None) != stated:
        return None, "the digest of the question is not that of the question that it shows"
    return True, None


def _checkpoint_problem(receipt: Receipt, trusted: PublicKeys, held: Sequence[Checkpoint]) -> str | None:
    for checkpoint in (receipt.checkpoint, *held):
        if checkpoint is None:
            continue
        if why := checkpoints.check(checkpoint, trusted):
            return f"the checkpoint of event {checkpoint.seq} is not valid: {why}"
        if checkpoint.chain != receipt.chain.name:
            return f"the checkpoint of event {checkpoint.seq} is of another journal"
    if receipt.checkpoint is not None and receipt.checkpoint.seq < receipt.chain.seq:
        return "its checkpoint is older than the decision"
    return None


def _chain_problem(receipt: Receipt, links: Sequence[Link], signed: Sequence[Checkpoint]) -> str | None:
    """Whether the links lead from the decision to the checkpoint, and pass every other one on the way."""
    place = receipt.chain
    head, hashes = place.hash, {place.seq: place.hash}
    for seq, link in enumerate(links, place.seq + 1):
        head = _hash(link, bytes.fromhex(head), seq)
        hashes[seq] = head
    if receipt.checkpoint is None or max(hashes) != receipt.checkpoint.seq:
        return "its links do not end at the event of the checkpoint"
    for checkpoint in signed:
        if hashes.get(checkpoint.seq, checkpoint.head) != checkpoint.head:
            return (
                f"the decision is not in the chain that was signed: event {checkpoint.seq} has another hash "
                "than the checkpoint signs"
            )
    return None


def _hash(link: Link, prev_hash: bytes, seq: int) -> str:
    """The hash of an event in hex; empty if no event can have these columns."""
    try:
        return link.hash_after(prev_hash, seq).hex()
    except (ValueError, OverflowError, struct.error):
        return ""


def stored_problem(reader: Reader, receipt: Receipt) -> tuple[str | None, int | None]:
    """Whether the journal has the decision of a receipt as it says, and the event that erased it since.

    It compares the event and the row of the decision; `verification.verify` checks the rest of the chain.
    """
    place = receipt.chain
    if _name_of(reader) != place.name:
        return "the journal is another one: its first event has another hash", None
    stored = _event(reader, place.seq)
    if stored is None:
        return f"the journal has no event {place.seq}: the decision was deleted", None
    row, part = stored
    if row.hash.hex() != place.hash or _link(row) != place.event or row.prev_hash.hex() != place.prev_hash:
        return f"event {place.seq} of the journal is another one: the decision was changed since", None
    decision = reader.get(receipt.decision_id)
    if decision is None or decision["seq"] != place.seq:
        return "the table decisions has no row for the decision: it was deleted", None
    if decision["decision"] != receipt.decision["outcome"]:
        return "the table decisions has another outcome for the decision", None
    erased_by = reader.erasure(place.seq)
    if erased_by is None and _question(part, None) != receipt.question:
        return "the digest of the question is not that of the recorded question", None
    return None, erased_by
