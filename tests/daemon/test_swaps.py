"""Packs and adapters are swapped while requests are answered by the embedded model: no request fails, and
each answer equals, to the last bit, that of the pack, model, adapter and scale that it names."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.build import write_adapter, write_pack
from thor_policy.catalog.files import ModelFile, resolve_adapter
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.decisions import Adapter, resident_key
from thor_policy.core.requests import Json
from thor_policy.daemon.loading import load_engine
from thor_policy.daemon.service import serving
from thor_policy.engine.llama import NEVER_NS
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.policy import pack_files
from thor_policy.policy.pack import Pack
from thor_policy.protocol.requests import evaluation_of

#: No test waits longer than this for a reply, in seconds.
PATIENCE_S = 120
ASKERS = 2
#: How many different questions there are.
DIFFERENT = 3


def question(number: int) -> dict[str, Json]:
    """The question of this number; those of `number + DIFFERENT` and `number` are equal."""
    return {
        "subject": {"type": "user", "id": "kim"},
        "action": {"name": ("look", "burn", "move")[number % 3]},
        "resource": {"type": "doc", "id": "d"},
    }


class Load:
    """Threads that ask until `stop`: each asks its next question as soon as it has its answer."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._done = threading.Event()
        self._answered = threading.Semaphore(0)
        self._pool = ThreadPoolExecutor(ASKERS)
        self._running = [self._pool.submit(self._ask, first) for first in range(ASKERS)]

    def _ask(self, number: int) -> list[tuple[int, dict[str, Json]]]:
        replies = []
        with Client(self._config.endpoint) as client:
            while not self._done.is_set():
                explain = "later" if number % 16 == 0 else "none"
                reply = client.evaluate(question(number), explain=explain, deadline_ms=PATIENCE_S * 1000)
                replies.append((number, reply["context"]))
                self._answered.release()
                number += ASKERS
        return replies

    def wait_for(self, replies: int) -> None:
        """Wait for this number of further replies."""
        for _ in range(replies):
            assert self._answered.acquire(timeout=PATIENCE_S)

    def stop(self) -> list[tuple[int, dict[str, Json]]]:
        """Every question number with its answer; raises the error of a refused question."""
        self._done.set()
        replies = [reply for asker in self._running for reply in asker.result(timeout=PATIENCE_S)]
        self._pool.shutdown()
        return replies


def swap_under_load(config: Config, folders: list[Path], adapter: Path, rounds: int) -> list[Any]:
    """Activate the packs in turn, `rounds` times; the adapter is active in the last two of each four."""
    load = Load(config)
    with Client(config.endpoint) as client:
        for number in range(rounds):
            if number % 4 == 2:
                client.control(records.Control(task="adapter", adapter=str(adapter), scale=0.5))
            client.control(records.Control(task="activate", pack=str(folders[number % len(folders)])))
            load.wait_for(ASKERS + 1)
            if number % 4 == 3:
                client.control(records.Control(task="adapter", adapter="none"))
    return load.stop()


def verify_by_fresh_engine(
    config: Config, replies: list[Any], folders: list[Path], adapter: Path
) -> set[Any]:
    """Score every question on a fresh engine by the digests of its answer; returns those digests.

    Equal questions under equal digests are scored once, and each of their answers is compared.
    """
    by_digest = {pack.info.sha256: pack for pack in map(pack_files.load, folders)}
    file = resolve_adapter(str(adapter), config.models_dir)
    engine = load_engine(replace(config, state_dir=config.state_dir / "fresh"))
    probabilities: dict[Any, dict[str, float]] = {}

    def score(number: int, pack: Pack, lora: Adapter | None) -> dict[str, float]:
        if lora:
            engine.adopt(lora, file.path)
        evaluation = evaluation_of(question(number), "request")
        floor = pack.book.apply(evaluation, time.time())
        brief = lora is not None and lora.rendering == "brief"
        engine.load(pack.brief_prefix if brief else pack.prefix, lora)
        text = pack.brief_question(evaluation, floor) if brief else pack.question(evaluation, floor.facts)
        return engine.score(resident_key(pack.info.sha256, lora), text, NEVER_NS).probabilities

    try:
        for number, answer in replies:
            adapter_fields = answer["model"]["adapter"]
            lora = adapter_fields and Adapter(**adapter_fields)
            assert lora is None or lora.sha256 == file.sha256
            assert answer["model"]["sha256"] == engine.model.sha256
            digest = answer["pack"]["sha256"]
            key = (digest, lora, number % DIFFERENT)
            if key not in probabilities:
                probabilities[key] = score(number, by_digest[digest], lora)
            assert probabilities[key] == answer["probabilities"]
    finally:
        engine.close()
    return {(digest, lora) for digest, lora, _ in probabilities}


@pytest.mark.model
@pytest.mark.parametrize("rounds", [4, pytest.param(60, marks=pytest.mark.soak)])
def test_no_answer_mixes_packs_or_adapters_while_they_are_swapped_under_load(
    config: Config, tmp_path: Path, model_file: ModelFile, rounds: int
) -> None:
    """Four exchanges of the active pack; sixty with `-m soak`."""
    folders = [
        write_pack(tmp_path / "one", version="1", system="Decide what people may do."),
        write_pack(tmp_path / "two", version="2", system="Decide. Be careful with fire."),
    ]
    adapter = write_adapter(
        tmp_path / "tuned.gguf", base=model_file.path, base_sha256=model_file.sha256, rendering="brief"
    )
    small = replace(
        config,
        pack=str(folders[0]),
        adapter="none",
        context_tokens=768,
        parallel_explanations=1,
        shutdown_s=PATIENCE_S,
    )
    with serving(small):
        replies = swap_under_load(small, folders, adapter, rounds)
        with Client(small.endpoint) as client:
            status = client.status()
    assert {answer["tier"] for _, answer in replies} == {"model"}
    assert status.engine.counters["internal_errors"] == 0
    assert not any(name.startswith("refused_") for name in status.counters)
    seen = verify_by_fresh_engine(small, replies, folders, adapter)
    assert len(seen) == 4, "both packs with the adapter and without it"
    with Reader(small.journal_path) as reader, reader.snapshot() as connection:
        rows = connection.execute("SELECT kind, body FROM events ORDER BY seq").fetchall()
        adapters = connection.execute("SELECT name, scale FROM adapters").fetchall()
    # the first pack is active from the start, so the first of the rounds activates nothing
    assert sum(kind == "pack_activated" for kind, _ in rows) == rounds
    assert adapters == [("tuned.gguf", 0.5), (None, None)] * (rounds // 4)
    assert verify(small.journal_path).ok
