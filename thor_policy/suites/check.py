"""Everything that `test` and `compare` do except printing: select scenarios, run them, conclude, write files.

Owns which suites are asked and who answers, when a run is compared with baselines, whether it is a success,
and which report files are written. Invariant: plain values in, frozen values out, nothing printed. So a
command, a timer or a web page can call the same two functions. Main thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from msgspec import Struct

from thor_policy import config as settings
from thor_policy.config import Config
from thor_policy.core.errors import SuiteError, ThorPolicyError
from thor_policy.core.requests import Json
from thor_policy.suites import baselines, comparison, junit, run_files, runner
from thor_policy.suites.baselines import Gate
from thor_policy.suites.comparison import Comparison
from thor_policy.suites.figures import Figures, figures
from thor_policy.suites.run_files import Item, Key, Run
from thor_policy.suites.runner import Whom
from thor_policy.suites.scenarios import Suite

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


class Check(Struct, frozen=True, kw_only=True):
    """A run, its figures, and the verdict of the gate if the run was compared with baselines.

    `blessed` are the baseline files that were written. `coverage_threshold` is in per cent.
    """

    run: Run
    figures: Figures
    gate: Gate | None = None
    blessed: tuple[Path, ...] = ()
    coverage_threshold: float | None = None

    @property
    def ok(self) -> bool:
        """True if coverage reached its threshold and the gate, or without one every scenario, passed."""
        passed = self.gate.ok if self.gate is not None else self.figures.ok
        return passed and all(pack.reaches(self.coverage_threshold) for pack in self.run.coverage)

    def plain(self) -> dict[str, Json]:
        """The run as JSON values, with its figures (`summary`) and the gate beside it."""
        gate = {} if self.gate is None else {"gate": self.gate}
        return run_files.plain(self.run, summary=self.figures, **gate)


def check(
    config: Config,
    selection: Selection,
    *,
    against: str | None = None,
    gated: bool = False,
    bless: bool = False,
    baselines_dir: Path | None = None,
    coverage_threshold: float | None = None,
    junit_file: Path | None = None,
    html_file: Path | None = None,
    finished: Callable[[Run, Figures], None] = lambda _run, _figures: None,
    progress: Progress = lambda _: nullcontext(lambda _: None),
    announce: Callable[[str], None] = lambda _: None,
) -> Check:
    """Run scenario suites, each against its pack, and judge the run.

    While a daemon is up at the endpoint, only suites of the pack of the settings are run. `against` is the
    address of a daemon that must answer. `gated` compares the run with its baselines in `baselines_dir`
    (default: `baselines` in the state directory). `bless` first makes the run the baseline, and needs a
    selection that is `whole`. `finished` is called after the last answer, before baselines are read. A JUnit
    file is written even if the run fails with an error. Raises ThorPolicyError.
    """
    with _report_files(junit_file, html_file) as write:
        if bless and not selection.whole:
            raise SuiteError(
                "only a run of every scenario can become a baseline: select `full` and no filter"
            )
        config = replace(config, endpoint=against) if against else config
        suites = chosen_suites(config, selection, own_pack_only=bool(against))
        run = _run(config, suites, selection, "daemon" if against else "either", progress, announce)
        summary = figures(run)
        finished(run, summary)
        folder = baselines_dir or config.state_dir / "baselines"
        blessed = tuple(baselines.bless(folder, run)) if bless else ()
        gate = baselines.gate(folder, run, whole=selection.whole) if gated or bless else None
        write(run, summary, gate)
    return Check(run=run, figures=summary, gate=gate, blessed=blessed, coverage_threshold=coverage_threshold)


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
        suites = chosen_suites(side, selection, keys=keys, own_pack_only=True)
        return _run(side, suites, selection, "process", progress, announce)

    old, new = map(run_of, sides)
    return comparison.compare(old, new, names=side_names(before, after))


def chosen_suites(
    config: Config, selection: Selection, *, keys: Collection[Key] | None = None, own_pack_only: bool
) -> list[Suite]:
    """The suites of a selection with the scenarios to ask; `keys` select scenarios instead of its filters.

    A quick run without names or filters asks only suites of the pack of the settings; so does every run while
    a daemon is up.
    """
    suites = runner.find(selection.suites)
    is_explicit = selection.full or selection.suites or selection.filters
    if own_pack_only or not is_explicit or runner.is_up(config):
        pack = runner.own_pack(config)
        suites = [suite for suite in suites if suite.pack == pack]
    return runner.choose(suites, full=selection.full, filters=selection.filters, keys=keys)


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
    config: Config,
    suites: list[Suite],
    selection: Selection,
    whom: Whom,
    progress: Progress,
    announce: Callable[[str], None],
) -> Run:
    count = selection.repeat * sum(len(suite.scenarios) for suite in suites)
    with progress(count) as advance:
        return runner.ask(
            config,
            suites,
            selection=str(selection),
            repeat=selection.repeat,
            whom=whom,
            allow_leak=selection.allow_leak,
            advance=advance,
            announce=announce,
        )


@contextmanager
def _report_files(
    junit_file: Path | None, html_file: Path | None
) -> Iterator[Callable[[Run, Figures, Gate | None], None]]:
    """A function that writes the report files. If the block raises, the JUnit file says so."""
    for file in (junit_file, html_file):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)

    def write(run: Run, summary: Figures, gate: Gate | None) -> None:
        if junit_file is not None:
            junit_file.write_bytes(junit.junit(run, gate))
        if html_file is not None:
            from thor_policy.suites.html_report import page  # jinja2 is needed only here

            html_file.write_text(page(run, summary, gate), encoding="utf-8")

    try:
        yield write
    except ThorPolicyError as error:
        if junit_file is not None:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            junit_file.write_bytes(junit.could_not_run(str(error), now))
        raise
