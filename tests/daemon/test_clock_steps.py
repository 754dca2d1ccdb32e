"""A daemon whose wall clock steps while it runs, and one that starts in 1970 (K33)."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import test_full_disk as processes
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.requests import Json
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify

SHIM = Path(__file__).parents[1] / "data" / "clock-shift.c"
#: Further than keys are remembered, in seconds.
FAR_S = 90_000

READ: dict[str, Json] = {
    "subject": {"type": "user", "id": "alice", "properties": {"role": "engineer"}},
    "action": {"name": "read"},
    "resource": {"type": "doc", "id": "guide"},
}


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that moves the wall clock of a process."""
    library = tmp_path_factory.mktemp("shim") / "clock-shift.so"
    command = ["cc", "-shared", "-fPIC", "-o", str(library), str(SHIM), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return library


class Machine:
    """A daemon process with the stub engine, its client, and its wall clock."""

    def __init__(self, daemon: processes.Daemon, client: Client, shift: Path) -> None:
        self._daemon, self._client, self._shift = daemon, client, shift
        self.status = client.status

    def ask(self, **members: Any) -> str:
        """Ask for a decision; returns its id."""
        decision_id: str = self._client.evaluate(READ, **members)["context"]["decision_id"]
        return decision_id

    def step_to(self, shift_s: int) -> str:
        """Move the wall clock, and wait for the line of the log about it."""
        _write(self._shift, shift_s)
        return self._daemon.wait_for_line("the wall clock stepped")

    def stop(self) -> None:
        assert self._daemon.stop() == 0


def _write(shift: Path, seconds: int) -> None:
    new = shift.with_suffix(".new")
    new.write_text(str(seconds))
    new.replace(shift)


@contextmanager
def booted(config: Config, shim: Path, shift_s: int = 0) -> Iterator[Machine]:
    """A daemon whose wall clock is `shift_s` seconds off."""
    shift = config.state_dir / "shift"
    _write(shift, shift_s)
    moved = {"LD_PRELOAD": str(shim), "CLOCK_SHIFT_FILE": str(shift)}
    with processes.serving(config, **moved) as (daemon, client):
        machine = Machine(daemon, client, shift)
        yield machine
        machine.stop()


def newest_first(config: Config) -> list[str]:
    with Reader(config.journal_path) as reader:
        return [row["decision_id"] for row in reader.decisions()]


@pytest.mark.parametrize("step_s", [FAR_S, -FAR_S], ids=["forward", "back"])
def test_a_step_of_the_wall_clock_changes_neither_keys_nor_order_nor_uptime(
    config: Config, shim: Path, step_s: int
) -> None:
    with booted(config, shim) as machine:
        first = machine.ask(idempotency_key="K-1")
        assert f"stepped by {step_s:+}.0 s" in machine.step_to(step_s)
        assert machine.ask(idempotency_key="K-1") == first, "decided once"
        second = machine.ask()
        assert newest_first(config) == [second, first]
        state = machine.status()
        assert state.counters["clock_steps"] == 1
        assert 0 <= state.uptime_s < FAR_S / 2
    assert verify(config.journal_path).ok


def test_a_daemon_that_starts_in_1970_serves_before_and_after_its_clock_is_set(
    config: Config, shim: Path
) -> None:
    with booted(config, shim) as machine:
        old = machine.ask(idempotency_key="K-0")
    with booted(config, shim, shift_s=40 - int(time.time())) as machine:
        early = machine.ask(idempotency_key="K-1")
        assert machine.ask(idempotency_key="K-0") == old, "a key of the run before is remembered"
        with Reader(config.journal_path) as reader:
            assert reader.decisions()[0]["timestamp"].startswith("1970-01-01T00:0")
        machine.step_to(0)
        assert machine.ask(idempotency_key="K-1") == early
        late = machine.ask()
        assert newest_first(config) == [late, early, old]
        assert machine.status().counters["clock_steps"] == 1
    verdict = verify(config.journal_path)
    assert (verdict.ok, verdict.complete) == (True, True)
