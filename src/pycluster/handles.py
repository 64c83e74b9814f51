"""The primary's listening handles: one per address that workers listen on, whatever the policy.

A handle has few verbs: `join` (a worker has bound), `listen` (it wants connections), `leave` (it closes, disconnects or
is gone: then what waits for it goes to another one), `close`; and a question, `waits_for`. RoundRobinHandle accepts in
the primary and hands connections over; SharedHandle hands out the socket itself, as DatagramHandle does for UDP under
either policy. Compare the handles of lib/internal/cluster in Node.js.
"""

import errno
import os
import select
import socket
from typing import NamedTuple

from . import _cluster, native
from .socketfile import SocketFile
from .worker import Address


class Ticket(NamedTuple):
    """What a worker gets for its `listen`: a descriptor to take connections from (borrowed); a channel's has a cell."""

    fd: int
    cell: int | None


class Handle:
    """A bound socket of the primary's, and the workers (by id) that have asked for it."""

    def __init__(self, key: int, sock: socket.socket, address: Address, file: SocketFile | None = None) -> None:
        """Own `sock`, which is bound, and the file that it is bound to."""
        self.key = key
        self.sock = sock
        self.address = address
        self.file = file
        self.members: set[int] = set()
        self.listening: set[int] = set()  # those of them that take connections, or datagrams, from here
        self.backlog = -1

    def join(self, worker_id: int) -> None:
        """A worker has bound to this address."""
        self.members.add(worker_id)
        self.look_after_file()

    def listen(self, worker_id: int, slot: int, backlog: int) -> Ticket:
        """Give a worker its way to connections. The largest backlog that was asked for is in force.

        Raises:
          OSError: of listen(2), or for want of descriptors.
        """
        raise NotImplementedError

    def leave(self, worker_id: int) -> None:
        """A worker takes no more connections from here. What waits for it goes to another one."""
        self.members.discard(worker_id)
        self.listening.discard(worker_id)
        self.look_after_file()

    def waits_for(self, worker_id: int) -> bool:
        """Whether connections wait for a worker to accept them."""
        return False

    def close(self) -> None:
        """Remove the socket's file and close the socket. Idempotent.

        What the kernel has accepted by now still goes to the workers that have a channel. It stays usable until they
        leave.
        """
        if self.file is not None:
            self.file.remove()
        self._stop()
        _cluster.discard(self.sock.detach())

    def _stop(self) -> None:
        """Hand out what waits, before the socket is closed."""

    def look_after_file(self) -> None:
        if self.file is not None:
            self.file.restore()

    def _listen(self, backlog: int) -> None:
        backlog = max(backlog, 0)  # as listen(2) takes a negative one on Linux, so that the first call does listen
        if backlog > self.backlog:
            self.sock.listen(backlog)
            self.backlog = backlog


class RoundRobinHandle(Handle):
    """The primary accepts, and the balancer hands each connection to the next worker."""

    def __init__(self, key: int, sock: socket.socket, address: Address, file: SocketFile | None = None) -> None:
        super().__init__(key, sock, address, file)
        self._listener: _cluster.Listener | None = None
        self._channels: dict[int, _cluster.HandoffChannel] = {}

    def listen(self, worker_id: int, slot: int, backlog: int) -> Ticket:
        self._listen(backlog)
        if self._listener is None:
            # Not before: until now it is the very socket of the worker that came first.
            self.sock.setblocking(False)
            self._listener = _cluster.Listener(self.sock.fileno())
        channel = self._channels.get(worker_id)
        if channel is None:
            channel = self._channels[worker_id] = self._listener.add_channel(slot)
        return Ticket(channel.receiver, channel.cell)

    def leave(self, worker_id: int) -> None:
        super().leave(worker_id)
        if channel := self._channels.pop(worker_id, None):
            channel.close()

    def waits_for(self, worker_id: int) -> bool:
        channel = self._channels.get(worker_id)
        return channel is not None and channel.waits

    def _stop(self) -> None:
        if self._listener is not None:
            self.sock.setblocking(False)  # once more: the worker that has sent it may have a duplicate, with one flag
            self._listener.close(for_good=self.address.fd is None)  # else it is the user's, and lives on
            self._listener = None


class SharedHandle(Handle):
    """Every worker gets the socket itself, and the kernel picks."""

    def listen(self, worker_id: int, slot: int, backlog: int) -> Ticket:
        self._listen(backlog)
        return Ticket(self.sock.fileno(), None)

    def waits_for(self, worker_id: int) -> bool:
        poller = native.poll()
        poller.register(self.sock, select.POLLIN)
        return bool(poller.poll(0))


class DatagramHandle(Handle):
    """A UDP socket, which every worker gets when it binds, and the kernel picks who receives."""

    def __init__(self, key: int, sock: socket.socket, address: Address, file: SocketFile | None = None) -> None:
        super().__init__(key, sock, address, file)
        # One flag for all workers: what another one has received must not block anybody who waits in select.
        sock.setblocking(False)

    def listen(self, worker_id: int, slot: int, backlog: int) -> Ticket:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
