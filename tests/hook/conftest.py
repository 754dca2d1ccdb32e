"""Fixtures of the hooks' tests: a daemon with the pack agent-tools, and the program that an agent starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from thor_policy.config import Config
from thor_policy.daemon.service import serving
from thor_policy.hook.installation import ENTRY
from thor_policy.hook.trial import Ran
from thor_policy.testing import load_stub_engine

#: Runs the program with these options on an event: an object, or bytes as they are.
Hook = Callable[..., Ran]


@pytest.fixture(scope="module")
def gate() -> Iterator[Config]:
    """A daemon whose active pack is agent-tools."""
    with tempfile.TemporaryDirectory(prefix="tp-") as folder:
        config = Config(state_dir=Path(folder), endpoint=f"ipc://{folder}/policy.sock", pack="agent-tools")
        with serving(config, load_engine=load_stub_engine):
            yield config


def start(options: Sequence[str], given: Any, environ: dict[str, str] | None = None) -> Ran:
    """The program as a child process, with nothing in its environment but `environ`."""
    data = given if isinstance(given, bytes) else json.dumps(given).encode()
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(ENTRY), *options],
        input=data,
        capture_output=True,
        env=environ if environ is not None else {"HOME": os.environ.get("HOME", "/")},
        check=False,
    )
    return Ran(done.stdout.decode(), done.stderr.decode(), done.returncode)


@pytest.fixture
def hook(gate: Config, tmp_path: Path) -> Hook:
    """The program for an agent, connected to `gate`, with a state folder of its own."""

    def run(agent: str, given: Any, *options: str) -> Ran:
        state = ["--state", str(tmp_path / "state")]
        return start(["--agent", agent, "--endpoint", gate.endpoint, *state, *options], given)

    return run
