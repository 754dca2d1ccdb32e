"""What a start costs: `thorpolicy serve` beside a process that holds the same model and streams.

Owns the `start` benchmark. Invariant: both run in each round, in random order, with the same interpreter,
model file, number and size of streams, and threads. The daemon's start is warm: its journal and the state of
its prefix exist. Main thread.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence

from thor_policy import catalog
from thor_policy.bench.children import bare_model, isolated_config, serve
from thor_policy.bench.figures import Advance, Announce, Fact, Figure, Report, Series, ratio
from thor_policy.bench.runs import as_request, questions_for_model
from thor_policy.client.blocking import Client
from thor_policy.config import Config
from thor_policy.core.errors import EngineError
from thor_policy.core.requests import Evaluation
from thor_policy.daemon import loading
from thor_policy.engine.native import build_name
from thor_policy.telemetry.machine import machine


def start(
    config: Config, evaluations: Sequence[Evaluation], *, rounds: int, advance: Advance, announce: Announce
) -> Report:
    """Time to ready, and resident memory after one decision by the model, of `rounds` starts each."""
    if config.engine_url:
        raise EngineError("bench start measures a model in this process only: unset engine_url")
    model = catalog.resolve(config.model, config.models_dir).path
    request = as_request(questions_for_model(loading.load_pack(config), evaluations)[0])
    streams = config.resident_packs + 1 + config.parallel_explanations
    names = ("bare process", "daemon", "daemon, first decision", "bare process, CPU", "daemon, CPU")
    ms: dict[str, list[float]] = {name: [] for name in names}
    rss_mb: dict[str, list[float]] = {name: [] for name in names[:2]}

    def bare_round() -> None:
        started = time.monotonic()
        with bare_model(config, model, streams=streams) as child:
            ms["bare process"].append((time.monotonic() - started) * 1e3)
            ms["bare process, CPU"].append(child.cpu_s * 1e3)
            rss_mb["bare process"].append(child.rss_mb)

    def daemon_round(isolated: Config) -> None:
        started = time.monotonic()
        with serve(isolated) as child:
            ms["daemon"].append((time.monotonic() - started) * 1e3)
            ms["daemon, CPU"].append(child.cpu_s * 1e3)
            with Client(isolated.endpoint, timeout_ms=60_000) as client:
                reply = client.evaluate(request, explain="none")
            ms["daemon, first decision"].append((time.monotonic() - started) * 1e3)
            if reply["context"]["tier"] != "model":
                raise EngineError("the first question was not answered by the model: see thorpolicy doctor")
            rss_mb["daemon"].append(child.rss_mb)

    order = random.Random(0)  # noqa: S311  (a shuffle, not a secret)
    with isolated_config(config) as isolated:
        with serve(isolated):
            pass  # saves the prefix state
        for _ in range(rounds):
            for side in order.sample(("bare", "daemon"), 2):
                if side == "bare":
                    bare_round()
                else:
                    daemon_round(isolated)
                advance()
    series = tuple(Series(name=name, ms=tuple(ms[name])) for name in names)
    ratios = (
        ratio(series[1], series[0], bound="at most 1.3, plus 200 ms"),
        ratio(series[4], series[3]),
    )
    medians = {name: statistics.median(values) for name, values in rss_mb.items()}
    facts = {
        "start_ms_over_bound": series[1].median_ms - 1.3 * series[0].median_ms - 200,
        "rss_mb_bare_process": medians["bare process"],
        "rss_mb_daemon": medians["daemon"],
        "rss_mb_more": medians["daemon"] - medians["bare process"],
        "streams": streams,
    }
    figures: list[Figure] = [*series, *ratios]
    figures += [Fact(name=name, value=value) for name, value in facts.items()]
    for figure in figures:
        announce(figure)
    return Report(
        name="start",
        machine=machine(),
        versions={"engine": build_name(), "model": config.model},
        questions=1,
        rounds=rounds,
        series=series,
        ratios=ratios,
        facts=facts,
    )
