"""Everything that `test` and `compare` do except printing: select scenarios, run them, conclude.

Owns which suites are asked and when a run is compared with baselines. Invariant: plain values in, frozen
values out, nothing printed. So a command, a timer or a web page can call the same two functions. Main thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from msgspec import Struct

from thor_policy import config as settings
from thor_policy.config import Config
from thor_policy.core.errors import SuiteError
from thor_policy.suites import baselines, comparison, run_files, runner, targets
from thor_policy.suites.comparison import Comparison
from thor_policy.suites.conclusions import Conclusion, Point, Recorded, conclude
from thor_policy.suites.run_files import Item, Key, Run
from thor_policy.suites.scenarios import Suite
from thor_policy.suites.targets import Target

#: Called with the number of questions. Its context yields a function to call with each item.
Progress: TypeAlias = Callable[[int], AbstractContextManager[Callable[[Item], None]]]


class Selection(Struct, frozen=True, kw_only=True):
    """Which scenarios are asked, and how often.

    `suites` are names or files; none means those that ship with this version. `filters` are shell patterns
    for ids, tags and difficulties. `allow_leak` permits a run even if an example of the pack gives a scenario
    away.
    """

    suites: tuple[str, ...] = ()
    filters: tuple[str, ...] = ()
    full: bool = False
    repeat: int = 1
    allow_leak: bool = False

    @property
    def whole(self) -> bool:
        """True when every scenario of the suites is asked."""
        return self.full and not self.filters

    def __str__(self) -> str:
        return f"filter {', '.join(self.filters)}" if self.filters else "full" if self.full else "quick"


def check(
    config: Config,
    selection: Selection,
    *,
    against: str | None = None,
    any_pack: bool = False,
    one_pack: bool = False,
    candidate: str | None = None,
    record: bool = True,
    gated: bool = False,
    bless: bool = False,
    baselines_dir: Path | None = None,
    coverage_threshold: float | None = None,
    progress: Progress = lambda _: nullcontext(lambda _: None),
    announce: Callable[[str], None] = lambda _: None,
) -> Conclusion:
    """Run scenario suites, each against its pack, and judge the run.

    With `one_pack`, or while a daemon is up at the endpoint, only suites of one pack are run: its resident
    pack `candidate`, with `any_pack` its active pack, otherwise the pack of the settings. `against` is the
    address of a daemon that must be up. With `record` false this process answers, and no decision stays in a
    journal. `gated` compares the run with its baselines in `baselines_dir` (default: `baselines` in the state
    directory). `bless` first makes the run the baseline, and needs a selection that is `whole`. A baseline
    that cannot be read or written is a point of the conclusion. Raises ThorPolicyError if the run could not
    end.
    """
    if bless and not selection.whole:
        raise SuiteError("only a run of every scenario can become a baseline: select `full` and no filter")
    config = replace(config, endpoint=against) if against else config
    target = targets.find(
        config,
        "daemon" if against or candidate else "either",
        any_pack=any_pack,
        candidate=candidate,
        record=record,
    )
    one_pack = one_pack or bool(against or candidate) or target.resident is not None
    suites = chosen_suites(target, selection, own_pack_only=one_pack)
    run = _run(target, suites, selection, progress, announce)
    folder, blessed, gate, points = baselines_dir or config.state_dir / "baselines", [], None, []
    try:
        blessed = baselines.bless(folder, run) if bless else []
        gate = baselines.gate(folder, run, whole=selection.whole) if gated or bless else None
    except SuiteError as error:
        points.append(Point(name="baseline", reasons=(str(error),), status=2))
    return conclude(
        run,
        recorded=Recorded(state_dir=target.state_dir, remote=target.remote),
        points=points,
        gate=gate,
        blessed=blessed,
        coverage_threshold=coverage_threshold,
    )


def compare_sides(
    config: Config,
    before: str,
    after: str,
    selection: Selection,
    *,
    progress: Progress = lambda _: nullcontext(lambda _: None),
    announce: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Compare two runs. Each side is a file of a saved run, changes of settings, or `-` for `config` itself.

    Settings are tried in this process, one side after the other; against a file, with the scenarios of that
    file. Raises ThorPolicyError.
    """
    sides = [_side(config, text) for text in (before, after)]
    saved = [side for side in sides if isinstance(side, Run)]
    keys = {item.key for run in saved for item in run.results} if saved else None

    def run_of(side: Run | Config) -> Run:
        if isinstance(side, Run):
            return side
        target = targets.find(side, "process")
        suites = chosen_suites(target, selection, keys=keys, own_pack_only=True)
        return _run(target, suites, selection, progress, announce)

    old, new = map(run_of, sides)
    return comparison.compare(old, new, names=side_names(before, after))


def chosen_suites(
    target: Target, selection: Selection, *, keys: Collection[Key] | None = None, own_pack_only: bool
) -> list[Suite]:
    """The suites of a selection with the scenarios to ask; `keys` select scenarios instead of its filters.

    A quick run without names or filters asks only suites of the pack of the target. Raises SuiteError if
    there is no scenario to ask.
    """
    own = target.pack.info.name
    suites = runner.find(selection.suites, target.pack.path)
    is_explicit = selection.full or selection.suites or selection.filters
    own_pack_only = own_pack_only or not is_explicit
    of_pack = [suite for suite in suites if suite.pack == own] if own_pack_only else suites
    chosen = runner.choose(of_pack, full=selection.full, filters=selection.filters, keys=keys)
    if not chosen:
        raise SuiteError(f"no scenario to run for the pack {own} ({selection}): {_why_none(suites, own)}")
    return chosen


def _why_none(suites: Sequence[Suite], pack: str) -> str:
    """Why no scenario was chosen, and what to do."""
    if all(suite.pack != pack for suite in suites):
        others = ", ".join(dict.fromkeys(suite.pack for suite in suites))
        return (
            f"the suites are for {others}; name a suite for {pack}, or the pack of the suite: --pack DIR, "
            "with a daemon also --candidate NAME"
        )
    return "none is selected; run with --full, or change --filter"


def side_names(before: str, after: str) -> tuple[str, str]:
    """The names of the two sides of a comparison: short ones, or the given texts if those are equal."""
    names = ["as configured" if side == "-" else _short_name(side) for side in (before, after)]
    return (names[0], names[1]) if names[0] != names[1] else (before, after)


def _short_name(side: str) -> str:
    """The name of a file, or settings, without the folders of paths."""
    if "=" not in side:
        return Path(side).stem
    return ",".join("=".join(Path(word).name for word in part.split("=")) for part in side.split(","))


def _side(config: Config, text: str) -> Run | Config:
    """A saved run, or the settings with the changes in a text."""
    if text == "-":
        return config
    return settings.with_changes(config, text) if "=" in text else run_files.load(Path(text))


def _run(
    target: Target,
    suites: list[Suite],
    selection: Selection,
    progress: Progress,
    announce: Callable[[str], None],
) -> Run:
    count = selection.repeat * sum(len(suite.scenarios) for suite in suites)
    with progress(count) as advance:
        return runner.ask(
            target.config,
            suites,
            selection=str(selection),
            repeat=selection.repeat,
            target=target,
            allow_leak=selection.allow_leak,
            advance=advance,
            announce=announce,
        )
