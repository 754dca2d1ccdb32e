"""Figures of an adapter, beside those of the base model, the rules alone, and the majority class.

Owns the figures and the model card. Invariant: no case that is counted here took part in training. The
model's own label is its likeliest one, before the floor. One engine, with the prompts that the daemon would
use; one thread.
"""

from __future__ import annotations

import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import jinja2
import msgspec
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import bootstrap

from thor_policy import catalog
from thor_policy.config import Config, data_path
from thor_policy.core.decisions import Adapter, Floor, resident_key
from thor_policy.core.requests import Evaluation
from thor_policy.engine.llama import LlamaEngine
from thor_policy.learning.training import dataset
from thor_policy.learning.training.samples import AT, Case
from thor_policy.policy import calibration
from thor_policy.policy.pack import Pack
from thor_policy.suites import leaks, suite_files
from training_data.cases import case_of, generated, judged_packs, written
from training_data.domains import DOMAINS
from training_data.situations import Chance

#: A deadline that never passes.
NEVER_NS = 2**63 - 1
#: Resamples of the bootstrap for an interval of balanced accuracy.
RESAMPLES = 2_000

T = TypeVar("T")


class Judge:
    """One engine with the packs resident, under one adapter or none."""

    def __init__(self, engine: LlamaEngine, packs: Mapping[str, Pack], adapter: Adapter | None) -> None:
        self._engine, self.packs, self._adapter = engine, packs, adapter
        for pack in packs.values():
            engine.load(pack.brief_prefix if adapter else pack.prefix, adapter)

    def probabilities(self, case: Case, *, floor_shown: bool = True) -> dict[str, float]:
        """The probability of each label. `floor_shown` matters under an adapter only."""
        pack, evaluation = self.packs[case.pack], msgspec.convert(case.evaluation, Evaluation)
        floor = pack.book.apply(evaluation, case.at)
        question = pack.question(evaluation, floor.facts)
        if self._adapter and floor_shown:
            question = pack.brief_question(evaluation, floor)
        return self.answer(pack, question)

    def answer(self, pack: Pack, question: str) -> dict[str, float]:
        """The probability of each label for the text of a question."""
        key = resident_key(pack.info.sha256, self._adapter)
        return self._engine.score(key, question, NEVER_NS).probabilities

    def unload(self) -> None:
        for pack in self.packs.values():
            self._engine.unload(resident_key(pack.info.sha256, self._adapter))


def open_engine(config: Config, packs: int, threads: int = 0) -> LlamaEngine:
    """The model of the settings, with room for so many packs; with 0 threads, one for each core.

    Raises CatalogError, EngineError.
    """
    model = catalog.resolve(config.model, config.models_dir)
    return LlamaEngine(
        model.path,
        name=model.name,
        sha256=model.sha256,
        context_tokens=config.context_tokens,
        packs=packs,
        explanations=1,
        threads=threads,
        states_dir=config.state_dir / "prefix-states",
    )


def best(probabilities: Mapping[str, float]) -> str:
    """The likeliest label."""
    return max(probabilities, key=lambda label: probabilities[label])


def balanced(pairs: Sequence[tuple[str, str]]) -> float:
    """The mean over the right labels of the share answered right; pairs of (right, answer)."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for right, answer in pairs:
        groups[right].append(right == answer)
    return sum(sum(group) / len(group) for group in groups.values()) / len(groups)


def interval(pairs: Sequence[tuple[str, str]]) -> tuple[float, float]:
    """A 95 % percentile bootstrap interval of balanced accuracy, resampled within each right label."""
    groups: dict[str, list[float]] = defaultdict(list)
    for right, answer in pairs:
        groups[right].append(float(right == answer))
    varying = [group for group in groups.values() if len(set(group)) > 1]
    constant = sum(group[0] for group in groups.values() if len(set(group)) == 1)
    if not varying:
        return (balanced(pairs),) * 2
    limits = bootstrap(
        varying,
        lambda *samples, axis: (sum(sample.mean(axis=axis) for sample in samples) + constant) / len(groups),
        n_resamples=RESAMPLES,
        method="percentile",
        rng=1,
    ).confidence_interval
    return float(limits.low), float(limits.high)


def figures_of(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Accuracy, balanced accuracy and its interval; pairs of (right, answer)."""
    low, high = interval(pairs)
    return {
        "cases": len(pairs),
        "accuracy": sum(right == answer for right, answer in pairs) / len(pairs),
        "balanced": balanced(pairs),
        "low": low,
        "high": high,
    }


