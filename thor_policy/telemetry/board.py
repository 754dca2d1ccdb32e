"""What a Jetson says of itself: release, compiler, clocks, power mode, temperatures, devices.

Owns the files and the programs of a board. Invariant: reading changes nothing and never raises; a value that
the board does not give is None or empty. Below another root than `/`, no program is run: what it printed is
read from `outputs/PROGRAM.txt` there. So a copy of a board's files can be examined elsewhere. Any thread.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

#: Longest file of a board that is read, in bytes, and of the list of installed packages.
_MAX_BYTES, _MAX_PACKAGES_BYTES = 1 << 16, 1 << 26
#: Longest wait for a program of the board, in seconds.
_PROGRAM_S = 10.0
#: The programs that are run, as absolute paths: PATH is not trusted.
_PROGRAMS = {
    "nvcc": ("/usr/local/cuda/bin/nvcc", "--version"),
    "nvpmodel": ("/usr/sbin/nvpmodel", "-q"),
    "jetson_clocks": ("/usr/bin/jetson_clocks", "--show"),
}
#: Compute capability of the GPU by the chip's name in the device tree: 110 is sm_110.
_CAPABILITIES = {"tegra264": 110, "tegra234": 87}
#: Clocks by their folder in /sys/class/devfreq, and by their name in the output of `jetson_clocks --show`.
_GPU_CLOCKS, _MEMORY_CLOCKS = ("gpu-gpc-0", "GPU"), ("bwmgr", "EMC")
_SHOWN = r"^{} MinFreq=(\d+) MaxFreq=(\d+) CurrentFreq=(\d+)(?: FreqOverride=(\d))?"
#: Devices that CUDA opens, below /dev.
_DEVICES = ("nvmap", "nvhost-*", "nvgpu/*/*", "nvidia[0-9]*", "nvidiactl", "nvidia-uvm", "dri/renderD*")


class Clock(Struct, frozen=True, kw_only=True):
    """A clock, in hertz. `pinned`: it stays at the highest that the power mode allows."""

    highest_hz: int
    current_hz: int
    pinned: bool


class Zone(Struct, frozen=True, kw_only=True):
    """A thermal zone, in degrees Celsius. Clocks fall from `throttles_c` on; None: never."""

    name: str
    celsius: float
    throttles_c: float | None


class Device(Struct, frozen=True, kw_only=True):
    """A device file: path below the root, owner, group, and permission bits."""

    path: str
    uid: int
    gid: int
    mode: int

    def usable_by(self, uid: int, gids: frozenset[int]) -> bool:
        """Whether this user may read and write it, by owner, group and mode."""
        shift = 6 if uid == self.uid else 3 if self.gid in gids else 0
        return uid == 0 or (self.mode >> shift) & 6 == 6


class Board:
    """The board whose file system begins at `root`."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    @property
    def is_jetson(self) -> bool:
        return bool(self._read("etc/nv_tegra_release")) or self.capability is not None

    @property
    def model(self) -> str:
        """Name of the board, from the device tree; empty if there is none."""
        return self._read("proc/device-tree/model")

    @property
    def capability(self) -> int | None:
        """Compute capability of the chip's GPU, 110 for 11.0; None for a chip that is not known here."""
        names = self._read("proc/device-tree/compatible")
        return next((number for chip, number in _CAPABILITIES.items() if chip in names), None)

    def release(self) -> tuple[int, str] | None:
        """The release of Jetson Linux in /etc/nv_tegra_release: (38, "2.1")."""
        match = re.search(r"# R(\d+) \(release\), REVISION: ([\d.]+)", self._read("etc/nv_tegra_release"))
        return (int(match[1]), match[2]) if match else None

    def core_package(self) -> str | None:
        """The installed version of the Debian package nvidia-l4t-core."""
        packages = self._read("var/lib/dpkg/status", _MAX_PACKAGES_BYTES)
        rest = packages.partition("Package: nvidia-l4t-core\n")[2]
        match = re.search(r"^Version: (\S+)", rest.partition("\n\n")[0], re.MULTILINE)
        return match[1] if match else None

    def compiler(self) -> tuple[int, int] | None:
        """The release of nvcc, (13, 0); None if it is not installed."""
        match = re.search(r"release (\d+)\.(\d+)", self._output("nvcc"))
        return (int(match[1]), int(match[2])) if match else None

    def power_mode(self) -> tuple[str, int] | None:
        """Name and number of the power mode, ("MAXN", 0): of `nvpmodel -q`, or of the file that it keeps."""
        if match := re.search(r"NV Power Mode: (\S+)\s+(\d+)", self._output("nvpmodel")):
            return match[1], int(match[2])
        kept = re.search(r"pmode:(\d+)", self._read("var/lib/nvpmodel/status"))
        if not kept:
            return None
        number = int(kept[1])
        name = re.search(rf"POWER_MODEL ID={number} NAME=(\S+)", self._read("etc/nvpmodel.conf"))
        return name[1] if name else "?", number

    def gpu_clock(self) -> Clock | None:
        return self._clock(*_GPU_CLOCKS)

    def memory_clock(self) -> Clock | None:
        return self._clock(*_MEMORY_CLOCKS)

    def zones(self) -> list[Zone]:
        """The thermal zones that give a temperature: one of a GPU without power gives none."""
        zones = []
        for folder in self._glob("sys/class/thermal", "thermal_zone*"):
            celsius = self._number(folder / "temp")
            if celsius is not None:
                limits = [
                    limit
                    for kind in folder.glob("trip_point_*_type")
                    if self._text(kind) == "passive"
                    and (limit := self._number(kind.with_name(kind.name.replace("_type", "_temp"))))
                ]
                throttles = min(limits) / 1e3 if limits else None
                zones.append(
                    Zone(name=self._text(folder / "type"), celsius=celsius / 1e3, throttles_c=throttles)
                )
        return zones

    def slowed(self) -> list[str]:
        """The clocks that the kernel lowers at present because of heat; a fan is none."""
        return [
            kind
            for folder in self._glob("sys/class/thermal", "cooling_device*")
            if "freq" in (kind := self._text(folder / "type"))
            and (self._number(folder / "cur_state") or 0) > 0
        ]

    def overcurrent_events(self) -> int:
        """How often clocks were lowered since the board started because the current was too high."""
        counters = self._glob("sys/class/hwmon", "hwmon*/oc*_event_cnt")
        return sum(self._number(counter) or 0 for counter in counters)

    def available_bytes(self) -> int | None:
        """Memory that a program can still get: on a Jetson the GPU's memory too."""
        match = re.search(r"^MemAvailable:\s+(\d+) kB", self._read("proc/meminfo"), re.MULTILINE)
        return int(match[1]) * 1024 if match else None

    def locked_limit(self, pid: int | None) -> float | None:
        """How many bytes a process may lock in memory, `inf` for any number; None: of this process."""
        limits = self._read(f"proc/{pid or 'self'}/limits")
        match = re.search(r"^Max locked memory\s+(\S+)", limits, re.MULTILINE)
        if not match:
            return None
        return float("inf") if match[1] == "unlimited" else float(match[1])

    def devices(self) -> list[Device]:
        """The devices of the GPU."""
        devices = []
        for path in (path for pattern in _DEVICES for path in self._glob("dev", pattern)):
            try:
                state = path.stat()
            except OSError:
                continue
            name = "/" + str(path.relative_to(self.root))
            mode = state.st_mode & 0o777
            devices.append(Device(path=name, uid=state.st_uid, gid=state.st_gid, mode=mode))
        return devices

    def user(self, name: str) -> tuple[int, frozenset[int]] | None:
        """Number of a user, and of all its groups; None if there is no such user."""
        for line in self._read("etc/passwd").splitlines():
            fields = line.split(":")
            if fields[0] == name and len(fields) > 3 and fields[2].isdigit() and fields[3].isdigit():
                groups = {int(fields[3])}
                for entry in self._read("etc/group").splitlines():
                    group = entry.split(":")
                    if len(group) > 3 and name in group[3].split(",") and group[2].isdigit():
                        groups.add(int(group[2]))
                return int(fields[2]), frozenset(groups)
        return None

    def group_name(self, gid: int) -> str:
        names = re.findall(rf"^([^:\n]+):[^:\n]*:{gid}:", self._read("etc/group"), re.MULTILINE)
        return names[0] if names else str(gid)

    def cuda_library(self) -> Path | None:
        """llama.cpp's library of CUDA code in the environment of the service; None: a build without CUDA."""
        pattern = "lib/python3*/site-packages/llama_cpp/lib/libggml-cuda.so"
        return next(self._glob("opt/thor-policy", pattern), None)

    def _clock(self, folder: str, shown: str) -> Clock | None:
        path = self.root / "sys/class/devfreq" / folder
        low, high, now = (self._number(path / f"{name}_freq") for name in ("min", "max", "cur"))
        if low is not None and high and now is not None:
            return Clock(highest_hz=high, current_hz=now, pinned=low == high)
        output = self._output("jetson_clocks")
        for name in (folder, shown):
            if match := re.search(_SHOWN.format(re.escape(name)), output, re.MULTILINE):
                low, high, now = (int(value) for value in match.groups()[:3])
                pinned = low == high or (match[4] == "1" and now == high)
                return Clock(highest_hz=high, current_hz=now, pinned=pinned)
        return None

    def _output(self, program: str) -> str:
        if self.root != Path("/"):
            return self._read(f"outputs/{program}.txt")
        try:
            done = subprocess.run(
                _PROGRAMS[program], capture_output=True, timeout=_PROGRAM_S, check=False, env={"LC_ALL": "C"}
            )
        except (OSError, subprocess.SubprocessError):
            return ""
        return done.stdout[:_MAX_BYTES].decode("utf-8", errors="replace")

    def _read(self, name: str, most: int = _MAX_BYTES) -> str:
        return self._text(self.root / name, most)

    def _text(self, path: Path, most: int = _MAX_BYTES) -> str:
        try:
            with path.open("rb") as file:
                return file.read(most).decode("utf-8", errors="replace").strip("\0\n ")
        except OSError:
            return ""

    def _number(self, path: Path) -> int | None:
        text = self._text(path)
        return int(text) if re.fullmatch(r"-?\d{1,18}", text, re.ASCII) else None

    def _glob(self, folder: str, pattern: str) -> Iterator[Path]:
        base = self.root / folder
        yield from sorted(base.glob(pattern)) if base.is_dir() else ()
