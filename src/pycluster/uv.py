"""uvloop: servers that share a port in a worker.

libuv accepts by itself, from sockets that are TCP or Unix listeners in the kernel's eyes; a handoff channel is none.
So in a worker the loop's server functions open their sockets as asyncio does, through socket.socket's methods, and
accept with a reader on them. Only for ports that are shared: private ones stay libuv's. A datagram socket, too, is
bound through socket.socket; libuv receives from it by itself.
"""

import asyncio
import contextlib
import errno
import functools
import socket
from asyncio import base_events, constants, unix_events
from collections.abc import Coroutine
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import heartbeat, listener, native

if TYPE_CHECKING:
    from .child import Child

_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_NO_TRANSPORT = "Error on transport creation for incoming connection"


def share_ports(uvloop: ModuleType, child: "Child") -> None:
    """Replace what opens servers in uvloop's loops in this worker. Idempotent."""
    loop_class: Any = uvloop.Loop
    if getattr(loop_class.create_server, "__module__", None) == __name__:
        return
    plain_create_server = loop_class.create_server
    plain_create_unix_server = loop_class.create_unix_server
    plain_create_datagram_endpoint = loop_class.create_datagram_endpoint

    @functools.wraps(plain_create_server, assigned=("__doc__", "__name__", "__qualname__"))
    async def create_server(
        self: Any, protocol_factory: Any, host: Any = None, port: Any = None, *, sock: Any = None, **options: Any
    ) -> Any:
        if not (listener.is_shared(sock) if sock is not None else _is_sharable(port, options)):
            return await plain_create_server(self, protocol_factory, host, port, sock=sock, **options)
        face: Any = _Face(self)
        create = base_events.BaseEventLoop.create_server
        return _own(await create(face, protocol_factory, host, port, sock=sock, **options), self)

    @functools.wraps(plain_create_unix_server, assigned=("__doc__", "__name__", "__qualname__"))
    async def create_unix_server(
        self: Any, protocol_factory: Any, path: Any = None, *, sock: Any = None, **options: Any
    ) -> Any:
        if not (listener.is_shared(sock) if sock is not None else _is_sharable(path, options)):
            return await plain_create_unix_server(self, protocol_factory, path, sock=sock, **options)
        face: Any = _Face(self)
        create = unix_events._UnixSelectorEventLoop.create_unix_server
        return _own(await create(face, protocol_factory, path, sock=sock, **options), self)

    @functools.wraps(plain_create_datagram_endpoint, assigned=("__doc__", "__name__", "__qualname__"))
    async def create_datagram_endpoint(
        self: Any, protocol_factory: Any, local_addr: Any = None, remote_addr: Any = None, **options: Any
    ) -> Any:
        if remote_addr is None and isinstance(local_addr, tuple) and _is_sharable(local_addr[1], options):
            options = {"sock": await _bound_datagram_socket(self, local_addr, **options)}
            local_addr = None
        return await plain_create_datagram_endpoint(self, protocol_factory, local_addr, remote_addr, **options)

    loop_class.create_server = create_server
    loop_class.create_unix_server = create_unix_server
    loop_class.create_datagram_endpoint = create_datagram_endpoint


def _is_sharable(port_or_path: Any, options: dict[str, Any]) -> bool:
    return bool(port_or_path) and not options.get("reuse_port") and not listener.is_exclusive()


async def _bound_datagram_socket(
    loop: Any,
    address: tuple[Any, ...],
    *,
    family: int = 0,
    proto: int = 0,
    flags: int = 0,
    allow_broadcast: bool | None = None,
    **_: Any,
) -> socket.socket:
    """As the loop's own would be, bound to the first address that the host has.

    Raises:
      OSError: of getaddrinfo(3), or of bind(2).
    """
    found = await loop.getaddrinfo(*address[:2], family=family, type=socket.SOCK_DGRAM, proto=proto, flags=flags)
    sock = socket.socket(found[0][0], socket.SOCK_DGRAM, found[0][2])
    try:
        if allow_broadcast:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.setblocking(False)
        sock.bind(found[0][4])
    except BaseException:
        sock.close()
        raise
    return sock


