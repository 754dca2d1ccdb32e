"""Promotion: what the gate refuses and why, and how a pack that passed is activated."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Semaphore
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import structs

from tests.build import NOON, PACK_EXAMPLES, PACK_RULES, by_model, record, sent, write_pack
from tests.tasks import lift
from thor_policy import config as config_module
from thor_policy.catalog.files import ModelFile
from thor_policy.cli.main import cli
from thor_policy.cli.promotion import plain, show
from thor_policy.client.blocking import Client
from thor_policy.config import Config, data_path
from thor_policy.core import records
from thor_policy.core.decisions import Explanation, Floor, PackInfo, Scored
from thor_policy.core.errors import ConfigError, EngineError, ExportError, PackError
from thor_policy.core.requests import Evaluation, Json
from thor_policy.daemon import doctor
from thor_policy.daemon.journal_access import maintain, submit_record
from thor_policy.daemon.service import serving
from thor_policy.journal import events
from thor_policy.journal.reader import Reader
from thor_policy.journal.verification.verify import verify
from thor_policy.learning.display import Silent
from thor_policy.learning.promotion.gate import Gate
from thor_policy.learning.promotion.improve import Improvement, improve, next_version
from thor_policy.learning.promotion.promote import choose, promote
from thor_policy.learning.promotion.report import MAX_BYTES, Check, Merit, Report, Terms
from thor_policy.policy import pack_files
from thor_policy.policy.lint import lint_pack
from thor_policy.policy.pack import Pack
from thor_policy.security import signatures
from thor_policy.security.signatures import Key
from thor_policy.suites import invariance
from thor_policy.suites.intervals import rate
from thor_policy.suites.scenarios import Scenario, Suite
from thor_policy.testing import StubEngine

NOW = 1_767_279_600.0
#: Everything that the journal holds is looked at.
TERMS = Terms(since="2000-01-01T00:00:00Z", variants=12)
RISKY = """
- {id: risky, when: 'action.name == "risky"', outcome: require_mfa, clause: R2, because: It is risky.}
"""
STRICT = PACK_RULES + RISKY
#: A gate's patience with a daemon of a test, in seconds.
PATIENCE_S = 60
KEY = Key(ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32))))


def question(action: str, who: str = "kim") -> dict[str, Json]:
    return {
        "subject": {"type": "user", "id": who},
        "action": {"name": action},
        "resource": {"type": "doc", "id": "d"},
    }


def lenient(_config: Config | None = None) -> StubEngine:
    """A model that answers allow where the rules permit it."""
    return StubEngine(bias="allow")


@pytest.fixture
def active(tmp_path: Path) -> Path:
    """The active pack: its rules demand a second factor for risky actions."""
    return write_pack(tmp_path / "active", version="1", rules=STRICT)


@pytest.fixture
def loose(tmp_path: Path) -> Path:
    """A pack without that rule."""
    return write_pack(tmp_path / "loose", version="2", system="Judge.")


@pytest.fixture
def fixed(tmp_path: Path) -> Path:
    """The next version of that pack, with the rule."""
    return write_pack(tmp_path / "fixed", version="2.1", system="Judge.", rules=STRICT)


@pytest.fixture
def settings(config: Config, active: Path, tmp_path: Path) -> Config:
    return replace(config, pack=str(active), models_dir=tmp_path / "models")


@contextmanager
def daemon(settings: Config) -> Iterator[Client]:
    with (
        serving(settings, load_engine=lenient) as served,
        Client(served.endpoint, timeout_ms=PATIENCE_S * 1000) as client,
    ):
        yield client


@pytest.fixture
def past(settings: Config) -> dict[str, str]:
    """Ids of six decisions by the active pack, by action and user; two are risky."""
    questions = [
        ("look", "kim"),
        ("look", "bo"),
        ("banned", "kim"),
        ("move", "kim"),
        ("risky", "kim"),
        ("risky", "bo"),
    ]
    with daemon(settings) as client:
        replies = {f"{what} {who}": client.evaluate(question(what, who)) for what, who in questions}
    assert replies["risky kim"]["context"]["outcome"] == "require_mfa"
    return {name: reply["context"]["decision_id"] for name, reply in replies.items()}


def review(settings: Config, decision_id: str, outcome: str | None) -> None:
    """Record a review: the right outcome, or None to accept the decision."""
    submit_record(
        settings,
        records.Review(
            decision_id=decision_id,
            reviewer="robin",
            verdict="accept" if outcome is None else "correct_decision",
            decision=outcome,
        ),
    )


def judged(
    settings: Config,
    candidate: Path,
    *,
    terms: Terms = TERMS,
    engine: StubEngine | None = None,
    suites: tuple[Suite, ...] = (),
    **changes: Any,
) -> Report:
    """The gate's report on a candidate, compared with the pack of the settings."""
    with Reader(settings.journal_path) as reader:
        gate = Gate(
            reader,
            engine or lenient(),
            pack_files.load(Path(settings.pack)),
            suites=suites,
            material=invariance.material(data_path("scenarios") / invariance.MATERIAL_DIR),
            now=NOW,
            **changes,
        )
        return gate.judge(pack_files.load(candidate), terms)


def check(report: Report, name: str) -> Check:
    return next(check for check in report.checks if check.name == name)


def failed(report: Report) -> list[str]:
    return [check.name for check in report.checks if not check.passed]


def scenario(id: str, action: str, outcome: str) -> Scenario:
    return msgspec.convert(
        {
            "id": id,
            "title": id,
            "difficulty": "easy",
            "request": question(action, "ada"),
            "expect": {"outcome": outcome},
        },
        Scenario,
    )


SUITE = Suite(
    name="small",
    pack="small",
    description="What the small pack is to do.",
    scenarios=(scenario("S1", "risky", "require_mfa"), scenario("S2", "wave", "allow")),
)


