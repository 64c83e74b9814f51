"""Claim: a worker is online in a small part of the time that a fresh Python interpreter takes to start.

In turn, N times: ``cluster.fork()`` until its ``online`` event, then a fresh interpreter from start to end: one that
imports pycluster, which is what a worker has when it is online, and one that does nothing at all. They have no
``online``, so their end is counted; the worker's exit is shown as well, for whoever would rather compare end with end.
The first worker of "forkserver", for which the template is started, is shown apart.

    python bench/micro/fork_online.py [--count 50] [--start-method spawn|forkserver]
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from pycluster import Worker, cluster

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import machine

LIMIT_S = 300


def main() -> int:
    """Measure in the primary; a worker has nothing to do but come and go."""
    if cluster.is_worker:
        return 0
    parser = argparse.ArgumentParser(description="fork to online, against a fresh interpreter")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--start-method", choices=("fork", "spawn", "forkserver"), default="fork")
    given = parser.parse_args()
    signal.alarm(LIMIT_S)  # its default action ends the program, and the worker with it
    machine.show()
    cluster.setup_primary(start_method=given.start_method)

    online_ms: list[float] = []
    exit_ms: list[float] = []
    imports_ms: list[float] = []
    fresh_ms: list[float] = []
    forked_ns = 0

    def fork() -> None:
        nonlocal forked_ns
        forked_ns = time.perf_counter_ns()
        cluster.fork()

    def since_fork_ms() -> float:
        return (time.perf_counter_ns() - forked_ns) / 1e6

    @cluster.on("online")
    def online(worker: Worker) -> None:
        online_ms.append(since_fork_ms())

    @cluster.on("exit")
    def gone(worker: Worker, code: int | None, killed_by: signal.Signals | None) -> None:
        exit_ms.append(since_fork_ms())
        if code != 0:
            raise SystemExit(f"worker {worker.id} ended with {code} {killed_by}")
        # Nothing else runs now: the worker has gone, and the next is not there yet.
        for times, program in ((imports_ms, "import pycluster"), (fresh_ms, "pass")):
            began_ns = time.perf_counter_ns()
            # With a timeout, subprocess would look in growing steps whether it has ended.
            subprocess.run([sys.executable, "-c", program], check=True)
            times.append((time.perf_counter_ns() - began_ns) / 1e6)
        if len(fresh_ms) < given.count:
            fork()

    fork()
    cluster.run()

    if given.start_method == "forkserver":
        print(f"the first fork to online, with the start of the template: {online_ms.pop(0):.2f} ms")
        exit_ms.pop(0)
    print(f"{given.start_method}, {given.count} of each in turn; ms, median (min..max)")
    for name, times in (
        ("fork to online", online_ms),
        ("fork to exit", exit_ms),
        ("python -c 'import pycluster'", imports_ms),
        ("python -c pass", fresh_ms),
    ):
        ratio = median(times) / median(online_ms)
        print(f"  {name:28} {median(times):7.2f} ({min(times):.2f}..{max(times):.2f})  {ratio:.1f} x online")
    return 0


if __name__ == "__main__":
    sys.exit(main())
