"""The next pack, proposed from what reviewers corrected: other examples, the same everything else.

Owns how a proposal is made and where it is put. Invariant: of the pack that decides nothing is written
over; the proposal lies whole in a directory of its own or not at all, and differs from that pack in
version, supersedes and examples alone. It is a proposal: the gate has the last word. Main thread of a
command.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
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
from thor_policy.policy import pack_files
from thor_policy.policy.lint import lint_pack
from thor_policy.policy.pack import Example, Manifest, Pack
from thor_policy.security import signatures
from thor_policy.suites import leaks, runner
from thor_policy.suites.scenarios import Embedder, Suite

#: Where the manifest says which version it is: a line of its own.
_VERSION = re.compile(r"^version:.*$", re.MULTILINE)
_SUPERSEDES = re.compile(r"^supersedes:.*\n?", re.MULTILINE)
#: The last number in a version.
_LAST_NUMBER = re.compile(r"(\d+)(?!.*\d)", re.DOTALL)


class Improvement(Struct, frozen=True, kw_only=True):
    """A proposal: the pack `pack` in the directory `path`, what it shows as examples, and what the gate says.

    `corrected` are the ids of examples that came from corrections, `kept` of those that stayed.
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
) -> Improvement:
    """Write the next pack to a directory of its own in `folder`, and send it through the gate.

    With `in_force` it is recorded, and activated if it passes. `key` signs the pack, and its promotion. The
    other arguments are those of `promote`. Raises ExportError where there are too few corrections, or nothing
    to swap in; ThorPolicyError.
    """
    signer = signatures.Key.open(key) if key is not None else None
    active, _ = active_pack(config)
    own = [one for one in runner.find(suites) if one.pack == active.info.name]
    no_embedder = missing(config.models_dir)
    embedder = None if no_embedder else MiniLM(config.models_dir)
    with journal_access.open_reader(config) as reader:
        announce("reading corrections")
        gathered = gather(reader, active)
    refuse_too_few(gathered, active, LEAST, "the next pack")
    corrected = swapped_in(gathered.corrections, active, own, embedder)
    examples, kept = next_examples(corrected, active)
    if all(example in active.examples for example in examples):
        raise ExportError(
            f"the {len(gathered.corrections)} corrections give {active.info.name} no example that it does "
            "not show yet; an example needs a class and a reason, and lint to accept it: review more"
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
    )
    return Improvement(
        pack=pack.info,
        path=str(pack.path),
        corrections=len(gathered.corrections),
        corrected=tuple(example.id for example in corrected if example in examples),
        kept=tuple(example.id for example in kept),
        promotion=promotion,
    )


def swapped_in(
    corrections: Sequence[Correction], active: Pack, suites: Sequence[Suite], embedder: Embedder | None
) -> list[Example]:
    """The examples that corrections give: none masked, none that asks what a scenario asks."""
    scenarios = [scenario for suite in suites for scenario in suite.scenarios]
    usable = [one for one in corrections if not one.provenance.masked]
    while True:
        grouped = similarity.groups([similarity.shingles(one.question) for one in usable], ALIKE)
        chosen = few_shot(usable, grouped, active)
        leaked = {one.example for one in leaks.find(scenarios, active.revised(examples=chosen), embedder)}
        if not leaked:
            return chosen
        usable = [one for one in usable if example_id(one) not in leaked]


def next_examples(corrected: Sequence[Example], active: Pack) -> tuple[list[Example], list[Example]]:
    """All examples of the next pack, and those of the active one among them: one of each outcome at least.

    There are no more of them than there were, so that the prompt gets no longer, but one of each outcome.
    """
    most = max(len(active.examples), len(active.labels))
    shown = {example.outcome for example in corrected}
    new = {example.id for example in corrected}
    kept = [one for one in active.examples if one.outcome not in shown and one.id not in new][: most - 1]
    taken = list(corrected)[: min(FEW, most - len(kept))]
    more = [one for one in active.examples if one not in kept and one.id not in new]
    kept += more[: most - len(kept) - len(taken)]
    return [*kept, *taken], kept


def write(active: Pack, examples: Sequence[Example], folder: Path, *, of: int) -> Pack:
    """The active pack with other examples, in `folder`/NAME-VERSION under the next version that is free.

    Raises PackError if it cannot be written, or lint finds an error in it.
    """
    version = next_version(active.info.version)
    while (folder / f"{active.info.name}-{version}").exists():
        version = next_version(version)
    directory = folder / f"{active.info.name}-{version}"
    wanted = structs.replace(active.manifest, version=version, supersedes=version_of(active.info))
    texts = {name: (active.path / name).read_text(encoding="utf-8") for name in pack_files.FILES}
    if pack_files.load(active.path).info != active.info:
        raise PackError(f"{active.path} has changed since it was read; begin again")
    texts["pack.yaml"] = _renamed(texts["pack.yaml"], wanted, active.path / "pack.yaml")
    texts["examples.yaml"] = (
        f"# {len(examples)} examples of {active.info.name} {version}; {of} corrections gave one. An id "
        "that begins with C- ends\n# as the id of the decision that was corrected.\n"
        f"{pack_files.as_yaml(examples)}"
    )
    partial = directory.with_name(f".{directory.name}.part")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True, mode=0o750)
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8")
        errors = [one for one in lint_pack(pack_files.load(partial)) if one.level == "error"]
        if errors:
            raise PackError(f"{partial}: {errors[0].where}: {errors[0].message}")
        partial.rename(directory)
    except OSError as error:
        raise PackError(f"{directory}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return pack_files.load(directory.absolute())


def next_version(version: str) -> str:
    """The version with its last number one higher; one without a number gets one."""
    if not _LAST_NUMBER.search(version):
        return f"{version}.1"
    return _LAST_NUMBER.sub(lambda found: str(int(found[1]) + 1), version, count=1)


def _renamed(text: str, wanted: Manifest, where: Path) -> str:
    """The manifest's text with another version and what it supersedes, its comments left as they are."""
    lines = f"version: {_quoted(wanted.version)}\nsupersedes: {_quoted(wanted.supersedes or '')}"
    changed = _VERSION.sub(lambda _: lines, _SUPERSEDES.sub("", text), count=1)
    if pack_files.parse_yaml(changed, Manifest, where) != wanted:
        raise PackError(f"{where}: its version cannot be changed; put `version: ...` on a line of its own")
    return changed


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
