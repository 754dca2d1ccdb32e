"""What `test` prints about a run: the headline, and at the end the failures, the gravest first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.build import answered, error, run_of, skipped
from thor_policy.cli.suite_tables import show_conclusion
from thor_policy.suites.conclusions import Point, Recorded, conclude, headline
from thor_policy.suites.run_files import Item, Run, Why

LOOSE = answered(
    "L1",
    "allow",
    misses=("answered allow, expected deny",),
    decision_id="0198-aaaa1111",
    why=Why(
        question="user:lee burn doc:d; hour 3",
        rules=("night", "office"),
        because="It is night.",
        errors={"weekend": "no such key: day"},
        reasoning="It looks harmless.",
    ),
)
STRICT = answered(
    "S1", "deny", wanted="allow", misses=("answered deny, expected allow",), decision_id="0198-bbbb2222"
)
UNCITED = answered("U1", status="failed", misses=("did not cite R15",), decision_id="0198-cccc3333")
RISKY = answered("R1", status="failed", misses=("risk low, expected high",), decision_id="0198-dddd4444")
REFUSED = error("E1", misses=("busy: the queue is full",))
PASSED = answered("P1", decision_id="0198-eeee5555")
SKIPPED = skipped("K1", misses=("needs a calendar",))
ALL = (PASSED, SKIPPED, UNCITED, REFUSED, STRICT, RISKY, LOOSE)


HERE = Recorded(state_dir=Path("/srv/policy state"))


def shown(run: Run, capsys: pytest.CaptureFixture[str], recorded: Recorded = HERE, **changes: Any) -> str:
    show_conclusion(conclude(run, recorded=recorded, **changes), with_coverage=False)
    return capsys.readouterr().out


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of the report of a run with every kind of result."""
    return shown(run_of(*ALL), capsys).splitlines()


def test_the_report_says_what_the_model_adds_to_each_pack_and_when_it_only_costs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    printed = shown(run_of(STRICT, answered("Q2", "deny")), capsys)
    for line in (
        "what the model adds to small",
        "rules alone  1 of 2 right, 0 too strict, 1 too loose",
        "served       1 of 2 right, 1 too strict, 0 too loose",
        "changed      2 of 2 scored: 1 (9 to 91 %) rightly, 1 (9 to 91 %) wrongly",
        "difference   +0.0 points right",
    ):
        assert line in printed
    assert "it costs more than it adds" not in printed
    assert "it costs more than it adds: raise limits.tighten_at" in shown(run_of(STRICT), capsys)


class TestHeadline:
    @pytest.mark.parametrize(
        ("items", "text"),
        [
            ([PASSED, PASSED], "all 2 scenarios passed"),
            ([PASSED, SKIPPED], "1 scenario passed; 1 skipped"),
            ([], "no scenario passed"),
            ([LOOSE, PASSED], "1 of 2 scenarios did not pass: 1 too loose"),
            (
                [UNCITED, UNCITED, STRICT, LOOSE, PASSED],
                ("4 of 5 scenarios did not pass: 1 too loose, 1 too strict, 2 citation only"),
            ),
            (
                ALL,
                (
                    "5 of 6 scenarios did not pass: 1 too loose, 1 too strict, 1 refused, "
                    "1 wrong otherwise, 1 citation only; 1 skipped"
                ),
            ),
        ],
    )
    def test_it_counts_the_failures_the_dangerous_ones_first(self, items: list[Item], text: str) -> None:
        assert headline(items) == text

    def test_it_is_the_first_line_of_the_report_and_after_failures_the_last(self, report: list[str]) -> None:
        text = "5 of 6 scenarios did not pass: 1 too loose, 1 too strict"
        assert report[0].startswith(text)
        assert report[-2].startswith(text)


class TestScenarios:
    def test_the_gravest_failure_is_first(self, report: list[str]) -> None:
        first = next(number for number, line in enumerate(report) if line.startswith("id "))
        rows = [line.split() for line in report[first + 1 : first + 1 + len(ALL)]]
        assert [row[0] for row in rows] == ["L1", "S1", "E1", "R1", "U1", "P1", "K1"]

    def test_failures_are_at_the_end_by_kind_and_the_gravest_kind_is_first(self, report: list[str]) -> None:
        kinds = ["too loose", "too strict", "refused", "wrong otherwise", "citation only"]
        places = [report.index(f"{kind} (1)") for kind in kinds]
        assert places == sorted(places)
        assert places[0] > next(number for number, line in enumerate(report) if "model alone" in line)
        order = ["L1", "S1", "E1", "R1", "U1"]
        assert [line[:2] for line in report[places[0] :] if line[2:9] == " About "] == order

    def test_a_failure_has_question_answer_rules_reason_and_command(self, report: list[str]) -> None:
        number = report.index("L1 About L1")
        block = [line.strip() for line in report[number + 1 : number + 9]]
        assert block == [
            "wrong     answered allow, expected deny",
            "question  user:lee burn doc:d; hour 3",
            "answer    allow, by model; expected deny",
            "model     allow 0.80",
            "rules     allow; night, office: It is night.",
            "failed    weekend: no such key: day",
            "reason    It looks harmless.",
            "see       thorpolicy log show aaaa1111 --state-dir '/srv/policy state'",
        ]

    def test_a_scenario_that_passed_has_no_command(self, report: list[str]) -> None:
        assert not any("log show eeee5555" in line for line in report)

    def test_a_refused_scenario_has_its_reason(self, report: list[str]) -> None:
        assert report[report.index("E1 About E1") + 1].strip() == "wrong     busy: the queue is full"

    def test_a_journal_on_another_machine_is_read_there(self, capsys: pytest.CaptureFixture[str]) -> None:
        text = shown(run_of(LOOSE), capsys, Recorded(state_dir=Path("/var/lib/p"), remote=True))
        assert "on the daemon's machine: thorpolicy log show aaaa1111 --state-dir /var/lib/p" in text

    def test_without_a_record_there_is_no_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        text = shown(run_of(LOOSE), capsys, Recorded())
        assert "log show" not in text
        assert "not recorded; without --no-record" in text

    def test_what_else_the_status_depends_on_is_printed_after_the_failures(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        point = Point(name="coverage of small", reasons=("40 % is below the threshold of 90 %",))
        lines = shown(run_of(LOOSE), capsys, points=(point,)).splitlines()
        assert lines[-2:] == [
            "coverage of small: 40 % is below the threshold of 90 %",
            "1 of 1 scenarios did not pass: 1 too loose",
        ]

    def test_names_that_are_hard_to_guess_are_explained(self, report: list[str]) -> None:
        text = " ".join(" ".join(report).split())
        for name in ("rules alone", "model alone", "output structure", "labels", "tokens"):
            assert f"{name}: " in text

    def test_tables_fit_80_columns_with_long_names(self, capsys: pytest.CaptureFixture[str]) -> None:
        accepted = ("allow_and_tell_the_owner", "require_mfa", "deny")
        run = run_of(replace(LOOSE, id="SCENARIO-12", outcome="require_attestation", accepted=accepted))
        for line in shown(run, capsys).splitlines():
            assert len(line) <= 80 or line.startswith(("  ", "    see ")), line


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (PASSED, "right"),
        (LOOSE, "too loose"),
        (STRICT, "too strict"),
        (UNCITED, "right, but did not cite R15"),
        (REFUSED, "refused: busy: the queue is full"),
        (SKIPPED, "skipped: needs a calendar"),
    ],
)
def test_the_verdict_of_a_scenario_is_a_few_words(item: Item, text: str) -> None:
    assert item.verdict == text
