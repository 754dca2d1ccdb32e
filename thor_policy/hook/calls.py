"""What a hook reads from an agent's event, and what it answers.

Owns the values between the agents' files and the program, and the bounds of texts that are printed.
Invariant: values are frozen, and nothing here does input or output. Imports the standard library alone; one
thread.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

#: An object of JSON, as decoded.
Object = dict[str, Any]

#: Most characters of a reason that is printed for an agent or a person.
MAX_REASON_CHARS = 1_200
#: Most characters of the text of a file that goes into a question.
MAX_CONTENT_CHARS = 600
#: Most characters of the user's text, and of a tool's output, that are kept.
MAX_TASK_CHARS, MAX_OUTPUT_CHARS = 2_000, 400


class Fault(Exception):
    """A fault of the hook or of what it was given: the call must not run. Its text is the reason."""


class Call(NamedTuple):
    """A tool call that is about to run.

    `tool` is the name in the vocabulary of packs, `raw_tool` the agent's own. `arguments` are those that
    rules read; `shown` are arguments that change only how a result is shown. `folders` are the roots of the
    project that the agent names, and `cwd` is where the call runs. `can_ask` is False where the agent has
    no way to ask the person about this event.
    """

    event: str
    tool: str
    raw_tool: str
    arguments: Object
    resource: tuple[str, str]
    session: str
    cwd: str
    use: str = ""
    shown: Object = {}
    folders: tuple[str, ...] = ()
    transcript: str = ""
    version: str = ""
    can_ask: bool = True
    #: The tool's input as the agent gave it, for the key of the call.
    given: Any = None


class Prompt(NamedTuple):
    """The text of the user, which begins a turn, and the folder of the session then."""

    event: str
    session: str
    text: str
    cwd: str


class Result(NamedTuple):
    """The end of a tool call that ran, and its output. `worked` is None where the agent does not say."""

    event: str
    session: str
    use: str
    raw_tool: str
    given: Any
    worked: bool | None
    output: str


class Silent(NamedTuple):
    """An event that needs no decision: the start of a session, a tool that acts on the agent alone."""

    event: str


Event = Call | Prompt | Result | Silent


class Verdict(NamedTuple):
    """What the daemon decided about a call: `allow`, `ask` a person, `deny`; or a `fault`, which blocks."""

    kind: Literal["allow", "ask", "deny", "fault"]
    reason: str = ""


class Output(NamedTuple):
    """What the process prints, and its exit status."""

    stdout: str = ""
    stderr: str = ""
    status: int = 0


# ---------------------------------------------------------------- reading members


def text_of(event: Object, member: str) -> str:
    """The text of a required member. Raises Fault."""
    value = event.get(member)
    if not isinstance(value, str) or not value:
        raise Fault(f"event: {member} is missing, or is not a text")
    return value


def text_or_empty(event: Object, member: str) -> str:
    """The text of an optional member; empty if it is absent or null. Raises Fault for another type."""
    value = event.get(member)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Fault(f"event: {member} is not a text")
    return value


def object_of(event: Object, member: str) -> Object:
    """A required member that is an object. Raises Fault."""
    value = event.get(member)
    if not isinstance(value, dict):
        raise Fault(f"event: {member} is missing, or is not an object")
    return value


def name_of(event: Object, given: str) -> str:
    """The name of the event: its own, or the one that the command line gives. Raises Fault."""
    own = text_or_empty(event, "hook_event_name")
    if own and given and own != given:
        raise Fault(
            f"event: it is {printable(own, 60)}, but the hook was installed for {printable(given, 60)}"
        )
    if not (own or given):
        raise Fault("event: hook_event_name is missing; give --event")
    return own or given


# ---------------------------------------------------------------- texts


def printable(text: str, most: int = MAX_REASON_CHARS) -> str:
    """The text on one line, at most `most` characters; what a terminal may act on is shown as U+FFFD.

    Such characters are controls, line ends, marks of direction, surrogates and characters that are
    unassigned.
    """
    shown = "".join(
        char if char.isprintable() else " " if char in "\n\t" else "\ufffd" for char in text[: most + 1]
    )
    return shown if len(shown) <= most else shown[: most - 2] + ".."


def shortened(text: str, most: int = MAX_CONTENT_CHARS) -> str:
    """The beginning of a text with its length and digest, if it is longer than `most` characters."""
    if len(text) <= most:
        return text
    return f"{text[:most]} .. [{len(text)} characters, sha256 {digest(text)}]"


def digest(text: str | bytes) -> str:
    """The sha256 of a text, in hexadecimal."""
    if isinstance(text, str):
        text = text.encode("utf-8", "surrogatepass")
    hexadecimal: str = sha256(text).hexdigest()
    return hexadecimal


def _sha256() -> Any:
    """The sha256 of the interpreter: hashlib loads OpenSSL, which takes 5 ms."""
    try:
        from _sha2 import sha256 as quick  # type: ignore[import-not-found]  # Python 3.12 and later
    except ImportError:
        try:
            from _sha256 import sha256 as quick  # type: ignore[import-not-found]
        except ImportError:
            from hashlib import sha256 as quick
    return quick


sha256 = _sha256()
