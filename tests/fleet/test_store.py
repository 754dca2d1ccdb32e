"""A store is made and brought up to date; readers get bounded answers, exceptions, similar decisions."""

from __future__ import annotations

import json
import math
import random
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from tests.build import ASKED, NOON, PACK, by_model, by_rule, record, sent
from tests.cli.test_hostile_output import BANNED, FORGED, HOSTILE
from tests.stores import ship
from thor_policy.cli.main import cli
from thor_policy.core import records
from thor_policy.core.decisions import Floor, Traits
from thor_policy.core.requests import Entity
from thor_policy.engine import embedder as embedder_module
from thor_policy.fleet import index as index_module
from thor_policy.fleet import store as store_module
from thor_policy.fleet.index import arrange, index, lists_due, lists_for
from thor_policy.fleet.store import DIMENSIONS, Store, StoreError, migrations, vector_text
from thor_policy.fleet.verification import verify


class Letters:
    """Makes a vector of the letters of a text: texts of the same words are similar."""

    def embed(self, text: str) -> list[float]:
        counts = [0.0] * DIMENSIONS
        for word in text.lower().split():
            counts[sum(word.encode()) % DIMENSIONS] += 1
        length = math.sqrt(sum(count * count for count in counts)) or 1.0
        return [count / length for count in counts]


def run(*arguments: str, status: int = 0) -> str:
    done = CliRunner().invoke(cli, list(arguments))
    assert done.exit_code == status, done.output
    return done.stdout


def test_a_store_is_made_by_numbered_migrations_and_a_repeat_changes_nothing(empty_url: str) -> None:
    with Store(empty_url) as store:
        with pytest.raises(StoreError, match="run `thorpolicy fleet init`"):
            store.require()
        names = [name for name, _ in migrations()]
        assert [name[:4] for name in names] == [f"{number:04}" for number in range(1, len(names) + 1)]
        assert store.migrate() == names
        assert store.migrate() == []
        store.require()


def test_a_store_of_an_earlier_version_is_brought_up_to_date_with_what_it_holds(
    tmp_path: Path, empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "policy_decisions.db"
    with Store(empty_url) as store:
        with monkeypatch.context() as patch:
            patch.setattr(store_module, "migrations", lambda: migrations()[:3])
            store.migrate()
        record(path, by_rule(id="old-1"), by_rule(id="old-2"))
        assert ship(path, empty_url) == 2
        index(store, Letters())
        with pytest.raises(StoreError, match="run `thorpolicy fleet init`"):
            store.require()
        assert store.migrate() == [name for name, _ in migrations()[3:]]
        store.require()
        record(path, by_model(id="new"))
        assert ship(path, empty_url) == 1
        assert [each.problem for each in verify(store)] == [None]
        assert {row["decision_id"] for row in store.similar(store.vector_of("old-1"), 2)} == {
            "old-1",
            "old-2",
        }


def test_a_store_of_a_newer_version_is_refused(store: Store) -> None:
    store.connection.execute("INSERT INTO migrations (name) VALUES ('9999_later')")
    with pytest.raises(StoreError, match="newer version made this store"):
        store.require()
    with pytest.raises(StoreError, match="it has 9999_later"):
        store.migrate()


@pytest.mark.parametrize(
    ("question", "problem"),
    [
        ("DELETE FROM decisions RETURNING seq", "read-only transaction"),
        ("SELECT pg_sleep(20)", "took longer than 0.05 s"),
        ("SELECT 1; DELETE FROM decisions", "cannot insert multiple commands"),
        ("COMMIT; DELETE FROM decisions", "cannot insert multiple commands"),
        ("COMMIT", "gives no rows"),
        ("SELECT nothing", "does not exist"),
        ("VACUUM", "cannot run inside a transaction block|read-only transaction"),
        ("SET TRANSACTION READ WRITE", "before any query|gives no rows"),
    ],
)
def test_a_question_reads_only_and_within_its_time(store: Store, question: str, problem: str) -> None:
    with pytest.raises(StoreError, match=problem):
        store.ask(question, within_ms=50)
    assert store.ask("SELECT 1 AS one") == [{"one": 1}]


@pytest.mark.parametrize("question", ["COPY decisions TO STDOUT", "COPY decisions FROM STDIN"])
def test_a_copy_is_no_question(store: Store, question: str) -> None:
    with pytest.raises(StoreError, match=r"gives no rows|read-only transaction"):
        store.ask(question)


def test_an_answer_with_more_rows_than_it_may_have_is_refused_or_clipped(store: Store) -> None:
    assert len(store.ask("SELECT * FROM generate_series(1, 7)", most=7)) == 7
    with pytest.raises(StoreError, match="the answer has more than 7 rows; ask for a shorter time"):
        store.ask("SELECT * FROM generate_series(1, 8)", most=7)
    assert len(store.ask("SELECT * FROM generate_series(1, 1000)", most=7, clip=True)) == 7
    assert store.ask("SELECT 1 AS one") == [{"one": 1}]


def test_no_more_rows_of_an_answer_are_received_than_it_may_have(store: Store) -> None:
    endless = (
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n) "
        "SELECT n, repeat('x', 10000) AS x FROM n"
    )
    assert len(store.ask(endless, most=3, clip=True)) == 3


