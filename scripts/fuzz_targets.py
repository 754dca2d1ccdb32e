"""What scripts/fuzz attacks: for each target its first inputs, one run, and how an input is changed.

Owns the targets and their daemons. Invariant: `run` returns for every input that is handled as documented,
and raises for any other; an input that it saved gives the same run again (`scripts/fuzz TARGET --replay`).
Imported by the process that runs the inputs, after its coverage is set up. One thread, and those of the
daemon.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

import yaml
import zmq

from tests import hostile
from tests.build import write_pack
from tests.transport_fuzz import stream, unconnected, write
from thor_policy import config as settings
from thor_policy import testing
from thor_policy.config import Config, data_path
from thor_policy.core import errors
from thor_policy.core.errors import ConfigError, DeadlineExceeded, RequestError, SuiteError
from thor_policy.core.requests import Caller, Evaluation, Request
from thor_policy.daemon import service
from thor_policy.policy import functions, pack_files
from thor_policy.policy.decider import Policy
from thor_policy.protocol.messages import (
    ControlRequest,
    EvaluateBatchRequest,
    EvaluateRequest,
    MaintenanceRequest,
    Message,
)
from thor_policy.protocol.requests import decode_request
from thor_policy.security.roles import Roles
from thor_policy.suites import suite_files

ROOT = Path(__file__).resolve().parents[1]
#: How long a reply may take, in seconds; and that to a job on the journal or on packs, which may read every
#: event that the run has recorded. A run that takes longer than the watchdog allows is a hang.
REPLY_S, JOB_REPLY_S = 10, 60
#: Largest request of the daemon, in bytes, and its deadlines, in milliseconds.
MAX_BYTES, DEADLINE_MS, MAX_DEADLINE_MS = 65_536, 2_000, 5_000
#: Time of every question: 2026-07-01T12:00:00Z.
RECEIVED_AT = 1_782_907_200.0
#: A value with more places is not changed further, so that its copies stay small.
MOST_PLACES = 2_000
#: Raw connections between two questions of the honest client, and connections that stay open.
BURST, OPEN = 50, 32


class Violation(Exception):
    """A run did what no document allows. `key` names the kind, so that each kind is saved once."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


class Target(Protocol):
    """One part of the daemon. `change` makes another input of one, in the form that the target reads."""

    def seeds(self) -> list[bytes]: ...
    def change(self, data: bytes, chance: random.Random) -> bytes: ...
    def run(self, data: bytes) -> None: ...
    def close(self) -> None: ...


# ---------------------------------------------------------------- how inputs are changed

#: Values that programs tend to read wrong.
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**53, 2**63 - 1, -(2**63), 2**64, 1e308, 1e-320, 0.1, -0.0),
    *(
        "",
        " ",
        "\0",
        "x" * 300,
        "é" * 200,
        "\u0301" * 500,
        "\ud800",
        "allow",
        "deny",
        "9" * 400,
        "${x}",
        "../x",
    ),
    *([], {}, [[]], [None] * 70, {"": None}, {"id": "x", "type": "y", "properties": {}}),
    *(
        "2026-03-04T13:05:00Z",
        "2026-13-99T99:99:99+99:99",
        "0001-01-01T00:00:00Z",
        "ipc://x",
        "tcp://[::1]:1",
    ),
)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container of a JSON value with each of its keys."""
    places: list[tuple[Any, Any]] = []
    stack = [value]
    while stack:
        part = stack.pop()
        keys = list(part) if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ()
        places += [(part, key) for key in keys]
        stack += [part[key] for key in keys]
    return places


def change_value(value: Any, chance: random.Random, words: list[str]) -> Any:
    """A JSON value with a few changes: a member replaced, dropped, doubled, renamed or nested."""
    for _ in range(chance.randint(1, 4)):
        places = _places(value)
        if not places or len(places) > MOST_PLACES:
            return value if places else deepcopy(chance.choice(ODD))
        container, key = chance.choice(places)
        old = container[key]
        kind = chance.random()
        if kind < 0.35:
            container[key] = deepcopy(chance.choice(ODD))
        elif kind < 0.55:
            text = old if isinstance(old, str) and old else chance.choice(words)
            container[key] = next(hostile.variants([text], 1, chance.randrange(2**32)))
        elif kind < 0.65:
            del container[key]
        elif kind < 0.8 and isinstance(container, dict):
            container[chance.choice(words)] = deepcopy(old)
        elif kind < 0.9:
            many = [deepcopy(old) for _ in range(chance.choice((1, 2, 65)))]
            container[key] = chance.choice((many, {"x": old}, [[[[[[[[[old]]]]]]]]]))
        else:
            other, at = chance.choice(places)
            container[key] = deepcopy(other[at])
    return value


def change_json(data: bytes, chance: random.Random, words: list[str]) -> bytes:
    """A frame with a changed value; sometimes with a member twice."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return bytes(data[: chance.randint(0, len(data))])
    with suppress(ValueError, RecursionError):  # a value that is not JSON, or refers to itself
        changed = json.dumps(change_value(value, chance, words), ensure_ascii=chance.random() < 0.5)
        if chance.random() < 0.05:
            changed = changed.replace('": ', f'": {chance.choice(("1, ", "NaN, ", "{, "))}"v": ', 1)
        return changed.encode("utf-8", "surrogatepass")
    return data


