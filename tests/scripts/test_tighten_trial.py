"""Thresholds are chosen by the cases for choosing alone, and only from the scores in a file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console
from tighten_trial import Line, answers, cases, choose, gain_of, limits_of, read, report

from thor_policy.config import data_path
from thor_policy.policy import pack_files
from thor_policy.policy.pack import Pack

NAME = "team-governance"


ABSTAIN = "  abstain: {outcome: require_attestation, below: {medium: 0.3, high: 0.5, critical: 0.6}}"


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """The shipped pack with an abstention."""
    folder: Path = tmp_path_factory.mktemp("packs") / NAME
    shutil.copytree(data_path("prompts") / NAME, folder)
    text = (folder / "pack.yaml").read_text(encoding="utf-8")
    (folder / "pack.yaml").write_text(text.replace("limits:", f"limits:\n{ABSTAIN}"), encoding="utf-8")
    return pack_files.load(folder)


def line(right: str, doubt: float, **changes: Any) -> Line:
    """A case whose floor is allow; the model gives deny the probability `doubt`."""
    fields: dict[str, Any] = {
        "pack": NAME,
        "pack_sha256": "0" * 64,
        "judge": "stub",
        "use": "choose",
        "source": "test",
        "group": "test",
        "right": right,
        "floor": "allow",
        "final": False,
        "risk": "low",
        "probabilities": {
            "allow": 1 - doubt,
            "require_mfa": 0.0,
            "require_attestation": 0.0,
            "deny": doubt,
        },
    }
    return Line(**fields | changes)


def test_the_threshold_with_the_most_right_outcomes_is_chosen(pack: Pack) -> None:
    lines = [line("allow", 0.75), line("allow", 0.82), line("deny", 0.96), line("deny", 0.93)]
    tighten_at, _ = choose(pack, lines)
    assert tighten_at == 0.9
    outcomes = [case.outcome for case in answers(pack, lines, limits_of(pack, tighten_at, 0.0))]
    assert outcomes == ["allow", "allow", "deny", "deny"]


def test_of_equally_good_thresholds_the_quietest_is_chosen(pack: Pack) -> None:
    assert choose(pack, [line("require_mfa", 0.7), line("allow", 0.1)]) == (1.0, 0.5)


def test_a_wrong_tightening_weighs_more_than_a_right_one(pack: Pack) -> None:
    lines = [line("deny", 0.96), line("deny", 0.96), line("allow", 0.97), line("allow", 0.1)]
    assert gain_of(answers(pack, lines, limits_of(pack, 0.95, 0.0))) == pytest.approx(20 - 40)
    assert choose(pack, lines)[0] > 0.97


def test_an_abstention_is_kept_where_it_is_right(pack: Pack) -> None:
    lines = [line("require_attestation", 0.7, risk="high"), line("require_attestation", 0.9, risk="high")]
    tighten_at, below = choose(pack, lines)
    assert tighten_at > 0.9
    assert below == 0.5


def test_where_the_rules_decide_alone_there_is_no_score_and_no_change(pack: Pack) -> None:
    settled = line("deny", 0.0, floor="deny", final=True, probabilities={})
    (case,) = answers(pack, [settled], limits_of(pack, 0.0, 0.5))
    assert (case.outcome, case.scored, case.doubt) == ("deny", False, False)


def test_a_case_serves_either_for_choosing_or_for_measuring() -> None:
    drawn = [(use, msgspec.json.encode(case.evaluation)) for use, case in cases(NAME, 6, 1)]
    chosen = {text for use, text in drawn if use == "choose"}
    measured = {text for use, text in drawn if use == "measure"}
    assert len(chosen) > 6
    assert len(measured) > 6
    assert chosen.isdisjoint(measured)


def test_the_report_measures_on_other_cases_than_it_chose_by(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line("deny", 0.96), line("allow", 0.8), line("allow", 0.97, use="measure")]
    file = tmp_path / "lines.jsonl"
    file.write_bytes(b"".join(msgspec.json.encode(entry) + b"\n" for entry in lines))
    assert read(file) == lines
    report(file, Console(width=200))
    printed = capsys.readouterr().out
    assert "team-governance: tighten_at 0.95" in printed
    assert "measure 1" in printed
