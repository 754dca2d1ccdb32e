"""One run of the hook: read the event, ask, print the answer, exit.

Owns the options, the deadline of the whole run, and the rule that no failure leaves with a status or an
output that an agent takes for an allow. Invariant: the process writes its answer at one time, at its end;
until then every exception, signal and timer leads to the agent's blocking form. Main thread, no other.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from types import FrameType
from typing import Any, NamedTuple, NoReturn

from thor_policy.hook import question, strict, zmtp
from thor_policy.hook.calls import (
    MAX_OUTPUT_CHARS,
    MAX_TASK_CHARS,
    Call,
    Fault,
    Object,
    Output,
    Prompt,
    Result,
    Verdict,
    digest,
    printable,
)
from thor_policy.hook.state import State, default_folder

AGENTS = ("claude", "codex", "copilot", "cursor", "gemini")
#: Most bytes of an event.
MAX_EVENT_BYTES = 8 << 20
#: The deadline of a run in milliseconds, and its limits: far below every agent's timeout.
DEADLINE_MS, MIN_DEADLINE_MS, MAX_DEADLINE_MS = 8_000, 50, 20_000
#: The pack that decides, where none is named.
PACK = "agent-tools"
#: Time that is left to print the answer when the deadline of the daemon passes, in seconds.
_MARGIN_S = 0.2
#: Text options, and options without a value.
_VALUES = (
    "--agent",
    "--event",
    "--endpoint",
    "--pack",
    "--deadline-ms",
    "--state",
    "--principal",
    "--agent-version",
)
_FLAGS = ("--observe", "--may-approve")
#: Signals that end the run with a block.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGALRM, signal.SIGXCPU)


class Options(NamedTuple):
    """The options of a run. Without `endpoint`, the environment names the socket."""

    agent: str
    event: str = ""
    endpoint: str = ""
    pack: str = PACK
    deadline_ms: int = DEADLINE_MS
    state: str = ""
    principal: str = ""
    agent_version: str = ""
    observe: bool = False
    may_approve: bool = False


def parse(arguments: Sequence[str]) -> Options:
    """The options in a command line. Raises Fault that names the option and the cure."""
    values: Object = {}
    left = list(arguments)
    while left:
        name, equals, value = left.pop(0).partition("=")
        field = name[2:].replace("-", "_")
        if field in values:
            raise Fault(f"{name} is given twice")
        if name in _FLAGS and not equals:
            values[field] = True
        elif name in _VALUES:
            if not equals and not left:
                raise Fault(f"{name} needs a value")
            values[field] = value if equals else left.pop(0)
        else:
            raise Fault(f"{printable(name, 60)} is no option of the hook: {', '.join((*_VALUES, *_FLAGS))}")
    if values.get("agent") not in AGENTS:
        raise Fault(f"--agent must be one of {', '.join(AGENTS)}")
    if "deadline_ms" in values:
        text = values["deadline_ms"]
        if not text.isascii() or not text.isdigit() or not MIN_DEADLINE_MS <= int(text) <= MAX_DEADLINE_MS:
            raise Fault(f"--deadline-ms must be a whole number from {MIN_DEADLINE_MS} to {MAX_DEADLINE_MS}")
        values["deadline_ms"] = int(text)
    return Options(**values)


def is_traceparent(text: str) -> bool:
    """True for a traceparent that the daemon takes: one of version 00. Another one would be refused."""
    parts = text.split("-")
    return (
        [len(part) for part in parts] == [2, 32, 16, 2]
        and parts[0] == "00"
        and not set("".join(parts)) - set("0123456789abcdef")
        and bool(parts[1].strip("0") and parts[2].strip("0"))
    )


def socket_of(endpoint: str, environ: Mapping[str, str]) -> str:
    """The path of the daemon's socket. Raises Fault if nothing names one, or if it is no ipc endpoint."""
    chosen = endpoint or environ.get("THOR_POLICY_ENDPOINT", "")
    if not chosen and (runtime := environ.get("XDG_RUNTIME_DIR")):
        chosen = f"ipc://{runtime}/thor-policy/policy.sock"
    if not chosen:
        raise Fault("no endpoint: give --endpoint ipc:///path/to/policy.sock; `thorpolicy status` shows it")
    path = chosen.removeprefix("ipc://")
    if not chosen.startswith("ipc:///") or "\0" in path or len(os.fsencode(path)) > 107:
        raise Fault(
            f"the endpoint {printable(chosen, 120)} is not ipc:///path with at most 107 bytes; "
            "the hook asks the daemon of this machine"
        )
    return path


