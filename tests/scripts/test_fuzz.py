"""Short runs of scripts/fuzz: every target handles hostile inputs as documented. Long runs:
./scripts/fuzz TARGET --minutes 30"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fuzz import TARGETS, Runner, Shared, save

ROOT = Path(__file__).resolve().parents[2]


def fuzz(*arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit status and the figures of the script, run as a user runs it, without atheris."""
    command = [sys.executable, str(ROOT / "scripts" / "fuzz.py"), *arguments, "--blind", "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("target", TARGETS)
def test_hostile_inputs_are_handled_as_documented(target: str, tmp_path: Path) -> None:
    status, figures = fuzz(target, "--runs", "60", "--save", str(tmp_path))
    assert figures["problems"] == []
    assert (figures["runs"], figures["crashes"], figures["hangs"], status) == (60, 0, 0, 0)


@pytest.mark.soak
@pytest.mark.parametrize("target", TARGETS)
def test_thousands_of_hostile_inputs_are_handled_as_documented(target: str, tmp_path: Path) -> None:
    runs = {"packs": 2_000, "suites": 3_000, "transport": 200_000}.get(target, 10_000)
    status, figures = fuzz(target, "--runs", str(runs), "--seed", "7", "--save", str(tmp_path))
    assert (figures["problems"], figures["runs"], status) == ([], runs, 0)


class Broken:
    """A target that fails for inputs that begin with a digit."""

    def run(self, data: bytes) -> None:
        if data[:1].isdigit():
            raise ValueError(data.decode())


def test_the_first_input_of_each_kind_that_fails_is_saved_with_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "shared").write_bytes(bytes(2**20))
    shared = Shared(tmp_path / "shared")
    runner = Runner("broken", Broken(), shared, tmp_path / "saved")  # type: ignore[arg-type]
    for data in (b"a", b"1", b"2", b"b"):
        runner.run(data)
    (saved,) = (path for path in (tmp_path / "saved").iterdir() if not path.suffix)
    assert saved.read_bytes() == b"1"
    assert "ValueError: 1" in saved.with_suffix(".txt").read_text()
    assert shared.read()[0] == 4


def test_the_input_that_ends_the_process_is_known_to_the_watchdog(tmp_path: Path) -> None:
    (tmp_path / "shared").write_bytes(bytes(2**20))
    Shared(tmp_path / "shared").begin(b"deadly")
    watchdog = Shared(tmp_path / "shared")
    runs, seconds, _, data = watchdog.read()
    assert (runs, data) == (0, b"deadly")
    assert seconds > 0
    watchdog.skip()
    assert watchdog.read()[0] == 1
    assert save(tmp_path, "wire", "hang", data, "too long").read_bytes() == b"deadly"
