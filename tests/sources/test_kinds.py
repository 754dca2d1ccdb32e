"""All kinds of sources keep one contract: over real files, a real database, a real server, pushed values."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.json_server import json_server
from thor_policy.core.errors import ConfigError
from thor_policy.core.sources import Push
from thor_policy.policy.source_specs import SourceSpec
from thor_policy.sources.kinds import Reach, open_source, overridden
from thor_policy.sources.pushed import PushedValues
from thor_policy.sources.source import Found, Source, SourceError

KINDS = ("yaml", "csv", "jsonl", "sqlite", "http", "pushed")
ROWS = [
    {"id": "ann", "tier": "gold", "discount": 20, "at": "2026-05-13T10:00:00Z", "sure": 0.9},
    {"id": "bob", "tier": "silver", "discount": 5},
]


def soon() -> int:
    return time.monotonic_ns() + 20 * 10**9


def spec_of(place: dict[str, Any], *, at: str = "discount") -> SourceSpec:
    attributes = {"tier": {"type": "string"}, "limit": {"type": "number", "at": at}}
    return msgspec.convert(
        {"of": "subject", "types": ["user"], "attributes": attributes, "fresh_at": "at", "quality": "sure"}
        | place,
        SourceSpec,
    )


def csv_of(rows: list[dict[str, Any]]) -> str:
    columns = ("id", "tier", "discount", "at", "sure")
    return "\n".join(
        [",".join(columns), *(",".join(str(row.get(c, "")) for c in columns) for row in rows), ""]
    )


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Source]:
    """A source of each kind, with the same two users."""
    kind, pushed = request.param, PushedValues(10, 10_000)
    with json_server() as server:
        if kind == "yaml":
            (tmp_path / "t.yaml").write_text(json.dumps(ROWS))
            spec = spec_of({"table": {"path": "t.yaml"}})
        elif kind == "csv":
            (tmp_path / "t.csv").write_text(csv_of(ROWS))
            spec = spec_of({"table": {"path": "t.csv"}})
        elif kind == "jsonl":
            (tmp_path / "t.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
            spec = spec_of({"table": {"path": "t.jsonl"}})
        elif kind == "sqlite":
            with closing(sqlite3.connect(tmp_path / "t.db")) as database:
                database.execute("CREATE TABLE t (id TEXT, tier TEXT, discount REAL, at TEXT, sure REAL)")
                for row in ROWS:
                    values = [row.get(c) for c in ("id", "tier", "discount", "at", "sure")]
                    database.execute("INSERT INTO t VALUES (?, ?, ?, ?, ?)", values)
                database.commit()
            query = "SELECT tier, discount, at, sure FROM t WHERE id = :id AND :type = 'user'"
            listing = "SELECT id FROM t WHERE :type = 'user'"
            spec = spec_of({"sqlite": {"path": "t.db", "query": query, "listing": listing}})
        elif kind == "http":
            urls = {"url": f"{server.url}/people/{{id}}", "listing": f"{server.url}/ids/{{type}}"}
            spec = spec_of({"http": urls}, at="limits.discount")
        else:
            spec = spec_of({"pushed": {}})
            for row in ROWS:
                fields = {"values": {k: v for k, v in row.items() if k != "id"}}
                push = Push(source="accounts", type="user", id=str(row["id"]), ttl_s=60, **fields)  # type: ignore[arg-type]
                pushed.push(push, "uid:1", at=1.8e9, now_ns=time.monotonic_ns())
        opened = open_source("accounts", spec, folder=tmp_path, reach=Reach(), pushed=pushed)
        yield opened
        opened.close()


def outcome(source: Source, id: str) -> Found | str | None:
    """What a look-up gives, or the message of its error."""
    try:
        return source.look_up("user", id, soon())
    except SourceError as error:
        return str(error)


class TestContract:
    def test_an_entity_has_its_attributes_of_their_declared_types(self, source: Source) -> None:
        answer = source.look_up("user", "ann", soon())
        assert answer is not None
        assert answer.values == {"tier": "gold", "limit": 20.0}
        assert type(answer.values["limit"]) is float

    def test_freshness_and_quality_are_those_that_the_source_states(self, source: Source) -> None:
        answer = source.look_up("user", "ann", soon())
        assert answer is not None
        assert (answer.fresh_at, answer.quality) == ("2026-05-13T10:00:00Z", 0.9)

    def test_values_without_a_stated_time_have_that_of_the_look_up_or_the_file(self, source: Source) -> None:
        answer = source.look_up("user", "bob", soon())
        assert answer is not None
        assert answer.fresh_at is not None
        assert answer.fresh_at.endswith("Z")
        assert answer.quality is None

    def test_an_unknown_entity_has_no_attributes(self, source: Source) -> None:
        assert outcome(source, "zoe") in (None, "nothing was pushed, or its time is over")

    def test_hostile_ids_are_only_ids(self, source: Source) -> None:
        for id in (
            "' OR 1=1 --",
            "../ann",
            "ann?x=1",
            "ann#",
            "%61nn",
            "ann\n",
            "a" * 256,
            "ＡＮＮ",
            "*",
            "{id}",
        ):
            assert outcome(source, id) in (None, "nothing was pushed, or its time is over"), id

    def test_a_listing_has_the_ids_of_a_type_sorted(self, source: Source) -> None:
        assert source.listing("user", soon()) == ["ann", "bob"]

    def test_a_source_that_answers_has_no_problem(self, source: Source) -> None:
        source.look_up("user", "ann", soon())
        assert source.problem is None

    def test_many_threads_may_look_up_at_the_same_time(self, source: Source) -> None:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: source.look_up("user", "ann", soon()), range(40)))
        assert {type(answer) for answer in answers} == {Found}


class TestOverrides:
    TABLE = spec_of({"table": {"path": "t.csv"}})
    HTTP = spec_of({"http": {"url": "https://a.example/{id}"}})

    def test_the_operator_sets_path_and_timeout_of_a_table(self) -> None:
        reach = Reach(overrides=("accounts.path=/srv/t.csv", "accounts.timeout_ms=40", "other.path=/x.csv"))
        spec = overridden("accounts", self.TABLE, reach)
        assert spec.table is not None
        assert (spec.table.path, spec.timeout_ms) == ("/srv/t.csv", 40)

    def test_the_operator_sets_the_url_of_an_endpoint(self) -> None:
        spec = overridden("accounts", self.HTTP, Reach(overrides=("accounts.url=http://127.0.0.1:9/{id}",)))
        assert spec.http is not None
        assert spec.http.url == "http://127.0.0.1:9/{id}"

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("accounts.path=/x", "sources: accounts.path is set, but accounts is a http source; remove it"),
            ("accounts.url=ftp://x/{id}", "sources: accounts.url must be a URL, as https://host/users/{id}"),
            ("accounts.url=https://x/", "sources: accounts.url must use the parameter {id}"),
            ("accounts.url=https://{id}.x/", "sources: accounts.url the host must not depend on the request"),
            ("accounts.timeout_ms=0", "sources: accounts.timeout_ms must be a whole number from 1 to 60000"),
            ("accounts.timeout_ms=x", "sources: accounts.timeout_ms must be a whole number from 1 to 60000"),
        ],
    )
    def test_an_override_that_does_not_fit_is_refused(self, override: str, message: str) -> None:
        with pytest.raises(ConfigError) as refused:
            overridden("accounts", self.HTTP, Reach(overrides=(override,)))
        assert str(refused.value).startswith(message)

    def test_the_key_of_an_endpoint_is_sent_to_its_own_host_and_named_in_no_error(
        self, tmp_path: Path
    ) -> None:
        with json_server() as server:
            spec = spec_of({"http": {"url": f"{server.url}/status/{{id}}"}})
            reach = Reach(overrides=("accounts.key=ACCOUNTS_KEY",))
            environ = {"ACCOUNTS_KEY": "s3cret"}
            opened = open_source(
                "accounts", spec, folder=tmp_path, reach=reach, pushed=PushedValues(1, 1), environ=environ
            )
            with pytest.raises(SourceError, match="the endpoint answered 503"):
                opened.look_up("user", "ann", soon())
            opened.close()
            assert server.keys == ["Bearer s3cret"]
