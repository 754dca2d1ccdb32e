"""The checks of `thorpolicy doctor`: what this machine has and lacks, and the command that fixes it.

Owns the checks behind `thorpolicy doctor`. Invariant: a check never raises and changes nothing but an
empty file that it removes again; what it cannot find out it reports as unknown. Any process, also beside a
daemon.
"""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from thor_policy import catalog
from thor_policy.client.blocking import Client
from thor_policy.config import Config, data_path
from thor_policy.core.decisions import PackInfo
from thor_policy.core.errors import DigestMismatch, ThorPolicyError
from thor_policy.core.status import Status
from thor_policy.daemon.board_checks import BOARD_CHECKS, Subject
from thor_policy.daemon.findings import Finding
from thor_policy.journal.reader import Reader
from thor_policy.policy import pack_files
from thor_policy.policy.lint import lint_pack
from thor_policy.security import files
from thor_policy.telemetry.board import Board

#: SQLite versions in which two connections can corrupt a write-ahead log by resetting it at once.
WAL_RESET_BUG = ((3, 7, 0), (3, 51, 2))
#: Free space below which a journal will soon fail, in bytes.
LOW_DISK_BYTES = 1 << 30


def examine(
    config: Config, *, root: Path = Path("/"), advance: Callable[[], None] = lambda: None
) -> list[Finding]:
    """The findings of all `CHECKS`, and of the board's checks on a Jetson; `advance` is called after each.

    `root`: where the board's file system begins. Another one than `/` is a copy of a board's files.
    """
    findings = []
    for check in CHECKS:
        findings.append(check(config))
        advance()
    if (board := Board(root)).is_jetson:
        subject = Subject(config=config, board=board, status=_status(config) if root == Path("/") else None)
        for board_check in BOARD_CHECKS:
            findings.append(board_check(subject))
            advance()
    return findings


def count_checks(root: Path) -> int:
    """How many checks `examine` makes."""
    return len(CHECKS) + (len(BOARD_CHECKS) if Board(root).is_jetson else 0)


def _status(config: Config) -> Status | None:
    try:
        with Client(config.endpoint, key=config.key_file, timeout_ms=2_000) as client:
            return client.status()
    except ThorPolicyError:
        return None


def _device(_config: Config) -> Finding:
    cores = len(os.sched_getaffinity(0))
    board = _read(Path("/proc/device-tree/model")) or platform.machine()
    memory_gb = _meminfo_kb("MemAvailable") / 1e6
    detail = f"{board}, {cores} cores, {memory_gb:.1f} GB free, Python {platform.python_version()}"
    return Finding(name="device", state="ok", detail=detail)


def _engine(config: Config) -> Finding:
    if config.engine_url:
        return _server(config)
    try:
        from thor_policy.engine.native import build_name, gpu_offload
    except (ImportError, OSError, RuntimeError) as error:
        return Finding(name="engine", state="missing", detail=str(error), cure="./scripts/setup")
    gpu = Path("/dev/nvidiactl").exists() or Path("/dev/nvmap").exists()
    if gpu_offload():
        return Finding(name="engine", state="ok", detail=f"{build_name()}, with CUDA")
    if gpu:
        return Finding(
            name="engine",
            state="warning",
            detail=f"{build_name()}, built for the CPU, on a machine with a GPU",
            cure="rm -r .venv && ./scripts/demo (it sets the CUDA build flags)",
        )
    return Finding(name="engine", state="ok", detail=f"{build_name()}, CPU; no CUDA device here")


def _server(config: Config) -> Finding:
    from thor_policy.engine.http import read_key
    from thor_policy.engine.remote import RemoteEngine

    try:
        engine = RemoteEngine(
            config.engine_url,
            key=read_key(config.engine_key),
            model=config.engine_model,
            template=config.engine_template,
        )
    except ThorPolicyError as error:
        cure = "start it, or leave engine_url empty to run the model in this process"
        return Finding(name="engine", state="missing", detail=str(error), cure=cure)
    engine.close()
    detail = f"{engine.model.name} on {engine.model.build} at {config.engine_url}, not bit-exact"
    return Finding(name="engine", state="ok", detail=detail)


