"""The labelled command lines through the hook, as a child process for each, and straight through the pack.

Owns the command of scripts/hook-figures. It prints the outcomes of each label both ways, and every line whose
outcome differs. A hook's answer is read back as an outcome: silence is an allow.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from thor_policy.cli import render
from thor_policy.config import Config, data_path
from thor_policy.core.requests import Action, Entity, Evaluation
from thor_policy.daemon.service import serving
from thor_policy.hook.installation import ENTRY
from thor_policy.hook.state import State
from thor_policy.policy import pack_files
from thor_policy.policy.pack import Pack
from thor_policy.testing import load_stub_engine

ROOT = Path(__file__).resolve().parents[1]
FILES = ("shell.yaml", "shell_further.yaml")
#: What the lines are about, as tests/policy/test_agent_tools.py has it.
WORKSPACE, TASK, SESSION = "/projects/shop", "Fix the rounding bug in the cart.", "figures"
#: The outcome that an answer of Claude Code's hook stands for.
OUTCOMES = {"": "allow", "ask": "require_confirmation", "deny": "deny"}


def labelled() -> Iterator[tuple[str, str]]:
    """Every label and line."""
    for name in FILES:
        content = yaml.safe_load((ROOT / "tests" / "data" / "structure" / name).read_text(encoding="utf-8"))
        for label, entries in content.items():
            groups = entries.values() if isinstance(entries, dict) else [entries]
            yield from ((label, line) for group in groups for line in group)


def straight(pack: Pack, line: str) -> str:
    """The outcome of the pack alone, as its own tests ask it."""
    evaluation = Evaluation(
        subject=Entity(type="agent", id="coder-2", properties={"tools": ["shell.run"]}),
        action=Action(name="shell.run", properties={"command": line}),
        resource=Entity(type="host", id="sandbox"),
        context={"task": TASK, "origin": "principal", "workspace": WORKSPACE},
    )
    return pack.book.apply(evaluation, 1_782_907_200.0).outcome


def event_of(line: str) -> dict[str, Any]:
    """The event of Claude Code for a command."""
    return {
        "session_id": SESSION,
        "cwd": WORKSPACE,
        "hook_event_name": "PreToolUse",
        "tool_name": "Bash",
        "tool_input": {"command": line},
        "tool_use_id": f"toolu_{hash(line)}",
    }


def through_the_hook(line: str, endpoint: str, state: str) -> str:
    """The outcome that the program's answer stands for."""
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            str(ENTRY),
            "--agent",
            "claude",
            "--endpoint",
            endpoint,
            "--state",
            state,
        ],
        input=json.dumps(event_of(line)).encode(),
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        return f"fault: {done.stderr.decode()}"
    printed = json.loads(done.stdout or b"{}")
    return OUTCOMES[printed.get("hookSpecificOutput", {}).get("permissionDecision", "")]


def main() -> int:
    """Ask both ways and print; returns 1 if an outcome differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    lines = list(labelled())
    with tempfile.TemporaryDirectory(prefix="tp-") as name:
        endpoint, state = f"ipc://{name}/policy.sock", f"{name}/state"
        config = Config(state_dir=Path(name) / "daemon", endpoint=endpoint, pack="agent-tools")
        config.state_dir.mkdir()
        with serving(config, load_engine=load_stub_engine), ThreadPoolExecutor(2) as pool:
            State(state).keep_prompt(SESSION, TASK)
            State(state).keep_root(SESSION, WORKSPACE)
            answers = list(
                pool.map(lambda line: through_the_hook(line, endpoint, state), (line for _, line in lines))
            )
    pack = pack_files.load(data_path("prompts") / "agent-tools")
    expected = [straight(pack, line) for _, line in lines]
    rows = []
    for label in sorted({label for label, _ in lines}):
        of_label = [number for number, (other, _) in enumerate(lines) if other == label]
        pack_counts = Counter(expected[number] for number in of_label)
        hook_counts = Counter(answers[number] for number in of_label)
        for outcome in ("allow", "require_confirmation", "deny"):
            rows.append((label, outcome, pack_counts[outcome], hook_counts[outcome]))
    differing = [
        (lines[number][1], expected[number], answers[number])
        for number in range(len(lines))
        if answers[number] != expected[number]
    ]
    if arguments.json:
        render.as_json({"lines": len(lines), "rows": rows, "differing": differing})
    else:
        render.table(("label", "outcome", "pack", "hook"), rows)
        for line, want, got in differing:
            render.line(f"differs: {line!r}: pack {want}, hook {got}")
        render.line(f"{len(lines)} lines, {len(differing)} differ")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
