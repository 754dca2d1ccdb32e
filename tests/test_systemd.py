"""The service as it is installed: into a tree of its own, judged by systemd's own tools, and taken away."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from thor_policy import config
from thor_policy.cli.main import cli
from thor_policy.core.errors import ThorPolicyError

ROOT = Path(__file__).resolve().parents[1]
INSTALL = ROOT / "scripts" / "install-systemd"
#: Most that `systemd-analyze security` may say, in tenths; 96 is a unit that restricts nothing.
MOST_EXPOSED = 10

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None or shutil.which("systemd-sysusers") is None,
    reason="systemd-analyze and systemd-sysusers are not on this machine",
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make users and give files away")


class Tree:
    """A tree to install into, and the programs that the unit runs."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.prefix = folder / "venv"
        program = self.prefix / "bin" / "thorpolicy"
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        self.unit = self.root / "etc/systemd/system/thor-policy.service"
        self.improve = self.unit.with_name("thor-policy-improve.service")
        self.timer = self.unit.with_name("thor-policy-improve.timer")
        self.settings = self.root / "etc/thor-policy/config.toml"
        self.state = self.root / "var/lib/thor-policy"

    def run(self, *arguments: str) -> str:
        """Run the script on this tree; what it said."""
        command = [INSTALL, "--root", self.root, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def install(self) -> str:
        return self.run("--prefix", str(self.prefix))

    def files(self) -> dict[str, bytes]:
        """Every file of ours, by its path in the tree."""
        ours = [path for path in self.root.rglob("*thor-policy*") if path.is_file()]
        ours += [path for path in self.settings.parent.glob("*") if path.is_file()]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in ours}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def installed(tree: Tree) -> Tree:
    tree.install()
    return tree


def section(unit: Path, name: str) -> dict[str, list[str]]:
    """The settings of one section, each as often as it stands there."""
    inside, settings = False, dict[str, list[str]]()
    for line in unit.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            inside = line == f"[{name}]"
        elif inside and "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            settings.setdefault(key, []).append(value)
    return settings


def exposure(unit: Path) -> tuple[int, str]:
    """The exit status and the last line of `systemd-analyze security`."""
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSED}", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.strip().splitlines()[-1]


