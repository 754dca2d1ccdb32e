"""Training: samples are what the daemon decodes, and an adapter file holds what was trained.

Those marked `train` need the extra [train]; they learn on a model of two layers with random weights.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from pathlib import Path
from typing import Any, ClassVar

import gguf
import msgspec
import numpy as np
import pytest
import random_phi
from click.testing import CliRunner

from tests.build import answered, record, run_of, write_pack
from tests.learning.test_export import corrected
from thor_policy.catalog.files import ModelFile, resolve, resolve_adapter
from thor_policy.cli.main import cli
from thor_policy.config import Config
from thor_policy.core.decisions import resident_key
from thor_policy.core.errors import TrainingError
from thor_policy.core.requests import Evaluation
from thor_policy.engine.native import Vocabulary
from thor_policy.journal.reader import Reader
from thor_policy.learning.export import Correction, gather
from thor_policy.learning.training import conversion, dataset
from thor_policy.learning.training.build import digest_of
from thor_policy.learning.training.judge import require_extra, worse
from thor_policy.learning.training.samples import Case, Renderer, Unfit
from thor_policy.policy import pack_files
from thor_policy.policy.pack import Pack
from thor_policy.suites.comparison import compare

NEVER_NS = 2**63 - 1


def case(number: int = 0, **changes: Any) -> Case:
    fields: dict[str, Any] = {
        "pack": "team-governance",
        "evaluation": {
            "subject": {"type": "user", "id": f"user-{number}", "properties": {"role": "developer"}},
            "action": {"name": "deploy"},
            "resource": {"type": "env", "id": ("staging", "production")[number % 2]},
            "context": {"details": f"Release {number}."},
        },
        "outcome": "deny" if number % 2 else "require_attestation",
        "clauses": ("R1",),
        "reasoning": "It says so.",
        "source": "test",
    }
    return Case(**fields | changes)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    folder = tmp_path_factory.mktemp("tiny")
    return resolve(str(random_phi.write(folder / "tiny-phi.gguf")), folder)


@pytest.fixture
def vocabulary(tiny: ModelFile) -> Any:
    opened = Vocabulary(tiny.path, vocab_only=True)
    yield opened
    opened.close()


def test_a_sample_holds_the_tokens_that_the_daemon_decodes(
    vocabulary: Vocabulary, shipped_pack: Pack
) -> None:
    known = case()
    sample = Renderer(vocabulary, {"team-governance": shipped_pack}).sample(known)
    evaluation = msgspec.convert(known.evaluation, Evaluation)
    floor = shipped_pack.book.apply(evaluation, known.at)
    question = shipped_pack.brief_question(evaluation, floor)
    prefix, suffix = vocabulary.question(shipped_pack.brief_prefix, question)
    assert list(sample.prompt) == prefix + suffix
    assert vocabulary.text_of(sample.label) == f" {known.outcome}"
    why = f", for {floor.because}" if floor.because else ""
    assert question.endswith(f"\nrules ask: {floor.outcome}{why}")


def test_the_rest_of_an_answer_is_as_in_examples_and_a_default_class_is_not_learned(
    vocabulary: Vocabulary, shipped_pack: Pack
) -> None:
    sample = Renderer(vocabulary, {"team-governance": shipped_pack}).sample(case(1))
    text = vocabulary.text_of(sample.rest)
    name = shipped_pack.manifest.classifications[0]
    assert text == f"\nclass: {name}\nclauses: R1\nbecause: It says so."
    learned = vocabulary.text_of([t for t, counts in zip(sample.rest, sample.graded, strict=True) if counts])
    assert learned == "\nclauses: R1\nbecause: It says so."


def test_a_case_that_is_looser_than_the_rules_is_left_out(vocabulary: Vocabulary, shipped_pack: Pack) -> None:
    renderer = Renderer(vocabulary, {"team-governance": shipped_pack})
    audit = {"action": {"name": "disable"}, "resource": {"type": "audit_log", "id": "main"}}
    loose = case(evaluation=case().evaluation | audit, outcome="allow")
    with pytest.raises(Unfit, match="demand deny"):
        renderer.sample(loose)
    left_out: list[str] = []
    assert len(list(renderer.samples([loose, case(1)], left_out))) == 1
    assert left_out
    assert left_out[0].startswith("test: allow, but ")


def test_a_tensor_that_is_no_known_projection_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no projection"):
        conversion.write(
            tmp_path / "a.gguf",
            {"base_model.model.lm_head.lora_A.weight": np.zeros((2, 4))},
            name="a",
            architecture="llama",
            heads=2,
            kv_heads=1,
            alpha=4,
            base_name="b",
            base_sha256="0" * 64,
            rendering="brief",
            licence="MIT",
            training_sha256="0" * 64,
        )


class TestReadBack:
    """Another training continues from the weights in an adapter's file."""

    SHAPE: ClassVar[dict[str, Any]] = {"architecture": "llama", "heads": 3, "kv_heads": 1}

    def weights(self, *, rank: int = 2) -> dict[str, np.ndarray]:
        random = np.random.default_rng(1)
        rows = {"q_proj": 24, "k_proj": 8, "o_proj": 24}  # heads of eight rows
        return {
            f"base_model.model.model.layers.{block}.self_attn.{name}.lora_{side}.weight": random.normal(
                size=(rank, 24) if side == "A" else (rows[name], rank)
            ).astype(np.float16)
            for block in range(2)
            for name in rows
            for side in "AB"
        }

    def written(self, path: Path, weights: dict[str, np.ndarray]) -> Path:
        origin = {"base_name": "b", "base_sha256": "0" * 64, "licence": "MIT", "training_sha256": "0" * 64}
        conversion.write(path, weights, name="a", alpha=6, rendering="brief", **self.SHAPE, **origin)
        return path

    def test_an_adapter_is_read_back_as_it_was_written_in_the_order_of_llama_cpp(
        self, tmp_path: Path
    ) -> None:
        weights = self.weights()
        path = self.written(tmp_path / "a.gguf", weights)
        read = conversion.read(path, weights, **self.SHAPE)
        assert read.keys() == weights.keys()
        assert all((read[name] == weights[name]).all() for name in weights)
        assert conversion.strength_of(path) == (2, 6)
        turned = next(
            tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "blk.0.attn_q.weight.lora_b"
        )
        query = weights["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
        assert (turned.data[:8] == query[[0, 4, 1, 5, 2, 6, 3, 7]]).all()

    def test_an_adapter_of_other_projections_is_refused(self, tmp_path: Path) -> None:
        weights = self.weights()
        fewer = {name: tensor for name, tensor in weights.items() if "o_proj" not in name}
        for held, wanted in ((fewer, weights), (weights, fewer)):
            with pytest.raises(TrainingError, match=r"adapts other projections.*start without it"):
                conversion.read(self.written(tmp_path / "a.gguf", held), wanted, **self.SHAPE)

    def test_an_adapter_of_several_ranks_is_refused(self, tmp_path: Path) -> None:
        name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        mixed = self.weights() | {name: self.weights(rank=4)[name]}
        with pytest.raises(TrainingError, match="has 2 ranks"):
            conversion.strength_of(self.written(tmp_path / "a.gguf", mixed))


class TestLessons:
    """A training set: corrections without near-duplicates of held-out ones, and earlier cases."""

    @pytest.fixture
    def pack(self, tmp_path: Path) -> Pack:
        return pack_files.load(write_pack(tmp_path / "small"))

    def gathered(self, pack: Pack, tmp_path: Path, count: int) -> tuple[Correction, ...]:
        journal = tmp_path / "policy_decisions.db"
        record(journal, *corrected(pack, count))
        with Reader(journal) as reader:
            return gather(reader, pack).corrections

    def test_corrections_are_repeated_and_a_fifth_is_held_out(self, pack: Pack, tmp_path: Path) -> None:
        before = [case(number, pack=pack.info.name) for number in range(500)]
        corrections = self.gathered(pack, tmp_path, 60)
        made = dataset.lesson(corrections, pack, before, seed=1)
        assert (made.corrections, len(made.held_out), made.replayed) == (48, 12, dataset.LEAST_REPLAYED)
        assert len(made.train) == 48 * dataset.REPEATS + dataset.LEAST_REPLAYED
        learned = {each.evaluation["context"]["details"] for each in made.train}
        assert not learned & {each.evaluation["context"]["details"] for each in made.held_out}
        assert dataset.lesson(corrections, pack, before, seed=1) == made
        assert dataset.lesson(corrections, pack, before, seed=2) != made

    def test_without_earlier_cases_the_examples_of_the_pack_are_used(
        self, pack: Pack, tmp_path: Path
    ) -> None:
        made = dataset.lesson(self.gathered(pack, tmp_path, 50), pack, [], seed=1)
        shown = [each.source for each in made.train if each.source.startswith("example")]
        assert sorted(shown) == sorted(f"example {each.id}" for each in pack.examples)

    def test_cases_are_read_from_json_lines_compressed_or_not(self, tmp_path: Path) -> None:
        cases = [case(number) for number in range(3)] + [case(4, pack="other")]
        lines = b"".join(msgspec.json.encode(each) + b"\n" for each in cases)
        (tmp_path / "cases.jsonl").write_bytes(lines)
        (tmp_path / "cases.jsonl.gz").write_bytes(gzip.compress(lines))
        for name in ("cases.jsonl", "cases.jsonl.gz"):
            assert dataset.read(tmp_path / name, ("team-governance",)) == cases[:3]

    @pytest.mark.parametrize(
        ("member", "problem"),
        [
            (b'"at": 0.0, "at": 0.0', "at: is there twice"),
            (b'"x": {"y": 1, "y": 1}', r"x\.y: is there twice"),
            (b'"x": 1e400', "x: the number is too large"),
            (b'"x": [18446744073709551616]', r"x\.0: the integer does not fit 64 bits"),
        ],
    )
    def test_a_case_that_is_not_strict_json_is_refused(
        self, tmp_path: Path, member: bytes, problem: str
    ) -> None:
        line = msgspec.json.encode(case(1))
        (tmp_path / "cases.jsonl").write_bytes(line + b"\n" + line[:-1] + b", " + member + b"}\n")
        with pytest.raises(TrainingError, match=rf"holds no cases: {problem}"):
            dataset.read(tmp_path / "cases.jsonl", ("team-governance",))

    @pytest.mark.parametrize(
        "content", [b"{", b"[1]\n", b'{"pack": "a"}\n', b"\x1f\x8b", b'{"pack": "\xff"}']
    )
    def test_a_file_without_cases_is_refused(self, tmp_path: Path, content: bytes) -> None:
        for name in ("cases.jsonl", "cases.jsonl.gz"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(TrainingError, match="holds no cases"):
                dataset.read(tmp_path / name, ("team-governance",))

    def test_a_scenario_that_is_right_now_and_would_be_wrong_is_a_reason_against_a_candidate(self) -> None:
        now, then = (
            run_of(answered("Q1", outcome, wanted="mfa"), answered("Q2", "deny", wanted="mfa"))
            for outcome in ("mfa", "deny")
        )
        assert worse(compare(now, then)) == ["trial Q1: mfa now, deny by the candidate"]
        assert worse(compare(then, now)) == []


@pytest.mark.train
@pytest.mark.filterwarnings("ignore")  # torch, peft and transformers warn about each other
class TestLearning:
    """Training on a model of two layers: checkpoints, continuing, conversion and the command."""

    @pytest.fixture(autouse=True)
    def torch_is_there(self) -> None:
        pytest.importorskip("torch", reason="torch comes with the extra [train]")

    def tensors(self, path: Path) -> dict[str, np.ndarray]:
        return {tensor.name: tensor.data.astype(np.float32) for tensor in gguf.GGUFReader(path).tensors}

    def test_llama_cpp_agrees_with_a_trained_adapter(self, tiny: ModelFile, tmp_path: Path) -> None:
        from thor_policy.learning.training.build import make
        from thor_policy.learning.training.settings import Settings

        pack = pack_files.load(pack_files.find("team-governance", Path(__file__).parents[2] / "prompts"))
        cases = [case(number) for number in range(48)]
        settings = Settings(rank=4, alpha=8, epochs=2, batch_size=8, check_every=4, learning_rate=0.01)
        made = make(
            tiny, {"team-governance": pack}, cases[:40], cases[40:], settings, name="learned", folder=tmp_path
        )
        assert made.parity.same_label == made.parity.prompts == 8
        assert made.curve[-1]["label_loss"] < made.curve[0]["label_loss"]
        file = resolve_adapter(str(tmp_path / "learned.gguf"), tmp_path)
        assert (file.sha256, file.rendering) == (made.sha256, "brief")
        cases_read = dataset.read(tmp_path / "learned.cases.jsonl.gz", ("team-governance",))
        assert (cases_read, digest_of(cases_read)) == (cases[:40], made.training_sha256)

        again = make(
            tiny, {"team-governance": pack}, cases[:40], cases[40:], settings, name="again", folder=tmp_path
        )
        assert again.curve == made.curve, "the checkpoint was at its end"
        with pytest.raises(TrainingError, match="of a run with other settings or cases"):
            make(
                tiny,
                {"team-governance": pack},
                cases[:39],
                cases[40:],
                settings,
                name="other",
                folder=tmp_path,
            )

    def test_training_continues_from_an_adapter(self, tiny: ModelFile, tmp_path: Path) -> None:
        from thor_policy.learning.training.build import make
        from thor_policy.learning.training.settings import Settings

        pack = pack_files.load(pack_files.find("team-governance", Path(__file__).parents[2] / "prompts"))
        cases = [case(number) for number in range(48)]
        settings = Settings(rank=4, alpha=8, epochs=2, check_every=4, learning_rate=0.01)

        def made(name: str, **changes: Any) -> Any:
            changed = msgspec.structs.replace(settings, **changes.pop("settings", {}))
            folder = tmp_path / name
            return make(
                tiny,
                {pack.info.name: pack},
                cases[:40],
                cases[40:],
                changed,
                name=name,
                folder=folder,
                **changes,
            )

        first, start = made("first"), tmp_path / "first" / "first.gguf"
        brief = {"stop_after": 1, "learning_rate": 0.0, "rank": 16}
        nothing = made("nothing", settings=brief, start=start)
        assert nothing.settings | {"rank": 4, "alpha": 8, "started_from": first.sha256} == nothing.settings
        ours, theirs = self.tensors(start), self.tensors(tmp_path / "nothing" / "nothing.gguf")
        assert ours.keys() == theirs.keys()
        assert all((ours[name] == theirs[name]).all() for name in ours)
        assert nothing.parity.same_label == nothing.parity.prompts

        whole, end = made("next", start=start), self.tensors(tmp_path / "next" / "next.gguf")
        half, midway = made("next", start=start, share=0.5), self.tensors(tmp_path / "next" / "next.gguf")
        begin = self.tensors(start)
        assert (whole.share, half.share, half.curve) == (1.0, 0.5, whole.curve), "it was trained once"
        assert half.parity.same_label == half.parity.prompts
        assert all(np.allclose(midway[name], (begin[name] + end[name]) / 2, atol=1e-3) for name in begin)
        assert any(not np.allclose(begin[name], end[name], atol=1e-3) for name in begin)

        (tmp_path / "second" / "checkpoints").mkdir(parents=True)
        (tmp_path / "first" / "checkpoints" / "last.pt").rename(
            tmp_path / "second" / "checkpoints" / "last.pt"
        )
        with pytest.raises(TrainingError, match="of a run with other settings or cases"):
            made("second", start=start)

    def test_corrections_become_an_adapter_that_may_be_activated(
        self, tiny: ModelFile, short_dir: Path, tmp_path: Path
    ) -> None:
        pack = pack_files.load(write_pack(tmp_path / "small"))
        config = Config(state_dir=short_dir)
        record(config.journal_path, *corrected(pack, 50, outcomes=("deny",)))
        arguments = ["--state-dir", str(short_dir), "--pack", str(pack.path), "--model", str(tiny.path)]
        arguments += ["--rank", "4", "--epochs", "4", "--json"]
        done = CliRunner().invoke(cli, ["train", str(tmp_path / "out"), *arguments])
        assert done.exit_code == 0, done.output
        report = json.loads(done.stdout)
        assert report["held-out corrections, candidate"] == "10 of 10 right"
        assert report["suites"] == "none for this pack"
        assert resolve_adapter(str(tmp_path / "out" / "corrected.gguf"), tmp_path).rendering == "brief"
        assert not (tmp_path / "out" / "corrected-candidate.gguf").exists()

        in_use = {"THOR_POLICY_ADAPTER": str(tmp_path / "out" / "corrected.gguf")}
        done = CliRunner().invoke(cli, ["train", str(tmp_path / "next"), *arguments], env=in_use)
        assert (done.exit_code, (tmp_path / "next").exists()) == (2, False)
        assert "--rank needs --anew: training from corrected.gguf keeps its rank" in done.stderr

        arguments[arguments.index("--rank") : arguments.index("--epochs")] = []
        done = CliRunner().invoke(cli, ["train", str(tmp_path / "next"), *arguments], env=in_use)
        assert done.exit_code == 0, done.output
        by_now = json.loads(done.stdout)["card"]
        assert by_now["settings"]["started_from"] == report["card"]["sha256"]
        assert by_now["curve"][0]["label_loss"] < report["card"]["curve"][0]["label_loss"]

    def test_an_adapter_that_breaks_scenarios_is_refused(
        self, tiny: ModelFile, short_dir: Path, tmp_path: Path, shipped_pack: Pack
    ) -> None:
        record(Config(state_dir=short_dir).journal_path, *corrected(shipped_pack, 50, outcomes=("deny",)))
        arguments = ["--state-dir", str(short_dir), "--pack", str(shipped_pack.path)]
        arguments += ["--model", str(tiny.path), "--rank", "4", "--epochs", "4", "--json"]
        done = CliRunner().invoke(cli, ["train", str(tmp_path / "out"), *arguments])
        assert (done.exit_code, (tmp_path / "out").exists()) == (2, False), "told before the long part"
        assert "raise context_tokens" in done.stderr

        wide = {"THOR_POLICY_CONTEXT_TOKENS": "8192"}  # a vocabulary of 315 tokens makes long prompts
        done = CliRunner().invoke(cli, ["train", str(tmp_path / "out"), *arguments], env=wide)
        assert done.exit_code == 1, done.output
        report = json.loads(done.stdout)
        assert report["held-out corrections, candidate"] == "10 of 10 right", "it learned to deny"
        assert any(
            re.fullmatch(r"team-governance \w+: (?!deny).* now, deny by the candidate", reason)
            for reason in report["refused"]
        ), report["refused"]
        assert not (tmp_path / "out" / "corrected.gguf").exists()
        assert report["adapter"] == str(tmp_path / "out" / "corrected-candidate.gguf")
        assert resolve_adapter(report["adapter"], tmp_path).rendering == "brief"
        assert [trial["of_the_way"] for trial in report["tried"]] == [1.0], "there is nothing to go back to"

        # From an adapter in use, ever smaller shares of the way are tried.
        record(Config(state_dir=tmp_path / "other").journal_path, *corrected(shipped_pack, 50))
        arguments[1] = str(tmp_path / "other")
        arguments[arguments.index("--rank") : arguments.index("--epochs")] = []
        in_use = wide | {"THOR_POLICY_ADAPTER": report["adapter"]}
        done = CliRunner().invoke(cli, ["train", str(tmp_path / "next"), *arguments], env=in_use)
        report = json.loads(done.stdout)
        *before, last = report["tried"]
        assert [trial["of_the_way"] for trial in report["tried"]] == [1.0, 0.5, 0.25][: len(before) + 1]
        assert all(trial["refused"] for trial in before)
        assert (last["refused"], last["of_the_way"]) == (report["refused"], report["card"]["share"])
        assert done.exit_code == bool(report["refused"]), done.output

    def test_49_corrections_are_too_few(self, tiny: ModelFile, short_dir: Path, tmp_path: Path) -> None:
        pack = pack_files.load(write_pack(tmp_path / "small"))
        record(Config(state_dir=short_dir).journal_path, *corrected(pack, 49))
        arguments = ["--state-dir", str(short_dir), "--pack", str(pack.path), "--model", str(tiny.path)]
        done = CliRunner().invoke(cli, ["train", str(tmp_path / "out"), *arguments])
        assert (done.exit_code, (tmp_path / "out").exists()) == (2, False)
        assert "needs 50, so 1 are missing" in done.stderr

    def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(
        self, tiny: ModelFile, vocabulary: Vocabulary, shipped_pack: Pack, tmp_path: Path
    ) -> None:
        from thor_policy.learning.training.lora import Learner
        from thor_policy.learning.training.settings import Settings

        renderer = Renderer(vocabulary, {"team-governance": shipped_pack})
        samples = [renderer.sample(case(number)) for number in range(24)]
        labels = {"team-governance": renderer.labels("team-governance")}
        settings = Settings(rank=2, alpha=4, epochs=1, batch_size=4, check_every=2, learning_rate=0.01)

        class Cut(Exception):
            pass

        def cut(step: int, _steps: int, _loss: float) -> None:
            if step == 5:
                raise Cut

        def run(folder: Path, **extra: Any) -> Any:
            learner = Learner(tiny.path, settings)
            learner.fit(samples, samples[:8], labels, folder=folder, training="t", **extra)
            return learner.weights()

        whole = run(tmp_path / "whole")
        with pytest.raises(Cut):
            run(
                tmp_path / "cut", advance=lambda step, *_: (_ for _ in ()).throw(Cut()) if step == 5 else None
            )
        resumed = run(tmp_path / "cut")
        assert whole.keys() == resumed.keys()
        assert all((whole[name] == resumed[name]).all() for name in whole)

    def test_torch_reads_the_probabilities_that_the_engine_reads(
        self, tiny: ModelFile, vocabulary: Vocabulary, shipped_pack: Pack
    ) -> None:
        from thor_policy.engine.llama import LlamaEngine
        from thor_policy.learning.training.lora import Learner
        from thor_policy.learning.training.settings import Settings

        renderer = Renderer(vocabulary, {"team-governance": shipped_pack})
        known = case()
        (read,) = Learner(tiny.path, Settings(rank=2)).read(
            [renderer.prompt(known)], [renderer.labels("team-governance")]
        )
        engine = LlamaEngine(tiny.path, name="tiny", sha256=tiny.sha256)
        engine.load(shipped_pack.brief_prefix, None)
        evaluation = msgspec.convert(known.evaluation, Evaluation)
        question = shipped_pack.brief_question(evaluation, shipped_pack.book.apply(evaluation, known.at))
        scored = engine.score(resident_key(shipped_pack.info.sha256, None), question, NEVER_NS)
        engine.close()
        assert read == pytest.approx(scored.probabilities, abs=0.02)


def test_training_without_torch_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "thor_policy.learning.training.lora", raising=False)
    with pytest.raises(TrainingError, match=r"torch is not installed; run: \./scripts/setup train"):
        require_extra()
