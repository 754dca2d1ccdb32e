"""Log lines: their form, what never gets into them, and the bound on those that others cause."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thor_policy.cli import render
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.decisions import Scored
from thor_policy.core.errors import EngineError, RequestError
from thor_policy.core.requests import Json
from thor_policy.daemon.service import serving
from thor_policy.telemetry import logs
from thor_policy.testing import StubEngine, load_stub_engine

PATIENCE_S = 60
PRIVATE = "ivo-4711"
DEPLOY: Json = {
    "subject": {"type": "user", "id": PRIVATE},
    "action": {"name": f"deploy-{PRIVATE}"},
    "resource": {"type": "env", "id": "production"},
    "context": {"note": PRIVATE},
}

#: `thorpolicy serve` on an engine that needs no model and fails when a question has the word.
DAEMON = """
import functools
from thor_policy import testing
from thor_policy.daemon import service
from thor_policy.cli.main import main
from thor_policy.core.errors import EngineError

class Engine(testing.StubEngine):
    def score(self, pack_sha256, question, deadline_ns):
        if "broken" in question:
            raise EngineError("a decode failed")
        return super().score(pack_sha256, question, deadline_ns)

service.open_service = functools.partial(service.open_service, load_engine=lambda _: Engine())
main()
"""


def record(message: str = "done", level: int = logging.INFO, **kwargs: Any) -> logging.LogRecord:
    logger = logging.getLogger("thor_policy.journal.writer")
    made = logger.makeRecord(logger.name, level, "writer.py", 1, message, (), kwargs.pop("error", None))
    for name, value in kwargs.items():
        setattr(made, name, value)
    return made


def raised() -> Any:
    try:
        try:
            raise KeyError(PRIVATE)
        except KeyError as cause:
            raise ValueError(f"no {PRIVATE}") from cause
    except ValueError:
        return sys.exc_info()


@pytest.fixture
def levels() -> Iterator[None]:
    """Whatever a test does to the loggers is undone."""
    root, ours = logging.getLogger(), logging.getLogger("thor_policy")
    before = root.handlers[:], root.level, ours.level, threading.excepthook
    yield
    root.handlers[:], root.level, ours.level, threading.excepthook = before
    ours.setLevel(before[2])


class TestJson:
    def test_a_line_says_when_how_bad_where_and_what(self) -> None:
        told = json.loads(logs.JsonFormatter().format(record(created=1.5, msecs=500.0)))
        assert told == {
            "time": "1970-01-01T00:00:01.500Z",
            "level": "info",
            "component": "journal",
            "thread": "MainThread",
            "message": "done",
        }

    def test_fields_are_members_of_their_own_and_none_is_none(self) -> None:
        extra = logs.fields(code="busy", uid=1000, op=None)
        told = json.loads(logs.JsonFormatter().format(record(**extra)))
        assert (told["code"], told["uid"], "op" in told) == ("busy", 1000, False)

    @given(st.text())
    def test_any_text_stays_on_one_line_of_any_encoding(self, text: str) -> None:
        line = logs.JsonFormatter().format(record(text.replace("%", "%%"), **logs.fields(name=text)))
        assert line.isascii()
        assert line.splitlines() == [line]
        assert json.loads(line)["name"] == text

    @pytest.mark.parametrize(
        ("level", "priority"),
        [
            (logging.DEBUG, 7),
            (logging.INFO, 6),
            (logging.WARNING, 4),
            (logging.ERROR, 3),
            (logging.CRITICAL, 2),
        ],
    )
    def test_journald_gets_the_priority(self, level: int, priority: int) -> None:
        line = logs.JsonFormatter(for_journal=True).format(record(level=level))
        assert line.startswith(f"<{priority}>{{")

    def test_an_exception_is_types_and_stack_without_its_text(self) -> None:
        line = logs.JsonFormatter().format(record(error=raised()))
        stack = json.loads(line)["stack"]
        assert [one for one in stack if " in " not in one] == ["ValueError", "KeyError"]
        assert any(one.endswith("in raised") for one in stack)
        assert PRIVATE not in line

    def test_at_level_debug_an_exception_has_its_text(self, levels: None) -> None:
        logging.getLogger("thor_policy").setLevel(logging.DEBUG)
        stack = json.loads(logs.JsonFormatter().format(record(error=raised())))["stack"]
        assert stack[0] == f"ValueError: no {PRIVATE}"

    def test_of_another_library_the_room_is_its_name(self) -> None:
        told = json.loads(logs.JsonFormatter().format(logging.makeLogRecord({"name": "httpx.client"})))
        assert told["component"] == "httpx.client"


class TestPretty:
    def told(self, capsys: pytest.CaptureFixture[str], one: logging.LogRecord) -> str:
        render.LogHandler().handle(one)
        return capsys.readouterr().err

    def test_an_info_is_its_message(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.told(capsys, record("ready at [x]")) == "ready at [x]\n"

    def test_a_warning_names_its_room_and_its_fields(self, capsys: pytest.CaptureFixture[str]) -> None:
        one = record("refused", logging.WARNING, **logs.fields(code="busy"))
        assert self.told(capsys, one) == "WARNING journal: refused code=busy\n"

    def test_no_text_can_command_a_terminal(self, capsys: pytest.CaptureFixture[str]) -> None:
        one = record("a\x1b[2Jb\nc", **logs.fields(name="\x07\u202e"))
        assert self.told(capsys, one) == "a\\x1b[2Jb\\nc name=\\x07\\u202e\n"

    def test_an_exception_is_its_stack(self, capsys: pytest.CaptureFixture[str]) -> None:
        told = self.told(capsys, record(level=logging.ERROR, error=raised()))
        assert told.splitlines()[1] == "    ValueError"
        assert PRIVATE not in told


class TestJournalStream:
    def test_is_recognised_by_the_file_it_names(self, tmp_path: Path) -> None:
        with (tmp_path / "a").open("w") as ours, (tmp_path / "b").open("w") as other:
            at = os.fstat(ours.fileno())
            environ = {"JOURNAL_STREAM": f"{at.st_dev}:{at.st_ino}"}
            assert logs.goes_to_journal(ours, environ)
            assert not logs.goes_to_journal(other, environ)
            assert not logs.goes_to_journal(ours, {})
        assert not logs.goes_to_journal(ours, environ)  # closed


class TestSetUp:
    @pytest.mark.parametrize(
        ("form", "journal", "structured"),
        [("auto", True, True), ("auto", False, False), ("json", False, True), ("pretty", True, False)],
    )
    def test_json_is_chosen_or_goes_to_the_journal(
        self, levels: None, tmp_path: Path, form: str, journal: bool, structured: bool
    ) -> None:
        with (tmp_path / "log").open("w") as stream:
            at = os.fstat(stream.fileno())
            environ = {"JOURNAL_STREAM": f"{at.st_dev}:{at.st_ino}"} if journal else {}
            logs.set_up(form, "info", stream=stream, pretty=logging.NullHandler(), environ=environ)
            assert logs.structured() == structured

    def test_the_level_is_ours_and_others_are_heard_from_warnings_on(
        self, levels: None, tmp_path: Path
    ) -> None:
        with (tmp_path / "log").open("w") as stream:
            logs.set_up("json", "debug", stream=stream, pretty=logging.NullHandler(), environ={})
            for name in ("thor_policy.daemon.service", "httpx"):
                logging.getLogger(name).debug("deep")
                logging.getLogger(name).warning("bad")
        told = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
        assert [(one["component"], one["message"]) for one in told] == [
            ("daemon", "deep"), ("daemon", "bad"), ("httpx", "bad"),
        ]  # fmt: skip

    def test_what_ends_a_thread_is_logged(self, levels: None, tmp_path: Path) -> None:
        def end() -> None:
            raise ValueError(PRIVATE)

        with (tmp_path / "log").open("w") as stream:
            logs.set_up("json", "info", stream=stream, pretty=logging.NullHandler(), environ={})
            for target in (end, lambda: sys.exit(1)):
                thread = threading.Thread(target=target, name="engine")
                thread.start()
                thread.join()
        (line,) = (tmp_path / "log").read_text().splitlines()
        told = json.loads(line)
        assert (told["level"], told["message"]) == ("critical", "thread engine has ended")
        assert told["stack"][0] == "ValueError"


class TestLimit:
    @given(st.lists(st.integers(0, 3 * 10**9)), st.integers(1, 5))
    def test_admits_no_more_than_its_burst_and_its_rate_and_counts_the_rest(
        self, gaps_ns: list[int], burst: int
    ) -> None:
        limit, now_ns, start_ns = logs.Limit(burst, 1.0), 10**12, 10**12
        told: list[int | None] = []
        for gap_ns in gaps_ns:
            now_ns += gap_ns
            told.append(limit.admit(now_ns))
        admitted = [held for held in told if held is not None]
        assert len(admitted) <= burst + (now_ns - start_ns) / 1e9
        last = max((index for index, held in enumerate(told) if held is not None), default=-1)
        assert sum(admitted) == told[: last + 1].count(None)

    def test_opens_again_with_time(self) -> None:
        limit = logs.Limit(2, 0.5)
        assert [limit.admit(1), limit.admit(1), limit.admit(1), limit.admit(1)] == [0, 0, None, None]
        assert limit.admit(2 * 10**9 + 1) == 2
        assert limit.admit(2 * 10**9 + 1) is None


class TestServer:
    """What a daemon logs of requests."""

    @pytest.fixture
    def client(self, config: Config) -> Iterator[Client]:
        with serving(config, load_engine=load_stub_engine), Client(config.endpoint) as opened:
            yield opened

    def test_a_refusal_has_code_op_and_who_asked_but_nothing_they_said(
        self, client: Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        with pytest.raises(RequestError):
            client.evaluate({"subject": {}, PRIVATE: 1})
        with pytest.raises(RequestError, match=PRIVATE):
            client.call("evaluate", {"request": DEPLOY, "pack": PRIVATE})
        first, second = caplog.records
        assert (first.levelname, first.getMessage()) == ("WARNING", "refused")
        assert logs.fields_of(first)["code"] == "bad_request"
        told = logs.fields_of(second)
        assert {name: told[name] for name in ("code", "op", "uid")} == {
            "code": "not_found", "op": "evaluate", "uid": os.getuid(),
        }  # fmt: skip
        assert told["ms"] >= 0
        assert not [one for one in caplog.records if PRIVATE in logs.JsonFormatter().format(one)]

    def test_at_level_debug_a_refusal_has_its_text_and_each_decision_a_line(
        self, client: Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "thor_policy")
        decision_id = client.evaluate(DEPLOY)["context"]["decision_id"]
        with pytest.raises(RequestError):
            client.call("evaluate", {"request": DEPLOY, "pack": "payroll"})
        decided, refused = (logs.fields_of(one) for one in caplog.records)
        assert (decided["decision_id"], decided["tier"]) == (decision_id, "model")
        assert "payroll" in refused["text"]

    def test_a_flood_is_logged_in_part_and_counted_in_full(
        self, client: Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(60):
            with pytest.raises(RequestError):
                client.evaluate({})
        counters = client.status().counters
        assert len(caplog.records) + counters["unlogged"] == counters["refused_bad_request"] == 60
        assert counters["unlogged"] > 20

    def test_a_flood_of_one_code_hides_no_other(
        self, client: Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(30):
            with pytest.raises(RequestError):
                client.evaluate({})
        with pytest.raises(RequestError):
            client.call("evaluate", {"request": DEPLOY, "pack": "payroll"})
        assert logs.fields_of(caplog.records[-1])["code"] == "not_found"

    def test_refused_items_of_a_batch_are_counted_and_logged(
        self, client: Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        client.call("evaluate", {"request": DEPLOY, "evaluations": [{}, 5, {}]})
        assert client.status().counters["refused_bad_request"] == 1
        assert [logs.fields_of(one)["code"] for one in caplog.records] == ["bad_request"]

    def test_a_decision_that_the_model_failed_to_give_is_logged_by_its_id(
        self, config: Config, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Engine(StubEngine):
            def score(self, pack_sha256: str, question: str, deadline_ns: int) -> Scored:
                if PRIVATE in question:
                    raise EngineError("a decode failed")
                return super().score(pack_sha256, question, deadline_ns)

        with serving(config, load_engine=lambda _: Engine()), Client(config.endpoint) as own:
            decision_id = own.evaluate(DEPLOY)["context"]["decision_id"]
        cause, told = caplog.records
        assert cause.getMessage() == "the model gave no answer: a decode failed"
        assert logs.fields_of(cause)["decision_id"] == decision_id
        assert (logs.fields_of(told)["decision_id"], logs.fields_of(told)["code"]) == (
            decision_id, "engine_failed",
        )  # fmt: skip

    def test_faults_that_no_code_foresaw_are_logged_in_part_with_their_stack_and_counted_in_full(
        self, config: Config, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Engine(StubEngine):
            def score(self, pack_sha256: str, question: str, deadline_ns: int) -> Scored:
                if PRIVATE in question:
                    raise ZeroDivisionError(question)
                return super().score(pack_sha256, question, deadline_ns)

        with serving(config, load_engine=lambda _: Engine()), Client(config.endpoint) as own:
            for _ in range(60):
                with pytest.raises(RequestError, match="the daemon's log says why"):
                    own.evaluate(DEPLOY)
            assert own.status().engine.counters["internal_errors"] == 60
        faults = [one for one in caplog.records if one.exc_info]
        assert 0 < len(faults) < 40
        lines = [logs.JsonFormatter().format(one) for one in faults]
        assert all("in score" in line and PRIVATE not in line for line in lines)


class TestDaemon:
    """The path that users take: `thorpolicy serve` in a process of its own, on a stub engine."""

    @pytest.mark.parametrize("journal", [False, True], ids=["json", "journal"])
    def test_every_line_is_json_and_none_has_anything_that_was_asked(
        self, config: Config, short_dir: Path, journal: bool
    ) -> None:
        path = short_dir / "log"
        with path.open("w") as stream:
            at = os.fstat(stream.fileno())
            name = {"JOURNAL_STREAM": f"{at.st_dev}:{at.st_ino}"}
            child = subprocess.Popen(
                [sys.executable, "-c", DAEMON, "serve", "--state-dir", str(short_dir), "--endpoint",
                 config.endpoint],
                stderr=stream,
                env=os.environ | (name if journal else {"THOR_POLICY_LOG_FORMAT": "json"}),
            )  # fmt: skip
        try:
            while "ready at" not in path.read_text():
                assert child.poll() is None, path.read_text()
            with Client(config.endpoint, timeout_ms=PATIENCE_S * 1000) as client:
                client.evaluate(DEPLOY)
                client.evaluate(DEPLOY | {"action": {"name": "broken"}})
                with pytest.raises(RequestError):
                    client.evaluate(DEPLOY | {"action": {"name": ""}})
            child.send_signal(signal.SIGTERM)
            assert child.wait(PATIENCE_S) == 0
        finally:
            child.kill()
            child.wait()
        lines = path.read_text().splitlines()
        assert PRIVATE not in path.read_text()
        assert all(line.startswith(("<4>{", "<6>{") if journal else "{") for line in lines)
        told = [json.loads(line[3:] if journal else line) for line in lines]
        assert all({"time", "level", "component", "thread", "message"} <= one.keys() for one in told)
        assert [
            (one["component"], one["thread"], one.get("code")) for one in told if one["level"] != "info"
        ] == [
            ("policy", "engine", None),
            ("daemon", "MainThread", "engine_failed"),
            ("daemon", "MainThread", "bad_request"),
        ]

    def test_a_start_that_fails_says_why_in_json_too(self, config: Config, short_dir: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-c", DAEMON, "serve", "--state-dir", str(short_dir), "--pack", "nowhere"],
            env=os.environ | {"THOR_POLICY_LOG_FORMAT": "json"},
            capture_output=True,
            text=True,
        )
        told = [json.loads(line) for line in done.stderr.splitlines()]
        assert (done.returncode, told[-1]["level"], told[-1]["exit_status"]) == (2, "error", 2)
        assert "nowhere" in told[-1]["message"]
