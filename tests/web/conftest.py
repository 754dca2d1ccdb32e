"""A daemon with the pack deploy-approval, tokens of people, and a browser."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests import browser
from tests.gateways import tokens_for
from tests.pages import Running, pages, with_approvals
from thor_policy.config import Config
from thor_policy.daemon.service import serving
from thor_policy.testing import load_stub_engine


@dataclass
class Served:
    """A daemon, its pages, and the tokens of people by name."""

    config: Config
    pages: Running
    tokens: dict[str, str]
    tokens_file: Path


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="tp-") as name:
        folder = Path(name)
        config = with_approvals(Config(state_dir=folder, endpoint=f"ipc://{folder}/policy.sock", threads=1))
        tokens_file = folder / "t" / "tokens.json"
        tokens = tokens_for(
            tokens_file,
            robin=("review", "approve"),
            kim=("approve",),
            lee=("approve",),
            ask=("ask",),
            watch=("control",),
        )
        with (
            serving(config, load_engine=load_stub_engine),
            pages(config, tokens=tokens_file, results=Path(__file__).parents[2] / "results") as running,
        ):
            yield Served(config, running, tokens, tokens_file)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if browser.PATH is None:
        pytest.skip("no Chromium on the path, nor named by CHROMIUM")
    with browser.chromium() as opened:
        yield opened
