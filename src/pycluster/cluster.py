"""The cluster as the user sees it: one object per process, its role, and its events."""

import atexit
import contextlib
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

from . import _cluster, listener, takeover
from .child import Child, exit_status
from .counters import ClusterStats, make_counter, read_stats
from .current import Process
from .errors import NotPrimaryError, ReloadError
from .events import Emitter, log_exception
from .primary import Primary
from .protocol import Policy
from .reload import Reload
from .respawn import NEVER_UP
from .script import find_script
from .settings import Settings
from .signals import handling, hold_back, let_in
from .start import flush_standard_streams
from .stdio import fill_standard_descriptors
from .worker import Address, Worker

SCHED_NONE: Literal["none"] = "none"
SCHED_RR: Literal["rr"] = "rr"
POLICY_VARIABLE = "PYCLUSTER_SCHED_POLICY"

Handler = TypeVar("Handler", bound=Callable[..., object])


class Cluster(Emitter):
    """The cluster that this process belongs to, as its primary or as one of its workers.

    There is one per process: `pycluster.cluster`.

    Emits, in the primary: `setup(settings)`, `fork(worker)`, `online(worker)`, `listening(worker, address)`,
    `message(worker, message, handle)`, `disconnect(worker)`, `exit(worker, code, signal)`, `hang(worker, hang)` for a
    worker that hangs, if `settings.worker_timeout` is set (see `Hang`), and `error(exception)` for what a handler
    raises, if anyone listens for it (else it is logged to "pycluster").
    Source: Node.js, cluster.
    """

    SCHED_NONE = SCHED_NONE
    SCHED_RR = SCHED_RR

    def __init__(self) -> None:
        """
        Raises:
          ValueError: PYCLUSTER_SCHED_POLICY is neither "rr" nor "none".
        """
        super().__init__(self._report_exception)
        self._policy: Policy = _policy_of_environment()
        self._policy_frozen = False
        self._settings = Settings()
        self._primary: Primary | None = None
        self._reload: Reload | None = None
        self._child: Child | None = None
        self._counters: dict[str, _cluster.Counter] = {}
        self._has_region = False
        self._has_hooks = False
        self._runs_at_exit = False
        self._has_run = False
        self._listens_on_port_0 = 0

    # The role

    @property
    def is_primary(self) -> bool:
        """Whether this process forks workers, or could."""
        return self._child is None

    @property
    def is_worker(self) -> bool:
        """Whether this process is a worker."""
        return self._child is not None

    @property
    def is_master(self) -> bool:
        """Deprecated alias of `is_primary`."""
        warnings.warn("is_master is deprecated; use is_primary", DeprecationWarning, stacklevel=2)
        return self.is_primary

    @property
    def worker(self) -> Worker | None:
        """This process's `Worker` in a worker, None in the primary."""
        return None if self._child is None else self._child.worker

    @property
    def workers(self) -> Mapping[int, Worker]:
        """The workers by id, a read-only view; one that has disconnected and exited is not there any more.

        Raises:
          NotPrimaryError: in a worker.
        """
        return self._as_primary("workers").workers

    # Settings

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._settings

    def setup_primary(self, **settings: Any) -> None:
        """Change settings for later forks; those that are not named stay as they are. See `Settings`.

        Raises:
          NotPrimaryError: in a worker.
          TypeError, ValueError: an unknown name, or a wrong value; nothing is changed.

        Emits `setup(settings)` in the next dispatch.
        Source: Node.js `cluster.setupPrimary()`.
        """
        primary = self._as_primary("setup_primary")
        merged = self._settings.merged(settings)
        if self._has_region:
            for name in ("max_workers", "max_counters"):
                if getattr(merged, name) != getattr(self._settings, name):
                    raise ValueError(f"{name} is fixed once there is a worker or a counter; set it before")
        self._policy_frozen = True
        self._settings = primary.settings = merged
        primary.defer(lambda: self.emit("setup", merged))

    def setup_master(self, **settings: Any) -> None:
        """Deprecated alias of `setup_primary`."""
        warnings.warn("setup_master is deprecated; use setup_primary", DeprecationWarning, stacklevel=2)
        self.setup_primary(**settings)

    @property
    def scheduling_policy(self) -> Policy:
        """SCHED_RR: the primary hands connections out in turn. SCHED_NONE: the kernel picks the worker.

        Assignable until the first `fork` or `setup_primary`, then RuntimeError; another value is a ValueError.
        Source: Node.js `cluster.schedulingPolicy`.
        """
        return self._policy

    @scheduling_policy.setter
    def scheduling_policy(self, policy: Policy) -> None:
        self._as_primary("scheduling_policy")
        if policy not in (SCHED_RR, SCHED_NONE):
            raise ValueError(f"scheduling_policy takes SCHED_RR or SCHED_NONE, not {policy!r}")
        if self._policy_frozen:
            raise RuntimeError(
                "scheduling_policy is frozen once a worker has been forked or setup_primary called; set it before"
            )
        self._policy = policy

    # Workers

    def fork(self, env: Mapping[str, str] | None = None) -> Worker:
        """Start a worker: a process that runs the script again from the top, with `is_primary` false.

        Args:
          env: added to the worker's environment, and to that of each worker that comes in its place.

        Raises:
          NotPrimaryError: in a worker.
          TypeError, ValueError: `env` is not of strings that can be in an environment.
          ClusterError: `max_workers` run already, there is no script to run (REPL, notebook, `python -c`), or the
            template of the start method "forkserver" could not be started; its traceback is on stderr.
          OSError: the system has no process, memory or descriptor left; nothing stays behind.

        Emits `fork(worker)` in the next dispatch. Source: Node.js `cluster.fork()`.
        """
        primary = self._as_primary("fork")
        if env is not None:
            env = dict(env)  # the caller's may change, and those that come in this worker's place get the same
            for name, value in env.items():
                if not all(isinstance(each, str) for each in (name, value)):
                    raise TypeError(f"env takes a mapping of str to str, not {env!r}")
                if not name or "=" in name or "\0" in name + value:
                    raise ValueError(f"no environment can have {name!r} as {value!r}: see environ(7)")
        self._policy_frozen = True
        worker = primary.fork(env)
        self._need_implicit_run()
        return worker

    def disconnect(self, callback: Callable[[], object] | None = None) -> None:
        """Disconnect every worker; see `Worker.disconnect`.

        Args:
          callback: called when all are disconnected, in the next dispatch if there are none.

        Raises:
          NotPrimaryError: in a worker, which has `cluster.worker.disconnect()`.

        Source: Node.js `cluster.disconnect()`.
        """
        self._as_primary("disconnect").disconnect_all(callback)

    def reload(self, timeout: float = 60.0, callback: Callable[[ReloadError | None], object] | None = None) -> None:
        """Replace the workers that run by new ones, of new code. No connection is lost.

        One after the other: a new worker is forked, with the settings in force and the same `env`. Once that listens on
        all that the old one listens on, the old one is disconnected, and killed after `settings.graceful_timeout`; when
        it has ended, the next one's turn comes. Where the old one listens on nothing, the new one must have run for a
        second. A new worker that ends, or does not come up in time, is ended, and stops the reload: the old ones go on.

        With the start method "fork" workers have the modules of the primary. So under `run` and `serve` in the main
        thread, when the first new worker, a fresh interpreter here, is up, the primary executes itself anew: the same
        process with its listeners and workers runs the script again from the top, and the old workers are disconnected
        as those come up that it forks. Nothing else of the primary is kept: no thread, no open file, no `atexit`
        function. With "spawn" and "forkserver", and with `settings.exec`, the primary stays what it is.

        This only starts it; it goes on in the dispatches that follow. While one runs, one more is queued, for those
        that have been forked by now.

        Args:
          timeout: seconds that each new worker has to come up, or all that a primary that executes itself anew forks;
            large applications take half a minute to import.
          callback: called in the end, with None, or with what has stopped the reload; not by a primary that has
            executed itself anew meanwhile. Without a callback, what has stopped it is given to the `error` listeners,
            or logged to "pycluster".

        Raises:
          NotPrimaryError: in a worker.
          TypeError, ValueError: `timeout` is no positive number of seconds.
        """
        self._as_primary("reload")
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
            raise TypeError(f"reload takes a number of seconds as timeout, not {timeout!r}")
        if not 0 < timeout <= threading.TIMEOUT_MAX:
            raise ValueError(f"reload takes a positive number of seconds as timeout, not {timeout!r}")
        assert self._reload is not None
        self._reload.ask(timeout, callback)

    # Running

    def run(self) -> None:
        """Dispatch events until no worker is left, then close the listeners.

        Meanwhile SIGTERM and SIGINT disconnect all workers and kill after `settings.graceful_timeout` seconds those
        that are left; a second one kills at once. SIGHUP, which a terminal that closes sends too, is `reload()`.
        SIGTTIN forks one more worker; SIGTTOU disconnects the youngest, but never the last one, and kills it after
        `settings.graceful_timeout`. In another than the main thread no signal is handled.

        Raises:
          NotPrimaryError: in a worker.
          SystemExit: with status 3, when all workers are gone and `settings.respawn` has given up: none ever came up.
        """
        primary = self._as_primary("run")
        with self._running(primary):
            primary.dispatch_to_the_end()

    async def serve(self) -> None:
        """The same as `run`, in the running asyncio or uvloop loop."""
        from .aio import wait_in_loop

        primary = self._as_primary("serve")
        with self._running(primary):
            await wait_in_loop(primary.fileno(), lambda: primary.dispatch(0), lambda: primary.finished)

    def fileno(self) -> int:
        """For any other event loop: a descriptor that is readable when something is pending.

        Raises:
          NotPrimaryError: in a worker.
        """
        return self._as_primary("fileno").fileno()

    def dispatch(self, timeout: float | None = 0) -> None:
        """Handle what is pending, after waiting for it up to `timeout` seconds (None: for ever).

        Raises:
          NotPrimaryError: in a worker.
        """
        self._as_primary("dispatch").dispatch(timeout)

    @contextlib.contextmanager
    def _running(self, primary: Primary) -> Any:
        takeover.script_has_started()  # first: what ends run() by an exception, ends no worker gracefully
        self._has_run = True
        primary.stopping = False
        with takeover.passing_signals_on(), handling(self._answers(primary), primary.defer, primary.wakeup_fd):
            primary.running = True
            assert self._reload is not None
            primary.defer(self._reload.look_soon)
            try:
                yield
            finally:
                primary.running = False
            primary.close()
        if primary.respawner.given_up and not primary.stopping:
            raise SystemExit(NEVER_UP)

    def _answers(self, primary: Primary) -> dict[int, Callable[[], object]]:
        """What `run` and `serve` do when a signal comes."""
        return {
            signal.SIGTERM: primary.stop,
            signal.SIGINT: primary.stop,
            signal.SIGHUP: lambda: primary.on_hangup(),
            signal.SIGTTIN: lambda: primary.call_back(self.fork),
            signal.SIGTTOU: primary.retire_youngest,
        }

    def _need_implicit_run(self) -> None:
        if not self._runs_at_exit:
            self._runs_at_exit = True
            _run_at_exit(self._run_implicitly)

    def _run_implicitly(self) -> None:
        """At the end of the primary's script, as in Node.js; not when an exception has ended it."""
        if self.is_primary and self._primary is not None and not self._has_run and not hasattr(sys, "last_value"):
            try:
                self.run()
            except SystemExit as exception:
                # The interpreter is about to end with a status that it has fixed by now.
                atexit._run_exitfuncs()
                flush_standard_streams()
                os._exit(exit_status(exception))

    # Listening

    def listen(
        self,
        address: listener.Address | None = None,
        *,
        fd: int | None = None,
        backlog: int | None = None,
        exclusive: bool = False,
    ) -> socket.socket:
        """Open a listening TCP or Unix socket: in a worker one that is shared, else an ordinary one.

        Args:
          address: a port, `(host, port)`, or the path or abstract name of a Unix socket. Port 0 is shared too: the n-th
            such call in every worker gets one port. The file of a socket that no process has open any more is replaced;
            that of a shared one is removed when the last worker closes it or disconnects.
          fd: instead, a descriptor to listen on: in a worker one of the primary's, such as systemd has opened. It stays
            whose it is, and becomes non-blocking.
          backlog: as of listen(2); None for 511, as in Node.js. The largest that a worker asks for is in force.
          exclusive: in a worker, keep the socket private; `fd` is then the worker's own.

        Returns:
          A socket to pass as `sock=` to any server; the caller's to close.

        Raises:
          TypeError: another kind of address, or not exactly one of address and fd.
          OSError: of bind(2) and listen(2), wherever they were called; EBADF, ENOTSOCK or EINVAL for what is no bound
            stream socket.

        Source: Node.js `server.listen()`.
        """
        if (address is None) == (fd is None):
            raise TypeError("listen takes an address or fd=, one of them")
        if isinstance(address, bool) or not isinstance(address, (int, tuple, str, bytes, os.PathLike, type(None))):
            raise TypeError(f"listen takes a port, (host, port) or a path, not {address!r}")
        if isinstance(fd, bool) or not isinstance(fd, (int, type(None))):
            raise TypeError(f"listen takes the number of a descriptor as fd, not {fd!r}")
        private = exclusive or listener.is_exclusive() or self._child is None or not self._child.settings.share_ports
        on_port_0 = address == 0 or (isinstance(address, tuple) and address[1:2] == (0,))
        index = self._listens_on_port_0 if on_port_0 and not private else None
        with listener.exclusive() if private else contextlib.nullcontext():
            if fd is not None:
                return listener.open_descriptor(fd, backlog)
            assert address is not None
            sock = listener.open_listener(address, backlog, index)
        if index is not None:
            self._listens_on_port_0 += 1
        return sock

    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        """A context in which bind and listen stay private to this process.

        A UDP socket on a port of its own that is to be connected needs it: all workers have one socket, and connect(2)
        would tie all of them to that peer. As in Node.js, a multicast group can be joined only once on a shared one.
        """
        return listener.exclusive()

    # Counting

    def counter(self, name: str) -> _cluster.Counter:
        """The counter of that name, made when it is new. Any process and thread.

        Raises:
          ValueError: the name has not 1 to 63 bytes.
          ClusterError: there are `settings.max_counters` others.
        """
        counter = self._counters.get(name)
        if counter is None:
            self._need_region()
            counter = self._counters[name] = make_counter(name, self._settings.max_counters)
        return counter

    def stats(self) -> ClusterStats:
        """What each living worker has done, and totals over all workers. Any process and thread; no worker is asked."""
        self._need_region()
        return read_stats()

    # Inside

    def _as_primary(self, name: str) -> Primary:
        if self._child is not None:
            raise NotPrimaryError(f"cluster.{name} is the primary's; this is worker {self._child.worker.id}")
        if self._primary is None:
            self._primary = Primary(
                self._settings,
                self._policy,
                self.emit,
                self._report_exception,
                self._need_region,
                self._become_worker,
            )
            self._primary.on_hangup = self.reload
            self._reload = Reload(self._primary, self._report_reload, self._renews, self._renew)
        self._primary.policy = self._policy
        if not self._has_hooks:
            self._has_hooks = True
            os.register_at_fork(
                before=_cluster.lock_balancer,
                after_in_parent=_cluster.unlock_balancer,
                after_in_child=self._abandon_primary,
            )
            # Outside of the lock, as hooks before a fork run in reverse: a signal handler may run in the middle of it.
            os.register_at_fork(before=hold_back, after_in_parent=let_in, after_in_child=let_in)
        return self._primary

    def _need_region(self) -> None:
        if not self._has_region:
            fill_standard_descriptors()
            _cluster.create_region(self._settings.max_workers, self._settings.max_counters)
            self._has_region = True

    def _abandon_primary(self) -> None:
        """In every process that the primary forks, workers and others, and in what these fork in turn."""
        _cluster.abandon_balancer()  # without a primary too: the mutex has been locked for this fork
        if self._primary is not None:
            self._primary.abandon()
            takeover.abandon()  # after the signals have their previous handlers again, which may be of there
            self._primary = self._reload = None

    def _become_worker(
        self, worker_id: int, slot: int, index: int, channel: socket.socket, settings: Settings
    ) -> Child:
        """In a new worker, which owns its end of the control channel from now on."""
        self.forget_listeners()
        _cluster.close_region_descriptor()  # a forked one's; others have mapped the region and closed it
        self._has_region = True
        self._settings = settings
        self._child = Child(worker_id, slot, index, channel, settings, self._report_exception)
        self.on_exit = self._child.on_exit
        return self._child

    def _report_exception(self, exception: BaseException) -> None:
        if self.listeners("error"):
            self.emit("error", exception)
        else:
            log_exception(exception)

    def _renews(self) -> bool:
        """Whether new code needs a new primary: a copy of this one has its modules."""
        assert self._primary is not None
        settings = self._settings
        is_main_thread = threading.current_thread() is threading.main_thread()
        return settings.start_method == "fork" and settings.exec is None and self._primary.running and is_main_thread

    def _renew(self, timeout_s: float) -> None:
        assert self._primary is not None
        takeover.execute(self._primary, find_script(None), timeout_s)

    def _report_reload(self, error: ReloadError) -> None:
        if self.listeners("error"):
            self.emit("error", error)
        else:
            import logging  # only here: every worker would carry it

            logging.getLogger("pycluster").error("the reload has stopped: %s", error)


def _policy_of_environment() -> Policy:
    value = os.environ.get(POLICY_VARIABLE, SCHED_RR)
    if value == SCHED_RR:
        return SCHED_RR
    if value == SCHED_NONE:
        return SCHED_NONE
    raise ValueError(f"{POLICY_VARIABLE} takes {SCHED_RR!r} or {SCHED_NONE!r}, not {value!r}")


def _run_at_exit(function: Callable[[], None]) -> None:
    """Run it when the main thread's script has ended, before the interpreter shuts anything down.

    Too late for atexit: by then threading holds the main thread for ended, and workers that are forked in the implicit
    run would inherit that.
    """
    register: Callable[..., None] = threading._register_atexit  # type: ignore[attr-defined]
    register(function)


cluster = Cluster()
process = Process(lambda: cluster.worker)

__all__ = ["SCHED_NONE", "SCHED_RR", "Address", "Cluster", "cluster", "process"]
