"""Claim: neither workers that come and go nor connections leave anything behind in the primary.

Counts the primary's descriptors and its resident memory (RSS) at four moments, each with no worker alive::

    start     before the first fork
    before    after a warm-up of a tenth of both: allocators, caches and tables have their size
    forks     after N workers, forked and ended in batches
    load      after M connections through round robin to two workers

    python bench/micro/leak.py [--forks 300] [--connections 50000] [--batch 10]

Status 1 if a connection failed, if descriptors grew after ``before``, or RSS by more than ``--rss-kib``.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from pycluster import Address, Worker, cluster

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import loadgen
import machine

LIMIT_S = 600
SERVERS = 2
CLIENTS = 64
# 50 000 times the smallest object (16 bytes) would be 780 KiB; pages touched late, here and there, are less.
RSS_KIB = 512


@dataclass(frozen=True, slots=True)
class Held:
    """What the primary holds at one moment."""

    moment: str
    descriptors: int
    rss_kib: int


def held(moment: str) -> Held:
    """Look at this process."""
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd")) - 1  # one is listdir's own
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Held(moment, descriptors, pages * os.sysconf("SC_PAGESIZE") // 1024)


def come_and_go(count: int, batch: int) -> None:
    """Fork ``count`` workers that exit at once, ``batch`` at a time, and wait for them."""
    left = count
    alive = 0

    def fork_batch() -> None:
        nonlocal left, alive
        for _ in range(min(batch, left)):
            cluster.fork({"ROLE": "nothing"})
            left -= 1
            alive += 1

    def gone(worker: Worker, code: int | None, killed_by: signal.Signals | None) -> None:
        nonlocal alive
        alive -= 1
        check(worker, code, killed_by)
        if alive == 0:
            fork_batch()

    cluster.on("exit", gone)
    fork_batch()
    cluster.run()
    cluster.remove_listener("exit", gone)


def be_loaded(connections: int) -> None:
    """Send ``connections`` through round robin.

    The client is started by a worker, too: so this process does nothing but what a primary does, and hears of
    the end as an exit.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    listening: set[int] = set()
    client: Worker | None = None

    def listens(worker: Worker, address: Address) -> None:
        nonlocal client
        listening.add(worker.id)
        if len(listening) == SERVERS:
            client = cluster.fork({"ROLE": "client", "PORT": port, "CONNECTIONS": str(connections)})

    def gone(worker: Worker, code: int | None, killed_by: signal.Signals | None) -> None:
        check(worker, code, killed_by)
        if worker is client:
            cluster.disconnect()

    cluster.on("listening", listens)
    cluster.on("exit", gone)
    for _ in range(SERVERS):
        cluster.fork({"ROLE": "server", "PORT": port})
    cluster.run()
    cluster.remove_listener("listening", listens)
    cluster.remove_listener("exit", gone)


failures: list[str] = []


def check(worker: Worker, code: int | None, killed_by: signal.Signals | None) -> None:
    """Remember a worker that did not end well, and stop: the figures would mean nothing."""
    if code != 0:
        failures.append(f"worker {worker.id} ended with {code} {killed_by}")
        cluster.disconnect()


async def serve(port: int) -> None:
    """An echo server, in a worker."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(64):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", port)
    await server.serve_forever()


def load(port: int, connections: int) -> int:
    """The client, in a worker."""
    seen = loadgen.run(port, requests=connections, clients=CLIENTS)
    print(f"  {seen.requests} connections, {seen.rate:.0f}/s, {seen.failed} failed", flush=True)
    return 0 if seen.requests == connections else 1


def primary() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description="descriptors and memory of the primary, before and after")
    parser.add_argument("--forks", type=int, default=300)
    parser.add_argument("--connections", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=10, help="workers alive at a time")
    parser.add_argument("--rss-kib", type=int, default=RSS_KIB, help="growth of RSS that is no leak yet")
    given = parser.parse_args()
    signal.alarm(LIMIT_S)  # its default action ends the primary, and so its workers
    machine.show()
    loadgen.build()

    moments = [held("start")]
    come_and_go(max(given.forks // 10, given.batch), given.batch)
    be_loaded(max(given.connections // 10, CLIENTS))
    moments.append(held("before"))
    come_and_go(given.forks, given.batch)
    moments.append(held("forks"))
    be_loaded(given.connections)
    moments.append(held("load"))

    print(f"{given.forks} forks, {given.connections} connections")
    print(f"{'':8} {'descriptors':>11} {'RSS, KiB':>9}")
    for moment in moments:
        print(f"{moment.moment:8} {moment.descriptors:11} {moment.rss_kib:9}")
    before, after = moments[1], moments[-1]
    if after.descriptors > before.descriptors:
        failures.append(f"{after.descriptors - before.descriptors} descriptors more than before")
    if after.rss_kib - before.rss_kib > given.rss_kib:
        failures.append(f"{after.rss_kib - before.rss_kib} KiB more than before")
    for failure in failures:
        print("FAILED:", failure)
    return 1 if failures else 0


def main() -> int:
    """One program in four roles."""
    if cluster.is_primary:
        return primary()
    match os.environ["ROLE"]:
        case "server":
            asyncio.run(serve(int(os.environ["PORT"])))
        case "client":
            return load(int(os.environ["PORT"]), int(os.environ["CONNECTIONS"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
