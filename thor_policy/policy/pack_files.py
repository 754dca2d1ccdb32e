"""Pack files: finding, reading, checking and writing them.

Owns the file names of a pack and its digest. Invariant: a pack is loaded completely or refused with file and
field. Main thread, or a thread that may wait for the disk.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import msgspec
from msgspec import NODEFAULT, Struct

from thor_policy.core.errors import PackError
from thor_policy.policy import yaml_text
from thor_policy.policy.pack import Example, Manifest, Pack
from thor_policy.policy.rules import Rule

#: The files of a pack, all required; the digest covers them in this order.
FILES = ("pack.yaml", "clauses.yaml", "rules.yaml", "system.md", "examples.yaml")
#: The signature of the pack (security.signatures); the digest does not cover it.
SIGNATURE = "pack.sig"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_LABEL = re.compile(r"[a-z][a-z0-9_]{0,63}")


# ---------------------------------------------------------------- loading


def find(name_or_dir: str, prompts_dir: Path) -> Path:
    """Directory of a pack, by its name (under `prompts_dir`) or its path. Raises PackError."""
    if _NAME.fullmatch(name_or_dir) and (prompts_dir / name_or_dir / "pack.yaml").is_file():
        return prompts_dir / name_or_dir
    try:
        path = Path(name_or_dir).expanduser()
    except RuntimeError as error:
        raise PackError(f"no pack {name_or_dir!r}: {error}") from error
    if "/" in name_or_dir or path.is_dir():
        if (path / "pack.yaml").is_file():
            return path.absolute()
        raise PackError(f"{path} is not a policy pack: it has no pack.yaml")
    known = ", ".join(available(prompts_dir)) or "none"
    raise PackError(f"no pack {name_or_dir!r}; known packs: {known} (or give a directory)")


def available(prompts_dir: Path) -> list[str]:
    """Names of the packs under `prompts_dir`."""
    return sorted(path.parent.name for path in prompts_dir.glob("*/pack.yaml"))


def load(path: Path, trusted: Sequence[str] = ()) -> Pack:
    """Load the pack in directory `path`. Raises PackError that names file and field.

    `trusted` names files with public keys. If there are any, one of these keys must have signed the pack.
    """
    digest = hashlib.sha256()
    texts: dict[str, str] = {}
    for name in FILES:
        try:
            content = (path / name).read_bytes()
            texts[name] = content.decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PackError(f"{path / name}: cannot be read: {error}") from error
        digest.update(len(name).to_bytes(4, "big") + name.encode())
        digest.update(len(content).to_bytes(8, "big") + content)

    manifest = yaml_text.parse(texts["pack.yaml"], Manifest, path / "pack.yaml")
    clauses = yaml_text.parse(texts["clauses.yaml"], dict[str, str], path / "clauses.yaml")
    rules = yaml_text.parse(texts["rules.yaml"], tuple[Rule, ...], path / "rules.yaml")
    examples = yaml_text.parse(texts["examples.yaml"], tuple[Example, ...], path / "examples.yaml")
    _check(path, manifest, clauses, rules, examples)
    pack = Pack(
        path=path,
        manifest=manifest,
        clauses=clauses,
        rules=rules,
        system=texts["system.md"],
        examples=examples,
        sha256=digest.hexdigest(),
    )
    if trusted:
        from thor_policy.security import signatures  # imports cryptography, needed only here

        signatures.check_pack(pack.info, path / SIGNATURE, map(Path, trusted))
    return pack


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


def _check(
    path: Path,
    manifest: Manifest,
    clauses: Mapping[str, str],
    rules: tuple[Rule, ...],
    examples: tuple[Example, ...],
) -> None:
    """Refuse a pack that cannot be served at all; lint reports all other problems."""

    def refuse(file: str, message: str) -> None:
        raise PackError(f"{path / file}: {message}")

    labels = [outcome.label for outcome in manifest.outcomes]
    if not _NAME.fullmatch(manifest.name):
        refuse("pack.yaml", f"name {manifest.name!r} must be lower case letters, digits and hyphens")
    if len(labels) < 2:
        refuse("pack.yaml", "outcomes: at least two labels are needed, loosest first")
    for label in labels:
        if not _LABEL.fullmatch(label):
            refuse("pack.yaml", f"outcomes: {label!r} must be lower case letters, digits and '_'")
    for label, other in permutations(labels, 2):
        if other.startswith(label):
            refuse("pack.yaml", f"outcomes: {other!r} begins with {label!r}; rename one")
    if not manifest.classifications:
        refuse("pack.yaml", "classifications: at least one is needed")
    for name in manifest.classifications:
        if manifest.classifications.count(name) > 1:
            refuse("pack.yaml", f"classifications: {name!r} appears twice")
    if not manifest.fields:
        refuse("pack.yaml", "fields: at least one is needed; without fields the question is empty")
    abstain = manifest.limits.abstain
    if abstain and abstain.outcome not in labels[1:]:
        refuse("pack.yaml", f"limits.abstain.outcome {abstain.outcome!r} must be stricter than {labels[0]}")
    if not clauses:
        refuse("clauses.yaml", "at least one clause is needed")
    for kind, ids in (("rule", [r.id for r in rules]), ("example", [e.id for e in examples])):
        for repeated in {name for name in ids if ids.count(name) > 1}:
            refuse(f"{kind}s.yaml", f"the id {repeated!r} appears twice")
