"""Suite files: defaults, fixtures and matrices become complete scenarios; errors name the line; schema and
loader agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.build import changed, write_pack
from thor_policy.config import data_path
from thor_policy.core.errors import SuiteError
from thor_policy.policy import yaml_text
from thor_policy.suites import suite_files
from thor_policy.suites.scenarios import Expectation, Scenario, Suite
from thor_policy.suites.suite_files import MAX_COMBINATIONS, merged

#: Everything that the format has, once.
WHOLE = """\
name: shop
pack: discount-approval
description: A shop.
defaults:
  difficulty: easy
  tags: [shop]
  uses: [open]
  max_latency_ms: 500
fixtures:
  open:
    situation: {state: {door: open, lights: "on"}, till: 1}
  seller:
    situation: {actor_id: "user:ann", actor_role: seller, state: {lights: "off"}}
  buyer:
    request:
      subject: {type: user, id: bo}
reasoning: {similarity: 0.7, needed: 0.5}
scenarios:
  - id: S1
    title: A sale
    situation: {actor_id: "user:ann", action_type: sell, resource: "good:tea", till: 2}
    expect: {outcome: allow, reasoning: [a sale]}
  - id: S2
    title: A gift
    difficulty: hard
    tags: [gift, shop]
    uses: [seller]
    situation: {action_type: give, resource: "good:tea"}
    expect: {never: allow, max_latency_ms: 20.5}
matrix:
  - id: M
    title: Who may do what
    uses: [seller]
    skip: the till is being mended
    situation: {resource: "good:tea"}
    axes:
      role:
        seller: {}
        guest: {actor_id: "user:gus", actor_role: guest}
      action:
        look: {action_type: look}
        sell: {action_type: sell}
        open_till: {action_type: open_till}
    expect:
      - when: {action: look}
        expect: {outcome: allow}
      - when: {role: seller, action: [sell]}
        expect: {one_of: [allow, deny]}