def suites(packs: Mapping[str, Pack], trained: Path) -> tuple[list[tuple[Case, str, str]], list[str]]:
    """Every scenario of the shipped suites with one right outcome: the case, its difficulty, its id.

    A scenario that is too similar to a case in the file `trained` is no evidence. It is left out, and listed
    in the second value.
    """
    scenarios: list[tuple[Case, str, str]] = []
    given_away: list[str] = []
    for path in suite_files.available(data_path("scenarios")):
        suite = suite_files.load(path)
        known = [
            (str(number), msgspec.convert(case.evaluation, Evaluation))
            for number, case in enumerate(dataset.read(trained, (suite.pack,)))
        ]
        leaked = {leak.scenario for leak in leaks.among(suite.scenarios, known)}
        given_away += [f"{suite.name} {id}" for id in sorted(leaked)]
        for scenario in suite.scenarios:
            if scenario.id in leaked:
                continue
            if scenario.expect.outcome is None or scenario.skip or suite.pack not in packs:
                continue
            evaluation = msgspec.to_builtins(scenario.evaluation())
            case = Case(pack=suite.pack, evaluation=evaluation, outcome=scenario.expect.outcome, at=AT)
            scenarios.append((case, scenario.difficulty, scenario.id))
    return scenarios, given_away


def quality(judged: Sequence[calibration.Judged]) -> dict[str, float]:
    """Expected calibration error and Brier score."""
    scores = calibration.quality(judged)
    return {"ece": scores.ece, "brier": scores.brier, "cases": scores.count}


def calibrated(judged: Sequence[calibration.Judged]) -> dict[str, Any]:
    """Quality before and after calibration: fitted on one half of the cases, measured on the other."""
    seen, unseen = judged[::2], judged[1::2]
    fitted = calibration.fit(seen, pack_sha256="0" * 64, model_sha256="0" * 64)
    after = [(calibration.scaled(raw, fitted.temperature), right) for raw, right in unseen]
    return {"temperature": fitted.temperature, "before": quality(unseen), "after": quality(after)}


def by_need(judged: Iterable[tuple[str, str, str]]) -> dict[str, list[int]]:
    """Counts of (right, answer, floor), each as [right answers, cases].

    `read`: text asks for more than the rules. `stands`: the rules are right.
    """
    counts = {"read": [0, 0], "stands": [0, 0]}
    for right, answer, floor in judged:
        count = counts["stands" if right == floor else "read"]
        count[0] += right == answer
        count[1] += 1
    return counts


def one_fact_pairs(judge: Judge, count: int, seed: int) -> dict[str, Any]:
    """The share of one-fact pairs with both sides answered right, and counts by pack and fact.

    At least `count` pairs of each pack.
    """
    results: dict[str, dict[str, list[bool]]] = {}
    for name in judge.packs:
        domain = DOMAINS[name]
        by_fact: dict[str, list[bool]] = defaultdict(list)
        chance = Chance(seed)
        while sum(map(len, by_fact.values())) < count:
            for fact, loose, strict in islice(domain.pairs(chance), count):
                sides = [case_of(side, "pair") for side in (loose, strict)]
                by_fact[fact].append(all(best(judge.probabilities(side)) == side.outcome for side in sides))
        results[name] = by_fact
    both_right = [right for by_fact in results.values() for group in by_fact.values() for right in group]
    return {
        "pairs": len(both_right),
        "both_right": sum(both_right) / len(both_right) if both_right else None,
        "by_pack": {
            name: {fact: [sum(group), len(group)] for fact, group in sorted(by_fact.items())}
            for name, by_fact in results.items()
        },
    }


