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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

import figures
import loadgen
from harness import Programs, free_port, is_stopped, wait_until
from puppets import puppets, who_answers
from soak.row import Row, show

SERVER = Path(__file__).with_name("sleeping_server.py")
WORKERS = 4
CLIENTS = 16
START_S = 10.0
NEVER = ["{}", "inf", "inf"]  # settings, and the balancer's patience
# A p99 is the word of the slowest hundredth: some 60 requests in a round of 4 s. Its ratios of single rounds differ by
# a tenth; their median, over so many rounds, by a third of that.
ROUNDS = 12
SECONDS = 4.0


class Ratio(NamedTuple):
    """The median of the rounds' ratios, and between what half of them lie."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} × ({self.low:.2f}..{self.high:.2f})"


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


def compare(
    rounds: int, seconds: float, ways: Mapping[str, Sequence[str]], clients: int = CLIENTS
) -> dict[str, list[loadgen.Load]]:
    """Load the ways of the server in turn, so often and so long each, there and back."""
    loads: dict[str, list[loadgen.Load]] = {name: [] for name in ways}
    with contextlib.ExitStack() as stack:
        ports = {name: stack.enter_context(server(*words)) for name, words in ways.items()}
        for number in range(rounds):
            for name in list(ways) if number % 2 == 0 else reversed(list(ways)):
                load = loadgen.run(ports[name], clients=clients, seconds=seconds, warmup_s=0.2, identify=True)
                loads[name].append(load)
    return loads


def p99s(loads: list[loadgen.Load]) -> list[float]:
    return [load.latency.p99 for load in loads]


def ratio(of: list[loadgen.Load], to: list[loadgen.Load]) -> Ratio:
    """The p99's ratios, round by round."""
    ratios = [one / other for one, other in zip(p99s(of), p99s(to), strict=True)]
    low, _, high = quantiles(ratios, method="inclusive")
    return Ratio(median(ratios), low, high)


def tail(loads: list[loadgen.Load]) -> str:
    """The p90, p99 and p99.5 of all rounds' requests together, in ms.

    Where all sleep, who comes waits for up to 50 ms, and 50 more if it is to sleep then itself. About one in a hundred
    of one queue's requests is, so its p99 can fall on either side of that step, and does not tell all alone.
    """
    latencies = figures.merged(load.histogram for load in loads)
    return " / ".join(f"{figures.percentile(latencies, part) / 1000:.0f}" for part in (0.9, 0.99, 0.995))


def measure_sleepers() -> list[Row]:
    """Both promises of the p99, from the same rounds."""
    loads = compare(ROUNDS, SECONDS, {"plain": ["plain"], "cluster": ["cluster"], "off": ["cluster", *NEVER]})
    to_plain, to_off = ratio(loads["cluster"], loads["plain"]), ratio(loads["cluster"], loads["off"])
    p99 = {name: median(p99s(some)) / 1000 for name, some in loads.items()}
    rates = {name: median(load.rate for load in some) for name, some in loads.items()}
    failed = sum(load.failed for some in loads.values() for load in some)
    fewest = min(load.requests for some in loads.values() for load in some)
    fault = (
        f"5 % of requests sleep 50 ms; {WORKERS} blocking workers, {CLIENTS} clients, {ROUNDS} interleaved rounds of "
        f"{fewest:,} requests and more"
    )
    return [
        Row(
            "with blocked workers the p99 is at most 1.1 times that of one queue for all",
            fault,
            f"{to_plain} that of plain processes on one socket: {p99['cluster']:.0f} ms, theirs {p99['plain']:.0f} ms; "
            f"p90 / p99 / p99.5 of all rounds {tail(loads['cluster'])} ms, theirs {tail(loads['plain'])} ms; "
            f"{rates['cluster']:.0f} requests/s, theirs {rates['plain']:.0f}; {failed} failed",
            to_plain.median <= 1.1 and failed == 0,
        ),
        Row(
            "and at most half of what it is without taking back",
            "the same rounds",
            f"{to_off} that without taking back, {p99['off']:.0f} ms and {rates['off']:.0f} requests/s; one queue for "
            f"all, which no balancer can better, has {ratio(loads['plain'], loads['off'])}",
            to_off.median <= 0.5,
        ),
    ]


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
    show(*measure_sleepers(), measure_stopped())


if __name__ == "__main__":
    main()
