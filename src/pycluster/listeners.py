"""The primary's table of listeners: which address has a handle, and which worker may use it.

The primary asks it for what workers want (`bind`, `listen`, `release`) and tells it of their ends (`withdraw`,
`forget`). Two workers that bind one address meet in one handle. A handle leaves the table when the last worker that
asked for it has closed it or disconnects; when that one crashes, the handle stays for the next one. A handle that is
closed is kept until the workers that still take what lies in their channels are gone.
"""

import errno
import itertools
import os
import socket
from collections.abc import Callable, Hashable, Iterator

from . import _cluster, native, protocol
from .handles import DatagramHandle, Handle, RoundRobinHandle, SharedHandle, Ticket
from .protocol import Policy
from .rights import Rights
from .socketfile import SocketFile, bind_file
from .sockets import duplicate_listener
from .worker import Address

# What workers share. A datagram socket on a path is none of it: its file would be made with the primary's rights.
_SHARED = {
    *itertools.product((socket.AF_INET, socket.AF_INET6), (socket.SOCK_STREAM, socket.SOCK_DGRAM)),
    (socket.AF_UNIX, socket.SOCK_STREAM),
}
# A server may unlink its socket's file after it has closed the socket (asyncio does from Python 3.13 on), which nothing
# tells us of: when a worker has closed one, its file is looked for once more after so many seconds.
LOOK_AGAIN_S = 0.2


