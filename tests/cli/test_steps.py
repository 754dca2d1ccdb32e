"""The progress of long commands: a bar on a terminal, lines elsewhere, nothing on standard output."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import Any

import pyte
import pytest
from click.testing import CliRunner

from thor_policy.cli import render, steps
from thor_policy.cli.main import cli
from thor_policy.cli.steps import PAUSE_S, PAUSE_SHARE, Pace, Steps
from thor_policy.config import Config
from thor_policy.daemon.service import serving
from thor_policy.testing import load_stub_engine

#: Longest wait for a line or a child process, in seconds.
WAIT_S = 60
ROOT = Path(__file__).resolve().parents[2]
#: A suite of three scenarios; the rules of the pack deny the second, and the third is skipped.
SUITE = """
name: tiny
pack: team-governance
scenarios:
  - id: T1
    title: Whatever the stub says is right
    difficulty: easy
    situation: {actor_id: user:a, action_type: deploy, resource: env:x, timestamp: "2026-05-13T10:00:00Z"}
    expect: {one_of: [allow, require_mfa, require_attestation, deny]}
  - id: T2
    title: It cites no clause that the pack lacks
    difficulty: easy
    situation: {actor_id: user:a, action_type: deploy, resource: env:x, timestamp: "2026-05-13T10:00:00Z"}
    expect: {one_of: [allow, require_mfa, require_attestation, deny], clauses: [R99]}
  - id: T3
    title: Later
    difficulty: easy
    skip: needs a calendar
    situation: {actor_id: user:a, action_type: deploy, resource: env:x, timestamp: "2026-05-13T10:00:00Z"}
    expect: {outcome: deny}
