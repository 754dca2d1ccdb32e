"""What a command needs beside the package itself.

Owns the error for an extra that is not installed. Invariant: it names the extra and how to install it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from thor_policy.core.errors import ConfigError


@contextmanager
def needs_extra(extra: str, command: str) -> Iterator[None]:
    """Turn a missing library inside the block into a ConfigError that names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("thor_policy"):
            raise
        raise ConfigError(
            f"`thorpolicy {command}` needs the extra {extra} ({error.name} is missing): install "
            f"requirements-{extra}.lock beside the package, as the README says"
        ) from error
