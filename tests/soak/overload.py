"""Promise: with many connections, or too few descriptors, nothing is lost, spins, or grows, and service resumes.

Clients keep their connections open, and come from several addresses of the loopback network, so that ports do not run
out. The workers are asyncio servers that answer each line with their names (`keep_alive` of programs/servers.py).
"""

import contextlib
import os
import resource
import select
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from harness import PATIENCE_S, Programs, free_port, wait_until
from puppets import Puppets, cpu_s, puppets
from soak.row import Row, show

CROWD = 10_000
ANSWER_S = 60.0
FLAT_KIB = 2048  # what a second crowd may add to the primary's memory
IDLE_CPU = 0.05  # of a processor
ROUNDS_IN_VAIN = 5  # of 2 s each: asyncio tries again each second


@contextlib.contextmanager
def cluster_of(workers: int, *, spare: int | None = None) -> Iterator[tuple[Puppets, int]]:
    """A cluster that serves a port; `spare` limits how many descriptors each worker can open beside those it has."""
    with (
        contextlib.closing(Programs()) as programs,
        tempfile.TemporaryDirectory() as directory,
        puppets(programs, Path(directory), workers, expects_traceback=True) as cluster,
    ):
        port = free_port()
        for worker in range(1, workers + 1):
            if spare is not None:
                cluster.do(worker, "lower_limit", spare=spare)
        cluster.serve("keep_alive", port, *range(1, workers + 1))
        yield cluster, port


class Crowd:
    """Clients that stay."""

    def __init__(self, port: int, count: int) -> None:
        """Connect, one after the other, and ask each for a line."""
        self.clients = []
        for number in range(count):
            client = socket.socket()
            client.settimeout(PATIENCE_S)
            client.bind((f"127.0.1.{1 + number % 250}", 0))
            client.connect(("127.0.0.1", port))
            client.sendall(b"hello\n")
            self.clients.append(client)
        self.answers: dict[socket.socket, bytes] = {}

    def hear(self, seconds: float) -> int:
        """Take the answers that come within a time, or until all have come. Returns how many there are."""
        poll = select.poll()
        by_number = {client.fileno(): client for client in self.clients if client not in self.answers}
        for client in by_number.values():
            poll.register(client, select.POLLIN)
        ends = time.monotonic() + seconds
        while len(self.answers) < len(self.clients) and (left := ends - time.monotonic()) > 0:
            for fd, _ in poll.poll(1000 * left):
                client = by_number[fd]
                try:
                    self.answers[client] = client.recv(100)
                except ConnectionError:
                    self.answers[client] = b""  # it is lost, and the others are to be counted
                poll.unregister(fd)
        return len([answer for answer in self.answers.values() if answer.startswith(b"worker ")])

    def close(self, *, answered_only: bool = False) -> None:
        for client in list(self.answers) if answered_only else self.clients:
            client.close()
        self.clients = [client for client in self.clients if client.fileno() >= 0]
        self.answers.clear()


def memory_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def crowd() -> Row:
    """Two times as many connections as there are to be, one crowd after the other."""
    workers = 4
    with cluster_of(workers) as (cluster, port):
        answered, memory, shares = [], [], []
        for _ in range(2):
            clients = Crowd(port, CROWD)
            answered.append(clients.hear(ANSWER_S))
            names = list(clients.answers.values())
            shares.append(max(map(names.count, set(names))) - min(map(names.count, set(names))))
            memory.append(memory_kib(cluster.program.pid))
            clients.close()
            wait_until(lambda: cluster.do(0, "stats")["active"] == 0, ANSWER_S)
        lost = cluster.do(0, "figures")["lost"]
    grown = memory[1] - memory[0]
    return Row(
        "many connections are served at a time, and memory stays flat",
        f"{CROWD:,} open connections, {workers} workers, twice",
        f"{sum(answered):,} of {2 * CROWD:,} answered, {lost} lost, shares differ by {max(shares)}, "
        f"the second crowd adds {grown} KiB to the primary's {memory[0]} KiB",
        answered == [CROWD] * 2 and lost == 0 and grown < FLAT_KIB,
    )


def exhausted(
    where: str, count: int, *, spare: int | None, limit_primary: bool, idle_s: float = 3.0, workers: int = 2
) -> Row:
    """Connections for which there are no descriptors, for a time; then there are some."""
    with cluster_of(workers, spare=spare) as (cluster, port):
        pids = [cluster.program.pid, *(cluster.pid(worker) for worker in range(1, workers + 1))]
        limit = cluster.do(0, "lower_limit", spare=0) if limit_primary else None
        clients = Crowd(port, count)
        early = clients.hear(0.5)
        before, began = [cpu_s(pid) for pid in pids], time.monotonic()
        early = clients.hear(idle_s)
        elapsed = time.monotonic() - began
        used, *by_workers = [(cpu_s(pid) - was) / elapsed for pid, was in zip(pids, before, strict=True)]
        if limit is not None:
            cluster.do(0, "set_limit", soft=limit)
        served = early
        in_vain = 0
        while clients.clients and in_vain < ROUNDS_IN_VAIN:
            # Who is answered goes, and makes room for others.
            clients.close(answered_only=True)
            served += clients.hear(2.0)
            in_vain = 0 if clients.answers else in_vain + 1
        lost = cluster.do(0, "figures")["lost"]
        clients.close()
    return Row(
        "service resumes by itself where descriptors were exhausted, and nothing spins",
        f"no descriptor in {where}, {count} connections",
        f"{early} served meanwhile, {served} in the end, {lost} lost; meanwhile the primary used {used:.1%} of a "
        f"processor, and a worker {max(by_workers):.1%}, where asyncio tries again each second",
        served == count and lost == 0 and used < IDLE_CPU,
    )


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < CROWD + 1000:
        raise SystemExit(f"needs {CROWD + 1000} descriptors; the hard limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.environ["PYCLUSTER_SCHED_POLICY"] = "rr"
    show(
        crowd(),
        exhausted("the primary", 50, spare=None, limit_primary=True),
        exhausted("the workers", 100, spare=20, limit_primary=False),
        exhausted("both", 100, spare=20, limit_primary=True),
    )


if __name__ == "__main__":
    main()
