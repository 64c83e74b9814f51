"""The worker's role: its start, its talk with the primary, its end.

A control thread listens to the control channel, so that a worker whose main thread is blocked in a plain accept() still
hears `disconnect`. It is the only one that reads the channel and the only one that closes it. When the worker is done
it ends the main thread's script with SystemExit, delivered by a signal, so that a blocking call is interrupted too.
"""

import atexit
import contextlib
import math
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from . import _cluster, adapt, descriptors, heartbeat, listener, native, protocol
from .calls import Calls
from .channel import CONTROL, Channel, Handle
from .errors import ProtocolError
from .events import is_failure
from .script import Script
from .settings import Settings
from .worker import Worker

if TYPE_CHECKING:
    from .channel import Callback, HasFileno

# How long Python may take to leave by itself when the primary is gone; api.md promises 1 s in all.
LIFELINE_GRACE_S = 0.7
# While connections are open, how often to look which still are: for `stats().active`, and while draining.
SWEEP_S = 1.0
DRAIN_SWEEP_S = 0.02
# Ends the main thread's script. Ignored by default, and a spurious one does no harm: why Go preempts with it too.
END_SIGNAL = signal.SIGURG
# `disconnect` handlers of the user's loops have this long before the script is ended.
HANDLERS_S = 0.2
# What a script does once its framework has stopped with the worker has this long before the script is ended.
CLEANUP_S = 5.0
# Messages that wait in memory when the script ends have this long to reach the primary.
FLUSH_S = 5.0


