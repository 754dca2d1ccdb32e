"""The tables of docs/reference/expressions.md: each row is evaluated, and gives the value on the page."""

from __future__ import annotations

import json
import re
from datetime import datetime

import msgspec
import pytest

from tests.documents import ROOT
from thor_policy.policy import yaml_text
from thor_policy.policy.expressions import Language
from thor_policy.policy.rule_checks import RuleFaults
from thor_policy.policy.rule_specs import Rule
from thor_policy.policy.rules import RuleBook
from thor_policy.policy.vocabulary import Vocabulary
from thor_policy.policy.words import WordLists
from thor_policy.protocol.requests import evaluation_from, question_fields

PAGE = (ROOT / "docs" / "reference" / "expressions.md").read_text(encoding="utf-8")
REQUEST = json.loads(re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)[0])
PARTS = yaml_text.parse(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[0], dict, "expressions.md")
RECEIVED_AT = datetime.fromisoformat(re.findall(r"received at\n?(\S+):\n", PAGE)[0]).timestamp()
_CELL = re.compile(r"^\| `(?P<expression>(?:\\\||[^|])+)` \| (?P<value>.+) \|$")
#: A row: an expression, and its value, `error` or `refused`.
ROWS = [
    (match["expression"].replace(r"\|", "|"), match["value"].strip("`"))
    for table in re.findall(r"\| expression \| value \|\n\|---\|---\|\n((?:\|.*\n)+)", PAGE)
    for line in table.splitlines()
    if (match := _CELL.match(line))
]


def book_of(expression: str) -> RuleBook:
    """The expression as a fact of a pack with the parts on the page. Raises RuleFaults."""
    return RuleBook(
        outcomes=["allow", "deny"],
        facts={"value": expression},
        rules=[Rule(id="unused", when="false", outcome="deny", because="Never.")],
        risk=None,
        words=PARTS["words"],
        data=PARTS["data"],
        reads=PARTS["reads"],
        clock="daemon",
        vocabulary=msgspec.convert(PARTS["vocabulary"], dict[str, Vocabulary]),
    )


def test_every_row_of_the_tables_is_evaluated() -> None:
    lines = re.findall(r"^\| expression \| value \|\n\|---\|---\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert len(ROWS) == sum(table.count("\n") for table in lines)
    assert len({expression for expression, _ in ROWS}) == len(ROWS), "an expression is there twice"


@pytest.mark.parametrize(("expression", "value"), ROWS, ids=[expression for expression, _ in ROWS])
def test_an_expression_of_the_page_gives_the_value_beside_it(expression: str, value: str) -> None:
    if value == "refused":
        with pytest.raises(RuleFaults):
            book_of(expression)
        return
    floor = book_of(expression).apply(evaluation_from(question_fields(REQUEST)), RECEIVED_AT)
    if value == "error":
        assert "fact:value" in floor.errors
        return
    assert floor.errors == {}
    # As text, so that 2 and 2.0 differ.
    assert json.dumps(floor.facts["value"], sort_keys=True) == json.dumps(json.loads(value), sort_keys=True)


@pytest.mark.parametrize(("brackets", "refused"), [(20, False), (40, True)])
def test_an_expression_that_nests_deeper_than_32_levels_is_refused(brackets: int, refused: bool) -> None:
    checked = Language(words=WordLists({})).check("[" * brackets + "]" * brackets, {})
    assert isinstance(checked, list) == refused
    if isinstance(checked, list):
        assert checked[0].message == "nests deeper than 32 levels; split it into facts"
