"""A short run of scripts/enrichment-cost: its figures, without a judgement on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.model
@pytest.mark.soak
def test_the_cost_of_enrichment_is_the_difference_in_pairs() -> None:
    script = str(ROOT / "scripts" / "enrichment_cost.py")
    command = [sys.executable, script, "--json", "--pairs", "1", "--questions", "3"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True)
    figures = json.loads(done.stdout)
    assert set(figures) == {"busy", "paced"}
    for load in figures.values():
        assert load["never"]["p50"] > 0
        assert load["difference"]["p99"] == pytest.approx(load["always"]["p99"] - load["never"]["p99"])
