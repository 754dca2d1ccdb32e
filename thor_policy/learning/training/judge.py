"""Train an adapter from corrections, and judge it against the adapter in use.

Owns what is trained, which strengths are tried, and what refuses a candidate. Invariant: only an adapter that
decides no fewer held-out corrections right than the present judge, and breaks no scenario that is right now,
gets its final name; every other one stays a candidate. Main thread of a command, which also owns the engine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from thor_policy import catalog
from thor_policy.catalog.files import companion_of
from thor_policy.config import Config, data_path
from thor_policy.core.errors import ConfigError, TrainingError
from thor_policy.daemon import loading
from thor_policy.daemon.loading import find_adapter
from thor_policy.journal.reader import Reader
from thor_policy.learning import export
from thor_policy.learning.display import SILENT, Display
from thor_policy.learning.training import dataset
from thor_policy.learning.training.samples import Case
from thor_policy.learning.training.settings import Settings
from thor_policy.policy.decider import Policy
from thor_policy.policy.pack import Pack
from thor_policy.suites import runner
from thor_policy.suites.comparison import Comparison, compare
from thor_policy.suites.run_files import Run

if TYPE_CHECKING:
    from thor_policy.learning.training.build import Card

#: Ends the name of an adapter that was not accepted.
CANDIDATE = "candidate"
#: Shares of the way from the adapter in use to the trained weights. They are tried in this order until one is
#: accepted: a smaller share keeps more of what the adapter in use decides.
SHARES = (1.0, 0.5, 0.25)


class Trial(Struct, frozen=True, kw_only=True):
    """A candidate at a share of the way from the adapter in use; no reasons in `refused`: it is accepted."""

    of_the_way: float
    refused: tuple[str, ...]


class Judgement(Struct, frozen=True, kw_only=True):
    """The last candidate that was tried: its file, its card, what it decided right, and all trials."""

    adapter: Path
    card: Card
    figures: dict[str, str]
    trials: tuple[Trial, ...]

    @property
    def refused(self) -> tuple[str, ...]:
        """The reasons against the last candidate; empty if it may be activated."""
        return self.trials[-1].refused


class _Examined(Struct, frozen=True, kw_only=True):
    """How many held-out corrections a judge decides right, and its run of the suites, if there are any."""

    right: int
    run: Run | None


def train(
    config: Config,
    directory: Path,
    *,
    name: str,
    before: Sequence[Path] = (),
    anew: bool = False,
    epochs: float,
    rank: int | None = None,
    seed: int,
    threads: int = 0,
    announce: Callable[[str], None] = lambda _: None,
    display: Display = SILENT,
) -> Judgement:
    """Train an adapter for the pack and model of `config`, and judge it until a share of the way is accepted.

    An accepted adapter is `directory`/NAME.gguf, a refused one `directory`/NAME-candidate.gguf. `before` are
    files of cases that are trained again; by default those of the model's own adapter. Training continues
    from the adapter in use; without one, or `anew`, it starts from random weights, and `rank` may be given.
    `threads` 0 means as many as cores.

    Raises ExportError if there are too few corrections, ConfigError if `rank` is given for training from the
    adapter in use, TrainingError, CatalogError, PackError, EngineError, JournalError.
    """
    pack, model = loading.load_pack(config), catalog.resolve(config.model, config.models_dir)
    with Reader(config.journal_path) as reader, display.counting("reviews read") as progress:
        gathered = export.gather(reader, pack, progress=progress)
    export.refuse_too_few(gathered, pack, export.LEAST, "training")
    files = before or _shipped_cases(config)
    known = [case for path in files for case in dataset.read(path, (pack.info.name,))]
    lesson = dataset.lesson(gathered.corrections, pack, known, seed=seed)
    require_extra()
    from thor_policy.learning.training.build import make

    in_use = None if anew else find_adapter(config.adapter, config.adapter_scale, config, model.name)
    if in_use and rank:
        raise ConfigError(f"--rank needs --anew: training from {in_use.adapter.name} keeps its rank")
    rank = rank or Settings().rank
    settings = Settings(rank=rank, alpha=2 * rank, epochs=epochs, seed=seed)
    # First, so that questions that cannot be asked are an error before the long training.
    present = _examine(config, pack, lesson.held_out, "now", display)
    trials: list[Trial] = []
    for share in SHARES if in_use else SHARES[:1]:
        with display.training() as (advance, checked):
            card = make(
                model,
                {pack.info.name: pack},
                lesson.train,
                lesson.held_out,
                settings,
                name=f"{name}-{CANDIDATE}",
                folder=directory,
                start=in_use.path if in_use else None,
                share=share,
                threads=threads,
                notes=(f"{lesson.corrections} corrections, {lesson.replayed} earlier cases",),
                announce=announce,
                advance=advance,
                checked=checked,
            )
        adapter = directory / f"{card.adapter}.gguf"
        by_candidate = dataclasses.replace(config, adapter=str(adapter), adapter_scale=1.0)
        who = f"of the candidate, {share:.0%} of the way"
        candidate = _examine(by_candidate, pack, lesson.held_out, who, display)
        reasons, figures = _compare(present, candidate, len(lesson.held_out))
        trials.append(Trial(of_the_way=share, refused=reasons))
        if not reasons:
            adapter = adapter.replace(directory / f"{name}.gguf")
            break
    return Judgement(adapter=adapter, card=card, figures=figures, trials=tuple(trials))


def require_extra() -> None:
    """Raise TrainingError if a package of the extra [train] is missing: before the first suite."""
    try:
        from thor_policy.learning.training import conversion, lora  # noqa: F401
    except ImportError as error:
        raise TrainingError(f"{error.name} is not installed; run: ./scripts/setup train") from error


def _shipped_cases(config: Config) -> tuple[Path, ...]:
    """The cases that the model's own adapter was trained on, if the file is there."""
    own = companion_of(config.model)
    path = data_path("models") / "adapters" / f"{own}.cases.jsonl.gz"
    return (path,) if own and path.is_file() else ()


