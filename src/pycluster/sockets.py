"""Stream sockets as the system gives them, bound by address or by path, or opened by somebody else. Any role."""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator

from . import native

# The longest path that bind(2) takes, see unix(7): sun_path has 108 bytes, the last one for a NUL.
MAX_PATH = 107
# An abstract name begins with a NUL, and needs none at its end.
MAX_NAME = 108


def duplicate_listener(fd: int) -> socket.socket:
    """A socket on a duplicate of a descriptor, which was opened by somebody else to listen.

    Raises:
      OSError: EBADF, ENOTSOCK; EINVAL for a socket that is no stream socket, not bound, or connected: a worker with
        fewer rights than the primary must not get hold of the primary's own connections by their numbers.
    """
    try:
        duplicate = os.dup(fd)
    except OverflowError:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None
    try:
        sock = native.Socket(fileno=duplicate)
    except OSError:
        native.close(duplicate)
        raise
    internet = sock.family in (socket.AF_INET, socket.AF_INET6)
    if (
        not (internet or sock.family == socket.AF_UNIX)
        or sock.type != socket.SOCK_STREAM
        or not (sock.getsockname()[1] if internet else sock.getsockname())
        or _is_connected(sock)
    ):
        sock.close()
        raise OSError(errno.EINVAL, f"descriptor {fd} is no stream socket that is bound to listen")
    return sock


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def bind_path(sock: socket.socket, path: bytes, over_stale: bool) -> None:
    """Bind a socket to a path; `over_stale`: also where a stale file lies, see `is_stale`.

    Raises:
      OSError: of bind(2), or of unlink(2) for the stale file.
    """
    try:
        sock.bind(path)
    except OSError as exception:
        if exception.errno != errno.EADDRINUSE or not over_stale or not is_stale(path):
            raise
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        sock.bind(path)


def own_umask() -> int | None:
    """The umask, as proc(5) tells it: os.umask would change it, for all threads. None where it is not told.

    Raises:
      OSError: no descriptor is left.
    """
    with contextlib.suppress(FileNotFoundError), open("/proc/thread-self/status") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return None


def is_stale(path: bytes) -> bool:
    """Whether this is the file of a socket that no process has open any more.

    A datagram socket asks, and so disturbs nobody: a living stream socket there, listening or not, is EPROTOTYPE.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False  # connect(2) refuses other files as well
    except OSError:
        return False
    with native.Socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as client, in_reach(path) as address:
        return client.connect_ex(address) == errno.ECONNREFUSED


@contextlib.contextmanager
def in_reach(path: bytes) -> Iterator[bytes]:
    """The path in a form that fits into a socket's address.

    A worker's short relative path may be a long absolute one.
    """
    if len(path) <= MAX_PATH:
        yield path
        return
    directory, name = os.path.split(path)
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield b"/proc/self/fd/%d/%s" % (fd, name)
    finally:
        native.close(fd)
