"""What workers ask the primary for, and its answers: to bind, to listen, to join a descriptor of the user's.

The primary passes on what comes; the table of listeners decides; here is what is answered when it cannot be done, and
who waits for a port that another worker is about to let go of. All of it in the dispatching thread.
"""

import errno
import functools
import os
import socket
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from . import _cluster, native, protocol
from .handles import Handle
from .listeners import Listeners
from .member import Member
from .protocol import Policy
from .settings import Settings
from .worker import LEAVING

# A worker that disconnects lets go of its sockets in its own time. Whoever binds to the same port meanwhile waits for
# so long, looking so often.
REBIND_S = 1.0
REBIND_INTERVAL_S = 0.005

_Request = protocol.Bind | protocol.BindDescriptor | protocol.Listen
# A reply and the descriptor that goes along (borrowed).
_Answer = tuple[protocol.Reply, int | None]


class Primary(Protocol):
    """What this room needs of the primary."""

    settings: Settings
    policy: Policy

    @property
    def members(self) -> Iterable[Member]: ...

    def note_listening(self, member: Member, handle: Handle) -> None: ...

    def remind(self, seconds: float, function: Callable[[], object]) -> None: ...


class Requests:
    """Answers what workers ask for."""

    def __init__(self, primary: Primary, listeners: Listeners) -> None:
        self._primary = primary
        self._listeners = listeners
        self._waiting: list[_Waiting] = []

    def refuse_waiting(self) -> None:
        """Try once more for those that wait for a port, for the last time: this process is about to forget them."""
        while self._waiting:
            member, said, sock, _ = self._waiting.pop()
            self._answer(member, said, functools.partial(self._bind_socket, member, said, sock, deadline=0.0))

    def abandon(self) -> None:
        """In a forked child: close the copies of the sockets of those that wait for a port."""
        for waiting in self._waiting:
            waiting.sock.close()
        self._waiting.clear()

    def bind(self, member: Member, said: protocol.Bind, fd: int | None) -> None:
        """A worker binds its own socket `fd`, which this owns; None: it was sent, and did not fit into our table."""
        self._answer(member, said, lambda: self._bind(member, said, fd))

    def bind_descriptor(self, member: Member, said: protocol.BindDescriptor) -> None:
        """A worker joins a descriptor of the user's."""
        self._answer(member, said, lambda: self._bind_descriptor(member, said.fd))

    def listen(self, member: Member, said: protocol.Listen) -> None:
        """A worker wants connections."""
        self._answer(member, said, lambda: self._listen(member, said))

    def _answer(self, member: Member, said: _Request, act: Callable[[], _Answer | None]) -> None:
        key = 0
        try:
            answer = act()
            if answer is None:
                return  # it will be answered later
            reply, fd = answer
            key = reply.key
            reply.seq = said.seq
            member.channel.send_control(protocol.encode(reply), fd)
            return
        except OSError as exception:
            reply = protocol.Reply(said.seq, error=exception.errno or errno.EIO, reason=exception.strerror or "")
        except (TypeError, ValueError, OverflowError) as exception:
            # Of bind and listen, for what the library in a worker never asks.
            reply = protocol.Reply(said.seq, error=errno.EINVAL, reason=str(exception))
        if not isinstance(said, protocol.Listen):
            self._listeners.release(member.worker.id, key)  # there was no descriptor for the duplicate to be sent
        member.channel.send_control(protocol.encode(reply))

    def _bind(self, member: Member, said: protocol.Bind, fd: int | None) -> _Answer | None:
        if fd is None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        try:
            sock = native.Socket(fileno=fd)
        except OSError:
            _cluster.discard(fd)  # it is no socket
            raise
        return self._bind_socket(member, said, sock, time.monotonic() + REBIND_S)

    def _bind_socket(self, member: Member, said: protocol.Bind, sock: socket.socket, deadline: float) -> _Answer | None:
        if _is_leaving(member):
            _cluster.discard(sock.detach())
            return protocol.Reply(0, address=said.address, quiet=True), None
        try:
            handle = self._listeners.bind(member.worker.id, said, sock, self._primary.policy, member.rights)
        except BaseException as exception:
            if _is_in_use(exception) and time.monotonic() < deadline and any(map(_is_leaving, self._primary.members)):
                waiting = _Waiting(member, said, sock, deadline)
                self._waiting.append(waiting)
                self._primary.remind(REBIND_INTERVAL_S, lambda: self._try_again(waiting))
                return None
            _cluster.discard(sock.detach())
            raise
        reply = protocol.Reply(0, key=handle.key)
        if not isinstance(said.address, bytes):  # which the worker knows better, by the path as it was given
            reply.address = handle.sock.getsockname()
        if said.kind != socket.SOCK_DGRAM:
            return reply, None
        self._primary.note_listening(member, handle)
        reply.listening = True
        return reply, handle.sock.fileno()

    def _try_again(self, waiting: "_Waiting") -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)
            self._answer(waiting.member, waiting.said, functools.partial(self._bind_socket, *waiting))

    def _bind_descriptor(self, member: Member, fd: int) -> tuple[protocol.Reply, int | None]:
        if member.worker.state == "disconnecting":
            return protocol.Reply(0, quiet=True), None
        handle = self._listeners.bind_descriptor(member.worker.id, fd, self._primary.policy)
        return protocol.Reply(0, key=handle.key), handle.sock.fileno()

    def _listen(self, member: Member, said: protocol.Listen) -> _Answer:
        if member.worker.state == "disconnecting":
            return protocol.Reply(0, quiet=True), None
        handle, ticket = self._listeners.listen(
            member.worker.id, member.index, said, self._primary.settings.max_pending
        )
        self._primary.note_listening(member, handle)
        return protocol.Reply(0, key=handle.key, cell=ticket.cell, listening=True), ticket.fd


class _Waiting(NamedTuple):
    """A worker that waits for a port, with the socket that it is to have; until when it waits."""

    member: Member
    said: protocol.Bind
    sock: socket.socket
    deadline: float


def _is_leaving(member: Member) -> bool:
    return member.worker.state in LEAVING


def _is_in_use(exception: BaseException) -> bool:
    return isinstance(exception, OSError) and exception.errno == errno.EADDRINUSE
