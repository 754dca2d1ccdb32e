"""Model files: which exist, which may be loaded, and whether a file is still the known one.

Owns the reading of models/catalog.toml, and `digests.json` in the models directory with its lock. Invariant:
a `ModelFile` carries the sha256 of the bytes at its path; a catalog model has the pinned bytes, or the bytes
and the commit of its first use.

Hashing 9 GB at every start is slow, so `digests.json` stores each digest with the file's size, mtime, inode
and ctime, and only a file whose stat changed is read again. It is a cache, not a protection: whoever can
write the models directory can rewrite it. The `.*.lock` files are never deleted: deleting one that another
process is about to lock would let two processes in. `fetching` downloads, so that a daemon starts without
httpx.

Called from the main thread at start and by the `models` commands; never from the engine thread.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from thor_policy.config import data_path
from thor_policy.core import strict_toml
from thor_policy.core.decisions import Rendering
from thor_policy.core.errors import CatalogError, DigestMismatch
from thor_policy.security import files

#: The first bytes of every GGUF file.
MAGIC = b"GGUF"

#: Parts of a split model are refused: llama.cpp loads the other parts itself, and no digest covers those.
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf\Z")

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]

#: A commit of a hub repository. Its files never change; those of a branch or tag may.
COMMIT = re.compile(r"[0-9a-f]{40}")


class WheelSource(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="wheel"
):
    """A file inside a Python wheel; `sha256` is that of the whole wheel."""

    package: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z")]
    version: Annotated[str, Meta(pattern=r"^[0-9][A-Za-z0-9.+!_-]*\Z")]
    member: Annotated[str, Meta(min_length=1)]
    sha256: Sha256


class HubSource(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="hub"):
    """A file of a model hub repository; `revision` is a branch, tag or commit."""

    repo: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z")]
    file: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][\w./-]*\Z")]
    revision: Annotated[str, Meta(min_length=1)]

    @property
    def commit(self) -> str | None:
        """`revision` if it is a commit, else None."""
        return self.revision if COMMIT.fullmatch(self.revision) else None


class ShippedSource(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="shipped"
):
    """A small file that ships with thor-policy, in `folder` below models/."""

    folder: Annotated[str, Meta(pattern=r"^[a-z]+\Z")]


class CatalogModel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of the catalog.

    It has `sha256`, or `recorded_at_first_use`: then the digest of the first use, and the commit of a hub's
    file, are recorded and enforced. Only a GGUF from a hub may be recorded. Only a GGUF can decide; other
    files are parts of the embedder. An entry with
    `base` is a LoRA adapter for the model of that name; `companion` names the adapter that a model uses
    unless the setting `adapter` says otherwise. `rendering` is what the file of a pinned adapter says; an
    adapter without it is read to know.
    """

    name: Annotated[str, Meta(pattern=r"^(?!.*\.gguf\Z)[a-z0-9][a-z0-9._-]*\Z")]
    file: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.(gguf|safetensors|json)\Z")]
    size_bytes: Annotated[int, Meta(gt=0)]
    licence: str
    description: str
    recommended_on: Literal["cpu", "cuda"]
    source: WheelSource | HubSource | ShippedSource
    sha256: Sha256 | None = None
    recorded_at_first_use: bool = False
    base: str | None = None
    companion: str | None = None
    rendering: Rendering | None = None

    @property
    def is_gguf(self) -> bool:
        return self.file.endswith(".gguf")

    @property
    def commit(self) -> str | None:
        """The commit that the file must come from: None for a branch, and where `sha256` pins the bytes."""
        return self.source.commit if isinstance(self.source, HubSource) and not self.sha256 else None

    def path(self, models_dir: Path) -> Path:
        """The path of its file, whether it exists or not."""
        if isinstance(self.source, ShippedSource):
            return data_path("models") / self.source.folder / self.file
        return models_dir.absolute() / self.file


class ModelFile(Struct, frozen=True, kw_only=True):
    """A model file that may be loaded. `name` is the catalog's name, or the file name of a path.

    `base` is set for an adapter of the catalog; `rendering` is the prompt rendering that an adapter needs.
    """

    name: str
    path: Path
    sha256: str
    base: str | None = None
    rendering: Rendering = "full"


