"""The next pack: the active pack with corrections as its examples.

Owns how a proposal is made and where it is written. Invariant: no file of the active pack is changed; the
proposal is complete in a directory of its own or not there at all, and differs from the active pack only in
version, supersedes and examples. The gate decides whether it may be activated. Main thread of a command.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct, structs

from thor_policy.config import Config
from thor_policy.core.decisions import PackInfo
from thor_policy.core.engine import Engine
from thor_policy.core.errors import ExportError, PackError
from thor_policy.daemon import journal_access, loading
from thor_policy.engine.embedder import MiniLM, missing
from thor_policy.journal.projections import version_of
from thor_policy.learning import similarity
from thor_policy.learning.display import SILENT, Display
from thor_policy.learning.export import (
    ALIKE,
    FEW,
    LEAST,
    Correction,
    example_id,
    few_shot,
    gather,
    refuse_too_few,
)
from thor_policy.learning.promotion.promote import active_pack, promote
from thor_policy.learning.promotion.report import Promotion, Terms
from thor_policy.policy import pack_files, yaml_text
from thor_policy.policy.lint import lint_pack
from thor_policy.policy.pack import Example, Manifest, Pack
from thor_policy.security import signatures
from thor_policy.suites import leaks, runner
from thor_policy.suites.scenarios import Embedder, Suite

#: The version and the superseded version in the manifest, each on a line of its own.
_VERSION = re.compile(r"^version:.*$", re.MULTILINE)
_SUPERSEDES = re.compile(r"^supersedes:.*\n?", re.MULTILINE)
#: The last number in a version.
_LAST_NUMBER = re.compile(r"(\d+)(?!.*\d)", re.DOTALL)


class Improvement(Struct, frozen=True, kw_only=True):
    """A proposal: the pack `pack` in the directory `path`, its examples, and the result of the gate.

    `corrected` are the ids of examples from corrections, `kept` the ids of examples of the active pack.
    """

    pack: PackInfo
    path: str
    corrections: int
    corrected: tuple[str, ...]
    kept: tuple[str, ...]
    promotion: Promotion


def improve(
    config: Config,
    folder: Path,
    terms: Terms,
    *,
    now: float,
    suites: Sequence[str] = (),
    key: Path | None = None,
    in_force: bool = False,
    load_engine: Callable[[Config], Engine] = loading.load_engine,
    announce: Callable[[str], None] = lambda _: None,
    display: Display = SILENT,
) -> Improvement:
    """Write the next pack to a directory of its own in `folder`, and send it through the gate.

    With `in_force` the result is recorded, and the pack activated if it passes. `key` signs the pack and its
    promotion. The other arguments are those of `promote`. Raises ExportError if there are too few corrections
    or they give no new example; ThorPolicyError.
    """
    signer = signatures.Key.open(key) if key is not None else None
    active, _ = active_pack(config)
    own_suites = [suite for suite in runner.find(suites) if suite.pack == active.info.name]
    no_embedder = missing(config.models_dir)
    embedder = None if no_embedder else MiniLM(config.models_dir)
    announce("reading corrections")
    with journal_access.open_reader(config) as reader, display.counting("reviews read") as progress:
        gathered = gather(reader, active, progress=progress)
    refuse_too_few(gathered, active, LEAST, "the next pack")
    corrected = corrected_examples(gathered.corrections, active, own_suites, embedder)
    examples, unchanged = next_examples(corrected, active)
    if all(example in active.examples for example in examples):
        raise ExportError(
            f"the {len(gathered.corrections)} corrections give {active.info.name} no new example; an example "
            "needs a class and a reason, and lint must accept it: review more"
        )
    pack = write(active, examples, folder, of=len(corrected))
    if signer is not None:
        signatures.sign_pack(pack.info, pack.path / pack_files.SIGNATURE, signer)
    promotion = promote(
        config,
        [str(pack.path)],
        terms,
        now=now,
        suites=suites,
        key=key,
        dry_run=not in_force,
        load_engine=load_engine,
        announce=announce,
        display=display,
    )
    return Improvement(
        pack=pack.info,
        path=str(pack.path),
        corrections=len(gathered.corrections),
        corrected=tuple(example.id for example in corrected if example in examples),
        kept=tuple(example.id for example in unchanged),
        promotion=promotion,
    )


def corrected_examples(
    corrections: Sequence[Correction], active: Pack, suites: Sequence[Suite], embedder: Embedder | None
) -> list[Example]:
    """The examples from corrections: none with a masked value, none that gives a scenario away."""
    scenarios = [scenario for suite in suites for scenario in suite.scenarios]
    usable = [correction for correction in corrections if not correction.provenance.masked]
    while True:
        questions = [similarity.shingles(correction.question) for correction in usable]
        grouped = similarity.groups(questions, ALIKE)
        chosen = few_shot(usable, grouped, active)
        revised = active.revised(examples=chosen)
        leaking = {leak.example for leak in leaks.find(scenarios, revised, embedder)}
        if not leaking:
            return chosen
        usable = [correction for correction in usable if example_id(correction) not in leaking]


def next_examples(corrected: Sequence[Example], active: Pack) -> tuple[list[Example], list[Example]]:
    """All examples of the next pack, and those among them that the active pack has.

    Every outcome has an example. Otherwise there are no more examples than before: the prompt grows no
    longer.
    """
    most = max(len(active.examples), len(active.labels))
    shown = {example.outcome for example in corrected}
    new = {example.id for example in corrected}
    old = [example for example in active.examples if example.id not in new]
    unchanged = [example for example in old if example.outcome not in shown][: most - 1]
    taken = list(corrected)[: min(FEW, most - len(unchanged))]
    more = [example for example in old if example not in unchanged]
    unchanged += more[: most - len(unchanged) - len(taken)]
    return [*unchanged, *taken], unchanged


def write(active: Pack, examples: Sequence[Example], folder: Path, *, of: int) -> Pack:
    """Write the active pack with other examples to `folder`/NAME-VERSION.

    VERSION is the next one that is free there. `of` is the number of corrections that gave an example. Raises
    PackError if the pack cannot be written, or lint finds an error in it.
    """
    manifest, directory = next_manifest(active, folder)
    examples_text = (
        f"# {len(examples)} examples of {active.info.name} {manifest.version}; {of} corrections gave one. An "
        "id that begins with C- ends\n# as the id of the decision that was corrected.\n"
        f"{pack_files.as_yaml(examples)}"
    )
    return write_texts(active, manifest, {"examples.yaml": examples_text}, directory)


def next_manifest(active: Pack, folder: Path) -> tuple[Manifest, Path]:
    """The manifest of the next version that is free in `folder`, and the directory for it."""
    version = next_version(active.info.version)
    while (folder / f"{active.info.name}-{version}").exists():
        version = next_version(version)
    manifest = structs.replace(active.manifest, version=version, supersedes=version_of(active.info))
    return manifest, folder / f"{active.info.name}-{version}"


def write_texts(active: Pack, manifest: Manifest, changed: Mapping[str, str], directory: Path) -> Pack:
    """Write the active pack with other texts of some files, and the manifest's version, to a new directory.

    Raises PackError if the pack cannot be written, if its manifest is not `manifest`, or if lint finds an
    error in it.
    """
    texts = dict(pack_files.PackFiles(active.path).texts)
    if pack_files.load(active.path).info != active.info:
        raise PackError(f"{active.path} has changed since it was read; run the command again")
    texts |= changed
    texts["pack.yaml"] = _with_version(texts["pack.yaml"], manifest, active.path / "pack.yaml")
    partial = directory.with_name(f".{directory.name}.part")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True, mode=0o750)
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8")
        findings = lint_pack(pack_files.load(partial))
        errors = [finding for finding in findings if finding.level == "error"]
        if errors:
            raise PackError(f"{partial}: {errors[0].where}: {errors[0].message}")
        partial.rename(directory)
    except OSError as error:
        raise PackError(f"{directory}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return pack_files.load(directory.absolute())


def next_version(version: str) -> str:
    """The version with its last number increased by one; `.1` is appended to a version without a number."""
    if not _LAST_NUMBER.search(version):
        return f"{version}.1"
    return _LAST_NUMBER.sub(lambda match: str(int(match[1]) + 1), version, count=1)


def _with_version(text: str, manifest: Manifest, where: Path) -> str:
    """The text of a manifest with the version and `supersedes` of `manifest`; comments stay.

    Raises PackError if the result is not `manifest`.
    """
    lines = f"version: {_quoted(manifest.version)}\nsupersedes: {_quoted(manifest.supersedes or '')}"
    changed = _VERSION.sub(lambda _: lines, _SUPERSEDES.sub("", text), count=1)
    if yaml_text.parse(changed, Manifest, where) != manifest:
        raise PackError(f"{where}: version cannot be changed; put `version: ...` on a line of its own")
    return changed


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
