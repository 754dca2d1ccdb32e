"""Export: which corrections count, the files they become, the split, and masked values."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from sqlite_utils.utils import Format, rows_from_file

from tests.build import MODEL, NOON, by_model, by_rule, erasing, record, sent
from tests.tasks import lift
from thor_policy.cli.main import cli
from thor_policy.core import records
from thor_policy.core.decisions import Adapter, Decision, Explanation, Floor
from thor_policy.core.errors import ExportError
from thor_policy.core.requests import Action, Entity, Evaluation, Json
from thor_policy.journal import events
from thor_policy.journal.events import MASK
from thor_policy.journal.reader import Reader
from thor_policy.learning import export, similarity
from thor_policy.learning.export import FORMATS, Gathered
from thor_policy.policy import pack_files, yaml_text
from thor_policy.policy.lint import lint_pack
from thor_policy.policy.pack import Example, Pack
from thor_policy.policy.rule_specs import Rule

MANIFEST = """
name: small
version: "1"
description: Three outcomes, one rule.
outcomes: [{label: allow}, {label: require_mfa}, {label: deny}]
classifications: [routine, odd]
fields:
  - {name: who, value: subject.id}
  - {name: does, value: action.name}
  - {name: details, value: context.details}
risk: '"low"'
"""
RULES = '- {id: banned, when: action.name == "banned", outcome: deny, clause: R1, because: It is banned.}\n'
EXAMPLE = """
- {id: X1, evaluation: {subject: {type: user, id: a}, action: {name: look}, resource: {type: doc, id: d}},
   outcome: allow, classification: routine, risk: low, clauses: [R1], reasoning: Fine.}