class Run:
    """One event of one agent. `clock` gives monotonic seconds."""

    def __init__(self, options: Options, environ: Mapping[str, str], deadline: float) -> None:
        self.options, self._environ, self._deadline = options, environ, deadline
        self._agent: Any = import_module(f"thor_policy.hook.agents.{options.agent}")
        self._requests = 0
        #: The event, as soon as it is known: what a fault blocks depends on it.
        self.event = options.event

    def output(self, data: bytes) -> Output:
        """What to print for the event in `data`. Raises Fault."""
        raw = strict.decode(data, "event")
        own = raw.get("hook_event_name")
        self.event = own if isinstance(own, str) else self.options.event
        event = self._agent.read(raw, self.options.event)
        if isinstance(event, Call):
            return self._answer(self._observed(event) if self.options.observe else self._decided(event))
        if isinstance(event, Prompt):
            self._keep(event)
        elif isinstance(event, Result):
            self._record(event)
        return self._answer(Verdict("allow"))

    def failed(self, fault: Fault) -> Output:
        """What to print for a fault. An event after the call has nothing to block, and counts a loss."""
        reason = printable(f"thor-policy: {fault}. The call is blocked because the hook could not ask.")
        gates: dict[str, bool] = self._agent.GATES
        if self.options.observe or gates.get(self.event) is False:
            with suppress(Fault):  # the loss is printed too
                self._state().count_loss()
            silent: Output = self._agent.answer(self.event, Verdict("allow"))
            return silent._replace(stderr=printable(f"thor-policy: {fault}; this was not recorded"))
        blocked: Output = self._agent.answer(self.event, Verdict("fault", reason))
        return blocked

    def denied(self, reason: str) -> Output:
        """The denial of the call as a decision, for whoever has no exit status."""
        return self._answer(Verdict("deny", reason))

    def _answer(self, verdict: Verdict) -> Output:
        printed: Output = self._agent.answer(self.event, verdict, may_approve=self.options.may_approve)
        return printed

    # ------------------------------------------------------------ events

    def _observed(self, call: Call) -> Verdict:
        """The silent form, whatever the daemon decided."""
        self._decided(call)
        return Verdict("allow")

    def _decided(self, call: Call) -> Verdict:
        options, state = self.options, self._state()
        key = question.key_of_call(call)
        waiting = f"{digest(call.session)[:16]}-{digest(strict.key_of(call.given))}"
        task = "" if options.observe else state.task(waiting)
        folders = tuple(self._environ[name] for name in self._agent.FOLDERS if self._environ.get(name))
        asked_about = question.question_of(
            call,
            agent=options.agent,
            task=state.prompt(call.session),
            version=options.agent_version,
            workspace=question.workspace_of(call.cwd, folders or call.folders or (state.root(call.session),)),
            observe=options.observe,
            transcript=question.transcript_of(call.transcript),
            approval=task,
            principal=options.principal,
        )
        decision = question.Decision(
            self._ask("evaluate", pack=options.pack, explain="inline", request=asked_about, **self._trace())
        )
        refused = decision.approval_code
        if task and (decision.allow or refused not in ("", "approval_pending")):
            state.drop_task(waiting)
            task = ""
        # After a person's denial the next call requests anew, not this one.
        wanted = decision.requestable and refused != "approval_denied"
        if wanted and not task and not options.observe:
            task = self._requested(decision)
            state.keep_task(waiting, task)
        verdict = question.verdict_of(decision, can_ask=call.can_ask, task=task)
        if verdict.kind != "deny" or options.observe:
            state.keep_decision(key, str(decision.id))
        state.remove_old_sometimes(time.time())
        return verdict

    def _requested(self, decision: question.Decision) -> str:
        """The task of an approval that is requested for a decision."""
        record = {"decision_id": decision.id, "reason": f"a call of {self.options.agent}"}
        reply = self._ask("request_approval", record=record, idempotency_key=f"hook-{decision.id}")
        recorded = reply.get("recorded")
        task = recorded.get("task") if isinstance(recorded, dict) else None
        if not isinstance(task, dict) or not isinstance(task.get("id"), str):
            raise Fault("the reply of the daemon names no task")
        return printable(task["id"], 80)

    def _keep(self, prompt: Prompt) -> None:
        state = self._state()
        if prompt.cwd:
            state.keep_root(prompt.session, prompt.cwd)
        state.keep_prompt(prompt.session, prompt.text[: 2 * MAX_TASK_CHARS])
        state.remove_old(time.time())  # not before: what this session has is used now

    def _record(self, result: Result) -> None:
        """Record the outcome of a call; a call without a decision was not asked about."""
        decision_id = self._state().take_decision(question.key_of_result(result))
        if not decision_id:
            return
        quoted = printable(result.output, MAX_OUTPUT_CHARS)
        record = {
            "decision_id": decision_id,
            "status": {True: "SUCCESS", False: "FAILURE", None: "PENDING"}[result.worked],
            "note": f'the tool printed "{quoted}"' if quoted else "the tool printed nothing",
        }
        reply = self._ask("outcome", record=record, idempotency_key=f"hook-outcome-{decision_id}")
        if not isinstance(reply.get("recorded"), dict):
            raise Fault("the reply of the daemon records nothing")

    # ------------------------------------------------------------ the daemon

    def _state(self) -> State:
        return State(self.options.state or default_folder(self._environ))

    def _trace(self) -> Object:
        """The member `traceparent`, if the agent gives a well-formed one in the environment."""
        value = self._environ.get("TRACEPARENT", "")
        return {"traceparent": value} if is_traceparent(value) else {}

    def _ask(self, op: str, **members: Any) -> Object:
        deadline = self._deadline - _MARGIN_S
        self._requests += 1
        request_id = f"hook-{os.getpid()}-{self._requests}"
        left_ms = max(1, int((deadline - time.monotonic()) * 1_000))
        request: Object = {"v": 1, "id": request_id, "op": op, "deadline_ms": left_ms} | members
        path = socket_of(self.options.endpoint, self._environ)
        return question.reply_of(zmtp.ask(path, strict.encode(request), deadline), request_id)