def change_lines(data: bytes, chance: random.Random, words: list[str]) -> bytes:
    """A text of lines (YAML, TOML) with a few lines dropped, doubled, moved, indented or changed."""
    lines = data.decode("utf-8", "replace").split("\n")
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(lines))
        kind = chance.random()
        if kind < 0.15 and len(lines) > 1:
            del lines[at]
        elif kind < 0.3:
            lines[at:at] = [lines[at]] * chance.choice((1, 1, 3, 60))
        elif kind < 0.4:
            lines.insert(chance.randrange(len(lines)), lines[at])
        elif kind < 0.5:
            lines[at] = (
                chance.choice(("  ", "    ", "- ", "\t", "? ", "&a ", "*a ", "!!int ", "# ")) + lines[at]
            )
        elif kind < 0.75:
            head, sign, value = lines[at].partition(chance.choice((": ", " = ", "- ")))
            value = chance.choice(
                (next(hostile.variants([value or "x"], 1, chance.randrange(2**32))), "", value)
            )
            odd = chance.choice(
                (json.dumps(chance.choice(ODD)), value, "*a", "|", ">-", "{<<: *a}", "0x1F", ".inf")
            )
            lines[at] = head + (sign or ": ") + odd
        else:
            lines[at] = re.sub(r"\w+", lambda _: chance.choice(words), lines[at], count=1)
    return "\n".join(lines).encode("utf-8", "surrogatepass")[:MAX_BYTES]


def _words_of(texts: list[str]) -> list[str]:
    return sorted({word for text in texts for word in re.findall(r"\w+", text)}) or ["x"]


def _documented_codes() -> frozenset[str]:
    """The codes in the table of the document, which must be those of the code."""
    text = (ROOT / "docs/reference/protocol.md").read_text(encoding="utf-8")
    table = text[text.index("### Errors") : text.index("Treat every error")]
    return frozenset(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) & set(errors.ERROR_CODES)


def _check_code(code: str, codes: frozenset[str]) -> None:
    if code not in codes:
        raise Violation(f"undocumented code {code}", f"the error code {code!r} is not documented")


# ---------------------------------------------------------------- requests


def _questions() -> list[dict[str, Any]]:
    """A question of each kind from the shipped suites."""
    questions = []
    for path in suite_files.available(data_path("scenarios")):
        for scenario in suite_files.load(path).scenarios[:12]:
            questions.append(dict(scenario.question()))
    return questions