"""
WORDS = ("amber", "basil", "cedar", "delta", "ember", "fjord")


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    texts = {
        "pack.yaml": MANIFEST,
        "rules.yaml": RULES,
        "examples.yaml": EXAMPLE,
        "clauses.yaml": "R1: One.\nR2: Two.\n",
        "system.md": "Decide.\n",
    }
    (tmp_path / "small").mkdir()
    for name, text in texts.items():
        (tmp_path / "small" / name).write_text(text)
    return pack_files.load(tmp_path / "small")


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "policy_decisions.db"


def decided(pack: Pack, number: int, **changes: Any) -> Decision:
    """A decision with an explanation; its question shares no words with those of other numbers."""
    details = " ".join(f"{word}{number}" for word in WORDS)
    fields = {
        "evaluation": Evaluation(
            subject=Entity(type="user" if number % 3 else "service", id=f"u{number}"),
            action=Action(name="look"),
            resource=Entity(type="doc", id="d"),
            context={"details": details},
        ),
        "pack": pack.info,
        "outcome": "allow",
        "allow": True,
        "label": "allow",
        "at": NOON + number,
        "floor": Floor(outcome="allow", final=False, risk="low"),
    }
    return by_model(**fields | changes)


def explained(decision: Decision, outcome: str | None = None) -> events.Event:
    label = outcome or decision.outcome
    explanation = Explanation(
        classification="routine",
        clauses=("R1",),
        reasoning="It looks fine.",
        text=f" {label}\nclass: routine\nclauses: R1\nbecause: It looks fine.",
    )
    return events.explanation_event(decision.id, explanation, decision.at + 1)


def review(
    decision: Decision, outcome: str | None = "deny", reasoning: str | None = "By R2.", **more: Any
) -> Any:
    fields = {"reviewer": "kim", "verdict": "correct_both", "decision": outcome, "reasoning": reasoning}
    return sent(records.Review(decision_id=decision.id, **fields | more), at=decision.at + 2)


def corrected(
    pack: Pack, count: int, outcomes: tuple[str, ...] = ("deny", "require_mfa"), **changes: Any
) -> list[Any]:
    """`count` corrected decisions with explanations."""
    what: list[Any] = []
    for number in range(count):
        decision = decided(pack, number, **changes)
        what += [decision, explained(decision), review(decision, outcomes[number % len(outcomes)])]
    return what


def test_a_correction_of_a_decision_that_an_approval_lifted_is_not_exported(
    pack: Pack, journal: Path
) -> None:
    case = decided(pack, 1)
    _, allowed = lift(journal, evaluation=case.evaluation, pack=pack.info, label="allow", at=case.at)
    record(journal, explained(allowed), review(allowed))
    left = gathered(journal, pack)
    assert (left.corrections, left.changes, left.left_out) == ((), (), {"lifted by an approval": 1})


def gathered(journal: Path, pack: Pack) -> Gathered:
    with Reader(journal) as reader:
        return export.gather(reader, pack)


def written(journal: Path, pack: Pack, to: Path, **more: Any) -> export.Exported:
    with Reader(journal) as reader:
        return export.export(reader, pack, to, **{"formats": FORMATS, "at": "2026-07-02"} | more)


def lines_of(path: Path) -> list[Json]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class TestWhichCorrectionsCount:
    def test_a_correction_becomes_a_question_and_an_answer_of_the_pack(
        self, pack: Pack, journal: Path
    ) -> None:
        decision = decided(pack, 1)
        record(journal, decision, explained(decision), review(decision, reasoning="Not\n  by R2."))
        (correction,) = gathered(journal, pack).corrections
        assert correction.question == pack.question(decision.evaluation, {})
        assert correction.chosen == "outcome: deny\nclass: routine\nclauses: R2\nbecause: Not by R2."
        assert correction.rejected == "outcome: allow\nclass: routine\nclauses: R1\nbecause: It looks fine."
        assert correction.provenance == export.Provenance(
            decision_id=decision.id,
            decided_at="2026-07-01T12:00:01.000000Z",
            reviewer="kim",
            reviewed_at="2026-07-01T12:00:03.000000Z",
            verdict="correct_both",
            pack="small 1",
            pack_sha256=pack.info.sha256,
            model=MODEL.name,
            model_sha256=MODEL.sha256,
            adapter=None,
            rendered_by=pack.info.sha256,
            masked=(),
        )

    def test_provenance_names_the_adapter_that_decided(
        self, pack: Pack, journal: Path, tmp_path: Path
    ) -> None:
        tuned = Adapter(name="tuned", sha256="c" * 64, scale=0.5)
        record(journal, *corrected(pack, 50, model=replace(MODEL, adapter=tuned)))
        written(journal, pack, tmp_path / "out")
        for line in lines_of(tmp_path / "out" / "chat.train.jsonl"):
            assert line["provenance"]["adapter"] == {
                "name": "tuned",
                "sha256": "c" * 64,
                "scale": 0.5,
                "rendering": "full",
            }
        examples = (tmp_path / "out" / "examples.yaml").read_text()
        assert f"{MODEL.sha256} under the adapter {'c' * 64} at scale 0.5" in examples

    def test_without_a_reason_or_a_class_the_answer_is_only_the_outcome(
        self, pack: Pack, journal: Path
    ) -> None:
        unreasoned, unexplained = decided(pack, 1), decided(pack, 2)
        record(
            journal,
            *(unreasoned, explained(unreasoned), review(unreasoned, reasoning=None)),
            *(unexplained, review(unexplained)),
        )
        for correction in gathered(journal, pack).corrections:
            assert (correction.chosen, correction.rejected) == ("outcome: deny", "outcome: allow")

    def test_a_corrected_reason_keeps_the_outcome(self, pack: Pack, journal: Path) -> None:
        decision = decided(pack, 1)
        record(
            journal,
            *(decision, explained(decision)),
            review(decision, None, "Reading is open.", verdict="correct_reasoning"),
        )
        (correction,) = gathered(journal, pack).corrections
        assert correction.chosen == "outcome: allow\nclass: routine\nclauses: R1\nbecause: Reading is open."
        assert correction.rejected is not None

    def test_the_newest_review_counts(self, pack: Pack, journal: Path) -> None:
        twice, taken_back = decided(pack, 1), decided(pack, 2)
        record(
            journal,
            *(twice, review(twice, "deny"), review(twice, "require_mfa")),
            *(taken_back, review(taken_back), review(taken_back, None, None, verdict="accept")),
        )
        corrections = gathered(journal, pack)
        assert [correction.outcome for correction in corrections.corrections] == ["require_mfa"]
        assert corrections.left_out == {"reviewed again later": 2}

    def test_a_decision_by_rule_or_an_abstention_has_no_rejected_answer(
        self, pack: Pack, journal: Path
    ) -> None:
        by_rule_ = by_rule(pack=pack.info, evaluation=decided(pack, 1).evaluation)
        unsure = decided(pack, 2, outcome="require_mfa", allow=False)
        record(
            journal, by_rule_, review(by_rule_, "allow"), unsure, explained(unsure), review(unsure, "allow")
        )
        assert [correction.rejected for correction in gathered(journal, pack).corrections] == [None, None]

    def test_corrections_that_are_left_out_are_counted_by_reason(self, pack: Pack, journal: Path) -> None:
        ordinary = [decided(pack, number) for number in range(3)]
        elsewhere = replace(decided(pack, 3), pack=replace(pack.info, name="other"))
        banned = decided(pack, 4, evaluation=replace(ordinary[0].evaluation, action=Action(name="banned")))
        long = decided(pack, 5, evaluation=replace(ordinary[0].evaluation, context={"details": "x" * 3000}))
        reported = sent(records.DecisionReport(agent="trader", outcome="buy"), record_id="r-1")
        record(
            journal,
            *ordinary,
            *(elsewhere, banned, long, reported),
            review(ordinary[0], "unheard_of"),
            review(ordinary[1], None),
            review(ordinary[2]),
            *(review(elsewhere), review(banned, "allow"), review(long)),
            sent(records.Review(decision_id="r-1", reviewer="kim", verdict="correct_both", decision="sell")),
        )
        with Reader(journal) as reader:
            seq = reader.trace(ordinary[2].id)["event"]["seq"]
        record(journal, erasing(journal, seq))
        corrections = gathered(journal, pack)
        assert corrections.corrections == ()
        assert corrections.left_out == dict.fromkeys(
            [
                *("the pack has no such outcome", "the review names no decision", "erased"),
                *("of another pack", "looser than the rules allow", "too long to be asked"),
                "reported, not decided here",
            ],
            1,
        )

    def test_masked_values_stay_masked_and_provenance_names_them(self, pack: Pack, journal: Path) -> None:
        decision = decided(pack, 1)
        record(journal, decision, review(decision), masked=("/context/details",))
        (correction,) = gathered(journal, pack).corrections
        assert correction.provenance.masked == ("/context/details",)
        assert f'details: "{MASK}"' in correction.question


class TestFiles:
    @pytest.fixture
    def folder(self, pack: Pack, journal: Path, tmp_path: Path) -> Path:
        record(journal, *corrected(pack, 60))
        written(journal, pack, tmp_path / "out")
        return tmp_path / "out"

    def test_each_file_is_written_with_its_number_of_lines(self, folder: Path) -> None:
        exported = json.loads((folder / "report.json").read_text())["export"]
        assert (exported["corrections"], exported["train"], exported["test"]) == (60, 48, 12)
        for name in ("chat", "prompt-completion", "preference", "alpaca"):
            assert (
                len(lines_of(folder / f"{name}.train.jsonl"))
                == exported["files"][f"{name}.train.jsonl"]
                == 48
            )
        assert len(lines_of(folder / "unpaired.test.jsonl")) == 24
        assert folder.stat().st_mode & 0o077 == 0

    @pytest.mark.parametrize("form", [form for form in FORMATS if form != "few-shot"])
    def test_every_line_of_a_file_has_the_same_shape(self, folder: Path, form: str) -> None:
        def shape(value: Json) -> Json:
            if isinstance(value, dict):
                return {name: shape(item) for name, item in value.items()}
            return [shape(value[0])] if isinstance(value, list) and value else type(value).__name__

        for side in ("train", "test"):
            lines = lines_of(folder / f"{form}.{side}.jsonl")
            assert all(shape(line) == shape(lines[0]) for line in lines)
            assert all(line["provenance"]["decision_id"] for line in lines)
            with (folder / f"{form}.{side}.jsonl").open("rb") as file:  # a reader that is not ours
                rows, _ = rows_from_file(file, format=Format.NL)
                assert list(rows) == lines

    def test_lines_have_the_fields_that_trainers_read(self, folder: Path, pack: Pack) -> None:
        def roles(turns: Json) -> list[str]:
            return [turn["role"] for turn in turns]

        expected = ["system", *["user", "assistant"] * len(pack.examples), "user"]
        (chat, completion, preference, unpaired, alpaca) = (
            lines_of(folder / f"{form}.train.jsonl")[0] for form in FORMATS if form != "few-shot"
        )
        assert roles(chat["messages"]) == [*expected, "assistant"]
        assert roles(completion["prompt"]) == roles(preference["prompt"]) == expected
        assert completion["completion"] == chat["messages"][-1:] == preference["chosen"]
        assert preference["rejected"][0]["content"].startswith("outcome: allow")
        assert (unpaired["completion"], unpaired["label"]) == (preference["chosen"], True)
        assert (alpaca["input"], alpaca["output"]) == (
            chat["messages"][-2]["content"],
            chat["messages"][-1]["content"],
        )
        turns = [{"role": turn.role, "content": turn.text} for turn in pack.prefix.turns]
        assert chat["messages"][: len(turns)] == turns
        assert alpaca["instruction"] == turns[0]["content"]

    def test_few_shot_examples_can_be_pasted_into_the_pack(self, folder: Path, pack: Pack) -> None:
        pasted = pack.path / "examples.yaml"
        pasted.write_text(pasted.read_text() + (folder / "examples.yaml").read_text())
        loaded = pack_files.load(pack.path)
        assert [finding for finding in lint_pack(loaded) if finding.level == "error"] == []
        outcomes = [example.outcome for example in loaded.examples[len(pack.examples) :]]
        assert outcomes == ["require_mfa", "deny"] * 4
        assert "by 'kim'" in (folder / "examples.yaml").read_text()

    def test_few_shot_examples_are_not_held_out(self, folder: Path) -> None:
        examples = yaml_text.parse((folder / "examples.yaml").read_text(), Any, "examples.yaml")
        out = {line["provenance"]["decision_id"][-12:] for line in lines_of(folder / "chat.test.jsonl")}
        assert out.isdisjoint({example["id"].removeprefix("C-") for example in examples})

    def test_the_same_journal_gives_the_same_bytes(
        self, folder: Path, journal: Path, pack: Pack, tmp_path: Path
    ) -> None:
        written(journal, pack, tmp_path / "again")
        for path in folder.iterdir():
            assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()

    def test_one_format_can_be_exported_alone(
        self, folder: Path, journal: Path, pack: Pack, tmp_path: Path
    ) -> None:
        done = written(journal, pack, tmp_path / "one", formats=["alpaca"])
        assert set(done.files) == {"alpaca.train.jsonl", "alpaca.test.jsonl"}
        written_ = {path.name for path in (tmp_path / "one").iterdir()}
        assert written_ == {*done.files, "report.json", "report.html"}


class TestNearDuplicates:
    def test_near_duplicates_are_on_one_side_of_the_split_and_give_one_example(
        self, pack: Pack, journal: Path, tmp_path: Path
    ) -> None:
        what: list[Any] = []
        for number in range(60):
            first = decided(pack, number // 4)
            context = {"details": first.evaluation.context["details"] + f" take{number}"}
            evaluation = replace(first.evaluation, context=context)
            decision = replace(first, evaluation=evaluation, at=NOON + number)
            what += [decision, explained(decision), review(decision)]
        record(journal, *what)
        done = written(journal, pack, tmp_path / "out")
        assert (done.groups, done.largest_group) == (15, 4)
        sides = [
            [
                similarity.shingles(line["input"])
                for line in lines_of(tmp_path / "out" / f"alpaca.{side}.jsonl")
            ]
            for side in ("train", "test")
        ]
        assert [len(side) for side in sides] == [48, 12]
        assert all(similarity.alike(first, other) < export.ALIKE for first in sides[0] for other in sides[1])
        examples = yaml_text.parse((tmp_path / "out" / "examples.yaml").read_text(), Any, "examples.yaml")
        assert len({example["evaluation"]["subject"]["id"] for example in examples}) == len(examples) == 8


class TestRefused:
    def test_with_too_few_corrections_the_error_says_how_many_are_missing_and_nothing_is_written(
        self, pack: Pack, journal: Path, tmp_path: Path
    ) -> None:
        unusable = decided(pack, 99)
        record(journal, *corrected(pack, 49), unusable, review(unusable, "unheard_of"))
        with pytest.raises(ExportError, match=r"there are 49 .* needs 50, so 1 are missing.*no such outcome"):
            written(journal, pack, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_min_corrections_can_only_be_raised(self, pack: Pack, journal: Path, tmp_path: Path) -> None:
        record(journal, *corrected(pack, 55))
        with pytest.raises(ExportError, match="5 are missing"):
            written(journal, pack, tmp_path / "out", least=60)
        with pytest.raises(ExportError, match="can only be raised"):
            written(journal, pack, tmp_path / "out", least=10)

    def test_a_directory_that_is_not_empty_is_refused(
        self, pack: Pack, journal: Path, tmp_path: Path
    ) -> None:
        record(journal, *corrected(pack, 50))
        (tmp_path / "out").mkdir()
        written(journal, pack, tmp_path / "out")
        with pytest.raises(ExportError, match="not empty"):
            written(journal, pack, tmp_path / "out")


class _Tags(HTMLParser):
    """Every tag of a page, with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


