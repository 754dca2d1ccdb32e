"""The question about a call, and what a reply means: only a plain allow is one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import hook_figures
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy.config import data_path
from thor_policy.core.requests import Evaluation
from thor_policy.hook import question, strict
from thor_policy.hook.agents import claude
from thor_policy.hook.calls import Call, Fault, printable
from thor_policy.hook.state import State
from thor_policy.policy import pack_files
from thor_policy.policy.pack import Pack
from thor_policy.protocol.requests import evaluation_of


def call_of(line: str) -> Call:
    call = claude.read(hook_figures.event_of(line), "")
    assert isinstance(call, Call)
    return call


def asked_about(call: Call, **members: Any) -> dict[str, Any]:
    given_members: dict[str, Any] = {
        "agent": "claude",
        "task": hook_figures.TASK,
        "version": "2.1.300",
        "workspace": hook_figures.WORKSPACE,
        "observe": False,
        "transcript": None,
        "approval": "",
        "principal": "",
    }
    return question.question_of(call, **(given_members | members))


@pytest.fixture(scope="module")
def pack() -> Pack:
    return pack_files.load(data_path("prompts") / "agent-tools")


def test_every_other_labelled_command_line_has_the_outcome_that_the_pack_gives_it(pack: Pack) -> None:
    lines = [line for _, line in hook_figures.labelled()]
    assert len(lines) >= 700
    for line in lines[::2]:  # scripts/hook-figures asks about all, through the program
        evaluation: Evaluation = evaluation_of(asked_about(call_of(line)), "request")
        assert pack.book.apply(evaluation, 1_782_907_200.0).outcome == hook_figures.straight(pack, line), line


def test_a_sample_of_the_lines_has_the_same_outcome_through_the_program(
    gate: Any, tmp_path: Path, pack: Pack
) -> None:

    state = str(tmp_path / "state")
    State(state).keep_prompt(hook_figures.SESSION, hook_figures.TASK)
    State(state).keep_root(hook_figures.SESSION, hook_figures.WORKSPACE)
    for _, line in list(hook_figures.labelled())[::66]:
        through = hook_figures.through_the_hook(line, gate.endpoint, state)
        assert through == hook_figures.straight(pack, line), line


def test_the_question_holds_the_users_text_and_the_call_and_what_is_recorded_of_it() -> None:
    call = call_of("ls")._replace(shown={"-n": True}, version="")
    context = asked_about(call, approval="t1", observe=True, transcript={"bytes": 3})["context"]
    assert context == {
        "task": hook_figures.TASK,
        "origin": "principal",
        "workspace": hook_figures.WORKSPACE,
        "approval": {"id": "t1"},
        "hook": {
            "agent": "claude",
            "agent_version": "2.1.300",
            "session": "figures",
            "tool_use_id": call.use,
            "event": "PreToolUse",
            "tool": "Bash",
            "observe": True,
            "shown": {"-n": True},
            "transcript": {"bytes": 3},
        },
    }


def test_the_users_text_is_bounded() -> None:
    assert len(asked_about(call_of("ls"), task="x" * 9_000)["context"]["task"]) == 2_000


# ---------------------------------------------------------------- folders


def test_the_workspace_is_the_folder_of_the_call_inside_the_project(tmp_path: Path) -> None:
    (tmp_path / "project" / "src").mkdir(parents=True)
    project, src = str(tmp_path / "project"), str(tmp_path / "project" / "src")
    assert question.workspace_of(project, (project,)) == project
    assert question.workspace_of(src, (project,)) == src
    assert question.workspace_of(src, ()) == question.workspace_of(src, ("",)) == ""


@pytest.mark.parametrize("place", ["..", ".git", ".git/hooks", "out", "../project2", "relative"])
def test_no_workspace_is_claimed_outside_the_project_or_in_a_hidden_folder(
    tmp_path: Path, place: str
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "out").symlink_to(tmp_path)
    cwd = place if place == "relative" else f"{project}/{place}"
    assert question.workspace_of(cwd, (str(project),)) == ""


def test_the_digest_of_a_transcript_covers_its_end(tmp_path: Path) -> None:
    path = tmp_path / "transcript.jsonl"
    path.write_bytes(b"a" * 300_000)
    end = hashlib.sha256(b"a" * question.TRANSCRIPT_BYTES).hexdigest()
    digest = question.transcript_of(str(path))
    assert digest == {"bytes": 300_000, "from": 300_000 - question.TRANSCRIPT_BYTES, "sha256": end}
    assert question.transcript_of("") is None
    assert question.transcript_of(str(tmp_path / "none")) is None
    assert question.transcript_of(str(tmp_path)) is None


def test_the_key_of_a_call_is_the_same_before_and_after_it() -> None:
    before = claude.read(hook_figures.event_of("ls"), "")
    after = claude.read(
        hook_figures.event_of("ls") | {"hook_event_name": "PostToolUse", "tool_response": "x"}, ""
    )
    assert isinstance(before, Call)
    assert question.key_of_call(before) == question.key_of_result(after)  # type: ignore[arg-type]
    assert question.key_of_call(call_of("ls")) != question.key_of_call(call_of("pwd"))


# ---------------------------------------------------------------- replies

ALLOW = {"v": 1, "id": "h", "decision": True, "context": {"decision_id": "d", "outcome": "allow"}}
ACCESS = {"evaluation_id": "d", "template": {"approvers": [["manager", "security"], ["on-call"]]}}
CONFIRM = [{"id": "confirm", "properties": {"kind": "confirmation"}}]


def verdict(*, can_ask: bool = True, task: str = "", **context: Any) -> tuple[str, str]:
    reply = {
        "decision": context.pop("decision", False),
        "context": {"decision_id": "d", "outcome": "o"} | context,
    }
    made = question.verdict_of(question.Decision(reply), can_ask=can_ask, task=task)
    return made.kind, made.reason


def test_an_allow_is_an_allow() -> None:
    assert question.verdict_of(question.Decision(ALLOW), can_ask=True).kind == "allow"


@pytest.mark.parametrize("decision", ["true", 1, None, [], "allow"])
def test_what_is_not_a_truth_value_is_no_decision(decision: Any) -> None:
    with pytest.raises(Fault, match="no decision"):
        question.Decision(ALLOW | {"decision": decision})


@pytest.mark.parametrize(
    "context", [None, [], {}, {"decision_id": "d"}, {"decision_id": 3, "outcome": "allow"}]
)
def test_a_decision_without_a_name_is_a_fault(context: Any) -> None:
    with pytest.raises(Fault):
        question.Decision(ALLOW | {"context": context})


def test_what_the_person_may_confirm_is_asked_or_denied_with_the_way() -> None:
    assert verdict(obligations=CONFIRM)[0] == "ask"
    kind, reason = verdict(obligations=CONFIRM, can_ask=False)
    assert kind == "deny"
    assert "confirmation" in reason


def test_what_others_have_to_approve_is_never_asked_at_the_agent() -> None:
    kind, reason = verdict(obligations=CONFIRM, access_request=ACCESS, task="t1")
    assert kind == "deny"
    assert "Approval t1 is requested from manager and security or on-call" in reason
    assert "thorpolicy approvals show t1" in reason
    assert "thorpolicy approvals request d" in verdict(access_request=ACCESS)[1]


@pytest.mark.parametrize(
    "obligations",
    [
        [],
        None,
        "x",
        [{}],
        [{"id": "confirm"}],
        [*CONFIRM, {"properties": {"kind": "mfa"}}],
        [{"properties": []}],
    ],
)
def test_other_obligations_are_a_denial(obligations: Any) -> None:
    assert verdict(obligations=obligations)[0] == "deny"


def test_a_reason_names_clauses_and_decision_and_prints_no_control_character() -> None:
    kind, reason = verdict(reasoning="No.\x1b[31m\nx\u202e", clauses=["R1", 3, "R2"], reason_code="doubt")
    assert kind == "deny"
    assert reason == "thor-policy: No.\ufffd[31m x\ufffd [R1, R2; reason code doubt; decision d]"


@given(st.text())
def test_a_printed_text_is_one_line_of_signs_that_a_terminal_does_not_act_on(text: str) -> None:
    shown = printable(text, 40)
    assert shown.isprintable()
    assert len(shown) <= 40


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", "strict JSON"),
        (b"\xff", "UTF-8"),
        (b"[]", "not an object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"v": 1, "id": "h", "decision": true, "decision": false}', "there twice"),
        (b'{"v": 1, "id": "h", "x": NaN}', "no number"),
        (b'{"v": 1, "id": "h", "x": 1e999}', "out of range"),
        (b'{"v": 1, "id": "other"}', "another request"),
        (b'{"v": 2, "id": "h"}', "another protocol version"),
        (b'{"v": 1, "id": "h", "error": {"code": "busy", "message": "later"}}', "busy: later"),
        (b'{"v": 1, "id": "h", "error": 7}', "refused"),
    ],
)
def test_a_frame_that_is_no_reply_is_a_fault(frame: bytes, reason: str) -> None:
    with pytest.raises(Fault, match=reason):
        question.reply_of(frame, "h")


def test_the_key_of_a_value_does_not_depend_on_the_order_of_members() -> None:
    assert strict.key_of({"a": 1, "b": [2]}) == strict.key_of({"b": [2], "a": 1})
