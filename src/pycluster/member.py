"""What the primary keeps of one worker."""

from collections import deque

from .channel import Channel
from .rights import Rights
from .worker import Address, Worker


class Member:
    """What the primary keeps of one worker, beside the object that the user holds."""

    def __init__(self, worker: Worker, index: int, pidfd: int, channel: Channel, rights: Rights | None) -> None:
        """`index`: of its slot in the shared region. `rights`: which it was started with, None for the primary's."""
        self.untold: deque[Address] = deque()  # where it listens, and `listening` is yet to be emitted
        self.worker = worker
        self.index = index
        self.pidfd = pidfd
        self.channel = channel
        self.rights = rights
        self.killed_at: float | None = None  # by time.monotonic(), if it is left then; None: nobody is to kill it
