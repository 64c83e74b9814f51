"""Servers on a Unix socket as people write them, by its path; see servers.py. Nothing here knows of pycluster."""

import asyncio
import contextlib
import os
import socket
import socketserver
import stat
from collections.abc import Callable

from programs.answering import answer
from programs.servers import _answer_stream


def _unix(server_class: type[socketserver.UnixStreamServer], path: str, text: str) -> None:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            self.wfile.write(text.encode())

    # It refuses a path that exists, as bind(2) does: no worker of a cluster may have to remove it.
    with server_class(path, Handler) as server:
        server.serve_forever()


def unix(path: str, text: str) -> None:
    _unix(socketserver.UnixStreamServer, path, text)


def threading_unix(path: str, text: str) -> None:
    _unix(socketserver.ThreadingUnixStreamServer, path, text)


def start_unix_server(path: str, text: str) -> None:
    """asyncio's own, which unlinks an existing file before it binds."""

    async def main() -> None:
        server = await asyncio.start_unix_server(lambda r, w: _answer_stream(r, w, text), path)
        await server.serve_forever()

    asyncio.run(main())


def removes_before_and_after(path: str, text: str) -> None:
    """As uvicorn, gunicorn and others do: the file is removed, made, and removed in the end."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            os.unlink(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        try:
            while True:
                answer(listener.accept()[0], text)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def bytes_path(path: str, text: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.encode())
        listener.listen()
        while True:
            connection, peer = listener.accept()
            assert peer == ""
            answer(connection, text)


def relative_path(path: str, text: str) -> None:
    os.chdir(os.path.dirname(path))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.basename(path))
        listener.listen()
        listener.settimeout(0.05)
        while True:
            with contextlib.suppress(TimeoutError):
                answer(listener.accept()[0], text)


UNIX_SERVERS: dict[str, Callable[[str, str], None]] = {
    function.__name__: function
    for function in (unix, threading_unix, start_unix_server, removes_before_and_after, bytes_path, relative_path)
}
