"""The early load of the model: begun where one is needed and no daemon runs, taken or closed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.build import write_pack
from thor_policy.catalog.files import ModelFile
from thor_policy.config import Config, data_path
from thor_policy.core.errors import CatalogError
from thor_policy.daemon import model
from thor_policy.daemon.model import load_engine, loading_early
from thor_policy.daemon.sockets import endpoint_lock
from thor_policy.engine.llama import LlamaEngine
from thor_policy.policy.pack_files import PackFiles


@pytest.fixture
def absent(config: Config, tmp_path: Path) -> Config:
    """Settings of a model whose file does not exist: a load of it fails."""
    return replace(config, model=str(tmp_path / "absent.gguf"), pack=str(write_pack(tmp_path / "small")))


def test_the_fault_of_a_model_is_raised_where_the_engine_is_taken(absent: Config) -> None:
    with loading_early(absent):
        assert model._early
        with pytest.raises(CatalogError, match="there is no model file"):
            load_engine(absent)
        assert not model._early, "a second load is not the early one"


def test_an_engine_that_could_not_be_loaded_and_is_not_taken_raises_nothing(absent: Config) -> None:
    with loading_early(absent):
        assert model._early
    assert not model._early


def test_other_settings_do_not_get_the_engine_of_these(absent: Config) -> None:
    with loading_early(absent):
        with pytest.raises(CatalogError, match=r"other\.gguf"):
            load_engine(replace(absent, model=absent.model.replace("absent", "other")))
        assert model._early


@pytest.mark.parametrize("line", ["model: never", "model : 'never'", '"model": "never"'])
def test_nothing_is_loaded_for_a_pack_of_rules_alone(absent: Config, line: str) -> None:
    manifest = Path(absent.pack) / "pack.yaml"
    manifest.write_text(f"{manifest.read_text()}\n{line}\n")
    with loading_early(absent):
        assert not model._early


@pytest.mark.parametrize("pack", ["no-such-pack", "/dev/null", "~nobody-here/pack"])
def test_nothing_is_loaded_for_a_pack_that_cannot_be_read(absent: Config, pack: str) -> None:
    with loading_early(replace(absent, pack=pack)):
        assert not model._early


def test_nothing_is_loaded_while_a_daemon_holds_the_endpoint(absent: Config) -> None:
    with endpoint_lock(absent.socket_path), loading_early(absent):
        assert not model._early


def test_nothing_is_loaded_here_for_a_model_on_a_server(absent: Config) -> None:
    with loading_early(replace(absent, engine_url="http://127.0.0.1:1")):
        assert not model._early


def test_every_shipped_pack_is_known_to_ask_a_model_or_not(absent: Config) -> None:
    for path in sorted(data_path("prompts").glob("*/pack.yaml")):
        with loading_early(replace(absent, pack=path.parent.name)):
            assert bool(model._early) != PackFiles(path.parent).rules_only, path.parent.name


@pytest.mark.model
def test_an_engine_that_is_not_taken_is_closed_and_a_taken_one_is_not(
    model_file: ModelFile, config: Config
) -> None:
    small = replace(config, model=str(model_file.path), context_tokens=256)
    for is_taken in (False, True):
        with loading_early(small):
            engine = load_engine(small) if is_taken else model._early[0].engine()
        assert isinstance(engine, LlamaEngine)
        assert (engine._context is not None) == is_taken
        engine.close()
