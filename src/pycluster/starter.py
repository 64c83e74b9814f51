"""The start of a worker's process, by any start method: its control channel, its slot and its streams along with it.

The primary says which worker it is to be, and takes what has been started. In a copy of the primary (start method
"fork") the worker's life begins here, and ends here.
"""

import os
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from . import _cluster, native
from .errors import ClusterError
from .forkserver import Forkserver
from .loop import Loop
from .protocol import Policy
from .rights import Rights, rights_of
from .script import find_script
from .settings import Settings
from .start import describe, flush_standard_streams, preload, prepare_copy, spawn
from .stdio import WorkerStdio

if TYPE_CHECKING:
    from .child import Child


@dataclass
class Started:
    """A worker's process, and what the primary owns of it.

    Attributes:
      index: of its slot in the shared region.
      socket: the primary's end of the control channel.
      rights: which it has been given, None for the primary's.
    """

    pid: int
    pidfd: int
    index: int
    socket: socket.socket
    stdio: WorkerStdio
    rights: Rights | None


@dataclass(eq=False)
class _Start:
    """What is open for a worker while it is being started.

    Attributes:
      outer: the start in whose midst a signal handler begins this one, in the same thread.
    """

    ours: socket.socket
    theirs: socket.socket
    stdio: WorkerStdio
    outer: "_Start | None" = None

    def abandon(self) -> None:
        """In a forked child that is not this worker: close the copies."""
        self.stdio.discard()
        self.ours.close()
        self.theirs.close()


class Starter:
    """Starts the processes of workers. Owns the template, if there is one."""

    def __init__(self, loop: Loop, become_worker: "Callable[[int, int, int, socket.socket, Settings], Child]") -> None:
        """
        Args:
          loop: where the template's end is seen.
          become_worker: gives a forked worker its role, in the place of the primary's.
        """
        self._become_worker = become_worker
        self._forkserver = Forkserver(loop)
        # Other threads may fork meanwhile, and what their children kept open would not end with this process.
        self._starts: set[_Start] = set()
        # By thread, for whom it copies this process: that copy is to have all of it. The latest, where a signal handler
        # forks while the thread does.
        self._copying: dict[int, _Start] = {}

    def start(
        self,
        worker_id: int,
        slot: int,
        env: Mapping[str, str] | None,
        settings: Settings,
        policy: Policy,
        method: Literal["fork", "spawn", "forkserver"],
    ) -> Started:
        """Start a worker.

        Raises:
          ClusterError, OSError: as `Cluster.fork` does; nothing stays behind.
        """
        script = find_script(settings.exec)
        args = list(settings.args) if settings.args is not None else sys.argv[1:]
        try:
            stdio = WorkerStdio(settings.stdio, settings.silent)
        except ValueError as exception:
            raise ClusterError(f"settings.stdio names a file that cannot be used: {exception}") from exception
        try:
            ours, theirs = native.socketpair()
        except OSError:
            stdio.discard()
            raise
        index = _cluster.acquire_slot(worker_id, slot)
        begun = _Start(ours, theirs, stdio)
        self._starts.add(begun)
        try:
            if method == "fork":
                flush_standard_streams()
                preload()
                script.compile_ahead()
                begun.outer = self._copying.get(native.get_ident())
                self._copying[native.get_ident()] = begun
                pid, pidfd = _cluster.fork()
            else:
                told = describe(worker_id, slot, index, theirs.fileno(), script, args, settings, policy)
                start = spawn if method == "spawn" else self._forkserver.clone
                try:
                    pid, pidfd = start(told, env, settings, stdio)
                except UnicodeEncodeError as exception:
                    raise ClusterError(
                        f"{exception.object!r} is not UTF-8, and cannot be told to a fresh interpreter: rename it, or "
                        "use start_method='fork' and start the primary anew instead of reloading it"
                    ) from exception
                except (TypeError, ValueError) as exception:  # of Popen's, for what it is given
                    raise ClusterError(f"an interpreter cannot be started: {exception}") from exception
        except BaseException:
            self._forget(begun)  # before it is closed: a child must not close numbers that are free by then
            _cluster.release_slot(index)
            stdio.discard()
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            self._start_copy(worker_id, slot, index, theirs, ours, env, settings, stdio).run(script, args)
        theirs.close()
        self._forget(begun)
        return Started(pid, pidfd, index, ours, stdio, rights_of(settings))

    def _start_copy(
        self,
        worker_id: int,
        slot: int,
        index: int,
        theirs: socket.socket,
        ours: socket.socket,
        env: Mapping[str, str] | None,
        settings: Settings,
        stdio: WorkerStdio,
    ) -> "Child":
        """In the new process, whose at-fork hooks have closed what the primary had open."""
        try:
            ours.close()
            child = self._become_worker(worker_id, slot, index, theirs, settings)
            prepare_copy(env, settings, stdio)
            child.start()
        except BaseException:
            try:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(1)  # whatever the user's hook raises: it would unwind into the primary's script
        return child

    def _forget(self, begun: _Start) -> None:
        self._starts.discard(begun)
        if self._copying.get(native.get_ident()) is begun:
            del self._copying[native.get_ident()]
            if begun.outer is not None:
                self._copying[native.get_ident()] = begun.outer

    def discard_template(self) -> None:
        """Let the next worker of the start method "forkserver" be copied from a new template, which imports anew."""
        self._forkserver.discard()

    def abandon(self) -> None:
        """In a forked child: close the copies of what is open here."""
        self._forkserver.abandon()
        copied = self._copying.get(native.get_ident())
        for begun in self._starts:
            if begun is not copied:
                begun.abandon()
        self._starts.clear()
        self._copying.clear()
