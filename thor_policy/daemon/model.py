"""The model of the settings: how it is loaded, and how a start loads it while the rest is imported.

Owns the thread of that early load. Invariant: nothing is loaded early for a pack of rules alone, nor where
another daemon holds the endpoint; an engine that nobody takes is closed. The early load decodes nothing, so
llama.cpp makes its threads for the engine thread, which decodes. This module imports little, for a reason:
what it imports delays the load.
"""

from __future__ import annotations

import importlib
import re
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from thor_policy import catalog
from thor_policy.config import Config, data_path
from thor_policy.core.engine import Engine
from thor_policy.core.errors import CatalogError, ThorPolicyError
from thor_policy.daemon.sockets import endpoint_lock

#: How long the thread waits for the interpreter while another imports, in seconds. llama.cpp calls back for
#: each of some hundred lines of its log, and with the usual 5 ms the load takes 0.2 s more.
_SWITCH_S = 0.0002
#: In the text of a manifest: the pack asks no model. A manifest that says it otherwise costs a load in vain.
_NO_MODEL = re.compile(r"""(?m)^[ \t]*["']?model["']?[ \t]*:[ \t]*["']?never\b""")


def load_engine(config: Config) -> Engine:
    """The model that the settings name, here or on a server, with no prefix resident yet.

    It is the one of `loading_early` if that has begun. Raises CatalogError, ConfigError, EngineError.
    """
    if _early and _early[0].config is config:
        return _early.pop().engine()
    return _load(config)


def _load(config: Config) -> Engine:
    if config.engine_url:
        from thor_policy.engine.http import read_key
        from thor_policy.engine.remote import RemoteEngine

        return RemoteEngine(
            config.engine_url,
            key=read_key(config.engine_key),
            model=config.engine_model,
            template=config.engine_template,
            question_tokens=config.max_question_tokens,
        )
    from thor_policy.engine.llama import LlamaEngine

    model = catalog.resolve(config.model, config.models_dir)
    if model.base is not None:
        raise CatalogError(f"{model.name} is an adapter for {model.base}; set model to that, adapter to this")
    return LlamaEngine(
        model.path,
        name=model.name,
        sha256=model.sha256,
        context_tokens=config.context_tokens,
        question_tokens=config.max_question_tokens,
        packs=config.resident_packs + 1,  # one to load into while all others decide
        explanations=config.parallel_explanations,
        enriches=config.enrichment != "never",
        threads=config.threads,
        gpu_layers=config.gpu_layers,
        flash_attention=config.flash_attention,
        kv_type=config.kv_type,
        states_dir=config.state_dir / "prefix-states",
    )


@contextmanager
def loading_early(config: Config) -> Iterator[None]:
    """Begin to load the model, if one is needed, for the first `load_engine` in the block. Main thread."""
    if config.engine_url or not _asks_model(config) or not _is_free(config):
        yield
        return
    importlib.import_module("thor_policy.engine.llama")  # here: beside other imports it would take turns
    _early.append(_EarlyEngine(config))
    try:
        yield
    finally:
        while _early:
            _early.pop().close()


class _EarlyEngine:
    """An engine that a thread of its own loads."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._loaded: Future[Engine] = Future()
        threading.Thread(target=self._run, name="model", daemon=True).start()

    def engine(self) -> Engine:
        """The engine, as soon as it is loaded; the caller closes it. Raises what `load_engine` raises."""
        return self._loaded.result()

    def close(self) -> None:
        """Close the engine, now or when it is loaded."""
        self._loaded.add_done_callback(_close)

    def _run(self) -> None:
        usual_s = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_S)
        try:
            self._loaded.set_result(_load(self.config))
        except BaseException as error:  # to be raised where the engine is taken
            self._loaded.set_exception(error)
        finally:
            sys.setswitchinterval(usual_s)


#: The engine that is loaded early and was not taken yet, if there is one.
_early: list[_EarlyEngine] = []


def _close(loaded: Future[Engine]) -> None:
    if loaded.exception() is None:
        loaded.result().close()


def _asks_model(config: Config) -> bool:
    """True if the pack's manifest can be read and does not say `model: never`."""
    for folder in (data_path("prompts") / config.pack, Path(config.pack)):
        try:
            return not _NO_MODEL.search((folder / "pack.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    return False


def _is_free(config: Config) -> bool:
    """True if no daemon holds the endpoint now; `open_service` takes the lock, and reports why it cannot."""
    try:
        with endpoint_lock(config.socket_path):
            return True
    except ThorPolicyError:
        return False
