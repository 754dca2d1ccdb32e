"""From a pack that passed the gate to the pack that decides.

Owns the order of steps: the candidate is made resident, the promotion is recorded, then it decides; so the
chain tells of it before the first decision that it makes. Invariant: a daemon goes on deciding by the pack
that it had until the new one is resident, and is asked to activate the digest that was checked, never a
directory. Main thread of a command, which also owns the engine.
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
from thor_policy.learning.promotion.gate import Gate
from thor_policy.learning.promotion.report import Promotion, Report, Terms
from thor_policy.policy import pack_files
from thor_policy.policy.pack import Pack
from thor_policy.security import signatures
from thor_policy.suites import invariance, runner

#: Past decisions that may be accepted as loosened in one go: more are a pack to be looked at again.
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
) -> Promotion:
    """Send candidates through the gate; record what came of it, and activate the one that is chosen.

    `named` are packs by name or directory; of several the `best` is chosen. `suites` are files or names,
    or else those that ship for the pack. `key` signs the promotion. With `dry_run` nothing is recorded
    and nothing activated. Raises ThorPolicyError.
    """
    if len(named) != 1 and not best:
        raise PackError(
            f"{len(named)} packs are named and one can be promoted; --choose takes the best of them"
        )
    if len(terms.accepted) > MOST_ACCEPTED:
        raise PackError(
            f"{len(terms.accepted)} decisions are accepted as loosened; the limit is {MOST_ACCEPTED}"
        )
    signer = signatures.Key.open(key) if key is not None and not dry_run else None
    active, status = active_pack(config)
    candidates = [pack_files.load(pack_files.find(name, data_path("prompts"))) for name in named]
    own = [one for one in runner.find(suites) if one.pack == active.info.name]
    no_embedder = missing(config.models_dir)
    with journal_access.open_reader(config) as reader, closing(load_engine(config)) as engine:
        adapter = loading.adopt_adapter(config, engine)
        if status is not None:
            _same_judge(status, engine, adapter)
        accepted = tuple(reader.resolve(told) for told in terms.accepted)
        gate = Gate(
            reader,
            engine,
            active,
            adapter=adapter,
            suites=own,
            shown=[example.evaluation for pack in candidates for example in pack.examples],
            material=invariance.material(data_path("scenarios") / invariance.MATERIAL_DIR),
            embedder=None if no_embedder else MiniLM(config.models_dir),
            pack_keys=config.pack_keys,
            max_request_bytes=config.max_request_bytes,
            now=now,
            announce=announce,
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
    pack = next(one for one in candidates if one.info == chosen.pack)
    event = Maintenance(task="promote", promotion=_event(chosen, signer))
    if status is None:
        journal_access.maintain(config, event)
    else:
        _put_in_force(config, pack, event, chosen)
    return Promotion(
        reports=reports,
        chosen=pack.info,
        why=why,
        recorded=True,
        activated=status is not None,
        advice=_advice(config, pack),
    )


def choose(reports: Sequence[Report]) -> tuple[Report | None, str]:
    """The best of those that passed, if it is better than the active pack, and why.

    By reviewed decisions that it agrees with, then scenarios that it passes, then how often it was right when
    it was in force; what is equal in all of it goes to the active pack, then to whoever was named first.
    """
    passed = [report for report in reports if report.passed and report.merit]
    if not passed:
        return None, f"none of {len(reports)} passed the gate"
    best = max(passed, key=_rank)
    active = best.merit_of_active
    told = f"{_told(best)}; active: {_told(best, active=True)}"
    if active is not None and _rank(best) <= _rank(best, active=True):
        return None, f"none is better than the active pack {best.against.version}: {told}"
    return best, f"{best.pack.version} is the best of {len(passed)} that passed: {told}"


def _rank(report: Report, *, active: bool = False) -> tuple[int, int, float]:
    merit = report.merit_of_active if active else report.merit
    assert merit is not None  # noqa: S101  who passed was asked
    return merit.held_out.hits, merit.suites.hits, merit.served.share or 0.0


def _told(report: Report, *, active: bool = False) -> str:
    merit = report.merit_of_active if active else report.merit
    assert merit is not None  # noqa: S101  who passed was asked
    told = []
    for name, rate in (
        ("reviewed", merit.held_out),
        ("scenarios", merit.suites),
        ("in force", merit.served),
    ):
        interval = f" ({100 * rate.low:.0f} to {100 * rate.high:.0f} %)" if rate.of else ""
        told.append(f"{name} {rate.hits} of {rate.of}{interval}")
    return ", ".join(told)


def _only(report: Report) -> tuple[Report | None, str]:
    if report.passed:
        return report, f"{report.pack.version} passed every check"
    failed = ", ".join(check.name for check in report.checks if not check.passed)
    return None, f"{report.pack.version} is refused by: {failed}"


def active_pack(config: Config) -> tuple[Pack, Status | None]:
    """The pack that decides, and the daemon's status; without a daemon, the pack of the settings."""
    if config.endpoint.startswith("tcp:"):
        raise ConfigError(
            f"endpoint is {config.endpoint}: packs are promoted where their journal lies; go there and leave "
            "--endpoint out"
        )
    with Client(config.endpoint, key=config.key_file) as client:
        status = client.status() if client.alive() else None
    if status is None:
        return pack_files.load(pack_files.find(config.pack, data_path("prompts"))), None
    active = next(resident for resident in status.packs if resident.role == "active")
    pack = pack_files.load(Path(active.path))
    if pack.info.sha256 != active.sha256:
        raise PackError(
            f"{pack.path} has changed since the daemon loaded {active.name} {active.version} from it, so "
            "there is nothing to hold a candidate against: put those files back, and the candidate into a "
            "directory of its own"
        )
    return pack, status


