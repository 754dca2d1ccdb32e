"""JSON Schemas of pack files: those of the types. They accept what loads; what they refuse, lint finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.build import changed
from thor_policy.config import data_path
from thor_policy.core.requests import Json
from thor_policy.policy import new_pack, pack_files, yaml_text
from thor_policy.policy.lint import lint
from thor_policy.policy.pack_schema import schemas

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = data_path("prompts") / "schema"
PACKS = [
    *(data_path("prompts") / name for name in pack_files.available(data_path("prompts"))),
    *sorted(path.parent for path in ROOT.glob("docs/examples/*/pack.yaml")),
    *sorted(path.parent for path in ROOT.glob("tests/data/cases/packs/*/pack.yaml")),
]


@pytest.fixture(scope="module")
def validators() -> dict[str, Any]:
    """A validator for each YAML file of a pack, by the name of the file."""
    made = {}
    for name in pack_files.TYPES:
        published = json.loads((PUBLISHED / f"{Path(name).stem}.schema.json").read_text(encoding="utf-8"))
        jsonschema.Draft202012Validator.check_schema(published)
        made[name] = jsonschema.Draft202012Validator(published)
    return made


def content(path: Path) -> Json:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_published_schemas_are_those_of_the_types() -> None:
    published = {path.name: path.read_text(encoding="utf-8") for path in PUBLISHED.iterdir()}
    made = {name: json.dumps(schema, indent=2) + "\n" for name, schema in schemas().items()}
    assert published == made, "run: ./scripts/schemas"


def test_the_folder_of_schemas_is_no_pack() -> None:
    assert "schema" not in pack_files.available(data_path("prompts"))


@pytest.mark.parametrize("folder", PACKS, ids=lambda folder: folder.name)
def test_the_schemas_accept_a_pack_that_loads(validators: dict[str, Any], folder: Path) -> None:
    for name, validator in validators.items():
        if (folder / name).exists():
            validator.validate(content(folder / name))


@pytest.mark.parametrize("with_model", [False, True])
def test_the_schemas_accept_a_new_pack(validators: dict[str, Any], tmp_path: Path, with_model: bool) -> None:
    new_pack.write(tmp_path / "new", "new", with_model=with_model)
    for name, validator in validators.items():
        if (tmp_path / "new" / name).exists():
            validator.validate(content(tmp_path / "new" / name))


def test_each_member_of_each_struct_says_what_it_means() -> None:
    for schema in schemas().values():
        for struct in (schema, *schema.get("$defs", {}).values()):
            assert struct["title"]
            assert struct["description"]
            for name, member in struct.get("properties", {}).items():
                assert member["description"].endswith("."), name


# ---------------------------------------------------------------- planted errors

#: File, place, and what is written there; `...` removes the member.
PLANTED: dict[str, tuple[str, list[Any], Any]] = {
    "no name": ("pack.yaml", ["name"], ...),
    "a name with a capital": ("pack.yaml", ["name"], "New"),
    "a version that is a number": ("pack.yaml", ["version"], 1.5),
    "a member that does not exist": ("pack.yaml", ["default_floor"], "deny"),
    "one outcome": ("pack.yaml", ["outcomes"], [{"label": "allow"}]),
    "an outcome with a capital": ("pack.yaml", ["outcomes", 0, "label"], "Allow"),
    "an outcome that is only text": ("pack.yaml", ["outcomes", 0], "allow"),
    "an obligation without a type": ("pack.yaml", ["outcomes", 1, "obligations"], [{"id": "approval"}]),
    "a model that does not exist": ("pack.yaml", ["model"], "sometimes"),
    "rules alone without a default": ("pack.yaml", ["model"], "never"),
    "no classifications for a model": ("pack.yaml", ["classifications"], []),
    "a class twice": ("pack.yaml", ["classifications"], ["routine", "change", "removal", "routine"]),
    "no fields for a model": ("pack.yaml", ["fields"], ...),
    "no risk for a model": ("pack.yaml", ["risk"], ...),
    "a type that does not exist": ("pack.yaml", ["reads", "context.reason"], "text"),
    "a member outside of context and properties": ("pack.yaml", ["reads", "subject.role"], "string"),
    "requires without members": ("pack.yaml", ["requires"], {"outcome": "deny"}),
    "a required member that is no path": ("pack.yaml", ["requires", "members"], {"role": "string"}),
    "a fact with the name of a root": ("pack.yaml", ["facts", "now"], "1"),
    "a fact with the name of a type": ("pack.yaml", ["facts", "string"], "1"),
    "a fact with a capital": ("pack.yaml", ["facts", "Owner"], "true"),
    "a step with two underscores": ("pack.yaml", ["facts", "__owner"], "true"),
    "a threshold above 1": ("pack.yaml", ["limits"], {"tighten_at": 1.5}),
    "a threshold of a risk that does not exist": ("pack.yaml", ["limits"], {"tighten_at": {"tiny": 0.5}}),
    "a step in the question": ("pack.yaml", ["fields", 0, "value"], "facts._step"),
    "a fact that is no text": ("pack.yaml", ["facts", "level"], 5),
    "a word list without words": ("pack.yaml", ["words"], {"removing": []}),
    "a word list that is text": ("pack.yaml", ["words"], {"removing": "delete"}),
    "a limit below 1": ("pack.yaml", ["limits"], {"max_clauses": 0}),
    "a limit that does not exist": ("pack.yaml", ["limits"], {"max_tokens": 48}),
    "a confidence above 1": (
        "pack.yaml",
        ["limits"],
        {"abstain": {"outcome": "deny", "below": {"low": 1.5}}},
    ),
    "a risk that does not exist": (
        "pack.yaml",
        ["limits"],
        {"abstain": {"outcome": "deny", "below": {"tiny": 0.5}}},
    ),
    "a field without a value": ("pack.yaml", ["fields", 0], {"name": "who"}),
    "a field outside of the request": ("pack.yaml", ["fields", 0, "value"], "user.id"),
    "a field of a member that does not exist": ("pack.yaml", ["fields", 0, "value"], "subject.name"),
    "a switch that is text": ("pack.yaml", ["cache"], "no"),
    "rules that are a mapping": ("rules.yaml", [], {"id": "granted"}),
    "a rule without a reason": ("rules.yaml", [0, "because"], ...),
    "a rule with an effect": ("rules.yaml", [0, "effect"], "allow"),
    "a condition that is no text": ("rules.yaml", [0, "when"], True),
    "final as text": ("rules.yaml", [0, "final"], "yes"),
    "a clause that is a number": ("clauses.yaml", ["R1"], 5),
    "clauses that are a list": ("clauses.yaml", [], ["Nobody may."]),
    "an example without a question": ("examples.yaml", [0, "evaluation"], ...),
    "an example without a resource": ("examples.yaml", [0, "evaluation", "resource"], ...),
    "an example with another risk": ("examples.yaml", [0, "risk"], "tiny"),
    "clauses of an example as text": ("examples.yaml", [0, "clauses"], "R1"),
    "a time that is text": ("examples.yaml", [0, "at"], "2026-01-01"),
    "a table with a capital": ("data.yaml", ["Roles"], []),
    "tables that are a list": ("data.yaml", [], []),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_an_error_that_the_schema_refuses_is_found_by_lint_too(
    validators: dict[str, Any], tmp_path: Path, planted: str
) -> None:
    folder = tmp_path / "new"
    new_pack.write(folder, "new", with_model=True)
    assert lint(folder) == []
    name, path, value = PLANTED[planted]
    document = content(folder / name)
    validators[name].validate(document)
    changed_document = changed(document, path, value)
    assert not validators[name].is_valid(changed_document)
    (folder / name).write_text(yaml_text.dump(changed_document), encoding="utf-8")
    assert [finding for finding in lint(folder) if finding.level == "error" and finding.file == name]
