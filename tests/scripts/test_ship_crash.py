"""The crash test of the shipper: a few rounds by default, two hundred as a soak."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("rounds", [2, pytest.param(200, marks=pytest.mark.soak)])
def test_no_event_is_missing_or_doubled_after_kills(rounds: int) -> None:
    command = [
        sys.executable,
        str(ROOT / "scripts" / "ship_crash.py"),
        "--rounds",
        str(rounds),
        "--seed",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 missing, 0 doubled" in done.stdout
    assert "chain verified: True" in done.stdout
