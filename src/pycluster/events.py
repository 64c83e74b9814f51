"""The event emitter of clusters, workers and processes: pyee's, with handlers that may fail and may be coroutines."""

import functools
import inspect
import logging
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyee.base import EventEmitter

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger("pycluster")


class Emitter(EventEmitter):
    """An emitter whose handlers do not stop each other.

    A handler runs on the asyncio loop that was running when it was registered; one that was registered outside of any
    loop runs in the thread that emits (the dispatching thread in the primary, the control thread in a worker). An
    `async def` handler becomes a task of the loop that it runs on.
    """

    def __init__(self, report: Callable[[Exception], None]) -> None:
        """`report` is told of what a handler raised."""
        super().__init__()
        self._report = report
        self._loops: set[asyncio.AbstractEventLoop] = set()
        self.on_listener: Callable[[str], None] | None = None  # is told of each event that got a listener
        self.on_exit: Callable[[SystemExit], None] | None = None  # gets a handler's sys.exit(), which else goes on

    def forget_listeners(self) -> None:
        """Start anew in a forked child, where another thread of the parent may have held the emitter's lock."""
        Emitter.__init__(self, self._report)

    def _add_event_handler(self, event: str, k: Callable[..., Any], v: Callable[..., Any]) -> None:
        # What an `error` listener raises must not come back to it.
        report = log_exception if event == "error" else self._report
        loop = _running_loop()
        if loop is not None:
            self._loops.add(loop)
        super()._add_event_handler(event, k, functools.partial(self._run, loop, report, v))
        if self.on_listener is not None:
            self.on_listener(event)

    def settle(self, timeout_s: float) -> None:
        """Wait until the loops that handlers run on have run what was emitted so far, at most so long for each."""
        for loop in self._loops:
            if not loop.is_closed() and loop is not _running_loop():
                done = threading.Event()
                loop.call_soon_threadsafe(done.set)
                done.wait(timeout_s)

    def _run(
        self,
        loop: "asyncio.AbstractEventLoop | None",
        report: Callable[[Exception], None],
        f: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if loop is not None and _running_loop() is not loop and not loop.is_closed():
            loop.call_soon_threadsafe(functools.partial(self._run, loop, report, f, *args, **kwargs))
            return
        try:
            result = f(*args, **kwargs)
            if inspect.iscoroutine(result):
                self._schedule(result, report)
        except SystemExit as exception:
            if self.on_exit is None:
                raise
            self.on_exit(exception)
        except Exception as exception:
            report(exception)

    def _schedule(self, coroutine: Any, report: Callable[[Exception], None]) -> None:
        loop = _running_loop()
        if loop is None:
            coroutine.close()
            raise RuntimeError(
                f"{coroutine!r} needs a running event loop: register the handler in one, or use `await cluster.serve()`"
            )
        task = loop.create_task(coroutine)
        handler_tasks.add(task)
        task.add_done_callback(functools.partial(_finish, report))

    def _emit_handle_potential_error(self, event: str, error: Any) -> None:
        if event == "error":
            self._report(error)


# The tasks of `async def` handlers: a loop keeps only weak references, and `serve()` waits for them.
handler_tasks: "set[asyncio.Future[Any]]" = set()


def _finish(report: Callable[[Exception], None], task: "asyncio.Future[Any]") -> None:
    handler_tasks.discard(task)
    if not task.cancelled() and isinstance(exception := task.exception(), Exception):
        report(exception)


def _running_loop() -> "asyncio.AbstractEventLoop | None":
    # Who has not imported asyncio runs no loop, and need not pay for it: 10 MB in every fork.
    asyncio = sys.modules.get("asyncio")
    return None if asyncio is None else asyncio._get_running_loop()


def log_exception(exception: Exception) -> None:
    """Say what a handler raised, where nobody listens for it."""
    logger.error("exception in an event handler", exc_info=exception)
