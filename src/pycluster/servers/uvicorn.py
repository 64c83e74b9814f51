"""uvicorn in a worker: its server ends by itself when the worker disconnects, with its lifespan's shutdown.

The SystemExit that ends other scripts would cancel the lifespan, which then says so with a traceback. uvicorn's signal
handlers, that would end the server before its worker has accepted all that is its own, leave Ctrl-C to the primary.
"""

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from ..child import Child
from . import idle

# What a client has to answer the end of a TLS connection, for which uvloop would wait 30 s.
GOODBYE_S = 0.2


def adapt(module: ModuleType, child: Child) -> None:
    """Replace methods of `uvicorn.Server`."""
    server_class: Any = module.Server
    if not hasattr(server_class, "capture_signals"):
        return  # before 0.29 a server installed its handlers in another way
    plain_on_tick = server_class.on_tick
    plain_handle_exit = server_class.handle_exit
    plain_shutdown = server_class.shutdown
    plain_capture_signals = server_class.capture_signals
    quiet = child.quiet

    async def on_tick(self: Any, counter: int) -> bool:
        # One tick (0.1 s) later, so that what was accepted last can say its request: uvicorn closes what has not.
        ends = getattr(self, "_pycluster_ends", False)
        self._pycluster_ends = quiet.is_set()
        return ends or bool(await plain_on_tick(self, counter))

    def handle_exit(self: Any, number: int, frame: Any) -> None:
        if number != signal.SIGINT:
            plain_handle_exit(self, number, frame)

    @contextlib.contextmanager
    def capture_signals(self: Any) -> Iterator[None]:
        with child.ended_by(lambda: None), plain_capture_signals(self):
            yield

    async def shutdown(self: Any, sockets: Any = None) -> None:
        if quiet.is_set() and self.config.is_ssl:
            asyncio.get_running_loop().call_later(GOODBYE_S, _hang_up, self.server_state.connections)
        await plain_shutdown(self, sockets)

    server_class.shutdown = shutdown
    server_class.on_tick = on_tick
    server_class.handle_exit = handle_exit
    server_class.capture_signals = capture_signals


def _hang_up(connections: set[Any]) -> None:
    """Hear no more of clients on connections that are being closed."""
    for connection in connections:
        if connection.transport is not None and connection.transport.is_closing():
            idle.stop_reading(connection.transport.get_extra_info("socket"))
    if connections:
        asyncio.get_running_loop().call_later(GOODBYE_S, _hang_up, connections)
