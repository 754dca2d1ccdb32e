"""The bench room: what is measured is measured on real parts, and what is told of it is so."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import random_phi
from click.testing import CliRunner

from tests.build import write_pack
from thor_policy.bench.determinism import DIFFERENT, determinism
from thor_policy.catalog.files import ModelFile
from thor_policy.cli.main import cli
from thor_policy.config import Config
from thor_policy.core.requests import Action, Entity, Evaluation
from thor_policy.engine.llama import NEVER_NS, LlamaEngine
from thor_policy.policy import pack_files

#: Small enough to be made in a second, with blocks of 256 numbers in each row as the quantisation wants them.
SMALL = random_phi.Shape(
    name="small-phi",
    width=256,
    heads=4,
    kv_heads=2,
    layers=2,
    ffn=512,
    context=4_096,
    rotary=48,
    vocabulary=1_024,
    quantised=True,
)


def evaluations() -> list[Evaluation]:
    return [
        Evaluation(
            subject=Entity(type="user", id=f"u{number}"),
            action=Action(name=verb),
            resource=Entity(type="doc", id="d"),
        )
        for number in range(5)
        for verb in ("look", "burn", "banned")
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_phi.write(tmp_path_factory.mktemp("phi") / "small.gguf", SMALL)


class TestAModelOfRandomWeights:
    def test_the_same_seed_gives_the_same_bytes(self, tmp_path: Path, model: Path) -> None:
        again = random_phi.write(tmp_path / "again.gguf", SMALL).read_bytes()
        assert again == model.read_bytes()
        assert again != random_phi.write(tmp_path / "other.gguf", SMALL, seed=1).read_bytes()

    def test_quantised_it_is_loaded_and_weighs_every_label(self, model: Path, tmp_path: Path) -> None:
        pack = pack_files.load(write_pack(tmp_path / "small"))
        engine = LlamaEngine(model, name="small-phi", sha256="0" * 64, question_tokens=1_024)
        try:
            engine.load(pack.prefix)
            scored = engine.score(pack.info.sha256, "who: a\ndoes: look", NEVER_NS)
        finally:
            engine.close()
        assert all(math.isfinite(one) for one in scored.logits)
        assert all(0.001 < share < 0.999 for share in scored.probabilities.values()), "it knows nothing"

    def test_words_are_taken_in_the_order_of_the_texts_each_once(self) -> None:
        assert random_phi.words_of(["deny it, or", "deny that"], 3) == ["deny", "or", "that"]
        assert random_phi.words_of(["deny it, or", "deny that"], 2) == ["deny", "or"]

    def test_phi_4_mini_has_as_many_weights_as_it_is_said_to_have(self) -> None:
        shapes = dict(random_phi._tensors(random_phi.MINI, random_phi.MINI.vocabulary))
        assert sum(math.prod(dims) for dims in shapes.values()) == pytest.approx(3.84e9, rel=0.005)


class TestDeterminism:
    """The same questions, in random order, while everything else goes on."""

    @pytest.mark.model
    def test_no_bit_differs_and_what_was_done_is_told(
        self, model_file: ModelFile, short_dir: Path, tmp_path: Path
    ) -> None:
        pack, other = (
            write_pack(tmp_path / name, system=f"{name}.", version=version)
            for name, version in (("one", "1"), ("other", "2"))
        )
        config = Config(state_dir=short_dir, pack=str(pack), model=str(model_file.path), context_tokens=512)
        asked: list[int] = []
        report = determinism(
            config,
            evaluations(),
            requests=30,
            other=pack_files.load(other),
            advance=lambda: asked.append(1),
        )
        assert report.questions == 10, "rules answer what is banned"
        assert len(asked) == 10 + 30
        assert (len(report.series[0].ms), report.facts["requests"]) == (30, 30)
        assert report.facts["explanations"] > 0
        differing = {name: found for name, found in report.facts.items() if "differ" in name}
        assert differing == dict.fromkeys(differing, 0)
        assert len(differing) == 4

    def test_the_command_says_so_and_writes_its_report(self, model: Path, tmp_path: Path) -> None:
        pack = write_pack(tmp_path / "small")
        arguments = ["bench", "determinism", "--requests", "4", "--model", str(model), "--pack", str(pack)]
        arguments += ["--state-dir", str(tmp_path / "state"), "--report-dir", str(tmp_path), "--json"]
        settings = {"THOR_POLICY_CONTEXT_TOKENS": "8192"}
        done = CliRunner().invoke(cli, arguments, env=settings)
        assert done.exit_code == 0, done.output
        told = json.loads(done.stdout)
        assert told == json.loads((tmp_path / "bench-determinism.json").read_text())
        assert (told["facts"]["requests"], told["facts"]["labels_differing"]) == (4, 0)
        assert told["questions"] == DIFFERENT
