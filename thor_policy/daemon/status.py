"""What the parts of the daemon say of themselves.

Owns the reading of every part but the server, which adds its own members. Invariant: reading changes
nothing and waits for no thread. Any thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from thor_policy.core.status import (
    CacheStatus,
    EngineStatus,
    JobStatus,
    JournalStatus,
    ModelStatus,
    PackManagerStatus,
    PartsStatus,
    RulesStatus,
)
from thor_policy.daemon.alerts import AlertWatch
from thor_policy.daemon.approvals import ApprovalTasks
from thor_policy.daemon.canary_watch import CanaryWatch
from thor_policy.daemon.consulting import Consulting
from thor_policy.daemon.drift import DriftSentinel
from thor_policy.daemon.engine_thread import EngineThread
from thor_policy.daemon.enrichment import Enricher
from thor_policy.daemon.maintenance_thread import MaintenanceThread
from thor_policy.daemon.pack_manager import PackManager, describe_packs
from thor_policy.daemon.recall_thread import RecallThread
from thor_policy.daemon.rules_thread import RulesThread
from thor_policy.daemon.shipping import ShippingWatch
from thor_policy.daemon.summary_maker import SummaryMaker
from thor_policy.daemon.vector_maker import VectorMaker
from thor_policy.daemon.verifier import Verifier
from thor_policy.journal.writer import Journal
from thor_policy.policy.decider import Policy
from thor_policy.sources.pushed import PushedValues


@dataclass(frozen=True)
class Parts:
    """The parts of a running daemon that have something to say."""

    policy: Policy
    rules_thread: RulesThread
    engine_thread: EngineThread
    journal: Journal
    maintenance: MaintenanceThread
    pack_manager: PackManager
    drift: DriftSentinel
    verifier: Verifier
    summaries: SummaryMaker
    vectors: VectorMaker
    consulting: Consulting
    pushed: PushedValues
    approvals: ApprovalTasks
    recall: RecallThread
    enricher: Enricher
    alerts: AlertWatch
    shipping: ShippingWatch
    canary: CanaryWatch

    def status(self) -> PartsStatus:
        """What each part says now."""
        active = self.policy.residents.active
        return PartsStatus(
            pack=active.pack.info,
            model=self._model(),
            packs=describe_packs(self.policy),
            rules=self._rules(),
            engine=self._engine(),
            cache=CacheStatus(entries=len(self.policy.cache), counters=dict(self.policy.cache.counters)),
            journal=self._journal(),
            maintenance=JobStatus(
                alive=self.maintenance.alive,
                stalled_s=round(self.maintenance.pulse.stalled_s, 3),
                task=self.maintenance.task,
                waiting=self.maintenance.waiting,
                counters=dict(self.maintenance.counters),
            ),
            pack_manager=PackManagerStatus(
                alive=self.pack_manager.alive,
                stalled_s=round(self.pack_manager.pulse.stalled_s, 3),
                task=self.pack_manager.task,
                waiting=self.pack_manager.waiting,
                counters=dict(self.pack_manager.counters),
                refused=dict(self.pack_manager.refused),
                max_packs=self.pack_manager.max_packs,
            ),
            drift=self.drift.status(),
            sources=self.consulting.status(),
            pushed=CacheStatus(entries=len(self.pushed), counters=dict(self.pushed.counters)),
            approvals=self.approvals.status(),
            recall=self.recall.status(),
            enrichment=self.enricher.status(),
            alerts=self.alerts.status(),
            shipping=self.shipping.status(),
            canary=self.canary.status(),
        )

    def _model(self) -> ModelStatus:
        model = self.policy.engine.model
        return ModelStatus(
            name=model.name,
            sha256=model.sha256,
            quantisation=model.quantisation,
            device=model.device,
            build=model.build,
            exact=model.exact,
            file=self.policy.engine.file_state(),
            adapter=self.policy.residents.active.model.adapter,
        )

    def _rules(self) -> RulesStatus:
        thread = self.rules_thread
        return RulesStatus(
            alive=thread.alive,
            stalled_s=round(thread.pulse.stalled_s, 3),
            waiting=thread.waiting,
            mean_ms=round(thread.mean_ms, 3),
            counters=dict(thread.counters),
        )

    def _engine(self) -> EngineStatus:
        thread, policy = self.engine_thread, self.policy
        loaded = policy.residents.active.loaded
        inexact = "" if policy.engine.model.exact else "; the labels were equal, bits are not promised"
        return EngineStatus(
            alive=thread.alive,
            stalled_s=round(thread.pulse.stalled_s, 3),
            waiting=thread.waiting,
            explaining=policy.engine.explaining,
            shadows_waiting=policy.shadows_waiting,
            memory=policy.engine.memory(),
            prefix_tokens=loaded.prefix_tokens,
            prefix_restored=loaded.restored,
            self_test=f"passed, golden question scored {loaded.golden_scores} times{inexact}",
            warm_up_ms=round(policy.warm_up_ms, 3),
            mean_decision_ms=round(thread.mean_decision_ms, 3),
            explanation_step_ms_max=round(thread.step_ms_max, 3),
            loading_step_ms_max=round(thread.task_step_ms_max, 3),
            wait_for_step_ms_max=round(thread.step_wait_ms_max, 3),
            counters={**thread.counters, **policy.counters},
        )

    def _journal(self) -> JournalStatus:
        journal = self.journal
        try:
            free_mb = journal.disk_space.free_bytes() // 2**20
        except OSError:  # the disk cannot even say so; `failing` and `trouble` say why
            free_mb = None
        return JournalStatus(
            alive=journal.alive,
            stalled_s=round(journal.pulse.stalled_s, 3),
            path=str(journal.path),
            seq=journal.seq,
            waiting=journal.waiting,
            batches=journal.batches,
            failing=journal.failing,
            free_mb=free_mb,
            min_free_mb=journal.disk_space.min_free_bytes // 2**20,
            ballast=journal.disk_space.has_ballast,
            verified_seq=self.verifier.verified_seq,
            damage=self.verifier.damage,
            counters=dict(
                sorted(
                    {
                        **journal.counters,
                        **self.verifier.counters,
                        **self.summaries.counters,
                        **self.shipping.counters,
                        **self.vectors.counters,
                        **self.canary.counters,
                    }.items()
                )
            ),
        )
