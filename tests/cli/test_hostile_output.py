"""What commands print of hostile data: no control character, no forged line, no formula; JSON stays exact."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.build import ASKED, CANARY, ENRICHED, EXPLAINED, NOON, about, by_model, sent, write_rules_only_pack
from thor_policy.cli import render
from thor_policy.cli.main import COMMANDS, cli
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.decisions import Adapter, Floor, PackInfo, Traits
from thor_policy.core.escape import cell, in_html, in_json, paragraph, visible
from thor_policy.core.requests import Annotations
from thor_policy.daemon import journal_access
from thor_policy.daemon.service import serving
from thor_policy.journal import events
from thor_policy.journal.writer import Journal
from thor_policy.testing import load_stub_engine
from thor_policy.trace.formats import FORMATS

#: Begins a line if a line end in the data is printed as one.
FORGED = "FORGED"
#: C0 and C1 controls, a line end, the other ends of lines, a title, colours, directions, markup.
HOSTILE = (
    f"x\n{FORGED} 9 9 9\r{FORGED}\x1b[31m\x1b]0;t\x07\x00\x7f\x85{FORGED}\x9b2J\u2028{FORGED}\u202e[bold]y[/]"
)
#: Characters that may end a line in some terminal, or act on it.
BANNED = {"Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"}

Run = Callable[..., Result]

PACK = {
    "pack.yaml": """name: hostile
version: "1"
description: {text}
model: never
outcomes: [{{label: allow}}, {{label: deny}}]
default: deny
""",
    "clauses.yaml": "R1: {text}\n",
    "rules.yaml": """- id: late
  when: subject.id == action.name
  outcome: deny
  clause: R1
  because: {text}
""",
}
SUITE = """name: {text}
pack: {folder}
scenarios:
  - id: T1
    title: {text}
    difficulty: easy
    quick: true
    request:
      subject: {{type: user, id: {text}}}
      action: {{name: {text}}}
      resource: {{type: env, id: {text}}}
    expect: {{one_of: [allow]}}
