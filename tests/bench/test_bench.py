"""Benchmarks: they measure real parts, print each figure when it is measured, and report what they did."""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import random_phi
from click.testing import CliRunner

from tests.build import write_pack
from thor_policy.bench import figures
from thor_policy.bench.determinism import DIFFERENT, determinism
from thor_policy.catalog.files import ModelFile
from thor_policy.cli.main import cli
from thor_policy.config import Config, data_path
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


#: Room for the shipped questions where each character is a token.
SETTINGS = {"THOR_POLICY_CONTEXT_TOKENS": "8192"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_phi.write(tmp_path_factory.mktemp("phi") / "small.gguf", SMALL)


class TestAModelOfRandomWeights:
    def test_the_same_seed_gives_the_same_bytes(self, tmp_path: Path, model: Path) -> None:
        content = random_phi.write(tmp_path / "again.gguf", SMALL).read_bytes()
        assert content == model.read_bytes()
        assert content != random_phi.write(tmp_path / "other.gguf", SMALL, seed=1).read_bytes()

    def test_a_quantised_model_loads_and_gives_every_label_a_probability(
        self, model: Path, tmp_path: Path
    ) -> None:
        pack = pack_files.load(write_pack(tmp_path / "small"))
        engine = LlamaEngine(model, name="small-phi", sha256="0" * 64, question_tokens=1_024)
        try:
            engine.load(pack.prefix)
            scored = engine.score(pack.info.sha256, "who: a\ndoes: look", NEVER_NS)
        finally:
            engine.close()
        assert all(math.isfinite(logit) for logit in scored.logits)
        assert all(0.001 < share < 0.999 for share in scored.probabilities.values()), "it knows nothing"

    def test_words_of_keeps_the_order_of_the_texts_and_drops_duplicates(self) -> None:
        assert random_phi.words_of(["deny it, or", "deny that"], 3) == ["deny", "or", "that"]
        assert random_phi.words_of(["deny it, or", "deny that"], 2) == ["deny", "or"]

    def test_the_shape_of_phi_4_mini_has_3_84_billion_weights(self) -> None:
        shapes = dict(random_phi._tensors(random_phi.MINI, random_phi.MINI.vocabulary))
        assert sum(math.prod(dims) for dims in shapes.values()) == pytest.approx(3.84e9, rel=0.005)


class TestDeterminism:
    """The same questions in random order, while explanations run and another pack is asked."""

    @pytest.mark.model
    def test_no_bit_differs_and_the_report_counts_what_was_asked(
        self, model_file: ModelFile, config: Config, tmp_path: Path
    ) -> None:
        pack, other = (
            write_pack(tmp_path / name, system=f"{name}.", version=version)
            for name, version in (("one", "1"), ("other", "2"))
        )
        small = replace(config, pack=str(pack), model=str(model_file.path), context_tokens=512)
        steps: list[int] = []
        announced: list[figures.Figure] = []
        report = determinism(
            small,
            evaluations()[:6],
            requests=20,
            other=pack_files.load(other),
            advance=lambda: steps.append(1),
            announce=announced.append,
        )
        assert report.questions == 4, "rules answer what is banned"
        assert len(steps) == 4 + 20
        facts = [figures.Fact(name=name, value=value) for name, value in report.facts.items()]
        assert announced[-len(facts) - 1 :] == [*report.series, *facts]
        assert (len(report.series[0].ms), report.facts["requests"]) == (20, 20)
        assert report.facts["explanations"] > 0
        differing = {name: count for name, count in report.facts.items() if "differ" in name}
        assert differing == dict.fromkeys(differing, 0)
        assert len(differing) == 4

    def test_the_command_prints_its_report_and_writes_it_to_a_file(self, model: Path, tmp_path: Path) -> None:
        pack = write_pack(tmp_path / "small")
        arguments = ["bench", "determinism", "--requests", "4", "--model", str(model), "--pack", str(pack)]
        arguments += ["--state-dir", str(tmp_path / "state"), "--report-dir", str(tmp_path), "--json"]
        result = CliRunner().invoke(cli, arguments, env=SETTINGS)
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert report == json.loads((tmp_path / "bench-determinism.json").read_text())
        assert (report["facts"]["requests"], report["facts"]["labels_differing"]) == (4, 0)
        assert report["questions"] == DIFFERENT
        assert "labels_differing: 0" in result.stderr.splitlines(), "with --json the figures go to stderr"


class TestTheStartBenchmark:
    """One start of each side, on a model of random weights."""

    def test_a_round_reports_times_and_memory_of_both_sides_with_the_same_streams(
        self, model: Path, tmp_path: Path
    ) -> None:
        arguments = ["bench", "start", "--rounds", "1", "--model", str(model), "--json"]
        arguments += ["--pack", str(write_pack(tmp_path / "small")), "--state-dir", str(tmp_path / "state")]
        result = CliRunner().invoke(cli, arguments, env=SETTINGS)
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert {series["name"]: len(series["ms"]) for series in report["series"]} == {
            "bare process": 1,
            "daemon": 1,
            "daemon, first decision": 1,
            "bare process, CPU": 1,
            "daemon, CPU": 1,
        }
        facts = report["facts"]
        assert facts["streams"] == Config().resident_packs + 1 + Config().parallel_explanations
        assert facts["rss_mb_more"] == facts["rss_mb_daemon"] - facts["rss_mb_bare_process"]
        assert [ratio["of"] for ratio in report["ratios"]] == ["daemon", "daemon, CPU"]


#: Speaks as llama-server as far as `bench peers` asks: it is ready, and answers each prompt with one text.
LLAMA_SERVER = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.answer({"status": "ok"})
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["prompt"] and all(isinstance(token, int) for token in body["prompt"])
        answer = {"outcome": "deny", "because": "words " * 4} if "json_schema" in body else " deny"
        self.answer({"content": answer if isinstance(answer, str) else json.dumps(answer)})
    def answer(self, value):
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
    def log_message(self, *_):
        pass

port = int(sys.argv[sys.argv.index("--port") + 1])
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


class TestPeers:
    """Every side on a model of random weights; llama-server is a program that answers without a model."""

    def test_each_figure_is_printed_before_the_report(self, model: Path, tmp_path: Path) -> None:
        server = tmp_path / "llama-server"
        server.write_text(f"#!{sys.executable}\n{LLAMA_SERVER}")
        server.chmod(0o755)
        pack = write_pack(tmp_path / "small")
        arguments = ["bench", "peers", "--questions", "4", "--rounds", "1", "--clients", "2"]
        arguments += ["--llama-server", str(server), "--model", str(model), "--pack", str(pack)]
        result = CliRunner().invoke(cli, [*arguments, "--state-dir", str(tmp_path)], env=SETTINGS)
        assert result.exit_code == 0, result.output
        lines, _, report = result.stdout.partition("\n\n")
        names = [line.partition(":")[0] for line in lines.splitlines()]
        sides = [
            "ours",
            "llama-server, one token",
            "llama-server, JSON schema",
            "llama-cpp-python, JSON chat",
        ]
        assert names[:8] == [f"{side}, round 1" for side in sides] + sides
        assert names[8:11] == [f"ours / {side}" for side in sides[1:]]
        assert names[11:13] == ["ours, explained, 2 clients", "llama-server, JSON schema, 2 slots"]
        assert "explanation_step_ms_max" in names[13:]
        assert "4 questions, 1 rounds" in report


class TestTheJournalBenchmark:
    """A small journal, without a model."""

    def test_each_figure_of_the_report_is_printed_as_a_line(self, model: Path, tmp_path: Path) -> None:
        arguments = ["bench", "journal", "--rows", "2000", "--blocks", "0", "--model", str(model)]
        arguments += ["--pack", str(write_pack(tmp_path / "small")), "--state-dir", str(tmp_path / "state")]
        result = CliRunner().invoke(cli, [*arguments, "--report-dir", str(tmp_path)], env=SETTINGS)
        assert result.exit_code == 0, result.output
        report = json.loads((tmp_path / "bench-journal.json").read_text())
        lines = [line.rpartition(": ")[0] for line in result.stdout.partition("\n\n")[0].splitlines()]
        for name in [figure["name"] for figure in report["series"] + report["rates"]] + [*report["facts"]]:
            assert lines.count(name) == 1, name
        assert "get by id, 200" in lines, "the look-ups at a tenth of the rows are printed too"


class TestTheRulesBenchmark:
    """The shipped packs on the questions of their suites, without a model."""

    def test_each_pack_is_compared_with_the_one_of_its_name(self, tmp_path: Path) -> None:
        shutil.copytree(data_path("prompts") / "trade-risk", tmp_path / "trade-risk")
        result = CliRunner().invoke(
            cli, ["bench", "rules", "--rounds", "1", "--json", "--against", str(tmp_path)]
        )
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        names = [series["name"] for series in report["series"]]
        packs = sorted(path.parent.name for path in data_path("prompts").glob("*/pack.yaml"))
        assert [name for name in names if "," not in name] == packs
        assert names[-2:] == ["trade-risk", "trade-risk, compared"]
        assert [ratio["against"] for ratio in report["ratios"]] == ["trade-risk, compared"]
        assert all(len(series["ms"]) >= 18 for series in report["series"])
