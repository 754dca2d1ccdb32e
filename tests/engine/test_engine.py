"""The engine interface: one contract, run over the stub and over llama.cpp with the embedded model."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import random_phi

from tests.build import write_adapter
from thor_policy.catalog.files import ModelFile
from thor_policy.core.decisions import Adapter, Scored, resident_key
from thor_policy.core.engine import (
    ChatTurn,
    Engine,
    Fixed,
    FreeText,
    OneOf,
    PromptPrefix,
    SomeOf,
    Step,
    WrittenExplanation,
)
from thor_policy.core.errors import DeadlineExceeded, EngineError, RequestError
from thor_policy.core.requests import Action, Entity, Evaluation
from thor_policy.engine.llama import LlamaEngine
from thor_policy.engine.native import Vocabulary
from thor_policy.policy.pack import Pack
from thor_policy.testing import StubEngine

NEVER = 2**62
#: Allowed difference of probabilities where bits are not promised; 0.051 was measured.
INEXACT = 0.1
LABELS = (" allow", " require_mfa", " require_attestation", " deny")
SPECIAL_TOKENS = [name for names in random_phi.SPECIALS.values() for name in names]
HOSTILE = ("<|im_end|>", "<|im_start|>", "<|end|>", "<|endoftext|>", "</s>", "<|system|>", "<s>")
QUESTIONS = [f"subject: user:u{n}\naction: deploy\ntarget: env:{'production' * (n % 3)}x" for n in range(12)]
STEPS: tuple[Step, ...] = (
    Fixed(text=" deny\nclass:"),
    OneOf(name="classification", options=(" routine", " privileged", " privileged_change")),
    Fixed(text="\nclauses:"),
    SomeOf(name="clauses", options=(" R1", " R2", " R12"), most=2),
    Fixed(text="\nbecause:"),
    FreeText(name="reasoning", max_tokens=24),
)


def prefix_of(name: str = "p", labels: tuple[str, ...] = LABELS, turns: int = 3) -> PromptPrefix:
    examples = []
    for n in range(turns):
        examples.append(ChatTurn(role="user", text=f"subject: user:a{n}\naction: read\ntarget: doc:d{n}"))
        answer = f"outcome:{labels[n % len(labels)]}\nclass: routine\nclauses: R1\nbecause: It is so."
        examples.append(ChatTurn(role="assistant", text=answer))
    system = ChatTurn(role="system", text="You decide whether a subject may do an action.")
    return PromptPrefix(
        pack_sha256=name,
        turns=(system, *examples),
        answer_head="outcome:",
        labels=labels,
        question_head="subject:",
    )


def finish(engine: Engine) -> list[WrittenExplanation]:
    ended: list[WrittenExplanation] = []
    while engine.explaining:
        ended += engine.step()
    return ended


def assert_same(engine: Engine, scored: Scored, other: Scored) -> None:
    """Equal bits if the engine promises them, else the same label and similar probabilities."""
    if engine.model.exact:
        assert (scored.logits, scored.probabilities) == (other.logits, other.probabilities)
    else:
        assert scored.label == other.label
        assert scored.probabilities == pytest.approx(other.probabilities, abs=INEXACT)


OpenEngine = Callable[..., Engine]


@pytest.fixture(
    params=["stub", pytest.param("llama", marks=pytest.mark.model)],
    scope="module",
)
def engine(request: pytest.FixtureRequest, threads: int) -> Iterator[Engine]:
    opened: Engine
    if request.param == "stub":
        opened = StubEngine()
    else:
        model: ModelFile = request.getfixturevalue("model_file")
        opened = LlamaEngine(
            model.path,
            name=model.name,
            sha256=model.sha256,
            context_tokens=1024,
            packs=3,
            explanations=3,
            enriches=True,
            threads=threads,
        )
    opened.load(prefix_of())
    yield opened
    opened.close()


class TestContract:
    def test_a_score_is_a_distribution_over_exactly_the_labels(self, engine: Engine) -> None:
        scored = engine.score("p", QUESTIONS[0], NEVER)
        assert list(scored.probabilities) == [label.strip() for label in LABELS]
        assert sum(scored.probabilities.values()) == pytest.approx(1.0, abs=1e-12)
        assert scored.label == max(scored.probabilities, key=scored.probabilities.__getitem__)
        assert scored.suffix_tokens
        assert scored.prefix_tokens > 0

    def test_the_same_question_gets_the_same_bits(self, engine: Engine) -> None:
        first = [engine.score("p", question, NEVER) for question in QUESTIONS]
        order = list(range(len(QUESTIONS)))
        random.Random(1).shuffle(order)
        for n in order:
            again = engine.score("p", QUESTIONS[n], NEVER)
            assert_same(engine, again, first[n])

    def test_running_explanations_do_not_change_a_bit_of_a_score(self, engine: Engine) -> None:
        questions = QUESTIONS[:6]  # each is explained, by some forty decodes
        alone = [engine.score("p", question, NEVER) for question in questions]
        for n, question in enumerate(questions):
            scored = engine.score("p", question, NEVER)
            assert_same(engine, scored, alone[n])
            engine.explain(n, "p", scored, STEPS, NEVER)
            engine.step()
        assert engine.explaining == 0 or finish(engine)

    def test_another_resident_pack_does_not_change_a_bit_of_a_score(self, engine: Engine) -> None:
        alone = engine.score("p", QUESTIONS[0], NEVER)
        engine.load(prefix_of("other", turns=5))
        engine.score("other", QUESTIONS[1], NEVER)
        assert_same(engine, engine.score("p", QUESTIONS[0], NEVER), alone)

    def test_every_explanation_ends_and_is_well_formed(self, engine: Engine) -> None:
        for n, question in enumerate(QUESTIONS[:5]):
            engine.explain(n, "p", engine.score("p", question, NEVER), STEPS, NEVER)
        written = finish(engine)
        assert sorted(explanation.ticket for explanation in written) == list(range(5))
        for explanation in written:
            assert not explanation.truncated
            assert explanation.text.startswith("deny\nclass: ")
            assert explanation.values["classification"][0] in ("routine", "privileged", "privileged_change")
            assert 1 <= len(explanation.values["clauses"]) <= 2
            assert set(explanation.values["clauses"]) <= {"R1", "R2", "R12"}
            assert "\n" not in explanation.values["reasoning"][0]
            assert explanation.text.count("\n") == 3

    def test_an_explanation_of_fixed_text_generates_no_token(self, engine: Engine) -> None:
        scored = engine.score("p", QUESTIONS[0], NEVER)
        engine.explain(7, "p", scored, (Fixed(text=" deny\nbecause: A rule says so."),), NEVER)
        (written,) = finish(engine)
        assert written.text == "deny\nbecause: A rule says so."
        assert written.generated_tokens == 0

    def test_an_explanation_past_its_deadline_ends_truncated(self, engine: Engine) -> None:
        scored = engine.score("p", QUESTIONS[0], NEVER)
        for ticket in range(6):
            engine.explain(ticket, "p", scored, STEPS, time.monotonic_ns())
        written = finish(engine)
        assert sorted(explanation.ticket for explanation in written) == list(range(6))
        assert all(explanation.truncated for explanation in written)
        assert_same(engine, engine.score("p", QUESTIONS[0], NEVER), scored)

    def test_give_up_discards_running_and_waiting_explanations(self, engine: Engine) -> None:
        scored = engine.score("p", QUESTIONS[0], NEVER)
        for ticket in range(6):
            engine.explain(ticket, "p", scored, STEPS, NEVER)
        engine.step()
        engine.give_up()
        assert engine.explaining == 0
        engine.explain(9, "p", engine.score("p", QUESTIONS[0], NEVER), STEPS, NEVER)
        assert [explanation.ticket for explanation in finish(engine)] == [9]

    def test_a_text_of_idle_time_changes_no_bit_of_a_score_and_waits_for_no_explanation(
        self, engine: Engine
    ) -> None:
        alone = [engine.score("p", question, NEVER) for question in QUESTIONS[:4]]
        for ticket in range(4):  # one more than there are streams for explanations
            engine.explain(ticket, "p", engine.score("p", QUESTIONS[ticket], NEVER), STEPS, NEVER)
        engine.enrich(-1, "p", alone[0], STEPS, NEVER)
        written, number = None, 0
        while written is None:
            written = engine.enrich_step()
            if number % 8 == 0:
                other = number // 8 % 4
                assert_same(engine, engine.score("p", QUESTIONS[other], NEVER), alone[other])
            number += 1
        assert (written.ticket, written.truncated) == (-1, False)
        assert written.text.startswith("deny\nclass: ")
        assert set(written.values) == {"classification", "clauses", "reasoning"}
        assert engine.explaining == 4
        engine.give_up()

    def test_a_text_of_idle_time_ends_at_its_deadline_and_with_give_up(self, engine: Engine) -> None:
        scored = engine.score("p", QUESTIONS[0], NEVER)
        engine.enrich(-1, "p", scored, STEPS, time.monotonic_ns())
        written = engine.enrich_step()
        assert written is not None
        assert written.truncated
        assert engine.enrich_step() is None
        engine.enrich(-2, "p", scored, STEPS, NEVER)
        engine.give_up()
        assert engine.enrich_step() is None
        engine.enrich(-3, "p", scored, STEPS, NEVER)
        while (written := engine.enrich_step()) is None:
            pass
        assert written.ticket == -3

    def test_a_passed_deadline_raises_deadline_exceeded(self, engine: Engine) -> None:
        with pytest.raises(DeadlineExceeded, match="deadline"):
            engine.score("p", QUESTIONS[0], time.monotonic_ns())

    def test_a_question_that_does_not_fit_is_refused_with_the_limit(self, engine: Engine) -> None:
        with pytest.raises(RequestError, match=r"tokens; the limit is \d+") as refusal:
            engine.score("p", "word " * 5_000, NEVER)
        assert refusal.value.code == "too_large"
        assert engine.score("p", QUESTIONS[0], NEVER).label

    def test_loading_a_prefix_again_changes_nothing(self, engine: Engine) -> None:
        before = engine.score("p", QUESTIONS[0], NEVER)
        assert engine.load(prefix_of()).prefix_tokens == before.prefix_tokens
        assert_same(engine, engine.score("p", QUESTIONS[0], NEVER), before)

    def test_decisions_between_the_steps_of_a_load_change_no_bit(self, engine: Engine) -> None:
        alone = engine.score("p", QUESTIONS[0], NEVER)
        steps = 0
        for _ in engine.loading(prefix_of("new", turns=5)):
            assert_same(engine, engine.score("p", QUESTIONS[0], NEVER), alone)
            steps += 1
        assert steps > 1
        undisturbed = engine.score("new", QUESTIONS[1], NEVER)
        engine.unload("new")
        engine.load(prefix_of("new", turns=5))
        assert_same(engine, engine.score("new", QUESTIONS[1], NEVER), undisturbed)
        engine.unload("new")
        with pytest.raises(EngineError, match="not loaded"):
            engine.score("new", QUESTIONS[1], NEVER)

    def test_a_cancelled_load_frees_its_stream(self, engine: Engine) -> None:
        for _ in range(4):
            steps = engine.loading(prefix_of("cut"))
            next(steps)
            steps.close()
        engine.load(prefix_of("cut"))
        engine.unload("cut")


class TestAdapterContract:
    """The contract of the engines that accept adapters; the remote engine does not."""

    def test_prefixes_with_and_without_an_adapter_are_resident_together(
        self, engine: Engine, lora: Path
    ) -> None:
        alone = engine.score("p", QUESTIONS[0], NEVER)
        adapter = Adapter(name="tuned", sha256="1" * 64, scale=0.5)
        key = resident_key("p", adapter)
        with pytest.raises(EngineError, match="tuned is not open"):
            engine.load(prefix_of(), adapter)
        engine.adopt(adapter, lora)
        for _ in engine.loading(prefix_of(), adapter):
            assert_same(engine, engine.score("p", QUESTIONS[0], NEVER), alone)
        tuned = engine.score(key, QUESTIONS[0], NEVER)
        assert tuned.probabilities != alone.probabilities
        for _ in range(2):
            assert_same(engine, engine.score("p", QUESTIONS[0], NEVER), alone)
            assert_same(engine, engine.score(key, QUESTIONS[0], NEVER), tuned)
        for ticket, (name, scored) in enumerate([("p", alone), (key, tuned), ("p", alone), (key, tuned)]):
            engine.explain(ticket, name, scored, STEPS, NEVER)
        written = {explanation.ticket: explanation.text for explanation in finish(engine)}
        assert (written[0], written[1]) == (written[2], written[3])
        assert not engine.needs(key)
        engine.unload(key)


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory, engine: Engine, request: pytest.FixtureRequest) -> Path:
    """An adapter for the engine; the stub accepts any file."""
    path = tmp_path_factory.mktemp("lora") / "tuned.gguf"
    if not isinstance(engine, LlamaEngine):
        return path
    model: ModelFile = request.getfixturevalue("model_file")
    return write_adapter(path, base=model.path, base_sha256=model.sha256)


@pytest.fixture
def open_llama(model_file: ModelFile, threads: int) -> Iterator[OpenEngine]:
    opened: list[LlamaEngine] = []

    def open_engine(**options: object) -> LlamaEngine:
        defaults = {"context_tokens": 768, "packs": 1, "explanations": 1, "threads": threads}
        engine = LlamaEngine(
            model_file.path,
            name=model_file.name,
            sha256=model_file.sha256,
            **(defaults | options),  # type: ignore[arg-type]
        )
        opened.append(engine)
        return engine

    yield open_engine
    for engine in opened:
        engine.close()


@pytest.mark.model
class TestLlama:
    def test_the_model_is_identified(self, open_llama: OpenEngine, model_file: ModelFile) -> None:
        model = open_llama().model
        assert (model.name, model.sha256) == (model_file.name, model_file.sha256)
        assert (model.architecture, model.quantisation) == ("llama", "Q4_1")
        assert model.parameters == 134_515_008

    def test_a_restored_prefix_scores_like_a_fresh_one(self, open_llama: OpenEngine, tmp_path: Path) -> None:
        fresh = open_llama(states_dir=tmp_path)
        assert not fresh.load(prefix_of()).restored
        expected = [fresh.score("p", question, NEVER).logits for question in QUESTIONS[:3]]
        (state,) = tmp_path.glob("*.state")
        written_at = state.stat().st_mtime_ns
        restored = open_llama(states_dir=tmp_path)
        assert restored.load(prefix_of()).restored
        assert [restored.score("p", question, NEVER).logits for question in QUESTIONS[:3]] == expected
        assert state.stat().st_mtime_ns == written_at

    @pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "no record", "other bits"])
    def test_a_damaged_prefix_state_is_rebuilt(
        self, open_llama: OpenEngine, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        fresh = open_llama(states_dir=tmp_path)
        fresh.load(prefix_of())
        expected = fresh.score("p", QUESTIONS[0], NEVER).logits
        (state,) = tmp_path.glob("*.state")
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        if damage == "flip":
            state.write_bytes(content)
        elif damage == "truncate":
            state.write_bytes(content[: len(content) // 2])
        elif damage == "empty":
            state.write_bytes(b"")
        elif damage == "no record":
            state.with_suffix(".json").unlink()
        else:
            record = json.loads(state.with_suffix(".json").read_text())
            record["golden"][""][0] += 0.5
            state.with_suffix(".json").write_text(json.dumps(record))
        rebuilt = open_llama(states_dir=tmp_path)
        assert not rebuilt.load(prefix_of()).restored
        assert rebuilt.score("p", QUESTIONS[0], NEVER).logits == expected
        assert damage == "no record" or "rebuilt" in caplog.text

    def test_a_link_in_place_of_a_prefix_state_is_not_followed(
        self, open_llama: OpenEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        states = tmp_path / "states"
        open_llama(states_dir=states).load(prefix_of())
        (state,) = states.glob("*.state")
        record = state.with_suffix(".json")
        for file, name in ((state, "state"), (record, "record")):
            file.rename(tmp_path / name)
            file.symlink_to(tmp_path / name)
        before = (tmp_path / "state").read_bytes(), (tmp_path / "record").read_bytes()
        assert not open_llama(states_dir=states).load(prefix_of()).restored
        assert "is a symbolic link" in caplog.text
        assert ((tmp_path / "state").read_bytes(), (tmp_path / "record").read_bytes()) == before
        assert not state.is_symlink()
        assert open_llama(states_dir=states).load(prefix_of()).restored

    def test_an_engine_decides_with_an_unwritable_state_directory(
        self, open_llama: OpenEngine, tmp_path: Path
    ) -> None:
        blocked = tmp_path / "file"
        blocked.write_text("not a directory")
        engine = open_llama(states_dir=blocked)
        engine.load(prefix_of())
        assert engine.score("p", QUESTIONS[0], NEVER).label

    def test_labels_of_any_shape_are_scored_exactly(self, open_llama: OpenEngine) -> None:
        """A branch outside the shared path needs its own decode; the distribution is the same."""
        labels = (" allow_once", " allow_always", " deny_once", " deny_always", " deny_forever")
        engine = open_llama(packs=2)
        engine.load(prefix_of("five", labels))
        five = engine.score("five", QUESTIONS[0], NEVER)
        assert list(five.probabilities) == [label.strip() for label in labels]
        assert sum(five.probabilities.values()) == pytest.approx(1.0, abs=1e-12)
        engine.load(prefix_of("two", (" allow_once", " deny_once")))
        assert engine.score("five", QUESTIONS[0], NEVER).logits == five.logits

    def test_each_adapter_and_scale_has_its_own_prefix_state(
        self, open_llama: OpenEngine, model_file: ModelFile, tmp_path: Path
    ) -> None:
        path = write_adapter(tmp_path / "tuned.gguf", base=model_file.path, base_sha256=model_file.sha256)
        half, whole = (Adapter(name="tuned", sha256="1" * 64, scale=scale) for scale in (0.5, 1.0))
        restored = []
        for adapter in (None, half, whole, None, half, whole):
            engine = open_llama(states_dir=tmp_path / "states", packs=2)
            if adapter is not None:
                engine.adopt(adapter, path)
            restored.append(engine.load(prefix_of(turns=1), adapter).restored)
            engine.close()
        assert restored == [False, False, False, True, True, True]

    def test_only_the_newest_two_prefix_states_per_stream_are_kept(
        self, open_llama: OpenEngine, tmp_path: Path
    ) -> None:
        states = []
        for turns in (1, 2, 3):
            engine = open_llama(states_dir=tmp_path, packs=1)
            engine.load(prefix_of(str(turns), turns=turns))
            engine.close()
            states.append({path.name for path in tmp_path.glob("*.state")})
        assert [len(names) for names in states] == [1, 2, 2]
        assert not states[0] & states[2]
        assert len(list(tmp_path.iterdir())) == 4

    @pytest.mark.parametrize(
        ("metadata", "message"),
        [
            ({}, "its file does not name the model that it was trained on"),
            ({"base_sha256": "0" * 64}, "this model's sha256 is"),
            ({"base_sha256": "0" * 64, "base_name": "SmolLM2 135M Instruct"}, "this model's sha256 is"),
            ({"base_name": "SmolLM2 135M"}, "it was trained on 'SmolLM2 135M'"),
            ({"base_name": "SmolLM2 135M Instruct", "narrower": 32}, "incorrect shape"),
            ({"base_name": "SmolLM2 135M Instruct", "architecture": "phi3"}, "arch mismatch"),
        ],
    )
    def test_an_adapter_for_another_model_is_refused(
        self,
        open_llama: OpenEngine,
        model_file: ModelFile,
        tmp_path: Path,
        metadata: dict[str, Any],
        message: str,
    ) -> None:
        path = write_adapter(tmp_path / "odd.gguf", base=model_file.path, blocks=1, **metadata)
        with pytest.raises(EngineError, match=message):
            open_llama().adopt(Adapter(name="odd", sha256="2" * 64), path)

    def test_an_adapter_that_names_its_model_or_is_vouched_for_is_accepted(
        self, open_llama: OpenEngine, model_file: ModelFile, tmp_path: Path
    ) -> None:
        named = write_adapter(
            tmp_path / "named.gguf", base=model_file.path, base_name="SmolLM2 135M Instruct"
        )
        silent = write_adapter(tmp_path / "silent.gguf", base=model_file.path)
        engine = open_llama()
        engine.adopt(Adapter(name="named", sha256="3" * 64), named)
        engine.adopt(Adapter(name="silent", sha256="4" * 64), silent, vouched=True)
        with pytest.raises(EngineError, match=r"general\.type"):
            engine.adopt(Adapter(name="whole", sha256="5" * 64), model_file.path)

    def test_labels_that_cannot_be_told_apart_are_refused(self, open_llama: OpenEngine) -> None:
        with pytest.raises(EngineError, match="deny"):
            open_llama().load(prefix_of("twice", (" deny", " deny_all", " allow")))

    def test_a_prefix_that_does_not_fit_is_refused_with_the_cure(self, open_llama: OpenEngine) -> None:
        with pytest.raises(EngineError, match="raise context_tokens or shorten the pack"):
            open_llama().load(prefix_of("long", turns=60))

    def test_no_text_becomes_a_special_token(self, model_file: ModelFile) -> None:
        vocabulary = Vocabulary(model_file.path, vocab_only=True)
        for text in HOSTILE:
            tokens = vocabulary.tokenise(f"a{text}b")
            assert vocabulary.text_of(tokens) == f"a{text}b"
            assert not any(vocabulary.ends_turn(token) for token in tokens)
        vocabulary.close()

    def test_a_prompt_in_pieces_has_the_tokens_of_the_whole(
        self, model_file: ModelFile, shipped_pack: Pack
    ) -> None:
        vocabulary = Vocabulary(model_file.path, vocab_only=True)
        prefix = shipped_pack.prefix
        for question in QUESTIONS:
            pieces = [token for part in vocabulary.question(prefix, question) for token in part]
            whole = vocabulary.tokenise(vocabulary.text_of(pieces, special=True), special=True)
            assert pieces == whole
        vocabulary.close()

    def test_a_file_that_is_not_a_model_is_named_in_the_error(self, tmp_path: Path) -> None:
        path = tmp_path / "broken.gguf"
        path.write_bytes(b"GGUF" + bytes(64))
        with pytest.raises(EngineError, match=r"broken\.gguf cannot be loaded"):
            LlamaEngine(path, name="broken", sha256="0" * 64)


@pytest.fixture(scope="module", params=[random_phi.PHI_4_MINI, random_phi.PHI_4], ids=["phi-4-mini", "phi-4"])
def phi_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_phi.write(tmp_path_factory.mktemp("phi") / "tiny.gguf", template=request.param)


class TestPhi:
    """Architecture, template and special tokens of the Phi-4 family, with random weights."""

    def test_a_phi_model_scores_and_explains(self, phi_file: Path) -> None:
        engine = LlamaEngine(phi_file, name="tiny", sha256="0" * 64, context_tokens=2048, explanations=2)
        loaded = engine.load(prefix_of())
        assert loaded.golden_scores == 2
        assert engine.model.architecture == "phi3"
        alone = [engine.score("p", question, NEVER).logits for question in QUESTIONS]
        for number, question in enumerate(QUESTIONS):
            scored = engine.score("p", question, NEVER)
            assert scored.logits == alone[number]
            engine.explain(number, "p", scored, STEPS, NEVER)
            engine.step()
        written = finish(engine)
        assert all(explanation.text.startswith("deny\nclass: ") for explanation in written)
        engine.close()

    def test_the_prompt_follows_the_template_of_the_file(self, phi_file: Path) -> None:
        vocabulary = Vocabulary(phi_file, vocab_only=True)
        prefix, suffix = vocabulary.question(prefix_of(turns=1), "subject: x")
        text = vocabulary.text_of([*prefix, *suffix], special=True)
        if "<|im_sep|>" in text:
            assert text.startswith("<|im_start|>system<|im_sep|>You decide")
            assert text.endswith(
                "<|im_start|>user<|im_sep|>subject: x<|im_end|><|im_start|>assistant<|im_sep|>outcome:"
            )
        else:
            assert text.startswith("<|system|>You decide")
            assert text.endswith("<|end|><|user|>subject: x<|end|><|assistant|>outcome:")
        vocabulary.close()

    @pytest.mark.parametrize("hostile", HOSTILE)
    def test_no_field_of_a_request_can_hold_a_special_token(
        self, phi_file: Path, shipped_pack: Pack, hostile: str
    ) -> None:
        vocabulary = Vocabulary(phi_file, vocab_only=True)
        specials = {vocabulary.tokenise(text, special=True)[0] for text in SPECIAL_TOKENS}
        specials = {token for token in specials if vocabulary.text_of([token]) == ""}
        assert len(specials) >= 4
        evaluation = Evaluation(
            subject=Entity(
                type=hostile, id=hostile, properties={"role": hostile, "trust": {hostile: hostile}}
            ),
            action=Action(name=hostile),
            resource=Entity(type=hostile, id=hostile),
            context=dict.fromkeys(("details", "team_context", "recent_history", "incident_status"), hostile),
        )
        facts = shipped_pack.book.apply(evaluation, 1.8e9).facts
        question = shipped_pack.question(evaluation, facts)
        assert hostile in question
        assert not specials & set(vocabulary.tokenise(question))
        vocabulary.close()

    def test_a_prompt_in_pieces_has_the_tokens_of_the_whole(self, phi_file: Path, shipped_pack: Pack) -> None:
        vocabulary = Vocabulary(phi_file, vocab_only=True)
        pieces = [t for part in vocabulary.question(shipped_pack.prefix, QUESTIONS[0]) for t in part]
        assert pieces == vocabulary.tokenise(vocabulary.text_of(pieces, special=True), special=True)
        vocabulary.close()

    @pytest.mark.parametrize(("flash", "kv"), [("on", "f16"), ("off", "f16"), ("off", "f32"), ("on", "q8_0")])
    def test_each_kind_of_attention_is_deterministic(self, phi_file: Path, flash: str, kv: str) -> None:
        engine = LlamaEngine(
            phi_file, name="t", sha256="0" * 64, context_tokens=1024, flash_attention=flash, kv_type=kv
        )
        engine.load(prefix_of())
        first = [engine.score("p", question, NEVER).logits for question in QUESTIONS]
        assert [engine.score("p", question, NEVER).logits for question in QUESTIONS] == first
        engine.close()


@pytest.mark.parametrize(
    ("environment", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, None)],
    ids=["unset", "spin count set", "wait policy set"],
)
def test_the_engine_sets_a_short_spin_count_unless_the_environment_says_otherwise(
    environment: dict[str, str], spins: str | None
) -> None:
    """With long spinning a decode beside another busy program takes ten times as long."""
    program = (
        "import thor_policy.engine.native, json, os; print(json.dumps(os.environ.get('GOMP_SPINCOUNT')))"
    )
    others = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    process = subprocess.run(
        [sys.executable, "-c", program], env=others | environment, capture_output=True, check=True
    )
    assert json.loads(process.stdout) == spins
