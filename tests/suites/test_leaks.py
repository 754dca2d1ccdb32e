"""Leaks: scenarios that an example gives away, and the thresholds on labelled pairs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from thor_policy.config import Config, data_path
from thor_policy.core.requests import Evaluation
from thor_policy.engine.embedder import MiniLM, missing
from thor_policy.policy import pack_files, yaml_text
from thor_policy.policy.pack import Pack
from thor_policy.suites import leaks, suite_files
from thor_policy.suites.leaks import EMBEDDING_THRESHOLD, TEXT_THRESHOLD
from thor_policy.suites.scenarios import Embedder, Expectation, Scenario
from thor_policy.suites.suite_files import merged
from thor_policy.testing import StubEmbedder

PACKS = pack_files.available(data_path("prompts"))
_PATH = Path(__file__).parents[1] / "data" / "leak-pairs.yaml"
PAIRS = yaml_text.parse(_PATH.read_text(encoding="utf-8"), list[dict[str, Any]], _PATH)


@cache
def pack_of(name: str) -> Pack:
    return pack_files.load(pack_files.find(name, data_path("prompts")))


@pytest.fixture(scope="module")
def minilm() -> Embedder:
    if why := missing(Config().models_dir):
        pytest.skip(why)
    return MiniLM(Config().models_dir)


def example(pack: Pack, name: str) -> Evaluation:
    return next(example.evaluation for example in pack.examples if example.id == name)


def asking(evaluation: Evaluation, **change: Any) -> Scenario:
    raw: dict[str, Any] = merged(msgspec.to_builtins(evaluation), change)
    return Scenario(
        id="S1", title="A copy", difficulty="easy", expect=Expectation(outcome="allow"), request=raw
    )


#: Changes of an example that leave it the same question, and the look that finds each.
COPIES: list[tuple[dict[str, Any], str]] = [
    ({}, "exact"),
    ({"subject": {"id": "somebody-else"}}, "canonical"),
    ({"resource": {"id": "something-else"}}, "canonical"),
    ({"context": {"timestamp": "2026-05-12T10:05:00Z"}}, "canonical"),
    ({"subject": {"id": "anna"}, "context": {"details": "Adds two missing unit tests."}}, "text"),
]


@pytest.mark.parametrize(("change", "look"), COPIES)
def test_a_copy_of_an_example_is_reported_with_both_ids(change: dict[str, Any], look: str) -> None:
    pack = pack_of("team-governance")
    (leak,) = leaks.find([asking(example(pack, "X1"), **change)], pack)
    assert (leak.scenario, leak.example, leak.look) == ("S1", "X1", look)
    assert TEXT_THRESHOLD <= leak.similarity <= 1


@pytest.mark.parametrize("name", PACKS)
def test_every_example_of_every_pack_is_found_when_it_is_copied(name: str) -> None:
    pack = pack_of(name)
    for copied in pack.examples:
        (leak,) = leaks.find([asking(copied.evaluation)], pack)
        assert (leak.example, leak.look, leak.similarity) == (copied.id, "exact", 1.0)


PARAPHRASE = "Two tests that were lacking are added."


def test_a_paraphrase_is_found_with_an_embedder_and_not_without() -> None:
    pack = pack_of("team-governance")
    copy = asking(example(pack, "X1"), subject={"id": "anna"}, context={"details": PARAPHRASE})
    assert leaks.find([copy], pack) == ()
    (leak,) = leaks.find([copy], pack, StubEmbedder([PARAPHRASE, "Adds two missing tests."]))
    assert (leak.example, leak.look) == ("X1", "embedding")


def test_the_same_words_in_another_question_are_no_leak() -> None:
    pack = pack_of("team-governance")
    other = asking(
        example(pack, "X1"),
        subject={"type": "ci", "properties": {"role": "contractor", "trust": {"integrity": 0.1}}},
        action={"name": "delete_branch"},
        resource={"type": "release"},
        context={"details": "Removes what nobody has reviewed."},
    )
    assert leaks.find([other], pack, StubEmbedder()) == ()


# ---------------------------------------------------------------- the thresholds, on labelled pairs


def pairs(*kinds: str, as_judged: bool = True) -> list[tuple[Evaluation, Evaluation]]:
    """The pairs as they were judged, or beside what the examples say today."""
    labelled = []
    for pair in PAIRS:
        if pair["kind"] in kinds:
            shown = msgspec.to_builtins(example(pack_of(pair["pack"]), pair["example"]))
            shown = merged(shown, pair.get("example_then", {})) if as_judged else shown
            changed = merged(shown, pair["change"])
            labelled.append((msgspec.convert(shown, Evaluation), msgspec.convert(changed, Evaluation)))
    return labelled


def examples_of_a_pack() -> Iterator[tuple[Evaluation, Evaluation]]:
    for name in PACKS:
        for left, right in itertools.combinations(pack_of(name).examples, 2):
            yield left.evaluation, right.evaluation


def found_by_wording(pairs: list[tuple[Evaluation, Evaluation]]) -> int:
    return sum(leaks.similarities(*pair)[0] >= TEXT_THRESHOLD for pair in pairs)


def found_by_meaning(pairs: list[tuple[Evaluation, Evaluation]], embedder: Embedder) -> int:
    return sum(
        (leaks.similarities(*pair, embedder)[1] or 0) >= EMBEDDING_THRESHOLD
        or leaks.similarities(*pair)[0] >= TEXT_THRESHOLD
        for pair in pairs
    )


def test_wording_finds_every_copy_that_was_edited_few_paraphrases_and_hardly_ever_another_question() -> None:
    assert found_by_wording(pairs("renamed", "edited")) == len(pairs("renamed", "edited")) == 22
    assert (found_by_wording(pairs("paraphrase")), len(pairs("paraphrase"))) == (4, 20)
    assert (found_by_wording(pairs("different")), len(pairs("different"))) == (1, 26)
    assert found_by_wording(list(examples_of_a_pack())) == 0


@pytest.mark.embedder
def test_meaning_finds_nearly_every_paraphrase(minilm: Embedder) -> None:
    assert found_by_meaning(pairs("renamed", "edited"), minilm) == 22
    assert found_by_meaning(pairs("paraphrase"), minilm) == 19
    assert found_by_meaning(pairs("different"), minilm) == 2
    assert found_by_meaning(pairs("different", as_judged=False), minilm) == 3  # two texts name photos now
    assert found_by_meaning(list(examples_of_a_pack()), minilm) == 0


# ---------------------------------------------------------------- the suites that ship


@pytest.mark.parametrize("path", suite_files.available(data_path("scenarios")), ids=lambda path: path.stem)
def test_no_example_gives_a_scenario_away(path: Path) -> None:
    loaded = suite_files.load(path)
    assert leaks.find(loaded.scenarios, pack_of(loaded.pack)) == ()


@pytest.mark.embedder
def test_no_example_gives_a_scenario_away_by_meaning(minilm: Embedder) -> None:
    for path in suite_files.available(data_path("scenarios")):
        loaded = suite_files.load(path)
        assert leaks.find(loaded.scenarios, pack_of(loaded.pack), minilm) == (), path.stem
