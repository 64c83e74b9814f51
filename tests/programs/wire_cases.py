"""Cases of the control channel's frames, for those who look for leaks: `wire_cases.py NAME` tells one fact."""

import gc
import os
import select
import socket
from typing import Any

from programs.core_front import run_case
from pycluster import _cluster
from pycluster.errors import ProtocolError

Facts = dict[str, Any]


def many_frames() -> Facts:
    """Frames of all sizes, with descriptors and without, written, received, refused and given up."""
    got = refused = 0
    for turn in range(20):
        left, right = socket.socketpair()
        with left, right, select.epoll() as epoll:
            poll = _cluster.Poll(epoll.fileno())
            left.setblocking(False)
            right.setblocking(False)
            sender, receiver = (_cluster.Wire(sock.fileno(), poll, 10**7) for sock in (left, right))
            for size in (0, 1, 100, 40_000, 700_000):
                for fd in (-1, os.dup(0)):
                    sender.send(1, bytes(size), fd, print if turn % 2 else None)
            for _ in range(200 if turn % 3 else 2):
                sender.flush()
                for _, _, received in receiver.receive():
                    got += 1
                    if received is not None:
                        os.close(received)
            if turn % 3:
                left.send(b"\xff" * 100)
                try:
                    refused += not list(receiver.receive())
                except ProtocolError:
                    refused += 1
            sender.close(OSError())
            receiver.close(OSError())
    gc.collect()
    return {"got": got, "refused": refused}


if __name__ == "__main__":
    run_case(globals())
