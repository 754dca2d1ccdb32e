"""Suite files: YAML with defaults, fixtures and matrices, read into complete scenarios.

Owns the file format and its JSON Schema. Invariant: every suite that loads can be asked. Each of its
scenarios is well-formed, has a unique id and exactly one kind of expectation. Any other file is refused with
path, line, column and cause. Main thread.

    name, description
    pack         a name, or a path (with a slash) from the directory of the file
    defaults     values for scenarios that do not give their own: difficulty (medium), tags (added to the
                 scenario's own), uses (put before its own), max_latency_ms
    fixtures     named parts of a question, in either form. A scenario `uses` some: later fixtures override
                 earlier ones, its own members override all. Objects are merged, other values replaced.
    reasoning    how coverage of reasons is measured
    scenarios    one question each
    matrix       tables: every combination of the values of the axes is a scenario, with the id
                 MATRIX/value/value; combinations that `expect` does not list expect `otherwise` (deny)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from thor_policy.core.errors import PackError, RequestError, SuiteError
from thor_policy.core.requests import Json
from thor_policy.policy import pack_files, yaml_text
from thor_policy.suites.scenarios import (
    Difficulty,
    Expectation,
    Milliseconds,
    Reason,
    Reasoning,
    Scenario,
    Suite,
)

#: File name of the published schema, in the folder of the suites that ship.
SCHEMA_FILE = "suite.schema.json"
#: Largest number of scenarios of one matrix, so that a needless axis cannot make a run take hours.
MAX_COMBINATIONS = 1000

Name = Annotated[str, Meta(min_length=1)]
#: Part of scenario ids and of tags, so it has no slash and no space.
_Word = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:+-]+$")]
_Axis = Annotated[dict[_Word, dict[str, Json]], Meta(min_length=1)]
_Combination = dict[str, str]
#: The two forms of a question.
_FORMS = frozenset({"request", "situation"})


class Question(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question in exactly one of the two forms, `request` or `situation`."""

    request: dict[str, Json] | UnsetType = UNSET
    situation: dict[str, Json] | UnsetType = UNSET

    @property
    def form(self) -> str:
        return "request" if self.situation is UNSET else "situation"

    @property
    def members(self) -> dict[str, Json]:
        members: dict[str, Json] = getattr(self, self.form)
        return members


