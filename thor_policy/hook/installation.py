"""The settings files of agents: what install adds to them, what uninstall removes, what status finds there.

Owns the command that an agent runs, and the merge of a settings file. Invariant: what others wrote in a
file is kept, a file is replaced whole or not at all, its old text is kept beside it, and no symbolic link
is followed. Main thread.
"""

from __future__ import annotations

import copy
import difflib
import json
import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

from thor_policy.core.errors import ConfigError
from thor_policy.hook import strict
from thor_policy.hook.calls import Fault, Object, Verdict, printable
from thor_policy.hook.main import DEADLINE_MS, PACK, socket_of
from thor_policy.hook.state import State, default_folder

#: The program that agents start, and what its commands are recognised by.
ENTRY = Path(__file__).resolve().parent / "entry.py"
_MARK = "hook/entry.py"
#: Seconds after which an agent gives up a hook: more than twice the longest deadline of a run.
TIMEOUT_S = 60
#: What the shell does if the program did not run to its end. Gemini CLI needs a text as well as the status.
_OR_BLOCK = (
    " || { [ $? -eq 2 ] || echo 'thor-policy: the hook did not run. The call is blocked.' >&2; exit 2; }"
)
#: Largest settings file.
_MAX_BYTES = 4 << 20
_VERSION = re.compile(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})")
#: Settings that turn all hooks off: the members on the way, and the value that does so.
_OFF: dict[str, tuple[tuple[tuple[str, ...], bool], ...]] = {
    "claude": ((("disableAllHooks",), True),),
    "copilot": ((("disableAllHooks",), True),),
    "gemini": ((("hooksConfig", "enabled"), False), (("tools", "enableHooks"), False)),
    "codex": (),
    "cursor": (),
}

Scope = Literal["user", "project"]


class Wanted(NamedTuple):
    """What install writes into the command of each event."""

    endpoint: str
    pack: str = PACK
    deadline_ms: int = DEADLINE_MS
    state: str = ""
    principal: str = ""
    observe: bool = False
    may_approve: bool = False


class Change(NamedTuple):
    """A change of a settings file that is not made yet. `after` is None where the file is removed."""

    path: Path
    before: str | None
    after: str | None

    @property
    def nothing(self) -> bool:
        return self.before == self.after

    def diff(self) -> str:
        """The change as a unified diff."""
        before = (self.before or "").splitlines(keepends=True)
        after = (self.after or "").splitlines(keepends=True)
        name = printable(str(self.path))
        return "".join(difflib.unified_diff(before, after, name, name))


class Found(NamedTuple):
    """What status reports of a settings file.

    Each event that gates, and whether it is installed as it must be.
    """

    path: Path
    installed: bool
    problems: tuple[str, ...]


def agent_of(name: str) -> Any:
    """The module of an agent."""
    return import_module(f"thor_policy.hook.agents.{name}")


def command_of(agent: str, event: str, wanted: Wanted, version: str, *, program: Path = ENTRY) -> str:
    """The shell command of an event.

    One that gates ends with status 2 and a text if the program does not run.
    """
    words = [sys.executable, "-I", "-S", str(program), "--agent", agent, "--event", event]
    words += ["--endpoint", wanted.endpoint, "--pack", wanted.pack, "--deadline-ms", str(wanted.deadline_ms)]
    for option, value in (
        ("--state", wanted.state),
        ("--principal", wanted.principal),
        ("--agent-version", version),
    ):
        words += [option, value] if value else []
    words += ["--observe"] * wanted.observe + ["--may-approve"] * wanted.may_approve
    return shlex.join(words) + (
        _OR_BLOCK if _closed(agent, event, wanted.observe) else _or_pass(agent, event)
    )


def _closed(agent: str, event: str, observe: bool) -> bool:
    """True for an event at which a failure must block."""
    gates: dict[str, bool] = agent_of(agent).GATES
    return gates[event] and not observe


def _or_pass(agent: str, event: str) -> str:
    """What the shell does if the program did not run, where nothing is to block: the agent's silent form."""
    silent: str = agent_of(agent).answer(event, Verdict("allow")).stdout
    return f" || {{ echo {shlex.quote(silent)}; exit 0; }}"


