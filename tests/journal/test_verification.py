"""Verification: every change of a journal is found, and a sound journal passes."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.build import (
    ENRICHED,
    EXPLAINED,
    MODEL,
    NOON,
    PACK,
    PROMOTION,
    WAIT_S,
    Fates,
    about,
    by_model,
    by_rule,
    canary_events,
    erasing,
    note,
    on_trial,
    one_of_each,
    record,
    redecided,
    rows,
    sent,
    signing,
    writing,
)
from tests.tasks import cancelled, lift, requested
from thor_policy.core import records
from thor_policy.core.decisions import Adapter, Floor, Traits
from thor_policy.core.errors import JournalError
from thor_policy.core.requests import Caller
from thor_policy.core.searches import Search
from thor_policy.journal import chain, checkpoints, events, schema
from thor_policy.journal.checkpoints import Signer
from thor_policy.journal.projections import GROUPS, TABLES
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification import ranges
from thor_policy.journal.verification import verify as verification
from thor_policy.journal.verification.verify import Verdict, verify, verify_slowly
from thor_policy.journal.writer import Journal

#: Events of the original journal: all kinds, an erasure, a replacement, and four checkpoints among them.
EVENTS = 78
#: Every table of a journal.
STORED = ("events", "private", "erasures", *TABLES)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound, closed journal with checkpoints. Tests must change only copies of it."""
    path = tmp_path_factory.mktemp("original") / "journal.db"
    rule = signing(path)
    record(path, *one_of_each(), checkpoints=rule)
    record(path, *one_of_each(), checkpoints=rule)
    kept = events.encode({"evaluation": about(team_context="night")}).decode()
    record(path, erasing(path, 3, 6, 9), erasing(path, 26, keep=kept), checkpoints=rule)
    denied, _ = lift(path)
    record(path, requested(denied, task="task-2"), cancelled(task="task-2", reason="postponed"))
    last = by_model()
    given = sent(
        records.Assignment(decision_id=last.id, reviewer="kim", type="lease", given_by="bo", seconds=9)
    )
    last_words = [last, events.explanation_event(last.id, EXPLAINED, NOON), erasing(path, 26, 29)]
    drifted = events.drift_event(golden="X1", before="a", now="b", shift=0.5, pack=PACK, model=MODEL, at=NOON)
    adapter = events.adapter_activated(Adapter(name="tuned", sha256="c" * 64), "d" * 64, NOON)
    judged = [events.shadow_event(last, by_model(), NOON), adapter]
    judged += events.counterfactual_events(redecided(last), NOON)
    judged.append(
        events.search_event(
            "search-1",
            Search(target="subject", evaluation=about()),
            caller=Caller(transport="ipc", uid=7, on_behalf_of="token:alice"),
            pack=PACK,
            at=NOON,
            question="a" * 64,
            tried=3,
            listed=2,
            more=False,
            ticket=1,
        )
    )
    judged.append(events.promotion_event(PROMOTION, NOON, by_uid=1000, by_key=None))
    held = by_rule(
        floor=Floor(outcome="deny", final=True, traits=Traits(required=("approved_by", "outcome")))
    )
    supplied = sent(records.Supplement(decision_id=held.id, values={"reasoning": "So."}))
    ended = sent(records.Outcome(decision_id=held.id, status="SUCCESS"))
    doubted = sent(records.TraceState(decision_id=last.id, status="under_review", because="why?"))
    enriched = events.enrichment_event(held.id, ENRICHED, NOON)
    figures = {"value": 0.1, "low": 0.0, "high": 0.2, "sample": 50, "threshold": 0.5}
    named = {"kind": "success_rate", "state": "raised", "of": "agent", "name": "trader"}
    alert = events.alert_event("alert-1", **named, figures=figures, at=NOON)  # type: ignore[arg-type]
    more = [held, supplied, ended, doubted, enriched, alert, *canary_events(), on_trial()]
    record(path, *last_words, by_rule(), drifted, *judged, given, *more, checkpoints=rule)
    verdict = verify(path)
    assert (verdict.events, verdict.problem, verdict.complete, verdict.checkpoint_seq) == (
        EVENTS,
        None,
        True,
        EVENTS,
    )
    assert (verdict.checkpoints, verdict.erased, verdict.gaps) == (4, 5, 2)
    return path


@pytest.fixture
def copied(original: Path, tmp_path: Path) -> Callable[[], Path]:
    """A function that makes a new copy of the original with its checkpoints."""

    def fresh() -> Path:
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(original.parent / "checkpoints", folder / "checkpoints")
        return Path(shutil.copy(original, folder / "copy.db"))

    return fresh


def verdict_of(path: Path) -> Verdict | JournalError:
    """The verdict, or the error if the file is no journal any more."""
    try:
        return verify(path)
    except JournalError as error:
        return error


# ---------------------------------------------------------------- random tampering


def another(value: Any, chance: random.Random) -> Any:
    """A value of the same type that differs a little."""
    if value is None:
        return "1"  # a column of numbers stores it as one
    if isinstance(value, int):
        return value + chance.choice([-1, 1, 1 << chance.randrange(40)])
    if isinstance(value, float):
        return value + chance.choice([-0.5, 1e-9, 7.0])
    raw = value if isinstance(value, bytes) else value.encode()
    place = chance.randrange(len(raw) + 1)
    grown = raw[:place] + bytes([chance.randrange(32, 127)]) + raw[place:]
    changed = chance.choice([grown, grown, raw[:place] + raw[place + 1 :] if place < len(raw) else grown])
    return changed if isinstance(value, bytes) else changed.decode("utf-8", "replace")


def pick(db: sqlite3.Connection, chance: random.Random, table: str, column: str = "seq") -> tuple[int, Any]:
    """seq and value of one column, in a random row."""
    return chance.choice(db.execute(f"SELECT seq, {column} FROM {table} ORDER BY seq").fetchall())  # type: ignore[no-any-return]


def columns(db: sqlite3.Connection, table: str) -> list[str]:
    return [name for _, name, *_ in db.execute(f"PRAGMA table_info({table})")]


