"""What the library waits and works with, as the system gives it, also where gevent has taken its place.

`gevent.monkey.patch_all()` replaces threads, locks, sockets, poll, sleep and close with ones that belong to a hub, in
the primary and in every worker that is forked from it. The control thread must be a thread, nothing of the library's
may wait for somebody's hub to run, and what it closes must be closed at once.
"""

import _socket
import _thread
import contextlib
import os
import select
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any


def _original(module: ModuleType, name: str) -> Any:
    monkey = sys.modules.get("gevent.monkey")
    return getattr(module, name) if monkey is None else monkey.get_original(module.__name__, name)


if TYPE_CHECKING:
    Socket = socket.socket
    RLock = threading.RLock
    epoll = select.epoll
    poll = select.poll
else:
    Socket = _original(socket, "socket")
    RLock = _original(_thread, "RLock")
    epoll = _original(select, "epoll")
    poll = _original(select, "poll")
allocate_lock: "Callable[[], _thread.LockType]" = _original(_thread, "allocate_lock")
close: Callable[[int], None] = _original(os, "close")
# gevent's asks threads of its hub, for a numeric host too.
getaddrinfo: Callable[..., object] = _original(socket, "getaddrinfo")
get_ident: Callable[[], int] = _original(_thread, "get_ident")
sleep: Callable[[float], None] = _original(time, "sleep")
# Does not wait for the thread's start, so that it can be called where the end signal may come at any moment.
start_new_thread: Callable[[Callable[[], object], tuple[()]], int] = _original(_thread, "start_new_thread")


def is_patched() -> bool:
    """Whether what this process does with descriptors goes through gevent's hub."""
    return close is not os.close


def socketpair(family: int = socket.AF_UNIX, kind: int = socket.SOCK_STREAM) -> tuple[Socket, Socket]:
    """As socket.socketpair, which makes sockets of the class that `socket` holds when it is called."""
    a, b = _socket.socketpair(family, kind)
    return Socket(family, kind, 0, a.detach()), Socket(family, kind, 0, b.detach())


def start_thread(function: Callable[[], object], name: str) -> None:
    """Run a function in a new daemon thread, which debuggers know by its name where gevent has not replaced threads.

    Raises:
      RuntimeError: there can be no other thread.
    """
    if start_new_thread is _thread.start_new_thread:
        threading.Thread(target=_run, args=(function,), name=name, daemon=True).start()
    else:
        start_new_thread(function, ())


def _run(function: Callable[[], object]) -> None:
    """The life of a thread of threading's.

    When gevent has replaced threads meanwhile, it does not end: threading would look for it by the id of a greenlet,
    and show a KeyError. The process's end ends it; there is at most one thread of each kind that has begun before.
    """
    function()
    if start_new_thread is not _thread.start_new_thread:
        lock = allocate_lock()
        lock.acquire()
        lock.acquire()


class Event:
    """As threading.Event: there, what waits is made of what gevent replaces."""

    def __init__(self) -> None:
        self._flag = False
        self._waiting: deque[_thread.LockType] = deque()

    def is_set(self) -> bool:
        return self._flag

    def set(self) -> None:
        self._flag = True
        while self._waiting:
            try:
                self._waiting.popleft().release()
            except IndexError:
                return  # another thread has set it, too

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, at most so many seconds. Returns whether it is."""
        gate = allocate_lock()
        gate.acquire()
        self._waiting.append(gate)
        # After the append: whoever sets it from now on opens the gate.
        if not self._flag and not gate.acquire(timeout=-1 if timeout is None else timeout):
            with contextlib.suppress(ValueError):
                self._waiting.remove(gate)
        return self._flag
