"""Maintenance: archive, erase and rebuild, after each of which the journal is still one chain."""

from __future__ import annotations

import gzip
import itertools
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from thor_policy.core import records
from thor_policy.core.decisions import Decision, Explanation, Floor, ModelInfo, PackInfo, Scored, Timings
from thor_policy.core.errors import JournalError
from thor_policy.core.requests import Action, Caller, Entity, Evaluation, Json
from thor_policy.journal import chain, events, segments
from thor_policy.journal.events import Event
from thor_policy.journal.maintenance import archive as archive_module
from thor_policy.journal.maintenance import erase as erase_module
from thor_policy.journal.maintenance import rebuild as rebuild_module
from thor_policy.journal.maintenance.archive import archive_before
from thor_policy.journal.maintenance.dispatch import run_maintenance
from thor_policy.journal.maintenance.erase import Erasure, erase
from thor_policy.journal.maintenance.rebuild import rebuild, rebuild_in_place
from thor_policy.journal.projections import TABLES
from thor_policy.journal.reader import Reader
from thor_policy.journal.shipping import MOST_SINKS
from thor_policy.journal.storage import BUSY_TIMEOUT_MS
from thor_policy.journal.verification.verify import Verdict, verify
from thor_policy.journal.writer import Journal
from thor_policy.security import files
from thor_policy.telemetry.watchdog import Pulse

#: How long a test waits for what must come; far more than it takes.
WAIT_S = 60.0
#: 2026-07-01T12:00:00Z.
NOON = 1_782_907_200.0
#: Events in a segment and in a step, so that few events make many of both.
SEGMENT, STEP = 10, 3

ALWAYS = "9999-01-01T00:00:00Z"
CALLER = Caller(transport="ipc", uid=1000, gid=1000, pid=42)
PACK = PackInfo(name="core", version="1.2.0", sha256="c0ffee" + "0" * 58)
MODEL = ModelInfo(
    name="phi-4-mini",
    sha256="f" * 64,
    quantisation="Q4_K_M",
    architecture="phi3",
    parameters=3_800_000_000,
    build="llama-cpp-python 0.3.36",
    device="cpu",
)
_numbers = itertools.count(1)


@pytest.fixture(scope="module", autouse=True)
def few_events_are_many() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive_module, "SEGMENT_EVENTS", SEGMENT)
        for room in (archive_module, erase_module, rebuild_module):
            patch.setattr(room, "STEP", STEP)
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with opened(path) as journal:
        yield journal


def opened(path: Path) -> Journal:
    """An open journal that syncs nothing, because no test needs that."""
    return Journal(path, synchronous="OFF")


def new_id() -> str:
    return f"018f-{next(_numbers):08}"


def keep(journal: Journal, event: Event) -> str:
    fate = journal.commit(event).result(WAIT_S)
    assert fate.error is None, fate.message
    return event.subject_id


def decide(journal: Journal, subject: str = "alice", /, *, at: float = NOON, **context: Json) -> str:
    """Record a decision of the model for a user, with a fact, an error of a rule, and suffix tokens."""
    decision = Decision(
        id=new_id(),
        at=at,
        evaluation=Evaluation(
            subject=Entity(type="user", id=subject, properties={"role": "developer"}),
            action=Action(name="deploy"),
            resource=Entity(type="env", id="production"),
            context={"team_context": "platform"} | context,
        ),
        caller=CALLER,
        outcome="deny",
        allow=False,
        tier="model",
        floor=Floor(outcome="allow", final=False, facts={"friday": True}, errors={"r9": "no such key"}),
        risk="high",
        pack=PACK,
        model=MODEL,
        label="deny",
        confidence=0.75,
        probabilities={"allow": 0.25, "deny": 0.75},
        scored=Scored(
            label="deny",
            probabilities={"allow": 0.25, "deny": 0.75},
            logits=(1.5, 2.25),
            suffix_tokens=(17, 4, 99),
            prefix_tokens=1527,
            prefix_digest="ab" * 32,
            score_ms=12.5,
        ),
        timings=Timings(queue_ms=0.5, rules_ms=0.25, score_ms=12.5),
    )
    return keep(journal, events.decision_event(decision))


def explain(journal: Journal, decision_id: str, words: str = "Nobody deploys on a Friday.") -> None:
    explanation = Explanation(
        classification="freeze", clauses=("R3",), reasoning=words, text=f"deny\n{words}", explain_ms=80.5
    )
    keep(journal, events.explanation_event(decision_id, explanation, NOON))


def record(journal: Journal, sent: records.Record, *, at: float = NOON) -> str:
    """Record what a client sent; returns its id, which is also the id of a reported decision."""
    record_id = new_id()
    keep(journal, events.record_event(sent, record_id=record_id, at=at, caller=CALLER))
    return record_id


def rows(path: Path, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql, values).fetchall()


