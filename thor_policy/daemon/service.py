"""The composition root: the only module that knows every part.

Owns the order in which parts start and stop. Invariant: parts stop in the reverse of the order in which
they started, also when a start fails half-way. Called on the main thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING

from thor_policy.config import Config
from thor_policy.core.decisions import Decision
from thor_policy.core.engine import Engine
from thor_policy.core.errors import (
    CatalogError,
    ConfigError,
    JournalError,
    RequestError,
    Stalled,
    ThorPolicyError,
)
from thor_policy.core.fair_queue import Debts
from thor_policy.core.ids import new_id
from thor_policy.core.recall import Embedder
from thor_policy.core.requests import Caller
from thor_policy.core.results import Committed, EngineResult, Explained, JobDone, Refused
from thor_policy.daemon.admission import Part
from thor_policy.daemon.alerts import AlertWatch
from thor_policy.daemon.approvals import ApprovalTasks
from thor_policy.daemon.canary_watch import CanaryWatch
from thor_policy.daemon.consulting import Consulting, Stated
from thor_policy.daemon.contention import ALONE_UNCOMMITTED, Contention
from thor_policy.daemon.drift import DriftSentinel
from thor_policy.daemon.engine_thread import EngineThread
from thor_policy.daemon.enrichment import Enricher
from thor_policy.daemon.loading import (
    OpenEmbedder,
    OpenJournal,
    alert_thresholds,
    calibration_of,
    enrichment_plan,
    load_embedder,
    load_engine,
    open_engine,
    open_journal,
    read_pack,
    used_today,
    weights_of,
)
from thor_policy.daemon.maintenance_thread import MaintenanceThread
from thor_policy.daemon.memory import MemoryKeeper
from thor_policy.daemon.pack_manager import PackManager
from thor_policy.daemon.precedent_lookups import PrecedentLookups
from thor_policy.daemon.recall_thread import RecallThread
from thor_policy.daemon.rules_thread import RulesThread
from thor_policy.daemon.searching import Job as SearchJob
from thor_policy.daemon.searching import Searching
from thor_policy.daemon.server import Server
from thor_policy.daemon.shipping import ShippingWatch
from thor_policy.daemon.sockets import Mailbox, endpoint_lock
from thor_policy.daemon.status import Parts
from thor_policy.daemon.summary_maker import SummaryMaker
from thor_policy.daemon.tcp_listener import check_identity
from thor_policy.daemon.vector_maker import VectorMaker
from thor_policy.daemon.verifier import Verifier
from thor_policy.engine.engines import Engines
from thor_policy.journal import events
from thor_policy.journal.reader import Reader
from thor_policy.journal.writer import Journal
from thor_policy.policy.decider import Policy
from thor_policy.policy.pack_files import load_files
from thor_policy.policy.score_cache import ScoreCache
from thor_policy.policy.structure import names
from thor_policy.protocol.messages import SearchRequest
from thor_policy.sources.kinds import Reach
from thor_policy.sources.pushed import PushedValues
from thor_policy.telemetry import clocks
from thor_policy.telemetry.watchdog import Supervisor

if TYPE_CHECKING:
    from thor_policy.telemetry.spans import Tracing

log = logging.getLogger(__name__)


@contextmanager
def open_service(
    config: Config,
    *,
    load_engine: Callable[[Config], Engine] = load_engine,
    open_journal: OpenJournal = open_journal,
    load_embedder: OpenEmbedder = load_embedder,
    supervisor: Supervisor | None = None,
    reread: Callable[[], Config] | None = None,
    stated: Stated = {},  # noqa: B006  it is not changed
) -> Iterator[Server]:
    """A server that is warm and bound, ready to `run`; everything is stopped on the way out.

    `supervisor` learns which parts to watch; the caller sends it everything else. `reread` reads the settings
    again when the server is asked to reload, and raises ConfigError. `stated` is what sources say in
    scenarios.
    Raises ThorPolicyError where a part cannot start, Stalled where the journal does not drain in time.
    """
    with ExitStack() as stack:
        socket_path = config.socket_path
        check_identity(config)
        files = read_pack(config)
        stack.enter_context(endpoint_lock(socket_path))
        # the rules are compiled while llama.cpp loads the model
        worker = ThreadPoolExecutor(1, thread_name_prefix="rules")
        loading_pack = worker.submit(load_files, files, config.pack_keys)
        worker.submit(names.load)
        worker.shutdown(wait=False)  # its thread ends when both are done
        mailbox = Mailbox()
        stack.callback(mailbox.close)
        spans = _open_spans(config)
        if spans is not None:
            stack.callback(spans.close, config.shutdown_s)
        # closed after engine thread and journal, whose last reports still become replies
        sockets = stack.enter_context(ExitStack())
        uncommitted = Debts(ALONE_UNCOMMITTED)

        def on_committed(commits: list[Committed]) -> None:
            mailbox.put(*commits)
            for commit in commits:
                if commit.kind == "decision":
                    uncommitted.settle(commit.sender or "")
                    approval_tasks.settle(commit.ticket)

        journal = open_journal(config, on_committed)
        stack.callback(_close_journal, journal, config.shutdown_s)
        approval_tasks = ApprovalTasks(journal)
        stack.callback(approval_tasks.close)

        def open_policy() -> Policy:
            try:
                engine, adapter = open_engine(config, files, load=load_engine)
            except ThorPolicyError:
                loading_pack.result()  # a fault of the pack is reported before one of the model
                raise
            try:
                pack = loading_pack.result()
                policy = Policy(
                    Engines(engine),
                    pack,
                    adapter=adapter,
                    max_explanations=config.max_explanations,
                    max_shadows=config.max_shadows,
                    rule_budget_ms=config.rule_budget_ms,
                    cache=ScoreCache(config.cache_size, config.cache_ttl_s),
                    contextual=config.is_contextual,
                    approvals=approval_tasks,
                    on_judged=enricher.offer,
                )
                if calibration := calibration_of(config, pack.info, policy.residents.active.model):
                    policy.calibrate(calibration)
                policy.warm_up(time.time())
                return policy
            except BaseException:
                engine.close()
                raise

        def on_outcome(ticket: int, outcome: EngineResult) -> None:
            if isinstance(outcome, Refused):
                approval_tasks.settle(ticket)
            # what is going to be recorded needs no waking: its commit follows, and wakes
            mailbox.put((ticket, outcome), wake=not isinstance(outcome, Decision | Explained))

        def on_job_done(ticket: int, job: JobDone) -> None:
            mailbox.put((ticket, job))

        drift = DriftSentinel(
            journal.append,
            every_s=config.drift_every_s,
            tolerance=config.drift_tolerance,
            now_ns=time.monotonic_ns(),
        )
        enricher = Enricher(
            journal.append,
            enrichment_plan(config),
            wake=lambda: engine_thread.wake(),
            used=used_today(config),
        )
        engine_thread = EngineThread(
            open_policy, journal, on_outcome, idle=(drift, enricher), uncommitted=uncommitted
        )
        policy = engine_thread.start()
        rules_thread = RulesThread(
            policy, engine_thread, journal, on_outcome, uncommitted, record_together=journal.decided_together
        )
        pack = policy.residents.active.pack
        canary_watch = CanaryWatch(
            journal,
            lambda canary_id, breach: pack_manager.roll_back(canary_id, breach),
            lambda: policy.residents,
            now_ns=time.monotonic_ns(),
        )
        pack_manager = PackManager(
            config,
            engine_thread,
            policy,
            journal,
            on_job_done,
            calibration_of=partial(calibration_of, config),
            watch=canary_watch,
            load_engine=load_engine,
        )
        # stopped after the engine thread, which cuts off what the pack manager waits for
        stack.callback(pack_manager.stop, config.shutdown_s)
        stack.callback(_stop, "engine", engine_thread, config.shutdown_s)
        stack.callback(_stop, "rules", rules_thread, config.shutdown_s)
        rules_thread.start()
        with Reader(config.journal_path) as reader:
            if newer := reader.taken_over(pack.info):
                log.warning(
                    "the settings name %s %s, but %s took its place by a promotion at %s and does not decide "
                    "now: set pack to its folder in the settings",
                    *(pack.info.name, pack.info.version, newer["version"], newer["timestamp"]),
                )
        model, now = policy.engine.model, time.time()
        if not pack.rules_only:
            journal.append(events.model_loaded(model, now))
        if (adapter := policy.residents.active.model.adapter) is not None:
            journal.append(events.adapter_activated(adapter, model.sha256, now))
        journal.append(events.pack_activated(pack.info, now))
        pack_manager.resume_canary()

        def busy() -> bool:
            return rules_thread.waiting + engine_thread.waiting + journal.waiting > 0

        verifier = Verifier(
            config.journal_path,
            events_per_s=config.verify_events_per_s,
            busy=busy,
            changes=lambda: journal.counters["reopened"],
            now_ns=time.monotonic_ns(),
        )
        summaries = SummaryMaker(
            journal,
            per_s=config.summaries_per_s,
            template_of=lambda version, decision_type: policy.residents.template_of(version, decision_type),
            busy=busy,
            now_ns=time.monotonic_ns(),
        )
        shipping = ShippingWatch(journal, wall=time.time, now_ns=time.monotonic_ns())
        #: One for all threads, loaded when a text is first to be embedded.
        open_embedder = cache(lambda: load_embedder(config))

        def embedder_if_wanted() -> Embedder:
            if not config.embeddings_per_s:
                raise CatalogError("the setting embeddings_per_s is 0, so there are no vectors; set it to 20")
            return open_embedder()

        vector_maker = VectorMaker(
            journal,
            per_s=config.embeddings_per_s,
            open_embedder=open_embedder,
            busy=busy,
            now_ns=time.monotonic_ns(),
        )
        alerts = AlertWatch(
            journal,
            alert_thresholds(config),
            drift=drift.status,
            sinks=shipping.status,
            canary=canary_watch.status,
            wall=time.time,
            busy=busy,
            now_ns=time.monotonic_ns(),
        )

        def on_erasure() -> None:
            enricher.forget()
            alerts.forget()

        maintenance = MaintenanceThread(
            journal,
            on_job_done,
            on_calibration=policy.calibrate,
            verifier=verifier,
            summaries=summaries,
            vectors=vector_maker,
            approvals=approval_tasks,
            alerts=alerts,
            shipping=shipping,
            memory=MemoryKeeper(time.monotonic_ns()),
            on_erasure=on_erasure,
        )
        stack.callback(maintenance.stop, config.shutdown_s)
        recall = RecallThread(
            config.journal_path,
            open_embedder=embedder_if_wanted,
            weights=weights_of(config),
            most=config.similar_most,
        )
        stack.callback(recall.stop, config.shutdown_s)
        pushed = PushedValues(config.max_pushed, config.max_pushed_mb << 20)
        lookups = PrecedentLookups(rules_thread, lambda: policy.residents, recall)
        stack.callback(lookups.stop)
        if pack.manifest.precedents is not None:
            recall.warm()
        consulting = Consulting(
            lookups,
            lambda: policy.residents,
            pushed=pushed,
            reach=Reach(overrides=config.sources, hosts=config.source_hosts),
            max_waiting=config.max_source_waiting,
            stated=stated,
        )
        stack.callback(consulting.stop)
        searching = Searching(on_job_done, digest=journal.digest, record=journal.append)
        stack.callback(searching.stop)

        def search(message: SearchRequest, caller: Caller, ticket: int, *, at: float) -> None:
            residents = policy.residents
            pack = (residents.active if message.pack is None else residents.named(message.pack)).pack
            sources = consulting.sources_of(pack)
            job = SearchJob(message.search, pack, sources, caller, ticket, new_id(), at, time.monotonic_ns())
            searching.submit(job)

        parts = Parts(
            policy,
            rules_thread,
            engine_thread,
            journal,
            maintenance,
            pack_manager,
            drift,
            verifier,
            summaries,
            vector_maker,
            consulting,
            pushed,
            approval_tasks,
            recall,
            enricher,
            alerts,
            shipping,
            canary_watch,
        )

        def refusal(part: Part) -> RequestError | None:
            return journal.refusal() if part == "journal" else rules_thread.refusal()

        contention = Contention(uncommitted)
        stack.callback(contention.close)
        server = Server(
            config,
            mailbox=mailbox,
            rules=consulting,
            recorder=journal,
            maintenance=maintenance,
            describe=parts.status,
            find_pack=lambda name, listed: policy.residents.permitted(name, listed),
            long_texts=lambda name: policy.residents.long_texts(name),
            govern=lambda decision_type: policy.residents.active.pack.governing(decision_type),
            refusal=refusal,
            pack_changes=pack_manager,
            push=consulting.push,
            approvals=approval_tasks.tasks,
            similar=recall.similar,
            search=search,
            spans=spans,
            contention=contention,
            reread=reread,
        )
        sockets.callback(server.close)
        if config.metrics_port:
            from thor_policy.telemetry import exposition  # imports an HTTP server, needed only here

            stack.enter_context(exposition.endpoint(config.metrics_port, server.measured))
        if supervisor is not None:  # not the maintenance thread: one of its tasks may take an hour
            supervisor.watch({"rules": rules_thread, "engine": engine_thread, "journal": journal})
        yield server


@contextmanager
def serving(
    config: Config,
    *,
    load_engine: Callable[[Config], Engine] = load_engine,
    open_journal: OpenJournal = open_journal,
    load_embedder: OpenEmbedder = load_embedder,
    stated: Stated = {},  # noqa: B006  it is not changed
) -> Iterator[Config]:
    """A whole daemon in this process, on a thread, for the length of the block.

    `stated` is what sources say in scenarios.
    """
    with open_service(
        config,
        load_engine=load_engine,
        open_journal=open_journal,
        load_embedder=load_embedder,
        stated=stated,
    ) as server:
        run = partial(server.run, turn=turns(server))
        thread = threading.Thread(target=run, name="server", daemon=True)
        thread.start()
        try:
            yield config
        finally:
            server.stop()
            thread.join(config.shutdown_s + 5)


def turns(server: Server, supervisor: Supervisor | None = None) -> Callable[[bool, int], None]:
    """What is done at each turn of `server`: watch the wall clock, and send the supervisor what is due."""
    wall_clock = clocks.StepWatch(server.counters, clocks.wall_offset_ns())

    def turn(stopping: bool, now_ns: int) -> None:
        wall_clock.turn(clocks.wall_offset_ns())
        if supervisor is not None:
            supervisor.turn(stopping, now_ns)

    return turn


def _stop(name: str, thread: EngineThread | RulesThread, timeout_s: float) -> None:
    if not thread.stop(timeout_s):
        log.error("the %s thread did not end within %g s; what it was doing is lost", name, timeout_s)


def _open_spans(config: Config) -> Tracing | None:
    """What sends spans of decisions; None if it is off. Raises ConfigError without the extra."""
    if not config.otel_endpoint:
        return None
    try:
        from thor_policy.telemetry import spans
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"otel_endpoint needs the extra otel ({error.name} is missing): install requirements-otel.lock "
            "beside the package, or leave otel_endpoint empty"
        ) from error
    return spans.over_http(config.otel_endpoint, ratio=config.otel_ratio)


def _close_journal(journal: Journal, timeout_s: float) -> None:
    try:
        journal.close(timeout_s)
    except JournalError as error:
        raise Stalled(str(error)) from error
