"""Coverage of reasons: elements found word for word, found in other words, or missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy.config import Config
from thor_policy.engine.embedder import MiniLM, missing
from thor_policy.policy import yaml_text
from thor_policy.suites import verdicts
from thor_policy.suites.reasoning import Element, chunks, measure, share
from thor_policy.suites.scenarios import Embedder, Expectation, Reasoning, Scenario, Suite
from thor_policy.suites.verdicts import Result
from thor_policy.testing import StubEmbedder

REASON = "The account is SUSPENDED, so nothing is allowed; the key (an old one) stays."
_PATH = Path(__file__).parents[1] / "data" / "reason-pairs.yaml"
PAIRS = yaml_text.parse(_PATH.read_text(encoding="utf-8"), list[dict[str, Any]], _PATH)


@pytest.fixture(scope="module")
def minilm() -> Embedder:
    if why := missing(Config().models_dir):
        pytest.skip(why)
    return MiniLM(Config().models_dir)


# ---------------------------------------------------------------- how a reason is cut


def test_a_reason_is_divided_into_sentences_and_their_phrases() -> None:
    assert chunks(REASON + " Ask again!") == [
        "The account is SUSPENDED, so nothing is allowed",
        "the key (an old one) stays.",
        "Ask again!",
        "The account is SUSPENDED",
        "nothing is allowed",
        "the key",
        "an old one",
        "stays",
        "Ask again",
    ]


def test_an_empty_reason_has_no_parts() -> None:
    assert chunks("") == chunks(" ... \n -") == []


@given(st.text())
def test_every_part_is_in_the_reason_and_every_word_is_in_a_part(reason: str) -> None:
    parts = chunks(reason)
    assert all(part in reason for part in parts)
    assert len(set(parts)) == len(parts)
    for word in reason.split():
        if word.isalnum() and word.isascii():
            assert any(word in part for part in parts)


# ---------------------------------------------------------------- what counts as covered


@pytest.mark.parametrize("element", ["suspended", "account is suspended", "the key an old one", "Nothing is"])
def test_an_element_found_word_for_word_needs_no_embedding(element: str) -> None:
    class Unused:
        name = "unused"

        def similarities(self, texts: Any, others: Any) -> Any:
            raise AssertionError(texts)

    (element_found,) = measure([element], REASON, Unused(), 1.0)
    assert element_found == Element(text=element, covered=True, similarity=1.0, match=element)


def test_an_element_inside_a_longer_word_is_not_found() -> None:
    (nearest,) = measure(["count is"], REASON, StubEmbedder(), 0.6)
    assert not nearest.covered


def test_an_element_in_other_words_is_covered_by_the_nearest_part() -> None:
    embedder = StubEmbedder(["barred user", "The account is SUSPENDED"])
    (nearest,) = measure(["barred user"], REASON, embedder, 0.95)
    assert nearest == Element(
        text="barred user", covered=True, similarity=0.95, match="The account is SUSPENDED"
    )
    assert not measure(["barred user"], REASON, embedder, 0.96)[0].covered


@pytest.mark.parametrize("reason", [None, "", " . "])
def test_no_reason_covers_nothing(reason: str | None) -> None:
    (uncovered,) = measure(["barred user"], reason, StubEmbedder(), 0.0)
    assert uncovered == Element(text="barred user", covered=False, similarity=0.0, match="")


def test_each_element_is_reported_and_the_share_counts_the_covered_ones() -> None:
    elements = measure(["suspended", "barred user", "an old one"], REASON, StubEmbedder(), 0.5)
    assert [(element.text, element.covered) for element in elements] == [
        ("suspended", True),
        ("barred user", False),
        ("an old one", True),
    ]
    assert share(elements) == pytest.approx(2 / 3)


# ---------------------------------------------------------------- in a run

ANSWER: dict[str, Any] = {
    "decision_id": "0198",
    "outcome": "deny",
    "classification": "identity_risk",
    "risk": "low",
    "reasoning": REASON,
    "clauses": ["R1"],
    "probabilities": {},
    "tier": "rule",
    "floor": "deny",
    "timings_ms": {"total": 1.0},
}


def ran(*elements: str, embedder: Embedder | None, needed: float | None = None) -> Result:
    scenario = Scenario(
        id="S1",
        title="A suspended account",
        difficulty="easy",
        situation={"actor_id": "user:a", "action_type": "push", "resource": "repo:b"},
        expect=Expectation(outcome="deny", reasoning=elements),
    )
    suite = Suite(name="s", pack="p", scenarios=(scenario,), reasoning=Reasoning(needed=needed))
    (result,) = verdicts.run(
        suite, lambda fields: {"context": ANSWER}, labels=["allow", "deny"], quick=False, embedder=embedder
    )
    return result


def test_without_an_embedder_nothing_is_measured_not_even_verbatim_elements() -> None:
    result = ran("suspended", embedder=None, needed=1.0)
    assert (result.status, result.coverage, result.elements) == ("passed", None, ())
    assert verdicts.summarise([result]).mean_coverage is None


def test_coverage_fails_a_scenario_only_if_the_suite_sets_a_minimum() -> None:
    result = ran("suspended", "barred user", embedder=StubEmbedder())
    assert (result.status, result.coverage) == ("passed", 0.5)
    assert [element.text for element in result.elements] == ["suspended", "barred user"]
    assert ran("suspended", "barred user", embedder=StubEmbedder(), needed=0.5).status == "passed"
    failed = ran("suspended", "barred user", embedder=StubEmbedder(), needed=0.6)
    message = "the reason covers 0.50 of its elements, needed 0.6; it lacks barred user"
    assert (failed.status, failed.misses) == ("failed", (message,))
    assert failed.decided_right


def test_a_scenario_that_expects_no_elements_is_not_measured() -> None:
    result = ran(embedder=StubEmbedder(), needed=1.0)
    assert (result.status, result.coverage) == ("passed", None)


def test_the_mean_coverage_is_over_the_measured_reasons() -> None:
    results = [
        ran("suspended", embedder=StubEmbedder()),
        ran("suspended", "barred user", embedder=StubEmbedder()),
        ran(embedder=StubEmbedder()),
    ]
    summary = verdicts.summarise(results)
    assert (summary.reasons_measured, summary.mean_coverage) == (2, 0.75)


# ---------------------------------------------------------------- the threshold, on labelled pairs


@pytest.mark.embedder
def test_the_default_threshold_covers_no_element_that_a_reason_lacks(minilm: Embedder) -> None:
    def covered_count(*, holds: bool) -> int:
        matching = [pair for pair in PAIRS if pair["holds"] is holds]
        assert len(matching) == 24
        default = Reasoning().similarity
        return sum(measure([p["element"]], p["reason"], minilm, default)[0].covered for p in matching)

    assert (covered_count(holds=True), covered_count(holds=False)) == (9, 0)
