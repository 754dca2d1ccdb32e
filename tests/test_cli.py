"""The command line: what each command prints, and the exit status of each ending."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from thor_policy.app import serving
from thor_policy.cli.main import cli
from thor_policy.config import Config
from thor_policy.core import Json
from thor_policy.testing import load_stub_engine

ROOT = Path(__file__).resolve().parents[1]
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


@pytest.mark.usefixtures("daemon")
class TestReading:
    def test_status_tells_of_each_part(self, run: Run) -> None:
        status = json.loads(run("status", "--json").stdout)
        assert status["state"] == "serving"
        assert status["engine"]["alive"]
        assert status["journal"]["alive"]
        assert "serving" in run("status").stdout

    def test_log_lists_filters_and_shows(self, run: Run) -> None:
        asked = [json.loads(run("ask", "--json", json.dumps(QUESTION)).stdout) for _ in range(3)]
        ids = [reply["context"]["decision_id"] for reply in asked]
        rows = json.loads(run("log", "--json", "-n", "2").stdout)
        assert [row["decision_id"] for row in rows] == [ids[2], ids[1]]
        assert json.loads(run("log", "--json", "--subject", "nobody").stdout) == []
        assert ids[0][-12:] in run("log").stdout
        assert json.loads(run("log", "show", ids[0], "--json").stdout)["decision_id"] == ids[0]
        assert run("log", "show", "unknown").exit_code == 2

    def test_log_verify_is_0_for_a_sound_journal_and_1_for_a_changed_one(
        self, run: Run, daemon: Config
    ) -> None:
        import sqlite3

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

    def test_every_table_fits_80_columns(self, run: Run) -> None:
        run("ask", json.dumps(QUESTION | {"actor_id": "user:" + "x" * 100, "action_type": "y" * 100}))
        for command in (["log"], ["stats"], ["models", "list"], ["packs", "list"], ["doctor"]):
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


class TestWithoutDaemon:
    def test_nobody_there_is_status_3(self, run: Run) -> None:
        for command in (["ask", json.dumps(QUESTION)], ["status"]):
            result = run(*command)
            assert result.exit_code == 3
            assert "thorpolicy serve" in result.stderr

    def test_no_journal_is_status_2(self, run: Run) -> None:
        for command in (["log"], ["stats"], ["log", "verify"]):
            result = run(*command)
            assert result.exit_code == 2
            assert "no journal" in result.stderr

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
        assert json.loads(run("packs", "list", "--json").stdout)[0]["name"] == "team-governance"
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
        assert len(shown["suffix_tokens"]) < 120
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
