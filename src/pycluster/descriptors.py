"""The worker's table of shared descriptors: what it knows of each, and what becomes of it.

`listener.py`, which replaces methods of socket.socket, puts descriptors in and asks for them; the control thread
(`Child`) silences them when the worker disconnects. Duplicates of a descriptor are the same listener: what is done to
one must be done to all, and only with the last of them is the listener closed.
"""

import contextlib
import errno
import os
import resource
import select
import socket
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from . import _cluster, native

# What there may be more of when something else has been closed.
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Bound(NamedTuple):
    """The primary's answer to a bind.

    Attributes:
      key: the listener's; 0 when nothing will come, because this worker is disconnecting.
      address: of an Internet socket, else None.
      fd: the shared socket itself, the caller's, where it is given out before listen.
    """

    key: int
    address: Any
    fd: int | None


class Primary(Protocol):
    """What this room asks of the primary; `Calls` does the asking."""

    def bind(
        self, family: int, kind: int, address: Any, fd: int, *, index: int | None, over_stale: bool, umask: int | None
    ) -> Bound: ...

    def bind_descriptor(self, fd: int) -> Bound: ...

    def listen(self, key: int, backlog: int) -> tuple[int, int | None] | None: ...

    def release(self, key: int) -> None: ...

    def defer(self, function: Callable[[], object]) -> None: ...