"""


@pytest.fixture
def run(config: Config, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("THOR_POLICY_STATE_DIR", str(config.state_dir))
    monkeypatch.setenv("THOR_POLICY_ENDPOINT", config.endpoint)
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(cli, arguments, input=stdin)

    return invoke


@pytest.fixture
def hostile_journal(config: Config) -> Config:
    """A journal in which every text that somebody else chooses is hostile."""
    decision = by_model(
        id="018f-00000007",
        evaluation=replace(
            about(details=HOSTILE, **{f"key {HOSTILE}": HOSTILE}),
            subject=replace(ASKED.subject, id=HOSTILE, type=HOSTILE),
            action=replace(ASKED.action, name=HOSTILE),
            resource=replace(ASKED.resource, id=HOSTILE, type=HOSTILE),
        ),
        explanation=replace(EXPLAINED, reasoning=HOSTILE, classification=HOSTILE, clauses=(HOSTILE,)),
        annotations=Annotations(expected=(HOSTILE,)),
        floor=Floor(
            outcome="deny",
            final=False,
            rules=(HOSTILE,),
            because=HOSTILE,
            also_because=(HOSTILE,),
            facts={HOSTILE: HOSTILE},
            errors={HOSTILE: HOSTILE},
        ),
    )
    goal = records.Node(
        type="goal",
        title=HOSTILE,
        description=HOSTILE,
        session=HOSTILE,
        agent=HOSTILE,
        confidence=9,
        metadata={HOSTILE: HOSTILE},
    )
    leads = records.Edge(source="01900000-goal", target=decision.id, type="leads_to", rationale=HOSTILE)
    with closing(Journal(config.journal_path, synchronous="OFF")) as journal:
        journal.commit(events.decision_event(decision)).result()
        journal.commit(sent(goal, record_id="01900000-goal")).result()
        journal.commit(sent(leads)).result()
        texts = replace(ENRICHED, risk=HOSTILE, alternatives=HOSTILE, rationale=HOSTILE, alternative=HOSTILE)
        journal.commit(events.enrichment_event(decision.id, texts, NOON)).result()
        figures = {"value": 0.1, "low": 0.0, "high": 0.2, "sample": 50, "threshold": 0.5}
        named = {"kind": "success_rate", "state": "raised", "of": "agent", "name": HOSTILE}
        journal.commit(events.alert_event("01900000-alert", **named, figures=figures, at=NOON)).result()  # type: ignore[arg-type]
        pack = PackInfo(name=HOSTILE, version=HOSTILE, sha256="e" * 64)
        adapter = Adapter(name=HOSTILE, sha256="c" * 64)
        canary = replace(CANARY, pack=pack, adapter=adapter, model=HOSTILE, path=HOSTILE)
        journal.commit(events.canary_started(canary, NOON, by=decision.caller)).result()
        journal.commit(events.canary_ended(canary.id, "failed", NOON, reason=HOSTILE)).result()
        held = replace(decision.floor, traits=Traits(type=HOSTILE, required=("outcome",)))
        journal.commit(events.decision_event(replace(decision, id="018f-00000008", floor=held))).result()
    reported = records.DecisionReport(
        agent=HOSTILE,
        outcome=HOSTILE,
        type=HOSTILE,
        entity=HOSTILE,
        session=HOSTILE,
        model=HOSTILE,
        prompt=HOSTILE,
        response=HOSTILE,
        reasoning=HOSTILE,
        context={HOSTILE: [HOSTILE]},
    )
    decision_id = journal_access.submit_record(config, reported)
    judged = records.Review(
        decision_id="018f-00000007",
        reviewer=HOSTILE,
        verdict="correct_both",
        decision=HOSTILE,
        reasoning=HOSTILE,
    )
    for record in (
        judged,
        records.Outcome(decision_id=decision_id, status="FAILURE", note=HOSTILE),
        records.Approval(decision_id=decision_id, approver=HOSTILE, role=HOSTILE, evidence=HOSTILE),
        records.Consultation(decision_id=decision_id, system=HOSTILE, entity=HOSTILE, query=HOSTILE),
        records.TraceState(decision_id=decision_id, status="overturned", by=decision.id, because=HOSTILE),
    ):
        journal_access.submit_record(config, record)
    entity = records.Node(type="entity", title=HOSTILE, description=HOSTILE, metadata={HOSTILE: HOSTILE})
    node_id = journal_access.submit_record(config, entity)
    for edge in (
        records.Edge(source=decision.id, target=node_id, type="APPLIES_TO", rationale=HOSTILE),
        records.Edge(source=decision.id, target=decision_id, type="CITES", how=HOSTILE),
    ):
        journal_access.submit_record(config, edge)
    return config


def harmless(text: str) -> None:
    """Fails if a line was forged, or a character could act on a terminal."""
    acting = {char for char in text if char != "\n" and unicodedata.category(char) in BANNED}
    assert not acting, (acting, text)
    assert not [line for line in text.split("\n") if line.lstrip(" ").startswith(FORGED) and line[:4].strip()]


def written(where: Path, files: dict[str, str], **values: str) -> str:
    where.mkdir()
    for name, text in files.items():
        (where / name).write_text(text.format(text=json.dumps(HOSTILE), **values), encoding="utf-8")
    return str(where)


#: Commands that read the journal, with their arguments.
READ = [
    ["log"],
    ["log", "--json"],
    ["log", "--csv"],
    ["log", "show", "018f-00000007"],
    ["log", "show", "018f-00000007", "--all"],
    ["log", "show", "018f-00000007", "--json"],
    ["log", "show", HOSTILE],
    ["trace", "018f-00000007"],
    ["trace", "018f-00000007", "--json"],
    ["trace", HOSTILE],
    ["trace", "impact", "--precedent", "018f-00000007"],
    ["trace", "impact", "--pack", "core@1.2.0"],
    ["trace", "impact", "--pack", HOSTILE],
    ["trace", "list"],
    ["trace", "list", "--entity", HOSTILE],
    ["trace", "reopen", "018f-00000007", "--because", HOSTILE],
    ["graph", "list"],
    ["graph", "list", "--type", "goal", "--json"],
    ["graph", "list", "--agent", HOSTILE, "--since", HOSTILE],
    ["graph", "goals"],
    ["graph", "recent"],
    ["graph", "show", "01900000-goal"],
    ["graph", "show", HOSTILE],
    ["graph", "add", "goal", HOSTILE, "--meta", HOSTILE],
    ["graph", "link", HOSTILE, "leads_to", HOSTILE],
    ["graph", "supersede", HOSTILE, "--title", HOSTILE],
    ["graph", "timeline", "--session", HOSTILE],
    ["graph", "timeline", "--goal", "01900000-goal"],
    ["graph", "pulse"],
    ["graph", "pulse", "--json"],
    ["graph", "context", "--session", HOSTILE],
    *(["graph", "export", "--format", name] for name in FORMATS if name != "html"),
    ["graph", "analytics"],
    ["graph", "templates"],
    ["graph", "import", HOSTILE],
    ["graph", "import-git", HOSTILE],
    ["graph", "new", "--template", HOSTILE, HOSTILE],
    *(["graph", "export", "--of", "traces", "--format", name] for name in ("mermaid", "cypher", "jsonld")),
    ["alerts", "--raised"],
    ["canary", "list"],
    ["canary", "list", "--json"],
    ["canary", "status"],
    ["canary", "stop"],
    ["canary", "share", "0.5"],
    ["canary", "promote"],
    ["canary", "start", "--share", "0.5", "--pack", HOSTILE],
    ["canary", "start", "--share", "0.5", "--model", HOSTILE, "--adapter", HOSTILE],
    ["canary", "start", "--share", HOSTILE],
    ["alerts", "--limit", HOSTILE],
    ["similar", "018f-00000007"],
    ["similar", HOSTILE, "--why"],
    ["similar", HOSTILE, "--pack", HOSTILE, "--json"],
    ["similar", "FORGED", "--since", HOSTILE],
    ["compliance", "--type", HOSTILE],
    ["compliance", "--type", HOSTILE, "--format", "csv"],
    ["compliance", "--type", HOSTILE, "--format", "html"],
    ["compliance", "--type", HOSTILE, "--format", "json"],
    ["compliance", "--since", HOSTILE],
    ["receipt", "018f-00000007"],
    ["receipt", HOSTILE],
    ["verify-receipt", HOSTILE, "--public-key", HOSTILE],
    ["log", "verify"],
    ["log", "--actor", HOSTILE],
    ["log", "--since", HOSTILE],
    ["log", "archive", "--before", HOSTILE],
    ["log", "erase", HOSTILE, "--yes"],
    ["log", "verify", "--anchor", HOSTILE],
    ["log", "search", "FORGED"],
    ["log", "search", HOSTILE, "--json"],
    ["trace", "quarantine", "list"],
    ["trace", "quarantine", "list", "--json"],
    ["trace", "quarantine", "show", "018f-00000008"],
    ["trace", "quarantine", "complete", "018f-00000008", f"entity={HOSTILE}"],
    ["trace", "quarantine", "complete", "018f-00000008", HOSTILE],
    ["decide", HOSTILE, "--outcome", HOSTILE, "--because", HOSTILE, "--type", HOSTILE],
    ["decide", "--outcome", "x", "--because", "y", "--consent", HOSTILE],
    ["decide", "--outcome", "x", "--because", "y", "--made-at", HOSTILE],
    ["stats"],
    ["stats", "--json"],
    *(["stats", "--by", by] for by in ("actor", "model", "pack", "type")),
    *(["stats", "--by", by, "--json"] for by in ("actor", "type")),
    ["review", "--stats"],
    ["review", "--queue", "all", "--plain"],
    ["review", "--queue", "all", "--assign", HOSTILE],
    ["patterns"],
    ["patterns", "--json"],
    ["calibrate"],
    ["export", "--to", "-"],
    ["whatif", HOSTILE],
    ["replay", HOSTILE],
    ["replay", "018f-00000007"],
    ["improve"],
    ["models", "list"],
    ["models", "verify", HOSTILE],
    ["adapters", "list"],
    ["adapters", "activate", HOSTILE],
    ["packs", "load", HOSTILE],
    ["packs", "show", HOSTILE],
    ["packs", "list"],
    ["keys", "list"],
    ["keys", "new", HOSTILE],
    ["keys", "revoke", HOSTILE],
    ["ask", HOSTILE],
    ["approvals", "list"],
    ["approvals", "show", HOSTILE],
    ["approvals", "request", HOSTILE, "--reason", HOSTILE],
    ["approvals", "approve", HOSTILE, "--consent-of", HOSTILE, "--channel", HOSTILE],
    ["approvals", "deny", HOSTILE, "--comment", HOSTILE],
    ["approvals", "cancel", HOSTILE, "--reason", HOSTILE],
    ["hook", "report"],
    ["hook", "status", "--agent", "claude", "--file", HOSTILE],
    ["hook", "install", "--agent", "claude", "--file", HOSTILE, "--agent-version", "2.1.300", "--dry-run"],
    ["hook", "uninstall", "--agent", "claude", "--file", HOSTILE],
    ["status"],
    ["doctor"],
    ["test", HOSTILE],
    ["compare", HOSTILE, HOSTILE],
]


@pytest.mark.parametrize(
    "arguments", READ, ids=lambda arguments: " ".join(arguments).replace(HOSTILE, "HOSTILE")
)
def test_no_command_prints_a_control_character_or_a_forged_line(
    run: Run, hostile_journal: Config, arguments: Sequence[str]
) -> None:
    result = run(*(argument.replace("\0", "") for argument in arguments), stdin="z\nq\n")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    harmless(result.stdout.replace("\n", " ") if "--csv" in arguments else result.stdout)
    harmless(result.stderr)


def test_every_command_that_prints_data_is_tried_here() -> None:
    elsewhere = {
        "serve",
        "metrics",
        "invariance",
        "train",
        "bench",
        "completion",
        "sources",
        "gateway",
        "tokens",
        *("ship", "fleet"),  # tests/fleet/test_store.py
        "mcp",  # tests/mcp/test_proxy.py
        "tune",
        "web",
    }  # below, or our own words only
    assert {arguments[0] for arguments in READ} | elsewhere == set(COMMANDS)


def test_what_sources_say_is_harmless(run: Run, config: Config) -> None:
    folder = config.state_dir / "pack"
    sources = """
