"""tornado.httpserver: its connections, when the worker ends."""

import contextlib
import weakref
from types import ModuleType
from typing import Any

from ..child import Child


def adapt(module: ModuleType, child: Child) -> None:
    """Replace a method of `HTTPServer`."""
    server_class: Any = module.HTTPServer
    plain_start_request = server_class.start_request
    # What each connection waits for, or is busy with: the first request that it has, or a later one.
    first: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
    current: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
    known: weakref.WeakSet[Any] = weakref.WeakSet()

    def start_request(self: Any, connection: Any, request: Any) -> Any:
        if self not in known:
            known.add(self)
            io_loop = connection.stream.io_loop
            child.when_quiet(lambda: _call_soon(io_loop, lambda: end(self)))
        first.setdefault(connection, request)
        current[connection] = request
        if self.conn_params.no_keep_alive and first[connection] is not request:
            connection.stream.io_loop.add_callback(close_if_idle, connection)
        return plain_start_request(self, connection, request)

    def end(server: Any) -> None:
        server.conn_params.no_keep_alive = True  # says so in each response from now on
        for connection in list(server._connections):
            request = current.get(connection)
            if request is None:
                continue  # it has just been accepted
            if request._request_start_line is not None:
                request._disconnect_on_finish = True
            elif first[connection] is not request:
                connection.stream.close()

    def close_if_idle(connection: Any) -> None:
        if current[connection]._request_start_line is None:
            connection.stream.close()

    server_class.start_request = start_request


def _call_soon(io_loop: Any, function: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed
        io_loop.add_callback(function)
