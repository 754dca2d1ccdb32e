"""What the daemon says of itself.

Owns the status. Invariant: reading it changes nothing and waits for no thread. Any thread.
"""

from __future__ import annotations

import msgspec

from thor_policy.core.requests import Json
from thor_policy.daemon.engine_thread import EngineThread
from thor_policy.daemon.maintenance_thread import MaintenanceThread
from thor_policy.daemon.pack_manager import PackManager, describe_packs
from thor_policy.journal.writer import Journal
from thor_policy.policy.decider import Policy


def describe(
    policy: Policy, worker: EngineThread, journal: Journal, clerk: MaintenanceThread, steward: PackManager
) -> dict[str, Json]:
    active = policy.residents.active
    loaded, adapter = active.loaded, active.model.adapter
    try:
        free_mb = journal.disk_space.free_bytes() // 2**20
    except OSError:  # a disk that cannot even say so; `failing` and `trouble` tell why
        free_mb = None
    return {
        "pack": msgspec.to_builtins(active.pack.info),
        "packs": describe_packs(policy),
        "model": {
            "file": policy.engine.file_state(),
            "adapter": adapter and msgspec.to_builtins(adapter),
        },
        "engine": {
            "alive": worker.alive,
            "stalled_s": round(worker.pulse.stalled_s, 3),
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
            "loading_step_ms_max": round(worker.task_step_ms_max, 3),
            "wait_for_step_ms_max": round(worker.step_wait_ms_max, 3),
            "shadows_waiting": policy.shadows_waiting,
            "counters": {
                "shadows": worker.shadows,
                "shadows_dropped": policy.shadows_dropped,
                "shadows_failed": policy.shadows_failed,
            },
        },
        "cache": {"entries": len(policy.cache), "counters": dict(policy.cache.counters)},
        "journal": {
            "alive": journal.alive,
            "stalled_s": round(journal.pulse.stalled_s, 3),
            "path": str(journal.path),
            "seq": journal.seq,
            "waiting": journal.waiting,
            "batches": journal.batches,
            "failing": journal.failing,
            "free_mb": free_mb,
            "min_free_mb": journal.disk_space.min_free_bytes // 2**20,
            "ballast": journal.disk_space.has_ballast,
            "counters": dict(sorted(journal.counters.items())),
        },
        "clerk": {
            "alive": clerk.alive,
            "stalled_s": round(clerk.pulse.stalled_s, 3),
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