def change(path: Path, sql: str, *values: Any) -> None:
    """Change the file as its owner could."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert connection.execute(sql, values).rowcount


def tables(path: Path) -> str:
    """All rows of every table of projections, as text; 1 and 1.0 differ."""
    return "\n".join(repr((table, rows(path, f"SELECT * FROM {table} ORDER BY seq"))) for table in TABLES)


def live(path: Path) -> list[int]:
    return [seq for (seq,) in rows(path, "SELECT seq FROM events ORDER BY seq")]


def sound(path: Path) -> Verdict:
    verdict = verify(path)
    assert verdict.ok, verdict
    return verdict


def segment_files(path: Path) -> list[Path]:
    return sorted((path.parent / "archive").glob("*"))


def segment_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]


def write_lines(file: Path, lines: list[dict[str, Any]]) -> None:
    file.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))


def files_with(path: Path, name: str) -> list[str]:
    """Files of the state directory with the bytes of a name, as text or JSON; archives are decompressed."""
    needles = {
        name.encode(),
        json.dumps(name)[1:-1].encode(),
        json.dumps(name, ensure_ascii=False)[1:-1].encode(),
    }
    matches = []
    for file in sorted(path.parent.rglob("*")):
        if file.is_file():
            content = file.read_bytes()
            content = gzip.decompress(content) if file.suffix == ".gz" else content
            if any(needle in content for needle in needles):
                matches.append(file.name)
    return matches


@contextmanager
def cut_off(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, *, after: int = 0) -> Iterator[None]:
    """A power failure at a call of a function, after `after` calls."""
    real, calls = getattr(where, name), itertools.count()

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == after:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, call)
        with pytest.raises(KeyboardInterrupt):
            yield


# ---------------------------------------------------------------- archives


def test_an_archived_journal_is_one_chain_as_before(path: Path, journal: Journal) -> None:
    for _ in range(25):
        decide(journal)
    head = sound(path).head
    moved: list[int] = []
    made = archive_before(journal, ALWAYS, progress=moved.append)
    assert [(segment.first_seq, segment.last_seq, segment.events) for segment in made] == [
        (1, 10, 10),
        (11, 20, 10),
        (21, 24, 4),
    ]
    assert moved == [10, 20, 24]
    assert live(path) == [25, 26, 27, 28]  # the newest, and the `archived` events of the three segments
    verdict = sound(path)
    assert (verdict.events, verdict.archived) == (28, 24)
    assert rows(path, "SELECT hex(hash) FROM events WHERE seq = 25") == [(head.upper(),)]
    assert rows(path, "SELECT count(*) FROM private WHERE seq < 25") == [(0,)]


def test_a_segment_has_every_column_of_its_events_and_their_private_parts(
    path: Path, journal: Journal
) -> None:
    decide(journal, details="a secret")
    record(journal, records.Node(type="goal", title="Ship"))
    decide(journal)
    columns = (
        "seq, at, boot_id, mono_ns, kind, subject_id, body, lower(hex(private_digest)), lower(hex(prev_hash))"
    )
    stored = rows(path, f"SELECT {columns}, lower(hex(hash)) FROM events WHERE seq < 3 ORDER BY seq")
    private = rows(path, "SELECT lower(hex(salt)), value FROM private WHERE seq < 3 ORDER BY seq")
    (made,) = archive_before(journal, ALWAYS)
    assert stat_mode(made.path) == 0o640
    lines = segment_lines(made.path)
    assert [tuple(line.values())[:10] for line in lines] == stored
    assert [(line["salt"], line["private"]) for line in lines] == private
    assert "a secret" in lines[0]["private"]


def stat_mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_only_events_before_the_time_are_archived(path: Path, journal: Journal) -> None:
    for hour in range(5):
        decide(journal, at=NOON + 3600 * hour)
    archive_before(journal, "2026-07-01T16:00:00+02:00")  # 14:00 in UTC
    assert live(path)[:2] == [3, 4]
    assert archive_before(journal, "2026-07-01T14:00:00Z") == []
    sound(path)


def test_an_event_younger_than_the_ones_after_it_keeps_them_from_the_archive(
    path: Path, journal: Journal
) -> None:
    for hour in (0, 1, 9, 2, 3):
        decide(journal, at=NOON + 3600 * hour)
    archive_before(journal, "2026-07-01T17:00:00Z")
    assert live(path)[:3] == [3, 4, 5]
    sound(path)


def test_the_newest_event_is_never_archived(path: Path, journal: Journal) -> None:
    assert archive_before(journal, ALWAYS) == []
    decide(journal)
    assert archive_before(journal, ALWAYS) == []
    decide(journal)
    assert [segment.events for segment in archive_before(journal, ALWAYS)] == [1]
    assert [segment.events for segment in archive_before(journal, ALWAYS)] == [1]
    assert live(path) == [3, 4]
    assert sound(path).archived == 2


def test_a_journal_with_archives_is_opened_and_continued(path: Path) -> None:
    with opened(path) as journal:
        for _ in range(5):
            decide(journal)
        archive_before(journal, ALWAYS)
        name = journal.chain
    with opened(path) as journal:
        assert journal.chain == name
        decide(journal)
        archive_before(journal, ALWAYS)
    assert sound(path).archived == 6
    assert len(segment_files(path)) == 2


def test_later_records_about_an_archived_decision_are_applied(path: Path, journal: Journal) -> None:
    decision_id = decide(journal)
    decide(journal)
    archive_before(journal, ALWAYS)
    explain(journal, decision_id)
    record(journal, records.Review(decision_id=decision_id, reviewer="ines", verdict="correct_decision"))
    record(journal, records.Outcome(decision_id=decision_id, status="FAILURE", value=-2.5))
    record(journal, records.Consultation(system="crm", decision_id=decision_id))
    sound(path)
    with Reader(path) as reader:
        row = reader.get(decision_id)
    assert row is not None
    assert (row["reasoning"], row["reviewed"], row["outcome_value"]) == (
        "Nobody deploys on a Friday.",
        1,
        -2.5,
    )
    archive_before(journal, ALWAYS)
    sound(path)


def test_the_trace_of_an_archived_decision_is_unchanged(path: Path, journal: Journal) -> None:
    decision_id = decide(journal, details="the release")
    record(journal, records.Outcome(decision_id=decision_id, status="SUCCESS"))
    decide(journal)
    with Reader(path) as reader:
        before = reader.trace(decision_id)
        archive_before(journal, ALWAYS)
        assert reader.trace(decision_id) == before
        assert reader.resolve(decision_id[-9:]) == decision_id
    assert before["event"]["private"]["evaluation"]["context"]["details"] == "the release"


def archived(journal: Journal, count: int = 25) -> list[str]:
    decided = [decide(journal, f"user{number}") for number in range(count)]
    archive_before(journal, ALWAYS)
    return decided


def test_verify_names_a_missing_segment(path: Path, journal: Journal) -> None:
    decided = archived(journal)
    second = segment_files(path)[1]
    second.unlink()
    verdict = verify(path)
    assert (verdict.ok, verdict.chain_ok, verdict.bad_seq) == (False, False, 11)
    assert second.name in (verdict.problem or "")
    with Reader(path) as reader, pytest.raises(JournalError, match=second.name):
        reader.trace(decided[11])
    with pytest.raises(JournalError, match=second.name):
        erase(journal, "user:nobody")
    with pytest.raises(JournalError, match=second.name):
        rebuild(path, path.with_name("other.db"))
    with pytest.raises(JournalError, match=second.name):
        rebuild_in_place(journal)
    decide(journal)
    assert not path.with_name("other.db").exists()


@pytest.mark.parametrize(
    ("number", "column", "value", "bad_seq", "in_chain"),
    [
        (3, "body", "{}", 14, True),
        (3, "at", "2026-07-01T12:00:01.000000Z", 14, True),
        (9, "hash", "0" * 64, 20, True),
        (0, "private", "{}", 11, False),
        (0, "private", None, 11, False),
    ],
)
def test_verify_finds_an_altered_segment(
    path: Path, journal: Journal, number: int, column: str, value: Any, bad_seq: int, in_chain: bool
) -> None:
    archived(journal)
    file = segment_files(path)[1]
    lines = segment_lines(file)
    if value is None:
        del lines[number][column], lines[number]["salt"]
    else:
        lines[number][column] = value
    write_lines(file, lines)
    verdict = verify(path)
    assert (verdict.ok, verdict.bad_seq, not verdict.chain_ok) == (False, bad_seq, in_chain)


@pytest.mark.parametrize("lost", [0, 4, 9])
def test_verify_finds_a_segment_that_lost_an_event(path: Path, journal: Journal, lost: int) -> None:
    archived(journal)
    file = segment_files(path)[1]
    lines = segment_lines(file)
    write_lines(file, lines[:lost] + lines[lost + 1 :])
    verdict = verify(path)
    assert (verdict.chain_ok, verdict.bad_seq) == (False, 11 + lost)


def test_verify_finds_damage_anywhere_in_a_segment(path: Path, journal: Journal) -> None:
    archived(journal)
    file = segment_files(path)[1]
    whole = file.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 60)):
        if 4 <= place < 10:  # time and system in the header of gzip are not checked
            continue
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        assert not verify(path).ok, place
        file.write_bytes(whole[:place])
        assert not verify(path).ok, place
    file.write_bytes(whole)
    sound(path)


def test_reading_a_damaged_segment_is_an_error_that_names_the_file(path: Path, journal: Journal) -> None:
    decided = archived(journal)
    file = segment_files(path)[1]
    file.write_bytes(file.read_bytes()[:100])
    with Reader(path) as reader, pytest.raises(JournalError):
        reader.trace(decided[15])
    for call in (
        lambda: erase(journal, "user:nobody"),
        lambda: rebuild(path, path.with_name("other.db")),
        lambda: rebuild_in_place(journal),
    ):
        with pytest.raises(JournalError, match="cannot be read"):
            call()
    decide(journal)


@pytest.mark.parametrize(
    ("sql", "problem"),
    [
        ("UPDATE events SET body = '{}' WHERE seq = 4", "event 4 does not match its hash"),
        ("UPDATE events SET hash = zeroblob(32) WHERE seq = 4", "event 4 does not match its hash"),
        ("DELETE FROM events WHERE seq = 1", "event 1 is missing"),
        ("DELETE FROM events WHERE seq = 4", "event 4 is missing"),
        ("DELETE FROM events WHERE seq = 9", "event 9 is missing"),
        ("DELETE FROM events WHERE seq = 13", "event 13 is missing"),
    ],
)
def test_events_that_do_not_form_a_chain_are_not_archived(
    path: Path, journal: Journal, sql: str, problem: str
) -> None:
    for _ in range(15):
        decide(journal)
    change(path, sql)
    with pytest.raises(JournalError, match=problem):
        archive_before(journal, ALWAYS if "13" in problem else "2026-07-01T12:00:00.000001Z")
    made = [first for (first,) in rows(path, "SELECT first_seq FROM archives")]
    assert made == ([1] if "13" in problem else [])
    assert len(segment_files(path)) == len(made)


def test_a_gap_as_wide_as_a_segment_is_not_archived(path: Path, journal: Journal) -> None:
    for _ in range(25):
        decide(journal)
    change(path, "DELETE FROM events WHERE seq BETWEEN 11 AND 20")
    with pytest.raises(JournalError, match="event 11 is missing"):
        archive_before(journal, ALWAYS)
    assert len(segment_files(path)) == 1


def test_a_chain_rewritten_after_an_archive_is_not_archived(path: Path, journal: Journal) -> None:
    """Each event matches its own hash, but the first does not follow the archived chain."""
    for _ in range(4):
        decide(journal)
    archive_before(journal, ALWAYS)
    for _ in range(3):
        decide(journal)
    change(path, "UPDATE archives SET head = ?", "0" * 64)
    with pytest.raises(JournalError, match="event 4 does not match"):
        archive_before(journal, ALWAYS)


def test_archive_refuses_an_invalid_time(journal: Journal) -> None:
    with pytest.raises(JournalError, match="before: 'yesterday' is not an RFC 3339 time"):
        archive_before(journal, "yesterday")


def test_an_archive_directory_that_cannot_be_written_leaves_the_journal_as_it_was(
    path: Path, journal: Journal
) -> None:
    for _ in range(3):
        decide(journal)
    segments.directory(path).write_text("no directory")
    with pytest.raises(JournalError):
        archive_before(journal, ALWAYS)
    assert live(path) == [1, 2, 3]
    sound(path)


@pytest.mark.parametrize(
    ("where", "name", "after"),
    [
        (segments, "encode_line", 4),  # an unfinished segment
        (files, "rename", 0),
        (archive_module, "commit", 0),  # a segment that no event names
        (archive_module, "commit", 1),
        (archive_module, "_trim", 0),  # archived events that are in the database too
        (archive_module, "_trim", 1),
    ],
)
def test_an_interrupted_archive_is_sound_and_can_be_run_again(
    path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, after: int
) -> None:
    decided = [decide(journal, f"user{number}") for number in range(25)]
    before = tables(path)
    with cut_off(monkeypatch, where, name, after=after):
        archive_before(journal, "2026-07-01T12:00:00.5Z")
    sound(path)
    with Reader(path) as reader:
        assert [reader.trace(decision_id)["event"]["seq"] for decision_id in decided] == list(range(1, 26))
    archive_before(journal, ALWAYS)
    assert sound(path).archived == live(path)[0] - 1 >= 24
    assert len(segment_files(path)) == rows(path, "SELECT count(*) FROM archives")[0][0]
    assert tables(path).partition("('archives'")[0] == before.partition("('archives'")[0]


def test_trimming_continues_where_it_was_interrupted(
    path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided = [decide(journal, f"user{number}") for number in range(12)]
    real = journal.run
    steps: list[int] = []

    def run(task: Callable[[sqlite3.Connection], Any]) -> Any:
        if task.__qualname__.startswith("_trim"):
            if len(steps) == 2:
                raise KeyboardInterrupt
            steps.append(1)
        return real(task)

    with monkeypatch.context() as patch:
        patch.setattr(journal, "run", run)
        with pytest.raises(KeyboardInterrupt):
            archive_before(journal, ALWAYS)
    assert live(path)[0] == 2 * STEP + 1  # in the middle of a segment
    assert sound(path).events == 13
    with Reader(path) as reader:
        assert [reader.trace(decision_id)["event"]["seq"] for decision_id in decided] == list(range(1, 13))
    other = path.with_name("other.db")
    assert rebuild(path, other) == 13
    assert live(other) == list(range(1, 14))
    archive_before(journal, "2000-01-01T00:00:00Z")
    assert live(path)[0] == SEGMENT + 1
    sound(path)


def test_a_failing_maintenance_step_leaves_no_transaction_open(path: Path, journal: Journal) -> None:
    for _ in range(5):
        decide(journal)

    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(
            "CREATE TRIGGER stop BEFORE DELETE ON events BEGIN SELECT raise(ABORT, 'not now'); END"
        )
        with pytest.raises(JournalError, match="not now"):
            archive_before(journal, ALWAYS)
        decide(journal)
        connection.execute("DROP TRIGGER stop")
    archive_before(journal, "2000-01-01T00:00:00Z")
    assert live(path)[0] == 5
    sound(path)


def test_a_new_journal_overwrites_no_archive_of_the_old_one(path: Path) -> None:
    for _ in range(2):
        path.unlink(missing_ok=True)
        with opened(path) as journal:
            for _ in range(3):
                decide(journal)
            archive_before(journal, ALWAYS)
    assert len(segment_files(path)) == 2
    sound(path)


def test_an_archive_with_events_that_the_database_lacks_is_left_alone(path: Path) -> None:
    """The database is a copy from before the archive, so the segment may be the only copy of its events."""
    with opened(path) as journal:
        for _ in range(3):
            decide(journal)
    shutil.copy(path, path.with_name("copy"))
    with opened(path) as journal:
        for _ in range(3):
            decide(journal)
        (made,) = archive_before(journal, ALWAYS)
    path.with_name("copy").replace(path)
    with opened(path) as journal:
        decide(journal)
        archive_before(journal, ALWAYS)
        erase(journal, "user:nobody")
    assert made.path in segment_files(path)
    assert len(segment_files(path)) == 2


# ---------------------------------------------------------------- erasures


def everything_about(journal: Journal, name: str) -> list[str]:
    """One event of each kind that can contain a name, and two decisions of the actor; returns their ids."""
    own = [decide(journal, name, details=f"for {name}"), decide(journal, name)]
    explain(journal, own[0], f"{name} may not.")
    explain(journal, own[1], "He may not.")
    record(
        journal, records.Review(decision_id=own[0], reviewer="ines", verdict="accept", reasoning="Poor him.")
    )
    record(journal, records.Outcome(decision_id=own[0], status="SUCCESS", value=3.0, note="He sold."))
    record(journal, records.Approval(decision_id=own[0], approver="otto", evidence="mail of 8 May"))
    record(
        journal, records.Consultation(decision_id=own[0], system="crm", query="his name", value={"age": 41})
    )
    own.append(
        record(
            journal,
            records.DecisionReport(
                agent=name, outcome="BUY", prompt="Buy?", response="Yes.", context={"a": 1}
            ),
        )
    )
    other = decide(journal, "zoe", details=f"asked by {name}, at noon", people={name: {"boss": name}})
    explain(journal, other, f"Because of {name}, no.")
    record(journal, records.Review(decision_id=other, reviewer=name, verdict="accept", reasoning="Fine."))
    record(journal, records.Approval(decision_id=other, approver=name, evidence=f"({name})"))
    record(journal, records.Outcome(decision_id=other, status="SUCCESS", note=f"{name}'s doing"))
    record(journal, records.Consultation(session="s", system="crm", entity=name, value=[name, 1]))
    record(journal, records.Node(type="goal", title=f"Help {name}", metadata={name: name, "rest": 2.5}))
    record(journal, records.Edge(source=own[0], target=other, type="leads_to", rationale=f"{name} said so"))
    record(
        journal,
        records.DecisionReport(agent="desk", outcome="HOLD", prompt=f"Ask {name}?", context={"by": name}),
    )
    return own


def test_an_erased_name_is_in_no_file_and_the_chain_records_the_erasure(path: Path, journal: Journal) -> None:
    """No byte of the name is left in the database, the write-ahead log or the archives."""
    own = everything_about(journal, "alice")
    archive_before(journal, ALWAYS)
    own += everything_about(journal, "alice")
    assert len(files_with(path, "alice")) >= 2
    before = sound(path)
    done = erase(journal, "user:alice", by_uid=1000)
    assert files_with(path, "alice") == []
    assert (done.left, done.parts) == ((), ())
    assert (done.own, done.mentions) == (2 * 9, 2 * 9)
    after = sound(path)
    assert after.erased == 36
    assert after.events > before.events
    kinds = rows(path, "SELECT kind, body FROM events WHERE seq > ?", before.events)
    assert {kind for kind, _ in kinds} == {"erased"}
    bodies = [json.loads(body) for _, body in kinds]
    assert {body["by_uid"] for body in bodies} == {1000}
    parts: dict[str, str] = {}
    for body in bodies:
        parts |= body["parts"]
    assert len(parts) == 36
    assert sum(digest == "" for digest in parts.values()) == 18
    assert own
    for decision_id in own:
        (row,) = rows(
            path,
            "SELECT situation, actor, entity, reasoning FROM decisions WHERE decision_id = ?",
            decision_id,
        )
        assert row == (None, None, None, None)


def test_a_decision_of_an_erased_actor_keeps_its_outcome(path: Path, journal: Journal) -> None:
    own = everything_about(journal, "alice")
    erase(journal, "alice")
    with Reader(path) as reader:
        row, trace = reader.get(own[0]), reader.trace(own[0])
    assert row is not None
    assert (row["decision"], row["confidence"], row["action"]) == ("deny", 0.75, "deploy")
    assert (row["classification"], row["clauses"]) == ("freeze", ["R3"])
    assert (row["outcome_status"], row["outcome_value"], row["reviewed"]) == ("SUCCESS", 3.0, 1)
    assert trace["event"]["private"] is None
    (consulted,), (approval,) = trace["consultations"], trace["approvals"]
    assert (consulted["system"], consulted["query"], consulted["answer"]) == ("crm", None, None)
    assert (approval["verdict"], approval["approver"]) == ("approved", None)


def test_a_mention_of_an_erased_actor_loses_the_name_and_values_computed_from_it(
    path: Path, journal: Journal
) -> None:
    other = decide(journal, "zoe", details="asked by Alice, at noon", people={"alice": ["alice", 7, None]})
    explain(journal, other, "Because of alice.")
    record(
        journal,
        records.Review(decision_id=other, reviewer="alice", verdict="accept", reasoning="Fine, Alice"),
    )
    node = record(journal, records.Node(type="goal", title="Help alice", metadata={"alice": 1, "rest": 2.5}))
    done = erase(journal, "alice")
    assert (done.own, done.mentions, done.left) == (0, 4, ())
    with Reader(path) as reader:
        trace = reader.trace(other)
    private = trace["event"]["private"]
    assert set(private) == {"evaluation"}  # no facts, errors and tokens of the question
    assert private["evaluation"]["context"] == {
        "team_context": "platform",
        "details": "asked by [erased], at noon",
        "people": {"[erased]": ["[erased]", 7, None]},
    }
    assert trace["decision"]["actor"] == "user:zoe"
    assert trace["decision"]["reasoning"] == "Because of [erased]."
    assert trace["reviews"][0]["reviewer"] == "[erased]"
    assert trace["decision"]["review_reasoning"] == "Fine, [erased]"
    ((title, metadata),) = rows(path, "SELECT title, metadata FROM nodes WHERE id = ?", node)
    assert (title, json.loads(metadata)) == ("Help [erased]", {"[erased]": 1, "rest": 2.5})
    sound(path)


NAMES = (
    "alice",
    "Ödön Żółć",
    "Jürgen",
    'Robert "Bob" O\'Neil',
    "back\\slash\\n",
    "a.b*c+(d)[e]{2}|^$?",
    "tab\there",
    "li\nne",
    "李小龍",
    "spiffe://prod/ns/app",
    "it's; DROP TABLE events;--",
    "%_%",
    "-",
    "x" * 200,
)


@pytest.mark.parametrize("name", NAMES)
def test_any_name_can_be_erased(path: Path, journal: Journal, name: str) -> None:
    name = name if name != "-" else "-q-"
    everything_about(journal, name)
    archive_before(journal, ALWAYS)
    everything_about(journal, name)
    done = erase(journal, f"user:{name}")
    assert done == Erasure(own=18, mentions=18, archived=done.archived, left=(), parts=())
    assert files_with(path, name) == []
    sound(path)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "({})",
        "a\n{}",
        "\t{}\r\n",
        '"{}"',
        "{}'s",
        "user:{}",
        "/home/{}/x",
        '{{"by":"{}"}}',
        '{{"a":"b\\n{}"}}',
    ],
)
def test_a_name_matches_wherever_it_is_a_word(path: Path, journal: Journal, text: str) -> None:
    decide(journal, "zoe", details=text.format("ann"))
    done = erase(journal, "ann")
    assert (done.mentions, done.left) == (1, ())
    (context,) = rows(path, "SELECT situation FROM decisions")
    assert json.loads(context[0])["context"]["details"] == text.format("[erased]")
    sound(path)


@pytest.mark.parametrize("text", ["{}a", "jo{}", "{}_x", "{}2", "{}é"])
def test_a_name_inside_a_longer_word_does_not_match(path: Path, journal: Journal, text: str) -> None:
    decide(journal, text.format("ann"), annotations=[text.format("ann")])
    before = tables(path)
    done = erase(journal, "ann")
    assert (done.own, done.mentions, done.left) == (0, 0, ())
    assert set(done.parts) == {"table private", "table decisions", "schema"}  # which has a `channel`
    assert tables(path) == before


def test_a_name_is_erased_beside_longer_words_that_contain_it(path: Path, journal: Journal) -> None:
    own, other = decide(journal, "ann"), decide(journal, "anna", details="annotations of ann")
    done = erase(journal, "ann")
    assert (done.own, done.mentions, done.left) == (1, 1, ())
    assert "table private" in done.parts
    (row,) = rows(path, "SELECT actor, situation FROM decisions WHERE decision_id = ?", other)
    assert row[0] == "user:anna"
    assert json.loads(row[1])["context"]["details"] == "annotations of [erased]"
    assert rows(path, "SELECT actor FROM decisions WHERE decision_id = ?", own) == [(None,)]
    sound(path)


def test_a_name_matches_in_either_unicode_composition(path: Path, journal: Journal) -> None:
    decide(journal, "J\u00fcrgen")
    decide(journal, "zoe", details="fu\u0308r Ju\u0308rgen")
    done = erase(journal, "user:J\u00fcrgen")
    assert (done.own, done.mentions, done.left) == (1, 1, ())
    assert files_with(path, "Ju\u0308rgen") == []


@pytest.mark.parametrize(
    "name", ["context", "id", "evaluation", "subject", "reasoning", "text", "properties"]
)
def test_erasing_a_name_equal_to_a_key_of_our_records_keeps_the_keys(
    path: Path, journal: Journal, name: str
) -> None:
    own = decide(journal, name)
    other = decide(journal, "zoe", **{name: 1})
    unrelated = decide(journal, "zoe")
    explain(journal, unrelated)
    untouched = rows(path, "SELECT * FROM decisions WHERE decision_id = ?", unrelated)
    done = erase(journal, name)
    assert (done.own, done.mentions, done.left) == (1, 1, ())
    assert rows(path, "SELECT actor FROM decisions WHERE decision_id = ?", own) == [(None,)]
    (situation,) = rows(path, "SELECT situation FROM decisions WHERE decision_id = ?", other)
    assert json.loads(situation[0])["context"] == {"team_context": "platform", "[erased]": 1}
    assert rows(path, "SELECT * FROM decisions WHERE decision_id = ?", unrelated) == untouched
    with Reader(path) as reader:
        assert reader.trace(unrelated)["event"]["private"]["suffix_tokens"] == [17, 4, 99]
    sound(path)


def test_a_name_of_digits_is_erased_where_it_is_a_number(path: Path, journal: Journal) -> None:
    decide(journal, "4711")
    other = decide(journal, "zoe", employee=4711, amount=47110, text="of 4711")
    unrelated = decide(journal, "zoe", amount=47110)
    done = erase(journal, "user:4711")
    assert (done.own, done.mentions, done.left) == (1, 1, ())
    (situation,) = rows(path, "SELECT situation FROM decisions WHERE decision_id = ?", other)
    assert json.loads(situation[0])["context"] == {
        "team_context": "platform", "employee": "[erased]", "amount": 47110, "text": "of [erased]",
    }  # fmt: skip
    assert rows(
        path, "SELECT count(*) FROM erasures JOIN decisions USING (seq) WHERE decision_id = ?", unrelated
    ) == [(0,)]
    sound(path)


def test_a_name_on_the_chain_cannot_be_erased_and_is_reported(path: Path, journal: Journal) -> None:
    record(journal, records.DecisionReport(agent="desk", outcome="HOLD", session="alice", tags=("alice",)))
    done = erase(journal, "alice")
    assert done.mentions == 0
    assert set(done.left) == {"table events", "table decisions", "journal.db"}
    sound(path)


def test_a_name_on_the_chain_of_an_archive_is_reported_with_its_file(path: Path, journal: Journal) -> None:
    record(
        journal, records.DecisionReport(agent="desk", outcome="HOLD", session="alice", tags=("annotated",))
    )
    decide(journal, "zoe")
    (made,) = archive_before(journal, ALWAYS)
    done = erase(journal, "alice")
    assert set(done.left) == {"table decisions", "journal.db", made.path.name}
    done = erase(journal, "ann")
    assert done.left == ()
    assert made.path.name in done.parts


def test_an_erased_name_in_free_space_of_the_file_is_overwritten(path: Path, journal: Journal) -> None:
    decide(journal, "zoe")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA secure_delete = OFF")
        connection.execute("CREATE TABLE t (x TEXT)")
        connection.execute("INSERT INTO t VALUES (?)", ("alice " * 5_000,))
        connection.execute("DROP TABLE t")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert files_with(path, "alice") == ["journal.db"]
    assert erase(journal, "alice") == Erasure(own=0, mentions=0, archived=0, left=(), parts=())
    assert files_with(path, "alice") == []
    sound(path)


def test_a_long_vacuum_beats_the_pulse(path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the watchdog would end the daemon at each new attempt of the erasure."""

    class Counted(Pulse):
        beats = 0

        def beat(self) -> None:
            super().beat()
            self.beats += 1

    def beats(who: str) -> int:
        journal.pulse = Counted()
        erase(journal, who)
        return journal.pulse.beats

    monkeypatch.setattr(erase_module, "BEAT_STEPS", 10)
    decide(journal, "zoe")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA secure_delete = OFF")
        connection.execute("CREATE TABLE t (x TEXT)")
        connection.executemany("INSERT INTO t VALUES (?)", [("alice " * 50,)] * 500)
        connection.execute("DELETE FROM t WHERE rowid % 2")
        connection.execute("UPDATE t SET x = replace(x, 'alice', 'smith')")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert beats("nobody here") < 100
    assert beats("alice") > 100


