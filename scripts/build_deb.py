"""Build the Debian package: a virtual environment below /opt/thor-policy, units, manual pages, completions.

Owns the layout of the package and its scripts. It packs what `scripts/setup` installed into .venv, checked by
hash there, and fetches nothing: each file of each package of requirements.lock, and pip, which pulls the
small model. Invariant: the same .venv, commit and SOURCE_DATE_EPOCH give the same bytes. llama.cpp is packed
as it was compiled: for another processor, compile with CMAKE_ARGS=-DGGML_NATIVE=OFF first.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import Distribution, distributions
from pathlib import Path

import man_pages
from packaging.markers import Marker
from packaging.utils import canonicalize_name

from thor_policy import __version__

ROOT = Path(__file__).resolve().parents[1]
PREFIX = "opt/thor-policy"
#: Debian's names of processors.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
#: Files of a distribution that say where and when it was installed.
_LOCAL = ("direct_url.json", "REQUESTED", "uv_cache.json")
_PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"
_CONTROL = f"""\
Package: thor-policy
Version: {{version}}
Architecture: {{architecture}}
Maintainer: thor-policy <thor-policy@localhost>
Installed-Size: {{size_kb}}
Depends: {_PYTHON}, systemd (>= 249), libgomp1, libstdc++6, libc6
Section: admin
Priority: optional
Description: policy-decision daemon that runs on the device it protects
 It answers whether a subject may do something, by rules and by a language model
 in the same process, and records each decision before it answers.
"""
_POSTINST = f"""\
#!/bin/sh
set -e
[ "$1" = configure ] || exit 0
systemd-sysusers thor-policy.conf
systemd-tmpfiles --create thor-policy.conf
/{PREFIX}/bin/python -m compileall -q -j 0 /{PREFIX}/lib || true
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload
  if [ -n "$2" ]; then systemctl try-restart thor-policy.service || true; fi
fi
if [ -z "$2" ]; then
  cat <<'TEXT'
Next, as the user thor-policy:
  thorpolicy models pull smollm2-135m-instruct-q4_1 --config /etc/thor-policy/config.toml
then: systemctl enable --now thor-policy
TEXT
fi
"""
_PRERM = f"""\
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
  systemctl disable --now thor-policy.service thor-policy-improve.timer || true
fi
find /{PREFIX}/lib -name __pycache__ -type d -prune -exec rm -rf {{}} + || true
"""
#: A purge keeps what was recorded, with its keys and its owner. Without records nothing is left.
_POSTRM = f"""\
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then systemctl daemon-reload || true; fi
[ "$1" = purge ] || exit 0
state=/var/lib/thor-policy
rm -rf "$state/models" "$state/prefix-states" "$state/ballast" /run/thor-policy /etc/thor-policy /{PREFIX}
if [ -n "$(find "$state" -name '*.db' 2>/dev/null | head -n 1)" ]; then
  echo "kept $state: it holds recorded decisions; to delete them: rm -r $state; userdel thor-policy"
  exit 0
fi
rm -rf "$state"
if getent passwd thor-policy > /dev/null; then userdel thor-policy; fi
for group in thor-policy thor-policy-clients; do
  if getent group "$group" > /dev/null; then groupdel "$group"; fi