"""


class Lines(io.StringIO):
    """A stream that a test can wait on, line by line."""

    def __init__(self) -> None:
        super().__init__()
        self._grew = threading.Condition()

    def write(self, text: str) -> int:
        with self._grew:
            length = super().write(text)
            self._grew.notify_all()
        return length

    def first(self, count: int) -> list[str]:
        """The first lines, when there are so many of them."""
        with self._grew:
            assert self._grew.wait_for(lambda: self.getvalue().count("\n") >= count, WAIT_S)
            return self.getvalue().splitlines()[:count]


@contextmanager
def captured() -> Iterator[Lines]:
    """What is written to standard error meanwhile."""
    stream = Lines()
    with redirect_stderr(stream):
        yield stream


class TestPace:
    def test_the_first_line_is_due_after_the_pause(self) -> None:
        pace = Pace(100.0)
        assert pace.wait_s(100.0) == PAUSE_S
        assert pace.wait_s(100.0 + PAUSE_S) == 0

    def test_a_printed_line_begins_a_new_pause(self) -> None:
        pace = Pace(100.0)
        pace.printed(101.5)
        assert pace.wait_s(101.5) == PAUSE_S

    def test_a_long_task_pauses_longer_so_that_a_log_stays_short(self) -> None:
        pace, now, lines = Pace(0.0), 0.0, 0
        while now < 3600:
            now += pace.wait_s(now)
            pace.printed(now)
            lines += 1
        assert pace.wait_s(now) == pytest.approx(now * PAUSE_SHARE)
        assert 30 < lines < 70


class TestLines:
    def test_a_task_that_is_done_within_the_pause_prints_nothing(self) -> None:
        with captured() as stderr, render.counting("events checked") as count:
            count(12_000)
        assert stderr.getvalue() == ""

    def test_lines_come_even_if_the_task_reports_nothing(self) -> None:
        with captured() as stderr, Steps("waiting for the daemon", pause_s=0):
            assert stderr.first(2) == ["waiting for the daemon: 0 s"] * 2

    def test_a_line_holds_the_count_the_share_the_time_and_a_note(self) -> None:
        with captured() as stderr, Steps("asking", 48, pause_s=0) as display:
            display.update(by=12, note="10 passed, 2 failed; E12")
        assert "asking: 12 of 48, 25 %, 0 s; 10 passed, 2 failed; E12" in stderr.getvalue()

    def test_a_task_that_printed_a_line_prints_its_last_count_at_the_end(self) -> None:
        with captured() as stderr, Steps("events checked", pause_s=0) as display:
            stderr.first(1)
            display.update(done=48_000)
        assert stderr.getvalue().splitlines()[-1] == "events checked: 48,000, 0 s"

    def test_a_task_that_failed_prints_no_last_count(self) -> None:
        with (
            captured() as stderr,
            suppress(ZeroDivisionError),
            Steps("events checked", pause_s=PAUSE_S) as display,
        ):
            display.log("a line")
            raise ZeroDivisionError
        assert stderr.getvalue() == "a line\n"

    def test_bytes_are_counted_in_megabytes(self) -> None:
        with captured() as stderr, Steps("reading", in_bytes=True, pause_s=0) as display:
            display.update(done=1_500_000, total=2_500_000_000)
        assert "reading: 1.5 of 2,500.0 MB, 0 %, 0 s" in stderr.getvalue()

    def test_a_display_without_lines_prints_none(self) -> None:
        with captured() as stderr, Steps("loading", with_lines=False, pause_s=0):
            assert steps.THREAD not in {thread.name for thread in threading.enumerate()}
        assert stderr.getvalue() == ""

    def test_the_thread_ends_with_the_block(self) -> None:
        with captured(), Steps("asking"):
            assert steps.THREAD in {thread.name for thread in threading.enumerate()}
        assert steps.THREAD not in {thread.name for thread in threading.enumerate()}

    def test_a_task_goes_on_if_standard_error_is_closed(self) -> None:
        with captured() as stderr, Steps("asking", pause_s=0) as display:
            stderr.first(1)
            stderr.close()
            display.update(by=1)

    def test_control_characters_of_a_note_are_shown_not_sent(self) -> None:
        with captured() as stderr, Steps("asking", pause_s=0) as display:
            display.update(by=1, note="\x1b[2J[red]")
            stderr.first(3)
        assert "\x1b" not in stderr.getvalue()
        assert "[red]" in stderr.getvalue()

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(0.4, "0 s"), (59.9, "59 s"), (185, "3 min 5 s"), (7_800, "2 h 10 min")],
    )
    def test_times_are_in_words(self, seconds: float, text: str) -> None:
        assert steps._duration(seconds) == text


@pytest.fixture
def daemon(config: Config, monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    monkeypatch.setenv("THOR_POLICY_STATE_DIR", str(config.state_dir))
    monkeypatch.setenv("THOR_POLICY_ENDPOINT", config.endpoint)
    with serving(config, load_engine=load_stub_engine):
        yield config


@pytest.fixture
def suite(tmp_path: Path) -> str:
    path = tmp_path / "suite.yaml"
    path.write_text(SUITE)
    return str(path)


class TestScenarios:
    @pytest.mark.usefixtures("daemon")
    def test_each_scenario_is_a_line_with_id_outcome_verdict_and_time(self, suite: str) -> None:
        result = CliRunner().invoke(cli, ["test", "--full", suite])
        lines = [line for line in result.stderr.splitlines() if re.match(r"\d/3 ", line)]
        label = r"(allow|require_mfa|require_attestation|deny)"
        for line, pattern in zip(
            lines,
            (
                rf"1/3 T1  {label}  right  [\d,]+ ms",
                rf"2/3 T2  {label}  right, but did not cite R99  [\d,]+ ms",
                r"3/3 T3  skipped: needs a calendar",
            ),
            strict=True,
        ):
            assert re.fullmatch(pattern, line), line
        assert "1/3" not in result.stdout

    @pytest.mark.usefixtures("daemon")
    def test_json_alone_is_on_standard_output(self, suite: str) -> None:
        result = CliRunner().invoke(cli, ["test", "--full", "--json", suite])
        assert len(json.loads(result.stdout)["results"]) == 3
        assert "1/3 T1" in result.stderr


class TestTerminal:
    """A child process with a terminal of 80 columns as standard error, and a pipe as standard output."""

    def run(self, program: str, *arguments: str, **environment: str) -> tuple[str, str, list[str]]:
        """What it wrote to standard output, what the terminal got, and its screen at the end."""
        master, slave = pty.openpty()
        env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        env |= {"TERM": "xterm", "COLUMNS": "80", "PYTHONPATH": str(ROOT)} | environment
        with subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program, *arguments],
            stdout=subprocess.PIPE,
            stderr=slave,
            env=env,
        ) as child:
            os.close(slave)
            written = b""
            with suppress(OSError):  # the terminal is closed when the child ends
                while part := os.read(master, 65_536):
                    written += part
            output, _ = child.communicate(timeout=WAIT_S)
        os.close(master)
        screen = pyte.Screen(80, 24)
        pyte.ByteStream(screen).feed(written)
        return output.decode(), written.decode(), [line.rstrip() for line in screen.display if line.strip()]

    def test_a_bar_with_its_count_is_shown_and_removed(self) -> None:
        output, written, screen = self.run(
            "import sys\n"
            "from thor_policy.cli import render\n"
            "with render.progress(3, 'replaying') as advance:\n"
            "    for number in range(3):\n"
            "        advance()\n"
            "        print('row', number)\n"
        )
        assert output == "row 0\nrow 1\nrow 2\n"
        assert "3 of 3" in written
        assert screen == []

    def test_a_line_on_standard_error_appears_above_the_bar_and_stays(self) -> None:
        _, written, screen = self.run(
            "from thor_policy.cli import render\n"
            "with render.progress(3, 'asking') as advance:\n"
            "    render.line('loading the model ...', stderr=True)\n"
        )
        assert "asking" in written
        assert screen == ["loading the model ..."]

    def test_a_bar_with_long_texts_stays_on_one_line_and_keeps_its_count(self) -> None:
        _, written, _ = self.run(
            "from thor_policy.cli import render\n"
            "with render.asking(148) as advance:\n"
            "    for status in ('passed', 'failed', 'error', 'skipped'):\n"
            "        advance('SCENARIO-WITH-A-LONG-ID', status, 'allow', 'right', 1.0)\n"
            "with render.reading_bytes('fetching a-model-with-a-very-long-name-' + 'x' * 60) as report:\n"
            "    report(1_000_000_000, 2_500_000_000)\n"
        )
        lines = re.split(r"\r\x1b\[2K|\r\n", written)
        assert any("4 of 148" in line for line in lines)
        assert any("1,000.0 of 2,500.0 MB" in line for line in lines)
        assert "\x1b[1A\x1b[2K\x1b[1A" not in written  # a bar of two lines would be redrawn by two

    def test_a_display_inside_another_leaves_the_screen_clean(self) -> None:
        _, written, screen = self.run(
            "from thor_policy.cli import render\n"
            "with render.working('outer'), render.progress(3, 'inner') as advance:\n"
            "    advance()\n"
        )
        assert "outer" in written
        assert screen == []

    def test_a_terminal_that_moves_no_cursor_gets_lines(self) -> None:
        program = (
            "from thor_policy.cli import render\n"
            "with render.asking(1) as advance:\n"
            "    advance('E01', 'passed', 'allow', 'right', 12.0)\n"
        )
        assert "1/1 E01  allow  right  12 ms" in self.run(program, TERM="dumb")[1]
        assert "1/1 E01  allow" not in self.run(program)[1]

    def test_colours_that_are_forced_put_no_bar_into_a_file(self) -> None:
        done = subprocess.run(
            [sys.executable, "-c", "from thor_policy.cli import render\nwith render.working('x'): pass"],
            capture_output=True,
            env=os.environ | {"FORCE_COLOR": "1", "PYTHONPATH": str(ROOT)},
            timeout=WAIT_S,
            check=True,
        )
        assert done.stderr == b""


class TestEveryLongCommand:
    """Each command that can take seconds opens a display."""

    @pytest.fixture
    def activities(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What the displays that a command opened say."""
        opened: list[str] = []
        begin = Steps.__init__

        def watched(self: Steps, activity: str, *arguments: Any, **options: Any) -> None:
            opened.append(activity)
            begin(self, activity, *arguments, **options)

        monkeypatch.setattr(Steps, "__init__", watched)
        return opened

    @pytest.mark.usefixtures("daemon")
    @pytest.mark.parametrize(
        ("command", "activity"),
        [
            (["test", "--full", "SUITE"], "asking"),
            (["invariance", "--sample", "2"], "asking the daemon"),
            (["ask", '{"actor_id": "user:a", "action_type": "deploy", "resource": "env:x"}'], "asking"),
            (["log", "verify"], "events checked"),
            (["log", "erase", "nobody", "--yes"], "events checked"),
            (["log", "archive", "--before", "2020-01-01T00:00:00Z"], "events archived"),
            (["stats"], "reading the decisions"),
            (["review", "--json"], "reading the queue"),
            (["review", "--stats"], "reading the reviews"),
            (["patterns"], "decisions evaluated"),
            (["calibrate"], "judged decisions read"),
            (["export", "DIR"], "reviews read"),
            (["doctor"], "checks"),
            (["packs", "load", "team-governance"], "waiting for the daemon: load team-governance"),
            (["packs", "reload"], "waiting for the daemon: reload packs"),
            (["models", "verify", "smollm2-135m-instruct-q4_1"], "reading smollm2-135m-instruct-q4_1"),
        ],
        ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
    )
    def test_it_shows_what_it_does(
        self, command: list[str], activity: str, activities: list[str], suite: str, tmp_path: Path
    ) -> None:
        paths = {"SUITE": suite, "DIR": str(tmp_path / "new")}
        CliRunner().invoke(cli, [paths.get(word, word) for word in command])
        assert activity in activities
