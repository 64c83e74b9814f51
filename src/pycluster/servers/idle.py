"""Connections that a thread or greenlet of their own waits on for their next request.

Closing their receiving half ends that wait, and no other: a request that has come before is read first, and answered.
"""

import _socket
import contextlib
import os
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
            stop_reading(sock)

    child.when_quiet(end)


def begin(sock: Any) -> None:
    """This connection waits for its next request. gevent's sockets, and TLS ones, too."""
    _waiting[id(sock)] = sock
    if _ends:  # after the entry: `end` may have looked before it
        stop_reading(sock)


def end(sock: Any) -> None:
    """It waits no more."""
    _waiting.pop(id(sock), None)


def stop_reading(sock: Any) -> None:
    """Let who reads here come to an end, after what has come before. Of the connection itself, not of TLS in it."""
    with contextlib.suppress(OSError):  # it has been closed
        inner = getattr(sock, "_sock", sock)
        if isinstance(inner, _socket.socket):
            _socket.socket.shutdown(inner, _socket.SHUT_RD)
        else:  # what uvloop shows of its sockets
            with contextlib.closing(_socket.socket(fileno=os.dup(inner.fileno()))) as duplicate:
                duplicate.shutdown(_socket.SHUT_RD)