def filled(db: sqlite3.Connection, tables: tuple[str, ...] = STORED) -> list[str]:
    return [table for table in tables if db.execute(f"SELECT 1 FROM {table}").fetchone()]


def change_a_column(db: sqlite3.Connection, chance: random.Random) -> None:
    """Change a random column of a random table."""
    table = chance.choice(filled(db))
    column = chance.choice(columns(db, table))
    seq, value = pick(db, chance, table, column)
    db.execute(f"UPDATE {table} SET {column} = ? WHERE seq = ?", (another(value, chance), seq))


def change_an_event(db: sqlite3.Connection, chance: random.Random) -> None:
    column = chance.choice(columns(db, "events"))
    seq, value = pick(db, chance, "events", column)
    db.execute(f"UPDATE events SET {column} = ? WHERE seq = ?", (another(value, chance), seq))


def change_a_decision(db: sqlite3.Connection, chance: random.Random) -> None:
    column = chance.choice(columns(db, "decisions"))
    seq, value = pick(db, chance, "decisions", column)
    db.execute(f"UPDATE decisions SET {column} = ? WHERE seq = ?", (another(value, chance), seq))


def empty_a_column(db: sqlite3.Connection, chance: random.Random) -> None:
    """Set a column to null if it may be null, else copy the value of another row."""
    table = chance.choice(filled(db))
    info = db.execute(f"PRAGMA table_info({table})").fetchall()
    column, needed = chance.choice([(name, bool(needed or key)) for _, name, _, needed, _, key in info])
    seq, _ = pick(db, chance, table, column)
    _, value = pick(db, chance, table, column)
    db.execute(f"UPDATE {table} SET {column} = ? WHERE seq = ?", (value if needed else None, seq))


def change_any_byte(db: sqlite3.Connection, chance: random.Random) -> None:
    table = chance.choice(filled(db))
    kinds = {name: kind for _, name, kind, *_ in db.execute(f"PRAGMA table_info({table})")}
    column = chance.choice([name for name, kind in kinds.items() if kind in ("TEXT", "BLOB")] or ["seq"])
    seq, raw = pick(db, chance, table, f"CAST({column} AS BLOB)")
    if column == "seq" or not raw:
        change_a_column(db, chance)
        return
    place = chance.randrange(len(raw))
    flipped = raw[:place] + bytes([raw[place] ^ chance.randrange(1, 256)]) + raw[place + 1 :]
    value = "?" if kinds[column] == "BLOB" else "CAST(? AS TEXT)"
    db.execute(f"UPDATE {table} SET {column} = {value} WHERE seq = ?", (flipped, seq))


def swap(db: sqlite3.Connection, table: str, first: int, second: int, column: str = "seq") -> None:
    values = [
        db.execute(f"SELECT {column} FROM {table} WHERE seq = ?", (seq,)).fetchone()[0]
        for seq in (first, second)
    ]
    spare: Any = -1_000 if column == "seq" else "-"
    for old, new in ((values[0], spare), (values[1], values[0]), (spare, values[1])):
        db.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (new, old))


def swap_two_rows(db: sqlite3.Connection, chance: random.Random) -> None:
    """Swap two rows of one table."""
    several = [t for t in filled(db) if db.execute(f"SELECT count(*) FROM {t}").fetchone()[0] > 1]
    table = chance.choice(several)
    first, second = chance.sample([seq for (seq,) in db.execute(f"SELECT seq FROM {table}")], 2)
    swap(db, table, first, second)


def swap_two_events(db: sqlite3.Connection, chance: random.Random) -> None:
    first, second = chance.sample(range(1, EVENTS + 1), 2)
    swap(db, "events", first, second)
    if chance.random() < 0.5:  # with their private parts and rows
        for table in STORED[1:]:
            db.execute(f"UPDATE {table} SET seq = -seq WHERE seq IN (?, ?)", (first, second))
            db.execute(f"UPDATE {table} SET seq = ? WHERE seq = ?", (second, -first))
            db.execute(f"UPDATE {table} SET seq = ? WHERE seq = ?", (first, -second))


def swap_two_decisions(db: sqlite3.Connection, chance: random.Random) -> None:
    first, second = chance.sample([seq for (seq,) in db.execute("SELECT seq FROM decisions")], 2)
    swap(db, "decisions", first, second, "decision_id")


def a_free_number(taken: set[int], chance: random.Random) -> int:
    """Before the first event, after the newest, or between them."""
    beyond, between = [-5, -1, 0, EVENTS + 1, 9_999], range(1, EVENTS + 1)
    return chance.choice([seq for seq in chance.choice([beyond, between]) if seq not in taken] or beyond)


def move_a_row(db: sqlite3.Connection, chance: random.Random) -> None:
    """Move a row to the number of another event, or to a number without an event."""
    table = chance.choice(filled(db))
    seq, _ = pick(db, chance, table)
    taken = {seq for (seq,) in db.execute(f"SELECT seq FROM {table}")}
    db.execute(f"UPDATE {table} SET seq = ? WHERE seq = ?", (a_free_number(taken, chance), seq))


def remove_an_event(db: sqlite3.Connection, chance: random.Random) -> None:
    seq = chance.randrange(1, EVENTS)
    db.execute("DELETE FROM events WHERE seq = ?", (seq,))
    how = chance.randrange(3)
    if how >= 1:  # with its private part and rows
        for table in STORED[1:]:
            db.execute(f"DELETE FROM {table} WHERE seq = ?", (seq,))
    if how == 2:  # and close the gap
        for table in STORED:
            db.execute(f"UPDATE {table} SET seq = -seq WHERE seq > ?", (seq,))
            db.execute(f"UPDATE {table} SET seq = -seq - 1 WHERE seq < 0")


