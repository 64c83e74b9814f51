"""The primary re-executes itself in place, so that a reload under the start method "fork" runs new code everywhere.

execve(2) keeps the process: its pid, its children, and each descriptor that is not close-on-exec. So the old image of
the primary writes down what it knows of its workers and listeners, leaves exactly their descriptors open, and executes
a fresh interpreter on successor.py. That adopts all of it, starts the balancer again, and runs the script from the top.
Between the two, while the interpreter starts and imports the library (100 ms of a processor's time), connections wait
in the kernel's backlog, and what lies in the workers' channels is theirs. Everything else of the old image is gone
without a word: its threads, its other descriptors, what it had not written, its atexit functions.

What must not be in transit: the balancer's mutex is held from the first look at its tables to the execve, so its thread
can at most sleep. What a control channel has half read or half written goes along.

The workers of the old image serve on. The new script does not see them: its own `fork()`s start its workers, and the
old ones are disconnected as those come up (see reload.py). Only their messages reach its handlers. If the new script
ends before it runs the cluster, its image stays with the old workers and settings, for the next SIGHUP to try again.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any, Literal, NoReturn

import msgspec

from . import _cluster, native
from .channel import Channel
from .child import exit_status, users_part
from .errors import ReloadError
from .handles import DatagramHandle, Handle, RoundRobinHandle, SharedHandle
from .listeners import Listeners
from .member import Member
from .primary import Primary
from .protocol import TAKEOVER_VERSION, Policy
from .rights import Rights
from .script import Script, remember_main
from .settings import Settings, portable
from .socketfile import Exported, SocketFile
from .start import flush_standard_streams, search_path
from .worker import LEAVING, Address, State, Worker

if TYPE_CHECKING:
    from .cluster import Cluster

VARIABLE = "PYCLUSTER_SUCCESSOR"
# Another version of the library is refused by the worker that is spawned before: that runs the new one, and compares
# the versions of the shared region and of what is handed on. So does the new image, in case that the library has been
# replaced since then; it cannot go back, and ends, and so do the workers.
_BOOTSTRAP = os.path.join(os.path.dirname(__file__), "successor.py")

# What `run()` answers. These, and signals that the script has handlers for, are blocked around the execve, and wait in
# the new image until its script has handlers for them, or runs the cluster: their default is to end the process.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU)

# As this process was started: what the script has changed since, it will change again.
_ARGUMENTS = sys.argv[1:]
_ENVIRONMENT = dict(os.environb)
try:
    _DIRECTORY = os.getcwd()
except FileNotFoundError:
    _DIRECTORY = "/"

Kind = Literal["rr", "none", "udp"]
_KINDS: dict[Kind, type[Handle]] = {"rr": RoundRobinHandle, "none": SharedHandle, "udp": DatagramHandle}


class HandedWorker(msgspec.Struct):
    """A worker. Its descriptors, here and below, are those of the process, which keeps them."""

    id: int
    pid: int
    pidfd: int
    slot: int
    index: int
    state: State
    env: dict[str, str] | None
    serialization: Literal["msgpack", "json"]
    max_message_size: int
    channel: int
    wire: tuple[bytes, list[int | None], list[tuple[bytes, bytes, int, int]]]
    pipes: list[int | None]
    rights: Rights | None
    killed_at: float | None


class HandedHandle(msgspec.Struct):
    """A listening handle, and the channels of its workers, by id, if the balancer has it."""

    kind: Kind
    key: int
    name: Any
    sock: int
    address: Address
    file: Exported | None
    members: list[int]
    listening: list[int]
    backlog: int
    balanced: bool = False
    held: tuple[int, bytes] | None = None
    orphans: list[tuple[int, int, int, int]] = []
    channels: dict[int, tuple[int, int, int, int]] = {}


class Handed(msgspec.Struct):
    """All that one image of the primary leaves to the next."""

    region: int
    version: int
    settings: dict[str, Any]
    policy: Policy
    last_id: int
    last_key: int
    timeout_s: float
    signals: list[int]
    mask: list[int]
    script: Script
    workers: list[HandedWorker]
    handles: list[HandedHandle]

    def descriptors(self) -> list[int]:
        """Those that go along."""
        found: list[int | None] = [self.region]
        for worker in self.workers:
            found += [worker.pidfd, worker.channel, *worker.pipes, *worker.wire[1]]
            found += [fd for _, _, _, fd in worker.wire[2]]
        for handle in self.handles:
            found.append(handle.sock)
            if handle.held is not None:
                found.append(handle.held[0])
            for pair in [*handle.orphans, *handle.channels.values()]:
                found += pair[:2]
        return [fd for fd in found if fd is not None and fd >= 0]


# ---- The old image


def execute(primary: Primary, script: Script, timeout_s: float) -> NoReturn:
    """Become the next image of this process. Main thread, dispatching.

    Args:
      timeout_s: how long its workers have to come up.

    Raises:
      ReloadError: it cannot be, or a signal has asked for the end meanwhile; nothing has changed, but that nobody waits
        for a port any more.
    """
    import subprocess  # only here: every worker would carry it

    _need_room(primary)
    flush_standard_streams()
    primary._requests.refuse_waiting()
    opened: list[int] = []
    directory = None
    handled = {number for number in range(1, signal.NSIG) if callable(signal.getsignal(number))}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, handled)
    _cluster.lock_balancer()
    try:
        handed = _write_down(primary, script, timeout_s)
        handed.signals, handed.mask = sorted(handled), sorted(mask)
        state = os.memfd_create("pycluster-state", 0)
        opened.append(state)
        with open(state, "wb", closefd=False) as file:
            file.write(msgspec.msgpack.encode(handed))
        told = msgspec.json.encode({"takeover": TAKEOVER_VERSION, "state": state, "path": search_path()})
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        arguments = [sys.executable, *flags, _BOOTSTRAP, script.path, *_ARGUMENTS]
        inherited = handed.descriptors()
        directory = os.open(".", os.O_PATH | os.O_CLOEXEC)
        opened.append(directory)
        os.chdir(_DIRECTORY)
        try:
            for fd in inherited:
                os.set_inheritable(fd, True)
            # What is deferred is lost, which the next image makes up for, but not for the end. This is asked as late as
            # possible: handlers have run until the signals were blocked, and do when another thread takes a signal.
            if primary.must_stop:
                raise ReloadError("the cluster is to end")
            os.execve(sys.executable, arguments, {**_ENVIRONMENT, VARIABLE.encode(): told})
        finally:
            for fd in inherited:
                os.set_inheritable(fd, False)
            os.fchdir(directory)
    except (OSError, ValueError, TypeError) as exception:
        raise ReloadError(f"the primary cannot execute itself anew: {exception}") from exception
    finally:
        _cluster.unlock_balancer()
        for fd in opened:
            native.close(fd)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for member in primary.members:
            member.channel.thaw()
    raise AssertionError("unreachable")


def _need_room(primary: Primary) -> None:
    """The new image's script starts as many workers as serve now, or are about to, before any of the old ones leaves.

    The worker that has shown that the new code comes up is one of the old ones, most often one too many.
    """
    staying = {member.worker.slot for member in primary.members if member.worker.state not in LEAVING}
    olds, news = len(primary._members), len(staying | primary.respawner.slots)
    limit = primary.settings.max_workers
    if olds + news > limit:
        raise ReloadError(
            f"there is no room for {news} new workers beside the {olds} that run: settings.max_workers is {limit}; set "
            f"it to {olds + news} or more before the first fork"
        )


def _write_down(primary: Primary, script: Script, timeout_s: float) -> Handed:
    region, version = _cluster.region_to_inherit()
    listeners = primary._listeners
    names = {handle.key: name for name, handle in listeners._by_name.items()}
    return Handed(
        region=region,
        version=version,
        settings=portable(primary.settings),
        policy=primary.policy,
        last_id=primary._ids,
        last_key=listeners._keys,
        timeout_s=timeout_s,
        signals=[],
        mask=[],
        script=script,
        workers=[_write_worker_down(member) for member in primary.members],
        # Not those that are closed: what lies in their channels is the workers', who have their ends.
        handles=[_write_handle_down(handle, names[handle.key]) for handle in listeners._by_key.values()],
    )


def _write_worker_down(member: Member) -> HandedWorker:
    worker, channel = member.worker, member.channel
    pipes = (worker.process.stdin, worker.process.stdout, worker.process.stderr)
    return HandedWorker(
        id=worker.id,
        pid=worker.process.pid,
        pidfd=member.pidfd,
        slot=worker.slot,
        index=member.index,
        state=worker.state,
        env=None if worker._env is None else dict(worker._env),
        serialization=channel.serialization,
        max_message_size=channel.max_message_size,
        channel=-1 if channel.closed else channel.fileno(),
        wire=channel.export(),
        pipes=[_number_of(pipe) for pipe in pipes],
        rights=member.rights,
        killed_at=member.killed_at,
    )


def _number_of(pipe: IO[bytes] | None) -> int | None:
    try:
        return None if pipe is None else pipe.fileno()
    except ValueError:
        return None  # it is closed, or the user has detached what is below it


def _write_handle_down(handle: Handle, name: Any) -> HandedHandle:
    handed = HandedHandle(
        kind=next(kind for kind, made in _KINDS.items() if type(handle) is made),
        key=handle.key,
        name=name,
        sock=handle.sock.fileno(),
        address=handle.address,
        file=None if handle.file is None else handle.file.export(),
        members=sorted(handle.members),
        listening=sorted(handle.listening),
        backlog=handle.backlog,
    )
    if isinstance(handle, RoundRobinHandle) and handle._listener is not None:
        handed.balanced = True
        handed.held, handed.orphans = handle._listener.export()
        exported = {worker_id: channel.export() for worker_id, channel in handle._channels.items()}
        handed.channels = {worker_id: channel for worker_id, channel in exported.items() if channel is not None}
    return handed


# ---- The new image


def read(state: int) -> Handed:
    """What the old image has left, written down behind a descriptor, which is closed."""
    with open(state, "rb") as file:
        file.seek(0)
        handed = msgspec.msgpack.decode(file.read(), type=Handed)
    for fd in handed.descriptors():
        os.set_inheritable(fd, False)
    return handed


@contextlib.contextmanager
def succession(cluster: "Cluster", handed: Handed) -> Iterator[None]:
    """Adopt what the old image has left, while the new one's script starts. When that fails, stay with the old workers.

    Raises:
      SystemExit: the script has failed, and all workers have ended since.
    """
    remember_main(handed.script)
    # For when the script fails. Workers have the primary's own streams then: whoever would read their pipes is gone
    # with the last image, and so are the descriptors that `stdio` has named.
    last = Settings().merged({**handed.settings, "silent": False})
    # The script itself starts from the defaults, but with the region that there is.
    fresh = Settings(max_workers=last.max_workers, max_counters=last.max_counters)
    cluster._settings = fresh
    _cluster.adopt_region(handed.region, handed.version, last.max_workers, last.max_counters)
    cluster._has_region = True
    primary = cluster._as_primary("run")
    _adopt(handed, last, primary)
    assert cluster._reload is not None
    cluster._reload.succeed(handed.timeout_s)
    cluster._need_implicit_run()
    try:
        try:
            _catch_signals(cluster, primary, handed)  # and one that has waited may end the script before it begins
            yield
        finally:
            script_has_started()
    except BaseException as exception:
        if cluster._primary is not primary:
            raise  # in a process that the script has forked
        if cluster._has_run or (isinstance(exception, SystemExit) and primary.workers and not primary.stopping):
            raise  # as any script may end
        if cluster._settings is fresh:
            # The script has set none: what is started from now on comes in the place of the old workers.
            cluster._settings, cluster._policy = last, handed.policy
            primary.settings, primary.policy = last, handed.policy
        stops = primary.stopping  # a signal has asked for the end, and has ended the script
        status = 0 if stops else _show(exception) or 1
        for worker in list(primary.workers.values()):
            primary.retire(worker)
        if not stops:
            cluster._reload.give_up(
                ReloadError("the new version has ended before it ran the cluster; the workers that ran go on")
            )
        cluster.run()
        sys.exit(status)


def _show(exception: BaseException) -> int:
    """Say how a script has ended, as the interpreter would. Returns its status."""
    if isinstance(exception, SystemExit):
        return exit_status(exception)
    exception.__traceback__ = users_part(exception.__traceback__)
    sys.excepthook(type(exception), exception, exception.__traceback__)
    return 1


def _catch_signals(cluster: "Cluster", primary: Primary, handed: Handed) -> None:
    """Until the script has handlers of its own, or runs the cluster."""
    global _catcher, _starts
    answers = cluster._answers(primary)

    def catch(number: int, frame: object) -> None:
        if number not in answers:
            _caught.append(number)
            return
        primary.defer(answers[number])
        if _starts and number in (signal.SIGTERM, signal.SIGINT):
            primary.stopping = True
            raise SystemExit(0)

    _catcher, _starts = catch, True
    for number in {*SIGNALS, *handed.signals}:
        signal.signal(number, catch)
    signal.pthread_sigmask(signal.SIG_SETMASK, handed.mask)


_catcher: Callable[[int, Any], None] | None = None
_caught: list[int] = []
_starts = False  # the script, which a signal that asks for the end ends first


def script_has_started() -> None:
    """Let no signal end the script any more: it runs the cluster, or has ended."""
    global _starts
    _starts = False


@contextlib.contextmanager
def passing_signals_on() -> Iterator[None]:
    """While the cluster runs: the script has its handlers by now, or will have none, and gets what has been caught.

    Where this is no new image, or not the main thread, nothing happens.
    """
    if _catcher is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _uncatch(set(range(1, signal.NSIG)) - {*SIGNALS})
    try:
        yield
    finally:
        _uncatch(set(SIGNALS))


def abandon() -> None:
    """In a forked child: catch no signal for the primary any more."""
    _caught.clear()
    if _catcher is not None:
        _uncatch(set(range(1, signal.NSIG)))


def _uncatch(numbers: set[int]) -> None:
    for number in numbers:
        if signal.getsignal(number) is _catcher:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        elif number in _caught:
            _caught.remove(number)
            signal.raise_signal(number)


def _adopt(handed: Handed, settings: Settings, primary: Primary) -> None:
    """Give a fresh primary the workers and the listeners of the last image, and start the balancer."""
    primary._ids = handed.last_id
    for handed_worker in handed.workers:
        _adopt_worker(handed_worker, primary)
    if any(handle.balanced for handle in handed.handles):
        _cluster.start_balancer(settings.max_pending)
    listeners = primary._listeners
    listeners._keys = handed.last_key
    indices = {worker.id: worker.index for worker in handed.workers}
    for handle in handed.handles:
        _adopt_handle(handle, listeners, indices)


def _adopt_worker(handed: HandedWorker, primary: Primary) -> None:
    _cluster.adopt_slot(handed.index)
    worker = Worker(handed.id, handed.slot, handed.pid, primary, primary._report)
    worker._env = handed.env
    worker._state = handed.state
    worker._asked_to_end = handed.state in LEAVING
    worker._inherited = worker._covered = True  # the script forks its own, and need not replace this one
    modes = ("wb", "rb", "rb")
    worker.process.stdin, worker.process.stdout, worker.process.stderr = (
        None if fd is None else os.fdopen(fd, mode, 0 if mode == "wb" else -1)
        for fd, mode in zip(handed.pipes, modes, strict=True)
    )
    if handed.channel >= 0:
        sock = native.Socket(fileno=handed.channel)
    else:
        sock, peer = native.socketpair()
        peer.close()
    channel = Channel(
        sock,
        primary._loop.poll,
        handed.index,
        serialization=handed.serialization,
        max_message_size=handed.max_message_size,
        defer=primary._defer_callback,
    )
    if handed.channel >= 0:
        channel.adopt(*handed.wire)
    else:
        channel.close()
    primary.enroll(Member(worker, handed.index, handed.pidfd, channel, handed.rights))
    if handed.killed_at is not None:
        primary.kill_later(handed.id, handed.killed_at - time.monotonic())
    for pipe in (worker.process.stdout, worker.process.stderr):
        if pipe is not None:
            _drain(pipe, primary)


def _drain(pipe: IO[bytes], primary: Primary) -> None:
    """Read what nobody reads any more: a worker must not wait for that."""

    def read() -> None:
        if not os.read(pipe.fileno(), 65536):
            primary.unwatch(pipe.fileno())
            pipe.close()

    primary.watch(pipe.fileno(), read)


def _adopt_handle(handed: HandedHandle, listeners: Listeners, indices: dict[int, int]) -> None:
    file = None if handed.file is None else SocketFile.adopt(*handed.file)
    handle = _KINDS[handed.kind](handed.key, native.Socket(fileno=handed.sock), handed.address, file)
    handle.members.update(worker_id for worker_id in handed.members if worker_id in indices)
    handle.listening.update(worker_id for worker_id in handed.listening if worker_id in indices)
    handle.backlog = handed.backlog
    listeners._by_key[handed.key] = listeners._by_name[_as_tuples(handed.name)] = handle
    if handed.balanced:
        assert isinstance(handle, RoundRobinHandle)
        handle._listener = _cluster.Listener(handed.sock)
        handle._listener.adopt(handed.held, handed.orphans)
        for worker_id, channel in handed.channels.items():
            handle._channels[worker_id] = _cluster.HandoffChannel(handle._listener, indices[worker_id], channel)


def _as_tuples(name: Any) -> Any:
    """A handle's name, which is a key, as it was before it was encoded."""
    return tuple(map(_as_tuples, name)) if isinstance(name, list) else name