def _frames() -> list[bytes]:
    """Requests of every kind."""
    questions = [{"v": 1, "id": "1", **question} for question in _questions()]
    first = next(question["request"] for question in questions if "request" in question)
    record = {"decision_id": "0198c0de-0000-7000-8000-000000000000", "reviewer": "kim", "verdict": "accept"}
    others: list[dict[str, Any]] = [
        {"v": 1, "op": "status"},
        {"v": 1, "op": "metrics"},
        {"v": 1, "request": first, "evaluations": [{"action": {"name": "read"}}, {}], "options": {}},
        {"v": 1, "request": first, "explain": "inline", "deadline_ms": 900, "idempotency_key": "k1"},
        {"v": 1, "request": first, "annotations": {"scenario_id": "s", "expected": ["deny"], "tags": ["t"]}},
        {"v": 1, "op": "outcome", "record": record | {"status": "SUCCESS", "value": 1.5, "note": "n"}},
        {"v": 1, "op": "review", "record": record},
        {"v": 1, "op": "approval", "record": record | {"approver": "bo", "channel": "email", "step": 1}},
        {"v": 1, "op": "assignment", "record": record | {"type": "lease", "seconds": 5}},
        {"v": 1, "op": "decision_report", "record": {"agent": "a", "outcome": "BUY", "context": {"x": 1}}},
        {"v": 1, "op": "consultation", "record": {"system": "crm", "session": "s", "value": {"open": 3}}},
        {"v": 1, "op": "node", "record": {"type": "goal", "title": "t", "metadata": {}}},
        {"v": 1, "op": "edge", "record": {"source": "a", "target": "b", "type": "leads_to"}},
        {"v": 1, "op": "maintenance", "record": {"task": "checkpoint"}},
        {"v": 1, "op": "maintenance", "record": {"task": "erase", "actor": "user:alice"}},
        {"v": 1, "op": "maintenance", "record": {"task": "archive", "before": "2020-01-01T00:00:00Z"}},
        {"v": 1, "op": "control", "record": {"task": "shadow", "pack": "none"}},
        {"v": 1, "op": "control", "record": {"task": "adapter", "adapter": "none", "scale": 1}},
    ]
    return [json.dumps(frame).encode() for frame in (*questions, *others)]


class _Requests:
    """What the targets of requests share: their first inputs, and how these are changed."""

    def __init__(self) -> None:
        self.codes = _documented_codes()
        self._frames = _frames()
        self._words = _words_of([frame.decode() for frame in self._frames])

    def seeds(self) -> list[bytes]:
        return self._frames

    def change(self, data: bytes, chance: random.Random) -> bytes:
        return change_json(data, chance, self._words)

    def decode(self, data: bytes) -> Message | RequestError:
        """The message of a frame, or its documented refusal."""
        try:
            return decode_request(data, max_bytes=MAX_BYTES, max_deadline_ms=MAX_DEADLINE_MS)
        except RequestError as error:
            _check_code(error.code, self.codes)
            return error

    def close(self) -> None:
        """Release what the target holds."""


class Wire(_Requests):
    """Frames: decoded, and sent to a daemon with the stub engine through a real socket."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._daemon = self._stack.enter_context(_Daemon(folder))

    def run(self, data: bytes) -> None:
        decoded = self.decode(data)
        is_job = isinstance(decoded, MaintenanceRequest | ControlRequest)
        reply = self._daemon.ask(data, JOB_REPLY_S if is_job else REPLY_S)
        if (error := reply.get("error")) is not None:
            _check_code(error["code"], self.codes)
            if error["code"] == "internal":
                raise Violation("internal", f"the daemon failed: {error['message']}")
            if isinstance(decoded, RequestError) and decoded.code != error["code"]:
                raise Violation("another code", f"decoded as {decoded.code}, answered with {error['code']}")
            return
        if isinstance(decoded, RequestError):
            raise Violation("answered", f"a refused frame was answered: {decoded.message}")
        for item in reply.get("evaluations", [reply]):
            if "decision" in item and item["decision"] != (item["context"].get("outcome") == "allow"):
                raise Violation("decision", f"decision is {item['decision']}, with {item['context']}")

    def close(self) -> None:
        self._stack.close()


class Rules(_Requests):
    """Questions: decided by each shipped pack, with the stub engine."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        prompts = data_path("prompts")
        packs = [pack_files.load(prompts / name) for name in pack_files.available(prompts)]
        self._policies = [Policy(testing.StubEngine(), pack) for pack in packs]
        self._ticket = 0

    def run(self, data: bytes) -> None:
        message = self.decode(data)
        evaluations: list[Evaluation] = []
        if isinstance(message, EvaluateRequest):
            evaluations = [message.evaluation]
        elif isinstance(message, EvaluateBatchRequest):
            evaluations = [item.evaluation for item in message.items if isinstance(item, EvaluateRequest)]
        for evaluation in evaluations:
            for policy in self._policies:
                self._decide(policy, evaluation)
        functions.forget()

    def _decide(self, policy: Policy, evaluation: Evaluation) -> None:
        self._ticket += 1
        now_ns = time.monotonic_ns()
        request = Request(
            ticket=self._ticket,
            evaluation=evaluation,
            caller=Caller(transport="ipc", uid=1, gid=1, pid=1),
            received_at=RECEIVED_AT,
            received_ns=now_ns,
            deadline_ns=now_ns + 60 * 10**9,
        )
        try:
            decision = policy.decide(request)
        except RequestError as error:
            _check_code(error.code, self.codes)
            return
        except DeadlineExceeded as error:
            raise Violation("a minute", f"the question took a minute: {error}") from error
        labels = policy.residents.active.pack.labels
        if labels.index(decision.outcome) < labels.index(decision.floor.outcome):
            raise Violation("below the floor", f"{decision.outcome} is below {decision.floor.outcome}")


