"""A short run of scripts/hostile with the stub engine: every request of the honest client has a result.

Whether the thresholds hold is for a quiet machine: ./scripts/hostile"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_request_of_the_honest_client_beside_hostile_ones_has_a_result() -> None:
    options = ["--json", "--stub", "--seconds", "0.4", "--kinds", "huge"]
    command = [sys.executable, str(ROOT / "scripts" / "hostile.py"), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.stdout, done.stderr
    figures = json.loads(done.stdout)
    assert figures["alone"]["rules"]["answered"] == 1.0
    assert [kind["kind"] for kind in figures["kinds"]] == ["huge"]
    for kind in figures["kinds"]:
        assert kind["attacks"] > 0
        for requests in kind["beside"].values():
            assert sum(requests["results"].values()) == requests["sent"]
        assert min(kind["memory_mib"].values()) > 0
        assert "the daemon died" not in kind["problems"]
    assert done.returncode == (1 if figures["problems"] else 0)
