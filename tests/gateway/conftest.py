"""A daemon with the fixture of the AuthZEN certification scenario, and its gateway."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.gateways import Running, gateway
from thor_policy.config import Config
from thor_policy.daemon.service import serving
from thor_policy.testing import load_stub_engine

CERTIFICATION = Path(__file__).parent.parent / "data" / "packs" / "certification"


@pytest.fixture(scope="module")
def certified() -> Iterator[Config]:
    """A daemon that decides by the pack of the certification scenario."""
    with tempfile.TemporaryDirectory(prefix="tp-") as folder:
        config = Config(
            state_dir=Path(folder),
            endpoint=f"ipc://{folder}/policy.sock",
            pack=str(CERTIFICATION),
            cache_size=0,
            threads=1,
        )
        with serving(config, load_engine=load_stub_engine):
            yield config


@pytest.fixture(scope="module")
def running(certified: Config) -> Iterator[Running]:
    """The gateway of that daemon."""
    with gateway(certified.endpoint, public_url="https://pdp.example.com") as served:
        yield served


@pytest.fixture(scope="module")
def http(running: Running) -> Iterator[httpx.Client]:
    """A client of that gateway that keeps its connection."""
    with running.client() as client:
        yield client
