"""Long runs, by their own command: ./scripts/test -m soak tests/test_soak.py"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.engine.test_engine import LABELS, NEVER, STEPS, prefix_of
from thor_policy.catalog.files import ModelFile
from thor_policy.engine.llama import LlamaEngine

pytestmark = [pytest.mark.soak, pytest.mark.model]

REQUESTS = 10_000
#: Short questions, so that ten thousand take minutes; the comparison does not depend on their length.
SHORT = [f"does: {verb} {thing}" for verb in ("read", "deploy", "delete", "rotate") for thing in range(10)]


def test_ten_thousand_requests_give_the_same_bits(model_file: ModelFile, tmp_path: Path) -> None:
    """In random order, with explanations running, another pack resident, and after a restart."""

    def open_engine() -> LlamaEngine:
        engine = LlamaEngine(
            model_file.path,
            name=model_file.name,
            sha256=model_file.sha256,
            context_tokens=768,
            packs=2,
            explanations=2,
            states_dir=tmp_path,
        )
        engine.load(prefix_of("p"))
        engine.load(prefix_of("other", LABELS[:3], turns=2))
        return engine

    engine = open_engine()
    expected = {question: engine.score("p", question, NEVER) for question in SHORT}
    order = random.Random(7)
    differing: Counter[str] = Counter()
    explained = 0
    for number in range(REQUESTS):
        if number == REQUESTS // 2:
            engine.close()
            engine = open_engine()
        question = order.choice(SHORT)
        if order.random() < 0.1:
            engine.score("other", question, NEVER)
        scored = engine.score("p", question, NEVER)
        differing["labels"] += scored.label != expected[question].label
        differing["logits"] += scored.logits != expected[question].logits
        differing["probabilities"] += scored.probabilities != expected[question].probabilities
        if engine.explaining < 2:
            engine.explain(number, "p", scored, STEPS, NEVER)
        if order.random() < 0.3:
            explained += len(engine.step())
    engine.close()
    print(f"{REQUESTS} requests, {explained} explanations, differing: {dict(differing)}")
    assert explained > 100
    assert sum(differing.values()) == 0
