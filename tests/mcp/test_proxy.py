"""`mcp proxy` before real servers: what passes, what is denied and how; every fault refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from click.testing import CliRunner
from mcp import Client as McpClient
from mcp import MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client

from tests.build import WAIT_S, write_rules_only_pack
from tests.callers import other_caller
from thor_policy.cli.main import cli
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.daemon.service import serving
from thor_policy.journal.reader import Reader

HERE = Path(__file__).parent
MAIN = "from thor_policy.cli.main import main; main()"
#: Where ./scripts/mcp-servers installs servers of others.
PEERS = HERE.parents[1] / "build" / "mcp-servers"
RULES = """
- {id: listings, when: 'action.name in ["initialize", "tools/list", "server/discover"]',
   outcome: allow, final: true, because: It only lists.}
- {id: tools, when: 'action.name == "tools/call" && context.mcp.server == "raw" && resource.id in ["read",
   "mapped", "mapped_denied", "as_root", "both", "broken", "lifted"]',
   outcome: allow, final: true, because: It reads.}
- {id: look, when: 'action.name == "look"', outcome: allow, final: true, because: It looks.}
- {id: burn, when: 'action.name == "burn"', outcome: deny, because: Nothing is burnt.}
"""
INITIALIZE = {
    "id": 0,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "t", "version": "1"},
    },
}


@pytest.fixture
def config(config: Config, tmp_path: Path) -> Config:
    return replace(config, pack=str(write_rules_only_pack(tmp_path / "alone", rules=RULES)))


def command(config: Config, *arguments: str, server: list[str]) -> list[str]:
    endpoint = ["--endpoint", config.endpoint, "--state-dir", str(config.state_dir)]
    return [sys.executable, "-c", MAIN, "mcp", "proxy", *endpoint, *arguments, "--", *server]


class Raw:
    """A client that writes lines and reads lines."""

    def __init__(self, process: subprocess.Popen[bytes], seen: Path) -> None:
        self.process, self._seen = process, seen

    def write(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def send(self, **message: Any) -> None:
        self.write(json.dumps({"jsonrpc": "2.0"} | message).encode() + b"\n")

    def read(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, **message: Any) -> Any:
        self.send(**message)
        return self.read()

    def call(self, tool: str, id_: Any = 7, **arguments: Any) -> Any:
        return self.ask(id=id_, method="tools/call", params={"name": tool, "arguments": arguments})

    def error_of(self, line: bytes) -> tuple[Any, int]:
        self.write(line)
        reply = self.read()
        return reply["id"], reply["error"]["code"]

    @property
    def seen(self) -> list[Any]:
        """The messages that reached the server."""
        return (
            [json.loads(line) for line in self._seen.read_bytes().splitlines()] if self._seen.exists() else []
        )

    def end(self) -> tuple[int, str]:
        """Close the input; the exit status, and what the proxy noted."""
        _, notes = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, notes.decode()


@contextmanager
def proxied(
    config: Config, tmp_path: Path, *arguments: str, words: tuple[str, ...] = (), begun: bool = True
) -> Iterator[Raw]:
    seen = tmp_path / "seen"
    server = [sys.executable, str(HERE / "raw_server.py"), str(seen), *words]
    options = ["--server-name", "raw", "--mcp-subject", "ana", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command(config, *options, server=server), stdin=pipe, stdout=pipe, stderr=pipe, cwd=HERE.parents[1]
    ) as process:
        try:
            raw = Raw(process, seen)
            if begun:
                assert "result" in raw.ask(**INITIALIZE)
            yield raw
        finally:
            process.kill()


def run_alone(config: Config, *arguments: str) -> tuple[int, str]:
    settings = ["--endpoint", config.endpoint, "--state-dir", str(config.state_dir)]
    ended = CliRunner().invoke(cli, ["mcp", "proxy", *settings, *arguments])
    return ended.exit_code, ended.output


def code_of(reply: Any) -> int | None:
    return reply["error"]["code"] if "error" in reply else None


# ---------------------------------------------------------------- what passes, what does not


def test_an_allowed_call_reaches_the_server_and_a_denied_one_does_not(config: Config, tmp_path: Path) -> None:
    with serving(config), proxied(config, tmp_path) as raw:
        passed = raw.call("read", path="/a")
        assert json.loads(passed["result"]["content"][0]["text"]) == {
            "name": "read",
            "arguments": {"path": "/a"},
        }
        denied = raw.call("write", path="/a")
        assert code_of(denied) == -32001
        data = denied["error"]["data"]
        assert (data["outcome"], data["tier"]) == ("deny", "rule")
        assert data["decision_id"] in denied["error"]["message"]
        assert [m["params"]["name"] for m in raw.seen if m["method"] == "tools/call"] == ["read"]
        status, notes = raw.end()
    assert status == 0
    assert "2 forwarded, 1 denied" in notes
    with Reader(config.journal_path) as reader:
        row = reader.get(data["decision_id"])
    assert row is not None
    situation = row["situation"]
    assert (situation["subject"]["type"], situation["subject"]["id"]) == ("identity", "ana")
    mcp = situation["context"]["mcp"]
    assert (mcp["server"], mcp["tool"], mcp["arguments"], mcp["mapping"]) == (
        *("raw", "write", {"path": "/a"}),
        "default",
    )
    assert len(mcp["tool_sha256"]) == len(mcp["tools_sha256"]) == len(mcp["arguments_sha256"]) == 64
    assert mcp["client_claims"] == "t 1"


def test_a_mapping_of_the_server_adds_questions_and_takes_none_away(config: Config, tmp_path: Path) -> None:
    with serving(config), proxied(config, tmp_path) as raw:
        assert code_of(raw.call("mapped", path="/a")) is None
        assert code_of(raw.call("mapped_denied", path="/a")) == -32001
        assert code_of(raw.call("both", path="/a")) == -32001
        assert code_of(raw.call("harmless_mapping", path="/a")) == -32001  # the default question is denied
        assert code_of(raw.call("mapped")) == -32602  # params.arguments.path is not there
        assert code_of(raw.call("broken", path="/a")) == -32602
        assert code_of(raw.call("as_root", path="/a")) == -32602
        assert code_of(raw.call("lifted", path="/a")) is None
        assert code_of(raw.call("unlisted", path="/a")) == -32602
    with Reader(config.journal_path) as reader:
        looks = [row["situation"]["context"] for row in reader.decisions(limit=50) if row["action"] == "look"]
    assert looks
    assert all("supported_obligations" not in context for context in looks)
    assert {context["mcp"]["server"] for context in looks} == {"raw"}


def test_a_mapping_of_the_server_can_replace_the_default_or_do_nothing(
    config: Config, tmp_path: Path
) -> None:
    with serving(config):
        with proxied(config, tmp_path, "--server-mappings", "replace") as raw:
            assert code_of(raw.call("harmless_mapping", path="/a")) is None
        with proxied(config, tmp_path, "--server-mappings", "ignore") as raw:
            assert code_of(raw.call("mapped_denied", path="/a")) is None


def test_the_operators_mapping_goes_before_all_others(config: Config, tmp_path: Path) -> None:
    pins = tmp_path / "pins.yaml"
    pins.write_text(
        "others: deny\ntools:\n  read: deny\n"
        "  write: {evaluation: {action: {name: look}, resource: {type: file, id: $params.arguments.path}}}\n"
    )
    with serving(config), proxied(config, tmp_path, "--mapping", str(pins)) as raw:
        assert code_of(raw.call("write", path="/a")) is None
        assert code_of(raw.call("read", path="/a")) == -32001
        assert code_of(raw.call("mapped", path="/a")) == -32001


def test_a_tool_that_changes_after_its_first_listing_is_refused(config: Config, tmp_path: Path) -> None:
    with serving(config), proxied(config, tmp_path, words=("changes",)) as raw:
        assert "result" in raw.ask(id=1, method="tools/list")
        assert code_of(raw.call("read", path="/a")) is None
        assert "result" in raw.ask(id=2, method="tools/list")
        reply = raw.call("read", path="/a")
        assert code_of(reply) == -32001
        assert "has changed since it was first listed" in reply["error"]["message"]
        assert "'read' has changed" in raw.end()[1]
    with serving(config), proxied(config, tmp_path, words=("twice",)) as raw:
        assert code_of(raw.call("read", path="/a")) == -32001


def test_pages_of_tools_are_all_learned(config: Config, tmp_path: Path) -> None:
    with serving(config), proxied(config, tmp_path, words=("pages",)) as raw:
        assert code_of(raw.call("lifted", path="/a")) is None


def test_what_a_rule_denies_by_name_is_hidden_on_demand(config: Config, tmp_path: Path) -> None:
    with serving(config), proxied(config, tmp_path, "--hide") as raw:
        names = [tool["name"] for tool in raw.ask(id=1, method="tools/list")["result"]["tools"]]
    assert "read" in names
    assert "mapped" in names  # its own question needs an argument, so nobody knows yet
    assert not {"write", "harmless_mapping"} & set(names)


# ---------------------------------------------------------------- methods and versions


def test_unknown_methods_and_versions_are_denied(config: Config, tmp_path: Path) -> None:
    with serving(config):
        with proxied(config, tmp_path, begun=False) as raw:
            assert code_of(raw.ask(id=1, method="tools/list")) == -32001  # before a version is agreed on
            assert "result" in raw.ask(id=2, method="ping")
            assert "result" in raw.ask(**INITIALIZE)
            assert code_of(raw.ask(id=3, method="tools/destroy")) == -32001
            assert code_of(raw.ask(id=4, method="server/discover")) == -32001  # of another version
            assert code_of(raw.ask(id=5, method="resources/read", params={"uri": "file:///a"})) == -32001
            assert code_of(raw.ask(id=6, method="resources/read", params={})) == -32602
            stateless = {"_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}}
            assert "result" in raw.ask(id=7, method="server/discover", params=stateless)
            assert code_of(raw.ask(id=8, method="logging/setLevel", params=stateless)) == -32001
        with proxied(config, tmp_path, words=("future",)) as raw:
            reply = raw.call("read", path="/a")
            assert code_of(reply) == -32001
            assert "2031-01-01" in reply["error"]["message"]


def test_listings_pass_unasked_on_demand(config: Config, tmp_path: Path) -> None:
    strict = replace(config, pack=str(write_rules_only_pack(tmp_path / "none", rules="[]")))
    with serving(strict):
        with proxied(strict, tmp_path, begun=False) as raw:
            assert code_of(raw.ask(**INITIALIZE)) == -32001
        with proxied(strict, tmp_path, "--acting-only") as raw:
            assert "result" in raw.ask(id=1, method="tools/list")
            assert code_of(raw.call("read", path="/a")) == -32001


# ---------------------------------------------------------------- hostile lines


def called(params: bytes) -> bytes:
    return b'{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{' + params + b"}}\n"


# fmt: off
HOSTILE: tuple[tuple[bytes, tuple[Any, int]], ...] = (
    (b"{\n", (None, -32700)),
    (b"\xff\xfe{}\n", (None, -32700)),
    (b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]\n', (None, -32600)),
    (b'{"jsonrpc":"1.0","id":1,"method":"ping"}\n', (None, -32600)),
    (b'{"jsonrpc":"2.0","id":null,"method":"ping"}\n', (None, -32600)),
    (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}\n', (None, -32600)),
    (b'{"jsonrpc":"2.0","id":true,"method":"ping"}\n', (None, -32600)),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","Method":"tools/call"}\n', (1, -32600)),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call"}\n', (None, -32600)),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","result":{}}\n', (1, -32600)),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[1]}\n', (1, -32600)),
    (b'{"jsonrpc":"2.0","id":"a","method":7}\n', ("a", -32600)),
    (b'{"jsonrpc":"2.0","id":"a"}\n', ("a", -32600)),
    (called(b'"name":"read","NAME":"write"'), (2, -32600)),
    (called(b'"name":"read\\u0000"'), (2, -32600)),
    (called(b'"name":"read","arguments":{"Path":"/b"}'), (2, -32602)),
    (called(b'"name":"read","arguments":[1]'), (2, -32602)),
    (called(b'"name":["read"]'), (2, -32602)),
    (called(b'"name":"read","arguments":{"n":99999999999999999999}'), (None, -32600)),
    (called(b'"a":' + b'{"a":' * 90 + b"1" + b"}" * 90), (2, -32600)),
)
# fmt: on


def test_a_line_with_two_readings_or_none_is_refused(config: Config, tmp_path: Path) -> None:
    with serving(config), proxied(config, tmp_path) as raw:
        for line, answer in HOSTILE:
            assert raw.error_of(line) == answer, line
        assert code_of(raw.call("read", path="/a")) is None  # and the proxy serves on
        assert {message["method"] for message in raw.seen} == {"initialize", "tools/list", "tools/call"}
        assert [m["params"]["arguments"] for m in raw.seen if m["method"] == "tools/call"] == [{"path": "/a"}]


def test_long_lines_are_skipped_in_both_directions(config: Config, tmp_path: Path) -> None:
    with serving(config), proxied(config, tmp_path, "--max-line-bytes", "8192", words=("floods",)) as raw:
        assert raw.error_of(b'{"jsonrpc":"2.0","id":1,"method":"ping","x":"' + b"y" * 50_000 + b'"}\n') == (
            None,
            -32600,
        )
        reply = raw.call("read", path="/a")
        assert (reply["id"], code_of(reply)) == (7, -32603)
        assert "1 dropped" in raw.end()[1]


def test_notifications_pass_and_calls_without_an_id_do_not(config: Config, tmp_path: Path) -> None:
    with serving(config), proxied(config, tmp_path) as raw:
        raw.send(method="notifications/initialized")
        raw.send(method="tools/call", params={"name": "read", "arguments": {"path": "/a"}})
        raw.send(id="s9", result={})  # an answer to nothing
        assert "result" in raw.ask(id=1, method="ping")
        assert [m.get("method") for m in raw.seen] == ["initialize", "notifications/initialized", "ping"]


def test_a_response_that_nobody_asked_for_never_reaches_the_client(config: Config, tmp_path: Path) -> None:
    with serving(config), proxied(config, tmp_path, words=("forges",)) as raw:
        raw.send(id=7, method="tools/call", params={"name": "read", "arguments": {"path": "/a"}})
        assert raw.read() == {"jsonrpc": "2.0", "id": "s1", "method": "roots/list"}
        assert raw.read() == {"jsonrpc": "2.0", "id": 7, "result": {"content": []}}
        raw.send(id="s1", result={"roots": []})
        assert "result" in raw.ask(id=8, method="ping")
        assert [m for m in raw.seen if "method" not in m] == [
            {
                "jsonrpc": "2.0",
                "id": 1,
                "error": {"code": -32601, "message": "the proxy forwards no such request"},
            },
            {"jsonrpc": "2.0", "id": "s1", "result": {"roots": []}},
        ]


def test_what_a_server_calls_its_tools_forges_no_line_for_the_operator(
    config: Config, tmp_path: Path
) -> None:
    with serving(config), proxied(config, tmp_path, words=("hostile",)) as raw:
        assert code_of(raw.call("read", path="/a")) is None
        notes = raw.end()[1]
    assert "FORGED" in notes
    assert not {"\x1b", "\u202e"} & set(notes)
    assert all(line.startswith("thorpolicy mcp proxy: ") for line in notes.splitlines())


def test_an_id_that_waits_for_its_answer_cannot_be_used_again(config: Config, tmp_path: Path) -> None:
    with serving(config), proxied(config, tmp_path, words=("silent",)) as raw:
        raw.send(id=7, method="tools/call", params={"name": "read", "arguments": {"path": "/a"}})
        assert code_of(raw.call("read", path="/b")) == -32600
        assert "result" in raw.ask(id="7", method="ping")  # a text is another id
        raw.send(method="notifications/cancelled", params={"requestId": 7})
        raw.send(id=7, method="ping")
        assert "result" in raw.read()
        calls = [message for message in raw.seen if message["method"] == "tools/call"]
        assert [call["params"]["arguments"] for call in calls] == [{"path": "/a"}]


# ---------------------------------------------------------------- faults


def test_without_a_daemon_everything_is_refused(config: Config, tmp_path: Path) -> None:
    with proxied(config, tmp_path, begun=False) as raw:
        reply = raw.ask(**INITIALIZE)
        assert code_of(reply) == -32603
        assert "no daemon listens" in reply["error"]["message"]
        assert raw.seen == []
    with serving(config), proxied(config, tmp_path) as raw:
        assert code_of(raw.call("read", path="/a")) is None
        pack = raw.ask(id=9, method="ping")
        assert "result" in pack


def test_a_daemon_that_goes_away_refuses_the_next_call(config: Config, tmp_path: Path) -> None:
    with serving(config):
        context = proxied(config, tmp_path, "--deadline-ms", "500")
        raw = context.__enter__()
        assert code_of(raw.call("read", path="/a")) is None
    try:
        assert code_of(raw.call("read", path="/a")) == -32603
    finally:
        context.__exit__(None, None, None)


# ---------------------------------------------------------------- outcomes


def outcomes_in(config: Config) -> list[tuple[str, str, str]]:
    """The tool of each call that has an outcome, with its status and note, oldest first."""
    recorded_ones: list[tuple[str, str, str]] = []
    with Reader(config.journal_path) as reader:
        for row in reversed(reader.decisions(limit=50)):
            if row["outcome_status"] is not None:
                (recorded,) = reader.trace(row["decision_id"])["outcomes"]
                recorded_ones.append((row["entity"], row["outcome_status"], recorded["note"]))
    return recorded_ones


@pytest.mark.parametrize(
    ("word", "status", "note"),
    [
        ("works", "SUCCESS", 'the tool printed "{"name": "read", "arguments": {"path": "/a"}}"'),
        ("fails", "FAILURE", 'the tool printed "no "such" file \ufffd[2J"'),
        ("unwell", "FAILURE", 'the tool printed "it broke"'),
        ("later", "PENDING", "the server answered with no result yet"),
        ("dies", "FAILURE", "the server ended before it answered"),
    ],
)
def test_the_outcome_of_a_call_that_passed_is_recorded(
    config: Config, tmp_path: Path, word: str, status: str, note: str
) -> None:
    with serving(config):
        with proxied(config, tmp_path, words=(word,)) as raw:
            assert code_of(raw.call("write", path="/a")) == -32001  # a call that did not run has none
            raw.call("read", path="/a")
            assert "1 recorded" in raw.end()[1]
        assert outcomes_in(config) == [("tool:read", status, note)]


def test_each_decision_that_a_call_rests_on_gets_its_outcome(config: Config, tmp_path: Path) -> None:
    with serving(config):
        with proxied(config, tmp_path) as raw:
            assert code_of(raw.call("mapped", path="/a")) is None
            assert "2 recorded" in raw.end()[1]
        assert [(entity, status) for entity, status, _ in outcomes_in(config)] == [
            ("tool:mapped", "SUCCESS"),
            ("file:/a", "SUCCESS"),
        ]


def test_a_call_whose_end_nobody_saw_is_pending(config: Config, tmp_path: Path) -> None:
    call = {"id": 7, "method": "tools/call", "params": {"name": "read", "arguments": {"path": "/a"}}}
    with serving(config):
        with proxied(config, tmp_path, words=("silent",)) as raw:
            raw.send(**call)
            raw.send(method="notifications/cancelled", params={"requestId": 7})
            raw.send(**call | {"id": 8})
            assert "2 recorded" in raw.end()[1]
        notes = [note for _, status, note in outcomes_in(config) if status == "PENDING"]
    assert notes == ["the client cancelled the call", "the server ended before it answered"]


def test_what_tools_print_is_left_out_on_demand(config: Config, tmp_path: Path) -> None:
    with serving(config):
        for what in ("none", "status", "none"):
            with proxied(config, tmp_path, "--outcomes", what) as raw:
                assert code_of(raw.call("read", path="/secret")) is None
                raw.end()
        assert outcomes_in(config) == [("tool:read", "SUCCESS", "the tool answered")]


def test_a_daemon_that_goes_away_loses_outcomes_and_holds_up_no_answer(
    config: Config, tmp_path: Path
) -> None:
    with serving(config):
        context = proxied(config, tmp_path, words=("silent",))
        raw = context.__enter__()
        raw.send(id=7, method="tools/call", params={"name": "read", "arguments": {"path": "/a"}})
        assert "result" in raw.ask(id=8, method="ping")  # so the call went to the server
    try:
        raw.send(method="notifications/cancelled", params={"requestId": 7})
        assert "result" in raw.ask(id=9, method="ping")
        status, notes = raw.end()
    finally:
        context.__exit__(None, None, None)
    assert status == 0
    assert "0 recorded, 1 lost" in notes


def test_a_pack_that_is_not_there_refuses(config: Config, tmp_path: Path) -> None:
    with serving(config), proxied(config, tmp_path, "--pack", "nowhere", begun=False) as raw:
        assert code_of(raw.ask(**INITIALIZE)) == -32602


def test_a_server_that_dies_ends_the_proxy_and_answers_what_waits(config: Config, tmp_path: Path) -> None:
    with serving(config), proxied(config, tmp_path, words=("dies",)) as raw:
        reply = raw.call("read", path="/a")
        assert (reply["id"], code_of(reply)) == (7, -32603)
        assert raw.process.wait(WAIT_S) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_proxy_and_server(config: Config, tmp_path: Path, number: int) -> None:
    with serving(config), proxied(config, tmp_path) as raw:
        raw.process.send_signal(number)
        assert raw.process.wait(WAIT_S) == 0


def test_a_program_that_is_not_there_is_an_error_of_use(config: Config) -> None:
    status, errors = run_alone(config, "--", "/nowhere/server")
    assert status == 2
    assert "/nowhere/server: cannot be started" in errors


# ---------------------------------------------------------------- approvals; clients and servers of others


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user too")
def test_an_approved_call_passes_when_it_is_sent_again_and_only_that_call(
    config: Config, tmp_path: Path
) -> None:
    config.state_dir.chmod(0o711)
    approving = replace(
        config,
        socket_mode=0o666,
        pack="mcp-tools",
        people=("uid:4711=kim;operator",),
        roles=("local=ask", "uid:4711=ask+approve"),
    )
    with (
        serving(approving),
        other_caller(approving.endpoint, 4711) as kim,
        proxied(approving, tmp_path) as raw,
    ):
        denied = raw.call("write", path="/a")
        decision = denied["error"]["data"]["decision_id"]
        assert denied["error"]["data"]["approval"] == f"thorpolicy approvals request {decision}"
        with Client(approving.endpoint) as client:
            task = client.request_approval(records.ApprovalRequest(decision_id=decision))
        assert code_of(raw.call("write", path="/a")) == -32001  # requested, not approved
        kim.change("approve", task["id"])
        assert code_of(raw.call("write", path="/b")) == -32001  # another call
        assert code_of(raw.call("write", path="/a")) is None
        assert code_of(raw.call("write", path="/a")) == -32001  # an approval is used once


async def _through(parameters: StdioServerParameters, mode: str) -> list[Any]:
    answers: list[Any] = []
    async with McpClient(stdio_client(parameters), mode=mode) as client:
        answers.append(client.protocol_version)
        answers.append([tool.name for tool in (await client.list_tools()).tools])
        result = await client.call_tool("read_note", {"name": "a"})
        answers.append(result.content[0].text)
        try:
            await client.call_tool("write_note", {"name": "a", "text": "changed"})
        except MCPError as error:
            answers.append((error.error.code, error.error.data["outcome"]))
        answers.append((await client.call_tool("read_note", {"name": "a"})).content[0].text)
    return answers


@pytest.mark.parametrize(("mode", "version"), [("auto", "2026-07-28"), ("legacy", "2025-11-25")])
def test_the_official_client_reads_and_cannot_write_through_the_proxy(
    config: Config, tmp_path: Path, mode: str, version: str
) -> None:
    rules = RULES.replace('["read",', '["read", "read_note",').replace('"raw"', '"notes"')
    noted = replace(config, pack=str(write_rules_only_pack(tmp_path / "noted", rules=rules)))
    program, *arguments = command(
        noted, "--server-name", "notes", server=[sys.executable, str(HERE / "note_server.py")]
    )
    parameters = StdioServerParameters(command=program, args=arguments, cwd=HERE.parents[1])
    with serving(noted):
        answers = anyio.run(_through, parameters, mode)
    assert answers == [version, ["read_note", "write_note"], "first", (-32001, "deny"), "first"]


async def _public(
    parameters: StdioServerParameters, read: tuple[str, Any], write: tuple[str, Any]
) -> tuple[str, int]:
    async with McpClient(stdio_client(parameters)) as client:
        result = await client.call_tool(*read)
        with pytest.raises(MCPError) as denied:
            await client.call_tool(*write)
        return result.content[0].text, denied.value.error.code


@pytest.mark.peer
@pytest.mark.parametrize("name", ["filesystem", "everything"])
def test_public_servers_read_and_do_not_write_through_the_proxy(
    config: Config, tmp_path: Path, name: str
) -> None:
    program = PEERS / "node_modules" / "@modelcontextprotocol" / f"server-{name}" / "dist" / "index.js"
    if not program.exists():
        pytest.skip("run ./scripts/mcp-servers, which installs them")
    shipped = replace(config, pack="mcp-tools")
    (tmp_path / "a.txt").write_text("first")
    calls = {
        "filesystem": (
            ("read_text_file", {"path": str(tmp_path / "a.txt")}),
            ("write_file", {"path": str(tmp_path / "b.txt"), "content": "x"}),
        ),
        "everything": (("echo", {"message": "first"}), ("toggle-simulated-logging", {})),
    }
    folders = [str(tmp_path)] if name == "filesystem" else []
    own = command(shipped, "--server-name", name, server=["node", str(program), *folders])
    parameters = StdioServerParameters(command=own[0], args=own[1:], cwd=HERE.parents[1])
    with serving(shipped):
        text, code = anyio.run(_public, parameters, *calls[name])
    assert "first" in text
    assert code == -32001
    assert not (tmp_path / "b.txt").exists()
    ((_, status, note),) = outcomes_in(shipped)
    assert status == "SUCCESS"
    assert "first" in note


def test_a_bad_file_of_mappings_is_an_error_of_use(config: Config, tmp_path: Path) -> None:
    for text, problem in (
        ("tools: {read: {evaluation: {action: {name: $params.}}}}", "tools.read: expression"),
        ("tols: {}", "tols"),
        ("tools: {read: {evaluation: {}, evaluations: {}}}", "one member"),
    ):
        (tmp_path / "pins.yaml").write_text(text)
        status, errors = run_alone(config, "--mapping", str(tmp_path / "pins.yaml"), "--", "true")
        assert status == 2
        assert problem in errors


def test_long_arguments_are_digests_in_the_question(config: Config, tmp_path: Path) -> None:
    with serving(config), proxied(config, tmp_path) as raw:
        assert code_of(raw.call("read", path="/a", text="x" * 100_000, parts=[[[["deep"]]]] * 400)) is None
    with Reader(config.journal_path) as reader:
        contexts = [row["situation"]["context"]["mcp"] for row in reader.decisions(limit=5)]
    (call,) = [context for context in contexts if context["method"] == "tools/call"]
    assert call["arguments_whole"] is False
    assert call["arguments"]["text"]["chars"] == 100_000
