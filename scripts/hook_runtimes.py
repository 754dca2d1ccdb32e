"""The hooks in the hook runners of other people's agents: Codex whole, and the runner of Gemini CLI.

Owns the command of scripts/hook-runtimes. Codex runs as `codex exec` with a model server of this process,
which answers each prompt with a command; whether the command ran is seen by the file that it makes. Gemini
CLI's runner and aggregator get the same settings file that install writes, and say whether the call is
blocked. Nothing outside this machine is reached.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from thor_policy.cli import render
from thor_policy.config import Config
from thor_policy.daemon.service import serving
from thor_policy.hook import installation, trial
from thor_policy.journal.reader import Reader
from thor_policy.testing import load_stub_engine

#: Versions that this was last run with.
CODEX, GEMINI = "0.171.0", "0.61.0"
#: Longest run of an agent, in seconds.
WAIT_S = 120.0


class Seen(NamedTuple):
    """Whether the agent let the call run, and the reason that it shows if it did not."""

    ran: bool
    reason: str


class Model(BaseHTTPRequestHandler):
    """A model that wants to run `command` in `folder`, and then ends its turn (OpenAI's Responses API)."""

    command, folder = "", ""
    turns = 0
    #: What Codex sent back for the call.
    result = ""

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self._send(b'{"object": "list", "data": [], "models": []}', "application/json")

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        Model.turns += 1
        if Model.turns == 1:
            item: dict[str, Any] = {
                "type": "function_call",
                "id": "f",
                "call_id": "call_1",
                "name": "exec_command",
                "arguments": json.dumps({"cmd": Model.command, "workdir": Model.folder}),
            }
        else:
            Model.result = str(request["input"][-1].get("output", ""))
            content = [{"type": "output_text", "text": "done", "annotations": []}]
            item = {"type": "message", "id": "m", "role": "assistant", "content": content}
        usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
        events: list[dict[str, Any]] = [
            {"type": "response.created", "response": {"id": "r"}},
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": "response.completed", "response": {"id": "r", "usage": usage}},
        ]
        text = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
        self._send(text.encode(), "text/event-stream")

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Codex:
    """`codex exec` with a home folder of its own."""

    name = "codex"

    def __init__(self, packages: Path, folder: Path) -> None:
        self._program = next(packages.glob("@openai/codex-*/vendor/*/bin/codex"))
        self._home = folder / "codex-home"
        self.settings = self._home / "hooks.json"

    def run(self, command: str, work: Path, place: Path | None = None) -> Seen:
        """Run a call that the model wants in the folder `place`."""
        marker = (place or work) / "ran"
        marker.unlink(missing_ok=True)
        with ThreadingHTTPServer(("127.0.0.1", 0), Model) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            Model.command, Model.turns, Model.result = command, 0, ""
            Model.folder = str(place or work)
            (self._home / "config.toml").write_text(
                f'model = "m"\nmodel_provider = "local"\n[model_providers.local]\nname = "local"\n'
                f'base_url = "http://127.0.0.1:{server.server_port}/v1"\nwire_api = "responses"\n'
            )
            options = ["--dangerously-bypass-hook-trust", "--skip-git-repo-check", "-s", "danger-full-access"]
            subprocess.run(
                [str(self._program), "exec", *options, "Look at the files."],
                cwd=work,
                env=os.environ | {"CODEX_HOME": str(self._home)},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=WAIT_S,
                check=False,
            )
            server.shutdown()
        return Seen(marker.exists(), Model.result)


class Gemini:
    """The hook runner of Gemini CLI, under node. It only says whether the call would run."""

    name = "gemini"

    def __init__(self, packages: Path, folder: Path) -> None:
        self._package = packages / "@google" / "gemini-cli-core"
        self.settings = folder / "gemini-settings.json"

    def run(self, command: str, work: Path) -> Seen:
        program = Path(__file__).with_name("hook_runtimes.mjs")
        done = subprocess.run(
            ["node", str(program), str(self._package), str(self.settings), command, str(work)],
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=True,
        )
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        return Seen(not answer["blocked"], answer["reason"])


Agent = Codex | Gemini


def tried(agent: Agent, endpoint: str, folder: Path, work: Path) -> Iterator[tuple[str, bool, Seen]]:
    """What is tried, whether the call must run, and what the agent did."""
    state = str(folder / f"state-{agent.name}")

    def installed(endpoint: str, deadline_ms: int = 8_000) -> None:
        agent.settings.unlink(missing_ok=True)
        agent.settings.parent.mkdir(parents=True, exist_ok=True)
        wanted = installation.Wanted(endpoint=endpoint, deadline_ms=deadline_ms, state=state)
        change = installation.install(agent.name, agent.settings, wanted, "")
        installation.apply(change, now=0.0)

    def edited(edit: Callable[[str], str]) -> None:
        agent.settings.write_text(edit(agent.settings.read_text()))

    harmless = "touch ran"
    installed(endpoint)
    yield "allow", True, agent.run(harmless, work)
    yield "confirmation", False, agent.run("touch ran; git push origin main", work)
    yield "deny", False, agent.run("touch ran; sudo rm -rf /nothing", work)
    if isinstance(agent, Codex):  # the model chooses the folder of a call
        elsewhere = folder / "elsewhere"
        elsewhere.mkdir()
        yield "another folder", False, agent.run(harmless, work, elsewhere)
    installed(f"ipc://{folder}/nobody.sock")
    yield "no daemon", False, agent.run(harmless, work)
    with trial.peer(folder, greets=False) as hung:
        installed(hung, 400)
        yield "daemon hung", False, agent.run(harmless, work)
    with trial.peer(folder) as silent:
        installed(silent, 400)
        yield "deadline", False, agent.run(harmless, work)
    with trial.peer(folder, b'{"v":1,"id":@ID@,"decision":"true"}') as garbage:
        installed(garbage)
        yield "garbage reply", False, agent.run(harmless, work)
    error = b'{"v":1,"id":@ID@,"error":{"code":"disk_full","message":"the disk is full"}}'
    with trial.peer(folder, error) as full:
        installed(full)
        yield "disk full", False, agent.run(harmless, work)
    installed(endpoint)
    edited(lambda text: text.replace(endpoint, "tcp://127.0.0.1:1"))
    yield "bad config", False, agent.run(harmless, work)
    installed(endpoint)
    edited(lambda text: text.replace("hook/entry.py", "hook/gone.py"))
    yield "missing program", False, agent.run(harmless, work)
    installed(endpoint)
    # A program that kills itself stands for one that is killed.
    killer = folder / "killed"
    killer.write_text("#!/bin/sh\nkill -9 $$\n")
    killer.chmod(0o755)
    edited(lambda text: text.replace(sys.executable, str(killer)))
    yield "kill -9", False, agent.run(harmless, work)


@contextmanager
def daemon(folder: Path) -> Iterator[Config]:
    """A daemon whose active pack is agent-tools."""
    config = Config(state_dir=folder / "daemon", endpoint=f"ipc://{folder}/policy.sock", pack="agent-tools")
    config.state_dir.mkdir()
    with serving(config, load_engine=load_stub_engine):
        yield config


def main() -> int:
    """Try all, print a table, and return 1 if a call ran that must not, or did not run that must."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--packages", type=Path, required=True, help="folder with node_modules")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    packages = arguments.packages / "node_modules"
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="tp-") as name:
        folder = Path(name)
        work = folder / "work"
        work.mkdir()
        with daemon(folder) as config:
            for agent in (Codex(packages, folder), Gemini(packages, folder)):
                for case, must_run, seen in tried(agent, config.endpoint, folder, work):
                    row = {"agent": agent.name, "case": case, "ran": seen.ran, "right": seen.ran is must_run}
                    rows.append(row | {"reason": seen.reason})
            with Reader(config.journal_path) as reader:
                recorded = [row["outcome_status"] for row in reader.decisions(limit=100)]
    if arguments.json:
        render.as_json(rows)
    else:
        render.table(
            ("agent", "case", "ran", "", "reason"),
            [
                (row["agent"], row["case"], row["ran"], "right" if row["right"] else "WRONG", row["reason"])
                for row in rows
            ],
            clipped=(4,),
        )
        render.line(f"{len(recorded)} decisions, {len(recorded) - recorded.count(None)} with an outcome")
    return 0 if all(row["right"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
