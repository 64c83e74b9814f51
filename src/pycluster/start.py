"""Starting a worker's process: a copy of the primary, or a fresh interpreter.

`fork` copies the primary; `prepare_copy` then makes the copy look like a process that has just started. `spawn` starts
an interpreter on spawned.py, and tells it in its environment what a copy would know. For the third way, a copy of a
fresh interpreter, see forkserver.py.
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
from typing import TYPE_CHECKING, Any

import msgspec

from . import _cluster, adapt, native, protocol
from .errors import ClusterError
from .protocol import Policy
from .rights import drop_rights, groups_of
from .script import Script
from .settings import Settings, portable

if TYPE_CHECKING:
    from .stdio import WorkerStdio

VARIABLE = "PYCLUSTER_WORKER"


def spawn(
    told: protocol.Start, env: Mapping[str, str] | None, settings: Settings, stdio: "WorkerStdio"
) -> tuple[int, int]:
    """Start a fresh interpreter that becomes a worker. Primary only.

    Args:
      told: what it is to know. Its control channel and the shared region are borrowed.

    Returns:
      `(pid, pidfd)`, as `_cluster.fork` does.

    Raises:
      ClusterError: this process is no interpreter that could be started once more, or it is under gevent.
      OSError: no child is left behind.
    """
    stdin, stdout, stderr = stdio.descriptors
    return start_interpreter(
        "spawned.py",
        told,
        [told.script.path, *told.args],
        settings,
        env={**os.environ, **(env or {})},
        pass_fds=(told.channel, told.region),
        cwd=settings.cwd,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        user=settings.uid,
        group=settings.gid,
        extra_groups=groups_of(settings),
    )


def describe(
    worker_id: int,
    slot: int,
    index: int,
    channel: int,
    script: Script,
    args: list[str],
    settings: Settings,
    policy: Policy,
) -> protocol.Start:
    """What a worker is to know that is no copy of the primary.

    Args:
      index: of its slot in the shared region.
      channel: the worker's end of the control channel.
    """
    region, version = _cluster.region_to_inherit()
    return protocol.Start(
        id=worker_id,
        slot=slot,
        index=index,
        channel=channel,
        region=region,
        version=version,
        script=script,
        args=args,
        path=search_path(),
        settings=portable(settings),
        policy=policy,
    )


def search_path() -> list[str]:
    """`sys.path` as import sees it: without what is no text."""
    entries: list[object] = [*sys.path]
    return [entry for entry in entries if isinstance(entry, str)]


def start_interpreter(
    program: str,
    told: msgspec.Struct,
    command: list[str],
    settings: Settings,
    *,
    env: Mapping[str, str],
    **how: Any,
) -> tuple[int, int]:
    """Start a fresh interpreter on a file of this package, and tell it in its environment what it is to know.

    Args:
      command: the worker's script and its arguments, for whoever looks at the processes.
      how: further arguments of Popen.

    Returns, raises: as `spawn`.
    """
    if not sys.executable:
        raise ClusterError("an interpreter to start needs sys.executable, which is empty: Python is embedded here")
    if native.is_patched():
        # gevent's Popen forks in Python, and the hooks there close what is to be inherited.
        raise ClusterError(
            "no interpreter can be started where gevent has patched subprocess: fork with start_method='fork', and "
            "start the primary anew instead of reloading it"
        )
    import subprocess  # only here: a cluster that forks does not need it, and every worker would carry it

    # Ctrl-C must find the handler of the new process, not an interpreter that is about to start: it unblocks it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        process = subprocess.Popen(
            [
                sys.executable,
                *interpreter_flags(settings),
                os.path.join(os.path.dirname(__file__), program),
                *command,
            ],
            env={**env, VARIABLE: msgspec.json.encode(told).decode()},
            **how,
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


def interpreter_flags(settings: Settings) -> list[str]:
    """The flags of an interpreter to be started."""
    if settings.exec_argv is not None:
        return list(settings.exec_argv)
    import subprocess  # see start_interpreter

    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return flags


def flush_standard_streams() -> None:
    """Before a fork: what is buffered here must not be written by the copy once more."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def preload() -> None:
    """Before a copy is made: import what most workers would, each for itself.

    Measured with bench/micro/test_memory.py: an idle asyncio worker has 4.4 MB of its own, and 5.8 MB without this.
    """
    adapt.preload()
    # socket.getaddrinfo() wants it for every host, even for one in numbers.
    import encodings.idna  # noqa: F401


def prepare_copy(env: Mapping[str, str] | None, settings: Settings, stdio: "WorkerStdio") -> None:
    """Make a fresh process of a forked one, before anything of the worker's runs. Main thread."""
    _forget_signal_handlers()
    forget_event_loop()
    part_with_hub()
    _forget_exit_functions()
    # What the primary has made stays shared with it: the collector must not touch it.
    gc.freeze()
    stdio.install()
    if env is not None:
        os.environ.update(env)
    if settings.cwd is not None:
        os.chdir(settings.cwd)
    drop_rights(settings)


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


def forget_event_loop() -> None:
    """Let a copied process have no asyncio loop. Python 3.12 does this itself (gh-66285)."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None:
        asyncio._set_running_loop(None)
        policy = getattr(asyncio.events, "_event_loop_policy", None)
        if policy is not None and hasattr(policy, "_local"):
            policy._local = type(policy._local)()


def part_with_hub() -> None:
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
