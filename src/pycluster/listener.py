"""The worker's listening sockets, and the sharing of ports: methods of socket.socket that go to the primary.

In a worker `bind` of a TCP socket asks the primary, which binds the worker's own socket, with all its options, or lets
it join the listener that is bound there. `listen` puts the descriptor that the primary gives (a handoff channel, or
under SCHED_NONE the listening socket itself) in the place of the socket's, so that its number stays. The methods are
replaced, never the class: `from socket import socket` and subclasses see them too. `_accept` is the one method that
every `accept` comes down to (trio and others call the base class's accept).

Nothing here is installed in the primary.
"""

import _socket
import contextlib
import contextvars
import errno
import os
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from . import _cluster

# As Node.js: server.listen(), `backlog`.
DEFAULT_BACKLOG = 511

# What the kernel would say of the channel, and not of the listening socket that it stands for.
_TOLD_BY_US = (socket.SO_ACCEPTCONN, socket.SO_TYPE, socket.SO_DOMAIN, socket.SO_PROTOCOL)

_exclusive: contextvars.ContextVar[bool] = contextvars.ContextVar("pycluster_exclusive", default=False)


class Bound(NamedTuple):
    """The primary's answer to a bind."""

    key: int
    address: Any


class Primary(Protocol):
    """What this room asks of the primary; `Child` does the asking."""

    def bind(self, family: int, kind: int, address: Any, index: int | None, fd: int) -> Bound: ...

    def listen(self, key: int, backlog: int) -> tuple[int, int | None] | None: ...

    def release(self, key: int) -> None: ...

    def defer(self, function: Callable[[], object]) -> None: ...


class Shared:
    """A descriptor of this worker whose port is shared. Duplicates of one descriptor have one key."""

    def __init__(self, fd: int, bound: Bound, owner: socket.socket | None) -> None:
        self.fd = fd
        self.key = bound.key
        self.address = bound.address
        self.identity = _identity_of(fd)
        self.listening = False
        self.cell: int | None = None
        self.receiver: _cluster.Receiver | None = None
        self.silent = False
        # None: the descriptor lives on without a socket object of Python's that would tell of its end.
        self.owner = None if owner is None else weakref.ref(owner, lambda _: _forget(self))

    def receive_from(self, fd: int, cell: int | None) -> None:
        """Put the descriptor that the primary gave in the place of this one. `cell`: see the core's Receiver."""
        os.dup2(fd, self.fd, inheritable=False)
        self.identity = _identity_of(self.fd)
        self.cell = cell
        if cell is not None:
            self.receiver = _cluster.Receiver(self.fd, cell)
        self.listening = True

    def adopt(self, fd: int, owner: socket.socket | None) -> "Shared":
        """Share a duplicate of this descriptor, too."""
        twin = _shared[fd] = Shared(fd, Bound(self.key, self.address), owner)
        twin.listening = self.listening
        twin.cell = self.cell
        if self.cell is not None:
            twin.receiver = _cluster.Receiver(fd, self.cell)
        return twin

    def adopt_duplicates(self) -> None:
        """Find the duplicates that nobody has told of: what is done to all of one key must be done to them."""
        if self.silent:
            return  # all silent descriptors are duplicates of one
        for name in os.listdir("/proc/self/fd"):
            fd = int(name)
            with contextlib.suppress(OSError):  # closed meanwhile
                if fd not in _shared and _identity_of(fd) == self.identity:
                    self.adopt(fd, None)

    @property
    def waiting(self) -> bool:
        """Whether a connection lies in the channel."""
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        return any(event & select.POLLIN and not event & select.POLLHUP for _, event in poller.poll(0))

    def silence(self) -> None:
        """Never be readable again: a server that goes on polling this descriptor sleeps.

        An end of file would stay readable and make http.server's and asyncio's loops spin. The epolls of this process
        are told first, since they would go on watching the old socket as long as another process has it open.
        """
        with _closing:
            if self.silent or _shared.get(self.fd) is not self:
                return
            self.silent = True
            _unwatch(self.fd)
            os.dup2(_quiet_descriptor(), self.fd, inheritable=False)
            self.identity = _identity_of(self.fd)
            if self.receiver is None:
                self.receiver = _cluster.Receiver(self.fd, 0)  # accept waits there as on a channel where nothing comes