# ---------------------------------------------------------------- the process


def read_event() -> bytes:
    """Standard input to its end. Raises Fault if it is too long."""
    parts, size = [], 0
    while part := os.read(0, 1 << 20):
        parts.append(part)
        size += len(part)
        if size > MAX_EVENT_BYTES:
            raise Fault(f"event: it has more than {MAX_EVENT_BYTES} bytes")
    return b"".join(parts)


def leave(output: Output) -> NoReturn:
    """Print the answer and end the process at once: nothing that runs at an exit can change the status.

    An answer that cannot be printed ends with status 2, and its reason on standard error.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):  # nobody reads it
        if output.stderr:
            _write(2, output.stderr + "\n")
    try:
        if output.stdout:
            _write(1, output.stdout + "\n")
    except OSError:
        with suppress(OSError):
            _write(2, "thor-policy: the answer could not be printed\n")
        os._exit(2)
    os._exit(output.status)


def _write(descriptor: int, text: str) -> None:
    data = text.encode("utf-8", "backslashreplace")
    while data:
        data = data[os.write(descriptor, data) :]


def run(arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> NoReturn:
    """One run as the process: standard input, standard output, exit status. Never returns."""
    started = time.monotonic()
    current: Run | None = None

    def blocked(fault: Fault) -> NoReturn:
        if current is None:
            leave(Output(stderr=printable(f"thor-policy: {fault}. The call is blocked."), status=2))
        leave(current.failed(fault))

    def on_signal(number: int, _frame: FrameType | None) -> None:
        what = "the deadline passed" if number == signal.SIGALRM else f"the hook got signal {number}"
        blocked(Fault(what))

    try:
        for number in _SIGNALS:
            signal.signal(number, on_signal)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        options = parse(arguments)
        signal.setitimer(signal.ITIMER_REAL, options.deadline_ms / 1_000)
        current = Run(options, environ, started + options.deadline_ms / 1_000)
        leave(current.output(read_event()))
    except Fault as fault:
        blocked(fault)
    except BaseException as error:  # nothing may escape: an agent takes most statuses for an allow
        blocked(Fault(f"unexpected error: {type(error).__name__}: {printable(str(error), 200)}"))


if __name__ == "__main__":
    run(sys.argv[1:])
