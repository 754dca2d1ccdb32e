"""Claims: what callers state who may not is kept, marked, and counted in no figure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.build import Fates, by_model, by_rule, note, record, row, rows, undo_migrations
from thor_policy.cli.main import cli
from thor_policy.cli.page_text import as_text
from thor_policy.cli.review_page import page
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.errors import ConfigError
from thor_policy.core.requests import Caller, Json, Role
from thor_policy.daemon.service import serving
from thor_policy.journal import statistics
from thor_policy.journal.maintenance.archive import archive_before
from thor_policy.journal.maintenance.rebuild import rebuild
from thor_policy.journal.maintenance.tasks import result_of
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.journal.writer import Journal
from thor_policy.learning import patterns
from thor_policy.policy.pack import Pack
from thor_policy.review.ranking import Pick
from thor_policy.review.session import Item
from thor_policy.security.curve_keys import Keys
from thor_policy.testing import load_stub_engine

PATIENCE_MS = 20_000
NOON = 1_778_668_800.0
#: The newest decisions that a comparison of packs looks at.
FEW = 3

#: A question that the rules leave to the model.
DEPLOY: dict[str, Json] = {
    "subject": {
        "type": "user",
        "id": "alice",
        "properties": {
            "role": "engineer",
            "trust": {"competence": 0.9, "reliability": 0.9, "integrity": 0.9},
        },
    },
    "action": {"name": "deploy"},
    "resource": {"type": "env", "id": "staging"},
    "context": {"timestamp": "2026-05-13T10:00:00Z"},
}


@dataclass
class Scene:
    """A daemon with decisions of its operator, and a client for each key."""

    config: Config
    operator: Client
    clients: dict[str, Client]
    #: Ids of the operator's decisions, oldest first.
    ids: tuple[str, ...]

    @property
    def forger(self) -> Client:
        return self.clients["forger"]

    def read(self, figure: Callable[[Reader], Any]) -> Any:
        with Reader(self.config.journal_path) as reader:
            return figure(reader)


@contextmanager
def scene(config: Config, tcp_endpoint: str, **keys: tuple[Role, ...]) -> Iterator[Scene]:
    over_tcp = replace(config, tcp_endpoint=tcp_endpoint)
    store = Keys(over_tcp.keys_dir)
    paths = {name: store.new(name, roles, NOON) for name, roles in keys.items()}
    with (
        serving(over_tcp, load_engine=load_stub_engine),
        Client(config.endpoint, timeout_ms=PATIENCE_MS) as operator,
    ):
        clients = {
            name: Client(tcp_endpoint, key=path, timeout_ms=PATIENCE_MS) for name, path in paths.items()
        }
        try:
            ids = tuple(operator.evaluate(DEPLOY)["context"]["decision_id"] for _ in range(FEW))
            yield Scene(over_tcp, operator, clients, ids)
        finally:
            for client in clients.values():
                client.close()


@pytest.fixture
def forged(config: Config, tcp_endpoint: str) -> Iterator[Scene]:
    """A scene with a caller who may ask and record, no more."""
    with scene(config, tcp_endpoint, forger=("ask", "record")) as made:
        yield made


# ---------------------------------------------------------------- what a forger may try


def forge_expected(scene: Scene) -> None:
    """Questions of no test, with the outcome that is said to be right: first another than the served one."""
    for expected in (["never"], ["allow", "require_mfa", "require_attestation", "deny"], ["deny"]):
        scene.forger.evaluate(DEPLOY, annotations={"scenario_id": "S1", "expected": expected})


def forge_outcomes(scene: Scene) -> None:
    for status in ("FAILURE", "SUCCESS"):
        scene.forger.record(records.Outcome(decision_id=scene.ids[0], status=status, value=-99.0))  # type: ignore[arg-type]


def forge_reports(scene: Scene) -> None:
    for number in range(2 * FEW):
        scene.forger.record(
            records.DecisionReport(
                agent="desk", outcome="granted", type="exception", is_exception=True, risk="critical",
                prompt=f"please grant access to vault {number}", context={"region": "west"}, confidence=0.9,
            )
        )  # fmt: skip


def forge_exceptions(scene: Scene) -> None:
    """Exceptions that say that each decision of the operator should have been another."""
    outcomes = ("allow", "require_mfa", "require_attestation", "deny")
    for decision_id in scene.ids:
        for outcome in outcomes:
            scene.forger.record(
                records.DecisionReport(
                    agent="desk", outcome=outcome, is_exception=True, precedents=(decision_id,)
                )
            )


Forgery = Callable[[Scene], None]
Figure = Callable[[Reader, Pack], Any]


def stats_of(*names: str) -> Figure:
    def figure(reader: Reader, pack: Pack) -> Any:
        figures = statistics.statistics(reader)
        return {name: figures[name] for name in names}

    return figure


def parts_of(by: str, *names: str) -> Figure:
    def figure(reader: Reader, pack: Pack) -> Any:
        return [[row[name] for name in (by, *names)] for row in statistics.breakdown(reader, by)]

    return figure


def judged(reader: Reader, pack: Pack) -> Any:
    row = reader.decisions(limit=1)[0]
    (model,) = {
        event["body"]["model"]["sha256"]
        for event in [reader.trace(row["decision_id"])["event"]]
        if event["kind"] == "decision"
    } or {"0"}
    return list(reader.judged(pack.info.sha256, model, by="suites"))


def pattern_kinds(reader: Reader, pack: Pack) -> Any:
    found_patterns = patterns.find(reader, pack)
    return [(pattern.kind, pattern.change, len(pattern.cases)) for pattern in found_patterns.patterns]


FORGERIES: dict[str, tuple[Forgery, Figure]] = {
    "expected outcomes in stats": (forge_expected, stats_of("expected", "correct")),
    "expected outcomes in the list of wrong decisions": (
        forge_expected,
        lambda reader, _: reader.incorrect(),
    ),
    "expected outcomes in calibration": (forge_expected, judged),
    "expected outcomes in the share of a pack": (forge_expected, parts_of("pack", "expected", "correct")),
    "expected outcomes in the buckets of confidence": (
        forge_expected,
        lambda reader, _: [(row["judged"], row["correct"]) for row in statistics.confidence(reader)
                           if row["judged"]],
    ),
    "outcomes in stats": (forge_outcomes, stats_of("turned_out", "value")),
    "outcomes in the figures of an actor": (
        forge_outcomes,
        parts_of("actor", "successful", "failed", "success_rate", "total_value"),
    ),
    "outcomes in the list by outcome": (
        forge_outcomes,
        lambda reader, _: [reader.decisions(status=status) for status in ("SUCCESS", "FAILURE")],
    ),
    "outcomes in the row of the decision": (
        forge_outcomes,
        lambda reader, _: [row["outcome_status"] for row in reader.decisions()],
    ),
    "reports in stats": (forge_reports, stats_of("decisions", "outcomes", "tiers", "risks")),
    "reports in the figures of a type": (forge_reports, parts_of("type", "total")),
    "reports in the figures of an actor": (forge_reports, parts_of("actor", "total")),
    "reports in the decisions by hour": (
        forge_reports,
        lambda reader, _: sum(count for _, count in statistics.hourly(reader)),
    ),
    "reports in the buckets of confidence": (
        forge_reports,
        lambda reader, _: sum(row["decisions"] for row in statistics.confidence(reader)),
    ),
    "reports in the past that packs are compared on": (
        forge_reports,
        lambda reader, _: reader.past(limit=FEW),
    ),
    "exceptions without a precedent in patterns": (forge_reports, pattern_kinds),
    "exceptions that name decisions in patterns": (forge_exceptions, pattern_kinds),
}  # fmt: skip


class TestForgery:
    @pytest.mark.parametrize("case", FORGERIES)
    def test_changes_no_figure(self, forged: Scene, case: str, shipped_pack: Pack) -> None:
        forge, figure = FORGERIES[case]
        before = forged.read(lambda reader: figure(reader, shipped_pack))
        forge(forged)
        assert forged.read(lambda reader: figure(reader, shipped_pack)) == before

    @pytest.mark.parametrize(
        "annotations", [{"scenario_id": "S1"}, {"tags": ["invariance", "order"]}], ids=["scenario", "tag"]
    )
    def test_hides_no_decision_from_lists_and_figures(
        self, forged: Scene, annotations: dict[str, Json]
    ) -> None:
        decision_id = forged.forger.evaluate(DEPLOY, annotations=annotations)["context"]["decision_id"]
        assert forged.read(lambda reader: reader.decisions(tests=False))[0]["decision_id"] == decision_id
        assert forged.read(lambda reader: statistics.statistics(reader, tests=False))["decisions"] == FEW + 1

    def test_v10_counts_neither_in_stats_nor_in_calibration_nor_in_patterns(
        self, forged: Scene, shipped_pack: Pack
    ) -> None:
        def figures(reader: Reader) -> Any:
            counts = statistics.statistics(reader)
            counted = {name: counts[name] for name in ("expected", "correct", "turned_out")}
            return counted, judged(reader, shipped_pack), pattern_kinds(reader, shipped_pack)

        before = forged.read(figures)
        for forge in (forge_expected, forge_outcomes, forge_exceptions, forge_reports):
            forge(forged)
        forged.forger.evaluate(DEPLOY)  # the newest is a decision again
        assert forged.read(figures) == before


# ---------------------------------------------------------------- who may say what


def outcomes_of(journal: Path) -> list[tuple[str, int | None]]:
    return [(status, claimed) for status, claimed in rows(journal, "SELECT status, claimed FROM outcomes")]


class TestWhoCounts:
    @pytest.mark.parametrize(
        ("roles", "expected", "of_others", "reports"),
        [
            (("ask", "record"), False, False, False),
            (("ask", "record", "test"), True, False, False),
            (("ask", "record", "review"), True, True, True),
            (("ask", "record", "approve", "control"), False, False, False),
        ],
        ids=["ask and record", "test", "review", "approve and control"],
    )
    def test_a_role_lets_count_what_it_stands_for(
        self,
        config: Config,
        tcp_endpoint: str,
        roles: tuple[Role, ...],
        expected: bool,
        of_others: bool,
        reports: bool,
    ) -> None:
        with scene(config, tcp_endpoint, forger=roles) as made:
            made.forger.evaluate(DEPLOY, annotations={"scenario_id": "S1", "expected": ["deny"]})
            made.forger.record(records.Outcome(decision_id=made.ids[0], status="SUCCESS"))
            made.forger.record(records.DecisionReport(agent="desk", outcome="granted", is_exception=True))
            figures = made.read(statistics.statistics)
            claims = made.read(statistics.claims)
        assert (figures["expected"], bool(figures["turned_out"]), figures["tiers"].get("agent", 0)) == (
            int(expected), of_others, int(reports),
        )  # fmt: skip
        assert claims == {
            "annotations": int(not expected),
            "outcomes": int(not of_others),
            "reports": int(not reports),
            "exceptions": int(not reports),
        }
        assert verify(config.journal_path).ok

    def test_the_caller_of_a_decision_may_say_how_it_turned_out(self, forged: Scene) -> None:
        own = forged.forger.evaluate(DEPLOY)["context"]["decision_id"]
        forged.forger.record(records.Outcome(decision_id=own, status="SUCCESS"))
        forged.forger.record(records.Outcome(decision_id=forged.ids[0], status="FAILURE"))
        assert forged.read(statistics.statistics)["turned_out"] == {"SUCCESS": 1, "FAILURE": 0, "PENDING": 0}
        assert outcomes_of(forged.config.journal_path) == [("SUCCESS", None), ("FAILURE", 1)]
        assert verify(forged.config.journal_path).ok

    @pytest.mark.parametrize(
        ("count_from", "own", "reports"),
        [(("review",), 0, 0), (("own",), 1, 0), ((), 0, 0), (("record",), 1, 1)],
    )
    def test_the_setting_says_who_else_counts(
        self, config: Config, tcp_endpoint: str, count_from: tuple[str, ...], own: int, reports: int
    ) -> None:
        with scene(replace(config, count_from=count_from), tcp_endpoint, forger=("ask", "record")) as made:
            decision_id = made.forger.evaluate(DEPLOY)["context"]["decision_id"]
            made.forger.record(records.Outcome(decision_id=decision_id, status="SUCCESS"))
            made.forger.record(records.DecisionReport(agent="desk", outcome="granted"))
            figures = made.read(statistics.statistics)
        assert (figures["turned_out"].get("SUCCESS", 0), figures["tiers"].get("agent", 0)) == (own, reports)

    def test_no_request_says_itself_whether_it_is_a_claim(self, forged: Scene) -> None:
        annotations = {"scenario_id": "S1", "expected": ["deny"], "claimed": False}
        forged.forger.evaluate(DEPLOY, annotations=annotations)
        forged.operator.evaluate(DEPLOY, annotations=annotations | {"claimed": True})
        record = {"agent": "desk", "outcome": "granted", "claimed": False}
        forged.forger.call("decision_report", {"record": record})
        by = forged.read(
            lambda reader: [(row["expected_decision"], row["claimed"]) for row in reader.decisions(limit=3)]
        )
        assert by == [(None, "report"), ("deny", None), (None, "annotations")]

    def test_an_unknown_role_in_the_setting_is_refused(self) -> None:
        with pytest.raises(
            ConfigError, match=r"^count_from holds 'root'; it must hold roles \(ask, record, "
        ):
            Config(count_from=("review", "root"))


class TestOwnDecisions:
    """Who a decision belongs to, decided by the journal when it commits an outcome."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "policy_decisions.db"

    def claims(self, path: Path, made_by: Caller, said_by: Caller, *, archived: bool = False) -> bool:
        decision = by_model(caller=made_by)
        with Journal(path) as journal:
            journal.decided(decision)
            journal.append(note())
            if archived:
                assert result_of(journal.checkpoint()) == 0
                archive_before(journal, "9999-01-01T00:00:00Z")
            outcome = records.Outcome(decision_id=decision.id, status="SUCCESS")
            journal.write(outcome, record_id="o", at=NOON, caller=said_by, claimed="unless_own")
        assert verify(path).ok
        is_claimed = row(path, "outcomes")["claimed"]
        shown = row(path, "decisions")["outcome_status"]
        assert shown == (None if is_claimed else "SUCCESS")
        return bool(is_claimed)

    ALICE = Caller(transport="ipc", uid=1000, gid=1000, pid=1)
    LAPTOP = Caller(transport="tcp", key="laptop")

    @pytest.mark.parametrize(
        ("made_by", "said_by", "is_claimed"),
        [
            (ALICE, Caller(transport="ipc", uid=1000, gid=5, pid=2), False),
            (ALICE, Caller(transport="ipc", uid=1001, gid=1000, pid=1), True),
            (ALICE, LAPTOP, True),
            (LAPTOP, Caller(transport="tcp", key="laptop"), False),
            (LAPTOP, Caller(transport="tcp", key="Laptop"), True),
            (Caller(transport="tcp", key="uid:1000"), ALICE, True),
            (Caller(transport="ipc"), Caller(transport="ipc"), True),
        ],
    )
    def test_belong_to_the_same_user_or_key(
        self, path: Path, made_by: Caller, said_by: Caller, is_claimed: bool
    ) -> None:
        assert self.claims(path, made_by, said_by) is is_claimed

    @pytest.mark.parametrize(
        ("caller", "is_claimed"), [(ALICE, False), (LAPTOP, True)], ids=["user", "key, not known any more"]
    )
    def test_that_are_archived_belong_to_the_same_user(
        self, path: Path, caller: Caller, is_claimed: bool
    ) -> None:
        assert self.claims(path, caller, caller, archived=True) is is_claimed

    def test_that_are_committed_with_their_outcome_count_too(self, path: Path, fates: Fates) -> None:
        decision = by_model(caller=self.ALICE)
        with Journal(path, on_committed=fates) as journal, fates.one_batch(journal):
            journal.decided(decision)
            outcome = records.Outcome(decision_id=decision.id, status="SUCCESS")
            journal.write(outcome, record_id="o", at=NOON, caller=self.ALICE, claimed="unless_own")
        assert row(path, "decisions")["outcome_status"] == "SUCCESS"
        assert verify(path).ok

    @pytest.fixture
    def fates(self) -> Fates:
        return Fates()