class Listeners:
    """The handles that workers, by their ids, have asked for."""

    def __init__(self, call_later: Callable[[float, Callable[[], object]], object]) -> None:
        """`call_later` runs a function after so many seconds, in the thread that calls the methods."""
        self._call_later = call_later
        self._by_name: dict[Hashable, Handle] = {}
        self._by_key: dict[int, Handle] = {}
        self._closing: list[Handle] = []
        self._keys = 0

    def __iter__(self) -> Iterator[Handle]:
        """All handles, those that are closed and still have members included."""
        return iter([*self._by_key.values(), *self._closing])

    def bind(
        self, worker_id: int, said: protocol.Bind, sock: socket.socket, policy: Policy, rights: Rights | None
    ) -> Handle:
        """Let a worker join the handle of an address; the first one's socket is bound, and owned by the handle.

        Args:
          rights: of the worker, to files.

        Raises:
          OSError: of bind(2), or the worker has this listener already. `sock` is the caller's still.
          TypeError, ValueError, OverflowError: it is no address.
        """
        if (sock.family, sock.type) != (said.family, said.kind):
            raise OSError(errno.EINVAL, "the socket is not what it is said to be")
        if (said.family, said.kind) not in _SHARED:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        if not isinstance(said.address, bytes):
            _expect_numeric(said.address[:1])
        name = (said.family, said.kind, said.address, said.index)
        handle = self._by_name.get(name) or self._open(name, said, sock, policy, rights)
        self._join(worker_id, handle)
        if said.kind == socket.SOCK_DGRAM:
            handle.listening.add(worker_id)
        if handle.sock is not sock:
            _cluster.discard(sock.detach())
        return handle

    def bind_descriptor(self, worker_id: int, fd: int, policy: Policy) -> Handle:
        """Let a worker join the handle of a descriptor of the user's, which stays the user's.

        Raises:
          OSError: EBADF, ENOTSOCK, EINVAL: it is no bound stream socket; or the worker has this listener already.
        """
        sock = duplicate_listener(fd)
        # The number may be another socket's next time.
        name = (fd, os.fstat(sock.fileno()).st_ino)
        handle = self._by_name.get(name)
        if handle is None:
            handle = self._add(name, _handle_class(policy), sock, _address_of(sock)._replace(fd=fd))
        else:
            sock.close()
        self._join(worker_id, handle)
        return handle

    def _open(
        self, name: Hashable, said: protocol.Bind, sock: socket.socket, policy: Policy, rights: Rights | None
    ) -> Handle:
        if said.kind == socket.SOCK_DGRAM:
            sock.bind(said.address)
            return self._add(name, DatagramHandle, sock, _address_of(sock))
        if not isinstance(said.address, bytes):
            sock.bind(said.address)
            return self._add(name, _handle_class(policy), sock, _address_of(sock))
        file = None
        if said.address.startswith(b"\0"):
            sock.bind(said.address)
        else:
            sock, file = bind_file(sock, said.address, said.over_stale, said.umask, rights)
        address = Address(family=said.family, type=said.kind, path=os.fsdecode(said.address))
        return self._add(name, _handle_class(policy), sock, address, file)

    def _add(
        self,
        name: Hashable,
        kind: Callable[..., Handle],
        sock: socket.socket,
        address: Address,
        file: SocketFile | None = None,
    ) -> Handle:
        self._keys += 1
        handle = self._by_name[name] = self._by_key[self._keys] = kind(self._keys, sock, address, file)
        return handle

    def _join(self, worker_id: int, handle: Handle) -> None:
        if worker_id in handle.members:
            handle.look_after_file()  # whoever binds to a path may have removed it before
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        handle.join(worker_id)

    def listen(self, worker_id: int, slot: int, said: protocol.Listen, max_pending: int) -> tuple[Handle, Ticket]:
        """Give a worker its way to the connections of a handle that it has joined.

        Raises:
          OSError: EINVAL for another handle; of listen(2); or for want of descriptors.
        """
        handle = self._of(worker_id, said.key)
        if handle is None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if isinstance(handle, RoundRobinHandle):
            _cluster.start_balancer(max_pending)
        ticket = handle.listen(worker_id, slot, said.backlog)
        handle.listening.add(worker_id)
        return handle, ticket

    def addresses_of(self, worker_id: int) -> set[Address]:
        """What a worker listens on."""
        return {handle.address for handle in self if worker_id in handle.listening}

    def wait_for(self, worker_id: int) -> bool:
        """Whether connections wait for a worker to accept them."""
        return any(worker_id in handle.members and handle.waits_for(worker_id) for handle in self._by_key.values())

    def release(self, worker_id: int, key: int) -> None:
        """A worker has closed a listener; the last one closes the handle."""
        for closed in self._closing:
            if closed.key == key:
                closed.leave(worker_id)  # what it has not accepted ends now: nobody else could take it
        handle = self._of(worker_id, key)
        if handle is not None:
            handle.leave(worker_id)
            if not handle.members:
                self._close(handle)
            elif handle.file is not None:
                self._call_later(LOOK_AGAIN_S, handle.file.restore)

    def withdraw(self, worker_id: int) -> None:
        """A worker disconnects: it gets no more connections."""
        for handle in list(self._by_key.values()):
            if handle.members == {worker_id}:
                # Nobody else can take what the kernel has accepted by now: it is still this worker's.
                self._close(handle)
            else:
                handle.leave(worker_id)

    def withdraw_all(self) -> None:
        """All workers disconnect, and share in what the kernel has accepted by now."""
        for handle in list(self._by_key.values()):
            self._close(handle)

    def forget(self, worker_id: int) -> None:
        """A worker's process has ended."""
        for handle in self:
            handle.leave(worker_id)
        self._closing = [handle for handle in self._closing if handle.members]

    def close(self) -> None:
        """Close all handles, crashed workers' too, and end the balancer: no worker is left. Idempotent."""
        for handle in self:
            handle.close()
        self._clear()
        _cluster.stop_balancer()

    def abandon(self) -> None:
        """In a forked child: close the copies of the sockets."""
        for handle in self:
            handle.sock.close()
        self._clear()

    def _of(self, worker_id: int, key: int) -> Handle | None:
        handle = self._by_key.get(key)
        return handle if handle is not None and worker_id in handle.members else None

    def _close(self, handle: Handle) -> None:
        """Nobody can join it any more; workers that have a channel still take what lies in it."""
        handle.close()
        del self._by_key[handle.key]
        self._by_name = {name: other for name, other in self._by_name.items() if other is not handle}
        self._closing.append(handle)

    def _clear(self) -> None:
        self._by_name.clear()
        self._by_key.clear()
        self._closing.clear()


def _handle_class(policy: Policy) -> type[Handle]:
    return RoundRobinHandle if policy == "rr" else SharedHandle


def _expect_numeric(host: tuple[str | int, ...]) -> None:
    """Workers resolve names themselves: a name server that does not answer would hold the primary up.

    Raises:
      OSError: EINVAL, for a name.
    """
    try:
        [name] = host
        native.getaddrinfo(str(name), None, flags=socket.AI_NUMERICHOST)
    except (OSError, ValueError):
        raise OSError(errno.EINVAL, f"{host!r} is no numeric host") from None


def _address_of(sock: socket.socket) -> Address:
    bound = sock.getsockname()
    if isinstance(bound, tuple):
        return Address(host=bound[0], port=bound[1], family=int(sock.family), type=int(sock.type))
    return Address(path=os.fsdecode(bound), family=int(sock.family), type=int(sock.type))