def _own(server: Any, loop: Any) -> Any:
    server.get_loop = lambda: loop
    return server


class _Face:
    """A uvloop loop as asyncio's own `create_server` and `Server` see theirs."""

    _ensure_resolved = base_events.BaseEventLoop._ensure_resolved  # type: ignore[attr-defined]
    _create_server_getaddrinfo = base_events.BaseEventLoop._create_server_getaddrinfo  # type: ignore[attr-defined]

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._unix_server_sockets: dict[Any, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    @property
    def _debug(self) -> bool:
        return bool(self._loop.get_debug())

    def _start_serving(
        self,
        protocol_factory: Any,
        sock: socket.socket,
        sslcontext: Any = None,
        server: Any = None,
        backlog: int = 100,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        *_: Any,
    ) -> None:
        family, kind = sock.family, sock.type
        tls = {
            "ssl": sslcontext,
            "ssl_handshake_timeout": ssl_handshake_timeout,
            "ssl_shutdown_timeout": ssl_shutdown_timeout,
        }

        def accept() -> None:
            try:
                for fd, _ in listener.accept_ready(sock):
                    if sslcontext is None:
                        self._take(protocol_factory, _Accepted(family, kind, fd))
                    else:
                        self._secure(protocol_factory, socket.socket(family, kind, sock.proto, fileno=fd), tls)
            except OSError as exception:
                if exception.errno not in _SHORTAGES:
                    raise
                # As asyncio does: the listener stays readable, so rest a little.
                self._report(exception, "socket.accept() out of system resource")
                self._loop.remove_reader(sock)
                self._loop.call_later(constants.ACCEPT_RETRY_DELAY, read)

        def read() -> None:
            if sock.fileno() >= 0:  # else it was closed while it rested
                self._loop.add_reader(sock, accept)

        read()
        heartbeat.beat(self._loop)

    def _stop_serving(self, sock: socket.socket) -> None:
        self._loop.remove_reader(sock)
        sock.close()

    def _take(self, protocol_factory: Any, connection: "_Accepted") -> None:
        # What it first waits for is connection_made, and then all is done: a task would cost more than the rest.
        connecting = self._loop.connect_accepted_socket(protocol_factory, connection)
        try:
            made: asyncio.Future[object] = connecting.send(None)
        except Exception as exception:
            native.close(connection.fileno())
            self._report(exception, _NO_TRANSPORT)
        else:
            made.add_done_callback(functools.partial(_finish, connecting))

    def _secure(self, protocol_factory: Any, connection: socket.socket, tls: dict[str, Any]) -> None:
        task = self._loop.create_task(self._shake_hands(protocol_factory, connection, tls))
        _securing.add(task)
        task.add_done_callback(_securing.discard)

    async def _shake_hands(self, protocol_factory: Any, connection: socket.socket, tls: dict[str, Any]) -> None:
        try:
            await self._loop.connect_accepted_socket(protocol_factory, connection, **tls)
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            connection.close()  # the peer went away, or TLS with it came to nothing
        except Exception as exception:
            connection.close()
            if self._debug:
                self._report(exception, _NO_TRANSPORT)

    def _report(self, exception: Exception, message: str) -> None:
        self._loop.call_exception_handler({"message": message, "exception": exception})


class _Accepted:
    """A connection, as `connect_accepted_socket` asks for one; libuv then owns the descriptor, and closes it.

    A socket object, which nobody would see, costs eight times as much, and a system call.
    """

    __slots__ = ("_fd", "family", "type")

    def __init__(self, family: int, kind: int, fd: int) -> None:
        self.family = family
        self.type = kind
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        """Called when libuv has closed it."""


def _finish(connecting: Coroutine[Any, Any, object], made: "asyncio.Future[object]") -> None:
    """Let a coroutine go on that has waited without a task. What connection_made raises, the loop has reported."""
    with contextlib.suppress(Exception):
        connecting.send(None)


# A loop keeps only weak references to its tasks.
_securing: "set[asyncio.Task[None]]" = set()
