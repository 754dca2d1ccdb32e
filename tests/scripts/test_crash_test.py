"""A short run of scripts/crash-test: acknowledged decisions survive SIGKILL, and a journal that acknowledges
before the commit is detected. The long run: ./scripts/crash-test --rounds 200"""

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
    """The exit status and the figures of the script, run as a user runs it."""
    command = [sys.executable, str(ROOT / "scripts" / "crash_test.py"), "--json", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    if not done.stdout:
        pytest.fail(f"the script printed no figures: {done.stderr}")
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("fives", [2, pytest.param(20, marks=pytest.mark.soak)])
def test_no_acknowledged_decision_or_record_is_missing_after_sigkill(fives: int) -> None:
    """Ten kills, a hundred with `-m soak`: of each five, three under load and one at each other moment."""
    status, figures = crash_test("--rounds", str(5 * fives))
    assert figures["problems"] == []
    assert (figures["missing"], figures["invalid_chains"], figures["refused"]) == (0, 0, {})
    assert figures["kills"] == {"under load": 3 * fives, "at a standstill": fives, "while it starts": fives}
    assert min(figures["acknowledged"][kind] for kind in ("decision", "outcome", "review")) > 0
    assert status == 0


def test_a_journal_that_acknowledges_before_the_commit_fails_the_crash_test() -> None:
    status, figures = crash_test("--rounds", "5", "--hasty")
    assert figures["missing"] > 0
    assert status == 1


def test_a_crash_test_without_acknowledgements_fails() -> None:
    status, figures = crash_test("--rounds", "0")
    assert (status, figures["acknowledged"]) == (1, {})
