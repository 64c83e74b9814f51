"""Connections that a thread or greenlet of their own waits on for their next request.

Closing their receiving half ends that wait, and no other: a request that has come before is read first, and answered.
"""

import _socket
import contextlib
from typing import Any

from ..child import Child

_waiting: dict[int, Any] = {}
_ends = False


def close_when_quiet(child: Child) -> None:
    """Close what waits when the worker ends, and what waits from then on."""

    def end() -> None:
        global _ends
        _ends = True
        for sock in list(_waiting.values()):
            _stop_reading(sock)

    child.when_quiet(end)


def begin(sock: Any) -> None:
    """This connection waits for its next request. gevent's sockets, and TLS ones, too."""
    _waiting[id(sock)] = sock
    if _ends:  # after the entry: `end` may have looked before it
        _stop_reading(sock)


def end(sock: Any) -> None:
    """It waits no more."""
    _waiting.pop(id(sock), None)


def _stop_reading(sock: Any) -> None:
    with contextlib.suppress(OSError):  # it has been closed
        # Of the connection itself, not of the TLS in it.
        _socket.socket.shutdown(getattr(sock, "_sock", sock), _socket.SHUT_RD)
