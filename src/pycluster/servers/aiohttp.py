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
    """Replace methods of `Server` and `RequestHandler`."""
    server_class: Any = module.Server
    connection_class: Any = module.RequestHandler
    plain_connection_made = server_class.connection_made
    plain_connection_lost = server_class.connection_lost
    plain_finish_response = connection_class.finish_response
    known: weakref.WeakSet[Any] = weakref.WeakSet()
    served: set[Any] = set()

    def connection_made(self: Any, connection: Any, transport: Any) -> None:
        plain_connection_made(self, connection, transport)
        if self not in known:
            known.add(self)
            loop = asyncio.get_running_loop()
            child.when_quiet(lambda: tell(self, loop))

    def connection_lost(self: Any, connection: Any, *rest: Any) -> None:
        served.discard(connection)
        plain_connection_lost(self, connection, *rest)

    async def finish_response(self: Any, *args: Any) -> Any:
        if self._manager is not None:  # it is not lost yet
            served.add(self)
        return await plain_finish_response(self, *args)

    def tell(server: Any, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(end, server, loop)

    def end(server: Any, loop: asyncio.AbstractEventLoop) -> None:
        for connection in server.connections:
            if connection._waiter is not None and not connection._waiter.done():
                if connection in served and not connection._messages:
                    connection.force_close()
            elif connection._current_request is not None:
                connection.close()  # after the response
        loop.call_later(LOOK_S, end, server, loop)

    server_class.connection_made = connection_made
    server_class.connection_lost = connection_lost
    connection_class.finish_response = finish_response
