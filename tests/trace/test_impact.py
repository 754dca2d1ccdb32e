"""Impact: what rests on a precedent or on a pack, transitively, counted and bounded."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.build import NOON, PACK, by_rule, record, sent
from thor_policy.core import records
from thor_policy.core.decisions import Decision, Traits
from thor_policy.core.errors import JournalError
from thor_policy.journal import events
from thor_policy.journal.events import Event
from thor_policy.journal.reader import Reader
from thor_policy.trace import impact
from thor_policy.trace.impact import Impact, of_pack, of_precedent

NEWER = replace(PACK, version="1.3.0", sha256="d" * 64)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "policy_decisions.db"


def cites(source: Decision, target: Decision) -> Event:
    return sent(records.Edge(source=source.id, target=target.id, type="CITES"))


def state(decision: Decision, status: str, by: Decision | None = None) -> Event:
    by_id = None if by is None else by.id
    return sent(records.TraceState(decision_id=decision.id, status=status, by=by_id, because="b"))  # type: ignore[arg-type]


def steps(result: Impact) -> list[tuple[str, int, str, str]]:
    return [(row["id"], row["depth"], row["via"], row["rests_on"]) for row in result.decisions]


def of(path: Path, decision: Decision) -> Impact:
    with Reader(path) as reader:
        return of_precedent(reader, decision.id)


def under(path: Path, pack: str) -> Impact:
    with Reader(path) as reader:
        return of_pack(reader, pack)


def test_what_cites_a_precedent_rests_on_it_and_so_does_what_cites_that(path: Path) -> None:
    precedent, near, far, other = (by_rule() for _ in range(4))
    record(
        path, precedent, near, far, other, cites(near, precedent), cites(far, near), cites(precedent, other)
    )
    result = of(path, precedent)
    assert steps(result) == [(near.id, 1, "CITES", precedent.id), (far.id, 2, "CITES", near.id)]
    assert (result.complete, result.left_out) == (True, 0)


def test_the_decision_that_took_the_place_of_another_rests_on_what_that_rested_on(path: Path) -> None:
    precedent, near, successor, judge = (by_rule() for _ in range(4))
    record(path, precedent, near, successor, judge, cites(near, precedent))
    record(path, state(near, "superseded", successor), state(precedent, "overturned", judge))
    assert steps(of(path, precedent)) == [
        (near.id, 1, "CITES", precedent.id),
        (successor.id, 2, "SUPERSEDED_BY", near.id),
    ]


def test_a_cycle_ends_and_a_decision_on_two_ways_is_counted_at_the_nearest(path: Path) -> None:
    first, second, third = (by_rule() for _ in range(3))
    record(path, first, second, third)
    record(path, cites(second, first), cites(third, second), cites(third, first), cites(first, third))
    record(path, cites(second, first))
    assert [(row[0], row[1]) for row in steps(of(path, first))] == [(second.id, 1), (third.id, 1)]


def test_counts_are_by_type_outcome_and_state(path: Path) -> None:
    precedent = by_rule()
    citing = [by_rule(), by_rule(), by_rule(outcome="allow", allow=True)]
    record(path, precedent, *citing, *(cites(each, precedent) for each in citing))
    record(path, state(citing[0], "under_review"))
    counts = [tuple(row.values()) for row in of(path, precedent).counts]
    assert sorted(counts) == [
        ("policy_application", "allow", "active", 1),
        ("policy_application", "deny", "active", 1),
        ("policy_application", "deny", "under_review", 1),
    ]


def test_claims_and_traces_in_quarantine_are_left_out_but_followed(path: Path) -> None:
    precedent, far, held = by_rule(), by_rule(), by_rule()
    held = replace(held, floor=replace(held.floor, traits=Traits(required=("outcome",))))
    record(path, precedent, held, far, cites(held, precedent), cites(far, held))
    result = of(path, precedent)
    assert [row["id"] for row in result.decisions] == [far.id]
    assert result.left_out == 1


def test_the_bound_cuts_the_walk_off_and_is_stated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precedent, citing = by_rule(), [by_rule() for _ in range(6)]
    record(path, precedent, *citing, *(cites(each, precedent) for each in citing))
    monkeypatch.setattr(impact, "MOST_RESTING", 5)
    result = of(path, precedent)
    assert (len(result.decisions), result.complete) == (5, False)
    monkeypatch.setattr(impact, "MOST_RESTING", 6)
    assert of(path, precedent).complete is True


def test_many_edges_to_one_decision_do_not_hide_that_the_walk_was_cut_off(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precedent, citing, last = by_rule(), by_rule(), by_rule()
    record(
        path, precedent, citing, last, *(cites(citing, precedent) for _ in range(8)), cites(last, precedent)
    )
    monkeypatch.setattr(impact, "MOST_RESTING", 2)
    assert of(path, precedent).complete is False


@pytest.mark.parametrize("pack", ["core@1.2.0", PACK.sha256, PACK.sha256[:12], "core@1.2.0+c0ffee000000"])
def test_what_a_pack_governed_rests_on_it_and_so_does_what_cites_that(path: Path, pack: str) -> None:
    old, new, citing = by_rule(), by_rule(pack=NEWER), by_rule(pack=NEWER)
    record(path, events.pack_activated(PACK, NOON), old, events.pack_activated(NEWER, NOON), new, citing)
    record(path, cites(citing, old))
    assert steps(under(path, pack)) == [(old.id, 0, "GOVERNED_BY", pack), (citing.id, 1, "CITES", old.id)]


def test_a_pack_that_was_active_twice_has_the_decisions_of_both_times(path: Path) -> None:
    made = [by_rule(), by_rule(pack=NEWER), by_rule()]
    packs = [PACK, NEWER, PACK]
    for pack, decision in zip(packs, made, strict=True):
        record(path, events.pack_activated(pack, NOON), decision)
    assert [row["id"] for row in under(path, "core@1.2.0").decisions] == [made[2].id, made[0].id]


def test_a_pack_that_was_never_the_active_one_has_its_decisions_too(path: Path) -> None:
    made = by_rule(pack=NEWER)
    record(path, events.pack_activated(PACK, NOON), by_rule(), made)
    assert [row["id"] for row in under(path, "core@1.3.0").decisions] == [made.id]


def test_a_version_is_not_taken_for_another_that_begins_as_it_does(path: Path) -> None:
    longer = by_rule(pack=replace(PACK, version="1.2.01", sha256="e" * 64))
    record(path, longer)
    assert under(path, "core@1.2.0").decisions == []


def test_the_decisions_of_a_pack_are_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(path, events.pack_activated(PACK, NOON), *(by_rule() for _ in range(4)))
    monkeypatch.setattr(impact, "MOST_RESTING", 3)
    result = under(path, "core@1.2.0")
    assert (len(result.decisions), result.complete) == (3, False)


@pytest.mark.parametrize("pack", ["core", "c0ffee", "C0FFEE000000", "", "%"])
def test_what_names_no_version_is_refused_with_the_cure(path: Path, pack: str) -> None:
    record(path, by_rule())
    with pytest.raises(JournalError, match="NAME@VERSION"):
        under(path, pack)


def test_a_precedent_that_is_not_recorded_is_refused(path: Path) -> None:
    record(path, by_rule())
    with Reader(path) as reader, pytest.raises(JournalError, match="there is no decision 'nothing'"):
        of_precedent(reader, "nothing")
