"""The start method "forkserver", as the primary has it: the template, and what is asked of it.

The template is a fresh interpreter that has imported what workers need (template.py). It is started by the first fork,
and by the next one after it has died or been discarded. What it is asked for is a clone of itself, which becomes the
worker. A clone is a child of the primary, not of the template: workers go on when that dies.

    primary                       template                    worker
       │ fork()                       ·                           ·
       ├── starts ───────────────────>│ imports settings.preload  ·
       │<──────────────────── Ready ──┤                           ·
       ├── Clone, descriptors ───────>│                           ·
       │                              ├── clone(CLONE_PARENT) ───>│ becomes the worker
       │<──────────────────── Cloned ─┤                           │
       │<──────────────────────────────────────── Online ─────────┤

A template that is killed in the middle of it may have made the worker or not. The kernel writes the worker's process id
into the request's file before the worker runs. So once the template is dead the file tells, and the worker is taken as
it is: its channel and its slot are the request's, and it may have said that it is online.

All of it runs in the thread that forks, but for the template's end, which may be dispatched. Several threads may fork,
and a signal handler while its thread does: each request comes with a socket of its own for the answer.
"""

import contextlib
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from . import native, protocol
from .errors import ClusterError
from .loop import Loop
from .settings import Settings
from .start import interpreter_flags, search_path, start_interpreter

if TYPE_CHECKING:
    from .stdio import WorkerStdio

# A template that imports for longer hangs: so long does a fork wait for it, at most, and with it the whole primary.
START_S = 60.0
# A clone takes a millisecond or two. Whoever does not answer within this time is stopped, or out of its mind.
CLONE_S = 10.0
# More than a message of the template's has.
_MESSAGE_SIZE = 65536


class _Template(msgspec.Struct, eq=False):
    """A template that lives.

    Attributes:
      made_of: what another one would have to be started for.
      ended: whether somebody has begun to end it.
    """

    pidfd: int
    socket: socket.socket
    made_of: object
    ended: bool = False


class _Gone(Exception):
    """The template has died: another one may do what it was asked for."""


