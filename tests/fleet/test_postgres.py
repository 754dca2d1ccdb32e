"""What a device ships to PostgreSQL arrives once, verified by the store, with the rows of the device."""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.build import (
    CALLER,
    NOON,
    PACK,
    about,
    by_model,
    by_rule,
    erasing,
    one_of_each,
    record,
    rows,
    sent,
    signing,
    what_judges,
    writing,
)
from tests.stores import as_role, restamp, ship
from thor_policy.core import records
from thor_policy.core.decisions import Decision, Floor, Governing, Traits
from thor_policy.core.errors import ConfigError
from thor_policy.core.requests import Entity
from thor_policy.fleet import store as store_module
from thor_policy.fleet.batches import TABLES, JournalSource
from thor_policy.fleet.index import arrange
from thor_policy.fleet.postgres import PostgresSink, parameters
from thor_policy.fleet.shipper import Forked, SinkError
from thor_policy.fleet.store import Store, migrations
from thor_policy.fleet.verification import verify
from thor_policy.journal import chain, projections
from thor_policy.journal.checkpoints import read_directory
from thor_policy.journal.events import decision_event, record_event
from thor_policy.journal.maintenance.archive import archive_before
from thor_policy.journal.maintenance.erase import erase
from thor_policy.journal.storage import EVENT_COLUMNS
from thor_policy.journal.writer import Journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the journal of the device is."""
    return tmp_path / "policy_decisions.db"


def kinds_of_alarms(store: Store) -> list[str]:
    return [row["kind"] for row in store.alarms()]


def in_store(store: Store, table: str) -> list[dict[str, Any]]:
    """The rows of a table of the store, without the columns that the device does not have."""
    stored = store.ask(f"SELECT * FROM {table} ORDER BY seq")
    return [{name: value for name, value in row.items() if name != "journal"} for row in stored]


def on_device(path: Path, table: str) -> list[dict[str, Any]]:
    """The rows of a table of the device, as the types of the store hold them."""
    names = projections.columns_of(table)
    quoted = ", ".join(f'"{name}"' for name in names)
    return [
        dict(zip(names, row, strict=True)) for row in rows(path, f"SELECT {quoted} FROM {table} ORDER BY seq")
    ]


def same(device: dict[str, Any], store: dict[str, Any]) -> dict[str, Any]:
    """A row of the device with each value in the type of the store."""

    def converted(name: str) -> Any:
        value, wanted = device[name], store[name]
        if name in projections.JSON_COLUMNS and value is not None:
            return msgspec.json.decode(value)
        if isinstance(wanted, bool):
            return bool(value)
        return datetime.fromisoformat(value) if isinstance(wanted, datetime) else value

    return {name: converted(name) for name in store}


def test_every_event_arrives_with_its_stored_bytes_and_the_rows_of_the_device(
    path: Path, store: Store, store_url: str
) -> None:
    doubted = by_rule()
    state = records.TraceState(decision_id=doubted.id, status="under_review", because="it was odd")
    record(path, *one_of_each(), *what_judges(), doubted, sent(state))
    assert ship(path, store_url, most=7) == rows(path, "SELECT count(*) FROM events")[0][0]
    stored = store.ask(
        "SELECT seq, convert_to(at, 'UTF8') AS at, boot_id, mono_ns, kind, subject_id, body, private_digest, "
        "prev_hash, hash FROM events ORDER BY seq"
    )
    device = rows(path, f"SELECT {EVENT_COLUMNS} FROM events ORDER BY seq")
    plain = [
        tuple(
            value.decode() if name in ("at", "subject_id", "body") else value for name, value in row.items()
        )
        for row in stored
    ]
    assert plain == device
    parts = store.ask("SELECT seq, salt, value FROM private ORDER BY seq")
    assert [(row["seq"], row["salt"], row["value"].decode()) for row in parts] == rows(
        path, "SELECT seq, salt, value FROM private ORDER BY seq"
    )
    for table in sorted(TABLES):
        arrived = in_store(store, table)
        assert arrived, table
        assert [same(*pair) for pair in zip(on_device(path, table), arrived, strict=True)] == arrived
    assert store.ask("SELECT * FROM without_rows") == []
    (verified,) = verify(store)
    assert verified.ok
    assert (verified.events, verified.unproven) == (len(device), 0)


def test_a_batch_that_was_committed_without_an_answer_is_stored_once(
    path: Path, store: Store, store_url: str
) -> None:
    record(path, *(by_rule() for _ in range(5)))
    source = JournalSource(path, "thor-1", path.parent / "checkpoints")
    sink = PostgresSink(store_url)
    batch = source.batch(0, bytes(32))
    assert batch is not None
    assert [sink.write(batch).seq for _ in range(2)] == [5, 5]
    record(path, by_rule())
    overlapping = source.batch(0, bytes(32))
    assert overlapping is not None
    assert sink.write(overlapping).seq == 6
    assert store.ask("SELECT count(*), count(DISTINCT seq) AS seqs FROM events") == [{"count": 6, "seqs": 6}]
    sink.close()
    source.close()


@pytest.mark.parametrize("seq", [2, 3])
def test_a_batch_that_overlaps_stored_events_with_another_hash_is_an_alarm(
    path: Path, store: Store, store_url: str, seq: int
) -> None:
    record(path, *(by_rule() for _ in range(3)))
    ship(path, store_url)
    before = hashes(store, "thor-1")
    record(path, by_rule())
    with writing(path) as connection:
        connection.execute("UPDATE events SET mono_ns = mono_ns + 1 WHERE seq = ?", (seq,))
        restamp(connection)
    source = JournalSource(path, "thor-1", path.parent / "checkpoints")
    rewritten = source.batch(0, bytes(32))
    source.close()
    assert rewritten is not None
    sink = PostgresSink(store_url)
    with pytest.raises(Forked, match="has another event with this number"):
        sink.write(rewritten)
    sink.close()
    assert [(row["kind"], row["seq"]) for row in store.alarms()] == [("fork", seq)]
    assert hashes(store, "thor-1") == before


def test_events_beyond_a_gap_are_refused_and_the_store_says_where_to_go_on(
    path: Path, store_url: str
) -> None:
    record(path, *(by_rule() for _ in range(5)))
    source = JournalSource(path, "thor-1", path.parent / "checkpoints")
    sink = PostgresSink(store_url)
    whole = source.batch(0, bytes(32))
    assert whole is not None
    assert sink.write(replace(whole, events=whole.events[2:])).seq == 0
    assert sink.write(replace(whole, events=whole.events[:2])).seq == 2
    assert sink.write(replace(whole, events=whole.events[3:])).seq == 2
    assert sink.write(whole).seq == 5
    sink.close()
    source.close()


@pytest.mark.parametrize(
    "column",
    ["at", "boot_id", "mono_ns", "kind", "subject_id", "body", "private_digest", "prev_hash", "hash"],
)
def test_the_store_refuses_an_event_that_does_not_match_its_hash(
    path: Path, store: Store, store_url: str, column: str
) -> None:
    record(path, *(by_rule() for _ in range(3)))
    source = JournalSource(path, "thor-1", path.parent / "checkpoints")
    batch = source.batch(0, bytes(32))
    assert batch is not None
    row, part = batch.events[1]
    old = getattr(row, column)
    forged = row._replace(**{column: old + 1 if isinstance(old, int) else old + b" "})
    sink = PostgresSink(store_url)
    with pytest.raises(Forked, match="finds a wrong hash"):
        sink.write(replace(batch, events=[batch.events[0], (forged, part), batch.events[2]]))
    assert kinds_of_alarms(store) == ["broken"]
    assert store.ask("SELECT count(*) FROM events") == [{"count": 0}]
    sink.close()
    source.close()


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("column", chain.Row._fields)
def test_the_store_takes_no_event_without_one_of_its_columns(
    path: Path, store: Store, store_url: str, column: str, number: int
) -> None:
    record(path, *(by_rule() for _ in range(3)))
    source = JournalSource(path, "thor-1", path.parent / "checkpoints")
    batch = source.batch(0, bytes(32))
    assert batch is not None
    row, part = batch.events[number]
    forged = list(batch.events)
    forged[number] = (row._replace(**{column: None}), part)
    sink = PostgresSink(store_url)
    if (column, number) == ("seq", 0):
        assert sink.write(replace(batch, events=forged)).seq == 0
    else:
        with pytest.raises(Forked, match=r"finds a wrong hash|has another event"):
            sink.write(replace(batch, events=forged))
        assert kinds_of_alarms(store) in (["broken"], ["fork"])
    assert store.ask("SELECT count(*) FROM events") == [{"count": 0}]
    sink.close()
    source.close()


def test_the_store_refuses_a_private_part_with_another_digest(
    path: Path, store: Store, store_url: str
) -> None:
    record(path, by_rule())
    source = JournalSource(path, "thor-1", path.parent / "checkpoints")
    batch = source.batch(0, bytes(32))
    assert batch is not None
    row, part = batch.events[0]
    assert part is not None
    sink = PostgresSink(store_url)
    with pytest.raises(Forked):
        sink.write(replace(batch, events=[(row, (part[0], part[1].replace(b"alice", b"mallo")))]))
    assert kinds_of_alarms(store) == ["broken"]
    sink.close()
    source.close()


#: How a stored event can be altered so that its hash differs.
ALTERED = {
    "at": "at || 'x'",
    "boot_id": "boot_id || 'x'",
    "mono_ns": "mono_ns + 1",
    "kind": "kind || 'x'",
    "subject_id": "subject_id || 'x'",
    "body": "body || ' '",
    "private_digest": "zeroblob(32)",
}
SHIPPED, RECORDED = 12, 15


def hashes(store: Store, device: str) -> list[bytes]:
    """The hashes of the first journal of a device."""
    rows = store.ask(
        "SELECT e.hash FROM events e WHERE e.journal = (SELECT min(journal) FROM journals "
        "WHERE device = %(d)s) ORDER BY e.seq",
        {"d": device},
    )
    return [row["hash"] for row in rows]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal of which the first events are to be shipped."""
    path = tmp_path_factory.mktemp("device") / "policy_decisions.db"
    record(path, *(by_rule() for _ in range(RECORDED)))
    return path


