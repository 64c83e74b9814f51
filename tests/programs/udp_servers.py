"""Servers of datagrams as people write them; see servers.py. Nothing here knows of pycluster.

Each answers a datagram with a text.
"""

import asyncio
import contextlib
import select
import socket
import socketserver
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, cast

HOST = "127.0.0.1"


def _udp(server_class: type[socketserver.UDPServer], port: int, text: str) -> None:
    class Handler(socketserver.DatagramRequestHandler):
        def handle(self) -> None:
            self.wfile.write(text.encode())

    server_class((HOST, port), Handler).serve_forever()


def udp(port: int, text: str) -> None:
    _udp(socketserver.UDPServer, port, text)


def threading_udp(port: int, text: str) -> None:
    _udp(socketserver.ThreadingUDPServer, port, text)


def forking_udp(port: int, text: str) -> None:
    _udp(socketserver.ForkingUDPServer, port, text)


class _Answer(asyncio.DatagramProtocol):
    def __init__(self, text: str) -> None:
        self.text = text

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(self.text.encode(), addr)


def datagram_endpoint(port: int, text: str) -> None:
    asyncio.run(_endpoint(port, text))


async def _endpoint(port: int, text: str) -> None:
    await asyncio.get_running_loop().create_datagram_endpoint(lambda: _Answer(text), (HOST, port))
    await asyncio.Event().wait()


def uvloop_endpoint(port: int, text: str) -> None:
    import uvloop

    uvloop.run(_endpoint(port, text))


def _bound(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((HOST, port))
    return sock


def udp_loop(port: int, text: str) -> None:
    sock = _bound(port)
    while True:
        _, peer = sock.recvfrom(100)
        sock.sendto(text.encode(), peer)


def udp_loop_with_a_timeout(port: int, text: str) -> None:
    sock = _bound(port)
    sock.settimeout(0.05)
    while True:
        with contextlib.suppress(TimeoutError):
            _, peer = sock.recvfrom(100)
            sock.sendto(text.encode(), peer)


def udp_select(port: int, text: str) -> None:
    """It waits in select, and trusts it: recvmsg_into would block if another worker were faster."""
    sock = _bound(port)
    sock.setblocking(False)
    while True:
        select.select([sock], [], [])
        with contextlib.suppress(BlockingIOError):
            _, _, _, peer = sock.recvmsg_into([bytearray(100)])
            sock.sendto(text.encode(), peer)


def udp_duplicate(port: int, text: str) -> None:
    sock = _bound(port)
    copy = sock.dup()
    sock.close()
    while True:
        _, peer = copy.recvfrom(100)
        copy.sendto(text.encode(), peer)


UDP_SERVERS: dict[str, Callable[[int, str], None]] = {
    function.__name__: function
    for function in (
        udp,
        threading_udp,
        forking_udp,
        datagram_endpoint,
        *([uvloop_endpoint] if find_spec("uvloop") else []),
        udp_loop,
        udp_loop_with_a_timeout,
        udp_select,
        udp_duplicate,
    )
}