class Verdict(Struct, frozen=True, kw_only=True):
    """A result of `verify`: `expected` is the pinned or recorded sha256, `actual` that of the file.

    `commit` is the recorded one, `expected_commit` that of the catalog. JSON calls `actual` `found`.
    """

    path: Path
    expected: str | None
    actual: str | None = msgspec.field(name="found")
    commit: str | None = None
    expected_commit: str | None = None

    @property
    def status(self) -> Literal["ok", "missing", "wrong", "unrecorded"]:
        if self.actual is None:
            return "missing"
        if self.expected is None:
            return "unrecorded"
        right_commit = None in (self.commit, self.expected_commit) or self.commit == self.expected_commit
        return "ok" if self.actual == self.expected and right_commit else "wrong"


class Listed(Struct, frozen=True, kw_only=True):
    """A row of `listing`. `sha256` is the recorded digest if the file has not changed since, else None."""

    model: CatalogModel
    present: bool
    sha256: str | None
    path: Path


class _File(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: tuple[CatalogModel, ...]


class Catalog(Struct, frozen=True, kw_only=True):
    """The models of a catalog file, in its order."""

    models: tuple[CatalogModel, ...]

    @classmethod
    def load(cls, path: Path | None = None) -> Catalog:
        """Read a catalog file (default: the shipped one). Raises CatalogError that names file and field."""
        path = path or data_path("models") / "catalog.toml"
        with _reading(path):
            return cls.parse(path.read_bytes(), str(path))

    @classmethod
    def parse(cls, text: bytes, where: str) -> Catalog:
        """Read the TOML of a catalog. Raises CatalogError, which calls the catalog `where`."""
        try:
            models = msgspec.convert(strict_toml.decode(text), _File).model
        except (msgspec.ValidationError, ValueError) as error:
            raise CatalogError(f"{where} is not a model catalog: {error}") from error
        for field in ("name", "file"):
            values = [getattr(model, field) for model in models]
            if duplicates := {value for value in values if values.count(value) > 1}:
                raise CatalogError(f"{where}: two models have the {field} {min(duplicates)!r}")
        for model in models:
            if not (model.is_gguf or model.sha256):
                raise CatalogError(f"{where}: {model.name}: sha256 is required for a file that is not a GGUF")
            if not (model.sha256 or (model.recorded_at_first_use and isinstance(model.source, HubSource))):
                raise CatalogError(
                    f"{where}: {model.name}: sha256 is required; where the publisher states none for a file "
                    "of a hub, write recorded_at_first_use = true"
                )
            if model.sha256 and model.recorded_at_first_use:
                raise CatalogError(
                    f"{where}: {model.name}: recorded_at_first_use has no meaning beside sha256; remove it"
                )
            if model.rendering and not (model.sha256 and model.base):
                raise CatalogError(f"{where}: {model.name}: rendering is only for an adapter with a sha256")
        whole = {model.name for model in models if model.base is None}
        for model in models:
            if model.base is not None and model.base not in whole:
                raise CatalogError(
                    f"{where}: {model.name}: base {model.base!r} is not a model of this catalog"
                )
            bases = [adapter.base for adapter in models if adapter.name == model.companion]
            if model.companion is not None and bases != [model.name]:
                raise CatalogError(
                    f"{where}: {model.name}: companion {model.companion!r} is not an adapter for this model"
                )
        return cls(models=models)

    def get(self, name: str) -> CatalogModel:
        """The model called `name`. Raises CatalogError that lists the known names."""
        for model in self.models:
            if model.name == name:
                return model
        known = ", ".join(model.name for model in self.models)
        raise CatalogError(f"no model is called {name!r}; known: {known}; the path of a GGUF file works too")


def resolve(name_or_path: str, models_dir: Path, *, catalog: Catalog | None = None) -> ModelFile:
    """The file to load for a catalog name or a path, and its sha256.

    The file of a name must be in `models_dir` and be the pinned file, or the file of its first use, which is
    recorded. A path (a text that contains `/`, ends in `.gguf`, or names an existing file) may be any GGUF.
    It belongs to the user: after a change it is hashed again, and decisions record the new digest. A path to
    a catalog model's file in `models_dir` is treated as the model's name. Where the models directory cannot
    be written, the digest is computed each time. Raises CatalogError, or DigestMismatch.
    """
    catalog = catalog or Catalog.load()
    path = Path(os.path.expanduser(name_or_path)).absolute()  # noqa: PTH111  an unknown ~user stays as it is
    key = _key(path, models_dir)
    for model in catalog.models:
        if name_or_path == model.name or key == model.file:
            return _resolve_model(model, models_dir)
    with _reading(path):
        if "/" not in name_or_path and not name_or_path.endswith(".gguf") and not path.is_file():
            catalog.get(name_or_path)
        if not path.is_file():
            raise CatalogError(f"there is no model file {path}; see: thorpolicy models list")
        if _SPLIT.search(path.name):
            raise CatalogError(f"{path} is one part of a split model; run: llama-gguf-split --merge")
        _require_gguf(path)
        digest, known = _digest_of(path, models_dir, key)
    _record_change(models_dir, key, digest, known)
    return ModelFile(name=path.name, path=path, sha256=digest.sha256)


def resolve_adapter(name_or_path: str, models_dir: Path, *, catalog: Catalog | None = None) -> ModelFile:
    """As `resolve`, for a LoRA adapter. Raises CatalogError, also for the name of a whole model."""
    catalog = catalog or Catalog.load()
    file = resolve(name_or_path, models_dir, catalog=catalog)
    if file.base is None and file.name in {model.name for model in catalog.models}:
        raise CatalogError(f"{file.name} is a whole model, not an adapter; see: thorpolicy adapters list")
    rendering = next((model.rendering for model in catalog.models if model.name == file.name), None)
    if rendering is None:
        from thor_policy.catalog.adapters import rendering_of  # takes 50 ms with the import of gguf

        rendering = rendering_of(file.path)
    return msgspec.structs.replace(file, rendering=rendering)


def companion_of(name: str, *, catalog: Catalog | None = None) -> str | None:
    """The name of the adapter that a model uses unless the setting `adapter` says otherwise, or None."""
    companions = {model.name: model.companion for model in (catalog or Catalog.load()).models}
    return companions.get(name)


def _resolve_model(model: CatalogModel, models_dir: Path) -> ModelFile:
    path = model.path(models_dir)
    with _reading(path):
        if not path.is_file():
            if isinstance(model.source, ShippedSource):
                raise CatalogError(f"{path} ships with thor-policy and is missing; install thor-policy again")
            raise CatalogError(
                f"{model.name} is not in {models_dir}; run: thorpolicy models pull {model.name}"
            )
        digest, known = _digest_of(path, models_dir, model.file)
    cure = f"to fetch it again and accept it: thorpolicy models pull {model.name} --force"
    if known and known.commit and model.commit not in (None, known.commit):
        raise DigestMismatch(f"{path} is the file of commit {known.commit}, not of {model.commit}; {cure}")
    expected, size_bytes = expected_sha256(model, known), digest.stat[0]
    if expected not in (None, digest.sha256):
        raise DigestMismatch(
            f"{path} is not the known file of {model.name}: expected sha256 {expected}, "
            f"found {digest.sha256} ({size_bytes} bytes); {cure}"
        )
    if size_bytes != model.size_bytes:
        raise CatalogError(f"{path}: expected {model.size_bytes} bytes, found {size_bytes}; {cure}")
    if model.is_gguf:
        _require_gguf(path)
    _record_change(models_dir, model.file, digest, known)
    return ModelFile(name=model.name, path=path, sha256=digest.sha256, base=model.base)


def verify(
    model: CatalogModel | Path, models_dir: Path, *, progress: Progress = lambda _done, _total: None
) -> Verdict:
    """Hash the whole file, whatever is recorded, and compare; writes nothing. Raises CatalogError."""
    path = model.absolute() if isinstance(model, Path) else model.path(models_dir)
    key = _key(path, models_dir) if isinstance(model, Path) else model.file
    known = recorded(models_dir).get(key)
    expected = expected_sha256(None if isinstance(model, Path) else model, known)
    with _reading(path):
        actual = hash_file(path, progress=progress).sha256 if path.is_file() else None
    return Verdict(
        path=path,
        expected=expected,
        actual=actual,
        commit=known.commit if known else None,
        expected_commit=None if isinstance(model, Path) else model.commit,
    )


def listing(models_dir: Path, *, catalog: Catalog | None = None) -> list[Listed]:
    """Every model of the catalog and whether its file is present; hashes nothing. Raises CatalogError."""
    records, rows = recorded(models_dir), []
    for model in (catalog or Catalog.load()).models:
        path, known, sha256 = model.path(models_dir), records.get(model.file), None
        with _reading(path):
            present = path.is_file()
            if present and known and known.stat == stat_of(path.stat()):
                sha256 = known.sha256 if known.sha256 == expected_sha256(model, known) else None
        rows.append(Listed(model=model, present=present, sha256=sha256, path=path))
    return rows


# ---------------------------------------------------------------- digests

#: Largest file of recorded digests, in bytes.
MAX_DIGESTS_BYTES = 16 * 2**20
#: How much of a file is read at a time, in bytes.
READ_BYTES = 1 << 20

#: Called with the bytes done so far and the bytes in total.
Progress: TypeAlias = Callable[[int, int], None]
#: Size in bytes, mtime in ns, inode, ctime in ns.
Stat: TypeAlias = tuple[int, int, int, int]


class Digest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The sha256 of a file, the stat of the file when it was hashed, and the commit that it was pulled from.

    `commit` is None for a file that no hub gave.
    """

    sha256: Sha256
    stat: Stat
    commit: Annotated[str, Meta(pattern=rf"^{COMMIT.pattern}\Z")] | None = None


def stat_of(stat: os.stat_result) -> Stat:
    """The fields of a stat that change with the file."""
    return stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns


def expected_sha256(model: CatalogModel | None, known: Digest | None) -> str | None:
    """The sha256 that a file must have: the pinned one, else the recorded one; None before the first use."""
    return (model and model.sha256) or (known.sha256 if known else None)


def hash_file(path: Path, *, progress: Progress = lambda _done, _total: None) -> Digest:
    """Read the whole file; `progress` is called with the bytes so far and in total.

    Raises OSError, and CatalogError if the file changed meanwhile.
    """
    sha256 = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        before = stat_of(os.fstat(file.fileno()))
        done, size_bytes = 0, before[0]
        while chunk := file.read(READ_BYTES):
            sha256.update(chunk)
            progress(done := done + len(chunk), size_bytes)
        if stat_of(os.fstat(file.fileno())) != before:
            raise CatalogError(f"{path} changed while it was read; wait until its writer is done, then retry")
    return Digest(sha256=sha256.hexdigest(), stat=before)


def recorded(models_dir: Path) -> dict[str, Digest]:
    """Every recorded digest by file name, or by path outside `models_dir`. Raises CatalogError."""
    path = models_dir / "digests.json"
    with _reading(path):
        try:
            content = files.read_own(path, max_bytes=MAX_DIGESTS_BYTES, owners=files.owners_beside(path))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except ValueError as error:
            raise CatalogError(f"the recorded digests in {path} cannot be used: it {error}") from error
        try:
            return msgspec.json.decode(content, type=dict[str, Digest])
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise CatalogError(
                f"the recorded digests in {path} are damaged ({error}); restore the file, or delete it to "
                "accept the models as they are now"
            ) from error


def record(models_dir: Path, key: str, digest: Digest) -> None:
    """Record a digest; it replaces an older one. Raises OSError or CatalogError."""
    models_dir.mkdir(parents=True, exist_ok=True)
    with lock(models_dir / ".digests.lock"):
        records = recorded(models_dir) | {key: digest}
        content = msgspec.json.format(msgspec.json.encode(records), indent=1)
        files.place(models_dir / "digests.json", content, 0o644, over=True)


@contextmanager
def lock(path: Path, *, busy: str | None = None) -> Iterator[None]:
    """Hold a lock file; with `busy`, raise CatalogError with that text instead of waiting."""
    try:
        file = os.fdopen(files.open_own(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
    except ValueError as error:
        raise CatalogError(f"the lock {path} {error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError as error:
            raise CatalogError(f"{busy}: it holds {path}; wait until it ends") from error
        yield


def _key(path: Path, models_dir: Path) -> str:
    folder, models = (
        os.path.realpath(place) for place in (path.parent, models_dir)
    )  # never raises for a loop
    return path.name if folder == models else str(path)


def _digest_of(path: Path, models_dir: Path, key: str) -> tuple[Digest, Digest | None]:
    """The file's digest now, and the recorded one; reads the file only if its stat changed."""
    known = recorded(models_dir).get(key)
    if known is not None and known.stat == stat_of(path.stat()):
        return known, known
    digest = hash_file(path)
    if known is not None and known.sha256 == digest.sha256:
        digest = msgspec.structs.replace(digest, commit=known.commit)
    return digest, known


def _record_change(models_dir: Path, key: str, digest: Digest, known: Digest | None) -> None:
    """Record `digest` if it is new. If that is not possible, the next start hashes again."""
    with suppress(OSError, CatalogError):
        if digest != known:
            record(models_dir, key, digest)


def _require_gguf(path: Path) -> None:
    with _reading(path), path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise CatalogError(f"{path} is not a GGUF file: its first bytes are not {MAGIC.decode()}")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CatalogError(f"cannot read {path}: {error.strerror}") from error
