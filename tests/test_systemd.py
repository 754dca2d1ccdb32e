"""The systemd service: installed into a temporary tree, checked with systemd's tools, and removed again."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.callers import as_root
from thor_policy import config
from thor_policy.cli.main import cli
from thor_policy.core.errors import ThorPolicyError

ROOT = Path(__file__).resolve().parents[1]
INSTALL = ROOT / "scripts" / "install-systemd"
#: The highest exposure that `systemd-analyze security` may report, in tenths; a unit without restrictions has
#: 96.
MAX_EXPOSURE = 10

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None or shutil.which("systemd-sysusers") is None,
    reason="systemd-analyze or systemd-sysusers is not installed",
)


class Tree:
    """A tree to install into, and a virtual environment with a stand-in for the program of the unit."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.prefix = folder / "venv"
        program = self.prefix / "bin" / "thorpolicy"
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        self.unit = self.root / "etc/systemd/system/thor-policy.service"
        self.improve = self.unit.with_name("thor-policy-improve.service")
        self.gateway = self.unit.with_name("thor-policy-gateway.service")
        self.web = self.unit.with_name("thor-policy-web.service")
        self.timer = self.unit.with_name("thor-policy-improve.timer")
        self.settings = self.root / "etc/thor-policy/config.toml"
        self.state = self.root / "var/lib/thor-policy"

    def run(self, *arguments: str) -> str:
        """Run the script on this tree; returns its standard error."""
        command = [INSTALL, "--root", self.root, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def install(self) -> str:
        return self.run("--prefix", str(self.prefix))

    def files(self) -> dict[str, bytes]:
        """The content of every installed file, by its path in the tree."""
        paths = [path for path in self.root.rglob("*thor-policy*") if path.is_file()]
        paths += [path for path in self.settings.parent.glob("*") if path.is_file()]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in paths}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def installed(tree: Tree) -> Tree:
    tree.install()
    return tree


def section(unit: Path, name: str) -> dict[str, list[str]]:
    """The settings of one section of a unit, each with all of its values in order."""
    inside, settings = False, dict[str, list[str]]()
    for line in unit.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            inside = line == f"[{name}]"
        elif inside and "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            settings.setdefault(key, []).append(value)
    return settings


def exposure(unit: Path, most: int = MAX_EXPOSURE) -> tuple[int, str]:
    """The exit status and the last line of `systemd-analyze security`."""
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={most}", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.strip().splitlines()[-1]


