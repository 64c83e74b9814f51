"""The worker's listening sockets, and the sharing of ports: methods of socket.socket that go to the primary.

In a worker `bind` of a TCP or Unix stream socket asks the primary, which binds the worker's own socket, with all its
options, or lets it join the listener that is bound there. `listen` puts the descriptor that the primary gives (a
handoff channel, or under SCHED_NONE the listening socket itself) in the place of the socket's, so that its number
stays. `bind` of a UDP socket does so at once: all workers have one socket. The methods are replaced, never the class:
`from socket import socket` and subclasses see them too. `_accept` is the one method that every `accept` comes down to
(trio and others call the base class's accept).

A socket that is shared itself never blocks, since all workers have one flag for that: who wants it to block waits in
Python's own poll, for FOREVER_S seconds, and is told that it has no timeout. What another worker has taken meanwhile
only makes it wait on.

Nothing here is installed in the primary.
"""

import _socket
import contextlib
import contextvars
import errno
import operator
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from . import _cluster, descriptors, native
from .sockets import MAX_NAME, MAX_PATH, bind_path, duplicate_listener, own_umask

# What is listened on: a port, (host, port), or the path or abstract name of a Unix socket.
Address = int | tuple[Any, ...] | str | bytes | os.PathLike[str] | os.PathLike[bytes]

# As Node.js: server.listen(), `backlog`.
DEFAULT_BACKLOG = 511

# The longest timeout that the socket module takes (INT_MAX milliseconds), and one that nobody else will think of.
FOREVER_S = 2147483.625

# Of a wait whose time is over: 0 would mean that it was none.
SHORTEST_S = 0.001

# What the kernel would say of the channel, and not of the listening socket that it stands for.
_TOLD_BY_US = (socket.SO_ACCEPTCONN, socket.SO_TYPE, socket.SO_DOMAIN, socket.SO_PROTOCOL)

_exclusive: contextvars.ContextVar[bool] = contextvars.ContextVar("pycluster_exclusive", default=False)


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Inside this, bind and listen stay private to this process. Follows the context (threads, asyncio tasks)."""
    token = _exclusive.set(True)
    try:
        yield
    finally:
        _exclusive.reset(token)


def is_exclusive() -> bool:
    """Whether bind and listen are private here, as `exclusive` says."""
    return _exclusive.get()


def is_shared(sock: socket.socket) -> bool:
    """Whether the port of this socket is shared."""
    return descriptors.find_any(sock) is not None


def accept_ready(sock: socket.socket) -> list[tuple[int, Any]]:
    """Take connections that are there from a shared listener, as `(fd, address)`, without waiting.

    Raises:
      OSError: of accept(2), for want of descriptors or memory.
    """
    receiver = descriptors.receiver_of(sock)
    if receiver is not None:
        return receiver.accept_many()
    try:
        return [sock._accept()]  # type: ignore[attr-defined]
    except BlockingIOError:
        return []


def open_listener(address: Address, backlog: int | None, index: int | None) -> socket.socket:
    """Open a listening TCP or Unix socket; in a worker a shared one, where port 0 is the listener number `index`.

    Raises:
      OSError: of socket(2), bind(2), listen(2), or getaddrinfo(3).
    """
    if isinstance(address, (int, tuple)):
        host, port, *rest = ("", address) if isinstance(address, int) else address
        family, resolved = socket.AF_INET, (host, port)
        if host:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            # With the scope that a host like fe80::1%eth0 has.
            family, resolved = found[0], (*found[4][:2], *(rest or found[4][2:]))
        sock = socket.socket(family, socket.SOCK_STREAM)
        with _closed_on_failure(sock):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if index is not None:
                _bind_shared(_inner(sock), resolved, index=index)
            else:
                sock.bind(resolved)
    else:
        sock = open_unix(os.fsencode(address))
    return _listening(sock, backlog)


def open_unix(path: bytes) -> socket.socket:
    """Open a Unix socket that is bound and does not listen yet, in the place of a stale file; in a worker a shared one.

    Raises:
      OSError: of socket(2), bind(2), or unlink(2).
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _closed_on_failure(sock):
        if _is_shared(_inner(sock), path):
            _bind_shared(_inner(sock), path, over_stale=True)
        else:
            bind_path(sock, path, over_stale=True)
    return sock


