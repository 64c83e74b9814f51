"""Blocking workers of which some requests sleep: as plain processes on one listening socket, and as a cluster.

    python tests/soak/sleeping_server.py plain|cluster|loop PORT WORKERS [SETTINGS [ASLEEP_S BUSY_S]]

`loop` is a cluster whose workers are asyncio servers, and where nobody sleeps. SETTINGS, in JSON, are the cluster's;
ASLEEP_S and BUSY_S are the balancer's patience (see `set_patience` in the core); "inf" switches taking back off. It
prints `ready` once all workers listen, and ends at SIGTERM. A worker answers as bench/load/load.c wants it: with the
bytes that came and a line that names it.
"""

import asyncio
import json
import os
import random
import signal
import socket
import sys
import time

HOST = "127.0.0.1"
BACKLOG = 511
SLEEPERS = 0.05
SLEEP_S = 0.05
LIMIT_S = 300  # until it ends, whatever happens


def serve(listener: socket.socket, name: int) -> None:
    """One connection after the other, for ever."""
    chance = random.Random(name)
    line = b"worker %d\n" % name
    while True:
        connection, _ = listener.accept()
        with connection:
            data = connection.recv(64)
            if chance.random() < SLEEPERS:
                time.sleep(SLEEP_S)
            connection.sendall(data + line)


class Answer(asyncio.Protocol):
    """One connection of an asyncio server."""

    def __init__(self, line: bytes) -> None:
        self.line = line

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data + self.line)
        self.transport.close()


async def serve_in_loop(port: int, name: int) -> None:
    """The same without sleeps, for ever."""
    line = b"worker %d\n" % name
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Answer(line), HOST, port, backlog=BACKLOG)
    await server.serve_forever()


def plain(port: int, workers: int) -> None:
    listener = socket.create_server((HOST, port), backlog=BACKLOG)
    pids = []
    for name in range(1, workers + 1):
        pid = os.fork()
        if pid == 0:
            signal.alarm(LIMIT_S)
            serve(listener, name)
        pids.append(pid)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    print("ready", flush=True)
    signal.sigwait({signal.SIGTERM})
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def clustered(way: str, port: int, workers: int, settings: str = "{}", *patience: str) -> None:
    from pycluster import _cluster, cluster

    if cluster.worker is not None and way == "loop":
        asyncio.run(serve_in_loop(port, cluster.worker.id))
        return
    if cluster.worker is not None:
        serve(socket.create_server((HOST, port), backlog=BACKLOG), cluster.worker.id)
    if patience:
        _cluster.set_patience(*map(float, patience))
    cluster.setup_primary(graceful_timeout=0.2, **json.loads(settings))
    listening = 0

    @cluster.on("listening")
    def report(*_: object) -> None:
        nonlocal listening
        listening += 1
        if listening == workers:
            print("ready", flush=True)

    for _ in range(workers):
        cluster.fork()
    cluster.run()


if __name__ == "__main__":
    signal.alarm(LIMIT_S)
    if sys.argv[1] == "plain":
        plain(int(sys.argv[2]), int(sys.argv[3]))
    else:
        clustered(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
