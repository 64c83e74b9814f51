"""The event emitter of clusters, workers and processes: pyee's, with handlers that may fail and may be coroutines."""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pyee.base import EventEmitter

from . import native

if TYPE_CHECKING:
    import asyncio

# The loop that a listener runs on, what is told of its exceptions, and the listener. For one of `once`, that is what
# removes it and calls it; the last is then what only removes it, and returns it, or None if it was not there any more.
_Handler = tuple[
    "asyncio.AbstractEventLoop | None",
    Callable[[BaseException], None],
    Callable[..., Any],
    Callable[[], Callable[..., Any] | None] | None,
]


class Emitter(EventEmitter):
    """An emitter whose handlers do not stop each other.

    A handler runs on the asyncio loop that was running when it was registered; one that was registered outside of any
    loop runs in the thread that emits (the dispatching thread in the primary, the control thread in a worker). An
    `async def` handler becomes a task of the loop that it runs on.
    """

    def __init__(self, report: Callable[[BaseException], None]) -> None:
        """`report` is told of what a handler raised."""
        super().__init__()
        self._lock = native.allocate_lock()  # pyee's own is gevent's, where that has patched threading
        self._report = report
        self._loops: set[asyncio.AbstractEventLoop] = set()
        # What `emit` calls, by event: made when it is first asked for after a change.
        self._called: dict[str, tuple[_Handler, ...]] = {}
        self.on_listener: Callable[[str], None] | None = None  # is told of each event that got a listener
        self.on_removal: Callable[[], None] | None = None  # is told that some have gone; the lock may be held
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
        take = None if v is k else functools.partial(self._take, event, k)
        super()._add_event_handler(event, k, (loop, report, v, take))  # type: ignore[arg-type]
        self._called.pop(event, None)
        if self.on_listener is not None:
            self.on_listener(event)

    def _remove_listener(self, event: str, f: Callable[..., Any]) -> None:
        super()._remove_listener(event, f)
        self._called.pop(event, None)
        if self.on_removal is not None:
            self.on_removal()

    def remove_all_listeners(self, event: str | None = None) -> None:
        """Remove the listeners of an event, or all."""
        super().remove_all_listeners(event)
        self._called.clear()
        if self.on_removal is not None:
            self.on_removal()

    def emit(self, event: str, *args: Any, **kwargs: Any) -> bool:
        """Call the event's listeners with these arguments, in the order of their registration.

        Returns:
          Whether there were any.
        """
        heard = False
        for handler in self._called.get(event) or (self._collect(event) if event in self._events else ()):
            if self._call(handler, args, kwargs):
                heard = True
        if not heard and event == "error":
            error: Any = args[0] if args else None
            self._report(error)
        return heard

    def hears(self, event: str) -> bool:
        """Whether the event has listeners."""
        return bool(self._called.get(event) or self._collect(event))

    def _take(self, event: str, listener: Callable[..., Any]) -> Callable[..., Any] | None:
        with self._lock:
            if listener not in self._events.get(event, {}):
                return None
            self._remove_listener(event, listener)
        return listener

    def _collect(self, event: str) -> tuple[_Handler, ...]:
        if event not in self._events:
            return ()
        # Under pyee's own lock: whoever changes the listeners takes this note away after the change.
        with self._lock:
            called = self._called[event] = tuple(self._events.get(event, {}).values())  # type: ignore[arg-type]
        return called

    def settle(self, timeout_s: float) -> None:
        """Wait until the loops that handlers run on have run what was emitted so far, at most so long for each."""
        for loop in self._loops:
            if loop is not _running_loop():
                done = native.Event()
                try:
                    loop.call_soon_threadsafe(done.set)
                except RuntimeError:
                    continue  # it is closed
                done.wait(timeout_s)

    def _call(self, handler: "_Handler", args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Call a handler, now, or soon on the loop that it belongs to. Returns whether it was still registered."""
        loop, report, f, take = handler
        if loop is not None and _running_loop() is not loop:
            if take is not None:
                # It goes now, and not when the loop comes to it: the next event is not for it.
                taken = take()
                if taken is None:
                    return False
                f = taken
            try:
                loop.call_soon_threadsafe(self._call, (loop, report, f, None), args, kwargs)
            except RuntimeError:
                pass  # it is closed
            else:
                return True
        try:
            result = f(*args, **kwargs)
            if result is not None and inspect.iscoroutine(result):
                _schedule(result, report)
        except SystemExit as exception:
            if self.on_exit is None:
                raise
            self.on_exit(exception)
        except BaseException as exception:
            in_control_thread = loop is None and self.on_exit is not None
            if not in_control_thread and not is_failure(exception):
                raise
            report(exception)
        return True


def is_failure(exception: BaseException) -> bool:
    """Whether a handler has failed, and nobody has thrown this at the thread that dispatches.

    KeyboardInterrupt goes on to it, and gevent's Timeout and GreenletExit; the CancelledError of a future does not.
    """
    asyncio = sys.modules.get("asyncio")
    return isinstance(exception, Exception) or (asyncio is not None and isinstance(exception, asyncio.CancelledError))


def _schedule(coroutine: Any, report: Callable[[BaseException], None]) -> None:
    loop = _running_loop()
    if loop is None:
        coroutine.close()
        raise RuntimeError(
            f"{coroutine!r} needs a running event loop: register the handler in one, or use `await cluster.serve()`"
        )
    task = loop.create_task(coroutine)
    handler_tasks.add(task)
    task.add_done_callback(functools.partial(_finish, report))


# The tasks of `async def` handlers: a loop keeps only weak references, and `serve()` waits for them.
handler_tasks: "set[asyncio.Future[Any]]" = set()


def _finish(report: Callable[[BaseException], None], task: "asyncio.Future[Any]") -> None:
    handler_tasks.discard(task)
    if not task.cancelled() and isinstance(exception := task.exception(), Exception):
        report(exception)


def _running_loop() -> "asyncio.AbstractEventLoop | None":
    # Who has not imported asyncio runs no loop, and need not pay for it: 10 MB in every fork.
    asyncio = sys.modules.get("asyncio")
    return None if asyncio is None else asyncio._get_running_loop()


def log_exception(exception: BaseException) -> None:
    """Say what a handler raised, where nobody listens for it."""
    log("error", "exception in an event handler", exception)


def log(level: Literal["info", "warning", "error"], text: str, exception: BaseException | None = None) -> None:
    """Log to "pycluster"."""
    try:
        import logging  # only here: every worker would carry it
    except OSError:  # no descriptor is left to read the module with
        print(text, file=sys.stderr)
    else:
        getattr(logging.getLogger("pycluster"), level)(text, exc_info=exception)