sources:
  crm: {of: resource, attributes: {tier: {type: string}}, table: {path: crm.jsonl}}
  broken: {of: resource, attributes: {tier: {type: string}}, table: {path: broken.jsonl}}
"""
    write_rules_only_pack(folder, rules="[]", more=sources)
    hostile = HOSTILE.replace("\0", "")  # no argument of a command can have it
    row = json.dumps({"id": hostile, "tier": HOSTILE})
    (folder / "crm.jsonl").write_text(f"{row}\n", encoding="utf-8")
    (folder / "broken.jsonl").write_text(f"{HOSTILE}\n{json.dumps({'id': [HOSTILE]})}\n", encoding="utf-8")
    for arguments in (
        ["list"],
        ["test", "crm", "--id", HOSTILE],
        ["test", "crm", "--id", HOSTILE, "--json"],
        ["test", "broken", "--id", HOSTILE],
        ["test", HOSTILE, "--id", HOSTILE],
        ["ids", "crm"],
        ["ids", "broken"],
    ):
        result = run("sources", *(text.replace("\0", "") for text in arguments), "--pack", str(folder))
        if "crm" in arguments:
            assert result.exit_code == 0, result.output
            assert "FORGED" in result.stdout
        harmless(result.stdout)
        harmless(result.stderr)
    decided = run(
        *("decide", f"doc:{hostile}", "--outcome", "x", "--because", "y"),
        *("--pack", str(folder)),
    )
    assert "the source broken gives no answer" in decided.stderr
    harmless(decided.stdout)
    harmless(decided.stderr)


def test_what_a_daemon_reports_is_harmless(run: Run, hostile_journal: Config) -> None:
    question = {
        "subject": {"type": "user", "id": HOSTILE},
        "action": {"name": HOSTILE},
        "resource": {"type": HOSTILE, "id": HOSTILE},
    }
    with serving(hostile_journal, load_engine=load_stub_engine), Client(hostile_journal.endpoint) as client:
        client.evaluate(question)
        for arguments in (
            ["ask", json.dumps(question)],
            ["status"],
            ["metrics"],
            ["metrics", "--prometheus"],
            ["packs", "load", HOSTILE],
            ["packs", "activate", HOSTILE],
            ["adapters", "activate", HOSTILE],
            ["log", "outcome", "018f-00000007", "SUCCESS", "--note", HOSTILE],
            ["approvals", "list", "--all"],
            ["approvals", "show", HOSTILE],
            ["approvals", "request", HOSTILE, "--reason", HOSTILE],
            ["approvals", "deny", HOSTILE, "--comment", HOSTILE],
        ):
            result = run(*(argument.replace("\0", "") for argument in arguments))
            harmless(result.stdout)
            harmless(result.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ["packs", "lint"],
        ["packs", "show"],
        ["packs", "try"],
        ["packs", "diff"],
        ["packs", "render"],
        ["test"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_commands_on_a_hostile_pack_print_no_control_character(
    run: Run, tmp_path: Path, arguments: list[str]
) -> None:
    folder = written(tmp_path / "pack", PACK)
    suite = tmp_path / "suites" / "suite.yaml"
    written(suite.parent, {"suite.yaml": SUITE}, folder=folder)
    question = {
        "subject": {"type": "user", "id": "a"},
        "action": {"name": "a"},
        "resource": {"type": HOSTILE, "id": HOSTILE},
    }
    rest = {
        "try": [folder, json.dumps(question)],
        "render": [folder, json.dumps(question)],
        "diff": [folder, "agent-tools"],
    }.get(arguments[-1], [folder])
    if arguments == ["test"]:
        rest = ["--full", "--no-record", "--pack", folder, "--junit", str(tmp_path / "junit.xml")]
        rest += ["--html", str(tmp_path / "report.html"), str(suite)]
    result = run(*arguments, *rest)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    harmless(result.stdout)
    harmless(result.stderr)
    if arguments == ["test"]:
        assert "9 9 9" in result.stdout
        for name in ("junit.xml", "report.html"):
            text = (tmp_path / name).read_text(encoding="utf-8")
            assert "9 9 9" in text
            assert not {
                char for char in text if char not in "\n\t" and unicodedata.category(char) in BANNED
            }, name
        ElementTree.parse(tmp_path / "junit.xml")  # noqa: S314  we wrote it


def test_json_output_is_exact_although_it_is_harmless(run: Run, hostile_journal: Config) -> None:
    rows = json.loads(run("log", "--json").stdout)
    assert {row["decision_type"] for row in rows} >= {HOSTILE}
    assert {row["type"] for row in json.loads(run("stats", "--by", "type", "--json").stdout)} >= {HOSTILE}


def test_a_line_end_in_a_type_makes_no_row_of_stats(run: Run, config: Config) -> None:
    forged = "signal\nrisk      9999     9999"
    report = records.DecisionReport(agent="a", outcome="hold", entity="e", type=forged)
    journal_access.submit_record(config, report)
    shown = run("stats", "--by", "type").stdout
    assert len(shown.splitlines()) == 2  # the header, and one type
    assert "signal\\nrisk" in shown


# ---------------------------------------------------------------- CSV

#: Texts that a spreadsheet could read as formulas, and the sign that each begins with.
FORMULAS = {
    "equals": "=1+1",
    "plus": "+1",
    "minus": "-1+1",
    "at": "@SUM(1)",
    "tab": "\tx",
    "carriage return": "\rx",
    "line end": "\n=1+1",
    "line end alone": "\nx",
    "blanks": "   =cmd|' /C calc'!A0",
    "no-break space": "\u00a0=1+1",
    "ideographic space": "\u3000+1",
    "full-width equals": "\uff1d1+1",
    "full-width plus": "\uff0b1",
    "full-width minus": "\uff0d1",
    "full-width at": "\uff20SUM(1)",
    "small equals": "\ufe661+1",
    "small at": "\ufe6bSUM(1)",
    "small plus": "\ufe621",
    "small hyphen": "\ufe631",
    "superscript plus": "\u207a1",
    "subscript equals": "\u208c1",
    "minus sign": "\u22121+1",
    "two equals in one sign": "\u2a751",
    "zero-width space before": "\u200b=1+1",
    "byte order mark before": "\ufeff=1+1",
    "right-to-left override before": "\u202e=1+1",
    "vertical tab before": "\x0b=1",
    "NUL before": "\0=1",
    "Hangul filler before": "\u3164=1",
    "with a mark above": "=\u0338x",
    "after a mark": "\u0301=1",
}


@pytest.mark.parametrize("text", FORMULAS.values(), ids=list(FORMULAS))
def test_a_cell_that_a_spreadsheet_could_read_as_a_formula_begins_with_an_apostrophe(
    run: Run, config: Config, text: str
) -> None:
    report = records.DecisionReport(agent="a", outcome=text, entity=text, type=text, response=text)
    journal_access.submit_record(config, report)
    (row,) = csv.DictReader(io.StringIO(run("log", "--csv").stdout, newline=""))
    cells = [row[name] for name in ("decision", "entity", "decision_type", "full_response")]
    assert [each[:1] for each in cells] == ["'"] * 4


@pytest.mark.parametrize("text", ["", "a=b", "1-2", "x\n=1", "é", "'=1", "(=1)", "/x", "東=1"])
def test_a_cell_that_is_no_formula_is_unchanged(text: str) -> None:
    assert cell(text) == text


@given(st.text(), st.sampled_from("=+-@"))
def test_nothing_before_a_sign_hides_it_from_the_check(before: str, sign: str) -> None:
    kept = cell(before + sign)
    normal = unicodedata.normalize("NFKC", kept).lstrip()
    assert normal[:1] not in {"=", "+", "-", "@"} or not normal


# ---------------------------------------------------------------- the functions


@given(st.text(st.characters()))
def test_escaped_json_is_harmless_and_decodes_to_the_same_value(text: str) -> None:
    escaped = in_json(json.dumps({"a": text}, ensure_ascii=False, indent=1))
    assert json.loads(escaped) == {"a": text}
    harmless(escaped.replace(FORGED, ""))


@given(st.text())
def test_a_paragraph_begins_no_line_with_data(text: str) -> None:
    first, *others = paragraph(text).split("\n")
    assert all(line.startswith("    ") for line in others)
    assert first == visible(text.split("\n")[0]) or "\t" in text


def test_a_page_shows_escapes_and_leaves_other_values_alone() -> None:
    assert in_html("a\x1b\nb") == "a\\x1b\nb"
    assert in_html(1.5) == 1.5
    assert in_html(None) is None


def test_an_error_of_several_lines_is_indented(run: Run, tmp_path: Path) -> None:
    written(tmp_path / "pack", {"pack.yaml": "name: 1\nversion: []\n"})
    result = run("packs", "sign", str(tmp_path / "pack"), "--key", str(tmp_path / "key"))
    first, *others = result.stderr.splitlines()
    assert first.startswith("thorpolicy: ")
    assert others
    assert all(line.startswith("    ") for line in others)


@given(st.text())
def test_a_printed_line_is_one_line(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        out = io.StringIO()
        patch.setattr("sys.stdout", out)
        render.line(text)
    assert out.getvalue().count("\n") == 1