class Fixture(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a question."""


class Labelled(Question, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question with its id, title and labels."""

    id: Name
    title: str
    difficulty: Difficulty | UnsetType = UNSET
    tags: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    quick: bool = False
    skip: Reason | None = None
    sources: dict[str, dict[str, Json]] = {}


class Entry(Labelled, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One question and its expected answer."""

    expect: Expectation


class Cell(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Combinations with the same expectation: the axes in `when` have one of its values, other axes any."""

    when: dict[str, str | tuple[str, ...]]
    expect: Expectation


class Matrix(Labelled, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of questions. Each value of an axis is a part of the question, in the form of the matrix."""

    axes: Annotated[dict[_Word, _Axis], Meta(min_length=1)]
    expect: tuple[Cell, ...] = ()
    otherwise: str = "deny"

    def combinations(self) -> Iterator[_Combination]:
        for values in itertools.product(*self.axes.values()):
            yield dict(zip(self.axes, values, strict=True))


class Defaults(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Values for scenarios that do not give their own."""

    difficulty: Difficulty = "medium"
    tags: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    max_latency_ms: Milliseconds | None = None


class SuiteFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of scenarios for one pack."""

    name: str
    pack: str
    description: str = ""
    defaults: Defaults = Defaults()
    fixtures: dict[str, Fixture] = {}
    reasoning: Reasoning = Reasoning()
    scenarios: tuple[Entry, ...] = ()
    matrix: tuple[Matrix, ...] = ()


def available(folder: Path) -> list[Path]:
    """The suite files in a folder."""
    return sorted(folder.glob("*.yaml"))


def load(path: Path) -> Suite:
    """The suite in a YAML file. Raises SuiteError naming file, line, column and scenario."""
    try:
        text = path.read_text(encoding="utf-8")
        document = yaml_text.Document(text, path)
        file: SuiteFile = document.convert(SuiteFile)
    except OSError as error:
        raise SuiteError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SuiteError(f"{path}: cannot be read: {error}") from error
    except PackError as error:
        raise SuiteError(str(error)) from error
    try:
        pack, pack_dir = _pack(file.pack, path)
        scenarios = tuple(_scenarios(file))
    except _Wrong as wrong:
        place = document.position(wrong.place)
        raise SuiteError(f"{path}:{place.line}:{place.column}: {wrong}") from wrong
    return Suite(
        name=file.name,
        pack=pack,
        pack_dir=pack_dir,
        description=file.description,
        reasoning=file.reasoning,
        scenarios=scenarios,
    )


class _Wrong(Exception):
    """An error at a place of the file (`$.scenarios[3].expect`)."""

    def __init__(self, place: str, message: str) -> None:
        super().__init__(message)
        self.place = place


def _pack(pack: str, path: Path) -> tuple[str, str]:
    """Name and directory of the pack of the suite at `path`; no directory if the suite names it by its name.

    Raises _Wrong if the directory holds no pack.
    """
    if "/" not in pack and pack not in (".", ".."):
        return pack, ""
    directory = path.absolute().parent / Path(pack)
    try:
        return pack_files.load(directory).info.name, str(directory)
    except PackError as error:
        raise _Wrong(
            "$.pack",
            f"pack: {pack!r} is read from the directory of the suite, and there is no pack: {error}; "
            "write the name of a pack, or a path from that directory",
        ) from error


def _scenarios(file: SuiteFile) -> Iterator[Scenario]:
    """Every scenario of a file, complete and checked. Raises _Wrong."""
    for name, fixture in file.fixtures.items():
        _require_form(fixture, f"$.fixtures.{name}", f"fixture {name}")
    seen: set[str] = set()
    for place, scenario in itertools.chain(_from_entries(file), _from_matrices(file)):
        where = f"scenario {scenario.id}"
        if scenario.id in seen:
            raise _Wrong(f"{place}.id", f"{where}: the id appears twice")
        seen.add(scenario.id)
        try:
            scenario.evaluation()
        except RequestError as error:
            question = next(iter(scenario.question()))
            raise _Wrong(f"{place}.{question}", f"{where}: {error.message}") from error
        yield scenario
    if not seen:
        raise _Wrong("$", "there is no scenario in it")


def _from_entries(file: SuiteFile) -> Iterator[tuple[str, Scenario]]:
    for number, entry in enumerate(file.scenarios):
        place = f"$.scenarios[{number}]"
        yield place, _scenario(file, entry, place, entry.expect, f"{place}.expect")


def _from_matrices(file: SuiteFile) -> Iterator[tuple[str, Scenario]]:
    for number, matrix in enumerate(file.matrix):
        place = f"$.matrix[{number}]"
        for combination in _checked_table(matrix, place).combinations():
            cells = [i for i, cell in enumerate(matrix.expect) if _matches(cell.when, combination)]
            values = tuple(combination.values())
            if len(cells) > 1:
                raise _Wrong(
                    f"{place}.expect[{cells[1]}]",
                    f"matrix {matrix.id}: {', '.join(values)} is listed twice; list each combination once",
                )
            expect = matrix.expect[cells[0]].expect if cells else Expectation(outcome=matrix.otherwise)
            expect_place = f"{place}.expect[{cells[0]}]" if cells else place
            parts = [matrix.axes[axis][value] for axis, value in combination.items()]
            yield place, _scenario(file, matrix, place, expect, expect_place, parts=parts, values=values)


def _checked_table(matrix: Matrix, place: str) -> Matrix:
    """The matrix itself. Raises _Wrong if it is too large or lists a combination that it does not have."""
    count = 1
    for values in matrix.axes.values():
        count *= len(values)
    if count > MAX_COMBINATIONS:
        raise _Wrong(
            f"{place}.axes",
            f"matrix {matrix.id}: makes {count} scenarios; the limit is {MAX_COMBINATIONS}: divide it",
        )
    for axis, values in matrix.axes.items():
        for value, part in values.items():
            if wrappers := part.keys() & _FORMS:
                if matrix.form == "situation" and len(part) > 1:
                    continue  # a flat situation may have a member of that name
                wrapper = min(wrappers)
                raise _Wrong(
                    f"{place}.axes.{axis}.{value}",
                    f"matrix {matrix.id}: the value {value} of the axis {axis} holds {wrapper!r}; an axis "
                    f"takes the inside of a {matrix.form}, without {wrapper!r} around it",
                )
    for number, cell in enumerate(matrix.expect):
        for axis, listed in cell.when.items():
            at = f"{place}.expect[{number}].when"
            if axis not in matrix.axes:
                known = ", ".join(matrix.axes)
                raise _Wrong(at, f"matrix {matrix.id}: there is no axis {axis!r}; there are {known}")
            for value in _values(listed):
                if value not in matrix.axes[axis]:
                    known = ", ".join(matrix.axes[axis])
                    raise _Wrong(at, f"matrix {matrix.id}: the axis {axis} has no {value!r}; it has {known}")
    return matrix


def _scenario(
    file: SuiteFile,
    entry: Labelled,
    place: str,
    expect: Expectation,
    expect_place: str,
    *,
    parts: list[dict[str, Json]] | None = None,
    values: tuple[str, ...] = (),
) -> Scenario:
    """The scenario of an entry. `expect_place` is the place of its expectation in the file."""
    where = f"scenario {'/'.join((entry.id, *values))}"
    if not expect.is_definite:
        raise _Wrong(expect_place, f"{where}: expect needs exactly one of outcome, one_of, never")
    _require_form(entry, place, where)
    members: dict[str, Json] = {}
    for name in dict.fromkeys((*file.defaults.uses, *entry.uses)):
        if name not in file.fixtures:
            known = ", ".join(file.fixtures) or "none"
            raise _Wrong(f"{place}.uses", f"{where}: there is no fixture {name!r}; there are: {known}")
        fixture = file.fixtures[name]
        if fixture.form != entry.form:
            raise _Wrong(
                f"{place}.uses",
                f"{where}: fixture {name} is a part of a {fixture.form}, but this asks with a {entry.form}",
            )
        members = merged(members, fixture.members)
    for part in (entry.members, *(parts or ())):
        members = merged(members, part)
    difficulty = file.defaults.difficulty if entry.difficulty is UNSET else entry.difficulty
    if expect.max_latency_ms is None:
        expect = msgspec.structs.replace(expect, max_latency_ms=file.defaults.max_latency_ms)
    return Scenario(
        id="/".join((entry.id, *values)),
        title=f"{entry.title}: {', '.join(values)}" if values else entry.title,
        difficulty=difficulty,
        expect=expect,
        tags=tuple(dict.fromkeys((*file.defaults.tags, *entry.tags))),
        quick=entry.quick,
        skip=entry.skip,
        sources=entry.sources,
        request=members if entry.form == "request" else UNSET,
        situation=members if entry.form == "situation" else UNSET,
    )


def merged(under: Mapping[str, Json], over: Mapping[str, Json]) -> dict[str, Json]:
    """`under` with the members of `over`: objects are merged member by member, other values replaced."""
    both = dict(under)
    for key, value in over.items():
        below = both.get(key)
        both[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return both


def _require_form(question: Question, place: str, where: str) -> None:
    if (question.request is UNSET) == (question.situation is UNSET):
        raise _Wrong(place, f"{where}: needs either request or situation")


def _matches(when: Mapping[str, str | tuple[str, ...]], combination: _Combination) -> bool:
    return all(combination[axis] in _values(listed) for axis, listed in when.items())


def _values(listed: str | tuple[str, ...]) -> tuple[str, ...]:
    return (listed,) if isinstance(listed, str) else listed


# ---------------------------------------------------------------- the published schema


def schema() -> dict[str, Any]:
    """JSON Schema of a suite file, made from the types, for editors that check a file while it is written.

    The schema covers every rule about a single place. Only `load` and `verdicts.run` can check that ids are
    unique, that fixtures, axes and labels exist, and that questions are well-formed.
    """
    _, parts = msgspec.json.schema_components((SuiteFile,), ref_template="#/$defs/{name}")
    file = parts.pop("SuiteFile")
    file["anyOf"] = [
        {"required": [part], "properties": {part: {"minItems": 1}}} for part in ("scenarios", "matrix")
    ]
    for name in ("Fixture", "Entry", "Matrix"):
        parts[name]["oneOf"] = [{"required": ["request"]}, {"required": ["situation"]}]
    parts["Expectation"]["oneOf"] = [
        {"required": ["outcome"], "properties": {"outcome": {"type": "string"}}},
        {"required": ["one_of"], "properties": {"one_of": {"minItems": 1}}},
        {"required": ["never"], "properties": {"never": {"type": "string"}}},
    ]
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Scenario suite of thor-policy",
    }
    whole = head | {key: value for key, value in file.items() if key != "title"} | {"$defs": parts}
    plain: dict[str, Any] = msgspec.to_builtins(whole)
    return plain