@pytest.mark.parametrize("examples", [15, pytest.param(100, marks=pytest.mark.soak)])
def test_a_device_whose_journal_was_stamped_anew_raises_an_alarm(
    shipped: Path, store: Store, store_url: str, tmp_path: Path, examples: int
) -> None:
    runs = iter(range(10_000))

    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
    @given(seq=st.integers(1, SHIPPED), column=st.sampled_from(sorted(ALTERED)), end=st.integers(1, RECORDED))
    def alter(seq: int, column: str, end: int) -> None:
        device = f"thor-{next(runs)}"
        folder = tmp_path / device
        folder.mkdir()
        path = folder / shipped.name
        shutil.copy(shipped, path)
        with writing(path) as connection:
            connection.execute("DELETE FROM events WHERE seq > ?", (SHIPPED,))
        assert ship(path, store_url, device) == SHIPPED
        shutil.copy(shipped, path)
        with writing(path) as connection:
            connection.execute(f"UPDATE events SET {column} = {ALTERED[column]} WHERE seq = ?", (seq,))
            connection.execute("DELETE FROM events WHERE seq > ?", (max(end, seq),))
            restamp(connection)
        before = hashes(store, device)
        try:
            ship(path, store_url, device)
        except Forked:
            assert seq > 1
        else:
            assert seq == 1  # event 1 names the journal, so this is another journal of the same device
        alarms = store.ask("SELECT kind FROM alarms WHERE device = %(d)s", {"d": device})
        expected = "new_journal" if seq == 1 else "fork" if max(end, seq) >= SHIPPED else "rolled_back"
        assert [row["kind"] for row in alarms] == [expected]
        assert hashes(store, device) == before

    alter()
    assert store.ask("SELECT count(DISTINCT device) >= %(n)s AS all FROM alarms", {"n": examples}) == [
        {"all": True}
    ]


