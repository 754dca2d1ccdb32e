"""The command `trace`: a tree by id, lists, and changes of state with and without a daemon."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
from click.testing import CliRunner, Result

from tests.build import MODEL, NOON, by_model, by_rule, record, sent, undo_migrations
from thor_policy.cli.main import cli
from thor_policy.client.aio import AsyncClient
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.errors import RequestError
from thor_policy.core.requests import Role
from thor_policy.daemon.service import serving
from thor_policy.journal import events
from thor_policy.journal.reader import Reader
from thor_policy.review.queue import picks
from thor_policy.security.curve_keys import Keys
from thor_policy.testing import load_stub_engine

PATIENCE_MS = 20_000


@pytest.fixture
def journal(config: Config) -> list[str]:
    """A journal of five decisions: the last three cite the first. Returns their ids, oldest first."""
    made = [by_model(evaluation=by_rule().evaluation), *(by_rule() for _ in range(4))]
    ids = [decision.id for decision in made]
    cited = [sent(records.Edge(source=citing, target=ids[0], type="CITES")) for citing in ids[2:]]
    record(config.journal_path, events.model_loaded(MODEL, NOON), *made, *cited)
    return ids


@pytest.fixture
def trace(config: Config) -> Callable[..., Result]:
    def run(*arguments: str) -> Result:
        state_dir = ["--state-dir", str(config.state_dir)]
        needs_daemon = arguments[0] in ("supersede", "overturn", "reopen", "uphold")
        endpoint = ["--endpoint", config.endpoint] if needs_daemon else []
        return CliRunner().invoke(cli, ["trace", *arguments, *state_dir, *endpoint], env={"COLUMNS": "80"})

    return run


def test_an_id_alone_shows_its_trace(trace: Callable[..., Result], journal: list[str]) -> None:
    by_id, by_name = trace(journal[0]), trace("show", journal[0][-8:])
    assert by_id.output == by_name.output
    assert by_id.output.startswith(f"{journal[0]}  deny  active\n├── decision\n")
    assert (by_id.exit_code, by_name.exit_code) == (0, 0)


def test_an_option_may_stand_before_the_id(trace: Callable[..., Result], journal: list[str]) -> None:
    assert json.loads(trace("--json", journal[0]).output)["id"] == journal[0]
    assert trace("--depth", "0", journal[0]).exit_code == 0


def test_a_journal_of_an_earlier_version_is_migrated_first(
    config: Config, trace: Callable[..., Result], journal: list[str]
) -> None:
    undo_migrations(config.journal_path, "0013_graph")
    assert trace(journal[0]).exit_code == 0
    assert trace("list").exit_code == 0


def test_json_has_the_whole_trace(trace: Callable[..., Result], journal: list[str]) -> None:
    shown: dict[str, Any] = json.loads(trace(journal[0], "--json").output)
    assert shown["status"] == "active"
    assert shown["cited_by"] == journal[2:]
    assert [step["source"] for step in shown["consequences"]] == journal[2:]
    assert {link["type"] for link in shown["links"]} == {"DECIDED_BY", "GOVERNED_BY", "APPLIES_TO"}


def test_unknown_ids_and_wrong_times_are_errors_with_status_2(
    trace: Callable[..., Result], journal: list[str]
) -> None:
    for arguments in (("x" * 9,), (journal[0], "--at", "noon"), (journal[0], "--at", "1999-01-01T00:00:00Z")):
        assert trace(*arguments).exit_code == 2


def test_lists_are_newest_first_by_entity_and_state(trace: Callable[..., Result], journal: list[str]) -> None:
    def ids(*arguments: str) -> list[str]:
        return [row["decision_id"] for row in json.loads(trace("list", "--json", *arguments).output)]

    assert ids("--entity", "env:production") == ids() == journal[::-1]
    assert ids("--entity", "env:production", "-n", "2", "--before", journal[3]) == journal[1:3][::-1]
    trace("reopen", journal[1], "--because", "a doubt")
    assert ids("--status", "under_review") == [journal[1]]
    table = trace("list", "--status", "under_review").output.splitlines()
    assert (len(table), "under_re" in table[1]) == (2, True)


@pytest.mark.parametrize("with_daemon", [False, True])
def test_overturning_lists_what_cited_the_decision(
    config: Config, trace: Callable[..., Result], journal: list[str], *, with_daemon: bool
) -> None:
    def change() -> None:
        first, by, *citing = journal
        done = trace("overturn", first, "--by", by[-8:], "--because", "the limit was misread")
        assert done.exit_code == 0, done.output
        head, count, *ids = done.output.splitlines()
        assert head.startswith(f"{first} is overturned now, recorded as ")
        assert (count, ids) == ("3 decisions cite it:", [f"  {id}" for id in citing])
        again = trace("overturn", first, "--by", by, "--because", "again")
        assert (again.exit_code, "status: the decision is overturned; " in again.output) == (4, True)
        reopened = json.loads(trace("reopen", first, "--because", "new facts", "--json").output)
        assert reopened["cited_by"] == {"count": 3, "ids": citing}
        assert trace("uphold", first, "--because", "it was right").exit_code == 0
        assert trace("supersede", first, "--by", by, "--because", "newer").exit_code == 0
        loop = trace("supersede", by, "--by", first, "--because", "cycle")
        assert (loop.exit_code, "would close a cycle of SUPERSEDED_BY" in loop.output) == (4, True)

    if with_daemon:
        with serving(config, load_engine=load_stub_engine):
            change()
    else:
        change()
    with Reader(config.journal_path) as reader:
        assert (reader.get(journal[0]) or {})["trace_status"] == "superseded"


def test_a_state_needs_the_role_review(config: Config, tcp_endpoint: str, journal: list[str]) -> None:
    over_tcp = replace(config, tcp_endpoint=tcp_endpoint)
    keys = Keys(over_tcp.keys_dir)
    others: tuple[Role, ...] = tuple(role for role in get_args(Role) if role != "review")
    reviewer, other = keys.new("reviewer", ("review",), NOON), keys.new("other", others, NOON)
    with serving(over_tcp, load_engine=load_stub_engine):
        with (
            Client(tcp_endpoint, key=other, timeout_ms=PATIENCE_MS) as client,
            pytest.raises(RequestError, match="op: trace_state needs the role review"),
        ):
            client.supersede(journal[0], by=journal[1], because="newer")
        with Client(tcp_endpoint, key=reviewer, timeout_ms=PATIENCE_MS) as client:
            recorded = client.overturn(journal[0], by=journal[1], because="wrong")
    assert recorded["cited_by"] == {"count": 3, "ids": journal[2:]}


async def changed_by_the_other_client(config: Config, ids: list[str]) -> list[Any]:
    async with AsyncClient(config.endpoint) as client:
        return [
            (await client.supersede(ids[0], by=ids[1], because="newer"))["cited_by"],
            (await client.overturn(ids[0], by=ids[1], because="wrong"))["kind"],
        ]


def test_the_client_for_asyncio_changes_states_too(config: Config, journal: list[str]) -> None:
    with serving(config, load_engine=load_stub_engine):
        assert asyncio.run(changed_by_the_other_client(config, journal)) == [
            {"count": 3, "ids": journal[2:]},
            "trace_state",
        ]


# ---------------------------------------------------------------- impact


def test_impact_counts_and_lists_what_rests_on_a_precedent(
    trace: Callable[..., Result], journal: list[str]
) -> None:
    shown = trace("impact", "--precedent", journal[0][-8:])
    assert shown.exit_code == 0, shown.output
    assert "decisions  3" in shown.output
    assert journal[3][-8:] in shown.output
    parsed = json.loads(trace("impact", "--precedent", journal[0], "--limit", "1", "--json").output)
    assert (len(parsed["decisions"]), parsed["total"], parsed["complete"]) == (1, 3, True)


def test_impact_of_a_pack_has_what_it_governed(trace: Callable[..., Result], journal: list[str]) -> None:
    parsed = json.loads(trace("impact", "--pack", "core@1.2.0", "--json").output)
    assert parsed["total"] == len(journal)
    assert "decisions  0" in trace("impact", "--pack", "core@9").output


@pytest.mark.parametrize("arguments", [(), ("--precedent", "x", "--pack", "y")])
def test_impact_needs_a_precedent_or_a_pack(
    trace: Callable[..., Result], journal: list[str], arguments: tuple[str, ...]
) -> None:
    assert trace("impact", *arguments).exit_code == 2


@pytest.mark.parametrize("with_daemon", [False, True])
def test_overturn_puts_what_cites_it_into_the_queue_of_reviewers(
    config: Config, trace: Callable[..., Result], journal: list[str], *, with_daemon: bool
) -> None:
    change = ("overturn", journal[0], "--by", journal[1], "--because", "wrong", "--review-citing")
    reopened = ("reopen", journal[2], "--because", "already")
    if with_daemon:
        with serving(config, load_engine=load_stub_engine):
            assert trace(*reopened).exit_code == 0
            shown = trace(*change)
    else:
        assert trace(*reopened).exit_code == 0
        shown = trace(*change)
    assert shown.exit_code == 0, shown.output
    assert "2 decisions that cite it are under review now" in shown.output
    with Reader(config.journal_path) as reader:
        statuses = [(reader.get(id) or {})["trace_status"] for id in journal]
        assert statuses == ["overturned", "active", *["under_review"] * 3]
        assert len(reader.trace(journal[3])["trace_states"]) == 1
        queued = [pick.decision_id for pick in picks(reader, "kim", queue="under_review")]
        assert sorted(queued) == sorted(journal[2:])


def test_the_review_of_citing_decisions_goes_on_after_an_interruption(
    config: Config, trace: Callable[..., Result], journal: list[str]
) -> None:
    change = ("overturn", journal[0], "--by", journal[1], "--because", "wrong")
    assert trace(*change).exit_code == 0
    again = json.loads(trace(*change, "--review-citing", "--json").output)
    assert again == {"under_review": 3}
    assert "0 decisions that cite it are under review now" in trace(*change, "--review-citing").output
    assert trace(*change).exit_code == 4
