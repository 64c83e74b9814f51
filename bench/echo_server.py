"""The echo server of the comparisons, as plain processes and as a cluster: one worker, two ways to start it.

    python bench/echo_server.py plain   --port 8000 --workers 2 [--work blocking] [--api protocol]
    python bench/echo_server.py cluster --port 8000 --workers 2 [--loop uvloop]

It prints ``ready`` once all workers listen, and ends at SIGTERM. ``serve`` is the code of a worker and knows
only whether it is given a listening socket or has to bind one; ``plain`` and ``cluster`` start it. balance.py
starts this program.

A worker answers with the bytes it read and, in the same write, a line that names it. So the client sees the
shares in the very requests that are measured, and counting costs the same (one concatenation) in both.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NoReturn, cast

HOST = "127.0.0.1"
BACKLOG = 511  # as in Node.js; with asyncio's own 100 the SYNs of more clients would be dropped for a second
READ_SIZE = 64  # the largest request of load.c


@dataclass(frozen=True, slots=True)
class Options:
    """What is being compared."""

    start: Literal["plain", "cluster"]
    port: int
    workers: int
    work: Literal["asyncio", "blocking"]
    api: Literal["streams", "protocol"]
    loop: Literal["asyncio", "uvloop"]
    limit: int


@dataclass(frozen=True, slots=True)
class Post:
    """What one worker is given."""

    line: bytes  # after each echo
    port: int
    listener: socket.socket | None  # where to accept; None: bind and listen as any program would
    ready: Callable[[], object]  # called once it listens


def serve(options: Options, post: Post) -> None:
    """Be a worker until killed or told to disconnect."""
    if options.work == "blocking":
        blocking(post)
        return
    loop_factory = None
    if options.loop == "uvloop":
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(streams(post) if options.api == "streams" else protocol(post))


def blocking(post: Post) -> None:
    """One connection after the other."""
    listener = post.listener or socket.create_server((HOST, post.port), backlog=BACKLOG)
    post.ready()
    while True:
        connection, _ = listener.accept()
        with connection:
            while data := connection.recv(READ_SIZE):
                connection.sendall(data + post.line)


async def streams(post: Post) -> None:
    """``asyncio.start_server``."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):  # only when the client is ended in the middle
            while data := await reader.read(READ_SIZE):
                writer.write(data + post.line)
                await writer.drain()
        writer.close()

    if post.listener is None:
        server = await asyncio.start_server(echo, HOST, post.port, backlog=BACKLOG)
    else:
        server = await asyncio.start_server(echo, sock=post.listener, backlog=BACKLOG)
    post.ready()
    await server.serve_forever()


async def protocol(post: Post) -> None:
    """``loop.create_server`` with a Protocol: less code per connection, so accepting weighs more."""

    class Echo(asyncio.Protocol):
        transport: asyncio.WriteTransport

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            # Not isinstance(): uvloop's transports are no subclasses of asyncio's.
            self.transport = cast(asyncio.WriteTransport, transport)

        def data_received(self, data: bytes) -> None:
            self.transport.write(data + post.line)

    loop = asyncio.get_running_loop()
    if post.listener is None:
        server = await loop.create_server(Echo, HOST, post.port, backlog=BACKLOG)
    else:
        server = await loop.create_server(Echo, sock=post.listener, backlog=BACKLOG)
    post.ready()
    await server.serve_forever()


def plain(options: Options) -> int:
    """Forked processes that all accept from one listening socket."""
    listener = socket.create_server((HOST, options.port), backlog=BACKLOG)
    reports, report = os.pipe()
    # Blocked before the first fork, so that whichever comes is still there to be waited for.
    awaited = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    workers: list[int] = []
    try:
        for name in range(1, options.workers + 1):
            pid = os.fork()
            if pid == 0:
                _plain_worker(options, name, listener, report)
            workers.append(pid)
        os.close(report)
        for _ in workers:
            if not os.read(reports, 1):
                raise RuntimeError("no worker is left")
        print("ready", flush=True)
        came = signal.sigwait(awaited)
        if came == signal.SIGCHLD:
            print("a worker ended by itself", file=sys.stderr)
        return 1 if came == signal.SIGCHLD else 0
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        for pid in workers:
            os.waitpid(pid, 0)


def _plain_worker(options: Options, name: int, listener: socket.socket, report: int) -> NoReturn:
    status = 1
    try:
        signal.alarm(options.limit)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        serve(options, Post(b"worker %d\n" % name, options.port, listener, lambda: os.write(report, b".")))
        status = 0
    except BaseException as error:  # a child must not go on with its parent's code, whatever happens
        print(f"worker {name}: {error!r}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def cluster(options: Options) -> int:
    """The same under pycluster; PYCLUSTER_SCHED_POLICY chooses the policy."""
    from pycluster import Address, Worker, cluster

    if cluster.worker is not None:
        # The primary hears from the library that this worker listens: nothing to report.
        serve(options, Post(b"worker %d\n" % cluster.worker.id, options.port, None, lambda: None))
        return 0

    listening: set[int] = set()
    lost = False

    @cluster.on("listening")
    def report(worker: Worker, address: Address) -> None:
        listening.add(worker.id)
        if len(listening) == options.workers:
            print("ready", flush=True)

    @cluster.on("exit")
    def notice(worker: Worker, code: int | None, killed_by: signal.Signals | None) -> None:
        nonlocal lost
        if not worker.exited_after_disconnect:
            lost = True
            print(f"worker {worker.id} ended by itself: {code} {killed_by}", file=sys.stderr)

    for _ in range(options.workers):
        cluster.fork()
    cluster.run()
    return 1 if lost else 0


def parse() -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="The echo server of bench/balance.py.")
    parser.add_argument("start", choices=("plain", "cluster"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", choices=("asyncio", "blocking"), default="asyncio")
    parser.add_argument("--api", choices=("streams", "protocol"), default="streams", help="of asyncio")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--limit", type=int, default=600, help="seconds until it ends, whatever happens")
    return Options(**vars(parser.parse_args()))


def main() -> int:
    """Start what the command line says."""
    options = parse()
    # Not even a SIGKILL of balance.py leaves this running for long. A cluster's worker runs this line too.
    signal.alarm(options.limit)
    return plain(options) if options.start == "plain" else cluster(options)


if __name__ == "__main__":
    sys.exit(main())
