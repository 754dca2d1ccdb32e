"""The command line: what each command prints, and the exit status of each ending."""

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
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from tests.build import CALLER, MODEL, NOON, by_model
from thor_policy import catalog
from thor_policy.cli.main import cli
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.errors import AlreadyRunning
from thor_policy.core.records import Calibration
from thor_policy.core.requests import Json
from thor_policy.daemon import journal_access, service
from thor_policy.daemon.loading import find_adapter
from thor_policy.daemon.service import serving
from thor_policy.journal.checkpoints import Signer
from thor_policy.journal.projections import DECISION_COLUMNS
from thor_policy.journal.writer import Journal
from thor_policy.policy.pack import Pack
from thor_policy.testing import StubEngine, load_stub_engine

#: No test waits longer than this for another process, in seconds.
PATIENCE_S = 60
ROOT = Path(__file__).resolve().parents[2]
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

    def invoke(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(cli, arguments, input=stdin)

    return invoke


@pytest.fixture
def daemon(config: Config) -> Iterator[Config]:
    with serving(config, load_engine=load_stub_engine):
        yield config


@pytest.mark.usefixtures("daemon")
class TestAsk:
    def test_takes_json_a_file_or_standard_input(self, run: Run, tmp_path: Path) -> None:
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

    def test_takes_both_forms_of_a_question(self, run: Run) -> None:
        evaluation = {
            "subject": {"type": "user", "id": "a"},
            "action": {"name": "deploy"},
            "resource": {"type": "env", "id": "x"},
        }
        assert run("ask", json.dumps(evaluation)).exit_code == 0
        assert run("ask", json.dumps({"request": evaluation})).exit_code == 0

    def test_shows_people_the_outcome_the_reason_and_the_id(self, run: Run) -> None:
        shown = run("ask", json.dumps(QUESTION)).stdout
        for word in ("outcome", "reason", "clauses", "probabilities", "decision id"):
            assert word in shown
        assert max(map(len, shown.splitlines())) <= 120

    def test_a_refusal_is_status_4_with_its_code(self, run: Run) -> None:
        result = run("ask", '{"actor_id": "user:a"}')
        assert result.exit_code == 4
        assert result.stderr.startswith("thorpolicy: bad_request: situation.action_type")

    @pytest.mark.parametrize("text", ["{broken", "/no/such/file", ""])
    def test_what_is_no_json_is_status_2(self, run: Run, text: str) -> None:
        assert run("ask", text).exit_code == 2


class TestKeeping:
    def test_a_command_waits_for_another_that_holds_the_journal(
        self, config: Config, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        journal = Journal(config.journal_path)
        monkeypatch.setattr(journal_access.time, "sleep", lambda _: journal.close())
        assert journal_access.submit_record(config, records.Node(type="goal", title="t"))

    def test_but_not_for_ever(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(journal_access, "LOCK_WAIT_S", 0.0)
        with Journal(config.journal_path), pytest.raises(AlreadyRunning):
            journal_access.submit_record(config, records.Node(type="goal", title="t"))


@pytest.mark.usefixtures("daemon")
class TestReading:
    def test_status_tells_of_each_part(self, run: Run) -> None:
        status = json.loads(run("status", "--json").stdout)
        assert status["state"] == "serving"
        assert status["engine"]["alive"]
        assert status["journal"]["alive"]
        assert "serving" in run("status").stdout

    def test_log_lists_and_shows(self, run: Run) -> None:
        asked = [json.loads(run("ask", "--json", json.dumps(QUESTION)).stdout) for _ in range(3)]
        ids = [reply["context"]["decision_id"] for reply in asked]
        rows = json.loads(run("log", "--json", "-n", "2").stdout)
        assert [row["decision_id"] for row in rows] == [ids[2], ids[1]]
        assert ids[0][-8:] in run("log").stdout
        shown = json.loads(run("log", "show", ids[0], "--json").stdout)
        assert shown["decision"]["decision_id"] == ids[0]
        assert shown["event"]["private"]["evaluation"]["subject"]["id"] == "alice"
        assert run("log", "show", "unknown").exit_code == 2

    def test_log_verify_is_0_for_a_sound_journal_and_1_for_a_changed_one(
        self, run: Run, daemon: Config
    ) -> None:
        run("ask", json.dumps(QUESTION))
        assert run("log", "verify").exit_code == 0
        assert json.loads(run("log", "verify", "--json").stdout)["ok"]
        with sqlite3.connect(daemon.journal_path) as connection:
            connection.execute("UPDATE decisions SET decision = 'allow', allow = 1")
        connection.close()
        result = run("log", "verify")
        assert result.exit_code == 1
        assert "wrong" in result.stdout

    def test_stats_count(self, run: Run) -> None:
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

    def test_all_passed_is_0_and_each_decision_is_recorded(
        self, run: Run, suite_file: Callable[[str], str]
    ) -> None:
        result = run("test", suite_file(SUITE))
        assert result.exit_code == 0, result.output
        (row,) = json.loads(run("log", "--json").stdout)
        assert row["scenario_id"] == "T1"
        assert row["decision_correct"] == 1
        assert row["decision_id"] in result.stdout
        assert "easy" in result.stdout

    def test_suites_of_another_pack_than_the_daemons_are_left_out(
        self, run: Run, suite_file: Callable[[str], str], tmp_path: Path
    ) -> None:
        other = tmp_path / "other.yaml"
        other.write_text(OTHER)
        found = json.loads(run("test", "--json", "--full", suite_file(SUITE), str(other)).stdout)
        assert [row["pack"] for row in found["results"]] == ["team-governance"]
        assert run("test", "--full", str(other)).exit_code == 2

    def test_some_failed_is_1(self, run: Run, suite_file: Callable[[str], str]) -> None:
        result = run("test", suite_file(HOPELESS))
        assert result.exit_code == 1
        assert "did not cite R99" in result.stdout

    @pytest.mark.parametrize(
        "text", ["not: a suite", "name: [", SUITE.replace("quick: true", "quick: false")]
    )
    def test_cannot_run_is_2(self, run: Run, suite_file: Callable[[str], str], text: str) -> None:
        assert run("test", suite_file(text)).exit_code == 2

    def test_figures_for_machines(self, run: Run, suite_file: Callable[[str], str]) -> None:
        summary = json.loads(run("test", "--json", "--full", suite_file(SUITE)).stdout)["summary"]
        assert (summary["passed"], summary["scenarios"]) == (1, 1)


#: A decision with long names, and what a spreadsheet would take for a formula.
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
def kept(config: Config) -> dict[str, str]:
    """A journal that nobody serves: decisions of three users and an agent, an hour apart; ids by name."""
    ids = {}
    question = {
        "subject": {"type": "user", "id": "alice"},
        "action": {"name": "deploy"},
        "resource": {"type": "env", "id": "production"},
    }
    with serving(config, load_engine=load_stub_engine), Client(config.endpoint) as client:
        for name in ("alice", "bob", "zoe"):
            asked = question | {"subject": {"type": "user", "id": name}}
            ids[name] = client.evaluate(asked)["context"]["decision_id"]
        ids["agent"] = client.decision_report(REPORTED)
        client.outcome(ids["bob"], "FAILURE", -2.5, "sold too late")
        client.review(records.Review(decision_id=ids["zoe"], reviewer="ines", verdict="correct_decision"))
    return ids


def names_of(kept: dict[str, str], result: Result) -> list[str]:
    """Whose decisions `log --json` printed."""
    assert result.exit_code == 0, result.output
    names = {decision_id: name for name, decision_id in kept.items()}
    return [names[row["decision_id"]] for row in json.loads(result.stdout)]


class TestLog:
    @pytest.mark.parametrize(
        ("filters", "found"),
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
    def test_filters(self, run: Run, kept: dict[str, str], filters: list[str], found: list[str]) -> None:
        assert names_of(kept, run("log", "--json", *filters)) == found

    def test_pages_end_where_the_next_begins(self, run: Run, kept: dict[str, str]) -> None:
        first = names_of(kept, run("log", "--json", "-n", "2"))
        assert first == ["agent", "zoe"]
        for told in (kept["zoe"], kept["zoe"][-12:]):
            assert names_of(kept, run("log", "--json", "-n", "2", "--before", told)) == ["bob", "alice"]
        assert names_of(kept, run("log", "--json", "--before", kept["alice"])) == []
        unknown = run("log", "--before", "unknown-decision")
        assert (unknown.exit_code, "there is no decision" in unknown.stderr) == (2, True)

    @pytest.mark.parametrize("option", ["--since", "--until"])
    def test_a_time_that_is_none_is_status_2(self, run: Run, kept: dict[str, str], option: str) -> None:
        result = run("log", option, "yesterday")
        assert result.exit_code == 2
        assert f"{option[2:]}: 'yesterday' is not an RFC 3339 time" in result.stderr

    def test_a_row_is_a_line_of_80_columns_and_its_id_opens_it(self, run: Run, kept: dict[str, str]) -> None:
        lines = run("log").stdout.splitlines()
        assert len(lines) == 5
        assert max(map(len, lines)) <= 80
        for line, name in zip(lines[1:], ("agent", "zoe", "bob", "alice"), strict=True):
            told = line.split()[-1]
            assert (
                json.loads(run("log", "show", told, "--json").stdout)["decision"]["decision_id"] == kept[name]
            )
        assert "agent:an-a" in lines[1]
        assert "…" in lines[1]
        assert "user:zoe" in lines[2]

    def test_csv_has_every_column_json_as_json_and_no_formula(self, run: Run, kept: dict[str, str]) -> None:
        result = run("log", "--csv")
        rows = {row["decision_id"]: row for row in csv.DictReader(io.StringIO(result.stdout, newline=""))}
        assert list(rows) == [kept[name] for name in ("agent", "zoe", "bob", "alice")]
        told, plain = rows[kept["agent"]], json.loads(run("log", "--json").stdout)[0]
        assert list(told) == list(plain) == list(DECISION_COLUMNS)
        assert told["decision"] == "'=REDUCE_THE_POSITION_BY_HALF"
        assert told["full_response"] == "'@SUM(1)"
        assert told["reasoning"] == "a\nb"
        assert json.loads(told["situation"]) == plain["situation"] == {"context": REPORTED.context}
        assert rows[kept["bob"]]["outcome_value"] == "-2.5"  # a number is no formula
        assert told["outcome_value"] == ""

    def test_csv_of_nothing_is_the_header(self, run: Run, kept: dict[str, str]) -> None:
        result = run("log", "--csv", "--actor", "nobody")
        assert result.stdout.splitlines() == [",".join(DECISION_COLUMNS)]

    def test_show_takes_the_end_of_an_id_and_tells_what_hangs_on_it(
        self, run: Run, kept: dict[str, str]
    ) -> None:
        shown = run("log", "show", kept["bob"][-8:]).stdout
        for told in (kept["bob"], "user:bob", "outcome", "sold too late", "private part  there"):
            assert told in shown
        assert '{"subject": {"type": "user", "id": "bob"' in shown
        first, second = (
            line
            for line in run("log", "show", kept["agent"]).stdout.splitlines()
            if line.endswith((" a", " b"))
        )
        assert second == "b".rjust(len(first))  # a value's second line stands under its first
        review = run("log", "show", kept["zoe"]).stdout
        assert "correct_decision" in review
        assert "ines" in review

    @pytest.mark.parametrize("told", ["", "1", "no-such-decision"])
    def test_show_of_no_decision_is_status_2(self, run: Run, kept: dict[str, str], told: str) -> None:
        told = kept["bob"][-7:] if told == "1" else told
        result = run("log", "show", told)
        assert result.exit_code == 2
        assert "there is no decision" in result.stderr

    @pytest.mark.parametrize("other", [["--csv"], ["--actor", "a"], ["--before", "x"], ["--unreviewed"]])
    def test_follow_takes_no_filter(self, run: Run, kept: dict[str, str], other: list[str]) -> None:
        result = run("log", "--follow", *other)
        assert result.exit_code == 2
        assert "leave out the filters, --before and --csv" in result.stderr

    @pytest.mark.parametrize("as_json", [True, False])
    def test_follow_goes_on_with_each_new_decision_until_ctrl_c(
        self, config: Config, kept: dict[str, str], as_json: bool
    ) -> None:
        with following(config, "-n", "2", *(["--json"] if as_json else [])) as child:
            assert child.stdout is not None

            def told() -> str:
                line = child.stdout.readline()  # type: ignore[union-attr]
                return str(json.loads(line)["decision_id"])[-8:] if as_json else line.split()[-1]

            assert as_json or told() == "id"
            assert [told(), told()] == [kept["zoe"][-8:], kept["agent"][-8:]]
            for number in range(3):
                reported = records.DecisionReport(agent="scout", outcome="BUY", entity=str(number))
                assert (
                    journal_access.submit_record(config, reported)[-8:] == told()
                )  # with no daemon, by hand
            child.send_signal(signal.SIGINT)
            rest, errors = child.communicate(timeout=PATIENCE_S)
        assert (child.returncode, rest, errors) == (0, "", "")


@contextmanager
def following(config: Config, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`log --follow` in a process of its own; killed if it is there long after any test."""
    main = "import sys; from thor_policy.cli.main import main; sys.argv[0] = 'thorpolicy'; main()"
    child = subprocess.Popen(
        [sys.executable, "-c", main, "log", "--follow", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env=os.environ | {"THOR_POLICY_STATE_DIR": str(config.state_dir), "COLUMNS": "80"},
    )  # fmt: skip
    watchdog = threading.Timer(PATIENCE_S, child.kill)
    watchdog.start()
    try:
        with child:
            yield child
    finally:
        watchdog.cancel()
        child.kill()


class TestVerify:
    def test_a_sound_journal_says_what_was_checked(self, run: Run, kept: dict[str, str]) -> None:
        shown = run("log", "verify")
        assert shown.exit_code == 0
        for told in ("chain         ok", "tables        ok", "complete      ok", "signed"):
            assert told in shown.stdout
        verdict = json.loads(run("log", "verify", "--json").stdout)
        assert verdict["ok"]
        assert f"{verdict['events']}:{verdict['head']}" in shown.stdout

    def test_a_head_that_was_kept_is_an_anchor(self, run: Run, kept: dict[str, str], config: Config) -> None:
        head = json.loads(run("log", "verify", "--json").stdout)
        anchor = f"{head['events']}:{head['head']}"
        run("log", "outcome", kept["zoe"], "SUCCESS")
        assert run("log", "verify", "--anchor", anchor).exit_code == 0
        assert run("log", "verify", "--anchor", anchor.upper(), "--anchor", anchor).exit_code == 0
        wrong = run("log", "verify", "--anchor", f"{head['events'] - 1}:{head['head']}")
        assert wrong.exit_code == 1
        assert f"event {head['events'] - 1} does not match the anchor" in wrong.stdout
        assert "complete      wrong" in wrong.stdout

    @pytest.mark.parametrize("told", ["", "1", "1:", "x:" + "0" * 64, "1:" + "0" * 63, "-1:" + "0" * 64])
    def test_an_anchor_that_is_none_is_status_2(self, run: Run, kept: dict[str, str], told: str) -> None:
        result = run("log", "verify", "--anchor", told)
        assert result.exit_code == 2
        assert "give SEQ:HASH" in result.stderr

    def test_a_cut_tail_is_found_by_the_checkpoint(
        self, run: Run, kept: dict[str, str], config: Config
    ) -> None:
        """Events, private parts and rows are gone to the last trace: only the signature remembers."""
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
        told = f"a checkpoint covers event {before}, but the chain ends at {before - 2}"
        assert verdict["incomplete"] == told
        assert told in run("log", "verify").stdout

    def test_another_key_is_not_trusted(
        self, run: Run, kept: dict[str, str], config: Config, tmp_path: Path
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
def either(request: pytest.FixtureRequest, kept: dict[str, str], config: Config) -> Iterator[dict[str, str]]:
    """The same journal, served or not."""
    if request.param == "without one":
        yield kept
        return
    with serving(config, load_engine=load_stub_engine):
        yield kept


class TestUpkeep:
    """What changes the journal works the same whether a daemon runs or not."""

    def test_outcome_is_kept(self, run: Run, either: dict[str, str]) -> None:
        zoe = either["zoe"]
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

    def test_outcome_of_no_decision_is_status_2(self, run: Run, either: dict[str, str]) -> None:
        assert run("log", "outcome", "no-such-decision", "SUCCESS").exit_code == 2
        assert run("log", "outcome", either["zoe"], "WON").exit_code == 2

    def test_erase_asks_first_and_leaves_nothing(
        self, run: Run, either: dict[str, str], config: Config
    ) -> None:
        refused = run("log", "erase", "user:bob", stdin="n\n")
        assert refused.exit_code == 1
        assert names_of(either, run("log", "--json", "--actor", "bob")) == ["bob"]
        result = run("log", "erase", "user:bob", stdin="y\n")
        assert result.exit_code == 0, result.output
        assert "own parts erased  2" in result.stdout
        assert "name still in     nothing" in result.stdout
        assert names_of(either, run("log", "--json", "--actor", "bob")) == []
        assert "(erased)" in run("log").stdout
        assert "private part  erased" in run("log", "show", either["bob"]).stdout
        assert run("log", "verify").exit_code == 0
        again = json.loads(run("log", "erase", "bob", "--yes", "--json").stdout)
        assert (again["own"], again["mentions"], again["left"]) == (0, 0, [])

    def test_erase_is_status_1_if_the_name_is_left(self, run: Run, either: dict[str, str]) -> None:
        result = run("log", "erase", "s1", "--yes")  # a session, which is on the chain
        assert result.exit_code == 1
        assert "table events" in result.stdout

    def test_archive_moves_events_and_all_is_there_as_before(
        self, run: Run, either: dict[str, str], config: Config
    ) -> None:
        assert "events archived  0" in run("log", "archive", "--before", "2000-01-01").stdout
        done = json.loads(run("log", "archive", "--before", "2999-01-01", "--json").stdout)
        assert done["archived"] >= 8
        (segment,) = (config.state_dir / "archive").iterdir()
        assert done["segments"] == [segment.name]
        assert names_of(either, run("log", "--json")) == ["agent", "zoe", "bob", "alice"]
        assert json.loads(run("log", "show", either["bob"], "--json").stdout)["event"]["private"]
        verify = run("log", "verify")
        assert verify.exit_code == 0
        assert f"{done['archived']} archived" in verify.stdout
        segment.unlink()
        assert run("log", "verify").exit_code == 1
        assert run("log", "show", either["bob"]).exit_code == 2

    def test_archive_before_no_time_is_status_2(self, run: Run, either: dict[str, str]) -> None:
        result = run("log", "archive", "--before", "yesterday")
        assert result.exit_code == 2
        assert "before: 'yesterday' is not an RFC 3339 time" in result.stderr
        assert run("log", "archive").exit_code == 2

    def test_checkpoint_signs_the_chain_as_it_is(
        self, run: Run, either: dict[str, str], config: Config
    ) -> None:
        run("log", "outcome", either["zoe"], "SUCCESS")
        done = json.loads(run("log", "checkpoint", "--json").stdout)["checkpoint"]
        verdict = json.loads(run("log", "verify", "--json").stdout)
        assert done == verdict["checkpoint_seq"] == verdict["events"]
        assert f"signed up to event {done}" in run("log", "checkpoint").stdout


class TestRebuild:
    def test_tables_are_made_anew_in_place(self, run: Run, kept: dict[str, str], config: Config) -> None:
        before = run("log", "--json").stdout
        with closing(sqlite3.connect(config.journal_path)) as connection, connection:
            connection.execute("UPDATE decisions SET decision = 'allow'")
        assert run("log", "verify").exit_code == 1
        result = run("log", "rebuild")
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith("rebuilt from ")
        assert run("log", "verify").exit_code == 0
        assert run("log", "--json").stdout == before

    def test_a_copy_is_a_journal_of_its_own(self, run: Run, kept: dict[str, str], tmp_path: Path) -> None:
        copy = str(tmp_path / "copy")
        assert json.loads(run("log", "rebuild", "--to", copy, "--json").stdout)["events"] >= 9
        assert run("log", "--json", "--state-dir", copy).stdout == run("log", "--json").stdout
        assert run("log", "verify", "--state-dir", copy).exit_code == 0
        assert run("log", "rebuild", "--to", copy).exit_code == 2

    def test_a_copy_may_be_of_the_past(self, run: Run, kept: dict[str, str], tmp_path: Path) -> None:
        seq = json.loads(run("log", "show", kept["bob"], "--json").stdout)["decision"]["seq"]
        for name, at in (("a", str(seq)), ("b", "2999-01-01"), ("c", "2000-01-01")):
            run("log", "rebuild", "--to", str(tmp_path / name), "--at", at)
        found = [names_of(kept, run("log", "--json", "--state-dir", str(tmp_path / one))) for one in "abc"]
        assert found == [["bob", "alice"], ["agent", "zoe", "bob", "alice"], []]

    def test_the_past_is_not_for_the_journal_itself(self, run: Run, kept: dict[str, str]) -> None:
        result = run("log", "rebuild", "--at", "3")
        assert result.exit_code == 2
        assert "--at needs --to" in result.stderr

    def test_a_running_daemon_keeps_its_tables(self, run: Run, daemon: Config) -> None:
        run("ask", json.dumps(QUESTION))
        assert run("log", "rebuild").exit_code == 2


class TestStats:
    def test_by_a_dimension_is_a_row_for_each_value(self, run: Run, kept: dict[str, str]) -> None:
        rows = {row["actor"]: row for row in json.loads(run("stats", "--by", "actor", "--json").stdout)}
        assert set(rows) == {"user:alice", "user:bob", "user:zoe", f"agent:{REPORTED.agent}"}
        assert (rows["user:bob"]["failed"], rows["user:bob"]["total_value"]) == (1, -2.5)
        shown = run("stats", "--by", "actor").stdout
        assert "user:bob" in shown
        assert len(shown.splitlines()) == 5  # the head, and a line for each
        for dimension, known in (("type", "risk"), ("model", "stub"), ("pack", "team-governance")):
            assert known in run("stats", "--by", dimension).stdout
        assert run("stats", "--by", "weather").exit_code == 2

    def test_count_outcomes_confidence_latency_and_hours(self, run: Run, kept: dict[str, str]) -> None:
        figures = json.loads(run("stats", "--json").stdout)
        assert (figures["decisions"], figures["value"]) == (4, -2.5)
        assert figures["turned_out"] == {"SUCCESS": 0, "FAILURE": 1, "PENDING": 0}
        assert sum(count for _, count in figures["hourly"]) == 4
        assert sum(row["decisions"] for row in figures["confidence"]) == 4
        shown = run("stats").stdout
        for told in ("turned_out", "by hour", "█", "p99 ms", "confidence from"):
            assert told in shown

    def test_count_from_a_time_on(self, run: Run, kept: dict[str, str]) -> None:
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
        found = run("test", "--json", *files)
        assert found.exit_code == 0, found.output
        rows = json.loads(found.stdout)["results"]
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

    def test_nobody_there_is_status_3(self, run: Run) -> None:
        for command in (["ask", json.dumps(QUESTION)], ["status"]):
            result = run(*command)
            assert result.exit_code == 3
            assert "thorpolicy serve" in result.stderr

    def test_no_journal_is_status_2_and_makes_none(self, run: Run, config: Config) -> None:
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

    def test_doctor_names_each_lack_and_its_cure(self, run: Run, tmp_path: Path) -> None:
        result = run("doctor", "--json", "--models-dir", str(tmp_path))
        findings = {finding["name"]: finding for finding in json.loads(result.stdout)}
        assert result.exit_code == 1
        assert findings["model"]["state"] == "missing"
        assert findings["model"]["cure"].startswith("thorpolicy models pull")
        assert {"device", "engine", "model", "pack", "state dir", "disk", "sqlite", "daemon"} == set(findings)

    @pytest.mark.parametrize(
        "command", [["nonsense"], ["log", "--limit", "0"], ["ask", "--explain", "loudly"]]
    )
    def test_wrong_use_is_status_2(self, run: Run, command: list[str]) -> None:
        assert run(*command).exit_code == 2

    def test_models_are_listed_and_an_absent_one_named(self, run: Run, tmp_path: Path) -> None:
        rows = json.loads(run("models", "list", "--json", "--models-dir", str(tmp_path)).stdout)
        assert rows[0]["model"]["name"] == "smollm2-135m-instruct-q4_1"
        result = run("models", "path", "phi-4-q4_k_m", "--models-dir", str(tmp_path))
        assert result.exit_code == 2
        assert "thorpolicy models pull phi-4-q4_k_m" in result.stderr


class TestPacks:
    def test_list_show_and_lint_the_shipped_pack(self, run: Run) -> None:
        assert "team-governance" in [row["name"] for row in json.loads(run("packs", "list", "--json").stdout)]
        assert "R1" in run("packs", "show", "team-governance").stdout
        assert run("packs", "lint", "team-governance").exit_code == 0

    def test_an_unknown_pack_names_the_known_ones(self, run: Run) -> None:
        result = run("packs", "show", "nowhere")
        assert result.exit_code == 2
        assert "team-governance" in result.stderr

    @pytest.mark.model
    def test_render_prints_the_exact_prompt(self, run: Run) -> None:
        shown = json.loads(
            run("packs", "render", "team-governance", "-", "--json", stdin=json.dumps(QUESTION)).stdout
        )
        assert set(shown) == {"prefix", "suffix", "prefix_tokens", "suffix_tokens"}
        assert len(shown["suffix_tokens"]) < 160
        assert shown["suffix"].endswith("<|im_start|>assistant\noutcome:")
        text = run("packs", "render", "team-governance", "-", stdin=json.dumps(QUESTION)).stdout
        assert text == shown["prefix"] + shown["suffix"] + "\n"


def test_an_installed_wheel_works_outside_the_checkout(tmp_path: Path) -> None:
    """Prompts, scenarios and catalog ship inside the wheel."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    environment = os.environ | {"PYTHONPATH": str(installed), "HOME": str(tmp_path)}
    script = (
        "import thor_policy, sys; assert thor_policy.__file__.startswith(sys.argv.pop());"
        "from thor_policy import config; assert not config.in_checkout();"
        "from thor_policy.cli.main import main; main()"
    )
    for command, told in ((["packs", "list"], "team-governance"), (["models", "list"], "smollm2")):
        done = subprocess.run(
            [sys.executable, "-c", script, *command, str(installed)],
            capture_output=True, text=True, cwd=tmp_path, env=environment, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert told in done.stdout
    assert list((installed / "thor_policy" / "data" / "scenarios").glob("*.yaml"))
    assert (installed / "thor_policy" / "suites" / "html_report.html").is_file()


@pytest.mark.model
class TestCalibrate:
    """The catalog's model and the shipped pack name what is calibrated; their answers are made up here."""

    @pytest.fixture
    def judged(self, config: Config, shipped_pack: Pack, model_file: catalog.ModelFile) -> int:
        """Decisions of a model that is far too sure of itself, each reviewed."""
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

    def test_tells_what_it_does_to_an_unseen_half_and_puts_it_in_force(
        self, run: Run, judged: int, config: Config, tmp_path: Path
    ) -> None:
        told = json.loads(run("calibrate", "--json", "--report-dir", str(tmp_path)).stdout)
        assert (told["judged"], told["in_force"]) == (judged, True)
        assert told["temperature"] > 2
        assert told["after"]["ece"] < told["before"]["ece"] / 2
        assert told["after"]["accuracy"] == told["before"]["accuracy"]
        assert "<svg" in (tmp_path / "calibration.svg").read_text()
        assert json.loads((tmp_path / "calibration.json").read_text())["fitted"]["judged"] == judged
        with closing(sqlite3.connect(config.journal_path)) as db:
            assert db.execute("SELECT temperature, judged FROM calibrations").fetchall() == [
                (told["temperature"], judged)
            ]
        assert "in force" in run("calibrate").stdout
        assert run("log", "verify").exit_code == 0

    def test_a_dry_run_puts_nothing_in_force(self, run: Run, judged: int, config: Config) -> None:
        assert "not put in force" in run("calibrate", "--dry-run").stdout
        with closing(sqlite3.connect(config.journal_path)) as db:
            assert db.execute("SELECT count(*) FROM calibrations").fetchone() == (0,)

    def test_says_how_much_is_missing(self, run: Run, judged: int) -> None:
        ended = run("calibrate", "--by", "suites")
        assert ended.exit_code == 2
        assert "there are 0 judged decisions of this pack and model" in ended.output
        assert "50 are missing" in ended.output

    def test_a_daemon_takes_it_over_at_its_start_and_for_its_next_decision(
        self, run: Run, config: Config, shipped_pack: Pack
    ) -> None:
        stub = StubEngine().model.sha256
        soft, softer = (
            Calibration(temperature=t, pack_sha256=shipped_pack.info.sha256, model_sha256=stub, judged=60)
            for t in (4.0, 8.0)
        )
        Journal(config.journal_path).close()
        journal_access.maintain(config, records.Maintenance(task="calibrate", calibration=soft))
        with serving(config, load_engine=load_stub_engine), Client(config.endpoint) as client:
            asked = [client.evaluate(QUESTION)]
            journal_access.maintain(config, records.Maintenance(task="calibrate", calibration=softer))
            asked.append(client.evaluate(QUESTION))
        shares = [reply["context"]["probabilities"] for reply in asked]
        assert max(shares[1].values()) < max(shares[0].values())
        rows = json.loads(run("log", "--json", "-n", "2").stdout)
        assert [row["temperature"] for row in rows] == [8.0, 4.0]
        assert rows[0]["label"] == rows[1]["label"]
