"""Receipts: nothing in one can be changed, by others or by the device, without being refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.build import (
    about,
    by_model,
    by_rule,
    changed,
    erasing,
    note,
    record,
    rows,
    sent,
    signing,
    writing,
)
from thor_policy.core import records
from thor_policy.core.errors import JournalError
from thor_policy.core.lifting import Use
from thor_policy.core.requests import Json
from thor_policy.journal import checkpoints, receipts
from thor_policy.journal.checkpoints import Checkpoint, Signer
from thor_policy.journal.maintenance.archive import archive_before
from thor_policy.journal.reader import Reader
from thor_policy.journal.writer import Journal
from thor_policy.security import signed_json
from thor_policy.security.signatures import Key, PublicKeys

MADE_AT = "2026-07-01T13:00:00+00:00"
#: What the device alone states; a third party cannot find it in the chain.
STATED = {("made_at",)}
#: As well, in a receipt that does not show the question.
STATED_OF_QUESTION = {("question", name) for name in ("sha256", "lack", "erased_by", "masked")}


class Device:
    """A device with a signed journal: decisions by the model, by a rule, with an approval that expired."""

    def __init__(self, directory: Path, first: str = "first") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "policy.db"
        self.directory = directory / "checkpoints"
        self.ids = [f"018f-receipt-{number}" for number in range(3)]
        record(
            self.path,
            note(first),
            by_model(id=self.ids[0]),
            by_rule(id=self.ids[1]),
            by_model(id=self.ids[2], use=Use(task="t-1", code="approval_expired")),
            checkpoints=signing(self.path),
        )
        self.key = Key.load_existing(directory / "checkpoint.key")
        self.trusted: PublicKeys = checkpoints.trusted_keys([directory / "checkpoint.key.pub"])

    def receipt(self, number: int = 0, **options: Any) -> dict[str, Json]:
        with Reader(self.path) as reader:
            return receipts.make(
                reader,
                self.ids[number],
                key=self.key,
                checkpoint_dir=self.directory,
                made_at=MADE_AT,
                **options,
            )

    def check(self, receipt: Json, *held: Checkpoint) -> receipts.Checked:
        return receipts.check(msgspec.json.encode(receipt), self.trusted, held)

    def refuses(self, receipt: Json, *held: Checkpoint) -> bool:
        """True if the text is no receipt, or one with a problem."""
        try:
            return self.check(receipt, *held).problem is not None
        except JournalError:
            return True

    def signed_again(self, receipt: dict[str, Json]) -> dict[str, Json]:
        """The receipt as the device itself could sign it after a change."""
        members = {name: receipt[name] for name in receipt if name not in ("form", "key", "signature")}
        return signed_json.sign(receipts.FORM, members, self.key)

    def problem_in_journal(self, receipt: Json) -> str | None:
        with Reader(self.path) as reader:
            return receipts.stored_problem(reader, self.check(receipt).receipt)[0]


@pytest.fixture
def device(short_dir: Path) -> Device:
    return Device(short_dir / "a")


@pytest.fixture
def other(short_dir: Path) -> Device:
    """Another journal, of a device with the same key."""
    folder = short_dir / "b"
    folder.mkdir()
    (folder / "checkpoint.key").write_bytes((short_dir / "a" / "checkpoint.key").read_bytes())
    (folder / "checkpoint.key").chmod(0o600)
    return Device(folder, first="another")


def places(value: Json, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every member and item of a document."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield (*path, name)
        yield from places(part, (*path, name))


def at(document: Json, path: tuple[str | int, ...]) -> Json:
    for key in path:
        document = document[key]
    return document


def altered(value: Json) -> list[Json]:
    """Other values of the same type, and of another one."""
    if isinstance(value, bool):
        return [not value, int(value), None]
    if isinstance(value, int | float):
        return [value + 1, -value - 1, str(value)]
    if isinstance(value, str):
        swapped = ("0" if value[-1:] != "0" else "1") if value else "x"
        return [value[:-1] + swapped, value + "0", "", None] if value else ["x", None]
    if value is None:
        return ["x", 0, {}, []]
    if isinstance(value, dict):
        return [value | {"x": 1}, {"x": 1}, None]
    return [[*value, "x"], None] + ([value[1:]] if value else [])


def all_changes(receipt: dict[str, Json]) -> Iterator[tuple[tuple[str | int, ...], dict[str, Json]]]:
    """Each member changed in several ways, and left out."""
    for path in places(receipt):
        for value in [*altered(at(receipt, path)), ...]:
            document: Any = changed(copy.deepcopy(receipt), path, value)
            yield path, document


# ---------------------------------------------------------------- what a receipt says


def test_a_receipt_says_what_was_decided_by_what_and_where_it_stands(device: Device) -> None:
    checked = device.check(device.receipt())
    stated = checked.receipt
    assert (checked.problem, checked.in_chain, checked.question) == (None, True, None)
    assert (stated.decision["outcome"], stated.decision["floor"], stated.decision["tier"]) == (
        "deny",
        {"outcome": "allow"},
        "model",
    )
    assert stated.decision["probabilities"] == {"allow": 0.25, "deny": 0.75}
    assert str(stated.decision["pack"]["sha256"]).startswith("c0ffee")
    assert (stated.chain.seq, stated.checkpoint and stated.checkpoint.seq) == (2, 5)
    assert [link.kind for link in stated.chain.links or ()] == ["decision", "decision", "checkpoint"]


def test_a_receipt_names_the_rules_and_the_approval_that_was_used(device: Device) -> None:
    assert device.receipt(1)["decision"]["floor"]["rules"] == ["freeze"]
    assert device.receipt(2)["approval"] == {"task": "t-1", "code": "approval_expired"}


def test_the_digest_is_that_of_the_question_in_canonical_json(device: Device) -> None:
    receipt = device.receipt(disclose=True)
    question = json.loads(receipt["disclosed"]["value"])["evaluation"]
    assert receipt["question"]["sha256"] == signed_json.digest(question)
    assert device.check(receipt).question is True


def test_a_receipt_holds_no_text_of_the_question_unless_it_is_disclosed(device: Device) -> None:
    assert b"alice" not in msgspec.json.encode(device.receipt())
    assert b"alice" in msgspec.json.encode(device.receipt(disclose=True))


def test_masked_values_and_large_integers_are_named(short_dir: Path) -> None:
    device = Device(short_dir)
    large = by_model(id="018f-large", evaluation=about(amount=2**60))
    record(device.path, large, masked=["/context/team_context"])
    masked = by_model(id="018f-masked", evaluation=about(team_context="secret"))
    record(device.path, masked, masked=["/context/team_context"])
    device.ids += ["018f-large", "018f-masked"]
    question = device.receipt(3)["question"]
    assert (question["sha256"], question["lack"]) == (None, "integer")
    assert device.receipt(4)["question"]["masked"] == ["/context/team_context"]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("disclose", [False, True])
def test_a_receipt_with_any_member_changed_or_left_out_is_refused(device: Device, disclose: bool) -> None:
    receipt = device.receipt(disclose=disclose)
    assert not device.refuses(receipt)
    accepted = [path for path, document in all_changes(receipt) if not device.refuses(document)]
    assert accepted == []


@pytest.mark.parametrize("disclose", [False, True])
def test_a_change_that_the_device_signs_again_is_refused(device: Device, disclose: bool) -> None:
    """All but what the device alone states: when it made the receipt, and the digest of a hidden question."""
    receipt = device.receipt(2, disclose=disclose)
    stated = STATED | ({("disclosed",)} if disclose else STATED_OF_QUESTION)
    signed = {("form",), ("key",), ("signature",)}  # made again
    accepted = {
        path
        for path, document in all_changes(receipt)
        if path not in signed and not device.refuses(device.signed_again(document))
    }
    assert accepted <= stated


def test_a_decision_that_is_not_in_the_chain_is_refused(device: Device, other: Device) -> None:
    receipt, foreign = device.receipt(), other.receipt()
    for name in ("decision_id", "decided_at", "question", "decision", "approval"):
        receipt[name] = foreign[name]
    mine, foreign_place = receipt["chain"], foreign["chain"]
    receipt["chain"] = foreign_place | {"name": mine["name"], "links": mine["links"]}
    assert "not in the chain" in str(device.check(device.signed_again(receipt)).problem)


def test_a_checkpoint_of_another_journal_is_refused(device: Device, other: Device) -> None:
    receipt = device.receipt() | {"checkpoint": other.receipt()["checkpoint"]}
    assert "another journal" in str(device.check(device.signed_again(receipt)).problem)


def test_a_checkpoint_that_somebody_held_reveals_a_history_that_was_written_again(
    device: Device, other: Device
) -> None:
    held = msgspec.convert(device.receipt()["checkpoint"], Checkpoint)
    assert device.check(device.receipt(), held).in_chain
    assert "another journal" in str(other.check(other.receipt(), held).problem)
    signer = Signer.load(device.path.parent / "checkpoint.key")
    was = signer.sign(held.chain, 3, "ab" * 32, held.at)
    assert "event 3 has another hash" in str(device.check(device.receipt(), was).problem)


def test_an_older_checkpoint_is_refused(device: Device) -> None:
    signer = Signer.load(device.path.parent / "checkpoint.key")
    receipt = device.receipt(1)
    place = receipt["chain"]
    old = signer.sign(place["name"], 2, place["prev_hash"], "2026-07-01T12:00:00Z")
    receipt["checkpoint"] = msgspec.to_builtins(old)
    assert "older than the decision" in str(device.check(device.signed_again(receipt)).problem)


def test_a_checkpoint_by_another_key_is_refused(device: Device, short_dir: Path) -> None:
    (short_dir / "c").mkdir()
    stranger = Signer.load(short_dir / "c" / "checkpoint.key")
    receipt = device.receipt()
    was = receipt["checkpoint"]
    receipt["checkpoint"] = msgspec.to_builtins(stranger.sign(was["chain"], 5, was["head"], was["at"]))
    assert "not among the trusted" in str(device.check(device.signed_again(receipt)).problem)


def test_a_text_that_is_no_receipt_is_an_error(device: Device) -> None:
    for content in (b"", b"{}", b"[]", b"\xff", b'{"form": "a", "form": "a"}', b"[" * 10_000):
        with pytest.raises(JournalError, match="no receipt"):
            receipts.check(content, device.trusted)


# ---------------------------------------------------------------- what a receipt cannot show


def test_without_a_checkpoint_a_receipt_does_not_show_the_chain(short_dir: Path) -> None:
    device = Device(short_dir)
    record(device.path, by_rule(id="018f-later"))
    device.ids.append("018f-later")
    checked = device.check(device.receipt(3))
    assert (checked.problem, checked.in_chain) == (None, None)
    assert "no checkpoint covers" in str(checked.not_shown)


def test_links_beyond_the_limit_are_left_out_and_counted(device: Device) -> None:
    assert device.check(device.receipt(links=3)).in_chain
    checked = device.check(device.receipt(links=2))
    assert (checked.problem, checked.in_chain) == (None, None)
    assert checked.not_shown == "3 events lie between the decision and the checkpoint; the limit is 2"


def test_an_unknown_decision_and_a_question_that_is_gone_are_errors(device: Device) -> None:
    device.ids.append("018f-unknown")
    with pytest.raises(JournalError, match="there is no decision"):
        device.receipt(3)
    record(device.path, erasing(device.path, 2))
    with pytest.raises(JournalError, match="was erased"):
        device.receipt(disclose=True)


# ---------------------------------------------------------------- beside the journal


def test_an_archived_decision_has_the_same_receipt(device: Device) -> None:
    before = device.receipt()
    with Journal(device.path) as journal:
        archive_before(journal, "2027-01-01T00:00:00Z")
    assert rows(device.path, "SELECT count(*) FROM events WHERE seq = 2") == [(0,)]
    assert device.receipt() == before
    assert device.problem_in_journal(before) is None


def test_an_erased_question_is_said_to_be_erased(device: Device) -> None:
    before = device.receipt()
    record(device.path, erasing(device.path, 2))
    with Reader(device.path) as reader:
        assert receipts.stored_problem(reader, device.check(before).receipt) == (None, 6)
    after = device.receipt()
    assert (after["question"]["lack"], after["question"]["erased_by"]) == ("erased", 6)
    assert device.check(after).in_chain


def test_a_deleted_decision_is_found_in_the_journal(device: Device) -> None:
    receipt = device.receipt()
    assert device.problem_in_journal(receipt) is None
    with writing(device.path) as connection:
        connection.execute("DELETE FROM decisions WHERE seq = 2")
    assert "was deleted" in str(device.problem_in_journal(receipt))
    with writing(device.path) as connection:
        connection.execute("DELETE FROM events WHERE seq = 2")
    assert "no event 2" in str(device.problem_in_journal(receipt))


def test_a_decision_that_was_stamped_again_is_found_in_the_journal(device: Device) -> None:
    receipt = device.receipt()
    with writing(device.path) as connection:
        connection.execute("UPDATE events SET hash = ? WHERE seq = 2", (bytes(32),))
    assert "changed since" in str(device.problem_in_journal(receipt))


def test_another_journal_is_not_taken_for_the_journal_of_a_receipt(device: Device, other: Device) -> None:
    assert "another one" in str(other.problem_in_journal(device.receipt()))


def test_a_digest_of_a_question_that_was_not_asked_is_found_in_the_journal(device: Device) -> None:
    receipt = device.receipt()
    receipt["question"]["sha256"] = "ab" * 32
    assert "digest of the question" in str(device.problem_in_journal(device.signed_again(receipt)))


def test_a_reported_decision_has_no_receipt(device: Device) -> None:
    report = sent(records.DecisionReport(outcome="allow"), record_id="018f-reported")
    record(device.path, report)
    device.ids.append("018f-reported")
    with pytest.raises(JournalError, match="reported from elsewhere"):
        device.receipt(3)
