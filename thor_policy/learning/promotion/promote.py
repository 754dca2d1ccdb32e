"""Promotion of a pack that passed the gate: load, record, activate.

Owns the order of steps: the candidate is loaded, the promotion is recorded, then the pack is activated; so
the chain holds the promotion before the first decision by the new pack. Invariant: the daemon decides by the
old pack until the new one is resident, and activates the digest that was checked, never a directory. Main
thread of a command, which also owns the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from msgspec import structs

from thor_policy.client.blocking import Client
from thor_policy.config import Config, data_path
from thor_policy.core.decisions import Adapter, identity_of
from thor_policy.core.engine import Engine
from thor_policy.core.errors import ConfigError, PackError, RequestError
from thor_policy.core.records import Control, Maintenance
from thor_policy.core.records import Promotion as Recorded
from thor_policy.core.status import Status
from thor_policy.daemon import journal_access, loading
from thor_policy.engine.embedder import MiniLM, missing
from thor_policy.journal.reader import Reader, Record
from thor_policy.learning.display import SILENT, Display
from thor_policy.learning.promotion.gate import Gate
from thor_policy.learning.promotion.report import Promotion, Report, Terms
from thor_policy.policy import pack_files
from thor_policy.policy.pack import Pack
from thor_policy.security import signatures
from thor_policy.suites import invariance, runner

#: Most past decisions that one promotion may accept as loosened: a pack that loosens more needs a new look.
MOST_ACCEPTED = 100


def promote(
    config: Config,
    named: Sequence[str],
    terms: Terms,
    *,
    now: float,
    suites: Sequence[str] = (),
    best: bool = False,
    key: Path | None = None,
    dry_run: bool = False,
    load_engine: Callable[[Config], Engine] = loading.load_engine,
    announce: Callable[[str], None] = lambda _: None,
    display: Display = SILENT,
) -> Promotion:
    """Send candidates through the gate, record the results, and activate the candidate that is chosen.

    `named` are names or directories of packs; several need `best`, which chooses among those that pass.
    `suites` are names or files; by default the shipped suites of the pack. `key` signs the promotion. A dry
    run records and activates nothing. Raises ThorPolicyError.
    """
    if len(named) != 1 and not best:
        raise PackError(
            f"{len(named)} packs are named, and only one can be promoted: name one, or choose with --choose"
        )
    if len(terms.accepted) > MOST_ACCEPTED:
        raise PackError(
            f"--accept-loosened names {len(terms.accepted)} decisions; the limit is {MOST_ACCEPTED}"
        )
    signer = signatures.Key.open(key) if key is not None and not dry_run else None
    active, status = active_pack(config)
    candidates = [pack_files.load(pack_files.find(name, data_path("prompts"))) for name in named]
    own_suites = [suite for suite in runner.find(suites, active.path) if suite.pack == active.info.name]
    no_embedder = missing(config.models_dir)
    engine, adapter = loading.open_engine(config, active, *candidates, load=load_engine)
    with closing(engine), journal_access.open_reader(config) as reader:
        if status is not None:
            _require_same_weights(status, engine, adapter)
        accepted = tuple(reader.resolve(id_or_end) for id_or_end in terms.accepted)
        gate = Gate(
            reader,
            engine,
            active,
            adapter=adapter,
            suites=own_suites,
            shown=[example.evaluation for pack in candidates for example in pack.examples],
            material=invariance.material(data_path("scenarios") / invariance.MATERIAL_DIR),
            embedder=None if no_embedder else MiniLM(config.models_dir),
            pack_keys=config.pack_keys,
            max_request_bytes=config.max_request_bytes,
            contextual=config.is_contextual,
            now=now,
            announce=announce,
            display=display,
        )
        terms = structs.replace(terms, accepted=accepted)
        reports = tuple(gate.judge(candidate, terms) for candidate in candidates)
    chosen, why = choose(reports) if best else _only(reports[0])
    if dry_run:
        return Promotion(reports=reports, chosen=chosen.pack if chosen else None, why=why)
    for report in reports:
        if not report.passed:
            journal_access.maintain(config, Maintenance(task="promote", promotion=_event(report, None)))
    if chosen is None:
        return Promotion(reports=reports, chosen=None, why=why, recorded=True)
    pack = next(candidate for candidate in candidates if candidate.info == chosen.pack)
    event = Maintenance(task="promote", promotion=_event(chosen, signer))
    if status is None:
        journal_access.maintain(config, event)
    else:
        _activate(config, pack, event, chosen)
    return Promotion(
        reports=reports,
        chosen=pack.info,
        why=why,
        recorded=True,
        activated=status is not None,
        advice=_advice(config, pack),
    )


def choose(reports: Sequence[Report]) -> tuple[Report | None, str]:
    """The best candidate that passed, if it is better than the active pack; and the reason in words.

    Packs compare by reviewed decisions that they agree with, then by scenarios that they pass, then by their
    share of right live decisions. Equal packs rank in this order: the active pack, then as they were named.
    """
    passed = [report for report in reports if report.passed and report.merit]
    if not passed:
        return None, f"none of {len(reports)} passed the gate"
    best = max(passed, key=_rank)
    active = best.merit_of_active
    figures = f"{_figures(best)}; active: {_figures(best, active=True)}"
    if active is not None and _rank(best) <= _rank(best, active=True):
        return None, f"none is better than the active pack {best.against.version}: {figures}"
    return best, f"{best.pack.version} is the best of {len(passed)} that passed: {figures}"


def _rank(report: Report, *, active: bool = False) -> tuple[int, int, float]:
    merit = report.merit_of_active if active else report.merit
    assert merit is not None  # noqa: S101  a report that passed has one
    return merit.held_out.hits, merit.suites.hits, merit.served.share or 0.0


def _figures(report: Report, *, active: bool = False) -> str:
    merit = report.merit_of_active if active else report.merit
    assert merit is not None  # noqa: S101  a report that passed has one
    figures = []
    for name, rate in (
        ("reviewed", merit.held_out),
        ("scenarios", merit.suites),
        ("in force", merit.served),
    ):
        interval = f" ({100 * rate.low:.0f} to {100 * rate.high:.0f} %)" if rate.of else ""
        figures.append(f"{name} {rate.hits} of {rate.of}{interval}")
    return ", ".join(figures)


def _only(report: Report) -> tuple[Report | None, str]:
    if report.passed:
        return report, f"{report.pack.version} passed every check"
    failed = ", ".join(check.name for check in report.checks if not check.passed)
    return None, f"{report.pack.version} is refused by: {failed}"


def active_pack(config: Config) -> tuple[Pack, Status | None]:
    """The active pack and the daemon's status; without a daemon, the pack of the settings and None.

    Raises ConfigError for a remote endpoint, PackError if the files of the active pack have changed.
    """
    if config.endpoint.startswith("tcp:"):
        raise ConfigError(
            f"endpoint is {config.endpoint}: packs are promoted on the machine that holds the journal; run "
            "the command there, without --endpoint"
        )
    with Client(config.endpoint, key=config.key_file) as client:
        status = client.status() if client.alive() else None
    if status is None:
        return pack_files.load(pack_files.find(config.pack, data_path("prompts"))), None
    active = next(resident for resident in status.packs if resident.role == "active")
    pack = pack_files.load(Path(active.path))
    if pack.info.sha256 != active.sha256:
        raise PackError(
            f"{pack.path} has changed since the daemon loaded {active.name} {active.version} from it, "
            "so candidates cannot be compared with the active pack: put its files back, and put the "
            "candidate into a directory of its own"
        )
    return pack, status


def _require_same_weights(status: Status, engine: Engine, adapter: Adapter | None) -> None:
    """Raise ConfigError unless the daemon decides by the weights that are loaded here."""
    model = status.model
    if _weights(status) != identity_of(engine.model.sha256, adapter):
        tuned = f" with the adapter {model.adapter.name}" if model.adapter else ""
        raise ConfigError(
            f"the daemon decides by {model.name}{tuned}, and other weights are loaded here: give the same "
            "--model, --adapter and --adapter-scale"
        )


def _weights(status: Status) -> str:
    """The digest of the weights that a daemon decides by."""
    model = status.model
    return identity_of(model.sha256, model.adapter)


def _event(report: Report, signer: signatures.Key | None) -> Recorded:
    text = report.recorded()
    return Recorded(
        name=report.pack.name,
        version=report.pack.version,
        sha256=report.pack.sha256,
        against=report.against.sha256,
        model_sha256=report.model_sha256,
        passed=report.passed,
        report=text,
        key=signer.key if signer else None,
        signature=signatures.sign_promotion(text, report.pack.sha256, signer) if signer else None,
    )


def _activate(config: Config, pack: Pack, event: Maintenance, checked: Report) -> None:
    """Load, record, activate. Raises RequestError, Unreachable; PackError if anything changed meanwhile."""
    with Client(config.endpoint, key=config.key_file) as client:
        before = client.status()
        if (before.pack.sha256, _weights(before)) != (checked.against.sha256, checked.model_sha256):
            now = before.pack
            raise PackError(
                f"{now.name} {now.version} on {before.model.name} is active now, and {pack.info.version} "
                "was not compared with it: promote it again"
            )
        load = Control(task="load", pack=str(pack.path))
        try:
            done = client.control(load)
        except RequestError as error:
            former = _oldest_candidate(before, pack)
            if error.code != "conflict" or former is None:
                raise
            client.control(Control(task="unload", pack=former))
            done = client.control(load)
        digests = [resident["sha256"] for resident in done["packs"]]
        if pack.info.sha256 not in digests:
            for unchecked in set(digests) - {resident.sha256 for resident in before.packs}:
                client.control(Control(task="unload", pack=unchecked))
            raise PackError(f"{pack.path} has changed since it was checked; promote it again")
        client.maintenance(event)
        client.control(Control(task="activate", pack=pack.info.sha256))


def _oldest_candidate(status: Status, pack: Pack) -> str | None:
    """The digest of the candidate of this name that has been inactive longest; None if there is none."""
    return next(
        (
            resident.sha256
            for resident in status.packs
            if resident.role == "candidate" and resident.name == pack.info.name
        ),
        None,
    )


def recorded(reader: Reader, trusted: Sequence[Path] = (), *, limit: int) -> list[Record]:
    """The newest promotions and refusals, newest first, each with the `problem` of its signature.

    `problem` is None if the signature is good, or if no `trusted` key files are given. Raises PackError if a
    key cannot be used, JournalError.
    """
    try:
        keys = signatures.public_keys(trusted)
    except ValueError as error:
        raise PackError(str(error)) from error

    def problem(row: Record) -> str | None:
        if row["signature"] is None or not trusted:
            return None
        return signatures.promotion_problem(row["report"], row["sha256"], row["key"], row["signature"], keys)

    return [row | {"problem": problem(row)} for row in reader.promotions(limit)]


def _advice(config: Config, pack: Pack) -> str | None:
    """A line that says how to set the pack in the settings; None if they name it."""
    if pack_files.find(config.pack, data_path("prompts")).resolve() == pack.path.resolve():
        return None
    return f'after a restart the daemon decides by {config.pack}: set pack = "{pack.path}" in its settings'
