"""The checks of `test` and `invariance`: leaks, reasons, coverage, and what a run prints about them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from msgspec import to_builtins

from thor_policy.cli.main import cli
from thor_policy.config import Config
from thor_policy.daemon.service import serving
from thor_policy.policy.pack import Pack
from thor_policy.testing import load_stub_engine

ANY = ["allow", "require_mfa", "require_attestation", "deny"]
HARMLESS: dict[str, Any] = {
    "id": "T1",
    "title": "Whatever the stub says is right",
    "difficulty": "easy",
    "quick": True,
    "situation": {
        "actor_id": "user:a",
        "action_type": "deploy",
        "resource": "env:x",
        "timestamp": "2026-05-13T10:00:00Z",
    },
    "expect": {"one_of": ANY},
}

Run = Callable[..., Result]
Write = Callable[..., str]


@pytest.fixture
def run(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """The command line with a daemon on a stub engine, without an embedder."""
    monkeypatch.setenv("THOR_POLICY_STATE_DIR", str(config.state_dir))
    monkeypatch.setenv("THOR_POLICY_ENDPOINT", config.endpoint)
    monkeypatch.setenv("THOR_POLICY_MODELS_DIR", str(tmp_path))
    with serving(config, load_engine=load_stub_engine):
        yield lambda *arguments: CliRunner().invoke(cli, arguments)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*scenarios: dict[str, Any]) -> str:
        path = tmp_path / "suite.yaml"
        whole = {"name": "tiny", "pack": "team-governance", "scenarios": list(scenarios)}
        path.write_text(yaml.safe_dump(whole), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def copied(shipped_pack: Pack) -> dict[str, Any]:
    """A scenario copied from an example of the pack."""
    entry = {name: value for name, value in HARMLESS.items() if name != "situation"}
    return entry | {"id": "COPY", "request": to_builtins(shipped_pack.examples[0].evaluation)}


class TestLeaks:
    def test_a_suite_with_a_scenario_copied_from_an_example_is_refused_with_its_id(
        self, run: Run, write: Write, copied: dict[str, Any]
    ) -> None:
        result = run("test", "--full", write(HARMLESS, copied))
        assert result.exit_code == 2
        assert "COPY is X1 (exact 1.00)" in result.stderr
        assert "T1" not in result.stderr
        assert run("log", "--json").stdout.strip() == "[]"

    def test_allow_leak_runs_the_suite_and_the_report_says_so(
        self, run: Run, write: Write, copied: dict[str, Any]
    ) -> None:
        path = write(HARMLESS, copied)
        assert "allowed: COPY is X1 (exact 1.00)" in run("test", "--full", "--allow-leak", path).stdout
        shown = json.loads(run("test", "--full", "--allow-leak", "--json", path).stdout)
        assert shown["allow_leak"] is True
        assert shown["leaks"] == [{"scenario": "COPY", "example": "X1", "look": "exact", "similarity": 1.0}]

    def test_a_run_without_leaks_says_how_it_searched(self, run: Run, write: Write) -> None:
        assert "none found, by wording alone" in run("test", write(HARMLESS)).stdout


class TestReasons:
    def test_without_an_embedder_coverage_is_not_measured_and_the_cure_is_printed(
        self, run: Run, write: Write
    ) -> None:
        expecting = HARMLESS | {"expect": {"one_of": ANY, "reasoning": ["a rule"]}}
        shown = " ".join(run("test", write(expecting)).stdout.split())
        cure = "all-MiniLM-L6-v2.onnx is not in|[a-z]+ is not installed; run: ./scripts/setup cpu"
        assert re.search(rf"not measured \(no embedder: ({cure})", shown), shown
        (result,) = json.loads(run("test", "--json", write(expecting)).stdout)["results"]
        assert (result["coverage"], result["elements"]) == (None, [])

    def test_the_command_imports_neither_torch_nor_an_inference_library(self) -> None:
        """Nor does the daemon; the embedder's libraries are imported when an embedder is opened."""
        program = (
            "import sys, thor_policy.daemon.service, thor_policy.cli.suites, thor_policy.suites.runner;"
            "print({'torch', 'transformers', 'onnxruntime', 'tokenizers'} & set(sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "set()"


class TestCoverage:
    def test_a_full_run_prints_what_it_reached_of_the_pack(self, run: Run, write: Write) -> None:
        shown = run("test", "--full", write(HARMLESS)).stdout
        assert "coverage of team-governance" in shown
        assert "clauses cited" in shown
        assert "rules fired" in shown
        assert "never R" in shown

    def test_coverage_below_the_threshold_is_status_1(self, run: Run, write: Write) -> None:
        path = write(HARMLESS)
        assert run("test", "--full", path).exit_code == 0
        result = run("test", "--full", "--coverage-threshold", "90", path)
        assert result.exit_code == 1
        assert "is below the threshold of 90 %" in result.stdout
        assert run("test", "--full", "--coverage-threshold", "0", path).exit_code == 0

    def test_coverage_counts_are_in_the_json_output(self, run: Run, write: Write, shipped_pack: Pack) -> None:
        (coverage,) = json.loads(run("test", "--full", "--json", write(HARMLESS)).stdout)["coverage"]
        assert coverage["pack"] == "team-governance"
        assert list(coverage["clauses"]) == list(shipped_pack.clauses)
        assert coverage["scenarios"] == 1


class TestInvariance:
    def test_variants_that_the_model_does_not_see_change_no_answer(self, run: Run) -> None:
        """The stub answers by a digest of the question, so any difference in its prompt would show."""
        kinds = [
            part
            for kind in ("key_order", "unknown_fields", "irrelevant_context")
            for part in ("--kind", kind)
        ]
        result = run("invariance", "--json", "--sample", "60", *kinds)
        assert result.exit_code == 0, result.output
        shown = json.loads(result.stdout)
        assert (shown["asked"], shown["changed"]) == (60, [])
        assert [figures["name"] for figures in shown["figures"]] == kinds[1::2]

    def test_looser_answers_are_status_1_and_printed_with_the_injected_text(self, run: Run) -> None:
        result = run("invariance", "--kind", "injections", "--sample", "110")
        assert result.exit_code == 1
        assert "loosened by the model" in result.stdout
        assert "injections: encoding" in result.stdout
        assert "110 of 93456 variants, seed 0, the daemon" in result.stdout

    def test_the_same_seed_gives_the_same_sample_and_no_answer_below_the_floor(self, run: Run) -> None:
        outputs = [
            json.loads(run("invariance", "--json", "--sample", "44", "--seed", seed).stdout)
            for seed in ("1", "1", "2")
        ]
        assert outputs[0] == outputs[1] != outputs[2]
        assert sum(figures["below_floor"] for output in outputs for figures in output["figures"]) == 0

    def test_questions_of_invariance_are_not_recorded_as_scenarios(self, run: Run) -> None:
        run("invariance", "--kind", "key_order", "--sample", "3")
        rows = json.loads(run("log", "--json", "--tests").stdout)
        assert len(rows) == 6
        assert {row["scenario_id"] for row in rows} == {None}

    def test_kinds_without_a_variant_are_refused_and_not_a_success(self, run: Run, write: Write) -> None:
        result = run("invariance", "--kind", "synonyms", write(HARMLESS))
        assert result.exit_code == 2
        assert "no variant of the kinds synonyms" in result.stderr
        assert run("invariance", "--sample", "0").exit_code == 2

    def test_invariance_refuses_suites_without_a_scenario_for_the_pack(
        self, run: Run, tmp_path: Path
    ) -> None:
        path = tmp_path / "other.yaml"
        path.write_text(yaml.safe_dump({"name": "o", "pack": "other", "scenarios": [HARMLESS]}))
        result = run("invariance", str(path))
        assert result.exit_code == 2
        assert "no scenario to vary for the pack team-governance" in result.stderr


class TestWhatIsLeftOut:
    """Decisions of tests are recorded, and left out where people look at decisions; the commands say so."""

    @pytest.fixture
    def recorded(self, run: Run, write: Write) -> None:
        run("ask", json.dumps(HARMLESS["situation"]))
        run("test", write(HARMLESS))
        run("invariance", "--kind", "key_order", "--sample", "1", write(HARMLESS))

    @pytest.mark.usefixtures("recorded")
    def test_log_lists_them_with_tests_and_counts_them_without(self, run: Run) -> None:
        without, with_tests = run("log", "--json"), run("log", "--json", "--tests")
        assert (len(json.loads(without.stdout)), len(json.loads(with_tests.stdout))) == (1, 4)
        assert "3 decisions of tests are left out here; --tests lists them" in without.stderr
        assert "left out" not in with_tests.stderr
        assert "left out" not in run("log", "-n", "1", "--since", "2030-01-01").stderr

    @pytest.mark.usefixtures("recorded")
    def test_log_of_incorrect_decisions_has_those_of_scenarios(self, run: Run, write: Write) -> None:
        run("test", write(HARMLESS | {"id": "W1", "expect": {"never": "allow"}}))
        run("test", write(HARMLESS | {"id": "W2", "expect": {"outcome": "allow"}}))
        rows = json.loads(run("log", "--json", "--incorrect").stdout)
        assert len(rows) == 1
        assert rows[0]["scenario_id"] in ("W1", "W2")

    @pytest.mark.usefixtures("recorded")
    def test_stats_count_them_apart(self, run: Run) -> None:
        figures = json.loads(run("stats", "--json").stdout)
        assert (figures["decisions"], figures["left_out"], figures["expected"]) == (1, 3, 0)
        assert sum(count for _, count in figures["hourly"]) == 1
        assert "3 decisions of tests; --tests counts them" in run("stats").stdout
        whole = json.loads(run("stats", "--json", "--tests").stdout)
        assert (whole["decisions"], whole["left_out"]) == (4, 0)
        for options, total in (([], 1), (["--tests"], 4)):
            (row,) = json.loads(run("stats", "--by", "pack", "--json", *options).stdout)
            assert row["total"] == total

    @pytest.mark.usefixtures("recorded")
    def test_nobody_reviews_them_unless_they_are_asked_for(self, run: Run) -> None:
        for options, count in (([], 1), (["--tests"], 4), (["--queue", "all"], 4)):
            assert len(json.loads(run("review", "--json", *options).stdout)) == count


@pytest.mark.model
def test_test_and_invariance_work_with_the_embedded_model(
    config: Config, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suite with all checks, and variants of the order of members, which change nothing."""
    monkeypatch.setenv("THOR_POLICY_STATE_DIR", str(config.state_dir))
    monkeypatch.setenv("THOR_POLICY_ENDPOINT", config.endpoint)
    path = write(HARMLESS | {"expect": {"one_of": ANY, "reasoning": ["trust"]}})
    with serving(config):
        shown = json.loads(CliRunner().invoke(cli, ["test", "--json", path]).stdout)
        changed = CliRunner().invoke(cli, ["invariance", "--json", "--kind", "key_order", path])
    (result,) = shown["results"]
    assert (result["tier"], result["status"]) == ("model", "passed")
    measured = not shown["embedder"].startswith("no embedder")
    assert (result["coverage"] is not None) is measured
    assert (changed.exit_code, json.loads(changed.stdout)["changed"]) == (0, [])