done
"""


def locked_names(lock: Path) -> set[str]:
    """The packages of a lock file that this interpreter and system need."""
    names: set[str] = set()
    for line in lock.read_text(encoding="utf-8").splitlines():
        match = re.match(r"([A-Za-z0-9._-]+)==[^ ;\\]+ *(?:; *([^\\]+))?", line)
        if match and (not match[2] or Marker(match[2].strip()).evaluate()):
            names.add(canonicalize_name(match[1]))
    return names


def copy_distribution(distribution: Distribution, site: Path) -> None:
    """Copy the files of an installed package into `site`, without programs, caches and local marks."""
    kept: list[tuple[str, str, str]] = []
    record = next(path for path in distribution.files or () if path.name == "RECORD")
    for path in sorted(distribution.files or (), key=str):
        if ".." in path.parts or "__pycache__" in path.parts or path.name in _LOCAL or path == record:
            continue
        source, target = Path(str(path.locate())), site / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)
        kept.append(
            (str(path), f"{path.hash.mode}={path.hash.value}" if path.hash else "", str(path.size or ""))
        )
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([*kept, (str(record), "", "")])
    (site / record).write_text(lines.getvalue(), encoding="utf-8")


def stage(root: Path, wheel: Path | None) -> None:
    """Write every file of the package below `root`; without a wheel, none of the Python packages."""
    prefix, site = root / PREFIX, root / PREFIX / "lib" / _PYTHON / "site-packages"
    if wheel:
        wanted = locked_names(ROOT / "requirements.lock") | {"pip"}
        installed: dict[str, Distribution] = {canonicalize_name(each.name): each for each in distributions()}
        if missing := sorted(wanted - set(installed)):
            raise SystemExit(f"build-deb: .venv lacks {', '.join(missing)}; run ./scripts/setup")
        for name in sorted(wanted):
            copy_distribution(installed[name], site)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    put(
        prefix / "pyvenv.cfg",
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {_PYTHON[6:]}\n",
    )
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "python").symlink_to(f"/usr/bin/{_PYTHON}")
    program = "from thor_policy.cli.main import main\n\nmain()\n"
    put(prefix / "bin" / "thorpolicy", f"#!/{PREFIX}/bin/python\n{program}", 0o755)
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/thorpolicy").symlink_to(f"/{PREFIX}/bin/thorpolicy")
    units = root / "usr/lib/systemd/system"
    for unit in ("thor-policy.service", "thor-policy-improve.service", "thor-policy-improve.timer"):
        put(units / unit, (ROOT / "systemd" / unit).read_text(encoding="utf-8"))
    put(root / "usr/lib/sysusers.d/thor-policy.conf", (ROOT / "systemd/sysusers.conf").read_text("utf-8"))
    put(root / "usr/lib/tmpfiles.d/thor-policy.conf", (ROOT / "systemd/tmpfiles.conf").read_text("utf-8"))
    put(root / "etc/thor-policy/config.toml", (ROOT / "systemd/config.toml").read_text("utf-8"))
    documents = root / "usr/share/doc/thor-policy"
    put(documents / "copyright", (ROOT / "LICENSE").read_text("utf-8"))
    put(documents / "examples/gpu.conf", (ROOT / "systemd/gpu.conf").read_text("utf-8"))
    put_compressed(documents / "changelog.gz", (ROOT / "CHANGELOG.md").read_text("utf-8"))
    for name, page in man_pages.pages().items():
        put_compressed(root / "usr/share/man/man1" / f"{name}.gz", page)
    for shell, path in (
        ("bash", "bash-completion/completions/thorpolicy"),
        ("zsh", "zsh/vendor-completions/_thorpolicy"),
        ("fish", "fish/vendor_completions.d/thorpolicy.fish"),
    ):
        command = [Path(sys.executable).with_name("thorpolicy"), "completion", shell]
        put(
            root / "usr/share" / path,
            subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout,
        )


def put(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a text file of this mode, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def put_compressed(path: Path, text: str) -> None:
    """Write a text compressed, without a date inside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


def control(root: Path) -> None:
    """Write the folder DEBIAN: what dpkg knows of the package, and its scripts."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    digests = {path: hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() for path in files}
    sums = "".join(f"{digest}  {path.relative_to(root)}\n" for path, digest in digests.items())
    size_kb = sum(path.stat().st_size for path in files) // 1024
    folder = root / "DEBIAN"
    architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())
    put(folder / "control", _CONTROL.format(version=__version__, architecture=architecture, size_kb=size_kb))
    put(folder / "conffiles", "/etc/thor-policy/config.toml\n")
    put(folder / "md5sums", sums)
    for name, script in (("postinst", _POSTINST), ("prerm", _PRERM), ("postrm", _POSTRM)):
        put(folder / name, script, 0o755)


def build(out: Path, wheel: Path | None, *, without_packages: bool) -> Path:
    """Build the package in the folder `out`; returns its path."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        if wheel is None and not without_packages:
            command = [
                sys.executable,
                "-m",
                "build",
                "--wheel",
                "--quiet",
                "--no-isolation",
                "--outdir",
                folder,
                ROOT,
            ]
            subprocess.run(list(map(str, command)), check=True)
            (wheel,) = Path(folder).glob("*.whl")
        root.mkdir(mode=0o755)
        stage(root, None if without_packages else wheel)
        control(root)
        moment = int(os.environ["SOURCE_DATE_EPOCH"])
        for path in (root, *root.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
            os.utime(path, (moment, moment), follow_symlinks=False)
        out.mkdir(parents=True, exist_ok=True)
        architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())
        package = out / f"thor-policy_{__version__}_{architecture}.deb"
        # gzip compresses in one thread, so the bytes do not depend on the number of cores.
        command = [
            "dpkg-deb",
            "--root-owner-group",
            "-Zgzip",
            "-z6",
            "--build",
            root,
            package,
        ]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    return package


def main() -> None:
    parser = argparse.ArgumentParser(prog="build-deb", description="Build the Debian package from .venv.")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "dist", help="folder of the package (default: dist)"
    )
    parser.add_argument("--wheel", type=Path, help="wheel of this checkout; built if it is not given")
    parser.add_argument(
        "--without-packages", action="store_true", help="leave the Python packages out: a package to look at"
    )
    arguments = parser.parse_args()
    os.umask(0o022)
    os.environ.setdefault("SOURCE_DATE_EPOCH", _commit_time())
    print(build(arguments.out, arguments.wheel, without_packages=arguments.without_packages))


def _commit_time() -> str:
    command = ["git", "-C", ROOT, "log", "-1", "--format=%ct"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    return done.stdout.strip() or "0"


if __name__ == "__main__":
    main()
