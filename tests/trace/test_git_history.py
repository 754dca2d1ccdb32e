"""Commit messages of a real repository as nodes and links of the work."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from thor_policy.core.errors import ConfigError
from thor_policy.trace import git_history
from thor_policy.trace.git_history import History, history, parsed

MESSAGES = (
    "Set up the project\n\nNothing to see.",
    """Read files with SQLite\n\nIt is one file.\n\nGoal: Ship the importer\nOption: SQLite
Rejected: DuckDB\nDecision: Read with SQLite\nConfidence: 70 %\nSession: s1""",
    "Measure\n\nGoal: Ship the importer\nOutcome: 12,000 rows a second\nSigned-off-by: Ines <i@example.org>",
)


def commit(repository: Path, message: str) -> None:
    """Make an empty commit, in a new repository if there is none."""
    env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    who = ["-c", "user.name=Ines", "-c", "user.email=i@example.org", "-c", "commit.gpgsign=false"]
    git = ["git", "-C", str(repository), *who]
    if not (repository / ".git").exists():
        subprocess.run([*git, "init", "--quiet", "."], check=True, env=env)
    subprocess.run(
        [*git, "commit", "--quiet", "--allow-empty", "--cleanup=verbatim", "--file=-"],
        input=message.encode("utf-8", "surrogateescape"),
        check=True,
        capture_output=True,
        env=env,
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for message in MESSAGES:
        commit(tmp_path, message)
    return tmp_path


def links(read: History) -> set[tuple[str, str, str]]:
    titles = {kept.id: kept.node.title for kept in read.nodes}
    return {(titles[kept.edge.source], kept.edge.type, titles[kept.edge.target]) for kept in read.edges}


def test_trailers_are_nodes_and_links_and_other_commits_are_none(repository: Path) -> None:
    read = history(repository)
    assert (read.read, read.counted, read.problems) == (3, 2, ())
    assert [(kept.node.type, kept.node.title) for kept in read.nodes] == [
        ("action", "Read files with SQLite"),
        ("goal", "Ship the importer"),
        ("option", "SQLite"),
        ("option", "DuckDB"),
        ("decision", "Read with SQLite"),
        ("action", "Measure"),
        ("outcome", "12,000 rows a second"),
    ]
    assert links(read) == {
        ("Ship the importer", "leads_to", "SQLite"),
        ("Ship the importer", "leads_to", "Read with SQLite"),
        ("SQLite", "leads_to", "Read with SQLite"),
        ("Read with SQLite", "rejected", "DuckDB"),
        ("Read with SQLite", "leads_to", "Read files with SQLite"),
        ("Ship the importer", "leads_to", "Measure"),
        ("Measure", "leads_to", "12,000 rows a second"),
    }
    (decision,) = (kept.node for kept in read.nodes if kept.node.type == "decision")
    assert (decision.confidence, decision.session, decision.agent) == (70, "s1", "Ines")


def test_the_same_commits_give_the_same_ids(repository: Path) -> None:
    first = history(repository)
    commit(repository, "More\n\nGoal: Ship the importer\nDecision: Write with SQLite")
    second = history(repository)
    assert first.nodes == second.nodes[: len(first.nodes)]
    assert len(second.nodes) == len(first.nodes) + 2
    assert history(repository, "HEAD~1").nodes == first.nodes
    assert history(repository, "HEAD~1..HEAD").read == 1
    assert history(repository, most=1).counted == 1


def test_hostile_messages_are_bounded_and_stay_text(tmp_path: Path) -> None:
    commit(tmp_path, "Long\n\nDecision: " + "x" * 70_000)
    commit(tmp_path, "Wide\n\nDecision: " + "y" * 1_000)
    commit(tmp_path, "Many\n\n" + "\n".join(f"Decision: d{number}" for number in range(500)))
    commit(tmp_path, "Odd \x1b[31m\n\nDecision: caf\udce9 \u202e; rm -rf /\nConfidence: 900")
    read = history(tmp_path)
    assert read.read == 4
    long, odd = read.problems
    assert "more than 65,536 bytes" in long
    assert "Confidence: must be a whole number from 0 to 100" in odd
    titles = [kept.node.title for kept in read.nodes if kept.node.type == "decision"]
    assert len(titles) == 1 + git_history.MOST_TRAILERS + 1
    assert max(map(len, titles)) == 256
    (wide,) = (kept.node for kept in read.nodes if kept.node.title.startswith("yy"))
    assert wide.description == "y" * 1_000
    assert titles[-1] == "café \u202e; rm -rf /"  # git reads it as Latin-1


def test_no_setting_of_a_repository_runs_a_program(tmp_path: Path) -> None:
    commit(tmp_path, "First\n\nDecision: Do it")
    ran = tmp_path / "ran"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    with (tmp_path / ".git" / "config").open("a") as file:
        file.write(f"[core]\n\tfsmonitor = {program}\n\tpager = {program}\n")
        file.write(f"[log]\n\tshowSignature = true\n[gpg]\n\tprogram = {program}\n")
    git = ["git", "-C", str(tmp_path)]
    plain = subprocess.run([*git, "cat-file", "commit", "HEAD"], check=True, capture_output=True).stdout
    head, message = plain.split(b"\n\n", 1)
    signed = (
        head + b"\ngpgsig -----BEGIN PGP SIGNATURE-----\n \n x\n -----END PGP SIGNATURE-----\n\n" + message
    )
    made = subprocess.run(
        [*git, "hash-object", "-t", "commit", "-w", "--stdin"], input=signed, check=True, capture_output=True
    )
    assert history(tmp_path, made.stdout.decode().strip()).counted == 1
    assert not ran.exists()


def test_what_is_no_repository_or_no_revision_is_an_error(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.raises(ConfigError, match=r"git log failed in .*not a git repository"):
        history(tmp_path_factory.mktemp("none"))
    for revision in ("nobody", "--output=/tmp/x"):
        with pytest.raises(ConfigError, match="git log failed"):
            history(repository, revision)


@pytest.mark.parametrize("text", [b"", b"\n", b"\n\n\nGoal:", b"a\nb\nc\n: x\nGoal\n"])
def test_a_part_that_is_no_commit_has_no_trailers(text: bytes) -> None:
    assert parsed(text).trailers == ()
