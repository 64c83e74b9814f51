"""What a worker does so that it can be watched: it shows its progress, and writes down its stacks when it is asked to.

Progress is written to the shared region, without a system call: every accepted connection counts (the core's doing),
and, when `settings.worker_timeout` is set, every tick of an event loop that serves a shared listener. The stacks are
written by faulthandler in a signal's handler, in C and without the GIL, since whoever holds that may be what hangs.
"""

import faulthandler
import os
import signal
import weakref
from typing import Any

from . import _cluster, native

# Asks for the stacks. A program's own use is likeliest at the lower end of the real-time signals.
STACKS_SIGNAL = signal.SIGRTMAX - 1
# A loop ticks, and is looked at, so often within the timeout.
TICKS_PER_TIMEOUT = 4

# How often loops tick, in seconds; None when nobody watches.
interval_s: float | None = None
_beating: "weakref.WeakSet[Any]" = weakref.WeakSet()
_stacks_fd = -1


def watch_every(worker_timeout: float | None) -> None:
    """Let loops tick for this timeout. At the start of a worker."""
    global interval_s
    interval_s = None if worker_timeout is None else worker_timeout / TICKS_PER_TIMEOUT


def beat(loop: Any) -> None:
    """Show this loop's progress from its next iteration on, for as long as it runs. In its thread; idempotent."""
    if interval_s is None or loop in _beating:
        return
    _beating.add(loop)

    def tick() -> None:
        if interval_s is not None:  # else this is a copy of the worker, with its loop
            _cluster.count_tick()
            loop.call_later(interval_s, tick)

    loop.call_soon(tick)


def write_stacks_to(fd: int) -> None:
    """Own `fd`, and write the stacks of all threads there whenever STACKS_SIGNAL comes. Any thread; once.

    A program that has a handler for that signal keeps it, and has no stacks written.
    """
    global _stacks_fd
    if signal.getsignal(STACKS_SIGNAL) is not signal.SIG_DFL:
        native.close(fd)
        return
    _stacks_fd = fd
    faulthandler.register(STACKS_SIGNAL, file=fd, all_threads=True)
    os.write(fd, b"\n")  # what is written here says that the signal may come


def abandon() -> None:
    """In a child that this worker forks on its own: nobody watches it."""
    global interval_s, _stacks_fd
    interval_s = None
    if _stacks_fd >= 0:
        faulthandler.unregister(STACKS_SIGNAL)
        native.close(_stacks_fd)
        _stacks_fd = -1
