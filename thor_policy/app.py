"""The composition root: the only module that knows every part.

Owns the order in which parts start and stop. Invariant: parts stop in the reverse of the order in which
they started, also when a start fails half-way. Called on the main thread.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import msgspec

from thor_policy import catalog, metrics, packs, trace, wire
from thor_policy.calibration import Calibration
from thor_policy.clerk import Clerk, Tended
from thor_policy.client import Client
from thor_policy.config import Config, data_path
from thor_policy.core import Adapter, Caller, Decision, Engine, Json, ModelInfo, PackInfo
from thor_policy.drift import Sentinel
from thor_policy.errors import (
    AlreadyRunning,
    CatalogError,
    JournalError,
    RequestError,
    Stalled,
    Unreachable,
)
from thor_policy.journal import events
from thor_policy.journal.checkpoints import Signer, key_path
from thor_policy.journal.reader import Reader
from thor_policy.journal.upkeep import tend as do_upkeep
from thor_policy.journal.writer import Checkpoints, Journal, OnCommitted
from thor_policy.notify import Supervisor
from thor_policy.policy import Explained, Policy, ScoreCache, new_id
from thor_policy.server import Mailbox, Part, Server, check_identity, endpoint_lock
from thor_policy.steward import Steward, describe, find_adapter
from thor_policy.worker import Outcome, Worker

log = logging.getLogger(__name__)

#: How long a command waits for another that holds the journal, and how often it looks, in seconds.
LOCK_WAIT_S, _LOCK_STEP_S = 3.0, 0.02

#: How long a daemon may take to say how it is, in milliseconds.
STATUS_MS = 5_000

OpenJournal = Callable[[Config, OnCommitted], Journal]


def load_pack(config: Config) -> packs.Pack:
    """The pack that the settings name. Raises PackError."""
    return packs.load(packs.find(config.pack, data_path("prompts")), config.pack_keys)


def load_engine(config: Config) -> Engine:
    """The model that the settings name, here or on a server, with no prefix resident yet.

    Raises CatalogError, ConfigError, EngineError.
    """
    if config.engine_url:
        from thor_policy.engine.link import read_key
        from thor_policy.engine.remote import RemoteEngine

        return RemoteEngine(
            config.engine_url,
            key=read_key(config.engine_key),
            model=config.engine_model,
            template=config.engine_template,
            question_tokens=config.max_question_tokens,
        )
    from thor_policy.engine.llama import LlamaEngine

    model = catalog.resolve(config.model, config.models_dir)
    if model.base is not None:
        raise CatalogError(f"{model.name} is an adapter for {model.base}; set model to that, adapter to this")
    return LlamaEngine(
        model.path,
        name=model.name,
        sha256=model.sha256,
        context_tokens=config.context_tokens,
        question_tokens=config.max_question_tokens,
        packs=config.resident_packs + 1,  # one to load into while all others decide
        explanations=config.parallel_explanations,
        threads=config.threads,
        gpu_layers=config.gpu_layers,
        flash_attention=config.flash_attention,
        kv_type=config.kv_type,
        states_dir=config.state_dir / "prefix-states",
    )


def adopt_adapter(config: Config, engine: Engine) -> Adapter | None:
    """Open the adapter of the settings in an engine, if they name one. Raises CatalogError, EngineError."""
    found = find_adapter(config.adapter, config.adapter_scale, config, engine.model.name)
    if found is None:
        return None
    found.adopt(engine)
    return found.adapter


def calibration_of(config: Config, pack: PackInfo, model: ModelInfo) -> Calibration | None:
    """The newest calibration of this pack on this model with its adapter, if there is one."""
    with Reader(config.journal_path) as reader:
        found = reader.calibration(pack.sha256, model.identity)
    return Calibration(**found) if found else None


def journal_options(config: Config) -> dict[str, Any]:
    """What the settings say of a journal, as arguments. Raises JournalError if the key cannot be used."""
    signer = Signer.load(key_path(config.checkpoint_key, os.environ))
    signer.publish(config.checkpoint_dir)
    return {
        "synchronous": config.synchronous,
        "min_free_mb": config.min_free_mb,
        "ballast_mb": config.ballast_mb,
        "masked": config.masked,
        "checkpoints": Checkpoints(
            signer, config.checkpoint_dir, config.checkpoint_events, config.checkpoint_s
        ),
    }


def open_journal(config: Config, on_committed: OnCommitted) -> Journal:
    """The journal of the state directory, open for writing."""
    return Journal(config.journal_path, on_committed=on_committed, **journal_options(config))


def open_reader(config: Config) -> Reader:
    """A reader of the journal; one that an earlier version wrote is brought up to date first.

    Raises JournalError, and AlreadyRunning where a daemon of the earlier version runs still.
    """
    reader = Reader(config.journal_path)
    if reader.is_current():
        return reader
    reader.close()
    open_journal(config, lambda _: None).close()
    return Reader(config.journal_path)


def keep(config: Config, record: trace.Record) -> str:
    """Record something, through the daemon where one runs, otherwise by hand; returns the record's id.

    Another command may hold the journal for a moment; that is waited for, up to `LOCK_WAIT_S`.
    Raises RequestError, Unreachable, JournalError, AlreadyRunning.
    """
    until = time.monotonic() + LOCK_WAIT_S
    while True:
        with Client(config.endpoint, key=config.key_file) as client:
            if client.remote or client.alive():
                return client.keep(record)
        try:
            return _keep_by_hand(config, record)
        except AlreadyRunning:
            if time.monotonic() >= until:
                raise
            time.sleep(_LOCK_STEP_S)


def _keep_by_hand(config: Config, record: trace.Record) -> str:
    frame = wire.encode_request("", wire.OP_OF[type(record)], {"record": record})
    wire.decode(frame, max_bytes=config.max_request_bytes, max_deadline_ms=1)  # what a daemon would refuse
    record_id, us = new_id(), Caller(transport="inproc", uid=os.geteuid(), gid=os.getegid(), pid=os.getpid())
    with open_journal(config, lambda _: None) as journal:
        event = events.recorded(record, record_id=record_id, at=time.time(), caller=us, masked=config.masked)
        fate = journal.commit(event).result()
    if fate.error is not None:
        raise RequestError(fate.error, fate.message or "the journal could not record it")
    return record_id


def tend(
    config: Config, upkeep: trace.Upkeep, *, progress: Callable[[int], None] = lambda _: None
) -> dict[str, Json]:
    """Do long work on the journal, through the daemon where one runs, otherwise by hand; says what was done.

    `progress` hears of it only where no daemon does it. Raises RequestError, Unreachable, JournalError.
    """
    with Client(config.endpoint, key=config.key_file) as client:
        if client.remote or client.alive():
            return client.upkeep(upkeep)
    if not config.journal_path.is_file():
        raise JournalError(f"there is no journal at {config.journal_path}; `thorpolicy serve` makes one")
    with open_journal(config, lambda _: None) as journal:
        return do_upkeep(journal, upkeep, by_uid=os.geteuid(), progress=progress)


def keep_counterfactuals(config: Config, told: trace.Counterfactuals) -> None:
    """Record what past decisions would have been, as `tend` does.

    Raises JournalError too if whoever records them does not know a decision: then it has another journal.
    """
    done = tend(config, trace.Upkeep(task="counterfactual", counterfactuals=told))
    if unknown := done["unknown"]:
        raise JournalError(
            f"{len(unknown)} of {len(told.results)} decisions of {config.journal_path} are unknown to the "
            f"daemon at {config.endpoint}, which keeps another journal; name its state_dir"
        )


@contextmanager
def daemon_busy(config: Config) -> Iterator[Callable[[], bool]]:
    """Tells, each time it is called, whether a daemon at the endpoint has requests in flight.

    One that does not say so in time has. It raises RequestError if the caller may not ask.
    """
    with Client(config.endpoint, key=config.key_file, timeout_ms=STATUS_MS) as client:

        def told() -> bool:
            try:
                return client.alive() and client.status()["in_flight"] > 0
            except Unreachable:
                return True

        yield told


@contextmanager
def open_service(
    config: Config,
    *,
    load_engine: Callable[[Config], Engine] = load_engine,
    open_journal: OpenJournal = open_journal,
    supervisor: Supervisor | None = None,
    reread: Callable[[], Config] | None = None,
) -> Iterator[Server]:
    """A server that is warm and bound, ready to `run`; everything is stopped on the way out.

    `supervisor` learns what it has to watch; what it is told besides is up to the caller. `reread` reads the
    settings anew when the server is asked to reload, and raises ConfigError.
    Raises ThorPolicyError where a part cannot start, Stalled where the journal does not drain in time.
    """
    with ExitStack() as stack:
        check_identity(config)
        pack = load_pack(config)
        stack.enter_context(endpoint_lock(config.socket_path))
        mailbox = Mailbox()
        stack.callback(mailbox.close)
        sockets = stack.enter_context(ExitStack())  # closed after worker and journal, whose last words go out
        journal = open_journal(config, lambda fates: mailbox.put(*fates))
        stack.callback(_close_journal, journal, config.shutdown_s)
        with Reader(config.journal_path) as reader:
            if newer := reader.taken_over(pack.info):
                log.warning(
                    "the settings name %s %s, but %s took its place by a promotion at %s and does not decide "
                    "now: name its folder as pack in the settings",
                    *(pack.info.name, pack.info.version, newer["version"], newer["timestamp"]),
                )

        def open_policy() -> Policy:
            engine = load_engine(config)
            try:
                policy = Policy(
                    engine,
                    pack,
                    adapter=adopt_adapter(config, engine),
                    max_explanations=config.max_explanations,
                    max_shadows=config.max_shadows,
                    cache=ScoreCache(config.cache_size, config.cache_ttl_s),
                )
                if found := calibration_of(config, pack.info, policy.residents.active.model):
                    policy.calibrate(found)
                policy.warm_up(time.time())
                return policy
            except BaseException:
                engine.close()
                raise

        def tell(ticket: int, outcome: Outcome) -> None:
            # what is going to be recorded needs no waking: the journal's word on it will follow, and wake
            mailbox.put((ticket, outcome), wake=not isinstance(outcome, Decision | Explained))

        def answer(ticket: int, tended: Tended) -> None:
            mailbox.put((ticket, tended))

        sentinel = Sentinel(
            journal.append,
            every_s=config.drift_every_s,
            tolerance=config.drift_tolerance,
            now_ns=time.monotonic_ns(),
        )
        worker = Worker(open_policy, journal, tell, idle=sentinel)
        policy = worker.start()
        steward = Steward(
            config, worker, policy, journal, answer, calibration_of=partial(calibration_of, config)
        )
        stack.callback(steward.stop, config.shutdown_s)  # after the worker, which cuts off what it waits for
        stack.callback(_stop_worker, worker, config.shutdown_s)
        model, now = policy.engine.model, time.time()
        journal.append(events.model_loaded(model, now))
        if (adapter := policy.residents.active.model.adapter) is not None:
            journal.append(events.adapter_activated(adapter, model.sha256, now))
        journal.append(events.pack_activated(pack.info, now))

        clerk = Clerk(journal, answer, calibrated=policy.calibrate)
        stack.callback(clerk.stop, config.shutdown_s)

        def describe_all() -> dict[str, Json]:
            return _describe(policy, worker, journal, clerk, steward) | {"drift": sentinel.describe()}

        def refusal(part: Part) -> RequestError | None:
            return journal.refusal() if part == "journal" else worker.refusal()

        server = Server(
            config,
            mailbox=mailbox,
            work=worker,
            recorder=journal,
            clerk=clerk,
            pack=pack.info,
            model=model,
            describe=describe_all,
            refusal=refusal,
            steward=steward,
            find_pack=lambda told: policy.residents.named(told),
            reread=reread,
        )
        sockets.callback(server.close)
        if config.metrics_port:
            stack.enter_context(metrics.endpoint(config.metrics_port, server.measured))
        if supervisor is not None:  # the clerk is left out: a piece of its work may take an hour
            supervisor.watch({"engine": worker, "journal": journal})
        yield server


@contextmanager
def serving(
    config: Config,
    *,
    load_engine: Callable[[Config], Engine] = load_engine,
    open_journal: OpenJournal = open_journal,
) -> Iterator[Config]:
    """A whole daemon in this process, on a thread, for the length of the block."""
    with open_service(config, load_engine=load_engine, open_journal=open_journal) as server:
        thread = threading.Thread(target=server.run, name="server", daemon=True)
        thread.start()
        try:
            yield config
        finally:
            server.stop()
            thread.join(config.shutdown_s + 5)


def _describe(
    policy: Policy, worker: Worker, journal: Journal, clerk: Clerk, steward: Steward
) -> dict[str, Json]:
    active = policy.residents.active
    loaded, adapter = active.loaded, active.model.adapter
    try:
        free_mb = journal.room.free_bytes() // 2**20
    except OSError:  # a disk that cannot even say so; `failing` and `trouble` tell why
        free_mb = None
    return {
        "pack": msgspec.to_builtins(active.pack.info),
        "packs": describe(policy),
        "model": {
            "file": policy.engine.file_state(),
            "adapter": adapter and msgspec.to_builtins(adapter),
        },
        "engine": {
            "alive": worker.alive,
            "stands_still_s": round(worker.pulse.stands_still_s, 3),
            "waiting": worker.waiting,
            "explaining": policy.engine.explaining,
            "memory": [msgspec.to_builtins(one) for one in policy.engine.memory()],
            "prefix_tokens": loaded.prefix_tokens,
            "prefix_restored": loaded.restored,
            "self_test": f"passed, golden question scored {loaded.golden_scores} times"
            + ("" if policy.engine.model.exact else "; the labels were equal, bits are not promised"),
            "warm_up_ms": round(policy.warm_up_ms, 3),
            "decisions": worker.decisions,
            "explanations": worker.explanations,
            "unexplained": worker.unexplained,
            "refused": worker.refused,
            "internal_errors": worker.internal_errors,
            "mean_decision_ms": round(worker.mean_decision_ms, 3),
            "explanation_step_ms_max": round(worker.step_ms_max, 3),
            "loading_step_ms_max": round(worker.errand_step_ms_max, 3),
            "wait_for_step_ms_max": round(worker.step_wait_ms_max, 3),
            "shadows_waiting": policy.shadowing,
            "counters": {
                "shadows": worker.shadows,
                "shadows_dropped": policy.shadows_dropped,
                "shadows_failed": policy.shadows_failed,
            },
        },
        "cache": {"entries": len(policy.cache), "counters": dict(policy.cache.counters)},
        "journal": {
            "alive": journal.alive,
            "stands_still_s": round(journal.pulse.stands_still_s, 3),
            "path": str(journal.path),
            "seq": journal.seq,
            "waiting": journal.waiting,
            "batches": journal.batches,
            "failing": journal.failing,
            "free_mb": free_mb,
            "min_free_mb": journal.room.min_free_bytes // 2**20,
            "ballast": journal.room.has_ballast,
            "counters": dict(sorted(journal.counters.items())),
        },
        "clerk": {
            "alive": clerk.alive,
            "stands_still_s": round(clerk.pulse.stands_still_s, 3),
            "task": clerk.task,
            "waiting": clerk.waiting,
            "counters": dict(clerk.counters),
        },
        "steward": {
            "alive": steward.alive,
            "task": steward.task,
            "waiting": steward.waiting,
            "refused": dict(steward.refused),
        },
    }


def _stop_worker(worker: Worker, timeout_s: float) -> None:
    if not worker.stop(timeout_s):
        log.error("the engine thread did not end within %g s; what it was doing is lost", timeout_s)


def _close_journal(journal: Journal, timeout_s: float) -> None:
    try:
        journal.close(timeout_s)
    except JournalError as error:
        raise Stalled(str(error)) from error