def test_two_adjacent_values_that_spell_a_name_are_not_reported(path: Path, journal: Journal) -> None:
    """In the file `agent:ann` is directly followed by the `agent` of another column."""
    record(journal, records.DecisionReport(agent="ann", outcome="BUY"))
    done = erase(journal, "anna")
    assert (done.mentions, done.left, done.parts) == (0, (), ("journal.db",))


def test_an_agent_is_erased_by_its_name(path: Path, journal: Journal) -> None:
    own = record(journal, records.DecisionReport(agent="trader", outcome="BUY", prompt="Buy?", entity="ACME"))
    record(journal, records.DecisionReport(agent="clerk", outcome="HOLD", made_by="human"))
    done = erase(journal, "agent:trader")
    assert (done.own, done.mentions, done.left) == (1, 0, ())
    (row,) = rows(
        path, "SELECT actor, situation, entity, decision, tier FROM decisions WHERE decision_id = ?", own
    )
    assert row == (None, None, None, "BUY", "agent")
    sound(path)


def test_a_subject_of_another_type_with_the_same_id_is_only_a_mention(path: Path, journal: Journal) -> None:
    decision_id = decide(journal, "alice")
    done = erase(journal, "service:alice")
    assert (done.own, done.mentions, done.left) == (0, 1, ())
    assert rows(path, "SELECT actor FROM decisions WHERE decision_id = ?", decision_id) == [
        ("user:[erased]",)
    ]