def measure(
    config: Config, adapter: Adapter, path: Path, count: int, seed: int, console: Console
) -> dict[str, Any]:
    """All figures of the adapter in the file `path`, as they are written to JSON. Takes minutes.

    `count` and `seed` are those of the generated cases, in each of the two parts `templates` and `kinds`.
    """
    packs = judged_packs()
    engine = open_engine(config, len(packs))

    def floor_of(case: Case) -> Floor:
        return packs[case.pack].book.apply(msgspec.convert(case.evaluation, Evaluation), case.at)

    def tracked(cases: Sequence[T], what: str) -> Iterable[T]:
        return track(cases, what, console=console, transient=True)

    scenarios, given_away = suites(packs, path.with_suffix(".cases.jsonl.gz"))
    held_out: dict[Literal["templates", "kinds"], list[Case]] = {
        "templates": _generated(packs, count, seed, "templates"),
        "kinds": _generated(packs, count, seed, "kinds"),
    }
    by_hand = [case for name in packs for case in written(name, "held")]
    majority = {
        name: Counter(case.outcome for case, _, _ in scenarios if case.pack == name).most_common(1)[0][0]
        for name in packs
    }

    base = Judge(engine, packs, None)
    answers: dict[str, list[str]] = {
        "base model": [
            best(base.probabilities(case)) for case, _, _ in tracked(scenarios, "base model on the suites")
        ]
    }
    base.unload()

    engine.adopt(adapter, path)
    judge = Judge(engine, packs, adapter)
    probabilities = [judge.probabilities(case) for case, _, _ in tracked(scenarios, "adapter on the suites")]
    answers["adapter"] = [best(row) for row in probabilities]
    answers["adapter, floor not shown"] = [
        best(judge.probabilities(case, floor_shown=False))
        for case, _, _ in tracked(scenarios, "adapter on the suites, floor not shown")
    ]
    answers["majority class"] = [majority[case.pack] for case, _, _ in scenarios]
    answers["rules only"] = [floor_of(case).outcome for case, _, _ in scenarios]
    answers["adapter with rules"] = [
        packs[case.pack].book.stricter(floor, answer)
        for (case, _, _), floor, answer in zip(
            scenarios, answers["rules only"], answers["adapter"], strict=True
        )
    ]
    result: dict[str, Any] = {
        "model": engine.model.name,
        "model_sha256": engine.model.sha256,
        "adapter": adapter.name,
        "adapter_sha256": adapter.sha256,
        "packs": {name: pack.info.sha256 for name, pack in packs.items()},
        "suites_commit": _last_commit("scenarios"),
        "given_away": given_away,
        **_suite_figures(list(packs), scenarios, answers),
    }
    judged = [(row, case.outcome) for row, (case, _, _) in zip(probabilities, scenarios, strict=True)]
    result["suites_quality"] = quality(judged)
    for part, cases in held_out.items():
        rows = [judge.probabilities(case) for case in tracked(cases, f"held-out {part}")]
        result[part] = _part_figures(cases, rows, [floor_of(case).outcome for case in cases])
    if by_hand:
        labels = [best(judge.probabilities(case)) for case in tracked(by_hand, "written, held out")]
        result["written"] = _written_figures(by_hand, labels, [floor_of(case).outcome for case in by_hand])
    result["pairs"] = one_fact_pairs(judge, 30, seed)
    engine.close()
    return result


def _generated(
    packs: Mapping[str, Pack], count: int, seed: int, part: Literal["templates", "kinds"]
) -> list[Case]:
    return [case for name in packs for case in generated(name, count // len(packs), seed, part)]


def _suite_figures(
    packs: Sequence[str], scenarios: Sequence[tuple[Case, str, str]], answers: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Figures on the suites by judge, pack and difficulty; the adapter's confusions and wrong answers."""
    by_judge: dict[str, Any] = {}
    by_difficulty: dict[str, Any] = {}
    for name, labels in answers.items():
        pairs = [(case.outcome, label) for (case, _, _), label in zip(scenarios, labels, strict=True)]
        by_pack = {
            pack: figures_of(
                [pair for pair, (case, _, _) in zip(pairs, scenarios, strict=True) if case.pack == pack]
            )
            for pack in packs
        }
        mean = sum(figures["balanced"] for figures in by_pack.values()) / len(by_pack)
        right = sum(right == label for right, label in pairs)
        by_pack["all"] = {"cases": len(pairs), "accuracy": right / len(pairs), "balanced": mean}
        by_judge[name] = by_pack
        by_difficulty[name] = {
            level: figures_of(
                [pair for pair, (_, other, _) in zip(pairs, scenarios, strict=True) if other == level]
            )
            for level in sorted({level for _, level, _ in scenarios})
        }
    confusion: dict[str, Any] = {}
    wrong: list[list[str]] = []
    for pack in packs:
        table: dict[str, Counter[str]] = defaultdict(Counter)
        for (case, _, id), label, floor in zip(
            scenarios, answers["adapter"], answers["rules only"], strict=True
        ):
            if case.pack == pack:
                table[case.outcome][label] += 1
                if case.outcome != label:
                    wrong.append([pack, id, case.outcome, label, floor])
        confusion[pack] = {right: dict(row) for right, row in sorted(table.items())}
    return {"suites": by_judge, "difficulty": by_difficulty, "confusion": confusion, "wrong": wrong}


def _part_figures(
    cases: Sequence[Case], rows: Sequence[dict[str, float]], floors: Sequence[str]
) -> dict[str, Any]:
    """Figures on generated cases: `rows` are the adapter's probabilities, `floors` what the rules ask."""
    pairs_of: dict[str, list[tuple[str, str]]] = defaultdict(list)
    kinds: dict[str, list[bool]] = defaultdict(list)
    for case, row in zip(cases, rows, strict=True):
        pairs_of[case.pack].append((case.outcome, best(row)))
        kinds[f"{case.pack}: {case.group.partition('; ')[2]}"].append(best(row) == case.outcome)
    return {
        "cases": len(cases),
        "balanced": sum(map(balanced, pairs_of.values())) / len(pairs_of),
        "accuracy": sum(right == label for pairs in pairs_of.values() for right, label in pairs) / len(cases),
        "rules_only_accuracy": _share_right(cases, floors),
        "by_need": by_need(
            (case.outcome, best(row), floor) for case, row, floor in zip(cases, rows, floors, strict=True)
        ),
        "by_pack": {name: figures_of(pairs) for name, pairs in pairs_of.items()},
        "by_kind": {kind: [sum(group), len(group)] for kind, group in sorted(kinds.items())},
        "quality": calibrated([(row, case.outcome) for case, row in zip(cases, rows, strict=True)]),
    }


def _written_figures(cases: Sequence[Case], labels: Sequence[str], floors: Sequence[str]) -> dict[str, Any]:
    """Figures on written cases: `labels` are the adapter's answers, `floors` the outcomes of the rules."""
    pairs_of: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for case, label in zip(cases, labels, strict=True):
        pairs_of[case.pack].append((case.outcome, label))
    return {
        "cases": len(cases),
        "accuracy": _share_right(cases, labels),
        "rules_only_accuracy": _share_right(cases, floors),
        "by_need": by_need(
            (case.outcome, label, floor) for case, label, floor in zip(cases, labels, floors, strict=True)
        ),
        "by_pack": {name: figures_of(pairs) for name, pairs in pairs_of.items()},
    }


def _share_right(cases: Sequence[Case], labels: Sequence[str]) -> float:
    return sum(case.outcome == label for case, label in zip(cases, labels, strict=True)) / len(cases)


def _last_commit(folder: str) -> str:
    """The last commit that changed a folder of this checkout."""
    command = ["git", "log", "-1", "--format=%h", "--", folder]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def show(figures: Mapping[str, Any], console: Console) -> None:
    """Print the figures in short."""
    names = (*figures["packs"], "all")
    table = Table("balanced accuracy", *(name[:10] for name in names), box=None)
    for judge, by_pack in figures["suites"].items():
        table.add_row(judge, *(f"{by_pack[name]['balanced']:.2f}" for name in names))
    console.print(table)
    for part in ("templates", "kinds"):
        held_out = figures[part]
        before, after = held_out["quality"]["before"], held_out["quality"]["after"]
        console.print(
            f"held-out {part}: {held_out['cases']} cases, balanced {held_out['balanced']:.3f}; accuracy "
            f"{held_out['accuracy']:.3f} (rules only {held_out['rules_only_accuracy']:.3f}); ECE "
            f"{before['ece']:.3f} -> {after['ece']:.3f}, Brier {before['brier']:.3f} -> {after['brier']:.3f}"
        )
    if "written" in figures:
        by_hand = figures["written"]
        console.print(
            f"written, held out: {by_hand['cases']} cases, accuracy {by_hand['accuracy']:.3f} "
            f"(rules only {by_hand['rules_only_accuracy']:.3f})"
        )
    pairs = figures["pairs"]
    if pairs["pairs"]:
        console.print(f"one-fact pairs: {pairs['pairs']}, both right {pairs['both_right']:.3f}")


def card(training: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    """The model card in Markdown, from the adapter's JSON of its training and from its figures."""
    template = Path(__file__).with_name("adapter_card.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701  Markdown
    return environment.from_string(template).render(
        made=training,
        figures=figures,
        names=[*figures["packs"], "all"],
        best=max(training["curve"], key=lambda point: (point["held_out_accuracy"], -point["held_out_loss"])),
    )
