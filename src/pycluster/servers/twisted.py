"""twisted: its reactor, which logs what is raised in its loop and goes on, is stopped; and its web server."""

import weakref
from types import ModuleType
from typing import Any

from ..child import Child

# A TLS connection that is closed waits for the peer to say so too, for ever. When the worker ends, so long.
GOODBYE_S = 0.2


def stop_reactor(module: ModuleType, child: Child) -> None:
    """Replace a method of `ReactorBase`."""
    reactor_class: Any = module.ReactorBase
    plain_main_loop = reactor_class.mainLoop

    def main_loop(self: Any) -> None:
        with child.ended_by(lambda: self.callFromThread(self.stop)):
            plain_main_loop(self)

    reactor_class.mainLoop = main_loop


def close_idle(module: ModuleType, child: Child) -> None:
    """Replace methods of `HTTPChannel`."""
    channel_class: Any = module.HTTPChannel
    plain_check_persistence = channel_class.checkPersistence
    plain_request_done = channel_class.requestDone
    served: weakref.WeakSet[Any] = weakref.WeakSet()

    def check_persistence(self: Any, request: Any, version: Any) -> Any:
        if child.quiet.is_set():
            request.responseHeaders.setRawHeaders(b"Connection", [b"close"])
            return False
        return plain_check_persistence(self, request, version)

    def request_done(self: Any, request: Any) -> None:
        plain_request_done(self, request)
        served.add(self)
        if child.quiet.is_set() and not self.requests:
            _close(self)

    def end() -> None:
        for channel in list(served):
            if not channel.requests and channel.transport is not None:
                _close(channel)

    def tell() -> None:
        from twisted.internet import reactor

        reactor.callFromThread(end)

    channel_class.checkPersistence = check_persistence
    channel_class.requestDone = request_done
    child.when_quiet(tell)


def _close(channel: Any) -> None:
    from twisted.internet import reactor

    channel.loseConnection()
    if channel.isSecure():
        reactor.callLater(GOODBYE_S, _abort, channel.transport)


def _abort(transport: Any) -> None:
    """Wait no more for the peer, unless it has not been told everything yet."""
    from twisted.internet import reactor

    connection = getattr(transport, "transport", None)
    if connection is None or connection.disconnected:
        return
    if connection.dataBuffer or connection._tempDataBuffer:
        reactor.callLater(GOODBYE_S, _abort, transport)
    else:
        transport.abortConnection()