def insert_an_event(db: sqlite3.Connection, chance: random.Random) -> None:
    seq = chance.choice([0, -3, EVENTS + 1, chance.randrange(1, EVENTS + 1)])
    copied_from = chance.randrange(1, EVENTS + 1)
    if 1 <= seq <= EVENTS:  # and make room
        for table in STORED:
            db.execute(f"UPDATE {table} SET seq = -seq WHERE seq >= ?", (seq,))
            db.execute(f"UPDATE {table} SET seq = -seq + 1 WHERE seq < 0")
    db.execute(
        "INSERT INTO events SELECT ?, at, boot_id, mono_ns, kind, 'x' || subject_id, body, private_digest, "
        "prev_hash, hash FROM events WHERE seq = ?",
        (seq, copied_from + (1 <= seq <= copied_from)),
    )


def remove_a_row(db: sqlite3.Connection, chance: random.Random) -> None:
    table = chance.choice(filled(db, STORED[1:]))
    db.execute(f"DELETE FROM {table} WHERE seq = ?", (pick(db, chance, table)[0],))


def add_a_row(db: sqlite3.Connection, chance: random.Random) -> None:
    """Add a copy of a row under a free number."""
    table = chance.choice(filled(db, STORED[1:]))
    taken = {seq for (seq,) in db.execute(f"SELECT seq FROM {table}")}
    unique = {"decisions": "decision_id", "nodes": "id", "edges": "id"}.get(table)
    names = [f"{name} || 'x'" if name == unique else name for name in columns(db, table)[1:]]
    db.execute(
        f"INSERT INTO {table} SELECT ?, {', '.join(names)} FROM {table} WHERE seq = ?",
        (a_free_number(taken, chance), pick(db, chance, table)[0]),
    )


def plant_a_private_part(db: sqlite3.Connection, chance: random.Random) -> None:
    """Add another private part with another salt, perhaps with an erasure that has its digest."""
    seq = chance.choice([-1, 0, EVENTS + 1, *range(1, EVENTS + 1)])
    salt, digest = chain.seal(b'{"agent":"planted"}')
    db.execute("INSERT OR REPLACE INTO private VALUES (?, ?, ?)", (seq, salt, '{"agent":"planted"}'))
    if chance.random() < 0.7:
        by_seq = chance.choice([0, 47, 48, EVENTS, EVENTS + 1, 9_999])
        db.execute("INSERT OR REPLACE INTO erasures VALUES (?, ?, ?)", (seq, by_seq, digest))


def erase_without_a_word(db: sqlite3.Connection, chance: random.Random) -> None:
    seq, _ = pick(db, chance, "private")
    db.execute("DELETE FROM private WHERE seq = ?", (seq,))
    if chance.random() < 0.7:
        by_seq = chance.choice([0, 47, 48, EVENTS, EVENTS + 1, 9_999])
        db.execute("INSERT OR REPLACE INTO erasures VALUES (?, ?, x'')", (seq, by_seq))


def cut(db: sqlite3.Connection, first: int) -> None:
    for table in STORED:
        db.execute(f"DELETE FROM {table} WHERE seq >= ?", (first,))
    db.execute("DELETE FROM erasures WHERE by_seq >= ?", (first,))


def cut_the_tail(db: sqlite3.Connection, chance: random.Random) -> None:
    """Truncate every table consistently; a signed event is cut off too."""
    cut(db, chance.randrange(1, EVENTS + 1))


def restamp(db: sqlite3.Connection) -> None:
    """Compute the hash of every event again."""
    db.text_factory = bytes
    stored = db.execute("SELECT * FROM events ORDER BY seq").fetchall()
    db.text_factory = str
    head = chain.GENESIS
    for row in map(chain.Row._make, stored):
        link = chain.hash_of(head, *row[:8])
        db.execute("UPDATE events SET prev_hash = ?, hash = ? WHERE seq = ?", (head, link, row.seq))
        head = link


def stamp_anew(db: sqlite3.Connection, chance: random.Random) -> None:
    """Change a column that no table shows, then every hash: only checkpoints reveal it."""
    column = chance.choice(["boot_id", "mono_ns"])
    seq, value = pick(db, chance, "events", column)
    db.execute(f"UPDATE events SET {column} = ? WHERE seq = ?", (another(value, chance), seq))
    restamp(db)


TAMPERINGS = (
    change_a_column,
    change_an_event,
    change_a_decision,
    empty_a_column,
    change_any_byte,
    swap_two_rows,
    swap_two_events,
    swap_two_decisions,
    move_a_row,
    remove_an_event,
    insert_an_event,
    remove_a_row,
    add_a_row,
    plant_a_private_part,
    erase_without_a_word,
    cut_the_tail,
    stamp_anew,
)


def content(db: sqlite3.Connection) -> bytes:
    """A digest of all stored rows."""
    db.text_factory = bytes
    digest = hashlib.sha256()
    for table in STORED:
        digest.update(repr(db.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()).encode())
    db.text_factory = str
    return digest.digest()


def attempts(original: Path, copied: Callable[[], Path], tamper: Any, count: int) -> tuple[int, int, int]:
    """How many changes were made, how many were found, and how many were different."""
    with writing(original) as db:
        untouched = content(db)
    changed = caught = 0
    seen: set[bytes] = set()
    path = copied()
    pristine = path.read_bytes()
    for attempt in range(10 * count):
        if changed == count:
            break
        path.write_bytes(pristine)
        with writing(path) as db:
            db.execute("PRAGMA journal_mode = MEMORY")
            db.execute("BEGIN")
            try:
                tamper(db, random.Random(f"{tamper.__name__} {attempt}"))
            except sqlite3.IntegrityError:  # two rows cannot have one number
                db.execute("ROLLBACK")
                continue
            db.execute("COMMIT")
            now = content(db)
            db.execute("PRAGMA journal_mode = WAL")
        if now == untouched:
            continue
        changed += 1
        seen.add(now)
        verdict = verdict_of(path)
        if isinstance(verdict, JournalError) or not verdict.ok:
            caught += 1
        else:
            print(f"{tamper.__name__}, attempt {attempt}: not found")
    return changed, caught, len(seen)


@pytest.mark.parametrize("tamper", TAMPERINGS, ids=lambda tamper: tamper.__name__)
def test_tampering_is_found(original: Path, copied: Callable[[], Path], tamper: Any) -> None:
    """Thirty attempts of each of seventeen kinds of tampering: 510 in all."""
    changed, caught, different = attempts(original, copied, tamper, 30)
    assert (changed, caught) == (30, 30)
    assert different > 10, "most attempts were the same one"