# ---------------------------------------------------------------- files


class _Files:
    """Inputs that are files. The first line names the file, where there are several."""

    def __init__(self, texts: list[bytes]) -> None:
        self._texts = texts
        self._words = _words_of([text.decode("utf-8", "replace") for text in texts])

    def seeds(self) -> list[bytes]:
        return self._texts

    def change(self, data: bytes, chance: random.Random) -> bytes:
        return change_lines(data, chance, self._words)

    def close(self) -> None:
        """Nothing is held."""


class Packs(_Files):
    """A file of a pack: pack.yaml, clauses.yaml, rules.yaml, examples.yaml or data.yaml. A pack that loads
    decides a question."""

    def __init__(self, folder: Path) -> None:
        self._whole = write_pack(folder / "whole")
        (self._whole / "data.yaml").write_text("tiers: {gold: 10}\n", encoding="utf-8")
        self._folder = folder / "pack"
        shipped = [data_path("prompts") / name for name in ("discount-approval", "device-operations")]
        paths = [path / name for path in (self._whole, *shipped) for name in pack_files.TYPES]
        texts = [path.name.encode() + b"\n" + path.read_bytes() for path in paths if path.exists()]
        super().__init__(texts)
        evaluation = next(question for question in _questions() if "request" in question)["request"]
        frame = json.dumps({"v": 1, "request": evaluation}).encode()
        message = decode_request(frame, max_bytes=MAX_BYTES, max_deadline_ms=MAX_DEADLINE_MS)
        assert isinstance(message, EvaluateRequest)
        self._question = message.evaluation

    def run(self, data: bytes) -> None:
        first, _, text = data.partition(b"\n")
        name = first.decode("ascii", "replace")
        if name not in pack_files.TYPES:
            name, text = "rules.yaml", data
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.copytree(self._whole, self._folder)
        (self._folder / name).write_bytes(text)
        try:
            pack = pack_files.load(self._folder)
        except errors.PackError:
            return
        pack.book.apply(self._question, RECEIVED_AT)


class Suites(_Files):
    """A suite file."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "suite.yaml"
        texts = []
        for path in suite_files.available(data_path("scenarios")):
            text = path.read_bytes()
            if len(text) > 20_000:  # a suite of a few scenarios is read faster
                whole = yaml.safe_load(text)
                whole["scenarios"] = whole.get("scenarios", [])[:6]
                whole["matrix"] = whole.get("matrix", [])[:1]
                text = yaml.safe_dump(whole, sort_keys=False, allow_unicode=True).encode()
            texts.append(text)
        super().__init__(texts)

    def run(self, data: bytes) -> None:
        self._path.write_bytes(data)
        with suppress(SuiteError):
            suite_files.load(self._path)


class Settings(_Files):
    """A TOML file of settings."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "settings.toml"
        lines = []
        for name, value in vars(Config()).items():
            shown = (
                str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            )
            lines.append(f"{name} = {json.dumps(shown)}")
        text = "\n".join(lines)
        roles = 'roles = ["local=ask+record", "uid:7=review", "group:root=control"]\n'
        super().__init__([text.encode(), roles.encode(), b'tcp_endpoint = "tcp://[::1]:7000"\n'])

    def run(self, data: bytes) -> None:
        self._path.write_bytes(data)
        with suppress(ConfigError):
            Roles(settings.load(self._path, environ={}).roles)


# ---------------------------------------------------------------- the daemon's sockets


