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
from collections.abc import Iterator, Mapping
from pathlib import Path

from harness import PROGRAMS, Programs, connect, free_port, request, wait_until
from load import Load, mixed, once
from puppets import Puppets, puppets, worker_in
from soak.row import Row, show

# What a crowded machine may add to graceful_timeout. The library's other limits for a worker's end are 5 s.
LATE_S = 4.0


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


# The kind of server of programs/hanging.py, and what its client asks for.
HANGS = {
    "a blocking handler that sleeps": ("blocking", "sleep 60"),
    "an event loop that sleeps": ("asyncio", "sleep 60"),
    "an event loop that holds the GIL": ("asyncio", "sum 100000000000"),
    "a handler that an event loop waits for": ("asyncio", "wait 60"),
}


def outlasting(graceful_timeout: float, hangs: Mapping[str, tuple[str, str]] = HANGS, clients: int = 3) -> Row:
    """Reload a cluster of three workers, in the first of which a handler hangs; in each way."""
    took: list[float] = []
    ends = set()
    answered = failed = 0
    for kind, line in hangs.values():
        port = free_port()
        with (
            contextlib.closing(Programs()) as programs,
            tempfile.TemporaryDirectory() as directory,
            puppets(
                programs,
                Path(directory),
                workers=0,
                exec=str(PROGRAMS / "hanging.py"),
                args=[kind, str(port)],
                graceful_timeout=graceful_timeout,
            ) as cluster,
        ):
            cluster.do(0, "fork", count=1)
            cluster.wait_for_listening(1)
            with connect(port) as victim:
                victim.sendall(line.encode() + b"\n")
                assert wait_until(lambda cluster=cluster: cluster.do(0, "stats")["accepted"] == 1)  # type: ignore[misc]
                cluster.do(0, "fork", count=2)
                for worker in (2, 3):
                    cluster.wait_for_listening(worker)
                ask = once(lambda port=port: worker_in(request(port, b"hello\n")))  # type: ignore[misc]
                with Load([ask] * clients) as load:
                    assert load.wait_for_answers_of(2, 3) or load.failures
                    cluster.do(0, "reload")
                    # Once the fourth one listens in its place, it is disconnected.
                    listening = cluster.program.wait_for("listening", worker=4)
                    ends.add(cluster.wait_for_exit(1))
                    killed = cluster.program.wait_for("exit", worker=1)
                    took.append(killed["at_s"] - listening["at_s"])
                    assert cluster.program.wait_for("reloaded")["error"] is None
                    assert load.wait_for_answers_of(4, 5, 6) or load.failures
        answered += len(load.answered)
        failed += len(load.failures)
    return Row(
        "a worker in which a handler hangs is killed after graceful_timeout, and not before",
        f"reload() of 3 workers, graceful_timeout={graceful_timeout:g}, {clients} clients; in the first hangs "
        f"{', '.join(hangs)}",
        f"killed {min(took):.2f} to {max(took):.2f} s after the new one listened; "
        f"{failed} of {answered + failed:,} other requests failed",
        not failed
        and ends == {(None, "SIGKILL")}
        and graceful_timeout <= min(took) <= max(took) <= graceful_timeout + LATE_S,
    )


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
    show(*rows, outlasting(3.0))


if __name__ == "__main__":
    main()
