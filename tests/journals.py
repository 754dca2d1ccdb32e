"""Shared by tests of upgrades: the journals that earlier commits wrote (`tests/data/journals`)."""

from __future__ import annotations

import gzip
from pathlib import Path

_FOLDER = Path(__file__).parent / "data" / "journals"
#: The commits, oldest first.
COMMITS = ("7179ff8", "ed9e116")


def unpack(commit: str, state: Path) -> Path:
    """Put the journal of a commit with its checkpoints into a state directory; returns the database."""
    checkpoints = state / "checkpoints"
    checkpoints.mkdir(parents=True, mode=0o755)
    checkpoints.chmod(0o755)
    for file in (_FOLDER / commit).iterdir():
        if file.suffix != ".gz":
            (checkpoints / file.name).write_bytes(file.read_bytes())
    path = state / "policy_decisions.db"
    path.write_bytes(gzip.decompress((_FOLDER / commit / f"{path.name}.gz").read_bytes()))
    path.chmod(0o640)
    return path
