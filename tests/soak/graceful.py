"""Promise: no request fails while workers, or all of them, are asked to leave under load.

Threads of clients, of which every other one makes a connection per request and the others keep theirs for some
requests. A connection that has been made must be answered as often as it asks; only where the cluster as a whole ends
may a new one be refused.
"""

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from harness import Programs, free_port
from load import mixed
from puppets import Puppets, puppets
from soak.row import Row, show


@contextlib.contextmanager
def cluster_of(workers: int) -> Iterator[tuple[Puppets, int]]:
    with (
        contextlib.closing(Programs()) as programs,
        tempfile.TemporaryDirectory() as directory,
        puppets(programs, Path(directory), workers) as cluster,
    ):
        port = free_port()
        cluster.serve("keep_alive", port, *range(1, workers + 1))
        yield cluster, port


def one_by_one(times: int, threads: int = 8) -> tuple[int, list[Exception]]:
    """Replace workers one after the other. Returns how many requests were answered, and what failed."""
    with cluster_of(2) as (cluster, port), mixed(port, threads) as load:
        for old in range(1, times + 1):
            [new] = cluster.fork()
            cluster.serve("keep_alive", port, new)
            cluster.do(0, "disconnect", worker=old)
            assert cluster.wait_for_exit(old) == (0, None)
    return len(load.answered), load.failures


def all_at_once(times: int, threads: int = 8) -> tuple[int, list[Exception]]:
    """Disconnect all, so often; each cluster is a new one."""
    answered = 0
    failures: list[Exception] = []
    for _ in range(times):
        with cluster_of(2) as (cluster, port):
            with mixed(port, threads, refusable=True) as load:
                assert load.wait_for(100)
                cluster.do(0, "disconnect_all")
                for worker in (1, 2):
                    assert cluster.wait_for_exit(worker) == (0, None)
            answered += len(load.answered)
            failures += load.failures
    return answered, failures


def terminated(times: int, threads: int = 8) -> tuple[int, list[Exception]]:
    """The same by SIGTERM, under `run()`."""
    answered = 0
    failures: list[Exception] = []
    for _ in range(times):
        with contextlib.closing(Programs()) as programs:
            port = free_port()
            program = programs("lines", 2, port)
            program.wait_for_all(2, "listening")
            with mixed(port, threads, refusable=True) as load:
                assert load.wait_for(100)
                program.send_signal(signal.SIGTERM)
                assert program.finish().returncode == 0
            ends = [(fact["code"], fact["signal"]) for fact in program.facts_of("exit")]
            assert ends == [(0, None)] * 2, ends
            answered += len(load.answered)
            failures += load.failures
    return answered, failures


def main() -> None:
    os.environ["PYCLUSTER_SCHED_POLICY"] = "rr"
    rows = []
    for way, ask, times in (
        ("disconnect() of one worker after the other, with replacement", one_by_one, 40),
        ("disconnect() of all", all_at_once, 20),
        ("SIGTERM", terminated, 20),
    ):
        began = time.monotonic()
        answered, failures = ask(times)
        rows.append(
            Row(
                "no request fails while workers are asked to leave",
                f"{times} × {way}, 8 clients, half with keep-alive",
                f"{len(failures)} of {answered + len(failures):,} requests failed in {time.monotonic() - began:.0f} s",
                not failures,
            )
        )
    show(*rows)


if __name__ == "__main__":
    main()
