"""A worker as both sides see it: its life as a table, and the objects that the user holds."""

import signal as signals
import warnings
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from .events import Emitter
from .signals import as_signal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .channel import Callback, Handle, HasFileno

State = Literal["none", "online", "listening", "disconnecting", "disconnected", "dead"]
Step = Literal["online", "listening", "disconnect", "closed", "exit"]

# A worker's life. Steps: `online` and `listening` are what it says of itself; `disconnect` is asked for by either side;
# `closed` is the end of its control channel, asked for or not; `exit` is the end of its process. A worker that is
# disconnecting may still say what it had on its way. The process may end before the end of the channel is read.
LIFE: dict[tuple[State, Step], State] = {
    ("none", "online"): "online",
    ("none", "disconnect"): "disconnecting",
    ("none", "closed"): "disconnected",
    ("none", "exit"): "dead",
    ("online", "listening"): "listening",
    ("online", "disconnect"): "disconnecting",
    ("online", "closed"): "disconnected",
    ("online", "exit"): "dead",
    ("listening", "listening"): "listening",
    ("listening", "disconnect"): "disconnecting",
    ("listening", "closed"): "disconnected",
    ("listening", "exit"): "dead",
    ("disconnecting", "online"): "disconnecting",
    ("disconnecting", "listening"): "disconnecting",
    ("disconnecting", "disconnect"): "disconnecting",
    ("disconnecting", "closed"): "disconnected",
    ("disconnecting", "exit"): "dead",
    ("disconnected", "exit"): "dead",
    ("dead", "closed"): "dead",
}

# A worker in one of these takes no more connections, and will not again.
LEAVING: tuple[State, ...] = ("disconnecting", "disconnected", "dead")

# The states by number, as they stand in shared memory.
STATES: tuple[State, ...] = ("none", "online", "listening", "disconnecting", "disconnected", "dead")


class Address(NamedTuple):
    """Where a worker listens; fields that do not apply are None."""

    host: str | None = None
    port: int | None = None
    family: int | None = None
    type: int | None = None
    path: str | None = None
    fd: int | None = None


def where(address: Address) -> str:
    """An address as people write it."""
    if address.path is not None:
        return address.path
    host = f"[{address.host}]" if address.host and ":" in address.host else address.host
    return f"{host}:{address.port}"


class Role(Protocol):
    """What a worker's object needs of the side that it lives on: `Primary` or `Child`."""

    def send(
        self,
        worker: "Worker",
        message: object,
        handle: "Handle | HasFileno | None",
        keep_open: bool,
        callback: "Callback | None",
    ) -> bool: ...

    def disconnect(self, worker: "Worker") -> None: ...

    def kill(self, worker: "Worker", signal: int) -> None: ...

    def is_connected(self, worker: "Worker") -> bool: ...


class WorkerProcess(Emitter):
    """The process of a worker. In the worker itself it is `pycluster.process`, the current process.

    Attributes:
      pid: the process's id.
      stdin, stdout, stderr: in the primary, its ends of the pipes where `settings.stdio` or `silent` asked for them.
      exitcode: the exit status, None while it runs or when a signal ended it.
      signal: the signal that ended it, or None.

    Emits `message(message, handle)`, and in the worker `disconnect()`.
    """

    def __init__(self, worker: "Worker", pid: int, report: "Callable[[BaseException], None]") -> None:
        super().__init__(report)
        self._worker = worker
        self.pid = pid
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        self.stderr: IO[bytes] | None = None
        self.exitcode: int | None = None
        self.signal: signals.Signals | int | None = None

    @property
    def connected(self) -> bool:
        """Whether the control channel is open."""
        return self._worker.is_connected()

    def send(
        self,
        message: object,
        handle: "Handle | HasFileno | None" = None,
        *,
        keep_open: bool = False,
        callback: "Callback | None" = None,
    ) -> bool:
        """Send a message to the other side; see `Worker.send`."""
        return self._worker._role.send(self._worker, message, handle, keep_open, callback)

    def disconnect(self) -> None:
        """See `Worker.disconnect`."""
        self._worker.disconnect()

    def kill(self, signal: int | str = signals.SIGTERM) -> None:
        """Send the process a signal. Unlike `Worker.kill`, this does not count as having asked for its end.

        Raises:
          ValueError: there is no such signal.
          PermissionError: the process belongs to another user.
        """
        self._worker._role.kill(self._worker, as_signal(signal))

    def __repr__(self) -> str:
        return f"<WorkerProcess pid {self.pid}>"