class Shared:
    """A descriptor of this worker whose port is shared. Duplicates of one descriptor have one key."""

    def __init__(self, fd: int, key: int, address: Any, family: int, kind: int, owner: socket.socket | None) -> None:
        self.fd = fd
        self.key = key
        self.address = address
        self.family = family
        self.kind = kind
        self.identity = _identity_of(fd)
        self.listening = False
        self.cell: int | None = None
        self.receiver: _cluster.Receiver | None = None
        self.silent = False
        self.shut = False  # shut down here: accept fails
        # Descriptors of the same socket that are none of ours: those that a worker has inherited from the user.
        self.strangers: frozenset[int] = frozenset()
        # None: the descriptor lives on without a socket object of Python's that would tell of its end.
        self.owner = None if owner is None else weakref.ref(owner, lambda _: _forget(self))

    @property
    def is_datagram(self) -> bool:
        """Whether this is a UDP socket: the shared socket itself, and nothing to accept from."""
        return self.kind == socket.SOCK_DGRAM

    def receive_from(self, fd: int, cell: int | None) -> bool:
        """Put the descriptor that the primary gave in the place of this one, if it has none yet, and close `fd`.

        Until that is closed it is a duplicate, which the control thread must not find: its number is anybody's then.

        Args:
          cell: see the core's Receiver.

        Returns:
          Whether it had none.
        """
        with _closing:
            try:
                if self.listening:
                    return False
                os.dup2(fd, self.fd, inheritable=False)
                self.identity = _identity_of(self.fd)
                self.cell = cell
                if cell is not None:
                    self.receiver = _cluster.Receiver(self.fd, cell)
                self.listening = True
                return True
            finally:
                native.close(fd)

    def adopt(self, fd: int, owner: socket.socket | None) -> "Shared":
        """Share a duplicate of this descriptor, too."""
        twin = Shared(fd, self.key, self.address, self.family, self.kind, owner)
        twin.identity = self.identity  # the number may be another file's by now
        twin.listening, twin.shut = self.listening, self.shut
        twin.cell = self.cell
        if self.cell is not None:
            twin.receiver = _cluster.Receiver(fd, self.cell)
        _shared[fd] = twin
        return twin

    def adopt_duplicates(self) -> None:
        """Find the duplicates that nobody has told of: what is done to all of one key must be done to them."""
        if self.silent:
            return  # all silent descriptors are duplicates of one
        for fd in _open_numbers():
            with contextlib.suppress(OSError):  # closed meanwhile
                if fd not in _shared and fd not in self.strangers and _identity_of(fd) == self.identity:
                    self.adopt(fd, None)

    def leave_strangers(self) -> None:
        """What has been there before this descriptor is no duplicate of it, but the user's."""
        found = set()
        for fd in _open_numbers():
            with contextlib.suppress(OSError):  # closed meanwhile
                if _identity_of(fd) == self.identity:
                    found.add(fd)
        self.strangers = frozenset(found - {self.fd})

    def poll(self, timeout_s: float) -> int:
        """What poll(2) says of it within a time: 0 if nothing, or if it has been closed here."""
        if (fd := self.fd) < 0:
            return 0
        poller = native.poll()
        poller.register(fd, select.POLLIN)
        return next((event for _, event in poller.poll(timeout_s * 1000)), 0)

    @property
    def waiting(self) -> bool:
        """Whether a connection lies in the channel, or a probe of the balancer's."""
        event = self.poll(0)
        return bool(event & select.POLLIN and not event & select.POLLHUP)

    def silence(self) -> None:
        """Never be readable again: a server that goes on polling this descriptor sleeps.

        An end of file would stay readable and make http.server's and asyncio's loops spin. The epolls of this process
        are told first, since they would go on watching the old socket as long as another process has it open. A
        datagram socket becomes one that can still send, and that loops can wait for to be writable.

        Raises:
          OSError: no descriptor is left; nothing has been changed.
        """
        with _closing:
            if self.silent or _shared.get(self.fd) is not self or _release_if_closed(self):
                return
            with contextlib.ExitStack() as stack:
                if self.is_datagram:
                    unbound = native.Socket(self.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
                    quiet = stack.enter_context(unbound).fileno()
                else:
                    quiet = _quiet_descriptor()
                watches = _watches_of(self.fd, stack)
                # From here on no descriptor is opened. This before the socket goes: `_accept` then looks at it.
                self.silent = True
                watches = [(epoll, events) for epoll, events in watches if _unwatch(self.fd, epoll)]
                os.dup2(quiet, self.fd, inheritable=False)
                if not self.is_datagram:
                    # A listening socket is never writable. That it is watched still lets its server take it out.
                    watches = [(epoll, events & ~select.EPOLLOUT) for epoll, events in watches]
                for epoll, events in watches:
                    with contextlib.suppress(OSError):  # its loop has put it back meanwhile
                        epoll.register(self.fd, events)
            self.identity = _identity_of(self.fd)
            if self.receiver is None and not self.is_datagram:
                # Accept waits there as on a channel where nothing comes, or on none.
                self.receiver = _cluster.Receiver(-1 if self.shut else self.fd, 0)


_shared: dict[int, Shared] = {}
_ports: set[int] = set()  # TCP ports that have been shared here
# Held while a shared socket is closed here, or silenced by the control thread: a number that has been closed may be
# another file's at once.
_closing = native.RLock()
primary: Primary | None = None
_quiet: tuple[socket.socket, socket.socket] | None = None


def shared_sockets() -> list[Shared]:
    """The shared descriptors of this worker that listen, duplicates included."""
    with _closing:
        for shared in list(_shared.values()):
            if shared.listening:
                shared.adopt_duplicates()
        return [shared for shared in list(_shared.values()) if shared.listening]


def receiver_of(sock: socket.socket) -> _cluster.Receiver | None:
    """The channel that this socket accepts from, if it is one."""
    shared = find(sock)
    return None if shared is None else shared.receiver


def is_channel(fd: int) -> bool:
    """Whether what looks like a listening socket is a channel that connections come through."""
    shared = _shared.get(fd)
    return shared is not None and shared.cell is not None and _identity_of(fd) == shared.identity


def put(sock: socket.socket, key: int, address: Any) -> Shared:
    """Share this socket's descriptor, which the primary has bound, from now on."""
    fd = sock.fileno()
    shared = _shared[fd] = Shared(fd, key, address, int(sock.family), int(sock.type), sock)
    if sock.family in (socket.AF_INET, socket.AF_INET6) and not shared.is_datagram and address[1]:
        _ports.add(address[1])  # 0 is what a worker that disconnects gets
    return shared


def open_connections() -> int:
    """How many descriptors of connections to shared TCP ports are open here, whoever has accepted or duplicated them.

    The core knows those that were accepted through it, by their numbers; this finds the others, at the price of a look
    at every descriptor.
    """
    return sum(_cluster.connected_port(fd) in _ports for fd in _open_numbers())


def close(shared: Shared, really_close: Callable[[], None]) -> None:
    """Close a shared descriptor, and the listener with the last one."""
    with _closing:
        _take_out(shared)
        really_close()
    _release(shared)  # after the close: what lies in the channel is the primary's now


def shut(shared: Shared, shut_channel: Callable[[], None]) -> None:
    """Take no more from a listener, or a datagram socket, by any of its duplicates: it is left to the other workers.

    Threads that wait in accept hear of it: of a channel's end at once, of a shared socket's silence within a second.

    Args:
      shut_channel: under SCHED_RR, which stays readable then, as a plain listener does. poll(2) would go on with the
        file that is put in its place, so that nobody would wake up for a second.

    Raises:
      OSError: no descriptor is left for the silence.
    """
    with _closing:
        key = shared.key
        twins = [twin for twin in shared_sockets() if twin is shared or (twin.key == key and key)]
        for twin in twins:
            twin.shut = True
            if twin.receiver is None:
                twin.silence()
            else:
                twin.receiver.close()
        for twin in twins:
            twin.key = 0  # the worker may join the same listener again before it closes this
        if shared.cell is not None and not shared.silent:
            shut_channel()
    if primary is not None and key:
        primary.release(key)


def abandon() -> None:
    """In a child that this worker forks on its own: it is no worker, and holds no listener open.

    Datagram sockets it keeps, as any child would: socketserver's ForkingUDPServer answers from there.
    """
    global primary
    primary = None
    for shared in _shared.values():
        with contextlib.suppress(OSError):  # closed by its number
            if not shared.is_datagram and _identity_of(shared.fd) == shared.identity:
                os.dup2(_quiet_descriptor(), shared.fd, inheritable=False)
    _shared.clear()


def find(sock: socket.socket) -> Shared | None:
    """What is known to be shared under this socket's descriptor."""
    shared = _shared.get(sock.fileno())
    if shared is not None and shared.owner is None and _release_if_closed(shared):
        return None
    return shared


def leave_open(shared: Shared) -> None:
    """Its socket object lets go of the descriptor, which lives on. uvloop lets go of one that libuv has closed."""
    shared.owner = None
    _release_if_closed(shared)


def find_any(sock: socket.socket) -> Shared | None:
    """The same, and what is a duplicate of a shared descriptor (dup, fromfd) that nobody has told of."""
    shared = find(sock)
    if shared is None and _shared and sock.fileno() >= 0:
        identity = _identity_of(sock.fileno())
        with _closing:
            for twin in list(_shared.values()):
                if twin.identity == identity and not twin.silent:
                    return twin.adopt(sock.fileno(), sock)
    return shared


def _open_numbers() -> Iterable[int]:
    """The descriptors that are open here; some may be closed by now.

    Raises:
      OSError: ENFILE, ENOMEM; never EMFILE.
    """
    try:
        return [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError as exception:
        if exception.errno != errno.EMFILE:
            raise
        # All below the limit are in use. Above it there are some only if it has been lowered.
        return range(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _identity_of(fd: int) -> tuple[int, int]:
    """What duplicates of one descriptor have in common."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _forget(shared: Shared) -> None:
    """Its descriptor is closed, or about to be closed by the collector, without our having been told."""
    if _shared.get(shared.fd) is shared:
        del _shared[shared.fd]
        if primary is not None:
            primary.defer(lambda: _release(shared))  # the collector runs anywhere, where locks are held too


def _take_out(shared: Shared) -> None:
    """Take a descriptor out of the table, where its duplicates stay."""
    with contextlib.suppress(OSError):  # it is closed all the same; a duplicate that nobody has told of is not found
        shared.adopt_duplicates()
    if _shared.get(shared.fd) is shared:
        del _shared[shared.fd]
    shared.fd = -1  # a thread may be in accept: the number can be the next listener's at once
    if shared.receiver is not None:
        shared.receiver.close()


def _release_if_closed(shared: Shared) -> bool:
    """Whether it has been closed by its number, which may be another file's by now."""
    with _closing:
        with contextlib.suppress(OSError):
            if _identity_of(shared.fd) == shared.identity:
                return False
        _take_out(shared)
    _release(shared)  # at once: a bind to the same address may be what comes next
    return True


def _release(shared: Shared) -> None:
    """Tell the primary that the listener is closed here, if this was its last descriptor."""
    if primary is not None and not any(other.key == shared.key for other in list(_shared.values())):
        primary.release(shared.key)


def _quiet_descriptor() -> int:
    """A descriptor that is never readable: its peer stays open, here, and says nothing."""
    global _quiet
    if _quiet is None:
        _quiet = native.socketpair(kind=socket.SOCK_SEQPACKET)
    return _quiet[0].fileno()


def _watches_of(fd: int, stack: contextlib.ExitStack) -> "list[tuple[select.epoll, int]]":
    """The epolls of this process that watch a descriptor, and what they wait for there.

    Args:
      stack: closes them. They are duplicates.

    Raises:
      OSError: no descriptor is left.
    """
    watches = []
    for number in _open_numbers():
        try:
            if os.readlink(f"/proc/self/fd/{number}") != "anon_inode:[eventpoll]":
                continue
            with open(f"/proc/self/fdinfo/{number}") as info:
                rows = [line.split() for line in info]  # see proc_pid_fdinfo(5)
            for row in rows:
                if row[:2] == ["tfd:", str(fd)]:
                    watches.append((stack.enter_context(native.epoll.fromfd(os.dup(number))), int(row[3], 16)))
        except OSError as exception:
            if exception.errno in _SHORTAGES:
                raise  # else it has been closed meanwhile
    return watches


def _unwatch(fd: int, epoll: "select.epoll") -> bool:
    """Take a descriptor out of an epoll. Returns whether it was there."""
    try:
        epoll.unregister(fd)
    except OSError:
        return False  # taken out meanwhile, or by another descriptor of the same epoll
    return True