def _same_judge(status: Status, engine: Engine, adapter: Adapter | None) -> None:
    """Raises ConfigError unless the daemon judges by the weights that are loaded here."""
    model = status.model
    if _weights(status) != identity_of(engine.model.sha256, adapter):
        tuned = f" with the adapter {model.adapter.name}" if model.adapter else ""
        raise ConfigError(
            f"the daemon judges by {model.name}{tuned}, and other weights are loaded here: give the same "
            "--model, --adapter and --adapter-scale"
        )


def _weights(status: Status) -> str:
    """Digest of the weights that a daemon judges by."""
    return identity_of(status.model.sha256, status.model.adapter)


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


def _put_in_force(config: Config, pack: Pack, event: Maintenance, checked: Report) -> None:
    """Load, record, activate. Raises RequestError, Unreachable; PackError if anything changed meanwhile."""
    with Client(config.endpoint, key=config.key_file) as client:
        before = client.status()
        if (before.pack.sha256, _weights(before)) != (checked.against.sha256, checked.model_sha256):
            now = before.pack
            raise PackError(
                f"{now.name} {now.version} on {before.model.name} decides by now, which "
                f"{pack.info.version} was not held against; promote it again"
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
        there = [one["sha256"] for one in done["packs"]]
        if pack.info.sha256 not in there:
            for slipped_in in set(there) - {resident.sha256 for resident in before.packs}:
                client.control(Control(task="unload", pack=slipped_in))
            raise PackError(f"{pack.path} has changed since it was checked; promote it again")
        client.maintenance(event)
        client.control(Control(task="activate", pack=pack.info.sha256))


def _oldest_candidate(status: Status, pack: Pack) -> str | None:
    """The digest of the resident pack of this name that was longest out of force; None if there is none."""
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

    That is None where it is good, or nothing is `trusted` to check it with. Raises PackError if a key cannot
    be used, JournalError.
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
    """What the settings still say; None if they name the pack."""
    if pack_files.find(config.pack, data_path("prompts")).resolve() == pack.path.resolve():
        return None
    return f'a daemon that starts anew begins with {config.pack}: set pack = "{pack.path}" in its settings'