# ---------------------------------------------------------------- exceptions


@pytest.fixture
def exceptions(tmp_path: Path, store_url: str) -> str:
    """A store with an approved exception, one that was overturned, and one that nobody approved."""
    floor = Floor(
        outcome="deny", final=True, because="it is one", traits=Traits(type="exception", is_exception=True)
    )
    made = [by_rule(id=f"exception-{number}", floor=floor, at=NOON + number) for number in range(3)]
    path = tmp_path / "policy_decisions.db"
    record(
        path,
        *made,
        by_rule(),
        *(
            sent(
                records.Approval(
                    decision_id=each.id, verdict="approved", approver="kim", role="manager", step=1
                )
            )
            for each in made[:2]
        ),
        sent(
            records.TraceState(decision_id=made[1].id, status="overturned", by=made[2].id, because="too dear")
        ),
    )
    ship(path, store_url)
    return store_url


def test_compliance_lists_approved_exceptions_with_policy_approver_role_and_fate(exceptions: str) -> None:
    with Store(exceptions) as store:
        rows = store.compliance(since="2026-07-01T00:00:00Z")
    assert [
        (row["decision_id"], row["approver"], row["role"], row["overturned"], row["overturned_because"])
        for row in rows
    ] == [
        ("exception-1", "kim", "manager", True, "too dear"),
        ("exception-0", "kim", "manager", False, None),
    ]
    assert {row["policy_version"] for row in rows} == {f"{PACK.name}@{PACK.version}+{PACK.sha256[:12]}"}
    assert rows[0]["timestamp"] == datetime.fromtimestamp(NOON + 1, UTC)