class Child:
    """The role of a process that is a worker.

    Attributes:
      quiet: set once the script is about to end: this worker disconnects and has accepted all that is its own, or has
        lost its primary, or a handler has called sys.exit().
    """

    def __init__(
        self,
        worker_id: int,
        slot: int,
        index: int,
        sock: socket.socket,
        settings: Settings,
        report: Callable[[BaseException], None],
    ) -> None:
        """Own `sock`, the worker's end of the control channel. `index`: of its slot in the shared region."""
        _cluster.enter_slot(index)
        self.settings = settings
        self.worker = Worker(worker_id, slot, os.getpid(), self, report)
        self.worker._step("online")
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = native.epoll(flags=select.EPOLL_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._poller = _cluster.Poll(self._epoll.fileno())
        self._deferred: deque[Callable[[], object]] = deque()
        self._woken = False  # whether the eventfd is written for the deferred, or about to be
        self._channel = Channel(
            sock,
            self._poller,
            index,
            serialization=settings.serialization,
            max_message_size=settings.max_message_size,
            defer=self.defer,
        )
        self._calls = Calls(self._channel, self._wait, self.defer)
        self._draining = False
        self._said_drained = False
        self.quiet = native.Event()
        self._at_quiet: deque[Callable[[], object]] = deque()
        self._unheard: deque[tuple[object, Handle | None]] = deque()
        for emitter in (self.worker, self.worker.process):
            emitter.on_listener = self._on_listener
            emitter.on_removal = self._on_removal
            emitter.on_exit = self.on_exit
        self._sweep_at = 0.0  # by time.monotonic(); inf while no connection is open
        self._closed = native.Event()
        self._has_listened = False  # whether there ever was a listener for messages
        self._stays = False  # the script has ended, and the main thread waits for `_over`
        self._over = native.Event()
        self._script_runs = False
        self._ending: SystemExit | None = None
        self._end_delivered = False
        self._spared_until = 0.0  # by time.monotonic(): the script is ending by itself
        self._unraisable_hook = sys.unraisablehook
        self._main = native.get_ident()
        self._control: int | None = None  # the control thread, while it runs
        self._controlled = False  # whether it runs, or is about to

    def start(self) -> None:
        """Say to the primary that the process runs, and start the control thread."""
        self._channel.send_control(protocol.encode(protocol.Online()))
        _cluster.arm_lifeline(self._channel.fileno(), LIFELINE_GRACE_S)
        _cluster.wake_on_first_open(self._wake)
        signal.signal(END_SIGNAL, self._on_end_signal)
        sys.unraisablehook = self._on_unraisable
        os.register_at_fork(after_in_child=self._abandon)
        heartbeat.watch_every(self.settings.worker_timeout)
        if self.settings.share_ports:
            listener.install(self._calls)
            adapt.install(self)
        self._controlled = True
        native.start_thread(self._run, "pycluster-control")

    def run(self, script: Script, args: list[str]) -> NoReturn:
        """Run the script in the main thread, and leave the process when it ends."""
        status = 0
        try:
            status = self._run_script(script, args)
        except SystemExit as exception:
            status = exit_status(exception)  # the end signal came while the script was ending by itself
        except BaseException:
            # What tells of the script's end failed, the user's excepthook perhaps. Where the primary has forked this
            # process, whatever goes through here would unwind into the primary's own script.
            status = 1
        self._leave(status)

    def _run_script(self, script: Script, args: list[str]) -> int:
        try:
            self._script_runs = True
            if self._closed.is_set():
                return 0  # asked to end before there was a script to end
            script.run(args)
            self._wait_for_messages()
            return 0
        except SystemExit as exception:
            return exit_status(exception)
        except BaseException as exception:
            self._script_runs = False
            exception.__traceback__ = users_part(exception.__traceback__)
            sys.excepthook(type(exception), exception, exception.__traceback__)
            return 1
        finally:
            self._script_runs = False

    # Worker's Role

    def send(
        self,
        worker: Worker,
        message: object,
        handle: "Handle | HasFileno | None",
        keep_open: bool,
        callback: "Callback | None",
    ) -> bool:
        ready = self._channel.send_message(message, handle, keep_open, callback)
        _cluster.count_message_out()
        return ready

    def disconnect(self, worker: Worker) -> None:
        if not self._draining and not self._closed.is_set():
            self._channel.send_control(protocol.encode(protocol.Leave()))

    def kill(self, worker: Worker, signal: int) -> None:
        if worker._asked_to_end:
            # The primary reads all that we have said before it asks how we ended.
            self._channel.send_control(protocol.encode(protocol.Leave()))
        os.kill(os.getpid(), signal)

    def is_connected(self, worker: Worker) -> bool:
        return not self._closed.is_set()

    # The control thread

    def defer(self, function: Callable[[], object]) -> None:
        """Run a function soon in the control thread. Any thread."""
        self._deferred.append(function)
        if self._controlled:
            if not self._woken:
                self._woken = True
                os.eventfd_write(self._wake, 1)
        else:
            self._run_deferred()

    def _wait(self, event: native.Event) -> None:
        """Wait for what comes on the channel. Any thread; this one is the only one that reads there."""
        if native.get_ident() == self._control:
            while not event.is_set():
                self._poll(None)
        event.wait()

    def _run(self) -> None:
        self._control = native.get_ident()
        while not self._channel.closed:
            if self._draining and not self._said_drained:
                self._poll(self._drain())
            elif self._sweep_at == math.inf:
                self._poll(None)
            else:
                self._poll(self._look_at_connections())
            # Here, and not where a listener goes: no handler is in the middle of its work.
            if self._stays and (self._ending is not None or not self._has_message_listeners()):
                self._over.set()
        self._controlled = False
        # Callbacks of what could not be written any more.
        self._run_deferred()

    def _drain(self) -> float | None:
        """Say Drained once everything is done. Returns in how many seconds to look again."""
        try:
            left = self._left_to_do()
        except OSError:
            left = 1  # at least: the system has no file for a look at our descriptors
        if left or self._channel.backlogged:
            return DRAIN_SWEEP_S
        self._say_drained()
        return None

    def _left_to_do(self) -> int:
        """How many listeners are not silenced yet, and connections not taken, or open.

        Raises:
          OSError: it cannot be told.
        """
        # In this order, or a connection could pass from one place to the next behind our back.
        left = self._silence_listeners()
        undelivered = _cluster.undelivered()
        if undelivered == 0:
            # Though there may be no descriptor for a listener's silence: idle connections, which end now, have some.
            self._be_quiet()
        left += undelivered + _cluster.sweep()
        return left or descriptors.open_connections()

    def _look_at_connections(self) -> float | None:
        """Note which connections are still open, if it is time to. Returns in how many seconds it will be."""
        now = time.monotonic()
        if now >= self._sweep_at:
            opened = _cluster.undelivered() + _cluster.sweep()
            self._sweep_at = now + SWEEP_S if opened else math.inf
        return None if self._sweep_at == math.inf else self._sweep_at - now

    def _poll(self, timeout: float | None) -> None:
        for fd, event in self._poller.wait(timeout):
            if fd == self._wake:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
                self._woken = False  # after the read and before the run: whoever defers from now on wakes us again
                self._run_deferred()
                if self._sweep_at == math.inf:
                    self._sweep_at = 0.0  # this may be the first connection that is open
                continue
            if event & select.EPOLLOUT:
                self._channel.flush()
            if event != select.EPOLLOUT:
                self._receive()

    def _run_deferred(self) -> None:
        while self._deferred:
            try:
                self._deferred.popleft()()
            except BaseException as exception:  # of a callback of send()
                if native.get_ident() != self._control and not is_failure(exception):
                    raise
                if isinstance(exception, SystemExit):
                    self.on_exit(exception)
                else:
                    self.worker._report(exception)

    def _receive(self) -> None:
        try:
            for kind, payload, fd in self._channel.receive():
                if kind == CONTROL:
                    self._obey(payload, fd)
                    continue
                message, handle = self._channel.decode_message(payload, fd)
                _cluster.count_message_in()
                if self._unheard or not self.worker._emit_message(message, handle):
                    self._unheard.append((message, handle))
                    self._deliver()  # to who has come to listen in between
        except EOFError:
            self._end()
        except ProtocolError as exception:
            self.worker.emit("error", exception)
            self._end()

    def _obey(self, payload: bytes, fd: int | None) -> None:
        """Do what the library in the primary says."""
        said = protocol.decode_from_primary(payload)
        if isinstance(said, protocol.Disconnect):
            self._draining = True
            self.worker._step("disconnect")
            return
        if isinstance(said, protocol.Watch):
            if fd is not None:
                heartbeat.write_stacks_to(fd)
            return
        if said.listening:
            self.worker._step("listening")
        self._calls.answer(said, fd)

    def _deliver(self) -> None:
        """Messages wait, as in Node.js, until somebody listens for them."""
        while self._unheard and self._has_message_listeners():
            waiting = self._unheard.popleft()
            if not self.worker._emit_message(*waiting):
                self._unheard.appendleft(waiting)  # who listened has gone in between

    def _has_message_listeners(self) -> bool:
        return self.worker.process.hears("message") or self.worker.hears("message")

    def _on_listener(self, event: str) -> None:
        if event == "message":
            self._has_listened = True
            if self._unheard:
                self.defer(self._deliver)

    def _on_removal(self) -> None:
        if self._stays and self._controlled:
            os.eventfd_write(self._wake, 1)  # for another look at who listens; not from here, under the emitter's lock

    # The end

    def _silence_listeners(self) -> int:
        """Silence the listeners that nothing waits for. Returns how many are not silenced yet.

        Raises:
          OSError: the duplicates among them cannot be found.
        """
        loud = 0
        undelivered = _cluster.undelivered()
        for shared in descriptors.shared_sockets():
            # Where no connection is undelivered, what lies in a channel is a probe of the balancer's.
            if undelivered and shared.receiver is not None and shared.waiting:
                loud += 1
                continue
            try:
                shared.silence()
            except OSError:
                loud += 1  # no descriptor is left; when a connection has ended, there is one
        return loud

    def _say_drained(self) -> None:
        _cluster.expect_orderly_close()
        self._said_drained = True
        self._channel.send_control(protocol.encode(protocol.Drained()))

    def _end(self) -> None:
        """The channel has ended: as agreed, or because the primary is gone."""
        self.worker.exited_after_disconnect = self._said_drained
        self.worker._step("closed")
        self._channel.close()
        self._closed.set()
        self._be_quiet()
        self._calls.give_up()
        self.worker.process.emit("disconnect")
        self.worker.emit("disconnect")
        for emitter in (self.worker.process, self.worker):
            emitter.settle(HANDLERS_S)
        self._ending = self._ending or SystemExit(0)
        self._over.set()
        self._end_script()

    @contextlib.contextmanager
    def ended_by(self, stop: Callable[[], object]) -> Iterator[None]:
        """While inside, ask a framework to stop where the script would be ended: `SystemExit` comes when that is left.

        For those that would not survive it in the middle of their work, or not notice it. One that has stopped because
        of `quiet` is left before the worker ends: the script may then end by itself, undisturbed for `CLEANUP_S`. In
        another thread than the main one, which the signal never interrupts, nothing changes.

        Args:
          stop: called once, in the main thread, in the middle of whatever that does.
        """
        if native.get_ident() != self._main:
            yield
            return
        asked = False

        def ask(number: int, frame: object) -> None:
            nonlocal asked
            if self._ending is not None and not asked:
                asked = True
                stop()

        previous = signal.signal(END_SIGNAL, ask)
        try:
            yield
        finally:
            if self.quiet.is_set():
                self._spared_until = time.monotonic() + CLEANUP_S
            signal.signal(END_SIGNAL, previous)
            signal.raise_signal(END_SIGNAL)

    def when_quiet(self, function: Callable[[], object]) -> None:
        """Call a function once `quiet` is set, soon if it is: in the control thread, which nothing else may keep."""
        self._at_quiet.append(function)
        if self.quiet.is_set():
            self.defer(self._be_quiet)

    def _be_quiet(self) -> None:
        self.quiet.set()
        while self._at_quiet:
            try:
                self._at_quiet.popleft()()
            except Exception as exception:
                self.worker._report(exception)

    def on_exit(self, exception: SystemExit) -> None:
        """A handler has called sys.exit(): it ends the script, as process.exit() in a handler does in Node.js."""
        self._ending = self._ending or exception
        self._be_quiet()
        self.defer(self._end_script)

    def _end_script(self) -> None:
        """Signal the main thread until it has heard: one signal may hit it just before it enters a blocking call."""
        wait_s = 0.001
        while self._script_runs and not self._end_delivered:
            if native.get_ident() == self._control:
                self._run_deferred()
            if time.monotonic() >= self._spared_until:
                signal.pthread_kill(self._main, END_SIGNAL)
            native.sleep(wait_s)
            wait_s = min(2 * wait_s, 1.0)

    def _on_end_signal(self, number: int, frame: object) -> None:
        # No lock is taken here, nor in the next two: they run in the middle of whatever the main thread does.
        self._deliver_end()

    def _deliver_end(self) -> None:
        """End the script, once, if it is to end: in the main thread."""
        if self._ending is not None and self._script_runs and not self._end_delivered:
            self._end_delivered = True
            raise self._ending

    def _on_unraisable(self, unraisable: Any) -> None:
        """The signal may hit a destructor or a weak reference's callback, which drop what is raised: once more."""
        if self._ending is None or unraisable.exc_value is not self._ending:
            self._unraisable_hook(unraisable)
            return
        self._end_delivered = False
        native.start_new_thread(self._end_script, ())

    def _wait_for_messages(self) -> None:
        """A script that has ended stays while it listens for messages, and while one is being handled."""
        if not self._has_listened:
            return
        self.defer(self._stay)
        self._over.wait()
        self._deliver_end()

    def _stay(self) -> None:
        self._stays = True

    def _leave(self, status: int) -> NoReturn:
        """End the process as the interpreter would, with this process's own atexit functions."""
        try:
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            self._flush()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            os._exit(status)

    def _flush(self) -> None:
        poller = native.poll()
        deadline_ms = int(FLUSH_S * 1000)
        while self._channel.backlogged and not self._closed.is_set() and deadline_ms > 0:
            poller.register(self._channel.fileno(), select.POLLOUT)
            poller.poll(20)
            deadline_ms -= 20
            self._channel.flush()

    def _abandon(self) -> None:
        """In a process that this worker forks on its own: it is no worker."""
        if self._epoll.closed:
            return  # forked by such a process: the numbers of what was open here may be its own files' by now
        self._closed.set()
        self._over.set()
        self._controlled = False
        self._control = None
        self._channel.abandon()
        descriptors.abandon()
        heartbeat.abandon()
        signal.signal(END_SIGNAL, signal.SIG_DFL)
        native.close(self._wake)
        self._epoll.close()


def users_part(trace: TracebackType | None) -> TracebackType | None:
    """Without the frames of this library and of runpy at the top, which say nothing about the user's program."""
    ours = (os.path.dirname(__file__), "<frozen runpy>")
    rest = trace
    while rest is not None and rest.tb_frame.f_code.co_filename.startswith(ours):
        rest = rest.tb_next
    return rest or trace


def exit_status(exception: SystemExit) -> int:
    """The status that the interpreter would end with."""
    if exception.code is None:
        return 0
    if isinstance(exception.code, int):
        return exception.code & 0xFF
    with contextlib.suppress(Exception):  # as the interpreter, which has its status whether that is read or not
        print(exception.code, file=sys.stderr)
    return 1
