"""`thorpolicy approvals` against a real daemon: lists, verdicts, the watch and the full screen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from tests.build import rows
from tests.callers import OtherCaller, as_root, other_caller
from tests.daemon.test_approvals import APP, DEPLOY, LEE, PACK, write_pack
from tests.terminal import COLUMNS, PATIENCE_S, ROOT, Terminal
from thor_policy.cli import approval_page
from thor_policy.cli.main import cli
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.requests import Json
from thor_policy.daemon.service import serving
from thor_policy.testing import load_stub_engine

#: Whoever runs the tests is Kim; Lee has another uid, and Ann is known by name only.
PEOPLE = (
    f"uid:{os.getuid()}=kim;manager+recorder",
    f"uid:{LEE}=lee;security",
    "uid:61009=ann;security",
    "uid:61010=mo;manager",
)
HOSTILE = "x\nFORGED 9 9 9\r\x1b[31m\x1b]0;t\x07\x7f\x85\x9b2J\u2028FORGED\u202e\u200b[bold]y[/]"
#: Characters that may end a line in some terminal, or act on it.
BANNED = {"Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"}

Run = Callable[..., Result]


class Place:
    """A daemon, and the app that asks it and requests approvals."""

    def __init__(self, config: Config, app: OtherCaller) -> None:
        self.config, self.app = config, app

    def task(self, who: str = "zoe", what: str = "billing", **members: Json) -> str:
        """The id of a new task."""
        question = DEPLOY | {
            "subject": {"type": "user", "id": who},
            "resource": {"type": "service", "id": what, "properties": {"tier": "gold"}},
        }
        decision_id = self.app.ask(question)["context"]["decision_id"]
        return str(self.app.request(decision_id, **members)["id"])

    def state(self, task: str) -> str:
        return str(self.app.send("approvals", record={"id": task})["task"]["status"])


@contextmanager
def place_at(config: Config, folder: Path, pack: str = PACK) -> Iterator[Place]:
    """A daemon whose people are `PEOPLE`."""
    config.state_dir.chmod(0o711)
    roles = ("local=ask", f"uid:{os.getuid()}=ask+approve", f"uid:{LEE}=ask+approve")
    packed = str(write_pack(folder / "deploys", pack=pack))
    config = replace(config, socket_mode=0o666, roles=roles, people=PEOPLE, pack=packed)
    with serving(config, load_engine=load_stub_engine), other_caller(config.endpoint, APP) as app:
        yield Place(config, app)


@pytest.fixture
def place(config: Config, tmp_path: Path) -> Iterator[Place]:
    with place_at(config, tmp_path) as opened:
        yield opened


@pytest.fixture
def run(config: Config, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("THOR_POLICY_STATE_DIR", str(config.state_dir))
    monkeypatch.setenv("THOR_POLICY_ENDPOINT", config.endpoint)
    monkeypatch.setenv("COLUMNS", "80")

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["approvals", *arguments])

    return invoke


def comments(config: Config) -> list[str | None]:
    """The comments of all verdicts, in order."""
    texts = rows(
        config.journal_path,
        "SELECT p.value FROM events e JOIN private p ON p.seq = e.seq "
        "WHERE e.kind = 'approval' ORDER BY e.seq",
    )
    return [json.loads(text).get("comment") for (text,) in texts]


# ---------------------------------------------------------------- list and show


@as_root
def test_the_list_shows_state_urgency_and_what_is_missing_within_80_columns(place: Place, run: Run) -> None:
    place.task(who="zoe" * 20, what="billing" * 20)
    last = place.task(urgency="emergency")
    lines = run("list").stdout.splitlines()
    assert lines[0].split() == [
        *("age", "state", "urgency", "outcome", "subject", "action", "resource", "missing", "id")
    ]
    assert len(lines) == 3
    assert all(cell_len(line) <= COLUMNS for line in lines)
    assert lines[1].split()[1:3] == ["pending", "emergency"], "the newest comes first"
    assert lines[1].split()[-1] == last[-8:]
    assert "…" in lines[2]


@as_root
def test_a_list_of_normal_tasks_has_no_column_of_urgency(place: Place, run: Run) -> None:
    place.task()
    assert "urgency" not in run("list").stdout


@as_root
def test_the_list_is_of_open_tasks_unless_states_are_named(place: Place, run: Run) -> None:
    denied, pending = place.task(), place.task()
    assert run("deny", denied).exit_code == 0

    def listed(*options: str) -> list[str]:
        return [task["id"] for task in json.loads(run("list", "--json", *options).stdout)]

    assert listed() == [pending]
    assert listed("--state", "denied") == [denied]
    assert listed("--state", "denied", "--state", "pending") == [pending, denied]
    assert listed("--all") == [pending, denied]
    assert listed("--all", "-n", "1") == [pending]
    assert run("list", "--state", "expired").stdout == "no task is expired\n"
    assert run("list", "--all", "--state", "denied").exit_code == 2


@as_root
def test_a_task_is_shown_with_its_question_by_the_end_of_its_id(place: Place, run: Run) -> None:
    task = place.task(reason="release 7", urgency="urgent", what="billing" * 20)
    run("approve", task)
    shown = run("show", task[-8:]).stdout
    for part in (
        "URGENT   REQUIRE_ATTESTATION   partial · pack deploys 1",
        "billing" * 8,
        "tier gold · change CHG-1",
        "reason     release 7",
        f"by uid:{APP}",
        "missing    security",
        "kim: approved as manager, recorder",
        "expires    in 23h",
        "subject, action, resource, caller, action.name, context.change",
        task,
    ):
        assert part in shown, part
    assert all(cell_len(line) <= COLUMNS for line in shown.splitlines())
    as_json = json.loads(run("show", task, "--json").stdout)
    assert (as_json["id"], as_json["question"]["context"]["change"]) == (task, "CHG-1")


@as_root
@pytest.mark.parametrize("command", ["show", "approve", "deny", "cancel"])
def test_a_task_that_the_caller_may_not_see_is_not_there(place: Place, run: Run, command: str) -> None:
    place.task()
    for unknown in ("00000000", "nobody", "x" * 300):
        assert run(command, unknown).exit_code == 4
    assert "there is no task" in run(command, "00000000").stderr


# ---------------------------------------------------------------- requests and verdicts


@as_root
def test_the_caller_that_asked_requests_and_cancels(place: Place, run: Run) -> None:
    with Client(place.config.endpoint) as client:
        mine = client.evaluate(DEPLOY)["context"]["decision_id"]
    theirs = place.app.ask(DEPLOY)["context"]["decision_id"]
    requested = run("request", mine, "--reason", "release 7", "--urgency", "urgent")
    assert requested.exit_code == 0, requested.output
    assert "is pending; missing: manager, then security" in requested.stdout
    task = requested.stdout.split()[2]
    duplicate = run("request", mine)
    assert (duplicate.exit_code, task in duplicate.stderr) == (4, True)
    assert run("request", theirs).exit_code == 4
    assert json.loads(run("cancel", task[-8:], "--reason", "not needed", "--json").stdout)["status"] == (
        "cancelled"
    )
    again = json.loads(run("request", mine, "--json").stdout)
    assert (again["status"], again["urgency"]) == ("pending", "normal")


@as_root
def test_two_people_approve_and_the_caller_is_shown_what_to_send(place: Place, run: Run) -> None:
    task = place.task()
    first = run("approve", task[-8:], "--comment", "tests are green")
    assert first.stdout == f"{task[-8:]} is partial; missing: security\n"
    assert comments(place.config) == ["tests are green"]
    twice = run("approve", task)
    assert (twice.exit_code, "approved it before" in twice.stderr) == (4, True)
    with other_caller(place.config.endpoint, LEE) as lee:
        lee.change("approve", task)
    late = run("deny", task)
    assert (late.exit_code, "is approved already" in late.stderr) == (4, True)
    allowed = place.app.ask(DEPLOY | {"context": DEPLOY["context"] | {"approval": {"id": task}}})
    assert (allowed["decision"], allowed["context"]["approval"]["lifted"]) == (True, "require_attestation")
    assert "lifted" in run("show", task).stdout


@as_root
def test_a_consent_given_elsewhere_completes_the_task(place: Place, run: Run) -> None:
    task = place.task()
    run("approve", task, "--consent-of", "mo", "--channel", "email")
    consent = ("--consent-of", "ann", "--channel", "email", "--evidence", "mail 17")
    done = run("approve", task, *consent)
    assert done.exit_code == 0, done.stderr
    assert "is approved until" in done.stdout
    assert f'"approval": {{"id": "{task}"}}' in done.stdout
    assert "by email, recorded by kim: “mail 17”" in run("show", task).stdout.replace("\n            ", " ")


@as_root
def test_a_consent_that_is_refused_holds_no_place_in_the_daemon(place: Place, run: Run) -> None:
    task = place.task()
    result = run("approve", task, "--consent-of", "nobody", "--channel", "email")
    assert (result.exit_code, "names nobody like that" in result.stderr) == (4, True)
    with Client(place.config.endpoint) as client:
        assert client.status().in_flight == 0


@as_root
@pytest.mark.parametrize(
    ("options", "cure"),
    [
        (("--consent-of", "ann"), "--consent-of needs --channel"),
        (("--channel", "email"), "need --consent-of"),
        (("--evidence", "mail 17"), "need --consent-of"),
    ],
)
def test_half_a_consent_is_wrong_use(place: Place, run: Run, options: tuple[str, ...], cure: str) -> None:
    task = place.task()
    result = run("approve", task, *options)
    assert (result.exit_code, cure in result.stderr) == (2, True)
    assert place.state(task) == "pending"


@pytest.mark.parametrize(
    "arguments",
    [
        ("list",),
        ("list", "--watch"),
        ("show", "00000000"),
        ("request", "00000000"),
        *((command, "00000000") for command in ("approve", "deny", "cancel")),
    ],
)
def test_without_a_daemon_every_command_is_status_3(run: Run, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert (result.exit_code, "thorpolicy serve" in result.stderr) == (3, True)


def test_the_queue_needs_a_terminal(run: Run) -> None:
    result = run("queue")
    assert (result.exit_code, "approvals list" in result.stderr) == (2, True)


# ---------------------------------------------------------------- --watch


@as_root
@pytest.mark.parametrize("as_json", [False, True])
def test_the_watch_prints_a_line_for_each_change_where_there_is_no_terminal(
    place: Place, run: Run, as_json: bool
) -> None:
    task = place.task()
    command = [
        *(sys.executable, "-c", "from thor_policy.cli.main import main; main()"),
        *("approvals", "list", "--watch", *(["--json"] if as_json else [])),
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None

        def next_state() -> tuple[str, str]:
            assert process.stdout is not None
            line = process.stdout.readline()
            if as_json:
                item = json.loads(line)
                return item["id"], item["status"]
            id, state = line.split()[:2]
            return id, state

        try:
            assert next_state() == (task, "pending")
            newer = place.task()
            assert next_state() == (newer, "pending")
            run("approve", task)
            assert next_state() == (task, "partial")
            run("deny", newer)
            assert next_state() == (newer, "denied"), "it is listed no more, and so its end is printed"
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 0
            assert process.stdout.read() == ""
        finally:
            process.kill()


@as_root
def test_the_watch_keeps_a_table_current_on_a_terminal(place: Place, run: Run) -> None:
    task = place.task()
    with Terminal(place.config, "approvals", "list", "--watch", "--all") as terminal:
        terminal.until(rf"pending .*{task[-8:]}")
        run("deny", task)
        terminal.until(rf"denied .*{task[-8:]}")
        urgent = place.task(urgency="urgent")
        terminal.until(rf"urgency .*pending +urgent .*{urgent[-8:]}.*denied .*{task[-8:]}")
        assert terminal.end("\x03") == 0
    assert terminal.text.count("resource") == 1


# ---------------------------------------------------------------- the full screen


@as_root
def test_one_key_approves_or_denies_and_the_next_open_task_is_shown(place: Place) -> None:
    first, second, third = place.task("zoe"), place.task("bob"), place.task("eve", urgency="emergency")
    with Terminal(place.config, "approvals", "queue") as terminal:
        terminal.until(f"1 of 3 .*EMERGENCY.*{third[-8:]}|1 of 3 .*{third[-8:]}.*EMERGENCY")
        terminal.type("a", rf"2 of 3 .*1 judged.*{first[-8:]}.*{third[-8:]} is partial; missing: security")
        terminal.type("n", f"3 of 3 .*{second[-8:]}")
        terminal.type("d", rf"2 of 3 .*2 judged.*{first[-8:]}.*{second[-8:]} is denied")
        terminal.type("cplease\r", "comment, sent with your verdict: please")
        terminal.type("a", r"End of the queue: 3 judged.*is partial")
        terminal.type("p", f"3 of 3 .*{second[-8:]}.*denied")
        terminal.type("r", f"1 of 2 .*{third[-8:]}|No task|2 open")
        assert terminal.end("q") == 0
    assert [place.state(task) for task in (first, second, third)] == ["partial", "denied", "partial"]
    assert comments(place.config) == [None, None, "please"]


@as_root
def test_a_refusal_is_one_line_and_loses_nothing(place: Place, run: Run) -> None:
    own, other = place.task("kim"), place.task("zoe")
    with Terminal(place.config, "approvals", "queue") as terminal:
        terminal.until(f"1 of 2 .*{own[-8:]}")
        terminal.type("clooks right\r", "sent with your verdict: looks right")
        terminal.type("a", "── task: this person is the subject of the question")
        terminal.until(f"your verdict: looks right.*1 of 2|1 of 2 .*0 judged.*looks right.*{own[-8:]}")
        terminal.type("n", f"2 of 2 .*{other[-8:]}")
        run("deny", other)
        terminal.type("a", "── task: is denied already")
        terminal.type("r", f"1 of 1 .*looks right.*{own[-8:]}")
        terminal.type("c", "Comment:.*looks right")
        terminal.type("\x07", "a approve")
        assert terminal.end("q") == 0
    assert [place.state(task) for task in (own, other)] == ["pending", "denied"]
    assert comments(place.config) == [None]


@as_root
def test_an_empty_queue_says_so_and_reload_finds_a_new_task(place: Place) -> None:
    with Terminal(place.config, "approvals", "queue") as terminal:
        terminal.until("No task is open")
        terminal.type("ad", "No task is open")
        terminal.type("?", "approve this task")
        terminal.type("x", "No task is open")
        task = place.task()
        terminal.type("r", f"1 of 1 .*{task[-8:]}.*1 open")
        assert terminal.end("q") == 0


# ---------------------------------------------------------------- hostile content


def harmless(text: str) -> None:
    acting = {char for char in text if char != "\n" and unicodedata.category(char) in BANNED}
    assert not acting, (acting, text)
    assert not [line for line in text.split("\n") if line.startswith("FORGED")]


@as_root
def test_text_of_a_request_cannot_control_a_terminal(place: Place, run: Run) -> None:
    task = place.task(who=HOSTILE, what=HOSTILE, reason=HOSTILE)
    for arguments in (
        ("list",),
        ("show", task),
        ("list", "--json"),
        ("show", task, "--json"),
        ("show", HOSTILE),
        ("request", HOSTILE),
        ("approve", task, "--consent-of", HOSTILE, "--channel", HOSTILE, "--evidence", HOSTILE),
        ("approve", task, "--comment", HOSTILE),
        ("show", task),
        ("deny", HOSTILE),
        ("cancel", HOSTILE),
    ):
        result = run(*arguments)
        harmless(result.stdout)
        harmless(result.stderr)
    with Terminal(place.config, "approvals", "queue") as terminal:
        terminal.until("x1b")
        terminal.type("z", "x1b")
        assert terminal.end("q") == 0
    with Terminal(place.config, "approvals", "list", "--watch") as terminal:
        terminal.until(task[-8:])
        assert terminal.end("\x03") == 0
    for sequence in ("\x1b[31m\x1b]0;t", "\x9b", "\u202e", "\u200b", "\u2028"):
        assert sequence not in terminal.raw.decode()


@given(st.text(max_size=300), st.text(min_size=1, max_size=100), st.integers(40, 200), st.booleans())
def test_no_page_is_wider_than_its_terminal(text: str, name: str, width: int, full: bool) -> None:
    verdict = {"approver": name, "verdict": "approved", "roles": [name], "groups": [name], "at": None}
    item: dict[str, Any] = {
        "id": name, "status": "partial", "evaluation_id": name, "outcome": name, "urgency": "emergency",
        "pack": {"name": name, "version": name}, "subject": name, "action": name, "resource": name,
        "reason": text, "requested_by": name, "requested_at": "2026-07-01T12:00:00.000000Z",
        "expires_at": "2026-07-02T12:00:00Z", "missing": [[name, text], [text]], "binds": [name, text],
        "verdicts": [verdict | {"channel": name, "evidence": text, "recorded_by": None}],
        "used_by": [name], "question": {"action": {}, "context": {name: {name: text}}},
    }  # fmt: skip
    for line in approval_page.page(item, now=1_783_000_000, width=width, full=full, with_ids=True):
        assert cell_len("".join(span for _, span in line)) <= width
    assert "\n" not in approval_page.line(item) + approval_page.result(item)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-5, "0s"), (0, "0s"), (59.9, "59s"), (60, "1min"), (3_599, "59min"), (7_200, "2h"), (86_400, "1d")],
)
def test_a_time_is_shown_in_its_largest_unit(seconds: float, shown: str) -> None:
    assert approval_page.duration(seconds) == shown
