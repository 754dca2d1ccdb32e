"""The first command of the README, after its set-up: scripts/demo.py, run as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from thor_policy.catalog.files import ModelFile

ROOT = Path(__file__).resolve().parents[2]

#: The outcome that a person would expect for each of the six questions.
EXPECTED = {
    "routine read": "allow",
    "admin action by a member": "deny",
    "borderline production deploy": "require_attestation",
    "trusted automation": "allow",
    "tampering with the audit trail": "deny",
    "key rotation from a new device": "require_mfa",
}


@pytest.mark.model
def test_the_demo_prints_six_expected_decisions_and_their_journal_rows(
    model_file: ModelFile, tmp_path: Path
) -> None:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "THOR_POLICY_MODELS_DIR": str(model_file.path.parent),
    }
    command = [sys.executable, str(ROOT / "scripts" / "demo.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    decisions, rows = done.stdout.split("== their rows in the journal")
    lines = {
        name: line.removeprefix(name).split()
        for name in EXPECTED
        for line in decisions.splitlines()
        if line.startswith(name)
    }
    assert {name: columns[0] for name, columns in lines.items()} == EXPECTED
    assert lines["borderline production deploy"][1] == "model"
    actions = ("read", "grant_admin", "deploy", "run_tests", "delete", "rotate_key")
    assert [action for action in actions if action not in rows] == []
    assert "stopped with status 0; journal of" in rows
