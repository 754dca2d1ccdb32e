"""How commands of traces and of the graph of work open the journal to read it.

Owns the quick way in. Invariant: a journal of this version is opened without the imports of the daemon; a
journal of an earlier version is migrated first. Main thread.
"""

from __future__ import annotations

from thor_policy.config import Config
from thor_policy.journal.reader import Reader


def open_current(config: Config) -> Reader:
    """A reader of the journal. Raises JournalError, and AlreadyRunning as `open_reader` does."""
    reader = Reader(config.journal_path)
    if reader.is_current():
        return reader
    reader.close()
    from thor_policy.daemon import journal_access  # takes 0.1 s to import

    return journal_access.open_reader(config)
