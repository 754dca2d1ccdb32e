"""The daemon goes away and comes back: the gateway says 503, goes on, and loses nothing acknowledged."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest

from tests.build import rows, write_rules_only_pack
from tests.gateways import READ, gateway
from thor_policy.config import Config
from thor_policy.daemon.service import serving
from thor_policy.journal.verification.verify import verify
from thor_policy.testing import load_stub_engine

EVALUATION = "/access/v1/evaluation"
RULES = '- {id: all, when: "true", outcome: allow, final: true, because: All may.}\n'
#: The command `thorpolicy`, whichever is first in the path.
SERVE = "from thor_policy.cli.main import main; main()"
PATIENCE_S = 60


@pytest.fixture
def ruled(config: Config, tmp_path: Path) -> Config:
    return replace(config, pack=str(write_rules_only_pack(tmp_path / "pack", rules=RULES)))


@contextmanager
def process(config: Config) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon of its own process, which may be killed; it decides when the block begins."""
    command = [sys.executable, "-c", SERVE, "serve", "--state-dir", str(config.state_dir)]
    command += ["--endpoint", config.endpoint, "--pack", config.pack]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as daemon:
        assert daemon.stderr is not None
        try:
            while b"ready at" not in (line := daemon.stderr.readline()):
                assert line
            yield daemon
        finally:
            daemon.kill()


def test_without_a_daemon_a_request_is_503_at_once_and_works_as_soon_as_there_is_one(ruled: Config) -> None:
    with gateway(ruled.endpoint) as running, running.client() as client:
        for _ in range(2):
            reply = client.post(EVALUATION, json=READ, headers={"X-Request-ID": "r"})
            assert (reply.status_code, reply.headers["Retry-After"]) == (503, "1")
            assert reply.headers["X-Request-ID"] == "r"
            with serving(ruled, load_engine=load_stub_engine):
                assert client.post(EVALUATION, json=READ).status_code == 200
        assert running.counters["daemon_away"] == 2


@dataclass
class Load:
    """What clients got: the ids of acknowledged decisions, and how often each status."""

    url: str
    ids: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False

    async def client(self) -> None:
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=PATIENCE_S) as client:
            while not self.ended:
                reply = await client.post(EVALUATION, json=READ)
                self.statuses[reply.status_code] += 1
                if reply.status_code == 200:
                    self.ids.append(reply.json()["context"]["decision_id"])
                self.changed.set()

    async def until(self, status: int, more: int) -> None:
        """Wait until so many more replies had a status."""
        wanted = self.statuses[status] + more
        async with asyncio.timeout(PATIENCE_S):
            while self.statuses[status] < wanted:
                self.changed.clear()
                await self.changed.wait()


async def kill_under_load(url: str, config: Config) -> Load:
    load = Load(url)
    with process(config) as daemon:
        clients = [asyncio.create_task(load.client()) for _ in range(8)]
        await load.until(200, 50)
        daemon.kill()
        await load.until(503, 20)
    with process(config):
        await load.until(200, 50)
        load.ended = True
        await asyncio.gather(*clients)
    return load


def test_a_daemon_killed_under_load_gives_503_comes_back_and_loses_nothing_acknowledged(
    ruled: Config,
) -> None:
    with gateway(ruled.endpoint) as running:
        load = asyncio.run(kill_under_load(running.url, ruled))
    assert set(load.statuses) == {200, 503}
    recorded = {id for (id,) in rows(ruled.journal_path, "SELECT decision_id FROM decisions")}
    assert set(load.ids) <= recorded
    assert len(set(load.ids)) == len(load.ids) >= 100
    assert verify(ruled.journal_path).problem is None
