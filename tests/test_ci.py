"""What continuous integration installs: no test may be skipped there for lack of a program."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Programs that come with another one, or with Debian itself; `debootstrap` is for soak tests alone.
COME_WITH_OTHERS = {"dpkg-deb", "debootstrap", "node", "systemd-sysusers", "unshare"}
#: No script may name it, because it fetches without a hash: tests/test_locks.py.
UNNAMED = {"curl"}


def programs_looked_for(text: str) -> set[str]:
    """The programs that a test module looks for on the path."""
    return {
        call.args[0].value
        for call in ast.walk(ast.parse(text))
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) == "shutil.which"
        and isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[0].value, str)
    }


def test_every_program_whose_lack_skips_a_test_is_installed_by_ci() -> None:
    (listed,) = re.findall(r"^programs=\((.*)\)$", (ROOT / ".ci/run").read_text(encoding="utf-8"), re.M)
    looked_for = set[str]()
    for path in (ROOT / "tests").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "skip" in text:
            looked_for |= programs_looked_for(text)
    assert "openssl" in looked_for
    assert looked_for - COME_WITH_OTHERS - UNNAMED - set(listed.split()) == set()


def test_each_program_of_ci_has_the_package_that_it_comes_with() -> None:
    text = (ROOT / ".ci/run").read_text(encoding="utf-8")
    programs, packages = (
        re.findall(rf"^{name}=\((.*)\)$", text, re.M)[0].split() for name in ("programs", "packages")
    )
    assert len(programs) == len(packages) == len(set(programs))
