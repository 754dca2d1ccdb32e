"""`packs try --watch`: it answers again when a file of the pack changes."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.documents import ROOT

RECIPE = ROOT / "docs" / "examples" / "recipes" / "default-deny"
QUESTION = (
    '{"subject": {"type": "user", "id": "ada"}, "action": {"name": "reset"},'
    ' "resource": {"type": "printer", "id": "p1"}}'
)
#: Longest that an answer may take, in seconds.
TIMEOUT_S = 60


def test_a_watched_pack_is_tried_again_after_each_change(tmp_path: Path) -> None:
    pack = shutil.copytree(RECIPE, tmp_path / "watched")
    rules = (pack / "rules.yaml").read_text(encoding="utf-8")
    command = [
        str(Path(sys.executable).parent / "thorpolicy"),
        "packs",
        "try",
        str(pack),
        QUESTION,
        "--watch",
    ]
    watching = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1, cwd=ROOT
    )
    try:
        assert "answer   deny, by rule" in _answer(watching)
        (pack / "rules.yaml").write_text(rules.replace('"print"', '"reset" || true'), encoding="utf-8")
        assert "answer   allow, by rule" in _answer(watching)
        (pack / "rules.yaml").write_text(rules.replace("department in", "departmint in"), encoding="utf-8")
        assert "there is no name 'departmint' here; did you mean 'department'?" in _answer(watching)
        watching.send_signal(signal.SIGINT)
        assert watching.wait(TIMEOUT_S) != 0
    finally:
        watching.kill()
        watching.communicate(timeout=TIMEOUT_S)


def _answer(watching: subprocess.Popen[str]) -> str:
    """What is printed up to the line that says that it waits for changes."""
    assert watching.stdout is not None
    lines = []
    for line in watching.stdout:
        lines.append(line)
        if line.startswith("watching for changes"):
            return "".join(lines)
    raise AssertionError(f"the command ended:\n{''.join(lines)}")
