"""Ask scenarios: which ones, of which daemon, how often. The result is a run.

Owns the way from suites to `run_files.Run`. Invariant: a daemon and this process are asked by the same client
over the same protocol, and only about the pack that they serve. The model answers a repeated question each
time; no answer comes from a cache. Main thread.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from thor_policy import __version__
from thor_policy.client.blocking import Client
from thor_policy.client.requests import GRACE_MS
from thor_policy.config import Config, data_path
from thor_policy.core.decisions import identity_of
from thor_policy.core.errors import SuiteError, Unreachable
from thor_policy.core.requests import Json
from thor_policy.engine.embedder import MiniLM, missing
from thor_policy.policy import pack_files
from thor_policy.policy.pack import Pack
from thor_policy.suites import coverage, invariance, leaks, suite_files, verdicts
from thor_policy.suites.invariance import Kind, VariantComparison
from thor_policy.suites.leaks import Leak
from thor_policy.suites.run_files import Item, Judge, Key, Run, item
from thor_policy.suites.scenarios import Embedder, Scenario, Suite
from thor_policy.telemetry.machine import machine

#: Who answers: the daemon at the endpoint, this process, or the daemon if one is up.
Whom = Literal["daemon", "process", "either"]


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
        """True when no variant got a looser outcome than its original, or one below its floor."""
        return not any(comparison.failed for comparison in self.compared)

    def plain(self) -> dict[str, Json]:
        """The counts and every changed answer as JSON values."""
        changed = [comparison for comparison in self.compared if comparison.changed]
        counts = {"variants": self.variants, "asked": len(self.compared), "seed": self.seed}
        shown: dict[str, Json] = msgspec.to_builtins(
            {"figures": invariance.figures(self.compared), "changed": changed}
        )
        return counts | shown


def find(named: Sequence[str]) -> list[Suite]:
    """Suites by name or file; without names, those that ship with this version. Raises SuiteError."""
    shipped = {path.stem: path for path in suite_files.available(data_path("scenarios"))}
    suites = []
    for name in named:
        path = Path(name)
        if path.suffix not in (".yaml", ".yml") and not path.is_file():
            if name not in shipped:
                raise SuiteError(f"there is no suite {name!r}; known: {', '.join(shipped)}; or name a file")
            path = shipped[name]
        suites.append(suite_files.load(path))
    return suites if named else [suite_files.load(path) for path in shipped.values()]


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


def own_pack(config: Config) -> str:
    """The name of the pack of the settings. Raises PackError."""
    return pack_files.load(pack_files.find(config.pack, data_path("prompts"))).manifest.name


def is_up(config: Config) -> bool:
    """True when a daemon listens at the endpoint."""
    with Client(config.endpoint, key=config.key_file) as client:
        return client.alive()


def ask(
    config: Config,
    suites: Sequence[Suite],
    *,
    selection: str,
    repeat: int = 1,
    whom: Whom = "either",
    allow_leak: bool = False,
    advance: Callable[[Item], None] = lambda _: None,
    announce: Callable[[str], None] = lambda _: None,
) -> Run:
    """Ask every scenario of these suites `repeat` times, each suite against its pack.

    `advance` is called with each item, `announce` with a message before a model is loaded. Raises SuiteError
    if there is no scenario, if an example of a pack gives a scenario away (unless `allow_leak`), if a daemon
    serves another pack, or if it answers a repeated question from its cache.
    """
    own = own_pack(config)
    if not any(suite.scenarios for suite in suites):
        raise SuiteError(f"no scenario to run for the pack {own} ({selection})")
    judges: list[Judge] = []
    items: list[Item] = []
    places: list[str] = []
    # The settings may name a directory as the pack; its name alone would find another pack.
    settings = {
        name: config if name == own else replace(config, pack=name)
        for name in dict.fromkeys(suite.pack for suite in suites)
    }
    no_embedder = missing(config.models_dir)
    embedder = None if no_embedder else MiniLM(config.models_dir)
    allowed_leaks = _leaks(settings, suites, embedder, allow=allow_leak)
    covered = []
    for name, setting in settings.items():
        results = []
        with _client_of(setting, whom, announce) as (client, where, pack):
            places.append(where)
            judges.append(_judge(client, pack))
            put = _question_to(client, config.max_deadline_ms, repeated=repeat > 1)
            for turn in range(1, repeat + 1):
                for suite in suites:
                    if suite.pack != name:
                        continue
                    for result in verdicts.run(
                        suite, put, labels=pack.labels, quick=False, embedder=embedder
                    ):
                        results.append(result)
                        items.append(
                            item(result, suite=suite.name, pack=name, labels=pack.labels, round=turn)
                        )
                        advance(items[-1])
        covered.append(coverage.cover(pack, results, time.time()))
    return Run(
        at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        version=__version__,
        where=places[-1],
        machine=machine(),
        selection=selection,
        repeats=repeat,
        judges=tuple(judges),
        results=tuple(items),
        embedder=f"no embedder: {no_embedder}" if no_embedder else MiniLM.name,
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
    announce: Callable[[str], None] = lambda _: None,
) -> VariantRun:
    """Ask `count` variants of the scenarios of the pack of the settings, or all variants if `count` is None.

    `asking` is called with the number of variants and the place where they are answered. The context that it
    returns gives a function to call after each answer. Raises SuiteError.
    """
    material = invariance.material(data_path("scenarios") / invariance.MATERIAL_DIR)
    with _client_of(config, "either", announce) as (client, where, pack):
        own = [suite for suite in suites if suite.pack == pack.info.name]
        scenarios = [scenario for suite in own for scenario in suite.scenarios if scenario.skip is None]
        if not scenarios:
            raise SuiteError(f"no scenario to vary for the pack {pack.info.name}")
        every = [
            variant for scenario in scenarios for variant in invariance.variants(scenario, material, kinds)
        ]
        drawn = every if count is None else invariance.sample(every, count, seed)
        put = _question_to(client, config.max_deadline_ms, repeated=False)
        compared = []
        with asking(len(drawn), where) as advance:
            for comparison in invariance.compare(scenarios, drawn, put, pack.labels):
                compared.append(comparison)
                advance()
    return VariantRun(
        where=where, variants=len(every), seed=None if count is None else seed, compared=tuple(compared)
    )


def _leaks(
    settings: Mapping[str, Config], suites: Sequence[Suite], embedder: Embedder | None, *, allow: bool
) -> tuple[Leak, ...]:
    """The scenarios that examples give away. Raises SuiteError if there is one and leaks are not allowed."""
    allowed: list[Leak] = []
    for name, setting in settings.items():
        pack = pack_files.load(pack_files.find(setting.pack, data_path("prompts")))
        of_pack = [suite for suite in suites if suite.pack == name]
        allowed += leaks.check(of_pack, pack, embedder, allow=allow)
    return tuple(allowed)


@contextmanager
def _client_of(
    config: Config, whom: Whom, announce: Callable[[str], None]
) -> Iterator[tuple[Client, str, Pack]]:
    """A client of the daemon, or of one in this process; its place in words; and the pack that it serves."""
    with ExitStack() as stack:
        patience_ms = config.max_deadline_ms
        client = stack.enter_context(Client(config.endpoint, key=config.key_file, timeout_ms=patience_ms))
        pack = pack_files.load(pack_files.find(config.pack, data_path("prompts")))
        up = whom != "process" and client.alive()
        if whom == "daemon" and not up:
            raise Unreachable(f"no daemon listens at {config.endpoint}; start one: thorpolicy serve")
        where = "the daemon" if up else "in process"
        if up:
            served = client.status().pack
            if served.sha256 != pack.info.sha256:
                raise SuiteError(
                    f"the daemon serves {served.name} {served.sha256[:12]}, but --pack is "
                    f"{pack.info.name} {pack.info.sha256[:12]}; restart it, or stop it to test in process"
                )
        else:
            from thor_policy.daemon import service

            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="thor-policy-"))
            announce(f"loading {config.model} with {pack.manifest.name} ...")
            private = replace(
                config,
                endpoint=f"ipc://{folder}/policy.sock",
                tcp_endpoint="",
                metrics_port=0,
                cache_size=0,
                drift_every_s=0,
            )
            stack.enter_context(service.serving(private))
            client = stack.enter_context(Client(private.endpoint, timeout_ms=patience_ms))
        yield client, where, pack


def _judge(client: Client, pack: Pack) -> Judge:
    status = client.status()
    model, adapter = status.model, status.model.adapter
    return Judge(
        pack=status.pack,
        labels=tuple(pack.labels),
        model=f"{model.name}+{adapter.name}" if adapter else model.name,
        model_sha256=identity_of(model.sha256, adapter),
        quantisation=model.quantisation,
        device=model.device,
        build=model.build,
        exact=model.exact,
    )


def _question_to(client: Client, deadline_ms: int, *, repeated: bool) -> verdicts.Ask:
    """A function that asks with the longest deadline, so that a slow machine gets no wrong answer."""

    def put(fields: dict[str, Json]) -> dict[str, Json]:
        reply = client.call(
            "evaluate", fields | {"deadline_ms": deadline_ms}, timeout_ms=deadline_ms + GRACE_MS
        )
        if repeated and reply["context"]["tier"] == "cache":
            raise SuiteError(
                "the daemon answers from its cache, so repeats show nothing: start it with cache_size 0 "
                "(THOR_POLICY_CACHE_SIZE=0), or stop it to test in process"
            )
        return reply

    return put
