"""Time a tool call through `thorpolicy mcp proxy` beside the same call without it, in pairs.

Owns the command of scripts/mcp-proxy-cost. It starts a daemon with the pack mcp-tools in this process, and
a small server two times: alone, and behind the proxy. It prints the medians, and those of the paired
differences.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from thor_policy.config import Config
from thor_policy.daemon.service import serving

ROOT = Path(__file__).resolve().parent.parent
SERVER = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    listed = {"tools": [{"name": "get_current_time", "inputSchema": {"type": "object"}}]}
    results = {"initialize": {"protocolVersion": "2025-11-25", "capabilities": {}}, "tools/list": listed}
    reply = {"jsonrpc": "2.0", "id": request["id"], "result": results.get(request["method"], {"content": []})}
    print(json.dumps(reply), flush=True)
"""
MAIN = "from thor_policy.cli.main import main; main()"


class Peer:
    """A server, alone or behind the proxy."""

    def __init__(self, command: list[str]) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, cwd=ROOT, bufsize=0
        )
        self.ask("initialize", protocolVersion="2025-11-25")

    def ask(self, method: str, **params: Any) -> float:
        """Milliseconds until the answer."""
        if self.process.stdin is None or self.process.stdout is None:
            raise SystemExit("the server has no pipes")
        begun = time.perf_counter()
        line = json.dumps({"jsonrpc": "2.0", "id": time.monotonic_ns(), "method": method, "params": params})
        self.process.stdin.write(line.encode() + b"\n")
        reply = json.loads(self.process.stdout.readline())
        if "result" not in reply:
            raise SystemExit(f"refused: {reply}")
        return (time.perf_counter() - begun) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=500, help="pairs of calls")
    calls = parser.parse_args().calls
    server = [sys.executable, "-c", SERVER]
    with tempfile.TemporaryDirectory(prefix="tp-") as folder:
        config = Config(state_dir=Path(folder), endpoint=f"ipc://{folder}/policy.sock", pack="mcp-tools")
        proxy = [sys.executable, "-c", MAIN, "mcp", "proxy", "--endpoint", config.endpoint]
        with serving(config):
            alone, gated = Peer(server), Peer([*proxy, "--server-name", "time", "--", *server])
            pairs = [
                tuple(
                    peer.ask("tools/call", name="get_current_time", arguments={}) for peer in (alone, gated)
                )
                for _ in range(calls)
            ]
            for peer in (alone, gated):
                peer.process.terminate()
                peer.process.wait()
    for name, times in (
        ("alone", [pair[0] for pair in pairs]),
        ("proxied", [pair[1] for pair in pairs]),
        ("paired difference", [pair[1] - pair[0] for pair in pairs]),
    ):
        ordered = sorted(times)
        median, high = statistics.median(ordered), ordered[int(len(ordered) * 0.95)]
        print(f"{name:18} median {median:7.2f} ms   p95 {high:7.2f} ms")


if __name__ == "__main__":
    main()
