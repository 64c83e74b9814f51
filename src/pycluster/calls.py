"""What a worker asks its primary for: to bind, to listen, to join a descriptor of the user's. Any thread waits for it.

The answers come on the control channel, which the control thread reads. Compare requests.py, the primary's side.
"""

import errno
import os
import socket
from collections.abc import Callable
from typing import Any

from . import descriptors, native, protocol
from .channel import Channel


class _Waiter:
    """A thread that waits for the answer to a request."""

    def __init__(self) -> None:
        self.done = native.Event()
        self.reply: protocol.Reply | None = None
        self.fd: int | None = None


class Calls:
    """The requests of a worker that are not yet answered."""

    def __init__(
        self,
        channel: Channel,
        wait: Callable[[native.Event], object],
        defer: Callable[[Callable[[], object]], object],
    ) -> None:
        """Made in the main thread.

        Args:
          wait: waits for an event, and lets the channel be read meanwhile.
          defer: runs a function soon in the control thread.
        """
        self._channel = channel
        self._defer = defer
        self._wait = wait
        self._main = native.get_ident()
        self._count = 0
        self._waiters: dict[int, _Waiter] = {}
        self._lock = native.allocate_lock()

    # Listener's Primary

    def bind(
        self, family: int, kind: int, address: Any, fd: int, *, index: int | None, over_stale: bool, umask: int | None
    ) -> descriptors.Bound:
        reply, shared = self._request(
            lambda seq: protocol.Bind(seq, family, kind, address, index=index, over_stale=over_stale, umask=umask), fd
        )
        return self._bound(reply, shared, kind == socket.SOCK_DGRAM)

    def bind_descriptor(self, fd: int) -> descriptors.Bound:
        reply, shared = self._request(lambda seq: protocol.BindDescriptor(seq, fd))
        return self._bound(reply, shared, True)

    def _bound(self, reply: protocol.Reply, fd: int | None, wants_fd: bool) -> descriptors.Bound:
        if wants_fd and fd is None and not reply.quiet:
            self.release(reply.key)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))  # it was sent, and did not fit into our table
        address = tuple(reply.address) if isinstance(reply.address, list) else None
        return descriptors.Bound(reply.key, address, fd)

    def listen(self, key: int, backlog: int) -> tuple[int, int | None] | None:
        reply, fd = self._request(lambda seq: protocol.Listen(seq=seq, key=key, backlog=backlog))
        if reply.quiet:
            return None
        if fd is None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))  # it was sent, and did not fit into our table
        return fd, reply.cell

    def release(self, key: int) -> None:
        self._channel.send_control(protocol.encode(protocol.Release(key)))

    def _request(
        self, make: Callable[[int], protocol.FromWorker], fd: int | None = None
    ) -> tuple[protocol.Reply, int | None]:
        waiter = _Waiter()
        with self._lock:
            self._count += 1
            seq = self._count
            self._waiters[seq] = waiter
        try:
            self._channel.send_control(protocol.encode(make(seq)), fd)
        except OSError:  # there is no descriptor for a duplicate of `fd`
            self._give_up(seq)
            raise
        if self._channel.closed:
            self._give_up(seq)
        self._wait(waiter.done)  # for the reply, or for the end of the channel
        reply = waiter.reply
        if reply is None:
            if native.get_ident() == self._main:
                native.sleep(1.0)  # the end of the script is on its way, and says more than an error
            raise OSError(errno.ESHUTDOWN, "this worker is disconnected from its primary")
        if reply.error:
            raise OSError(reply.error, reply.reason or os.strerror(reply.error))
        return reply, waiter.fd

    def defer(self, function: Callable[[], object]) -> None:
        self._defer(function)

    # The control thread

    def answer(self, reply: protocol.Reply, fd: int | None) -> None:
        """A reply has come, with a descriptor, which is the asker's."""
        with self._lock:
            waiter = self._waiters.pop(reply.seq, None)
        if waiter is None:
            if fd is not None:
                native.close(fd)
            return
        waiter.reply, waiter.fd = reply, fd
        waiter.done.set()

    def give_up(self) -> None:
        """No reply comes any more: the channel is closed."""
        for seq in list(self._waiters):
            self._give_up(seq)

    def _give_up(self, seq: int) -> None:
        with self._lock:
            waiter = self._waiters.pop(seq, None)
        if waiter is not None:
            waiter.done.set()
