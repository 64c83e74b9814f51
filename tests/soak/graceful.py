"""Promise: no request fails while workers, or all of them, are asked to leave under load.

Threads of clients, of which every other one makes a connection per request and the others keep theirs for some
requests. A connection that has been made must be answered as often as it asks; only where the cluster as a whole ends
may a new one be refused.
"""

import contextlib
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from harness import PATIENCE_S, Programs, free_port, wait_until
from puppets import Puppets, puppets
from soak.row import Row, show

PER_CONNECTION = 10  # requests of a client that keeps its connection


class Clients:
    """Clients of a server that answers lines, until they are stopped, or, if they may be refused, until they are."""

    def __init__(self, port: int, threads: int, *, refusable: bool = False) -> None:
        self.failures: list[str] = []
        self.answered = 0
        self._address = ("127.0.0.1", port)
        self._refusable = refusable
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=[1 + n % 2 * (PER_CONNECTION - 1)]) for n in range(threads)
        ]

    def _ask(self, requests: int) -> None:
        while not self._stop.is_set():
            try:
                client = socket.create_connection(self._address, PATIENCE_S)
            except OSError as error:
                if self._refusable and isinstance(error, ConnectionError):
                    return
                self.failures.append(f"connect: {error!r}")
                continue
            try:
                with client, client.makefile("rb") as answers:
                    for number in range(requests):
                        client.sendall(b"hello\n")
                        if not answers.readline().startswith(b"worker "):
                            self.failures.append(f"end of file instead of answer {number}")
                            break
                        self.answered += 1
            except OSError as error:
                self.failures.append(f"{error!r}")

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


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


def one_by_one(times: int, threads: int = 8) -> tuple[int, list[str]]:
    """Replace workers one after the other. Returns how many requests were answered, and what failed."""
    with cluster_of(2) as (cluster, port), Clients(port, threads) as clients:
        for old in range(1, times + 1):
            [new] = cluster.fork()
            cluster.serve("keep_alive", port, new)
            cluster.do(0, "disconnect", worker=old)
            assert cluster.wait_for_exit(old) == (0, None)
    return clients.answered, clients.failures


def all_at_once(times: int, threads: int = 8) -> tuple[int, list[str]]:
    """Disconnect all, so often; each cluster is a new one."""
    answered, failures = 0, []
    for _ in range(times):
        with cluster_of(2) as (cluster, port):
            with Clients(port, threads, refusable=True) as clients:
                assert wait_until(lambda clients=clients: clients.answered > 100)  # type: ignore[misc]
                cluster.do(0, "disconnect_all")
                for worker in (1, 2):
                    assert cluster.wait_for_exit(worker) == (0, None)
            answered += clients.answered
            failures += clients.failures
    return answered, failures


def terminated(times: int, threads: int = 8) -> tuple[int, list[str]]:
    """The same by SIGTERM, under `run()`."""
    answered, failures = 0, []
    for _ in range(times):
        with contextlib.closing(Programs()) as programs:
            port = free_port()
            program = programs("lines", 2, port)
            program.wait_for_all(2, "listening")
            with Clients(port, threads, refusable=True) as clients:
                assert wait_until(lambda clients=clients: clients.answered > 100)  # type: ignore[misc]
                program.send_signal(signal.SIGTERM)
                assert program.finish().returncode == 0
            ends = [(fact["code"], fact["signal"]) for fact in program.facts_of("exit")]
            assert ends == [(0, None)] * 2, ends
            answered += clients.answered
            failures += clients.failures
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
