"""The settings files of agents: what is written, what is kept, what is refused."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from thor_policy.core.errors import ConfigError
from thor_policy.hook import installation
from thor_policy.hook.installation import Wanted
from thor_policy.hook.main import AGENTS, parse

WANTED = Wanted(endpoint="ipc:///run/policy.sock")
#: 2026-11-29T10:00:00Z.
NOW = 1_795_946_400.0
VERSION = "9.9.9"
#: What others may have in a settings file.
OTHERS: dict[str, dict[str, Any]] = {
    "claude": {
        "permissions": {"deny": ["Read(./.env)"]},
        "hooks": {
            "PreToolUse": [{"matcher": "Bash", "hooks": [{"type": "command", "command": "./lint.sh"}]}],
            "Stop": [{"hooks": [{"type": "command", "command": "say done"}]}],
        },
    },
    "codex": {"hooks": {"Stop": [{"hooks": [{"type": "command", "command": "say done"}]}]}},
    "gemini": {"ui": {"theme": "GitHub"}, "hooks": {"AfterTool": [{"hooks": [{"command": "log"}]}]}},
    "cursor": {"version": 1, "hooks": {"stop": [{"command": "./done.sh"}]}},
    "copilot": {"version": 1, "hooks": {"sessionEnd": [{"type": "command", "bash": "./done.sh"}]}},
}


def put(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def installed(agent: str, path: Path, wanted: Wanted = WANTED) -> dict[str, Any]:
    installation.apply(installation.install(agent, path, wanted, VERSION), now=NOW)
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.mark.parametrize("agent", AGENTS)
def test_what_others_wrote_is_kept_and_comes_back_whole(agent: str, tmp_path: Path) -> None:
    path = put(tmp_path / "settings.json", OTHERS[agent])
    content = installed(agent, path)
    for event, entries in OTHERS[agent]["hooks"].items():
        assert content["hooks"][event][: len(entries)] == entries
    assert {name: value for name, value in content.items() if name != "hooks"} == {
        name: value for name, value in OTHERS[agent].items() if name != "hooks"
    }
    installation.apply(installation.uninstall(agent, path), now=NOW + 1)
    assert json.loads(path.read_text()) == OTHERS[agent]


@pytest.mark.parametrize("agent", AGENTS)
def test_installing_again_changes_nothing(agent: str, tmp_path: Path) -> None:
    path = put(tmp_path / "settings.json", OTHERS[agent])
    installed(agent, path)
    before = path.read_bytes()
    change = installation.install(agent, path, WANTED, VERSION)
    assert change.nothing
    assert installation.apply(change, now=NOW) is None
    assert path.read_bytes() == before


@pytest.mark.parametrize("agent", AGENTS)
def test_another_installation_takes_the_place_of_the_one_before(agent: str, tmp_path: Path) -> None:
    path = put(tmp_path / "settings.json", OTHERS[agent])
    first = installed(agent, path)
    second = installed(agent, path, WANTED._replace(pack="mine"))
    assert {event: len(entries) for event, entries in first["hooks"].items()} == {
        event: len(entries) for event, entries in second["hooks"].items()
    }
    assert "--pack mine" in json.dumps(second)
    assert "--pack agent-tools" not in json.dumps(second)


@pytest.mark.parametrize("agent", AGENTS)
def test_a_file_that_was_not_there_is_made_for_its_user_and_removed_again(agent: str, tmp_path: Path) -> None:
    path = installation.settings_file(agent, "user", home=tmp_path, project=Path("/none"))
    installed(agent, path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert installation.status(agent, path) == installation.Found(path, True, ())
    installation.apply(installation.uninstall(agent, path), now=NOW)
    assert not path.exists()


@pytest.mark.parametrize("agent", AGENTS)
def test_every_command_is_one_that_the_program_takes(agent: str) -> None:
    wanted = Wanted("ipc:///run/a b.sock", "my-pack", 500, "/s", "ben@firm.example", may_approve=True)
    for event in installation.agent_of(agent).GATES:
        words = shlex.split(installation.command_of(agent, event, wanted, VERSION).partition(" || ")[0])
        options = parse(words[4:])
        assert options[:2] == (agent, event)
        assert options[2:6] == (wanted.endpoint, wanted.pack, wanted.deadline_ms, wanted.state)
        assert options[6:] == (wanted.principal, VERSION, False, True)


# ---------------------------------------------------------------- switches


def test_each_agent_gets_its_switches_that_block(tmp_path: Path) -> None:
    files = {agent: installed(agent, tmp_path / f"{agent}.json")["hooks"] for agent in AGENTS}
    (claude,) = files["claude"]["PreToolUse"]
    assert (claude["matcher"], claude["hooks"][0]["onFailure"]) == ("*", "block")
    assert "onFailure" not in files["claude"]["PostToolUse"][0]["hooks"][0]
    for event in ("beforeShellExecution", "beforeMCPExecution", "preToolUse"):
        assert files["cursor"][event][0]["failClosed"] is True
    assert "failClosed" not in files["cursor"]["afterShellExecution"][0]
    for agent, event in (("codex", "PreToolUse"), ("gemini", "BeforeTool")):
        assert files[agent][event][0]["hooks"][0]["command"].endswith("exit 2; }")
    assert files["copilot"]["preToolUse"][0]["bash"].endswith("exit 2; }")
    assert files["gemini"]["BeforeTool"][0]["hooks"][0]["timeout"] == 60_000
    assert files["codex"]["PreToolUse"][0]["hooks"][0]["timeout"] == 60


@pytest.mark.parametrize("agent", AGENTS)
def test_a_program_that_is_gone_blocks_at_gates_alone_and_nowhere_if_it_only_observes(
    agent: str, tmp_path: Path
) -> None:
    for observe in (False, True):
        for event, gates in installation.agent_of(agent).GATES.items():
            wanted = WANTED._replace(observe=observe)
            command = installation.command_of(agent, event, wanted, "", program=tmp_path / "gone.py")
            done = subprocess.run(["/bin/sh", "-c", command], input=b"{}", capture_output=True, check=False)
            blocked = gates and not observe
            assert done.returncode == (2 if blocked else 0)
            assert bool(done.stderr)


@pytest.mark.parametrize("agent", AGENTS)
def test_a_program_that_fails_without_a_text_blocks_with_one(agent: str, tmp_path: Path) -> None:
    program = put(tmp_path / "fails.py", "raise SystemExit(1)")
    for event, gates in installation.agent_of(agent).GATES.items():
        if gates:
            command = installation.command_of(agent, event, WANTED, "", program=program)
            done = subprocess.run(["/bin/sh", "-c", command], input=b"{}", capture_output=True, check=False)
            assert (done.returncode, done.stderr) == (
                2,
                b"thor-policy: the hook did not run. The call is blocked.\n",
            )


# ---------------------------------------------------------------- safety


def test_the_old_file_is_kept_beside_the_new_one(tmp_path: Path) -> None:
    path = put(tmp_path / "settings.json", OTHERS["claude"])
    path.chmod(0o640)
    backup = installation.apply(installation.install("claude", path, WANTED, VERSION), now=NOW)
    assert backup == tmp_path / "settings.json.20261129T100000Z.bak"
    assert json.loads(backup.read_text()) == OTHERS["claude"]
    assert path.stat().st_mode & 0o777 == backup.stat().st_mode & 0o777 == 0o640
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [path.name, backup.name]


def test_the_change_is_shown_as_a_diff(tmp_path: Path) -> None:
    path = put(tmp_path / "settings.json", json.dumps({"a": 1}, indent=2) + "\n")
    diff = installation.install("claude", path, WANTED, VERSION).diff()
    assert diff.startswith(f"--- {path}\n+++ {path}\n")
    assert '+  "hooks": {' in diff
    assert json.loads(path.read_text()) == {"a": 1}


@pytest.mark.parametrize("place", ["file", "folder"])
def test_a_symbolic_link_is_not_followed_and_its_end_is_named(tmp_path: Path, place: str) -> None:
    real = put(tmp_path / "real" / "settings.json", {"a": 1})
    path = tmp_path / "home" / ".claude" / "settings.json"
    if place == "file":
        path.parent.mkdir(parents=True)
        path.symlink_to(real)
    else:
        path.parent.parent.mkdir(parents=True)
        path.parent.symlink_to(real.parent)
    with pytest.raises(ConfigError, match=f"symbolic link to {real.parent}"):
        installation.install("claude", path, WANTED, VERSION)
    assert json.loads(real.read_text()) == {"a": 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("// comment\n{}", "not strict JSON"),
        ('{"a": 1, "a": 2}', "there twice"),
        ("[]", "not an object"),
        ('{"hooks": []}', "hooks is not an object"),
        ('{"hooks": {"PreToolUse": {}}}', "hooks.PreToolUse is not a list"),
        ('{"disableAllHooks": true}', "disableAllHooks is true"),
    ],
)
def test_a_file_that_cannot_be_merged_is_left_as_it_is(tmp_path: Path, text: str, reason: str) -> None:
    path = put(tmp_path / "settings.json", text)
    with pytest.raises(ConfigError, match=reason):
        installation.install("claude", path, WANTED, VERSION)
    assert path.read_text() == text


def test_a_pipe_in_the_place_of_the_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "settings.json")
    with pytest.raises(ConfigError, match="not a file"):
        installation.install("claude", tmp_path / "settings.json", WANTED, VERSION)


# ---------------------------------------------------------------- versions


@pytest.mark.parametrize(
    ("agent", "version"),
    [
        ("claude", "2.1.294"),
        ("codex", "codex-cli 0.123.9"),
        ("gemini", "0.25.2"),
        ("cursor", "2.3.9"),
        ("copilot", "0.0.9"),
    ],
)
def test_a_version_that_cannot_fail_closed_is_refused(agent: str, version: str) -> None:
    with pytest.raises(ConfigError, match="cannot fail closed"):
        installation.checked_version(agent, version)


@pytest.mark.parametrize(
    ("agent", "version"), [("claude", "2.1.295"), ("codex", "codex-cli 0.171.0"), ("cursor", "3.0.0")]
)
def test_a_version_that_can_is_returned(agent: str, version: str) -> None:
    assert installation.checked_version(agent, version) == version.rsplit(" ", 1)[-1]


def test_an_agent_that_does_not_give_its_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="--agent-version"):
        installation.checked_version("claude", None)


def test_the_program_of_the_agent_is_asked_for_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = put(tmp_path / "claude", "#!/bin/sh\necho '2.1.300 (Claude Code)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert installation.checked_version("claude", None) == "2.1.300"


# ---------------------------------------------------------------- status


def test_status_names_what_is_missing_or_was_changed(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    assert installation.status("claude", path) == installation.Found(path, False, ())
    content = installed("claude", path)
    del content["hooks"]["PermissionRequest"]
    content["hooks"]["PreToolUse"][0]["hooks"][0].pop("onFailure")
    content["hooks"]["PreToolUse"][0]["hooks"][0]["command"] = (
        content["hooks"]["PreToolUse"][0]["hooks"][0]["command"]
        .partition(" || ")[0]
        .replace(str(installation.ENTRY), "/gone/hook/entry.py")
    )
    put(path, content | {"disableAllHooks": True})
    assert installation.status("claude", path).problems == (
        "disableAllHooks is true, so no hook runs",
        "PreToolUse: /gone/hook/entry.py does not exist",
        "PreToolUse: the command does not block when the program fails: run install again",
        "PreToolUse: it differs from what install writes: run install again",
        "PermissionRequest is missing: run install again",
    )


def test_status_says_that_a_hook_only_observes(tmp_path: Path) -> None:
    path = tmp_path / "hooks.json"
    installed("cursor", path, WANTED._replace(observe=True))
    assert "failClosed" not in path.read_text()
    assert set(installation.status("cursor", path).problems) == {
        f"{event}: it only observes"
        for event, gates in installation.agent_of("cursor").GATES.items()
        if gates
    }
