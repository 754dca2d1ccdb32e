"""Log lines: their format, what they never contain, and the rate limit of lines that clients cause."""

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

import msgspec
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from tests.build import write_rules_only_pack
from thor_policy.cli import log_lines
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core import records
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
    "action": {"name": "deploy", "properties": {"note": PRIVATE}},
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
        if "restart" in question:
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
    """Restores the loggers after the test."""
    root, ours = logging.getLogger(), logging.getLogger("thor_policy")
    before = root.handlers[:], root.level, ours.level, threading.excepthook, sys.excepthook
    yield
    root.handlers[:], root.level, ours.level, threading.excepthook, sys.excepthook = before
    logging.captureWarnings(False)
    ours.setLevel(before[2])


class TestJson:
    def test_a_line_has_time_level_component_thread_and_message(self) -> None:
        line = json.loads(logs.JsonFormatter().format(record(created=1.5, msecs=500.0)))
        assert line == {
            "time": "1970-01-01T00:00:01.500Z",
            "level": "info",
            "component": "journal",
            "thread": "MainThread",
            "message": "done",
        }

    def test_fields_are_members_of_the_line_and_none_is_left_out(self) -> None:
        extra = logs.fields(code="busy", uid=1000, op=None)
        line = json.loads(logs.JsonFormatter().format(record(**extra)))
        assert (line["code"], line["uid"], "op" in line) == ("busy", 1000, False)

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
        assert [entry for entry in stack if " in " not in entry] == ["ValueError", "KeyError"]
        assert any(entry.endswith("in raised") for entry in stack)
        assert PRIVATE not in line

    def test_at_level_debug_an_exception_has_its_text(self, levels: None) -> None:
        logging.getLogger("thor_policy").setLevel(logging.DEBUG)
        stack = json.loads(logs.JsonFormatter().format(record(error=raised())))["stack"]
        assert stack[0] == f"ValueError: no {PRIVATE}"

    def test_the_component_of_another_library_is_its_logger_name(self) -> None:
        line = json.loads(logs.JsonFormatter().format(logging.makeLogRecord({"name": "httpx.client"})))
        assert line["component"] == "httpx.client"