class _Daemon:
    """A daemon with the stub engine, on threads of this process, and one client of it."""

    def __init__(self, folder: Path) -> None:
        self.config = Config(
            state_dir=folder,
            endpoint=f"ipc://{folder}/p.sock",
            synchronous="NORMAL",
            deadline_ms=DEADLINE_MS,
            max_deadline_ms=MAX_DEADLINE_MS,
            max_request_bytes=MAX_BYTES,
            ballast_mb=1,
            min_free_mb=1,
            log_level="error",
        )
        self._failures: deque[str] = deque(maxlen=10)
        self._stack = ExitStack()
        self._context = zmq.Context()

    def __enter__(self) -> _Daemon:
        threading.excepthook = lambda failure: self._failures.append(
            f"{failure.exc_type.__name__}: {failure.exc_value}"
        )
        self._stack.enter_context(service.serving(self.config, load_engine=testing.load_stub_engine))
        self._stack.callback(self._context.destroy, linger=0)
        self._client = self._connected()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _connected(self) -> zmq.Socket[bytes]:
        client = self._context.socket(zmq.DEALER)
        client.connect(self.config.endpoint)
        return client

    def ask(self, frame: bytes, within_s: int = REPLY_S) -> dict[str, Any]:
        """The reply to a frame. Raises Violation where there is none, or it is no JSON."""
        self._client.send(frame)
        if not self._client.poll(within_s * 1_000):
            self._client.close(linger=0)
            self._client = self._connected()
            failure = "; ".join(self._failures) or "no thread failed"
            raise Violation(f"no reply ({failure[:80]})", f"no reply within {within_s} s: {failure}")
        try:
            reply: dict[str, Any] = json.loads(self._client.recv())
        except ValueError as error:
            raise Violation("no JSON", f"the reply is no JSON: {error}") from error
        return reply


class Transport:
    """Raw bytes into the daemon's sockets. After each burst an honest client must be answered.

    The first byte of an input chooses the socket. An input that begins with `burst` holds several: a
    violation saves those since the last answer.
    """

    _BURST = b"burst\n"

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        self._daemon = self._stack.enter_context(_Daemon(folder))
        paths = [self._daemon.config.socket_path, self._daemon.config.events_path]
        control = Path(f"{self._daemon.config.socket_path}.control")
        self._paths = [str(path) for path in (*paths, *([control] if control.exists() else ()))]
        self._open: deque[socket.socket] = deque()
        self._since: list[bytes] = []

    def seeds(self) -> list[bytes]:
        chance = random.Random(0)
        return [bytes([number % 3]) + stream(chance).data[:2_000] for number in range(60)]

    def change(self, data: bytes, chance: random.Random) -> bytes:
        if chance.random() < 0.5:
            return bytes([chance.randrange(256)]) + stream(chance).data
        other = stream(chance).data
        at = chance.randint(0, len(data))
        return bytes(data[:at]) + other[chance.randint(0, len(other)) :]

    def run(self, data: bytes) -> None:
        if data.startswith(self._BURST):
            for line in data.removeprefix(self._BURST).split():
                self._write(bytes.fromhex(line.decode("ascii")))
            self._check()
            return
        self._write(data)
        self._since.append(data)
        if len(self._since) == BURST:
            self._check()

    def failing_input(self) -> bytes:
        """What was written since the honest client was last answered."""
        return self._BURST + b"\n".join(data.hex().encode() for data in self._since)

    def _check(self) -> None:
        reply = self._daemon.ask(b'{"v": 1, "op": "status"}')
        if reply.get("status", {}).get("state") != "serving":
            raise Violation("not serving", f"the honest client got {str(reply)[:200]}")
        self._since.clear()

    def _write(self, data: bytes) -> None:
        number = data[0] if data else 0
        raw = unconnected()
        with suppress(OSError):
            raw.connect(self._paths[number % len(self._paths)])
            write(raw, data[1:], at_once=number % 5 == 0)
        if number < 16:  # it stays open
            self._open.append(raw)
        else:
            raw.close()
        while len(self._open) > OPEN:
            self._open.popleft().close()

    def close(self) -> None:
        for raw in self._open:
            raw.close()
        self._stack.close()


TARGETS: dict[str, Callable[[Path], Target]] = {
    "wire": Wire,
    "rules": Rules,
    "packs": Packs,
    "suites": Suites,
    "settings": Settings,
    "transport": Transport,
}