@pytest.mark.soak
def test_tampering_is_found_ten_thousand_times_of_ten_thousand(
    original: Path, copied: Callable[[], Path]
) -> None:
    done: Counter[str] = Counter()
    for number, tamper in enumerate(TAMPERINGS):
        count = 10_000 // len(TAMPERINGS) + (number < 10_000 % len(TAMPERINGS))
        changed, caught, different = attempts(original, copied, tamper, count)
        print(f"{tamper.__name__}: {caught} of {changed} found, {different} of them different")
        done.update(changed=changed, caught=caught)
    print(f"{done['caught']} of {done['changed']} changes were found")
    assert (done["caught"], done["changed"]) == (10_000, 10_000)


def every_column() -> list[tuple[str, str]]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        schema.migrate(db)
        return [(table, column) for table in STORED for column in columns(db, table) if table != "archives"]


@pytest.mark.parametrize(("table", "column"), every_column())
def test_an_edit_of_any_column_of_any_table_is_found(
    copied: Callable[[], Path], table: str, column: str
) -> None:
    chance = random.Random(f"{table}.{column}")
    for _ in range(3):
        path = copied()
        with writing(path) as db:
            seq, value = pick(db, chance, table, column)
            new = -seq if column == "seq" else another(value, chance)
            db.execute(f"UPDATE {table} SET {column} = ? WHERE seq = ?", (new, seq))
        verdict = verify(path)
        assert not verdict.ok
        assert verdict.problem
        assert verdict.chain_ok == (table != "events")
        assert not verdict.projections_ok


# ---------------------------------------------------------------- what the verdict says

PLANTED = (
    "INSERT INTO decisions (seq, decision_id, timestamp, decision, reviewed, tags, decision_type, tier, "
    "probabilities, clauses, is_exception) "
    "VALUES (5, 'x', '2026', 'deny', 0, '[]', 'signal', 'rule', '{}', '[]', 0)"
)


@pytest.mark.parametrize(
    ("sql", "bad_seq", "problem"),
    [
        ("UPDATE events SET subject_id = 'x' WHERE seq = 7", 7, "its content does not match its hash"),
        (
            "UPDATE events SET body = CAST(x'ff' AS TEXT) WHERE seq = 7",
            7,
            "its content does not match its hash",
        ),
        ("DELETE FROM events WHERE seq = 7", 7, "it is missing"),
        ("DELETE FROM events WHERE seq = 1", 1, "it is missing"),
        ("DELETE FROM events WHERE seq < 50", 1, "it is missing"),
        ("UPDATE events SET prev_hash = x'00' WHERE seq = 7", 7, "it does not follow the event before it"),
        ("UPDATE events SET seq = 0 WHERE seq = 60", 0, "its number is before that of the first event"),
    ],
)
def test_verify_names_the_event_at_which_the_chain_breaks(
    copied: Callable[[], Path], sql: str, bad_seq: int, problem: str
) -> None:
    path = copied()
    with writing(path) as db:
        assert db.execute(sql).rowcount >= 1
    verdict = verify(path)
    assert (verdict.bad_seq, verdict.problem) == (bad_seq, f"event {bad_seq}: {problem}")
    assert not verdict.chain_ok
    assert verdict.complete is None, "where the chain breaks, nothing can be said of its end"


@pytest.mark.parametrize(
    ("sql", "bad_seq", "problem"),
    [
        ("UPDATE private SET value = '{}' WHERE seq = 4", 4, "its private part was changed"),
        ("UPDATE private SET value = CAST(x'ff' AS TEXT) WHERE seq = 4", 4, "its private part was changed"),
        (
            "DELETE FROM private WHERE seq = 4",
            4,
            "its private part is missing, and no event erased it",
        ),
        ("INSERT INTO private VALUES (3, x'', '{}')", 3, "it must not have a private part, but has one"),
        ("INSERT INTO private VALUES (9999, x'', '{}')", None, "a private part has no event"),
        (
            "UPDATE decisions SET decision = 'allow' WHERE seq = 4",
            4,
            "its row in the table decisions does not match it",
        ),
        (
            "UPDATE decisions SET situation = CAST(x'ff' AS TEXT) WHERE seq = 4",
            4,
            "its row in the table decisions does not match it",
        ),
        ("DELETE FROM decisions WHERE seq = 4", 4, "its row in the table decisions is missing"),
        (
            "UPDATE reviews SET verdict = 'accept' WHERE seq = 10",
            10,
            "its row in the table reviews does not match it",
        ),
        ("DELETE FROM reviews WHERE seq = 10", 10, "its row in the table reviews does not match it"),
        (
            "UPDATE nodes SET title = CAST(x'ff' AS TEXT) WHERE seq = 17",
            17,
            "its row in the table nodes does not match it",
        ),
        (
            "UPDATE decisions SET reviewed_seq = 9 WHERE seq = 3",
            9,
            "the row of its decision does not match it",
        ),
        (
            "UPDATE decisions SET review_decision = 'deny' WHERE seq = 3",
            10,
            "the row of its decision does not match it",
        ),
        (
            "UPDATE decisions SET review_decision = CAST(x'ff' AS TEXT) WHERE seq = 3",
            10,
            "the row of its decision does not match it",
        ),
        (
            "UPDATE decisions SET reviewed_seq = 20 WHERE seq = 3",
            None,
            "reviewed_seq of the table decisions names an event that does not exist",
        ),
        (
            "UPDATE decisions SET explained_seq = 9999, reasoning = 'because' WHERE seq = 4",
            None,
            "explained_seq of the table decisions names an event that does not exist",
        ),
        (
            "INSERT INTO gaps VALUES (5, '2026', 'planted', '{}')",
            None,
            "the table gaps has rows without an event",
        ),
        (
            "INSERT INTO gaps VALUES (9999, '2026', 'planted', '{}')",
            None,
            "the table gaps has rows without an event",
        ),
        (
            PLANTED,
            5,
            "the table decisions has a row for it, but it is no decision",
        ),
        ("UPDATE decisions SET seq = 5 WHERE seq = 4", 4, "its row in the table decisions is missing"),
        (
            "UPDATE erasures SET by_seq = 9999 WHERE seq = 3",
            3,
            "the table erasures says that it was erased, but no event does",
        ),
        (
            "UPDATE erasures SET by_seq = 49 WHERE seq = 3",
            3,
            "the table erasures says that it was erased, but no event does",
        ),
        ("DELETE FROM erasures WHERE seq = 3", 3, "its private part is missing, and no event erased it"),
    ],
)
def test_verify_names_the_event_whose_private_part_or_row_is_wrong(
    copied: Callable[[], Path], sql: str, bad_seq: int | None, problem: str
) -> None:
    path = copied()
    with writing(path) as db:
        assert db.execute(sql).rowcount == 1
    verdict = verify(path)
    assert verdict.bad_seq == bad_seq
    assert str(verdict.problem).startswith(problem if bad_seq is None else f"event {bad_seq}: {problem}")
    assert (verdict.chain_ok, verdict.projections_ok) == (True, False)
    assert (verdict.complete, verdict.events) == (True, EVENTS), "the chain is whole, to its end"


