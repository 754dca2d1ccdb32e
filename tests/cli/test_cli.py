"""The command line: what each command prints, and its exit statuses."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from tests.build import CALLER, MODEL, NOON, by_model, without_model
from thor_policy import catalog
from thor_policy.cli.main import cli
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.decisions import Floor
from thor_policy.core.errors import AlreadyRunning
from thor_policy.core.records import Calibration
from thor_policy.core.requests import Json
from thor_policy.daemon import journal_access, service
from thor_policy.daemon.loading import find_adapter
from thor_policy.daemon.service import serving
from thor_policy.journal import events
from thor_policy.journal.checkpoints import Signer
from thor_policy.journal.projections import DECISION_COLUMNS
from thor_policy.journal.reader import ENDING_CHARS
from thor_policy.journal.writer import Journal
from thor_policy.policy.pack import Pack
from thor_policy.testing import StubEngine, load_stub_engine

#: Longest wait for a child process, in seconds.
CHILD_TIMEOUT_S = 60
ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
QUESTION: Json = {
    "actor_id": "user:alice",
    "actor_role": "engineer",
    "t3_tensor": {"competence": 0.9, "reliability": 0.9, "integrity": 0.9},
    "action_type": "deploy",
    "resource": "env:production",
    "timestamp": "2026-05-13T10:00:00Z",
}
SUITE = """
name: tiny
pack: team-governance
scenarios:
  - id: T1
    title: Whatever the stub says is right
    difficulty: easy
    quick: true
    situation: {actor_id: user:a, action_type: deploy, resource: env:x, timestamp: "2026-05-13T10:00:00Z"}
    expect: {one_of: [allow, require_mfa, require_attestation, deny]}
