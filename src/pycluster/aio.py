"""asyncio: waiting for the cluster in a running loop, and what its servers do differently with a shared listener."""

import asyncio
import os
import socket
from asyncio import selector_events, sslproto
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import descriptors, heartbeat, listener
from .events import handler_tasks

if TYPE_CHECKING:
    from .child import Child

# What the peer has to answer a TLS connection's end when the worker ends.
GOODBYE_S = 0.2

_plain_start_serving: Any = selector_events.BaseSelectorEventLoop._start_serving  # type: ignore[attr-defined]
_plain_accept_connection: Any = selector_events.BaseSelectorEventLoop._accept_connection  # type: ignore[attr-defined]


async def wait_in_loop(fd: int, dispatch: Callable[[], object], finished: Callable[[], bool]) -> None:
    """Dispatch whenever `fd` is readable, until `finished()` and no `async def` handler runs. asyncio and uvloop."""
    loop = asyncio.get_running_loop()
    end = loop.create_future()
    late: list[BaseException] = []

    def on_readable() -> None:
        try:
            dispatch()
        except BaseException as exception:
            if end.done():
                late.append(exception)
            else:
                end.set_exception(exception)
            return
        if finished() and not end.done():
            end.set_result(None)

    loop.add_reader(fd, on_readable)
    try:
        on_readable()
        await end
        while running := [task for task in handler_tasks if task.get_loop() is loop]:
            await asyncio.wait(running)
            if late:
                raise late[0]
            end = loop.create_future()
            on_readable()  # a handler may have forked
            await end
    finally:
        loop.remove_reader(fd)


def share_ports(module: ModuleType, child: "Child") -> None:
    """Replace what asyncio's selector loops do with listening sockets in this worker."""
    selector_events.BaseSelectorEventLoop._start_serving = _start_serving  # type: ignore[attr-defined]
    selector_events.BaseSelectorEventLoop._accept_connection = _accept_connection  # type: ignore[attr-defined]
    _shorten_goodbyes(child)


def _shorten_goodbyes(child: "Child") -> None:
    """Wait for the peer's end of TLS only so long once this worker ends, and not 30 s, for a client that is idle."""
    protocol_class: Any = sslproto.SSLProtocol
    plain_do_shutdown = protocol_class._do_shutdown

    def do_shutdown(self: Any) -> None:
        plain_do_shutdown(self)
        if child.quiet.is_set() and self._state is sslproto.SSLProtocolState.SHUTDOWN:
            self._loop.call_later(GOODBYE_S, give_up, self)

    def give_up(protocol: Any) -> None:
        if protocol._state is sslproto.SSLProtocolState.SHUTDOWN and protocol._transport is not None:
            protocol._on_shutdown_complete(None)

    protocol_class._do_shutdown = do_shutdown


def _start_serving(loop: Any, protocol_factory: Callable[[], Any], sock: socket.socket, *rest: Any) -> None:
    """Let the loop show its progress, and forget the file of a Unix socket: the primary removes it in the end.

    From Python 3.13 on, asyncio unlinks it when the server closes, while other workers may still listen there.
    """
    if descriptors.find(sock) is not None:
        getattr(loop, "_unix_server_sockets", {}).pop(sock, None)
        heartbeat.beat(loop)
    _plain_start_serving(loop, protocol_factory, sock, *rest)


def share_paths(module: ModuleType, child: "Child") -> None:
    """Replace what opens servers on paths: they join those who listen there.

    asyncio's own removes the file that is there, and the primary then has to put it back. Meanwhile there would be
    none: for clients, and for who changes its mode, as uvicorn does.
    """
    loop_class: Any = module._UnixSelectorEventLoop
    plain_create_unix_server = loop_class.create_unix_server

    async def create_unix_server(
        self: Any, protocol_factory: Callable[[], Any], path: Any = None, *, sock: Any = None, **options: Any
    ) -> Any:
        opened = None
        if sock is None and path and not listener.is_exclusive():
            try:
                sock = opened = listener.open_unix(os.fsencode(path))
                path = None
            except OSError:
                pass  # asyncio's own meets the same error, or knows better
        try:
            return await plain_create_unix_server(self, protocol_factory, path, sock=sock, **options)
        except BaseException:
            if opened is not None:
                opened.close()
            raise

    loop_class.create_unix_server = create_unix_server


def _accept_connection(
    loop: Any,
    protocol_factory: Callable[[], Any],
    sock: socket.socket,
    sslcontext: Any = None,
    server: Any = None,
    *rest: Any,
) -> None:
    """Take all that one recvmmsg brings out of a channel.

    asyncio's own step accepts until BlockingIOError, which costs a failing system call and an exception per wake-up,
    and a task per connection, which only TLS needs. TLS, debug mode, and sockets that are no channel go there.
    """
    receiver = descriptors.receiver_of(sock)
    if receiver is None or sslcontext is not None or loop.get_debug():
        _plain_accept_connection(loop, protocol_factory, sock, sslcontext, server, *rest)
        return
    try:
        accepted = receiver.accept_many()
    except OSError:
        # Out of descriptors: asyncio's own step meets the same error, and knows how to back off.
        _plain_accept_connection(loop, protocol_factory, sock, sslcontext, server, *rest)
        return
    of_its_kind = sock.family, sock.type, sock.proto  # each makes an enum: once per batch
    for fd, address in accepted:
        connection = socket.socket(*of_its_kind, fileno=fd)
        connection.setblocking(False)
        try:
            loop._make_socket_transport(connection, protocol_factory(), extra={"peername": address}, server=server)
        except Exception as exception:
            connection.close()
            loop.call_exception_handler(
                {"message": "Error on transport creation for incoming connection", "exception": exception}
            )