class TestPretty:
    def printed(self, capsys: pytest.CaptureFixture[str], entry: logging.LogRecord) -> str:
        log_lines.LogHandler().handle(entry)
        return capsys.readouterr().err

    def test_an_info_line_is_only_its_message(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.printed(capsys, record("ready at [x]")) == "ready at [x]\n"

    def test_a_warning_names_its_component_and_its_fields(self, capsys: pytest.CaptureFixture[str]) -> None:
        entry = record("refused", logging.WARNING, **logs.fields(code="busy"))
        assert self.printed(capsys, entry) == "WARNING journal: refused code=busy\n"

    def test_control_characters_in_a_text_are_escaped(self, capsys: pytest.CaptureFixture[str]) -> None:
        entry = record("a\x1b[2Jb\nc", **logs.fields(name="\x07\u202e"))
        assert self.printed(capsys, entry) == "a\\x1b[2Jb\\nc name=\\x07\\u202e\n"

    def test_an_exception_is_logged_with_its_stack(self, capsys: pytest.CaptureFixture[str]) -> None:
        printed = self.printed(capsys, record(level=logging.ERROR, error=raised()))
        assert printed.splitlines()[1] == "    ValueError"
        assert PRIVATE not in printed


class TestJournalStream:
    def test_the_journal_is_recognised_by_device_and_inode(self, tmp_path: Path) -> None:
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
    def test_json_is_used_if_it_is_set_or_the_journal_reads_the_stream(
        self, levels: None, tmp_path: Path, form: str, journal: bool, structured: bool
    ) -> None:
        with (tmp_path / "log").open("w") as stream:
            at = os.fstat(stream.fileno())
            environ = {"JOURNAL_STREAM": f"{at.st_dev}:{at.st_ino}"} if journal else {}
            logs.set_up(form, "info", stream=stream, pretty=logging.NullHandler(), environ=environ)
            assert logs.structured() == structured

    def test_the_level_is_for_our_loggers_and_others_log_from_warning_on(
        self, levels: None, tmp_path: Path
    ) -> None:
        with (tmp_path / "log").open("w") as stream:
            logs.set_up("json", "debug", stream=stream, pretty=logging.NullHandler(), environ={})
            for name in ("thor_policy.daemon.service", "httpx"):
                logging.getLogger(name).debug("deep")
                logging.getLogger(name).warning("bad")
        lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
        assert [(line["component"], line["message"]) for line in lines] == [
            ("daemon", "deep"), ("daemon", "bad"), ("httpx", "bad"),
        ]  # fmt: skip

    def test_an_exception_that_ends_a_thread_is_logged(self, levels: None, tmp_path: Path) -> None:
        def end() -> None:
            raise ValueError(PRIVATE)

        with (tmp_path / "log").open("w") as stream:
            logs.set_up("json", "info", stream=stream, pretty=logging.NullHandler(), environ={})
            for target in (end, lambda: sys.exit(1)):
                thread = threading.Thread(target=target, name="engine")
                thread.start()
                thread.join()
        (line,) = (tmp_path / "log").read_text().splitlines()
        entry = json.loads(line)
        assert (entry["level"], entry["message"]) == ("critical", "thread engine has ended")
        assert entry["stack"][0] == "ValueError"


class TestHidden:
    def test_a_text_that_may_repeat_a_request_is_shown_at_level_debug_only(self, levels: None) -> None:
        hidden = logs.Hidden(ValueError(PRIVATE))
        assert str(hidden) == "(text at level debug)"
        logging.getLogger("thor_policy").setLevel(logging.DEBUG)
        assert str(hidden) == PRIVATE

    def test_a_line_of_another_library_names_its_logger_only(self, levels: None) -> None:
        entry = logging.makeLogRecord({"name": "sqlglot", "msg": f"no '{PRIVATE}'", "levelno": 30})
        line = json.loads(logs.JsonFormatter().format(entry))
        assert line["message"] == "a message of the library sqlglot (text at level debug)"
        assert PRIVATE not in "".join(text for text, _ in log_lines._parts(entry, with_time=False))
        logging.getLogger("thor_policy").setLevel(logging.DEBUG)
        assert PRIVATE in logs.JsonFormatter().format(entry)

    def test_a_warning_and_an_exception_that_ends_the_process_show_no_text(self) -> None:
        child = subprocess.run(
            [sys.executable, "-c", UNCAUGHT, PRIVATE], capture_output=True, text=True, check=False
        )
        assert child.returncode == 1
        assert PRIVATE not in child.stderr
        warning, end = (json.loads(line) for line in child.stderr.splitlines())
        assert (warning["component"], end["message"]) == ("py.warnings", "the process has ended")
        assert end["stack"][0] == "ValueError"


#: A process that logs, warns and ends with an exception.
UNCAUGHT = """
import logging, sys, warnings
from thor_policy.telemetry import logs
logs.set_up("json", "info", stream=sys.stderr, pretty=logging.NullHandler(), environ={})
warnings.warn(sys.argv[1])
raise ValueError(sys.argv[1])
"""


class TestLimit:
    @given(st.lists(st.integers(0, 3 * 10**9)), st.integers(1, 5))
    def test_admits_no_more_than_its_burst_and_its_rate_and_counts_the_rest(
        self, gaps_ns: list[int], burst: int
    ) -> None:
        limit, now_ns, start_ns = logs.Limit(burst, 1.0), 10**12, 10**12
        admissions: list[int | None] = []
        for gap_ns in gaps_ns:
            now_ns += gap_ns
            admissions.append(limit.admit(now_ns))
        admitted = [suppressed for suppressed in admissions if suppressed is not None]
        assert len(admitted) <= burst + (now_ns - start_ns) / 1e9
        last = max(
            (index for index, suppressed in enumerate(admissions) if suppressed is not None), default=-1
        )
        assert sum(admitted) == admissions[: last + 1].count(None)

    def test_admits_lines_again_after_some_time(self) -> None:
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

    def test_a_refusal_is_logged_with_code_op_and_uid_and_no_text_of_the_request(
        self, client: Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        with pytest.raises(RequestError):
            client.evaluate({"subject": {}, PRIVATE: 1})
        with pytest.raises(RequestError, match=PRIVATE):
            client.call("evaluate", {"request": DEPLOY, "pack": PRIVATE})
        first, second = caplog.records
        assert (first.levelname, first.getMessage()) == ("WARNING", "refused")
        assert logs.fields_of(first)["code"] == "bad_request"
        fields = logs.fields_of(second)
        assert {name: fields[name] for name in ("code", "op", "uid")} == {
            "code": "not_found", "op": "evaluate", "uid": os.getuid(),
        }  # fmt: skip
        assert fields["ms"] >= 0
        assert not [logged for logged in caplog.records if PRIVATE in logs.JsonFormatter().format(logged)]

    def test_at_level_debug_a_refusal_has_its_text_and_each_decision_a_line(
        self, client: Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "thor_policy")
        decision_id = client.evaluate(DEPLOY)["context"]["decision_id"]
        with pytest.raises(RequestError):
            client.call("evaluate", {"request": DEPLOY, "pack": "payroll"})
        decided, refused = (logs.fields_of(logged) for logged in caplog.records)
        assert (decided["decision_id"], decided["tier"]) == (decision_id, "model")
        assert "payroll" in refused["text"]

    def test_a_flood_of_refusals_is_partly_logged_and_fully_counted(
        self, client: Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(60):
            with pytest.raises(RequestError):
                client.evaluate({})
        counters = client.status().counters
        assert len(caplog.records) + counters["unlogged"] == counters["refused_bad_request"] == 60
        assert counters["unlogged"] > 20

    def test_a_flood_of_one_code_does_not_suppress_another_code(
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
        assert [logs.fields_of(logged)["code"] for logged in caplog.records] == ["bad_request"]

    def test_a_failure_of_the_model_is_logged_with_the_decision_id(
        self, config: Config, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Engine(StubEngine):
            def score(self, pack_sha256: str, question: str, deadline_ns: int) -> Scored:
                if PRIVATE in question:
                    raise EngineError("a decode failed")
                return super().score(pack_sha256, question, deadline_ns)

        with serving(config, load_engine=lambda _: Engine()), Client(config.endpoint) as own:
            decision_id = own.evaluate(DEPLOY)["context"]["decision_id"]
        cause, refusal = caplog.records
        assert cause.getMessage() == "the model gave no answer: a decode failed"
        assert logs.fields_of(cause)["decision_id"] == decision_id
        assert (logs.fields_of(refusal)["decision_id"], logs.fields_of(refusal)["code"]) == (
            decision_id, "engine_failed",
        )  # fmt: skip

    def test_unexpected_errors_are_partly_logged_with_their_stack_and_fully_counted(
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
        faults = [logged for logged in caplog.records if logged.exc_info]
        assert 0 < len(faults) < 40
        lines = [logs.JsonFormatter().format(logged) for logged in faults]
        assert all("in score" in line and PRIVATE not in line for line in lines)


class TestDaemon:
    """The path that users take: `thorpolicy serve` in a process of its own, on a stub engine."""

    @pytest.mark.parametrize("journal", [False, True], ids=["json", "journal"])
    def test_every_line_is_json_and_none_has_text_of_a_request(
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
                client.evaluate(DEPLOY | {"action": {"name": "restart"}})
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
        entries = [json.loads(line[3:] if journal else line) for line in lines]
        assert all({"time", "level", "component", "thread", "message"} <= entry.keys() for entry in entries)
        assert [
            (entry["component"], entry["thread"], entry.get("code"))
            for entry in entries
            if entry["level"] != "info"
        ] == [
            ("policy", "engine", None),
            ("daemon", "MainThread", "engine_failed"),
            ("daemon", "MainThread", "bad_request"),
        ]

    def test_a_failed_start_logs_its_reason_as_json(self, config: Config, short_dir: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-c", DAEMON, "serve", "--state-dir", str(short_dir), "--pack", "nowhere"],
            env=os.environ | {"THOR_POLICY_LOG_FORMAT": "json"},
            capture_output=True,
            text=True,
        )
        entries = [json.loads(line) for line in done.stderr.splitlines()]
        assert (done.returncode, entries[-1]["level"], entries[-1]["exit_status"]) == (2, "error", 2)
        assert "nowhere" in entries[-1]["message"]


# ---------------------------------------------------------------- a canary in every field

#: Is in every text of every request.
CANARY = "canary4711"
#: Rules that fail on what a request says, and some that read it with the parsers of others.
FAILING = """
- {id: number, when: "int(subject.id) > 3", outcome: deny, because: x}
- {id: moment, when: "timestamp(string(context.note)).getFullYear() > 1", outcome: deny, because: x}
- {id: index, when: "context[string(context.note)] == 1", outcome: deny, because: x}
- {id: length, when: "duration(action.name) > duration('1s')", outcome: deny, because: x}
- {id: statement, when: "sql(string(context.note)).opaque", outcome: deny, because: x}
- {id: amount, when: "decimal(string(context.note)) == decimal('1')", outcome: deny, because: x}
- {id: network, when: "cidr.inside(string(context.note), '10.0.0.0/8')", outcome: deny, because: x}
"""
#: Texts around the canary: what parsers, encoders and formats stumble over.
TEXTS = [
    CANARY, f"/tmp/{CANARY}", f"DROP {CANARY} FROM; ${CANARY}$ {CANARY}", f"\x00{CANARY}",
    f"{CANARY}\n{CANARY}", f"%s%d{CANARY}", f"{{{CANARY}}}", f"{CANARY}.gguf", f"~{CANARY}/x",
    f"[{CANARY}", f"({CANARY}+)+(", f"\x1b[31m{CANARY}", f"\ud800{CANARY}", f"{CANARY}" * 400,
    f"{CANARY}-01-01T00:00:00Z", f"user:{CANARY}", f"{CANARY}/{'x' * 300}",
]  # fmt: skip


def filled(kind: Any, text: Any) -> dict[str, Any]:
    """A record of this kind with `text` in each field that takes one, and values of use in the others."""
    chosen: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        for value in (text, {text: text} if isinstance(text, str) else text, (text,), 1, 0.5, False):
            try:
                msgspec.convert({"x": value}, msgspec.defstruct("One", [("x", field.type)]))
            except (msgspec.ValidationError, UnicodeEncodeError):
                continue
            chosen[field.name] = value
            break
    return chosen


def requests_with(text: str) -> Iterator[bytes]:
    """Frames of requests of every operation with `text` in their fields, and frames that are none."""
    evaluation: dict[str, Any] = {
        "subject": {"type": text, "id": text, "properties": {text: text}},
        "action": {"name": text, "properties": {"command": text}},
        "resource": {"type": text, "id": text},
        "context": {"note": text, text: [text, {text: 1}]},
    }
    literals = {
        "outcome": {"status": "SUCCESS"},
        "review": {"verdict": "accept"},
        "assignment": {"type": "assign"},
        "node": {"type": "goal"},
        "decision_report": {},
    }
    bodies: list[dict[str, Any]] = [
        {"request": evaluation},
        {"request": evaluation, "explain": "inline", "annotations": {"scenario_id": text, "tags": [text]}},
        {"request": evaluation, "pack": text},
        {"request": evaluation, "idempotency_key": text},
        {"request": evaluation, "idempotency_key": text, "explain": text},
        {"request": text}, {"request": {text: text}}, {"situation": text}, {"situation": {text: text}},
        {"situation": {"actor_id": text, "action_type": text, "resource": text, text: text}},
        {"evaluations": [evaluation, {text: text}, text, 5], "options": {"evaluations_semantic": text}},
        {"evaluations": [evaluation, {text: text}, text, 5], "request": evaluation},
        {"op": text}, {"v": text}, {"id": text * 300}, {"deadline_ms": text},
        {"annotations": text}, {text: text},
    ]  # fmt: skip
    for op, kind in records.RECORDS.items():
        bodies.append({"op": op, "record": filled(kind, text) | literals.get(op, {})})
        bodies.append({"op": op, "record": filled(kind, text) | {"decision_id": "unknown"}})
        bodies += [{"op": op, "record": record} for record in (text, {text: text}, [text])]
    for task in ("load", "activate", "shadow", "unload", "adapter", text):
        bodies.append({"op": "control", "record": {"task": task, "pack": text, "adapter": text}})
    for task in ("erase", "archive", "calibrate", "counterfactual", "promote", text):
        bodies.append({"op": "maintenance", "record": {"task": task, "actor": text, "before": text}})
    for body in bodies:
        frame = json.dumps({"v": 1, "id": text[:200]} | body).encode()
        yield frame
        yield frame[: len(frame) * 2 // 3]
    yield text.encode("utf-8", "surrogatepass")
    yield b"[" * 2_000 + text.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize(
    ("form", "texts"),
    [
        ("json", TEXTS[:2]),
        ("pretty", TEXTS[2:4]),
        pytest.param("json", TEXTS, marks=pytest.mark.soak),
        pytest.param("pretty", TEXTS, marks=pytest.mark.soak),
    ],
    ids=["json", "pretty", "json, all", "pretty, all"],
)
def test_no_field_of_any_request_gets_into_the_log(
    config: Config, short_dir: Path, form: str, texts: list[str]
) -> None:
    pack, path = write_rules_only_pack(short_dir / "pack", rules=FAILING), short_dir / "log"
    with path.open("w") as stream:
        child = subprocess.Popen(
            [sys.executable, "-c", DAEMON, "serve", "--state-dir", str(short_dir), "--endpoint",
             config.endpoint, "--pack", str(pack)],
            stderr=stream,
            stdout=stream,
            env=os.environ | {"THOR_POLICY_LOG_FORMAT": form},
        )  # fmt: skip
    sent = 0
    try:
        while "ready at" not in path.read_text():
            assert child.poll() is None, path.read_text()
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.set(zmq.LINGER, 0)
            socket.connect(config.endpoint)
            for text in texts:
                for frame in requests_with(text):
                    socket.send_multipart([b"", frame])
                    assert socket.poll(PATIENCE_S * 1000), frame
                    reply = json.loads(socket.recv_multipart()[-1])
                    assert reply.get("error", {}).get("code") != "internal", (frame, reply)
                    sent += 1
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE_S) == 0
    finally:
        child.kill()
        child.wait()
    shown = path.read_text()
    assert sent > 100 * len(texts)
    assert "expressions of the pack alone" in shown
    assert "load failed" in shown
    assert CANARY not in shown, [line for line in shown.splitlines() if CANARY in line][:3]