def test_verify_reports_the_first_wrong_event(copied: Callable[[], Path]) -> None:
    path = copied()
    with writing(path) as db:
        db.execute("UPDATE decisions SET decision = 'allow' WHERE seq = 28")
        db.execute("UPDATE nodes SET type = 'other' WHERE seq = 17")
        db.execute("UPDATE private SET value = '{}' WHERE seq = 4")
    verdict = verify(path)
    assert (verdict.bad_seq, verdict.chain_ok, verdict.complete) == (4, True, True)
    with writing(path) as db:
        db.execute("UPDATE events SET at = '' WHERE seq = 40")
    verdict = verify(path)
    assert (verdict.bad_seq, verdict.chain_ok, verdict.complete) == (4, False, None)
    assert str(verdict.problem).startswith("event 4: its private part")
    with writing(path) as db:
        db.execute("UPDATE events SET at = '' WHERE seq = 2")
    assert verify(path).bad_seq == 2


def test_verify_finds_a_change_copied_to_another_decision(copied: Callable[[], Path]) -> None:
    path, names = copied(), ", ".join(GROUPS["explained_seq"])
    with writing(path) as db:
        db.execute(
            f"UPDATE decisions SET (explained_seq, {names}) = (SELECT explained_seq, {names} "
            "FROM decisions WHERE seq = 3) WHERE seq = 4"
        )
    assert "explained_seq of the table decisions" in str(verify(path).problem)


def test_a_decision_cannot_be_set_back_to_an_older_review(path: Path) -> None:
    decision = by_model()
    record(path, decision, sent(records.Review(decision_id=decision.id, reviewer="kim", verdict="accept")))
    older = rows(path, "SELECT * FROM decisions")
    record(path, sent(records.Review(decision_id=decision.id, reviewer="kim", verdict="correct_decision")))
    assert verify(path).ok
    with writing(path) as db:
        db.execute("DELETE FROM decisions")
        db.execute(f"INSERT INTO decisions VALUES ({', '.join('?' * len(older[0]))})", older[0])
    assert verify(path).problem == "event 3: the row of its decision does not show it"


def test_an_erasure_cannot_be_undone(path: Path) -> None:
    """Not even by somebody who has a copy of the erased part."""
    record(path, by_model(), note())
    with writing(path) as db:
        kept = {t: db.execute(f"SELECT * FROM {t}").fetchall() for t in ("private", "decisions")}
    record(path, erasing(path, 1))
    assert verify(path).ok
    with writing(path) as db:
        db.execute("DELETE FROM erasures")
        for table, before in kept.items():
            db.execute(f"DELETE FROM {table}")
            db.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(before[0]))})", before)
    assert (
        verify(path).problem
        == "event 3: it erased a part of event 1, but the table erasures does not show it"
    )


def test_verify_names_the_first_of_two_erasures_without_an_event(copied: Callable[[], Path]) -> None:
    path = copied()
    with writing(path) as db:
        db.execute("UPDATE erasures SET by_seq = 60 WHERE seq = 29")
        db.execute("UPDATE erasures SET by_seq = 9999 WHERE seq = 3")
    assert verify(path).bad_seq == 3


def test_bytes_cannot_move_between_a_salt_and_its_value(path: Path) -> None:
    """Salt and value are hashed as one run of bytes, so the length of the salt must be checked."""
    record(path, note(private={"text": "secret"}))
    with writing(path) as db:
        ((salt, value),) = db.execute("SELECT salt, value FROM private").fetchall()
        db.execute("UPDATE private SET salt = ?, value = ?", (salt + value[:1].encode(), value[1:]))
    assert verify(path).problem == "event 1: its private part was changed"


def test_the_verdict_of_a_sound_journal_counts_losses_and_erasures(original: Path) -> None:
    verdict = verify(original)
    assert (verdict.ok, verdict.gaps, verdict.erased, verdict.archived) == (True, 2, 5, 0)
    assert rows(original, "SELECT lower(hex(hash)) FROM events WHERE seq = ?", EVENTS) == [(verdict.head,)]


def test_an_empty_journal_verifies(path: Path) -> None:
    record(path)
    assert verify(path) == Verdict(events=0, archived=0, head="00" * 32, chain_ok=True, projections_ok=True)


# ---------------------------------------------------------------- completeness


def test_without_a_checkpoint_a_truncated_journal_verifies_as_unknown(path: Path) -> None:
    """The limit of a chain without checkpoints: only a copy kept elsewhere reveals a truncation."""
    record(path, *one_of_each())
    kept = verify(path)
    assert (kept.ok, kept.complete) == (True, None)
    with writing(path) as db:
        cut(db, 20)
    verdict = verify(path)
    assert (verdict.ok, verdict.complete, verdict.events) == (True, None, 19)
    verdict = verify(path, anchors=[(kept.events, kept.head)])
    assert (verdict.ok, verdict.complete, verdict.chain_ok) == (False, False, True)
    assert verdict.incomplete == f"event {kept.events} does not match the anchor"


