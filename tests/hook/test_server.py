"""Hooks over HTTP: an answer that blocks whatever fails, and nothing without the token."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from thor_policy.config import Config
from thor_policy.core.errors import ConfigError
from thor_policy.hook import server
from thor_policy.hook.main import MAX_EVENT_BYTES, Options

TOKEN = "t" * 32
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
CALL = {
    "session_id": "s",
    "cwd": "/srv/project",
    "hook_event_name": "PreToolUse",
    "tool_name": "Bash",
    "tool_input": {"command": "ls"},
    "tool_use_id": "toolu_1",
}


@contextmanager
def served(options: Options) -> Iterator[str]:
    """The application behind uvicorn, as `serve` runs it."""
    config = uvicorn.Config(server.app(options, TOKEN), port=0, log_level="error", lifespan="off")
    running = uvicorn.Server(config)
    with config.bind_socket() as opened:
        thread = threading.Thread(target=running.run, args=([opened],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{opened.getsockname()[1]}/v1/hooks/claude"
        finally:
            running.should_exit = True
            thread.join()


@pytest.fixture
def url(gate: Config, tmp_path: Path) -> Iterator[str]:
    options = Options(agent="claude", endpoint=gate.endpoint, state=str(tmp_path / "state"))
    with served(options) as address:
        yield address


def decision_in(reply: httpx.Response) -> tuple[str, str]:
    assert reply.status_code == 200
    fields: dict[str, Any] = reply.json().get("hookSpecificOutput", {})
    return fields.get("permissionDecision", ""), fields.get("permissionDecisionReason", "")


def test_a_call_is_answered_as_by_the_program(url: str) -> None:
    prompt = {"session_id": "s", "hook_event_name": "UserPromptSubmit", "prompt": "x", "cwd": CALL["cwd"]}
    with httpx.Client(headers=HEADERS) as client:
        assert client.post(url, json=prompt).json() == {}
        assert client.post(url, json=CALL | {"tool_input": {"command": "pytest -q"}}).json() == {}
        assert decision_in(client.post(url, json=CALL | {"tool_input": {"command": "git push"}}))[0] == "ask"
        denied = client.post(url, json=CALL | {"tool_input": {"command": "sudo rm -rf /"}})
        assert decision_in(denied)[0] == "deny"
        ended = CALL | {"hook_event_name": "PostToolUse", "tool_response": "x"}
        assert client.post(url, json=ended).json() == {}


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xff"]
)
def test_a_request_without_the_token_is_refused(url: str, value: str) -> None:
    reply = httpx.post(url, json=CALL, headers={"Authorization": value.encode("latin-1")})
    assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff", b"[]", b"[" * 100_000, b'{"hook_event_name": "X"}'])
def test_a_body_that_is_no_event_is_a_denial(url: str, body: bytes) -> None:
    with httpx.Client(headers=HEADERS) as client:
        kind, reason = decision_in(client.post(url, content=body))
    assert kind == "deny"
    assert "thor-policy: event" in reason


def test_without_a_daemon_the_call_is_denied(tmp_path: Path) -> None:
    options = Options(agent="claude", endpoint="ipc:///nobody.sock", state=str(tmp_path / "state"))
    with served(options) as address:
        kind, reason = decision_in(httpx.post(address, json=CALL, headers=HEADERS))
    assert kind == "deny"
    assert "no daemon listens" in reason


def test_a_giant_body_is_denied_before_it_is_read_whole(url: str) -> None:
    def body() -> Iterator[bytes]:
        for _ in range(MAX_EVENT_BYTES // (1 << 20) + 2):
            yield b" " * (1 << 20)

    reply = httpx.post(url, content=body(), headers=HEADERS, timeout=60)
    assert "more than" in reply.text


def test_other_methods_and_places_are_no_hooks(url: str) -> None:
    assert httpx.get(url, headers=HEADERS).status_code == 405
    assert httpx.post(url.replace("claude", "codex"), json=CALL, headers=HEADERS).status_code == 404


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "example.org", "::"])  # noqa: S104
def test_an_address_that_others_reach_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="loopback only"):
        server.serve(Options(agent="claude"), TOKEN, host, 8765)


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [("short", 0o600, "at least 24"), (TOKEN, 0o644, "chmod 600"), (f"a {TOKEN}", 0o600, "no blank")],
)
def test_a_token_that_others_may_know_is_refused(
    tmp_path: Path, content: str, mode: int, reason: str
) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=reason):
        server.token_in(path)


def test_a_token_is_read_without_its_line_end(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    assert server.token_in(path) == TOKEN