def test_a_journal_that_begins_with_a_gap_after_damage_is_no_alarm(
    path: Path, tmp_path: Path, store: Store, store_url: str
) -> None:
    record(path, by_rule())
    ship(path, store_url)
    path.write_bytes(b"no database" * 100)
    for ending in ("-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)
    Journal(path).close()
    record(path, by_rule())
    assert ship(path, store_url) == 2
    assert kinds_of_alarms(store) == []
    assert [row["events"] for row in store.devices()] == [1, 2]


# ---------------------------------------------------------------- quarantine


def quarantined(store: Store) -> dict[str, Any]:
    """What each decision lacks, as the store and the view of what counts say."""
    lacks = {
        row["decision_id"]: row["lacks"] for row in store.ask("SELECT decision_id, lacks FROM decisions")
    }
    counted = {row["decision_id"] for row in store.ask("SELECT decision_id FROM counted")}
    assert counted == {name for name, value in lacks.items() if value is None}
    return lacks


def requiring(name: str, *required: str) -> Decision:
    floor = Floor(
        outcome="deny", final=True, traits=Traits(type="exception", is_exception=True, required=required)
    )
    return by_rule(id=name, floor=floor)


def test_a_trace_that_a_later_record_completes_leaves_the_quarantine_of_the_store(
    path: Path, store: Store, store_url: str
) -> None:
    has, lacks, outcome = (
        requiring("has", "actor"),
        requiring("lacks", "approved_by"),
        requiring("out", "outcome"),
    )
    record(path, has, lacks, outcome)
    ship(path, store_url)
    assert quarantined(store) == {"has": None, "lacks": ["approved_by"], "out": ["outcome"]}
    assert store.compliance(since="2000-01-01T00:00:00Z") == []
    approval = records.Approval(
        decision_id="lacks", verdict="approved", approver="kim", role="manager", step=1
    )
    record(path, sent(approval))
    ship(path, store_url)
    assert quarantined(store) == {"has": None, "lacks": None, "out": ["outcome"]}
    assert [row["decision_id"] for row in store.compliance(since="2000-01-01T00:00:00Z")] == ["lacks"]
    record(path, sent(records.Outcome(decision_id="out", status="SUCCESS")))
    ship(path, store_url)
    assert set(quarantined(store).values()) == {None}
    assert verify(store)[0].ok


def test_what_a_session_consulted_completes_a_trace_in_the_store(
    path: Path, store: Store, store_url: str
) -> None:
    report = records.DecisionReport(outcome="approve", made_by="human", session="s9")
    governing = Governing(pack=PACK, required=("source_data",))
    record(path, record_event(report, record_id="r1", at=NOON, caller=CALLER, governing=governing))
    ship(path, store_url)
    assert quarantined(store) == {"r1": ["source_data"]}
    record(path, sent(records.Consultation(system="prices", session="s9", value={"p": 1})))
    ship(path, store_url)
    assert quarantined(store) == {"r1": None}


# ---------------------------------------------------------------- erasure


def names_alice(store: Store) -> list[str]:
    """The tables of the store that hold the name."""
    names = []
    for table in ("private", "summaries", *sorted(TABLES)):
        as_text = "encode(t.value, 'escape')" if table == "private" else "t::text"
        if store.ask(f"SELECT count(*) FROM {table} t WHERE {as_text} ILIKE '%alice%'")[0]["count"]:
            names.append(table)
    return names


@pytest.mark.parametrize("shipped_before", [True, False])
def test_an_erasure_reaches_the_store_and_leaves_the_chain_whole(
    path: Path, store: Store, store_url: str, shipped_before: bool
) -> None:
    other = about(details="alice said so")
    other = replace(other, subject=replace(other.subject, id="bob"))
    decision = by_model(evaluation=other)
    review = records.Review(
        decision_id=decision.id, verdict="accept", reviewer="alice", reasoning="alice looked"
    )
    record(path, by_model(), decision, sent(review))
    if shipped_before:
        ship(path, store_url)
        assert names_alice(store) == ["private", "decisions", "reviews"]
    with Journal(path) as journal:
        done = erase(journal, "user:alice", unshipped=True)
    assert (done.own, done.mentions) == (1, 2)
    ship(path, store_url)
    assert names_alice(store) == []
    kept = store.ask("SELECT situation -> 'context' ->> 'details' AS details FROM decisions ORDER BY seq")
    assert [row["details"] for row in kept] == [None, "[erased] said so"]
    (verified,) = verify(store)
    assert verified.ok
    assert (verified.erased, verified.unproven) == (3, 0)


def test_what_an_erasure_left_is_stored_only_with_the_digest_that_is_on_the_chain(
    path: Path, store: Store, store_url: str
) -> None:
    record(path, by_rule())
    ship(path, store_url)
    kept = rows(path, "SELECT value FROM private")[0][0].replace("alice", "[erased]")
    record(path, erasing(path, 1, keep=kept))
    source = JournalSource(path, "thor-1", path.parent / "checkpoints")
    batch = source.batch(1, rows(path, "SELECT hash FROM events WHERE seq = 1")[0][0])
    assert batch is not None
    (left,) = batch.left
    sink = PostgresSink(store_url)
    sink.write(replace(batch, left=[replace(left, value=b'{"forged": true}')]))
    assert store.ask("SELECT count(*) FROM private") == [{"count": 0}]
    sink.close()
    source.close()


def test_masked_values_stay_masked_in_the_store(path: Path, store: Store, store_url: str) -> None:
    event = decision_event(by_model(), masked=("/context/details",))
    record(path, event)
    ship(path, store_url)
    stored = store.ask("SELECT encode(value, 'escape') AS value FROM private")[0]["value"]
    assert "Friday" not in stored
    assert store.ask("SELECT situation -> 'context' ->> 'details' AS d FROM decisions") == [{"d": "[masked]"}]


def test_a_text_that_postgresql_cannot_hold_stops_nothing(path: Path, store: Store, store_url: str) -> None:
    record(path, by_model(evaluation=about(details="a\0b", team_context="\0")), by_rule())
    assert ship(path, store_url) == 2
    assert store.ask("SELECT situation -> 'context' ->> 'details' AS d FROM decisions WHERE seq = 1") == [
        {"d": "a\ufffdb"}
    ]
    (verified,) = verify(store)
    assert verified.ok


def test_rows_that_do_not_fit_are_noted_and_all_others_arrive(
    path: Path, store: Store, store_url: str
) -> None:
    long = "".join(map(chr, range(0x4E00, 0x4E00 + 4_000)))  # longer than an entry of an index
    decision = by_rule()
    judged = records.Outcome(decision_id=decision.id, status="SUCCESS")
    odd = by_rule(evaluation=replace(about(), subject=Entity(type="user", id=long)))
    record(path, decision, odd, sent(judged), by_rule())
    assert ship(path, store_url) == 4
    (noted,) = store.ask("SELECT first_seq, last_seq, reason FROM without_rows")
    assert (noted["first_seq"], noted["last_seq"]) == (2, 2)
    assert "index row" in noted["reason"]
    assert store.ask("SELECT seq, outcome_status FROM decisions ORDER BY seq") == [
        {"seq": 1, "outcome_status": "SUCCESS"},
        {"seq": 4, "outcome_status": None},
    ]
    assert store.ask("SELECT seq FROM outcomes") == [{"seq": 3}]
    assert store.ask("SELECT count(*) FROM events") == [{"count": 4}]


def test_the_second_event_of_a_decision_has_no_row(path: Path, store: Store, store_url: str) -> None:
    record(path, *(by_rule() for _ in range(3)))
    with writing(path) as connection:
        connection.execute(
            "UPDATE events SET subject_id = (SELECT subject_id FROM events WHERE seq = 1) WHERE seq = 2"
        )
        restamp(connection)
    assert ship(path, store_url) == 3
    assert [row["last_seq"] for row in store.ask("SELECT * FROM without_rows")] == [2]
    assert [row["seq"] for row in store.ask("SELECT seq FROM decisions ORDER BY seq")] == [1, 3]
    assert store.ask("SELECT count(*) FROM events") == [{"count": 3}]


def test_archived_events_are_shipped_to_a_store_that_lost_them(
    path: Path, store: Store, store_url: str
) -> None:
    record(path, *(by_rule() for _ in range(4)))
    with Journal(path) as journal:
        archive_before(journal, "2030-01-01T00:00:00Z")
    assert rows(path, "SELECT min(seq) FROM events")[0][0] > 3
    newest = rows(path, "SELECT max(seq) FROM events")[0][0]
    assert ship(path, store_url, most=3) == newest
    assert verify(store)[0].ok


def test_checkpoints_are_kept_beside_the_chain_and_checked_with_a_key(
    path: Path, store: Store, store_url: str
) -> None:
    record(path, by_rule(), by_rule(), checkpoints=signing(path))
    ship(path, store_url)
    keys = read_directory(path.parent / "checkpoints").public_keys
    (verified,) = verify(store, keys=keys)
    assert (verified.ok, verified.signed) == (True, verified.events)
    store.connection.execute("UPDATE checkpoints SET signature = repeat('0', 128)")
    assert verify(store, keys=keys)[0].signed == 0


# ---------------------------------------------------------------- the centre's own check


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("UPDATE events SET body = body || ' ' WHERE seq = 2", "event 2 does not match its hash"),
        ("DELETE FROM events WHERE seq = 2", "event 2 is missing"),
        ("DELETE FROM events WHERE seq = 3", "the events end at 2"),
        ("UPDATE private SET value = value || ' ' WHERE seq = 2", "the private part of event 2"),
    ],
)
def test_verify_reveals_what_was_changed_in_the_chain_of_the_store(
    path: Path, store: Store, store_url: str, change: str, problem: str
) -> None:
    record(path, by_rule(), by_rule(), by_rule())
    ship(path, store_url)
    store.connection.execute(change.encode())
    (verified,) = verify(store)
    assert not verified.ok
    assert (verified.problem or "").startswith(problem)


