"""A worker that ends, and leaves a child behind that goes on writing small messages to the worker's channel."""

import contextlib
import os

from programs.facts import tell
from pycluster import Worker, cluster
from pycluster.channel import MESSAGE


def write_for_ever(channel: int, begins: int) -> None:
    """More in one go than the socket holds, so that it is full again long before the primary has handled a read."""
    os.set_blocking(channel, True)
    nil = b"\xc0"
    frames = (len(nil).to_bytes(4, "little") + bytes([MESSAGE, 0, 0, 0]) + nil) * 100_000
    os.write(begins, b"x")
    with contextlib.suppress(OSError):
        while True:
            os.write(channel, frames)


if cluster.is_primary:

    @cluster.on("exit")
    def on_exit(worker: Worker, code: int | None, signal: object) -> None:
        tell("exit", code=code)

    cluster.fork()
    cluster.run()
else:
    assert cluster._child is not None
    channel = os.dup(cluster._child._channel.fileno())
    begun, begins = os.pipe()
    if os.fork() == 0:
        write_for_ever(channel, begins)
        os._exit(0)
    os.read(begun, 1)
    os._exit(7)
