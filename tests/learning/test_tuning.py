"""`tune`.

What of a journal counts, what is written, and that nothing is promised that a journal cannot support.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace as with_settings
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.build import CALLER, MODEL, NOON, by_model, by_rule
from tests.page_parser import PageParser
from thor_policy import catalog
from thor_policy.cli.main import cli
from thor_policy.config import Config, data_path
from thor_policy.core import records
from thor_policy.core.decisions import Floor
from thor_policy.core.errors import CalibrationError
from thor_policy.core.requests import Annotations
from thor_policy.daemon.loading import find_adapter
from thor_policy.journal.writer import Journal
from thor_policy.learning import tuning, tuning_page
from thor_policy.policy import pack_files
from thor_policy.policy.bands import Promise, Reviewed, Served, chosen, curve
from thor_policy.policy.pack import Pack
from thor_policy.review.ranking import RANDOM_SHARE, drawn

pytestmark = pytest.mark.model  # the model's file is identified by its digest; no answer is computed
#: The first day of which decisions count, and now: the decisions of `fill` are of two days.
NOW = NOON + 2 * 86_400
Run = Callable[..., Result]


@pytest.fixture
def pack() -> Pack:
    return pack_files.load(data_path("prompts") / "device-operations")


@pytest.fixture
def fill(config: Config, pack: Pack, model_file: catalog.ModelFile) -> Callable[..., None]:
    """Record decisions of the model whose confidence is as often right as it says, and review the sample."""
    companion = find_adapter("auto", 1.0, config, model_file.name)
    model = replace(MODEL, sha256=model_file.sha256, adapter=companion.adapter if companion else None)

    def decide(count: int, *, reviewed: bool = True, only_drawn: bool = True) -> None:
        rng = random.Random(count)
        with Journal(config.journal_path) as journal:
            for number in range(count):
                confidence = round(0.5 + rng.random() / 2, 3)
                rest = dict.fromkeys(pack.labels[1:], (1 - confidence) / 3)
                decision = by_model(
                    id=f"d-{number:06}",
                    at=NOON + number * 86_400 / count,
                    outcome="allow",
                    allow=True,
                    label="allow",
                    confidence=confidence,
                    probabilities={"allow": confidence} | rest,
                    floor=Floor(outcome="allow", final=False, risk="high"),
                    pack=pack.info,
                    model=model,
                )
                journal.decided(decision)
                if not reviewed or (only_drawn and not drawn(decision.id, "sample", RANDOM_SHARE)):
                    continue
                right = rng.random() < confidence or confidence > 0.9
                verdict: dict[str, Any] = (
                    {"verdict": "accept"} if right else {"verdict": "correct_decision", "decision": "deny"}
                )
                review = records.Review(decision_id=decision.id, reviewer="kim", **verdict)
                journal.write(review, record_id=f"r{number}", at=NOON, caller=CALLER)

    return decide


def run(config: Config, *arguments: str) -> Result:
    options = ["--state-dir", str(config.state_dir), "--pack", "device-operations"]
    return CliRunner().invoke(cli, ["tune", *options, "--days", "3650", *arguments])


def test_only_the_random_sample_of_reviews_counts(
    config: Config, pack: Pack, fill: Callable[..., None]
) -> None:
    fill(600, only_drawn=False)  # all of them are reviewed
    evidence = tuning.gather(config, pack, since_days=30, now=NOW)
    assert len(evidence.served) == 600
    assert len(evidence.reviewed) == evidence.drawn
    assert 90 < evidence.drawn < 150  # a fifth
    assert evidence.days == pytest.approx(2.0, abs=0.01)
    assert tuning.gather(config, pack, since_days=1, now=NOW + 86_400).served == ()


def test_decisions_of_rules_count_as_served_and_those_of_another_pack_not(
    config: Config, pack: Pack, fill: Callable[..., None]
) -> None:
    fill(20)
    with Journal(config.journal_path) as journal:
        journal.decided(by_rule(pack=pack.info, outcome="require_operator"))
        journal.decided(by_rule(pack=pack.info, outcome="deny"))
        journal.decided(by_rule())
    served = tuning.gather(config, pack, since_days=30, now=NOW).served
    assert len(served) == 22
    assert [question.asks for question in served if question.confidence is None] == [
        tuning.asks_outcome(pack) == "require_operator",
        False,
    ]


def test_a_band_is_chosen_and_written_as_the_next_version(
    config: Config, pack: Pack, fill: Callable[..., None], tmp_path: Path
) -> None:
    fill(3_000)
    promise = ["--asks-per-day", "3000", "--false-allows", "10"]
    answer = json.loads(run(config, *promise, "--to", str(tmp_path), "--json").stdout)
    assert 0.5 < answer["below"] < 0.95
    assert answer["point"]["false_allows_at_most"] <= 0.1
    assert len(answer["curve"]) == 101
    assert answer["calibration"]["reviews"]["count"] == answer["reviewed"]
    assert answer["calibration"]["attacked"] is None
    written = pack_files.load(Path(answer["written"]))
    band = written.manifest.limits.abstain
    assert band is not None
    assert band.below == dict.fromkeys(("low", "medium", "high", "critical"), answer["below"])
    assert band.outcome == tuning.asks_outcome(pack)
    assert written.manifest.supersedes is not None
    unchanged = replace(
        written.manifest,
        version=pack.manifest.version,
        supersedes=pack.manifest.supersedes,
        limits=pack.manifest.limits,
    )
    assert unchanged == pack.manifest
    shown = run(config, *promise)
    assert shown.exit_code == 0
    assert "chosen" in shown.output
    assert "nothing written" in shown.output
    assert max(map(len, shown.output.splitlines())) <= 80


def test_the_curve_is_a_page_that_asks_nobody_and_runs_nothing(
    config: Config, fill: Callable[..., None], tmp_path: Path
) -> None:
    fill(3_000)
    file = tmp_path / "new" / "curve.html"
    promise = ["--asks-per-day", "3000", "--false-allows", "10"]
    answer = json.loads(run(config, *promise, "--html", str(file), "--json").stdout)
    parser = PageParser(file.read_text(encoding="utf-8"))
    text = " ".join(parser.text.split())
    assert f"An allow below {answer['below']:.2f} asks" in text
    for point in answer["curve"]:
        if round(point["below"] * 100) % 10 == 0 or point["below"] == answer["below"]:
            assert f"{point['below']:.2f}{100 * point['false_allows']:.2f} %" in text
    assert f"reviews{answer['reviewed']}" in text  # the calibration error of the reviews, with its count
    assert parser.security_policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert parser.references == []


def test_the_page_of_a_refusal_shows_the_curve_and_the_reason(
    config: Config, fill: Callable[..., None], tmp_path: Path
) -> None:
    fill(400)
    file = tmp_path / "curve.html"
    result = run(config, "--asks-per-day", "1", "--false-allows", "10", "--html", str(file))
    assert result.exit_code == 2
    text = " ".join(PageParser(file.read_text(encoding="utf-8")).text.split())
    assert "No band keeps both promises" in text
    assert "the narrowest that keeps false allows" in text
    assert "chosen" not in text.partition("Bands")[2]


def test_without_reviews_there_is_no_curve_and_no_page(
    config: Config, fill: Callable[..., None], tmp_path: Path
) -> None:
    fill(40, reviewed=False)
    file = tmp_path / "curve.html"
    result = run(config, "--asks-per-day", "1", "--false-allows", "10", "--html", str(file))
    assert (result.exit_code, file.exists()) == (2, False)


def test_the_page_shows_hostile_names_as_text(pack: Pack) -> None:
    hostile = "<script>x</script>\u202e\ud800"
    evidence = tuning.Evidence(
        reviewed=(Reviewed(confidence=0.9, may_allow=True),) * 3,
        served=(Served(confidence=0.9, asks=False),) * 3,
        drawn=3,
        days=1.0,
        calibrations=tuning.Calibrations(reviews=None, suites=None, attacked=None),
        sureness=(),
    )
    named = replace(pack.info, name=hostile, version=hostile)
    html = tuning_page.page(named, hostile, evidence, Promise(asks_per_day=1, false_allows=0.5, days=1))
    assert "<script" not in html
    assert "\u202e" not in html


@given(
    st.lists(st.tuples(st.none() | st.floats(0, 1), st.booleans()), min_size=1, max_size=40),
    st.floats(0, 1e9),
    st.floats(1e-9, 1),
)
def test_everything_in_the_chart_is_inside_its_frame(
    questions: list[tuple[float | None, bool]], asks_per_day: float, false_allows: float
) -> None:
    promise = Promise(asks_per_day=asks_per_day, false_allows=false_allows, days=1)
    points = curve(
        [Reviewed(confidence=confidence, may_allow=right) for confidence, right in questions],
        [Served(confidence=confidence, asks=right) for confidence, right in questions],
        promise,
    )
    chart = tuning_page.chart(points, chosen(points), promise)
    for mark in chart.marks:
        assert tuning_page.LEFT <= mark.left <= mark.x <= mark.right <= tuning_page.WIDTH
        assert 0 <= mark.top <= mark.y <= mark.bottom <= tuning_page.HEIGHT
    assert sum(mark.is_chosen for mark in chart.marks) == (chosen(points) is not None)
    assert 3 <= len(chart.x_ticks) <= 11
    assert len({text for text, _ in chart.y_ticks}) == len(chart.y_ticks)


@pytest.mark.parametrize("name", ["team-governance", "discount-approval", "invoice-exception", "trade-risk"])
def test_the_band_can_be_written_into_each_shipped_pack_that_asks_a_model(name: str, tmp_path: Path) -> None:
    written = tuning.write(pack_files.load(data_path("prompts") / name), 0.75, tmp_path)
    assert written.manifest.limits.abstain is not None
    assert set(written.manifest.limits.abstain.below.values()) == {0.75}


def test_what_the_journal_cannot_support_is_refused(
    config: Config, pack: Pack, fill: Callable[..., None], tmp_path: Path
) -> None:
    fill(400, reviewed=False)
    result = run(config, "--asks-per-day", "50", "--false-allows", "1", "--to", str(tmp_path))
    assert result.exit_code == 2
    assert "is reviewed, and 368 reviews are needed" in " ".join(result.output.split())
    assert list(tmp_path.glob("device-operations*")) == []


def test_few_reviews_and_promises_that_exclude_each_other_are_refused(
    config: Config, fill: Callable[..., None]
) -> None:
    fill(400)
    few = run(config, "--asks-per-day", "50", "--false-allows", "1")
    assert (few.exit_code, "review more" in few.output) == (2, True)
    both = run(config, "--asks-per-day", "1", "--false-allows", "10")
    assert (both.exit_code, "no band keeps both promises" in both.output) == (2, True)


def test_a_pack_of_rules_alone_has_nothing_to_tune(config: Config) -> None:
    alone = with_settings(config, pack="agent-tools")
    result = run(alone, "--pack", "agent-tools", "--asks-per-day", "1", "--false-allows", "1")
    assert (result.exit_code, "asks no model" in result.output) == (2, True)


def alone(config: Config, **settings: Any) -> Config:
    """The settings of a model without an adapter."""
    return with_settings(config, adapter="none", **settings)


def decided(config: Config, pack: Pack, model_file: catalog.ModelFile, **fields: Any) -> None:
    """Record a reviewed allow of the random sample, with 0.6 of the probability, without an adapter."""
    number = next(n for n in range(1_000) if drawn(f"d-{n:06}", "sample", RANDOM_SHARE))
    with Journal(config.journal_path) as journal:
        decision = by_model(
            id=f"d-{number:06}",
            outcome="allow",
            allow=True,
            label="allow",
            probabilities={"allow": 0.6} | dict.fromkeys(pack.labels[1:], 0.4 / 3),
            floor=Floor(outcome="allow", final=False, risk="high"),
            pack=pack.info,
            model=replace(MODEL, sha256=model_file.sha256, adapter=None),
            **fields,
        )
        journal.decided(decision)
        review = records.Review(decision_id=decision.id, reviewer="kim", verdict="accept")
        journal.write(review, record_id="r", at=NOON, caller=CALLER)


def test_the_band_is_for_the_confidence_that_the_next_version_will_have(
    config: Config, pack: Pack, model_file: catalog.ModelFile
) -> None:
    """An allow of 0.6 is less than it looks where the model says allow to a question without content, too."""
    even = (1 - 0.9) / 3
    decided(config, pack, model_file, prior={"allow": 0.9} | dict.fromkeys(pack.labels[1:], even))
    corrected = 0.6 / 0.9 / (0.6 / 0.9 + 3 * (0.4 / 3) / even)
    (reviewed,) = tuning.gather(alone(config), pack, since_days=30, now=NOW).reviewed
    assert reviewed.confidence == pytest.approx(corrected)
    plainly = alone(config, contextual_calibration="off")
    (reviewed,) = tuning.gather(plainly, pack, since_days=30, now=NOW).reviewed
    assert reviewed.confidence == pytest.approx(0.6)


def test_without_a_recorded_prior_the_confidence_to_come_is_unknown_which_is_refused(
    config: Config, pack: Pack, model_file: catalog.ModelFile
) -> None:
    decided(config, pack, model_file)
    with pytest.raises(CalibrationError, match="contextual_calibration to off"):
        tuning.gather(alone(config), pack, since_days=30, now=NOW)


def test_scenarios_that_attack_are_measured_apart(
    config: Config, pack: Pack, fill: Callable[..., None], model_file: catalog.ModelFile
) -> None:
    companion = find_adapter("auto", 1.0, config, model_file.name)
    model = replace(MODEL, sha256=model_file.sha256, adapter=companion.adapter if companion else None)
    with Journal(config.journal_path) as journal:
        for difficulty, outcome, count in (("easy", "allow", 3), ("attack", "deny", 2)):
            for number in range(count):
                notes = Annotations(
                    scenario_id=f"{difficulty}-{number}",
                    expected=(outcome,),
                    tags=("device-operations", difficulty),
                )
                rest = dict.fromkeys(pack.labels[1:], 0.1 / 3)
                journal.decided(
                    by_model(
                        id=f"{difficulty}-{number}",
                        outcome="allow",
                        allow=True,
                        label="allow",
                        probabilities={"allow": 0.9} | rest,
                        pack=pack.info,
                        model=model,
                        annotations=notes,
                    )
                )
    measured = tuning.gather(config, pack, since_days=30, now=NOW)
    assert measured.served == ()  # questions of tests
    suites, attacked = measured.calibrations.suites, measured.calibrations.attacked
    assert suites is not None
    assert attacked is not None
    assert (suites.count, attacked.count) == (3, 2)
    assert (suites.ece, attacked.ece) == (pytest.approx(0.1), pytest.approx(0.9))
