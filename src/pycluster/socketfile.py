"""The file of a Unix socket that workers share: it stays in its place while the primary listens there.

Many servers unlink an existing file before they bind (asyncio.create_unix_server, uvicorn, tornado, …), and some when
they close (asyncio from Python 3.13 on): the second worker would take away what the first one has bound. So the
primary keeps a hard link to the socket beside it, under a hidden name, and puts the file back from there: when a worker
joins the listener or leaves it, which is after whatever it has done to the file. connect(2) by either name reaches the
same listener. Between the worker's unlink and its bind, though, clients find no file for a moment.

Where the file system has no hard links, the file cannot be put back.

All that is done to files here is done with the rights of the worker that was the first to bind (see rights.py).
"""

import contextlib
import errno
import os
import socket
import stat

from . import native
from .rights import Rights, act_with
from .sockets import bind_path, in_reach, is_stale, own_umask

# How often to bind anew when the file is gone before there is a link to it: each time a worker of ours has removed it,
# and there are not that many which start at once.
BIND_TRIES = 100

Exported = tuple[bytes, bytes, tuple[int, int], Rights | None]


class SocketFile:
    """The file of a socket that this process has bound, and the link that protects it."""

    def __init__(self, path: bytes, rights: Rights | None) -> None:
        """The socket has just been bound there, with these rights.

        Raises:
          FileNotFoundError: somebody has removed it already.
        """
        self._path = path
        self._rights = rights
        directory, name = os.path.split(path)
        self._link = os.path.join(directory, b"." + name + b".pycluster")
        self._identity = _identity_of(path)
        try:
            _link_over(path, self._link)
        except FileNotFoundError:
            raise
        except OSError:
            self._link = b""  # no links here; without one the file is not put back

    def export(self) -> Exported:
        """What `adopt` takes."""
        return self._path, self._link, self._identity, self._rights

    @classmethod
    def adopt(cls, path: bytes, link: bytes, identity: tuple[int, int], rights: Rights | None) -> "SocketFile":
        """Own the file that the last image of this process has owned."""
        file = cls.__new__(cls)
        file._path, file._link, file._identity, file._rights = path, link, identity, rights
        return file

    def restore(self) -> None:
        """Put the file back if it is gone, or if the file of a dead socket lies there."""
        if not self._link or self._is_ours(self._path):
            return
        with contextlib.suppress(OSError):
            act_with(self._rights, self._put_back)

    def _put_back(self) -> None:
        try:
            os.link(self._link, self._path)
        except FileExistsError:
            with contextlib.suppress(OSError):
                if is_stale(self._path):
                    _link_over(self._link, self._path)
        except OSError:
            pass  # the link or the directory is gone: nothing is left to put back, or no place

    def remove(self) -> None:
        """Remove the file, unless it is somebody else's by now, and the link. Idempotent."""
        with contextlib.suppress(OSError):
            act_with(self._rights, self._remove)
        self._link = b""

    def _remove(self) -> None:
        for path in (self._path, self._link):
            with contextlib.suppress(OSError):
                if path and self._is_ours(path):
                    os.unlink(path)

    def _is_ours(self, path: bytes) -> bool:
        try:
            return _identity_of(path) == self._identity
        except OSError:
            return False


def bind_file(
    sock: socket.socket, path: bytes, over_stale: bool, umask: int | None, rights: Rights | None
) -> tuple[socket.socket, SocketFile]:
    """Bind a socket to an absolute path, which may be longer than MAX_PATH, and protect the file.

    Args:
      umask: what the file's mode is made with, None for this process's own.
      rights: of whom it is done for, None for this process's own.

    Returns:
      The socket, or another one where the file was removed before it could be protected, and the file.

    Raises:
      OSError: of bind(2), or of unlink(2) for a stale file; a socket that has been made here is closed.
    """
    return act_with(rights, lambda: _bind_file(sock, path, over_stale, umask, rights))


def _bind_file(
    sock: socket.socket, path: bytes, over_stale: bool, umask: int | None, rights: Rights | None
) -> tuple[socket.socket, SocketFile]:
    given = sock
    for _ in range(BIND_TRIES):
        try:
            with in_reach(path) as address:
                bind_path(sock, address, over_stale)
                if umask is not None:
                    _make_mode(sock, address, umask)
            return sock, SocketFile(path, rights)
        except BaseException as exception:
            if sock is not given:
                sock.close()
            if not isinstance(exception, FileNotFoundError) or not os.path.isdir(os.path.dirname(path)):
                raise
        # Nobody can have connected: it does not listen yet. A bound socket cannot be bound again.
        sock = native.Socket(given.family, given.type)
    raise OSError(errno.EADDRINUSE, f"{os.fsdecode(path)} is removed as often as it is bound")


def _make_mode(sock: socket.socket, path: bytes, umask: int) -> None:
    """Give the file that has just been made by bind(2) the mode that it has with another umask than this process's.

    Nobody can connect before it is done, since the socket does not listen yet. os.umask, around the bind, would hold
    for all threads: a worker could have the files that they make meanwhile open to all.

    Raises:
      FileNotFoundError: somebody has removed the file.
      OSError: of chmod(2), or for want of descriptors; the file is removed.
    """
    try:
        own = own_umask() or 0
        if own == umask:
            return
        # Never what a link leads to that somebody has put in its place.
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            mode = os.fstat(fd).st_mode
            if stat.S_ISSOCK(mode):
                # bind(2) begins with the mode of the socket itself, of which `own` has taken some away.
                taken = os.fstat(sock.fileno()).st_mode & own
                os.chmod(f"/proc/self/fd/{fd}", (stat.S_IMODE(mode) | taken) & ~umask)
        finally:
            native.close(fd)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def _link_over(source: bytes, target: bytes) -> None:
    """Make a hard link, atomically in the place of what is there."""
    new = target + b".new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    os.link(source, new)
    os.rename(new, target)


def _identity_of(path: bytes) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino
