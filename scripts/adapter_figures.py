"""The second half of scripts/adapter-figures: how an adapter judges, beside what it has to be better than.

Owns the command and the figures. Invariant: nothing that is counted here took part in training; the
model's own label is its likeliest one, before any floor. One engine, asked as the daemon asks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import jinja2
import msgspec
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import bootstrap
from situations import Chance
from training_cases import DOMAINS, case_of, generated, written

from thor_policy import catalog
from thor_policy.config import Config, data_path
from thor_policy.core.decisions import Adapter, Floor, resident_key
from thor_policy.core.errors import ThorPolicyError
from thor_policy.core.requests import Evaluation
from thor_policy.engine.llama import LlamaEngine
from thor_policy.learning.training import dataset
from thor_policy.learning.training.samples import AT, Case
from thor_policy.policy import calibration, pack_files
from thor_policy.policy.pack import Pack
from thor_policy.suites import leaks, suite_files

NEVER_NS = 2**63 - 1
#: Draws of the bootstrap for an interval of balanced accuracy.
DRAWS = 2_000

#: What somebody answers to a case.
Judge = Callable[[Case], str]


class Asked:
    """One engine with the packs resident, under an adapter or none; remembers what it was asked."""

    def __init__(self, engine: LlamaEngine, loaded: Mapping[str, Pack], adapter: Adapter | None) -> None:
        self._engine, self._packs, self._adapter = engine, loaded, adapter
        for pack in loaded.values():
            engine.load(pack.brief_prefix if adapter else pack.prefix, adapter)

    def probabilities(self, case: Case, *, floor_shown: bool = True) -> dict[str, float]:
        pack, evaluation = self._packs[case.pack], msgspec.convert(case.evaluation, Evaluation)
        floor = pack.book.apply(evaluation, case.at)
        question = pack.question(evaluation, floor.facts)
        if self._adapter and floor_shown:
            question = pack.brief_question(evaluation, floor)
        key = resident_key(pack.info.sha256, self._adapter)
        return self._engine.score(key, question, NEVER_NS).probabilities

    def unload(self) -> None:
        for pack in self._packs.values():
            self._engine.unload(resident_key(pack.info.sha256, self._adapter))


def best(told: Mapping[str, float]) -> str:
    return max(told, key=lambda label: told[label])


def balanced(pairs: Sequence[tuple[str, str]]) -> float:
    """Mean over the right labels of the share that was found; pairs of (right, told)."""
    had: dict[str, list[bool]] = defaultdict(list)
    for right, told in pairs:
        had[right].append(right == told)
    return sum(sum(group) / len(group) for group in had.values()) / len(had)


def interval(pairs: Sequence[tuple[str, str]]) -> tuple[float, float]:
    """A 95 % percentile bootstrap interval of balanced accuracy, drawn within each right label."""
    groups: dict[str, list[float]] = defaultdict(list)
    for right, told in pairs:
        groups[right].append(float(right == told))
    many = [group for group in groups.values() if len(set(group)) > 1]
    fixed = sum(group[0] for group in groups.values() if len(set(group)) == 1)
    if not many:
        return (balanced(pairs),) * 2
    found = bootstrap(
        many,
        lambda *drawn, axis: (sum(one.mean(axis=axis) for one in drawn) + fixed) / len(groups),
        n_resamples=DRAWS,
        method="percentile",
        rng=1,
    ).confidence_interval
    return float(found.low), float(found.high)


def figures_of(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    low, high = interval(pairs)
    return {
        "cases": len(pairs),
        "accuracy": sum(right == told for right, told in pairs) / len(pairs),
        "balanced": balanced(pairs),
        "low": low,
        "high": high,
    }


def suites(loaded: Mapping[str, Pack], trained: Path) -> tuple[list[tuple[Case, str, str]], list[str]]:
    """Every scenario of the shipped suites with one right outcome, with its difficulty and id.

    Those that a case in the file `trained` gives away are no evidence: their ids are told apart.
    """
    found, given_away = [], []
    for path in suite_files.available(data_path("scenarios")):
        one = suite_files.load(path)
        known = [
            (str(number), msgspec.convert(case.evaluation, Evaluation))
            for number, case in enumerate(dataset.read(trained, (one.pack,)))
        ]
        leaked = {leak.scenario for leak in leaks.among(one.scenarios, known)}
        given_away += [f"{one.name} {id}" for id in sorted(leaked)]
        for scenario in one.scenarios:
            if scenario.id in leaked:
                continue
            if scenario.expect.outcome is None or scenario.skip or one.pack not in loaded:
                continue
            evaluation = msgspec.to_builtins(scenario.evaluation())
            case = Case(pack=one.pack, evaluation=evaluation, outcome=scenario.expect.outcome, at=AT)
            found.append((case, scenario.difficulty, scenario.id))
    return found, given_away


def quality(judged: Sequence[calibration.Judged]) -> dict[str, float]:
    found = calibration.quality(judged)
    return {"ece": found.ece, "brier": found.brier, "cases": found.count}


def calibrated(judged: Sequence[calibration.Judged]) -> dict[str, Any]:
    """Before and after, on the half that the fit did not see."""
    seen, unseen = judged[::2], judged[1::2]
    fitted = calibration.fit(seen, pack_sha256="0" * 64, model_sha256="0" * 64)
    after = [(calibration.scaled(told, fitted.temperature), right) for told, right in unseen]
    return {"temperature": fitted.temperature, "before": quality(unseen), "after": quality(after)}


def by_need(judged: Iterable[tuple[str, str, str]]) -> dict[str, list[int]]:
    """Of (right, told, floor): how many are found where text asks for more than the rules (`read`), and how
    many are kept where the rules are right (`stands`); each [right, of]."""
    found = {"read": [0, 0], "stands": [0, 0]}
    for right, told, floor in judged:
        one = found["stands" if right == floor else "read"]
        one[0] += right == told
        one[1] += 1
    return found


def one_fact_pairs(asked: Asked, loaded: Mapping[str, Pack], count: int, seed: int) -> dict[str, Any]:
    """Shares of pairs of which both sides are judged right, by pack and fact."""
    found: dict[str, dict[str, list[bool]]] = {}
    for name, domain in DOMAINS.items():
        by_fact: dict[str, list[bool]] = defaultdict(list)
        chance = Chance(seed)
        while sum(map(len, by_fact.values())) < count:
            for fact, loose, strict in islice(domain.pairs(chance), count):
                sides = [case_of(one, "pair") for one in (loose, strict)]
                by_fact[fact].append(all(best(asked.probabilities(one)) == one.outcome for one in sides))
        found[name] = by_fact
    every = [one for by_fact in found.values() for group in by_fact.values() for one in group]
    return {
        "pairs": len(every),
        "both_right": sum(every) / len(every) if every else None,
        "by_pack": {
            name: {fact: [sum(group), len(group)] for fact, group in sorted(by_fact.items())}
            for name, by_fact in found.items()
        },
    }


def rows_of(cases: Iterable[Case], judges: Mapping[str, Judge]) -> dict[str, list[tuple[str, str]]]:
    told: dict[str, list[tuple[str, str]]] = {name: [] for name in judges}
    for case in cases:
        for name, judge in judges.items():
            told[name].append((case.outcome, judge(case)))
    return told


def measure(
    config: Config, adapter: Adapter, path: Path, count: int, seed: int, console: Console
) -> dict[str, Any]:
    loaded = {name: pack_files.load(pack_files.find(name, data_path("prompts"))) for name in DOMAINS}
    model = catalog.resolve(config.model, config.models_dir)
    engine = LlamaEngine(
        model.path,
        name=model.name,
        sha256=model.sha256,
        context_tokens=config.context_tokens,
        packs=len(loaded),
        explanations=1,
        states_dir=config.state_dir / "prefix-states",
    )

    def floor_of(case: Case) -> Floor:
        return loaded[case.pack].book.apply(msgspec.convert(case.evaluation, Evaluation), case.at)

    frozen, given_away = suites(loaded, path.with_suffix(".cases.jsonl.gz"))
    held = {
        part: [case for name in DOMAINS for case in generated(name, count // len(DOMAINS), seed, part)]
        for part in ("templates", "kinds")
    }
    by_hand = [case for name in DOMAINS for case in written(name, "held")]
    majority = {
        name: Counter(case.outcome for case, _, _ in frozen if case.pack == name).most_common(1)[0][0]
        for name in loaded
    }

    def shown(cases: Sequence[Any], what: str) -> Iterable[Any]:
        return track(cases, what, console=console, transient=True)

    told: dict[str, dict[int, str]] = {"base model": {}}
    asked = Asked(engine, loaded, None)
    for number, (case, _, _) in enumerate(shown(frozen, "base model on the suites")):
        told["base model"][number] = best(asked.probabilities(case))
    asked.unload()

    engine.adopt(adapter, path)
    asked = Asked(engine, loaded, adapter)
    own = [asked.probabilities(case) for case, _, _ in shown(frozen, "adapter on the suites")]
    told["adapter"] = dict(enumerate(map(best, own)))
    told["adapter, floor not shown"] = {
        number: best(asked.probabilities(case, floor_shown=False))
        for number, (case, _, _) in enumerate(shown(frozen, "the same without the floor's line"))
    }
    told["majority class"] = {number: majority[case.pack] for number, (case, _, _) in enumerate(frozen)}
    told["rules only"] = {number: floor_of(case).outcome for number, (case, _, _) in enumerate(frozen)}
    told["adapter with rules"] = {
        number: loaded[case.pack].book.stricter(told["rules only"][number], told["adapter"][number])
        for number, (case, _, _) in enumerate(frozen)
    }
    result: dict[str, Any] = {
        "model": model.name,
        "model_sha256": model.sha256,
        "adapter": adapter.name,
        "adapter_sha256": adapter.sha256,
        "packs": {name: pack.info.sha256 for name, pack in loaded.items()},
        "suites_commit": _commit("scenarios"),
        "given_away": given_away,
        "suites": {},
        "difficulty": {},
        "confusion": {},
        "wrong": [],
    }
    for judge, answers in told.items():
        pairs = {number: (frozen[number][0].outcome, answer) for number, answer in answers.items()}
        by_pack = {
            name: figures_of([pairs[number] for number in pairs if frozen[number][0].pack == name])
            for name in loaded
        }
        mean = sum(one["balanced"] for one in by_pack.values()) / len(by_pack)
        right = sum(right == told for right, told in pairs.values())
        by_pack["all"] = {"cases": len(pairs), "accuracy": right / len(pairs), "balanced": mean}
        result["suites"][judge] = by_pack
        result["difficulty"][judge] = {
            level: figures_of([pairs[number] for number in pairs if frozen[number][1] == level])
            for level in sorted({level for _, level, _ in frozen})
        }
    for name in loaded:
        table: dict[str, Counter[str]] = defaultdict(Counter)
        for number, (case, _, id) in enumerate(frozen):
            if case.pack == name:
                table[case.outcome][told["adapter"][number]] += 1
                if case.outcome != told["adapter"][number]:
                    result["wrong"].append(
                        [name, id, case.outcome, told["adapter"][number], told["rules only"][number]]
                    )
        result["confusion"][name] = {right: dict(row) for right, row in sorted(table.items())}
    judged = [(told, case.outcome) for told, (case, _, _) in zip(own, frozen, strict=True)]
    result["suites_quality"] = quality(judged)

    for part, cases in held.items():
        found = [asked.probabilities(case) for case in shown(cases, f"held-out {part}")]
        pairs_of: dict[str, list[tuple[str, str]]] = defaultdict(list)
        rules: list[tuple[str, str]] = []
        kinds: dict[str, list[bool]] = defaultdict(list)
        for case, answer in zip(cases, found, strict=True):
            pairs_of[case.pack].append((case.outcome, best(answer)))
            rules.append((case.outcome, floor_of(case).outcome))
            kinds[f"{case.pack}: {case.group.partition('; ')[2]}"].append(best(answer) == case.outcome)
        result[part] = {
            "cases": len(cases),
            "balanced": sum(map(balanced, pairs_of.values())) / len(pairs_of),
            "accuracy": sum(a == b for pairs in pairs_of.values() for a, b in pairs) / len(cases),
            "rules_only_accuracy": sum(a == b for a, b in rules) / len(rules),
            "by_need": by_need(
                (case.outcome, best(answer), floor)
                for case, answer, (_, floor) in zip(cases, found, rules, strict=True)
            ),
            "by_pack": {name: figures_of(pairs) for name, pairs in pairs_of.items()},
            "by_kind": {kind: [sum(group), len(group)] for kind, group in sorted(kinds.items())},
            "quality": calibrated(
                [(answer, case.outcome) for case, answer in zip(cases, found, strict=True)]
            ),
        }
    if by_hand:
        answers = [best(asked.probabilities(case)) for case in shown(by_hand, "written, held out")]
        pairs_written = [(case.outcome, answer) for case, answer in zip(by_hand, answers, strict=True)]
        rules_right = sum(case.outcome == floor_of(case).outcome for case in by_hand)
        result["written"] = {
            "cases": len(by_hand),
            "accuracy": sum(a == b for a, b in pairs_written) / len(by_hand),
            "rules_only_accuracy": rules_right / len(by_hand),
            "by_need": by_need(
                (right, told, floor_of(case).outcome)
                for case, (right, told) in zip(by_hand, pairs_written, strict=True)
            ),
            "by_pack": {
                name: figures_of(
                    [p for p, case in zip(pairs_written, by_hand, strict=True) if case.pack == name]
                )
                for name in {case.pack for case in by_hand}
            },
        }
    result["pairs"] = one_fact_pairs(asked, loaded, 30, seed)
    engine.close()
    return result


def _commit(folder: str) -> str:
    """The last commit that changed a folder of this checkout."""
    command = ["git", "log", "-1", "--format=%h", "--", folder]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def show(found: Mapping[str, Any], console: Console) -> None:
    table = Table("balanced accuracy", *(name[:10] for name in (*found["packs"], "all")), box=None)
    for judge, by_pack in found["suites"].items():
        table.add_row(judge, *(f"{by_pack[name]['balanced']:.2f}" for name in (*found["packs"], "all")))
    console.print(table)
    for part in ("templates", "kinds"):
        one = found[part]
        before, after = one["quality"]["before"], one["quality"]["after"]
        console.print(
            f"held-out {part}: {one['cases']} cases, balanced {one['balanced']:.3f} (rules only: accuracy "
            f"{one['rules_only_accuracy']:.3f}, adapter {one['accuracy']:.3f}); ECE {before['ece']:.3f} -> "
            f"{after['ece']:.3f}, Brier {before['brier']:.3f} -> {after['brier']:.3f}"
        )
    if "written" in found:
        one = found["written"]
        console.print(
            f"written, held out: {one['cases']} cases, accuracy {one['accuracy']:.3f} "
            f"(rules only {one['rules_only_accuracy']:.3f})"
        )
    if found["pairs"]["pairs"]:
        console.print(
            f"one-fact pairs: {found['pairs']['pairs']}, both right {found['pairs']['both_right']:.3f}"
        )


def card(made: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The model card in Markdown: how it was made, what it can do beside what, and what it is not for."""
    template = Path(__file__).with_name("adapter_card.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701  Markdown
    return environment.from_string(template).render(
        made=made,
        found=found,
        names=[*found["packs"], "all"],
        best=max(made["curve"], key=lambda point: (point["held_out_accuracy"], -point["held_out_loss"])),
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("adapter", nargs="?", default="", help="a name of the catalog, or a GGUF file")
    parser.add_argument(
        "--count", type=int, default=600, help="generated situations of each of the two parts"
    )
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    parser.add_argument(
        "--card", type=Path, help="write the model card there; its JSON lies beside the adapter"
    )
    told = parser.parse_args()
    config, console = Config(), Console(stderr=True)
    try:
        name = told.adapter or catalog.companion_of(config.model) or ""
        file = catalog.resolve_adapter(name, config.models_dir)
        adapter = Adapter(name=file.name, sha256=file.sha256, rendering=file.rendering)
        found = measure(config, adapter, file.path, told.count, told.seed, console)
    except ThorPolicyError as error:
        print(f"adapter-figures: {error}", file=sys.stderr)
        return error.exit_code
    if told.out:
        told.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if told.card:
        made = json.loads(file.path.with_suffix(".json").read_text(encoding="utf-8"))
        told.card.write_text(card(made, found), encoding="utf-8")
    show(found, Console(width=100))
    return 0


if __name__ == "__main__":
    sys.exit(main())
