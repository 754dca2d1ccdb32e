"""A short run of scripts/mixed-load with the stub engine. The long run, with the model:
./scripts/mixed-load --minutes 30"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_request_of_a_mixed_load_is_accounted_for() -> None:
    command = [
        sys.executable,
        str(ROOT / "scripts" / "mixed_load.py"),
        "--json",
        "--stub",
        "--minutes",
        "0.1",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.stdout, done.stderr
    figures = json.loads(done.stdout)
    assert figures["problems"] == []
    assert sum(figures["sent"].values()) == sum(figures["ended"].values())
    assert {
        "decided: rule",
        "decided: model",
        "decided: cache",
        "recorded",
        "left",
        "done: another pack",
    } <= figures["ended"].keys()
    refusals = {
        "refused: bad_request",
        "refused: not_found",
        "refused: too_large",
        "refused: version_mismatch",
    }
    assert refusals <= figures["ended"].keys()
    assert set(figures["slopes"]) == {"memory_mib", "open_files", "threads"}
    assert done.returncode == 0
