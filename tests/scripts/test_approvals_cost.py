"""A short run of scripts/approvals-cost: its figures, without a judgement on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.callers import as_root

ROOT = Path(__file__).resolve().parents[2]


@as_root
def test_the_cost_of_an_approval_is_the_difference_in_pairs() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "approvals_cost.py"), "--json", "--pairs", "20"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.stdout, done.stderr
    figures = json.loads(done.stdout)
    assert figures["pairs"] == 20
    assert (figures["difference_ms"]["median"] <= figures["goal_ms"]) is (done.returncode == 0)
    assert figures["with_approval_ms"]["median"] > 0