def _examine(config: Config, pack: Pack, held_out: Sequence[Case], who: str, display: Display) -> _Examined:
    """Decide the held-out corrections and every scenario of the pack by the judge of `config`."""
    suites = [suite for suite in runner.find([]) if suite.pack == pack.info.name]
    chosen = runner.choose(suites, full=True)
    total = len(held_out) + sum(len(suite.scenarios) for suite in chosen)
    with display.progress(total, f"corrections and scenarios asked {who}") as advance:
        engine, adapter = loading.open_engine(config, pack)
        with closing(engine):
            policy = Policy(engine, pack, adapter=adapter)
            outcomes = dataset.outcomes(policy, held_out, advance=advance)
        right = sum(outcome == case.outcome for outcome, case in zip(outcomes, held_out, strict=True))
        if not suites:
            return _Examined(right=right, run=None)
        run = runner.ask(
            config, chosen, selection="all scenarios", whom="process", advance=lambda _: advance()
        )
    return _Examined(right=right, run=run)


def _compare(
    present: _Examined, candidate: _Examined, held_out: int
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The reasons that refuse the candidate, and the figures: held-out corrections and suites."""
    figures = {
        f"held-out corrections, {which}": f"{examined.right} of {held_out} right"
        for which, examined in (("now", present), ("candidate", candidate))
    }
    reasons = []
    if candidate.right < present.right:
        reasons.append(
            f"of {held_out} held-out corrections it decides {candidate.right} right; "
            f"{present.right} are right now"
        )
    if present.run is None or candidate.run is None:
        return tuple(reasons), figures | {"suites": "none for this pack"}
    comparison = compare(present.run, candidate.run, names=("now", "candidate"))
    figures["suites, now"] = f"{comparison.decided_before.hits} of {comparison.paired} right"
    figures["suites, candidate"] = f"{comparison.decided_after.hits} of {comparison.paired} right"
    return (*reasons, *worse(comparison)), figures


def worse(comparison: Comparison) -> list[str]:
    """The scenarios that are right now and would be wrong by the candidate, one line each."""
    return [
        f"{change.suite} {change.id}: {change.before} now, {change.after} by the candidate"
        for change in comparison.changes
        if change.right_before and not change.right_after
    ]