class TestReport:
    @pytest.fixture
    def folder(self, pack: Pack, journal: Path, tmp_path: Path) -> Path:
        hostile = decided(pack, 70)
        subject = Entity(type="<img src=x onerror=alert(1)>", id='"><script>alert(1)</script>')
        hostile = replace(hostile, evaluation=replace(hostile.evaluation, subject=subject))
        record(journal, *corrected(pack, 60), hostile, review(hostile, "deny"))
        written(journal, pack, tmp_path / "out")
        return tmp_path / "out"

    def test_the_report_counts_outcomes_and_corrections(self, folder: Path) -> None:
        report = json.loads((folder / "report.json").read_text())
        assert report["changes"] == 61
        changes = {value: count for value, count, _ in report["distributions"]["change"]}
        assert changes == {"allow -> deny": 31, "allow -> require_mfa": 30}
        assert report["distributions"]["decided"] == [["allow", 61, 1.0]]
        by_type = {row["value"]: row["corrections"] for row in report["by"]["actor type"]}
        assert (by_type["user"], by_type["service"]) == (40, 20)
        assert report["by"]["model"][0]["value"] == MODEL.name
        assert set(report["monitoring"]) == {
            "volume and success by actor",
            "latency by model, ms",
            "confidence against outcome",
        }

    def test_the_page_runs_and_loads_nothing_whatever_a_request_says(self, folder: Path) -> None:
        text = (folder / "report.html").read_text()
        tags = _Tags(text).tags
        assert not {"script", "img", "link", "iframe", "object"} & {tag for tag, _ in tags}
        assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
        assert not [attributes for _, attributes in tags if {"src", "href"} & attributes.keys()]
        assert "&lt;img src=x onerror=alert(1)&gt;" in text
        assert "allow -&gt; deny" in text


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.text(), st.dictionaries(st.text(), JSON, max_size=3), st.text())
def test_any_example_survives_its_yaml(name: str, context: dict[str, Json], reasoning: str) -> None:
    example = Example(
        id="C-1",
        evaluation=Evaluation(
            subject=Entity(type="user", id=name, properties={"a": {}, "b": []}),
            action=Action(name=name),
            resource=Entity(type="d", id="d"),
            context=context,
        ),
        outcome="deny",
        classification="odd",
        risk="low",
        clauses=(),
        reasoning=reasoning,
        at=NOON,
    )
    text = pack_files.as_yaml([example])
    (again,) = yaml_text.parse(text, tuple[Example, ...], "here")
    assert msgspec.to_builtins(again) == msgspec.to_builtins(example)