def test_a_truncation_after_the_newest_checkpoint_does_not_show(copied: Callable[[], Path]) -> None:
    path = copied()
    record(path, note(), note())
    before = verify(path)
    assert (before.events, before.checkpoint_seq) == (EVENTS + 2, EVENTS)
    with writing(path) as db:
        cut(db, EVENTS + 1)
    assert verify(path).ok
    assert not verify(path, anchors=[(before.events, before.head)]).ok


def test_verify_finds_a_truncation_before_the_newest_checkpoint(copied: Callable[[], Path]) -> None:
    path = copied()
    with writing(path) as db:
        cut(db, EVENTS)
    verdict = verify(path)
    assert (verdict.chain_ok, verdict.projections_ok, verdict.complete) == (True, True, False)
    assert verdict.incomplete == f"a checkpoint covers event {EVENTS}, but the chain ends at {EVENTS - 1}"
    assert verdict.checkpoint_seq == 49


def test_verify_finds_a_truncation_of_the_chain_that_left_its_rows(copied: Callable[[], Path]) -> None:
    path = copied()
    with writing(path) as db:
        db.execute("DELETE FROM events WHERE seq >= 50")
    verdict = verify(path)
    assert (verdict.chain_ok, verdict.projections_ok, verdict.complete) == (True, False, False)
    assert verdict.problem == "the table decisions has rows without an event"


def test_verify_finds_a_rewritten_chain_by_its_checkpoint(copied: Callable[[], Path]) -> None:
    path = copied()
    with writing(path) as db:
        db.execute("""UPDATE events SET body = '{"text":"another story"}' WHERE seq = 22""")
        restamp(db)
    verdict = verify(path)
    assert (verdict.chain_ok, verdict.projections_ok, verdict.ok) == (True, True, False)
    assert verdict.incomplete == "event 23 does not match its checkpoint"


def test_verify_finds_another_chain_in_place_of_the_signed_one(copied: Callable[[], Path]) -> None:
    path = copied()
    with writing(path) as db:
        db.execute("UPDATE events SET boot_id = 'elsewhere' WHERE seq = 1")
        restamp(db)
    verdict = verify(path)
    assert (verdict.chain_ok, verdict.projections_ok, verdict.complete) == (True, True, False)
    assert "there are checkpoints of another chain" in str(verdict.incomplete)


def test_a_journal_that_begins_with_a_gap_may_follow_another(copied: Callable[[], Path]) -> None:
    """As after a damaged file. The checkpoints of the other chain prove nothing about this one."""
    path = copied()
    path.unlink()
    record(path, events.gap_event("the journal was damaged", NOON), note())
    verdict = verify(path)
    assert (verdict.ok, verdict.complete, verdict.checkpoint_seq, verdict.gaps) == (True, None, 0, 1)
    record(path, note(), checkpoints=signing(path))
    verdict = verify(path)
    assert (verdict.ok, verdict.complete, verdict.checkpoint_seq) == (True, True, 4)


def files(path: Path) -> list[Path]:
    return sorted((path.parent / "checkpoints").glob("*.json"))


def test_verify_finds_a_missing_checkpoint(copied: Callable[[], Path]) -> None:
    path = copied()
    files(path)[1].unlink()
    verdict = verify(path)
    assert (verdict.chain_ok, verdict.complete) == (True, False)
    assert verdict.incomplete == "the checkpoint of event 46 is missing, and 0 more"
    files(path)[0].unlink()
    assert verify(path).incomplete == "the checkpoint of event 23 is missing, and 1 more"


def test_a_missing_file_of_the_newest_checkpoint_is_no_problem(copied: Callable[[], Path]) -> None:
    path = copied()
    files(path)[-1].unlink()
    verdict = verify(path)
    assert (verdict.ok, verdict.complete, verdict.checkpoint_seq) == (True, True, 49)


@pytest.mark.parametrize("field", ["seq", "head", "at", "signature", "key"])
def test_verify_refuses_a_changed_checkpoint(copied: Callable[[], Path], field: str) -> None:
    path = copied()
    file = files(path)[2]
    checkpoint = json.loads(file.read_text())
    other = json.loads(files(path)[1].read_text())
    checkpoint[field] = "0" * 16 if field == "key" else other[field]
    file.write_text(json.dumps(checkpoint))
    verdict = verify(path)
    assert (verdict.chain_ok, verdict.projections_ok, verdict.complete) == (True, True, False)
    assert "the checkpoint of event" in str(verdict.incomplete)


@pytest.mark.parametrize("body", ["", "{}", "nonsense", '{"chain": "x"}'])
def test_verify_reports_a_checkpoint_that_cannot_be_read(copied: Callable[[], Path], body: str) -> None:
    path = copied()
    files(path)[2].write_text(body)
    verdict = verify(path)
    assert (verdict.chain_ok, verdict.complete) == (True, False)
    assert "a checkpoint cannot be read" in str(verdict.incomplete)
    assert files(path)[2].name in str(verdict.incomplete)


def test_verify_refuses_a_checkpoint_signed_by_an_untrusted_key(
    copied: Callable[[], Path], tmp_path: Path
) -> None:
    """For another head, and also for the right head if the auditor does not trust the key."""
    path = copied()
    verdict = verify(path)
    signer = Signer(Ed25519PrivateKey.generate())
    name = rows(path, "SELECT lower(hex(hash)) FROM events WHERE seq = 1")[0][0]
    mine = checkpoints.trusted_keys([next((path.parent / "checkpoints").glob("*.pub"))])
    assert verify(path, public_keys=mine).complete
    checkpoints.store(path.parent / "checkpoints", signer.sign(name, 30, "ab" * 32, "2026-07-01T12:00:00Z"))
    forged = verify(path)
    assert (
        forged.incomplete == f"the checkpoint of event 30: its key {signer.key} is not among the trusted ones"
    )
    signer.publish(path.parent / "checkpoints")  # who can write to that directory can do this too ..
    assert verify(path).incomplete == "event 30 does not match its checkpoint"
    elsewhere = tmp_path / "elsewhere"
    checkpoints.store(elsewhere, signer.sign(name, EVENTS, verdict.head, "2026-07-01T12:00:00Z"))
    signer.publish(elsewhere)
    assert verify(path, checkpoint_dir=elsewhere, public_keys=mine).complete is False  # .. but not this