@pytest.fixture
def recorded(path: Path, store: Store, store_url: str) -> None:
    """A store with rows in each of its tables, and with later changes of decisions."""
    doubted = by_rule()
    state = records.TraceState(decision_id=doubted.id, status="under_review", because="it was odd")
    record(path, *one_of_each(), *what_judges(), doubted, sent(state))
    ship(path, store_url, most=7)
    assert verify(store)[0].problem is None
    store.connection.execute("SET default_transaction_isolation = 'repeatable read'")  # to verify inside one


@pytest.mark.parametrize("table", sorted(TABLES))
def test_verify_reveals_each_altered_column_of_each_table(recorded: None, store: Store, table: str) -> None:
    types = {
        row["column_name"]: row["data_type"]
        for row in store.ask(
            "SELECT column_name, data_type FROM information_schema.columns WHERE table_schema = 'thorpolicy' "
            "AND table_name = %(table)s AND column_name NOT IN ('journal', 'seq', 'lacks')",
            {"table": table},
        )
    }
    other = {
        "text": "coalesce({0}, '') || 'x'",
        "jsonb": """jsonb_build_object('x', {0})""",
        "boolean": "NOT coalesce({0}, false)",
        "timestamp with time zone": "coalesce({0}, now()) + interval '1 ms'",
    }
    for column, kind in types.items():
        changed = other.get(kind, "coalesce({0}, 0) + 1").format(f'"{column}"')
        with store.connection.transaction():
            first = f"(SELECT min(seq) FROM {table})"
            change = f'UPDATE {table} SET "{column}" = {changed} WHERE seq = {first}'
            store.connection.execute(change.encode())
            assert verify(store)[0].problem is not None, column
            raise psycopg.Rollback
    assert verify(store)[0].ok


