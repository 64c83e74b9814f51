"""cheroot: its connections, when the worker ends."""

from types import ModuleType
from typing import Any

from ..child import Child

# What has been idle for so long is closed then; the server looks twice a second.
IDLE_S = 0.2


def adapt(module: ModuleType, child: Child) -> None:
    """Replace a method of `HTTPServer`."""
    server_class: Any = module.HTTPServer
    plain_prepare = server_class.prepare

    def prepare(self: Any) -> None:
        # An exception in the midst of it would leave threads that nobody stops: `stop` leaves a server that is not
        # ready alone.
        with child.ended_by(lambda: None):
            plain_prepare(self)
        child.when_quiet(lambda: end(self))

    def end(server: Any) -> None:
        server.keep_alive_conn_limit = 0  # each response says that it is the last one
        server.timeout = IDLE_S

    server_class.prepare = prepare