def test_erasing_twice_finds_nothing_more(path: Path, journal: Journal) -> None:
    everything_about(journal, "alice")
    archive_before(journal, ALWAYS)
    erase(journal, "alice")
    before, files = live(path), [file.read_bytes() for file in segment_files(path)]
    assert erase(journal, "alice") == Erasure(own=0, mentions=0, archived=0, left=(), parts=())
    assert live(path) == before
    assert [file.read_bytes() for file in segment_files(path)] == files
    sound(path)


def test_erasing_an_unknown_actor_changes_nothing(path: Path, journal: Journal) -> None:
    everything_about(journal, "alice")
    before = tables(path), live(path)
    assert erase(journal, "user:bob") == Erasure(own=0, mentions=0, archived=0, left=(), parts=())
    assert (tables(path), live(path)) == before
    assert erase(journal, "user:bob").own == 0


@pytest.mark.parametrize("actor", ["", " ", "user: ", "\n"])
def test_erase_refuses_an_empty_actor(journal: Journal, actor: str) -> None:
    with pytest.raises(JournalError, match="actor: must not be empty"):
        erase(journal, actor)


def test_an_erased_actor_may_come_back_and_be_erased_again(path: Path, journal: Journal) -> None:
    old = decide(journal, "alice")
    erase(journal, "alice")
    record(journal, records.Review(decision_id=old, reviewer="ines", verdict="accept", reasoning="Quite so."))
    decide(journal, "alice")
    done = erase(journal, "alice")
    assert (done.own, done.left) == (1, ())
    with Reader(path) as reader:
        assert reader.trace(old)["reviews"][0]["reasoning"] == "Quite so."
    sound(path)