@pytest.mark.parametrize("table", sorted(TABLES))
def test_verify_reveals_a_row_that_is_missing_and_one_that_no_event_made(
    recorded: None, store: Store, table: str
) -> None:
    first = f"(SELECT min(seq) FROM {table})"
    free, gap = "(SELECT max(seq) FROM events)", "(SELECT min(seq) FROM events WHERE kind = 'gap')"
    ids = ", decision_id = 'other'" if table == "decisions" else ""
    copy = f"CREATE TEMP TABLE copied AS SELECT * FROM {table} WHERE seq = {first}; UPDATE copied SET seq = "
    paste = f"{ids}; INSERT INTO {table} SELECT * FROM copied"
    for change, problem in (
        (f"DELETE FROM {table} WHERE seq = {first}", f"{table} lacks the row of event"),
        (f"UPDATE {table} SET seq = {free} + 1{ids} WHERE seq = {first}", f"{table} lacks the row of event"),
        (f"{copy}{free} + 1{paste}", f"{table} has a row of event"),
        (f"{copy}{gap}{paste}", f"{table} has a row of event"),
    ):
        with store.connection.transaction():
            store.connection.execute(change.encode())
            assert (verify(store)[0].problem or "").startswith(problem)
            raise psycopg.Rollback


@pytest.mark.parametrize(
    "change",
    [
        "reviewed_seq = NULL WHERE reviewed",
        "reviewed_seq = 1 WHERE reviewed",
        "outcome_seq = (SELECT max(seq) FROM events) WHERE outcome_status = 'FAILURE'",
        "outcome_seq = 1, outcome_status = 'SUCCESS' WHERE outcome_seq IS NULL",
        "trace_status = 'active', status_seq = NULL WHERE trace_status <> 'active'",
        "decision_correct = NOT decision_correct WHERE reviewed",
        "reviewed = true, decision_correct = true WHERE NOT reviewed",
        "reasoning = 'another' WHERE explained_seq IS NOT NULL",
        "outcome_value = 1e9 WHERE outcome_seq IS NOT NULL",
    ],
)
def test_verify_reveals_that_a_decision_does_not_say_what_came_later(
    recorded: None, store: Store, change: str
) -> None:
    assert store.connection.execute(f"UPDATE decisions SET {change}".encode()).rowcount > 0
    assert "in decisions" in (verify(store)[0].problem or "")


