"""`thorpolicy review` on a real terminal: keys that are typed, and what the journal then holds."""

from __future__ import annotations

import fcntl
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.cells import cell_len

from tests.build import ASKED, EXPLAINED, NOON, about, by_model, decision_row, erasing, record, rows, sent
from tests.terminal import Terminal as AnyTerminal
from thor_policy.cli import page_text, review_page
from thor_policy.cli.main import cli
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.decisions import Decision, Floor
from thor_policy.core.errors import RequestError
from thor_policy.core.escape import visible
from thor_policy.core.requests import Annotations
from thor_policy.daemon import journal_access
from thor_policy.daemon.service import serving
from thor_policy.journal.verification.verify import verify
from thor_policy.review.ranking import Pick
from thor_policy.review.session import Item
from thor_policy.testing import load_stub_engine

#: Text that would control a terminal, or deceive its reader.
HOSTILE = (
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J \u202eeuqinu\u202c "
    "\u2066x\u2069 zero\u200bwidth [bold]rich[/]"
)
#: Parts of it that must not reach the terminal: sequences that the screen never sends, and hidden marks.
ACTIVE = ["\x1b[31mred", "\x1b]0;title", "\x9b", "\u202e", "\u202c", "\u2066", "\u2069", "\u200b", "\x07"]

Run = Callable[..., Result]


class Terminal(AnyTerminal):
    """`thorpolicy review` on its own terminal."""

    def __init__(self, config: Config, *arguments: str) -> None:
        super().__init__(config, "review", *arguments)


def decisions(count: int, **changes: Any) -> list[Decision]:
    """Decisions whose ids end in eight digits, their number."""
    return [
        by_model(**{"id": f"018f-{number:08}", "at": NOON + number, "explanation": EXPLAINED} | changes)
        for number in range(count)
    ]


def reviews(config: Config) -> list[tuple[Any, ...]]:
    return rows(
        config.journal_path,
        "SELECT reviewer, substr(decision_id, -8), verdict, decision, reasoning FROM reviews ORDER BY seq",
    )


