"""packs new, lint, try, show, diff: what an author of packs reads and what the commands end with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from thor_policy.cli.main import cli
from thor_policy.core.requests import Json
from thor_policy.policy import pack_files
from thor_policy.policy.lint import lint

CHILD_TIMEOUT_S = 60
MAIN = "from thor_policy.cli.main import main; main()"
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("THOR_POLICY_STATE_DIR", str(tmp_path / "state"))

    def invoke(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(cli, arguments, input=stdin)

    return invoke


@pytest.fixture
def demo(run: Run, tmp_path: Path) -> Path:
    assert run("packs", "new", "demo").exit_code == 0
    return tmp_path / "demo"


def question(role: str | None = "editor", action: str = "delete", owner: str = "lee") -> str:
    properties = {} if role is None else {"role": role}
    whole: Json = {
        "subject": {"type": "user", "id": "kim", "properties": properties},
        "action": {"name": action},
        "resource": {"type": "document", "id": "plan", "properties": {"owner": owner}},
    }
    return json.dumps(whole)


class TestNew:
    @pytest.mark.parametrize("options", [(), ("--with-model",)], ids=["rules alone", "with a model"])
    def test_writes_a_pack_without_a_finding(
        self, run: Run, tmp_path: Path, options: tuple[str, ...]
    ) -> None:
        result = run("packs", "new", "demo", *options)
        assert result.exit_code == 0
        assert f"wrote {Path('demo') / 'pack.yaml'}" in result.output
        assert lint(tmp_path / "demo") == []
        assert run("packs", "lint", "demo").output == "no problems found\n"
        assert pack_files.load(tmp_path / "demo").rules_only == (not options)

    def test_of_rules_alone_passes_its_suite_without_a_line_changed(self, run: Run, demo: Path) -> None:
        result = run("test", "--full", "--pack", "demo", "--no-record")
        assert (result.exit_code, "11 of 11" in result.output) == (0, True), result.output
        assert demo.is_dir()

    @pytest.mark.parametrize("name", ["Demo", "a b", "", "../demo", "a/b", "-x"])
    def test_refuses_what_is_no_name(self, run: Run, name: str) -> None:
        result = run("packs", "new", "--", name)
        assert (result.exit_code, "is no name for a pack" in result.stderr) == (2, True)

    def test_changes_nothing_that_is_there(self, run: Run, demo: Path) -> None:
        (demo / "rules.yaml").write_text("[]\n")
        result = run("packs", "new", "demo")
        assert (result.exit_code, "cannot be written: File exists" in result.stderr) == (2, True)
        assert (demo / "rules.yaml").read_text() == "[]\n"

    def test_writes_into_another_directory(self, run: Run, tmp_path: Path) -> None:
        assert run("packs", "new", "demo", "--dir", "some/where").exit_code == 0
        assert pack_files.load(tmp_path / "some" / "where").info.name == "demo"


class TestLint:
    def test_lists_every_problem_of_every_file_in_one_run_with_its_place(self, run: Run, demo: Path) -> None:
        (demo / "rules.yaml").write_text(
            "- id: one\n  when: nonsense\n  outcome: allow\n  because: No.\n"
            "- id: one\n  when: action.name\n  outcome: maybe\n  because: No.\n"
        )
        (demo / "data.yaml").write_text("roles: {a: 1.10}\n")
        (demo / "clauses.yaml").unlink()
        text = (demo / "pack.yaml").read_text()
        (demo / "pack.yaml").write_text(
            text.replace("facts:", "facts:\n  early: role == later\n  later: '1'")
        )
        result = run("packs", "lint", "demo")
        assert result.exit_code == 1
        for expected in (
            "error: rules.yaml:2:9: rule one: when: there is no name 'nonsense' here",
            "error: rules.yaml:6:9: rule one: when: gives a string, not a bool",
            "error: rules.yaml:7:12: rule one: outcome 'maybe' is not one of allow, require_approval, deny",
            "error: rules.yaml:5:7: rule one: the id 'one' appears twice",
            "error: data.yaml:1:12: 1.10 reads as the number 1.1",
        ):
            assert expected in result.output
        assert "'later' is a fact further down; a fact sees only the facts above it" in result.output

    def test_names_all_missing_files_at_once(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "bare").mkdir()
        (tmp_path / "bare" / "pack.yaml").write_text("name: bare\n")
        result = run("packs", "lint", "./bare")
        assert result.exit_code == 1
        for name in ("clauses.yaml", "rules.yaml", "system.md", "examples.yaml"):
            assert f"error: {name}: is missing; it holds" in result.output
        for member in ("version", "description", "outcomes"):
            assert f"Object missing required field `{member}`" in result.output

    def test_prints_json(self, run: Run, demo: Path) -> None:
        (demo / "rules.yaml").write_text("- {id: one, when: 'tru', outcome: allow, because: No.}\n")
        findings = json.loads(run("packs", "lint", "demo", "--json").output)
        (finding,) = [finding for finding in findings if finding["level"] == "error"]
        assert (finding["level"], finding["where"], finding["line"], finding["column"]) == (
            "error",
            "rules.yaml rule one: when",
            1,
            20,
        )


class TestTry:
    def test_shows_facts_what_each_rule_came_to_and_the_answer(self, run: Run, demo: Path) -> None:
        result = run("packs", "try", "demo", question())
        assert result.exit_code == 0, result.output
        for expected in (
            'role     "editor"',
            "fired   deletion: require_approval (final)",
            'false: action.name != "delete"',
            "answer   require_approval, by rule",
            "because  Somebody else must approve a deletion.",
        ):
            assert expected in result.output
        assert demo.is_dir()

    def test_shows_the_times_that_rules_read(self, run: Run, demo: Path) -> None:
        assert "  time " not in run("packs", "try", "demo", question()).output
        rule = "- {id: untimed, when: 'stated_times().size() == 0', outcome: deny, because: No time.}\n"
        with (demo / "rules.yaml").open("a") as rules:
            rules.write(rule)
        assert "  time     none is stated" in run("packs", "try", "demo", question()).output
        stated = json.loads(question()) | {"context": {"time": "2026-05-13T12:00:00+02:00"}}
        output = run("packs", "try", "demo", json.dumps(stated)).output
        assert "  time     2026-05-13T10:00:00Z (context.time)" in output

    def test_takes_json_a_file_and_standard_input(self, run: Run, demo: Path) -> None:
        (demo.parent / "question.json").write_text(question())
        outputs = {
            run("packs", "try", "demo", question()).output,
            run("packs", "try", "demo", "question.json").output,
            run("packs", "try", "demo", "-", stdin=question()).output,
        }
        assert len(outputs) == 1

    def test_names_missing_members_and_failed_rules(self, run: Run, demo: Path) -> None:
        missing = run("packs", "try", "demo", question(role=None))
        assert "answer   deny, fields_missing: subject.properties.role" in missing.output
        (demo / "rules.yaml").write_text(
            "- {id: odd, when: 'context.n == 1', outcome: require_approval, because: Odd.}\n"
        )
        failed = run("packs", "try", "demo", question())
        assert "FAILED  odd: require_approval" in failed.output
        assert 'Key not found in map : "n"' in failed.output
        assert "rule_error in odd" in failed.output

    def test_shows_what_a_model_would_read(self, run: Run) -> None:
        assert run("packs", "new", "judged", "--with-model").exit_code == 0
        result = run("packs", "try", "judged", question(role="reader", action="write"))
        assert "allow, or what is stricter: the model decides" in result.output
        assert "action: write" in result.output

    def test_prints_json(self, run: Run, demo: Path) -> None:
        shown = json.loads(run("packs", "try", "demo", question(), "--json").output)
        assert shown["floor"]["outcome"] == "require_approval"
        assert [trace["state"] for trace in shown["rules"]] == ["not", "not", "fired"]
        assert demo.is_dir()

    @pytest.mark.parametrize("text", ["{", '{"a": 1, "a": 2}', "no-such-file.json"])
    def test_refuses_what_is_no_question(self, run: Run, demo: Path, text: str) -> None:
        assert run("packs", "try", "demo", text).exit_code == 2
        assert demo.is_dir()

    def test_watches_the_files_of_the_pack(self, demo: Path) -> None:
        command = [sys.executable, "-c", MAIN, "packs", "try", "./demo", question(), "--watch"]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with subprocess.Popen(
            command, cwd=demo.parent, env=environment, stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            try:
                lines = iter(child.stdout.readline, "")
                assert any("answer   require_approval" in line for line in lines)
                (demo / "rules.yaml").write_text("- {id: odd, when: tru, outcome: deny, because: No.}\n")
                assert any("there is no name 'tru' here" in line for line in lines)
                (demo / "rules.yaml").write_text("[]\n")
                assert any("answer   deny, by rule" in line for line in lines)
            finally:
                child.send_signal(signal.SIGINT)
                child.wait(CHILD_TIMEOUT_S)


class TestShow:
    def test_shows_conditions_and_that_every_answer_is_by_rule(self, run: Run, demo: Path) -> None:
        result = run("packs", "show", "demo")
        for expected in (
            "every answer is by rule: no model is asked",
            "where no rule decides: deny",
            "required of a request: subject.properties.role (string)",
            'when     action.name == "delete" && (granted || owner)',
            "because  Somebody else must approve a deletion.",
        ):
            assert expected in result.output
        assert demo.is_dir()
        assert "every answer is by rule" not in run("packs", "show", "trade-risk").output


class TestDiff:
    def test_shows_changed_parts_and_answers(self, run: Run, demo: Path) -> None:
        assert run("packs", "new", "demo", "--dir", "after").exit_code == 0
        table = demo.parent / "after" / "data.yaml"
        table.write_text(table.read_text().replace("reader: [read]", "reader: [read, write]"))
        rules = demo.parent / "after" / "rules.yaml"
        rules.write_text(rules.read_text().replace("id: own-document", "id: own"))
        result = run("packs", "diff", "demo", "after")
        assert result.exit_code == 0
        for expected in (
            "removed rule own-document",
            "added rule own",
            "changed table roles",
            "1 of 11 answers by rule change",
            "ROLES/reader/write  looser  deny",
        ):
            assert expected in result.output
        shown = json.loads(run("packs", "diff", "demo", "after", "--json").output)
        assert [change["kind"] for change in shown["changes"]] == ["rule", "rule", "table"]
        assert [answer["now"] for answer in shown["answers"]] == ["looser"]

    def test_of_equal_packs_says_so(self, run: Run, demo: Path) -> None:
        result = run("packs", "diff", "demo", "demo")
        assert "the packs have the same parts" in result.output
        assert "0 of 11 answers by rule change" in result.output
        assert demo.is_dir()


class TestWithoutWeights:
    """What is learned from a pack of rules alone needs no model either."""

    def test_its_decisions_are_replayed_compared_and_gated(
        self, run: Run, demo: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("THOR_POLICY_MODELS_DIR", str(demo.parent / "no-models"))
        assert run("test", "--full", "--pack", "./demo").exit_code == 0
        assert run("replay", "--random", "3", "--pack", "./demo").output.startswith("3 identical")
        assert run("packs", "new", "demo", "--dir", "after").exit_code == 0
        table = demo.parent / "after" / "data.yaml"
        table.write_text(table.read_text().replace("reader: [read]", "reader: [read, write]"))
        whatif = run("whatif", "--pack", "./after", "--instead-of", "demo", "--since", "1d", "--dry-run")
        assert (whatif.exit_code, "decided by demo 0.1.0" in whatif.output) == (1, True), whatif.output
        promoted = run("packs", "promote", "./after", "--pack", "./demo", "--dry-run", "--json")
        assert promoted.exit_code == 1, promoted.output
        (report,) = json.loads(promoted.stdout)["reports"]
        failed = {check["name"] for check in report["checks"] if check["reasons"]}
        assert failed == {"suites", "counterfactual"}
