"""scripts/approvals_demo.py, run as a user runs it: two people approve, and the approval works once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.callers import as_root

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(
    scope="module", params=[pytest.param((), marks=as_root, id="users"), pytest.param(("--keys",), id="keys")]
)
def printed(request: pytest.FixtureRequest) -> str:
    command = [sys.executable, str(ROOT / "scripts" / "approvals_demo.py"), *request.param]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_the_demo_shows_an_allow_by_two_people_that_works_only_once(printed: str) -> None:
    steps = printed.split("== thorpolicy trace")[0]
    answers = [
        line.strip() for line in steps.splitlines() if line.strip().startswith(("decision", "approval"))
    ]
    assert answers == [
        "decision false, outcome require_attestation",
        "decision true, outcome allow",
        "approval: lifted require_attestation",
        "decision false, outcome require_attestation",
        "approval: refused approval_used",
    ]
    people = [line for line in steps.splitlines() if " approves: " in line]
    assert [line.rsplit(None, 1)[1] for line in people] == ["partial", "approved"]
    assert len({line.partition("(")[2].partition(",")[0] for line in people}) == 2


def test_the_traces_of_both_decisions_draw_who_approved(printed: str) -> None:
    _, denied, allowed = printed.split("== thorpolicy trace")
    for tree in (denied, allowed):
        assert "APPROVED_BY  kim  as manager" in tree
        assert "COUNTERSIGNED_BY  lee  as security" in tree
        assert max(map(len, tree.splitlines()[1:])) <= 80
    task = denied.partition("task ")[2].split()[0]
    assert f"task {task}  approved" in denied
    assert f"used by  {allowed.split()[0]}" in denied
    assert "lifted  require_attestation" in allowed
    assert f"by task {task}" in allowed
    assert "verified: True" in allowed
