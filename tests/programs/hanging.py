"""Servers that block when a client asks for it, and a primary that tells which workers hang.

Arguments: the kind of server, its port, the number of workers, and settings. A client says a line: "sleep 2" (block for
so long), "sum 9" (the same in C, with the GIL held, for as long as it takes to add so many numbers), "wait 2" (which
blocks no event loop), "read PATH" (block until somebody has written that FIFO), or anything else. It is answered with
the worker's id, when the worker gets to it. In the environment STARTING_S is how long the start of "starting" holds the
GIL, and GRACE_S how long a worker that hangs has to go on.
"""

import asyncio
import json
import os
import signal
import socket
import sys
import time

from programs.facts import open_descriptors, tell, tell_events
from pycluster import Hang, Worker, cluster, process, watch

kind, port = sys.argv[1], int(sys.argv[2])


def block(line: str) -> bytes:
    what, _, how_long = line.strip().partition(" ")
    if what == "sleep":
        time.sleep(float(how_long))  # the line
    elif what == "sum":
        sum(range(int(how_long)))  # the line
    elif what == "read":
        with open(how_long) as file:
            file.read()
    elif what == "descriptors":
        return b"%d" % sum("pycluster-stacks" in name for name in open_descriptors().values())
    assert cluster.worker is not None
    return b"worker %d" % cluster.worker.id


def serve_blocking(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile() as lines:
            connection.sendall(block(lines.readline()))


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    line = (await reader.readline()).decode()
    if line.startswith("wait "):
        await asyncio.sleep(float(line.split()[1]))
    writer.write(block(line))
    await writer.drain()
    writer.close()


async def serve_in_loop() -> None:
    @process.on("message")  # type: ignore[untyped-decorator]
    def on_message(message: str, handle: None) -> None:
        block(message)
        process.send("done")

    server = await asyncio.start_server(answer, "127.0.0.1", port)
    await server.serve_forever()


def run_worker() -> None:
    if kind == "blocking":
        serve_blocking(socket.create_server(("127.0.0.1", port)))
    elif kind == "starting":
        listener = socket.create_server(("127.0.0.1", port))
        tell("starting")
        deadline = time.monotonic() + float(os.environ.get("STARTING_S", "1.5"))
        while time.monotonic() < deadline:
            sum(range(10**7))
        serve_blocking(listener)
    elif kind == "handled":
        signal.signal(signal.SIGRTMAX - 1, lambda number, frame: None)
        serve_blocking(socket.create_server(("127.0.0.1", port)))
    elif kind == "uvloop":
        import uvloop

        uvloop.run(serve_in_loop())
    else:
        asyncio.run(serve_in_loop())


def run_primary() -> None:
    watch.GRACE_S = float(os.environ.get("GRACE_S", watch.GRACE_S))
    cluster.setup_primary(**json.loads(sys.argv[4]))
    tell_events()
    workers = [cluster.fork() for _ in range(int(sys.argv[3]))]

    @cluster.on("hang")
    def on_hang(worker: Worker, hang: Hang) -> None:
        tell("hang", worker=worker.id, **vars(hang))

    for worker in workers:
        worker.on("hang", lambda hang, worker=worker: tell("hang of worker", worker=worker.id))

    def block_when_nobody_waits(number: int, frame: object) -> None:
        while cluster.stats().active:
            time.sleep(0.01)  # the worker looks once a second
        workers[0].send("sleep 1.2")

    signal.signal(signal.SIGUSR1, block_when_nobody_waits)
    cluster.run()


if cluster.is_primary:
    run_primary()
else:
    run_worker()