# ---------------------------------------------------------------- kept, and shown


def output_of(config: Config, *arguments: str) -> str:
    ran = CliRunner().invoke(cli, [*arguments, "--state-dir", str(config.state_dir)])
    assert ran.exit_code == 0, ran.output
    return " ".join(ran.output.split())


class TestShown:
    @pytest.fixture
    def claimed(self, forged: Scene) -> Scene:
        for forge in (forge_expected, forge_outcomes, forge_reports):
            forge(forged)
        return forged

    def test_claims_are_in_the_events_as_they_were_sent(self, claimed: Scene) -> None:
        (annotations,) = rows(
            claimed.config.journal_path,
            "SELECT json_extract(body, '$.annotations') FROM events "
            "WHERE body LIKE '%annotations%' AND json_extract(body, '$.annotations.expected[0]') = 'never'",
        )[0]
        assert json.loads(annotations) == {"scenario_id": "S1", "expected": ["never"], "claimed": True}
        statuses = [("FAILURE", 1), ("SUCCESS", 1)]
        assert outcomes_of(claimed.config.journal_path) == statuses

    def test_stats_counts_claims_apart(self, claimed: Scene) -> None:
        shown = output_of(claimed.config, "stats")
        assert (
            "claimed 3 annotations, 2 outcomes, 6 reports, 6 exceptions; not counted (setting count_from)"
            in shown
        )
        assert json.loads(output_of(claimed.config, "stats", "--json"))["claimed"]["reports"] == 6

    def test_log_show_names_them(self, claimed: Scene) -> None:
        newest = claimed.read(lambda reader: reader.decisions())
        reported = next(row for row in newest if row["claimed"] == "report")
        annotated = next(row for row in newest if row["claimed"] == "annotations")
        assert "claimed the whole report" in output_of(claimed.config, "log", "show", reported["decision_id"])
        shown = output_of(claimed.config, "log", "show", annotated["decision_id"])
        assert "claimed expected deny, scenario S1" in shown
        assert "outcome seq" in (shown := output_of(claimed.config, "log", "show", claimed.ids[0]))
        assert "claimed 1" in shown

    def test_patterns_says_how_many_exceptions_it_leaves_out(self, claimed: Scene) -> None:
        assert "6 claimed exceptions are left out (setting count_from)" in output_of(
            claimed.config, "patterns"
        )

    def test_a_page_of_review_shows_them(self, claimed: Scene) -> None:
        def pages(reader: Reader) -> str:
            traces = [reader.trace(row["decision_id"]) for row in reader.decisions()]
            items = [
                Item(
                    pick=Pick(decision_id=trace["decision"]["decision_id"], why=""),
                    decision=trace["decision"],
                    event=trace["event"],
                )
                for trace in traces
            ]
            return "\n".join(line for item in items for line in as_text(page(item, clauses={})))

        shown = claimed.read(pages)
        assert shown.count("claimed    the whole report") == 6
        assert "claimed    expected never, scenario S1" in shown
        assert " expected " not in shown.replace("claimed    expected", "")

    def test_rebuilt_and_erased_they_stay_claims(self, claimed: Scene, tmp_path: Path) -> None:
        claimed.operator.maintenance(records.Maintenance(task="erase", actor="agent:desk"))
        copy = tmp_path / "copy" / claimed.config.journal_path.name
        rebuild(claimed.config.journal_path, copy)
        assert verify(copy).ok
        with Reader(copy) as reader:
            assert statistics.claims(reader) == claimed.read(statistics.claims)
            assert statistics.claims(reader)["reports"] == 6


def test_a_journal_of_the_version_before_gets_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "policy_decisions.db"
    record(path, by_rule())
    undo_migrations(path, "0011_claims")
    Journal(path).close()
    assert verify(path).ok
    with Reader(path) as reader:
        assert statistics.statistics(reader)["decisions"] == 1
