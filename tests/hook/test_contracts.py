"""Recorded events of each agent, and exactly what the program prints for them: output, errors, exit status.

The program runs as a child process, and a daemon with the pack agent-tools decides. Each file of
tests/data/hook has the event, the options, and what must be printed; the id of a decision is `ID` there.
"""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hook.conftest import Hook
from thor_policy.config import Config
from thor_policy.hook.calls import Call, Fault, Prompt, Result, Silent, Verdict, digest
from thor_policy.hook.main import AGENTS
from thor_policy.hook.state import State
from thor_policy.hook.tools import MAX_ID_CHARS

CASES = sorted((Path(__file__).resolve().parents[1] / "data" / "hook").glob("*/*.json"))
TASK = "Fix the rounding bug in the cart."
#: The members that name a session.
SESSIONS = ("session_id", "conversation_id", "sessionId")
_ID = re.compile(r"decision [0-9a-f-]{36}")


def case_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_an_event_gets_exactly_the_recorded_answer(
    path: Path, gate: Config, tmp_path: Path, hook: Hook
) -> None:
    case = case_of(path)
    state = State(str(tmp_path / "state"))
    for member in SESSIONS:
        session = str(case["given"].get(member))
        state.keep_prompt(session, TASK)
        state.keep_root(session, "/srv/project")
    options = [*(["--event", case["event"]] if case["event"] else []), *case["flags"]]
    ran = hook(path.parent.name, case["given"], *options)
    printed = (_ID.sub("decision ID", ran.stdout), _ID.sub("decision ID", ran.stderr), ran.status)
    assert printed == (case["stdout"], case["stderr"], case["status"])


def test_every_agent_has_events_of_each_kind() -> None:
    for agent in AGENTS:
        stems = {path.stem for path in CASES if path.parent.name == agent}
        assert {"prompt", "unknown-event"} <= stems
        assert len(stems) >= 10


@pytest.mark.parametrize("agent", AGENTS)
def test_no_answer_approves_a_call_by_default(agent: str) -> None:
    for path in CASES:
        case = case_of(path)
        if path.parent.name == agent and "--may-approve" not in case["flags"]:
            assert '"permissionDecision": "allow"' not in case["stdout"]
            assert '"behavior": "allow"' not in case["stdout"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("agent", AGENTS)
@given(data=st.data())
def test_an_event_of_any_form_is_read_or_is_a_fault(agent: str, data: st.DataObject) -> None:
    module = import_module(f"thor_policy.hook.agents.{agent}")
    event = dict(
        case_of(data.draw(st.sampled_from([case for case in CASES if case.parent.name == agent])))["given"]
    )
    for name in data.draw(st.lists(st.sampled_from(sorted(event)), max_size=3)):
        if data.draw(st.booleans()):
            event.pop(name, None)
        else:
            event[name] = data.draw(JSON)
    try:
        read = module.read(event, data.draw(st.sampled_from(["", *module.GATES, "other"])))
    except Fault:
        return
    assert isinstance(read, Call | Prompt | Result | Silent)
    if isinstance(read, Call):
        assert module.GATES[read.event] or read.event in module.GATES
        assert len(read.resource[1]) <= MAX_ID_CHARS
        assert read.session


@pytest.mark.parametrize("agent", AGENTS)
def test_a_fault_at_a_gate_has_a_reason_and_a_status_that_blocks(agent: str) -> None:
    module = import_module(f"thor_policy.hook.agents.{agent}")
    for event, gates in module.GATES.items():
        if gates:
            output = module.answer(event, Verdict("fault", "why"), may_approve=True)
            assert (output.status, output.stderr) == (2, "why")


@pytest.mark.parametrize("agent", ["codex", "gemini"])
def test_an_agent_that_cannot_ask_is_never_answered_with_a_question(agent: str) -> None:
    module = import_module(f"thor_policy.hook.agents.{agent}")
    event = "PreToolUse" if agent == "codex" else "BeforeTool"
    assert module.answer(event, Verdict("ask", "why")) == module.answer(event, Verdict("deny", "why"))


def test_the_long_text_of_a_file_goes_into_the_question_as_its_beginning_and_its_digest() -> None:
    text = "x = 1\n" * 4_000
    module = import_module("thor_policy.hook.agents.claude")
    event = case_of(next(path for path in CASES if path.stem == "pre-write-long"))["given"]
    shortened = module.read(event, "").arguments["content"]
    assert shortened.startswith(text[:600])
    assert shortened.endswith(f".. [24000 characters, sha256 {digest(text)}]")


def test_a_command_is_never_shortened() -> None:
    module = import_module("thor_policy.hook.agents.claude")
    event = case_of(next(path for path in CASES if path.stem == "pre-deny" and path.parent.name == "claude"))[
        "given"
    ]
    command = "echo " + "x" * 9_000
    assert module.read({**event, "tool_input": {"command": command}}, "").arguments["command"] == command