def test_a_store_is_verified_while_a_device_ships(path: Path, store: Store, store_url: str) -> None:
    record(path, *(by_rule() for _ in range(2_001)))
    ship(path, store_url)
    more = iter(range(3))

    def meanwhile(_: int) -> None:
        record(path, by_rule(id=f"later-{next(more)}"))
        ship(path, store_url)

    (verified,) = verify(store, progress=meanwhile)
    assert (verified.problem, verified.events) == (None, 2_001)
    assert [each.events for each in verify(store)] == [2_002]


def test_a_private_part_that_is_missing_without_an_erasure_is_counted(
    path: Path, store: Store, store_url: str
) -> None:
    record(path, by_rule(), by_rule())
    ship(path, store_url)
    store.connection.execute("DELETE FROM private WHERE seq = 1")
    assert [(each.unproven, each.erased) for each in verify(store)] == [(1, 0)]


# ---------------------------------------------------------------- rights


@pytest.fixture
def logins(store: Store) -> None:
    """Logins of two devices, of a person, and of who keeps the store."""
    for name, role in (("thor_1", "writer"), ("thor_2", "writer"), ("ann", "reader"), ("kim", "owner")):
        store.connection.execute(
            f"DO $$ BEGIN CREATE ROLE {name} LOGIN IN ROLE thorpolicy_{role}; "
            "EXCEPTION WHEN duplicate_object THEN NULL; END $$".encode()
        )


