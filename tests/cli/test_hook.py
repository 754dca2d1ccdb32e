"""`thorpolicy hook`: what its commands print and their exit statuses. The parts have tests of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from thor_policy.cli.main import cli
from thor_policy.config import Config
from thor_policy.daemon.service import serving
from thor_policy.hook.main import AGENTS
from thor_policy.testing import load_stub_engine

Run = Callable[..., Result]
EVENT = {
    "hook_event_name": "PreToolUse",
    "session_id": "s",
    "cwd": "/",
    "tool_name": "Bash",
    "tool_input": {"command": "ls"},
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("THOR_POLICY_ENDPOINT", "ipc:///run/policy.sock")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("THOR_POLICY_STATE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["hook", *arguments])

    return call


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("scope", ["--user", "--project"])
def test_install_status_uninstall(run: Run, tmp_path: Path, agent: str, scope: str) -> None:
    place = ["--agent", agent, scope]
    assert run("status", *place).exit_code == 1
    result = run("install", *place, "--agent-version", "9.9.9")
    assert result.exit_code == 0, result.output
    assert "+++ " in result.output
    assert "fails closed by" in result.output
    assert max(map(len, result.output.split("fails closed")[1].splitlines())) <= 180
    status = run("status", *place, "--json")
    assert status.exit_code == 0, status.output
    shown: dict[str, Any] = json.loads(status.output)
    assert (shown["installed"], shown["problems"], shown["losses"]) == (True, [], 0)
    again = run("install", *place, "--agent-version", "9.9.9")
    assert again.output.startswith(f"{shown['file']}: nothing to change")
    assert run("uninstall", *place).exit_code == 0
    assert run("status", *place).exit_code == 1


def test_a_dry_run_changes_nothing(run: Run, tmp_path: Path) -> None:
    result = run("install", "--agent", "claude", "--agent-version", "2.1.295", "--dry-run")
    assert "nothing was changed" in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_version_that_cannot_fail_closed_is_refused_with_status_2(run: Run) -> None:
    result = run("install", "--agent", "claude", "--agent-version", "2.1.1")
    assert result.exit_code == 2
    assert "cannot fail closed" in result.output


def test_an_endpoint_of_another_machine_is_refused_at_installation(run: Run) -> None:
    result = run(
        "install", "--agent", "claude", "--agent-version", "2.1.295", "--endpoint", "tcp://192.0.2.7:5555"
    )
    assert result.exit_code == 2
    assert "this machine" in result.output


def test_the_matrix_of_an_agent_fits_80_columns_and_every_fault_blocks(run: Run) -> None:
    result = run("test", "--agent", "gemini")
    assert result.exit_code == 0, result.output
    assert "gemini: 16 of 16 faults block" in result.output
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_an_event_is_answered_through_the_command_too(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("thorpolicy")), "hook", "--agent", "claude"]
    done = subprocess.run(
        [*command, "--endpoint", f"ipc://{tmp_path}/nobody.sock", "--state", str(tmp_path / "s")],
        input=json.dumps(EVENT).encode(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert b"no daemon listens" in done.stderr


def test_without_an_agent_or_a_command_the_use_is_wrong(run: Run) -> None:
    result = run()
    assert result.exit_code == 2
    assert "give --agent" in result.output


def test_a_report_of_an_empty_journal_says_so(run: Run, tmp_path: Path) -> None:

    config = Config(state_dir=tmp_path, endpoint=f"ipc://{tmp_path}/p.sock", pack="agent-tools")
    with serving(config, load_engine=load_stub_engine):
        pass
    assert "0 calls were allowed without a question" in run("report").output
    shown = json.loads(run("report", "--json", "--since", "2020-01-01T00:00:00Z").output)
    assert (shown["agents"], shown["proposals"]) == ([], [])