"""


@pytest.fixture
def whole(tmp_path: Path) -> Suite:
    return suite_files.load(written(tmp_path, WHOLE))


def written(folder: Path, text: str) -> Path:
    path = folder / "suite.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def by_id(loaded: Suite) -> dict[str, Scenario]:
    return {scenario.id: scenario for scenario in loaded.scenarios}


# ---------------------------------------------------------------- defaults and fixtures


def test_a_scenario_takes_the_defaults_that_it_does_not_override(whole: Suite) -> None:
    first, second = by_id(whole)["S1"], by_id(whole)["S2"]
    assert (first.difficulty, first.tags, first.expect.max_latency_ms) == ("easy", ("shop",), 500)
    assert (second.difficulty, second.tags, second.expect.max_latency_ms) == ("hard", ("shop", "gift"), 20.5)
    assert (whole.reasoning.similarity, whole.reasoning.needed) == (0.7, 0.5)


def test_a_question_overrides_its_fixtures_and_later_fixtures_earlier_ones(whole: Suite) -> None:
    assert by_id(whole)["S1"].question() == {
        "situation": {
            "actor_id": "user:ann",
            "action_type": "sell",
            "resource": "good:tea",
            "state": {"door": "open", "lights": "on"},
            "till": 2,
        }
    }
    assert by_id(whole)["S2"].question()["situation"]["state"] == {"door": "open", "lights": "off"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(st.sampled_from("abc"), json_values, max_size=3)


@given(objects, objects, objects)
def test_merging_keeps_every_overriding_value_and_is_associative(
    a: dict[str, Any], b: dict[str, Any], c: dict[str, Any]
) -> None:
    def holds(whole: Any, part: Any) -> bool:
        if isinstance(part, dict):
            return isinstance(whole, dict) and all(k in whole and holds(whole[k], v) for k, v in part.items())
        return bool(whole == part)

    before = json.dumps([a, b])
    both = merged(a, b)
    assert holds(both, b)
    assert set(both) == set(a) | set(b)
    assert merged(a, {}) == merged({}, a) == a
    assert json.dumps([a, b]) == before
    # an object over a plain value replaces it, so grouping is free only where no such clash is
    if all(isinstance(both.get(k), dict) == isinstance(d[k], dict) for d in (a, b, c) for k in d):
        assert set(merged(merged(a, b), c)) == set(merged(a, merged(b, c)))


# ---------------------------------------------------------------- matrices


def test_every_combination_is_a_scenario_and_the_unlisted_ones_expect_deny(whole: Suite) -> None:
    expected = {
        name: scenario.expect.accepted(("allow", "deny"))
        for name, scenario in by_id(whole).items()
        if name.startswith("M/")
    }
    assert expected == {
        "M/seller/look": ("allow",),
        "M/seller/sell": ("allow", "deny"),
        "M/seller/open_till": ("deny",),
        "M/guest/look": ("allow",),
        "M/guest/sell": ("deny",),
        "M/guest/open_till": ("deny",),
    }


def test_a_combination_merges_fixtures_its_matrix_and_the_value_of_each_axis(
    whole: Suite,
) -> None:
    scenario = by_id(whole)["M/guest/open_till"]
    assert scenario.title == "Who may do what: guest, open_till"
    assert scenario.skip == "the till is being mended"
    assert scenario.situation == {
        "actor_id": "user:gus",
        "actor_role": "guest",
        "action_type": "open_till",
        "resource": "good:tea",
        "state": {"door": "open", "lights": "off"},
        "till": 1,
    }


def test_the_difficulty_is_medium_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    loaded = suite_files.load(written(tmp_path, WHOLE.replace("  difficulty: easy\n", "")))
    assert (by_id(loaded)["S1"].difficulty, by_id(loaded)["S2"].difficulty) == ("medium", "hard")


@pytest.mark.parametrize("path", ["./pack", "pack/", "../{}/pack"])
def test_a_pack_named_by_path_is_read_from_the_directory_of_the_suite(tmp_path: Path, path: str) -> None:
    write_pack(tmp_path / "pack")
    text = WHOLE.replace("pack: discount-approval", f"pack: {path.format(tmp_path.name)}")
    loaded = suite_files.load(written(tmp_path, text))
    assert loaded.pack == "small"
    assert Path(loaded.pack_dir).resolve() == (tmp_path / "pack").resolve()


@pytest.mark.parametrize(
    ("form", "part", "wrapper"),
    [
        ("situation", {"situation": {"actor_role": "x"}}, "situation"),
        ("situation", {"request": {}}, "request"),
        ("request", {"request": {"subject": {}}}, "request"),
        ("request", {"situation": {}, "context": {}}, "situation"),
        ("situation", {"request": "a free member of a situation", "actor_role": "x"}, None),
        ("request", {"context": {"request": "R1"}}, None),
    ],
)
def test_an_axis_takes_the_inside_of_a_question(
    tmp_path: Path, form: str, part: dict[str, Any], wrapper: str | None
) -> None:
    question = {
        "request": {
            "subject": {"type": "user", "id": "a"},
            "action": {"name": "look"},
            "resource": {"type": "doc", "id": "d"},
        },
        "situation": {"actor_id": "user:a", "action_type": "look", "resource": "doc:d"},
    }[form]
    matrix = {"id": "M", "title": "t", form: question, "axes": {"role": {"staff": part}}}
    path = written(tmp_path, yaml.safe_dump({"name": "n", "pack": "p", "matrix": [matrix]}))
    if wrapper is None:
        assert len(suite_files.load(path).scenarios) == 1
        return
    with pytest.raises(
        SuiteError, match=rf"staff of the axis role holds '{wrapper}'; an axis takes the inside"
    ):
        suite_files.load(path)


def test_otherwise_sets_what_unlisted_combinations_expect(tmp_path: Path) -> None:
    text = WHOLE.replace("    title: Who may do what\n", "    title: Who may do what\n    otherwise: hold\n")
    loaded = suite_files.load(written(tmp_path, text))
    assert by_id(loaded)["M/guest/sell"].expect == Expectation(outcome="hold", max_latency_ms=500)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("difficulty: hard", "difficulty: brutal", 25, "Invalid enum value 'brutal'"),
        (
            "seller: {}",
            "seller: {situation: {a: b}}",
            38,
            "the axis role holds 'situation'; an axis takes the",
        ),
        (
            "pack: discount-approval",
            "pack: ./nowhere",
            2,
            "pack: './nowhere' is read from the directory of the suite",
        ),
        ("uses: [open]", "uses: [shut]", 19, "scenario S1: there is no fixture 'shut'; there are: open, s"),
        ("uses: [seller]", "uses: [buyer]", 27, "fixture buyer is a part of a request, but this asks with"),
        ("    situation: {state", "    request: {}\n    situation: {state", 10, "fixture open: needs either"),
        ("{outcome: allow, r", "{r", 22, "scenario S1: expect needs exactly one of outcome, one_of, never"),
        ("id: S2", "id: S1", 23, "scenario S1: the id appears twice"),
        ("id: S2", "id: M/guest/look", 31, "scenario M/guest/look: the id appears twice"),
        ('resource: "good:tea", till', "resource: 5, till", 21, "scenario S1: situation.resource: must be"),
        ("action: look}", "act: look}", 45, "matrix M: there is no axis 'act'; there are role, action"),
        ("action: look}", "action: peek}", 45, "matrix M: the axis action has no 'peek'; it has look, sell,"),
        (
            "action: look}",
            "role: seller}",
            47,
            "matrix M: seller, sell is listed twice; list each",
        ),
        ("action: look}", "action: [1]}", 45, "Expected `str`, got `int`"),
        (
            "expect: {outcome: allow}\n",
            "expect: {}\n",
            45,
            "scenario M/seller/look: expect needs exactly one",
        ),
        ("  - id: M\n", "  - id: M\n    quiet: 1\n", 32, "unknown field `quiet`"),
        ("skip: the till is being mended", "skip: ''", 34, "Expected `str` of length >= 1"),
        ("max_latency_ms: 20.5", "max_latency_ms: 0", 29, "Expected `float` > 0"),
        ("similarity: 0.7", "similarity: 70", 17, "Expected `float` <= 1"),
    ],
)
def test_a_wrong_suite_file_is_refused_with_the_line(
    tmp_path: Path, old: str, new: str, line: int, message: str
) -> None:
    assert old in WHOLE
    path = written(tmp_path, WHOLE.replace(old, new, 1))
    with pytest.raises(SuiteError) as refusal:
        suite_files.load(path)
    assert str(refusal.value).startswith(f"{path}:{line}:"), refusal.value
    assert message in str(refusal.value)


def test_a_matrix_with_too_many_combinations_is_refused(tmp_path: Path) -> None:
    axis = ", ".join(f"v{n}: {{}}" for n in range(MAX_COMBINATIONS // 6 + 1))
    path = written(tmp_path, WHOLE.replace("    axes:\n", f"    axes:\n      many: {{{axis}}}\n"))
    with pytest.raises(SuiteError, match=r":36:5: matrix M: makes 1002 scenarios; the limit is 1000"):
        suite_files.load(path)


# ---------------------------------------------------------------- the published schema

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def validator() -> Any:
    published = json.loads((data_path("scenarios") / suite_files.SCHEMA_FILE).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(published)
    return jsonschema.Draft202012Validator(published)


def test_the_published_schema_is_that_of_the_types() -> None:
    published = (data_path("scenarios") / suite_files.SCHEMA_FILE).read_text(encoding="utf-8")
    assert published == json.dumps(suite_files.schema(), indent=2) + "\n", "run: ./scripts/schemas"


@pytest.mark.parametrize("path", suite_files.available(data_path("scenarios")), ids=lambda path: path.stem)
def test_the_schema_accepts_every_suite_that_ships(validator: Any, path: Path) -> None:
    validator.validate(yaml_text.parse(path.read_text(encoding="utf-8"), dict[str, Any], path))


def test_the_schema_accepts_every_feature_of_the_format(validator: Any) -> None:
    validator.validate(yaml_text.parse(WHOLE, dict[str, Any], "whole"))


def whole_with(path: list[Any], value: Any) -> dict[str, Any]:
    """The whole file with one place changed; `...` removes the member."""
    raw: dict[str, Any] = changed(yaml_text.parse(WHOLE, dict[str, Any], "whole"), path, value)
    return raw


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["name"], ...),
        (["pack"], 5),
        (["colour"], "red"),
        (["defaults", "difficulty"], "brutal"),
        (["defaults", "max_latency_ms"], 0),
        (["fixtures", "open"], {}),
        (["fixtures", "open", "request"], {}),
        (["fixtures", "open", "extra"], 1),
        (["reasoning", "similarity"], 1.5),
        (["reasoning", "needed"], -0.1),
        (["scenarios", 0, "id"], ""),
        (["scenarios", 0, "title"], ...),
        (["scenarios", 0, "expect"], ...),
        (["scenarios", 0, "expect"], {}),
        (["scenarios", 0, "expect"], {"one_of": []}),
        (["scenarios", 0, "expect"], {"outcome": "allow", "never": "deny"}),
        (["scenarios", 0, "expect"], {"risk": "low"}),
        (["scenarios", 0, "expect"], {"outcome": "allow", "risk": "tiny"}),
        (["scenarios", 0, "expect"], {"outcome": "allow", "verdict": "x"}),
        (["scenarios", 0, "situation"], ...),
        (["scenarios", 0, "situation"], "who knows"),
        (["scenarios", 0, "request"], {}),
        (["scenarios", 0, "skip"], ""),
        (["scenarios", 0, "tags"], "shop"),
        (["scenarios", 0, "quick"], "yes"),
        (["matrix", 0, "axes"], ...),
        (["matrix", 0, "axes"], {}),
        (["matrix", 0, "axes", "role"], {}),
        (["matrix", 0, "axes", "role"], {"a b": {}}),
        (["matrix", 0, "axes", "role", "guest"], "gus"),
        (["matrix", 0, "expect", 0, "when"], ...),
        (["matrix", 0, "expect", 0, "when"], {"role": 1}),
        (["matrix", 0, "expect", 0, "expect"], {}),
        (["matrix", 0, "situation"], ...),
    ],
)
def test_the_schema_rejects_what_the_loader_rejects(
    validator: Any, tmp_path: Path, path: list[Any], value: Any
) -> None:
    raw = whole_with(path, value)
    with pytest.raises(SuiteError):
        suite_files.load(written(tmp_path, yaml.safe_dump(raw, sort_keys=False)))
    assert not validator.is_valid(raw)


def test_schema_and_loader_reject_a_file_without_scenarios(validator: Any, tmp_path: Path) -> None:
    raw = {"name": "empty", "pack": "none", "scenarios": []}
    assert not validator.is_valid(raw)
    with pytest.raises(SuiteError, match="there is no scenario in it"):
        suite_files.load(written(tmp_path, yaml.safe_dump(raw)))


def test_a_suite_survives_a_round_trip_through_json(whole: Suite) -> None:
    assert msgspec.json.decode(msgspec.json.encode(whole), type=Suite) == whole
