"""One run of the hook: options, deadline, signals, outcomes, approvals, and what the program imports."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hook.conftest import Hook, start
from thor_policy.client.blocking import Client
from thor_policy.config import Config, data_path
from thor_policy.core import records
from thor_policy.daemon.service import serving
from thor_policy.hook import main
from thor_policy.hook.calls import Fault, Output
from thor_policy.hook.installation import ENTRY
from thor_policy.hook.state import State
from thor_policy.journal.reader import Reader
from thor_policy.security.curve_keys import Keys
from thor_policy.testing import load_stub_engine

CWD = "/srv/project"
HOME = {"HOME": "/nonexistent"}


def call(command: str = "ls", use: str = "toolu_1", **members: Any) -> dict[str, Any]:
    return {
        "session_id": "s",
        "cwd": CWD,
        "hook_event_name": "PreToolUse",
        "tool_name": "Bash",
        "tool_input": {"command": command},
        "tool_use_id": use,
    } | members


def ended(command: str = "ls", use: str = "toolu_1", **members: Any) -> dict[str, Any]:
    response = {"tool_response": {"stdout": "a\x1b[31m\nb", "is_error": False}}
    return call(command, use, hook_event_name="PostToolUse") | response | members


PROMPT = {
    "hook_event_name": "UserPromptSubmit",
    "session_id": "s",
    "prompt": "List the files.",
    "cwd": CWD,
}


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "--agent must be one of"),
        (["--agent", "emacs"], "--agent must be one of"),
        (["--agent"], "--agent needs a value"),
        (["--agent", "claude", "--agent=codex"], "--agent is given twice"),
        (["--agent", "claude", "--unknown"], "--unknown is no option"),
        (["--agent", "claude", "--observe=yes"], "--observe is no option"),
        (["--agent", "claude", "--deadline-ms", "0"], "from 50 to 20000"),
        (["--agent", "claude", "--deadline-ms", "1e3"], "from 50 to 20000"),
        (["--agent", "claude", "--deadline-ms", "\u0665\u0660\u0660"], "from 50 to 20000"),
        (["--agent", "claude", "\x1b[31m"], "\ufffd[31m is no option"),
    ],
)
def test_a_wrong_option_blocks_and_names_the_cure(arguments: list[str], reason: str) -> None:
    ran = start(arguments, call())
    assert (ran.stdout, ran.status) == ("", 2)
    assert reason in ran.stderr


@pytest.mark.parametrize(
    ("endpoint", "environ", "path"),
    [
        ("ipc:///run/a.sock", {}, "/run/a.sock"),
        ("", {"THOR_POLICY_ENDPOINT": "ipc:///run/b.sock"}, "/run/b.sock"),
        ("", {"XDG_RUNTIME_DIR": "/run/user/7"}, "/run/user/7/thor-policy/policy.sock"),
    ],
)
def test_the_socket_is_that_of_the_option_then_of_the_environment(
    endpoint: str, environ: dict[str, str], path: str
) -> None:
    assert main.socket_of(endpoint, environ) == path


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:1", "ipc://relative", "ipc:///" + "x" * 120, "/a", ""])
def test_an_endpoint_that_is_no_socket_of_this_machine_is_a_fault(endpoint: str) -> None:
    with pytest.raises(Fault, match="endpoint"):
        main.socket_of(endpoint, {})


def test_the_program_imports_the_standard_library_and_the_hook_alone(tmp_path: Path) -> None:
    program = (
        f"import sys; sys.path.append({str(ENTRY.parents[2])!r})\n"
        "import thor_policy.hook.main, thor_policy.hook.agents.claude\n"
        "print('\\n'.join(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True
    )
    modules = set(done.stdout.split())
    ours = {name for name in modules if name.startswith("thor_policy.")}
    assert {name.split(".")[1] for name in ours} == {"hook"}
    assert (
        modules & {"zmq", "msgspec", "click", "numpy", "asyncio", "hashlib", "pathlib", "subprocess"} == set()
    )
    assert {name.partition(".")[0] for name in modules} - {
        "thor_policy",
        "__main__",
    } <= sys.stdlib_module_names


# ---------------------------------------------------------------- faults


def waiting(tmp_path: Path, *options: str) -> subprocess.Popen[bytes]:
    """A run that waits for the end of its input."""
    command = [sys.executable, "-I", "-S", str(ENTRY), "--agent", "claude", "--event", "PreToolUse", *options]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=HOME
    )


def test_an_input_that_never_ends_blocks_at_the_deadline(tmp_path: Path) -> None:
    with waiting(tmp_path, "--deadline-ms", "300") as process:
        assert process.wait(timeout=60) == 2
        assert process.stderr is not None
        assert b"the deadline passed" in process.stderr.read()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_blocks(tmp_path: Path, number: signal.Signals) -> None:
    with waiting(tmp_path) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        # The end of a small pipe: the program has read what fills it, so its handlers are in place.
        process.stdin.write(b" " * (2 << 20))
        process.stdin.flush()
        process.send_signal(number)
        assert process.wait(timeout=60) == 2
        assert f"signal {int(number)}".encode() in process.stderr.read()


def test_an_answer_that_cannot_be_printed_ends_with_the_blocking_status(gate: Config, tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    options = ["--agent", "codex", "--endpoint", gate.endpoint, "--state", state]
    command = [sys.executable, "-I", "-S", str(ENTRY), *options]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command,
            input=json.dumps(call()).encode(),
            stdout=full,
            stderr=subprocess.PIPE,
            env=HOME,
            check=False,
        )
    assert done.returncode == 2
    assert b"could not be printed" in done.stderr


def test_an_answer_that_nobody_reads_ends_with_the_blocking_status(gate: Config, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-I", "-S", str(ENTRY), "--agent", "codex", "--endpoint", gate.endpoint]
    done = subprocess.run(
        [*command, "--state", str(tmp_path / "state")],
        input=json.dumps(call()).encode(),
        stdout=writing,
        stderr=writing,
        env=HOME,
        check=False,
    )
    os.close(writing)
    assert done.returncode == 2


def test_memory_that_runs_out_blocks_in_the_agents_form(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (48 << 20, 48 << 20))

    event = call(x=[0] * 3_900_000)
    command = [sys.executable, "-I", "-S", str(ENTRY), "--agent", "cursor", "--event", "preToolUse"]
    data = json.dumps(event, separators=(",", ":")).encode()
    done = subprocess.run(command, input=data, capture_output=True, preexec_fn=limit, env=HOME, check=False)
    assert done.returncode == 2
    assert json.loads(done.stdout)["permission"] == "deny"
    assert b"unexpected error: MemoryError" in done.stderr


def test_a_package_that_cannot_be_imported_blocks(tmp_path: Path) -> None:
    copy = tmp_path / "thor_policy" / "hook" / "entry.py"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(ENTRY.read_bytes())
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(copy), "--agent", "claude"],
        input=b"{}",
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert b"the hook cannot start" in done.stderr


def test_a_command_beyond_the_limit_of_a_text_is_blocked_and_the_limit_is_named(hook: Hook) -> None:
    ran = hook("claude", call("echo " + "x" * 5_000))
    assert ran.status == 2
    assert "too_large" in ran.stderr
    assert "4096" in ran.stderr


def test_a_pack_that_is_not_resident_blocks(hook: Hook) -> None:
    ran = hook("claude", call(), "--pack", "no-such-pack")
    assert ran.status == 2
    assert "not_found" in ran.stderr


# ---------------------------------------------------------------- what is recorded


def newest(config: Config) -> dict[str, Any]:
    with Reader(config.journal_path) as reader:
        return reader.decisions(limit=1)[0]


def test_the_outcome_of_a_call_is_recorded_on_its_decision(gate: Config, hook: Hook) -> None:
    hook("claude", PROMPT)
    assert hook("claude", call("pytest -q", "toolu_7")).stdout == ""
    decision = newest(gate)
    assert (decision["decision"], decision["situation"]["context"]["hook"]["tool_use_id"]) == (
        "allow",
        "toolu_7",
    )
    assert decision["situation"]["context"]["task"] == "List the files."
    assert hook("claude", ended("pytest -q", "toolu_7")).status == 0
    with Reader(gate.journal_path) as reader:
        (outcome,) = reader.trace(decision["decision_id"])["outcomes"]
    assert outcome["status"] == "SUCCESS"
    assert outcome["note"] == 'the tool printed "{"stdout": "a\\u001b[31m\\nb", "is_error": false}"'


def test_a_folder_that_the_agent_chose_is_not_the_workspace(gate: Config, hook: Hook) -> None:
    hook("codex", PROMPT)
    for cwd, outcome in ((CWD, "allow"), (f"{CWD}/src", "allow"), ("/srv/other", "require_confirmation")):
        hook("codex", call("pytest -q", "call_1", cwd=cwd))
        assert newest(gate)["decision"] == outcome
    hook("codex", PROMPT | {"cwd": "/srv/other"})
    hook("codex", call("pytest -q", "call_1", cwd="/srv/other"))
    assert newest(gate)["decision"] == "require_confirmation", "the first folder of a session counts"


def test_calls_of_a_session_at_the_same_time_each_get_their_outcome(gate: Config, hook: Hook) -> None:
    hook("claude", PROMPT)
    ids = {}
    for use in ("toolu_a", "toolu_b"):
        hook("claude", call("pytest -q", use))
        ids[use] = newest(gate)["decision_id"]
    hook("claude", ended("pytest -q", "toolu_b", hook_event_name="PostToolUseFailure"))
    hook("claude", ended("pytest -q", "toolu_a"))
    with Reader(gate.journal_path) as reader:
        recorded = {use: reader.trace(decision)["outcomes"][0]["status"] for use, decision in ids.items()}
    assert recorded == {"toolu_a": "SUCCESS", "toolu_b": "FAILURE"}


def test_a_denied_call_waits_for_no_outcome(hook: Hook, tmp_path: Path) -> None:
    hook("claude", call("sudo rm -rf /"))
    assert [path for path in (tmp_path / "state").iterdir() if path.name.startswith("d-")] == []


def test_an_outcome_that_cannot_be_recorded_is_counted_and_blocks_nothing(hook: Hook, tmp_path: Path) -> None:
    state = State(str(tmp_path / "state"))
    hook("claude", call("pytest -q", "toolu_9"))
    ran = start(
        ["--agent", "claude", "--endpoint", "ipc:///nobody.sock", "--state", str(tmp_path / "state")],
        ended("pytest -q", "toolu_9"),
    )
    assert (ran.stdout, ran.status) == ("", 0)
    assert "this was not recorded" in ran.stderr
    assert state.losses() == 1


def test_observing_lets_every_call_pass_and_records_what_would_have_been_answered(
    gate: Config, hook: Hook
) -> None:
    ran = hook("claude", call("sudo rm -rf /"), "--observe")
    assert (ran.stdout, ran.stderr, ran.status) == ("", "", 0)
    decision = newest(gate)
    assert decision["decision"] == "deny"
    assert decision["situation"]["context"]["hook"]["observe"] is True


def test_observing_blocks_nothing_when_the_daemon_is_gone_and_counts_the_loss(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    options = ["--agent", "cursor", "--endpoint", "ipc:///nobody.sock", "--state", state, "--observe"]
    given = {
        "conversation_id": "c",
        "hook_event_name": "beforeShellExecution",
        "command": "ls",
        "cwd": CWD,
    }
    ran = start(options, given)
    assert (json.loads(ran.stdout), ran.status) == ({"permission": "allow"}, 0)
    assert State(state).losses() == 1


# ---------------------------------------------------------------- approvals

PACK = {
    "pack.yaml": """name: lifted