def _model(config: Config) -> Finding:
    if config.engine_url:
        return Finding(name="model", state="ok", detail="not needed here: engine_url names a server")
    try:
        file = catalog.resolve(config.model, config.models_dir)
    except DigestMismatch as error:
        cure = f"find out who changed it; to fetch it again: thorpolicy models pull {config.model} --force"
        return Finding(name="model", state="missing", detail=str(error), cure=cure)
    except ThorPolicyError as error:
        return Finding(
            name="model", state="missing", detail=str(error), cure=f"thorpolicy models pull {config.model}"
        )
    return Finding(name="model", state="ok", detail=f"{file.name}, sha256 {file.sha256[:12]}, {file.path}")


def _pack(config: Config) -> Finding:
    try:
        pack = pack_files.load(pack_files.find(config.pack, data_path("prompts")), config.pack_keys)
    except ThorPolicyError as error:
        return Finding(name="pack", state="missing", detail=str(error), cure="thorpolicy packs list")
    wrong = [finding for finding in lint_pack(pack) if finding.level == "error"]
    detail = f"{pack.info.name} {pack.info.version}, sha256 {pack.info.sha256[:12]}"
    if wrong:
        cure = f"thorpolicy packs lint {config.pack}"
        return Finding(name="pack", state="warning", detail=f"{detail}: {len(wrong)} errors", cure=cure)
    if newer := _taken_over(config, pack.info):
        newest = f"{newer['version']} took its place by a promotion at {newer['timestamp']}"
        cure = f"set pack to the folder of {newer['version']}: a start goes back to this one"
        return Finding(name="pack", state="warning", detail=f"{detail}; {newest}", cure=cure)
    return Finding(name="pack", state="ok", detail=detail)


def _taken_over(config: Config, pack: PackInfo) -> dict[str, Any] | None:
    try:
        with Reader(config.journal_path) as reader:
            return reader.taken_over(pack)
    except ThorPolicyError:  # no readable journal: other checks report that
        return None


def _state_dir(config: Config) -> Finding:
    try:
        config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
        files.check_directory(config.state_dir)
        with tempfile.TemporaryFile(dir=config.state_dir):
            pass
    except OSError as error:
        return Finding(
            name="state dir",
            state="missing",
            detail=f"{config.state_dir}: {error.strerror}",
            cure="choose a directory that you may write: --state-dir DIR",
        )
    except ValueError as error:
        flaw, _, cure = str(error).partition("; ")
        return Finding(name="state dir", state="missing", detail=f"{config.state_dir}: {flaw}", cure=cure)
    return Finding(name="state dir", state="ok", detail=str(config.state_dir))


def _disk(config: Config) -> Finding:
    folder = next(path for path in (config.state_dir, *config.state_dir.parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    low = free < LOW_DISK_BYTES
    return Finding(
        name="disk",
        state="warning" if low else "ok",
        detail=f"{free / 1e9:.1f} GB free for the journal",
        cure="free some space, or choose another --state-dir" if low else None,
    )


def _sqlite(_config: Config) -> Finding:
    version = sqlite3.sqlite_version_info
    if WAL_RESET_BUG[0] <= version <= WAL_RESET_BUG[1]:
        return Finding(
            name="sqlite",
            state="warning",
            detail=f"{sqlite3.sqlite_version}: two writers at once can corrupt a write-ahead log",
            cure="nothing to do while only thorpolicy opens the file for writing; SQLite 3.51.3 fixes it",
        )
    return Finding(name="sqlite", state="ok", detail=sqlite3.sqlite_version)


def _daemon(config: Config) -> Finding:
    try:
        with Client(config.endpoint, key=config.key_file, timeout_ms=2_000) as client:
            status = client.status()
    except ThorPolicyError as error:
        return Finding(name="daemon", state="warning", detail=str(error), cure="thorpolicy serve")
    if trouble := status.trouble:
        return Finding(name="daemon", state="warning", detail=trouble, cure="see thorpolicy status")
    if damage := status.journal.damage:
        cure = "thorpolicy log verify; then restore a backup (docs/how-to/operate.md)"
        return Finding(name="daemon", state="warning", detail=f"the journal is damaged: {damage}", cure=cure)
    return Finding(name="daemon", state="ok", detail=f"{status.state} at {config.endpoint}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _meminfo_kb(name: str) -> int:
    """A value of /proc/meminfo in kB; on a Jetson, free GPU memory is MemAvailable too."""
    for line in _read(Path("/proc/meminfo")).splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    return 0


#: Every check, in the order in which a start needs them.
CHECKS: tuple[Callable[[Config], Finding], ...] = (
    _device,
    _engine,
    _model,
    _pack,
    _state_dir,
    _disk,
    _sqlite,
    _daemon,
)