def verify(unit: Path) -> tuple[int, str]:
    """The exit status and the output of `systemd-analyze verify`."""
    command = ["systemd-analyze", "verify", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@needs_systemd
class TestUnit:
    @pytest.mark.parametrize("with_gpu_conf", [False, True], ids=["alone", "with gpu.conf"])
    def test_the_unit_verifies_without_warnings_and_has_low_exposure(
        self, installed: Tree, with_gpu_conf: bool
    ) -> None:
        if with_gpu_conf:
            folder = installed.unit.with_name("thor-policy.service.d")
            folder.mkdir()
            shutil.copy(ROOT / "systemd" / "gpu.conf", folder)
        assert verify(installed.unit) == (0, "")
        status, summary = exposure(installed.unit)
        assert status == 0, summary

    def test_the_checks_fail_for_a_misspelt_setting_and_for_a_unit_without_restrictions(
        self, installed: Tree
    ) -> None:
        text = installed.unit.read_text(encoding="utf-8")
        installed.unit.write_text(text.replace("WatchdogSec", "WachtdogSec"), encoding="utf-8")
        assert "WachtdogSec" in verify(installed.unit)[1]
        unrestricted = re.sub(r"(?m)^(Protect|Private|Restrict|System|Capab).*\n", "", text)
        installed.unit.write_text(unrestricted, encoding="utf-8")
        assert exposure(installed.unit)[0] != 0

    def test_the_unit_starts_an_existing_command_with_valid_settings(self, installed: Tree) -> None:
        (command,) = section(installed.unit, "Service")["ExecStart"]
        program, *arguments = command.split()
        assert os.access(program, os.X_OK)
        loaded = config.load(
            Path(f"{installed.root}{arguments[arguments.index('--config') + 1]}"), environ={}
        )
        assert cli.get_command(cli.make_context("thorpolicy", arguments[:1]), arguments[0]) is not None
        assert loaded.state_dir == Path("/var/lib/thor-policy")
        assert loaded.models_dir == Path("/var/lib/thor-policy/models")
        assert loaded.socket_path == Path("/run/thor-policy/policy.sock")

    def test_the_unit_creates_the_directories_that_the_settings_name(self, installed: Tree) -> None:
        service = section(installed.unit, "Service")
        loaded = config.load(installed.settings, environ={})
        assert loaded.state_dir == Path("/var/lib", *service["StateDirectory"])
        assert loaded.socket_path.parent == Path("/run", *service["RuntimeDirectory"])

    def test_clients_can_open_the_socket_but_not_the_state_directory(self, installed: Tree) -> None:
        service = section(installed.unit, "Service")
        assert service["Group"] == ["thor-policy-clients"]
        assert service["RuntimeDirectoryMode"] == ["0750"]
        assert service["StateDirectoryMode"] == ["0700"]
        assert config.load(installed.settings, environ={}).socket_mode & 0o060 == 0o060

    def test_the_unit_does_not_hide_the_users_of_clients(self, installed: Tree) -> None:
        """In a user namespace the kernel would report every client as nobody."""
        assert "PrivateUsers" not in section(installed.unit, "Service")

    def test_the_service_restarts_after_failures_except_permanent_ones(self, installed: Tree) -> None:
        service = section(installed.unit, "Service")
        assert service["Restart"] == ["on-failure"]
        (statuses,) = service["RestartPreventExitStatus"]
        assert statuses.split() == ["2", "5"]
        assert ThorPolicyError.exit_code == 2
        assert section(installed.unit, "Unit")["StartLimitIntervalSec"] == ["0"]

    def test_the_service_has_file_descriptors_for_more_clients_than_systemd_allows_by_default(
        self, installed: Tree
    ) -> None:
        """V2: 1,076 silent connections ended a daemon with 1,024 descriptors."""
        (limit,) = section(installed.unit, "Service")["LimitNOFILE"]
        assert int(limit) >= 65_536

    def test_the_service_leaves_memory_to_the_device_and_is_slowed_before_it_is_killed(
        self, installed: Tree
    ) -> None:
        """V7. The size of the model is a setting, so the unit states shares of the memory."""
        daemon, improve = (section(unit, "Service") for unit in (installed.unit, installed.improve))
        for service in (daemon, improve):
            high, most = (int(service[name][0].removesuffix("%")) for name in ("MemoryHigh", "MemoryMax"))
            assert 0 < high < most <= 75
            assert service["MemorySwapMax"] == ["0"]
        assert int(improve["MemoryMax"][0].removesuffix("%")) < int(daemon["MemoryMax"][0].removesuffix("%"))

    def test_the_kernel_kills_the_training_before_other_programs_and_the_daemon_after_them(
        self, installed: Tree
    ) -> None:
        daemon, improve = (section(unit, "Service") for unit in (installed.unit, installed.improve))
        assert int(daemon["OOMScoreAdjust"][0]) < 0 < int(improve["OOMScoreAdjust"][0])

    def test_the_service_may_start_as_many_threads_as_the_settings_allow(self, installed: Tree) -> None:
        """OpenMP keeps a pool of `threads` for each thread that computes. The daemon has a dozen more."""
        threads = next(field for field in config.settings() if field.name == "threads")
        assert int(section(installed.unit, "Service")["TasksMax"][0]) > 2 * threads.metadata["most"] + 64

    def test_a_drop_in_that_the_readme_shows_verifies_without_warnings(self, installed: Tree) -> None:
        readme = (ROOT / "systemd" / "README.md").read_text(encoding="utf-8")
        blocks = [block for block in re.findall(r"```ini\n(.*?)```", readme, re.DOTALL) if "Memory" in block]
        folder = installed.unit.with_name("thor-policy.service.d")
        folder.mkdir()
        (folder / "memory.conf").write_text("".join(blocks), encoding="utf-8")
        assert (len(blocks), verify(installed.unit)) == (1, (0, ""))

    def test_the_service_notifies_systemd_and_has_a_watchdog(self, installed: Tree) -> None:
        service = section(installed.unit, "Service")
        assert (service["Type"], service["NotifyAccess"]) == (["notify"], ["main"])
        assert service["WatchdogSec"] == ["2min"]


@needs_systemd
class TestImprove:
    """The unit that proposes the next pack, and its timer."""

    def test_the_improve_unit_and_its_timer_verify_without_warnings_and_have_low_exposure(
        self, installed: Tree
    ) -> None:
        assert verify(installed.improve) == (0, "")
        assert verify(installed.timer) == (0, "")
        status, summary = exposure(installed.improve)
        assert status == 0, summary

    def test_the_improve_unit_has_the_rights_of_the_daemon_and_may_lower_its_priority(
        self, installed: Tree
    ) -> None:
        """The two units must not drift apart; `systemd-analyze` would not notice that."""
        own = {"Type", "ExecStart", "SuccessExitStatus", "TimeoutStartSec", "Nice", "IOSchedulingClass"}
        own |= {"MemoryHigh", "MemoryMax", "OOMScoreAdjust"}
        improve, daemon = section(installed.improve, "Service"), section(installed.unit, "Service")
        shared = {name: values for name, values in improve.items() if name not in own}
        assert shared.pop("SystemCallFilter") == [*daemon["SystemCallFilter"], "setpriority"]
        assert {name: daemon.get(name) for name in shared} == shared
        missing = set(daemon) - set(improve) - {"ExecReload", "TimeoutStopSec", "WatchdogSec", "NotifyAccess"}
        assert missing == {
            *("Restart", "RestartSec", "RestartPreventExitStatus", "LoadCredential"),
            *("RuntimeDirectory", "RuntimeDirectoryMode", "LimitNOFILE"),
        }

    def test_the_improve_unit_starts_an_existing_command_in_the_state_directory(
        self, installed: Tree
    ) -> None:
        (command,) = section(installed.improve, "Service")["ExecStart"]
        program, name, folder, *_ = command.split()
        assert os.access(program, os.X_OK)
        assert cli.get_command(cli.make_context("thorpolicy", [name]), name) is not None
        assert Path(folder).parent == config.load(installed.settings, environ={}).state_dir
        assert "--promote" not in command

    def test_the_gateway_unit_verifies_without_warnings_and_has_low_exposure(self, installed: Tree) -> None:
        assert verify(installed.gateway) == (0, "")
        status, summary = exposure(installed.gateway, MAX_EXPOSURE + 2)  # it has a network, the others none
        assert status == 0, summary

    def test_the_gateway_unit_has_every_restriction_of_the_daemon_but_reaches_loopback(
        self, installed: Tree
    ) -> None:
        gateway, daemon = section(installed.gateway, "Service"), section(installed.unit, "Service")
        own = {"User", "StateDirectory", "RestrictAddressFamilies", "ProcSubset", "MemoryHigh", "MemoryMax"}
        own |= {"Type", "ExecStart", "TimeoutStopSec", "RestartPreventExitStatus", "LimitNOFILE", "TasksMax"}
        shared = {name: values for name, values in gateway.items() if name in daemon and name not in own}
        assert shared == {name: daemon[name] for name in shared}
        missing = set(daemon) - set(gateway)
        assert missing == {
            *("DeviceAllow", "PrivateNetwork", "RuntimeDirectory", "RuntimeDirectoryMode", "LoadCredential"),
            *("ExecReload", "TimeoutStartSec", "WatchdogSec", "NotifyAccess", "OOMScoreAdjust"),
        }
        assert gateway["IPAddressAllow"] == ["localhost"]

    def test_the_gateway_unit_starts_an_existing_command_with_its_options(self, installed: Tree) -> None:
        (command,) = section(installed.gateway, "Service")["ExecStart"]
        name, *options = command.split()[1:]
        known = {option for param in cli.get_command(None, name).params for option in param.opts}  # type: ignore[arg-type, union-attr, attr-defined]
        assert {option for option in options if option.startswith("--")} <= known

    def test_the_unit_of_the_pages_is_as_restricted_and_cannot_write_the_journal(
        self, installed: Tree
    ) -> None:
        assert verify(installed.web) == (0, "")
        status, summary = exposure(installed.web, MAX_EXPOSURE + 2)
        assert status == 0, summary
        web, gateway = section(installed.web, "Service"), section(installed.gateway, "Service")
        own = {"ExecStart", "User", "MemoryHigh", "MemoryMax"}
        state = {"StateDirectory", "StateDirectoryMode"}
        assert {name: web[name] for name in web if name not in own} == {
            name: gateway[name] for name in gateway if name not in own | state
        }
        name, *options = web["ExecStart"][0].split()[1:]
        known = {option for param in cli.get_command(None, name).params for option in param.opts}  # type: ignore[arg-type, union-attr, attr-defined]
        assert {option for option in options if option.startswith("--")} <= known

    def test_the_timer_of_the_improve_unit_is_not_enabled(self, installed: Tree) -> None:
        assert section(installed.timer, "Install")["WantedBy"] == ["timers.target"]
        assert list(installed.root.rglob("*.wants")) == []


#: Serves one question with llama.cpp in a process that may not map memory both writable and executable
#: (MDWE).
DECIDE_UNDER_MDWE = """
import ctypes, json, mmap, sys
from dataclasses import replace
from pathlib import Path
import random_phi
PR_SET_MDWE, REFUSE_EXEC_GAIN = 65, 1
if ctypes.CDLL(None).prctl(PR_SET_MDWE, REFUSE_EXEC_GAIN, 0, 0, 0) != 0:
    sys.exit("no MDWE")
try:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    sys.exit("MDWE does not bind")
except PermissionError:
    pass
from thor_policy.daemon import service
from thor_policy.client import Client
from thor_policy.config import Config
folder = Path(sys.argv[1])
config = Config(
    state_dir=folder, models_dir=folder, endpoint=f"ipc://{folder}/s", context_tokens=8192,
    model=str(random_phi.write(folder / "tiny.gguf")), max_question_tokens=1024, parallel_explanations=1,
    threads=1,
)
question = {"actor_id": "user:a", "action_type": "deploy", "resource": "env:x"}
with service.serving(config), Client(config.endpoint, timeout_ms=60_000) as client:
    print(client.evaluate(question, explain="none", deadline_ms=60_000)["context"]["tier"])
"""


def test_llama_cpp_decides_without_memory_that_is_both_writable_and_executable(short_dir: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "scripts")))}
    command = [sys.executable, "-c", DECIDE_UNDER_MDWE, str(short_dir)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "no MDWE" in done.stderr:
        pytest.skip("this kernel is older than 6.3 and has no MDWE")
    assert (done.returncode, done.stdout) == (0, "model\n"), done.stderr


@needs_systemd
class TestInstall:
    def test_install_puts_each_file_where_systemd_reads_it_with_mode_644(self, installed: Tree) -> None:
        modes = {path: stat.S_IMODE((installed.root / path).stat().st_mode) for path in installed.files()}
        assert modes == {
            "etc/systemd/system/thor-policy.service": 0o644,
            "etc/systemd/system/thor-policy-gateway.service": 0o644,
            "etc/systemd/system/thor-policy-web.service": 0o644,
            "etc/systemd/system/thor-policy-improve.service": 0o644,
            "etc/systemd/system/thor-policy-ship.service": 0o644,
            "etc/systemd/system/thor-policy-improve.timer": 0o644,
            "etc/sysusers.d/thor-policy.conf": 0o644,
            "etc/tmpfiles.d/thor-policy.conf": 0o644,
            "etc/thor-policy/config.toml": 0o644,
        }

    def test_a_repeated_install_keeps_edited_settings_and_the_prefix(self, installed: Tree) -> None:
        installed.settings.write_text('model = "mine"\n', encoding="utf-8")
        before = installed.files()
        installed.run()
        assert installed.files() == before

    @as_root
    def test_install_creates_the_user_its_groups_and_its_state_directory(self, installed: Tree) -> None:
        users = _table(installed.root / "etc/passwd")
        groups = _table(installed.root / "etc/group")
        assert users["thor-policy"][-2:] == ["/var/lib/thor-policy", "/usr/sbin/nologin"]
        for group in ("thor-policy-clients", "video", "render"):
            assert groups[group][-1].split(",")[0] == "thor-policy"
        for folder in (installed.state, installed.state / "models"):
            status = folder.stat()
            assert stat.S_IMODE(status.st_mode) == 0o700
            assert status.st_uid == int(users["thor-policy"][2])
            assert status.st_gid == int(groups["thor-policy-clients"][2])

    def test_install_prints_the_next_commands(self, tree: Tree) -> None:
        output = tree.install()
        for command in (
            "models pull",
            "systemctl enable --now thor-policy",
            "usermod -aG thor-policy-clients",
        ):
            assert command in output

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--prefix", "/opt/my venv", "--root", "."], "--prefix /opt/my venv"),
            (["--force"], "unknown option --force; --help"),
            (["--root"], "--root needs a directory"),
            (["--purge", "--root", "."], "--purge goes with --undo"),
        ],
    )
    def test_install_refuses_wrong_options_and_changes_nothing(
        self, tmp_path: Path, arguments: list[str], message: str
    ) -> None:
        arguments = [str(tmp_path) if argument == "." else argument for argument in arguments]
        done = subprocess.run([INSTALL, *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
        assert message in done.stderr

    @as_root
    def test_install_as_an_ordinary_user_needs_a_tree_of_its_own(self, short_dir: Path) -> None:
        script, root = short_dir / "scripts" / "install-systemd", short_dir / "root"
        shutil.copytree(ROOT / "systemd", short_dir / "systemd")
        script.parent.mkdir()
        shutil.copy(INSTALL, script)
        short_dir.chmod(0o777)

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [script, *arguments], user=65534, group=65534, capture_output=True, text=True, check=False
            )

        refused = run()
        assert (refused.returncode, "sudo" in refused.stderr) == (2, True)
        assert run("--root", str(root)).returncode == 0
        assert (root / "etc/systemd/system/thor-policy.service").is_file()
        assert run("--root", str(root), "--undo").returncode == 0


@needs_systemd
class TestUndo:
    def test_undo_removes_everything_but_the_state_directory(self, installed: Tree) -> None:
        journal = installed.state / "policy_decisions.db"
        journal.parent.mkdir(parents=True, exist_ok=True)
        journal.write_bytes(b"rows")
        assert str(installed.state) in installed.run("--undo")
        assert journal.read_bytes() == b"rows"
        assert installed.files() == {}
        assert not installed.settings.parent.exists()

    def test_undo_keeps_edited_settings(self, installed: Tree) -> None:
        installed.settings.write_text('model = "mine"\n', encoding="utf-8")
        assert str(installed.settings) in installed.run("--undo")
        assert list(installed.files()) == ["etc/thor-policy/config.toml"]

    def test_undo_with_purge_removes_everything(self, installed: Tree) -> None:
        installed.settings.write_text('model = "mine"\n', encoding="utf-8")
        installed.run("--undo", "--purge")
        assert [path for path in installed.root.rglob("*") if "thor-policy" in path.name] == []
        for name in ("passwd", "group", "shadow", "gshadow"):
            table = installed.root / "etc" / name
            assert not table.exists() or "thor-policy:" not in table.read_text(encoding="utf-8")

    def test_undo_can_be_repeated(self, installed: Tree) -> None:
        for _ in range(2):
            installed.run("--undo", "--purge")

    def test_undo_without_an_installation_changes_nothing(self, tree: Tree) -> None:
        tree.root.mkdir()
        tree.run("--undo", "--purge")
        assert list(tree.root.iterdir()) == []

    def test_undo_never_removes_a_virtual_environment_that_it_did_not_create(self, installed: Tree) -> None:
        installed.run("--undo", "--purge")
        assert (installed.prefix / "bin" / "thorpolicy").is_file()


def _table(path: Path) -> dict[str, list[str]]:
    """The rows of a file like /etc/passwd, by their first column."""
    rows = [line.split(":") for line in path.read_text(encoding="utf-8").splitlines()]
    return {row[0]: row for row in rows}
