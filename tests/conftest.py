"""Fixtures that several test packages share: the shipped pack, the embedded model, a configuration."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from thor_policy import catalog
from thor_policy.config import Config, data_path
from thor_policy.policy import pack_files
from thor_policy.policy.pack import Pack

# A slow machine is no failure. In CI each run draws the same examples, so that a failure can be repeated.
settings.register_profile("house", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("house")

# A shell starts background jobs with SIGINT ignored, and every child process would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

MODEL = "smollm2-135m-instruct-q4_1"

#: CPU threads of each engine. With more, an engine waits for its threads while other tests use the cores: a
#: decode then takes four times the CPU time. Commands and daemons that tests start read the variable.
THREADS = int(os.environ.setdefault("THOR_POLICY_THREADS", "1"))


@pytest.fixture(scope="session")
def shipped_pack() -> Pack:
    """The pack that a user gets."""
    return pack_files.load(data_path("prompts") / "team-governance")


@pytest.fixture(scope="session")
def model_file() -> catalog.ModelFile:
    """The embedded model; `./scripts/test` pulls it."""
    return catalog.resolve(MODEL, Config().models_dir)


@pytest.fixture(scope="session")
def threads() -> int:
    """CPU threads of an engine that a test opens."""
    return THREADS


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A folder whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="tp-") as folder:
        yield Path(folder)


@pytest.fixture
def free_port() -> int:
    """A TCP port that nobody listens at. Each worker of pytest-xdist takes ports of its own."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port // 2 % workers == worker % workers:  # the kernel prefers odd ports here
            return port


@pytest.fixture
def tcp_endpoint(free_port: int) -> str:
    """A tcp endpoint on which nothing listens."""
    return f"tcp://127.0.0.1:{free_port}"


@pytest.fixture
def config(short_dir: Path) -> Config:
    """A configuration with a state directory and an endpoint of its own; every question is scored."""
    endpoint = f"ipc://{short_dir}/policy.sock"
    return Config(state_dir=short_dir, endpoint=endpoint, cache_size=0, threads=THREADS)
