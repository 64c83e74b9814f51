"""Servers on uvloop in one worker: `uvloop_cases.py NAME` runs one, which tells where it serves.

tls needs a certificate and its key as further arguments.
"""

import asyncio
import contextlib
import os
import resource
import ssl
import sys
from typing import Any

import uvloop

from programs.facts import tell, tell_events
from pycluster import cluster

HOST = "127.0.0.1"


class Answer(asyncio.Protocol):
    """Answers a line with the peer's name, as the transport gives it."""

    def connection_made(self, transport: Any) -> None:  # uvloop's are no asyncio.Transport
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(f"{self.transport.get_extra_info('peername')[1]}\n".encode())
        self.transport.close()


def port_of(server: asyncio.Server) -> int:
    port = server.sockets[0].getsockname()[1]
    assert isinstance(port, int)
    return port


async def private() -> None:
    """Port 0, SO_REUSEPORT and exclusive() are libuv's own."""
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(Answer, HOST, 0), await loop.create_server(Answer, HOST, 0, reuse_port=True)]
    with cluster.exclusive():
        servers.append(await loop.create_server(Answer, HOST, int(sys.argv[2])))
    kinds = [type(server).__module__ for server in servers]
    tell("serving", ports=[port_of(server) for server in servers], kinds=kinds)
    await asyncio.Event().wait()


async def tls() -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(sys.argv[2], sys.argv[3])
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        Answer, sock=cluster.listen((HOST, 0)), ssl=context, ssl_handshake_timeout=30, backlog=7
    )
    tell("serving", port=port_of(server))
    await server.serve_forever()


async def later() -> None:
    """Not serving until told to, closed, and served again."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Answer, sock=cluster.listen((HOST, 0)), start_serving=False)
    port = port_of(server)
    tell("not serving", serves=server.is_serving(), same=server.get_loop() is loop)
    await server.start_serving()
    tell("serving", port=port, serves=server.is_serving())
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(b"x\n")
    assert await reader.readline()
    server.close()
    await server.wait_closed()
    while True:  # until the primary, too, has closed it
        try:
            (await asyncio.open_connection(HOST, port))[1].close()
        except ConnectionResetError:
            pass  # it was closed with this connection in its backlog
        except ConnectionRefusedError:
            break
    async with await loop.create_server(Answer, HOST, port) as again:
        tell("again", port=port_of(again))
        await asyncio.Event().wait()


class Closing(asyncio.DatagramProtocol):
    """Tells when it is closed."""

    def __init__(self) -> None:
        self.closed = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set_result(None)


async def datagrams() -> None:
    """An endpoint that is closed and opened again, with the same number and with another one."""
    loop = asyncio.get_running_loop()
    for takes_number in (False, True, False):
        transport, protocol = await loop.create_datagram_endpoint(Closing, (HOST, int(sys.argv[2])))
        transport.close()
        await protocol.closed
        if takes_number:
            os.dup(0)
    tell("closed")
    await asyncio.Event().wait()


async def no_descriptors() -> None:
    """Accept finds no descriptor; the loop is told, rests, and goes on when there is one."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    loop.set_exception_handler(lambda loop, context: told.set())
    server = await loop.create_server(Answer, sock=cluster.listen((HOST, 0)))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
    spare = []
    with contextlib.suppress(OSError):
        while True:
            spare.append(os.dup(0))
    tell("serving", port=port_of(server))
    await told.wait()
    for fd in spare:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    await server.serve_forever()


class Abort(asyncio.Protocol):
    """Wants nothing of its client."""

    def connection_made(self, transport: Any) -> None:
        transport.abort()


class Fail(asyncio.Protocol):
    """Stumbles over its client."""

    def connection_made(self, transport: Any) -> None:
        transport.abort()
        raise ValueError("no connection")


async def failing() -> None:
    """Protocols that cannot be made or used cost their connection and no other one; the loop is told as by libuv's."""
    loop = asyncio.get_running_loop()
    failures = []
    loop.set_exception_handler(lambda loop, context: failures.append(repr(context["exception"])))
    made = iter([None, Abort, Fail])

    def make() -> asyncio.Protocol:
        kind = next(made, Answer)
        if kind is None:
            raise LookupError("no protocol")
        if kind is Answer:
            tell("made", failures=failures)
        return kind()

    server = await loop.create_server(make, sock=cluster.listen((HOST, 0)))
    tell("serving", port=port_of(server))
    await server.serve_forever()


if cluster.is_primary:
    tell_events()
    cluster.fork()
    cluster.run()
else:
    uvloop.run(globals()[sys.argv[1]]())
