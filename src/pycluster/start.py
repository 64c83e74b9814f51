"""Starting a worker's process: a copy of the primary, or a fresh interpreter.

`fork` copies the primary; `prepare_copy` then makes the copy look like a process that has just started. `spawn` starts
an interpreter on spawned.py, and tells it in its environment what a copy would know.
"""

import _signal  # type: ignore[import-not-found]
import atexit
import contextlib
import gc
import os
import signal
import sys
import threading
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from . import _cluster, native, protocol
from .errors import ClusterError
from .script import Script
from .settings import Settings

if TYPE_CHECKING:
    from .stdio import WorkerStdio

VARIABLE = "PYCLUSTER_WORKER"
_BOOTSTRAP = os.path.join(os.path.dirname(__file__), "spawned.py")


def spawn(
    worker_id: int,
    slot: int,
    index: int,
    channel: int,
    script: Script,
    args: list[str],
    env: Mapping[str, str] | None,
    settings: Settings,
    stdio: "WorkerStdio",
) -> tuple[int, int]:
    """Start a fresh interpreter that becomes a worker. Primary only.

    Args:
      index: of its slot in the shared region.
      channel: the worker's end of the control channel (borrowed).

    Returns:
      `(pid, pidfd)`, as `_cluster.fork` does.

    Raises:
      ClusterError: this process is no interpreter that could be started once more, or it is under gevent.
      OSError: no child is left behind.
    """
    if not sys.executable:
        raise ClusterError("start_method 'spawn' needs sys.executable, which is empty: Python is embedded here")
    if native.is_patched():
        # gevent's Popen forks in Python, and the hooks there close what is to be inherited.
        raise ClusterError("start_method 'spawn' cannot be used where gevent has patched subprocess; use 'fork'")
    import subprocess  # only here: a cluster that forks does not need it, and every worker would carry it

    region, version = _cluster.region_to_inherit()
    told = protocol.Start(
        id=worker_id,
        slot=slot,
        index=index,
        channel=channel,
        region=region,
        version=version,
        script=script,
        args=args,
        path=sys.path,
        settings={name: value for name, value in vars(settings).items() if name != "stdio"},
    )
    flags = settings.exec_argv
    if flags is None:
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    # Ctrl-C must find the worker's handler, not an interpreter that is about to start: spawned.py unblocks it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        stdin, stdout, stderr = stdio.descriptors
        process = subprocess.Popen(
            # The script and its arguments are for whoever looks at the processes.
            [sys.executable, *flags, _BOOTSTRAP, script.path, *args],
            env={**os.environ, **(env or {}), VARIABLE: msgspec.json.encode(told).decode()},
            cwd=settings.cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=(channel, region),
            user=settings.uid,
            group=settings.gid,
            extra_groups=_groups(settings),
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    process.returncode = 0  # how it ends is the pidfd's to tell; Popen would wait for it too, and take that from us
    try:
        return process.pid, os.pidfd_open(process.pid)
    except OSError:
        process.returncode = None
        process.kill()
        process.wait()
        raise


def flush_standard_streams() -> None:
    """Before a fork: what is buffered here must not be written by the copy once more."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def prepare_copy(env: Mapping[str, str] | None, settings: Settings, stdio: "WorkerStdio") -> None:
    """Make a fresh process of a forked one, before anything of the worker's runs. Main thread."""
    _forget_signal_handlers()
    _forget_event_loop()
    _part_with_hub()
    _forget_exit_functions()
    # What the primary has made stays shared with it: the collector must not touch it.
    gc.freeze()
    stdio.install()
    if env is not None:
        os.environ.update(env)
    if settings.cwd is not None:
        os.chdir(settings.cwd)
    _drop_rights(settings)


def leave_interrupts_to_the_primary() -> None:
    """A terminal's Ctrl-C goes to the primary and to the workers; the primary answers it for all of them.

    A handler, not SIG_IGN, which the programs that a worker starts would inherit.
    """
    signal.signal(signal.SIGINT, _do_nothing)


def _do_nothing(number: int, frame: object) -> None:
    pass


def _forget_signal_handlers() -> None:
    signal.set_wakeup_fd(-1)
    # The plain functions: signal's own make an enum of every number, and this is 64 times in every start of a worker.
    for number in range(1, signal.NSIG):
        if callable(_signal.getsignal(number)):
            _signal.signal(number, _signal.SIG_DFL)
    leave_interrupts_to_the_primary()
    _cluster.restore_signals()


def _forget_event_loop() -> None:
    """Python 3.12 does this itself (gh-66285)."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None:
        asyncio._set_running_loop(None)
        policy = getattr(asyncio.events, "_event_loop_policy", None)
        if policy is not None and hasattr(policy, "_local"):
            policy._local = type(policy._local)()


def _part_with_hub() -> None:
    """The hub of gevent that was running here has an epoll that the primary's has, too."""
    if gevent := sys.modules.get("gevent"):
        gevent.reinit()


def _forget_exit_functions() -> None:
    """The primary's atexit functions are not ours, nor are its temporary directories."""
    atexit._clear()
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    if logging := sys.modules.get("logging"):
        atexit.register(logging.shutdown)
    # The implicit run of the primary happens while its threading module shuts down.
    threading._SHUTTING_DOWN = False  # type: ignore[attr-defined]
    if futures := sys.modules.get("concurrent.futures.thread"):
        futures._shutdown = False  # type: ignore[attr-defined]
    if futures := sys.modules.get("concurrent.futures.process"):
        futures._global_shutdown = False  # type: ignore[attr-defined]


def _groups(settings: Settings) -> list[int] | None:
    """The supplementary groups of a worker with a user or group of its own; None to keep the primary's.

    The primary's would give it rights that its user has not. Only root may change them, and has any to lose by it.
    """
    if (settings.uid is None and settings.gid is None) or os.geteuid() != 0:
        return None
    return [] if settings.gid is None else [settings.gid]


def _drop_rights(settings: Settings) -> None:
    groups = _groups(settings)
    if groups is not None:
        os.setgroups(groups)
    if settings.gid is not None:
        os.setgid(settings.gid)
    if settings.uid is not None:
        os.setuid(settings.uid)
