"""The daemon as tools of an agent: the official client lists and calls every tool, over stdio and HTTP."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import httpx2
import pytest
from click.testing import CliRunner
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import ElicitResult

from tests.build import WAIT_S, write_rules_only_pack
from thor_policy.cli.main import cli
from thor_policy.config import Config
from thor_policy.daemon.service import serving

ROOT = Path(__file__).parents[2]
MAIN = "from thor_policy.cli.main import main; main()"
NAMES = ["approvals", "evaluate", "explain", "request_approval", "similar", "trace"]
TOKEN = "0123456789abcdef" * 2
RULES = """
- {id: look, when: 'action.name == "look"', outcome: allow, final: true, because: It only looks.}
- {id: deploy, when: 'action.name == "deploy"', outcome: require_mfa, because: A person consents.}
"""
PACK = """name: alone
version: "1"
description: Rules alone.
model: never
default: deny
outcomes: [{label: allow}, {label: require_mfa, lifted_by: {steps: [{role: operator}]}}, {label: deny}]
"""


@pytest.fixture
def config(config: Config, tmp_path: Path) -> Config:
    folder = write_rules_only_pack(tmp_path / "alone", rules=RULES)
    (folder / "pack.yaml").write_text(PACK)
    return replace(config, pack=str(folder))


def command(config: Config, *more: str) -> list[str]:
    settings = ["--endpoint", config.endpoint, "--state-dir", str(config.state_dir)]
    return [sys.executable, "-c", MAIN, "mcp", "serve", *settings, *more]


def over_stdio(config: Config, mode: str = "auto", **options: Any) -> Client:
    program, *arguments = command(config)
    parameters = StdioServerParameters(command=program, args=arguments, cwd=ROOT)
    return Client(stdio_client(parameters), mode=mode, **options)


def question(action: str) -> dict[str, Any]:
    return {
        "subject": {"type": "agent", "id": "coder"},
        "action": {"name": action},
        "resource": {"type": "env", "id": "production"},
    }


async def _all_tools(client: Client) -> None:
    listed = (await client.list_tools()).tools
    assert [tool.name for tool in listed] == NAMES
    reading = {tool.name for tool in listed if tool.annotations and tool.annotations.read_only_hint}
    assert reading == {"approvals", "explain", "similar", "trace"}
    for tool in listed:
        assert tool.annotations is not None
        assert (tool.annotations.destructive_hint, tool.annotations.open_world_hint) == (False, False)
        assert tool.output_schema is not None
    allowed = await called(client, "evaluate", question("look"))
    assert (allowed["decision"], allowed["outcome"], allowed["reason"]) == (True, "allow", "It only looks.")
    assert "gates" in allowed["advice"]
    denied = await called(client, "evaluate", question("deploy"))
    assert (denied["decision"], denied["outcome"], denied["approval_possible"]) == (
        False,
        "require_mfa",
        True,
    )
    explained = await called(client, "explain", {"decision_id": denied["decision_id"]})
    assert (explained["outcome"], explained["rules"]) == ("require_mfa", ["deploy"])
    assert explained["reason"] == "A person consents."
    trace = (await called(client, "trace", {"decision_id": denied["decision_id"], "depth": 1}))["trace"]
    assert trace["question"]["action"]["name"] == "deploy"
    similar = await called(client, "similar", {"to": allowed["decision_id"], "limit": 3})
    assert similar["statistics"]["count"] == len(similar["precedents"]) <= 1  # summaries come later
    task = await called(
        client, "request_approval", {"decision_id": denied["decision_id"], "reason": "release"}
    )
    assert (task["status"], task["missing"]) == ("pending", [["operator"]])
    (listed_task,) = (await called(client, "approvals", {}))["tasks"]
    assert listed_task["id"] == task["id"]


async def called(client: Client, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    assert result.structured_content is not None
    return dict(result.structured_content)


async def refused(client: Client, tool: str, arguments: dict[str, Any]) -> str:
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    return str(result.content[0].text)  # type: ignore[union-attr]


def run(client: Callable[[], Client], trial: Callable[[Client], Awaitable[None]]) -> None:
    async def inside() -> None:
        async with client() as opened:
            await trial(opened)

    anyio.run(inside)


@pytest.mark.parametrize(("mode", "version"), [("auto", "2026-07-28"), ("legacy", "2025-11-25")])
def test_the_official_client_calls_every_tool_over_stdio(config: Config, mode: str, version: str) -> None:
    async def trial(client: Client) -> None:
        assert client.protocol_version == version
        await _all_tools(client)

    with serving(config):
        run(lambda: over_stdio(config, mode), trial)


@pytest.mark.parametrize(("mode", "wants"), [("auto", True), ("legacy", False)])
def test_the_person_at_the_client_is_asked_before_an_approval_is_requested(
    config: Config, mode: str, wants: bool
) -> None:
    messages = []

    async def answer(_context: Any, params: Any) -> ElicitResult:
        messages.append(params.message)
        return ElicitResult(action="accept", content={"request": wants})

    async def trial(client: Client) -> None:
        denied = await called(client, "evaluate", question("deploy"))
        arguments = {"decision_id": denied["decision_id"]}
        if wants:
            assert (await called(client, "request_approval", arguments))["status"] == "pending"
        else:
            assert "did not want" in await refused(client, "request_approval", arguments)
        assert len((await called(client, "approvals", {}))["tasks"]) == int(wants)

    with serving(config):
        run(lambda: over_stdio(config, mode, elicitation_callback=answer), trial)
    assert len(messages) == 1
    assert "Request approvals" in messages[0]


def test_errors_say_what_is_wrong(config: Config) -> None:
    async def trial(client: Client) -> None:
        assert "not_found" in await refused(client, "evaluate", question("look") | {"pack": "nowhere"})
        assert "no decision" in await refused(client, "explain", {"decision_id": "0192-nothing"})
        assert "less than or equal to 60000" in await refused(
            client, "evaluate", question("look") | {"deadline_ms": 10**9}
        )
        assert "the limit is 65536" in await refused(
            client, "evaluate", question("look") | {"context": {"a": "x" * 70_000}}
        )

    with serving(config):
        run(lambda: over_stdio(config), trial)


def test_without_a_daemon_each_tool_says_so(config: Config) -> None:
    async def trial(client: Client) -> None:
        assert "no daemon listens" in await refused(client, "evaluate", question("look"))
        assert "no daemon listens" in await refused(client, "approvals", {})

    run(lambda: over_stdio(config), trial)


# ---------------------------------------------------------------- HTTP


@contextmanager
def over_http(config: Config, port: int, folder: Path) -> Iterator[str]:
    token = folder / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    own = command(config, "--http", f"127.0.0.1:{port}", "--token-file", str(token))
    with subprocess.Popen(own, cwd=ROOT, stderr=subprocess.PIPE) as process:
        try:
            _wait_for(port)
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            process.terminate()
            assert process.wait(WAIT_S) is not None


def _wait_for(port: int) -> None:
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
    raise AssertionError("nobody listens")


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_the_official_client_calls_every_tool_over_http(
    config: Config, free_port: int, tmp_path: Path, mode: str
) -> None:
    async def inside(url: str) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with (
            httpx2.AsyncClient(headers=headers) as http,
            Client(streamable_http_client(url, http_client=http), mode=mode) as client,
        ):
            await _all_tools(client)

    with serving(config), over_http(config, free_port, tmp_path) as url:
        anyio.run(inside, url)


def test_http_needs_the_token_and_a_host_and_origin_of_loopback(
    config: Config, free_port: int, tmp_path: Path
) -> None:
    with over_http(config, free_port, tmp_path) as url, httpx.Client() as http:

        def status(**headers: str) -> int:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            body = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
            accept = {"Accept": "application/json, text/event-stream"}
            return http.post(url, json=body, headers=accept | named).status_code

        good = f"Bearer {TOKEN}"
        assert (status(), status(Authorization="Bearer x"), status(Authorization=TOKEN)) == (401, 401, 401)
        assert http.post(url, json={}).headers["WWW-Authenticate"].startswith("Bearer")
        assert status(Authorization=good) not in (401, 403, 421)
        assert status(Authorization=good, Host="evil.example") == 421
        assert status(Authorization=good, Origin="https://evil.example") == 403


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--http", "127.0.0.1:7780"], "together"),
        (["--http", "0.0.0.0:7780", "--token-file", "{good}"], "must be a loopback address"),
        (["--http", "127.0.0.1", "--token-file", "{good}"], "write ADDRESS:PORT"),
        (["--http", "127.0.0.1:7780", "--token-file", "{open}"], "chmod 600"),
        (["--http", "127.0.0.1:7780", "--token-file", "{short}"], "at least 32"),
        (["--http", "127.0.0.1:7780", "--token-file", "/nowhere/token"], "cannot be read"),
    ],
)
def test_http_without_protection_is_refused(
    config: Config, tmp_path: Path, options: list[str], problem: str
) -> None:
    for name, text, mode in (("good", TOKEN, 0o600), ("open", TOKEN, 0o644), ("short", "abc", 0o600)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(mode)
    named = [
        option.format(**{name: tmp_path / name for name in ("good", "open", "short")}) for option in options
    ]
    ended = CliRunner().invoke(cli, ["mcp", "serve", "--endpoint", config.endpoint, *named])
    assert ended.exit_code == 2
    assert problem in ended.output
