"""Short runs of scripts/chaos. The long run, with the model: ./scripts/chaos --minutes 10"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def chaos(*arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit status and the figures of the script, run as a user runs it."""
    command = [sys.executable, str(ROOT / "scripts" / "chaos.py"), "--json", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_nothing_acknowledged_is_missing_after_a_kill() -> None:
    status, figures = chaos("--rules-only", "--minutes", "0", "--faults", "kill")
    assert figures["problems"] == []
    assert (figures["missing"], figures["changed"], figures["below_floor"]) == (0, 0, 0)
    assert figures["acknowledged"] > 0
    assert [row["recovery_ms"] is not None for row in figures["faults"]] == [True]
    assert status == 0


def test_a_daemon_that_acknowledges_before_the_commit_fails_on_a_failing_disk() -> None:
    status, figures = chaos("--hasty", "--minutes", "0", "--seconds", "1", "--faults", "eio")
    assert figures["missing"] > 0
    assert status == 1


@pytest.mark.soak
@pytest.mark.parametrize("engine", ["--stub", "--rules-only"])
def test_every_fault_in_turn_leaves_nothing_missing_and_no_answer_below_its_floor(engine: str) -> None:
    status, figures = chaos(engine, "--minutes", "2.5", "--seed", "3")
    assert figures["problems"] == []
    assert {"kill", "stop", "full", "eio", "slow", "wal", "checkpoint", "storm"} <= {
        row["fault"] for row in figures["faults"]
    }
    assert status == 0
