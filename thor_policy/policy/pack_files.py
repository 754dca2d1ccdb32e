"""Pack files: finding, reading, checking and writing them.

Owns the file names of a pack, its digest, and what keeps its files from being a pack. Invariant: a pack is
loaded completely or refused with every problem, its file, line and column. Main thread, or a thread that may
wait for the disk.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import NODEFAULT, Struct, structs

from thor_policy.core.errors import PackError
from thor_policy.core.requests import Json
from thor_policy.policy import lifting, yaml_text
from thor_policy.policy.pack import Example, Manifest, Pack, liftable, rule_book
from thor_policy.policy.rule_checks import RuleFaults
from thor_policy.policy.rule_specs import Rule
from thor_policy.security import files as safe_files

#: The files of a pack; the digest covers those that are there, in this order.
FILES = ("pack.yaml", "clauses.yaml", "rules.yaml", "system.md", "examples.yaml", "data.yaml")
#: The files that every pack has, and those that a pack with a model has.
REQUIRED = ("pack.yaml", "rules.yaml")
REQUIRED_WITH_MODEL = ("pack.yaml", "clauses.yaml", "rules.yaml", "system.md", "examples.yaml")
#: Largest file of a pack, in bytes.
MAX_FILE_BYTES = 16 * 2**20
#: Most characters of an unknown name that an error repeats.
_SHOWN_CHARS = 64
#: The types of the files that are YAML.
TYPES: dict[str, Any] = {
    "pack.yaml": Manifest,
    "clauses.yaml": dict[str, str],
    "rules.yaml": tuple[Rule, ...],
    "examples.yaml": tuple[Example, ...],
    "data.yaml": dict[str, Json],
}
#: The signature of the pack (security.signatures); the digest does not cover it.
SIGNATURE = "pack.sig"
#: A suite, and a folder of suites, beside the files of a pack; the digest does not cover them.
SUITE, SUITES = "suite.yaml", ("suite.yaml", "suites")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_LABEL = re.compile(r"[a-z][a-z0-9_]{0,63}")
_NO_MODEL = re.compile(r"(?m)^model:[ \t]*never\b")
_TABLE = re.compile(r"[a-z][a-z0-9_]*")


class Finding(Struct, frozen=True, kw_only=True):
    """One problem: an `error` makes the pack unusable, a `warning` is advice for its author.

    `where` names the file and the rule, fact or member; `path` is its place there (`$[2].when`). `line` and
    `column` (from 1, in code points) are known where the pack was read from files.
    """

    level: Literal["error", "warning"]
    where: str
    message: str
    path: str = "$"
    line: int | None = None
    column: int | None = None

    @property
    def file(self) -> str:
        """The file's name."""
        return self.where.partition(" ")[0]

    def __str__(self) -> str:
        file, _, name = self.where.partition(" ")
        place = f":{self.line}:{self.column}" if self.line else ""
        return f"{file}{place}: {f'{name}: ' if name else ''}{self.message}"


# ---------------------------------------------------------------- loading


def find(name_or_dir: str, prompts_dir: Path) -> Path:
    """Directory of a pack, by its name (under `prompts_dir`) or its path. Raises PackError."""
    if _NAME.fullmatch(name_or_dir) and (prompts_dir / name_or_dir / "pack.yaml").is_file():
        return prompts_dir / name_or_dir
    try:
        path = Path(name_or_dir).expanduser()
        if "/" in name_or_dir or path.is_dir():
            if (path / "pack.yaml").is_file():
                return path.absolute()
            raise PackError(f"{path} is not a policy pack: it has no pack.yaml")
    except RuntimeError as error:
        raise PackError(f"no pack {name_or_dir!r}: {error}") from error
    except OSError as error:
        shown = name_or_dir if len(name_or_dir) <= _SHOWN_CHARS else f"{name_or_dir[:_SHOWN_CHARS]}.."
        raise PackError(
            f"no pack {shown!r}: {error.strerror}; give the name of a shipped pack, or a directory"
        ) from error
    known = ", ".join(available(prompts_dir)) or "none"
    raise PackError(f"no pack {name_or_dir!r}; known packs: {known} (or give a directory)")


def is_name(text: str) -> bool:
    """True for a name that a pack can have."""
    return _NAME.fullmatch(text) is not None


def available(prompts_dir: Path) -> list[str]:
    """Names of the packs under `prompts_dir`."""
    return sorted(path.parent.name for path in prompts_dir.glob("*/pack.yaml"))


def load(path: Path, trusted: Sequence[str] = ()) -> Pack:
    """Load the pack in directory `path`. Raises PackError with every problem: file, line and column.

    `trusted` names files with public keys. If there are any, one of these keys must have signed the pack.
    """
    return load_files(PackFiles(path), trusted)


