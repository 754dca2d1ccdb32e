"""What `thorpolicy doctor` says of a Jetson: a ready board is ok, and each fault is named with its cure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.boards import LIBRARY, cuda_library, write_board
from tests.conftest import MODEL
from thor_policy import catalog
from thor_policy.cli.main import cli
from thor_policy.config import Config
from thor_policy.daemon.board_checks import BOARD_CHECKS, Subject
from thor_policy.daemon.findings import Finding
from thor_policy.telemetry.board import Board

GPU, MEMORY, ZONE = (
    f"sys/class/{name}" for name in ("devfreq/gpu-gpc-0", "devfreq/bwmgr", "thermal/thermal_zone")
)


def findings(root: Path, config: Config | None = None) -> dict[str, Finding]:
    subject = Subject(config=config or Config(), board=Board(root), status=None)
    return {finding.name: finding for finding in (check(subject) for check in BOARD_CHECKS)}


@pytest.mark.model
def test_a_ready_thor_has_no_fault(tmp_path: Path) -> None:
    reports = findings(write_board(tmp_path))
    assert {report.state for report in reports.values()} == {"ok"}, reports
    assert reports["jetpack"].detail == "Jetson Linux 38.2.1, JetPack 7.0 or 7.1, CUDA 13.0; nvcc 13.0"
    assert reports["cuda build"].detail == "has code for sm_110"
    assert reports["power mode"].detail == "MAXN (0), no cap"
    assert reports["clocks"].detail == "pinned: GPU 1,575 of 1,575 MHz, memory 4,266 of 4,266 MHz"
    assert reports["heat"].detail == "tj-thermal 51 C, no clock is lowered"
    assert "at 273 GB/s" in reports["decode rate"].detail
    assert "of 121.2 GB free" in reports["memory"].detail


@pytest.mark.parametrize(
    ("changes", "name", "state", "detail", "cure"),
    [
        (
            {"outputs/nvcc.txt": "Cuda compilation tools, release 12.6, V12.6.68"},
            *("jetpack", "warning", "nvcc 12.6 is not that of the driver", "cuda-toolkit-13-0"),
        ),
        (
            {"outputs/nvcc.txt": "Cuda compilation tools, release 13.2, V13.2.1"},
            *("jetpack", "warning", "nvcc 13.2 is not that of the driver", "CUDACXX=/usr/local/cuda-13.0"),
        ),
        ({"outputs/nvcc.txt": None}, "jetpack", "ok", "no nvcc, and no need to build again", None),
        (
            {"var/lib/dpkg/status": "Package: nvidia-l4t-core\nVersion: 39.2.0-20260601\n"},
            *("jetpack", "warning", "an upgrade is half done", "full-upgrade"),
        ),
        (
            {"etc/nv_tegra_release": "# R77 (release), REVISION: 1.0, GCID: 1, BOARD: generic"},
            *("jetpack", "warning", "an upgrade is half done", "full-upgrade"),
        ),
        (
            {"etc/nv_tegra_release": "# R77 (release), REVISION: 1.0,", "var/lib/dpkg/status": None},
            *("jetpack", "warning", "Jetson Linux 77.1.0 is not known here", "by hand"),
        ),
        (
            {"proc/meminfo": "MemAvailable: 100000 kB"},
            "memory",
            "missing",
            "of 0.1 GB free",
            "context_tokens",
        ),
        ({"proc/meminfo": None}, "memory", "warning", "unknown", "models pull"),
        (
            {"outputs/nvpmodel.txt": "NV Power Mode: 120W\n1\n"},
            *("power mode", "warning", "120W (1) caps the clocks", "nvpmodel -m 0"),
        ),
        (
            {"outputs/nvpmodel.txt": None, "var/lib/nvpmodel/status": "pmode:0001"},
            *("power mode", "warning", "120W (1) caps the clocks", "nvpmodel -m 0"),
        ),
        (
            {"outputs/nvpmodel.txt": None, "var/lib/nvpmodel/status": None},
            *("power mode", "warning", "unknown", "nvpmodel -q"),
        ),
        (
            {f"{MEMORY}/min_freq": "665600000", f"{MEMORY}/cur_freq": "3200000000"},
            *("clocks", "warning", "memory 3,200 of 4,266 MHz", "sudo jetson_clocks"),
        ),
        ({f"{GPU}/min_freq": None}, "clocks", "ok", "pinned: GPU 1,575", None),
        (
            {f"{GPU}/min_freq": None, "outputs/jetson_clocks.txt": None},
            "clocks",
            "warning",
            "unknown",
            "--show",
        ),
        ({f"{ZONE}0/temp": "97500"}, "heat", "warning", "tj-thermal 98 C throttles at 99 C", "fan"),
        (
            {"sys/class/thermal/cooling_device1/cur_state": "3"},
            *("heat", "warning", "lowered now: devfreq-gpu-gpc-0", "lower the power mode"),
        ),
        (
            {"sys/class/hwmon/hwmon4/oc1_event_cnt": "12"},
            *("heat", "warning", "12 over-current events", "supply"),
        ),
        (
            {"proc/self/limits": "Max locked memory         8388608              8388608              bytes"},
            *("locked memory", "warning", "8 MiB for this shell", "gpu.conf"),
        ),
        (
            {"etc/group": "video:x:44:\nrender:x:992:thor-policy\n"},
            *(
                "devices",
                "missing",
                "thor-policy may not use /dev/nvmap, /dev/nvhost-ctrl-gpu",
                "usermod -aG",
            ),
        ),
        (
            {"dev/nvmap": None, "dev/nvhost-ctrl-gpu": None, "dev/nvidia0": None},
            *("devices", "missing", "no /dev/nvmap", "nvidia-jetpack"),
        ),
        (
            {f"{MEMORY}/cur_freq": "2133000000"},
            *("decode rate", "ok", "at 137 GB/s; no step was measured yet", None),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.model
def test_each_fault_of_a_board_is_named_with_its_cure(
    tmp_path: Path, changes: dict[str, str | None], name: str, state: str, detail: str, cure: str | None
) -> None:
    reports = findings(write_board(tmp_path, changes))
    report = reports.pop(name)
    assert (report.state, detail in report.detail) == (state, True), report
    assert report.cure is None if cure is None else cure in (report.cure or ""), report
    assert {other.state for other in reports.values()} == {"ok"}, reports


@pytest.mark.parametrize(
    ("library", "state", "detail"),
    [
        (cuda_library([90, 100], ptx=[120]), "missing", "no code for sm_110, but for sm_90, sm_100"),
        (cuda_library([90], ptx=[90]), "warning", "the driver compiles sm_90"),
        (b"\x7fELF", "warning", "has no CUDA code"),
        (None, "warning", "the model runs on the CPU"),
    ],
    ids=["other GPUs", "PTX", "no code", "no library"],
)
def test_a_build_without_code_for_the_gpu_is_named(
    tmp_path: Path, library: bytes | None, state: str, detail: str
) -> None:
    path = write_board(tmp_path) / LIBRARY
    if library is None:
        path.unlink()
    else:
        path.write_bytes(library)
    report = findings(tmp_path)["cuda build"]
    assert (report.state, detail in report.detail) == (state, True), report
    assert "CMAKE_CUDA_ARCHITECTURES=110-real" in (report.cure or "")


@pytest.mark.model
def test_a_cache_that_is_too_large_for_the_memory_is_named_before_the_start(tmp_path: Path) -> None:
    """The same model, with longer streams: weights and cache are counted apart."""
    write_board(tmp_path, {"proc/meminfo": "MemAvailable: 900000 kB"})
    weights = catalog.resolve(MODEL, Config().models_dir).path.stat().st_size / 1e9
    fitting = findings(tmp_path)["memory"]
    assert (fitting.state, f"{weights:.1f} GB weights" in fitting.detail) == ("ok", True), fitting
    assert findings(tmp_path, Config(context_tokens=131_072))["memory"].state == "missing"


def test_doctor_examines_the_files_of_a_board_elsewhere(tmp_path: Path) -> None:
    write_board(tmp_path / "board", {"outputs/nvpmodel.txt": "NV Power Mode: 120W\n1\n"})
    result = CliRunner().invoke(cli, ["doctor", "--json", "--root", str(tmp_path / "board")])
    reports = {report["name"]: report for report in json.loads(result.stdout)}
    assert reports["power mode"]["cure"].startswith("sudo nvpmodel -m 0")
    assert len(reports) == 8 + len(BOARD_CHECKS)
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(cli, ["doctor", "--json", "--root", str(tmp_path / "empty")])
    assert len(json.loads(result.stdout)) == 8


def test_a_board_that_says_nothing_is_reported_as_unknown_and_never_as_ready(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("\x00" * 100 + "# R")
    reports = findings(tmp_path)
    assert reports.pop("decode rate").detail == "no limit known"
    assert not {report.name for report in reports.values() if report.state == "ok"}, reports