_shared: dict[int, Shared] = {}
# Held while a shared socket is closed here, or silenced by the control thread: a number that has been closed may be
# another file's at once.
_closing = threading.RLock()
_primary: Primary | None = None
_quiet: tuple[socket.socket, socket.socket] | None = None


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Inside this, bind and listen stay private to this process. Follows the context (threads, asyncio tasks)."""
    token = _exclusive.set(True)
    try:
        yield
    finally:
        _exclusive.reset(token)


def shared_sockets() -> list[Shared]:
    """The shared descriptors of this worker that listen, duplicates included."""
    with _closing:
        for shared in list(_shared.values()):
            if shared.listening:
                shared.adopt_duplicates()
        return [shared for shared in _shared.values() if shared.listening]


def is_exclusive() -> bool:
    """Whether bind and listen are private here, as `exclusive` says."""
    return _exclusive.get()


def is_shared(sock: socket.socket) -> bool:
    """Whether the port of this socket is shared."""
    return _find_any(sock) is not None


def accept_ready(sock: socket.socket) -> list[tuple[int, Any]]:
    """Take connections that are there from a shared listener, as `(fd, address)`, without waiting.

    Raises:
      OSError: of accept(2), for want of descriptors or memory.
    """
    receiver = receiver_of(sock)
    if receiver is not None:
        return receiver.accept_many()
    try:
        return [sock._accept()]  # type: ignore[attr-defined]
    except BlockingIOError:
        return []


def receiver_of(sock: socket.socket) -> _cluster.Receiver | None:
    """The channel that this socket accepts from, if it is one."""
    shared = _find(sock)
    return None if shared is None else shared.receiver


def open_listener(address: int | tuple[Any, ...], backlog: int | None, index: int | None) -> socket.socket:
    """Open a listening TCP socket; in a worker a shared one, where port 0 is the listener number `index`.

    Raises:
      OSError: of socket(2), bind(2), listen(2), or getaddrinfo(3).
    """
    host, port = ("", address) if isinstance(address, int) else address[:2]
    family = socket.AF_INET
    if host:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if index is not None and port == 0 and _primary is not None:
            _bind_shared(sock, (host, port), index)
        else:
            sock.bind((host, port))
        sock.listen(DEFAULT_BACKLOG if backlog is None else backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def install(primary: Primary) -> None:
    """Share ports in this worker from now on."""
    global _primary
    _primary = primary
    for name, method in (
        ("bind", _bind),
        ("listen", _listen),
        ("_accept", _accept),
        ("getsockname", _getsockname),
        ("getsockopt", _getsockopt),
        ("settimeout", _settimeout),
        ("setblocking", _setblocking),
        ("_real_close", _real_close),
        ("detach", _detach),
        ("dup", _dup),
    ):
        setattr(socket.socket, name, method)


def abandon() -> None:
    """In a child that this worker forks on its own: it is no worker, and holds none of the descriptors open."""
    global _primary
    _primary = None
    for shared in _shared.values():
        os.dup2(_quiet_descriptor(), shared.fd, inheritable=False)
    _shared.clear()


# The methods that take the place of socket.socket's.

_plain_bind = socket.socket.bind
_plain_listen = socket.socket.listen
_plain_accept = socket.socket._accept  # type: ignore[attr-defined]
_plain_settimeout = socket.socket.settimeout
_plain_setblocking = socket.socket.setblocking
_plain_getsockname = socket.socket.getsockname
_plain_getsockopt: Any = socket.socket.getsockopt
_plain_real_close = socket.socket._real_close  # type: ignore[attr-defined]
_plain_detach = socket.socket.detach
_plain_dup = socket.socket.dup


def _bind(self: socket.socket, address: Any, /) -> None:
    if _primary is None or _exclusive.get() or not _is_sharable(self, address):
        return _plain_bind(self, address)
    return _bind_shared(self, address, None)


def _is_sharable(sock: socket.socket, address: Any) -> bool:
    return (
        sock.family in (socket.AF_INET, socket.AF_INET6)
        and sock.type == socket.SOCK_STREAM
        and isinstance(address, tuple)
        and len(address) >= 2
        and isinstance(address[0], str)
        and isinstance(address[1], int)
        and 0 < address[1] < 65536
        and not _plain_getsockopt(sock, socket.SOL_SOCKET, socket.SO_REUSEPORT)
    )


def _bind_shared(sock: socket.socket, address: tuple[Any, ...], index: int | None) -> None:
    assert _primary is not None
    if _find(sock) is not None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))  # as bind(2) answers for a bound socket
    resolved = _resolve(sock, address)
    bound = _primary.bind(int(sock.family), int(sock.type), resolved, index, sock.fileno())
    _shared[sock.fileno()] = Shared(sock.fileno(), bound, sock)


def _resolve(sock: socket.socket, address: tuple[Any, ...]) -> tuple[Any, ...]:
    """The address with the host as a number, as the socket module's own bind does it."""
    host, port = address[:2]
    if host == "":
        host = "0.0.0.0" if sock.family == socket.AF_INET else "::"
    else:
        host = socket.getaddrinfo(host, None, sock.family, sock.type)[0][4][0]
    return (host, port, *address[2:])


def _listen(self: socket.socket, backlog: int = 128, /) -> None:
    shared = _find_any(self)
    if shared is None or _primary is None:
        return _plain_listen(self, backlog)
    if not -(2**31) <= backlog < 2**31:
        raise OverflowError(f"backlog {backlog} is out of range")
    ticket = _primary.listen(shared.key, backlog)
    if ticket is None:
        shared.listening = True
        shared.silence()
        return None
    fd, cell = ticket
    try:
        if not shared.listening:
            shared.receive_from(fd, cell)
            self.settimeout(self.gettimeout())  # whether the descriptor blocks came with the new one
    finally:
        os.close(fd)
    return None


