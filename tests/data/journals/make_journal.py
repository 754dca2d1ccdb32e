"""Write a journal with the code of an earlier commit, for tests/journal/test_upgrade.py; see README.md there.

Run in a worktree of that commit, with the directory to write to as the argument. It has every kind of event
that the commit knows, one person's erasure, and a signed checkpoint; the signing key is not kept.
"""

from __future__ import annotations

import gzip
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))

from tests.build import by_rule, one_of_each, record, signing
from thor_policy.journal.maintenance.erase import erase
from thor_policy.journal.writer import Journal


def main() -> None:
    """Write the files."""
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "policy_decisions.db"
        record(path, *one_of_each())
        with Journal(path) as journal:
            erase(journal, "user:alice")
        record(path, by_rule(), checkpoints=signing(path))
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("VACUUM")
            connection.execute("PRAGMA journal_mode = DELETE")
        (target / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
        for file in (Path(name) / "checkpoints").iterdir():
            if file.is_file():
                (target / file.name).write_bytes(file.read_bytes())


main()
