"""aiohttp.web: its connections, when the worker ends."""

import asyncio
import contextlib
import weakref
from types import ModuleType
from typing import Any

from ..child import Child

# Between two looks at the connections, of which one that has just been accepted may have been served meanwhile.
LOOK_S = 0.1


def adapt(module: ModuleType, child: Child) -> None:
    """Replace a method of `Server`."""
    server_class: Any = module.Server
    plain_connection_made = server_class.connection_made
    known: weakref.WeakSet[Any] = weakref.WeakSet()

    def connection_made(self: Any, handler: Any, transport: Any) -> None:
        plain_connection_made(self, handler, transport)
        if self not in known:
            known.add(self)
            loop = asyncio.get_running_loop()
            child.when_quiet(lambda: _call_soon(loop, lambda: _close_idle(self, loop)))

    server_class.connection_made = connection_made


def _call_soon(loop: asyncio.AbstractEventLoop, function: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(function)


def _close_idle(server: Any, loop: asyncio.AbstractEventLoop) -> None:
    for connection in server.connections:
        if connection._request_in_progress:
            connection.close()  # after the response
        elif connection._keepalive_handle is not None and not connection._messages:
            connection.force_close()
    loop.call_later(LOOK_S, _close_idle, server, loop)
