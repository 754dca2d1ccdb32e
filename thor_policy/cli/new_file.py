"""Where a command writes a document (standard output, or a new file), and the key that signs it.

Owns the way to a new file and to the checkpoint key. Invariant: a file appears under its name when it is
whole, with the mode 0600, and an existing one is never replaced. Main thread.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from thor_policy.config import Config
from thor_policy.core.errors import ConfigError
from thor_policy.journal.checkpoints import key_path
from thor_policy.security import files
from thor_policy.security.signatures import Key


def checkpoint_key(config: Config) -> Key:
    """The key that signs checkpoints; none is made. Raises ConfigError if this user cannot read it."""
    path = key_path(config.checkpoint_key, os.environ)
    try:
        return Key.load_existing(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the checkpoint key {path} {files.reason(error)}") from error


@contextmanager
def new_file(path: Path | None) -> Iterator[TextIO]:
    """Standard output, or a new file at `path`. Raises ConfigError if that exists."""
    if path is None:
        yield sys.stdout
        return
    if os.path.lexists(path):
        raise ConfigError(f"--output: {path} exists; give the name of a new file")
    descriptor, new = tempfile.mkstemp(prefix=".", suffix=".new", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        path.hardlink_to(new)  # a rename would overwrite
    finally:
        Path(new).unlink(missing_ok=True)
    files.sync(path.parent)
