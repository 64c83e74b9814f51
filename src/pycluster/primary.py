"""The primary's role: workers, their control channels, what they ask for, and their ends.

All of it runs in the thread that dispatches (the one in `run()`, `serve()` or `dispatch()`), but for `fork`, which runs
where it is called, and `send`, which may be called anywhere. Connections never come through here: see the core.
"""

import functools
import itertools
import os
import select
import signal
import socket
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from . import _cluster, native, protocol, signals
from .channel import CONTROL, Channel, close_handle
from .errors import ChannelClosedError, ClusterError, ProtocolError
from .events import is_failure
from .handles import Handle
from .listeners import Listeners
from .loop import Loop
from .member import Member
from .protocol import Policy
from .recycle import Recycler
from .requests import Requests
from .respawn import Respawner
from .settings import Settings
from .signals import as_signal
from .starter import Started, Starter
from .stdio import fill_standard_descriptors
from .watch import Progress, Watcher
from .worker import LEAVING, STATES, Address, Worker

if TYPE_CHECKING:
    from .channel import Callback, HasFileno
    from .channel import Handle as MessageHandle
    from .child import Child

# As Python's own waiters report a child that somebody else has waited for (asyncio's child watchers).
UNKNOWN_STATUS = 255


class Primary:
    """The role of the process that forks.

    Attributes:
      stopping: whether a signal has asked for the end.
      running: whether it dispatches until the end, in `run()` or `serve()`.
      held: whether the cluster goes on without workers, until it is stopped.
      on_stop: is told of such a signal, and whether there was one before.
      on_hangup: is called for a SIGHUP.
      on_change: is told when a worker's state changes, or what it listens on, before the event is emitted.
    """

    def __init__(
        self,
        settings: Settings,
        policy: Policy,
        emit: Callable[..., object],
        report: Callable[[BaseException], None],
        need_region: Callable[[], None],
        become_worker: "Callable[[int, int, int, socket.socket, Settings], Child]",
    ) -> None:
        """
        Args:
          emit: emits an event on the cluster.
          report: is told of exceptions in handlers.
          need_region: sees to it that there is a shared region.
          become_worker: gives a forked worker its role, in the place of this one.
        """
        self.settings = settings
        self.policy = policy
        self._emit = emit
        self._report = report
        self._need_region = need_region
        fill_standard_descriptors()  # before anything is opened here
        self._loop = Loop()
        self._ids = 0
        self._starting: dict[int, int] = {}  # the ids of workers that are being forked, by slot
        self._members: dict[int, Member] = {}
        self._workers: dict[int, Worker] = {}
        self.workers: Mapping[int, Worker] = MappingProxyType(self._workers)
        self._listeners = Listeners(self._loop.call_later)
        self._requests = Requests(self, self._listeners)
        self._starter = Starter(self._loop, become_worker)
        self._disconnect_callbacks: list[Callable[[], object]] = []
        self.respawner = Respawner(self)
        self._watcher = Watcher(self)
        self._recycler = Recycler(self)
        self.stopping = False
        self.running = False
        self.on_stop: Callable[[bool], object] | None = None
        self.on_hangup: Callable[[], object] = lambda: None
        self.on_change: Callable[[Worker], object] | None = None

    # Forking

    @property
    def last_id(self) -> int:
        """The id of the worker that was forked last, 0 for none."""
        return self._ids

    def fork(
        self,
        env: Mapping[str, str] | None,
        slot: int | None = None,
        start_method: Literal["fork", "spawn"] | None = None,
    ) -> Worker:
        """See `Cluster.fork`.

        Args:
          slot: of the worker in whose place the new one comes.
          start_method: takes the place of the setting.
        """
        fill_standard_descriptors()  # the script may have closed some since
        self._need_region()
        settings = self.settings
        if len(self._members) + len(self._starting) >= settings.max_workers:
            raise ClusterError(f"{settings.max_workers} workers run; raise settings.max_workers before the first fork")
        self._ids += 1
        worker_id = self._ids
        is_new_place = slot is None
        if slot is None:
            slot = self._claim_slot(worker_id)
        else:
            self._starting[slot] = worker_id
        method = start_method or settings.start_method
        started = None
        try:
            started = self._starter.start(worker_id, slot, env, settings, self.policy, method)
            worker = self._adopt(worker_id, slot, started, env)
        finally:
            if started is None and self._ids == worker_id:
                self._ids -= 1  # nobody has had it
            self._starting.pop(slot, None)
        self.respawner.forked(worker, is_new_place)
        self._watcher.forked(worker)
        self._recycler.forked(worker)
        return worker

    def _claim_slot(self, worker_id: int) -> int:
        """The lowest number that no worker has or is to have. A thread or a signal handler may fork meanwhile."""

        def taken() -> set[int]:
            return self.respawner.slots.union(worker.slot for worker in list(self._workers.values()))

        others = taken()
        for slot in itertools.count():
            if slot not in others and self._starting.setdefault(slot, worker_id) == worker_id:
                if slot not in taken():  # looked at once more: who was being started until now is there
                    return slot
                del self._starting[slot]
        raise AssertionError("unreachable")

    def fork_in_place_of(self, worker: Worker, start_method: Literal["fork", "spawn"] | None = None) -> Worker:
        """Start a worker with the settings in force, and the slot and the environment of another one."""
        return self.fork(worker._env, worker.slot, start_method)

    def _adopt(self, worker_id: int, slot: int, started: Started, env: Mapping[str, str] | None) -> Worker:
        worker = Worker(worker_id, slot, started.pid, self, self._report)
        worker._env = env
        worker.process.stdin, worker.process.stdout, worker.process.stderr = started.stdio.keep()
        channel = Channel(
            started.socket,
            self._loop.poll,
            started.index,
            serialization=self.settings.serialization,
            max_message_size=self.settings.max_message_size,
            defer=self._defer_callback,
        )
        self._workers[worker_id] = worker
        self._loop.defer(lambda: self._emit("fork", worker))  # before its `online` can be heard, in any thread
        self.enroll(Member(worker, started.index, started.pidfd, channel, started.rights))
        return worker

    def enroll(self, member: Member) -> None:
        """Listen to a worker, and to its end."""
        self._note(member)
        self._members[member.worker.id] = member
        if not member.channel.closed:
            self._loop.watch(member.channel.fileno(), functools.partial(self._on_channel, member))
        self._loop.epoll.register(member.pidfd, select.EPOLLIN)
        self._loop.watch(member.pidfd, lambda _: self._reap(member))

    @property
    def members(self) -> Iterable[Member]:
        """All workers that live, inherited ones too."""
        return list(self._members.values())  # another thread may fork meanwhile

    @property
    def inherited(self) -> list[Worker]:
        """The workers of the last image of this process, which are not among `workers`."""
        return [member.worker for member in self.members if member.worker._inherited]

    def _note(self, member: Member) -> None:
        """Show the state to everybody's stats."""
        _cluster.describe_slot(member.index, member.worker.process.pid, STATES.index(member.worker.state))
        self._tell_change(member.worker)

    def _tell_change(self, worker: Worker) -> None:
        self._recycler.changed(worker)
        if self.on_change is not None:
            self.on_change(worker)

    def abandon(self) -> None:
        """In a forked child, worker or not: close the copies of all that the library has opened here.

        But for the balancer's, see `_cluster.abandon_balancer`, and the shared region's, which only a worker has no use
        for: a process that daemonizes goes on as the primary.
        """
        signals.abandon(self._loop.wakeup_fd)
        self._starter.abandon()
        self._requests.abandon()
        self._loop.close()
        for member in self._members.values():
            if not member.channel.closed:
                member.channel.abandon()
            native.close(member.pidfd)
            process = member.worker.process
            for pipe in (process.stdin, process.stdout, process.stderr):
                # Below its buffer, whose lock is held for ever here when a thread of the primary was reading. Below one
                # that the user has detached there is nothing.
                raw = getattr(pipe, "raw", pipe)
                if raw is not None:
                    raw.close()
        self._listeners.abandon()
        self._watcher.abandon()
        self._members.clear()
        self._workers.clear()

    # Dispatching

    def fileno(self) -> int:
        """See `Cluster.fileno`."""
        return self._loop.fileno()

    @property
    def wakeup_fd(self) -> int:
        """What is written here wakes whoever dispatches."""
        return self._loop.wakeup_fd

    def dispatch(self, timeout: float | None) -> None:
        """See `Cluster.dispatch`."""
        self._loop.run_once(timeout)

    def dispatch_to_the_end(self) -> None:
        """See `Cluster.run`."""
        while not self.finished:
            self._loop.run_once(None)

    def defer(self, function: Callable[[], object]) -> None:
        """Run a function in the next dispatch. Any thread, and signal handlers."""
        self._loop.defer(function)

    def _defer_callback(self, function: Callable[[], object]) -> None:
        self._loop.defer(lambda: self.call_back(function))

    def call_back(self, function: Callable[[], object]) -> None:
        """Call a function of the user's; what it raises stops nothing, like what a handler raises."""
        try:
            function()
        except BaseException as exception:
            if not is_failure(exception):
                raise
            self._report(exception)

    def remind(self, seconds: float, function: Callable[[], object]) -> None:
        """Run a function in the first dispatch after so many seconds, if the cluster goes on till then."""
        self._loop.call_later(seconds, function)

    def watch(self, fd: int, function: Callable[[], object]) -> None:
        """Call a function whenever a descriptor (borrowed) is readable, until `unwatch`."""
        self._loop.epoll.register(fd, select.EPOLLIN)
        self._loop.watch(fd, lambda _: function())

    def unwatch(self, fd: int) -> None:
        """Watch a descriptor, which is open still, no more."""
        self._loop.unwatch(fd)
        self._loop.epoll.unregister(fd)

    @property
    def finished(self) -> bool:
        """Whether no worker is left, none is to come, and nothing is to be told."""
        return not (self._members or self.respawner.pending or self._loop.pending)

    def stop(self) -> None:
        """A signal asks for the end: disconnect all, and kill what is left later; at once, when it asks again."""
        forced, self.stopping = self.stopping, True
        if self.on_stop is not None:
            self.on_stop(forced)
        if forced:
            self.kill_all()
        else:
            self.disconnect_all(None)
            for worker_id in list(self._members):
                self.kill_later(worker_id, self.settings.graceful_timeout)

    @property
    def must_stop(self) -> bool:
        """Whether a signal has asked for the end, even if nothing has been done about it yet."""
        return self.stopping or self._loop.has_deferred(self.stop)

    def close(self) -> None:
        """Close the listeners, and end the template: no worker is left."""
        self._listeners.close()
        self.discard_template()

    def discard_template(self) -> None:
        """Let the next worker of the start method "forkserver" be copied from a new template, which imports anew."""
        self._starter.discard_template()

    # Worker's Role

    def send(
        self,
        worker: Worker,
        message: object,
        handle: "MessageHandle | HasFileno | None",
        keep_open: bool,
        callback: "Callback | None",
    ) -> bool:
        member = self._members.get(worker.id)
        if member is not None:
            return member.channel.send_message(message, handle, keep_open, callback)
        error = ChannelClosedError(f"worker {worker.id} is gone; check is_connected() before send()")
        if callback is None:
            raise error
        self._defer_callback(lambda: callback(error))
        return False

    def disconnect(self, worker: Worker) -> None:
        member = self._members.get(worker.id)
        if member is None or member.channel.closed or worker.state == "disconnecting":
            return
        worker._asked_to_end = True
        worker._step("disconnect")
        self._note(member)
        self._listeners.withdraw(worker.id)
        member.channel.send_control(protocol.encode(protocol.Disconnect()))

    def kill(self, worker: Worker, signal: int) -> None:
        if member := self._members.get(worker.id):
            _send_signal(member.pidfd, signal)

    def progress_of(self, worker: Worker) -> Progress:
        """What a living worker shows of its progress."""
        return Progress(*_cluster.read_progress(self._members[worker.id].index))

    def connections_wait_for(self, worker: Worker) -> bool:
        """Whether connections wait for a worker to accept them."""
        return self._listeners.wait_for(worker.id)

    def watch_stacks(self, worker: Worker, fd: int) -> None:
        """Tell a living worker to write its stacks to this file (borrowed) when it is asked to."""
        self._members[worker.id].channel.send_control(protocol.encode(protocol.Watch()), fd)

    def retire(self, worker: Worker) -> None:
        """Disconnect a worker, and kill it after `graceful_timeout`."""
        self.disconnect(worker)
        self.kill_later(worker.id, self.settings.graceful_timeout)

    def retire_youngest(self) -> None:
        """Retire the worker that was forked last; not if it is the only one, and none of a pair in a reload."""
        staying = [worker for worker in list(self._workers.values()) if worker.state not in LEAVING]
        settled = [worker for worker in staying if not worker._covered]
        if len(settled) > 1 or (settled and settled != staying):
            self.retire(settled[-1])

    def addresses_of(self, worker: Worker) -> set[Address]:
        """What a worker listens on."""
        return self._listeners.addresses_of(worker.id)

    def is_connected(self, worker: Worker) -> bool:
        member = self._members.get(worker.id)
        return member is not None and not member.channel.closed

    def disconnect_all(self, callback: Callable[[], object] | None) -> None:
        """See `Cluster.disconnect`."""
        if callback is not None:
            self._disconnect_callbacks.append(callback)
        self.respawner.stand_down()
        self._listeners.withdraw_all()
        for member in self.members:
            self.disconnect(member.worker)
        self.defer(self._call_back_if_disconnected)

    def kill_all(self) -> None:
        """Kill all workers that are left, with SIGKILL."""
        for member in self.members:
            member.worker._asked_to_end = True
            _send_signal(member.pidfd, signal.SIGKILL)

    def kill_later(self, worker_id: int, seconds: float) -> None:
        """Kill a worker in so many seconds, if it is left then."""
        if member := self._members.get(worker_id):
            killed_at = self._loop.call_later(seconds, functools.partial(self._kill_left, worker_id))
            member.killed_at = min(killed_at, member.killed_at or killed_at)

    def _kill_left(self, worker_id: int) -> None:
        if member := self._members.get(worker_id):
            _send_signal(member.pidfd, signal.SIGKILL)

    # What workers say

    def _on_channel(self, member: Member, events: int) -> None:
        if events & select.EPOLLOUT:
            member.channel.flush()
            if events == select.EPOLLOUT:
                return
        self._receive(member)

    def _receive(self, member: Member) -> None:
        """Read once, and handle what has come."""
        try:
            for kind, payload, fd in member.channel.receive():
                if kind == CONTROL:
                    self._obey(member, payload, fd)
                else:
                    message, handle = member.channel.decode_message(payload, fd)
                    heard = member.worker._emit_message(message, handle)
                    if not self._emit("message", member.worker, message, handle) and not heard:
                        close_handle(handle)  # nobody wants it
        except EOFError:
            self._close_channel(member)
        except (ProtocolError, ValueError) as exception:
            self.emit_on(member.worker, "error", ProtocolError(f"worker {member.worker.id}: {exception}"))
            self._close_channel(member)

    def _obey(self, member: Member, payload: bytes, fd: int | None) -> None:
        """Do what the library in the worker asks for."""
        worker = member.worker
        try:
            said = protocol.decode_from_worker(payload)
            if worker.state == "none" and not isinstance(said, protocol.Online):
                raise ProtocolError("something else before online")
            if member.channel.unread:
                raise ProtocolError("it asks, and does not read the answers")
        except ProtocolError:
            if fd is not None:
                _cluster.discard(fd)
            raise
        if isinstance(said, protocol.Bind):
            self._requests.bind(member, said, fd)
            return
        if fd is not None:
            _cluster.discard(fd)
        if isinstance(said, protocol.Online):
            if worker.state not in ("none", "disconnecting"):
                raise ProtocolError("online once more")
            worker._step("online")
            self._note(member)
            self.emit_on(worker, "online")
        elif isinstance(said, protocol.BindDescriptor):
            self._requests.bind_descriptor(member, said)
        elif isinstance(said, protocol.Listen):
            self._requests.listen(member, said)
        elif isinstance(said, protocol.Release):
            self._listeners.release(worker.id, said.key)
            self._tell_change(worker)
        elif isinstance(said, protocol.Leave):
            worker._asked_to_end = True
            self.disconnect(worker)
        else:
            self._close_channel(member)

    def emit_on(self, worker: Worker, event: str, *args: object) -> None:
        """Emit on the worker, then on the cluster, which does not know of inherited ones."""
        worker.emit(event, *args)
        if event != "error" and not worker._inherited:
            self._emit(event, worker, *args)

    def note_listening(self, member: Member, handle: Handle) -> None:
        """A worker listens on one more address."""
        member.worker._step("listening")
        self._note(member)
        self.respawner.came_up(member.worker)
        self._watcher.listening(member.worker)
        # The event comes with the next dispatch: by then the worker has its answer.
        member.untold.append(handle.address)
        self._loop.defer(lambda: self._tell_listening(member))

    def _tell_listening(self, member: Member) -> None:
        while member.untold:
            self.emit_on(member.worker, "listening", member.untold.popleft())

    # Ends

    def _close_channel(self, member: Member) -> None:
        """The worker has disconnected, as asked or not."""
        if member.channel.closed:
            return
        worker = member.worker
        self._loop.unwatch(member.channel.fileno())
        member.channel.close()
        self._tell_listening(member)  # before its end
        worker._step("closed")
        worker._note_end()
        self._note(member)
        self.emit_on(worker, "disconnect")
        self._call_back_if_disconnected()

    def _call_back_if_disconnected(self) -> None:
        if all(member.channel.closed for member in self.members):
            callbacks, self._disconnect_callbacks = self._disconnect_callbacks, []
            for callback in callbacks:
                self.call_back(callback)

    def _reap(self, member: Member) -> None:
        """The worker's process has ended."""
        worker, process = member.worker, member.worker.process
        try:
            ended = os.waitid(os.P_PIDFD, member.pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            # The user's code has waited for any child and got ours: how it ended is not to be known any more.
            process.exitcode = UNKNOWN_STATUS
        else:
            if ended is None:
                return
            if ended.si_code == os.CLD_EXITED:
                process.exitcode = ended.si_status
            else:
                process.signal = as_signal(ended.si_status)
        member.channel.end_receiving()
        while not member.channel.closed:
            self._receive(member)  # all that it has said before it ended
        self._close_channel(member)
        self._loop.unwatch(member.pidfd)
        self._loop.epoll.unregister(member.pidfd)
        native.close(member.pidfd)
        self._listeners.forget(worker.id)
        del self._members[worker.id]
        self._workers.pop(worker.id, None)
        worker._step("exit")
        worker._note_end()
        _cluster.release_slot(member.index)
        self.respawner.ended(worker)
        self._watcher.ended(worker)
        self._tell_change(worker)
        self.emit_on(worker, "exit", process.exitcode, process.signal)


def _send_signal(pidfd: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        pass  # it has ended, and its exit is about to be dispatched
