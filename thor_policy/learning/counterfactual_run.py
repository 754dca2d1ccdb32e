"""A run: many past requests decided again on idle time, and the results recorded.

Owns which past requests a run takes, when it waits, and how its results reach the journal. Invariant: a run
scores no request while the daemon has requests in flight, and records its results in batches, so that
`resume` continues an interrupted run and decides no request twice. One thread, which also owns the engine.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from thor_policy.config import Config
from thor_policy.core import records
from thor_policy.core.decisions import ModelInfo, PackInfo
from thor_policy.core.errors import ConfigError, ThorPolicyError
from thor_policy.core.ids import new_id
from thor_policy.daemon import journal_access, loading
from thor_policy.journal import events
from thor_policy.learning.counterfactual import Counterfactual, Redecider, Skipped, Summary, summarise

#: How long a run waits before it asks again whether the daemon is idle, in seconds.
REST_S = 0.1
#: Priority of a run: the lowest, so that it slows down nothing else on the machine.
NICENESS = 19
#: An age, as `7d`, and the seconds of each unit.
_AGE = re.compile(r"([0-9]{1,9})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}

#: Opens a display for a number of decisions; the callable takes a direction, a reason, or `waiting`.
Progress = Callable[[int], AbstractContextManager[Callable[[str], None]]]


class WhatIf(Struct, frozen=True, kw_only=True):
    """A finished run: the pack, model and temperature that decided, and what changed.

    `flips` are the decisions that the pack decides otherwise now, in the order of the journal.
    """

    pack: PackInfo
    model: ModelInfo
    temperature: float
    summary: Summary
    flips: tuple[Counterfactual, ...]

    @property
    def decided_by(self) -> str:
        """The pack, the model and its adapter as one line of text."""
        pack, model = self.pack, self.model
        adapter = f" with {model.adapter.name} x {model.adapter.scale:g}" if model.adapter else ""
        return f"{pack.name} {pack.version} ({pack.sha256[:12]}) on {model.name}{adapter}"


def what_if(
    config: Config,
    *,
    since: str,
    until: str | None = None,
    limit: int | None = None,
    actor: str | None = None,
    action: str | None = None,
    instead_of: str | None = None,
    resume: bool = False,
    dry_run: bool = False,
    now: float,
    progress: Progress = lambda _: nullcontext(lambda _: None),
) -> WhatIf:
    """Decide past requests again by the pack, model and adapter of `config`, and compare the outcomes.

    `since` and `until` are RFC 3339 times, or ages at Unix time `now` (see `moment`). `limit` takes the
    newest requests. `instead_of` is that of `Redecider`, `resume` that of `run`. A dry run records nothing.
    The calling thread has the lowest priority meanwhile, and waits while the daemon has requests in flight.

    Raises ConfigError, CatalogError, PackError, EngineError, JournalError, RequestError, Unreachable.
    """
    with ExitStack() as stack:
        stack.enter_context(on_idle_time())
        reader = stack.enter_context(journal_access.open_reader(config))
        decision_ids = reader.past(
            since=moment(since, "since", now),
            until=moment(until, "until", now),
            actor=actor,
            action=action,
            limit=limit,
        )
        busy = stack.enter_context(journal_access.daemon_busy(config))
        advance = stack.enter_context(progress(len(decision_ids)))
        pack = loading.load_pack(config)
        engine, adapter = loading.open_engine(config, pack)
        stack.enter_context(closing(engine))
        redecider = Redecider(
            reader,
            engine,
            pack,
            adapter=adapter,
            instead_of=instead_of,
            contextual=config.is_contextual,
        )
        running = run(
            redecider,
            decision_ids,
            keep=None if dry_run else partial(journal_access.record_counterfactuals, config),
            resume=resume,
            busy=busy,
            waiting=lambda: advance("waiting"),
        )
        results: list[Counterfactual | Skipped] = []
        for result in stack.enter_context(closing(running)):
            advance(result.direction if isinstance(result, Counterfactual) else result.reason)
            results.append(result)
    return WhatIf(
        pack=redecider.pack,
        model=redecider.model,
        temperature=redecider.temperature,
        summary=summarise(results),
        flips=tuple(
            result for result in results if isinstance(result, Counterfactual) and result.direction != "same"
        ),
    )


def run(
    redecider: Redecider,
    decision_ids: Sequence[str],
    *,
    keep: Callable[[records.Counterfactuals], None] | None,
    resume: bool = False,
    busy: Callable[[], bool] = lambda: False,
    waiting: Callable[[], None] = lambda: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Generator[Counterfactual | Skipped, None, None]:
    """Decide these past requests again, each when `busy` returns False; `keep` records results in batches.

    `resume` continues the newest run of the same pack, weights and temperature: its recorded results are
    returned, not decided again. `waiting` is called before each rest of `REST_S`. A batch that `keep` refuses
    is offered again with the next batch. A run that is closed early records the results that it has. Without
    `keep` nothing is recorded.

    Raises what `keep` raises before the first decision and at the end; EngineError, JournalError.
    """
    earlier = redecider.newest_run() if resume else None
    recorded = redecider.results_of(earlier) if earlier is not None else {}
    batches = _Batches(redecider, earlier or new_id(), keep)
    batches.probe()
    try:
        for decision_id in decision_ids:
            known = recorded.get(decision_id)
            while known is None and busy():
                waiting()
                sleep(REST_S)
            result = redecider.redecide(decision_id, known=known)
            if known is None and isinstance(result, Counterfactual):
                batches.add(result)
            yield result
    finally:
        batches.flush()


class _Batches:
    """Results of a run that wait to be recorded."""

    def __init__(
        self, redecider: Redecider, run: str, keep: Callable[[records.Counterfactuals], None] | None
    ) -> None:
        pack, model = redecider.pack, redecider.model
        adapter = model.adapter
        self._keep = keep
        self._waiting: list[records.Redecided] = []
        self._batch = records.Counterfactuals(
            run=run,
            pack=records.JudgePack(name=pack.name, version=pack.version, sha256=pack.sha256),
            model=records.JudgeModel(
                name=model.name,
                sha256=model.sha256,
                quantisation=model.quantisation,
                adapter=records.JudgeAdapter(name=adapter.name, sha256=adapter.sha256, scale=adapter.scale)
                if adapter
                else None,
            ),
            temperature=redecider.temperature,
        )

    def probe(self) -> None:
        """Record a batch of no results. Raises what `keep` raises, before any time was spent."""
        if self._keep is not None:
            self._keep(self._batch)

    def add(self, result: Counterfactual) -> None:
        """Take a result; record all that wait when a batch is full."""
        now = result.now
        self._waiting.append(
            records.Redecided(
                decision_id=result.decision_id,
                served=result.then.outcome,
                outcome=now.outcome,
                direction=result.direction,
                tier=now.tier,
                floor=now.floor,
                label=now.label,
                confidence=now.confidence,
                clauses=now.clauses[: records.MAX_CLAUSES],
                reason_code=now.reason_code,
                score_ms=result.score_ms,
                took_ms=result.took_ms,
            )
        )
        if len(self._waiting) % records.MAX_REDECIDED == 0:
            with suppress(ThorPolicyError):  # a daemon that starts or stops, a full disk: they may pass
                self.flush()

    def flush(self) -> None:
        """Record all results that wait. Raises what `keep` raises; what was not recorded waits on."""
        while self._keep is not None and self._waiting:
            results = tuple(self._waiting[: records.MAX_REDECIDED])
            self._keep(replace(self._batch, results=results))
            del self._waiting[: len(results)]


@contextmanager
def on_idle_time() -> Iterator[None]:
    """The lowest priority for this thread and the threads that it starts, until the end of the block.

    A process that may not raise its priority keeps the low one.
    """
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    try:
        yield
    finally:
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, before)


def moment(text: str | None, name: str, now: float) -> str | None:
    """The RFC 3339 time of an age (`7d`, `12h`, `30m`) at Unix time `now`; any other text unchanged.

    `name` is the field that an error names. Raises ConfigError if the age reaches back before 1970.
    """
    age = _AGE.fullmatch(text) if text is not None else None
    if age is None:
        return text
    at = now - int(age[1]) * _SECONDS[age[2]]
    if at < 0:
        raise ConfigError(f"{name}: {text} ago was before 1970; give a shorter age, as 7d")
    return events.timestamp(at)