"""
OTHER = SUITE.replace("team-governance", "device-operations").replace("[allow, require_mfa,", "[allow,")
HOPELESS = SUITE.replace("deny]}", "deny], clauses: [R99]}")

Run = Callable[..., Result]


@pytest.fixture
def run(config: Config, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("THOR_POLICY_STATE_DIR", str(config.state_dir))
    monkeypatch.setenv("THOR_POLICY_ENDPOINT", config.endpoint)

    def invoke(*arguments: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(cli, arguments, input=stdin)

    return invoke


@pytest.fixture
def daemon(config: Config) -> Iterator[Config]:
    with serving(config, load_engine=load_stub_engine):
        yield config


@pytest.mark.usefixtures("daemon")
class TestAsk:
    def test_ask_takes_json_a_file_or_standard_input(self, run: Run, tmp_path: Path) -> None:
        body = json.dumps(QUESTION)
        file = tmp_path / "question.json"
        file.write_text(body)
        for result in (
            run("ask", "--json", body),
            run("ask", "--json", str(file)),
            run("ask", "--json", stdin=body),
        ):
            assert result.exit_code == 0, result.output
            assert json.loads(result.stdout)["context"]["tier"] == "model"

    def test_ask_takes_both_forms_of_a_question(self, run: Run) -> None:
        evaluation = {
            "subject": {"type": "user", "id": "a"},
            "action": {"name": "deploy"},
            "resource": {"type": "env", "id": "x"},
        }
        assert run("ask", json.dumps(evaluation)).exit_code == 0
        assert run("ask", json.dumps({"request": evaluation})).exit_code == 0

    def test_ask_shows_the_outcome_the_reason_and_the_id(self, run: Run) -> None:
        shown = run("ask", json.dumps(QUESTION)).stdout
        for word in ("outcome", "reason", "clauses", "probabilities", "decision id"):
            assert word in shown
        assert max(map(len, shown.splitlines())) <= 120

    def test_a_refused_question_is_status_4_with_its_code(self, run: Run) -> None:
        result = run("ask", '{"actor_id": "user:a"}')
        assert result.exit_code == 4
        assert result.stderr.startswith("thorpolicy: bad_request: situation.action_type")

    @pytest.mark.parametrize("text", ["{broken", "/no/such/file", ""])
    def test_a_question_that_is_not_json_is_status_2(self, run: Run, text: str) -> None:
        assert run("ask", text).exit_code == 2


#: A question with a fault that JSON does not allow, and the place or problem that the error names.
NOT_STRICT = {
    "twice": ('"n": 1, "n": 2', "n: is there twice in one object; give it one time"),
    "twice by an escape": ('"role": 1, "r\\u006fle": 2', "role: is there twice in one object"),
    "twice in a detail": ('"d": {"a": [{"b": 1, "b": 1}]}', "d.a.0.b: is there twice in one object"),
    "actor twice": ('"actor_id": "user:eve"', "actor_id: is there twice in one object"),
    "NaN": ('"n": NaN', "is not valid JSON: "),
    "infinite": ('"n": -Infinity', "is not valid JSON: "),
    "1e400": ('"n": 1e400', "n: the number is too large for 64 bits"),
    "2**64": (f'"n": [{2**64}]', "n.0: the integer does not fit 64 bits"),
    "-10**30": (f'"n": {-(10**30)}', "n: the integer does not fit 64 bits"),
    "surrogate": ('"n": "\\ud800"', "is not valid JSON: "),
}


@pytest.mark.parametrize(("member", "problem"), NOT_STRICT.values(), ids=NOT_STRICT)
class TestStrictQuestions:
    @pytest.fixture
    def text(self, member: str) -> str:
        return f"{json.dumps(QUESTION)[:-1]}, {member}}}"

    def test_ask_refuses_them_with_status_2_before_it_asks(
        self, run: Run, text: str, problem: str, tmp_path: Path
    ) -> None:
        file = tmp_path / "question.json"
        file.write_text(text)
        for result in (run("ask", text), run("ask", str(file)), run("ask", "-", stdin=text)):
            assert result.exit_code == 2
            assert problem in result.stderr

    def test_packs_render_refuses_them(self, run: Run, text: str, problem: str) -> None:
        result = run("packs", "render", "team-governance", "-", stdin=text)
        assert (result.exit_code, problem in result.stderr) == (2, True)


def test_ask_names_a_question_that_is_not_utf8(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "question.json"
    file.write_bytes(b'{"actor_id": "\xff"}')
    for result in (run("ask", str(file)), run("ask", "-", stdin=file.read_bytes())):
        assert (result.exit_code, "is not valid UTF-8" in result.stderr) == (2, True)
    result = run("packs", "render", "team-governance", str(file))
    assert (result.exit_code, "is not valid UTF-8" in result.stderr) == (2, True)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "Infinity", "1e400"])
@pytest.mark.parametrize(
    "command",
    [
        ["log", "outcome", "any-id", "SUCCESS", "--value"],
        ["adapters", "activate", "none", "--scale"],
        ["review", "--random-share"],
        ["review", "--second-share"],
        ["train", "--epochs"],
    ],
    ids=lambda command: command[-1],
)
def test_an_option_takes_finite_numbers_only(run: Run, command: list[str], number: str) -> None:
    result = run(*command, number)
    assert result.exit_code == 2
    assert f"Invalid value for '{command[-1]}'" in result.stderr


class TestJournalLock:
    def test_a_command_waits_for_another_that_holds_the_journal(
        self, config: Config, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        journal = Journal(config.journal_path)
        monkeypatch.setattr(journal_access.time, "sleep", lambda _: journal.close())
        assert journal_access.submit_record(config, records.Node(type="goal", title="t"))

    def test_a_command_gives_up_waiting_for_a_held_journal(
        self, config: Config, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(journal_access, "LOCK_WAIT_S", 0.0)
        with Journal(config.journal_path), pytest.raises(AlreadyRunning):
            journal_access.submit_record(config, records.Node(type="goal", title="t"))


@pytest.mark.usefixtures("daemon")
class TestReading:
    def test_status_shows_each_part(self, run: Run) -> None:
        status = json.loads(run("status", "--json").stdout)
        assert status["state"] == "serving"
        assert status["engine"]["alive"]
        assert status["journal"]["alive"]
        assert "serving" in run("status").stdout

    def test_log_lists_decisions_and_shows_one(self, run: Run) -> None:
        replies = [json.loads(run("ask", "--json", json.dumps(QUESTION)).stdout) for _ in range(3)]
        ids = [reply["context"]["decision_id"] for reply in replies]
        rows = json.loads(run("log", "--json", "-n", "2").stdout)
        assert [row["decision_id"] for row in rows] == [ids[2], ids[1]]
        assert ids[0][-8:] in run("log").stdout
        shown = json.loads(run("log", "show", ids[0], "--json").stdout)
        assert shown["decision"]["decision_id"] == ids[0]
        assert shown["event"]["private"]["evaluation"]["subject"]["id"] == "alice"
        assert run("log", "show", "unknown").exit_code == 2

    def test_log_verify_is_status_0_for_a_sound_journal_and_1_for_a_changed_one(
        self, run: Run, daemon: Config
    ) -> None:
        run("ask", json.dumps(QUESTION))
        assert run("log", "verify").exit_code == 0
        assert json.loads(run("log", "verify", "--json").stdout)["ok"]
        with sqlite3.connect(daemon.journal_path) as connection:
            connection.execute("UPDATE decisions SET decision = 'changed', allow = 1 - allow")
        connection.close()
        result = run("log", "verify")
        assert result.exit_code == 1
        assert "wrong" in result.stdout

    def test_stats_counts_decisions_by_tier(self, run: Run) -> None:
        run("ask", json.dumps(QUESTION))
        figures = json.loads(run("stats", "--json").stdout)
        assert figures["decisions"] == 1
        assert figures["tiers"] == {"model": 1}
        assert "model" in run("stats").stdout

    def test_every_table_fits_80_columns(self, run: Run, daemon: Config) -> None:
        run("ask", json.dumps(QUESTION | {"actor_id": "user:" + "x" * 100, "action_type": "y" * 100}))
        with Client(daemon.endpoint) as client:
            decision_id = client.decision_report(REPORTED)
            client.outcome(decision_id, "SUCCESS", -123_456_789.0)
        by = [["stats", "--by", dimension] for dimension in ("actor", "model", "pack", "type")]
        for command in (["log"], ["stats"], *by, ["models", "list"], ["packs", "list"], ["doctor"]):
            for line in run(*command).stdout.splitlines():
                assert len(line) <= 80 or line.startswith("  "), line


@pytest.mark.usefixtures("daemon")
class TestSuites:
    @pytest.fixture
    def suite_file(self, tmp_path: Path) -> Callable[[str], str]:
        def write(text: str) -> str:
            path = tmp_path / "suite.yaml"
            path.write_text(text)
            return str(path)

        return write

    def test_a_suite_that_passes_is_status_0_and_each_decision_is_recorded(
        self, run: Run, suite_file: Callable[[str], str]
    ) -> None:
        result = run("test", suite_file(SUITE))
        assert result.exit_code == 0, result.output
        (row,) = json.loads(run("log", "--json", "--tests").stdout)
        assert row["scenario_id"] == "T1"
        assert row["decision_correct"] == 1
        assert row["decision_id"][-ENDING_CHARS:] in result.stdout
        assert "easy" in result.stdout

    def test_suites_of_a_pack_that_the_daemon_does_not_serve_are_left_out(
        self, run: Run, suite_file: Callable[[str], str], tmp_path: Path
    ) -> None:
        other = tmp_path / "other.yaml"
        other.write_text(OTHER)
        report = json.loads(run("test", "--json", "--full", suite_file(SUITE), str(other)).stdout)
        assert [row["pack"] for row in report["results"]] == ["team-governance"]
        assert run("test", "--full", str(other)).exit_code == 2

    def test_a_failed_scenario_is_status_1(self, run: Run, suite_file: Callable[[str], str]) -> None:
        result = run("test", suite_file(HOPELESS))
        assert result.exit_code == 1
        assert "did not cite R99" in result.stdout

    @pytest.mark.parametrize(
        "text", ["not: a suite", "name: [", SUITE.replace("quick: true", "quick: false")]
    )
    def test_a_suite_that_cannot_run_is_status_2(
        self, run: Run, suite_file: Callable[[str], str], text: str
    ) -> None:
        assert run("test", suite_file(text)).exit_code == 2

    def test_json_output_of_a_suite_has_the_summary(self, run: Run, suite_file: Callable[[str], str]) -> None:
        summary = json.loads(run("test", "--json", "--full", suite_file(SUITE)).stdout)["summary"]
        assert (summary["passed"], summary["scenarios"]) == (1, 1)


#: A decision with long names, and texts that a spreadsheet would read as formulas.
REPORTED = records.DecisionReport(
    agent="an-agent-with-a-long-name" * 4,
    outcome="=REDUCE_THE_POSITION_BY_HALF",
    type="risk",
    entity="ACME",
    session="s1",
    model="a-model-with-a-long-name" * 3,
    response="@SUM(1)",
    reasoning="a\nb",
    context={"nested": [1, {"deep": "é"}], "quote": 'say "no", twice'},
    confidence=0.75,
    latency_ms=12.5,
)


@pytest.fixture
def recorded_ids(config: Config) -> dict[str, str]:
    """A journal without a daemon: decisions of three users and an agent; ids by name."""
    ids = {}
    question = {
        "subject": {"type": "user", "id": "alice"},
        "action": {"name": "deploy"},
        "resource": {"type": "env", "id": "production"},
    }
    with serving(config, load_engine=load_stub_engine), Client(config.endpoint) as client:
        for name in ("alice", "bob", "zoe"):
            named_question = question | {"subject": {"type": "user", "id": name}}
            ids[name] = client.evaluate(named_question)["context"]["decision_id"]
        ids["agent"] = client.decision_report(REPORTED)
        client.outcome(ids["bob"], "FAILURE", -2.5, "sold too late")
        client.review(records.Review(decision_id=ids["zoe"], reviewer="ines", verdict="correct_decision"))
    return ids


def names_of(recorded_ids: dict[str, str], result: Result) -> list[str]:
    """The names of the actors whose decisions `log --json` printed."""
    assert result.exit_code == 0, result.output
    names = {decision_id: name for name, decision_id in recorded_ids.items()}
    return [names[row["decision_id"]] for row in json.loads(result.stdout)]


class TestLog:
    @pytest.mark.parametrize(
        ("filters", "expected_names"),
        [
            ([], ["agent", "zoe", "bob", "alice"]),
            (["-n", "2"], ["agent", "zoe"]),
            (["--actor", "alice"], ["alice"]),
            (["--actor", "user:bob"], ["bob"]),
            (["--actor", "nobody"], []),
            (["--entity", "env:production"], ["zoe", "bob", "alice"]),
            (["--entity", "ACME"], ["agent"]),
            (["--outcome", "=REDUCE_THE_POSITION_BY_HALF"], ["agent"]),
            (["--tier", "agent"], ["agent"]),
            (["--type", "risk"], ["agent"]),
            (["--type", "policy_application"], ["zoe", "bob", "alice"]),
            (["--session", "s1"], ["agent"]),
            (["--status", "FAILURE"], ["bob"]),
            (["--status", "SUCCESS"], []),
            (["--unreviewed"], ["agent", "bob", "alice"]),
            (["--incorrect"], ["zoe"]),
            (["--since", "2999-01-01T00:00:00Z"], []),
            (["--until", "2000-01-01"], []),
            (["--since", "2000-01-01", "--until", "2999-01-01", "--actor", "zoe"], ["zoe"]),
            (["--risk", "critical"], []),
        ],
    )
    def test_log_filters_decisions(
        self, run: Run, recorded_ids: dict[str, str], filters: list[str], expected_names: list[str]
    ) -> None:
        assert names_of(recorded_ids, run("log", "--json", *filters)) == expected_names

    def test_before_an_id_continues_the_page_that_ended_there(
        self, run: Run, recorded_ids: dict[str, str]
    ) -> None:
        first = names_of(recorded_ids, run("log", "--json", "-n", "2"))
        assert first == ["agent", "zoe"]
        for last_id in (recorded_ids["zoe"], recorded_ids["zoe"][-12:]):
            assert names_of(recorded_ids, run("log", "--json", "-n", "2", "--before", last_id)) == [
                "bob",
                "alice",
            ]
        assert names_of(recorded_ids, run("log", "--json", "--before", recorded_ids["alice"])) == []
        unknown = run("log", "--before", "unknown-decision")
        assert (unknown.exit_code, "there is no decision" in unknown.stderr) == (2, True)

    @pytest.mark.parametrize("option", ["--since", "--until"])
    def test_a_malformed_time_is_status_2(self, run: Run, recorded_ids: dict[str, str], option: str) -> None:
        result = run("log", option, "yesterday")
        assert result.exit_code == 2
        assert f"{option[2:]}: 'yesterday' is not an RFC 3339 time" in result.stderr

    def test_a_log_row_fits_80_columns_and_ends_with_an_id_that_show_accepts(
        self, run: Run, recorded_ids: dict[str, str]
    ) -> None:
        lines = run("log").stdout.splitlines()
        assert len(lines) == 5
        assert max(map(len, lines)) <= 80
        for line, name in zip(lines[1:], ("agent", "zoe", "bob", "alice"), strict=True):
            short_id = line.split()[-1]
            assert (
                json.loads(run("log", "show", short_id, "--json").stdout)["decision"]["decision_id"]
                == recorded_ids[name]
            )
        assert "agent:an-a" in lines[1]
        assert "…" in lines[1]
        assert "user:zoe" in lines[2]

    def test_csv_has_every_column_with_lists_as_json_and_no_formula(
        self, run: Run, recorded_ids: dict[str, str]
    ) -> None:
        result = run("log", "--csv")
        rows = {row["decision_id"]: row for row in csv.DictReader(io.StringIO(result.stdout, newline=""))}
        assert list(rows) == [recorded_ids[name] for name in ("agent", "zoe", "bob", "alice")]
        row, plain = rows[recorded_ids["agent"]], json.loads(run("log", "--json").stdout)[0]
        assert list(row) == list(plain) == list(DECISION_COLUMNS)
        assert row["decision"] == "'=REDUCE_THE_POSITION_BY_HALF"
        assert row["full_response"] == "'@SUM(1)"
        assert row["reasoning"] == "a\nb"
        assert json.loads(row["situation"]) == plain["situation"] == {"context": REPORTED.context}
        assert rows[recorded_ids["bob"]]["outcome_value"] == "-2.5"  # a negative number is not a formula
        assert row["outcome_value"] == ""

    def test_csv_without_rows_is_the_header(self, run: Run, recorded_ids: dict[str, str]) -> None:
        result = run("log", "--csv", "--actor", "nobody")
        assert result.stdout.splitlines() == [",".join(DECISION_COLUMNS)]

    def test_show_prints_the_further_reasons_of_the_floor_on_request(self, run: Run, config: Config) -> None:
        floor = Floor(
            outcome="deny", final=True, rules=("a", "b"), because="It is late.", also_because=("It is big.",)
        )
        with closing(Journal(config.journal_path, synchronous="OFF")) as journal:
            journal.commit(events.decision_event(without_model(id="d-reasons", floor=floor))).result()
        plain, full = (run("log", "show", "d-reasons", *flags).stdout for flags in ((), ("--all",)))
        assert "It is big." not in plain
        assert "further reasons  It is big." in full

    def test_show_takes_the_end_of_an_id_and_shows_the_attached_records(
        self, run: Run, recorded_ids: dict[str, str]
    ) -> None:
        shown = run("log", "show", recorded_ids["bob"][-8:]).stdout
        for text in (recorded_ids["bob"], "user:bob", "outcome", "sold too late", "private part  there"):
            assert text in shown
        assert '{"subject": {"type": "user", "id": "bob"' in shown
        first, second = (
            line
            for line in run("log", "show", recorded_ids["agent"]).stdout.splitlines()
            if line.endswith((" a", " b"))
        )
        assert second == "b".rjust(len(first))  # the second line of a value aligns with the first
        review = run("log", "show", recorded_ids["zoe"]).stdout
        assert "correct_decision" in review
        assert "ines" in review

    @pytest.mark.parametrize("id_text", ["", "too short", "no-such-decision"])
    def test_show_of_an_unknown_decision_is_status_2(
        self, run: Run, recorded_ids: dict[str, str], id_text: str
    ) -> None:
        id_text = recorded_ids["bob"][-7:] if id_text == "too short" else id_text
        result = run("log", "show", id_text)
        assert result.exit_code == 2
        assert "there is no decision" in result.stderr

    @pytest.mark.parametrize("other", [["--csv"], ["--actor", "a"], ["--before", "x"], ["--unreviewed"]])
    def test_follow_refuses_filters(self, run: Run, recorded_ids: dict[str, str], other: list[str]) -> None:
        result = run("log", "--follow", *other)
        assert result.exit_code == 2
        assert "leave out the filters, --before and --csv" in result.stderr

    def test_after_prints_what_was_recorded_behind_a_sequence_number_and_ends(
        self, run: Run, recorded_ids: dict[str, str]
    ) -> None:
        everything = run("log", "--after", "0", "--tests", "--json").stdout.splitlines()
        seqs = [json.loads(line)["seq"] for line in everything]
        assert seqs == sorted(seqs)
        assert {json.loads(line)["decision_id"] for line in everything} >= set(recorded_ids.values())
        rest = run("log", "--after", str(seqs[1]), "--tests", "--json").stdout.splitlines()
        assert [json.loads(line)["seq"] for line in rest] == seqs[2:]
        assert run("log", "--after", str(seqs[-1]), "--json").stdout == ""

    @pytest.mark.parametrize("as_json", [True, False])
    def test_follow_prints_each_new_decision_until_ctrl_c(
        self, config: Config, recorded_ids: dict[str, str], as_json: bool
    ) -> None:
        with following(config, "-n", "2", *(["--json"] if as_json else [])) as child:
            assert child.stdout is not None

            def next_id() -> str:
                line = child.stdout.readline()  # type: ignore[union-attr]
                return str(json.loads(line)["decision_id"])[-8:] if as_json else line.split()[-1]

            assert as_json or next_id() == "id"
            assert [next_id(), next_id()] == [recorded_ids["zoe"][-8:], recorded_ids["agent"][-8:]]
            for number in range(3):
                reported = records.DecisionReport(agent="scout", outcome="BUY", entity=str(number))
                assert journal_access.submit_record(config, reported)[-8:] == next_id()  # without a daemon
            child.send_signal(signal.SIGINT)
            rest, errors = child.communicate(timeout=CHILD_TIMEOUT_S)
        assert (child.returncode, rest, errors) == (0, "", "")


@contextmanager
def following(config: Config, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`log --follow` in a child process, which is killed after CHILD_TIMEOUT_S."""
    main = "import sys; from thor_policy.cli.main import main; sys.argv[0] = 'thorpolicy'; main()"
    child = subprocess.Popen(
        [sys.executable, "-c", main, "log", "--follow", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env=os.environ | {"THOR_POLICY_STATE_DIR": str(config.state_dir), "COLUMNS": "80"},
    )  # fmt: skip
    watchdog = threading.Timer(CHILD_TIMEOUT_S, child.kill)
    watchdog.start()
    try:
        with child:
            yield child
    finally:
        watchdog.cancel()
        child.kill()


class TestVerify:
    def test_verify_of_a_sound_journal_lists_what_was_checked(
        self, run: Run, recorded_ids: dict[str, str]
    ) -> None:
        shown = run("log", "verify")
        assert shown.exit_code == 0
        for text in ("chain         ok", "tables        ok", "complete      ok", "signed"):
            assert text in shown.stdout
        verdict = json.loads(run("log", "verify", "--json").stdout)
        assert verdict["ok"]
        assert f"{verdict['events']}:{verdict['head']}" in shown.stdout

    def test_a_noted_head_serves_as_an_anchor(
        self, run: Run, recorded_ids: dict[str, str], config: Config
    ) -> None:
        head = json.loads(run("log", "verify", "--json").stdout)
        anchor = f"{head['events']}:{head['head']}"
        run("log", "outcome", recorded_ids["zoe"], "SUCCESS")
        assert run("log", "verify", "--anchor", anchor).exit_code == 0
        assert run("log", "verify", "--anchor", anchor.upper(), "--anchor", anchor).exit_code == 0
        wrong = run("log", "verify", "--anchor", f"{head['events'] - 1}:{head['head']}")
        assert wrong.exit_code == 1
        assert f"event {head['events'] - 1} does not match the anchor" in wrong.stdout
        assert "complete      wrong" in wrong.stdout

    @pytest.mark.parametrize("anchor", ["", "1", "1:", "x:" + "0" * 64, "1:" + "0" * 63, "-1:" + "0" * 64])
    def test_a_malformed_anchor_is_status_2(
        self, run: Run, recorded_ids: dict[str, str], anchor: str
    ) -> None:
        result = run("log", "verify", "--anchor", anchor)
        assert result.exit_code == 2
        assert "give SEQ:HASH" in result.stderr

    def test_a_checkpoint_reveals_a_truncated_journal(
        self, run: Run, recorded_ids: dict[str, str], config: Config
    ) -> None:
        """Events, private parts and rows are all removed; only the signed checkpoint reveals it."""
        before = json.loads(run("log", "verify", "--json").stdout)["events"]
        with closing(sqlite3.connect(config.journal_path)) as connection, connection:
            connection.execute("UPDATE decisions SET reviewed = 0, review_decision = NULL")
            connection.execute("UPDATE decisions SET review_timestamp = NULL, decision_correct = NULL")
            connection.execute("UPDATE decisions SET reviewed_seq = NULL")
            for table in ("events", "private", "reviews", "checkpoints"):
                connection.execute(f"DELETE FROM {table} WHERE seq >= ?", (before - 1,))
        result = run("log", "verify", "--json")
        verdict = json.loads(result.stdout)
        assert (result.exit_code, verdict["chain_ok"], verdict["projections_ok"]) == (1, True, True)
        assert (verdict["ok"], verdict["complete"]) == (False, False)
        message = f"a checkpoint covers event {before}, but the chain ends at {before - 2}"
        assert verdict["incomplete"] == message
        assert message in run("log", "verify").stdout

    def test_a_checkpoint_of_another_key_is_not_trusted(
        self, run: Run, recorded_ids: dict[str, str], config: Config, tmp_path: Path
    ) -> None:
        (own,) = config.checkpoint_dir.glob("*.pub")
        assert run("log", "verify", "--public-key", str(own)).exit_code == 0
        Signer.load(tmp_path / "other.key")
        result = run("log", "verify", "--public-key", str(tmp_path / "other.key.pub"))
        assert result.exit_code == 1
        assert "is not among the trusted ones" in result.stdout
        assert run("log", "verify", "--public-key", str(tmp_path / "other.key")).exit_code == 2
        assert run("log", "verify", "--public-key", str(tmp_path / "nowhere")).exit_code == 2


@pytest.fixture(params=["with a daemon", "without one"])
def ids(
    request: pytest.FixtureRequest, recorded_ids: dict[str, str], config: Config
) -> Iterator[dict[str, str]]:
    """The same journal, with and without a daemon."""
    if request.param == "without one":
        yield recorded_ids
        return
    with serving(config, load_engine=load_stub_engine):
        yield recorded_ids


class TestMaintenance:
    """Commands that change the journal work the same with and without a daemon."""

    def test_outcome_is_recorded_and_shown(self, run: Run, ids: dict[str, str]) -> None:
        zoe = ids["zoe"]
        result = run("log", "outcome", zoe[-8:], "SUCCESS", "--value", "12.5", "--note", "sold")
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith("recorded as ")
        shown = json.loads(run("log", "show", zoe, "--json").stdout)
        (outcome,) = shown["outcomes"]
        assert (outcome["status"], outcome["value"], outcome["note"]) == ("SUCCESS", 12.5, "sold")
        assert shown["decision"]["outcome_value"] == 12.5
        newer = json.loads(run("log", "outcome", zoe, "PENDING", "--json").stdout)
        assert json.loads(run("log", "show", zoe, "--json").stdout)["outcomes"][1]["id"] == newer["id"]
        assert run("log", "verify").exit_code == 0

    def test_outcome_with_a_value_that_is_no_number_is_status_2_and_records_nothing(
        self, run: Run, ids: dict[str, str]
    ) -> None:
        for value in ("nan", "inf", "-inf"):
            result = run("log", "outcome", ids["zoe"], "SUCCESS", "--value", value)
            assert (result.exit_code, "give a finite number" in result.stderr) == (2, True)
        assert not json.loads(run("log", "show", ids["zoe"], "--json").stdout)["outcomes"]

    def test_an_argument_that_is_not_utf8_is_refused(self, run: Run, ids: dict[str, str]) -> None:
        for command in (
            ("log", "erase", "user:\udcff", "--yes"),
            ("log", "outcome", ids["zoe"], "PENDING", "--note", "\udcff"),
        ):
            result = run(*command)
            assert (result.exit_code, "lone surrogate" in result.stderr) == (4, True)

    def test_outcome_of_an_unknown_decision_is_status_2(self, run: Run, ids: dict[str, str]) -> None:
        assert run("log", "outcome", "no-such-decision", "SUCCESS").exit_code == 2
        assert run("log", "outcome", ids["zoe"], "WON").exit_code == 2

    def test_erase_asks_for_confirmation_and_leaves_nothing(
        self, run: Run, ids: dict[str, str], config: Config
    ) -> None:
        refused = run("log", "erase", "user:bob", stdin="n\n")
        assert refused.exit_code == 1
        assert names_of(ids, run("log", "--json", "--actor", "bob")) == ["bob"]
        result = run("log", "erase", "user:bob", stdin="y\n")
        assert result.exit_code == 0, result.output
        assert "own parts erased  2" in result.stdout
        assert "name still in     nothing" in result.stdout
        assert names_of(ids, run("log", "--json", "--actor", "bob")) == []
        assert "(erased)" in run("log").stdout
        assert "private part  erased" in run("log", "show", ids["bob"]).stdout
        assert run("log", "verify").exit_code == 0
        again = json.loads(run("log", "erase", "bob", "--yes", "--json").stdout)
        assert (again["own"], again["mentions"], again["left"]) == (0, 0, [])

    def test_erase_is_status_1_if_the_name_remains(self, run: Run, ids: dict[str, str]) -> None:
        result = run("log", "erase", "s1", "--yes")  # a session name, which the chain keeps
        assert result.exit_code == 1
        assert "table events" in result.stdout

    def test_archive_moves_events_that_stay_readable(
        self, run: Run, ids: dict[str, str], config: Config
    ) -> None:
        assert "events archived  0" in run("log", "archive", "--before", "2000-01-01").stdout
        done = json.loads(run("log", "archive", "--before", "2999-01-01", "--json").stdout)
        assert done["archived"] >= 8
        (segment,) = (config.state_dir / "archive").iterdir()
        assert done["segments"] == [segment.name]
        assert names_of(ids, run("log", "--json")) == ["agent", "zoe", "bob", "alice"]
        assert json.loads(run("log", "show", ids["bob"], "--json").stdout)["event"]["private"]
        verify = run("log", "verify")
        assert verify.exit_code == 0
        assert f"{done['archived']} archived" in verify.stdout
        segment.unlink()
        assert run("log", "verify").exit_code == 1
        assert run("log", "show", ids["bob"]).exit_code == 2

    def test_archive_without_a_valid_time_is_status_2(self, run: Run, ids: dict[str, str]) -> None:
        result = run("log", "archive", "--before", "yesterday")
        assert result.exit_code == 2
        assert "before: 'yesterday' is not an RFC 3339 time" in result.stderr
        assert run("log", "archive").exit_code == 2

    def test_checkpoint_signs_the_chain_as_it_is(self, run: Run, ids: dict[str, str], config: Config) -> None:
        run("log", "outcome", ids["zoe"], "SUCCESS")
        done = json.loads(run("log", "checkpoint", "--json").stdout)["checkpoint"]
        verdict = json.loads(run("log", "verify", "--json").stdout)
        assert done == verdict["checkpoint_seq"] == verdict["events"]
        assert f"signed up to event {done}" in run("log", "checkpoint").stdout


class TestRebuild:
    def test_rebuild_restores_the_tables_in_place(
        self, run: Run, recorded_ids: dict[str, str], config: Config
    ) -> None:
        before = run("log", "--json").stdout
        with closing(sqlite3.connect(config.journal_path)) as connection, connection:
            connection.execute("UPDATE decisions SET decision = 'allow'")
        assert run("log", "verify").exit_code == 1
        result = run("log", "rebuild")
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith("rebuilt from ")
        assert run("log", "verify").exit_code == 0
        assert run("log", "--json").stdout == before

    def test_rebuild_to_a_directory_makes_a_complete_journal(
        self, run: Run, recorded_ids: dict[str, str], tmp_path: Path
    ) -> None:
        copy = str(tmp_path / "copy")
        assert json.loads(run("log", "rebuild", "--to", copy, "--json").stdout)["events"] >= 9
        assert run("log", "--json", "--state-dir", copy).stdout == run("log", "--json").stdout
        assert run("log", "verify", "--state-dir", copy).exit_code == 0
        assert run("log", "rebuild", "--to", copy).exit_code == 2

    def test_rebuild_can_stop_at_a_past_event_or_time(
        self, run: Run, recorded_ids: dict[str, str], tmp_path: Path
    ) -> None:
        seq = json.loads(run("log", "show", recorded_ids["bob"], "--json").stdout)["decision"]["seq"]
        for name, at in (("a", str(seq)), ("b", "2999-01-01"), ("c", "2000-01-01")):
            run("log", "rebuild", "--to", str(tmp_path / name), "--at", at)
        names = [
            names_of(recorded_ids, run("log", "--json", "--state-dir", str(tmp_path / name)))
            for name in "abc"
        ]
        assert names == [["bob", "alice"], ["agent", "zoe", "bob", "alice"], []]

    def test_rebuild_at_a_past_event_needs_another_directory(
        self, run: Run, recorded_ids: dict[str, str]
    ) -> None:
        result = run("log", "rebuild", "--at", "3")
        assert result.exit_code == 2
        assert "--at needs --to" in result.stderr

    def test_rebuild_in_place_is_refused_while_a_daemon_runs(self, run: Run, daemon: Config) -> None:
        run("ask", json.dumps(QUESTION))
        assert run("log", "rebuild").exit_code == 2


class TestStats:
    def test_stats_by_a_dimension_has_a_row_for_each_value(
        self, run: Run, recorded_ids: dict[str, str]
    ) -> None:
        rows = {row["actor"]: row for row in json.loads(run("stats", "--by", "actor", "--json").stdout)}
        assert set(rows) == {"user:alice", "user:bob", "user:zoe", f"agent:{REPORTED.agent}"}
        assert (rows["user:bob"]["failed"], rows["user:bob"]["total_value"]) == (1, -2.5)
        shown = run("stats", "--by", "actor").stdout
        assert "user:bob" in shown
        assert len(shown.splitlines()) == 5  # the header, and a line for each
        for dimension, known in (("type", "risk"), ("model", "stub"), ("pack", "team-governance")):
            assert known in run("stats", "--by", dimension).stdout
        assert run("stats", "--by", "weather").exit_code == 2

    def test_stats_counts_outcomes_confidence_latency_and_hours(
        self, run: Run, recorded_ids: dict[str, str]
    ) -> None:
        figures = json.loads(run("stats", "--json").stdout)
        assert (figures["decisions"], figures["value"]) == (4, -2.5)
        assert figures["turned_out"] == {"SUCCESS": 0, "FAILURE": 1, "PENDING": 0}
        assert sum(count for _, count in figures["hourly"]) == 4
        assert sum(row["decisions"] for row in figures["confidence"]) == 4
        shown = run("stats").stdout
        for text in ("turned_out", "by hour", "█", "p99 ms", "confidence from"):
            assert text in shown

    def test_stats_and_log_count_only_since_a_time(self, run: Run, recorded_ids: dict[str, str]) -> None:
        late = ["--since", "2999-01-01T00:00:00Z"]
        assert json.loads(run("stats", "--json", *late).stdout)["decisions"] == 0
        assert json.loads(run("stats", "--json", "--by", "actor", *late).stdout) == []
        for command in (["stats", *late], ["stats", "--by", "actor", *late], ["log", *late]):
            assert run(*command).exit_code == 0
        assert run("stats", "--since", "now").exit_code == 2


class TestWithoutDaemon:
    @pytest.mark.model
    def test_each_suite_is_run_against_its_own_pack(self, run: Run, tmp_path: Path) -> None:
        files = []
        for name, text in (("one", SUITE), ("other", OTHER)):
            path = tmp_path / f"{name}.yaml"
            path.write_text(text)
            files.append(str(path))
        result = run("test", "--json", *files)
        assert result.exit_code == 0, result.output
        rows = json.loads(result.stdout)["results"]
        assert [row["pack"] for row in rows] == ["team-governance", "device-operations"]

    def test_a_suite_in_process_takes_no_port_from_a_daemon(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "suite.yaml").write_text(SUITE)
        monkeypatch.setattr(service, "serving", partial(service.serving, load_engine=load_stub_engine))
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            monkeypatch.setenv("THOR_POLICY_METRICS_PORT", str(taken.getsockname()[1]))
            assert run("test", str(tmp_path / "suite.yaml")).exit_code == 0

    def test_no_daemon_is_status_3(self, run: Run) -> None:
        for command in (["ask", json.dumps(QUESTION)], ["status"]):
            result = run(*command)
            assert result.exit_code == 3
            assert "thorpolicy serve" in result.stderr

    def test_no_journal_is_status_2_and_none_is_made(self, run: Run, config: Config) -> None:
        for command in (
            ["log"],
            ["stats"],
            ["stats", "--by", "actor"],
            ["log", "verify"],
            ["log", "show", "0198"],
            ["log", "outcome", "0198", "SUCCESS"],
            ["log", "erase", "alice", "--yes"],
            ["log", "archive", "--before", "2026-01-01"],
            ["log", "checkpoint"],
            ["log", "rebuild"],
            ["log", "rebuild", "--to", str(config.state_dir / "copy")],
        ):
            result = run(*command)
            assert result.exit_code == 2, command
            assert "no journal" in result.stderr
        assert not config.journal_path.exists()

    def test_doctor_names_each_missing_part_and_its_cure(self, run: Run, tmp_path: Path) -> None:
        result = run("doctor", "--json", "--models-dir", str(tmp_path))
        findings = {finding["name"]: finding for finding in json.loads(result.stdout)}
        assert result.exit_code == 1
        assert findings["model"]["state"] == "missing"
        assert findings["model"]["cure"].startswith("thorpolicy models pull")
        assert {"device", "engine", "model", "pack", "state dir", "disk", "sqlite", "daemon"} == set(findings)

    @pytest.mark.parametrize("command", ["serve", "models pull", "doctor"])
    def test_v18_a_changed_model_file_is_refused_with_the_command_that_fetches_it(
        self, run: Run, tmp_path: Path, command: str
    ) -> None:
        name = Config().model
        (tmp_path / catalog.Catalog.load().get(name).file).write_bytes(b"GGUF, but another")
        where = ["--models-dir", str(tmp_path)]
        cure = f"thorpolicy models pull {name} --force"
        if command == "doctor":
            result = run("doctor", "--json", *where)
            (finding,) = [each for each in json.loads(result.stdout) if each["name"] == "model"]
            assert (result.exit_code, finding["state"]) == (1, "missing")
            assert finding["cure"].endswith(cure)
            return
        arguments = [name] if command == "models pull" else ["--model", name]
        program = [Path(sys.executable).with_name("thorpolicy"), *command.split(), *arguments, *where]
        done = subprocess.run(program, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "expected sha256" in done.stderr
        assert cure in done.stderr

    @pytest.mark.parametrize(
        "command", [["nonsense"], ["log", "--limit", "0"], ["ask", "--explain", "loudly"]]
    )
    def test_wrong_use_is_status_2(self, run: Run, command: list[str]) -> None:
        assert run(*command).exit_code == 2

    def test_models_lists_the_catalog_and_path_names_the_pull_command(self, run: Run, tmp_path: Path) -> None:
        rows = json.loads(run("models", "list", "--json", "--models-dir", str(tmp_path)).stdout)
        assert rows[0]["model"]["name"] == "smollm2-135m-instruct-q4_1"
        result = run("models", "path", "phi-4-q4_k_m", "--models-dir", str(tmp_path))
        assert result.exit_code == 2
        assert "thorpolicy models pull phi-4-q4_k_m" in result.stderr


class TestPacks:
    def test_packs_lists_shows_and_lints_the_shipped_pack(self, run: Run) -> None:
        assert "team-governance" in [row["name"] for row in json.loads(run("packs", "list", "--json").stdout)]
        assert "R1" in run("packs", "show", "team-governance").stdout
        assert run("packs", "lint", "team-governance").exit_code == 0

    def test_an_unknown_pack_is_status_2_and_lists_the_known_packs(self, run: Run) -> None:
        result = run("packs", "show", "nowhere")
        assert result.exit_code == 2
        assert "team-governance" in result.stderr

    @pytest.mark.model
    def test_packs_render_prints_the_exact_prompt(self, run: Run) -> None:
        shown = json.loads(
            run("packs", "render", "team-governance", "-", "--json", stdin=json.dumps(QUESTION)).stdout
        )
        assert set(shown) == {"prefix", "suffix", "prefix_tokens", "suffix_tokens"}
        assert len(shown["suffix_tokens"]) < 160
        assert shown["suffix"].endswith("<|im_start|>assistant\noutcome:")
        text = run("packs", "render", "team-governance", "-", stdin=json.dumps(QUESTION)).stdout
        assert text == shown["prefix"] + shown["suffix"] + "\n"


class TestDocumentedExamples:
    """The pack and the suite of the tutorial, in docs/examples."""

    @pytest.mark.parametrize("name", ["door-access", "door-access-next"])
    def test_lint_finds_no_problem_in_the_example_packs(self, run: Run, name: str) -> None:
        result = run("packs", "lint", str(EXAMPLES / name))
        assert (result.exit_code, result.stdout) == (0, "no problems found\n")

    @pytest.mark.parametrize("name", ["door-access", "door-access-next"])
    def test_the_example_suite_passes_with_any_model(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setattr(service, "serving", partial(service.serving, load_engine=load_stub_engine))
        result = run("test", "--full", "--pack", str(EXAMPLES / name), str(EXAMPLES / "door-suite.yaml"))
        assert result.exit_code == 0, result.output


@pytest.mark.model
class TestCalibrate:
    """Calibrates the catalog's model on the shipped pack; the answers are made up here."""

    @pytest.fixture
    def judged(self, config: Config, shipped_pack: Pack, model_file: catalog.ModelFile) -> int:
        """120 reviewed decisions of a model whose confidence is far too high."""
        companion = find_adapter("auto", 1.0, config, model_file.name)
        model = replace(MODEL, sha256=model_file.sha256, adapter=companion.adapter if companion else None)
        with Journal(config.journal_path) as journal:
            for number in range(120):
                decision = by_model(
                    pack=shipped_pack.info, model=model, probabilities={"allow": 0.02, "deny": 0.98}
                )
                journal.decided(decision)
                right = "deny" if number % 4 else "allow"
                verdict: records.Verdict = "accept" if right == "deny" else "correct_decision"
                review = records.Review(
                    decision_id=decision.id, reviewer="kim", verdict=verdict, decision=right
                )
                journal.write(review, record_id=f"r{number}", at=NOON, caller=CALLER)
        return 120

    def test_calibrate_reports_the_unseen_half_and_puts_the_temperature_in_force(
        self, run: Run, judged: int, config: Config, tmp_path: Path
    ) -> None:
        report = json.loads(run("calibrate", "--json", "--report-dir", str(tmp_path)).stdout)
        assert (report["judged"], report["in_force"]) == (judged, True)
        assert report["temperature"] > 2
        assert report["after"]["ece"] < report["before"]["ece"] / 2
        assert report["after"]["accuracy"] == report["before"]["accuracy"]
        assert "<svg" in (tmp_path / "calibration.svg").read_text()
        assert json.loads((tmp_path / "calibration.json").read_text())["fitted"]["judged"] == judged
        with closing(sqlite3.connect(config.journal_path)) as db:
            assert db.execute("SELECT temperature, judged FROM calibrations").fetchall() == [
                (report["temperature"], judged)
            ]
        assert "in force" in run("calibrate").stdout
        assert run("log", "verify").exit_code == 0

    def test_calibrate_dry_run_puts_nothing_in_force(self, run: Run, judged: int, config: Config) -> None:
        assert "not put in force" in run("calibrate", "--dry-run").stdout
        with closing(sqlite3.connect(config.journal_path)) as db:
            assert db.execute("SELECT count(*) FROM calibrations").fetchone() == (0,)

    def test_calibrate_says_how_many_decisions_are_missing(self, run: Run, judged: int) -> None:
        result = run("calibrate", "--by", "suites")
        assert result.exit_code == 2
        assert "there are 0 judged decisions of this pack and model" in result.output
        assert "50 are missing" in result.output

    def test_a_daemon_applies_a_calibration_at_start_and_to_its_next_decision(
        self, run: Run, config: Config, shipped_pack: Pack
    ) -> None:
        stub = StubEngine().model.sha256
        weaker, weakest = (
            Calibration(temperature=t, pack_sha256=shipped_pack.info.sha256, model_sha256=stub, judged=60)
            for t in (4.0, 8.0)
        )
        Journal(config.journal_path).close()
        journal_access.maintain(config, records.Maintenance(task="calibrate", calibration=weaker))
        with serving(config, load_engine=load_stub_engine), Client(config.endpoint) as client:
            replies = [client.evaluate(QUESTION)]
            journal_access.maintain(config, records.Maintenance(task="calibrate", calibration=weakest))
            replies.append(client.evaluate(QUESTION))
        shares = [reply["context"]["probabilities"] for reply in replies]
        assert max(shares[1].values()) < max(shares[0].values())
        rows = json.loads(run("log", "--json", "-n", "2").stdout)
        assert [row["temperature"] for row in rows] == [8.0, 4.0]
        assert rows[0]["label"] == rows[1]["label"]
