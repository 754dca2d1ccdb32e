"""Lint: each kind of problem at its line and column, in every style of YAML, and no false alarm."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from thor_policy.config import data_path
from thor_policy.core.errors import PackError
from thor_policy.policy import pack_files
from thor_policy.policy.lint import lint
from thor_policy.policy.pack_files import FILES, Finding

#: Marks the place of a finding in the text of a file; `¶¶` marks two findings at one place.
MARK = "¶"
Write = Callable[..., tuple[Path, list[tuple[str, int, int]]]]

PACK = {
    "pack.yaml": """\
name: small
version: 1.0.0
description: Who may do what in the tests.
outcomes: [{label: allow}, {label: ask}, {label: deny}]
model: never
default: deny
clock: daemon
reads: {context.amount: int, context.when: timestamp, context.m: map, context.m.x: int}
words: {removing: [delete, "drop*"]}
facts:
FACTS
risk: '"low"'
""",
    "rules.yaml": "RULES\n",
    "clauses.yaml": "R1: What keeps to the limits is allowed.\n",
    "data.yaml": "users: {kim: {level: 3}}\nnames: [kim]\n",
}
FACTS = '  kind: \'context.?b.orValue(false) ? "large" : "small"\'\n'
RULE = "- {id: first, when: context.go == true, outcome: allow, final: true, clause: R1, because: Go.}\n"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a pack with these texts; gives its directory, and where the marks in them stood."""

    def write(facts: str = FACTS, rules: str = RULE, **files: str) -> tuple[Path, list[tuple[str, int, int]]]:
        marks = []
        texts = PACK | {name.replace("_", "."): text for name, text in files.items()}
        for name, text in texts.items():
            text = text.replace("FACTS\n", facts).replace("RULES\n", rules)
            while (at := text.find(MARK)) >= 0:
                marks.append((name, text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)))
                text = text[:at] + text[at + 1 :]
            if text:
                (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path, sorted(marks, key=lambda mark: (FILES.index(mark[0]), *mark[1:]))

    return write


def places(findings: list[Finding]) -> list[tuple[str, int | None, int | None]]:
    return [(finding.file, finding.line, finding.column) for finding in findings]


# ---------------------------------------------------------------- one run


def test_a_field_that_shows_a_step_is_an_error_at_its_place(write: Write) -> None:
    fields = "fields: [{name: hours, value: ¶facts._hours}]\nfacts:\nFACTS\n"
    folder, marks = write(
        facts="  _hours: size(data.names)\n", pack_yaml=PACK["pack.yaml"].replace("facts:\nFACTS\n", fields)
    )
    (finding,) = [finding for finding in lint(folder) if finding.level == "error"]
    assert places([finding]) == marks
    assert finding.message == "'_hours' is a step, which no model is shown; rename it to 'hours'"


def test_the_four_typical_mistakes_are_found_in_one_run(write: Write) -> None:
    folder, marks = write(
        facts="""\
  permitted: subject.properties.role == "admin"
  early: >-
    permitted &&
    ¶limit > 3
  limit: size(data.names)
""",
        rules="""\
- id: undefined-name
  when: ¶permited && limit > 2
  outcome: deny
  clause: R1
  because: A name with a typing error.
- id: undefined-function
  when: |
    permitted
      || action.name.¶beginsWith("read")
  outcome: ask
  clause: R1
  because: A function that is not there.
- {id: no-bool, when: "¶\\"caf\\u00e9\\" + action.name", outcome: ask, clause: R1, because: It is a text.}
""",
    )
    findings = lint(folder)
    assert places(findings) == marks, "\n".join(map(str, findings))
    assert [(finding.level, finding.message) for finding in findings] == [
        ("error", "'limit' is a fact further down; a fact sees only the facts above it"),
        ("error", "there is no name 'permited' here; did you mean 'permitted'?"),
        ("error", "there is no name 'beginsWith' here"),
        ("error", "gives a string, not a bool"),
    ]


def test_findings_of_every_file_come_in_one_run_in_the_order_of_files_and_lines(write: Write) -> None:
    folder, marks = write(
        pack_yaml="""\
name: ¶Small
version: 1.0.0
description: Who may do what in the tests.
outcomes:
  - {label: allow}
  - ¶{label: allow_all}
  - {label: deny}
classifications: [routine, ¶routine]
fields:
  - {name: who, value: ¶subject.name}
  - {name: what, value: ¶facts.nothing}
  - {name: where, value: ¶place}
reads:
  role: ¶string
words:
  empty: ¶[]
  removing: [delete, "¶!"]
facts:
  kind: '¶nope == 1'
  list: '¶1'
  times: '¶[timestamp("2026-01-01T00:00:00Z")]'
risk: '¶permited ? "high" : "low"'
limits:
  abstain: {outcome: ¶allow, below: {}}
""",
        clauses_yaml="R1: A.\nR2: ¶Nobody cites it.\n",
        rules="""\
- ¶id: no-clause
  when: context.a == 1
  outcome: deny
  because: B.
- id: twice
  when: ¶context.a == "x" && context.a == "y"
  outcome: deny
  clause: ¶R9
  classification: ¶odd
  because: B.
- {id: ¶twice, when: "mentions(action.name, ¶'removal')", outcome: deny, clause: R1, because: B.}
- {id: last, when: 'context.b == 1', outcome: ¶denied, clause: R1, because: B.}
- {id: all, when: ¶'true', outcome: deny, clause: R1, because: B.}
""",
        examples_yaml="""\
¶¶- id: X1
  evaluation: &asked
    subject: {type: user, id: kim}
    action: {name: look}
    resource: {type: doc, id: one}
  outcome: ¶perhaps
  classification: ¶odd
  risk: low
  clauses: [R1, ¶R7]
  reasoning: C.
- {id: ¶X1, evaluation: *asked, outcome: deny, classification: routine, risk: low, clauses: [R1],
   reasoning: C.}
""",
        data_yaml="Names: ¶[kim]\n",
        system_md="You decide.\n",
    )
    findings = lint(folder)
    assert places(findings) == marks, "\n".join(map(str, findings))


# ---------------------------------------------------------------- places in every style of YAML

STYLES = {
    "plain": "  when: context.a == 1 && ¶nope == 2\n",
    "plain on several lines": "  when: context.a == 1\n    && context.b == 2\n\n    && ¶nope == 2\n",
    "single quotes": "  when: 'context.a == ''x'' && ¶nope == 2'\n",
    "single quotes on several lines": "  when: 'context.a == ''x'' &&\n\n      ¶nope == 2'\n",
    "double quotes": '  when: "context.a == \\"\\u00e9\\x41\\" && ¶nope == 2"\n',
    "double quotes on several lines": '  when: "context.a == 1 && \\\n      context.b\n     && ¶nope"\n',
    "folded": "  when: >-\n    context.a == 1 &&\n    ¶nope == 2\n",
    "folded with deeper and empty lines": "  when: >\n    context.a &&\n\n      context.b\n    && ¶nope\n",
    "literal": '  when: |\n    context.a == 1 // a comment: "\n      && ¶nope == 2\n',
    "literal with an indentation": "  when: |2-\n      context.a == 1 &&\n      ¶nope == 2\n",
    "behind letters of several bytes": "  when: \"context.a == '😀é\\u0301漢' && ¶nope == 2\"\n",
    "behind an anchor": "  when: &same context.a == 1 && ¶nope == 2\n",
    "with Windows line ends": "  when: |\r\n    context.a == 1 &&\r\n    ¶nope == 2\r\n",
}


@pytest.mark.parametrize("style", STYLES)
def test_a_fault_is_at_its_line_and_column_in_the_file(write: Write, style: str) -> None:
    rest = "  outcome: deny\n  clause: R1\n  because: B.\n"
    folder, marks = write(rules=f"- id: first\n{STYLES[style]}{rest}- id: second\n  when: context.c\n{rest}")
    findings = lint(folder)
    assert [finding.message for finding in findings] == ["there is no name 'nope' here"]
    assert places(findings) == marks


def test_a_fault_in_a_flow_mapping_on_several_lines_has_its_place(write: Write) -> None:
    folder, marks = write(
        rules="[{id: first, outcome: deny, clause: R1, because: B.,\n  when: 'context.a ==\n   ¶nope'}]\n"
    )
    assert places(lint(folder)) == marks


# ---------------------------------------------------------------- kinds of faults of an expression

FAULTS = [
    ("¶nope", "there is no name 'nope' here"),
    ("¶knd == 'x'", "there is no name 'knd' here; did you mean 'kind'?"),
    ("¶fooo(1)", "there is no name 'fooo' here"),
    ("context.a.¶fooo()", "there is no name 'fooo' here"),
    ("¶mentions(kind)", "mentions is called with another number of arguments"),
    ("kind.¶size('x') == 1", "there is no name 'size' here"),
    ("¶subject.role == 'x'", "subject.role: subject has the members type, id, properties; write "),
    ("has(¶action.id)", "action.id: action has the members name, properties"),
    ("¶subject == 'x'", "subject: subject has the members"),
    ("'kim' in ¶data.user", "there is no table 'user' in data.yaml"),
    ("'kim' in ¶data", "write data.TABLE"),
    ("row(¶'user', kind) == 1", "there is no table 'user' in data.yaml"),
    ("mentions(kind, ¶'remove')", "there is no word list 'remove' in pack.yaml"),
    ("starts(kind, ¶r'remove')", "there is no word list 'remove' in pack.yaml"),
    ("given(¶'contxt.a', 1) == 1", "given reads subject, action, resource and context by a path"),
    ("given(¶'subject.role', '') == ''", "subject.role: subject has the members"),
    ("given(¶'context.amount', '') == ''", "context.amount is declared as int, and the default is a string"),
    ("given(¶'context.time', now) < now", "the default is a time, and a member of a request is a text"),
    ("has(¶subject.properties)", "subject.properties is always there; remove has(subject.properties)"),
    ("kind.matches(¶'(')", "invalid regular expression"),
    ("matches(kind, ¶'(?=x)')", "invalid regular expression"),
    ("kind.matches(¶context.b)", "the request gives the pattern"),
    ("kind.matches(¶'a' + given('context.b', ''))", "the request gives the pattern"),
    ("timestamp(¶'2026-13-01T00:00:00Z') < now", "String to Timestamp conversion failed"),
    ("duration(¶'1 hour') > duration('1s')", "String to Duration conversion failed"),
    ("now.getHours(¶'Mars/Base') == 1", "Invalid timezone"),
    ("int(¶'one') == 1", "cannot convert string to int"),
    ("double(¶'one') == 1.0", "cannot convert string to double"),
    ("bool(¶'yes')", "Type conversion error from 'string' to 'bool'"),
    ("context.amount > 1 && context.b > ¶9007199254740993.0", "9007199254740993.0 is compared inexactly"),
    ("context.b < ¶1e999", "1e999 is infinite"),
    ("context.b == ¶9223372036854775808", "invalid int literal"),
    ("kind == ¶'\\x00'", "a string cannot contain NUL"),
    ("context.amount ¶== 'x'", "found no matching overload for '_==_'"),
    ("context.when ¶< now", "found no matching overload for '_<_'"),
    ("context.m.x ¶+ 'x' == 'x'", "found no matching overload for '_+_'"),
    ("kind¶.member == 1", "expression of type 'string' cannot be the operand of a select operation"),
    ("now ¶+ 1 > now", "found no matching overload for '_+_'"),
    ("kind ¶? true : false", "found no matching overload for '_?_:_'"),
    ("[1].exists(x, ¶y == 1)", "there is no name 'y' here"),
    ("[1].all(¶1, true)", "all() variable name must be a simple identifier"),
    ("has(¶kind)", "has() argument must be a field selection"),
    ("kind ¶and true", "Syntax error: mismatched input 'and'"),
    ("kind ¶= 'x'", "Syntax error: token recognition error at: '= '"),
    ("(context.a¶", "Syntax error: missing ')'"),
    ("¶if == 1", "reserved identifier: if"),
    ("¶size(kind)", "gives an int, not a bool"),
    ("¶" + "(" * 32 + "true" + ")" * 32, "nests deeper than 32 levels; split it into facts"),
    ("¶" + "[1].exists(x, " * 30 + "true" + ")" * 30, "nests deeper than 32 levels; split it into facts"),
    ("has(context.amount) && has(\n  context.m\n) && ¶nope", "there is no name 'nope' here"),
]


@pytest.mark.parametrize(("text", "message"), FAULTS, ids=[text.replace(MARK, "")[:50] for text, _ in FAULTS])
def test_a_fault_of_an_expression_is_found_at_its_place(write: Write, text: str, message: str) -> None:
    block = "\n".join(f"    {line}" for line in text.split("\n"))
    rest = "  outcome: deny\n  clause: R1\n  because: B.\n"
    folder, marks = write(rules=f"- id: first\n  when: |-\n{block}\n{rest}")
    findings = lint(folder)
    assert places(findings)[:1] == marks, "\n".join(map(str, findings))
    assert findings[0].message.startswith(message)
    assert findings[0].level == "error"
    with pytest.raises(PackError, match=re.escape(str(findings[0]))):
        pack_files.load(folder)


# ---------------------------------------------------------------- no false alarms

RIGHT = [
    '[{"type": "x"}].exists(subject, has(subject.type) && subject.type == "x")',
    '["huge"].exists(kind, kind == "huge")',
    'cel.bind(kind, "huge", kind == "huge") && cel.bind(context, 1, context == 1)',
    "[1].exists(now, now == 1) && [{'users': 1}].exists(data, data.users == 1)",
    'context.kind == "huge" && context.?kind.orValue("") == "huge" && {"kind": "huge"}.kind == "huge"',
    "context.given == 1 && context.has && context.row.mentions == 'nope'",
    "'has(subject.type)' == kind || \"given('x', 1)\" == kind || 'mentions(a, \"nope\")' == kind",
    "context.a == '//' // has(subject.type) && nope \" '\n && context.a",
    'kind == """a\\""" + nope + \'b"""',
    'kind.matches(r"^\\x00\\d+\\(") || context.a == r"a\\.b" || matches(kind, "a")',
    'has(context.a) && has(context.a.b) && has(context.a["b"].c) && has(context.m.x) && has(context.m.y)',
    "has(context.amount) ? context.amount > 1 : given('context.amount', 0) == 0",
    "has ( context . amount ) && !(has(\ncontext.when\n)) || timestamp(context.when) > now",
    'context["amount"] == 1 && context.?amount.orValue(0) == 1 && context.m["x"] == 1',
    'given("con" + "text.a", "") == "" && given("context." + kind, "") == ""',
    'given("subject.properties.role", "") == "" && given(context.path, null) == null',
    'data.users.kim.level > 2 && "kim" in data.names && row("users", subject.id).level == 3',
    '.kind == "large" && .context.a == 1 && .data.users.kim.level == 3',
    "context.`a-b` == 1 || context.list[0].b[?1].hasValue()",
    "type(context.a) == string && type(now) == google.protobuf.Timestamp && context.a != null",
    "context.a == 1 && context.a == 1.0 && context.a == 0x1 && context.a == 1u",
    "context.b == 'x' && context.b == \"x\" && context.b == r'x' && context.b == '''x'''",
    '(context.a == "x" || context.a == "y") && (context.a == "x" ? true : context.a == "z")',
    "[context.a, 1, 'x', null].exists(x, x == 1) && {'a': [1, {'b': now}]}.a.size() == 2",
    "'\\'' != '\"' && \"\\\\\" != kind && '''it's''' != kind && b'\\xff' != b'a'",
    "-9223372036854775808 < 0 && 0x7FFFFFFFFFFFFFFF > 1 && 1e3 > 1.5e-5",
    'timestamp("2026-01-01T00:00:00Z").getHours("Europe/Berlin") == 1 && duration("1h") > duration("59m")',
    'mentions(context.a, "removing") && starts(action.name, r"removing")',
    "[2, 1].max() == 2 && [[1], [2]].flatten().sum() == 3 && sets.contains([1, 2], [1])",
    "context.steps.exists_one(given, given.timestamp > 0 && given.duration == 1)",
    'optional.of(kind).optMap(data, data + "x").orValue("") == "largex"',
    "'😀é漢' != kind && kind != '\\U0001f600'",
]


@pytest.mark.parametrize("text", RIGHT)
def test_a_right_expression_raises_no_alarm(write: Write, text: str) -> None:
    block = "\n".join(f"    {line}" for line in text.split("\n"))
    facts = f"{FACTS}  fact: |-\n{block}\n"
    rest = "  outcome: deny\n  clause: R1\n  because: B.\n"
    folder, _ = write(facts=facts, rules=f"- id: first\n  when: |-\n{block}\n{rest}")
    assert lint(folder) == []


@pytest.mark.parametrize("name", pack_files.available(data_path("prompts")))
def test_lint_finds_nothing_in_a_shipped_pack(name: str) -> None:
    assert lint(data_path("prompts") / name) == []


# ---------------------------------------------------------------- vocabulary

VOCABULARY = """\
vocabulary:
  action.name: {names: {file.read: reads, file.delete: removes}}
  context.phase: {names: [draft, final]}
"""
ROLE = '  phase: given("context.phase", "").lowerAscii()\n'


@pytest.mark.parametrize(
    ("when", "message"),
    [
        (
            'action.name == "file.reed"',
            "compares action.name with 'file.reed', which its vocabulary does not have",
        ),
        (
            'action.name in ["file.read", "x"]',
            "compares action.name with 'x', which its vocabulary does not have",
        ),
        (
            'action.name in ["x", "file.read"]',
            "compares action.name with 'x', which its vocabulary does not have",
        ),
        (
            '"File.read" != action.name',
            "compares action.name with 'File.read', which its vocabulary does not have",
        ),
        ('given("context.phase", "") == "end"', "compares context.phase with 'end', which its vocabulary"),
        ('phase == "end"', "compares context.phase with 'end', which its vocabulary does not have"),
        ('phase.trim() in ["end"]', "compares context.phase with 'end', which its vocabulary does not have"),
        (
            'kind("action.name") == "writes"',
            "compares kind('action.name') with 'writes', which no name of its",
        ),
        (
            'kind("action.name") in ["", "writes"]',
            "compares kind('action.name') with 'writes', which no name of",
        ),
    ],
)
def test_a_comparison_with_a_name_that_the_vocabulary_lacks_is_an_error(
    write: Write, when: str, message: str
) -> None:
    rules = f"- id: first\n  when: {MARK}>-\n    {when}\n  outcome: deny\n  clause: R1\n  because: No.\n"
    pack = PACK["pack.yaml"] + VOCABULARY
    folder, ((_, line, column),) = write(ROLE, rules, pack_yaml=pack)
    (finding,) = lint(folder)
    assert (finding.level, finding.line) == ("error", line)
    assert finding.message.startswith(message)
    assert column


@pytest.mark.parametrize(
    "when",
    [
        'action.name in ["file.read", "file.delete"]',
        'phase == "final" || phase.upperAscii() == "DRAFT"',
        'given("context.phase", "") == ""',
        'kind("action.name") in ["reads", ""]',
        '["x"].exists(name, name == "x") || context.other == "x"',
        'action.name + "s" == "file.reads" || "x" + "y" == action.name',
    ],
)
def test_a_comparison_with_a_name_of_the_vocabulary_is_no_finding(write: Write, when: str) -> None:
    rules = f"- id: first\n  when: >-\n    {when}\n  outcome: deny\n  clause: R1\n  because: No.\n"
    folder, _ = write(ROLE, rules, pack_yaml=PACK["pack.yaml"] + VOCABULARY)
    assert lint(folder) == []


def test_faults_of_a_vocabulary_are_found_at_their_places(write: Write) -> None:
    vocabulary = f"""\
vocabulary:
  facts.kind: {MARK}{{names: [a]}}
  action.name:
    unknown: {MARK}allow
    clause: {MARK}R9
    names: [file.read, {MARK}File.READ]
  context.phase:
    names:
      d\u0435l: {MARK}removes
"""
    folder, marks = write(pack_yaml=PACK["pack.yaml"] + vocabulary)
    findings = lint(folder)
    assert places(findings) == marks
    assert {finding.level for finding in findings} == {"error"}


def test_a_final_allow_over_action_names_without_a_vocabulary_is_a_warning(write: Write) -> None:
    rule = RULE.replace("context.go == true", "'action.name == \"file.read\"'")
    folder, _ = write(rules=rule)
    (finding,) = lint(folder)
    assert finding.level == "warning"
    assert (
        "is a final allow that reads action.name, and the pack has no vocabulary; add one" in finding.message
    )
    folder, _ = write(rules=rule, pack_yaml=PACK["pack.yaml"] + VOCABULARY)
    assert lint(folder) == []


def test_a_final_allow_that_calls_same_is_a_warning(write: Write) -> None:
    folder, _ = write(rules=RULE.replace("context.go == true", "'same(resource.id, subject.id)'"))
    (finding,) = lint(folder)
    assert (finding.level, finding.message.partition(",")[0]) == (
        "warning",
        "is a final allow that calls same(..)",
    )


def test_a_limit_of_texts_at_a_path_that_is_no_member_is_an_error_at_its_place(write: Write) -> None:
    limits = "limits: {texts: {context.diff: 9000, action.name: ¶300}}\nfacts:\nFACTS\n"
    folder, marks = write(pack_yaml=PACK["pack.yaml"].replace("facts:\nFACTS\n", limits))
    (finding,) = [finding for finding in lint(folder) if finding.level == "error"]
    assert places([finding]) == marks
    assert "'action.name' must be a path below context" in finding.message