def test_two_people_are_erased_one_after_the_other(path: Path, journal: Journal) -> None:
    decide(journal, "alice", details="with bob")
    decide(journal, "bob", details="with alice")
    other = decide(journal, "zoe", details="alice and bob")
    for name, own, mentions in (("alice", 1, 2), ("bob", 1, 1)):
        done = erase(journal, name)
        assert (done.own, done.mentions, done.left) == (own, mentions, ())
        sound(path)
    (situation,) = rows(path, "SELECT situation FROM decisions WHERE decision_id = ?", other)
    assert json.loads(situation[0])["context"]["details"] == "[erased] and [erased]"


def test_after_an_erasure_the_newest_explanation_review_and_outcome_still_count(
    path: Path, journal: Journal
) -> None:
    other = decide(journal, "zoe")
    for words in ("of alice", "of nobody", "of alice again"):
        explain(journal, other, words)
        record(journal, records.Review(decision_id=other, reviewer="ines", verdict="accept", reasoning=words))
        record(
            journal,
            records.Outcome(decision_id=other, status="SUCCESS", note=words, value=float(len(words))),
        )
    erase(journal, "alice")
    with Reader(path) as reader:
        row = reader.get(other)
    assert row is not None
    assert (row["reasoning"], row["review_reasoning"]) == ("of [erased] again",) * 2
    assert row["outcome_value"] == 14.0
    sound(path)


