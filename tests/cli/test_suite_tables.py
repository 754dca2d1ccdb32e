"""What `test` prints about a run: the headline, the gravest failures first, and how to see each of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.build import answered, error, run_of, skipped
from thor_policy.cli.suite_tables import headline, show_run
from thor_policy.suites.figures import figures
from thor_policy.suites.run_files import Item

LOOSE = answered("L1", "allow", misses=("answered allow, expected deny",), decision_id="0198-aaaa1111")
STRICT = answered(
    "S1", "deny", wanted="allow", misses=("answered deny, expected allow",), decision_id="0198-bbbb2222"
)
UNCITED = answered("U1", status="failed", misses=("did not cite R15",), decision_id="0198-cccc3333")
RISKY = answered("R1", status="failed", misses=("risk low, expected high",), decision_id="0198-dddd4444")
REFUSED = error("E1", misses=("busy: the queue is full",))
PASSED = answered("P1", decision_id="0198-eeee5555")
SKIPPED = skipped("K1", misses=("needs a calendar",))
ALL = (PASSED, SKIPPED, UNCITED, REFUSED, STRICT, RISKY, LOOSE)


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of the report of a run with every kind of result."""
    run = run_of(*ALL)
    show_run(run, figures(run), Path("/srv/policy state"))
    return capsys.readouterr().out.splitlines()


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
                (
                    "4 of 5 scenarios did not pass: 1 too loose, 1 too strict, "
                    "2 right but without the expected citation"
                ),
            ),
            (
                ALL,
                (
                    "5 of 6 scenarios did not pass: 1 too loose, 1 too strict, 1 refused, 1 right but not as "
                    "expected otherwise, 1 right but without the expected citation; 1 skipped"
                ),
            ),
        ],
    )
    def test_it_counts_the_failures_the_dangerous_ones_first(self, items: list[Item], text: str) -> None:
        assert headline(items) == text

    def test_it_is_the_first_line_of_the_report(self, report: list[str]) -> None:
        assert report[0].startswith("5 of 6 scenarios did not pass: 1 too loose, 1 too strict")


class TestScenarios:
    def test_the_gravest_failure_is_first(self, report: list[str]) -> None:
        first = next(number for number, line in enumerate(report) if line.startswith("id "))
        rows = [line.split() for line in report[first + 1 : first + 1 + len(ALL)]]
        assert [row[0] for row in rows] == ["L1", "S1", "E1", "R1", "U1", "P1", "K1"]

    def test_each_failure_is_followed_by_the_command_that_shows_its_decision(self, report: list[str]) -> None:
        number = report.index("L1 About L1: answered allow, expected deny")
        command = "thorpolicy log show aaaa1111 --state-dir '/srv/policy state'"
        assert command in [line.strip() for line in report[number : number + 3]]

    def test_a_scenario_that_passed_has_no_command(self, report: list[str]) -> None:
        assert not any("log show eeee5555" in line for line in report)

    def test_a_refused_scenario_has_its_reason(self, report: list[str]) -> None:
        assert "E1 About E1: refused: busy: the queue is full" in report

    def test_a_journal_on_another_machine_has_no_directory_here(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        show_run(run_of(LOOSE), figures(run_of(LOOSE)), None)
        shown = capsys.readouterr().out
        assert "on the daemon's machine: thorpolicy log show aaaa1111" in shown
        assert "--state-dir" not in shown

    def test_tables_fit_80_columns_with_long_names(self, capsys: pytest.CaptureFixture[str]) -> None:
        accepted = ("allow_and_tell_the_owner", "require_mfa", "deny")
        run = run_of(replace(LOOSE, id="SCENARIO-12", outcome="require_attestation", accepted=accepted))
        show_run(run, figures(run), Path("/srv"))
        for line in capsys.readouterr().out.splitlines():
            assert len(line) <= 80 or line.startswith("  "), line


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