@pytest.fixture
def run(config: Config, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("THOR_POLICY_STATE_DIR", str(config.state_dir))
    monkeypatch.setenv("THOR_POLICY_ENDPOINT", config.endpoint)

    def invoke(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(cli, ["review", *arguments], input=stdin)

    return invoke


# ---------------------------------------------------------------- a recorded session

NEWEST = ("--order", "newest", "--second-share", "0")
#: The keys that each reviewer types, again and again.
TYPED = {
    "robin": "a a d s a u r b a s u a",
    "kim": "d a s s u b a r u a d",
}


class Reviewer:
    """A reviewer at a terminal, and the reviews that the journal must hold."""

    def __init__(self, name: str, terminal: Terminal, journal: list[tuple[Any, ...]]) -> None:
        self.name, self.terminal, self._journal = name, terminal, journal
        self.keys = itertools.cycle(TYPED[name].split())
        self.judged = self.skipped = 0
        self._done: list[tuple[Any, ...] | None] = []
        self.shown = ""
        self._look("")

    def step(self) -> bool:
        """Type one key and its input; False at the end of the queue."""
        if not self.shown:
            return False
        key = next(self.keys)
        if key == "u" and not self._done:
            key = "a"
        if key == "u":
            last = self._done.pop()
            self.judged -= last is not None
            self.skipped -= last is None
            if last is not None:
                self._journal.append((*last[:2], "withdrawn", None, None))
            self._look("u", "undone: ")
        elif key == "s":
            self.skipped += 1
            self._done.append(None)
            self._look("s", rf"skipped \({self.shown}\)")
        else:
            verdict, typed, decision, reasoning = {
                "a": ("accept", "a", None, None),
                "d": ("correct_decision", "d1", "allow", None),
                "r": ("correct_reasoning", "rit was Friday\r", None, "it was Friday"),
                "b": ("correct_both", "b1he may\r", "allow", "he may"),
            }[key]
            review = (self.name, self.shown, verdict, decision, reasoning)
            self._journal.append(review)
            self._done.append(review)
            self.judged += 1
            self._look(typed, rf"recorded: [^\n]*\({self.shown}\)")
        return True

    def _look(self, keys: str, message: str = "q quit") -> None:
        """Type, and read the decision that is shown next; the message line is drawn last."""
        then = (
            rf"{self.judged} judged  {self.skipped} skipped.*?"
            rf"(?:\d\d:\d\d:\d\d  (\d{{8}})|End of the queue).*{message}"
        )
        match = self.terminal.type(keys, then)
        self.shown = match[1] or ""


def test_two_reviewers_go_through_sixty_decisions_at_one_daemon(config: Config) -> None:
    record(config.journal_path, *decisions(60))
    typed: list[tuple[Any, ...]] = []
    with (
        serving(config, load_engine=load_stub_engine),
        Terminal(config, "--reviewer", "robin", *NEWEST) as first,
        Terminal(config, "--reviewer", "kim", *NEWEST) as second,
    ):
        people = [Reviewer("robin", first, typed), Reviewer("kim", second, typed)]
        while sum(person.step() for person in people):
            shown = [person.shown for person in people if person.shown]
            assert len(set(shown)) == len(shown), "two people have one decision"
        for terminal in (first, second):
            assert terminal.end() == 0
    assert reviews(config) == typed
    assert len(typed) > 60
    standing = Counter[str]()
    for _, decision, verdict, *_ in typed:
        standing[decision] += -1 if verdict == "withdrawn" else 1
    assert set(standing.values()) <= {0, 1}, "somebody judged what another had judged"
    assert sum(standing.values()) == people[0].judged + people[1].judged
    marked = rows(config.journal_path, "SELECT substr(decision_id, -8) FROM decisions WHERE reviewed")
    assert {decision for (decision,) in marked} == {decision for decision, count in standing.items() if count}
    assert verify(config.journal_path).ok


def test_after_a_failed_skip_enter_shows_a_decision_again(config: Config) -> None:
    record(config.journal_path, *decisions(2))
    with Terminal(config, "--reviewer", "robin", *NEWEST) as terminal:
        terminal.until("00000001.*q quit")
        with config.journal_path.with_suffix(".lock").open("r+") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            terminal.type("s", "is in use by process")
        terminal.type("\r", "00000001")
        terminal.type("s", r"1 skipped.*00000000.*skipped \(00000001\)")
        assert terminal.end() == 0


def test_a_daemon_grants_one_lease_per_decision(config: Config) -> None:
    record(config.journal_path, *decisions(1))
    lease = records.Assignment(decision_id="018f-00000000", reviewer="kim", type="lease", seconds=60)
    with serving(config, load_engine=load_stub_engine), Client(config.endpoint) as client:
        client.assignment(lease)
        with pytest.raises(RequestError, match="another reviewer has this decision") as refusal:
            client.assignment(replace(lease, reviewer="bo"))
        assert refusal.value.code == "conflict"
        client.assignment(replace(lease, type="release", seconds=None))
        client.assignment(replace(lease, reviewer="bo"))
    assert rows(config.journal_path, "SELECT reviewer, type FROM assignments ORDER BY seq") == [
        ("kim", "lease"),
        ("kim", "release"),
        ("bo", "lease"),
    ]


def test_without_a_daemon_reviewers_take_turns_with_the_journal_lock(config: Config) -> None:
    record(config.journal_path, *decisions(6))
    typed: list[tuple[Any, ...]] = []
    with (
        Terminal(config, "--reviewer", "robin", *NEWEST) as first,
        Terminal(config, "--reviewer", "kim", *NEWEST) as second,
    ):
        people = [Reviewer("robin", first, typed), Reviewer("kim", second, typed)]
        for _ in range(3):
            for person in people:
                person.step()
    assert reviews(config) == typed
    assert len(typed) >= 4
    assert verify(config.journal_path).ok


@pytest.mark.model
def test_a_decision_of_the_embedded_model_is_reviewed_at_its_daemon(config: Config) -> None:
    question = {
        "actor_id": "user:ivo",
        "actor_role": "engineer",
        "t3_tensor": {"competence": 0.9, "reliability": 0.85, "integrity": 0.8},
        "action_type": "deploy",
        "resource": "env:production",
        "timestamp": "2026-05-13T10:00:00Z",
    }
    with serving(config), Client(config.endpoint) as client:
        reply = client.evaluate(question, explain="inline", deadline_ms=110_000)["context"]
        with Terminal(config, "--reviewer", "robin") as terminal:
            ending = reply["decision_id"][-8:]
            terminal.until(f"user:ivo  deploy  env:production.*{ending}.*q quit")
            assert reply["outcome"].upper() in terminal.text
            for label, share in reply["probabilities"].items():
                assert re.search(rf"{label} .*{share:.3f}", terminal.text)
            for clause in reply["clauses"]:
                assert re.search(rf"{clause} +[A-Z]", terminal.text), "the clause is shown with its text"
            terminal.type("a", rf"recorded: accept \({ending}\)")
            assert terminal.end() == 0
    assert reviews(config) == [("robin", ending, "accept", None, None)]
    assert verify(config.journal_path).ok


# ---------------------------------------------------------------- the screen


def test_the_screen_shows_what_a_reviewer_needs_without_scrolling(config: Config) -> None:
    floor = Floor(
        outcome="require_mfa", final=False, rules=("freeze",), clauses=("R3",), because="the freeze is on",
        facts={"friday": True, "trust": 0.62},
    )  # fmt: skip
    (decision,) = decisions(1, floor=floor, annotations=Annotations(scenario_id="T1", expected=("deny",)))
    record(config.journal_path, decision)
    with Terminal(config, "--reviewer", "robin", "--tests") as terminal:
        terminal.until("q quit")
        for shown in (
            "unreviewed  1 of 1",
            "0 judged  0 skipped  robin",
            "because: ",
            "user:alice  deploy  env:production",
            "DENY   freeze_violation · risk high · by model · floor require_mfa",
            r"allow +██████ +0.250",
            r"deny +██████████████████ +0.750  served",
            r"question +role developer · trust \(competence 0.9\)",
            "facts +friday, trust 0.62",
            r"rules +freeze: at least require_mfa \(the freeze is on\)",
            "reasoning +Nobody deploys on a Friday.",
            "R3 +",
            r"expected +deny \(scenario T1\)",
        ):
            assert re.search(shown, terminal.text), shown
        assert "more lines" not in terminal.text


def test_the_keys_for_help_figures_search_and_delegation_work(config: Config) -> None:
    question = replace(ASKED, context={"details": "vacuum the basement"})
    record(
        config.journal_path,
        by_model(id="018f-found-00000099", evaluation=question, at=NOON - 9),
        *decisions(3),
    )
    with Terminal(config, "--reviewer", "robin", *NEWEST) as terminal:
        terminal.until("00000002")
        terminal.type("?", "accept: the outcome is right")
        terminal.type("x", "00000002")
        terminal.type("t", "reviews 0 of 0 decisions")
        terminal.type("x", "00000002")
        terminal.type("/Basement\r", "00000099")
        terminal.type("/attic\r", "no decision of this queue contains 'attic'")
        terminal.type("gkim\r", "assigned to kim|End of the queue")
        terminal.type("p", "00000099")
        terminal.type("d", "The right outcome:  1 allow")
        terminal.type("\x07", "─{80}")
        assert terminal.end() == 0
    assert rows(config.journal_path, "SELECT reviewer, given_by FROM assignments WHERE type = 'assign'") == [
        ("kim", "robin")
    ]
    assert reviews(config) == []
    live = rows(
        config.journal_path, "SELECT type FROM assignments WHERE type <> 'assign' ORDER BY seq DESC LIMIT 1"
    )
    assert live == [("release",)], "who quits holds nothing"


def test_a_refusal_is_shown_and_changes_nothing(config: Config) -> None:
    record(config.journal_path, *decisions(2))
    with Terminal(config, "--reviewer", "robin", *NEWEST) as terminal:
        terminal.until("00000001")
        lock = config.journal_path.with_suffix(".lock")
        with lock.open("r+") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            terminal.type("a", "is in use by process")
        terminal.type("a", "1 judged")
        terminal.until("00000000")
    assert [row[2] for row in reviews(config)] == ["accept"]


# ---------------------------------------------------------------- hostile content


def hostile() -> Decision:
    return by_model(
        id="018f-00000007",
        evaluation=replace(
            about(details=HOSTILE, **{f"key {HOSTILE}": HOSTILE}),
            subject=replace(ASKED.subject, id=HOSTILE),
            resource=replace(ASKED.resource, id=HOSTILE),
        ),
        explanation=replace(EXPLAINED, reasoning=HOSTILE, classification=HOSTILE, clauses=(HOSTILE,)),
        annotations=Annotations(scenario_id=HOSTILE, expected=(HOSTILE,)),
        floor=Floor(outcome="deny", final=False, rules=(HOSTILE,), because=HOSTILE, facts={HOSTILE: HOSTILE}),
    )


def test_text_of_a_request_cannot_control_the_terminal(config: Config) -> None:
    record(config.journal_path, hostile())
    journal_access.submit_record(
        config, records.Review(decision_id="018f-00000007", reviewer=HOSTILE, verdict="accept")
    )
    with Terminal(config, "--queue", "all", "--reviewer", HOSTILE) as terminal:
        terminal.until("q quit")
        terminal.type(" ", "x1b")
        terminal.type("z", "x1b")
        terminal.type("t", "agreement")
        terminal.type("x", "x1b")
        assert terminal.end() == 0
    sent = terminal.raw.decode()
    for sequence in ACTIVE:
        assert sequence not in sent, repr(sequence)
    assert "\\x1b[31mred" in sent
    assert "[bold]rich[/]" in sent


def test_text_of_a_request_cannot_control_plain_output(config: Config, run: Run) -> None:
    record(config.journal_path, hostile())
    journal_access.submit_record(
        config, records.Review(decision_id="018f-00000007", reviewer=HOSTILE, verdict="accept")
    )
    keys = f"z\n/{HOSTILE}\ng {HOSTILE}\nd {HOSTILE}\n{HOSTILE}\nt\n?\n"
    shown = run("--queue", "all", "--plain", stdin=keys)
    stats, given = run("--stats"), run("--queue", "all", "--assign", HOSTILE)
    for result in (shown, stats, given):
        for sequence in ACTIVE:
            assert sequence not in result.output, repr(sequence)
    assert "\\u202eeuqinu" in shown.stdout


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc\r", "a\\tb\\nc\\r"),
        ("\x00\x7f\x85", "\\x00\\x7f\\x85"),
        ("\u202e\u200f\u2069", "\\u202e\\u200f\\u2069"),
        ("\u200b\ufeff\u2060", "\\u200b\\ufeff\\u2060"),
        ("a\ufe0f\U000e0101\U000e0041", "a\\ufe0f\\U000e0101\\U000e0041"),
        ("e\u0301\u0301\u0301\u0301", "e\u0301\u0301\\u0301\\u0301"),
        ("\u2028\ue000", "\\u2028\\ue000"),
        ("\u00a0\u3000", "  "),
        ("Zoë 東京 naïve ☕", "Zoë 東京 naïve ☕"),
    ],
)
def test_control_hidden_and_reordering_characters_are_escaped(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text())
def test_visible_text_is_printable_and_plain_ascii_is_unchanged(text: str) -> None:
    shown = visible(text)
    assert all(char == " " or char.isprintable() for char in shown)
    assert visible(shown) == shown
    if text.isascii() and text.isprintable():
        assert shown == text