class Counted(Silent):
    """A display that counts the steps of each part."""

    def __init__(self) -> None:
        self.parts: list[list[int]] = []

    @contextmanager
    def progress(self, total: int | None, label: str, /) -> Iterator[Callable[[], None]]:
        self.parts.append(part := [total or 0, 0])

        def advance() -> None:
            part[1] += 1

        yield advance


def test_the_gate_shows_each_step_of_its_long_parts(
    settings: Config, fixed: Path, past: dict[str, str]
) -> None:
    display = Counted()
    announced: list[str] = []
    judged(settings, fixed, suites=(SUITE,), display=display, announce=announced.append)
    assert len(display.parts) == len(announced) == 5
    assert announced[0].startswith("running 2 scenarios by 1")
    for total, steps in display.parts:
        assert total == steps


# ---------------------------------------------------------------- the counterfactual


def test_a_pack_that_loosens_two_past_decisions_is_refused_with_both_named(
    settings: Config, loose: Path, past: dict[str, str]
) -> None:
    report = judged(settings, loose)
    assert not report.passed
    assert failed(report) == ["counterfactual"]
    assert check(report, "counterfactual").reasons == (
        f"{past['risky kim']} is loosened: require_mfa was served, allow would be",
        f"{past['risky bo']} is loosened: require_mfa was served, allow would be",
    )
    assert check(report, "counterfactual").figure == "2 of 6 loosened, 0 tightened"


def test_the_pack_with_the_rule_put_back_passes_every_check(
    settings: Config, fixed: Path, past: dict[str, str]
) -> None:
    report = judged(settings, fixed, suites=(SUITE,))
    assert report.passed, report
    assert [check.name for check in report.checks] == [
        *("outcomes", "lint", "leaks", "suites", "held out", "counterfactual", "invariance")
    ]
    assert check(report, "counterfactual").figure == f"0 of {len(past)} loosened, 0 tightened"
    assert check(report, "suites").figure == "2 of 2 pass, 2 now"


def test_a_decision_may_be_loosened_as_far_as_its_correction_asks(
    settings: Config, loose: Path, past: dict[str, str]
) -> None:
    review(settings, past["risky kim"], "allow")
    report = judged(settings, loose)
    result = check(report, "counterfactual")
    assert [reason.split()[0] for reason in result.reasons] == [past["risky bo"]]
    assert result.figure == "1 of 6 loosened, 0 tightened, 1 as reviewed"
    review(settings, past["risky bo"], None)
    assert check(judged(settings, loose), "counterfactual").reasons == result.reasons


def test_a_decision_may_not_be_loosened_further_than_its_correction(
    settings: Config, tmp_path: Path, past: dict[str, str]
) -> None:
    """The decision was deny, and its correction asks for a second factor, not for allow."""
    review(settings, past["banned kim"], "require_mfa")
    unbound = write_pack(tmp_path / "unbound", version="2", rules=RISKY)
    result = check(judged(settings, unbound), "counterfactual")
    assert result.reasons == (f"{past['banned kim']} is loosened: deny was served, allow would be",)
    risky = RISKY + PACK_RULES.replace("outcome: deny", "outcome: require_mfa")
    write_pack(unbound, version="2", rules=risky)
    result = check(judged(settings, unbound), "counterfactual")
    assert (result.reasons, result.figure) == ((), "0 of 6 loosened, 0 tightened, 1 as reviewed")


def test_an_accepted_decision_may_be_loosened(settings: Config, loose: Path, past: dict[str, str]) -> None:
    terms = structs.replace(TERMS, accepted=(past["risky kim"], past["risky bo"]))
    report = judged(settings, loose, terms=terms)
    assert report.passed
    assert check(report, "counterfactual").figure == "0 of 6 loosened, 0 tightened, 2 accepted"


def test_a_decision_that_the_active_pack_answers_as_loosely_is_no_reason_against_a_pack(
    settings: Config, loose: Path, tmp_path: Path, past: dict[str, str]
) -> None:
    """The active pack was accepted with a looser answer; older decisions stay in the journal for days."""
    also = write_pack(tmp_path / "also", version="3", system="Weigh.")
    report = judged(replace(settings, pack=str(loose)), also)
    assert report.passed
    assert check(report, "counterfactual").figure == "0 of 6 loosened, 0 tightened, 2 loose already"


def test_a_past_request_that_the_pack_cannot_answer_is_a_reason_against_it(
    settings: Config, fixed: Path, past: dict[str, str]
) -> None:
    digest = pack_files.load(fixed).info.sha256

    class Stumbling(StubEngine):
        """Fails under the candidate for the action `move`."""

        def score(self, key: str, question: str, deadline_ns: int) -> Scored:
            if key == digest and "move" in question:
                raise EngineError("a decode failed")
            return super().score(key, question, deadline_ns)

    report = judged(settings, fixed, engine=Stumbling(bias="allow"))
    assert failed(report) == ["counterfactual"]
    (reason,) = check(report, "counterfactual").reasons
    assert reason.startswith(f"{past['move kim']} would get no answer: ")


def test_erased_decisions_are_counted_as_skipped(settings: Config, fixed: Path, past: dict[str, str]) -> None:
    maintain(settings, records.Maintenance(task="erase", actor="user:bo"))
    report = judged(settings, fixed)
    assert check(report, "counterfactual").figure == "0 of 4 loosened, 0 tightened, 2 skipped"


def test_past_limits_the_decisions_to_the_newest_and_the_report_says_so(
    settings: Config, loose: Path, past: dict[str, str]
) -> None:
    report = judged(settings, loose, terms=structs.replace(TERMS, past=1))
    assert check(report, "counterfactual").figure == "1 of 1 loosened, 0 tightened; the newest 1 of 6"
    assert [reason.split()[0] for reason in check(report, "counterfactual").reasons] == [past["risky bo"]]