def verified(unit: Path) -> tuple[int, str]:
    """The exit status and the complaints of `systemd-analyze verify`."""
    command = ["systemd-analyze", "verify", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@needs_systemd
class TestUnit:
    @pytest.mark.parametrize("gives_way", [False, True], ids=["alone", "with gpu.conf"])
    def test_is_verified_without_a_word_and_exposed_to_little(self, installed: Tree, gives_way: bool) -> None:
        if gives_way:
            folder = installed.unit.with_name("thor-policy.service.d")
            folder.mkdir()
            shutil.copy(ROOT / "systemd" / "gpu.conf", folder)
        assert verified(installed.unit) == (0, "")
        status, told = exposure(installed.unit)
        assert status == 0, told

    def test_would_not_pass_with_a_typing_error_or_with_all_rights(self, installed: Tree) -> None:
        text = installed.unit.read_text(encoding="utf-8")
        installed.unit.write_text(text.replace("WatchdogSec", "WachtdogSec"), encoding="utf-8")
        assert "WachtdogSec" in verified(installed.unit)[1]
        rights = re.sub(r"(?m)^(Protect|Private|Restrict|System|Capab).*\n", "", text)
        installed.unit.write_text(rights, encoding="utf-8")
        assert exposure(installed.unit)[0] != 0

    def test_starts_what_there_is_with_settings_that_are_valid(self, installed: Tree) -> None:
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

    def test_has_the_directories_that_the_settings_name(self, installed: Tree) -> None:
        service = section(installed.unit, "Service")
        loaded = config.load(installed.settings, environ={})
        assert loaded.state_dir == Path("/var/lib", *service["StateDirectory"])
        assert loaded.socket_path.parent == Path("/run", *service["RuntimeDirectory"])

    def test_lets_clients_open_the_socket_and_nothing_else(self, installed: Tree) -> None:
        service = section(installed.unit, "Service")
        assert service["Group"] == ["thor-policy-clients"]
        assert service["RuntimeDirectoryMode"] == ["0750"]
        assert service["StateDirectoryMode"] == ["0700"]
        assert config.load(installed.settings, environ={}).socket_mode & 0o060 == 0o060

    def test_keeps_the_names_of_those_who_ask(self, installed: Tree) -> None:
        """In a user namespace the kernel would call each of them nobody."""
        assert "PrivateUsers" not in section(installed.unit, "Service")

    def test_restarts_after_any_failure_but_those_that_would_come_again(self, installed: Tree) -> None:
        service = section(installed.unit, "Service")
        assert service["Restart"] == ["on-failure"]
        (statuses,) = service["RestartPreventExitStatus"]
        assert statuses.split() == ["2", "5"]
        assert ThorPolicyError.exit_code == 2
        assert section(installed.unit, "Unit")["StartLimitIntervalSec"] == ["0"]

    def test_is_told_by_the_daemon_itself_how_it_does(self, installed: Tree) -> None:
        service = section(installed.unit, "Service")
        assert (service["Type"], service["NotifyAccess"]) == (["notify"], ["main"])
        assert service["WatchdogSec"] == ["2min"]


@needs_systemd
class TestImprove:
    """The unit that proposes the next pack, and its timer."""

    def test_is_verified_without_a_word_and_exposed_to_as_little(self, installed: Tree) -> None:
        assert verified(installed.improve) == (0, "")
        assert verified(installed.timer) == (0, "")
        status, told = exposure(installed.improve)
        assert status == 0, told

    def test_may_do_what_the_daemon_may_and_lower_its_priority(self, installed: Tree) -> None:
        """systemd says less of a unit than two units beside each other do."""
        own = {"Type", "ExecStart", "SuccessExitStatus", "TimeoutStartSec", "Nice", "IOSchedulingClass"}
        ours, theirs = section(installed.improve, "Service"), section(installed.unit, "Service")
        more = {name: values for name, values in ours.items() if name not in own}
        assert more.pop("SystemCallFilter") == [*theirs["SystemCallFilter"], "setpriority"]
        assert {name: theirs.get(name) for name in more} == more
        missing = set(theirs) - set(ours) - {"ExecReload", "TimeoutStopSec", "WatchdogSec", "NotifyAccess"}
        assert missing == {
            *("Restart", "RestartSec", "RestartPreventExitStatus", "LoadCredential"),
            *("RuntimeDirectory", "RuntimeDirectoryMode"),
        }

    def test_starts_what_there_is_where_the_daemon_keeps_its_state(self, installed: Tree) -> None:
        (command,) = section(installed.improve, "Service")["ExecStart"]
        program, name, folder, *_ = command.split()
        assert os.access(program, os.X_OK)
        assert cli.get_command(cli.make_context("thorpolicy", [name]), name) is not None
        assert Path(folder).parent == config.load(installed.settings, environ={}).state_dir
        assert "--promote" not in command

    def test_is_begun_by_a_timer_that_nobody_has_enabled(self, installed: Tree) -> None:
        assert section(installed.timer, "Install")["WantedBy"] == ["timers.target"]
        assert list(installed.root.rglob("*.wants")) == []


#: Serves one question on llama.cpp where memory may not be both writable and executable.
STRICT = """
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
)
question = {"actor_id": "user:a", "action_type": "deploy", "resource": "env:x"}
with service.serving(config), Client(config.endpoint, timeout_ms=60_000) as client:
    print(client.evaluate(question, explain="none", deadline_ms=60_000)["context"]["tier"])
"""


def test_llama_cpp_decides_without_memory_that_is_writable_and_executable(short_dir: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "scripts")))}
    command = [sys.executable, "-c", STRICT, str(short_dir)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "no MDWE" in done.stderr:
        pytest.skip("this kernel (before 6.3) cannot refuse such memory to a process")
    assert (done.returncode, done.stdout) == (0, "model\n"), done.stderr


@needs_systemd
class TestInstall:
    def test_puts_each_file_where_systemd_looks_readable_to_all(self, installed: Tree) -> None:
        modes = {path: stat.S_IMODE((installed.root / path).stat().st_mode) for path in installed.files()}
        assert modes == {
            "etc/systemd/system/thor-policy.service": 0o644,
            "etc/systemd/system/thor-policy-improve.service": 0o644,
            "etc/systemd/system/thor-policy-improve.timer": 0o644,
            "etc/sysusers.d/thor-policy.conf": 0o644,
            "etc/tmpfiles.d/thor-policy.conf": 0o644,
            "etc/thor-policy/config.toml": 0o644,
        }

    def test_can_be_repeated_and_keeps_edited_settings_and_the_prefix(self, installed: Tree) -> None:
        installed.settings.write_text('model = "mine"\n', encoding="utf-8")
        before = installed.files()
        installed.run()
        assert installed.files() == before

    @needs_root
    def test_makes_the_user_its_groups_and_a_state_directory_of_its_own(self, installed: Tree) -> None:
        users = _table(installed.root / "etc/passwd")
        groups = _table(installed.root / "etc/group")
        assert users["thor-policy"][-2:] == ["/var/lib/thor-policy", "/usr/sbin/nologin"]
        for group in ("thor-policy-clients", "video", "render"):
            assert groups[group][-1] == "thor-policy"
        for folder in (installed.state, installed.state / "models"):
            found = folder.stat()
            assert stat.S_IMODE(found.st_mode) == 0o700
            assert found.st_uid == int(users["thor-policy"][2])
            assert found.st_gid == int(groups["thor-policy-clients"][2])

    def test_says_what_to_do_next(self, tree: Tree) -> None:
        told = tree.install()
        for command in (
            "models pull",
            "systemctl enable --now thor-policy",
            "usermod -aG thor-policy-clients",
        ):
            assert command in told

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["--prefix", "/opt/my venv", "--root", "."], "--prefix /opt/my venv"),
            (["--force"], "unknown option --force; --help"),
            (["--root"], "--root needs a directory"),
            (["--purge", "--root", "."], "--purge goes with --undo"),
        ],
    )
    def test_refuses_what_it_does_not_understand(
        self, tmp_path: Path, arguments: list[str], told: str
    ) -> None:
        arguments = [str(tmp_path) if one == "." else one for one in arguments]
        done = subprocess.run([INSTALL, *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
        assert told in done.stderr

    @needs_root
    def test_without_root_refuses_politely_and_installs_files_into_a_tree(self, short_dir: Path) -> None:
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
    def test_leaves_what_was_recorded_and_nothing_else(self, installed: Tree) -> None:
        journal = installed.state / "policy_decisions.db"
        journal.parent.mkdir(parents=True, exist_ok=True)
        journal.write_bytes(b"rows")
        assert str(installed.state) in installed.run("--undo")
        assert journal.read_bytes() == b"rows"
        assert installed.files() == {}
        assert not installed.settings.parent.exists()

    def test_leaves_settings_that_were_edited(self, installed: Tree) -> None:
        installed.settings.write_text('model = "mine"\n', encoding="utf-8")
        assert str(installed.settings) in installed.run("--undo")
        assert list(installed.files()) == ["etc/thor-policy/config.toml"]

    def test_with_purge_leaves_nothing(self, installed: Tree) -> None:
        installed.settings.write_text('model = "mine"\n', encoding="utf-8")
        installed.run("--undo", "--purge")
        assert [path for path in installed.root.rglob("*") if "thor-policy" in path.name] == []
        for name in ("passwd", "group", "shadow", "gshadow"):
            table = installed.root / "etc" / name
            assert not table.exists() or "thor-policy:" not in table.read_text(encoding="utf-8")

    def test_can_be_repeated(self, installed: Tree) -> None:
        for _ in range(2):
            installed.run("--undo", "--purge")

    def test_of_an_installation_that_never_was_changes_nothing(self, tree: Tree) -> None:
        tree.root.mkdir()
        tree.run("--undo", "--purge")
        assert list(tree.root.iterdir()) == []

    def test_never_removes_a_virtual_environment_that_was_there_before(self, installed: Tree) -> None:
        installed.run("--undo", "--purge")
        assert (installed.prefix / "bin" / "thorpolicy").is_file()


def _table(path: Path) -> dict[str, list[str]]:
    """A file like /etc/passwd, by its first column."""
    rows = [line.split(":") for line in path.read_text(encoding="utf-8").splitlines()]
    return {row[0]: row for row in rows}
