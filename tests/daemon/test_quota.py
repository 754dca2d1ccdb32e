"""The journal quota: what each caller may have recorded in a day, and what a caller above it gets."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.build import rows
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.errors import RequestError
from thor_policy.core.requests import Json
from thor_policy.core.results import Committed
from thor_policy.daemon.loading import OpenJournal, open_journal
from thor_policy.daemon.quota import HOUR_NS, MAX_CALLERS, WINDOW_HOURS, JournalQuota
from thor_policy.daemon.service import serving
from thor_policy.journal.writer import Journal, OnCommitted
from thor_policy.security.curve_keys import Keys
from thor_policy.testing import load_stub_engine

PATIENCE_MS = 20_000
NOON = 1_778_668_800.0
MIB = 2**20
DAY_NS = WINDOW_HOURS * HOUR_NS

#: A question that the rules answer, and one that they leave to the model.
READ: dict[str, Json] = {
    "subject": {"type": "user", "id": "alice"},
    "action": {"name": "read"},
    "resource": {"type": "doc", "id": "guide"},
}
TRUST: dict[str, Json] = {"competence": 0.9, "reliability": 0.9, "integrity": 0.9}
DEPLOY: dict[str, Json] = {
    "subject": {"type": "user", "id": "alice", "properties": {"role": "engineer", "trust": TRUST}},
    "action": {"name": "deploy"},
    "resource": {"type": "env", "id": "staging"},
    "context": {"timestamp": "2026-05-13T10:00:00Z"},
}


def refusal_of(quota: JournalQuota, who: str | None, quota_mb: int, now_ns: int) -> RequestError | None:
    try:
        quota.check(who, quota_mb, now_ns)
    except RequestError as error:
        return error
    return None


class TestAccounts:
    def test_a_caller_is_refused_from_its_quota_on_and_no_other_caller_is(self) -> None:
        quota = JournalQuota(Counter())
        quota.charge("uid:1", MIB - 1, 1, 0)
        assert refusal_of(quota, "uid:1", 1, 0) is None
        quota.charge("uid:1", 1, 1, 0)
        error = refusal_of(quota, "uid:1", 1, 0)
        assert error is not None
        assert (error.code, error.message) == (
            "busy",
            "you have had 1.0 MiB recorded in 24 hours; the setting journal_quota_mb allows 1",
        )
        assert refusal_of(quota, "uid:2", 1, 0) is None
        assert refusal_of(quota, "key:1", 1, 0) is None

    def test_a_quota_of_zero_refuses_and_warns_of_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        counters: Counter[str] = Counter()
        quota = JournalQuota(counters)
        quota.charge("uid:1", 2**50, 0, 0)
        assert refusal_of(quota, "uid:1", 0, 0) is None
        assert not counters
        assert not caplog.records

    def test_a_larger_quota_counts_at_once(self) -> None:
        quota = JournalQuota(Counter())
        quota.charge("uid:1", 2 * MIB, 1, 0)
        assert refusal_of(quota, "uid:1", 2, 0) is not None
        assert refusal_of(quota, "uid:1", 3, 0) is None

    def test_a_caller_without_identity_has_no_account(self) -> None:
        quota = JournalQuota(Counter())
        quota.charge(None, 2**50, 1, 0)
        assert refusal_of(quota, None, 1, 0) is None
        assert len(quota) == 0

    def test_a_caller_is_warned_of_at_eighty_percent_once_until_it_was_below_again(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        counters: Counter[str] = Counter()
        quota = JournalQuota(counters)
        with caplog.at_level(logging.WARNING):
            quota.charge("key:till", 8 * MIB - 1, 10, 0)
            assert not counters
            for _ in range(3):
                quota.charge("key:till", 1, 10, 0)
            assert counters == {"journal_quota_warned": 1}
            quota.charge("key:till", 1, 10, 3 * DAY_NS)
            quota.charge("key:till", 9 * MIB, 10, 3 * DAY_NS)
        assert counters == {"journal_quota_warned": 2}
        assert [record.getMessage() for record in caplog.records] == [
            "a caller has used 80 % of its journal quota"
        ] * 2

    def test_refusals_are_counted(self) -> None:
        counters: Counter[str] = Counter()
        quota = JournalQuota(counters)
        quota.charge("uid:1", MIB, 1, 0)
        for _ in range(3):
            refusal_of(quota, "uid:1", 1, 0)
        assert counters["journal_quota_refused"] == 3

    def test_bytes_count_for_a_day_and_at_most_one_hour_longer(self) -> None:
        for started_ns in (0, HOUR_NS - 1, 7 * HOUR_NS + 5):
            quota = JournalQuota(Counter())
            quota.charge("uid:1", MIB, 1, started_ns)
            assert refusal_of(quota, "uid:1", 1, started_ns + DAY_NS) is not None
            assert refusal_of(quota, "uid:1", 1, started_ns + DAY_NS + HOUR_NS) is None

    @given(
        st.lists(st.tuples(st.integers(0, 3 * HOUR_NS), st.integers(0, MIB)), max_size=40), st.integers(1, 3)
    )
    def test_a_refused_caller_has_room_exactly_when_the_refusal_says(
        self, charges: list[tuple[int, int]], quota_mb: int
    ) -> None:
        quota, now_ns = JournalQuota(Counter()), 0
        for later_ns, size in charges:
            now_ns += later_ns
            quota.charge("uid:1", size, quota_mb, now_ns)
        error = refusal_of(quota, "uid:1", quota_mb, now_ns)
        if error is None:
            return
        assert error.retry_after_ms is not None
        room_ns = now_ns + error.retry_after_ms * 1_000_000
        assert refusal_of(quota, "uid:1", quota_mb, room_ns - 2_000_000) is not None
        assert refusal_of(quota, "uid:1", quota_mb, room_ns) is None

    @given(
        st.lists(
            st.tuples(st.sampled_from("abc"), st.integers(0, 9 * HOUR_NS), st.integers(0, MIB)), max_size=60
        )
    )
    def test_an_account_holds_what_was_recorded_in_the_last_hours(
        self, charges: list[tuple[str, int, int]]
    ) -> None:
        quota, now_ns, recorded = JournalQuota(Counter()), 0, defaultdict[str, list[tuple[int, int]]](list)
        for who, later_ns, size in charges:
            now_ns += later_ns
            quota.charge(who, size, 1, now_ns)
            recorded[who].append((now_ns // HOUR_NS, size))
            for other, sizes in recorded.items():
                total = sum(size for hour, size in sizes if hour >= now_ns // HOUR_NS - WINDOW_HOURS)
                assert (refusal_of(quota, other, 1, now_ns) is not None) == (total >= MIB)
                assert len(quota._accounts[other].hours) <= WINDOW_HOURS + 1

    def test_there_are_only_so_many_accounts_and_the_largest_are_kept(self) -> None:
        quota = JournalQuota(Counter())
        quota.charge("uid:0", MIB, 1, 0)
        for number in range(1, 3 * MAX_CALLERS):
            quota.charge(f"uid:{number}", 1, 1, 0)
        assert len(quota) == MAX_CALLERS
        assert refusal_of(quota, "uid:0", 1, 0) is not None


@contextmanager
def served(
    config: Config, tcp_endpoint: str, quota_mb: int, *, open_journal: OpenJournal = open_journal
) -> Iterator[tuple[Client, Client, Client]]:
    """A daemon with a quota, its operator, and two clients with keys of their own."""
    keyed = replace(config, tcp_endpoint=tcp_endpoint, journal_quota_mb=quota_mb)
    keys = Keys(keyed.keys_dir)
    paths = [keys.new(name, ("ask", "record"), NOON) for name in ("flood", "honest")]
    with (
        serving(keyed, load_engine=load_stub_engine, open_journal=open_journal),
        Client(keyed.endpoint, timeout_ms=PATIENCE_MS) as operator,
        Client(tcp_endpoint, key=paths[0], timeout_ms=PATIENCE_MS) as flood,
        Client(tcp_endpoint, key=paths[1], timeout_ms=PATIENCE_MS) as honest,
    ):
        yield operator, flood, honest


def fill(client: Client, most: int) -> RequestError | None:
    """Send large records until one is refused, at most this many."""
    for _ in range(most):
        try:
            client.record(records.Node(type="goal", title="t", description="x" * 30_000))
        except RequestError as error:
            return error
    return None


def stored_bytes(config: Config, key: str) -> int:
    return int(
        rows(
            config.journal_path,
            "SELECT sum(length(CAST(body AS BLOB)) + coalesce(length(CAST(value AS BLOB)), 0)) FROM events "
            "LEFT JOIN private USING (seq) WHERE json_extract(body, '$.caller.key') = ?",
            key,
        )[0][0]
    )


class TestDaemon:
    def test_v11_one_caller_cannot_fill_the_journal(self, config: Config, tcp_endpoint: str) -> None:
        with served(config, tcp_endpoint, 1) as (operator, flood, honest):
            error = fill(flood, 100)
            assert error is not None
            assert error.code == "busy"
            assert "the setting journal_quota_mb allows 1" in error.message
            assert error.retry_after_ms is not None
            assert DAY_NS / 1e6 - 3.6e6 < error.retry_after_ms <= DAY_NS / 1e6 + 3.6e6
            assert MIB <= stored_bytes(config, "flood") < MIB + 40_000
            with pytest.raises(RequestError, match="journal_quota_mb"):
                flood.evaluate(READ)
            assert honest.evaluate(READ)["context"]["decision_id"]
            assert operator.evaluate(READ)["context"]["decision_id"]
            counters = operator.status().counters
        assert counters["journal_quota_warned"] == 1
        assert counters["journal_quota_refused"] == 2
        assert counters["refused_busy"] == 2

    def test_what_is_counted_is_what_is_stored_explanations_included(
        self, config: Config, tcp_endpoint: str
    ) -> None:
        commits: list[Committed] = []

        def open_collecting(config: Config, on_committed: OnCommitted) -> Journal:
            def collect(batch: list[Committed]) -> None:
                commits.extend(batch)
                on_committed(batch)

            return open_journal(config, collect)

        with served(config, tcp_endpoint, 1, open_journal=open_collecting) as (operator, flood, honest):
            assert flood.evaluate(DEPLOY, explain="inline")["context"]["tier"] == "model"
            fill(flood, 2)
            honest.evaluate(READ, explain="inline")
            assert operator.maintenance(records.Maintenance(task="checkpoint"))
        sizes = dict(
            rows(
                config.journal_path,
                "SELECT seq, length(CAST(body AS BLOB)) + coalesce(length(CAST(value AS BLOB)), 0) "
                "FROM events LEFT JOIN private USING (seq)",
            )
        )
        assert {commit.seq: commit.size for commit in commits} == {
            commit.seq: sizes[commit.seq] for commit in commits
        }
        senders = [(commit.kind, commit.sender) for commit in commits if commit.sender is not None]
        assert sorted(senders) == [
            ("decision", "key:flood"),
            ("decision", "key:honest"),
            ("explanation", "key:flood"),
            ("node", "key:flood"),
            ("node", "key:flood"),
        ]

    def test_a_repeated_request_is_answered_above_the_quota(self, config: Config, tcp_endpoint: str) -> None:
        with served(config, tcp_endpoint, 1) as (_, flood, _):
            first = flood.evaluate(READ, idempotency_key="k")
            assert fill(flood, 100) is not None
            again = flood.evaluate(READ, idempotency_key="k")
            assert again["context"]["decision_id"] == first["context"]["decision_id"]
            with pytest.raises(RequestError, match="journal_quota_mb"):
                flood.evaluate(READ, idempotency_key="another")
