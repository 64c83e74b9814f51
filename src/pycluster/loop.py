"""The primary's event loop: one pollable descriptor for all that can happen, and the functions that handle it."""

import contextlib
import heapq
import itertools
import os
import select
import time
from collections import deque
from collections.abc import Callable

from . import _cluster, native


class Loop:
    """Descriptors, deferred functions and timers behind one epoll.

    `run_once` is called by the dispatching thread; `defer` by any thread and by signal handlers.

    Attributes:
      wakeup_fd: what is written here ends the wait of `run_once`; for `signal.set_wakeup_fd`.
    """

    def __init__(self) -> None:
        """
        Raises:
          OSError: no descriptor is left; nothing stays open.
        """
        with contextlib.ExitStack() as on_failure:
            self.epoll = native.epoll(flags=select.EPOLL_CLOEXEC)
            on_failure.callback(self.epoll.close)
            # A pipe and not an eventfd, which does not take the single bytes that Python writes for signals.
            self._awoken, self.wakeup_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            on_failure.callback(native.close, self._awoken)
            on_failure.callback(native.close, self.wakeup_fd)
            self._timer = _cluster.create_timer()
            on_failure.pop_all()
        self.poll = _cluster.Poll(self.epoll.fileno())
        self._handlers: dict[int, Callable[[int], object]] = {}
        self._deferred: deque[Callable[[], object]] = deque()
        self._woken = False  # whether the pipe is written, or about to be
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self.epoll.register(self._awoken, select.EPOLLIN)
        self.epoll.register(self._timer, select.EPOLLIN)

    def fileno(self) -> int:
        """Readable when something is pending."""
        return self.epoll.fileno()

    @property
    def pending(self) -> bool:
        """Whether deferred functions wait to be run."""
        return bool(self._deferred)

    def has_deferred(self, function: Callable[[], object]) -> bool:
        """Whether this function waits to be run."""
        return function in self._deferred

    def watch(self, fd: int, handler: Callable[[int], object]) -> None:
        """Call `handler(events)` for what the epoll, where `fd` is registered already, says of it."""
        self._handlers[fd] = handler

    def unwatch(self, fd: int) -> None:
        """Call nothing for it any more."""
        self._handlers.pop(fd, None)

    def defer(self, function: Callable[[], object]) -> None:
        """Run a function in the next `run_once`, after those deferred before it."""
        self._deferred.append(function)
        self._wake_up()

    def _wake_up(self) -> None:
        if not self._woken:
            self._woken = True
            with contextlib.suppress(BlockingIOError):  # full of signals: it is readable already
                os.write(self.wakeup_fd, b"\0")

    def call_later(self, seconds: float, function: Callable[[], object]) -> float:
        """Run a function in the first `run_once` after so many seconds. Returns when, by time.monotonic()."""
        due_at = time.monotonic() + seconds
        heapq.heappush(self._timers, (due_at, next(self._numbers), function))
        self._set_timer()
        return due_at

    def run_once(self, timeout: float | None) -> None:
        """Run what is deferred, due and ready; wait up to `timeout` seconds (None: for ever) when nothing is."""
        if self._deferred:
            # Before what descriptors say: a `fork` event comes before its worker's `online`, however fast that is.
            self._run_deferred()
            timeout = 0
        for fd, events in self.poll.wait(timeout):
            if fd == self._awoken:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._awoken, 4096)
                self._woken = False  # after the read and before the run: whoever defers from now on wakes us again
                self._run_deferred()
            elif fd == self._timer:
                self._run_timers()
            elif handler := self._handlers.get(fd):  # else an earlier handler of this round has closed it
                handler(events)

    def _run_deferred(self) -> None:
        # Only those that are there now: one that defers itself again must not keep the others waiting.
        for _ in range(len(self._deferred)):
            try:
                self._deferred.popleft()()
            finally:
                if self._deferred:
                    self._wake_up()

    def _run_timers(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._timer, 8)
        while self._timers and self._timers[0][0] <= time.monotonic():
            heapq.heappop(self._timers)[2]()
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timers:
            _cluster.set_timer(self._timer, self._timers[0][0] - time.monotonic())

    def close(self) -> None:
        """Close the descriptors; nothing is run any more. Idempotent."""
        if not self.epoll.closed:
            self.epoll.close()
            native.close(self._awoken)
            native.close(self.wakeup_fd)
            native.close(self._timer)
            self._deferred.clear()
            self._timers.clear()