def test_a_writer_ships_and_has_no_right_on_any_table(
    path: Path, store: Store, store_url: str, logins: None
) -> None:
    record(path, by_rule())
    url = as_role(store_url, "thor_1")
    assert ship(path, url) == 1
    with psycopg.connect(url, autocommit=True) as connection:
        tables = [
            row["relname"]
            for row in store.ask(
                "SELECT relname FROM pg_class WHERE relnamespace = 'thorpolicy'::regnamespace "
                "AND relkind IN ('r', 'p')"
            )
        ]
        assert len(tables) > 14
        for table in tables:
            for statement in ("SELECT * FROM", "DELETE FROM", "TRUNCATE"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(f"{statement} thorpolicy.{table}".encode())
        for call in (
            "store_rows(1, 0, 9, '{}')",
            "apply_erasures(1, 0, 9, '{}')",
            "change_decisions(1, 0, 9, '[]')",
            "raise_alarm('thor-1', '', 'fork', 1, NULL, NULL)",
            "store_fitting_rows(1, 0, 9, '{}')",
            "make_partition(now())",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"SELECT thorpolicy.{call}".encode())


def test_a_device_belongs_to_the_role_that_shipped_first(
    path: Path, store: Store, store_url: str, logins: None
) -> None:
    record(path, by_rule())
    ship(path, as_role(store_url, "thor_1"))
    with pytest.raises(SinkError, match="the device thor-1 ships as another role"):
        ship(path, as_role(store_url, "thor_2"))


def test_a_reader_reads_all_but_the_private_parts_and_writes_nothing(
    path: Path, store: Store, store_url: str, logins: None
) -> None:
    record(path, by_rule())
    ship(path, store_url)
    with Store(as_role(store_url, "ann")) as reader:
        reader.require()
        assert reader.ask("SELECT count(*) FROM decisions") == [{"count": 1}]
        assert verify(reader)[0].ok
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.connection.execute("SELECT * FROM private")
        for table in ("events", "decisions", "alarms"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                reader.connection.execute(f"DELETE FROM {table}".encode())


def test_an_owner_who_did_not_make_the_store_upgrades_it_arranges_vectors_and_drops_partitions(
    path: Path, empty_url: str, store: Store, logins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(empty_url) as made, monkeypatch.context() as patch:
        patch.setattr(store_module, "migrations", lambda: migrations()[:-2])
        made.migrate()
    record(path, by_rule(), by_model())
    assert ship(path, empty_url) == 2
    with Store(as_role(empty_url, "kim")) as owned:
        owned.migrate()
        owned.require()
        assert arrange(owned, 1)
        assert arrange(owned, 2)
        (partition,) = owned.ask("SELECT inhrelid::regclass::text AS name FROM pg_inherits LIMIT 1")
        owned.connection.execute(f"DROP TABLE {partition['name']}".encode())


def test_the_functions_that_devices_call_have_the_rights_of_the_owner_alone(store: Store) -> None:
    assert store.ask(
        "SELECT DISTINCT rolname, rolsuper FROM pg_proc JOIN pg_roles r ON r.oid = proowner "
        "WHERE pronamespace = 'thorpolicy'::regnamespace"
    ) == [{"rolname": "thorpolicy_owner", "rolsuper": False}]


# ---------------------------------------------------------------- the connection


def test_another_machine_is_verified_unless_the_url_refuses() -> None:
    given = parameters("postgresql://thor_7@fleet.example/fleet")
    assert (given["sslmode"], given["sslrootcert"]) == ("verify-full", "system")
    assert (
        parameters("postgresql://a@fleet.example/f?sslrootcert=/etc/ca.pem")["sslrootcert"] == "/etc/ca.pem"
    )


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require", "verify-ca"])
@pytest.mark.parametrize("place", ["fleet.example", "192.0.2.7", "localhost,fleet.example"])
def test_a_url_that_does_not_verify_another_machine_is_refused(mode: str, place: str) -> None:
    with pytest.raises(ConfigError, match=f"sslmode={mode}, which does not verify who the server is"):
        parameters(f"postgresql://a@{place}/fleet?sslmode={mode}")


@pytest.mark.parametrize("place", ["localhost", "127.0.0.1", "[::1]", "%2Fvar%2Frun%2Fpostgresql", ""])
def test_a_server_on_this_machine_needs_no_tls(place: str) -> None:
    assert "sslmode" not in parameters(f"postgresql://a@{place}/fleet")


def test_a_password_in_the_url_is_refused_without_being_repeated() -> None:
    with pytest.raises(ConfigError) as refused:
        parameters("postgresql://a:s3cret@fleet.example/fleet")
    assert "s3cret" not in str(refused.value)
    assert "PGPASSFILE" in str(refused.value)


def test_a_store_that_does_not_answer_is_an_error_of_the_sink(path: Path) -> None:
    record(path, by_rule())
    with pytest.raises(SinkError, match="the store cannot be reached"):
        ship(path, "postgresql://a@127.0.0.1:1/fleet")
