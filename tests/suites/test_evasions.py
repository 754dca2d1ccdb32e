"""Evasions: the spellings of a name, and that none of them gets a request a looser answer from the rules."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from thor_policy.config import data_path
from thor_policy.core.requests import Action, Entity, Evaluation
from thor_policy.policy import pack_files
from thor_policy.policy.pack import Manifest, Outcome, Pack
from thor_policy.policy.rule_specs import Rule
from thor_policy.policy.vocabulary import Vocabulary
from thor_policy.suites import invariance, suite_files
from thor_policy.suites.evasions import Evasions, spellings
from thor_policy.suites.invariance import Variant, VariantComparison, figures

LANGUAGES = invariance.material(data_path("scenarios") / invariance.MATERIAL_DIR).languages
AT = 1_767_279_600.0
ACTIONS = Vocabulary(names={"file.read": "read", "file.delete": "removal"}, unknown="review")
REMOVES = Rule(id="removes", when='kind("action.name") in ["removal", ""]', outcome="deny", because="Never.")
READS = Rule(
    id="reads", when='action.name != "file.delete"', outcome="allow", final=True, because="It reads."
)

each_pack = pytest.mark.parametrize("name", pack_files.available(data_path("prompts")))


def pack_of(*rules: Rule, **members: Any) -> Pack:
    manifest = Manifest(
        name="files",
        version="1",
        description="Files.",
        outcomes=tuple(Outcome(label=label, obligations=()) for label in ("allow", "review", "deny")),
        model="never",
        default="deny",
        **members,
    )
    return Pack(
        path=data_path("prompts"),
        manifest=manifest,
        clauses={},
        rules=rules,
        system="",
        examples=(),
        sha256="",
    )


def tried(pack: Pack, name: str = "file.delete", **properties: Any) -> list[VariantComparison]:
    evaluation = Evaluation(
        subject=Entity(type="user", id="alice", properties=properties),
        action=Action(name=name),
        resource=Entity(type="file", id="plan"),
    )
    evasions = Evasions(pack, LANGUAGES, AT)
    return [evasions.compare(variant) for variant in evasions.of("Q1", evaluation)]


@pytest.mark.parametrize("name", ["file.delete", "delete", "grant-role", "buy", "Admin", "открыть", "url"])
def test_a_name_has_at_least_25_other_spellings_each_once(name: str) -> None:
    texts = [spelling.text for spelling in spellings(name, LANGUAGES)]
    assert len(texts) == len(set(texts)) >= 25
    assert name not in texts


def test_spellings_cover_letters_marks_case_blanks_separators_typos_encodings_and_languages() -> None:
    names = ("file", "file.delete")
    texts = {each.text: each.kind for name in names for each in spellings(name, LANGUAGES)}
    expected = {
        "f\u0456le.delete": "scripts",
        "ｆｉｌｅ．ｄｅｌｅｔｅ": "scripts",
        "\U0001d41f\U0001d422\U0001d425\U0001d41e": "scripts",
        "file.\u200ddelete": "unseen",
        "file.\u034fdelete": "unseen",
        "file.\u0338delete": "marks",
        "FILE.DELETE": "case",
        "file.delete ": "blanks",
        "file_delete": "separators",
        "fileDelete": "separators",
        "filedelete": "separators",
        "file.elete": "typos",
        "%66ile.delete": "encodings",
        "&#102;ile.delete": "encodings",
        "\\u0066ile.delete": "encodings",
        "ZmlsZS5kZWxldGU=": "encodings",
        "datei.löschen": "languages",
        "文件.删除": "languages",
    }  # fmt: skip
    assert {text: texts.get(text) for text in expected} == expected


def test_every_word_of_the_table_has_five_languages() -> None:
    assert {len(texts) for texts in LANGUAGES.values()} == {5}


def test_with_a_vocabulary_no_spelling_of_a_denied_name_gets_a_looser_answer() -> None:
    comparisons = tried(pack_of(REMOVES, READS, vocabulary={"action.name": ACTIONS}))
    assert len(comparisons) > 25
    assert [comparison.variant.text for comparison in comparisons if comparison.failed] == []


def test_without_a_vocabulary_spellings_get_looser_answers_and_final_allows() -> None:
    rule = Rule(id="removes", when='action.name == "file.delete"', outcome="deny", because="Never.")
    all_of_them, *classes = figures(tried(pack_of(rule, READS)))
    assert all_of_them.name == "evasions"
    assert {figure.name for figure in classes} >= {"evasions: typos", "evasions: case", "evasions: languages"}
    assert all_of_them.loosened_by_rules >= all_of_them.finally_allowed > 25


@pytest.mark.parametrize(
    ("when", "places"),
    [
        ('mentions(action.name, "removals")', {"action.name"}),
        ('given("subject.properties.role", "") == "boss"', {"subject.properties.role"}),
        ('role in ["boss", "chief"]', {"subject.properties.role"}),
        ('"boss" == role.lowerAscii()', {"subject.properties.role"}),
        ('given("subject.properties.team", "") in ["web", "data"]', {"subject.properties.team"}),
        ('given("subject.properties.team", "") != "ops"', set()),
        ('subject.properties.note.contains("old")', set()),
        ('kind("resource.type") == "plain"', {"resource.type"}),
        ("true", set()),
    ],
)
def test_the_names_that_a_rule_looks_at_are_tried_and_free_text_is_not(when: str, places: set[str]) -> None:
    pack = pack_of(
        Rule(id="r", when=when, outcome="review", because="Look."),
        words={"removals": ("delete",)},
        facts={"role": 'given("subject.properties.role", "")'},
        vocabulary={"resource.type": Vocabulary(names={"file": "plain"})},
    )
    comparisons = tried(pack, role="boss", team="web", note="It is old.")
    assert {comparison.variant.place for comparison in comparisons} == places


def test_a_rule_that_no_question_sets_off_is_untried() -> None:
    never = Rule(id="never", when="false", outcome="deny", because="Never.")
    evasions = Evasions(pack_of(REMOVES, READS, never, vocabulary={"action.name": ACTIONS}), LANGUAGES, AT)
    entity = Entity(type="user", id="alice")
    assert (
        list(evasions.of("Q1", Evaluation(subject=entity, action=Action(name="file.read"), resource=entity)))
        == []
    )
    assert evasions.untried == {"removes", "never"}


@cache
def shipped(name: str) -> tuple[Evasions, tuple[Variant, ...]]:
    """A shipped pack's spellings, over its suite and its examples."""
    pack = pack_files.load(pack_files.find(name, data_path("prompts")))
    evasions = Evasions(pack, LANGUAGES, AT)
    suite = suite_files.load(data_path("scenarios") / f"{name}.yaml")
    questions = {scenario.id: scenario.evaluation() for scenario in suite.scenarios}
    questions |= {example.id: example.evaluation for example in pack.examples}
    variants = [variant for id, question in questions.items() for variant in evasions.of(id, question)]
    return evasions, tuple(variants)


def failures(name: str, step: int) -> tuple[int, int]:
    """Of every `step`th spelling of a pack: how many get a looser answer, and how many a final allow."""
    evasions, variants = shipped(name)
    comparisons = [evasions.compare(variant) for variant in variants[::step]]
    return sum(each.failed for each in comparisons), sum(each.finally_allowed for each in comparisons)


@each_pack
def test_no_spelling_of_a_sample_gets_a_looser_answer_from_a_shipped_pack(name: str) -> None:
    assert failures(name, step=7) == (0, 0)


@pytest.mark.soak
@each_pack
def test_no_spelling_at_all_gets_a_looser_answer_from_a_shipped_pack(name: str) -> None:
    assert failures(name, step=1) == (0, 0)
