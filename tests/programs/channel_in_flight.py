"""A process without rights may have as many descriptors in flight as it may have open: here 64, for 200 messages."""

import array  # noqa: F401  (below, /usr may be out of reach)
import os
import resource
import select
import socket
from collections.abc import Callable

from programs.facts import tell
from pycluster import _cluster
from pycluster.channel import Channel

deferred: list[Callable[[], object]] = []
errors: list[BaseException | None] = []


def channel(sock: socket.socket, epoll: select.epoll) -> Channel:
    return Channel(
        sock, _cluster.Poll(epoll.fileno()), None, serialization="msgpack", max_message_size=1000, defer=deferred.append
    )


ours, theirs = socket.socketpair()
epolls = select.epoll(), select.epoll()
sender, receiver = channel(ours, epolls[0]), channel(theirs, epolls[1])
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
sent = 0
while sent < 200:
    try:
        sender.send_message(sent, 0, True, errors.append)
    except OSError as exception:  # no descriptor for the duplicate that waits: nothing is sent, and the caller knows
        tell("refused", errno=exception.errno)
        break
    sent += 1
# This process is the receiver too, and what waits in the sender has taken all its room.
resource.setrlimit(resource.RLIMIT_NOFILE, (80, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
got = []
while not (receiver.exhausted and not sender.backlogged):
    for _, payload, fd in receiver.receive():
        message, handle = receiver.decode_message(payload, fd)
        got.append((message, handle is not None))
        if isinstance(handle, int):
            os.close(handle)
    sender.flush()
    while deferred:
        deferred.pop(0)()
tell(
    "facts",
    sent=sent,
    in_order=[message for message, _ in got] == list(range(sent)),
    with_handle=sum(has_handle for _, has_handle in got),
    errors=[repr(error) for error in errors if error is not None],
)