# ---------------------------------------------------------------- what was reviewed


def test_a_pack_that_agrees_less_with_reviewers_and_is_looser_is_refused_by_name(
    settings: Config, loose: Path, past: dict[str, str]
) -> None:
    review(settings, past["risky kim"], None)
    review(settings, past["look bo"], None)
    report = judged(settings, loose)
    result = check(report, "held out")
    assert result.figure == "1 of 2 agree, 2 now"
    assert result.reasons == (
        f"{past['risky kim']} is looser than its review: require_mfa is right, not allow",
        "it agrees with reviewers on 1 of 2 decisions, the active pack on 2",
    )
    assert report.merit is not None
    assert (report.merit.held_out, report.merit_of_active and report.merit_of_active.held_out) == (
        rate(1, 2),
        rate(2, 2),
    )


def test_a_pack_that_decides_as_corrected_agrees_more(
    settings: Config, loose: Path, past: dict[str, str]
) -> None:
    for name in ("risky kim", "risky bo"):
        review(settings, past[name], "allow")
    report = judged(settings, loose)
    assert report.passed
    assert check(report, "held out").figure == "2 of 2 agree, 0 now"


def test_a_reviewed_decision_that_an_approval_lifted_is_not_held_out(
    settings: Config, loose: Path, past: dict[str, str]
) -> None:
    _, allowed = lift(settings.journal_path, pack=pack_files.load(Path(settings.pack)).info)
    review(settings, allowed.id, None)
    assert check(judged(settings, loose), "held out").figure == "none was reviewed"


@pytest.mark.parametrize("side", ["the candidate's", "the active pack's", "another candidate's"])
def test_a_decision_that_is_an_example_of_a_pack_is_not_held_out(
    settings: Config, active: Path, loose: Path, past: dict[str, str], side: str
) -> None:
    shown = f"""{PACK_EXAMPLES}
- {{id: X3, evaluation: {{subject: {{type: user, id: kim}}, action: {{name: risky}}, resource: {{type: doc,
   id: d}}}}, outcome: require_mfa, classification: odd, risk: low, clauses: [R2], reasoning: Odd.}}
"""
    review(settings, past["risky kim"], None)
    assert check(judged(settings, loose), "held out").figure == "0 of 1 agree, 1 now"
    examples: dict[str, Any] = {}
    if side == "another candidate's":
        with Reader(settings.journal_path) as reader:
            private = reader.trace(past["risky kim"])["event"]["private"]
        examples["shown"] = [msgspec.convert(private["evaluation"], Evaluation)]
    else:
        (loose if side == "the candidate's" else active).joinpath("examples.yaml").write_text(shown)
    assert check(judged(settings, loose, **examples), "held out").figure == "none was reviewed"


# ---------------------------------------------------------------- suites, and the files alone


def test_a_pack_is_refused_if_a_scenario_that_passes_now_fails(
    settings: Config, loose: Path, past: dict[str, str]
) -> None:
    result = check(judged(settings, loose, suites=(SUITE,)), "suites")
    assert result.figure == "1 of 2 pass, 2 now"
    assert result.reasons == ("S1 passes under 1 and fails under 2: require_mfa before, allow now",)


def test_variants_of_the_scenarios_are_run(settings: Config, fixed: Path, past: dict[str, str]) -> None:
    assert check(judged(settings, fixed, suites=(SUITE,)), "invariance").figure == "0 of 12 below, seed 0"
    assert check(judged(settings, fixed), "invariance").figure == "there is no scenario to vary"


def test_a_pack_with_a_scenario_as_an_example_is_refused(
    settings: Config, fixed: Path, past: dict[str, str]
) -> None:
    leaking = Suite(
        name="small", pack="small", description="One.", scenarios=(
            msgspec.convert(
                {
                    "id": "S9",
                    "title": "Shown",
                    "difficulty": "easy",
                    "request": {
                        "subject": {"type": "user", "id": "b"},
                        "action": {"name": "burn"},
                        "resource": {"type": "doc", "id": "d"},
                    },
                    "expect": {"never": "require_mfa"},
                },
                Scenario,
            ),
        ),
    )  # fmt: skip
    report = judged(settings, fixed, suites=(leaking,))
    assert check(report, "leaks").reasons == ("S9 is shown as the example X2 (exact 1.00)",)


def test_a_pack_with_lint_errors_is_refused_without_a_model_call(
    settings: Config, loose: Path, past: dict[str, str]
) -> None:
    bad = "- {id: odd, when: 'true', outcome: deny, clause: R9, because: No such clause.}\n"
    write_pack(loose, version="2", rules=bad)
    report = judged(settings, loose)
    assert not report.passed
    assert [check.name for check in report.checks] == ["outcomes", "lint", "leaks"]
    assert "rules.yaml rule odd: clause 'R9' does not exist" in check(report, "lint").reasons


@pytest.mark.parametrize(
    ("outcomes", "reason"),
    [
        ("[{label: allow}, {label: deny}]", "allow < require_mfa < deny became allow < deny"),
        (
            "[{label: deny}, {label: require_mfa}, {label: allow}]",
            "allow < require_mfa < deny became deny < require_mfa < allow",
        ),
        (
            "[{label: wave}, {label: allow}, {label: require_mfa}, {label: deny}]",
            "wave is looser than allow, which was the loosest",
        ),
    ],
)
def test_outcomes_may_be_added_but_not_removed_or_reordered(
    settings: Config, fixed: Path, past: dict[str, str], outcomes: str, reason: str
) -> None:
    path = fixed / "pack.yaml"
    (fixed / "rules.yaml").write_text(PACK_RULES)
    text = path.read_text().replace("[{label: allow}, {label: require_mfa}, {label: deny}]", outcomes)
    path.write_text(text)
    assert check(judged(settings, fixed), "outcomes").reasons == (reason,)
    more = "[{label: allow}, {label: require_mfa}, {label: wait}, {label: deny}]"
    path.write_text(text.replace(outcomes, more))
    assert check(judged(settings, fixed), "outcomes").passed