class Forkserver:
    """Starts workers as clones of a template. Owns the template, if there is one."""

    def __init__(self, loop: Loop) -> None:
        """`loop`: where the template's end is seen."""
        self._loop = loop
        self._template: _Template | None = None
        # What is open while somebody waits: for the next one's imports, or for an answer.
        self._opened: set[socket.socket] = set()

    def clone(
        self, told: protocol.Start, env: Mapping[str, str] | None, settings: Settings, stdio: "WorkerStdio"
    ) -> tuple[int, int]:
        """Start a worker.

        Args:
          told: what it is to know. Its control channel and the shared region are borrowed.

        Returns:
          `(pid, pidfd)`, as `_cluster.fork` does.

        Raises:
          ClusterError: there is no template, and none can be started, or it does not answer.
          OSError: no child is left behind.
        """
        try:
            return self._clone(told, env, settings, stdio)
        except _Gone:
            pass  # killed, perhaps since long, in a primary that does not dispatch
        try:
            return self._clone(told, env, settings, stdio)
        except _Gone:
            raise ClusterError("the template of start_method 'forkserver' has died twice while it was asked") from None

    def _clone(
        self, told: protocol.Start, env: Mapping[str, str] | None, settings: Settings, stdio: "WorkerStdio"
    ) -> tuple[int, int]:
        template = self._template_of(told, settings)
        environment = {os.fsencode(name): os.fsencode(value) for name, value in {**os.environ, **(env or {})}.items()}
        directory = _open_directory(settings.cwd)
        body = -1
        try:
            standard = [target if given is None else given for target, given in enumerate(stdio.descriptors)]
            clone = protocol.Clone(told, environment, directory is not None)
            body = os.memfd_create("pycluster-clone", os.MFD_CLOEXEC)
            with open(body, "wb", closefd=False) as file:
                file.write(bytes(protocol.CLONE_OFFSET) + msgspec.msgpack.encode(clone))
            descriptors = [body, told.channel, told.region, *standard]
            if directory is not None:
                descriptors.append(directory)
            try:
                self._ask(template, descriptors)
            except (_Gone, ClusterError):
                if not _clone_in(body):
                    raise
            except BaseException:
                _kill(_clone_in(body))
                raise
            pid = _clone_in(body)
            try:
                return pid, os.pidfd_open(pid)
            except OSError:
                _kill(pid)
                raise
        finally:
            for fd in (directory, body):
                if fd is not None and fd >= 0:
                    native.close(fd)

    def discard(self) -> None:
        """End the template, if there is one: the next fork starts another. Workers go on. Idempotent."""
        if self._template is not None:
            self._end(self._template)

    def abandon(self) -> None:
        """In a forked child: close the copies of what is open here."""
        for end in self._opened:
            end.close()
        self._opened.clear()
        if self._template is not None:
            self._template.socket.close()
            native.close(self._template.pidfd)
            self._template = None

    # The template

    def _template_of(self, told: protocol.Start, settings: Settings) -> _Template:
        """The template, which is started if there is none that has been made in the same way."""
        flags, preload = interpreter_flags(settings), list(settings.preload or ())
        # It keeps the rights that the primary may have given up since.
        made_of = (flags, preload, os.getresuid(), os.getresgid(), os.getgroups())
        while True:
            template = self._template
            if template is not None:
                if template.made_of == made_of and not _has_ended(template.pidfd):
                    return template
                self._end(template)
            ours, theirs = native.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._opened |= {ours, theirs}
            try:
                template = self._start(ours, theirs, told, settings, preload, made_of)
                if self._adopt(template):
                    return template
                self._end(template)
            finally:
                self._opened -= {ours, theirs}

    def _start(
        self,
        ours: socket.socket,
        theirs: socket.socket,
        told: protocol.Start,
        settings: Settings,
        preload: list[str],
        made_of: object,
    ) -> _Template:
        """Start one, on this pair of sockets, and wait until it is ready."""
        import subprocess  # only here: see start_interpreter

        with theirs:
            try:
                _, pidfd = start_interpreter(
                    "template.py",
                    protocol.Template(theirs.fileno(), search_path(), preload),
                    [told.script.path, *told.args],
                    settings,
                    env=os.environ,
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                )
            except BaseException:
                ours.close()
                raise
        template = _Template(pidfd, ours, made_of)
        ours.settimeout(START_S)
        try:
            said = ours.recv(_MESSAGE_SIZE)
        except BaseException as error:
            self._end(template)
            if isinstance(error, TimeoutError):
                raise ClusterError(
                    f"the template has imported preload {preload!r} for {START_S:g} s, and was killed; preload less"
                ) from None
            raise
        why = msgspec.msgpack.decode(said, type=protocol.Ready).error if said else None
        if why != "":
            how = self._end(template)
            raise ClusterError(f"the template could not start, with preload {preload!r}: {why or how}")
        ours.settimeout(CLONE_S)
        return template

    def _adopt(self, template: _Template) -> bool:
        """Have it for the next ones, too, until it ends. Returns whether nobody else has started one meanwhile."""
        self._loop.watch(template.pidfd, lambda _: self._end(template))
        try:
            self._loop.epoll.register(template.pidfd, select.EPOLLIN)
        except BaseException:
            self._end(template)
            raise
        if self._template is None and not template.ended:  # no call from here to the next line, and so nobody else
            self._template = template
            return True
        return False

    def _ask(self, template: _Template, descriptors: list[int]) -> None:
        """Have a clone made. When this raises anything, the template has ended, or has made none."""
        ours, theirs = native.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._opened |= {ours, theirs}
        try:
            with theirs:
                descriptors = [theirs.fileno(), *descriptors]
                socket.send_fds(template.socket, [b"\0"], descriptors, socket.MSG_NOSIGNAL)
            ours.settimeout(CLONE_S)
            said = ours.recv(_MESSAGE_SIZE)
            if not said:
                raise EOFError
            cloned = msgspec.msgpack.decode(said, type=protocol.Cloned)
        except BaseException as error:
            is_gone = isinstance(error, (EOFError, BrokenPipeError, ConnectionResetError))
            is_gone = is_gone or (template.ended and isinstance(error, OSError))  # by another thread
            self._end(template)  # or it may make what nobody waits for any more
            if is_gone:
                raise _Gone from error
            if isinstance(error, TimeoutError):
                raise ClusterError(
                    f"the template of start_method 'forkserver' has not answered for {CLONE_S:g} s, and was killed"
                ) from None
            raise
        finally:
            ours.close()
            self._opened -= {ours, theirs}
        if cloned.error:
            raise OSError(cloned.error, cloned.reason)

    def _end(self, template: _Template) -> str:
        """Kill it, if it lives, reap it, and close what is open. Returns how it has ended. Idempotent."""
        if template.ended:
            return "it has ended"
        template.ended = True
        if self._template is template:
            self._template = None
        self._loop.unwatch(template.pidfd)
        with contextlib.suppress(OSError):  # it has not been registered yet
            self._loop.epoll.unregister(template.pidfd)
        # A primary that was root when it started it may not kill it any more. It ends by itself then.
        template.socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(template.pidfd, signal.SIGKILL)
        try:
            ended = os.waitid(os.P_PIDFD, template.pidfd, os.WEXITED)
        except ChildProcessError:
            ended = None  # the user's code has waited for any child and got this one
        native.close(template.pidfd)
        template.socket.close()
        if ended is None:
            return "it has ended"
        if ended.si_code == os.CLD_EXITED:
            return f"it exited with status {ended.si_status}"
        return f"it was killed by signal {ended.si_status}"


def _clone_in(body: int) -> int:
    """The process id of the clone that was made for the request in this file; 0 if none was."""
    return int.from_bytes(os.pread(body, protocol.CLONE_OFFSET, 0), sys.byteorder)


def _kill(pid: int) -> None:
    """Kill a worker that nobody is to have, and reap it; 0 is none."""
    if pid == 0:
        return
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # it is a child, and the number is its own
        with contextlib.suppress(PermissionError):  # it has more rights by now: it ends with its channel
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _open_directory(path: str | None) -> int | None:
    """Where a worker is to go; None to let it stay where the template is, which is where the primary was."""
    try:
        return os.open("." if path is None else path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        if path is None:
            return None  # `sudo -u somebody` in root's home: nobody can go there, and one can still be there
        raise


def _has_ended(pidfd: int) -> bool:
    poller = native.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))