def open_descriptor(fd: int, backlog: int | None) -> socket.socket:
    """Open a listening socket on a duplicate of a descriptor; in a worker on the primary's, shared.

    Raises:
      OSError: EBADF, ENOTSOCK; EINVAL when it is no stream socket or not bound; of listen(2).
    """
    if descriptors.primary is None or _exclusive.get():
        return _listening(duplicate_listener(fd), backlog)
    bound = descriptors.primary.bind_descriptor(fd)
    sock = socket.socket() if bound.fd is None else socket.socket(fileno=bound.fd)
    with _closed_on_failure(sock):
        inner = _inner(sock)
        descriptors.put(inner, bound.key, _plain_getsockname(inner)).leave_strangers()
    return _listening(sock, backlog)


def _inner(sock: socket.socket) -> socket.socket:
    """The socket itself: gevent's has one in it, and is a wrapper that may go while that lives on."""
    return getattr(sock, "_sock", sock)


def _listening(sock: socket.socket, backlog: int | None) -> socket.socket:
    with _closed_on_failure(sock):
        sock.listen(DEFAULT_BACKLOG if backlog is None else backlog)
    return sock


@contextlib.contextmanager
def _closed_on_failure(sock: socket.socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        sock.close()
        raise


def install(primary: descriptors.Primary) -> None:
    """Share ports in this worker from now on."""
    descriptors.primary = primary
    replace_methods(native.Socket)


def replace_methods(socket_class: type[_socket.socket]) -> None:
    """Share the ports of sockets of this class from now on. `_real_close` is what its close comes down to."""
    for name, method in (
        ("bind", _bind),
        ("listen", _listen),
        ("_accept", _accept),
        ("getpeername", _getpeername),
        ("getsockname", _getsockname),
        ("getsockopt", _getsockopt),
        ("gettimeout", _gettimeout),
        ("timeout", property(_gettimeout)),
        ("settimeout", _settimeout),
        ("setblocking", _setblocking),
        ("shutdown", _shutdown),
        ("_real_close", _real_close),
        ("detach", _detach),
        ("dup", _dup),
    ):
        setattr(socket_class, name, method)


# The methods that take the place of socket.socket's.

_plain_bind = native.Socket.bind
_plain_listen = native.Socket.listen
_plain_accept = native.Socket._accept  # type: ignore[attr-defined]
_plain_gettimeout = native.Socket.gettimeout
_plain_settimeout = native.Socket.settimeout
_plain_setblocking = native.Socket.setblocking
_plain_kind: Callable[[socket.socket], int] = _socket.socket.type.__get__
_plain_getpeername = native.Socket.getpeername
_plain_getsockname = native.Socket.getsockname
_plain_getsockopt: Any = native.Socket.getsockopt
_plain_shutdown = native.Socket.shutdown
_plain_real_close = native.Socket._real_close  # type: ignore[attr-defined]
_plain_detach = native.Socket.detach
_plain_dup = native.Socket.dup


def _bind(self: socket.socket, address: Any, /) -> None:
    if _is_shared(self, address):
        _bind_shared(self, address)
    else:
        _plain_bind(self, address)


def _is_shared(sock: socket.socket, address: Any) -> bool:
    """Whether a bind to this address goes to the primary. What the socket module refuses does not."""
    if descriptors.primary is None or _exclusive.get():
        return False
    if sock.family == socket.AF_UNIX:
        return sock.type == socket.SOCK_STREAM and _is_name(address) and not _reuses_port(sock)
    return (
        sock.family in (socket.AF_INET, socket.AF_INET6)
        and sock.type in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
        and isinstance(address, tuple)
        and len(address) >= 2
        and isinstance(address[0], (str, bytes, bytearray))
        and hasattr(address[1], "__index__")
        and 0 < operator.index(address[1]) < 65536
        and not _reuses_port(sock)
    )


def _is_name(address: Any) -> bool:
    """Whether this is the path or the abstract name of a Unix socket; "" lets the kernel choose one."""
    if not isinstance(address, (str, bytes, bytearray, memoryview)):
        return False
    name = _encode(address)
    if name.startswith(b"\0"):
        return len(name) <= MAX_NAME
    return 0 < len(name) <= MAX_PATH and b"\0" not in name


def _encode(address: str | bytes | bytearray | memoryview) -> bytes:
    return os.fsencode(address) if isinstance(address, str) else bytes(address)


def _reuses_port(sock: socket.socket) -> bool:
    return bool(_plain_getsockopt(sock, socket.SOL_SOCKET, socket.SO_REUSEPORT))


def _bind_shared(sock: socket.socket, address: Any, *, index: int | None = None, over_stale: bool = False) -> None:
    assert descriptors.primary is not None
    if descriptors.find(sock) is not None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))  # as bind(2) answers for a bound socket
    wanted: tuple[Any, ...] | bytes
    local: str | bytes
    umask = None
    if sock.family != socket.AF_UNIX:
        wanted, local = _resolve(sock, address), ""
    elif (name := _encode(address)).startswith(b"\0"):
        wanted, local = name, name
    else:
        wanted, local = os.path.abspath(name), os.fsdecode(name)
        umask = own_umask()
    bound = descriptors.primary.bind(
        int(sock.family), int(sock.type), wanted, sock.fileno(), index=index, over_stale=over_stale, umask=umask
    )
    shared = descriptors.put(sock, bound.key, local or bound.address)
    if not shared.is_datagram:
        return
    if bound.fd is None:
        shared.listening = True
        shared.silence()
    else:
        shared.receive_from(bound.fd, None)
    sock.settimeout(_plain_gettimeout(sock))


def _resolve(sock: socket.socket, address: tuple[Any, ...]) -> tuple[Any, ...]:
    """The address with the host as a number, as the socket module's own bind does it."""
    host, port = address[:2]
    if not host:
        host = "0.0.0.0" if sock.family == socket.AF_INET else "::"
    else:
        name = host if isinstance(host, str) else bytes(host)
        host = socket.getaddrinfo(name, None, sock.family, sock.type)[0][4][0]
    return (host, operator.index(port), *address[2:])


def _listen(self: socket.socket, backlog: int = 128, /) -> None:
    shared = descriptors.find_any(self)
    if shared is None or descriptors.primary is None:
        return _plain_listen(self, backlog)
    if not -(2**31) <= backlog < 2**31:
        raise OverflowError(f"backlog {backlog} is out of range")
    ticket = descriptors.primary.listen(shared.key, backlog)
    if ticket is None:
        shared.listening = True
        shared.silence()
        return None
    fd, cell = ticket
    if shared.receive_from(fd, cell):
        self.settimeout(self.gettimeout())  # whether the descriptor blocks came with the new one
    return None


def _accept(self: socket.socket) -> tuple[int, Any]:
    shared = descriptors.find_any(self)
    if shared is None:
        return _plain_accept(self)  # type: ignore[no-any-return]
    try:
        if not shared.shut:
            if shared.receiver is None:
                return _accept_shared(self, shared)
            return shared.receiver.accept(_gettimeout(self))
    except OSError:
        if not shared.shut:
            raise
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))  # as accept(2) says when its listener is shut down


def _accept_shared(self: socket.socket, shared: descriptors.Shared) -> tuple[int, Any]:
    if shared.is_datagram or not shared.listening:
        return _plain_accept(self)  # type: ignore[no-any-return]
    timeout = self.gettimeout()
    deadline = time.monotonic() + (timeout or 0.0)
    while shared.receiver is None:
        try:
            return _cluster.accept_direct(shared.fd)
        except BlockingIOError:
            if timeout == 0:
                raise
        except OSError:
            if not shared.silent:
                raise
            continue  # it has just been taken off the descriptor; the receiver is about to be there
        left = 1.0 if timeout is None else deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        # Here, as the descriptor, which other workers share, does not block. Bounded: silence() may take its place.
        shared.poll(min(left, 1.0))
    # Silenced meanwhile.
    return shared.receiver.accept(timeout and max(deadline - time.monotonic(), SHORTEST_S))


