"""The checks of `thorpolicy doctor` on a Jetson: what slows decisions there or keeps the GPU from them.

Owns the limits that a board is held to, and the cures. Invariant: a check never raises and changes nothing;
what the board does not say is reported as unknown, never as good. The limits come from NVIDIA's documents and
from reports of others; nothing was measured on a board. Any process, also beside a daemon.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

from msgspec import Struct

from thor_policy import catalog
from thor_policy.catalog.shapes import shape_of
from thor_policy.config import Config
from thor_policy.core.errors import ThorPolicyError
from thor_policy.core.status import Status
from thor_policy.daemon.findings import Finding
from thor_policy.telemetry.board import Board
from thor_policy.telemetry.cubins import architectures

#: JetPack and the release of CUDA that its driver has, by major release of Jetson Linux.
RELEASES = {36: ("6", (12, 6)), 38: ("7.0 or 7.1", (13, 0)), 39: ("7.2", (13, 2))}
#: Bytes that the memory of a chip moves in each cycle of its clock: 256 bits, twice. 4,266 MHz: 273 GB/s.
_BYTES_PER_CYCLE = {110: 64, 87: 64}
#: A step of a model reads all weights. One that takes so many times longer waits for something else.
#: An estimate.
SLOW_STEP = 4.0
#: Memory that the rest of the device keeps, as the unit's MemoryMax=75% leaves it.
SHARE_OF_MEMORY = 0.75
#: Nearer than this to the temperature at which clocks fall, in degrees Celsius, is worth a warning.
HEAT_MARGIN_C = 5.0
#: The user of the service (systemd/sysusers.conf).
SERVICE_USER = "thor-policy"
_GPU_DROP_IN = (
    "sudo install -D -m 644 systemd/gpu.conf /etc/systemd/system/thor-policy.service.d/gpu.conf; "
    "sudo systemctl daemon-reload"
)


class Subject(Struct, frozen=True, kw_only=True):
    """What the checks look at: the settings, the board, and the status of the daemon if one answers."""

    config: Config
    board: Board
    status: Status | None


Check: TypeAlias = Callable[[Subject], Finding]


def _jetpack(subject: Subject) -> Finding:
    board, name = subject.board, "jetpack"
    release, package, compiler = board.release(), board.core_package(), board.compiler()
    if release is None:
        return Finding(
            name=name,
            state="warning",
            detail="/etc/nv_tegra_release does not name a release",
            cure="flash the board with JetPack 7",
        )
    major, revision = release
    detail = f"Jetson Linux {major}.{revision}"
    if package and not package.startswith(f"{major}.{revision.removesuffix('.0')}"):
        return Finding(
            name=name,
            state="warning",
            detail=f"{detail}, but nvidia-l4t-core is {package}: an upgrade is half done",
            cure="sudo apt update && sudo apt full-upgrade, then restart the board",
        )
    if major not in RELEASES:
        return Finding(
            name=name,
            state="warning",
            detail=f"{detail} is not known here",
            cure="compare its CUDA with that of nvcc by hand: nvidia-smi, nvcc --version",
        )
    jetpack, cuda = RELEASES[major]
    detail += f", JetPack {jetpack}, CUDA {cuda[0]}.{cuda[1]}"
    toolkit = f"sudo apt install cuda-toolkit-{cuda[0]}-{cuda[1]}"
    if compiler is None:
        if _library(subject) is not None:
            return Finding(name=name, state="ok", detail=f"{detail}; no nvcc, and no need to build again")
        return Finding(name=name, state="warning", detail=f"{detail}; no nvcc to build with", cure=toolkit)
    detail += f"; nvcc {compiler[0]}.{compiler[1]}"
    if compiler[0] != cuda[0] or compiler > cuda:
        return Finding(
            name=name,
            state="warning",
            detail=f"{detail} is not that of the driver",
            cure=f"{toolkit}; CUDACXX=/usr/local/cuda-{cuda[0]}.{cuda[1]}/bin/nvcc ./scripts/setup",
        )
    return Finding(name=name, state="ok", detail=detail)


def _cuda_build(subject: Subject) -> Finding:
    capability, name = subject.board.capability, "cuda build"
    if subject.config.engine_url:
        return Finding(name=name, state="ok", detail="not needed here: engine_url names a server")
    flags = f"-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES={capability or 'native'}-real"
    cure = f'CUDACXX=/usr/local/cuda/bin/nvcc CMAKE_ARGS="{flags}" ./scripts/setup'
    library = _library(subject)
    if library is None:
        return Finding(
            name=name, state="warning", detail="no libggml-cuda.so: the model runs on the CPU", cure=cure
        )
    code = architectures(library)
    if code is None:
        return Finding(name=name, state="warning", detail=f"{library.name} has no CUDA code", cure=cure)
    if capability is None:
        return Finding(
            name=name, state="ok", detail=f"code for {_listed(code.cubins)}; the GPU is not known here"
        )
    if capability in code.cubins:
        return Finding(name=name, state="ok", detail=f"has code for sm_{capability}")
    detail = f"no code for sm_{capability}, but for {_listed(code.cubins)}"
    if any(number <= capability for number in code.ptx):
        detail += f"; the driver compiles {_listed(code.ptx)} at each first start"
        return Finding(name=name, state="warning", detail=detail, cure=cure)
    return Finding(name=name, state="missing", detail=f"{detail}: no kernel runs on this GPU", cure=cure)


def _memory(subject: Subject) -> Finding:
    config, name = subject.config, "memory"
    available, needed = subject.board.available_bytes(), _needed_bytes(config)
    if subject.status is not None:
        return Finding(name=name, state="ok", detail="the running daemon holds its model")
    if available is None or needed is None:
        return Finding(
            name=name,
            state="warning",
            detail="unknown: no MemAvailable, or no model file whose shape is readable",
            cure=f"thorpolicy models pull {config.model}",
        )
    weights, cache = needed
    detail = f"{weights / 1e9:.1f} GB weights + {cache / 1e9:.1f} GB cache of {available / 1e9:.1f} GB free"
    lower = "lower context_tokens or parallel_explanations, set kv_type = q8_0, or take a smaller model"
    if weights + cache > available:
        return Finding(name=name, state="missing", detail=detail, cure=lower)
    if weights + cache > SHARE_OF_MEMORY * available:
        return Finding(name=name, state="warning", detail=f"{detail}: little is left", cure=lower)
    return Finding(name=name, state="ok", detail=detail)


def _power_mode(subject: Subject) -> Finding:
    mode = subject.board.power_mode()
    if mode is None:
        return Finding(name="power mode", state="warning", detail="unknown", cure="sudo nvpmodel -q")
    if mode[1] == 0:
        return Finding(name="power mode", state="ok", detail=f"{mode[0]} (0), no cap")
    return Finding(
        name="power mode",
        state="warning",
        detail=f"{mode[0]} ({mode[1]}) caps the clocks",
        cure="sudo nvpmodel -m 0, if power supply and cooling allow it; it may restart the board",
    )


def _clocks(subject: Subject) -> Finding:
    gpu, memory = subject.board.gpu_clock(), subject.board.memory_clock()
    clocks = [(name, clock) for name, clock in (("GPU", gpu), ("memory", memory)) if clock]
    if len(clocks) < 2:
        return Finding(
            name="clocks", state="warning", detail="unknown", cure="sudo jetson_clocks --show as root"
        )
    detail = ", ".join(
        f"{name} {clock.current_hz / 1e6:,.0f} of {clock.highest_hz / 1e6:,.0f} MHz" for name, clock in clocks
    )
    if all(clock.pinned for _, clock in clocks):
        return Finding(name="clocks", state="ok", detail=f"pinned: {detail}")
    return Finding(
        name="clocks",
        state="warning",
        detail=f"not pinned: {detail}",
        cure="sudo jetson_clocks (until the next start; a unit can run it at boot: docs/how-to/jetson.md)",
    )


def _heat(subject: Subject) -> Finding:
    board, name = subject.board, "heat"
    zones, slowed, events = board.zones(), board.slowed(), board.overcurrent_events()
    if not zones:
        return Finding(name=name, state="warning", detail="no thermal zone is readable", cure="tegrastats")
    hottest = max(zones, key=lambda zone: zone.celsius)
    detail = f"{hottest.name} {hottest.celsius:.0f} C"
    limits = [zone for zone in zones if zone.throttles_c is not None]
    near = [zone for zone in limits if zone.celsius > (zone.throttles_c or 0.0) - HEAT_MARGIN_C]
    cool = "free the fan and the vents, or lower the power mode; watch tegrastats under load"
    if slowed:
        return Finding(
            name=name, state="warning", detail=f"{detail}; lowered now: {', '.join(slowed)}", cure=cool
        )
    if near:
        limit = f"{near[0].name} {near[0].celsius:.0f} C throttles at {near[0].throttles_c:.0f} C"
        return Finding(name=name, state="warning", detail=limit, cure=cool)
    if events:
        return Finding(
            name=name,
            state="warning",
            detail=f"{detail}; {events:,} over-current events since the start",
            cure="use the supply of the board, or lower the power mode",
        )
    return Finding(name=name, state="ok", detail=f"{detail}, no clock is lowered")


def _locked_memory(subject: Subject) -> Finding:
    name, limit = "locked memory", subject.board.locked_limit(subject.status.pid if subject.status else None)
    whose = "the daemon" if subject.status else "this shell"
    if limit is None:
        return Finding(name=name, state="warning", detail="limit unknown", cure=_GPU_DROP_IN)
    if limit == float("inf"):
        return Finding(name=name, state="ok", detail=f"no limit for {whose}")
    return Finding(
        name=name,
        state="warning",
        detail=f"{limit / 2**20:,.0f} MiB for {whose}; CUDA may need to lock more",
        cure=f"{_GPU_DROP_IN} (LimitMEMLOCK=infinity); in a shell: ulimit -l unlimited",
    )


def _devices(subject: Subject) -> Finding:
    board, name = subject.board, "devices"
    user, whose = board.user(SERVICE_USER), SERVICE_USER
    if user is None:
        user, whose = (os.getuid(), frozenset({os.getgid(), *os.getgroups()})), "this user"
    devices = board.devices()
    if not devices:
        return Finding(
            name=name,
            state="missing",
            detail="no /dev/nvmap, /dev/nvhost-* or /dev/nvidia*",
            cure="the driver is not loaded: sudo apt install nvidia-jetpack, then restart the board",
        )
    closed = [device for device in devices if not device.usable_by(*user)]
    if not closed:
        return Finding(name=name, state="ok", detail=f"{whose} may use all {len(devices)}")
    paths = ", ".join(device.path for device in closed[:3]) + (", ..." if len(closed) > 3 else "")
    groups = ",".join(sorted({board.group_name(device.gid) for device in closed} - {"root"}))
    account = SERVICE_USER if whose == SERVICE_USER else '"$USER"'
    return Finding(
        name=name,
        state="missing",
        detail=f"{whose} may not use {paths}",
        cure=f"sudo usermod -aG {groups or 'video,render'} {account}, then restart the service",
    )


def _decode_rate(subject: Subject) -> Finding:
    board, config, name = subject.board, subject.config, "decode rate"
    clock, width, needed = (
        board.memory_clock(),
        _BYTES_PER_CYCLE.get(board.capability or 0),
        _needed_bytes(config),
    )
    if config.engine_url or clock is None or width is None or needed is None:
        return Finding(name=name, state="ok", detail="no limit known")
    bandwidth = clock.current_hz * width
    least_ms = needed[0] / bandwidth * 1e3
    detail = f"at most {1e3 / least_ms:,.0f} tokens/s at {bandwidth / 1e9:,.0f} GB/s"
    slowest_ms = subject.status.engine.explanation_step_ms_max if subject.status else 0.0
    if not slowest_ms:
        return Finding(name=name, state="ok", detail=f"{detail}; no step was measured yet")
    detail += f"; slowest step {slowest_ms:,.0f} ms, bound {least_ms:,.0f} ms"
    if slowest_ms > SLOW_STEP * least_ms:
        cure = (
            "see power mode, clocks, heat and cuda build above; then who else uses GPU and memory: tegrastats"
        )
        return Finding(name=name, state="warning", detail=detail, cure=cure)
    return Finding(name=name, state="ok", detail=detail)


def _library(subject: Subject) -> Path | None:
    """The CUDA library of this environment's llama.cpp; below another root, that of the service."""
    if subject.board.root != Path("/"):
        return subject.board.cuda_library()
    spec = find_spec("llama_cpp")
    path = Path(spec.origin).parent / "lib" / "libggml-cuda.so" if spec and spec.origin else None
    return path if path and path.is_file() else None


def _needed_bytes(config: Config) -> tuple[int, int] | None:
    """Bytes of the weights and of the attention cache, all streams; None if the model's file does not say."""
    try:
        path = catalog.resolve(config.model, config.models_dir).path
        weights = path.stat().st_size
    except (ThorPolicyError, OSError):
        return None
    shape = shape_of(path)
    if shape is None:
        return None
    streams = config.resident_packs + 1 + config.parallel_explanations + (config.enrichment != "off")
    return weights, shape.cache_bytes(config.kv_type, config.context_tokens * streams)


def _listed(numbers: frozenset[int]) -> str:
    return ", ".join(f"sm_{number}" for number in sorted(numbers)) or "no GPU"


#: Every check, in the order in which a first start needs them.
BOARD_CHECKS: tuple[Check, ...] = (
    _jetpack,
    _cuda_build,
    _memory,
    _power_mode,
    _clocks,
    _heat,
    _locked_memory,
    _devices,
    _decode_rate,
)