@pytest.mark.parametrize(
    ("where", "name", "after"),
    [
        (erase_module, "commit", 0),
        (erase_module, "commit", 1),
        (erase_module, "commit", 2),
        (erase_module, "commit", 5),
        (erase_module, "commit", 9),
        (
            erase_module,
            "_rewrite_segment",
            0,
        ),  # the chain says that it is erased, but the archive still has it
        (erase_module, "_rewrite_segment", 1),
        (segments, "encode_line", 3),
        (erase_module, "_find_remains", 0),
        (erase_module, "_truncate_wal", 0),
    ],
)
def test_an_interrupted_erasure_is_finished_by_the_next_one(
    path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, after: int
) -> None:
    own = everything_about(journal, "alice")
    unnamed = "a sentence without the name"
    explain(journal, own[0], unnamed)
    everything_about(journal, "alice")
    archive_before(journal, ALWAYS)
    everything_about(journal, "alice")
    explain(journal, own[1], unnamed)
    with cut_off(monkeypatch, where, name, after=after):
        erase(journal, "alice")
    done = erase(journal, "alice")
    assert done.left == ()
    assert files_with(path, "alice") == files_with(path, unnamed) == []
    sound(path)
    assert not [file for file in segment_files(path) if file.suffix != ".gz"]


def test_an_unfinished_segment_of_a_crash_does_not_keep_the_name(
    path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(5):
        decide(journal, "alice")
    decide(journal, "zoe")
    name = segments.file_name(journal.chain, 1, 5)
    segments.directory(path).mkdir()
    half = segments.directory(path) / f".{name}.new"
    half.write_bytes(gzip.compress(b"alice"))
    with cut_off(monkeypatch, archive_module, "commit"):
        archive_before(journal, ALWAYS)
    assert len(segment_files(path)) == 1  # complete, but no event names it
    half.write_bytes(gzip.compress(b"alice"))
    assert erase(journal, "alice").left == ()
    assert segment_files(path) == []
    sound(path)


def test_an_erasure_after_an_interrupted_archive_erases_all(
    path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything_about(journal, "alice")
    with cut_off(monkeypatch, archive_module, "_trim"):
        archive_before(journal, ALWAYS)
    assert erase(journal, "alice").left == ()
    assert files_with(path, "alice") == []
    sound(path)


def test_a_damaged_file_that_has_the_name_is_reported(path: Path, journal: Journal) -> None:
    decide(journal, "alice")
    path.with_name("journal.db.damaged-20260701T120000Z").write_bytes(b"\0\0user:alice\0")
    path.with_name("journal.db.damaged-20260702T120000Z").write_bytes(b"\0\0user:bob\0")
    assert erase(journal, "alice").left == ("journal.db.damaged-20260701T120000Z",)


def test_an_erasure_fails_while_a_reader_keeps_the_log_and_then_succeeds(
    path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erase_module, "LOG_TRIES", 1)
    monkeypatch.setattr(erase_module, "LOG_PAUSE_S", 0.0)
    own = decide(journal, "alice")
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM decisions").fetchall()
        with pytest.raises(JournalError, match="a reader keeps erased values in the write-ahead log"):
            erase(journal, "alice")
        decide(journal, "zoe")
        assert reader.execute("SELECT actor FROM decisions").fetchall() == [("user:alice",)]
    waits = journal.run(lambda connection: connection.execute("PRAGMA busy_timeout").fetchone()[0])
    assert waits.result(WAIT_S) == BUSY_TIMEOUT_MS  # as patient as before
    assert rows(path, "SELECT actor FROM decisions WHERE decision_id = ?", own) == [(None,)]
    done = erase(journal, "alice")
    assert (done.own, done.left) == (0, ())
    assert files_with(path, "alice") == []
    sound(path)


def test_events_that_arrive_during_an_erasure_are_erased_too(path: Path, journal: Journal) -> None:
    decided = [decide(journal, "alice") for _ in range(5)]
    late = iter(("alice", "alice"))

    def progress(_: int) -> None:
        if (name := next(late, None)) is not None:
            decided.append(decide(journal, name, details=name))

    assert erase(journal, "alice", progress=progress).own == 7
    assert files_with(path, "alice") == []
    assert len(decided) == 7
    sound(path)


# ---------------------------------------------------------------- rebuilding


def busy(journal: Journal, *, dumps: dict[int, str] | None = None) -> None:
    """Record every kind of event, an hour apart; `dumps` gets the tables after each of them."""
    hours = itertools.count()
    keep(journal, events.model_loaded(MODEL, NOON))
    keep(journal, events.pack_activated(PACK, NOON))
    goal = record(journal, records.Node(type="goal", title="ship"))
    decided: list[str] = []

    def noted() -> None:
        if dumps is not None:
            dumps[journal.seq] = tables(journal.path)

    for name in ("alice", "bob", "zoe"):
        at = NOON + 3600 * next(hours)
        decided.append(decide(journal, name, at=at, details=f"{name}'s"))
        noted()
        for sent in (
            records.DecisionReport(agent=name, outcome="BUY", prompt="Buy?", latency_ms=3, tags=("a", "b")),
            records.Review(
                decision_id=decided[-1], reviewer="ines", verdict="correct_both", decision="allow"
            ),
            records.Outcome(decision_id=decided[0], status="SUCCESS", value=len(decided)),
            records.Approval(decision_id=decided[0], approver=name),
            records.Consultation(session="s", system="crm", value={"a": [1, 2.0, None]}),
            records.Node(type="goal", title=name, metadata={"x": name}),
            records.Edge(source=decided[0], target=goal, type="leads_to", weight=1),
        ):
            record(journal, sent, at=at)
            noted()
        explain(journal, decided[0], f"{name} is why")
        noted()
    keep(journal, events.gap_event("a disk", NOON + 3600 * next(hours), decision=2))
    noted()


def test_a_full_rebuild_gives_the_same_journal_byte_for_byte(path: Path, journal: Journal) -> None:
    busy(journal)
    other = path.parent / "copies" / "journal.db"
    done: list[int] = []
    assert rebuild(path, other, progress=done.append) == journal.seq == done[-1]
    assert done == sorted(done)
    assert [file.name for file in other.parent.iterdir()] == ["journal.db"]
    assert tables(other) == tables(path)
    for table in ("events", "private", "erasures"):
        everything = f"SELECT * FROM {table} ORDER BY seq"
        assert rows(other, everything) == rows(path, everything)
    assert sound(other).head == sound(path).head
    assert stat_mode(other) == 0o640


def test_a_rebuild_at_a_past_event_gives_the_tables_as_they_were_then(path: Path, journal: Journal) -> None:
    dumps: dict[int, str] = {}
    busy(journal, dumps=dumps)
    archive_before(journal, ALWAYS)
    for seq, dump in dumps.items():
        other = path.with_name(f"at-{seq}.db")
        assert rebuild(path, other, at=seq) == seq
        assert tables(other) == dump
        assert live(other) == list(range(1, seq + 1))
        sound(other)


def test_a_rebuild_at_a_past_time_ends_before_it(path: Path, journal: Journal) -> None:
    dumps: dict[str, str] = {}
    for hour in range(4):
        dumps[f"2026-07-01T{12 + hour}:00:00Z"] = tables(path)
        decide(journal, at=NOON + 3600 * hour)
        record(journal, records.Node(type="goal", title="t"), at=NOON + 3600 * hour)
    for number, (at, dump) in enumerate(dumps.items()):
        other = path.with_name(f"{number}.db")
        assert rebuild(path, other, at=at) == 2 * number
        assert tables(other) == dump
        sound(other)


def test_a_rebuild_restores_archived_events(path: Path, journal: Journal) -> None:
    busy(journal)
    archive_before(journal, ALWAYS)
    other = path.parent / "copies" / "journal.db"
    rebuild(path, other)
    assert live(other) == list(range(1, journal.seq + 1))
    assert tables(other) == tables(path)
    assert sound(other).archived == 0
    assert sound(other).head == sound(path).head


def test_a_rebuild_restores_counterfactuals(path: Path, journal: Journal) -> None:
    ids = [decide(journal) for _ in range(2)]
    done = run_maintenance(journal, would_have_been(*ids, "nobody's"))
    assert done == {"recorded": 2, "unknown": ["nobody's"]}
    assert journal.batches == 2 + 1  # all of them in one transaction
    before = tables(path)
    assert before.count("'run-1'") == 2
    other = path.parent / "copies" / "journal.db"
    rebuild(path, other)
    assert tables(other) == before
    assert sound(other).head == sound(path).head
    rebuild_in_place(journal)
    assert tables(path) == before
    assert run_maintenance(journal, would_have_been()) == {"recorded": 0, "unknown": []}
    assert journal.seq == 4
    archive_before(journal, ALWAYS)
    assert tables(path).count("'run-1'") == 2
    sound(path)


def test_counterfactuals_of_a_failing_journal_are_not_recorded(journal: Journal) -> None:
    maintenance = would_have_been(decide(journal))
    journal.run(lambda connection: connection.execute("DROP TABLE counterfactuals")).result()
    with pytest.raises(JournalError, match="could not record the results: the journal failed"):
        run_maintenance(journal, maintenance)


def would_have_been(*decision_ids: str) -> records.Maintenance:
    results = tuple(
        records.Redecided(
            decision_id=decision_id,
            served="deny",
            outcome="allow",
            direction="loosened",
            tier="rule",
            floor="allow",
        )
        for decision_id in decision_ids
    )
    run = records.Counterfactuals(
        run="run-1",
        pack=records.JudgePack(name="core", version="2", sha256="d" * 64),
        model=records.JudgeModel(name="phi", sha256="f" * 64, quantisation=""),
        results=results,
    )
    return records.Maintenance(task="counterfactual", counterfactuals=run)


def test_a_rebuild_does_not_restore_erased_values(path: Path, journal: Journal) -> None:
    busy(journal)
    archive_before(journal, "2026-07-01T13:30:00Z")
    erase(journal, "alice")
    erase(journal, "bob")
    other = path.parent / "copies" / "journal.db"
    rebuild(path, other)
    assert tables(other) == tables(path)
    assert files_with(other, "alice") == files_with(other, "bob") == []
    assert sound(other).erased == sound(path).erased > 0


def test_a_rebuilt_journal_can_be_continued(path: Path, journal: Journal) -> None:
    busy(journal)
    archive_before(journal, ALWAYS)
    other = path.parent / "copies" / "journal.db"
    rebuild(path, other)
    with opened(other) as copy:
        assert copy.chain == journal.chain
        decide(copy)
        erase(copy, "alice")
        assert live(other)[0] == 1  # the archives that its chain names are not in this directory
        archive_before(copy, "2026-07-01T13:30:00Z")
        assert len(live(other)) > 10
        sound(other)
        archive_before(copy, ALWAYS)
    assert files_with(other, "alice") == []
    sound(other)


def test_a_rebuild_overwrites_no_file(path: Path, journal: Journal) -> None:
    decide(journal)
    other = path.with_name("other.db")
    other.write_text("mine")
    with pytest.raises(JournalError, match="exists already"):
        rebuild(path, other)
    assert other.read_text() == "mine"


def test_a_rebuild_of_a_missing_journal_or_at_an_invalid_time_writes_no_file(
    path: Path, journal: Journal
) -> None:
    other = path.with_name("other.db")
    with pytest.raises(JournalError, match="there is no journal"):
        rebuild(path.with_name("nowhere.db"), other)
    with pytest.raises(JournalError, match="at: 'then' is not an RFC 3339 time"):
        rebuild(path, other, at="then")
    assert not other.exists()


def test_an_interrupted_rebuild_can_be_run_again(
    path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy(journal)
    other = path.parent / "copies" / "journal.db"
    with cut_off(monkeypatch, chain.Row, "_make", after=9):
        rebuild(path, other)
    assert list(other.parent.iterdir()) == []
    other.with_name(".journal.db.new").write_text("half of it, after a crash")
    rebuild(path, other)
    assert tables(other) == tables(path)


def test_changed_tables_are_rebuilt_in_place(path: Path, journal: Journal) -> None:
    busy(journal)
    archive_before(journal, "2026-07-01T13:30:00Z")
    erase(journal, "alice")
    before = tables(path)
    change(path, "UPDATE decisions SET decision = 'allow', reasoning = 'forged'")
    change(path, "DELETE FROM reviews")
    change(path, "INSERT INTO gaps VALUES (4000, 'now', 'none', '{}')")
    assert not verify(path).ok
    done: list[int] = []
    assert rebuild_in_place(journal, progress=done.append) == journal.seq == done[-1]
    assert tables(path) == before
    sound(path)
    decide(journal)
    sound(path)


def test_a_rebuild_in_place_that_fails_changes_nothing(path: Path, journal: Journal) -> None:
    busy(journal)
    before = tables(path)
    body = rows(path, "SELECT body FROM events WHERE seq = 20")[0][0]
    change(path, "UPDATE events SET body = '{' WHERE seq = 20")
    with pytest.raises(JournalError, match="cannot be read"):
        rebuild_in_place(journal)
    assert tables(path) == before
    change(path, "UPDATE events SET body = ? WHERE seq = 20", body)
    decide(journal)
    sound(path)


# ---------------------------------------------------------------- all tasks


def shipped(sink: str, seq: int) -> records.Maintenance:
    return records.Maintenance(task="shipped", shipped=records.Shipped(sink=sink, seq=seq))


def test_archiving_leaves_what_the_slowest_sink_lacks(path: Path, journal: Journal) -> None:
    for _ in range(6):
        decide(journal)
    for sink, seq in (("segments", 4), ("postgres", 2)):
        run_maintenance(journal, shipped(sink, seq))
    archive = records.Maintenance(task="archive", before=ALWAYS)
    done = run_maintenance(journal, archive)
    assert (done["archived"], done["waits_for"]) == (2, "postgres")
    forget = records.Maintenance(task="unship", sink="postgres")
    assert [run_maintenance(journal, forget)["forgotten"] for _ in range(2)] == [True, False]
    done = run_maintenance(journal, archive)
    assert (done["archived"], done["waits_for"]) == (2, "segments")
    done = run_maintenance(journal, replace(archive, unshipped=True))
    assert done["archived"] > 0
    assert done["waits_for"] is None


def test_a_sink_has_no_event_that_is_not_recorded(path: Path, journal: Journal) -> None:
    decide(journal)
    with pytest.raises(JournalError, match=f"cannot have event {journal.seq + 1}"):
        run_maintenance(journal, shipped("postgres", journal.seq + 1))
    assert run_maintenance(journal, shipped("postgres", journal.seq)) == {"acknowledged": journal.seq}


def test_sixteen_sinks_are_noted_at_most(path: Path, journal: Journal) -> None:
    for number in range(MOST_SINKS):
        run_maintenance(journal, shipped(f"sink-{number}", 0))
    with pytest.raises(JournalError, match="forget one first with `thorpolicy ship --forget`"):
        run_maintenance(journal, shipped("another", 0))
    run_maintenance(journal, shipped("sink-0", 0))
    run_maintenance(journal, records.Maintenance(task="unship", sink="sink-1"))
    run_maintenance(journal, shipped("another", 0))


def test_an_erasure_is_refused_while_a_sink_lacks_an_event_of_the_actor(path: Path, journal: Journal) -> None:
    decide(journal)
    seq = journal.seq
    run_maintenance(journal, shipped("postgres", seq - 1))
    task = records.Maintenance(task="erase", actor="alice")
    with pytest.raises(JournalError, match=f"event {seq} names the actor, and the sink postgres has not"):
        run_maintenance(journal, task)
    assert run_maintenance(journal, replace(task, actor="nobody"))["own"] == 0
    assert run_maintenance(journal, replace(task, unshipped=True))["own"] == 1
    decide(journal)
    run_maintenance(journal, shipped("postgres", journal.seq))
    assert run_maintenance(journal, task)["own"] == 1


def test_each_maintenance_task_returns_its_result(path: Path, journal: Journal) -> None:
    for _ in range(4):
        decide(journal)
    done = run_maintenance(journal, records.Maintenance(task="archive", before=ALWAYS))
    files = [file.name for file in segment_files(path)]
    assert done == {"archived": 3, "segments": files, "waits_for": None}
    done = run_maintenance(journal, records.Maintenance(task="erase", actor="alice"), by_uid=7)
    assert done == {"own": 4, "mentions": 0, "archived": 3, "left": (), "parts": ()}
    assert run_maintenance(journal, records.Maintenance(task="checkpoint")) == {
        "checkpoint": 0
    }  # no key, no checkpoint


NAMES_OF_MANY = ("alice", "ann", "anna", "bob", "id")
operations = st.lists(
    st.one_of(
        st.tuples(st.just("decide"), st.sampled_from(NAMES_OF_MANY), st.sampled_from(NAMES_OF_MANY)),
        st.tuples(st.just("report"), st.sampled_from(NAMES_OF_MANY), st.sampled_from(NAMES_OF_MANY)),
        st.tuples(
            st.sampled_from(["explain", "review", "outcome"]),
            st.integers(0, 9),
            st.sampled_from(NAMES_OF_MANY),
        ),
        st.tuples(st.just("archive"), st.integers(0, 40), st.none()),
        st.tuples(st.just("erase"), st.sampled_from(NAMES_OF_MANY), st.none()),
        st.tuples(st.just("restart"), st.none(), st.none()),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(operations)
def test_after_any_sequence_of_tasks_the_journal_verifies_and_rebuilds_identically(
    done: list[tuple[str, Any, Any]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state" / "journal.db"
        journal = opened(path)
        try:
            decided: list[str] = []
            gone: set[str] = set()
            for minute, (what, which, name) in enumerate(done):
                at = NOON + 60 * minute
                if what == "decide":
                    decided.append(decide(journal, which, at=at, details=f"with {name}"))
                elif what == "report":
                    report = records.DecisionReport(agent=which, outcome="BUY", prompt=f"Ask {name}?")
                    decided.append(record(journal, report, at=at))
                elif what == "archive":
                    archive_before(journal, events.timestamp(NOON + 60 * which))
                elif what == "erase":
                    assert erase(journal, which).left == ()
                elif what == "restart":
                    journal.close()
                    journal = opened(path)
                elif decided and what == "explain":
                    explain(journal, decided[which % len(decided)], f"Because of {name}.")
                elif decided and what == "review":
                    about = decided[which % len(decided)]
                    review = records.Review(
                        decision_id=about, reviewer=name, verdict="accept", reasoning=name
                    )
                    record(journal, review, at=at)
                elif decided and what == "outcome":
                    about = decided[which % len(decided)]
                    record(journal, records.Outcome(decision_id=about, status="SUCCESS", note=name), at=at)
                gone = (gone | {which}) if what == "erase" else gone - {which, name}
            for name in gone - {"id", "ann"}:  # their letters are inside other words
                assert name == "anna" or files_with(path, name) == [], name
            sound(path)
            if journal.seq:
                other = Path(folder) / "copy" / "journal.db"
                assert rebuild(path, other) == journal.seq
                assert tables(other) == tables(path)
                sound(other)
                before = tables(path)
                rebuild_in_place(journal)
                assert tables(path) == before
        finally:
            journal.close()
