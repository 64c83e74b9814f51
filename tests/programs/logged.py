"""Workers that log each connection before they handle it, and are replaced when they die.

Arguments: how many, port, the log, a file with a byte per worker's id: whether it has accepted what is not logged yet.
"""

import mmap
import os
import random
import select
import struct
import sys
import time

from programs.facts import tell
from pycluster import Worker, cluster

RECORD = struct.Struct("!4sH2x")


def main() -> None:
    count, port = int(sys.argv[1]), int(sys.argv[2])
    if cluster.worker is None:

        @cluster.on("fork")
        def on_fork(worker: Worker) -> None:
            tell("fork", worker=worker.id, worker_pid=worker.process.pid)

        @cluster.on("exit")
        def on_exit(worker: Worker, code: int | None, signal: object) -> None:
            tell("exit", worker=worker.id)
            if not worker.exited_after_disconnect:
                cluster.fork()

        for _ in range(count):
            cluster.fork()
        cluster.run()
        return

    number = cluster.worker.id
    chance = random.Random(number)
    log = os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND)
    with open(sys.argv[4], "r+b") as file:
        accepting = mmap.mmap(file.fileno(), 0)
    listener = cluster.listen(("127.0.0.1", port))
    listener.setblocking(False)
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while True:
        poll.poll()
        accepting[number] = 1
        try:
            connection, (host, peer_port) = listener.accept()
        except BlockingIOError:
            accepting[number] = 0
            continue
        os.write(log, RECORD.pack(bytes(map(int, host.split("."))), peer_port))
        accepting[number] = 0
        with connection:
            connection.recv(100)
            if chance.random() < 0.1:
                time.sleep(0.005)
            connection.sendall(b"answered")


if __name__ == "__main__":
    main()