def test_an_unsigned_pack_is_refused_if_pack_keys_is_set(
    settings: Config, fixed: Path, past: dict[str, str], tmp_path: Path
) -> None:
    KEY.put_public(tmp_path / "key.pub")
    changes = {"pack_keys": (str(tmp_path / "key.pub"),)}
    assert failed(judged(settings, fixed, **changes)) == ["signature"]
    signatures.sign_pack(pack_files.load(fixed).info, fixed / pack_files.SIGNATURE, KEY)
    report = judged(settings, fixed, **changes)
    assert report.passed
    assert check(report, "signature").figure == f"by {KEY.key}"


def test_a_pack_of_another_name_and_the_active_pack_cannot_be_promoted(
    settings: Config, active: Path, past: dict[str, str], shipped_pack: Pack
) -> None:
    with pytest.raises(PackError, match="is the pack team-governance, and small is active"):
        judged(settings, shipped_pack.path)
    with pytest.raises(PackError, match="is already the active pack"):
        judged(settings, active)


# ---------------------------------------------------------------- the report


reasons = st.lists(st.text(max_size=2_000), max_size=60).map(tuple)


@given(
    st.tuples(*[reasons] * 8), st.lists(st.text("0123456789abcdef-", min_size=36, max_size=36), max_size=100)
)
@example(tuple(("\x01" * 400,) * 60 for _ in range(8)), ["a" * 36] * 100)
def test_a_recorded_report_has_a_limited_size_and_keeps_its_verdicts(
    reasons: tuple[tuple[str, ...], ...], accepted: list[str]
) -> None:
    info = PackInfo(name="small", version="2", sha256="a" * 64)
    report = Report(
        at="2026-01-01T00:00:00Z",
        version="1",
        pack=info,
        against=info,
        model="m",
        model_sha256="b" * 64,
        terms=structs.replace(TERMS, accepted=tuple(accepted)),
        checks=tuple(Check(name="lint", figure="1", limit="2", reasons=texts) for texts in reasons),
    )
    text = report.recorded()
    assert len(text) <= len(msgspec.json.encode(text)) <= MAX_BYTES <= records.MAX_TEXT_CHARS
    recorded = msgspec.json.decode(text)
    assert recorded["passed"] is report.passed is not any(reasons)
    assert [texts["passed"] for texts in recorded["checks"]] == [not texts for texts in reasons]


# ---------------------------------------------------------------- coming to decide


class Load:
    """Clients that send requests without a pause, each the next one as soon as it has a reply."""

    ASKERS = 3

    def __init__(self, endpoint: str) -> None:
        self._endpoint, self._done, self._answered = endpoint, Event(), Semaphore(0)
        self._pool = ThreadPoolExecutor(self.ASKERS)
        self._running = [self._pool.submit(self._ask, number) for number in range(self.ASKERS)]

    def _ask(self, number: int) -> list[dict[str, Json]]:
        replies = []
        with Client(self._endpoint, timeout_ms=PATIENCE_S * 1000) as client:
            while not self._done.is_set():
                evaluation = question(("look", "move", "banned")[number % 3], f"u{number % 7}")
                replies.append(client.evaluate(evaluation)["context"])
                self._answered.release()
                number += self.ASKERS
        return replies

    def wait_for(self, replies: int) -> None:
        """Wait for `replies` more replies."""
        for _ in range(replies):
            assert self._answered.acquire(timeout=PATIENCE_S)

    def stop(self) -> list[dict[str, Json]]:
        """Stop, and return all replies. Raises the error of a refused request."""
        self._done.set()
        replies = [reply for future in self._running for reply in future.result(timeout=PATIENCE_S)]
        self._pool.shutdown()
        return replies


def send(settings: Config, *candidates: Path, **options: Any) -> Any:
    options = {"terms": TERMS, "now": NOW, "load_engine": lenient} | options
    return promote(settings, [str(path) for path in candidates], options.pop("terms"), **options)


def promotions(settings: Config) -> list[Any]:
    with Reader(settings.journal_path) as reader, reader.snapshot() as connection:
        return connection.execute(
            "SELECT version, passed, key, signature, report, against FROM promotions ORDER BY seq"
        ).fetchall()


def test_a_refused_pack_changes_nothing_and_the_fixed_one_takes_over_without_a_failed_request(
    settings: Config, loose: Path, fixed: Path, past: dict[str, str], tmp_path: Path
) -> None:
    Key.make(tmp_path / "desk.key")
    with daemon(settings) as client:
        load = Load(settings.endpoint)
        load.wait_for(10)
        refused = send(settings, loose, key=tmp_path / "desk.key")
        assert (refused.chosen, refused.recorded, refused.activated) == (None, True, False)
        assert refused.why == "2 is refused by: counterfactual"
        reasons = check(refused.reports[0], "counterfactual").reasons
        assert [reason.split()[0] for reason in reasons] == [past["risky kim"], past["risky bo"]]
        assert client.status().pack.version == "1"
        load.wait_for(10)
        done = send(settings, fixed, key=tmp_path / "desk.key")
        assert done.activated
        assert done.chosen is not None
        assert done.chosen.version == "2.1"
        load.wait_for(10)
        answers = load.stop()
        status = client.status()
    assert status.pack.sha256 == done.chosen.sha256
    assert {pack.version: pack.role for pack in status.packs} == {"2.1": "active", "1": "candidate"}
    assert not any(name.startswith("refused_") for name in status.counters)
    assert {answer["pack"]["version"] for answer in answers} == {"1", "2.1"}
    assert {answer["tier"] for answer in answers} == {"model", "rule"}
    first, second = promotions(settings)
    assert (first[:3], second[:2]) == (("2", 0, None), ("2.1", 1))
    public = signatures.public_keys([tmp_path / "desk.key.pub"])
    _, _, key, signature, report, _ = second
    assert signatures.promotion_problem(report, done.chosen.sha256, key, signature, public) is None
    assert signatures.promotion_problem(report + " ", done.chosen.sha256, key, signature, public) is not None
    assert signatures.promotion_problem(report, "0" * 64, key, signature, public) is not None
    with Reader(settings.journal_path) as reader, reader.snapshot() as connection:
        kinds = [
            kind
            for (kind,) in connection.execute(
                "SELECT kind FROM events WHERE kind LIKE 'pack%' OR kind = 'promotion' ORDER BY seq"
            )
        ]
    assert kinds[-3:] == ["pack_loaded", "promotion", "pack_activated"]
    assert verify(settings.journal_path).ok


