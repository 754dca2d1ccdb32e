"""The packs of docs/examples: each lints, its rules answer its suite, and the guides show their files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.documents import ROOT
from thor_policy.policy import pack_files
from thor_policy.policy.lint import lint
from thor_policy.suites import suite_files

EXAMPLES = ROOT / "docs" / "examples"
RECIPES = sorted((EXAMPLES / "recipes").iterdir())
APPROVAL = EXAMPLES / "deploy-approval"
GUIDE = ROOT / "docs" / "how-to" / "write-rules.md"
#: Receipt time of the questions: 2026-01-01 15:00 UTC, a Thursday.
AT = 1_767_279_600.0


@pytest.mark.parametrize(
    "folder", [*RECIPES, EXAMPLES / "door-access", APPROVAL], ids=lambda folder: folder.name
)
def test_an_example_pack_has_no_finding(folder: Path) -> None:
    assert [str(finding) for finding in lint(folder)] == []


@pytest.mark.parametrize("folder", [*RECIPES, APPROVAL], ids=lambda folder: folder.name)
def test_the_rules_of_a_recipe_alone_give_every_answer_of_its_suite(folder: Path) -> None:
    pack = pack_files.load(folder)
    suite = suite_files.load(folder / pack_files.SUITE)
    assert pack.info.name == suite.name == folder.name
    for scenario in suite.scenarios:
        floor = pack.book.apply(scenario.evaluation(), AT)
        assert floor.errors == {}
        assert (scenario.id, floor.final, floor.outcome) == (scenario.id, True, scenario.expect.outcome)
    fired = {rule for each in suite.scenarios for rule in pack.book.apply(each.evaluation(), AT).rules}
    assert fired >= {rule.id for rule in pack.book.rules}, "each rule has a scenario in which it fires"


def test_the_guide_shows_the_recipes_as_they_are_and_all_of_them() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    files = [file.read_text(encoding="utf-8") for folder in RECIPES for file in folder.iterdir()]
    for shown in re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL):
        assert any(shown in text for text in files), shown
    assert set(re.findall(r"examples/recipes/([a-z-]+)", guide)) == {folder.name for folder in RECIPES}


def test_the_guide_to_approvals_shows_files_of_its_pack_as_they_are() -> None:
    guide = (ROOT / "docs" / "how-to" / "approvals.md").read_text(encoding="utf-8")
    files = [(APPROVAL / name).read_text(encoding="utf-8") for name in ("pack.yaml", "rules.yaml")]
    shown = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    assert len(shown) >= 2
    assert [text for text in shown if not any(text in file for file in files)] == []
