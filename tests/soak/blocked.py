"""Promise: connections do not wait for a worker that is blocked while another one is free.

Blocking workers of which 5 % of requests sleep (sleeping_server.py), in interleaved rounds: as plain processes that
accept from one shared socket, which is one queue for all; as a cluster; and as a cluster that takes nothing back. Then
a worker that is stopped for good among others.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import loadgen
from harness import Programs, free_port, is_stopped, wait_until
from puppets import puppets, who_answers
from soak.row import Row, show

SERVER = Path(__file__).with_name("sleeping_server.py")
WORKERS = 4
CLIENTS = 16
START_S = 10.0
NEVER = ["inf", "inf"]


@contextlib.contextmanager
def server(*words: str) -> Iterator[int]:
    """Run one way of the server. Gives its port."""
    port = free_port()
    command = [sys.executable, str(SERVER), words[0], str(port), str(WORKERS), *words[1:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(START_S)


def compare(rounds: int, seconds: float, ways: dict[str, list[str]]) -> dict[str, list[loadgen.Load]]:
    """Load the ways of the server in turn, so often and so long each."""
    loads: dict[str, list[loadgen.Load]] = {name: [] for name in ways}
    with contextlib.ExitStack() as stack:
        ports = {name: stack.enter_context(server(*words)) for name, words in ways.items()}
        for number in range(rounds):
            for name in ways if number % 2 == 0 else reversed(ways):
                load = loadgen.run(ports[name], clients=CLIENTS, seconds=seconds, warmup_s=0.2, identify=True)
                loads[name].append(load)
    return loads


def p99s(loads: list[loadgen.Load]) -> list[float]:
    return [load.latency.p99 for load in loads]


def ratio(of: list[loadgen.Load], to: list[loadgen.Load]) -> float:
    """The median of the p99's ratios, round by round."""
    return median(one / other for one, other in zip(p99s(of), p99s(to), strict=True))


def measure_sleepers() -> Row:
    loads = compare(9, 3.0, {"plain": ["plain"], "cluster": ["cluster"], "off": ["cluster", *NEVER]})
    to_plain, to_off = ratio(loads["cluster"], loads["plain"]), ratio(loads["cluster"], loads["off"])
    best = ratio(loads["plain"], loads["off"])
    p99 = median(p99s(loads["cluster"])) / 1000
    rates = {name: median(load.rate for load in some) for name, some in loads.items()}
    failed = sum(load.failed for some in loads.values() for load in some)
    return Row(
        "connections do not wait for a blocked worker while another one is free",
        f"5 % of requests sleep 50 ms; {WORKERS} blocking workers, {CLIENTS} clients, 9 rounds",
        f"p99 {p99:.0f} ms: {to_plain:.2f} × that of one queue for all, {to_off:.2f} × that without taking back, "
        f"where one queue has {best:.2f} ×; {rates['cluster']:.0f} requests/s, "
        f"one queue {rates['plain']:.0f}, without taking back {rates['off']:.0f}; {failed} failed",
        to_plain <= 1.1 and failed == 0,
    )


def measure_stopped(rounds: int = 20) -> Row:
    """Stop one worker after another, and see how long single connections wait meanwhile, and before that."""
    before: list[float] = []
    meanwhile: list[float] = []
    with (
        contextlib.closing(Programs()) as programs,
        tempfile.TemporaryDirectory() as directory,
        puppets(programs, Path(directory), WORKERS, env={"PYCLUSTER_SCHED_POLICY": "rr"}) as cluster,
    ):
        port = free_port()
        cluster.serve("accept_loop", port, *range(1, WORKERS + 1))

        def ask(waits: list[float]) -> None:
            for _ in range(20):
                began = time.monotonic()
                who_answers(port)
                waits.append(1000 * (time.monotonic() - began))

        for number in range(rounds):
            ask(before)
            stopped = 1 + number % WORKERS
            pid = cluster.pid(stopped)
            os.kill(pid, signal.SIGSTOP)
            assert wait_until(lambda pid=pid: is_stopped(pid))  # type: ignore[misc]
            ask(meanwhile)
            os.kill(pid, signal.SIGCONT)
            assert wait_until(lambda stopped=stopped: who_answers(port) == stopped)  # type: ignore[misc]
    return Row(
        "a worker that is stopped delays no connection by more than 50 ms",
        f"SIGSTOP of one of {WORKERS} workers, {rounds} times, 20 connections each",
        f"the slowest of {len(meanwhile)} took {max(meanwhile):.1f} ms, the 20th slowest "
        f"{sorted(meanwhile)[-20]:.1f} ms; with none stopped {max(before):.1f} ms and {sorted(before)[-20]:.1f} ms",
        max(meanwhile) <= 50 + max(before),
    )


def main() -> None:
    show(measure_sleepers(), measure_stopped())


if __name__ == "__main__":
    main()