version: "1"
description: Commands that a manager lifts.
model: never
outcomes:
  - {label: allow}
  - label: ask_manager
    obligations: [{id: approval, type: custom, properties: {kind: approval}}]
    lifted_by: {steps: [{role: manager}]}
  - {label: deny}
default: ask_manager
""",
    "clauses.yaml": "R1: A manager approves what is not known.\n",
    "rules.yaml": "- {id: no, when: action.name == 'x', outcome: deny, clause: R1, because: No.}\n",
}


@pytest.fixture
def with_manager(short_dir: Path, tcp_endpoint: str) -> Iterator[tuple[Config, Path]]:
    """A daemon whose pack a manager lifts, and the key of that manager."""
    folder = short_dir / "lifted"
    folder.mkdir()
    for name, text in PACK.items():
        (folder / name).write_text(text)
    key = Keys(short_dir / "keys").new("kim", ("approve",), time.time())
    config = Config(
        state_dir=short_dir,
        endpoint=f"ipc://{short_dir}/policy.sock",
        tcp_endpoint=tcp_endpoint,
        pack=str(folder),
        people=("key:kim=kim;manager",),
    )
    with serving(config, load_engine=load_stub_engine):
        yield config, key


def test_what_others_approve_is_requested_at_one_time_and_the_same_call_then_passes_at_one_time(
    with_manager: tuple[Config, Path], tmp_path: Path
) -> None:
    config, key = with_manager
    options = ["--agent", "claude", "--endpoint", config.endpoint, "--pack", "lifted"]
    options += ["--state", str(tmp_path / "state")]

    def answer(use: str) -> dict[str, str]:
        ran = start(options, call("make deploy", use))
        assert ran.status == 0, ran
        printed: dict[str, Any] = json.loads(ran.stdout or "{}")
        fields: dict[str, str] = printed.get("hookSpecificOutput", {})
        return fields

    denied = answer("toolu_1")
    assert denied["permissionDecision"] == "deny"
    reason = denied["permissionDecisionReason"]
    task = reason.partition("Approval ")[2].partition(" ")[0]
    assert f"requested from manager: `thorpolicy approvals show {task}`" in reason
    again = answer("toolu_2")
    assert task in again["permissionDecisionReason"], "the same task is waited for"
    with Client(config.tcp_endpoint, key=key) as manager:
        assert len(manager.approvals()) == 1
        assert manager.change_approval(records.Approve(task=task))["status"] == "approved"
    assert answer("toolu_3") == {}, "the approval lifts the outcome"
    after = answer("toolu_4")
    assert after["permissionDecision"] == "deny"
    assert task not in after["permissionDecisionReason"], "an approval counts at most one time"


@pytest.mark.soak
@pytest.mark.model
def test_the_135m_model_decides_a_call_through_the_program(short_dir: Path) -> None:
    pack = short_dir / "agent-tools"
    shutil.copytree(data_path("prompts") / "agent-tools", pack)
    manifest = (pack / "pack.yaml").read_text()
    (pack / "pack.yaml").write_text(re.sub(r"(?m)^(model: never|default: .*)\n", "", manifest))
    endpoint = f"ipc://{short_dir}/policy.sock"
    config = Config(state_dir=short_dir / "d", endpoint=endpoint, pack=str(pack), threads=1)
    config.state_dir.mkdir()
    with serving(config):
        options = ["--agent", "claude", "--endpoint", endpoint, "--state", str(short_dir / "state")]
        ran = start([*options, "--deadline-ms", "20000"], call("git push origin main"))
    assert ran.status == 0, ran
    decision = newest(config)
    assert (decision["tier"], decision["floor"]) == ("model", "require_confirmation")
    fields = json.loads(ran.stdout)["hookSpecificOutput"]
    assert fields["permissionDecision"] == ("deny" if decision["decision"] == "deny" else "ask")


# ---------------------------------------------------------------- the trace of the agent


@pytest.mark.parametrize(
    ("given", "recorded"),
    [
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", True),
        ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", False),
        ("nonsense", False),
    ],
)
def test_a_well_formed_traceparent_of_the_environment_is_recorded(
    gate: Config, tmp_path: Path, given: str, recorded: bool
) -> None:
    options = ["--agent", "claude", "--endpoint", gate.endpoint, "--state", str(tmp_path / "state")]
    ran = start(options, call(use=f"toolu_{given[-4:]}{recorded}"), HOME | {"TRACEPARENT": given})
    assert ran.status == 0, ran.stderr
    with Reader(gate.journal_path) as reader:
        (newest,) = reader.decisions(limit=1)
    assert (f"traceparent:{given}" in newest["tags"]) is recorded


# ---------------------------------------------------------------- bounds of calls that never end


def gemini(event: str, command: str = "pytest -q", **members: Any) -> bytes:
    """An event of an agent that gives its calls no ids: equal calls have one key."""
    return json.dumps(
        {
            "hook_event_name": event,
            "session_id": "s",
            "cwd": CWD,
            "tool_name": "run_shell_command",
            "tool_input": {"command": command},
        }
        | members
    ).encode()


@pytest.fixture
def hooked(gate: Config, tmp_path: Path) -> Callable[[bytes], Output]:
    """A run of the hook in this process, which costs no start of a program."""
    options = main.Options("gemini", endpoint=gate.endpoint, state=str(tmp_path / "state"))

    def run(data: bytes) -> Output:
        return main.Run(options, {}, time.monotonic() + 60).output(data)

    run(gemini("BeforeAgent", prompt="Run the tests."))
    return run


def outcomes_of(config: Config, decision_id: str) -> list[str]:
    with Reader(config.journal_path) as reader:
        return [outcome["status"] for outcome in reader.trace(decision_id)["outcomes"]]


def test_seventy_equal_calls_that_never_end_block_no_later_one(
    gate: Config, hooked: Callable[[bytes], Output], tmp_path: Path
) -> None:
    for _ in range(70):
        assert hooked(gemini("BeforeTool")) == Output("{}")
    last = newest(gate)["decision_id"]
    assert hooked(gemini("AfterTool", tool_response={"llmContent": "done"})) == Output("{}")
    assert outcomes_of(gate, last) == ["SUCCESS"]
    assert State(str(tmp_path / "state")).losses() == 64


def test_the_outcome_of_a_call_is_not_recorded_on_the_one_that_was_broken_off(
    gate: Config, hooked: Callable[[bytes], Output]
) -> None:
    hooked(gemini("BeforeTool"))
    broken_off = newest(gate)["decision_id"]
    hooked(gemini("BeforeTool"))
    ran = newest(gate)["decision_id"]
    hooked(gemini("AfterTool", tool_response={"error": "exit status 1"}))
    assert (outcomes_of(gate, broken_off), outcomes_of(gate, ran)) == ([], ["FAILURE"])


def test_ends_without_a_beginning_and_ends_that_come_twice_record_nothing_more(
    gate: Config, hooked: Callable[[bytes], Output], tmp_path: Path
) -> None:
    hooked(gemini("AfterTool", "cargo test", tool_response={}))
    hooked(gemini("BeforeTool", "cargo test"))
    decision = newest(gate)["decision_id"]
    for _ in range(3):
        assert hooked(gemini("AfterTool", "cargo test", tool_response={})) == Output("{}")
    assert outcomes_of(gate, decision) == ["SUCCESS"]
    assert State(str(tmp_path / "state")).losses() == 0


def test_sessions_take_no_outcome_of_each_other(gate: Config, hooked: Callable[[bytes], Output]) -> None:
    decisions = {}
    for number in range(8):
        hooked(gemini("BeforeAgent", session_id=f"s{number}", prompt="Run the tests."))
        hooked(gemini("BeforeTool", session_id=f"s{number}"))
        decisions[number] = newest(gate)["decision_id"]
    hooked(gemini("AfterTool", session_id="s5", tool_response={}))
    assert [number for number, decision in decisions.items() if outcomes_of(gate, decision)] == [5]


def test_a_clock_that_steps_leaves_the_workspace_where_the_session_began(
    gate: Config, hooked: Callable[[bytes], Output], tmp_path: Path
) -> None:
    for days in (-20, 20, 0):
        at = time.time() + days * 86_400
        for path in (tmp_path / "state").iterdir():
            os.utime(path, (at, at))
        hooked(gemini("BeforeAgent", prompt="Go on.", cwd="/srv/other"))
        hooked(gemini("BeforeTool", cwd="/srv/other"))
        assert newest(gate)["decision"] == "require_confirmation", days
        hooked(gemini("BeforeTool"))
        assert newest(gate)["decision"] == "allow", days
