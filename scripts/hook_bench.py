"""Measure what a hook adds to a tool call.

From the start of its shell to its end, over a shell that does nothing.

Owns the command of scripts/hook-bench. The runs are paired: the installed command, a shell hook that reads
the event and prints `{}`, the command `thorpolicy hook`, and python without the site, one after the other
in each round. The daemon decides by rules and commits to the disk, as in use.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from thor_policy.cli import render
from thor_policy.config import Config
from thor_policy.daemon.service import serving
from thor_policy.hook import installation, trial
from thor_policy.hook.state import State
from thor_policy.testing import load_stub_engine


def seconds(command: str, data: bytes) -> float:
    """The time from the fork of the shell to its exit.

    Raises CalledProcessError if it does not exit with 0.
    """
    started = time.perf_counter()
    done = subprocess.run(["/bin/sh", "-c", command], input=data, capture_output=True, check=True)
    took = time.perf_counter() - started
    assert b"deny" not in done.stdout, done.stdout
    return took


def main() -> int:
    """Measure and print; returns 1 if the median over the shell hook is above --most-ms."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=40, metavar="N", help="rounds (default 40)")
    parser.add_argument("--most-ms", type=float, default=60.0, metavar="MS", help="most that is right (60)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tp-") as name:
        folder = Path(name)
        endpoint = f"ipc://{folder}/policy.sock"
        state = str(folder / "state")
        event, sample = trial.SAMPLES["claude"]
        wanted = installation.Wanted(endpoint=endpoint, state=state)
        State(state).keep_prompt(sample["session_id"], "Look at the files.")
        State(state).keep_root(sample["session_id"], sample["cwd"])
        data = json.dumps(sample).encode()
        commands = {
            "shell hook that does nothing": "cat > /dev/null; echo '{}'",
            "installed hook": installation.command_of("claude", event, wanted, ""),
            "thorpolicy hook": f"{Path(sys.executable).with_name('thorpolicy')} hook --agent claude "
            f"--endpoint {endpoint} --state {state}",
            "python -I -S -c pass": f"{sys.executable} -I -S -c pass",
        }
        took: dict[str, list[float]] = {label: [] for label in commands}
        config = Config(state_dir=folder / "daemon", endpoint=endpoint, pack="agent-tools")
        config.state_dir.mkdir()
        with serving(config, load_engine=load_stub_engine):
            for command in commands.values():
                seconds(command, data)  # fills the page cache
            for _ in range(arguments.rounds):
                for label, command in commands.items():
                    took[label].append(seconds(command, data))
    base = took["shell hook that does nothing"]
    rows = [
        {
            "what": label,
            "median_ms": round(1e3 * statistics.median(times), 1),
            "p95_ms": round(1e3 * sorted(times)[int(0.95 * (len(times) - 1))], 1),
            "over_shell_ms": round(
                1e3 * statistics.median(a - b for a, b in zip(times, base, strict=True)), 1
            ),
        }
        for label, times in took.items()
    ]
    over: Any = rows[1]["over_shell_ms"]
    load = os.getloadavg()[0]
    if arguments.json:
        render.as_json({"rounds": arguments.rounds, "load": load, "rows": rows})
    else:
        render.table(
            ("", "median ms", "p95 ms", "over the shell ms"),
            [tuple(row.values()) for row in rows],
        )
        render.line(f"{arguments.rounds} rounds, paired medians; {os.cpu_count()} cores, load {load:.1f}")
    return 0 if over <= arguments.most_ms else 1


if __name__ == "__main__":
    sys.exit(main())
