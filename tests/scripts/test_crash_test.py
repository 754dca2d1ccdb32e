"""The crash test of scripts/crash-test, in short: what was acknowledged survives hard kills, and a journal
that acknowledges too early is found out. Two hundred rounds: ./scripts/crash-test --rounds 200"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def crash_test(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit status and figures of the script, as a user runs it."""
    command = [sys.executable, str(ROOT / "scripts" / "crash_test.py"), "--json", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    if not done.stdout:
        pytest.fail(f"no figures, but: {done.stderr}")
    return done.returncode, json.loads(done.stdout)


def test_after_hard_kills_nothing_that_was_acknowledged_is_missing() -> None:
    status, figures = crash_test("--rounds", "20")
    assert figures["problems"] == []
    assert (figures["missing"], figures["invalid_chains"], figures["refused"]) == (0, 0, {})
    assert figures["kills"] == {"under load": 12, "at a standstill": 4, "while it starts": 4}
    assert min(figures["acknowledged"][kind] for kind in ("decision", "outcome", "review")) > 0
    assert status == 0


def test_a_journal_that_acknowledges_before_the_commit_is_found_out() -> None:
    status, figures = crash_test("--rounds", "5", "--hasty")
    assert figures["missing"] > 0
    assert status == 1


def test_a_run_that_proved_nothing_is_no_success() -> None:
    status, figures = crash_test("--rounds", "0")
    assert (status, figures["acknowledged"]) == (1, {})