# ---------------------------------------------------------------- versions


def checked_version(agent: str, given: str | None) -> str:
    """The version of the agent, if its hooks can fail closed. Raises ConfigError.

    `given` is what the person states; else the agent's program is asked.
    """
    module = agent_of(agent)
    text = given if given is not None else _asked_version(module.PROGRAM)
    match = _VERSION.search(text)
    least = ".".join(map(str, module.LEAST_VERSION))
    if match is None:
        raise ConfigError(
            f"the version of {agent} is not known ({module.PROGRAM} --version gives none); hooks fail closed "
            f"from {least} on: give --agent-version X.Y.Z"
        )
    if tuple(map(int, match.groups())) < module.LEAST_VERSION:
        raise ConfigError(
            f"{agent} {match[0]} cannot fail closed: a hook that crashes there lets the tool run; update it "
            f"to {least} or later"
        )
    return match[0]


def _asked_version(program: str) -> str:
    try:
        done = subprocess.run(
            [program, "--version"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    return done.stdout[:1_000]


# ---------------------------------------------------------------- settings files


def settings_file(agent: str, scope: Scope, *, home: Path, project: Path) -> Path:
    """The settings file of a user or of a project."""
    relative: str = agent_of(agent).SETTINGS[scope]
    return (home if scope == "user" else project) / relative


def install(agent: str, path: Path, wanted: Wanted, version: str) -> Change:
    """The change that adds our hooks to a file, and takes the place of those that we wrote there before.

    Raises ConfigError if the file cannot be read, is no JSON object, or turns all hooks off, and for an
    endpoint that the hook cannot ask.
    """
    try:
        socket_of(wanted.endpoint, {})
    except Fault as fault:
        raise ConfigError(str(fault)) from fault
    before = _read(path)
    settings = _parsed(path, before)
    if problems := _turned_off(agent, settings):
        raise ConfigError(f"{path}: {problems[0]}; remove that first")
    module, hooks = agent_of(agent), _without_ours(settings.get("hooks", {}), path)
    for event in module.GATES:
        command = command_of(agent, event, wanted, version)
        made = module.entry(event, command, TIMEOUT_S, closed=_closed(agent, event, wanted.observe))
        if not isinstance(hooks.setdefault(event, []), list):
            raise ConfigError(f"{path}: hooks.{event} is not a list; nothing was changed")
        hooks[event].append(made)
    if agent in ("cursor", "copilot"):
        settings.setdefault("version", 1)
    settings["hooks"] = hooks
    return Change(path, before, _written(settings))


def uninstall(agent: str, path: Path) -> Change:
    """The change that removes our hooks, and nothing else, from a file. Raises ConfigError."""
    before = _read(path)
    if before is None:
        return Change(path, None, None)
    settings = _parsed(path, before)
    hooks = _without_ours(settings.get("hooks", {}), path)
    if hooks == settings.get("hooks", {}):
        return Change(path, before, before)
    settings["hooks"] = hooks
    if not hooks:
        del settings["hooks"]
    return Change(path, before, None if not set(settings) - {"version"} else _written(settings))


def apply(change: Change, *, now: float) -> Path | None:
    """Make a change; returns the file that keeps the old text. `now` is Unix time. Raises ConfigError."""
    if change.nothing:
        return None
    _check_place(change.path)
    backup = None
    try:
        change.path.parent.mkdir(parents=True, exist_ok=True)
        if change.before is not None:
            stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
            backup = change.path.with_name(f"{change.path.name}.{stamp}.bak")
            _put(backup, change.before, change.path)
        if change.after is None:
            change.path.unlink()
        else:
            _put(change.path, change.after, change.path)
    except OSError as error:
        raise ConfigError(f"{change.path}: {error.strerror}; nothing was changed") from error
    return backup


def losses(folder: str, environ: Mapping[str, str]) -> int:
    """How many outcomes and observed calls could not be recorded. Raises ConfigError."""
    try:
        return State(folder or default_folder(environ)).losses()
    except Fault as fault:
        raise ConfigError(str(fault)) from fault


def status(agent: str, path: Path) -> Found:
    """Whether our hooks stand in a file, and what is wrong with them. Raises ConfigError."""
    settings = _parsed(path, _read(path))
    module, problems = agent_of(agent), list(_turned_off(agent, settings))
    hooks = settings.get("hooks", {})
    ours = {
        event: [entry for entry in entries if _is_ours(entry)]
        for event, entries in hooks.items()
        if isinstance(entries, list)
    }
    if not any(ours.values()):
        return Found(path, False, ())
    for event, gates in module.GATES.items():
        if not ours.get(event):
            problems.append(f"{event} is missing: run install again")
            continue
        for entry in ours[event]:
            problems += [f"{event}: {problem}" for problem in _faults_of(module, event, entry, gates)]
    return Found(path, True, tuple(problems))


def _faults_of(module: Any, event: str, entry: Object, gates: bool) -> list[str]:
    """What is wrong with an entry of ours, compared with the entry that install would write."""
    command = _commands_of(entry)[0]
    words = shlex.split(command.partition(" || {")[0])
    problems = [f"{word} does not exist" for word in (words[0], words[3]) if not Path(word).exists()]
    closed = gates and "--observe" not in words
    if closed and not command.endswith(_OR_BLOCK):
        problems.append("the command does not block when the program fails: run install again")
    if entry != module.entry(event, command, TIMEOUT_S, closed=closed):
        problems.append("it differs from what install writes: run install again")
    if gates and "--observe" in words:
        problems.append("it only observes")
    return problems


def _turned_off(agent: str, settings: Object) -> list[str]:
    problems = []
    for members, off in _OFF[agent]:
        value: Any = settings
        for member in members:
            value = value.get(member) if isinstance(value, dict) else None
        if value is off:
            problems.append(f"{'.'.join(members)} is {json.dumps(off)}, so no hook runs")
    return problems


def _without_ours(hooks: Any, path: Path) -> Object:
    """The hooks of a file without those that we wrote. Raises ConfigError if they have another form."""
    if not isinstance(hooks, dict):
        raise ConfigError(f"{path}: hooks is not an object; nothing was changed")
    kept: Object = {}
    for event, entries in copy.deepcopy(hooks).items():
        if isinstance(entries, list) and any(_is_ours(entry) for entry in entries):
            entries = [entry for entry in entries if not _is_ours(entry)]
            if not entries:
                continue
        kept[event] = entries
    return kept


def _is_ours(entry: Any) -> bool:
    """True for an entry whose only commands are ours."""
    commands = _commands_of(entry)
    return bool(commands) and all(_MARK in command and "--agent" in command for command in commands)


def _commands_of(entry: Any) -> list[str]:
    if not isinstance(entry, dict):
        return []
    inner = entry.get("hooks")
    entries = inner if isinstance(inner, list) else [entry]
    commands = [item.get("command", item.get("bash", "")) for item in entries if isinstance(item, dict)]
    return [command for command in commands if isinstance(command, str)]


def _check_place(path: Path) -> None:
    """Refuse a file that is reached through a symbolic link, or that is no file. Raises ConfigError."""
    for place in (path, path.parent):
        if place.is_symlink():
            raise ConfigError(
                f"{place} is a symbolic link to {os.path.realpath(place)}; give --file with the file itself"
            )
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path} is not a file")


def _read(path: Path) -> str | None:
    """The text of a settings file; None if there is none. Raises ConfigError."""
    _check_place(path)
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as opened:
            data = opened.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"{path} has more than {_MAX_BYTES} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8; nothing was changed") from error


def _parsed(path: Path, text: str | None) -> Object:
    if text is None or not text.strip():
        return {}
    try:
        return strict.decode(text.encode(), str(path))
    except Fault as fault:
        raise ConfigError(f"{fault}; nothing was changed: remove comments, or mend it") from fault


def _written(settings: Object) -> str:
    return json.dumps(settings, indent=2, ensure_ascii=False) + "\n"


def _put(path: Path, text: str, like: Path) -> None:
    """Write a file whole, with the mode of the file `like`. Raises OSError."""
    mode = stat.S_IMODE(like.stat().st_mode) if like.exists() else 0o600
    own = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    opened = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(opened, "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        own.replace(path)
    except OSError:
        own.unlink(missing_ok=True)
        raise