def _accept(self: socket.socket) -> tuple[int, Any]:
    shared = _find_any(self)
    if shared is None:
        return _plain_accept(self)  # type: ignore[no-any-return]
    if shared.receiver is not None:
        return shared.receiver.accept(self.gettimeout())
    if not shared.listening:
        return _plain_accept(self)  # type: ignore[no-any-return]
    timeout = self.gettimeout()
    deadline = None if timeout is None else time.monotonic() + timeout
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
        left = 1.0 if deadline is None else deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        _wait_readable(shared, min(left, 1.0))
    return shared.receiver.accept(timeout)  # silenced meanwhile


def _wait_readable(shared: Shared, seconds: float) -> None:
    """Block where the descriptor, which other workers share, does not. Bounded: silence() may have taken its place."""
    poller = select.poll()
    poller.register(shared.fd, select.POLLIN)
    poller.poll(seconds * 1000)


def _settimeout(self: socket.socket, timeout: float | None, /) -> None:
    _plain_settimeout(self, timeout)
    _unblock_shared(self)


def _setblocking(self: socket.socket, flag: bool, /) -> None:
    _plain_setblocking(self, flag)
    _unblock_shared(self)


def _unblock_shared(sock: socket.socket) -> None:
    """Under SCHED_NONE all workers share one flag, and one that blocks must not make another one block."""
    shared = _find(sock)
    if shared is not None and shared.listening and shared.receiver is None:
        os.set_blocking(shared.fd, False)


def _getsockname(self: socket.socket) -> Any:
    shared = _find(self)
    if shared is None:
        name = _plain_getsockname(self)
        if name or (shared := _find_any(self)) is None:
            return name
    return shared.address


def _getsockopt(self: socket.socket, level: int, option: int, *rest: int) -> Any:
    if level == socket.SOL_SOCKET and option in _TOLD_BY_US and (shared := _find_any(self)) is not None:
        if option == socket.SO_ACCEPTCONN:
            return int(shared.listening)
        if option == socket.SO_TYPE:
            return int(self.type)
        if option == socket.SO_DOMAIN:
            return int(self.family)
        return self.proto or socket.IPPROTO_TCP
    return _plain_getsockopt(self, level, option, *rest)


def _real_close(self: socket.socket, _ss: Any = _socket.socket) -> None:
    shared = _find(self)
    if shared is None:
        _plain_real_close(self, _ss)
        return
    with _closing:
        shared.adopt_duplicates()
        _shared.pop(shared.fd, None)
        _plain_real_close(self, _ss)
    _release(shared)  # after the close: what lies in the channel is the primary's now


def _detach(self: socket.socket) -> int:
    if shared := _find(self):
        shared.owner = None  # the descriptor lives on, whatever becomes of this object
    return _plain_detach(self)


def _dup(self: socket.socket) -> socket.socket:
    duplicate = _plain_dup(self)
    if _find_any(duplicate) is not None:
        _unblock_shared(duplicate)
    return duplicate


def _find(sock: socket.socket) -> Shared | None:
    """What is known to be shared under this socket's descriptor."""
    shared = _shared.get(sock.fileno())
    if shared is not None and shared.owner is None and _identity_of(shared.fd) != shared.identity:
        _forget(shared)  # closed by its number, which is another file's now
        return None
    return shared


def _find_any(sock: socket.socket) -> Shared | None:
    """The same, and what is a duplicate of a shared descriptor (dup, fromfd) that nobody has told of."""
    shared = _find(sock)
    if shared is None and _shared and sock.fileno() >= 0:
        identity = _identity_of(sock.fileno())
        with _closing:
            for twin in list(_shared.values()):
                if twin.identity == identity and not twin.silent:
                    return twin.adopt(sock.fileno(), sock)
    return shared


def _identity_of(fd: int) -> tuple[int, int]:
    """What duplicates of one descriptor have in common."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _forget(shared: Shared) -> None:
    """Its descriptor is closed, or about to be closed by the collector, without our having been told."""
    if _shared.get(shared.fd) is shared:
        del _shared[shared.fd]
        if _primary is not None:
            _primary.defer(lambda: _release(shared))  # the collector runs anywhere, where locks are held too


def _release(shared: Shared) -> None:
    """Tell the primary that the listener is closed here, if this was its last descriptor."""
    if _primary is not None and not any(other.key == shared.key for other in list(_shared.values())):
        _primary.release(shared.key)


def _quiet_descriptor() -> int:
    """A descriptor that is never readable: its peer stays open, here, and says nothing."""
    global _quiet
    if _quiet is None:
        _quiet = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return _quiet[0].fileno()


def _unwatch(fd: int) -> None:
    """Take a descriptor out of every epoll of this process."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") != "anon_inode:[eventpoll]":
                continue
            with select.epoll.fromfd(os.dup(int(name))) as epoll:
                epoll.unregister(fd)
        except OSError:
            pass  # closed meanwhile, or not watched there
