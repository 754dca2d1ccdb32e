"""A short run of scripts/tracing-cost: its figures, without a judgement on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.soak
def test_the_cost_of_tracing_is_a_ratio_of_pairs() -> None:
    script = str(ROOT / "scripts" / "tracing_cost.py")
    command = [sys.executable, script, "--json", "--pairs", "1", "--questions", "20"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True)
    figures = json.loads(done.stdout)
    assert set(figures["decisions_per_s"]) == {"off", "on"}
    assert 0 < figures["ratio"]["low"] <= figures["ratio"]["median"] <= figures["ratio"]["high"]
    assert figures["spans"]["spans_sent"] > 0
