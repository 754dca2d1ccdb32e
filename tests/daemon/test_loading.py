"""Which engine packs get: the model of the settings, or none for packs of rules alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.build import write_pack, write_rules_only_pack
from thor_policy.config import Config
from thor_policy.core.engine import Engine
from thor_policy.core.errors import CatalogError
from thor_policy.daemon.loading import open_engine
from thor_policy.engine.absent import NoEngine
from thor_policy.policy import pack_files
from thor_policy.policy.pack import Pack
from thor_policy.testing import StubEngine


@pytest.fixture
def alone(tmp_path: Path) -> Pack:
    return pack_files.load(write_rules_only_pack(tmp_path / "alone", rules="[]\n"))


@pytest.fixture
def judged(tmp_path: Path) -> Pack:
    return pack_files.load(write_pack(tmp_path / "judged"))


def never(_: Config) -> Engine:
    raise AssertionError("no model is needed")


def test_packs_of_rules_alone_get_no_model_and_no_adapter(config: Config, alone: Pack) -> None:
    settings = replace(config, adapter="no-such-adapter", models_dir=alone.path)
    engine, adapter = open_engine(settings, alone, alone, load=never)
    assert isinstance(engine, NoEngine)
    assert adapter is None


def test_a_model_is_loaded_if_one_of_the_packs_needs_it(config: Config, alone: Pack, judged: Pack) -> None:
    stub = StubEngine()
    assert open_engine(config, alone, judged, load=lambda _: stub) == (stub, None)


def test_a_model_whose_adapter_cannot_be_opened_is_closed(config: Config, judged: Pack) -> None:
    stub = StubEngine()
    with pytest.raises(CatalogError):
        open_engine(replace(config, adapter="no-such-adapter"), judged, load=lambda _: stub)
    assert stub.closed
