"""Ask scenarios: which ones, of which daemon, how often. The result is a run.

Owns the way from suites to `run_files.Run`. Invariant: a daemon and this process are asked by the same client
over the same protocol. The model answers a repeated question each time; no answer comes from a cache. Main
thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec
from msgspec import Struct

from thor_policy import __version__
from thor_policy.client.blocking import Client
from thor_policy.client.requests import GRACE_MS
from thor_policy.config import Config, data_path
from thor_policy.core.decisions import identity_of
from thor_policy.core.errors import SuiteError
from thor_policy.core.requests import Json
from thor_policy.engine.embedder import MiniLM, missing
from thor_policy.policy.pack import Pack
from thor_policy.suites import coverage, invariance, leaks, suite_files, targets, verdicts
from thor_policy.suites.evasions import Evasions
from thor_policy.suites.invariance import Kind, VariantComparison
from thor_policy.suites.leaks import Leak
from thor_policy.suites.run_files import Item, Judge, Key, Run, item
from thor_policy.suites.scenarios import Embedder, Scenario, Suite, floor_of
from thor_policy.suites.targets import Target, Whom
from thor_policy.telemetry.machine import machine

#: Files of a pack's directory that are suites of it.
OWN_SUITES = ("suite.yaml", "suites/*.yaml")


class VariantRun(Struct, frozen=True, kw_only=True):
    """Answers to a sample of all `variants`; `seed` drew it, None if all were asked.

    `where` says whether a daemon was asked.
    """

    where: str
    variants: int
    seed: int | None
    compared: tuple[VariantComparison, ...]

    @property
    def ok(self) -> bool:
        """True when a variant was answered, and none got a looser outcome or one below its floor."""
        answered = any(comparison.refused is None for comparison in self.compared)
        return answered and not any(comparison.failed for comparison in self.compared)

    def plain(self) -> dict[str, Json]:
        """The counts and every changed answer as JSON values."""
        changed = [comparison for comparison in self.compared if comparison.changed]
        counts = {"variants": self.variants, "asked": len(self.compared), "seed": self.seed}
        shown: dict[str, Json] = msgspec.to_builtins(
            {
                "figures": invariance.figures(self.compared),
                "sureness": invariance.sureness(self.compared),
                "changed": changed,
            }
        )
        return counts | shown


def find(named: Sequence[str], pack_dir: Path | None = None) -> list[Suite]:
    """Suites by name or file; without names, those that ship with this version. Raises SuiteError.

    Without names, those in the directory of a pack are added (`OWN_SUITES`).
    """
    shipped = {path.stem: path for path in suite_files.available(data_path("scenarios"))}
    suites = []
    for name in named:
        path = Path(name)
        if path.suffix not in (".yaml", ".yml") and not path.is_file():
            if name not in shipped:
                raise SuiteError(f"there is no suite {name!r}; known: {', '.join(shipped)}; or name a file")
            path = shipped[name]
        suites.append(suite_files.load(path))
    if named:
        return suites
    own = [path for pattern in OWN_SUITES for path in sorted(pack_dir.glob(pattern))] if pack_dir else []
    return [suite_files.load(path) for path in (*shipped.values(), *own)]


def choose(
    suites: Sequence[Suite],
    *,
    full: bool = False,
    filters: Sequence[str] = (),
    keys: Collection[Key] | None = None,
) -> list[Suite]:
    """The suites with only the scenarios to ask: the quick ones, or all if `full`. None is empty.

    `filters` are shell patterns for ids, tags and difficulties. Filters and `keys` choose from all scenarios.
    """

    def is_chosen(suite: Suite, scenario: Scenario) -> bool:
        if keys is not None:
            return (suite.name, scenario.id) in keys
        if filters:
            names = (scenario.id, scenario.difficulty, *scenario.tags)
            return any(fnmatchcase(name, pattern) for name in names for pattern in filters)
        return full or scenario.quick

    chosen = [
        msgspec.structs.replace(suite, scenarios=tuple(s for s in suite.scenarios if is_chosen(suite, s)))
        for suite in suites
    ]
    return [suite for suite in chosen if suite.scenarios]


def ask(
    config: Config,
    suites: Sequence[Suite],
    *,
    selection: str,
    repeat: int = 1,
    whom: Whom = "either",
    target: Target | None = None,
    allow_leak: bool = False,
    advance: Callable[[Item], None] = lambda _: None,
    announce: Callable[[str], None] = lambda _: None,
) -> Run:
    """Ask every scenario of these suites `repeat` times, each suite against its pack.

    `target` answers, by default whoever `whom` names, by the pack of the settings. A daemon answers suites of
    its pack only; in this process every suite is answered by its own pack. `advance` is called with each
    item, `announce` with a message before the first question to a pack. Raises SuiteError if there is no
    scenario, if an example of a pack gives a scenario away (unless `allow_leak`), or if a repeated question
    is answered from a cache.
    """
    target = target or targets.find(config, whom)
    own = target.pack.info.name
    if not any(suite.scenarios for suite in suites):
        raise SuiteError(f"no scenario to run for the pack {own} ({selection})")
    judges: list[Judge] = []
    items: list[Item] = []
    # The settings may name a directory as the pack; its name alone would find another pack.
    by_pack = {
        suite.pack: target if suite.pack == own else _with_pack(target, suite.pack_dir or suite.pack)
        for suite in suites
    }
    no_embedder = missing(config.models_dir)
    embedder = None if no_embedder else MiniLM(config.models_dir)
    allowed_leaks = _leaks(by_pack, suites, embedder, allow=allow_leak)
    covered = []
    for name, answering in by_pack.items():
        results, pack = [], answering.pack
        stated = {
            scenario.id: scenario.sources
            for suite in suites
            for scenario in suite.scenarios
            if scenario.sources
        }
        with targets.client_of(answering, announce, stated) as client:
            judges.append(_judge(client, pack))
            put = _question_to(client, answering, repeated=repeat > 1)
            for turn in range(1, repeat + 1):
                for suite in suites:
                    if suite.pack != name:
                        continue
                    for result in verdicts.run(
                        suite,
                        put,
                        labels=pack.labels,
                        quick=False,
                        embedder=embedder,
                        states_sources=answering.resident is None,
                    ):
                        results.append(result)
                        floor = None
                        if result.status in ("failed", "error"):
                            floor = floor_of(pack, result.scenario, time.time())
                        items.append(
                            item(
                                result,
                                suite=suite.name,
                                pack=name,
                                labels=pack.labels,
                                round=turn,
                                floor=floor,
                            )
                        )
                        advance(items[-1])
        covered.append(coverage.cover(pack, results, time.time()))
    return Run(
        at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        version=__version__,
        where=target.where,
        machine=machine(),
        selection=selection,
        repeats=repeat,
        judges=tuple(judges),
        results=tuple(items),
        embedder=f"no embedder: {no_embedder}" if embedder is None else embedder.name,
        allow_leak=allow_leak,
        leaks=allowed_leaks,
        coverage=tuple(covered),
    )


def vary(
    config: Config,
    suites: Sequence[Suite],
    kinds: Sequence[Kind],
    *,
    count: int | None,
    seed: int,
    asking: Callable[[int, str], AbstractContextManager[Callable[[], None]]],
    any_pack: bool = False,
    record: bool = True,
    announce: Callable[[str], None] = lambda _: None,
) -> VariantRun:
    """Ask `count` variants of the scenarios of one pack, or all variants if `count` is None.

    The pack is that of the settings, with `any_pack` the active one of a daemon. `asking` is called with the
    number of variants and the place where they are answered; the rules of the pack alone answer evasions,
    in this process. The context that it returns gives a function to
    call after each answer. With `record` false this process answers, and no decision stays in a journal.
    Raises SuiteError.
    """
    material = invariance.material(data_path("scenarios") / invariance.MATERIAL_DIR)
    target = targets.find(config, "either", any_pack=any_pack, record=record)
    pack, where = target.pack, target.where
    own = [suite for suite in suites if suite.pack == pack.info.name]
    scenarios = [scenario for suite in own for scenario in suite.scenarios if scenario.skip is None]
    if not scenarios:
        raise SuiteError(f"no scenario to vary for the pack {pack.info.name}")
    every = [variant for scenario in scenarios for variant in invariance.variants(scenario, material, kinds)]
    evasions = Evasions(pack, material.languages, time.time())
    if "evasions" in kinds:
        questions = {scenario.id: scenario.evaluation() for scenario in scenarios}
        questions |= {f"example {example.id}": example.evaluation for example in pack.examples}
        every += [variant for name, each in questions.items() for variant in evasions.of(name, each)]
    drawn = every if count is None else invariance.sample(every, count, seed)
    if not drawn:
        raise SuiteError(f"these scenarios have no variant of the kinds {', '.join(kinds)}")
    compared = [evasions.compare(variant) for variant in drawn if variant.kind == "evasions"]
    to_ask = [variant for variant in drawn if variant.kind != "evasions"]
    if to_ask:
        with targets.client_of(target, announce) as client, asking(len(to_ask), where) as advance:
            put = _question_to(client, target, repeated=False)
            for comparison in invariance.compare(scenarios, to_ask, put, pack.labels):
                compared.append(comparison)
                advance()
    return VariantRun(
        where=where, variants=len(every), seed=None if count is None else seed, compared=tuple(compared)
    )


def _with_pack(target: Target, pack: str) -> Target:
    """This process with another pack. Raises PackError; SuiteError if a daemon answers."""
    if target.resident is not None:
        raise SuiteError(f"the daemon answers by the pack {target.pack.info.name}; this suite is for {pack}")
    config = replace(target.config, pack=pack)
    return replace(target, config=config, pack=targets.own_pack(config))


def _leaks(
    by_pack: Mapping[str, Target], suites: Sequence[Suite], embedder: Embedder | None, *, allow: bool
) -> tuple[Leak, ...]:
    """The scenarios that examples give away. Raises SuiteError if there is one and leaks are not allowed."""
    allowed: list[Leak] = []
    for name, target in by_pack.items():
        of_pack = [suite for suite in suites if suite.pack == name]
        allowed += leaks.check(of_pack, target.pack, embedder, allow=allow)
    return tuple(allowed)


def _judge(client: Client, pack: Pack) -> Judge:
    status = client.status()
    model, adapter = status.model, status.model.adapter
    return Judge(
        pack=pack.info,
        labels=tuple(pack.labels),
        model=f"{model.name}+{adapter.name}" if adapter else model.name,
        model_sha256=identity_of(model.sha256, adapter),
        quantisation=model.quantisation,
        device=model.device,
        build=model.build,
        exact=model.exact,
    )


def _question_to(client: Client, target: Target, *, repeated: bool) -> verdicts.Ask:
    """A function that asks with the longest deadline, so that a slow machine gets no wrong answer."""
    deadline_ms = target.config.max_deadline_ms
    always = {"deadline_ms": deadline_ms, "pack": target.pack.info.sha256}

    def put(fields: dict[str, Json]) -> dict[str, Json]:
        reply = client.call("evaluate", fields | always, timeout_ms=deadline_ms + GRACE_MS)
        if repeated and reply["context"]["tier"] == "cache":
            raise SuiteError(
                "the daemon answers from its cache, so repeats show nothing: start it with cache_size 0 "
                "(THOR_POLICY_CACHE_SIZE=0), or stop it to test in process"
            )
        return reply

    return put