def _gettimeout(self: socket.socket) -> float | None:
    timeout = _plain_gettimeout(self)
    return None if timeout == FOREVER_S else timeout


def _settimeout(self: socket.socket, timeout: float | None, /) -> None:
    if timeout is None and _never_blocks(self):
        timeout = FOREVER_S
    _plain_settimeout(self, timeout)


def _setblocking(self: socket.socket, flag: bool, /) -> None:
    if flag and _never_blocks(self):
        _plain_settimeout(self, FOREVER_S)
    else:
        _plain_setblocking(self, flag)


def _never_blocks(sock: socket.socket) -> bool:
    """Whether this is a socket that is shared itself: under SCHED_NONE, or of UDP."""
    shared = descriptors.find(sock)
    if shared is None and _plain_kind(sock) == socket.SOCK_DGRAM:
        shared = descriptors.find_any(sock)
    return shared is not None and shared.listening and shared.receiver is None


def _getsockname(self: socket.socket) -> Any:
    shared = descriptors.find(self)
    if shared is None:
        name = _plain_getsockname(self)
        if name or (shared := descriptors.find_any(self)) is None:
            return name
    return shared.address


def _getpeername(self: socket.socket) -> Any:
    name = _plain_getpeername(self)
    if not name and descriptors.find_any(self) is not None:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))  # ssl asks whether there is a handshake to be made
    return name


def _getsockopt(self: socket.socket, level: int, option: int, *rest: int) -> Any:
    if (
        level == socket.SOL_SOCKET
        and option in _TOLD_BY_US
        and (shared := descriptors.find_any(self)) is not None
        and not shared.is_datagram
    ):
        if option == socket.SO_ACCEPTCONN:
            return int(shared.listening)
        if option == socket.SO_TYPE:
            return int(self.type)
        if option == socket.SO_DOMAIN:
            return int(self.family)
        return self.proto or (0 if self.family == socket.AF_UNIX else socket.IPPROTO_TCP)
    return _plain_getsockopt(self, level, option, *rest)


def _shutdown(self: socket.socket, how: int, /) -> None:
    """Shut down for this worker alone: shutdown(2) would end the listener of all that have a duplicate of it."""
    # SHUT_WR harms no listener, and socketserver says it on each connection: no system call then to see what this is.
    shared = descriptors.find(self) if how == socket.SHUT_WR else descriptors.find_any(self)
    if shared is None or how not in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
        return _plain_shutdown(self, how)
    if shared.listening and how != socket.SHUT_WR:
        descriptors.shut(shared, lambda: _plain_shutdown(self, socket.SHUT_RDWR))
    if shared.is_datagram or not (shared.listening or shared.family == socket.AF_UNIX):
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))  # as shutdown(2) says, whatever it has done
    return None


def _real_close(self: socket.socket, _ss: Any = _socket.socket) -> None:
    shared = descriptors.find(self)
    if shared is None:
        _plain_real_close(self, _ss)
    else:
        descriptors.close(shared, lambda: _plain_real_close(self, _ss))


def _detach(self: socket.socket) -> int:
    if shared := descriptors.find(self):
        descriptors.leave_open(shared)
    return _plain_detach(self)


def _dup(self: socket.socket) -> socket.socket:
    if descriptors.find_any(self) is None:
        return _plain_dup(self)
    duplicate = self.__class__(self.family, self.type, self.proto, fileno=_socket.dup(self.fileno()))
    with _closed_on_failure(duplicate):
        descriptors.find_any(duplicate)
        duplicate.settimeout(self.gettimeout())
    return duplicate