def load_files(files: PackFiles, trusted: Sequence[str] = ()) -> Pack:
    """As `load`, from files that were read."""
    path = files.path
    pack, findings = examine(files)
    if pack is None:
        raise PackError("\n".join(f"{path}/{finding}" for finding in findings))
    if trusted:
        from thor_policy.security import signatures  # imports cryptography, needed only here

        signatures.check_pack(pack.info, path / SIGNATURE, map(Path, trusted))
    return pack


def examine(files: PackFiles) -> tuple[Pack | None, list[Finding]]:
    """The pack of these files, or everything that keeps them from being one. Never raises."""
    path, values = files.path, files.values
    findings = list(files.findings)
    manifest: Manifest | None = values.get("pack.yaml")
    if manifest is not None:
        findings += [files.placed(finding) for finding in _problems(manifest, values)]
    if "examples.yaml" in values:
        raw = files.documents["examples.yaml"].convert(list[dict[str, Any]])
        findings += [files.placed(finding) for finding in _unknown_members(raw)]
    if manifest is None or len(manifest.outcomes) < 2:
        return None, findings
    rules, data = values.get("rules.yaml", ()), values.get("data.yaml", {})
    tables_unknown = "data.yaml" in files.texts and "data.yaml" not in values
    try:
        book = rule_book(manifest, rules, data, str(path))
    except RuleFaults as error:
        for fault in error.faults:
            if tables_unknown and fault.message.startswith("there is no table "):
                continue
            where = f"{fault.file} {fault.subject}"
            place = files.documents[fault.file].place(fault.path, fault.line, fault.column)
            finding = Finding(level="error", where=where, message=fault.message, path=fault.path)
            findings.append(structs.replace(finding, line=place.line, column=place.column))
    except PackError as error:
        findings.append(Finding(level="error", where="pack.yaml", message=str(error)))
    if findings:
        return None, findings
    return Pack(
        path=path,
        manifest=manifest,
        clauses=values.get("clauses.yaml", {}),
        rules=rules,
        system=files.texts.get("system.md", ""),
        examples=values.get("examples.yaml", ()),
        data=data,
        sha256=files.sha256,
        book=book,
    ), []