@given(st.text(), st.integers(2, 100))
def test_wrapped_lines_are_not_wider_than_their_limit(text: str, width: int) -> None:
    lines = page_text.wrapped(visible(text), width)
    assert all(cell_len(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == visible(text).replace(" ", "")


@given(st.text(max_size=500), st.text(min_size=1, max_size=300), st.integers(40, 200), st.booleans())
def test_no_page_is_wider_than_its_terminal(text: str, name: str, width: int, full: bool) -> None:
    row = {
        "decision_id": name, "timestamp": "2026-07-01T12:00:00.000000Z", "actor": name, "action": name,
        "entity": name, "decision": name, "decision_type": name, "risk_level": "high", "tier": "model",
        "floor": name, "reason_code": None, "classification": text, "prompt_version": name, "clauses": [name],
        "probabilities": {name: 0.5, "deny": 0.5},
        "situation": {"action": {}, "context": {name: {name: text}}},
        "reasoning": text, "expected_decision": name, "scenario_id": name,
    }  # fmt: skip
    event = {"body": {"floor": {"rules": [name], "outcome": name, "because": text}}, "private": None}
    item = Item(pick=Pick(decision_id=name, why=""), decision=row, event=event, hidden=1)
    for line in review_page.page(item, width=width, clauses={name: text}, full=full):
        assert cell_len("".join(text_part for _, text_part in line)) <= width


# ---------------------------------------------------------------- line by line, and counted


def test_commands_of_plain_mode_record_the_same_as_keys(config: Config, run: Run) -> None:
    record(config.journal_path, *decisions(6))
    lines = "a\nd allow\nr it was Friday\nb allow he may\ns\nu\ng bo\nu\nu\n"
    result = run("--plain", "--reviewer", "kim", *NEWEST, stdin=lines)
    assert result.exit_code == 0, result.output
    assert reviews(config) == [
        ("kim", "00000005", "accept", None, None),
        ("kim", "00000004", "correct_decision", "allow", None),
        ("kim", "00000003", "correct_reasoning", None, "it was Friday"),
        ("kim", "00000002", "correct_both", "allow", "he may"),
        ("kim", "00000002", "withdrawn", None, None),
    ]
    assert "3 judged, 0 skipped" in result.stdout
    assert not re.search("[█▏─]", result.stdout)


def test_reported_and_erased_decisions_can_be_reviewed(config: Config, run: Run) -> None:
    reported = records.DecisionReport(
        agent="trader",
        outcome="BUY",
        type="signal",
        entity="ACME",
        prompt="what now?",
        reasoning="it is cheap",
    )
    record(config.journal_path, *decisions(1), sent(reported, record_id="018f-00000077", at=NOON + 9))
    record(config.journal_path, erasing(config.journal_path, 1))
    result = run("--plain", *NEWEST, "--reviewer", "kim", stdin="d SELL\na\n")
    assert result.exit_code == 0, result.output
    for shown in ("agent:trader  signal  ACME", "prompt what now?", "it is cheap", "(erased)"):
        assert shown in result.stdout
    assert reviews(config) == [
        ("kim", "00000077", "correct_decision", "SELL", None),
        ("kim", "00000000", "accept", None, None),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x", "'x' is no command; ? lists them"),
        ("d", "say which outcome is right: one of allow, deny"),
        ("b maybe", "say which outcome is right: one of allow, deny"),
        ("g", "name the reviewer: g NAME"),
    ],
)
def test_an_unknown_line_is_reported_and_is_status_1(
    config: Config, run: Run, line: str, message: str
) -> None:
    record(config.journal_path, *decisions(1))
    result = run("--plain", stdin=f"{line}\na\n")
    assert (result.exit_code, result.stderr.strip()) == (1, message)
    assert [row[2] for row in reviews(config)] == ["accept"]


def test_without_a_daemon_the_same_records_are_refused(config: Config, run: Run) -> None:
    record(config.journal_path, *decisions(1))
    result = run("--plain", "--reviewer", "x" * 257, stdin="a\n")
    assert "record.reviewer: has more than 256 characters" in str(result.stderr)
    assert result.exit_code == 4
    assert reviews(config) == []


def test_review_upgrades_a_journal_of_an_earlier_version(config: Config, run: Run) -> None:
    import sqlite3
    from contextlib import closing

    record(config.journal_path, *decisions(1))
    with closing(sqlite3.connect(config.journal_path)) as db:
        db.execute("DROP TABLE assignments")
        db.execute("DELETE FROM _sqlite_migrations WHERE name = '0007_assignments'")
        db.commit()
    assert run("--plain", stdin="a\n").exit_code == 0
    assert len(reviews(config)) == 1
    assert verify(config.journal_path).ok


def test_queue_and_figures_are_printed_as_json(config: Config, run: Run) -> None:
    record(config.journal_path, *decisions(3))
    queue = json.loads(run("--json", "--reviewer", "kim").stdout)
    assert {pick["decision_id"][-8:] for pick in queue} == {"00000000", "00000001", "00000002"}
    assert all(pick["why"] for pick in queue)
    run("--plain", "--reviewer", "kim", *NEWEST, "-n", "2", stdin="a\na\n")
    run(
        "--plain",
        "--reviewer",
        "bo",
        "--second-share",
        "1",
        "--random-share",
        "0",
        stdin="a\nd allow\nd allow\n",
    )
    figures = json.loads(run("--stats", "--json").stdout)
    (pair,) = figures["pairs"]
    assert (pair["reviewers"], pair["kappa"]["count"]) == (["bo", "kim"], 2)
    assert "95 % interval" in run("--stats").stdout
    assert "bo and kim" in run("--stats").stdout


def test_the_option_assign_assigns_the_queue_to_a_reviewer(config: Config, run: Run) -> None:
    record(config.journal_path, *decisions(3))
    assert "assigned to bo: 2 decisions" in run("--assign", "bo", "-n", "2", *NEWEST).stdout
    assert len(json.loads(run("--json", "--reviewer", "bo", "--queue", "mine").stdout)) == 2
    assert len(json.loads(run("--json", "--reviewer", "kim").stdout)) == 1


def test_an_empty_queue_prints_that_there_is_nothing_to_review(config: Config, run: Run) -> None:
    record(config.journal_path, *decisions(1))
    run("--plain", stdin="a\n")
    assert run("--plain").stdout == "there is nothing to review\n"
    assert decision_row(config.journal_path, "018f-00000000")["reviewed"] == 1
