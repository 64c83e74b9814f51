"""Servers as people write them: nothing here knows of pycluster. Each serves a port until it is interrupted.

They answer any request that ends with an empty line, with a text, and close the connection; `keep_alive` serves as
many lines as come.
"""

import asyncio
import selectors
import socket
import socketserver
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from socket import socket as early_socket
from typing import Any

from programs.answering import answer

HOST = "127.0.0.1"


def _http(server_class: type[HTTPServer], port: int, text: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server_class((HOST, port), Handler).serve_forever()


def http(port: int, text: str) -> None:
    _http(HTTPServer, port, text)


def threading_http(port: int, text: str) -> None:
    _http(ThreadingHTTPServer, port, text)


def _tcp(server_class: type[socketserver.TCPServer], port: int, text: str) -> None:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            self.wfile.write(text.encode())

    class Server(server_class):  # type: ignore[misc,valid-type]
        allow_reuse_address = True

    Server((HOST, port), Handler).serve_forever()


def tcp(port: int, text: str) -> None:
    _tcp(socketserver.TCPServer, port, text)


def threading_tcp(port: int, text: str) -> None:
    _tcp(socketserver.ThreadingTCPServer, port, text)


def forking_tcp(port: int, text: str) -> None:
    _tcp(socketserver.ForkingTCPServer, port, text)


async def _answer_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: str) -> None:
    while (await reader.readline()).strip():
        pass
    writer.write(text.encode())
    writer.close()


async def _streams(port: int, text: str) -> None:
    server = await asyncio.start_server(lambda r, w: _answer_stream(r, w, text), HOST, port)
    await server.serve_forever()


def start_server(port: int, text: str) -> None:
    asyncio.run(_streams(port, text))


def start_server_in_debug_mode(port: int, text: str) -> None:
    asyncio.run(_streams(port, text), debug=True)


def uvloop_start_server(port: int, text: str) -> None:
    import uvloop

    uvloop.run(_streams(port, text))


class _Answer(asyncio.Protocol):
    def __init__(self, text: str) -> None:
        self.text = text
        self.heard = b""

    def connection_made(self, transport: Any) -> None:  # uvloop's are no asyncio.Transport
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.heard += data
        if self.heard.endswith(b"\r\n\r\n"):
            self.transport.write(self.text.encode())
            self.transport.close()


async def _protocols(port: int, text: str) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Answer(text), HOST, port)
    await server.serve_forever()


def create_server(port: int, text: str) -> None:
    asyncio.run(_protocols(port, text))


async def _protocols_on_a_socket(port: int, text: str) -> None:
    sock = socket.create_server((HOST, port))
    server = await asyncio.get_running_loop().create_server(lambda: _Answer(text), sock=sock)
    await server.serve_forever()


def create_server_with_a_socket(port: int, text: str) -> None:
    asyncio.run(_protocols_on_a_socket(port, text))


def uvloop_create_server(port: int, text: str) -> None:
    import uvloop

    uvloop.run(_protocols(port, text), debug=True)


def uvloop_create_server_with_a_socket(port: int, text: str) -> None:
    import uvloop

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(_protocols_on_a_socket(port, text))


def sock_accept(port: int, text: str) -> None:
    async def main() -> None:
        sock = socket.create_server((HOST, port))
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(sock)
            reader, writer = await asyncio.open_connection(sock=connection)
            await _answer_stream(reader, writer, text)

    asyncio.run(main())


class _Lines(asyncio.Protocol):
    """Answers each line, and keeps the connection."""

    def __init__(self, text: str) -> None:
        self.text = text

    def connection_made(self, transport: Any) -> None:  # uvloop's are no asyncio.Transport
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        for _ in range(data.count(b"\n")):
            self.transport.write(self.text.encode() + b"\n")


async def _connections(port: int, text: str) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Lines(text), HOST, port)
    await server.serve_forever()


def keep_alive(port: int, text: str) -> None:
    asyncio.run(_connections(port, text))


def uvloop_keep_alive(port: int, text: str) -> None:
    import uvloop

    uvloop.run(_connections(port, text))


def accept_loop(port: int, text: str) -> None:
    listener = socket.create_server((HOST, port))
    while True:
        connection, _ = listener.accept()
        answer(connection, text)


def accept_loop_with_a_timeout(port: int, text: str) -> None:
    listener = socket.create_server((HOST, port))
    listener.settimeout(0.02)
    while True:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        assert connection.gettimeout() is None  # as Python gives it, whatever the listener has
        answer(connection, text)


def default_timeout(port: int, text: str) -> None:
    socket.setdefaulttimeout(30)
    listener = socket.create_server((HOST, port))
    while True:
        connection, _ = listener.accept()
        assert connection.gettimeout() == 30
        answer(connection, text)


def selector_loop(port: int, text: str) -> None:
    listener = socket.create_server((HOST, port))
    listener.setblocking(False)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    while True:
        selector.select()
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            continue
        connection.setblocking(True)
        answer(connection, text)


class OwnSocket(socket.socket):
    """A subclass with an `accept` of its own that calls the base class's, as trio's and others do."""

    def accept(self) -> tuple[socket.socket, object]:
        connection, address = super().accept()
        return connection, address


def subclass(port: int, text: str) -> None:
    listener = OwnSocket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((HOST, port))
    listener.listen()
    while True:
        connection, _ = listener.accept()
        answer(connection, text)


def imported_by_name(port: int, text: str) -> None:
    listener = early_socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((HOST, port))
    listener.listen(5)
    while True:
        connection, _ = listener.accept()
        answer(connection, text)


def detached(port: int, text: str) -> None:
    """A listener that is handed on by its number, as servers that are started by others take it."""
    number = socket.create_server((HOST, port)).detach()
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=number)
    while True:
        connection, _ = listener.accept()
        answer(connection, text)


def in_a_thread(port: int, text: str) -> None:
    """The listener is served by threads, several at once, and the main thread waits for them."""
    import threading

    listener = socket.create_server((HOST, port))

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            answer(connection, text)

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


SERVERS: dict[str, Callable[[int, str], None]] = {
    function.__name__: function
    for function in (
        http,
        threading_http,
        tcp,
        threading_tcp,
        forking_tcp,
        start_server,
        start_server_in_debug_mode,
        create_server,
        create_server_with_a_socket,
        sock_accept,
        accept_loop,
        accept_loop_with_a_timeout,
        default_timeout,
        selector_loop,
        subclass,
        imported_by_name,
        detached,
        in_a_thread,
    )
}
UVLOOP_SERVERS: dict[str, Callable[[int, str], None]] = {
    function.__name__: function
    for function in (uvloop_start_server, uvloop_create_server, uvloop_create_server_with_a_socket)
}