def test_without_a_daemon_a_promotion_is_recorded_and_the_setting_is_named(
    settings: Config, fixed: Path, past: dict[str, str]
) -> None:
    done = send(settings, fixed)
    assert (done.recorded, done.activated) == (True, False)
    assert done.advice == (
        f'after a restart the daemon decides by {settings.pack}: set pack = "{fixed}" in its settings'
    )
    ((version, passed, key, signature, report, against),) = promotions(settings)
    assert (version, passed, key, signature) == ("2.1", 1, None, None)
    assert against == pack_files.load(Path(settings.pack)).info.sha256
    assert msgspec.json.decode(report) == msgspec.json.decode(msgspec.json.encode(done.reports[0].plain()))


def test_a_start_with_a_pack_that_was_replaced_warns(
    settings: Config, fixed: Path, past: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    def warnings() -> list[str]:
        caplog.clear()
        with daemon(settings):
            return [record.message for record in caplog.records if "took its place" in record.message]

    assert warnings() == []
    assert doctor._pack(settings).state == "ok"
    with daemon(settings):
        assert send(settings, fixed).activated
    (warned,) = warnings()
    assert re.match(r"the settings name small 1, but 2\.1 took its place by a promotion at 20", warned)
    problems = doctor._pack(settings)
    assert (problems.state, "2.1 took its place" in problems.detail) == ("warning", True)

    settings = replace(settings, pack=str(fixed))
    assert warnings() == []
    assert doctor._pack(settings).state == "ok"


def test_a_dry_run_writes_and_activates_nothing(
    settings: Config, fixed: Path, loose: Path, tmp_path: Path, past: dict[str, str]
) -> None:
    with daemon(settings) as client:
        dry = send(settings, fixed, dry_run=True, key=tmp_path / "desk.key")
        assert dry.chosen == pack_files.load(fixed).info
        assert not (tmp_path / "desk.key").exists()
        assert send(settings, loose, dry_run=True).chosen is None
        assert [pack.version for pack in client.status().packs] == ["1"]
    assert promotions(settings) == []


def test_a_pack_that_changed_after_its_check_is_not_activated(
    settings: Config, fixed: Path, past: dict[str, str]
) -> None:
    """Someone who can write the directory must not get an unchecked pack activated."""

    def slip_in(message: str) -> None:
        if "past decisions" in message:
            (fixed / "rules.yaml").write_text(PACK_RULES)

    with daemon(settings) as client:
        with pytest.raises(PackError, match="has changed since it was checked; promote it again"):
            send(settings, fixed, announce=slip_in)
        assert [pack.version for pack in client.status().packs] == ["1"]
    assert promotions(settings) == []


def test_a_pack_is_not_activated_if_another_pack_is_active_than_it_was_compared_with(
    settings: Config, fixed: Path, tmp_path: Path, past: dict[str, str]
) -> None:
    other = write_pack(tmp_path / "other", version="9", system="Weigh.", rules=STRICT)
    with daemon(settings) as client:

        def another(message: str) -> None:
            if "past decisions" in message:
                client.control(records.Control(task="activate", pack=str(other)))

        with pytest.raises(
            PackError, match=r"small 9 on stub is active now, and 2\.1 was not compared with it"
        ):
            send(settings, fixed, announce=another)
        assert client.status().pack.version == "9"
    assert promotions(settings) == []


def test_if_no_more_packs_can_be_resident_the_longest_inactive_candidate_is_unloaded(
    settings: Config, tmp_path: Path, past: dict[str, str]
) -> None:
    folders = [
        write_pack(tmp_path / f"next{n}", version=f"{n}", system=f"Judge {n}.", rules=STRICT)
        for n in (2, 3, 4)
    ]
    with daemon(replace(settings, resident_packs=2)) as client:
        for folder in folders:
            assert send(settings, folder).activated
        assert {pack.version: pack.role for pack in client.status().packs} == {
            "4": "active",
            "3": "candidate",
        }


def test_an_active_pack_whose_files_changed_is_an_error(
    settings: Config, active: Path, fixed: Path, past: dict[str, str]
) -> None:
    with daemon(settings):
        write_pack(active, version="1.1", rules=STRICT)
        with pytest.raises(PackError, match=r"has changed since the daemon loaded small 1 from it"):
            send(settings, fixed)


def test_other_weights_than_the_daemons_are_refused(
    settings: Config, fixed: Path, past: dict[str, str]
) -> None:
    def another(_config: Config) -> StubEngine:
        engine = StubEngine(bias="allow")
        engine.identity = structs.replace(engine.identity, sha256="f" * 64)
        return engine

    with daemon(settings), pytest.raises(ConfigError, match="the daemon decides by stub, and other weights"):
        send(settings, fixed, load_engine=another)


def test_promotion_over_a_tcp_endpoint_is_refused(settings: Config, fixed: Path) -> None:
    with pytest.raises(ConfigError, match="packs are promoted on the machine that holds the journal"):
        send(replace(settings, endpoint="tcp://127.0.0.1:5555"), fixed)


def test_accepted_ids_must_name_decisions_and_are_limited(
    settings: Config, loose: Path, past: dict[str, str]
) -> None:
    ends = tuple(past[name][-8:] for name in ("risky kim", "risky bo"))
    done = send(settings, loose, terms=structs.replace(TERMS, accepted=ends))
    assert done.reports[0].terms.accepted == (past["risky kim"], past["risky bo"])
    assert done.chosen is not None
    with pytest.raises(PackError, match="--accept-loosened names 101 decisions; the limit is 100"):
        send(settings, loose, terms=structs.replace(TERMS, accepted=ends * 50 + ends[:1]))


# ---------------------------------------------------------------- the best of several


def candidate(version: str, agree: int, passing: int, right: int, *, passed: bool = True) -> Report:
    """A report on a pack that agrees with `agree` of ten reviews, and so on; the active pack has 5, 5, 5."""
    info = PackInfo(name="small", version=version, sha256=version * 64)
    active = PackInfo(name="small", version="0", sha256="0" * 64)

    def merit(pack: PackInfo, *hits: int) -> Merit:
        agreeing, suites, served = (rate(count, 10) for count in hits)
        return Merit(pack=pack, held_out=agreeing, suites=suites, served=served)

    return Report(
        at="2026-01-01T00:00:00Z",
        version="1",
        pack=info,
        against=active,
        model="m",
        model_sha256="b" * 64,
        terms=TERMS,
        checks=(Check(name="lint", figure="", limit="", reasons=() if passed else ("no",)),),
        merit=merit(info, agree, passing, right),
        merit_of_active=merit(active, 5, 5, 5),
    )


@pytest.mark.parametrize(
    ("reports", "version"),
    [
        ([candidate("1", 6, 5, 5), candidate("2", 7, 0, 0)], "2"),
        ([candidate("1", 6, 7, 5), candidate("2", 6, 6, 9)], "1"),
        ([candidate("1", 6, 6, 5), candidate("2", 6, 6, 9)], "2"),
        ([candidate("1", 6, 6, 6), candidate("2", 6, 6, 6)], "1"),
        ([candidate("1", 9, 9, 9, passed=False), candidate("2", 6, 5, 5)], "2"),
        ([candidate("1", 5, 5, 5), candidate("2", 4, 9, 9)], None),
        ([candidate("1", 9, 9, 9, passed=False)], None),
    ],
)
def test_the_best_pack_is_chosen_by_reviews_then_suites_then_live_decisions_and_a_tie_changes_nothing(
    reports: list[Report], version: str | None
) -> None:
    chosen, why = choose(reports)
    assert (chosen and chosen.pack.version) == version
    if version is not None:
        assert why.startswith(f"{version} is the best of ")
        assert "reviewed 5 of 10 (24 to 76 %)" in why.partition("active: ")[2]
    else:
        assert "none" in why


def test_the_best_of_several_candidates_is_activated_and_refusals_are_recorded(
    settings: Config, loose: Path, fixed: Path, tmp_path: Path, past: dict[str, str]
) -> None:
    review(settings, past["move kim"], "deny")
    ban = "- {id: moves, when: 'action.name == \"move\"', outcome: deny, clause: R2, because: No moving.}\n"
    better = write_pack(tmp_path / "better", version="3", rules=STRICT + ban)
    with pytest.raises(
        PackError, match="3 packs are named, and only one can be promoted: name one, or choose with --choose"
    ):
        send(settings, loose, fixed, better)
    with daemon(settings) as client:
        done = send(settings, loose, fixed, better, best=True)
        assert client.status().pack.version == "3"
    assert done.why.startswith("3 is the best of 2 that passed: reviewed 1 of 1 ")
    assert [row[:2] for row in promotions(settings)] == [("2", 0), ("3", 1)]


# ---------------------------------------------------------------- the next pack

#: Corrections that are enough, and how many of them say what.
ENOUGH = 50


def correct(settings: Config, count: int, *, masked: tuple[str, ...] = ()) -> None:
    """Record `count` corrected decisions with explanations in the journal of the settings."""
    info = pack_files.load(Path(settings.pack)).info
    items: list[Any] = []
    for number in range(count):
        evaluation = question("look", f"u{number}")
        evaluation["subject"]["properties"] = {"secret": "s"} if masked else {}
        decision = by_model(
            evaluation=msgspec.convert(evaluation, Evaluation),
            pack=info,
            outcome="allow",
            allow=True,
            label="allow",
            at=NOON + number,
            floor=Floor(outcome="allow", final=False, risk="low"),
        )
        explanation = Explanation(
            classification="routine", clauses=("R1",), reasoning="Fine.", text=" allow\nclass: routine"
        )
        verdict = records.Review(
            decision_id=decision.id,
            reviewer="kim",
            verdict="correct_both",
            decision=("deny", "require_mfa")[number % 2],
            reasoning=f"By R2, as u{number} is new.",
        )
        items += [
            events.decision_event(decision, masked=masked),
            events.explanation_event(decision.id, explanation, decision.at + 1),
            sent(verdict, at=decision.at + 2),
        ]
    record(settings.journal_path, *items)


def proposed(settings: Config, folder: Path, **options: Any) -> Improvement:
    return improve(settings, folder, TERMS, **{"now": NOW, "load_engine": lenient} | options)


def test_corrections_become_the_examples_of_the_next_pack_and_nothing_else_changes(
    settings: Config, active: Path, tmp_path: Path
) -> None:
    correct(settings, ENOUGH)
    before = {name: (active / name).read_bytes() for name in pack_files.REQUIRED_WITH_MODEL}
    done = proposed(settings, tmp_path / "packs")
    made = pack_files.load(tmp_path / "packs" / "small-2")
    assert (done.pack, done.path, done.corrections) == (made.info, str(made.path), ENOUGH)
    assert done.promotion.chosen == made.info
    assert not done.promotion.recorded
    assert promotions(settings) == []
    assert {name: (active / name).read_bytes() for name in pack_files.REQUIRED_WITH_MODEL} == before
    old = pack_files.load(active)
    assert made.manifest == structs.replace(
        old.manifest, version="2", supersedes=f"small@1+{old.info.sha256[:12]}"
    )
    assert [
        made.path / name
        for name in pack_files.REQUIRED_WITH_MODEL
        if (made.path / name).read_bytes() != before[name]
    ] == [
        made.path / "pack.yaml",
        made.path / "examples.yaml",
    ]
    assert [example.id for example in made.examples] == [*done.kept, *done.corrected]
    assert [example.outcome for example in made.examples] == ["allow", "require_mfa", "deny"]
    assert not [finding for finding in lint_pack(made) if finding.level == "error"]
    assert "kim" not in (made.path / "examples.yaml").read_text(), "who reviewed is not the model's business"


def test_a_correction_that_became_an_example_is_not_held_out(settings: Config, tmp_path: Path) -> None:
    correct(settings, ENOUGH)
    done = proposed(settings, tmp_path / "packs")
    assert len(done.corrected) == 2
    assert check(done.promotion.reports[0], "held out").figure == f"0 of {ENOUGH - 2} agree, 0 now"


def test_a_proposal_that_passes_is_activated_and_the_next_one_has_no_new_example(
    settings: Config, tmp_path: Path
) -> None:
    correct(settings, ENOUGH)
    with daemon(settings) as client:
        done = proposed(settings, tmp_path / "packs", in_force=True)
        assert done.promotion.activated
        assert client.status().pack == done.pack
        with pytest.raises(ExportError, match="give small no new example"):
            proposed(settings, tmp_path / "packs")
    assert [row[:2] for row in promotions(settings)] == [("2", 1)]
    assert [path.name for path in (tmp_path / "packs").iterdir()] == ["small-2"]


def test_too_few_corrections_propose_nothing(settings: Config, tmp_path: Path) -> None:
    correct(settings, ENOUGH - 1)
    with pytest.raises(
        ExportError,
        match="there are 49 corrections that small can use; the next pack needs 50, so 1 are missing",
    ):
        proposed(settings, tmp_path / "packs")
    assert not (tmp_path / "packs").exists()


def test_a_version_that_exists_is_skipped_and_no_pack_is_overwritten(
    settings: Config, tmp_path: Path
) -> None:
    correct(settings, ENOUGH)
    first, second = (proposed(settings, tmp_path / "packs").path for _ in range(2))
    assert (Path(first).name, Path(second).name) == ("small-2", "small-3")


def test_a_correction_that_gives_a_scenario_away_becomes_no_example(settings: Config, tmp_path: Path) -> None:
    correct(settings, ENOUGH)
    proposal = proposed(settings, tmp_path / "packs")
    shown = pack_files.load(Path(proposal.path)).examples[-1]
    scenario = {
        "id": "S1",
        "title": "Shown",
        "difficulty": "easy",
        "request": msgspec.to_builtins(shown.evaluation),
        "expect": {"outcome": "allow"},
    }
    suite = tmp_path / "small.yaml"
    suite.write_bytes(msgspec.json.encode({"name": "small", "pack": "small", "scenarios": [scenario]}))
    with pytest.raises(ExportError, match="no new example"):  # the suite makes all of them leak
        proposed(settings, tmp_path / "packs", suites=[str(suite)])


def test_a_correction_with_a_masked_value_becomes_no_example(settings: Config, tmp_path: Path) -> None:
    correct(settings, ENOUGH, masked=("/subject/properties/secret",))
    with pytest.raises(ExportError, match="the 50 corrections give small no new example"):
        proposed(settings, tmp_path / "packs")


def test_a_proposal_is_signed_with_the_given_key(settings: Config, tmp_path: Path) -> None:
    correct(settings, ENOUGH)
    Key.make(tmp_path / "desk.key")
    changed = replace(settings, pack_keys=(str(tmp_path / "desk.key.pub"),))
    signatures.sign_pack(
        pack_files.load(Path(settings.pack)).info,
        Path(settings.pack) / pack_files.SIGNATURE,
        Key.open(tmp_path / "desk.key"),
    )
    assert failed(proposed(changed, tmp_path / "packs").promotion.reports[0]) == ["signature"]
    signed = proposed(changed, tmp_path / "packs", key=tmp_path / "desk.key")
    assert signed.promotion.chosen is not None
    assert pack_files.load(Path(signed.path), changed.pack_keys).info == signed.pack


def test_a_manifest_that_cannot_be_edited_is_an_error_and_leaves_no_files(
    settings: Config, active: Path, tmp_path: Path
) -> None:
    text = (active / "pack.yaml").read_text().replace('version: "1"', '"version": "1"')
    (active / "pack.yaml").write_text(text)
    correct(settings, ENOUGH)
    with pytest.raises(PackError, match=r"put `version: \.\.\.` on a line of its own"):
        proposed(settings, tmp_path / "packs")
    assert list(tmp_path.glob("packs/*")) == []


@given(
    st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){0,2}(-rc[0-9]|-beta)?", fullmatch=True) | st.text(max_size=20)
)
def test_the_next_version_is_another_one_each_time(version: str) -> None:
    seen = [version]
    for _ in range(3):
        seen.append(next_version(seen[-1]))
    assert len(set(seen)) == 4