def test_the_commands_read_the_store(
    exceptions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THOR_POLICY_FLEET_URL", exceptions)
    assert "kim" in run("fleet", "compliance", "--since", "2026-01-01T00:00:00Z")
    assert "thor-1" in run("fleet", "devices")
    assert run("fleet", "devices", "--alarms", "--json") == "[]\n"
    assert "deny" in run("fleet", "query", "SELECT decision, count(*) FROM decisions GROUP BY 1")
    assert run("fleet", "query", "SELECT 1 AS a", "--csv").split() == ["a", "1"]
    assert '"ok": true' in run("fleet", "verify", "--json")
    assert "the store is up to date" in run("fleet", "init")
    run("fleet", "query", "DELETE FROM decisions", status=2)
    with Store(exceptions) as store:
        store.connection.execute("UPDATE events SET body = body || ' ' WHERE seq = 1")
    assert "event 1 does not match its hash" in run("fleet", "verify", status=1)


def test_ship_once_ships_to_both_sinks_and_archiving_waits_for_neither(
    tmp_path: Path, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, segments = tmp_path / "state", tmp_path / "segments"
    monkeypatch.setenv("THOR_POLICY_STATE_DIR", str(state))
    monkeypatch.setenv("THOR_POLICY_ENDPOINT", f"ipc://{tmp_path}/policy.sock")
    monkeypatch.setenv("THOR_POLICY_FLEET_URL", store_url)
    record(state / "policy_decisions.db", by_rule(), by_rule(), by_rule())
    printed = run("ship", "--once", "--device", "thor-1", "--segments", str(segments))
    assert {"postgres", "segments"} <= {word for line in printed.splitlines() for word in line.split()[:1]}
    assert '"problem": null' in run("fleet", "verify", "--segments", str(segments), "--json")
    assert '"archived": 3' in run("log", "archive", "--before", "2030-01-01T00:00:00Z", "--json")
    assert run("ship", "--forget", "postgres") == "forgot postgres\n"
    assert run("ship", "--forget", "postgres") == "postgres was not known\n"


def test_what_devices_shipped_is_printed_harmlessly(
    tmp_path: Path, store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = replace(ASKED, subject=Entity(type="user", id=HOSTILE), resource=Entity(type="env", id=HOSTILE))
    floor = Floor(outcome="deny", final=True, traits=Traits(type="exception", is_exception=True))
    decision = by_rule(evaluation=hostile, floor=floor)
    approval = records.Approval(
        decision_id=decision.id, verdict="approved", approver=HOSTILE, role=HOSTILE, step=1
    )
    record(tmp_path / "policy_decisions.db", decision, sent(approval))
    ship(tmp_path / "policy_decisions.db", store_url, "thor-2")
    index(store, Letters())
    monkeypatch.setenv("THOR_POLICY_FLEET_URL", store_url)
    for command in (
        ("compliance", "--since", "2026-01-01T00:00:00Z"),
        ("similar", decision.id),
        ("query", "SELECT actor, entity FROM decisions"),
        ("query", "SELECT actor, entity FROM decisions", "--csv"),
        ("query", "SELECT actor, entity FROM decisions", "--json"),
        ("devices",),
    ):
        printed = run("fleet", *command)
        assert (
            not {unicodedata.category(char) for char in printed.replace("\n", "").replace("\r", "")} & BANNED
        )
        if "--csv" not in command:  # a cell may have several lines, in quotes
            assert not any(line.startswith(FORGED) for line in printed.splitlines())


def test_ship_without_a_sink_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THOR_POLICY_STATE_DIR", str(tmp_path))
    done = CliRunner().invoke(cli, ["ship", "--once"])
    assert done.exit_code == 2
    assert "set fleet_url, or name a directory with --segments" in done.stderr


# ---------------------------------------------------------------- similar decisions


def test_similar_decisions_of_all_devices_are_listed_nearest_first(
    tmp_path: Path, store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for device in ("thor-1", "thor-2"):
        path = tmp_path / device / "policy_decisions.db"
        record(path, by_rule(id=f"{device}-rule"), by_model(id=f"{device}-model"))
        ship(path, store_url, device)
    assert index(store, Letters()) == 4
    assert index(store, Letters()) == 0
    rows = store.similar(store.vector_of("thor-1-rule"), 4)
    assert {row["decision_id"] for row in rows[:2]} == {"thor-1-rule", "thor-2-rule"}
    assert rows[0]["similarity"] == pytest.approx(1, abs=1e-6)
    monkeypatch.setenv("THOR_POLICY_FLEET_URL", store_url)
    assert "thor-2" in run("fleet", "similar", "thor-1-model")
    with pytest.raises(StoreError, match="run `thorpolicy fleet index`"):
        store.vector_of("nothing")


def insert_decisions(store: Store, count: int, *, after: int = 0) -> None:
    """Rows of decisions of one device, with the ids 1, 2, and so on, `after` those that there are."""
    if not after:
        store.connection.execute("INSERT INTO devices (device, role) VALUES ('thor-1', 'thor_1')")
        store.connection.execute("INSERT INTO journals (device, chain) VALUES ('thor-1', sha256(''))")
    store.connection.execute(
        "INSERT INTO decisions (journal, seq, decision_id, timestamp, decision, reviewed, tags, "
        "decision_type, tier, probabilities, clauses, is_exception, trace_status) SELECT journal, n, n, "
        "now(), 'allow', false, '[]', 'x', 'rule', '{}', '[]', false, 'active' "
        "FROM journals, generate_series(%s::bigint, %s::bigint) n",
        (after + 1, after + count),
    )


def test_an_index_is_made_page_by_page_and_what_was_erased_is_made_by_the_next_command(
    tmp_path: Path, store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "PAGE", 2)
    for device in ("thor-1", "thor-2"):
        path = tmp_path / device / "policy_decisions.db"
        record(path, *(by_rule(id=f"{device}-{n}") for n in range(3)))
        ship(path, store_url, device)
    counts: list[int] = []
    assert index(store, Letters(), progress=counts.append) == 6
    assert counts == [2, 4, 6]
    store.connection.execute("DELETE FROM summaries WHERE seq = 1")
    assert index(store, Letters()) == 2
    assert index(store, Letters()) == 0


@pytest.fixture
def many(store: Store, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[list[float]]]:
    """Adds so many vectors in 20 groups, and gives the centres; lists have 20 vectors and begin at 100."""
    monkeypatch.setattr(index_module, "LISTED_FROM", 100)
    monkeypatch.setattr(index_module, "_LIST_VECTORS", 20)
    chance = random.Random(5)
    centres = [[chance.gauss(0, 1) for _ in range(DIMENSIONS)] for _ in range(20)]

    def add(count: int) -> list[list[float]]:
        (held,) = store.ask("SELECT count(*) AS n FROM summaries")
        insert_decisions(store, count, after=held["n"])
        with store.connection.transaction(), store.connection.cursor() as cursor:
            for seq in range(held["n"] + 1, held["n"] + count + 1):
                text = vector_text(near(chance, chance.choice(centres)))
                cursor.execute("INSERT INTO summaries SELECT journal, %s, '', %s FROM journals", (seq, text))
        return centres

    return add


def near(chance: random.Random, centre: list[float], by: float = 0.5) -> list[float]:
    return [value + chance.gauss(0, by) for value in centre]


def recall(store: Store, centres: list[list[float]]) -> float:
    """The part of the ten nearest decisions that the lists find, of twenty questions."""
    chance, recalled = random.Random(6), []
    for centre in centres:
        question = near(chance, centre)
        listed = store.similar(question, 10)
        similarities = [row["similarity"] for row in listed]
        assert similarities == sorted(similarities, reverse=True)
        recalled.append(len({row["decision_id"] for row in listed} & exact(store, question)) / 10)
    return sum(recalled) / len(recalled)


def scans(store: Store) -> int:
    """How often the lists were read."""
    store.connection.execute("SELECT pg_stat_force_next_flush()")
    (used,) = store.ask(
        "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'summaries_embedding'"
    )
    return int(used["idx_scan"])


Add = Callable[[int], list[list[float]]]


def test_the_lists_find_what_a_full_comparison_finds(store: Store, many: Add) -> None:
    centres = many(600)
    assert lists_due(store) == 30
    assert arrange(store, 30)
    store.connection.execute("SET enable_seqscan = off")
    assert recall(store, centres) >= 0.95
    assert scans(store) == 20


def test_hundreds_of_equal_vectors_are_found_from_anywhere(store: Store, many: Add) -> None:
    """A graph of so many equal vectors has no way out of them, and none into them."""
    centres = many(400)
    repeated = vector_text(near(random.Random(7), centres[0], by=2.0))
    insert_decisions(store, 500, after=400)
    store.connection.execute(
        "INSERT INTO summaries SELECT journal, n, '', %s FROM journals, generate_series(401, 900) n",
        (repeated,),
    )
    assert arrange(store, lists_due(store) or 0)
    store.connection.execute("SET enable_seqscan = off")
    assert recall(store, centres) >= 0.95
    (first, *_) = store.similar(json.loads(repeated), 10)
    assert first["similarity"] == pytest.approx(1, abs=1e-5)
    assert int(first["decision_id"]) > 400


def test_fewer_vectors_than_lists_are_made_for_are_all_compared(store: Store, many: Add) -> None:
    centres = many(99)
    assert lists_due(store) is None
    assert recall(store, centres) == 1


def test_vectors_that_come_later_are_found_and_lists_are_made_again_once_they_have_doubled(
    store: Store, many: Add
) -> None:
    many(120)
    assert arrange(store, lists_due(store) or 0)
    centres = many(100)
    assert lists_due(store) is None  # 220, and lists for 120
    store.connection.execute("SET enable_seqscan = off")
    assert recall(store, centres) >= 0.95
    many(20)
    assert lists_due(store) == 12
    assert arrange(store, 12)
    assert lists_due(store) is None
    assert recall(store, centres) >= 0.95


def test_as_many_are_listed_as_are_asked_for_though_few_lists_are_read(
    store: Store, many: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    centres = many(300)
    assert arrange(store, lists_due(store) or 0)
    monkeypatch.setattr(store_module, "LISTS_READ", 1)
    store.connection.execute("SET enable_seqscan = off")
    assert len(store.similar(centres[0], 200)) == 200


def test_lists_are_made_by_one_command_at_a_time_and_after_one_that_was_ended(
    store: Store, store_url: str, many: Add
) -> None:
    many(120)
    with Store(store_url) as other:
        other.connection.execute("SELECT pg_advisory_lock(%s)", (index_module._LOCK,))
        assert not arrange(store, 6)
    # as a command leaves it that was ended while it made the lists
    store.connection.execute("CREATE INDEX summaries_arranged ON summaries (seq)")
    assert arrange(store, 6)
    assert lists_due(store) is None


@pytest.mark.parametrize(
    ("vectors", "lists"),
    [(0, 0), (9_999, 0), (10_000, 10), (1_000_000, 1_000), (2_250_000, 1_500), (10**9, 2_000)],
)
def test_lists_grow_with_the_vectors_up_to_a_limit(vectors: int, lists: int) -> None:
    assert lists_for(vectors) == lists


def test_the_command_makes_vectors_and_lists_and_says_so(
    store: Store, many: Add, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many(120)
    record(tmp_path / "policy_decisions.db", by_rule(id="new"))
    ship(tmp_path / "policy_decisions.db", store_url, "thor-2")
    monkeypatch.setattr(embedder_module, "MiniLM", lambda _: Letters())
    monkeypatch.setenv("THOR_POLICY_FLEET_URL", store_url)
    assert run("fleet", "index") == "indexed 1 decisions; made 6 lists\n"
    assert json.loads(run("fleet", "index", "--json")) == {"indexed": 0, "lists": None}


def exact(store: Store, vector: list[float]) -> set[Any]:
    """The ten nearest decisions, by comparing all."""
    rows = store.ask(
        "SELECT seq::text FROM summaries ORDER BY embedding <=> %(v)s::vector LIMIT 10",
        {"v": vector_text(vector)},
        settings={"enable_indexscan": 0},
    )
    return {row["seq"] for row in rows}


def test_an_approval_of_the_decision_and_of_its_task_is_listed_once(store: Store) -> None:
    insert_decisions(store, 1)
    store.connection.execute("UPDATE decisions SET is_exception = true, approval_task = 't1'")
    store.connection.execute(
        "INSERT INTO approvals (journal, seq, timestamp, id, decision_id, task, approver, verdict, step) "
        "SELECT journal, n, now(), 'a' || n, d, t, 'kim-' || n, v, 1 FROM journals, (VALUES (2, '1', 't1', "
        "'approved'), (3, '0', 't1', 'approved'), (4, '1', NULL, 'approved'), (5, '1', 't1', 'rejected'), "
        "(6, '0', 't0', 'approved')) AS given(n, d, t, v)"
    )
    listed = [row["approver"] for row in store.compliance(since="2000-01-01T00:00:00Z")]
    assert sorted(listed) == ["kim-2", "kim-3", "kim-4"]
