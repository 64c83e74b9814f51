"""Blocking workers of which some requests sleep: as plain processes on one listening socket, and as a cluster.

    python tests/soak/sleeping_server.py plain|cluster PORT WORKERS [ASLEEP_S BUSY_S [SETTINGS]]

ASLEEP_S and BUSY_S are the balancer's patience (see `set_patience` in the core); "inf" switches taking back off.
SETTINGS, in JSON, are the cluster's. It prints `ready` once all workers listen, and ends at SIGTERM. A worker answers
as bench/load.c wants it: with the bytes that came and a line that names it.
"""

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


def clustered(port: int, workers: int, patience: list[float], settings: str = "{}") -> None:
    from pycluster import _cluster, cluster

    if cluster.worker is not None:
        serve(socket.create_server((HOST, port), backlog=BACKLOG), cluster.worker.id)
    if patience:
        _cluster.set_patience(*patience)
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
        clustered(int(sys.argv[2]), int(sys.argv[3]), [float(word) for word in sys.argv[4:6]], *sys.argv[6:])