def test_the_next_version_increases_the_last_number() -> None:
    versions = {"1.0.9": "1.0.10", "2": "3", "1.0-beta": "1.1-beta", "beta": "beta.1"}
    assert {version: next_version(version) for version in versions} == versions


# ---------------------------------------------------------------- the command


def test_a_refusal_is_printed_in_eighty_columns_with_every_reason(
    settings: Config, loose: Path, past: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    review(settings, past["risky kim"], None)
    done = send(settings, loose, dry_run=True)
    show(done)
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= 80
    for reason in (reason for each in done.reports[0].checks for reason in each.reasons):
        assert " ".join(reason.split()) in " ".join(output.split())
    assert "2 is refused by: held out, counterfactual" in output
    checks = plain(done)["reports"][0]["checks"]
    assert [check["name"] for check in checks if not check["passed"]] == ["held out", "counterfactual"]


def test_promotions_and_refusals_are_listed_with_bad_signatures_marked(
    settings: Config, loose: Path, fixed: Path, past: dict[str, str], tmp_path: Path
) -> None:
    Key.make(tmp_path / "desk.key")
    send(settings, loose, key=tmp_path / "desk.key")
    send(settings, fixed, key=tmp_path / "desk.key")
    KEY.put_public(tmp_path / "other.pub")

    def listed(*arguments: str) -> Any:
        state = ["--state-dir", str(settings.state_dir)]
        return CliRunner().invoke(cli, ["packs", "promotions", *state, *arguments])

    plainly = listed()
    assert plainly.exit_code == 0, plainly.output
    assert max(map(len, plainly.output.splitlines())) <= 80
    assert [line.split()[2:5] for line in plainly.output.splitlines()[1:]] == [
        ["small", "2.1", "passed"],
        ["small", "2", "failed"],
    ]
    good = listed("--public-key", str(tmp_path / "desk.key.pub"), "--json")
    assert good.exit_code == 0
    assert [row["problem"] for row in msgspec.json.decode(good.output)] == [None, None]
    bad = listed("--public-key", str(tmp_path / "other.pub"))
    assert bad.exit_code == 1
    assert "is not among the trusted ones" in " ".join(bad.output.split())


def test_improve_says_how_many_corrections_are_missing(settings: Config, tmp_path: Path) -> None:
    correct(settings, 1)
    arguments = [
        "--state-dir",
        str(settings.state_dir),
        "--pack",
        settings.pack,
        "--endpoint",
        settings.endpoint,
    ]
    ended = CliRunner().invoke(cli, ["improve", str(tmp_path / "packs"), *arguments])
    assert ended.exit_code == 2
    assert (
        "there are 1 corrections that small can use; the next pack needs 50, so 49 are missing"
        in ended.output
    )


@pytest.mark.model
def test_with_the_real_model_the_command_refuses_and_then_promotes(
    short_dir: Path, tmp_path: Path, model_file: ModelFile
) -> None:
    """As users do: a daemon, requests, and two commands that each load a model."""
    final = RISKY.replace("outcome: require_mfa,", "outcome: allow, final: true,")
    active = write_pack(tmp_path / "active", version="1", rules=STRICT)
    loose = write_pack(tmp_path / "loose", version="2", rules=PACK_RULES + final)
    fixed = write_pack(tmp_path / "fixed", version="3", rules=STRICT)
    suite = tmp_path / "small.yaml"
    scenarios: list[Any] = [msgspec.to_builtins(scenario("S1", "banned", "deny"))]
    explained = {"expect": {"one_of": ["allow", "require_mfa", "deny"]}}  # whatever the model says, and why
    scenarios.append(scenarios[0] | {"id": "S2", "request": question("wave")} | explained)
    suite.write_bytes(msgspec.json.encode({"name": "small", "pack": "small", "scenarios": scenarios}))
    file = tmp_path / "config.toml"
    file.write_text(
        f'state_dir = "{short_dir}"\nendpoint = "ipc://{short_dir}/policy.sock"\npack = "{active}"\n'
        f'model = "{model_file.path}"\ncontext_tokens = 768\nparallel_explanations = 1\nthreads = 1\n'
    )

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        program = "from thor_policy.cli.main import main; main()"
        command_line = [
            sys.executable,
            "-c",
            program,
            *arguments,
            "--config",
            str(file),
            "--suite",
            str(suite),
        ]
        return subprocess.run(
            command_line, capture_output=True, text=True, check=False, timeout=10 * PATIENCE_S
        )

    with (
        serving(config_module.load(file, environ={})) as served,
        Client(served.endpoint, timeout_ms=PATIENCE_S * 1000) as client,
    ):
        ids = [client.evaluate(question("risky", who))["context"]["decision_id"] for who in ("kim", "bo")]
        client.evaluate(question("look"))
        refused = command("packs", "promote", str(loose))
        assert refused.returncode == 1, refused.stderr
        assert all(f"{id} is loosened: " in " ".join(refused.stdout.split()) for id in ids), refused.stdout
        assert client.status().pack.version == "1"
        Key.make(tmp_path / "desk.key")
        done = command("packs", "promote", str(fixed), "--json", "--key", str(tmp_path / "desk.key"))
        assert done.returncode == 0, done.stderr
        report = msgspec.json.decode(done.stdout)
        assert report["activated"] is True
        figures = {check["name"]: check["figure"] for check in report["reports"][0]["checks"]}
        assert figures["suites"] == "2 of 2 pass, 2 now"
        assert figures["counterfactual"] == "0 of 3 loosened, 0 tightened"
        assert client.status().pack.version == "3"
        assert client.evaluate(question("risky"))["context"]["pack"]["version"] == "3"
    with Reader(served.journal_path) as reader, reader.snapshot() as connection:
        assert connection.execute("SELECT version, passed FROM promotions ORDER BY seq").fetchall() == [
            ("2", 0),
            ("3", 1),
        ]
    assert verify(served.journal_path).ok