def test_checkpoints_kept_elsewhere_reveal_a_truncation(copied: Callable[[], Path], tmp_path: Path) -> None:
    path = copied()
    kept = tmp_path / "kept"
    shutil.copytree(path.parent / "checkpoints", kept)
    shutil.rmtree(path.parent / "checkpoints")
    assert verify(path).complete is None
    with writing(path) as db:
        cut(db, 50)
    assert verify(path).complete is None
    assert verify(path, checkpoint_dir=kept).complete is False


def test_anchors_are_compared_with_the_chain(original: Path) -> None:
    heads = dict(rows(original, "SELECT seq, hex(hash) FROM events"))
    assert verify(original, anchors=[(7, heads[7]), (EVENTS, heads[EVENTS].lower())]).complete
    for anchor in ((7, heads[8]), (EVENTS + 1, heads[7]), (0, heads[7])):
        verdict = verify(original, anchors=[(3, heads[3]), anchor])
        assert (verdict.chain_ok, verdict.complete) == (True, False)
        assert verdict.incomplete == f"event {anchor[0]} does not match the anchor"


def test_an_anchor_proves_completeness_without_a_checkpoint(path: Path) -> None:
    record(path, note())
    assert verify(path).complete is None
    assert verify(path, anchors=[(1, verify(path).head)]).complete is True


def test_a_noted_head_matches_the_chain_after_it_grew(copied: Callable[[], Path]) -> None:
    path = copied()
    kept = verify(path)
    record(path, note(), by_rule())
    assert verify(path, anchors=[(kept.events, kept.head)]).ok


# ---------------------------------------------------------------- what is no journal


def test_verify_of_a_missing_file_is_an_error(path: Path) -> None:
    with pytest.raises(JournalError, match="there is no journal at"):
        verify(path)
    assert not path.exists()


@pytest.mark.parametrize("body", [b"", b"GGUF" + bytes(8_000), b"SQLite format 3\0" + bytes(4_000)])
def test_verify_of_another_file_is_an_error(path: Path, body: bytes) -> None:
    path.write_bytes(body)
    for open_it in (verify, Reader):
        with pytest.raises(JournalError, match="cannot be read as a journal"):
            open_it(path)
    assert path.read_bytes() == body


def test_verify_of_another_database_is_an_error(path: Path) -> None:
    with writing(path) as db:
        db.execute("CREATE TABLE somebody (elses)")
    for open_it in (verify, Reader):
        with pytest.raises(JournalError, match="cannot be read as a journal"):
            open_it(path)


def test_a_database_page_that_cannot_be_read_is_a_broken_chain(path: Path) -> None:
    record(path, *(note("x" * 500) for _ in range(200)))
    (pages,) = rows(path, "SELECT page_size FROM pragma_page_size")[0]
    with path.open("r+b") as file:
        file.seek(path.stat().st_size - pages)
        file.write(b"\xa5" * pages)
    verdict = verdict_of(path)
    assert isinstance(verdict, JournalError) or not verdict.ok


# ---------------------------------------------------------------- several processes


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        "UPDATE events SET at = '' WHERE seq = 31",
        "UPDATE events SET prev_hash = x'00' WHERE seq = 21",
        "DELETE FROM events WHERE seq BETWEEN 11 AND 30",
        "UPDATE decisions SET decision = 'allow' WHERE seq IN (28, 50)",
        "UPDATE decisions SET reviewed_seq = 42 WHERE seq = 3",
        "DELETE FROM private WHERE seq = 44",
        "INSERT INTO gaps VALUES (61, '2026', 'planted', '{}')",
    ],
)
def test_several_processes_reach_the_same_verdict_as_one(
    copied: Callable[[], Path], monkeypatch: pytest.MonkeyPatch, sql: str
) -> None:
    path = copied()
    with writing(path) as db:
        db.execute(sql)
    alone = verify(path)
    assert alone.ok == sql.startswith("SELECT")
    monkeypatch.setattr(verification, "RANGE", 10)
    counted: list[int] = []
    assert verify(path, progress=counted.append) == alone, "range by range"
    monkeypatch.setattr(verification, "MANY", 0)
    if sql.startswith(("SELECT", "UPDATE events SET prev", "UPDATE decisions SET reviewed_seq")):
        assert verify(path) == alone, "in processes"
    if alone.ok:
        assert counted == [*range(10, EVENTS, 10), EVENTS]


@pytest.mark.parametrize("tamper", TAMPERINGS, ids=lambda tamper: tamper.__name__)
def test_a_slow_verification_finds_what_a_quick_one_finds(copied: Callable[[], Path], tamper: Any) -> None:
    """It does not compare with checkpoints, so it misses only a truncation or an exchange of the whole."""
    chance = random.Random(3)
    for _ in range(5):
        path = copied()
        assert slow_verdict(path) == (EVENTS, None)
        with writing(path) as db:
            db.execute("PRAGMA journal_mode = DELETE")
            tamper(db, chance)
        try:
            quick = verify(path, checkpoint_dir=path.parent / "none")
        except JournalError:
            with pytest.raises(JournalError):
                slow_verdict(path)
        else:
            checked, problem = slow_verdict(path)
            assert (problem is None) == (quick.problem is None), problem
            assert checked <= quick.events


def slow_verdict(path: Path) -> tuple[int, str | None]:
    """How many events a slow verification checked, and the problem that it found."""
    steps = verify_slowly(path, 7)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value.events, end.value.problem


