"""Nodes and links of the work, read from the trailers of commit messages.

Owns the grammar and the call of git. A commit counts if its message ends with trailers
(git-interpret-trailers) of these names, in any letters: `Goal`, `Option`, `Rejected`, `Decision`,
`Observation`, `Outcome` and `Revisit`, each with a title, and `Confidence` (0 to 100, of the decisions of the
commit) and `Session`.

The commit itself is an action. Goals of one title are one node in all commits. Links of a commit: each goal
leads to its options, observations and decisions (without a decision, to the action); each option leads to the
decisions; each decision rejects what was rejected, and leads to the action; the action leads to the outcomes
and the revisits.

Invariant: ids follow from the commit and the place of the trailer, so what was imported is known again. The
history is hostile: messages are bounded before they are read, and nothing of a repository's settings runs a
program. Any thread; the repository is only read.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from msgspec import Struct

from thor_policy.core.errors import ConfigError
from thor_policy.core.graph import EdgeType, NodeType
from thor_policy.core.records import (
    MAX_NAME_CHARS,
    MAX_TEXT_CHARS,
    Edge,
    ImportedEdge,
    ImportedNode,
    Node,
)

#: Most commits that are read, most bytes of the part of one that is read, and most trailers that count.
MOST_COMMITS, MOST_BYTES, MOST_TRAILERS = 10_000, 65_536, 50
#: The trailers that are nodes, and their types.
_TYPES: dict[str, NodeType] = {
    "goal": "goal",
    "option": "option",
    "rejected": "option",
    "decision": "decision",
    "observation": "observation",
    "outcome": "outcome",
    "revisit": "revisit",
}
#: Links between the trailers of a commit; `action` is the commit.
_LINKS: tuple[tuple[str, EdgeType, str], ...] = (
    ("goal", "leads_to", "option"),
    ("goal", "leads_to", "observation"),
    ("goal", "leads_to", "decision"),
    ("option", "leads_to", "decision"),
    ("decision", "rejected", "rejected"),
    ("decision", "leads_to", "action"),
    ("action", "leads_to", "outcome"),
    ("action", "leads_to", "revisit"),
)
_FORMAT = "%H%n%aN%n%s%n%(trailers:only=true,unfold=true)"
#: No setting of a repository or a user starts a program, a pager or a check of signatures.
_GIT = (
    *("git", "--no-pager", "--no-optional-locks", "-c", "core.fsmonitor=false"),
    *("-c", "core.hooksPath=/dev/null", "-c", "log.showSignature=false"),
)


class Commit(NamedTuple):
    """What counts of a commit: trailers of the grammar by name, in small letters, in order."""

    id: str
    author: str
    subject: str
    trailers: tuple[tuple[str, str], ...]


class History(Struct, frozen=True, kw_only=True):
    """What the commits say. `read` were read, `counted` have trailers; `problems` by commit."""

    nodes: tuple[ImportedNode, ...]
    edges: tuple[ImportedEdge, ...]
    read: int
    counted: int
    problems: tuple[str, ...]


def history(repository: Path, revision: str = "HEAD", *, most: int = MOST_COMMITS) -> History:
    """The nodes and links of the newest `most` commits of a revision or a range. Raises ConfigError."""
    nodes: dict[str, ImportedNode] = {}
    edges: dict[str, ImportedEdge] = {}
    problems: list[str] = []
    read = counted = 0
    for number, commit in enumerate(_commits(repository, revision, most), start=1):
        read = number
        if isinstance(commit, str):
            problems.append(commit)
        elif commit.trailers:
            counted += 1
            _add(commit, nodes, edges, problems)
    return History(
        nodes=tuple(nodes.values()),
        edges=tuple(edges.values()),
        read=read,
        counted=counted,
        problems=tuple(problems),
    )


def parsed(text: bytes) -> Commit:
    """A commit in the form of `_FORMAT`."""
    head, author, subject, *lines = f"{text.decode('utf-8', 'replace')}\n\n".split("\n")
    trailers = []
    for line in lines:
        name, separator, value = line.partition(":")
        name, value = name.strip().lower(), value.strip()
        if separator and value and (name in _TYPES or name in ("confidence", "session")):
            trailers.append((name, value))
    if not any(name in _TYPES for name, _ in trailers):
        trailers = []
    return Commit(head.strip(), author, subject, tuple(trailers[:MOST_TRAILERS]))


def _add(
    commit: Commit, nodes: dict[str, ImportedNode], edges: dict[str, ImportedEdge], problems: list[str]
) -> None:
    """Add the nodes and the links of a commit."""
    more = dict(commit.trailers)
    confidence = _confidence(more.get("confidence"))
    if more.get("confidence") is not None and confidence is None:
        problems.append(f"{commit.id[:12]}: Confidence: must be a whole number from 0 to 100")
    session = more.get("session")
    session = None if session is None else session[:MAX_NAME_CHARS]
    by_name: dict[str, list[str]] = {"action": [f"git:{commit.id}"]}
    made = {by_name["action"][0]: _node("action", commit.subject or commit.id, commit, session)}
    for number, (name, title) in enumerate(commit.trailers):
        if name not in _TYPES:
            continue
        id = f"git:{commit.id}:{number}"
        if name == "goal":
            id = f"git:goal:{hashlib.sha256(title.encode()).hexdigest()[:32]}"
        node = _node(_TYPES[name], title, commit, None if name == "goal" else session)
        if name == "decision":
            node = _node("decision", title, commit, session, confidence)
        made.setdefault(id, node)
        if id not in by_name.setdefault(name, []):
            by_name[name].append(id)
    for id, node in made.items():
        nodes.setdefault(id, ImportedNode(id=id, node=node))
    links = _LINKS if "decision" in by_name else (*_LINKS, ("goal", "leads_to", "action"))
    for source, type_, target in links:
        for first in by_name.get(source, ()):
            for second in by_name.get(target, ()):
                ends = hashlib.sha256(f"{first} {type_} {second}".encode()).hexdigest()[:32]
                id = f"git:{ends}"
                edges.setdefault(id, ImportedEdge(id=id, edge=Edge(source=first, target=second, type=type_)))


def _node(
    type_: NodeType, title: str, commit: Commit, session: str | None, confidence: int | None = None
) -> Node:
    """A node; what its title has no room for is in the description. A goal is of no one commit."""
    short = title if len(title) <= MAX_NAME_CHARS else f"{title[: MAX_NAME_CHARS - 1]}…"
    of_commit = type_ != "goal"
    return Node(
        type=type_,
        title=short,
        description=title[:MAX_TEXT_CHARS] if short != title else None,
        confidence=confidence,
        session=session,
        agent=(commit.author[:MAX_NAME_CHARS] or None) if of_commit else None,
        metadata={"commit": commit.id} if of_commit else {},
    )


def _confidence(text: str | None) -> int | None:
    if text is None or not text.removesuffix("%").strip().isascii():
        return None
    digits = text.removesuffix("%").strip()
    return int(digits) if digits.isdigit() and len(digits) <= 3 and int(digits) <= 100 else None


def _commits(repository: Path, revision: str, most: int) -> Iterator[Commit | str]:
    """The newest commits, the oldest of them first; a text names one that is too long."""
    command = [*_GIT, "-C", str(repository), "log", "-z", "--reverse", "--no-show-signature"]
    command += [f"--format={_FORMAT}", f"--max-count={most}", "--end-of-options", revision, "--"]
    env = {**os.environ, "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}
    with tempfile.TemporaryFile() as errors:  # a pipe that nobody reads would block git
        try:
            git = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=env
            )
        except OSError as error:
            raise ConfigError(f"git cannot be run: {error.strerror}; install git") from error
        with git:
            if git.stdout is not None:
                yield from map(_read, _parts(git.stdout))
        errors.seek(0)
        problem = errors.read(2_000).decode("utf-8", "replace").strip()
    if git.returncode != 0:
        raise ConfigError(f"git log failed in {repository}: {problem.splitlines()[0] if problem else '?'}")


def _read(part: bytes | None) -> Commit | str:
    return f"a commit whose trailers have more than {MOST_BYTES:,} bytes" if part is None else parsed(part)


def _parts(stream: IO[bytes]) -> Iterator[bytes | None]:
    """What lies between the NULs; None for a part of more than `MOST_BYTES`."""
    waiting, too_long = b"", False
    while block := stream.read(MOST_BYTES):
        *parts, waiting = (waiting + block).split(b"\0")
        for part in parts:
            yield None if too_long or len(part) > MOST_BYTES else part
            too_long = False
        if len(waiting) > MOST_BYTES:
            waiting, too_long = b"", True
    if waiting or too_long:
        yield None if too_long else waiting