class Worker(Emitter):
    """A worker of the cluster: in the primary one of `cluster.workers`, in the worker `cluster.worker`.

    Attributes:
      id: 1, 2, 3, …, never reused.
      slot: 0, 1, 2, …: the lowest number that no living worker had when it was forked. The worker that comes in the
        place of another one has its slot, so that a cluster of N workers has the slots 0 to N - 1, whatever happens.
      process: its `WorkerProcess`.
      exited_after_disconnect: None until it disconnects or exits; then whether that was asked for.

    Emits, in the primary's dispatching thread: `online()`, `listening(address)`, `message(message, handle)`,
    `disconnect()`, `exit(code, signal)`, `hang(hang)`, `error(exception)`. In a worker: `message`, `disconnect`,
    `error`.
    Source: Node.js, cluster, class Worker.
    """

    def __init__(
        self, worker_id: int, slot: int, pid: int, role: Role, report: "Callable[[BaseException], None]"
    ) -> None:
        super().__init__(report)
        self.id = worker_id
        self.slot = slot
        self.process = WorkerProcess(self, pid, report)
        self.exited_after_disconnect: bool | None = None
        self._role = role
        self._state: State = "none"
        self._asked_to_end = False
        self._inherited = False  # from the last image of the primary: the script does not know of it
        self._covered = False  # another one holds its place: whoever replaces what crashes need not
        self._env: Mapping[str, str] | None = None  # that it was forked with

    @property
    def state(self) -> State:
        """ "none", "online", "listening", "disconnecting", "disconnected" or "dead"."""
        return self._state

    @property
    def suicide(self) -> bool | None:
        """Deprecated alias of `exited_after_disconnect`."""
        warnings.warn("suicide is deprecated; use exited_after_disconnect", DeprecationWarning, stacklevel=2)
        return self.exited_after_disconnect

    def send(
        self,
        message: object,
        handle: "Handle | HasFileno | None" = None,
        *,
        keep_open: bool = False,
        callback: "Callback | None" = None,
    ) -> bool:
        """Send a message to the worker (in the primary) or to the primary (in a worker). Any thread; never blocks.

        Args:
          message: what `settings.serialization` can encode.
          handle: a socket, a descriptor, or an object with fileno(), that goes along. It is closed here once queued.
          keep_open: leave the handle open here, as one without close() has to be.
          callback: called with None when the message is written, or with the exception when it has failed, later, in
            the thread that runs the handlers.

        Returns:
          False when more than 128 KiB wait to be written, or when the message failed and the callback will get the
          reason; True otherwise. Nothing is dropped either way.

        Raises:
          TypeError: the message cannot be encoded, or the handle not be closed; nothing is sent.
          ValueError: it is larger than `settings.max_message_size`, or the handle is a worker's end of a shared
            listener, which is no socket of its own under SCHED_RR; nothing is sent.
          ChannelClosedError: the channel is closed, and there is no callback to tell.

        Source: Node.js `worker.send()`, `subprocess.send()`.
        """
        return self._role.send(self, message, handle, keep_open, callback)

    def disconnect(self) -> "Worker":
        """Stop this worker gracefully. Asking again changes nothing.

        It gets no new connections, those that it has accepted may finish, then its channel closes, and its script ends
        with SystemExit(0) if it still runs. Connections of other origin, from a private listener (`cluster.exclusive`,
        SO_REUSEPORT, `share_ports=False`) or with a message, are not waited for.

        Returns:
          The worker itself, for chaining.

        Emits `disconnect`, on both sides, later.
        Source: Node.js `worker.disconnect()`.
        """
        self._role.disconnect(self)
        return self

    def kill(self, signal: int | str = signals.SIGTERM) -> None:
        """End the worker at once with a signal; `exited_after_disconnect` becomes True. A dead worker stays dead.

        Raises:
          ValueError: there is no such signal.
          PermissionError: the process belongs to another user.

        Source: Node.js `worker.kill()`.
        """
        number = as_signal(signal)
        self._asked_to_end = True
        self._role.kill(self, number)

    destroy = kill

    def is_connected(self) -> bool:
        """Whether the control channel is open."""
        return self._role.is_connected(self)

    def is_dead(self) -> bool:
        """Whether the process has ended."""
        return self._state == "dead"

    def _note_end(self) -> None:
        self.exited_after_disconnect = self._asked_to_end or self._covered

    def _step(self, step: Step) -> None:
        """Go on in its life.

        Raises:
          RuntimeError: the table has no such step from here; a defect of the library.
        """
        try:
            self._state = LIFE[self._state, step]
        except KeyError:
            raise RuntimeError(f"worker {self.id} cannot take the step {step!r} from {self._state!r}") from None

    def _emit_message(self, message: object, handle: Any) -> bool:
        """Returns whether anybody listens."""
        heard = "message" in self.process._events and self.process.emit("message", message, handle)
        return ("message" in self._events and self.emit("message", message, handle)) or heard

    def __repr__(self) -> str:
        return f"<Worker {self.id} pid {self.process.pid} {self._state}>"