@pytest.mark.parametrize("page", [1, 7, 1_000])
def test_the_page_size_does_not_change_the_verdict(
    copied: Callable[[], Path], monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    path = copied()
    sound = verify(path)
    monkeypatch.setattr(ranges, "PAGE", page)
    assert verify(path) == sound
    with writing(path) as db:
        db.execute("DELETE FROM events WHERE seq = 15")
    assert verify(path).bad_seq == 15


# ---------------------------------------------------------------- beside a live writer


def test_verification_reads_pages_and_holds_nothing_between_them(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(path, *(note() for _ in range(25)), by_rule())
    monkeypatch.setattr(ranges, "PAGE", 10)
    turn = ranges._Range._live_page
    turns = []

    with writing(path) as db:
        db.execute("PRAGMA busy_timeout = 0")

        def turned(self: Any) -> Any:
            db.execute("UPDATE _sqlite_migrations SET applied_at = applied_at || '.'")
            ((busy, _, _),) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            turns.append(busy)
            return turn(self)

        monkeypatch.setattr(ranges._Range, "_live_page", turned)
        assert verify(path).ok
    assert turns == [0, 0, 0], "a reader holds the log back"


def test_verify_ignores_events_written_meanwhile(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also changes that later events make to rows that were checked, or will be."""
    monkeypatch.setattr(verification, "RANGE", 2)
    fates = Fates()
    first, second, third = by_model(), by_model(), by_model()
    reviews = [
        sent(records.Review(decision_id=decision.id, reviewer="kim", verdict="accept"))
        for decision in (first, third)
    ]
    rule = signing(path)
    with Journal(path, on_committed=fates, checkpoints=rule) as journal:
        for event in (*map(events.decision_event, (first, second, third)), *reviews):
            journal.append(event)
        fates.wait(5)
        journal.checkpoint().result(WAIT_S)

        def goes_on(done: int) -> None:
            for decision in (first, second, third):
                journal.explained(decision.id, EXPLAINED, NOON)
                for status in ("PENDING", "SUCCESS"):
                    journal.append(sent(records.Outcome(decision_id=decision.id, status=status)))
                journal.append(
                    sent(records.Review(decision_id=decision.id, reviewer="kim", verdict="accept"))
                )
            journal.append(sent(records.Node(type="goal", title="t")))
            journal.append(erasing(path, 1 + done // 3))
            fates.wait(14)
            journal.checkpoint().result(WAIT_S)

        verdict = verify(path, progress=goes_on)
        assert (verdict.events, verdict.problem, verdict.incomplete) == (6, None, None)
        assert (verdict.complete, verdict.checkpoint_seq) == (True, 6)
    verdict = verify(path)
    assert (verdict.problem, verdict.incomplete, verdict.erased) == (None, None, 3)


def test_verify_beside_a_writer_that_is_faster_ends_with_the_newest_event_of_its_start(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer commits three times as many events as are checked meanwhile."""
    monkeypatch.setattr(ranges, "PAGE", 8)
    monkeypatch.setattr(verification, "RANGE", 40)
    fates = Fates()
    with Journal(path, on_committed=fates, synchronous="OFF") as journal:

        def write() -> None:
            for _ in range(8):
                decision = by_model()
                journal.decided(decision)
                journal.explained(decision.id, EXPLAINED, NOON)
                journal.append(sent(records.Outcome(decision_id=decision.id, status="SUCCESS")))
            fates.wait(24)

        for _ in range(4):
            write()
        newest, pages = journal.seq, 0
        read_page = ranges._Range._live_page

        def page_and_commits(self: Any) -> Any:
            nonlocal pages
            pages += 1
            write()
            return read_page(self)

        monkeypatch.setattr(ranges._Range, "_live_page", page_and_commits)
        verdict = verify(path)
        assert (verdict.events, verdict.problem, pages) == (newest, None, newest // 8)
        assert journal.seq == newest + 24 * pages


@pytest.mark.parametrize("count", [5, pytest.param(12, marks=pytest.mark.soak)])
def test_verify_beside_a_live_writer_ends_and_finds_no_problem(
    path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Five verifications; twelve with `-m soak`. Each finds a journal that is a third longer.

    During each page that is checked, the writer commits three events; some change rows of checked decisions.
    """
    monkeypatch.setattr(ranges, "PAGE", 8)
    monkeypatch.setattr(verification, "RANGE", 32)
    stop, fates = threading.Event(), Fates()
    first = 20
    room, written = threading.Semaphore(first), threading.Semaphore(0)
    kept: list[str] = []

    def write() -> None:
        chance = random.Random(7)
        while room.acquire(timeout=WAIT_S) and not stop.is_set():
            decision = by_model()
            kept.append(decision.id)
            journal.decided(decision)
            journal.explained(chance.choice(kept), EXPLAINED, NOON)
            journal.append(sent(records.Outcome(decision_id=chance.choice(kept), status="SUCCESS")))
            fates.wait(3)
            written.release()

    read_page = ranges._Range._live_page

    def page_and_a_commit(self: Any) -> Any:
        page = read_page(self)
        room.release()
        assert written.acquire(timeout=WAIT_S)
        return page

    monkeypatch.setattr(ranges._Range, "_live_page", page_and_a_commit)
    with Journal(
        path, on_committed=fates, synchronous="OFF", checkpoints=signing(path, every_events=10)
    ) as journal:
        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(first):
                assert written.acquire(timeout=WAIT_S)
            verdicts = [verify(path) for _ in range(count)]
        finally:
            stop.set()
            room.release()
            writer.join(WAIT_S)
    assert {(verdict.problem, verdict.incomplete) for verdict in verdicts} == {(None, None)}
    lengths = [verdict.events for verdict in verdicts]
    assert lengths == sorted(set(lengths)), "each is longer than the one before"


def test_verify_quickly_finds_an_event_with_a_huge_sequence_number(copied: Callable[[], Path]) -> None:
    """Tasks for all ranges up to that number would fill the memory."""
    path = copied()
    with writing(path) as db:
        db.execute("UPDATE events SET seq = ? WHERE seq = 30", (2**62,))
    verdict = verify(path)
    assert (verdict.chain_ok, verdict.bad_seq, verdict.problem) == (False, 30, "event 30: it is missing")
