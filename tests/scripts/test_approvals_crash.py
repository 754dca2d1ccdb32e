"""A short run of scripts/approvals-crash: over SIGKILL no approval is used twice, and none is lost that was
acknowledged. The long run: sudo ./scripts/approvals-crash --rounds 200"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.callers import as_root

ROOT = Path(__file__).resolve().parents[2]


@as_root
@pytest.mark.parametrize("rounds", [3, pytest.param(40, marks=pytest.mark.soak)])
def test_no_approval_is_used_twice_or_lost_after_sigkill(rounds: int) -> None:
    command = [
        sys.executable,
        str(ROOT / "scripts" / "approvals_crash.py"),
        "--json",
        "--rounds",
        str(rounds),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.stdout, done.stderr
    figures = json.loads(done.stdout)
    assert figures["problems"] == []
    assert (figures["used_twice"], figures["missing"], figures["without_both_verdicts"]) == (0, 0, 0)
    assert min(figures["acknowledged"].values()) > 0
    assert (figures["rounds"], done.returncode) == (rounds, 0)