class PackFiles:
    """The files in the directory of a pack, read once: text, digest, values, and what is wrong with each.

    `values` has each file that is YAML of its type (`TYPES`); there is a finding for everything else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.texts: dict[str, str] = {}
        self.findings: list[Finding] = []
        digest = hashlib.sha256()
        for name in FILES:
            try:
                content = safe_files.read(path / name, max_bytes=MAX_FILE_BYTES)
                self.texts[name] = content.decode("utf-8")
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                self._add(name, f"cannot be read: {error}")
                continue
            digest.update(len(name).to_bytes(4, "big") + name.encode())
            digest.update(len(content).to_bytes(8, "big") + content)
        self.sha256 = digest.hexdigest()
        self.documents = {
            name: yaml_text.Document(text, name) for name, text in self.texts.items() if name in TYPES
        }
        self.values: dict[str, Any] = {}
        for name, document in self.documents.items():
            problems = document.problems(TYPES[name])
            for problem in problems:
                self._add(name, problem.message, problem.line, problem.column)
            if not problems:
                self.values[name] = document.convert(TYPES[name])
        #: True for a pack of rules alone; read from the text if the file has other problems.
        self.rules_only = (
            self.values["pack.yaml"].model == "never"
            if "pack.yaml" in self.values
            else bool(_NO_MODEL.search(self.texts.get("pack.yaml", "")))
        )
        for name in REQUIRED if self.rules_only else REQUIRED_WITH_MODEL:
            if name not in self.texts and not any(finding.file == name for finding in self.findings):
                self._add(name, f"is missing; {_PURPOSE[name]}")

    def placed(self, finding: Finding) -> Finding:
        """A finding with line and column."""
        document = self.documents.get(finding.file)
        if document is None or finding.line is not None:
            return finding
        place = document.position(finding.path)
        return structs.replace(finding, line=place.line, column=place.column)

    def _add(self, name: str, message: str, line: int | None = None, column: int | None = None) -> None:
        self.findings.append(Finding(level="error", where=name, message=message, line=line, column=column))


_PURPOSE = {
    "pack.yaml": "it holds name, version, description, outcomes, facts and limits",
    "clauses.yaml": "it holds the numbered policy text, such as `R1: Reading is allowed.`",
    "rules.yaml": "it holds the list of rules, or []",
    "system.md": "it holds the instruction to the model",
    "examples.yaml": "it holds the few-shot examples, or []",
}


# ---------------------------------------------------------------- writing


def as_yaml(items: Sequence[Rule | Example]) -> str:
    """Rules or examples as YAML for their file; fields with their default value are left out."""
    values = [_without_defaults(item) for item in items]
    return yaml_text.dump(values)


def _without_defaults(item: Struct) -> dict[str, Any]:
    """The fields of a struct that differ from their default, as plain values."""
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(item):
        value = getattr(item, field.name)
        if value != (field.default_factory() if field.default_factory is not NODEFAULT else field.default):
            plain = _without_defaults(value) if isinstance(value, Struct) else msgspec.to_builtins(value)
            values[field.name] = plain
    return values


# ---------------------------------------------------------------- checking

#: Members of a request, and of its parts. A request may have more, which nothing reads; an example may not.
_MEMBERS = {
    "": ("subject", "action", "resource", "context"),
    "subject": ("type", "id", "properties"),
    "action": ("name", "properties"),
    "resource": ("type", "id", "properties"),
}


def _unknown_members(examples: Sequence[Mapping[str, Json]]) -> Iterator[Finding]:
    """Members of examples that no request has: a misspelt one would be left out without a word."""
    for at, example in enumerate(examples):
        evaluation = example["evaluation"]
        for part, known in _MEMBERS.items():
            place = f"evaluation.{part}" if part else "evaluation"
            for name in evaluation[part] if part else evaluation:
                if name not in known:
                    message = f"{place} has the members {', '.join(known)}, and no {name!r}"
                    yield Finding(
                        level="error", where="examples.yaml", message=message, path=f"$[{at}].{place}.{name}"
                    )


def _problems(manifest: Manifest, values: Mapping[str, Any]) -> Iterator[Finding]:
    """What keeps well-formed files from being a pack; lint reports all other problems."""

    def error(file: str, path: str, message: str) -> Finding:
        return Finding(level="error", where=file, path=path, message=message)

    labels = [outcome.label for outcome in manifest.outcomes]
    lifted_by, step_ups = liftable(manifest)
    if lifted_by or step_ups:
        for label, message in lifting.faults_of(labels, lifted_by, step_ups):
            yield error("pack.yaml", f"$.outcomes[{labels.index(label)}]", f"outcomes: {message}")
    if not _NAME.fullmatch(manifest.name):
        message = f"name {manifest.name!r} must be lower case letters, digits and hyphens"
        yield error("pack.yaml", "$.name", message)
    if len(labels) < 2:
        yield error("pack.yaml", "$.outcomes", "outcomes: at least two labels are needed, loosest first")
    for at, label in enumerate(labels):
        if not _LABEL.fullmatch(label):
            message = f"outcomes: {label!r} must be lower case letters, digits and '_'"
            yield error("pack.yaml", f"$.outcomes[{at}]", message)
    for (_, label), (at, other) in permutations(enumerate(labels), 2):
        if other.startswith(label):
            yield error(
                "pack.yaml", f"$.outcomes[{at}]", f"outcomes: {other!r} begins with {label!r}; rename one"
            )
    for at, name in enumerate(manifest.classifications):
        if name in manifest.classifications[:at]:
            message = f"classifications: {name!r} appears twice"
            yield error("pack.yaml", f"$.classifications[{at}]", message)
    abstain = manifest.limits.abstain
    if abstain and abstain.outcome not in labels[1:]:
        message = f"limits.abstain.outcome {abstain.outcome!r} must be stricter than {labels[0]}"
        yield error("pack.yaml", "$.limits.abstain.outcome", message)
    if manifest.model != "never":
        if not manifest.classifications:
            yield error("pack.yaml", "$", "classifications: at least one is needed")
        if not manifest.fields:
            message = "fields: at least one is needed; without fields the question is empty"
            yield error("pack.yaml", "$", message)
        if manifest.risk is None:
            yield error("pack.yaml", "$", "risk: is missing; it is an expression such as '\"low\"'")
        if values.get("clauses.yaml") == {}:
            yield error("clauses.yaml", "$", "at least one clause is needed")
    examples: tuple[Example, ...] = values.get("examples.yaml", ())
    for at, example in enumerate(examples):
        if any(example.id == other.id for other in examples[:at]):
            yield error("examples.yaml", f"$[{at}].id", f"the id {example.id!r} appears twice")
    for table in values.get("data.yaml", {}):
        if not _TABLE.fullmatch(table):
            message = f"the name {table!r} must be lower case letters, digits and '_'"
            yield error("data.yaml", f"$.{table}", message)