def test_a_rule_is_written_without_default_values() -> None:
    rule = Rule(id="a", when='kind == "x"', outcome="deny", because="So.")
    assert pack_files.as_yaml([rule]) == '- id: a\n  when: kind == "x"\n  outcome: deny\n  because: So.\n'


class TestCommand:
    @pytest.fixture
    def run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
        monkeypatch.setenv("THOR_POLICY_STATE_DIR", str(tmp_path))
        return lambda *arguments: CliRunner().invoke(cli, ["export", *arguments])

    def test_export_writes_the_files_and_prints_the_counts(
        self, pack: Pack, journal: Path, tmp_path: Path, run: Callable[..., Any]
    ) -> None:
        record(journal, *corrected(pack, 50))
        result = run(str(tmp_path / "out"), "--pack", str(pack.path), "--json")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["corrections"] == 50
        assert run(str(tmp_path / "two"), "--pack", str(pack.path), "--format", "chat").exit_code == 0
        assert (tmp_path / "two" / "chat.train.jsonl").is_file()

    def test_a_refused_export_exits_with_2(
        self, pack: Pack, journal: Path, tmp_path: Path, run: Callable[..., Any]
    ) -> None:
        record(journal, *corrected(pack, 3))
        result = run(str(tmp_path / "out"), "--pack", str(pack.path))
        assert result.exit_code == 2
        assert "47 are missing" in result.stderr
        assert run(str(tmp_path / "out"), "--min-corrections", "10").exit_code == 2
