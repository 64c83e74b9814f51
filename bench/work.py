"""The servers that are compared, as one worker sees them: it is given a listener, or binds one, and serves.

Two protocols, as small as can be, so that accepting weighs as much as it ever does::

    echo   answers with the bytes it read and, in the same write, a line that names the worker
    http   answers a GET with such a line, and closes

and three ways to wait: an asyncio loop (its streams, or a Protocol), the same on uvloop, and a blocking accept loop.
A request that asks to be slow (``~`` in the echo, ``GET /slow``) holds its worker for 50 ms, in ``time.sleep``: in the
loops as well, as a handler does there that computes or calls what blocks.

server.py starts workers; load/load.c talks to them, and counts by the line who answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

HOST = "127.0.0.1"
BACKLOG = 511  # as in Node.js; with asyncio's own 100 the SYNs of more clients would be dropped for a second
READ_SIZE = 1024  # the largest request of load.c comes in one piece
SLOW_S = 0.05
BLANK = b"\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"

Protocol = Literal["echo", "http"]
Engine = Literal["asyncio", "uvloop", "blocking"]
Api = Literal["streams", "protocol"]  # of the loops


@dataclass(frozen=True, slots=True)
class Post:
    """What one worker is given."""

    line: bytes  # the worker's name
    protocol: Protocol
    engine: Engine
    api: Api
    port: int
    listener: socket.socket | None  # where to accept; None: bind and listen as any program would
    ready: Callable[[], object]  # called once it listens

    def answer(self, request: bytes) -> bytes:
        """What to say; slowly, when that is asked for."""
        if self.protocol == "echo":
            if request.startswith(b"~"):
                time.sleep(SLOW_S)
            return request + self.line
        if request.startswith(b"GET /slow "):
            time.sleep(SLOW_S)
        return HEAD % (len(self.line), self.line)


def serve(post: Post) -> None:
    """Be a worker until killed or told to disconnect."""
    if post.engine == "blocking":
        blocking(post)
        return
    loop_factory = None
    if post.engine == "uvloop":
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(streams(post) if post.api == "streams" else protocol(post))


def blocking(post: Post) -> None:
    """One connection after the other."""
    listener = post.listener or socket.create_server((HOST, post.port), backlog=BACKLOG)
    post.ready()
    while True:
        connection, _ = listener.accept()
        # Only when the client is ended in the middle.
        with connection, contextlib.suppress(ConnectionError):
            while request := connection.recv(READ_SIZE):
                connection.sendall(post.answer(request))
                if post.protocol == "http":
                    break


async def streams(post: Post) -> None:
    """``asyncio.start_server``."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while request := await reader.read(READ_SIZE):
                writer.write(post.answer(request))
                await writer.drain()
        writer.close()

    async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            writer.write(post.answer(await reader.readuntil(BLANK)))
            await writer.drain()
        writer.close()

    handler = echo if post.protocol == "echo" else http
    if post.listener is None:
        server = await asyncio.start_server(handler, HOST, post.port, backlog=BACKLOG)
    else:
        server = await asyncio.start_server(handler, sock=post.listener, backlog=BACKLOG)
    post.ready()
    await server.serve_forever()


async def protocol(post: Post) -> None:
    """``loop.create_server`` with a Protocol: less code per connection, so accepting weighs more."""

    class Answering(asyncio.Protocol):
        transport: asyncio.WriteTransport

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            # Not isinstance(): uvloop's transports are no subclasses of asyncio's.
            self.transport = cast(asyncio.WriteTransport, transport)

        def data_received(self, data: bytes) -> None:
            self.transport.write(post.answer(data))
            if post.protocol == "http":
                self.transport.close()

    loop = asyncio.get_running_loop()
    if post.listener is None:
        server = await loop.create_server(Answering, HOST, post.port, backlog=BACKLOG)
    else:
        server = await loop.create_server(Answering, sock=post.listener, backlog=BACKLOG)
    post.ready()
    await server.serve_forever()
